/*
 * The pulse: until when a primary may speak, and how long its secondary waits.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib.h>
#include <string.h>
#include <sys/socket.h>

#include "migration/pulse.h"
#include "net/net.h"

#define TIMEOUT_MS 400
#define LEASE_US (TIMEOUT_MS * 1000LL * 4 / 5)
#define STALL_MS 3000
#define LATE_US 150000
#define LONG_MS 20000
#define SOON_US 250000 /* a busy machine may need longer than the control channel gets */

/* What the primary's pulse told. */
static gint64 until;    /* atomic */
static gint times_lost; /* atomic */

static void note_until(int64_t boot_us)
{
    __atomic_store_n(&until, boot_us, __ATOMIC_SEQ_CST);
}

static void note_lost(const char *why)
{
    g_assert_nonnull(why);
    g_atomic_int_inc(&times_lost);
}

static const PulseHooks hooks = {note_until, note_lost};

typedef struct Ends {
    Channel *a, *b; /* of the primary, of the secondary */
    Pulse *primary;
} Ends;

static void begin(Ends *e)
{
    int sv[2];

    g_assert_no_errno(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv));
    note_until(0);
    g_atomic_int_set(&times_lost, 0);
    e->a = channel_new(sv[0], LONG_MS);
    e->b = channel_new(sv[1], LONG_MS);
    e->primary = pulse_new(e->a, TIMEOUT_MS, STALL_MS, &hooks);
}

static void end(Ends *e)
{
    pulse_free(e->primary);
    channel_free(e->a);
    if (e->b) {
        channel_free(e->b);
    }
}

static gint64 said(void)
{
    return __atomic_load_n(&until, __ATOMIC_SEQ_CST);
}

/* Whatever the two threads' turns: once the secondary has frozen, what it waits for is later than
 * all that the primary was ever told. */
static void test_lease(void)
{
    g_autoptr(GError) err = NULL;
    Ends e;

    begin(&e);
    Pulse *s = pulse_new(e.b, TIMEOUT_MS, STALL_MS, NULL);
    g_assert_true(pulse_arm(e.primary, LONG_MS, &err));
    gint64 first = said();
    g_assert_cmpint(first, >, 0);
    g_assert_cmpint(first, <=, net_boot_us() + LEASE_US);
    gint64 give_up = g_get_monotonic_time() + LONG_MS * 1000LL;
    while (said() == first) { /* renewed, without a word of ours */
        g_assert_cmpint(g_get_monotonic_time(), <, give_up);
        g_usleep(1000);
    }
    pulse_freeze(s);
    gint64 left = pulse_peer_lease_left(s);
    gint64 served = net_boot_us() + left;
    g_usleep(LATE_US); /* what was under way comes */
    g_assert_cmpint(said(), <=, served - TIMEOUT_MS * 1000LL / 5);
    while (pulse_peer_lease_left(s) > 0) {
        g_usleep(1000);
    }
    g_assert_cmpint(net_boot_us(), >, said());
    g_assert_cmpint(pulse_lease_left(e.primary), ==, 0);
    g_assert_cmpint(g_atomic_int_get(&times_lost), ==, 0);
    pulse_free(s);
    end(&e);
}

/* The peer by hand: the time that comes next. */
static uint64_t take(Channel *ch)
{
    g_autoptr(GError) err = NULL;
    ChannelMsg msg;

    g_assert_cmpint(channel_recv(ch, &msg, LONG_MS, &err), ==, CHANNEL_OK);
    g_assert_cmpint(msg.type, ==, CHANNEL_PULSE);
    return channel_msg_u64(&msg, 0);
}

/* An answer that took long proves what was then, not what is now. */
static void test_late_answer(void)
{
    g_autoptr(GError) err = NULL;
    Ends e;

    begin(&e);
    uint64_t t = take(e.b);
    g_usleep(LATE_US);
    g_assert_true(channel_send_u64(e.b, CHANNEL_PULSE, &t, 1, &err));
    g_assert_true(pulse_arm(e.primary, LONG_MS, &err));
    g_assert_cmpint(said(), ==, (gint64)t + LEASE_US);
    /* An older one after it takes nothing back, and gives nothing. */
    uint64_t older = t - 1;
    g_assert_true(channel_send_u64(e.b, CHANNEL_PULSE, &older, 1, &err));
    take(e.b);
    g_usleep(LATE_US / 3);
    g_assert_cmpint(said(), ==, (gint64)t + LEASE_US);
    /* Muted: nothing any more. */
    pulse_mute(e.primary);
    uint64_t newer = take(e.b);
    g_assert_true(channel_send_u64(e.b, CHANNEL_PULSE, &newer, 1, &err));
    g_usleep(LATE_US / 3);
    g_assert_cmpint(said(), ==, (gint64)t + LEASE_US);
    end(&e);
}

static void wait_lost(void)
{
    gint64 give_up = g_get_monotonic_time() + LONG_MS * 1000LL;

    while (!g_atomic_int_get(&times_lost)) {
        g_assert_cmpint(g_get_monotonic_time(), <, give_up);
        g_usleep(1000);
    }
}

/* Who answers a time that has not been yet would buy a lease without end. */
static void test_wrong_answer(void)
{
    g_autoptr(GError) err = NULL;
    Ends e;

    begin(&e);
    uint64_t future = take(e.b) + 60 * G_USEC_PER_SEC;
    g_assert_true(channel_send_u64(e.b, CHANNEL_PULSE, &future, 1, &err));
    g_assert_false(pulse_arm(e.primary, LONG_MS, &err));
    g_assert_cmpint(said(), ==, 0);
    wait_lost();
    end(&e);
}

static void test_no_answer(void)
{
    g_autoptr(GError) err = NULL;
    Ends e;

    begin(&e);
    g_assert_false(pulse_arm(e.primary, 50, &err));
    g_assert_nonnull(strstr(err->message, "nothing came"));
    wait_lost(); /* after STALL_MS */
    end(&e);
}

/* A common end of all connections is the control channel's to tell. */
static void test_end_of_all(void)
{
    g_autoptr(GError) err = NULL;
    Ends e;

    begin(&e);
    gint64 from = g_get_monotonic_time();
    channel_free(g_steal_pointer(&e.b));
    g_assert_false(pulse_arm(e.primary, LONG_MS, &err)); /* it has seen it */
    end(&e);
    if (g_get_monotonic_time() - from < SOON_US) {
        g_assert_cmpint(g_atomic_int_get(&times_lost), ==, 0);
    }

    begin(&e);
    channel_free(g_steal_pointer(&e.b));
    wait_lost();
    end(&e);
}

static void test_end_seen_by_the_secondary(void)
{
    g_autoptr(GError) err = NULL;
    Ends e;

    begin(&e);
    Pulse *s = pulse_new(e.b, TIMEOUT_MS, STALL_MS, NULL);
    g_assert_true(pulse_arm(e.primary, LONG_MS, &err));
    g_assert_true(pulse_good(s, &err));
    pulse_stop(e.primary);
    channel_break(e.a);
    gint64 give_up = g_get_monotonic_time() + LONG_MS * 1000LL;
    while (pulse_good(s, &err)) {
        g_assert_cmpint(g_get_monotonic_time(), <, give_up);
        g_usleep(1000);
    }
    g_assert_nonnull(err);
    pulse_free(s);
    end(&e);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/pulse/lease", test_lease);
    g_test_add_func("/pulse/late-answer", test_late_answer);
    g_test_add_func("/pulse/wrong-answer", test_wrong_answer);
    g_test_add_func("/pulse/no-answer", test_no_answer);
    g_test_add_func("/pulse/end-of-all", test_end_of_all);
    g_test_add_func("/pulse/end-seen-by-the-secondary", test_end_seen_by_the_secondary);
    return g_test_run();
}
