/*
 * The data channels' end on the secondary.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_RAM_RECEIVER_H
#define COLO_MIGRATION_RAM_RECEIVER_H

#include "migration/channel.h"
#include "migration/ram.h"

typedef struct RamReceiver RamReceiver;

/** A thread for each of @n data channels, which takes pages into @r: into the cache until the
 * first window opens. @stall_ms: how long one may wait for another. */
RamReceiver *ram_receiver_new(Ram *r, Channel *const *data, unsigned n, unsigned stall_ms);

/** End the threads; the channels are cancelled and stay the caller's. */
void ram_receiver_free(RamReceiver *x);

/** Pages of checkpoint @epoch go to staging from now on; others wait. */
void ram_receiver_open(RamReceiver *x, uint64_t epoch);

/** No pages are taken from now on, until the next ram_receiver_open(): staging is the caller's.
 * Waits for those that are being taken, which is a matter of copying. */
void ram_receiver_close(RamReceiver *x);

/** Whether the channels in @mask have all said that pass @pass is over: @pages counts what
 * came since the last call that said so. Waits at most @timeout_ms. */
bool ram_receiver_synced(RamReceiver *x, uint64_t pass, uint64_t mask, unsigned timeout_ms,
                         uint64_t *pages);

/** A channel's error: false and @errp, from then on. @grace_us: not before it is so old. */
bool ram_receiver_good(RamReceiver *x, int64_t grace_us, GError **errp);

/** Microseconds since a byte came on any channel. */
int64_t ram_receiver_silence(RamReceiver *x);

#endif
