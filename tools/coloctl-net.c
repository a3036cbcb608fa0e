/*
 * coloctl: TCP with a deadline, and UDP without promises.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "coloctl-net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "util/deadline.h"
#include "util/error.h"

static socklen_t fill(NetAddress *a, const char *text, unsigned port)
{
    memset(a, 0, sizeof(*a));
    if (inet_pton(AF_INET, text, &a->in4.sin_addr) == 1) {
        a->in4.sin_family = AF_INET;
        a->in4.sin_port = htons(port);
        return sizeof(a->in4);
    }
    a->in6.sin6_family = AF_INET6;
    a->in6.sin6_port = htons(port);
    inet_pton(AF_INET6, text, &a->in6.sin6_addr);
    return sizeof(a->in6);
}

bool net_wait(int fd, short events, gint64 end)
{
    struct pollfd p = {.fd = fd, .events = events};

    for (;;) {
        int left = deadline_left_ms(end);
        int n = poll(&p, 1, left);
        if (n > 0 || (n == 0 && left == 0)) {
            return n > 0;
        }
        if (n < 0 && errno != EINTR) {
            return false;
        }
    }
}

int net_dial(const char *address, unsigned port, gint64 end, GError **errp)
{
    NetAddress a;
    socklen_t len = fill(&a, address, port), elen = sizeof(int);
    int e = 0, one = 1;
    int fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd >= 0 && connect(fd, &a.any, len) < 0) {
        e = errno;
        if (e == EINPROGRESS) {
            e = ETIMEDOUT;
            if (net_wait(fd, POLLOUT, end)) {
                getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &elen);
            }
        }
    }
    if (fd < 0 || e) {
        colo_error_set_errno(errp, fd < 0 ? errno : e, "%s port %u", address, port);
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

int net_listen(const char *address, unsigned port, GError **errp)
{
    NetAddress a;
    socklen_t len = fill(&a, address, port);
    int one = 1;
    int fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    }
    if (fd < 0 || bind(fd, &a.any, len) < 0 || listen(fd, 8) < 0) {
        colo_error_set_errno(errp, errno, "%s port %u", address, port);
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    return fd;
}

int net_bind_udp(const char *address, unsigned port, GError **errp)
{
    NetAddress a;
    socklen_t len = fill(&a, address, port);
    int fd = socket(a.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0 || bind(fd, &a.any, len) < 0) {
        colo_error_set_errno(errp, errno, "%s port %u (UDP)", address, port);
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    return fd;
}

bool net_send_to(int fd, const char *address, unsigned port, const void *data, size_t len)
{
    NetAddress a;
    socklen_t size = fill(&a, address, port);

    return sendto(fd, data, len, MSG_DONTWAIT, &a.any, size) == (ssize_t)len;
}

bool net_is(const NetAddress *a, const char *address)
{
    NetAddress b;

    fill(&b, address, 0);
    if (a->any.sa_family != b.any.sa_family) {
        return false;
    }
    return a->any.sa_family == AF_INET
               ? a->in4.sin_addr.s_addr == b.in4.sin_addr.s_addr
               : memcmp(&a->in6.sin6_addr, &b.in6.sin6_addr, sizeof(b.in6.sin6_addr)) == 0;
}

bool net_read_line(int fd, GString *text, size_t max, gint64 end, GError **errp)
{
    for (;;) {
        char c[512];
        if (!net_wait(fd, POLLIN, end)) {
            colo_error_set(errp, "no answer in time");
            return false;
        }
        /* What follows the line stays in the socket. */
        ssize_t n = recv(fd, c, sizeof(c), MSG_PEEK | MSG_DONTWAIT);
        if (n == 0 && text->len == 0) {
            colo_error_set(errp, "connection closed without an answer");
            return false;
        } else if (n == 0) {
            return true;
        } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
            colo_error_set_errno(errp, errno, "connection");
            return false;
        } else if (n < 0) {
            continue;
        }
        char *nl = memchr(c, '\n', n);
        n = recv(fd, c, nl ? nl - c + 1 : n, MSG_DONTWAIT);
        g_string_append_len(text, c, n > 0 ? n - (nl != NULL) : 0);
        if (nl) {
            return true;
        } else if (text->len > max) {
            colo_error_set(errp, "an answer of more than %zu bytes", max);
            return false;
        }
    }
}

bool net_write(int fd, const void *data, size_t len, gint64 end, GError **errp)
{
    const char *p = data;

    while (len > 0) {
        ssize_t n = send(fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            p += n;
            len -= n;
        } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
            colo_error_set_errno(errp, errno, "connection");
            return false;
        } else if (!net_wait(fd, POLLOUT, end)) {
            colo_error_set(errp, "the other side takes nothing");
            return false;
        }
    }
    return true;
}
