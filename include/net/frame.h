/*
 * Frames: reference-counted Ethernet frames.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A frame belongs to the net room: references are counted without atomics, under the
 * net lock. Whoever wants to change a frame calls frame_writable() first.
 */
#ifndef COLO_NET_FRAME_H
#define COLO_NET_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_MAX 69632 /* bytes, the most that QEMU's net code passes */
#define FRAME_MIN_ETH 14
#define FRAME_HEADROOM 32 /* bytes free before @data of a new frame (vnet header) */
#define FRAME_POOLED 2048 /* a frame of up to this many bytes comes from the pool */

typedef struct Frame {
    uint32_t ref;
    uint32_t len;      /* bytes at @data, vnet header not counted */
    uint32_t cap;      /* bytes of @buf, FRAME_HEADROOM included */
    uint16_t vnet_len; /* bytes of vnet header that stand right before @data, or 0 */
    uint64_t epoch;    /* in which it was sent; the owner of the frame's queue decides */
    int64_t stamp;     /* microseconds, CLOCK_MONOTONIC, when it was taken in */
    uint8_t *data;
    struct Frame *next; /* free for the queue that holds the frame */
    uint8_t buf[];
} Frame;

/** A new frame of @len bytes (<= FRAME_MAX), contents undefined, one reference.
 * Small frames come from a pool: no allocation in the steady state. */
Frame *frame_new(uint32_t len);

/** Bytes that fit at @f->data. */
static inline uint32_t frame_room(const Frame *f)
{
    return f->cap - (uint32_t)(f->data - f->buf);
}

/** A new frame with a copy of @len bytes of @data. */
Frame *frame_from(const void *data, uint32_t len);

static inline Frame *frame_ref(Frame *f)
{
    f->ref++;
    return f;
}

void frame_unref(Frame *f);

/** @f itself if this reference is the only one, else a copy (and @f's reference is
 * dropped). */
Frame *frame_writable(Frame *f);

/** A first-in first-out list through Frame.next; owns one reference a frame. */
typedef struct FrameQueue {
    Frame *head, *tail;
    uint32_t count;
    uint64_t bytes;
} FrameQueue;

void frame_queue_push(FrameQueue *q, Frame *f);      /* takes the reference */
Frame *frame_queue_pop(FrameQueue *q);               /* gives the reference, or NULL */
void frame_queue_clear(FrameQueue *q);
/** Append all of @src to @dst; @src is empty afterwards. */
void frame_queue_concat(FrameQueue *dst, FrameQueue *src);

#endif
