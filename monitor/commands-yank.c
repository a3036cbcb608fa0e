/*
 * yank: break off the connections of this program.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The emulator's own connections lead to this program and are nobody's business. Each lock
 * taken here is held by others for moments only: an answer out of band comes at once.
 */
#include <string.h>

#include "block/block.h"
#include "chardev/chardev.h"
#include "migration/migration.h"
#include "net/net.h"
#include "qapi-commands.h"
#include "util/error.h"
#include "util/options.h"

typedef struct Kind {
    const char *name, *key; /* of the member that names the instance, or NULL */
    bool (*yank)(const char *id, bool really);
} Kind;

static bool yank_chardev(const char *id, bool really)
{
    net_lock();
    Chardev *c = chardev_find(id);
    if (c && really) {
        chardev_yank(c);
    }
    net_unlock();
    return c != NULL;
}

static bool yank_node(const char *id, bool really)
{
    if (really) {
        return block_yank(id);
    }
    g_auto(GStrv) all = block_yank_list();
    return g_strv_contains((const char *const *)all, id);
}

static bool yank_migration(const char *id, bool really)
{
    return migration_peer(really);
}

static const Kind kinds[] = {
    {"block-node", "node-name", yank_node},
    {"chardev", "id", yank_chardev},
    {"migration", NULL, yank_migration},
};

static const Kind *find_kind(JsonObject *o, unsigned i, const char **id, GError **errp)
{
    const char *type = options_get_str(o, "type", "");

    for (unsigned k = 0; k < G_N_ELEMENTS(kinds); k++) {
        if (strcmp(kinds[k].name, type) != 0) {
            continue;
        }
        *id = kinds[k].key ? options_get_str(o, kinds[k].key, NULL) : "";
        if (!*id) {
            colo_error_set(errp, "Parameter 'instances[%u].%s' is missing", i, kinds[k].key);
            return NULL;
        }
        return &kinds[k];
    }
    colo_error_set(errp, "Parameter 'type' does not accept value '%s'", type);
    return NULL;
}

QmpResult qmp_yank(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    JsonArray *list = json_object_get_array_member(args, "instances");

    /* All of them are there, or none is yanked. */
    for (int really = 0; really < 2; really++) {
        for (guint i = 0; i < json_array_get_length(list); i++) {
            const char *id;
            const Kind *k =
                find_kind(json_array_get_object_element(list, i), i, &id, errp);
            if (!k) {
                return QMP_FAILED;
            }
            if (!k->yank(id, really) && !really) {
                g_set_error_literal(errp, COLO_ERROR, COLO_ERROR_DEVICE_NOT_FOUND,
                                    "Instance not found");
                return QMP_FAILED;
            }
        }
    }
    return QMP_DONE;
}

static void add(JsonArray *out, const char *type, const char *key, const char *id)
{
    JsonObject *o = json_object_new();

    json_object_set_string_member(o, "type", type);
    if (key) {
        json_object_set_string_member(o, key, id);
    }
    json_array_add_object_element(out, o);
}

QmpResult qmp_query_yank(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    JsonArray *out = json_array_new();
    g_auto(GStrv) nodes = block_yank_list();

    for (char **n = nodes; *n; n++) {
        add(out, "block-node", "node-name", *n);
    }
    net_lock();
    g_autoptr(JsonArray) chardevs = chardev_query();
    net_unlock();
    for (guint i = 0; i < json_array_get_length(chardevs); i++) {
        JsonObject *c = json_array_get_object_element(chardevs, i);
        add(out, "chardev", "id", options_get_str(c, "label", ""));
    }
    if (migration_peer(false)) {
        add(out, "migration", NULL, NULL);
    }
    *ret = json_node_init_array(json_node_alloc(), out);
    json_array_unref(out);
    return QMP_DONE;
}
