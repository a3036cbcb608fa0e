/*
 * GET /metrics over HTTP, for Prometheus.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * libmicrohttpd speaks HTTP; its epoll descriptor is a source of the main loop, so that an
 * answer is made where all state may be looked at, and no thread is added.
 */
#include "system/metrics.h"

#include <arpa/inet.h>
#include <errno.h>
#include <glib-unix.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "qapi-commands.h"
#include "util/error.h"
#include "util/options.h"

#define CONNECTIONS_MAX 16
#define IDLE_SECONDS 10

/* Main thread only. */
static struct {
    struct MHD_Daemon *daemon;
    guint watch, timer;
} server;

static enum MHD_Result answer(struct MHD_Connection *c, unsigned status, const char *type,
                              const char *text)
{
    struct MHD_Response *r = MHD_create_response_from_buffer(strlen(text), (void *)text,
                                                             MHD_RESPMEM_MUST_COPY);
    if (!r) {
        return MHD_NO;
    }
    MHD_add_response_header(r, "Content-Type", type);
    enum MHD_Result queued = MHD_queue_response(c, status, r);
    MHD_destroy_response(r);
    return queued;
}

static enum MHD_Result on_request(void *opaque, struct MHD_Connection *c, const char *url,
                                  const char *method, const char *version,
                                  const char *upload_data, size_t *upload_size,
                                  void **state)
{
    if (!*state) {
        *state = &server; /* the body comes first, and is not looked at */
        return MHD_YES;
    }
    if (*upload_size > 0) {
        *upload_size = 0;
        return MHD_YES;
    }
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 &&
        strcmp(method, MHD_HTTP_METHOD_HEAD) != 0) {
        return answer(c, MHD_HTTP_METHOD_NOT_ALLOWED, "text/plain", "GET /metrics\n");
    }
    if (strcmp(url, "/metrics") != 0) {
        return answer(c, MHD_HTTP_NOT_FOUND, "text/plain", "GET /metrics\n");
    }
    g_autoptr(GError) err = NULL;
    g_autoptr(JsonNode) status = NULL;
    g_autoptr(GString) text = g_string_new(NULL);

    if (qmp_query_colo_status(NULL, NULL, &status, &err) != QMP_DONE) {
        return answer(c, MHD_HTTP_INTERNAL_SERVER_ERROR, "text/plain", "no status\n");
    }
    metrics_text(json_node_get_object(status), text);
    return answer(c, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", text->str);
}

static gboolean on_ready(gint fd, GIOCondition cond, gpointer opaque)
{
    MHD_run(server.daemon);
    return G_SOURCE_CONTINUE;
}

/* Connections that idle are closed, also when no descriptor is ready. */
static gboolean on_timer(gpointer opaque)
{
    MHD_run(server.daemon);
    return G_SOURCE_CONTINUE;
}

static bool parse(const char *address, struct sockaddr_storage *out, GError **errp)
{
    g_autoptr(GSocketAddress) sa = NULL;
    g_autoptr(GSocketConnectable) where = g_network_address_parse(address, 0, NULL);
    const char *host =
        where ? g_network_address_get_hostname(G_NETWORK_ADDRESS(where)) : NULL;
    guint16 port = where ? g_network_address_get_port(G_NETWORK_ADDRESS(where)) : 0;
    g_autoptr(GInetAddress) ip = host ? g_inet_address_new_from_string(host) : NULL;

    if (!ip || !port) {
        colo_error_set(errp, "metrics='%s': expected 127.0.0.1:PORT or [::1]:PORT",
                       address);
        return false;
    }
    if (!g_inet_address_get_is_loopback(ip)) {
        colo_error_set(errp,
                       "metrics='%s': only an address of the loopback: anybody who can "
                       "connect may read (use a reverse proxy to let others)",
                       address);
        return false;
    }
    sa = g_inet_socket_address_new(ip, port);
    return g_socket_address_to_native(sa, out, sizeof(*out), errp);
}

/* Our own: libmicrohttpd's lets two processes have one port, and the figures would be now of
 * the one and now of the other guest. */
static int listen_at(const struct sockaddr_storage *sa)
{
    int fd = socket(sa->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t len = sa->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                              : sizeof(struct sockaddr_in);
    int on = 1;

    if (fd >= 0 && (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
                    bind(fd, (const struct sockaddr *)sa, len) != 0 ||
                    listen(fd, CONNECTIONS_MAX) != 0)) {
        int e = errno;
        close(fd);
        errno = e;
        fd = -1;
    }
    return fd;
}

bool metrics_start(const char *address, GError **errp)
{
    struct sockaddr_storage sa = {0};

    if (!parse(address, &sa, errp)) {
        return false;
    }
    int listener = listen_at(&sa);
    if (listener < 0) {
        colo_error_set_errno(errp, errno, "metrics='%s': cannot listen", address);
        return false;
    }
    server.daemon = MHD_start_daemon(
        MHD_USE_EPOLL | (sa.ss_family == AF_INET6 ? MHD_USE_IPv6 : 0), 0, NULL, NULL,
        on_request, NULL, MHD_OPTION_LISTEN_SOCKET, listener,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_SECONDS, MHD_OPTION_END);
    if (!server.daemon) {
        colo_error_set(errp, "metrics='%s': the HTTP server cannot be started", address);
        return false;
    }
    int fd = MHD_get_daemon_info(server.daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    server.watch = g_unix_fd_add(fd, G_IO_IN, on_ready, NULL);
    server.timer = g_timeout_add_seconds(IDLE_SECONDS / 2, on_timer, NULL);
    return true;
}

void metrics_stop(void)
{
    if (server.daemon) {
        g_clear_handle_id(&server.watch, g_source_remove);
        g_clear_handle_id(&server.timer, g_source_remove);
        MHD_stop_daemon(server.daemon);
        server.daemon = NULL;
    }
}
