/*
 * The checkpoint controller's view of the secondary's disks.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "journal.h"
#include "secondary-int.h"
#include "../activity-log.h"
#include "util/files.h"

#include <fcntl.h>
#include <inttypes.h>
#include <unistd.h>

#define WAIT_SLICE_MS 100
/* How long the end of the program waits for a disk that makes no progress. */
#define SETTLE_STILL_MS 10000
#define QUIET_MS 5000

/* Room singleton, guarded by the block lock. */
static struct {
    BlockReplicationFunc fn;
    void *opaque;
    GSourceFunc arrived_fn;
    void *arrived_opaque;
    BlockBarrier *barriers;
    unsigned n_barriers;
    void (*step)(const char *step);
    gint cancelled; /* atomic: the program ends, a takeover is not waited for */
} control;

void block_replication_set_step(void (*fn)(const char *step))
{
    control.step = fn;
}

void secondary_step(const char *step)
{
    if (control.step) {
        control.step(step);
    }
}

void secondary_notify(bool fatal, const char *message)
{
    if (control.fn) {
        control.fn(fatal, message, control.opaque);
    }
}

BlockSecondary *secondary_of_disk(const char *disk)
{
    g_autoptr(GPtrArray) all = secondaries();

    for (guint i = 0; i < all->len; i++) {
        BlockSecondary *s = all->pdata[i];

        if (!g_strcmp0(s->export_name, disk)) {
            return s;
        }
    }
    for (guint i = 0; i < all->len; i++) {
        BlockSecondary *s = all->pdata[i];

        if (!strcmp(s->parent->name, disk) || !g_strcmp0(s->parent->id, disk)) {
            return s;
        }
    }
    return NULL;
}

JsonArray *block_secondary_disks(void)
{
    JsonArray *a = json_array_new();

    block_lock();
    g_autoptr(GPtrArray) all = secondaries();
    for (guint i = 0; i < all->len; i++) {
        BlockSecondary *s = all->pdata[i];

        if (s->export_name) {
            JsonObject *o = json_object_new();

            json_object_set_string_member(o, "disk", s->export_name);
            json_object_set_int_member(o, "size", s->parent->size);
            json_object_set_boolean_member(o, "shared", s->shared);
            json_array_add_object_element(a, o);
        }
    }
    block_unlock();
    return a;
}

void block_secondary_peer_disks(JsonArray *disks)
{
    block_lock();
    for (guint i = 0; i < json_array_get_length(disks); i++) {
        JsonNode *n = json_array_get_element(disks, i);
        JsonObject *o = JSON_NODE_HOLDS_OBJECT(n) ? json_node_get_object(n) : NULL;
        BlockSecondary *s = secondary_of_disk(options_get_str(o, "disk", ""));
        bool mirrored = false;

        if (s) {
            options_get_bool(o, "mirrored", &mirrored, NULL);
            g_free(s->peer_generation);
            s->peer_generation = g_strdup(options_get_str(o, "generation", NULL));
            g_free(s->peer_connection);
            s->peer_connection = g_strdup(options_get_str(o, "connection", NULL));
            s->peer_mirrored = mirrored;
        }
    }
    block_unlock();
}

/* What arrived before the start is on the disk, and this is where the generation begins. Its
 * log is empty: the primary's has what differs from here on. */
static bool secondary_begin_generation(BlockSecondary *s, GError **errp)
{
    BlockNode *image = s->parent;

    if (!image->filename || s->shared) {
        return true;
    }
    int r = block_flush_wait(image, 30000);
    if (r < 0) {
        colo_error_set_errno(errp, -r, "disk '%s' cannot be flushed", image->name);
        return false;
    }
    if (!s->peer_generation || strlen(s->peer_generation) != 36) {
        block_lock();
        activity_log_drop(image);
        block_unlock();
        return true;
    }
    g_autoptr(GError) err = NULL;
    activity_log_begin(image, s->peer_generation, false, &err); /* tells by itself */
    block_lock();
    activity_log_set_mode(activity_log_of(image), ACTIVITY_LOG_FOLLOWING);
    block_unlock();
    return true;
}

/* --- The marker --- */

#define COPY_HEAD "This image was being copied from the other host"

bool secondary_marker_is_copy(const char *path)
{
    char head[sizeof(COPY_HEAD)] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool is = fd >= 0 && read(fd, head, sizeof(head) - 1) == (ssize_t)sizeof(head) - 1 &&
              strcmp(head, COPY_HEAD) == 0;

    if (fd >= 0) {
        close(fd);
    }
    return is;
}

bool secondary_marker_create(const char *path, SecondaryMarker kind, GError **errp)
{
    static const char *const texts[] = {
        [MARKER_RUNNING] =
            "This image belonged to a running COLO secondary. If none runs any more, the\n"
            "image may hold parts of two checkpoints: copy it again from the other host.\n",
        [MARKER_SHARED] =
            "A takeover was bringing this shared image up to date. If none runs any\n"
            "more, it was cut off: restore the image, or repair the file systems in it.\n",
        [MARKER_COPY] =
            COPY_HEAD ", which\nhas not come to a protected pair: it may be half of two "
            "states. Start it as\nsecondary again.\n",
    };
    const char *text = texts[kind];
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) &&
              fsync(fd) == 0 && files_sync_parent(path);
    int err = errno;

    if (fd >= 0) {
        close(fd);
    }
    if (!ok) {
        colo_error_set_errno(errp, err,
                             "cannot write '%s', which marks the image as being "
                             "replicated",
                             path);
    }
    return ok;
}

/* --- Start, arrival, commit --- */

static bool secondary_can_start(BlockSecondary *s, GError **errp)
{
    if (s->state != SECONDARY_IDLE || s->error) {
        colo_error_set(errp, "disk '%s' cannot start to replicate: it is %s%s%s",
                       s->parent->name, secondary_state_name(s->state),
                       s->error ? ", " : "", s->error ? s->error : "");
        return false;
    }
    if (!s->export_name) {
        colo_error_set(errp,
                       "disk '%s' is not exported: run nbd-server-start and "
                       "nbd-server-add with device '%s' and writable=true first",
                       s->parent->name, s->parent->name);
        return false;
    }
    bool named = false;
    if (s->peer_connection && !nbd_server_find_conn(s->parent, s->peer_connection, &named) &&
        named) {
        colo_error_set(errp, "disk '%s': the NBD connection that the primary replicates on is not "
                             "here; attach its node anew", s->parent->name);
        return false;
    }
    if (s->parent->torn && !s->peer_mirrored) {
        colo_error_set(errp,
                       "disk '%s': its image '%s' was left between two checkpoints; bring "
                       "it up to date with drive-mirror from the primary first",
                       s->parent->name, s->parent->filename);
        return false;
    }
    return true;
}

/* The connection that replicates: the one that the primary named, whatever else is left of
 * earlier rounds. Through what hides names, the one that has written. NULL: the first that will. */
static void *replicating_conn(BlockSecondary *s)
{
    void *conn = NULL;
    bool named = false;

    if (s->peer_connection) {
        conn = nbd_server_find_conn(s->parent, s->peer_connection, &named);
    }
    if (!named && g_hash_table_size(s->conns) == 1) {
        GHashTableIter it;

        g_hash_table_iter_init(&it, s->conns);
        g_hash_table_iter_next(&it, &conn, NULL);
    }
    return conn;
}

bool block_secondary_start(BlockReplicationFunc fn, void *opaque, GError **errp)
{
    g_autoptr(GPtrArray) markers = g_ptr_array_new_with_free_func(g_free);
    bool ok = true;

    block_lock();
    g_autoptr(GPtrArray) all = secondaries();
    for (guint i = 0; ok && i < all->len; i++) {
        BlockSecondary *s = all->pdata[i];

        ok = secondary_can_start(s, errp);
        if (s->parent->filename && !s->shared) {
            g_ptr_array_add(markers, g_strconcat(s->parent->filename, ".colo", NULL));
            if (!g_file_test(s->parent->filename, G_FILE_TEST_IS_REGULAR)) {
                colo_report("'%s' is no file: the marker '%s.colo' is lost if this host loses "
                            "power; then copy the whole disk from the other host",
                            s->parent->filename, s->parent->filename);
            }
        } else {
            g_ptr_array_add(markers, g_strdup(""));
        }
    }
    block_unlock();
    for (guint i = 0; ok && i < markers->len; i++) {
        const char *path = markers->pdata[i];

        ok = !*path || secondary_marker_create(path, MARKER_RUNNING, errp);
        for (guint k = 0; !ok && k < i; k++) {
            journal_remove(markers->pdata[k], NULL);
        }
    }
    for (guint i = 0; ok && i < all->len; i++) {
        ok = secondary_begin_generation(all->pdata[i], errp);
    }
    if (!ok) {
        return false;
    }
    block_lock();
    control.fn = fn;
    control.opaque = opaque;
    for (guint i = 0; i < all->len; i++) {
        BlockSecondary *s = all->pdata[i];
        char *path = markers->pdata[i];

        s->marker = *path ? g_strdup(path) : NULL;
        g_clear_pointer(&s->parent->torn, g_free);
        overlay_clear_all(s->overlay);
        s->generation++;
        s->asked = false;
        s->conn = replicating_conn(s);
        s->state = SECONDARY_LOGGING;
        colo_trace(block_secondary_start, "%s: %" PRIu64 " requests so far",
                   s->parent->name, secondary_arrivals(s));
    }
    block_unlock();
    return true;
}

/* Moves the line, too: some entries a call. */
static bool barriers_arrived(const BlockBarrier *b, unsigned n)
{
    bool there = true;

    for (unsigned i = 0; i < n; i++) {
        BlockSecondary *s = secondary_of_disk(b[i].disk);

        /* What went through before the start must be in the image, too. */
        if (!s || s->through > 0 || secondary_arrivals(s) < b[i].sequence) {
            return false;
        }
        if (s->state == SECONDARY_LOGGING &&
            !secondary_stage(s, b[i].sequence, STAGE_STEP)) {
            secondary_stage_later(s);
            there = false;
        }
        there &= s->layers->len < LAYERS_MAX;
    }
    return there;
}

void secondary_check_arrived(void)
{
    if (control.n_barriers && barriers_arrived(control.barriers, control.n_barriers)) {
        GSourceFunc fn = g_steal_pointer(&control.arrived_fn);

        control.n_barriers = 0;
        if (fn) {
            fn(control.arrived_opaque);
        }
    }
}

bool block_secondary_arrived(const BlockBarrier *barriers, unsigned n, GSourceFunc done,
                             void *opaque)
{
    block_lock();
    bool there = barriers_arrived(barriers, n);
    control.arrived_fn = there ? NULL : done;
    control.arrived_opaque = opaque;
    g_free(control.barriers);
    control.barriers = there ? NULL : g_memdup2(barriers, n * sizeof(*barriers));
    control.n_barriers = there ? 0 : n;
    block_unlock();
    return there;
}

static bool check_barriers(const BlockBarrier *b, unsigned n, GPtrArray *all,
                           GError **errp)
{
    for (unsigned i = 0; i < n; i++) {
        BlockSecondary *s = secondary_of_disk(b[i].disk);

        if (!s) {
            colo_error_set(errp,
                           "the primary replicates a disk '%s' that is not exported "
                           "here",
                           b[i].disk);
            return false;
        }
        if (s->state != SECONDARY_LOGGING || s->error) {
            colo_error_set(errp, "disk '%s' takes no checkpoint: it is %s%s%s", b[i].disk,
                           secondary_state_name(s->state), s->error ? ", " : "",
                           s->error ? s->error : "");
            return false;
        }
        uint64_t line = MAX(s->committed, s->staged_line);

        if (b[i].sequence < line || b[i].sequence > secondary_arrivals(s)) {
            colo_error_set(errp,
                           "disk '%s': barrier %" PRIu64 " is not between the last one "
                           "%" PRIu64 " and the %" PRIu64 " requests that arrived",
                           b[i].disk, b[i].sequence, line, secondary_arrivals(s));
            return false;
        }
        for (unsigned k = 0; k < i; k++) {
            if (!strcmp(b[i].disk, b[k].disk)) {
                colo_error_set(errp, "two barriers for disk '%s'", b[i].disk);
                return false;
            }
        }
    }
    if (n != all->len) {
        colo_error_set(errp, "the checkpoint names %u disks, but %u are replicated here",
                       n, all->len);
        return false;
    }
    return true;
}

bool block_secondary_check(const BlockBarrier *barriers, unsigned n, GError **errp)
{
    block_lock();
    g_autoptr(GPtrArray) all = secondaries();
    bool ok = check_barriers(barriers, n, all, errp);
    block_unlock();
    return ok;
}

static void secondary_commit(BlockSecondary *s, uint64_t sequence)
{
    /* Usually done when it arrived. */
    secondary_stage(s, sequence, UINT_MAX);
    if (!g_queue_is_empty(&s->staged->queue)) {
        s->staged->seq = sequence;
        g_ptr_array_add(s->layers, s->staged);
        s->staged = log_layer_new();
    }
    s->committed = sequence;
    overlay_clear_all(s->overlay);
    s->generation++;
    s->asked = false;
    secondary_step("commit");
    secondary_apply(s);
    g_main_context_wakeup(io_thread_context(block_thread()));
}

bool block_secondary_commit(const BlockBarrier *barriers, unsigned n, GError **errp)
{
    block_lock();
    g_autoptr(GPtrArray) all = secondaries();
    bool ok = check_barriers(barriers, n, all, errp);
    for (unsigned i = 0; ok && i < n; i++) {
        BlockSecondary *s = secondary_of_disk(barriers[i].disk);

        secondary_commit(s, barriers[i].sequence);
        colo_trace(block_secondary_commit, "%s: %" PRIu64, barriers[i].disk,
                   barriers[i].sequence);
    }
    block_unlock();
    return ok;
}

/* --- Ends --- */

bool secondary_cancelled(void)
{
    return g_atomic_int_get(&control.cancelled);
}

/* Wait for @w, which stands in @list, until it is done or the program ends. */
static int wait_in_list(BlockWait *w, GPtrArray *list)
{
    int r;

    while ((r = block_wait(w, WAIT_SLICE_MS)) == -ETIMEDOUT) {
        if (!secondary_cancelled()) {
            continue;
        }
        block_lock();
        bool stood = g_ptr_array_remove(list, w);
        block_unlock();
        if (stood) {
            return -ECANCELED;
        }
    }
    return r;
}

void block_secondary_cancel(void)
{
    g_atomic_int_set(&control.cancelled, 1);
}

bool block_secondary_takeover(GError **errp)
{
    bool ok = true;

    block_lock();
    g_autoptr(GPtrArray) all = secondaries();
    block_unlock();
    if (!secondary_claim(all, errp)) {
        return false;
    }
    block_lock();
    g_autofree BlockWait *waits = g_new0(BlockWait, all->len);
    for (guint i = 0; i < all->len; i++) {
        BlockSecondary *s = all->pdata[i];

        if (s->parent->torn) {
            colo_error_set(errp, "disk '%s': image '%s' was left between two checkpoints and "
                                 "nobody has brought it up to date", s->parent->name,
                           s->parent->filename);
            block_unlock();
            return false;
        }
    }
    control.arrived_fn = NULL;
    for (guint i = 0; i < all->len; i++) {
        BlockSecondary *s = all->pdata[i];

        block_wait_init(&waits[i]);
        if (s->state == SECONDARY_LIVE || s->serving) {
            block_wait_done(&waits[i], 0);
            continue;
        }
        g_ptr_array_add(s->waiters, &waits[i]);
        if (s->state != SECONDARY_TAKEOVER) {
            secondary_takeover_begin(s);
        }
    }
    g_main_context_wakeup(io_thread_context(block_thread()));
    block_unlock();
    for (guint i = 0; i < all->len; i++) {
        BlockSecondary *s = all->pdata[i];
        int r = wait_in_list(&waits[i], s->waiters);
        g_autofree char *marker = NULL;

        block_lock();
        if (r == 0) {
            marker = g_steal_pointer(&s->marker);
        } else if (ok) {
            colo_error_set(errp, "disk '%s': takeover failed: %s", s->parent->name,
                           r == -ECANCELED ? "the program ends"
                           : s->error      ? s->error
                                           : g_strerror(-r));
            ok = false;
        }
        block_unlock();
        if (marker) {
            journal_remove(marker, NULL);
        }
    }
    return ok;
}

uint64_t block_secondary_progress(void)
{
    uint64_t all = 0;

    block_lock();
    g_autoptr(GPtrArray) secs = secondaries();
    for (guint i = 0; i < secs->len; i++) {
        all += ((BlockSecondary *)secs->pdata[i])->applied;
    }
    block_unlock();
    return all;
}

/* What @s has yet to write. A wait is given up when this stands still. */
static uint64_t left_of(BlockSecondary *s)
{
    return s->log.memory + s->log.spilled + s->applying + s->through +
           overlay_bytes(s->overlay) + s->phase;
}

static uint64_t settle_left(BlockSecondary *s)
{
    block_lock();
    uint64_t left = left_of(s);
    block_unlock();
    return left;
}

char *block_secondary_unsettled(uint64_t *left)
{
    char *name = NULL;

    block_lock();
    g_autoptr(GPtrArray) all = secondaries();
    for (guint i = 0; i < all->len; i++) {
        BlockSecondary *s = all->pdata[i];

        if (s->state != SECONDARY_LIVE && s->state != SECONDARY_FAILED && !s->serving) {
            name = name ? name : g_strdup(s->parent->name);
            *left += left_of(s);
        }
    }
    block_unlock();
    return name;
}

static int settle_one(BlockSecondary *s)
{
    BlockWait wait;
    uint64_t before = settle_left(s);
    unsigned still = 0;
    int r;

    block_wait_init(&wait);
    block_lock();
    g_ptr_array_add(s->settlers, &wait);
    secondary_check_settled(s);
    block_unlock();
    while ((r = block_wait(&wait, WAIT_SLICE_MS)) == -ETIMEDOUT) {
        uint64_t left = settle_left(s);

        still = left == before ? still + WAIT_SLICE_MS : 0;
        before = left;
        if (still < SETTLE_STILL_MS) {
            continue;
        }
        block_lock();
        bool stood = g_ptr_array_remove(s->settlers, &wait);
        block_unlock();
        if (stood) {
            return -ETIMEDOUT;
        }
    }
    return r < 0 ? r : block_flush_wait(s->parent, SETTLE_STILL_MS);
}

bool block_secondary_settle(GError **errp)
{
    bool ok = true;

    block_lock();
    g_autoptr(GPtrArray) all = secondaries();
    block_unlock();
    for (guint i = 0; i < all->len; i++) {
        BlockSecondary *s = all->pdata[i];
        int r = settle_one(s);

        if (r < 0 && ok) {
            colo_error_set_errno(errp, -r, "disk '%s' does not settle", s->parent->name);
            ok = false;
        }
    }
    return ok;
}

/* Requests of its own, which outlive neither it nor the nodes below. */
static bool is_busy(const BlockSecondary *s)
{
    return s->spilling || s->applying || s->merging || s->flushing || s->active_flushing ||
           s->overlay_writes;
}

/* Nobody sends anything any more. What hangs for longer than this is left to its fate. */
static void wait_quiet(const GPtrArray *all)
{
    int64_t end = g_get_monotonic_time() + QUIET_MS * 1000;
    bool busy = true;

    while (busy && g_get_monotonic_time() < end) {
        busy = false;
        block_lock();
        for (guint i = 0; i < all->len; i++) {
            busy |= is_busy(all->pdata[i]);
        }
        block_unlock();
        if (busy) {
            g_usleep(1000);
        }
    }
}

/* The image now holds exactly the last checkpoint; whoever stops here leaves it usable. */
void block_secondary_end(void)
{
    g_autoptr(GError) err = NULL;

    block_lock();
    g_autoptr(GPtrArray) all = secondaries();
    control.fn = NULL;
    control.arrived_fn = NULL;
    bool settled = true, any = false;
    for (guint i = 0; i < all->len; i++) {
        BlockSecondary *s = all->pdata[i];

        any |= s->state == SECONDARY_LOGGING || s->state == SECONDARY_TAKEOVER || s->job;
    }
    block_unlock();
    if (any && !block_secondary_settle(&err)) {
        colo_report("%s; its image stays marked", err->message);
        settled = false;
    }
    wait_quiet(all);
    for (guint i = 0; settled && i < all->len; i++) {
        BlockSecondary *s = all->pdata[i];

        if (s->marker && !s->error) {
            journal_remove(s->marker, NULL);
            g_clear_pointer(&s->marker, g_free);
        }
    }
    g_atomic_int_set(&control.cancelled, 0);
}
