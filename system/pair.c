/*
 * Protection that looks after itself: -colo pair=on.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: nobody types the manual's commands. A side that takes over becomes ready to be a
 * primary; one that serves alone looks for a secondary and is protected by it.
 *
 * One thread ("colo-pair") looks at the controller's state and does what comes next, through a
 * QMP session of its own with this program's monitor, so that the automatic and the manual
 * path are one. It decides nothing about who may speak: that is done, by arbiter and
 * controller, before it sees the side serve, and a client waits for none of its steps.
 *
 * Invariants:
 * - A try that failed leaves nothing behind (pair_undo()) before the next one begins.
 * - The guest is stopped by us for one bounded moment, and never left so.
 * - What the peer's pair port says decides when to try, and at the start whether to try to
 *   serve; never that this side may speak.
 */
#include "system/pair-int.h"

#include <stdio.h>
#include <string.h>

#include "monitor/monitor.h"
#include "qapi-commands.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

#define ASK_MS 1000
#define LOOK_MS 1000
/* How long a start may take until the other gives way. */
#define START_MS 30000
#define START_LOOK_MS 100

Pair pair;

static const char *const state_names[] = {"off",        "idle",      "waiting-peer", "resync",
                                          "protecting", "protected", "backoff",      "failed"};

bool pair_quits(void)
{
    g_mutex_lock(&pair.lock);
    bool quit = pair.want_quit;
    g_mutex_unlock(&pair.lock);
    return quit;
}

void pair_set_state(PairState s, const char *detail)
{
    g_mutex_lock(&pair.lock);
    bool news = s != pair.state || strcmp(detail, pair.detail) != 0;
    pair.state = s;
    g_strlcpy(pair.detail, detail, sizeof(pair.detail));
    g_mutex_unlock(&pair.lock);
    if (!news) {
        return;
    }
    colo_trace(pair_state, "%s: %s", state_names[s], detail);
    JsonObject *data = json_object_new();
    json_object_set_string_member(data, "state", state_names[s]);
    json_object_set_string_member(data, "detail", detail);
    monitor_event("COLO_PAIR", data);
}

static void set_error(const char *text)
{
    g_mutex_lock(&pair.lock);
    g_strlcpy(pair.error, text, sizeof(pair.error));
    g_mutex_unlock(&pair.lock);
}

/* --- What others see --- */

/* Whether this side may speak for the guest, as far as the controller knows. */
static bool serves(const MigrationView *v, bool starting)
{
    return !starting && (v->state == MIGRATION_ALONE ||
                         (!v->secondary && (v->state == MIGRATION_SETUP ||
                                            v->state == MIGRATION_SYNC ||
                                            v->state == MIGRATION_PROTECTED)));
}

static JsonArray *exports(void)
{
    JsonArray *a = json_array_new();

    for (guint i = 0; pair.incoming && i < pair.layout->disks->len; i++) {
        const PairDisk *d = pair.layout->disks->pdata[i];
        JsonObject *o = json_object_new();

        json_object_set_string_member(o, "top", d->top);
        json_object_set_string_member(o, "export", d->export ? d->export : "");
        json_object_set_boolean_member(o, "shared", d->shared);
        json_array_add_object_element(a, o);
    }
    return a;
}

/* The pair port's answer; its thread. */
static char *port_line(void *opaque)
{
    g_autoptr(JsonObject) o = json_object_new();
    g_autoptr(JsonNode) node = json_node_new(JSON_NODE_OBJECT);
    MigrationView v;

    migration_view(&v);
    g_mutex_lock(&pair.lock);
    bool starting = pair.starting;
    bool automatic = pair.opts.auto_protect && !pair.hold;
    g_mutex_unlock(&pair.lock);
    const char *role = starting ? (pair.incoming ? "secondary" : "primary") : v.role;
    bool wants = !starting && (v.state == MIGRATION_WAITING ||
                               (v.state == MIGRATION_ALONE && automatic &&
                                !v.guest_off));
    json_object_set_string_member(o, "program", "qemu-colo");
    json_object_set_string_member(o, "version", COLO_VERSION);
    json_object_set_string_member(o, "name", pair.name ? pair.name : "");
    json_object_set_string_member(o, "state", starting ? "starting" : v.name);
    json_object_set_boolean_member(o, "serves", serves(&v, starting));
    json_object_set_string_member(o, "role", role);
    json_object_set_int_member(o, "epoch", v.epoch);
    json_object_set_boolean_member(o, "wants-peer", wants);
    json_object_set_int_member(o, "instance", pair.instance);
    /* The images' names do not change, but a primary learns its secondary's. */
    if (pair.incoming && (starting || v.state == MIGRATION_WAITING)) {
        json_object_set_array_member(o, "disks", exports());
    }
    json_node_set_object(node, o);
    g_autofree char *text = json_to_string(node, FALSE);
    return g_strconcat(text, "\n", NULL);
}

static void add_status(JsonObject *status)
{
    JsonObject *o = json_object_new();

    g_mutex_lock(&pair.lock);
    int64_t left = pair.next_us - g_get_monotonic_time();
    json_object_set_string_member(o, "state", state_names[pair.state]);
    json_object_set_string_member(o, "detail", pair.detail);
    json_object_set_string_member(o, "peer", pair.opts.peer);
    json_object_set_int_member(o, "attempts", pair.attempts);
    json_object_set_int_member(o, "next-try-ms",
                               pair.state == PAIR_BACKOFF ? MAX(0, left / 1000) : 0);
    json_object_set_string_member(o, "error", pair.error);
    json_object_set_int_member(o, "resync-done", pair.resync_done);
    json_object_set_int_member(o, "resync-total", pair.resync_total);
    json_object_set_int_member(o, "resync-pause-us", pair.resync_pause_us);
    g_mutex_unlock(&pair.lock);
    json_object_set_object_member(status, "pair", o);
}

QmpResult qmp_x_colo_protect(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    MigrationView v;
    bool enable = true;
    int sync = pair_sync_parse(options_get_str(args, "sync", ""));

    options_get_bool(args, "enable", &enable, NULL);
    migration_view(&v);
    if (!pair.opts.on) {
        colo_error_set(errp, "x-colo-protect needs -colo pair=on");
        return QMP_FAILED;
    }
    if (v.state == MIGRATION_WAITING || v.secondary) {
        colo_error_set(errp, "this is the secondary: the side that serves protects itself");
        return QMP_FAILED;
    }
    g_mutex_lock(&pair.lock);
    pair.hold = !enable;
    pair.want_now = enable && v.state == MIGRATION_ALONE;
    pair.want_sync = sync < 0 ? -1 : sync;
    g_mutex_unlock(&pair.lock);
    migration_poke();
    return QMP_DONE;
}

/* --- The thread --- */

/* Nothing of an earlier role may be in the way. */
static bool tidy_up(Pair *p)
{
    g_autoptr(GError) err = NULL;

    if (!p->tidy) {
        p->tidy = p->incoming ? pair_become_primary(p, &err) && pair_undo(p, &err)
                              : pair_undo(p, &err);
    }
    if (!p->tidy) {
        colo_report("pair: after the last role: %s", err->message);
        set_error(err->message);
        pair_set_state(PAIR_FAILED, "the last role is not undone");
    }
    return p->tidy;
}

/* Ask the peer; whether it waits for a primary. */
static bool find_secondary(Pair *p, PairPeer *peer)
{
    g_autoptr(GError) err = NULL;
    bool absent = false;

    if (!pair_port_ask(p->opts.peer, p->opts.pair_port, ASK_MS, peer, &absent, &err)) {
        pair_set_state(PAIR_WAITING_PEER, absent ? "nobody answers" : err->message);
        return false;
    }
    if (peer->serves) {
        pair_set_state(PAIR_FAILED, "the peer serves, too: quit one of them");
        return false;
    }
    if (strcmp(peer->state, "waiting") != 0) {
        g_autofree char *text = g_strdup_printf("the peer is %s", peer->state);
        pair_set_state(PAIR_WAITING_PEER, text);
        return false;
    }
    return true;
}

static void try_to_protect(Pair *p, const PairPeer *peer)
{
    g_autoptr(GError) err = NULL;
    g_autoptr(GError) undo = NULL;

    g_mutex_lock(&p->lock);
    p->attempts++;
    p->want_now = false;
    p->sync = p->want_sync < 0 ? p->opts.sync : (PairSync)p->want_sync;
    p->want_sync = -1;
    p->resync_done = p->resync_total = 0;
    g_mutex_unlock(&p->lock);
    p->tidy = false;
    if (pair_protect(p, peer, &err)) {
        set_error("");
        return;
    }
    if (pair_quits()) {
        return;
    }
    pair_backoff_failed(&p->backoff, g_get_monotonic_time());
    set_error(err->message);
    colo_report("pair: protection by %s failed: %s", p->opts.peer, err->message);
    p->tidy = pair_undo(p, &undo);
    if (!p->tidy) {
        colo_report("pair: undoing the try: %s", undo->message);
    }
}

/* This side serves alone. Returns how long to wait, ms. */
static unsigned alone(Pair *p, const MigrationView *v)
{
    PairPeer peer;

    if (p->backoff.protected_us) {
        /* It was protected and is not any more. */
        pair_backoff_failed(&p->backoff, g_get_monotonic_time());
        p->tidy = false;
    }
    if (!tidy_up(p)) {
        return LOOK_MS;
    }
    g_mutex_lock(&p->lock);
    bool now = p->want_now, hold = p->hold;
    g_mutex_unlock(&p->lock);
    if (now) {
        pair_backoff_reset(&p->backoff);
    }
    p->has_run |= !v->paused;
    if (v->guest_off) {
        pair_set_state(PAIR_IDLE, "the guest has shut down");
        return LOOK_MS;
    } else if (!now && (hold || !p->opts.auto_protect)) {
        pair_set_state(PAIR_IDLE, hold ? "switched off by x-colo-protect" : "auto-protect=off");
        return LOOK_MS;
    } else if (!now && v->paused && p->has_run) {
        /* Protection would let it run. */
        pair_set_state(PAIR_IDLE, "the guest is stopped");
        return LOOK_MS;
    }
    unsigned wait = pair_backoff_wait_ms(&p->backoff, g_get_monotonic_time());
    if (wait) {
        g_mutex_lock(&p->lock);
        p->next_us = p->backoff.next_us;
        g_mutex_unlock(&p->lock);
        pair_set_state(PAIR_BACKOFF, "");
        return wait;
    }
    if (!find_secondary(p, &peer)) {
        return LOOK_MS;
    }
    try_to_protect(p, &peer);
    return 0;
}

static void is_protected(Pair *p)
{
    if (!p->backoff.protected_us) {
        pair_backoff_protected(&p->backoff, g_get_monotonic_time());
        p->tidy = false;
        g_mutex_lock(&p->lock);
        p->attempts = 0;
        p->want_now = false;
        g_mutex_unlock(&p->lock);
    }
    pair_set_state(PAIR_PROTECTED, "");
}

static gpointer pair_thread(gpointer opaque)
{
    Pair *p = opaque;
    g_autoptr(GError) err = NULL;
    bool ready = pair_qmp_begin(p->qmp, &err) &&
                 (!p->incoming || pair_prepare_secondary(p, &err));

    if (!ready && !pair_quits()) {
        colo_report("pair: %s", err->message);
        set_error(err->message);
        pair_set_state(PAIR_FAILED, "the start");
        p->end(1);
        return NULL;
    }
    while (!pair_quits()) {
        MigrationView v;
        unsigned wait = LOOK_MS;

        migration_view(&v);
        pair_qmp_drain(p->qmp);
        switch (v.state) {
        case MIGRATION_ALONE:
            wait = alone(p, &v);
            break;
        case MIGRATION_WAITING:
            pair_set_state(PAIR_WAITING_PEER, "for a primary");
            break;
        case MIGRATION_SETUP:
        case MIGRATION_SYNC:
            pair_set_state(PAIR_PROTECTING, "first copy of memory");
            break;
        case MIGRATION_PROTECTED:
            is_protected(p);
            break;
        case MIGRATION_LOST:
        case MIGRATION_TAKEOVER:
            pair_set_state(PAIR_IDLE, "the peer is lost");
            break;
        case MIGRATION_FENCED:
            pair_set_state(PAIR_IDLE, "the other side goes on");
            colo_report("pair: this side ends with status %d: start it as secondary",
                        PAIR_STATUS_ROLE_CHANGED);
            p->end(PAIR_STATUS_ROLE_CHANGED);
            return NULL;
        }
        if (wait) {
            migration_wait_change(v.changes, wait);
        }
    }
    return NULL;
}

/* --- Start and end --- */

/* The keys of all -colo as one object; wrong ones are complained about when the line is read. */
static JsonObject *colo_keys(const CmdLine *cl)
{
    JsonObject *all = json_object_new();

    for (guint i = 0; i < cl->options->len; i++) {
        const CmdOption *o = &g_array_index(cl->options, CmdOption, i);
        g_autoptr(JsonObject) more = strcmp(o->name, "colo") == 0 && o->arg
                                         ? options_parse(o->arg, NULL, NULL) : NULL;
        JsonObjectIter it;
        const char *key;
        JsonNode *value;
        if (more) {
            json_object_iter_init(&it, more);
            while (json_object_iter_next(&it, &key, &value)) {
                json_object_set_member(all, key, json_node_copy(value));
            }
        }
    }
    return all;
}

/* A side that is to be the primary asks first. Of two that start at once the one with the
 * larger number goes on; but one that had asked before the other listened goes on whatever its
 * number, so the larger one waits to see what becomes of the other. */
static bool may_serve(int *status, GError **errp)
{
    int64_t end = g_get_monotonic_time() + START_MS * 1000LL;
    bool absent = false, alive = false, starting = false;
    PairPeer peer;

    do {
        g_autoptr(GError) err = NULL;
        if (starting) {
            g_usleep(START_LOOK_MS * 1000);
        }
        if (!pair_port_ask(pair.opts.peer, pair.opts.pair_port, 2 * ASK_MS, &peer, &absent,
                           &err)) {
            if (!absent) {
                colo_report("pair: %s", err->message);
            }
            return true;
        }
        alive = peer.serves || strcmp(peer.state, "protected") == 0 ||
                strcmp(peer.state, "lost") == 0 || strcmp(peer.state, "takeover") == 0;
        starting = strcmp(peer.state, "starting") == 0 && strcmp(peer.role, "primary") == 0;
    } while (starting && peer.instance < pair.instance && g_get_monotonic_time() < end);
    if (!alive && !starting) {
        return true;
    }
    *status = PAIR_STATUS_PEER_SERVES;
    colo_error_set(errp, "the peer %s (%s) %s: start this side as secondary", pair.opts.peer,
                   peer.name, peer.serves ? "serves the guest"
                              : starting  ? "is about to serve the guest"
                                          : "has the guest's last state");
    return false;
}

bool pair_init(const CmdLine *cl, void (*end)(int status), int *status, GError **errp)
{
    *status = 1;
    pair.colo = colo_keys(cl);
    if (!pair_options_read(&pair.opts, pair.colo, errp)) {
        return false;
    }
    if (!pair.opts.on) {
        return true;
    }
    g_mutex_init(&pair.lock);
    pair.end = end;
    pair.backoff.quiet_ms = pair.opts.quiet * 1000LL;
    for (guint i = 0; i < cl->options->len; i++) {
        pair.incoming |= !strcmp(g_array_index(cl->options, CmdOption, i).name, "incoming");
    }
    pair.starting = true;
    pair.state = PAIR_IDLE;
    pair.want_sync = -1;
    pair.instance = (uint64_t)g_random_int() << 20 | g_random_int_range(0, 1 << 20);
    pair.name = cmdline_find(cl, "name", "guest", "guest");
    pair.layout = pair_layout_new(cl, &pair.opts, errp);
    if (!pair.layout) {
        return false;
    }
    pair.port = pair_port_new(pair.opts.listen, pair.opts.pair_port, port_line, NULL, errp);
    return pair.port && (pair.incoming || may_serve(status, errp));
}

bool pair_on(void)
{
    return pair.opts.on;
}

bool pair_start(GError **errp)
{
    if (!pair.opts.on) {
        return true;
    }
    int fd = monitor_open_session(errp);
    if (fd < 0) {
        return false;
    }
    pair.qmp = pair_qmp_new(fd);
    g_mutex_lock(&pair.lock);
    pair.starting = false;
    g_mutex_unlock(&pair.lock);
    migration_set_status_hook(add_status);
    /* What the command line made is what a first try needs. */
    pair.tidy = !pair.incoming;
    pair.thread = g_thread_new("colo-pair", pair_thread, &pair);
    return true;
}

void pair_stop(void)
{
    if (pair.opts.on) {
        g_mutex_lock(&pair.lock);
        pair.want_quit = true;
        g_mutex_unlock(&pair.lock);
        pair_port_free(g_steal_pointer(&pair.port));
    }
}

void pair_join(void)
{
    if (pair.thread) {
        g_thread_join(g_steal_pointer(&pair.thread));
    }
    pair_qmp_free(g_steal_pointer(&pair.qmp));
    g_clear_pointer(&pair.layout, pair_layout_free);
    g_clear_pointer(&pair.name, g_free);
    g_clear_pointer(&pair.colo, json_object_unref);
    pair.opts = (PairOptions){0};
}
