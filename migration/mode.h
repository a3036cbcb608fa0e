/*
 * Modes of protection, and the adaptive decision between them.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * colo: the SVM runs, outputs are compared, a difference costs a checkpoint. buffered: the
 * SVM stands still, output waits for the end of a short epoch. adaptive: one or the other,
 * epoch by epoch. Pure: no clock, no lock, no global.
 */
#ifndef COLO_MIGRATION_MODE_H
#define COLO_MIGRATION_MODE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define MODE_INTERVAL_MIN 10 /* ms, of a buffered epoch */
#define MODE_INTERVAL_MAX 100
#define MODE_INTERVAL_DEFAULT 40

typedef enum ProtectMode {
    PROTECT_COLO,
    PROTECT_BUFFERED,
    PROTECT_ADAPTIVE,
    PROTECT__MAX
} ProtectMode;

const char *protect_mode_name(ProtectMode m);
/** The mode called @name, or -1. */
int protect_mode_find(const char *name);

#define MODE_RING 64

/* What is known when an epoch is about to end. */
typedef struct ModeSample {
    int64_t now;    /* us, monotonic */
    bool forced;    /* the comparison asked for the end of the epoch */
    bool output;    /* the guest sent something in it */
    int64_t cost;   /* us that such a checkpoint takes: pause, commit, lag */
} ModeSample;

typedef struct ModeDecider {
    bool buffered;
    int64_t since;  /* in this mode */
    int64_t stay;   /* us in the buffered mode until a trial of the other; doubles */
    int64_t output_at; /* the guest's last sign of output */
    int64_t forced_at[MODE_RING];
    uint64_t n_forced; /* since @since */
    uint64_t switches;
    char reason[100]; /* of the last switch */
} ModeDecider;

/** Start in the mode colo. */
void mode_init(ModeDecider *d, int64_t now);

/** Whether the epoch that begins now is a buffered one. A change of mind is told by
 * @switches and explained by @reason. */
bool mode_decide(ModeDecider *d, const ModeSample *s);

#endif
