/*
 * The disks at a checkpoint's and at protection's end: what a storage that hangs holds up is told.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Before a side that has won may speak, its disks must hold what that speech may tell of: the
 * secondary's log and overlay (block_secondary_takeover()), the primary's log of shared disks
 * (block_primary_settle()). The same holds of a checkpoint's end: what its pause answered early
 * is on the primary's disk before output leaves (colo_disk_wait_flushed()).
 *
 * A storage that hangs cannot be hastened, and serving without it would promise clients what one
 * more death takes back. So the wait has no end of its own: it ends with the storage's return,
 * with the process, and on the primary with a second word of the operator; at a checkpoint with
 * protection, so with a word to either side: the secondary's disk may be well. What is bounded is
 * the silence about it: if nothing comes on for progress-timeout, COLO_DISK_STALLED is sent, and
 * query-colo-status has "disk-stall" until it does.
 *
 * The thread of the role waits; a timer of the main loop watches it, as the wait may be in a
 * system call.
 */
#include "migration/colo.h"

#include "monitor/monitor.h"
#include "util/error.h"
#include "util/trace.h"

#define LOOK_MS 250
#define FLUSHED_US 5000 /* how soon another end of the wait is seen */

/* Taken before colo.lock, and by nobody who holds that: events go out in the order of what they
 * tell. */
static GMutex telling;

/* Room singleton; guarded by colo.lock. */
static struct {
    const char *what; /* takeover, settle, checkpoint; NULL: nobody waits */
    uint64_t round;
    uint64_t left;
    int64_t since; /* nothing has come on since then */
    bool told, failed;
    char *device, *trouble;
} stall;

static void tell_lock(void)
{
    g_mutex_lock(&telling);
    g_mutex_lock(&colo.lock);
}

static void tell_unlock(void)
{
    g_mutex_unlock(&colo.lock);
    g_mutex_unlock(&telling);
}

static void emit(const char *what, const char *device, bool stalled, int64_t us,
                 const char *trouble)
{
    JsonObject *data = json_object_new();

    json_object_set_string_member(data, "during", what);
    json_object_set_string_member(data, "device", device);
    json_object_set_boolean_member(data, "stalled", stalled);
    json_object_set_int_member(data, "seconds", us / G_USEC_PER_SEC);
    if (trouble) {
        json_object_set_string_member(data, "error", trouble);
    }
    colo_trace(migration_disk_stall, "%s %s: %d", what, device, stalled);
    monitor_event("COLO_DISK_STALLED", data);
}

/* Under both locks; colo.lock is given up for it: say that it goes on. */
static void tell_end_locked(void)
{
    bool told = stall.told;
    const char *what = stall.what;
    int64_t us = g_get_monotonic_time() - stall.since;
    g_autofree char *device = g_steal_pointer(&stall.device);

    stall.told = false;
    g_clear_pointer(&stall.trouble, g_free);
    if (told) {
        g_mutex_unlock(&colo.lock);
        emit(what, device, false, us, NULL);
        g_mutex_lock(&colo.lock);
    }
}

/* Under both locks; colo.lock is given up for it: say that it does not. Words of before were
 * none about that. */
static void tell_stall_locked(const char *device, const char *trouble)
{
    const char *what = stall.what;
    int64_t us = g_get_monotonic_time() - stall.since;

    stall.told = true;
    stall.device = g_strdup(device);
    stall.trouble = g_strdup(trouble);
    if (colo.state == COLO_STATE_LOST) {
        colo.want_exit = false;
    }
    g_mutex_unlock(&colo.lock);
    bool settles = !strcmp(what, "settle"), checkpoint = !strcmp(what, "checkpoint");
    colo_report("disk '%s' holds up the %s for %" G_GINT64_FORMAT " s: %s; this side does not "
                "serve until it comes on%s", device, what, us / G_USEC_PER_SEC,
                trouble ? trouble : "its storage does not answer",
                settles      ? ", or x-colo-lost-heartbeat says that it shall all the same"
                : checkpoint ? "; x-colo-lost-heartbeat to the secondary lets that one serve"
                             : "");
    emit(what, device, true, us, trouble);
    g_mutex_lock(&colo.lock);
}

static gboolean look(gpointer opaque)
{
    uint64_t round = GPOINTER_TO_SIZE(opaque), left = 0;
    g_autofree char *trouble = NULL;
    g_autofree char *p = block_primary_unsettled(&left, &trouble);
    g_autofree char *device = p ? g_steal_pointer(&p) : block_secondary_unsettled(&left);

    tell_lock();
    bool ours = stall.what && stall.round == round;
    if (!ours || !device || stall.failed) {
        /* Nobody waits, or not for them any more. */
    } else if (left != stall.left) {
        tell_end_locked();
        stall.left = left;
        stall.since = g_get_monotonic_time();
    } else if (stall.told && trouble && !stall.trouble) {
        stall.trouble = g_steal_pointer(&trouble);
    } else if (!stall.told && g_get_monotonic_time() - stall.since >= colo_progress_limit()) {
        tell_stall_locked(device, trouble);
    }
    tell_unlock();
    return ours;
}

void colo_disk_wait_failed(const char *why)
{
    uint64_t left = 0;
    g_autofree char *trouble = NULL;
    g_autofree char *device = block_primary_unsettled(&left, &trouble);

    tell_lock();
    stall.failed = true;
    if (!stall.told) {
        tell_stall_locked(device ? device : "?", why);
    }
    tell_unlock();
}

bool colo_disk_wait_overridden_locked(void)
{
    return stall.what && stall.told && colo.want_exit;
}

void colo_disk_wait_begin(const char *what)
{
    tell_lock();
    stall.what = what;
    stall.left = 0;
    stall.failed = false;
    stall.since = g_get_monotonic_time();
    gpointer round = GSIZE_TO_POINTER(++stall.round);
    tell_unlock();
    g_timeout_add(LOOK_MS, look, round);
}

void colo_disk_wait_end(void)
{
    tell_lock();
    tell_end_locked();
    stall.what = NULL;
    tell_unlock();
}

static gboolean on_flushed(gpointer opaque)
{
    g_mutex_lock(&colo.lock);
    g_cond_broadcast(&colo.cond);
    g_mutex_unlock(&colo.lock);
    return G_SOURCE_REMOVE;
}

bool colo_disk_wait_flushed(const char *what, bool (*stop)(void))
{
    bool waits = false, ok;

    while (!(ok = block_primary_flushed(on_flushed, NULL)) && !stop()) {
        if (what && !waits) {
            colo_disk_wait_begin(what);
            waits = true;
        }
        g_mutex_lock(&colo.lock);
        g_cond_wait_until(&colo.cond, &colo.lock, g_get_monotonic_time() + FLUSHED_US);
        g_mutex_unlock(&colo.lock);
    }
    if (waits) {
        colo_disk_wait_end();
    }
    return ok;
}

void colo_disk_wait_describe_locked(JsonObject *status)
{
    if (!stall.what || !stall.told) {
        return;
    }
    JsonObject *o = json_object_new();
    json_object_set_string_member(o, "during", stall.what);
    json_object_set_string_member(o, "device", stall.device);
    json_object_set_int_member(o, "seconds",
                               (g_get_monotonic_time() - stall.since) / G_USEC_PER_SEC);
    if (stall.trouble) {
        json_object_set_string_member(o, "error", stall.trouble);
    }
    json_object_set_object_member(status, "disk-stall", o);
}
