/*
 * virtio-net headers: what a sender left to hardware is done here.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Guests and kernels that know of a header before each frame leave checksums half done and
 * hand over segments larger than the link (GSO). No part of ours works on such frames:
 * they are made plain where they come in. A header is a wish of its sender, never a fact:
 * what it says is checked against the frame, and nothing of it is passed on.
 *
 * Pure; frames belong to the net lock.
 */
#ifndef COLO_NET_VNET_H
#define COLO_NET_VNET_H

#include "net/frame.h"

#define VNET_HDR_LEN 10 /* without num_buffers */

typedef struct VnetStats {
    uint64_t completed; /* frames whose checksum was filled in */
    uint64_t split;     /* large segments */
    uint64_t made;      /* frames that they became */
    uint64_t bad;       /* dropped: the header cannot be meant for this frame */
} VnetStats;

typedef void (*VnetFunc)(Frame *f, void *opaque); /* gets the reference */

/**
 * Give @f (taken) to @fn as one or more frames that can go on a wire: checksums whole,
 * no GSO, their vnet headers (as long as that of @f) all zero. A frame without a header
 * goes on as it is. A frame that has to be split and cannot be is dropped and counted.
 */
void vnet_make_plain_slow(Frame *f, VnetFunc fn, void *opaque, VnetStats *stats);

static inline void vnet_make_plain(Frame *f, VnetFunc fn, void *opaque, VnetStats *stats)
{
    if (f->vnet_len) {
        vnet_make_plain_slow(f, fn, opaque, stats);
    } else {
        fn(f, opaque);
    }
}

#endif
