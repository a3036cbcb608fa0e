/*
 * -readconfig: options out of a file, as if they stood on the command line.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The file has lines '[GROUP "ID"]' or '[GROUP]', each followed by lines 'KEY = "VALUE"'; a
 * line that begins with # is a comment. A group is what the option of that name takes, but
 * for those in @renamed.
 */
#include <string.h>

#include "system/cmdline.h"
#include "util/error.h"

static const char *const renamed[][2] = {
    {"memory", "m"}, {"smp-opts", "smp"}, {"boot-opts", "boot"},
};
/* Groups that are passed to the emulator as options; "object" and the like are looked at
 * here as on the command line. */
static const char *const known[] = {
    "accel",  "acpi",      "action", "add-fd",   "audiodev", "blockdev", "boot-opts",
    "chardev", "cpu-throttle", "device", "drive", "fw_cfg",   "global",   "icount",
    "iscsi",  "machine",   "memory", "mon",      "msg",      "name",     "net",
    "netdev", "nic",       "numa",   "object",   "option-rom", "overcommit", "plugin",
    "realtime", "rtc",     "sandbox", "semihosting-config", "set", "smbios", "smp-opts",
    "spice",  "tpmdev",    "trace",  "vnc",      NULL,
};

typedef struct Section {
    char *name;     /* of the option */
    GString *arg;   /* what it takes; NULL: no section yet */
} Section;

static void append_value(GString *arg, const char *key, const char *value)
{
    if (arg->len) {
        g_string_append_c(arg, ',');
    }
    g_string_append_printf(arg, "%s=", key);
    for (; *value; value++) {
        g_string_append_c(arg, *value);
        if (*value == ',') {
            g_string_append_c(arg, ',');
        }
    }
}

static void section_end(CmdLine *cl, Section *s)
{
    if (s->arg) {
        char *name = g_steal_pointer(&s->name);
        char *arg = g_string_free(g_steal_pointer(&s->arg), FALSE);
        CmdOption o = {name, arg};

        g_ptr_array_add(cl->owned, name);
        g_ptr_array_add(cl->owned, arg);
        g_array_append_val(cl->options, o);
    }
}

static bool section_begin(CmdLine *cl, Section *s, const char *group, const char *id,
                          GError **errp)
{
    const char *option = group;

    section_end(cl, s);
    if (!g_strv_contains(known, group)) {
        colo_error_set(errp, "There is no option group '%s'", group);
        return false;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(renamed); i++) {
        option = strcmp(group, renamed[i][0]) == 0 ? renamed[i][1] : option;
    }
    s->name = g_strdup(option);
    s->arg = g_string_new(NULL);
    if (id && *id) {
        append_value(s->arg, "id", id);
    }
    return true;
}

static bool read_line(CmdLine *cl, Section *s, const char *text, GError **errp)
{
    static const char section[] = "^\\[([^\\]\"\\s]+)(?:\\s+\"([^\"]*)\")?\\s*\\]$";
    static const char value[] = "^([^\\s=\"]+)\\s*=\\s*\"([^\"]*)\"$";
    g_autoptr(GRegex) re = g_regex_new(*text == '[' ? section : value, 0, 0, errp);
    g_autoptr(GMatchInfo) m = NULL;

    if (!re || !g_regex_match(re, text, 0, &m)) {
        colo_error_set(errp && *errp ? NULL : errp, "parse error");
        return false;
    }
    g_autofree char *first = g_match_info_fetch(m, 1);
    g_autofree char *second = g_match_info_fetch(m, 2);
    if (*text == '[') {
        return section_begin(cl, s, first, second, errp);
    }
    if (!s->arg) {
        colo_error_set(errp, "no group defined");
        return false;
    }
    append_value(s->arg, first, second);
    return true;
}

bool cmdline_read_config(CmdLine *cl, const char *path, GError **errp)
{
    g_autofree char *text = NULL;
    Section s = {0};
    bool ok = true;

    if (!g_file_get_contents(path, &text, NULL, errp)) {
        g_prefix_error(errp, "-readconfig %s: ", path);
        return false;
    }
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (unsigned i = 0; ok && lines[i]; i++) {
        const char *stripped = g_strstrip(lines[i]);
        if (*stripped && *stripped != '#' && !read_line(cl, &s, stripped, errp)) {
            g_prefix_error(errp, "-readconfig %s:%u: ", path, i + 1);
            ok = false;
        }
    }
    if (ok) {
        section_end(cl, &s);
    }
    g_free(s.name);
    if (s.arg) {
        g_string_free(s.arg, TRUE);
    }
    return ok;
}
