/*
 * Dirty page tracking: userfaultfd write protection, scanned with PAGEMAP_SCAN.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A userfaultfd protects the address space of the process that creates it, so the child
 * has to: we stop it with ptrace at a system call, let it execute userfaultfd(2), take
 * the descriptor with pidfd_getfd(2) and close the child's copy (remote.c). From then on the
 * kernel lifts the protection of a page at its first write by itself (WP_ASYNC) and
 * PAGEMAP_SCAN reports and re-protects such pages in one step. The child runs no code of
 * ours and notices nothing but about a microsecond for each page's first write.
 *
 * Limit: writes through other mappings of the memfd (our own) are invisible, and so are
 * punched holes (RULES 5: the memfd is sealed against them). In huge pages the unit is the
 * huge page: all of its small ones are reported.
 */
#include "migration/tracker-private.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "migration/remote.h"
#include "util/error.h"

/* Kernel interfaces newer than Debian 12's headers (linux/fs.h 6.7, userfaultfd.h 6.7). */
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define SCAN_PAGE_WRITTEN (1 << 1)
#define SCAN_WP_MATCHING (1 << 0)
#define SCAN_CHECK_WPASYNC (1 << 1)
struct scan_region {
    uint64_t start, end, categories;
};
struct scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define IOCTL_PAGEMAP_SCAN _IOWR('f', 16, struct scan_arg)

typedef struct Uffd {
    int uffd, pagemap;
    struct scan_region regions[TRACKER_BATCH];
} Uffd;

static int remote_userfaultfd(pid_t pid, GError **errp)
{
    const long args[6] = {O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY};
    int local = -1;

    if (!remote_stop(pid, errp)) {
        return -1;
    }
    long fd = remote_call(pid, SYS_userfaultfd, args);
    if (fd >= 0) {
        const long close_args[6] = {fd};
        local = remote_take_fd(pid, (int)fd, errp);
        remote_call(pid, SYS_close, close_args);
    } else {
        colo_error_set_errno(errp, (int)-fd, "userfaultfd in the emulator");
    }
    remote_release(pid);
    return local;
}

static uint64_t block_size(const RamBlock *b)
{
    return b->pages << COLO_PAGE_SHIFT;
}

static bool register_blocks(Tracker *t, Uffd *u, GError **errp)
{
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED |
                    UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP,
    };
    if (ioctl(u->uffd, UFFDIO_API, &api) < 0) {
        colo_error_set_errno(errp, errno,
                             "userfaultfd without asynchronous write protection "
                             "(Linux 6.7 or newer is needed on both hosts)");
        return false;
    }
    for (unsigned i = 0; i < t->map->n; i++) {
        const RamBlock *b = &t->map->blocks[i];
        struct uffdio_register r = {
            .range = {b->addr, block_size(b)},
            .mode = UFFDIO_REGISTER_MODE_WP,
        };
        if (ioctl(u->uffd, UFFDIO_REGISTER, &r) < 0) {
            colo_error_set_errno(errp, errno, "userfaultfd: register RAM block '%s'", b->name);
            return false;
        }
    }
    return true;
}

/* One step over [@at, @end): the end of what was walked, or 0 with errno. */
static uint64_t scan_step(Uffd *u, uint64_t at, uint64_t end, int *n)
{
    struct scan_arg arg = {
        .size = sizeof(arg),
        .flags = SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
        .start = at,
        .end = end,
        .vec = (uint64_t)(uintptr_t)u->regions,
        .vec_len = TRACKER_BATCH,
        .category_mask = SCAN_PAGE_WRITTEN,
        .return_mask = SCAN_PAGE_WRITTEN,
    };

    do {
        *n = ioctl(u->pagemap, IOCTL_PAGEMAP_SCAN, &arg);
    } while (*n < 0 && errno == EINTR);
    if (*n >= 0 && arg.walk_end <= at) {
        errno = EIO;
        *n = -1;
    }
    return *n < 0 ? 0 : arg.walk_end;
}

static bool open_uffd(Tracker *t, GError **errp)
{
    Uffd *u = t->state = g_new0(Uffd, 1);
    g_autofree char *path = g_strdup_printf("/proc/%d/pagemap", (int)t->pid);
    int n;

    u->uffd = u->pagemap = -1;
    u->pagemap = open(path, O_RDONLY | O_CLOEXEC);
    if (u->pagemap < 0) {
        colo_error_set_errno(errp, errno, "%s", path);
        return false;
    }
    u->uffd = remote_userfaultfd(t->pid, errp);
    if (u->uffd < 0 || !register_blocks(t, u, errp)) {
        return false;
    }
    /* A walk over nothing: only whether the kernel has it. */
    const RamBlock *b = &t->map->blocks[0];
    if (!scan_step(u, b->addr, b->addr + b->page_size, &n)) {
        colo_error_set_errno(errp, errno, "PAGEMAP_SCAN (Linux 6.7 or newer)");
        return false;
    }
    return true;
}

static void close_uffd(Tracker *t)
{
    Uffd *u = t->state;

    if (u && u->uffd >= 0) {
        close(u->uffd);
    }
    if (u && u->pagemap >= 0) {
        close(u->pagemap);
    }
    g_free(u);
}

static bool protect(Tracker *t, bool on, GError **errp)
{
    const Uffd *u = t->state;

    for (unsigned i = 0; i < t->map->n; i++) {
        const RamBlock *b = &t->map->blocks[i];
        struct uffdio_writeprotect wp = {
            .range = {b->addr, block_size(b)},
            .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
        };
        int r;
        do {
            r = ioctl(u->uffd, UFFDIO_WRITEPROTECT, &wp);
        } while (r < 0 && errno == EAGAIN);
        if (r < 0) {
            colo_error_set_errno(errp, errno, "userfaultfd: write-protect RAM block '%s'",
                                 b->name);
            return false;
        }
    }
    return true;
}

static bool start_uffd(Tracker *t, GError **errp)
{
    return protect(t, true, errp);
}

static void stop_uffd(Tracker *t)
{
    protect(t, false, NULL);
}

static int64_t scan_uffd(Tracker *t, bool stopped, GError **errp)
{
    Uffd *u = t->state;

    for (unsigned i = 0; i < t->map->n; i++) {
        const RamBlock *b = &t->map->blocks[i];
        uint64_t at = b->addr, end = at + block_size(b);
        while (at < end) {
            int n;
            uint64_t next = scan_step(u, at, end, &n);
            if (!next) {
                colo_error_set_errno(errp, errno, "PAGEMAP_SCAN of RAM block '%s'", b->name);
                return -1;
            }
            for (int k = 0; k < n; k++) {
                const struct scan_region *r = &u->regions[k];
                tracker_report(t, b->first + ((r->start - b->addr) >> COLO_PAGE_SHIFT),
                               (r->end - r->start) >> COLO_PAGE_SHIFT);
            }
            at = next;
        }
    }
    return 0;
}

const TrackerClass tracker_uffd = {
    .name = "uffd-wp",
    .wish = "uffd",
    .open = open_uffd,
    .start = start_uffd,
    .stop = stop_uffd,
    .scan = scan_uffd,
    .close = close_uffd,
};
