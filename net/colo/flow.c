/*
 * Flow keys: hashing and names.
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

uint64_t flow_hash_bytes(const void *data, size_t len, uint64_t seed)
{
    const uint64_t k0 = 0x9e3779b97f4a7c15u, k1 = 0xd6e8feb86659fd93u;
    const uint8_t *p = data;
    uint64_t h = seed ^ mix(len ^ k0, k1);
    size_t n = len;

    for (; n >= 16; n -= 16, p += 16) {
        h = mix(load64(p) ^ k1, load64(p + 8) ^ h);
    }
    if (n) {
        uint8_t tail[16] = {0};
        memcpy(tail, p, n);
        h = mix(load64(tail) ^ k1, load64(tail + 8) ^ h);
    }
    return mix(h ^ k0, seed ^ k1);
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
