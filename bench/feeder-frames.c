/*
 * Frames for benchmarks of colo-compare.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "feeder-frames.h"

#include <string.h>

#define ETH 14
#define IP 20
#define TCP 20
#define UDP 8
#define FIRST_SEQ 1000u

static void put16(uint8_t *p, uint32_t v)
{
    p[0] = v >> 8;
    p[1] = v;
}

static void put32(uint8_t *p, uint32_t v)
{
    put16(p, v >> 16);
    put16(p + 2, v);
}

static uint32_t add_bytes(uint32_t sum, const uint8_t *p, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        sum += i & 1 ? p[i] : p[i] << 8;
    }
    return sum;
}

static uint32_t add32(uint32_t sum, uint32_t v)
{
    return sum + (v >> 16) + (v & 0xffff);
}

static uint16_t fold(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return ~((sum & 0xffff) + (sum >> 16));
}

bool feeder_frames_init(FeederFrames *ff, bool udp, uint32_t size, uint32_t flows)
{
    static const uint8_t eth[ETH] = {0x52, 0x54, 0, 9, 9, 9, 0x52, 0x54, 0, 1, 2, 3, 8, 0};
    uint8_t *b = ff->image;

    *ff = (FeederFrames){.udp = udp, .size = size, .flows = flows};
    ff->at = ETH + IP + (udp ? UDP : TCP);
    if (size < ff->at + 8 || size > sizeof(ff->image) || !flows || flows > 65536) {
        return false;
    }
    ff->payload = size - ff->at;
    memcpy(b, eth, ETH);
    b[ETH] = 0x45;
    put16(b + ETH + 2, size - ETH);
    b[ETH + 6] = 0x40; /* do not fragment */
    b[ETH + 8] = 64;
    b[ETH + 9] = udp ? 17 : 6;
    memcpy(b + ETH + 12, (uint8_t[]){10, 0, 0, 2}, 4);
    uint8_t *l4 = b + ETH + IP;
    put16(l4, udp ? 4000 : 80);
    if (udp) {
        put16(l4 + 4, size - ETH - IP);
    } else {
        put32(l4 + 8, 5000);
        l4[12] = TCP / 4 << 4;
        l4[13] = 0x10; /* ACK */
        put16(l4 + 14, 0xfff0);
    }
    for (uint32_t i = 8; i < ff->payload; i++) {
        b[ff->at + i] = i * 7;
    }
    ff->ip_sum = add_bytes(0, b + ETH, IP);
    ff->sum = add_bytes(0, b + ETH + 12, 4) + b[ETH + 9] + (size - ETH - IP);
    ff->sum = add_bytes(ff->sum, l4, size - ETH - IP);
    return true;
}

void feeder_frames_blank(const FeederFrames *ff, uint8_t *slot)
{
    memcpy(slot, ff->image, ff->size);
}

void feeder_frames_put(const FeederFrames *ff, uint8_t *slot, uint64_t n)
{
    uint32_t flow = n % ff->flows, round = n / ff->flows;
    uint32_t client = 0x0a010000u | flow, port = 20000 + (flow & 0x7fff);
    uint32_t seq = FIRST_SEQ + round * ff->payload;
    uint32_t high = n >> 32, low = n, sum = add32(ff->sum, client) + port;
    uint8_t *ip = slot + ETH, *l4 = ip + IP;

    put32(ip + 16, client);
    put16(ip + 10, fold(add32(ff->ip_sum, client)));
    put16(l4 + 2, port);
    put32(slot + ff->at, high);
    put32(slot + ff->at + 4, low);
    sum = add32(add32(sum, high), low);
    if (ff->udp) {
        put16(l4 + 6, fold(sum));
    } else {
        put32(l4 + 4, seq);
        put16(l4 + 16, fold(add32(sum, seq)));
    }
}

uint64_t feeder_frames_number(const FeederFrames *ff, const uint8_t *slot)
{
    const uint8_t *p = slot + ff->at;
    uint64_t n = 0;

    for (int i = 0; i < 8; i++) {
        n = n << 8 | p[i];
    }
    return n;
}
