/*
 * A process that outlives ours for the time that our memory takes to be freed.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_UTIL_MM_KEEPER_H
#define COLO_UTIL_MM_KEEPER_H

#include <stdbool.h>
#include <sys/types.h>

/**
 * Have this process' descriptors closed at once when it is killed, however much memory it maps.
 * True if that is so from here on; false with errno if it cannot be had (old kernel, sanitizers:
 * ENOSYS), which costs time at a death and nothing else. Main thread, once.
 */
bool mm_keeper_start(void);

/** Its process id; 0 if there is none. */
pid_t mm_keeper_pid(void);

/** End and reap it. To be called at an orderly end; a death needs nothing. Main thread. */
void mm_keeper_stop(void);

#endif
