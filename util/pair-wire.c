/*
 * The pair port on the wire: question, answer, proof.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Who starts a guest, and from whose disk, hangs on what the pair port says; so where both sides
 * have a key an answer proves that it was made by one who has it, and after the question: it
 * carries an HMAC over the question's nonce, the asker's number and every byte of the line (state,
 * role and instance among them). A recording answers another question. A question that
 * somebody sends back to its asker gets no proof: the asker's own word is nobody else's. The
 * label keeps the key's other use, the heartbeat, apart.
 *
 * Questions are not signed: the port tells strangers what it tells the peer, without proof for
 * them to pass on but to the question that they put.
 */
#include "util/pair-wire.h"

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <string.h>

#include "util/bytes.h"

#define QUESTION "colo-pair 1 "
#define PROOF "hmac-sha256 "
#define LABEL "qemu-colo pair port 1: answer"
#define MAC_BYTES 32
#define PROOF_LEN (sizeof(PROOF) - 1 + 2 * MAC_BYTES)

const char *const pair_refusal_names[PAIR_REFUSAL_MAX] = {"none", "malformed", "unsigned",
                                                          "forged"};

/* Who this process is, as asker: drawn once. */
static uint64_t self_number(void)
{
    static gsize once;
    static uint64_t number;

    if (g_once_init_enter(&once)) {
        while (number == 0) {
            int r = gnutls_rnd(GNUTLS_RND_RANDOM, &number, sizeof(number));
            g_assert(r == 0);
        }
        g_once_init_leave(&once, 1);
    }
    return number;
}

void pair_question_new(PairQuestion *q)
{
    int r = gnutls_rnd(GNUTLS_RND_RANDOM, q->nonce, sizeof(q->nonce));

    g_assert(r == 0);
    q->asker = self_number();
}

static void append_hex(GString *out, const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        g_string_append_printf(out, "%02x", p[i]);
    }
}

static bool take_hex(const char *text, uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        int high = g_ascii_xdigit_value(text[2 * i]), low = g_ascii_xdigit_value(text[2 * i + 1]);
        if (high < 0 || low < 0) {
            return false;
        }
        p[i] = high << 4 | low;
    }
    return true;
}

char *pair_question_format(const PairQuestion *q)
{
    GString *s = g_string_new(QUESTION);
    uint8_t asker[8];

    bytes_put_be(asker, q->asker, sizeof(asker));
    append_hex(s, q->nonce, sizeof(q->nonce));
    g_string_append_c(s, ' ');
    append_hex(s, asker, sizeof(asker));
    g_string_append_c(s, '\n');
    return g_string_free(s, FALSE);
}

bool pair_question_parse(const char *text, size_t len, PairQuestion *q)
{
    const size_t head = sizeof(QUESTION) - 1, nonce = 2 * PAIR_NONCE_BYTES;
    uint8_t asker[8];

    len -= len > 0 && text[len - 1] == '\n';
    if (len != head + nonce + 1 + 2 * sizeof(asker) || memcmp(text, QUESTION, head) != 0 ||
        !take_hex(text + head, q->nonce, sizeof(q->nonce)) || text[head + nonce] != ' ' ||
        !take_hex(text + head + nonce + 1, asker, sizeof(asker))) {
        return false;
    }
    q->asker = bytes_get_be(asker, sizeof(asker));
    return true;
}

static void prove(const char *line, size_t len, const PairKey *key, const PairQuestion *q,
                  uint8_t mac[MAC_BYTES])
{
    g_autoptr(GByteArray) all = g_byte_array_new();
    uint8_t asker[8];

    bytes_put_be(asker, q->asker, sizeof(asker));
    g_byte_array_append(all, (const uint8_t *)LABEL, sizeof(LABEL)); /* with its NUL */
    g_byte_array_append(all, q->nonce, sizeof(q->nonce));
    g_byte_array_append(all, asker, sizeof(asker));
    g_byte_array_append(all, (const uint8_t *)line, len);
    int r = gnutls_hmac_fast(GNUTLS_MAC_SHA256, key->bytes, key->len, all->data, all->len, mac);
    g_assert(r == 0);
}

char *pair_answer_seal(const char *line, const PairKey *key, const PairQuestion *q)
{
    GString *s = g_string_new(line);
    uint8_t mac[MAC_BYTES];

    g_string_append_c(s, '\n');
    if (key && key->len && q && q->asker != self_number()) {
        prove(line, strlen(line), key, q, mac);
        g_string_append(s, PROOF);
        append_hex(s, mac, sizeof(mac));
        g_string_append_c(s, '\n');
    }
    return g_string_free(s, FALSE);
}

PairRefusal pair_answer_open(const char *answer, size_t len, const PairKey *key,
                             const PairQuestion *q, char **line)
{
    const char *end = len ? memchr(answer, '\n', len) : NULL;
    size_t first = end ? (size_t)(end - answer) : len;
    const char *proof = end ? end + 1 : answer + len;
    size_t left = len - (proof - answer);
    uint8_t mac[MAC_BYTES], said[MAC_BYTES];

    *line = NULL;
    if (first == 0 || len > PAIR_ANSWER_MAX || memchr(answer, 0, len)) {
        return PAIR_MALFORMED;
    }
    if (key && key->len) {
        if (left == 0) {
            return PAIR_UNSIGNED;
        }
        if (left != PROOF_LEN + 1 || proof[PROOF_LEN] != '\n' ||
            memcmp(proof, PROOF, sizeof(PROOF) - 1) != 0 ||
            !take_hex(proof + sizeof(PROOF) - 1, said, sizeof(said))) {
            return PAIR_MALFORMED;
        }
        prove(answer, first, key, q, mac);
        if (gnutls_memcmp(mac, said, sizeof(mac)) != 0) {
            return PAIR_FORGED;
        }
    }
    *line = g_strndup(answer, first);
    return PAIR_OK;
}
