/*
 * The engine of filter-rewriter.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal. The SVM chose other initial sequence numbers than the PVM, but the client knows
 * the PVM's alone. Outside of this engine is the client's sequence space, always; inside
 * the guest's. A flow has one number, off = inside - outside: added to ACK and SACK
 * blocks towards the guest, taken from SEQ away from it. Timestamps are shifted in the
 * same way, from the handshake on; a takeover adds what it needs (RULES 23).
 *
 * States of a flow. Embryonic: SYN or the guest's SYN|ACK seen; off unknown, frames pass
 * as they are. Known: off comes from the primary's comparison (rewriter_engine_isn), or
 * from the client's first ACK if that message is missing, or from the checkpoint. That
 * ACK echoes the PVM's clock, so it tells the offset of timestamps as well: a guest drops
 * segments that echo what it never sent, and measures round trips by it. Over: both FINs
 * acknowledged, or RST; kept for TIME_WAIT. Embryonic flows and those that are over make
 * room first.
 *
 * Roll-back. The restored SVM has the PVM's own numbers, so offsets become those that the
 * primary had (0, unless the primary is the survivor of an earlier takeover).
 *
 * Takeover. What the guest sent and the client has not acknowledged is kept, and sent
 * again when this side goes live; see rewriter-keep.c.
 *
 * ICMP errors quote TCP headers: rewriter-icmp.c.
 *
 * Limits. Fragments of TCP segments
 * pass untouched. Signed segments (MD5, AO) are not translated: their flows can have no
 * offset, since the comparison forces a checkpoint for them.
 */
#include "rewriter-int.h"
#include "util/trace.h"

RewriterEngine *rewriter_engine_new(uint64_t max_bytes)
{
    RewriterEngine *r = g_new0(RewriterEngine, 1);

    r->max_bytes = max_bytes ? max_bytes : 64u << 20;
    r->seed = (uint64_t)g_random_int() << 32 | g_random_int();
    r->table = g_new0(RwFlow *, REWRITER_TABLE);
    return r;
}

void rewriter_engine_free(RewriterEngine *r)
{
    if (!r) {
        return;
    }
    rw_kept_clear(r);
    rw_flows_clear(r);
    rw_log_free(r);
    while (r->free_kept) {
        Kept *k = r->free_kept;
        r->free_kept = k->fnext;
        g_free(k);
    }
    g_free(r->table);
    g_free(r);
}

void rewriter_engine_isn(RewriterEngine *r, const FlowKey *flow, uint32_t pvm_isn,
                         uint32_t svm_isn, int64_t now)
{
    RwFlow *fl = rw_flow_find(r, flow);

    if (r->live) {
        return;
    }
    if (!fl) {
        fl = rw_flow_add(r, flow, now);
    }
    fl->off = svm_isn - pvm_isn;
    fl->off_known = true;
    fl->svm_isn = svm_isn;
    fl->syn_seen = true;
    fl->snd_known = true;
    fl->snd_max = pvm_isn + 1;
    rw_flow_use(r, fl, false, now);
    r->stats.learnt_isn++;
    colo_trace(net_rewriter_isn, "offset %u", fl->off);
}

static void check_over(RwFlow *fl)
{
    if (fl->cl_fin && fl->g_fin && fl->cl_known && fl->ack_known &&
        seq_le(fl->g_fin_end, fl->cl_ack) && seq_le(fl->cl_fin_end, fl->g_ack)) {
        fl->closed = true;
    }
}

/* --- To the guest --- */

/* Whether the guest would look at the client's RST: anybody can send one that lies outside
 * its window, and the log must outlive that. */
static bool rst_counts(const RwFlow *fl, const Packet *p)
{
    return !fl->ack_known || (seq_le(fl->g_ack, p->seq) && seq_le(p->seq, fl->g_edge));
}

static void learn_client(RewriterEngine *r, RwFlow *fl, const Frame *f, const Packet *p,
                         int64_t now)
{
    uint32_t end = p->seq + p->body_len + !!(p->flags & TCP_FIN) + !!(p->flags & TCP_SYN);
    unsigned shift = fl->cl_wscale == 255 || (p->flags & TCP_SYN) ? 0 : fl->cl_wscale;
    uint32_t edge = p->ack + ((uint32_t)p->win << shift);

    if (p->flags & TCP_SYN) {
        fl->cl_wscale = p->has_wscale ? p->wscale : 0;
    }
    if (p->flags & TCP_FIN) {
        fl->cl_fin = true;
        fl->cl_fin_end = p->seq + p->body_len + 1;
    }
    if ((p->flags & TCP_RST) && rst_counts(fl, p)) {
        fl->closed = true;
        rw_log_clear_flow(r, fl);
    }
    if (p->has_ts) {
        fl->tsecr = p->tsval;
    }
    if (!(p->flags & TCP_ACK) || (p->flags & TCP_RST)) {
        return;
    }
    fl->cl_snd = fl->cl_snd_known ? seq_max(fl->cl_snd, end) : end;
    fl->cl_snd_known = true;
    fl->cl_l2_len = MIN(p->l3, sizeof(fl->cl_l2));
    memcpy(fl->cl_l2, f->data, fl->cl_l2_len);
    if (!fl->cl_known || !seq_lt(p->ack, fl->cl_ack)) {
        fl->cl_win = p->win;
    }
    if (!fl->cl_known) {
        fl->cl_known = true;
        fl->cl_ack = p->ack;
        fl->cl_ack_at = now;
        fl->cl_edge = edge;
    } else {
        fl->cl_ack_at = seq_lt(fl->cl_ack, p->ack) ? now : fl->cl_ack_at;
        fl->cl_ack = seq_max(fl->cl_ack, p->ack);
        fl->cl_edge = seq_max(fl->cl_edge, edge);
    }
    if (p->has_ts && fl->has_ts) {
        fl->ts_floor = seq_max(fl->ts_floor, p->tsecr);
    }
    rw_kept_acked(r, fl);
}

/* The client's first ACK names both: the number that it got, and the clock's. */
static void learn_offsets(RewriterEngine *r, RwFlow *fl, const Packet *p)
{
    if (!fl->syn_seen || !(p->flags & TCP_ACK) || (p->flags & (TCP_SYN | TCP_RST))) {
        return;
    }
    if (!fl->off_known) {
        fl->off = fl->svm_isn + 1 - p->ack;
        fl->off_known = true;
        fl->snd_known = true;
        fl->snd_max = p->ack;
        r->stats.learnt_ack++;
    }
    if (!fl->ts_known && fl->has_ts && p->has_ts) {
        fl->ts_off = p->tsecr - fl->tsval_last;
        fl->ts_floor = p->tsecr;
        fl->ts_known = true;
    }
}

static Frame *translate_in(RwFlow *fl, Frame *f, const Packet *p, bool *changed)
{
    if (fl->off && (p->flags & TCP_ACK)) {
        f = frame_writable(f);
        *changed = true;
        packet_tcp_put32(f, p->l4, p->csum_partial, p->l4 + 8, p->ack + fl->off);
        for (unsigned i = 0; i < 2u * p->n_sack; i++) {
            uint32_t at = p->sack_at + 4 * i;
            packet_tcp_put32(f, p->l4, p->csum_partial, at,
                             get_be32(f->data + at) + fl->off);
        }
    }
    if (p->has_ts && fl->has_ts && (p->flags & TCP_ACK)) {
        uint32_t echo = p->tsecr - fl->ts_off;

        if (seq_lt(fl->tsval_last, echo)) {
            echo = fl->tsval_last; /* the PVM's clock was ahead of this guest's */
        } else if (!fl->talked && seq_lt(echo, fl->ts_first)) {
            echo = fl->ts_first; /* else it would never leave the handshake */
        }
        if (echo != p->tsecr) {
            f = frame_writable(f);
            *changed = true;
            packet_tcp_put32(f, p->l4, p->csum_partial, p->ts_at + 4u, echo);
        }
    }
    return f;
}

Frame *rewriter_engine_to_guest(RewriterEngine *r, Frame *f, int64_t now)
{
    bool changed = false;
    RwFlow *fl;
    Packet p;

    if (r->live && !r->stats.flows) {
        return f;
    }
    packet_parse(f, false, &p);
    if (p.kind == PACKET_ICMP) {
        return rw_icmp(r, f, &p, true);
    }
    if (p.kind != PACKET_TCP) {
        return f;
    }
    r->stats.to_guest++;
    fl = rw_flow_find(r, &p.key);
    if (!fl) {
        if (r->live) {
            return f;
        }
        fl = rw_flow_add(r, &p.key, now);
    }
    learn_offsets(r, fl, &p);
    if ((p.flags & TCP_SYN) && fl->closed && !(p.flags & TCP_ACK)) {
        fl->cl_known = fl->cl_fin = fl->cl_snd_known = false;
    }
    learn_client(r, fl, f, &p, now);
    check_over(fl);
    rw_flow_use(r, fl, fl->closed || !fl->off_known, now);
    if (!p.has_md5) {
        f = translate_in(fl, f, &p, &changed);
    }
    r->stats.rewritten += changed;
    rw_log_client(r, fl, f, &p, now);
    return f;
}

/* --- From the guest --- */

static bool repeats_synack(const RwFlow *fl, const Packet *p)
{
    return fl->syn_seen ? fl->svm_isn == p->seq
                        : fl->snd_known && fl->snd_max == p->seq - fl->off + 1;
}

/* The guest answers a SYN: unless it repeats itself, a connection begins. */
static void guest_synack(RewriterEngine *r, RwFlow *fl, const Packet *p)
{
    if (repeats_synack(fl, p)) {
        return;
    }
    rw_kept_clear_flow(r, fl);
    rw_log_clear_flow(r, fl);
    fl->syn_seen = true;
    fl->svm_isn = p->seq;
    fl->off_known = fl->snd_known = fl->ack_known = false;
    fl->cl_known = fl->cl_fin = fl->g_fin = fl->closed = false;
    fl->off = fl->ts_off = 0;
    fl->has_ts = fl->ts_known = fl->talked = false;
    fl->cl_snd_known = false;
}

/* The guest's ACK and the window behind it. */
static void learn_ack(RewriterEngine *r, RwFlow *fl, const Packet *p, int64_t now)
{
    unsigned shift = fl->wscale == 255 || (p->flags & TCP_SYN) ? 0 : fl->wscale;
    uint32_t edge = p->ack + ((uint32_t)p->win << shift);
    bool moved = !fl->ack_known || seq_lt(fl->g_ack, p->ack);

    fl->g_edge = fl->ack_known ? seq_max(fl->g_edge, edge) : edge;
    if (!fl->ack_known || !seq_lt(p->ack, fl->g_ack)) {
        fl->g_ack = p->ack;
        rw_log_acked(r, fl, p, moved, now);
        fl->g_win = p->win;
    }
    fl->ack_known = true;
}

static void learn_guest(RewriterEngine *r, RwFlow *fl, const Frame *f, const Packet *p,
                        uint32_t seq, int64_t now)
{
    uint32_t end = seq + p->body_len + !!(p->flags & TCP_FIN) + !!(p->flags & TCP_SYN);

    fl->l2_len = MIN(p->l3, sizeof(fl->l2));
    memcpy(fl->l2, f->data, fl->l2_len);
    fl->vnet_len = f->vnet_len;
    if (p->flags & TCP_RST) {
        fl->closed = true;
        rw_log_clear_flow(r, fl);
        return;
    }
    if (p->flags & TCP_SYN) {
        fl->wscale = p->has_wscale ? p->wscale : 0;
    } else {
        fl->talked = true;
    }
    if (p->flags & TCP_FIN) {
        fl->g_fin = true;
        fl->g_fin_end = end;
    }
    fl->snd_max = fl->snd_known ? seq_max(fl->snd_max, end) : end;
    fl->snd_known = fl->off_known;
    if (p->flags & TCP_ACK) {
        learn_ack(r, fl, p, now);
    }
    if (p->has_ts) {
        if (!fl->has_ts) {
            fl->has_ts = true;
            fl->ts_floor = p->tsval + fl->ts_off;
            fl->ts_first = p->tsval;
        } else if (seq_lt(p->tsval, fl->tsval_last)) {
            return;
        }
        fl->tsval_last = p->tsval;
    }
}

static Frame *tcp_from_guest(RewriterEngine *r, Frame *f, const Packet *p, int64_t now)
{
    RwFlow *fl = rw_flow_find(r, &p->key);
    bool bare_rst = (p->flags & TCP_RST) && (p->flags & TCP_ACK) && p->seq == 0;
    bool changed = false;
    uint32_t seq, len;

    if (!fl) {
        if (r->live) {
            return f;
        }
        fl = rw_flow_add(r, &p->key, now);
    }
    if ((p->flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK)) {
        if (r->live && !repeats_synack(fl, p)) {
            rw_flow_remove(r,
                           fl); /* the ports serve a new connection: it needs nothing */
            return f;
        }
        guest_synack(r, fl, p);
    } else if (p->flags & TCP_SYN) {
        /* The guest connects: what it and the primary's send is the same or nothing. */
        fl->off_known = true;
    } else if (!fl->off_known && !fl->syn_seen) {
        fl->off_known = true; /* older than our knowledge: as the checkpoint has it */
    }
    seq = p->seq - fl->off;
    learn_guest(r, fl, f, p, seq, now);
    check_over(fl);
    rw_flow_use(r, fl, fl->closed || !fl->off_known, now);
    if (p->has_md5) {
        return f;
    }
    if (fl->off && !bare_rst) {
        f = frame_writable(f);
        changed = true;
        packet_tcp_put32(f, p->l4, p->csum_partial, p->l4 + 4, seq);
    }
    if (fl->ts_off && p->has_ts) {
        f = frame_writable(f);
        changed = true;
        packet_tcp_put32(f, p->l4, p->csum_partial, p->ts_at, p->tsval + fl->ts_off);
    }
    r->stats.rewritten += changed;
    len = p->body_len + !!(p->flags & TCP_FIN);
    if (fl->off_known) {
        rw_answer(r, fl, p, seq, seq + len, now);
    }
    if ((p->flags & TCP_RST) && !bare_rst) {
        len = 1; /* nothing acknowledges it: it is kept as long as the flow */
    }
    if (len && !r->live && fl->off_known && !(p->flags & TCP_SYN)) {
        rw_keep_segment(r, fl, f, seq, seq + len, now);
    }
    return f;
}

Frame *rewriter_engine_from_guest(RewriterEngine *r, Frame *f, int64_t now)
{
    Packet p;

    if (r->live && !r->stats.flows) {
        return f;
    }
    packet_parse(f, true, &p);
    if (p.kind == PACKET_TCP) {
        r->stats.from_guest++;
        return tcp_from_guest(r, f, &p, now);
    }
    if (p.kind == PACKET_ICMP) {
        f = rw_icmp(r, f, &p, false);
    }
    if (!r->live && (p.kind == PACKET_UDP || p.kind == PACKET_ICMP)) {
        rw_keep_dgram(r, f, now);
    }
    return f;
}

bool rewriter_engine_busy(RewriterEngine *r)
{
    return !r->live || r->stats.flows > 0;
}

void rewriter_engine_stats(RewriterEngine *r, RewriterStats *out)
{
    *out = r->stats;
    out->flows_with_offset = 0;
    for (int i = 0; i < 2; i++) {
        for (RwFlow *fl = r->age[i].head; fl; fl = fl->next) {
            out->flows_with_offset += fl->off || fl->ts_off;
        }
    }
}
