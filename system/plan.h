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

#include "migration/migration.h"
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
    uint64_t ram_size;  /* bytes: -m */
    GPtrArray *memory_objects; /* JsonObject: -object memory-backend-*, checked */
    GArray *memory;     /* MigrationMemory: of the emulator that was started last */
    JsonObject *ram_object; /* guest RAM that no backend was named for */
    GString *numa;      /* all of -numa */
    char *mem_path;     /* -mem-path, or NULL */
    bool mem_prealloc, numa_memory, machine_memory; /* who names the backends */
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

/**
 * Reserve the huge pages of @pm for its file, and wait some seconds for those of a process that
 * has just ended; fails with ENOMEM's reason and remedy. Main thread.
 */
bool plan_reserve_huge(const MigrationMemory *pm, GError **errp);

/** Guest RAM (plan-memory.c): first -m; check and keep -object memory-backend-* and -numa;
 * then, for each start of an emulator, make the memory (plan->memory, plan->fds) and its
 * arguments. @ram_id is what memory is called that nobody gave a backend for. */
bool plan_memory(Plan *plan, const CmdLine *cl, GError **errp);
bool plan_is_memory(const char *qom_type);
bool plan_memory_object(Plan *plan, JsonObject *obj, GError **errp);
bool plan_numa(Plan *plan, const char *text, GError **errp);
bool plan_memory_open(Plan *plan, const char *ram_id, GError **errp);

/** Append one argument, printf-style. */
void plan_arg(Plan *plan, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/** Options of disks (plan-disk.c): -drive, -blockdev, -hda and the like. */
bool plan_drive(Plan *plan, const CmdLine *cl, const char *text, GError **errp);
bool plan_blockdev(Plan *plan, const CmdLine *cl, const char *text, GError **errp);

#endif
