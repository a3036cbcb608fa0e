/*
 * Guest RAM in a checkpoint: capture on the primary, cache and restore on the secondary.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_RAM_H
#define COLO_MIGRATION_RAM_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "migration/channel.h"
#include "migration/ram-codec.h"
#include "migration/tracker.h"

typedef struct Ram Ram;

/** RAM as @map has it (finished), written to as @tracker tells; takes no ownership. */
Ram *ram_new(const RamMap *map, Tracker *tracker, GError **errp);
void ram_free(Ram *r);

/* --- Primary --- */

/** Empty staging, ram_populate(). Outside the pause. */
void ram_epoch_begin(Ram *r);

/** Populate staging by one step towards what recent epochs needed: some 10 ms at most, but for
 * the first time. Where no guest stands and waits. */
void ram_populate(Ram *r);

/** Fetch what was dirtied and copy it to staging. Returns pages fetched, or -1. Copies of
 * pages fetched before in this epoch are replaced. Does not allocate. @stopped: the guest
 * stands still. */
int64_t ram_capture(Ram *r, bool stopped, GError **errp);

/** Pages in staging now. */
uint64_t ram_staged(Ram *r);

/** Keep up to @bytes of committed versions of pages, from nothing; 0: none. */
bool ram_base_init(Ram *r, uint64_t bytes, GError **errp);
void ram_base_drop(Ram *r);

/** The secondary has loaded what is staged. */
void ram_committed(Ram *r);

/** Send a hash of every page (test option; long pause). */
bool ram_send_hashes(Ram *r, Channel *c, GError **errp);
/** Compute them into a buffer first, in the pause. */
void ram_hash(Ram *r);

/* --- Secondary --- */

/** Make the cache; all zero. */
bool ram_cache_init(Ram *r, GError **errp);
void ram_cache_drop(Ram *r);

/** Take a CHANNEL_RAM message of @epoch into staging, or (epoch 0: nothing is committed yet)
 * straight into the cache. Everything in it is checked. *@pages counts. Several threads may,
 * with a decoder each, for pages that differ. */
bool ram_receive(Ram *r, RamDecoder *d, const ChannelMsg *msg, uint64_t epoch, uint64_t *pages,
                 GError **errp);

/** Forget what is staged (a torn checkpoint). */
void ram_discard(Ram *r);

/** Staged pages become part of the cache and are marked for restore. */
void ram_commit(Ram *r);

/** Mark every page for restore that is not zero on both sides: for the first restore, or
 * after one that failed. */
void ram_mark_all(Ram *r);

/** Fetch the SVM's dirty pages and bring every marked page of its RAM to the cache's
 * content; the SVM is stopped. Returns pages that differed, or -1; *@guest (may be NULL) is
 * how many of them were guest RAM, and not video memory or the like. */
int64_t ram_restore(Ram *r, uint64_t *guest, GError **errp);

/** Compare the SVM's RAM with a CHANNEL_VERIFY message kept by ram_verify_add(); returns
 * the number of pages that differ. */
bool ram_verify_add(Ram *r, const ChannelMsg *msg, GError **errp);
uint64_t ram_verify(Ram *r);

uint64_t ram_size(Ram *r);

/** Bytes of memory this side holds beside guest RAM. */
uint64_t ram_overhead(Ram *r);
/** Of these: @staging with its tables, populated; @cache (secondary). */
void ram_memory(Ram *r, uint64_t *staging, uint64_t *cache);

#endif
