/*
 * NBD server: one connection's input, requests and replies.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Input goes through a staging buffer; of a write's data only what is already staged is
 * copied, the rest is received into its own buffer. Requests run concurrently, their
 * answers go out as they come. A client that has too much in flight, does not read its
 * answers, or fills a log over its bound is simply not read from (nbd-request.c).
 */
#include "nbd-conn.h"

#include <sys/socket.h>
#include <unistd.h>

#define NEGOTIATION_MS 10000
#define OUT_IOVECS 64

typedef struct NbdOut {
    uint8_t *head; /* owned */
    size_t head_len;
    BlockBuf *buf;
    const uint8_t *data;
    size_t data_len;
    size_t sent;
} NbdOut;

static void conn_update(NbdConn *c);
static bool conn_write(NbdConn *c);

void nbd_conn_unref(NbdConn *c)
{
    if (--c->refs == 0) {
        g_free(c);
    }
}

static void out_free(NbdConn *c, NbdOut *o)
{
    if (o->buf) {
        nbd_conn_hold(c, -(int64_t)o->data_len);
    }
    g_free(o->head);
    block_buf_unref(o->buf);
    g_free(o);
}

void nbd_conn_close(NbdConn *c)
{
    NbdOut *o;

    if (c->closed) {
        return;
    }
    c->closed = true;
    block_fd_free(c->watch);
    c->watch = NULL;
    io_source_destroy(&c->patience);
    g_clear_pointer(&c->tls, tls_session_free);
    close(c->fd);
    while ((o = g_queue_pop_head(&c->out))) {
        out_free(c, o);
    }
    nbd_conn_payload_drop(c);
    if (c->export) {
        BlockNode *node = c->export->node;

        if (node->secondary) {
            block_secondary_conn_closed(node->secondary, c);
        }
        c->export = NULL;
        block_node_unuse(node);
    }
    nbd_listener_forget(c->listener, c);
    c->listener = NULL;
    nbd_conn_unref(c);
}

/* --- Output --- */

void nbd_conn_send(NbdConn *c, const void *head, size_t len, BlockBuf *buf,
                   const uint8_t *data, size_t data_len)
{
    NbdOut *o = g_new0(NbdOut, 1);

    o->head = g_memdup2(head, len);
    o->head_len = len;
    o->buf = buf ? block_buf_ref(buf) : NULL;
    o->data = data;
    o->data_len = data_len;
    if (buf) {
        nbd_conn_hold(c, data_len);
    }
    g_queue_push_tail(&c->out, o);
}

static int out_gather(NbdConn *c, struct iovec *iov)
{
    int n = 0;

    for (GList *l = c->out.head; l && n + 2 <= OUT_IOVECS; l = l->next) {
        NbdOut *o = l->data;
        size_t skip = o->sent;

        if (skip < o->head_len) {
            iov[n++] = (struct iovec){o->head + skip, o->head_len - skip};
            skip = 0;
        } else {
            skip -= o->head_len;
        }
        if (skip < o->data_len) {
            iov[n++] = (struct iovec){(uint8_t *)o->data + skip, o->data_len - skip};
        }
    }
    return n;
}

bool nbd_conn_start_tls(NbdConn *c)
{
    g_autoptr(GError) err = NULL;

    /* A client that has more to say has said it unencrypted. */
    if (c->stage_start != c->stage_end || !conn_write(c) || !g_queue_is_empty(&c->out)) {
        return false;
    }
    c->tls = tls_session_new(nbd_listener_tls(c->listener), c->fd, NULL, &err);
    if (!c->tls) {
        colo_report("NBD server: %s", err->message);
        return false;
    }
    c->phase = NBD_PHASE_TLS;
    return true;
}

/* False: the connection must end. */
static bool conn_tls_handshake(NbdConn *c)
{
    g_autoptr(GError) err = NULL;
    int r = tls_session_handshake(c->tls, &err);

    if (r < 0) {
        colo_report("NBD server: a client is refused: %s", err->message);
        return false;
    }
    if (r > 0) {
        g_autofree char *what = tls_session_describe(c->tls);

        colo_trace(block_nbd_tls, "%s", what);
        c->phase = NBD_PHASE_OPTION;
    }
    return true;
}

static ssize_t conn_sendv(NbdConn *c, struct iovec *iov, int n)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};

    return c->tls ? tls_session_sendv(c->tls, iov, n)
                  : sendmsg(c->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static ssize_t conn_recv(NbdConn *c, void *buf, size_t len)
{
    return c->tls ? tls_session_recv(c->tls, buf, len)
                  : recv(c->fd, buf, len, MSG_DONTWAIT);
}

/* Send what goes without blocking. False: the connection is broken. */
static bool conn_write(NbdConn *c)
{
    while (!g_queue_is_empty(&c->out)) {
        struct iovec iov[OUT_IOVECS];
        ssize_t n = conn_sendv(c, iov, out_gather(c, iov));

        if (n < 0) {
            return errno == EAGAIN || errno == EINTR;
        }
        while (n > 0) {
            NbdOut *o = g_queue_peek_head(&c->out);
            size_t left = o->head_len + o->data_len - o->sent;

            if ((size_t)n < left) {
                o->sent += n;
                break;
            }
            n -= left;
            out_free(c, g_queue_pop_head(&c->out));
        }
    }
    return !c->disconnecting || c->in_flight > 0;
}

void nbd_conn_flush(NbdConn *c)
{
    if (c->closed) {
        return;
    }
    if (!conn_write(c)) {
        nbd_conn_close(c);
    } else {
        conn_update(c);
    }
}

/* --- Input --- */

static void conn_update(NbdConn *c)
{
    GIOCondition cond = G_IO_HUP | G_IO_ERR;

    if (c->closed) {
        return;
    }
    if (c->phase == NBD_PHASE_TLS) {
        block_fd_set(c->watch, cond | tls_session_wants(c->tls));
        return;
    }
    if (!c->disconnecting && !c->blocked) {
        cond |= G_IO_IN;
    }
    if (!g_queue_is_empty(&c->out)) {
        cond |= G_IO_OUT;
    }
    block_fd_set(c->watch, cond);
}

/* Look at what is staged, as far as it goes. False: the connection must end. */
static bool conn_parse(NbdConn *c)
{
    c->blocked = false;
    while (!c->closed && !c->disconnecting) {
        uint8_t *p = c->stage + c->stage_start;
        size_t have = c->stage_end - c->stage_start, used = 0;

        switch (c->phase) {
        case NBD_PHASE_FLAGS:
            if (have < 4) {
                return true;
            }
            if (!nbd_handshake_flags(c, get32(p))) {
                return false;
            }
            used = 4;
            c->phase = NBD_PHASE_OPTION;
            break;
        case NBD_PHASE_OPTION:
            if (have < 16) {
                return true;
            }
            if (c->out.length > NBD_CONN_REQUESTS) {
                c->blocked = true; /* asks, but does not listen */
                return true;
            }
            c->opt = get32(p + 8);
            c->opt_len = get32(p + 12);
            if (get64(p) != NBD_OPTS_MAGIC || c->opt_len > NBD_OPTION_MAX) {
                return false;
            }
            used = 16;
            c->phase = NBD_PHASE_OPTION_DATA;
            break;
        case NBD_PHASE_OPTION_DATA:
            if (have < c->opt_len) {
                return true;
            }
            used = c->opt_len;
            c->stage_start += used;
            if (!nbd_handshake_option(c, p)) {
                return false;
            }
            continue;
        case NBD_PHASE_TLS:
            return true;
        case NBD_PHASE_REQUEST:
            if (have < 28) {
                return true;
            }
            if (!nbd_conn_has_room(c, p)) {
                c->blocked = true;
                return true;
            }
            c->stage_start += 28;
            if (!nbd_conn_request(c, p)) {
                return false;
            }
            continue;
        case NBD_PHASE_PAYLOAD: {
            size_t left;
            uint8_t *to = nbd_conn_payload(c, &left);

            if (have == 0) {
                return true;
            }
            used = MIN(have, left);
            memcpy(to, p, used);
            c->stage_start += used;
            nbd_conn_payload_add(c, used);
            continue;
        }
        }
        c->stage_start += used;
    }
    return true;
}

/* One receive: into the payload once the stage is empty, else into the stage. */
static ssize_t conn_receive(NbdConn *c)
{
    if (c->stage_start == c->stage_end) {
        c->stage_start = c->stage_end = 0;
        if (c->payload) {
            size_t left;
            uint8_t *to = nbd_conn_payload(c, &left);
            ssize_t n = conn_recv(c, to, left);

            if (n > 0) {
                nbd_conn_payload_add(c, n);
            }
            return n;
        }
    } else if (c->stage_start > 0) {
        memmove(c->stage, c->stage + c->stage_start, c->stage_end - c->stage_start);
        c->stage_end -= c->stage_start;
        c->stage_start = 0;
    }
    ssize_t n = conn_recv(c, c->stage + c->stage_end, NBD_STAGE - c->stage_end);
    if (n > 0) {
        c->stage_end += n;
    }
    return n;
}

/* Receive and look at it. False: the connection must end. What GnuTLS has decrypted
 * already makes no socket readable, so all of it is taken. */
static bool conn_read(NbdConn *c)
{
    do {
        ssize_t n = conn_receive(c);

        if (n <= 0) {
            return n < 0 && (errno == EAGAIN || errno == EINTR);
        }
        if (!conn_parse(c)) {
            return false;
        }
    } while (c->tls && !c->closed && !c->disconnecting && !c->blocked &&
             tls_session_pending(c->tls) > 0);
    return true;
}

/* Send what there is. A connection that was full of answers and now has sent them all looks
 * at what it had been asked meanwhile: nothing else would make it. False: it must end. */
static bool conn_send_on(NbdConn *c)
{
    for (;;) {
        if (!conn_write(c)) {
            return false;
        }
        if (c->closed || !c->blocked || !g_queue_is_empty(&c->out)) {
            return true;
        }
        if (!conn_parse(c)) {
            return false;
        }
        if (g_queue_is_empty(&c->out)) {
            return true; /* it waits for requests, or for room that others have */
        }
    }
}

static void conn_event(void *opaque, GIOCondition cond)
{
    NbdConn *c = opaque;
    bool ok = true;

    c->refs++;
    if (c->phase == NBD_PHASE_TLS) {
        ok = conn_tls_handshake(c);
        if (ok && c->phase != NBD_PHASE_TLS) {
            ok = conn_read(c);
        }
    } else {
        if (cond & G_IO_OUT) {
            /* What it takes makes room for what it asked before. */
            ok = conn_write(c) && (!c->blocked || conn_parse(c));
        }
        if (ok && (cond & (G_IO_IN | G_IO_HUP | G_IO_ERR)) && !c->disconnecting) {
            /* A full connection is not read from, but its end is noticed. */
            ok = c->blocked ? !(cond & (G_IO_HUP | G_IO_ERR)) : conn_read(c);
        } else if (cond & (G_IO_HUP | G_IO_ERR)) {
            ok = false;
        }
    }
    if (!c->closed) {
        if (!ok || !conn_send_on(c)) {
            nbd_conn_close(c);
        } else {
            conn_update(c);
        }
    }
    nbd_conn_unref(c);
}

void nbd_conn_resume(NbdConn *c)
{
    if (c->closed || c->phase == NBD_PHASE_TLS) {
        return;
    }
    c->refs++;
    bool ok = conn_parse(c);
    if (ok && c->tls && !c->closed && !c->disconnecting && !c->blocked &&
        tls_session_pending(c->tls) > 0) {
        ok = conn_read(c);
    }
    if (!c->closed && (!ok || !conn_send_on(c))) {
        nbd_conn_close(c);
    }
    conn_update(c);
    nbd_conn_unref(c);
}

static gboolean conn_out_of_patience(gpointer opaque)
{
    NbdConn *c = opaque;

    colo_trace(block_nbd_timeout, "a client did not finish its negotiation");
    nbd_conn_close(c);
    return G_SOURCE_REMOVE;
}

NbdConn *nbd_conn_new(NbdListener *l, int fd, bool guest)
{
    NbdConn *c = g_new0(NbdConn, 1);

    c->guest = guest;
    c->refs = 1;
    c->listener = l;
    c->fd = fd;
    g_queue_init(&c->out);
    c->watch = block_fd_new(fd, G_IO_IN | G_IO_HUP | G_IO_ERR, conn_event, c);
    c->patience =
        io_thread_timer(block_thread(), NEGOTIATION_MS, conn_out_of_patience, c);
    return c;
}
