/*
 * The heartbeat: a thread that beats, listens, and knows until when this side may speak.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * heartbeat-state.h has the idea and the rules; here are sockets, time and the ties to the
 * controller. One thread ("colo-heart") owns nothing that others could hold for long: its
 * lock is held for microseconds, it sends and receives without waiting, and it takes
 * colo.lock by trying. So a busy main loop, a checkpoint or a disk does not stop the beats; only
 * what stops the process does, and then the clock (CLOCK_BOOTTIME) has gone on: the gate
 * itself (net_twin_until()) finds its time over before anybody here has run.
 *
 * Order: colo.lock, then this lock. Hooks of the controller are called with neither.
 *
 * Room singleton @hb. Limit: one object a process; several links go into it.
 */
#include "migration/heartbeat.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "migration/heartbeat-object.h"
#include "monitor/monitor.h"
#include "net/net.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

#define COPIES 4              /* of a last word, on each link */
#define COPY_PAUSE_US 1000
#define BURST 64              /* datagrams taken at once from one link */

/* A beating heart; all but the constant ones guarded by hb.lock. */
static struct {
    GMutex lock;
    GCond cond;            /* news */
    bool started, exists;
    HeartbeatOptions o;    /* constant while the thread lives */
    Heart heart;
    GThread *thread;
    int wake_fd;
    bool quit, silent;
    bool lease;            /* the gate goes by it */
    bool muted;            /* a last word was said: no more beats */
    HeartbeatSelf self;    /* as of the last beat */
    int64_t late_us;       /* the longest that the thread came too late */
} hb = {.wake_fd = -1};

static const char *const role_names[] = {"none", "primary", "secondary"};

static void wake(void)
{
    uint64_t one = 1;
    ssize_t n = write(hb.wake_fd, &one, sizeof(one));
    (void)n; /* EAGAIN: it is awake */
}

/* --- Sending; the lock is held --- */

static void send_beat(unsigned link, BeatWord word)
{
    uint8_t bytes[BEAT_BYTES];
    Beat b;

    heart_compose(&hb.heart, link, word, net_boot_us(), &b);
    b.role = hb.self.role;
    b.epoch = hb.self.epoch;
    b.flags = (hb.silent ? BEAT_SILENT : 0) | (hb.self.serving ? BEAT_SERVING : 0) |
              (uint32_t)hb.self.state << 8;
    beat_encode(&b, hb.o.key_len ? hb.o.key : NULL, hb.o.key_len, bytes);
    /* A link that is down says so; the next beat tries again. */
    ssize_t n = send(hb.o.links[link].fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    (void)n;
}

static void send_all(BeatWord word)
{
    for (unsigned i = 0; i < hb.o.n_links; i++) {
        send_beat(i, word);
    }
}

/* Several copies: a lost one costs the peer the time-out. */
static void last_word(BeatWord word)
{
    for (int i = 0; i < COPIES; i++) {
        if (i > 0) {
            g_usleep(COPY_PAUSE_US);
        }
        send_all(word);
    }
}

/* --- Receiving; the lock is held --- */

static void receive_link(unsigned link, HeartNews *news)
{
    const uint8_t *key = hb.o.key_len ? hb.o.key : NULL;

    for (int i = 0; i < BURST; i++) {
        uint8_t bytes[BEAT_BYTES + 1];
        ssize_t n = recv(hb.o.links[link].fd, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_TRUNC);
        if (n < 0 && errno == EAGAIN) {
            return;
        }
        if (n < 0) {
            continue; /* what ICMP said of an earlier one */
        }
        Beat b;
        BeatRefusal r = beat_decode(bytes, n, key, hb.o.key_len, &b);
        if (r != BEAT_OK) {
            hb.heart.links[link].refused[r]++;
        } else {
            r = heart_receive(&hb.heart, link, &b, net_boot_us(), news);
        }
        if (r != BEAT_OK) {
            colo_trace(migration_heart_refused, "link %u: %s", link, beat_refusal_names[r]);
        } else if (hb.heart.links[link].greeted && !hb.muted) {
            send_beat(link, BEAT_ALIVE); /* the answer */
        }
    }
}

static void renew_gate(void)
{
    int64_t until = hb.lease ? heart_own_lease_end(&hb.heart) : 0;

    if (until && !hb.silent) {
        net_twin_until(until);
    }
}

/* --- News; no lock --- */

static void emit(const char *event, int link, const char *why)
{
    JsonObject *data = json_object_new();

    json_object_set_string_member(data, "id", hb.o.id);
    if (link >= 0) {
        json_object_set_int_member(data, "link", link);
    }
    if (why) {
        json_object_set_string_member(data, "reason", why);
    }
    monitor_event(event, data);
}

static void tell(const HeartNews *news, BeatWord word, bool pinned)
{
    for (unsigned i = 0; i < hb.o.n_links; i++) {
        if (news->links_lost >> i & 1) {
            colo_trace(migration_heart_link, "%u lost", i);
            emit("COLO_HEARTBEAT_LOST", i, "nothing is heard on this link");
        }
        if (news->links_up >> i & 1) {
            colo_trace(migration_heart_link, "%u up", i);
            emit("COLO_HEARTBEAT_RESTORED", i, NULL);
        }
    }
    if (news->lost) {
        colo_trace(migration_heart, "lost: %s", news->why);
        emit("COLO_HEARTBEAT_LOST", -1, news->why);
        if (pinned) {
            g_autofree char *why = g_strdup_printf("heartbeat: %s", news->why);
            colo_heartbeat_lost(why, word);
        }
    }
    if (news->up) {
        colo_trace(migration_heart, "up");
        emit("COLO_HEARTBEAT_RESTORED", -1, NULL);
    }
    if (news->changed || news->lost || news->up) {
        colo_heartbeat_changed();
    }
}

/* --- The thread --- */

/* Wait for datagrams, a wake-up, or the next beats. */
static void wait_some(int64_t due_us)
{
    struct pollfd pfd[HEART_LINKS_MAX + 1];
    unsigned n = hb.o.n_links;
    int64_t left = due_us - net_boot_us();
    struct timespec ts = {MAX(left, 0) / G_USEC_PER_SEC, MAX(left, 0) % G_USEC_PER_SEC * 1000};
    uint64_t count;

    for (unsigned i = 0; i < n; i++) {
        pfd[i] = (struct pollfd){hb.o.links[i].fd, POLLIN, 0};
    }
    pfd[n] = (struct pollfd){hb.wake_fd, POLLIN, 0};
    ppoll(pfd, n + 1, &ts, NULL);
    ssize_t r = read(hb.wake_fd, &count, sizeof(count));
    (void)r;
}

static gpointer heart_thread(gpointer opaque)
{
    struct sched_param rr = {.sched_priority = 1};
    bool silent = false;

    /* A few microseconds in each interval; where it may not it goes as all do. */
    pthread_setschedparam(pthread_self(), SCHED_RR, &rr);
    g_mutex_lock(&hb.lock);
    while (!hb.quit) {
        HeartNews news = {0};
        int64_t due = hb.heart.due_us;
        g_mutex_unlock(&hb.lock);
        wait_some(due);
        HeartbeatSelf self;
        bool have = colo_heartbeat_self(&self);
        g_mutex_lock(&hb.lock);
        hb.self = have ? self : hb.self;
        /* What came while this side slept is looked at before the peer is judged. */
        for (unsigned i = 0; i < hb.o.n_links; i++) {
            receive_link(i, &news);
        }
        int64_t now = net_boot_us();
        hb.late_us = MAX(hb.late_us, now - due);
        bool beat = heart_tick(&hb.heart, now, &news) || silent != hb.silent;
        if (beat && !hb.muted) {
            send_all(BEAT_ALIVE);
        }
        silent = hb.silent;
        if (news.lost && hb.heart.pinned) {
            heart_freeze(&hb.heart);
        }
        renew_gate();
        BeatWord word = hb.heart.word;
        bool pinned = hb.heart.pinned != 0;
        g_cond_broadcast(&hb.cond);
        g_mutex_unlock(&hb.lock);
        tell(&news, word, pinned);
        g_mutex_lock(&hb.lock);
    }
    g_mutex_unlock(&hb.lock);
    return NULL;
}

static void start_thread(void)
{
    uint64_t instance = 0;

    while (instance == 0) {
        int r = gnutls_rnd(GNUTLS_RND_NONCE, &instance, sizeof(instance));
        g_assert(r == 0);
    }
    heart_init(&hb.heart, instance, hb.o.n_links, hb.o.interval_ms * 1000,
               hb.o.timeout_ms * 1000, net_boot_us());
    hb.quit = hb.silent = hb.lease = hb.muted = false;
    hb.late_us = 0;
    hb.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    hb.thread = g_thread_new("colo-heart", heart_thread, NULL);
}

static void stop_thread(void)
{
    g_mutex_lock(&hb.lock);
    hb.quit = true;
    g_mutex_unlock(&hb.lock);
    wake();
    g_thread_join(g_steal_pointer(&hb.thread));
    close(hb.wake_fd);
    hb.wake_fd = -1;
}

void heartbeat_start(void)
{
    hb.started = true;
    if (hb.exists && !hb.thread) {
        start_thread();
    }
}

static void say(BeatWord word)
{
    g_mutex_lock(&hb.lock);
    if (!hb.muted) {
        hb.muted = true;
        last_word(word);
    }
    g_mutex_unlock(&hb.lock);
}

void heartbeat_shutdown(BeatWord word)
{
    if (hb.thread) {
        say(word);
        stop_thread();
    }
    if (hb.exists) {
        hb.exists = false;
        heartbeat_options_clear(&hb.o);
    }
    hb.started = false;
}

void heartbeat_emulator_died(void)
{
    heartbeat_set_silent(true); /* what is left in queues stays there */
    if (hb.thread) {
        say(BEAT_DEATH);
    }
}

/* --- The controllers' side --- */

void heartbeat_greet(JsonObject *hello)
{
    g_mutex_lock(&hb.lock);
    if (hb.thread) {
        JsonObject *o = json_object_new();
        g_autofree char *self = g_strdup_printf("%016" G_GINT64_MODIFIER "x", hb.heart.self);
        json_object_set_string_member(o, "instance", self);
        json_object_set_int_member(o, "timeout", hb.o.timeout_ms);
        json_object_set_int_member(o, "links", hb.o.n_links);
        json_object_set_object_member(hello, "heartbeat", o);
    }
    g_mutex_unlock(&hb.lock);
}

bool heartbeat_meet(JsonObject *hello, GError **errp)
{
    JsonObject *theirs = options_get_obj(hello, "heartbeat");
    uint64_t timeout = 0, links = 0;
    bool ok = true;

    g_mutex_lock(&hb.lock);
    uint64_t peer = theirs ? g_ascii_strtoull(options_get_str(theirs, "instance", "0"), NULL, 16)
                           : 0;
    if (!hb.thread && !theirs) {
        /* Neither has one. */
    } else if (!hb.thread || !theirs) {
        colo_error_set(errp, "only %s has a colo-heartbeat: give both sides one, or none",
                       theirs ? "the peer" : "this side");
        ok = false;
    } else if (!options_get_uint(theirs, "timeout", &timeout, 1, 3600000, errp) ||
               !options_get_uint(theirs, "links", &links, 1, HEART_LINKS_MAX, errp)) {
        g_prefix_error(errp, "the peer's greeting: ");
        ok = false;
    } else if (timeout != hb.o.timeout_ms || links != hb.o.n_links) {
        colo_error_set(errp, "the heartbeats differ: timeout %" G_GUINT64_FORMAT " ms and %u "
                       "links on this side, %" G_GUINT64_FORMAT " ms and %" G_GUINT64_FORMAT
                       " on the peer; give both the same", hb.o.timeout_ms, hb.o.n_links,
                       timeout, links);
        ok = false;
    } else if (peer == 0 || peer == hb.heart.self) {
        colo_error_set(errp, "the peer's greeting has no heartbeat of its own");
        ok = false;
    } else {
        hb.silent = hb.lease = false;
        heart_pin(&hb.heart, peer);
    }
    g_mutex_unlock(&hb.lock);
    return ok;
}

static char *counted_refusals(void)
{
    g_autoptr(GString) s = g_string_new(NULL);

    for (unsigned r = 1; r < BEAT_REFUSAL_MAX; r++) {
        uint64_t n = 0;
        for (unsigned i = 0; i < hb.o.n_links; i++) {
            n += hb.heart.links[i].refused[r];
        }
        if (n) {
            g_string_append_printf(s, "%s%" G_GUINT64_FORMAT " %s", s->len ? ", " : "", n,
                                   beat_refusal_names[r]);
        }
    }
    return s->len ? g_strdup_printf("%s refused", s->str) : g_strdup("nothing came");
}

bool heartbeat_arm(unsigned ms, GError **errp)
{
    bool ok = true;

    g_mutex_lock(&hb.lock);
    if (hb.thread) {
        int64_t end = g_get_monotonic_time() + ms * 1000LL;
        while (!hb.heart.up && hb.heart.word == BEAT_ALIVE &&
               g_cond_wait_until(&hb.cond, &hb.lock, end)) {
        }
        ok = hb.heart.up;
        if (ok) {
            hb.lease = true;
            renew_gate();
        } else {
            g_autofree char *what = counted_refusals();
            colo_error_set(errp, "heartbeat '%s' does not hear the secondary (%s): look at "
                           "addresses, firewall and key-file", hb.o.id, what);
        }
    }
    g_mutex_unlock(&hb.lock);
    return ok;
}

void heartbeat_set_silent(bool silent)
{
    g_mutex_lock(&hb.lock);
    bool tell_peer = hb.thread && hb.silent != silent;
    hb.silent = silent;
    if (silent) {
        net_twin_until(1); /* long ago */
    }
    g_mutex_unlock(&hb.lock);
    if (tell_peer) {
        wake();
    }
}

void heartbeat_stop_vouching(void)
{
    g_mutex_lock(&hb.lock);
    heart_freeze(&hb.heart);
    g_mutex_unlock(&hb.lock);
}

int64_t heartbeat_peer_lease_left(void)
{
    g_mutex_lock(&hb.lock);
    bool waits = hb.thread && hb.heart.pinned;
    int64_t left = waits ? heart_peer_lease_end(&hb.heart) - net_boot_us() : 0;
    g_mutex_unlock(&hb.lock);
    return MAX(left, 0);
}

bool heartbeat_peer_serves(void)
{
    g_mutex_lock(&hb.lock);
    bool serves = hb.thread && hb.heart.pinned && hb.heart.word == BEAT_ALIVE &&
                  (hb.heart.peer_flags & BEAT_SERVING);
    g_mutex_unlock(&hb.lock);
    return serves;
}

void heartbeat_end_round(void)
{
    g_mutex_lock(&hb.lock);
    hb.silent = hb.lease = false;
    if (hb.thread) {
        heart_pin(&hb.heart, 0);
    }
    net_twin_until(0);
    g_mutex_unlock(&hb.lock);
}

/* --- What is shown --- */

static JsonObject *link_json(unsigned i)
{
    JsonObject *o = json_object_new();
    const HeartLink *l = &hb.heart.links[i];

    json_object_set_int_member(o, "id", i);
    json_object_set_string_member(o, "local", hb.o.links[i].local);
    json_object_set_string_member(o, "peer", hb.o.links[i].peer);
    json_object_set_string_member(o, "state", l->up ? "up" : "lost");
    json_object_set_int_member(o, "rtt-us", l->rtt_us);
    json_object_set_int_member(o, "sent", l->sent);
    json_object_set_int_member(o, "received", l->received);
    json_object_set_int_member(o, "greetings", l->greetings);
    for (unsigned r = 1; r < BEAT_REFUSAL_MAX; r++) {
        g_autofree char *name = g_strdup_printf("refused-%s", beat_refusal_names[r]);
        json_object_set_int_member(o, name, l->refused[r]);
    }
    return o;
}

static JsonArray *links_json(void)
{
    JsonArray *a = json_array_new();

    for (unsigned i = 0; i < hb.o.n_links; i++) {
        json_array_add_object_element(a, link_json(i));
    }
    return a;
}

static const char *state_name(void)
{
    return !hb.thread ? "off" : hb.heart.up ? "up" : "lost";
}

void heartbeat_describe(JsonObject *status)
{
    JsonObject *o = json_object_new();

    g_mutex_lock(&hb.lock);
    json_object_set_string_member(o, "state", state_name());
    if (hb.thread) {
        const Heart *h = &hb.heart;
        int64_t now = net_boot_us(), proven = h->proven_us ? (now - h->proven_us) / 1000 : -1;
        json_object_set_string_member(o, "id", hb.o.id);
        json_object_set_boolean_member(o, "authenticated", hb.o.key_len > 0);
        json_object_set_int_member(o, "interval", hb.o.interval_ms);
        json_object_set_int_member(o, "timeout", hb.o.timeout_ms);
        json_object_set_array_member(o, "links", links_json());
        json_object_set_string_member(o, "peer-role", role_names[h->peer_role % 3]);
        json_object_set_int_member(o, "peer-epoch", h->peer_epoch);
        json_object_set_boolean_member(o, "peer-silent", h->peer_flags & BEAT_SILENT);
        json_object_set_int_member(o, "proven-ms-ago", proven);
        json_object_set_int_member(o, "late-us", hb.late_us);
        if (hb.lease) {
            int64_t left = (heart_own_lease_end(h) - now) / 1000;
            json_object_set_int_member(o, "lease-left", MAX(left, 0));
        }
    }
    g_mutex_unlock(&hb.lock);
    json_object_set_object_member(status, "heartbeat", o);
}

/* --- The object --- */

static const struct {
    const char *name, *type;
} properties[] = {
    {"type", "string"},     {"interval", "uint32"}, {"timeout", "uint32"},
    {"key-file", "string"}, {"state", "string"},    {"links", "list"},
};

bool heartbeat_object_exists(const char *id)
{
    return hb.exists && strcmp(hb.o.id, id) == 0;
}

bool heartbeat_object_add(JsonObject *opts, GError **errp)
{
    if (hb.exists) {
        colo_error_set(errp, "there is a colo-heartbeat already, '%s': give that one more links "
                       "(links.N.local, links.N.peer)", hb.o.id);
        return false;
    }
    if (!heartbeat_options_read(&hb.o, opts, errp)) {
        heartbeat_options_clear(&hb.o);
        return false;
    }
    hb.exists = true;
    if (hb.started) {
        start_thread();
    }
    return true;
}

bool heartbeat_object_del(const char *id, GError **errp)
{
    g_mutex_lock(&hb.lock);
    bool busy = hb.thread && hb.heart.pinned;
    g_mutex_unlock(&hb.lock);
    if (busy) {
        colo_error_set(errp, "heartbeat '%s' is in use: the pair's protection rests on it", id);
        return false;
    }
    if (hb.thread) {
        stop_thread();
    }
    hb.exists = false;
    heartbeat_options_clear(&hb.o);
    return true;
}

JsonNode *heartbeat_object_get(const char *id, const char *property, GError **errp)
{
    JsonNode *n = NULL;

    g_mutex_lock(&hb.lock);
    if (strcmp(property, "type") == 0) {
        n = json_node_init_string(json_node_alloc(), "colo-heartbeat");
    } else if (strcmp(property, "interval") == 0) {
        n = json_node_init_int(json_node_alloc(), hb.o.interval_ms);
    } else if (strcmp(property, "timeout") == 0) {
        n = json_node_init_int(json_node_alloc(), hb.o.timeout_ms);
    } else if (strcmp(property, "key-file") == 0) {
        n = json_node_init_string(json_node_alloc(), hb.o.key_file ? hb.o.key_file : "");
    } else if (strcmp(property, "state") == 0) {
        n = json_node_init_string(json_node_alloc(), state_name());
    } else if (strcmp(property, "links") == 0) {
        n = json_node_init_array(json_node_alloc(), links_json());
        json_array_unref(json_node_get_array(n));
    } else {
        colo_error_set(errp, "Property 'colo-heartbeat.%s' not found", property);
    }
    g_mutex_unlock(&hb.lock);
    return n;
}

JsonArray *heartbeat_object_properties(void)
{
    JsonArray *a = json_array_new();

    for (unsigned i = 0; i < G_N_ELEMENTS(properties); i++) {
        JsonObject *o = json_object_new();
        json_object_set_string_member(o, "name", properties[i].name);
        json_object_set_string_member(o, "type", properties[i].type);
        json_array_add_object_element(a, o);
    }
    return a;
}

void heartbeat_objects_list(JsonArray *out)
{
    if (hb.exists) {
        JsonObject *o = json_object_new();
        json_object_set_string_member(o, "name", hb.o.id);
        json_object_set_string_member(o, "type", "child<colo-heartbeat>");
        json_array_add_object_element(out, o);
    }
}
