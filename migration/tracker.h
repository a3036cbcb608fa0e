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

#include "migration/ram-map.h"

typedef struct Tracker Tracker;

/* A run of dirty pages: first page number of RAM and how many. */
typedef struct PageRun {
    uint64_t first;
    uint64_t count;
} PageRun;

/**
 * Attach to process @pid, which maps the blocks of @map as it says. @wish is "auto" (the
 * first of uffd, soft-dirty, compare that this host can do), or one of these. With uffd the
 * child is stopped by ptrace for a moment, once. Where the kernel lacks the means the error
 * says which. @map is kept, not owned.
 */
Tracker *tracker_new(const char *wish, pid_t pid, const RamMap *map, GError **errp);
void tracker_free(Tracker *t);

/** Whether @wish is a tracker's name, or "auto". */
bool tracker_known(const char *wish);

/** Begin: from now on tracker_scan() tells what is written. */
bool tracker_start(Tracker *t, GError **errp);

/** End: the guest runs without any cost. */
void tracker_stop(Tracker *t);

/**
 * Fetch the pages written since the last call (or tracker_start()). @fn is called with
 * batches of runs, in any order. Returns the number of pages, or -1 with @errp set.
 * Allocates nothing.
 *
 * A write before a scan begins is in that scan or was in an earlier one; a write during a
 * scan is in it or in a later one. A page may come though nobody wrote to it. While the
 * guest runs (@stopped false) pages may come again in the next scan; with @stopped they
 * come once.
 */
typedef void (*TrackerFunc)(const PageRun *runs, unsigned n, void *opaque);
int64_t tracker_scan(Tracker *t, bool stopped, TrackerFunc fn, void *opaque, GError **errp);

/** Where pages that a scan told, and those of the first copy, are to be read from; laid out as
 * the map. RAM itself, but for a tracker that compares: what is sent must be what it compares
 * with next, or a page that changes there and back between the two is lost. */
const uint8_t *tracker_source(const Tracker *t);

/** The secondary's cache, laid out as the map: what RAM is to be equal to. A tracker that
 * compares uses it in place of a copy of its own; NULL ends that. */
void tracker_set_reference(Tracker *t, const uint8_t *cache);

/** Name for logs and QMP: "uffd-wp", "soft-dirty", "compare". */
const char *tracker_name(const Tracker *t);

/** Why the ones before it were not taken, for the log; "" if it was the first or was asked
 * for. */
const char *tracker_why(const Tracker *t);

/** Bytes of memory it holds. */
uint64_t tracker_overhead(const Tracker *t);

#endif
