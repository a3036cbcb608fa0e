/*
 * Properties of the objects of the net room: names, types, checks.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * One table a type says what object-add takes, what qom-list shows and what a value must
 * be. Error texts are QEMU's, since scripts and management tools read them. A value of
 * QMP has a JSON type that must be right (@strict); one of the command line is a string.
 */
#ifndef COLO_NET_PROPERTY_H
#define COLO_NET_PROPERTY_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>

typedef enum NetPropertyKind {
    NET_PROPERTY_STRING,
    NET_PROPERTY_BOOL,
    NET_PROPERTY_UINT, /* 0 to UINT32_MAX */
} NetPropertyKind;

typedef struct NetProperty {
    const char *name;
    const char *qom_type; /* as qom-list shows it */
    NetPropertyKind kind;
    bool required;
    bool positive;             /* UINT: 0 is refused */
    const char *const *values; /* STRING: all that are allowed, NULL-terminated; or NULL */
} NetProperty;

/** The entry @name of @table (ends with a NULL name), or NULL. */
const NetProperty *net_property_find(const NetProperty *table, const char *name);

/** Whether @value may be given to property @p of an object of type @type. */
bool net_property_check(const NetProperty *p, const char *type, JsonNode *value,
                        bool strict, GError **errp);

/**
 * Whether the members of @opts, qom-type and id aside, are all in one of @tables (ends
 * with NULL) with values they may have, and the required ones are there.
 */
bool net_properties_check(const NetProperty *const *tables, const char *type,
                          JsonObject *opts, bool strict, GError **errp);

/** Append {name, type} of each entry to @out, as qom-list answers. */
void net_properties_list(const NetProperty *table, JsonArray *out);

#endif
