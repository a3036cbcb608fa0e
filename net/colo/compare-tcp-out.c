/*
 * The comparison engine: how TCP frames leave, and the ACKs that are owed.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Bytes leave in the order in which the PVM sent them, with ACK, window and SACK blocks
 * lowered to what both sides said. A frame leaves when its last byte is vouched for; but
 * where only its front is, and the twin stands still for 4 ms, the front leaves by itself:
 * the twin may be at the end of its congestion window and wait for the client's ACK. What
 * was held back of an ACK is owed: a pure ACK makes up for it as soon as the SVM has got
 * there, if it tells the client something new.
 */
#include "compare-int.h"

#define MSS_TYPICAL 1460u

/* --- SACK --- */

void compare_tcp_sack(CompareFlow *fl, const Frame *f, const Packet *p)
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

void compare_tcp_leave(CompareEngine *e, CompareFlow *fl, const Item *it, Frame *f,
                       bool whole)
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
        edge = ack + ((uint32_t)win << tcp_scale_of(fl));
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

    fl->part_known = false;
    if (is_pure_ack(&copy) && fl->rel_known && !copy.must_send &&
        seq_le(copy.ack, fl->rel_ack) && seq_le(copy.edge, fl->rel_edge)) {
        e->stats.acks_absorbed++;
        frame_unref(f);
        return;
    }
    compare_tcp_leave(e, fl, &copy, f, true);
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

bool compare_tcp_blocks(const CompareFlow *fl)
{
    return fl->rel_edge - fl->rel_ack < 2 * MSS_TYPICAL;
}

/* Tell the client what the SVM has caught up with. */
static void pay_owed_ack(CompareEngine *e, CompareFlow *fl)
{
    uint32_t ack, edge;
    PacketAck a;

    if (!may_owe(fl) || !fl->s_known || !fl->v_known) {
        return;
    }
    if (e->in_flight && fl->n_forced) {
        return; /* what the PVM said after a torn cut is not the old SVM's to vouch for */
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
    note_released(fl, ack, ack + ((uint32_t)a.win << tcp_scale_of(fl)), 0, false);
    e->stats.acks_made++;
    compare_release(e, packet_make_ack(&a));
}

/* --- Parts of frames --- */

/* A frame with the bytes of [@from, @to) of @f alone; @to is not in its middle of a FIN. */
static Frame *cut_frame(const CompareFlow *fl, const Item *it, const Frame *f,
                        uint32_t from, uint32_t to)
{
    uint32_t fin = !!(it->tcp_flags & TCP_FIN), start = it->end - fin - it->body_len;
    uint32_t l3 = fl->l2_len, skip = from - start;
    uint32_t len = seq_min(to, it->end - fin) - from;
    Frame *cut = frame_new(MAX(it->body + len, 60u));
    Packet p = {.l3 = l3, .l4 = it->l4, .body = it->body, .body_len = len};
    uint8_t *ip = cut->data + l3, *tcp = cut->data + it->l4;

    memset(cut->data, 0, cut->len);
    memcpy(cut->data, f->data, it->body);
    memcpy(cut->data + it->body, f->data + it->body + skip, len);
    cut->stamp = f->stamp;
    cut->epoch = f->epoch;
    if (ip[0] >> 4 == 6) {
        put_be16(ip + 4, it->body + len - l3 - 40);
    } else {
        put_be16(ip + 2, it->body + len - l3);
    }
    put_be32(tcp + 4, from);
    if (to != it->end) {
        tcp[13] &= ~TCP_FIN;
    }
    packet_tcp_checksum(cut, &p);
    return cut;
}

/* The first byte of @it that has not left; whether its frame can be cut at all. */
static bool part_start(const CompareFlow *fl, const Item *it, uint32_t *from)
{
    *from = it->end - !!(it->tcp_flags & TCP_FIN) - it->body_len;
    if (fl->part_known && seq_lt(*from, fl->part) && seq_lt(fl->part, it->end)) {
        *from = fl->part;
    }
    return it->kind == ITEM_DATA && !it->norewrite && !it->partial && !it->f->vnet_len &&
           it->body_len > 0;
}

bool compare_tcp_has_part(const CompareFlow *fl)
{
    const Item *it = fl->fifo.head;
    uint32_t from;

    return it && fl->v_known && fl->s_known && !fl->broken &&
           seq_lt(fl->vouched, it->end) && part_start(fl, it, &from) &&
           seq_lt(from, fl->vouched);
}

void compare_tcp_leave_part(CompareEngine *e, CompareFlow *fl)
{
    const Item *it = fl->fifo.head;
    Item copy = *it;
    uint32_t from;

    part_start(fl, it, &from);
    copy.tcp_flags &= ~TCP_FIN;
    fl->part_known = true;
    fl->part = fl->vouched;
    e->stats.parts++;
    compare_tcp_leave(e, fl, &copy, cut_frame(fl, it, it->f, from, fl->vouched), false);
}

/* The frame of @it, which is not in any list any more, without what has left already. */
static Frame *rest_of(const CompareFlow *fl, const Item *it, Frame *f)
{
    uint32_t from;
    Frame *rest;

    if (!fl->part_known || it->kind != ITEM_DATA || !part_start(fl, it, &from) ||
        from != fl->part) {
        return f;
    }
    rest = cut_frame(fl, it, f, fl->part, it->end);
    frame_unref(f);
    return rest;
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

void compare_tcp_drain(CompareEngine *e, CompareFlow *fl)
{
    Item *it;

    while ((it = fl->fifo.head) && may_leave(fl, it)) {
        Item copy = *it;

        if (it->kind == ITEM_RST) {
            fl->s_rst--;
        }
        compare_sample_lag(e, it->stamp);
        e->stats.equal++;
        compare_tcp_leave(e, fl, &copy, rest_of(fl, &copy, compare_item_take(e, it)), false);
        fl->part_known = fl->part_known && seq_lt(copy.end, fl->part);
    }
    while ((it = fl->acks.head) && may_leave(fl, it)) {
        Item copy = *it;
        Frame *f = compare_item_take(e, it);
        uint32_t win = window_for(fl, copy.ack, copy.edge, copy.win);
        uint32_t edge = copy.ack + (win << tcp_scale_of(fl)); /* as it will be written */
        bool news =
            !fl->rel_known || seq_lt(fl->rel_ack, copy.ack) ||
            (copy.ack == fl->rel_ack && (copy.must_send || seq_lt(fl->rel_edge, edge)));

        e->stats.equal++;
        if (news) {
            compare_tcp_leave(e, fl, &copy, f, false);
        } else {
            e->stats.acks_absorbed++;
            frame_unref(f);
        }
    }
    pay_owed_ack(e, fl);
}

void compare_tcp_settle(CompareEngine *e, CompareFlow *fl)
{
    compare_tcp_drain(e, fl);
    compare_flow_wait(e, fl, true);
}

/* --- Nothing new --- */

bool compare_tcp_is_known(CompareEngine *e, CompareFlow *fl, const Packet *p)
{
    if (!fl->p_known || !fl->v_known || !fl->s_known || (p->flags & TCP_RST)) {
        return false;
    }
    if ((p->flags & TCP_SYN) && (!fl->p_syn.valid || p->seq != fl->p_syn.isn ||
                                 p->ack != fl->p_syn.ack || p->body_len)) {
        return false;
    }
    if (!seq_le(p->seq + tcp_packet_len(p), fl->vouched)) {
        return false;
    }
    if (!(p->flags & TCP_ACK)) {
        return true;
    }
    /* Not more than the PVM said itself before: in flight, that is before the cut. The
     * SVM may be ahead of it, but forgets that when it is rolled back. */
    return seq_le(p->ack, seq_min(fl->s_ack, fl->p_ack)) &&
           seq_le(tcp_edge_of(fl, p), seq_min(fl->s_edge, fl->p_edge)) && p->n_sack == 0;
}

void compare_tcp_release_known(CompareEngine *e, CompareFlow *fl, Frame *f,
                               const Packet *p)
{
    Item view = {0};

    compare_tcp_fill(fl, &view, p);
    e->stats.known++;
    compare_tcp_leave(e, fl, &view, f, false);
}
