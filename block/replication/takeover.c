/*
 * Takeover of a disk: log and overlay become the image's content, and are durable, before the
 * disk serves.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The pending log is dropped, the committed layers go on being applied. Then, by phases:
 *
 *   APPLY    until no layer is left
 *   MERGE    (an overlay up to merge_at_once) it is copied into the image
 *   END      the image is flushed; the node becomes it: LIVE, and serves
 *
 *   FLUSH    (a larger overlay) active disk and image are flushed
 *   JOURNAL  the file beside the image gets to say what is to be copied (journal.c), by a
 *            thread of its own; durable now, so the disk serves
 *   MERGE    in the background, with events
 *   END      the image is flushed
 *   REMOVE   the journal goes, durably; only then LIVE
 *
 * The guest's requests are answered all the while. While a journal is in force a flush of
 * the guest is: flush the image, then take out of the journal what the guest has written
 * since, then answer. From END on it waits for LIVE: while the file is there, the next start
 * copies what it says over whatever is newer. A journal that cannot be written makes the
 * takeover one of the first kind: it takes longer.
 */
#include "journal.h"
#include "secondary-int.h"
#include "../activity-log.h"

#include <inttypes.h>

int secondary_test_hold_merge;
uint64_t secondary_merge_at_once = 8 * 1024 * 1024;

/* Work of a thread that may block. */
typedef struct JournalJob {
    BlockSecondary *s; /* NULL: it has gone */
    char *path, *active, *format;
    uint64_t size;
    GArray *ranges;
    enum { JOB_CREATE, JOB_APPEND, JOB_REMOVE } kind;
    GError *err;
} JournalJob;

static void takeover_event(BlockSecondary *s, const char *status)
{
    JsonObject *o = json_object_new();
    uint64_t left = overlay_bytes(s->overlay);

    json_object_set_string_member(o, "device",
                                  s->export_name ? s->export_name : s->parent->name);
    json_object_set_string_member(o, "status", status);
    json_object_set_int_member(o, "len", s->merge_total);
    json_object_set_int_member(o, "offset",
                               s->merge_total - MIN(left, s->merge_total));
    if (s->error) {
        json_object_set_string_member(o, "error", s->error);
    }
    block_event("COLO_DISK_MERGE", o);
}

/* --- Ends --- */

static void release_waiters(BlockSecondary *s)
{
    for (guint i = 0; i < s->waiters->len; i++) {
        block_wait_done(s->waiters->pdata[i], s->error ? -EIO : 0);
    }
    g_ptr_array_set_size(s->waiters, 0);
}

static void takeover_live(BlockSecondary *s)
{
    BlockRequest *req;

    s->state = s->error ? SECONDARY_FAILED : SECONDARY_LIVE;
    colo_trace(block_takeover_end, "%s: %s", s->parent->name,
               secondary_state_name(s->state));
    release_waiters(s);
    if (s->serving) {
        takeover_event(s, s->error ? "failed" : "completed");
    }
    if (!s->error) {
        secondary_step("takeover-live");
    }
    s->serving = false;
    while ((req = g_queue_pop_head(&s->flushes))) {
        secondary_submit(s->node, req);
    }
    secondary_check_settled(s);
}

static void takeover_flushed(BlockRequest *req, int ret)
{
    BlockSecondary *s = req->opaque;

    g_free(req);
    s->flushing--;
    if (ret < 0) {
        secondary_fail(s, "the disk cannot be flushed: %s", g_strerror(-ret));
    }
    secondary_takeover_step(s);
}

static void takeover_flush(BlockSecondary *s, BlockNode *node)
{
    BlockRequest *req = g_new0(BlockRequest, 1);

    req->op = BLOCK_OP_FLUSH;
    req->done = takeover_flushed;
    req->opaque = s;
    s->flushing++;
    if (node == s->parent) {
        block_front_submit(node, NULL, req);
    } else {
        block_submit(node, req);
    }
}

/* --- The journal --- */

static void flushes_done(BlockSecondary *s, int ret)
{
    BlockRequest *req;

    s->flush_busy = false;
    while ((req = g_queue_pop_head(&s->flush_batch))) {
        req->done(req, ret);
    }
    secondary_flush_kick(s);
    secondary_takeover_step(s);
}

static gboolean job_done(gpointer opaque)
{
    JournalJob *job = opaque;
    BlockSecondary *s = job->s;

    if (s) {
        s->job = NULL;
        if (job->err) {
            colo_report("disk '%s': %s", s->parent->name, job->err->message);
        }
        if (job->kind == JOB_CREATE) {
            s->journaled = !job->err;
            s->serving = s->journaled;
            s->phase = TAKEOVER_MERGE;
            if (s->serving) {
                secondary_step("takeover-journal");
                s->merge_total = overlay_bytes(s->overlay);
                takeover_event(s, "started");
                g_clear_pointer(&s->marker, g_free); /* the journal is in its place */
                release_waiters(s);
            }
            secondary_flush_kick(s);
            secondary_takeover_step(s);
        } else if (job->kind == JOB_APPEND) {
            if (job->err) {
                /* They are noted but once: the next flush must say them. */
                g_array_append_vals(s->newer, job->ranges->data, job->ranges->len);
            }
            flushes_done(s, job->err ? -EIO : 0);
        } else {
            s->journaled = false;
            takeover_live(s);
        }
    }
    g_clear_error(&job->err);
    g_clear_pointer(&job->ranges, g_array_unref);
    g_free(job->path);
    g_free(job->active);
    g_free(job->format);
    g_free(job);
    return G_SOURCE_REMOVE;
}

static gpointer job_thread(gpointer opaque)
{
    JournalJob *job = opaque;

    switch (job->kind) {
    case JOB_CREATE:
        journal_create(job->path, job->size, job->active, job->format, job->ranges,
                       &job->err);
        break;
    case JOB_APPEND:
        journal_append(job->path, job->ranges, &job->err);
        break;
    case JOB_REMOVE:
        journal_remove(job->path, &job->err);
        break;
    }
    io_thread_post(block_thread(), job_done, job);
    return NULL;
}

/* Takes @ranges. */
static void job_start(BlockSecondary *s, int kind, GArray *ranges)
{
    JournalJob *job = g_new0(JournalJob, 1);

    job->s = s;
    job->kind = kind;
    job->path = g_strconcat(s->parent->filename, ".colo", NULL);
    job->active = g_strdup(s->active->filename);
    job->format = g_strdup(s->active->format);
    job->size = s->parent->size;
    job->ranges = ranges;
    s->job = job;
    g_thread_unref(g_thread_new("colo-journal", job_thread, job));
}

void secondary_journal_forget(BlockSecondary *s)
{
    if (s->job) {
        ((JournalJob *)s->job)->s = NULL;
    }
    overlay_free(s->journal_set);
    g_clear_pointer(&s->newer, g_array_unref);
}

static GArray *set_ranges(Overlay *o, uint64_t size)
{
    GArray *ranges = g_array_new(FALSE, FALSE, sizeof(JournalRange));
    uint64_t pos = 0;

    while ((pos = overlay_next(o, pos)) != UINT64_MAX) {
        bool set;
        JournalRange r = {pos, overlay_run(o, pos, size, &set)};

        g_array_append_val(ranges, r);
        pos = r.end;
    }
    return ranges;
}

/* What the overlay holds before the guest's first write to the image is what the journal
 * will say: whichever of those writes is lost in a crash, the sector has what was before. */
static void snapshot(BlockSecondary *s)
{
    g_autoptr(GArray) ranges = set_ranges(s->overlay, s->node->size);

    overlay_free(s->journal_set);
    s->journal_set = overlay_new(s->node->size);
    for (guint i = 0; i < ranges->len; i++) {
        JournalRange *r = &g_array_index(ranges, JournalRange, i);

        overlay_set(s->journal_set, r->start, r->end);
    }
    g_clear_pointer(&s->newer, g_array_unref);
    s->newer = g_array_new(FALSE, FALSE, sizeof(JournalRange));
}

void secondary_note_newer(BlockSecondary *s, uint64_t start, uint64_t end)
{
    JournalRange r = {start, end};

    if (s->journal_set && overlay_next(s->journal_set, start) < end) {
        if (s->journaled) {
            overlay_clear(s->journal_set, start, end); /* need be said but once */
        }
        g_array_append_val(s->newer, r);
    }
}

/* --- The guest's flushes while the journal is in force --- */

static void flush_done(BlockRequest *req, int ret)
{
    BlockSecondary *s = req->opaque;

    g_free(req);
    if (ret < 0 || s->flush_newer->len == 0) {
        /* After a failed flush nothing is known: what it covered stays to be said. */
        if (ret < 0) {
            g_array_append_vals(s->newer, s->flush_newer->data, s->flush_newer->len);
        }
        g_clear_pointer(&s->flush_newer, g_array_unref);
        flushes_done(s, ret);
        return;
    }
    job_start(s, JOB_APPEND, g_steal_pointer(&s->flush_newer));
}

void secondary_flush_kick(BlockSecondary *s)
{
    BlockRequest *req;

    /* In the END they wait for the image's own flush. */
    if (!s->serving || s->phase != TAKEOVER_MERGE || s->flush_busy || s->job ||
        g_queue_is_empty(&s->flushes)) {
        return;
    }
    s->flush_busy = true;
    while ((req = g_queue_pop_head(&s->flushes))) {
        g_queue_push_tail(&s->flush_batch, req);
    }
    s->flush_newer = s->newer;
    s->newer = g_array_new(FALSE, FALSE, sizeof(JournalRange));
    req = g_new0(BlockRequest, 1);
    req->op = BLOCK_OP_FLUSH;
    req->done = flush_done;
    req->opaque = s;
    block_front_submit(s->parent, NULL, req);
}

/* --- Phases --- */

static void phase_apply(BlockSecondary *s)
{
    if (s->layers->len > 0) {
        secondary_apply(s);
    }
    if (s->layers->len > 0 || s->applying || s->through || s->overlay_writes) {
        return;
    }
    if (s->journaled) { /* a second try */
        s->phase = TAKEOVER_MERGE;
        s->serving = true;
        release_waiters(s);
        secondary_flush_kick(s);
    } else if (!s->journal_set) {
        s->phase = TAKEOVER_MERGE;
    } else {
        s->phase = TAKEOVER_FLUSH;
        takeover_flush(s, s->parent);
        takeover_flush(s, s->active);
    }
    secondary_takeover_step(s);
}

void secondary_takeover_step(BlockSecondary *s)
{
    if (s->state != SECONDARY_TAKEOVER || s->flushing) {
        return;
    }
    if (s->error) {
        if (!s->merging && !s->applying && !s->flush_busy && !s->job) {
            takeover_live(s);
        }
        return;
    }
    switch (s->phase) {
    case TAKEOVER_APPLY:
        phase_apply(s);
        break;
    case TAKEOVER_FLUSH:
        s->phase = TAKEOVER_JOURNAL;
        job_start(s, JOB_CREATE, set_ranges(s->journal_set, s->node->size));
        break;
    case TAKEOVER_JOURNAL:
        break;
    case TAKEOVER_MERGE:
        if (s->serving && s->merge_told + MERGE_TELL <
                              s->merge_total - MIN(overlay_bytes(s->overlay),
                                                   s->merge_total)) {
            s->merge_told = s->merge_total - overlay_bytes(s->overlay);
            takeover_event(s, "running");
        }
        if (secondary_merge(s) && !s->flush_busy && !s->job) {
            s->phase = TAKEOVER_END;
            takeover_flush(s, s->parent);
        }
        break;
    case TAKEOVER_END:
        if (s->serving) {
            s->phase = TAKEOVER_REMOVE;
            job_start(s, JOB_REMOVE, NULL);
        } else {
            takeover_live(s);
        }
        break;
    case TAKEOVER_REMOVE:
        break;
    }
}

void secondary_takeover_begin(BlockSecondary *s)
{
    colo_trace(block_takeover_begin,
               "%s: log %" PRIu64 ", overlay %" PRIu64, s->parent->name, s->log.memory,
               overlay_bytes(s->overlay));
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
    if (!s->journaled && s->marker && s->active->filename && s->active->format &&
        !s->shared && overlay_bytes(s->overlay) > secondary_merge_at_once &&
        /* What stands beside a device is gone with the power: merge first, then serve. */
        g_file_test(s->parent->filename, G_FILE_TEST_IS_REGULAR)) {
        snapshot(s);
    }
    s->phase = TAKEOVER_APPLY;
    s->state = SECONDARY_TAKEOVER;
    secondary_drop_pending(s);
    nbd_server_drop_writers(s->parent);
    secondary_apply(s);
    secondary_takeover_step(s);
}
