/*
 * Tests of the comparison engine: what must never cost a checkpoint, and what must.
 * Sources: net/colo/{compare-dgram,compare-engine,compare-flow,compare-table,compare-tcp,
 * compare-tcp-out,flow,packet,packet-edit,stream}.c, net/frame.c; dependencies: util
 * (error, trace), glib.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "compare-world.h"

static FlowKey the_key(void)
{
    Frame *f = ACK(0, 0);
    Packet p;

    packet_parse(f, true, &p);
    frame_unref(f);
    return p.key;
}

static void logged(World *w, uint32_t upto)
{
    FlowKey k = the_key();

    compare_engine_logged(w->e, &k, upto, w->now);
}

/* --- The secondary's log of the client's data --- */

static void test_log_vouches_for_acks(void)
{
    World *w = connected();

    P(w, ACK(ISN + 1, CL + 600));
    expect_none(w);
    logged(w, CL + 300);
    expect_tcp(w, ISN + 1, 0, CL + 300); /* what is owed, lowered */
    logged(w, CL + 600);
    expect_tcp(w, ISN + 1, 0, CL + 600);
    w->now += G_USEC_PER_SEC;
    compare_engine_tick(w->e, w->now);
    g_assert_cmpuint(w->triggers, ==, 0);
    S(w, ACK(ISN + 1, CL + 300)); /* late and less: nothing goes back */
    expect_tcp(w, ISN + 1, 0, CL + 600); /* but its window is wider */
    P(w, ACK(ISN + 1, CL + 800));
    expect_none(w);
    S(w, ACK(ISN + 1, CL + 800));
    expect_tcp(w, ISN + 1, 0, CL + 800);
    world_free(w);
}

/* Bytes outside the SVM's window would be thrown away by it: the log is not enough. */
static void test_log_within_window(void)
{
    World *w = connected(); /* the SVM's window ends at CL + 1000 */

    P(w, ACK(ISN + 1, CL + 1500));
    logged(w, CL + 1500);
    expect_tcp(w, ISN + 1, 0, CL + 1000);
    S(w, ACK(ISN + 1, CL + 500, .win = 1000)); /* to CL + 128500 */
    expect_tcp(w, ISN + 1, 0, CL + 1500);
    world_free(w);
}

/* The client is paced by both guests: the log makes up for a late ACK, not for a guest
 * that is far behind. */
static void test_log_is_not_far_ahead(void)
{
    World *w = connected();

    S(w, ACK(ISN + 1, CL, .win = 60000));
    P(w, ACK(ISN + 1, CL + 500000, .win = 60000));
    expect_none(w);
    logged(w, CL + 400000);
    expect_tcp(w, ISN + 1, 0, CL + 65536);
    S(w, ACK(ISN + 1, CL + 1000, .win = 60000));
    expect_tcp(w, ISN + 1, 0, CL + 66536);
    S(w, ACK(ISN + 1, CL + 390000, .win = 60000));
    expect_tcp(w, ISN + 1, 0, CL + 400000);
    world_free(w);
}

static void test_log_of_another_epoch(void)
{
    World *w = connected();

    compare_engine_cut(w->e, 1);
    compare_engine_commit(w->e, 1, w->now);
    compare_engine_loaded(w->e, 1, w->now);
    P(w, ACK(ISN + 1, CL + 100));
    logged(w, CL + 100); /* the marker has not come: it speaks of the old SVM */
    expect_none(w);
    compare_engine_secondary_marker(w->e, 1);
    logged(w, CL + 100);
    expect_tcp(w, ISN + 1, 0, CL + 100);
    P(w, ACK(ISN + 1, CL + 300));
    expect_none(w);
    checkpoint(w, 2); /* knowledge of the log does not outlive its epoch */
    expect_tcp(w, ISN + 1, 0, CL + 300);
    P(w, ACK(ISN + 1, CL + 400));
    expect_none(w);
    world_free(w);
}

/* What the log said once is nothing any more when the numbers have wrapped. */
static void test_log_wraps(void)
{
    World *w = connected();
    uint32_t at = CL + 100;

    logged(w, at);
    for (int i = 0; i < 4; i++) {
        P(w, ACK(ISN + 1, at));
        S(w, ACK(ISN + 1, at));
        frame_queue_clear(&w->out);
        at += 0x30000000;
    }
    P(w, ACK(ISN + 1, at - 0x30000000 + 1000));
    expect_none(w);
    S(w, ACK(ISN + 1, at - 0x30000000 + 1000));
    expect_tcp(w, ISN + 1, 0, at - 0x30000000 + 1000);
    world_free(w);
}

static void test_log_of_a_reset_connection(void)
{
    World *w = connected();

    P(w, ACK(ISN + 1, CL + 100));
    S(w, ACK(ISN + 1, 0, .flags = TCP_RST));
    logged(w, CL + 100);
    expect_none(w);
    world_free(w);
}

/* --- Frames that lie --- */

typedef struct Liar {
    World *w;
    unsigned n;
    bool primary;
} Liar;

static void on_malformed(const Frame *f, bool primary, const char *what, void *opaque)
{
    World *w = opaque;
    Liar *l = w->model;

    g_assert_nonnull(f);
    g_assert_nonnull(what);
    l->n++;
    l->primary = primary;
}

static Frame *lie(int what)
{
    Frame *f = DATA(ISN + 1, "abcd", CL, .v6 = what == 5);

    if (what != 5) {
        Packet p;
        put_be16(f->data + 18, 7); /* the id: compared where nothing else is known */
        packet_parse(f, true, &p);
        packet_tcp_checksum(f, &p);
    }
    switch (what) {
    case 0: /* an IPv4 header shorter than one can be */
        f->data[14] = 0x44;
        break;
    case 1: /* longer than the frame */
        put_be16(f->data + 16, 1000);
        break;
    case 2: /* shorter than its own header */
        put_be16(f->data + 16, 19);
        break;
    case 3: /* a TCP header of 60 bytes where 24 are left */
        f->data[46] = 0xf0;
        break;
    case 4: /* cut off in the TCP header */
        f->len = 40;
        break;
    case 5: /* IPv6, longer than the frame */
        put_be16(f->data + 18, 2000);
        break;
    case 6: /* not an Ethernet frame */
        f->len = 9;
        break;
    case 7: /* IPv4 checksum */
        f->data[24] ^= 1;
        break;
    default:
        frame_unref(f);
        return NULL;
    }
    return f;
}

/* Each is counted, and nobody else notices: a sound flow goes on, equal lies are equal. */
static void test_malformed(void)
{
    CompareOps ops = {on_release, on_trigger, on_isn, on_malformed};

    for (int i = 0; i < 8; i++) {
        World *w = world_new(NULL);
        Liar l = {w};
        CompareStats st;
        Frame *f;

        g_test_message("lie %d", i);
        compare_engine_free(w->e);
        w->e = compare_engine_new(NULL, &ops, w);
        w->model = &l;
        compare_engine_set_mode(w->e, COMPARE_MODE_COMPARE, w->now);
        P(w, SYNACK(ISN, .client_port = 5));
        S(w, SYNACK(777777, .client_port = 5));
        expect_n(w, 1);
        P(w, lie(i));
        g_assert_cmpuint(l.n, ==, 1);
        g_assert_true(l.primary);
        P(w, DATA(ISN + 1, "sound", CL, .client_port = 5));
        S(w, DATA(ISN + 1, "sound", CL, .client_port = 5));
        expect_n(w, 1);
        f = lie(i);
        S(w, f);
        g_assert_cmpuint(l.n, ==, 2);
        g_assert_false(l.primary);
        compare_engine_tick(w->e, w->now);
        expect_n(w, 1);
        g_assert_cmpuint(w->triggers, ==, 0);
        compare_engine_stats(w->e, &st);
        g_assert_cmpuint(st.malformed[0], ==, 1);
        g_assert_cmpuint(st.malformed[1], ==, 1);
        g_assert_cmpuint(st.held_frames, ==, 0);
        world_free(w);
    }
    World *w = connected(); /* counted once, though looked at again after a commit */
    CompareStats st;
    compare_engine_cut(w->e, 1);
    P(w, lie(1));
    compare_engine_commit(w->e, 1, w->now);
    compare_engine_stats(w->e, &st);
    g_assert_cmpuint(st.malformed[0], ==, 1);
    world_free(w);

    w = connected(); /* a payload that does not fit its checksum */
    Frame *f = DATA(ISN + 1, "abcd", CL);
    f->data[f->len - 1] ^= 1;
    P(w, f);
    S(w, DATA(ISN + 1, "abcd", CL));
    expect_none(w);
    compare_engine_stats(w->e, &st);
    g_assert_cmpuint(st.malformed[0], ==, 1);
    g_assert_cmpuint(st.malformed[1], ==, 0);
    g_assert_cmpint(w->last, ==, PROXY_TRIGGER_MISMATCH);
    g_assert_cmpuint(st.last[0].offset, ==, 3);
    world_free(w);
}

/* --- Saved after the pause --- */

/* What the guest does after the cut is not in the table, whenever that is written. */
static void test_saved_late(void)
{
    g_autoptr(GByteArray) at_once = g_byte_array_new(), late = g_byte_array_new();
    World *w = connected();

    P(w, DATA(ISN + 1, "abc", CL));
    P(w, test_udp(1, 2, false, "held"));
    compare_engine_cut(w->e, 1);
    compare_engine_save(w->e, at_once);
    P(w, DATA(ISN + 4, "def", CL + 10));
    P(w, DATA(ISN + 1, "abc", CL)); /* again */
    P(w, test_udp(1, 2, false, "new"));
    P(w, SYNACK(99, .client_port = 7));
    S(w, ACK(ISN + 1, CL + 10));
    expect_none(w);
    compare_engine_save(w->e, late);
    g_assert_cmpmem(at_once->data, at_once->len, late->data, late->len);
    S(w, DATA(ISN + 1, "abc", CL)); /* the old SVM vouches for it: it owes nothing */
    expect_tcp(w, ISN + 1, 3, CL);
    g_byte_array_set_size(late, 0);
    compare_engine_save(w->e, late);
    CompareTable *t = compare_table_parse(late->data, late->len, NULL);
    g_assert_nonnull(t);
    g_assert_cmpuint(t->n_flows, ==, 1);
    g_assert_cmpuint(t->flows[0].snd_max, ==, ISN + 4);
    g_assert_cmpuint(t->flows[0].ack, ==, CL);
    g_assert_cmpuint(t->held.count, ==, 1);
    compare_table_free(t);
    world_free(w);
}

/* --- Divergence that is normal --- */

/* Each guest picks a port: one checkpoint at once, and then the connection has a twin. */
static void test_guest_connects(void)
{
    World *w = world_new(NULL);

    S(w, test_tcp((TestTcp){.flags = TCP_SYN, .seq = 999, .guest_port = 50111}));
    g_assert_cmpuint(w->triggers, ==, 0); /* only the PVM's matters */
    P(w, test_tcp((TestTcp){.flags = TCP_SYN, .seq = ISN, .guest_port = 40222}));
    g_assert_cmpuint(w->triggers, ==, 1); /* within the call: it waits for nothing */
    g_assert_cmpint(w->last, ==, PROXY_TRIGGER_NO_TWIN);
    checkpoint(w, 1);
    expect_n(w, 1);
    P(w, ACK(ISN + 1, CL, .guest_port = 40222));
    S(w, ACK(ISN + 1, CL, .guest_port = 40222));
    P(w, DATA(ISN + 1, "GET /", CL, .guest_port = 40222));
    S(w, DATA(ISN + 1, "GET /", CL, .guest_port = 40222));
    P(w, ACK(ISN + 6, CL, .guest_port = 40222, .flags = TCP_FIN | TCP_ACK));
    S(w, ACK(ISN + 6, CL, .guest_port = 40222, .flags = TCP_FIN | TCP_ACK));
    expect_n(w, 3);
    w->now += G_USEC_PER_SEC;
    compare_engine_tick(w->e, w->now);
    g_assert_cmpuint(w->triggers, ==, 1);
    world_free(w);
}

static void test_guest_asks(void)
{
    static const struct {
        uint16_t guest, client;
    } q[] = {{40000, 53}, {68, 67},     {123, 123},   {40000, 123}, {5353, 5353},
             {546, 547},  {40000, 161}, {50000, 514}, {40000, 1900}};

    for (unsigned i = 0; i < G_N_ELEMENTS(q); i++) {
        World *w = world_new(NULL);

        for (int k = 0; k < 50; k++) { /* a lag which makes for patience elsewhere */
            P(w, test_udp(7, 4000, false, "x"));
            w->now += 20000;
            S(w, test_udp(7, 4000, false, "x"));
        }
        P(w, test_udp(q[i].guest, q[i].client, i & 1, "mine"));
        S(w, test_udp(q[i].guest, q[i].client, i & 1, "another"));
        compare_engine_tick(w->e, w->now + 9999);
        g_assert_cmpuint(w->triggers, ==, 0);
        compare_engine_tick(w->e, w->now + 10000);
        g_assert_cmpuint(w->triggers, ==, 1);
        g_assert_cmpint(w->last, ==, PROXY_TRIGGER_NO_TWIN);
        world_free(w);
    }
    World *w = world_new(NULL); /* a server's answers are not questions */
    for (int k = 0; k < 50; k++) {
        P(w, test_udp(53, 40000, false, "x"));
        w->now += 15000;
        compare_engine_tick(w->e, w->now);
        S(w, test_udp(53, 40000, false, "x"));
        g_assert_cmpuint(w->triggers, ==, 1); /* the first, when no lag was known */
        if (k == 0) {
            checkpoint(w, 1);
        }
    }
    world_free(w);
}

/* The lower bound grows while they come, is 100 ms at most, and is gone after a pause. */
static void test_storm(void)
{
    World *w = world_new(NULL);
    int64_t last = 0, longest = 0;
    uint64_t epoch = 0;

    for (int i = 0; i < 2000; i++) {
        unsigned before = w->triggers;

        P(w, test_tcp((TestTcp){.flags = TCP_SYN, .seq = i, .guest_port = 10000 + i}));
        compare_engine_tick(w->e, w->now);
        if (w->triggers > before) {
            longest = last ? MAX(longest, w->now - last) : 0;
            last = w->now;
            checkpoint(w, ++epoch);
        }
        w->now += 1000;
    }
    g_assert_cmpint(longest, <=, 101000);
    g_assert_cmpuint(w->triggers, <, 40);
    compare_engine_tick(w->e, w->now + 200000);
    checkpoint(w, ++epoch);
    w->now += 2 * G_USEC_PER_SEC;
    for (int i = 0; i < 2; i++) {
        unsigned before = w->triggers;
        P(w, test_tcp((TestTcp){.flags = TCP_SYN, .seq = i, .guest_port = 30000 + i}));
        g_assert_cmpuint(w->triggers, ==, before + 1); /* at once again */
        checkpoint(w, ++epoch);
        w->now += 6000;
    }
    world_free(w);
}

/* --- What must be noticed --- */

/* The SVM alone gave the connection up: a takeover would break it. */
static void test_lone_reset(void)
{
    World *w = connected();

    S(w, ACK(ISN + 1, 0, .flags = TCP_RST));
    compare_engine_tick(w->e, w->now + 50000);
    g_assert_cmpuint(w->triggers, ==, 0); /* the PVM's may come yet */
    compare_engine_tick(w->e, w->now + 100000);
    g_assert_cmpuint(w->triggers, ==, 1);
    w->now += 100000;
    checkpoint(w, 1);
    compare_engine_tick(w->e, w->now + G_USEC_PER_SEC);
    g_assert_cmpuint(w->triggers, ==, 1);
    world_free(w);

    w = connected(); /* both do */
    S(w, ACK(ISN + 1, 0, .flags = TCP_RST));
    S(w, ACK(ISN + 1, 0, .flags = TCP_RST));
    P(w, ACK(ISN + 1, 0, .flags = TCP_RST));
    expect_n(w, 1);
    compare_engine_tick(w->e, w->now + G_USEC_PER_SEC);
    g_assert_cmpuint(w->triggers, ==, 0);
    world_free(w);
}

static void fin(World *w, uint32_t client_ack)
{
    P(w, ACK(ISN + 1, client_ack, .flags = TCP_FIN | TCP_ACK));
    S(w, ACK(ISN + 1, client_ack, .flags = TCP_FIN | TCP_ACK));
    expect_n(w, 1);
}

/* Both have closed the connection, and one has forgotten it before the other: its client
 * has the end of the stream, and gets the reset with the next checkpoint that comes. */
static void test_reset_after_the_end(void)
{
    World *w = connected();

    fin(w, CL);
    P(w, ACK(ISN + 2, 0, .flags = TCP_RST));
    expect_none(w);
    compare_engine_tick(w->e, w->now + 2 * G_USEC_PER_SEC);
    g_assert_cmpuint(w->triggers, ==, 0);
    expect_none(w);
    compare_engine_tick(w->e, w->now + 3 * G_USEC_PER_SEC); /* compare_timeout */
    g_assert_cmpuint(w->triggers, ==, 1);
    expect_none(w);
    checkpoint(w, 1);
    expect_n(w, 1);
    world_free(w);

    w = connected(); /* before its end somebody waits for it */
    P(w, ACK(ISN + 1, 0, .flags = TCP_RST));
    compare_engine_tick(w->e, w->now + 100000);
    g_assert_cmpuint(w->triggers, ==, 1);
    world_free(w);

    w = connected(); /* and for bytes before it, whatever follows them */
    P(w, DATA(ISN + 1, "abcd", CL));
    P(w, ACK(ISN + 5, CL, .flags = TCP_FIN | TCP_ACK));
    P(w, ACK(ISN + 6, 0, .flags = TCP_RST));
    compare_engine_tick(w->e, w->now + 100000);
    g_assert_cmpuint(w->triggers, ==, 1);
    expect_none(w);
    world_free(w);
}

/* The PVM reads on, the SVM does not: the client stands still, but not for ever. */
static void test_blocked_client(void)
{
    World *w = connected();

    P(w, ACK(ISN + 1, CL + 1000, .win = 1000));
    S(w, ACK(ISN + 1, CL + 1000, .zero_win = true));
    expect_n(w, 1);
    compare_engine_tick(w->e, w->now + 2 * G_USEC_PER_SEC);
    g_assert_cmpuint(w->triggers, ==, 0);
    compare_engine_tick(w->e, w->now + 3 * G_USEC_PER_SEC);
    g_assert_cmpuint(w->triggers, ==, 1);
    checkpoint(w, 1);
    Packet p;
    Frame *f = pop(w, &p);
    g_assert_cmpuint(p.ack, ==, CL + 1000);
    g_assert_cmpuint(p.win, ==, 1000);
    frame_unref(f);
    world_free(w);

    w = connected(); /* a window that is merely smaller costs nothing */
    P(w, ACK(ISN + 1, CL + 1000, .win = 1000));
    S(w, ACK(ISN + 1, CL + 1000, .win = 100));
    expect_n(w, 1);
    compare_engine_tick(w->e, w->now + 10 * G_USEC_PER_SEC);
    g_assert_cmpuint(w->triggers, ==, 0);
    world_free(w);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define T(name, fn) g_test_add_func("/compare-rules/" name, fn)
    T("log-vouches-for-acks", test_log_vouches_for_acks);
    T("log-within-window", test_log_within_window);
    T("log-is-not-far-ahead", test_log_is_not_far_ahead);
    T("log-of-another-epoch", test_log_of_another_epoch);
    T("log-of-a-reset-connection", test_log_of_a_reset_connection);
    T("log-wraps", test_log_wraps);
    T("malformed", test_malformed);
    T("saved-late", test_saved_late);
    T("guest-connects", test_guest_connects);
    T("guest-asks", test_guest_asks);
    T("storm", test_storm);
    T("lone-reset", test_lone_reset);
    T("reset-after-the-end", test_reset_after_the_end);
    T("blocked-client", test_blocked_client);
    return g_test_run();
}
