/*
 * filter-buffer: frames wait and go on together, each interval.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "net/colo/colo-int.h"
#include "net/net-int.h"

typedef struct FilterBuffer {
    NetFilter nf;
    uint64_t interval_us;
    FrameQueue tx, rx;
    GSource *timer;
} FilterBuffer;

static void buffer_release(FilterBuffer *b)
{
    Frame *f;

    net_batch_begin();
    while ((f = frame_queue_pop(&b->tx))) {
        net_filter_pass_next(&b->nf, NET_FILTER_TX, f);
    }
    while ((f = frame_queue_pop(&b->rx))) {
        net_filter_pass_next(&b->nf, NET_FILTER_RX, f);
    }
    net_batch_end();
}

static gboolean buffer_fire(gpointer opaque)
{
    FilterBuffer *b = opaque;

    buffer_release(b);
    colo_timer_at(&b->timer, g_get_monotonic_time() + b->interval_us, buffer_fire, b);
    return G_SOURCE_CONTINUE;
}

static void buffer_status(NetFilter *nf)
{
    FilterBuffer *b = (FilterBuffer *)nf;

    if (!nf->on) {
        buffer_release(b);
        io_source_destroy(&b->timer);
    } else {
        colo_timer_at(&b->timer, g_get_monotonic_time() + b->interval_us, buffer_fire, b);
    }
}

static Frame *buffer_receive(NetFilter *nf, NetFilterDirection dir, Frame *f)
{
    FilterBuffer *b = (FilterBuffer *)nf;
    FrameQueue *q = dir == NET_FILTER_TX ? &b->tx : &b->rx;

    if (q->count >= NET_HELD_FRAMES) {
        frame_unref(f);
        return NULL;
    }
    frame_queue_push(q, frame_writable(f));
    return NULL;
}

static const NetProperty buffer_properties[] = {
    {"interval", "uint32", NET_PROPERTY_UINT, .required = true, .positive = true},
    {NULL},
};

static bool buffer_setup(NetFilter *nf, JsonObject *opts, GError **errp)
{
    FilterBuffer *b = (FilterBuffer *)nf;

    if (!options_get_uint(opts, "interval", &b->interval_us, 1, UINT32_MAX, errp)) {
        return false;
    }
    if (nf->on) {
        buffer_status(nf);
    }
    return true;
}

static void buffer_cleanup(NetFilter *nf)
{
    FilterBuffer *b = (FilterBuffer *)nf;

    io_source_destroy(&b->timer);
    buffer_release(b);
}

static JsonNode *buffer_get(NetFilter *nf, const char *property)
{
    return colo_int_node(((FilterBuffer *)nf)->interval_us);
}

static bool buffer_set(NetFilter *nf, const char *property, JsonNode *value, GError **errp)
{
    FilterBuffer *b = (FilterBuffer *)nf;

    b->interval_us = json_node_get_int(value);
    if (nf->on) {
        colo_timer_at(&b->timer, g_get_monotonic_time() + b->interval_us, buffer_fire, b);
    }
    return true;
}

const NetFilterClass filter_buffer_class = {
    .type = "filter-buffer",
    .size = sizeof(FilterBuffer),
    .properties = buffer_properties,
    .setup = buffer_setup,
    .cleanup = buffer_cleanup,
    .receive = buffer_receive,
    .status_changed = buffer_status,
    .get = buffer_get,
    .set = buffer_set,
};
