/*
 * The way of a shared disk's log into the image.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The order is shared-log.c's: writes between two flushes run together unless they overlap,
 * a flush waits for all before it and holds up all behind it. Nothing is applied before the
 * checkpoint after it was loaded, and nothing once the secondary may take over.
 */
#include "shared-int.h"

#include <inttypes.h>

#define SHARED_DEPTH 16 /* writes in flight */
#define AGAIN_MS 1000   /* after a write failed that must not */
#define SETTLE_SLICE_MS 200

static void item_end(SharedItem *it, int ret)
{
    SharedLog *l = it->log;
    BlockRequest *client = it->client;

    shared_item_free(it);
    if (l->state == SHARED_DRAIN && l->items == 0 && !l->closed) {
        shared_set_state(l, SHARED_PASS);
    }
    if (client) {
        client->done(client, ret);
    }
}

static gboolean try_again(gpointer opaque)
{
    SharedLog *l = opaque;

    io_source_destroy(&l->again);
    shared_step();
    return G_SOURCE_REMOVE;
}

void shared_log_settled(SharedLog *l)
{
    l->settling = false;
    g_clear_pointer(&l->trouble, g_free);
    io_source_destroy(&l->again);
}

/* Nobody else can be told: while protected, protection ends and the item waits for what
 * the arbiter says. Before this side serves, a write is tried until it succeeds (a flush is not:
 * after one that failed a second one proves nothing). Alone, the guest's flushes fail from now
 * on. True: the item lives. */
static bool item_failed(SharedItem *it, int ret)
{
    SharedLog *l = it->log;
    g_autofree char *why =
        g_strdup_printf("the shared image cannot be %s: %s",
                        it->entry ? "written" : "flushed", g_strerror(-ret));

    if (l->state == SHARED_LOGGING || l->state == SHARED_LOST) {
        g_queue_push_head(&shared.ready, it);
        if (l->forwarder && l->state == SHARED_LOGGING) {
            block_primary_fail(l->forwarder, why);
        }
        shared_log_lost(l);
        return true;
    }
    if (l->settling && l->state == SHARED_DRAIN && !l->trouble) {
        colo_report("disk '%s': %s", l->quorum->name, why);
        l->trouble = g_strdup(why);
    }
    if (l->settling && l->state == SHARED_DRAIN && it->entry) {
        g_queue_push_head(&shared.ready, it);
        if (!l->again) {
            l->again = io_thread_timer(block_thread(), AGAIN_MS, try_again, l);
        }
        return true;
    }
    if (!l->failed && l->state != SHARED_FENCED) {
        l->failed = ret;
        colo_report("disk '%s': %s", l->quorum->name, why);
    }
    return false;
}

static void give_up_locks(SharedLog *l)
{
    if (l->state == SHARED_FENCED && !l->closed && block_file_is_owned(l->file)) {
        for (GList *x = shared.flight.head; x; x = x->next) {
            if (((SharedItem *)x->data)->log == l) {
                return;
            }
        }
        block_file_own(l->file, false, NULL);
        colo_trace(block_shared_disowned, "%s", l->file->filename);
    }
}

static void item_done(BlockRequest *sub, int ret)
{
    SharedItem *it = sub->opaque;
    SharedLog *l = it->log;
    bool lives = false;

    if (it->entry) {
        g_queue_remove(&shared.flight, it);
    } else {
        shared.flushing = false;
    }
    l->in_flight--;
    block_node_unuse(l->image);
    if (ret < 0 && !it->client && !l->closed) {
        lives = item_failed(it, ret);
    } else if (ret == 0 && it->report) {
        l->applied = MAX(l->applied, it->seq);
        colo_trace(block_shared_applied, "%s: %" PRIu64, l->disk, l->applied);
    }
    if (!lives) {
        if (it->entry) {
            log_map_remove(l->map, it->entry->start, it->entry->end, it->entry);
        }
        item_end(it, ret);
    }
    shared_progress();
    give_up_locks(l);
    shared_log_unref(l);
    shared_step();
}

static void item_start(SharedItem *it)
{
    LogEntry *e = it->entry;

    it->sub = (BlockRequest){.op = BLOCK_OP_FLUSH, .done = item_done, .opaque = it};
    if (e) {
        it->sub.op = e->buf ? BLOCK_OP_WRITE : BLOCK_OP_ZEROES;
        it->sub.flags = e->buf ? 0 : BLOCK_REQ_MAY_UNMAP;
        if (it->client) {
            it->sub.flags |= it->client->flags & BLOCK_REQ_FUA;
        }
        it->sub.offset = e->start;
        it->sub.bytes = e->end - e->start;
        it->sub.data = (uint8_t *)e->data;
        it->sub.buf = e->buf;
        g_queue_push_tail(&shared.flight, it);
    } else {
        shared.flushing = true;
    }
    it->log->in_flight++;
    it->log->image->users++;
    block_submit(it->log->image, &it->sub);
}

static bool may_start(SharedItem *it)
{
    SharedState s = it->log->state;

    if (shared.flushing || it->log->again || s == SHARED_LOST || s == SHARED_FENCED) {
        return false;
    }
    if (!it->entry) {
        return g_queue_is_empty(&shared.flight);
    }
    for (GList *x = shared.flight.head; x; x = x->next) {
        SharedItem *other = x->data;

        if (other->log == it->log && other->entry->start < it->entry->end &&
            it->entry->start < other->entry->end) {
            return false;
        }
    }
    return shared.flight.length < SHARED_DEPTH;
}

void shared_step(void)
{
    SharedItem *it;

    while ((it = g_queue_peek_head(&shared.ready)) && may_start(it)) {
        g_queue_pop_head(&shared.ready);
        item_start(it);
    }
}

/* --- replication.h --- */

static const BlockBarrier *barrier_of(const SharedLog *l, const BlockBarrier *b,
                                      unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (!g_strcmp0(b[i].disk, l->disk)) {
            return &b[i];
        }
    }
    return NULL;
}

void block_primary_log(void)
{
    block_lock();
    for (guint i = 0; shared.logs && i < shared.logs->len; i++) {
        SharedLog *l = shared.logs->pdata[i];

        if (l->forwarder && (l->state == SHARED_PASS || l->state == SHARED_DRAIN)) {
            l->arrived = block_primary_sequence(l->forwarder);
            shared_set_state(l, SHARED_LOGGING);
        }
    }
    block_unlock();
}

void block_primary_loaded(const BlockBarrier *barriers, unsigned n)
{
    SharedItem *it;

    block_lock();
    for (guint i = 0; shared.logs && i < shared.logs->len; i++) {
        SharedLog *l = shared.logs->pdata[i];
        const BlockBarrier *b = barrier_of(l, barriers, n);

        if (b && l->state == SHARED_LOGGING) {
            l->committed = MAX(l->committed, b->sequence);
        }
    }
    while ((it = g_queue_peek_head(&shared.pending)) && it->seq <= it->log->committed) {
        g_queue_push_tail(&shared.ready, g_queue_pop_head(&shared.pending));
    }
    for (guint i = 0; shared.logs && i < shared.logs->len; i++) {
        SharedLog *l = shared.logs->pdata[i];

        if (l->state == SHARED_LOGGING && l->committed > l->applied) {
            SharedItem *report = shared_item_new(l, l->committed, NULL);

            report->report = true;
            g_queue_push_tail(&shared.ready, report);
        }
    }
    shared.asked = false;
    shared_progress();
    shared_step();
    g_main_context_wakeup(io_thread_context(block_thread()));
    block_unlock();
}

unsigned block_primary_applied(BlockBarrier *out, unsigned max)
{
    unsigned n = 0;

    block_lock();
    for (guint i = 0; shared.logs && i < shared.logs->len && n < max; i++) {
        SharedLog *l = shared.logs->pdata[i];

        if (l->forwarder && l->applied > 0) {
            g_strlcpy(out[n].disk, l->disk, sizeof(out[n].disk));
            out[n++].sequence = l->applied;
        }
    }
    block_unlock();
    return n;
}

void block_primary_lost(void)
{
    block_lock();
    for (guint i = 0; shared.logs && i < shared.logs->len; i++) {
        shared_log_lost(shared.logs->pdata[i]);
    }
    block_unlock();
}

void block_primary_fence(void)
{
    block_lock();
    for (guint i = 0; shared.logs && i < shared.logs->len; i++) {
        SharedLog *l = shared.logs->pdata[i];

        shared_set_state(l, SHARED_FENCED);
        shared_drop_items(&shared.pending, l);
        shared_drop_items(&shared.ready, l);
        give_up_locks(l);
    }
    block_unlock();
}

void block_shared_drain(void)
{
    SharedItem *it;

    for (guint i = 0; shared.logs && i < shared.logs->len; i++) {
        SharedLog *l = shared.logs->pdata[i];
        BlockRequest *req;

        if (l->state != SHARED_LOGGING && l->state != SHARED_LOST) {
            continue;
        }
        shared_set_state(l, l->items ? SHARED_DRAIN : SHARED_PASS);
        l->settling = l->items > 0;
        while ((it = g_queue_pop_head(&shared.pending))) {
            g_queue_push_tail(&shared.ready, it);
        }
        while ((req = g_queue_pop_head(&l->stalled))) {
            shared_submit_write(l, req);
        }
    }
    shared_step();
    g_main_context_wakeup(io_thread_context(block_thread()));
}

/* Under the lock: the nodes whose logs are not in their images, each held by its use. */
static GPtrArray *unsettled(void)
{
    GPtrArray *nodes = g_ptr_array_new();

    for (guint i = 0; shared.logs && i < shared.logs->len; i++) {
        SharedLog *l = shared.logs->pdata[i];

        if (l->state == SHARED_DRAIN) {
            l->quorum->users++;
            g_ptr_array_add(nodes, l->quorum);
        }
    }
    return nodes;
}

bool block_primary_settle(bool (*give_up)(void), GError **errp)
{
    bool ok = true;

    block_lock();
    g_autoptr(GPtrArray) nodes = unsettled();
    block_unlock();
    for (guint i = 0; i < nodes->len; i++) {
        BlockNode *node = nodes->pdata[i];
        int r = ok ? block_flush_wait_until(node, SETTLE_SLICE_MS, give_up) : -ECANCELED;

        if (r < 0 && ok) {
            colo_error_set_errno(errp, -r, "disk '%s': the shared image is not whole",
                                 node->name);
            ok = false;
        }
        block_lock();
        block_node_unuse(node);
        block_unlock();
    }
    return ok;
}

void block_primary_settled(void)
{
    block_lock();
    for (guint i = 0; shared.logs && i < shared.logs->len; i++) {
        shared_log_settled(shared.logs->pdata[i]);
    }
    shared_step();
    g_main_context_wakeup(io_thread_context(block_thread()));
    block_unlock();
}

char *block_primary_unsettled(uint64_t *left, char **trouble)
{
    char *name = NULL;

    block_lock();
    for (guint i = 0; shared.logs && i < shared.logs->len; i++) {
        SharedLog *l = shared.logs->pdata[i];

        if (l->settling && l->state == SHARED_DRAIN) {
            name = name ? name : g_strdup(l->quorum->name);
            *trouble = *trouble ? *trouble : g_strdup(l->trouble);
            *left += l->items;
        }
    }
    const char *early = NULL;
    *left += block_front_unflushed(&early);
    name = name ? name : g_strdup(early);
    block_unlock();
    return name;
}
