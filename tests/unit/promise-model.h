/*
 * Promise 1 as a model: what may leave, by its words alone.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * No byte that the PVM sent leaves before (a) the SVM has sent the same in the same epoch,
 * or (b) a checkpoint is committed that was taken after it. An ACK and a window are no
 * larger than both sides', where the secondary's log stands for the SVM's ACK within the
 * SVM's window. Slow on purpose: an entry for each byte, a list of each datagram, and
 * nothing shared with the engine but the parser.
 */
#ifndef TESTS_UNIT_PROMISE_MODEL_H
#define TESTS_UNIT_PROMISE_MODEL_H

#include "net-frames.h"

#define M_STREAM 3000 /* places of a stream; the last is the FIN */
#define M_FLOWS 6
#define M_NEVER UINT64_MAX

typedef struct ModelSay { /* the furthest that a side has said */
    int64_t ack, edge;    /* from the client's first byte; -1: nothing yet */
} ModelSay;

typedef struct ModelFlow {
    FlowKey key;
    uint32_t isn, cl;
    unsigned scale;
    uint64_t p_sent[M_STREAM]; /* epoch in which the PVM first sent it */
    uint8_t bytes[M_STREAM];   /* what it sent */
    bool s_sent[M_STREAM];     /* the SVM sent the same, in the committed epoch */
    bool out[M_STREAM];
    ModelSay p_old, p_now; /* the PVM: before the last commit; in that epoch, too */
    ModelSay s;            /* the SVM, in the committed epoch */
    int64_t log;
    uint64_t synack_epoch;
    bool s_synack;
    unsigned s_rst;
} ModelFlow;

typedef struct ModelDgram {
    Frame *f;
    uint64_t epoch;
    bool primary, gone;
} ModelDgram;

typedef struct PromiseModel {
    uint64_t committed;
    ModelFlow flow[M_FLOWS];
    unsigned n_flows;
    GArray *dgrams;     /* of ModelDgram */
    GPtrArray *later_p; /* the PVM's frames of epochs that are not committed */
    GPtrArray *later_s;
} PromiseModel;

static inline PromiseModel *model_new(void)
{
    PromiseModel *m = g_new0(PromiseModel, 1);

    m->dgrams = g_array_new(FALSE, TRUE, sizeof(ModelDgram));
    m->later_p = g_ptr_array_new_with_free_func((GDestroyNotify)frame_unref);
    m->later_s = g_ptr_array_new_with_free_func((GDestroyNotify)frame_unref);
    return m;
}

static inline void model_free(PromiseModel *m)
{
    for (unsigned i = 0; i < m->dgrams->len; i++) {
        frame_unref(g_array_index(m->dgrams, ModelDgram, i).f);
    }
    g_array_unref(m->dgrams);
    g_ptr_array_unref(m->later_p);
    g_ptr_array_unref(m->later_s);
    g_free(m);
}

static inline ModelFlow *model_flow(PromiseModel *m, const FlowKey *k)
{
    for (unsigned i = 0; i < m->n_flows; i++) {
        if (flow_key_equal(&m->flow[i].key, k)) {
            return &m->flow[i];
        }
    }
    return NULL;
}

static inline void model_open(PromiseModel *m, const FlowKey *k, uint32_t isn, uint32_t cl,
                              unsigned scale)
{
    ModelFlow *fl = &m->flow[m->n_flows++];

    fl->key = *k;
    fl->isn = isn;
    fl->cl = cl;
    fl->scale = scale;
    fl->synack_epoch = M_NEVER;
    fl->p_old = fl->p_now = fl->s = (ModelSay){-1, -1};
    fl->log = -1;
    for (int i = 0; i < M_STREAM; i++) {
        fl->p_sent[i] = M_NEVER;
    }
}

static inline void model_say(ModelSay *s, const ModelFlow *fl, const Packet *p)
{
    int64_t ack = (uint32_t)(p->ack - fl->cl);
    int64_t edge = ack + ((uint32_t)p->win << (p->flags & TCP_SYN ? 0 : fl->scale));

    s->ack = MAX(s->ack, ack);
    s->edge = MAX(s->edge, edge);
}

/* What the PVM says with @f, of @epoch, counts from the time when that is committed or
 * compared. */
static inline void model_p_counts(PromiseModel *m, const Frame *f)
{
    ModelFlow *fl;
    Packet p;

    packet_parse(f, true, &p);
    fl = p.kind == PACKET_TCP ? model_flow(m, &p.key) : NULL;
    if (fl && (p.flags & TCP_ACK) && !(p.flags & TCP_RST)) {
        model_say(&fl->p_now, fl, &p);
    }
}

static inline Frame *model_copy(const Frame *f, uint64_t epoch)
{
    Frame *c = frame_from(f->data, f->len);

    c->epoch = epoch;
    return c;
}

static inline void model_primary(PromiseModel *m, const Frame *f, uint64_t epoch)
{
    ModelFlow *fl;
    Packet p;

    packet_parse(f, true, &p);
    if (p.kind == PACKET_PASS) {
        return;
    }
    if (p.kind != PACKET_TCP) {
        ModelDgram d = {model_copy(f, epoch), epoch, true, false};
        g_array_append_val(m->dgrams, d);
        return;
    }
    fl = model_flow(m, &p.key);
    if (p.flags & TCP_SYN) {
        fl->synack_epoch = MIN(fl->synack_epoch, epoch);
    }
    for (uint32_t i = 0; i < p.body_len + !!(p.flags & TCP_FIN); i++) {
        uint32_t at = p.seq - fl->isn - 1 + i;
        g_assert(at < M_STREAM);
        fl->p_sent[at] = MIN(fl->p_sent[at], epoch);
        fl->bytes[at] = i < p.body_len ? f->data[p.body + i] : 0;
    }
    if (epoch > m->committed) {
        g_ptr_array_add(m->later_p, model_copy(f, epoch));
    } else {
        model_p_counts(m, f);
    }
}

static inline void model_s_counts(PromiseModel *m, const Frame *f)
{
    ModelFlow *fl;
    Packet p;

    packet_parse(f, true, &p);
    if (p.kind == PACKET_PASS) {
        return;
    }
    if (p.kind != PACKET_TCP) {
        ModelDgram d = {model_copy(f, m->committed), m->committed, false, false};
        g_array_append_val(m->dgrams, d);
        return;
    }
    fl = model_flow(m, &p.key);
    if (p.flags & TCP_SYN) {
        fl->s_synack = true;
    } else if (p.flags & TCP_RST) {
        fl->s_rst++;
        return;
    }
    model_say(&fl->s, fl, &p);
    for (uint32_t i = 0; !(p.flags & TCP_SYN) && i < p.body_len + !!(p.flags & TCP_FIN);
         i++) {
        uint32_t at = p.seq - fl->isn - 1 + i;
        bool fin = i == p.body_len;
        g_assert(at < M_STREAM);
        fl->s_sent[at] |= fin == (at == M_STREAM - 1) &&
                          (fin || f->data[p.body + i] == (uint8_t)(at * 7 + at / 251));
    }
}

static inline void model_secondary(PromiseModel *m, const Frame *f, uint64_t epoch)
{
    if (epoch > m->committed) {
        g_ptr_array_add(m->later_s, model_copy(f, epoch));
    } else if (epoch == m->committed) {
        model_s_counts(m, f);
    }
}

static inline void model_logged(PromiseModel *m, const FlowKey *k, uint32_t upto,
                                uint64_t epoch)
{
    ModelFlow *fl = model_flow(m, k);

    if (epoch == m->committed) {
        fl->log = MAX(fl->log, (int64_t)(uint32_t)(upto - fl->cl));
    }
}

/* The checkpoint that begins @epoch is safe: what the PVM sent before it may go. */
static inline void model_commit(PromiseModel *m, uint64_t epoch)
{
    m->committed = epoch;
    for (unsigned i = 0; i < m->later_p->len; i++) {
        if (((Frame *)m->later_p->pdata[i])->epoch < epoch) {
            model_p_counts(m, m->later_p->pdata[i]);
        }
    }
    for (unsigned i = 0; i < m->n_flows; i++) {
        ModelFlow *fl = &m->flow[i];
        fl->p_old = fl->p_now;
        fl->s = (ModelSay){-1, -1};
        fl->log = -1;
        fl->s_rst = 0;
        fl->s_synack = false;
        memset(fl->s_sent, 0, sizeof(fl->s_sent));
    }
    for (unsigned i = 0; i < m->dgrams->len; i++) {
        ModelDgram *d = &g_array_index(m->dgrams, ModelDgram, i);
        d->gone |= !d->primary;
    }
    for (unsigned i = 0; i < m->later_p->len; i++) {
        if (((Frame *)m->later_p->pdata[i])->epoch == epoch) {
            model_p_counts(m, m->later_p->pdata[i]);
        }
    }
    for (unsigned i = 0; i < m->later_s->len; i++) {
        if (((Frame *)m->later_s->pdata[i])->epoch == epoch) {
            model_s_counts(m, m->later_s->pdata[i]);
        }
    }
    g_ptr_array_set_size(m->later_p, 0);
    g_ptr_array_set_size(m->later_s, 0);
}

/* --- Judging what leaves --- */

static inline bool model_same(const Frame *a, const Frame *b)
{
    Packet p, q;

    packet_parse(a, true, &p);
    packet_parse(b, true, &q);
    return flow_key_equal(&p.key, &q.key) && p.body_len == q.body_len &&
           memcmp(a->data + p.body, b->data + q.body, p.body_len) == 0;
}

static inline void model_dgram_out(PromiseModel *m, const Frame *f)
{
    ModelDgram *mine = NULL, *twin = NULL;

    for (unsigned i = 0; i < m->dgrams->len; i++) {
        ModelDgram *d = &g_array_index(m->dgrams, ModelDgram, i);

        if (!d->gone && model_same(d->f, f)) {
            if (!d->primary) {
                twin = twin ? twin : d;
            } else if (!mine || d->epoch < mine->epoch) {
                mine = d;
            }
        }
    }
    g_assert_nonnull(mine); /* the PVM sent it, and it has not left yet */
    g_assert_cmpuint(mine->epoch, <=, m->committed);
    if (mine->epoch == m->committed) {
        g_assert_nonnull(twin);
        twin->gone = true;
    }
    mine->gone = true;
}

static inline bool model_before_cut(const PromiseModel *m, const ModelFlow *fl, uint32_t at)
{
    for (uint32_t i = at; i < M_STREAM; i++) { /* it, or more: the state has it */
        if (fl->p_sent[i] < m->committed) {
            return true;
        }
    }
    return false;
}

static inline void model_out(PromiseModel *m, const Frame *f)
{
    ModelSay s, say = {0, 0};
    ModelFlow *fl;
    Packet p;

    packet_parse(f, true, &p);
    if (p.kind == PACKET_PASS) {
        return;
    }
    if (p.kind != PACKET_TCP) {
        model_dgram_out(m, f);
        return;
    }
    fl = model_flow(m, &p.key);
    g_assert_nonnull(fl);
    g_assert_true(test_checksum_ok(f));
    if (p.flags & TCP_SYN) {
        g_assert_true(fl->synack_epoch < m->committed ||
                      (fl->synack_epoch == m->committed && fl->s_synack) ||
                      fl->out[0] || fl->p_old.ack >= 0);
        return;
    }
    g_assert_false(p.flags & TCP_RST);
    for (uint32_t i = 0; i < p.body_len + !!(p.flags & TCP_FIN); i++) {
        uint32_t at = p.seq - fl->isn - 1 + i;
        g_assert(at < M_STREAM);
        g_assert_true(model_before_cut(m, fl, at) ||
                      (fl->p_sent[at] == m->committed && fl->s_sent[at]));
        if (i < p.body_len) {
            g_assert_cmpuint(f->data[p.body + i], ==, fl->bytes[at]);
        }
        fl->out[at] = true;
    }
    s = (ModelSay){MAX(fl->s.ack, fl->p_old.ack), MAX(fl->s.edge, fl->p_old.edge)};
    s.ack = MAX(s.ack, MIN(fl->log, s.edge));
    model_say(&say, fl, &p);
    g_assert_cmpint(say.ack, <=, s.ack);
    g_assert_cmpint(say.ack, <=, fl->p_now.ack);
    g_assert_cmpint(say.edge, <=, MAX(s.edge, say.ack));
    g_assert_cmpint(say.edge, <=, MAX(fl->p_now.edge, say.ack));
}

/* At the end, after a last commit: nothing that the PVM sent was kept back. */
static inline void model_all_out(PromiseModel *m)
{
    for (unsigned i = 0; i < m->n_flows; i++) {
        for (int at = 0; at < M_STREAM; at++) {
            g_assert_true(m->flow[i].out[at] || m->flow[i].p_sent[at] == M_NEVER);
        }
    }
    for (unsigned i = 0; i < m->dgrams->len; i++) {
        ModelDgram *d = &g_array_index(m->dgrams, ModelDgram, i);
        g_assert_true(d->gone || !d->primary);
    }
}

#endif
