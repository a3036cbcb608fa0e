/*
 * The proxy's two sides in two processes: markers, holds, discards, gates, takeover.
 * Build: tests/unit/test-proxy-glue.c; dependencies: net, chardev, util.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "proxy-pair.h"

#define STREAM_TIMEOUT (400 * 1000)

static void test_unprotected(void)
{
    g_autoptr(GError) err = NULL;
    client_sends(&p, 1);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 1);
    tell("start");
    net_lock();
    g_assert_true(proxy_start_primary(on_trigger, NULL, STREAM_TIMEOUT, &err));
    g_assert_no_error(err);
    g_assert_false(proxy_start_primary(on_trigger, NULL, 0, NULL));
    net_unlock();
    client_sends(&p, 2);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 2);
    guest_sends(&p, 3);
    g_assert_cmpuint(client_gets(&p, 2000), ==, 3);
    g_assert_cmpuint(guest_gets(&s, 50), ==, 0); /* there is no guest yet */
    /* The secondary's gate is shut in both directions. */
    client_sends(&s, 4);
    guest_sends(&s, 5);
    g_assert_cmpuint(guest_gets(&s, 50), ==, 0);
    g_assert_cmpuint(client_gets(&s, 0), ==, 0);
}

static void test_first(void)
{
    net_lock();
    proxy_hold_input();
    net_unlock();
    client_sends(&p, 10);
    g_usleep(20000);
    checkpoint(1);
    /* Came while input was held: of the new epoch, for both. */
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 10);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 10);
    client_sends(&p, 11);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 11);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 11);
}

static void test_compare(void)
{
    guest_sends(&p, 20);
    g_assert_cmpuint(client_gets(&p, 5), ==, 0); /* withheld */
    guest_sends(&s, 20);
    g_assert_cmpuint(client_gets(&p, 2000), ==, 20);
    wait_trigger(PROXY_TRIGGER_TIMEOUT, 0);
    guest_sends(&s, 21);
    guest_sends(&p, 22); /* differs */
    g_assert_cmpuint(client_gets(&p, 50), ==, 0);
    g_usleep(300000);
    int n = wait_trigger(PROXY_TRIGGER_MISMATCH, 0) + wait_trigger(PROXY_TRIGGER_TIMEOUT, 0);
    g_assert_cmpint(n, >, 0);
    checkpoint(2);
    g_assert_cmpuint(client_gets(&p, 2000), ==, 22); /* vouched for by the checkpoint */
    g_assert_cmpuint(client_gets(&s, 0), ==, 0);
}

/* Frames that neither guest has read at the cut reach both once, in the new epoch. */
static void test_taken_back(void)
{
    for (uint32_t i = 30; i < 33; i++) {
        client_sends(&p, i);
    }
    g_usleep(30000);
    g_assert_cmpuint(guest_gets(&p, 0), ==, 30); /* the PVM took one of them */
    g_assert_cmpuint(guest_gets(&s, 200), ==, 30);
    g_assert_cmpuint(guest_gets(&s, 200), ==, 31); /* the SVM was faster: rolled back */
    checkpoint(3);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 31);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 32);
    g_assert_cmpuint(guest_gets(&p, 20), ==, 0);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 31);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 32);
    g_assert_cmpuint(guest_gets(&s, 20), ==, 0);
}

/* The roll-back begins before the marker has come, and ends before it too. */
static void test_early(void)
{
    tell("begin 4");
    client_sends(&p, 40); /* of epoch 3: past, when it arrives */
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 40);
    guest_sends(&s, 41); /* old output */
    tell("stopped");
    g_assert_cmpuint(guest_gets(&s, 30), ==, 0);
    g_autoptr(GBytes) b = primary_cut(4);
    client_sends(&p, 42);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 42);
    primary_done(4);
    g_assert_cmpuint(guest_gets(&s, 30), ==, 0); /* waits for the SVM to run */
    tell_blob("restore", b);
    tell("end 4");
    net_lock();
    proxy_loaded(4, false);
    net_unlock();
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 42);
    g_assert_cmpuint(guest_gets(&s, 20), ==, 0);
    /* The dropped output 41 is nobody's twin. */
    guest_sends(&p, 43);
    guest_sends(&s, 43);
    g_assert_cmpuint(client_gets(&p, 2000), ==, 43);
}

static void test_bad_state(void)
{
    int r = 0;
    static const char junk[] = "restore\0junkjunkjunkjunk";
    g_assert_cmpint(send(cmd, junk, sizeof(junk) - 1, 0), >, 0);
    g_assert_cmpint(read(cmd, &r, sizeof(r)), ==, sizeof(r));
    g_assert_cmpint(r, ==, 1);
}

/* A break of the mirror stream is a loss: told, and healed by the next checkpoint. */
static void test_reconnect(void)
{
    wait_trigger(PROXY_TRIGGER_STREAM, 0);
    tell("yank0");
    g_assert_cmpint(wait_trigger(PROXY_TRIGGER_STREAM, 2000), >, 0);
    for (bool up = false; !up; g_usleep(2000)) {
        net_lock();
        up = chardev_connected(chardev_find("mirror0"));
        net_unlock();
    }
    checkpoint(5);
    g_usleep(STREAM_TIMEOUT);
    g_assert_cmpint(wait_trigger(PROXY_TRIGGER_GONE, 0), ==, 0); /* it came up in time */
    client_sends(&p, 50);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 50);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 50);
}

/* In a buffered epoch nothing leaves before its checkpoint is received, and nobody
 * waits for a twin or asks for one; afterwards the two are compared again. */
static void test_standing(void)
{
    checkpoint(6);
    g_autoptr(GBytes) none = primary_cut(7);
    primary_done(7);
    tell("begin 7");
    tell("stopped");
    tell_blob("restore", none);
    tell("end 7");
    net_lock();
    proxy_loaded(7, true);
    net_unlock();
    wait_trigger(PROXY_TRIGGER_TIMEOUT, 0);
    wait_trigger(PROXY_TRIGGER_NO_TWIN, 0);
    wait_trigger(PROXY_TRIGGER_MISMATCH, 0);
    guest_sends(&p, 70);
    g_assert_cmpuint(client_gets(&p, 300), ==, 0);
    g_assert_cmpint(wait_trigger(PROXY_TRIGGER_TIMEOUT, 0), ==, 0);
    g_assert_cmpint(wait_trigger(PROXY_TRIGGER_NO_TWIN, 0), ==, 0);
    g_assert_cmpint(wait_trigger(PROXY_TRIGGER_MISMATCH, 0), ==, 0);
    g_autoptr(GBytes) b = primary_cut(8);
    guest_sends(&p, 71); /* of the next epoch */
    g_assert_cmpuint(client_gets(&p, 100), ==, 0); /* cut is not received */
    primary_done(8);
    g_assert_cmpuint(client_gets(&p, 2000), ==, 70);
    g_assert_cmpuint(client_gets(&p, 100), ==, 0);
    tell("begin 8");
    tell("stopped");
    tell_blob("restore", b);
    tell("end 8");
    net_lock();
    proxy_loaded(8, false);
    net_unlock();
    guest_sends(&s, 71);
    g_assert_cmpuint(client_gets(&p, 2000), ==, 71);
}

static void test_torn(void)
{
    client_sends(&p, 60);
    client_sends(&p, 61);
    g_usleep(30000);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 60);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 61);
    guest_sends(&p, 64); /* held, never vouched for */
    /* The PVM had not read them: mirrored again after a marker that nobody follows. */
    g_autoptr(GBytes) b = primary_cut(9);
    client_sends(&p, 62);
    g_usleep(50000);
    g_assert_cmpuint(guest_gets(&s, 0), ==, 0);
    tell("mute");
    guest_sends(&s, 63); /* not to the primary any more, and not out yet */
    g_assert_cmpuint(client_gets(&s, 30), ==, 0);
    g_assert_cmpuint(client_gets(&p, 0), ==, 0);
    tell("takeover");
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 62); /* 60 and 61 are not fed twice */
    g_assert_cmpuint(guest_gets(&s, 20), ==, 0);
    guest_sends(&s, 65);
    uint32_t m;
    do {
        m = client_gets(&s, 2000); /* 63 may be sent as owed */
        g_assert_cmpuint(m, !=, 0);
    } while (m != 65);
    client_sends(&s, 66);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 66);
    /* The old primary is not listened to. */
    client_sends(&p, 67);
    g_assert_cmpuint(guest_gets(&s, 50), ==, 0);
}

/* The primary's way out: silence, the comparison deleted, then the win. */
static void test_primary_exit(void)
{
    wait_trigger(PROXY_TRIGGER_STREAM, 0);
    kill(secondary, SIGKILL);
    waitpid(secondary, NULL, 0);
    while (guest_gets(&p, 0)) {
    }
    /* Both: while the mirror is not seen to be gone, input goes to the guest. */
    for (int gone = 0; gone < 2;) {
        int n = wait_trigger(PROXY_TRIGGER_STREAM, 5000);
        g_assert_cmpint(n, >, 0);
        gone += n;
    }
    client_sends(&p, 69);
    g_assert_cmpuint(guest_gets(&p, 50), ==, 0); /* unmirrored: seen by neither */
    /* The guest would be deaf for ever: not a checkpoint, the end of protection. */
    g_assert_cmpint(wait_trigger(PROXY_TRIGGER_GONE, 2000), >, 0);
    net_lock();
    proxy_silence();
    net_unlock();
    guest_sends(&p, 70);
    client_sends(&p, 71);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 71); /* input goes on */
    g_assert_cmpuint(client_gets(&p, 50), ==, 0);
    net_lock();
    uint64_t frames, bytes;
    proxy_held(&frames, &bytes);
    g_assert_cmpuint(frames, ==, 2); /* 64 and 70 */
    static const char *const ids[] = {"comp0", "iothread1", "m0", "redire0", "redire1"};
    for (unsigned i = 0; i < G_N_ELEMENTS(ids); i++) {
        g_assert_true(net_object_del(ids[i], NULL));
    }
    proxy_held(&frames, &bytes);
    g_assert_cmpuint(frames, ==, 2);
    net_unlock();
    guest_sends(&p, 72);
    g_assert_cmpuint(client_gets(&p, 50), ==, 0);
    net_lock();
    proxy_stop_primary();
    g_assert_cmpint(net_get_role(), ==, NET_ROLE_ALONE);
    net_unlock();
    g_assert_cmpuint(client_gets(&p, 2000), ==, 64);
    g_assert_cmpuint(client_gets(&p, 2000), ==, 70);
    g_assert_cmpuint(client_gets(&p, 2000), ==, 72);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    begin_story();
    g_test_add_func("/proxy-glue/unprotected", test_unprotected);
    g_test_add_func("/proxy-glue/first", test_first);
    g_test_add_func("/proxy-glue/compare", test_compare);
    g_test_add_func("/proxy-glue/taken-back", test_taken_back);
    g_test_add_func("/proxy-glue/early", test_early);
    g_test_add_func("/proxy-glue/bad-state", test_bad_state);
    g_test_add_func("/proxy-glue/reconnect", test_reconnect);
    g_test_add_func("/proxy-glue/standing", test_standing);
    g_test_add_func("/proxy-glue/torn", test_torn);
    g_test_add_func("/proxy-glue/primary-exit", test_primary_exit);
    int r = g_test_run();
    net_shutdown();
    return r;
}
