/*
 * vm.conf: what its files share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_TOOLS_COLOCTL_CONF_INT_H
#define COLO_TOOLS_COLOCTL_CONF_INT_H

#include "coloctl-conf.h"

/* Who is being read. */
typedef struct ConfReader {
    VmConf *c;
    GKeyFile *kf;
    const char *section;
} ConfReader;

/** An error that names file, section, @key, @value (or NULL) and what was @expected. */
void conf_bad(ConfReader *r, GError **errp, const char *key, const char *value,
              const char *expected);

/** Whether @text is made of letters, digits, '-', '_' and '.'; and not empty. */
bool conf_is_id(const char *text);

/** Whether all sections and keys of the file are known, and none stands there twice. @text: the
 * file as it is. */
bool conf_check_names(ConfReader *r, const char *text, GError **errp);

/** Check all keys of @r->section that the table has for @prefix ("vm", "disk.", ...), and put
 * them into @base: the VmConf, VmDisk or VmNet. */
bool conf_read_section(ConfReader *r, const char *prefix, void *base, GError **errp);

#endif
