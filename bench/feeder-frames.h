/*
 * Frames for benchmarks of colo-compare: many flows, each a stream without end.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Frame @n is of flow @n % @flows; it carries @n itself in the first 8 bytes of its
 * payload and continues its flow's TCP stream. Checksums are right. A slot is written
 * whole once, and then only what differs from frame to frame.
 */
#ifndef BENCH_FEEDER_FRAMES_H
#define BENCH_FEEDER_FRAMES_H

#include <stdbool.h>
#include <stdint.h>

typedef struct FeederFrames {
    bool udp;
    uint32_t size;  /* bytes of a frame, Ethernet header included */
    uint32_t flows; /* at most 65536 */
    uint32_t payload, at; /* bytes of payload, and where they start */
    uint32_t sum; /* of the parts of the transport checksum that never change */
    uint32_t ip_sum;
    uint8_t image[2048];
} FeederFrames;

/** False if @size is too small or too large. */
bool feeder_frames_init(FeederFrames *ff, bool udp, uint32_t size, uint32_t flows);
/** Write what is the same in all frames into @slot (@size bytes). */
void feeder_frames_blank(const FeederFrames *ff, uint8_t *slot);
/** Make frame @n of a blank or used slot. */
void feeder_frames_put(const FeederFrames *ff, uint8_t *slot, uint64_t n);
/** The number of the frame in @slot. */
uint64_t feeder_frames_number(const FeederFrames *ff, const uint8_t *slot);

#endif
