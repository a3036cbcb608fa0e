/*
 * Beats on the wire: encode, check, decode.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "migration/heartbeat-codec.h"

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <string.h>

#define BEAT_MAGIC 0x51434842u /* "QCHB" */
#define BEAT_VERSION 1
#define SIGNED_BYTES 64

const char *const beat_refusal_names[BEAT_REFUSAL_MAX] = {
    "none", "malformed", "forged", "reflected", "misdirected", "stranger", "replayed",
};

static void put(uint8_t *p, uint64_t v, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        p[i] = v >> (8 * (bytes - 1 - i));
    }
}

static uint64_t get(const uint8_t *p, unsigned bytes)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < bytes; i++) {
        v = v << 8 | p[i];
    }
    return v;
}

static void sign(const uint8_t *data, const uint8_t *key, size_t key_len, uint8_t mac[32])
{
    static const char no_key[] = "qemu-colo heartbeat: no key";

    if (!key) {
        key = (const uint8_t *)no_key;
        key_len = sizeof(no_key) - 1;
    }
    int r = gnutls_hmac_fast(GNUTLS_MAC_SHA256, key, key_len, data, SIGNED_BYTES, mac);
    g_assert(r == 0);
}

void beat_encode(const Beat *b, const uint8_t *key, size_t key_len, uint8_t out[BEAT_BYTES])
{
    put(out, BEAT_MAGIC, 4);
    put(out + 4, BEAT_VERSION, 1);
    put(out + 5, b->word, 1);
    put(out + 6, b->role, 1);
    put(out + 7, b->link, 1);
    put(out + 8, b->flags, 4);
    put(out + 12, b->echo_age_us, 4);
    put(out + 16, b->from, 8);
    put(out + 24, b->to, 8);
    put(out + 32, b->sequence, 8);
    put(out + 40, b->sent_us, 8);
    put(out + 48, b->echo_us, 8);
    put(out + 56, b->epoch, 8);
    sign(out, key, key_len, out + SIGNED_BYTES);
}

BeatRefusal beat_decode(const uint8_t *data, size_t len, const uint8_t *key, size_t key_len,
                        Beat *b)
{
    uint8_t mac[32];

    if (len != BEAT_BYTES || get(data, 4) != BEAT_MAGIC || data[4] != BEAT_VERSION) {
        return BEAT_MALFORMED;
    }
    sign(data, key, key_len, mac);
    if (gnutls_memcmp(mac, data + SIGNED_BYTES, sizeof(mac)) != 0) {
        return BEAT_FORGED;
    }
    *b = (Beat){
        .word = data[5],
        .role = data[6],
        .link = data[7],
        .flags = get(data + 8, 4),
        .echo_age_us = get(data + 12, 4),
        .from = get(data + 16, 8),
        .to = get(data + 24, 8),
        .sequence = get(data + 32, 8),
        .sent_us = get(data + 40, 8),
        .echo_us = get(data + 48, 8),
        .epoch = get(data + 56, 8),
    };
    /* With the key, but nonsense: a peer that is broken, or of another make. */
    bool ok = b->word >= BEAT_ALIVE && b->word < BEAT_WORD_MAX && b->role <= 2 && b->from &&
              b->sequence && b->sent_us > 0 && b->echo_us >= 0;
    return ok ? BEAT_OK : BEAT_MALFORMED;
}
