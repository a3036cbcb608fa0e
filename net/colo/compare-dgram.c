/*
 * The comparison engine: datagrams, and what is never compared.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A datagram (UDP, ICMP, another protocol, a fragment, a whole frame of an unknown type)
 * leaves when the SVM has sent an equal one of the same flow, one for one, in any order.
 * Both sides' datagrams wait in one hash table; equal hashes are checked byte by byte.
 * A fragment is a datagram of its own, told apart by offset and "more" but not by id: the
 * same guest splits the same datagram in the same way on both sides.
 */
#include "compare-int.h"

#define SVM_DGRAM_AGE (2 * G_USEC_PER_SEC) /* then its twin will not come */
#define NEIGHBOUR_GRACE (200 * 1000)

/* Whether the guest asks here: its port, an id in the datagram, or its clock is random, and
 * the twin will not say the same. */
bool compare_is_query(const FlowKey *k)
{
    if (k->kind != PACKET_UDP) {
        return false;
    }
    if (k->guest_port >= 32768 && k->client_port < 1024) {
        return true; /* from a port that the kernel chose to one that serves */
    }
    switch (k->client_port) {
    case 53:   /* DNS, random id */
    case 67:   /* DHCP */
    case 123:  /* NTP, own clock */
    case 547:  /* DHCPv6 */
    case 1900: /* SSDP, random delays; so have these two: */
    case 5353: /* mDNS */
    case 5355: /* LLMNR */
        return true;
    default:
        return false;
    }
}

/* Who in the table equals @f, of either side. It cannot be both: equal datagrams of both
 * sides match at once. */
static Item *find_equal(CompareEngine *e, CompareFlow *fl, const Frame *f, const Packet *p,
                        uint64_t hash)
{
    for (Item *it = e->dgrams[hash & e->dgram_mask]; it; it = it->snext) {
        e->stats.steps++;
        if (it->hash == hash && it->flow == fl && it->body_len == p->body_len &&
            memcmp(it->f->data + it->body, f->data + p->body, p->body_len) == 0) {
            return it;
        }
    }
    return NULL;
}

/* Only the oldest of equal datagrams stands in the table; the others queue behind it, in
 * a ring through fnext and fprev. */
static void keep(CompareEngine *e, CompareFlow *fl, Frame *f, const Packet *p,
                 uint64_t hash, bool primary, Item *first)
{
    Item *it = compare_item_new(e, fl, f, primary);
    Item **bucket = &e->dgrams[hash & e->dgram_mask];

    it->kind = ITEM_DGRAM;
    it->hash = hash;
    it->body = p->body;
    it->body_len = p->body_len;
    it->in_stream = true;
    if (first) {
        it->follows = true;
        it->fnext = first;
        it->fprev = first->fprev;
        first->fprev->fnext = it;
        first->fprev = it;
        return;
    }
    it->fnext = it->fprev = it;
    it->snext = *bucket;
    if (*bucket) {
        (*bucket)->sprev = it;
    }
    *bucket = it;
}

void compare_dgram_unlink(CompareEngine *e, Item *it)
{
    Item *next = it->fnext;

    it->fprev->fnext = next;
    next->fprev = it->fprev;
    if (it->follows) {
        return;
    }
    if (next != it) { /* which takes its place in the table */
        next->follows = false;
        next->sprev = it->sprev;
        next->snext = it->snext;
    } else {
        next = it->snext;
    }
    if (it->sprev) {
        it->sprev->snext = next;
    } else {
        e->dgrams[it->hash & e->dgram_mask] = next;
    }
    if (it->snext) {
        it->snext->sprev = it->fnext != it ? next : it->sprev;
    }
}

static uint64_t hash_of(CompareEngine *e, CompareFlow *fl, const Frame *f,
                        const Packet *p)
{
    return flow_hash_bytes(f->data + p->body, p->body_len,
                           e->seed ^ ((uintptr_t)fl * 0x9e3779b97f4a7c15u));
}

void compare_dgram_primary(CompareEngine *e, CompareFlow *fl, Frame *f, const Packet *p)
{
    uint64_t hash = hash_of(e, fl, f, p);
    Item *equal = find_equal(e, fl, f, p, hash);

    if (equal && !equal->primary) {
        compare_item_drop(e, equal);
        compare_sample_lag(e, e->now);
        e->stats.equal++;
        compare_release(e, f);
        compare_flow_wait(e, fl, true);
        return;
    }
    keep(e, fl, f, p, hash, true, equal);
    compare_flow_wait(e, fl, false);
    compare_backlog(e, fl);
}

void compare_dgram_secondary(CompareEngine *e, CompareFlow *fl, Frame *f, const Packet *p)
{
    uint64_t hash = hash_of(e, fl, f, p);
    Item *equal = find_equal(e, fl, f, p, hash);

    if (!equal || !equal->primary) {
        keep(e, fl, f, p, hash, false, equal);
        return;
    }
    compare_sample_lag(e, equal->stamp);
    e->stats.equal++;
    compare_release(e, compare_item_take(e, equal));
    frame_unref(f);
    compare_flow_wait(e, fl, true);
}

/* --- Never compared --- */

static void neighbour_remove(CompareEngine *e, uint32_t i)
{
    frame_unref(e->neighbours[i].f);
    e->neighbours[i] = e->neighbours[--e->n_neighbours];
}

static void neighbour_add(CompareEngine *e, uint64_t hash, Frame *f)
{
    if (e->n_neighbours == NEIGHBOURS) {
        uint32_t oldest = 0;
        for (uint32_t i = 1; i < NEIGHBOURS; i++) {
            if (e->neighbours[i].when < e->neighbours[oldest].when) {
                oldest = i;
            }
        }
        e->stats.svm_dropped += e->neighbours[oldest].f != NULL;
        neighbour_remove(e, oldest);
    }
    e->neighbours[e->n_neighbours++] = (Neighbour){hash, e->now, f};
}

void compare_pass_primary(CompareEngine *e, Frame *f, const Packet *p)
{
    if (p->solicit && e->mode == COMPARE_MODE_COMPARE) {
        uint64_t hash = flow_hash_bytes(f->data, f->len, e->seed);

        for (uint32_t i = 0; i < e->n_neighbours;) {
            if (e->neighbours[i].hash == hash) {
                neighbour_remove(e, i);
            } else {
                i++;
            }
        }
        neighbour_add(e, hash, NULL);
    }
    compare_release(e, f);
}

void compare_pass_secondary(CompareEngine *e, Frame *f, const Packet *p)
{
    uint64_t hash;

    if (!p->solicit || e->mode != COMPARE_MODE_COMPARE) {
        frame_unref(f);
        return;
    }
    hash = flow_hash_bytes(f->data, f->len, e->seed);
    for (uint32_t i = 0; i < e->n_neighbours; i++) {
        if (e->neighbours[i].hash == hash &&
            e->now - e->neighbours[i].when < NEIGHBOUR_GRACE) {
            frame_unref(f); /* the PVM asked the same, or it waits already */
            return;
        }
    }
    neighbour_add(e, hash, f);
}

void compare_pass_clear(CompareEngine *e)
{
    while (e->n_neighbours) {
        neighbour_remove(e, 0);
    }
}

int64_t compare_dgram_tick(CompareEngine *e, int64_t now)
{
    int64_t next = INT64_MAX;
    Item *it;

    for (uint32_t i = 0; i < e->n_neighbours;) {
        Neighbour *n = &e->neighbours[i];

        if (now - n->when >= NEIGHBOUR_GRACE) {
            if (n->f) {
                e->stats.svm_forwarded++;
                compare_release(e, frame_ref(n->f));
            }
            neighbour_remove(e, i);
            continue;
        }
        if (n->f) {
            next = MIN(next, n->when + NEIGHBOUR_GRACE);
        }
        i++;
    }
    while ((it = e->kept_dgrams.head) && now - it->stamp >= SVM_DGRAM_AGE) {
        e->stats.svm_dropped++;
        compare_item_drop(e, it);
    }
    if (it) {
        next = MIN(next, it->stamp + SVM_DGRAM_AGE);
    }
    return next;
}
