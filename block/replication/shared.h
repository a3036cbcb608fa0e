/*
 * The primary's log of a disk that both hosts share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * shared-log.c has the essay. All functions want the block lock.
 */
#ifndef COLO_BLOCK_SHARED_H
#define COLO_BLOCK_SHARED_H

#include "../block-int.h"
#include "block/replication.h"

/** A new log in front of @image, the one local child of @quorum; it does nothing yet. Refused
 * for an image that this host would cache, or does not own. */
SharedLog *shared_log_new(BlockNode *quorum, BlockNode *image, GError **errp);
/** The quorum closes. What was not applied is forgotten. */
void shared_log_close(SharedLog *l);

/** Forwarder @node, to export @disk, has come; NULL: has gone. */
void shared_log_attach(SharedLog *l, BlockNode *node, const char *disk);

/** A modifying request arrived and is number @seq to the secondary: log it, if writes are
 * being logged, and mark it so (BLOCK_REQ_LOGGED). */
void shared_log_forwarded(SharedLog *l, BlockRequest *req, uint64_t seq);

/** A request in its turn. False: not for the log, it goes to the image. */
bool shared_log_submit(SharedLog *l, BlockRequest *req);

/** Whether the guest's writes must wait for the log to shrink. */
bool shared_log_blocked(SharedLog *l);

/** The secondary may take over: the image is not written any more. */
void shared_log_lost(SharedLog *l);

/** For tests: bytes over which the guest's writes wait. */
extern uint64_t shared_log_hard;

void shared_log_query(SharedLog *l, JsonObject *o);

#endif
