/*
 * What the pair is made of: disks, filters and chardevs, by the command line.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A secondary that has taken over needs what a primary's command line would have given it.
 * Its own line has the counterpart of each part: the port that red0 connects to is the one
 * that a mirror listens on, and so on. Nothing is guessed that the line says.
 */
#include "system/pair-layout.h"

#include <stdio.h>
#include <string.h>

#include "util/error.h"
#include "util/options.h"

static void free_disk(gpointer p)
{
    PairDisk *d = p;

    g_free(d->top);
    g_free(d->export);
    g_free(d->node);
    g_free(d->job);
    g_free(d);
}

void pair_layout_free(PairLayout *l)
{
    if (l) {
        g_ptr_array_unref(l->disks);
        g_ptr_array_unref(l->chardevs);
        g_ptr_array_unref(l->objects);
        g_ptr_array_unref(l->streams);
        g_ptr_array_unref(l->old_objects);
        g_ptr_array_unref(l->old_chardevs);
        g_free(l);
    }
}

/* The options @name of the line, parsed. */
static GPtrArray *parse_all(const CmdLine *cl, const char *name, const char *implied)
{
    GPtrArray *out = g_ptr_array_new_with_free_func((GDestroyNotify)json_object_unref);

    for (guint i = 0; i < cl->options->len; i++) {
        const CmdOption *o = &g_array_index(cl->options, CmdOption, i);
        JsonObject *obj = strcmp(o->name, name) == 0 && o->arg
                              ? options_parse(o->arg, implied, NULL) : NULL;
        if (obj) {
            g_ptr_array_add(out, obj);
        }
    }
    return out;
}

static bool is(JsonObject *o, const char *key, const char *value)
{
    return strcmp(options_get_str(o, key, ""), value) == 0;
}

static JsonObject *find(GPtrArray *list, const char *key, const char *value)
{
    for (guint i = 0; i < list->len; i++) {
        if (is(list->pdata[i], key, value)) {
            return list->pdata[i];
        }
    }
    return NULL;
}

/* --- Disks --- */

static const char *node_name(JsonObject *o)
{
    return options_get_str(o, "node-name", options_get_str(o, "id", NULL));
}

/* The secondary's replication node whose guest-side disk is @top. */
static JsonObject *replication_of(GPtrArray *nodes, const char *top)
{
    for (guint i = 0; i < nodes->len; i++) {
        if (is(nodes->pdata[i], "driver", "replication") && is(nodes->pdata[i], "top-id", top)) {
            return nodes->pdata[i];
        }
    }
    return NULL;
}

static void find_disks(PairLayout *l, const CmdLine *cl)
{
    g_autoptr(GPtrArray) nodes = parse_all(cl, "drive", NULL);
    g_autoptr(GPtrArray) more = parse_all(cl, "blockdev", "driver");

    for (guint i = 0; i < more->len; i++) {
        g_ptr_array_add(nodes, json_object_ref(more->pdata[i]));
    }
    for (guint i = 0; i < nodes->len; i++) {
        const char *top = node_name(nodes->pdata[i]);
        if (!is(nodes->pdata[i], "driver", "quorum") || !top) {
            continue;
        }
        PairDisk *d = g_new0(PairDisk, 1);
        unsigned n = l->disks->len;
        JsonObject *rep = replication_of(nodes, top);
        JsonObject *hidden =
            rep ? options_get_obj(options_get_obj(rep, "file"), "backing") : NULL;
        d->top = g_strdup(top);
        d->export = hidden ? g_strdup(options_get_str(hidden, "backing", NULL)) : NULL;
        d->node = g_strdup_printf("replication%u", n);
        d->job = n ? g_strdup_printf("resync-%u", n) : g_strdup("resync");
        options_get_bool(rep ? rep : nodes->pdata[i], "shared-disk", &d->shared, NULL);
        g_ptr_array_add(l->disks, d);
    }
}

/* --- Filters --- */

/* Keyval has strings for everything; QMP wants the types of the properties. */
static JsonObject *with_types(JsonObject *o)
{
    static const char *const numbers[] = {"compare_timeout", "expired_scan_cycle",
                                          "max_queue_size", "interval"};
    JsonObject *out = options_copy(o);
    uint64_t n = 0;
    bool on = false;

    for (unsigned i = 0; i < G_N_ELEMENTS(numbers); i++) {
        if (json_object_has_member(out, numbers[i]) &&
            options_get_uint(out, numbers[i], &n, 0, G_MAXINT64, NULL)) {
            json_object_set_int_member(out, numbers[i], n);
        }
    }
    if (json_object_has_member(out, "vnet_hdr_support") &&
        options_get_bool(out, "vnet_hdr_support", &on, NULL)) {
        json_object_set_boolean_member(out, "vnet_hdr_support", on);
    }
    return out;
}

/* One object-add, its members given as key, value, ..., NULL. */
static JsonObject *object(PairLayout *l, ...) G_GNUC_NULL_TERMINATED;

static JsonObject *object(PairLayout *l, ...)
{
    JsonObject *o = json_object_new();
    const char *key;
    va_list ap;

    va_start(ap, l);
    while ((key = va_arg(ap, const char *))) {
        json_object_set_string_member(o, key, va_arg(ap, const char *));
    }
    va_end(ap);
    g_ptr_array_add(l->objects, o);
    return o;
}

/* @tls: id of credentials, or NULL. */
static void add_chardev(PairLayout *l, const char *id, const char *host, unsigned port,
                        bool server, const char *tls)
{
    g_autofree char *text = g_strdup_printf(
        "{\"id\":\"%s\",\"backend\":{\"type\":\"socket\",\"data\":{\"addr\":{\"type\":"
        "\"inet\",\"data\":{\"host\":\"%s\",\"port\":\"%u\"}},\"server\":%s%s%s%s}}}",
        id, host, port, server ? "true" : "false", tls ? ",\"tls-creds\":\"" : "",
        tls ? tls : "", tls ? "\"" : "");
    JsonObject *o = options_parse(text, NULL, NULL);

    if (o) {
        g_ptr_array_add(l->chardevs, o);
    }
}

/* The object of @type on @netdev whose member @key names a chardev. */
static JsonObject *filter_on(GPtrArray *objects, const char *type, const char *netdev,
                             const char *queue, const char *key)
{
    for (guint i = 0; i < objects->len; i++) {
        JsonObject *o = objects->pdata[i];
        if (is(o, "qom-type", type) && is(o, "netdev", netdev) &&
            (!queue || is(o, "queue", queue)) &&
            (!key || json_object_has_member(o, key))) {
            return o;
        }
    }
    return NULL;
}

static unsigned port_of(GPtrArray *chardevs, const char *id, unsigned dflt)
{
    JsonObject *c = find(chardevs, "id", id);
    uint64_t port = dflt;

    if (c) {
        options_get_uint(c, "port", &port, 1, 65535, NULL);
    }
    return port;
}

static void before_rewriter(JsonObject *filter, JsonObject *rewriter)
{
    if (rewriter) {
        g_autofree char *position = g_strdup_printf("id=%s", options_get_str(rewriter, "id", ""));
        json_object_set_string_member(filter, "insert", "before");
        json_object_set_string_member(filter, "position", position);
    }
}

static void remember_old(PairLayout *l, JsonObject *filter, const char *key)
{
    if (filter) {
        g_ptr_array_insert(l->old_objects, 0, g_strdup(options_get_str(filter, "id", "")));
        g_ptr_array_insert(l->old_chardevs, 0, g_strdup(options_get_str(filter, key, "")));
    }
}

/* The filters of the manual for netdev number @n. */
static void make_filters(PairLayout *l, const PairOptions *o, GPtrArray *objects,
                         GPtrArray *chardevs, const char *netdev, unsigned n)
{
    static const char *const ids[] = {"mirror0",     "compare1",     "compare0", "compare0-0",
                                      "compare_out", "compare_out0", "m0",       "redire0",
                                      "redire1",     "comp0"};
    enum { MIRROR, COMPARE1, COMPARE0, COMPARE00, OUT, OUT0, M0, REDIRE0, REDIRE1, COMP0, N };
    JsonObject *in = filter_on(objects, "filter-redirector", netdev, "tx", "indev");
    JsonObject *out = filter_on(objects, "filter-redirector", netdev, "rx", "outdev");
    JsonObject *rewriter = filter_on(objects, "filter-rewriter", netdev, NULL, NULL);
    g_auto(GStrv) id = g_new0(char *, N + 1);
    const char *tls = o->settings.tls_server;
    bool vnet = false;

    for (unsigned i = 0; i < N; i++) {
        id[i] = n ? g_strdup_printf("%s-%u", ids[i], n) : g_strdup(ids[i]);
    }
    remember_old(l, in, "indev");
    remember_old(l, out, "outdev");
    if (in) {
        options_get_bool(in, "vnet_hdr_support", &vnet, NULL);
    }
    add_chardev(l, id[MIRROR], o->listen,
                port_of(chardevs, in ? options_get_str(in, "indev", "") : "",
                        o->mirror_port + 10 * n), true, tls);
    add_chardev(l, id[COMPARE1], o->listen,
                port_of(chardevs, out ? options_get_str(out, "outdev", "") : "",
                        o->compare_port + 10 * n), true, tls);
    add_chardev(l, id[COMPARE0], "127.0.0.1", o->in_port + 10 * n, true, NULL);
    add_chardev(l, id[COMPARE00], "127.0.0.1", o->in_port + 10 * n, false, NULL);
    add_chardev(l, id[OUT], "127.0.0.1", o->out_port + 10 * n, true, NULL);
    add_chardev(l, id[OUT0], "127.0.0.1", o->out_port + 10 * n, false, NULL);
    g_ptr_array_add(l->streams, g_strdup(id[MIRROR]));
    g_ptr_array_add(l->streams, g_strdup(id[COMPARE1]));

    before_rewriter(object(l, "qom-type", "filter-mirror", "id", id[M0], "netdev", netdev,
                           "queue", "tx", "outdev", id[MIRROR], NULL), rewriter);
    before_rewriter(object(l, "qom-type", "filter-redirector", "id", id[REDIRE0], "netdev",
                           netdev, "queue", "rx", "indev", id[OUT], NULL), rewriter);
    before_rewriter(object(l, "qom-type", "filter-redirector", "id", id[REDIRE1], "netdev",
                           netdev, "queue", "rx", "outdev", id[COMPARE0], NULL), rewriter);
    if (!find(l->objects, "qom-type", "iothread")) {
        object(l, "qom-type", "iothread", "id", "iothread1", NULL);
    }
    object(l, "qom-type", "colo-compare", "id", id[COMP0], "primary_in", id[COMPARE00],
           "secondary_in", id[COMPARE1], "outdev", id[OUT0], "iothread",
           options_get_str(find(l->objects, "qom-type", "iothread"), "id", "iothread1"), NULL);
    for (guint i = 0; vnet && i < l->objects->len; i++) {
        JsonObject *made = l->objects->pdata[i];
        if (is(made, "netdev", netdev) || is(made, "id", id[COMP0])) {
            json_object_set_boolean_member(made, "vnet_hdr_support", TRUE);
        }
    }
}

/* A primary's own filters, comparisons, and the iothreads of these. */
static void take_filters(PairLayout *l, GPtrArray *objects)
{
    static const char *const types[] = {"filter-mirror", "filter-redirector", "iothread",
                                        "colo-compare"};

    for (unsigned t = 0; t < G_N_ELEMENTS(types); t++) {
        for (guint i = 0; i < objects->len; i++) {
            JsonObject *o = objects->pdata[i];
            if (!is(o, "qom-type", types[t]) ||
                (strcmp(types[t], "iothread") == 0 &&
                 !find(objects, "iothread", options_get_str(o, "id", "")))) {
                continue;
            }
            if (strcmp(types[t], "filter-mirror") == 0) {
                g_ptr_array_add(l->streams, g_strdup(options_get_str(o, "outdev", "")));
            } else if (strcmp(types[t], "colo-compare") == 0) {
                g_ptr_array_add(l->streams, g_strdup(options_get_str(o, "secondary_in", "")));
            }
            g_ptr_array_add(l->objects, with_types(o));
        }
    }
}

PairLayout *pair_layout_new(const CmdLine *cl, const PairOptions *o, GError **errp)
{
    g_autoptr(PairLayout) l = g_new0(PairLayout, 1);
    g_autoptr(GPtrArray) objects = parse_all(cl, "object", "qom-type");
    g_autoptr(GPtrArray) chardevs = parse_all(cl, "chardev", "backend");
    g_autoptr(GPtrArray) netdevs = parse_all(cl, "netdev", "type");

    l->disks = g_ptr_array_new_with_free_func(free_disk);
    l->chardevs = g_ptr_array_new_with_free_func((GDestroyNotify)json_object_unref);
    l->objects = g_ptr_array_new_with_free_func((GDestroyNotify)json_object_unref);
    l->streams = g_ptr_array_new_with_free_func(g_free);
    l->old_objects = g_ptr_array_new_with_free_func(g_free);
    l->old_chardevs = g_ptr_array_new_with_free_func(g_free);
    find_disks(l, cl);
    if (find(objects, "qom-type", "filter-mirror")) {
        take_filters(l, objects);
    } else {
        for (guint i = 0; i < netdevs->len; i++) {
            const char *id = options_get_str(netdevs->pdata[i], "id", NULL);
            if (!id) {
                colo_error_set(errp, "-colo pair=on: each -netdev needs an id");
                return NULL;
            }
            make_filters(l, o, objects, chardevs, id, i);
        }
    }
    return g_steal_pointer(&l);
}
