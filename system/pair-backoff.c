/*
 * How long to wait before the next try.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "system/pair-backoff.h"

#include "util/deadline.h"

void pair_backoff_protected(PairBackoff *b, int64_t now)
{
    b->protected_us = now;
}

void pair_backoff_failed(PairBackoff *b, int64_t now)
{
    int64_t quiet_ms = b->quiet_ms ? b->quiet_ms : PAIR_QUIET_MS;

    if (b->protected_us && now - b->protected_us >= quiet_ms * 1000) {
        b->failures = 0;
    }
    b->protected_us = 0;
    int64_t wait = PAIR_WAIT_FIRST_MS;
    for (unsigned i = 0; i < b->failures && wait < PAIR_WAIT_MAX_MS; i++) {
        wait *= 2;
    }
    if (wait > PAIR_WAIT_MAX_MS) {
        wait = PAIR_WAIT_MAX_MS;
    }
    b->failures++;
    b->next_us = now + wait * 1000;
}

void pair_backoff_reset(PairBackoff *b)
{
    b->failures = 0;
    b->next_us = 0;
}

unsigned pair_backoff_wait_ms(const PairBackoff *b, int64_t now)
{
    return (unsigned)deadline_left_at(b->next_us, now);
}
