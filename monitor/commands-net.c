/*
 * Network backends and chardevs that are added and removed at run time.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A backend of ours needs its other half in the emulator: netdev_add makes ours, hands
 * the emulator its end of the socket pair (getfd), and has it add a dgram backend on it.
 */
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "chardev/chardev.h"
#include "net/net.h"
#include "net/proxy.h"
#include "internal.h"
#include "qapi-commands.h"
#include "util/error.h"
#include "util/options.h"

typedef struct NetdevChange {
    QmpRequest *req;
    char *id;
    char *fdname;
} NetdevChange;

static NetdevChange *change_new(QmpRequest *req, const char *id)
{
    NetdevChange *c = g_new(NetdevChange, 1);

    *c = (NetdevChange){req, g_strdup(id), g_strdup_printf("qemu-colo-%s", id)};
    return c;
}

static void change_finish(NetdevChange *c, const GError *err)
{
    qmp_request_finish(c->req, NULL, err ? g_error_copy(err) : NULL);
    g_free(c->id);
    g_free(c->fdname);
    g_free(c);
}

static bool del_ours(const char *id, GError **errp)
{
    net_lock();
    bool ok = netdev_del(id, errp);
    net_unlock();
    return ok;
}

static void child_has_netdev(JsonNode *ret, const GError *err, void *opaque)
{
    NetdevChange *c = opaque;

    if (err) {
        g_autoptr(JsonObject) args = json_object_new();
        json_object_set_string_member(args, "fdname", c->fdname);
        monitor_child_execute("closefd", args, NULL, NULL);
        del_ours(c->id, NULL);
    }
    change_finish(c, err);
}

static void child_has_fd(JsonNode *ret, const GError *err, void *opaque)
{
    NetdevChange *c = opaque;

    if (err) {
        del_ours(c->id, NULL);
        change_finish(c, err);
        return;
    }
    g_autoptr(JsonObject) args = json_object_new();
    JsonObject *local = json_object_new();
    json_object_set_string_member(local, "type", "fd");
    json_object_set_string_member(local, "str", c->fdname);
    json_object_set_string_member(args, "type", "dgram");
    json_object_set_string_member(args, "id", c->id);
    json_object_set_object_member(args, "local", local);
    monitor_child_execute("netdev_add", args, child_has_netdev, c);
}

/* --- Descriptors with names --- */

/* Room singleton (main thread): what getfd brought, by name. */
static GHashTable *named_fds;

static void close_named(gpointer p)
{
    close(GPOINTER_TO_INT(p));
}

/* Both sides keep a tap's: what it is for is not known yet. Of any other a copy here would
 * keep the far end from seeing its end. */
QmpResult qmp_getfd(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    const char *name = json_object_get_string_member(args, "fdname");
    int fd = qmp_request_fd(req);
    struct ifreq ifr;
    bool is_tap = fd >= 0 && ioctl(fd, TUNGETIFF, &ifr) == 0;
    int copy = is_tap ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : -1;

    if (copy >= 0) {
        if (!named_fds) {
            named_fds = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, close_named);
        }
        g_hash_table_replace(named_fds, g_strdup(name), GINT_TO_POINTER(copy));
    }
    return QMP_PASS;
}

QmpResult qmp_closefd(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    if (named_fds) {
        g_hash_table_remove(named_fds, json_object_get_string_member(args, "fdname"));
    }
    return QMP_PASS;
}

/* A copy of @args in which "fd" is a number. As in QEMU a name is good for one use. */
static JsonObject *with_numeric_fd(JsonObject *args)
{
    JsonObject *copy = options_copy(args);
    const char *name = options_get_str(copy, "fd", "");
    gpointer key, fd;

    if (!*name || g_ascii_isdigit(*name) || !named_fds ||
        !g_hash_table_steal_extended(named_fds, name, &key, &fd)) {
        return copy;
    }
    g_autoptr(JsonObject) close_it = json_object_new();
    json_object_set_string_member(close_it, "fdname", key);
    monitor_child_execute("closefd", close_it, NULL, NULL);
    json_object_set_int_member(copy, "fd", GPOINTER_TO_INT(fd));
    g_free(key);
    return copy;
}

QmpResult qmp_netdev_add(QmpRequest *req, JsonObject *given, JsonNode **ret, GError **errp)
{
    if (!netdev_wants(given)) {
        return QMP_PASS;
    }
    g_autoptr(JsonObject) args = with_numeric_fd(given);
    net_lock();
    NetDev *nd = netdev_new(args, errp);
    int fd = nd ? netdev_child_fd(nd) : -1;
    net_unlock();
    if (!nd) {
        return QMP_FAILED;
    }
    NetdevChange *c = change_new(req, json_object_get_string_member(args, "id"));
    monitor_child_send_fd(fd, c->fdname, child_has_fd, c);
    return QMP_PENDING;
}

static void child_lost_netdev(JsonNode *ret, const GError *err, void *opaque)
{
    NetdevChange *c = opaque;
    g_autoptr(GError) ours = NULL;

    if (!err) {
        del_ours(c->id, &ours);
    }
    change_finish(c, err ? err : ours);
}

QmpResult qmp_netdev_del(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    const char *id = json_object_get_string_member(args, "id");

    net_lock();
    bool ours = netdev_find(id) != NULL;
    net_unlock();
    if (!ours) {
        return QMP_PASS;
    }
    monitor_child_execute("netdev_del", args, child_lost_netdev, change_new(req, id));
    return QMP_PENDING;
}

static bool chardev_is_ours(const char *id)
{
    net_lock();
    bool yes = chardev_find(id) != NULL;
    net_unlock();
    return yes;
}

static bool refuse_twin(const char *id, GError **errp)
{
    colo_error_set(errp, "Chardev with id '%s' already exists", id);
    return false;
}

/* Whether the emulator's query-chardev @list has @id. */
static bool child_has_chardev(JsonNode *list, const char *id)
{
    JsonArray *a = list && JSON_NODE_HOLDS_ARRAY(list) ? json_node_get_array(list) : NULL;

    for (guint i = 0; a && i < json_array_get_length(a); i++) {
        JsonObject *o = json_array_get_object_element(a, i);
        if (strcmp(options_get_str(o, "label", ""), id) == 0) {
            return true;
        }
    }
    return false;
}

typedef struct ChardevAdd {
    QmpRequest *req;
    JsonObject *args;
} ChardevAdd;

static void chardev_add_checked(JsonNode *ret, const GError *err, void *opaque)
{
    g_autofree ChardevAdd *add = opaque;
    GError *failed = NULL;
    const char *id = json_object_get_string_member(add->args, "id");

    if (child_has_chardev(ret, id)) {
        refuse_twin(id, &failed);
    } else {
        net_lock();
        chardev_new(add->args, &failed);
        net_unlock();
    }
    qmp_request_finish(add->req, NULL, failed);
    json_object_unref(add->args);
}

QmpResult qmp_chardev_add(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    const char *id = json_object_get_string_member(args, "id");

    if (!chardev_wants(args)) {
        return !chardev_is_ours(id) || refuse_twin(id, errp) ? QMP_PASS : QMP_FAILED;
    }
    ChardevAdd *add = g_new(ChardevAdd, 1);
    *add = (ChardevAdd){req, json_object_ref(args)};
    monitor_child_execute("query-chardev", NULL, chardev_add_checked, add);
    return QMP_PENDING;
}

QmpResult qmp_chardev_remove(QmpRequest *req, JsonObject *args, JsonNode **ret,
                             GError **errp)
{
    const char *id = json_object_get_string_member(args, "id");

    net_lock();
    bool ours = chardev_find(id) != NULL;
    bool ok = ours && chardev_remove(id, errp);
    net_unlock();
    return !ours ? QMP_PASS : ok ? QMP_DONE : QMP_FAILED;
}

static void add_element(JsonArray *array, guint index, JsonNode *node, gpointer opaque)
{
    if (!is_private(options_get_str(json_node_get_object(node), "label", ""))) {
        json_array_add_element(opaque, json_node_copy(node));
    }
}

static void chardevs_queried(JsonNode *ret, const GError *err, void *opaque)
{
    QmpRequest *req = opaque;
    g_autoptr(JsonArray) all = json_array_new();

    if (err) {
        qmp_request_finish(req, NULL, g_error_copy(err));
        return;
    }
    net_lock();
    g_autoptr(JsonArray) ours = chardev_query();
    net_unlock();
    if (JSON_NODE_HOLDS_ARRAY(ret)) {
        json_array_foreach_element(json_node_get_array(ret), add_element, all);
    }
    json_array_foreach_element(ours, add_element, all);
    qmp_servers_query(all);
    qmp_request_finish(req, json_node_init_array(json_node_alloc(), all), NULL);
}

QmpResult qmp_query_chardev(QmpRequest *req, JsonObject *args, JsonNode **ret,
                            GError **errp)
{
    monitor_child_execute("query-chardev", NULL, chardevs_queried, req);
    return QMP_PENDING;
}

QmpResult qmp_chardev_change(QmpRequest *req, JsonObject *args, JsonNode **ret,
                             GError **errp)
{
    const char *id = json_object_get_string_member(args, "id");
    QmpResult result = QMP_PASS;

    net_lock();
    Chardev *c = chardev_find(id);
    if (c && chardev_claimed(c)) {
        colo_error_set(errp, "Chardev user does not support chardev hotswap");
        result = QMP_FAILED;
    } else if (c) {
        /* The new one may want the same address: the old one goes first. */
        chardev_remove(id, NULL);
        result = chardev_new(args, errp) ? QMP_DONE : QMP_FAILED;
    }
    net_unlock();
    return result;
}

QmpResult qmp_chardev_send_break(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                 GError **errp)
{
    net_lock();
    bool ours = chardev_find(json_object_get_string_member(args, "id")) != NULL;
    net_unlock();
    return ours ? QMP_DONE : QMP_PASS;
}

QmpResult qmp_announce_self(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    NetAnnounce how = {
        .id = options_get_str(args, "id", ""),
        .initial = json_object_get_int_member(args, "initial"),
        .step = json_object_get_int_member(args, "step"),
        .max = json_object_get_int_member(args, "max"),
        .rounds = json_object_get_int_member(args, "rounds"),
    };
    JsonArray *nics = json_object_has_member(args, "interfaces")
                          ? json_object_get_array_member(args, "interfaces") : NULL;
    guint n = nics ? json_array_get_length(nics) : 0;
    g_auto(GStrv) names = g_new0(char *, n + 1);

    for (guint i = 0; i < n; i++) {
        names[i] = g_strdup(json_array_get_string_element(nics, i));
    }
    how.nics = n ? names : NULL;
    net_lock();
    net_announce_self(&how);
    bool alone = net_get_role() == NET_ROLE_ALONE;
    net_unlock();
    /* The emulator knows a NIC that never sent, and has a virtio guest announce itself;
     * under protection that would be one twin's doing. */
    return alone ? QMP_PASS : QMP_DONE;
}

QmpResult qmp_query_colo_proxy(QmpRequest *req, JsonObject *args, JsonNode **ret,
                               GError **errp)
{
    net_lock();
    *ret = proxy_query();
    net_unlock();
    return QMP_DONE;
}
