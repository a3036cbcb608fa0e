/*
 * Disks of the command line: nodes of ours, an NBD disk for the child.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A -drive has keys for the guest's side (if, bus, unit, werror, ...), which go to the
 * child, and keys for the image's side, which make a node in our block room that the
 * child reaches over NBD.
 */
#include <string.h>

#include "block/block.h"
#include "system/plan.h"
#include "util/error.h"
#include "util/options.h"

static const char *const guest_keys[] = {
    "if",     "bus",    "unit",   "index",     "media",   "werror",    "rerror",
    "cyls",   "heads",  "secs",   "trans",     "copy-on-read", NULL,
};

/* Whether a -device of @cl uses drive or node @id. */
static bool device_uses(const CmdLine *cl, const char *id)
{
    for (guint i = 0; i < cl->options->len; i++) {
        const CmdOption *o = &g_array_index(cl->options, CmdOption, i);
        if (strcmp(o->name, "device") != 0 || !o->arg) {
            continue;
        }
        g_autoptr(JsonObject) d = options_parse(o->arg, "driver", NULL);
        if (d && strcmp(options_get_str(d, "drive", ""), id) == 0) {
            return true;
        }
    }
    return false;
}

static void move_key(JsonObject *from, JsonObject *to, const char *key)
{
    JsonNode *n = json_object_get_member(from, key);

    if (n) {
        json_object_set_member(to, key, json_node_copy(n));
        json_object_remove_member(from, key);
    }
}

/* Whether a replication secondary with shared-disk=on names @id as its image: that must be
 * opened as another host's. */
static bool image_is_shared(const CmdLine *cl, const char *id)
{
    for (guint i = 0; i < cl->options->len; i++) {
        const CmdOption *o = &g_array_index(cl->options, CmdOption, i);
        bool shared = false;

        if ((strcmp(o->name, "drive") != 0 && strcmp(o->name, "blockdev") != 0) || !o->arg) {
            continue;
        }
        g_autoptr(JsonObject) d = options_parse(
            o->arg, strcmp(o->name, "drive") == 0 ? NULL : "driver", NULL);
        JsonObject *hidden = d ? options_get_obj(options_get_obj(d, "file"), "backing") : NULL;
        if (hidden && strcmp(options_get_str(d, "driver", ""), "replication") == 0 &&
            strcmp(options_get_str(hidden, "backing", ""), id) == 0 &&
            options_get_bool(d, "shared-disk", &shared, NULL) && shared) {
            return true;
        }
    }
    return false;
}

/* "cache=MODE" as QEMU splits it: what the guest sees is only whether to write back. */
static void split_cache(JsonObject *node, JsonObject *guest)
{
    const char *mode = options_get_str(node, "cache", NULL);

    if (mode) {
        bool through = !strcmp(mode, "writethrough") || !strcmp(mode, "directsync");
        json_object_set_string_member(guest, "cache.writeback", through ? "off" : "on");
    }
}

/* -drive's short forms: format= is driver=, and file=x names a file, not a node. */
static void expand_short_forms(JsonObject *node)
{
    const char *format = options_get_str(node, "format", NULL);
    const char *file = options_get_str(node, "file", NULL);
    JsonObject *sub = options_get_obj(node, "file");

    if (format) {
        json_object_set_string_member(node, "driver", format);
        json_object_remove_member(node, "format");
    }
    if (file) {
        g_autofree char *name = g_strdup(file);
        sub = json_object_new();
        json_object_set_string_member(sub, "filename", name);
        json_object_set_object_member(node, "file", sub);
    } else if (sub && json_object_has_member(sub, "")) {
        g_autofree char *name = g_strdup(options_get_str(sub, "", ""));
        json_object_remove_member(sub, "");
        json_object_set_string_member(sub, "filename", name);
    }
}

bool plan_drive(Plan *plan, const CmdLine *cl, const char *text, GError **errp)
{
    static unsigned anonymous;
    g_autoptr(JsonObject) node = options_parse(text, NULL, errp);
    g_autoptr(JsonObject) guest = json_object_new();
    bool snapshot = false, read_only = false;

    if (!node) {
        g_prefix_error(errp, "-drive %s: ", text);
        return false;
    }
    for (unsigned i = 0; guest_keys[i]; i++) {
        move_key(node, guest, guest_keys[i]);
    }
    const char *iface = options_get_str(guest, "if", "ide");
    bool has_image = json_object_has_member(node, "file") ||
                     json_object_has_member(node, "driver");
    if (strcmp(iface, "pflash") == 0) {
        if (!options_get_bool(node, "readonly", &read_only, errp) ||
            !options_get_bool(node, "read-only", &read_only, errp)) {
            return false;
        }
        /* Flash is a RAM block, which a checkpoint brings, and which the emulator writes to
         * its own file after each load: each host has a file of its own. */
        bool other_ram = true;
        if (!options_get_bool(plan->colo, "other-ram", &other_ram, errp)) {
            return false;
        }
        if (!read_only && !other_ram) {
            colo_error_set(errp, "-drive %s: with -colo other-ram=off writable flash is not "
                                 "replicated; use readonly=on", text);
            return false;
        }
    }
    if (!has_image || strcmp(iface, "pflash") == 0) {
        plan_arg(plan, "-drive");
        plan_arg(plan, "%s", text);
        return true;
    }
    if (!options_get_bool(node, "snapshot", &snapshot, errp)) {
        return false;
    }
    if (snapshot) {
        colo_error_set(errp, "-drive %s: snapshot=on cannot be combined with COLO", text);
        return false;
    }
    expand_short_forms(node);
    if (!json_object_has_member(node, "id")) {
        g_autofree char *id = g_strdup_printf("colo-drive%u", anonymous++);
        json_object_set_string_member(node, "id", id);
    }
    g_autofree char *id = g_strdup(options_get_str(node, "id", ""));
    if (strcmp(options_get_str(guest, "media", "disk"), "cdrom") == 0 &&
        !json_object_has_member(node, "readonly") &&
        !json_object_has_member(node, "read-only")) {
        json_object_set_string_member(node, "read-only", "on");
    }
    if (image_is_shared(cl, id)) {
        json_object_set_string_member(node, "shared-disk", "on");
    }
    if (!block_node_add(node, errp)) {
        g_prefix_error(errp, "-drive id=%s: ", id);
        return false;
    }
    if (strcmp(iface, "none") == 0 && !device_uses(cl, id)) {
        return true; /* a part of another disk */
    }
    const char *path = block_serve_child(id, errp);
    if (!path) {
        return false;
    }
    split_cache(node, guest);
    json_object_set_string_member(guest, "id", id);
    if (!options_get_bool(node, "readonly", &read_only, errp) ||
        !options_get_bool(node, "read-only", &read_only, errp)) {
        return false;
    }
    const char *media = options_get_str(guest, "media", "disk");
    if (read_only && strcmp(media, "cdrom") != 0) {
        json_object_set_string_member(guest, "read-only", "on");
    }
    g_autofree char *head = options_format(guest, NULL);
    plan_arg(plan, "-drive");
    plan_arg(plan, "%s,driver=nbd,server.type=unix,server.path=%s,export=%s", head, path, id);
    return true;
}

bool plan_blockdev(Plan *plan, const CmdLine *cl, const char *text, GError **errp)
{
    g_autoptr(JsonObject) node = options_parse(text, "driver", errp);

    if (!node) {
        g_prefix_error(errp, "-blockdev %s: ", text);
        return false;
    }
    const char *name = options_get_str(node, "node-name", NULL);
    if (!name) {
        colo_error_set(errp, "-blockdev %s: 'node-name' is missing", text);
        return false;
    }
    g_autofree char *id = g_strdup(name);
    bool read_only = false;
    if (image_is_shared(cl, id)) {
        json_object_set_string_member(node, "shared-disk", "on");
    }
    if (!options_get_bool(node, "read-only", &read_only, errp) ||
        !block_node_add(node, errp)) {
        g_prefix_error(errp, "-blockdev node-name=%s: ", id);
        return false;
    }
    if (!device_uses(cl, id)) {
        return true;
    }
    const char *path = block_serve_child(id, errp);
    if (!path) {
        return false;
    }
    plan_arg(plan, "-blockdev");
    plan_arg(plan, "driver=nbd,node-name=%s,server.type=unix,server.path=%s,export=%s%s", id,
             path, id, read_only ? ",read-only=on" : "");
    return true;
}
