/*
 * Check of JSON values against schema types.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qapi/qapi.h"

#include "util/error.h"

static bool check_value(const QapiType *type, JsonNode *node, const char *path,
                        GError **errp);

static bool wrong_type(const char *path, const char *expected, GError **errp)
{
    colo_error_set(errp, "Invalid parameter type for '%s', expected: %s", path, expected);
    return false;
}

static bool holds(JsonNode *node, GType type)
{
    return JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == type;
}

/* The path of @key under @prefix as QEMU writes it: "a.b", "a[0].b". */
static char *member_path(const char *prefix, const char *key)
{
    return prefix ? g_strdup_printf("%s.%s", prefix, key) : g_strdup(key);
}

static const QapiMember *find_member(const QapiType *type, const char *name)
{
    for (const QapiMember *m = type->members; m && m->name; m++) {
        if (g_str_equal(m->name, name)) {
            return m;
        }
    }
    return NULL;
}

static bool check_struct(const QapiType *type, JsonObject *obj, const char *prefix,
                         GError **errp)
{
    for (const QapiMember *m = type->members; m && m->name; m++) {
        JsonNode *value = obj ? json_object_get_member(obj, m->name) : NULL;
        g_autofree char *path = member_path(prefix, m->name);
        if (!value) {
            if (m->optional) {
                continue;
            }
            colo_error_set(errp, "Parameter '%s' is missing", path);
            return false;
        }
        if (!check_value(m->type, value, path, errp)) {
            return false;
        }
    }
    if (type->open || !obj) {
        return true;
    }
    g_autoptr(GList) keys = json_object_get_members(obj);
    for (GList *l = keys; l; l = l->next) {
        if (!find_member(type, l->data)) {
            g_autofree char *path = member_path(prefix, l->data);
            colo_error_set(errp, "Parameter '%s' is unexpected", path);
            return false;
        }
    }
    return true;
}

static bool check_list(const QapiType *type, JsonArray *array, const char *path,
                       GError **errp)
{
    guint n = json_array_get_length(array);

    for (guint i = 0; i < n; i++) {
        g_autofree char *item = g_strdup_printf("%s[%u]", path, i);
        if (!check_value(type->element, json_array_get_element(array, i), item, errp)) {
            return false;
        }
    }
    return true;
}

static bool check_integer(const QapiType *type, JsonNode *node, const char *path,
                          GError **errp)
{
    bool is_signed = type->kind == QAPI_INT;

    if (!holds(node, G_TYPE_INT64)) {
        if (is_signed) {
            return wrong_type(path, "integer", errp);
        }
        colo_error_set(errp, "Parameter '%s' expects uint64", path);
        return false;
    }
    gint64 v = json_node_get_int(node);
    unsigned bits = MIN(type->bits, is_signed ? 64u : 63u);
    gint64 max = is_signed ? G_MAXINT64 >> (64 - bits) : G_MAXINT64 >> (63 - bits);
    gint64 min = is_signed ? -max - 1 : 0;
    if (v < min || v > max) {
        colo_error_set(errp, "Parameter '%s' expects %s%u_t", path,
                       is_signed ? "int" : "uint", type->bits);
        return false;
    }
    return true;
}

static bool check_enum(const QapiType *type, JsonNode *node, const char *path,
                       GError **errp)
{
    if (!holds(node, G_TYPE_STRING)) {
        return wrong_type(path, "string", errp);
    }
    const char *s = json_node_get_string(node);
    if (!g_strv_contains(type->values, s)) {
        colo_error_set(errp, "Parameter '%s' does not accept value '%s'", path, s);
        return false;
    }
    return true;
}

static bool check_value(const QapiType *type, JsonNode *node, const char *path,
                        GError **errp)
{
    switch (type->kind) {
    case QAPI_ANY:
        return true;
    case QAPI_STR:
        return holds(node, G_TYPE_STRING) || wrong_type(path, "string", errp);
    case QAPI_BOOL:
        return holds(node, G_TYPE_BOOLEAN) || wrong_type(path, "boolean", errp);
    case QAPI_NUMBER:
        return holds(node, G_TYPE_INT64) || holds(node, G_TYPE_DOUBLE) ||
               wrong_type(path, "number", errp);
    case QAPI_INT:
    case QAPI_UINT:
        return check_integer(type, node, path, errp);
    case QAPI_ENUM:
        return check_enum(type, node, path, errp);
    case QAPI_LIST:
        return JSON_NODE_HOLDS_ARRAY(node)
                   ? check_list(type, json_node_get_array(node), path, errp)
                   : wrong_type(path, "array", errp);
    case QAPI_STRUCT:
        return JSON_NODE_HOLDS_OBJECT(node)
                   ? check_struct(type, json_node_get_object(node), path, errp)
                   : wrong_type(path, "object", errp);
    }
    g_return_val_if_reached(false);
}

bool qapi_check_args(const QapiType *type, JsonObject *args, GError **errp)
{
    return check_struct(type, args, NULL, errp);
}
