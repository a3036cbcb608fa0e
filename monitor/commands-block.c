/*
 * Disks and NBD exports at run time.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Nodes that are added live in our block room. The emulator learns of one only when a
 * device is plugged on it: device_add first gives it an nbd node of the same name.
 */
#include <string.h>

#include "block/block.h"
#include "migration/migration.h"
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

/* --- Nodes --- */

QmpResult qmp_x_blockdev_change(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                GError **errp)
{
    const char *parent = get_str(args, "parent");

    if (!block_node_exists(parent)) {
        return QMP_PASS;
    }
    /* What the guest wrote before this moment is not on the secondary's image, unless it
     * stands still and the image was copied meanwhile. */
    if (json_object_has_member(args, "node") && !block_node_is_shared(get_str(args, "node")) &&
        block_node_written(parent) &&
        migration_guest_runs()) {
        colo_error_set(errp, "the running guest has written to '%s' already, which the "
                             "secondary's image lacks: stop the guest, copy the image, then "
                             "attach", parent);
        return QMP_FAILED;
    }
    return result(block_change(parent, get_str(args, "child"), get_str(args, "node"), errp));
}

typedef struct AddFailure {
    QmpRequest *req;
    GError *err;
} AddFailure;

static void add_judged(JsonNode *ret, const GError *err, void *opaque)
{
    g_autofree AddFailure *f = opaque;

    /* Where an option is missing or a driver does not exist, the words are the emulator's. */
    if (err && (g_str_has_suffix(err->message, "is missing") ||
                strstr(err->message, "does not accept value"))) {
        g_auto(GStrv) parts = g_strsplit(err->message, "options[0].", -1);
        g_clear_error(&f->err);
        f->err = g_error_new_literal(COLO_ERROR, err->code, "");
        g_free(f->err->message);
        f->err->message = g_strjoinv("", parts);
    }
    qmp_request_finish(f->req, NULL, f->err);
}

/* Why a node could not be made: the emulator looks at its options, too, in a command that
 * opens nothing, as there is no node of that name. */
static QmpResult judge_failure(QmpRequest *req, JsonObject *args, GError *err)
{
    g_autoptr(JsonObject) reopen = json_object_new();
    JsonArray *list = json_array_new();
    JsonObject *options = options_copy(args);
    AddFailure *f = g_new(AddFailure, 1);

    *f = (AddFailure){req, err};
    json_object_set_string_member(options, "node-name", "#qemu-colo");
    json_array_add_object_element(list, options);
    json_object_set_array_member(reopen, "options", list);
    monitor_child_execute("blockdev-reopen", reopen, add_judged, f);
    return QMP_PENDING;
}

QmpResult qmp_blockdev_add(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    GError *err = NULL;

    return block_node_add(args, &err) ? QMP_DONE : judge_failure(req, args, err);
}

typedef struct NodeChange {
    QmpRequest *req;
    char *name;
} NodeChange;

static NodeChange *change_new(QmpRequest *req, const char *name)
{
    NodeChange *c = g_new(NodeChange, 1);

    *c = (NodeChange){req, g_strdup(name)};
    return c;
}

static void change_free(NodeChange *c)
{
    g_free(c->name);
    g_free(c);
}

static void child_lost_node(JsonNode *ret, const GError *err, void *opaque)
{
    NodeChange *c = opaque;
    /* A -drive's node goes with its device, and has another name there. */
    bool gone = !err || strstr(err->message, "Failed to find node");
    GError *ours = gone ? NULL : g_error_copy(err);

    if (!err) {
        block_child_left(c->name);
    }
    if (gone) {
        block_node_del(c->name, &ours);
    }
    qmp_request_finish(c->req, NULL, ours);
    change_free(c);
}

QmpResult qmp_blockdev_del(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    const char *name = get_str(args, "node-name");

    if (!block_node_exists(name)) {
        return QMP_PASS;
    }
    if (!block_child_has(name)) {
        return result(block_node_del(name, errp));
    }
    monitor_child_execute("blockdev-del", args, child_lost_node, change_new(req, name));
    return QMP_PENDING;
}

/* --- Plugging a disk --- */

static void child_has_node(JsonNode *ret, const GError *err, void *opaque)
{
    NodeChange *c = opaque;

    if (err) {
        qmp_request_finish(c->req, NULL, g_error_copy(err));
    } else {
        qmp_request_pass(c->req);
    }
    change_free(c);
}

static bool node_is_read_only(const char *name)
{
    g_autoptr(JsonArray) all = block_query();
    bool ro = false;

    for (guint i = 0; i < json_array_get_length(all); i++) {
        JsonObject *o = json_array_get_object_element(all, i);
        if (g_strcmp0(get_str(o, "node-name"), name) == 0 ||
            g_strcmp0(get_str(o, "id"), name) == 0) {
            options_get_bool(o, "ro", &ro, NULL);
        }
    }
    return ro;
}

static JsonObject *nbd_node(const char *name, const char *path)
{
    JsonObject *node = json_object_new(), *server = json_object_new();

    json_object_set_string_member(server, "type", "unix");
    json_object_set_string_member(server, "path", path);
    json_object_set_string_member(node, "driver", "nbd");
    json_object_set_string_member(node, "node-name", name);
    json_object_set_string_member(node, "export", name);
    json_object_set_object_member(node, "server", server);
    if (node_is_read_only(name)) {
        json_object_set_boolean_member(node, "read-only", TRUE);
    }
    return node;
}

static bool has_node(JsonNode *nodes, const char *name)
{
    JsonArray *list = JSON_NODE_HOLDS_ARRAY(nodes) ? json_node_get_array(nodes) : NULL;

    for (guint i = 0; list && i < json_array_get_length(list); i++) {
        JsonObject *o = json_array_get_object_element(list, i);
        if (g_strcmp0(get_str(o, "node-name"), name) == 0) {
            return true;
        }
    }
    return false;
}

static void child_nodes(JsonNode *ret, const GError *err, void *opaque)
{
    NodeChange *c = opaque;
    GError *failed = NULL;

    if (ret && has_node(ret, c->name)) {
        qmp_request_pass(c->req); /* from the command line, or plugged before */
        change_free(c);
        return;
    }
    const char *path = err ? NULL : block_serve_child(c->name, &failed);
    if (!path) {
        qmp_request_finish(c->req, NULL, err ? g_error_copy(err) : failed);
        change_free(c);
        return;
    }
    g_autoptr(JsonObject) args = nbd_node(c->name, path);
    monitor_child_execute("blockdev-add", args, child_has_node, c);
}

QmpResult qmp_device_add(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    const char *drive = get_str(args, "drive");

    if (!drive || !block_node_exists(drive)) {
        return QMP_PASS;
    }
    g_autoptr(JsonObject) flat = json_object_new();
    json_object_set_boolean_member(flat, "flat", TRUE);
    monitor_child_execute("query-named-block-nodes", flat, child_nodes,
                          change_new(req, drive));
    return QMP_PENDING;
}
