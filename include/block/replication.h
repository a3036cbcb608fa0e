/*
 * What the checkpoint controller needs of the disks.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Primary: each replication node (mode=primary) forwards every write, trim and
 * write-zeroes that the guest makes to the secondary's export, in one order, on one NBD
 * connection, from the moment it is attached. The barrier of a checkpoint is the number
 * of such requests submitted so far: the peer counts what arrives, so an unmodified NBD
 * client suffices as carrier.
 * Secondary: arrivals go to the epoch log; block_secondary_commit() moves the line below
 * which the log belongs to the image. The SVM reads its active overlay, then image and
 * committed log; its own writes stay in the overlay, which a commit empties.
 */
#ifndef COLO_BLOCK_REPLICATION_H
#define COLO_BLOCK_REPLICATION_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>
#include <stdint.h>

/** One disk's barrier: @sequence requests were submitted to export @disk. */
typedef struct BlockBarrier {
    char disk[256];
    uint64_t sequence;
} BlockBarrier;

/** An error that ends protection (peer gone, queue over its bound for good, disk error),
 * or on the secondary a wish for a checkpoint (log or overlay over its soft bound, @fatal
 * false). Called in the block thread under its lock; must only post. */
typedef void (*BlockReplicationFunc)(bool fatal, const char *message, void *opaque);

/* --- Primary --- */

/** Every quorum that the emulator uses has a replication child that is connected. */
bool block_primary_start(BlockReplicationFunc fn, void *opaque, GError **errp);

/**
 * Around stop and cont (RULES 11): while held, flushes are answered at once (their real
 * fdatasync follows and becomes a condition of release) and in-flight writes are answered
 * from memory if the disk is slow. Cheap; takes the block lock briefly.
 */
void block_primary_hold(bool hold);

/** Barriers as of now; call while the guest is stopped and its disks drained.
 * @out holds @max entries; returns how many were filled. */
unsigned block_primary_barriers(BlockBarrier *out, unsigned max);

/** How many of the requests up to @barriers the secondary has not acknowledged yet, at most. */
uint64_t block_primary_behind(const BlockBarrier *barriers, unsigned n);

/** The checkpoint of the last barriers is the secondary's: called once it was loaded there.
 * Soon after the first one the activity logs begin their generation. May wait for the disk;
 * without the lock. */
void block_primary_committed(void);

/** Whether every flush answered early up to the last block_primary_hold(false) is really
 * on the disk; if not, @done is called once it is (block thread), and false returned. */
bool block_primary_flushed(GSourceFunc done, void *opaque);

/** Protection ended: forwarders go idle for good, quorums run on without them. To protect
 * again detach and delete the replication nodes and add new ones. */
void block_primary_stop(void);

/*
 * Disks that both hosts share (shared-disk=on). Without one these do nothing.
 */

/** Call at the cut of the first checkpoint from which a takeover is safe, while the guest is
 * stopped: from now on what it writes stays in a log until it is committed. */
void block_primary_log(void);

/** The secondary has loaded the checkpoint of @barriers: its writes go to the image. */
void block_primary_loaded(const BlockBarrier *barriers, unsigned n);

/** What the images hold, flushed, to be told to the secondary; how many disks. */
unsigned block_primary_applied(BlockBarrier *out, unsigned max);

/** The secondary may be about to take over: no image is written until the arbiter's word,
 * which is block_primary_stop() or block_primary_fence(). */
void block_primary_lost(void);

/** The secondary has taken over: forget the logs, give up the images' locks. */
void block_primary_fence(void);

/** After block_primary_stop(): wait until the logs have reached the images, flushed. Call
 * before output leaves. Writes that fail are tried again each second. Blocks the caller (not the
 * block thread) for as long as it takes, unless @give_up (asked a few times a second, without
 * the lock) says so. False: a flush failed, or it was given up; then, or after success, call
 * block_primary_settled(). */
bool block_primary_settle(bool (*give_up)(void), GError **errp);

/** This side serves, whatever became of the logs: what fails from now on the guest is told. */
void block_primary_settled(void);

/** The first disk that block_primary_settle() waits for, or NULL; adds to @left what it has to do,
 * which falls while it comes on; @trouble: why it does not. The caller frees both. */
char *block_primary_unsettled(uint64_t *left, char **trouble);

/** How many bytes the images have taken, ever: grows while their storage comes on. */
uint64_t block_secondary_progress(void);

/** As block_primary_unsettled(), of block_secondary_takeover(). */
char *block_secondary_unsettled(uint64_t *left);

/* --- Secondary --- */

/** Names and sizes of exported images, [{"disk", "size"}], for the handshake. */
JsonArray *block_secondary_disks(void);
JsonArray *block_primary_disks(void);
/** What the primary said of its disks (block_primary_disks()); before the start. */
void block_secondary_peer_disks(JsonArray *disks);

/**
 * Start: exports log from now on instead of writing through; overlay empty. Each image gets
 * a marker file until a takeover or a clean block_shutdown(). The connection that wrote
 * before, or writes first, is the primary's; its loss is told as fatal.
 */
bool block_secondary_start(BlockReplicationFunc fn, void *opaque, GError **errp);

/** Whether all writes up to @barriers have arrived and are sorted; if not, @done (or NULL) is
 * called once they have (block thread), and false returned. From then on only these barriers
 * or later ones can be committed. */
bool block_secondary_arrived(const BlockBarrier *barriers, unsigned n, GSourceFunc done,
                             void *opaque);

/** Whether a commit of @barriers would be taken: every replicated disk has one, they lie
 * between the last ones and what has arrived, no disk has failed. For the moment before
 * the checkpoint becomes a commitment. */
bool block_secondary_check(const BlockBarrier *barriers, unsigned n, GError **errp);

/** The SVM is stopped: drop its overlay, make the log up to @barriers part of the image
 * (applied in the background; reads see it at once). */
bool block_secondary_commit(const BlockBarrier *barriers, unsigned n, GError **errp);

/**
 * Takeover: forget the uncommitted log, apply the committed, merge the overlay into the
 * image, fdatasync: all durable when it returns true. The SVM may run meanwhile; its I/O
 * is served. Blocks the caller (not the block thread). After a failure a second call tries
 * again what failed. The locks of shared images are waited for, 10 s at most; if they cannot
 * be had, that is a failure which has changed nothing.
 */
bool block_secondary_takeover(GError **errp);

/** The program ends: a block_secondary_takeover() that waits returns with an error. Any
 * thread. */
void block_secondary_cancel(void);

/**
 * Shared disks: the primary has applied and flushed the log up to @barriers, it is needed no
 * more. Unknown disks are ignored.
 */
void block_secondary_applied(const BlockBarrier *barriers, unsigned n);

/** The name of a shared disk which may not be taken over but with a confirmed fence (not
 * shared-fence=none), or NULL. The caller frees. */
char *block_secondary_unfenced(void);

/** Wait for outstanding log application; for tests and a clean end. Gives up on a disk
 * that makes no progress for 10 s. */
bool block_secondary_settle(GError **errp);

/** Test option die-at: @fn is told of each step of a commit and a takeover; any thread. */
void block_replication_set_step(void (*fn)(const char *step));

/** Figures for query-colo-status: log and overlay bytes, queue, state a disk. */
JsonNode *block_replication_query(void);

#endif
