/*
 * What the trackers share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_TRACKER_PRIVATE_H
#define COLO_MIGRATION_TRACKER_PRIVATE_H

#include "migration/tracker.h"

#define TRACKER_BATCH 4096

typedef struct TrackerClass {
    const char *name, *wish;
    /* Take hold of t->pid; false with @errp if this host cannot. Sets t->state. */
    bool (*open)(Tracker *t, GError **errp);
    bool (*start)(Tracker *t, GError **errp);
    void (*stop)(Tracker *t);
    int64_t (*scan)(Tracker *t, bool stopped, GError **errp);
    void (*close)(Tracker *t); /* after a failed open too */
} TrackerClass;

struct Tracker {
    const TrackerClass *class;
    pid_t pid;
    const RamMap *map;
    const uint8_t *reference;
    const uint8_t *source; /* NULL: RAM itself */
    uint64_t overhead; /* bytes */
    char *why;
    void *state; /* of the class */
    /* For tracker_report(), during a scan. */
    TrackerFunc fn;
    void *opaque;
    unsigned n_runs;
    int64_t pages;
    PageRun runs[TRACKER_BATCH];
};

/** Pages [@first, @first + @count) were written. */
void tracker_report(Tracker *t, uint64_t first, uint64_t count);

extern const TrackerClass tracker_uffd, tracker_soft_dirty, tracker_compare;

#endif
