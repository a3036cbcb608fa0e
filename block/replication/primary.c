/*
 * replication, mode=primary: the forwarder of a disk's writes.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: the secondary's log holds every modifying request of the guest in the order of
 * submission, and both sides can name a point in it. One libnbd connection carries them
 * in order; the point is the count of requests since the node was attached to its quorum.
 * Nothing is ever taken back from the queue: it is the only copy for the secondary.
 *
 * The data is shared with the request by reference. When more than queue-memory waits for
 * the secondary, the front delays the guest's completions (not its requests); over the
 * bound for queue-timeout at a stretch, or after any error, the forwarder is dead:
 * it forwards nothing more, says so once, and the guest goes on.
 *
 * With shared-disk=on the secondary has the same image, and what is forwarded does not go
 * into it here until the checkpoint after it was loaded there: see shared-log.c.
 */
#include "shared.h"

#include "../activity-log.h"

#define QUEUE_MEMORY (64ull * 1024 * 1024) /* defaults of the options */
#define QUEUE_TIMEOUT_MS 2000
#define QUEUE_ENTRY_COST 512

typedef struct Primary {
    BlockNode *node;
    BlockNode *file;
    NbdClient *client;
    char *name;
    char *error;
    char *generation; /* for the activity logs of both sides */
    bool paired;      /* they have begun it */
    bool peer_flushing, peer_flushed; /* since the log began */
    bool attached;
    bool running; /* protection uses it */
    bool stopped; /* protection has ended without an error of it */
    bool is_shared;
    SharedLog *shared; /* while attached */
    uint64_t sequence;
    uint64_t queued; /* bytes that the secondary has not acknowledged */
    uint64_t queue_memory; /* option: beyond it the guest's writes wait */
    uint64_t queue_timeout; /* option, ms: so long at most */
    unsigned in_flight;
    GSource *patience;
    bool closed;
} Primary;

typedef struct Forward {
    Primary *p;
    BlockRequest req;
    uint64_t cost;
} Forward;

/* Room singleton, guarded by the block lock. */
static struct {
    BlockReplicationFunc fn;
    void *opaque;
} control;

void block_primary_notify(bool fatal, const char *message)
{
    if (control.fn) {
        control.fn(fatal, message, control.opaque);
    }
}

static void primary_die(Primary *p, const char *why)
{
    if (p->error) {
        return;
    }
    g_autofree char *msg =
        g_strdup_printf("disk '%s' is no longer replicated: %s", p->name, why);

    p->error = g_strdup(why);
    io_source_destroy(&p->patience);
    if (p->shared) {
        shared_log_lost(p->shared);
    }
    colo_trace(block_primary_dead, "%s: %s", p->name, why);
    if (p->attached && control.fn) {
        control.fn(true, msg, control.opaque);
    } else if (p->attached) {
        colo_report("%s", msg);
    }
    block_front_kick_all();
}

static gboolean primary_out_of_patience(gpointer opaque)
{
    Primary *p = opaque;

    primary_die(p, "the secondary takes its writes too slowly or not at all");
    return G_SOURCE_REMOVE;
}

static void primary_unref(Primary *p)
{
    if (p->closed && p->in_flight == 0) {
        g_free(p->name);
        g_free(p->error);
        g_free(p->generation);
        g_free(p);
    }
}

static void forward_done(BlockRequest *req, int ret)
{
    Forward *fw = req->opaque;
    Primary *p = fw->p;
    BlockOp op = req->op; /* which is a part of what goes now */

    p->queued -= fw->cost;
    p->in_flight--;
    block_buf_unref(fw->req.buf);
    g_free(fw);
    if (p->closed) {
        primary_unref(p);
        return;
    }
    if (ret < 0 && !p->error) {
        g_autofree char *why = g_strdup_printf("the secondary could not %s: %s",
                                               block_op_name(op), g_strerror(-ret));

        const char *lost = nbd_client_error(p->client);
        primary_die(p, lost ? lost : why);
    }
    if (p->patience && p->queued <= p->queue_memory) {
        io_source_destroy(&p->patience);
        block_front_kick_all();
    }
}

void block_primary_forward(BlockNode *node, BlockRequest *req)
{
    Primary *p = node->opaque;

    if (!p->attached || p->error || req->bytes == 0) {
        return;
    }
    Forward *fw = g_new0(Forward, 1);

    fw->p = p;
    fw->req = *req;
    /* Durability over there is the business of its takeover. */
    fw->req.flags &= ~BLOCK_REQ_FUA;
    fw->req.done = forward_done;
    fw->req.opaque = fw;
    fw->cost = QUEUE_ENTRY_COST;
    if (req->op == BLOCK_OP_WRITE) {
        fw->cost += req->bytes;
        if (req->buf) {
            block_buf_ref(req->buf);
        } else {
            fw->req.buf = block_buf_new(req->bytes);
            memcpy(fw->req.buf->data, req->data, req->bytes);
            fw->req.data = fw->req.buf->data;
        }
    }
    p->sequence++;
    if (p->shared) {
        shared_log_forwarded(p->shared, req, p->sequence);
    }
    p->queued += fw->cost;
    p->in_flight++;
    nbd_client_submit(p->client, &fw->req);
    if (p->queued > p->queue_memory && !p->patience && !p->error) {
        p->patience = io_thread_timer(block_thread(), p->queue_timeout,
                                      primary_out_of_patience, p);
    }
}

bool block_primary_blocked(BlockNode *node)
{
    Primary *p = node->opaque;

    return p->attached && !p->error &&
           (p->queued > p->queue_memory || (p->shared && shared_log_blocked(p->shared)));
}

bool block_primary_alive(BlockNode *node)
{
    Primary *p = node->opaque;

    return !p->error;
}

void block_primary_attached(BlockNode *node, bool attached)
{
    Primary *p = node->opaque;

    if (!attached) {
        /* Its count would no longer match what the secondary has seen: while protected
         * this is the end of protection. */
        primary_die(p, "it was detached");
    }
    p->attached = attached;
    if (p->shared) {
        shared_log_attach(p->shared, attached ? node : NULL, nbd_client_export(p->client));
        p->shared = attached ? p->shared : NULL;
    }
    block_front_kick_all();
}

bool block_primary_is_shared(BlockNode *node)
{
    return ((Primary *)node->opaque)->is_shared;
}

void block_primary_set_log(BlockNode *node, SharedLog *log)
{
    ((Primary *)node->opaque)->shared = log;
}

uint64_t block_primary_sequence(BlockNode *node)
{
    return ((Primary *)node->opaque)->sequence;
}

void block_primary_fail(BlockNode *node, const char *why)
{
    primary_die(node->opaque, why);
}

static void primary_connection_closed(void *opaque, const char *why)
{
    primary_die(opaque, why);
}

static void primary_submit(BlockNode *node, BlockRequest *req)
{
    block_complete_later(req, -ENOTSUP);
}

static void primary_close(BlockNode *node)
{
    Primary *p = node->opaque;

    nbd_client_set_closed(p->client, NULL, NULL);
    io_source_destroy(&p->patience);
    p->closed = true;
    block_node_unuse(p->file);
    primary_unref(p);
}

static GPtrArray *primary_images(Primary *p);

static void primary_query(BlockNode *node, JsonObject *o)
{
    Primary *p = node->opaque;

    json_object_set_string_member(o, "mode", "primary");
    json_object_set_string_member(o, "state",
                                  p->stopped   ? "done"
                                  : p->error   ? "error"
                                  : p->running ? "running"
                                               : "none");
    json_object_set_string_member(o, "disk", nbd_client_export(p->client));
    json_object_set_boolean_member(o, "attached", p->attached);
    json_object_set_int_member(o, "sequence", p->sequence);
    json_object_set_int_member(o, "queued-bytes", p->queued);
    json_object_set_int_member(o, "queue-memory", p->queue_memory);
    json_object_set_boolean_member(o, "shared", p->is_shared);
    if (p->shared) {
        shared_log_query(p->shared, o);
    }
    g_autoptr(GPtrArray) images = primary_images(p);
    if (images->len > 0) {
        activity_log_query(activity_log_of(images->pdata[0]), o);
    }
    if (p->error) {
        json_object_set_string_member(o, "error", p->error);
    }
}

static NbdClient *primary_nbd_client(BlockNode *node)
{
    return ((Primary *)node->opaque)->client;
}

static const BlockDriver primary_driver = {
    .nbd_client = primary_nbd_client,
    .name = "replication",
    .submit = primary_submit,
    .close = primary_close,
    .query = primary_query,
};

bool block_node_is_primary(BlockNode *node)
{
    return node->drv == &primary_driver;
}

BlockNode *block_primary_open(const char *name, JsonObject *opts, GError **errp)
{
    static const char *const known[] = {"driver",    "mode",      "file",
                                        "node-name", "read-only", "discard",
                                        "cache",     "aio",       "queue-memory",
                                        "queue-timeout", "shared-disk",
                                         NULL};
    uint64_t memory = QUEUE_MEMORY, timeout = QUEUE_TIMEOUT_MS;
    g_autofree char *what = g_strdup_printf("replication '%s'", name ? name : "(inline)");
    bool is_shared = false;

    if (json_object_has_member(opts, "top-id")) {
        colo_error_set(errp, "%s: Parameter 'top-id' is for mode=secondary only", what);
        return NULL;
    }
    if (!options_check_known(opts, what, known, errp) ||
        !options_get_bool(opts, "shared-disk", &is_shared, errp)) {
        return NULL;
    }
    if (!options_get_size(opts, "queue-memory", 1, &memory, errp) ||
        !options_get_uint(opts, "queue-timeout", &timeout, 1, 600000, errp)) {
        return NULL;
    }
    BlockNode *file = block_node_open_child(opts, "file", errp);
    if (!file) {
        return NULL;
    }
    block_lock();
    NbdClient *client = block_nbd_client(file);
    if (!client || file->users != 1 || file->read_only || !file->can_zero) {
        colo_error_set(errp, "%s: 'file' %s", what,
                       !client            ? "must be driver=nbd, the secondary's export"
                       : file->users != 1 ? "is in use elsewhere"
                       : file->read_only
                           ? "is a read-only export; export the secondary's "
                             "image with writable=true"
                           : "cannot write zeroes");
        block_node_unuse(file);
        block_unlock();
        return NULL;
    }
    Primary *p = g_new0(Primary, 1);
    p->file = file;
    p->client = client;
    p->queue_memory = memory;
    p->queue_timeout = timeout;
    p->is_shared = is_shared;
    BlockNode *node = block_node_new(&primary_driver, name, p);
    p->node = node;
    p->name = g_strdup(node->name);
    node->size = file->size;
    node->can_zero = true;
    nbd_client_set_closed(client, primary_connection_closed, p);
    block_unlock();
    return node;
}

/* --- replication.h --- */

/* All attached forwarders, those that died too; the caller frees. */
static GPtrArray *primaries(void)
{
    GPtrArray *out = g_ptr_array_new();
    GHashTableIter it;
    BlockNode *node;

    g_hash_table_iter_init(&it, block_nodes());
    while (g_hash_table_iter_next(&it, NULL, (gpointer *)&node)) {
        if (block_node_is_primary(node) && ((Primary *)node->opaque)->attached) {
            g_ptr_array_add(out, node->opaque);
        }
    }
    return out;
}

/* The quorum that @p is attached to, or NULL. */
static BlockNode *primary_quorum(Primary *p)
{
    GHashTableIter it;
    BlockNode *node, *fw[32];

    g_hash_table_iter_init(&it, block_nodes());
    while (g_hash_table_iter_next(&it, NULL, (gpointer *)&node)) {
        unsigned n = block_node_is_quorum(node)
                         ? block_quorum_forwarders(node, fw, G_N_ELEMENTS(fw))
                         : 0;

        for (unsigned i = 0; i < n; i++) {
            if (fw[i] == p->node) {
                return node;
            }
        }
    }
    return NULL;
}

/* The images whose writes @p forwards; the caller frees. */
static GPtrArray *primary_images(Primary *p)
{
    BlockNode *quorum = primary_quorum(p);

    return quorum ? activity_log_images(quorum) : g_ptr_array_new();
}

bool block_primary_flush_peer(BlockNode *image, BlockRequest *req)
{
    g_autoptr(GPtrArray) all = primaries();

    for (guint i = 0; i < all->len; i++) {
        Primary *p = all->pdata[i];
        g_autoptr(GPtrArray) images = primary_images(p);

        if (!p->error && g_ptr_array_find(images, image, NULL)) {
            nbd_client_submit(p->client, req);
            return true;
        }
    }
    return false;
}

/* From here on a write is in the log; all before it is durable on both sides. */
static bool primary_begin_log(Primary *p, GPtrArray *images, GError **errp)
{
    for (guint i = 0; i < images->len; i++) {
        BlockNode *image = images->pdata[i];

        block_lock();
        bool has = activity_log_of(image) != NULL;
        block_unlock();
        if (!has) {
            g_autoptr(GError) err = NULL;

            /* Said already; the pair is protected all the same. */
            activity_log_begin(image, "", true, &err);
        }
        int r = block_flush_wait(image, 30000);
        if (r < 0) {
            colo_error_set_errno(errp, -r, "disk '%s' cannot be flushed", image->name);
            return false;
        }
    }
    return true;
}

/* What the secondary got before the log began is on its disk. */
static void peer_flush_done(BlockRequest *req, int ret)
{
    Primary *p = req->opaque;

    g_free(req);
    p->in_flight--;
    p->peer_flushing = false;
    p->peer_flushed = ret == 0;
    primary_unref(p);
}

static void primary_flush_secondary(Primary *p)
{
    if (p->peer_flushing || p->peer_flushed) {
        return;
    }
    BlockRequest *req = g_new0(BlockRequest, 1);

    req->op = BLOCK_OP_FLUSH;
    req->done = peer_flush_done;
    req->opaque = p;
    p->peer_flushing = true;
    p->in_flight++;
    nbd_client_submit(p->client, req);
    g_main_context_wakeup(io_thread_context(block_thread()));
}

/* Activity logs of all disks that are replicated. Without the lock. */
static bool primaries_begin_logs(GError **errp)
{
    bool ok = true;

    block_lock();
    g_autoptr(GPtrArray) all = primaries();
    block_unlock();
    for (guint i = 0; ok && i < all->len; i++) {
        Primary *p = all->pdata[i];

        block_lock();
        g_autoptr(GPtrArray) images = p->error ? g_ptr_array_new() : primary_images(p);
        block_unlock();
        if (!p->is_shared) {
            ok = primary_begin_log(p, images, errp);
            continue;
        }
        /* One image never differs from itself. */
        block_lock();
        for (guint k = 0; k < images->len; k++) {
            activity_log_drop(images->pdata[k]);
        }
        block_unlock();
    }
    return ok;
}

static void primaries_set_mode(ActivityLogMode mode)
{
    g_autoptr(GPtrArray) all = primaries();

    for (guint i = 0; i < all->len; i++) {
        g_autoptr(GPtrArray) images = primary_images(all->pdata[i]);

        for (guint k = 0; k < images->len; k++) {
            activity_log_set_mode(activity_log_of(images->pdata[k]), mode);
        }
    }
}

void block_primary_committed(void)
{
    block_lock();
    g_autoptr(GPtrArray) all = primaries();
    block_unlock();
    for (guint i = 0; i < all->len; i++) {
        Primary *p = all->pdata[i];
        g_autoptr(GError) err = NULL;

        if (p->is_shared) {
            continue;
        }
        block_lock();
        g_autoptr(GPtrArray) images = p->error ? g_ptr_array_new() : primary_images(p);
        bool begin = !p->error && !p->paired && p->generation && p->peer_flushed;
        if (!p->error && !p->paired) {
            primary_flush_secondary(p);
        }
        block_unlock();
        for (guint k = 0; k < images->len; k++) {
            BlockNode *image = images->pdata[k];

            if (begin && !activity_log_begin(image, p->generation, true, &err)) {
                colo_report("disk '%s': %s", p->name, err->message);
                g_clear_error(&err);
            }
            block_lock();
            if (begin && !p->error) {
                activity_log_set_mode(activity_log_of(image), ACTIVITY_LOG_PAIRED);
            }
            activity_log_committed(activity_log_of(image));
            block_unlock();
        }
        p->paired |= begin;
    }
}

static void primary_disk_error(const char *message)
{
    block_primary_notify(true, message);
}

/* Whether the guest's disk @node is replicated, or need not be. */
static bool primary_covers(BlockNode *node, GError **errp)
{
    BlockNode *fw[8];
    unsigned n = block_node_is_quorum(node)
                     ? block_quorum_forwarders(node, fw, G_N_ELEMENTS(fw))
                     : 0;

    if (node->read_only) {
        return true;
    }
    for (unsigned i = 0; i < n; i++) {
        Primary *p = fw[i]->opaque;

        if (!p->error) {
            return true;
        }
    }
    if (n > 0) {
        colo_error_set(errp,
                       "disk '%s': replication child '%s' has lost its secondary (%s)",
                       node->name, fw[0]->name, ((Primary *)fw[0]->opaque)->error);
    } else {
        colo_error_set(errp,
                       "disk '%s' is not replicated: attach a driver=replication,"
                       "mode=primary node to its quorum with x-blockdev-change",
                       node->name);
    }
    return false;
}

bool block_primary_start(BlockReplicationFunc fn, void *opaque, GError **errp)
{
    GHashTableIter it;
    BlockNode *node;
    bool ok = true;

    block_lock();
    g_hash_table_iter_init(&it, block_nodes());
    while (ok && g_hash_table_iter_next(&it, NULL, (gpointer *)&node)) {
        if (block_front_is_guest(node->front)) {
            ok = primary_covers(node, errp);
        }
    }
    if (ok) {
        g_autoptr(GPtrArray) all = primaries();

        for (guint i = 0; i < all->len; i++) {
            Primary *p = all->pdata[i];
            BlockNode *quorum = primary_quorum(p);

            p->running = true;
            if (quorum) {
                /* The peer's image leaves that moment: it holds for one start only. */
                g_clear_pointer(&quorum->mirrored_to, g_free);
            }
        }
        control.fn = fn;
        control.opaque = opaque;
        block_front_set_error_func(primary_disk_error);
    }
    block_unlock();
    if (ok && !primaries_begin_logs(errp)) {
        block_lock();
        control.fn = NULL;
        block_front_set_error_func(NULL);
        block_unlock();
        ok = false;
    }
    return ok;
}

void block_primary_hold(bool hold)
{
    block_lock();
    block_front_hold_all(hold);
    block_unlock();
}

unsigned block_primary_barriers(BlockBarrier *out, unsigned max)
{
    block_lock();
    g_autoptr(GPtrArray) all = primaries();
    unsigned n = 0;
    for (guint i = 0; i < all->len && n < max; i++) {
        Primary *p = all->pdata[i];

        if (!p->error) {
            g_autoptr(GPtrArray) images = primary_images(p);

            for (guint k = 0; k < images->len; k++) {
                activity_log_barrier(activity_log_of(images->pdata[k]));
            }
            g_strlcpy(out[n].disk, nbd_client_export(p->client), sizeof(out[n].disk));
            out[n++].sequence = p->sequence;
        }
    }
    block_unlock();
    return n;
}

bool block_primary_flushed(GSourceFunc done, void *opaque)
{
    block_lock();
    bool r = block_front_flushed_all(done, opaque);
    block_unlock();
    return r;
}

void block_primary_stop(void)
{
    block_lock();
    control.fn = NULL;
    block_front_set_error_func(NULL);
    primaries_set_mode(ACTIVITY_LOG_ALONE);
    g_autoptr(GPtrArray) all = primaries();
    for (guint i = 0; i < all->len; i++) {
        Primary *p = all->pdata[i];

        if (!p->error) {
            p->stopped = true;
            p->error = g_strdup("protection ended");
            io_source_destroy(&p->patience);
        }
    }
    block_shared_drain();
    block_front_hold_all(false);
    block_front_kick_all();
    block_unlock();
}

JsonArray *block_primary_disks(void)
{
    JsonArray *a = json_array_new();

    block_lock();
    g_autoptr(GPtrArray) all = primaries();
    for (guint i = 0; i < all->len; i++) {
        Primary *p = all->pdata[i];
        JsonObject *o = json_object_new();

        json_object_set_string_member(o, "disk", nbd_client_export(p->client));
        json_object_set_int_member(o, "size", p->node->size);
        json_object_set_boolean_member(o, "shared", p->is_shared);
        if (!p->generation) {
            p->generation = activity_log_new_generation();
        }
        json_object_set_string_member(o, "generation", p->generation);
        BlockNode *quorum = primary_quorum(p);
        if (quorum && !g_strcmp0(quorum->mirrored_to, nbd_client_export(p->client))) {
            json_object_set_boolean_member(o, "mirrored", TRUE);
        }
        json_array_add_object_element(a, o);
    }
    block_unlock();
    return a;
}
