/*
 * The emulator's death, before it is over.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An emulator that is killed gives its memory back first; its sockets close, and its parent hears
 * of it, when that is done: some 20 ms for 512 MiB of guest on an idle host, hundreds on a busy
 * one. util/mm-keeper.c has a way round that for ourselves, but not for another program.
 *
 * Yet only the last of its threads has the memory to give back. All others are gone at once, and
 * the kernel can tell of a thread's end (PIDFD_THREAD). Which one is the last nobody knows; so
 * two are watched, of which one is not the last. Both are such as live as long as QEMU
 * does: the first, and the one that reads QMP, known by its name. Either one's end is the
 * process' end.
 *
 * Whether it is one in order is in /proc: there the status of a process that ends as a whole is
 * seen as soon as it is certain. What cannot be seen there (rights, an old kernel) looks like 0,
 * as an end in order does, and is left to who waits for the process.
 */
#include "system/child-end.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/threads.h"
#include "util/trace.h"

#define THREAD_PIDFD O_EXCL /* PIDFD_THREAD; Debian 12 has no name for it */
#define WATCHED 2
#define STAT_EXIT_CODE 52 /* the field of /proc/PID/stat, from 1 */

/* Is there since our first word with it. */
static const char *const lasting[] = {"IO mon_iothread", NULL};

struct ChildEnd {
    pid_t pid;
    void (*died)(int wait_status);
    int fd[WATCHED];
    guint source[WATCHED];
};

/* As waitpid() would tell it; 0 if it is not known. */
static int wait_status(pid_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/stat", (int)pid);
    g_autofree char *text = NULL;

    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        return 0;
    }
    /* The second field is a name in brackets, which may have anything in it. */
    const char *p = strrchr(text, ')');
    for (int field = 2; p && field < STAT_EXIT_CODE; field++) {
        p = strchr(p + 1, ' ');
    }
    return p ? atoi(p) : 0;
}

static void close_all(ChildEnd *e)
{
    for (int i = 0; i < WATCHED; i++) {
        if (e->source[i]) {
            g_source_remove(e->source[i]);
            e->source[i] = 0;
        }
        if (e->fd[i] >= 0) {
            close(e->fd[i]);
            e->fd[i] = -1;
        }
    }
}

static gboolean thread_ended(gint fd, GIOCondition condition, gpointer opaque)
{
    ChildEnd *e = opaque;
    int status = wait_status(e->pid);

    colo_trace(system_child_ends, "status 0x%x", status);
    close_all(e);
    if (status != 0) {
        e->died(status);
    }
    return G_SOURCE_CONTINUE; /* it is removed */
}

static void watch(ChildEnd *e, int i, pid_t tid)
{
    e->fd[i] = syscall(SYS_pidfd_open, tid, THREAD_PIDFD); /* close-on-exec */
    if (e->fd[i] < 0) {
        colo_trace(system_child_unwatched, "thread %d: %s", (int)tid, g_strerror(errno));
        return;
    }
    e->source[i] = g_unix_fd_add_full(G_PRIORITY_HIGH, e->fd[i], G_IO_IN, thread_ended, e, NULL);
}

ChildEnd *child_end_watch(pid_t pid, void (*died)(int wait_status))
{
    ChildEnd *e = g_new0(ChildEnd, 1);
    pid_t other;

    e->pid = pid;
    e->died = died;
    e->fd[0] = e->fd[1] = -1;
    watch(e, 0, pid);
    if (threads_named(pid, lasting, &other, 1) == 1) {
        watch(e, 1, other);
    }
    return e;
}

void child_end_free(ChildEnd *e)
{
    if (e) {
        close_all(e);
        g_free(e);
    }
}
