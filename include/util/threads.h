/*
 * Threads of a process, by their names.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_UTIL_THREADS_H
#define COLO_UTIL_THREADS_H

#include <sys/types.h>

/**
 * Look for those threads of process @pid that are called one of @names (NULL ends them); the kernel
 * keeps 15 characters of a name. Up to @max ids go to @tids; returns how many. What cannot be read
 * has no threads. Any thread; reads /proc.
 */
unsigned threads_named(pid_t pid, const char *const *names, pid_t *tids, unsigned max);

#endif
