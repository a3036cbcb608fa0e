/*
 * The SVM's reads and writes, and reads of the export, while a disk is secondary.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "secondary-int.h"

/* --- A read put together from several layers --- */

typedef struct ComposedRead {
    BlockSecondary *s;
    BlockRequest *orig;
    BlockRangeLock *lock;
    BlockRange range;
    bool with_pending;
    unsigned left;
    int ret;
} ComposedRead;

typedef struct ReadPart {
    BlockRequest req;
    ComposedRead *cr;
    LogEntry *entry; /* spilled: its place must not be given away meanwhile */
} ReadPart;

static void composed_put(ComposedRead *cr, int ret)
{
    if (ret < 0) {
        cr->ret = ret;
    }
    if (--cr->left > 0) {
        return;
    }
    BlockRequest *orig = cr->orig;
    ret = cr->ret;
    if (cr->lock) {
        block_range_release(cr->lock, &cr->range);
    }
    g_free(cr);
    orig->done(orig, ret);
}

static void part_done(BlockRequest *req, int ret)
{
    ReadPart *part = req->opaque;
    ComposedRead *cr = part->cr;

    if (part->entry) {
        log_entry_unref(part->entry);
    }
    g_free(part);
    composed_put(cr, ret);
}

/* [start, end) of the guest's disk from @offset of @node. */
static void read_from(ComposedRead *cr, BlockNode *node, uint64_t offset, LogEntry *e,
                      uint64_t start, uint64_t end)
{
    ReadPart *part = g_new0(ReadPart, 1);

    part->cr = cr;
    part->entry = e ? log_entry_ref(e) : NULL;
    part->req.op = BLOCK_OP_READ;
    part->req.offset = offset;
    part->req.bytes = end - start;
    part->req.data = cr->orig->data + (start - cr->orig->offset);
    part->req.done = part_done;
    part->req.opaque = part;
    cr->left++;
    block_submit(node, &part->req);
}

static void read_entry(ComposedRead *cr, LogEntry *e, uint64_t start, uint64_t end)
{
    uint8_t *to = cr->orig->data + (start - cr->orig->offset);

    if (e->spilled) {
        read_from(cr, cr->s->hidden, e->spill_offset + (start - e->start), e, start, end);
    } else if (e->buf) {
        memcpy(to, e->data + (start - e->start), end - start);
    } else {
        memset(to, 0, end - start);
    }
}

/* [start, end) of the first of @n maps, what it does not cover of the next. */
static void read_maps(ComposedRead *cr, LogMap **maps, unsigned n, uint64_t start,
                      uint64_t end)
{
    if (n == 0) {
        read_from(cr, cr->s->parent, start, NULL, start, end);
        return;
    }
    while (start < end) {
        LogExtent *x = log_map_next(maps[0], start);
        uint64_t hole = x ? MIN(MAX(x->start, start), end) : end;

        if (hole > start) {
            read_maps(cr, maps + 1, n - 1, start, hole);
            start = hole;
        }
        if (start < end) {
            uint64_t stop = MIN(x->end, end);

            read_entry(cr, x->entry, start, stop);
            start = stop;
        }
    }
}

static void composed_start(ComposedRead *cr)
{
    BlockSecondary *s = cr->s;
    uint64_t pos = cr->orig->offset, end = pos + cr->orig->bytes;

    LogMap **maps = g_newa(LogMap *, s->layers->len + 2);
    unsigned n = 0;

    if (cr->with_pending) {
        maps[n++] = s->pending_map;
        maps[n++] = s->staged->map;
    }
    for (guint i = s->layers->len; i > 0; i--) {
        maps[n++] = ((LogLayer *)s->layers->pdata[i - 1])->map;
    }
    cr->left = 1;
    while (pos < end) {
        bool set = false;
        uint64_t stop = cr->with_pending ? end : overlay_run(s->overlay, pos, end, &set);

        if (set) {
            read_from(cr, s->active, pos, NULL, pos, stop);
        } else {
            read_maps(cr, maps, n, pos, stop);
        }
        pos = stop;
    }
    if (cr->left > 1) {
        composed_put(cr, 0);
        return;
    }
    /* All from memory: done() must not run inside the submission. */
    BlockRequest *orig = cr->orig;
    if (cr->lock) {
        block_range_release(cr->lock, &cr->range);
    }
    g_free(cr);
    block_complete_later(orig, 0);
}

static void composed_granted(BlockRange *range)
{
    composed_start((ComposedRead *)((char *)range - offsetof(ComposedRead, range)));
}

void secondary_read(BlockSecondary *s, BlockRequest *req, bool with_pending,
                    BlockRangeLock *lock)
{
    ComposedRead *cr = g_new0(ComposedRead, 1);

    cr->s = s;
    cr->orig = req;
    cr->with_pending = with_pending;
    cr->lock = lock;
    cr->range = (BlockRange){
        .start = req->offset, .end = req->offset + req->bytes, .fn = composed_granted};
    if (!lock || block_range_acquire(lock, &cr->range)) {
        composed_start(cr);
    }
}

/* --- The SVM's writes --- */

typedef struct SvmWrite {
    BlockSecondary *s;
    BlockRequest *orig;
    BlockRequest sub;
    BlockRange range;
    bool to_overlay;
    bool then_flush; /* instead of FUA: the journal has to follow */
    unsigned generation;
} SvmWrite;

/* A write that is answered when a flush after it has ended. */
typedef struct FlushAfter {
    BlockRequest req;
    BlockRequest *orig;
} FlushAfter;

static void flush_after_done(BlockRequest *req, int ret)
{
    FlushAfter *fa = req->opaque;
    BlockRequest *orig = fa->orig;

    g_free(fa);
    orig->done(orig, ret);
}

static void flush_after(BlockSecondary *s, BlockRequest *orig)
{
    FlushAfter *fa = g_new0(FlushAfter, 1);

    fa->orig = orig;
    fa->req.op = BLOCK_OP_FLUSH;
    fa->req.done = flush_after_done;
    fa->req.opaque = fa;
    secondary_submit(s->node, &fa->req);
}

static void active_flushed(BlockRequest *req, int ret)
{
    BlockSecondary *s = req->opaque;

    s->active_flushing = false;
    g_free(req);
}

/* What the SVM writes becomes durable bit by bit: so a takeover has little to wait for. */
static void active_flush(BlockSecondary *s, uint64_t bytes)
{
    s->active_dirty += bytes;
    if (s->active_dirty < ACTIVE_DIRTY || s->active_flushing) {
        return;
    }
    BlockRequest *req = g_new0(BlockRequest, 1);

    s->active_dirty = 0;
    s->active_flushing = true;
    req->op = BLOCK_OP_FLUSH;
    req->done = active_flushed;
    req->opaque = s;
    block_submit(s->active, req);
}

static void svm_write_done(BlockRequest *sub, int ret)
{
    SvmWrite *w = sub->opaque;
    BlockSecondary *s = w->s;
    BlockRequest *orig = w->orig;
    uint64_t end = orig->offset + orig->bytes;
    bool then_flush = w->then_flush && ret == 0;

    if (!w->to_overlay && ret == 0) {
        secondary_note_newer(s, orig->offset, end);
    }
    if (w->to_overlay) {
        s->overlay_writes--;
        active_flush(s, orig->bytes);
        if (ret == 0 && w->generation == s->generation) {
            overlay_set(s->overlay, orig->offset, end);
            if (s->journal_set) {
                overlay_set(s->journal_set, orig->offset, end);
            }
            if (overlay_bytes(s->overlay) > (s->shared ? OVERLAY_SOFT_SHARED : OVERLAY_SOFT)) {
                secondary_ask(s, "the secondary's guest has written much");
            }
        }
    }
    block_range_release(&s->ranges, &w->range);
    g_free(w);
    if (s->state == SECONDARY_TAKEOVER) {
        secondary_takeover_step(s);
    }
    if (then_flush) {
        flush_after(s, orig);
    } else {
        orig->done(orig, ret);
    }
}

static void svm_write_start(SvmWrite *w)
{
    BlockSecondary *s = w->s;
    uint64_t start = w->orig->offset, end = start + w->orig->bytes;

    w->sub = *w->orig;
    w->sub.done = svm_write_done;
    w->sub.opaque = w;
    if (w->sub.op == BLOCK_OP_TRIM) {
        w->sub.op = BLOCK_OP_ZEROES;
        w->sub.flags |= BLOCK_REQ_MAY_UNMAP;
    }
    w->to_overlay = s->state == SECONDARY_IDLE || s->state == SECONDARY_LOGGING;
    if (w->to_overlay) {
        w->sub.flags &= ~BLOCK_REQ_FUA;
        w->generation = s->generation;
        s->overlay_writes++;
        block_submit(s->active, &w->sub);
        return;
    }
    if (s->journal_set && (w->sub.flags & BLOCK_REQ_FUA)) {
        w->sub.flags &= ~BLOCK_REQ_FUA;
        w->then_flush = true;
    }
    /* Newer than anything that is still to be merged there. */
    secondary_layers_remove(s, start, end);
    overlay_clear(s->overlay, start, end);
    block_front_submit(s->parent, NULL, &w->sub);
}

static void svm_write_granted(BlockRange *range)
{
    svm_write_start((SvmWrite *)((char *)range - offsetof(SvmWrite, range)));
}

static void svm_write(BlockSecondary *s, BlockRequest *req)
{
    if (req->offset % BLOCK_SECTOR || req->bytes % BLOCK_SECTOR) {
        block_complete_later(req, -EINVAL);
        return;
    }
    SvmWrite *w = g_new0(SvmWrite, 1);

    w->s = s;
    w->orig = req;
    w->range = (BlockRange){.start = req->offset,
                            .end = req->offset + req->bytes,
                            .write = true,
                            .fn = svm_write_granted};
    if (block_range_acquire(&s->ranges, &w->range)) {
        svm_write_start(w);
    }
}

void secondary_submit(BlockNode *node, BlockRequest *req)
{
    BlockSecondary *s = node->opaque;

    if (s->state == SECONDARY_LIVE) {
        /* A flush must see what the merge and earlier guest writes put into the image. */
        block_front_submit(s->parent, NULL, req);
        return;
    }
    if (s->state == SECONDARY_FAILED) {
        block_complete_later(req, -EIO);
        return;
    }
    switch (req->op) {
    case BLOCK_OP_READ:
        secondary_read(s, req, false, &s->ranges);
        break;
    case BLOCK_OP_WRITE:
    case BLOCK_OP_ZEROES:
    case BLOCK_OP_TRIM:
        svm_write(s, req);
        break;
    case BLOCK_OP_FLUSH:
        if (s->state == SECONDARY_TAKEOVER) {
            g_queue_push_tail(&s->flushes, req);
            secondary_flush_kick(s);
        } else {
            /* Nothing of the SVM is stable before it takes over. */
            block_complete_later(req, 0);
        }
        break;
    case BLOCK_OP_STATUS: {
        BlockExtent e = {.bytes = req->bytes};

        g_array_append_val(req->extents, e);
        block_complete_later(req, 0);
        break;
    }
    }
}
