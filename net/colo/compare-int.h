/*
 * Inside the comparison engine.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_NET_COMPARE_INT_H
#define COLO_NET_COMPARE_INT_H

#include "net/compare-engine.h"
#include "net/packet.h"

typedef struct CompareFlow CompareFlow;
typedef struct Item Item;

typedef enum ItemKind {
    ITEM_DATA,   /* TCP bytes and FIN: leaves when its end is vouched for */
    ITEM_ACK,    /* TCP without either: leaves when its ACK is vouched for */
    ITEM_SYNACK, /* leaves when the SVM's SYN|ACK agrees */
    ITEM_RST,    /* leaves when the SVM has sent one */
    ITEM_DGRAM,  /* leaves when the SVM has sent an equal one */
    ITEM_FORCED, /* only a checkpoint lets it leave */
} ItemKind;

/* A frame that is kept: of the primary until it may leave, of the secondary until the
 * primary has sent the same. */
struct Item {
    Frame *f;
    CompareFlow *flow;
    Item *prev, *next;   /* the engine's list of its side, in the order of arrival */
    Item *fprev, *fnext; /* the flow's FIFO it waits in; datagrams: the ring of equal
                          * ones; free items: the pool */
    Item *sprev, *snext; /* the flow's byte stream; datagrams: the hash bucket */
    int64_t stamp;
    uint64_t hash;
    uint32_t seq, len, at; /* the range in the stream and where its bytes are */
    uint32_t end;          /* of the whole frame in sequence space, FIN counted */
    uint32_t ack, edge, tsval;
    uint32_t body, body_len;
    uint16_t win;
    uint16_t l4, ts_at, sack_at;
    uint8_t n_sack, tcp_flags;
    ItemKind kind;
    bool fin;       /* one more place in the stream, after the bytes */
    bool in_stream; /* linked through sprev and snext */
    bool follows;   /* an equal datagram stands in the table for it */
    bool primary;
    bool must_send; /* a pure ACK that repeats the last one: the PVM meant it so */
    bool partial;   /* checksum */
    bool norewrite; /* signed: leaves as it is or not at all */
};

typedef struct ItemList {
    Item *head, *tail;
    uint32_t count;
} ItemList;

/* The bytes of one side beyond the vouched position: sorted, without overlap. */
typedef struct Stream {
    Item *head, *tail;
    Item *hint; /* the last that was linked in: the next is often its neighbour */
} Stream;

typedef struct Handshake {
    bool valid;
    uint8_t flags;
    bool has_mss, has_wscale, sack_ok, has_ts, has_md5, has_tfo;
    uint8_t wscale;
    uint16_t mss, win;
    uint32_t isn, ack;
} Handshake;

/* How a flow waits for its twin; each class has a list, sorted by @base. */
typedef enum WaitClass {
    WAIT_FORCED, /* no twin will come */
    WAIT_DATA,
    WAIT_QUERY,  /* datagrams with random contents: soon hopeless */
    WAIT_ACK,    /* only an ACK is owed; delayed ACKs take their time. Or the SVM alone
                    has reset the connection */
    WAIT_BLOCKED, /* a window is owed to a client that cannot send: compare_timeout. Or only
                    the PVM has reset a connection whose end the client has: who forgot it
                    first, as both have but so much room for such, nobody waits for */
    WAIT_WINDOW,  /* only a wider window is owed: no time limit */
    WAIT_PART,    /* the next frame's front is vouched for, and may leave by itself soon */
    WAIT__MAX,
    WAIT_NONE = WAIT__MAX,
} WaitClass;

typedef struct SackRange {
    uint32_t left, right;
} SackRange;

#define SACK_RANGES 8

struct CompareFlow {
    FlowKey key;
    CompareFlow *hnext;
    CompareFlow *lru_prev, *lru_next;
    int64_t lru_at;
    CompareFlow *wait_prev, *wait_next;
    int64_t base; /* of the wait: the last progress */
    uint64_t generation;
    uint32_t n_held, n_kept; /* frames of the primary, of the secondary */
    uint32_t n_forced;
    uint8_t wait; /* WaitClass */
    uint8_t why;  /* CompareCause while FORCED */
    bool broken;  /* the streams differ at @vouched */
    uint8_t l2_len;
    uint8_t l2[22];

    /* TCP. @p_: the most that the PVM sent; @s_: what the SVM vouches for; @rel_: the
     * most that has left. */
    bool p_known, s_known, v_known, rel_known, has_ts;
    bool told_isn, synack_out; /* the rewriter knows; the PVM's SYN|ACK is vouched for */
    bool norewrite;            /* its segments are signed */
    bool part_known;
    bool p_fin;
    uint8_t wscale, closed, s_rst;
    uint16_t p_win, s_win, vnet_len;
    uint32_t epoch_start; /* stream position where offsets are counted from */
    uint32_t vouched;
    uint32_t part; /* end of the last front that left, see compare_tcp_leave_part() */
    uint32_t p_snd_max, p_ack, p_edge, p_tsval, p_tsecr;
    uint32_t s_ack, s_edge;
    uint32_t s_own; /* the SVM's own ACK; @s_ack may be ahead of it by the log */
    uint32_t s_log; /* the secondary has the client's bytes before this */
    bool s_log_known;
    uint32_t rel_ack, rel_edge, rel_tsval;
    Stream p, s;
    ItemList fifo, acks;
    uint8_t n_sack;
    /* Seldom touched from here on. */
    Handshake p_syn, s_syn;
    SackRange sack[SACK_RANGES];
} __attribute__((aligned(64)));

typedef struct Neighbour { /* an ARP request or NS that one side sent */
    uint64_t hash;
    int64_t when;
    Frame *f; /* the secondary's, to be forwarded at @when + grace; NULL: the primary's */
} Neighbour;

#define NEIGHBOURS 64

struct CompareEngine {
    CompareConfig cfg;
    CompareOps ops;
    void *opaque;
    CompareMode mode;
    uint64_t seed;
    uint64_t p_epoch, s_epoch, c_epoch; /* of the next frame of P, of S; committed */
    bool in_flight;                     /* between cut and loaded */
    uint64_t generation;                /* one more at each commit */
    int64_t loaded_at;
    int64_t now; /* of the call in progress */

    CompareFlow **table;
    uint32_t table_mask, n_flows;
    CompareFlow *lru_head, *lru_tail, *free_flows;
    GPtrArray *flow_chunks, *item_chunks;
    Item *free_items;
    struct {
        CompareFlow *head, *tail;
    } wait[WAIT__MAX];

    ItemList held;                   /* primary frames, in the order of arrival */
    ItemList kept_segs, kept_dgrams; /* secondary frames */
    FrameQueue next_p, next_s;       /* of epochs that are not committed */
    uint64_t held_bytes, kept_bytes;
    Item **dgrams; /* hash table of both sides' datagrams */
    uint32_t dgram_mask;

    Neighbour neighbours[NEIGHBOURS];
    uint32_t n_neighbours;

    int64_t lag;          /* smoothed, microseconds */
    int64_t floor;        /* least patience with a silent twin, see patience() */
    int64_t floor_at;     /* when it changed last */
    int64_t last_trigger; /* 0: never */
    int64_t damping;
    bool asked; /* a trigger went out and no cut came yet */
    CompareStats stats;
};

/* compare-flow.c: flows, items and lists */
void compare_tables_init(CompareEngine *e);
void compare_tables_free(CompareEngine *e);
CompareFlow *compare_flow_get(CompareEngine *e, const FlowKey *key);
CompareFlow *compare_flow_find(CompareEngine *e, const FlowKey *key);
/** Relink @fl in the wait list it belongs to; @progress: its twin has moved. */
void compare_flow_wait(CompareEngine *e, CompareFlow *fl, bool progress);
/** The same for a flow that waits for something else now, but no less long. */
void compare_flow_wait_on(CompareEngine *e, CompareFlow *fl);
Item *compare_item_new(CompareEngine *e, CompareFlow *fl, Frame *f, bool primary);
/** Unlink @it from every list and free it; returns its frame. */
Frame *compare_item_take(CompareEngine *e, Item *it);
void compare_item_drop(CompareEngine *e, Item *it);
void compare_fifo_push(ItemList *l, Item *it);
/** Bring @fl to the last commit (its generation), if it is behind. */
void compare_flow_sync(CompareEngine *e, CompareFlow *fl);

/* compare-engine.c */
void compare_release(CompareEngine *e, Frame *f);
/** Record a mismatch and make @fl wait for a checkpoint. */
void compare_force(CompareEngine *e, CompareFlow *fl, CompareCause why, uint32_t offset);
/** Count and tell of a frame that is not what it claims to be. */
void compare_malformed(CompareEngine *e, const Frame *f, bool of_primary,
                       const char *what);
/** Hold @f until a checkpoint; @why goes to the flow if it is the first. */
void compare_hold_forced(CompareEngine *e, CompareFlow *fl, Frame *f, const Packet *p,
                         CompareCause why);
/** The flow's queue is over its bound and its twin does not move. */
void compare_backlog(CompareEngine *e, CompareFlow *fl);
/** A frame of the primary that came at @stamp found its twin now. */
void compare_sample_lag(CompareEngine *e, int64_t stamp);

/* compare-tcp.c: what both sides send; compare-tcp-out.c: what leaves */
void compare_tcp_learn(CompareEngine *e, CompareFlow *fl, const Frame *f,
                       const Packet *p);
void compare_tcp_primary(CompareEngine *e, CompareFlow *fl, Frame *f, const Packet *p);
void compare_tcp_pass(CompareEngine *e, CompareFlow *fl, Frame *f, const Packet *p);
void compare_tcp_secondary(CompareEngine *e, CompareFlow *fl, Frame *f, const Packet *p);
void compare_tcp_logged(CompareEngine *e, CompareFlow *fl, uint32_t upto);
/** Whether nothing in @p is new to the client as far as is vouched for. */
bool compare_tcp_is_known(CompareEngine *e, CompareFlow *fl, const Packet *p);
/** Release a known frame at once, with ACK and window lowered as needed. */
void compare_tcp_release_known(CompareEngine *e, CompareFlow *fl, Frame *f,
                               const Packet *p);
/** Release a held item at a commit or flush. */
void compare_tcp_release_item(CompareEngine *e, Item *it);
/** compare_tcp_drain(), and the flow's wait begins anew. */
void compare_tcp_settle(CompareEngine *e, CompareFlow *fl);
/** Whether the front of the next frame could leave by itself, and has not. */
bool compare_tcp_has_part(const CompareFlow *fl);
/** Let it leave. */
void compare_tcp_leave_part(CompareEngine *e, CompareFlow *fl);
bool compare_tcp_owes_ack(const CompareFlow *fl);
bool compare_tcp_owes_window(const CompareFlow *fl);
/** Whether the client can hardly send for want of window. */
bool compare_tcp_blocks(const CompareFlow *fl);
/** Remember the SACK blocks that the SVM sent. */
void compare_tcp_sack(CompareFlow *fl, const Frame *f, const Packet *p);
/** Let @f go; @it tells where things are. @whole: all in it is vouched for. */
void compare_tcp_leave(CompareEngine *e, CompareFlow *fl, const Item *it, Frame *f,
                       bool whole);
/** Let out what may leave, and pay what is owed. */
void compare_tcp_drain(CompareEngine *e, CompareFlow *fl);
/** Write down what a TCP item needs later. */
void compare_tcp_fill(const CompareFlow *fl, Item *it, const Packet *p);

/* compare-dgram.c */
void compare_dgram_primary(CompareEngine *e, CompareFlow *fl, Frame *f, const Packet *p);
void compare_dgram_secondary(CompareEngine *e, CompareFlow *fl, Frame *f,
                             const Packet *p);
bool compare_is_query(const FlowKey *k);
void compare_dgram_unlink(CompareEngine *e, Item *it);
void compare_pass_primary(CompareEngine *e, Frame *f, const Packet *p);
void compare_pass_secondary(CompareEngine *e, Frame *f, const Packet *p);
/** Age SVM datagrams, forward lonely solicitations; next time due. */
int64_t compare_dgram_tick(CompareEngine *e, int64_t now);
void compare_pass_clear(CompareEngine *e);

/* stream.c */
typedef enum StreamResult {
    STREAM_NEW,      /* linked in */
    STREAM_KNOWN,    /* all of it was there already, equal */
    STREAM_CONFLICT, /* other bytes are there already */
} StreamResult;

/** Link @it ([seq, seq + len + fin)) into @st; parts that are there already or lie
 * before @from (if @have_from) are cut off. Items that @it covers are unlinked and given
 * to @covered. *@steps grows by the number of items looked at. */
StreamResult stream_insert(Stream *st, Item *it, bool have_from, uint32_t from,
                           void (*covered)(Item *old, void *opaque), void *opaque,
                           uint64_t *steps);
void stream_unlink(Stream *st, Item *it);
/** Cut off everything before @from; emptied items go to @covered. */
void stream_trim(Stream *st, uint32_t from, void (*covered)(Item *old, void *opaque),
                 void *opaque);
/** Drop @n places from the front of @it. */
void stream_consume(Item *it, uint32_t n);

static inline uint32_t stream_size(const Item *it)
{
    return it->len + it->fin;
}

static inline uint32_t stream_end(const Item *it)
{
    return it->seq + it->len + it->fin;
}

/* --- Numbers of TCP --- */

/* Places in sequence space. */
static inline uint32_t tcp_packet_len(const Packet *p)
{
    return p->body_len + !!(p->flags & TCP_FIN) + !!(p->flags & TCP_SYN);
}

static inline unsigned tcp_scale_of(const CompareFlow *fl)
{
    return fl->wscale == 255 ? 0 : fl->wscale;
}

/* The right edge of the window that @p opens. */
static inline uint32_t tcp_edge_of(const CompareFlow *fl, const Packet *p)
{
    return p->ack + ((uint32_t)p->win << (p->flags & TCP_SYN ? 0 : tcp_scale_of(fl)));
}

#endif
