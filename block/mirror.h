/*
 * The mirror: makes a second disk equal to one that the guest writes to.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: from READY until its end every write that the guest was told of is on both disks,
 * and the guest never waits longer than a bound for the target.
 *
 * State is one bitmap: a set bit means that the target may differ there. Two parties
 * write to the target, and a lock of ranges gives those that overlap one order:
 *
 * - the copier (mirror.c) takes a range, clears its bits, reads the source and writes the
 *   target. Bits are cleared before the read, and set after a guest's write is on the
 *   source, so a write that the read did not see leaves its bit behind.
 * - a guest's write that has reached the source (mirror-active.c) is written to the target
 *   from its own data before the guest gets its answer, or sets the bits. The first
 *   happens once the copier has gone over the disk once, so that what is left can only
 *   shrink; never with copy-mode=background.
 *
 * Where the source says that it has a hole, zeroes are written instead of data. The
 * question is asked with the bits cleared and the range held, like a copy: an answer that
 * a write has overtaken would lose that write.
 *
 * With x-verify both disks are compared by checksums after the copy (mirror-verify.c), and
 * what differs is marked: before READY.
 *
 * Phases: copying -> (comparing, copying) -> settling (the target's flush, while the guest runs
 * and copying goes on) -> ready (bitmap empty, nothing on its way) -> ending. An end that wants
 * both sides equal (cancel after READY, complete) shuts the guest's requests out for a
 * moment, looks whether the bitmap is still empty, and takes the hook off. A cancelled job has
 * parted then: the guest's requests go on, and what the target got since its last flush is
 * flushed beside them. One that completes flushes before that moment and, if need be, in it:
 * the guest goes on with the target. Then the job has its final state.
 *
 * Limits: a guest's write waits ACTIVE_PATIENCE_MS for the target, after that it only
 * sets its bits, and so do all that follow until the target answers again.
 */
#ifndef COLO_BLOCK_MIRROR_H
#define COLO_BLOCK_MIRROR_H

#include "dirty-bitmap.h"
#include "hook.h"
#include "job.h"

#define MIRROR_OPS 16
#define MIRROR_CHUNK (1024u * 1024)
#define MIRROR_PROBE (128u * 1024 * 1024)
#define MIRROR_SLICE_US 100000
#define MIRROR_KILL_MS 1000
#define ACTIVE_PATIENCE_MS 2000

typedef enum MirrorOnError {
    MIRROR_REPORT,
    MIRROR_IGNORE,
    MIRROR_STOP,
    MIRROR_ENOSPC, /* stop if the target is full, else report */
} MirrorOnError;

typedef enum MirrorCopyMode {
    MIRROR_AUTO, /* write-blocking from the end of the first pass on */
    MIRROR_BACKGROUND,
    MIRROR_WRITE_BLOCKING,
} MirrorCopyMode;

typedef struct Mirror {
    BlockHook hook;
    BlockJob *job;
    BlockNode *source, *target;
    DirtyBitmap *dirty;
    BlockRangeLock ranges; /* what is on its way to the target */
    uint64_t cursor;
    bool first_pass;
    bool full;           /* all of the disk is copied */
    bool none;           /* sync=none: the target is not the source's equal at the end */
    bool probe;          /* ask for holes, in the first pass */
    bool zeroes;         /* the target can write them by itself */
    bool probing;        /* an answer is awaited */
    uint64_t data_until; /* no hole before */
    bool active;         /* guests' writes go to both */
    unsigned late;       /* of them, given up on and still on their way */
    bool unmap;
    MirrorCopyMode copy_mode;
    MirrorOnError on_source_error, on_target_error;
    uint64_t buf_size;
    unsigned in_flight; /* copies, and guests' writes to the target */
    uint64_t in_flight_bytes;
    uint64_t copying; /* bytes of copies in flight */
    GQueue actives;   /* MirrorActive */
    GSource *patience;

    BlockNode *sums[2]; /* of source and target, while they are compared, or NULL */
    uint64_t verify_pos;
    unsigned comparing;
    bool verify, verified;

    gint64 slice_start;
    uint64_t slice_bytes;
    GSource *again; /* rate limit, or a pause after an error */

    bool ending, concluded;
    char *error;
    bool excluding, excluded; /* the guest's requests */
    BlockRange all;
    uint64_t written, durable; /* requests that the target has done, and those of them flushed */
    BlockRequest flush; /* at most one, while job->flushing */
    uint64_t flush_covers;
    bool ahead; /* flushed once before READY, then once before the guest is shut out */
    GSource *kill;
} Mirror;

/* mirror.c */
/** Start what can be started; the mirror may be gone afterwards. */
void mirror_step(Mirror *m);
/** The same at once, whatever was waited for. */
void mirror_wake(Mirror *m);
/** A request failed: what the policy says. */
void mirror_io_error(Mirror *m, bool read, int ret);
/** Start, with the bitmap filled. Takes over one use of @target and of @source. */
void mirror_run(Mirror *m);
/** The work is over: what is on its way may finish. @error (taken) or NULL. */
void mirror_end(Mirror *m, char *error);
/** A reference of what is in flight ends. */
void mirror_put(Mirror *m);
extern const BlockJobDriver mirror_job_driver;

/* mirror-active.c */
bool mirror_after_write(BlockHook *hook, BlockHooked *hd);
/** Let go of the guest's writes that wait for the target. */
void mirror_active_release(Mirror *m);

/* mirror-verify.c */
/** Go on with the comparison. True while it is not over. */
bool mirror_verify(Mirror *m);
/** Let go of what it uses; nothing is in flight. */
void mirror_verify_end(Mirror *m);

/* mirror-pivot.c */
/** Make @node's requests go to @target, whose use is taken over. */
void mirror_pivot(BlockNode *node, BlockNode *target);

#endif
