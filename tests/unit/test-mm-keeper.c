/*
 * A process that is killed is missed at once, however much memory it has.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <dirent.h>
#include <errno.h>
#include <glib.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/mm-keeper.h"
#include "victim.h"

#define MIB (1024 * 1024)
#define THREADS 8

typedef struct Memory {
    size_t mib;
    bool keep; /* with a keeper */
} Memory;

typedef struct Victim {
    pid_t pid, keeper;
    int peer; /* our end of its socket */
} Victim;

/* Maps and touches @mib of shared memory, page by page as guests' RAM is mapped. */
static void touch(size_t mib)
{
    int fd = memfd_create("victim", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, mib * MIB) < 0) {
        _exit(2);
    }
    char *p = mmap(NULL, mib * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        _exit(2);
    }
    memset(p, 1, mib * MIB);
}

static void be_victim(int fd, const void *opaque)
{
    const Memory *m = opaque;
    pid_t pid = 0;

    for (int i = 0; i < THREADS; i++) {
        victim_thread("idle");
    }
    if (m->keep) {
        pid = mm_keeper_start() ? mm_keeper_pid() : -errno;
    }
    touch(m->mib); /* after that: a copy would not have it */
    if (write(fd, &pid, sizeof(pid)) != sizeof(pid)) {
        _exit(2);
    }
    char c;
    if (read(fd, &c, 1) == 1) { /* an orderly end */
        mm_keeper_stop();
        _exit(kill(pid, 0) < 0 && errno == ESRCH ? 0 : 3);
    }
    _exit(4);
}

/* False: no keeper here. */
static bool start(Victim *v, size_t mib, bool keep)
{
    v->pid = victim_start(be_victim, &(Memory){mib, keep}, &v->peer);
    g_assert_cmpint(read(v->peer, &v->keeper, sizeof(v->keeper)), ==, sizeof(v->keeper));
    if (v->keeper < 0) {
        g_assert_cmpint(v->keeper, ==, -ENOSYS);
        g_test_skip("no keeper in this build or on this kernel");
        kill(v->pid, SIGKILL);
        waitpid(v->pid, NULL, 0);
        close(v->peer);
    }
    return v->keeper >= 0;
}

/* The number of its open descriptors. */
static int descriptors(pid_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", (int)pid);
    DIR *d = opendir(path);
    int n = 0;

    g_assert_nonnull(d);
    for (struct dirent *e = readdir(d); e; e = readdir(d)) {
        n += e->d_name[0] != '.';
    }
    closedir(d);
    return n;
}

static char state(pid_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/stat", (int)pid);
    g_autofree char *text = NULL;

    return g_file_get_contents(path, &text, NULL, NULL) ? strrchr(text, ')')[2] : 'X';
}

static bool gone(pid_t pid)
{
    return strchr("ZX", state(pid)) != NULL;
}

/* Resident memory, in MiB. */
static size_t resident(pid_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/statm", (int)pid);
    g_autofree char *text = NULL;
    unsigned long pages = 0;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_cmpint(sscanf(text, "%*u %lu", &pages), ==, 1);
    return pages * (size_t)sysconf(_SC_PAGESIZE) / MIB;
}

/* Ends the program as late when @what does not come true. */
#define until(what)                                                                      \
    do {                                                                                 \
        for (int tries_ = 0; !(what); tries_++) {                                        \
            if (tries_ > 3000) {                                                         \
                g_printerr("late: " #what "\n");                                         \
                exit(75);                                                                \
            }                                                                            \
            g_usleep(10000);                                                             \
        }                                                                                \
    } while (0)

/* Its end as its peer sees it, in us. */
static gint64 kill_and_wait(Victim *v)
{
    gint64 begin = g_get_monotonic_time();
    char c;

    kill(v->pid, SIGKILL);
    g_assert_cmpint(read(v->peer, &c, 1), ==, 0);
    return g_get_monotonic_time() - begin;
}

/* The order, whatever the time: the peer is told while all of the memory is still there. */
static void test_memory_goes_last(void)
{
    Victim v;

    if (!start(&v, 64, true)) {
        return;
    }
    /* Nothing but the pidfd, so nothing that anybody could wait for. */
    until(descriptors(v.keeper) == 1);
    /* A keeper that cannot run: so the memory cannot go, and the socket must not wait for it. */
    kill(v.keeper, SIGSTOP);
    until(state(v.keeper) == 'T');
    kill_and_wait(&v);
    waitpid(v.pid, NULL, 0);
    g_assert_cmpuint(resident(v.keeper), >=, 64);
    /* Then it goes by itself. */
    kill(v.keeper, SIGCONT);
    until(gone(v.keeper));
    close(v.peer);
}

static void test_lives_as_long_as_its_process(void)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGPIPE, SIGCHLD};
    Victim v;
    int status;

    if (!start(&v, 1, true)) {
        return;
    }
    until(descriptors(v.keeper) == 1);
    for (unsigned i = 0; i < G_N_ELEMENTS(signals); i++) {
        kill(v.keeper, signals[i]);
    }
    kill(v.keeper, SIGSTOP);
    until(state(v.keeper) == 'T');
    kill(v.keeper, SIGCONT);
    until(state(v.keeper) == 'S');
    g_usleep(50000);
    g_assert_true(state(v.keeper) == 'S');
    /* An orderly end: it is gone when mm_keeper_stop() has returned. */
    g_assert_cmpint(write(v.peer, "x", 1), ==, 1);
    g_assert_cmpint(waitpid(v.pid, &status, 0), ==, v.pid);
    g_assert_true(WIFEXITED(status));
    g_assert_cmpint(WEXITSTATUS(status), ==, 0);
    close(v.peer);
}

static void test_how_soon_a_death_is_seen(void)
{
    gint64 best[2] = {G_MAXINT64, G_MAXINT64};

    for (int i = 0; i < 6; i++) {
        Victim v;
        if (!start(&v, 256, i % 2)) {
            return;
        }
        g_usleep(20000);
        gint64 us = kill_and_wait(&v);
        best[i % 2] = MIN(best[i % 2], us);
        waitpid(v.pid, NULL, 0);
        if (v.keeper) {
            until(gone(v.keeper));
        }
        close(v.peer);
    }
    g_test_message("256 MiB: %.1f ms without a keeper, %.1f ms with it (best of 3)",
                   best[0] / 1e3, best[1] / 1e3);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    /* Keepers of the dead come to us. */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    g_test_add_func("/mm-keeper/memory-goes-last", test_memory_goes_last);
    g_test_add_func("/mm-keeper/lives-as-long-as-its-process", test_lives_as_long_as_its_process);
    g_test_add_func("/mm-keeper/how-soon-a-death-is-seen", test_how_soon_a_death_is_seen);
    return g_test_run();
}
