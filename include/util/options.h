/*
 * Options: QEMU's keyval and JSON option text as JSON objects, and typed access.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * However an option was written (-drive a.b=1,c=on; -blockdev '{"a":{"b":1}}'; a QMP
 * argument), its reader sees one nested JsonObject. Keyval leaves are strings, JSON
 * leaves have types; the getters below accept both.
 */
#ifndef COLO_UTIL_OPTIONS_H
#define COLO_UTIL_OPTIONS_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>
#include <stdint.h>

/**
 * Parse QEMU's "key=value,key.sub=value,flag" text ("," in a value is written ",,").
 * @implied_key: key of a first item without "=" (e.g. "type", "backend"), or NULL.
 * A later bare flag means "on"; "noflag" is taken literally. Text that starts with "{"
 * is parsed as JSON. Dotted keys nest; a list stays an object with keys "0", "1", ...
 * Returns a new reference, or NULL with @errp set.
 */
JsonObject *options_parse(const char *text, const char *implied_key, GError **errp);

/** The inverse of options_parse(), flattened, values with "," escaped; @first_key's value
 * comes first without its key where it is not NULL. Caller frees. */
char *options_format(JsonObject *obj, const char *first_key);

/** String value of @key (numbers and booleans are rendered), or @dflt; borrowed from
 * @obj or interned, valid as long as @obj. */
const char *options_get_str(JsonObject *obj, const char *key, const char *dflt);

/** Boolean value of @key: JSON bool, or on/off/yes/no/true/false/y/n. Absent: *@out keeps its
 * value. Returns false with @errp set if the value is something else. */
bool options_get_bool(JsonObject *obj, const char *key, bool *out, GError **errp);

/** Unsigned integer of @key within [@min, @max]. Absent: *@out keeps its value. */
bool options_get_uint(JsonObject *obj, const char *key, uint64_t *out, uint64_t min,
                      uint64_t max, GError **errp);

/** Size in bytes of @key with suffix b, k, M, G, T (bare numbers are scaled by
 * @default_unit, 1 for bytes). Absent: *@out keeps its value. */
bool options_get_size(JsonObject *obj, const char *key, uint64_t default_unit,
                      uint64_t *out, GError **errp);

/** Nested object of @key, or NULL; borrowed. */
JsonObject *options_get_obj(JsonObject *obj, const char *key);

/**
 * Whether every key of @obj is in the NULL-terminated list @known; otherwise an error
 * that names @what (e.g. "filter-mirror 'm0'"), the key and the known ones.
 */
bool options_check_known(JsonObject *obj, const char *what, const char *const *known,
                         GError **errp);

/** Deep copy; new reference. */
JsonObject *options_copy(JsonObject *obj);

#endif
