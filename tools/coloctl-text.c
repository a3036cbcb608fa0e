/*
 * coloctl: text for people, and JSON that others wrote.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "coloctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static bool shows_colours(int fd)
{
    const char *term = g_getenv("TERM"), *plain = g_getenv("NO_COLOR");

    return isatty(fd) && !(plain && *plain) && term && *term && strcmp(term, "dumb") != 0;
}

bool ctl_is_terminal(void)
{
    return shows_colours(STDOUT_FILENO);
}

char *ctl_paint(CtlColour colour, const char *text)
{
    static const char *const codes[] = {
        [CTL_BOLD] = "1", [CTL_DIM] = "2", [CTL_GREEN] = "32", [CTL_YELLOW] = "33",
        [CTL_RED] = "1;31",
    };

    if (colour == CTL_PLAIN || !shows_colours(STDOUT_FILENO)) {
        return g_strdup(text);
    }
    return g_strdup_printf("\033[%sm%s\033[0m", codes[colour], text);
}

char *ctl_clean(const char *text, size_t max)
{
    g_autofree char *valid = g_utf8_make_valid(text, MIN(strlen(text), max));
    GString *out = g_string_new(NULL);

    for (const char *p = valid; *p; p = g_utf8_next_char(p)) {
        gunichar c = g_utf8_get_char(p);
        if (c == '\n' || c == '\t') {
            g_string_append_c(out, ' ');
        } else {
            g_string_append_unichar(out, g_unichar_iscntrl(c) ? '?' : c);
        }
    }
    return g_string_free(out, FALSE);
}

char *ctl_bytes(int64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = bytes;
    unsigned u = 0;

    while (v >= 1024 && u + 1 < G_N_ELEMENTS(units)) {
        v /= 1024;
        u++;
    }
    return g_strdup_printf(u == 0 || v >= 100 ? "%.0f %s" : "%.1f %s", v, units[u]);
}

char *ctl_us(int64_t us)
{
    if (us < 1000) {
        return g_strdup_printf("%" PRId64 " us", us);
    }
    return us < 10000000 ? g_strdup_printf(us < 100000 ? "%.1f ms" : "%.0f ms", us / 1e3)
                         : g_strdup_printf("%.1f s", us / 1e6);
}

/* Levenshtein's distance; words are short. */
static unsigned distance(const char *a, const char *b)
{
    size_t n = strlen(b);
    g_autofree unsigned *row = g_new(unsigned, n + 1);

    for (size_t j = 0; j <= n; j++) {
        row[j] = j;
    }
    for (size_t i = 1; a[i - 1]; i++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            unsigned above = row[j];
            unsigned best = MIN(above, row[j - 1]) + 1;
            row[j] = MIN(best, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[n];
}

const char *ctl_nearest(const char *word, const char *const *known)
{
    unsigned best = MAX(2, strlen(word) / 2) + 1;
    const char *found = NULL;

    for (; strlen(word) <= 64 && *known; known++) {
        unsigned d = distance(word, *known);
        if (d < best) {
            best = d;
            found = *known;
        }
    }
    return found;
}

void ctl_progress(CtlProgress *p, int64_t done, int64_t total)
{
    double part = total > 0 ? CLAMP((double)done / total, 0, 1) : 0;
    int tenth = part * 10;
    g_autofree char *now = ctl_bytes(done), *all = ctl_bytes(total);

    if (shows_colours(STDERR_FILENO)) {
        char bar[31];
        memset(bar, '.', sizeof(bar) - 1);
        memset(bar, '#', (size_t)(part * (sizeof(bar) - 1)));
        bar[sizeof(bar) - 1] = 0;
        fprintf(stderr, "\r\033[K%s [%s] %3.0f %%  %s of %s", p->label, bar, part * 100, now,
                all);
        fflush(stderr);
        p->open = true;
    } else if (tenth != p->last && total > 0) {
        fprintf(stderr, "%s: %d %% (%s of %s)\n", p->label, tenth * 10, now, all);
    }
    p->last = tenth;
}

void ctl_progress_end(CtlProgress *p)
{
    if (p->open) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
        p->open = false;
    }
}

static JsonNode *member(JsonObject *o, const char *key)
{
    return o && json_object_has_member(o, key) ? json_object_get_member(o, key) : NULL;
}

JsonObject *ctl_object(JsonObject *o, const char *key)
{
    JsonNode *n = member(o, key);

    return n && JSON_NODE_HOLDS_OBJECT(n) ? json_node_get_object(n) : NULL;
}

JsonArray *ctl_array(JsonObject *o, const char *key)
{
    JsonNode *n = member(o, key);

    return n && JSON_NODE_HOLDS_ARRAY(n) ? json_node_get_array(n) : NULL;
}

int64_t ctl_int(JsonObject *o, const char *key, int64_t dflt)
{
    JsonNode *n = member(o, key);

    return n && JSON_NODE_HOLDS_VALUE(n) && json_node_get_value_type(n) == G_TYPE_INT64
               ? json_node_get_int(n) : dflt;
}

bool ctl_bool(JsonObject *o, const char *key, bool dflt)
{
    JsonNode *n = member(o, key);

    return n && JSON_NODE_HOLDS_VALUE(n) && json_node_get_value_type(n) == G_TYPE_BOOLEAN
               ? json_node_get_boolean(n) : dflt;
}

const char *ctl_str(JsonObject *o, const char *key, const char *dflt)
{
    JsonNode *n = member(o, key);

    return n && JSON_NODE_HOLDS_VALUE(n) && json_node_get_value_type(n) == G_TYPE_STRING
               ? json_node_get_string(n) : dflt;
}

char *ctl_json(JsonNode *node, bool pretty)
{
    g_autoptr(JsonGenerator) gen = json_generator_new();

    json_generator_set_root(gen, node);
    json_generator_set_pretty(gen, pretty);
    return json_generator_to_data(gen, NULL);
}
