/*
 * A TCP connection through both sides of the proxy, in two processes: the client's data
 * that only the SVM lost.
 * Build: tests/unit/test-proxy-tcp.c; dependencies: net, chardev, util.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "net-frames.h"
#include "proxy-pair.h"

#define CL 5000u
#define PVM_ISN 1000u
#define SVM_ISN 0x7000u

/* Frames come from the pool of the net room, and so from under its lock. */
static void guest_out(Side *x, TestTcp t)
{
    net_lock();
    Frame *f = test_tcp(t);
    g_assert_cmpint(send(x->guest, f->data, f->len, MSG_DONTWAIT), ==, f->len);
    frame_unref(f);
    net_unlock();
}

static void parse(const uint8_t *data, int len, bool to_guest, Packet *pk)
{
    net_lock();
    Frame *f = frame_from(data, len);
    packet_parse(f, to_guest, pk);
    frame_unref(f);
    net_unlock();
}

static void client_out(TestTcp t)
{
    uint8_t b[4];

    t.to_guest = true;
    net_lock();
    Frame *f = test_tcp(t);
    put_be32(b, f->len);
    g_assert_cmpint(send(p.outside, b, 4, MSG_DONTWAIT), ==, 4);
    g_assert_cmpint(send(p.outside, f->data, f->len, MSG_DONTWAIT), ==, f->len);
    frame_unref(f);
    net_unlock();
}

/* The next TCP frame at the guest. */
static bool guest_in(Side *x, Packet *pk, int wait_ms)
{
    uint8_t b[2000];

    for (int i = 0; i <= wait_ms; i += 2) {
        ssize_t n = recv(x->guest, b, sizeof(b), MSG_DONTWAIT);
        if (n > 0) {
            parse(b, n, false, pk);
            if (pk->kind == PACKET_TCP) {
                return true;
            }
            continue;
        }
        g_usleep(2000);
    }
    return false;
}

static bool client_in(Side *x, Packet *pk, int wait_ms)
{
    uint8_t b[2100];

    for (int i = 0; i <= wait_ms; i += 2) {
        if (recv(x->outside, b, 4, MSG_DONTWAIT | MSG_PEEK) == 4) {
            int len = get_be32(b);
            g_assert_cmpint(recv(x->outside, b, 4 + len, MSG_WAITALL), ==, 4 + len);
            parse(b + 4, len, true, pk);
            if (pk->kind == PACKET_TCP) {
                return true;
            }
            continue;
        }
        g_usleep(2000);
    }
    return false;
}

/* Both guests get a segment of the client; only then is it lost, if it is. */
static void both_get(uint32_t seq, uint32_t len)
{
    Packet pk;

    g_assert_true(guest_in(&p, &pk, 2000));
    g_assert_cmpuint(pk.seq, ==, seq);
    g_assert_cmpuint(pk.body_len, ==, len);
    g_assert_true(guest_in(&s, &pk, 2000));
    g_assert_cmpuint(pk.seq, ==, seq);
    g_assert_cmpuint(pk.body_len, ==, len);
}

static void test_handshake(void)
{
    Packet pk;

    tell("start");
    net_lock();
    g_assert_true(proxy_start_primary(on_trigger, NULL, 0, NULL));
    net_unlock();
    checkpoint(1);
    client_out((TestTcp){.seq = CL - 1, .flags = TCP_SYN, .wscale = 7});
    both_get(CL - 1, 0);
    guest_out(&p, (TestTcp){.seq = PVM_ISN, .ack = CL, .flags = 0x12, .wscale = 7});
    guest_out(&s, (TestTcp){.seq = SVM_ISN, .ack = CL, .flags = 0x12, .wscale = 7});
    g_assert_true(client_in(&p, &pk, 2000));
    g_assert_cmpuint(pk.flags, ==, TCP_SYN | TCP_ACK);
    client_out((TestTcp){.seq = CL, .ack = PVM_ISN + 1});
    g_assert_true(guest_in(&p, &pk, 2000));
    g_assert_true(guest_in(&s, &pk, 2000));
    g_assert_cmpuint(pk.ack, ==, SVM_ISN + 1);
    /* Both say that they read on. */
    guest_out(&p, (TestTcp){.seq = PVM_ISN + 1, .ack = CL});
    guest_out(&s, (TestTcp){.seq = SVM_ISN + 1, .ack = CL});
    g_assert_true(client_in(&p, &pk, 2000));
    g_assert_cmpuint(pk.ack, ==, CL);
}

/* The PVM's ACK leaves without the SVM's: the secondary has the data. The SVM, which lost
 * it, gets it again although the client sends nothing more. */
static void test_svm_lost_it(void)
{
    Packet pk;

    client_out((TestTcp){.seq = CL, .ack = PVM_ISN + 1, .data = "upload", .len = 6});
    both_get(CL, 6);
    guest_out(&p, (TestTcp){.seq = PVM_ISN + 1, .ack = CL + 6});
    g_assert_true(client_in(&p, &pk, 2000));
    g_assert_cmpuint(pk.ack, ==, CL + 6);
    g_assert_true(guest_in(&s, &pk, 2000));
    g_assert_cmpuint(pk.seq, ==, CL);
    g_assert_cmpuint(pk.body_len, ==, 6);
    g_assert_cmpuint(pk.ack, ==, SVM_ISN + 1);
    guest_out(&s, (TestTcp){.seq = SVM_ISN + 1, .ack = CL + 6});
    while (guest_in(&s, &pk, 0)) {
    }
    g_assert_false(guest_in(&s, &pk, 100));
    for (int t = 0; t <= PROXY_TRIGGER_STREAM; t++) {
        g_assert_cmpint(wait_trigger(t, 0), ==, 0);
    }
}

/* A takeover does not forget: what the old primary acknowledged is still given. */
static void test_takeover(void)
{
    Packet pk;

    client_out((TestTcp){.seq = CL + 6, .ack = PVM_ISN + 1, .data = "more", .len = 4});
    both_get(CL + 6, 4);
    guest_out(&p, (TestTcp){.seq = PVM_ISN + 1, .ack = CL + 10});
    g_assert_true(client_in(&p, &pk, 2000));
    g_assert_cmpuint(pk.ack, ==, CL + 10);
    tell("mute");
    tell("takeover");
    g_assert_true(guest_in(&s, &pk, 2000));
    g_assert_cmpuint(pk.seq, ==, CL + 6);
    g_assert_cmpuint(pk.body_len, ==, 4);
    guest_out(&s, (TestTcp){.seq = SVM_ISN + 1, .ack = CL + 10});
    do {
        g_assert_true(client_in(&s, &pk, 2000));
    } while (pk.ack != CL + 10);
    g_assert_cmpuint(pk.seq, ==, PVM_ISN + 1);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    begin_story();
    g_test_add_func("/proxy-tcp/handshake", test_handshake);
    g_test_add_func("/proxy-tcp/svm-lost-it", test_svm_lost_it);
    g_test_add_func("/proxy-tcp/takeover", test_takeover);
    int r = g_test_run();
    net_shutdown();
    return r;
}
