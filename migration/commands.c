/*
 * QMP commands of migration: migrate and what is set for it.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Handlers run in the main thread. Without x-colo a migration is the emulator's own.
 */
#include <string.h>
#include <unistd.h>

#include "migration/colo.h"
#include "monitor/monitor.h"
#include "qapi-commands.h"
#include "util/error.h"
#include "util/options.h"

/* An answer of the child that we complete, or learn from, before the user sees it. */
typedef struct Patch {
    QmpRequest *req;
    void (*patch)(JsonNode *ret);
} Patch;

static void events_on(JsonNode *ret)
{
    g_mutex_lock(&colo.lock);
    colo.cap_events = true;
    g_mutex_unlock(&colo.lock);
}

static void events_off(JsonNode *ret)
{
    g_mutex_lock(&colo.lock);
    colo.cap_events = false;
    g_mutex_unlock(&colo.lock);
}

static void on_patched(JsonNode *ret, const GError *err, void *opaque)
{
    g_autofree Patch *p = opaque;
    JsonNode *copy = ret ? json_node_copy(ret) : NULL;

    if (copy && p->patch) {
        p->patch(copy);
    }
    qmp_request_finish(p->req, copy, err ? g_error_copy(err) : NULL);
}

/* Let the child answer @command (@args is taken), completed by @patch (may be NULL). */
static QmpResult ask_child(QmpRequest *req, const char *command, JsonObject *args,
                           void (*patch)(JsonNode *ret))
{
    Patch *p = g_new(Patch, 1);

    *p = (Patch){req, patch};
    monitor_child_execute(command, args, on_patched, p);
    g_clear_pointer(&args, json_object_unref);
    return QMP_PENDING;
}

/* --- Capabilities and parameters --- */

QmpResult qmp_migrate_set_capabilities(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                       GError **errp)
{
    JsonArray *caps = json_object_get_array_member(args, "capabilities");
    g_autoptr(JsonArray) rest = json_array_new();
    int x_colo = -1;
    void (*learn)(JsonNode *ret) = NULL;

    for (guint i = 0; i < json_array_get_length(caps); i++) {
        JsonNode *n = json_array_get_element(caps, i);
        JsonObject *o = JSON_NODE_HOLDS_OBJECT(n) ? json_node_get_object(n) : NULL;
        if (o && strcmp(options_get_str(o, "capability", ""), "x-colo") == 0 &&
            json_object_has_member(o, "state")) {
            x_colo = json_object_get_boolean_member(o, "state");
        } else {
            json_array_add_element(rest, json_node_copy(n));
        }
        if (o && strcmp(options_get_str(o, "capability", ""), "events") == 0) {
            learn = json_object_get_boolean_member(o, "state") ? events_on : events_off;
        }
    }
    if (x_colo >= 0) {
        g_mutex_lock(&colo.lock);
        bool busy = colo.state != COLO_STATE_ALONE && colo.state != COLO_STATE_WAITING;
        if (!busy) {
            colo.cap_colo = x_colo;
        }
        g_mutex_unlock(&colo.lock);
        if (busy) {
            colo_error_set(errp, "There's a migration process in progress");
            return QMP_FAILED;
        }
    }
    if (json_array_get_length(rest) == 0) {
        return QMP_DONE;
    }
    JsonObject *out = json_object_new();
    json_object_set_array_member(out, "capabilities", g_steal_pointer(&rest));
    return ask_child(req, "migrate-set-capabilities", out, learn);
}

static void patch_capabilities(JsonNode *ret)
{
    JsonArray *a = JSON_NODE_HOLDS_ARRAY(ret) ? json_node_get_array(ret) : NULL;
    bool found = false;

    for (guint i = 0; a && i < json_array_get_length(a); i++) {
        JsonObject *o = json_array_get_object_element(a, i);
        if (strcmp(options_get_str(o, "capability", ""), "x-colo") == 0) {
            json_object_set_boolean_member(o, "state", colo.cap_colo);
            found = true;
        }
    }
    if (a && !found) {
        JsonObject *o = json_object_new();
        json_object_set_boolean_member(o, "state", colo.cap_colo);
        json_object_set_string_member(o, "capability", "x-colo");
        json_array_add_object_element(a, o);
    }
}

QmpResult qmp_query_migrate_capabilities(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                         GError **errp)
{
    return ask_child(req, "query-migrate-capabilities", NULL, patch_capabilities);
}

/* Our parameters: what @args does not name keeps its value. */
typedef struct Parameters {
    uint64_t checkpoint_delay, buffered_interval, max_pause;
    int protect_mode;
} Parameters;

static const char *const own_parameters[] = {"x-checkpoint-delay", "x-colo-mode",
                                             "x-buffered-interval", "x-max-pause"};

static bool read_parameters(JsonObject *args, Parameters *p, GError **errp)
{
    const char *mode = options_get_str(args, "x-colo-mode", NULL);

    if (!options_get_uint(args, "x-checkpoint-delay", &p->checkpoint_delay, 1, UINT32_MAX,
                          errp) ||
        !options_get_uint(args, "x-buffered-interval", &p->buffered_interval,
                          MODE_INTERVAL_MIN, MODE_INTERVAL_MAX, errp) ||
        !options_get_uint(args, "x-max-pause", &p->max_pause, 0, 10000, errp)) {
        return false;
    }
    if (mode) {
        p->protect_mode = protect_mode_find(mode); /* the schema knows the names */
    }
    return true;
}

QmpResult qmp_migrate_set_parameters(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                     GError **errp)
{
    JsonObject *rest = options_copy(args);
    uint64_t bandwidth = 0;

    if (json_object_has_member(args, "max-bandwidth") &&
        options_get_uint(args, "max-bandwidth", &bandwidth, 0, UINT64_MAX, NULL)) {
        ram_send_set_bandwidth(bandwidth); /* QEMU's default is not one of ours */
    }

    g_mutex_lock(&colo.lock);
    Parameters p = {colo.checkpoint_delay, colo.buffered_interval, colo.max_pause,
                    colo.protect_mode};
    g_mutex_unlock(&colo.lock);
    if (!read_parameters(args, &p, errp)) {
        json_object_unref(rest);
        return QMP_FAILED;
    }
    g_mutex_lock(&colo.lock);
    colo.mode_changed |= colo.protect_mode != (ProtectMode)p.protect_mode;
    colo.checkpoint_delay = p.checkpoint_delay;
    colo.buffered_interval = p.buffered_interval;
    colo.max_pause = p.max_pause;
    colo.protect_mode = p.protect_mode;
    g_cond_broadcast(&colo.cond);
    g_mutex_unlock(&colo.lock);
    for (unsigned i = 0; i < G_N_ELEMENTS(own_parameters); i++) {
        json_object_remove_member(rest, own_parameters[i]);
    }
    if (json_object_get_size(rest) == 0 && json_object_get_size(args) > 0) {
        json_object_unref(rest);
        return QMP_DONE;
    }
    return ask_child(req, "migrate-set-parameters", rest, NULL);
}

static void patch_parameters(JsonNode *ret)
{
    if (!JSON_NODE_HOLDS_OBJECT(ret)) {
        return;
    }
    JsonObject *o = json_node_get_object(ret);
    g_mutex_lock(&colo.lock);
    json_object_set_int_member(o, "x-checkpoint-delay", colo.checkpoint_delay);
    json_object_set_string_member(o, "x-colo-mode", protect_mode_name(colo.protect_mode));
    json_object_set_int_member(o, "x-buffered-interval", colo.buffered_interval);
    json_object_set_int_member(o, "x-max-pause", colo.max_pause);
    g_mutex_unlock(&colo.lock);
}

QmpResult qmp_query_migrate_parameters(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                       GError **errp)
{
    return ask_child(req, "query-migrate-parameters", NULL, patch_parameters);
}

/* --- Migration --- */

QmpResult qmp_migrate(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    const char *uri = options_get_str(args, "uri", "");

    g_mutex_lock(&colo.lock);
    bool ours = colo.cap_colo;
    bool busy = colo.state != COLO_STATE_ALONE || colo.mode != COLO_MODE_NONE;
    bool off = colo.guest_off;
    g_mutex_unlock(&colo.lock);
    if (busy) {
        colo_error_set(errp, "There's a migration process in progress");
        return QMP_FAILED;
    }
    if (!ours) {
        return QMP_PASS;
    }
    static const char *const senseless[] = {"blk", "inc", "resume", NULL};
    for (unsigned i = 0; senseless[i]; i++) {
        if (json_object_get_boolean_member_with_default(args, senseless[i], FALSE)) {
            colo_error_set(errp, "Parameter '%s' makes no sense with x-colo: disks have their "
                                 "own replication, and no migration stands still", senseless[i]);
            return QMP_FAILED;
        }
    }
    if (xen_replication_runs()) {
        colo_error_set(errp, "xen-set-replication has started the disks' replication: end it "
                             "first");
        return QMP_FAILED;
    }
    if (off) {
        colo_error_set(errp, "the guest has shut down: nothing to protect");
        return QMP_FAILED;
    }
    if (!g_str_has_prefix(uri, "tcp:") && !g_str_has_prefix(uri, "unix:")) {
        colo_error_set(errp, "Parameter 'uri' expects tcp:host:port or unix:path with "
                             "x-colo, not '%s'", uri);
        return QMP_FAILED;
    }
    if (plain_pending()) {
        colo_error_set(errp, "Guest is waiting for an incoming migration");
        return QMP_FAILED;
    }
    if (colo.thread) {
        g_thread_join(g_steal_pointer(&colo.thread)); /* it has ended: state is ALONE */
    }
    g_mutex_lock(&colo.lock);
    colo.mode = COLO_MODE_PRIMARY;
    colo.reason = "none";
    colo.epoch = colo.sent_epoch = colo.received_epoch = colo.loaded_epoch = 0;
    colo.joined_epoch = 0;
    colo.want_exit = colo.want_checkpoint = colo.peer_took_over = false;
    /* The words of the last round are no proof in this one. */
    colo.decided = colo.operator_vouches = false;
    colo.was_protected = false;
    colo.peer_may_live = false;
    g_clear_pointer(&colo.peer_failure, g_free);
    g_clear_pointer(&colo.error, g_free);
    colo.said_status = NULL;
    memset(&colo.stats, 0, sizeof(colo.stats));
    colo.standing = false;
    colo.peer_clock = 0;
    colo.mode_switches = colo.epochs[0] = colo.epochs[1] = 0;
    g_strlcpy(colo.mode_reason, "start", sizeof(colo.mode_reason));
    colo_set_state_locked(COLO_STATE_SETUP);
    colo.thread = g_thread_new("colo-ckpt", primary_thread, g_strdup(uri));
    g_mutex_unlock(&colo.lock);
    return QMP_DONE;
}

QmpResult qmp_migrate_cancel(QmpRequest *req, JsonObject *args, JsonNode **ret,
                             GError **errp)
{
    g_mutex_lock(&colo.lock);
    bool ours = colo.mode == COLO_MODE_PRIMARY;
    bool sync = colo.state == COLO_STATE_SETUP || colo.state == COLO_STATE_SYNC;
    if (ours && sync) {
        colo.want_exit = true;
        if (colo.channel) {
            channel_cancel(colo.channel);
        }
        g_cond_broadcast(&colo.cond);
    }
    g_mutex_unlock(&colo.lock);
    if (ours && !sync) {
        colo_error_set(errp, "the guest is protected: x-colo-lost-heartbeat ends that");
        return QMP_FAILED;
    }
    return ours ? QMP_DONE : QMP_PASS;
}

static JsonObject *sync_json(void)
{
    JsonObject *ram = json_object_new();
    uint64_t done = MIN(colo.sync_done, colo.sync_total);

    json_object_set_int_member(ram, "total", colo.sync_total);
    json_object_set_int_member(ram, "transferred",
                               colo.channel ? channel_bytes_sent(colo.channel) : done);
    json_object_set_int_member(ram, "remaining", colo.sync_total - done);
    json_object_set_int_member(ram, "page-size", COLO_PAGE_SIZE);
    return ram;
}

QmpResult qmp_query_migrate(QmpRequest *req, JsonObject *args, JsonNode **ret,
                            GError **errp)
{
    g_mutex_lock(&colo.lock);
    const char *status = colo_migration_status();
    if (!status) {
        g_mutex_unlock(&colo.lock);
        return QMP_PASS;
    }
    JsonObject *o = json_object_new();
    json_object_set_string_member(o, "status", status);
    if (colo.sync_total) {
        json_object_set_int_member(
            o, "total-time", (g_get_monotonic_time() - colo.sync_started_us) / 1000);
        json_object_set_object_member(o, "ram", sync_json());
    }
    if (colo.error) {
        json_object_set_string_member(o, "error-desc", colo.error);
    }
    g_mutex_unlock(&colo.lock);
    *ret = json_node_init_object(json_node_alloc(), o);
    json_object_unref(o);
    return QMP_DONE;
}

static void on_incoming(JsonNode *ret, const GError *err, void *opaque)
{
    if (!err) {
        plain_begin();
    }
    qmp_request_finish(opaque, NULL, err ? g_error_copy(err) : NULL);
}

QmpResult qmp_migrate_incoming(QmpRequest *req, JsonObject *args, JsonNode **ret,
                               GError **errp)
{
    const char *uri = options_get_str(args, "uri", "");

    g_mutex_lock(&colo.lock);
    bool x_colo = colo.cap_colo, deferred = colo.deferred;
    bool waits = colo.state == COLO_STATE_WAITING;
    g_mutex_unlock(&colo.lock);
    if (!deferred) {
        colo_error_set(errp, waits || colo.child.incoming
                                 ? "The incoming migration has already been started"
                                 : "'-incoming' was not specified on the command line");
        return QMP_FAILED;
    }
    if (!x_colo) {
        monitor_child_execute("migrate-incoming", args, on_incoming, req);
        return QMP_PENDING;
    }
    if (!g_str_has_prefix(uri, "tcp:") && !g_str_has_prefix(uri, "unix:")) {
        colo_error_set(errp, "Parameter 'uri' expects tcp:host:port or unix:path with "
                             "x-colo, not '%s'", uri);
        return QMP_FAILED;
    }
    /* The port first: an error of it can be mended by another try. */
    int fd = channel_listen(uri, errp);
    if (fd < 0) {
        return QMP_FAILED;
    }
    if (!colo_restart_child(false, errp)) {
        close(fd);
        colo.opts.guest_shutdown(1);
        return QMP_FAILED;
    }
    colo.deferred = false;
    colo.thread = g_thread_new("colo-in", secondary_thread, GINT_TO_POINTER(fd));
    return QMP_DONE;
}
