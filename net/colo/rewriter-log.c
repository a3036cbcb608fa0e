/*
 * The rewriter engine: the client's bytes, until the SVM has acknowledged them.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal (RULES 21). The primary may acknowledge an upload to the client as soon as the PVM
 * has it and this host has it, without the SVM's own, perhaps delayed, ACK. From then on
 * the client will not send those bytes again; if the SVM lost them they come from here.
 *
 * What. Each segment that passes to the SVM and lies within its window is kept, as it was
 * delivered, until the SVM's ACK covers it. @log_to is the end of what the SVM or the log
 * has without a hole; the primary's comparison is told of it once a batch, after the
 * frames were kept. What it was told is never given up in the same epoch: at the bound new
 * segments are not taken, so @log_to stands still and the SVM's own ACKs count again. A
 * roll-back empties the log: ACKs that were released before it are the checkpoint's.
 *
 * Feeding. The first segment goes again after 30 ms without an ACK that moved, twice that
 * the next time, ... 1 s; at once on the third equal ACK; and while a repair runs, the
 * next hole on each ACK that moved. The copy carries the client's latest ACK and time
 * stamp. After a takeover what is here is still fed until it is acknowledged.
 *
 * The client's last ACK is kept as numbers. An SVM that repeats bytes which the client has
 * acknowledged, or probes, has lost that ACK: the client never sees the SVM's frames, so
 * it is answered from here.
 *
 * Limits. Segments with SYN, RST or a signature are not kept. Flows are not walked: those
 * with a log stand in a list sorted by the time at which they are due.
 */
#include "rewriter-int.h"
#include "util/trace.h"

#define LOG_BYTES (32u << 20)
#define FRAME_COST 2048 /* what a small frame takes beyond its bytes */
#define FEED_FIRST (30 * 1000)
#define FEED_LAST G_USEC_PER_SEC
#define EQUAL_ACKS 3
#define SEQ_SPAN (1u << 30) /* further away than any window: another connection */
#define ANSWER_EVERY (20 * 1000)

/* --- Lists --- */

static void due_unlink(RewriterEngine *r, RwFlow *fl)
{
    if (!fl->log_listed) {
        return;
    }
    if (fl->log_prev) {
        fl->log_prev->log_next = fl->log_next;
    } else {
        r->log_head = fl->log_next;
    }
    if (fl->log_next) {
        fl->log_next->log_prev = fl->log_prev;
    } else {
        r->log_tail = fl->log_prev;
    }
    fl->log_listed = false;
}

/* Nearly all wait equally long: the place is at the end. */
static void due_at(RewriterEngine *r, RwFlow *fl, int64_t at)
{
    RwFlow *prev;

    due_unlink(r, fl);
    fl->log_due = at;
    prev = r->log_tail;
    while (prev && prev->log_due > at) {
        prev = prev->log_prev;
    }
    fl->log_prev = prev;
    fl->log_next = prev ? prev->log_next : r->log_head;
    if (fl->log_next) {
        fl->log_next->log_prev = fl;
    } else {
        r->log_tail = fl;
    }
    if (prev) {
        prev->log_next = fl;
    } else {
        r->log_head = fl;
    }
    fl->log_listed = true;
}

static void untold(RewriterEngine *r, RwFlow *fl)
{
    if (!fl->log_untold) {
        fl->log_untold = true;
        fl->untold_next = r->untold;
        r->untold = fl;
    }
}

static void logged_unlink(RewriterEngine *r, RwFlow *fl, Logged *l)
{
    if (l->prev) {
        l->prev->next = l->next;
    } else {
        fl->log_first = l->next;
    }
    if (l->next) {
        l->next->prev = l->prev;
    } else {
        fl->log_last = l->prev;
    }
    r->stats.logged_frames--;
    r->stats.logged_bytes -= l->f->len;
    frame_unref(l->f);
    l->next = r->free_logged;
    r->free_logged = l;
}

static void log_empty(RewriterEngine *r, RwFlow *fl)
{
    while (fl->log_first) {
        logged_unlink(r, fl, fl->log_first);
    }
    due_unlink(r, fl);
    fl->log_known = fl->log_repair = false;
    fl->log_equal = 0;
}

void rw_log_clear_flow(RewriterEngine *r, RwFlow *fl)
{
    log_empty(r, fl);
    if (fl->log_untold) { /* rare: the list is that of one batch */
        for (RwFlow **u = &r->untold; *u; u = &(*u)->untold_next) {
            if (*u == fl) {
                *u = fl->untold_next;
                break;
            }
        }
        fl->log_untold = false;
    }
}

void rw_log_clear(RewriterEngine *r)
{
    while (r->log_head) {
        rw_log_clear_flow(r, r->log_head);
    }
    while (r->untold) {
        rw_log_clear_flow(r, r->untold);
    }
}

void rw_log_free(RewriterEngine *r)
{
    while (r->free_logged) {
        Logged *l = r->free_logged;
        r->free_logged = l->next;
        g_free(l);
    }
}

/* --- Taking in --- */

static Logged *logged_new(RewriterEngine *r, Frame *f, uint32_t seq, uint32_t end,
                          uint32_t l4, uint16_t ts_at)
{
    Logged *l = r->free_logged;

    if (l) {
        r->free_logged = l->next;
    } else {
        l = g_new(Logged, 1);
    }
    *l = (Logged){.f = frame_ref(f), .seq = seq, .end = end, .l4 = l4, .ts_at = ts_at};
    r->stats.logged_frames++;
    r->stats.logged_bytes += f->len;
    r->stats.logged_bytes_max = MAX(r->stats.logged_bytes_max, r->stats.logged_bytes);
    return l;
}

/* Whether the flow's log can take [@seq, @end); it starts where the SVM's ACK is. */
static bool log_wants(RewriterEngine *r, RwFlow *fl, uint32_t seq, uint32_t end)
{
    if (!fl->ack_known || fl->closed || !fl->off_known || end - fl->g_ack > SEQ_SPAN) {
        return false;
    }
    if (!fl->log_known || seq_lt(fl->log_to, fl->g_ack)) {
        fl->log_known = true;
        fl->log_to = fl->g_ack;
    }
    if (seq_le(end, fl->log_to) || seq_lt(fl->g_edge, end)) {
        return false;
    }
    if (r->stats.logged_bytes + r->stats.logged_frames * FRAME_COST >= LOG_BYTES) {
        r->stats.log_refused++;
        return false;
    }
    return true;
}

void rw_log_client(RewriterEngine *r, RwFlow *fl, Frame *f, const Packet *p, int64_t now)
{
    uint32_t end = p->seq + p->body_len + !!(p->flags & TCP_FIN);
    Logged *l, *prev;

    if (!r->log_ops.feed || r->live || end == p->seq || p->has_md5 ||
        (p->flags & (TCP_SYN | TCP_RST)) || !log_wants(r, fl, p->seq, end)) {
        return;
    }
    prev = fl->log_last;
    while (prev && seq_lt(p->seq, prev->seq)) {
        prev = prev->prev;
    }
    if (prev && seq_le(end, prev->end)) {
        return; /* beyond a hole, and there already */
    }
    l = logged_new(r, f, p->seq, end, p->l4, p->has_ts ? p->ts_at : 0);
    l->prev = prev;
    l->next = prev ? prev->next : fl->log_first;
    if (l->next) {
        l->next->prev = l;
    } else {
        fl->log_last = l;
    }
    if (prev) {
        prev->next = l;
    } else {
        fl->log_first = l;
    }
    while (l && seq_le(l->seq, fl->log_to)) {
        fl->log_to = seq_max(fl->log_to, l->end);
        untold(r, fl);
        l = l->next;
    }
    if (!fl->log_listed) {
        fl->log_wait = FEED_FIRST;
        due_at(r, fl, now + fl->log_wait);
    }
}

/* --- What the SVM says --- */

void rw_log_acked(RewriterEngine *r, RwFlow *fl, const Packet *p, bool moved, int64_t now)
{
    if (!fl->log_first) {
        return;
    }
    while (fl->log_first && seq_le(fl->log_first->end, fl->g_ack)) {
        logged_unlink(r, fl, fl->log_first);
    }
    if (!fl->log_first) {
        due_unlink(r, fl);
        fl->log_repair = false;
        return;
    }
    if (moved) {
        fl->log_equal = 0;
        fl->log_wait = FEED_FIRST;
        fl->log_repair = fl->log_repair && seq_lt(fl->g_ack, fl->log_repair_to);
        due_at(r, fl, fl->log_repair ? now : now + FEED_FIRST);
    } else if (p->ack == fl->g_ack && p->body_len == 0 && p->win == fl->g_win &&
               ++fl->log_equal == EQUAL_ACKS && !fl->log_repair) {
        due_at(r, fl, now);
    }
}

/* The client's bytes that the SVM has not got, as the client would send them now. */
static void feed(RewriterEngine *r, RwFlow *fl, const Logged *l)
{
    Frame *f = frame_from(l->f->data, l->f->len);

    if (fl->cl_known) {
        packet_tcp_put32(f, l->l4, false, l->l4 + 8u, fl->cl_ack + fl->off);
    }
    if (l->ts_at) {
        packet_tcp_put32(f, l->l4, false, l->ts_at, fl->tsecr);
    }
    r->stats.fed_again++;
    r->log_ops.feed(f, r->log_opaque);
}

int64_t rw_log_tick(RewriterEngine *r, int64_t now)
{
    RwFlow *fl;

    while ((fl = r->log_head) && fl->log_due <= now) {
        if (!fl->log_repair) {
            fl->log_repair = true;
            fl->log_repair_to = fl->log_to;
            colo_trace(net_rewriter_feed, "the SVM lacks %u bytes at %u",
                       fl->log_to - fl->g_ack, fl->g_ack);
        }
        feed(r, fl, fl->log_first);
        fl->log_wait = MIN(fl->log_wait * 2, FEED_LAST);
        due_at(r, fl, now + fl->log_wait);
    }
    return fl ? fl->log_due : INT64_MAX;
}

/* --- The client's last ACK --- */

void rw_answer(RewriterEngine *r, RwFlow *fl, const Packet *p, uint32_t seq, uint32_t end,
               int64_t now)
{
    bool probe = end == seq && seq_lt(seq, fl->snd_max);
    FlowKey k;

    if (!r->log_ops.feed || r->live || fl->closed || p->has_md5 || !fl->cl_known ||
        !fl->cl_snd_known || !fl->cl_l2_len || (p->flags & (TCP_SYN | TCP_RST)) ||
        now - fl->answered_at < ANSWER_EVERY) {
        return;
    }
    /* An ACK that has just gone in may be on its way. */
    if (!probe && (end == seq || seq_lt(fl->cl_ack, end) ||
                   now - fl->cl_ack_at < ANSWER_EVERY)) {
        return;
    }
    k = fl->key;
    memcpy(k.guest, fl->key.client, sizeof(k.guest));
    memcpy(k.client, fl->key.guest, sizeof(k.client));
    k.guest_port = fl->key.client_port;
    k.client_port = fl->key.guest_port;
    PacketAck a = {
        .l2 = fl->cl_l2,
        .l2_len = fl->cl_l2_len,
        .key = &k,
        .seq = fl->cl_snd,
        .ack = fl->cl_ack + fl->off,
        .win = fl->cl_win,
        .has_ts = fl->has_ts && p->has_ts,
        .tsval = fl->tsecr,
        .tsecr = fl->tsval_last,
    };
    fl->answered_at = now;
    r->stats.answered++;
    r->log_ops.feed(packet_make_ack(&a), r->log_opaque);
}

/* --- Public --- */

void rewriter_engine_log(RewriterEngine *r, const RewriterLogOps *ops, void *opaque)
{
    r->log_ops = ops ? *ops : (RewriterLogOps){0};
    r->log_opaque = opaque;
    if (!ops) {
        rw_log_clear(r);
    }
}

int64_t rewriter_engine_log_flush(RewriterEngine *r)
{
    while (r->untold) {
        RwFlow *fl = r->untold;

        r->untold = fl->untold_next;
        fl->log_untold = false;
        if (r->log_ops.logged && fl->log_known && seq_lt(fl->g_ack, fl->log_to)) {
            r->log_ops.logged(&fl->key, fl->log_to, r->log_opaque);
        }
    }
    return r->log_head ? r->log_head->log_due : INT64_MAX;
}
