/*
 * Dirty page trackers: what a process writes is told, by each of them.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The process is a real one with two mappings of memory that we share; it writes when told
 * to, by itself or through a system call, or all the time.
 */
#include <glib.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "migration/tracker.h"

#define BLOCK_PAGES 700
#define PAGES (2 * BLOCK_PAGES)
#define STRIDE 300 /* in a large world: of so many pages one is used, and there are 1.6 GiB */

typedef enum Op { OP_WRITE, OP_READ_INTO, OP_STORM } Op;

typedef struct Command {
    Op op;
    uint32_t page, value;
} Command;

typedef struct World {
    pid_t pid;
    int sock;
    int *storm; /* shared: the child writes on while it is set */
    RamMap *map;
    Tracker *t;
    uint64_t stride; /* page p of the test is page p * stride of the map */
    uint8_t *seen;  /* pages told by the last scan */
    uint8_t *copy;  /* what a capture of all told pages has */
    uint64_t told;
} World;

/* --- The process --- */

static void *page_at(uint8_t **blocks, uint64_t stride, uint32_t page)
{
    return blocks[page / BLOCK_PAGES] + page % BLOCK_PAGES * stride * COLO_PAGE_SIZE;
}

static void child_main(int sock, uint8_t **blocks, uint64_t stride, const int *storm)
{
    Command c;
    int pipes[2];

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (pipe(pipes) < 0) {
        _exit(1);
    }
    while (read(sock, &c, sizeof(c)) == sizeof(c)) {
        uint32_t *to = page_at(blocks, stride, c.page);
        if (c.op == OP_WRITE) {
            to[c.value % 1024] = c.value;
        } else if (c.op == OP_READ_INTO) {
            if (write(pipes[1], &c.value, 4) != 4 || read(pipes[0], to + 5, 4) != 4) {
                _exit(1);
            }
        }
        if (write(sock, "k", 1) != 1) {
            _exit(1);
        }
        for (uint32_t n = c.value; c.op == OP_STORM && __atomic_load_n(storm, 5); n++) {
            uint32_t *p = page_at(blocks, stride, n * 2654435761u % PAGES);
            p[n % 2] = n / 4096 % 2; /* there and back again */
        }
        if (c.op == OP_STORM && write(sock, "k", 1) != 1) {
            _exit(1);
        }
    }
    _exit(0);
}

static void told(World *w)
{
    char k;

    g_assert_cmpint(read(w->sock, &k, 1), ==, 1);
}

static void order(World *w, Op op, uint32_t page, uint32_t value)
{
    Command c = {op, page, value};

    g_assert_cmpint(write(w->sock, &c, sizeof(c)), ==, sizeof(c));
    told(w);
}

/* --- Our side --- */

/* @wish: a tracker, or "large" for the first of them in a large world. */
static bool world_new(World *w, const char *wish)
{
    g_autoptr(GError) err = NULL;
    uint8_t *blocks[2];
    int sv[2];

    *w = (World){.stride = strcmp(wish, "large") ? 1 : STRIDE};
    const uint64_t size = BLOCK_PAGES * w->stride * COLO_PAGE_SIZE;
    w->map = ram_map_new();
    for (int i = 0; i < 2; i++) {
        int fd = memfd_create("ram", MFD_CLOEXEC);
        g_assert_no_errno(ftruncate(fd, size));
        RamBlock *b = ram_map_add(w->map, i ? "two" : "one", fd, size, COLO_PAGE_SIZE,
                                  true, NULL);
        b->own_fd = true;
    }
    g_assert_true(ram_map_finish(w->map, NULL));
    w->storm = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    g_assert_no_errno(socketpair(AF_UNIX, SOCK_STREAM, 0, sv));
    w->pid = fork();
    if (w->pid == 0) {
        close(sv[0]);
        munmap(w->map->base, w->map->span); /* or ours would be found as its mapping */
        for (int i = 0; i < 2; i++) {
            blocks[i] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
                             w->map->blocks[i].fd, 0);
        }
        child_main(sv[1], blocks, w->stride, w->storm);
    }
    close(sv[1]);
    w->sock = sv[0];
    order(w, OP_WRITE, 0, 0); /* it has its mappings now */
    g_assert_true(ram_map_locate(w->map, w->pid, NULL));
    w->seen = g_malloc(PAGES);
    w->copy = g_malloc0(PAGES * COLO_PAGE_SIZE);
    w->t = tracker_new(w->stride == 1 ? wish : "uffd", w->pid, w->map, &err);
    if (!w->t) {
        g_test_skip(err->message);
        return false;
    }
    return true;
}

static void world_free(World *w)
{
    tracker_free(w->t);
    close(w->sock);
    kill(w->pid, SIGKILL);
    waitpid(w->pid, NULL, 0);
    ram_map_free(w->map);
    munmap(w->storm, 4096);
    g_free(w->seen);
    g_free(w->copy);
}

/* Page @p of the test at @base, which is laid out as the map. */
static uint8_t *at(const World *w, const uint8_t *base, uint64_t p)
{
    return (uint8_t *)base + p * w->stride * COLO_PAGE_SIZE;
}

static void capture(const PageRun *runs, unsigned n, void *opaque)
{
    World *w = opaque;

    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpuint(runs[i].first + runs[i].count, <=, PAGES * w->stride);
        for (uint64_t r = runs[i].first; r < runs[i].first + runs[i].count; r++) {
            uint64_t p = r / w->stride;
            g_assert_cmpuint(r % w->stride, ==, 0); /* nobody writes to others */
            g_assert_cmpint(w->seen[p], ==, 0); /* once a scan */
            w->seen[p] = 1;
            memcpy(w->copy + p * COLO_PAGE_SIZE, at(w, tracker_source(w->t), p),
                   COLO_PAGE_SIZE);
        }
        w->told += runs[i].count;
    }
}

static int64_t scan(World *w, bool stopped)
{
    g_autoptr(GError) err = NULL;

    memset(w->seen, 0, PAGES);
    w->told = 0;
    int64_t n = tracker_scan(w->t, stopped, capture, w, &err);
    g_assert_no_error(err);
    g_assert_cmpint(n, ==, w->told);
    return n;
}

static void start(World *w)
{
    g_assert_true(tracker_start(w->t, NULL));
    scan(w, true);
    for (unsigned p = 0; p < PAGES; p++) {
        memcpy(w->copy + p * COLO_PAGE_SIZE, at(w, tracker_source(w->t), p), COLO_PAGE_SIZE);
    }
}

static void assert_copy(World *w)
{
    for (unsigned p = 0; p < PAGES; p++) {
        g_assert_cmpmem(w->copy + p * COLO_PAGE_SIZE, COLO_PAGE_SIZE,
                        at(w, w->map->base, p), COLO_PAGE_SIZE);
    }
}

static void every_write(gconstpointer wish)
{
    World w;

    if (world_new(&w, wish)) {
        start(&w);
        for (unsigned round = 0; round < 60; round++) {
            bool want[PAGES] = {0};
            for (unsigned n = g_test_rand_int_range(0, 60); n; n--) {
                unsigned page = g_test_rand_int_range(0, PAGES);
                order(&w, g_test_rand_bit() ? OP_WRITE : OP_READ_INTO, page,
                      g_test_rand_int() | 1);
                want[page] = true;
            }
            scan(&w, round % 3 != 1);
            for (unsigned p = 0; p < PAGES; p++) {
                g_assert_true(w.seen[p] || !want[p]);
            }
            assert_copy(&w);
        }
        scan(&w, true);
        /* soft-dirty tells pages that the process never had mapped, too. */
        g_assert_true(scan(&w, true) == 0 || !strcmp(wish, "soft-dirty"));
    }
    world_free(&w);
}

static void no_write_is_lost_in_a_storm(gconstpointer wish)
{
    World w;

    if (world_new(&w, wish)) {
        start(&w);
        for (unsigned round = 0; round < 20; round++) {
            __atomic_store_n(w.storm, 1, 5);
            order(&w, OP_STORM, 0, g_test_rand_int());
            for (unsigned i = 0; i < 8; i++) {
                scan(&w, false);
            }
            __atomic_store_n(w.storm, 0, 5);
            told(&w); /* it stands still */
            scan(&w, true);
            assert_copy(&w);
        }
    }
    world_free(&w);
}

/* The secondary: what the process wrote is undone by us, behind its back, and written by it
 * again with the same value. */
static void a_write_after_a_restore(gconstpointer wish)
{
    World w;

    if (world_new(&w, wish)) {
        g_autofree uint8_t *cache = g_memdup2(w.map->base, PAGES * COLO_PAGE_SIZE);
        tracker_set_reference(w.t, cache);
        start(&w);
        for (unsigned i = 0; i < 5; i++) {
            order(&w, OP_WRITE, 900, 77);
            scan(&w, true);
            g_assert_true(w.seen[900]);
            memcpy(w.map->base + 900 * COLO_PAGE_SIZE, cache + 900 * COLO_PAGE_SIZE,
                   COLO_PAGE_SIZE);
        }
    }
    world_free(&w);
}

static void auto_finds_one(void)
{
    World w;

    g_assert_true(world_new(&w, "auto"));
    g_test_message("%s (%s)", tracker_name(w.t), tracker_why(w.t));
    world_free(&w);
}

static void unknown_is_refused(void)
{
    g_autoptr(GError) err = NULL;
    g_autofree RamMap *m = ram_map_new();

    g_assert_false(tracker_known("magic"));
    g_assert_null(tracker_new("magic", getpid(), m, &err));
    g_assert_nonnull(err);
}

static void count(const PageRun *runs, unsigned n, void *opaque)
{
}

/* -m perf: what a scan of GIBS GiB costs of which a few pages were written. */
static void scan_cost(void)
{
    const char *text = g_getenv("GIBS");
    uint64_t size = (text ? atoi(text) : 4) * (1ull << 30);
    RamMap *m = ram_map_new();
    int fd = memfd_create("ram", MFD_CLOEXEC), ready[2];

    g_assert_no_errno(ftruncate(fd, size));
    ram_map_add(m, "ram", fd, size, COLO_PAGE_SIZE, true, NULL);
    g_assert_true(ram_map_finish(m, NULL));
    g_assert_no_errno(pipe(ready));
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        munmap(m->base, m->span);
        uint8_t *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        (void)!write(ready[1], "k", 1);
        for (unsigned n = 1;; n++) {
            for (unsigned i = 0; i < 200; i++) {
                p[(n * 200 + i) * 2654435761u % (512u << 20) & ~4095u] = n;
            }
            usleep(10000);
        }
    }
    char k;
    g_assert_cmpint(read(ready[0], &k, 1), ==, 1);
    g_assert_true(ram_map_locate(m, pid, NULL));
    Tracker *t = tracker_new("uffd", pid, m, NULL);
    g_assert_true(tracker_start(t, NULL));
    for (unsigned i = 0; i < 12; i++) {
        int64_t start = g_get_monotonic_time();
        int64_t pages = tracker_scan(t, false, count, NULL, NULL);
        g_test_message("%d GiB, %d pages: %.2f ms", (int)(size >> 30), (int)pages,
                       (g_get_monotonic_time() - start) / 1e3);
    }
    tracker_free(t);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    ram_map_free(m);
    close(fd);
}

int main(int argc, char **argv)
{
    static const char *const wishes[] = {"uffd", "soft-dirty", "compare", "large"};

    g_test_init(&argc, &argv, NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(wishes); i++) {
        g_autofree char *a = g_strdup_printf("/tracker/%s/every-write", wishes[i]);
        g_autofree char *b = g_strdup_printf("/tracker/%s/storm", wishes[i]);
        g_autofree char *c = g_strdup_printf("/tracker/%s/after-restore", wishes[i]);
        g_test_add_data_func(a, wishes[i], every_write);
        g_test_add_data_func(b, wishes[i], no_write_is_lost_in_a_storm);
        if (strcmp(wishes[i], "large") != 0) {
            g_test_add_data_func(c, wishes[i], a_write_after_a_restore);
        }
    }
    if (g_test_perf()) {
        g_test_add_func("/tracker/scan-cost", scan_cost);
    }
    g_test_add_func("/tracker/auto", auto_finds_one);
    g_test_add_func("/tracker/unknown", unknown_is_refused);
    return g_test_run();
}
