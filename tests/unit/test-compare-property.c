/*
 * Tests of the comparison engine against a model, against garbage, and of its speed.
 * Sources: net/colo/{compare-dgram,compare-engine,compare-flow,compare-table,compare-tcp,
 * flow,packet,packet-edit,stream}.c, net/frame.c; dependencies: util (error, trace),
 * glib.
 * "-m perf" measures the speed.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "compare-world.h"

/* --- Property: any schedule of the same two streams ---
 *
 * Two sides send the same bytes, each in its own segments, with repetitions, local
 * reordering and its own ACKs; checkpoints come at random. The model knows what each side
 * has put out so far, as sets, and judges each frame that leaves by promise 1 alone. */

#define STREAM_LEN 6000

typedef struct Side {
    uint32_t nxt; /* stream positions; STREAM_LEN + 1: the FIN was sent */
    uint32_t ack, edge;
    Frame *delayed[3];
    unsigned n;
} Side;

typedef struct Model {
    uint32_t isn, cl;
    uint8_t bytes[STREAM_LEN];
    Side p, s;
    uint8_t sent_by_s[STREAM_LEN + 1]; /* 1: the SVM, or a checkpoint, vouches for it */
    uint8_t sent_by_p[STREAM_LEN + 1];
    uint8_t out[STREAM_LEN + 1];
    uint32_t s_ack, s_edge, p_ack, p_edge; /* put out, relative to @cl */
    uint32_t out_ack, out_edge;
    uint32_t p_dups, out_dups;
    int flipped; /* position of the byte that the SVM sends wrong, or -1 */
    bool flip_live;
    /* as of the cut */
    Side cut_p;
    uint8_t cut_sent[STREAM_LEN + 1];
    uint32_t cut_ack, cut_edge;
} Model;

#define SCALE 7

static void model_check(World *w, Frame *f)
{
    Model *m = w->model;
    uint32_t pos, ack, edge;
    Packet p;

    packet_parse(f, true, &p);
    g_assert_true(test_checksum_ok(f));
    ack = p.ack - m->cl;
    edge = ack + ((uint32_t)p.win << ((p.flags & TCP_SYN) ? 0 : SCALE));
    if (p.flags & TCP_SYN) {
        g_assert_cmpuint(w->isns, ==, 1);
        return;
    }
    pos = p.seq - (m->isn + 1);
    for (uint32_t i = 0; i < p.body_len; i++) {
        g_assert_cmpuint(pos + i, <, STREAM_LEN);
        g_assert_cmpuint(f->data[p.body + i], ==, m->bytes[pos + i]);
        g_assert_true(m->sent_by_s[pos + i]);
        g_assert_false(m->flip_live && pos + i == (uint32_t)m->flipped);
        m->out[pos + i] = 1;
    }
    if (p.flags & TCP_FIN) {
        g_assert_cmpuint(pos + p.body_len, ==, STREAM_LEN);
        g_assert_true(m->sent_by_s[STREAM_LEN]);
        m->out[STREAM_LEN] = 1;
    }
    g_assert_cmpuint(ack, <=, m->s_ack);
    g_assert_cmpuint(ack, <=, m->p_ack);
    g_assert_cmpuint(edge, <=, m->s_edge);
    g_assert_cmpuint(edge, <=, m->p_edge);
    if (p.body_len == 0 && !(p.flags & TCP_FIN) && ack <= m->out_ack &&
        edge <= m->out_edge) {
        m->out_dups++;
        g_assert_cmpuint(m->out_dups, <=, m->p_dups);
    }
    m->out_ack = MAX(m->out_ack, ack);
    m->out_edge = MAX(m->out_edge, edge);
}

/* Put out a frame of @side: the model notes it at the moment at which it is fed. */
static void side_feed(World *w, Model *m, Side *side, Frame *f)
{
    bool is_p = side == &m->p;
    uint8_t *sent = is_p ? m->sent_by_p : m->sent_by_s;
    uint32_t ack, edge, *max_ack = is_p ? &m->p_ack : &m->s_ack;
    uint32_t *max_edge = is_p ? &m->p_edge : &m->s_edge, pos;
    Packet p;

    packet_parse(f, true, &p);
    pos = p.seq - (m->isn + 1);
    ack = p.ack - m->cl;
    edge = ack + ((uint32_t)p.win << SCALE);
    memset(sent + pos, 1, p.body_len);
    if (p.flags & TCP_FIN) {
        sent[STREAM_LEN] = 1;
    }
    if (is_p && p.body_len == 0 && !(p.flags & TCP_FIN) && ack <= m->p_ack &&
        edge <= m->p_edge) {
        m->p_dups++;
    }
    *max_ack = MAX(*max_ack, ack);
    *max_edge = MAX(*max_edge, edge);
    if (is_p) {
        P(w, f);
    } else {
        S(w, f);
    }
}

static void side_push(World *w, Model *m, Side *side, Frame *f)
{
    if (side->n == G_N_ELEMENTS(side->delayed)) {
        unsigned i = g_random_int_range(0, side->n);
        Frame *out = side->delayed[i];
        side->delayed[i] = f;
        side_feed(w, m, side, out);
        return;
    }
    side->delayed[side->n++] = f;
}

static void side_flush(World *w, Model *m, Side *side)
{
    for (unsigned i = 0; i < side->n; i++) {
        side_feed(w, m, side, side->delayed[i]);
    }
    side->n = 0;
}

static Frame *side_frame(Model *m, Side *side, uint32_t from, uint32_t to, bool fin)
{
    uint8_t data[STREAM_LEN];

    memcpy(data, m->bytes + from, to - from);
    if (m->flip_live && side == &m->s && m->flipped >= (int)from &&
        m->flipped < (int)to) {
        data[m->flipped - from] ^= 0x10;
    }
    return test_tcp((TestTcp){.seq = m->isn + 1 + from,
                              .ack = m->cl + side->ack,
                              .flags = TCP_ACK | (fin ? TCP_FIN : 0),
                              .win = (side->edge - side->ack) >> SCALE,
                              .zero_win = side->edge - side->ack < 1 << SCALE,
                              .data = data,
                              .len = to - from});
}

static void side_step(World *w, Model *m, Side *side)
{
    uint32_t from = MIN(side->nxt, STREAM_LEN), to, edge;
    int what = g_random_int_range(0, 10);

    if (g_random_int_range(0, 3) == 0 && side->ack < 100000) {
        /* Both ack multiples of 128 so that the scaled edge is exact. */
        side->ack += 128 * g_random_int_range(0, 20);
        edge = side->ack + 128 * g_random_int_range(0, 200);
        side->edge = MAX(side->edge, edge);
    }
    if (what < 5) { /* go on */
        to = from + g_random_int_range(1, 400);
        to = MIN(to, STREAM_LEN);
        if (to == STREAM_LEN && side->nxt <= STREAM_LEN && g_random_boolean()) {
            side->nxt = STREAM_LEN + 1;
        } else {
            side->nxt = MAX(side->nxt, to);
        }
    } else if (what < 7 && from > 0) { /* repeat something, cut otherwise */
        to = g_random_int_range(1, from + 1);
        from = g_random_int_range(MAX((int)to - 700, 0), to);
    } else { /* ACK alone */
        to = from;
    }
    bool fin = side->nxt > STREAM_LEN && to == STREAM_LEN;
    side_push(w, m, side, side_frame(m, side, from, to, fin));
}

static void model_cut(World *w, Model *m, uint64_t epoch)
{
    side_flush(w, m, &m->p);
    compare_engine_cut(w->e, epoch);
    m->cut_p = m->p;
    m->cut_ack = m->p_ack;
    m->cut_edge = m->p_edge;
    memcpy(m->cut_sent, m->sent_by_p, sizeof(m->cut_sent));
}

static void model_commit(World *w, Model *m, uint64_t epoch)
{
    /* The SVM is the PVM of the cut from now on. */
    for (unsigned i = 0; i < m->s.n; i++) {
        frame_unref(m->s.delayed[i]);
    }
    m->s = m->cut_p;
    m->s.n = 0;
    for (int i = 0; i <= STREAM_LEN; i++) {
        /* What has left must be in the checkpoint: the SVM forgets its own timeline. */
        g_assert_true(m->cut_sent[i] || !m->out[i]);
        m->sent_by_s[i] = m->cut_sent[i];
    }
    g_assert_cmpuint(m->out_ack, <=, m->cut_ack);
    g_assert_cmpuint(m->out_edge, <=, m->cut_edge);
    m->s_ack = m->cut_ack;
    m->s_edge = m->cut_edge;
    m->flip_live = m->flip_live && !m->cut_sent[m->flipped];
    compare_engine_commit(w->e, epoch, w->now);
    compare_engine_secondary_marker(w->e, epoch);
    compare_engine_loaded(w->e, epoch, w->now);
}

static void run_property(bool checkpoints, bool flip)
{
    World *w = world_new(NULL);
    Model *m = g_new0(Model, 1);
    uint64_t epoch = 0;
    bool in_flight = false;
    unsigned i;

    m->isn = g_random_boolean() ? 0xffffffff - g_random_int_range(0, STREAM_LEN)
                                : g_random_int();
    m->cl =
        g_random_boolean() ? 0xffffffff - g_random_int_range(0, 5000) : g_random_int();
    for (i = 0; i < STREAM_LEN; i++) {
        m->bytes[i] = g_random_int();
    }
    m->flipped = flip ? g_random_int_range(0, STREAM_LEN) : -1;
    m->flip_live = flip;
    w->check = model_check;
    w->model = m;
    m->p.edge = m->s.edge = m->p_edge = m->s_edge = 1000;
    P(w, test_tcp((TestTcp){.seq = m->isn,
                            .ack = m->cl,
                            .flags = TCP_SYN | TCP_ACK,
                            .mss = 1460,
                            .wscale = SCALE}));
    S(w, test_tcp((TestTcp){.seq = g_random_int(),
                            .ack = m->cl,
                            .flags = TCP_SYN | TCP_ACK,
                            .mss = 1460,
                            .wscale = SCALE}));
    g_assert_cmpuint(w->out.count, ==, 1);
    for (i = 0; i < 4000; i++) {
        w->now++;
        if (checkpoints && g_random_int_range(0, 60) == 0) {
            if (in_flight && g_random_int_range(0, 5)) {
                model_commit(w, m, epoch);
                in_flight = false;
            } else {
                model_cut(w, m, ++epoch);
                in_flight = true;
            }
        }
        side_step(w, m, g_random_boolean() ? &m->p : &m->s);
        frame_queue_clear(&w->out);
        if (flip && w->triggers) {
            break;
        }
    }
    if (in_flight) {
        model_commit(w, m, epoch);
    }
    /* Let both come to the end and to the same ACK. */
    for (int k = 0; k < 2; k++) {
        Side *s = k ? &m->s : &m->p;
        uint32_t from = MIN(s->nxt, STREAM_LEN);
        s->ack = MAX(m->p.ack, m->s.ack);
        s->edge = MAX(m->p.edge, m->s.edge);
        s->nxt = STREAM_LEN + 1;
        side_flush(w, m, s);
        side_feed(w, m, s, side_frame(m, s, from, STREAM_LEN, true));
    }
    CompareStats st;
    compare_engine_stats(w->e, &st);
    if (m->flip_live) {
        g_assert_cmpuint(w->triggers, ==, 1);
        g_assert_cmpint(w->last, ==, PROXY_TRIGGER_MISMATCH);
        g_assert_cmpint(st.last[0].cause, ==, COMPARE_CAUSE_PAYLOAD);
        g_assert_false(m->out[m->flipped]);
        m->flip_live = false;
        model_cut(w, m, ++epoch);
        model_commit(w, m, epoch);
    } else if (!flip) {
        g_assert_cmpuint(w->triggers, ==, 0);
        g_assert_cmpuint(m->out_ack, ==, m->p.ack);
    }
    compare_engine_stats(w->e, &st);
    g_assert_cmpuint(st.held_frames, ==, 0);
    g_assert_cmpuint(st.held_bytes, ==, 0);
    for (i = 0; i <= STREAM_LEN; i++) {
        g_assert_true(m->out[i]);
    }
    g_free(m);
    world_free(w);
}

static void test_property(void)
{
    for (int i = 0; i < 100; i++) {
        run_property(false, false);
    }
}

static void test_property_checkpoints(void)
{
    for (int i = 0; i < 100; i++) {
        run_property(true, false);
    }
}

static void test_property_flip(void)
{
    for (int i = 0; i < 150; i++) {
        run_property(i & 1, true);
    }
}

/* --- Fuzz: nothing in a frame or an order of calls makes it fail --- */

static Frame *random_frame(void)
{
    char text[64] = {0};
    Frame *f;

    memset(text, 'a' + g_random_int_range(0, 2), g_random_int_range(0, 60));
    switch (g_random_int_range(0, 8)) {
    case 0:
        f = test_udp(1, g_random_int_range(50, 56), g_random_boolean(), text);
        break;
    case 1:
        f = test_icmp(text);
        break;
    case 2:
        f = test_fragment(8 * g_random_int_range(0, 3), g_random_boolean(), text);
        break;
    case 3:
        f = test_arp(g_random_boolean(), g_random_int_range(0, 3));
        break;
    default:
        f = test_tcp((TestTcp){
            .client_port = g_random_int_range(1, 4),
            .seq = g_random_int_range(0, 200),
            .ack = g_random_int_range(0, 200),
            .win = g_random_int_range(1, 100),
            .flags = g_random_int_range(0, 3) ? TCP_ACK : g_random_int_range(1, 256),
            .ts = g_random_boolean(),
            .tsval = g_random_int_range(0, 100),
            .n_sack = g_random_int_range(0, 3),
            .sack = {5, 90, 100, 150},
            .data = text,
            .len = strlen(text)});
    }
    if (g_random_int_range(0, 4) == 0) {
        for (int j = g_random_int_range(1, 5); j > 0; j--) {
            f->data[g_random_int_range(0, f->len)] = g_random_int();
        }
        f->len = g_random_int_range(0, f->len + 1);
    }
    return f;
}

static void test_fuzz(void)
{
    for (int round = 0; round < 30; round++) {
        World *w = world_new(
            &(CompareConfig){.max_flows = 4, .max_queue_size = 8, .max_bytes = 50000});
        uint64_t epoch = 0, fed = 0;
        CompareStats st;

        for (int i = 0; i < 4000; i++) {
            w->now += g_random_int_range(0, 3000);
            switch (g_random_int_range(0, 60)) {
            case 0:
                compare_engine_cut(w->e, ++epoch);
                break;
            case 1:
                compare_engine_commit(w->e, epoch, w->now);
                break;
            case 2:
                compare_engine_secondary_marker(w->e, epoch);
                break;
            case 3:
                compare_engine_loaded(w->e, epoch, w->now);
                break;
            case 4:
                compare_engine_set_mode(
                    w->e, g_random_int_range(0, 8) ? 1 : g_random_int_range(0, 3),
                    w->now);
                break;
            case 5: {
                g_autoptr(GByteArray) b = g_byte_array_new();
                compare_engine_save(w->e, b);
                CompareTable *t = compare_table_parse(b->data, b->len, NULL);
                g_assert_nonnull(t);
                compare_table_free(t);
                break;
            }
            case 6 ... 15:
                compare_engine_tick(w->e, w->now);
                break;
            case 16 ... 37:
                S(w, random_frame());
                break;
            default:
                P(w, random_frame());
                fed++;
            }
        }
        compare_engine_set_mode(w->e, COMPARE_MODE_COMPARE, w->now);
        compare_engine_set_mode(w->e, COMPARE_MODE_PASS, w->now);
        compare_engine_stats(w->e, &st);
        g_assert_cmpuint(st.held_frames, ==, 0);
        g_assert_cmpuint(st.held_bytes, ==, 0);
        g_assert_cmpuint(st.svm_bytes, ==, 0);
        /* Nothing is lost: each frame left, or said no more than others did. */
        g_assert_cmpuint(fed + st.acks_made + st.parts + st.svm_forwarded, ==,
                         st.released_frames + st.acks_absorbed);
        world_free(w);
    }
}

/* --- Speed --- */

static void drop_frame(Frame *f, void *opaque)
{
    frame_unref(f);
}

static void measure(bool udp, uint32_t size, unsigned flows)
{
    enum { N = 400000 };
    CompareOps o = {drop_frame, on_trigger, on_isn};
    World *w = world_new(NULL);
    uint8_t data[1500] = {0};
    uint32_t *seq = g_new0(uint32_t, flows);
    Frame **pf = g_new(Frame *, flows), **sf = g_new(Frame *, flows);
    double t;

    compare_engine_free(w->e);
    w->e = compare_engine_new(NULL, &o, w);
    compare_engine_set_mode(w->e, COMPARE_MODE_COMPARE, 1);
    for (unsigned i = 0; i < flows; i++) {
        TestTcp x = {
            .seq = 1, .ack = 1, .client_port = 1 + i, .data = data, .len = size - 54};
        pf[i] = test_tcp(x);
        sf[i] = test_tcp(x);
        if (udp) {
            pf[i]->data[23] = sf[i]->data[23] = 17;
            put_be16(pf[i]->data + 38, size - 34);
            put_be16(sf[i]->data + 38, size - 34);
        }
        seq[i] = 1;
    }
    g_test_timer_start();
    for (unsigned i = 0; i < N; i++) {
        unsigned k = i % flows;
        if (!udp) {
            put_be32(pf[k]->data + 38, seq[k]);
            put_be32(sf[k]->data + 38, seq[k]);
            seq[k] += size - 54;
        }
        P(w, frame_ref(pf[k]));
        S(w, frame_ref(sf[k]));
        w->now++;
        compare_engine_tick(w->e, w->now);
    }
    t = g_test_timer_elapsed();
    g_test_message("%s %u bytes, %u flows: %.0f k pairs/s (%.0f k frames/s)",
                   udp ? "udp" : "tcp", size, flows, N / t / 1e3, 2 * N / t / 1e3);
    g_assert_cmpuint(w->triggers, ==, 0);
    for (unsigned i = 0; i < flows; i++) {
        frame_unref(pf[i]);
        frame_unref(sf[i]);
    }
    g_free(pf);
    g_free(sf);
    g_free(seq);
    world_free(w);
}

static void test_speed(void)
{
    if (!g_test_perf()) {
        g_test_skip("run with -m perf");
        return;
    }
    for (int i = 0; i < 8; i++) {
        measure(i & 1, i & 2 ? 1500 : 64, i & 4 ? 1000 : 1);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define T(name, fn) g_test_add_func("/compare-property/" name, fn)
    T("property", test_property);
    T("property-checkpoints", test_property_checkpoints);
    T("property-flip", test_property_flip);
    T("fuzz", test_fuzz);
    T("speed", test_speed);
    return g_test_run();
}
