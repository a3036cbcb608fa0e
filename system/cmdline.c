/*
 * QEMU's command line as a list of options.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "system/cmdline.h"

#include <string.h>

#include "migration/heartbeat-object.h"
#include "net/net.h"
#include "util/error.h"
#include "util/options.h"

/* Options of qemu-system-* that take no argument (-help of versions 6 to 9). */
static const char *const flags[] = {
    "h", "help", "version", "snapshot", "no-fd-bootchk", "full-screen", "nographic",
    "no-acpi", "no-hpet", "win2k-hack", "S", "enable-kvm", "daemonize", "no-shutdown",
    "no-reboot", "no-user-config", "nodefaults", "no-quit", "preconfig", "usb",
    "singlestep", "only-migratable", "mem-prealloc", "enable-sync-profile", "xen-attach",
    "xen-domid-restrict", "alt-grab", "ctrl-grab", "no-frame", "curses", "sdl", "portrait",
    "async-teardown", "semihosting", "old-param", "one-insn-per-tb", NULL,
};

bool cmdline_parse(CmdLine *cl, int argc, char **argv, GError **errp)
{
    cl->options = g_array_new(FALSE, TRUE, sizeof(CmdOption));
    cl->owned = g_ptr_array_new_with_free_func(g_free);
    for (int i = 1; i < argc; i++) {
        CmdOption o = {"", argv[i]};
        if (argv[i][0] == '-' && argv[i][1]) {
            o.name = argv[i] + (argv[i][1] == '-' ? 2 : 1);
            o.arg = NULL;
            if (!g_strv_contains(flags, o.name)) {
                if (++i == argc) {
                    colo_error_set(errp, "-%s: requires an argument", o.name);
                    return false;
                }
                o.arg = argv[i];
            }
        }
        if (strcmp(o.name, "readconfig") == 0) {
            if (!cmdline_read_config(cl, o.arg, errp)) {
                return false;
            }
            continue;
        }
        g_array_append_val(cl->options, o);
    }
    return true;
}

void cmdline_clear(CmdLine *cl)
{
    g_clear_pointer(&cl->options, g_array_unref);
    g_clear_pointer(&cl->owned, g_ptr_array_unref);
}

static bool is(const CmdOption *o, const char *name)
{
    return strcmp(o->name, name) == 0;
}

/* Whether "driver": "replication" stands anywhere in @obj. */
static bool has_replication(JsonObject *obj)
{
    if (g_strcmp0(options_get_str(obj, "driver", ""), "replication") == 0) {
        return true;
    }
    g_autoptr(GList) keys = json_object_get_members(obj);
    for (GList *l = keys; l; l = l->next) {
        JsonObject *sub = options_get_obj(obj, l->data);
        if (sub && has_replication(sub)) {
            return true;
        }
    }
    return false;
}

static bool option_is_colo(const CmdOption *o)
{
    if (is(o, "colo")) {
        return true;
    }
    if (!o->arg || !(is(o, "object") || is(o, "drive") || is(o, "blockdev"))) {
        return false;
    }
    g_autoptr(JsonObject) obj =
        options_parse(o->arg, is(o, "object") ? "qom-type" : NULL, NULL);
    if (!obj) {
        return false;
    }
    const char *type = options_get_str(obj, "qom-type", "");
    return is(o, "object") ? heartbeat_object_wants(type) ||
                                 (strcmp(type, "iothread") != 0 && net_object_wants(type))
                           : has_replication(obj);
}

bool cmdline_uses_colo(const CmdLine *cl)
{
    bool colo = false;

    for (guint i = 0; i < cl->options->len; i++) {
        const CmdOption *o = &g_array_index(cl->options, CmdOption, i);
        if (is(o, "h") || is(o, "help") || is(o, "version")) {
            return false;
        }
        if ((is(o, "machine") || is(o, "M")) && o->arg) {
            g_autoptr(JsonObject) m = options_parse(o->arg, "type", NULL);
            if (m && strcmp(options_get_str(m, "type", ""), "none") == 0) {
                return false;
            }
        }
        colo = colo || option_is_colo(o);
    }
    return colo;
}

char *cmdline_find(const CmdLine *cl, const char *name, const char *implied,
                   const char *key)
{
    char *found = NULL;

    for (guint i = 0; i < cl->options->len; i++) {
        const CmdOption *o = &g_array_index(cl->options, CmdOption, i);
        if (!is(o, name) || !o->arg) {
            continue;
        }
        g_autoptr(JsonObject) obj = options_parse(o->arg, implied, NULL);
        const char *v = obj ? options_get_str(obj, key, NULL) : NULL;
        if (v) {
            g_free(found);
            found = g_strdup(v);
        }
    }
    return found;
}
