/*
 * The primary's log of a disk that both hosts share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: the image, which the SVM reads and a takeover continues, is the last committed
 * checkpoint or on its way there, and never anything newer. So what the PVM writes stays in
 * memory here, and in the secondary's log, until the checkpoint after it was loaded; then
 * this side, the only writer, applies it, flushes the image, and tells the secondary, which
 * keeps its copy until then. Either log brings the image from any point between two
 * checkpoints to the newer one.
 *
 * States of a log:
 *   PASS     unprotected: requests go to the image. Until checkpoint 2 is cut this holds
 *            during the set-up too, since nobody could take over and a flush must be one.
 *   LOGGING  writes are logged, reads see log over image.
 *   LOST     the secondary may take over: nothing is applied any more, writes are logged.
 *   DRAIN    this side goes on alone: all of the log flows into the image. New requests
 *            queue behind it, and are answered when they are done. Empty: PASS.
 *   FENCED   the secondary has taken over: the log is forgotten, the locks are given up.
 *
 * Order. All shared disks have one queue: items are writes, and the guest's flushes. A
 * write enters it when it arrives at the front, in the order of its number to the
 * secondary; the barriers of a checkpoint are a point in it. What is applied goes in that
 * order too: writes between two flushes run together unless they overlap, a flush waits for
 * all writes before it and holds up all behind it. So even if both hosts lose power at any
 * moment the image is one that the guest could have left behind itself by losing power a
 * little earlier. That is why a write is applied although a later one covers it.
 *
 * Flush. In LOGGING a flush is answered when it is queued: two hosts' memories hold what
 * it covers, and whatever a client can see of it is released by the other host. Only if
 * both die at once the last epoch is gone; see docs/devel/replication.rst.
 *
 * Bounds. Over SHARED_SOFT uncommitted bytes, or FLUSH_SOFT queued flushes, a checkpoint is
 * asked for, and flushes are answered with a delay that grows with their number. Over
 * SHARED_HARD bytes the guest's writes wait; if then nothing moves for PATIENCE_MS,
 * protection ends. In LOST nothing can move but by the arbiter's word: over LOST_MAX the
 * guest's writes wait for that.
 */
#include "shared-int.h"

#include <inttypes.h>

#define MIB (1024ull * 1024)
#define SHARED_SOFT (64 * MIB)
#define SHARED_HARD shared_log_hard
#define LOST_MAX (512 * MIB)
#define FLUSH_SOFT 256
#define FLUSH_DELAY_MAX 100 /* ms */
#define PATIENCE_MS 2000

uint64_t shared_log_hard = 128 * MIB;

SharedQueues shared;

static const char *state_name(SharedState s)
{
    static const char *const names[] = {"pass", "logging", "lost", "drain", "fenced"};

    return names[s];
}

void shared_set_state(SharedLog *l, SharedState s)
{
    if (l->state != s) {
        colo_trace(block_shared_state, "%s: %s, %" PRIu64 " bytes", l->quorum->name,
                   state_name(s), l->account.memory);
        l->state = s;
    }
}

static uint64_t total_bytes(void)
{
    uint64_t n = 0;

    for (guint i = 0; shared.logs && i < shared.logs->len; i++) {
        n += ((SharedLog *)shared.logs->pdata[i])->account.memory;
    }
    return n;
}

/* --- Life --- */

SharedLog *shared_log_new(BlockNode *quorum, BlockNode *image, GError **errp)
{
    BlockNode *file = block_secondary_live_image(image);

    file = file ? file : image;
    if (!block_file_is_direct(file) || file->read_only) {
        colo_error_set(
            errp,
            "shared-disk=on: '%s' must be a writable raw image with "
            "cache.direct=on: what this host keeps in its cache it could still "
            "write when the other one has taken over",
            image->name);
        return NULL;
    }
    if (!block_file_is_owned(file)) {
        colo_error_set(errp,
                       "shared-disk=on: image '%s' is another host's (opened with "
                       "shared-disk=on, which is the secondary's option)",
                       file->filename);
        return NULL;
    }
    SharedLog *l = g_new0(SharedLog, 1);
    l->quorum = quorum;
    l->image = image;
    l->file = file;
    l->map = log_map_new();
    if (!shared.logs) {
        shared.logs = g_ptr_array_new();
    }
    g_ptr_array_add(shared.logs, l);
    return l;
}

void shared_log_unref(SharedLog *l)
{
    if (!l->closed || l->in_flight) {
        return;
    }
    log_map_free(l->map);
    g_free(l->disk);
    g_free(l);
}

void shared_item_free(SharedItem *it)
{
    SharedLog *l = it->log;

    l->items--;
    shared.flushes -= !it->entry && !it->report && !it->client;
    if (it->entry) {
        log_entry_unref(it->entry);
    }
    g_free(it);
}

void shared_drop_items(GQueue *q, SharedLog *l)
{
    GList *next;

    for (GList *x = q->head; x; x = next) {
        SharedItem *it = x->data;

        next = x->next;
        if (it->log == l) {
            g_queue_delete_link(q, x);
            if (it->client) {
                block_complete_later(it->client, -ESHUTDOWN);
            }
            shared_item_free(it);
        }
    }
}

void shared_log_close(SharedLog *l)
{
    BlockRequest *req;

    if (l->state == SHARED_DRAIN) {
        colo_report("disk '%s': %" PRIu64 " bytes of writes have not reached the shared "
                    "image",
                    l->quorum->name, l->account.memory);
    }
    shared_drop_items(&shared.pending, l);
    shared_drop_items(&shared.ready, l);
    while ((req = g_queue_pop_head(&l->stalled))) {
        block_complete_later(req, -ESHUTDOWN);
    }
    g_ptr_array_remove(shared.logs, l);
    shared_log_settled(l);
    l->closed = true;
    shared_log_unref(l);
    if (shared.logs->len == 0) {
        g_clear_pointer(&shared.logs, g_ptr_array_unref);
        io_source_destroy(&shared.patience);
        shared.asked = shared.blocked = false;
    } else {
        shared_step();
    }
}

void shared_log_attach(SharedLog *l, BlockNode *node, const char *disk)
{
    l->forwarder = node;
    if (node) {
        g_free(l->disk);
        l->disk = g_strdup(disk);
        l->arrived = l->committed = l->applied = 0;
    }
}

void shared_log_query(SharedLog *l, JsonObject *o)
{
    json_object_set_string_member(o, "shared-state", state_name(l->state));
    json_object_set_int_member(o, "log-bytes", l->account.memory);
    json_object_set_int_member(o, "applied", l->applied);
}

/* --- Bounds --- */

static void ask(SharedLog *l, const char *why)
{
    if (!shared.asked && l->state == SHARED_LOGGING) {
        g_autofree char *msg = g_strdup_printf("disk '%s': %s", l->quorum->name, why);

        shared.asked = true;
        colo_trace(block_shared_ask, "%s", msg);
        block_primary_notify(false, msg);
    }
}

bool shared_log_blocked(SharedLog *l)
{
    return l->state == SHARED_LOGGING && total_bytes() > SHARED_HARD;
}

static gboolean patience_tick(gpointer opaque)
{
    if (total_bytes() <= SHARED_HARD) {
        io_source_destroy(&shared.patience);
        return G_SOURCE_REMOVE;
    }
    if (shared.progress != shared.progress_seen) {
        shared.progress_seen = shared.progress;
        return G_SOURCE_CONTINUE;
    }
    io_source_destroy(&shared.patience);
    for (guint i = 0; i < shared.logs->len; i++) {
        SharedLog *l = shared.logs->pdata[i];

        if (l->state == SHARED_LOGGING && l->forwarder) {
            block_primary_fail(l->forwarder, "the log of the shared disk is full, and "
                                             "neither a checkpoint nor the image takes "
                                             "anything from it");
        }
    }
    return G_SOURCE_REMOVE;
}

static void check_bounds(SharedLog *l)
{
    uint64_t bytes = total_bytes();

    if (bytes > SHARED_SOFT) {
        ask(l, "the guest has written much to a shared disk");
    }
    if (bytes > SHARED_HARD && l->state == SHARED_LOGGING) {
        shared.blocked = true;
        if (!shared.patience) {
            shared.progress_seen = shared.progress;
            shared.patience =
                io_thread_timer(block_thread(), PATIENCE_MS, patience_tick, NULL);
        }
    }
}

void shared_progress(void)
{
    shared.progress++;
    if (shared.blocked && total_bytes() <= SHARED_HARD) {
        shared.blocked = false;
        block_front_kick_all();
    }
}

/* --- Into the queue --- */

SharedItem *shared_item_new(SharedLog *l, uint64_t seq, BlockRequest *client)
{
    SharedItem *it = g_new0(SharedItem, 1);

    it->log = l;
    it->seq = seq;
    it->client = client;
    l->items++;
    return it;
}

static void add_write(SharedLog *l, GQueue *q, const BlockRequest *req, uint64_t seq,
                      BlockRequest *client)
{
    SharedItem *it = shared_item_new(l, seq, client);
    BlockRequest copy = *req;

    if (req->op == BLOCK_OP_WRITE && !req->buf) {
        copy.buf = block_buf_new(req->bytes);
        copy.data = copy.buf->data;
        memcpy(copy.data, req->data, req->bytes);
    }
    it->entry = log_entry_new(&copy, seq, &l->account);
    if (copy.buf != req->buf) {
        block_buf_unref(copy.buf);
    }
    log_map_insert(l->map, it->entry);
    g_queue_push_tail(q, it);
    l->dirty = true;
    check_bounds(l);
}

/* The guest's flush, as a mark that keeps the order of what is applied. */
static void add_flush(SharedLog *l)
{
    if (!l->dirty) {
        return;
    }
    l->dirty = false;
    shared.flushes++;
    g_queue_push_tail(
        &shared.pending,
        shared_item_new(l, l->state == SHARED_LOGGING ? l->arrived : UINT64_MAX, NULL));
}

void shared_log_forwarded(SharedLog *l, BlockRequest *req, uint64_t seq)
{
    if (l->state != SHARED_LOGGING) {
        return;
    }
    l->arrived = seq;
    add_write(l, &shared.pending, req, seq, NULL);
    req->flags |= BLOCK_REQ_LOGGED;
    if (req->flags & BLOCK_REQ_FUA) {
        add_flush(l);
    }
}

static gboolean delayed_answer(gpointer opaque)
{
    BlockRequest *req = opaque;

    req->done(req, 0);
    return G_SOURCE_REMOVE;
}

static void submit_flush(SharedLog *l, BlockRequest *req)
{
    if (l->failed) {
        block_complete_later(req, l->failed);
        return;
    }
    if (l->state == SHARED_DRAIN) {
        g_queue_push_tail(&shared.ready, shared_item_new(l, UINT64_MAX, req));
        shared_step();
        return;
    }
    if (l->state != SHARED_FENCED) {
        add_flush(l);
    }
    if (shared.flushes <= FLUSH_SOFT || l->state != SHARED_LOGGING) {
        block_complete_later(req, 0);
        return;
    }
    ask(l, "the guest flushes a shared disk often");
    unsigned ms = MIN(4 * (shared.flushes / FLUSH_SOFT), FLUSH_DELAY_MAX);
    GSource *s = g_timeout_source_new(ms);
    g_source_set_callback(s, delayed_answer, req, NULL);
    g_source_attach(s, io_thread_context(block_thread()));
    g_source_unref(s);
}

void shared_submit_write(SharedLog *l, BlockRequest *req)
{
    if (l->state == SHARED_DRAIN) {
        add_write(l, &shared.ready, req, UINT64_MAX, req);
        shared_step();
        return;
    }
    /* LOST or FENCED */
    if (l->account.memory > LOST_MAX) {
        if (!l->stalled_told) {
            l->stalled_told = true;
            colo_report("disk '%s': %" PRIu64 " MiB of writes wait in memory for the "
                        "arbiter's word: the guest's next ones wait as well",
                        l->quorum->name, (uint64_t)(l->account.memory / MIB));
        }
        g_queue_push_tail(&l->stalled, req);
        return;
    }
    add_write(l, &shared.pending, req, UINT64_MAX, NULL);
    if (req->flags & BLOCK_REQ_FUA) {
        add_flush(l);
    }
    block_complete_later(req, 0);
}

bool shared_log_submit(SharedLog *l, BlockRequest *req)
{
    bool logs =
        l->state == SHARED_LOST || l->state == SHARED_DRAIN || l->state == SHARED_FENCED;

    if (req->op == BLOCK_OP_READ) {
        if (log_map_empty(l->map)) {
            return false;
        }
        shared_submit_read(l, req);
    } else if (req->op == BLOCK_OP_STATUS) {
        BlockExtent e = {.bytes = req->bytes};

        if (log_map_empty(l->map)) {
            return false;
        }
        g_array_append_val(req->extents, e);
        block_complete_later(req, 0);
    } else if (req->op == BLOCK_OP_FLUSH) {
        if (l->state == SHARED_PASS && !l->failed) {
            return false;
        }
        submit_flush(l, req);
    } else if (req->flags & BLOCK_REQ_LOGGED) {
        if (l->state == SHARED_DRAIN && (req->flags & BLOCK_REQ_FUA)) {
            submit_flush(l, req);
        } else {
            block_complete_later(req, 0);
        }
    } else if (logs) {
        shared_submit_write(l, req);
    } else {
        /* In LOGGING: it was forwarded before; the next barrier's release waits for it. */
        return false;
    }
    return true;
}

void shared_log_lost(SharedLog *l)
{
    if (l->state == SHARED_LOGGING) {
        shared_set_state(l, SHARED_LOST);
    }
}
