/*
 * Events: the emulator's, filtered, and ours.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "internal.h"

#include <string.h>

#include "util/trace.h"

bool is_private(const char *id)
{
    return id && g_str_has_prefix(id, "qemu-colo-");
}

/* Room singleton. */
static struct {
    MonitorEventFilter filter;
    void *opaque;
} events;

void monitor_set_event_filter(MonitorEventFilter fn, void *opaque)
{
    events.filter = fn;
    events.opaque = opaque;
}

/* Whether the event is about a job or device that we made for ourselves. */
static bool is_own(JsonObject *data)
{
    static const char *const keys[] = {"id", "device", "node-name"};

    for (size_t i = 0; data && i < G_N_ELEMENTS(keys); i++) {
        JsonNode *node = json_object_get_member(data, keys[i]);
        const char *s = node && JSON_NODE_HOLDS_VALUE(node) ? json_node_get_string(node)
                                                            : NULL;
        if (is_private(s)) {
            return true;
        }
    }
    return false;
}

void events_from_child(JsonSpan text)
{
    g_autofree char *name = json_text_string(json_text_member(text, "event"));
    JsonSpan span = json_text_member(text, "data");
    g_autoptr(JsonNode) node = NULL;
    JsonObject *data = NULL;

    if (!name) {
        return;
    }
    if (span.text && json_text_parse(span, &node, NULL) && JSON_NODE_HOLDS_OBJECT(node)) {
        data = json_node_get_object(node);
    }
    bool shown = !events.filter || events.filter(name, data, events.opaque);
    shown = shown && !is_own(data);
    colo_trace(monitor_child_event, "%s%s", name, shown ? "" : " (hidden)");
    if (shown) {
        g_autofree char *line = g_strndup(text.text, text.len);
        qmp_clients_broadcast(line);
    }
}

static gboolean broadcast(void *opaque)
{
    qmp_clients_broadcast(opaque);
    g_free(opaque);
    return G_SOURCE_REMOVE;
}

void monitor_event(const char *name, JsonObject *data)
{
    gint64 us = g_get_real_time();
    GString *line = g_string_new(NULL);

    g_string_printf(line,
                    "{\"timestamp\": {\"seconds\": %" G_GINT64_FORMAT
                    ", \"microseconds\": %" G_GINT64_FORMAT "}, \"event\": ",
                    us / G_USEC_PER_SEC, us % G_USEC_PER_SEC);
    json_text_append_string(line, name);
    if (data) {
        g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), data);
        g_string_append(line, ", \"data\": ");
        json_text_append_node(line, node);
        json_object_unref(data);
    }
    g_string_append_c(line, '}');
    colo_trace(monitor_event, "%s", name);
    monitor_post(broadcast, g_string_free(line, FALSE));
}
