/*
 * Nodes out of options.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_BLOCK_NODE_OPEN_H
#define COLO_BLOCK_NODE_OPEN_H

#include "block-int.h"

/** The options of one node as -blockdev has them: dotted and short forms expanded in @opts.
 * @what names the node in errors; *@writethrough: what cache mode asks for. */
bool block_opts_normalise(JsonObject *opts, const char *what, bool *writethrough,
                          GError **errp);
/** Opens the tree of @opts, normalised; NULL with @errp. Not under the block lock. */
BlockNode *block_node_open_tree(const char *name, JsonObject *opts, GError **errp);

#endif
