/*
 * The comparison engine beside a model of promise 1, on random traces of many flows and
 * checkpoints, torn ones included.
 * Build: tests/unit/test-compare-model.c; dependencies: net.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Two guests run: each sends its streams in its own segments, with repetitions, frames that
 * come later or twice, ACKs and windows of its own, datagrams, fragments and echoes. The
 * SVM may lose its client's data (its ACK stands still while the log goes on) or diverge:
 * one byte, one datagram, a FIN too early. COLO_SEED repeats a run.
 */
#include "compare-world.h"
#include "promise-model.h"

#define SCALE 3

typedef struct Guest {
    uint32_t nxt[M_FLOWS]; /* places sent */
    uint32_t ack[M_FLOWS], edge[M_FLOWS];
    bool deaf[M_FLOWS]; /* its client's data is lost */
    uint32_t wrong[M_FLOWS]; /* the place that it has wrong, or M_STREAM */
    unsigned said; /* datagrams */
    Frame *late[4];
    unsigned n_late;
} Guest;

typedef struct Run {
    World *w;
    PromiseModel *m;
    Guest p, s, cut;
    uint64_t epoch, s_epoch;
    bool in_flight, diverges;
} Run;

static void on_out(World *w, Frame *f)
{
    model_out(w->model, f);
}

static TestTcp base(Run *r, unsigned i)
{
    return (TestTcp){.client_port = 100 + i, .v6 = i & 1, .n_vlans = i % 3};
}

static void feed(Run *r, Guest *g, Frame *f)
{
    if (g == &r->p) {
        model_primary(r->m, f, r->epoch);
        P(r->w, f);
    } else {
        model_secondary(r->m, f, r->s_epoch);
        S(r->w, f);
    }
}

/* @f goes out, now or after others, or twice. */
static void put(Run *r, Guest *g, Frame *f)
{
    if (g_random_int_range(0, 20) == 0) {
        feed(r, g, frame_from(f->data, f->len));
    }
    if (g_random_int_range(0, 4) == 0) {
        unsigned i = g_random_int_range(0, G_N_ELEMENTS(g->late));
        Frame *old = i < g->n_late ? g->late[i] : NULL;

        if (old) {
            g->late[i] = f;
            f = old;
        } else {
            g->late[g->n_late++] = f;
            return;
        }
    }
    feed(r, g, f);
}

static void flush_late(Run *r, Guest *g, bool drop)
{
    while (g->n_late) {
        Frame *f = g->late[--g->n_late];
        drop ? frame_unref(f) : feed(r, g, f);
    }
}

static void send_tcp(Run *r, Guest *g, unsigned i, uint32_t from, uint32_t to)
{
    ModelFlow *fl = &r->m->flow[i];
    uint8_t data[M_STREAM];
    bool fin = to == M_STREAM;
    TestTcp t = base(r, i);

    for (uint32_t k = from; k < to - fin; k++) {
        data[k - from] = (uint8_t)(k * 7 + k / 251) ^ (k == g->wrong[i] ? 0x20 : 0);
    }
    t.seq = fl->isn + 1 + from;
    t.ack = fl->cl + g->ack[i];
    t.flags = TCP_ACK | (fin ? TCP_FIN : 0);
    t.win = (g->edge[i] - g->ack[i]) >> SCALE;
    t.zero_win = !t.win;
    t.data = data;
    t.len = to - fin - from;
    put(r, g, test_tcp(t));
}

static void step_tcp(Run *r, Guest *g)
{
    unsigned i = g_random_int_range(0, M_FLOWS);
    uint32_t from = g->nxt[i], to;

    if (g_random_int_range(0, 3) == 0 && !g->deaf[i]) {
        g->ack[i] += 8 * g_random_int_range(0, 100);
        g->edge[i] = MAX(g->edge[i], g->ack[i] + 8 * g_random_int_range(0, 1000));
    }
    switch (g_random_int_range(0, 8)) {
    case 0 ... 3:
        if (from == M_STREAM) {
            return;
        }
        to = from + g_random_int_range(1, 120);
        to = MIN(to, M_STREAM);
        g->nxt[i] = to;
        break;
    case 4:
    case 5: /* again, cut otherwise */
        if (!from) {
            return;
        }
        to = g_random_int_range(1, from + 1);
        from = g_random_int_range(MAX((int)to - 200, 0), to);
        break;
    default:
        to = from;
        if (from == M_STREAM) { /* a pure ACK behind the FIN */
            return;
        }
    }
    send_tcp(r, g, i, from, to);
}

static void step_dgram(Run *r, Guest *g, bool wrong)
{
    g_autofree char *text = g_strdup_printf("%s %u", wrong ? "wrong" : "right", g->said / 5);
    unsigned kind = g->said++ % 5;

    put(r, g,
        kind == 0   ? test_udp(7, 4000, false, text)
        : kind == 1 ? test_udp(7, 4001, true, text)
        : kind == 2 ? test_icmp(text)
        : kind == 3 ? test_fragment(16, true, text)
                    : test_arp(true, g->said));
}

static void diverge(Run *r)
{
    unsigned i = g_random_int_range(0, M_FLOWS);

    switch (g_random_int_range(0, 3)) {
    case 0:
        r->s.wrong[i] = g_random_int_range(MIN(r->s.nxt[i], M_STREAM - 2), M_STREAM - 1);
        break;
    case 1:
        step_dgram(r, &r->s, true);
        break;
    default:
        r->s.deaf[i] = !r->s.deaf[i];
    }
}

static void step_log(Run *r)
{
    unsigned i = g_random_int_range(0, M_FLOWS);
    uint32_t upto = r->m->flow[i].cl + r->p.ack[i] + g_random_int_range(0, 500);

    model_logged(r->m, &r->m->flow[i].key, upto, r->s_epoch);
    compare_engine_logged(r->w->e, &r->m->flow[i].key, upto, r->w->now);
}

static void cut(Run *r)
{
    flush_late(r, &r->p, false);
    compare_engine_cut(r->w->e, ++r->epoch);
    r->cut = r->p;
    r->in_flight = true;
}

static void commit(Run *r)
{
    model_commit(r->m, r->epoch);
    compare_engine_commit(r->w->e, r->epoch, r->w->now);
    if (g_random_int_range(0, 2)) {
        flush_late(r, &r->s, false); /* what the old SVM said arrives late */
    }
    flush_late(r, &r->s, true);
    r->s = r->cut;
    r->s_epoch = r->epoch;
    compare_engine_secondary_marker(r->w->e, r->s_epoch);
    compare_engine_loaded(r->w->e, r->epoch, r->w->now);
    r->in_flight = false;
}

static void open_flows(Run *r)
{
    for (unsigned i = 0; i < M_FLOWS; i++) {
        uint32_t isn = i % 2 ? g_random_int() : 0u - g_random_int_range(1, M_STREAM);
        uint32_t cl = i % 3 ? g_random_int() : 0u - g_random_int_range(1, 5000);
        TestTcp t = base(r, i);
        Packet pk;

        t.flags = TCP_SYN | TCP_ACK;
        t.wscale = SCALE;
        t.seq = isn;
        t.ack = cl;
        Frame *f = test_tcp(t);
        packet_parse(f, true, &pk);
        model_open(r->m, &pk.key, isn, cl, SCALE);
        feed(r, &r->p, f);
        t.seq = g_random_int();
        feed(r, &r->s, test_tcp(t));
        r->p.edge[i] = r->s.edge[i] = 1000;
        r->p.wrong[i] = r->s.wrong[i] = M_STREAM;
    }
}

static void run(bool checkpoints, bool divergence)
{
    Run *r = g_new0(Run, 1);
    CompareStats st;

    r->w = world_new(&(CompareConfig){.max_flows = 16});
    r->m = model_new();
    r->w->check = on_out;
    r->w->model = r->m;
    open_flows(r);
    frame_queue_clear(&r->w->out);
    for (int i = 0; i < 3000; i++) {
        Guest *g = g_random_boolean() ? &r->p : &r->s;

        r->w->now += g_random_int_range(0, 20);
        if (checkpoints && g_random_int_range(0, 80) == 0) {
            if (r->in_flight && g_random_int_range(0, 4)) {
                commit(r);
            } else {
                cut(r); /* perhaps while another is under way: that one is torn */
            }
        } else if (divergence && g_random_int_range(0, 100) == 0) {
            diverge(r);
        } else if (g_random_int_range(0, 12) == 0) {
            step_log(r);
        } else if (g_random_int_range(0, 6) == 0) {
            step_dgram(r, g, false);
        } else {
            step_tcp(r, g);
        }
        frame_queue_clear(&r->w->out);
    }
    if (!divergence) {
        compare_engine_stats(r->w->e, &st);
        for (int c = 0; c < COMPARE_CAUSE_SILENT; c++) {
            g_assert_cmpuint(st.by_cause[c], ==, 0);
        }
    }
    cut(r);
    commit(r);
    flush_late(r, &r->p, false);
    frame_queue_clear(&r->w->out);
    cut(r);
    commit(r);
    model_all_out(r->m);
    compare_engine_stats(r->w->e, &st);
    g_assert_cmpuint(st.held_frames, ==, 0);
    flush_late(r, &r->s, true);
    model_free(r->m);
    world_free(r->w);
    g_free(r);
}

static void test_alike(void)
{
    for (int i = 0; i < 30; i++) {
        run(false, false);
    }
}

static void test_checkpoints(void)
{
    for (int i = 0; i < 60; i++) {
        run(true, false);
    }
}

static void test_divergence(void)
{
    for (int i = 0; i < 80; i++) {
        run(true, true);
    }
}

int main(int argc, char **argv)
{
    const char *seed = g_getenv("COLO_SEED");
    guint32 n = seed ? g_ascii_strtoull(seed, NULL, 10) : g_random_int();

    g_test_init(&argc, &argv, NULL);
    g_random_set_seed(n);
    g_test_message("COLO_SEED=%u", n);
    g_test_add_func("/compare-model/alike", test_alike);
    g_test_add_func("/compare-model/checkpoints", test_checkpoints);
    g_test_add_func("/compare-model/divergence", test_divergence);
    return g_test_run();
}
