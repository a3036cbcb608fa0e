/*
 * Flow keys: hashing, names, their form on the wire.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include "net/flow.h"
#include "net/packet.h"

static inline uint64_t load64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

/* One 64 x 64 -> 128 bit product, folded: the mixing step. */
static inline uint64_t mix(uint64_t a, uint64_t b)
{
    __extension__ unsigned __int128 m = (unsigned __int128)a * b;
    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

/* Each lane multiplies by something that depends on the seed on both sides: nobody who
 * does not know it can make a product zero and with that all that came before it. */
uint64_t flow_hash_bytes(const void *data, size_t len, uint64_t seed)
{
    const uint64_t k0 = 0x9e3779b97f4a7c15u, k1 = 0xd6e8feb86659fd93u;
    const uint8_t *p = data;
    uint64_t s1 = mix(seed ^ k0, k1), h = seed ^ mix(len ^ k0, k1);
    size_t n = len;

    if (n >= 64) { /* four lanes at once: a product takes longer than it takes to begin one */
        uint64_t s2 = s1 * k0, s3 = s1 * k1, s4 = s1 ^ k0, h2 = h, h3 = h, h4 = h;

        for (; n >= 64; n -= 64, p += 64) {
            h = mix(load64(p) ^ s1, load64(p + 8) ^ h);
            h2 = mix(load64(p + 16) ^ s2, load64(p + 24) ^ h2);
            h3 = mix(load64(p + 32) ^ s3, load64(p + 40) ^ h3);
            h4 = mix(load64(p + 48) ^ s4, load64(p + 56) ^ h4);
        }
        h ^= (h2 << 17 | h2 >> 47) ^ (h3 << 31 | h3 >> 33) ^ (h4 << 47 | h4 >> 17);
    }
    for (; n >= 16; n -= 16, p += 16) {
        h = mix(load64(p) ^ s1, load64(p + 8) ^ h);
    }
    if (n) {
        uint8_t tail[16] = {0};
        memcpy(tail, p, n);
        h = mix(load64(tail) ^ s1, load64(tail + 8) ^ h);
    }
    return mix(h ^ k0, s1);
}

uint64_t flow_key_hash(const FlowKey *k, uint64_t seed)
{
    const uint64_t k0 = 0x9e3779b97f4a7c15u, k1 = 0xd6e8feb86659fd93u;
    const uint8_t *p = (const uint8_t *)k;
    uint64_t s1 = seed * k0 + k1, s2 = seed ^ k1, s3 = (seed << 32 | seed >> 32) ^ k0;
    uint32_t last;

    memcpy(&last, p + 40, 4);
    /* The three products do not wait for each other. */
    return mix(mix(load64(p) ^ s1, load64(p + 16) ^ s2) ^
                   mix(load64(p + 8) ^ s2, load64(p + 24) ^ s3) ^ last,
               mix(load64(p + 32) ^ s3, s1) ^ s2);
}

uint8_t *flow_key_put(uint8_t *o, const FlowKey *k)
{
    memcpy(o, k->guest, 16);
    memcpy(o + 16, k->client, 16);
    put_be16(o + 32, k->guest_port);
    put_be16(o + 34, k->client_port);
    put_be32(o + 36, k->vlan);
    put_be16(o + 40, k->ethertype);
    o[42] = k->proto;
    o[43] = k->kind;
    return o + FLOW_KEY_WIRE;
}

const uint8_t *flow_key_get(const uint8_t *i, FlowKey *k)
{
    memcpy(k->guest, i, 16);
    memcpy(k->client, i + 16, 16);
    k->guest_port = get_be16(i + 32);
    k->client_port = get_be16(i + 34);
    k->vlan = get_be32(i + 36);
    k->ethertype = get_be16(i + 40);
    k->proto = i[42];
    k->kind = i[43];
    return i + FLOW_KEY_WIRE;
}

static const char *proto_name(const FlowKey *k)
{
    if (k->kind == PACKET_FRAGMENT) {
        return "fragment";
    }
    switch (k->proto) {
    case IPPROTO_TCP:
        return "tcp";
    case IPPROTO_UDP:
        return "udp";
    case IPPROTO_ICMP:
        return "icmp";
    case IPPROTO_ICMPV6:
        return "icmp6";
    default:
        return "ip";
    }
}

const char *flow_key_name(const FlowKey *k, char *buf, size_t size)
{
    char a[INET6_ADDRSTRLEN], b[INET6_ADDRSTRLEN];

    if (k->ethertype == 0x0800 || k->ethertype == 0x86dd) {
        int af = k->ethertype == 0x0800 ? AF_INET : AF_INET6;
        inet_ntop(af, k->guest, a, sizeof(a));
        inet_ntop(af, k->client, b, sizeof(b));
        if (k->kind == PACKET_TCP || k->kind == PACKET_UDP) {
            g_snprintf(buf, size, "%s %s:%u > %s:%u", proto_name(k), a, k->guest_port, b,
                       k->client_port);
        } else {
            g_snprintf(buf, size, "%s %s > %s (protocol %u)", proto_name(k), a, b,
                       k->proto);
        }
        return buf;
    }
    g_snprintf(buf, size, "ethertype 0x%04x to %02x:%02x:%02x:%02x:%02x:%02x",
               k->ethertype, k->client[0], k->client[1], k->client[2], k->client[3],
               k->client[4], k->client[5]);
    return buf;
}
