/*
 * Announcements: telling the network where the guest is now.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Addresses are learnt from what the guest sends. ARP and neighbour discovery name them
 * for certain. A plain IP source may belong to someone behind the guest (a router), so at
 * most IP_LEARN_MAX are believed for the table; one more and all of that kind are dropped.
 */
#include <string.h>

#include "net/net-int.h"

#define TABLE_MAX 64
#define IP_LEARN_MAX 8
#define NO_VLAN 0xffff

typedef struct Addr {
    uint8_t mac[6];
    uint16_t vlan; /* tag control without priority, or NO_VLAN */
    uint8_t len;   /* 4, 16, or 0: the MAC alone */
    bool sure;     /* named by ARP or neighbour discovery */
    uint8_t ip[16];
} Addr;

struct AnnounceTable {
    Addr a[TABLE_MAX];
    unsigned n, last; /* @last: index of the most recent hit */
    bool router;      /* IP sources are not learnt any more */
};

AnnounceTable *announce_table_new(void)
{
    return g_new0(AnnounceTable, 1);
}

void announce_table_free(AnnounceTable *t)
{
    g_free(t);
}

static bool addr_same(const Addr *a, const Addr *b)
{
    return a->len == b->len && a->vlan == b->vlan && memcmp(a->mac, b->mac, 6) == 0 &&
           memcmp(a->ip, b->ip, a->len) == 0;
}

static void drop_at(AnnounceTable *t, unsigned i)
{
    memmove(&t->a[i], &t->a[i + 1], (t->n - i - 1) * sizeof(t->a[0]));
    t->n--;
    t->last = 0;
}

/* Many IP sources behind one MAC: the guest routes, none of them need be its own. */
static bool count_unsure(AnnounceTable *t)
{
    unsigned unsure = 0;

    for (unsigned i = 0; i < t->n; i++) {
        unsure += t->a[i].len && !t->a[i].sure;
    }
    if (unsure < IP_LEARN_MAX) {
        return true;
    }
    t->router = true;
    for (unsigned i = t->n; i-- > 0;) {
        if (t->a[i].len && !t->a[i].sure) {
            drop_at(t, i);
        }
    }
    return false;
}

static void learn(AnnounceTable *t, const Addr *x)
{
    if (t->n && addr_same(&t->a[t->last], x) && (t->a[t->last].sure || !x->sure)) {
        return;
    }
    for (unsigned i = 0; i < t->n; i++) {
        if (addr_same(&t->a[i], x)) {
            t->a[i].sure |= x->sure;
            t->last = i;
            return;
        }
    }
    if (x->len && !x->sure && (t->router || !count_unsure(t))) {
        return;
    }
    for (unsigned i = 0; x->sure && i < t->n; i++) {
        /* The address moved to another MAC of the guest. */
        Addr *a = &t->a[i];
        if (a->len == x->len && a->vlan == x->vlan && !memcmp(a->ip, x->ip, x->len)) {
            drop_at(t, i);
            break;
        }
    }
    if (t->n == TABLE_MAX) {
        drop_at(t, 0);
    }
    t->last = t->n;
    t->a[t->n++] = *x;
    colo_trace(net_learn, "address %u of %u bytes, %s", t->n, x->len,
               x->sure ? "named" : "seen");
}

void announce_set_mac(AnnounceTable *t, const uint8_t mac[6])
{
    Addr x = {.vlan = NO_VLAN, .sure = true};

    memcpy(x.mac, mac, 6);
    for (unsigned i = 0; i < t->n; i++) {
        if (addr_same(&t->a[i], &x)) {
            return;
        }
    }
    if (t->n < TABLE_MAX) {
        t->a[t->n++] = x;
    }
}

static uint16_t be16(const uint8_t *p)
{
    return p[0] << 8 | p[1];
}

static bool all_zero(const uint8_t *p, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (p[i]) {
            return false;
        }
    }
    return true;
}

void announce_learn(AnnounceTable *t, const Frame *f)
{
    const uint8_t *p = f->data, *end = p + f->len;
    Addr x = {.vlan = NO_VLAN};

    if (f->len < FRAME_MIN_ETH || (p[6] & 1)) {
        return;
    }
    memcpy(x.mac, p + 6, 6);
    uint16_t proto = be16(p + 12);
    p += 14;
    if (proto == 0x8100 && end - p >= 4) {
        x.vlan = be16(p) & 0xfff;
        proto = be16(p + 2);
        p += 4;
    }
    if (proto == 0x0806 && end - p >= 28 && be16(p + 2) == 0x0800 && p[5] == 4) {
        x.len = 4;
        x.sure = true;
        memcpy(x.mac, p + 8, 6);
        memcpy(x.ip, p + 14, 4);
    } else if (proto == 0x0800 && end - p >= 20 && p[12] < 224) {
        x.len = 4;
        memcpy(x.ip, p + 12, 4);
    } else if (proto == 0x86dd && end - p >= 40 && p[8] != 0xff) {
        x.len = 16;
        memcpy(x.ip, p + 8, 16);
        if (p[6] == 58 && end - p >= 64 && (p[40] == 135 || p[40] == 136)) {
            x.sure = true;
            if (p[40] == 136) {
                memcpy(x.ip, p + 48, 16); /* the advertised target */
            }
        }
    }
    if (x.len && all_zero(x.ip, x.len)) {
        x.len = 0;
        x.sure = false;
    }
    learn(t, &x);
}

/* --- Frames --- */

static uint8_t *put_head(Frame *f, const Addr *a, const uint8_t dst[6], uint16_t proto)
{
    uint8_t *p = f->data;

    memset(p, 0, f->len);
    memcpy(p, dst, 6);
    memcpy(p + 6, a->mac, 6);
    p += 12;
    if (a->vlan != NO_VLAN) {
        p[0] = 0x81;
        p[2] = a->vlan >> 8;
        p[3] = a->vlan;
        p += 4;
    }
    p[0] = proto >> 8;
    p[1] = proto;
    return p + 2;
}

static const uint8_t broadcast[6] = {255, 255, 255, 255, 255, 255};

/* A gratuitous ARP request (0x0806, op 1), or a RARP request (0x8035, op 3). */
static Frame *make_arp(const Addr *a)
{
    bool rarp = a->len == 0;
    Frame *f = frame_new(a->vlan != NO_VLAN ? 64 : 60);
    uint8_t *p = put_head(f, a, broadcast, rarp ? 0x8035 : 0x0806);

    p[1] = 1;
    p[2] = 8;
    p[4] = 6;
    p[5] = 4;
    p[7] = rarp ? 3 : 1;
    memcpy(p + 8, a->mac, 6);
    memcpy(p + 14, a->ip, 4);
    if (rarp) {
        memcpy(p + 18, a->mac, 6);
    }
    memcpy(p + 24, a->ip, 4);
    return f;
}

/* An unsolicited neighbour advertisement to all nodes, override set. */
static Frame *make_na(const Addr *a)
{
    static const uint8_t all_nodes[6] = {0x33, 0x33, 0, 0, 0, 1};
    Frame *f = frame_new(14 + (a->vlan != NO_VLAN ? 4 : 0) + 40 + 32);
    uint8_t *p = put_head(f, a, all_nodes, 0x86dd);
    uint8_t *icmp = p + 40;

    p[0] = 0x60;
    p[5] = 32;
    p[6] = 58;
    p[7] = 255;
    memcpy(p + 8, a->ip, 16);
    p[24] = 0xff;
    p[25] = 0x02;
    p[39] = 1;
    icmp[0] = 136;
    icmp[4] = 0x20;
    memcpy(icmp + 8, a->ip, 16);
    icmp[24] = 2;
    icmp[25] = 1;
    memcpy(icmp + 26, a->mac, 6);
    uint32_t sum = 32 + 58;
    for (unsigned i = 8; i < 72; i += 2) { /* both addresses, then the message */
        sum += be16(p + i);
    }
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    icmp[2] = ~sum >> 8;
    icmp[3] = ~sum;
    return f;
}

void announce_each(AnnounceTable *t, void (*fn)(Frame *f, void *opaque), void *opaque)
{
    for (unsigned i = 0; i < t->n; i++) {
        const Addr *a = &t->a[i];
        bool known = false;
        for (unsigned k = 0; a->len == 0 && k < t->n; k++) {
            known |= t->a[k].len && memcmp(t->a[k].mac, a->mac, 6) == 0;
        }
        if (!known) {
            fn(a->len == 16 ? make_na(a) : make_arp(a), opaque);
        }
    }
}
