/*
 * The dirty bitmap against a plain array.
 * COLO_SEED=n repeats a run.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "../../block/dirty-bitmap.h"

#include <stdlib.h>
#include <string.h>

static uint32_t seed;

typedef struct Model {
    uint64_t size, granule, n;
    bool *bit;
} Model;

static void model_check(Model *m, DirtyBitmap *b)
{
    uint64_t bytes = 0, expect = UINT64_MAX;

    for (uint64_t i = 0; i < m->n; i++) {
        uint64_t start = i * m->granule, end = MIN(start + m->granule, m->size);

        g_assert_cmpint(dirty_bitmap_get(b, start), ==, m->bit[i]);
        g_assert_cmpint(dirty_bitmap_get(b, end - 1), ==, m->bit[i]);
        bytes += m->bit[i] ? end - start : 0;
    }
    g_assert_cmpuint(dirty_bitmap_bytes(b), ==, bytes);
    for (uint64_t i = m->n; i-- > 0;) {
        expect = m->bit[i] ? i * m->granule : expect;
        g_assert_cmpuint(dirty_bitmap_next(b, i * m->granule), ==, expect);
    }
    for (uint64_t i = 0; i < m->n; i++) {
        uint64_t k = i;

        while (k < m->n && m->bit[k]) {
            k++;
        }
        uint64_t end = MIN(k * m->granule, m->size);
        if (k > i) {
            g_assert_cmpuint(dirty_bitmap_run(b, i * m->granule, m->size), ==, end);
            g_assert_true(dirty_bitmap_all(b, i * m->granule, end));
        }
        g_assert_false(k < m->n && dirty_bitmap_all(b, i * m->granule, end + 1));
    }
    g_assert_cmpuint(dirty_bitmap_next(b, m->size), ==, UINT64_MAX);
}

static void test_model(void)
{
    g_autoptr(GRand) r = g_rand_new_with_seed(seed);

    for (int round = 0; round < 60; round++) {
        Model m = {.granule = 512ull << g_rand_int_range(r, 0, 8)};
        m.size = g_rand_int_range(r, 1, 400) * m.granule - g_rand_int_range(r, 0, 511);
        m.n = (m.size + m.granule - 1) / m.granule;
        m.bit = g_new0(bool, m.n);
        g_autoptr(DirtyBitmap) b = dirty_bitmap_new(m.size, m.granule);
        for (int step = 0; step < 60; step++) {
            uint64_t start = g_rand_double(r) * m.size;
            uint64_t end = start + g_rand_double(r) * (m.size - start) *
                                       (g_rand_boolean(r) ? 1 : 0.05);
            bool set = g_rand_boolean(r);

            (set ? dirty_bitmap_set : dirty_bitmap_clear)(b, start, end);
            for (uint64_t i = 0; i < m.n; i++) {
                uint64_t s = i * m.granule, e = MIN(s + m.granule, m.size);

                if (set ? start < end && s < end && start < e : start <= s && e <= end) {
                    m.bit[i] = set;
                }
            }
            if (step % 8 == 0) {
                model_check(&m, b);
            }
        }
        model_check(&m, b);
        /* As bytes and back, in two pieces; and merged at another granularity. */
        uint8_t bytes[64];
        g_autoptr(DirtyBitmap) again = dirty_bitmap_new(m.size, m.granule);
        g_autoptr(DirtyBitmap) coarse = dirty_bitmap_new(m.size, m.granule * 8);
        for (unsigned at = 0; at < 64; at += 32) {
            dirty_bitmap_store(b, at, bytes, 32);
            dirty_bitmap_load(again, at, bytes, 32);
        }
        model_check(&m, again);
        dirty_bitmap_merge(coarse, b);
        for (uint64_t i = 0; i < m.n; i++) {
            g_assert_true(!m.bit[i] || dirty_bitmap_get(coarse, i * m.granule));
        }
        dirty_bitmap_clear(coarse, 0, m.size);
        g_assert_cmpuint(dirty_bitmap_bytes(coarse), ==, 0);
        g_free(m.bit);
    }
}

static void test_load_ignores_the_rest(void)
{
    g_autoptr(DirtyBitmap) b = dirty_bitmap_new(3 * 4096 + 512, 4096);
    uint8_t all[16];

    memset(all, 0xff, sizeof(all));
    dirty_bitmap_load(b, 0, all, sizeof(all));
    g_assert_cmpuint(dirty_bitmap_bytes(b), ==, 3 * 4096 + 512);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    seed = g_getenv("COLO_SEED") ? strtoul(g_getenv("COLO_SEED"), NULL, 0)
                                 : g_random_int();
    g_test_message("seed %u", seed);
    g_test_add_func("/bitmap/model", test_model);
    g_test_add_func("/bitmap/load-ignores-the-rest", test_load_ignores_the_rest);
    return g_test_run();
}
