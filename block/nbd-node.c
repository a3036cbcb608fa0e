/*
 * nbd nodes: a client, and another one when its connection is lost.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * When the connection ends, a thread tries to make another one, each second, until the node is
 * closed. Requests that are in flight or come meanwhile wait for it up to reconnect-delay seconds
 * (default 0), then they fail with EIO, as later ones do until the server is back. As with QEMU a
 * write that the old connection had answered counts as done, although a server that crashed
 * may have lost it before it was flushed.
 *
 * A client that somebody took (block_nbd_client(): replication, a mirror) is theirs: where
 * every write counts, a second connection is no continuation of the first.
 */
#include "block-int.h"
#include "util/tls.h"

#include <inttypes.h>

#define RETRY_MS 1000

typedef struct NbdNode {
    BlockNode *node; /* NULL once closed */
    NbdClient *client;
    JsonObject *opts;
    char *name;
    unsigned delay_s;
    bool taken;
    bool waiting_allowed; /* reconnect-delay has not passed */
    bool connecting;      /* a thread is at it; it frees a closed node */
    bool told;
    unsigned in_flight;
    GQueue waiting; /* NodeReq */
    GSource *retry, *give_up;
} NbdNode;

typedef struct NodeReq {
    BlockRequest sub;
    BlockRequest *orig;
    NbdNode *n;
    guint extents; /* of a STATUS before it began */
} NodeReq;

/* Room singleton, under the block lock: threads that connect. */
static unsigned connectors;

static void node_req_submit(NodeReq *r);
static gboolean start_connecting(gpointer opaque);

static void node_unref(NbdNode *n)
{
    if (!n->node && !n->connecting && n->in_flight == 0) {
        if (n->opts) {
            json_object_unref(n->opts);
        }
        g_free(n->name);
        g_free(n);
    }
}

/* --- Requests --- */

static void node_req_end(NodeReq *r, int ret)
{
    NbdNode *n = r->n;
    BlockRequest *orig = r->orig;

    g_free(r);
    n->in_flight--;
    orig->done(orig, ret);
    node_unref(n);
}

static void node_req_done(BlockRequest *sub, int ret)
{
    NodeReq *r = sub->opaque;
    NbdNode *n = r->n;

    if (ret < 0 && n->node && !n->taken && n->waiting_allowed &&
        (!n->client || nbd_client_error(n->client))) {
        g_queue_push_tail(&n->waiting, r);
        return;
    }
    node_req_end(r, ret);
}

static void node_req_submit(NodeReq *r)
{
    r->sub = *r->orig;
    r->sub.done = node_req_done;
    r->sub.opaque = r;
    if (r->sub.extents) {
        g_array_set_size(r->sub.extents, r->extents);
    }
    nbd_client_submit(r->n->client, &r->sub);
}

static void nbd_node_submit(BlockNode *node, BlockRequest *req)
{
    NbdNode *n = node->opaque;

    if (n->taken) {
        nbd_client_submit(n->client, req);
        return;
    }
    NodeReq *r = g_new0(NodeReq, 1);
    r->n = n;
    r->orig = req;
    r->extents = req->extents ? req->extents->len : 0;
    n->in_flight++;
    if (nbd_client_error(n->client) && n->waiting_allowed) {
        g_queue_push_tail(&n->waiting, r);
    } else {
        node_req_submit(r);
    }
}

/* --- Connecting again --- */

static void fail_waiting(NbdNode *n)
{
    NodeReq *r;

    while ((r = g_queue_pop_head(&n->waiting))) {
        r->sub.opaque = r;
        r->sub.done = node_req_done;
        block_complete_later(&r->sub, -EIO);
    }
}

static gboolean out_of_time(gpointer opaque)
{
    NbdNode *n = opaque;

    io_source_destroy(&n->give_up);
    n->waiting_allowed = false;
    colo_report("disk '%s': its NBD server did not come back in %u s: I/O errors from now on",
                n->name, n->delay_s);
    fail_waiting(n);
    return G_SOURCE_REMOVE;
}

static void node_lost(void *opaque, const char *why)
{
    NbdNode *n = opaque;

    if (n->taken || !n->node) {
        return;
    }
    if (!n->told) {
        n->told = true;
        colo_report("disk '%s': %s; connecting again", n->name, why);
    }
    if (n->delay_s && !n->give_up) {
        n->waiting_allowed = true;
        n->give_up = io_thread_timer(block_thread(), n->delay_s * 1000, out_of_time, n);
    }
    if (!n->retry && !n->connecting) {
        n->retry = io_thread_timer(block_thread(), 20, start_connecting, n);
    }
}

/* The server is back with the same disk. */
static void node_back(NbdNode *n, NbdClient *client)
{
    NodeReq *r;
    GQueue again = n->waiting;

    nbd_client_free(n->client);
    n->client = client;
    n->told = n->waiting_allowed = false;
    io_source_destroy(&n->give_up);
    g_queue_init(&n->waiting);
    colo_report("disk '%s': its NBD server is back", n->name);
    nbd_client_set_closed(client, node_lost, n);
    while ((r = g_queue_pop_head(&again))) {
        node_req_submit(r);
    }
}

static gpointer connect_thread(gpointer opaque)
{
    NbdNode *n = opaque;
    NbdClient *client = block_nbd_connect(n->opts, NULL);

    block_lock();
    connectors--;
    n->connecting = false;
    if (client && n->node && !n->taken && nbd_client_size(client) == n->node->size &&
        (n->node->read_only || !nbd_client_read_only(client))) {
        node_back(n, g_steal_pointer(&client));
    } else if (n->node && !n->taken) {
        if (client) {
            colo_report("disk '%s': its NBD server has another disk now: %" PRIu64
                        " bytes, not %" PRIu64, n->name, nbd_client_size(client),
                        n->node->size);
        }
        n->retry = io_thread_timer(block_thread(), RETRY_MS, start_connecting, n);
    }
    if (client) {
        nbd_client_free(client);
    }
    node_unref(n);
    g_main_context_wakeup(io_thread_context(block_thread()));
    block_unlock();
    return NULL;
}

static gboolean start_connecting(gpointer opaque)
{
    NbdNode *n = opaque;

    io_source_destroy(&n->retry);
    n->connecting = true;
    connectors++;
    g_thread_unref(g_thread_new("nbd-connect", connect_thread, n));
    return G_SOURCE_REMOVE;
}

void block_nbd_wait(void)
{
    /* Rare and bounded by the time a connection may take, so polled. */
    for (;;) {
        block_lock();
        unsigned n = connectors;
        block_unlock();
        if (n == 0) {
            return;
        }
        g_usleep(5000);
    }
}

/* --- The driver --- */

static void nbd_node_close(BlockNode *node)
{
    NbdNode *n = node->opaque;

    nbd_client_set_closed(n->client, NULL, NULL);
    nbd_client_free(g_steal_pointer(&n->client));
    io_source_destroy(&n->retry);
    io_source_destroy(&n->give_up);
    n->waiting_allowed = false;
    n->node = NULL;
    fail_waiting(n);
    node_unref(n);
}

static void nbd_node_query(BlockNode *node, JsonObject *out)
{
    NbdNode *n = node->opaque;
    const char *error = nbd_client_error(n->client), *tls = nbd_client_tls(n->client);

    json_object_set_string_member(out, "export", nbd_client_export(n->client));
    if (error) {
        json_object_set_string_member(out, "error", error);
    }
    if (tls) {
        json_object_set_string_member(out, "tls-creds", tls);
    }
}

/* To be killed by yank; unlike block_nbd_client() this takes nothing over. */
static NbdClient *nbd_node_client(BlockNode *node)
{
    NbdNode *n = node->opaque;

    return n->client;
}

static const BlockDriver nbd_node_driver = {
    .name = "nbd",
    .nbd_client = nbd_node_client,
    .submit = nbd_node_submit,
    .close = nbd_node_close,
    .query = nbd_node_query,
};

NbdClient *block_nbd_client(BlockNode *node)
{
    NbdNode *n = node->opaque;

    if (node->drv != &nbd_node_driver) {
        return NULL;
    }
    if (!n->taken) {
        n->taken = true;
        nbd_client_set_closed(n->client, NULL, NULL);
        io_source_destroy(&n->retry);
        io_source_destroy(&n->give_up);
        fail_waiting(n);
    }
    return n->client;
}

/* @opts: how to connect again, or NULL: not at all. */
static BlockNode *nbd_node_new(const char *name, NbdClient *c, JsonObject *opts,
                               bool read_only, unsigned delay)
{
    const char *discard = options_get_str(opts, "discard", "ignore");
    NbdNode *n = g_new0(NbdNode, 1);

    n->client = c;
    n->opts = opts ? options_copy(opts) : NULL;
    n->taken = !opts;
    n->delay_s = delay;
    g_queue_init(&n->waiting);
    block_lock();
    BlockNode *node = block_node_new(&nbd_node_driver, name, n);
    n->node = node;
    n->name = g_strdup(node->name);
    node->size = nbd_client_size(c);
    node->read_only = read_only || nbd_client_read_only(c);
    node->can_zero = nbd_client_can_zero(c);
    node->discard =
        nbd_client_can_trim(c) && (!strcmp(discard, "unmap") || !strcmp(discard, "on"));
    if (opts) {
        nbd_client_set_closed(c, node_lost, n);
    }
    block_unlock();
    return node;
}

BlockNode *block_nbd_open(const char *name, JsonObject *opts, GError **errp)
{
    static const char *const known[] = {
        "driver", "node-name", "server", "host", "port", "path", "export", "uri", "read-only",
        "discard", "cache", "aio", "tls-creds", "tls-hostname", "reconnect-delay",
        "open-timeout", NULL};
    uint64_t delay = 0, timeout = 0;
    bool read_only = false;

    if (!options_check_known(opts, "driver nbd", known, errp) ||
        !options_get_bool(opts, "read-only", &read_only, errp) ||
        !options_get_uint(opts, "reconnect-delay", &delay, 0, 24 * 3600, errp) ||
        !options_get_uint(opts, "open-timeout", &timeout, 0, 3600, errp)) {
        return NULL;
    }
    gint64 end = g_get_monotonic_time() + (gint64)timeout * G_USEC_PER_SEC;
    g_autoptr(GError) err = NULL;
    NbdClient *c = block_nbd_connect(opts, &err);
    while (!c && g_get_monotonic_time() < end) {
        g_clear_error(&err);
        g_usleep(100 * 1000);
        c = block_nbd_connect(opts, &err);
    }
    if (!c) {
        g_propagate_error(errp, g_steal_pointer(&err));
        return NULL;
    }
    return nbd_node_new(name, c, opts, read_only, delay);
}

BlockNode *block_nbd_open_beside(BlockNode *beside, const char *suffix, GError **errp)
{
    NbdNode *b = beside->opaque;
    NbdClient *c = block_nbd_connect_beside(b->client, suffix, errp);

    return c ? nbd_node_new(NULL, c, NULL, true, 0) : NULL;
}
