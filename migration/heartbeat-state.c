/*
 * The heartbeat's state machine: who is alive, who heard what, and until when.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "migration/heartbeat-state.h"

#include <string.h>

#define WINDOW 64

void heart_init(Heart *h, uint64_t self, unsigned n_links, int64_t interval_us,
                int64_t timeout_us, int64_t now)
{
    g_assert(self && n_links >= 1 && n_links <= HEART_LINKS_MAX);
    memset(h, 0, sizeof(*h));
    h->self = self;
    h->n_links = n_links;
    h->interval_us = interval_us;
    h->timeout_us = timeout_us;
    h->due_us = now;
    h->word = BEAT_ALIVE;
    for (unsigned i = 0; i < n_links; i++) {
        h->links[i].next = 1;
    }
}

static bool is_gone(const Heart *h, uint64_t instance)
{
    for (unsigned i = 0; i < MIN(h->n_gone, HEART_GONE_MAX); i++) {
        if (h->gone[i] == instance) {
            return true;
        }
    }
    return false;
}

static void lose(Heart *h, const char *why, HeartNews *news)
{
    if (h->up) {
        h->up = false;
        news->lost = true;
        news->why = why;
    }
}

/* Another process than before, or the first. */
static void new_peer(Heart *h, uint64_t instance, HeartNews *news)
{
    if (h->peer) {
        h->gone[h->n_gone++ % HEART_GONE_MAX] = h->peer;
        lose(h, "another process took its place", news);
    }
    h->peer = instance;
    h->proven_us = h->heard_us = h->peer_us = h->latest_us = 0;
    h->word = BEAT_ALIVE;
    h->peer_flags = 0;
    for (unsigned i = 0; i < h->n_links; i++) {
        h->links[i].top = h->links[i].seen = 0;
    }
}

void heart_pin(Heart *h, uint64_t peer)
{
    HeartNews unused = {0};

    h->pinned = peer;
    h->frozen = false;
    if (peer && h->peer != peer) {
        new_peer(h, peer, &unused);
    }
}

/* Sequence numbers may come out of order, once each, within a window. */
static bool first_time(HeartLink *l, uint64_t sequence)
{
    if (sequence > l->top) {
        uint64_t step = sequence - l->top;
        l->seen = step < WINDOW ? l->seen << step : 0;
        l->seen |= 1;
        l->top = sequence;
        return true;
    }
    uint64_t back = l->top - sequence;
    if (back >= WINDOW || (l->seen >> back & 1)) {
        return false;
    }
    l->seen |= 1ull << back;
    return true;
}

static BeatRefusal check(Heart *h, unsigned link, const Beat *b, int64_t now,
                         HeartNews *news)
{
    if (b->from == h->self) {
        return BEAT_REFLECTED;
    }
    if (b->link != link || (b->to != 0 && b->to != h->self)) {
        return BEAT_MISDIRECTED;
    }
    if (h->pinned && b->from != h->pinned) {
        return BEAT_STRANGER;
    }
    if (is_gone(h, b->from)) {
        return BEAT_REPLAYED;
    }
    if (b->to == 0) {
        return BEAT_OK;
    }
    if (b->echo_us > now) {
        return BEAT_MALFORMED; /* we have not sent that yet */
    }
    if (b->from != h->peer) {
        new_peer(h, b->from, news);
    }
    return first_time(&h->links[link], b->sequence) ? BEAT_OK : BEAT_REPLAYED;
}

static const char *word_text(BeatWord w)
{
    return w == BEAT_DEATH       ? "its emulator died"
           : w == BEAT_GUEST_OFF ? "it ended, as the guest has shut down"
                                 : "it ended";
}

static void accept(Heart *h, HeartLink *l, unsigned link, const Beat *b, int64_t now,
                   HeartNews *news)
{
    l->received++;
    l->heard_us = now;
    if (!l->up) {
        l->up = true;
        news->links_up |= 1u << link;
    }
    bool latest = b->sent_us >= h->latest_us;
    h->latest_us = MAX(h->latest_us, b->sent_us);
    if (!h->frozen && b->sent_us > h->peer_us) {
        h->peer_us = b->sent_us;
        h->heard_us = now;
    }
    if (b->word != BEAT_ALIVE) {
        if (h->word == BEAT_ALIVE) {
            h->word = b->word;
            news->changed = true;
            lose(h, word_text(b->word), news);
        }
    } else if (latest && h->word == BEAT_ALIVE) {
        news->changed |= b->flags != h->peer_flags;
        h->peer_flags = b->flags;
        h->peer_role = b->role;
        h->peer_epoch = b->epoch;
    }
    if (b->echo_us > h->proven_us) {
        h->proven_us = b->echo_us;
        int64_t rtt = now - b->echo_us - b->echo_age_us;
        l->rtt_us = CLAMP(rtt, 0, UINT32_MAX);
    }
    if (!h->up && h->word == BEAT_ALIVE && h->proven_us &&
        now - h->proven_us <= h->timeout_us) {
        h->up = news->up = true;
    }
}

BeatRefusal heart_receive(Heart *h, unsigned link, const Beat *b, int64_t now,
                          HeartNews *news)
{
    HeartLink *l = &h->links[link];
    BeatRefusal r = check(h, link, b, now, news);

    if (r != BEAT_OK) {
        l->refused[r]++;
    } else if (b->to == 0) {
        l->greetings++;
        /* Answered, so that it learns of us. It is no proof of life. */
        l->greeted = b->word == BEAT_ALIVE ? b->from : 0;
    } else {
        accept(h, l, link, b, now, news);
    }
    return r;
}

void heart_compose(Heart *h, unsigned link, BeatWord word, int64_t now, Beat *out)
{
    HeartLink *l = &h->links[link];
    uint64_t answer = l->greeted;
    bool to_peer = h->peer && (!answer || answer == h->peer);

    l->greeted = 0;
    *out = (Beat){
        .word = word,
        .link = link,
        .from = h->self,
        .to = to_peer ? h->peer : answer,
        .sequence = l->next++,
        .sent_us = now,
    };
    if (to_peer && h->peer_us) {
        int64_t age = now - h->heard_us;
        out->echo_us = h->peer_us;
        out->echo_age_us = CLAMP(age, 0, UINT32_MAX);
    }
    l->sent++;
}

bool heart_tick(Heart *h, int64_t now, HeartNews *news)
{
    for (unsigned i = 0; i < h->n_links; i++) {
        HeartLink *l = &h->links[i];
        if (l->up && now - l->heard_us > h->timeout_us) {
            l->up = false;
            news->links_lost |= 1u << i;
        }
    }
    if (h->up && now - h->proven_us > h->timeout_us) {
        bool heard = now - h->heard_us <= h->timeout_us;
        lose(h, heard ? "it is heard, but does not hear this side" : "nothing is heard of it",
             news);
    }
    if (now < h->due_us) {
        return false;
    }
    /* No catching up: what was missed while this side slept is of no use to anybody. */
    h->due_us = now + h->interval_us;
    return true;
}

void heart_freeze(Heart *h)
{
    h->frozen = true;
}

int64_t heart_lease(const Heart *h)
{
    return h->timeout_us * 4 / 5;
}

int64_t heart_own_lease_end(const Heart *h)
{
    return h->proven_us ? h->proven_us + heart_lease(h) : 0;
}

int64_t heart_peer_lease_end(const Heart *h)
{
    if (h->word != BEAT_ALIVE || (h->peer_flags & BEAT_SILENT)) {
        return 0;
    }
    return h->heard_us ? h->heard_us + h->timeout_us : 0;
}
