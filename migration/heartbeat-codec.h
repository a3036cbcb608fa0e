/*
 * Beats on the wire: encode, check, decode.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Pure: no clock, no socket. The format is in docs/interop/heartbeat.rst.
 */
#ifndef COLO_MIGRATION_HEARTBEAT_CODEC_H
#define COLO_MIGRATION_HEARTBEAT_CODEC_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BEAT_BYTES 96

/* What a beat says of its sender. All but ALIVE are last words. */
typedef enum BeatWord {
    BEAT_ALIVE = 1,
    BEAT_STOP,      /* the process ends in order; it is silent already */
    BEAT_GUEST_OFF, /* the same, because the guest has shut itself down */
    BEAT_DEATH,     /* the emulator died */
    BEAT_WORD_MAX
} BeatWord;

/* Flags. Bits 8 to 15: the sender's ColoState. */
#define BEAT_SILENT 1u  /* the sender lets nothing out before its arbiter's word */
#define BEAT_SERVING 2u /* the sender serves its guest, unprotected */

typedef struct Beat {
    BeatWord word;
    uint8_t role; /* ColoMode */
    uint8_t link; /* number of the link, the same on both sides */
    uint32_t flags;
    uint64_t from, to;    /* instances; to 0: the sender knows no peer yet */
    uint64_t sequence;    /* from 1, of this sender on this link */
    int64_t sent_us;      /* the sender's clock */
    int64_t echo_us;      /* newest sent_us heard of @to, on any link; 0: none */
    uint32_t echo_age_us; /* how long before sent_us that was heard */
    uint64_t epoch;
} Beat;

/* Why a datagram counts for nothing. */
typedef enum BeatRefusal {
    BEAT_OK,
    BEAT_MALFORMED,   /* length, magic, version, or a value that cannot be */
    BEAT_FORGED,      /* not made with our key */
    BEAT_REFLECTED,   /* our own */
    BEAT_MISDIRECTED, /* for another process, or sent on another link */
    BEAT_STRANGER,    /* not from the process that this one is protected with */
    BEAT_REPLAYED,    /* seen before, or of an instance that was replaced */
    BEAT_REFUSAL_MAX
} BeatRefusal;

extern const char *const beat_refusal_names[BEAT_REFUSAL_MAX];

/** @key NULL: beats are only protected against damage. */
void beat_encode(const Beat *b, const uint8_t *key, size_t key_len, uint8_t out[BEAT_BYTES]);

/** MALFORMED, FORGED or OK with *@b filled. */
BeatRefusal beat_decode(const uint8_t *data, size_t len, const uint8_t *key, size_t key_len,
                        Beat *b);

#endif
