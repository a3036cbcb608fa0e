/*
 * The heartbeat's codec and state machine, with a clock and a network of our own.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib.h>
#include <string.h>

#include "migration/heartbeat-state.h"

#define MS 1000
#define INTERVAL (100 * MS)
#define TIMEOUT (1000 * MS)
#define LINKS_MAX 2
#define FLIGHT_MAX 4096

static const uint8_t key[] = "0123456789abcdef";

static uint64_t rng_state;

static uint32_t rnd(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(rng_state >> 33) % n;
}

/* --- Codec --- */

static Beat a_beat(void)
{
    return (Beat){
        .word = BEAT_DEATH, .role = 2, .link = 1, .flags = 0x501, .from = 0x1122334455667788,
        .to = 0x99, .sequence = 7, .sent_us = 123456789, .echo_us = 55, .echo_age_us = 77,
        .epoch = 1ull << 40,
    };
}

static void test_round_trip(void)
{
    Beat b = a_beat(), back;
    uint8_t bytes[BEAT_BYTES], again[BEAT_BYTES];

    beat_encode(&b, key, sizeof(key), bytes);
    g_assert_cmpint(beat_decode(bytes, sizeof(bytes), key, sizeof(key), &back), ==, BEAT_OK);
    beat_encode(&back, key, sizeof(key), again);
    g_assert_cmpmem(bytes, BEAT_BYTES, again, BEAT_BYTES);
    g_assert_cmpuint(back.epoch, ==, 1ull << 40);
    g_assert_cmpint(back.sent_us, ==, 123456789);
    beat_encode(&b, NULL, 0, bytes);
    g_assert_cmpint(beat_decode(bytes, sizeof(bytes), NULL, 0, &back), ==, BEAT_OK);
    g_assert_cmpint(beat_decode(bytes, sizeof(bytes), key, sizeof(key), &back), ==, BEAT_FORGED);
}

/* The wire is fixed: HMAC-SHA256 of the first 64 bytes, all numbers big-endian. */
static void test_wire(void)
{
    Beat b = a_beat();
    uint8_t bytes[BEAT_BYTES];
    static const uint8_t head[] = {'Q', 'C', 'H', 'B', 1, 4, 2, 1, 0, 0, 5, 1, 0, 0, 0, 77,
                                   0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88};

    beat_encode(&b, key, sizeof(key), bytes);
    g_assert_cmpmem(bytes, sizeof(head), head, sizeof(head));
    g_autoptr(GHmac) h = g_hmac_new(G_CHECKSUM_SHA256, key, sizeof(key));
    uint8_t mac[32];
    gsize len = sizeof(mac);
    g_hmac_update(h, bytes, 64);
    g_hmac_get_digest(h, mac, &len);
    g_assert_cmpmem(bytes + 64, 32, mac, 32);
}

/* Each bit of a beat is under the signature, each length but one is refused. */
static void test_damage(void)
{
    Beat b = a_beat(), back;
    uint8_t bytes[BEAT_BYTES + 1] = {0};

    beat_encode(&b, key, sizeof(key), bytes);
    for (unsigned bit = 0; bit < BEAT_BYTES * 8; bit++) {
        bytes[bit / 8] ^= 1 << bit % 8;
        BeatRefusal r = beat_decode(bytes, BEAT_BYTES, key, sizeof(key), &back);
        g_assert_cmpint(r, ==, bit < 40 ? BEAT_MALFORMED : BEAT_FORGED);
        bytes[bit / 8] ^= 1 << bit % 8;
    }
    for (size_t len = 0; len <= sizeof(bytes); len++) {
        g_assert_cmpint(beat_decode(bytes, len, key, sizeof(key), &back), ==,
                        len == BEAT_BYTES ? BEAT_OK : BEAT_MALFORMED);
    }
    b.word = BEAT_WORD_MAX;
    beat_encode(&b, key, sizeof(key), bytes);
    g_assert_cmpint(beat_decode(bytes, BEAT_BYTES, key, sizeof(key), &back), ==,
                    BEAT_MALFORMED);
}

/* --- Two hearts and what lies between --- */

typedef struct Side {
    Heart h;
    int64_t clock; /* its clock's lead over the world's */
    bool paused;
    HeartNews news; /* of all time */
    unsigned ups, losses;
} Side;

typedef struct World {
    int64_t now;
    Side side[2];
    bool cut[LINKS_MAX][2]; /* from side i */
    unsigned loss_percent, duplicate_percent;
    int64_t delay_max;
    struct {
        int64_t at;
        unsigned link, to;
        Beat b;
    } flight[FLIGHT_MAX];
    unsigned n_flight;
} World;

static int64_t clock_of(World *w, unsigned who)
{
    return w->now + w->side[who].clock;
}

static void note(Side *s, const HeartNews *n)
{
    s->ups += n->up;
    s->losses += n->lost;
    s->news.links_lost |= n->links_lost;
    s->news.links_up |= n->links_up;
    s->news.why = n->why ? n->why : s->news.why;
    if (n->lost && s->h.pinned) {
        heart_freeze(&s->h);
    }
}

static void post(World *w, unsigned from, const Beat *b)
{
    unsigned copies = 1 + (rnd(100) < w->duplicate_percent);

    for (unsigned i = 0; i < copies; i++) {
        if (w->cut[b->link][from] || rnd(100) < w->loss_percent) {
            continue;
        }
        g_assert_cmpuint(w->n_flight, <, FLIGHT_MAX);
        w->flight[w->n_flight].at = w->now + 1 + (w->delay_max ? rnd(w->delay_max) : 0);
        w->flight[w->n_flight].link = b->link;
        w->flight[w->n_flight].to = !from;
        w->flight[w->n_flight++].b = *b;
    }
}

static void beat_of(World *w, unsigned who, BeatWord word)
{
    for (unsigned i = 0; i < w->side[who].h.n_links; i++) {
        Beat b;
        heart_compose(&w->side[who].h, i, word, clock_of(w, who), &b);
        post(w, who, &b);
    }
}

static void deliver(World *w, unsigned k)
{
    unsigned who = w->flight[k].to, link = w->flight[k].link;
    Side *s = &w->side[who];
    HeartNews n = {0};

    heart_receive(&s->h, link, &w->flight[k].b, clock_of(w, who), &n);
    note(s, &n);
    if (s->h.links[link].greeted) {
        Beat b;
        heart_compose(&s->h, link, BEAT_ALIVE, clock_of(w, who), &b);
        post(w, who, &b);
    }
}

/* Milliseconds pass. */
static void pass(World *w, unsigned ms)
{
    for (; ms > 0; ms--) {
        w->now += MS;
        for (unsigned k = 0; k < w->n_flight;) {
            if (w->flight[k].at <= w->now && !w->side[w->flight[k].to].paused) {
                deliver(w, k);
                w->flight[k] = w->flight[--w->n_flight];
            } else {
                k++;
            }
        }
        for (unsigned who = 0; who < 2; who++) {
            HeartNews n = {0};
            if (!w->side[who].paused &&
                heart_tick(&w->side[who].h, clock_of(w, who), &n)) {
                beat_of(w, who, BEAT_ALIVE);
            }
            note(&w->side[who], &n);
        }
    }
}

static World *world_new(unsigned links)
{
    World *w = g_new0(World, 1);

    w->now = 1000 * MS;
    w->side[0].clock = 7777777;
    w->side[1].clock = 123;
    for (unsigned who = 0; who < 2; who++) {
        heart_init(&w->side[who].h, 0xa0 + who, links, INTERVAL, TIMEOUT, clock_of(w, who));
    }
    return w;
}

static World *pair_new(unsigned links)
{
    World *w = world_new(links);

    heart_pin(&w->side[0].h, 0xa1);
    heart_pin(&w->side[1].h, 0xa0);
    pass(w, 300);
    g_assert(w->side[0].h.up && w->side[1].h.up);
    return w;
}

static void test_meeting(void)
{
    g_autofree World *w = world_new(2);

    w->delay_max = 5 * MS;
    pass(w, 20);
    g_assert(!w->side[0].h.up || !w->side[1].h.up || w->side[0].h.proven_us);
    pass(w, 400);
    for (unsigned who = 0; who < 2; who++) {
        g_assert_true(w->side[who].h.up);
        g_assert_cmpuint(w->side[who].h.peer, ==, 0xa0 + !who);
        g_assert_cmpuint(w->side[who].news.links_up, ==, 3);
        g_assert_cmpuint(w->side[who].h.links[1].rtt_us, <=, 12 * MS);
        g_assert_cmpuint(w->side[who].ups, ==, 1);
    }
}

static void test_restart(void)
{
    g_autofree World *w = world_new(1);

    pass(w, 300);
    heart_init(&w->side[0].h, 0xb0, 1, INTERVAL, TIMEOUT, clock_of(w, 0));
    pass(w, 300);
    g_assert_true(w->side[0].h.up && w->side[1].h.up);
    g_assert_cmpuint(w->side[1].h.peer, ==, 0xb0);
    g_assert_cmpuint(w->side[1].losses, ==, 1);
    /* What the old one sent is of nobody now. */
    HeartNews n = {0};
    Beat old = {.word = BEAT_ALIVE, .from = 0xa0, .to = 0xa1, .sequence = 5000, .sent_us = 1};
    g_assert_cmpint(heart_receive(&w->side[1].h, 0, &old, clock_of(w, 1), &n), ==,
                    BEAT_REPLAYED);
    /* Protected with one process, another is a stranger. */
    heart_pin(&w->side[1].h, 0xb0);
    old.from = 0xc0;
    g_assert_cmpint(heart_receive(&w->side[1].h, 0, &old, clock_of(w, 1), &n), ==,
                    BEAT_STRANGER);
    g_assert_true(w->side[1].h.up);
}

/* Each way to be refused, counted where it happened; nothing of them keeps a peer alive. */
static void test_refusals(void)
{
    g_autofree World *w = pair_new(2);
    Heart *h = &w->side[0].h;
    HeartNews n = {0};
    int64_t now = clock_of(w, 0);
    Beat good = {.word = BEAT_ALIVE, .link = 1, .from = 0xa1, .to = 0xa0,
                 .sequence = h->links[1].top + 1, .sent_us = h->peer_us + 5, .echo_us = now};
    struct {
        BeatRefusal want;
        uint64_t from, to, sequence;
        uint8_t link;
        int64_t echo;
    } bad[] = {
        {BEAT_REFLECTED, 0xa0, 0xa1, good.sequence, 1, now},
        {BEAT_MISDIRECTED, 0xa1, 0xa7, good.sequence, 1, now},
        {BEAT_MISDIRECTED, 0xa1, 0xa0, good.sequence, 0, now},
        {BEAT_STRANGER, 0xa7, 0xa0, good.sequence, 1, now},
        {BEAT_REPLAYED, 0xa1, 0xa0, h->links[1].top, 1, now},
        {BEAT_REPLAYED, 0xa1, 0xa0, 1, 1, now},
        {BEAT_MALFORMED, 0xa1, 0xa0, good.sequence, 1, now + 1},
    };

    int64_t proven = h->proven_us, heard = h->heard_us;
    h->links[1].top += 100;
    h->links[1].seen = ~0ull;
    bad[4].sequence = h->links[1].top;
    good.sequence = h->links[1].top + 1;
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        uint64_t before = h->links[1].refused[bad[i].want];
        Beat b = good;
        b.from = bad[i].from;
        b.to = bad[i].to;
        b.link = bad[i].link;
        b.sequence = bad[i].sequence;
        b.echo_us = bad[i].echo;
        g_assert_cmpint(heart_receive(h, 1, &b, now, &n), ==, bad[i].want);
        g_assert_cmpuint(h->links[1].refused[bad[i].want], ==, before + 1);
    }
    g_assert_cmpint(h->proven_us, ==, proven);
    g_assert_cmpint(h->heard_us, ==, heard);
    g_assert_cmpint(heart_receive(h, 1, &good, now, &n), ==, BEAT_OK);
    g_assert_cmpint(heart_receive(h, 1, &good, now, &n), ==, BEAT_REPLAYED);
    g_assert_cmpint(h->proven_us, ==, now);
}

/* Out of order, within the window, each once. */
static void test_window(void)
{
    g_autofree World *w = pair_new(1);
    Heart *h = &w->side[0].h;
    HeartNews n = {0};
    uint64_t top = h->links[0].top + 200;
    Beat b = {.word = BEAT_ALIVE, .from = 0xa1, .to = 0xa0, .sequence = top, .sent_us = 1};

    g_assert_cmpint(heart_receive(h, 0, &b, clock_of(w, 0), &n), ==, BEAT_OK);
    for (unsigned back = 63; back > 0; back--) {
        b.sequence = top - back;
        g_assert_cmpint(heart_receive(h, 0, &b, clock_of(w, 0), &n), ==, BEAT_OK);
        g_assert_cmpint(heart_receive(h, 0, &b, clock_of(w, 0), &n), ==, BEAT_REPLAYED);
    }
    b.sequence = top - 64;
    g_assert_cmpint(heart_receive(h, 0, &b, clock_of(w, 0), &n), ==, BEAT_REPLAYED);
}

static void test_cut(void)
{
    g_autofree World *w = pair_new(2);

    w->cut[0][0] = w->cut[0][1] = true;
    pass(w, 3000);
    g_assert_true(w->side[0].h.up && w->side[1].h.up);
    g_assert_cmpuint(w->side[0].news.links_lost, ==, 1);
    g_assert_cmpuint(w->side[0].losses, ==, 0);
    w->cut[0][0] = w->cut[0][1] = false;
    w->side[0].news.links_up = 0;
    pass(w, 300);
    g_assert_cmpuint(w->side[0].news.links_up, ==, 1);
    int64_t cut = w->now;
    w->cut[0][0] = w->cut[0][1] = w->cut[1][0] = w->cut[1][1] = true;
    while (w->side[1].h.up) {
        pass(w, 1);
    }
    g_assert_cmpint(w->now - cut, <=, TIMEOUT + 2 * MS);
    g_assert_cmpint(w->now - cut, >=, TIMEOUT - 2 * INTERVAL - 2 * MS);
    pass(w, INTERVAL / MS);
    g_assert_false(w->side[0].h.up);
}

/* Nothing passes in one direction: both sides see it, within the same time. */
static void test_one_way(void)
{
    for (unsigned deaf = 0; deaf < 2; deaf++) {
        g_autofree World *w = pair_new(2);
        w->cut[0][!deaf] = w->cut[1][!deaf] = true;
        pass(w, (TIMEOUT + 2 * INTERVAL) / MS);
        g_assert_false(w->side[0].h.up);
        g_assert_false(w->side[1].h.up);
        g_assert_nonnull(strstr(w->side[!deaf].news.why, "does not hear"));
        /* One link for each direction is enough. */
        g_autofree World *v = pair_new(2);
        v->cut[0][0] = v->cut[1][1] = true;
        pass(v, 5000);
        g_assert_true(v->side[0].h.up && v->side[1].h.up);
    }
}

/* 30 % of all beats lost, each way, for ten minutes and some seeds: the peer is never lost. */
static void test_loss(void)
{
    for (unsigned seed = 1; seed <= 3; seed++) {
        g_autofree World *w = pair_new(2);
        rng_state = seed;
        w->loss_percent = 30;
        w->duplicate_percent = 10;
        w->delay_max = 20 * MS;
        pass(w, 600000);
        g_assert_cmpuint(w->side[0].losses + w->side[1].losses, ==, 0);
    }
}

static void test_last_words(void)
{
    static const BeatWord words[] = {BEAT_STOP, BEAT_GUEST_OFF, BEAT_DEATH};

    for (unsigned i = 0; i < G_N_ELEMENTS(words); i++) {
        g_autofree World *w = pair_new(2);
        g_assert_cmpint(heart_peer_lease_end(&w->side[1].h), >, clock_of(w, 1));
        /* An ordinary one overtakes on its way, and does not wake the dead. */
        beat_of(w, 0, BEAT_ALIVE);
        unsigned kept = w->n_flight;
        for (unsigned k = 0; k < kept; k++) {
            w->flight[k].at += 50 * MS;
        }
        beat_of(w, 0, words[i]);
        w->side[0].paused = true;
        pass(w, 5);
        g_assert_false(w->side[1].h.up);
        g_assert_cmpint(w->side[1].h.word, ==, words[i]);
        g_assert_cmpint(heart_peer_lease_end(&w->side[1].h), ==, 0);
        pass(w, 100);
        g_assert_false(w->side[1].h.up);
        g_assert_cmpuint(w->side[1].losses, ==, 1);
    }
}

/* A side that stood still: what waited for it in its socket proves nothing for now. */
static void test_asleep(void)
{
    g_autofree World *w = pair_new(1);

    w->side[0].paused = true;
    pass(w, 500);
    w->side[0].paused = false;
    pass(w, 300);
    g_assert_true(w->side[0].h.up && w->side[1].h.up);
    w->side[0].paused = true;
    pass(w, 1500);
    g_assert_false(w->side[1].h.up);
    g_assert_cmpint(heart_own_lease_end(&w->side[0].h), <, clock_of(w, 0));
    for (unsigned k = 0; k < w->n_flight; k++) {
        deliver(w, k);
    }
    g_assert_cmpint(heart_own_lease_end(&w->side[0].h), <, clock_of(w, 0));
    w->n_flight = 0;
    w->side[0].paused = false;
    pass(w, 50);
    g_assert_false(w->side[0].h.up);
}

/* The heart of it: whatever is lost, late or twice, and whoever stands still, the secondary's
 * wait ends after the primary's lease; and it does end. Clocks run at rates 10 % apart. */
static void test_lease(void)
{
    unsigned tried = 0;

    for (unsigned seed = 1; seed <= 400; seed++) {
        g_autofree World *w = pair_new(1 + seed % 2);
        Heart *p = &w->side[0].h, *s = &w->side[1].h;
        rng_state = seed;
        w->loss_percent = rnd(60);
        w->duplicate_percent = rnd(30);
        w->delay_max = 1 + rnd(700 * MS);
        int64_t stop_at = w->now + rnd(3000) * MS, asked = 0;
        for (unsigned ms = 0; ms < 8000; ms++) {
            pass(w, 1);
            w->side[0].clock -= ms % 10 == 0 ? MS : 0; /* the primary's runs slow */
            if (rnd(1000) == 0) {
                unsigned who = rnd(2);
                w->side[who].paused = !w->side[who].paused;
            }
            if (!asked && !s->frozen && w->now > stop_at) {
                heart_freeze(s);
            }
            if (!asked && s->frozen && !w->side[1].paused &&
                clock_of(w, 1) > heart_peer_lease_end(s)) {
                asked = w->now;
                tried++;
            }
            if (asked) {
                /* Whatever still arrives: not one moment of speech. */
                g_assert_cmpint(heart_own_lease_end(p), <=, clock_of(w, 0));
            }
        }
        g_assert(asked || w->side[1].paused);
    }
    g_assert_cmpuint(tried, >, 200);
}

/* The wait is cut short by the primary's word that it is silent, and by nothing older. */
static void test_silent(void)
{
    g_autofree World *w = pair_new(1);
    HeartNews n = {0};
    Beat b;

    heart_freeze(&w->side[1].h);
    int64_t before = heart_peer_lease_end(&w->side[1].h);
    g_assert_cmpint(before, >, clock_of(w, 1));
    heart_compose(&w->side[0].h, 0, BEAT_ALIVE, clock_of(w, 0), &b);
    Beat late = b;
    w->now += MS;
    heart_compose(&w->side[0].h, 0, BEAT_ALIVE, clock_of(w, 0), &b);
    b.flags |= BEAT_SILENT;
    heart_receive(&w->side[1].h, 0, &b, clock_of(w, 1), &n);
    g_assert_true(n.changed);
    g_assert_cmpint(heart_peer_lease_end(&w->side[1].h), ==, 0);
    heart_receive(&w->side[1].h, 0, &late, clock_of(w, 1), &n);
    g_assert_cmpint(heart_peer_lease_end(&w->side[1].h), ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/heartbeat/codec/round-trip", test_round_trip);
    g_test_add_func("/heartbeat/codec/wire", test_wire);
    g_test_add_func("/heartbeat/codec/damage", test_damage);
    g_test_add_func("/heartbeat/meeting", test_meeting);
    g_test_add_func("/heartbeat/restart", test_restart);
    g_test_add_func("/heartbeat/refusals", test_refusals);
    g_test_add_func("/heartbeat/window", test_window);
    g_test_add_func("/heartbeat/cut", test_cut);
    g_test_add_func("/heartbeat/one-way", test_one_way);
    g_test_add_func("/heartbeat/loss", test_loss);
    g_test_add_func("/heartbeat/last-words", test_last_words);
    g_test_add_func("/heartbeat/asleep", test_asleep);
    g_test_add_func("/heartbeat/lease", test_lease);
    g_test_add_func("/heartbeat/silent", test_silent);
    return g_test_run();
}
