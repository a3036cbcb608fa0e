/*
 * vm.conf: the table of its keys.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Each key of each section with what it takes. Texts go where the table says; what is not text
 * is read once all is known.
 */
#include "coloctl-conf-int.h"

#include <stddef.h>
#include <string.h>

#include "coloctl.h"
#include "util/error.h"

typedef enum KeyKind {
    KEY_TEXT,   /* any text, into a char * */
    KEY_WORD,   /* text without space and comma */
    KEY_PATH,   /* absolute; may have %h and the like */
    KEY_BOOL,   /* on or off */
    KEY_UINT,   /* within min and max, into a uint64_t */
    KEY_SIZE,   /* bytes, or with k, M, G, T behind it */
    KEY_CHOICE, /* one of choices */
} KeyKind;

typedef struct Key {
    const char *section; /* "disk." and "net.": any that starts so */
    const char *name;
    KeyKind kind;
    size_t offset; /* in VmConf, VmDisk or VmNet; 0: read elsewhere */
    const char *dflt;
    uint64_t min, max;
    const char *choices; /* separated by "|" */
    bool needed;
    bool colo; /* goes to -colo under its own name, once the host is known */
} Key;

#define CONF(member) offsetof(VmConf, member)
#define DISK(member) offsetof(VmDisk, member)
#define NET(member) offsetof(VmNet, member)

static const Key keys[] = {
    {"vm", "name", KEY_WORD, CONF(name), .needed = true},
    {"vm", "emulator", KEY_PATH, CONF(emulator)},
    {"vm", "machine", KEY_WORD, CONF(machine), "pc"},
    {"vm", "accel", KEY_CHOICE, CONF(accel), "kvm", .choices = "kvm|tcg"},
    {"vm", "cpu", KEY_TEXT, CONF(cpu), "qemu64"},
    {"vm", "memory", KEY_WORD, CONF(memory), .needed = true},
    {"vm", "smp", KEY_TEXT, CONF(smp), "1"},
    {"vm", "args", KEY_TEXT},
    {"disk.", "image", KEY_PATH, DISK(image), .needed = true},
    {"disk.", "format", KEY_WORD, DISK(format), "raw"},
    {"disk.", "interface", KEY_CHOICE, DISK(interface), "virtio",
     .choices = "virtio|ide|scsi|sata"},
    {"disk.", "active", KEY_PATH, DISK(active)},
    {"disk.", "hidden", KEY_PATH, DISK(hidden)},
    {"disk.", "shared", KEY_BOOL, DISK(shared), "off"},
    {"net.", "tap", KEY_WORD, NET(device)},
    {"net.", "bridge", KEY_WORD, NET(device)},
    {"net.", "user", KEY_TEXT, NET(device)},
    {"net.", "model", KEY_WORD, NET(model), "virtio-net-pci"},
    {"net.", "mac", KEY_WORD, NET(mac), .needed = true},
    {"pair", "prefer", KEY_WORD},
    {"pair", "port-base", KEY_UINT, .dflt = "9000", .min = 1024, .max = 64000},
    {"pair", "auto-protect", KEY_BOOL, CONF(auto_protect), "on"},
    {"pair", "auto-sync", KEY_CHOICE, CONF(auto_sync), "incremental",
     .choices = "incremental|full|none"},
    {"pair", "quiet-time", KEY_UINT, .min = 1, .max = 1000000, .colo = true},
    {"pair", "mode", KEY_CHOICE, .choices = "colo|buffered|adaptive", .colo = true},
    {"pair", "checkpoint-delay", KEY_UINT, .min = 1, .max = 3600000, .colo = true},
    {"pair", "buffered-interval", KEY_UINT, .min = 10, .max = 100, .colo = true},
    {"pair", "max-pause", KEY_UINT, .min = 0, .max = 10000, .colo = true},
    {"pair", "channels", KEY_UINT, CONF(channels), .min = 0, .max = 16, .colo = true},
    {"pair", "compression", KEY_CHOICE, CONF(compression), .choices = "none|zlib|zstd",
     .colo = true},
    {"pair", "xbzrle", KEY_BOOL, .colo = true},
    {"pair", "max-bandwidth", KEY_SIZE, .colo = true},
    {"pair", "tls-dir", KEY_PATH, CONF(tls_dir)},
    {"pair", "colo-options", KEY_TEXT, CONF(colo_options)},
    {"pair", "heartbeat", KEY_BOOL, CONF(heartbeat), "off"},
    {"pair", "heartbeat-interval", KEY_UINT, CONF(heartbeat_interval), NULL, 10, 60000},
    {"pair", "heartbeat-timeout", KEY_UINT, CONF(heartbeat_timeout), NULL, 40, 3600000},
    {"pair", "key-file", KEY_PATH, CONF(key_file)},
    {"pair", "peer-timeout", KEY_UINT, .min = 100, .max = 3600000, .colo = true},
    {"pair", "progress-timeout", KEY_UINT, .min = 500, .max = 3600000, .colo = true},
    {"pair", "metrics", KEY_WORD, .colo = true},
    {"pair", "arbiter", KEY_CHOICE, .choices = "manual|fence|witness|pacemaker", .colo = true},
    {"pair", "fence-agent", KEY_PATH, .colo = true},
    {"pair", "fence-plug", KEY_TEXT, .colo = true},
    {"pair", "fence-options", KEY_PATH, .colo = true},
    {"pair", "fence-timeout", KEY_UINT, .min = 100, .max = 3600000, .colo = true},
    {"pair", "fence-delay", KEY_UINT, .min = 0, .max = 3600000, .colo = true},
    {"pair", "witness", KEY_TEXT, .colo = true},
    {"pair", "witness-key", KEY_TEXT, .colo = true},
    {"pair", "witness-lease", KEY_UINT, .min = 2, .max = 3600, .colo = true},
    {"pair", "witness-cacert", KEY_PATH, .colo = true},
    {"pair", "witness-cert", KEY_PATH, .colo = true},
    {"pair", "witness-cert-key", KEY_PATH, .colo = true},
    {"run", "state-dir", KEY_PATH, CONF(state_dir), "/var/lib/qemu-colo/%n"},
    {"run", "run-dir", KEY_PATH, CONF(run_dir), "/run/qemu-colo/%n"},
    {"run", "qemu-colo", KEY_PATH, CONF(program)},
};

void conf_bad(ConfReader *r, GError **errp, const char *key, const char *value,
                const char *expected)
{
    g_autofree char *shown = value ? ctl_clean(value, 80) : NULL;

    colo_error_set(errp, "%s: [%s] %s%s%s%s: %s", r->c->file, r->section, key,
                   shown ? " = '" : "", shown ? shown : "", shown ? "'" : "", expected);
}

static bool is_choice(const char *choices, const char *value)
{
    g_auto(GStrv) list = g_strsplit(choices, "|", -1);

    return g_strv_contains((const char *const *)list, value);
}

static bool check_percent(const char *value)
{
    for (const char *p = strchr(value, '%'); p; p = strchr(p + 2, '%')) {
        if (!p[1] || !strchr("hpn%", p[1])) {
            return false;
        }
    }
    return true;
}

/* "100M": what -colo reads as a size, and no more than 63 bits. */
static bool is_size(const char *value)
{
    char *end;
    uint64_t n = g_ascii_strtoull(value, &end, 10);
    const char *units = "kmgt", *u = *end ? strchr(units, g_ascii_tolower(*end)) : NULL;

    return g_ascii_isdigit(*value) && (!*end || (u && !end[1])) &&
           n <= (UINT64_MAX >> 1 >> (u ? 10 * (u - units + 1) : 0));
}

static bool check_value(ConfReader *r, const Key *k, const char *value, uint64_t *number,
                        GError **errp)
{
    if (k->choices && !is_choice(k->choices, value)) {
        g_auto(GStrv) list = g_strsplit(k->choices, "|", -1);
        g_autofree char *text = g_strjoinv(", ", list);
        g_autofree char *why = g_strdup_printf("expected one of %s", text);
        conf_bad(r, errp, k->name, value, why);
        return false;
    }
    if (k->kind == KEY_BOOL && strcmp(value, "on") != 0 && strcmp(value, "off") != 0) {
        conf_bad(r, errp, k->name, value, "expected on or off");
        return false;
    }
    if (k->kind == KEY_UINT &&
        !g_ascii_string_to_unsigned(value, 10, k->min, k->max, number, NULL)) {
        g_autofree char *why = g_strdup_printf(
            "expected a number from %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT, k->min,
            k->max);
        conf_bad(r, errp, k->name, value, why);
        return false;
    }
    if (k->kind == KEY_SIZE && !is_size(value)) {
        conf_bad(r, errp, k->name, value, "expected bytes a second, like 100M");
        return false;
    }
    if (k->kind == KEY_WORD && (!*value || strpbrk(value, " \t,\"'"))) {
        conf_bad(r, errp, k->name, value, "expected a word without spaces, commas and quotes");
        return false;
    }
    if (k->kind == KEY_PATH && value[0] != '/') {
        conf_bad(r, errp, k->name, value, "expected an absolute path");
        return false;
    }
    if (!check_percent(value)) {
        conf_bad(r, errp, k->name, value, "after % expected h (this host), p (the peer), n (the "
                                     "VM) or %");
        return false;
    }
    return true;
}

static const Key *find_key(const char *section, const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(keys); i++) {
        bool open = g_str_has_suffix(keys[i].section, ".");
        if ((open ? g_str_has_prefix(section, keys[i].section)
                  : strcmp(section, keys[i].section) == 0) &&
            (!name || strcmp(keys[i].name, name) == 0)) {
            return &keys[i];
        }
    }
    return NULL;
}

bool vm_conf_knows(const char *section, const char *key)
{
    return find_key(section, key) != NULL;
}

static bool check_key(ConfReader *r, const char *name, GError **errp)
{
    const char *known[G_N_ELEMENTS(keys) + 1];
    size_t count = 0;

    if (find_key(r->section, name)) {
        return true;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(keys); i++) {
        if (find_key(r->section, keys[i].name) == &keys[i]) {
            known[count++] = keys[i].name;
        }
    }
    known[count] = NULL;
    const char *near = ctl_nearest(name, known);
    g_autofree char *list = g_strjoinv(", ", (char **)known);
    g_autofree char *why = near ? g_strdup_printf("unknown key, did you mean '%s'?", near)
                                : g_strdup_printf("unknown key; there are %s", list);
    conf_bad(r, errp, name, NULL, why);
    return false;
}

/* GLib joins sections of one name, and takes the last of two keys: of a card that was copied
 * and not renamed nothing would be left. */
static bool refuse_doubles(ConfReader *r, const char *text, GError **errp)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_autofree char *section = g_strdup("");

    for (char **l = lines; *l; l++) {
        char *line = g_strstrip(*l), *end = strpbrk(line, *line == '[' ? "]" : "=");
        if (*line == '#' || !end) {
            continue;
        }
        *end = 0;
        bool is_section = *line == '[';
        char *name = g_strstrip(line + is_section);
        if (is_section) {
            g_free(section);
            section = g_strdup(name);
        }
        if (!g_hash_table_add(seen, is_section ? g_strdup_printf("[%s]", name)
                                               : g_strdup_printf("%s\n%s", section, name))) {
            colo_error_set(errp, "%s: [%s]%s%s: stands there twice", r->c->file, section,
                           is_section ? "" : " ", is_section ? "" : name);
            return false;
        }
    }
    return true;
}

bool conf_check_names(ConfReader *r, const char *text, GError **errp)
{
    static const char *const sections[] = {"vm", "disk.ID", "net.ID", "hosts", "pair", "run",
                                           NULL};
    g_auto(GStrv) groups = g_key_file_get_groups(r->kf, NULL);

    for (char **g = groups; *g; g++) {
        bool hosts = strcmp(*g, "hosts") == 0;
        r->section = *g;
        if (!hosts && !find_key(*g, NULL)) {
            const char *near = ctl_nearest(*g, sections);
            colo_error_set(errp, "%s: [%s]: unknown section%s%s%s; there are [vm], [disk.ID], "
                           "[net.ID], [hosts], [pair] and [run]", r->c->file, *g,
                           near ? ", did you mean [" : "", near ? near : "", near ? "]?" : "");
            return false;
        }
        g_auto(GStrv) names = g_key_file_get_keys(r->kf, *g, NULL, NULL);
        for (char **n = names; !hosts && *n; n++) {
            if (!check_key(r, *n, errp)) {
                return false;
            }
        }
    }
    return refuse_doubles(r, text, errp);
}

bool conf_read_section(ConfReader *r, const char *prefix, void *base, GError **errp)
{
    for (size_t i = 0; i < G_N_ELEMENTS(keys); i++) {
        const Key *k = &keys[i];
        uint64_t number = 0;
        if (strcmp(k->section, prefix) != 0) {
            continue;
        }
        bool given = g_key_file_has_key(r->kf, r->section, k->name, NULL);
        g_autofree char *value =
            given ? g_key_file_get_string(r->kf, r->section, k->name, errp)
                  : g_strdup(k->dflt);
        if (given && !value) {
            g_prefix_error(errp, "%s: [%s] %s: ", r->c->file, r->section, k->name);
            return false;
        }
        if (!value && k->needed) {
            conf_bad(r, errp, k->name, NULL, "this key is needed");
            return false;
        }
        if (!value) {
            continue;
        }
        g_strstrip(value);
        if (!check_value(r, k, value, &number, errp)) {
            return false;
        }
        if (k->colo) {
            g_ptr_array_add(r->c->colo, g_strdup_printf("%s=%s", k->name, value));
        }
        if (!k->offset) {
            continue;
        } else if (k->kind == KEY_BOOL) {
            *(bool *)((char *)base + k->offset) = strcmp(value, "on") == 0;
        } else if (k->kind == KEY_UINT) {
            *(uint64_t *)((char *)base + k->offset) = number;
        } else {
            char **to = (char **)((char *)base + k->offset);
            g_free(*to);
            *to = g_steal_pointer(&value);
        }
    }
    return true;
}

