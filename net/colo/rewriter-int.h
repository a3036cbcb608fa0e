/*
 * Inside the rewriter engine.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_NET_REWRITER_INT_H
#define COLO_NET_REWRITER_INT_H

#include "net/packet.h"
#include "net/rewriter-engine.h"

typedef struct RwFlow RwFlow;

/* A frame that a takeover would send (again), in client space. */
typedef struct Kept {
    Frame *f;
    RwFlow *flow;             /* NULL: a datagram */
    struct Kept *prev, *next; /* by age */
    struct Kept *fnext;       /* of the flow; free: the pool */
    uint32_t seq, end;
    int64_t stamp;
} Kept;

/* A segment of the client that the SVM has not acknowledged, as it was delivered. */
typedef struct Logged {
    Frame *f;
    struct Logged *prev, *next; /* sorted by seq; free: the pool */
    uint32_t seq, end;          /* FIN counted */
    uint32_t l4;
    uint16_t ts_at; /* 0: no time stamp */
} Logged;

typedef struct KeptList {
    Kept *head, *tail;
} KeptList;

/* Numbers are in client space unless the comment says "inside". */
struct RwFlow {
    FlowKey key;
    RwFlow *hnext, *prev, *next; /* hash chain; list by age */
    int64_t used;
    bool minor; /* in the list of those that may go first: embryonic, over */

    bool off_known, syn_seen, closed;
    uint32_t off;     /* inside = client space + off */
    uint32_t svm_isn; /* inside */

    bool snd_known, ack_known;
    uint32_t snd_max;     /* end of what the guest sent */
    uint32_t g_ack;       /* the guest's ACK */
    uint16_t g_win, vnet_len;
    uint8_t wscale; /* the guest's; 255: unknown */

    bool cl_known, cl_fin, g_fin;
    uint8_t cl_wscale;
    uint32_t cl_ack, cl_edge;
    uint32_t cl_fin_end, g_fin_end;

    bool has_ts, ts_known;
    bool talked;         /* the guest has sent more than its SYN */
    uint32_t ts_first;   /* inside: of its SYN */
    uint32_t ts_off;     /* TSval outside = inside + ts_off */
    uint32_t tsval_last; /* inside: the last that the guest sent */
    uint32_t ts_floor;   /* highest that the client may have seen */
    uint32_t tsecr;      /* the client's last TSval */

    uint8_t l2_len;
    uint8_t l2[22];
    Kept *kept_head, *kept_tail;

    /* Of the client: its log and its last ACK, see rewriter-log.c */
    Logged *log_first, *log_last;
    RwFlow *log_prev, *log_next; /* of those with a log, by @log_due */
    RwFlow *untold_next;
    int64_t log_due, log_wait; /* when the first segment goes again; the wait then */
    uint32_t log_to;           /* end of what the SVM or the log has without a hole */
    uint32_t log_repair_to, g_edge, cl_snd;
    int64_t cl_ack_at, answered_at;
    bool log_known, log_listed, log_untold, log_repair, cl_snd_known;
    uint8_t log_equal; /* ACKs that did not move */
    uint8_t cl_l2_len;
    uint8_t cl_l2[22];
    uint16_t cl_win;
};

struct RewriterEngine {
    uint64_t max_bytes, seed;
    bool live; /* after a takeover: nothing new is tracked or kept */
    RwFlow **table;
    struct {
        RwFlow *head, *tail; /* newest first */
    } age[2];                /* by RwFlow.minor */
    KeptList segs, dgrams;
    Kept *free_kept;
    FrameQueue held; /* of the checkpoint */
    RewriterLogOps log_ops;
    void *log_opaque;
    RwFlow *log_head, *log_tail; /* flows with a log, the first due first */
    RwFlow *untold;              /* whose log has grown in this batch */
    Logged *free_logged;
    RewriterStats stats;
};

#define REWRITER_TABLE 16384 /* buckets, and flows at most */

/* rewriter-flow.c */
RwFlow *rw_flow_find(RewriterEngine *r, const FlowKey *key);
RwFlow *rw_flow_add(RewriterEngine *r, const FlowKey *key, int64_t now);
void rw_flow_use(RewriterEngine *r, RwFlow *fl, bool minor, int64_t now);
void rw_flow_remove(RewriterEngine *r, RwFlow *fl);
void rw_flows_clear(RewriterEngine *r);

/* rewriter-keep.c */
void rw_keep_segment(RewriterEngine *r, RwFlow *fl, Frame *f, uint32_t seq, uint32_t end,
                     int64_t now);
void rw_keep_dgram(RewriterEngine *r, Frame *f, int64_t now);
void rw_dgrams_expire(RewriterEngine *r, int64_t now);
/** The client has everything before fl->cl_ack. */
void rw_kept_acked(RewriterEngine *r, RwFlow *fl);
void rw_kept_clear_flow(RewriterEngine *r, RwFlow *fl);
void rw_kept_clear(RewriterEngine *r);
/** Keep a checkpoint's held frames; @q is empty afterwards. */
void rw_keep_held(RewriterEngine *r, FrameQueue *q);

/* rewriter-icmp.c */
/** Translate what ICMP message @f (taken, parsed as @p) quotes of a TCP flow; returns a
 * reference. */
Frame *rw_icmp(RewriterEngine *r, Frame *f, const Packet *p, bool to_guest);

/* rewriter-log.c */
/** @f (as it goes to the guest; a reference is taken) has bytes of the client. */
void rw_log_client(RewriterEngine *r, RwFlow *fl, Frame *f, const Packet *p, int64_t now);
/** The guest sent an ACK; @moved: further than before. */
void rw_log_acked(RewriterEngine *r, RwFlow *fl, const Packet *p, bool moved,
                  int64_t now);
/** The guest sent [@seq, @end): if it repeats or probes, give it the client's ACK. */
void rw_answer(RewriterEngine *r, RwFlow *fl, const Packet *p, uint32_t seq, uint32_t end,
               int64_t now);
/** Feed again what is due; when the next is. */
int64_t rw_log_tick(RewriterEngine *r, int64_t now);
void rw_log_clear_flow(RewriterEngine *r, RwFlow *fl);
void rw_log_clear(RewriterEngine *r);
void rw_log_free(RewriterEngine *r);

#endif
