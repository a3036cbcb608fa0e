/*
 * A comparison engine with callbacks that write down what happens, for its tests.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef TESTS_UNIT_COMPARE_WORLD_H
#define TESTS_UNIT_COMPARE_WORLD_H

#include "net-frames.h"
#include "net/compare-engine.h"

#define CL 5000u /* the client's next sequence number, as the guest acknowledges it */
#define ISN 1000u

typedef struct World {
    CompareEngine *e;
    int64_t now;
    FrameQueue out;
    unsigned triggers, isns;
    ProxyTrigger last;
    char detail[256];
    uint32_t pvm_isn, svm_isn;
    bool released_before_isn;
    /* the reference model's view of what leaves; see the property test */
    void (*check)(struct World *w, Frame *f);
    void *model;
} World;

static inline void on_release(Frame *f, void *opaque)
{
    World *w = opaque;

    if (w->check) {
        w->check(w, f);
    }
    frame_queue_push(&w->out, f);
}

static inline void on_trigger(ProxyTrigger t, const char *detail, void *opaque)
{
    World *w = opaque;

    w->triggers++;
    g_test_message("trigger: %s", detail);
    w->last = t;
    g_strlcpy(w->detail, detail, sizeof(w->detail));
}

static inline void on_isn(const FlowKey *k, uint32_t pvm, uint32_t svm, void *opaque)
{
    World *w = opaque;

    w->isns++;
    w->pvm_isn = pvm;
    w->svm_isn = svm;
    w->released_before_isn = w->out.count > 0;
}

static const CompareOps test_ops = {on_release, on_trigger, on_isn};

static inline World *world_new(const CompareConfig *cfg)
{
    World *w = g_new0(World, 1);

    w->now = G_USEC_PER_SEC;
    w->e = compare_engine_new(cfg, &test_ops, w);
    compare_engine_set_mode(w->e, COMPARE_MODE_COMPARE, w->now);
    return w;
}

static inline void world_free(World *w)
{
    compare_engine_free(w->e);
    frame_queue_clear(&w->out);
    g_free(w);
}

static inline void P(World *w, Frame *f)
{
    compare_engine_primary(w->e, f, w->now);
}

static inline void S(World *w, Frame *f)
{
    compare_engine_secondary(w->e, f, w->now);
}

static inline Frame *pop(World *w, Packet *p)
{
    Frame *f = frame_queue_pop(&w->out);

    g_assert_nonnull(f);
    packet_parse(f, true, p);
    return f;
}

static inline void expect_none(World *w)
{
    g_assert_cmpuint(w->out.count, ==, 0);
}

/* The next frame that left is TCP with these numbers and a right checksum. */
static inline void expect_tcp(World *w, uint32_t seq, uint32_t len, uint32_t ack)
{
    Packet p;
    Frame *f = pop(w, &p);

    g_assert_cmpint(p.kind, ==, PACKET_TCP);
    g_assert_cmpuint(p.seq, ==, seq);
    g_assert_cmpuint(p.body_len, ==, len);
    g_assert_cmpuint(p.ack, ==, ack);
    g_assert_true(test_checksum_ok(f));
    frame_unref(f);
}

static inline void expect_n(World *w, unsigned n)
{
    g_assert_cmpuint(w->out.count, ==, n);
    frame_queue_clear(&w->out);
}

#define SYNACK_TO(s, a, ...)                                                             \
    test_tcp((TestTcp){.flags = TCP_SYN | TCP_ACK,                                       \
                       .mss = 1460,                                                      \
                       .wscale = 7,                                                      \
                       .sack_ok = true,                                                  \
                       .seq = (s),                                                       \
                       .ack = (a),                                                       \
                       __VA_ARGS__})
#define SYNACK(s, ...) SYNACK_TO(s, CL, __VA_ARGS__)
#define DATA(s, text, a, ...)                                                            \
    test_tcp((TestTcp){                                                                  \
        .seq = (s), .ack = (a), .data = text, .len = strlen(text), __VA_ARGS__})
#define ACK(s, a, ...) test_tcp((TestTcp){.seq = (s), .ack = (a), __VA_ARGS__})

/* A connection whose SYN|ACK has left; the next byte is ISN + 1. */
static inline World *connected(void)
{
    World *w = world_new(NULL);

    P(w, SYNACK(ISN));
    S(w, SYNACK(777777));
    expect_n(w, 1);
    return w;
}

static inline void checkpoint(World *w, uint64_t epoch)
{
    compare_engine_cut(w->e, epoch);
    compare_engine_commit(w->e, epoch, w->now);
    compare_engine_secondary_marker(w->e, epoch);
    compare_engine_loaded(w->e, epoch, w->now);
}

#endif
