/*
 * System calls in the child, made by ptrace.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Some things can only be had from within a process: a userfaultfd for its address space, a
 * mapping in the place of another. The child carries no code of ours; so its main thread is
 * stopped in a system call, made to execute that very "syscall" instruction once more with
 * registers of ours, and put back to where it was.
 */
#include "migration/remote.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/error.h"

#define STOP_TRIES 200

/* Signals that came while the child was ours, to be sent again when it goes on. One child is
 * stopped at a time, by one thread (documented global). */
static uint64_t put_off;

static void send_put_off(pid_t pid)
{
    for (int sig = 1; sig < 64; sig++) {
        if (put_off & (1ull << sig)) {
            syscall(SYS_tgkill, pid, pid, sig);
        }
    }
    put_off = 0;
}

#ifdef __x86_64__
static bool at_syscall(pid_t pid)
{
    struct user_regs_struct regs;

    if (ptrace(PTRACE_GETREGS, pid, 0, &regs) < 0) {
        return false;
    }
    errno = 0;
    long word = ptrace(PTRACE_PEEKTEXT, pid, regs.rip - 2, 0);
    return !errno && (word & 0xffff) == 0x050f;
}

static void put_off_signal(int status)
{
    if (status >> 16 == 0 && WSTOPSIG(status) != SIGTRAP && WSTOPSIG(status) < 64) {
        put_off |= 1ull << WSTOPSIG(status);
    }
}

/* Until the stop that was asked for. A signal on the way (the death of a child, a timer) is put
 * off, or we would find the child at the first instruction of its handler. */
static bool wait_stop(pid_t pid)
{
    int status;

    for (;;) {
        if (waitpid(pid, &status, __WALL) < 0 || !WIFSTOPPED(status)) {
            return false;
        }
        if (status >> 16 == PTRACE_EVENT_STOP) {
            return true;
        }
        put_off_signal(status);
        if (ptrace(PTRACE_CONT, pid, 0, 0) < 0) {
            return false;
        }
    }
}

bool remote_stop(pid_t pid, GError **errp)
{
    if (ptrace(PTRACE_SEIZE, pid, 0, 0) < 0) {
        colo_error_set_errno(
            errp, errno,
            "ptrace of the emulator (needed at start, to track its dirty "
            "pages; allow it: root, or kernel.yama.ptrace_scope <= 1 and "
            "no seccomp or container rule against ptrace)");
        return false;
    }
    for (int i = 0; i < STOP_TRIES; i++) {
        if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) < 0 || !wait_stop(pid)) {
            break;
        }
        if (at_syscall(pid)) {
            return true;
        }
        /* Not in a system call: let it run on, untraced, and try again. */
        remote_release(pid);
        g_usleep(2000);
        if (ptrace(PTRACE_SEIZE, pid, 0, 0) < 0) {
            break;
        }
    }
    if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) == 0 && wait_stop(pid)) {
        remote_release(pid); /* who runs cannot be let go of */
    }
    colo_error_set(errp, "the emulator cannot be stopped at a system call");
    return false;
}

/* Execute the one instruction before @end with registers @regs, which are its result then. A
 * signal that comes before it stops the step: it is put off, and the step made again. */
static bool step(pid_t pid, struct user_regs_struct *regs, uint64_t end)
{
    struct user_regs_struct now;
    int status;

    for (int i = 0; i < STOP_TRIES; i++) {
        if (ptrace(PTRACE_SETREGS, pid, 0, regs) < 0 ||
            ptrace(PTRACE_SINGLESTEP, pid, 0, 0) < 0 ||
            waitpid(pid, &status, __WALL) < 0) {
            return false;
        }
        if (!WIFSTOPPED(status)) {
            errno = ESRCH;
            return false;
        }
        if (ptrace(PTRACE_GETREGS, pid, 0, &now) < 0) {
            return false;
        }
        if (now.rip == end) {
            *regs = now;
            return true;
        }
        put_off_signal(status);
    }
    errno = EINTR;
    return false;
}

long remote_call(pid_t pid, long nr, const long args[6])
{
    struct user_regs_struct old, regs;

    if (ptrace(PTRACE_GETREGS, pid, 0, &old) < 0) {
        return -errno;
    }
    regs = old;
    regs.rip = old.rip - 2;
    regs.rax = nr;
    regs.orig_rax = -1; /* no restart of the interrupted call on top of ours */
    regs.rdi = args[0];
    regs.rsi = args[1];
    regs.rdx = args[2];
    regs.r10 = args[3];
    regs.r8 = args[4];
    regs.r9 = args[5];
    if (!step(pid, &regs, old.rip)) {
        return -errno;
    }
    /* The interrupted call's own -ERESTART* result, with orig_rax, makes it start over. */
    if (ptrace(PTRACE_SETREGS, pid, 0, &old) < 0) {
        return -errno;
    }
    return regs.rax;
}
#else
bool remote_stop(pid_t pid, GError **errp)
{
    colo_error_set(errp,
                   "the emulator's memory can be reached on x86-64 hosts only so far");
    return false;
}

long remote_call(pid_t pid, long nr, const long args[6])
{
    return -ENOSYS;
}
#endif

void remote_release(pid_t pid)
{
    send_put_off(pid);
    ptrace(PTRACE_DETACH, pid, 0, 0);
}

int remote_take_fd(pid_t pid, int remote, GError **errp)
{
    int pidfd = syscall(SYS_pidfd_open, pid, 0);
    int fd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, remote, 0);

    if (fd < 0) {
        colo_error_set_errno(errp, errno, "pidfd_getfd of the emulator's descriptor %d",
                             remote);
    }
    if (pidfd >= 0) {
        close(pidfd);
    }
    return fd;
}
