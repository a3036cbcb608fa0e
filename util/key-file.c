/*
 * A secret that both hosts have in a file.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "util/key-file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/error.h"

#define FILE_BYTES_MAX 4096

/* A key that others can read, or could have written, is no key. */
static bool check_owner(const char *path, const struct stat *st, GError **errp)
{
    if (!S_ISREG(st->st_mode)) {
        colo_error_set(errp, "key-file=%s is no ordinary file", path);
    } else if (st->st_mode & 077) {
        colo_error_set(errp, "key-file=%s has mode %03o, others can read or change it: chmod "
                       "600, and make a new key if it may have been copied",
                       path, (unsigned)st->st_mode & 0777);
    } else if (st->st_uid != geteuid() && st->st_uid != 0) {
        colo_error_set(errp, "key-file=%s belongs to user %u, who is neither this one nor root",
                       path, (unsigned)st->st_uid);
    } else {
        return true;
    }
    return false;
}

static bool take_key(int fd, const char *path, uint8_t key[KEY_BYTES_MAX], size_t *len,
                     GError **errp)
{
    char text[FILE_BYTES_MAX + 1] = "";
    size_t have = 0;
    ssize_t n = 1;

    while (n > 0 && have < FILE_BYTES_MAX) {
        n = read(fd, text + have, FILE_BYTES_MAX - have);
        have += MAX(n, 0);
    }
    while (have > 0 && strchr(" \t\r\n", text[have - 1])) {
        have--; /* an editor's newline is not part of it */
    }
    if (n < 0) {
        colo_error_set_errno(errp, errno, "key-file=%s", path);
    } else if (have < KEY_BYTES_MIN || have > KEY_BYTES_MAX) {
        colo_error_set(errp, "key-file=%s has %zu bytes: a key has %d to %d (head -c 32 "
                       "/dev/urandom | base64 makes one)", path, have, KEY_BYTES_MIN,
                       KEY_BYTES_MAX);
    } else {
        memcpy(key, text, have);
        *len = have;
    }
    explicit_bzero(text, sizeof(text));
    return *len > 0;
}

bool key_file_read(const char *path, uint8_t key[KEY_BYTES_MAX], size_t *len, GError **errp)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    *len = 0;
    if (fd < 0 || fstat(fd, &st) < 0) {
        colo_error_set_errno(errp, errno, "key-file=%s", path);
    } else if (check_owner(path, &st, errp)) {
        take_key(fd, path, key, len, errp);
    }
    if (fd >= 0) {
        close(fd);
    }
    return *len > 0;
}
