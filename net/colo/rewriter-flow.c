/*
 * The rewriter engine's flows, and their form on the wire.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Own offsets, big endian: "RWT1", u32 flows; a flow is its key (44 bytes as in the
 * comparison's table), u32 offset, u32 timestamp offset, u8 client window scale.
 */
#include "rewriter-int.h"
#include "util/error.h"

#define SAVE_MAGIC 0x52575431u
#define SAVE_HEAD 8
#define SAVE_FLOW (FLOW_KEY_WIRE + 9)

#define VICTIM_LOOK 64 /* flows looked at to find one without a log */
#define MINOR_LIFE (120 * G_USEC_PER_SEC)
#define MAJOR_LIFE ((int64_t)2 * 3600 * G_USEC_PER_SEC)

static RwFlow **slot_of(RewriterEngine *r, const FlowKey *key)
{
    RwFlow **s = &r->table[flow_key_hash(key, r->seed) & (REWRITER_TABLE - 1)];

    while (*s && !flow_key_equal(&(*s)->key, key)) {
        s = &(*s)->hnext;
    }
    return s;
}

RwFlow *rw_flow_find(RewriterEngine *r, const FlowKey *key)
{
    return *slot_of(r, key);
}

static void age_unlink(RewriterEngine *r, RwFlow *fl)
{
    if (fl->prev) {
        fl->prev->next = fl->next;
    } else {
        r->age[fl->minor].head = fl->next;
    }
    if (fl->next) {
        fl->next->prev = fl->prev;
    } else {
        r->age[fl->minor].tail = fl->prev;
    }
}

static void age_push(RewriterEngine *r, RwFlow *fl)
{
    fl->prev = NULL;
    fl->next = r->age[fl->minor].head;
    if (fl->next) {
        fl->next->prev = fl;
    } else {
        r->age[fl->minor].tail = fl;
    }
    r->age[fl->minor].head = fl;
}

void rw_flow_use(RewriterEngine *r, RwFlow *fl, bool minor, int64_t now)
{
    fl->used = now;
    if (fl->minor == minor && r->age[minor].head == fl) {
        return;
    }
    age_unlink(r, fl);
    fl->minor = minor;
    age_push(r, fl);
}

void rw_flow_remove(RewriterEngine *r, RwFlow *fl)
{
    rw_kept_clear_flow(r, fl);
    rw_log_clear_flow(r, fl);
    *slot_of(r, &fl->key) = fl->hnext;
    age_unlink(r, fl);
    r->stats.flows--;
    g_free(fl);
}

/* The oldest, those in their beginning or over first. What is logged of the client has been
 * vouched for: such a flow leaves only if all of the oldest are of that kind. */
static RwFlow *victim(RewriterEngine *r)
{
    RwFlow *fl = r->age[1].tail ? r->age[1].tail : r->age[0].tail;
    RwFlow *o = fl;

    for (int i = 0; o && i < VICTIM_LOOK; i++, o = o->prev) {
        if (!o->log_first) {
            return o;
        }
    }
    return fl;
}

RwFlow *rw_flow_add(RewriterEngine *r, const FlowKey *key, int64_t now)
{
    RwFlow *fl, **s;

    if (r->stats.flows >= REWRITER_TABLE) {
        rw_flow_remove(r, victim(r));
        r->stats.flows_evicted++;
    }
    fl = g_new0(RwFlow, 1);
    fl->key = *key;
    fl->used = now;
    fl->minor = true;
    fl->wscale = fl->cl_wscale = 255;
    s = slot_of(r, key);
    fl->hnext = *s;
    *s = fl;
    age_push(r, fl);
    r->stats.flows++;
    return fl;
}

void rw_flows_clear(RewriterEngine *r)
{
    for (int i = 0; i < 2; i++) {
        while (r->age[i].head) {
            rw_flow_remove(r, r->age[i].head);
        }
    }
}

int64_t rewriter_engine_tick(RewriterEngine *r, int64_t now)
{
    static const int64_t life[2] = {MAJOR_LIFE, MINOR_LIFE};
    int64_t next = INT64_MAX;

    rw_dgrams_expire(r, now);
    next = rw_log_tick(r, now);
    for (int i = 0; i < 2; i++) {
        RwFlow *fl;

        while ((fl = r->age[i].tail) && now - fl->used >= life[i]) {
            rw_flow_remove(r, fl);
        }
        if (fl) {
            next = MIN(next, fl->used + life[i]);
        }
    }
    return next;
}

/* --- Save and load --- */

void rewriter_engine_save(RewriterEngine *r, GByteArray *out)
{
    guint start = out->len;
    uint8_t b[SAVE_FLOW] = {0};
    uint32_t n = 0;

    g_byte_array_append(out, b, SAVE_HEAD);
    for (int i = 0; i < 2; i++) {
        for (RwFlow *fl = r->age[i].tail; fl; fl = fl->prev) {
            if (!fl->off && !fl->ts_off) {
                continue;
            }
            flow_key_put(b, &fl->key);
            put_be32(b + 44, fl->off);
            put_be32(b + 48, fl->ts_off);
            b[52] = fl->cl_wscale;
            g_byte_array_append(out, b, sizeof(b));
            n++;
        }
    }
    put_be32(out->data + start, SAVE_MAGIC);
    put_be32(out->data + start + 4, n);
}

static bool check_saved(const uint8_t *rw, size_t len, GError **errp)
{
    if (!rw) {
        return true;
    }
    if (len < SAVE_HEAD || get_be32(rw) != SAVE_MAGIC ||
        (len - SAVE_HEAD) % SAVE_FLOW != 0 ||
        (len - SAVE_HEAD) / SAVE_FLOW != get_be32(rw + 4) ||
        get_be32(rw + 4) > REWRITER_TABLE) {
        colo_error_set(errp,
                       "the checkpoint's table of sequence offsets is damaged or of "
                       "an unknown version (%zu bytes)",
                       len);
        return false;
    }
    for (const uint8_t *i = rw + SAVE_HEAD; i < rw + len; i += SAVE_FLOW) {
        if (i[43] != PACKET_TCP || (i[52] > 14 && i[52] != 255)) {
            colo_error_set(errp, "the checkpoint's table of sequence offsets has a flow "
                                 "that is not TCP or has an impossible window scale");
            return false;
        }
    }
    return true;
}

/* What is known of the client does not roll back. */
static void keep_client(RwFlow *fl, const RwFlow *old)
{
    if (!old || !old->cl_known) {
        return;
    }
    if (fl->snd_known && (int32_t)(fl->snd_max - old->cl_ack) < 0) {
        return; /* the ACK of another connection on these ports */
    }
    fl->cl_known = true;
    fl->cl_wscale = old->cl_wscale;
    fl->cl_ack = old->cl_ack;
    fl->cl_edge = old->cl_edge;
    fl->cl_fin = old->cl_fin;
    fl->cl_fin_end = old->cl_fin_end;
    fl->cl_ack_at = old->cl_ack_at;
    fl->cl_win = old->cl_win;
    fl->cl_snd_known = old->cl_snd_known;
    fl->cl_snd = old->cl_snd;
    fl->cl_l2_len = old->cl_l2_len;
    memcpy(fl->cl_l2, old->cl_l2, sizeof(fl->cl_l2));
    if (fl->has_ts && old->has_ts) {
        fl->ts_floor = seq_max(fl->ts_floor, old->ts_floor);
        fl->tsecr = old->tsecr;
    }
}

static void load_flow(RwFlow *fl, const CompareTableFlow *t)
{
    fl->off_known = fl->snd_known = fl->ack_known = true;
    fl->snd_max = t->snd_max;
    fl->g_ack = t->ack;
    fl->g_edge = t->edge;
    fl->wscale = t->wscale;
    fl->g_win = MIN((t->edge - t->ack) >> (t->wscale == 255 ? 0 : t->wscale), 65535u);
    fl->has_ts = fl->ts_known = t->has_ts;
    fl->talked = true;
    fl->ts_floor = fl->tsval_last = t->tsval;
    fl->tsecr = t->tsecr;
    fl->g_fin = t->closed == 1;
    fl->g_fin_end = t->snd_max;
    fl->l2_len = t->l2_len;
    memcpy(fl->l2, t->l2, sizeof(fl->l2));
}

bool rewriter_engine_load(RewriterEngine *r, CompareTable *cmp, const uint8_t *rw,
                          size_t rw_len, int64_t now, GError **errp)
{
    RewriterEngine old;
    RwFlow *fl;

    if (!check_saved(rw, rw_len, errp)) {
        return false;
    }
    rw_kept_clear(r);
    rw_log_clear(r); /* what the client was told is in the checkpoint */
    old = *r;
    r->table = g_new0(RwFlow *, REWRITER_TABLE);
    memset(r->age, 0, sizeof(r->age));
    r->stats.flows = 0;
    r->live = false;
    for (uint32_t i = 0; cmp && i < cmp->n_flows; i++) {
        const CompareTableFlow *t = &cmp->flows[i];

        fl = rw_flow_find(r, &t->key);
        if (!fl) {
            fl = rw_flow_add(r, &t->key, now);
        }
        load_flow(fl, t);
        keep_client(fl, rw_flow_find(&old, &t->key));
        rw_flow_use(r, fl, false, now);
    }
    for (size_t at = SAVE_HEAD; rw && at < rw_len; at += SAVE_FLOW) {
        FlowKey key;

        flow_key_get(rw + at, &key);
        fl = rw_flow_find(r, &key);
        if (!fl) {
            fl = rw_flow_add(r, &key, now);
            keep_client(fl, rw_flow_find(&old, &key));
            rw_flow_use(r, fl, false, now);
        }
        fl->off_known = true;
        fl->off = get_be32(rw + at + 44);
        fl->ts_off = get_be32(rw + at + 48);
        fl->tsval_last -= fl->ts_off;
        if (fl->cl_wscale == 255) {
            fl->cl_wscale = rw[at + 52];
        }
    }
    if (cmp) {
        rw_keep_held(r, &cmp->held);
    }
    rw_flows_clear(&old); /* nothing is kept any more: only the flows' memory goes */
    g_free(old.table);
    return true;
}
