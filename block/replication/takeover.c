/*
 * Takeover of a disk: log and overlay flow into the image while the guest runs.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The pending log is dropped, the committed log goes on being applied, and runs of the
 * overlay are copied into the image. Each copy holds its range in the disk's range lock,
 * so a guest write to it either came before (and has cleared its sectors) or waits and
 * then overwrites. When nothing is left the image is flushed, and the node becomes it.
 */
#include "secondary-int.h"
#include "../activity-log.h"

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

static void takeover_live(BlockSecondary *s)
{
    BlockRequest *req;

    s->state = s->error ? SECONDARY_FAILED : SECONDARY_LIVE;
    colo_trace(block_takeover_end, "%s: %s", s->parent->name,
               secondary_state_name(s->state));
    for (guint i = 0; i < s->waiters->len; i++) {
        block_wait_done(s->waiters->pdata[i], s->error ? -EIO : 0);
    }
    g_ptr_array_set_size(s->waiters, 0);
    while ((req = g_queue_pop_head(&s->flushes))) {
        secondary_submit(s->node, req);
    }
}

static void takeover_flushed(BlockRequest *req, int ret)
{
    BlockSecondary *s = req->opaque;

    g_free(req);
    s->flushing = false;
    if (ret < 0) {
        secondary_fail(s, "the image cannot be flushed: %s", g_strerror(-ret));
    }
    takeover_live(s);
}

void secondary_takeover_step(BlockSecondary *s)
{
    uint64_t pos = 0;

    if (s->state != SECONDARY_TAKEOVER || s->flushing) {
        return;
    }
    if (s->error) {
        if (!s->merging && !s->applying) {
            takeover_live(s);
        }
        return;
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
    if (s->merging || s->applying || s->through || s->overlay_writes) {
        return;
    }
    if (overlay_bytes(s->overlay) > 0) {
        /* Left by an overlay write that ended after its place was scanned, or by a merge
         * that found its run split. */
        s->merge_scan_done = false;
        s->merge_pos = 0;
        secondary_takeover_step(s);
        return;
    }
    if (s->layers->len > 0) {
        secondary_apply(s);
        if (s->layers->len > 0) {
            return;
        }
    }
    BlockRequest *req = g_new0(BlockRequest, 1);
    req->op = BLOCK_OP_FLUSH;
    req->done = takeover_flushed;
    req->opaque = s;
    s->flushing = true;
    block_front_submit(s->parent, NULL, req);
}

void secondary_takeover_begin(BlockSecondary *s)
{
    colo_trace(block_takeover_begin,
               "%s: log %" G_GUINT64_FORMAT ", overlay %" G_GUINT64_FORMAT,
               s->parent->name, s->log.memory, overlay_bytes(s->overlay));
    secondary_step("takeover-begin");
    activity_log_set_mode(activity_log_of(s->parent), ACTIVITY_LOG_ALONE);
    if (s->state == SECONDARY_IDLE) {
        /* No checkpoint ever came: the overlay of a machine that never ran means nothing.
         */
        overlay_clear_all(s->overlay);
        s->generation++;
    }
    if (s->error) {
        /* A second try: what was not written is still in the map. */
        g_clear_pointer(&s->error, g_free);
        secondary_apply_again(s);
    }
    s->merge_scan_done = false;
    s->merge_pos = 0;
    s->state = SECONDARY_TAKEOVER;
    secondary_drop_pending(s);
    nbd_server_drop_writers(s->parent);
    secondary_apply(s);
    secondary_takeover_step(s);
}
