/*
 * How long to wait before the next try.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A try that failed, and a protection that did not last, both cost a wait twice as long as the
 * one before. A protection that lasted forgives all. Pure: time comes in as an argument,
 * monotonic microseconds.
 */
#ifndef COLO_SYSTEM_PAIR_BACKOFF_H
#define COLO_SYSTEM_PAIR_BACKOFF_H

#include <stdbool.h>
#include <stdint.h>

#define PAIR_WAIT_FIRST_MS 1000
#define PAIR_WAIT_MAX_MS 60000
/* So long a protection is no flapping. */
#define PAIR_QUIET_MS (10 * 60 * 1000)

typedef struct PairBackoff {
    unsigned failures;       /* since the last long protection */
    int64_t next_us;         /* no try before that */
    int64_t protected_us;    /* since when it is protected, or 0 */
    int64_t quiet_ms;        /* so long a protection is no flapping; 0: PAIR_QUIET_MS */
} PairBackoff;

/** Now it is protected. */
void pair_backoff_protected(PairBackoff *b, int64_t now);

/** A try failed, or a protection ended. */
void pair_backoff_failed(PairBackoff *b, int64_t now);

/** Forget everything: try at once. */
void pair_backoff_reset(PairBackoff *b);

/** Milliseconds until the next try may begin; 0: now. */
unsigned pair_backoff_wait_ms(const PairBackoff *b, int64_t now);

#endif
