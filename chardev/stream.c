/*
 * Framing: frames and control messages as bytes of a stream.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * be32 length | [be32 vnet header length] | vnet header and frame      (QEMU's)
 * be32 0x80000000 + n | type (1 byte) | body (n - 1 bytes)             (ours, if agreed)
 */
#include "chardev/chardev-int.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "util/bytes.h"

#define READ_CHUNK (256u << 10)

static void flush(void *opaque);

void chardev_stream_reset(Chardev *c)
{
    c->ohead = c->oend = c->ilen = 0;
    c->frames_in = c->frames_out = 0;
    if (c->icap > 2 * READ_CHUNK) {
        g_clear_pointer(&c->ibuf, g_free);
        c->icap = 0;
    }
    net_batch_remove(flush, c);
}

void chardev_stream_free(Chardev *c)
{
    chardev_stream_reset(c);
    g_free(c->obuf);
    g_free(c->ibuf);
    c->obuf = c->ibuf = NULL;
    c->ocap = c->icap = 0;
}

/* --- Out --- */

static gboolean stream_writable(int fd, GIOCondition cond, gpointer opaque)
{
    Chardev *c = opaque;

    io_source_destroy(&c->out);
    flush(c);
    if (c->oend == 0 && c->h && c->h->drained) {
        net_batch_begin();
        c->h->drained(c->opaque);
        net_batch_end();
    }
    return G_SOURCE_REMOVE;
}

static void flush(void *opaque)
{
    Chardev *c = opaque;

    while (c->fd >= 0 && c->connected && c->ohead < c->oend) {
        ssize_t n = chardev_send_some(c, c->obuf + c->ohead, c->oend - c->ohead);
        if (n >= 0) {
            c->ohead += n;
        } else if (errno == EAGAIN) {
            if (!c->out) {
                c->out = io_thread_watch_fd(net_thread(), c->fd, chardev_send_wants(c),
                                            stream_writable, c);
            }
            return;
        } else if (errno != EINTR) {
            /* The reader sees the end of it too and cleans up, outside of any caller. */
            c->ohead = c->oend = 0;
            shutdown(c->fd, SHUT_RDWR);
            return;
        }
    }
    c->ohead = c->oend = 0;
    if (c->ocap > CHARDEV_QUEUE_KEEP) {
        g_clear_pointer(&c->obuf, g_free);
        c->ocap = 0;
    }
}

/* Room for @n more bytes at the end of the queue, or NULL. */
static uint8_t *stream_room(Chardev *c, size_t n)
{
    if (c->oend - c->ohead + n > MAX(c->omax, CHARDEV_QUEUE_MAX)) {
        c->dropped++;
        return NULL;
    }
    if (c->oend + n > c->ocap && c->ohead > 0) {
        memmove(c->obuf, c->obuf + c->ohead, c->oend - c->ohead);
        c->oend -= c->ohead;
        c->ohead = 0;
    }
    if (c->oend + n > c->ocap) {
        c->ocap = MAX(c->ocap * 2, MAX(c->oend + n, READ_CHUNK));
        c->obuf = g_realloc(c->obuf, c->ocap);
    }
    uint8_t *p = c->obuf + c->oend;
    c->oend += n;
    return p;
}

static void stream_kick(Chardev *c)
{
    if (c->out) {
        return;
    }
    if (net_batch_active() && c->oend - c->ohead < READ_CHUNK) {
        net_batch_add(flush, c);
    } else {
        flush(c);
    }
}

static bool joined_send(Chardev *c, Frame *f)
{
    Chardev *to = c->joined;

    if (!to->h) {
        c->dropped++;
        frame_unref(f);
        return false;
    }
    c->frames_out++;
    to->frames_in++;
    /* The receiver may queue it: it must be nobody else's. */
    f = frame_writable(f);
    if (!c->vnet_hdr || !to->vnet_hdr) {
        f->vnet_len = 0;
    }
    to->h->frame(to->opaque, f);
    return true;
}

static bool socket_send(Chardev *c, const Frame *f)
{
    if (!c->connected) {
        c->dropped++;
        return false;
    }
    uint32_t vnet = c->vnet_hdr ? f->vnet_len : 0;
    uint32_t head = c->vnet_hdr ? 8 : 4;
    uint8_t *p = stream_room(c, head + vnet + f->len);
    if (!p) {
        return false;
    }
    bytes_put_be(p, vnet + f->len, 4);
    if (c->vnet_hdr) {
        bytes_put_be(p + 4, vnet, 4);
    }
    memcpy(p + head, f->data - vnet, vnet + f->len);
    c->frames_out++;
    stream_kick(c);
    return true;
}

bool chardev_send(Chardev *c, Frame *f)
{
    return c->joined ? joined_send(c, frame_ref(f)) : socket_send(c, f);
}

bool chardev_send_take(Chardev *c, Frame *f)
{
    if (c->joined) {
        return joined_send(c, f);
    }
    bool sent = socket_send(c, f);
    frame_unref(f);
    return sent;
}

bool chardev_send_text(Chardev *c, const char *text)
{
    size_t len = strlen(text);

    if (c->joined) {
        return joined_send(c, frame_from(text, len));
    }
    uint8_t *p = c->connected ? stream_room(c, 4 + len) : NULL;
    if (!p) {
        return false;
    }
    bytes_put_be(p, len, 4);
    memcpy(p + 4, text, len);
    c->frames_out++;
    stream_kick(c);
    return true;
}

bool chardev_send_control(Chardev *c, const ChardevControl *msg)
{
    if (!c->connected || !c->allow_control) {
        return false;
    }
    if (c->joined) {
        Chardev *to = c->joined;
        if (!to->h || !to->h->control || !to->allow_control) {
            return false;
        }
        to->h->control(to->opaque, msg);
        return true;
    }
    g_assert(msg->len < CHARDEV_CONTROL_MAX);
    uint8_t *p = stream_room(c, 5 + msg->len);
    if (!p) {
        return false;
    }
    bytes_put_be(p, CHARDEV_CONTROL_BIT | (msg->len + 1), 4);
    p[4] = msg->type;
    if (msg->len) {
        memcpy(p + 5, msg->body, msg->len);
    }
    stream_kick(c);
    return true;
}

/* --- In --- */

/* Bytes of the next item at @p (@n are there), 0 if more must be read, -1 if wrong. */
static ssize_t item_size(Chardev *c, const uint8_t *p, size_t n, const char **why)
{
    if (n < 4) {
        return 0;
    }
    uint32_t len = bytes_get_be(p, 4);
    if (len & CHARDEV_CONTROL_BIT) {
        uint32_t body = len & ~CHARDEV_CONTROL_BIT;
        if (!c->allow_control || body == 0 || body > CHARDEV_CONTROL_MAX) {
            *why = "a control message that was not agreed";
            return -1;
        }
        return 4 + (size_t)body;
    }
    if (len == 0 || len > FRAME_MAX) {
        *why = "a frame length out of range";
        return -1;
    }
    if (!c->vnet_hdr) {
        return 4 + (size_t)len;
    }
    if (n < 8) {
        return 0;
    }
    uint32_t vnet = bytes_get_be(p + 4, 4);
    if (vnet >= len || vnet > FRAME_HEADROOM) {
        *why = "a vnet header length out of range";
        return -1;
    }
    return 8 + (size_t)len;
}

static void deliver(Chardev *c, const uint8_t *p, size_t size, int64_t now)
{
    uint32_t len = bytes_get_be(p, 4);

    if (len & CHARDEV_CONTROL_BIT) {
        ChardevControl msg = {.type = p[4], .len = size - 5, .body = p + 5};
        if (c->h->control) {
            c->h->control(c->opaque, &msg);
        }
        return;
    }
    uint32_t vnet = c->vnet_hdr ? bytes_get_be(p + 4, 4) : 0;
    const uint8_t *bytes = p + (c->vnet_hdr ? 8 : 4);
    Frame *f = frame_new(len - vnet);
    memcpy(f->data - vnet, bytes, len);
    f->vnet_len = vnet;
    f->stamp = now;
    c->frames_in++;
    c->h->frame(c->opaque, f);
}

bool chardev_stream_read(Chardev *c, const char **why)
{
    if (c->icap - c->ilen < READ_CHUNK) {
        c->icap = c->ilen + READ_CHUNK;
        c->ibuf = g_realloc(c->ibuf, c->icap);
    }
    ssize_t n = chardev_recv_some(c, c->ibuf + c->ilen, c->icap - c->ilen);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return true;
    }
    if (n <= 0) {
        *why = n == 0 ? "closed by the peer" : g_strerror(errno);
        return false;
    }
    c->ilen += n;
    return chardev_stream_parse(c, why);
}

bool chardev_stream_parse(Chardev *c, const char **why)
{
    size_t at = 0;
    int64_t now = g_get_monotonic_time();
    int fd = c->fd;

    while (c->h && c->fd == fd && !c->paused) {
        ssize_t size = item_size(c, c->ibuf + at, c->ilen - at, why);
        if (size < 0) {
            c->malformed++;
            colo_report_limited(&c->limit,
                                "chardev '%s': the peer sent %s; connection closed (%" PRIu64
                                " times so far)",
                                c->id, *why, c->malformed);
            return false;
        }
        if (size == 0 || (size_t)size > c->ilen - at) {
            break;
        }
        deliver(c, c->ibuf + at, size, now);
        at += size;
    }
    if (c->fd != fd) {
        return true; /* a handler closed it: the buffer was reset */
    }
    memmove(c->ibuf, c->ibuf + at, c->ilen - at);
    c->ilen -= at;
    return true;
}
