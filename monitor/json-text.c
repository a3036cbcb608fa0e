/*
 * Parsing, searching and writing one JSON text.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "monitor/json-text.h"

#include <math.h>
#include <string.h>

#include "util/error.h"

enum {
    TOK_END,
    TOK_STRING = 256,
    TOK_NUMBER,
    TOK_TRUE,
    TOK_FALSE,
    TOK_NULL,
    TOK_BAD,
};

typedef struct Lexer {
    const char *p, *end;
    JsonSpan tok;
    int kind;
    unsigned count; /* tokens left */
    unsigned deepest; /* nesting that is accepted */
} Lexer;

static const char *scan_digits(const char *p, const char *end)
{
    while (p < end && g_ascii_isdigit(*p)) {
        p++;
    }
    return p;
}

/* End of the number at @p, or NULL if it is none. */
static const char *scan_number(const char *p, const char *end)
{
    p += p < end && *p == '-';
    const char *digits = p;
    p = scan_digits(p, end);
    if (p == digits || (*digits == '0' && p - digits > 1)) {
        return NULL;
    }
    if (p < end && *p == '.') {
        const char *frac = ++p;
        p = scan_digits(p, end);
        if (p == frac) {
            return NULL;
        }
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;
        p += p < end && (*p == '+' || *p == '-');
        const char *exp = p;
        p = scan_digits(p, end);
        if (p == exp) {
            return NULL;
        }
    }
    return p;
}

static const char *scan_string(const char *p, const char *end)
{
    char quote = *p++;

    while (p < end && *p != quote) {
        if ((guint8)*p < 0x20) {
            return NULL;
        }
        p += *p == '\\' ? 2 : 1;
    }
    return p < end ? p + 1 : NULL;
}

static int scan_word(Lexer *lx)
{
    static const struct {
        const char *text;
        int kind;
    } words[] = {{"true", TOK_TRUE}, {"false", TOK_FALSE}, {"null", TOK_NULL}};
    const char *p = lx->p;

    while (p < lx->end && g_ascii_isalpha(*p)) {
        p++;
    }
    size_t len = p - lx->p;
    for (size_t i = 0; i < G_N_ELEMENTS(words); i++) {
        if (len == strlen(words[i].text) && !memcmp(lx->p, words[i].text, len)) {
            lx->p = p;
            return words[i].kind;
        }
    }
    return TOK_BAD;
}

static int next(Lexer *lx)
{
    while (lx->p < lx->end && strchr(" \t\r\n", *lx->p) && *lx->p) {
        lx->p++;
    }
    lx->tok.text = lx->p;
    lx->tok.len = 0;
    if (lx->p >= lx->end) {
        return lx->kind = TOK_END;
    }
    if (!lx->count--) {
        lx->count = 0;
        return lx->kind = TOK_BAD;
    }
    char c = *lx->p;
    const char *after = NULL;
    if (c && strchr("{}[]:,", c)) {
        lx->kind = (unsigned char)c;
        lx->p++;
    } else if (c == '"' || c == '\'') {
        after = scan_string(lx->p, lx->end);
        lx->kind = after ? TOK_STRING : TOK_BAD;
    } else if (c == '-' || g_ascii_isdigit(c)) {
        after = scan_number(lx->p, lx->end);
        lx->kind = after ? TOK_NUMBER : TOK_BAD;
    } else {
        lx->kind = scan_word(lx);
    }
    lx->p = after ? after : lx->p;
    lx->tok.len = lx->p - lx->tok.text;
    return lx->kind;
}

static void lexer_init(Lexer *lx, JsonSpan span)
{
    *lx = (Lexer){.p = span.text, .end = span.text + span.len,
                  .count = JSON_TEXT_TOKENS_MAX, .deepest = JSON_TEXT_DEPTH_MAX};
}

static bool hex4(const char *p, const char *end, gunichar *out)
{
    *out = 0;
    if (end - p < 4) {
        return false;
    }
    for (int i = 0; i < 4; i++) {
        int d = g_ascii_xdigit_value(p[i]);
        if (d < 0) {
            return false;
        }
        *out = *out << 4 | d;
    }
    return true;
}

static bool is_noncharacter(gunichar u)
{
    return (u >= 0xfdd0 && u <= 0xfdef) || (u & 0xfffe) == 0xfffe;
}

/* Decode the escape after a backslash at @p; NULL if it is none. */
static const char *decode_escape(const char *p, const char *end, GString *out)
{
    static const char from[] = "\"'\\/bfnrt", to[] = "\"'\\/\b\f\n\r\t";
    gunichar u, low;

    if (*p != 'u') {
        const char *f = *p ? strchr(from, *p) : NULL;
        if (!f) {
            return NULL;
        }
        g_string_append_c(out, to[f - from]);
        return p + 1;
    }
    if (!hex4(++p, end, &u)) {
        return NULL;
    }
    p += 4;
    if (u >= 0xd800 && u < 0xdc00 && end - p >= 6 && p[0] == '\\' && p[1] == 'u' &&
        hex4(p + 2, end, &low) && low >= 0xdc00 && low < 0xe000) {
        u = 0x10000 + ((u - 0xd800) << 10) + (low - 0xdc00);
        p += 6;
    }
    if (!u || (u >= 0xd800 && u < 0xe000) || is_noncharacter(u)) {
        return NULL;
    }
    g_string_append_unichar(out, u);
    return p;
}

/* The value of string token @tok, or NULL if it has a wrong escape or is not UTF-8. */
static GString *decode_string(JsonSpan tok)
{
    GString *out = g_string_sized_new(tok.len);
    const char *p = tok.text + 1, *end = tok.text + tok.len - 1;

    while (p && p < end) {
        if (*p == '\\') {
            p = decode_escape(p + 1, end, out);
        } else if ((guint8)*p < 0x80) {
            g_string_append_c(out, *p++);
        } else {
            gunichar u = g_utf8_get_char_validated(p, end - p);
            if (u & 0x80000000 || is_noncharacter(u)) {
                p = NULL;
            } else {
                g_string_append_unichar(out, u);
                p = g_utf8_next_char(p);
            }
        }
    }
    if (!p) {
        g_string_free(out, TRUE);
        return NULL;
    }
    return out;
}

/* --- Parser: the current token is the first of what is to be parsed --- */

static bool parse_value(Lexer *lx, unsigned depth, JsonNode **node, GError **errp);

static bool bad(Lexer *lx, const char *what, GError **errp)
{
    if (lx->kind == TOK_BAD && !lx->count) {
        colo_error_set(errp, "JSON token count limit exceeded");
    } else if (lx->kind == TOK_BAD && g_ascii_isalpha(*lx->tok.text)) {
        int n = 0;
        while (n < 40 && lx->tok.text + n < lx->end && g_ascii_isalpha(lx->tok.text[n])) {
            n++;
        }
        colo_error_set(errp, "JSON parse error, invalid keyword '%.*s'", n, lx->tok.text);
    } else {
        colo_error_set(errp, "JSON parse error, %s", what);
    }
    return false;
}

static bool parse_member(Lexer *lx, unsigned depth, GHashTable *keys, JsonObject *obj,
                         GError **errp)
{
    g_autoptr(GString) key = lx->kind == TOK_STRING ? decode_string(lx->tok) : NULL;

    if (!key) {
        return bad(lx, "key is not a string in object", errp);
    }
    if (!g_hash_table_add(keys, g_strdup(key->str))) {
        return bad(lx, "duplicate key", errp);
    }
    if (next(lx) != ':') {
        return bad(lx, "missing : in object pair", errp);
    }
    next(lx);
    JsonNode *value = NULL;
    if (!parse_value(lx, depth, obj ? &value : NULL, errp)) {
        return false;
    }
    if (obj) {
        json_object_set_member(obj, key->str, value);
    }
    return true;
}

static bool parse_object(Lexer *lx, unsigned depth, JsonNode **node, GError **errp)
{
    g_autoptr(JsonObject) obj = node ? json_object_new() : NULL;
    g_autoptr(GHashTable) keys = NULL;

    if (next(lx) != '}') {
        keys = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
        while (true) {
            if (!parse_member(lx, depth, keys, obj, errp)) {
                return false;
            }
            if (lx->kind == '}') {
                break;
            }
            if (lx->kind != ',') {
                return bad(lx, "expected separator in dict", errp);
            }
            next(lx);
        }
    }
    next(lx);
    if (node) {
        *node = json_node_init_object(json_node_alloc(), obj);
    }
    return true;
}

static bool parse_array(Lexer *lx, unsigned depth, JsonNode **node, GError **errp)
{
    g_autoptr(JsonArray) array = node ? json_array_new() : NULL;

    if (next(lx) != ']') {
        while (true) {
            JsonNode *item = NULL;
            if (!parse_value(lx, depth, node ? &item : NULL, errp)) {
                return false;
            }
            if (array) {
                json_array_add_element(array, item);
            }
            if (lx->kind == ']') {
                break;
            }
            if (lx->kind != ',') {
                return bad(lx, "expected separator in list", errp);
            }
            next(lx);
        }
    }
    next(lx);
    if (node) {
        *node = json_node_init_array(json_node_alloc(), array);
    }
    return true;
}

static JsonNode *number_node(JsonSpan tok)
{
    g_autofree char *s = g_strndup(tok.text, tok.len);
    gint64 i;

    if (g_ascii_string_to_signed(s, 10, G_MININT64, G_MAXINT64, &i, NULL)) {
        return json_node_init_int(json_node_alloc(), i);
    }
    /* Infinity has no JSON form: what is beyond the range is its end. */
    double v = g_ascii_strtod(s, NULL);
    return json_node_init_double(json_node_alloc(), CLAMP(v, -G_MAXDOUBLE, G_MAXDOUBLE));
}

static bool parse_value(Lexer *lx, unsigned depth, JsonNode **node, GError **errp)
{
    if (depth >= lx->deepest) {
        colo_error_set(errp, "JSON nesting depth limit exceeded");
        return false;
    }
    switch (lx->kind) {
    case '{':
        return parse_object(lx, depth + 1, node, errp);
    case '[':
        return parse_array(lx, depth + 1, node, errp);
    case TOK_STRING: {
        g_autoptr(GString) s = decode_string(lx->tok);
        if (!s) {
            return bad(lx, "invalid escape or UTF-8 sequence in string", errp);
        }
        if (node) {
            *node = json_node_init_string(json_node_alloc(), s->str);
        }
        break;
    }
    case TOK_NUMBER:
        if (node) {
            *node = number_node(lx->tok);
        }
        break;
    case TOK_TRUE:
    case TOK_FALSE:
        if (node) {
            *node = json_node_init_boolean(json_node_alloc(), lx->kind == TOK_TRUE);
        }
        break;
    case TOK_NULL:
        if (node) {
            *node = json_node_init_null(json_node_alloc());
        }
        break;
    default:
        return bad(lx, "expecting value", errp);
    }
    next(lx);
    return true;
}

bool json_text_parse(JsonSpan span, JsonNode **node, GError **errp)
{
    return json_text_parse_shallow(span, JSON_TEXT_DEPTH_MAX, node, errp);
}

bool json_text_parse_shallow(JsonSpan span, unsigned deepest, JsonNode **node, GError **errp)
{
    g_autoptr(JsonNode) made = NULL;
    Lexer lx;

    lexer_init(&lx, span);
    lx.deepest = deepest;
    next(&lx);
    if (!parse_value(&lx, 0, node ? &made : NULL, errp)) {
        return false;
    }
    if (lx.kind != TOK_END) {
        return bad(&lx, "unexpected text after a value", errp);
    }
    if (node) {
        *node = g_steal_pointer(&made);
    }
    return true;
}

/* --- Parts of valid text --- */

/* Skip the value whose first token is current; its text. The next token is current. */
static JsonSpan skip_value(Lexer *lx)
{
    JsonSpan span = lx->tok;
    unsigned depth = 0;

    do {
        if (lx->kind == '{' || lx->kind == '[') {
            depth++;
        } else if (lx->kind == '}' || lx->kind == ']') {
            depth--;
        }
        span.len = lx->p - span.text;
        next(lx);
    } while (depth && lx->kind != TOK_END);
    return span;
}

void json_text_foreach(JsonSpan obj, bool (*fn)(const char *key, JsonSpan value, void *o),
                       void *opaque)
{
    Lexer lx;

    lexer_init(&lx, obj);
    if (!obj.text || next(&lx) != '{') {
        return;
    }
    next(&lx);
    while (lx.kind == TOK_STRING) {
        g_autoptr(GString) key = decode_string(lx.tok);
        next(&lx); /* ':' */
        next(&lx);
        JsonSpan value = skip_value(&lx);
        if (!key || !fn(key->str, value, opaque) || lx.kind != ',') {
            return;
        }
        next(&lx);
    }
}

typedef struct Lookup {
    const char *key;
    JsonSpan value;
} Lookup;

static bool lookup_member(const char *key, JsonSpan value, void *opaque)
{
    Lookup *l = opaque;

    if (strcmp(key, l->key) == 0) {
        l->value = value;
        return false;
    }
    return true;
}

JsonSpan json_text_member(JsonSpan obj, const char *key)
{
    Lookup l = {.key = key};

    json_text_foreach(obj, lookup_member, &l);
    return l.value;
}

char *json_text_string(JsonSpan value)
{
    if (!value.text || value.len < 2 || (*value.text != '"' && *value.text != '\'')) {
        return NULL;
    }
    GString *s = decode_string(value);
    return s ? g_string_free(s, FALSE) : NULL;
}

/* --- Writing --- */

static void append_string_token(GString *out, JsonSpan tok)
{
    if (*tok.text == '"') {
        g_string_append_len(out, tok.text, tok.len);
        return;
    }
    g_string_append_c(out, '"');
    for (size_t i = 1; i + 1 < tok.len; i++) {
        char c = tok.text[i];
        if (c == '\\' && tok.text[i + 1] == '\'') {
            continue;
        }
        if (c == '\\') {
            g_string_append_c(out, c);
            c = tok.text[++i];
        } else if (c == '"') {
            g_string_append_c(out, '\\');
        }
        g_string_append_c(out, c);
    }
    g_string_append_c(out, '"');
}

static void new_line(GString *out, unsigned depth)
{
    g_string_append_printf(out, "\n%*s", (int)depth * 4, "");
}

void json_text_format(GString *out, JsonSpan span, bool pretty)
{
    unsigned depth = 0;
    bool opened = false; /* the last token opened an object or array */
    Lexer lx;

    lexer_init(&lx, span);
    lx.count = G_MAXUINT; /* an answer may be longer than a request */
    while (next(&lx) != TOK_END && lx.kind != TOK_BAD) {
        bool closes = lx.kind == '}' || lx.kind == ']';
        depth -= closes;
        if (pretty && opened != closes) {
            new_line(out, depth); /* not within an empty one */
        }
        opened = lx.kind == '{' || lx.kind == '[';
        depth += opened;
        if (lx.kind == TOK_STRING) {
            append_string_token(out, lx.tok);
        } else {
            g_string_append_len(out, lx.tok.text, lx.tok.len);
        }
        if (lx.kind == ':') {
            g_string_append_c(out, ' ');
        } else if (lx.kind == ',' && pretty) {
            new_line(out, depth);
        } else if (lx.kind == ',') {
            g_string_append_c(out, ' ');
        }
    }
}

void json_text_append_node(GString *out, JsonNode *node)
{
    if (!node) {
        g_string_append(out, "{}");
        return;
    }
    g_autofree char *text = json_to_string(node, FALSE);
    json_text_format(out, (JsonSpan){text, strlen(text)}, false);
}

void json_text_append_string(GString *out, const char *s)
{
    g_autofree char *valid = g_utf8_make_valid(s, -1);

    g_string_append_c(out, '"');
    for (const char *p = valid; *p; p++) {
        if (*p == '"' || *p == '\\') {
            g_string_append_printf(out, "\\%c", *p);
        } else if ((guint8)*p < 0x20) {
            g_string_append_printf(out, "\\u%04x", *p);
        } else {
            g_string_append_c(out, *p);
        }
    }
    g_string_append_c(out, '"');
}
