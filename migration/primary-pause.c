/*
 * The primary's capture: one instant of the guest, taken between `stop` and `cont`.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Used by the checkpoint thread alone. Nothing here waits for the peer, and between `stop`
 * and `cont` nothing is allocated.
 */
#include "migration/primary.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migration/vmstate-image.h"
#include "net/net.h"
#include "net/proxy.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

#define PREPASS_ROUNDS 4
#define PREPASS_ENOUGH 256   /* pages: a final pass of this size costs well under 1 ms */
#define BUDGET_ROUNDS 16     /* of the prepass, where a budget asks for less */
#define BUDGET_PAGES_MIN 16
#define BUDGET_PAGES_MAX 16384
#define SAVE_TRIES 5
#define SETTLE_TRIES 64

static const char stop_command[] = "{\"execute\":\"stop\",\"id\":\"stop\"}\n";
static const char cont_command[] = "{\"execute\":\"cont\",\"id\":\"cont\"}\n";

void capture_init(Capture *cap)
{
    memset(cap, 0, sizeof(*cap));
    cap->priority = priority_new(colo.child.pid);
    cap->device = g_malloc(VMSTATE_IMAGE_MAX);
    memset(cap->device, 0, 1 << 20); /* no first-touch faults in the pause */
    g_snprintf(cap->save_command, sizeof(cap->save_command),
               "{\"execute\":\"xen-save-devices-state\",\"arguments\":{\"filename\":"
               "\"/proc/self/fd/%d\",\"live\":false},\"id\":\"save\"}\n",
               colo.child.state_fd);
}

void capture_clear(Capture *cap)
{
    g_clear_pointer(&cap->priority, priority_free);
    g_clear_pointer(&cap->device, g_free);
    g_clear_pointer(&cap->proxy, g_bytes_unref);
}

static bool read_device_state(Capture *cap, GError **errp)
{
    struct stat st;

    if (fstat(colo.child.state_fd, &st) < 0 || st.st_size == 0 ||
        st.st_size > VMSTATE_IMAGE_MAX) {
        colo_error_set(errp, "the emulator's device state has %lld bytes (at most %u fit)",
                       (long long)st.st_size, VMSTATE_IMAGE_MAX);
        return false;
    }
    cap->device_len = st.st_size;
    if (pread(colo.child.state_fd, cap->device, cap->device_len, 0) !=
        (ssize_t)cap->device_len) {
        colo_error_set(errp, "the emulator's device state cannot be read back");
        return false;
    }
    /* The emulator truncates the file when it opens it, in the pause: that is done then. */
    if (ftruncate(colo.child.state_fd, 0) < 0) {
        colo_error_set_errno(errp, errno, "device state");
        return false;
    }
    return true;
}

/* Read the guest's output socket empty; how many frames were read from it so far, by us
 * or by the net thread. */
static uint64_t drain_output(void)
{
    net_lock();
    proxy_drain_output();
    uint64_t n = proxy_output_frames();
    net_unlock();
    return n;
}

/* Let the emulator send what its NIC still has in its hands: its main loop has looked at
 * the emptied socket when it answers a command. */
static bool settle_output(GError **errp)
{
    uint64_t before, after = drain_output();

    for (int i = 0; i < SETTLE_TRIES; i++) {
        before = after;
        if (!colo_child_command("{\"execute\":\"query-name\",\"id\":\"q\"}\n", "q", errp)) {
            return false;
        }
        after = drain_output();
        if (after == before) {
            return true;
        }
    }
    colo_error_set(errp, "the emulator goes on sending frames while it is stopped");
    return false;
}

/* Send the save as soon as the guest stands, that is, before the emulator has brought its
 * disks to rest: it comes to the save next. A machine that stood already says nothing. */
static bool wait_stopped(GError **errp)
{
    int r = child_qmp_wait_either(colo.qmp, "stop", "STOP", 30000, errp);

    return r >= 0 && child_qmp_go(colo.qmp_save, "save", errp) &&
           (r == 1 || child_qmp_wait(colo.qmp, "stop", 30000, errp));
}

/* Device state and the rest of RAM, of one instant. A NIC that could not send before STOP
 * does so afterwards and changes its rings and its state under the save (RULES 1). If a
 * frame came after the save began, or if the socket may have been full, so that one could
 * still come, all output is waited for and both are repeated. */
static bool save_stopped(Capture *cap, GError **errp)
{
    for (int i = 0; i < SAVE_TRIES; i++) {
        if (i > 0) {
            colo.stats.repeated_saves++;
            if (!settle_output(errp) ||
                !child_qmp_send(colo.qmp_save, cap->save_command, errp)) {
                return false;
            }
        } else if (!wait_stopped(errp)) {
            return false;
        }
        colo_step("stopped");
        cap->stopped_at = i == 0 ? g_get_monotonic_time() : cap->stopped_at;
        uint64_t frames = drain_output();
        int64_t from = g_get_monotonic_time();
        int64_t pages = ram_capture(colo.ram, true, errp);
        cap->last_pages += MAX(pages, 0);
        cap->last_us += g_get_monotonic_time() - from;
        if (pages < 0 ||
            !child_qmp_wait(colo.qmp_save, "save", 30000, errp)) {
            return false;
        }
        colo_step("saved");
        net_lock();
        bool tight = i == 0 && proxy_output_was_tight();
        net_unlock();
        if (drain_output() == frames && !tight) {
            return true;
        }
    }
    colo_error_set(errp, "the emulator goes on sending frames while it is stopped");
    return false;
}

/* Tell the emulator to let the guest run again; resume() waits for it. */
static bool send_cont(GError **errp)
{
    return child_qmp_holds(colo.qmp_cont, "cont")
               ? child_qmp_go(colo.qmp_cont, "cont", errp)
               : child_qmp_send(colo.qmp_cont, cont_command, errp);
}

/* The guest runs again, unless it ended by itself just before the stop. The pause is over with
 * the event: the vCPUs are let go right after it, the answer comes when all is done. */
static bool resume(Capture *cap, bool sent, GError **errp)
{
    g_autoptr(GError) err = NULL;

    int r = sent ? child_qmp_wait_either(colo.qmp_cont, "cont", "RESUME", 30000, &err) : -1;
    cap->resumed_at = g_get_monotonic_time();
    if (r == 1 || (r == 0 && child_qmp_wait(colo.qmp_cont, "cont", 30000, &err))) {
        return true;
    }
    g_autoptr(JsonNode) node = child_qmp_query(
        colo.qmp, "{\"execute\":\"query-status\",\"id\":\"st\"}\n", "st", NULL);
    const char *st = node ? options_get_str(json_node_get_object(node), "status", "") : "";
    if (strcmp(st, "shutdown") == 0 || strcmp(st, "guest-panicked") == 0) {
        cap->running = false;
        return true;
    }
    if (err) {
        g_propagate_error(errp, g_steal_pointer(&err));
    }
    return false;
}

/* What a pause costs beside the copies, and a copy: by the pauses so far. */
static void learn_costs(Capture *cap)
{
    double fixed = (double)(cap->pause_us - cap->last_us);
    double page = (double)cap->last_us / (double)MAX(cap->last_pages, 1);

    cap->fixed_us += (fixed - cap->fixed_us) / (cap->fixed_us > 0 ? 8 : 1);
    cap->page_us += (page - cap->page_us) / (cap->page_us > 0 ? 8 : 1);
}

/* What a pause needs, but for one byte each: the emulator reads it while the guest runs. */
static bool hold_commands(Capture *cap, GError **errp)
{
    return child_qmp_ready(colo.qmp, stop_command, "stop", errp) &&
           child_qmp_ready(colo.qmp_save, cap->save_command, "save", errp) &&
           child_qmp_ready(colo.qmp_cont, cont_command, "cont", errp);
}

bool capture_paused(Capture *cap, uint64_t epoch, GError **errp)
{
    bool ok;

    net_lock();
    proxy_hold_input();
    net_unlock();
    block_primary_hold(true);
    colo_step("held");
    priority_raise(cap->priority);
    cap->last_pages = 0;
    cap->last_us = 0;
    cap->stop_at = g_get_monotonic_time();
    ok = child_qmp_go(colo.qmp, "stop", errp) && save_stopped(cap, errp);
    cap->saved_at = g_get_monotonic_time();
    bool cont = cap->running && !(cap->last && ok), sent = false;
    if (ok) {
        if (epoch == COLO_EPOCH_SAFE) {
            block_primary_log();
        }
        cap->n_barriers = block_primary_barriers(cap->barriers, COLO_DISKS_MAX);
        if (colo.opts.verify_ram) {
            ram_hash(colo.ram);
        }
    }
    cap->cut_at = cap->resumed_at = g_get_monotonic_time();
    net_lock();
    if (cont) {
        sent = send_cont(ok ? errp : NULL);
    }
    if (ok) {
        /* While the emulator wakes up: nothing that it sends is read before, for the lock. */
        proxy_cut(epoch);
    }
    net_unlock();
    if (ok) {
        colo_step("cut");
    }
    if (cont) {
        cont = resume(cap, sent, ok ? errp : NULL);
        ok = ok && cont;
    }
    priority_restore(cap->priority);
    cap->pause_us = cap->resumed_at - cap->stop_at;
    cap->begun = false;
    net_lock();
    proxy_release_input();
    if (ok) {
        cap->proxy = proxy_save();
    }
    net_unlock();
    block_primary_hold(false);
    colo_step("resumed");
    if (!ok || !read_device_state(cap, errp) || !hold_commands(cap, errp)) {
        return false;
    }
    learn_costs(cap);
    return true;
}

/* Staging belongs to the epoch that ends next. */
static void begin(Capture *cap)
{
    if (!cap->begun) {
        ram_epoch_begin(colo.ram);
        cap->begun = true;
    }
}

int64_t capture_background(Capture *cap, GError **errp)
{
    int64_t from = g_get_monotonic_time();

    begin(cap);
    colo_qmp_drain();
    int64_t n = ram_capture(colo.ram, false, errp);
    colo_trace(migration_background, "%" G_GINT64_FORMAT " pages in %" G_GINT64_FORMAT " us",
               n, g_get_monotonic_time() - from);
    return n < 0 ? -1 : g_get_monotonic_time() - from;
}

/* So few pages are left to the pause that it stays within the budget, by what pauses cost. */
static int64_t enough_pages(const Capture *cap, uint64_t budget_us)
{
    if (!budget_us || cap->page_us <= 0) {
        return PREPASS_ENOUGH;
    }
    double pages = ((double)budget_us - cap->fixed_us) / cap->page_us / 2;
    return (int64_t)CLAMP(pages, BUDGET_PAGES_MIN, BUDGET_PAGES_MAX);
}

bool capture_prepass(Capture *cap, uint64_t budget_us, GError **errp)
{
    int rounds = budget_us ? BUDGET_ROUNDS : PREPASS_ROUNDS;
    int64_t n = INT64_MAX, enough = enough_pages(cap, budget_us);

    cap->began_at = g_get_monotonic_time();
    begin(cap);
    colo_step("prepass");
    if (!hold_commands(cap, errp)) {
        return false;
    }
    for (int i = 0; i < rounds && n >= enough; i++) {
        n = ram_capture(colo.ram, false, errp);
        if (n < 0) {
            return false;
        }
    }
    return true;
}
