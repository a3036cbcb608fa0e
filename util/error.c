/*
 * Errors: one domain whose codes are QMP error classes.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "util/error.h"

G_DEFINE_QUARK(colo_error_quark, colo_error)

const char *colo_error_class_name(int code)
{
    switch (code) {
    case COLO_ERROR_COMMAND_NOT_FOUND:
        return "CommandNotFound";
    case COLO_ERROR_DEVICE_NOT_ACTIVE:
        return "DeviceNotActive";
    case COLO_ERROR_DEVICE_NOT_FOUND:
        return "DeviceNotFound";
    default:
        return "GenericError";
    }
}

void colo_error_set(GError **errp, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    g_autofree char *msg = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_set_error_literal(errp, COLO_ERROR, COLO_ERROR_GENERIC, msg);
}

void colo_error_set_errno(GError **errp, int err_no, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    g_autofree char *msg = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_set_error(errp, COLO_ERROR, COLO_ERROR_GENERIC, "%s: %s", msg, g_strerror(err_no));
}
