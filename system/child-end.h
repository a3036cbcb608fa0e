/*
 * The emulator's death, before it is over.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_SYSTEM_CHILD_END_H
#define COLO_SYSTEM_CHILD_END_H

#include <glib.h>
#include <sys/types.h>

typedef struct ChildEnd ChildEnd;

/**
 * Have @died called in the main loop, once, when the emulator @pid is dying and has no memory to
 * lose any more by it: by a signal or with a status other than 0, never for an end in order. Where
 * the kernel cannot tell (before Linux 6.9) it is never called: wait for the process as ever. Its
 * end has still to be waited for.
 */
ChildEnd *child_end_watch(pid_t pid, void (*died)(int wait_status));

/** No call after this. NULL is nothing. */
void child_end_free(ChildEnd *e);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(ChildEnd, child_end_free)

#endif
