/*
 * From the user's command line to rooms of ours and the child's command line.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_SYSTEM_PLAN_H
#define COLO_SYSTEM_PLAN_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "system/cmdline.h"

typedef struct QmpSpec {
    char *spec;
    bool pretty;
} QmpSpec;

typedef struct Plan {
    GPtrArray *argv;    /* the child's arguments, without its name; not NULL-terminated */
    GArray *fds;        /* int: descriptors that the child inherits under their numbers */
    GPtrArray *qmp;     /* QmpSpec: the user's QMP servers */
    char *incoming;     /* -incoming, or NULL */
    char *pidfile;
    char *vm_name;      /* -name or -uuid, or NULL */
    char *machine;      /* type of -machine, or NULL */
    char *emulator;     /* path */
    uint64_t ram_size;  /* bytes */
    char *ram_id;       /* the memory backend's, as the command line has it, or NULL */
    JsonObject *ram_object; /* its properties, but those that say what it is made of */
    bool start_paused;  /* -S */
    bool no_shutdown;
    bool qmp_on_stdio;  /* standard input and output are ours */
    JsonObject *colo;   /* the keys of -colo, or an empty object */
    JsonObject *identity;
} Plan;

/**
 * Read @cl: check every option, create chardevs, netdevs, filters and disks, fill @plan.
 * Nothing is started. False with @errp naming the option.
 */
bool plan_make(Plan *plan, const CmdLine *cl, const char *argv0, GError **errp);
void plan_clear(Plan *plan);

/** The emulator for a program called @argv0 ("qemu-colo-system-x86_64" ->
 * "qemu-system-x86_64"), else for the host. Path found in PATH, or NULL with @errp. */
char *plan_find_emulator(const char *argv0, const char *wish, GError **errp);

/** Append one argument, printf-style. */
void plan_arg(Plan *plan, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/** -m and the memory backend that -machine names (plan-memory.c). */
bool plan_memory(Plan *plan, const CmdLine *cl, GError **errp);

/** Options of disks (plan-disk.c): -drive, -blockdev, -hda and the like. */
bool plan_drive(Plan *plan, const CmdLine *cl, const char *text, GError **errp);
bool plan_blockdev(Plan *plan, const CmdLine *cl, const char *text, GError **errp);

#endif
