/*
 * drive-mirror and blockdev-mirror: arguments, and the target that they name.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "activity-log.h"
#include "mirror.h"
#include "resync-export.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define GRANULARITY_DEFAULT 65536
#define BUF_SIZE_DEFAULT (16 * 1024 * 1024)

static const char *str(JsonObject *args, const char *key, const char *dflt)
{
    return json_object_has_member(args, key) ? json_object_get_string_member(args, key)
                                             : dflt;
}

static gint64 integer(JsonObject *args, const char *key, gint64 dflt)
{
    return json_object_get_int_member_with_default(args, key, dflt);
}

static MirrorOnError on_error(JsonObject *args, const char *key)
{
    const char *s = str(args, key, "report");

    return !strcmp(s, "ignore")   ? MIRROR_IGNORE
           : !strcmp(s, "stop")   ? MIRROR_STOP
           : !strcmp(s, "enospc") ? MIRROR_ENOSPC
                                  : MIRROR_REPORT;
}

static bool check_numbers(JsonObject *args, GError **errp)
{
    gint64 granularity = integer(args, "granularity", GRANULARITY_DEFAULT);

    if (integer(args, "speed", 0) < 0) {
        colo_error_set(errp, "Parameter 'speed' expects a non-negative value");
    } else if (integer(args, "buf-size", 0) < 0) {
        colo_error_set(errp, "Invalid parameter 'buf-size'");
    } else if (granularity != 0 && (granularity < 512 || granularity > 64 << 20)) {
        colo_error_set(errp,
                       "Parameter 'granularity' expects a value in range [512B, 64MB]");
    } else if (granularity & (granularity - 1)) {
        colo_error_set(errp, "Parameter 'granularity' expects a power of 2");
    } else {
        return true;
    }
    return false;
}

/* mode=absolute-paths: make the image. NBD exports exist already. */
static bool create_target(const char *path, const char *format, uint64_t size,
                          GError **errp)
{
    g_autofree char *bytes = g_strdup_printf("%" G_GUINT64_FORMAT, size);
    const char *argv[] = {"qemu-img", "create", "-q", "-f", format, "--", path, bytes,
                          NULL};
    g_autoptr(GError) err = NULL;
    g_autofree char *words = NULL;

    if (!g_spawn_sync(NULL, (char **)argv, NULL,
                      G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL, NULL, NULL, NULL,
                      &words, NULL, &err)) {
        colo_error_set(errp, "cannot create '%s': %s", path, err->message);
        return false;
    }
    /* Its exit status is lost where SIGCHLD is ours; what matters is the image. */
    if (access(path, W_OK) != 0) {
        colo_error_set(errp, "cannot create '%s': %s", path, words ? words : "");
        return false;
    }
    return true;
}

/* The options of the node that drive-mirror's target stands for. */
static JsonObject *target_options(JsonObject *args, bool nbd)
{
    const char *target = str(args, "target", ""), *format = str(args, "format", NULL);
    JsonObject *o = json_object_new(), *file = json_object_new();

    if (nbd) {
        json_object_set_string_member(file, "driver", "nbd");
        json_object_set_string_member(file, "uri", target);
    } else {
        json_object_set_string_member(file, "filename", target);
    }
    if (nbd && (!format || !strcmp(format, "raw") || !strcmp(format, "nbd"))) {
        json_object_unref(o);
        o = file;
    } else {
        if (format) {
            json_object_set_string_member(o, "driver", format);
        }
        json_object_set_object_member(o, "file", file);
    }
    if (json_object_has_member(args, "node-name")) {
        json_object_set_string_member(o, "node-name", str(args, "node-name", ""));
    }
    json_object_set_string_member(o, "discard", "unmap");
    return o;
}

/* The target with one more user, or NULL. Waits. */
static BlockNode *open_target(JsonObject *args, bool drive, uint64_t size,
                              const char *source_format, GError **errp)
{
    g_autoptr(JsonObject) parent = json_object_new();
    const char *target = str(args, "target", "");

    if (!drive) {
        json_object_set_string_member(parent, "target", target);
        return block_node_open_child(parent, "target", errp);
    }
    bool nbd = g_str_has_prefix(target, "nbd:") || g_str_has_prefix(target, "nbd+unix:");
    const char *format = str(args, "format", NULL);
    if (!nbd && !g_strcmp0(format, "nbd")) {
        colo_error_set(errp, "File name string for NBD must start with 'nbd:'");
        return NULL;
    }
    if (!nbd && !strcmp(str(args, "mode", "absolute-paths"), "absolute-paths")) {
        if (!create_target(target, format ? format : source_format, size, errp)) {
            return NULL;
        }
    }
    json_object_set_object_member(parent, "target", target_options(args, nbd));
    BlockNode *node = block_node_open_child(parent, "target", errp);
    if (!node) {
        g_prefix_error(errp, "Could not open '%s': ", target);
    }
    return node;
}

/* Everything that depends on other nodes; under the lock. */
static bool check_nodes(const char *id, BlockNode *source, BlockNode *target, bool drive,
                        GError **errp)
{
    if (!block_job_id_ok(id, errp)) {
        return false;
    }
    if (source->mirror) {
        colo_error_set(errp, "Node '%s' is busy: block device is in use by block job: mirror",
                       source->name);
    } else if (source == target) {
        colo_error_set(errp, "Can't mirror node into itself");
    } else if (block_node_is_primary(source)) {
        colo_error_set(errp, "Node '%s' is a replication child: mirror its quorum",
                       source->name);
    } else if (target && !drive && target->users > 1) {
        colo_error_set(errp, "Node '%s' is in use", target->name);
    } else if (target && target->read_only) {
        colo_error_set(errp, "Target '%s' is read-only", target->name);
    } else {
        return true;
    }
    return false;
}

static BlockNode *find_source(const char *name, GError **errp)
{
    BlockNode *node = block_node_find(name);

    if (!node) {
        colo_error_set(errp, "Cannot find device='%s' nor node-name='%s'", name, name);
    }
    return node;
}

static bool check_modes(JsonObject *args, GError **errp)
{
    const char *sync = str(args, "sync", "full");

    if (!strcmp(sync, "bitmap")) {
        colo_error_set(errp, "Sync mode '%s' not supported", sync);
        return false;
    }
    if (json_object_has_member(args, "replaces")) {
        colo_error_set(errp, "Parameter 'replaces' is not supported here: block-job-complete "
                             "replaces the device");
        return false;
    }
    if (json_object_has_member(args, "filter-node-name")) {
        colo_error_set(errp, "Parameter 'filter-node-name' is not supported here: a mirror of a "
                             "node of ours has no filter node");
        return false;
    }
    return check_numbers(args, errp);
}

static Mirror *mirror_new(JsonObject *args, BlockNode *source, BlockNode *target)
{
    Mirror *m = g_new0(Mirror, 1);
    const char *mode = str(args, "copy-mode", "");
    uint64_t granularity = integer(args, "granularity", 0);
    uint64_t buf_size = integer(args, "buf-size", 0);

    m->source = source;
    m->target = target;
    m->dirty = dirty_bitmap_new(source->size,
                                granularity ? granularity : GRANULARITY_DEFAULT);
    m->copy_mode = !strcmp(mode, "background")       ? MIRROR_BACKGROUND
                   : !strcmp(mode, "write-blocking") ? MIRROR_WRITE_BLOCKING
                                                     : MIRROR_AUTO;
    m->unmap = json_object_get_boolean_member_with_default(args, "unmap", TRUE);
    m->on_source_error = on_error(args, "on-source-error");
    m->on_target_error = on_error(args, "on-target-error");
    m->buf_size = buf_size ? buf_size : BUF_SIZE_DEFAULT;
    return m;
}

/* --- sync=incremental --- */

/* The log of @source whose generation is @generation, or any that has one. */
static ActivityLog *source_log(BlockNode *source, const char *generation)
{
    g_autoptr(GPtrArray) images = activity_log_images(source);

    for (guint i = 0; i < images->len; i++) {
        ActivityLog *log = activity_log_of(images->pdata[i]);
        const char *its = activity_log_generation(log);

        if (its && (!generation || !strcmp(its, generation))) {
            return log;
        }
    }
    return NULL;
}

/* What the target says differs, and since when (*@generation). Without the lock. */
static DirtyBitmap *peer_map(BlockNode *source, BlockNode *target, const char *bitmap,
                             char **generation, GError **errp)
{
    block_lock();
    ActivityLog *log = source_log(source, NULL);
    *generation = g_strdup(activity_log_generation(log));
    uint64_t size = source->size;
    block_unlock();
    if (!*generation) {
        colo_error_set(errp, "disk '%s' has no activity log, as it was not replicated before: "
                             "use sync=full", source->name);
        return NULL;
    }
    if (target->size != size) {
        return dirty_bitmap_new(size, RESYNC_CHUNK); /* the job will tell */
    }
    if (bitmap && strcmp(bitmap, *generation) != 0) {
        colo_error_set(errp, "disk '%s': the activity log is of generation %s, not %s",
                       source->name, *generation, bitmap);
        return NULL;
    }
    g_autoptr(DirtyBitmap) map = dirty_bitmap_new(size, RESYNC_CHUNK);
    return resync_read_dirty(target, *generation, map, errp) ? g_steal_pointer(&map) : NULL;
}

/* Under the lock: what either side says, as of now. */
static bool mirror_mark(Mirror *m, const char *sync, const DirtyBitmap *peer,
                        const char *generation, GError **errp)
{
    ActivityLog *log = peer ? source_log(m->source, generation) : NULL;

    m->none = !strcmp(sync, "none");
    m->full = !m->none && !peer;
    if (m->full) {
        dirty_bitmap_set(m->dirty, 0, m->source->size);
    } else if (peer && log) {
        dirty_bitmap_merge(m->dirty, activity_log_dirty(log));
        dirty_bitmap_merge(m->dirty, peer);
    } else if (peer) {
        colo_error_set(errp, "disk '%s': its activity log began anew meanwhile",
                       m->source->name);
        return false;
    }
    return true;
}

static void mirror_drop(Mirror *m)
{
    block_node_unuse(m->target);
    block_node_unuse(m->source);
    mirror_verify_end(m);
    dirty_bitmap_free(m->dirty);
    g_free(m);
}

bool block_mirror_start(JsonObject *args, bool drive, GError **errp)
{
    const char *device = str(args, "device", ""), *id = str(args, "job-id", device);
    const char *sync = str(args, "sync", "full");

    if (!check_modes(args, errp)) {
        return false;
    }
    block_lock();
    BlockNode *source = find_source(device, errp);
    bool ok = source && check_nodes(id, source, NULL, drive, errp);
    uint64_t size = ok ? source->size : 0;
    g_autofree char *format = g_strdup(ok && source->format ? source->format : "raw");
    block_unlock();
    BlockNode *target = ok ? open_target(args, drive, size, format, errp) : NULL;
    g_autoptr(DirtyBitmap) peer = NULL;
    g_autofree char *generation = NULL;
    if (target && !strcmp(sync, "incremental") &&
        !(peer = peer_map(source, target, str(args, "bitmap", NULL), &generation, errp))) {
        ok = false;
    }
    bool verify = json_object_get_boolean_member_with_default(args, "x-verify", FALSE);
    BlockNode *sums = NULL;
    if (ok && target && verify && !(sums = resync_open_sums(target, errp))) {
        ok = false;
    }
    if (!target) {
        return false;
    }
    block_lock();
    source = ok ? find_source(device, errp) : NULL;
    if (!source || !check_nodes(id, source, target, drive, errp)) {
        if (sums) {
            block_node_unuse(sums);
        }
        block_node_unuse(target);
        block_unlock();
        return false;
    }
    Mirror *m = mirror_new(args, source, target);
    source->users++;
    m->verify = verify;
    m->sums[0] = verify ? resync_node_new(source, RESYNC_SUMS) : NULL;
    m->sums[1] = sums;
    if (!mirror_mark(m, sync, peer, generation, errp)) {
        mirror_drop(m);
        block_unlock();
        return false;
    }
    m->job = block_job_new(
        &mirror_job_driver, id, integer(args, "speed", 0),
        json_object_get_boolean_member_with_default(args, "auto-finalize", TRUE),
        json_object_get_boolean_member_with_default(args, "auto-dismiss", TRUE), m);
    m->job->verify = verify;
    colo_trace(block_mirror_start, "%s: %s to %s, sync %s", id, source->name,
               target->name, sync);
    mirror_run(m);
    g_main_context_wakeup(io_thread_context(block_thread()));
    block_unlock();
    return true;
}
