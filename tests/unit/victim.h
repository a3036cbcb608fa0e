/*
 * A process of the test's own, to be killed.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef TESTS_UNIT_VICTIM_H
#define TESTS_UNIT_VICTIM_H

#include <glib.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

static inline gpointer victim_idle(gpointer opaque)
{
    for (;;) {
        pause();
    }
    return NULL;
}

/* In the victim: one thread more, which does nothing. */
static inline void victim_thread(const char *name)
{
    g_thread_unref(g_thread_new(name, victim_idle, NULL));
}

/* Starts a process that does but @be, which does not return, and dies with the test. @fd and
 * @ours are the two ends of a socket. */
static inline pid_t victim_start(void (*be)(int fd, const void *opaque), const void *opaque,
                                 int *ours)
{
    int sv[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), ==, 0);
    pid_t pid = fork();
    g_assert_cmpint(pid, >=, 0);
    if (pid == 0) {
        close(sv[0]);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        be(sv[1], opaque);
        _exit(2);
    }
    close(sv[1]);
    *ours = sv[0];
    return pid;
}

#endif
