/*
 * Packets: what a frame holds, as offsets into it, and small edits with their checksums.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * packet_parse() accepts any bytes: what is not well-formed is a packet of a more general
 * kind (a TCP header that lies about its length makes the frame PACKET_OTHER), never an
 * error. Every offset it returns lies within the frame.
 */
#ifndef COLO_NET_PACKET_H
#define COLO_NET_PACKET_H

#include <stdbool.h>
#include <stdint.h>
#include "net/flow.h"
#include "net/frame.h"

typedef enum PacketKind {
    PACKET_OTHER, /* compared as a whole frame */
    PACKET_PASS,  /* ARP, ND, RS, IGMP, MLD, LLDP, STP: never compared */
    PACKET_TCP,
    PACKET_UDP,
    PACKET_ICMP,     /* and ICMPv6 */
    PACKET_IP,       /* another IP protocol */
    PACKET_FRAGMENT, /* a part of an IP datagram */
} PacketKind;

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_PSH 0x08
#define TCP_ACK 0x10
#define TCP_URG 0x20
#define TCP_ECE 0x40
#define TCP_CWR 0x80

#define PACKET_SACK_MAX 4

typedef struct Packet {
    PacketKind kind;
    bool solicit;      /* PASS: an ARP request or a neighbour solicitation */
    bool csum_partial; /* the checksum covers the pseudo header alone (vnet header) */
    uint32_t l3, l4;   /* offsets of the headers; l4 is 0 where there is none */
    uint32_t body, body_len; /* payload; of ICMP, OTHER: all that is compared */
    /* TCP */
    uint32_t seq, ack;
    uint16_t win, urg;
    uint8_t flags;
    /* TCP options */
    bool has_ts, has_mss, sack_ok, has_md5, has_tfo, has_wscale;
    uint8_t wscale, n_sack;
    uint16_t mss;
    uint16_t ts_at;   /* offset of TSval in the frame; TSecr is at + 4 */
    uint16_t sack_at; /* offset of the first SACK block in the frame */
    uint32_t tsval, tsecr;
    FlowKey key;
} Packet;

/** Parse @f; @from_guest tells which address is the guest's. */
void packet_parse(const Frame *f, bool from_guest, Packet *p);

static inline uint16_t get_be16(const void *p)
{
    const uint8_t *b = p;
    return (uint16_t)(b[0] << 8 | b[1]);
}

static inline uint32_t get_be32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return GUINT32_FROM_BE(v);
}

static inline void put_be16(void *p, uint16_t v)
{
    v = GUINT16_TO_BE(v);
    memcpy(p, &v, 2);
}

static inline void put_be32(void *p, uint32_t v)
{
    v = GUINT32_TO_BE(v);
    memcpy(p, &v, 4);
}

/** Overwrite @len bytes at @at of a writable frame with a TCP header at @l4, and bring
 * its checksum up to date (not where it is @partial). */
void packet_tcp_put(Frame *f, uint32_t l4, bool partial, uint32_t at, const void *bytes,
                    uint32_t len);
void packet_tcp_put16(Frame *f, uint32_t l4, bool partial, uint32_t at, uint16_t v);
void packet_tcp_put32(Frame *f, uint32_t l4, bool partial, uint32_t at, uint32_t v);

/** Whether the vnet header of @f says that the checksum is partial. */
bool packet_csum_partial(const Frame *f);

typedef struct PacketAck {
    const uint8_t *l2;
    uint32_t l2_len;
    const FlowKey *key;
    uint32_t seq, ack;
    uint16_t win;
    bool has_ts;
    uint32_t tsval, tsecr;
    uint16_t vnet_len; /* a zeroed vnet header of this length comes first */
} PacketAck;

/** A pure ACK from the guest to the client of @a->key, with checksums. */
Frame *packet_make_ack(const PacketAck *a);

/** Whether the checksum of the IPv4 header at @ip is right. */
static inline bool packet_ipv4_sum_ok(const uint8_t *ip)
{
    uint32_t sum = 0;

    for (unsigned i = 0; i < (ip[0] & 15u) * 4; i += 4) {
        uint32_t v;
        memcpy(&v, ip + i, 4); /* in any byte order: the sum is the same, swapped */
        sum += (v >> 16) + (v & 0xffff);
    }
    sum = (sum >> 16) + (sum & 0xffff);
    return ((sum >> 16) + (sum & 0xffff)) == 0xffff;
}

/** Whether the checksum of a TCP frame is right, or partial. */
bool packet_tcp_sum_ok(const Frame *f);

/** Write all checksums of a TCP frame anew (tests, takeover). */
void packet_tcp_checksum(Frame *f, const Packet *p);

#endif
