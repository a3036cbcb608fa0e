/*
 * Netfilters: common properties, place in the list, status.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "net/filter.h"

#include <string.h>

#include "net/colo/colo-int.h"
#include "net/net-int.h"

static const char *const queues[] = {"all", "rx", "tx", NULL};
static const char *const inserts[] = {"before", "behind", NULL};

const NetProperty net_filter_properties[] = {
    {"netdev", "string", NET_PROPERTY_STRING, .required = true},
    {"queue", "NetFilterDirection", NET_PROPERTY_STRING, .values = queues},
    {"status", "string", NET_PROPERTY_STRING},
    {"position", "string", NET_PROPERTY_STRING},
    {"insert", "string", NET_PROPERTY_STRING, .values = inserts},
    {NULL},
};

static const char *direction_name(NetFilterDirection d)
{
    return d == NET_FILTER_ALL ? "all" : d == NET_FILTER_TX ? "tx" : "rx";
}

static NetFilterDirection parse_queue(const char *name)
{
    return g_str_equal(name, "tx")   ? NET_FILTER_TX
           : g_str_equal(name, "rx") ? NET_FILTER_RX
                                     : NET_FILTER_ALL;
}

static bool parse_status(const char *text, bool *on, GError **errp)
{
    *on = g_str_equal(text, "on");
    if (!*on && !g_str_equal(text, "off")) {
        colo_error_set(errp, "Invalid value for netfilter status, should be 'on' or 'off'");
        return false;
    }
    return true;
}

/* The index at which a filter of @nd goes into its list, or -1. */
static int find_place(NetDev *nd, const char *position, bool behind, GError **errp)
{
    GPtrArray *list = nd->filters;

    if (g_str_equal(position, "head")) {
        return 0;
    }
    if (g_str_equal(position, "tail")) {
        return list->len;
    }
    if (!g_str_has_prefix(position, "id=")) {
        colo_error_set(errp, "Parameter 'position' expects 'head', 'tail' or 'id=<id>'");
        return -1;
    }
    for (unsigned i = 0; i < list->len; i++) {
        NetFilter *o = list->pdata[i];
        if (g_str_equal(o->id, position + 3)) {
            return behind ? i + 1 : i;
        }
    }
    colo_error_set(errp, net_object_exists(position + 3)
                             ? "filter '%s' belongs to a different netdev"
                             : "filter '%s' not found",
                   position + 3);
    return -1;
}

NetFilter *net_filter_new(const NetFilterClass *class, JsonObject *opts, GError **errp)
{
    const char *id = options_get_str(opts, "id", "");
    const NetProperty *tables[] = {net_filter_properties, class->properties, NULL};
    const char *position = options_get_str(opts, "position", "tail");
    bool behind = g_str_equal(options_get_str(opts, "insert", "behind"), "behind");
    bool on = true;

    if (!net_properties_check(tables, class->type, opts, false, errp) ||
        !parse_status(options_get_str(opts, "status", "on"), &on, errp)) {
        return NULL;
    }
    NetDev *nd = netdev_find(options_get_str(opts, "netdev", ""));
    if (!nd) {
        colo_error_set(errp, "Parameter 'netdev' expects a network backend id");
        return NULL;
    }
    int place = find_place(nd, position, behind, errp);
    if (place < 0) {
        return NULL;
    }
    NetFilter *nf = g_malloc0(class->size);
    nf->class = class;
    nf->id = g_strdup(id);
    nf->nd = nd;
    nf->on = on;
    nf->direction = parse_queue(options_get_str(opts, "queue", "all"));
    nf->behind = behind;
    nf->position = g_strdup(position);
    if (!class->setup(nf, opts, errp)) {
        g_free(nf->id);
        g_free(nf->position);
        g_free(nf);
        return NULL;
    }
    g_ptr_array_insert(nd->filters, place, nf);
    colo_trace(net_filter_new, "%s '%s' at %d of %s", class->type, id, place, nd->id);
    return nf;
}

void net_filter_free(NetFilter *nf)
{
    /* Still in its list, so that what it lets go of continues behind it. */
    nf->class->cleanup(nf);
    netdev_forget_filter(nf->nd, nf);
    g_ptr_array_remove(nf->nd->filters, nf);
    g_free(nf->id);
    g_free(nf->position);
    g_free(nf);
}

void net_filter_pass_next(NetFilter *nf, NetFilterDirection dir, Frame *f)
{
    if (dir == NET_FILTER_TX) {
        netdev_tx(nf->nd, f, nf);
    } else {
        netdev_rx(nf->nd, f, nf);
    }
}

void net_filter_set_status(NetFilter *nf, bool on)
{
    if (nf->on == on) {
        return;
    }
    nf->on = on;
    if (nf->class->status_changed) {
        nf->class->status_changed(nf);
    }
}

/* --- Properties --- */

JsonNode *net_filter_get(NetFilter *nf, const char *property)
{
    if (g_str_equal(property, "netdev")) {
        return colo_string_node(nf->nd->id);
    }
    if (g_str_equal(property, "queue")) {
        return colo_string_node(direction_name(nf->direction));
    }
    if (g_str_equal(property, "status")) {
        return colo_string_node(nf->on ? "on" : "off");
    }
    if (g_str_equal(property, "position")) {
        return colo_string_node(nf->position);
    }
    if (g_str_equal(property, "insert")) {
        return colo_string_node(nf->behind ? "behind" : "before");
    }
    return nf->class->get ? nf->class->get(nf, property) : NULL;
}

/* To another place of its list. What waits goes on where the filter was. */
static bool move(NetFilter *nf, const char *position, bool behind, GError **errp)
{
    GPtrArray *list = nf->nd->filters;
    guint old = 0;

    g_ptr_array_find(list, nf, &old);
    netdev_forget_filter(nf->nd, nf);
    g_ptr_array_remove_index(list, old);
    int place = find_place(nf->nd, position, behind, errp);
    g_ptr_array_insert(list, place < 0 ? (int)old : place, nf);
    if (place < 0) {
        return false;
    }
    char *copy = g_strdup(position);
    g_free(nf->position);
    nf->position = copy;
    nf->behind = behind;
    colo_trace(net_filter_move, "'%s' to %d of %s", nf->id, place, nf->nd->id);
    return true;
}

static bool set_common(NetFilter *nf, const char *property, const char *text, GError **errp)
{
    bool on;

    if (g_str_equal(property, "queue")) {
        nf->direction = parse_queue(text);
    } else if (g_str_equal(property, "status")) {
        if (!parse_status(text, &on, errp)) {
            return false;
        }
        net_filter_set_status(nf, on);
    } else if (g_str_equal(property, "position")) {
        return move(nf, text, nf->behind, errp);
    } else if (g_str_equal(property, "insert")) {
        return move(nf, nf->position, g_str_equal(text, "behind"), errp);
    } else { /* netdev */
        if (!g_str_equal(text, nf->nd->id)) {
            colo_error_set(errp, "Property '%s.netdev' cannot be changed: delete '%s' and "
                                 "add it to netdev '%s'",
                           nf->class->type, nf->id, text);
            return false;
        }
    }
    return true;
}

bool net_filter_set(NetFilter *nf, const char *property, JsonNode *value, GError **errp)
{
    if (proxy_uses(nf)) {
        colo_error_set(errp, "filter '%s' is in use by COLO and stays as it is until "
                             "protection has ended",
                       nf->id);
        return false;
    }
    if (net_property_find(net_filter_properties, property)) {
        return set_common(nf, property, json_node_get_string(value), errp);
    }
    if (!nf->class->set) {
        colo_error_set(errp, "Property '%s.%s' is not writable", nf->class->type, property);
        return false;
    }
    return nf->class->set(nf, property, value, errp);
}
