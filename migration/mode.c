/*
 * Modes of protection, and the adaptive decision between them.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What is weighed. In the mode colo a checkpoint that the comparison forces costs its pause,
 * commit and lag, in which output stands still. Forced checkpoints of the last second times
 * that cost is the share of time lost. Over MODE_DEAR it is cheaper not to compare at all: a
 * buffered epoch delays all output a little and never waits for a twin. In the buffered mode
 * nothing can be measured about mismatches, as the SVM stands, so after a stay the other mode
 * gets a trial. A trial that fails doubles the next stay (MODE_STAY_MIN to _MAX), one that
 * lasts MODE_CALM forgets that: workloads on the edge do not flap. A guest without output
 * gains nothing from short epochs and goes back without a trial.
 *
 * Invariants: never in the buffered mode without MODE_FORCED_MIN forced checkpoints within
 * MODE_WINDOW; it is left after its stay, or after MODE_QUIET, and not before.
 */
#include "migration/mode.h"

#include <string.h>

#define MODE_WINDOW 1000000  /* us */
#define MODE_FORCED_MIN 5    /* fewer say nothing about a rate */
#define MODE_DEAR_PERCENT 20 /* of the window, lost to forced checkpoints */
#define MODE_STAY_MIN 2000000
#define MODE_STAY_MAX 64000000
#define MODE_CALM 10000000  /* a time in colo after which the past is forgotten */
#define MODE_QUIET 1500000  /* without output */

static const char *const names[PROTECT__MAX] = {"colo", "buffered", "adaptive"};

const char *protect_mode_name(ProtectMode m)
{
    return m < PROTECT__MAX ? names[m] : "unknown";
}

int protect_mode_find(const char *name)
{
    for (int i = 0; i < PROTECT__MAX; i++) {
        if (strcmp(name, names[i]) == 0) {
            return i;
        }
    }
    return -1;
}

void mode_init(ModeDecider *d, int64_t now)
{
    memset(d, 0, sizeof(*d));
    d->since = d->output_at = now;
    g_strlcpy(d->reason, "start", sizeof(d->reason));
}

static void change(ModeDecider *d, bool buffered, int64_t now)
{
    d->buffered = buffered;
    d->since = now;
    d->n_forced = 0;
    d->switches++;
}

static unsigned forced_within(const ModeDecider *d, int64_t from)
{
    unsigned n = 0;

    for (uint64_t i = d->n_forced; i > 0 && n < MODE_RING; i--, n++) {
        if (d->forced_at[(i - 1) % MODE_RING] < from) {
            break;
        }
    }
    return n;
}

static void consider_buffered(ModeDecider *d, const ModeSample *s)
{
    if (!s->forced) {
        return;
    }
    d->forced_at[d->n_forced++ % MODE_RING] = s->now;
    unsigned n = forced_within(d, s->now - MODE_WINDOW);
    int64_t percent = n * s->cost * 100 / MODE_WINDOW;
    if (n < MODE_FORCED_MIN || percent < MODE_DEAR_PERCENT) {
        return;
    }
    bool failed_trial = d->stay && s->now - d->since < MODE_CALM;
    d->stay = failed_trial ? MIN(d->stay * 2, MODE_STAY_MAX) : MODE_STAY_MIN;
    change(d, true, s->now);
    g_snprintf(d->reason, sizeof(d->reason),
               "%u mismatches in %d ms at %" G_GINT64_FORMAT " us: %" G_GINT64_FORMAT
               " %% of the time", n, MODE_WINDOW / 1000, s->cost, percent);
}

static void consider_colo(ModeDecider *d, const ModeSample *s)
{
    if (s->now - d->since >= d->stay) {
        g_snprintf(d->reason, sizeof(d->reason),
                   "a trial, after %" G_GINT64_FORMAT " ms of buffered epochs",
                   (s->now - d->since) / 1000);
    } else if (s->now - d->output_at >= MODE_QUIET) {
        g_snprintf(d->reason, sizeof(d->reason), "no output for %d ms", MODE_QUIET / 1000);
    } else {
        return;
    }
    change(d, false, s->now);
}

bool mode_decide(ModeDecider *d, const ModeSample *s)
{
    if (s->output) {
        d->output_at = s->now;
    }
    if (d->buffered) {
        consider_colo(d, s);
    } else {
        consider_buffered(d, s);
    }
    return d->buffered;
}
