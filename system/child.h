/*
 * The emulator as our child process.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_SYSTEM_CHILD_H
#define COLO_SYSTEM_CHILD_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "system/plan.h"

typedef struct Child {
    pid_t pid;
    int monitor_fd;    /* our end of the QMP connection for the users' commands */
    int checkpoint_fd; /* and of the one for checkpoints */
    int save_fd, cont_fd; /* and those of the commands that wait there for a pause */
    int state_fd;      /* device state as saved */
    int vmst_fd;       /* device state to load */
    guint plan_args, plan_fds; /* what the plan had before the first start */
} Child;

#define CHILD_VMST_NODE "qemu-colo-vmst"

/**
 * Start plan->emulator with plan->argv and what replication needs; @incoming: its -incoming,
 * or NULL. The child is killed when this (the main) thread ends, however that happens. May be
 * called again after child_stop(), when the fds of the first were closed or taken.
 */
bool child_start(Child *c, Plan *plan, const char *incoming, GError **errp);

/** End it: SIGTERM, after 3 seconds SIGKILL; reaps it. */
void child_stop(Child *c);

#endif
