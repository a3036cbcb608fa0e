/*
 * Guest RAM on the secondary: staging, the cache of the last checkpoint, restore.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The cache is RAM as of the last committed checkpoint. A checkpoint in transfer lives in
 * staging and reaches the cache only when it is whole. What must be restored is what the
 * SVM wrote (tracked) and what the PVM wrote (received): both are marked in one bitmap.
 */
#include "migration/ram-private.h"

#include <string.h>
#include <sys/mman.h>

#include "util/error.h"
#include "util/trace.h"

#define WORDS(pages) (((pages) + 63) / 64)

bool ram_cache_init(Ram *r, GError **errp)
{
    ram_cache_drop(r);
    r->cache = ram_map_private(r->size, errp);
    if (!r->cache) {
        return false;
    }
    r->marked = g_new0(uint64_t, WORDS(r->pages));
    if (r->tracker) {
        tracker_set_reference(r->tracker, r->cache);
    }
    return true;
}

void ram_cache_drop(Ram *r)
{
    if (r->tracker) {
        tracker_set_reference(r->tracker, NULL);
    }
    if (r->cache) {
        munmap(r->cache, r->size);
        r->cache = NULL;
    }
    g_clear_pointer(&r->marked, g_free);
}

static void mark(Ram *r, uint64_t page)
{
    r->marked[page / 64] |= 1ull << (page % 64);
}

void ram_mark_all(Ram *r)
{
    uint64_t first, end;

    /* Where the SVM never wrote it is zero, and what came for there is marked already. */
    for (uint64_t at = 0; ram_map_data(r->map, at, &first, &end); at = end) {
        for (uint64_t p = first; p < end; p++) {
            mark(r, p);
        }
    }
}

bool ram_receive(Ram *r, RamDecoder *d, const ChannelMsg *msg, uint64_t epoch, uint64_t *pages,
                 GError **errp)
{
    uint8_t *to[RAM_BATCH_PAGES];

    if (!ram_decode(d, msg->data, msg->len, r->pages, errp)) {
        return false;
    }
    if (d->epoch != epoch) {
        colo_error_set(errp, "pages of checkpoint %" G_GUINT64_FORMAT " in %" G_GUINT64_FORMAT,
                       d->epoch, epoch);
        return false;
    }
    g_mutex_lock(&r->slot_lock);
    for (unsigned i = 0; i < d->n; i++) {
        to[i] = epoch ? ram_staging_slot(r, d->page[i])
                      : r->cache + (d->page[i] << COLO_PAGE_SHIFT);
        if (!epoch) {
            mark(r, d->page[i]);
        }
    }
    g_mutex_unlock(&r->slot_lock);
    for (unsigned i = 0; i < d->n; i++) {
        const uint8_t *base = epoch ? r->cache + (d->page[i] << COLO_PAGE_SHIFT) : NULL;
        if (!ram_decode_page(d, i, to[i], base, errp)) {
            return false;
        }
    }
    *pages += d->n;
    return ram_decode_end(d, errp);
}

void ram_discard(Ram *r)
{
    ram_staging_clear(r);
    r->hashed = 0;
}

void ram_commit(Ram *r)
{
    for (uint64_t s = 0; s < r->n_staged; s++) {
        uint64_t page = r->page_of[s];
        memcpy(r->cache + (page << COLO_PAGE_SHIFT), r->staging + (s << COLO_PAGE_SHIFT),
               COLO_PAGE_SIZE);
        mark(r, page);
    }
    ram_staging_end(r);
}

static void mark_runs(const PageRun *runs, unsigned n, void *opaque)
{
    for (unsigned i = 0; i < n; i++) {
        for (uint64_t p = runs[i].first; p < runs[i].first + runs[i].count; p++) {
            mark(opaque, p);
        }
    }
}

int64_t ram_restore(Ram *r, uint64_t *guest, GError **errp)
{
    int64_t changed = 0;
    uint64_t in_guest = 0;

    if (tracker_scan(r->tracker, true, mark_runs, r, errp) < 0) {
        return -1;
    }
    for (uint64_t w = 0; w < WORDS(r->pages); w++) {
        while (r->marked[w]) {
            uint64_t page = w * 64 + (unsigned)__builtin_ctzll(r->marked[w]);
            uint8_t *to = r->ram + (page << COLO_PAGE_SHIFT);
            const uint8_t *from = r->cache + (page << COLO_PAGE_SHIFT);
            if (memcmp(to, from, COLO_PAGE_SIZE) != 0) {
                memcpy(to, from, COLO_PAGE_SIZE);
                changed++;
                in_guest += page < r->map->guest_pages;
            }
            r->marked[w] &= r->marked[w] - 1;
        }
    }
    if (guest) {
        *guest = in_guest;
    }
    return changed;
}

bool ram_verify_add(Ram *r, const ChannelMsg *msg, GError **errp)
{
    uint64_t first = channel_msg_u64(msg, 0);
    uint64_t n = msg->len / 8 - 1;

    if (msg->len < 16 || msg->len % 8 || first != r->hashed || n > r->pages - first) {
        colo_error_set(errp, "bad RAM hash message from the peer");
        return false;
    }
    if (!r->hashes) {
        r->hashes = g_new(uint64_t, r->pages);
    }
    memcpy(r->hashes + first, msg->data + 8, n * 8);
    r->hashed += n;
    return true;
}

uint64_t ram_verify(Ram *r)
{
    static const uint64_t zero[COLO_PAGE_SIZE / 8];
    uint64_t wrong = 0, first = 0, end = 0, z = ram_page_hash((const uint8_t *)zero);

    for (uint64_t p = 0; p < r->hashed; p++) {
        if (p >= end && !ram_map_data(r->map, p, &first, &end)) {
            first = end = r->pages;
        }
        uint64_t h = p < first ? z : ram_page_hash(r->ram + (p << COLO_PAGE_SHIFT));
        if (r->hashes[p] != h && wrong++ < 8) {
            const RamBlock *b = ram_map_block(r->map, p);
            colo_trace(migration_verify_wrong, "%s page=%" G_GUINT64_FORMAT, b->name,
                       p - b->first);
        }
    }
    r->hashed = 0;
    return wrong;
}
