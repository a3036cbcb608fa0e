/*
 * The file beside an image that tells where it may differ from its peer.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * docs/interop/activity-log.rst has the format. A page of 4 KiB each has its own checksum:
 * one that does not fit means "all of it differs", so a torn write can only make more work.
 * The file as a whole is only ever replaced by renaming a complete new one.
 */
#ifndef COLO_BLOCK_ACTIVITY_LOG_FILE_H
#define COLO_BLOCK_ACTIVITY_LOG_FILE_H

#include "block-int.h"
#include "dirty-bitmap.h"

#define AL_PAGE 4096u
#define AL_PAGE_BITS ((AL_PAGE - 16) * 8)
#define AL_REGION (4ull * 1024 * 1024)
#define AL_GRANULE 65536ull
#define AL_GENERATION 40 /* bytes of a generation's name, with its end */

typedef struct ActivityLogFile {
    char *path;
    int fd;
    uint64_t id; /* of this file; its pages know it */
    uint64_t size;
    char generation[AL_GENERATION];
    bool clean;        /* the image was closed in order */
    uint64_t mtime_ns; /* of the image, then; 0: unknown */
} ActivityLogFile;

char *activity_log_path(const char *image);

/** How many pages of hot regions and of dirty granules. */
unsigned activity_log_hot_pages(uint64_t size);
unsigned activity_log_dirty_pages(uint64_t size);

/** Page @n of the map @b (its regions or granules) as it stands in the file at the returned
 * offset. */
uint64_t activity_log_page(const ActivityLogFile *f, bool hot, unsigned n,
                           const DirtyBitmap *b, uint8_t *page);
/** The file's first page. */
void activity_log_header(const ActivityLogFile *f, uint8_t *page);

/** Replace the file at @f->path by one of @f's fields and the two maps; durable when true.
 * Sets @f->fd (the old one is closed) and a new @f->id. May be called without the lock. */
bool activity_log_write(ActivityLogFile *f, const DirtyBitmap *hot,
                        const DirtyBitmap *dirty, GError **errp);

/**
 * Read the file of an image of @size bytes into empty maps; what cannot be trusted is
 * set. False with @errp: there is none, or it is of another image or version.
 */
bool activity_log_read(ActivityLogFile *f, const char *path, uint64_t size, bool read_only,
                       DirtyBitmap *hot, DirtyBitmap *dirty, GError **errp);

#endif
