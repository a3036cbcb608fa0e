/*
 * Figures of protection: what query-colo-status shows beside the state.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_STATS_H
#define COLO_MIGRATION_STATS_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>
#include <stdint.h>

#define STATS_SERIES_MAX 4096
#define STATS_BUCKETS 18
#define STATS_RECENT 128

/** The last values of one quantity; locked by its owner. */
typedef struct StatsSeries {
    uint64_t count; /* all that were ever added */
    uint64_t max, sum, last;
    uint32_t ring[STATS_SERIES_MAX];
    uint64_t buckets[STATS_BUCKETS + 1]; /* upper bounds 1, 2, 5, 10... times 100; of all */
} StatsSeries;

typedef enum ColoTrigger {
    COLO_TRIGGER_MISMATCH,
    COLO_TRIGGER_TIMEOUT,
    COLO_TRIGGER_NO_TWIN,
    COLO_TRIGGER_BACKLOG,
    COLO_TRIGGER_STREAM,
    COLO_TRIGGER_TIMER,
    COLO_TRIGGER_REQUEST,
    COLO_TRIGGER_SECONDARY,
    COLO_TRIGGER_RUN_STATE,
    COLO_TRIGGER_EPOCH, /* the end of a buffered epoch */
    COLO_TRIGGER_MODE,  /* another mode was asked for */
    COLO_TRIGGER_MAX
} ColoTrigger;

/** One checkpoint. Times in us; what a side does not know is 0. */
typedef struct StatsCheckpoint {
    uint64_t epoch;
    int64_t at;      /* monotonic, when the guest ran again (primary) or was loaded */
    ColoTrigger trigger; /* primary */
    bool standing;   /* the SVM stands still in the epoch that it began */
    uint32_t prepass, stop, save, cut, cont; /* primary: parts; from stop on, of the pause */
    uint32_t pause, commit, lag;
    uint64_t pages, last_pages; /* all, and those copied in the pause */
    uint64_t bytes;  /* pages, device and proxy state, as they are in memory */
    uint64_t sent;   /* on the channel */
    int32_t skew;    /* of the SVM's clock */
} StatsCheckpoint;

typedef struct ColoStats {
    StatsSeries pause;    /* us, stop sent to cont answered */
    StatsSeries commit;   /* us, cont to RECEIVED */
    StatsSeries lag;      /* us, on the secondary: whole to running */
    StatsSeries dirty;    /* pages a checkpoint */
    StatsSeries skew;     /* us, SVM's clock against where it was aimed at, without sign */
    StatsCheckpoint recent[STATS_RECENT]; /* a ring, of @n_recent so far */
    uint64_t n_recent;
    uint64_t bytes, sent; /* of all checkpoints, as in StatsCheckpoint */
    int64_t clock_lost;   /* us by which the guest's clock fell behind in the pauses */
    uint64_t over_budget; /* pauses longer than x-max-pause */
    uint64_t triggers[COLO_TRIGGER_MAX];
    uint64_t checkpoints; /* loaded by the secondary */
    uint64_t torn;        /* dropped by the secondary */
    uint64_t verified, wrong_pages;
    uint64_t device_bytes; /* of the last checkpoint */
    uint64_t repeated_saves; /* output after STOP: RULES 1 */
} ColoStats;

void stats_add(StatsSeries *s, uint64_t value);
/** The ring's next entry becomes @c. */
void stats_note(ColoStats *s, const StatsCheckpoint *c);
/** The answer of query-colo-stats but for what others know. */
void stats_details_to_json(const ColoStats *s, bool primary, JsonObject *out);
void stats_to_json(const ColoStats *s, JsonObject *out);

#endif
