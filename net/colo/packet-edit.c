/*
 * Packets: edits with checksums, and frames made from nothing.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <netinet/in.h>
#include "net/packet.h"

static uint16_t fold(uint64_t sum)
{
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return (uint16_t)sum;
}

/* The ones' complement sum of bytes whose first is at an odd place if @odd. */
static uint64_t sum_bytes(const uint8_t *b, uint32_t len, bool odd)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < len; i++) {
        sum += ((i & 1) != odd) ? b[i] : (uint32_t)b[i] << 8;
    }
    return sum;
}

void packet_tcp_put(Frame *f, uint32_t l4, bool partial, uint32_t at, const void *bytes,
                    uint32_t len)
{
    uint8_t *field = f->data + at, *csum = f->data + l4 + 16;
    bool odd = (at - l4) & 1;

    if (!partial) {
        /* RFC 1624: new = ~(~old + ~field + field') */
        uint64_t sum = (uint16_t)~get_be16(csum);
        sum += (uint16_t)~fold(sum_bytes(field, len, odd));
        sum += fold(sum_bytes(bytes, len, odd));
        put_be16(csum, (uint16_t)~fold(sum));
    }
    memcpy(field, bytes, len);
}

void packet_tcp_put16(Frame *f, uint32_t l4, bool partial, uint32_t at, uint16_t v)
{
    v = GUINT16_TO_BE(v);
    packet_tcp_put(f, l4, partial, at, &v, 2);
}

void packet_tcp_put32(Frame *f, uint32_t l4, bool partial, uint32_t at, uint32_t v)
{
    v = GUINT32_TO_BE(v);
    packet_tcp_put(f, l4, partial, at, &v, 4);
}

static void write_checksums(Frame *f, uint32_t l3, uint32_t l4, uint32_t end)
{
    uint8_t *ip = f->data + l3, *tcp = f->data + l4;
    bool v6 = ip[0] >> 4 == 6;
    uint64_t sum = IPPROTO_TCP + (end - l4);

    if (!v6) {
        put_be16(ip + 10, 0);
        put_be16(ip + 10, (uint16_t)~fold(sum_bytes(ip, (ip[0] & 15) * 4, false)));
    }
    sum += v6 ? sum_bytes(ip + 8, 32, false) : sum_bytes(ip + 12, 8, false);
    put_be16(tcp + 16, 0);
    sum += sum_bytes(tcp, end - l4, false);
    put_be16(tcp + 16, (uint16_t)~fold(sum));
}

void packet_tcp_checksum(Frame *f, const Packet *p)
{
    write_checksums(f, p->l3, p->l4, p->body + p->body_len);
}

bool packet_tcp_sum_ok(const Frame *f)
{
    Frame *c = frame_from(f->data, f->len);
    bool ok;
    Packet p;

    packet_parse(c, true, &p);
    if (p.kind == PACKET_TCP && !packet_csum_partial(f)) {
        packet_tcp_checksum(c, &p);
        ok = memcmp(c->data + p.l4 + 16, f->data + p.l4 + 16, 2) == 0;
    } else {
        ok = true;
    }
    frame_unref(c);
    return ok;
}

Frame *packet_make_ack(const PacketAck *a)
{
    bool v6 = a->key->ethertype == 0x86dd;
    uint32_t ip_len = v6 ? 40 : 20, tcp_len = a->has_ts ? 32 : 20;
    uint32_t len = a->l2_len + ip_len + tcp_len;
    Frame *f = frame_new(MAX(len, 60u) + a->vnet_len);
    uint8_t *ip, *t;

    memset(f->data, 0, f->len);
    f->data += a->vnet_len;
    f->len -= a->vnet_len;
    f->vnet_len = a->vnet_len;
    memcpy(f->data, a->l2, a->l2_len);
    ip = f->data + a->l2_len;
    if (v6) {
        ip[0] = 0x60;
        put_be16(ip + 4, tcp_len);
        ip[6] = IPPROTO_TCP;
        ip[7] = 64;
        memcpy(ip + 8, a->key->guest, 16);
        memcpy(ip + 24, a->key->client, 16);
    } else {
        ip[0] = 0x45;
        put_be16(ip + 2, ip_len + tcp_len);
        put_be16(ip + 6, 0x4000); /* not to be fragmented: the id may be 0 */
        ip[8] = 64;
        ip[9] = IPPROTO_TCP;
        memcpy(ip + 12, a->key->guest, 4);
        memcpy(ip + 16, a->key->client, 4);
    }
    t = ip + ip_len;
    put_be16(t, a->key->guest_port);
    put_be16(t + 2, a->key->client_port);
    put_be32(t + 4, a->seq);
    put_be32(t + 8, a->ack);
    t[12] = tcp_len / 4 << 4;
    t[13] = TCP_ACK;
    put_be16(t + 14, a->win);
    if (a->has_ts) {
        t[20] = t[21] = 1;
        t[22] = 8;
        t[23] = 10;
        put_be32(t + 24, a->tsval);
        put_be32(t + 28, a->tsecr);
    }
    write_checksums(f, a->l2_len, a->l2_len + ip_len, len);
    return f;
}
