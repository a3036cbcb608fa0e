/*
 * Plain incoming migration: a guest that comes without x-colo, from whatever QEMU.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: -incoming tcp: and unix: serve both a primary and QEMU's own migration, decided by
 * x-colo and by the first bytes of the first connection.
 *
 * An emulator started with -incoming has no firmware in its ROMs and forgets its images, as
 * a migration would bring them; a checkpoint does not. So the emulator that waits for a
 * primary is one without -incoming, and when a plain migration comes instead, its guest has
 * never run: another emulator takes its place, with the same command line and -incoming. It
 * gets the migration capabilities and parameters that were set on the first; what else
 * was changed by QMP meanwhile is lost ("defer" loses nothing: there the emulator has
 * -incoming from the start, and x-colo is what takes another one).
 *
 * The new one listens on a unix socket of our own; each connection (multifd has several) is
 * joined with one to it, and bytes are carried both ways until both ends were said.
 */
#include "migration/colo.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "monitor/monitor.h"
#include "net/net.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

#define GREETING_MS 5000
#define CARRY_BYTES (256 * 1024)
#define ASK_TIMEOUT_MS 10000
#define JOINS_MAX 258 /* multifd's 255 and two of its own; others are nobody we know */

/* --- Which kind --- */

static bool stopped(void)
{
    g_mutex_lock(&colo.lock);
    bool quit = colo.want_quit;
    g_mutex_unlock(&colo.lock);
    return quit;
}

bool plain_comes(int fd)
{
    /* The stream's main connection, one of multifd, and a TLS record with a greeting. */
    static const uint8_t begins[][4] = {"QEVM", {0x11, 0x22, 0x33, 0x44}, {0x16, 3}};
    uint8_t b[4] = {0};
    bool found = false;

    g_mutex_lock(&colo.lock);
    bool wanted = !colo.cap_colo;
    g_mutex_unlock(&colo.lock);
    for (int waited = 0; wanted && waited < GREETING_MS && !stopped(); waited += 20) {
        ssize_t n = recv(fd, b, sizeof(b), MSG_PEEK | MSG_DONTWAIT);
        if (n == (ssize_t)sizeof(b) || n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            break;
        }
        g_usleep(20000);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(begins); i++) {
        found = found || memcmp(b, begins[i], begins[i][2] ? 4 : 2) == 0;
    }
    return wanted && found;
}

/* --- Carrying bytes --- */

typedef struct Carrier {
    int fd[2];
    gint users; /* threads */
} Carrier;

typedef struct CarrierEnd {
    Carrier *c;
    int from; /* index in fd */
} CarrierEnd;

static bool write_all(int fd, const uint8_t *data, ssize_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            struct pollfd pfd = {fd, POLLOUT, 0};
            poll(&pfd, 1, -1);
        } else if (n < 0 && errno != EINTR) {
            return false;
        }
        data += MAX(n, 0);
        len -= MAX(n, 0);
    }
    return true;
}

static gpointer carry(gpointer opaque)
{
    g_autofree CarrierEnd *e = opaque;
    Carrier *c = e->c;
    g_autofree uint8_t *buf = g_malloc(CARRY_BYTES);
    int from = c->fd[e->from], to = c->fd[!e->from];

    for (;;) {
        ssize_t n = recv(from, buf, CARRY_BYTES, 0);
        if (n < 0 && errno == EAGAIN) {
            struct pollfd pfd = {from, POLLIN, 0};
            poll(&pfd, 1, -1);
            continue;
        }
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0 || !write_all(to, buf, n)) {
            break;
        }
    }
    shutdown(to, SHUT_WR);
    shutdown(from, SHUT_RD);
    if (g_atomic_int_dec_and_test(&c->users)) {
        close(c->fd[0]);
        close(c->fd[1]);
        g_free(c);
    }
    return NULL;
}

/* Join @fd (taken) with a new connection to @uri. */
static bool join(int fd, const char *uri)
{
    g_autoptr(GError) err = NULL;
    int other = channel_connect(uri, 1000, &err);

    if (other < 0) {
        colo_trace(migration_plain_refused, "%s", err->message);
        close(fd);
        return false;
    }
    Carrier *c = g_new(Carrier, 1);
    *c = (Carrier){{fd, other}, 2};
    for (int i = 0; i < 2; i++) {
        CarrierEnd *e = g_new(CarrierEnd, 1);
        *e = (CarrierEnd){c, i};
        g_thread_unref(g_thread_new("colo-plain", carry, e));
    }
    return true;
}

/* --- Another emulator --- */

typedef struct Replace {
    char *uri;
    bool done, ok; /* under colo.lock */
} Replace;

/* Members of @was that @now has with another value. */
static JsonObject *differences(JsonNode *was, JsonNode *now)
{
    JsonObject *out = json_object_new();
    JsonObjectIter it;
    const char *key;
    JsonNode *value;

    json_object_iter_init(&it, json_node_get_object(was));
    while (json_object_iter_next(&it, &key, &value)) {
        JsonNode *other = json_object_get_member(json_node_get_object(now), key);
        if (other && !json_node_equal(value, other)) {
            json_object_set_member(out, key, json_node_copy(value));
        }
    }
    return out;
}

static JsonNode *ask(const char *command, GError **errp)
{
    return monitor_child_execute_sync(command, NULL, ASK_TIMEOUT_MS, errp);
}

static bool tell(const char *command, JsonObject *args, GError **errp)
{
    g_autoptr(JsonNode) ret =
        monitor_child_execute_sync(command, args, ASK_TIMEOUT_MS, errp);

    json_object_unref(args);
    return ret != NULL;
}

/* What was set on the old one for the migration holds for the new one. */
static bool set_again(JsonNode *caps, JsonNode *params, GError **errp)
{
    g_autoptr(JsonNode) now = ask("query-migrate-parameters", errp);
    JsonObject *args = json_object_new();

    json_object_set_array_member(args, "capabilities",
                                 json_array_ref(json_node_get_array(caps)));
    if (!tell("migrate-set-capabilities", args, errp) || !now) {
        return false;
    }
    args = differences(params, now);
    if (json_object_get_size(args) == 0) {
        json_object_unref(args);
        return true;
    }
    return tell("migrate-set-parameters", args, errp);
}

static bool replace(const char *uri, GError **errp)
{
    g_autoptr(JsonNode) caps = ask("query-migrate-capabilities", errp);
    g_autoptr(JsonNode) params = caps ? ask("query-migrate-parameters", errp) : NULL;

    if (!params || !colo_restart_child(true, errp) || !set_again(caps, params, errp)) {
        return false;
    }
    JsonObject *args = json_object_new();
    json_object_set_string_member(args, "uri", uri);
    return tell("migrate-incoming", args, errp);
}

static gboolean replace_in_main(gpointer opaque)
{
    Replace *r = opaque;
    g_autoptr(GError) err = NULL;
    bool ok = replace(r->uri, &err);

    if (!ok) {
        colo_report("incoming migration failed: %s", err->message);
        colo.opts.guest_shutdown(1);
    } else {
        plain_begin();
    }
    g_mutex_lock(&colo.lock);
    r->ok = ok;
    r->done = true;
    g_cond_broadcast(&colo.cond);
    g_mutex_unlock(&colo.lock);
    return G_SOURCE_REMOVE;
}

/* --- Life --- */

void plain_begin(void)
{
    net_lock();
    net_set_role(NET_ROLE_ALONE);
    net_unlock();
    g_mutex_lock(&colo.lock);
    colo.mode = COLO_MODE_NONE;
    colo.deferred = false;
    colo.plain_incoming = true;
    colo_set_state_locked(COLO_STATE_ALONE);
    g_mutex_unlock(&colo.lock);
    colo_trace(migration_plain, "a plain migration comes in");
}

bool plain_pending(void)
{
    g_mutex_lock(&colo.lock);
    bool maybe = colo.plain_incoming;
    g_mutex_unlock(&colo.lock);
    if (!maybe) {
        return false;
    }
    g_autoptr(JsonNode) st = ask("query-status", NULL);
    const char *s = st ? options_get_str(json_node_get_object(st), "status", "") : "inmigrate";
    bool pending = strcmp(s, "inmigrate") == 0;
    g_mutex_lock(&colo.lock);
    colo.plain_incoming = pending;
    g_mutex_unlock(&colo.lock);
    return pending;
}

static bool still_coming(void)
{
    g_mutex_lock(&colo.lock);
    bool yes = colo.plain_incoming && !colo.want_quit;
    g_mutex_unlock(&colo.lock);
    return yes;
}

void plain_serve(int listen_fd, int fd)
{
    g_autofree char *path = g_build_filename(colo.opts.runtime_dir, "incoming", NULL);
    Replace *r = g_new0(Replace, 1); /* not freed where the main thread may still need it */

    r->uri = g_strconcat("unix:", path, NULL);
    g_idle_add(replace_in_main, r);
    g_mutex_lock(&colo.lock);
    while (!r->done && !colo.want_quit) {
        g_cond_wait(&colo.cond, &colo.lock);
    }
    bool ok = r->done && r->ok;
    g_mutex_unlock(&colo.lock);
    if (ok && join(fd, r->uri)) {
        for (unsigned n = 1; still_coming();) {
            struct pollfd pfd = {listen_fd, POLLIN, 0};
            int more = poll(&pfd, 1, 50) > 0 ? accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC)
                                             : -1;
            if (more >= 0 && n++ < JOINS_MAX) {
                join(more, r->uri);
            } else if (more >= 0) {
                close(more);
            }
        }
    } else if (!ok) {
        close(fd);
    }
    unlink(path);
    if (r->done) {
        g_free(r->uri);
        g_free(r);
    }
}
