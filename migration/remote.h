/*
 * System calls in the child, made by ptrace.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_REMOTE_H
#define COLO_MIGRATION_REMOTE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/** Stop @pid (its main thread) at a system call. The calling thread is the tracer: it has to
 * make the other calls too, and remote_release() soon. */
bool remote_stop(pid_t pid, GError **errp);

/** One system call in the stopped process: its result, or -errno. */
long remote_call(pid_t pid, long nr, const long args[6]);

/** Let it go on with the call in which it was interrupted. */
void remote_release(pid_t pid);

/** Our own descriptor of the child's @fd, or -1. */
int remote_take_fd(pid_t pid, int fd, GError **errp);

#endif
