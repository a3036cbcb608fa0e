/*
 * The journal of a takeover: what makes an image that is not yet merged as good as merged.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_BLOCK_JOURNAL_H
#define COLO_BLOCK_JOURNAL_H

#include "../block-int.h"

typedef struct JournalRange {
    uint64_t start, end;
} JournalRange;

/**
 * Replace the marker @path by a journal: the image of @size bytes is whole once @ranges
 * (JournalRange) were copied to it from the active disk, a file of @format. Both disks have
 * been flushed. Durable when it returns true. Blocks; without locks.
 */
bool journal_create(const char *path, uint64_t size, const char *active,
                    const char *format, GArray *ranges, GError **errp);

/** @ranges hold newer data in the image, which was flushed: not to be copied any more. */
bool journal_append(const char *path, GArray *ranges, GError **errp);

/** Whether the marker @path is a journal. */
bool journal_is(const char *path);

/** Whether the marker @path is that of a copy that was cut off (control.c). */
bool secondary_marker_is_copy(const char *path);

/** Do what the journal @path says to the image @node and remove it. May wait. */
bool journal_recover(const char *path, BlockNode *node, GError **errp);

/** Remove a marker or a journal, durably. */
bool journal_remove(const char *path, GError **errp);

#endif
