/*
 * The comparison engine of colo-compare: which of the primary's frames may leave.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Pure: no sockets, threads or globals. Time is passed in (microseconds, monotonic),
 * output goes through callbacks, called from inside the engine's functions; a callback
 * must not call the engine back. All under the net lock. The essay is in
 * net/colo/compare-engine.c.
 */
#ifndef COLO_NET_COMPARE_ENGINE_H
#define COLO_NET_COMPARE_ENGINE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include "net/flow.h"
#include "net/frame.h"
#include "net/proxy.h"

typedef struct CompareEngine CompareEngine;

typedef enum CompareMode {
    COMPARE_MODE_PASS,    /* unprotected: everything leaves at once; flows are learnt */
    COMPARE_MODE_COMPARE, /* protected: promise 1 */
    COMPARE_MODE_HOLD,    /* peer lost: nothing leaves, nothing is compared */
} CompareMode;

typedef struct CompareOps {
    /** @f may leave; the callee gets the reference. */
    void (*release)(Frame *f, void *opaque);
    /** A checkpoint is wanted. @detail is valid during the call. */
    void (*trigger)(ProxyTrigger trigger, const char *detail, void *opaque);
    /** Both initial sequence numbers of @flow are known; the rewriter of the secondary
     * must have them before the primary's SYN|ACK leaves (release() follows). */
    void (*isn)(const FlowKey *flow, uint32_t pvm_isn, uint32_t svm_isn, void *opaque);
    /** @f of the primary or the secondary is not what it claims to be; it is compared as a
     * whole frame all the same. May be NULL. */
    void (*malformed)(const Frame *f, bool primary, const char *what, void *opaque);
} CompareOps;

typedef struct CompareConfig {
    int64_t compare_timeout_us; /* ceiling of any wait for the twin; 0: 3 s */
    uint32_t max_queue_size;    /* frames held a flow; 0: 1024 */
    uint64_t max_bytes;         /* memory of what is held, both sides; 0: 64 MiB */
    uint32_t max_flows;         /* 0: 16384 */
} CompareConfig;

/** The first mode is PASS, the first epoch 0. @ops is copied. */
CompareEngine *compare_engine_new(const CompareConfig *cfg, const CompareOps *ops,
                                  void *opaque);

/** Frees what is held without releasing it. */
void compare_engine_free(CompareEngine *e);

void compare_engine_set_config(CompareEngine *e, const CompareConfig *cfg);

/** Output of the PVM / of the SVM, both in the client's sequence space (but the SVM's
 * SYN|ACK carries its own ISN). Take the reference. */
void compare_engine_primary(CompareEngine *e, Frame *f, int64_t now);
void compare_engine_secondary(CompareEngine *e, Frame *f, int64_t now);

/** Primary frames from now on belong to @epoch. No trigger from here to loaded. */
void compare_engine_cut(CompareEngine *e, uint64_t epoch);

/** The checkpoint that starts @epoch is safe: all primary frames of earlier epochs
 * leave, in order. */
void compare_engine_commit(CompareEngine *e, uint64_t epoch, int64_t now);

/** Secondary frames from now on are of @epoch. */
void compare_engine_secondary_marker(CompareEngine *e, uint64_t epoch);

/** The secondary has the bytes of @flow's client before @upto, and gives them to the SVM
 * until it has them: within the SVM's window that is as good as the SVM's ACK. */
void compare_engine_logged(CompareEngine *e, const FlowKey *flow, uint32_t upto,
                           int64_t now);

/** The SVM runs in @epoch: waits count from now; triggers are allowed again. */
void compare_engine_loaded(CompareEngine *e, uint64_t epoch, int64_t now);

/** Call at the returned time at the latest (INT64_MAX: no need), and whenever frames
 * were fed it is enough to call it once a batch. Decides about timeouts. */
int64_t compare_engine_tick(CompareEngine *e, int64_t now);

/** Going to PASS releases all that is held, in order. */
void compare_engine_set_mode(CompareEngine *e, CompareMode mode, int64_t now);
CompareMode compare_engine_mode(CompareEngine *e);

/** Release all that is held, in order, whatever the mode. */
void compare_engine_flush_all(CompareEngine *e, int64_t now);

/** The total bound is reached: do not read more from either side until it is false
 * again (after a commit, or as the other side catches up). Frames given nevertheless are
 * still taken. */
bool compare_engine_full(CompareEngine *e);

/** Whether no more should be read from this side for now: what is held is too much, and
 * most of it is of this side; the other one goes on, or it would never catch up. @waits:
 * the last answer (it stays true until a quarter has gone). At most twice the bound. */
bool compare_engine_should_wait(CompareEngine *e, bool primary, bool waits);

/** Append the flow table and the frames held as of the last cut to @out. Valid from
 * compare_engine_cut() to compare_engine_commit() (and right away after either). */
void compare_engine_save(CompareEngine *e, GByteArray *out);

/* --- What compare_engine_save() wrote, for the secondary's rewriter --- */

typedef struct CompareTableFlow {
    FlowKey key;
    uint32_t snd_max; /* client space: end of the highest byte that the PVM sent */
    uint32_t ack;     /* highest ACK that the PVM sent */
    uint32_t edge;    /* highest right window edge (ack + window) */
    uint32_t tsval;   /* highest TSval */
    uint32_t tsecr;   /* highest TSecr */
    uint8_t has_ts;
    uint8_t wscale; /* of the guest's window; 255: unknown */
    uint8_t closed; /* the PVM sent FIN (1) or RST (2) */
    uint8_t l2_len; /* Ethernet header with tags, towards the client */
    uint8_t l2[22];
} CompareTableFlow;

typedef struct CompareTable {
    uint64_t epoch;
    uint32_t n_flows;
    CompareTableFlow *flows; /* TCP only */
    FrameQueue held;         /* in the order of release */
} CompareTable;

/** Check and decode; NULL with @errp set if anything is wrong. */
CompareTable *compare_table_parse(const uint8_t *data, size_t len, GError **errp);
void compare_table_free(CompareTable *t);

/* --- Statistics --- */

typedef enum CompareCause {
    COMPARE_CAUSE_PAYLOAD,   /* a byte differs */
    COMPARE_CAUSE_FIN,       /* one closes where the other sends on */
    COMPARE_CAUSE_HANDSHAKE, /* SYN|ACK flags or options differ */
    COMPARE_CAUSE_RETRANS,   /* the PVM sent other bytes for the same sequence */
    COMPARE_CAUSE_URGENT,    /* urgent data is not compared: held for a checkpoint */
    COMPARE_CAUSE_REUSE,     /* a connection's ports came again while output was held */
    COMPARE_CAUSE_NO_TWIN,   /* opened by the guest; or a query with a random id */
    COMPARE_CAUSE_SILENT,    /* the twin made no progress */
    COMPARE_CAUSE_BACKLOG,
    COMPARE_CAUSE__MAX,
} CompareCause;

const char *compare_cause_name(CompareCause c);

typedef struct CompareMismatch {
    FlowKey flow;
    CompareCause cause;
    uint32_t offset; /* bytes from the start of the epoch's part of the stream (TCP) */
    uint64_t epoch;
    int64_t when;
} CompareMismatch;

#define COMPARE_LAST 16

typedef struct CompareStats {
    uint32_t flows;
    uint64_t flows_evicted;
    uint64_t primary_frames, primary_bytes;
    uint64_t secondary_frames, secondary_bytes;
    uint64_t released_frames, released_bytes;
    uint64_t malformed[2]; /* frames of the primary, of the secondary that lie about a
                              length, a header or a checksum */
    uint64_t equal;         /* primary frames vouched for by the SVM */
    uint64_t committed;     /* primary frames released by a checkpoint */
    uint64_t known;         /* released because nothing in them was new */
    uint64_t lowered;       /* released with a lowered ACK or window */
    uint64_t acks_made;     /* pure ACKs made for an owed one */
    uint64_t parts;         /* frames whose front left by itself */
    uint64_t logged;        /* ACKs vouched for by the secondary's log alone */
    uint64_t acks_absorbed; /* pure ACKs overtaken by data that carried as much */
    uint64_t svm_dropped;   /* SVM frames dropped without a twin */
    uint64_t svm_forwarded; /* ARP and NS that only the SVM sent */
    uint64_t held_frames, held_bytes; /* primary frames held now */
    uint64_t svm_bytes;               /* SVM bytes kept now */
    uint64_t held_frames_max, held_bytes_max;
    int64_t held_longest_us;
    int64_t lag_us; /* smoothed lag of the SVM */
    int64_t held_since; /* when the oldest held frame came; 0: none is held */
    uint64_t by_cause[COMPARE_CAUSE__MAX];
    uint64_t triggers, timeouts;
    uint64_t steps;  /* entries of tables and lists looked at: must not grow with either */
    uint32_t n_last; /* entries valid in @last, newest first */
    CompareMismatch last[COMPARE_LAST];
} CompareStats;

void compare_engine_stats(CompareEngine *e, CompareStats *out);

/** Frames and bytes of the primary that are held now; cheap. */
void compare_engine_held(CompareEngine *e, uint64_t *frames, uint64_t *bytes);

#endif
