/*
 * Byte ranges in flight: one order for requests that overlap.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Two ranges conflict if they overlap and one of them writes. A range waits for every
 * earlier one that it conflicts with, granted or not, so order is that of arrival and
 * nobody starves. A queue and not a tree: no more than some hundred are in flight.
 */
#include "block-int.h"

static bool ranges_conflict(const BlockRange *a, const BlockRange *b)
{
    return (a->write || b->write) && a->start < b->end && b->start < a->end;
}

static bool range_blocked(BlockRange *r)
{
    for (GList *l = r->link.prev; l; l = l->prev) {
        if (ranges_conflict(l->data, r)) {
            return true;
        }
    }
    return false;
}

bool block_range_acquire(BlockRangeLock *lock, BlockRange *range)
{
    range->link = (GList){.data = range};
    g_queue_push_tail_link(&lock->queue, &range->link);
    range->granted = !range_blocked(range);
    if (!range->granted) {
        lock->waiting++;
    }
    return range->granted;
}

void block_range_release(BlockRangeLock *lock, BlockRange *range)
{
    g_queue_unlink(&lock->queue, &range->link);
    if (!range->granted) {
        lock->waiting--;
    }
    /* fn may acquire and release: look from the start after each call. */
    while (lock->waiting > 0) {
        BlockRange *next = NULL;

        for (GList *l = lock->queue.head; l; l = l->next) {
            BlockRange *r = l->data;

            if (!r->granted && !range_blocked(r)) {
                next = r;
                break;
            }
        }
        if (!next) {
            return;
        }
        next->granted = true;
        lock->waiting--;
        next->fn(next);
    }
}
