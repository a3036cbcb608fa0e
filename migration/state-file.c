/*
 * -colo state-file=: what this side is, on its disk before it is it.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Whoever starts the guest again after both hosts have died must know whose disk is the newest.
 * So a side that takes over is "alone" on its disk before its gate opens, and a primary is
 * "protected-primary" before the other side could take over: whatever dies when, at most the
 * newest disk's side says "alone", unless a human has made two histories.
 *
 * The file has one length and is written in place: a full disk or a quota does not keep a side
 * from serving, and one block is all that has to reach the disk. coloctl reads it and writes it
 * while no qemu-colo runs, in the same form.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "migration/colo.h"
#include "util/error.h"
#include "util/files.h"
#include "util/trace.h"

#define STATE_FILE_BYTES 32

bool colo_state_file_write(const char *what, GError **errp)
{
    const char *path = colo.opts.state_file;
    char text[STATE_FILE_BYTES + 1];

    if (!path) {
        return true;
    }
    colo_trace(migration_state_file, "%s", what);
    g_snprintf(text, sizeof(text), "%-*s\n", STATE_FILE_BYTES - 1, what);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    off_t before = fd >= 0 ? lseek(fd, 0, SEEK_END) : 0;
    errno = fd >= 0 ? 0 : errno;
    bool ok = fd >= 0 && pwrite(fd, text, STATE_FILE_BYTES, 0) == STATE_FILE_BYTES &&
              (before <= STATE_FILE_BYTES || ftruncate(fd, STATE_FILE_BYTES) == 0) &&
              fdatasync(fd) == 0 && (before > 0 || files_sync_parent(path));
    int e = errno ? errno : ENOSPC;
    if (fd >= 0) {
        close(fd);
    }
    if (!ok) {
        colo_error_set_errno(errp, e, "state-file=%s: '%s' cannot be written down", path, what);
    }
    return ok;
}

void colo_state_file_note(const char *what)
{
    g_autoptr(GError) err = NULL;

    if (!colo_state_file_write(what, &err)) {
        colo_report("%s", err->message);
    }
}
