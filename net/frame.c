/*
 * Frames: pool, reference counts, queues.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Room singleton: the free list, guarded by the net lock like every frame.
 */
#include "net/frame.h"

#include <glib.h>
#include <string.h>

/* Beyond this the pool gives memory back: 8 MiB are enough for every bounded queue's
 * steady state, and a burst must not stay resident. */
#define POOL_KEEP 4096

static Frame *pool;
static unsigned pool_len;

static Frame *frame_alloc(uint32_t len)
{
    if (len > FRAME_POOLED) {
        Frame *f = g_malloc(sizeof(Frame) + FRAME_HEADROOM + len);
        f->cap = FRAME_HEADROOM + len;
        return f;
    }
    if (pool) {
        Frame *f = pool;
        pool = f->next;
        pool_len--;
        return f;
    }
    Frame *f = g_malloc(sizeof(Frame) + FRAME_HEADROOM + FRAME_POOLED);
    f->cap = FRAME_HEADROOM + FRAME_POOLED;
    return f;
}

Frame *frame_new(uint32_t len)
{
    g_assert(len <= FRAME_MAX);
    Frame *f = frame_alloc(len);
    f->ref = 1;
    f->len = len;
    f->vnet_len = 0;
    f->epoch = 0;
    f->stamp = 0;
    f->data = f->buf + FRAME_HEADROOM;
    f->next = NULL;
    return f;
}

Frame *frame_from(const void *data, uint32_t len)
{
    Frame *f = frame_new(len);
    memcpy(f->data, data, len);
    return f;
}

void frame_unref(Frame *f)
{
    if (!f || --f->ref > 0) {
        return;
    }
    if (f->cap != FRAME_HEADROOM + FRAME_POOLED || pool_len >= POOL_KEEP) {
        g_free(f);
        return;
    }
    f->next = pool;
    pool = f;
    pool_len++;
}

Frame *frame_writable(Frame *f)
{
    if (f->ref == 1) {
        return f;
    }
    Frame *n = frame_new(f->len);
    g_assert(f->vnet_len <= FRAME_HEADROOM);
    memcpy(n->data - f->vnet_len, f->data - f->vnet_len, f->vnet_len + f->len);
    n->vnet_len = f->vnet_len;
    n->epoch = f->epoch;
    n->stamp = f->stamp;
    frame_unref(f);
    return n;
}

void frame_queue_push(FrameQueue *q, Frame *f)
{
    f->next = NULL;
    if (q->tail) {
        q->tail->next = f;
    } else {
        q->head = f;
    }
    q->tail = f;
    q->count++;
    q->bytes += f->len;
}

Frame *frame_queue_pop(FrameQueue *q)
{
    Frame *f = q->head;

    if (!f) {
        return NULL;
    }
    q->head = f->next;
    if (!q->head) {
        q->tail = NULL;
    }
    f->next = NULL;
    q->count--;
    q->bytes -= f->len;
    return f;
}

void frame_queue_clear(FrameQueue *q)
{
    Frame *f;

    while ((f = frame_queue_pop(q))) {
        frame_unref(f);
    }
}

void frame_queue_concat(FrameQueue *dst, FrameQueue *src)
{
    if (!src->head) {
        return;
    }
    if (dst->tail) {
        dst->tail->next = src->head;
    } else {
        dst->head = src->head;
    }
    dst->tail = src->tail;
    dst->count += src->count;
    dst->bytes += src->bytes;
    memset(src, 0, sizeof(*src));
}
