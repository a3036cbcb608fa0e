/*
 * Tests of the comparison engine: one example a rule.
 * Sources: net/colo/{compare-dgram,compare-engine,compare-flow,compare-table,compare-tcp,
 * flow,packet,packet-edit,stream}.c, net/frame.c; dependencies: util (error, trace),
 * glib.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "compare-world.h"

/* --- Handshakes --- */

static void test_synack(void)
{
    World *w = world_new(NULL);

    P(w, SYNACK(ISN));
    expect_none(w);
    S(w, SYNACK(777777));
    g_assert_cmpuint(w->isns, ==, 1);
    g_assert_false(w->released_before_isn);
    g_assert_cmpuint(w->pvm_isn, ==, ISN);
    g_assert_cmpuint(w->svm_isn, ==, 777777);
    expect_tcp(w, ISN, 0, CL);
    P(w, SYNACK(ISN)); /* again */
    expect_tcp(w, ISN, 0, CL);
    S(w, SYNACK(777777)); /* again, before the rewriter knew */
    S(w, SYNACK(ISN));    /* and after */
    g_assert_cmpuint(w->isns, ==, 1);
    P(w, DATA(ISN + 1, "x", CL));
    expect_none(w);
    S(w, DATA(ISN + 1, "x", CL));
    expect_tcp(w, ISN + 1, 1, CL);
    world_free(w);

    w = world_new(NULL); /* the secondary first */
    S(w, SYNACK(777777));
    P(w, SYNACK(ISN));
    g_assert_cmpuint(w->isns, ==, 1);
    expect_tcp(w, ISN, 0, CL);
    g_assert_cmpuint(w->triggers, ==, 0);
    world_free(w);
}

static void test_synack_differs(void)
{
    for (int i = 0; i < 5; i++) {
        World *w = world_new(NULL);
        TestTcp t = {.flags = TCP_SYN | TCP_ACK,
                     .ack = CL,
                     .mss = 1460,
                     .wscale = 7,
                     .sack_ok = true,
                     .seq = 5};

        P(w, SYNACK(ISN));
        if (i == 0) {
            t.mss = 1400;
        } else if (i == 1) {
            t.wscale = 6;
        } else if (i == 2) {
            t.sack_ok = false;
        } else if (i == 3) {
            t.ts = true;
        } else {
            t.flags |= TCP_ECE;
        }
        S(w, test_tcp(t));
        g_assert_cmpuint(w->isns, ==, 0);
        expect_none(w);
        g_assert_cmpuint(w->triggers, ==, 1);
        g_assert_cmpint(w->last, ==, PROXY_TRIGGER_MISMATCH);
        checkpoint(w, 1);
        expect_tcp(w, ISN, 0, CL);
        world_free(w);
    }
}

static void test_reconnect_same_ports(void)
{
    World *w = connected();

    P(w, DATA(ISN + 1, "x", CL));
    S(w, DATA(ISN + 1, "x", CL));
    expect_n(w, 1);
    S(w, SYNACK_TO(42, 9000));
    P(w, SYNACK_TO(0xfffffff0, 9000));
    g_assert_cmpuint(w->isns, ==, 2);
    expect_tcp(w, 0xfffffff0, 0, 9000);
    P(w, DATA(0xfffffff1, "abc", 9000));
    S(w, DATA(0xfffffff1, "abc", 9000));
    expect_tcp(w, 0xfffffff1, 3, 9000);
    /* Once more while output is held: only a checkpoint helps. */
    P(w, DATA(0xfffffff4, "held", 9000));
    P(w, SYNACK_TO(7, 19000));
    S(w, SYNACK_TO(8, 19000));
    expect_none(w);
    g_assert_cmpuint(w->triggers, ==, 1);
    checkpoint(w, 1);
    expect_tcp(w, 0xfffffff4, 4, 9000);
    expect_tcp(w, 7, 0, 19000);
    P(w, DATA(8, "y", 19000));
    S(w, DATA(8, "y", 19000));
    expect_tcp(w, 8, 1, 19000);
    world_free(w);
}

static void test_guest_opens(void)
{
    World *w = world_new(NULL);
    Frame *syn = test_tcp((TestTcp){.flags = TCP_SYN, .seq = 50, .mss = 1460});

    P(w, frame_ref(syn));
    expect_none(w);
    g_assert_cmpuint(w->triggers, ==, 1);
    g_assert_cmpint(w->last, ==, PROXY_TRIGGER_NO_TWIN);
    S(w, test_tcp((TestTcp){.flags = TCP_SYN, .seq = 60, .mss = 1460}));
    expect_none(w);
    checkpoint(w, 1);
    expect_tcp(w, 50, 0, 0);
    P(w, syn); /* retransmitted: vouched for by the checkpoint */
    expect_tcp(w, 50, 0, 0);
    P(w, ACK(51, 100));
    expect_none(w);
    S(w, ACK(51, 100));
    expect_tcp(w, 51, 0, 100);
    P(w, DATA(51, "GET", 100));
    S(w, DATA(51, "GET", 100));
    expect_tcp(w, 51, 3, 100);
    g_assert_cmpuint(w->triggers, ==, 1);
    world_free(w);
}

/* --- Streams --- */

static void test_segmentation(void)
{
    World *w = connected();

    P(w, DATA(ISN + 1, "abcdefgh", CL));
    S(w, DATA(ISN + 1, "abc", CL));
    expect_none(w);
    S(w, DATA(ISN + 7, "gh", CL)); /* out of order */
    expect_none(w);
    S(w, DATA(ISN + 3, "cdef", CL)); /* overlaps */
    expect_tcp(w, ISN + 1, 8, CL);
    S(w, DATA(ISN + 9, "ijklmn", CL)); /* the secondary is ahead */
    P(w, DATA(ISN + 9, "ij", CL));
    expect_tcp(w, ISN + 9, 2, CL);
    P(w, DATA(ISN + 11, "klmno", CL));
    expect_none(w);
    S(w, DATA(ISN + 15, "o", CL));
    expect_tcp(w, ISN + 11, 5, CL);
    g_assert_cmpuint(w->triggers, ==, 0);
    world_free(w);
}

/* The SVM has cut the stream elsewhere and waits, at the end of its congestion window, for
 * an ACK of the client: the client must get what it can. */
static void test_front_of_a_frame(void)
{
    for (int fin = 0; fin < 4; fin++) {
        World *w = connected();
        uint8_t flags = TCP_ACK | (fin & 1 ? TCP_FIN : 0);
        bool v6 = fin & 2;
        CompareStats st;
        Packet p;
        Frame *f;

        if (v6) { /* a flow that is older than our knowledge */
            P(w, DATA(ISN + 1, "x", CL, .v6 = true));
            S(w, DATA(ISN + 1, "x", CL, .v6 = true));
            expect_n(w, 1);
        }
        uint32_t seq = ISN + 1 + v6;
        P(w, DATA(seq, "0123456789", CL, .flags = flags, .v6 = v6));
        S(w, DATA(seq, "012345", CL, .v6 = v6));
        expect_none(w);
        compare_engine_tick(w->e, w->now + 3000);
        expect_none(w); /* the rest may be on its way */
        w->now += 5000;
        g_assert_cmpint(compare_engine_tick(w->e, w->now), >, w->now);
        f = pop(w, &p);
        g_assert_cmpuint(p.seq, ==, seq);
        g_assert_cmpuint(p.flags & TCP_FIN, ==, 0);
        g_assert_cmpmem(f->data + p.body, p.body_len, "012345", 6);
        g_assert_true(test_checksum_ok(f));
        frame_unref(f);
        compare_engine_tick(w->e, w->now + 2000);
        expect_none(w); /* once */
        w->now += 2000;
        S(w, DATA(seq + 6, "67", CL, .v6 = v6));
        w->now += 5000;
        compare_engine_tick(w->e, w->now);
        f = pop(w, &p);
        g_assert_cmpuint(p.seq, ==, seq + 6);
        g_assert_cmpmem(f->data + p.body, p.body_len, "67", 2);
        frame_unref(f);
        S(w, DATA(seq + 8, "89", CL, .flags = flags, .v6 = v6));
        f = pop(w, &p);
        g_assert_cmpuint(p.seq, ==, seq + 8);
        g_assert_cmpuint(p.flags & TCP_FIN, ==, flags & TCP_FIN);
        g_assert_cmpmem(f->data + p.body, p.body_len, "89", 2);
        g_assert_true(test_checksum_ok(f));
        frame_unref(f);
        expect_none(w);
        g_assert_cmpuint(w->triggers, ==, 0);
        compare_engine_stats(w->e, &st);
        g_assert_cmpuint(st.parts, ==, 2);
        world_free(w);
    }
}

static void test_payload_differs(void)
{
    World *w = connected();
    CompareStats st;

    P(w, DATA(ISN + 1, "abc", CL));
    P(w, DATA(ISN + 4, "def", CL));
    S(w, DATA(ISN + 1, "abcdXf", CL));
    expect_tcp(w, ISN + 1, 3, CL); /* what is before the difference is fine */
    expect_none(w);
    g_assert_cmpuint(w->triggers, ==, 1);
    g_assert_cmpint(w->last, ==, PROXY_TRIGGER_MISMATCH);
    compare_engine_stats(w->e, &st);
    g_assert_cmpuint(st.n_last, ==, 1);
    g_assert_cmpint(st.last[0].cause, ==, COMPARE_CAUSE_PAYLOAD);
    g_assert_cmpuint(st.last[0].offset, ==, 4);
    g_assert_cmpuint(st.last[0].flow.client_port, ==, 40000);
    /* Nothing from there on, whatever the secondary says now. */
    S(w, DATA(ISN + 1, "abcdef", CL));
    P(w, DATA(ISN + 7, "g", CL));
    S(w, DATA(ISN + 7, "g", CL));
    expect_none(w);
    checkpoint(w, 1);
    expect_n(w, 2);
    P(w, DATA(ISN + 8, "h", CL));
    S(w, DATA(ISN + 8, "h", CL));
    expect_n(w, 1);
    world_free(w);
}

static void test_retransmission_differs(void)
{
    World *w = connected();

    P(w, DATA(ISN + 1, "abcdef", CL));
    P(w, DATA(ISN + 1, "abXdef", CL));
    g_assert_cmpuint(w->triggers, ==, 1);
    S(w, DATA(ISN + 1, "abcdef", CL));
    expect_none(w);
    world_free(w);

    w = connected(); /* the secondary contradicts itself */
    S(w, DATA(ISN + 1, "abcdef", CL));
    S(w, DATA(ISN + 2, "bX", CL));
    P(w, DATA(ISN + 1, "abcdef", CL));
    g_assert_cmpuint(w->triggers, ==, 1);
    expect_none(w);
    world_free(w);
}

static void test_retransmission_passes(void)
{
    World *w = connected();

    P(w, DATA(ISN + 1, "abc", CL));
    S(w, DATA(ISN + 1, "abc", CL));
    expect_n(w, 1);
    P(w, DATA(ISN + 4, "held", CL));
    P(w, DATA(ISN + 1, "abc", CL));
    expect_tcp(w, ISN + 1, 3, CL);
    P(w, ACK(ISN, CL)); /* keepalive */
    expect_tcp(w, ISN, 0, CL);
    expect_none(w);
    world_free(w);
}

static void test_fin(void)
{
    World *w = connected();

    P(w, DATA(ISN + 1, "abc", CL, .flags = TCP_ACK | TCP_FIN));
    S(w, DATA(ISN + 1, "abc", CL));
    expect_none(w);
    S(w, ACK(ISN + 4, CL, .flags = TCP_ACK | TCP_FIN));
    expect_tcp(w, ISN + 1, 3, CL);
    world_free(w);

    w = connected(); /* one ends where the other sends on */
    P(w, ACK(ISN + 1, CL, .flags = TCP_ACK | TCP_FIN));
    S(w, DATA(ISN + 1, "abc", CL));
    expect_none(w);
    g_assert_cmpint(w->last, ==, PROXY_TRIGGER_MISMATCH);
    g_assert_cmpuint(w->triggers, ==, 1);
    checkpoint(w, 1);
    expect_n(w, 1);
    world_free(w);

    w = connected();
    P(w, DATA(ISN + 1, "abc", CL));
    S(w, ACK(ISN + 1, CL, .flags = TCP_ACK | TCP_FIN));
    expect_none(w);
    g_assert_cmpuint(w->triggers, ==, 1);
    world_free(w);
}

static void test_rst(void)
{
    World *w = connected();

    P(w, ACK(ISN + 1, CL, .flags = TCP_RST | TCP_ACK));
    expect_none(w);
    S(w, ACK(ISN + 1, CL, .flags = TCP_RST | TCP_ACK));
    expect_tcp(w, ISN + 1, 0, CL);
    S(w, ACK(0, 99, .flags = TCP_RST | TCP_ACK, .client_port = 5)); /* a closed port */
    P(w, ACK(0, 99, .flags = TCP_RST | TCP_ACK, .client_port = 5));
    expect_tcp(w, 0, 0, 99);
    g_assert_cmpuint(w->triggers, ==, 0);
    world_free(w);
}

static void test_urgent(void)
{
    World *w = connected();

    P(w, DATA(ISN + 1, "abc", CL, .flags = TCP_ACK | TCP_URG));
    S(w, DATA(ISN + 1, "abc", CL, .flags = TCP_ACK | TCP_URG));
    expect_none(w);
    g_assert_cmpuint(w->triggers, ==, 1);
    world_free(w);
}

static void test_vlan_v6(void)
{
    World *w = world_new(NULL);

    P(w, SYNACK(ISN, .v6 = true, .n_vlans = 2));
    S(w, SYNACK(5, .v6 = true, .n_vlans = 1)); /* another network */
    expect_none(w);
    S(w, SYNACK(5, .v6 = true, .n_vlans = 2));
    expect_n(w, 1);
    P(w, DATA(ISN + 1, "x", CL + 9, .v6 = true, .n_vlans = 2));
    S(w, DATA(ISN + 1, "x", CL, .v6 = true, .n_vlans = 2));
    expect_tcp(w, ISN + 1, 1, CL);
    S(w, ACK(ISN + 2, CL + 9, .v6 = true, .n_vlans = 2));
    expect_tcp(w, ISN + 2, 0, CL + 9); /* made by the engine: IPv6 and tags too */
    world_free(w);
}

/* --- ACKs, windows, SACK --- */

static void test_ack_waits(void)
{
    World *w = connected();

    P(w, ACK(ISN + 1, CL + 100));
    expect_none(w);
    S(w, ACK(ISN + 1, CL + 40));
    expect_tcp(w, ISN + 1, 0, CL + 40); /* as far as both are */
    S(w, ACK(ISN + 1, CL + 40));
    expect_none(w); /* no duplicate */
    S(w, ACK(ISN + 1, CL + 200));
    expect_tcp(w, ISN + 1, 0, CL + 100);
    expect_none(w);
    P(w, ACK(ISN + 1, CL + 150));
    expect_tcp(w, ISN + 1, 0, CL + 150);
    g_assert_cmpuint(w->triggers, ==, 0);
    world_free(w);
}

static void test_ack_lowered_in_data(void)
{
    World *w = connected();

    P(w, DATA(ISN + 1, "abc", CL + 100));
    S(w, DATA(ISN + 1, "abc", CL + 60));
    expect_tcp(w, ISN + 1, 3, CL + 60);
    expect_none(w);
    S(w, ACK(ISN + 4, CL + 80));
    expect_tcp(w, ISN + 4, 0, CL + 80);
    S(w, ACK(ISN + 4, CL + 100));
    expect_tcp(w, ISN + 4, 0, CL + 100);
    S(w, ACK(ISN + 4, CL + 120));
    expect_none(w);
    world_free(w);
}

static void test_duplicate_acks(void)
{
    World *w = connected();

    P(w, ACK(ISN + 1, CL + 10));
    S(w, ACK(ISN + 1, CL + 10));
    expect_n(w, 1);
    for (int i = 0; i < 3; i++) { /* the guest means it: fast retransmit needs them */
        P(w, ACK(ISN + 1, CL + 10));
        expect_tcp(w, ISN + 1, 0, CL + 10);
    }
    S(w, ACK(ISN + 1, CL + 10));
    S(w, ACK(ISN + 1, CL + 10));
    expect_none(w);
    P(w, ACK(ISN + 1, CL + 20)); /* the first advances, two more repeat it */
    P(w, ACK(ISN + 1, CL + 20));
    P(w, ACK(ISN + 1, CL + 20));
    expect_none(w);
    S(w, ACK(ISN + 1, CL + 20));
    expect_n(w, 3);
    world_free(w);
}

static void test_ack_absorbed(void)
{
    World *w = connected();

    P(w, ACK(ISN + 1, CL + 10));
    P(w, DATA(ISN + 1, "abc", CL + 20));
    expect_none(w);
    S(w, DATA(ISN + 1, "abc", CL + 20));
    expect_tcp(w, ISN + 1, 3, CL + 20);
    expect_none(w); /* the pure ACK would be a spurious duplicate */
    world_free(w);
}

static void test_sack(void)
{
    World *w = connected();
    Packet p;
    Frame *f;

    /* Waits until the secondary has the block, too. */
    P(w, ACK(ISN + 1, CL, .n_sack = 1, .sack = {CL + 100, CL + 200}));
    expect_none(w);
    S(w, ACK(ISN + 1, CL, .n_sack = 1, .sack = {CL + 100, CL + 150}));
    expect_none(w);
    S(w, ACK(ISN + 1, CL, .n_sack = 1, .sack = {CL + 150, CL + 200}));
    f = pop(w, &p);
    g_assert_cmpuint(p.n_sack, ==, 1);
    frame_unref(f);
    /* In data it is taken out: data does not wait for it. */
    P(w, DATA(ISN + 1, "abc", CL, .n_sack = 1, .sack = {CL + 100, CL + 300}));
    S(w, DATA(ISN + 1, "abc", CL));
    f = pop(w, &p);
    g_assert_cmpuint(p.body_len, ==, 3);
    g_assert_cmpuint(p.n_sack, ==, 0);
    g_assert_true(test_checksum_ok(f));
    frame_unref(f);
    world_free(w);
}

static void test_window(void)
{
    World *w = connected();
    Packet p;
    Frame *f;

    P(w, ACK(ISN + 1, CL + 1000, .win = 1000));
    S(w, ACK(ISN + 1, CL + 1000, .win = 10));
    f = pop(w, &p);
    g_assert_cmpuint(p.ack, ==, CL + 1000);
    g_assert_cmpuint(p.win, ==, 10);
    g_assert_true(test_checksum_ok(f));
    frame_unref(f);
    S(w, ACK(ISN + 1, CL + 1000, .win = 500)); /* the secondary's reader caught up */
    f = pop(w, &p);
    g_assert_cmpuint(p.ack, ==, CL + 1000);
    g_assert_cmpuint(p.win, ==, 500);
    frame_unref(f);
    S(w, ACK(ISN + 1, CL + 1000, .win = 501)); /* not worth a frame */
    expect_none(w);
    S(w, ACK(ISN + 1, CL + 1000, .win = 5000));
    f = pop(w, &p);
    g_assert_cmpuint(p.win, ==, 1000); /* never more than the primary said */
    frame_unref(f);
    /* A lowered ACK keeps the right edge where it is. */
    P(w, DATA(ISN + 1, "abc", CL + 1000 + 128 * 4, .win = 996));
    S(w, DATA(ISN + 1, "abc", CL + 1000, .win = 2000));
    f = pop(w, &p);
    g_assert_cmpuint(p.ack, ==, CL + 1000);
    g_assert_cmpuint(p.win, ==, 1000);
    frame_unref(f);
    world_free(w);
}

static void test_owed_at_commit(void)
{
    World *w = connected();

    P(w, DATA(ISN + 1, "abc", CL + 100));
    S(w, DATA(ISN + 1, "abc", CL + 60));
    expect_n(w, 1);
    checkpoint(w, 1);
    expect_tcp(w, ISN + 4, 0, CL + 100);
    expect_none(w);
    world_free(w);
}

static void test_timestamps(void)
{
    World *w = connected();
    Packet p;
    Frame *f;

    /* Held data that a later frame overtook must not look older than that. */
    P(w, DATA(ISN + 1, "a", CL, .ts = true, .tsval = 10));
    S(w, DATA(ISN + 1, "a", CL, .ts = true, .tsval = 1));
    P(w, DATA(ISN + 2, "b", CL, .ts = true, .tsval = 20));
    P(w, DATA(ISN + 1, "a", CL, .ts = true, .tsval = 30));
    expect_n(w, 2);
    S(w, DATA(ISN + 2, "b", CL, .ts = true, .tsval = 2));
    f = pop(w, &p);
    g_assert_cmpuint(p.seq, ==, ISN + 2);
    g_assert_cmpuint(p.tsval, ==, 30);
    g_assert_true(test_checksum_ok(f));
    frame_unref(f);
    world_free(w);
}

static void test_unknown_flow(void)
{
    World *w = world_new(NULL);

    P(w, DATA(900, "abc", CL));
    expect_none(w);
    S(w, DATA(897, "xyzabc", CL - 5)); /* began earlier: not our business */
    expect_tcp(w, 900, 3, CL - 5);
    world_free(w);
}

/* --- Datagrams --- */

static void test_datagrams(void)
{
    World *w = world_new(NULL);

    P(w, test_udp(1000, 2000, false, "one"));
    P(w, test_udp(1000, 2000, true, "two"));
    P(w, test_udp(1000, 2000, false, "two"));
    P(w, test_udp(1000, 2000, false, "two"));
    S(w, test_udp(1000, 2001, false, "one")); /* another flow */
    expect_none(w);
    S(w, test_udp(1000, 2000, false, "two"));
    expect_n(w, 1); /* one for one */
    S(w, test_udp(1000, 2000, false, "one"));
    S(w, test_udp(1000, 2000, false, "two"));
    S(w, test_udp(1000, 2000, true, "two"));
    expect_n(w, 3);
    S(w, test_icmp("ping")); /* the secondary first */
    expect_none(w);
    P(w, test_icmp("ping"));
    expect_n(w, 1);
    P(w, test_icmp("ping"));
    expect_none(w); /* the twin is spent */
    P(w, test_fragment(0, true, "12345678"));
    S(w, test_fragment(8, false, "12345678"));
    expect_none(w);
    S(w, test_fragment(0, true, "12345678"));
    expect_n(w, 1);
    P(w, test_raw(0x1234, "whole"));
    S(w, test_raw(0x1234, "whale"));
    expect_none(w);
    S(w, test_raw(0x1234, "whole"));
    expect_n(w, 1);
    world_free(w);
}

static void test_datagram_of_old_epoch_vouches_nothing(void)
{
    World *w = world_new(NULL);

    S(w, test_udp(1, 2, false, "x"));
    checkpoint(w, 1);
    P(w, test_udp(1, 2, false, "x"));
    expect_none(w);
    S(w, test_udp(1, 2, false, "x"));
    expect_n(w, 1);
    world_free(w);
}

static void test_queries(void)
{
    World *w = world_new(NULL);
    int64_t next;

    P(w, test_udp(5353, 53, false, "id 1"));
    S(w, test_udp(5353, 53, false, "id 2"));
    next = compare_engine_tick(w->e, w->now);
    g_assert_cmpuint(w->triggers, ==, 0);
    g_assert_cmpint(next, <=, w->now + 10000);
    w->now += 10001;
    compare_engine_tick(w->e, w->now);
    g_assert_cmpuint(w->triggers, ==, 1);
    g_assert_cmpint(w->last, ==, PROXY_TRIGGER_NO_TWIN);
    world_free(w);
}

static void test_neighbours(void)
{
    World *w = world_new(NULL);

    P(w, test_arp(true, 9));
    P(w, test_arp(false, 9));
    P(w, test_raw(0x88cc, "lldp"));
    expect_n(w, 3); /* at once */
    S(w, test_arp(true, 9));
    S(w, test_arp(false, 7));
    S(w, test_arp(true, 7)); /* only the secondary's */
    S(w, test_arp(true, 8)); /* the primary's comes later */
    w->now += 100000;
    P(w, test_arp(true, 8));
    expect_n(w, 1);
    g_assert_cmpint(compare_engine_tick(w->e, w->now), ==, w->now + 100000);
    w->now += 100001;
    compare_engine_tick(w->e, w->now);
    expect_n(w, 1);
    w->now += 1000000;
    compare_engine_tick(w->e, w->now);
    expect_none(w);
    world_free(w);
}

/* --- Epochs --- */

static void test_epochs(void)
{
    World *w = connected();

    P(w, DATA(ISN + 1, "old", CL));
    P(w, test_udp(1, 2, false, "old"));
    compare_engine_cut(w->e, 1);
    P(w, DATA(ISN + 4, "new", CL));
    P(w, test_udp(1, 2, false, "old")); /* equal, but of the new epoch */
    S(w, DATA(ISN + 1, "oldnew", CL));  /* old: vouches for the old alone */
    expect_tcp(w, ISN + 1, 3, CL);
    expect_none(w);
    P(w, DATA(ISN + 1, "old", CL)); /* a retransmission passes meanwhile */
    expect_tcp(w, ISN + 1, 3, CL);
    /* The secondary was restored, and its output overtakes our commit. */
    compare_engine_secondary_marker(w->e, 1);
    S(w, DATA(ISN + 4, "ne", CL));
    expect_none(w);
    compare_engine_commit(w->e, 1, w->now);
    expect_n(w, 1); /* the old datagram; not the new one */
    S(w, DATA(ISN + 6, "w", CL));
    expect_tcp(w, ISN + 4, 3, CL);
    S(w, test_udp(1, 2, false, "old"));
    expect_n(w, 1);
    g_assert_cmpuint(w->triggers, ==, 0);
    world_free(w);
}

static void test_late_old_output(void)
{
    World *w = connected();

    P(w, DATA(ISN + 1, "a", CL));
    compare_engine_cut(w->e, 1);
    P(w, DATA(ISN + 2, "b", CL));
    compare_engine_commit(w->e, 1, w->now);
    expect_tcp(w, ISN + 1, 1, CL);
    S(w, DATA(ISN + 1, "ab", CL)); /* before its marker: another timeline */
    expect_none(w);
    compare_engine_secondary_marker(w->e, 1);
    S(w, DATA(ISN + 2, "b", CL));
    expect_tcp(w, ISN + 2, 1, CL);
    world_free(w);
}

static void test_commit_in_order(void)
{
    World *w = connected();

    P(w, DATA(ISN + 1, "a", CL + 5));
    P(w, test_udp(1, 2, false, "x"));
    P(w, DATA(77, "mid", 1, .client_port = 9));
    P(w, ACK(ISN + 2, CL + 9));
    P(w, DATA(ISN + 2, "b", CL + 9));
    compare_engine_cut(w->e, 1);
    expect_none(w);
    compare_engine_commit(w->e, 1, w->now);
    expect_tcp(w, ISN + 1, 1, CL + 5);
    Packet p;
    frame_unref(pop(w, &p));
    g_assert_cmpint(p.kind, ==, PACKET_UDP);
    expect_tcp(w, 77, 3, 1);
    expect_tcp(w, ISN + 2, 0, CL + 9);
    expect_tcp(w, ISN + 2, 1, CL + 9);
    expect_none(w);
    /* RULES 20: known from now on. */
    P(w, DATA(ISN + 1, "ab", CL + 9));
    expect_tcp(w, ISN + 1, 2, CL + 9);
    P(w, ACK(ISN + 3, CL + 9));
    expect_tcp(w, ISN + 3, 0, CL + 9);
    P(w, ACK(ISN + 3, CL + 10));
    expect_none(w);
    world_free(w);
}

static void test_torn(void)
{
    World *w = connected();

    P(w, DATA(ISN + 1, "a", CL));
    compare_engine_cut(w->e, 1);
    P(w, DATA(ISN + 2, "b", CL));
    /* No commit of 1: dropped. */
    compare_engine_cut(w->e, 2);
    P(w, DATA(ISN + 3, "c", CL));
    S(w, DATA(ISN + 1, "abc", CL)); /* still epoch 0 */
    expect_tcp(w, ISN + 1, 1, CL);
    expect_none(w);
    compare_engine_commit(w->e, 2, w->now);
    expect_tcp(w, ISN + 2, 1, CL);
    expect_none(w);
    compare_engine_secondary_marker(w->e, 2);
    S(w, DATA(ISN + 3, "c", CL));
    expect_tcp(w, ISN + 3, 1, CL);
    world_free(w);
}

static void test_no_isn_in_flight(void)
{
    World *w = world_new(NULL);

    P(w, SYNACK(ISN));
    compare_engine_cut(w->e, 1);
    S(w, SYNACK(9));
    g_assert_cmpuint(w->isns, ==, 0); /* it would reach a rolled back rewriter */
    expect_none(w);
    compare_engine_commit(w->e, 1, w->now);
    expect_tcp(w, ISN, 0, CL);
    g_assert_cmpuint(w->isns, ==, 0);
    /* The SVM's output of the new epoch may come before the word that it runs. */
    compare_engine_secondary_marker(w->e, 1);
    P(w, SYNACK(500, .client_port = 3));
    S(w, SYNACK(600, .client_port = 3));
    g_assert_cmpuint(w->isns, ==, 1);
    expect_tcp(w, 500, 0, CL);
    world_free(w);
}

/* --- Triggers --- */

static void test_patience(void)
{
    World *w = connected();

    P(w, DATA(ISN + 1, "ab", CL));
    w->now += 9000;
    compare_engine_tick(w->e, w->now);
    g_assert_cmpuint(w->triggers, ==, 0);
    S(w, DATA(ISN + 1, "a", CL)); /* progress */
    w->now += 9000;
    compare_engine_tick(w->e, w->now);
    g_assert_cmpuint(w->triggers, ==, 0);
    w->now += 1001;
    compare_engine_tick(w->e, w->now);
    g_assert_cmpuint(w->triggers, ==, 1);
    g_assert_cmpint(w->last, ==, PROXY_TRIGGER_TIMEOUT);
    compare_engine_tick(w->e, w->now + 50000); /* asked already */
    g_assert_cmpuint(w->triggers, ==, 1);
    compare_engine_cut(w->e, 1);
    w->now += 5 * G_USEC_PER_SEC;
    compare_engine_tick(w->e, w->now); /* in flight */
    g_assert_cmpuint(w->triggers, ==, 1);
    P(w, DATA(ISN + 3, "c", CL));
    compare_engine_commit(w->e, 1, w->now);
    w->now += 5 * G_USEC_PER_SEC;
    compare_engine_tick(w->e, w->now); /* committed, but the secondary does not run */
    g_assert_cmpuint(w->triggers, ==, 1);
    compare_engine_loaded(w->e, 1, w->now);
    compare_engine_tick(w->e, w->now + 9999);
    g_assert_cmpuint(w->triggers, ==, 1);
    compare_engine_tick(w->e, w->now + 10001);
    g_assert_cmpuint(w->triggers, ==, 2);
    world_free(w);
}

static void test_lag_stretches_patience(void)
{
    World *w = connected();

    for (int i = 0; i < 100; i++) {
        P(w, DATA(ISN + 1 + i, "a", CL));
        w->now += 8000;
        S(w, DATA(ISN + 1 + i, "a", CL));
    }
    frame_queue_clear(&w->out);
    P(w, DATA(ISN + 101, "b", CL));
    compare_engine_tick(w->e, w->now + 25000);
    g_assert_cmpuint(w->triggers, ==, 0);
    compare_engine_tick(w->e, w->now + 33000);
    g_assert_cmpuint(w->triggers, ==, 1);
    world_free(w);
}

static void test_timeout_is_the_ceiling(void)
{
    World *w = world_new(&(CompareConfig){.compare_timeout_us = 50000});

    P(w, SYNACK(ISN));
    S(w, SYNACK(9));
    P(w, DATA(ISN + 1, "0123456789", CL));
    for (int i = 0; i < 6; i++) { /* progress, but too little of it */
        g_assert_cmpuint(w->triggers, ==, 0);
        w->now += 8500;
        S(w, test_tcp((TestTcp){
                 .seq = ISN + 1 + i, .ack = CL, .data = "0123456789" + i, .len = 1}));
        compare_engine_tick(w->e, w->now);
    }
    g_assert_cmpuint(w->triggers, ==, 1);
    g_assert_cmpint(w->last, ==, PROXY_TRIGGER_TIMEOUT);
    world_free(w);
}

static void test_delayed_ack_is_no_trigger(void)
{
    World *w = connected();

    P(w, ACK(ISN + 1, CL + 10));
    compare_engine_tick(w->e, w->now + 45000);
    g_assert_cmpuint(w->triggers, ==, 0);
    compare_engine_tick(w->e, w->now + 100000);
    g_assert_cmpuint(w->triggers, ==, 1);
    world_free(w);
}

static void test_damping(void)
{
    World *w = world_new(NULL);
    unsigned in_a_second = 0;
    uint64_t epoch = 1;

    for (int i = 0; i < 2000; i++) { /* a guest that connects all the time */
        unsigned before = w->triggers;

        P(w, test_tcp((TestTcp){.flags = TCP_SYN, .seq = i, .client_port = 10 + i}));
        compare_engine_tick(w->e, w->now);
        if (w->triggers > before) {
            checkpoint(w, epoch++);
        }
        in_a_second += i >= 1000 && w->triggers > before;
        w->now += 1000;
    }
    g_assert_cmpuint(in_a_second, >=, 9);
    g_assert_cmpuint(in_a_second, <=, 11);
    world_free(w);
}

static void test_backlog(void)
{
    World *w = world_new(&(CompareConfig){.max_queue_size = 4, .max_bytes = 81 * 2100});
    CompareStats st;

    P(w, SYNACK(ISN));
    S(w, SYNACK(9));
    frame_queue_clear(&w->out);
    for (int i = 0; i < 10; i++) {
        P(w, DATA(ISN + 1 + i, "a", CL));
    }
    g_assert_cmpuint(w->triggers, ==, 0); /* no time has passed */
    w->now += 20000;
    P(w, DATA(ISN + 11, "a", CL));
    g_assert_cmpuint(w->triggers, ==, 1);
    g_assert_cmpint(w->last, ==, PROXY_TRIGGER_BACKLOG);
    g_assert_false(compare_engine_full(w->e));
    for (int i = 0; i < 70; i++) {
        P(w, DATA(ISN + 12 + i, "a", CL));
    }
    g_assert_true(compare_engine_full(w->e));
    compare_engine_stats(w->e, &st);
    g_assert_cmpuint(st.held_frames, ==, 81); /* nothing is dropped */
    checkpoint(w, 1);
    expect_n(w, 81);
    g_assert_false(compare_engine_full(w->e));
    world_free(w);
}

/* --- Modes, bounds, table --- */

static void test_modes(void)
{
    World *w = world_new(NULL);

    compare_engine_set_mode(w->e, COMPARE_MODE_PASS, w->now);
    P(w, SYNACK(ISN));
    P(w, DATA(ISN + 1, "abc", CL));
    P(w, test_udp(1, 2, false, "x"));
    expect_n(w, 3);
    S(w, SYNACK(9));
    g_assert_cmpuint(w->isns, ==, 1);
    compare_engine_set_mode(w->e, COMPARE_MODE_COMPARE, w->now);
    P(w, DATA(ISN + 1, "abc", CL)); /* left already */
    expect_n(w, 1);
    P(w, DATA(ISN + 4, "def", CL));
    expect_none(w);
    S(w, DATA(ISN + 1, "abcdef", CL));
    expect_tcp(w, ISN + 4, 3, CL);
    P(w, DATA(ISN + 7, "g", CL));
    compare_engine_set_mode(w->e, COMPARE_MODE_HOLD, w->now);
    P(w, test_arp(true, 1));
    S(w, DATA(ISN + 7, "g", CL));
    P(w, DATA(ISN + 8, "h", CL));
    w->now += 10 * G_USEC_PER_SEC;
    compare_engine_tick(w->e, w->now);
    expect_none(w);
    g_assert_cmpuint(w->triggers, ==, 0);
    compare_engine_set_mode(w->e, COMPARE_MODE_PASS, w->now);
    expect_tcp(w, ISN + 7, 1, CL);
    expect_n(w, 2);
    world_free(w);

    w = connected(); /* a new peer counts epochs from the start */
    checkpoint(w, 7);
    compare_engine_set_mode(w->e, COMPARE_MODE_PASS, w->now);
    checkpoint(w, 1);
    compare_engine_set_mode(w->e, COMPARE_MODE_COMPARE, w->now);
    P(w, DATA(ISN + 1, "a", CL));
    expect_none(w);
    S(w, DATA(ISN + 1, "a", CL));
    expect_n(w, 1);
    checkpoint(w, 2);
    P(w, DATA(ISN + 2, "b", CL));
    S(w, DATA(ISN + 2, "b", CL));
    expect_n(w, 1);
    world_free(w);

    w = connected(); /* everything of any epoch */
    P(w, DATA(ISN + 1, "a", CL));
    compare_engine_cut(w->e, 1);
    P(w, DATA(ISN + 2, "b", CL));
    compare_engine_flush_all(w->e, w->now);
    expect_n(w, 2);
    g_assert_cmpint(compare_engine_mode(w->e), ==, COMPARE_MODE_COMPARE);
    world_free(w);
}

static void test_flow_bound(void)
{
    World *w = world_new(&(CompareConfig){.max_flows = 100});
    CompareStats st;

    P(w, DATA(1, "held", CL, .client_port = 1));
    for (int i = 2; i < 2000; i++) {
        S(w, ACK(0, 9, .flags = TCP_RST | TCP_ACK, .client_port = i));
        P(w, ACK(0, 9, .flags = TCP_RST | TCP_ACK, .client_port = i));
    }
    compare_engine_stats(w->e, &st);
    g_assert_cmpuint(st.flows, <=, 100);
    g_assert_cmpuint(st.flows_evicted, >, 1800);
    frame_queue_clear(&w->out);
    S(w, DATA(1, "held", CL, .client_port = 1)); /* this one stayed */
    expect_tcp(w, 1, 4, CL);
    world_free(w);
}

static void test_table(void)
{
    World *w = connected();
    g_autoptr(GByteArray) b = g_byte_array_new();
    g_autoptr(GError) err = NULL;
    CompareTable *t;

    P(w, DATA(ISN + 1, "abc", CL + 7, .ts = true, .tsval = 123, .tsecr = 5, .win = 100));
    compare_engine_cut(w->e, 5);
    P(w, DATA(ISN + 4, "new", CL + 9));
    compare_engine_save(w->e, b);
    t = compare_table_parse(b->data, b->len, &err);
    g_assert_no_error(err);
    g_assert_cmpuint(t->epoch, ==, 5);
    g_assert_cmpuint(t->n_flows, ==, 1);
    g_assert_cmpuint(t->flows[0].snd_max, ==, ISN + 4);
    g_assert_cmpuint(t->flows[0].ack, ==, CL + 7);
    g_assert_cmpuint(t->flows[0].edge, ==, MAX(CL + 7 + 100 * 128, CL + 1000));
    g_assert_cmpuint(t->flows[0].tsval, ==, 123);
    g_assert_cmpuint(t->flows[0].wscale, ==, 7);
    g_assert_cmpuint(t->flows[0].l2_len, ==, 14);
    g_assert_cmpuint(t->held.count, ==, 1);
    compare_table_free(t);
    for (guint len = 0; len < b->len; len++) { /* exact copies: a sanitizer looks */
        g_autofree uint8_t *cut = g_memdup2(b->data, len);
        g_autoptr(GError) e2 = NULL;
        g_assert_null(compare_table_parse(cut, len, &e2));
        g_assert_nonnull(e2);
    }
    for (int i = 0; i < 20000; i++) {
        g_autofree uint8_t *bad = g_memdup2(b->data, b->len);
        for (int j = 0; j < 3; j++) {
            bad[g_random_int_range(0, b->len)] = g_random_int();
        }
        compare_table_free(compare_table_parse(bad, b->len, NULL));
    }
    world_free(w);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define T(name, fn) g_test_add_func("/compare/" name, fn)
    T("synack", test_synack);
    T("synack-differs", test_synack_differs);
    T("reconnect-same-ports", test_reconnect_same_ports);
    T("guest-opens", test_guest_opens);
    T("segmentation", test_segmentation);
    T("front-of-a-frame", test_front_of_a_frame);
    T("payload-differs", test_payload_differs);
    T("retransmission-differs", test_retransmission_differs);
    T("retransmission-passes", test_retransmission_passes);
    T("fin", test_fin);
    T("rst", test_rst);
    T("urgent", test_urgent);
    T("vlan-v6", test_vlan_v6);
    T("ack-waits", test_ack_waits);
    T("ack-lowered-in-data", test_ack_lowered_in_data);
    T("duplicate-acks", test_duplicate_acks);
    T("ack-absorbed", test_ack_absorbed);
    T("sack", test_sack);
    T("window", test_window);
    T("owed-at-commit", test_owed_at_commit);
    T("timestamps", test_timestamps);
    T("unknown-flow", test_unknown_flow);
    T("datagrams", test_datagrams);
    T("datagram-of-old-epoch", test_datagram_of_old_epoch_vouches_nothing);
    T("queries", test_queries);
    T("neighbours", test_neighbours);
    T("epochs", test_epochs);
    T("late-old-output", test_late_old_output);
    T("commit-in-order", test_commit_in_order);
    T("torn", test_torn);
    T("no-isn-in-flight", test_no_isn_in_flight);
    T("patience", test_patience);
    T("lag-stretches-patience", test_lag_stretches_patience);
    T("timeout-is-the-ceiling", test_timeout_is_the_ceiling);
    T("delayed-ack", test_delayed_ack_is_no_trigger);
    T("damping", test_damping);
    T("backlog", test_backlog);
    T("modes", test_modes);
    T("flow-bound", test_flow_bound);
    T("table", test_table);
    return g_test_run();
}
