/*
 * Pages on the wire: how a CHANNEL_RAM message is made and read.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * docs/interop/channel.rst has the format. Each page goes as what costs least: nothing (all
 * zero), a difference to its last committed version, its bytes packed together with the
 * message's others, or its bytes as they are.
 */
#ifndef COLO_MIGRATION_RAM_CODEC_H
#define COLO_MIGRATION_RAM_CODEC_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "migration/tracker.h"

#define RAM_BATCH_PAGES 256
#define RAM_KIND_SHIFT 60
#define RAM_FRAME_HEAD 24 /* bytes before the page numbers */
#define RAM_DELTA_MAX 2048 /* bytes; a longer difference is not worth it */
#define RAM_PLAIN_MAX (RAM_BATCH_PAGES * (COLO_PAGE_SIZE + 2))

typedef enum RamKind {
    RAM_KIND_RAW,
    RAM_KIND_ZERO,
    RAM_KIND_PACKED, /* in the packed part, whole */
    RAM_KIND_DELTA,  /* in the packed part: be16 length, difference */
    RAM_KIND_MAX
} RamKind;

typedef enum RamMethod {
    RAM_METHOD_NONE,
    RAM_METHOD_ZLIB,
    RAM_METHOD_ZSTD,
    RAM_METHOD_MAX
} RamMethod;

/** "none", "zlib", "zstd"; ram_method_find() returns -1 for others. */
const char *ram_method_name(RamMethod m);
int ram_method_find(const char *name);

typedef struct RamEncoder RamEncoder;

/** What an encoder did; pages by kind. */
typedef struct RamCounts {
    uint64_t kind[RAM_KIND_MAX];
    uint64_t bytes; /* of messages' payloads */
} RamCounts;

/** One thread uses it at a time. */
RamEncoder *ram_encoder_new(RamMethod method, int level);
void ram_encoder_free(RamEncoder *e);

/** Make the message of @n pages (<= RAM_BATCH_PAGES) numbered @page with contents @data;
 * @base: each one's last committed version, or NULL. Live RAM may change meanwhile: it is
 * read once. *@parts (3) point into @e until the next call; returns how many. */
unsigned ram_encode(RamEncoder *e, uint64_t epoch, const uint64_t *page,
                    const uint8_t *const *data, const uint8_t *const *base, unsigned n,
                    struct iovec *parts, RamCounts *counts);

/** A message being read. */
typedef struct RamDecoder {
    uint64_t epoch;
    unsigned n;
    uint64_t page[RAM_BATCH_PAGES];
    uint8_t kind[RAM_BATCH_PAGES];
    const uint8_t *raw, *raw_end;     /* in the message */
    const uint8_t *plain, *plain_end; /* in @buf, or in the message */
    uint8_t buf[RAM_PLAIN_MAX];
} RamDecoder;

/** Check and unpack @data; page numbers must be below @pages. Not yet: the differences. */
bool ram_decode(RamDecoder *d, const uint8_t *data, size_t len, uint64_t pages, GError **errp);

/** Write page @i (call for each, in order) to @to; @base: its committed version. False: the
 * message is malformed, and @to has bytes of no meaning. */
bool ram_decode_page(RamDecoder *d, unsigned i, uint8_t *to, const uint8_t *base,
                     GError **errp);

/** Whether all bytes were used. */
bool ram_decode_end(const RamDecoder *d, GError **errp);

#endif
