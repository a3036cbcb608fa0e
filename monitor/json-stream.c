/*
 * Finding the values in a stream of JSON, whatever the stream holds.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Each byte is looked at once. Outside of values (depth 0) a value starts; a '{' or '['
 * ends with its counterpart, a string with its quote, anything else (a number, junk) with
 * white space or the next structural byte. A byte 0xff puts the reader back to depth 0
 * wherever it was, so a client can always make itself understood again. A text that is too
 * long or too deep, or a control character in a string, is an error; what follows is
 * skipped up to the next line end (or 0xff).
 */
#include "monitor/json-text.h"

#include <string.h>

#include "util/error.h"

struct JsonStream {
    GByteArray *buf;
    size_t start; /* of the value being read */
    size_t pos;   /* next byte to look at */
    unsigned depth;
    char quote; /* of the string we are in, or 0 */
    bool escaped;
    bool skipping;
};

JsonStream *json_stream_new(void)
{
    JsonStream *s = g_new0(JsonStream, 1);

    s->buf = g_byte_array_new();
    return s;
}

void json_stream_free(JsonStream *s)
{
    if (s) {
        g_byte_array_unref(s->buf);
        g_free(s);
    }
}

/* Forget what was taken; moving the rest is worth it only when it is the smaller part. */
static void compact(JsonStream *s)
{
    if (s->start == s->buf->len) {
        g_byte_array_set_size(s->buf, 0);
        s->pos = s->start = 0;
    } else if (s->start > s->buf->len / 2) {
        g_byte_array_remove_range(s->buf, 0, s->start);
        s->pos -= s->start;
        s->start = 0;
    }
}

void json_stream_push(JsonStream *s, const void *data, size_t len)
{
    compact(s);
    g_byte_array_append(s->buf, data, len);
}

static void restart(JsonStream *s, bool skipping)
{
    s->start = s->pos;
    s->depth = 0;
    s->quote = 0;
    s->escaped = false;
    s->skipping = skipping;
}

static JsonStreamResult fail(JsonStream *s, bool skip, const char *msg, GError **errp)
{
    restart(s, skip);
    colo_error_set(errp, "JSON parse error, %s", msg);
    return JSON_STREAM_ERROR;
}

static JsonStreamResult take(JsonStream *s, GString **text)
{
    *text = g_string_new_len((char *)s->buf->data + s->start, s->pos - s->start);
    restart(s, false);
    return JSON_STREAM_TEXT;
}

static bool is_space(guint8 c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* In a number, keyword or junk at depth 0: does @c belong to it? */
static bool continues_word(guint8 c)
{
    return !is_space(c) && !strchr("{}[]\"'", c) && c != 0xff;
}

static void step_string(JsonStream *s, guint8 c)
{
    if (s->escaped) {
        s->escaped = false;
    } else if (c == '\\') {
        s->escaped = true;
    } else if (c == (guint8)s->quote) {
        s->quote = 0;
    }
}

JsonStreamResult json_stream_next(JsonStream *s, GString **text, GError **errp)
{
    while (s->pos < s->buf->len) {
        bool first = s->pos == s->start;
        guint8 c = s->buf->data[s->pos];

        if (c == 0xff) {
            s->pos++;
            return fail(s, false, "stray 0xff", errp);
        }
        if (s->skipping) {
            s->pos++;
            restart(s, c != '\n');
            continue;
        }
        if (!first && !s->depth && !s->quote && !continues_word(c)) {
            return take(s, text);
        }
        s->pos++;
        if (s->pos - s->start > JSON_TEXT_SIZE_MAX) {
            restart(s, true);
            colo_error_set(errp, "JSON token size limit exceeded");
            return JSON_STREAM_ERROR;
        }
        if (s->quote) {
            if (c < 0x20) {
                return fail(s, c != '\n', "control character in a string", errp);
            }
            step_string(s, c);
            if (!s->quote && !s->depth) {
                return take(s, text);
            }
        } else if (c == '"' || c == '\'') {
            s->quote = c;
        } else if (c == '{' || c == '[') {
            if (++s->depth > JSON_TEXT_DEPTH_MAX) {
                restart(s, true);
                colo_error_set(errp, "JSON nesting depth limit exceeded");
                return JSON_STREAM_ERROR;
            }
        } else if (c == '}' || c == ']') {
            if (!s->depth) {
                return fail(s, false, "expecting value", errp);
            }
            if (--s->depth == 0) {
                return take(s, text);
            }
        } else if (first && is_space(c)) {
            s->start = s->pos;
        }
    }
    return JSON_STREAM_EMPTY;
}
