/*
 * Guest RAM on the primary: the last committed versions of pages that change often.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: send a difference where only a few bytes of a page changed.
 *
 * Invariant: a page that is kept here is, byte by byte, what the secondary's cache has. Only
 * pages of a checkpoint that the secondary has loaded come in, each time they were part of
 * one, so that a kept page is never an old one; a new connection begins with nothing.
 *
 * Of bounded size (xbzrle-cache-size): each page has one place. It is taken from the page
 * that holds it once that was not sent for some checkpoints.
 */
#include "migration/ram-private.h"

#include <string.h>
#include <sys/mman.h>

#define STAY 8 /* checkpoints for which a page keeps its place without being sent */

struct RamBase {
    uint64_t places, used;
    uint32_t round;
    uint8_t *data;
    uint64_t *page;  /* number + 1 of the page at each place, or 0 */
    uint32_t *round_of; /* when it was last sent */
};

bool ram_base_init(Ram *r, uint64_t bytes, GError **errp)
{
    ram_base_drop(r);
    uint64_t places = MIN(bytes >> COLO_PAGE_SHIFT, r->pages);
    if (!places) {
        return true;
    }
    uint8_t *data = ram_map_private(places << COLO_PAGE_SHIFT, errp);
    if (!data) {
        return false;
    }
    r->base = g_new0(RamBase, 1);
    *r->base = (RamBase){
        .places = places,
        .data = data,
        .page = g_new0(uint64_t, places),
        .round_of = g_new0(uint32_t, places),
    };
    return true;
}

void ram_base_drop(Ram *r)
{
    if (r->base) {
        munmap(r->base->data, r->base->places << COLO_PAGE_SHIFT);
        g_free(r->base->page);
        g_free(r->base->round_of);
        g_clear_pointer(&r->base, g_free);
    }
}

uint64_t ram_base_bytes(const Ram *r)
{
    return r->base ? __atomic_load_n(&r->base->used, __ATOMIC_RELAXED) << COLO_PAGE_SHIFT : 0;
}

const uint8_t *ram_base_find(const Ram *r, uint64_t page)
{
    const RamBase *b = r->base;
    uint64_t at = b ? page % b->places : 0;

    return b && b->page[at] == page + 1 ? b->data + (at << COLO_PAGE_SHIFT) : NULL;
}

void ram_committed(Ram *r)
{
    RamBase *b = r->base;

    if (!b) {
        return;
    }
    b->round++;
    for (uint64_t s = 0; s < r->n_staged; s++) {
        uint64_t page = r->page_of[s], at = page % b->places;
        bool mine = b->page[at] == page + 1;
        if (!mine && b->page[at] && b->round - b->round_of[at] <= STAY) {
            continue;
        }
        __atomic_store_n(&b->used, b->used + !b->page[at], __ATOMIC_RELAXED);
        b->page[at] = page + 1;
        b->round_of[at] = b->round;
        memcpy(b->data + (at << COLO_PAGE_SHIFT), r->staging + (s << COLO_PAGE_SHIFT),
               COLO_PAGE_SIZE);
    }
}
