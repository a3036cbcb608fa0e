/*
 * The activity log: which parts of an image may differ from the peer's.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: when a host returns, copying the union of what both sides name makes the two
 * images equal, whichever of them died, how, and when (RULES 13).
 *
 * An image that takes part has a *generation*: the name of the moment when both sides were
 * equal, drawn by the primary when replication starts. Each side notes what may differ
 * from that moment on its own disk. In memory that is a bit each granule of 64 KiB. On disk a
 * write costs nothing but the first in a while to a region of 4 MiB: such a region is made
 * *hot* in the file before the write goes to the image. After a crash hot regions count as a
 * whole. Regions that have been left alone cool down:
 *
 * - alone, once their granules are in the file's second map;
 * - paired (the primary of a protected pair), once all of it was committed over there and
 *   both images have been flushed: then they are equal, and it is forgotten. The flush
 *   travels as an NBD flush, which a replicating secondary answers when all that was
 *   committed before is on its disk.
 *
 * A follower (a protected secondary) notes nothing: what a checkpoint changes in its image
 * the primary still has in its log. It notes from the takeover on.
 *
 * Nothing is forgotten otherwise: not when a mirror has copied it (the peer may lose its page
 * cache), not when a pairing begins. So the union stays right through aborted
 * copies, repeated failovers, and both sides having gone their own way.
 *
 * Limits: after a crash of this side the log cannot tell whether another program changed the
 * image meanwhile; after an orderly end it can (the time of change is in it). If the file
 * cannot be written it is removed, and a returning host copies everything.
 */
#ifndef COLO_BLOCK_ACTIVITY_LOG_H
#define COLO_BLOCK_ACTIVITY_LOG_H

#include "block-int.h"
#include "dirty-bitmap.h"

typedef struct ActivityLog ActivityLog;

typedef enum ActivityLogMode {
    ACTIVITY_LOG_ALONE,
    ACTIVITY_LOG_PAIRED,
    ACTIVITY_LOG_FOLLOWING,
} ActivityLogMode;

/** A new name for a generation; caller frees. */
char *activity_log_new_generation(void);

/** Go on with the file of image @node, if it has one that fits. Without the lock. */
void activity_log_open(BlockNode *node);
/**
 * Begin generation @generation ("": none yet), with what the log has (@keep) or nothing.
 * Makes the file if there is none. Durable when true. Without the lock; writes that need
 * the file wait.
 */
bool activity_log_begin(BlockNode *node, const char *generation, bool keep, GError **errp);
/** The image is being closed; under the lock. @orderly: all requests have ended. */
void activity_log_close(BlockNode *node, bool orderly);
/** Give it up: the file is removed. */
void activity_log_drop(BlockNode *node);

/* Under the lock; @log may be NULL, then they do nothing or return NULL. */

ActivityLog *activity_log_of(BlockNode *node);
void activity_log_set_mode(ActivityLog *log, ActivityLogMode mode);
const char *activity_log_generation(ActivityLog *log);
/** What may differ; borrowed, granules of AL_GRANULE. */
const DirtyBitmap *activity_log_dirty(ActivityLog *log);
/** A checkpoint's barrier was taken; the one before it was committed by the peer. */
void activity_log_barrier(ActivityLog *log);
void activity_log_committed(ActivityLog *log);
void activity_log_query(ActivityLog *log, JsonObject *out);

/** The images beneath @node that its user's writes go to; the caller frees. */
GPtrArray *activity_log_images(BlockNode *node);

/** For tests: how long a region must be left alone to cool down, and how often is looked;
 * before a log is opened. */
void activity_log_set_times(unsigned idle_ms, unsigned look_ms);

#endif
