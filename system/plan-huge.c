/*
 * Huge pages of guest RAM: had before the emulator starts, and waited for.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A side that was killed is gone before its memory is (util/mm-keeper.c, and an emulator of
 * many GiB has its own end), and a service manager starts it again at once. With ordinary pages nobody
 * notices; of huge pages there are often just as many as the guest has.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "system/plan.h"
#include "util/error.h"
#include "util/trace.h"

#define WAIT_US (10 * G_USEC_PER_SEC)
#define LOOK_US (20 * 1000)

/* A number of this machine's huge pages of @size; 0 if it is not told. */
static uint64_t pages_of(const char *what, uint64_t size)
{
    g_autofree char *path = g_strdup_printf(
        "/sys/kernel/mm/hugepages/hugepages-%" G_GUINT64_FORMAT "kB/%s", size >> 10, what);
    g_autofree char *text = NULL;

    return g_file_get_contents(path, &text, NULL, NULL) ? g_ascii_strtoull(text, NULL, 10) : 0;
}

/* A shared mapping reserves its pages for the file, and they stay reserved without it. */
static bool reserve(const MigrationMemory *pm)
{
    void *p = mmap(NULL, pm->size, PROT_READ | PROT_WRITE, MAP_SHARED, pm->fd, 0);

    if (p == MAP_FAILED) {
        return false;
    }
    munmap(p, pm->size);
    return true;
}

bool plan_reserve_huge(const MigrationMemory *pm, GError **errp)
{
    uint64_t wanted = pm->size / pm->page_size;
    int64_t end = g_get_monotonic_time() + WAIT_US;
    bool told = false;

    while (!reserve(pm)) {
        int e = errno;
        uint64_t total = pages_of("nr_hugepages", pm->page_size),
                 may = total + pages_of("nr_overcommit_hugepages", pm->page_size);
        if (e != ENOMEM || wanted > may || g_get_monotonic_time() >= end) {
            uint64_t open = pages_of("free_hugepages", pm->page_size),
                     promised = pages_of("resv_hugepages", pm->page_size);
            colo_error_set(errp, "%" G_GUINT64_FORMAT " huge pages of %" G_GUINT64_FORMAT
                           " KiB are needed, and of %" G_GUINT64_FORMAT " of this host %"
                           G_GUINT64_FORMAT " are free (%s): raise vm.nr_hugepages (or the "
                           "nr_hugepages of their size), or end who has them",
                           wanted, pm->page_size >> 10, total,
                           open > promised ? open - promised : 0, g_strerror(e));
            return false;
        }
        if (!told) {
            told = true;
            colo_report("waiting for %" G_GUINT64_FORMAT " huge pages of %" G_GUINT64_FORMAT
                        " KiB: what has just ended may still have them", wanted,
                        pm->page_size >> 10);
        }
        g_usleep(LOOK_US);
    }
    return true;
}
