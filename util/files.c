/*
 * Files that must be on the disk.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "util/files.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <unistd.h>

bool files_sync_parent(const char *path)
{
    g_autofree char *dir = g_path_get_dirname(path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = fd >= 0 && fsync(fd) == 0;
    int e = errno;

    if (fd >= 0) {
        close(fd);
    }
    errno = e;
    return ok;
}
