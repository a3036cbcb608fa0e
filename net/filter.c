/*
 * Netfilters: common options, place in the list, status.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "net/filter.h"

#include <string.h>

#include "net/net-int.h"

static const char *const common_options[] = {"qom-type", "id",       "netdev", "queue",
                                             "status",   "position", "insert"};

const char *net_filter_direction_name(NetFilterDirection d)
{
    return d == NET_FILTER_ALL ? "all" : d == NET_FILTER_TX ? "tx" : "rx";
}

static bool check_options(const NetFilterClass *class, JsonObject *opts, const char *what,
                          GError **errp)
{
    g_autoptr(GPtrArray) known = g_ptr_array_new();

    for (unsigned i = 0; i < G_N_ELEMENTS(common_options); i++) {
        g_ptr_array_add(known, (char *)common_options[i]);
    }
    for (int i = 0; class->options && class->options[i]; i++) {
        g_ptr_array_add(known, (char *)class->options[i]);
    }
    g_ptr_array_add(known, NULL);
    return options_check_known(opts, what, (const char *const *)known->pdata, errp);
}

static bool parse_queue(NetFilter *nf, const char *queue, const char *what, GError **errp)
{
    static const NetFilterDirection all[] = {NET_FILTER_ALL, NET_FILTER_RX, NET_FILTER_TX};

    for (unsigned i = 0; i < G_N_ELEMENTS(all); i++) {
        if (g_str_equal(queue, net_filter_direction_name(all[i]))) {
            nf->direction = all[i];
            return true;
        }
    }
    colo_error_set(errp, "%s: queue '%s' is none of all, rx, tx", what, queue);
    return false;
}

/* "on" or "off"; a JSON boolean is taken too. */
static bool parse_status(JsonObject *opts, bool *on, const char *what, GError **errp)
{
    g_autoptr(GError) err = NULL;

    if (!options_get_bool(opts, "status", on, &err)) {
        colo_error_set(errp, "%s: status '%s' is neither on nor off", what,
                       options_get_str(opts, "status", ""));
        return false;
    }
    return true;
}

/* The index at which the filter goes into its list, or -1. */
static int find_place(NetFilter *nf, JsonObject *opts, const char *what, GError **errp)
{
    const char *position = options_get_str(opts, "position", "tail");
    const char *insert = options_get_str(opts, "insert", "behind");
    GPtrArray *list = nf->nd->filters;

    if (!g_str_equal(insert, "before") && !g_str_equal(insert, "behind")) {
        colo_error_set(errp, "%s: insert '%s' is neither before nor behind", what, insert);
        return -1;
    }
    nf->position = g_strdup(position);
    nf->behind = g_str_equal(insert, "behind");
    if (g_str_equal(position, "head")) {
        return 0;
    }
    if (g_str_equal(position, "tail")) {
        return list->len;
    }
    if (!g_str_has_prefix(position, "id=")) {
        colo_error_set(errp, "%s: position '%s' is none of head, tail, id=NAME", what,
                       position);
        return -1;
    }
    for (unsigned i = 0; i < list->len; i++) {
        NetFilter *o = list->pdata[i];
        if (g_str_equal(o->id, position + 3)) {
            return nf->behind ? i + 1 : i;
        }
    }
    colo_error_set(errp, "%s: position: netdev '%s' has no filter '%s'", what, nf->nd->id,
                   position + 3);
    return -1;
}

NetFilter *net_filter_new(const NetFilterClass *class, JsonObject *opts, GError **errp)
{
    const char *id = options_get_str(opts, "id", "");
    const char *netdev = options_get_str(opts, "netdev", NULL);
    g_autofree char *what = g_strdup_printf("%s '%s'", class->type, id);

    if (!check_options(class, opts, what, errp)) {
        return NULL;
    }
    NetDev *nd = netdev ? netdev_find(netdev) : NULL;
    if (!nd) {
        colo_error_set(errp, netdev ? "%s: netdev '%s' not found"
                                    : "%s: parameter 'netdev' is missing%s",
                       what, netdev ? netdev : "");
        return NULL;
    }
    NetFilter *nf = g_malloc0(class->size);
    nf->class = class;
    nf->id = g_strdup(id);
    nf->nd = nd;
    nf->on = true;
    int place = -1;
    if (!parse_queue(nf, options_get_str(opts, "queue", "all"), what, errp) ||
        !parse_status(opts, &nf->on, what, errp) ||
        (place = find_place(nf, opts, what, errp)) < 0 || !class->setup(nf, opts, errp)) {
        g_free(nf->id);
        g_free(nf->position);
        g_free(nf);
        return NULL;
    }
    g_ptr_array_insert(nd->filters, place, nf);
    colo_trace(net_filter_new, "%s at %d of %s", what, place, nd->id);
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

bool net_filter_set_status(NetFilter *nf, bool on)
{
    if (nf->on == on) {
        return true;
    }
    nf->on = on;
    if (nf->class->status_changed) {
        nf->class->status_changed(nf);
    }
    return true;
}
