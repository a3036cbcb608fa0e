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
#include "primary-int.h"

#include "../activity-log.h"

#define QUEUE_MEMORY (64ull * 1024 * 1024) /* defaults of the options */
#define QUEUE_TIMEOUT_MS 2000
#define QUEUE_ENTRY_COST 512

typedef struct Forward {
    Primary *p;
    BlockRequest req;
    uint64_t cost;
} Forward;

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
    if (p->attached && !block_primary_notify(true, msg)) {
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

void primary_unref(Primary *p)
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
