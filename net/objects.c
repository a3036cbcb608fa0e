/*
 * Objects of the net room: filters, comparisons, iothreads by id.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Room singleton @objects, guarded by the net lock. An iothread here is a name: all
 * network work is done by the net thread, but options that refer to one are checked.
 */
#include <string.h>

#include "net/colo/colo-int.h"
#include "net/net-int.h"

typedef enum ObjectKind { OBJECT_FILTER, OBJECT_COMPARE, OBJECT_IOTHREAD } ObjectKind;

typedef struct NetObject {
    ObjectKind kind;
    const char *type;
    char *id;
    void *impl; /* NetFilter or ColoCompare */
} NetObject;

static GPtrArray *objects;

static const NetFilterClass *const filter_classes[] = {
    &filter_mirror_class, &filter_redirector_class, &filter_rewriter_class,
    &filter_buffer_class};

static const NetFilterClass *find_class(const char *type)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(filter_classes); i++) {
        if (g_str_equal(type, filter_classes[i]->type)) {
            return filter_classes[i];
        }
    }
    return NULL;
}

bool net_object_wants(const char *qom_type)
{
    return find_class(qom_type) || g_str_equal(qom_type, "colo-compare") ||
           g_str_equal(qom_type, "iothread");
}

static NetObject *find(const char *id)
{
    for (unsigned i = 0; objects && i < objects->len; i++) {
        NetObject *o = objects->pdata[i];
        if (g_str_equal(o->id, id)) {
            return o;
        }
    }
    return NULL;
}

bool net_object_exists(const char *id)
{
    return find(id) != NULL;
}

const char *net_iothread_find(const char *path, GError **errp)
{
    const char *id = g_str_has_prefix(path, "/objects/") ? path + strlen("/objects/") : path;
    NetObject *o = find(id);

    if (!o) {
        g_set_error(errp, COLO_ERROR, COLO_ERROR_DEVICE_NOT_FOUND,
                    "Device '%s' not found", path);
        return NULL;
    }
    if (o->kind != OBJECT_IOTHREAD) {
        colo_error_set(errp, "Invalid parameter type for 'iothread', expected: iothread");
        return NULL;
    }
    return id;
}

void net_objects_each(void (*fn)(NetFilter *nf, ColoCompare *cmp, void *opaque),
                      void *opaque)
{
    for (unsigned i = 0; objects && i < objects->len; i++) {
        NetObject *o = objects->pdata[i];
        if (o->kind != OBJECT_IOTHREAD) {
            fn(o->kind == OBJECT_FILTER ? o->impl : NULL,
               o->kind == OBJECT_COMPARE ? o->impl : NULL, opaque);
        }
    }
}

/* The properties of objects of @type, beside those of every filter; NULL: not ours. */
static const NetProperty *properties_of(const char *type, bool *filter)
{
    const NetFilterClass *class = find_class(type);

    *filter = class != NULL;
    return class ? class->properties
                 : g_str_equal(type, "colo-compare") ? colo_compare_properties : NULL;
}

bool net_object_check(JsonObject *opts, GError **errp)
{
    const char *type = options_get_str(opts, "qom-type", "");
    bool filter;
    const NetProperty *own = properties_of(type, &filter);
    const NetProperty *tables[] = {own, filter ? net_filter_properties : NULL, NULL};

    return !own || net_properties_check(tables, type, opts, true, errp);
}

/* A letter, then letters, digits, '-', '.', '_'. */
static bool is_identifier(const char *id)
{
    if (!g_ascii_isalpha(*id)) {
        return false;
    }
    while (g_ascii_isalnum(*id) || (*id && strchr("-._", *id))) {
        id++;
    }
    return !*id;
}

static bool check_id(JsonObject *opts, GError **errp)
{
    const char *id = options_get_str(opts, "id", NULL);

    if (!id) {
        colo_error_set(errp, "Parameter 'id' is missing");
        return false;
    }
    if (!is_identifier(id)) {
        colo_error_set(errp, "Parameter 'id' expects an identifier");
        return false;
    }
    if (find(id)) {
        colo_error_set(errp, "attempt to add duplicate property '%s' to object (type "
                             "'container')",
                       id);
        return false;
    }
    return true;
}

bool net_object_add(JsonObject *opts, GError **errp)
{
    const char *type = options_get_str(opts, "qom-type", "");
    const char *id = options_get_str(opts, "id", "");

    if (!check_id(opts, errp)) {
        return false;
    }
    const NetFilterClass *class = find_class(type);
    NetObject o = {.type = type};
    if (class) {
        o.kind = OBJECT_FILTER;
        o.type = class->type;
        o.impl = net_filter_new(class, opts, errp);
    } else if (g_str_equal(type, "colo-compare")) {
        o.kind = OBJECT_COMPARE;
        o.type = "colo-compare";
        o.impl = colo_compare_new(opts, errp);
    } else if (g_str_equal(type, "iothread")) {
        o.kind = OBJECT_IOTHREAD; /* its properties are the emulator's */
        o.type = "iothread";
    } else {
        colo_error_set(errp, "Parameter 'qom-type' does not accept value '%s'", type);
        return false;
    }
    if (!o.impl && o.kind != OBJECT_IOTHREAD) {
        return false;
    }
    o.id = g_strdup(id);
    if (!objects) {
        objects = g_ptr_array_new();
    }
    g_ptr_array_add(objects, g_memdup2(&o, sizeof(o)));
    colo_trace(net_object_add, "%s '%s'", o.type, id);
    return true;
}

bool net_object_del(const char *id, GError **errp)
{
    NetObject *o = find(id);

    if (!o) {
        colo_error_set(errp, "object '%s' not found", id);
        return false;
    }
    if (o->kind == OBJECT_IOTHREAD) {
        for (unsigned i = 0; i < objects->len; i++) {
            NetObject *u = objects->pdata[i];
            if (u->kind == OBJECT_COMPARE &&
                g_str_equal(colo_compare_iothread(u->impl), id)) {
                colo_error_set(errp, "object '%s' is in use, can not be deleted", id);
                return false;
            }
        }
    }
    colo_trace(net_object_del, "%s '%s'", o->type, id);
    proxy_object_leaves(o->kind == OBJECT_FILTER ? o->impl : NULL,
                        o->kind == OBJECT_COMPARE ? o->impl : NULL);
    g_ptr_array_remove(objects, o);
    if (o->kind == OBJECT_FILTER) {
        net_filter_free(o->impl);
    } else if (o->kind == OBJECT_COMPARE) {
        colo_compare_free(o->impl);
    }
    g_free(o->id);
    g_free(o);
    return true;
}

char **net_object_ids(void)
{
    GPtrArray *ids = g_ptr_array_new();

    for (unsigned i = 0; objects && i < objects->len; i++) {
        g_ptr_array_add(ids, g_strdup(((NetObject *)objects->pdata[i])->id));
    }
    g_ptr_array_add(ids, NULL);
    return (char **)g_ptr_array_free(ids, FALSE);
}

/* --- Properties --- */

static NetObject *find_or_fail(const char *id, GError **errp)
{
    NetObject *o = find(id);

    if (!o) {
        g_set_error(errp, COLO_ERROR, COLO_ERROR_DEVICE_NOT_FOUND,
                    "Device '%s' not found", id);
    }
    return o;
}

static const NetProperty *find_property(NetObject *o, const char *name, GError **errp)
{
    bool filter;
    const NetProperty *p = net_property_find(properties_of(o->type, &filter), name);

    if (!p && filter) {
        p = net_property_find(net_filter_properties, name);
    }
    if (!p) {
        colo_error_set(errp, "Property '%s.%s' not found", o->type, name);
    }
    return p;
}

JsonNode *net_object_get(const char *id, const char *property, GError **errp)
{
    NetObject *o = find_or_fail(id, errp);

    if (!o) {
        return NULL;
    }
    if (g_str_equal(property, "type")) {
        return colo_string_node(o->type);
    }
    if (!find_property(o, property, errp)) {
        return NULL;
    }
    return o->kind == OBJECT_FILTER ? net_filter_get(o->impl, property)
                                    : colo_compare_get(o->impl, property);
}

bool net_object_set(const char *id, const char *property, JsonNode *value, GError **errp)
{
    NetObject *o = find_or_fail(id, errp);

    if (!o) {
        return false;
    }
    if (g_str_equal(property, "type")) {
        colo_error_set(errp, "Property '%s.type' is not writable", o->type);
        return false;
    }
    const NetProperty *p = find_property(o, property, errp);
    if (!p || !net_property_check(p, o->type, value, true, errp)) {
        return false;
    }
    return o->kind == OBJECT_FILTER ? net_filter_set(o->impl, property, value, errp)
                                    : colo_compare_set(o->impl, property, value, errp);
}

static void list_type(JsonArray *out)
{
    static const NetProperty type[] = {{"type", "string", NET_PROPERTY_STRING}, {NULL}};
    net_properties_list(type, out);
}

JsonArray *net_type_properties(const char *type)
{
    bool filter;
    const NetProperty *own = properties_of(type, &filter);

    if (!own) {
        return NULL;
    }
    JsonArray *out = json_array_new();
    list_type(out);
    net_properties_list(filter ? net_filter_properties : NULL, out);
    net_properties_list(own, out);
    return out;
}

JsonArray *net_object_properties(const char *id)
{
    NetObject *o = find(id);
    return o ? net_type_properties(o->type) : NULL;
}

void net_objects_list(JsonArray *out)
{
    for (unsigned i = 0; objects && i < objects->len; i++) {
        NetObject *o = objects->pdata[i];
        if (o->kind != OBJECT_IOTHREAD) {
            g_autofree char *type = g_strdup_printf("child<%s>", o->type);
            JsonObject *child = json_object_new();
            json_object_set_string_member(child, "name", o->id);
            json_object_set_string_member(child, "type", type);
            json_array_add_object_element(out, child);
        }
    }
}
