/*
 * A secret that both hosts have in a file.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_UTIL_KEY_FILE_H
#define COLO_UTIL_KEY_FILE_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KEY_BYTES_MIN 16
#define KEY_BYTES_MAX 1024

/**
 * Read the key in @path, space at its end left away. A file that others can read or change, or
 * that belongs to a stranger, is refused. *@len is 0 with @errp set where it is.
 */
bool key_file_read(const char *path, uint8_t key[KEY_BYTES_MAX], size_t *len, GError **errp);

#endif
