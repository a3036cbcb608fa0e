/*
 * What the files of the replication secondary share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: until a takeover the image holds, or is on the way to hold, the last committed
 * checkpoint; the SVM sees that checkpoint plus its own writes; what the primary wrote
 * since waits in the log, seen by nobody but the export itself.
 *
 *   export reads:  pending log  >  committed log  >  image
 *   SVM reads:     overlay      >  committed log  >  image
 *
 * States: IDLE (writes of the export go through to the image, counted), LOGGING (they go
 * to the log), TAKEOVER (log closed; committed log and overlay flow into the image while
 * the SVM runs), LIVE (the node is the image), FAILED (an image error; never live).
 *
 * Invariants. The pending queue is in arrival order and every entry's seq is the count of
 * modifying requests on the connection. A commit is only a move of the line in that
 * queue: entries below become part of the committed map at once and are written to the
 * image later, in order; the map hides the image's old content until then. The image is
 * written only through its front, which keeps overlapping writes in order of submission;
 * whoever writes newer data than the committed map first removes the map's range.
 *
 * Limits: the log is in memory: over LOG_SOFT or OVERLAY_SOFT a checkpoint is asked for,
 * over LOG_HARD the connection is no longer read. While replication runs a marker file
 * beside the image tells that it may be between two checkpoints; it goes with a clean
 * end. Spilling the log to the hidden disk is not done: that disk is only checked for.
 */
#ifndef COLO_BLOCK_SECONDARY_INT_H
#define COLO_BLOCK_SECONDARY_INT_H

#include "../block-int.h"
#include "block/replication.h"
#include "log-map.h"
#include "overlay.h"

#define LOG_SOFT (64ull * 1024 * 1024)
#define LOG_HARD (512ull * 1024 * 1024)
#define OVERLAY_SOFT (32ull * 1024 * 1024)
#define APPLY_DEPTH 16
#define MERGE_DEPTH 8
#define MERGE_CHUNK (1024 * 1024)

typedef enum SecondaryState {
    SECONDARY_IDLE,
    SECONDARY_LOGGING,
    SECONDARY_TAKEOVER,
    SECONDARY_LIVE,
    SECONDARY_FAILED,
} SecondaryState;

struct BlockSecondary {
    BlockNode *node;
    BlockNode *active; /* storage of the overlay */
    BlockNode *hidden;
    BlockNode *parent; /* the image */
    char *top_id;
    char *export_name;
    char *marker; /* path, while it exists */
    SecondaryState state;
    char *error;

    GHashTable *conns; /* connection -> its count (uint64_t), those that wrote */
    void *conn;        /* the one that replicates, once bound */
    bool conn_lost;
    uint64_t lost_count; /* of the bound connection, after it has gone */
    uint64_t committed;  /* seq of the last barrier */
    unsigned through;    /* write-through requests in flight, from before the start */

    GQueue pending; /* LogEntry */
    LogMap *pending_map, *committed_map;
    uint64_t log_bytes;
    bool asked;        /* for a checkpoint, since the last one */
    GQueue to_apply;   /* LogEntry, committed */
    unsigned applying; /* requests in flight */

    Overlay *overlay;
    unsigned generation; /* of the overlay: a commit starts a new one */
    unsigned overlay_writes;
    BlockRangeLock ranges; /* the SVM's requests against the merge */

    unsigned merging;
    uint64_t merge_pos; /* where the next run is looked for */
    bool merge_scan_done;
    bool flushing;
    GQueue flushes;     /* BlockRequest of the SVM, until live */
    GPtrArray *waiters; /* BlockWait: for live or failed, or for settled */
    GPtrArray *settlers;
};

/* secondary.c */
GPtrArray *secondaries(void);
const char *secondary_state_name(SecondaryState state);

/* secondary-io.c */
void secondary_submit(BlockNode *node, BlockRequest *req);
/** Read @req of the pending (if @with_pending) or overlay view. */
void secondary_read(BlockSecondary *s, BlockRequest *req, bool with_pending,
                    BlockRangeLock *lock);

/* secondary-log.c */
void secondary_apply(BlockSecondary *s);
void secondary_fail(BlockSecondary *s, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
/** Ask for a checkpoint, once. */
void secondary_ask(BlockSecondary *s, const char *why);
uint64_t secondary_arrivals(BlockSecondary *s);
void secondary_check_settled(BlockSecondary *s);

/* takeover.c */
void secondary_takeover_begin(BlockSecondary *s);
void secondary_takeover_step(BlockSecondary *s);

/* control.c: the controller's callback and waits */
void secondary_notify(bool fatal, const char *message);
void secondary_check_arrived(void);

#endif
