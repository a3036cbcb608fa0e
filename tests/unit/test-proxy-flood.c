/*
 * A guest that floods while nobody vouches for it: it is made to wait, nothing is lost.
 * Build: tests/unit/test-proxy-flood.c; dependencies: net, chardev, util.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "proxy-pair.h"

#define BOUND (64u << 20) /* of the comparison, in bytes with what frames cost */
#define COST 2048
#define SLACK 128        /* frames that may be read beyond it */
#define GUEST_BUFFER (128 << 10)
#define MANY 100000 /* frames, three times the bound */

static uint32_t sent, seen; /* marks of the guest's frames, from 1 */

/* The guest sends up to mark @upto. True if its socket became full and stayed so. */
static bool flood(uint32_t upto)
{
    uint8_t b[60];
    int full = 0;

    while (sent < upto) {
        make_udp(b, true, 7, 4000, sent + 1);
        if (send(p.guest, b, sizeof(b), MSG_DONTWAIT) == sizeof(b)) {
            sent++;
            full = 0;
            continue;
        }
        g_assert_cmpint(errno, ==, EAGAIN);
        if (++full > 150) { /* longer than the comparison waits to look again */
            return true;
        }
        g_usleep(2000);
    }
    return false;
}

static uint64_t held(uint64_t *cost)
{
    uint64_t frames, bytes;

    net_lock();
    proxy_held(&frames, &bytes);
    net_unlock();
    *cost = bytes + frames * COST;
    return frames;
}

static void wait_held(uint64_t frames)
{
    uint64_t cost, n = 0;

    for (int i = 0; i < 2500 && (n = held(&cost)) != frames; i++) {
        g_usleep(2000);
    }
    g_assert_cmpuint(n, ==, frames);
}

/* All up to mark @upto have come out, in order, each once. */
static void client_got(uint32_t upto)
{
    while (seen < upto) {
        g_assert_cmpuint(client_gets(&p, 5000), ==, seen + 1);
        seen++;
    }
    g_assert_cmpuint(client_gets(&p, 20), ==, 0);
}

static void test_wait(void)
{
    g_autoptr(GError) err = NULL;
    uint64_t cost;

    tell("start");
    net_lock();
    /* All that is released at once has to wait for the test's reader. */
    chardev_set_backlog_max(chardev_find("#net-hn0"), 256u << 20);
    g_assert_true(proxy_start_primary(on_trigger, NULL, 0, &err));
    g_assert_no_error(err);
    net_unlock();
    checkpoint(1);
    g_assert_true(flood(MANY));
    uint64_t n = held(&cost);
    g_assert_cmpuint(cost, >=, BOUND);
    g_assert_cmpuint(cost, <, BOUND + SLACK * (COST + 60));
    g_assert_cmpuint(n, <, sent); /* the others lie in the socket */
    g_assert_cmpint(wait_trigger(PROXY_TRIGGER_BACKLOG, 2000), >, 0);
    g_assert_cmpuint(client_gets(&p, 20), ==, 0);
}

/* Before a stop the socket is emptied and stays so; the checkpoint ends the wait. */
static void test_checkpoint(void)
{
    uint64_t cost;

    net_lock();
    proxy_hold_input();
    g_assert_false(proxy_output_was_tight()); /* what had waited does not count */
    net_unlock();
    g_assert_cmpuint(held(&cost), ==, sent);
    g_assert_false(flood(sent + 200));
    wait_held(sent);
    g_autoptr(GBytes) b = primary_cut(2);
    uint32_t at_cut = sent;
    /* The transfer is slow: the guest, which runs again, waits again. */
    g_assert_true(flood(at_cut + MANY));
    uint64_t n = held(&cost);
    g_assert_cmpuint(n, <=, at_cut + SLACK);
    primary_done(2);
    client_got(at_cut);
    wait_held(sent - at_cut); /* the rest was read without anybody's help */
    net_lock();
    proxy_loaded(2, false);
    net_unlock();
    g_assert_false(flood(sent + 2000));
    g_autoptr(GBytes) c = primary_cut(3);
    primary_done(3);
    net_lock();
    proxy_loaded(3, false);
    net_unlock();
    client_got(sent);
}

/* Nobody is left who could make a checkpoint. */
static void test_silence(void)
{
    g_assert_true(flood(sent + MANY));
    net_lock();
    proxy_silence();
    net_unlock();
    g_assert_false(flood(sent + 5000));
    wait_held(sent - seen);
    net_lock();
    proxy_stop_primary();
    net_unlock();
    g_assert_false(flood(sent + 100));
    client_got(sent);
    kill(secondary, SIGKILL);
    waitpid(secondary, NULL, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    net_set_guest_buffer(GUEST_BUFFER);
    begin_story();
    g_test_add_func("/proxy-flood/wait", test_wait);
    g_test_add_func("/proxy-flood/checkpoint", test_checkpoint);
    g_test_add_func("/proxy-flood/silence", test_silence);
    int r = g_test_run();
    net_shutdown();
    return r;
}
