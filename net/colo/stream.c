/*
 * One side of a TCP byte stream: segments sorted by sequence, without overlap.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A FIN is one more place behind the last byte. Places where two segments meet must
 * agree, or the side contradicts itself. The bytes stay in their frames.
 */
#include "compare-int.h"

void stream_unlink(Stream *st, Item *it)
{
    if (it->sprev) {
        it->sprev->snext = it->snext;
    } else {
        st->head = it->snext;
    }
    if (it->snext) {
        it->snext->sprev = it->sprev;
    } else {
        st->tail = it->sprev;
    }
    if (st->hint == it) {
        st->hint = it->sprev;
    }
    it->sprev = it->snext = NULL;
    it->in_stream = false;
}

static void link_after(Stream *st, Item *it, Item *prev)
{
    it->sprev = prev;
    it->snext = prev ? prev->snext : st->head;
    if (it->snext) {
        it->snext->sprev = it;
    } else {
        st->tail = it;
    }
    if (prev) {
        prev->snext = it;
    } else {
        st->head = it;
    }
    it->in_stream = true;
    st->hint = it;
}

void stream_consume(Item *it, uint32_t n)
{
    uint32_t bytes = MIN(n, it->len);

    it->seq += n;
    it->at += bytes;
    it->len -= bytes;
    if (n > bytes) {
        it->fin = false;
    }
}

static void cut_tail(Item *it, uint32_t end)
{
    it->len = end - it->seq;
    it->fin = false;
}

/* Whether two overlapping segments agree where they meet. */
static bool agree(const Item *a, const Item *b)
{
    uint32_t from = seq_max(a->seq, b->seq);
    uint32_t to = seq_min(stream_end(a), stream_end(b));
    uint32_t data_to = seq_min(a->seq + a->len, b->seq + b->len);

    if (seq_lt(from, data_to) &&
        memcmp(a->f->data + a->at + (from - a->seq), b->f->data + b->at + (from - b->seq),
               data_to - from) != 0) {
        return false;
    }
    if (seq_lt(data_to, to)) {
        /* One place is left, and both must have their FIN there. */
        return a->fin && b->fin && a->seq + a->len == b->seq + b->len;
    }
    return true;
}

/* The last item that does not begin behind @it, or NULL. Looked for from the end, the
 * beginning or the last that was linked in, whichever is nearest by sequence: holes are
 * filled from one of their edges, segment by segment. */
static Item *find_place(Stream *st, const Item *it, uint64_t *steps)
{
    Item *o = st->tail;
    uint32_t from_hint;

    if (!o || seq_le(o->seq, it->seq)) { /* nearly always */
        return o;
    }
    if (seq_lt(it->seq, st->head->seq)) {
        return NULL;
    }
    from_hint = st->hint ? seq_max(st->hint->seq, it->seq) - seq_min(st->hint->seq, it->seq)
                         : UINT32_MAX;
    if (it->seq - st->head->seq < MIN(from_hint, o->seq - it->seq)) {
        o = st->head;
    } else if (from_hint < o->seq - it->seq) {
        o = st->hint;
    }
    while (o->snext && seq_le(o->snext->seq, it->seq)) {
        ++*steps;
        o = o->snext;
    }
    while (o && seq_lt(it->seq, o->seq)) {
        ++*steps;
        o = o->sprev;
    }
    return o;
}

StreamResult stream_insert(Stream *st, Item *it, bool have_from, uint32_t from,
                           void (*covered)(Item *old, void *opaque), void *opaque,
                           uint64_t *steps)
{
    Item *prev;

    if (have_from && seq_lt(it->seq, from)) {
        if (seq_le(stream_end(it), from)) {
            return STREAM_KNOWN;
        }
        stream_consume(it, from - it->seq);
    }
    prev = find_place(st, it, steps);
    ++*steps;
    /* First only look, so that a conflict changes nothing. */
    for (Item *o = prev ? prev : st->head; o && seq_lt(o->seq, stream_end(it));
         o = o->snext) {
        ++*steps;
        if (seq_lt(it->seq, stream_end(o)) && !agree(o, it)) {
            return STREAM_CONFLICT;
        }
    }
    if (prev && seq_lt(it->seq, stream_end(prev))) {
        if (seq_le(stream_end(it), stream_end(prev))) {
            return STREAM_KNOWN;
        }
        stream_consume(it, stream_end(prev) - it->seq);
    }
    for (Item *o = prev ? prev->snext : st->head; o && seq_lt(o->seq, stream_end(it));) {
        Item *next = o->snext;

        if (seq_lt(stream_end(it), stream_end(o))) {
            cut_tail(it, o->seq);
            break;
        }
        stream_unlink(st, o);
        covered(o, opaque);
        o = next;
    }
    if (stream_size(it) == 0) {
        return STREAM_KNOWN;
    }
    link_after(st, it, prev);
    return STREAM_NEW;
}

void stream_trim(Stream *st, uint32_t from, void (*covered)(Item *old, void *opaque),
                 void *opaque)
{
    while (st->head && seq_lt(st->head->seq, from)) {
        Item *o = st->head;

        if (seq_lt(from, stream_end(o))) {
            stream_consume(o, from - o->seq);
            return;
        }
        stream_unlink(st, o);
        covered(o, opaque);
    }
}
