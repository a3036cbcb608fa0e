/*
 * TLS on socket chardevs: the handshake, and what replaces send() and recv() after it.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A connection counts as one when the handshake is done: before, users see nothing of it,
 * and wait=on goes on waiting. A peer that does not get done in HANDSHAKE_MS is dropped, so
 * that it cannot keep a server's only place. Bytes that GnuTLS has read and we have not are
 * no reason for poll() to return: they are fetched before anybody waits.
 */
#include "chardev/chardev-int.h"

#include <errno.h>

#define HANDSHAKE_MS 10000
/* QEMU (seen in 7.2) reads a chardev by 4096 bytes, and of a longer record leaves the rest
 * lying until more comes from the network. */
#define RECORD_MAX 4096

static void handshake(Chardev *c);

static void failed(Chardev *c, const char *why)
{
    c->malformed++;
    colo_report_limited(&c->limit, "chardev '%s': TLS: %s; connection closed", c->id, why);
    chardev_socket_lost(c, "TLS handshake failed");
}

static gboolean handshake_ready(int fd, GIOCondition cond, gpointer opaque)
{
    Chardev *c = opaque;

    io_source_destroy(&c->tls_src);
    net_batch_begin();
    handshake(c);
    net_batch_end();
    return G_SOURCE_REMOVE;
}

static gboolean handshake_late(gpointer opaque)
{
    failed(opaque, "no handshake in time");
    return G_SOURCE_REMOVE;
}

static void handshake(Chardev *c)
{
    g_autoptr(GError) err = NULL;
    int r = tls_session_handshake(c->tls, &err);

    if (r < 0) {
        failed(c, err->message);
    } else if (r == 0) {
        c->tls_src = io_thread_watch_fd(net_thread(), c->fd, tls_session_wants(c->tls),
                                        handshake_ready, c);
    } else {
        g_autofree char *what = tls_session_describe(c->tls);
        colo_trace(chardev_tls, "%s %s", c->id, what);
        io_source_destroy(&c->tls_timer);
        chardev_socket_ready(c);
    }
}

void chardev_tls_begin(Chardev *c)
{
    g_autoptr(GError) err = NULL;

    c->tls = tls_session_new(c->creds, c->fd, c->server ? NULL : c->host, &err);
    if (!c->tls) {
        failed(c, err->message);
        return;
    }
    c->tls_timer = io_thread_timer(net_thread(), HANDSHAKE_MS, handshake_late, c);
    handshake(c);
}

void chardev_tls_end(Chardev *c)
{
    io_source_destroy(&c->tls_src);
    io_source_destroy(&c->tls_timer);
    g_clear_pointer(&c->tls, tls_session_free);
}

static gboolean read_again(gpointer opaque)
{
    Chardev *c = opaque;

    io_source_destroy(&c->tls_timer);
    chardev_socket_read(c);
    return G_SOURCE_REMOVE;
}

void chardev_tls_read_pending(Chardev *c)
{
    if (c->tls && c->connected && c->h && !c->paused && !c->tls_timer &&
        tls_session_pending(c->tls) > 0) {
        c->tls_timer = io_thread_timer(net_thread(), 0, read_again, c);
    }
}

ssize_t chardev_send_some(Chardev *c, const uint8_t *data, size_t len)
{
    return c->tls ? tls_session_send(c->tls, data, MIN(len, (size_t)RECORD_MAX))
                  : send(c->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
}

GIOCondition chardev_send_wants(Chardev *c)
{
    return c->tls ? tls_session_wants(c->tls) : G_IO_OUT;
}

ssize_t chardev_recv_some(Chardev *c, uint8_t *data, size_t len)
{
    return c->tls ? tls_session_recv(c->tls, data, len)
                  : recv(c->fd, data, len, MSG_DONTWAIT);
}
