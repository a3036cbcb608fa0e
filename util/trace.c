/*
 * Trace points and messages.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "util/trace.h"

#include <stdio.h>
#include <unistd.h>

#define REPORTS_PER_SECOND 20

int colo_trace_generation;

static GMutex trace_lock;
static GPtrArray *patterns; /* of GPatternSpec, under trace_lock */

void colo_trace_enable(const char *pattern)
{
    g_mutex_lock(&trace_lock);
    if (!patterns) {
        patterns = g_ptr_array_new();
    }
    g_ptr_array_add(patterns, g_pattern_spec_new(pattern));
    colo_trace_generation++;
    g_mutex_unlock(&trace_lock);
}

gboolean colo_trace_point_resolve(ColoTracePoint *tp)
{
    if (G_LIKELY(tp->generation == colo_trace_generation)) {
        return tp->enabled;
    }
    g_mutex_lock(&trace_lock);
    gboolean on = FALSE;
    for (guint i = 0; patterns && i < patterns->len && !on; i++) {
        on = g_pattern_spec_match_string(patterns->pdata[i], tp->name);
    }
    tp->enabled = on;
    tp->generation = colo_trace_generation;
    g_mutex_unlock(&trace_lock);
    return on;
}

/* One write(2) a line, so that lines of several threads and processes stay whole. */
static void emit_line(const char *head, const char *fmt, va_list ap)
{
    g_autofree char *msg = g_strdup_vprintf(fmt, ap);
    g_autofree char *line = g_strdup_printf("%s%s\n", head, msg);
    ssize_t n = write(STDERR_FILENO, line, strlen(line));
    (void)n; /* nowhere to tell */
}

void colo_trace_emit(const ColoTracePoint *tp, const char *fmt, ...)
{
    gint64 us = g_get_monotonic_time();
    char head[160];
    g_snprintf(head, sizeof(head), "%d@%" G_GINT64_FORMAT ".%06d:%s ", (int)getpid(),
               us / G_USEC_PER_SEC, (int)(us % G_USEC_PER_SEC), tp->name);
    va_list ap;
    va_start(ap, fmt);
    emit_line(head, fmt, ap);
    va_end(ap);
}

void colo_report(const char *fmt, ...)
{
    static GMutex lock;
    static gint64 second;
    static int count;

    g_mutex_lock(&lock);
    gint64 now = g_get_monotonic_time() / G_USEC_PER_SEC;
    if (now != second) {
        second = now;
        count = 0;
    }
    gboolean quiet = ++count > REPORTS_PER_SECOND;
    g_mutex_unlock(&lock);
    if (quiet) {
        return;
    }
    va_list ap;
    va_start(ap, fmt);
    emit_line("qemu-colo: ", fmt, ap);
    va_end(ap);
}

void colo_report_limited(ColoReportLimit *limit, const char *fmt, ...)
{
    gint64 now = g_get_monotonic_time();

    if (limit->last && now - limit->last < G_USEC_PER_SEC) {
        limit->suppressed++;
        return;
    }
    if (limit->suppressed) {
        colo_report("(%u more such messages)", limit->suppressed);
    }
    limit->last = now;
    limit->suppressed = 0;
    va_list ap;
    va_start(ap, fmt);
    emit_line("qemu-colo: ", fmt, ap);
    va_end(ap);
}
