/*
 * query-colo-status as Prometheus' text.
 * Sources: this file, system/metrics-text.c. Dependencies: util, json-glib.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <locale.h>
#include <string.h>

#include "system/metrics.h"

static char *text_of(const char *json)
{
    g_autoptr(JsonNode) n = json_from_string(json, NULL);
    GString *out = g_string_new(NULL);

    g_assert_nonnull(n);
    metrics_text(json_node_get_object(n), out);
    return g_string_free(out, FALSE);
}

static void has_line(const char *text, const char *line)
{
    g_autofree char *framed = g_strdup_printf("\n%s\n", text);
    g_autofree char *whole = g_strdup_printf("\n%s\n", line);

    if (!strstr(framed, whole)) {
        g_test_message("no line '%s' in: %s", line, text);
        g_test_fail();
    }
}

static unsigned count(const char *text, const char *what)
{
    unsigned n = 0;

    for (const char *p = text; (p = strstr(p, what)); p++) {
        n++;
    }
    return n;
}

static void test_base_units(void)
{
    g_autofree char *t = text_of(
        "{\"state\": \"protected\", \"mode\": \"primary\", \"epoch\": 7,"
        " \"checkpoint-delay\": 20000, \"held-bytes\": 1514,"
        " \"pause-us\": {\"count\": 3, \"sum\": 6000, \"median\": 2000, \"p99\": 2500}}");

    has_line(t, "colo_epoch 7");
    has_line(t, "colo_protected 1");
    has_line(t, "colo_role{role=\"primary\"} 1");
    has_line(t, "colo_checkpoint_delay_seconds 20");
    has_line(t, "colo_held_bytes 1514");
    has_line(t, "# TYPE colo_checkpoint_pause_seconds summary");
    has_line(t, "colo_checkpoint_pause_seconds{quantile=\"0.5\"} 0.002");
    has_line(t, "colo_checkpoint_pause_seconds_sum 0.006");
    has_line(t, "colo_checkpoint_pause_seconds_count 3");
}

static void test_labels_are_escaped(void)
{
    g_autofree char *t = text_of("{\"disks\": [{\"disk\": \"a\\\"b\\\\c\\nd\","
                                 " \"queued-bytes\": 5},"
                                 " {\"disk\": \"e\", \"queued-bytes\": 6}],"
                                 " \"triggers\": {\"timer\": 4, \"mismatch\": 1}}");

    has_line(t, "colo_disk_queued_bytes{disk=\"a\\\"b\\\\c\\nd\"} 5");
    has_line(t, "colo_disk_queued_bytes{disk=\"e\"} 6");
    g_assert_cmpuint(count(t, "# TYPE colo_disk_queued_bytes "), ==, 1);
    has_line(t, "colo_checkpoint_triggers_total{trigger=\"mismatch\"} 1");
}

/* Each beat that was refused, by link and reason; what is inside other members as well. */
static void test_heartbeats(void)
{
    g_autofree char *t = text_of(
        "{\"transfer\": {\"bytes-raw\": 12345678901234567},"
        " \"heartbeat\": {\"links\": ["
        "{\"id\": 0, \"rtt-us\": 100, \"sent\": 9, \"refused-forged\": 3},"
        "{\"id\": 1, \"rtt-us\": 50, \"refused-forged\": 0, \"refused-replayed\": 2}]}}");

    has_line(t, "colo_raw_bytes_total 12345678901234568");
    has_line(t, "colo_heartbeat_rtt_seconds{id=\"0\"} 0.0001");
    has_line(t, "colo_heartbeats_sent_total{id=\"0\"} 9");
    has_line(t, "colo_heartbeats_refused_total{id=\"0\",reason=\"forged\"} 3");
    has_line(t, "colo_heartbeats_refused_total{id=\"1\",reason=\"forged\"} 0");
    has_line(t, "colo_heartbeats_refused_total{id=\"1\",reason=\"replayed\"} 2");
    g_assert_cmpuint(count(t, "# TYPE colo_heartbeats_refused_total counter"), ==, 1);
    g_assert_cmpuint(count(t, "reason="), ==, 3);
}

/* What a side does not have, or has as something else, is no figure. */
static void test_missing_members(void)
{
    g_autofree char *t =
        text_of("{\"epoch\": \"many\", \"disks\": [1, null], \"pause-us\": 3,"
                " \"triggers\": [], \"heartbeat\": {\"links\": {}}}");

    g_assert_cmpuint(count(t, "colo_epoch"), ==, 0);
    g_assert_cmpuint(count(t, "colo_disk"), ==, 0);
    g_assert_cmpuint(count(t, "colo_checkpoint_pause"), ==, 0);
    has_line(t, "colo_build_info{version=\"" COLO_VERSION "\"} 1");
}

int main(int argc, char **argv)
{
    setlocale(LC_ALL, "");
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/metrics/base-units", test_base_units);
    g_test_add_func("/metrics/labels-are-escaped", test_labels_are_escaped);
    g_test_add_func("/metrics/heartbeats", test_heartbeats);
    g_test_add_func("/metrics/missing-members", test_missing_members);
    return g_test_run();
}
