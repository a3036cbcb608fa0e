/*
 * Tests of the comparison engine: what must never cost a checkpoint, each alone, in IPv4
 * and IPv6, with and without options, extension headers and two VLAN tags, at numbers
 * that wrap; and that flows do not wait for each other.
 * Build: tests/unit/test-compare-never.c; dependencies: net.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "compare-world.h"

typedef struct Variant {
    const char *name;
    bool v6, tags, options;
    uint32_t isn, cl;
} Variant;

static const Variant variants[] = {
    {"ipv4", false, false, false, 1000, 5000},
    {"ipv4, options", false, false, true, 1000, 5000},
    {"ipv4, two tags, wrap", false, true, false, 0xfffffffc, 0xfffffff0},
    {"ipv6", true, false, false, 1000, 5000},
    {"ipv6, extension headers", true, false, true, 0xffffffff, 5000},
    {"ipv6, two tags, extension headers", true, true, true, 1000, 0xfffffffe},
};

static const Variant *v;
static World *w;
#define N0 (v->isn + 1) /* the stream's first byte */
#define A0 (v->cl)      /* the client's */

static Frame *insert(Frame *f, uint32_t at, const uint8_t *bytes, uint32_t len)
{
    Frame *n = frame_new(f->len + len);

    memcpy(n->data, f->data, at);
    memcpy(n->data + at, bytes, len);
    memcpy(n->data + at + len, f->data + at, f->len - at);
    frame_unref(f);
    return n;
}

/* IPv4 options, or a hop-by-hop and a destination header, where the variant has them. */
static Frame *dress(Frame *f)
{
    static const uint8_t alert[8] = {0x94, 4, 0, 0, 1, 1, 1, 0};
    uint8_t ext[16] = {60, 0, 5, 2, 0, 0, 1, 0, 0, 0, 1, 4};
    Packet p;

    packet_parse(f, true, &p);
    if (!v->options || p.kind == PACKET_PASS) {
        return f;
    }
    uint32_t l3 = p.l3;
    uint8_t *ip = f->data + l3;
    if (ip[0] >> 4 == 6) {
        ext[8] = ip[6];
        ip[6] = 0;
        put_be16(ip + 4, get_be16(ip + 4) + 16);
        f = insert(f, l3 + 40, ext, 16);
    } else {
        ip[0] += 2;
        put_be16(ip + 2, get_be16(ip + 2) + 8);
        f = insert(f, l3 + 20, alert, 8);
        test_ip_sum(f->data + l3);
    }
    packet_parse(f, true, &p);
    if (p.kind == PACKET_TCP) {
        packet_tcp_checksum(f, &p);
    }
    return f;
}

#define VARY .v6 = v->v6, .n_vlans = 2 * v->tags
#define SEG(at, text, a, ...)                                                            \
    dress(test_tcp((TestTcp){.seq = N0 + (at), .ack = A0 + (a), .data = text,            \
                             .len = strlen(text), VARY, __VA_ARGS__}))

static void open_connection(uint16_t port, bool ts)
{
    for (int i = 0; i < 2; i++) {
        Frame *f = dress(test_tcp((TestTcp){.flags = TCP_SYN | TCP_ACK, .mss = 1460,
                                            .wscale = 7, .sack_ok = true, .ts = ts,
                                            .tsval = 70 + 1000000 * i,
                                            .seq = v->isn + 12345 * i, .ack = v->cl,
                                            .client_port = port, VARY}));
        i ? S(w, f) : P(w, f);
    }
    expect_n(w, 1);
    P(w, SEG(0, "", 0, .client_port = port, .ts = ts, .tsval = 71));
    S(w, SEG(0, "", 0, .client_port = port, .ts = ts, .tsval = 1000071));
    frame_queue_clear(&w->out);
}

/* What left, as a stream from N0: all of it is @text, whatever the frames. */
static void expect_stream(const char *text, bool fin)
{
    uint8_t got[64] = {0};
    bool got_fin = false;
    uint32_t end = 0;
    Frame *f;

    while ((f = frame_queue_pop(&w->out))) {
        Packet p;
        packet_parse(f, true, &p);
        g_assert_cmpint(p.kind, ==, PACKET_TCP);
        g_assert_true(test_checksum_ok(f));
        uint32_t at = p.seq - N0;
        if (p.body_len) {
            g_assert_cmpuint(at, <=, end); /* no hole: what is equal leaves in order */
            g_assert_cmpuint(at + p.body_len, <=, strlen(text));
            memcpy(got + at, f->data + p.body, p.body_len);
            end = MAX(end, at + p.body_len);
        }
        got_fin |= p.flags & TCP_FIN;
        frame_unref(f);
    }
    g_assert_cmpstr((char *)got, ==, text);
    g_assert_cmpint(got_fin, ==, fin);
}

/* --- One after the other --- */

static void other_segments(void)
{
    P(w, SEG(0, "abcdef", 0));
    S(w, SEG(0, "ab", 0));
    S(w, SEG(2, "cdef", 0));
    P(w, SEG(6, "gh", 0));
    P(w, SEG(8, "i", 0));
    S(w, SEG(6, "ghi", 0));
    expect_stream("abcdefghi", false);
}

static void primary_repeats(void)
{
    P(w, SEG(0, "abc", 0));
    P(w, SEG(0, "abc", 0));
    P(w, SEG(1, "bcd", 0));
    S(w, SEG(0, "abcd", 0));
    P(w, SEG(0, "abcd", 0));
    expect_stream("abcd", false);
}

static void secondary_repeats(void)
{
    S(w, SEG(0, "abc", 0));
    S(w, SEG(0, "abc", 0));
    S(w, SEG(2, "cde", 0));
    P(w, SEG(0, "abcde", 0));
    S(w, SEG(0, "abcde", 0));
    expect_stream("abcde", false);
}

static void either_reorders(void)
{
    P(w, SEG(3, "def", 0));
    P(w, SEG(0, "abc", 0));
    S(w, SEG(0, "abcdef", 0));
    frame_queue_clear(&w->out); /* the PVM's own order: not ours to mend */
    P(w, SEG(6, "ghi", 0));
    P(w, SEG(9, "jkl", 0));
    S(w, SEG(10, "kl", 0));
    S(w, SEG(8, "ij", 0));
    expect_none(w);
    S(w, SEG(6, "gh", 0));
    expect_n(w, 2);
}

static void fin_alone_or_with_data(void)
{
    P(w, SEG(0, "abc", 0, .flags = TCP_FIN | TCP_ACK));
    S(w, SEG(0, "abc", 0));
    S(w, SEG(3, "", 0, .flags = TCP_FIN | TCP_ACK));
    expect_stream("abc", true);
}

static void acks_differ(void)
{
    P(w, SEG(0, "", 10));
    P(w, SEG(0, "", 20));
    S(w, SEG(0, "", 20));
    P(w, SEG(0, "", 40));
    S(w, SEG(0, "", 30));
    S(w, SEG(0, "", 35));
    S(w, SEG(0, "", 40));
    S(w, SEG(0, "", 90)); /* ahead */
    S(w, SEG(0, "", 90));
    P(w, SEG(0, "", 90));
    frame_queue_clear(&w->out);
}

static void windows_differ(void)
{
    P(w, SEG(0, "", 10, .win = 500));
    S(w, SEG(0, "", 10, .win = 300));
    P(w, SEG(0, "", 10, .win = 900));
    S(w, SEG(0, "", 10, .win = 200));
    P(w, SEG(0, "", 10, .win = 100)); /* the PVM shrinks it */
    S(w, SEG(0, "", 10, .win = 900));
    frame_queue_clear(&w->out);
}

static void sack_differs(void)
{
    P(w, SEG(0, "abc", 0, .n_sack = 1, .sack = {A0 + 100, A0 + 200}));
    S(w, SEG(0, "abc", 0));
    S(w, SEG(3, "", 0, .n_sack = 1, .sack = {A0 + 100, A0 + 150}));
    expect_stream("abc", false);
}

static void flags_differ(void)
{
    P(w, SEG(0, "abc", 0, .flags = TCP_ACK | TCP_PSH));
    S(w, SEG(0, "abc", 0, .flags = TCP_ACK | TCP_ECE));
    P(w, SEG(3, "def", 0));
    S(w, SEG(3, "def", 0, .flags = TCP_ACK | TCP_PSH | TCP_CWR));
    expect_stream("abcdef", false);
}

static void keepalives_and_probes(void)
{
    P(w, SEG(0, "abc", 0));
    S(w, SEG(0, "abc", 0));
    P(w, SEG(2, "", 0));
    P(w, SEG(2, "c", 0));
    S(w, SEG(2, "", 0));
    expect_stream("abc", false);
}

static void header_fields(void)
{
    for (int i = 0; i < 2; i++) {
        Frame *f = SEG(3 * i, i ? "def" : "abc", 0), *t = frame_from(f->data, f->len);
        uint8_t *ip = t->data + 14 + 8 * v->tags;

        if (v->v6) {
            ip[1] ^= 0x35; /* traffic class, flow label */
            ip[3] ^= 0x77;
            ip[7] -= 3;
        } else {
            ip[1] ^= 2;
            put_be16(ip + 4, get_be16(ip + 4) + 1 + i); /* id */
            ip[8] -= 3;
            test_ip_sum(ip);
        }
        P(w, f);
        S(w, t);
    }
    expect_stream("abcdef", false);
}

static void timestamps_differ(void)
{
    open_connection(7, true);
    for (int i = 0; i < 3; i++) {
        P(w, SEG(i, "x", 0, .client_port = 7, .ts = true, .tsval = 100 + i));
        w->now += 3000;
        S(w, SEG(i, "x", 0, .client_port = 7, .ts = true, .tsval = 1000200 + 5 * i));
    }
    expect_n(w, 3);
}

static void neighbours(void)
{
    for (int i = 0; i < 5; i++) {
        P(w, test_arp(true, i));
        P(w, test_arp(false, i));
        S(w, test_arp(i & 1, 9 + i));
    }
    expect_n(w, 10);
}

static void slow_secondary(void)
{
    char text[2] = "a";

    for (int i = 0; i < 200; i++) {
        P(w, SEG(i, text, i));
        w->now += 4000 + 25 * i; /* to 9 ms */
        compare_engine_tick(w->e, w->now);
        S(w, SEG(i, text, i));
    }
    frame_queue_clear(&w->out);
    for (int i = 200; i < 300; i++) { /* then four times its habit, once in a while */
        P(w, SEG(i, text, i));
        w->now += i % 50 ? 8000 : 25000;
        compare_engine_tick(w->e, w->now);
        S(w, SEG(i, text, i));
    }
    frame_queue_clear(&w->out);
}

static void delayed_acks(void)
{
    for (int i = 0; i < 10; i++) {
        P(w, SEG(0, "", 100 * i));
        w->now += 45000;
        compare_engine_tick(w->e, w->now);
        S(w, SEG(0, "", 100 * i));
    }
    frame_queue_clear(&w->out);
}

#define UDP(port, text) dress(test_udp(9, port, v->v6, text))

static Frame *echo(const char *text)
{
    Frame *f;

    if (!v->v6) {
        return dress(test_icmp(text));
    }
    f = test_udp(129 << 8, 0, true, text); /* the type where the port was */
    f->data[20] = 58;
    return dress(f);
}

static Frame *part(uint32_t offset, bool more, const char *text)
{
    static const uint8_t none[8];
    Frame *f;

    if (!v->v6) {
        return dress(test_fragment(offset, more, text));
    }
    f = insert(test_udp(9, 4000, true, text), 54, none, 8);
    put_be16(f->data + 18, get_be16(f->data + 18) + 8);
    f->data[20] = 44;
    f->data[54] = 17;
    put_be16(f->data + 56, offset | more);
    put_be32(f->data + 58, g_random_int()); /* the id is nobody's business */
    return f;
}

static void datagrams_in_any_order(void)
{
    P(w, UDP(4000, "one"));
    P(w, UDP(4000, "two"));
    S(w, UDP(4000, "two"));
    S(w, UDP(4000, "one"));
    P(w, UDP(4000, "two"));
    S(w, UDP(4000, "two"));
    P(w, echo("ping"));
    S(w, echo("ping"));
    P(w, part(0, true, "first"));
    P(w, part(8, false, "last"));
    S(w, part(8, false, "last"));
    S(w, part(0, true, "first"));
    S(w, UDP(4000, "only the SVM's"));
    expect_n(w, 6);
}

static const struct {
    const char *name;
    void (*fn)(void);
} cases[] = {
    {"other-segments", other_segments},
    {"primary-repeats", primary_repeats},
    {"secondary-repeats", secondary_repeats},
    {"either-reorders", either_reorders},
    {"fin-alone-or-with-data", fin_alone_or_with_data},
    {"acks-differ", acks_differ},
    {"windows-differ", windows_differ},
    {"sack-differs", sack_differs},
    {"flags-differ", flags_differ},
    {"keepalives-and-probes", keepalives_and_probes},
    {"header-fields", header_fields},
    {"timestamps-differ", timestamps_differ},
    {"neighbours", neighbours},
    {"slow-secondary", slow_secondary},
    {"delayed-acks", delayed_acks},
    {"datagrams-in-any-order", datagrams_in_any_order},
};

static void run_case(gconstpointer opaque)
{
    void (*fn)(void) = cases[GPOINTER_TO_UINT(opaque)].fn;

    for (unsigned i = 0; i < G_N_ELEMENTS(variants); i++) {
        CompareStats st;

        v = &variants[i];
        g_test_message("%s", v->name);
        w = world_new(NULL);
        open_connection(40000, false);
        fn();
        w->now += 9000;
        compare_engine_tick(w->e, w->now);
        g_assert_cmpuint(w->triggers, ==, 0);
        compare_engine_stats(w->e, &st);
        g_assert_cmpuint(st.held_frames, ==, 0);
        for (int c = 0; c < COMPARE_CAUSE__MAX; c++) {
            g_assert_cmpuint(st.by_cause[c], ==, 0);
        }
        g_assert_cmpuint(st.malformed[0] + st.malformed[1], ==, 0);
        world_free(w);
    }
}

/* --- Flows do not wait for each other --- */

static void test_no_flow_waits_for_another(void)
{
    v = &variants[0];
    w = world_new(NULL);
    for (int i = 1; i <= 3; i++) {
        open_connection(i, false);
    }
    P(w, SEG(0, "waits", 0, .client_port = 1));
    P(w, test_udp(9, 4000, false, "waits"));
    P(w, SEG(0, "goes", 0, .client_port = 2));
    P(w, SEG(0, "differs", 0, .client_port = 3));
    S(w, SEG(0, "DIFFERS", 0, .client_port = 3));
    S(w, SEG(0, "goes", 0, .client_port = 2));
    expect_n(w, 1);
    P(w, test_udp(9, 4001, false, "goes"));
    S(w, test_udp(9, 4001, false, "goes"));
    expect_n(w, 1);
    P(w, test_udp(9, 4000, false, "overtakes")); /* a datagram waits for none */
    S(w, test_udp(9, 4000, false, "overtakes"));
    expect_n(w, 1);
    S(w, SEG(0, "waits", 0, .client_port = 1));
    expect_n(w, 1);
    g_assert_cmpuint(w->triggers, ==, 1);
    world_free(w);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *path = g_strdup_printf("/compare-never/%s", cases[i].name);
        g_test_add_data_func(path, GUINT_TO_POINTER(i), run_case);
    }
    g_test_add_func("/compare-never/no-flow-waits-for-another",
                    test_no_flow_waits_for_another);
    return g_test_run();
}
