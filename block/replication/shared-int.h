/*
 * What the parts of the shared disks' log know of each other.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * shared-log.c takes requests and queues them, shared-read.c reads log over image,
 * shared-apply.c brings the queue into the image. All want the block lock.
 */
#ifndef COLO_BLOCK_SHARED_INT_H
#define COLO_BLOCK_SHARED_INT_H

#include "log-map.h"
#include "shared.h"

typedef enum SharedState {
    SHARED_PASS,
    SHARED_LOGGING,
    SHARED_LOST,
    SHARED_DRAIN,
    SHARED_FENCED,
} SharedState;

struct SharedLog {
    BlockNode *quorum, *image;
    BlockNode *file;      /* the raw image itself, for its locks */
    BlockNode *forwarder; /* or NULL */
    char *disk;           /* the export's name */
    SharedState state;
    LogMap *map; /* of what is not in the image yet */
    LogAccount account;
    uint64_t arrived;   /* number of the last logged request */
    uint64_t committed; /* of the last loaded checkpoint */
    uint64_t applied;   /* up to here the image has all, flushed */
    bool dirty;         /* written since the last flush was queued */
    bool closed;
    bool stalled_told;
    unsigned items;     /* in queues and in flight */
    unsigned in_flight; /* image requests, reads too */
    GQueue stalled;     /* BlockRequest */
    int failed;
    bool settling; /* what is logged must reach the image: what fails is tried again */
    char *trouble; /* why that has not come about yet, or NULL */
    GSource *again;
};

/* A write, or a flush (@entry NULL). */
typedef struct SharedItem {
    SharedLog *log;
    LogEntry *entry;
    uint64_t seq; /* of the log's last write up to here; UINT64_MAX: not forwarded */
    bool report;  /* after this flush the secondary may forget up to @seq */
    BlockRequest *client; /* answered when done, or NULL */
    BlockRequest sub;
} SharedItem;
/* Room singleton, guarded by the block lock. */
typedef struct SharedQueues {
    GPtrArray *logs; /* SharedLog */
    GQueue pending;  /* SharedItem: not committed */
    GQueue ready;    /* SharedItem: to be applied */
    GQueue flight;   /* SharedItem: being written */
    bool flushing;
    unsigned flushes; /* items in queues that are flushes of the guest's */
    bool asked, blocked;
    uint64_t progress, progress_seen;
    GSource *patience;
} SharedQueues;
extern SharedQueues shared;

/* shared-log.c */
void shared_set_state(SharedLog *l, SharedState s);
/** Frees a closed log that no request uses any more. */
void shared_log_unref(SharedLog *l);
/** A queue entry of @l: @seq as in SharedItem; @client is answered when it is done. */
SharedItem *shared_item_new(SharedLog *l, uint64_t seq, BlockRequest *client);
void shared_item_free(SharedItem *it);
/** Forgets what @q holds of @l; whoever waits for it is told ESHUTDOWN. */
void shared_drop_items(GQueue *q, SharedLog *l);
/** The log has shrunk: writes that wait may go on. */
void shared_progress(void);
/** Logs or queues a write that did not go to the secondary (LOST, DRAIN, FENCED). */
void shared_submit_write(SharedLog *l, BlockRequest *req);

/* shared-read.c */
/** Answers a read from the log and, where it has nothing, the image. */
void shared_submit_read(SharedLog *l, BlockRequest *req);

/* shared-apply.c */
/** Starts what may go to the image now. */
void shared_step(void);
/** What fails from now on, the guest is told. */
void shared_log_settled(SharedLog *l);

#endif
