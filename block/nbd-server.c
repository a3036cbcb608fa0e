/*
 * NBD server: listeners and exports, the emulator's and the user's.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The emulator has one unix socket a disk, in the private runtime directory, with the
 * disk as its only export. nbd-server-start makes one more listener, for which
 * nbd-server-add names exports.
 */
#include "nbd-conn.h"
#include "node-ref.h"

#include <fcntl.h>
#include <gio/gio.h>
#include <gio/gunixsocketaddress.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#define GUEST_SNDBUF (4 * 1024 * 1024)

struct NbdListener {
    GSocket *socket;
    BlockFd *watch;
    char *path;         /* unix: to be unlinked */
    GPtrArray *exports; /* NbdExport */
    GPtrArray *conns;   /* NbdConn */
    uint64_t max_conn;  /* 0: any number */
    TlsCreds *tls;      /* or NULL */
    GSource *pause;     /* no descriptors left: accept later */
    bool guest;
};

/* Room singleton, guarded by the block lock. */
static struct {
    NbdListener *user;
    GPtrArray *guests; /* NbdListener of block_serve_child() */
    unsigned number;
} servers;

static void listener_update(NbdListener *l);

NbdExport *nbd_listener_export(NbdListener *l, unsigned i)
{
    return i < l->exports->len ? l->exports->pdata[i] : NULL;
}

/* What export @e tells of itself under @name, or NULL. */
static NbdExport *export_side(NbdExport *e, const char *name)
{
    size_t len = strlen(e->name);

    for (int i = 0; i < RESYNC_SIDES && !e->guest && !strncmp(name, e->name, len); i++) {
        if (strcmp(name + len, resync_suffix(i)) != 0) {
            continue;
        }
        if (!e->side[i]) {
            e->side[i] = g_new0(NbdExport, 1);
            e->side[i]->name = g_strdup(name);
            e->side[i]->node = resync_node_new(e->node, i);
            e->side[i]->of = e;
        }
        return e->side[i];
    }
    return NULL;
}

NbdExport *nbd_listener_find(NbdListener *l, const char *name)
{
    NbdExport *side = NULL;

    for (guint i = 0; i < l->exports->len; i++) {
        NbdExport *e = l->exports->pdata[i];

        if (!strcmp(e->name, name)) {
            return e;
        }
    }
    for (guint i = 0; i < l->exports->len && !side; i++) {
        side = export_side(l->exports->pdata[i], name);
    }
    return side;
}

TlsCreds *nbd_listener_tls(NbdListener *l)
{
    return l->tls;
}

void *nbd_server_find_conn(BlockNode *node, const char *name, bool *named)
{
    *named = false;
    for (guint i = 0; servers.user && i < servers.user->conns->len; i++) {
        NbdConn *c = servers.user->conns->pdata[i];

        if (c->export && c->export->node == node && *c->name) {
            *named = true;
            if (!strcmp(c->name, name)) {
                return c;
            }
        }
    }
    return NULL;
}

static void close_named(NbdListener *l, const char *name, NbdConn *but)
{
    for (guint i = l->conns->len; i > 0; i--) {
        NbdConn *c = l->conns->pdata[i - 1];

        if (c != but && !strcmp(c->name, name)) {
            colo_trace(block_nbd_gone, "%s", name);
            nbd_conn_close(c);
        }
    }
}

void nbd_conn_name(NbdConn *c, const char *context, size_t len)
{
    g_auto(GStrv) gone = NULL;
    g_autofree char *name = c->guest ? NULL : nbd_name_heard(context, len, &gone);

    if (name) {
        g_strlcpy(c->name, name, sizeof(c->name));
    }
    for (unsigned i = 0; gone && gone[i]; i++) {
        close_named(c->listener, gone[i], c);
    }
}

void nbd_listener_forget(NbdListener *l, NbdConn *c)
{
    g_ptr_array_remove_fast(l->conns, c);
    if (l->watch) {
        listener_update(l);
    }
}

uint16_t nbd_export_flags(NbdExport *e)
{
    BlockNode *node = e->node;
    uint16_t flags = NBD_TFLAG_HAS_FLAGS | NBD_TFLAG_SEND_FLUSH | NBD_TFLAG_SEND_FUA |
                     NBD_TFLAG_SEND_DF;

    if (!e->writable) {
        flags |= NBD_TFLAG_READ_ONLY;
    } else {
        flags |= node->can_zero ? NBD_TFLAG_SEND_WRITE_ZEROES : 0;
        flags |= node->discard ? NBD_TFLAG_SEND_TRIM : 0;
        flags |= node->fast_zero && node->can_zero && !node->secondary
                     ? NBD_TFLAG_SEND_FAST_ZERO : 0;
    }
    flags |= NBD_TFLAG_SEND_CACHE;
    /* A flush covers what came by any connection, and all see one content; but a log has
     * one connection's order. */
    if (e->multi_conn && (!node->secondary || block_secondary_multi_conn(node->secondary))) {
        flags |= NBD_TFLAG_CAN_MULTI_CONN;
    }
    return flags;
}

/* A client more is wanted; beyond the limit they wait in the kernel's queue. */
static void listener_update(NbdListener *l)
{
    bool full = l->max_conn && l->conns->len >= l->max_conn;

    block_fd_set(l->watch, full || l->pause ? 0 : G_IO_IN);
}

static gboolean listener_goes_on(gpointer opaque)
{
    NbdListener *l = opaque;

    io_source_destroy(&l->pause);
    listener_update(l);
    return G_SOURCE_REMOVE;
}

/* A client that gave its connection up while the link was cut is seen to be gone soon after the
 * link is mended: until then what it wrote over it counts. A cut alone ends nothing for minutes. */
static void keep_alive(int fd)
{
    int one = 1, seconds = 1, probes = 120;

    (void)!setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    (void)!setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &seconds, sizeof(seconds));
    (void)!setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &seconds, sizeof(seconds));
    (void)!setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

static void listener_event(void *opaque, GIOCondition cond)
{
    NbdListener *l = opaque;
    int fd =
        accept4(g_socket_get_fd(l->socket), NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    int one = 1;

    if (fd < 0) {
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
            colo_report("NBD server: cannot take a client: %s", g_strerror(errno));
            l->pause = io_thread_timer(block_thread(), 200, listener_goes_on, l);
            listener_update(l);
        }
        return;
    }
    /* Fails on a unix socket, which needs it not. */
    (void)!setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    keep_alive(fd);
    if (l->guest) {
        /* A whole answer without waiting for its reader; beyond the system's limit only
         * with privilege. TCP finds its own. */
        int size = GUEST_SNDBUF;

        if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0) {
            (void)!setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
        }
    }
    NbdConn *c = nbd_conn_new(l, fd, l->guest);
    g_ptr_array_add(l->conns, c);
    listener_update(l);
    nbd_handshake_greet(c);
}

static void export_free(NbdExport *e)
{
    if (e->id) {
        JsonObject *o = json_object_new();

        json_object_set_string_member(o, "id", e->id);
        block_event("BLOCK_EXPORT_DELETED", o);
    }
    for (int i = 0; i < RESYNC_SIDES; i++) {
        if (e->side[i]) {
            block_node_unuse(e->side[i]->node);
            g_free(e->side[i]->name);
            g_free(e->side[i]);
        }
    }
    e->node->users--;
    g_free(e->id);
    g_free(e->description);
    g_free(e->name);
    g_free(e);
}

static void listener_free(NbdListener *l)
{
    block_fd_free(l->watch);
    l->watch = NULL;
    io_source_destroy(&l->pause);
    while (l->conns->len > 0) {
        nbd_conn_close(l->conns->pdata[0]);
    }
    for (guint i = 0; i < l->exports->len; i++) {
        export_free(l->exports->pdata[i]);
    }
    g_ptr_array_unref(l->exports);
    g_ptr_array_unref(l->conns);
    g_socket_close(l->socket, NULL);
    g_object_unref(l->socket);
    if (l->path) {
        unlink(l->path);
    }
    tls_creds_unref(l->tls);
    g_free(l->path);
    g_free(l);
}

static NbdListener *listener_new(GSocketAddress *addr, GError **errp)
{
    g_autoptr(GError) err = NULL;
    bool is_unix = G_IS_UNIX_SOCKET_ADDRESS(addr);
    const char *path =
        is_unix ? g_unix_socket_address_get_path(G_UNIX_SOCKET_ADDRESS(addr)) : NULL;
    g_autoptr(GSocket) sock =
        g_socket_new(g_socket_address_get_family(addr), G_SOCKET_TYPE_STREAM,
                     G_SOCKET_PROTOCOL_DEFAULT, &err);

    if (path) {
        unlink(path);
    }
    if (!sock || !g_socket_bind(sock, addr, TRUE, &err) || !g_socket_listen(sock, &err)) {
        g_autofree char *where =
            g_socket_connectable_to_string(G_SOCKET_CONNECTABLE(addr));

        colo_error_set(errp, "NBD server cannot listen on %s: %s", where, err->message);
        return NULL;
    }
    g_socket_set_blocking(sock, FALSE);
    NbdListener *l = g_new0(NbdListener, 1);
    l->path = g_strdup(path);
    l->exports = g_ptr_array_new();
    l->conns = g_ptr_array_new();
    l->watch = block_fd_new(g_socket_get_fd(sock), G_IO_IN, listener_event, l);
    l->socket = g_steal_pointer(&sock);
    return l;
}

static NbdExport *listener_add(NbdListener *l, BlockNode *node, const char *name,
                               bool writable, bool guest)
{
    NbdExport *e = g_new0(NbdExport, 1);

    e->name = g_strdup(name);
    e->node = node;
    e->writable = writable;
    e->guest = guest;
    e->multi_conn = l->max_conn != 1;
    node->users++;
    g_ptr_array_add(l->exports, e);
    return e;
}

/* --- The emulator's --- */

const char *block_serve_child(const char *name, GError **errp)
{
    if (!block_node_ref_open(name, errp)) {
        return NULL;
    }
    block_lock();
    BlockNode *node = block_node_find(name);
    if (!node) {
        colo_error_set(errp, "Cannot find device='' nor node-name='%s'", name);
    } else if (block_node_torn(node)) {
        colo_error_set(errp,
                       "image '%s' was left between two checkpoints by a replication that did "
                       "not end properly: let the other host bring it up to date, or copy it "
                       "and remove '%s'",
                       block_node_torn(node)->filename, block_node_torn(node)->torn);
    } else if (!node->serve_path) {
        g_autofree char *path =
            g_strdup_printf("%s/disk-%u.sock", block_runtime_dir(), servers.number++);
        g_autoptr(GSocketAddress) addr = g_unix_socket_address_new(path);
        NbdListener *l = listener_new(addr, errp);

        if (l) {
            l->guest = true;
            listener_add(l, node, name, !node->read_only, true);
            if (!servers.guests) {
                servers.guests = g_ptr_array_new();
            }
            g_ptr_array_add(servers.guests, l);
            block_front_set_guest(block_front_get(node));
            node->serve_path = g_strdup(path);
        }
    }
    const char *path = node ? node->serve_path : NULL;
    block_unlock();
    return path;
}

/* Where the emulator has @node from, or NULL. */
static NbdListener *guest_listener(BlockNode *node)
{
    for (guint i = 0; servers.guests && i < servers.guests->len; i++) {
        NbdListener *l = servers.guests->pdata[i];
        NbdExport *e = l->exports->pdata[0];

        if (e->node == node) {
            return l;
        }
    }
    return NULL;
}

bool block_child_has(const char *name)
{
    block_lock();
    BlockNode *node = block_node_find(name);
    bool has = node && node->serve_path;
    block_unlock();
    return has;
}

void block_child_left(const char *name)
{
    block_lock();
    BlockNode *node = block_node_find(name);
    NbdListener *l = node ? guest_listener(node) : NULL;
    while (l && l->conns->len > 0) {
        nbd_conn_close(l->conns->pdata[0]);
    }
    block_unlock();
}

void nbd_server_unserve(BlockNode *node)
{
    NbdListener *l = guest_listener(node);

    if (l && l->conns->len == 0) {
        g_ptr_array_remove_fast(servers.guests, l);
        listener_free(l);
        g_clear_pointer(&node->serve_path, g_free);
    }
}

/* --- The user's --- */

/* {"type":"inet","data":{...}} (legacy) or {"type":"inet","host":...}. */
static GSocketAddress *server_address(JsonObject *addr, GError **errp)
{
    const char *type = options_get_str(addr, "type", "inet");
    JsonObject *data =
        options_get_obj(addr, "data") ? options_get_obj(addr, "data") : addr;

    if (!strcmp(type, "unix")) {
        const char *path = options_get_str(data, "path", NULL);

        if (!path) {
            colo_error_set(errp, "Parameter 'addr.path' is missing");
            return NULL;
        }
        return g_unix_socket_address_new(path);
    }
    if (strcmp(type, "inet")) {
        colo_error_set(
            errp, "nbd-server-start: addr type '%s' is not supported (inet, unix)", type);
        return NULL;
    }
    const char *host = options_get_str(data, "host", "");
    uint64_t port = 0;
    if (!options_get_uint(data, "port", &port, 0, 65535, errp)) {
        return NULL;
    }
    GSocketAddress *a = g_inet_socket_address_new_from_string(*host ? host : "::", port);
    if (a) {
        return a;
    }
    g_autoptr(GSocketConnectable) name = g_network_address_new(host, port);
    g_autoptr(GSocketAddressEnumerator) en = g_socket_connectable_enumerate(name);
    g_autoptr(GError) err = NULL;
    a = g_socket_address_enumerator_next(en, NULL, &err);
    if (!a) {
        colo_error_set(errp, "nbd-server-start: host '%s': %s", host,
                       err ? err->message : "no address");
    }
    return a;
}

bool block_nbd_server_start(JsonObject *addr, const char *tls_creds, uint64_t max_conn,
                            GError **errp)
{
    g_autoptr(TlsCreds) tls = NULL;
    if (tls_creds && !(tls = tls_creds_get(tls_creds, true, errp))) {
        return false;
    }
    g_autoptr(GSocketAddress) sa = server_address(addr, errp);
    if (!sa) {
        return false;
    }
    block_lock();
    bool ok = false;
    if (servers.user) {
        colo_error_set(errp, "NBD server already running");
    } else {
        servers.user = listener_new(sa, errp);
        if (servers.user) {
            servers.user->max_conn = max_conn;
            servers.user->tls = g_steal_pointer(&tls);
            ok = true;
        }
    }
    block_unlock();
    return ok;
}

static NbdExport *export_by_id(const char *id)
{
    NbdListener *l = servers.user;

    for (guint i = 0; l && i < l->exports->len; i++) {
        NbdExport *e = l->exports->pdata[i];

        if (!g_strcmp0(e->id, id)) {
            return e;
        }
    }
    return NULL;
}

static bool export_check(const BlockExportOptions *o, BlockNode *node, GError **errp)
{
    if (!servers.user) {
        colo_error_set(errp, "NBD server not running");
    } else if (!node) {
        colo_error_set(errp, "Cannot find device='%s' nor node-name='%s'",
                       o->legacy ? o->node : "", o->node);
    } else if (strlen(o->name) > NBD_NAME_MAX) {
        colo_error_set(errp, "export name '%s' too long", o->name);
    } else if (o->description && strlen(o->description) > NBD_NAME_MAX) {
        colo_error_set(errp, "description '%s' too long", o->description);
    } else if (export_by_id(o->id)) {
        colo_error_set(errp, "Block export id '%s' is already in use", o->id);
    } else if (nbd_listener_find(servers.user, o->name)) {
        colo_error_set(errp, "NBD server already has export named '%s'", o->name);
    } else if (o->writable && node->read_only) {
        colo_error_set(errp, "Cannot export read-only node as writable");
    } else {
        return true;
    }
    return false;
}

bool block_export_add(const BlockExportOptions *o, GError **errp)
{
    if (!block_node_ref_open(o->node, errp)) {
        return false;
    }
    block_lock();
    BlockNode *node = block_node_find(o->node);
    bool ok = export_check(o, node, errp);
    if (ok) {
        NbdExport *e = listener_add(servers.user, node, o->name, o->writable, false);

        e->id = g_strdup(o->id);
        e->description = g_strdup(o->description);
        e->writethrough = o->writethrough;
        if (o->writable) {
            block_secondary_exported(node, o->name);
        }
    }
    block_unlock();
    return ok;
}

bool block_nbd_server_add(const char *name, const char *export_name, bool writable,
                          GError **errp)
{
    const char *as = export_name ? export_name : name;
    BlockExportOptions o = {
        .id = as, .node = name, .name = as, .writable = writable, .legacy = true};

    return block_export_add(&o, errp);
}

/* Whether somebody uses @e; with @hard none does afterwards. */
static bool export_in_use(NbdListener *l, NbdExport *e, bool hard)
{
    for (guint i = 0; i < l->conns->len;) {
        NbdConn *c = l->conns->pdata[i];

        if (!c->export || (c->export != e && c->export->of != e)) {
            i++;
        } else if (!hard) {
            return true;
        } else {
            nbd_conn_close(c);
            i = 0;
        }
    }
    return false;
}

bool block_export_del(const char *id, bool hard, GError **errp)
{
    block_lock();
    NbdListener *l = servers.user;
    NbdExport *e = export_by_id(id);
    bool ok = false;
    if (!e) {
        colo_error_set(errp, "Export '%s' is not found", id);
    } else if (export_in_use(l, e, hard)) {
        colo_error_set(errp, "export '%s' still in use", id);
    } else {
        block_secondary_exported(e->node, NULL);
        g_ptr_array_remove(l->exports, e);
        export_free(e);
        ok = true;
    }
    block_unlock();
    return ok;
}

bool block_nbd_server_running(void)
{
    block_lock();
    bool running = servers.user != NULL;
    block_unlock();
    return running;
}

JsonArray *block_export_query(void)
{
    JsonArray *a = json_array_new();

    block_lock();
    NbdListener *l = servers.user;
    for (guint i = l ? l->exports->len : 0; i > 0; i--) { /* as stock: the newest first */
        NbdExport *e = l->exports->pdata[i - 1];
        JsonObject *o = json_object_new();

        json_object_set_string_member(o, "node-name", e->node->name);
        json_object_set_boolean_member(o, "shutting-down", FALSE);
        json_object_set_string_member(o, "type", "nbd");
        json_object_set_string_member(o, "id", e->id);
        json_array_add_object_element(a, o);
    }
    block_unlock();
    return a;
}

bool block_nbd_server_stop(GError **errp)
{
    block_lock();
    bool running = servers.user != NULL;
    if (running) {
        /* The disks' names stay known to the log: a takeover still follows. */
        listener_free(g_steal_pointer(&servers.user));
    }
    block_unlock();
    if (!running) {
        colo_error_set(errp, "NBD server not running");
    }
    return running;
}

/* --- For the room --- */

void nbd_server_cleanup(void)
{
    if (servers.user) {
        listener_free(g_steal_pointer(&servers.user));
    }
    while (servers.guests && servers.guests->len > 0) {
        listener_free(g_ptr_array_remove_index_fast(servers.guests, 0));
    }
    g_clear_pointer(&servers.guests, g_ptr_array_unref);
}

void nbd_server_kick(void)
{
    NbdListener *l = servers.user;
    g_autoptr(GPtrArray) conns = l ? g_ptr_array_copy(l->conns, NULL, NULL) : NULL;

    for (guint i = 0; conns && i < conns->len; i++) {
        /* Closing one may close no other. */
        nbd_conn_resume(conns->pdata[i]);
    }
}

static gboolean kick_now(gpointer opaque)
{
    nbd_server_kick();
    return G_SOURCE_REMOVE;
}

void nbd_server_kick_later(void)
{
    io_thread_post(block_thread(), kick_now, NULL);
}

void nbd_server_drop_writers(BlockNode *node)
{
    NbdListener *l = servers.user;

    for (guint i = 0; l && i < l->conns->len;) {
        NbdConn *c = l->conns->pdata[i];

        if (c->export && c->export->node == node && c->export->writable) {
            nbd_conn_close(c);
            i = 0;
        } else {
            i++;
        }
    }
}
