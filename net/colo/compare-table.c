/*
 * The comparison engine: the flow table that travels with a checkpoint.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Big endian: "CFT1", u64 epoch, u32 flows, u32 frames; a flow is TABLE_FLOW bytes in the
 * order of CompareTableFlow; a frame is u32 length, u16 vnet length, both parts' bytes.
 */
#include "compare-int.h"
#include "util/error.h"

#define TABLE_MAGIC 0x43465431u /* "CFT1" */
#define TABLE_HEAD 20
#define TABLE_FLOW (FLOW_KEY_WIRE + 5 * 4 + 4 + 22)
#define TABLE_MAX_FLOWS (1u << 20)
#define TABLE_MAX_VNET 64

static void save_flow(GByteArray *out, const CompareFlow *fl)
{
    uint8_t b[TABLE_FLOW] = {0}, *o = flow_key_put(b, &fl->key);

    put_be32(o, fl->p_snd_max);
    put_be32(o + 4, fl->p_ack);
    put_be32(o + 8, fl->p_edge);
    put_be32(o + 12, fl->p_tsval);
    put_be32(o + 16, fl->p_tsecr);
    o[20] = fl->has_ts;
    o[21] = fl->wscale;
    o[22] = fl->closed;
    o[23] = fl->l2_len;
    memcpy(o + 24, fl->l2, sizeof(fl->l2));
    g_byte_array_append(out, b, sizeof(b));
}

static void save_frame(GByteArray *out, const Frame *f)
{
    uint8_t b[6];

    put_be32(b, f->len);
    put_be16(b + 4, f->vnet_len);
    g_byte_array_append(out, b, sizeof(b));
    g_byte_array_append(out, f->data - f->vnet_len, f->vnet_len + f->len);
}

void compare_engine_save(CompareEngine *e, GByteArray *out)
{
    uint32_t flows = 0, frames = 0;
    guint start = out->len;
    uint8_t head[TABLE_HEAD] = {0};

    g_byte_array_append(out, head, sizeof(head));
    for (CompareFlow *fl = e->lru_tail; fl; fl = fl->lru_prev) {
        if (fl->key.kind == PACKET_TCP && fl->p_known && fl->closed != 2) {
            save_flow(out, fl);
            flows++;
        }
    }
    /* After the cut the new epoch's frames are in next_p, or of its number. */
    for (Item *it = e->held.head; it; it = it->next) {
        if (it->f->epoch < e->p_epoch) {
            save_frame(out, it->f);
            frames++;
        }
    }
    put_be32(out->data + start, TABLE_MAGIC);
    put_be32(out->data + start + 4, (uint32_t)(e->p_epoch >> 32));
    put_be32(out->data + start + 8, (uint32_t)e->p_epoch);
    put_be32(out->data + start + 12, flows);
    put_be32(out->data + start + 16, frames);
}

static bool parse_flow(const uint8_t *b, CompareTableFlow *t)
{
    const uint8_t *i = flow_key_get(b, &t->key);

    t->snd_max = get_be32(i);
    t->ack = get_be32(i + 4);
    t->edge = get_be32(i + 8);
    t->tsval = get_be32(i + 12);
    t->tsecr = get_be32(i + 16);
    t->has_ts = i[20];
    t->wscale = i[21];
    t->closed = i[22];
    t->l2_len = i[23];
    memcpy(t->l2, i + 24, sizeof(t->l2));
    return t->key.kind == PACKET_TCP && t->key.proto == 6 &&
           (t->key.ethertype == 0x0800 || t->key.ethertype == 0x86dd) && t->has_ts <= 1 &&
           (t->wscale <= 14 || t->wscale == 255) && t->closed <= 2 &&
           t->l2_len >= FRAME_MIN_ETH && t->l2_len <= sizeof(t->l2);
}

static Frame *parse_frame(const uint8_t **data, const uint8_t *end)
{
    const uint8_t *d = *data;
    uint32_t len, vnet;
    Frame *f;

    if (end - d < 6) {
        return NULL;
    }
    len = get_be32(d);
    vnet = get_be16(d + 4);
    d += 6;
    if (vnet > TABLE_MAX_VNET || len > FRAME_MAX - vnet ||
        (size_t)(end - d) < vnet + len) {
        return NULL;
    }
    f = frame_from(d, vnet + len);
    f->data += vnet;
    f->len = len;
    f->vnet_len = vnet;
    *data = d + vnet + len;
    return f;
}

CompareTable *compare_table_parse(const uint8_t *data, size_t len, GError **errp)
{
    const uint8_t *end = data + len;
    uint32_t frames;
    CompareTable *t;

    if (len < TABLE_HEAD || get_be32(data) != TABLE_MAGIC) {
        colo_error_set(errp, "the checkpoint's flow table is not one of a version that "
                             "this side knows");
        return NULL;
    }
    t = g_new0(CompareTable, 1);
    t->epoch = (uint64_t)get_be32(data + 4) << 32 | get_be32(data + 8);
    t->n_flows = get_be32(data + 12);
    frames = get_be32(data + 16);
    data += TABLE_HEAD;
    if (t->n_flows > TABLE_MAX_FLOWS ||
        (size_t)(end - data) < (size_t)t->n_flows * TABLE_FLOW) {
        t->n_flows = 0;
        goto bad;
    }
    t->flows = g_new0(CompareTableFlow, t->n_flows);
    for (uint32_t i = 0; i < t->n_flows; i++, data += TABLE_FLOW) {
        if (!parse_flow(data, &t->flows[i])) {
            goto bad;
        }
    }
    for (uint32_t i = 0; i < frames; i++) {
        Frame *f = parse_frame(&data, end);
        if (!f) {
            goto bad;
        }
        frame_queue_push(&t->held, f);
    }
    if (data == end) {
        return t;
    }
bad:
    colo_error_set(errp,
                   "the checkpoint's flow table is damaged (%zu bytes, %u flows, %u "
                   "frames)",
                   len, t->n_flows, frames);
    compare_table_free(t);
    return NULL;
}

void compare_table_free(CompareTable *t)
{
    if (t) {
        frame_queue_clear(&t->held);
        g_free(t->flows);
        g_free(t);
    }
}
