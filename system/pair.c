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
 *   serve (pair-peer.c has that rule); never that this side may speak.
 */
#include "system/pair-int.h"

#include <stdio.h>
#include <string.h>

#include "monitor/monitor.h"
#include "qapi-commands.h"
#include "util/error.h"
#include "util/key-file.h"
#include "util/options.h"
#include "util/trace.h"

#define ASK_MS 1000
#define LOOK_MS 1000
/* How long a start may take until the other gives way. */
#define START_MS 30000
#define START_LOOK_MS 100
#define START_AGAIN_MS 300
#define START_SAY_MS 60000 /* why it does not start: that often */

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
    g_autofree char *asks = g_strdup(pair.asks);
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
    if (*asks) {
        json_object_set_string_member(o, "asks", asks);
    }
    json_object_set_int_member(o, "instance", pair.instance);
    /* The images' names do not change, but a primary learns its secondary's. */
    if (pair.incoming && (starting || v.state == MIGRATION_WAITING)) {
        json_object_set_array_member(o, "disks", exports());
    }
    json_node_set_object(node, o);
    return json_to_string(node, FALSE);
}

static void add_status(JsonObject *status)
{
    JsonObject *o = json_object_new();

    json_object_set_boolean_member(o, "authenticated", pair.key.len > 0);
    json_object_set_int_member(o, "reflected", pair.port ? pair_port_reflected(pair.port) : 0);
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
    for (unsigned r = 1; r < PAIR_REFUSAL_MAX; r++) {
        g_autofree char *name = g_strdup_printf("refused-%s", pair_refusal_names[r]);
        json_object_set_int_member(o, name, pair.refused[r]);
    }
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

/* Ask the peer. What is not believed is counted; it is reported by who asks. */
static PairHearing ask_peer(Pair *p, unsigned timeout_ms, PairPeer *peer, GError **errp)
{
    PairRefusal r = PAIR_OK;
    PairHearing h = pair_peer_ask(p->opts.peer, p->opts.pair_port, timeout_ms, &p->key, peer, &r,
                                  errp);

    if (h == PAIR_NOT_BELIEVED) {
        colo_trace(pair_refused, "%s", pair_refusal_names[r]);
        g_mutex_lock(&p->lock);
        p->refused[r]++;
        g_mutex_unlock(&p->lock);
    }
    return h;
}

/* Ask the peer; whether it waits for a primary. */
static bool find_secondary(Pair *p, PairPeer *peer)
{
    g_autoptr(GError) err = NULL;
    PairHearing h = ask_peer(p, ASK_MS, peer, &err);

    if (h == PAIR_NOT_BELIEVED && g_strcmp0(err->message, p->reported) != 0) {
        colo_report("pair: %s", err->message);
        g_free(p->reported);
        p->reported = g_strdup(err->message);
    }
    if (h != PAIR_HEARD) {
        pair_set_state(PAIR_WAITING_PEER, h == PAIR_NOBODY ? "nobody answers" : err->message);
        return false;
    }
    g_clear_pointer(&p->reported, g_free);
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

/* Options of the one colo-heartbeat that the line may have. */
static JsonObject *find_heartbeat(const CmdLine *cl)
{
    for (guint i = 0; i < cl->options->len; i++) {
        const CmdOption *o = &g_array_index(cl->options, CmdOption, i);
        g_autoptr(JsonObject) obj = strcmp(o->name, "object") == 0 && o->arg
                                        ? options_parse(o->arg, "qom-type", NULL) : NULL;
        if (obj && strcmp(options_get_str(obj, "qom-type", ""), "colo-heartbeat") == 0) {
            return g_steal_pointer(&obj);
        }
    }
    return NULL;
}

static bool read_key(const CmdLine *cl, GError **errp)
{
    g_autoptr(JsonObject) heartbeat = find_heartbeat(cl);
    const char *path = heartbeat ? options_get_str(heartbeat, "key-file", NULL) : NULL;

    if (!path) {
        colo_report("pair: there is no key-file, so anybody on the network of %s can pretend to be "
                    "the peer: give both sides a colo-heartbeat with key-file=",
                    pair.opts.listen);
        return true;
    }
    return key_file_read(path, pair.key.bytes, &pair.key.len, errp);
}

/* -colo state-file=: what this side was last; NULL if nobody has written that. */
static char *read_state_file(void)
{
    const char *path = options_get_str(pair.colo, "state-file", NULL);
    char *text = NULL;

    if (path && g_file_get_contents(path, &text, NULL, NULL)) {
        g_strstrip(text);
    }
    return text;
}

/* Show whose word is waited for, and @why there is none; say it when it is new, and again. */
static void show_asking(const char *why, int64_t *said_us)
{
    int64_t now = g_get_monotonic_time();

    g_mutex_lock(&pair.lock);
    bool news = strcmp(why, pair.asks) != 0;
    g_strlcpy(pair.asks, why, sizeof(pair.asks));
    g_mutex_unlock(&pair.lock);
    if (*why && (news || now - *said_us >= START_SAY_MS * 1000LL)) {
        colo_trace(pair_asks, "%s", why);
        colo_report("pair: the guest is not started before the peer has said that it does not "
                    "serve: %s. Asking on; if you know that it does not: -colo peer-off=on "
                    "(coloctl run --role primary)", why);
        *said_us = now;
    }
}

static bool refuse_to_serve(const PairPeer *peer, PairPermission what, int *status,
                            GError **errp)
{
    *status = PAIR_STATUS_PEER_SERVES;
    colo_error_set(errp, "the peer %s (%s) %s: start this side as secondary", pair.opts.peer,
                   peer->name, peer->serves ? "serves the guest"
                               : what == PAIR_MAY_NOT ? "has the guest's last state"
                                                      : "is about to serve the guest");
    return false;
}

/* A side that is to be the primary asks first, and on, until it may. */
static bool may_serve(bool (*poll)(void *opaque), int *status, GError **errp)
{
    g_autofree char *was = read_state_file();
    PairKnown known = {
        .witness = strcmp(options_get_str(pair.colo, "arbiter", ""), "witness") == 0,
        .vouched = pair.opts.peer_off, .was = was, .instance = pair.instance,
    };
    int64_t others_start = 0, said = 0;

    while (poll(NULL)) {
        g_autoptr(GError) err = NULL;
        PairPeer peer = {0};
        PairHearing h = ask_peer(&pair, 2 * ASK_MS, &peer, &err);
        PairPermission may = pair_may_serve(h, &peer, &known);

        if (h == PAIR_HEARD && may == PAIR_ASK_ON) {
            /* The other one starts, too. */
            int64_t now = g_get_monotonic_time();
            others_start = others_start ? others_start : now;
            may = now - others_start < START_MS * 1000LL ? may : PAIR_GIVE_WAY;
        }
        if (may == PAIR_MAY_NOT || may == PAIR_GIVE_WAY) {
            return refuse_to_serve(&peer, may, status, errp);
        }
        if (may == PAIR_MAY_SERVE) {
            if (h == PAIR_SILENT || h == PAIR_NOT_BELIEVED) {
                colo_report("pair: %s; started all the same: %s", err->message,
                            known.witness ? "the witness decides"
                            : known.vouched ? "peer-off=on" : "this side served alone");
            }
            show_asking("", &said);
            return true;
        }
        if (h != PAIR_HEARD) {
            others_start = 0;
            show_asking(err->message, &said);
        }
        g_usleep((h == PAIR_HEARD ? START_LOOK_MS : START_AGAIN_MS) * 1000);
    }
    *status = 0;
    colo_error_set(errp, "ended while it asked whether it may serve");
    return false;
}

bool pair_init(const CmdLine *cl, void (*end)(int status), bool (*poll)(void *opaque),
               int *status, GError **errp)
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
    if (!read_key(cl, errp)) {
        return false;
    }
    pair.port = pair_port_new(pair.opts.listen, pair.opts.pair_port, &pair.key, port_line, NULL,
                              errp);
    if (!pair.port) {
        g_prefix_error(errp, "the pair port (-colo listen=, pair-port=) ");
        return false;
    }
    return pair.incoming || may_serve(poll, status, errp);
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
    g_clear_pointer(&pair.reported, g_free);
    g_clear_pointer(&pair.colo, json_object_unref);
    pair.opts = (PairOptions){0};
    explicit_bzero(&pair.key, sizeof(pair.key));
}
