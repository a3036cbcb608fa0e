/*
 * Nodes that are another node's file or backing.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_BLOCK_NODE_REF_H
#define COLO_BLOCK_NODE_REF_H

#include "block-int.h"

/** Keep the node @name of @opts (normalised) as options, to be opened when it is used. */
void block_node_ref_declare(const char *name, JsonObject *opts, bool writethrough);

/** Whether @opts describe a protocol's node, which waits for the node that it is the file
 * of. */
bool block_node_ref_is_protocol(JsonObject *opts);

/**
 * Where "file" or "backing" of @opts names such a node, or one that is open and unused, put its
 * options in place and add its name to @used. Without the block lock.
 */
bool block_node_ref_resolve(JsonObject *opts, GPtrArray *used, GError **errp);

/** The nodes @used belong to @user from now on; NULL: to nobody. Takes the lock. */
void block_node_ref_give(GPtrArray *used, BlockNode *user);

/** @user goes: what it used is free. Under the lock. */
void block_node_ref_release(BlockNode *user);

/** Open @name if it waits to be used and is free. Without the lock; may wait. */
bool block_node_ref_open(const char *name, GError **errp);

/** Under the lock. */
bool block_node_ref_exists(const char *name);

/** Forget @name; false with @errp: it is in use. Under the lock. */
bool block_node_ref_del(const char *name, GError **errp);

/** Append what block_query() says of each. Under the lock. */
void block_node_ref_query(JsonArray *out);
void block_node_refs_clear(void);

#endif
