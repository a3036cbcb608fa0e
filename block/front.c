/*
 * The front of a node: what stands between its exports and its driver.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: overlapping requests run in one order, the one in which they arrived and in which
 * the forwarder sent them to the secondary; and the emulator's stop, which waits for the
 * guest's disk requests, waits for no disk (RULES 11).
 *
 * A modifying request is forwarded when it arrives, before anything may delay it: so a
 * barrier taken after stop counts all that the guest has submitted. Then it takes its
 * range and goes to the driver. It is answered when the driver has it, unless the
 * forwarder's queue is over its bound (then it waits in @delayed).
 *
 * While held, a flush is answered at once, and a write about 1 ms later if the disk has
 * not taken it by then. Such an answer is early: the request lives on with its data and
 * its range, so that later overlapping requests still wait for it; a real flush waits for
 * all early writes first, and for the end of the hold: what it costs is not in the pause.
 * Until every early one has really ended the front is unflushed, which keeps the epoch's
 * output from being released. If an early write fails the guest cannot be told any more: each
 * later flush fails and protection ends. After the hold nothing more is answered early.
 */
#include "block-int.h"

typedef struct FrontReq {
    BlockFront *front;
    BlockRequest *client; /* NULL once answered */
    BlockRequest sub;
    BlockRange range;
    GList link;
    bool early;
    bool submitted;
    bool finished; /* by the driver; waits in @delayed */
    int ret;
} FrontReq;

struct BlockFront {
    BlockNode *node;
    BlockRangeLock ranges;
    GQueue all; /* FrontReq, in order of arrival */
    unsigned delayed;
    unsigned early_writes, early_flushes;
    unsigned flushes_waiting; /* not submitted because of early writes */
    bool guest;
    bool closed;
    int failed;
};

/* Room singleton, guarded by the block lock. */
static struct {
    bool held;
    GSource *timer;
    GSourceFunc flushed_fn;
    void *flushed_opaque;
    void (*error_fn)(const char *message);
} fronts;

static void front_req_free(FrontReq *fr)
{
    BlockFront *f = fr->front;

    g_queue_unlink(&f->all, &fr->link);
    block_buf_unref(fr->sub.buf);
    g_free(fr);
    if (f->closed && g_queue_is_empty(&f->all)) {
        g_free(f);
    }
}

static void front_answer(FrontReq *fr, int ret)
{
    BlockRequest *client = g_steal_pointer(&fr->client);

    client->done(client, ret);
}

unsigned block_front_unflushed(const char **name)
{
    GHashTableIter it;
    BlockNode *node;
    unsigned n = 0;

    g_hash_table_iter_init(&it, block_nodes());
    while (g_hash_table_iter_next(&it, NULL, (gpointer *)&node)) {
        unsigned early = node->front ? node->front->early_writes + node->front->early_flushes
                                     : 0;
        if (early && name) {
            *name = node->name;
        }
        n += early;
    }
    return n;
}

static void front_check_flushed(void)
{
    if (fronts.flushed_fn && block_front_unflushed(NULL) == 0) {
        GSourceFunc fn = g_steal_pointer(&fronts.flushed_fn);

        fn(fronts.flushed_opaque);
    }
}

static void front_submit(FrontReq *fr)
{
    fr->submitted = true;
    if (fr->front->closed) {
        block_complete_later(&fr->sub, -ESHUTDOWN);
    } else {
        block_submit(fr->front->node, &fr->sub);
    }
}

static void front_submit_flushes(BlockFront *f)
{
    GList *next;

    for (GList *l = f->all.head; l && f->flushes_waiting && !f->early_writes; l = next) {
        FrontReq *fr = l->data;

        next = l->next;
        if (fr->sub.op == BLOCK_OP_FLUSH && !fr->submitted && !(fr->early && fronts.held)) {
            f->flushes_waiting--;
            front_submit(fr);
        }
    }
}

/* An answer that was given early has come true, or has not. */
static void front_early_ended(FrontReq *fr, int ret)
{
    BlockFront *f = fr->front;

    if (fr->sub.op == BLOCK_OP_FLUSH) {
        f->early_flushes--;
    } else {
        f->early_writes--;
    }
    if (ret < 0 && !f->failed) {
        g_autofree char *msg = g_strdup_printf(
            "disk '%s': %s failed after the guest had its answer: %s",
            f->closed ? "" : f->node->name, block_op_name(fr->sub.op), g_strerror(-ret));

        f->failed = ret;
        colo_report("%s", msg);
        if (fronts.error_fn) {
            fronts.error_fn(msg);
        }
    }
    front_submit_flushes(f);
    front_req_free(fr);
    front_check_flushed();
}

static void front_done(BlockRequest *sub, int ret)
{
    FrontReq *fr = sub->opaque;
    BlockFront *f = fr->front;

    if (fr->range.fn) {
        block_range_release(&f->ranges, &fr->range);
    }
    if (fr->early) {
        front_early_ended(fr, ret);
        return;
    }
    if (!f->closed && block_op_modifies(sub->op) && f->node->drv->forward_blocked &&
        !fronts.held && f->node->drv->forward_blocked(f->node)) {
        fr->finished = true;
        fr->ret = ret;
        f->delayed++;
        return;
    }
    front_answer(fr, sub->op == BLOCK_OP_FLUSH && f->failed ? f->failed : ret);
    front_req_free(fr);
}

static void front_granted(BlockRange *range)
{
    front_submit((FrontReq *)((char *)range - offsetof(FrontReq, range)));
}

static void front_flush(BlockFront *f, FrontReq *fr)
{
    bool early = f->guest && fronts.held && !f->failed;

    if (f->early_writes || early) {
        f->flushes_waiting++; /* the disk's work can wait until the pause is over */
    } else {
        front_submit(fr);
    }
    if (early) {
        fr->early = true;
        f->early_flushes++;
        /* We are inside the submission. */
        block_complete_later(g_steal_pointer(&fr->client), 0);
    }
}

void block_front_submit(BlockNode *node, void *conn, BlockRequest *client)
{
    if (conn && node->secondary) {
        block_secondary_export_submit(node->secondary, conn, client);
        return;
    }
    if (client->op != BLOCK_OP_FLUSH &&
        (client->offset > node->size || client->bytes > node->size - client->offset)) {
        block_complete_later(client, -EINVAL);
        return;
    }
    if (node->read_only && block_op_modifies(client->op)) {
        block_complete_later(client, -EPERM);
        return;
    }
    if (client->op == BLOCK_OP_TRIM && !node->discard) {
        block_complete_later(client, 0);
        return;
    }

    BlockFront *f = block_front_get(node);
    FrontReq *fr = g_new0(FrontReq, 1);
    fr->front = f;
    fr->client = client;
    fr->sub = *client;
    fr->sub.done = front_done;
    fr->sub.opaque = fr;
    if (fr->sub.buf) {
        block_buf_ref(fr->sub.buf);
    }
    fr->link.data = fr;
    g_queue_push_tail_link(&f->all, &fr->link);

    if (client->op == BLOCK_OP_FLUSH) {
        front_flush(f, fr);
        return;
    }
    if (client->op == BLOCK_OP_STATUS) {
        block_submit(node, &fr->sub);
        return;
    }
    if (block_op_modifies(client->op)) {
        if (f->guest && node->writethrough) {
            fr->sub.flags |= BLOCK_REQ_FUA;
        }
        if (node->drv->forwarding && node->drv->forwarding(node)) {
            if (fr->sub.op == BLOCK_OP_TRIM) {
                /* What a trimmed sector reads as is the format's choice; the two sides
                 * must make the same. */
                fr->sub.op = BLOCK_OP_ZEROES;
                fr->sub.flags |= BLOCK_REQ_MAY_UNMAP;
            }
            node->drv->forward(node, &fr->sub);
        } else if (node->mirrored_to) {
            g_clear_pointer(&node->mirrored_to, g_free);
        }
    }
    fr->range.start = client->offset;
    fr->range.end = client->offset + client->bytes;
    fr->range.write = block_op_modifies(client->op);
    fr->range.fn = front_granted;
    if (block_range_acquire(&f->ranges, &fr->range)) {
        front_granted(&fr->range);
    }
}

BlockFront *block_front_get(BlockNode *node)
{
    if (!node->front) {
        node->front = g_new0(BlockFront, 1);
        node->front->node = node;
    }
    return node->front;
}

void block_front_free(BlockFront *f)
{
    if (!f) {
        return;
    }
    f->closed = true;
    if (g_queue_is_empty(&f->all)) {
        g_free(f);
        return;
    }
    /* Nobody will come for them when the hold is over. What was answered early has not come true,
     * and is told. */
    for (GList *l = f->all.head; l && f->flushes_waiting; l = l->next) {
        FrontReq *fr = l->data;

        if (fr->sub.op == BLOCK_OP_FLUSH && !fr->submitted) {
            f->flushes_waiting--;
            front_submit(fr);
        }
    }
}

void block_front_set_guest(BlockFront *f)
{
    f->guest = true;
}

bool block_front_is_guest(BlockFront *f)
{
    return f && f->guest;
}

unsigned block_front_in_flight(BlockFront *f)
{
    return f ? f->all.length : 0;
}

void block_front_exclude(BlockNode *node, BlockRange *range)
{
    range->start = 0;
    range->end = UINT64_MAX;
    range->write = true;
    if (block_range_acquire(&block_front_get(node)->ranges, range)) {
        range->fn(range);
    }
}

void block_front_include(BlockNode *node, BlockRange *range)
{
    block_range_release(&node->front->ranges, range);
}

void block_front_set_error_func(void (*fn)(const char *message))
{
    fronts.error_fn = fn;
}

static void front_release_delayed(BlockFront *f)
{
    GList *next;

    for (GList *l = f->all.head; l && f->delayed; l = next) {
        FrontReq *fr = l->data;

        next = l->next;
        if (fr->finished) {
            f->delayed--;
            front_answer(fr, fr->ret);
            front_req_free(fr);
        }
    }
}

void block_front_kick_all(void)
{
    g_autoptr(GList) nodes = g_hash_table_get_values(block_nodes());

    for (GList *l = nodes; l; l = l->next) {
        BlockNode *node = l->data;

        if (node->front && node->front->delayed && !node->drv->forward_blocked(node)) {
            front_release_delayed(node->front);
        }
    }
}

static gboolean front_hold_tick(gpointer opaque)
{
    g_autoptr(GList) nodes = g_hash_table_get_values(block_nodes());

    for (GList *n = nodes; n; n = n->next) {
        BlockNode *node = n->data;

        if (!block_front_is_guest(node->front)) {
            continue;
        }
        for (GList *l = node->front->all.head; l; l = l->next) {
            FrontReq *fr = l->data;

            if (block_op_modifies(fr->sub.op) && !fr->early && !fr->finished &&
                (fr->sub.buf || fr->sub.op != BLOCK_OP_WRITE)) {
                fr->early = true;
                node->front->early_writes++;
                front_answer(fr, 0);
            }
        }
    }
    return G_SOURCE_CONTINUE;
}

void block_front_hold_all(bool hold)
{
    if (hold == fronts.held) {
        return;
    }
    fronts.held = hold;
    io_source_destroy(&fronts.timer);
    g_autoptr(GList) nodes = g_hash_table_get_values(block_nodes());
    for (GList *n = nodes; n; n = n->next) {
        BlockNode *node = n->data;
        BlockFront *f = node->front;

        if (!block_front_is_guest(f)) {
            continue;
        }
        if (!hold) {
            front_submit_flushes(f);
            continue;
        }
        front_release_delayed(f);
        for (GList *l = f->all.head; l; l = l->next) {
            FrontReq *fr = l->data;

            if (fr->sub.op == BLOCK_OP_FLUSH && !fr->early && !f->failed) {
                fr->early = true;
                f->early_flushes++;
                front_answer(fr, 0);
            }
        }
    }
    if (hold) {
        fronts.timer = io_thread_timer(block_thread(), 1, front_hold_tick, NULL);
    } else {
        g_main_context_wakeup(io_thread_context(block_thread())); /* for the flushes */
    }
}

bool block_front_flushed_all(GSourceFunc done, void *opaque)
{
    if (block_front_unflushed(NULL) == 0) {
        return true;
    }
    fronts.flushed_fn = done;
    fronts.flushed_opaque = opaque;
    return false;
}
