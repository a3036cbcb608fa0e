/*
 * The secondary's data channels: a peer that does not keep to the order gains nothing.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "migration/ram-codec.h"
#include "migration/ram-private.h"
#include "migration/ram-receiver.h"

#define PAGES 64
#define BIG 65536
#define CHANNELS 2
#define STALL_MS 30000

typedef struct World {
    RamMap *map;
    Ram *ram;
    Channel *there[CHANNELS], *here[CHANNELS]; /* the primary's ends, ours */
    RamReceiver *x;
    RamEncoder *encoder;
} World;

static void world_new(World *w)
{
    int fd = memfd_create("ram", MFD_CLOEXEC), sv[2];

    memset(w, 0, sizeof(*w));
    g_assert_no_errno(ftruncate(fd, PAGES * COLO_PAGE_SIZE));
    w->map = ram_map_new();
    ram_map_add(w->map, "ram", fd, PAGES * COLO_PAGE_SIZE, COLO_PAGE_SIZE, true, NULL)->own_fd =
        true;
    g_assert_true(ram_map_finish(w->map, NULL));
    w->ram = ram_new(w->map, NULL, NULL);
    ram_epoch_begin(w->ram);
    g_assert_true(ram_cache_init(w->ram, NULL));
    for (int i = 0; i < CHANNELS; i++) {
        g_assert_no_errno(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv));
        w->there[i] = channel_new(sv[0], STALL_MS);
        w->here[i] = channel_new(sv[1], STALL_MS);
    }
    w->encoder = ram_encoder_new(RAM_METHOD_NONE, 1);
    w->x = ram_receiver_new(w->ram, w->here, CHANNELS, STALL_MS);
}

static void world_free(World *w)
{
    ram_receiver_free(w->x);
    for (int i = 0; i < CHANNELS; i++) {
        channel_free(w->there[i]);
        channel_free(w->here[i]);
    }
    ram_encoder_free(w->encoder);
    ram_free(w->ram);
    ram_map_free(w->map);
}

static void send_page(World *w, unsigned channel, uint64_t epoch, uint64_t page)
{
    static const uint8_t text[COLO_PAGE_SIZE] = "page";
    const uint8_t *data = text;
    struct iovec parts[3];
    RamCounts counts = {0};

    unsigned n = ram_encode(w->encoder, epoch, &page, &data, NULL, 1, parts, &counts);
    g_assert_true(channel_send(w->there[channel], CHANNEL_RAM, parts, n, NULL));
}

static void send_mark(World *w, unsigned channel, uint64_t pass)
{
    g_assert_true(channel_send_u64(w->there[channel], CHANNEL_MARK, &pass, 1, NULL));
}

static bool fails(World *w)
{
    for (int i = 0; i < 3000; i++) {
        if (!ram_receiver_good(w->x, 0, NULL)) {
            return true;
        }
        g_usleep(10000);
    }
    return false;
}

/* As the controller does it: nothing is lost, and nothing of the next comes in early. */
static void test_checkpoints(void)
{
    World w;
    uint64_t pages = 0;

    world_new(&w);
    for (uint64_t epoch = 1, pass = 1; epoch < 50; epoch++, pass++) {
        /* They overtake BEGIN. */
        for (unsigned c = 0; c < CHANNELS; c++) {
            send_page(&w, c, epoch, c);
            send_page(&w, c, epoch, 10 + c);
            send_mark(&w, c, pass);
        }
        g_assert_cmpuint(ram_staged(w.ram), ==, 0);
        ram_receiver_open(w.x, epoch);
        pages = 0;
        g_assert_true(ram_receiver_synced(w.x, pass, 3, STALL_MS, &pages));
        ram_receiver_close(w.x);
        g_assert_cmpuint(pages, ==, 4);
        g_assert_cmpuint(ram_staged(w.ram), ==, 4);
        ram_discard(w.ram);
    }
    g_assert_true(ram_receiver_good(w.x, 0, NULL));
    world_free(&w);
}

/* No epoch's number opens a window that is closed: staging is being loaded from. */
static void test_closed_window(void)
{
    World w;

    world_new(&w);
    ram_receiver_open(w.x, 1);
    ram_receiver_close(w.x);
    send_page(&w, 0, UINT64_MAX, 3);
    send_page(&w, 1, 1, 4);
    g_usleep(200 * 1000);
    g_assert_cmpuint(ram_staged(w.ram), ==, 0);
    world_free(&w);
}

/* SYNC need not name each channel that sends: when the window is closed none is inside. */
static void test_nobody_inside(void)
{
    World w;

    world_new(&w);
    for (uint64_t epoch = 1, pass = 1; epoch < 2000; epoch++, pass++) {
        ram_receiver_open(w.x, epoch);
        send_mark(&w, 0, pass);
        send_page(&w, 1, epoch, epoch % PAGES); /* of a channel that will not be waited for */
        uint64_t pages = 0;
        g_assert_true(ram_receiver_synced(w.x, pass, 1, STALL_MS, &pages));
        ram_receiver_close(w.x);
        uint64_t before = ram_staged(w.ram);
        ram_discard(w.ram);
        g_assert_cmpuint(before, <=, 1);
        g_assert_cmpuint(ram_staged(w.ram), ==, 0);
        if (!before) {
            break; /* it waits for a window that will not come */
        }
    }
    world_free(&w);
}

/* A first checkpoint without pages: its MARK is on one channel alone, and may be there before
 * BEGIN. The channel does not wait for others then. */
static void test_mark_before_begin(void)
{
    World w;
    uint64_t pages = 0;

    world_new(&w);
    send_mark(&w, 0, 1);
    send_mark(&w, 1, 1);
    g_assert_true(ram_receiver_synced(w.x, 1, 3, STALL_MS, &pages));
    send_mark(&w, 0, 2);
    g_assert_true(ram_receiver_synced(w.x, 2, 1, STALL_MS, &pages));
    ram_receiver_open(w.x, 1);
    send_page(&w, 0, 1, 7);
    send_mark(&w, 0, 3);
    g_assert_true(ram_receiver_synced(w.x, 3, 1, STALL_MS / 3, &pages));
    g_assert_cmpuint(pages, ==, 1);
    world_free(&w);
}

static void test_order(void)
{
    World w;

    world_new(&w); /* the end of a pass twice */
    ram_receiver_open(w.x, 1);
    send_mark(&w, 0, 5);
    send_mark(&w, 0, 5);
    g_assert_true(fails(&w));
    world_free(&w);
    world_new(&w); /* a message that is none of a data channel's */
    uint64_t end[5] = {1};
    g_assert_true(channel_send_u64(w.there[1], CHANNEL_END, end, 5, NULL));
    g_assert_true(fails(&w));
    world_free(&w);
    world_new(&w); /* a page that there is not */
    send_page(&w, 0, 0, PAGES);
    g_assert_true(fails(&w));
    world_free(&w);
}

static uint64_t populated(Ram *r)
{
    uint64_t staging, cache;

    ram_memory(r, &staging, &cache);
    return (staging - 2 * BIG * sizeof(uint32_t)) >> COLO_PAGE_SHIFT;
}

/* A commit is made while the SVM stands, and a checkpoint may wait for the begin of an epoch:
 * neither populates staging for what a large epoch lets expect, all at once. */
static void test_staging_grows_by_steps(void)
{
    const uint64_t n = 12000, first = (32 << 20) >> COLO_PAGE_SHIFT;
    const uint64_t step = (8 << 20) >> COLO_PAGE_SHIFT;
    int fd = memfd_create("ram", MFD_CLOEXEC);

    g_assert_no_errno(ftruncate(fd, BIG * COLO_PAGE_SIZE));
    RamMap *map = ram_map_new();
    ram_map_add(map, "ram", fd, BIG * COLO_PAGE_SIZE, COLO_PAGE_SIZE, true, NULL)->own_fd = true;
    g_assert_true(ram_map_finish(map, NULL));
    Ram *r = ram_new(map, NULL, NULL);
    ram_epoch_begin(r);
    g_assert_true(ram_cache_init(r, NULL));
    g_assert_cmpuint(populated(r), ==, first);
    for (uint64_t p = 0; p < n; p++) {
        ram_staging_slot(r, p);
    }
    ram_commit(r);
    g_assert_cmpuint(populated(r), ==, n); /* what came was touched by that */
    uint64_t before = n;
    for (int i = 0; i < 20; i++, before = populated(r)) {
        ram_populate(r);
        g_assert_cmpuint(populated(r), <=, before + step);
    }
    g_assert_cmpuint(populated(r), ==, 2 * n);
    ram_free(r);
    ram_map_free(map);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/ram-receiver/checkpoints", test_checkpoints);
    g_test_add_func("/ram-receiver/closed-window", test_closed_window);
    g_test_add_func("/ram-receiver/nobody-inside", test_nobody_inside);
    g_test_add_func("/ram-receiver/mark-before-begin", test_mark_before_begin);
    g_test_add_func("/ram-receiver/order", test_order);
    g_test_add_func("/ram-receiver/staging-grows-by-steps", test_staging_grows_by_steps);
    return g_test_run();
}
