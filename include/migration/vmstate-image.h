/*
 * The image through which snapshot-load reads a checkpoint's device state.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_VMSTATE_IMAGE_H
#define COLO_MIGRATION_VMSTATE_IMAGE_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

#define VMSTATE_IMAGE_TAG "c" /* name of its one internal snapshot */
#define VMSTATE_IMAGE_MAX (4u << 20) /* bytes of device state it can hold */

/** A new memfd (close-on-exec) that holds a qcow2 with one internal snapshot, or -1. */
int vmstate_image_new(GError **errp);

/** Put @len bytes of device state, as the emulator saved it, in place of what the snapshot
 * held. @machine: the machine's name, without "-machine". @page_bits: log2 of a page's bytes
 * where the target settles it at run time, else 0. */
bool vmstate_image_write(int fd, const char *machine, unsigned page_bits, const void *data,
                         size_t len, GError **errp);

#endif
