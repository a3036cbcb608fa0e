/*
 * Which sectors of a disk the SVM has written since the last checkpoint.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * One bit a 512-byte sector, in regions of 1 MiB that exist only where bits are set.
 */
#ifndef COLO_BLOCK_OVERLAY_H
#define COLO_BLOCK_OVERLAY_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct Overlay Overlay;

Overlay *overlay_new(uint64_t bytes);
void overlay_free(Overlay *o);

/** All byte positions are multiples of 512. */
void overlay_set(Overlay *o, uint64_t start, uint64_t end);
void overlay_clear(Overlay *o, uint64_t start, uint64_t end);
void overlay_clear_all(Overlay *o);
/** End of the run of equal sectors that begins at @start, at most @end; its value. */
uint64_t overlay_run(Overlay *o, uint64_t start, uint64_t end, bool *set);
/** First set position at or after @start, or UINT64_MAX. */
uint64_t overlay_next(Overlay *o, uint64_t start);
uint64_t overlay_bytes(Overlay *o);

#endif
