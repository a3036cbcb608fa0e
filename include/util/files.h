/*
 * Files that must be on the disk.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_UTIL_FILES_H
#define COLO_UTIL_FILES_H

#include <stdbool.h>

/** Make a change of the folder of @path (a file made, renamed or removed) durable. Waits for the
 * disk; false with errno. */
bool files_sync_parent(const char *path);

#endif
