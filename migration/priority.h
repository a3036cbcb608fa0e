/*
 * Threads that a pause of the guest waits for go first while it lasts.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_PRIORITY_H
#define COLO_MIGRATION_PRIORITY_H

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

typedef struct Priority Priority;

/** The calling thread, our others that a pause needs, and those of the emulator @child that are
 * no vCPU. Looks them up, asks for short slices, and tries what the system permits. Never fails:
 * without rights nothing is raised later. */
Priority *priority_new(pid_t child);
void priority_free(Priority *p);

/** How pauses go first: "real-time", or "fair" where that is not permitted. */
const char *priority_kind(const Priority *p);

/** Until priority_restore(), which must follow. Neither allocates; a thread that has ended, or
 * is real-time by its owner's will, is left alone. */
void priority_raise(Priority *p);
void priority_restore(Priority *p);

#endif
