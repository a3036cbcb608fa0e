/*
 * Dirty page tracking of the child's RAM from outside.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_TRACKER_H
#define COLO_MIGRATION_TRACKER_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define COLO_PAGE_SIZE 4096u
#define COLO_PAGE_SHIFT 12

typedef struct Tracker Tracker;

/* A run of dirty pages: first page number of guest RAM and how many. */
typedef struct PageRun {
    uint64_t first;
    uint64_t count;
} PageRun;

/**
 * Attach to process @pid, which maps @ram_fd shared over @ram_size bytes. The child is
 * stopped by ptrace for a moment, once. Where the kernel lacks the means the error says
 * which and since when they exist.
 */
Tracker *tracker_new(pid_t pid, int ram_fd, uint64_t ram_size, GError **errp);
void tracker_free(Tracker *t);

/** Write-protect all of RAM: from now on tracker_scan() tells what is written. */
bool tracker_start(Tracker *t, GError **errp);

/** Lift the protection: the guest runs without any cost. */
void tracker_stop(Tracker *t);

/**
 * Fetch and clear the pages written since the last call (or tracker_start()), in one
 * step for each page. @fn is called with batches of runs, in ascending order.
 * Returns the number of pages, or -1 with @errp set. Allocates nothing.
 */
typedef void (*TrackerFunc)(const PageRun *runs, unsigned n, void *opaque);
int64_t tracker_scan(Tracker *t, TrackerFunc fn, void *opaque, GError **errp);

/** Name for logs and QMP ("uffd-wp"). */
const char *tracker_name(Tracker *t);

#endif
