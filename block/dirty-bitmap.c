/*
 * A bit for each granule of a disk.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "dirty-bitmap.h"

#include <string.h>

struct DirtyBitmap {
    uint64_t size;
    unsigned shift;
    uint64_t n; /* granules */
    uint64_t count;
    uint64_t *words;
};

DirtyBitmap *dirty_bitmap_new(uint64_t size, uint64_t granularity)
{
    DirtyBitmap *b = g_new0(DirtyBitmap, 1);

    g_assert(granularity && !(granularity & (granularity - 1)));
    b->size = size;
    b->shift = __builtin_ctzll(granularity);
    b->n = (size + granularity - 1) >> b->shift;
    b->words = g_new0(uint64_t, b->n / 64 + 1);
    return b;
}

void dirty_bitmap_free(DirtyBitmap *b)
{
    if (b) {
        g_free(b->words);
        g_free(b);
    }
}

uint64_t dirty_bitmap_granularity(const DirtyBitmap *b)
{
    return 1ull << b->shift;
}

static bool bit(const DirtyBitmap *b, uint64_t i)
{
    return b->words[i / 64] >> (i % 64) & 1;
}

uint64_t dirty_bitmap_bytes(const DirtyBitmap *b)
{
    uint64_t bytes = b->count << b->shift;

    if (b->n > 0 && bit(b, b->n - 1)) {
        bytes -= (b->n << b->shift) - b->size;
    }
    return bytes;
}

bool dirty_bitmap_get(const DirtyBitmap *b, uint64_t pos)
{
    return pos < b->size && bit(b, pos >> b->shift);
}

/* Granules [first, last) := @value, a word at a time. */
static void assign(DirtyBitmap *b, uint64_t first, uint64_t last, bool value)
{
    while (first < last) {
        unsigned low = first % 64;
        unsigned n = MIN(64 - low, last - first);
        uint64_t mask = (n == 64 ? ~0ull : (1ull << n) - 1) << low;
        uint64_t *w = &b->words[first / 64];

        b->count -= __builtin_popcountll(*w & mask);
        if (value) {
            *w |= mask;
            b->count += n;
        } else {
            *w &= ~mask;
        }
        first += n;
    }
}

void dirty_bitmap_set(DirtyBitmap *b, uint64_t start, uint64_t end)
{
    end = MIN(end, b->size);
    if (start < end) {
        assign(b, start >> b->shift, ((end - 1) >> b->shift) + 1, true);
    }
}

void dirty_bitmap_clear(DirtyBitmap *b, uint64_t start, uint64_t end)
{
    uint64_t first = (start + (1ull << b->shift) - 1) >> b->shift;
    uint64_t last = end >= b->size ? b->n : end >> b->shift;

    assign(b, first, last, false);
}

bool dirty_bitmap_all(const DirtyBitmap *b, uint64_t start, uint64_t end)
{
    return start >= end ||
           (dirty_bitmap_get(b, start) && dirty_bitmap_run(b, start, end) >= end);
}

uint64_t dirty_bitmap_next(const DirtyBitmap *b, uint64_t pos)
{
    if (pos >= b->size) {
        return UINT64_MAX;
    }
    uint64_t i = pos >> b->shift;
    uint64_t w = b->words[i / 64] & ~0ull << (i % 64);

    for (i /= 64; !w;) {
        if (++i > (b->n - 1) / 64) {
            return UINT64_MAX;
        }
        w = b->words[i];
    }
    return (i * 64 + __builtin_ctzll(w)) << b->shift;
}

uint64_t dirty_bitmap_run(const DirtyBitmap *b, uint64_t pos, uint64_t limit)
{
    uint64_t i = pos >> b->shift;
    uint64_t last = MIN((limit + (1ull << b->shift) - 1) >> b->shift, b->n);

    while (i < last) {
        uint64_t clear = ~b->words[i / 64] & ~0ull << (i % 64);

        if (clear) {
            i = MIN(i / 64 * 64 + __builtin_ctzll(clear), last);
            break;
        }
        i = (i / 64 + 1) * 64;
    }
    return MIN(MIN(MIN(i, last) << b->shift, limit), b->size);
}

void dirty_bitmap_merge(DirtyBitmap *to, const DirtyBitmap *from)
{
    uint64_t pos = 0;

    while ((pos = dirty_bitmap_next(from, pos)) != UINT64_MAX) {
        uint64_t end = dirty_bitmap_run(from, pos, from->size);

        dirty_bitmap_set(to, pos, end);
        pos = end;
    }
}

void dirty_bitmap_store(const DirtyBitmap *b, uint64_t at, uint8_t *out, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        uint64_t byte = at + k;

        out[k] = byte * 8 < b->n ? b->words[byte / 8] >> (byte % 8 * 8) : 0;
    }
}

void dirty_bitmap_load(DirtyBitmap *b, uint64_t at, const uint8_t *in, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        for (unsigned i = 0; in[k] && i < 8; i++) {
            uint64_t g = (at + k) * 8 + i;

            if ((in[k] >> i & 1) && g < b->n) {
                assign(b, g, g + 1, true);
            }
        }
    }
}
