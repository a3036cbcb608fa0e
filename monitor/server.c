/*
 * Where QMP clients come from: standard input, listening sockets, connections we make.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A server has one client at a time, as in QEMU: while it is there the socket is not
 * accepted from, and the next client waits in the backlog until the first has left.
 */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

struct QmpServer {
    char *spec;
    bool pretty, nodelay;
    int listen_fd;
    char *unlink_path;
    guint accept_tag;
    QmpClient *client;
};

/* Room singleton. */
static GList *servers;

static void watch_accept(QmpServer *s);
static JsonObject *parse_spec(const char *spec, GError **errp);

static void server_free(QmpServer *s)
{
    if (s->accept_tag) {
        g_source_remove(s->accept_tag);
    }
    if (s->listen_fd >= 0) {
        close(s->listen_fd);
    }
    if (s->unlink_path) {
        unlink(s->unlink_path);
    }
    g_free(s->unlink_path);
    g_free(s->spec);
    g_free(s);
}

void qmp_servers_shutdown(void)
{
    g_list_free_full(g_steal_pointer(&servers), (GDestroyNotify)server_free);
}

/* "unix:PATH,server=on" and the like, as QEMU writes it. */
static char *server_address(QmpServer *s, JsonObject *o)
{
    bool server = false;
    g_autofree char *where = NULL;

    options_get_bool(o, "server", &server, NULL);
    if (json_object_has_member(o, "path")) {
        where = g_strdup_printf("unix:%s", options_get_str(o, "path", ""));
    } else if (json_object_has_member(o, "port")) {
        where = g_strdup_printf("tcp:%s:%s", options_get_str(o, "host", ""),
                                options_get_str(o, "port", ""));
    } else {
        where = g_strdup(json_object_has_member(o, "fd") ? "unix:" : "stdio");
    }
    return g_strdup_printf("%s%s%s", s->client ? "" : "disconnected:", where,
                           server ? ",server=on" : "");
}

void qmp_servers_query(JsonArray *out)
{
    unsigned n = 0;

    for (GList *l = servers; l; l = l->next) {
        QmpServer *s = l->data;
        g_autoptr(JsonObject) o = parse_spec(s->spec, NULL);
        g_autofree char *compat = g_strdup_printf("compat_monitor%u", n);
        g_autofree char *address = server_address(s, o);
        const char *id = options_get_str(o, "id", NULL);
        JsonObject *c = json_object_new();

        n += id == NULL; /* of -qmp; -chardev has a name */
        json_object_set_boolean_member(c, "frontend-open", TRUE);
        json_object_set_string_member(c, "filename", address);
        json_object_set_string_member(c, "label", id ? id : compat);
        json_array_add_object_element(out, c);
    }
}

static void client_left(void *opaque)
{
    QmpServer *s = opaque;

    s->client = NULL;
    watch_accept(s);
}

static void serve(QmpServer *s, int in_fd, int out_fd)
{
    int one = 1;

    if (s->nodelay) {
        setsockopt(in_fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
    s->client = qmp_client_new(in_fd, out_fd, s->pretty, client_left, s);
}

static gboolean acceptable(gint fd, GIOCondition cond, gpointer opaque)
{
    QmpServer *s = opaque;
    int conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (conn < 0) {
        return G_SOURCE_CONTINUE;
    }
    s->accept_tag = 0;
    serve(s, conn, conn);
    return G_SOURCE_REMOVE;
}

static void watch_accept(QmpServer *s)
{
    if (s->listen_fd >= 0 && !s->accept_tag) {
        s->accept_tag = g_unix_fd_add(s->listen_fd, G_IO_IN, acceptable, s);
    }
}

/* --- Addresses --- */

static bool unix_address(JsonObject *o, struct sockaddr_un *sun, socklen_t *len,
                         GError **errp)
{
    const char *path = options_get_str(o, "path", NULL);
    bool abstract = false, tight = true;

    if (!options_get_bool(o, "abstract", &abstract, errp) ||
        !options_get_bool(o, "tight", &tight, errp)) {
        return false;
    }
    if (!*path || strlen(path) + abstract >= sizeof(sun->sun_path)) {
        colo_error_set(errp, "UNIX socket path '%s' is empty or longer than %zu bytes", path,
                       sizeof(sun->sun_path) - 1 - abstract);
        return false;
    }
    memset(sun, 0, sizeof(*sun));
    sun->sun_family = AF_UNIX;
    memcpy(sun->sun_path + abstract, path, strlen(path));
    *len = abstract && tight ? offsetof(struct sockaddr_un, sun_path) + 1 + strlen(path)
                             : sizeof(*sun);
    return true;
}

/* A stale socket is in the way of a new one; anything else at @path is not ours. */
static void remove_stale(const char *path)
{
    struct stat st;

    if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode)) {
        unlink(path);
    }
}

static int open_one(int family, const struct sockaddr *sa, socklen_t len, bool server)
{
    int one = 1;
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        return -1;
    }
    if (server && family != AF_UNIX) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    }
    if (family == AF_INET6) {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
    }
    if (server ? bind(fd, sa, len) || listen(fd, 1) : connect(fd, sa, len)) {
        int err = errno;
        close(fd);
        errno = err;
        return -1;
    }
    return fd;
}

static int open_unix(QmpServer *s, JsonObject *o, bool server, GError **errp)
{
    struct sockaddr_un sun;
    socklen_t len;

    if (!unix_address(o, &sun, &len, errp)) {
        return -1;
    }
    const char *path = options_get_str(o, "path", "");
    if (server && sun.sun_path[0]) {
        remove_stale(path);
    }
    int fd = open_one(AF_UNIX, (struct sockaddr *)&sun, len, server);
    if (fd < 0) {
        colo_error_set_errno(errp, errno, "Cannot %s UNIX socket '%s'",
                             server ? "listen on" : "connect to", path);
    } else if (server && sun.sun_path[0]) {
        s->unlink_path = g_strdup(path);
    }
    return fd;
}

static int address_family(JsonObject *o, GError **errp)
{
    bool v4 = false, v6 = false;

    if (!options_get_bool(o, "ipv4", &v4, errp) ||
        !options_get_bool(o, "ipv6", &v6, errp)) {
        return -1;
    }
    return v4 == v6 ? AF_UNSPEC : v4 ? AF_INET : AF_INET6;
}

static int open_tcp(QmpServer *s, JsonObject *o, bool server, GError **errp)
{
    const char *host = options_get_str(o, "host", "");
    const char *port = options_get_str(o, "port", NULL);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                             .ai_flags = server ? AI_PASSIVE : 0};
    struct addrinfo *list;
    int fd = -1;

    int family = address_family(o, errp);
    if (family < 0) {
        return -1;
    }
    hints.ai_family = family;
    if (!port) {
        colo_error_set(errp, "Parameter 'port' is missing");
        return -1;
    }
    int r = getaddrinfo(*host ? host : NULL, port, &hints, &list);
    if (r) {
        colo_error_set(errp, "Cannot resolve address '%s:%s': %s", host, port,
                       gai_strerror(r));
        return -1;
    }
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = open_one(a->ai_family, a->ai_addr, a->ai_addrlen, server);
    }
    int err = errno;
    freeaddrinfo(list);
    if (fd < 0) {
        colo_error_set_errno(errp, err, "Cannot %s '%s:%s'",
                             server ? "listen on" : "connect to", host, port);
    }
    s->nodelay = true;
    return fd;
}

static int open_given(JsonObject *o, bool server, GError **errp)
{
    uint64_t fd = 0;
    int listens = 0;
    socklen_t len = sizeof(listens);

    if (!options_get_uint(o, "fd", &fd, 0, G_MAXINT, errp)) {
        return -1;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len)) {
        colo_error_set_errno(errp, errno, "Descriptor %d is no socket", (int)fd);
        return -1;
    }
    if (!listens == server) {
        colo_error_set(errp, "Descriptor %d %s", (int)fd,
                       server ? "does not listen, as server=on wants"
                              : "listens: server=on is missing");
        return -1;
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

/* --- Specifications --- */

/* "[::1]:4444", "host:4444", ":4444" into host and port. */
static bool split_host_port(JsonObject *o, const char *text, GError **errp)
{
    const char *colon = strrchr(text, ':');

    if (!colon) {
        colo_error_set(errp, "Expected tcp:HOST:PORT, found 'tcp:%s'", text);
        return false;
    }
    g_autofree char *host = g_strndup(text, colon - text);
    size_t n = strlen(host);
    if (n >= 2 && host[0] == '[' && host[n - 1] == ']') {
        host[n - 1] = 0;
        json_object_set_string_member(o, "host", host + 1);
    } else {
        json_object_set_string_member(o, "host", host);
    }
    json_object_set_string_member(o, "port", colon + 1);
    return true;
}

static JsonObject *parse_spec(const char *spec, GError **errp)
{
    g_autoptr(JsonObject) o = NULL;
    bool is_tcp = g_str_has_prefix(spec, "tcp:");

    if (is_tcp || g_str_has_prefix(spec, "unix:")) {
        o = options_parse(strchr(spec, ':') + 1, is_tcp ? "addr" : "path", errp);
        if (!o) {
            return NULL;
        }
        json_object_set_string_member(o, "backend", "socket");
    } else {
        o = options_parse(spec, "backend", errp);
    }
    if (o && is_tcp && !split_host_port(o, options_get_str(o, "addr", ""), errp)) {
        return NULL;
    }
    return g_steal_pointer(&o);
}

static bool refuse_on(JsonObject *o, const char *key, GError **errp)
{
    bool on = false;

    if (!options_get_bool(o, key, &on, errp)) {
        return false;
    }
    if (on) {
        colo_error_set(errp, "Parameter '%s' is not supported for QMP", key);
    }
    return !on;
}

static bool read_flags(JsonObject *o, bool *server, bool *wait, GError **errp)
{
    static const char *const known[] = {
        "backend", "id",     "addr", "path",  "host", "port",     "fd",     "server",
        "wait",    "nowait", "ipv4", "ipv6",  "mux",  "abstract", "telnet", "tight",
        "nodelay", "websocket", NULL};
    bool nowait = false;

    if (!options_check_known(o, "QMP socket", known, errp) ||
        !refuse_on(o, "mux", errp) || !refuse_on(o, "telnet", errp) ||
        !refuse_on(o, "websocket", errp) || !options_get_bool(o, "server", server, errp)) {
        return false;
    }
    *wait = *server;
    if (!options_get_bool(o, "nowait", &nowait, errp)) {
        return false;
    }
    *wait = *wait && !nowait;
    if (!options_get_bool(o, "wait", wait, errp)) {
        return false;
    }
    if (*wait && !*server) {
        colo_error_set(errp, "Parameter 'wait' needs server=on");
        return false;
    }
    return true;
}

static int open_socket(QmpServer *s, JsonObject *o, bool server, GError **errp)
{
    bool path = json_object_has_member(o, "path"), host = json_object_has_member(o, "port"),
         fd = json_object_has_member(o, "fd");

    if (path + host + fd != 1) {
        colo_error_set(errp, "QMP socket '%s' needs one of path, host and port, fd", s->spec);
        return -1;
    }
    return path ? open_unix(s, o, server, errp)
                : host ? open_tcp(s, o, server, errp) : open_given(o, server, errp);
}

static bool start_socket(QmpServer *s, JsonObject *o, GError **errp)
{
    bool server = false, wait = false;

    if (!read_flags(o, &server, &wait, errp)) {
        return false;
    }
    int fd = open_socket(s, o, server, errp);
    if (fd < 0) {
        return false;
    }
    if (!server) {
        serve(s, fd, fd);
        return true;
    }
    s->listen_fd = fd;
    g_unix_set_fd_nonblocking(fd, TRUE, NULL);
    watch_accept(s);
    if (wait) {
        colo_report("waiting for connection on: %s", s->spec);
    }
    while (wait && !s->client && !child_is_gone()) {
        g_main_context_iteration(NULL, TRUE);
    }
    return true;
}

static bool start_stdio(QmpServer *s, JsonObject *o, GError **errp)
{
    static const char *const known[] = {"backend", "id", "mux", "signal", NULL};

    if (!options_check_known(o, "QMP on standard input", known, errp) ||
        !refuse_on(o, "mux", errp)) {
        return false;
    }
    for (GList *l = servers; l; l = l->next) {
        if (g_str_has_prefix(((QmpServer *)l->data)->spec, "stdio")) {
            colo_error_set(errp, "QMP can be on standard input only once");
            return false;
        }
    }
    int in_fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
    int out_fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    if (in_fd < 0 || out_fd < 0) {
        colo_error_set_errno(errp, errno, "Cannot use standard input and output for QMP");
        return false;
    }
    serve(s, in_fd, out_fd);
    return true;
}

static void session_left(void *opaque)
{
}

int monitor_open_session(GError **errp)
{
    int sv[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0) {
        colo_error_set_errno(errp, errno, "socketpair");
        return -1;
    }
    g_unix_set_fd_nonblocking(sv[0], TRUE, NULL);
    qmp_client_new(sv[0], sv[0], false, session_left, NULL);
    return sv[1];
}

bool monitor_add_qmp(const char *spec, bool pretty, GError **errp)
{
    g_autoptr(JsonObject) o = parse_spec(spec, errp);

    if (!o) {
        return false;
    }
    const char *backend = options_get_str(o, "backend", "");
    bool is_stdio = strcmp(backend, "stdio") == 0;
    if (!is_stdio && strcmp(backend, "socket") != 0) {
        colo_error_set(errp, "QMP on '%s' is not supported; use stdio, unix: or tcp:", spec);
        return false;
    }
    QmpServer *s = g_new0(QmpServer, 1);
    s->spec = g_strdup(spec);
    s->pretty = pretty;
    s->listen_fd = -1;
    if (!(is_stdio ? start_stdio(s, o, errp) : start_socket(s, o, errp))) {
        server_free(s);
        return false;
    }
    servers = g_list_append(servers, s);
    return true;
}
