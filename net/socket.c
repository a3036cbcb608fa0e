/*
 * Backends socket and stream: length-prefixed frames over a stream socket.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The framing is that of socket chardevs, so each is a chardev under an internal id.
 */
#include <limits.h>
#include <string.h>

#include "chardev/chardev.h"
#include "net/net-int.h"

static void socket_frame(void *opaque, Frame *f)
{
    netdev_input(opaque, f);
}

static void socket_event(void *opaque, bool connected)
{
    ((NetDev *)opaque)->throttled = false; /* a new connection starts unpaused */
}

static const ChardevHandlers socket_handlers = {.frame = socket_frame,
                                                .event = socket_event};

static void socket_send(NetDev *nd, Frame *f)
{
    if (!chardev_send_take(nd->backend, f)) {
        nd->stats.dropped_backend++;
    }
}

static void socket_throttle(NetDev *nd, bool stop)
{
    chardev_pause(nd->backend, stop);
}

static void socket_close(NetDev *nd)
{
    Chardev *c = nd->backend;

    chardev_release(c);
    g_autofree char *id = g_strdup(chardev_id(c));
    chardev_remove(id, NULL);
    nd->backend = NULL;
}

static const NetBackend socket_ops = {
    .type = "socket",
    .send = socket_send,
    .throttle = socket_throttle,
    .close = socket_close};

static bool attach(NetDev *nd, Chardev *c, GError **errp)
{
    if (!c) {
        g_prefix_error(errp, "netdev '%s': ", nd->id);
        return false;
    }
    nd->backend = c;
    nd->ops = &socket_ops;
    return chardev_claim(c, &socket_handlers, nd, false, errp);
}

static bool attach_fd(NetDev *nd, uint64_t fd, GError **errp)
{
    g_autofree char *id = g_strdup_printf("#net-%s", nd->id);
    return attach(nd, chardev_new_fd(id, fd, errp), errp);
}

static JsonObject *chardev_options(NetDev *nd, bool server)
{
    JsonObject *o = json_object_new();
    g_autofree char *id = g_strdup_printf("#net-%s", nd->id);

    json_object_set_string_member(o, "id", id);
    json_object_set_boolean_member(o, "server", server);
    if (server) {
        json_object_set_boolean_member(o, "wait", FALSE);
    }
    return o;
}

bool net_socket_open(NetDev *nd, JsonObject *opts, GError **errp)
{
    static const char *const known[] = {"type", "id", "fd", "listen", "connect", NULL};
    g_autofree char *what = g_strdup_printf("netdev '%s'", nd->id);
    uint64_t fd = 0;

    if (json_object_has_member(opts, "mcast") || json_object_has_member(opts, "udp")) {
        colo_error_set(errp, "%s: 'mcast' and 'udp' cannot be replicated; use 'listen', "
                             "'connect' or 'fd'",
                       what);
        return false;
    }
    if (!options_check_known(opts, what, known, errp) ||
        !options_get_uint(opts, "fd", &fd, 0, INT_MAX, errp)) {
        return false;
    }
    const char *listen = options_get_str(opts, "listen", NULL);
    const char *connect = options_get_str(opts, "connect", NULL);
    bool has_fd = json_object_has_member(opts, "fd");
    if (!!listen + !!connect + has_fd != 1) {
        colo_error_set(errp, "%s: exactly one of 'fd', 'listen', 'connect' is needed", what);
        return false;
    }
    if (has_fd) {
        return attach_fd(nd, fd, errp);
    }
    const char *addr = listen ? listen : connect;
    const char *colon = strrchr(addr, ':');
    if (!colon) {
        colo_error_set(errp, "%s: '%s' is not HOST:PORT", what, addr);
        return false;
    }
    g_autoptr(JsonObject) o = chardev_options(nd, listen != NULL);
    g_autofree char *host = g_strndup(addr, colon - addr);
    json_object_set_string_member(o, "host", host);
    json_object_set_string_member(o, "port", colon + 1);
    return attach(nd, chardev_new(o, errp), errp);
}

bool net_stream_open(NetDev *nd, JsonObject *opts, GError **errp)
{
    static const char *const known[] = {"type",      "id",           "server", "addr",
                                        "reconnect", "reconnect-ms", NULL};
    static const char *const addr_known[] = {"type", "host",     "port",  "path", "str",
                                             "ipv4", "abstract", "tight", NULL};
    g_autofree char *what = g_strdup_printf("netdev '%s'", nd->id);
    JsonObject *addr = options_get_obj(opts, "addr");
    bool server = false;
    uint64_t fd = 0;

    if (!options_check_known(opts, what, known, errp) ||
        !options_get_bool(opts, "server", &server, errp)) {
        return false;
    }
    if (!addr) {
        colo_error_set(errp, "%s: option 'addr.type' is missing", what);
        return false;
    }
    if (!options_check_known(addr, what, addr_known, errp)) {
        return false;
    }
    const char *type = options_get_str(addr, "type", "");
    if (g_str_equal(type, "fd")) {
        if (!json_object_has_member(addr, "str") ||
            !options_get_uint(addr, "str", &fd, 0, INT_MAX, errp)) {
            if (errp && !*errp) {
                colo_error_set(errp, "%s: option 'addr.str' is missing", what);
            }
            return false;
        }
        return attach_fd(nd, fd, errp);
    }
    if (!g_str_equal(type, "inet") && !g_str_equal(type, "unix")) {
        colo_error_set(errp, "%s: addr.type '%s' is none of inet, unix, fd", what, type);
        return false;
    }
    g_autoptr(JsonObject) o = chardev_options(nd, server);
    static const char *const copied[] = {"host", "port", "path", "abstract", "tight", "ipv4"};
    for (unsigned i = 0; i < G_N_ELEMENTS(copied); i++) {
        const char *v = options_get_str(addr, copied[i], NULL);
        if (v) {
            json_object_set_string_member(o, copied[i], v);
        }
    }
    static const char *const again[] = {"reconnect", "reconnect-ms"};
    for (unsigned i = 0; i < G_N_ELEMENTS(again); i++) {
        const char *v = options_get_str(opts, again[i], NULL);
        if (v) {
            json_object_set_string_member(o, again[i], v);
        }
    }
    return attach(nd, chardev_new(o, errp), errp);
}
