/*
 * Trace points and messages.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A trace point is a name "room_event" and a printf-style text, off unless a
 * pattern given with -trace (e.g. "migration_*") matches it. When off it costs one
 * load and one branch. Any thread may trace.
 */
#ifndef COLO_UTIL_TRACE_H
#define COLO_UTIL_TRACE_H

#include <glib.h>

typedef struct ColoTracePoint {
    const char *name;
    int generation; /* of the pattern list that @enabled was computed from */
    gboolean enabled;
} ColoTracePoint;

extern int colo_trace_generation; /* documented global: set before threads start */

gboolean colo_trace_point_resolve(ColoTracePoint *tp);
void colo_trace_emit(const ColoTracePoint *tp, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/** Enable every trace point whose name matches the glob @pattern. */
void colo_trace_enable(const char *pattern);

#define colo_trace(event, ...)                                                           \
    do {                                                                                 \
        static ColoTracePoint tp_ = {.name = #event};                                    \
        if (G_UNLIKELY(colo_trace_generation != 0) && colo_trace_point_resolve(&tp_)) {  \
            colo_trace_emit(&tp_, __VA_ARGS__);                                          \
        }                                                                                \
    } while (0)

/** One line to standard error, "qemu-colo: " first, at most 20 a second. */
void colo_report(const char *fmt, ...) G_GNUC_PRINTF(1, 2);

/* Of one source of messages; zeroed, guarded by whatever guards the source. */
typedef struct ColoReportLimit {
    gint64 last;
    unsigned suppressed;
} ColoReportLimit;

/** The same, at most once a second for @limit; the next one tells how many were left out. */
void colo_report_limited(ColoReportLimit *limit, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

#endif
