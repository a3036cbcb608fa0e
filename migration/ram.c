/*
 * Guest RAM in a checkpoint: mapping, staging, capture and transfer on the primary.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Staging is address space for all of RAM, of which only as much is populated as recent
 * epochs needed, doubled: a page beyond that costs a page fault in the pause, never an
 * error. That grows by steps, as a checkpoint may be waiting: a first touch takes 5 to 20 us
 * a page, and all at once it held one up for half a second after the guest had booted. What
 * an epoch has copied is populated by that. A page that is fetched twice in an epoch keeps
 * its slot, so that staging is bounded by RAM and each page travels once.
 */
#include "migration/ram-private.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "util/error.h"
#include "util/trace.h"

#define STAGING_MIN_PAGES (32u << 20 >> COLO_PAGE_SHIFT)
#define STAGING_STEP_PAGES (8u << 20 >> COLO_PAGE_SHIFT)

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

void *ram_map_private(uint64_t size, GError **errp)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        colo_error_set_errno(errp, errno, "%" G_GUINT64_FORMAT " MiB of address space",
                             size >> 20);
        return NULL;
    }
    return p;
}

/* Written to in the pause: no page faults then. */
static uint32_t *new_index(uint64_t pages, GError **errp)
{
    uint32_t *p = ram_map_private(pages * sizeof(uint32_t), errp);

    if (p) {
        madvise(p, pages * sizeof(uint32_t), MADV_POPULATE_WRITE);
    }
    return p;
}

Ram *ram_new(const RamMap *map, Tracker *tracker, GError **errp)
{
    Ram *r = g_new0(Ram, 1);

    r->map = map;
    r->pages = map->pages;
    r->size = r->pages << COLO_PAGE_SHIFT;
    r->tracker = tracker;
    g_mutex_init(&r->slot_lock);
    r->ram = map->base;
    if (!(r->slot_of = new_index(r->pages, errp)) ||
        !(r->page_of = new_index(r->pages, errp)) ||
        !(r->staging = ram_map_private(r->size, errp))) {
        ram_free(r);
        return NULL;
    }
    return r;
}

void ram_free(Ram *r)
{
    if (!r) {
        return;
    }
    if (r->staging) {
        munmap(r->staging, r->size);
    }
    ram_cache_drop(r);
    ram_base_drop(r);
    g_mutex_clear(&r->slot_lock);
    g_free(r->hashes);
    if (r->slot_of) {
        munmap(r->slot_of, r->pages * sizeof(uint32_t));
    }
    if (r->page_of) {
        munmap(r->page_of, r->pages * sizeof(uint32_t));
    }
    g_free(r);
}

uint64_t ram_size(Ram *r)
{
    return r->size;
}

uint64_t ram_overhead(Ram *r)
{
    return (__atomic_load_n(&r->populated, __ATOMIC_RELAXED) << COLO_PAGE_SHIFT) +
           (r->cache ? r->size : 0) +
           (r->tracker ? tracker_overhead(r->tracker) : 0) + 2 * r->pages * sizeof(uint32_t) +
           ram_base_bytes(r);
}

void ram_memory(Ram *r, uint64_t *staging, uint64_t *cache)
{
    *staging = (__atomic_load_n(&r->populated, __ATOMIC_RELAXED) << COLO_PAGE_SHIFT) +
               r->pages * 2 * sizeof(uint32_t);
    *cache = r->cache ? r->size + r->pages / 8 : 0;
}

void ram_staging_clear(Ram *r)
{
    for (uint64_t s = 0; s < r->n_staged; s++) {
        r->slot_of[r->page_of[s]] = 0;
    }
    r->n_staged = 0;
}

/* The staging slot of @page, given to it now if it has none. */
uint8_t *ram_staging_slot(Ram *r, uint64_t page)
{
    if (!r->slot_of[page]) {
        r->page_of[r->n_staged] = page;
        r->slot_of[page] = ++r->n_staged;
    }
    return r->staging + ((uint64_t)(r->slot_of[page] - 1) << COLO_PAGE_SHIFT);
}

void ram_staging_end(Ram *r)
{
    r->peak = MAX(r->n_staged, r->peak - r->peak / 16);
    if (r->n_staged > r->populated) {
        __atomic_store_n(&r->populated, r->n_staged, __ATOMIC_RELAXED);
    }
    ram_staging_clear(r);
}

void ram_populate(Ram *r)
{
    uint64_t want = MIN(r->pages, MAX(STAGING_MIN_PAGES, r->peak * 2));

    want = MIN(want, MAX(STAGING_MIN_PAGES, r->populated + STAGING_STEP_PAGES));
    if (want > r->populated) {
        uint8_t *from = r->staging + (r->populated << COLO_PAGE_SHIFT);
        uint64_t bytes = (want - r->populated) << COLO_PAGE_SHIFT;
        if (madvise(from, bytes, MADV_POPULATE_WRITE) == 0) {
            __atomic_store_n(&r->populated, want, __ATOMIC_RELAXED); /* a query reads it */
        }
    }
}

void ram_epoch_begin(Ram *r)
{
    ram_staging_end(r);
    ram_populate(r);
}

static void capture_runs(const PageRun *runs, unsigned n, void *opaque)
{
    Ram *r = opaque;
    const uint8_t *from = tracker_source(r->tracker);

    for (unsigned i = 0; i < n; i++) {
        for (uint64_t p = runs[i].first; p < runs[i].first + runs[i].count; p++) {
            memcpy(ram_staging_slot(r, p), from + (p << COLO_PAGE_SHIFT),
                   COLO_PAGE_SIZE);
        }
    }
}

int64_t ram_capture(Ram *r, bool stopped, GError **errp)
{
    return tracker_scan(r->tracker, stopped, capture_runs, r, errp);
}

uint64_t ram_staged(Ram *r)
{
    return r->n_staged;
}

uint64_t ram_page_hash(const uint8_t *page)
{
    const uint64_t *w = (const uint64_t *)page;
    uint64_t h[4] = {1, 2, 3, 4};

    for (unsigned i = 0; i < COLO_PAGE_SIZE / 8; i += 4) {
        for (unsigned k = 0; k < 4; k++) {
            h[k] = (h[k] ^ w[i + k]) * 0x9e3779b97f4a7c15ull;
            h[k] ^= h[k] >> 29;
        }
    }
    return (h[0] * 3 + h[1]) * 5 + (h[2] * 7 + h[3]);
}

void ram_hash(Ram *r)
{
    static const uint64_t zero[COLO_PAGE_SIZE / 8];
    uint64_t first, end, at = 0;

    if (!r->hashes) {
        r->hashes = g_new(uint64_t, r->pages);
    }
    for (uint64_t p = 0, z = ram_page_hash((const uint8_t *)zero); p < r->pages; p++) {
        r->hashes[p] = z;
    }
    for (; ram_map_data(r->map, at, &first, &end); at = end) {
        for (uint64_t p = first; p < end; p++) {
            r->hashes[p] = ram_page_hash(r->ram + (p << COLO_PAGE_SHIFT));
        }
    }
}

bool ram_send_hashes(Ram *r, Channel *c, GError **errp)
{
    const uint64_t step = CHANNEL_PAYLOAD_MAX / 16;

    for (uint64_t p = 0; p < r->pages; p += step) {
        uint64_t first = GUINT64_TO_BE(p);
        struct iovec parts[2] = {
            {&first, sizeof(first)},
            {r->hashes + p, MIN(step, r->pages - p) * sizeof(uint64_t)},
        };
        if (!channel_send(c, CHANNEL_VERIFY, parts, 2, errp)) {
            return false;
        }
    }
    return true;
}
