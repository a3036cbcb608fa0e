/*
 * The connection of two sides: its settings, its data channels, TLS.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Settings are QEMU's migration capabilities and parameters, which the emulator keeps:
 * multifd, multifd-channels, multifd-compression and its levels, xbzrle and its cache's size,
 * tls-creds, tls-hostname. The primary's count, but for TLS, where each side has its own.
 * They are read when a connection begins; only max-bandwidth changes later.
 *
 * The primary's greeting offers a session, random bytes, and a number of data channels.
 * Each then connects to the secondary's same port and says the session and its number, so
 * that nobody else's connection is taken for one. Where there is no heartbeat one more comes, with
 * the number after theirs: the pulse's.
 */
#include "migration/link.h"

#include <poll.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "migration/colo.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

#define JOIN_BYTES (LINK_SESSION_BYTES + 4)
#define JOIN_MS 2000
#define ACCEPT_MS 10000
#define TLS_MS 10000
#define PULSE_PATIENCE 2  /* times peer-timeout: this process may have been asleep */
#define PULSE_MAX_MS 2000 /* however patient the rest is: an operator's word may wait for it */

/* --- Settings --- */

static bool capability(JsonNode *caps, const char *name)
{
    JsonArray *a = JSON_NODE_HOLDS_ARRAY(caps) ? json_node_get_array(caps) : NULL;

    for (guint i = 0; a && i < json_array_get_length(a); i++) {
        JsonObject *o = json_array_get_object_element(a, i);
        bool on = false;
        if (strcmp(options_get_str(o, "capability", ""), name) == 0 &&
            options_get_bool(o, "state", &on, NULL)) {
            return on;
        }
    }
    return false;
}

static char *text_or_null(JsonObject *o, const char *key)
{
    const char *s = options_get_str(o, key, "");

    return *s ? g_strdup(s) : NULL;
}

bool link_learn(Link *l, GError **errp)
{
    uint64_t channels = 2, zlib_level = 1, zstd_level = 1, cache = 64u << 20;
    g_autoptr(JsonNode) caps = child_qmp_query(
        colo.qmp, "{\"execute\":\"query-migrate-capabilities\",\"id\":\"cap\"}\n", "cap", errp);
    g_autoptr(JsonNode) params =
        caps ? child_qmp_query(colo.qmp,
                               "{\"execute\":\"query-migrate-parameters\",\"id\":\"par\"}\n",
                               "par", errp)
             : NULL;

    if (!params) {
        return false;
    }
    JsonObject *o = json_node_get_object(params);
    bool multifd = capability(caps, "multifd");
    const char *method = options_get_str(o, "multifd-compression", "none");
    /* Members that an emulator lacks keep QEMU's defaults. */
    if (!options_get_uint(o, "multifd-channels", &channels, 1, 255, errp) ||
        !options_get_uint(o, "multifd-zlib-level", &zlib_level, 0, 9, errp) ||
        !options_get_uint(o, "multifd-zstd-level", &zstd_level, 0, 20, errp) ||
        !options_get_uint(o, "xbzrle-cache-size", &cache, 0, UINT64_MAX, errp)) {
        return false;
    }
    if (multifd && channels > RAM_CHANNELS_MAX) {
        colo_error_set(errp, "multifd-channels=%" G_GUINT64_FORMAT ": at most %u with x-colo",
                       channels, RAM_CHANNELS_MAX);
        return false;
    }
    if (ram_method_find(method) < 0) {
        colo_error_set(errp, "multifd-compression=%s: none, zlib and zstd can be had with "
                             "x-colo", method);
        return false;
    }
    if (*options_get_str(o, "tls-authz", "")) {
        colo_error_set(errp, "tls-authz is not honoured with x-colo: use a CA of its own for "
                             "the pair, and unset it");
        return false;
    }
    l->want_channels = multifd ? channels : 0;
    g_mutex_lock(&colo.lock);
    l->method = multifd ? ram_method_find(method) : RAM_METHOD_NONE;
    g_free(l->tls_creds);
    l->tls_creds = text_or_null(o, "tls-creds");
    g_mutex_unlock(&colo.lock);
    l->level = l->method == RAM_METHOD_ZLIB ? zlib_level : zstd_level;
    l->base_bytes = l->method != RAM_METHOD_NONE || capability(caps, "xbzrle") ? cache : 0;
    g_free(l->tls_hostname);
    l->tls_hostname = text_or_null(o, "tls-hostname");
    return true;
}

/* --- TLS --- */

bool link_secure(const Link *l, Channel *ch, const char *uri, GError **errp)
{
    if (!l->tls_creds) {
        return true;
    }
    g_autoptr(TlsCreds) creds = tls_creds_get(l->tls_creds, uri == NULL, errp);
    g_autofree char *host = NULL;
    if (creds && uri && l->tls_hostname) {
        host = g_strdup(l->tls_hostname);
    } else if (creds && uri) {
        const char *colon = strrchr(uri, ':');
        const char *start = g_str_has_prefix(uri, "tcp:") ? uri + strlen("tcp:") : colon;
        host = *start == '[' ? g_strndup(start + 1, MAX(colon - start - 2, 0))
                             : g_strndup(start, colon - start);
    }
    return creds && channel_start_tls(ch, creds, host, TLS_MS, errp);
}

/* --- The greeting --- */

/* Figures take a look at them. */
static void agree(Link *l, unsigned n, RamMethod method)
{
    g_mutex_lock(&colo.lock);
    l->n = n;
    l->method = method;
    g_mutex_unlock(&colo.lock);
}

static char *session_text(const Link *l)
{
    GString *s = g_string_new(NULL);

    for (unsigned i = 0; i < LINK_SESSION_BYTES; i++) {
        g_string_append_printf(s, "%02x", l->session[i]);
    }
    return g_string_free(s, FALSE);
}

void link_greet(Link *l, JsonObject *hello)
{
    /* Without a name of their own there are none. */
    bool named = getrandom(l->session, sizeof(l->session), 0) == sizeof(l->session);

    agree(l, named ? l->want_channels : 0, l->method);
    l->with_pulse = !json_object_has_member(hello, "heartbeat");
    l->pulse_ms = 0;
    json_object_set_int_member(hello, "pulse", MIN(colo.opts.peer_timeout, PULSE_MAX_MS));
    g_autofree char *session = session_text(l);
    json_object_set_int_member(hello, "channels", l->n);
    json_object_set_string_member(hello, "session", session);
    json_object_set_string_member(hello, "compression", ram_method_name(l->method));
}

bool link_read_offer(Link *l, const char *text, GError **errp)
{
    g_autoptr(JsonObject) o = *text == '{' ? options_parse(text, NULL, NULL) : NULL;
    const char *session = o ? options_get_str(o, "session", "") : "";
    uint64_t n = 0, pulse = PULSE_MAX_MS;

    if (!o || !options_get_uint(o, "pulse", &pulse, 0, PULSE_MAX_MS, NULL) || !options_get_uint(o, "channels", &n, 0, RAM_CHANNELS_MAX, NULL) ||
        strlen(session) != 2 * LINK_SESSION_BYTES ||
        strspn(session, "0123456789abcdef") != 2 * LINK_SESSION_BYTES) {
        colo_error_set(errp, "the peer's greeting has no fitting data channels (0 to %u)",
                       RAM_CHANNELS_MAX);
        return false;
    }
    if (ram_method_find(options_get_str(o, "compression", "none")) < 0) {
        colo_error_set(errp, "the primary wants compression '%s', which this side lacks",
                       options_get_str(o, "compression", "?"));
        return false;
    }
    agree(l, n, ram_method_find(options_get_str(o, "compression", "none")));
    l->with_pulse = !json_object_has_member(o, "heartbeat");
    l->pulse_ms = pulse;
    for (unsigned i = 0; i < LINK_SESSION_BYTES; i++) {
        l->session[i] = g_ascii_xdigit_value(session[2 * i]) << 4 |
                        g_ascii_xdigit_value(session[2 * i + 1]);
    }
    return true;
}

/* --- Further channels --- */

static unsigned all_channels(const Link *l)
{
    return l->n + l->with_pulse;
}

static void put_join(const Link *l, unsigned i, uint8_t *body)
{
    uint32_t be = GUINT32_TO_BE(i);

    memcpy(body, l->session, LINK_SESSION_BYTES);
    memcpy(body + LINK_SESSION_BYTES, &be, sizeof(be));
}

/* A pulse of the last connection, if there was one, is gone. */
static void set_pulse(Link *l, Channel *ch, const PulseHooks *hooks)
{
    unsigned ms = colo.opts.peer_timeout;
    Pulse *p = ch ? pulse_new(ch, MAX(MIN(ms, PULSE_MAX_MS), l->pulse_ms), ms * PULSE_PATIENCE, hooks) : NULL;

    g_mutex_lock(&colo.lock);
    Pulse *old = g_steal_pointer(&l->pulse);
    l->pulse = p;
    g_mutex_unlock(&colo.lock);
    pulse_free(old);
}

/* Number @i; NULL with @errp set. */
static Channel *join(const Link *l, Channel *ctl, const char *uri, unsigned i, GError **errp)
{
    uint8_t body[JOIN_BYTES];
    struct iovec part = {body, sizeof(body)};
    int fd = channel_connect(uri, ACCEPT_MS, errp);
    Channel *ch = fd < 0 ? NULL : channel_new(fd, colo.opts.peer_timeout);

    if (ch) {
        channel_attach(ctl, ch);
        put_join(l, i, body);
        if (link_secure(l, ch, uri, errp) && channel_send(ch, CHANNEL_JOIN, &part, 1, errp)) {
            return ch;
        }
    }
    g_prefix_error(errp, i < l->n ? "data channel %u: " : "the pulse's channel (%u): ", i);
    return NULL;
}

bool link_connect(Link *l, Channel *ctl, const char *uri, const PulseHooks *hooks,
                  GError **errp)
{
    for (unsigned i = 0; i < l->n; i++) {
        l->data[i] = join(l, ctl, uri, i, errp);
        if (!l->data[i]) {
            return false;
        }
    }
    Channel *ch = l->with_pulse ? join(l, ctl, uri, l->n, errp) : NULL;
    if (l->with_pulse && !ch) {
        return false;
    }
    set_pulse(l, ch, hooks);
    g_mutex_lock(&colo.lock); /* a query counts its bytes */
    bool ok = ram_base_init(colo.ram, l->base_bytes, errp);
    g_mutex_unlock(&colo.lock);
    if (!ok) {
        return false;
    }
    RamSender *s = ram_sender_new(colo.ram, ctl, l->data, l->n, l->method, l->level,
                                  colo.opts.peer_timeout);
    g_mutex_lock(&colo.lock);
    l->sender = s;
    g_mutex_unlock(&colo.lock);
    return true;
}

/* The number that @ch says; -1: it is somebody else's connection. */
static int read_join(Link *l, Channel *ch, GError **errp)
{
    ChannelMsg msg;

    if (!link_secure(l, ch, NULL, errp) ||
        channel_recv(ch, &msg, JOIN_MS, errp) != CHANNEL_OK || msg.type != CHANNEL_JOIN ||
        msg.len != JOIN_BYTES || memcmp(msg.data, l->session, LINK_SESSION_BYTES) != 0) {
        return -1;
    }
    uint32_t i;
    memcpy(&i, msg.data + LINK_SESSION_BYTES, sizeof(i));
    i = GUINT32_FROM_BE(i);
    return i < all_channels(l) ? (int)i : -1;
}

bool link_accept(Link *l, Channel *ctl, int listen_fd, GError **errp)
{
    int64_t end = g_get_monotonic_time() + ACCEPT_MS * 1000LL;
    Channel *came[RAM_CHANNELS_MAX + 1] = {NULL};
    unsigned have = 0, all = all_channels(l);

    while (have < all) {
        g_autoptr(GError) err = NULL;
        struct pollfd pfd = {listen_fd, POLLIN, 0};
        if (g_get_monotonic_time() > end || channel_cancelled(ctl, 0)) {
            colo_error_set(errp, "only %u of %u further channels came", have, all);
            return false;
        }
        if (poll(&pfd, 1, 50) <= 0) {
            continue;
        }
        int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) {
            continue;
        }
        Channel *ch = channel_new(fd, colo.opts.peer_timeout);
        int i = read_join(l, ch, &err);
        if (i < 0 || came[i]) {
            colo_report("a connection that is no data channel was dropped (%s)",
                        err ? err->message : "its first message");
            channel_free(ch);
            continue;
        }
        channel_attach(ctl, ch);
        came[i] = ch;
        have++;
    }
    memcpy(l->data, came, sizeof(l->data));
    set_pulse(l, l->with_pulse ? came[l->n] : NULL, NULL);
    return true;
}

void link_close(Link *l)
{
    g_mutex_lock(&colo.lock);
    RamSender *s = g_steal_pointer(&l->sender);
    l->n = 0;
    g_mutex_unlock(&colo.lock);
    ram_sender_free(s);
    set_pulse(l, NULL, NULL);
}

/* --- Figures --- */

void link_to_json(const Link *l, JsonObject *out)
{
    static const char *const kinds[] = {"raw", "zero", "packed", "delta"};
    JsonObject *o = json_object_new();
    RamCounts c = {0};
    uint64_t pages = 0;

    json_object_set_int_member(o, "channels", l->n);
    json_object_set_string_member(o, "compression", ram_method_name(l->method));
    json_object_set_boolean_member(o, "tls", l->tls_creds != NULL);
    if (l->pulse && l->sender) {
        json_object_set_int_member(o, "lease-left", pulse_lease_left(l->pulse) / 1000);
    }
    if (l->sender) {
        JsonObject *k = json_object_new();
        ram_sender_counts(l->sender, &c);
        for (unsigned i = 0; i < RAM_KIND_MAX; i++) {
            json_object_set_int_member(k, kinds[i], c.kind[i]);
            pages += c.kind[i];
        }
        json_object_set_object_member(o, "pages", k);
        json_object_set_int_member(o, "bytes-raw", pages * COLO_PAGE_SIZE);
        json_object_set_int_member(o, "bytes-sent", c.bytes);
    }
    json_object_set_object_member(out, "transfer", o);
}
