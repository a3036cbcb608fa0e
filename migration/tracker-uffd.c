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
 * A scan looks at each page's entry, about 0.7 ms for a GiB, in the pause. RAM of more than
 * HELP_PAGES is walked by two threads that take one chunk after another: a helper that gets
 * no core costs nothing. The helper ("colo-scan") notes what it finds, and what it had no room
 * for; the first reports both after its own.
 *
 * Limit: writes through other mappings of the memfd (our own) are invisible, and so are
 * punched holes (RULES 5: the memfd is sealed against them). In huge pages the unit is the
 * huge page: all of its small ones are reported.
 */
#include "migration/tracker-private.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
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

#define HELP_PAGES (1ull << 30 >> COLO_PAGE_SHIFT)
#define HELPER_RUNS (4 * TRACKER_BATCH)
#define CHUNK_PAGES (64ull << 20 >> COLO_PAGE_SHIFT)

/* The helper of a scan. */
typedef struct Helper {
    GThread *thread;
    GMutex lock; /* guards wanted, done and quit */
    GCond cond;
    bool wanted, done, quit;
    gint chunk; /* the next that nobody has taken; atomic */
    uint64_t left, left_end; /* pages of its last chunk that it had no room for */
    int error;     /* errno */
    unsigned n;
    PageRun runs[HELPER_RUNS];
    struct scan_region regions[TRACKER_BATCH];
} Helper;

typedef struct Uffd {
    int uffd, pagemap;
    struct scan_region regions[TRACKER_BATCH];
    Helper *helper; /* NULL: one thread does it all */
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
static uint64_t scan_step(const Uffd *u, struct scan_region *regions, uint64_t at,
                          uint64_t end, int *n)
{
    struct scan_arg arg = {
        .size = sizeof(arg),
        .flags = SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
        .start = at,
        .end = end,
        .vec = (uint64_t)(uintptr_t)regions,
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

static void helper_start(Tracker *t);
static void helper_stop(Helper *h);

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
    if (!scan_step(u, u->regions, b->addr, b->addr + b->page_size, &n)) {
        colo_error_set_errno(errp, errno, "PAGEMAP_SCAN (Linux 6.7 or newer)");
        return false;
    }
    helper_start(t);
    return true;
}

static void close_uffd(Tracker *t)
{
    Uffd *u = t->state;

    if (u) {
        helper_stop(u->helper);
    }
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

typedef void (*TakeFunc)(void *opaque, uint64_t first, uint64_t count);

/* Hand pages [@page, @end) of the row that were written to @take, while there is @room for
 * another batch: where it stopped, or -1 with errno. */
static int64_t walk(Tracker *t, struct scan_region *regions, uint64_t page, uint64_t end,
                    bool (*room)(void *opaque), TakeFunc take, void *opaque)
{
    const Uffd *u = t->state;

    while (page < end && room(opaque)) {
        const RamBlock *b = ram_map_block(t->map, page);
        uint64_t stop = MIN(end, b->first + b->pages);
        uint64_t at = b->addr + ((page - b->first) << COLO_PAGE_SHIFT);
        int n;
        uint64_t next = scan_step(u, regions, at,
                                  b->addr + ((stop - b->first) << COLO_PAGE_SHIFT), &n);
        if (!next) {
            return -1;
        }
        for (int k = 0; k < n; k++) {
            const struct scan_region *r = &regions[k];
            take(opaque, b->first + ((r->start - b->addr) >> COLO_PAGE_SHIFT),
                 (r->end - r->start) >> COLO_PAGE_SHIFT);
        }
        page = b->first + ((next - b->addr) >> COLO_PAGE_SHIFT);
    }
    return (int64_t)page;
}

static bool always(void *opaque)
{
    return true;
}

static void report(void *opaque, uint64_t first, uint64_t count)
{
    tracker_report(opaque, first, count);
}

static bool helper_has_room(void *opaque)
{
    const Helper *h = opaque;

    return h->n + TRACKER_BATCH <= HELPER_RUNS;
}

static void helper_note(void *opaque, uint64_t first, uint64_t count)
{
    Helper *h = opaque;

    h->runs[h->n++] = (PageRun){first, count};
}

/* The next chunk that nobody has taken; false: there is none. */
static bool take_chunk(const Tracker *t, Helper *h, uint64_t *first, uint64_t *end)
{
    *first = (uint64_t)g_atomic_int_add(&h->chunk, 1) * CHUNK_PAGES;
    *end = MIN(*first + CHUNK_PAGES, t->map->pages);
    return *first < t->map->pages;
}

static void help(Tracker *t, Helper *h)
{
    uint64_t first, end;

    while (helper_has_room(h) && take_chunk(t, h, &first, &end)) {
        int64_t next = walk(t, h->regions, first, end, helper_has_room, helper_note, h);
        if (next < 0) {
            h->error = errno;
            return;
        }
        h->left = (uint64_t)next;
        h->left_end = end;
    }
}

static gpointer helper_thread(gpointer opaque)
{
    Tracker *t = opaque;
    Helper *h = ((Uffd *)t->state)->helper;

    g_mutex_lock(&h->lock);
    for (;;) {
        while (!h->wanted && !h->quit) {
            g_cond_wait(&h->cond, &h->lock);
        }
        if (h->quit) {
            break;
        }
        h->wanted = false;
        g_mutex_unlock(&h->lock);
        help(t, h);
        g_mutex_lock(&h->lock);
        h->done = true;
        g_cond_signal(&h->cond);
    }
    g_mutex_unlock(&h->lock);
    return NULL;
}

static void helper_start(Tracker *t)
{
    Uffd *u = t->state;

    if (t->map->pages <= HELP_PAGES || g_get_num_processors() < 2 ||
        t->map->blocks[0].page_size > CHUNK_PAGES << COLO_PAGE_SHIFT) {
        return;
    }
    Helper *h = u->helper = g_new(Helper, 1);
    memset(h, 0, sizeof(*h)); /* no first touch in a pause */
    h->done = true;
    g_mutex_init(&h->lock);
    g_cond_init(&h->cond);
    h->thread = g_thread_new("colo-scan", helper_thread, t);
}

static void helper_wake(Helper *h, bool quit)
{
    g_mutex_lock(&h->lock);
    h->n = 0;
    h->left = h->left_end = 0;
    h->error = 0;
    g_atomic_int_set(&h->chunk, 0);
    h->wanted = !quit;
    h->quit = quit;
    h->done = false;
    g_cond_signal(&h->cond);
    g_mutex_unlock(&h->lock);
}

static void helper_stop(Helper *h)
{
    if (h) {
        helper_wake(h, true);
        g_thread_join(h->thread);
        g_mutex_clear(&h->lock);
        g_cond_clear(&h->cond);
        g_free(h);
    }
}

/* All chunks are taken: wait for the one in the helper's hands, unless it never came to it, and
 * report what it found. */
static int64_t helper_finish(Tracker *t, Helper *h)
{
    Uffd *u = t->state;

    g_mutex_lock(&h->lock);
    if (h->wanted) {
        h->wanted = false; /* it had no core: let it sleep */
        h->done = true;
    }
    while (!h->done) {
        g_cond_wait(&h->cond, &h->lock);
    }
    g_mutex_unlock(&h->lock);
    for (unsigned i = 0; i < h->n; i++) {
        tracker_report(t, h->runs[i].first, h->runs[i].count);
    }
    if (h->error) {
        errno = h->error;
        return -1;
    }
    return walk(t, u->regions, h->left, h->left_end, always, report, t);
}

static int64_t scan_uffd(Tracker *t, bool stopped, GError **errp)
{
    Uffd *u = t->state;
    uint64_t first, end;
    int64_t r = 0;

    if (!u->helper) {
        r = walk(t, u->regions, 0, t->map->pages, always, report, t);
    } else {
        helper_wake(u->helper, false);
        while (r >= 0 && take_chunk(t, u->helper, &first, &end)) {
            r = walk(t, u->regions, first, end, always, report, t);
        }
        int e = errno;
        int64_t other = helper_finish(t, u->helper);
        errno = r < 0 ? e : errno;
        r = r < 0 ? r : other;
    }
    if (r < 0) {
        colo_error_set_errno(errp, errno, "PAGEMAP_SCAN of the emulator's memory");
        return -1;
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
