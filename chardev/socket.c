/*
 * Connections of socket chardevs: listen, accept, connect, connect again, join.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A chardev has at most one connection. A server with one leaves further clients in the
 * kernel's backlog, as QEMU does. A client looks for its server in this process first.
 */
#include "chardev/chardev-int.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define CONNECT_WAIT_MS 2000 /* without reconnect, a connect that fails is an error */

static void client_try(Chardev *c);
static void client_retry_later(Chardev *c);

/* --- Up and down --- */

static void set_up(Chardev *c)
{
    c->connected = true;
    colo_trace(chardev_connected, "%s %s", c->id, c->peer_name);
    if (c->h && c->h->event) {
        c->h->event(c->opaque, true);
    }
}

static void set_down(Chardev *c)
{
    bool was = c->connected;

    io_source_destroy(&c->in);
    io_source_destroy(&c->out);
    chardev_tls_end(c);
    if (c->fd >= 0) {
        close(c->fd);
        c->fd = -1;
    }
    c->connected = c->connecting = false;
    c->joined = NULL;
    c->paused = false;
    c->peer_name[0] = '\0';
    chardev_stream_reset(c);
    if (was && c->h && c->h->event) {
        c->h->event(c->opaque, false);
    }
}

static gboolean server_accept(int fd, GIOCondition cond, gpointer opaque);

static void listen_on(Chardev *c)
{
    if (c->server && c->listen_fd >= 0 && !c->listen_src) {
        c->listen_src =
            io_thread_watch_fd(net_thread(), c->listen_fd, G_IO_IN, server_accept, c);
    }
}

static void after_down(Chardev *c)
{
    if (c->server) {
        listen_on(c);
    } else {
        client_retry_later(c);
    }
}

void chardev_socket_lost(Chardev *c, const char *why)
{
    Chardev *peer = c->joined;

    colo_trace(chardev_lost, "%s: %s", c->id, why);
    set_down(c);
    if (peer) {
        set_down(peer);
        after_down(peer);
    }
    after_down(c);
}

void chardev_socket_read(Chardev *c)
{
    const char *why = NULL;

    net_batch_begin();
    bool ok = chardev_stream_read(c, &why);
    net_batch_end();
    if (!ok) {
        chardev_socket_lost(c, why);
    } else {
        chardev_tls_read_pending(c);
    }
}

static gboolean socket_readable(int fd, GIOCondition cond, gpointer opaque)
{
    chardev_socket_read(opaque); /* destroys the source if the connection is over */
    return G_SOURCE_CONTINUE;
}

void chardev_socket_watch(Chardev *c)
{
    if (c->fd >= 0 && c->connected && c->h && !c->paused && !c->in) {
        c->in = io_thread_watch_fd(net_thread(), c->fd, G_IO_IN | G_IO_HUP | G_IO_ERR,
                                   socket_readable, c);
        chardev_tls_read_pending(c);
    } else if (!c->h || c->paused) {
        io_source_destroy(&c->in);
    }
}

void chardev_pause(Chardev *c, bool pause)
{
    const char *why = NULL;

    c->paused = pause;
    chardev_socket_watch(c);
    if (!pause && c->fd >= 0 && c->connected) {
        net_batch_begin();
        bool ok = chardev_stream_parse(c, &why);
        net_batch_end();
        if (!ok) {
            chardev_socket_lost(c, why);
        } else {
            chardev_tls_read_pending(c);
        }
    }
}

static void socket_up(Chardev *c, int fd)
{
    int one = 1;
    struct sockaddr_storage ss;
    socklen_t len = sizeof(ss);

    c->fd = fd;
    c->connecting = false;
    if (!c->unix_path) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
        char host[48] = "", port[8] = "";
        if (getpeername(fd, (struct sockaddr *)&ss, &len) == 0) {
            getnameinfo((struct sockaddr *)&ss, len, host, sizeof(host), port,
                        sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV);
        }
        g_snprintf(c->peer_name, sizeof(c->peer_name), "%s:%s", host, port);
    }
    if (c->creds) {
        chardev_tls_begin(c);
    } else {
        chardev_socket_ready(c);
    }
}

void chardev_socket_ready(Chardev *c)
{
    set_up(c);
    chardev_socket_watch(c);
}

/* --- Join within the process --- */

static bool is_wildcard(const char *host)
{
    return !*host || g_str_equal(host, "0.0.0.0") || g_str_equal(host, "::");
}

/* Whether @c's address is one of this host: only then can a socket be bound to it. */
static bool is_local(Chardev *c)
{
    struct sockaddr_storage ss = c->addr;
    if (ss.ss_family == AF_INET) {
        ((struct sockaddr_in *)&ss)->sin_port = 0;
    } else {
        ((struct sockaddr_in6 *)&ss)->sin6_port = 0;
    }
    int fd = socket(ss.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *)&ss, c->addr_len) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

static bool addresses_meet(Chardev *server, Chardev *client)
{
    if (server->unix_path != client->unix_path) {
        return false;
    }
    if (server->unix_path) {
        return server->abstract == client->abstract &&
               g_str_equal(server->path, client->path);
    }
    if (!g_str_equal(server->port, client->port)) {
        return false;
    }
    if (is_wildcard(server->host)) {
        return is_local(client);
    }
    return server->addr_len == client->addr_len &&
           memcmp(&server->addr, &client->addr, server->addr_len) == 0;
}

static bool try_join(Chardev *c)
{
    GPtrArray *all = chardev_list();

    for (unsigned i = 0; i < all->len; i++) {
        Chardev *o = all->pdata[i];
        if (o == c || o->server == c->server || o->connected || !o->creds != !c->creds ||
            !addresses_meet(c->server ? c : o, c->server ? o : c)) {
            continue;
        }
        set_down(o);
        set_down(c);
        io_source_destroy(&o->timer);
        io_source_destroy(&c->timer);
        io_source_destroy(&(c->server ? c : o)->listen_src);
        c->joined = o;
        o->joined = c;
        g_snprintf(c->peer_name, sizeof(c->peer_name), "in-process '%s'", o->id);
        g_snprintf(o->peer_name, sizeof(o->peer_name), "in-process '%s'", c->id);
        c->connected = o->connected = true;
        set_up(o);
        set_up(c);
        return true;
    }
    return false;
}

/* --- Server --- */

static gboolean server_accept(int fd, GIOCondition cond, gpointer opaque)
{
    Chardev *c = opaque;
    int s = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (s < 0) {
        return G_SOURCE_CONTINUE;
    }
    io_source_destroy(&c->listen_src);
    net_batch_begin();
    socket_up(c, s);
    net_batch_end();
    return G_SOURCE_REMOVE;
}

/* Port 0: the kernel has chosen one; query-chardev shows it. */
static void learn_port(Chardev *c)
{
    socklen_t len = sizeof(c->addr);
    char port[8];

    if (getsockname(c->listen_fd, (struct sockaddr *)&c->addr, &len) == 0 &&
        getnameinfo((struct sockaddr *)&c->addr, len, NULL, 0, port, sizeof(port),
                    NI_NUMERICSERV) == 0) {
        g_free(c->port);
        c->port = g_strdup(port);
    }
}

static bool server_open(Chardev *c, GError **errp)
{
    g_autofree char *where = chardev_address(c, false);
    int one = 1;

    c->listen_fd = socket(c->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->listen_fd < 0) {
        colo_error_set_errno(errp, errno, "chardev '%s': cannot make a socket", c->id);
        return false;
    }
    if (c->unix_path) {
        if (!c->abstract) {
            unlink(c->path);
        }
    } else {
        setsockopt(c->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    }
    if (bind(c->listen_fd, (struct sockaddr *)&c->addr, c->addr_len) < 0 ||
        listen(c->listen_fd, 1) < 0) {
        colo_error_set_errno(errp, errno, "Failed to add chardev '%s': Failed to bind socket "
                             "to %s",
                             c->id, where);
        close(c->listen_fd);
        c->listen_fd = -1;
        return false;
    }
    if (!c->unix_path && g_str_equal(c->port, "0")) {
        learn_port(c);
    }
    if (!try_join(c)) {
        listen_on(c);
    }
    return true;
}

/* --- Client --- */

static gboolean client_timer(gpointer opaque)
{
    Chardev *c = opaque;

    io_source_destroy(&c->timer);
    if (!c->connected && !c->connecting) {
        client_try(c);
    }
    return G_SOURCE_REMOVE;
}

static void client_retry_later(Chardev *c)
{
    if (c->reconnect_ms && !c->timer) {
        c->timer = io_thread_timer(net_thread(), c->reconnect_ms, client_timer, c);
    }
}

static int socket_error(int fd)
{
    int err = 0;
    socklen_t len = sizeof(err);

    getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len);
    return err;
}

static gboolean client_connected(int fd, GIOCondition cond, gpointer opaque)
{
    Chardev *c = opaque;
    int err = socket_error(fd);

    io_source_destroy(&c->out);
    if (err) {
        chardev_socket_lost(c, g_strerror(err));
        return G_SOURCE_REMOVE;
    }
    net_batch_begin();
    socket_up(c, fd);
    net_batch_end();
    return G_SOURCE_REMOVE;
}

/* A socket that is connecting, or -1 with errno. */
static int start_connect(Chardev *c)
{
    int fd = socket(c->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0) {
        return -1;
    }
    if (connect(fd, (struct sockaddr *)&c->addr, c->addr_len) < 0 &&
        errno != EINPROGRESS) {
        int err = errno;
        close(fd);
        errno = err;
        return -1;
    }
    return fd;
}

static void client_try(Chardev *c)
{
    if (try_join(c)) {
        return;
    }
    int fd = start_connect(c);
    if (fd < 0) {
        client_retry_later(c);
        return;
    }
    c->fd = fd;
    c->connecting = true;
    c->out = io_thread_watch_fd(net_thread(), fd, G_IO_OUT | G_IO_ERR | G_IO_HUP,
                                client_connected, c);
}

/* Without reconnect: connect now. The net lock is let go of while waiting: nobody else
 * knows @c yet. */
static bool client_open_once(Chardev *c, GError **errp)
{
    if (try_join(c)) {
        return true;
    }
    int fd = start_connect(c);
    int err = fd < 0 ? errno : 0;
    if (fd >= 0) {
        struct pollfd p = {.fd = fd, .events = POLLOUT};
        net_unlock();
        int r = poll(&p, 1, CONNECT_WAIT_MS);
        net_lock();
        err = r == 0 ? ETIMEDOUT : r < 0 ? errno : socket_error(fd);
    }
    if (err) {
        if (fd >= 0) {
            close(fd);
        }
        g_autofree char *where = chardev_address(c, false);
        colo_error_set_errno(errp, err,
                             "Failed to add chardev '%s': Failed to connect to '%s' (with "
                             "reconnect=1 it would be tried again)",
                             c->id, where);
        return false;
    }
    socket_up(c, fd);
    return true;
}

/* --- Addresses --- */

static bool resolve(Chardev *c, GError **errp)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_family = AF_UNSPEC};
    struct addrinfo *res = NULL;

    if (c->unix_path) {
        struct sockaddr_un *un = (struct sockaddr_un *)&c->addr;
        size_t len = strlen(c->path), off = c->abstract ? 1 : 0;
        if (len + off + 1 > sizeof(un->sun_path)) {
            colo_error_set(errp, "chardev '%s': path '%s' is longer than %zu bytes", c->id,
                           c->path, sizeof(un->sun_path) - off - 1);
            return false;
        }
        un->sun_family = AF_UNIX;
        memcpy(un->sun_path + off, c->path, len);
        c->addr_len = c->abstract && c->tight
                          ? offsetof(struct sockaddr_un, sun_path) + off + len
                          : sizeof(*un);
        return true;
    }
    if (c->server) {
        hints.ai_flags = AI_PASSIVE;
    }
    if (c->server && g_str_equal(c->host, "")) {
        hints.ai_family = AF_INET;
    }
    int r = getaddrinfo(*c->host ? c->host : NULL, c->port, &hints, &res);
    if (r != 0) {
        colo_error_set(errp, "chardev '%s': address %s:%s: %s", c->id, c->host, c->port,
                       gai_strerror(r));
        return false;
    }
    memcpy(&c->addr, res->ai_addr, res->ai_addrlen);
    c->addr_len = res->ai_addrlen;
    freeaddrinfo(res);
    return true;
}

bool chardev_socket_open(Chardev *c, GError **errp)
{
    if (!resolve(c, errp)) {
        return false;
    }
    if (c->server) {
        return server_open(c, errp);
    }
    if (c->reconnect_ms) {
        client_try(c);
        return true;
    }
    return client_open_once(c, errp);
}

void chardev_socket_close(Chardev *c)
{
    Chardev *peer = c->joined;

    io_source_destroy(&c->timer);
    io_source_destroy(&c->listen_src);
    set_down(c);
    if (c->listen_fd >= 0) {
        /* The net thread may be polling it, which keeps it alive after close(). */
        shutdown(c->listen_fd, SHUT_RDWR);
        close(c->listen_fd);
        c->listen_fd = -1;
        if (c->unix_path && !c->abstract) {
            unlink(c->path);
        }
    }
    if (peer) {
        set_down(peer);
        after_down(peer);
    }
}
