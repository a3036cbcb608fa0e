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
        const char *name = options_get_str(json_node_get_object(n), "node-name", NULL);

        if (!find(ours, "node-name", name)) {
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
