/*
 * The activity log: at any moment its file names at least what differs.
 * COLO_SEED=n repeats a run.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block-test.h"
#include "../../block/activity-log-file.h"
#include "../../block/activity-log.h"

#include <stdlib.h>

#define SIZE (256ull * 1024 * 1024)
#define GENERATION "01234567-89ab-cdef-0123-456789abcdef"

static uint32_t seed;

static char *image, *sidecar;

static void begin(unsigned idle_ms, unsigned look_ms)
{
    activity_log_set_times(idle_ms, look_ms);
    block_test_begin();
    image = test_image("a.raw", SIZE);
    sidecar = activity_log_path(image);
}

static void end(void)
{
    block_test_end();
    g_free(image);
    g_free(sidecar);
}

static void open_image(void)
{
    test_add("id=a,driver=raw,file.filename=%s", image);
}

static void log_begin(const char *generation)
{
    g_autoptr(GError) err = NULL;

    activity_log_begin(test_node("a"), generation, false, &err);
    g_assert_no_error(err);
}

static void write_at(uint64_t offset, uint64_t bytes)
{
    g_autofree uint8_t *buf = g_malloc0(bytes);

    g_assert_cmpint(test_io("a", BLOCK_OP_WRITE, offset, bytes, buf), ==, 0);
}

/* What the file at @path says differs: both maps in one. NULL: it is not there. */
static DirtyBitmap *read_file(const char *path, char *generation)
{
    g_autoptr(DirtyBitmap) hot = dirty_bitmap_new(SIZE, AL_REGION);
    DirtyBitmap *dirty = dirty_bitmap_new(SIZE, AL_GRANULE);
    ActivityLogFile f = {0};
    g_autoptr(GError) err = NULL;

    activity_log_read(&f, path, SIZE, true, hot, dirty, &err);
    g_assert_no_error(err);
    dirty_bitmap_merge(dirty, hot);
    if (generation) {
        strcpy(generation, f.generation);
    }
    close(f.fd);
    g_free(f.path);
    return dirty;
}

static uint64_t log_number(const char *key)
{
    g_autoptr(JsonObject) o = json_object_new();
    BlockNode *node = test_node("a");

    block_lock();
    activity_log_query(activity_log_of(node), o);
    block_unlock();
    return json_object_get_int_member(json_object_get_object_member(o, "activity-log"), key);
}

/* --- Writers, and a death at any moment --- */

typedef struct Writer {
    GThread *thread;
    uint32_t seed;
    gint *stop;
    GMutex *lock;
    DirtyBitmap *acked; /* what was answered */
} Writer;

static gpointer writer_main(gpointer opaque)
{
    Writer *w = opaque;
    g_autoptr(GRand) r = g_rand_new_with_seed(w->seed);
    uint64_t pos = 0;

    while (!g_atomic_int_get(w->stop)) {
        uint64_t bytes = g_rand_int_range(r, 1, 256) * 512;

        if (g_rand_int_range(r, 0, 20) == 0) {
            pos = (uint64_t)(g_rand_double(r) * (SIZE - 1024 * 1024)) / 512 * 512;
        }
        write_at(pos, bytes);
        /* The tightest moment: it has just been answered. */
        g_autoptr(DirtyBitmap) file = read_file(sidecar, NULL);
        g_assert_true(dirty_bitmap_all(file, pos, pos + bytes));
        g_mutex_lock(w->lock);
        dirty_bitmap_set(w->acked, pos, pos + bytes);
        g_mutex_unlock(w->lock);
        pos = pos + bytes < SIZE - 1024 * 1024 ? pos + bytes : 0;
    }
    return NULL;
}

static void check_covers(const DirtyBitmap *file, const DirtyBitmap *acked)
{
    for (uint64_t pos = 0; (pos = dirty_bitmap_next(acked, pos)) != UINT64_MAX; pos++) {
        if (!dirty_bitmap_get(file, pos)) {
            g_error("the file does not name %" G_GUINT64_FORMAT, pos);
        }
        pos += AL_GRANULE - 1;
    }
}

static void test_death_at_any_moment(void)
{
    g_autoptr(GRand) r = g_rand_new_with_seed(seed);
    Writer w[3];
    GMutex lock;
    gint stop = 0;
    uint64_t most = 0;

    /* Regions cool within milliseconds, so that every race happens. */
    begin(20, 5);
    open_image();
    log_begin(GENERATION);
    g_mutex_init(&lock);
    g_autoptr(DirtyBitmap) acked = dirty_bitmap_new(SIZE, AL_GRANULE);
    for (int i = 0; i < 3; i++) {
        w[i] = (Writer){.seed = g_rand_int(r), .stop = &stop, .lock = &lock, .acked = acked};
        w[i].thread = g_thread_new("writer", writer_main, &w[i]);
    }
    for (int i = 0; i < 60; i++) {
        g_autofree char *copy = test_path("copy");
        char generation[AL_GENERATION];

        g_usleep(g_rand_int_range(r, 0, 30000));
        /* The moment of death: what was answered before it must be in the file. */
        g_autoptr(DirtyBitmap) before = dirty_bitmap_new(SIZE, AL_GRANULE);
        g_mutex_lock(&lock);
        dirty_bitmap_merge(before, acked);
        g_mutex_unlock(&lock);
        if (i == 30) {
            /* A new generation that keeps what differs. */
            g_autoptr(GError) err = NULL;
            activity_log_begin(test_node("a"), "next", true, &err);
            g_assert_no_error(err);
        }
        g_free(test_run("cp %s %s", sidecar, copy));
        g_autoptr(DirtyBitmap) file = read_file(copy, generation);
        g_assert_cmpstr(generation, ==, i < 30 ? GENERATION : "next");
        check_covers(file, before);
        most = MAX(most, dirty_bitmap_bytes(file));
    }
    g_atomic_int_set(&stop, 1);
    for (int i = 0; i < 3; i++) {
        g_thread_join(w[i].thread);
    }
    g_test_message("%" G_GUINT64_FORMAT " bytes written to, file named at most %"
                   G_GUINT64_FORMAT "; %" G_GUINT64_FORMAT " waits, %" G_GUINT64_FORMAT " syncs",
                   dirty_bitmap_bytes(acked), most, log_number("waits"), log_number("syncs"));
    /* All cools down to the granules. */
    for (int i = 0; i < 400 && log_number("hot") > 0; i++) {
        g_usleep(5000);
    }
    g_assert_cmpuint(log_number("hot"), ==, 0);
    g_assert_cmpuint(log_number("differs"), ==, dirty_bitmap_bytes(acked));
    end();
}

/* --- After a death, after an orderly end --- */

static void test_reopened(void)
{
    begin(60000, 1000);
    open_image();
    log_begin(GENERATION);
    write_at(5 * AL_REGION + 70000, 4096);
    g_autofree char *copy = test_path("copy");
    g_free(test_run("cp %s %s", sidecar, copy));
    g_assert_cmpuint(log_number("differs"), ==, AL_GRANULE);
    /* In order: the granule, and no more. */
    g_assert_true(block_node_del("a", NULL));
    open_image();
    g_assert_cmpuint(log_number("differs"), ==, AL_GRANULE);
    g_assert_cmpuint(log_number("hot"), ==, 0);
    write_at(0, 512);
    g_assert_cmpuint(log_number("differs"), ==, 2 * AL_GRANULE);
    g_assert_true(block_node_del("a", NULL));
    /* After a death: all of the region. */
    g_free(test_run("cp %s %s", copy, sidecar));
    open_image();
    g_assert_cmpuint(log_number("differs"), ==, AL_REGION);
    g_assert_true(block_node_del("a", NULL));
    /* Changed by another program since the orderly end: no log at all. */
    g_free(test_run("dd if=/dev/zero of=%s bs=512 count=1 conv=notrunc status=none", image));
    open_image();
    g_assert_null(activity_log_of(test_node("a")));
    g_assert_cmpint(g_access(sidecar, F_OK), !=, 0);
    end();
}

static void test_damaged(void)
{
    g_autoptr(GRand) r = g_rand_new_with_seed(seed);

    begin(60000, 1000);
    open_image();
    log_begin(GENERATION);
    write_at(5 * AL_REGION, 4096);
    g_assert_true(block_node_del("a", NULL));
    g_autofree char *copy = test_path("copy"), *data = NULL;
    gsize len;
    g_assert_true(g_file_get_contents(sidecar, &data, &len, NULL));
    g_assert_cmpuint(len, ==, 3 * AL_PAGE);
    for (int i = 0; i < 200; i++) {
        g_autofree char *bad = g_memdup2(data, len);
        gsize at = AL_PAGE + g_rand_int_range(r, 0, len - AL_PAGE);
        gsize n = g_rand_boolean(r) ? len : at;

        bad[at] ^= 1 << g_rand_int_range(r, 0, 8);
        g_assert_true(g_file_set_contents(copy, bad, n, NULL));
        g_autoptr(DirtyBitmap) d = read_file(copy, NULL);
        g_assert_cmpuint(dirty_bitmap_bytes(d), ==, SIZE);
    }
    /* A page of an older file. */
    g_autoptr(GError) err = NULL;
    g_autoptr(DirtyBitmap) hot = dirty_bitmap_new(SIZE, AL_REGION);
    g_autoptr(DirtyBitmap) dirty = dirty_bitmap_new(SIZE, AL_GRANULE);
    ActivityLogFile f = {.path = copy, .fd = -1, .size = SIZE};
    activity_log_write(&f, hot, dirty, &err);
    g_assert_no_error(err);
    g_assert_cmpint(pwrite(f.fd, data + AL_PAGE, AL_PAGE, AL_PAGE), ==, AL_PAGE);
    close(f.fd);
    g_autoptr(DirtyBitmap) d = read_file(copy, NULL);
    g_assert_cmpuint(dirty_bitmap_bytes(d), ==, SIZE);
    /* The head: no log. */
    for (int i = 0; i < 100; i++) {
        g_autofree char *bad = g_memdup2(data, len);
        gsize at = g_rand_int_range(r, 0, 80);
        ActivityLogFile g = {0};

        bad[at] ^= 1 << g_rand_int_range(r, 0, 8);
        g_assert_true(g_file_set_contents(copy, bad, len, NULL));
        g_assert_false(activity_log_read(&g, copy, SIZE, true, hot, dirty, NULL));
    }
    g_free(f.path == copy ? NULL : f.path);
    end();
}

/* --- What it costs --- */

static void test_steady_writers_wait_once(void)
{
    begin(60000, 1000);
    open_image();
    log_begin(GENERATION);
    for (int i = 0; i < 500; i++) {
        write_at((i * 37 % 64) * 4096, 4096);
    }
    g_assert_cmpuint(log_number("waits"), ==, 1);
    /* Going forward through 240 MiB, the log goes ahead. */
    for (uint64_t pos = 0; pos < SIZE - AL_REGION; pos += 65536) {
        write_at(pos, 65536);
    }
    g_test_message("%" G_GUINT64_FORMAT " waits for 60 regions", log_number("waits"));
    g_assert_cmpuint(log_number("waits"), <, 12);
    end();
}

/* A log that cannot be written is no reason to stop the guest, and leaves no lie behind. */
static void test_no_room(void)
{
    g_autoptr(GError) err = NULL;

    begin(60000, 1000);
    g_autofree char *dir = test_path("sub");
    g_mkdir(dir, 0700);
    g_autofree char *tmp = g_strdup_printf("%s.new", sidecar);
    g_mkdir(tmp, 0700); /* in the way */
    open_image();
    g_assert_false(activity_log_begin(test_node("a"), GENERATION, false, &err));
    g_assert_nonnull(strstr(err->message, "a.raw.colo-bitmap"));
    write_at(0, 4096);
    g_assert_cmpint(g_access(sidecar, F_OK), !=, 0);
    g_assert_null(activity_log_generation(activity_log_of(test_node("a"))));
    g_rmdir(tmp);
    log_begin(GENERATION);
    write_at(0, 4096);
    g_assert_cmpstr(activity_log_generation(activity_log_of(test_node("a"))), ==, GENERATION);
    end();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    seed = g_getenv("COLO_SEED") ? strtoul(g_getenv("COLO_SEED"), NULL, 0)
                                 : g_random_int();
    g_test_message("seed %u", seed);
    g_test_add_func("/activity-log/death-at-any-moment", test_death_at_any_moment);
    g_test_add_func("/activity-log/reopened", test_reopened);
    g_test_add_func("/activity-log/damaged", test_damaged);
    g_test_add_func("/activity-log/steady-writers-wait-once", test_steady_writers_wait_once);
    g_test_add_func("/activity-log/no-room", test_no_room);
    return g_test_run();
}
