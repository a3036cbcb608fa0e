/*
 * query-named-block-nodes and query-block: the emulator's answer, with our disks in it.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The emulator knows each disk as an nbd node. What stands behind it, and how its
 * replication fares, is ours to tell: nodes of ours take the place of the emulator's of the
 * same name, and a drive's "inserted" gets the members of our node.
 */
#include <string.h>

#include "block/block.h"
#include "block/replication.h"
#include "internal.h"
#include "qapi-commands.h"
#include "util/options.h"

static JsonObject *find(JsonArray *list, const char *key, const char *value)
{
    for (guint i = 0; value && list && i < json_array_get_length(list); i++) {
        JsonObject *o = json_array_get_object_element(list, i);

        if (!strcmp(options_get_str(o, key, ""), value)) {
            return o;
        }
    }
    return NULL;
}

static void set_zero(JsonObject *o, const char *const *keys)
{
    for (int i = 0; keys[i]; i++) {
        json_object_set_int_member(o, keys[i], 0);
    }
}

/* One node of ours with the members that clients of QEMU expect of any. */
static JsonNode *node_info(JsonObject *ours)
{
    static const char *const limits[] = {"bps",     "bps_rd",  "bps_wr",          "iops",
                                         "iops_rd", "iops_wr", "write_threshold", NULL};
    JsonObject *o = json_object_new(), *cache = json_object_new();
    JsonObject *image = json_object_new();
    JsonObjectIter it;
    const char *key;
    JsonNode *value;
    const char *file = options_get_str(ours, "file", "");
    int64_t size = json_object_get_int_member(ours, "size");

    json_object_iter_init(&it, ours);
    while (json_object_iter_next(&it, &key, &value)) {
        json_object_set_member(o, key, json_node_copy(value));
    }
    json_object_set_string_member(o, "file", file);
    json_object_set_boolean_member(o, "encrypted", FALSE);
    json_object_set_int_member(o, "backing_file_depth", 0);
    json_object_set_string_member(o, "detect_zeroes", "off");
    set_zero(o, limits);
    json_object_set_boolean_member(cache, "writeback", TRUE);
    json_object_set_boolean_member(cache, "direct", FALSE);
    json_object_set_boolean_member(cache, "no-flush", FALSE);
    json_object_set_object_member(o, "cache", cache);
    json_object_set_string_member(image, "filename", file);
    json_object_set_string_member(image, "format", options_get_str(ours, "drv", ""));
    json_object_set_int_member(image, "virtual-size", size);
    json_object_set_object_member(o, "image", image);
    JsonNode *n = json_node_init_object(json_node_alloc(), o);
    json_object_unref(o);
    return n;
}

/* Whether the emulator's node is the way to one of ours, or made by us for ourselves. */
static bool is_hidden(JsonArray *ours, JsonObject *node)
{
    const char *file = options_get_str(node, "file", "");
    const char *socket = strstr(file, "?socket=");

    if (is_private(options_get_str(node, "node-name", NULL)) ||
        strstr(file, "/proc/self/fd/") == file) {
        return true;
    }
    for (guint i = 0; socket && i < json_array_get_length(ours); i++) {
        JsonObject *o = json_array_get_object_element(ours, i);
        bool guest = false;
        options_get_bool(o, "guest", &guest, NULL);
        const char *path = guest ? block_serve_child(options_get_str(o, "node-name", ""), NULL)
                                 : NULL;
        if (path && strcmp(socket + strlen("?socket="), path) == 0) {
            return true;
        }
    }
    return false;
}

static void nodes_answer(JsonNode *ret, const GError *err, void *opaque)
{
    if (!ret || !JSON_NODE_HOLDS_ARRAY(ret)) {
        qmp_request_finish(opaque, NULL, err ? g_error_copy(err) : NULL);
        return;
    }
    g_autoptr(JsonArray) ours = block_query();
    JsonArray *theirs = json_node_get_array(ret), *all = json_array_new();

    for (guint i = 0; i < json_array_get_length(ours); i++) {
        json_array_add_element(all, node_info(json_array_get_object_element(ours, i)));
    }
    for (guint i = 0; i < json_array_get_length(theirs); i++) {
        JsonNode *n = json_array_get_element(theirs, i);
        JsonObject *node = json_node_get_object(n);

        if (!find(ours, "node-name", options_get_str(node, "node-name", NULL)) &&
            !is_hidden(ours, node)) {
            json_array_add_element(all, json_node_copy(n));
        }
    }
    qmp_request_finish(opaque, json_node_init_array(json_node_alloc(), all), NULL);
    json_array_unref(all);
}

QmpResult qmp_query_named_block_nodes(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                      GError **errp)
{
    monitor_child_execute("query-named-block-nodes", args, nodes_answer, req);
    return QMP_PENDING;
}

/* Our node of a drive of the emulator's. */
static JsonObject *node_of_drive(JsonArray *ours, JsonObject *info, JsonObject *inserted)
{
    const char *device = options_get_str(info, "device", NULL);
    const char *name = options_get_str(inserted, "node-name", NULL);
    JsonObject *o = find(ours, "node-name", name);

    o = o ? o : find(ours, "node-name", device);
    return o ? o : find(ours, "id", device);
}

static void block_answer(JsonNode *ret, const GError *err, void *opaque)
{
    if (!ret || !JSON_NODE_HOLDS_ARRAY(ret)) {
        qmp_request_finish(opaque, NULL, err ? g_error_copy(err) : NULL);
        return;
    }
    g_autoptr(JsonArray) ours = block_query();
    JsonNode *copy = json_node_copy(ret);
    JsonArray *list = json_node_get_array(copy);

    for (guint i = 0; i < json_array_get_length(list); i++) {
        JsonObject *info = json_array_get_object_element(list, i);
        JsonObject *inserted = options_get_obj(info, "inserted");
        JsonObject *o = inserted ? node_of_drive(ours, info, inserted) : NULL;

        if (o) {
            JsonNode *mine = node_info(o);

            json_object_set_member(info, "inserted", mine);
        }
    }
    qmp_request_finish(opaque, copy, NULL);
}

QmpResult qmp_query_block(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    monitor_child_execute("query-block", NULL, block_answer, req);
    return QMP_PENDING;
}

/* --- query-blockstats --- */

typedef struct Stats {
    QmpRequest *req;
    JsonNode *stats; /* the emulator's query-blockstats */
    bool nodes;      /* query-nodes: of nodes, not of drives */
} Stats;

/* Name the node behind each drive as query-block does; leave out what is private. */
static void stats_named(JsonNode *ret, const GError *err, void *opaque)
{
    g_autofree Stats *s = opaque;
    g_autoptr(JsonArray) ours = block_query();
    g_autoptr(JsonNode) stats = s->stats;
    JsonArray *drives = ret && JSON_NODE_HOLDS_ARRAY(ret) ? json_node_get_array(ret) : NULL;
    JsonArray *theirs = json_node_get_array(stats), *all = json_array_new();

    for (guint i = 0; i < json_array_get_length(theirs); i++) {
        JsonObject *o = json_array_get_object_element(theirs, i);
        const char *name = options_get_str(o, "node-name", "");
        bool shown = !is_private(name);

        for (guint k = 0; drives && k < json_array_get_length(drives); k++) {
            JsonObject *info = json_array_get_object_element(drives, k);
            JsonObject *inserted = options_get_obj(info, "inserted");
            JsonObject *mine = inserted ? node_of_drive(ours, info, inserted) : NULL;
            if (mine && strcmp(options_get_str(inserted, "node-name", ""), name) == 0) {
                const char *node = options_get_str(mine, "node-name", "");
                /* In QEMU no node is called as its drive, and libvirt keeps both in a table. */
                if (strcmp(options_get_str(o, "device", ""), node) != 0) {
                    json_object_set_string_member(o, "node-name", node);
                }
                shown = true;
                break;
            }
        }
        if (s->nodes && shown && !find(ours, "node-name", options_get_str(o, "node-name", ""))) {
            shown = strcmp(options_get_str(options_get_obj(o, "driver-specific"), "driver", ""),
                           "file") != 0;
        }
        if (shown) {
            json_array_add_object_element(all, json_object_ref(o));
        }
    }
    qmp_request_finish(s->req, json_node_init_array(json_node_alloc(), all), NULL);
    json_array_unref(all);
}

static void stats_answer(JsonNode *ret, const GError *err, void *opaque)
{
    Stats *s = opaque;

    if (!ret || !JSON_NODE_HOLDS_ARRAY(ret)) {
        qmp_request_finish(s->req, NULL, err ? g_error_copy(err) : NULL);
        g_free(s);
        return;
    }
    s->stats = json_node_copy(ret);
    monitor_child_execute("query-block", NULL, stats_named, s);
}

QmpResult qmp_query_blockstats(QmpRequest *req, JsonObject *args, JsonNode **ret,
                               GError **errp)
{
    Stats *s = g_new0(Stats, 1);

    s->req = req;
    options_get_bool(args, "query-nodes", &s->nodes, NULL);
    monitor_child_execute("query-blockstats", args, stats_answer, s);
    return QMP_PENDING;
}
