/*
 * The death of a process with much memory is known before it is over, and an end in order is none.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <fcntl.h>
#include <glib.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "system/child-end.h"
#include "victim.h"

#define MEMORY (256u << 20)
#define TRIES 20

/* The test's own (main thread). */
static struct {
    int calls, status;
    bool early; /* and the process was not over */
    pid_t pid;
} seen;

/* Named as a thread of the emulator is; ends the process when it is told so. */
static void be_emulator(int fd, const void *opaque)
{
    char c = 'r';

    memset(mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), 1,
           MEMORY);
    victim_thread("IO mon_iothread");
    victim_thread("CPU 0/TCG");
    if (write(fd, &c, 1) != 1 || read(fd, &c, 1) != 1) {
        _exit(9);
    }
    exit(c);
}

static pid_t start(int *ours)
{
    pid_t pid = victim_start(be_emulator, NULL, ours);
    char c;

    g_assert_cmpint(read(*ours, &c, 1), ==, 1);
    return pid;
}

static void died(int wait_status)
{
    siginfo_t info = {0};

    seen.calls++;
    seen.status = wait_status;
    /* GLib may have reaped it in a thread of its own. */
    seen.early = waitid(P_PID, seen.pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
                 info.si_pid == 0;
}

static void reaped(GPid pid, gint wait_status, gpointer status)
{
    *(int *)status = wait_status;
}

static gboolean too_late(gpointer opaque)
{
    g_printerr("late: it did not end\n");
    exit(75);
}

/* Ends it by a signal, or with @status, and serves the main loop until it is reaped. */
static int end(int sig, char status)
{
    int fd, got = -1;

    memset(&seen, 0, sizeof(seen));
    seen.pid = start(&fd);
    g_autoptr(ChildEnd) e = child_end_watch(seen.pid, died);
    guint limit = g_timeout_add_seconds(60, too_late, NULL);
    g_child_watch_add(seen.pid, reaped, &got);
    if (sig) {
        kill(seen.pid, sig);
    } else {
        g_assert_cmpint(write(fd, &status, 1), ==, 1);
    }
    while (got == -1) {
        g_main_context_iteration(NULL, TRUE);
    }
    g_source_remove(limit);
    close(fd);
    return got;
}

static bool kernel_tells(void)
{
    int fd = syscall(SYS_pidfd_open, getpid(), O_EXCL);

    if (fd < 0) {
        g_test_skip("a kernel before 6.9: deaths are seen when they are over");
        return false;
    }
    close(fd);
    return true;
}

/* Its peer may be told while its memory is still being taken down. */
static void test_known_before_it_is_over(void)
{
    int early = 0;

    if (!kernel_tells()) {
        return;
    }
    for (int i = 0; i < TRIES && !early; i++) {
        int status = end(SIGKILL, 0);
        g_assert_true(WIFSIGNALED(status));
        /* Whoever reaps it at once may do so before it is asked. */
        g_assert_cmpint(seen.calls, <=, 1);
        if (seen.calls) {
            g_assert_cmpint(seen.status, ==, status);
        }
        early += seen.early;
    }
    if (!early) {
        g_printerr("late: each of %d deaths was known when it was over, not before\n", TRIES);
        exit(75);
    }
}

static void test_end_in_order_is_no_death(void)
{
    int status = end(0, 0);

    g_assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    g_assert_cmpint(seen.calls, ==, 0);
}

static void test_failure_is_a_death(void)
{
    int status = end(0, 3);

    g_assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 3);
    g_assert_cmpint(seen.calls, <=, 1);
    if (seen.calls) {
        g_assert_cmpint(seen.status, ==, status);
    }
}

static void test_nothing_after_free(void)
{
    int fd;

    memset(&seen, 0, sizeof(seen));
    seen.pid = start(&fd);
    child_end_free(child_end_watch(seen.pid, died));
    child_end_free(NULL);
    kill(seen.pid, SIGKILL);
    waitpid(seen.pid, NULL, 0);
    while (g_main_context_iteration(NULL, FALSE)) {
    }
    g_assert_cmpint(seen.calls, ==, 0);
    close(fd);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/child-end/known-before-it-is-over", test_known_before_it_is_over);
    g_test_add_func("/child-end/end-in-order-is-no-death", test_end_in_order_is_no_death);
    g_test_add_func("/child-end/failure-is-a-death", test_failure_is_a_death);
    g_test_add_func("/child-end/nothing-after-free", test_nothing_after_free);
    return g_test_run();
}
