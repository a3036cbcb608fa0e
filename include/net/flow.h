/*
 * Flow keys: what names a conversation of the guest.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A key is always written from the guest's point of view, whichever way the frame went,
 * so that both directions of a connection share one key. Keys are plain bytes without
 * holes: equal keys are equal memory.
 */
#ifndef COLO_NET_FLOW_H
#define COLO_NET_FLOW_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef struct FlowKey {
    uint8_t guest[16];  /* address on the guest's side: IPv6, IPv4 in the first 4, MAC */
    uint8_t client[16]; /* address of the other side */
    uint16_t guest_port, client_port; /* host order; 0 where there are none */
    uint32_t vlan;                    /* outer << 16 | inner, each with presence bit */
    uint16_t ethertype;               /* host order, after the VLAN tags */
    uint8_t proto;                    /* IP protocol, or 0 */
    uint8_t kind;                     /* PacketKind: fragments are flows of their own */
} FlowKey;

G_STATIC_ASSERT(sizeof(FlowKey) == 44);

#define FLOW_VLAN_PRESENT 0x8000u

static inline bool flow_key_equal(const FlowKey *a, const FlowKey *b)
{
    return memcmp(a, b, sizeof(*a)) == 0;
}

/** A hash of @len bytes at @data keyed with @seed; fast, not for adversaries alone:
 * whoever needs certainty compares the bytes too. */
uint64_t flow_hash_bytes(const void *data, size_t len, uint64_t seed);

uint64_t flow_key_hash(const FlowKey *k, uint64_t seed);

/** A key on the wire: FLOW_KEY_WIRE bytes, big-endian, members in their order. Both return
 * the place behind it. */
#define FLOW_KEY_WIRE 44
uint8_t *flow_key_put(uint8_t *o, const FlowKey *k);
const uint8_t *flow_key_get(const uint8_t *i, FlowKey *k);

/** "tcp 10.0.0.2:80 > 10.0.0.9:40000" into @buf (FLOW_NAME_MAX bytes are enough). */
#define FLOW_NAME_MAX 160
const char *flow_key_name(const FlowKey *k, char *buf, size_t size);

/* Sequence numbers wrap: a is after b if it is less than 2^31 ahead. */
static inline bool seq_lt(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

static inline bool seq_le(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) <= 0;
}

static inline uint32_t seq_max(uint32_t a, uint32_t b)
{
    return seq_lt(a, b) ? b : a;
}

static inline uint32_t seq_min(uint32_t a, uint32_t b)
{
    return seq_lt(a, b) ? a : b;
}

#endif
