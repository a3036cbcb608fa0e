/*
 * System calls made in another process, one that gets signals all the time.
 * Sources: this file, migration/remote.c. Dependencies: util.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "migration/remote.h"

static volatile int *alarms; /* shared */

static void on_alarm(int sig)
{
    ++*alarms;
}

/* Its timer goes off between any two of its instructions. */
static void child(void)
{
    struct itimerval often = {.it_interval = {0, 150}, .it_value = {0, 150}};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGALRM, on_alarm);
    setitimer(ITIMER_REAL, &often, NULL);
    for (;;) {
        poll(NULL, 0, 1);
    }
}

static void test_signals(void)
{
    alarms = mmap(NULL, sizeof(*alarms), PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid = fork();
    unsigned wrong = 0;

    if (pid == 0) {
        child();
        _exit(1);
    }
    for (int i = 0; i < 300; i++) {
        g_autoptr(GError) err = NULL;

        if (!remote_stop(pid, &err)) {
            g_test_skip(err->message);
            break;
        }
        for (int k = 0; k < 5; k++) {
            wrong += remote_call(pid, SYS_getpid, (const long[6]){0}) != pid;
            wrong += remote_call(pid, SYS_close, (const long[6]){-1}) != -9; /* EBADF */
        }
        remote_release(pid);
    }
    g_assert_cmpuint(wrong, ==, 0);
    /* It has been interrupted, and runs on as before: signals reach it. */
    int before = *alarms;
    for (int i = 0; i < 500 && *alarms < before + 20; i++) {
        g_usleep(10000);
    }
    g_assert_cmpint(*alarms, >=, before + 20);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/remote/signals", test_signals);
    return g_test_run();
}
