/*
 * What the files of the block room share: requests, nodes, the thread, the front.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Everything here runs in the block thread, or elsewhere under its lock.
 *
 * A BlockRequest belongs to its submitter; a node borrows it from block_submit() until it
 * calls done(), which it does exactly once and never from inside block_submit(). A node
 * that finishes at once therefore uses block_complete_later(). Write data is immutable
 * while the request is in flight and lives in a reference counted BlockBuf, so that a
 * layer may keep it for longer than the request.
 */
#ifndef COLO_BLOCK_INT_H
#define COLO_BLOCK_INT_H

#include "block/block.h"
#include "util/tls.h"
#include "util/error.h"
#include "util/io-thread.h"
#include "util/options.h"
#include "util/trace.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>

/* The longest read or write that is accepted or sent, as QEMU's NBD has it. */
#define BLOCK_MAX_TRANSFER (32u * 1024 * 1024)
#define BLOCK_SECTOR 512
#define ROUND_UP(n, to) (((n) + (to) - 1) / (to) * (to))

/* --- thread.c: the thread, its lock, deferred completions, waiting --- */

ColoIoThread *block_thread(void);
const char *block_runtime_dir(void);
void block_lock(void);
void block_unlock(void);

/** Send event @name to QMP's clients; takes @data. */
void block_event(const char *name, JsonObject *data);

/** Something that another thread waits for while the block thread works. */
typedef struct BlockWait {
    GMutex lock;
    GCond cond;
    bool done;
    int ret;
} BlockWait;

void block_wait_init(BlockWait *w);
void block_wait_done(BlockWait *w, int ret);
/** Wait without the block lock, at most @ms (0: for ever); -ETIMEDOUT, else the result.
 */
int block_wait(BlockWait *w, unsigned ms);

/* --- request.c --- */

typedef enum BlockOp {
    BLOCK_OP_READ,
    BLOCK_OP_WRITE,
    BLOCK_OP_ZEROES,
    BLOCK_OP_TRIM,
    BLOCK_OP_FLUSH,
    BLOCK_OP_STATUS,
} BlockOp;

#define BLOCK_REQ_FUA 1u       /* on the disk when done */
#define BLOCK_REQ_MAY_UNMAP 2u /* zeroes may punch a hole */
#define BLOCK_REQ_LOGGED 8u    /* the log of a shared disk has it already */
#define BLOCK_REQ_BACKGROUND 4u /* nobody waits: leave the block thread free */
#define BLOCK_REQ_FAST 8u      /* zeroes: -ENOTSUP rather than writing them out */

typedef struct BlockBuf {
    gint refs;
    size_t size;
    uint8_t *data; /* page aligned */
} BlockBuf;

BlockBuf *block_buf_new(size_t size);
BlockBuf *block_buf_ref(BlockBuf *buf);
void block_buf_unref(BlockBuf *buf);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BlockBuf, block_buf_unref)

typedef struct BlockExtent {
    uint64_t bytes;
    uint32_t flags; /* NBD's: 1 hole, 2 zero */
} BlockExtent;

typedef struct BlockRequest BlockRequest;
typedef struct BlockNode BlockNode;
typedef void (*BlockDoneFunc)(BlockRequest *req, int ret);

struct BlockRequest {
    BlockOp op;
    unsigned flags;
    uint64_t offset;
    uint64_t bytes;
    uint8_t *data;   /* READ: destination, WRITE: source */
    BlockBuf *buf;   /* what keeps @data alive, or NULL (then @opaque's owner does) */
    GArray *extents; /* STATUS: BlockExtent, appended to by the node */
    BlockDoneFunc done;
    void *opaque;
    BlockNode *node; /* where it was submitted */
    int ret;         /* of block_complete_later() */
};

static inline bool block_op_modifies(BlockOp op)
{
    return op == BLOCK_OP_WRITE || op == BLOCK_OP_ZEROES || op == BLOCK_OP_TRIM;
}

const char *block_op_name(BlockOp op);

/** Call req->done(req, ret) soon, from the block thread. */
void block_complete_later(BlockRequest *req, int ret);

/** Submit and wait; not from the block thread, without its lock. For set-up and tests. */
int block_request_sync(BlockNode *node, BlockOp op, uint64_t offset, uint64_t bytes,
                       void *data, unsigned flags);

/** Flush @node and wait at most @ms: 0, the error, or -ETIMEDOUT (the flush goes on). Not
 * from the block thread, without its lock. */
int block_flush_wait(BlockNode *node, unsigned ms);
/** The same for ever, but that @give_up is asked each @ms; -ETIMEDOUT: it has said so. */
int block_flush_wait_until(BlockNode *node, unsigned ms, bool (*give_up)(void));

/* --- ranges.c: one order for overlapping requests --- */

typedef struct BlockRange BlockRange;
typedef void (*BlockRangeFunc)(BlockRange *range);

struct BlockRange {
    uint64_t start, end;
    bool write;
    bool granted;
    BlockRangeFunc fn; /* called when a wait is over */
    GList link;
};

typedef struct BlockRangeLock {
    GQueue queue; /* in order of arrival, granted and waiting */
    unsigned waiting;
} BlockRangeLock;

/** Enter @range (start, end, write, fn set). True if it may run at once; otherwise fn is
 * called when every earlier conflicting range has gone. */
bool block_range_acquire(BlockRangeLock *lock, BlockRange *range);
void block_range_release(BlockRangeLock *lock, BlockRange *range);

/* --- node.c --- */

typedef struct NbdClient NbdClient;

typedef struct BlockDriver {
    const char *name;
    void (*submit)(BlockNode *node, BlockRequest *req);
    /** A modifying request arrived at the node's front: send it to the secondary. */
    void (*forward)(BlockNode *node, BlockRequest *req);
    /** Whether completions must wait for the forwarder's queue. */
    bool (*forward_blocked)(BlockNode *node);
    /** Whether modifying requests are being forwarded. */
    bool (*forwarding)(BlockNode *node);
    /** Free node->opaque; requests have ended. Must not wait for a peer. */
    void (*close)(BlockNode *node);
    void (*query)(BlockNode *node, JsonObject *out);
    /** The nodes that this one's writes go to, at most @max; or NULL. */
    unsigned (*below)(BlockNode *node, BlockNode **out, unsigned max);
    /** The connection that the node's requests go by, or NULL: it has none. */
    NbdClient *(*nbd_client)(BlockNode *node);
} BlockDriver;

typedef struct BlockFront BlockFront;
typedef struct BlockLog BlockLog;

struct BlockNode {
    const BlockDriver *drv;
    void *opaque;
    char *name;     /* node-name, or id, or made up */
    char *id;       /* the drive's id where it differs, or NULL */
    char *format;   /* as asked for or found: qcow2, raw, ... */
    char *filename; /* of the image, or NULL */
    uint64_t size;
    bool read_only;
    bool discard;      /* discard=unmap */
    bool writethrough; /* cache.writeback=off */
    bool can_zero;     /* ZEROES is native and worth offering */
    bool fast_zero;    /* BLOCK_REQ_FAST is honoured */
    bool inline_child; /* made within its parent's options: goes with it */
    unsigned users;    /* parents, exports; a node in use cannot be deleted */
    BlockFront *front; /* made by the first export */
    /* Of a secondary's parent image: where exported requests go instead (or NULL). */
    struct BlockSecondary *secondary;
    char *serve_path; /* of block_serve_child() */
    /* hook.h: what sees each modification before, and after the driver made it. */
    struct BlockHook *track, *mirror;
    /* The export that a mirror made equal to this node, until the guest writes. */
    char *mirrored_to;
    /* Of an image that holds parts of two checkpoints: the marker's path. It takes a copy of
     * the peer's and nothing else. */
    char *torn;
    JsonObject *opts; /* what it was opened with, if another node may take its image over */
};

/** New registered node with one reference less: @users is 0. Takes @opaque. */
BlockNode *block_node_new(const BlockDriver *drv, const char *name, void *opaque);
void block_node_free(BlockNode *node);
BlockNode *block_node_find(const char *name);
/** The nodes, for walks: name -> BlockNode. */
GHashTable *block_nodes(void);

/** Stop exports, flush and free all nodes. Without the lock. */
void block_nodes_shutdown(void);

/** Drop one use; an unnamed node goes with its last. */
void block_node_unuse(BlockNode *node);

/** A child: an existing node named by @value, or one made of the object @value. The
 * result has one more user. Without the lock. */
BlockNode *block_node_open_child(JsonObject *parent_opts, const char *key, GError **errp);

void block_submit(BlockNode *node, BlockRequest *req);
/** The nodes that @node's writes go to, at most @max. */
/** The image that a guest with disk @node would read, if it holds parts of two checkpoints. A
 * secondary's may: nobody reads it before it was made whole. */
BlockNode *block_node_torn(BlockNode *node);
unsigned block_node_below(BlockNode *node, BlockNode **out, unsigned max);

/* --- drivers: open functions; all are called without the lock and may wait --- */

BlockNode *block_file_open(const char *name, JsonObject *opts, const char *format,
                           bool probed, GError **errp);
BlockNode *block_daemon_open(const char *name, JsonObject *opts, const char *format,
                             const char *filename, GError **errp);
BlockNode *block_nbd_open(const char *name, JsonObject *opts, GError **errp);
BlockNode *block_quorum_open(const char *name, JsonObject *opts, GError **errp);
BlockNode *block_primary_open(const char *name, JsonObject *opts, GError **errp);
BlockNode *block_secondary_open(const char *name, JsonObject *opts, GError **errp);

/** Wait without the lock until the daemons that were told to end have ended. */
void block_daemons_wait(unsigned ms);

/** Whether the local raw driver honours all of @opts (else the storage daemon does). */
bool block_file_suits(JsonObject *opts);

/** Format found in the first bytes of @filename ("raw" if none), or NULL and @errp. */
const char *block_probe(const char *filename, GError **errp);
/** Whether @data would make a raw image look like another format. */
bool block_probe_matches(const uint8_t *data, size_t len);

/** Take QEMU's image locks on @fd; refused if another program writes it. */
bool block_file_lock(int fd, bool read_only, const char *filename, GError **errp);
/** Only consistent read, and all may write: the image is another host's. */
bool block_file_lock_borrow(int fd, const char *filename, GError **errp);
/** A borrower becomes the writer; fails, and stays one, if there is another. */
bool block_file_lock_own(int fd, const char *filename, GError **errp);
void block_file_lock_disown(int fd);

/** Whether @node is a raw image with direct I/O; one opened with shared-disk=on. */
bool block_file_is_direct(BlockNode *node);
bool block_file_is_shared(BlockNode *node);
/** Whether a raw image may be written: it is not another host's. */
bool block_file_is_owned(BlockNode *node);
/** Take the writer's locks of raw image @node (fails if somebody has them), or give them
 * up: from then on it cannot be written. Requests in flight must have ended. */
bool block_file_own(BlockNode *node, bool own, GError **errp);

/* --- nbd-client.c, for those that sit on it --- */

typedef void (*NbdClientClosedFunc)(void *opaque, const char *why);

/** Connect over @fd (taken) to @export; waits at most @ms. */
NbdClient *nbd_client_new(int fd, const char *export_name, unsigned ms, GError **errp);
/** The same over TLS, which libnbd connects itself: to @path, or @host and @port. Blocks up to
 * @ms; not under the block lock. */
NbdClient *nbd_client_new_tls(const char *path, const char *host, const char *port,
                              const char *export_name, TlsCreds *tls, unsigned ms,
                              GError **errp);
/** What a second connection to the same server needs: its options, and its TLS or NULL. */
JsonObject *nbd_client_where(NbdClient *c);
void nbd_client_set_where(NbdClient *c, JsonObject *where);
TlsCreds *nbd_client_creds(NbdClient *c);
void nbd_client_set_closed(NbdClient *c, NbdClientClosedFunc fn, void *opaque);
void nbd_client_submit(NbdClient *c, BlockRequest *req);
uint64_t nbd_client_size(NbdClient *c);
bool nbd_client_read_only(NbdClient *c);
bool nbd_client_can_zero(NbdClient *c);
bool nbd_client_can_trim(NbdClient *c);
/** Why it is dead, or NULL. */
const char *nbd_client_error(NbdClient *c);
const char *nbd_client_export(NbdClient *c);
/** The connection's name (nbd-name.h). */
const char *nbd_client_name(NbdClient *c);
/** The connection to @node's export that is called @name, or NULL; @named: whether any has a
 * name. The pointer only identifies it. Under the lock. */
void *nbd_server_find_conn(BlockNode *node, const char *name, bool *named);
/** The id of its TLS credentials, or NULL. */
const char *nbd_client_tls(NbdClient *c);
/** Give the connection up: what is in flight fails. */
void nbd_client_kill(NbdClient *c, const char *why);
/** Fails what is in flight with -ESHUTDOWN; does not wait for the peer. */
void nbd_client_free(NbdClient *c);
/** The export of node @beside's server whose name has @suffix more: a new node without
 * users. Waits; without the lock. */
BlockNode *block_nbd_open_beside(BlockNode *beside, const char *suffix, GError **errp);
/** A client of the server that @opts of a node name (server.*, export, uri, tls-creds). Without
 * the lock; waits 5 s. */
NbdClient *block_nbd_connect(JsonObject *opts, GError **errp);
/** Another one of the server of @b, made by block_nbd_connect(). */
NbdClient *block_nbd_connect_beside(NbdClient *b, const char *suffix, GError **errp);
/** The client of a node made by block_nbd_open(), or NULL. From then on the node makes no
 * other one when the connection is lost. */
NbdClient *block_nbd_client(BlockNode *node);
/** Wait without the lock until no node connects any more; all are closed. */
void block_nbd_wait(void);

/* --- quorum.c --- */

bool block_quorum_add(BlockNode *quorum, BlockNode *child, GError **errp);
bool block_quorum_del(BlockNode *quorum, const char *child, GError **errp);
/** Whether the quorum's user has ever written through it. */
bool block_quorum_written(BlockNode *node);
bool block_node_is_quorum(BlockNode *node);
/** The replication children of quorum @node, at most @max. */
unsigned block_quorum_forwarders(BlockNode *node, BlockNode **out, unsigned max);

/* --- replication --- */

bool block_node_is_primary(BlockNode *node);
void block_primary_forward(BlockNode *node, BlockRequest *req);
bool block_primary_blocked(BlockNode *node);
bool block_primary_alive(BlockNode *node);
/** Submit flush @req to the secondary that gets what is written to @image; false (and
 * @req is not submitted) if there is none. */
bool block_primary_flush_peer(BlockNode *image, BlockRequest *req);
void block_primary_attached(BlockNode *node, bool attached);
/** Whether @node was made with shared-disk=on. */
bool block_primary_is_shared(BlockNode *node);
typedef struct SharedLog SharedLog;
/** The log of its quorum's disk, before it is attached. */
void block_primary_set_log(BlockNode *node, SharedLog *log);
uint64_t block_primary_sequence(BlockNode *node);
/** Protection ends, as after an error of its own. */
void block_primary_fail(BlockNode *node, const char *why);
/** Tell the controller: a wish for a checkpoint, or @fatal. */
bool block_primary_notify(bool fatal, const char *message);
/** Protection ended, this side goes on: the logs of shared disks flow into their images. */
void block_shared_drain(void);

typedef struct BlockSecondary BlockSecondary;

/** A request on the export of @s' image. @conn identifies the connection. */
void block_secondary_export_submit(BlockSecondary *s, void *conn, BlockRequest *req);
void block_secondary_conn_closed(BlockSecondary *s, void *conn);
/** Whether the log is over its hard bound: stop reading from the connection. */
bool block_secondary_full(BlockSecondary *s);
bool block_secondary_multi_conn(BlockSecondary *s);
/** The image of replication node @node if that has taken over, or NULL. */
BlockNode *block_secondary_live_image(BlockNode *node);
/** @parent is exported under @export_name. */
void block_secondary_exported(BlockNode *parent, const char *export_name);
/** At the program's end: finish the log of what was committed, remove the markers. */
void block_secondary_end(void);

/* --- front.c: between exports and nodes --- */

BlockFront *block_front_get(BlockNode *node);
void block_front_free(BlockFront *f);
/** As block_submit(), overlapping requests in one order, RULES 11 while held. @conn: the
 * connection it came by, or NULL. */
void block_front_submit(BlockNode *node, void *conn, BlockRequest *req);
/** The forwarder's queue has room again, or its forwarder died. */
void block_front_kick_all(void);
void block_front_hold_all(bool hold);
/** Requests that were answered early and have not ended; *@name: of a disk that has some, valid
 * under the lock. Block lock held. */
unsigned block_front_unflushed(const char **name);
bool block_front_flushed_all(GSourceFunc done, void *opaque);
/** Whether the emulator uses @node (holds apply to its front). */
void block_front_set_guest(BlockFront *f);
bool block_front_is_guest(BlockFront *f);
unsigned block_front_in_flight(BlockFront *f);
/** Enter @range (fn set) as a write of all of the disk: its fn is called when no request is
 * in flight, and until the release none starts. */
void block_front_exclude(BlockNode *node, BlockRange *range);
void block_front_include(BlockNode *node, BlockRange *range);
/** @fn is told of a disk error that the guest was not told of. */
void block_front_set_error_func(void (*fn)(const char *message));

/* --- uring.c --- */

typedef void (*BlockUringFunc)(void *opaque, int res);

bool block_uring_init(GError **errp);
void block_uring_cleanup(void);
void block_uring_submit_pending(void);
/** Whether completions wait, and to run them. */
bool block_uring_ready(void);
void block_uring_reap(void);
void block_uring_read(int fd, void *buf, size_t len, uint64_t offset, BlockUringFunc fn,
                      void *opaque);
void block_uring_write(int fd, const void *buf, size_t len, uint64_t offset, bool dsync,
                       BlockUringFunc fn, void *opaque);
/** As block_uring_write(), by a thread of the kernel: a large buffered write is a copy, which
 * else the block thread would make within the submission. */
void block_uring_write_background(int fd, const void *buf, size_t len, uint64_t offset,
                                  BlockUringFunc fn, void *opaque);
void block_uring_fdatasync(int fd, BlockUringFunc fn, void *opaque);
void block_uring_fallocate(int fd, int mode, uint64_t offset, uint64_t len,
                           BlockUringFunc fn, void *opaque);

/* --- fd-source.c: a watch whose condition changes cheaply --- */

typedef struct BlockFd BlockFd;
typedef void (*BlockFdFunc)(void *opaque, GIOCondition cond);

BlockFd *block_fd_new(int fd, GIOCondition cond, BlockFdFunc fn, void *opaque);
void block_fd_set(BlockFd *w, GIOCondition cond);
/** Allowed inside the callback; does not close the descriptor. */
void block_fd_free(BlockFd *w);

/* --- nbd-server.c --- */

void nbd_server_cleanup(void);
/** Connections waiting for the log's bound may read again. */
void nbd_server_kick(void);
/** Stop serving @node to the emulator if nobody is connected. */
void nbd_server_unserve(BlockNode *node);
/** Close the connections that write to @node (a takeover). */
void nbd_server_drop_writers(BlockNode *node);

#endif
