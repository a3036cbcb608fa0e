/*
 * Names of NBD connections.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_BLOCK_NBD_NAME_H
#define COLO_BLOCK_NBD_NAME_H

#include <glib.h>

#define NBD_NAME_SIZE 40 /* of a name, with its end */

/** Client: a name for a new connection. *@context is the meta context that tells the server of it,
 * and of connections that are gone. Caller frees both. Any thread. */
char *nbd_name_new(char **context);

/** Client: its connection @name has been given up; later ones say so. Any thread. */
void nbd_name_gone(const char *name);

/** Server: the name that meta context @context (@len bytes) gives, and in *@gone those that it says
 * are gone. NULL, without *@gone: it gives none. Caller frees both. */
char *nbd_name_heard(const char *context, size_t len, GStrv *gone);

#endif
