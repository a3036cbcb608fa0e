/*
 * vnet headers: half-done checksums, large segments, headers that lie.
 * Build: tests/unit/test-vnet.c; dependencies: net, chardev, util.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib.h>
#include <netinet/in.h>
#include <string.h>

#include "net/net.h"
#include "net/vnet.h"
#include "net-frames.h"

static FrameQueue out;
static VnetStats stats;

static void take(Frame *f, void *opaque)
{
    g_assert_cmpuint(f->ref, ==, 1);
    frame_queue_push(&out, f);
}

/* @f with a header of @len bytes before it; takes @f. */
static Frame *with_header(Frame *f, unsigned len, uint8_t flags, uint8_t gso,
                          uint16_t gso_size, uint16_t start, uint16_t offset)
{
    uint8_t h[12] = {flags, gso, 0xff, 0xff, gso_size & 255, gso_size >> 8,
                     start & 255, start >> 8, offset & 255, offset >> 8};

    memcpy(f->data - len, h, MIN(len, sizeof(h)));
    f->vnet_len = len;
    return f;
}

static void run(Frame *f)
{
    frame_queue_clear(&out);
    memset(&stats, 0, sizeof(stats));
    vnet_make_plain(f, take, NULL, &stats);
    for (Frame *o = out.head; o; o = o->next) {
        for (unsigned i = 0; i < o->vnet_len; i++) {
            g_assert_cmpuint(*(o->data - 1 - i), ==, 0);
        }
    }
}

/* The sum of the pseudo header alone, as a guest leaves it. */
static void half(Frame *f, const Packet *p, uint8_t proto, uint32_t at)
{
    const uint8_t *ip = f->data + p->l3;
    bool v6 = ip[0] >> 4 == 6;
    uint32_t sum = proto + (f->len - p->l4);

    for (int i = v6 ? 8 : 12; i < (v6 ? 40 : 20); i += 2) {
        sum += get_be16(ip + i);
    }
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    put_be16(f->data + at, sum);
}

static Frame *large(bool v6, uint32_t n, uint8_t flags)
{
    g_autofree char *text = g_malloc(n + 1);
    for (uint32_t i = 0; i < n; i++) {
        text[i] = 'a' + i % 26;
    }
    return test_tcp((TestTcp){.seq = 0xfffffff0u, .ack = 77, .flags = flags, .win = 100,
                              .v6 = v6, .data = text, .len = n});
}

static void test_none(void)
{
    Frame *f = large(false, 100, TCP_ACK);
    g_autofree uint8_t *copy = g_memdup2(f->data, f->len);
    uint32_t len = f->len;

    run(f);
    g_assert_cmpuint(out.count, ==, 1);
    run(with_header(frame_from(copy, len), 12, 2 /* data valid */, 0, 9, 9, 9));
    g_assert_cmpmem(out.head->data, out.head->len, copy, len);
    run(with_header(frame_from(copy, len), 3, 0xff, 0xff, 9, 9, 9)); /* no header */
    g_assert_cmpmem(out.head->data, out.head->len, copy, len);
    g_assert_cmpuint(stats.bad + stats.completed + stats.split, ==, 0);
}

static void test_checksum(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        for (unsigned n = 0; n < 40; n++) {
            Frame *f = large(v6, n, TCP_ACK | TCP_PSH);
            Packet p;
            packet_parse(f, true, &p);
            g_autofree uint8_t *copy = g_memdup2(f->data, f->len);
            uint32_t len = f->len;
            if (len > p.body + p.body_len) {
                f->len = len = p.body + p.body_len; /* the guest pads later */
            }
            half(f, &p, IPPROTO_TCP, p.l4 + 16);
            run(with_header(f, 12, 1, 0, 0, p.l4, 16));
            g_assert_cmpuint(stats.completed, ==, 1);
            g_assert_cmpmem(out.head->data, out.head->len, copy, len);
        }
    }
    /* A shared frame is copied, not changed. */
    Frame *f = large(false, 30, TCP_ACK);
    Packet p;
    packet_parse(f, true, &p);
    half(f, &p, IPPROTO_TCP, p.l4 + 16);
    with_header(f, 12, 1, 0, 0, p.l4, 16);
    uint16_t before = get_be16(f->data + p.l4 + 16);
    run(frame_ref(f));
    g_assert_cmpuint(get_be16(f->data + p.l4 + 16), ==, before);
    g_assert_true(test_checksum_ok(out.head));
    frame_unref(f);
}

static void check_split(bool v6, uint32_t n, uint16_t size, uint8_t gso)
{
    Frame *f = large(v6, n, TCP_ACK | TCP_PSH | TCP_FIN | TCP_CWR);
    g_autofree uint8_t *whole = g_memdup2(f->data, f->len);
    Packet p;
    uint32_t at = 0, k = 0;

    packet_parse(f, true, &p);
    half(f, &p, IPPROTO_TCP, p.l4 + 16);
    uint32_t head = p.body;
    run(with_header(f, 10, 1, gso, size, p.l4, 16));
    g_assert_cmpuint(stats.split, ==, 1);
    g_assert_cmpuint(out.count, ==, MAX(1, (n + size - 1) / size));
    for (Frame *o = out.head; o; o = o->next, k++) {
        Packet q;
        packet_parse(o, true, &q);
        g_assert_cmpuint(q.kind, ==, PACKET_TCP);
        g_assert_cmpuint(q.seq, ==, 0xfffffff0u + at);
        g_assert_cmpuint(q.body_len, ==, MIN(size, n - at));
        g_assert_cmpmem(o->data + q.body, q.body_len, whole + head + at, q.body_len);
        bool last = !o->next;
        g_assert_cmpuint(q.flags, ==, TCP_ACK | (last ? TCP_PSH | TCP_FIN : 0) |
                                          (k == 0 ? TCP_CWR : 0));
        g_assert_true(test_checksum_ok(o));
        if (!v6) {
            g_assert_cmpuint(get_be16(o->data + q.l3 + 4), ==,
                             (uint16_t)(get_be16(whole + p.l3 + 4) + k));
        }
        at += q.body_len;
    }
    g_assert_cmpuint(at, ==, n);
}

static void test_split(void)
{
    check_split(false, 64000, 1460, 1);
    check_split(true, 60000, 1440, 4);
    check_split(false, 1460 * 3, 1460, 1 | 0x80);
    check_split(false, 1461, 1460, 1);
    check_split(false, 5, 1460, 1);
    check_split(true, 100, 1, 4);
}

static void test_split_udp(void)
{
    g_autofree char *text = g_strnfill(1900, 'x');
    Frame *f = test_udp(53, 4000, false, text);
    Packet p;

    packet_parse(f, true, &p);
    run(with_header(f, 12, 1, 5, 500, p.l4, 6));
    g_assert_cmpuint(out.count, ==, 4);
    uint32_t total = 0;
    for (Frame *o = out.head; o; o = o->next) {
        Packet q;
        packet_parse(o, true, &q);
        g_assert_cmpuint(q.kind, ==, PACKET_UDP);
        g_assert_cmpuint(get_be16(o->data + q.l4 + 4), ==, 8 + q.body_len);
        total += q.body_len;
    }
    g_assert_cmpuint(total, ==, 1900);
}

/* What a header claims is never believed. */
static void test_lies(void)
{
    struct {
        bool v6;
        uint8_t gso;
        uint16_t size;
    } drop[] = {{false, 4, 1400}, {true, 1, 1400}, {false, 1, 0}, {false, 5, 1400},
                {false, 3, 1400}, {false, 99, 1400}, {false, 1, 1}};
    for (unsigned i = 0; i < G_N_ELEMENTS(drop); i++) {
        run(with_header(large(drop[i].v6, 60000, TCP_ACK), 12, 1, drop[i].gso,
                        drop[i].size, 34, 16));
        g_assert_cmpuint(out.count, ==, 0);
        g_assert_cmpuint(stats.bad, ==, 1);
    }
    static const uint16_t starts[][2] = {{0, 0}, {13, 1}, {60000, 16}, {34, 65535}, {53, 0}};
    for (unsigned i = 0; i < G_N_ELEMENTS(starts); i++) {
        Frame *f = large(false, 0, TCP_ACK);
        f->len = 54;
        g_autofree uint8_t *copy = g_memdup2(f->data, f->len);
        run(with_header(f, 12, 1, 0, 0, starts[i][0], starts[i][1]));
        g_assert_cmpuint(stats.bad, ==, 1);
        g_assert_cmpmem(out.head->data, out.head->len, copy, 54);
    }
    /* Random headers before random frames: no crash, no frame longer than it was. */
    const char *seed = g_getenv("COLO_SEED");
    guint32 s = seed ? (guint32)g_ascii_strtoull(seed, NULL, 10) : g_random_int();
    g_test_message("COLO_SEED=%u", s);
    g_autoptr(GRand) r = g_rand_new_with_seed(s);
    for (int i = 0; i < 20000; i++) {
        Frame *f = i & 1 ? large(g_rand_boolean(r), g_rand_int_range(r, 0, 3000), TCP_ACK)
                         : frame_new(g_rand_int_range(r, 1, 200));
        uint32_t len = f->len;
        for (uint32_t k = 0; !(i & 1) && k < len; k++) {
            f->data[k] = g_rand_int(r);
        }
        for (int k = g_rand_int_range(r, 0, 4); k > 0; k--) {
            f->data[g_rand_int_range(r, 0, len)] = g_rand_int(r);
        }
        f->len = g_rand_int_range(r, 1, len + 1);
        with_header(f, g_rand_int_range(r, 0, 13), g_rand_int(r),
                    g_rand_int(r) % (g_rand_boolean(r) ? 6 : 256),
                    g_rand_int_range(r, 0, g_rand_boolean(r) ? 100 : 65535),
                    g_rand_int_range(r, 0, 300), g_rand_int_range(r, 0, 300));
        run(f);
        for (Frame *o = out.head; o; o = o->next) {
            g_assert_cmpuint(o->len, <=, len);
        }
    }
    frame_queue_clear(&out);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/vnet/none", test_none);
    g_test_add_func("/vnet/checksum", test_checksum);
    g_test_add_func("/vnet/split", test_split);
    g_test_add_func("/vnet/split-udp", test_split_udp);
    g_test_add_func("/vnet/lies", test_lies);
    return g_test_run();
}
