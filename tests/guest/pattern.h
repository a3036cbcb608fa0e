/*
 * Deterministic bytes that guest and client both know: a function of seed and offset.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The byte at offset o is byte o % 8 of word o / 8. Words are unique in 2^64, so data
 * that is lost, repeated, moved or taken from another stream shows at once. One addition
 * a word: cheap enough for a guest that is emulated.
 */
#ifndef GUEST_PATTERN_H
#define GUEST_PATTERN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PATTERN_K 0x9E3779B97F4A7C15ull

static inline uint64_t pattern_mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xBF58476D1CE4E5B9ull;
    x ^= x >> 27;
    x *= 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

static inline uint64_t pattern_word(uint64_t seed, uint64_t index)
{
    return pattern_mix(seed + 1) + index * PATTERN_K;
}

/* Fill @buf with the @len bytes that start at @offset. */
static inline void pattern_fill(void *buf, size_t len, uint64_t seed, uint64_t offset)
{
    uint8_t *p = buf;
    uint64_t word = pattern_word(seed, offset / 8);
    size_t skip = offset % 8;

    if (skip && len) {
        size_t n = 8 - skip < len ? 8 - skip : len;

        memcpy(p, (uint8_t *)&word + skip, n);
        p += n;
        len -= n;
        word += PATTERN_K;
    }
    for (; len >= 8; len -= 8, p += 8, word += PATTERN_K) {
        memcpy(p, &word, 8);
    }
    memcpy(p, &word, len);
}

/* Index of the first of @len bytes that is not the pattern's, or -1. */
static inline int64_t pattern_check(const void *buf, size_t len, uint64_t seed,
                                    uint64_t offset)
{
    const uint8_t *p = buf;
    size_t at = 0;

    while (at < len) {
        uint64_t word = pattern_word(seed, (offset + at) / 8);

        if ((offset + at) % 8 == 0) {
            for (; len - at >= 8 && !memcmp(p + at, &word, 8); at += 8) {
                word += PATTERN_K;
            }
            if (at == len) {
                break;
            }
        }
        if (p[at] != ((uint8_t *)&word)[(offset + at) % 8]) {
            return at;
        }
        at++;
    }
    return -1;
}

/* A hash over a byte stream that arrives in pieces. Start from {0}. */
typedef struct PatternHash {
    uint64_t state;
    uint64_t partial;
    uint64_t count;
} PatternHash;

static inline void pattern_hash_add(PatternHash *h, const void *buf, size_t len)
{
    const uint8_t *p = buf;

    while (len > 0) {
        uint64_t word;

        if (h->count % 8 == 0 && len >= 8) {
            memcpy(&word, p, 8);
            h->state = (h->state ^ word) * PATTERN_K;
            h->state ^= h->state >> 29;
            p += 8;
            len -= 8;
            h->count += 8;
            continue;
        }
        h->partial |= (uint64_t)*p++ << (h->count % 8 * 8);
        len--;
        if (++h->count % 8 == 0) {
            h->state = (h->state ^ h->partial) * PATTERN_K;
            h->state ^= h->state >> 29;
            h->partial = 0;
        }
    }
}

static inline uint64_t pattern_hash_end(const PatternHash *h)
{
    return pattern_mix(h->state ^ h->partial ^ (h->count * PATTERN_K));
}

/*
 * One record of the disk writer: a sector-aligned block that says which it is. Zone 0 is
 * written in the background, zone 1 at a client's request.
 */
#define DISK_RECORD_SIZE 4096
#define DISK_RECORD_MAGIC 0x434f4c4f44534b31ull /* "COLODSK1" */

typedef struct DiskRecord {
    uint64_t magic;
    uint64_t run;
    uint64_t zone;
    uint64_t number;
    uint8_t body[DISK_RECORD_SIZE - 40];
    uint64_t sum;
} DiskRecord;

static inline uint64_t disk_record_seed(const DiskRecord *r)
{
    return pattern_mix(r->run * 31 + r->zone * 7 + r->number);
}

static inline uint64_t disk_record_sum(const DiskRecord *r)
{
    PatternHash h = {0};

    pattern_hash_add(&h, r, offsetof(DiskRecord, sum));
    return pattern_hash_end(&h);
}

static inline void disk_record_make(DiskRecord *r, uint64_t run, uint64_t zone,
                                    uint64_t number)
{
    r->magic = DISK_RECORD_MAGIC;
    r->run = run;
    r->zone = zone;
    r->number = number;
    pattern_fill(r->body, sizeof(r->body), disk_record_seed(r), 0);
    r->sum = disk_record_sum(r);
}

/* Whether @r is a whole record, whichever it is. */
static inline int disk_record_valid(const DiskRecord *r)
{
    return r->magic == DISK_RECORD_MAGIC && r->sum == disk_record_sum(r) &&
           pattern_check(r->body, sizeof(r->body), disk_record_seed(r), 0) < 0;
}

static inline int disk_record_zero(const void *r)
{
    const uint8_t *p = r;

    return p[0] == 0 && !memcmp(p, p + 1, DISK_RECORD_SIZE - 1);
}

/* Where record @number of @zone lives on a disk of @size bytes. */
static inline uint64_t disk_zone_slots(uint64_t size)
{
    return size / 2 / DISK_RECORD_SIZE;
}

static inline uint64_t disk_record_offset(uint64_t size, uint64_t zone, uint64_t number)
{
    uint64_t slots = disk_zone_slots(size);

    return (zone * slots + number % slots) * DISK_RECORD_SIZE;
}

/* Record @n of the numbered stream: exactly STREAM_RECORD bytes, and a NUL. */
#define STREAM_RECORD 32
#define STREAM_FORMAT "S%013llu %016llx\n"

#endif
