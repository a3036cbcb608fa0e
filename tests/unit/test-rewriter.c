/*
 * Tests of the rewriter engine.
 * Sources: net/colo/{rewriter-engine,rewriter-flow,rewriter-keep,compare-dgram,
 * compare-engine,compare-flow,compare-table,compare-tcp,flow,packet,packet-edit,
 * stream}.c, net/frame.c; dependencies: util (error, trace), glib.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "net-frames.h"
#include "net/rewriter-engine.h"

#define CL 5000u
#define PVM_ISN 1000u
#define SVM_ISN 0xfffffff0u
#define OFF (SVM_ISN - PVM_ISN)

typedef struct World {
    RewriterEngine *r;
    int64_t now;
    FrameQueue out;
} World;

static World *world_new(uint64_t max_bytes)
{
    World *w = g_new0(World, 1);

    w->r = rewriter_engine_new(max_bytes);
    w->now = G_USEC_PER_SEC;
    return w;
}

static void world_free(World *w)
{
    rewriter_engine_free(w->r);
    frame_queue_clear(&w->out);
    g_free(w);
}

/* Give @t (towards the guest if .to_guest) to the rewriter; what came out, parsed. */
static Packet pass(World *w, TestTcp t)
{
    Frame *f = test_tcp(t), *x;
    Packet p;

    f = t.to_guest ? rewriter_engine_to_guest(w->r, f, w->now)
                   : rewriter_engine_from_guest(w->r, f, w->now);
    packet_parse(f, !t.to_guest, &p);
    g_assert_cmpint(p.kind, ==, PACKET_TCP);
    x = frame_from(f->data, f->len);
    packet_tcp_checksum(x, &p);
    g_assert_cmpmem(x->data, x->len, f->data, f->len);
    if (p.n_sack) { /* the tests look at the first block through these */
        p.urg = 0;
        p.tsval = get_be32(f->data + p.sack_at);
        p.tsecr = get_be32(f->data + p.sack_at + 4);
    }
    frame_unref(x);
    frame_unref(f);
    return p;
}

#define IN(...) pass(w, (TestTcp){.to_guest = true, __VA_ARGS__})
#define OUT(...) pass(w, (TestTcp){__VA_ARGS__})

static FlowKey key_of(bool v6)
{
    Frame *f = test_tcp((TestTcp){.v6 = v6});
    Packet p;

    packet_parse(f, true, &p);
    frame_unref(f);
    return p.key;
}

static void on_emit(Frame *f, void *opaque)
{
    frame_queue_push(&((World *)opaque)->out, f);
}

static Frame *pop(World *w, Packet *p)
{
    Frame *f = frame_queue_pop(&w->out);

    g_assert_nonnull(f);
    packet_parse(f, true, p);
    return f;
}

static void expect_emitted(World *w, uint32_t seq, uint32_t len, uint32_t ack)
{
    Packet p;
    Frame *f = pop(w, &p);

    g_assert_cmpuint(p.seq, ==, seq);
    g_assert_cmpuint(p.body_len, ==, len);
    g_assert_cmpuint(p.ack, ==, ack);
    g_assert_true(test_checksum_ok(f));
    frame_unref(f);
}

/* Handshake, with or without the primary's message. */
static World *connected(bool isn, bool v6)
{
    World *w = world_new(0);
    FlowKey k = key_of(v6);
    Packet p;

    IN(.seq = CL - 1, .flags = TCP_SYN, .wscale = 3, .v6 = v6);
    p = OUT(.seq = SVM_ISN, .ack = CL, .flags = TCP_SYN | TCP_ACK, .wscale = 7, .v6 = v6);
    g_assert_cmpuint(p.seq, ==, SVM_ISN); /* its own: the offset is not known yet */
    if (isn) {
        rewriter_engine_isn(w->r, &k, PVM_ISN, SVM_ISN, w->now);
    }
    p = IN(.seq = CL, .ack = PVM_ISN + 1, .v6 = v6);
    g_assert_cmpuint(p.ack, ==, SVM_ISN + 1);
    return w;
}

static void check_translation(World *w, bool v6)
{
    Packet p;

    p = OUT(.seq = SVM_ISN + 1, .ack = CL, .data = "abc", .len = 3, .v6 = v6);
    g_assert_cmpuint(p.seq, ==, PVM_ISN + 1);
    g_assert_cmpuint(p.ack, ==, CL);
    p = OUT(.seq = SVM_ISN, .ack = CL, .flags = TCP_SYN | TCP_ACK, .wscale = 7, .v6 = v6);
    g_assert_cmpuint(p.seq, ==, PVM_ISN); /* once more: in client space by now */
    p = IN(.seq = CL, .ack = PVM_ISN + 4, .n_sack = 1,
           .sack = {PVM_ISN + 10, PVM_ISN + 20}, .v6 = v6);
    g_assert_cmpuint(p.ack, ==, SVM_ISN + 4);
    g_assert_cmpuint(p.seq, ==, CL);
    g_assert_cmpuint(p.tsval, ==, SVM_ISN + 10); /* the SACK block */
    g_assert_cmpuint(p.tsecr, ==, SVM_ISN + 20);
    p = IN(.seq = CL, .flags = TCP_RST, .v6 = v6); /* no ACK, nothing to translate */
    g_assert_cmpuint(p.ack, ==, 0);
}

static void test_offsets(void)
{
    for (int i = 0; i < 4; i++) {
        World *w = connected(i & 1, i & 2);
        RewriterStats st;

        rewriter_engine_stats(w->r, &st);
        g_assert_cmpuint(st.learnt_isn, ==, i & 1);
        g_assert_cmpuint(st.learnt_ack, ==, !(i & 1));
        g_assert_cmpuint(st.flows_with_offset, ==, 1);
        check_translation(w, i & 2);
        world_free(w);
    }
}

static void test_rst_of_closed_port(void)
{
    World *w = connected(true, false);
    Packet p = OUT(.seq = 0, .ack = CL, .flags = TCP_RST | TCP_ACK);

    g_assert_cmpuint(p.seq, ==, 0);
    world_free(w);
}

static void test_shared_frame_is_not_changed(void)
{
    World *w = connected(true, false);
    Frame *f = test_tcp((TestTcp){.seq = SVM_ISN + 1, .ack = CL, .data = "x", .len = 1});
    Frame *out = rewriter_engine_from_guest(w->r, frame_ref(f), w->now);
    Packet p;

    packet_parse(f, true, &p);
    g_assert_cmpuint(p.seq, ==, SVM_ISN + 1);
    packet_parse(out, true, &p);
    g_assert_cmpuint(p.seq, ==, PVM_ISN + 1);
    frame_unref(out);
    frame_unref(f);
    world_free(w);
}

static void test_life(void)
{
    World *w = connected(true, false);
    RewriterStats st;
    Packet p;

    OUT(.seq = SVM_ISN + 1, .ack = CL, .flags = TCP_ACK | TCP_FIN);
    IN(.seq = CL, .ack = PVM_ISN + 2, .flags = TCP_ACK | TCP_FIN);
    OUT(.seq = SVM_ISN + 2, .ack = CL + 1);
    w->now += 60 * G_USEC_PER_SEC; /* TIME_WAIT: still translated */
    rewriter_engine_tick(w->r, w->now);
    p = IN(.seq = CL, .ack = PVM_ISN + 2, .flags = TCP_ACK | TCP_FIN);
    g_assert_cmpuint(p.ack, ==, SVM_ISN + 2);
    w->now += 121 * G_USEC_PER_SEC;
    rewriter_engine_tick(w->r, w->now);
    rewriter_engine_stats(w->r, &st);
    g_assert_cmpuint(st.flows, ==, 0);
    world_free(w);

    w = connected(true, false); /* open and idle: two hours */
    w->now += 7000 * (int64_t)G_USEC_PER_SEC;
    rewriter_engine_tick(w->r, w->now);
    rewriter_engine_stats(w->r, &st);
    g_assert_cmpuint(st.flows, ==, 1);
    w->now += 201 * G_USEC_PER_SEC;
    rewriter_engine_tick(w->r, w->now);
    rewriter_engine_stats(w->r, &st);
    g_assert_cmpuint(st.flows, ==, 0);
    world_free(w);
}

static void test_ports_again(void)
{
    World *w = connected(true, false);
    FlowKey k = key_of(false);
    Packet p;

    IN(.seq = CL + 10, .ack = PVM_ISN + 1, .flags = TCP_RST | TCP_ACK);
    IN(.seq = 90, .flags = TCP_SYN);
    p = OUT(.seq = 333, .ack = 91, .flags = TCP_SYN | TCP_ACK);
    g_assert_cmpuint(p.seq, ==, 333);
    rewriter_engine_isn(w->r, &k, 222, 333, w->now);
    p = OUT(.seq = 334, .ack = 91, .data = "x", .len = 1);
    g_assert_cmpuint(p.seq, ==, 223);
    world_free(w);
}

static void test_syn_flood_spares_connections(void)
{
    World *w = connected(true, false);
    RewriterStats st;
    Packet p;

    for (int i = 1; i < 30000; i++) {
        IN(.seq = 1, .flags = TCP_SYN, .client_port = i, .guest_port = 81);
    }
    rewriter_engine_stats(w->r, &st);
    g_assert_cmpuint(st.flows, <=, 16384);
    p = OUT(.seq = SVM_ISN + 1, .ack = CL, .data = "abc", .len = 3);
    g_assert_cmpuint(p.seq, ==, PVM_ISN + 1);
    world_free(w);
}

/* --- Roll-back --- */

/* What a primary's comparison saves after it sent @text at @seq, held. */
static CompareTable *saved(uint32_t seq, const char *text, uint32_t tsval)
{
    static const CompareOps none;
    CompareEngine *e = compare_engine_new(NULL, &none, NULL);
    g_autoptr(GByteArray) b = g_byte_array_new();
    CompareTable *t;

    compare_engine_set_mode(e, COMPARE_MODE_COMPARE, 1);
    compare_engine_primary(e,
                           test_tcp((TestTcp){.seq = seq,
                                              .ack = CL + 3,
                                              .data = text,
                                              .len = strlen(text),
                                              .ts = tsval,
                                              .tsval = tsval,
                                              .tsecr = 77}),
                           1);
    compare_engine_cut(e, 1);
    compare_engine_save(e, b);
    t = compare_table_parse(b->data, b->len, NULL);
    compare_engine_free(e);
    g_assert_nonnull(t);
    return t;
}

static void test_rollback(void)
{
    World *w = connected(true, false);
    CompareTable *t = saved(PVM_ISN + 1, "abc", 0);
    g_autoptr(GError) err = NULL;
    Packet p;

    IN(.seq = 1, .flags = TCP_SYN, .client_port = 7);
    OUT(.seq = 100, .ack = 2, .flags = TCP_SYN | TCP_ACK, .client_port = 7);
    IN(.seq = 2, .ack = 51, .client_port = 7); /* an offset of 50 */
    g_assert_true(rewriter_engine_load(w->r, t, NULL, 0, w->now, &err));
    g_assert_no_error(err);
    compare_table_free(t);
    p = OUT(.seq = PVM_ISN + 4, .ack = CL + 3, .data = "d", .len = 1);
    g_assert_cmpuint(p.seq, ==, PVM_ISN + 4); /* the PVM's own numbers now */
    p = IN(.seq = CL + 3, .ack = PVM_ISN + 5);
    g_assert_cmpuint(p.ack, ==, PVM_ISN + 5);
    p = IN(.seq = 2, .ack = 51, .client_port = 7); /* unknown to the checkpoint */
    g_assert_cmpuint(p.ack, ==, 51);
    world_free(w);
}

static void test_bad_load_changes_nothing(void)
{
    World *w = connected(true, false);
    CompareTable *t = saved(PVM_ISN + 1, "abc", 0);
    g_autoptr(GByteArray) b = g_byte_array_new();
    g_autoptr(GError) err = NULL;
    Packet p;

    rewriter_engine_save(w->r, b);
    for (guint len = 0; len < b->len; len++) {
        g_autofree uint8_t *cut = g_malloc(len + 1);
        memcpy(cut, b->data, len);
        g_clear_error(&err);
        g_assert_false(rewriter_engine_load(w->r, t, cut, len, w->now, &err));
        g_assert_nonnull(err);
    }
    g_assert_cmpuint(t->held.count, ==, 1);
    compare_table_free(t);
    p = OUT(.seq = SVM_ISN + 1, .ack = CL, .data = "abc", .len = 3);
    g_assert_cmpuint(p.seq, ==, PVM_ISN + 1);
    world_free(w);
}

static void test_offsets_travel(void)
{
    World *w = connected(true, false);
    g_autoptr(GByteArray) b = g_byte_array_new();
    CompareTable *t = saved(PVM_ISN + 1, "abc", 0);
    World *next = world_new(0);
    Packet p;

    /* The survivor is a primary now; its guest counts from SVM_ISN, the client does not.
     */
    rewriter_engine_takeover(w->r, w->now, on_emit, w);
    rewriter_engine_save(w->r, b);
    g_assert_true(rewriter_engine_load(next->r, t, b->data, b->len, next->now, NULL));
    compare_table_free(t);
    world_free(w);
    w = next;
    p = OUT(.seq = SVM_ISN + 4, .ack = CL + 3, .data = "d", .len = 1);
    g_assert_cmpuint(p.seq, ==, PVM_ISN + 4);
    p = IN(.seq = CL + 3, .ack = PVM_ISN + 5);
    g_assert_cmpuint(p.ack, ==, SVM_ISN + 5);
    world_free(w);
}

/* --- Takeover --- */

static void test_takeover_sends_unacknowledged(void)
{
    World *w = connected(true, false);
    Packet p;

    IN(.seq = CL, .ack = PVM_ISN + 1, .data = "req", .len = 3, .win = 1000);
    OUT(.seq = SVM_ISN + 1, .ack = CL + 3, .data = "abc", .len = 3, .win = 55);
    OUT(.seq = SVM_ISN + 4, .ack = CL + 3, .data = "def", .len = 3, .win = 55);
    OUT(.seq = SVM_ISN + 4, .ack = CL + 3, .data = "def", .len = 3,
        .win = 55); /* again */
    OUT(.seq = SVM_ISN + 7, .ack = CL + 3, .data = "ghi", .len = 3, .win = 55);
    IN(.seq = CL + 3, .ack = PVM_ISN + 4, .win = 1000);
    rewriter_engine_takeover(w->r, w->now, on_emit, w);
    expect_emitted(w, PVM_ISN + 4, 3, CL + 3);
    expect_emitted(w, PVM_ISN + 7, 3, CL + 3);
    expect_emitted(w, PVM_ISN + 10, 0, CL + 3);
    g_assert_cmpuint(w->out.count, ==, 0);
    /* The flow lives on, and its end is seen. */
    p = OUT(.seq = SVM_ISN + 10, .ack = CL + 3, .data = "j", .len = 1);
    g_assert_cmpuint(p.seq, ==, PVM_ISN + 10);
    p = IN(.seq = CL + 3, .ack = PVM_ISN + 11);
    g_assert_cmpuint(p.ack, ==, SVM_ISN + 11);
    g_assert_true(rewriter_engine_busy(w->r));
    p = OUT(.seq = 8, .ack = 9, .flags = TCP_SYN | TCP_ACK, .client_port = 1);
    g_assert_cmpuint(p.seq, ==, 8); /* new flows: no business of ours */
    IN(.seq = CL + 3, .ack = PVM_ISN + 11, .flags = TCP_RST | TCP_ACK);
    rewriter_engine_tick(w->r, w->now + 121 * G_USEC_PER_SEC);
    g_assert_false(rewriter_engine_busy(w->r));
    world_free(w);
}

static void test_takeover_respects_window(void)
{
    World *w = connected(true, false);

    IN(.seq = CL, .ack = PVM_ISN + 1, .win = 1); /* << 3: eight bytes */
    OUT(.seq = SVM_ISN + 1, .ack = CL, .data = "12345678", .len = 8);
    OUT(.seq = SVM_ISN + 9, .ack = CL, .data = "9", .len = 1);
    rewriter_engine_takeover(w->r, w->now, on_emit, w);
    /* The handshake's ACK had a window of 1000 << 3: right edges do not go back. */
    g_assert_cmpuint(w->out.count, ==, 3);
    world_free(w);

    w = world_new(0);
    IN(.seq = CL - 1, .flags = TCP_SYN, .wscale = 3);
    OUT(.seq = SVM_ISN, .ack = CL, .flags = TCP_SYN | TCP_ACK, .wscale = 7);
    IN(.seq = CL, .ack = PVM_ISN + 1, .win = 1);
    OUT(.seq = SVM_ISN + 1, .ack = CL, .data = "12345678", .len = 8);
    OUT(.seq = SVM_ISN + 9, .ack = CL, .data = "9", .len = 1);
    rewriter_engine_takeover(w->r, w->now, on_emit, w);
    expect_emitted(w, PVM_ISN + 1, 8, CL);
    expect_emitted(w, PVM_ISN + 10, 0, CL);
    world_free(w);
}

static void test_takeover_sends_held(void)
{
    World *w = world_new(0);
    CompareTable *t = saved(PVM_ISN + 1, "abc", 0);

    g_assert_true(rewriter_engine_load(w->r, t, NULL, 0, w->now, NULL));
    compare_table_free(t);
    rewriter_engine_takeover(w->r, w->now, on_emit, w);
    expect_emitted(w, PVM_ISN + 1, 3, CL + 3);
    expect_emitted(w, PVM_ISN + 4, 0, CL + 3);
    g_assert_cmpuint(w->out.count, ==, 0);
    g_assert_false(rewriter_engine_busy(w->r)); /* no offset, no timestamps */
    world_free(w);
}

static void test_takeover_datagrams(void)
{
    World *w = world_new(0);
    Packet p;

    frame_unref(rewriter_engine_from_guest(w->r, test_udp(1, 2, false, "old"), w->now));
    w->now += 150000;
    frame_unref(rewriter_engine_from_guest(w->r, test_udp(1, 2, false, "new"), w->now));
    frame_unref(rewriter_engine_from_guest(w->r, test_icmp("ping"), w->now));
    frame_unref(rewriter_engine_from_guest(w->r, test_arp(true, 1), w->now));
    w->now += 100000;
    rewriter_engine_takeover(w->r, w->now, on_emit, w);
    frame_unref(pop(w, &p));
    g_assert_cmpint(p.kind, ==, PACKET_UDP);
    frame_unref(pop(w, &p));
    g_assert_cmpint(p.kind, ==, PACKET_ICMP);
    g_assert_cmpuint(w->out.count, ==, 0);
    world_free(w);
}

static void test_kept_is_bounded(void)
{
    World *w = connected(true, false);
    uint8_t data[1000] = {0};
    RewriterStats st;

    rewriter_engine_free(w->r);
    w->r = rewriter_engine_new(60000);
    for (int i = 0; i < 100; i++) {
        OUT(.seq = 1 + 1000 * i, .ack = CL, .data = data, .len = 1000,
            .client_port = 1 + i % 3);
    }
    rewriter_engine_stats(w->r, &st);
    g_assert_cmpuint(st.kept_frames, ==, 60000 / (1054 + 2048)); /* memory, not bytes */
    g_assert_cmpuint(st.kept_bytes, ==, st.kept_frames * 1054);
    g_assert_cmpuint(st.kept_dropped, ==, 100 - st.kept_frames);
    for (int i = 0; i < 3; i++) {
        IN(.seq = CL, .ack = 100001, .client_port = 1 + i);
    }
    rewriter_engine_stats(w->r, &st);
    g_assert_cmpuint(st.kept_frames, ==, 0);
    g_assert_cmpuint(st.kept_bytes, ==, 0);
    world_free(w);
}

static void test_timestamps(void)
{
    World *w = world_new(0);
    CompareTable *t = saved(PVM_ISN + 1, "abc", 5000);
    uint32_t highest;
    Packet p;
    Frame *f;

    g_assert_true(rewriter_engine_load(w->r, t, NULL, 0, w->now, NULL));
    compare_table_free(t);
    /* The SVM's clock is a little behind; the client echoes the PVM's. */
    p = OUT(.seq = PVM_ISN + 4, .ack = CL + 3, .data = "d", .len = 1, .ts = true,
            .tsval = 5010, .tsecr = 78);
    g_assert_cmpuint(p.tsval, ==, 5010);
    p = IN(.seq = CL + 3, .ack = PVM_ISN + 4, .ts = true, .tsval = 80, .tsecr = 5100);
    g_assert_cmpuint(p.tsecr, ==, 5010); /* never more than the guest has sent */
    rewriter_engine_takeover(w->r, w->now, on_emit, w);
    highest = 0;
    while (w->out.head) {
        f = pop(w, &p);
        g_assert_true(p.has_ts);
        g_assert_cmpuint(p.tsval, >=, 5100);
        g_assert_true(test_checksum_ok(f));
        highest = MAX(highest, p.tsval);
        frame_unref(f);
    }
    g_assert_cmpuint(highest, >, 0);
    p = OUT(.seq = PVM_ISN + 5, .ack = CL + 3, .ts = true, .tsval = 5020, .tsecr = 80);
    g_assert_cmpuint(p.tsval, >=, highest);
    highest = p.tsval;
    p = IN(.seq = CL + 3, .ack = PVM_ISN + 5, .ts = true, .tsval = 81, .tsecr = highest);
    g_assert_cmpuint(p.tsecr, ==, 5020);
    g_assert_true(rewriter_engine_busy(w->r));
    world_free(w);
}

/* The PVM's RST may have died with it, and nobody would send another. */
static void test_takeover_repeats_a_reset(void)
{
    World *w = connected(true, false);
    Packet p;
    Frame *f;

    OUT(.seq = SVM_ISN + 1, .ack = CL, .data = "abc", .len = 3);
    IN(.seq = CL, .ack = PVM_ISN + 4);
    OUT(.seq = SVM_ISN + 4, .ack = CL, .flags = TCP_RST | TCP_ACK);
    IN(.seq = CL, .ack = PVM_ISN + 4);
    rewriter_engine_takeover(w->r, w->now, on_emit, w);
    f = pop(w, &p);
    g_assert_cmpuint(p.flags, ==, TCP_RST | TCP_ACK);
    g_assert_cmpuint(p.seq, ==, PVM_ISN + 4);
    g_assert_null(w->out.head);
    frame_unref(f);
    world_free(w);
}

/* Two machines' clocks have nothing to do with each other. */
static void test_clocks_of_two_machines(void)
{
    static const uint32_t clock[][2] = {
        {5000, 900000}, {900000, 5000}, {0xfffffff0u, 7}, {3, 0x90000000u}};

    for (unsigned i = 0; i < 2 * G_N_ELEMENTS(clock); i++) {
        World *w = world_new(0);
        FlowKey k = key_of(false);
        uint32_t pvm = clock[i / 2][0], svm = clock[i / 2][1];
        Packet p;

        IN(.seq = CL - 1, .flags = TCP_SYN, .wscale = 3, .ts = true, .tsval = 70);
        OUT(.seq = SVM_ISN, .ack = CL, .flags = TCP_SYN | TCP_ACK, .wscale = 7, .ts = true,
            .tsval = svm, .tsecr = 70);
        if (i & 1) {
            rewriter_engine_isn(w->r, &k, PVM_ISN, SVM_ISN, w->now);
        }
        p = IN(.seq = CL, .ack = PVM_ISN + 1, .ts = true, .tsval = 71, .tsecr = pvm);
        g_assert_cmpuint(p.tsecr, ==, svm); /* else the guest does not believe it */
        p = OUT(.seq = SVM_ISN + 1, .ack = CL, .data = "abc", .len = 3, .ts = true,
                .tsval = svm + 20, .tsecr = 71);
        g_assert_cmpuint(p.tsval, ==, pvm + 20);
        p = IN(.seq = CL, .ack = PVM_ISN + 4, .ts = true, .tsval = 72, .tsecr = pvm + 20);
        g_assert_cmpuint(p.tsecr, ==, svm + 20);
        rewriter_engine_takeover(w->r, w->now, on_emit, w);
        p = OUT(.seq = SVM_ISN + 4, .ack = CL, .data = "d", .len = 1, .ts = true,
                .tsval = svm + 30, .tsecr = 72);
        g_assert_cmpint((int32_t)(p.tsval - (pvm + 30)), >=, 0);
        g_assert_cmpint((int32_t)(p.tsval - (pvm + 30)), <, 1000);
        p = IN(.seq = CL, .ack = PVM_ISN + 5, .ts = true, .tsval = 73, .tsecr = p.tsval);
        g_assert_cmpuint(p.tsecr, ==, svm + 30);
        world_free(w);
    }
}

/* The primary's SYN|ACK is out, the client's answer comes only after the takeover, and the
 * primary's message is lost with it. */
static void test_takeover_in_handshake(void)
{
    World *w = world_new(0);
    Packet p;

    IN(.seq = CL - 1, .flags = TCP_SYN, .wscale = 3);
    OUT(.seq = SVM_ISN, .ack = CL, .flags = TCP_SYN | TCP_ACK, .wscale = 7);
    rewriter_engine_takeover(w->r, w->now, on_emit, w);
    p = IN(.seq = CL, .ack = PVM_ISN + 1);
    g_assert_cmpuint(p.ack, ==, SVM_ISN + 1);
    p = OUT(.seq = SVM_ISN + 1, .ack = CL, .data = "abc", .len = 3);
    g_assert_cmpuint(p.seq, ==, PVM_ISN + 1);
    world_free(w);
}

/* --- The client's data, RULES 21 --- */

typedef struct Told {
    unsigned n;
    uint32_t upto;
} Told;

static Told told;

static void on_logged(const FlowKey *k, uint32_t upto, void *opaque)
{
    told.n++;
    told.upto = upto;
}

static const RewriterLogOps log_ops = {.feed = on_emit, .logged = on_logged};

/* The SVM's window is from CL to CL + 128000. */
static World *logging(void)
{
    World *w = connected(true, false);

    told = (Told){0};
    rewriter_engine_log(w->r, &log_ops, w);
    OUT(.seq = SVM_ISN + 1, .ack = CL);
    return w;
}

static void upload(World *w, uint32_t seq, uint32_t len)
{
    static const uint8_t zeros[2000];

    IN(.seq = seq, .ack = PVM_ISN + 1, .data = zeros, .len = len);
}

static void expect_told(World *w, unsigned n, uint32_t upto)
{
    rewriter_engine_log_flush(w->r);
    g_assert_cmpuint(told.n, ==, n);
    g_assert_cmpuint(told.upto, ==, upto);
    told.n = 0;
}

/* The segment that is fed now: in the SVM's own numbers. */
static void expect_fed(World *w, uint32_t seq, uint32_t len)
{
    Packet p;
    Frame *f = frame_queue_pop(&w->out);

    g_assert_nonnull(f);
    packet_parse(f, false, &p);
    g_assert_cmpuint(p.seq, ==, seq);
    g_assert_cmpuint(p.body_len, ==, len);
    g_assert_cmpuint(p.ack, ==, SVM_ISN + 1);
    g_assert_true(test_checksum_ok(f));
    frame_unref(f);
}

static uint64_t logged_bytes(World *w)
{
    RewriterStats st;

    rewriter_engine_stats(w->r, &st);
    return st.logged_bytes;
}

static void test_log_tells(void)
{
    World *w = logging();

    upload(w, CL, 100);
    upload(w, CL + 100, 100);
    expect_told(w, 1, CL + 200); /* once a batch */
    upload(w, CL, 200);          /* again: nothing new */
    rewriter_engine_log_flush(w->r);
    g_assert_cmpuint(told.n, ==, 0);
    upload(w, CL + 300, 100); /* behind a hole */
    rewriter_engine_log_flush(w->r);
    g_assert_cmpuint(told.n, ==, 0);
    upload(w, CL + 200, 100); /* which is filled */
    expect_told(w, 1, CL + 400);
    IN(.seq = CL + 400, .ack = PVM_ISN + 1, .flags = TCP_FIN | TCP_ACK);
    expect_told(w, 1, CL + 401);
    OUT(.seq = SVM_ISN + 1, .ack = CL + 401);
    g_assert_cmpuint(logged_bytes(w), ==, 0);
    rewriter_engine_tick(w->r, w->now + G_USEC_PER_SEC);
    g_assert_cmpuint(w->out.count, ==, 0);
    world_free(w);
}

/* Only what the SVM can take may be told: it would throw the rest away. */
static void test_log_within_window(void)
{
    World *w = logging();

    OUT(.seq = SVM_ISN + 1, .ack = CL, .win = 1000); /* 128000 bytes */
    upload(w, CL + 127000, 1000);
    upload(w, CL + 128000, 1); /* outside */
    rewriter_engine_log_flush(w->r);
    g_assert_cmpuint(told.n, ==, 0);
    for (uint32_t at = 0; at < 127000; at += 1000) {
        upload(w, CL + at, 1000);
    }
    expect_told(w, 1, CL + 128000);
    world_free(w);
}

static void test_log_feeds_by_time(void)
{
    World *w = logging();
    int64_t due;

    upload(w, CL, 100);
    upload(w, CL + 100, 50);
    due = rewriter_engine_log_flush(w->r);
    g_assert_cmpint(due - w->now, ==, 30000);
    rewriter_engine_tick(w->r, due - 1);
    g_assert_cmpuint(w->out.count, ==, 0);
    w->now = due;
    rewriter_engine_tick(w->r, w->now);
    expect_fed(w, CL, 100);
    g_assert_cmpuint(w->out.count, ==, 0);
    OUT(.seq = SVM_ISN + 1, .ack = CL + 100); /* had lost both */
    rewriter_engine_tick(w->r, w->now);
    expect_fed(w, CL + 100, 50);
    /* No answer: each wait is twice as long, to a second. */
    for (int64_t wait = 60000, i = 0; i < 8; i++) {
        rewriter_engine_tick(w->r, w->now + wait - 1);
        g_assert_cmpuint(w->out.count, ==, 0);
        w->now += wait;
        rewriter_engine_tick(w->r, w->now);
        expect_fed(w, CL + 100, 50);
        wait = MIN(wait * 2, G_USEC_PER_SEC);
    }
    OUT(.seq = SVM_ISN + 1, .ack = CL + 150);
    g_assert_cmpuint(logged_bytes(w), ==, 0);
    world_free(w);
}

static void test_log_feeds_on_equal_acks(void)
{
    World *w = logging();

    for (int i = 0; i < 6; i++) {
        upload(w, CL + 100 * i, 100);
    }
    OUT(.seq = SVM_ISN + 1, .ack = CL + 100); /* the second and the fourth were lost */
    OUT(.seq = SVM_ISN + 1, .ack = CL + 100);
    OUT(.seq = SVM_ISN + 1, .ack = CL + 100);
    rewriter_engine_tick(w->r, w->now);
    g_assert_cmpuint(w->out.count, ==, 0);
    OUT(.seq = SVM_ISN + 1, .ack = CL + 100);
    rewriter_engine_tick(w->r, w->now);
    expect_fed(w, CL + 100, 100);
    OUT(.seq = SVM_ISN + 1, .ack = CL + 300);
    rewriter_engine_tick(w->r, w->now);
    expect_fed(w, CL + 300, 100);
    OUT(.seq = SVM_ISN + 1, .ack = CL + 600);
    g_assert_cmpuint(logged_bytes(w), ==, 0);
    world_free(w);
}

/* At the bound nothing that was told goes: new segments are not told. */
static void test_log_is_bounded(void)
{
    World *w = logging();
    uint32_t at = 0;

    OUT(.seq = SVM_ISN + 1, .ack = CL, .win = 65535); /* 8 MiB */
    for (; at < 65535 * 128 - 100; at += 100) {
        upload(w, CL + at, 100);
    }
    rewriter_engine_log_flush(w->r);
    RewriterStats st;
    rewriter_engine_stats(w->r, &st);
    g_assert_cmpuint(st.log_refused, >, 0);
    g_assert_cmpuint(st.logged_bytes + st.logged_frames * 2048, <=, (32u << 20) + 4096);
    g_assert_cmpuint(told.upto - CL, ==, st.logged_frames * 100);
    told.n = 0;
    OUT(.seq = SVM_ISN + 1, .ack = CL + at); /* the SVM had it all the same */
    upload(w, CL + at, 100);
    expect_told(w, 1, CL + at + 100);
    world_free(w);
}

/* A roll-back empties the log: what the client was told is in the checkpoint. After a
 * takeover what the SVM lacks still comes, though nothing new is logged. */
static void test_log_rollback_and_takeover(void)
{
    World *w = logging();

    upload(w, CL, 100);
    g_assert_true(rewriter_engine_load(w->r, NULL, NULL, 0, w->now, NULL));
    g_assert_cmpuint(logged_bytes(w), ==, 0);
    world_free(w);

    w = logging();
    upload(w, CL, 100);
    rewriter_engine_log_flush(w->r);
    rewriter_engine_takeover(w->r, w->now, on_emit, w);
    frame_queue_clear(&w->out);
    g_assert_cmpuint(logged_bytes(w), >, 0);
    upload(w, CL + 100, 100);
    rewriter_engine_tick(w->r, w->now + 30000);
    expect_fed(w, CL, 100);
    OUT(.seq = SVM_ISN + 1, .ack = CL + 100);
    g_assert_cmpuint(logged_bytes(w), ==, 0);
    world_free(w);
}

/* A reset connection has nobody to feed. */
static void test_log_reset(void)
{
    World *w = logging();

    upload(w, CL, 100);
    OUT(.seq = SVM_ISN + 1, .ack = CL, .flags = TCP_RST | TCP_ACK);
    g_assert_cmpuint(logged_bytes(w), ==, 0);
    g_assert_cmpint(rewriter_engine_log_flush(w->r), ==, INT64_MAX);
    g_assert_cmpuint(told.n, ==, 0);
    world_free(w);
}

/* Anybody can send a RST beyond the window: the guest ignores it, and so must the log. */
static void test_log_forged_reset(void)
{
    World *w = logging();

    upload(w, CL, 100);
    expect_told(w, 1, CL + 100);
    IN(.seq = CL - 1, .ack = PVM_ISN + 1, .flags = TCP_RST | TCP_ACK);
    IN(.seq = CL + (1u << 30), .flags = TCP_RST);
    g_assert_cmpuint(logged_bytes(w), >, 0);
    rewriter_engine_tick(w->r, w->now + 30000);
    expect_fed(w, CL, 100);
    IN(.seq = CL + 100, .flags = TCP_RST);
    g_assert_cmpuint(logged_bytes(w), ==, 0);
    world_free(w);
}

/* The SVM repeats what the client has acknowledged, or probes: only we can answer. */
static void test_client_ack_again(void)
{
    World *w = logging();
    FlowKey k = key_of(false);
    Packet p;
    Frame *f;

    OUT(.seq = SVM_ISN + 1, .ack = CL, .data = "abcd", .len = 4);
    IN(.seq = CL, .ack = PVM_ISN + 5, .win = 700);
    OUT(.seq = SVM_ISN + 1, .ack = CL, .data = "abcd", .len = 4); /* crossed on the way */
    g_assert_cmpuint(w->out.count, ==, 0);
    w->now += 30000;
    OUT(.seq = SVM_ISN + 1, .ack = CL, .data = "abcd", .len = 4);
    f = frame_queue_pop(&w->out);
    g_assert_nonnull(f);
    packet_parse(f, false, &p);
    g_assert_true(flow_key_equal(&p.key, &k));
    g_assert_cmpuint(p.seq, ==, CL);
    g_assert_cmpuint(p.ack, ==, SVM_ISN + 5);
    g_assert_cmpuint(p.win, ==, 700);
    g_assert_cmpuint(p.flags, ==, TCP_ACK);
    g_assert_true(test_checksum_ok(f));
    g_assert_cmpuint(f->data[5], ==, 3); /* to the guest's address */
    frame_unref(f);
    OUT(.seq = SVM_ISN + 4, .ack = CL); /* a probe, but too soon */
    g_assert_cmpuint(w->out.count, ==, 0);
    w->now += 30000;
    OUT(.seq = SVM_ISN + 4, .ack = CL);
    g_assert_cmpuint(w->out.count, ==, 1);
    w->now += 30000;
    OUT(.seq = SVM_ISN + 5, .ack = CL); /* a plain ACK */
    OUT(.seq = SVM_ISN + 5, .ack = CL, .data = "e", .len = 1); /* new data */
    g_assert_cmpuint(w->out.count, ==, 1);
    world_free(w);
}

/* --- ICMP errors --- */

static uint16_t sum16(const uint8_t *b, uint32_t len, uint32_t sum)
{
    for (uint32_t i = 0; i < len; i++) {
        sum += i & 1 ? b[i] : b[i] << 8;
    }
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return ~sum;
}

/* The checksum of the ICMP message at @at of @f, its own field left in: 0 if right. */
static uint16_t icmp_sum(const Frame *f, uint32_t at, bool v6)
{
    const uint8_t *ip = f->data + 14;
    uint32_t sum = 0;

    if (v6) {
        sum = (uint16_t)~sum16(ip + 8, 32, 0) + 58 + (f->len - at);
    }
    return sum16(f->data + at, f->len - at, sum);
}

/* An error that quotes @n bytes of the TCP header (and what follows) of @quoted; takes it. */
static Frame *icmp_error(bool to_guest, bool v6, Frame *quoted, uint32_t n)
{
    uint8_t b[2048];
    uint32_t at = test_eth(b, to_guest, 0, v6 ? 0x86dd : 0x0800), ip = v6 ? 40 : 20;
    uint32_t quote = MIN(ip + n, quoted->len - 14);
    uint32_t l4 = at + test_ip(b + at, to_guest, v6, v6 ? 58 : 1, 8 + quote);

    memset(b + l4, 0, 8);
    b[l4] = v6 ? 2 : 3; /* too big */
    b[l4 + 1] = v6 ? 0 : 4;
    memcpy(b + l4 + 8, quoted->data + 14, quote);
    frame_unref(quoted);
    Frame *f = frame_from(b, l4 + 8 + quote);
    put_be16(f->data + l4 + 2, icmp_sum(f, l4, v6));
    g_assert_cmpuint(icmp_sum(f, l4, v6), ==, 0);
    return f;
}

static void test_icmp_errors(void)
{
    static const char text[] = "0123456789abcdef";

    for (int i = 0; i < 2 * 60; i++) {
        bool v6 = i & 1;
        uint32_t n = i / 2;
        World *w = connected(true, v6);
        uint32_t tcp = 14 + (v6 ? 40 : 20) + 8 + (v6 ? 40 : 20), icmp = tcp - 8 - (v6 ? 40 : 20);
        /* The guest's own segment, as the outside saw it; and as the guest sent it. */
        TestTcp t = {.seq = PVM_ISN + 1, .ack = CL, .v6 = v6, .data = text, .len = 16};
        Frame *want = icmp_error(true, v6, test_tcp((TestTcp){.seq = SVM_ISN + 1, .ack = CL,
                                                             .v6 = v6, .data = text,
                                                             .len = 16}), n);
        Frame *f = icmp_error(true, v6, test_tcp(t), n), *shared = frame_ref(f);
        uint32_t before = get_be32(f->data + tcp + 4);
        f = rewriter_engine_to_guest(w->r, f, w->now);
        if (n >= 8) {
            g_assert_true(f != shared);
            g_assert_cmpuint(get_be32(f->data + tcp + 4), ==, SVM_ISN + 1);
            g_assert_cmpuint(get_be32(shared->data + tcp + 4), ==, before);
            /* But for the quoted IP header (random id) it is what the guest sent; half a
             * checksum stays as it was. */
            uint32_t len = n == 17 ? 16 : f->len - tcp;
            g_assert_cmpuint(f->len, ==, want->len);
            g_assert_cmpmem(f->data + tcp, len, want->data + tcp, len);
        } else {
            g_assert_true(f == shared);
        }
        g_assert_cmpuint(icmp_sum(f, icmp, v6), ==, 0);
        frame_unref(f);
        frame_unref(shared);
        frame_unref(want);
        /* The client's segment, as it was delivered; and as the client sent it. */
        want = test_tcp((TestTcp){.to_guest = true, .seq = CL, .ack = PVM_ISN + 1, .v6 = v6,
                                  .n_sack = 1, .sack = {PVM_ISN + 5, PVM_ISN + 9}});
        Frame *in = rewriter_engine_to_guest(w->r, frame_from(want->data, want->len), w->now);
        g_assert_cmpuint(get_be32(in->data + tcp - icmp + 14 + 8 - 8), ==, SVM_ISN + 1);
        f = rewriter_engine_from_guest(w->r, icmp_error(false, v6, in, n), w->now);
        g_assert_cmpuint(icmp_sum(f, icmp, v6), ==, 0);
        if (n >= 12) {
            uint32_t ip = v6 ? 40 : 20, quoted = MIN(n, 32);
            bool whole = n >= 32; /* a SACK option that is cut off cannot be told */
            g_assert_cmpmem(f->data + tcp, whole ? quoted : 12,
                            want->data + 14 + ip, whole ? quoted : 12);
        }
        frame_unref(f);
        frame_unref(want);
        RewriterStats s;
        rewriter_engine_stats(w->r, &s);
        g_assert_cmpuint(s.icmp_rewritten, ==, n >= 8 ? 2 : 0);
        world_free(w);
    }
}

/* Messages that quote no flow, or nothing that makes sense, pass as they are. */
static void test_icmp_nonsense(void)
{
    World *w = connected(true, false);

    for (int i = 0; i < 20000; i++) {
        bool to_guest = g_random_int() & 1;
        Frame *f = icmp_error(to_guest, i & 1, test_tcp((TestTcp){.to_guest = !to_guest,
                                                                  .v6 = i & 1}), 20);
        for (int k = g_random_int_range(0, 6); k > 0; k--) {
            f->data[g_random_int_range(34, f->len)] = g_random_int();
        }
        f->len = g_random_int_range(34, f->len + 1);
        uint32_t len = f->len;
        f = to_guest ? rewriter_engine_to_guest(w->r, f, w->now)
                     : rewriter_engine_from_guest(w->r, f, w->now);
        g_assert_cmpuint(f->len, ==, len);
        frame_unref(f);
    }
    world_free(w);
}

/* The SVM lost the end of the handshake; it gets it after the takeover, from a clock that was
 * moved by then, and must believe it. */
static void test_handshake_ends_after_takeover(void)
{
    World *w = world_new(0);
    Packet p;

    IN(.seq = CL - 1, .flags = TCP_SYN, .wscale = 3, .ts = true, .tsval = 70);
    OUT(.seq = SVM_ISN, .ack = CL, .flags = TCP_SYN | TCP_ACK, .wscale = 7, .ts = true,
        .tsval = 5000, .tsecr = 70);
    IN(.seq = CL, .ack = PVM_ISN + 1, .ts = true, .tsval = 71, .tsecr = 90000); /* lost */
    rewriter_engine_takeover(w->r, w->now, on_emit, w);
    OUT(.seq = SVM_ISN, .ack = CL, .flags = TCP_SYN | TCP_ACK, .wscale = 7, .ts = true,
        .tsval = 6000, .tsecr = 70);
    p = IN(.seq = CL, .ack = PVM_ISN + 1, .ts = true, .tsval = 72, .tsecr = 90000);
    g_assert_cmpuint(p.ack, ==, SVM_ISN + 1);
    g_assert_cmpuint(p.tsecr, >=, 5000);
    g_assert_cmpuint(p.tsecr, <=, 6000);
    world_free(w);
}

static void test_fuzz(void)
{
    for (int round = 0; round < 20; round++) {
        World *w = world_new(100000);
        CompareTable *t;

        rewriter_engine_log(w->r, &log_ops, w);
        for (int i = 0; i < 4000; i++) {
            bool in = g_random_boolean();
            Frame *f = test_tcp((TestTcp){
                .to_guest = in,
                .client_port = g_random_int_range(1, 5),
                .seq = g_random_int_range(0, 300),
                .ack = g_random_int_range(0, 300),
                .flags = g_random_int_range(0, 3) ? TCP_ACK : g_random_int_range(1, 256),
                .ts = g_random_boolean(),
                .tsval = g_random_int_range(0, 100),
                .n_sack = g_random_int_range(0, 3),
                .data = "0123456789",
                .len = g_random_int_range(0, 10)});

            w->now += g_random_int_range(0, 1000000);
            if (g_random_int_range(0, 4) == 0) {
                for (int j = 0; j < 3; j++) {
                    f->data[g_random_int_range(0, f->len)] = g_random_int();
                }
                f->len = g_random_int_range(0, f->len + 1);
            }
            f = in ? rewriter_engine_to_guest(w->r, f, w->now)
                   : rewriter_engine_from_guest(w->r, f, w->now);
            frame_unref(f);
            switch (g_random_int_range(0, 200)) {
            case 0:
                t = saved(g_random_int_range(0, 300), "abc", i & 1);
                rewriter_engine_load(w->r, t, NULL, 0, w->now, NULL);
                compare_table_free(t);
                break;
            case 1: {
                g_autoptr(GByteArray) b = g_byte_array_new();
                rewriter_engine_save(w->r, b);
                g_assert_true(
                    rewriter_engine_load(w->r, NULL, b->data, b->len, w->now, NULL));
                break;
            }
            case 2:
                if (g_random_int_range(0, 20) == 0) {
                    rewriter_engine_takeover(w->r, w->now, on_emit, w);
                    frame_queue_clear(&w->out);
                }
                break;
            case 3 ... 20:
                rewriter_engine_log_flush(w->r);
                rewriter_engine_tick(w->r, w->now);
                frame_queue_clear(&w->out);
                break;
            default:
                break;
            }
        }
        world_free(w);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define T(name, fn) g_test_add_func("/rewriter/" name, fn)
    T("takeover-repeats-a-reset", test_takeover_repeats_a_reset);
    T("clocks-of-two-machines", test_clocks_of_two_machines);
    T("handshake-ends-after-takeover", test_handshake_ends_after_takeover);
    T("takeover-in-handshake", test_takeover_in_handshake);
    T("offsets", test_offsets);
    T("rst-of-closed-port", test_rst_of_closed_port);
    T("shared-frame", test_shared_frame_is_not_changed);
    T("life", test_life);
    T("ports-again", test_ports_again);
    T("syn-flood", test_syn_flood_spares_connections);
    T("rollback", test_rollback);
    T("bad-load", test_bad_load_changes_nothing);
    T("offsets-travel", test_offsets_travel);
    T("takeover-unacknowledged", test_takeover_sends_unacknowledged);
    T("takeover-window", test_takeover_respects_window);
    T("takeover-held", test_takeover_sends_held);
    T("takeover-datagrams", test_takeover_datagrams);
    T("kept-is-bounded", test_kept_is_bounded);
    T("timestamps", test_timestamps);
    T("icmp-errors", test_icmp_errors);
    T("icmp-nonsense", test_icmp_nonsense);
    T("fuzz", test_fuzz);
    T("log-tells", test_log_tells);
    T("log-within-window", test_log_within_window);
    T("log-feeds-by-time", test_log_feeds_by_time);
    T("log-feeds-on-equal-acks", test_log_feeds_on_equal_acks);
    T("log-is-bounded", test_log_is_bounded);
    T("log-rollback-and-takeover", test_log_rollback_and_takeover);
    T("log-reset", test_log_reset);
    T("log-forged-reset", test_log_forged_reset);
    T("client-ack-again", test_client_ack_again);
    return g_test_run();
}
