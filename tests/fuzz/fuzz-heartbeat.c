/*
 * Fuzz: what the heartbeat does with datagrams of anybody, and of a peer with the key that
 * says what it likes.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Beside not crashing: without the key nothing changes but a counter; with it, nothing that
 * a beat says lets this side speak later than the lease after a time that it really sent.
 */
#include "fuzz.h"

#include "migration/heartbeat-state.h"

#define TIMEOUT 1000000

static const uint8_t key[] = "a key of the two of us", other_key[] = "a key of somebody else";

static Heart heart;
static int64_t now, newest_sent;
static uint64_t known[6]; /* instances that beats come from or are for */

static void check(void)
{
    g_assert_cmpint(heart.proven_us, <=, newest_sent);
    g_assert_cmpint(heart.heard_us, <=, now);
    g_assert(heart_own_lease_end(&heart) <= now + heart_lease(&heart));
    g_assert(!heart.up || (heart.peer && heart.word == BEAT_ALIVE));
    for (unsigned i = 0; i < heart.n_links; i++) {
        g_assert(!heart.links[i].up || heart.links[i].received);
    }
}

static void make(Beat *b)
{
    *b = (Beat){
        .word = fuzz_one_in(20) ? fuzz_below(6) : BEAT_ALIVE,
        .role = fuzz_below(fuzz_one_in(20) ? 256 : 3),
        .link = fuzz_one_in(20) ? fuzz_next() : fuzz_below(heart.n_links),
        .flags = fuzz_next(),
        .from = known[fuzz_below(6)],
        .to = known[fuzz_below(6)],
        .sequence = fuzz_one_in(20) ? fuzz_next() : fuzz_below(200),
        .sent_us = fuzz_one_in(20) ? (int64_t)fuzz_next() : (int64_t)fuzz_below(1u << 30),
        .echo_us = fuzz_one_in(10) ? (int64_t)fuzz_next()
                                   : newest_sent - fuzz_below(fuzz_one_in(4) ? 1u << 22 : 1000),
        .echo_age_us = fuzz_next(),
        .epoch = fuzz_next(),
    };
}

static void receive(void)
{
    HeartNews news = {0};
    uint8_t bytes[BEAT_BYTES + 8];
    size_t len = BEAT_BYTES;
    Beat b, got;
    bool honest = !fuzz_one_in(3);

    make(&b);
    beat_encode(&b, honest ? key : other_key, honest ? sizeof(key) : sizeof(other_key), bytes);
    bool damaged = fuzz_one_in(3);
    if (damaged) {
        uint8_t before[BEAT_BYTES];
        memcpy(before, bytes, BEAT_BYTES);
        if (fuzz_one_in(4)) {
            len = fuzz_below(sizeof(bytes));
        }
        fuzz_mutate(bytes, MIN(len, BEAT_BYTES));
        damaged = len != BEAT_BYTES || memcmp(before, bytes, BEAT_BYTES) != 0;
    }
    BeatRefusal r = beat_decode(bytes, len, key, sizeof(key), &got);
    g_assert(r == BEAT_OK || r == BEAT_FORGED || r == BEAT_MALFORMED);
    g_assert(r != BEAT_OK || (honest && !damaged));
    if (r != BEAT_OK) {
        return;
    }
    unsigned link = fuzz_below(heart.n_links);
    Heart before = heart;
    r = heart_receive(&heart, link, &got, now, &news);
    if (r != BEAT_OK && r != BEAT_REPLAYED) {
        /* Refused: the counter and nothing else. */
        before.links[link].refused[r]++;
        /* NOLINTNEXTLINE(bugprone-suspicious-memory-comparison,cert-exp42-c,cert-flp37-c) */
        g_assert(memcmp(&before, &heart, sizeof(heart)) == 0); /* a copy: padding, too */
    }
    check();
}

static void one(void)
{
    now = 5000000;
    newest_sent = now;
    memset(&heart, 0, sizeof(heart));
    for (unsigned i = 0; i < 6; i++) {
        known[i] = i < 2 ? 0 : fuzz_next() | 1;
    }
    known[1] = 0x5e1f; /* ours */
    heart_init(&heart, known[1], 1 + fuzz_below(4), 100000, TIMEOUT, now);
    if (fuzz_one_in(2)) {
        heart_pin(&heart, known[2]);
    }
    for (unsigned n = 5 + fuzz_below(200); n > 0; n--) {
        HeartNews news = {0};
        switch (fuzz_below(8)) {
        case 0:
            now += fuzz_below(fuzz_one_in(8) ? 3 * TIMEOUT : 200000);
            heart_tick(&heart, now, &news);
            g_assert(!heart.up || now - heart.proven_us <= TIMEOUT);
            break;
        case 1: {
            Beat out, back;
            uint8_t bytes[BEAT_BYTES], again[BEAT_BYTES];
            heart_compose(&heart, fuzz_below(heart.n_links), BEAT_ALIVE, now, &out);
            newest_sent = now;
            beat_encode(&out, key, sizeof(key), bytes);
            g_assert_cmpint(beat_decode(bytes, BEAT_BYTES, key, sizeof(key), &back), ==,
                            BEAT_OK);
            beat_encode(&back, key, sizeof(key), again);
            g_assert(memcmp(bytes, again, BEAT_BYTES) == 0);
            /* Our own never counts. */
            g_assert_cmpint(heart_receive(&heart, out.link, &back, now, &news), ==,
                            BEAT_REFLECTED);
            break;
        }
        case 2:
            if (fuzz_one_in(10)) {
                heart_freeze(&heart);
            }
            break;
        default:
            receive();
            break;
        }
    }
}

int main(int argc, char **argv)
{
    return fuzz_main(argc, argv, "heartbeat", one);
}
