/*
 * filter-rewriter: the engine of rewriter-engine.h as a filter.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "net/colo/colo-int.h"
#include "net/net-int.h"

#define BEAT_US G_USEC_PER_SEC

static gboolean rewriter_fire(gpointer opaque)
{
    FilterRewriter *r = opaque;
    int64_t now = g_get_monotonic_time();
    int64_t next = rewriter_engine_tick(r->engine, now);

    /* New flows do not ask for a time: look again now and then. */
    r->due = CLAMP(next, now + BEAT_US / 200, now + BEAT_US);
    colo_timer_at(&r->timer, r->due, rewriter_fire, r);
    return G_SOURCE_CONTINUE;
}

static void rewriter_batch_end(void *opaque)
{
    FilterRewriter *r = opaque;
    int64_t at = rewriter_engine_log_flush(r->engine);

    if (at < r->due) {
        r->due = at;
        colo_timer_at(&r->timer, at, rewriter_fire, r);
    }
}

static Frame *rewriter_receive(NetFilter *nf, NetFilterDirection dir, Frame *f)
{
    FilterRewriter *r = (FilterRewriter *)nf;
    int64_t now = net_now();

    f = dir == NET_FILTER_TX ? rewriter_engine_to_guest(r->engine, f, now)
                             : rewriter_engine_from_guest(r->engine, f, now);
    if (net_batch_active()) {
        net_batch_add(rewriter_batch_end, r);
    } else {
        rewriter_batch_end(r);
    }
    return f;
}

static bool rewriter_setup(NetFilter *nf, JsonObject *opts, GError **errp)
{
    FilterRewriter *r = (FilterRewriter *)nf;

    if (!options_get_bool(opts, "vnet_hdr_support", &r->vnet_hdr, errp)) {
        return false;
    }
    r->engine = rewriter_engine_new(0);
    r->due = g_get_monotonic_time() + BEAT_US;
    colo_timer_at(&r->timer, r->due, rewriter_fire, r);
    return true;
}

static void rewriter_cleanup(NetFilter *nf)
{
    FilterRewriter *r = (FilterRewriter *)nf;

    net_batch_remove(rewriter_batch_end, r);
    io_source_destroy(&r->timer);
    rewriter_engine_free(r->engine);
}

static JsonNode *rewriter_get(NetFilter *nf, const char *property)
{
    return colo_bool_node(((FilterRewriter *)nf)->vnet_hdr);
}

static bool rewriter_set(NetFilter *nf, const char *property, JsonNode *value, GError **errp)
{
    ((FilterRewriter *)nf)->vnet_hdr = json_node_get_boolean(value);
    return true;
}

static const NetProperty rewriter_properties[] = {
    {"vnet_hdr_support", "bool", NET_PROPERTY_BOOL},
    {NULL},
};

const NetFilterClass filter_rewriter_class = {
    .type = "filter-rewriter",
    .size = sizeof(FilterRewriter),
    .properties = rewriter_properties,
    .setup = rewriter_setup,
    .cleanup = rewriter_cleanup,
    .receive = rewriter_receive,
    .get = rewriter_get,
    .set = rewriter_set,
};
