/*
 * Threads that a pause of the guest waits for go first while it lasts.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A pause is a chain of short pieces of work in five threads of two processes: ours for
 * checkpoints, the emulator's that reads its monitors, its main one, our disk's, our scan's
 * helper. Each is woken by the one before. On a busy host a woken thread waits for its turn, up
 * to some milliseconds, while the guest stands still and pays for it. Two means:
 *
 * - real-time (SCHED_RR, the lowest) from `stop` to `cont`: it preempts whatever runs. Needs
 *   CAP_SYS_NICE, or RLIMIT_RTPRIO and a kernel that lets it be given back; that is tried once,
 *   with this thread. All was had before is restored at the end of the pause.
 * - short slices (Linux 6.12 and newer), for good: a fair thread with a shorter slice than the
 *   one that runs preempts it when it is woken, as long as it had less than its share. Needs
 *   no right and takes nobody's share.
 *
 * vCPUs are not raised. The emulator names its threads because we start it with
 * debug-threads=on; main has its process' id.
 *
 * Limit: a raised thread that needs a lock of one that is not still waits for that one.
 */
#include "migration/priority.h"

#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/threads.h"
#include "util/trace.h"

#define THREADS_MAX 8
#define SLICE_NS (100 * 1000) /* the shortest that Linux gives */
#define RESET_ON_FORK 1

static const char *const ours[] = {"block", "colo-scan", NULL};
static const char *const theirs[] = {"IO mon_iothread", NULL};

/* As the kernel has it; the C library of Debian 12 has no wrapper. */
typedef struct SchedAttr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
} SchedAttr;

typedef struct Raised {
    pid_t tid;
    bool raised;
    SchedAttr before; /* while @raised */
} Raised;

struct Priority {
    bool real_time;
    unsigned n;
    Raised threads[THREADS_MAX];
};

static bool get_attr(pid_t tid, SchedAttr *a)
{
    memset(a, 0, sizeof(*a));
    return syscall(SYS_sched_getattr, tid, a, sizeof(*a), 0) == 0;
}

static bool set_attr(pid_t tid, SchedAttr *a)
{
    a->size = sizeof(*a);
    return syscall(SYS_sched_setattr, tid, a, 0) == 0;
}

static bool is_fair(const SchedAttr *a)
{
    return a->policy == SCHED_OTHER || a->policy == SCHED_BATCH || a->policy == SCHED_IDLE;
}

static void add_thread(Priority *p, pid_t tid)
{
    if (p->n < THREADS_MAX) {
        p->threads[p->n++].tid = tid;
    }
}

static void add_named(Priority *p, pid_t pid, const char *const *names)
{
    pid_t tids[THREADS_MAX];
    unsigned n = threads_named(pid, names, tids, THREADS_MAX);

    for (unsigned i = 0; i < n; i++) {
        add_thread(p, tids[i]);
    }
}

static void ask_short_slice(pid_t tid)
{
    SchedAttr a;

    if (get_attr(tid, &a) && is_fair(&a)) {
        a.runtime = SLICE_NS; /* older kernels ignore it */
        set_attr(tid, &a);
    }
}

static void raise_thread(Raised *t)
{
    SchedAttr rt = {.policy = SCHED_RR, .priority = 1, .flags = RESET_ON_FORK};

    rt.priority = (uint32_t)sched_get_priority_min(SCHED_RR);
    t->raised = get_attr(t->tid, &t->before) && is_fair(&t->before) && set_attr(t->tid, &rt);
}

/* Whether it is as before, but for being marked as reset at a fork. */
static bool restore_thread(Raised *t)
{
    SchedAttr a = t->before;

    if (!t->raised) {
        return true;
    }
    t->raised = false;
    if (set_attr(t->tid, &a)) {
        return true;
    }
    int e = errno;
    a.flags |= RESET_ON_FORK; /* taking that back needs CAP_SYS_NICE */
    set_attr(t->tid, &a);
    return e == ESRCH;
}

Priority *priority_new(pid_t child)
{
    Priority *p = g_new0(Priority, 1);

    add_thread(p, (pid_t)syscall(SYS_gettid));
    add_thread(p, child);
    add_named(p, getpid(), ours);
    add_named(p, child, theirs);
    for (unsigned i = 0; i < p->n; i++) {
        ask_short_slice(p->threads[i].tid);
    }
    raise_thread(&p->threads[0]);
    p->real_time = p->threads[0].raised;
    p->real_time &= restore_thread(&p->threads[0]);
    colo_trace(migration_priority, "%s, %u threads", priority_kind(p), p->n);
    return p;
}

void priority_free(Priority *p)
{
    g_free(p);
}

const char *priority_kind(const Priority *p)
{
    return p->real_time ? "real-time" : "fair";
}

void priority_raise(Priority *p)
{
    for (unsigned i = 0; i < p->n && p->real_time; i++) {
        raise_thread(&p->threads[i]);
    }
}

void priority_restore(Priority *p)
{
    for (unsigned i = 0; i < p->n; i++) {
        restore_thread(&p->threads[i]);
    }
}
