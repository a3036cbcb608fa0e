/*
 * Options: QEMU's keyval and JSON option text as JSON objects, and typed access.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "util/options.h"

#include <inttypes.h>
#include <string.h>

#include "util/error.h"

#define JSON_VALUES_MAX 1000
#define OPTIONS_DEPTH_MAX 64

/* The object at @obj.@key, made if it is not there; NULL if a value stands there. */
static JsonObject *descend(JsonObject *obj, const char *key)
{
    if (!json_object_has_member(obj, key)) {
        JsonObject *sub = json_object_new();
        json_object_set_object_member(obj, key, sub);
        return sub;
    }
    return options_get_obj(obj, key);
}

static bool store(JsonObject *obj, const char *dotted, const char *value, GError **errp)
{
    g_auto(GStrv) parts = g_strsplit(dotted, ".", OPTIONS_DEPTH_MAX);
    guint n = g_strv_length(parts);

    for (guint i = 0; i < n; i++) {
        if (!*parts[i]) {
            colo_error_set(errp, "Invalid parameter '%s'", dotted);
            return false;
        }
    }
    for (guint i = 0; i + 1 < n; i++) {
        obj = descend(obj, parts[i]);
        if (!obj) {
            colo_error_set(errp, "Parameters '%s.*' used inconsistently", parts[i]);
            return false;
        }
    }
    const char *last = parts[n - 1];
    if (options_get_obj(obj, last)) {
        /* "file=x,file.locking=off": QEMU lets the string name the node and drops
         * neither; the string goes under the empty-named member "". */
        json_object_set_string_member(options_get_obj(obj, last), "", value);
        return true;
    }
    json_object_set_string_member(obj, last, value);
    return true;
}

/* Copy text up to an unescaped ',' (",," stands for one) into @out; returns what follows. */
static const char *take_value(const char *p, GString *out)
{
    for (; *p; p++) {
        if (*p == ',') {
            if (p[1] != ',') {
                return p + 1;
            }
            p++;
        }
        g_string_append_c(out, *p);
    }
    return p;
}

/* The parser below recurses without a bound, and the text may be a peer's. */
static bool is_nested_too_deep(const char *text)
{
    unsigned n = 0;

    for (text = strpbrk(text, "[{"); text && n <= JSON_VALUES_MAX; n++) {
        text = strpbrk(text + 1, "[{");
    }
    return n > JSON_VALUES_MAX;
}

static JsonObject *parse_json(const char *text, GError **errp)
{
    g_autoptr(JsonParser) parser = json_parser_new();

    if (is_nested_too_deep(text)) {
        colo_error_set(errp, "JSON option: more than %u lists and objects", JSON_VALUES_MAX);
        return NULL;
    }
    if (!json_parser_load_from_data(parser, text, -1, errp)) {
        g_prefix_error(errp, "JSON option: ");
        return NULL;
    }
    JsonNode *root = json_parser_get_root(parser);
    if (!root || !JSON_NODE_HOLDS_OBJECT(root)) {
        colo_error_set(errp, "JSON option: expected an object");
        return NULL;
    }
    return json_object_ref(json_node_get_object(root));
}

JsonObject *options_parse(const char *text, const char *implied_key, GError **errp)
{
    if (*text == '{') {
        return parse_json(text, errp);
    }
    g_autoptr(JsonObject) obj = json_object_new();
    bool first = true;

    while (*text) {
        size_t klen = strcspn(text, "=,");
        bool implied = first && implied_key && text[klen] != '=';
        g_autoptr(GString) value = g_string_new(NULL);
        g_autofree char *key = NULL;

        if (implied) {
            key = g_strdup(implied_key);
            text = take_value(text, value);
        } else if (klen == 0) {
            colo_error_set(errp, "Expected a parameter name before '%s'", text);
            return NULL;
        } else {
            key = g_strndup(text, klen);
            text += klen;
            if (*text == '=') {
                text = take_value(text + 1, value);
            } else {
                g_string_assign(value, "on");
                text += *text == ',';
            }
        }
        if (!store(obj, key, value->str, errp)) {
            return NULL;
        }
        first = false;
    }
    return g_steal_pointer(&obj);
}

const char *options_get_str(JsonObject *obj, const char *key, const char *dflt)
{
    JsonNode *node = obj ? json_object_get_member(obj, key) : NULL;

    if (!node || !JSON_NODE_HOLDS_VALUE(node)) {
        return dflt;
    }
    GType type = json_node_get_value_type(node);
    if (type == G_TYPE_STRING) {
        return json_node_get_string(node);
    }
    char text[64];
    if (type == G_TYPE_BOOLEAN) {
        return json_node_get_boolean(node) ? "on" : "off";
    } else if (type == G_TYPE_INT64) {
        g_snprintf(text, sizeof(text), "%" G_GINT64_FORMAT, json_node_get_int(node));
    } else {
        g_ascii_dtostr(text, sizeof(text), json_node_get_double(node));
    }
    return g_intern_string(text);
}

bool options_get_bool(JsonObject *obj, const char *key, bool *out, GError **errp)
{
    static const char *const on[] = {"on", "yes", "true", "y", NULL};
    static const char *const off[] = {"off", "no", "false", "n", NULL};

    if (!obj || !json_object_has_member(obj, key)) {
        return true;
    }
    const char *s = options_get_str(obj, key, "");
    if (g_strv_contains(on, s)) {
        *out = true;
    } else if (g_strv_contains(off, s)) {
        *out = false;
    } else {
        colo_error_set(errp, "Parameter '%s' expects 'on' or 'off', not '%s'", key, s);
        return false;
    }
    return true;
}

bool options_get_uint(JsonObject *obj, const char *key, uint64_t *out, uint64_t min,
                      uint64_t max, GError **errp)
{
    if (!obj || !json_object_has_member(obj, key)) {
        return true;
    }
    const char *s = options_get_str(obj, key, "");
    guint64 v;
    const char *digits = g_str_has_prefix(s, "0x") ? s + 2 : s;
    if (!g_ascii_string_to_unsigned(digits, digits == s ? 10 : 16, min, max, &v, NULL)) {
        colo_error_set(errp,
                       "Parameter '%s' expects a number from %" PRIu64 " to %" PRIu64
                       ", not '%s'",
                       key, min, max, s);
        return false;
    }
    *out = v;
    return true;
}

bool options_get_size(JsonObject *obj, const char *key, uint64_t default_unit,
                      uint64_t *out, GError **errp)
{
    static const char units[] = "bkmgtpe";

    if (!obj || !json_object_has_member(obj, key)) {
        return true;
    }
    const char *s = options_get_str(obj, key, "");
    char *end = NULL;
    double v = g_ascii_strtod(s, &end);
    double unit = default_unit;
    if (end != s && *end) {
        const char *u = strchr(units, g_ascii_tolower(*end));
        if (u) {
            unit = (double)(1ULL << (10 * (u - units)));
            end++;
        }
    }
    if (end == s || *end || !(v >= 0) || v * unit > 9e18) {
        colo_error_set(errp, "Parameter '%s' expects a size such as 512M, not '%s'", key, s);
        return false;
    }
    *out = (uint64_t)(v * unit);
    return true;
}

JsonObject *options_get_obj(JsonObject *obj, const char *key)
{
    JsonNode *node = obj ? json_object_get_member(obj, key) : NULL;

    return node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

bool options_check_known(JsonObject *obj, const char *what, const char *const *known,
                         GError **errp)
{
    g_autoptr(GList) keys = json_object_get_members(obj);

    for (GList *l = keys; l; l = l->next) {
        if (!g_strv_contains(known, l->data)) {
            g_autofree char *list = g_strjoinv(", ", (char **)known);
            colo_error_set(errp, "%s: Invalid parameter '%s' (known: %s)", what,
                           (char *)l->data, list);
            return false;
        }
    }
    return true;
}

static void append_flat(GString *out, JsonNode *node, const char *prefix,
                        const char *first_key);

static void append_item(GString *out, const char *key, const char *value, bool bare)
{
    if (out->len) {
        g_string_append_c(out, ',');
    }
    if (!bare) {
        g_string_append_printf(out, "%s=", key);
    }
    for (; *value; value++) {
        g_string_append_c(out, *value);
        if (*value == ',') {
            g_string_append_c(out, ',');
        }
    }
}

static void append_object(GString *out, JsonObject *obj, const char *prefix,
                          const char *first_key)
{
    g_autoptr(GList) keys = json_object_get_members(obj);

    for (GList *l = keys; l; l = l->next) {
        const char *k = l->data;
        g_autofree char *path = !*k ? g_strdup(prefix)
                                    : (prefix ? g_strdup_printf("%s.%s", prefix, k)
                                              : g_strdup(k));
        append_flat(out, json_object_get_member(obj, k), path, first_key);
    }
}

static void append_flat(GString *out, JsonNode *node, const char *prefix,
                        const char *first_key)
{
    if (JSON_NODE_HOLDS_OBJECT(node)) {
        append_object(out, json_node_get_object(node), prefix, first_key);
    } else if (JSON_NODE_HOLDS_ARRAY(node)) {
        JsonArray *a = json_node_get_array(node);
        for (guint i = 0; i < json_array_get_length(a); i++) {
            g_autofree char *path = g_strdup_printf("%s.%u", prefix, i);
            append_flat(out, json_array_get_element(a, i), path, first_key);
        }
    } else if (JSON_NODE_HOLDS_VALUE(node) && g_strcmp0(prefix, first_key) != 0) {
        g_autoptr(JsonObject) tmp = json_object_new();
        json_object_set_member(tmp, "v", json_node_copy(node));
        append_item(out, prefix, options_get_str(tmp, "v", ""), false);
    }
}

char *options_format(JsonObject *obj, const char *first_key)
{
    GString *out = g_string_new(NULL);

    if (first_key && json_object_has_member(obj, first_key)) {
        append_item(out, first_key, options_get_str(obj, first_key, ""), true);
    }
    append_object(out, obj, NULL, first_key);
    return g_string_free(out, FALSE);
}

JsonObject *options_copy(JsonObject *obj)
{
    g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), obj);
    g_autofree char *text = json_to_string(node, FALSE);

    return parse_json(text, NULL);
}
