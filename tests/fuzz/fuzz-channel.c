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

JsonNode *child_qmp_query(ChildQmp *q, const char *text, const char *id, GError **errp)
{
    const char *ret = strstr(text, "query-jobs") ? "[]" : "{\"status\":\"paused\"}";

    return json_from_string(ret, errp);
}

bool child_qmp_wait_event(ChildQmp *q, const char *name, const char *needle, int timeout_ms,
                          GError **errp)
{
    return true;
}

void child_qmp_forget_events(ChildQmp *q)
{
}

bool vmstate_image_write(int fd, const char *machine, const void *data, size_t len,
                         GError **errp)
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

/* --- The peer --- */

static void put(GByteArray *out, uint64_t v, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        uint8_t b = v >> (8 * (bytes - 1 - i));
        g_byte_array_append(out, &b, 1);
    }
}

static void ram_body(GByteArray *b, uint64_t *pages)
{
    unsigned n = 1 + fuzz_below(6), data = 0;

    put(b, fuzz_one_in(30) ? fuzz_next() : n, 4);
    put(b, 0, 4);
    for (unsigned i = 0; i < n; i++) {
        bool zero = fuzz_one_in(2);
        uint64_t page = fuzz_one_in(60) ? fuzz_next() : fuzz_below(PAGES);
        data += !zero;
        put(b, page | (zero ? RAM_PAGE_ZERO : 0), 8);
    }
    unsigned at = b->len, more = data * COLO_PAGE_SIZE;
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
            ram_body(b, &direct);
            return CHANNEL_RAM;
        }
        put(b, ++t->epoch, 8);
        put(b, 1, 8);
        t->pages = t->device = t->proxy = 0;
        break;
    case CHANNEL_RAM:
        ram_body(b, &t->pages);
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
    put(out, 1, 2);
    put(out, fuzz_one_in(200) ? fuzz_next() : body->len, 4);
    if (fuzz_one_in(200)) {
        fuzz_mutate(out->data, out->len); /* and the sum is right for it */
    }
    put(out, crc32(0, out->data, 12), 4);
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
