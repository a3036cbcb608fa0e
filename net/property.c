/*
 * Properties of the objects of the net room: names, types, checks.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "net/property.h"

#include "util/error.h"
#include "util/options.h"

const NetProperty *net_property_find(const NetProperty *table, const char *name)
{
    for (; table && table->name; table++) {
        if (g_str_equal(table->name, name)) {
            return table;
        }
    }
    return NULL;
}

static bool has_type(JsonNode *value, GType type)
{
    return JSON_NODE_HOLDS_VALUE(value) && json_node_get_value_type(value) == type;
}

static bool check_string(const NetProperty *p, JsonNode *value, GError **errp)
{
    if (!has_type(value, G_TYPE_STRING)) {
        colo_error_set(errp, "Invalid parameter type for '%s', expected: string", p->name);
        return false;
    }
    if (p->values && !g_strv_contains(p->values, json_node_get_string(value))) {
        colo_error_set(errp, "Parameter '%s' does not accept value '%s'", p->name,
                       json_node_get_string(value));
        return false;
    }
    return true;
}

static bool check_bool(const NetProperty *p, JsonNode *value, bool strict, GError **errp)
{
    g_autoptr(JsonObject) o = json_object_new();
    bool b;

    if (has_type(value, G_TYPE_BOOLEAN)) {
        return true;
    }
    if (strict || !has_type(value, G_TYPE_STRING)) {
        colo_error_set(errp, "Invalid parameter type for '%s', expected: boolean", p->name);
        return false;
    }
    json_object_set_member(o, p->name, json_node_copy(value));
    return options_get_bool(o, p->name, &b, errp);
}

static bool check_uint(const NetProperty *p, const char *type, JsonNode *value,
                       bool strict, GError **errp)
{
    g_autoptr(JsonObject) o = json_object_new();
    uint64_t n = 0;

    if (!has_type(value, G_TYPE_INT64) && (strict || !has_type(value, G_TYPE_STRING))) {
        colo_error_set(errp, "Parameter '%s' expects uint64", p->name);
        return false;
    }
    json_object_set_member(o, p->name, json_node_copy(value));
    if (!options_get_uint(o, p->name, &n, 0, UINT32_MAX, NULL)) {
        bool number = has_type(value, G_TYPE_INT64) ||
                      options_get_uint(o, p->name, &n, 0, UINT64_MAX, NULL);
        colo_error_set(errp, "Parameter '%s' expects %s", p->name,
                       number ? "uint32_t" : "uint64");
        return false;
    }
    if (p->positive && n == 0) {
        colo_error_set(errp, "Property '%s.%s' requires a positive value", type, p->name);
        return false;
    }
    return true;
}

bool net_property_check(const NetProperty *p, const char *type, JsonNode *value,
                        bool strict, GError **errp)
{
    switch (p->kind) {
    case NET_PROPERTY_STRING:
        return check_string(p, value, errp);
    case NET_PROPERTY_BOOL:
        return check_bool(p, value, strict, errp);
    case NET_PROPERTY_UINT:
        return check_uint(p, type, value, strict, errp);
    }
    g_assert_not_reached();
}

static const NetProperty *find_any(const NetProperty *const *tables, const char *name)
{
    const NetProperty *p = NULL;

    for (; *tables && !p; tables++) {
        p = net_property_find(*tables, name);
    }
    return p;
}

bool net_properties_check(const NetProperty *const *tables, const char *type,
                          JsonObject *opts, bool strict, GError **errp)
{
    g_autoptr(GList) names = json_object_get_members(opts);

    for (GList *l = names; l; l = l->next) {
        const char *name = l->data;
        if (g_str_equal(name, "qom-type") || g_str_equal(name, "id")) {
            continue;
        }
        const NetProperty *p = find_any(tables, name);
        if (!p) {
            colo_error_set(errp, "Parameter '%s' is unexpected", name);
            return false;
        }
        if (!net_property_check(p, type, json_object_get_member(opts, name), strict, errp)) {
            return false;
        }
    }
    for (; *tables; tables++) {
        for (const NetProperty *p = *tables; p->name; p++) {
            if (p->required && !json_object_has_member(opts, p->name)) {
                colo_error_set(errp, "Parameter '%s' is missing", p->name);
                return false;
            }
        }
    }
    return true;
}

void net_properties_list(const NetProperty *table, JsonArray *out)
{
    for (; table && table->name; table++) {
        JsonObject *o = json_object_new();
        json_object_set_string_member(o, "name", table->name);
        json_object_set_string_member(o, "type", table->qom_type);
        json_array_add_object_element(out, o);
    }
}
