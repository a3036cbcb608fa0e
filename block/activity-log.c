/*
 * The activity log: writes wait here until their region is hot. activity-log.h has the
 * essay.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "activity-log-int.h"

#include <sys/stat.h>
#include <unistd.h>

/* Most regions that are made hot ahead of a sequential writer. */
#define AHEAD_MAX 16

/* Room singleton: constants but for tests. */
static struct {
    unsigned idle_ms, look_ms;
} times = {10000, 3000};

void activity_log_set_times(unsigned idle_ms, unsigned look_ms)
{
    times.idle_ms = idle_ms;
    times.look_ms = look_ms;
}

uint32_t activity_log_now(void)
{
    return g_get_monotonic_time() / 1000;
}

bool activity_log_idle(ActivityLog *log, uint64_t region)
{
    return activity_log_now() - log->region[region].last >= times.idle_ms;
}

ActivityLog *activity_log_of(BlockNode *node)
{
    return (ActivityLog *)node->track;
}

char *activity_log_new_generation(void)
{
    return g_uuid_string_random();
}

/* --- Hot regions --- */

static bool regions_are_hot(ActivityLog *log, const BlockHooked *hd)
{
    return dirty_bitmap_all(log->hot_saved, hd->sub.offset,
                            hd->sub.offset + hd->sub.bytes);
}

static void release_waiters(ActivityLog *log)
{
    GList *next;

    for (GList *l = log->waiting.head; l; l = next) {
        BlockHooked *hd = l->data;

        next = l->next;
        if (log->dead || (!log->switching && regions_are_hot(log, hd))) {
            g_queue_unlink(&log->waiting, l);
            block_hook_go(hd);
        }
    }
}

/* The file cannot be trusted any more: better none than a wrong one. */
void activity_log_failed(ActivityLog *log, const char *what, int err)
{
    if (log->dead) {
        return;
    }
    log->dead = true;
    colo_report("'%s' cannot be %s: %s; it is given up, and a returning host must copy all "
                "of disk '%s'", log->file.path, what, g_strerror(err), log->node->name);
    if (unlink(log->file.path) != 0 && errno != ENOENT && ftruncate(log->file.fd, 0) != 0) {
        colo_report("'%s' cannot be removed either: remove it by hand, it is wrong",
                    log->file.path);
    }
    release_waiters(log);
}

static void hot_written(void *opaque, int res)
{
    ActivityLog *log = opaque;

    log->writing = false;
    if (res != AL_PAGE) {
        activity_log_failed(log, "written", res < 0 ? -res : EIO);
    } else if (log->writing_header) {
        log->writing_header = false;
    } else {
        dirty_bitmap_merge(log->hot_saved, log->hot_writing);
        dirty_bitmap_clear(log->hot_writing, 0, log->file.size);
    }
    if (log->closed) {
        activity_log_free(log);
        return;
    }
    release_waiters(log);
    activity_log_write_hot(log);
}

/* The first page of hot regions that the file lacks or has too many of. */
static int next_hot_page(ActivityLog *log)
{
    for (unsigned i = 0; i < activity_log_hot_pages(log->file.size); i++) {
        if (log->hot_changed[i]) {
            return i;
        }
    }
    return -1;
}

void activity_log_write_hot(ActivityLog *log)
{
    uint64_t page_bytes = AL_PAGE_BITS * AL_REGION;
    int i = next_hot_page(log);

    if (log->writing || log->switching || log->dead || log->closed || i < 0) {
        return;
    }
    log->writing = true;
    if (log->file.clean) {
        log->file.clean = false;
        log->writing_header = true;
        activity_log_header(&log->file, log->page);
        block_uring_write(log->file.fd, log->page, AL_PAGE, 0, true, hot_written, log);
        return;
    }
    /* What the file holds is unsure until this write has ended: nobody may rely on a region
     * that it takes out. */
    uint64_t offset = activity_log_page(&log->file, true, i, log->hot, log->page);
    uint64_t start = i * page_bytes, end = MIN(start + page_bytes, log->file.size);
    for (uint64_t pos = start; (pos = dirty_bitmap_next(log->hot_saved, pos)) < end;
         pos += AL_REGION) {
        if (!dirty_bitmap_get(log->hot, pos)) {
            dirty_bitmap_clear(log->hot_saved, pos, pos + AL_REGION);
        }
    }
    for (uint64_t pos = start; (pos = dirty_bitmap_next(log->hot, pos)) < end;
         pos += AL_REGION) {
        dirty_bitmap_set(log->hot_writing, pos, pos + 1);
    }
    log->hot_changed[i] = false;
    log->hot_writes++;
    block_uring_write(log->file.fd, log->page, AL_PAGE, offset, true, hot_written, log);
}

static void make_hot(ActivityLog *log, uint64_t start, uint64_t end)
{
    for (uint64_t pos = start / AL_REGION * AL_REGION; pos < MIN(end, log->file.size);
         pos += AL_REGION) {
        if (!dirty_bitmap_get(log->hot, pos)) {
            dirty_bitmap_set(log->hot, pos, pos + 1);
            log->region[pos / AL_REGION].last = activity_log_now();
            log->hot_changed[pos / AL_REGION / AL_PAGE_BITS] = true;
        }
    }
}

static bool log_before(BlockHook *hook, BlockHooked *hd)
{
    ActivityLog *log = (ActivityLog *)hook;
    uint64_t start = hd->sub.offset, end = start + hd->sub.bytes;

    if (log->mode == ACTIVITY_LOG_FOLLOWING || log->dead) {
        return true;
    }
    dirty_bitmap_set(log->dirty, start, end);
    uint32_t now = activity_log_now();
    for (uint64_t r = start / AL_REGION; r <= (end - 1) / AL_REGION; r++) {
        log->region[r].last = now;
        log->region[r].barrier = log->barrier;
    }
    if (!log->switching && (dirty_bitmap_all(log->saved, start, end) ||
                            (regions_are_hot(log, hd) &&
                             dirty_bitmap_all(log->hot, start, end)))) {
        return true;
    }
    /* Ahead of a writer that goes forward: fewer waits. */
    bool forward = start >= AL_REGION && dirty_bitmap_get(log->hot, start - AL_REGION);
    log->ahead = forward ? MIN(MAX(log->ahead * 2, 1), AHEAD_MAX) : 0;
    make_hot(log, start, end + log->ahead * AL_REGION);
    log->waits++;
    g_queue_push_tail_link(&log->waiting, &hd->link);
    activity_log_write_hot(log);
    return false;
}

/* --- Life --- */

static ActivityLog *log_new(BlockNode *node, const char *path)
{
    ActivityLog *log = g_new0(ActivityLog, 1);
    uint64_t size = node->size;

    log->hook.before = log_before;
    log->node = node;
    log->file.fd = log->old_fd = -1;
    log->file.size = size;
    log->file.path = g_strdup(path);
    log->dirty = dirty_bitmap_new(size, AL_GRANULE);
    log->saved = dirty_bitmap_new(size, AL_GRANULE);
    log->hot = dirty_bitmap_new(size, AL_REGION);
    log->hot_saved = dirty_bitmap_new(size, AL_REGION);
    log->hot_writing = dirty_bitmap_new(size, AL_REGION);
    log->region = g_new0(ActivityRegion, size / AL_REGION + 1);
    log->hot_changed = g_new0(bool, activity_log_hot_pages(size) + 1);
    log->page_buf = block_buf_new(2 * AL_PAGE);
    log->page = log->page_buf->data;
    log->dirty_page = log->page + AL_PAGE;
    log->barrier = 1;
    return log;
}

void activity_log_free(ActivityLog *log)
{
    if (log->writing || log->cooling) {
        return; /* what is under way calls again */
    }
    if (log->file.fd >= 0) {
        close(log->file.fd);
    }
    if (log->old_fd >= 0) {
        close(log->old_fd);
    }
    dirty_bitmap_free(log->dirty);
    dirty_bitmap_free(log->saved);
    dirty_bitmap_free(log->hot);
    dirty_bitmap_free(log->hot_saved);
    dirty_bitmap_free(log->hot_writing);
    block_buf_unref(log->page_buf);
    g_free(log->region);
    g_free(log->hot_changed);
    g_free(log->file.path);
    g_free(log);
}

static gboolean look(gpointer opaque)
{
    activity_log_cool(opaque);
    return G_SOURCE_CONTINUE;
}

static void log_attach(ActivityLog *log)
{
    log->node->track = &log->hook;
    log->timer = io_thread_timer(block_thread(), times.look_ms, look, log);
}

/* When the image last changed, where that can be told: 0 if not. */
static uint64_t image_mtime(BlockNode *node)
{
    struct stat st;

    if (strcmp(node->drv->name, "file") || stat(node->filename, &st) != 0 ||
        !S_ISREG(st.st_mode)) {
        return 0;
    }
    return (uint64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
}

void activity_log_open(BlockNode *node)
{
    g_autofree char *path = activity_log_path(node->filename);
    g_autoptr(GError) err = NULL;

    if (access(path, F_OK) != 0) {
        return;
    }
    ActivityLog *log = log_new(node, NULL);
    if (!activity_log_read(&log->file, path, node->size, node->read_only, log->hot_saved,
                           log->saved, &err)) {
        colo_report("disk '%s': %s; it is not used", node->name, err->message);
    } else if (log->file.clean && log->file.mtime_ns &&
               log->file.mtime_ns != image_mtime(node)) {
        colo_report("disk '%s': image '%s' was changed by another program since '%s' was "
                    "written, which is removed; a returning host must copy all of the disk",
                    node->name, node->filename, path);
        unlink(path);
    } else {
        dirty_bitmap_merge(log->dirty, log->saved);
        dirty_bitmap_merge(log->dirty, log->hot_saved);
        dirty_bitmap_merge(log->hot, log->hot_saved);
        block_lock();
        log_attach(log);
        colo_trace(activity_log_open, "%s: generation '%s', %s, %" G_GUINT64_FORMAT
                   " bytes differ", node->name, log->file.generation,
                   log->file.clean ? "clean" : "not closed in order",
                   dirty_bitmap_bytes(log->dirty));
        block_unlock();
        return;
    }
    activity_log_free(log);
}

/* Wait, without the lock, until nothing of ours is on its way to the file; then nothing
 * starts until the switch is over. Under the lock again when it returns. */
static void switch_begin(ActivityLog *log)
{
    log->switching = true;
    while (log->writing || log->cooling) {
        g_main_context_wakeup(io_thread_context(block_thread()));
        block_unlock();
        g_usleep(500);
        block_lock();
    }
}

static void switch_end(ActivityLog *log)
{
    log->switching = false;
    for (GList *l = log->waiting.head; l; l = l->next) {
        BlockHooked *hd = l->data;

        make_hot(log, hd->sub.offset, hd->sub.offset + hd->sub.bytes);
    }
    release_waiters(log);
    activity_log_write_hot(log);
    g_main_context_wakeup(io_thread_context(block_thread()));
}

bool activity_log_begin(BlockNode *node, const char *generation, bool keep, GError **errp)
{
    g_autofree char *path = activity_log_path(node->filename);

    block_lock();
    ActivityLog *log = activity_log_of(node);
    bool fresh = !log || log->dead;
    if (log && log->dead) {
        node->track = NULL;
        io_source_destroy(&log->timer);
        log->closed = true;
        activity_log_free(log);
    }
    if (fresh) {
        log = log_new(node, path);
        log->switching = true;
        log_attach(log);
    } else {
        switch_begin(log);
    }
    if (!keep) {
        dirty_bitmap_clear(log->dirty, 0, node->size);
    }
    g_strlcpy(log->file.generation, generation, sizeof(log->file.generation));
    log->file.clean = false;
    log->file.mtime_ns = 0;
    dirty_bitmap_clear(log->hot, 0, node->size);
    dirty_bitmap_clear(log->hot_saved, 0, node->size);
    dirty_bitmap_clear(log->saved, 0, node->size);
    /* What is being written meanwhile is marked in @dirty, and waits. */
    g_autoptr(DirtyBitmap) none = dirty_bitmap_new(node->size, AL_REGION);
    g_autoptr(DirtyBitmap) dirty = dirty_bitmap_new(node->size, AL_GRANULE);
    dirty_bitmap_merge(dirty, log->dirty);
    block_unlock();
    bool ok = activity_log_write(&log->file, none, dirty, errp);
    block_lock();
    if (ok) {
        dirty_bitmap_merge(log->saved, dirty);
    } else {
        activity_log_failed(log, "written", EIO);
    }
    switch_end(log);
    colo_trace(activity_log_begin, "%s: generation '%s'", node->name, generation);
    block_unlock();
    return ok;
}

void activity_log_close(BlockNode *node, bool orderly)
{
    ActivityLog *log = activity_log_of(node);
    g_autoptr(GError) err = NULL;

    if (!log) {
        return;
    }
    node->track = NULL;
    io_source_destroy(&log->timer);
    log->closed = true;
    if (orderly && !log->dead && !node->read_only && g_queue_is_empty(&log->waiting)) {
        /* A page that is still being written goes to the old file. */
        log->old_fd = log->file.fd;
        log->file.fd = -1;
        dirty_bitmap_clear(log->hot, 0, node->size);
        log->file.clean = true;
        log->file.mtime_ns = image_mtime(node);
        if (!activity_log_write(&log->file, log->hot, log->dirty, &err)) {
            colo_report("disk '%s': %s", node->name, err->message);
        }
    }
    activity_log_free(log);
}

void activity_log_drop(BlockNode *node)
{
    ActivityLog *log = activity_log_of(node);

    if (log) {
        unlink(log->file.path);
        log->dead = true;
        release_waiters(log);
        activity_log_close(node, false);
    }
}

/* --- What others ask --- */

void activity_log_set_mode(ActivityLog *log, ActivityLogMode mode)
{
    if (log) {
        log->mode = mode;
    }
}

const char *activity_log_generation(ActivityLog *log)
{
    return log && !log->dead && log->file.generation[0] ? log->file.generation : NULL;
}

const DirtyBitmap *activity_log_dirty(ActivityLog *log)
{
    return log ? log->dirty : NULL;
}

void activity_log_barrier(ActivityLog *log)
{
    if (log) {
        log->barrier++;
    }
}

void activity_log_committed(ActivityLog *log)
{
    if (log) {
        log->committed = log->barrier;
    }
}

void activity_log_query(ActivityLog *log, JsonObject *out)
{
    static const char *const modes[] = {"alone", "paired", "following"};

    if (!log) {
        return;
    }
    JsonObject *o = json_object_new();
    json_object_set_string_member(o, "mode", log->dead ? "lost" : modes[log->mode]);
    json_object_set_string_member(o, "generation", log->file.generation);
    json_object_set_int_member(o, "differs", dirty_bitmap_bytes(log->dirty));
    json_object_set_int_member(o, "hot", dirty_bitmap_bytes(log->hot));
    json_object_set_int_member(o, "waits", log->waits);
    json_object_set_int_member(o, "syncs", log->hot_writes);
    json_object_set_object_member(out, "activity-log", o);
}

static void add_images(BlockNode *node, GPtrArray *out)
{
    BlockNode *below[32];
    unsigned n = block_node_below(node, below, G_N_ELEMENTS(below));

    if (node->filename && !block_file_is_shared(node)) {
        g_ptr_array_add(out, node);
    }
    for (unsigned i = 0; i < n; i++) {
        add_images(below[i], out);
    }
}

GPtrArray *activity_log_images(BlockNode *node)
{
    GPtrArray *out = g_ptr_array_new();

    add_images(node, out);
    return out;
}
