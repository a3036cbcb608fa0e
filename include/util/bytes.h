/*
 * Big-endian numbers in byte strings.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_UTIL_BYTES_H
#define COLO_UTIL_BYTES_H

#include <stdint.h>

/** The low @bytes (at most 8) of @v at @p, the highest first. */
static inline void bytes_put_be(uint8_t *p, uint64_t v, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        p[i] = v >> (8 * (bytes - 1 - i));
    }
}

/** The number of @bytes (at most 8) at @p. */
static inline uint64_t bytes_get_be(const uint8_t *p, unsigned bytes)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < bytes; i++) {
        v = v << 8 | p[i];
    }
    return v;
}

#endif
