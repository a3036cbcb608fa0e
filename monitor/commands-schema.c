/*
 * query-qmp-schema: the emulator's answer and ours as one.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The emulator's entry of a command stays where it has one, as its types are the fuller
 * ones; but where ours takes arguments and the emulator's none, ours is the truth. It is made
 * once: it is large, and nobody shall hold up others by asking for it again and again.
 */
#include <string.h>

#include "qapi-commands.h"
#include "util/options.h"

/* Whether object type @name of @types has members. */
static bool has_members(GHashTable *types, const char *name)
{
    JsonObject *t = name ? g_hash_table_lookup(types, name) : NULL;
    JsonNode *m = t ? json_object_get_member(t, "members") : NULL;

    return m && JSON_NODE_HOLDS_ARRAY(m) && json_array_get_length(json_node_get_array(m)) > 0;
}

/* name -> entry; borrowed. */
static GHashTable *index_of(JsonArray *list)
{
    GHashTable *t = g_hash_table_new(g_str_hash, g_str_equal);

    for (guint i = 0; i < json_array_get_length(list); i++) {
        JsonNode *n = json_array_get_element(list, i);
        if (JSON_NODE_HOLDS_OBJECT(n)) {
            JsonObject *o = json_node_get_object(n);
            g_hash_table_insert(t, (char *)options_get_str(o, "name", ""), o);
        }
    }
    return t;
}

static void merge(JsonArray *list, JsonArray *ours)
{
    g_autoptr(GHashTable) theirs = index_of(list), mine = index_of(ours);

    for (guint i = 0; i < json_array_get_length(ours); i++) {
        JsonObject *o = json_array_get_object_element(ours, i);
        JsonObject *known = g_hash_table_lookup(theirs, options_get_str(o, "name", ""));
        if (!known) {
            json_array_add_object_element(list, json_object_ref(o));
        } else if (!has_members(theirs, options_get_str(known, "arg-type", NULL)) &&
                   has_members(mine, options_get_str(o, "arg-type", NULL))) {
            json_object_set_string_member(known, "arg-type",
                                          options_get_str(o, "arg-type", ""));
        }
        if (known && json_object_has_member(o, "allow-oob")) {
            json_object_set_boolean_member(known, "allow-oob", TRUE);
        }
    }
}

/* Room singleton (main thread): both as one, once somebody asked. */
static JsonNode *schema;

static void on_schema(JsonNode *ret, const GError *err, void *opaque)
{
    g_autoptr(JsonNode) ours = json_from_string(qapi_introspection, NULL);

    if (err || !JSON_NODE_HOLDS_ARRAY(ret)) {
        qmp_request_finish(opaque, NULL, err ? g_error_copy(err) : NULL);
        return;
    }
    if (!schema) {
        schema = json_node_copy(ret);
        merge(json_node_get_array(schema), json_node_get_array(ours));
    }
    qmp_request_finish(opaque, json_node_copy(schema), NULL);
}

QmpResult qmp_query_qmp_schema(QmpRequest *req, JsonObject *args, JsonNode **ret,
                               GError **errp)
{
    if (schema) {
        *ret = json_node_copy(schema);
        return QMP_DONE;
    }
    monitor_child_execute("query-qmp-schema", NULL, on_schema, req);
    return QMP_PENDING;
}
