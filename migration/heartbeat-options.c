/*
 * Options of a colo-heartbeat: addresses, times, the key.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migration/heartbeat.h"
#include "util/error.h"
#include "util/key-file.h"
#include "util/options.h"

static struct addrinfo *resolve(const char *what, const char *text, int flags, int family,
                                GError **errp)
{
    struct addrinfo hints = {.ai_socktype = SOCK_DGRAM, .ai_flags = flags, .ai_family = family};
    struct addrinfo *res = NULL;
    const char *colon = text ? strrchr(text, ':') : NULL;

    if (!colon || !colon[1] || colon == text) {
        colo_error_set(errp, "%s=%s: expected ADDRESS:PORT, or [ADDRESS]:PORT", what,
                       text ? text : "");
        return NULL;
    }
    bool brackets = *text == '[' && colon[-1] == ']';
    g_autofree char *host = brackets ? g_strndup(text + 1, colon - text - 2)
                                     : g_strndup(text, colon - text);
    int r = getaddrinfo(host, colon + 1, &hints, &res);
    if (r != 0) {
        colo_error_set(errp, "%s=%s: %s", what, text, gai_strerror(r));
        return NULL;
    }
    return res;
}

/* A connected socket takes datagrams of the peer's address alone. */
static bool open_link(HeartbeatLink *l, GError **errp)
{
    int tos = IPTOS_CLASS_CS6;
    struct addrinfo *peer = resolve("peer", l->peer, 0, AF_UNSPEC, errp);
    struct addrinfo *local =
        peer ? resolve("local", l->local, AI_PASSIVE, peer->ai_family, errp) : NULL;

    if (local) {
        l->fd = socket(local->ai_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (l->fd < 0 || bind(l->fd, local->ai_addr, local->ai_addrlen) < 0) {
            colo_error_set_errno(errp, errno, "local=%s", l->local);
        } else if (connect(l->fd, peer->ai_addr, peer->ai_addrlen) < 0) {
            colo_error_set_errno(errp, errno, "peer=%s", l->peer);
        } else {
            /* These may fail; they are for a busy network. */
            setsockopt(l->fd, IPPROTO_IP, IP_TOS, &tos, sizeof(tos));
            setsockopt(l->fd, IPPROTO_IPV6, IPV6_TCLASS, &tos, sizeof(tos));
            freeaddrinfo(peer);
            freeaddrinfo(local);
            return true;
        }
    }
    if (l->fd >= 0) {
        close(l->fd);
        l->fd = -1;
    }
    g_clear_pointer(&peer, freeaddrinfo);
    g_clear_pointer(&local, freeaddrinfo);
    return false;
}

static bool add_link(HeartbeatOptions *o, JsonObject *from, GError **errp)
{
    const char *local = options_get_str(from, "local", NULL);
    const char *peer = options_get_str(from, "peer", NULL);

    if (!local || !peer) {
        colo_error_set(errp, "link %u needs local=ADDRESS:PORT and peer=ADDRESS:PORT",
                       o->n_links);
        return false;
    }
    if (o->n_links == HEART_LINKS_MAX) {
        colo_error_set(errp, "more than %d links", HEART_LINKS_MAX);
        return false;
    }
    HeartbeatLink *l = &o->links[o->n_links];
    *l = (HeartbeatLink){g_strdup(local), g_strdup(peer), -1};
    o->n_links++;
    return open_link(l, errp);
}

static bool add_other(HeartbeatOptions *o, JsonObject *from, GError **errp)
{
    static const char *const known[] = {"local", "peer", NULL};

    return options_check_known(from, "a link", known, errp) && add_link(o, from, errp);
}

/* Those beside the first: an array (JSON), or an object with keys 0, 1, ... (keyval). */
static bool add_more(HeartbeatOptions *o, JsonObject *opts, GError **errp)
{
    JsonNode *n = json_object_get_member(opts, "links");
    unsigned taken = 0;

    if (!n) {
        return true;
    }
    if (JSON_NODE_HOLDS_ARRAY(n)) {
        JsonArray *a = json_node_get_array(n);
        for (guint i = 0; i < json_array_get_length(a); i++) {
            JsonNode *e = json_array_get_element(a, i);
            if (!JSON_NODE_HOLDS_OBJECT(e)) {
                colo_error_set(errp, "links: expected objects with local and peer");
                return false;
            }
            if (!add_other(o, json_node_get_object(e), errp)) {
                return false;
            }
        }
        return true;
    }
    JsonObject *map = JSON_NODE_HOLDS_OBJECT(n) ? json_node_get_object(n) : NULL;
    for (unsigned i = 0; map && i < HEART_LINKS_MAX; i++) {
        char key[8];
        g_snprintf(key, sizeof(key), "%u", i);
        JsonObject *e = options_get_obj(map, key);
        if (e && !add_other(o, e, errp)) {
            return false;
        }
        taken += e != NULL;
    }
    if (!map || taken != json_object_get_size(map)) {
        colo_error_set(errp, "links: expected links.N.local and links.N.peer with N below %d",
                       HEART_LINKS_MAX);
        return false;
    }
    return true;
}

bool heartbeat_options_read(HeartbeatOptions *o, JsonObject *opts, GError **errp)
{
    static const char *const known[] = {"qom-type", "id",      "local",    "peer",
                                        "interval", "timeout", "key-file", "links", NULL};

    memset(o, 0, sizeof(*o));
    o->id = g_strdup(options_get_str(opts, "id", ""));
    o->key_file = g_strdup(options_get_str(opts, "key-file", NULL));
    o->interval_ms = 100;
    if (!*o->id) {
        colo_error_set(errp, "colo-heartbeat needs an id");
        return false;
    }
    if (!options_check_known(opts, "colo-heartbeat", known, errp) ||
        !options_get_uint(opts, "interval", &o->interval_ms, 10, 60000, errp)) {
        return false;
    }
    o->timeout_ms = o->interval_ms * 10;
    if (!options_get_uint(opts, "timeout", &o->timeout_ms, 40, 3600000, errp)) {
        return false;
    }
    if (o->timeout_ms < 4 * o->interval_ms) {
        colo_error_set(errp, "timeout=%" G_GUINT64_FORMAT " is less than four times "
                       "interval=%" G_GUINT64_FORMAT ": a lost beat or two would end protection",
                       o->timeout_ms, o->interval_ms);
        return false;
    }
    if (o->key_file && !key_file_read(o->key_file, o->key, &o->key_len, errp)) {
        return false;
    }
    bool first = json_object_has_member(opts, "local") || json_object_has_member(opts, "peer");
    return (!first || add_link(o, opts, errp)) && add_more(o, opts, errp) &&
           (o->n_links > 0 || add_link(o, opts, errp));
}

void heartbeat_options_clear(HeartbeatOptions *o)
{
    for (unsigned i = 0; i < o->n_links; i++) {
        g_free(o->links[i].local);
        g_free(o->links[i].peer);
        if (o->links[i].fd >= 0) {
            close(o->links[i].fd);
        }
    }
    explicit_bzero(o->key, sizeof(o->key));
    g_free(o->id);
    g_free(o->key_file);
    memset(o, 0, sizeof(*o));
}
