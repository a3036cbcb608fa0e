/*
 * Frames for the tests of the net room: a guest 10.0.0.2 and a client 10.0.0.9.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef TESTS_UNIT_NET_FRAMES_H
#define TESTS_UNIT_NET_FRAMES_H

#include <glib.h>
#include <string.h>
#include "net/frame.h"
#include "net/packet.h"

typedef struct TestTcp {
    bool to_guest, v6;
    uint8_t n_vlans;
    uint16_t guest_port, client_port; /* 0: 80 and 40000 */
    uint32_t seq, ack;
    uint8_t flags; /* 0: ACK */
    uint16_t win;  /* 0: 1000; use zero_win for 0 */
    bool zero_win;
    uint16_t mss; /* option if not 0 */
    int wscale;   /* option if > 0; a scale of 0 is not needed here */
    bool sack_ok;
    bool ts;
    uint32_t tsval, tsecr;
    unsigned n_sack;
    uint32_t sack[8];
    const void *data;
    uint32_t len;
} TestTcp;

static inline uint32_t test_eth(uint8_t *b, bool to_guest, unsigned n_vlans,
                                uint16_t type)
{
    static const uint8_t guest[6] = {0x52, 0x54, 0, 1, 2, 3};
    static const uint8_t client[6] = {0x52, 0x54, 0, 9, 9, 9};
    uint32_t at = 12;

    memcpy(b, to_guest ? guest : client, 6);
    memcpy(b + 6, to_guest ? client : guest, 6);
    for (unsigned i = 0; i < n_vlans; i++) {
        put_be16(b + at, i + 1 < n_vlans ? 0x88a8 : 0x8100);
        put_be16(b + at + 2, 100 + i);
        at += 4;
    }
    put_be16(b + at, type);
    return at + 2;
}

/* Write the checksum of the IPv4 header at @ip. */
static inline void test_ip_sum(uint8_t *ip)
{
    uint32_t sum = 0;

    put_be16(ip + 10, 0);
    for (unsigned i = 0; i < (ip[0] & 15u) * 4; i += 2) {
        sum += get_be16(ip + i);
    }
    sum = (sum >> 16) + (sum & 0xffff);
    put_be16(ip + 10, ~((sum >> 16) + sum));
}

static inline uint32_t test_ip(uint8_t *b, bool to_guest, bool v6, uint8_t proto,
                               uint32_t len)
{
    static const uint8_t g4[4] = {10, 0, 0, 2}, c4[4] = {10, 0, 0, 9};
    uint8_t g6[16] = {0xfd, [15] = 2}, c6[16] = {0xfd, [15] = 9};

    if (v6) {
        memset(b, 0, 40);
        b[0] = 0x60;
        put_be16(b + 4, len);
        b[6] = proto;
        b[7] = 64;
        memcpy(b + 8, to_guest ? c6 : g6, 16);
        memcpy(b + 24, to_guest ? g6 : c6, 16);
        return 40;
    }
    memset(b, 0, 20);
    b[0] = 0x45;
    put_be16(b + 2, 20 + len);
    put_be16(b + 4, g_random_int()); /* the id is nobody's business */
    b[8] = 64;
    b[9] = proto;
    memcpy(b + 12, to_guest ? c4 : g4, 4);
    memcpy(b + 16, to_guest ? g4 : c4, 4);
    test_ip_sum(b);
    return 20;
}

static inline Frame *test_tcp(TestTcp t)
{
    uint8_t b[FRAME_MAX], o[40];
    uint32_t n = 0, at, l4;
    Packet p;
    Frame *f;

    if (t.mss) {
        o[n++] = 2;
        o[n++] = 4;
        put_be16(o + n, t.mss);
        n += 2;
    }
    if (t.wscale > 0) {
        o[n++] = 3;
        o[n++] = 3;
        o[n++] = t.wscale;
    }
    if (t.sack_ok) {
        o[n++] = 4;
        o[n++] = 2;
    }
    if (t.ts) {
        o[n++] = 8;
        o[n++] = 10;
        put_be32(o + n, t.tsval);
        put_be32(o + n + 4, t.tsecr);
        n += 8;
    }
    if (t.n_sack) {
        o[n++] = 5;
        o[n++] = 2 + 8 * t.n_sack;
        for (unsigned i = 0; i < 2 * t.n_sack; i++, n += 4) {
            put_be32(o + n, t.sack[i]);
        }
    }
    while (n % 4) {
        o[n++] = 1;
    }
    at = test_eth(b, t.to_guest, t.n_vlans, t.v6 ? 0x86dd : 0x0800);
    l4 = at + test_ip(b + at, t.to_guest, t.v6, 6, 20 + n + t.len);
    memset(b + l4, 0, 20);
    t.guest_port = t.guest_port ? t.guest_port : 80;
    t.client_port = t.client_port ? t.client_port : 40000;
    put_be16(b + l4, t.to_guest ? t.client_port : t.guest_port);
    put_be16(b + l4 + 2, t.to_guest ? t.guest_port : t.client_port);
    put_be32(b + l4 + 4, t.seq);
    put_be32(b + l4 + 8, t.ack);
    b[l4 + 12] = (20 + n) / 4 << 4;
    b[l4 + 13] = t.flags ? t.flags : TCP_ACK;
    put_be16(b + l4 + 14, t.zero_win ? 0 : t.win ? t.win : 1000);
    memcpy(b + l4 + 20, o, n);
    if (t.len) {
        memcpy(b + l4 + 20 + n, t.data, t.len);
    }
    f = frame_from(b, l4 + 20 + n + t.len);
    packet_parse(f, !t.to_guest, &p);
    packet_tcp_checksum(f, &p);
    return f;
}

/* Whether the TCP checksum of @f is right. */
static inline bool test_checksum_ok(const Frame *f)
{
    Frame *c = frame_from(f->data, f->len);
    bool same;
    Packet p;

    packet_parse(c, true, &p);
    packet_tcp_checksum(c, &p);
    same = memcmp(c->data, f->data, f->len) == 0;
    frame_unref(c);
    return same;
}

static inline Frame *test_udp(uint16_t guest_port, uint16_t client_port, bool v6,
                              const char *text)
{
    uint8_t b[2048];
    uint32_t len = strlen(text), at = test_eth(b, false, 0, v6 ? 0x86dd : 0x0800);

    at += test_ip(b + at, false, v6, 17, 8 + len);
    put_be16(b + at, guest_port);
    put_be16(b + at + 2, client_port);
    put_be16(b + at + 4, 8 + len);
    put_be16(b + at + 6, 0);
    memcpy(b + at + 8, text, len);
    return frame_from(b, at + 8 + len);
}

static inline Frame *test_icmp(const char *text)
{
    uint8_t b[2048] = {0};
    uint32_t len = strlen(text), at = test_eth(b, false, 0, 0x0800);

    at += test_ip(b + at, false, false, 1, 8 + len);
    memset(b + at, 0, 8);
    memcpy(b + at + 8, text, len);
    return frame_from(b, at + 8 + len);
}

/* A fragment of a UDP datagram at @offset (a multiple of 8). */
static inline Frame *test_fragment(uint32_t offset, bool more, const char *text)
{
    uint8_t b[2048];
    uint32_t len = strlen(text), l3 = test_eth(b, false, 0, 0x0800);
    uint32_t at = l3 + test_ip(b + l3, false, false, 17, len);

    put_be16(b + l3 + 6, offset / 8 | (more ? 0x2000 : 0));
    test_ip_sum(b + l3);
    memcpy(b + at, text, len);
    return frame_from(b, at + len);
}

static inline Frame *test_arp(bool request, uint8_t target)
{
    uint8_t b[60] = {0};
    uint32_t at = test_eth(b, false, 0, 0x0806);

    put_be16(b + at, 1);
    put_be16(b + at + 2, 0x0800);
    b[at + 4] = 6;
    b[at + 5] = 4;
    put_be16(b + at + 6, request ? 1 : 2);
    b[at + 27] = target;
    return frame_from(b, sizeof(b));
}

static inline Frame *test_raw(uint16_t type, const char *text)
{
    uint8_t b[2048];
    uint32_t at = test_eth(b, false, 0, type);

    memcpy(b + at, text, strlen(text));
    return frame_from(b, at + strlen(text));
}

#endif
