/*
 * Committed checkpoints on their way into the image.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Each commit adds a layer: the entries up to its barrier, and the map of what they cover. The
 * oldest layer is written to the image, entry by entry, in the background; what is on the
 * image leaves the layer's map, and an empty layer goes. So a commit of any size is a matter
 * of one pointer, and the log's end is written while guests on both sides go on.
 *
 * Bounds, so that nobody's I/O waits for it: APPLY_BYTES in flight, in pieces of
 * APPLY_CHUNK, written by threads of the kernel; and APPLY_LOOK entries are looked at before
 * the block thread turns to something else.
 *
 * A guest write of a takeover, and a merge, take their range out of all layers first. So a
 * spilled entry, which is read before it is written, is looked up again in between.
 */
#include "secondary-int.h"

#define APPLY_LOOK 256

typedef struct ApplyOp {
    BlockSecondary *s;
    LogLayer *layer;
    LogEntry *entry;
    uint64_t start, end;
    BlockBuf *buf;
    const uint8_t *data;
    unsigned left;
    BlockRequest read;
} ApplyOp;

typedef struct ApplyWrite {
    ApplyOp *op;
    BlockRequest req;
} ApplyWrite;

LogLayer *log_layer_new(void)
{
    LogLayer *l = g_new0(LogLayer, 1);

    l->map = log_map_new();
    g_queue_init(&l->queue);
    return l;
}

void log_layer_free(LogLayer *l)
{
    LogEntry *e;

    while ((e = g_queue_pop_head(&l->queue))) {
        log_entry_unref(e);
    }
    log_map_free(l->map);
    g_free(l);
}

void secondary_layers_remove(BlockSecondary *s, uint64_t start, uint64_t end)
{
    for (guint i = 0; i < s->layers->len; i++) {
        LogLayer *l = s->layers->pdata[i];

        log_map_remove(l->map, start, end, NULL);
    }
}

static void apply_put(ApplyOp *op)
{
    BlockSecondary *s = op->s;

    if (--op->left > 0) {
        return;
    }
    s->applying--;
    s->apply_bytes -= op->end - op->start;
    op->layer->applying--;
    log_entry_unref(op->entry);
    block_buf_unref(op->buf);
    g_free(op);
    secondary_apply(s);
    nbd_server_kick();
    secondary_check_arrived();
    secondary_check_settled(s);
    if (s->state == SECONDARY_TAKEOVER) {
        secondary_takeover_step(s);
    }
}

static void apply_written(BlockRequest *req, int ret)
{
    ApplyWrite *w = req->opaque;
    ApplyOp *op = w->op;

    if (ret < 0) {
        op->s->errnum = ret;
        secondary_fail(op->s, "a checkpoint cannot be written to the image: %s",
                       g_strerror(-ret));
    } else {
        op->s->applied += req->bytes;
        log_map_remove(op->layer->map, req->offset, req->offset + req->bytes, op->entry);
    }
    g_free(w);
    secondary_step("apply-written");
    apply_put(op);
}

static void apply_write(ApplyOp *op, uint64_t start, uint64_t end)
{
    ApplyWrite *w = g_new0(ApplyWrite, 1);

    w->op = op;
    w->req.op = op->buf ? BLOCK_OP_WRITE : BLOCK_OP_ZEROES;
    w->req.flags = op->buf ? BLOCK_REQ_BACKGROUND : BLOCK_REQ_MAY_UNMAP;
    w->req.offset = start;
    w->req.bytes = end - start;
    w->req.buf = op->buf;
    w->req.data = op->buf ? (uint8_t *)op->data + (start - op->start) : NULL;
    w->req.done = apply_written;
    w->req.opaque = w;
    op->left++;
    block_front_submit(op->s->parent, NULL, &w->req);
}

static void apply_read(BlockRequest *req, int ret)
{
    ApplyOp *op = req->opaque;
    BlockSecondary *s = op->s;
    uint64_t pos = op->start;
    LogExtent *x;

    if (ret < 0) {
        secondary_fail(s, "the log cannot be read from the hidden disk: %s",
                       g_strerror(-ret));
    }
    while (ret >= 0 && pos < op->end && (x = log_map_next(op->layer->map, pos)) &&
           x->start < op->end) {
        uint64_t start = MAX(x->start, pos), end = MIN(x->end, op->end);

        pos = x->end;
        if (x->entry == op->entry) {
            apply_write(op, start, end);
        }
    }
    apply_put(op);
}

static void apply_piece(BlockSecondary *s, LogLayer *l, LogEntry *e, uint64_t start,
                        uint64_t end)
{
    ApplyOp *op = g_new0(ApplyOp, 1);

    op->s = s;
    op->layer = l;
    op->entry = log_entry_ref(e);
    op->start = start;
    op->end = end;
    s->applying++;
    s->apply_bytes += end - start;
    l->applying++;
    if (!e->spilled) {
        op->buf = e->buf ? block_buf_ref(e->buf) : NULL;
        op->data = e->data + (e->buf ? start - e->start : 0);
        apply_write(op, start, end);
        return;
    }
    op->left = 1;
    op->buf = block_buf_new(end - start);
    op->data = op->buf->data;
    op->read.op = BLOCK_OP_READ;
    op->read.offset = e->spill_offset + (start - e->start);
    op->read.bytes = end - start;
    op->read.data = op->buf->data;
    op->read.done = apply_read;
    op->read.opaque = op;
    block_submit(s->hidden, &op->read);
}

static gboolean apply_on(gpointer opaque)
{
    BlockSecondary *s = opaque;

    io_source_destroy(&s->apply_idle);
    secondary_apply(s);
    secondary_check_settled(s);
    secondary_check_arrived();
    if (s->state == SECONDARY_TAKEOVER) {
        secondary_takeover_step(s);
    }
    return G_SOURCE_REMOVE;
}

/* The next thing to write of the oldest layer, or false: there is none now. */
static bool apply_next(BlockSecondary *s, LogLayer *l)
{
    LogEntry *e = g_queue_peek_head(&l->queue);
    uint64_t pos = MAX(l->pos, e->start);
    LogExtent *x = pos < e->end ? log_map_next(l->map, pos) : NULL;

    /* Only what no later entry, and no guest write of a takeover, has covered. */
    if (!x || x->start >= e->end) {
        log_entry_unref(g_queue_pop_head(&l->queue));
        l->pos = 0;
        return false;
    }
    if (x->entry != e) {
        l->pos = x->end;
        return false;
    }
    uint64_t start = MAX(x->start, pos), end = MIN(x->end, start + APPLY_CHUNK);
    l->pos = end;
    apply_piece(s, l, e, start, end);
    return true;
}

void secondary_apply(BlockSecondary *s)
{
    unsigned looked = 0;

    if (s->shared && s->state == SECONDARY_LOGGING) {
        return; /* the primary does that, and tells (shared-secondary.c) */
    }
    while (!s->error && s->layers->len > 0 && s->applying < APPLY_DEPTH &&
           s->apply_bytes < APPLY_BYTES) {
        LogLayer *l = s->layers->pdata[0];

        if (!g_queue_is_empty(&l->queue)) {
            if (looked++ == APPLY_LOOK) {
                if (!s->apply_idle) {
                    s->apply_idle = secondary_idle(apply_on, s);
                }
                return;
            }
            apply_next(s, l);
        } else if (l->applying == 0) {
            g_ptr_array_remove_index(s->layers, 0);
            log_layer_free(l);
            secondary_step("layer-applied");
        } else {
            return;
        }
    }
}

/* An entry whose write failed has left the queue but not the map. */
void secondary_apply_again(BlockSecondary *s)
{
    for (guint i = 0; i < s->layers->len; i++) {
        LogLayer *l = s->layers->pdata[i];
        LogEntry *e;
        LogExtent *x;

        while ((e = g_queue_pop_head(&l->queue))) {
            log_entry_unref(e);
        }
        l->pos = 0;
        for (uint64_t pos = 0; (x = log_map_next(l->map, pos)); pos = x->end) {
            /* One in several pieces is queued for each: the first does them all. */
            g_queue_push_tail(&l->queue, log_entry_ref(x->entry));
        }
    }
}

void secondary_check_settled(BlockSecondary *s)
{
    bool waits = s->layers->len > 0 && !(s->shared && s->state == SECONDARY_LOGGING);
    bool busy = waits || s->applying || s->through || s->job ||
                s->state == SECONDARY_TAKEOVER;
    bool live = s->state == SECONDARY_LOGGING && !s->error;
    BlockRequest *flush;

    while ((!busy || !live) && (flush = g_queue_pop_head(&s->peer_flushes))) {
        if (live) {
            block_front_submit(s->parent, NULL, flush);
        } else {
            block_complete_later(flush, -EIO);
        }
    }
    if (s->settlers->len && (!busy || (s->error && !s->applying))) {
        for (guint i = 0; i < s->settlers->len; i++) {
            block_wait_done(s->settlers->pdata[i], s->error ? -EIO : 0);
        }
        g_ptr_array_set_size(s->settlers, 0);
    }
}
