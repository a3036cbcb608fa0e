/*
 * The child's RAM blocks as one flat row of pages.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_RAM_MAP_H
#define COLO_MIGRATION_RAM_MAP_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "migration/child-qmp.h"

#define COLO_PAGE_SIZE 4096u
#define COLO_PAGE_SHIFT 12
#define RAM_BLOCKS_MAX 64
#define RAM_BLOCK_NAME 256

/** One block of the emulator's memory, backed by a file that we have open too. */
typedef struct RamBlock {
    char name[RAM_BLOCK_NAME]; /* as the emulator calls it */
    uint64_t first, pages;     /* its place in the row */
    uint64_t addr;             /* where the child has it mapped */
    uint64_t page_size;        /* of its mapping: 4096, or that of its huge pages */
    int fd;                    /* from its start on */
    bool own_fd;               /* closed with the map */
    bool guest;                /* guest RAM; else video memory, ROMs, flash and the like */
} RamBlock;

typedef struct RamMap {
    RamBlock blocks[RAM_BLOCKS_MAX]; /* guest RAM first, in the order of the row */
    unsigned n;
    uint64_t pages;       /* of all blocks */
    uint64_t guest_pages; /* of guest RAM: pages below this number */
    uint8_t *base;        /* our mapping of the whole row */
    uint64_t span;        /* bytes of address space from @base on */
} RamMap;

/** A map of nothing; add blocks, then ram_map_finish(). */
RamMap *ram_map_new(void);
void ram_map_free(RamMap *m);

/** Add a block of @size bytes backed by @fd; NULL with @errp if there are too many. */
RamBlock *ram_map_add(RamMap *m, const char *name, int fd, uint64_t size,
                      uint64_t page_size, bool guest, GError **errp);

/** Put the blocks in their order and map them. */
bool ram_map_finish(RamMap *m, GError **errp);

/** Find where process @pid maps each block's file; all of each must be mapped there. */
bool ram_map_locate(RamMap *m, pid_t pid, GError **errp);

/** The block of page @page, which must be below m->pages. */
const RamBlock *ram_map_block(const RamMap *m, uint64_t page);

/**
 * The next pages that may hold anything but zeroes, at @page or after: [*@first, *@end).
 * False when there are no more. What was never written costs neither time nor memory.
 */
bool ram_map_data(const RamMap *m, uint64_t page, uint64_t *first, uint64_t *end);

/** Names and sizes, the same for equal machines; caller frees. */
char *ram_map_describe(const RamMap *m);

/* --- ram-blocks.c: what the emulator says of its blocks --- */

/**
 * Ask the emulator for its RAM blocks and give those that are no guest RAM (video memory,
 * ROMs, flash) backing that we share: a memfd mapped in the place of each. The guest must
 * not run yet. @m has the guest's backends, located. With @adopt off only the list of guest
 * RAM is checked. An error names the block whose layout could not be proven.
 */
bool ram_blocks_adopt(RamMap *m, pid_t pid, ChildQmp *q, bool adopt, GError **errp);

/** Whether the emulator's blocks are still those of @m; NULL, or what changed (caller frees). */
char *ram_blocks_changed(const RamMap *m, ChildQmp *q, bool adopt);

#endif
