/*
 * Pages on the wire, and the committed versions that differences are made to.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib.h>
#include <string.h>
#include <sys/mman.h>

#include "migration/ram-codec.h"
#include "migration/ram-private.h"

#define N 32

static uint8_t page[N][COLO_PAGE_SIZE], base[N][COLO_PAGE_SIZE];

static void fill_random(uint8_t *p)
{
    for (unsigned i = 0; i < COLO_PAGE_SIZE; i++) {
        p[i] = g_test_rand_int();
    }
}

static void fill_dull(uint8_t *p)
{
    for (unsigned i = 0; i < COLO_PAGE_SIZE; i++) {
        p[i] = "the quick brown fox "[i % 20];
    }
}

/* ram.c's, of which nothing else is needed here. */
void *ram_map_private(uint64_t size, GError **errp)
{
    return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* Encode @n pages, decode them, compare; the message's length. */
static size_t round_trip(RamMethod method, unsigned n, bool with_base, RamCounts *counts)
{
    g_autoptr(GByteArray) wire = g_byte_array_new();
    g_autofree RamDecoder *d = g_new(RamDecoder, 1);
    g_autoptr(GError) err = NULL;
    const uint8_t *data[N], *bases[N];
    uint64_t number[N];
    struct iovec parts[3];
    RamEncoder *e = ram_encoder_new(method, 1);

    memset(counts, 0, sizeof(*counts));
    for (unsigned i = 0; i < n; i++) {
        data[i] = page[i];
        bases[i] = with_base ? base[i] : NULL;
        number[i] = 1000 + 7 * i;
    }
    unsigned used = ram_encode(e, 42, number, data, bases, n, parts, counts);
    for (unsigned i = 0; i < used; i++) {
        g_byte_array_append(wire, parts[i].iov_base, parts[i].iov_len);
    }
    g_assert_cmpuint(wire->len, ==, counts->bytes);
    g_assert_true(ram_decode(d, wire->data, wire->len, 1 << 20, &err));
    g_assert_cmpuint(d->epoch, ==, 42);
    for (unsigned i = 0; i < n; i++) {
        uint8_t got[COLO_PAGE_SIZE];
        g_assert_cmpuint(d->page[i], ==, number[i]);
        g_assert_true(ram_decode_page(d, i, got, bases[i], &err));
        g_assert_cmpmem(got, COLO_PAGE_SIZE, page[i], COLO_PAGE_SIZE);
    }
    g_assert_true(ram_decode_end(d, &err));
    /* Nor is it taken when a byte is missing, or one too many. */
    g_assert_false(ram_decode(d, wire->data, wire->len - 1, 1 << 20, NULL));
    g_byte_array_append(wire, (const guint8 *)"", 1);
    g_assert_false(ram_decode(d, wire->data, wire->len, 1 << 20, NULL));
    ram_encoder_free(e);
    return wire->len - 1;
}

/* Each page goes the way that costs least. */
static void test_choice(void)
{
    RamCounts c;

    memset(page[0], 0, COLO_PAGE_SIZE);
    fill_random(page[1]);
    fill_dull(page[2]);
    fill_random(base[3]);
    memcpy(page[3], base[3], COLO_PAGE_SIZE);
    page[3][100] ^= 1;
    page[3][4095] ^= 1;
    for (unsigned i = 0; i < 3; i++) {
        fill_random(base[i]);
    }
    for (int m = RAM_METHOD_NONE; m < RAM_METHOD_MAX; m++) {
        size_t len = round_trip(m, 4, true, &c);
        g_assert_cmpuint(c.kind[RAM_KIND_ZERO], ==, 1);
        g_assert_cmpuint(c.kind[RAM_KIND_DELTA], ==, 1);
        g_assert_cmpuint(c.kind[RAM_KIND_PACKED], ==, m != RAM_METHOD_NONE);
        g_assert_cmpuint(c.kind[RAM_KIND_RAW], ==, m != RAM_METHOD_NONE ? 1 : 2);
        g_assert_cmpuint(len, <, (m != RAM_METHOD_NONE ? 1 : 2) * COLO_PAGE_SIZE + 400);
        round_trip(m, 4, false, &c);
        g_assert_cmpuint(c.kind[RAM_KIND_DELTA], ==, 0);
    }
    /* A page that did not change at all costs its number and a few bytes. */
    memcpy(page[0], base[0], COLO_PAGE_SIZE);
    g_assert_cmpuint(round_trip(RAM_METHOD_NONE, 1, true, &c), <=, RAM_FRAME_HEAD + 8 + 6);
}

/* Whatever changed, wherever. */
static void test_differences(void)
{
    RamCounts c;

    for (unsigned round = 0; round < 400; round++) {
        for (unsigned i = 0; i < N; i++) {
            fill_random(base[i]);
            memcpy(page[i], base[i], COLO_PAGE_SIZE);
            unsigned runs = g_test_rand_int_range(0, 40);
            for (unsigned k = 0; k < runs; k++) {
                unsigned at = g_test_rand_int_range(0, COLO_PAGE_SIZE);
                unsigned len = g_test_rand_int_range(1, 200);
                for (unsigned j = at; j < MIN(at + len, COLO_PAGE_SIZE); j++) {
                    page[i][j] = g_test_rand_int();
                }
            }
        }
        round_trip(round % RAM_METHOD_MAX, N, true, &c);
    }
}

/* A version is kept only as it was committed, however places are fought for. */
static void test_committed(void)
{
    Ram r = {.pages = 64};
    uint32_t page_of[64];
    g_autofree uint8_t *staging = g_malloc(64 * COLO_PAGE_SIZE);
    uint8_t committed[64] = {0};
    unsigned found = 0;

    r.staging = staging;
    r.page_of = page_of;
    g_assert_true(ram_base_init(&r, 20 * COLO_PAGE_SIZE, NULL));
    for (unsigned round = 1; round < 3000; round++) {
        bool taken[64] = {false};
        r.n_staged = g_test_rand_int_range(0, 30);
        for (unsigned s = 0; s < r.n_staged; s++) {
            unsigned p = g_test_rand_int_range(0, 64);
            while (taken[p]) {
                p = (p + 1) % 64;
            }
            taken[p] = true;
            page_of[s] = p;
            memset(staging + s * COLO_PAGE_SIZE, round % 251, COLO_PAGE_SIZE);
        }
        if (g_test_rand_int_range(0, 5)) { /* else the checkpoint was torn */
            ram_committed(&r);
            for (unsigned s = 0; s < r.n_staged; s++) {
                committed[page_of[s]] = round % 251;
            }
        }
        for (unsigned p = 0; p < 64; p++) {
            const uint8_t *b = ram_base_find(&r, p);
            found += b != NULL;
            g_assert_true(!b || (b[0] == committed[p] && b[4095] == committed[p]));
        }
        g_assert_cmpuint(ram_base_bytes(&r), <=, 20 * COLO_PAGE_SIZE);
    }
    g_assert_cmpuint(found, >, 10000);
    ram_base_drop(&r);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/ram-codec/choice", test_choice);
    g_test_add_func("/ram-codec/differences", test_differences);
    g_test_add_func("/ram-codec/committed", test_committed);
    return g_test_run();
}
