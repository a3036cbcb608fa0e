/*
 * A bit for each granule of a disk.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Positions are bytes. Setting rounds outwards, clearing inwards, so that a bit that
 * is clear means all of its granule. Nothing here locks.
 */
#ifndef COLO_BLOCK_DIRTY_BITMAP_H
#define COLO_BLOCK_DIRTY_BITMAP_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct DirtyBitmap DirtyBitmap;

/** All clear; @granularity: a power of two. */
DirtyBitmap *dirty_bitmap_new(uint64_t size, uint64_t granularity);
void dirty_bitmap_free(DirtyBitmap *b);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DirtyBitmap, dirty_bitmap_free)

uint64_t dirty_bitmap_granularity(const DirtyBitmap *b);
/** Dirty bytes; the last granule counts as far as the disk goes. */
uint64_t dirty_bitmap_bytes(const DirtyBitmap *b);

bool dirty_bitmap_get(const DirtyBitmap *b, uint64_t pos);
/** Every granule that [start, end) touches. */
void dirty_bitmap_set(DirtyBitmap *b, uint64_t start, uint64_t end);
/** Every granule that lies within [start, end). */
void dirty_bitmap_clear(DirtyBitmap *b, uint64_t start, uint64_t end);
/** Whether every granule that [start, end) touches is set. */
bool dirty_bitmap_all(const DirtyBitmap *b, uint64_t start, uint64_t end);
/** Start of the first dirty granule that does not end at or before @pos, or UINT64_MAX. */
uint64_t dirty_bitmap_next(const DirtyBitmap *b, uint64_t pos);
/** End of the dirty run that holds @pos, at most @limit. */
uint64_t dirty_bitmap_run(const DirtyBitmap *b, uint64_t pos, uint64_t limit);
/** Set in @to all that is set in @from (granularities may differ). */
void dirty_bitmap_merge(DirtyBitmap *to, const DirtyBitmap *from);

/** The bits, granule 0 in the lowest bit of byte 0: @n bytes from byte @at on. Bits behind
 * the end of the disk are 0; loading ignores them, and only sets. */
void dirty_bitmap_store(const DirtyBitmap *b, uint64_t at, uint8_t *out, size_t n);
void dirty_bitmap_load(DirtyBitmap *b, uint64_t at, const uint8_t *in, size_t n);

#endif
