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

bool net_iothread_exists(const char *id)
{
    NetObject *o = find(id);
    return o && o->kind == OBJECT_IOTHREAD;
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

bool net_object_add(JsonObject *opts, GError **errp)
{
    const char *type = options_get_str(opts, "qom-type", "");
    const char *id = options_get_str(opts, "id", "");
    static const char *const iothread_options[] = {"qom-type", "id", NULL};

    if (!*id) {
        colo_error_set(errp, "%s: parameter 'id' is missing", type);
        return false;
    }
    if (find(id)) {
        colo_error_set(errp, "attempt to add duplicate property '%s' to object (type "
                             "'container')",
                       id);
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
        g_autofree char *what = g_strdup_printf("iothread '%s'", id);
        o.kind = OBJECT_IOTHREAD;
        o.type = "iothread";
        if (!options_check_known(opts, what, iothread_options, errp)) {
            return false;
        }
    } else {
        colo_error_set(errp, "object type '%s' is not of the network", type);
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
                colo_error_set(errp, "object '%s' is in use by colo-compare '%s', can not "
                                     "be deleted",
                               id, u->id);
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

static JsonNode *string_node(const char *s)
{
    JsonNode *n = json_node_alloc();
    json_node_init_string(n, s);
    return n;
}

static JsonNode *filter_get(NetFilter *nf, const char *property)
{
    if (g_str_equal(property, "netdev")) {
        return string_node(nf->nd->id);
    }
    if (g_str_equal(property, "queue")) {
        return string_node(net_filter_direction_name(nf->direction));
    }
    if (g_str_equal(property, "status")) {
        return string_node(nf->on ? "on" : "off");
    }
    if (g_str_equal(property, "position")) {
        return string_node(nf->position);
    }
    if (g_str_equal(property, "insert")) {
        return string_node(nf->behind ? "behind" : "before");
    }
    return nf->class->get ? nf->class->get(nf, property) : NULL;
}

JsonNode *net_object_get(const char *id, const char *property, GError **errp)
{
    NetObject *o = find(id);
    JsonNode *n = NULL;

    if (!o) {
        g_set_error(errp, COLO_ERROR, COLO_ERROR_DEVICE_NOT_FOUND,
                    "Device '%s' not found", id);
        return NULL;
    }
    if (g_str_equal(property, "type")) {
        return string_node(o->type);
    }
    if (o->kind == OBJECT_FILTER) {
        n = filter_get(o->impl, property);
    } else if (o->kind == OBJECT_COMPARE) {
        n = colo_compare_get(o->impl, property);
    }
    if (!n) {
        colo_error_set(errp, "Property '%s.%s' not found", o->type, property);
    }
    return n;
}

static bool filter_set(NetFilter *nf, const char *property, JsonNode *value, bool *known,
                       GError **errp)
{
    *known = true;
    if (g_str_equal(property, "status")) {
        g_autoptr(JsonObject) o = json_object_new();
        bool on = nf->on;
        json_object_set_member(o, "status", json_node_copy(value));
        if (!options_get_bool(o, "status", &on, errp)) {
            return false;
        }
        if (!on && proxy_uses(nf)) {
            colo_error_set(errp, "filter '%s' is in use by COLO and stays on until "
                                 "protection has ended",
                           nf->id);
            return false;
        }
        return net_filter_set_status(nf, on);
    }
    *known = false;
    return nf->class->set && nf->class->set(nf, property, value, known, errp);
}

bool net_object_set(const char *id, const char *property, JsonNode *value, GError **errp)
{
    NetObject *o = find(id);
    bool known = false, ok = false;

    if (!o) {
        g_set_error(errp, COLO_ERROR, COLO_ERROR_DEVICE_NOT_FOUND,
                    "Device '%s' not found", id);
        return false;
    }
    if (o->kind == OBJECT_FILTER) {
        ok = filter_set(o->impl, property, value, &known, errp);
    } else if (o->kind == OBJECT_COMPARE) {
        ok = colo_compare_set(o->impl, property, value, &known, errp);
    }
    if (!known) {
        colo_error_set(errp, "Property '%s.%s' cannot be set now", o->type, property);
        return false;
    }
    return ok;
}
