/*
 * What comparing costs: operations are counted, not time. No allocation a frame in the
 * steady state, and no cost that grows with the number of flows or of queued frames.
 * Build: tests/unit/test-compare-cost.c; dependencies: net, chardev, util.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "alloc-count.h"
#include "compare-world.h"

/* --- Many flows --- */

typedef struct Load {
    CompareEngine *e;
    bool udp;
    uint32_t flows, len;
    uint8_t image[FRAME_POOLED];
    uint32_t size;
    uint64_t p, s; /* frames that each side has sent */
    uint64_t out, triggers;
    int64_t now;
} Load;

static void load_release(Frame *f, void *opaque)
{
    ((Load *)opaque)->out++;
    frame_unref(f);
}

static void load_trigger(ProxyTrigger t, const char *detail, void *opaque)
{
    ((Load *)opaque)->triggers++;
}

static void load_isn(const FlowKey *k, uint32_t pvm, uint32_t svm, void *opaque)
{
}

static const CompareOps load_ops = {load_release, load_trigger, load_isn};

/* Frame @n: the next piece of flow n % flows. Checksums do not matter here. */
static void load_make(Load *l, uint64_t n)
{
    uint8_t *l4 = l->image + 34;
    uint32_t flow = n % l->flows, round = n / l->flows;

    put_be32(l->image + 30, 0x0a010000 + flow / 50000);
    put_be16(l4 + 2, 10000 + flow % 50000);
    if (l->udp) {
        put_be32(l4 + 8, round);
    } else {
        put_be32(l4 + 4, 1000 + round * l->len);
        put_be32(l4 + 20, round);
    }
}

static void load_side(Load *l, uint64_t *n, unsigned count,
                      void (*feed)(CompareEngine *, Frame *, int64_t))
{
    for (unsigned i = 0; i < count; i++) {
        load_make(l, (*n)++);
        feed(l->e, frame_from(l->image, l->size), l->now++);
    }
}

static void load_init(Load *l, bool udp, uint32_t len, uint32_t flows)
{
    uint8_t data[2000] = {0};
    Frame *f;

    *l = (Load){.udp = udp, .flows = flows, .len = len, .now = G_USEC_PER_SEC};
    CompareConfig cfg = {.compare_timeout_us = G_USEC_PER_SEC * 1000000ll,
                         .max_queue_size = UINT32_MAX,
                         .max_bytes = 1ull << 40};
    l->e = compare_engine_new(&cfg, &load_ops, l);
    compare_engine_set_mode(l->e, COMPARE_MODE_COMPARE, l->now);
    if (udp) {
        memset(data, 'x', len);
        f = test_udp(4000, 20000, false, (char *)data);
    } else {
        f = test_tcp((TestTcp){.seq = 1000, .ack = CL, .data = data, .len = len});
    }
    l->size = f->len;
    memcpy(l->image, f->data, f->len);
    frame_unref(f);
}

static uint64_t load_steps(Load *l)
{
    CompareStats s;

    compare_engine_stats(l->e, &s);
    return s.steps;
}

/* Both sides in turns of 32 frames, @count each; the primary stays @queued ahead. */
static void load_run(Load *l, uint64_t count, uint64_t queued)
{
    uint64_t end = l->s + count;

    while (l->s < end) {
        load_side(l, &l->p, 32, compare_engine_primary);
        if (l->p > queued) {
            load_side(l, &l->s, 32, compare_engine_secondary);
        }
        compare_engine_tick(l->e, l->now);
    }
    g_assert_cmpuint(l->out, ==, l->s);
}

static void load_free(Load *l)
{
    compare_engine_free(l->e);
}

/* --- No allocation --- */

static void no_allocation(bool udp, uint32_t len, uint32_t flows, uint64_t queued)
{
    Load l;

    load_init(&l, udp, len, flows);
    load_run(&l, 2 * flows + 2 * queued + 64, queued);
    unsigned before = allocated();
    load_run(&l, 20000, queued);
    g_assert_cmpuint(allocated() - before, ==, 0);
    load_free(&l);
}

static void test_engine_allocation(void)
{
    if (!CAN_COUNT) {
        g_test_skip("allocations cannot be counted in this build");
        return;
    }
    unsigned before = allocated();
    g_free(g_malloc(10));
    g_assert_cmpuint(allocated() - before, ==, 1); /* the counter works */
    no_allocation(false, 10, 1, 0);
    no_allocation(false, 1400, 1000, 500);
    no_allocation(true, 20, 1, 100);
    no_allocation(true, 1400, 1000, 0);
}

/* --- No growth --- */

static double steps_a_frame(bool udp, uint32_t flows, uint64_t queued)
{
    Load l;

    load_init(&l, udp, 10, flows);
    load_run(&l, 2 * flows + queued, queued);
    uint64_t before = load_steps(&l);
    load_run(&l, 32000, queued);
    double steps = (double)(load_steps(&l) - before) / 64000;
    load_free(&l);
    g_test_message("%s, %u flows, %u queued: %.2f steps a frame", udp ? "udp" : "tcp",
                   flows, (unsigned)queued, steps);
    return steps;
}

static void test_growth(void)
{
    for (int udp = 0; udp < 2; udp++) {
        double one = steps_a_frame(udp, 1, 0);

        /* A hash table that is full to the brim has chains of one and a half. */
        g_assert_cmpfloat(steps_a_frame(udp, 1000, 0), <, one + 1);
        g_assert_cmpfloat(steps_a_frame(udp, 16000, 0), <, one + 1.5);
        g_assert_cmpfloat(steps_a_frame(udp, 1, 10000), <, one + 1.5);
        g_assert_cmpfloat(steps_a_frame(udp, 1000, 10000), <, one + 1.5);
        g_assert_cmpfloat(steps_a_frame(udp, 16000, 32000), <, one + 3);
    }
}

/* Datagrams that are all the same: each matches one, oldest first, and finding it does
 * not take longer the more there are. */
static void test_equal_datagrams(void)
{
    World *w = world_new(&(CompareConfig){.max_queue_size = UINT32_MAX,
                                          .compare_timeout_us = 1ll << 50});
    CompareStats s;

    for (int side = 0; side < 2; side++) { /* who is first */
        compare_engine_stats(w->e, &s);
        uint64_t before = s.steps;
        for (int i = 0; i < 4000; i++) {
            (side ? S : P)(w, test_udp(4000, 20000, false, "same"));
        }
        (side ? S : P)(w, test_udp(4000, 20000, false, "other"));
        expect_none(w);
        for (int i = 0; i < 4000; i++) {
            (side ? P : S)(w, test_udp(4000, 20000, false, "same"));
        }
        expect_n(w, 4000);
        (side ? P : S)(w, test_udp(4000, 20000, false, "other"));
        expect_n(w, 1);
        compare_engine_stats(w->e, &s);
        g_assert_cmpuint(s.steps - before, <, 4 * 8002);
        g_assert_cmpuint(s.held_frames, ==, 0);
        g_assert_cmpuint(s.svm_bytes, ==, 0);
    }
    /* Oldest first, also where a commit takes some from the middle of others. */
    for (uint8_t i = 0; i < 4; i++) {
        Frame *f = test_udp(4000, 20000, false, "same");
        f->data[1] = i;
        P(w, f);
        if (i == 1) {
            compare_engine_cut(w->e, 1);
            compare_engine_commit(w->e, 1, w->now);
            compare_engine_secondary_marker(w->e, 1);
            compare_engine_loaded(w->e, 1, w->now);
        }
    }
    for (uint8_t i = 0; i < 4; i++) {
        Frame *f;
        if (i >= 2) {
            S(w, test_udp(4000, 20000, false, "same"));
        }
        g_assert_nonnull(f = frame_queue_pop(&w->out));
        g_assert_cmpuint(f->data[1], ==, i);
        frame_unref(f);
    }
    expect_none(w);
    world_free(w);
}

static void tcp_at(World *w, bool primary, uint32_t n)
{
    (primary ? P : S)(w, DATA(ISN + 10 * n, "0123456789", CL));
}

/* The secondary is silent; the primary's segments come in another order. */
static uint64_t steps_of_order(uint32_t count, uint32_t (*order)(uint32_t i, uint32_t n))
{
    World *w = world_new(&(CompareConfig){.max_queue_size = UINT32_MAX,
                                          .compare_timeout_us = 1ll << 50});
    CompareStats s;

    tcp_at(w, true, 0);
    tcp_at(w, false, 0);
    expect_n(w, 1);
    for (uint32_t i = 0; i < count; i++) {
        tcp_at(w, true, 1 + order(i, count));
    }
    compare_engine_stats(w->e, &s);
    uint64_t steps = s.steps;
    for (uint32_t i = 0; i < count; i++) {
        tcp_at(w, false, 1 + i);
    }
    expect_n(w, count);
    world_free(w);
    return steps;
}

static uint32_t backwards(uint32_t i, uint32_t n)
{
    return n - 1 - i;
}

/* Every second one first, then the holes between them. */
static uint32_t holes(uint32_t i, uint32_t n)
{
    return i < n / 2 ? 2 * i + 1 : 2 * (i - n / 2);
}

/* A lost half comes at last, in order. */
static uint32_t half_late(uint32_t i, uint32_t n)
{
    return (i + n / 2) % n;
}

static void test_disorder(void)
{
    const uint32_t n = 1000;

    g_assert_cmpuint(steps_of_order(n, backwards), <, 8 * n);
    g_assert_cmpuint(steps_of_order(n, holes), <, 8 * n);
    g_assert_cmpuint(steps_of_order(n, half_late), <, 8 * n);
}

/* Flows that come and never come again: the table does not grow, nor the search. */
static void test_churn(void)
{
    Load l;

    load_init(&l, true, 10, 60000);
    load_run(&l, 60000, 0);
    unsigned before = allocated();
    uint64_t steps = load_steps(&l);
    load_run(&l, 60000, 0);
    CompareStats s;
    compare_engine_stats(l.e, &s);
    g_assert_cmpuint(s.flows, <=, 16384);
    g_assert_cmpuint(s.steps - steps, <, 120000 * 6);
    g_assert_cmpuint(allocated() - before, ==, 0);
    load_free(&l);
}

/* Waits are found at the head of a list: 10000 flows that wait cost a tick nothing. */
static void test_tick(void)
{
    Load l;

    load_init(&l, false, 10, 10000);
    load_side(&l, &l.p, 10000, compare_engine_primary);
    uint64_t before = load_steps(&l);
    for (int i = 0; i < 1000; i++) {
        compare_engine_tick(l.e, ++l.now);
    }
    g_assert_cmpuint(load_steps(&l) - before, <=, 10 * 1000);
    load_free(&l);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/compare-cost/allocation", test_engine_allocation);
    g_test_add_func("/compare-cost/growth", test_growth);
    g_test_add_func("/compare-cost/equal-datagrams", test_equal_datagrams);
    g_test_add_func("/compare-cost/disorder", test_disorder);
    g_test_add_func("/compare-cost/churn", test_churn);
    g_test_add_func("/compare-cost/tick", test_tick);
    return g_test_run();
}
