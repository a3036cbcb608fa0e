/*
 * Figures of protection: what query-colo-status shows beside the state.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "migration/stats.h"

#include <stdlib.h>
#include <string.h>

static const char *const trigger_names[COLO_TRIGGER_MAX] = {
    [COLO_TRIGGER_MISMATCH] = "mismatch", [COLO_TRIGGER_TIMEOUT] = "timeout",
    [COLO_TRIGGER_NO_TWIN] = "no-twin",   [COLO_TRIGGER_BACKLOG] = "backlog",
    [COLO_TRIGGER_STREAM] = "stream",     [COLO_TRIGGER_TIMER] = "timer",
    [COLO_TRIGGER_REQUEST] = "request",   [COLO_TRIGGER_SECONDARY] = "secondary",
    [COLO_TRIGGER_RUN_STATE] = "run-state", [COLO_TRIGGER_EPOCH] = "epoch",
    [COLO_TRIGGER_MODE] = "mode",
};

void stats_add(StatsSeries *s, uint64_t value)
{
    s->ring[s->count++ % STATS_SERIES_MAX] = MIN(value, UINT32_MAX);
    s->sum += value;
    s->last = value;
    s->max = MAX(s->max, value);
}

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

uint64_t stats_percentile(const StatsSeries *s, double percent)
{
    size_t n = MIN(s->count, STATS_SERIES_MAX);

    if (n == 0) {
        return 0;
    }
    g_autofree uint32_t *sorted = g_memdup2(s->ring, n * sizeof(*sorted));
    qsort(sorted, n, sizeof(*sorted), compare_u32);
    return sorted[MIN(n - 1, (size_t)(percent / 100 * n))];
}

JsonObject *stats_series_json(const StatsSeries *s)
{
    JsonObject *o = json_object_new();

    json_object_set_int_member(o, "count", s->count);
    json_object_set_int_member(o, "sum", s->sum);
    json_object_set_int_member(o, "last", s->last);
    json_object_set_int_member(o, "median", stats_percentile(s, 50));
    json_object_set_int_member(o, "p99", stats_percentile(s, 99));
    json_object_set_int_member(o, "max", s->max);
    return o;
}

void stats_to_json(const ColoStats *s, JsonObject *out)
{
    JsonObject *t = json_object_new();

    for (int i = 0; i < COLO_TRIGGER_MAX; i++) {
        json_object_set_int_member(t, trigger_names[i], s->triggers[i]);
    }
    json_object_set_object_member(out, "triggers", t);
    json_object_set_int_member(out, "checkpoints", s->checkpoints);
    json_object_set_int_member(out, "torn-checkpoints", s->torn);
    json_object_set_object_member(out, "pause-us", stats_series_json(&s->pause));
    json_object_set_object_member(out, "commit-us", stats_series_json(&s->commit));
    json_object_set_object_member(out, "lag-us", stats_series_json(&s->lag));
    json_object_set_object_member(out, "dirty-pages", stats_series_json(&s->dirty));
    json_object_set_int_member(out, "device-state-bytes", s->device_bytes);
    json_object_set_int_member(out, "repeated-saves", s->repeated_saves);
    json_object_set_int_member(out, "verified-checkpoints", s->verified);
    json_object_set_int_member(out, "wrong-pages", s->wrong_pages);
}
