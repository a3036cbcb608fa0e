/*
 * The rewriter engine: what a takeover has to send, and the takeover.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Kept frames are references, in client space, that whoever forwards them shares. A
 * flow's bytes stay until the client acknowledged them; datagrams for 200 ms. Over the
 * bound the oldest go, counted: a takeover then waits for the guest's own retransmission.
 */
#include "rewriter-int.h"
#include "util/trace.h"

#define DGRAM_LIFE (200 * 1000)
#define FRAME_COST 2048       /* what a small frame takes beyond its bytes */
#define UNKNOWN_WINDOW 65536u /* bytes sent at once to a client whose window is unknown  \
                               */
#define TS_MARGIN 250         /* ticks: what the client may have seen but not echoed */

static void charge(RewriterEngine *r, int frames, int64_t bytes)
{
    r->stats.kept_frames += frames;
    r->stats.kept_bytes += bytes;
    r->stats.kept_bytes_max = MAX(r->stats.kept_bytes_max, r->stats.kept_bytes);
}

static Kept *kept_new(RewriterEngine *r, KeptList *l, Frame *f, int64_t now)
{
    Kept *k = r->free_kept;

    if (k) {
        r->free_kept = k->fnext;
        memset(k, 0, sizeof(*k));
    } else {
        k = g_new0(Kept, 1);
    }
    k->f = frame_ref(f);
    k->stamp = now;
    k->prev = l->tail;
    if (l->tail) {
        l->tail->next = k;
    } else {
        l->head = k;
    }
    l->tail = k;
    charge(r, 1, f->len);
    return k;
}

/* @k is out of its flow's list already. */
static void kept_free(RewriterEngine *r, KeptList *l, Kept *k)
{
    if (k->prev) {
        k->prev->next = k->next;
    } else {
        l->head = k->next;
    }
    if (k->next) {
        k->next->prev = k->prev;
    } else {
        l->tail = k->prev;
    }
    charge(r, -1, -(int64_t)k->f->len);
    frame_unref(k->f);
    k->fnext = r->free_kept;
    r->free_kept = k;
}

static void drop_head(RewriterEngine *r, RwFlow *fl)
{
    Kept *k = fl->kept_head;

    fl->kept_head = k->fnext;
    if (!fl->kept_head) {
        fl->kept_tail = NULL;
    }
    kept_free(r, &r->segs, k);
}

static void shrink(RewriterEngine *r)
{
    while (r->stats.kept_bytes + r->stats.kept_frames * FRAME_COST > r->max_bytes) {
        if (r->segs.head) {
            /* Oldest frames first; a flow's own order is its order by age. */
            r->stats.kept_dropped++;
            drop_head(r, r->segs.head->flow);
        } else if (r->dgrams.head) {
            r->stats.kept_dropped++;
            kept_free(r, &r->dgrams, r->dgrams.head);
        } else {
            return; /* the checkpoint's held frames: bounded by the primary */
        }
    }
}

void rw_keep_segment(RewriterEngine *r, RwFlow *fl, Frame *f, uint32_t seq, uint32_t end,
                     int64_t now)
{
    Kept *k;

    if (fl->cl_known && seq_le(end, fl->cl_ack)) {
        return;
    }
    if (fl->kept_head && seq_le(fl->kept_head->seq, seq) &&
        seq_le(end, fl->kept_tail->end)) {
        return; /* a retransmission of what is kept */
    }
    k = kept_new(r, &r->segs, f, now);
    k->flow = fl;
    k->seq = seq;
    k->end = end;
    if (fl->kept_tail) {
        fl->kept_tail->fnext = k;
    } else {
        fl->kept_head = k;
    }
    fl->kept_tail = k;
    shrink(r);
}

void rw_keep_dgram(RewriterEngine *r, Frame *f, int64_t now)
{
    rw_dgrams_expire(r, now);
    kept_new(r, &r->dgrams, f, now);
    shrink(r);
}

void rw_dgrams_expire(RewriterEngine *r, int64_t now)
{
    while (r->dgrams.head && now - r->dgrams.head->stamp > DGRAM_LIFE) {
        kept_free(r, &r->dgrams, r->dgrams.head);
    }
}

void rw_kept_acked(RewriterEngine *r, RwFlow *fl)
{
    while (fl->kept_head && seq_le(fl->kept_head->end, fl->cl_ack)) {
        drop_head(r, fl);
    }
}

void rw_kept_clear_flow(RewriterEngine *r, RwFlow *fl)
{
    while (fl->kept_head) {
        drop_head(r, fl);
    }
}

void rw_kept_clear(RewriterEngine *r)
{
    while (r->segs.head) {
        drop_head(r, r->segs.head->flow);
    }
    while (r->dgrams.head) {
        kept_free(r, &r->dgrams, r->dgrams.head);
    }
    charge(r, -(int)r->held.count, -(int64_t)r->held.bytes);
    frame_queue_clear(&r->held);
}

void rw_keep_held(RewriterEngine *r, FrameQueue *q)
{
    charge(r, q->count, q->bytes);
    frame_queue_concat(&r->held, q);
}

/* --- Takeover --- */

/* RULES 23: the client drops what is stamped older than what it saw. */
static void choose_ts_off(RwFlow *fl)
{
    int32_t behind;

    if (!fl->has_ts) {
        return;
    }
    behind = (int32_t)(fl->ts_floor - (fl->tsval_last + fl->ts_off));
    fl->ts_off += MAX(behind, 0) + TS_MARGIN;
}

static void emit(RewriterEngine *r, Frame *f, RewriterEmitFunc fn, void *opaque)
{
    r->stats.emitted++;
    fn(f, opaque);
}

/* Bring an old frame of @fl to the present: its stamp must not be older than others'. */
static Frame *refresh(const RwFlow *fl, Frame *f)
{
    Packet p;

    packet_parse(f, true, &p);
    if (!fl || p.kind != PACKET_TCP || !p.has_ts || !fl->has_ts || p.has_md5) {
        return f;
    }
    f = frame_writable(f);
    packet_tcp_put32(f, p.l4, p.csum_partial, p.ts_at, fl->tsval_last + fl->ts_off);
    return f;
}

static void emit_kept(RewriterEngine *r, RwFlow *fl, RewriterEmitFunc fn, void *opaque)
{
    uint32_t edge;

    if (!fl->kept_head) {
        return;
    }
    edge = fl->cl_known ? fl->cl_edge : fl->kept_head->seq + UNKNOWN_WINDOW;
    for (Kept *k = fl->kept_head; k && seq_lt(k->seq, edge); k = k->fnext) {
        emit(r, refresh(fl, frame_ref(k->f)), fn, opaque);
    }
}

static void emit_ack(RewriterEngine *r, RwFlow *fl, RewriterEmitFunc fn, void *opaque)
{
    PacketAck a = {
        .l2 = fl->l2,
        .l2_len = fl->l2_len,
        .key = &fl->key,
        .seq = fl->snd_max,
        .ack = fl->g_ack,
        .win = fl->g_win,
        .has_ts = fl->has_ts,
        .tsval = fl->tsval_last + fl->ts_off,
        .tsecr = fl->tsecr,
        .vnet_len = fl->vnet_len,
    };

    if (fl->ack_known && fl->snd_known && !fl->closed && fl->l2_len) {
        emit(r, packet_make_ack(&a), fn, opaque);
    }
}

void rewriter_engine_takeover(RewriterEngine *r, int64_t now, RewriterEmitFunc fn,
                              void *opaque)
{
    Frame *f;

    r->stats.emitted = 0;
    for (int i = 0; i < 2; i++) {
        for (RwFlow *fl = r->age[i].head; fl; fl = fl->next) {
            choose_ts_off(fl);
        }
    }
    while ((f = frame_queue_pop(&r->held))) {
        Packet p;

        charge(r, -1, -(int64_t)f->len);
        packet_parse(f, true, &p);
        emit(r, refresh(rw_flow_find(r, &p.key), f), fn, opaque);
    }
    for (int i = 0; i < 2; i++) {
        RwFlow *next;

        for (RwFlow *fl = r->age[i].head; fl; fl = next) {
            next = fl->next;
            emit_kept(r, fl, fn, opaque);
            emit_ack(r, fl, fn, opaque);
            /* Where the handshake is under way the client's next ACK tells. */
            if (!fl->off && !fl->ts_off && fl->off_known && !fl->log_first) {
                rw_flow_remove(r, fl);
            }
        }
    }
    rw_dgrams_expire(r, now);
    for (Kept *k = r->dgrams.head; k; k = k->next) {
        emit(r, frame_ref(k->f), fn, opaque);
    }
    rw_kept_clear(r);
    r->live = true;
    colo_trace(net_rewriter_takeover, "%" G_GUINT64_FORMAT " frames, %u flows live on",
               r->stats.emitted, r->stats.flows);
}
