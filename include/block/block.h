/*
 * Disks: block nodes, the child's access to them, NBD exports.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Nodes form trees: quorum over (image, replication primary over NBD client), or
 * replication secondary over (active overlay, hidden, image). Raw files are read and
 * written through io_uring; qcow2 and every other format through one
 * qemu-storage-daemon child an image, over NBD. The emulator reaches a disk as
 * driver=nbd on a unix socket of the node's own. One block thread with a lock
 * (block_lock()) runs everything; functions here take it themselves unless they say so.
 */
#ifndef COLO_BLOCK_BLOCK_H
#define COLO_BLOCK_BLOCK_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>
#include <stdint.h>

/** Start the block thread. @runtime_dir: a private directory (0700) for sockets. */
bool block_init(const char *runtime_dir, GError **errp);

/** Stop exports, flush and close all nodes, end the storage daemons. */
void block_shutdown(void);

/**
 * Create the tree of -drive / -blockdev / drive_add options (nested, as parsed). The top
 * node's name is @opts' "node-name" or "id". Guest-side keys (if, index, bus, unit, media,
 * snapshot, serial, werror, rerror) are ignored here. Drivers: quorum, replication, qcow2,
 * raw, file, nbd, and through the storage daemon every other that it knows. A value such
 * as children.0=childs0 or file.backing.backing=parent0 names an existing node; "file" and
 * "backing" of a format may, too: such a node is taken over with its options (node-ref.c). cache.*,
 * aio, discard, read-only, detect-zeroes are honoured or refused by name. An image beside
 * which a replication left its marker ("<image>.colo") is refused. May wait: 5 s for an NBD
 * server, 30 s for a storage daemon. Not from the block thread.
 */
bool block_node_add(JsonObject *opts, GError **errp);
bool block_node_del(const char *name, GError **errp);
bool block_node_exists(const char *name);

/** Bytes of node @name, or -1 with @errp set. */
int64_t block_node_size(const char *name, GError **errp);

/**
 * Serve node @name to the emulator on a unix socket; returns the socket's path (borrowed,
 * lives as long as the node) or NULL. The export's name is @name.
 */
const char *block_serve_child(const char *name, GError **errp);

/** Whether the emulator was given access to node @name. */
bool block_child_has(const char *name);

/** The emulator has dropped its node of @name: what is left of its connection goes. */
void block_child_left(const char *name);

/** QMP nbd-server-start (@addr: SocketAddressLegacy or SocketAddress object), -add, -remove,
 * -stop. An exported node that is a replication secondary's image takes writes into the
 * epoch log once replication has started. */
bool block_nbd_server_start(JsonObject *addr, const char *tls_creds, uint64_t max_conn,
                            GError **errp);
bool block_nbd_server_add(const char *node, const char *export_name, bool writable,
                          GError **errp);
bool block_nbd_server_stop(GError **errp);
bool block_nbd_server_running(void);

/** QMP block-export-add of type nbd; all strings borrowed. */
typedef struct BlockExportOptions {
    const char *id, *node, *name;
    const char *description; /* or NULL */
    bool writable, writethrough;
    bool legacy; /* nbd-server-add: @node may be a drive's id */
} BlockExportOptions;

bool block_export_add(const BlockExportOptions *o, GError **errp);

/** @hard: whether clients are sent away, else an export with clients stays. */
bool block_export_del(const char *id, bool hard, GError **errp);

/** query-block-exports. */
JsonArray *block_export_query(void);

/** @fn sends an event to QMP's clients: called in any thread, under the block lock, so it
 * must only post. It takes @data. */
void block_set_event_func(void (*fn)(const char *name, JsonObject *data));

/** x-blockdev-change: attach node @node to, or detach child @child ("children.1" or a node
 * name) from quorum @parent. */
bool block_change(const char *parent, const char *child, const char *node, GError **errp);

/** Whether the guest has written to quorum @name since it was made. */
bool block_node_written(const char *name);

/** The nodes that talk to a server, for yank; to be freed with g_strfreev(). */
char **block_yank_list(void);

/** Break the connection of such a node off, now; false: there is none of that name. */
bool block_yank(const char *node);

/** Whether @name is a replication node with shared-disk=on: both hosts see one image. */
bool block_node_is_shared(const char *name);

/** Summary a node for query-colo-status and query-named-block-nodes. */
JsonArray *block_query(void);

#endif
