/*
 * Rings of frames that wait with the place where they enter the chain.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "net/net-int.h"

void entry_ring_init(EntryRing *r, unsigned cap)
{
    r->e = g_new(ChainEntry, cap);
    r->cap = cap;
    r->head = r->count = 0;
}

void entry_ring_clear(EntryRing *r)
{
    while (r->count) {
        ChainEntry e = entry_ring_pop(r);
        frame_unref(e.frame);
        frame_unref(e.delivered);
    }
}

void entry_ring_free(EntryRing *r)
{
    entry_ring_clear(r);
    g_free(r->e);
    r->e = NULL;
    r->cap = 0;
}

static void entry_ring_grow(EntryRing *r)
{
    ChainEntry *n = g_new(ChainEntry, r->cap * 2);

    for (unsigned i = 0; i < r->count; i++) {
        n[i] = *entry_ring_at(r, i);
    }
    g_free(r->e);
    r->e = n;
    r->cap *= 2;
    r->head = 0;
}

void entry_ring_push(EntryRing *r, Frame *f, Frame *delivered, NetFilter *after)
{
    if (r->count == r->cap) {
        entry_ring_grow(r);
    }
    *entry_ring_at(r, r->count++) = (ChainEntry){f, delivered, after};
}

ChainEntry entry_ring_pop(EntryRing *r)
{
    ChainEntry e = r->e[r->head];

    r->head = (r->head + 1) & (r->cap - 1);
    r->count--;
    return e;
}

void entry_ring_replace(EntryRing *r, NetFilter *gone, NetFilter *instead)
{
    for (unsigned i = 0; i < r->count; i++) {
        ChainEntry *e = entry_ring_at(r, i);
        if (e->after == gone) {
            e->after = instead;
        }
    }
}
