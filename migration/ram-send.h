/*
 * Sending guest RAM over the channels of a connection.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_RAM_SEND_H
#define COLO_MIGRATION_RAM_SEND_H

#include "migration/channel.h"
#include "migration/ram-codec.h"
#include "migration/ram.h"

#define RAM_CHANNELS_MAX 16

typedef struct RamSender RamSender;

/**
 * Pages go over @n data channels (attached to @ctl, which owns them), or with n = 0 over
 * @ctl itself. A thread a channel but the first, which sleeps while there is little to send.
 * @stall_ms: how long a data channel may stand still.
 */
RamSender *ram_sender_new(Ram *r, Channel *ctl, Channel *const *data, unsigned n,
                          RamMethod method, int level, unsigned stall_ms);
void ram_sender_free(RamSender *s);

/** Send staging as epoch @epoch; *@pages counts pages. Holds max-bandwidth. */
bool ram_send_staged(RamSender *s, uint64_t epoch, uint64_t *pages, GError **errp);

/**
 * Send all of RAM as it is now (holes in the memfd are skipped), while the guest runs, as
 * epoch 0. @progress is called with bytes done, from one thread; false from it stops.
 */
bool ram_send_all(RamSender *s, bool (*progress)(uint64_t done, void *opaque), void *opaque,
                  uint64_t *pages, GError **errp);

/** Bytes a second for all pages together; 0: no bound. Any thread, any time; holds for all
 * senders. */
void ram_send_set_bandwidth(uint64_t bytes);

/** What was sent so far. Any thread; figures may be of different moments. */
void ram_sender_counts(RamSender *s, RamCounts *counts);

#endif
