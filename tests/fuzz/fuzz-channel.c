/*
 * Fuzz: what a secondary does with the messages of a peer that may be anybody.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The channel, the greeting, the RAM messages and the secondary's message handler are the
 * real ones; emulator, disks and proxy are counters here. Beside not crashing: staged
 * pages reach the cache, and the guest's RAM, only with a whole checkpoint.
 */
#include "fuzz.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <zlib.h>

#include "migration/arbiter.h"
#include "migration/heartbeat.h"
#include "migration/ram-private.h"
#include "migration/secondary.h"
#include "migration/vmstate-image.h"
#include "net/net.h"
#include "net/proxy.h"
#include "util/error.h"
#include "util/options.h"

#define PAGES 64
#define MAGIC 0x51434c4fu

Colo colo;
static unsigned commits;
static RamMap *ram_map;

/* --- What the handler calls beside the code under test --- */

void colo_set_state_locked(ColoState s)
{
    colo.state = s;
}

bool colo_state_file_write(const char *what, GError **errp)
{
    return true;
}

void colo_step(const char *step)
{
}

bool colo_child_command(const char *text, const char *id, GError **errp)
{
    return true;
}

bool child_qmp_send(ChildQmp *q, const char *text, GError **errp)
{
    return true;
}

bool child_qmp_wait(ChildQmp *q, const char *id, int timeout_ms, GError **errp)
{
    return true;
}

bool child_qmp_hold(ChildQmp *q, const char *text, GError **errp)
{
    return true;
}

bool child_qmp_ready(ChildQmp *q, const char *text, const char *id, GError **errp)
{
    return true;
}

bool child_qmp_go(ChildQmp *q, const char *id, GError **errp)
{
    return true;
}

JsonNode *child_qmp_reply(ChildQmp *q, const char *id, GError **errp)
{
    const char *ret = strcmp(id, "jobs") == 0 ? "[]"
                                              : "{\"status\":\"paused\",\"running\":false}";

    return json_from_string(ret, errp);
}

JsonNode *child_qmp_query(ChildQmp *q, const char *text, const char *id, GError **errp)
{
    return child_qmp_reply(q, id, errp);
}

bool child_qmp_wait_event(ChildQmp *q, const char *name, const char *needle, int timeout_ms,
                          GError **errp)
{
    return true;
}

void child_qmp_forget_events(ChildQmp *q)
{
}

bool vmstate_image_write(int fd, const char *machine, unsigned page_bits, const void *data,
                         size_t len, GError **errp)
{
    g_assert_cmpuint(len, <=, VMSTATE_IMAGE_MAX);
    return true;
}

int64_t tracker_scan(Tracker *t, bool stopped, TrackerFunc fn, void *opaque, GError **errp)
{
    return 0;
}

void tracker_set_reference(Tracker *t, const uint8_t *cache)
{
}

const uint8_t *tracker_source(const Tracker *t)
{
    return NULL;
}

uint64_t tracker_overhead(const Tracker *t)
{
    return 0;
}

char *ram_blocks_changed(const RamMap *m, ChildQmp *q, bool adopt)
{
    return NULL;
}

JsonArray *block_primary_disks(void)
{
    return json_array_new();
}

void block_secondary_peer_disks(JsonArray *disks)
{
}

JsonArray *block_secondary_disks(void)
{
    JsonArray *a = json_array_new();
    JsonObject *o = json_object_new();

    json_object_set_string_member(o, "disk", "parent0");
    json_object_set_int_member(o, "size", 1 << 20);
    json_array_add_object_element(a, o);
    return a;
}

uint64_t block_secondary_progress(void)
{
    return 0;
}

bool block_secondary_arrived(const BlockBarrier *barriers, unsigned n, GSourceFunc done,
                             void *opaque)
{
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpuint(strnlen(barriers[i].disk, sizeof(barriers[i].disk)), <,
                         sizeof(barriers[i].disk));
    }
    return true;
}

void block_secondary_applied(const BlockBarrier *barriers, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpuint(strlen(barriers[i].disk), <, sizeof(barriers[i].disk));
    }
}

bool block_secondary_check(const BlockBarrier *barriers, unsigned n, GError **errp)
{
    return true;
}

bool block_secondary_commit(const BlockBarrier *barriers, unsigned n, GError **errp)
{
    commits++;
    return true;
}

const char *arbiter_name(const Arbiter *a)
{
    return "manual";
}

void heartbeat_greet(JsonObject *hello)
{
}

bool heartbeat_meet(JsonObject *hello, GError **errp)
{
    return true;
}

int64_t net_boot_us(void)
{
    return g_get_monotonic_time();
}

void net_lock(void)
{
}

void net_unlock(void)
{
}

void proxy_rollback_begin(uint64_t epoch)
{
}

void proxy_rollback_stopped(void)
{
}

bool proxy_check(GBytes *state, GError **errp)
{
    return true;
}

bool proxy_restore(GBytes *state, GError **errp)
{
    return true;
}

void proxy_rollback_ready(uint64_t epoch)
{
}

void proxy_rollback_stand(uint64_t epoch)
{
}

void proxy_rollback_end(uint64_t epoch)
{
}

/* TLS and data channels: tests/qtest/test_channels.py. */

TlsSession *tls_session_new(TlsCreds *c, int fd, const char *hostname, GError **errp)
{
    return NULL;
}

int tls_session_handshake(TlsSession *t, GError **errp)
{
    return -1;
}

GIOCondition tls_session_wants(TlsSession *t)
{
    return G_IO_IN;
}

ssize_t tls_session_recv(TlsSession *t, void *buf, size_t len)
{
    return -1;
}

ssize_t tls_session_sendv(TlsSession *t, const struct iovec *iov, int n)
{
    return -1;
}

char *tls_session_describe(TlsSession *t)
{
    return NULL;
}

void tls_session_free(TlsSession *t)
{
}

void tls_creds_unref(TlsCreds *c)
{
}

TlsCreds *tls_creds_get(const char *id, bool server, GError **errp)
{
    return NULL;
}

int channel_connect(const char *uri, unsigned timeout_ms, GError **errp)
{
    return -1;
}

RamSender *ram_sender_new(Ram *r, Channel *ctl, Channel *const *data, unsigned n,
                          RamMethod method, int level, unsigned stall_ms)
{
    return NULL;
}

void ram_sender_free(RamSender *x)
{
}

void ram_sender_counts(RamSender *x, RamCounts *counts)
{
}

/* --- The peer --- */

static void put(GByteArray *out, uint64_t v, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        uint8_t b = v >> (8 * (bytes - 1 - i));
        g_byte_array_append(out, &b, 1);
    }
}

/* A message that the real encoder made, of pages that are zero, dull, random, or nearly what
 * the cache has. */
static void encoded_body(GByteArray *b, uint64_t epoch, uint64_t *pages)
{
    g_autofree uint8_t *mem = g_malloc(8 * COLO_PAGE_SIZE);
    uint64_t page[8];
    const uint8_t *data[8], *base[8];
    unsigned n = 1 + fuzz_below(8);
    struct iovec parts[3];
    RamCounts counts = {0};
    RamEncoder *e = ram_encoder_new(fuzz_below(RAM_METHOD_MAX), 1);

    for (unsigned i = 0; i < n; i++) {
        uint8_t *p = mem + i * COLO_PAGE_SIZE;
        page[i] = fuzz_below(PAGES);
        const uint8_t *cached = colo.ram->cache + (page[i] << COLO_PAGE_SHIFT);
        switch (fuzz_below(4)) {
        case 0:
            memset(p, 0, COLO_PAGE_SIZE);
            break;
        case 1:
            memset(p, fuzz_below(256), COLO_PAGE_SIZE);
            break;
        case 2:
            fuzz_bytes(p, COLO_PAGE_SIZE);
            break;
        default:
            memcpy(p, cached, COLO_PAGE_SIZE);
            for (unsigned k = fuzz_below(400); k; k--) {
                p[fuzz_below(COLO_PAGE_SIZE)] = fuzz_next();
            }
        }
        data[i] = p;
        base[i] = epoch && fuzz_one_in(2) ? cached : NULL;
    }
    unsigned used = ram_encode(e, epoch, page, data, base, n, parts, &counts);
    for (unsigned i = 0; i < used; i++) {
        g_byte_array_append(b, parts[i].iov_base, parts[i].iov_len);
    }
    g_assert_cmpuint(b->len, ==, counts.bytes);
    /* What was made is read back the same. */
    g_autofree RamDecoder *d = g_new(RamDecoder, 1);
    g_assert_true(ram_decode(d, b->data, b->len, PAGES, NULL));
    for (unsigned i = 0; i < n; i++) {
        uint8_t got[COLO_PAGE_SIZE];
        g_assert_true(ram_decode_page(d, i, got, base[i], NULL));
        g_assert_cmpmem(got, COLO_PAGE_SIZE, data[i], COLO_PAGE_SIZE);
    }
    g_assert_true(ram_decode_end(d, NULL));
    ram_encoder_free(e);
    *pages += n;
}

static void ram_body(GByteArray *b, uint64_t epoch, uint64_t *pages)
{
    if (fuzz_one_in(2)) {
        encoded_body(b, epoch, pages);
        if (fuzz_one_in(20)) {
            fuzz_mutate(b->data, b->len);
        }
        return;
    }
    unsigned n = 1 + fuzz_below(6), data = 0;

    unsigned plain = fuzz_one_in(4) ? fuzz_below(3 * COLO_PAGE_SIZE) : 0;
    put(b, fuzz_one_in(60) ? fuzz_next() : epoch, 8);
    put(b, fuzz_one_in(30) ? fuzz_next() : n, 4);
    put(b, fuzz_one_in(10) ? fuzz_below(5) : 0, 4);
    put(b, fuzz_one_in(30) ? fuzz_next() : plain, 4);
    put(b, fuzz_one_in(30) ? fuzz_next() : plain, 4);
    for (unsigned i = 0; i < n; i++) {
        uint64_t kind = plain ? fuzz_below(5) : fuzz_below(2);
        uint64_t page = fuzz_one_in(60) ? fuzz_next() : fuzz_below(PAGES);
        data += kind == RAM_KIND_RAW;
        put(b, page | kind << RAM_KIND_SHIFT, 8);
    }
    unsigned at = b->len, more = data * COLO_PAGE_SIZE + plain;
    if (fuzz_one_in(60)) {
        more = fuzz_below(more + 100);
    }
    g_byte_array_set_size(b, at + more);
    memset(b->data + at, 1 + fuzz_below(255), more);
    *pages += n;
}

/* A conversation that may be right up to any point. */
typedef struct Talk {
    uint64_t epoch, pages, device, proxy;
    unsigned at; /* in the order of a checkpoint */
} Talk;

static ChannelType next_message(Talk *t, GByteArray *b)
{
    static const ChannelType order[] = {CHANNEL_BEGIN, CHANNEL_RAM, CHANNEL_DEVICE,
                                        CHANNEL_PROXY, CHANNEL_BARRIERS, CHANNEL_END};
    if (fuzz_one_in(40)) {
        unsigned len = fuzz_below(100);
        g_byte_array_set_size(b, len);
        fuzz_bytes(b->data, len);
        return 1 + fuzz_below(CHANNEL_TYPE_MAX - 1);
    }
    if (fuzz_one_in(8)) {
        return CHANNEL_PING;
    }
    ChannelType type = order[t->at];
    unsigned n;
    switch (type) {
    case CHANNEL_BEGIN:
        if (t->epoch == 0 && fuzz_one_in(2)) {
            uint64_t direct = 0;
            ram_body(b, 0, &direct);
            return CHANNEL_RAM;
        }
        put(b, ++t->epoch, 8);
        put(b, 1, 8);
        t->pages = t->device = t->proxy = 0;
        break;
    case CHANNEL_RAM:
        ram_body(b, t->epoch, &t->pages);
        break;
    case CHANNEL_DEVICE:
    case CHANNEL_PROXY:
        n = 1 + fuzz_below(300);
        g_byte_array_set_size(b, n);
        fuzz_bytes(b->data, n);
        *(type == CHANNEL_DEVICE ? &t->device : &t->proxy) += n;
        break;
    case CHANNEL_BARRIERS:
        if (fuzz_one_in(2)) {
            put(b, t->epoch, 8);
            n = b->len;
            g_byte_array_set_size(b, n + sizeof(((BlockBarrier *)0)->disk));
            memset(b->data + n, fuzz_one_in(20) ? 'x' : 0, b->len - n);
        }
        break;
    default:
        put(b, t->epoch, 8);
        put(b, t->pages, 8);
        put(b, t->device, 8);
        put(b, t->proxy, 8);
        break;
    }
    t->at = (t->at + 1) % G_N_ELEMENTS(order);
    return type;
}

static GByteArray *wire(Talk *t)
{
    g_autoptr(GByteArray) body = g_byte_array_new();
    GByteArray *out = g_byte_array_new();
    ChannelType type = next_message(t, body);

    if (fuzz_one_in(60)) {
        fuzz_mutate(body->data, body->len);
    }
    put(out, MAGIC, 4);
    put(out, type, 2);
    put(out, 2, 2);
    put(out, fuzz_one_in(200) ? fuzz_next() : body->len, 4);
    put(out, crc32(0, body->data, body->len) ^ fuzz_one_in(200), 4);
    if (fuzz_one_in(200)) {
        fuzz_mutate(out->data, out->len); /* and the head's sum is right for it */
    }
    put(out, crc32(0, out->data, 16), 4);
    if (fuzz_one_in(300)) {
        fuzz_mutate(out->data, out->len);
    }
    g_byte_array_append(out, body->data, body->len);
    return out;
}

/* Feed one message in pieces; false when the connection is over. */
static bool feed(Secondary *s, int fd, GByteArray *bytes)
{
    uint8_t drop[4096];

    for (size_t at = 0; at < bytes->len;) {
        size_t len = fuzz_one_in(3) ? 1 + fuzz_below(40) : bytes->len;
        len = MIN(len, bytes->len - at);
        ssize_t n = send(fd, bytes->data + at, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        at += n > 0 ? n : 0;
        while (recv(fd, drop, sizeof(drop), MSG_DONTWAIT) > 0) {
        }
        for (;;) {
            ChannelMsg msg;
            g_autoptr(GError) err = NULL;
            ChannelResult r = channel_recv(s->ch, &msg, 0, &err);
            if (r == CHANNEL_TIMEOUT) {
                g_assert_null(err);
                break;
            }
            if (r != CHANNEL_OK) {
                g_assert_nonnull(err);
                return false;
            }
            unsigned before = commits;
            uint64_t hash = ram_page_hash(colo.ram->cache);
            bool direct = !s->in_checkpoint && msg.type == CHANNEL_RAM;
            bool ok = secondary_handle(s, &msg, &err);
            g_free(channel_msg_text(&msg));
            g_assert_true(ok ? !err : err != NULL);
            /* Only a whole checkpoint touches what a takeover would use. */
            if (commits == before && !direct && !s->broken) {
                g_assert_cmpuint(ram_page_hash(colo.ram->cache), ==, hash);
            }
            if (!ok) {
                return false;
            }
        }
    }
    return true;
}

static void messages(void)
{
    Secondary s = {
        .device = g_byte_array_new(),
        .proxy = g_byte_array_new(),
        .barriers = g_byte_array_new(),
        .device_held = g_byte_array_new(),
    };
    Talk talk = {0};
    int sv[2];
    bool ok = true;

    g_assert_no_errno(socketpair(AF_UNIX, SOCK_STREAM, 0, sv));
    s.ch = channel_new(sv[0], 1000);
    colo.epoch = 0;
    colo.opts.peer_timeout = 1000;
    colo.opts.verify_ram = fuzz_one_in(2);
    colo.ram = ram_new(ram_map, NULL, NULL);
    g_assert_true(ram_cache_init(colo.ram, NULL));
    for (unsigned n = fuzz_below(60); ok && n; n--) {
        g_autoptr(GByteArray) bytes = wire(&talk);
        ok = feed(&s, sv[1], bytes);
    }
    secondary_reset_staging(&s);
    g_free(s.decoder);
    channel_free(s.ch);
    close(sv[1]);
    ram_free(colo.ram);
    g_byte_array_unref(s.device);
    g_byte_array_unref(s.proxy);
    g_byte_array_unref(s.barriers);
    g_byte_array_unref(s.device_held);
}

/* --- The greeting --- */

static void greeting(void)
{
    static const char *const words[] = {
        "{", "}", "[", "]", "\"machine\":", "\"disks\":", ",", "\"program\":\"qemu-colo\"",
        "\"protocol\":1", "\"role\":\"primary\"", "{}", "[]", "null", "\"disk\":", "\"size\":",
        "1", "-1", "1e99", "\"parent0\"", "\"ram\":", "\"x\"", "true", "\xff", "\\", "\"",
    };
    g_autofree char *mine = hello_build(true, NULL);
    g_autoptr(GString) text = g_string_new(mine);
    g_autoptr(GError) err = NULL;

    for (unsigned k = fuzz_below(4); k; k--) {
        switch (fuzz_below(4)) {
        case 0:
            fuzz_mutate((uint8_t *)text->str, text->len);
            break;
        case 1:
            g_string_truncate(text, fuzz_below(text->len + 1));
            break;
        case 2:
            g_string_insert(text, fuzz_below(text->len + 1),
                            words[fuzz_below(G_N_ELEMENTS(words))]);
            break;
        default: {
            char *at = strchr(text->str, fuzz_one_in(2) ? ':' : ',');
            if (at && at[1]) {
                gsize pos = at + 1 - text->str;
                gsize n = fuzz_below(12);
                g_string_erase(text, pos, MIN(n, text->len - pos));
                g_string_insert(text, pos, words[fuzz_below(G_N_ELEMENTS(words))]);
            }
        }
        }
    }
    if (fuzz_one_in(400)) {
        /* As deep as a message can be. */
        unsigned depth = CHANNEL_PAYLOAD_MAX - 100;
        g_autofree char *deep = g_strnfill(depth, '[');
        g_string_printf(text, "{\"program\":%s", deep);
    }
    Link offer = {0};
    link_read_offer(&offer, text->str, NULL);
    g_assert_cmpuint(offer.n, <=, RAM_CHANNELS_MAX);
    bool ok = hello_check(text->str, false, &err);
    g_assert_true(ok ? !err : err != NULL);
}

static void one(void)
{
    if (fuzz_one_in(4)) {
        greeting();
    } else {
        messages();
    }
}

int main(int argc, char **argv)
{
    g_mutex_init(&colo.lock);
    g_cond_init(&colo.cond);
    int ram_fd = memfd_create("ram", MFD_CLOEXEC);
    g_assert_no_errno(ftruncate(ram_fd, PAGES * COLO_PAGE_SIZE));
    ram_map = ram_map_new();
    ram_map_add(ram_map, "ram", ram_fd, PAGES * COLO_PAGE_SIZE, COLO_PAGE_SIZE, true, NULL);
    g_assert_true(ram_map_finish(ram_map, NULL));
    colo.child.identity = json_object_new();
    json_object_set_int_member(colo.child.identity, "ram", PAGES * COLO_PAGE_SIZE);
    json_object_set_string_member(colo.child.identity, "cpu", "max");
    json_object_set_string_member(colo.child.identity, "smp", "1");
    json_object_set_string_member(colo.child.identity, "devices", "e1000");
    return fuzz_main(argc, argv, "channel", one);
}
