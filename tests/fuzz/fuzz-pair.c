/*
 * Fuzz: what the pair port's two ends do with the bytes of anybody.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Beside not crashing: with a key nothing is believed but what was sealed with it for this very
 * question, byte for byte; without one, what is taken is within the limits; and silence or
 * nonsense never becomes a permission to serve.
 */
#include "fuzz.h"

#include "system/pair-peer.h"

static const PairKey key = {"a key of the two of us", 22}, other = {"a key of strangers....", 22};
static const PairKey none = {.len = 0};

static const char *const words[] = {
    "{", "}", "[", "]", ":", ",", "\"", "'", "\\", "\n", "null", "true", "false", "0", "-1", "1e400",
    "\"program\":\"qemu-colo\"", "\"program\":\"coloctl\"", "\"state\":\"waiting\"", "\"serves\":true",
    "\"serves\":7", "\"instance\":", "9223372036854775808", "\"disks\":[", "{\"top\":\"t\"}",
    "\"role\":\"primary\"", "\\u0000", "\xff", "\x01", "[[[[[[[[", "hmac-sha256 ", "colo-pair 1 ",
};

static char *make_text(void)
{
    GString *s = g_string_new(fuzz_one_in(2) ? "{\"program\":\"qemu-colo\"" : "");

    for (unsigned n = fuzz_below(fuzz_one_in(50) ? 6000 : 20); n; n--) {
        g_string_append(s, words[fuzz_below(G_N_ELEMENTS(words))]);
    }
    return g_string_free(s, FALSE);
}

static void check_peer(const PairPeer *p)
{
    g_assert(p->n_disks <= PAIR_DISKS_MAX);
    g_assert(memchr(p->name, 0, sizeof(p->name)) && memchr(p->state, 0, sizeof(p->state)));
    g_assert(memchr(p->role, 0, sizeof(p->role)) && p->instance <= G_MAXINT64);
    for (const char *c = p->name; *c; c++) {
        g_assert(g_ascii_isprint(*c));
    }
}

static void one(void)
{
    PairQuestion q, back, later;
    PairPeer peer;
    g_autofree char *line = make_text(), *opened = NULL;

    fuzz_bytes(q.nonce, sizeof(q.nonce));
    q.asker = fuzz_next() | 1;
    later = q;
    fuzz_mutate(later.nonce, sizeof(later.nonce));

    /* Questions. */
    g_autofree char *asked = pair_question_format(&q);
    size_t len = strlen(asked);
    g_assert(pair_question_parse(asked, len, &back) && back.asker == q.asker &&
             memcmp(back.nonce, q.nonce, sizeof(q.nonce)) == 0);
    fuzz_mutate((uint8_t *)asked, len);
    pair_question_parse(asked, fuzz_below(len + 1), &back);

    /* Answers: newlines have no place in a line. */
    g_strdelimit(line, "\n", ' ');
    bool honest = !fuzz_one_in(3);
    g_autofree char *sealed = pair_answer_seal(line, honest ? &key : fuzz_one_in(2) ? &other : &none,
                                               &q);
    size_t total = strlen(sealed);
    g_autofree char *sent = g_memdup2(sealed, total + 1);
    size_t cut = fuzz_one_in(4) ? fuzz_below(total + 1) : total;
    if (fuzz_one_in(2)) {
        fuzz_mutate((uint8_t *)sent, total);
    }
    bool same = cut == total && memcmp(sent, sealed, total) == 0;
    const PairQuestion *which = fuzz_one_in(4) ? &later : &q;
    bool mine = which == &q || memcmp(&later, &q, sizeof(q)) == 0;
    PairRefusal r = pair_answer_open(sent, cut, &key, which, &opened);
    g_assert((r == PAIR_OK) == (opened != NULL));
    /* Hexadecimal digits may be written large: the same proof. */
    g_autofree char *small = g_ascii_strdown(sent, total);
    g_autofree char *small_sealed = g_ascii_strdown(sealed, total);
    bool same_proof = cut == total && memcmp(sent, sealed, strlen(line)) == 0 &&
                      memcmp(small, small_sealed, total) == 0;
    g_assert(r != PAIR_OK || (honest && mine && same_proof));
    g_assert(!(honest && mine && same && *line && total <= PAIR_ANSWER_MAX) || r == PAIR_OK);
    g_clear_pointer(&opened, g_free);
    if (pair_answer_open(sent, cut, &none, which, &opened) == PAIR_OK) {
        g_assert(strlen(opened) < PAIR_ANSWER_MAX && !strchr(opened, '\n'));
        if (pair_peer_parse(opened, &peer, NULL)) {
            check_peer(&peer);
        }
    }

    /* Nobody's word, and nobody else who knows. */
    PairKnown k = {.was = fuzz_one_in(2) ? "protected-primary" : NULL, .instance = fuzz_next()};
    PairHearing h = fuzz_one_in(2) ? PAIR_SILENT : PAIR_NOT_BELIEVED;
    fuzz_bytes((uint8_t *)&peer, offsetof(PairPeer, serves));
    g_assert(pair_may_serve(h, &peer, &k) == PAIR_ASK_ON);
}

int main(int argc, char **argv)
{
    return fuzz_main(argc, argv, "pair", one);
}
