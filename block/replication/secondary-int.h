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
 *   export reads:  pending log  >  staged log  >  committed layers  >  image
 *   SVM reads:     overlay                     >  committed layers  >  image
 *
 * States: IDLE (writes of the export go through to the image, counted), LOGGING (they go
 * to the log), TAKEOVER (log closed; committed log and overlay flow into the image while
 * the SVM runs), LIVE (the node is the image), FAILED (an image error; never live).
 *
 * Invariants. The pending queue is in arrival order and every entry's seq is the count of
 * modifying requests on the connection. When a barrier is known, entries below it are moved to
 * the staged layer, some at a time; when all are there the barrier has "arrived". A commit
 * then is one pointer: the staged layer becomes the newest committed one and is written to
 * the image later, in order (apply.c); its map hides the image's old content until then. The
 * image is written only through its front, which keeps overlapping writes in order of
 * submission; whoever writes newer data than the layers have first takes its range out of
 * their maps.
 *
 * Limits: over LOG_SOFT or OVERLAY_SOFT a checkpoint is asked for; over log-memory new entries
 * are spilled to the hidden disk (spill.c), and while that does not keep up the connection
 * is not read. With LAYERS_MAX layers a barrier does not arrive until one is written. While
 * replication runs a marker file beside the image tells that it may be between two
 * checkpoints; it goes with a clean end.
 */
#ifndef COLO_BLOCK_SECONDARY_INT_H
#define COLO_BLOCK_SECONDARY_INT_H

#include "../block-int.h"
#include "block/replication.h"
#include "log-map.h"
#include "overlay.h"

#define LOG_SOFT (64ull * 1024 * 1024)
#define LOG_MEMORY (128ull * 1024 * 1024) /* default of log-memory */
#define SPILL_SLACK (32ull * 1024 * 1024) /* being written to the hidden disk */
#define OVERLAY_SOFT (256ull * 1024 * 1024)
#define OVERLAY_SOFT_SHARED (32ull * 1024 * 1024) /* merged before gates open */
#define ACTIVE_DIRTY (32ull * 1024 * 1024) /* flushed behind the SVM: a takeover must wait */
#define MERGE_TELL (64ull * 1024 * 1024)   /* an event each */
#define LAYERS_MAX 8
#define STAGE_STEP 256 /* entries that are moved at once */
#define APPLY_DEPTH 16
#define APPLY_CHUNK (128u * 1024)
#define APPLY_BYTES (512ull * 1024)
#define MERGE_DEPTH 4
#define MERGE_CHUNK (256 * 1024)

typedef enum SecondaryState {
    SECONDARY_IDLE,
    SECONDARY_LOGGING,
    SECONDARY_TAKEOVER,
    SECONDARY_LIVE,
    SECONDARY_FAILED,
} SecondaryState;

/* A checkpoint's entries. */
typedef struct LogLayer {
    LogMap *map;
    GQueue queue;      /* LogEntry, not yet written to the image */
    uint64_t pos;      /* up to where the first of them is */
    unsigned applying; /* pieces in flight */
    uint64_t seq;      /* of its barrier */
} LogLayer;

struct BlockSecondary {
    BlockNode *node;
    BlockNode *active; /* storage of the overlay */
    BlockNode *hidden;
    BlockNode *parent; /* the image */
    char *top_id;
    char *export_name;
    char *marker; /* path, while it exists */
    char *peer_generation; /* what the primary calls the moment when both are equal */
    char *peer_connection; /* what it calls the connection that replicates, or NULL */
    bool peer_mirrored;    /* the primary made our image equal by a mirror */
    GQueue peer_flushes;   /* BlockRequest: until what was committed is on the image */
    bool shared;   /* the image is the primary's, too */
    bool no_fence; /* shared-fence=none */
    SecondaryState state;
    char *error;
    int errnum; /* its -errno, which the primary is told, or 0 */

    GHashTable *conns; /* connection -> its count (uint64_t), those that wrote */
    void *conn;        /* the one that replicates, once bound */
    bool conn_lost;
    uint64_t lost_count; /* of the bound connection, after it has gone */
    uint64_t committed;  /* seq of the last barrier */
    uint64_t staged_line; /* up to here entries were moved to @staged */
    unsigned through;    /* write-through requests in flight, from before the start */
    bool closed;         /* the node has gone; they have not */

    LogAccount log;
    uint64_t log_memory; /* option: beyond it entries are spilled */
    GQueue pending;      /* LogEntry */
    LogMap *pending_map;
    uint64_t pending_bytes;
    LogLayer *staged;
    GPtrArray *layers; /* LogLayer, committed, the oldest first */
    bool copy_noted;   /* the image is marked, as somebody writes to it before the start */
    bool asked;        /* for a checkpoint, since the last one */
    unsigned applying; /* pieces in flight, of all layers */
    uint64_t apply_bytes;
    uint64_t applied; /* bytes that came to the image, ever */
    GSource *apply_idle, *stage_idle, *garbage_idle;
    GPtrArray *garbage; /* LogLayer, to be freed bit by bit */

    uint64_t spill_next; /* where the next free place on the hidden disk is looked for */
    unsigned spilling;
    uint64_t spilling_bytes;
    int spill_error;

    Overlay *overlay;
    unsigned generation; /* of the overlay: a commit starts a new one */
    unsigned overlay_writes;
    BlockRangeLock ranges; /* the SVM's requests against the merge */

    unsigned merging;
    uint64_t merge_pos; /* where the next run is looked for */
    bool merge_scan_done;
    unsigned flushing; /* flushes of the takeover's own, in flight */
    GQueue flushes;    /* BlockRequest of the SVM, until live */
    enum {
        TAKEOVER_APPLY,
        TAKEOVER_FLUSH,
        TAKEOVER_JOURNAL,
        TAKEOVER_MERGE,
        TAKEOVER_END,
        TAKEOVER_REMOVE
    } phase;
    bool journaled; /* the journal is in force */
    bool serving;   /* and so the takeover has been answered */
    void *job;      /* JournalJob under way */
    Overlay *journal_set; /* what the journal says, but for what was noted as newer */
    GArray *newer;        /* JournalRange: not in the journal yet */
    GArray *flush_newer;  /* of the flush under way */
    GQueue flush_batch;   /* its BlockRequests */
    bool flush_busy;
    uint64_t merge_total, merge_told;
    uint64_t active_dirty; /* written to the active disk since it was flushed */
    bool active_flushing;
    GPtrArray *waiters; /* BlockWait: for live or failed, or for settled */
    GPtrArray *settlers;
};

/* secondary.c */
GPtrArray *secondaries(void);
const char *secondary_state_name(SecondaryState state);
/** A source that calls @fn in the block thread as soon as other work allows; the caller owns
 * it and destroys it within @fn. */
GSource *secondary_idle(GSourceFunc fn, void *opaque);

/* secondary-io.c */
void secondary_submit(BlockNode *node, BlockRequest *req);
/** Read @req of the pending (if @with_pending) or overlay view. */
void secondary_read(BlockSecondary *s, BlockRequest *req, bool with_pending,
                    BlockRangeLock *lock);

/* secondary-log.c */
/** Move the line to @sequence, at most @max entries; whether it is there. */
bool secondary_stage(BlockSecondary *s, uint64_t sequence, unsigned max);
/** Go on with that in the background. */
void secondary_stage_later(BlockSecondary *s);
/** Forget what was not committed. */
void secondary_drop_pending(BlockSecondary *s);
void secondary_fail(BlockSecondary *s, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
/** Ask for a checkpoint, once. */
void secondary_ask(BlockSecondary *s, const char *why);
uint64_t secondary_arrivals(BlockSecondary *s);

/* apply.c */
LogLayer *log_layer_new(void);
void log_layer_free(LogLayer *l);
void secondary_apply(BlockSecondary *s);
/** After an error: queue again what is still in the layers' maps. */
void secondary_apply_again(BlockSecondary *s);
/** Newer data for [start, end) is about to be written to the image. */
void secondary_layers_remove(BlockSecondary *s, uint64_t start, uint64_t end);
void secondary_check_settled(BlockSecondary *s);

/* spill.c */
/** Send @e's data to the hidden disk if memory is over its bound. */
void secondary_spill(BlockSecondary *s, LogEntry *e);

/* merge.c */
/** Go on with it; true: nothing is left. */
bool secondary_merge(BlockSecondary *s);
extern int secondary_test_hold_merge; /* for tests, as is what follows */
extern uint64_t secondary_merge_at_once; /* a larger overlay is journaled */

/* takeover.c */
/** The guest's write to [start, end) of the image has ended well. */
void secondary_note_newer(BlockSecondary *s, uint64_t start, uint64_t end);
/** Begin a flush of the image for what waits in @flushes. */
void secondary_flush_kick(BlockSecondary *s);
/** The node goes: a thread that still works for it finds nobody. */
void secondary_journal_forget(BlockSecondary *s);
void secondary_takeover_begin(BlockSecondary *s);
void secondary_takeover_step(BlockSecondary *s);

/** Layer @l (taken) is not needed any more; freed bit by bit. */
void secondary_drop_layer(BlockSecondary *s, LogLayer *l);

/* shared-secondary.c */
/** Become the owner of all shared images of @all; marks them until the takeover is through.
 * Waits, so not from the block thread. */
bool secondary_claim(GPtrArray *all, GError **errp);

/* control.c: the controller's callback and waits */
BlockSecondary *secondary_of_disk(const char *disk);

/* Why an image is marked. */
typedef enum SecondaryMarker {
    MARKER_RUNNING, /* replication: parts of two checkpoints */
    MARKER_SHARED,  /* a shared image, for the time of a takeover */
    MARKER_COPY,    /* before replication: what comes in may be half of a copy */
} SecondaryMarker;

/** Write the marker @path, durably. */
bool secondary_marker_create(const char *path, SecondaryMarker kind, GError **errp);
/** Whether the program ends and nothing is to be waited for. */
bool secondary_cancelled(void);
void secondary_notify(bool fatal, const char *message);
void secondary_check_arrived(void);
/** Where the test option die-at may strike. */
void secondary_step(const char *step);

#endif
