/*
 * query-colo-status as Prometheus' text.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * One table a kind of member. A name never changes its meaning; a member that is new in
 * query-colo-status and of use on a graph gets a line here.
 */
#include <string.h>

#include "system/metrics.h"
#include "util/options.h"

typedef struct Metric {
    const char *member; /* of the object that the table is about */
    const char *name, *type, *help;
    double unit; /* one of the member's in base units */
} Metric;

#define MICROSECONDS 1e-6
#define MILLISECONDS 1e-3

static const Metric of_status[] = {
    {"epoch", "colo_epoch", "gauge", "Number of the last checkpoint.", 1},
    {"checkpoints", "colo_checkpoints_total", "counter", "Checkpoints that were loaded.",
     1},
    {"torn-checkpoints", "colo_checkpoints_torn_total", "counter",
     "Checkpoints that were dropped before they were whole.", 1},
    {"repeated-saves", "colo_saves_repeated_total", "counter",
     "Device states saved again, as output came after the stop.", 1},
    {"checkpoint-delay", "colo_checkpoint_delay_seconds", "gauge",
     "Longest time between two checkpoints.", MILLISECONDS},
    {"bytes-sent", "colo_sent_bytes_total", "counter", "Sent on the checkpoint channels.",
     1},
    {"device-state-bytes", "colo_device_state_bytes", "gauge",
     "Device state of the last checkpoint.", 1},
    {"ram-overhead", "colo_ram_overhead_bytes", "gauge",
     "Memory beside the guest's own: cache and staging.", 1},
    {"held-frames", "colo_held_frames", "gauge", "Frames of the guest that wait.", 1},
    {"held-bytes", "colo_held_bytes", "gauge", "Their bytes.", 1},
    {"wrong-pages", "colo_wrong_pages_total", "counter",
     "Pages that verify-ram found different.", 1},
    {NULL},
};

static const Metric of_transfer[] = {
    {"bytes-raw", "colo_raw_bytes_total", "counter",
     "Bytes of pages before zero detection and compression.", 1},
    {NULL},
};

static const Metric of_series[] = {
    {"pause-us", "colo_checkpoint_pause_seconds", "summary",
     "The guest's pause, stop to cont.", MICROSECONDS},
    {"commit-us", "colo_checkpoint_commit_seconds", "summary",
     "From cont until the secondary held all of it.", MICROSECONDS},
    {"lag-us", "colo_secondary_lag_seconds", "summary",
     "From the commitment until the secondary's guest ran.", MICROSECONDS},
    {"dirty-pages", "colo_checkpoint_dirty_pages", "summary", "Pages of a checkpoint.",
     1},
    {NULL},
};

static const Metric of_disk[] = {
    {"queued-bytes", "colo_disk_queued_bytes", "gauge",
     "Written, and not acknowledged by the secondary.", 1},
    {"log-bytes", "colo_disk_log_bytes", "gauge", "In the log, not in the image.", 1},
    {"sequence", "colo_disk_requests_total", "counter", "Modifying requests forwarded.",
     1},
    {"arrived", "colo_disk_arrived_total", "counter", "Modifying requests received.", 1},
    {NULL},
};

static const Metric of_link[] = {
    {"rtt-us", "colo_heartbeat_rtt_seconds", "gauge", "Round trip of a beat.",
     MICROSECONDS},
    {"sent", "colo_heartbeats_sent_total", "counter", "Beats sent.", 1},
    {"received", "colo_heartbeats_received_total", "counter", "Beats taken.", 1},
    {NULL},
};

static const char *const refusals[] = {"malformed", "forged", "reflected", "misdirected",
                                       "stranger", "replayed"};

static void head(GString *out, const char *name, const char *type, const char *help)
{
    g_string_append_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void value(GString *out, double v)
{
    char buf[G_ASCII_DTOSTR_BUF_SIZE];

    /* Counts are exact; of 100 us in seconds 15 digits say no more than "0.0001". */
    g_ascii_formatd(buf, sizeof(buf), v == (double)(gint64)v ? "%.17g" : "%.15g", v);
    g_string_append_printf(out, " %s\n", buf);
}

/* name{label="text"}, with what the format wants escaped. */
static void labelled(GString *out, const char *name, const char *label, const char *text)
{
    g_string_append_printf(out, "%s{%s=\"", name, label);
    for (; *text; text++) {
        if (*text == '\n') {
            g_string_append(out, "\\n");
            continue;
        }
        if (*text == '"' || *text == '\\') {
            g_string_append_c(out, '\\');
        }
        g_string_append_c(out, *text);
    }
    g_string_append(out, "\"}");
}

static bool number(JsonObject *o, const char *member, double *v)
{
    JsonNode *n = o && member ? json_object_get_member(o, member) : NULL;

    if (!n || !JSON_NODE_HOLDS_VALUE(n) || json_node_get_value_type(n) == G_TYPE_STRING) {
        return false;
    }
    *v = json_node_get_value_type(n) == G_TYPE_BOOLEAN ? json_node_get_boolean(n)
                                                       : json_node_get_double(n);
    return true;
}

static void flat(GString *out, JsonObject *o, const Metric *table)
{
    double v;

    for (const Metric *m = table; m->member; m++) {
        if (number(o, m->member, &v)) {
            head(out, m->name, m->type, m->help);
            g_string_append(out, m->name);
            value(out, v * m->unit);
        }
    }
}

static void series(GString *out, JsonObject *status)
{
    static const char *const quantiles[][2] = {{"median", "0.5"}, {"p99", "0.99"}};
    double v;

    for (const Metric *m = of_series; m->member; m++) {
        JsonObject *o = options_get_obj(status, m->member);

        if (!o) {
            continue;
        }
        head(out, m->name, m->type, m->help);
        for (guint i = 0; i < G_N_ELEMENTS(quantiles); i++) {
            if (number(o, quantiles[i][0], &v)) {
                labelled(out, m->name, "quantile", quantiles[i][1]);
                value(out, v * m->unit);
            }
        }
        if (number(o, "sum", &v)) {
            g_string_append_printf(out, "%s_sum", m->name);
            value(out, v * m->unit);
        }
        if (number(o, "count", &v)) {
            g_string_append_printf(out, "%s_count", m->name);
            value(out, v);
        }
    }
}

static void triggers(GString *out, JsonObject *status)
{
    JsonObject *o = options_get_obj(status, "triggers");
    g_autoptr(GList) names = o ? json_object_get_members(o) : NULL;
    double v;

    if (o) {
        head(out, "colo_checkpoint_triggers_total", "counter",
             "Checkpoints by their reason.");
    }
    for (GList *x = names; x; x = x->next) {
        if (number(o, x->data, &v)) {
            labelled(out, "colo_checkpoint_triggers_total", "trigger", x->data);
            value(out, v);
        }
    }
}

/* One metric of all elements of @a, which @label's member tells apart. */
static void elements(GString *out, JsonArray *a, const Metric *table, const char *label)
{
    for (const Metric *m = table; a && m->member; m++) {
        bool told = false;

        for (guint i = 0; i < json_array_get_length(a); i++) {
            JsonNode *n = json_array_get_element(a, i);
            JsonObject *o = JSON_NODE_HOLDS_OBJECT(n) ? json_node_get_object(n) : NULL;
            double v;

            if (!number(o, m->member, &v)) {
                continue;
            }
            if (!told) {
                head(out, m->name, m->type, m->help);
                told = true;
            }
            labelled(out, m->name, label, options_get_str(o, label, ""));
            value(out, v * m->unit);
        }
    }
}

/* Beats that were not taken, by link and reason. */
static void refused(GString *out, JsonArray *links)
{
    static const char name[] = "colo_heartbeats_refused_total";
    bool told = false;

    for (guint i = 0; links && i < json_array_get_length(links); i++) {
        JsonNode *n = json_array_get_element(links, i);
        JsonObject *o = JSON_NODE_HOLDS_OBJECT(n) ? json_node_get_object(n) : NULL;

        for (guint k = 0; k < G_N_ELEMENTS(refusals); k++) {
            g_autofree char *member = g_strdup_printf("refused-%s", refusals[k]);
            double v;

            if (!number(o, member, &v)) {
                continue;
            }
            if (!told) {
                head(out, name, "counter", "Beats that were not taken, by reason.");
                told = true;
            }
            labelled(out, name, "id", options_get_str(o, "id", ""));
            g_string_truncate(out, out->len - 1); /* the brace */
            g_string_append_printf(out, ",reason=\"%s\"}", refusals[k]);
            value(out, v);
        }
    }
}

static JsonArray *array_of(JsonObject *o, const char *member)
{
    JsonNode *n = o ? json_object_get_member(o, member) : NULL;

    return n && JSON_NODE_HOLDS_ARRAY(n) ? json_node_get_array(n) : NULL;
}

static void states(GString *out, JsonObject *status)
{
    const char *state = options_get_str(status, "state", NULL);

    if (!state) {
        return;
    }
    head(out, "colo_protected", "gauge", "Whether a secondary could take over.");
    g_string_append(out, "colo_protected");
    value(out, !strcmp(state, "protected"));
    head(out, "colo_state", "gauge", "1 with the state as the label.");
    labelled(out, "colo_state", "state", state);
    value(out, 1);
    head(out, "colo_role", "gauge", "1 with the role as the label.");
    labelled(out, "colo_role", "role", options_get_str(status, "mode", "none"));
    value(out, 1);
}

void metrics_text(JsonObject *status, GString *out)
{
    head(out, "colo_build_info", "gauge", "1 with the version as the label.");
    labelled(out, "colo_build_info", "version", COLO_VERSION);
    value(out, 1);
    states(out, status);
    flat(out, status, of_status);
    flat(out, options_get_obj(status, "transfer"), of_transfer);
    series(out, status);
    triggers(out, status);
    elements(out, array_of(status, "disks"), of_disk, "disk");
    JsonArray *links = array_of(options_get_obj(status, "heartbeat"), "links");
    elements(out, links, of_link, "id");
    refused(out, links);
}
