/*
 * Fuzz: the monitor's stream of JSON and what reads its texts.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Bytes reach the stream in pieces of any size. Beside not crashing: the same bytes in
 * other pieces give the same texts, and after 0xff the stream always understands again.
 */
#include "fuzz.h"
#include "monitor/json-text.h"

static const char *const words[] = {
    "{", "}", "[", "]", ":", ",", "\"", "'", "\\", " ", "\n", "\t", "null", "true", "false",
    "0", "-1", "1e400", "-", "0.5", "18446744073709551616", "\"id\"", "\"execute\":",
    "\"arguments\":{", "\"query-status\"", "\\u0000", "\\ud800", "\\udc00", "\\u00e9",
    "\xc3\xa9", "\xc0\x80", "\xf0\x9f\x98\x80", "\xff", "{\"a\":[1,2,{\"b\":null}]}",
    "'x'", "%s", "/*", "\x01", "\x7f",
};

static GByteArray *make_input(void)
{
    GByteArray *in = g_byte_array_new();

    for (unsigned n = 1 + fuzz_below(60); n; n--) {
        if (fuzz_one_in(12)) {
            uint8_t b[8];
            unsigned len = fuzz_below(sizeof(b));
            fuzz_bytes(b, len);
            g_byte_array_append(in, b, len);
        } else {
            const char *w = words[fuzz_below(G_N_ELEMENTS(words))];
            g_byte_array_append(in, (const guint8 *)w, strlen(w));
        }
    }
    if (fuzz_one_in(50)) { /* deep */
        for (unsigned n = fuzz_below(3000); n; n--) {
            const char *w = fuzz_one_in(9) ? "{\"a\":" : "[";
            g_byte_array_append(in, (const guint8 *)w, strlen(w));
        }
    }
    return in;
}

static bool count_member(const char *key, JsonSpan value, void *opaque)
{
    ++*(unsigned *)opaque;
    g_free(json_text_string(value));
    return true;
}

static void use(GString *text)
{
    JsonSpan span = {text->str, text->len};
    g_autoptr(GError) err = NULL;
    JsonNode *node = NULL;
    unsigned members = 0;

    if (!json_text_parse(span, fuzz_one_in(2) ? &node : NULL, &err)) {
        g_assert_nonnull(err);
        g_assert_null(node);
        return;
    }
    g_autoptr(GString) out = g_string_new(NULL);
    json_text_format(out, span, fuzz_one_in(2));
    /* What we write we can read. */
    if (!json_text_parse((JsonSpan){out->str, out->len}, NULL, &err)) {
        g_error("'%s' became '%s': %s", text->str, out->str, err->message);
    }
    if (*text->str == '{') {
        json_text_member(span, "id");
        json_text_foreach(span, count_member, &members);
    }
    g_free(json_text_string(span));
    if (node) {
        g_string_truncate(out, 0);
        json_text_append_node(out, node);
        if (!json_text_parse((JsonSpan){out->str, out->len}, NULL, &err)) {
            g_error("'%s' became '%s': %s", text->str, out->str, err->message);
        }
        json_node_unref(node);
    }
}

/* All that the stream makes of @in, one line a value. */
static GString *read_all(GByteArray *in, unsigned piece)
{
    GString *said = g_string_new(NULL);
    JsonStream *s = json_stream_new();
    static const char mark[] = "\xff{\"mark\":1}";
    bool marked = false;

    for (size_t at = 0; at < in->len + sizeof(mark) - 1;) {
        size_t len = 1 + fuzz_below(piece);
        if (at < in->len) {
            len = MIN(len, in->len - at);
            json_stream_push(s, in->data + at, len);
        } else {
            len = sizeof(mark) - 1;
            json_stream_push(s, mark, len);
        }
        at += len;
        for (;;) {
            GString *text = NULL;
            g_autoptr(GError) err = NULL;
            JsonStreamResult r = json_stream_next(s, &text, &err);
            if (r == JSON_STREAM_EMPTY) {
                break;
            }
            g_assert_true(r == JSON_STREAM_ERROR ? err && !text : text && !err);
            g_string_append(said, text ? text->str : err->message);
            g_string_append_c(said, '\n');
            if (text) {
                use(text);
                marked = strcmp(text->str, "{\"mark\":1}") == 0;
                g_string_free(text, TRUE);
            }
        }
    }
    g_assert_true(marked);
    json_stream_free(s);
    return said;
}

static void one(void)
{
    g_autoptr(GByteArray) in = make_input();
    g_autoptr(GString) a = read_all(in, 1 + fuzz_below(16));
    g_autoptr(GString) b = read_all(in, 4096);

    g_assert_cmpstr(a->str, ==, b->str);
}

int main(int argc, char **argv)
{
    return fuzz_main(argc, argv, "json", one);
}
