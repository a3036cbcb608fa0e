/*
 * Fuzz: packets, the comparison engine, its table, and the rewriter.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Two guests and a peer that send anything: well-formed frames, frames with a few bytes
 * changed, cut, or made of noise. Beside not crashing: offsets stay inside the frame, all
 * that went in comes out by the end of protection, statistics add up, and a table that
 * was changed on its way is read or refused, never believed beyond its end.
 */
#include "fuzz.h"
#include "../unit/net-frames.h"
#include "net/compare-engine.h"
#include "net/rewriter-engine.h"

static const char *const texts[] = {"", "a", "hello", "GET / HTTP/1.1\r\n", "0123456789abcdef"};

static Frame *noise(void)
{
    uint32_t len = fuzz_one_in(20) ? fuzz_below(FRAME_MAX) : fuzz_below(200);
    Frame *f = frame_new(len);

    fuzz_bytes(f->data, MIN(len, 400));
    if (len > 400) {
        memset(f->data + 400, fuzz_next(), len - 400);
    }
    if (len > 14 && fuzz_one_in(2)) {
        static const uint16_t types[] = {0x0800, 0x86dd, 0x8100, 0x88a8, 0x0806};
        put_be16(f->data + 12, types[fuzz_below(5)]);
        f->data[14] = fuzz_one_in(2) ? 0x45 : 0x60;
    }
    return f;
}

static Frame *tcp(bool to_guest)
{
    static const uint8_t flags[] = {TCP_ACK, TCP_SYN, TCP_SYN | TCP_ACK, TCP_FIN | TCP_ACK,
                                    TCP_RST, TCP_PSH | TCP_ACK, TCP_ACK | TCP_URG};
    const char *text = texts[fuzz_below(G_N_ELEMENTS(texts))];
    TestTcp t = {
        .to_guest = to_guest,
        .v6 = fuzz_one_in(4),
        .n_vlans = fuzz_one_in(8) ? fuzz_below(3) : 0,
        .client_port = 40000 + fuzz_below(4),
        .seq = fuzz_one_in(10) ? fuzz_next() : 1000 + fuzz_below(40),
        .ack = fuzz_one_in(10) ? fuzz_next() : 5000 + fuzz_below(40),
        .flags = flags[fuzz_below(G_N_ELEMENTS(flags))],
        .win = fuzz_below(1000),
        .zero_win = fuzz_one_in(20),
        .mss = fuzz_one_in(3) ? 1460 : 0,
        .wscale = fuzz_one_in(3) ? 7 : 0,
        .sack_ok = fuzz_one_in(3),
        .ts = fuzz_one_in(2),
        .tsval = fuzz_next(),
        .tsecr = fuzz_next(),
        .data = text,
        .len = strlen(text),
    };
    if (!t.ts && fuzz_one_in(4)) {
        t.n_sack = 1 + fuzz_below(4);
        for (unsigned i = 0; i < 8; i++) {
            t.sack[i] = 5000 + fuzz_below(60);
        }
        t.mss = t.wscale = 0;
        t.sack_ok = false;
    }
    return test_tcp(t);
}

static Frame *good(bool to_guest)
{
    const char *text = texts[fuzz_below(G_N_ELEMENTS(texts))];

    switch (fuzz_below(to_guest ? 8 : 12)) {
    case 8:
        return test_udp(53, 4000 + fuzz_below(3), fuzz_one_in(2), text);
    case 9:
        return test_icmp(text);
    case 10:
        return test_fragment(8 * fuzz_below(4), fuzz_one_in(2), text);
    case 11:
        return fuzz_one_in(2) ? test_arp(fuzz_one_in(2), 9) : test_raw(0x88cc, text);
    default:
        return tcp(to_guest);
    }
}

/* A frame that a guest, or the network, might send. */
static Frame *any(bool to_guest)
{
    if (fuzz_one_in(6)) {
        return noise();
    }
    Frame *f = good(to_guest);
    if (fuzz_one_in(3)) {
        fuzz_mutate(f->data, f->len);
    }
    if (fuzz_one_in(12)) {
        f->len = fuzz_below(f->len + 1);
    }
    return f;
}

static void check_packet(const Frame *f)
{
    Packet p;
    char name[FLOW_NAME_MAX];

    packet_parse(f, fuzz_one_in(2), &p);
    g_assert_cmpuint(p.l3, <=, f->len);
    g_assert_cmpuint(p.l4, <=, f->len);
    g_assert_cmpuint(p.body, <=, f->len);
    g_assert_cmpuint(p.body_len, <=, f->len - p.body);
    if (p.kind == PACKET_TCP) {
        g_assert_cmpuint(p.l4 + 20, <=, f->len);
        g_assert_true(!p.has_ts || p.ts_at + 8u <= f->len);
        g_assert_true(!p.n_sack || p.sack_at + 8u * p.n_sack <= f->len);
        g_assert_cmpuint(p.n_sack, <=, PACKET_SACK_MAX);
    }
    flow_key_name(&p.key, name, sizeof(name));
}

typedef struct World {
    CompareEngine *e;
    RewriterEngine *r;
    int64_t now;
    uint64_t fed, released, epoch;
    uint8_t *saved;
    uint32_t saved_len;
} World;

static void on_release(Frame *f, void *opaque)
{
    World *w = opaque;

    w->released++;
    check_packet(f);
    frame_unref(f);
}

static void on_trigger(ProxyTrigger t, const char *detail, void *opaque)
{
    g_assert_nonnull(detail);
}

static void on_isn(const FlowKey *k, uint32_t pvm, uint32_t svm, void *opaque)
{
    World *w = opaque;

    rewriter_engine_isn(w->r, k, pvm, svm, w->now);
}

static void load_table(World *w, const uint8_t *data, uint32_t len)
{
    g_autoptr(GError) err = NULL;
    g_autoptr(GByteArray) rw = g_byte_array_new();
    CompareTable *t = compare_table_parse(data, len, &err);

    g_assert_true(t ? !err : err != NULL);
    rewriter_engine_save(w->r, rw);
    if (fuzz_one_in(2)) {
        fuzz_mutate(rw->data, rw->len);
    }
    if (fuzz_one_in(8)) {
        g_byte_array_set_size(rw, fuzz_below(rw->len + 1));
    }
    g_clear_error(&err);
    bool ok = rewriter_engine_load(w->r, t, rw->data, rw->len, w->now, &err);
    g_assert_true(ok ? !err : err != NULL);
    if (t) {
        compare_table_free(t);
    }
}

static void save_and_load(World *w)
{
    g_autoptr(GByteArray) out = g_byte_array_new();

    compare_engine_save(w->e, out);
    g_autoptr(GError) err = NULL;
    CompareTable *t = compare_table_parse(out->data, out->len, &err);
    if (!t) {
        g_error("own table refused: %s", err->message);
    }
    compare_table_free(t);
    for (unsigned n = fuzz_below(3); n; n--) {
        fuzz_mutate(out->data, out->len);
    }
    if (fuzz_one_in(6)) {
        g_byte_array_set_size(out, fuzz_below(out->len + 1));
    }
    load_table(w, out->data, out->len);
}

static void on_emit(Frame *f, void *opaque)
{
    check_packet(f);
    frame_unref(f);
}

static void step(World *w)
{
    w->now += fuzz_below(5000);
    switch (fuzz_below(40)) {
    case 0:
        compare_engine_tick(w->e, w->now += 1000000);
        rewriter_engine_tick(w->r, w->now);
        break;
    case 1:
        compare_engine_cut(w->e, ++w->epoch);
        if (fuzz_one_in(2)) {
            save_and_load(w);
        }
        compare_engine_commit(w->e, w->epoch, w->now);
        compare_engine_secondary_marker(w->e, w->epoch);
        compare_engine_loaded(w->e, w->epoch, w->now);
        break;
    case 2:
        compare_engine_secondary_marker(w->e, fuzz_one_in(4) ? fuzz_next() : w->epoch);
        break;
    case 3:
        rewriter_engine_tick(w->r, w->now);
        break;
    default: {
        bool to_guest = fuzz_one_in(3);
        Frame *f = any(to_guest);
        check_packet(f);
        if (to_guest) {
            f = rewriter_engine_to_guest(w->r, f, w->now);
            check_packet(f);
            frame_unref(f);
            break;
        }
        /* The two guests often say the same. */
        Frame *twin = frame_from(f->data, f->len);
        if (fuzz_one_in(4)) {
            fuzz_mutate(twin->data, twin->len);
        }
        w->fed++;
        compare_engine_primary(w->e, f, w->now);
        twin = rewriter_engine_from_guest(w->r, twin, w->now);
        compare_engine_secondary(w->e, twin, w->now);
    }
    }
}

static void one(void)
{
    CompareOps ops = {on_release, on_trigger, on_isn};
    CompareConfig cfg = {
        .max_queue_size = fuzz_one_in(2) ? 1 + fuzz_below(8) : 0,
        .max_bytes = fuzz_one_in(4) ? 2000 : 0,
        .max_flows = fuzz_one_in(4) ? 2 : 0,
    };
    World w = {.now = G_USEC_PER_SEC, .r = rewriter_engine_new(fuzz_one_in(4) ? 3000 : 0)};
    CompareStats cs;
    RewriterStats rs;

    w.e = compare_engine_new(&cfg, &ops, &w);
    compare_engine_set_mode(w.e, COMPARE_MODE_COMPARE, w.now);
    for (unsigned n = fuzz_below(400); n; n--) {
        step(&w);
    }
    compare_engine_stats(w.e, &cs);
    rewriter_engine_stats(w.r, &rs);
    g_assert_cmpuint(cs.primary_frames, ==, w.fed);
    if (fuzz_one_in(2)) {
        compare_engine_set_mode(w.e, COMPARE_MODE_PASS, w.now);
        uint64_t frames, bytes;
        compare_engine_held(w.e, &frames, &bytes);
        g_assert_cmpuint(frames, ==, 0);
        rewriter_engine_takeover(w.r, w.now, on_emit, NULL);
    }
    compare_engine_free(w.e);
    rewriter_engine_free(w.r);
}

int main(int argc, char **argv)
{
    return fuzz_main(argc, argv, "net", one);
}
