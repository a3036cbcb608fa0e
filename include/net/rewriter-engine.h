/*
 * The engine of filter-rewriter: the client's sequence space outside, the guest's inside.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Pure: no sockets, threads or globals; time in microseconds, monotonic. All under the
 * net lock. The essay is in net/colo/rewriter-engine.c.
 */
#ifndef COLO_NET_REWRITER_ENGINE_H
#define COLO_NET_REWRITER_ENGINE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include "net/compare-engine.h"
#include "net/flow.h"
#include "net/frame.h"

typedef struct RewriterEngine RewriterEngine;

/** @max_bytes: bound of the output kept for a takeover; 0: 64 MiB. */
RewriterEngine *rewriter_engine_new(uint64_t max_bytes);
void rewriter_engine_free(RewriterEngine *r);

/** Translate a frame on its way to / from the guest. Takes the reference of @f and
 * returns one: @f changed in place, or a changed copy if @f was shared. Never NULL. */
Frame *rewriter_engine_to_guest(RewriterEngine *r, Frame *f, int64_t now);
Frame *rewriter_engine_from_guest(RewriterEngine *r, Frame *f, int64_t now);

/** The primary's comparison learnt both ISNs of @flow. */
void rewriter_engine_isn(RewriterEngine *r, const FlowKey *flow, uint32_t pvm_isn,
                         uint32_t svm_isn, int64_t now);

typedef struct RewriterLogOps {
    /** @f (taken) goes to the guest again, behind the rewriter. */
    void (*feed)(Frame *f, void *opaque);
    /** The client's bytes before @upto are safe on this host. */
    void (*logged)(const FlowKey *flow, uint32_t upto, void *opaque);
} RewriterLogOps;

/** From now on client data is logged until the SVM has acknowledged it, and fed again if
 * the SVM lost it; @ops is copied. NULL: no more, and the log is dropped. */
void rewriter_engine_log(RewriterEngine *r, const RewriterLogOps *ops, void *opaque);

/** At the end of a batch: tell what was logged; when rewriter_engine_tick() must be
 * called at the latest for the log's sake. */
int64_t rewriter_engine_log_flush(RewriterEngine *r);

/** Append this side's offsets (a promoted secondary that is primary now has some). */
void rewriter_engine_save(RewriterEngine *r, GByteArray *out);

/**
 * The SVM was rolled back to a checkpoint: flows and offsets become those of the
 * checkpoint, all kept output goes, @cmp's held frames are kept instead (moved out of
 * @cmp). @cmp may be NULL (no colo-compare for this netdev), @rw may be NULL with @rw_len
 * 0 (the primary has no rewriter). On failure nothing has changed.
 */
bool rewriter_engine_load(RewriterEngine *r, CompareTable *cmp, const uint8_t *rw,
                          size_t rw_len, int64_t now, GError **errp);

typedef void (*RewriterEmitFunc)(Frame *f, void *opaque); /* gets the reference */

/**
 * The secondary goes live: emit, in client space, towards the client: the checkpoint's
 * held frames, each flow's unacknowledged bytes within the client's window, one current
 * ACK a flow, and UDP and ICMP of the last 200 ms. From then on nothing is kept and new
 * flows are not tracked; flows with an offset are translated as long as they live.
 */
void rewriter_engine_takeover(RewriterEngine *r, int64_t now, RewriterEmitFunc emit,
                              void *opaque);

/** Whether frames still need to pass here (false after a takeover without live flows). */
bool rewriter_engine_busy(RewriterEngine *r);

/** Forget flows that are over, feed again what is due; returns when to call again at the latest. */
int64_t rewriter_engine_tick(RewriterEngine *r, int64_t now);

typedef struct RewriterStats {
    uint32_t flows, flows_with_offset;
    uint64_t to_guest, from_guest;    /* TCP frames seen */
    uint64_t rewritten;               /* frames changed */
    uint64_t icmp_rewritten;          /* ICMP errors among them */
    uint64_t kept_frames, kept_bytes; /* now, held frames of the checkpoint included */
    uint64_t kept_bytes_max;
    uint64_t kept_dropped; /* frames that left for the bound: lost to a takeover */
    uint64_t flows_evicted;
    uint64_t learnt_isn, learnt_ack; /* offsets learnt from the primary, from an ACK */
    uint64_t emitted;                /* frames of the last takeover */
    uint64_t logged_frames, logged_bytes, logged_bytes_max; /* of clients, now */
    uint64_t log_refused; /* segments not logged for the bound */
    uint64_t fed_again;   /* segments that the SVM had lost */
    uint64_t answered;    /* ACKs of the client that the SVM had lost */
} RewriterStats;

void rewriter_engine_stats(RewriterEngine *r, RewriterStats *out);

#endif
