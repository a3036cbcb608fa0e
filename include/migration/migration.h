/*
 * Checkpoints and failover: what the monitor and main() need of this room.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_MIGRATION_H
#define COLO_MIGRATION_MIGRATION_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/** What migration must know of the child, filled by system/. */
typedef struct MigrationChild {
    pid_t pid;
    int qmp_fd;        /* our end of the checkpoint connection (a QMP socket) */
    int ram_fd;        /* memfd of guest RAM, mapped shared by the child */
    uint64_t ram_size; /* bytes */
    int state_fd;      /* memfd into which the child saves device state */
    int state_child_fd;   /* the same under the child's number */
    int vmst_fd;          /* memfd of the qcow2 that snapshot-load reads */
    const char *identity; /* JSON text: machine, cpu, smp, devices; both sides must agree */
} MigrationChild;

bool migration_init(const MigrationChild *child, GError **errp);
void migration_shutdown(void);

#endif
