/*
 * Errors: one domain for the whole program, whose codes are QMP error classes.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A message names the option or command, the value found and what was expected,
 * and where there is one, the remedy.
 */
#ifndef COLO_UTIL_ERROR_H
#define COLO_UTIL_ERROR_H

#include <glib.h>

#define COLO_ERROR colo_error_quark()

typedef enum ColoErrorClass {
    COLO_ERROR_GENERIC,
    COLO_ERROR_COMMAND_NOT_FOUND,
    COLO_ERROR_DEVICE_NOT_ACTIVE,
    COLO_ERROR_DEVICE_NOT_FOUND,
} ColoErrorClass;

GQuark colo_error_quark(void);

/** QMP's name of @code, e.g. "GenericError"; static storage. */
const char *colo_error_class_name(int code);

/** Set @errp (may be NULL) to a generic error with a printf-style message. */
void colo_error_set(GError **errp, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/** Like colo_error_set(), with ": " and the text of @err_no (an errno value) appended. */
void colo_error_set_errno(GError **errp, int err_no, const char *fmt, ...)
    G_GNUC_PRINTF(3, 4);

#endif
