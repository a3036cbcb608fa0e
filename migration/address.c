/*
 * Migration URIs: connect to and listen on "tcp:host:port" and "unix:path".
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "migration/channel.h"
#include "util/error.h"

static bool split_host_port(const char *uri, char **host, char **port, GError **errp)
{
    const char *p = uri + strlen("tcp:");
    const char *colon = strrchr(p, ':');

    if (!colon || !colon[1]) {
        colo_error_set(errp, "'%s': expected tcp:host:port", uri);
        return false;
    }
    if (*p == '[' && colon > p && colon[-1] == ']') {
        *host = g_strndup(p + 1, colon - p - 2);
    } else {
        *host = g_strndup(p, colon - p);
    }
    /* QEMU lets options follow the port ("tcp:h:p,ipv4=on"); we take none. */
    *port = g_strdup(colon + 1);
    return true;
}

static bool unix_address(const char *uri, struct sockaddr_un *sun, GError **errp)
{
    const char *path = uri + strlen("unix:");

    memset(sun, 0, sizeof(*sun));
    sun->sun_family = AF_UNIX;
    if (!*path || strlen(path) >= sizeof(sun->sun_path)) {
        colo_error_set(errp, "'%s': expected unix:path, at most %zu bytes of path", uri,
                       sizeof(sun->sun_path) - 1);
        return false;
    }
    strcpy(sun->sun_path, path);
    return true;
}

static struct addrinfo *resolve(const char *uri, int flags, GError **errp)
{
    g_autofree char *host = NULL;
    g_autofree char *port = NULL;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
    struct addrinfo *res = NULL;

    if (!split_host_port(uri, &host, &port, errp)) {
        return NULL;
    }
    int r = getaddrinfo(*host ? host : NULL, port, &hints, &res);
    if (r != 0) {
        colo_error_set(errp, "'%s': %s", uri, gai_strerror(r));
        return NULL;
    }
    return res;
}

/* connect(2) with a bound; returns 0 or an errno value. */
static int connect_bounded(int fd, const struct sockaddr *sa, socklen_t len, int timeout_ms)
{
    if (connect(fd, sa, len) == 0) {
        return 0;
    }
    if (errno != EINPROGRESS) {
        return errno;
    }
    struct pollfd pfd = {fd, POLLOUT, 0};
    int err = 0, r;
    socklen_t elen = sizeof(err);
    do {
        r = poll(&pfd, 1, timeout_ms);
    } while (r < 0 && errno == EINTR);
    if (r == 0) {
        return ETIMEDOUT;
    }
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &elen);
    return err;
}

int channel_connect(const char *uri, unsigned timeout_ms, GError **errp)
{
    int fd = -1, err = 0;

    if (g_str_has_prefix(uri, "unix:")) {
        struct sockaddr_un sun;
        if (!unix_address(uri, &sun, errp)) {
            return -1;
        }
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        err = connect_bounded(fd, (struct sockaddr *)&sun, sizeof(sun), timeout_ms);
    } else if (g_str_has_prefix(uri, "tcp:")) {
        struct addrinfo *res = resolve(uri, 0, errp);
        if (!res) {
            return -1;
        }
        for (struct addrinfo *a = res; a; a = a->ai_next) {
            fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
            err = fd < 0 ? errno
                         : connect_bounded(fd, a->ai_addr, a->ai_addrlen, timeout_ms);
            if (err == 0) {
                break;
            }
            if (fd >= 0) {
                close(fd);
                fd = -1;
            }
        }
        freeaddrinfo(res);
    } else {
        colo_error_set(errp, "'%s': x-colo migrates over tcp:host:port or unix:path", uri);
        return -1;
    }
    if (err) {
        colo_error_set_errno(errp, err, "Failed to connect to '%s'", uri);
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    return fd;
}

int channel_listen(const char *uri, GError **errp)
{
    int fd = -1, err = 0, one = 1;

    if (g_str_has_prefix(uri, "unix:")) {
        struct sockaddr_un sun;
        if (!unix_address(uri, &sun, errp)) {
            return -1;
        }
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        unlink(sun.sun_path);
        err = bind(fd, (struct sockaddr *)&sun, sizeof(sun)) < 0 ? errno : 0;
    } else if (g_str_has_prefix(uri, "tcp:")) {
        struct addrinfo *res = resolve(uri, AI_PASSIVE, errp);
        if (!res) {
            return -1;
        }
        fd = socket(res->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        err = bind(fd, res->ai_addr, res->ai_addrlen) < 0 ? errno : 0;
        freeaddrinfo(res);
    } else {
        colo_error_set(errp, "-incoming '%s': expected tcp:host:port, unix:path or defer",
                       uri);
        return -1;
    }
    if (!err && listen(fd, 32) < 0) {
        err = errno;
    }
    if (err) {
        colo_error_set_errno(errp, err, "Failed to listen on '%s'", uri);
        close(fd);
        return -1;
    }
    return fd;
}
