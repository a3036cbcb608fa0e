/*
 * The comparison engine's flows, kept frames and lists.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Flows and items come from chunks that live as long as the engine: no allocation per
 * packet in the steady state, and no cost that grows with the number of flows.
 */
#include "compare-int.h"

#define CHUNK 256
#define FLOW_COMMON_LINES (offsetof(CompareFlow, p_known) / 64 + 1)
#define FLOW_HOT_LINES (offsetof(CompareFlow, p_syn) / 64 + 1)
#define DGRAM_BUCKETS 32768 /* as many as max_bytes of small ones */
#define LRU_GRAIN (50 * 1000) /* us */
#define EVICT_LOOK 64 /* flows looked at to find an idle one */

void compare_tables_init(CompareEngine *e)
{
    uint32_t n = 1024;

    while (n < e->cfg.max_flows) {
        n *= 2;
    }
    e->table = g_new0(CompareFlow *, n);
    e->table_mask = n - 1;
    e->dgrams = g_new0(Item *, DGRAM_BUCKETS);
    e->dgram_mask = DGRAM_BUCKETS - 1;
    e->flow_chunks = g_ptr_array_new_with_free_func(g_aligned_free);
    e->item_chunks = g_ptr_array_new_with_free_func(g_free);
}

void compare_tables_free(CompareEngine *e)
{
    g_free(e->table);
    g_free(e->dgrams);
    g_ptr_array_unref(e->flow_chunks);
    g_ptr_array_unref(e->item_chunks);
}

static void lru_unlink(CompareEngine *e, CompareFlow *fl)
{
    if (fl->lru_prev) {
        fl->lru_prev->lru_next = fl->lru_next;
    } else {
        e->lru_head = fl->lru_next;
    }
    if (fl->lru_next) {
        fl->lru_next->lru_prev = fl->lru_prev;
    } else {
        e->lru_tail = fl->lru_prev;
    }
}

static void lru_push(CompareEngine *e, CompareFlow *fl)
{
    fl->lru_at = e->now;
    fl->lru_prev = NULL;
    fl->lru_next = e->lru_head;
    if (e->lru_head) {
        e->lru_head->lru_prev = fl;
    } else {
        e->lru_tail = fl;
    }
    e->lru_head = fl;
}

static void wait_unlink(CompareEngine *e, CompareFlow *fl)
{
    if (fl->wait == WAIT_NONE) {
        return;
    }
    if (fl->wait_prev) {
        fl->wait_prev->wait_next = fl->wait_next;
    } else {
        e->wait[fl->wait].head = fl->wait_next;
    }
    if (fl->wait_next) {
        fl->wait_next->wait_prev = fl->wait_prev;
    } else {
        e->wait[fl->wait].tail = fl->wait_prev;
    }
    fl->wait = WAIT_NONE;
}

static WaitClass wait_class(const CompareFlow *fl)
{
    if (fl->n_forced || (fl->broken && fl->n_held)) {
        return WAIT_FORCED;
    }
    if (fl->key.kind != PACKET_TCP) {
        if (!fl->n_held) {
            return WAIT_NONE;
        }
        return compare_is_query(&fl->key) ? WAIT_QUERY : WAIT_DATA;
    }
    if (fl->fifo.head && fl->fifo.head->kind == ITEM_RST && fl->p_fin) {
        return WAIT_BLOCKED;
    }
    if (fl->fifo.head) {
        return compare_tcp_has_part(fl) ? WAIT_PART : WAIT_DATA;
    }
    if (fl->acks.head || compare_tcp_owes_ack(fl) ||
        (fl->s_rst && fl->p_known && !fl->closed)) {
        return WAIT_ACK;
    }
    if (compare_tcp_owes_window(fl)) {
        return compare_tcp_blocks(fl) ? WAIT_BLOCKED : WAIT_WINDOW;
    }
    return WAIT_NONE;
}

static void wait_link(CompareEngine *e, CompareFlow *fl, WaitClass c, CompareFlow *after)
{
    fl->wait = c;
    fl->wait_prev = after;
    fl->wait_next = after ? after->wait_next : e->wait[c].head;
    if (fl->wait_prev) {
        fl->wait_prev->wait_next = fl;
    } else {
        e->wait[c].head = fl;
    }
    if (fl->wait_next) {
        fl->wait_next->wait_prev = fl;
    } else {
        e->wait[c].tail = fl;
    }
}

void compare_flow_wait(CompareEngine *e, CompareFlow *fl, bool progress)
{
    WaitClass c = e->mode == COMPARE_MODE_COMPARE ? wait_class(fl) : WAIT_NONE;

    if (c == fl->wait && !progress) {
        return;
    }
    wait_unlink(e, fl);
    fl->base = e->now;
    if (c != WAIT_NONE) {
        wait_link(e, fl, c, e->wait[c].tail);
    }
}

void compare_flow_wait_on(CompareEngine *e, CompareFlow *fl)
{
    WaitClass c = e->mode == COMPARE_MODE_COMPARE ? wait_class(fl) : WAIT_NONE;
    CompareFlow *after;

    wait_unlink(e, fl);
    if (c == WAIT_NONE) {
        return;
    }
    /* Not far: the others that came later came within the wait that was. */
    for (after = e->wait[c].tail; after && after->base > fl->base;) {
        after = after->wait_prev;
    }
    wait_link(e, fl, c, after);
}

static CompareFlow **slot_of(CompareEngine *e, const FlowKey *key)
{
    CompareFlow **s = &e->table[flow_key_hash(key, e->seed) & e->table_mask];
    const char *first = (const char *)*s;

    /* With many flows it is not cached: get the lines at once, not one after the other. */
    unsigned lines = key->kind == PACKET_TCP ? FLOW_HOT_LINES : FLOW_COMMON_LINES;
    for (unsigned i = 1; first && i < lines; i++) {
        __builtin_prefetch(first + 64 * i, 1);
    }
    e->stats.steps++;
    while (*s && !flow_key_equal(&(*s)->key, key)) {
        e->stats.steps++;
        s = &(*s)->hnext;
    }
    return s;
}

CompareFlow *compare_flow_find(CompareEngine *e, const FlowKey *key)
{
    return *slot_of(e, key);
}

/* The oldest flow without held frames leaves. */
static bool evict(CompareEngine *e)
{
    CompareFlow *fl = e->lru_tail;

    for (int i = 0; fl && i < EVICT_LOOK; i++, fl = fl->lru_prev) {
        e->stats.steps++;
        if (fl->n_held || fl->n_kept) {
            continue;
        }
        *slot_of(e, &fl->key) = fl->hnext;
        lru_unlink(e, fl);
        wait_unlink(e, fl);
        fl->hnext = e->free_flows;
        e->free_flows = fl;
        e->n_flows--;
        e->stats.flows_evicted++;
        return true;
    }
    return false;
}

static CompareFlow *flow_alloc(CompareEngine *e)
{
    CompareFlow *fl;

    if (!e->free_flows) {
        CompareFlow *chunk = g_aligned_alloc0(CHUNK, sizeof(CompareFlow), 64);
        g_ptr_array_add(e->flow_chunks, chunk);
        for (int i = 0; i < CHUNK; i++) {
            chunk[i].hnext = e->free_flows;
            e->free_flows = &chunk[i];
        }
    }
    fl = e->free_flows;
    e->free_flows = fl->hnext;
    memset(fl, 0, sizeof(*fl));
    return fl;
}

CompareFlow *compare_flow_get(CompareEngine *e, const FlowKey *key)
{
    CompareFlow **s = slot_of(e, key), *fl = *s;

    if (fl) {
        /* By age to within LRU_GRAIN: moving a flow touches others that are not cached. */
        if (e->now - fl->lru_at >= LRU_GRAIN && e->lru_head != fl) {
            lru_unlink(e, fl);
            lru_push(e, fl);
        }
        compare_flow_sync(e, fl);
        return fl;
    }
    if (e->n_flows >= e->cfg.max_flows) {
        /* If all of the oldest hold frames the table grows for a while: the bytes they
         * hold are bounded, and so is their number. */
        evict(e);
        s = slot_of(e, key);
    }
    fl = flow_alloc(e);
    fl->key = *key;
    fl->wait = WAIT_NONE;
    fl->wscale = 255;
    fl->generation = e->generation;
    fl->base = e->now;
    fl->hnext = *s;
    *s = fl;
    lru_push(e, fl);
    e->n_flows++;
    return fl;
}

void compare_flow_sync(CompareEngine *e, CompareFlow *fl)
{
    if (fl->generation == e->generation) {
        return;
    }
    /* RULES 20: the SVM was restored from this PVM, so all that the PVM had sent is
     * vouched for. The SVM's kept frames went at the commit itself. */
    fl->generation = e->generation;
    fl->broken = false;
    fl->s_rst = 0;
    fl->s_log_known = false;
    fl->n_sack = 0;
    fl->s_syn.valid = false;
    if (fl->key.kind != PACKET_TCP || !fl->p_known) {
        fl->s_known = false;
        return;
    }
    fl->v_known = true;
    fl->vouched = fl->p_snd_max;
    fl->epoch_start = fl->vouched;
    fl->s_known = true;
    fl->s_ack = fl->s_own = fl->p_ack;
    fl->s_edge = fl->p_edge;
    fl->s_win = fl->p_win;
    fl->told_isn = fl->synack_out = true;
}

static void list_push(ItemList *l, Item *it)
{
    it->next = NULL;
    it->prev = l->tail;
    if (l->tail) {
        l->tail->next = it;
    } else {
        l->head = it;
    }
    l->tail = it;
    l->count++;
}

static void list_unlink(ItemList *l, Item *it)
{
    if (it->prev) {
        it->prev->next = it->next;
    } else {
        l->head = it->next;
    }
    if (it->next) {
        it->next->prev = it->prev;
    } else {
        l->tail = it->prev;
    }
    l->count--;
}

static ItemList *list_of(CompareEngine *e, const Item *it)
{
    return it->primary                        ? &e->held
           : it->flow->key.kind == PACKET_TCP ? &e->kept_segs
                                              : &e->kept_dgrams;
}

Item *compare_item_new(CompareEngine *e, CompareFlow *fl, Frame *f, bool primary)
{
    Item *it;

    if (!e->free_items) {
        Item *chunk = g_new(Item, CHUNK);
        g_ptr_array_add(e->item_chunks, chunk);
        for (int i = 0; i < CHUNK; i++) {
            chunk[i].fnext = e->free_items;
            e->free_items = &chunk[i];
        }
    }
    it = e->free_items;
    e->free_items = it->fnext;
    memset(it, 0, sizeof(*it));
    it->f = f;
    it->flow = fl;
    it->stamp = e->now;
    it->primary = primary;
    list_push(list_of(e, it), it);
    if (primary) {
        fl->n_held++;
        e->held_bytes += f->len;
        e->stats.held_frames_max = MAX(e->stats.held_frames_max, e->held.count);
        e->stats.held_bytes_max = MAX(e->stats.held_bytes_max, e->held_bytes);
    } else {
        fl->n_kept++;
        e->kept_bytes += f->len;
    }
    return it;
}

void compare_fifo_push(ItemList *l, Item *it)
{
    it->fnext = NULL;
    it->fprev = l->tail;
    if (l->tail) {
        l->tail->fnext = it;
    } else {
        l->head = it;
    }
    l->tail = it;
    l->count++;
}

static void fifo_unlink(ItemList *l, Item *it)
{
    if (it->fprev) {
        it->fprev->fnext = it->fnext;
    } else {
        l->head = it->fnext;
    }
    if (it->fnext) {
        it->fnext->fprev = it->fprev;
    } else {
        l->tail = it->fprev;
    }
    l->count--;
}

Frame *compare_item_take(CompareEngine *e, Item *it)
{
    CompareFlow *fl = it->flow;
    Frame *f = it->f;

    list_unlink(list_of(e, it), it);
    if (it->in_stream) {
        if (it->kind == ITEM_DGRAM) {
            compare_dgram_unlink(e, it);
        } else {
            stream_unlink(it->primary ? &fl->p : &fl->s, it);
        }
    }
    if (it->primary) {
        int64_t age = e->now - it->stamp;

        fl->n_held--;
        e->held_bytes -= f->len;
        e->stats.held_longest_us = MAX(e->stats.held_longest_us, age);
        if (it->kind == ITEM_FORCED) {
            fl->n_forced--;
        } else if (it->kind == ITEM_ACK) {
            fifo_unlink(&fl->acks, it);
        } else if (it->kind != ITEM_DGRAM) {
            fifo_unlink(&fl->fifo, it);
        }
    } else {
        fl->n_kept--;
        e->kept_bytes -= f->len;
    }
    it->fnext = e->free_items;
    e->free_items = it;
    return f;
}

void compare_item_drop(CompareEngine *e, Item *it)
{
    frame_unref(compare_item_take(e, it));
}
