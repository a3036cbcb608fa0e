/*
 * Which sectors of a disk the SVM has written since the last checkpoint.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "overlay.h"

#define REGION_SECTORS 2048
#define REGION_WORDS (REGION_SECTORS / 64)

typedef struct Region {
    unsigned count;
    uint64_t bits[REGION_WORDS];
} Region;

struct Overlay {
    uint64_t sectors;
    uint64_t count; /* set bits */
    size_t n;
    Region **region;
};

Overlay *overlay_new(uint64_t bytes)
{
    Overlay *o = g_new0(Overlay, 1);

    o->sectors = bytes / 512;
    o->n = (o->sectors + REGION_SECTORS - 1) / REGION_SECTORS;
    o->region = g_new0(Region *, o->n);
    return o;
}

void overlay_clear_all(Overlay *o)
{
    for (size_t i = 0; o->count > 0 && i < o->n; i++) {
        if (o->region[i]) {
            o->count -= o->region[i]->count;
            g_clear_pointer(&o->region[i], g_free);
        }
    }
}

void overlay_free(Overlay *o)
{
    if (o) {
        overlay_clear_all(o);
        g_free(o->region);
        g_free(o);
    }
}

static void overlay_change(Overlay *o, uint64_t start, uint64_t end, bool set)
{
    uint64_t s = start / 512;

    end = MIN(end / 512, o->sectors);
    while (s < end) {
        size_t r = s / REGION_SECTORS;
        unsigned bit = s % 64;
        uint64_t n = MIN(64 - bit, end - s);
        uint64_t mask = (n == 64 ? UINT64_MAX : (1ULL << n) - 1) << bit;

        if (!o->region[r] && set) {
            o->region[r] = g_new0(Region, 1);
        }
        if (o->region[r]) {
            Region *reg = o->region[r];
            uint64_t *w = &reg->bits[s % REGION_SECTORS / 64];
            int before = __builtin_popcountll(*w);

            *w = set ? *w | mask : *w & ~mask;
            int change = __builtin_popcountll(*w) - before;
            reg->count += change;
            o->count += change;
            if (reg->count == 0) {
                g_clear_pointer(&o->region[r], g_free);
            }
        }
        s += n;
    }
}

void overlay_set(Overlay *o, uint64_t start, uint64_t end)
{
    overlay_change(o, start, end, true);
}

void overlay_clear(Overlay *o, uint64_t start, uint64_t end)
{
    overlay_change(o, start, end, false);
}

/* First sector in [s, end) whose bit is @set, else end. */
static uint64_t overlay_find(Overlay *o, uint64_t s, uint64_t end, bool set)
{
    while (s < end) {
        Region *reg = o->region[s / REGION_SECTORS];

        if (!reg) {
            if (!set) {
                return s;
            }
            s = (s / REGION_SECTORS + 1) * REGION_SECTORS;
            continue;
        }
        uint64_t w = reg->bits[s % REGION_SECTORS / 64];

        w = (set ? w : ~w) >> (s % 64);
        if (w) {
            return MIN(s + __builtin_ctzll(w), end);
        }
        s = (s / 64 + 1) * 64;
    }
    return end;
}

uint64_t overlay_run(Overlay *o, uint64_t start, uint64_t end, bool *set)
{
    uint64_t s = start / 512, e = MIN((end + 511) / 512, o->sectors);

    if (s >= e) {
        *set = false;
        return end;
    }
    *set = overlay_find(o, s, s + 1, true) == s;
    return MIN(overlay_find(o, s, e, !*set) * 512, end);
}

uint64_t overlay_next(Overlay *o, uint64_t start)
{
    uint64_t s = o->count ? overlay_find(o, start / 512, o->sectors, true) : o->sectors;

    return s < o->sectors ? s * 512 : UINT64_MAX;
}

uint64_t overlay_bytes(Overlay *o)
{
    return o->count * 512;
}
