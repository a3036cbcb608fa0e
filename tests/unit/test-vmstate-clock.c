/*
 * The virtual clock in a saved device state.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "migration/vmstate-clock.h"

#include <glib.h>
#include <string.h>

static void put(GByteArray *a, uint64_t v, unsigned bytes)
{
    while (bytes--) {
        uint8_t b = v >> (8 * bytes);
        g_byte_array_append(a, &b, 1);
    }
}

static void text(GByteArray *a, const char *s)
{
    put(a, strlen(s), 1);
    g_byte_array_append(a, (const uint8_t *)s, strlen(s));
}

static void section(GByteArray *a, const char *name, uint32_t id, uint32_t version,
                    int64_t ticks, int64_t ns, uint32_t foot)
{
    put(a, 4, 1);
    put(a, id, 4);
    text(a, name);
    put(a, 0, 4);
    put(a, version, 4);
    put(a, ticks, 8);
    put(a, 0, 8);
    put(a, ns, 8);
    put(a, 0x7e, 1);
    put(a, foot, 4);
}

static GByteArray *state(void)
{
    GByteArray *a = g_byte_array_new();

    put(a, 0x5145564d, 4); /* magic */
    put(a, 3, 4);
    section(a, "slirp", 1, 2, 7, 8, 1);
    return a;
}

static void test_advances(void)
{
    g_autoptr(GByteArray) a = state(), b = state();

    section(a, "timer", 2, 2, 1000000, 5000, 2);
    section(b, "timer", 2, 2, 1003000, 6500, 2);
    put(a, 0x0405, 2);
    put(b, 0x0405, 2);
    int64_t ns;
    g_assert_true(vmstate_clock_read(a->data, a->len, &ns));
    g_assert_cmpint(ns, ==, 5000);
    g_assert_true(vmstate_clock_advance(a->data, a->len, 1500, 3000));
    g_assert_cmpmem(a->data, a->len, b->data, b->len);
    g_assert_true(vmstate_clock_advance(a->data, a->len, -1500, -3000));
    g_assert_true(vmstate_clock_advance(a->data, a->len, 1500, 3000));
    g_assert_cmpmem(a->data, a->len, b->data, b->len);
}

static void refused(GByteArray *a)
{
    g_autofree uint8_t *before = g_memdup2(a->data, a->len);

    g_assert_false(vmstate_clock_advance(a->data, a->len, 1, 1));
    g_assert_cmpmem(before, a->len, a->data, a->len);
}

static void test_what_is_not_known_stays(void)
{
    g_autoptr(GByteArray) none = state(), version = state(), foot = state(), twice = state();

    refused(none);
    section(version, "timer", 2, 3, 1, 1, 2);
    refused(version);
    section(foot, "timer", 2, 2, 1, 1, 3);
    refused(foot);
    section(twice, "timer", 2, 2, 1, 1, 2);
    section(twice, "timer", 3, 2, 1, 1, 3);
    refused(twice);
}

static void test_cut_short(void)
{
    g_autoptr(GByteArray) a = state();

    section(a, "timer", 2, 2, 1, 1, 2);
    for (size_t len = 0; len < a->len; len++) { /* each in its own block, for ASan */
        g_autofree uint8_t *copy = g_memdup2(a->data, len);
        g_assert_false(vmstate_clock_advance(copy, len, 1, 1));
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/vmstate-clock/advances", test_advances);
    g_test_add_func("/vmstate-clock/what-is-not-known-stays", test_what_is_not_known_stays);
    g_test_add_func("/vmstate-clock/cut-short", test_cut_short);
    return g_test_run();
}
