/*
 * Chardevs: options, registry, users.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Room singleton @chardevs: the list of all, guarded by the net lock.
 */
#include "chardev/chardev-int.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

static GPtrArray *chardevs;

GPtrArray *chardev_list(void)
{
    if (!chardevs) {
        chardevs = g_ptr_array_new();
    }
    return chardevs;
}

Chardev *chardev_find(const char *id)
{
    GPtrArray *all = chardev_list();

    for (unsigned i = 0; i < all->len; i++) {
        Chardev *c = all->pdata[i];
        if (g_str_equal(c->id, id)) {
            return c;
        }
    }
    return NULL;
}

static void chardev_free(Chardev *c)
{
    chardev_socket_close(c);
    chardev_stream_free(c);
    if (c->creds) {
        tls_creds_unref(c->creds);
    }
    g_free(c->id);
    g_free(c->host);
    g_free(c->port);
    g_free(c->path);
    g_free(c);
}

/* --- Options --- */

static const char *const cli_options[] = {
    "backend", "id",   "host", "port", "path",     "server", "wait", "reconnect",
    "reconnect-ms", "nodelay", "delay", "ipv4", "ipv6", "abstract", "tight", "tls-creds",
    NULL};
static const char *const data_options[] = {"addr", "server",       "wait",  "reconnect",
                                           "reconnect-ms", "nodelay", "tls-creds", NULL};
static const char *const inet_options[] = {"type", "host", "port", "ipv4", "ipv6", NULL};
static const char *const unix_options[] = {"type", "path", "abstract", "tight", NULL};

static bool check_members(JsonObject *o, const char *const *known, const char *where,
                          GError **errp)
{
    g_autoptr(GList) names = json_object_get_members(o);

    for (GList *l = names; l; l = l->next) {
        if (!g_strv_contains(known, l->data)) {
            colo_error_set(errp, "Parameter '%s%s' is unexpected", where, (char *)l->data);
            return false;
        }
    }
    return true;
}

/* QMP's nested form as the flat one of the command line; new reference. */
static JsonObject *flatten_qmp(JsonObject *opts, GError **errp)
{
    const char *id = options_get_str(opts, "id", "");
    JsonObject *backend = options_get_obj(opts, "backend");
    g_autofree char *what = g_strdup_printf("chardev '%s'", id);
    const char *type = options_get_str(backend, "type", "");
    JsonObject *data = options_get_obj(backend, "data");
    JsonObject *addr = data ? options_get_obj(data, "addr") : NULL;

    if (!g_str_equal(type, "socket")) {
        colo_error_set(errp, "%s: backend type '%s' is not 'socket'", what, type);
        return NULL;
    }
    if (!addr) {
        colo_error_set(errp, "Parameter 'backend.data.addr' is missing");
        return NULL;
    }
    if (!check_members(data, data_options, "backend.data.", errp)) {
        return NULL;
    }
    const char *atype = options_get_str(addr, "type", "");
    bool is_unix = g_str_equal(atype, "unix");
    if (!is_unix && !g_str_equal(atype, "inet")) {
        colo_error_set(errp, "%s: address type '%s' is neither 'inet' nor 'unix'", what,
                       atype);
        return NULL;
    }
    JsonObject *a = options_get_obj(addr, "data");
    a = a ? a : addr; /* the flat form of a SocketAddress is taken too */
    if (!check_members(a, is_unix ? unix_options : inet_options, "backend.data.addr.data.",
                       errp)) {
        return NULL;
    }
    JsonObject *flat = options_copy(data);
    json_object_remove_member(flat, "addr");
    GList *names = json_object_get_members(a);
    for (GList *l = names; l; l = l->next) {
        if (!g_str_equal(l->data, "type")) {
            json_object_set_member(flat, l->data,
                                   json_node_copy(json_object_get_member(a, l->data)));
        }
    }
    g_list_free(names);
    json_object_set_string_member(flat, "id", id);
    if (!json_object_has_member(flat, "server")) {
        json_object_set_boolean_member(flat, "server", TRUE); /* QMP's default */
    }
    if (!json_object_has_member(flat, "wait")) {
        json_object_set_boolean_member(flat, "wait", FALSE);
    }
    return flat;
}

static bool parse(Chardev *c, JsonObject *o, GError **errp)
{
    g_autofree char *what = g_strdup_printf("chardev '%s'", c->id);
    bool nodelay = true, ipv4 = true, ipv6 = true;
    uint64_t s = 0, ms = 0;

    if (!options_check_known(o, what, cli_options, errp) ||
        !options_get_bool(o, "server", &c->server, errp)) {
        return false;
    }
    c->wait = c->server;
    c->tight = true;
    if (!options_get_bool(o, "wait", &c->wait, errp) ||
        !options_get_bool(o, "nodelay", &nodelay, errp) ||
        !options_get_bool(o, "ipv4", &ipv4, errp) ||
        !options_get_bool(o, "ipv6", &ipv6, errp) ||
        !options_get_bool(o, "abstract", &c->abstract, errp) ||
        !options_get_bool(o, "tight", &c->tight, errp) ||
        !options_get_uint(o, "reconnect", &s, 0, 86400, errp) ||
        !options_get_uint(o, "reconnect-ms", &ms, 0, 86400000, errp)) {
        return false;
    }
    const char *path = options_get_str(o, "path", NULL);
    const char *host = options_get_str(o, "host", "");
    const char *port = options_get_str(o, "port", NULL);
    if (path && (port || *host)) {
        colo_error_set(errp, "%s: 'path' and 'host'/'port' exclude each other", what);
        return false;
    }
    if (!path && !port) {
        colo_error_set(errp, "%s: one of 'path' and 'port' is needed", what);
        return false;
    }
    if (json_object_has_member(o, "reconnect") &&
        json_object_has_member(o, "reconnect-ms")) {
        colo_error_set(errp, "%s: 'reconnect' and 'reconnect-ms' exclude each other", what);
        return false;
    }
    if (c->server && (s || ms)) {
        colo_error_set(errp, "Failed to add %s: 'reconnect' option is incompatible with "
                             "socket in server listen mode",
                       what);
        return false;
    }
    if (!c->server && c->wait) {
        colo_error_set(errp, "Failed to add %s: 'wait' option is incompatible with socket "
                             "in client connect mode",
                       what);
        return false;
    }
    const char *tls = options_get_str(o, "tls-creds", NULL);
    if (tls && path) {
        colo_error_set(errp, "Failed to add %s: TLS can only used over TCP socket", what);
        return false;
    }
    if (tls && !(c->creds = tls_creds_get(tls, c->server, errp))) {
        return false;
    }
    c->reconnect_ms = s ? s * 1000 : ms;
    c->unix_path = path != NULL;
    c->path = g_strdup(path);
    if (!path) {
        c->host = g_strdup(!*host && !c->server ? "localhost" : host);
        c->port = g_strdup(port);
    }
    return true;
}

bool chardev_wants(JsonObject *opts)
{
    static const char *const not_ours[] = {"telnet", "tn3270", "websocket", "mux", "fd",
                                           "tls-authz", "logfile", NULL};
    JsonObject *backend = options_get_obj(opts, "backend");

    if (backend) {
        return g_str_equal(options_get_str(backend, "type", ""), "socket");
    }
    for (int i = 0; not_ours[i]; i++) {
        if (json_object_has_member(opts, not_ours[i])) {
            return false;
        }
    }
    return g_str_equal(options_get_str(opts, "backend", ""), "socket");
}

Chardev *chardev_new(JsonObject *opts, GError **errp)
{
    const char *id = options_get_str(opts, "id", "");

    if (!*id) {
        colo_error_set(errp, "chardev: parameter 'id' is missing");
        return NULL;
    }
    if (chardev_find(id)) {
        colo_error_set(errp, "Chardev with id '%s' already exists", id);
        return NULL;
    }
    g_autoptr(JsonObject) flat = options_get_obj(opts, "backend")
                                     ? flatten_qmp(opts, errp)
                                     : json_object_ref(opts);
    if (!flat) {
        return NULL;
    }
    Chardev *c = g_new0(Chardev, 1);
    c->id = g_strdup(id);
    c->fd = c->listen_fd = -1;
    if (!parse(c, flat, errp) || !chardev_socket_open(c, errp)) {
        chardev_free(c);
        return NULL;
    }
    g_ptr_array_add(chardev_list(), c);
    return c;
}

Chardev *chardev_new_fd(const char *id, int fd, GError **errp)
{
    int type = 0;
    socklen_t len = sizeof(type);

    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0) {
        colo_error_set_errno(errp, errno, "fd %d is not a socket", fd);
        return NULL;
    }
    if (type != SOCK_STREAM) {
        colo_error_set(errp, "fd %d is not a stream socket", fd);
        return NULL;
    }
    Chardev *c = g_new0(Chardev, 1);
    c->id = g_strdup(id);
    c->listen_fd = -1;
    c->fd = fd;
    c->connected = true;
    c->unix_path = true;
    c->path = g_strdup_printf("fd:%d", fd);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    g_ptr_array_add(chardev_list(), c);
    return c;
}

bool chardev_remove(const char *id, GError **errp)
{
    Chardev *c = chardev_find(id);

    if (!c) {
        g_set_error(errp, COLO_ERROR, COLO_ERROR_GENERIC, "Chardev '%s' not found", id);
        return false;
    }
    if (c->h) {
        colo_error_set(errp, "Chardev '%s' is busy", id);
        return false;
    }
    g_ptr_array_remove(chardev_list(), c);
    chardev_free(c);
    return true;
}

/* --- Users --- */

bool chardev_claim(Chardev *c, const ChardevHandlers *h, void *opaque, bool vnet_hdr,
                   GError **errp)
{
    if (c->h) {
        colo_error_set(errp, "Device '%s' is in use", c->id);
        return false;
    }
    c->h = h;
    c->opaque = opaque;
    c->vnet_hdr = vnet_hdr;
    c->allow_control = c->paused = false;
    c->omax = 0;
    chardev_socket_watch(c);
    return true;
}

void chardev_release(Chardev *c)
{
    c->h = NULL;
    c->opaque = NULL;
    c->allow_control = false;
    chardev_socket_watch(c);
}

void chardev_set_vnet_hdr(Chardev *c, bool on)
{
    if (c) {
        c->vnet_hdr = on;
    }
}

const char *chardev_id(Chardev *c)
{
    return c->id;
}

bool chardev_connected(Chardev *c)
{
    return c->connected;
}

Chardev *chardev_peer(Chardev *c)
{
    return c->joined;
}

void *chardev_user(Chardev *c, const ChardevHandlers *h)
{
    return c && c->h == h ? c->opaque : NULL;
}

bool chardev_claimed(Chardev *c)
{
    return c->h != NULL;
}

uint64_t chardev_frames_out(Chardev *c)
{
    return c->frames_out;
}

uint64_t chardev_frames_in(Chardev *c)
{
    return c->frames_in;
}

uint64_t chardev_backlog(Chardev *c)
{
    return c->oend - c->ohead;
}

void chardev_set_backlog_max(Chardev *c, uint64_t bytes)
{
    c->omax = bytes;
}

bool chardev_paused(Chardev *c)
{
    return c->paused;
}

void chardev_allow_control(Chardev *c, bool allow)
{
    c->allow_control = allow;
}

void chardev_yank(Chardev *c)
{
    if (c->connected || c->connecting || c->tls) {
        chardev_socket_lost(c, "yanked");
    }
}

static bool all_ready(void)
{
    GPtrArray *all = chardev_list();

    for (unsigned i = 0; i < all->len; i++) {
        Chardev *c = all->pdata[i];
        if (c->server && c->wait && !c->connected) {
            return false;
        }
    }
    return true;
}

bool chardev_wait_ready(bool (*poll)(void *opaque), void *opaque)
{
    for (;;) {
        net_lock();
        bool ready = all_ready();
        net_unlock();
        if (ready) {
            return true;
        }
        if (poll && !poll(opaque)) {
            return false;
        }
        g_usleep(5000);
    }
}

char *chardev_address(Chardev *c, bool kind)
{
    if (c->unix_path) {
        return g_strdup_printf("%s%s", kind ? "unix:" : "", c->path);
    }
    bool v6 = strchr(c->host, ':') != NULL;
    return g_strdup_printf("%s%s%s%s:%s", kind ? "tcp:" : "", v6 ? "[" : "", c->host,
                           v6 ? "]" : "", c->port);
}

JsonArray *chardev_query(void)
{
    JsonArray *out = json_array_new();
    GPtrArray *all = chardev_list();

    for (unsigned i = 0; i < all->len; i++) {
        Chardev *c = all->pdata[i];
        if (c->id[0] == '#') {
            continue;
        }
        JsonObject *o = json_object_new();
        g_autofree char *addr = chardev_address(c, true);
        g_autofree char *name = g_strdup_printf(
            "%s%s%s%s%s", c->connected ? "" : "disconnected:", addr,
            c->server ? ",server=on" : "", c->peer_name[0] ? " <-> " : "", c->peer_name);
        json_object_set_string_member(o, "label", c->id);
        json_object_set_string_member(o, "filename", name);
        json_object_set_boolean_member(o, "frontend-open", c->h != NULL);
        json_array_add_object_element(out, o);
    }
    return out;
}
