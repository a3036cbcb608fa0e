/*
 * The NBD server and its exports.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "block/block.h"
#include "qapi-commands.h"
#include "util/error.h"
#include "util/options.h"

static const char *get_str(JsonObject *args, const char *key)
{
    return json_object_has_member(args, key) ? json_object_get_string_member(args, key)
                                             : NULL;
}

static QmpResult result(bool ok)
{
    return ok ? QMP_DONE : QMP_FAILED;
}

QmpResult qmp_nbd_server_start(QmpRequest *req, JsonObject *args, JsonNode **ret,
                               GError **errp)
{
    uint64_t max = json_object_get_int_member_with_default(args, "max-connections", 100);

    if (json_object_has_member(args, "tls-authz")) {
        colo_error_set(errp, "nbd-server-start: tls-authz is not supported; with "
                             "verify-peer=on only clients with a certificate of the CA get in");
        return QMP_FAILED;
    }
    return result(block_nbd_server_start(json_object_get_object_member(args, "addr"),
                                         get_str(args, "tls-creds"), max, errp));
}

QmpResult qmp_nbd_server_stop(QmpRequest *req, JsonObject *args, JsonNode **ret,
                              GError **errp)
{
    return result(block_nbd_server_stop(errp));
}

QmpResult qmp_nbd_server_add(QmpRequest *req, JsonObject *args, JsonNode **ret,
                             GError **errp)
{
    const char *device = get_str(args, "device"), *name = get_str(args, "name");
    BlockExportOptions o = {
        .id = name ? name : device,
        .node = device,
        .name = name ? name : device,
        .description = get_str(args, "description"),
        .writable = json_object_get_boolean_member_with_default(args, "writable", FALSE),
        .legacy = true,
    };

    if (json_object_has_member(args, "bitmap")) {
        colo_error_set(errp, "nbd-server-add: exporting a bitmap is not supported");
        return QMP_FAILED;
    }
    return result(block_export_add(&o, errp));
}

static bool is_hard(JsonObject *args)
{
    return g_strcmp0(get_str(args, "mode"), "hard") == 0;
}

QmpResult qmp_nbd_server_remove(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                GError **errp)
{
    return result(block_export_del(get_str(args, "name"), is_hard(args), errp));
}

QmpResult qmp_block_export_add(QmpRequest *req, JsonObject *args, JsonNode **ret,
                               GError **errp)
{
    static const char *const known[] = {"type", "id", "node-name", "name", "description",
                                        "writable", "writethrough", NULL};
    const char *type = get_str(args, "type"), *node = get_str(args, "node-name");
    BlockExportOptions o = {
        .id = get_str(args, "id"),
        .node = node,
        .name = get_str(args, "name"),
        .description = get_str(args, "description"),
        .writable = json_object_get_boolean_member_with_default(args, "writable", FALSE),
        .writethrough =
            json_object_get_boolean_member_with_default(args, "writethrough", FALSE),
    };

    if (strcmp(type, "nbd") != 0) {
        if (!block_node_exists(node)) {
            return QMP_PASS;
        }
        colo_error_set(errp, "block-export-add: node '%s' can be exported with type 'nbd', not "
                             "'%s'", node, type);
        return QMP_FAILED;
    }
    if (!options_check_known(args, "block-export-add", known, errp)) {
        return QMP_FAILED;
    }
    o.name = o.name ? o.name : node;
    return result(block_export_add(&o, errp));
}

QmpResult qmp_block_export_del(QmpRequest *req, JsonObject *args, JsonNode **ret,
                               GError **errp)
{
    return result(block_export_del(get_str(args, "id"), is_hard(args), errp));
}

QmpResult qmp_query_block_exports(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                  GError **errp)
{
    *ret = json_node_init_array(json_node_alloc(), block_export_query());
    json_array_unref(json_node_get_array(*ret));
    return QMP_DONE;
}
