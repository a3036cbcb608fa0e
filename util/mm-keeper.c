/*
 * A process that outlives ours for the time that our memory takes to be freed.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Why. Our peer knows of our death when the kernel closes our sockets, and takes over then. But a
 * process that is killed gives its memory back first and closes its descriptors afterwards. We
 * map all of the guest's RAM, and copies of it: to take that down page by page takes some 20 ms
 * for 512 MiB on an idle host and hundreds on a busy one, in which the guest is served by nobody.
 *
 * How. Memory is taken down by the last process that has it. So there is a second one: cloned with
 * CLONE_VM, it shares our memory, and nothing else. It has closed all of its descriptors but one,
 * and sleeps. When we are killed our own part is to drop a reference; the descriptors follow
 * within a millisecond, and the keeper, which was waiting for our end, takes the memory down
 * while the peer is at work already.
 *
 * What it waits for is our pidfd, readable when our last thread has ended, and so has closed
 * what it had. A parent-death signal would not do: it is sent when the *thread* dies that made the
 * keeper, and the others may be alive still; then the last of them would have the memory again.
 *
 * It runs in our memory with a stack of its own, and it has no thread-local storage of its own:
 * it lives on that of the main thread. So it calls nothing of libc but syscall(), which
 * touches errno only on failure, and what could fail is tried beforehand. It has all signals
 * blocked, and no descriptors to do harm with.
 *
 * Limits. What a mapping holds (a memfd, io_uring's rings) lives as long as the keeper does: our
 * parent sees our end up to that time before the memory is free. A kill of both at once (a
 * control group's, the kernel's for want of memory, a host's own) is as slow as without a keeper.
 * So is one with a core dump. Sanitizers see two stacks in one thread: they get no keeper.
 */
#include "util/mm-keeper.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define POSSIBLE 0
#else
#define POSSIBLE 1
#endif

#define STACK_SIZE (64 * 1024)

/* The keeper (documented global: main thread; the keeper itself reads pidfd). */
static struct {
    pid_t pid;
    int pidfd; /* of this process */
    void *stack;
} keeper;

static int keep(void *opaque)
{
    struct pollfd end = {.fd = keeper.pidfd, .events = POLLIN};

    syscall(SYS_prctl, PR_SET_NAME, "colo-keeper", 0, 0, 0);
    if (keeper.pidfd > 0) {
        syscall(SYS_close_range, 0u, keeper.pidfd - 1u, 0u);
    }
    syscall(SYS_close_range, keeper.pidfd + 1u, ~0u, 0u);
    while (!(end.revents & (POLLIN | POLLERR | POLLNVAL))) {
        syscall(SYS_ppoll, &end, 1, NULL, NULL, 8);
    }
    syscall(SYS_exit_group, 0);
    return 0;
}

bool mm_keeper_start(void)
{
    sigset_t all, before;

    /* A range without a descriptor in it: is there such a call? */
    if (!POSSIBLE || syscall(SYS_close_range, ~0u, ~0u, 0u) < 0) {
        errno = ENOSYS;
        return false;
    }
    keeper.pidfd = syscall(SYS_pidfd_open, getpid(), 0u); /* close-on-exec */
    if (keeper.pidfd < 0) {
        return false;
    }
    keeper.stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    int pid = -1;
    if (keeper.stack != MAP_FAILED) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        /* No signal at its end: nobody's wait() for any child may come upon it. */
        pid = clone(keep, (uint8_t *)keeper.stack + STACK_SIZE, CLONE_VM, NULL);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    int e = errno;
    close(keeper.pidfd);
    keeper.pid = pid > 0 ? pid : 0;
    if (pid < 0 && keeper.stack != MAP_FAILED) {
        munmap(keeper.stack, STACK_SIZE);
    }
    errno = e;
    return pid > 0;
}

pid_t mm_keeper_pid(void)
{
    return keeper.pid;
}

void mm_keeper_stop(void)
{
    if (keeper.pid > 0) {
        kill(keeper.pid, SIGKILL);
        while (waitpid(keeper.pid, NULL, __WALL) < 0 && errno == EINTR) {
        }
        munmap(keeper.stack, STACK_SIZE);
        keeper.pid = 0;
    }
}
