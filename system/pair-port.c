/*
 * The pair port: who I am, in one line, to whoever asks.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A thread of its own answers, so that a side whose main loop waits for something is not
 * taken for dead. Nothing is read from a client, and a client that does not read is cut off:
 * the line fits into any socket's buffer. What is said here decides about starts and tries
 * only, never about who may speak.
 */
#include "system/pair-port.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

#define LINE_MAX_BYTES 32768
#define LINGER_MS 200

struct PairPort {
    int fd, end_fd;
    GThread *thread;
    char *(*line)(void *opaque);
    void *opaque;
};

static struct addrinfo *resolve(const char *host, unsigned port, int flags, GError **errp)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
    struct addrinfo *res = NULL;
    char service[8];

    snprintf(service, sizeof(service), "%u", port);
    int r = getaddrinfo(host, service, &hints, &res);
    if (r != 0) {
        colo_error_set(errp, "'%s': %s", host, gai_strerror(r));
        return NULL;
    }
    return res;
}

/* --- Serving --- */

static void answer(PairPort *p, int fd)
{
    g_autofree char *text = p->line(p->opaque);
    char drop[64];

    if (send(fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT) > 0) {
        /* What the client may have sent is read, so that the close is no reset that would
         * overtake the line. */
        shutdown(fd, SHUT_WR);
        struct pollfd pfd = {fd, POLLIN, 0};
        if (poll(&pfd, 1, LINGER_MS) > 0) {
            ssize_t n = recv(fd, drop, sizeof(drop), MSG_DONTWAIT);
            (void)n;
        }
    }
    close(fd);
}

static gpointer port_thread(gpointer opaque)
{
    PairPort *p = opaque;

    for (;;) {
        struct pollfd pfd[2] = {{p->fd, POLLIN, 0}, {p->end_fd, POLLIN, 0}};
        if (poll(pfd, 2, -1) < 0 && errno != EINTR) {
            return NULL;
        }
        if (pfd[1].revents) {
            return NULL;
        }
        int fd = pfd[0].revents ? accept4(p->fd, NULL, NULL, SOCK_CLOEXEC) : -1;
        if (fd >= 0) {
            answer(p, fd);
        }
    }
}

PairPort *pair_port_new(const char *host, unsigned port, char *(*line)(void *opaque),
                        void *opaque, GError **errp)
{
    struct addrinfo *res = resolve(host, port, AI_PASSIVE, errp);
    int one = 1;

    if (!res) {
        g_prefix_error(errp, "-colo listen=: ");
        return NULL;
    }
    int fd = socket(res->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    int err = bind(fd, res->ai_addr, res->ai_addrlen) || listen(fd, 8) ? errno : 0;
    freeaddrinfo(res);
    if (err) {
        colo_error_set_errno(errp, err, "the pair port %s:%u (-colo listen=, pair-port=)", host,
                             port);
        close(fd);
        return NULL;
    }
    PairPort *p = g_new0(PairPort, 1);
    p->fd = fd;
    p->end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    p->line = line;
    p->opaque = opaque;
    p->thread = g_thread_new("colo-pair-port", port_thread, p);
    return p;
}

void pair_port_free(PairPort *p)
{
    uint64_t one = 1;

    if (!p) {
        return;
    }
    ssize_t n = write(p->end_fd, &one, sizeof(one));
    (void)n;
    g_thread_join(p->thread);
    close(p->fd);
    close(p->end_fd);
    g_free(p);
}

/* --- Asking --- */

static int connect_bounded(const struct addrinfo *a, int timeout_ms, int *err)
{
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t len = sizeof(*err);

    *err = fd < 0 ? errno : 0;
    if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) < 0) {
        struct pollfd pfd = {fd, POLLOUT, 0};
        *err = errno;
        if (*err == EINPROGRESS) {
            int r = poll(&pfd, 1, timeout_ms);
            *err = ETIMEDOUT;
            if (r > 0) {
                getsockopt(fd, SOL_SOCKET, SO_ERROR, err, &len);
            }
        }
    }
    if (*err && fd >= 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

int pair_connect(const char *host, unsigned port, unsigned timeout_ms, GError **errp)
{
    struct addrinfo *res = resolve(host, port, 0, errp);
    int fd = -1, err = 0;

    if (!res) {
        return -1;
    }
    for (struct addrinfo *a = res; a && fd < 0; a = a->ai_next) {
        fd = connect_bounded(a, timeout_ms, &err);
    }
    freeaddrinfo(res);
    if (fd < 0) {
        colo_error_set_errno(errp, err, "%s:%u", host, port);
    }
    return fd;
}

static bool read_all(int fd, GString *text, int64_t deadline, GError **errp)
{
    for (;;) {
        char part[1024];
        int64_t left = (deadline - g_get_monotonic_time() + 999) / 1000;
        struct pollfd pfd = {fd, POLLIN, 0};

        if (left <= 0 || poll(&pfd, 1, left) == 0) {
            colo_error_set(errp, "it does not answer");
            return false;
        }
        ssize_t n = recv(fd, part, sizeof(part), MSG_DONTWAIT);
        if (n == 0) {
            return true;
        } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
            colo_error_set_errno(errp, errno, "connection");
            return false;
        } else if (n > 0) {
            g_string_append_len(text, part, n);
        }
        if (text->len > LINE_MAX_BYTES) {
            colo_error_set(errp, "it answers with more than %d bytes", LINE_MAX_BYTES);
            return false;
        }
    }
}

static void take_disks(JsonObject *o, PairPeer *out)
{
    JsonNode *list = json_object_get_member(o, "disks");
    JsonArray *a = list && JSON_NODE_HOLDS_ARRAY(list) ? json_node_get_array(list) : NULL;

    for (guint i = 0; a && i < json_array_get_length(a) && out->n_disks < PAIR_DISKS_MAX; i++) {
        JsonNode *n = json_array_get_element(a, i);
        PairPeerDisk *d = &out->disks[out->n_disks];

        if (JSON_NODE_HOLDS_OBJECT(n)) {
            JsonObject *disk = json_node_get_object(n);
            g_strlcpy(d->top, options_get_str(disk, "top", ""), sizeof(d->top));
            g_strlcpy(d->export, options_get_str(disk, "export", ""), sizeof(d->export));
            options_get_bool(disk, "shared", &d->shared, NULL);
            out->n_disks++;
        }
    }
}

bool pair_peer_parse(const char *text, PairPeer *out, GError **errp)
{
    g_autoptr(JsonParser) parser = json_parser_new();

    memset(out, 0, sizeof(*out));
    JsonNode *root = json_parser_load_from_data(parser, text, -1, NULL)
                         ? json_parser_get_root(parser) : NULL;
    JsonObject *o = root && JSON_NODE_HOLDS_OBJECT(root) ? json_node_get_object(root) : NULL;
    const char *program = o ? options_get_str(o, "program", "") : "";
    /* coloctl answers in state "undecided" while it has not started anything there. */
    if (strcmp(program, "qemu-colo") != 0 && strcmp(program, "coloctl") != 0) {
        colo_error_set(errp, "what answers there is no qemu-colo");
        return false;
    }
    g_strlcpy(out->name, options_get_str(o, "name", ""), sizeof(out->name));
    g_strlcpy(out->state, options_get_str(o, "state", ""), sizeof(out->state));
    g_strlcpy(out->role, options_get_str(o, "role", ""), sizeof(out->role));
    take_disks(o, out);
    return options_get_bool(o, "serves", &out->serves, errp) &&
           options_get_bool(o, "wants-peer", &out->wants_peer, errp) &&
           options_get_uint(o, "epoch", &out->epoch, 0, G_MAXINT64, errp) &&
           options_get_uint(o, "instance", &out->instance, 0, G_MAXINT64, errp);
}

bool pair_port_ask(const char *host, unsigned port, unsigned timeout_ms, PairPeer *out,
                   bool *absent, GError **errp)
{
    int64_t deadline = g_get_monotonic_time() + timeout_ms * 1000LL;
    int fd = pair_connect(host, port, timeout_ms, errp);
    g_autoptr(GString) text = g_string_new(NULL);

    *absent = fd < 0;
    if (fd < 0) {
        return false;
    }
    bool ok = read_all(fd, text, deadline, errp) && pair_peer_parse(text->str, out, errp);
    close(fd);
    if (!ok) {
        g_prefix_error(errp, "%s:%u: ", host, port);
    }
    return ok;
}
