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
#include <stdint.h>

#define STATS_SERIES_MAX 4096

/** The last values of one quantity; locked by its owner. */
typedef struct StatsSeries {
    uint64_t count; /* all that were ever added */
    uint64_t max, sum, last;
    uint32_t ring[STATS_SERIES_MAX];
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

typedef struct ColoStats {
    StatsSeries pause;    /* us, stop sent to cont answered */
    StatsSeries commit;   /* us, cont to RECEIVED */
    StatsSeries lag;      /* us, on the secondary: whole to running */
    StatsSeries dirty;    /* pages a checkpoint */
    uint64_t triggers[COLO_TRIGGER_MAX];
    uint64_t checkpoints; /* loaded by the secondary */
    uint64_t torn;        /* dropped by the secondary */
    uint64_t verified, wrong_pages;
    uint64_t device_bytes; /* of the last checkpoint */
    uint64_t repeated_saves; /* output after STOP: RULES 1 */
} ColoStats;

void stats_add(StatsSeries *s, uint64_t value);
/** Value below which @percent of the kept values lie. */
uint64_t stats_percentile(const StatsSeries *s, double percent);
JsonObject *stats_series_json(const StatsSeries *s);
void stats_to_json(const ColoStats *s, JsonObject *out);

#endif
