/*
 * coloctl check: findings about a host.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_TOOLS_COLOCTL_CHECK_H
#define COLO_TOOLS_COLOCTL_CHECK_H

#include "coloctl.h"

typedef enum FindingLevel { FINDING_OK, FINDING_WARN, FINDING_FAIL } FindingLevel;

typedef struct Finding {
    FindingLevel level;
    char *what;   /* "kernel" */
    char *found;  /* "Linux 6.1.0" */
    char *remedy; /* or NULL */
} Finding;

/** A new list; free with g_ptr_array_unref(). */
GPtrArray *findings_new(void);

/** @remedy may be NULL; @found is a format. */
void finding_add(GPtrArray *list, FindingLevel level, const char *what, const char *remedy,
                 const char *found, ...) G_GNUC_PRINTF(5, 6);

/** Everything about this host that can be known without the other one. */
void check_host(const VmConf *c, GPtrArray *list);

/** The disks' images, devices, key files and the arbiter (coloctl-check-vm.c). */
void check_vm(const VmConf *c, GPtrArray *list);

/** Whether the pair's ports are free. */
void check_ports(const VmConf *c, GPtrArray *list);

/** Answer on the heartbeat's links from now on; how many of them could be had. */
unsigned links_serve(const VmConf *c);

/** Whether the heartbeat's links reach a peer that serves @served of them. */
void check_links(const VmConf *c, int64_t served, GPtrArray *list);

/** First line of "PROGRAM -version"; NULL where it cannot be run. Caller frees. */
char *emulator_version(const VmConf *c);

#endif
