/*
 * The comparison engine: TCP.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
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

#define MSS_TYPICAL 1460u

/* --- Numbers --- */

static uint32_t packet_len(const Packet *p)
{
    return p->body_len + !!(p->flags & TCP_FIN) + !!(p->flags & TCP_SYN);
}

static unsigned scale_of(const CompareFlow *fl)
{
    return fl->wscale == 255 ? 0 : fl->wscale;
}

static uint32_t edge_of(const CompareFlow *fl, const Packet *p)
{
    return p->ack + ((uint32_t)p->win << (p->flags & TCP_SYN ? 0 : scale_of(fl)));
}

void compare_tcp_fill(const CompareFlow *fl, Item *it, const Packet *p)
{
    it->seq = p->seq + !!(p->flags & TCP_SYN);
    it->len = p->body_len;
    it->at = p->body;
    it->fin = p->flags & TCP_FIN;
    it->end = p->seq + packet_len(p);
    it->body = p->body;
    it->body_len = p->body_len;
    it->tcp_flags = p->flags;
    it->ack = p->ack;
    it->win = p->win;
    it->edge = edge_of(fl, p);
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
    fl->has_ts = fl->norewrite = fl->told_isn = fl->synack_out = false;
    fl->wscale = 255;
    fl->closed = 0;
    fl->s_rst = 0;
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
    uint32_t end = p->seq + packet_len(p), edge;

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
    }
    edge = edge_of(fl, p);
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

/* --- SACK --- */

static void sack_remember(CompareFlow *fl, const Frame *f, const Packet *p)
{
    unsigned n = 0;

    for (unsigned i = 0; i < fl->n_sack; i++) {
        if (seq_lt(fl->s_ack, fl->sack[i].right)) {
            fl->sack[n++] = fl->sack[i];
        }
    }
    fl->n_sack = n;
    for (unsigned i = 0; i < p->n_sack; i++) {
        SackRange r = {get_be32(f->data + p->sack_at + 8 * i),
                       get_be32(f->data + p->sack_at + 8 * i + 4)};

        if (!seq_lt(r.left, r.right) || seq_le(r.right, fl->s_ack)) {
            continue;
        }
        for (unsigned j = 0; j < fl->n_sack;) {
            SackRange *o = &fl->sack[j];
            if (seq_le(o->left, r.right) && seq_le(r.left, o->right)) {
                r.left = seq_min(r.left, o->left);
                r.right = seq_max(r.right, o->right);
                *o = fl->sack[--fl->n_sack];
            } else {
                j++;
            }
        }
        if (fl->n_sack == SACK_RANGES) {
            memmove(fl->sack, fl->sack + 1, sizeof(fl->sack[0]) * (SACK_RANGES - 1));
            fl->n_sack--;
        }
        fl->sack[fl->n_sack++] = r;
    }
}

static bool sack_block_covered(const CompareFlow *fl, const uint8_t *block)
{
    uint32_t left = get_be32(block), right = get_be32(block + 4);

    if (seq_le(right, fl->s_ack)) {
        return true;
    }
    for (unsigned i = 0; i < fl->n_sack; i++) {
        if (seq_le(fl->sack[i].left, left) && seq_le(right, fl->sack[i].right)) {
            return true;
        }
    }
    return false;
}

static bool sack_covered(const CompareFlow *fl, const Frame *f, uint32_t at, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (!sack_block_covered(fl, f->data + at + 8 * i)) {
            return false;
        }
    }
    return true;
}

/* --- Leaving --- */

/* Replace the SACK option by NOPs if a block of it is not vouched for. */
static Frame *strip_sack(const CompareFlow *fl, const Item *it, Frame *f)
{
    uint8_t nops[2 + 8 * PACKET_SACK_MAX];

    if (sack_covered(fl, f, it->sack_at, it->n_sack)) {
        return f;
    }
    f = frame_writable(f);
    memset(nops, 1, sizeof(nops));
    packet_tcp_put(f, it->l4, it->partial, it->sack_at - 2u, nops, 2 + 8u * it->n_sack);
    return f;
}

static uint16_t window_for(const CompareFlow *fl, uint32_t ack, uint32_t edge,
                           uint16_t win)
{
    if (fl->wscale == 255) {
        return MIN(win, fl->s_win); /* scale unknown, but the same on both sides */
    }
    edge = seq_min(edge, fl->s_edge);
    return seq_lt(ack, edge) ? MIN((edge - ack) >> fl->wscale, 65535u) : 0;
}

static void note_released(CompareFlow *fl, uint32_t ack, uint32_t edge, uint32_t tsval,
                          bool has_ts)
{
    fl->rel_ack = fl->rel_known ? seq_max(fl->rel_ack, ack) : ack;
    fl->rel_edge = fl->rel_known ? seq_max(fl->rel_edge, edge) : edge;
    if (has_ts) {
        fl->rel_tsval =
            fl->rel_known && fl->rel_tsval ? seq_max(fl->rel_tsval, tsval) : tsval;
    }
    fl->rel_known = true;
}

/* Let @f go; @it tells where things are. @whole: all in it is vouched for. */
static void leave(CompareEngine *e, CompareFlow *fl, const Item *it, Frame *f, bool whole)
{
    uint32_t ack = it->ack, edge = it->edge;
    uint16_t win = it->win;

    if (it->tcp_flags & TCP_RST) {
        compare_release(e, f);
        return;
    }
    if (it->tcp_flags & TCP_SYN) {
        fl->rel_known = false;
        if (it->tcp_flags & TCP_ACK) {
            note_released(fl, ack, edge, it->tsval, it->ts_at);
        }
        compare_release(e, f);
        return;
    }
    if (!whole && fl->s_known && !it->norewrite) {
        ack = seq_min(ack, fl->s_ack);
        win = window_for(fl, ack, edge, win);
        edge = ack + ((uint32_t)win << scale_of(fl));
        if (ack != it->ack || win != it->win) {
            f = frame_writable(f);
            packet_tcp_put32(f, it->l4, it->partial, it->l4 + 8u, ack);
            packet_tcp_put16(f, it->l4, it->partial, it->l4 + 14u, win);
            e->stats.lowered++;
        }
        if (it->n_sack) {
            f = strip_sack(fl, it, f);
        }
    }
    if (it->ts_at && fl->rel_tsval && seq_lt(it->tsval, fl->rel_tsval) &&
        !it->norewrite) {
        /* Overtaken by a later frame: an older stamp would be thrown away (PAWS). */
        f = frame_writable(f);
        packet_tcp_put32(f, it->l4, it->partial, it->ts_at, fl->rel_tsval);
    }
    note_released(fl, ack, edge, it->tsval, it->ts_at);
    compare_release(e, f);
}

static bool is_pure_ack(const Item *it)
{
    return it->body_len == 0 && it->tcp_flags & TCP_ACK &&
           !(it->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST));
}

void compare_tcp_release_item(CompareEngine *e, Item *it)
{
    CompareFlow *fl = it->flow;
    Item copy = *it;
    Frame *f = compare_item_take(e, it);

    if (is_pure_ack(&copy) && fl->rel_known && !copy.must_send &&
        seq_le(copy.ack, fl->rel_ack) && seq_le(copy.edge, fl->rel_edge)) {
        e->stats.acks_absorbed++;
        frame_unref(f);
        return;
    }
    leave(e, fl, &copy, f, true);
}

/* Whether it is worth a frame to tell of the right edge @edge. */
static bool worth_telling(const CompareFlow *fl, uint32_t edge)
{
    uint32_t gain = edge - fl->rel_edge, left = fl->rel_edge - fl->rel_ack;

    return fl->wscale != 255 && seq_lt(fl->rel_edge, edge) && gain >= 1u << fl->wscale &&
           (gain >= 2 * MSS_TYPICAL || left < 2 * MSS_TYPICAL);
}

static bool may_owe(const CompareFlow *fl)
{
    return fl->p_known && fl->rel_known && !fl->norewrite && fl->closed != 2;
}

bool compare_tcp_owes_ack(const CompareFlow *fl)
{
    return may_owe(fl) && seq_lt(fl->rel_ack, fl->p_ack);
}

bool compare_tcp_owes_window(const CompareFlow *fl)
{
    return may_owe(fl) && worth_telling(fl, fl->p_edge);
}

/* Tell the client what the SVM has caught up with. */
static void pay_owed_ack(CompareEngine *e, CompareFlow *fl)
{
    uint32_t ack, edge;
    PacketAck a;

    if (!may_owe(fl) || !fl->s_known || !fl->v_known) {
        return;
    }
    ack = seq_min(fl->p_ack, fl->s_ack);
    edge = seq_min(fl->p_edge, fl->s_edge);
    if (!seq_lt(fl->rel_ack, ack)) {
        if (fl->n_held || !worth_telling(fl, edge)) {
            return; /* a held frame will tell it soon */
        }
        ack = fl->rel_ack;
    }
    a = (PacketAck){
        .l2 = fl->l2,
        .l2_len = fl->l2_len,
        .key = &fl->key,
        .seq = fl->vouched,
        .ack = ack,
        .win = window_for(fl, ack, edge, fl->p_win),
        .has_ts = fl->has_ts,
        .tsval = fl->rel_tsval ? fl->rel_tsval : fl->p_tsval,
        .tsecr = fl->p_tsecr,
        .vnet_len = fl->vnet_len,
    };
    note_released(fl, ack, ack + ((uint32_t)a.win << scale_of(fl)), 0, false);
    e->stats.acks_made++;
    compare_release(e, packet_make_ack(&a));
}

static bool may_leave(const CompareFlow *fl, const Item *it)
{
    if (it->norewrite &&
        (!fl->s_known || seq_lt(fl->s_ack, it->ack) || seq_lt(fl->s_edge, it->edge))) {
        return false;
    }
    switch (it->kind) {
    case ITEM_DATA:
        return fl->v_known && fl->s_known && seq_le(it->end, fl->vouched);
    case ITEM_SYNACK:
        return fl->synack_out;
    case ITEM_RST:
        return fl->s_rst > 0;
    case ITEM_ACK:
        return fl->s_known && seq_le(it->ack, fl->s_ack) &&
               sack_covered(fl, it->f, it->sack_at, it->n_sack);
    default:
        return false;
    }
}

static void drain(CompareEngine *e, CompareFlow *fl)
{
    Item *it;

    while ((it = fl->fifo.head) && may_leave(fl, it)) {
        Item copy = *it;

        if (it->kind == ITEM_RST) {
            fl->s_rst--;
        }
        compare_sample_lag(e, it->stamp);
        e->stats.equal++;
        leave(e, fl, &copy, compare_item_take(e, it), false);
    }
    while ((it = fl->acks.head) && may_leave(fl, it)) {
        Item copy = *it;
        Frame *f = compare_item_take(e, it);
        uint32_t win = window_for(fl, copy.ack, copy.edge, copy.win);
        uint32_t edge = copy.ack + (win << scale_of(fl)); /* as it will be written */
        bool news =
            !fl->rel_known || seq_lt(fl->rel_ack, copy.ack) ||
            (copy.ack == fl->rel_ack && (copy.must_send || seq_lt(fl->rel_edge, edge)));

        e->stats.equal++;
        if (news) {
            leave(e, fl, &copy, f, false);
        } else {
            e->stats.acks_absorbed++;
            frame_unref(f);
        }
    }
    pay_owed_ack(e, fl);
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
    fl->s_ack = fl->s_syn.ack;
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
    drain(e, fl);
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
    drain(e, fl);
    compare_flow_wait(e, fl, true);
}

void compare_tcp_settle(CompareEngine *e, CompareFlow *fl)
{
    drain(e, fl);
    compare_flow_wait(e, fl, true);
}

/* --- Input --- */

bool compare_tcp_is_known(CompareEngine *e, CompareFlow *fl, const Packet *p)
{
    if (!fl->p_known || !fl->v_known || !fl->s_known || (p->flags & TCP_RST)) {
        return false;
    }
    if ((p->flags & TCP_SYN) && (!fl->p_syn.valid || p->seq != fl->p_syn.isn ||
                                 p->ack != fl->p_syn.ack || p->body_len)) {
        return false;
    }
    if (!seq_le(p->seq + packet_len(p), fl->vouched)) {
        return false;
    }
    if (!(p->flags & TCP_ACK)) {
        return true;
    }
    /* Not more than the PVM said itself before: in flight, that is before the cut. The
     * SVM may be ahead of it, but forgets that when it is rolled back. */
    return seq_le(p->ack, seq_min(fl->s_ack, fl->p_ack)) &&
           seq_le(edge_of(fl, p), seq_min(fl->s_edge, fl->p_edge)) && p->n_sack == 0;
}

void compare_tcp_release_known(CompareEngine *e, CompareFlow *fl, Frame *f,
                               const Packet *p)
{
    Item view = {0};

    compare_tcp_fill(fl, &view, p);
    e->stats.known++;
    leave(e, fl, &view, f, false);
}

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
    uint32_t end = p->seq + packet_len(p);
    Item *it;

    if (fl->v_known && fl->s_known && seq_le(end, fl->vouched) && !p->has_md5) {
        compare_tcp_release_known(e, fl, f, p);
        return;
    }
    it = compare_item_new(e, fl, f, true);
    it->kind = ITEM_DATA;
    compare_tcp_fill(fl, it, p);
    compare_fifo_push(&fl->fifo, it);
    if (stream_insert(&fl->p, it, fl->v_known, fl->vouched, leave_item, e) ==
        STREAM_CONFLICT) {
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
        drain(e, fl);
        compare_flow_wait(e, fl, false);
        return;
    }
    if (p->flags & TCP_SYN) {
        primary_syn(e, fl, f, p);
        return;
    }
    repeats = fl->p_known && p->ack == fl->p_ack && edge_of(fl, p) == fl->p_edge;
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
    if (packet_len(p) == 0) {
        primary_ack(e, fl, f, p, repeats);
    } else {
        primary_data(e, fl, f, p);
    }
    moved = advance(e, fl);
    drain(e, fl);
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
        fl->s_ack = fl->p_ack;
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
    leave(e, fl, &view, f, true);
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
        frame_unref(f);
        drain(e, fl);
        compare_flow_wait(e, fl, true);
        return;
    }
    if (p->flags & TCP_ACK) {
        edge = edge_of(fl, p);
        if (!fl->s_known) {
            fl->s_known = progress = true;
            fl->s_ack = p->ack;
            fl->s_edge = edge;
            fl->s_win = p->win;
        }
        if (seq_le(fl->s_ack, p->ack)) {
            progress |= fl->s_ack != p->ack;
            fl->s_ack = p->ack;
            fl->s_win = p->win;
        }
        fl->s_edge = seq_max(fl->s_edge, edge);
        if (p->n_sack) {
            sack_remember(fl, f, p);
        }
    }
    if (packet_len(p) && !(fl->v_known && seq_le(p->seq + packet_len(p), fl->vouched))) {
        it = compare_item_new(e, fl, f, false);
        compare_tcp_fill(fl, it, p);
        switch (stream_insert(&fl->s, it, fl->v_known, fl->vouched, drop_item, e)) {
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
    drain(e, fl);
    compare_flow_wait(e, fl, progress);
}
