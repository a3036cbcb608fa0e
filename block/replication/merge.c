/*
 * Runs of the overlay are copied into the image while the guest runs and writes.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Each copy holds its range in the disk's range lock, so a guest write to it either came
 * before (and has cleared its sectors) or waits and then overwrites.
 */
#include "secondary-int.h"

typedef struct MergeOp {
    BlockSecondary *s;
    BlockRange range;
    BlockRequest req;
} MergeOp;

static void merge_end(MergeOp *op, int ret)
{
    BlockSecondary *s = op->s;

    if (ret < 0) {
        secondary_fail(s, "the takeover cannot %s: %s",
                       op->req.op == BLOCK_OP_READ ? "read the active disk"
                                                   : "write the image",
                       g_strerror(-ret));
    } else {
        overlay_clear(s->overlay, op->req.offset, op->req.offset + op->req.bytes);
    }
    secondary_step("takeover-merged");
    s->merging--;
    block_range_release(&s->ranges, &op->range);
    block_buf_unref(op->req.buf);
    g_free(op);
    secondary_takeover_step(s);
}

static void merge_written(BlockRequest *req, int ret)
{
    merge_end(req->opaque, ret);
}

static void merge_read(BlockRequest *req, int ret)
{
    MergeOp *op = req->opaque;
    BlockSecondary *s = op->s;

    if (ret < 0) {
        merge_end(op, ret);
        return;
    }
    /* The overlay is newer than the committed log. */
    secondary_layers_remove(s, req->offset, req->offset + req->bytes);
    req->op = BLOCK_OP_WRITE;
    req->flags = BLOCK_REQ_BACKGROUND;
    req->done = merge_written;
    block_front_submit(s->parent, NULL, req);
}

static void merge_start(MergeOp *op)
{
    BlockSecondary *s = op->s;
    uint64_t start = overlay_next(s->overlay, op->range.start);
    bool set;

    if (start >= op->range.end) {
        /* Guest writes have cleared all of it: nothing to copy. */
        op->req.bytes = 0;
        op->req.offset = op->range.start;
        merge_end(op, 0);
        return;
    }
    op->req.op = BLOCK_OP_READ;
    op->req.offset = start;
    op->req.bytes = overlay_run(s->overlay, start, op->range.end, &set) - start;
    op->req.buf = block_buf_new(op->req.bytes);
    op->req.data = op->req.buf->data;
    op->req.done = merge_read;
    op->req.opaque = op;
    block_submit(s->active, &op->req);
}

static void merge_granted(BlockRange *range)
{
    merge_start((MergeOp *)((char *)range - offsetof(MergeOp, range)));
}

bool secondary_merge(BlockSecondary *s)
{
    uint64_t pos = 0;

    if (secondary_test_hold_merge) {
        return false;
    }
    /* One operation a distinct chunk: ranges in the lock's queue are not started twice.
     */
    while (s->merging < MERGE_DEPTH && !s->merge_scan_done) {
        pos = overlay_next(s->overlay, s->merge_pos);
        if (pos == UINT64_MAX) {
            s->merge_scan_done = true;
            break;
        }
        MergeOp *op = g_new0(MergeOp, 1);
        bool set;

        op->s = s;
        op->range =
            (BlockRange){.start = pos,
                         .end = overlay_run(s->overlay, pos,
                                            MIN(pos + MERGE_CHUNK, s->node->size), &set),
                         .write = true,
                         .fn = merge_granted};
        s->merge_pos = op->range.end;
        s->merging++;
        if (block_range_acquire(&s->ranges, &op->range)) {
            merge_start(op);
        }
    }
    if (s->merging) {
        return false;
    }
    if (overlay_bytes(s->overlay) > 0) {
        /* Left by an overlay write that ended after its place was scanned, or by a merge
         * that found its run split. */
        s->merge_scan_done = false;
        s->merge_pos = 0;
        return secondary_merge(s);
    }
    return true;
}
