/*
 * Pages on the wire: how a CHANNEL_RAM message is made and read.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A difference is the exclusive or of two versions, by words of 8 bytes: u8 words to skip, u8
 * words that follow, those words; again until the page's end or the difference's. It is
 * made in one pass that gives up when it grows too long, so that a page that was wholly
 * rewritten costs half a page's reading more. What does not look like compressible (many
 * different bytes in a sample) is not offered to the compressor.
 */
#include "migration/ram-codec.h"

#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "util/bytes.h"
#include "util/error.h"

#define WORDS (COLO_PAGE_SIZE / 8)
#define SAMPLE_STEP 16
/* Of 256 sampled bytes so many differ; of random ones 162 do, give or take 5. */
#define SAMPLE_RANDOM 140

struct RamEncoder {
    RamMethod method;
    int level;
    ZSTD_CCtx *zstd;
    uint8_t *packed;
    size_t packed_max;
    uint8_t head[RAM_FRAME_HEAD + 8 * RAM_BATCH_PAGES];
    uint8_t raw[RAM_BATCH_PAGES * COLO_PAGE_SIZE];
    uint8_t plain[RAM_PLAIN_MAX];
};

static const char *const method_names[] = {"none", "zlib", "zstd"};

const char *ram_method_name(RamMethod m)
{
    return method_names[m];
}

int ram_method_find(const char *name)
{
    for (int i = 0; i < RAM_METHOD_MAX; i++) {
        if (strcmp(name, method_names[i]) == 0) {
            return i;
        }
    }
    return -1;
}

/* --- Making --- */

RamEncoder *ram_encoder_new(RamMethod method, int level)
{
    RamEncoder *e = g_new0(RamEncoder, 1);

    e->method = method;
    e->level = level;
    if (method == RAM_METHOD_ZSTD) {
        e->zstd = ZSTD_createCCtx();
        e->packed_max = ZSTD_compressBound(RAM_PLAIN_MAX);
    } else if (method == RAM_METHOD_ZLIB) {
        e->packed_max = compressBound(RAM_PLAIN_MAX);
    }
    e->packed = g_malloc(MAX(e->packed_max, 1));
    return e;
}

void ram_encoder_free(RamEncoder *e)
{
    if (e) {
        ZSTD_freeCCtx(e->zstd);
        g_free(e->packed);
        g_free(e);
    }
}

static bool page_is_zero(const uint8_t *p)
{
    const uint64_t *w = (const uint64_t *)p;

    /* Most pages that are not zero show it early; the rest is memory speed. */
    if (w[0] | w[1] | w[255] | w[511]) {
        return false;
    }
    uint64_t acc = 0;
    for (unsigned i = 0; i < WORDS; i += 4) {
        acc |= w[i] | w[i + 1] | w[i + 2] | w[i + 3];
    }
    return acc == 0;
}

static bool looks_random(const uint8_t *p)
{
    uint8_t seen[256] = {0};
    unsigned different = 0;

    for (unsigned i = 0; i < COLO_PAGE_SIZE; i += SAMPLE_STEP) {
        uint8_t b = p[i + (i / SAMPLE_STEP) % SAMPLE_STEP];
        different += !seen[b];
        seen[b] = 1;
    }
    return different >= SAMPLE_RANDOM;
}

/* The difference of @a and @b at @out; its length, or -1 if it is too long. */
static int make_delta(const uint8_t *a, const uint8_t *b, uint8_t *out)
{
    const uint64_t *x = (const uint64_t *)a, *y = (const uint64_t *)b;
    unsigned i = 0;
    int len = 0;

    while (i < WORDS) {
        unsigned skip = 0, n = 0;
        while (i < WORDS && skip < 255 && x[i] == y[i]) {
            i++;
            skip++;
        }
        while (i + n < WORDS && n < 255 && x[i + n] != y[i + n]) {
            n++;
        }
        if (i == WORDS) {
            break; /* nothing more differs */
        }
        if (len + 2 + (int)n * 8 > RAM_DELTA_MAX) {
            return -1;
        }
        out[len++] = skip;
        out[len++] = n;
        for (; n > 0; n--, i++, len += 8) {
            uint64_t d = x[i] ^ y[i];
            memcpy(out + len, &d, 8);
        }
    }
    return len;
}

/* Compress e->plain; its packed length, or 0 where that does not pay. */
static size_t pack(RamEncoder *e, size_t len)
{
    size_t n = 0;
    uLongf zn = e->packed_max;

    if (len < 64) {
        return 0;
    }
    if (e->method == RAM_METHOD_ZSTD) {
        n = ZSTD_compressCCtx(e->zstd, e->packed, e->packed_max, e->plain, len, e->level);
        n = ZSTD_isError(n) ? 0 : n;
    } else if (e->method == RAM_METHOD_ZLIB &&
               compress2(e->packed, &zn, e->plain, len, e->level) == Z_OK) {
        n = zn;
    }
    return n < len ? n : 0;
}

/* Put one page where it costs least. */
static RamKind add_page(RamEncoder *e, const uint8_t *data, const uint8_t *base, size_t *raw,
                        size_t *plain)
{
    uint8_t *copy = e->raw + *raw;

    memcpy(copy, data, COLO_PAGE_SIZE);
    if (page_is_zero(copy)) {
        return RAM_KIND_ZERO;
    }
    int d = base ? make_delta(copy, base, e->plain + *plain + 2) : -1;
    if (d >= 0) {
        bytes_put_be(e->plain + *plain, d, 2);
        *plain += 2 + d;
        return RAM_KIND_DELTA;
    }
    if (e->method != RAM_METHOD_NONE && !looks_random(copy)) {
        memcpy(e->plain + *plain, copy, COLO_PAGE_SIZE);
        *plain += COLO_PAGE_SIZE;
        return RAM_KIND_PACKED;
    }
    *raw += COLO_PAGE_SIZE;
    return RAM_KIND_RAW;
}

unsigned ram_encode(RamEncoder *e, uint64_t epoch, const uint64_t *page,
                    const uint8_t *const *data, const uint8_t *const *base, unsigned n,
                    struct iovec *parts, RamCounts *counts)
{
    size_t raw = 0, plain = 0;

    for (unsigned i = 0; i < n; i++) {
        RamKind kind = add_page(e, data[i], base ? base[i] : NULL, &raw, &plain);
        counts->kind[kind]++;
        bytes_put_be(e->head + RAM_FRAME_HEAD + 8 * i,
                     page[i] | (uint64_t)kind << RAM_KIND_SHIFT, 8);
    }
    size_t packed = pack(e, plain);
    bytes_put_be(e->head, epoch, 8);
    bytes_put_be(e->head + 8, n, 4);
    bytes_put_be(e->head + 12, packed ? e->method : RAM_METHOD_NONE, 4);
    bytes_put_be(e->head + 16, packed ? packed : plain, 4);
    bytes_put_be(e->head + 20, plain, 4);
    unsigned used = 0;
    parts[used++] = (struct iovec){e->head, RAM_FRAME_HEAD + 8 * n};
    if (raw) {
        parts[used++] = (struct iovec){e->raw, raw};
    }
    if (plain) {
        parts[used++] = (struct iovec){packed ? e->packed : e->plain, packed ? packed : plain};
    }
    counts->bytes += RAM_FRAME_HEAD + 8 * n + raw + (packed ? packed : plain);
    return used;
}

/* --- Reading --- */

static bool malformed(GError **errp, const char *what)
{
    colo_error_set(errp, "bad RAM message from the peer (%s)", what);
    return false;
}

static bool unpack(RamDecoder *d, RamMethod method, const uint8_t *packed, size_t packed_len,
                   size_t plain_len, GError **errp)
{
    uLongf zn = plain_len;
    bool ok = true;

    d->plain = d->buf;
    if (method == RAM_METHOD_ZSTD) {
        ok = ZSTD_decompress(d->buf, plain_len, packed, packed_len) == plain_len;
    } else if (method == RAM_METHOD_ZLIB) {
        ok = uncompress(d->buf, &zn, packed, packed_len) == Z_OK && zn == plain_len;
    } else {
        d->plain = packed;
        ok = packed_len == plain_len;
    }
    d->plain_end = d->plain + plain_len;
    return ok || malformed(errp, "its packed part cannot be unpacked");
}

bool ram_decode(RamDecoder *d, const uint8_t *data, size_t len, uint64_t pages, GError **errp)
{
    if (len < RAM_FRAME_HEAD) {
        return malformed(errp, "too short");
    }
    uint64_t n = bytes_get_be(data + 8, 4), method = bytes_get_be(data + 12, 4);
    uint64_t packed = bytes_get_be(data + 16, 4), plain = bytes_get_be(data + 20, 4), raw = 0;
    if (n == 0 || n > RAM_BATCH_PAGES || method >= RAM_METHOD_MAX || plain > RAM_PLAIN_MAX ||
        len < RAM_FRAME_HEAD + 8 * n) {
        return malformed(errp, "its head");
    }
    d->epoch = bytes_get_be(data, 8);
    d->n = n;
    for (unsigned i = 0; i < n; i++) {
        uint64_t v = bytes_get_be(data + RAM_FRAME_HEAD + 8 * i, 8);
        d->kind[i] = v >> RAM_KIND_SHIFT;
        d->page[i] = v & ((1ull << RAM_KIND_SHIFT) - 1);
        if (d->kind[i] >= RAM_KIND_MAX || d->page[i] >= pages) {
            return malformed(errp, "a page number");
        }
        raw += d->kind[i] == RAM_KIND_RAW ? COLO_PAGE_SIZE : 0;
    }
    if (len != RAM_FRAME_HEAD + 8 * n + raw + packed) {
        return malformed(errp, "its length");
    }
    d->raw = data + RAM_FRAME_HEAD + 8 * n;
    d->raw_end = d->raw + raw;
    return unpack(d, method, d->raw_end, packed, plain, errp);
}

static bool apply_delta(const uint8_t *at, const uint8_t *end, uint8_t *to,
                        const uint8_t *base)
{
    unsigned word = 0;

    memcpy(to, base, COLO_PAGE_SIZE);
    while (at < end) {
        if (end - at < 2) {
            return false;
        }
        unsigned skip = at[0], n = at[1];
        at += 2;
        word += skip;
        if (word + n > WORDS || end - at < (ptrdiff_t)n * 8) {
            return false;
        }
        for (; n > 0; n--, word++, at += 8) {
            uint64_t a, b;
            memcpy(&a, to + 8 * word, 8);
            memcpy(&b, at, 8);
            a ^= b;
            memcpy(to + 8 * word, &a, 8);
        }
    }
    return true;
}

bool ram_decode_page(RamDecoder *d, unsigned i, uint8_t *to, const uint8_t *base,
                     GError **errp)
{
    size_t left = d->plain_end - d->plain, len;

    switch (d->kind[i]) {
    case RAM_KIND_ZERO:
        memset(to, 0, COLO_PAGE_SIZE);
        return true;
    case RAM_KIND_RAW:
        memcpy(to, d->raw, COLO_PAGE_SIZE);
        d->raw += COLO_PAGE_SIZE;
        return true;
    case RAM_KIND_PACKED:
        if (left < COLO_PAGE_SIZE) {
            return malformed(errp, "its packed part ends early");
        }
        memcpy(to, d->plain, COLO_PAGE_SIZE);
        d->plain += COLO_PAGE_SIZE;
        return true;
    default:
        if (left < 2 || (len = bytes_get_be(d->plain, 2)) > left - 2) {
            return malformed(errp, "its packed part ends early");
        }
        if (!base || !apply_delta(d->plain + 2, d->plain + 2 + len, to, base)) {
            return malformed(errp, base ? "a difference" : "a difference in the first copy");
        }
        d->plain += 2 + len;
        return true;
    }
}

bool ram_decode_end(const RamDecoder *d, GError **errp)
{
    return (d->raw == d->raw_end && d->plain == d->plain_end) ||
           malformed(errp, "bytes are left over");
}
