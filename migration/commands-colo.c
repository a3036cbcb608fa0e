/*
 * QMP commands of protection and of the guest's run state.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "migration/arbiter.h"
#include "migration/colo.h"
#include "migration/heartbeat.h"
#include "monitor/monitor.h"
#include "net/net.h"
#include "net/proxy.h"
#include "qapi-commands.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

QmpResult qmp_x_colo_lost_heartbeat(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                    GError **errp)
{
    g_autofree char *unfenced = block_secondary_unfenced();
    bool fenced = false;
    const char *why = NULL;

    options_get_bool(args, "fenced", &fenced, NULL);
    g_mutex_lock(&colo.lock);
    if (colo.mode == COLO_MODE_NONE) {
        why = "The feature 'colo' is not enabled"; /* QEMU's words */
    } else if (colo.state == COLO_STATE_FENCED || colo.peer_took_over) {
        why = colo.mode == COLO_MODE_SECONDARY
                  ? "the primary goes on alone: this side must stay silent (quit it)"
                  : "the secondary took over: this side must stay silent (quit it)";
    } else if (colo.mode == COLO_MODE_SECONDARY && colo.state != COLO_STATE_PROTECTED &&
               colo.state != COLO_STATE_LOST) {
        why = colo.state == COLO_STATE_TAKEOVER
                  ? "the takeover is under way"
                  : "protection has not begun yet: nothing here could take over";
    } else if (colo.mode == COLO_MODE_SECONDARY && unfenced && !fenced && !colo.decided &&
               !arbiter_answers(colo.arbiter)) {
        why = "a disk is shared with the primary, whose last writes a takeover must not meet: "
              "switch its host off, then say so with fenced=true (or use arbiter=fence)";
    } else {
        colo.want_exit = true;
        colo.operator_vouches = fenced;
        if (colo.channel) {
            channel_cancel(colo.channel);
        }
        g_cond_broadcast(&colo.cond);
    }
    g_mutex_unlock(&colo.lock);
    if (why) {
        colo_error_set(errp, "%s", why);
        return QMP_FAILED;
    }
    return QMP_DONE;
}

/* Room singleton (main thread): what completes the status. */
static void (*status_hook)(JsonObject *status);

void migration_set_status_hook(void (*fn)(JsonObject *status))
{
    status_hook = fn;
}

static JsonObject *memory_json(void)
{
    JsonObject *o = json_object_new();
    uint64_t staging, cache;

    ram_memory(colo.ram, &staging, &cache);
    json_object_set_int_member(o, "guest-ram", ram_size(colo.ram));
    json_object_set_int_member(o, "staging", staging);
    json_object_set_int_member(o, "cache", cache);
    return o;
}

QmpResult qmp_query_colo_status(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                GError **errp)
{
    JsonObject *o = json_object_new();
    uint64_t frames = 0, bytes = 0;

    net_lock();
    proxy_held(&frames, &bytes);
    net_unlock();
    g_mutex_lock(&colo.lock);
    bool active = colo.state == COLO_STATE_PROTECTED || colo.state == COLO_STATE_LOST ||
                  colo.state == COLO_STATE_FENCED || colo.state == COLO_STATE_TAKEOVER;
    json_object_set_string_member(o, "mode", colo_mode_name(active ? colo.mode : 0));
    json_object_set_string_member(o, "last-mode", colo_mode_name(colo.last_mode));
    json_object_set_string_member(o, "reason", colo.reason);
    json_object_set_string_member(o, "state", colo_state_name(colo.state));
    json_object_set_int_member(o, "epoch", colo.epoch);
    json_object_set_int_member(o, "checkpoint-delay", colo.checkpoint_delay);
    json_object_set_string_member(o, "protect-mode", protect_mode_name(colo.protect_mode));
    json_object_set_string_member(o, "active-mode", protect_mode_name(colo.standing));
    json_object_set_string_member(o, "mode-reason", colo.mode_reason);
    json_object_set_int_member(o, "mode-switches", colo.mode_switches);
    json_object_set_int_member(o, "epochs-colo", colo.epochs[0]);
    json_object_set_int_member(o, "epochs-buffered", colo.epochs[1]);
    json_object_set_int_member(o, "buffered-interval", colo.buffered_interval);
    json_object_set_string_member(o, "tracker", tracker_name(colo.tracker));
    json_object_set_int_member(o, "ram-overhead", ram_overhead(colo.ram));
    json_object_set_int_member(o, "bytes-sent",
                               colo.channel ? channel_bytes_sent(colo.channel) : 0);
    link_to_json(&colo.link, o);
    if (colo.error) {
        json_object_set_string_member(o, "error", colo.error);
    }
    colo_disk_wait_describe_locked(o);
    json_object_set_int_member(o, "clock-skew-last-us", colo.peer_skew);
    stats_to_json(&colo.stats, o);
    g_autofree char *no_answer = g_strdup(colo.arbiter_error);
    g_mutex_unlock(&colo.lock);
    json_object_set_object_member(o, "memory", memory_json());
    if (colo.arbiter) {
        JsonObject *a = json_object_new();
        json_object_set_string_member(a, "kind", colo.arbiter->class->name);
        if (colo.arbiter->class->describe) {
            colo.arbiter->class->describe(colo.arbiter, a);
        }
        if (no_answer) {
            json_object_set_string_member(a, "error", no_answer);
        }
        json_object_set_object_member(o, "arbiter", a);
    }
    if (status_hook) {
        status_hook(o);
    }
    heartbeat_describe(o);
    json_object_set_int_member(o, "held-frames", frames);
    json_object_set_int_member(o, "held-bytes", bytes);
    json_object_set_member(o, "disks", block_replication_query());
    *ret = json_node_init_object(json_node_alloc(), o);
    json_object_unref(o);
    return QMP_DONE;
}

QmpResult qmp_query_colo_stats(QmpRequest *req, JsonObject *args, JsonNode **ret,
                               GError **errp)
{
    JsonObject *o = json_object_new();

    g_mutex_lock(&colo.lock);
    bool primary = colo.mode == COLO_MODE_PRIMARY ||
                   (colo.mode == COLO_MODE_NONE && colo.last_mode == COLO_MODE_PRIMARY);
    json_object_set_int_member(o, "epoch", colo.epoch);
    json_object_set_int_member(o, "now-us", g_get_monotonic_time());
    json_object_set_string_member(o, "active-mode", protect_mode_name(colo.standing));
    stats_details_to_json(&colo.stats, primary, o);
    g_mutex_unlock(&colo.lock);
    json_object_set_object_member(o, "memory", memory_json());
    *ret = json_node_init_object(json_node_alloc(), o);
    json_object_unref(o);
    return QMP_DONE;
}

QmpResult qmp_xen_colo_do_checkpoint(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                     GError **errp)
{
    if (xen_replication_runs()) {
        return xen_replication_checkpoint(errp) ? QMP_DONE : QMP_FAILED;
    }
    if (colo.mode != COLO_MODE_PRIMARY) {
        colo_error_set(errp, "this side is not a COLO primary");
        return QMP_FAILED;
    }
    colo_request_checkpoint(COLO_TRIGGER_REQUEST, "xen-colo-do-checkpoint");
    return QMP_DONE;
}

/* The user's stop and cont. While protected they take effect as a checkpoint, so that the
 * SVM stops and runs with the PVM; in the middle of one, after it. */
static QmpResult change_run_state(QmpRequest *req, bool pause, GError **errp)
{
    QmpResult r = QMP_PASS;

    g_mutex_lock(&colo.lock);
    if (colo.mode == COLO_MODE_SECONDARY && colo.child.incoming) {
        /* No twin yet: the emulator notes it for the end of a plain migration. */
    } else if (colo.mode == COLO_MODE_SECONDARY) {
        colo_error_set(errp, "this is the secondary: its guest follows the primary's");
        r = QMP_FAILED;
    } else if (colo.state == COLO_STATE_FENCED) {
        colo_error_set(errp, "the secondary took over: this guest must not run");
        r = QMP_FAILED;
    } else if (colo.mode == COLO_MODE_PRIMARY &&
               (colo.state == COLO_STATE_PROTECTED || colo.capturing)) {
        colo.user_paused = pause;
        colo.run_state_changed = true;
        g_ptr_array_add(colo.run_state_requests, req);
        g_cond_broadcast(&colo.cond);
        r = QMP_PENDING;
    } else {
        colo.user_paused = pause;
    }
    g_mutex_unlock(&colo.lock);
    return r;
}

QmpResult qmp_stop(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    return change_run_state(req, true, errp);
}

QmpResult qmp_cont(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    return change_run_state(req, false, errp);
}

static void on_status(JsonNode *ret, const GError *err, void *opaque)
{
    JsonNode *copy = ret ? json_node_copy(ret) : NULL;

    g_mutex_lock(&colo.lock);
    bool ours = colo.state == COLO_STATE_PROTECTED && !colo.guest_off;
    bool waiting = colo.mode == COLO_MODE_SECONDARY && colo.epoch == 0;
    if (copy && (ours || waiting)) {
        /* What the user wants, not what a checkpoint does for two milliseconds. */
        JsonObject *o = json_node_get_object(copy);
        bool run = ours && !colo.user_paused;
        bool io_error = !run && !strcmp(options_get_str(o, "status", ""), "io-error");
        json_object_set_boolean_member(o, "running", run);
        if (!io_error) {
            json_object_set_string_member(
                o, "status", waiting ? "inmigrate" : (run ? "running" : "paused"));
        }
    } else if (copy && colo.mode != COLO_MODE_NONE && !colo.user_paused && !colo.guest_off) {
        /* It stands still for protection's sake, not for the user's. */
        JsonObject *o = json_node_get_object(copy);
        if (!strcmp(options_get_str(o, "status", ""), "paused")) {
            json_object_set_string_member(o, "status", "colo");
        }
    }
    g_mutex_unlock(&colo.lock);
    qmp_request_finish(opaque, copy, err ? g_error_copy(err) : NULL);
}

QmpResult qmp_query_status(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    monitor_child_execute("query-status", NULL, on_status, req);
    return QMP_PENDING;
}

static gboolean quit_now(gpointer opaque)
{
    colo.opts.guest_shutdown(0);
    return G_SOURCE_REMOVE;
}

QmpResult qmp_quit(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    g_timeout_add(20, quit_now, NULL); /* after the answer has gone out */
    return QMP_DONE;
}

/* RULES 8: on the PVM the guest's own end is output, which needs a checkpoint first; on
 * the SVM it is a mismatch. */
static bool guest_ended(const char *name)
{
    g_mutex_lock(&colo.lock);
    ColoMode mode = colo.mode;
    ColoState state = colo.state;
    bool primary = mode == COLO_MODE_PRIMARY;
    bool shutdown = strcmp(name, "SHUTDOWN") == 0;
    if (mode != COLO_MODE_SECONDARY) {
        colo.guest_off = true;
        colo.guest_exit = shutdown && !colo.opts.no_shutdown;
        colo.run_state_changed = true;
        g_cond_broadcast(&colo.cond);
    } else if (colo.channel) {
        channel_try_text(colo.channel, CHANNEL_REQUEST, name);
    }
    g_mutex_unlock(&colo.lock);
    colo_trace(migration_guest_ended, "%s in state %s", name, colo_state_name(state));
    if (mode == COLO_MODE_SECONDARY) {
        return false;
    }
    if (shutdown && !colo.opts.no_shutdown &&
        (!primary || state != COLO_STATE_PROTECTED)) {
        g_timeout_add(20, quit_now, NULL);
    }
    return true;
}

/* RULES 8: what stopped the PVM (an I/O error, a watchdog) stops the pair, as a user
 * would, until cont; on the SVM it is a mismatch. */
static void guest_was_stopped(const char *event)
{
    g_mutex_lock(&colo.lock);
    ColoState state = colo.state;
    if (colo.mode != COLO_MODE_SECONDARY) {
        colo.user_paused = true;
        colo.run_state_changed = true;
        g_cond_broadcast(&colo.cond);
    } else if (colo.channel) {
        channel_try_text(colo.channel, CHANNEL_REQUEST, event);
    }
    g_mutex_unlock(&colo.lock);
    colo_trace(migration_guest_stopped, "%s in state %s", event, colo_state_name(state));
}

static void disk_stopped_guest(JsonObject *data)
{
    if (strcmp(options_get_str(data, "action", ""), "stop") != 0) {
        return;
    }
    guest_was_stopped("BLOCK_IO_ERROR");
    colo_report("the guest stands still, as its disk '%s' has an I/O error (%s); cont lets it "
                "try again", options_get_str(data, "device", ""),
                options_get_str(data, "reason", "?"));
}

bool migration_guest_runs(void)
{
    g_mutex_lock(&colo.lock);
    bool runs = !colo.user_paused && !colo.guest_off;
    g_mutex_unlock(&colo.lock);
    return runs;
}

bool migration_allows(const char *command, GError **errp)
{
    static const char *const changes[] = {
        "device_add", "device_del", "netdev_add", "netdev_del", "blockdev-add",
        "blockdev-del", "blockdev-change-medium", "blockdev-open-tray",
        "blockdev-close-tray", "blockdev-remove-medium", "blockdev-insert-medium", "eject",
        "change", "block_resize", "balloon", "blockdev-snapshot", "blockdev-snapshot-sync",
        "blockdev-reopen", "snapshot-load", "snapshot-save", "snapshot-delete",
        "xen-load-devices-state", "xen-save-devices-state", "set-numa-node",
        "migrate-incoming", "x-exit-preconfig", NULL,
    };

    g_mutex_lock(&colo.lock);
    bool busy = colo.mode != COLO_MODE_NONE && colo.state != COLO_STATE_WAITING;
    g_mutex_unlock(&colo.lock);
    if (busy && g_strv_contains(changes, command)) {
        colo_error_set(errp, "'%s' would change this machine but not its twin: end "
                             "protection first, then protect again", command);
        return false;
    }
    return true;
}

/* Whether the child's STOP or RESUME is shown. Where those of checkpoints are hidden, the
 * user sees the ones that do as he wishes (an I/O error's stop, too). */
static bool show_run_state(bool run)
{
    g_mutex_lock(&colo.lock);
    bool hide = colo.opts.hide_events && colo.mode != COLO_MODE_NONE;
    bool wish = !colo.user_paused && !colo.guest_off;
    bool show = !hide || (run == wish && run != colo.shown_running);
    if (show) {
        colo.shown_running = run;
    }
    g_mutex_unlock(&colo.lock);
    return show;
}

/* RULES 8: a checkpoint has no place for a machine that sleeps: one that does is woken, before
 * anybody counts on its state. */
static void guest_sleeps(void)
{
    g_mutex_lock(&colo.lock);
    bool wake = colo.mode != COLO_MODE_NONE && colo.state != COLO_STATE_WAITING;
    if (wake && colo.mode == COLO_MODE_SECONDARY && colo.channel) {
        channel_try_text(colo.channel, CHANNEL_REQUEST, "SUSPEND"); /* a mismatch */
    }
    g_mutex_unlock(&colo.lock);
    if (wake) {
        colo_report("the guest went to sleep (S3): under protection it is woken at once");
        monitor_child_execute("system_wakeup", NULL, NULL, NULL);
        colo_request_checkpoint(COLO_TRIGGER_REQUEST, "SUSPEND");
    }
}

bool migration_child_event(const char *name, JsonObject *data)
{
    if (strcmp(name, "SHUTDOWN") == 0 || strcmp(name, "GUEST_PANICKED") == 0) {
        return guest_ended(name);
    }
    if (strcmp(name, "BLOCK_IO_ERROR") == 0 && data) {
        disk_stopped_guest(data);
        return true;
    }
    if (strcmp(name, "WATCHDOG") == 0 && data &&
        strcmp(options_get_str(data, "action", ""), "pause") == 0) {
        guest_was_stopped(name);
        return true;
    }
    if (strcmp(name, "SUSPEND") == 0) {
        guest_sleeps();
        return true;
    }
    if (strcmp(name, "RESET") == 0) {
        g_mutex_lock(&colo.lock);
        colo.guest_off = colo.guest_exit = false;
        g_mutex_unlock(&colo.lock);
    }
    if (strcmp(name, "RESUME") == 0) {
        g_mutex_lock(&colo.lock);
        if (colo.mode == COLO_MODE_NONE) {
            colo.user_paused = colo.plain_incoming ? false : colo.user_paused;
            colo.plain_incoming = false;
        }
        g_mutex_unlock(&colo.lock);
    }
    return strcmp(name, "STOP") == 0     ? show_run_state(false)
           : strcmp(name, "RESUME") == 0 ? show_run_state(true)
                                         : true;
}
