/*
 * Tests of packets and flow keys.
 * Sources: net/colo/{packet,packet-edit,flow}.c, net/frame.c; dependency: glib.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "net-frames.h"

static void test_tcp_fields(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        for (int vlans = 0; vlans < 3; vlans++) {
            Frame *f = test_tcp((TestTcp){.v6 = v6,
                                          .n_vlans = vlans,
                                          .seq = 0x11223344,
                                          .ack = 0x55667788,
                                          .flags = TCP_SYN | TCP_ACK,
                                          .mss = 1460,
                                          .wscale = 7,
                                          .sack_ok = true,
                                          .ts = true,
                                          .tsval = 99,
                                          .tsecr = 98,
                                          .data = "abc",
                                          .len = 3});
            Packet p;

            packet_parse(f, true, &p);
            g_assert_cmpint(p.kind, ==, PACKET_TCP);
            g_assert_cmpuint(p.seq, ==, 0x11223344);
            g_assert_cmpuint(p.ack, ==, 0x55667788);
            g_assert_cmpuint(p.flags, ==, TCP_SYN | TCP_ACK);
            g_assert_cmpuint(p.mss, ==, 1460);
            g_assert_cmpuint(p.wscale, ==, 7);
            g_assert_true(p.sack_ok && p.has_ts);
            g_assert_cmpuint(p.tsval, ==, 99);
            g_assert_cmpuint(get_be32(f->data + p.ts_at), ==, 99);
            g_assert_cmpuint(p.body_len, ==, 3);
            g_assert_cmpmem(f->data + p.body, 3, "abc", 3);
            g_assert_cmpuint(p.key.guest_port, ==, 80);
            g_assert_cmpuint(p.key.client_port, ==, 40000);
            g_assert_cmpuint(!!p.key.vlan, ==, vlans > 0);
            frame_unref(f);
        }
    }
}

static void test_both_ways_one_key(void)
{
    Frame *out = test_tcp((TestTcp){.seq = 1});
    Frame *in = test_tcp((TestTcp){.seq = 1, .to_guest = true});
    Packet a, b;

    packet_parse(out, true, &a);
    packet_parse(in, false, &b);
    g_assert_true(flow_key_equal(&a.key, &b.key));
    g_assert_cmpuint(flow_key_hash(&a.key, 7), ==, flow_key_hash(&b.key, 7));
    packet_parse(in, true, &b);
    g_assert_false(flow_key_equal(&a.key, &b.key));
    frame_unref(out);
    frame_unref(in);
}

static void test_vlans_differ(void)
{
    Frame *x = test_tcp((TestTcp){.n_vlans = 1}), *y = test_tcp((TestTcp){.n_vlans = 2});
    Packet a, b;

    packet_parse(x, true, &a);
    packet_parse(y, true, &b);
    g_assert_false(flow_key_equal(&a.key, &b.key));
    frame_unref(x);
    frame_unref(y);
}

static void check_kind(Frame *f, PacketKind kind, bool solicit)
{
    Packet p;

    packet_parse(f, true, &p);
    g_assert_cmpint(p.kind, ==, kind);
    g_assert_cmpint(p.solicit, ==, solicit);
    frame_unref(f);
}

static void test_kinds(void)
{
    check_kind(test_arp(true, 9), PACKET_PASS, true);
    check_kind(test_arp(false, 9), PACKET_PASS, false);
    check_kind(test_udp(1, 2, false, "x"), PACKET_UDP, false);
    check_kind(test_udp(1, 2, true, "x"), PACKET_UDP, false);
    check_kind(test_icmp("x"), PACKET_ICMP, false);
    check_kind(test_fragment(0, true, "12345678"), PACKET_FRAGMENT, false);
    check_kind(test_raw(0x1234, "hello"), PACKET_OTHER, false);
    check_kind(test_raw(0x88cc, "lldp"), PACKET_PASS, false);
}

static void test_lies(void)
{
    Frame *f = test_tcp((TestTcp){.data = "abcd", .len = 4});
    Packet p;

    f->data[14 + 20 + 12] = 0xf0; /* a header longer than the segment */
    packet_parse(f, true, &p);
    g_assert_cmpint(p.kind, ==, PACKET_OTHER);
    f->data[14 + 20 + 12] = 0x40; /* shorter than a header */
    packet_parse(f, true, &p);
    g_assert_cmpint(p.kind, ==, PACKET_OTHER);
    f->data[14 + 20 + 12] = 0x50;
    packet_parse(f, true, &p);
    g_assert_cmpint(p.kind, ==, PACKET_TCP);
    put_be16(f->data + 16, 2000); /* an IP length beyond the frame */
    packet_parse(f, true, &p);
    g_assert_cmpint(p.kind, ==, PACKET_OTHER);
    for (uint32_t len = 0; len < 54; len++) {
        f->len = len;
        packet_parse(f, true, &p);
        g_assert_cmpint(p.kind, ==, PACKET_OTHER);
        g_assert_cmpuint(p.body + p.body_len, <=, len);
    }
    frame_unref(f);
}

static void test_padding_is_no_payload(void)
{
    Frame *f = test_tcp((TestTcp){.seq = 5});
    uint8_t b[60] = {0};
    Packet p;

    memcpy(b, f->data, f->len);
    frame_unref(f);
    f = frame_from(b, sizeof(b));
    packet_parse(f, true, &p);
    g_assert_cmpint(p.kind, ==, PACKET_TCP);
    g_assert_cmpuint(p.body_len, ==, 0);
    frame_unref(f);
}

static void test_edits(void)
{
    for (int i = 0; i < 3000; i++) {
        uint8_t data[101], put[9];
        uint32_t len = g_random_int_range(0, 101), at, n;
        Frame *f;
        Packet p;

        for (unsigned j = 0; j < sizeof(data); j++) {
            data[j] = i % 3 ? g_random_int() : i % 2 ? 0xff : 0;
        }
        for (unsigned j = 0; j < sizeof(put); j++) {
            put[j] = i % 5 ? g_random_int() : i % 2 ? 0 : 0xff;
        }
        f = test_tcp((TestTcp){.seq = g_random_int(),
                               .ack = g_random_int(),
                               .v6 = i & 1,
                               .n_vlans = i % 3,
                               .ts = true,
                               .tsval = 1,
                               .data = data,
                               .len = len});
        packet_parse(f, true, &p);
        packet_tcp_put32(f, p.l4, false, p.l4 + 4, g_random_int());
        packet_tcp_put16(f, p.l4, false, p.l4 + 14, g_random_int());
        n = g_random_int_range(1, 10);
        at = p.l4 + 20 + g_random_int_range(0, 12); /* odd places too */
        packet_tcp_put(f, p.l4, false, at, put, MIN(n, p.l4 + 32 - at));
        /* 0 and 0xffff are the same sum: compare by verifying, not by bytes. */
        if (!test_checksum_ok(f)) {
            uint16_t have = get_be16(f->data + p.l4 + 16);
            g_assert_true(have == 0 || have == 0xffff);
        }
        frame_unref(f);
    }
}

static void test_make_ack(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        Frame *f = test_tcp((TestTcp){.v6 = v6, .n_vlans = 1}), *a;
        PacketAck pa = {.seq = 7,
                        .ack = 8,
                        .win = 9,
                        .has_ts = true,
                        .tsval = 10,
                        .tsecr = 11,
                        .vnet_len = v6 ? 12 : 0};
        Packet p, q;

        packet_parse(f, true, &p);
        pa.key = &p.key;
        pa.l2 = f->data;
        pa.l2_len = p.l3;
        a = packet_make_ack(&pa);
        packet_parse(a, true, &q);
        g_assert_cmpint(q.kind, ==, PACKET_TCP);
        g_assert_true(flow_key_equal(&p.key, &q.key));
        g_assert_cmpuint(q.seq, ==, 7);
        g_assert_cmpuint(q.ack, ==, 8);
        g_assert_cmpuint(q.win, ==, 9);
        g_assert_cmpuint(q.tsval, ==, 10);
        g_assert_cmpuint(q.tsecr, ==, 11);
        g_assert_cmpuint(q.flags, ==, TCP_ACK);
        g_assert_cmpuint(q.body_len, ==, 0);
        g_assert_cmpuint(a->len, >=, 60);
        g_assert_cmpuint(a->vnet_len, ==, pa.vnet_len);
        g_assert_true(test_checksum_ok(a));
        frame_unref(a);
        frame_unref(f);
    }
}

static void test_fuzz(void)
{
    for (int i = 0; i < 200000; i++) {
        Frame *f = i & 1 ? test_tcp((TestTcp){.v6 = i & 2,
                                              .n_vlans = i % 3,
                                              .ts = true,
                                              .n_sack = i % 4,
                                              .data = "x",
                                              .len = i & 1})
                         : test_fragment(8, true, "0123456789");
        unsigned n = g_random_int_range(0, 8);
        Packet p;

        for (unsigned j = 0; j < n; j++) {
            f->data[g_random_int_range(0, f->len)] = g_random_int();
        }
        /* An exact copy, so that a sanitizer sees one byte too far. */
        f->len = g_random_int_range(0, f->len + 1);
        uint8_t *exact = g_memdup2(f->data, f->len), *was = f->data;
        f->data = exact;
        packet_parse(f, i & 4, &p);
        g_assert_cmpuint(p.body, <=, f->len);
        g_assert_cmpuint(p.body_len, <=, f->len - p.body);
        g_assert_cmpuint(p.l4, <=, f->len);
        g_assert_true(!p.has_ts || p.ts_at + 8u <= p.body);
        g_assert_true(!p.n_sack || p.sack_at + 8u * p.n_sack <= p.body);
        if (p.kind == PACKET_TCP) {
            g_assert_cmpuint(p.l4 + 20, <=, p.body);
        }
        g_free(exact);
        f->data = was;
        frame_unref(f);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/packet/tcp-fields", test_tcp_fields);
    g_test_add_func("/packet/both-ways-one-key", test_both_ways_one_key);
    g_test_add_func("/packet/vlans-differ", test_vlans_differ);
    g_test_add_func("/packet/kinds", test_kinds);
    g_test_add_func("/packet/lies", test_lies);
    g_test_add_func("/packet/padding", test_padding_is_no_payload);
    g_test_add_func("/packet/edits", test_edits);
    g_test_add_func("/packet/make-ack", test_make_ack);
    g_test_add_func("/packet/fuzz", test_fuzz);
    return g_test_run();
}
