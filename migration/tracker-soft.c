/*
 * Dirty page tracking: the kernel's soft-dirty bits.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Writing 4 to /proc/PID/clear_refs protects all pages of a process and clears bit 55 of
 * their entries in /proc/PID/pagemap; the first write to a page sets it again. Reading and
 * clearing are two steps, and a write between them would be lost. So bits are cleared only
 * while the guest stands still; a scan of a running guest reports everything since then.
 *
 * A page that is not there has no entry: written and then reclaimed, it is told as dirty
 * only while its entry keeps the bit. So an entry that is neither present nor swapped counts
 * as dirty if its file has data there that was not mapped: in doubt, a page is dirty.
 */
#include "migration/tracker-private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "util/error.h"

#define SOFT_DIRTY (1ull << 55)
#define PRESENT_OR_SWAPPED (3ull << 62)
#define READ_PAGES 8192

typedef struct Soft {
    int pagemap, clear;
    uint64_t entries[READ_PAGES];
} Soft;

static bool clear_bits(int fd)
{
    return pwrite(fd, "4", 1, 0) == 1;
}

/* Whether this kernel keeps the bits at all: without CONFIG_MEM_SOFT_DIRTY clear_refs takes
 * the 4 and does nothing. */
static bool kernel_has_it(GError **errp)
{
    g_autoptr(GError) err = NULL;
    int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    int refs = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    volatile uint8_t *page = mmap(NULL, COLO_PAGE_SIZE, PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t clean = SOFT_DIRTY, dirty = 0;
    bool ok = map >= 0 && refs >= 0 && page != MAP_FAILED;

    if (ok) {
        off_t at = (uintptr_t)page / COLO_PAGE_SIZE * 8;
        *page = 1;
        ok = clear_bits(refs) && pread(map, &clean, 8, at) == 8;
        *page = 2;
        ok = ok && pread(map, &dirty, 8, at) == 8;
        ok = ok && !(clean & SOFT_DIRTY) && (dirty & SOFT_DIRTY);
    }
    if (page != MAP_FAILED) {
        munmap((void *)page, COLO_PAGE_SIZE);
    }
    if (map >= 0) {
        close(map);
    }
    if (refs >= 0) {
        close(refs);
    }
    if (!ok) {
        colo_error_set(errp, "this kernel keeps no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)");
    }
    return ok;
}

static bool open_soft(Tracker *t, GError **errp)
{
    Soft *s = t->state = g_new0(Soft, 1);
    g_autofree char *map = g_strdup_printf("/proc/%d/pagemap", (int)t->pid);
    g_autofree char *refs = g_strdup_printf("/proc/%d/clear_refs", (int)t->pid);

    s->pagemap = s->clear = -1;
    if (!kernel_has_it(errp)) {
        return false;
    }
    for (unsigned i = 0; i < t->map->n; i++) {
        if (t->map->blocks[i].page_size != COLO_PAGE_SIZE) {
            colo_error_set(errp, "RAM block '%s' has huge pages, of which no soft-dirty bits "
                           "are kept", t->map->blocks[i].name);
            return false;
        }
    }
    s->pagemap = open(map, O_RDONLY | O_CLOEXEC);
    s->clear = open(refs, O_WRONLY | O_CLOEXEC);
    if (s->pagemap < 0 || s->clear < 0) {
        colo_error_set_errno(errp, errno, "%s", s->pagemap < 0 ? map : refs);
        return false;
    }
    return true;
}

static void close_soft(Tracker *t)
{
    Soft *s = t->state;

    if (s && s->pagemap >= 0) {
        close(s->pagemap);
    }
    if (s && s->clear >= 0) {
        close(s->clear);
    }
    g_free(s);
}

static bool start_soft(Tracker *t, GError **errp)
{
    Soft *s = t->state;

    if (!clear_bits(s->clear)) {
        colo_error_set_errno(errp, errno, "clear_refs of the emulator");
        return false;
    }
    return true;
}

static void stop_soft(Tracker *t)
{
}

/* Pages [@first, @end) of block @b, which hold data. */
static bool scan_range(Tracker *t, Soft *s, const RamBlock *b, uint64_t first, uint64_t end)
{
    while (first < end) {
        uint64_t n = MIN(end - first, READ_PAGES);
        uint64_t at = (b->addr >> COLO_PAGE_SHIFT) + (first - b->first);
        if (pread(s->pagemap, s->entries, n * 8, at * 8) != (ssize_t)(n * 8)) {
            return false;
        }
        for (uint64_t i = 0; i < n; i++) {
            if ((s->entries[i] & SOFT_DIRTY) || !(s->entries[i] & PRESENT_OR_SWAPPED)) {
                tracker_report(t, first + i, 1);
            }
        }
        first += n;
    }
    return true;
}

static int64_t scan_soft(Tracker *t, bool stopped, GError **errp)
{
    Soft *s = t->state;
    uint64_t first, end, at = 0;

    for (; ram_map_data(t->map, at, &first, &end); at = end) {
        if (!scan_range(t, s, ram_map_block(t->map, first), first, end)) {
            colo_error_set_errno(errp, errno, "pagemap of the emulator");
            return -1;
        }
    }
    return stopped && !start_soft(t, errp) ? -1 : 0;
}

const TrackerClass tracker_soft_dirty = {
    .name = "soft-dirty",
    .wish = "soft-dirty",
    .open = open_soft,
    .start = start_soft,
    .stop = stop_soft,
    .scan = scan_soft,
    .close = close_soft,
};
