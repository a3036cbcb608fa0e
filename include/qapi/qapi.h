/*
 * Types of the schema, and the check of a JSON value against one.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * qapi/gen.py turns qapi/<room>.json into constant tables of these. The check reports what
 * QEMU would report for the same mistake, so that scripts which match on it go on working.
 */
#ifndef COLO_QAPI_QAPI_H
#define COLO_QAPI_QAPI_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>

typedef enum QapiKind {
    QAPI_ANY,
    QAPI_STR,
    QAPI_BOOL,
    QAPI_INT,    /* signed, @bits wide */
    QAPI_UINT,   /* unsigned, @bits wide; no more than 63 bits reach a handler */
    QAPI_NUMBER, /* integer or floating point */
    QAPI_ENUM,
    QAPI_STRUCT,
    QAPI_LIST,
} QapiKind;

typedef struct QapiType QapiType;

typedef struct QapiMember {
    const char *name;
    const QapiType *type;
    bool optional;
} QapiMember;

struct QapiType {
    QapiKind kind;
    const char *name;
    unsigned bits;             /* QAPI_INT, QAPI_UINT */
    const char *const *values; /* QAPI_ENUM: NULL-terminated */
    const QapiMember *members; /* QAPI_STRUCT: ends with a NULL name */
    bool open;                 /* QAPI_STRUCT: unknown members are let through */
    const QapiType *element;   /* QAPI_LIST */
};

/**
 * Check @args (NULL: no arguments) against @type, a QAPI_STRUCT: missing, unknown and
 * mistyped members, at any depth. False with @errp set, class GenericError.
 */
bool qapi_check_args(const QapiType *type, JsonObject *args, GError **errp);

#endif
