/*
 * Guest RAM: -m, and the memory backend of libvirt's command lines.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Guest RAM is a memfd of ours. Where the command line names a backend for it
 * ("-machine memory-backend=ID" and "-object memory-backend-ram,id=ID,size=N") ours takes
 * that backend's name and the properties that do not say where the memory comes from, so
 * that QOM paths, and the block's name in a migration stream, are what the user expects.
 */
#include <string.h>

#include "system/plan.h"
#include "util/error.h"
#include "util/options.h"

#define DEFAULT_RAM (128ull << 20)

static bool read_size(Plan *plan, const CmdLine *cl, GError **errp)
{
    plan->ram_size = DEFAULT_RAM;
    for (guint i = 0; i < cl->options->len; i++) {
        const CmdOption *o = &g_array_index(cl->options, CmdOption, i);

        if (strcmp(o->name, "m") != 0 || !o->arg) {
            continue;
        }
        g_autoptr(JsonObject) m = options_parse(o->arg, "size", errp);
        if (!m || !options_get_size(m, "size", 1 << 20, &plan->ram_size, errp)) {
            g_prefix_error(errp, "-m %s: ", o->arg);
            return false;
        }
        if (json_object_has_member(m, "maxmem") || json_object_has_member(m, "slots")) {
            colo_error_set(errp, "-m %s: memory hotplug (slots, maxmem) cannot be replicated",
                           o->arg);
            return false;
        }
    }
    plan->ram_size = (plan->ram_size + 8191) & ~8191ull;
    return true;
}

static bool check_backend(Plan *plan, JsonObject *obj, const char *id, GError **errp)
{
    const char *type = options_get_str(obj, "qom-type", "");
    bool huge = false;
    uint64_t size = 0;

    if (strcmp(type, "memory-backend-ram") != 0 && strcmp(type, "memory-backend-memfd") != 0) {
        colo_error_set(errp, "-object %s,id=%s: guest RAM is provided by qemu-colo; only "
                             "memory-backend-ram and -memfd can stand for it", type, id);
        return false;
    }
    if (!options_get_bool(obj, "hugetlb", &huge, errp) ||
        !options_get_size(obj, "size", 1, &size, errp)) {
        g_prefix_error(errp, "-object %s,id=%s: ", type, id);
        return false;
    }
    if (huge) {
        colo_error_set(errp, "-object %s,id=%s: hugetlb=on is not supported: dirty pages are "
                             "tracked by 4 KiB", type, id);
        return false;
    }
    if (size != plan->ram_size) {
        colo_error_set(errp, "-object %s,id=%s: size=%" G_GUINT64_FORMAT ", but -m says %"
                       G_GUINT64_FORMAT, type, id, size, plan->ram_size);
        return false;
    }
    return true;
}

bool plan_memory(Plan *plan, const CmdLine *cl, GError **errp)
{
    static const char *const source[] = {"qom-type", "id",      "size",        "share",
                                         "seal",     "hugetlb", "hugetlbsize", NULL};
    g_autofree char *machine = cmdline_find(cl, "machine", "type", "memory-backend");
    g_autofree char *short_form = cmdline_find(cl, "M", "type", "memory-backend");
    const char *id = machine ? machine : short_form;

    static const char *const name_only = "x-use-canonical-path-for-ramblock-id";

    plan->ram_object = json_object_new();
    json_object_set_string_member(plan->ram_object, name_only, "off");
    if (!read_size(plan, cl, errp)) {
        return false;
    }
    if (!id) {
        return true;
    }
    plan->ram_id = g_strdup(id);
    for (guint i = 0; i < cl->options->len; i++) {
        const CmdOption *o = &g_array_index(cl->options, CmdOption, i);
        g_autoptr(JsonObject) obj = !strcmp(o->name, "object") && o->arg
                                        ? options_parse(o->arg, "qom-type", NULL) : NULL;

        if (!obj || strcmp(options_get_str(obj, "id", ""), id) != 0) {
            continue;
        }
        if (!check_backend(plan, obj, id, errp)) {
            return false;
        }
        for (unsigned k = 0; source[k]; k++) {
            if (json_object_has_member(obj, source[k])) {
                json_object_remove_member(obj, source[k]);
            }
        }
        if (!json_object_has_member(obj, name_only)) {
            json_object_set_string_member(obj, name_only, "off");
        }
        json_object_unref(plan->ram_object);
        plan->ram_object = g_steal_pointer(&obj);
        return true;
    }
    colo_error_set(errp, "-machine memory-backend=%s: there is no -object of that id", id);
    return false;
}
