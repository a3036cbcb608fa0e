/*
 * The documented command lines, from a vm.conf.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_TOOLS_COLOCTL_CMDLINE_H
#define COLO_TOOLS_COLOCTL_CMDLINE_H

#include "coloctl-conf.h"

/** Words of the primary's or the secondary's line for the chosen host, NULL-terminated.
 * @vouched: the operator says that the other host does not serve. Caller frees with
 * g_strfreev(). */
char **vm_command_line(const VmConf *c, const char *program, bool secondary, bool vouched);

/** The qemu-colo to run: [run] qemu-colo, else beside this program, else in PATH. Caller
 * frees; NULL with @errp. */
char *vm_find_program(const VmConf *c, GError **errp);

/** ADDRESS:PORT, an IPv6 address in brackets. Caller frees. */
char *vm_address(const char *address, unsigned port);

#endif
