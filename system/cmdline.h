/*
 * QEMU's command line as a list of options.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_SYSTEM_CMDLINE_H
#define COLO_SYSTEM_CMDLINE_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>

typedef struct CmdOption {
    const char *name; /* without dashes; "" for a bare disk image */
    const char *arg;  /* or NULL */
} CmdOption;

typedef struct CmdLine {
    GArray *options;  /* of CmdOption; strings belong to argv or @owned */
    GPtrArray *owned;
} CmdLine;

/** Split @argv (argc entries, the first is skipped) as QEMU would; what -readconfig names is
 * read in its place. */
bool cmdline_parse(CmdLine *cl, int argc, char **argv, GError **errp);
void cmdline_clear(CmdLine *cl);

/** Append the options that the configuration file @path holds (readconfig.c). */
bool cmdline_read_config(CmdLine *cl, const char *path, GError **errp);

/** Whether it uses COLO: a filter, colo-compare, a replication drive, or -colo; and is no
 * probe (-machine none, -version, -help). */
bool cmdline_uses_colo(const CmdLine *cl);

/** Value of key @key in the last option @name, parsed with @implied as its first key. New
 * string or NULL. */
char *cmdline_find(const CmdLine *cl, const char *name, const char *implied,
                   const char *key);

#endif
