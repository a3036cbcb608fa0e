/*
 * The comparison engine: TCP.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Here: what both sides send. How it leaves: compare-tcp-out.c.
 *
 * The PVM's frames with bytes or FIN wait in @fifo until their last byte is vouched for;
 * frames with an ACK alone wait in @acks until the SVM has acknowledged as much. Bytes do
 * not wait for ACKs: they leave with ACK and right edge lowered to what both sides said,
 * and what was held back of the ACK is owed: it is made up for by a pure ACK as soon as
 * the SVM has got there, which goes out only if it tells the client something new.
 *
 * Limits: a RST leaves as it is (its numbers decide whether it is believed); urgent data
 * waits for a checkpoint; signed segments (MD5, AO) are not rewritten, they wait until
 * nothing in them needs to be lowered.
 */
#include "compare-int.h"

#define LOG_AHEAD (64u << 10)

void compare_tcp_fill(const CompareFlow *fl, Item *it, const Packet *p)
{
    it->seq = p->seq + !!(p->flags & TCP_SYN);
    it->len = p->body_len;
    it->at = p->body;
    it->fin = p->flags & TCP_FIN;
    it->end = p->seq + tcp_packet_len(p);
    it->body = p->body;
    it->body_len = p->body_len;
    it->tcp_flags = p->flags;
    it->ack = p->ack;
    it->win = p->win;
    it->edge = tcp_edge_of(fl, p);
    it->tsval = p->tsval;
    it->ts_at = p->has_ts ? p->ts_at : 0;
    it->l4 = p->l4;
    it->sack_at = p->sack_at;
    it->n_sack = p->n_sack;
    it->partial = p->csum_partial;
    it->norewrite = p->has_md5;
    it->must_send = p->n_sack > 0;
}

static void drop_item(Item *it, void *opaque)
{
    compare_item_drop(opaque, it);
}

static void leave_item(Item *it, void *opaque)
{
    /* The primary's frame stays in its FIFO: another one gives its bytes now. */
}

static void clear_secondary(CompareEngine *e, CompareFlow *fl)
{
    while (fl->s.head) {
        compare_item_drop(e, fl->s.head);
    }
}

/* A connection begins; what is known of an earlier one on the same ports goes. */
static void begin_connection(CompareEngine *e, CompareFlow *fl)
{
    clear_secondary(e, fl);
    while (fl->p.head) {
        stream_unlink(&fl->p, fl->p.head);
    }
    fl->p_known = fl->s_known = fl->v_known = fl->rel_known = false;
    fl->has_ts = fl->norewrite = fl->told_isn = fl->synack_out = fl->part_known = false;
    fl->wscale = 255;
    fl->closed = 0;
    fl->p_fin = false;
    fl->s_rst = 0;
    fl->s_log_known = false;
    fl->n_sack = 0;
    fl->rel_tsval = fl->p_tsval = 0;
}

static void set_handshake(Handshake *h, const Packet *p)
{
    *h = (Handshake){
        .valid = true,
        .flags = p->flags & (TCP_SYN | TCP_ACK | TCP_ECE | TCP_CWR | TCP_FIN),
        .has_mss = p->has_mss,
        .has_wscale = p->has_wscale,
        .sack_ok = p->sack_ok,
        .has_ts = p->has_ts,
        .has_md5 = p->has_md5,
        .has_tfo = p->has_tfo,
        .wscale = p->wscale,
        .mss = p->mss,
        .win = p->win,
        .isn = p->seq,
        .ack = p->ack,
    };
}

static bool handshakes_agree(const Handshake *a, const Handshake *b)
{
    /* A signature covers the ISN, and a fast-open cookie is a secret of one machine. */
    return a->flags == b->flags && a->has_mss == b->has_mss && a->mss == b->mss &&
           a->has_wscale == b->has_wscale && a->wscale == b->wscale &&
           a->sack_ok == b->sack_ok && a->has_ts == b->has_ts && !a->has_md5 &&
           !b->has_md5 && !a->has_tfo && !b->has_tfo;
}

/* Note what the PVM has sent. */
void compare_tcp_learn(CompareEngine *e, CompareFlow *fl, const Frame *f, const Packet *p)
{
    uint32_t end = p->seq + tcp_packet_len(p), edge;

    fl->l2_len = MIN(p->l3, sizeof(fl->l2));
    memcpy(fl->l2, f->data, fl->l2_len);
    fl->vnet_len = f->vnet_len;
    if (p->flags & TCP_RST) {
        fl->closed = 2;
        return;
    }
    if ((p->flags & TCP_SYN) && !(fl->p_syn.valid && fl->p_known &&
                                  fl->p_syn.isn == p->seq && fl->p_syn.ack == p->ack)) {
        begin_connection(e, fl);
        set_handshake(&fl->p_syn, p);
    }
    if (p->flags & TCP_SYN) {
        fl->wscale = p->has_wscale ? p->wscale : 0;
    }
    fl->norewrite |= p->has_md5;
    if (p->flags & TCP_FIN) {
        fl->closed = MAX(fl->closed, 1);
        fl->p_fin = true;
    }
    edge = tcp_edge_of(fl, p);
    if (!fl->p_known) {
        fl->p_known = true;
        fl->p_snd_max = end;
        fl->p_ack = p->ack;
        fl->p_edge = edge;
        fl->p_win = p->win;
        fl->p_tsval = p->tsval;
    }
    fl->p_snd_max = seq_max(fl->p_snd_max, end);
    if (p->flags & TCP_ACK) {
        if (!seq_lt(p->ack, fl->p_ack)) {
            fl->p_win = p->win;
        }
        fl->p_ack = seq_max(fl->p_ack, p->ack);
        fl->p_edge = seq_max(fl->p_edge, edge);
    }
    if (p->has_ts) {
        fl->p_tsval = fl->has_ts ? seq_max(fl->p_tsval, p->tsval) : p->tsval;
        fl->p_tsecr = p->tsecr;
        fl->has_ts = true;
    }
}

/* Move @vouched as far as both sides agree. True if it moved. */
static bool advance(CompareEngine *e, CompareFlow *fl)
{
    uint32_t start = fl->vouched;
    Item *a, *b;

    while (!fl->broken && fl->v_known && (a = fl->p.head) && (b = fl->s.head) &&
           a->seq == fl->vouched && b->seq == fl->vouched) {
        uint32_t n = MIN(a->len, b->len);

        if (n == 0) {
            if (a->len != b->len) { /* one has its FIN where the other has bytes */
                compare_force(e, fl, COMPARE_CAUSE_FIN, fl->vouched - fl->epoch_start);
                break;
            }
            n = 1;
        } else if (memcmp(a->f->data + a->at, b->f->data + b->at, n) != 0) {
            const uint8_t *x = a->f->data + a->at, *y = b->f->data + b->at;

            for (n = 0; x[n] == y[n];) {
                n++;
            }
            for (int i = 0; i < 2; i++) {
                if (!packet_tcp_sum_ok(i ? b->f : a->f)) {
                    compare_malformed(e, i ? b->f : a->f, i == 0, "wrong TCP checksum");
                }
            }
            fl->vouched += n;
            stream_consume(a, n);
            stream_consume(b, n);
            compare_force(e, fl, COMPARE_CAUSE_PAYLOAD, fl->vouched - fl->epoch_start);
            break;
        }
        fl->vouched += n;
        stream_consume(a, n);
        stream_consume(b, n);
        if (stream_size(a) == 0) {
            stream_unlink(&fl->p, a);
        }
        if (stream_size(b) == 0) {
            compare_item_drop(e, b);
        }
    }
    return fl->vouched != start;
}

/* --- Handshakes --- */

static void tell_isn(CompareEngine *e, CompareFlow *fl)
{
    fl->told_isn = true;
    e->ops.isn(&fl->key, fl->p_syn.isn, fl->s_syn.isn, e->opaque);
}

static void match_handshake(CompareEngine *e, CompareFlow *fl)
{
    if (!fl->p_syn.valid || !fl->s_syn.valid || fl->synack_out || fl->broken ||
        fl->p_syn.ack != fl->s_syn.ack) {
        return;
    }
    if (!handshakes_agree(&fl->p_syn, &fl->s_syn)) {
        compare_force(e, fl, COMPARE_CAUSE_HANDSHAKE, 0);
        return;
    }
    if (e->p_epoch > e->c_epoch) {
        /* The rewriter would hear of the ISN after its roll-back to a checkpoint in
         * which this connection has no offset: the commit lets the SYN|ACK go. */
        return;
    }
    tell_isn(e, fl);
    clear_secondary(e, fl);
    fl->synack_out = true;
    fl->v_known = true;
    fl->vouched = fl->p_syn.isn + 1;
    fl->epoch_start = fl->vouched;
    fl->s_known = true;
    fl->s_ack = fl->s_own = fl->s_syn.ack;
    fl->s_edge = fl->s_syn.ack + fl->s_syn.win;
    fl->s_win = fl->s_syn.win;
    fl->s_syn.valid = false;
}

static void primary_syn(CompareEngine *e, CompareFlow *fl, Frame *f, const Packet *p)
{
    bool again = fl->p_known && fl->p_syn.valid && fl->p_syn.isn == p->seq &&
                 fl->p_syn.ack == p->ack;
    bool busy = fl->n_held > 0 && !again;
    Item *it;

    compare_tcp_learn(e, fl, f, p);
    if (busy || p->body_len || (p->flags & TCP_FIN)) {
        fl->broken = true;
        compare_hold_forced(e, fl, f, p,
                            busy ? COMPARE_CAUSE_REUSE : COMPARE_CAUSE_HANDSHAKE);
        return;
    }
    if (!(p->flags & TCP_ACK)) {
        compare_hold_forced(e, fl, f, p, COMPARE_CAUSE_NO_TWIN);
        return;
    }
    it = compare_item_new(e, fl, f, true);
    it->kind = ITEM_SYNACK;
    compare_tcp_fill(fl, it, p);
    compare_fifo_push(&fl->fifo, it);
    match_handshake(e, fl);
    compare_tcp_drain(e, fl);
    compare_flow_wait(e, fl, false);
}

static void secondary_synack(CompareEngine *e, CompareFlow *fl, const Packet *p)
{
    if (fl->synack_out && fl->p_syn.valid && p->ack == fl->p_syn.ack) {
        /* Again, or late: the PVM's left unprotected before this one came. */
        if (!fl->told_isn && p->seq != fl->p_syn.isn && e->p_epoch <= e->c_epoch) {
            fl->s_syn.isn = p->seq;
            tell_isn(e, fl);
        }
        return;
    }
    set_handshake(&fl->s_syn, p);
    match_handshake(e, fl);
    compare_tcp_drain(e, fl);
    compare_flow_wait(e, fl, true);
}

/* --- Input --- */

static void primary_ack(CompareEngine *e, CompareFlow *fl, Frame *f, const Packet *p,
                        bool repeats)
{
    Item *it = compare_item_new(e, fl, f, true);

    it->kind = ITEM_ACK;
    compare_tcp_fill(fl, it, p);
    it->must_send |= repeats;
    compare_fifo_push(&fl->acks, it);
}

static void primary_data(CompareEngine *e, CompareFlow *fl, Frame *f, const Packet *p)
{
    uint32_t end = p->seq + tcp_packet_len(p);
    Item *it;

    if (fl->v_known && fl->s_known && seq_le(end, fl->vouched) && !p->has_md5) {
        compare_tcp_release_known(e, fl, f, p);
        return;
    }
    it = compare_item_new(e, fl, f, true);
    it->kind = ITEM_DATA;
    compare_tcp_fill(fl, it, p);
    compare_fifo_push(&fl->fifo, it);
    if (stream_insert(&fl->p, it, fl->v_known, fl->vouched, leave_item, e,
                      &e->stats.steps) == STREAM_CONFLICT) {
        compare_force(e, fl, COMPARE_CAUSE_RETRANS, p->seq - fl->epoch_start);
    }
}

void compare_tcp_primary(CompareEngine *e, CompareFlow *fl, Frame *f, const Packet *p)
{
    bool repeats, moved;
    Item *it;

    if (compare_tcp_is_known(e, fl, p)) {
        compare_tcp_learn(e, fl, f, p);
        compare_tcp_release_known(e, fl, f, p);
        return;
    }
    if (p->flags & TCP_RST) {
        compare_tcp_learn(e, fl, f, p);
        it = compare_item_new(e, fl, f, true);
        it->kind = ITEM_RST;
        compare_tcp_fill(fl, it, p);
        compare_fifo_push(&fl->fifo, it);
        compare_tcp_drain(e, fl);
        compare_flow_wait(e, fl, false);
        return;
    }
    if (p->flags & TCP_SYN) {
        primary_syn(e, fl, f, p);
        return;
    }
    repeats = fl->p_known && p->ack == fl->p_ack && tcp_edge_of(fl, p) == fl->p_edge;
    compare_tcp_learn(e, fl, f, p);
    if (!fl->v_known && !fl->p_syn.valid) {
        /* A connection older than our knowledge: it begins here. */
        fl->v_known = true;
        fl->vouched = fl->epoch_start = p->seq;
        stream_trim(&fl->s, fl->vouched, drop_item, e);
    }
    if ((p->flags & TCP_URG) || !(p->flags & TCP_ACK)) {
        compare_hold_forced(e, fl, f, p, COMPARE_CAUSE_URGENT);
        return;
    }
    if (tcp_packet_len(p) == 0) {
        primary_ack(e, fl, f, p, repeats);
    } else {
        primary_data(e, fl, f, p);
    }
    moved = advance(e, fl);
    compare_tcp_drain(e, fl);
    compare_flow_wait(e, fl, moved);
    compare_backlog(e, fl);
}

void compare_tcp_pass(CompareEngine *e, CompareFlow *fl, Frame *f, const Packet *p)
{
    bool syn = p->flags & TCP_SYN;
    Item view = {0};

    compare_tcp_learn(e, fl, f, p);
    if (!(p->flags & TCP_RST)) {
        fl->v_known = fl->s_known = true;
        fl->vouched = fl->epoch_start = fl->p_snd_max;
        fl->s_ack = fl->s_own = fl->p_ack;
        fl->s_edge = fl->p_edge;
        fl->s_win = fl->p_win;
    }
    if (syn && (p->flags & TCP_ACK) && !fl->synack_out) {
        fl->synack_out = true;
        if (fl->s_syn.valid && fl->s_syn.ack == p->ack && e->p_epoch <= e->c_epoch) {
            tell_isn(e, fl);
            fl->s_syn.valid = false;
        }
    }
    compare_tcp_fill(fl, &view, p);
    compare_tcp_leave(e, fl, &view, f, true);
}

/* RULES 21: what lies in the secondary's log counts as acknowledged, within the SVM's
 * window: it will get it. Only so far ahead of the SVM's own ACK as its delay explains, so
 * that the client is still paced by both: a queue before the SVM would delay its output. */
static void use_log(CompareEngine *e, CompareFlow *fl)
{
    uint32_t to = seq_min(seq_min(fl->s_log, fl->s_edge), fl->s_own + LOG_AHEAD);

    if (fl->s_log_known && seq_le(fl->s_log, fl->s_own)) {
        fl->s_log_known = false; /* overtaken: 2 GiB later it would seem to be ahead */
    }
    if (fl->s_log_known && seq_lt(fl->s_ack, to)) {
        fl->s_ack = to;
        e->stats.logged++;
    }
}

void compare_tcp_logged(CompareEngine *e, CompareFlow *fl, uint32_t upto)
{
    if (!fl->s_known || fl->s_rst || fl->wscale == 255) {
        return;
    }
    fl->s_log = fl->s_log_known ? seq_max(fl->s_log, upto) : upto;
    fl->s_log_known = true;
    use_log(e, fl);
    compare_tcp_drain(e, fl);
    compare_flow_wait(e, fl, false);
}

void compare_tcp_secondary(CompareEngine *e, CompareFlow *fl, Frame *f, const Packet *p)
{
    bool progress = false;
    uint32_t edge;
    Item *it;

    if (p->flags & TCP_SYN) {
        if (p->flags & TCP_ACK) {
            secondary_synack(e, fl, p);
        } else {
            e->stats.svm_dropped++; /* the guest opened it: no twin */
        }
        frame_unref(f);
        return;
    }
    if (e->mode != COMPARE_MODE_COMPARE) {
        frame_unref(f);
        return;
    }
    if (p->flags & TCP_RST) {
        fl->s_rst = MIN(fl->s_rst + 1, 16);
        fl->s_log_known = false; /* nobody will take those bytes */
        frame_unref(f);
        compare_tcp_drain(e, fl);
        compare_flow_wait(e, fl, true);
        return;
    }
    if (p->flags & TCP_ACK) {
        edge = tcp_edge_of(fl, p);
        if (!fl->s_known) {
            fl->s_known = progress = true;
            fl->s_ack = fl->s_own = p->ack;
            fl->s_edge = edge;
            fl->s_win = p->win;
        }
        fl->s_own = seq_max(fl->s_own, p->ack);
        if (seq_le(fl->s_ack, p->ack)) {
            progress |= fl->s_ack != p->ack;
            fl->s_ack = p->ack;
            fl->s_win = p->win;
        }
        progress |= seq_lt(fl->s_edge, edge);
        fl->s_edge = seq_max(fl->s_edge, edge);
        use_log(e, fl);
        if (p->n_sack) {
            compare_tcp_sack(fl, f, p);
        }
    }
    if (tcp_packet_len(p) && !(fl->v_known && seq_le(p->seq + tcp_packet_len(p), fl->vouched))) {
        it = compare_item_new(e, fl, f, false);
        compare_tcp_fill(fl, it, p);
        switch (stream_insert(&fl->s, it, fl->v_known, fl->vouched, drop_item, e,
                              &e->stats.steps)) {
        case STREAM_NEW:
            progress = true;
            break;
        case STREAM_CONFLICT:
            compare_force(e, fl, COMPARE_CAUSE_RETRANS, p->seq - fl->epoch_start);
            compare_item_drop(e, it);
            break;
        default:
            compare_item_drop(e, it);
            break;
        }
        progress |= advance(e, fl);
    } else {
        frame_unref(f);
    }
    compare_tcp_drain(e, fl);
    compare_flow_wait(e, fl, progress);
}
