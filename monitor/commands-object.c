/*
 * Objects and their properties: filters and comparisons are ours.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An iothread exists on both sides: colo-compare names one, and so may a device. So do TLS
 * credentials and secrets. The emulator goes first, since it has more reasons to say no.
 */
#include <string.h>

#include "internal.h"
#include "migration/heartbeat-object.h"
#include "net/net.h"
#include "qapi-commands.h"
#include "util/error.h"
#include "util/options.h"
#include "util/tls.h"

/* A request that waits for the emulator, with what we do after it. */
typedef struct Pending {
    QmpRequest *req;
    JsonObject *args;
} Pending;

static Pending *pending_new(QmpRequest *req, JsonObject *args)
{
    Pending *p = g_new(Pending, 1);

    *p = (Pending){req, json_object_ref(args)};
    return p;
}

static void pending_finish(Pending *p, GError *err)
{
    qmp_request_finish(p->req, NULL, err);
    json_object_unref(p->args);
    g_free(p);
}

static bool add_ours(JsonObject *args, GError **errp)
{
    net_lock();
    bool ok = net_object_add(args, errp);
    net_unlock();
    return ok;
}

static bool del_ours(const char *id, GError **errp)
{
    net_lock();
    bool ok = net_object_del(id, errp);
    net_unlock();
    return ok;
}

static bool exists(const char *id)
{
    net_lock();
    bool yes = net_object_exists(id);
    net_unlock();
    return yes;
}

static bool is_iothread(const char *id)
{
    net_lock();
    g_autoptr(JsonNode) type = net_object_get(id, "type", NULL);
    net_unlock();
    return type && JSON_NODE_HOLDS_VALUE(type) &&
           g_strcmp0(json_node_get_string(type), "iothread") == 0;
}

/* Ours is a name only; properties such as poll-max-ns matter to the emulator's. */
static bool add_our_iothread(const char *id, GError **errp)
{
    g_autoptr(JsonObject) bare = json_object_new();

    json_object_set_string_member(bare, "qom-type", "iothread");
    json_object_set_string_member(bare, "id", id);
    return add_ours(bare, errp);
}

static void iothread_added(JsonNode *ret, const GError *err, void *opaque)
{
    Pending *p = opaque;
    const char *id = json_object_get_string_member(p->args, "id");
    GError *ours = err ? g_error_copy(err) : NULL;

    if (!err && !add_our_iothread(id, &ours)) {
        g_autoptr(JsonObject) del = json_object_new();
        json_object_set_string_member(del, "id", id);
        monitor_child_execute("object-del", del, NULL, NULL);
    }
    pending_finish(p, ours);
}

static bool refuse_twin(const char *id, GError **errp)
{
    colo_error_set(errp, "attempt to add duplicate property '%s' to object (type "
                         "'container')", id);
    return false;
}

/* @ret: the type of the emulator's object of that id, or none. */
static void filter_id_checked(JsonNode *ret, const GError *err, void *opaque)
{
    Pending *p = opaque;
    GError *ours = NULL;

    if (ret) {
        refuse_twin(options_get_str(p->args, "id", ""), &ours);
    } else {
        add_ours(p->args, &ours);
    }
    pending_finish(p, ours);
}

static void tls_object_added(JsonNode *ret, const GError *err, void *opaque)
{
    Pending *p = opaque;
    GError *ours = err ? g_error_copy(err) : NULL;

    if (!err && !tls_object_add(p->args, &ours)) {
        g_autoptr(JsonObject) del = json_object_new();
        json_object_set_string_member(del, "id", options_get_str(p->args, "id", ""));
        monitor_child_execute("object-del", del, NULL, NULL);
    }
    pending_finish(p, ours);
}

/* Gone here; the emulator's may be missing or in use, which is nothing to us. */
static void tls_object_deleted(JsonNode *ret, const GError *err, void *opaque)
{
    pending_finish(opaque, NULL);
}

QmpResult qmp_object_add(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    const char *type = json_object_get_string_member(args, "qom-type");

    if (tls_object_wants(type)) {
        monitor_child_execute("object-add", args, tls_object_added, pending_new(req, args));
        return QMP_PENDING;
    }
    const char *id = json_object_get_string_member(args, "id");
    if (heartbeat_object_wants(type)) {
        const char *name = json_object_get_string_member(args, "id");
        return (!exists(name) || refuse_twin(name, errp)) && heartbeat_object_add(args, errp)
                   ? QMP_DONE : QMP_FAILED;
    }
    net_lock();
    bool wanted = net_object_wants(type);
    net_unlock();
    if (!wanted) {
        return !exists(id) || is_iothread(id) || refuse_twin(id, errp) ? QMP_PASS : QMP_FAILED;
    }
    if (strcmp(type, "iothread") == 0) {
        monitor_child_execute("object-add", args, iothread_added, pending_new(req, args));
        return QMP_PENDING;
    }
    if (!net_object_check(args, errp)) {
        return QMP_FAILED;
    }
    if (!strpbrk(id, "/") && !exists(id)) {
        g_autofree char *path = g_strconcat("/objects/", id, NULL);
        g_autoptr(JsonObject) get = json_object_new();
        json_object_set_string_member(get, "path", path);
        json_object_set_string_member(get, "property", "type");
        monitor_child_execute("qom-get", get, filter_id_checked, pending_new(req, args));
        return QMP_PENDING;
    }
    return add_ours(args, errp) ? QMP_DONE : QMP_FAILED;
}

static void iothread_deleted(JsonNode *ret, const GError *err, void *opaque)
{
    Pending *p = opaque;
    GError *failed = NULL;

    /* Not there: it was ours alone. In use there: both stay. */
    if (err && !strstr(err->message, "not found")) {
        failed = g_error_copy(err);
        add_our_iothread(json_object_get_string_member(p->args, "id"), NULL);
    }
    pending_finish(p, failed);
}

QmpResult qmp_object_del(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    const char *id = json_object_get_string_member(args, "id");

    if (tls_object_exists(id)) {
        if (!tls_object_del(id, errp)) {
            return QMP_FAILED;
        }
        monitor_child_execute("object-del", args, tls_object_deleted, pending_new(req, args));
        return QMP_PENDING;
    }
    if (heartbeat_object_exists(id)) {
        return heartbeat_object_del(id, errp) ? QMP_DONE : QMP_FAILED;
    }
    if (!exists(id)) {
        return QMP_PASS;
    }
    bool both = is_iothread(id);
    if (!del_ours(id, errp)) {
        return QMP_FAILED;
    }
    if (!both) {
        return QMP_DONE;
    }
    monitor_child_execute("object-del", args, iothread_deleted, pending_new(req, args));
    return QMP_PENDING;
}

/* The id of a heartbeat in such a path, or NULL. */
static const char *heartbeat_id(const char *path)
{
    const char *id = g_str_has_prefix(path, "/objects/") ? path + strlen("/objects/") : path;

    return heartbeat_object_exists(id) ? id : NULL;
}

/* The id in a QOM path of ours ("/objects/ID" or a bare "ID"), or NULL. An iothread's
 * properties are the emulator's. */
static const char *path_id(const char *path)
{
    const char *id = g_str_has_prefix(path, "/objects/") ? path + strlen("/objects/") : path;

    return !strchr(id, '/') && exists(id) && !is_iothread(id) ? id : NULL;
}

QmpResult qmp_qom_get(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    const char *heart = heartbeat_id(json_object_get_string_member(args, "path"));
    const char *id = path_id(json_object_get_string_member(args, "path"));

    if (heart) {
        *ret = heartbeat_object_get(heart, json_object_get_string_member(args, "property"),
                                    errp);
        return *ret ? QMP_DONE : QMP_FAILED;
    }
    if (!id) {
        return QMP_PASS;
    }
    net_lock();
    *ret = net_object_get(id, json_object_get_string_member(args, "property"), errp);
    net_unlock();
    return *ret ? QMP_DONE : QMP_FAILED;
}

QmpResult qmp_qom_set(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    const char *id = path_id(json_object_get_string_member(args, "path"));

    if (heartbeat_id(json_object_get_string_member(args, "path"))) {
        colo_error_set(errp, "a colo-heartbeat's properties are set when it is made");
        return QMP_FAILED;
    }
    if (!id) {
        return QMP_PASS;
    }
    net_lock();
    bool ok = net_object_set(id, json_object_get_string_member(args, "property"),
                             json_object_get_member(args, "value"), errp);
    net_unlock();
    return ok ? QMP_DONE : QMP_FAILED;
}

/* --- Lists --- */

static JsonNode *array_node(JsonArray *a)
{
    JsonNode *n = json_node_init_array(json_node_alloc(), a);

    json_array_unref(a);
    return n;
}

/* The emulator's /objects, and ours behind it. */
static void objects_listed(JsonNode *ret, const GError *err, void *opaque)
{
    QmpRequest *req = opaque;

    if (err || !JSON_NODE_HOLDS_ARRAY(ret)) {
        qmp_request_finish(req, NULL, err ? g_error_copy(err) : NULL);
        return;
    }
    JsonArray *theirs = json_node_get_array(ret), *all = json_array_new();
    for (guint i = 0; i < json_array_get_length(theirs); i++) {
        JsonNode *n = json_array_get_element(theirs, i);
        if (!is_private(options_get_str(json_node_get_object(n), "name", ""))) {
            json_array_add_element(all, json_node_copy(n));
        }
    }
    net_lock();
    net_objects_list(all);
    net_unlock();
    heartbeat_objects_list(all);
    qmp_request_finish(req, array_node(all), NULL);
}

QmpResult qmp_qom_list(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    const char *path = json_object_get_string_member(args, "path");
    const char *id = path_id(path);

    if (heartbeat_id(path)) {
        *ret = array_node(heartbeat_object_properties());
        return QMP_DONE;
    }
    if (id) {
        net_lock();
        JsonArray *a = net_object_properties(id);
        net_unlock();
        *ret = array_node(a);
        return QMP_DONE;
    }
    if (strcmp(path, "/objects") != 0 && strcmp(path, "objects") != 0) {
        return QMP_PASS;
    }
    monitor_child_execute("qom-list", args, objects_listed, req);
    return QMP_PENDING;
}

QmpResult qmp_qom_list_properties(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                  GError **errp)
{
    const char *type = json_object_get_string_member(args, "typename");
    JsonArray *a = heartbeat_object_wants(type) ? heartbeat_object_properties()
                                                : net_type_properties(type);

    if (!a) {
        return QMP_PASS;
    }
    *ret = array_node(a);
    return QMP_DONE;
}
