/*
 * The activity log: regions that were left alone cool down.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * One round at a time: choose regions; paired: flush this image, then the peer's, and
 * forget their granules; write the pages of granules that changed, and make them durable;
 * then the regions are not hot any more, of which the file may learn at any later time. A
 * region that was written to meanwhile stays hot.
 */
#include "activity-log-int.h"

#include <errno.h>

typedef struct ActivityCool {
    ActivityLog *log;
    DirtyBitmap *regions; /* chosen */
    DirtyBitmap *pages;   /* being written: granules that they name */
    uint32_t since;
    bool forget;
    unsigned page;
    BlockRequest flush;
} ActivityCool;

static void cool_end(ActivityCool *c)
{
    ActivityLog *log = c->log;

    dirty_bitmap_free(c->regions);
    dirty_bitmap_free(c->pages);
    g_free(c);
    log->cooling = false;
    if (log->closed) {
        activity_log_free(log);
    }
}

/* Whether region @pos was left alone since the round began. */
static bool still_idle(ActivityCool *c, uint64_t pos)
{
    return (int32_t)(c->log->region[pos / AL_REGION].last - c->since) < 0;
}

static void cool_synced(void *opaque, int res)
{
    ActivityCool *c = opaque;
    ActivityLog *log = c->log;
    uint64_t pos = 0, cooled = 0;

    if (res < 0) {
        activity_log_failed(log, "flushed", -res);
    } else if (!log->closed) {
        dirty_bitmap_merge(log->saved, c->pages);
        for (; (pos = dirty_bitmap_next(c->regions, pos)) != UINT64_MAX; pos += AL_REGION) {
            if (still_idle(c, pos) && dirty_bitmap_get(log->hot, pos)) {
                dirty_bitmap_clear(log->hot, pos, pos + AL_REGION);
                log->hot_changed[pos / AL_REGION / AL_PAGE_BITS] = true;
                cooled++;
            }
        }
        colo_trace(activity_log_cool, "%s: %" G_GUINT64_FORMAT " regions, %" G_GUINT64_FORMAT
                   " bytes differ", log->node->name, cooled, dirty_bitmap_bytes(log->dirty));
    }
    bool go = res >= 0 && !log->closed;
    cool_end(c);
    if (go) {
        activity_log_write_hot(log);
    }
}

static void cool_write(ActivityCool *c);

static void cool_written(void *opaque, int res)
{
    ActivityCool *c = opaque;

    if (res != AL_PAGE) {
        activity_log_failed(c->log, "written", res < 0 ? -res : EIO);
        cool_end(c);
        return;
    }
    c->page++;
    cool_write(c);
}

/* Whether page @i of granules holds a chosen region, and the bytes that it is about. */
static bool page_chosen(ActivityCool *c, unsigned i, uint64_t *start, uint64_t *end)
{
    *start = (uint64_t)i * AL_PAGE_BITS * AL_GRANULE;
    *end = MIN(*start + AL_PAGE_BITS * AL_GRANULE, c->log->file.size);
    return dirty_bitmap_next(c->regions, *start) < *end;
}

static void cool_write(ActivityCool *c)
{
    ActivityLog *log = c->log;
    unsigned n = activity_log_dirty_pages(log->file.size);
    uint64_t start = 0, end = 0;

    while (c->page < n && !page_chosen(c, c->page, &start, &end)) {
        c->page++;
    }
    if (log->dead || log->closed) {
        cool_end(c);
        return;
    }
    if (c->page == n) {
        block_uring_fdatasync(log->file.fd, cool_synced, c);
        return;
    }
    uint64_t offset = activity_log_page(&log->file, false, c->page, log->dirty,
                                        log->dirty_page);
    /* Nobody may rely on what it takes out; what it brings is sure once it is durable. */
    for (uint64_t pos = start; (pos = dirty_bitmap_next(log->saved, pos)) < end;
         pos += AL_GRANULE) {
        if (!dirty_bitmap_get(log->dirty, pos)) {
            dirty_bitmap_clear(log->saved, pos, pos + AL_GRANULE);
        }
    }
    for (uint64_t pos = start; (pos = dirty_bitmap_next(log->dirty, pos)) < end;
         pos += AL_GRANULE) {
        dirty_bitmap_set(c->pages, pos, pos + 1);
    }
    block_uring_write(log->file.fd, log->dirty_page, AL_PAGE, offset, false, cool_written, c);
}

/* --- Paired: both images are flushed, then what was committed is forgotten --- */

static void peer_flushed(BlockRequest *req, int ret)
{
    ActivityCool *c = req->opaque;
    ActivityLog *log = c->log;

    if (ret < 0 || log->closed || log->dead) {
        colo_trace(activity_log_kept, "flush: %s", g_strerror(-ret));
        cool_end(c);
        return;
    }
    for (uint64_t pos = 0; (pos = dirty_bitmap_next(c->regions, pos)) != UINT64_MAX;
         pos += AL_REGION) {
        if (still_idle(c, pos)) {
            dirty_bitmap_clear(log->dirty, pos, pos + AL_REGION);
        }
    }
    cool_write(c);
}

static void image_flushed(BlockRequest *req, int ret)
{
    ActivityCool *c = req->opaque;

    req->done = peer_flushed;
    if (ret < 0 || c->log->closed || !block_primary_flush_peer(c->log->node, req)) {
        cool_end(c);
    }
}

/* What may cool: hot or differing regions that were left alone, if paired also committed. */
static DirtyBitmap *choose(ActivityLog *log)
{
    DirtyBitmap *out = dirty_bitmap_new(log->file.size, AL_REGION);
    bool paired = log->mode == ACTIVITY_LOG_PAIRED;

    for (uint64_t pos = 0; pos < log->file.size; pos += AL_REGION) {
        uint64_t next = dirty_bitmap_next(log->hot, pos);

        if (paired) {
            next = MIN(next, dirty_bitmap_next(log->dirty, pos));
        }
        if (next == UINT64_MAX) {
            break;
        }
        pos = next / AL_REGION * AL_REGION;
        uint64_t r = pos / AL_REGION;
        if (activity_log_idle(log, r) &&
            (!paired || log->region[r].barrier < log->committed)) {
            dirty_bitmap_set(out, pos, pos + 1);
        }
    }
    return out;
}

void activity_log_cool(ActivityLog *log)
{
    if (log->cooling || log->switching || log->dead || log->closed || log->writing ||
        log->node->read_only || log->mode == ACTIVITY_LOG_FOLLOWING) {
        return;
    }
    DirtyBitmap *regions = choose(log);
    if (dirty_bitmap_bytes(regions) == 0) {
        dirty_bitmap_free(regions);
        activity_log_write_hot(log);
        return;
    }
    ActivityCool *c = g_new0(ActivityCool, 1);
    c->log = log;
    c->regions = regions;
    c->pages = dirty_bitmap_new(log->file.size, AL_GRANULE);
    c->since = activity_log_now();
    c->forget = log->mode == ACTIVITY_LOG_PAIRED;
    log->cooling = true;
    if (!c->forget) {
        cool_write(c);
        return;
    }
    c->flush.op = BLOCK_OP_FLUSH;
    c->flush.done = image_flushed;
    c->flush.opaque = c;
    block_submit(log->node, &c->flush);
}
