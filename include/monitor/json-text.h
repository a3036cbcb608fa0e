/*
 * JSON as text: where a value ends in a stream, whether it is valid, what its parts are.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The monitor forwards most commands and answers. They are kept as text on the way, so
 * that no number loses a digit and no value has to be understood. What is accepted here
 * is never more than what QEMU's own parser accepts: a forwarded text that it could not
 * parse would have no id and its answer no owner.
 */
#ifndef COLO_MONITOR_JSON_TEXT_H
#define COLO_MONITOR_JSON_TEXT_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>

#define JSON_TEXT_SIZE_MAX ((size_t)(64 * 1024 * 1024 - 4096))
#define JSON_TEXT_DEPTH_MAX 1024
#define JSON_TEXT_TOKENS_MAX (2 * 1024 * 1024 - 64)

/* A piece of a text, not NUL-terminated; text NULL: absent. */
typedef struct JsonSpan {
    const char *text;
    size_t len;
} JsonSpan;

/** Check @span for being one valid JSON value (strings may also be single-quoted); where
 * @node is not NULL, make it (caller frees). False with @errp set. */
bool json_text_parse(JsonSpan span, JsonNode **node, GError **errp);

/** The same for a text of a stranger whose form is known: deeper than @deepest (a value that is
 * no object and no array has depth 1) is an error. */
bool json_text_parse_shallow(JsonSpan span, unsigned deepest, JsonNode **node, GError **errp);

/* The functions below want valid text. */

/** Value of member @key of the object @obj, without surrounding space. */
JsonSpan json_text_member(JsonSpan obj, const char *key);

/** Call @fn for each member (@key decoded) of the object @obj until it returns false. */
void json_text_foreach(JsonSpan obj, bool (*fn)(const char *key, JsonSpan value, void *o),
                       void *opaque);

/** Decoded string value, or NULL if @value is absent or no string. Caller frees. */
char *json_text_string(JsonSpan value);

/** Append @span to @out as QEMU writes JSON: on one line, or with @pretty on several. */
void json_text_format(GString *out, JsonSpan span, bool pretty);

/** @node in QEMU's one-line form (NULL: "{}"), appended to @out. */
void json_text_append_node(GString *out, JsonNode *node);

/** @s as a JSON string, appended to @out; what is not UTF-8 is replaced. */
void json_text_append_string(GString *out, const char *s);

/** --- A stream of values --- */

typedef struct JsonStream JsonStream;

typedef enum JsonStreamResult {
    JSON_STREAM_EMPTY, /* push more first */
    JSON_STREAM_TEXT,  /* a text that looks like one value; not yet checked */
    JSON_STREAM_ERROR, /* @errp says what was wrong; the stream is usable again */
} JsonStreamResult;

JsonStream *json_stream_new(void);
void json_stream_free(JsonStream *s);
void json_stream_push(JsonStream *s, const void *data, size_t len);

/** Take the next value's text out of @s into *@text (caller frees with g_string_free). */
JsonStreamResult json_stream_next(JsonStream *s, GString **text, GError **errp);

#endif
