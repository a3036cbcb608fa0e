/*
 * Packets: parsing.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Ethernet with up to two VLAN tags; IPv4 and IPv6 with extension headers; TCP with its
 * options, UDP, ICMP. Nothing is believed before it is checked against the frame's end.
 */
#include <netinet/in.h>
#include "net/packet.h"

#define ETH_VLAN 0x8100
#define ETH_QINQ 0x88a8
#define ETH_IPV4 0x0800
#define ETH_IPV6 0x86dd
#define ETH_ARP 0x0806
#define ETH_RARP 0x8035
#define ETH_LLDP 0x88cc
#define VNET_NEEDS_CSUM 1

bool packet_csum_partial(const Frame *f)
{
    return f->vnet_len > 0 && (f->data[-(int)f->vnet_len] & VNET_NEEDS_CSUM);
}

static void set_addresses(Packet *p, const uint8_t *src, const uint8_t *dst, size_t len,
                          bool from_guest)
{
    memcpy(p->key.guest, from_guest ? src : dst, len);
    memcpy(p->key.client, from_guest ? dst : src, len);
}

static void set_ports(Packet *p, uint16_t src, uint16_t dst, bool from_guest)
{
    p->key.guest_port = from_guest ? src : dst;
    p->key.client_port = from_guest ? dst : src;
}

static void make_other(const Frame *f, bool from_guest, Packet *p, uint16_t type)
{
    p->kind = PACKET_OTHER;
    p->l3 = p->l4 = 0;
    p->body = 0;
    p->body_len = f->len;
    memset(&p->key, 0, sizeof(p->key));
    p->key.kind = PACKET_OTHER;
    p->key.ethertype = type;
    if (f->len >= FRAME_MIN_ETH) {
        set_addresses(p, f->data + 6, f->data, 6, from_guest);
    }
}

static void parse_tcp_options(const Frame *f, Packet *p, uint32_t at, uint32_t end)
{
    const uint8_t *d = f->data;

    while (at < end) {
        uint8_t kind = d[at], len;

        if (kind == 0) {
            return;
        }
        if (kind == 1) {
            at++;
            continue;
        }
        if (at + 2 > end || (len = d[at + 1]) < 2 || at + len > end) {
            return; /* the rest cannot be told apart */
        }
        switch (kind) {
        case 2:
            if (len == 4) {
                p->has_mss = true;
                p->mss = get_be16(d + at + 2);
            }
            break;
        case 3:
            if (len == 3) {
                p->has_wscale = true;
                p->wscale = MIN(d[at + 2], 14);
            }
            break;
        case 4:
            p->sack_ok = true;
            break;
        case 5:
            if (len >= 10 && (len - 2) % 8 == 0 && (len - 2) / 8 <= PACKET_SACK_MAX) {
                p->n_sack = (len - 2) / 8;
                p->sack_at = at + 2;
            }
            break;
        case 8:
            if (len == 10) {
                p->has_ts = true;
                p->ts_at = at + 2;
                p->tsval = get_be32(d + at + 2);
                p->tsecr = get_be32(d + at + 6);
            }
            break;
        case 19:
        case 29:
            p->has_md5 = true;
            break;
        case 34:
            p->has_tfo = true;
            break;
        }
        at += len;
    }
}

/* @l4 .. @end: what IP carries. False: not a TCP segment of sound lengths. */
static bool parse_tcp(const Frame *f, bool from_guest, Packet *p, uint32_t l4,
                      uint32_t end)
{
    const uint8_t *t = f->data + l4;
    uint32_t hlen;

    if (end - l4 < 20) {
        return false;
    }
    hlen = (t[12] >> 4) * 4;
    if (hlen < 20 || hlen > end - l4) {
        return false;
    }
    p->kind = PACKET_TCP;
    set_ports(p, get_be16(t), get_be16(t + 2), from_guest);
    p->seq = get_be32(t + 4);
    p->ack = get_be32(t + 8);
    p->flags = t[13];
    p->win = get_be16(t + 14);
    p->urg = get_be16(t + 18);
    p->body = l4 + hlen;
    p->body_len = end - p->body;
    if (hlen > 20) {
        parse_tcp_options(f, p, l4 + 20, p->body);
    }
    return true;
}

static bool parse_l4(const Frame *f, bool from_guest, Packet *p, uint32_t l4,
                     uint32_t end, uint8_t proto)
{
    const uint8_t *t = f->data + l4;
    bool v6 = p->key.ethertype == ETH_IPV6;

    p->l4 = l4;
    p->body = l4;
    p->body_len = end - l4;
    p->key.proto = proto;
    p->kind = PACKET_IP;
    if (proto == IPPROTO_TCP) {
        return parse_tcp(f, from_guest, p, l4, end);
    }
    if (proto == IPPROTO_UDP) {
        uint32_t len;
        if (end - l4 < 8 || (len = get_be16(t + 4)) < 8 || len > end - l4) {
            return false;
        }
        p->kind = PACKET_UDP;
        set_ports(p, get_be16(t), get_be16(t + 2), from_guest);
        p->body = l4 + 8;
        p->body_len = len - 8;
        return true;
    }
    if (!v6 && proto == IPPROTO_ICMP) {
        p->kind = PACKET_ICMP;
        return end - l4 >= 4;
    }
    if (!v6 && proto == IPPROTO_IGMP) {
        p->kind = PACKET_PASS;
        return true;
    }
    if (v6 && proto == IPPROTO_ICMPV6) {
        if (end - l4 < 4) {
            return false;
        }
        p->kind = PACKET_ICMP;
        if ((t[0] >= 130 && t[0] <= 137) || t[0] == 143) { /* MLD, ND */
            p->kind = PACKET_PASS;
            p->solicit = t[0] == 135;
        }
    }
    return true;
}

static bool parse_ipv4(const Frame *f, bool from_guest, Packet *p, uint32_t l3)
{
    const uint8_t *ip = f->data + l3;
    uint32_t left = f->len - l3, hlen, total;
    uint16_t frag;

    if (left < 20 || ip[0] >> 4 != 4) {
        return false;
    }
    hlen = (ip[0] & 15) * 4;
    total = get_be16(ip + 2);
    if (hlen < 20 || total < hlen || total > left) {
        return false;
    }
    set_addresses(p, ip + 12, ip + 16, 4, from_guest);
    frag = get_be16(ip + 6);
    if (frag & 0x3fff) {
        p->kind = PACKET_FRAGMENT;
        p->key.proto = ip[9];
        p->key.guest_port = frag & 0x3fff; /* offset and "more": part of what is equal */
        p->body = l3 + hlen;
        p->body_len = total - hlen;
        return true;
    }
    return parse_l4(f, from_guest, p, l3 + hlen, l3 + total, ip[9]);
}

static bool parse_ipv6(const Frame *f, bool from_guest, Packet *p, uint32_t l3)
{
    const uint8_t *ip = f->data + l3;
    uint32_t left = f->len - l3, at, end;
    uint8_t next;

    if (left < 40 || ip[0] >> 4 != 6 || 40u + get_be16(ip + 4) > left) {
        return false;
    }
    set_addresses(p, ip + 8, ip + 24, 16, from_guest);
    next = ip[6];
    at = l3 + 40;
    end = at + get_be16(ip + 4);
    for (;;) {
        const uint8_t *x = f->data + at;
        uint32_t len;

        switch (next) {
        case IPPROTO_HOPOPTS:
        case IPPROTO_ROUTING:
        case IPPROTO_DSTOPTS:
        case 135: /* mobility */
            if (end - at < 8 || (len = (x[1] + 1u) * 8) > end - at) {
                return false;
            }
            break;
        case IPPROTO_FRAGMENT:
            if (end - at < 8) {
                return false;
            }
            p->kind = PACKET_FRAGMENT;
            p->key.proto = x[0];
            p->key.guest_port = get_be16(x + 2);
            p->body = at + 8;
            p->body_len = end - p->body;
            return true;
        default:
            return parse_l4(f, from_guest, p, at, end, next);
        }
        next = x[0];
        at += len;
    }
}

void packet_parse(const Frame *f, bool from_guest, Packet *p)
{
    const uint8_t *d = f->data;
    uint32_t at = 12, vlan = 0, tags = 0;
    uint16_t type;

    memset(p, 0, sizeof(*p));
    if (f->len < FRAME_MIN_ETH) {
        make_other(f, from_guest, p, 0);
        return;
    }
    p->csum_partial = packet_csum_partial(f);
    type = get_be16(d + at);
    while ((type == ETH_VLAN || type == ETH_QINQ) && tags < 2 && at + 6 <= f->len) {
        vlan = vlan << 16 | FLOW_VLAN_PRESENT | (get_be16(d + at + 2) & 0xfff);
        at += 4;
        tags++;
        type = get_be16(d + at);
    }
    p->l3 = at + 2;
    p->key.vlan = vlan;
    p->key.ethertype = type;
    if (type == ETH_ARP || type == ETH_RARP || type == ETH_LLDP) {
        p->kind = PACKET_PASS;
        p->body_len = f->len;
        p->solicit =
            type == ETH_ARP && p->l3 + 8 <= f->len && get_be16(d + p->l3 + 6) == 1;
        return;
    }
    if (type < 0x600 && (d[0] & 1) && d[0] == 0x01 && d[1] == 0x80 && d[2] == 0xc2) {
        p->kind = PACKET_PASS; /* spanning tree and its kin */
        p->body_len = f->len;
        return;
    }
    if (type == ETH_IPV4 ? parse_ipv4(f, from_guest, p, p->l3)
                         : type == ETH_IPV6 && parse_ipv6(f, from_guest, p, p->l3)) {
        p->key.kind = p->kind;
        return;
    }
    make_other(f, from_guest, p, type);
}
