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

static const char *trigger_name(ColoTrigger t)
{
    return t < COLO_TRIGGER_MAX ? trigger_names[t] : "unknown";
}

/* Upper bound of bucket @i of a histogram: 1, 2, 5, 10... times 100. */
static uint64_t bucket_bound(unsigned i)
{
    static const unsigned step[] = {1, 2, 5};
    uint64_t v = 10;

    for (unsigned k = 0; k < i / 3; k++) {
        v *= 10;
    }
    return v * step[i % 3];
}

void stats_note(ColoStats *s, const StatsCheckpoint *c)
{
    s->recent[s->n_recent++ % STATS_RECENT] = *c;
    s->bytes += c->bytes;
    s->sent += c->sent;
}

void stats_add(StatsSeries *s, uint64_t value)
{
    unsigned b = 0;

    while (b < STATS_BUCKETS && value >= bucket_bound(b)) {
        b++;
    }
    s->buckets[b]++;
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

/* Value below which @percent of the kept values lie. */
static uint64_t percentile(const StatsSeries *s, double percent)
{
    size_t n = MIN(s->count, STATS_SERIES_MAX);

    if (n == 0) {
        return 0;
    }
    g_autofree uint32_t *sorted = g_memdup2(s->ring, n * sizeof(*sorted));
    qsort(sorted, n, sizeof(*sorted), compare_u32);
    return sorted[MIN(n - 1, (size_t)(percent / 100 * n))];
}

static JsonObject *series_json(const StatsSeries *s)
{
    JsonObject *o = json_object_new();

    json_object_set_int_member(o, "count", s->count);
    json_object_set_int_member(o, "sum", s->sum);
    json_object_set_int_member(o, "last", s->last);
    json_object_set_int_member(o, "median", percentile(s, 50));
    json_object_set_int_member(o, "p99", percentile(s, 99));
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
    json_object_set_object_member(out, "pause-us", series_json(&s->pause));
    json_object_set_object_member(out, "commit-us", series_json(&s->commit));
    json_object_set_object_member(out, "lag-us", series_json(&s->lag));
    json_object_set_object_member(out, "dirty-pages", series_json(&s->dirty));
    json_object_set_object_member(out, "clock-skew-us", series_json(&s->skew));
    json_object_set_int_member(out, "clock-lost-us", s->clock_lost);
    json_object_set_int_member(out, "pauses-over-budget", s->over_budget);
    json_object_set_int_member(out, "checkpoint-bytes", s->bytes);
    json_object_set_int_member(out, "checkpoint-bytes-sent", s->sent);
    json_object_set_int_member(out, "device-state-bytes", s->device_bytes);
    json_object_set_int_member(out, "repeated-saves", s->repeated_saves);
    json_object_set_int_member(out, "verified-checkpoints", s->verified);
    json_object_set_int_member(out, "wrong-pages", s->wrong_pages);
}

static JsonArray *histogram(const StatsSeries *s)
{
    JsonArray *a = json_array_new();

    for (unsigned i = 0; i <= STATS_BUCKETS; i++) {
        if (s->buckets[i]) {
            JsonObject *o = json_object_new();
            json_object_set_int_member(o, "count", s->buckets[i]);
            if (i < STATS_BUCKETS) {
                json_object_set_int_member(o, "below", bucket_bound(i));
            }
            json_array_add_object_element(a, o);
        }
    }
    return a;
}

static JsonObject *checkpoint_json(const StatsCheckpoint *c, bool primary)
{
    JsonObject *o = json_object_new();
    const struct {
        const char *name;
        uint64_t value;
        bool primary_only;
    } members[] = {
        {"epoch", c->epoch, false},          {"at-us", c->at, false},
        {"prepass-us", c->prepass, true},    {"pause-us", c->pause, true},
        {"stop-us", c->stop, true},          {"save-us", c->save, true},
        {"cut-us", c->cut, true},            {"cont-us", c->cont, true},
        {"commit-us", c->commit, true},      {"lag-us", c->lag, false},
        {"dirty-pages", c->pages, false},    {"pause-pages", c->last_pages, true},
        {"bytes", c->bytes, false},          {"bytes-sent", c->sent, true},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(members); i++) {
        if (primary || !members[i].primary_only) {
            json_object_set_int_member(o, members[i].name, members[i].value);
        }
    }
    json_object_set_int_member(o, "clock-skew-us", c->skew);
    json_object_set_string_member(o, "mode", c->standing ? "buffered" : "colo");
    if (primary) {
        json_object_set_string_member(o, "trigger", trigger_name(c->trigger));
    }
    return o;
}

void stats_details_to_json(const ColoStats *s, bool primary, JsonObject *out)
{
    const struct {
        const char *name;
        const StatsSeries *series;
    } all[] = {{"pause-us", &s->pause}, {"commit-us", &s->commit}, {"lag-us", &s->lag},
               {"dirty-pages", &s->dirty}, {"clock-skew-us", &s->skew}};
    JsonArray *recent = json_array_new();

    for (unsigned i = 0; i < G_N_ELEMENTS(all); i++) {
        JsonObject *o = series_json(all[i].series);
        json_object_set_int_member(o, "sum", all[i].series->sum);
        json_object_set_array_member(o, "histogram", histogram(all[i].series));
        json_object_set_object_member(out, all[i].name, o);
    }
    uint64_t n = MIN(s->n_recent, STATS_RECENT);
    for (uint64_t i = s->n_recent - n; i < s->n_recent; i++) {
        json_array_add_object_element(recent,
                                      checkpoint_json(&s->recent[i % STATS_RECENT], primary));
    }
    json_object_set_array_member(out, "recent", recent);
}
