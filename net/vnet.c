/*
 * virtio-net headers: what a sender left to hardware is done here.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The header (VIRTIO 1.2, 5.1.6, little-endian): u8 flags, u8 gso_type, u16 hdr_len, u16
 * gso_size, u16 csum_start, u16 csum_offset [, u16 num_buffers]. hdr_len is a hint that
 * many senders get wrong: the headers are parsed instead.
 *
 * A TCP segment of n times gso_size bytes becomes n frames with the same headers but for
 * length, IP id, sequence number, FIN and PSH (on the last alone), CWR (on the first alone)
 * and checksums. UDP with gso_type 5 becomes n datagrams. UDP fragmentation by hardware
 * (type 3), which Linux gave up in 4.14, is not done.
 */
#include "net/vnet.h"

#include <netinet/in.h>
#include <string.h>

#include "net/packet.h"
#include "util/trace.h"

#define NEEDS_CSUM 1
#define GSO_NONE 0
#define GSO_TCPV4 1
#define GSO_TCPV6 4
#define GSO_UDP_L4 5
#define GSO_ECN 0x80

#define SEGMENTS_MAX 4096 /* of one frame: a lie about gso_size must not cost more */

typedef struct VnetHeader {
    uint8_t flags, gso;
    uint16_t gso_size, csum_start, csum_offset;
} VnetHeader;

static uint16_t get_le16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

/* --- Checksums --- */

/* Ones' complement sum of 16-bit words as this machine reads them; the byte order of a
 * checksum does not matter as long as it is stored the same way. */
static uint64_t sum_words(uint64_t sum, const uint8_t *b, uint32_t len)
{
    uint32_t w;
    uint16_t h;

    for (; len >= 4; b += 4, len -= 4) {
        memcpy(&w, b, 4);
        sum += w;
    }
    if (len >= 2) {
        memcpy(&h, b, 2);
        sum += h;
        b += 2;
        len -= 2;
    }
    if (len) {
        uint8_t last[2] = {b[0], 0};
        memcpy(&h, last, 2);
        sum += h;
    }
    return sum;
}

static uint16_t finish(uint64_t sum)
{
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return (uint16_t)~sum;
}

static void store(uint8_t *at, uint16_t csum)
{
    memcpy(at, &csum, 2);
}

/* The whole checksum of a TCP or UDP packet whose headers are well-formed. */
static void write_l4(Frame *f, uint32_t l3, uint32_t l4, uint8_t proto)
{
    uint8_t *ip = f->data + l3, *t = f->data + l4;
    uint8_t pseudo[4] = {0, proto, (f->len - l4) >> 8, (f->len - l4) & 0xff};
    uint8_t *at = t + (proto == IPPROTO_TCP ? 16 : 6);
    bool v6 = ip[0] >> 4 == 6;

    store(at, 0);
    uint64_t sum = sum_words(0, pseudo, 4);
    sum = v6 ? sum_words(sum, ip + 8, 32) : sum_words(sum, ip + 12, 8);
    uint16_t csum = finish(sum_words(sum, t, f->len - l4));
    store(at, csum == 0 && proto == IPPROTO_UDP ? 0xffff : csum);
}

static void write_ip4(uint8_t *ip)
{
    store(ip + 10, 0);
    store(ip + 10, finish(sum_words(0, ip, (ip[0] & 15u) * 4)));
}

/* What is to be summed starts at csum_start and holds the sum of the pseudo header. */
static bool complete(Frame *f, const VnetHeader *h)
{
    uint32_t at = (uint32_t)h->csum_start + h->csum_offset;

    if (h->csum_start < FRAME_MIN_ETH || at + 2 > f->len) {
        return false;
    }
    uint16_t csum = finish(sum_words(0, f->data + h->csum_start, f->len - h->csum_start));
    store(f->data + at, csum ? csum : 0xffff);
    return true;
}

/* --- Splitting --- */

typedef struct Split {
    const Frame *f;
    Packet p;
    uint8_t proto;
    uint32_t head; /* bytes of all headers */
} Split;

static Frame *segment(const Split *s, uint32_t at, uint32_t len, uint16_t n, bool last)
{
    const Frame *big = s->f;
    uint32_t vnet = big->vnet_len;
    Frame *f = frame_new(s->head + len);
    uint8_t *ip = f->data + s->p.l3, *t = f->data + s->p.l4;

    f->vnet_len = vnet;
    memset(f->data - vnet, 0, vnet);
    f->epoch = big->epoch;
    f->stamp = big->stamp;
    memcpy(f->data, big->data, s->head);
    memcpy(f->data + s->head, big->data + s->p.body + at, len);
    if (ip[0] >> 4 == 6) {
        put_be16(ip + 4, f->len - s->p.l3 - 40);
    } else {
        put_be16(ip + 2, f->len - s->p.l3);
        put_be16(ip + 4, get_be16(ip + 4) + n);
        write_ip4(ip);
    }
    if (s->proto == IPPROTO_TCP) {
        put_be32(t + 4, s->p.seq + at);
        t[13] &= last ? 0xff : ~(TCP_FIN | TCP_PSH);
        t[13] &= n ? ~TCP_CWR : 0xff;
    } else {
        put_be16(t + 4, 8 + len);
    }
    write_l4(f, s->p.l3, s->p.l4, s->proto);
    return f;
}

/* Whether @f is what @gso says it is. */
static bool prepare(Split *s, const Frame *f, uint8_t gso)
{
    packet_parse(f, true, &s->p);
    uint16_t type = s->p.key.ethertype;
    bool tcp = gso != GSO_UDP_L4;

    s->f = f;
    s->proto = tcp ? IPPROTO_TCP : IPPROTO_UDP;
    if ((tcp && gso != GSO_TCPV4 && gso != GSO_TCPV6) ||
        s->p.kind != (tcp ? PACKET_TCP : PACKET_UDP) ||
        (gso == GSO_TCPV4 && type != 0x0800) || (gso == GSO_TCPV6 && type != 0x86dd)) {
        return false;
    }
    s->head = tcp ? s->p.body : s->p.l4 + 8;
    s->p.body = s->head;
    return f->len >= s->head;
}

static bool split(const Frame *f, const VnetHeader *h, VnetFunc fn, void *opaque,
                  VnetStats *stats)
{
    Split s;

    if (!h->gso_size || !prepare(&s, f, h->gso & ~GSO_ECN)) {
        return false;
    }
    /* What the IP header does not count is padding. */
    uint32_t len = MIN(f->len - s.head, s.p.body_len);
    if (len / h->gso_size >= SEGMENTS_MAX) {
        return false;
    }
    uint16_t n = 0;
    uint32_t at = 0;
    do {
        uint32_t part = MIN((uint32_t)h->gso_size, len - at);
        fn(segment(&s, at, part, n++, at + part == len), opaque);
        at += part;
    } while (at < len);
    stats->split++;
    stats->made += n;
    return true;
}

void vnet_make_plain_slow(Frame *f, VnetFunc fn, void *opaque, VnetStats *stats)
{
    if (f->vnet_len < VNET_HDR_LEN) {
        if (f->vnet_len) {
            f = frame_writable(f);
            memset(f->data - f->vnet_len, 0, f->vnet_len);
        }
        fn(f, opaque);
        return;
    }
    const uint8_t *b = f->data - f->vnet_len;
    VnetHeader h = {b[0], b[1], get_le16(b + 4), get_le16(b + 6), get_le16(b + 8)};
    bool good = true;

    if ((h.gso & ~GSO_ECN) != GSO_NONE) {
        good = split(f, &h, fn, opaque, stats);
        stats->bad += !good;
        if (!good) {
            colo_trace(net_vnet_bad, "gso type %u size %u, frame of %u bytes", h.gso,
                       h.gso_size, f->len);
        }
        frame_unref(f);
        return;
    }
    f = frame_writable(f);
    memset(f->data - f->vnet_len, 0, f->vnet_len);
    if (h.flags & NEEDS_CSUM) {
        good = complete(f, &h);
        stats->completed += good;
        stats->bad += !good; /* the frame goes on; its checksum will tell */
    }
    fn(f, opaque);
}
