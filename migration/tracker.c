/*
 * Dirty page tracking: userfaultfd write protection, scanned with PAGEMAP_SCAN.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A userfaultfd protects the address space of the process that creates it, so the child
 * has to: we stop it with ptrace at a system call, let it execute userfaultfd(2), take
 * the descriptor with pidfd_getfd(2) and close the child's copy. From then on the kernel
 * lifts the protection of a page at its first write by itself (WP_ASYNC) and
 * PAGEMAP_SCAN reports and re-protects such pages in one step. The child runs no code of
 * ours and notices nothing but about a microsecond for each page's first write.
 *
 * Invariant: a write that happens before a scan begins is reported by that scan or was
 * by an earlier one; a write during a scan is reported by it or by the next.
 * Limit: writes through other mappings of the memfd (our own) are invisible, and so are
 * punched holes (RULES 5: the memfd is sealed against them).
 */
#include "migration/tracker.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/error.h"
#include "util/trace.h"

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
#define SCAN_BATCH 4096
#define MAPPINGS_MAX 16

/* One mapping of the memfd in the child. */
typedef struct Mapping {
    uint64_t addr, len, offset;
} Mapping;

struct Tracker {
    pid_t pid;
    int uffd;
    int pagemap;
    Mapping maps[MAPPINGS_MAX];
    unsigned n_maps;
    struct scan_region regions[SCAN_BATCH];
    PageRun runs[SCAN_BATCH];
};

static bool find_mappings(Tracker *t, int ram_fd, uint64_t ram_size, GError **errp)
{
    struct stat st;
    if (fstat(ram_fd, &st) < 0) {
        colo_error_set_errno(errp, errno, "guest RAM memfd");
        return false;
    }
    g_autofree char *path = g_strdup_printf("/proc/%d/maps", (int)t->pid);
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, errp)) {
        return false;
    }
    uint64_t total = 0;
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **l = lines; *l && t->n_maps < MAPPINGS_MAX; l++) {
        unsigned long start, end, off, ino;
        unsigned maj, min;
        char perms[8];
        if (sscanf(*l, "%lx-%lx %7s %lx %x:%x %lu", &start, &end, perms, &off, &maj, &min,
                   &ino) != 7 ||
            ino != st.st_ino || makedev(maj, min) != st.st_dev) {
            continue;
        }
        t->maps[t->n_maps++] = (Mapping){start, end - start, off};
        total += end - start;
    }
    if (total != ram_size) {
        colo_error_set(errp,
                       "the emulator maps %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT
                       " bytes of guest RAM: cannot track it",
                       total, ram_size);
        return false;
    }
    return true;
}

#ifdef __x86_64__
/* Run one system call in the stopped child by re-executing the "syscall" instruction that
 * it was interrupted in. Returns the call's result, or -errno of ours. */
static long remote_syscall(pid_t pid, long nr, long a, long b)
{
    struct user_regs_struct old, regs;
    int status;

    if (ptrace(PTRACE_GETREGS, pid, 0, &old) < 0) {
        return -errno;
    }
    errno = 0;
    long word = ptrace(PTRACE_PEEKTEXT, pid, old.rip - 2, 0);
    if (errno || (word & 0xffff) != 0x050f) {
        return -EAGAIN; /* not at a system call: let it run on and try again */
    }
    regs = old;
    regs.rip = old.rip - 2;
    regs.rax = nr;
    regs.orig_rax = -1; /* no restart of the interrupted call on top of ours */
    regs.rdi = a;
    regs.rsi = b;
    if (ptrace(PTRACE_SETREGS, pid, 0, &regs) < 0 ||
        ptrace(PTRACE_SINGLESTEP, pid, 0, 0) < 0 || waitpid(pid, &status, __WALL) < 0 ||
        !WIFSTOPPED(status) || ptrace(PTRACE_GETREGS, pid, 0, &regs) < 0) {
        return -errno;
    }
    /* The interrupted call's own -ERESTART* result, with orig_rax, makes it start over. */
    if (ptrace(PTRACE_SETREGS, pid, 0, &old) < 0) {
        return -errno;
    }
    return regs.rax;
}

static int take_remote_fd(pid_t pid, int remote, GError **errp)
{
    int pidfd = syscall(SYS_pidfd_open, pid, 0);
    int fd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, remote, 0);

    if (fd < 0) {
        colo_error_set_errno(errp, errno, "pidfd_getfd of the emulator's userfaultfd");
    }
    if (pidfd >= 0) {
        close(pidfd);
    }
    return fd;
}

static int remote_userfaultfd(pid_t pid, GError **errp)
{
    int status, local = -1;

    if (ptrace(PTRACE_SEIZE, pid, 0, 0) < 0) {
        colo_error_set_errno(errp, errno,
                             "ptrace of the emulator (needed once, to track its dirty "
                             "pages; allow it: root, or kernel.yama.ptrace_scope <= 1 and "
                             "no seccomp or container rule against ptrace)");
        return -1;
    }
    long fd = -EAGAIN;
    for (int i = 0; i < 200 && fd == -EAGAIN; i++) {
        if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) < 0 ||
            waitpid(pid, &status, __WALL) < 0 || !WIFSTOPPED(status)) {
            fd = -errno;
            break;
        }
        fd = remote_syscall(pid, SYS_userfaultfd,
                            O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY, 0);
        if (fd == -EAGAIN) {
            ptrace(PTRACE_CONT, pid, 0, 0);
            g_usleep(2000);
        }
    }
    if (fd >= 0) {
        local = take_remote_fd(pid, (int)fd, errp);
        remote_syscall(pid, SYS_close, fd, 0);
    } else {
        colo_error_set_errno(errp, (int)-fd, "userfaultfd in the emulator");
    }
    ptrace(PTRACE_DETACH, pid, 0, 0);
    return local;
}
#else
static int remote_userfaultfd(pid_t pid, GError **errp)
{
    colo_error_set(errp, "dirty tracking: only x86-64 hosts are supported so far");
    return -1;
}
#endif

static bool register_mappings(Tracker *t, GError **errp)
{
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED |
                    UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP,
    };
    if (ioctl(t->uffd, UFFDIO_API, &api) < 0) {
        colo_error_set_errno(errp, errno,
                             "userfaultfd without asynchronous write protection "
                             "(Linux 6.7 or newer is needed on both hosts)");
        return false;
    }
    for (unsigned i = 0; i < t->n_maps; i++) {
        struct uffdio_register r = {
            .range = {t->maps[i].addr, t->maps[i].len},
            .mode = UFFDIO_REGISTER_MODE_WP,
        };
        if (ioctl(t->uffd, UFFDIO_REGISTER, &r) < 0) {
            colo_error_set_errno(errp, errno, "userfaultfd: register guest RAM");
            return false;
        }
    }
    return true;
}

Tracker *tracker_new(pid_t pid, int ram_fd, uint64_t ram_size, GError **errp)
{
    Tracker *t = g_new0(Tracker, 1);

    t->pid = pid;
    t->uffd = t->pagemap = -1;
    if (!find_mappings(t, ram_fd, ram_size, errp) ||
        (t->uffd = remote_userfaultfd(pid, errp)) < 0 || !register_mappings(t, errp)) {
        tracker_free(t);
        return NULL;
    }
    g_autofree char *path = g_strdup_printf("/proc/%d/pagemap", (int)pid);
    t->pagemap = open(path, O_RDONLY | O_CLOEXEC);
    if (t->pagemap < 0) {
        colo_error_set_errno(errp, errno, "%s", path);
        tracker_free(t);
        return NULL;
    }
    colo_trace(migration_tracker_new, "pid=%d maps=%u", (int)pid, t->n_maps);
    return t;
}

void tracker_free(Tracker *t)
{
    if (!t) {
        return;
    }
    if (t->uffd >= 0) {
        close(t->uffd);
    }
    if (t->pagemap >= 0) {
        close(t->pagemap);
    }
    g_free(t);
}

static bool protect(Tracker *t, bool on, GError **errp)
{
    for (unsigned i = 0; i < t->n_maps; i++) {
        struct uffdio_writeprotect wp = {
            .range = {t->maps[i].addr, t->maps[i].len},
            .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
        };
        int r;
        do {
            r = ioctl(t->uffd, UFFDIO_WRITEPROTECT, &wp);
        } while (r < 0 && errno == EAGAIN);
        if (r < 0) {
            colo_error_set_errno(errp, errno, "userfaultfd: write-protect guest RAM");
            return false;
        }
    }
    return true;
}

bool tracker_start(Tracker *t, GError **errp)
{
    return protect(t, true, errp);
}

void tracker_stop(Tracker *t)
{
    protect(t, false, NULL);
}

/* Hand over what one ioctl reported for mapping @m; returns the pages in it. */
static uint64_t report_regions(Tracker *t, const Mapping *m, unsigned n, TrackerFunc fn,
                               void *opaque)
{
    uint64_t pages = 0;

    for (unsigned i = 0; i < n; i++) {
        uint64_t off = t->regions[i].start - m->addr + m->offset;
        t->runs[i].first = off >> COLO_PAGE_SHIFT;
        t->runs[i].count = (t->regions[i].end - t->regions[i].start) >> COLO_PAGE_SHIFT;
        pages += t->runs[i].count;
    }
    if (n) {
        fn(t->runs, n, opaque);
    }
    return pages;
}

int64_t tracker_scan(Tracker *t, TrackerFunc fn, void *opaque, GError **errp)
{
    int64_t pages = 0;

    for (unsigned i = 0; i < t->n_maps; i++) {
        const Mapping *m = &t->maps[i];
        uint64_t at = m->addr;
        while (at < m->addr + m->len) {
            struct scan_arg arg = {
                .size = sizeof(arg),
                .flags = SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
                .start = at,
                .end = m->addr + m->len,
                .vec = (uint64_t)(uintptr_t)t->regions,
                .vec_len = SCAN_BATCH,
                .category_mask = SCAN_PAGE_WRITTEN,
                .return_mask = SCAN_PAGE_WRITTEN,
            };
            int n = ioctl(t->pagemap, IOCTL_PAGEMAP_SCAN, &arg);
            if (n < 0 && errno == EINTR) {
                continue;
            }
            if (n < 0 || arg.walk_end <= at) {
                colo_error_set_errno(errp, n < 0 ? errno : EIO,
                                     "PAGEMAP_SCAN of guest RAM (Linux 6.7 or newer)");
                return -1;
            }
            pages += report_regions(t, m, n, fn, opaque);
            at = arg.walk_end;
        }
    }
    return pages;
}

const char *tracker_name(Tracker *t)
{
    return "uffd-wp";
}
