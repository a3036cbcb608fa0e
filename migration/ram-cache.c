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

static void store_page(uint8_t *to, const uint8_t *from)
{
    if (from) {
        memcpy(to, from, COLO_PAGE_SIZE);
    } else {
        memset(to, 0, COLO_PAGE_SIZE);
    }
}

bool ram_receive(Ram *r, const ChannelMsg *msg, bool direct, uint64_t *pages,
                 GError **errp)
{
    uint64_t n = channel_msg_u64(msg, 0) >> 32;

    if (n == 0 || n > RAM_BATCH_PAGES || msg->len < 8 + 8 * n) {
        colo_error_set(errp, "bad RAM message from the peer (%u bytes)", msg->len);
        return false;
    }
    const uint8_t *data = msg->data + 8 + 8 * n;
    const uint8_t *end = msg->data + msg->len;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t page = channel_msg_u64(msg, i + 1);
        bool zero = page & RAM_PAGE_ZERO;
        page &= ~RAM_PAGE_ZERO;
        if (page >= r->pages || (!zero && end - data < (ptrdiff_t)COLO_PAGE_SIZE)) {
            colo_error_set(errp, "bad RAM message from the peer (page %" G_GUINT64_FORMAT ")",
                           page);
            return false;
        }
        store_page(direct ? r->cache + (page << COLO_PAGE_SHIFT) : ram_staging_slot(r, page),
                   zero ? NULL : data);
        data += zero ? 0 : COLO_PAGE_SIZE;
        if (direct) {
            mark(r, page);
        }
    }
    if (data != end) {
        colo_error_set(errp, "bad RAM message from the peer (%td bytes left over)",
                       end - data);
        return false;
    }
    *pages += n;
    return true;
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
    ram_epoch_begin(r);
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
