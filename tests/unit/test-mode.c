/*
 * The adaptive decision between comparing and buffering.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "migration/mode.h"

#include <string.h>

#define MS 1000
#define SEC 1000000

typedef struct World {
    ModeDecider d;
    int64_t now;
} World;

static void begin(World *w)
{
    w->now = 100 * SEC;
    mode_init(&w->d, w->now);
}

/* Forced checkpoints, one each @every us, for @us; when the mode changed, or -1. */
static int64_t forced(World *w, int64_t us, int64_t every, int64_t cost)
{
    int64_t end = w->now + us;
    bool before = w->d.buffered;

    while (w->now < end) {
        w->now += every;
        ModeSample s = {.now = w->now, .forced = true, .output = true, .cost = cost};
        if (mode_decide(&w->d, &s) != before) {
            return w->now;
        }
    }
    return -1;
}

/* Epochs that end by themselves, each 50 ms. */
static int64_t calm(World *w, int64_t us, bool output)
{
    int64_t end = w->now + us;
    bool before = w->d.buffered;

    while (w->now < end) {
        w->now += 50 * MS;
        ModeSample s = {.now = w->now, .output = output, .cost = 30 * MS};
        if (mode_decide(&w->d, &s) != before) {
            return w->now;
        }
    }
    return -1;
}

static void test_names(void)
{
    for (int i = 0; i < PROTECT__MAX; i++) {
        g_assert_cmpint(protect_mode_find(protect_mode_name(i)), ==, i);
    }
    g_assert_cmpint(protect_mode_find("fast"), ==, -1);
    g_assert_cmpint(protect_mode_find(""), ==, -1);
}

static void test_rare(void)
{
    World w;

    begin(&w);
    g_assert_cmpint(forced(&w, 60 * SEC, SEC, 100 * MS), ==, -1); /* rare, however dear */
    g_assert_cmpint(forced(&w, 60 * SEC, 100 * MS, 10 * MS), ==, -1); /* many, but cheap */
    g_assert_cmpint(calm(&w, 60 * SEC, true), ==, -1);
    g_assert_cmpuint(w.d.switches, ==, 0);
}

static void test_dear(void)
{
    World w;

    begin(&w);
    int64_t from = w.now, at = forced(&w, 10 * SEC, 50 * MS, 30 * MS);
    g_assert_cmpint(at, >, 0);
    g_assert_cmpint(at - from, <=, SEC);
    g_assert_true(w.d.buffered);
    g_assert_nonnull(strstr(w.d.reason, "mismatches"));
    g_assert_cmpuint(w.d.switches, ==, 1);
}

static void test_old_ones_do_not_count(void)
{
    World w;

    begin(&w);
    for (int i = 0; i < 50; i++) { /* four at once, then two seconds of nothing */
        g_assert_cmpint(forced(&w, 4 * MS, MS, 300 * MS), ==, -1);
        g_assert_cmpint(calm(&w, 2 * SEC, true), ==, -1);
    }
}

static void test_trials(void)
{
    World w;
    int64_t stay, last = 0;

    begin(&w);
    g_assert_cmpint(forced(&w, 10 * SEC, 50 * MS, 30 * MS), >, 0);
    for (int i = 0; i < 8; i++) {
        int64_t from = w.now;
        g_assert_cmpint(calm(&w, 100 * SEC, true), >, 0);
        stay = w.now - from;
        g_assert_cmpint(stay, >=, 2 * SEC);
        g_assert_cmpint(stay, <=, 65 * SEC);
        g_assert_cmpint(stay, >=, MIN(last * 19 / 10, 63 * SEC)); /* each failure doubles it */
        g_assert_nonnull(strstr(w.d.reason, "trial"));
        last = stay;
        g_assert_cmpint(forced(&w, 10 * SEC, 50 * MS, 30 * MS), >, 0); /* the trial fails */
    }
    g_assert_cmpint(last, >=, 60 * SEC);
}

static void test_good_trial_forgets(void)
{
    World w;

    begin(&w);
    for (int i = 0; i < 5; i++) {
        g_assert_cmpint(forced(&w, 10 * SEC, 50 * MS, 30 * MS), >, 0);
        g_assert_cmpint(calm(&w, 100 * SEC, true), >, 0);
    }
    g_assert_cmpint(calm(&w, 20 * SEC, true), ==, -1);
    g_assert_cmpint(forced(&w, 10 * SEC, 50 * MS, 30 * MS), >, 0);
    int64_t from = w.now;
    g_assert_cmpint(calm(&w, 100 * SEC, true), >, 0);
    g_assert_cmpint(w.now - from, <, 3 * SEC);
}

static void test_quiet_guest(void)
{
    World w;

    begin(&w);
    for (int i = 0; i < 4; i++) { /* the stay grows to 16 s */
        g_assert_cmpint(forced(&w, 10 * SEC, 50 * MS, 30 * MS), >, 0);
        if (i < 3) {
            g_assert_cmpint(calm(&w, 100 * SEC, true), >, 0);
        }
    }
    int64_t from = w.now;
    g_assert_cmpint(calm(&w, 100 * SEC, false), >, 0);
    g_assert_cmpint(w.now - from, <, 3 * SEC);
    g_assert_nonnull(strstr(w.d.reason, "no output"));
}

/* Whatever happens: no flapping, and a reason for each change. */
static void test_random(void)
{
    const char *given = g_getenv("COLO_SEED");
    guint32 seed = given ? (guint32)g_ascii_strtoull(given, NULL, 0) : g_random_int();
    g_autoptr(GRand) rnd = g_rand_new_with_seed(seed);
    World w;
    int64_t buffered_at = 0;

    g_test_message("COLO_SEED=%u", seed);
    begin(&w);
    int64_t start = w.now;
    for (int i = 0; i < 200000; i++) {
        w.now += g_rand_int_range(rnd, 1, 100 * MS);
        ModeSample s = {
            .now = w.now,
            .forced = g_rand_int_range(rnd, 0, 1000) < (i / 1000 * 37) % 1000,
            .output = g_rand_int_range(rnd, 0, 10) > 0,
            .cost = g_rand_int_range(rnd, 0, 100 * MS),
        };
        uint64_t before = w.d.switches;
        bool b = mode_decide(&w.d, &s);
        g_assert_true(b == w.d.buffered);
        if (w.d.switches != before) {
            g_assert_cmpuint(strlen(w.d.reason), >, 5);
            if (b) {
                g_assert_cmpint(w.now - buffered_at, >=, 1 * SEC);
                buffered_at = w.now;
            }
        }
    }
    g_assert_cmpuint(w.d.switches, >, 2);
    g_assert_cmpuint(w.d.switches, <, 2 + (w.now - start) / SEC);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/mode/names", test_names);
    g_test_add_func("/mode/rare", test_rare);
    g_test_add_func("/mode/dear", test_dear);
    g_test_add_func("/mode/old-ones-do-not-count", test_old_ones_do_not_count);
    g_test_add_func("/mode/trials", test_trials);
    g_test_add_func("/mode/good-trial-forgets", test_good_trial_forgets);
    g_test_add_func("/mode/quiet-guest", test_quiet_guest);
    g_test_add_func("/mode/random", test_random);
    return g_test_run();
}
