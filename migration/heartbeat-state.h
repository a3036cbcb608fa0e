/*
 * The heartbeat's state machine: who is alive, who heard what, and until when.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: know that the peer lives, and how old the newest thing is that it surely heard of us,
 * by a clock of our own and nothing else.
 *
 * Pure: the caller brings beats and the time (microseconds of one clock that never goes back
 * and goes on in suspend), and takes away beats to send and news.
 *
 * A beat echoes the newest time of the peer's that its sender has heard. So when a beat
 * comes that echoes our time T, then at some moment after T the peer lived, and it had heard
 * from us. T is @proven_us. What was delayed, queued or replayed on its way echoes an old T and
 * proves no more than it did then: not the arrival of beats keeps the peer alive, but
 * what they echo. Loss in one direction is seen by both sides, therefore.
 *
 * Whose beats count: each process has a random instance id. A beat names its sender's and
 * the one that it is for. One for id 0 greets, and is only answered. One for our id was made
 * after our birth by somebody with the key; its sender is the peer from then on, until it is
 * replaced (which is for good) or, once heart_pin() has said with whom this side is
 * protected, never.
 *
 * The lease, by echo. @own_us: a protected primary may speak until proven + heart_lease();
 * the secondary, once it has stopped to echo (heart_freeze()), waits until heard +
 * timeout. The primary sent T before the secondary heard it, so heard is later than T, and
 * what remains between lease and timeout, a fifth, is for clocks of different rates.
 */
#ifndef COLO_MIGRATION_HEARTBEAT_STATE_H
#define COLO_MIGRATION_HEARTBEAT_STATE_H

#include "migration/heartbeat-codec.h"

#define HEART_LINKS_MAX 8
#define HEART_GONE_MAX 16

typedef struct HeartLink {
    uint64_t next; /* sequence of the next beat sent */
    uint64_t top, seen; /* highest sequence received; bit i: top - i was */
    int64_t heard_us;   /* when the last beat was accepted */
    bool up;
    uint32_t rtt_us;
    uint64_t sent, received, greetings, refused[BEAT_REFUSAL_MAX];
    uint64_t greeted; /* instance that is to be answered at once, or 0 */
} HeartLink;

typedef struct Heart {
    uint64_t self, peer, pinned; /* instances; 0: none */
    int64_t interval_us, timeout_us;
    unsigned n_links;
    HeartLink links[HEART_LINKS_MAX];
    uint64_t gone[HEART_GONE_MAX]; /* replaced peers */
    unsigned n_gone;

    bool up;
    bool frozen;        /* nothing new is echoed any more */
    int64_t proven_us;  /* newest time of ours that the peer echoed; 0: none */
    int64_t heard_us;   /* our clock, when the newest time that we echo was heard */
    int64_t peer_us;    /* that time, the peer's clock */
    int64_t latest_us;  /* the peer's clock in the newest beat of all */
    int64_t due_us;     /* of the next beats */
    BeatWord word;      /* the peer's last */
    uint8_t peer_role;
    uint32_t peer_flags;
    uint64_t peer_epoch;
} Heart;

/* What came of a call. Bits of links, and words about the peer. */
typedef struct HeartNews {
    uint32_t links_up, links_lost;
    bool up, lost;
    bool changed;     /* what the peer says of itself: flags, word */
    const char *why;  /* of @lost; static */
} HeartNews;

void heart_init(Heart *h, uint64_t self, unsigned n_links, int64_t interval_us,
                int64_t timeout_us, int64_t now);

/** From here on @peer alone counts (0: anybody, as before). */
void heart_pin(Heart *h, uint64_t peer);

/** A decoded beat of @link. Counts it; *@news is added to. */
BeatRefusal heart_receive(Heart *h, unsigned link, const Beat *b, int64_t now,
                          HeartNews *news);

/** Make the next beat of @link: an answer, if a greeting waits for one. Who sends it fills in
 * role, flags, epoch. */
void heart_compose(Heart *h, unsigned link, BeatWord word, int64_t now, Beat *out);

/** What the passing of time brings. True: beats are due now, on every link. */
bool heart_tick(Heart *h, int64_t now, HeartNews *news);

/** Echo nothing new from here on. */
void heart_freeze(Heart *h);

/** How long after @proven_us this side may speak on the strength of it. */
int64_t heart_lease(const Heart *h);

/** The primary may speak until then, by our clock; 0: never heard. */
int64_t heart_own_lease_end(const Heart *h);

/** The peer's lease is over from then on, by our clock: at once if it said that it is silent. */
int64_t heart_peer_lease_end(const Heart *h);

#endif
