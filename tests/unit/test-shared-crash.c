/*
 * A shared disk's owner dies: a process of its own, killed while it applies a checkpoint.
 * What the image then is, without the log: one of those that the guest could have left.
 * Sources: this file. Dependencies: util, block, libnbd, liburing, gio_unix.
 * COLO_SEED=n repeats a run.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "replication-pair.h"

#include <sys/wait.h>

#define SECTORS 256 /* of the disk that are written: a small place, many overwrites */
#define WRITES 400

/* A write of @sectors at @at, with @number in each; @group: flushes of the guest before it. */
typedef struct Written {
    uint32_t at, sectors, number, group;
} Written;

/* The same in both processes. */
static GArray *history(uint32_t seed)
{
    g_autoptr(GRand) r = g_rand_new_with_seed(seed);
    GArray *h = g_array_new(FALSE, FALSE, sizeof(Written));
    uint32_t group = 0;

    for (uint32_t i = 0; i < WRITES; i++) {
        Written w = {.at = g_rand_int_range(r, 0, SECTORS - 8), .number = i + 1};

        w.sectors = g_rand_int_range(r, 1, 9);
        group += g_rand_int_range(r, 0, 4) == 0;
        w.group = group;
        g_array_append_val(h, w);
    }
    return h;
}

static void one_write(const Written *w)
{
    uint8_t buf[8 * 512];

    for (uint32_t s = 0; s < w->sectors * 128; s++) {
        memcpy(buf + 4 * s, &w->number, 4);
    }
    g_assert_cmpint(test_io("colo-disk0", BLOCK_OP_WRITE, w->at * 512, w->sectors * 512, buf),
                    ==, 0);
}

/* The owner's process: writes all of the history, has it committed, and applies until it is
 * killed. */
static void owner(uint32_t seed, const char *image)
{
    g_autoptr(GArray) h = history(seed);
    BlockBarrier b;
    uint32_t group = 0;
    char c = 'x';
    g_autofree char *dir = g_path_get_dirname(image);

    g_setenv("TMPDIR", dir, TRUE); /* the test removes it */
    Pair *p = pair_new(seed, "shared");
    g_free(test_run("ln %s %s", p->image, image));
    g_assert_cmpint(test_io("colo-disk0", BLOCK_OP_WRITE, 0, 512, p->pvm), ==, 0);
    block_primary_start(note, p, NULL);
    block_secondary_start(note, p, NULL);
    block_primary_log();
    for (guint i = 0; i < h->len; i++) {
        const Written *w = &g_array_index(h, Written, i);

        if (w->group != group) {
            group = w->group;
            g_assert_cmpint(test_io("colo-disk0", BLOCK_OP_FLUSH, 0, 0, NULL), ==, 0);
        }
        one_write(w);
    }
    g_assert_cmpuint(block_primary_barriers(&b, 1), ==, 1);
    if (write(STDOUT_FILENO, &c, 1) == 1) {
        block_primary_loaded(&b, 1);
    }
    pause();
}

/* Whether @found may be there after a loss of power in group @g: the last of an older group,
 * or any of the group itself. */
static bool possible(GArray *h, uint32_t sector, uint32_t found, uint32_t g)
{
    uint32_t older = 0;

    for (guint i = 0; i < h->len; i++) {
        const Written *w = &g_array_index(h, Written, i);

        if (sector < w->at || sector >= w->at + w->sectors) {
            continue;
        }
        if (w->group < g) {
            older = w->number;
        } else if (w->group == g && w->number == found) {
            return true;
        }
    }
    return found == older;
}

static void check_order(GArray *h, const char *image)
{
    g_autofree uint8_t *disk = g_malloc(SECTORS * 512);
    uint32_t groups = g_array_index(h, Written, h->len - 1).group, g, s;

    test_file_read(image, disk, SECTORS * 512);
    for (s = 0; s < SECTORS; s++) {
        /* A sector is whole. */
        g_assert_cmpint(memcmp(disk + s * 512, disk + s * 512 + 4, 508), ==, 0);
    }
    for (g = 0; g <= groups + 1; g++) {
        for (s = 0; s < SECTORS; s++) {
            uint32_t found;

            memcpy(&found, disk + s * 512, 4);
            if (!possible(h, s, found, g)) {
                break;
            }
        }
        if (s == SECTORS) {
            g_test_message("in order: within group %u of %u", g, groups);
            return;
        }
    }
    g_error("the image is none that the guest could have left");
}

static void kill_at(uint32_t seed, unsigned us)
{
    g_autofree char *dir = g_dir_make_tmp("colo-crash-XXXXXX", NULL);
    g_autofree char *image = g_build_filename(dir, "image", NULL);
    g_autofree char *number = g_strdup_printf("%u", seed);
    g_autoptr(GArray) h = history(seed);
    const char *argv[] = {"/proc/self/exe", "--owner", number, image, NULL};
    g_autoptr(GError) err = NULL;
    int out;
    GPid pid;
    char c;

    g_spawn_async_with_pipes(NULL, (char **)argv, NULL, G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL,
                             &pid, NULL, &out, NULL, &err);
    g_assert_no_error(err);
    g_assert_cmpint(read(out, &c, 1), ==, 1);
    g_usleep(us);
    kill(pid, SIGKILL);
    g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
    close(out);
    check_order(h, image);
    test_remove(dir);
}

/* Both hosts die at once: what remains is the image. */
static void test_both(void)
{
    for (int i = 0; i < 25; i++) {
        uint32_t seed = test_seed() + i;

        g_test_message("seed %u", seed);
        kill_at(seed, seed % 25 * 3000);
    }
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "--owner")) {
        owner(strtoul(argv[2], NULL, 10), argv[3]);
        return 0;
    }
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/block/shared-crash/both", test_both);
    return g_test_run();
}
