/*
 * announce-self: announcements that the user asks for.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * As in QEMU several series may run, each under an id; one that is begun again begins anew.
 * Room singleton @series, guarded by the net lock.
 */
#include <string.h>

#include "net/net-int.h"

#define SERIES_MAX 64

typedef struct Series {
    char *id;
    char **nics;
    int64_t delay, step, max; /* ms; @delay: the next one */
    int64_t left;             /* rounds */
    GSource *timer;
} Series;

static GPtrArray *series;

static void series_free(gpointer opaque)
{
    Series *s = opaque;

    io_source_destroy(&s->timer);
    g_strfreev(s->nics);
    g_free(s->id);
    g_free(s);
}

static void series_round(Series *s);

static gboolean on_timer(gpointer opaque)
{
    Series *s = opaque;

    io_source_destroy(&s->timer);
    series_round(s);
    return G_SOURCE_REMOVE;
}

static void series_round(Series *s)
{
    colo_trace(net_announce_self, "%s, %" G_GINT64_FORMAT " more", s->id, s->left - 1);
    announce_nics(s->nics);
    if (--s->left <= 0) {
        g_ptr_array_remove(series, s);
        return;
    }
    s->timer = io_thread_timer(net_thread(), s->delay, on_timer, s);
    s->delay = CLAMP(s->delay + s->step, 0, s->max);
}

static void drop(const char *id)
{
    for (unsigned i = 0; i < series->len; i++) {
        if (g_str_equal(((Series *)series->pdata[i])->id, id)) {
            g_ptr_array_remove_index(series, i);
            return;
        }
    }
}

void net_announce_self(const NetAnnounce *how)
{
    if (!series) {
        series = g_ptr_array_new_with_free_func(series_free);
    }
    drop(how->id);
    if (how->rounds <= 0) {
        return;
    }
    if (series->len == SERIES_MAX) {
        g_ptr_array_remove_index(series, 0);
    }
    Series *s = g_new0(Series, 1);
    s->id = g_strdup(how->id);
    s->nics = g_strdupv(how->nics);
    s->max = CLAMP(how->max, 1, G_MAXINT);
    s->step = CLAMP(how->step, -s->max, s->max);
    s->delay = CLAMP(how->initial, 0, s->max);
    s->left = how->rounds;
    g_ptr_array_add(series, s);
    series_round(s);
}

void announce_self_shutdown(void)
{
    g_clear_pointer(&series, g_ptr_array_unref);
}
