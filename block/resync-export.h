/*
 * What an export tells a peer that wants to make it equal to its own disk.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Two read-only disks beside an export NAME, under names that no listing shows, so that any
 * NBD client carries them (docs/interop/resync.rst): NAME:colo-dirty holds the activity
 * log's generation and map, NAME:colo-sums a SHA-256 of each 64 KiB, computed when read.
 */
#ifndef COLO_BLOCK_RESYNC_EXPORT_H
#define COLO_BLOCK_RESYNC_EXPORT_H

#include "block-int.h"
#include "dirty-bitmap.h"

#define RESYNC_HEAD 4096u
#define RESYNC_CHUNK 65536u
#define RESYNC_SUM 32u

typedef enum ResyncSide {
    RESYNC_DIRTY,
    RESYNC_SUMS,
    RESYNC_SIDES,
} ResyncSide;

/** ":colo-dirty" and ":colo-sums". */
const char *resync_suffix(ResyncSide side);

/** A disk that tells of @base, with one user, and which uses @base. Under the lock. */
BlockNode *resync_node_new(BlockNode *base, ResyncSide side);

/**
 * The peer's map: what it says may differ since @generation, added to @into. @target: the
 * disk that is to be made equal. Waits; without the lock. False with @errp if it does not
 * tell, or begins elsewhere.
 */
bool resync_read_dirty(BlockNode *target, const char *generation, DirtyBitmap *into,
                       GError **errp);

/** A disk with the sums of @target, with one user; without the lock. */
BlockNode *resync_open_sums(BlockNode *target, GError **errp);

#endif
