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

/* Whether what an address needs is there, in QEMU's older form (in "data") or the newer. */
static bool check_address(JsonObject *addr, const char *type, GError **errp)
{
    static const char *const inet[] = {"host", "port", NULL}, *const path[] = {"path", NULL};
    JsonObject *data = options_get_obj(addr, "data");
    const char *const *need = strcmp(type, "inet") == 0   ? inet
                              : strcmp(type, "unix") == 0 ? path
                                                          : path + 1;

    for (; *need; need++) {
        if (!json_object_has_member(data ? data : addr, *need)) {
            colo_error_set(errp, "Parameter 'addr.%s%s' is missing", data ? "data." : "", *need);
            return false;
        }
    }
    return true;
}

QmpResult qmp_nbd_server_start(QmpRequest *req, JsonObject *args, JsonNode **ret,
                               GError **errp)
{
    uint64_t max = json_object_get_int_member_with_default(args, "max-connections", 100);

    static const char *const types[] = {"inet", "unix", "vsock", "fd", NULL};
    JsonObject *addr = json_object_get_object_member(args, "addr");
    const char *type = options_get_str(addr, "type", NULL);

    if (!type || !g_strv_contains(types, type)) {
        colo_error_set(errp, type ? "Parameter 'type' does not accept value '%s'"
                                  : "Parameter 'addr.type' is missing%s", type ? type : "");
        return QMP_FAILED;
    }
    if (!check_address(addr, type, errp)) {
        return QMP_FAILED;
    }
    if (json_object_has_member(args, "tls-authz")) {
        colo_error_set(errp, "nbd-server-start: tls-authz is not supported; with "
                             "verify-peer=on only clients with a certificate of the CA get in");
        return QMP_FAILED;
    }
    return result(block_nbd_server_start(addr, get_str(args, "tls-creds"), max, errp));
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

    static const char *const others[] = {"vhost-user-blk", "fuse", "vduse-blk", NULL};

    if (strcmp(type, "nbd") != 0) {
        if (!block_node_exists(node) || !g_strv_contains(others, type)) {
            return QMP_PASS; /* not ours, or none that there is */
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
    const char *id = get_str(args, "id");
    g_autoptr(JsonArray) ours = block_export_query();

    for (guint i = 0; i < json_array_get_length(ours); i++) {
        if (g_strcmp0(get_str(json_array_get_object_element(ours, i), "id"), id) == 0) {
            return result(block_export_del(id, is_hard(args), errp));
        }
    }
    return QMP_PASS; /* of another type, or none */
}

static void exports_answer(JsonNode *ret, const GError *err, void *opaque)
{
    JsonArray *all = block_export_query();
    JsonArray *theirs = ret && JSON_NODE_HOLDS_ARRAY(ret) ? json_node_get_array(ret) : NULL;

    for (guint i = 0; theirs && i < json_array_get_length(theirs); i++) {
        json_array_add_element(all, json_node_copy(json_array_get_element(theirs, i)));
    }
    qmp_request_finish(opaque, json_node_init_array(json_node_alloc(), all), NULL);
    json_array_unref(all);
}

QmpResult qmp_query_block_exports(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                  GError **errp)
{
    monitor_child_execute("query-block-exports", NULL, exports_answer, req);
    return QMP_PENDING;
}
