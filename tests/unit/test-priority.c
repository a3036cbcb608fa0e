/*
 * Who goes first in a pause: raised, given back, and left alone.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "migration/priority.h"

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct Worker {
    const char *name;
    GThread *thread;
    pid_t tid;
    GMutex lock; /* guards @tid and @quit */
    GCond cond;
    bool quit;
} Worker;

static gpointer worker_thread(gpointer opaque)
{
    Worker *w = opaque;

    prctl(PR_SET_NAME, w->name);
    g_mutex_lock(&w->lock);
    w->tid = (pid_t)syscall(SYS_gettid);
    g_cond_broadcast(&w->cond);
    while (!w->quit) {
        g_cond_wait(&w->cond, &w->lock);
    }
    g_mutex_unlock(&w->lock);
    return NULL;
}

static void worker_start(Worker *w, const char *name)
{
    w->name = name;
    w->thread = g_thread_new(name, worker_thread, w);
    g_mutex_lock(&w->lock);
    while (!w->tid) {
        g_cond_wait(&w->cond, &w->lock);
    }
    g_mutex_unlock(&w->lock);
}

static void worker_stop(Worker *w)
{
    g_mutex_lock(&w->lock);
    w->quit = true;
    g_cond_broadcast(&w->cond);
    g_mutex_unlock(&w->lock);
    g_thread_join(w->thread);
}

static pid_t sleeping_child(void)
{
    pid_t pid = fork();

    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) {
            pause();
        }
    }
    g_assert_cmpint(pid, >, 0);
    return pid;
}

static void end_child(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static int policy(pid_t tid)
{
    return sched_getscheduler(tid);
}

static bool skipped(const Priority *p)
{
    if (g_str_equal(priority_kind(p), "real-time")) {
        return false;
    }
    g_test_skip("no right to be real-time");
    return true;
}

static void test_raised_and_given_back(void)
{
    Worker block = {0}, other = {0};
    struct sched_param none = {0};
    pid_t self = (pid_t)syscall(SYS_gettid), child = sleeping_child();

    worker_start(&block, "block");
    worker_start(&other, "colo-net");
    g_assert_cmpint(sched_setscheduler(block.tid, SCHED_BATCH, &none), ==, 0);
    Priority *p = priority_new(child);
    g_assert_cmpint(policy(self), ==, SCHED_OTHER); /* what was tried is taken back */
    if (!skipped(p)) {
        for (int i = 0; i < 2; i++) {
            priority_raise(p);
            g_assert_cmpint(policy(self) & ~SCHED_RESET_ON_FORK, ==, SCHED_RR);
            g_assert_cmpint(policy(child) & ~SCHED_RESET_ON_FORK, ==, SCHED_RR);
            g_assert_cmpint(policy(block.tid) & ~SCHED_RESET_ON_FORK, ==, SCHED_RR);
            g_assert_cmpint(policy(other.tid), ==, SCHED_OTHER);
            priority_restore(p);
            g_assert_cmpint(policy(self), ==, SCHED_OTHER);
            g_assert_cmpint(policy(child), ==, SCHED_OTHER);
            g_assert_cmpint(policy(block.tid), ==, SCHED_BATCH);
        }
    }
    priority_free(p);
    worker_stop(&block);
    worker_stop(&other);
    end_child(child);
}

static void test_gone_or_real_time_is_left_alone(void)
{
    Worker block = {0}, scan = {0};
    struct sched_param high = {.sched_priority = 7}, got;
    pid_t child = sleeping_child();

    worker_start(&block, "block");
    worker_start(&scan, "colo-scan");
    Priority *p = priority_new(child);
    if (!skipped(p)) {
        worker_stop(&scan);
        end_child(child);
        g_assert_cmpint(sched_setscheduler(block.tid, SCHED_FIFO, &high), ==, 0);
        for (int i = 0; i < 2; i++) {
            priority_raise(p);
            g_assert_cmpint(policy(block.tid), ==, SCHED_FIFO);
            priority_restore(p);
            g_assert_cmpint(policy(block.tid), ==, SCHED_FIFO);
            g_assert_cmpint(sched_getparam(block.tid, &got), ==, 0);
            g_assert_cmpint(got.sched_priority, ==, 7);
        }
    } else {
        worker_stop(&scan);
        end_child(child);
    }
    priority_free(p);
    worker_stop(&block);
}

/* A user who is nobody, with RLIMIT_RTPRIO or without; the latter lets real-time be had, but
 * not given back without a trace. */
static int as_nobody(rlim_t limit)
{
    struct rlimit r = {limit, limit};

    if (setrlimit(RLIMIT_RTPRIO, &r)) {
        return 0; /* root is not almighty here */
    }
    if (setgid(65534) || setuid(65534)) {
        return 2;
    }
    pid_t child = sleeping_child();
    Priority *p = priority_new(child);
    bool fair = g_str_equal(priority_kind(p), "fair");
    priority_raise(p);
    bool same = (policy(0) & ~SCHED_RESET_ON_FORK) == SCHED_OTHER && policy(child) == SCHED_OTHER;
    priority_restore(p);
    same &= (policy(0) & ~SCHED_RESET_ON_FORK) == SCHED_OTHER;
    priority_free(p);
    end_child(child);
    return fair && same ? 0 : 1;
}

static void test_without_rights_nothing_is_raised(void)
{
    for (rlim_t limit = 0; limit <= 10 && geteuid() == 0; limit += 10) {
        pid_t pid = fork();
        if (pid == 0) {
            _exit(as_nobody(limit));
        }
        int status;
        g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
        g_assert_true(WIFEXITED(status));
        g_assert_cmpint(WEXITSTATUS(status), ==, 0);
    }
    if (geteuid() != 0) {
        g_test_skip("needs root, to give it up");
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/priority/raised-and-given-back", test_raised_and_given_back);
    g_test_add_func("/priority/gone-or-real-time-is-left-alone",
                    test_gone_or_real_time_is_left_alone);
    g_test_add_func("/priority/without-rights-nothing-is-raised",
                    test_without_rights_nothing_is_raised);
    return g_test_run();
}
