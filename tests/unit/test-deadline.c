/*
 * The time that is left, as poll() takes it.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "util/deadline.h"

#include <poll.h>

static void test_rounded_up(void)
{
    g_assert_cmpint(deadline_left_at(5001, 5000), ==, 1);
    g_assert_cmpint(deadline_left_at(6000, 5000), ==, 1);
    g_assert_cmpint(deadline_left_at(6001, 5000), ==, 2);
    g_assert_cmpint(deadline_left_at(1000000, 0), ==, 1000);
}

static void test_never_negative(void)
{
    g_assert_cmpint(deadline_left_at(5000, 5000), ==, 0);
    g_assert_cmpint(deadline_left_at(4999, 5000), ==, 0);
    g_assert_cmpint(deadline_left_at(0, 100 * G_USEC_PER_SEC), ==, 0);
    g_assert_cmpint(deadline_left_at(G_MININT64, G_MAXINT64), ==, 0);
}

static void test_fits_poll(void)
{
    g_assert_cmpint(deadline_left_at(G_MAXINT64, 1), ==, G_MAXINT);
    g_assert_cmpint(deadline_left_at(G_MAXINT * (gint64)1000, 0), ==, G_MAXINT);
    g_assert_cmpint(deadline_left_at(G_MAXINT * (gint64)1000 + 1, 0), ==, G_MAXINT);
}

/* One sleep is enough: nobody wakes a moment early and polls for nothing until the end. */
static void test_poll_reaches_it(void)
{
    for (int us = 1; us < 4000; us += 333) {
        gint64 end = g_get_monotonic_time() + us;

        poll(NULL, 0, deadline_left_ms(end));
        g_assert_cmpint(g_get_monotonic_time(), >=, end);
        g_assert_cmpint(deadline_left_ms(end), ==, 0);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/deadline/rounded-up", test_rounded_up);
    g_test_add_func("/deadline/never-negative", test_never_negative);
    g_test_add_func("/deadline/fits-poll", test_fits_poll);
    g_test_add_func("/deadline/poll-reaches-it", test_poll_reaches_it);
    return g_test_run();
}
