/*
 * How long until a point in time, as poll() wants it.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_UTIL_DEADLINE_H
#define COLO_UTIL_DEADLINE_H

#include <glib.h>

/** Milliseconds from @now until @end (both microseconds of g_get_monotonic_time()): rounded up,
 * so that whoever waits for them does not wake before @end and turn in circles; 0 once it has
 * come; at most G_MAXINT. Never negative: that is for ever to poll(). */
static inline int deadline_left_at(gint64 end, gint64 now)
{
    if (end <= now) {
        return 0;
    }
    gint64 us = end - now;
    return (int)MIN(us / 1000 + (us % 1000 != 0), G_MAXINT);
}

/** The same from this moment. Looks at the clock once: MAX() and CLAMP() around a difference to
 * g_get_monotonic_time() do so more than once, and what they give back can be negative. */
static inline int deadline_left_ms(gint64 end)
{
    return deadline_left_at(end, g_get_monotonic_time());
}

#endif
