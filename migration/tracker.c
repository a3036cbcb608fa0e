/*
 * Dirty page tracking: which of the trackers, and what they have in common.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Three ways, best first. What is probed is the thing itself and not a version: the first
 * that opens is taken.
 *   uffd-wp     the kernel notes the first write to a page; a scan costs about a nanosecond
 *               for each page, a first write a microsecond
 *   soft-dirty  the same bit without atomic fetch and clear: it is cleared only while the
 *               guest stands still, so what was copied before the pause is copied again
 *   compare     all of RAM against a copy, in the pause; needs nothing but memory
 */
#include "migration/tracker-private.h"

#include <string.h>

#include "util/error.h"
#include "util/trace.h"

static const TrackerClass *const classes[] = {&tracker_uffd, &tracker_soft_dirty,
                                              &tracker_compare};

bool tracker_known(const char *wish)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(classes); i++) {
        if (strcmp(wish, classes[i]->wish) == 0) {
            return true;
        }
    }
    return strcmp(wish, "auto") == 0;
}

Tracker *tracker_new(const char *wish, pid_t pid, const RamMap *map, GError **errp)
{
    Tracker *t = g_new0(Tracker, 1);
    bool any = strcmp(wish, "auto") == 0;
    g_autoptr(GString) why = g_string_new(NULL);

    t->pid = pid;
    t->map = map;
    for (unsigned i = 0; i < G_N_ELEMENTS(classes); i++) {
        g_autoptr(GError) err = NULL;
        if (!any && strcmp(wish, classes[i]->wish) != 0) {
            continue;
        }
        t->class = classes[i];
        if (t->class->open(t, &err)) {
            t->why = g_string_free(g_steal_pointer(&why), FALSE);
            colo_trace(migration_tracker_new, "%s pid=%d blocks=%u", t->class->name, (int)pid,
                       map->n);
            return t;
        }
        t->class->close(t);
        t->state = NULL;
        g_string_append_printf(why, "%s%s: %s", why->len ? "; " : "", classes[i]->name,
                               err->message);
    }
    colo_error_set(errp, "dirty pages cannot be tracked (%s)",
                   why->len ? why->str : "no such tracker");
    g_free(t);
    return NULL;
}

void tracker_free(Tracker *t)
{
    if (t) {
        t->class->close(t);
        g_free(t->why);
        g_free(t);
    }
}

bool tracker_start(Tracker *t, GError **errp)
{
    return t->class->start(t, errp);
}

void tracker_stop(Tracker *t)
{
    t->class->stop(t);
}

static void hand_over(Tracker *t)
{
    if (t->n_runs) {
        t->fn(t->runs, t->n_runs, t->opaque);
        t->n_runs = 0;
    }
}

void tracker_report(Tracker *t, uint64_t first, uint64_t count)
{
    t->pages += count;
    if (t->n_runs && t->runs[t->n_runs - 1].first + t->runs[t->n_runs - 1].count == first) {
        t->runs[t->n_runs - 1].count += count;
        return;
    }
    if (t->n_runs == TRACKER_BATCH) {
        hand_over(t);
    }
    t->runs[t->n_runs++] = (PageRun){first, count};
}

int64_t tracker_scan(Tracker *t, bool stopped, TrackerFunc fn, void *opaque, GError **errp)
{
    t->fn = fn;
    t->opaque = opaque;
    t->n_runs = 0;
    t->pages = 0;
    int64_t r = t->class->scan(t, stopped, errp);
    hand_over(t); /* of a failed scan too: what was fetched is not told again */
    return r < 0 ? -1 : t->pages;
}

void tracker_set_reference(Tracker *t, const uint8_t *cache)
{
    t->reference = cache;
}

const uint8_t *tracker_source(const Tracker *t)
{
    return t->source ? t->source : t->map->base;
}

const char *tracker_name(const Tracker *t)
{
    return t->class->name;
}

const char *tracker_why(const Tracker *t)
{
    return t->why;
}

uint64_t tracker_overhead(const Tracker *t)
{
    return t->overhead;
}
