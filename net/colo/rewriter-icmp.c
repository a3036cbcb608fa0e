/*
 * The rewriter engine: TCP headers that are quoted inside ICMP errors.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An error towards the guest quotes what the guest sent, as the outside saw it: the quoted
 * SEQ (and time stamp) is brought to the guest's space, or the guest takes the error for a
 * forgery, and path MTU discovery stands still. An error from the guest quotes what the
 * client sent, as this rewriter delivered it: the quoted ACK (and its SACK blocks and time
 * stamp echo) is brought back, so that it is what the client has sent, and what the twin
 * quotes. RULES 28.
 *
 * A quote may end anywhere behind the first 8 bytes of the TCP header; what is not there is
 * not changed. Where the quoted checksum is there, it is kept right, so that the sum of the
 * whole message stays what it was; else the change goes into the message's own checksum.
 * All updates are incremental (RFC 1624).
 */
#include <netinet/in.h>

#include "rewriter-int.h"

typedef struct Quote {
    Frame *f;
    uint32_t icmp, tcp; /* offsets of the message and of the quoted TCP header */
    uint32_t end;       /* of what is quoted */
    FlowKey key;
} Quote;

static bool is_error(const uint8_t *icmp, bool v6)
{
    return v6 ? icmp[0] >= 1 && icmp[0] <= 4
              : icmp[0] == 3 || icmp[0] == 4 || icmp[0] == 5 || icmp[0] == 11 ||
                    icmp[0] == 12;
}

/* @own: the guest's own packet is quoted. */
static void set_key(Quote *q, const uint8_t *src, const uint8_t *dst, uint32_t len, bool own)
{
    memcpy(q->key.guest, own ? src : dst, len);
    memcpy(q->key.client, own ? dst : src, len);
}

/* The quoted IP header at @at is of a TCP segment whose first 8 bytes are there. */
static bool find_tcp4(Quote *q, uint32_t at, bool own)
{
    const uint8_t *ip = q->f->data + at;

    if (q->end - at < 20 || ip[0] >> 4 != 4 || (ip[0] & 15) < 5 || ip[9] != IPPROTO_TCP ||
        (get_be16(ip + 6) & 0x1fff)) {
        return false;
    }
    q->tcp = at + (ip[0] & 15u) * 4;
    set_key(q, ip + 12, ip + 16, 4, own);
    return true;
}

static bool find_tcp6(Quote *q, uint32_t at, bool own)
{
    const uint8_t *ip = q->f->data + at;

    if (q->end - at < 40 || ip[0] >> 4 != 6) {
        return false;
    }
    uint8_t next = ip[6];
    set_key(q, ip + 8, ip + 24, 16, own);
    for (at += 40; next != IPPROTO_TCP; ) {
        const uint8_t *x = q->f->data + at;
        if (at + 8 > q->end || (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING &&
                                next != IPPROTO_DSTOPTS)) {
            return false;
        }
        next = x[0];
        at += (x[1] + 1u) * 8;
    }
    q->tcp = at;
    return true;
}

static bool parse_quote(Quote *q, const Packet *p, bool own)
{
    bool v6 = p->key.ethertype == 0x86dd;
    uint32_t at = p->l4 + 8;

    q->icmp = p->l4;
    q->end = p->body + p->body_len;
    if (at > q->end || !is_error(q->f->data + p->l4, v6) ||
        !(v6 ? find_tcp6(q, at, own) : find_tcp4(q, at, own)) || q->tcp + 8 > q->end) {
        return false;
    }
    const uint8_t *t = q->f->data + q->tcp;
    q->key.guest_port = get_be16(own ? t : t + 2);
    q->key.client_port = get_be16(own ? t + 2 : t);
    q->key.vlan = p->key.vlan;
    q->key.ethertype = p->key.ethertype;
    q->key.proto = IPPROTO_TCP;
    q->key.kind = PACKET_TCP;
    return true;
}

/* --- Edits --- */

static uint32_t fold32(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return (sum & 0xffff) + (sum >> 16);
}

static uint32_t sum_of(uint32_t v, bool odd)
{
    uint32_t sum = fold32((v >> 16) + (v & 0xffff));
    return odd ? (sum >> 8 | sum << 8) & 0xffff : sum;
}

/* A checksum at @csum after a word of sum @old became one of sum @new. */
static void adjust(uint8_t *csum, uint32_t old, uint32_t new)
{
    put_be16(csum, (uint16_t)~fold32((uint16_t)~get_be16(csum) + (uint16_t)~old + new));
}

/* The 4 bytes at @at of the quoted header become @v. */
static void put(Quote *q, uint32_t at, uint32_t v)
{
    uint8_t *field = q->f->data + at, *inner = q->f->data + q->tcp + 16;
    bool odd = (at - q->tcp) & 1;
    uint32_t old = sum_of(get_be32(field), odd), new = sum_of(v, odd);

    put_be32(field, v);
    if (q->tcp + 18 <= q->end) {
        adjust(inner, old, new); /* the two changes cancel out in the message's sum */
    } else {
        adjust(q->f->data + q->icmp + 2, old, new);
    }
}

static bool has(const Quote *q, uint32_t at, uint32_t len)
{
    return at + len <= q->end;
}

/* Options, as far as they are quoted: @sack is added to SACK blocks, @ts to the time stamp
 * value (@own) or echo. */
static void translate_options(Quote *q, bool own, uint32_t sack, uint32_t ts)
{
    if (!has(q, q->tcp, 20)) {
        return;
    }
    uint32_t end = MIN(q->tcp + (q->f->data[q->tcp + 12] >> 4) * 4u, q->end);

    for (uint32_t at = q->tcp + 20; at < end;) {
        uint8_t kind = q->f->data[at], len = at + 1 < end ? q->f->data[at + 1] : 0;
        if (kind == 1) {
            at++;
            continue;
        }
        if (kind == 0 || len < 2 || at + len > end) {
            return;
        }
        if (kind == 8 && len == 10 && ts) {
            uint32_t field = at + (own ? 2 : 6);
            put(q, field, get_be32(q->f->data + field) + ts);
        }
        for (uint32_t b = at + 2; kind == 5 && sack && b + 4 <= at + len; b += 4) {
            put(q, b, get_be32(q->f->data + b) + sack);
        }
        at += len;
    }
}

Frame *rw_icmp(RewriterEngine *r, Frame *f, const Packet *p, bool to_guest)
{
    Quote q = {.f = f};

    if (!parse_quote(&q, p, to_guest)) {
        return f;
    }
    RwFlow *fl = rw_flow_find(r, &q.key);
    if (!fl || (!fl->off && !fl->ts_off)) {
        return f;
    }
    q.f = f = frame_writable(f);
    if (to_guest) {
        put(&q, q.tcp + 4, get_be32(f->data + q.tcp + 4) + fl->off);
        translate_options(&q, true, 0, -fl->ts_off);
    } else {
        if (has(&q, q.tcp + 8, 4) && (!has(&q, q.tcp, 14) ||
                                      (f->data[q.tcp + 13] & TCP_ACK))) {
            put(&q, q.tcp + 8, get_be32(f->data + q.tcp + 8) - fl->off);
        }
        translate_options(&q, false, -fl->off, fl->ts_off);
    }
    r->stats.rewritten++;
    r->stats.icmp_rewritten++;
    return f;
}
