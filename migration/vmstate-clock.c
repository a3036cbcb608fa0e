/*
 * The virtual clock in a saved device state.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QEMU saves its clocks in the section "timer", of a stopped machine as plain values: ticks of
 * the TSC, eight unused bytes, nanoseconds of the virtual clock, all be64. A section is: 4,
 * be32 section id, length and text of the name, be32 instance, be32 version, fields, then 0x7e
 * and the section id again. The name's bytes could occur in other data, so head, version and
 * foot must all fit, and the place must be the only one.
 */
#include "migration/vmstate-clock.h"

#include <string.h>

#include "util/bytes.h"

#define SECTION_FULL 4
#define SECTION_FOOTER 0x7e
#define FIELDS 24

static const uint8_t name_and_version[] = {5, 't', 'i', 'm', 'e', 'r', 0, 0, 0, 0, 0, 0, 0, 2};

/* The fields of the section, or NULL. */
static const uint8_t *find(const uint8_t *data, size_t len)
{
    const size_t head = 5 + sizeof(name_and_version), all = head + FIELDS + 5;
    const uint8_t *found = NULL;

    for (const uint8_t *p = data; len >= all && p <= data + len - all; p++) {
        p = memchr(p, SECTION_FULL, data + len - all - p + 1);
        if (!p) {
            break;
        }
        const uint8_t *foot = p + head + FIELDS;
        if (memcmp(p + 5, name_and_version, sizeof(name_and_version)) == 0 &&
            foot[0] == SECTION_FOOTER && memcmp(foot + 1, p + 1, 4) == 0) {
            if (found) {
                return NULL;
            }
            found = p + head;
        }
    }
    return found;
}

bool vmstate_clock_advance(uint8_t *data, size_t len, int64_t ns, int64_t ticks)
{
    const uint8_t *found = find(data, len);

    if (!found) {
        return false;
    }
    uint8_t *fields = data + (found - data);
    /* By the counters' own arithmetic: what a peer sent may be anything. */
    bytes_put_be(fields, bytes_get_be(fields, 8) + (uint64_t)ticks, 8);
    bytes_put_be(fields + 16, bytes_get_be(fields + 16, 8) + (uint64_t)ns, 8);
    return true;
}

bool vmstate_clock_read(const uint8_t *data, size_t len, int64_t *ns)
{
    const uint8_t *fields = find(data, len);

    if (fields) {
        *ns = (int64_t)bytes_get_be(fields + 16, 8);
    }
    return fields;
}

uint64_t vmstate_clock_ticks(void)
{
#ifdef __x86_64__
    return __builtin_ia32_rdtsc();
#else
    return 0;
#endif
}
