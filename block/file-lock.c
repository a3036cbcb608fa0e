/*
 * Image locks, compatible with QEMU's: two writers of one image are refused.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QEMU gives each permission a bit: 0 consistent read, 1 write, 3 resize. A user of the
 * image holds a shared OFD lock on byte 100 + bit for each permission that it uses and on
 * byte 200 + bit for each that it does not let others use; then it looks whether someone
 * holds the counterpart of what it needs.
 *
 * A disk that two hosts share has one owner, which holds the locks of a writer. The other
 * side is a borrower: it holds consistent read alone and denies nothing, until a takeover
 * makes it the owner. An OFD lock goes with the last reference to the open file, and I/O
 * in flight is one: so where locks reach the other host, a lock that has gone proves that
 * its owner's direct I/O has ended.
 */
#include "block-int.h"

#include <fcntl.h>
#include <unistd.h>

#define LOCK_USED 100
#define LOCK_DENIED 200

static bool lock_byte(int fd, off_t byte, const char *filename, GError **errp)
{
    struct flock fl = {
        .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    if (fcntl(fd, F_OFD_SETLK, &fl) == 0) {
        return true;
    }
    if (errno == EAGAIN || errno == EACCES) {
        colo_error_set(errp, "image '%s' is locked by another program", filename);
    } else {
        colo_error_set_errno(errp, errno, "cannot lock image '%s'", filename);
    }
    return false;
}

static bool lock_is_free(int fd, off_t byte)
{
    struct flock fl = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    return fcntl(fd, F_OFD_GETLK, &fl) != 0 || fl.l_type == F_UNLCK;
}

static void unlock_byte(int fd, off_t byte)
{
    struct flock fl = {
        .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    fcntl(fd, F_OFD_SETLK, &fl);
}

static bool locks_work(int fd, const char *filename)
{
    struct flock probe = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};

    if (fcntl(fd, F_OFD_GETLK, &probe) != 0 && (errno == EINVAL || errno == ENOLCK)) {
        colo_report("image '%s': its file system has no locks; other programs are not "
                    "kept from it",
                    filename);
        return false;
    }
    return true;
}

static const int all[] = {0, 1, 3};
static const int writing[] = {1, 3};

void block_file_lock_disown(int fd)
{
    for (size_t i = 0; i < G_N_ELEMENTS(writing); i++) {
        unlock_byte(fd, LOCK_USED + writing[i]);
        unlock_byte(fd, LOCK_DENIED + writing[i]);
    }
}

bool block_file_lock_own(int fd, const char *filename, GError **errp)
{
    bool ok = block_file_lock(fd, false, filename, errp);

    if (!ok) {
        block_file_lock_disown(fd);
    }
    return ok;
}

bool block_file_lock_borrow(int fd, const char *filename, GError **errp)
{
    return !locks_work(fd, filename) || lock_byte(fd, LOCK_USED, filename, errp);
}

bool block_file_lock(int fd, bool read_only, const char *filename, GError **errp)
{
    if (!locks_work(fd, filename)) {
        return true;
    }
    for (size_t i = 0; i < (read_only ? 1 : G_N_ELEMENTS(all)); i++) {
        if (!lock_byte(fd, LOCK_USED + all[i], filename, errp)) {
            return false;
        }
    }
    for (size_t i = 0; i < G_N_ELEMENTS(writing); i++) {
        if (!lock_byte(fd, LOCK_DENIED + writing[i], filename, errp)) {
            return false;
        }
    }
    for (size_t i = 0; i < (read_only ? 1 : G_N_ELEMENTS(all)); i++) {
        if (!lock_is_free(fd, LOCK_DENIED + all[i])) {
            colo_error_set(errp,
                           "image '%s' is in use by another program, which does not "
                           "share it; stop that program first",
                           filename);
            return false;
        }
    }
    for (size_t i = 0; i < G_N_ELEMENTS(writing); i++) {
        if (!lock_is_free(fd, LOCK_USED + writing[i])) {
            colo_error_set(errp,
                           "image '%s' is being written by another program; stop "
                           "that program first",
                           filename);
            return false;
        }
    }
    return true;
}
