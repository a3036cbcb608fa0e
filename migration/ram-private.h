/*
 * What migration/ram.c and migration/ram-cache.c share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_RAM_PRIVATE_H
#define COLO_MIGRATION_RAM_PRIVATE_H

#include "migration/ram.h"

typedef struct RamBase RamBase;

struct Ram {
    const RamMap *map;
    uint64_t size, pages; /* of the whole row */
    Tracker *tracker;
    uint8_t *ram; /* map->base: the guest's memory, shared with the child */

    /* Staging: slot s holds page page_of[s]; slot_of[page] is its slot + 1, or 0. */
    uint8_t *staging;
    uint32_t *slot_of, *page_of;
    uint64_t n_staged, populated, peak;
    GMutex slot_lock; /* secondary: guards the above while pages come on several channels */
    RamBase *base;    /* primary: committed versions, or NULL */

    uint8_t *cache;    /* secondary: RAM as of the last committed checkpoint */
    uint64_t *marked;  /* bitmap: pages to restore */
    uint64_t *hashes;  /* test option: of the primary's pages, in host order */
    uint64_t hashed;   /* pages of which the secondary holds a hash */
};

void *ram_map_private(uint64_t size, GError **errp);
void ram_staging_clear(Ram *r);
/** Empty it at the end of an epoch whose pages it had. */
void ram_staging_end(Ram *r);
uint8_t *ram_staging_slot(Ram *r, uint64_t page);
uint64_t ram_page_hash(const uint8_t *page);

/** The committed version of @page, if it is kept. */
const uint8_t *ram_base_find(const Ram *r, uint64_t page);
uint64_t ram_base_bytes(const Ram *r);

#endif
