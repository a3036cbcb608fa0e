/*
 * The steps between unprotected and protected, and back.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Each is what the manual lets an operator type, over a QMP session of our own. What is there
 * already is taken as done, so that a step may be repeated, and an operator may have been
 * faster.
 */
#include "system/pair-int.h"

#include <string.h>

#include "block/block.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

#define STREAMS_MS 10000
#define POLL_MS 50

/* --- What is there --- */

/* The members @key of the answers of @command: a set. */
static GHashTable *names(Pair *p, const char *command, JsonObject *args, const char *key,
                         GError **errp)
{
    g_autoptr(JsonNode) ret = NULL;

    if (!pair_qmp_run(p->qmp, command, args, &ret, errp)) {
        return NULL;
    }
    GHashTable *set = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    JsonArray *a = JSON_NODE_HOLDS_ARRAY(ret) ? json_node_get_array(ret) : NULL;
    for (guint i = 0; a && i < json_array_get_length(a); i++) {
        g_hash_table_add(set, g_strdup(options_get_str(json_array_get_object_element(a, i),
                                                       key, "")));
    }
    return set;
}

static GHashTable *objects_there(Pair *p, GError **errp)
{
    JsonObject *args = json_object_new();

    json_object_set_string_member(args, "path", "/objects");
    return names(p, "qom-list", args, "name", errp);
}

static const char *id_of(JsonObject *o)
{
    return options_get_str(o, "id", "");
}

static bool apply_settings(Pair *p, bool secondary, GError **errp)
{
    JsonObject *params = pair_settings_parameters(&p->opts.settings, secondary);

    return pair_qmp_run(p->qmp, "migrate-set-capabilities",
                        pair_settings_capabilities(&p->opts.settings), NULL, errp) &&
           (!params || pair_qmp_run(p->qmp, "migrate-set-parameters", params, NULL, errp));
}

/* --- Secondary --- */

bool pair_prepare_secondary(Pair *p, GError **errp)
{
    const char *tls = p->opts.settings.tls_server;

    if (!apply_settings(p, true, errp)) {
        return false;
    }
    if (p->layout->disks->len == 0 || block_nbd_server_running()) {
        return true;
    }
    if (!pair_qmp_do(p->qmp, "nbd-server-start", errp,
                     "{\"addr\":{\"type\":\"inet\",\"data\":{\"host\":\"%s\",\"port\":\"%u\"}}"
                     "%s%s%s}", p->opts.listen, p->opts.nbd_port, tls ? ",\"tls-creds\":\"" : "",
                     tls ? tls : "", tls ? "\"" : "")) {
        return false;
    }
    for (guint i = 0; i < p->layout->disks->len; i++) {
        const PairDisk *d = p->layout->disks->pdata[i];
        if (d->export && !pair_qmp_do(p->qmp, "nbd-server-add", errp,
                                      "{\"device\":\"%s\",\"writable\":true}", d->export)) {
            return false;
        }
    }
    return true;
}

/* --- After a takeover --- */

static bool del_objects(Pair *p, GPtrArray *ids, GHashTable *there, GError **errp)
{
    for (guint i = 0; i < ids->len; i++) {
        if (g_hash_table_contains(there, ids->pdata[i]) &&
            !pair_qmp_do(p->qmp, "object-del", errp, "{\"id\":\"%s\"}",
                         (char *)ids->pdata[i])) {
            return false;
        }
    }
    return true;
}

bool pair_become_primary(Pair *p, GError **errp)
{
    const PairLayout *l = p->layout;
    g_autoptr(GHashTable) objects = objects_there(p, errp);
    g_autoptr(GHashTable) chardevs =
        objects ? names(p, "query-chardev", NULL, "label", errp) : NULL;

    if (!chardevs) {
        return false;
    }
    if (block_nbd_server_running() &&
        !pair_qmp_run(p->qmp, "nbd-server-stop", NULL, NULL, errp)) {
        return false;
    }
    if (!del_objects(p, l->old_objects, objects, errp)) {
        return false;
    }
    for (guint i = 0; i < l->old_chardevs->len; i++) {
        if (g_hash_table_contains(chardevs, l->old_chardevs->pdata[i]) &&
            !pair_qmp_do(p->qmp, "chardev-remove", errp, "{\"id\":\"%s\"}",
                         (char *)l->old_chardevs->pdata[i])) {
            return false;
        }
    }
    for (guint i = 0; i < l->chardevs->len; i++) {
        JsonObject *c = l->chardevs->pdata[i];
        if (!g_hash_table_contains(chardevs, id_of(c)) &&
            !pair_qmp_run(p->qmp, "chardev-add", options_copy(c), NULL, errp)) {
            return false;
        }
    }
    return true;
}

/* --- Undo --- */

/* Comparisons first, then their iothreads, then the filters: as the manual has it. */
static bool del_filters(Pair *p, GError **errp)
{
    static const char *const order[] = {"colo-compare", "iothread", "filter-"};
    g_autoptr(GHashTable) there = objects_there(p, errp);

    if (!there) {
        return false;
    }
    for (unsigned k = 0; k < G_N_ELEMENTS(order); k++) {
        for (guint i = 0; i < p->layout->objects->len; i++) {
            JsonObject *o = p->layout->objects->pdata[i];
            g_autoptr(GError) err = NULL;
            if (!g_str_has_prefix(options_get_str(o, "qom-type", ""), order[k]) ||
                !g_hash_table_contains(there, id_of(o)) ||
                pair_qmp_do(p->qmp, "object-del", &err, "{\"id\":\"%s\"}", id_of(o))) {
                continue;
            }
            /* An iothread that a device uses, too, stays. */
            if (strcmp(order[k], "iothread") != 0) {
                g_propagate_error(errp, g_steal_pointer(&err));
                return false;
            }
        }
    }
    return true;
}

void pair_let_go(Pair *p)
{
    g_autoptr(GError) err = NULL;

    if (p->held && !pair_qmp_run(p->qmp, "cont", NULL, NULL, &err)) {
        colo_report("pair: %s", err->message);
    }
    p->held = false;
}

bool pair_undo(Pair *p, GError **errp)
{
    pair_let_go(p);
    /* Each part whatever became of the other. */
    bool disks = pair_detach_disks(p, errp);
    bool filters = del_filters(p, disks ? errp : NULL);
    return disks && filters;
}

/* --- Protect --- */

static bool add_filters(Pair *p, GError **errp)
{
    g_autoptr(GHashTable) there = objects_there(p, errp);

    for (guint i = 0; there && i < p->layout->objects->len; i++) {
        JsonObject *o = p->layout->objects->pdata[i];
        if (!g_hash_table_contains(there, id_of(o)) &&
            !pair_qmp_run(p->qmp, "object-add", options_copy(o), NULL, errp)) {
            return false;
        }
    }
    return there != NULL;
}

/* The chardev on which the secondary is not, yet: its id, or NULL. */
static const char *missing_stream(Pair *p, GError **errp)
{
    g_autoptr(JsonNode) ret = NULL;

    if (!pair_qmp_run(p->qmp, "query-chardev", NULL, &ret, errp)) {
        return NULL;
    }
    JsonArray *a = json_node_get_array(ret);
    for (guint s = 0; s < p->layout->streams->len; s++) {
        bool there = false;
        for (guint i = 0; i < json_array_get_length(a); i++) {
            JsonObject *o = json_array_get_object_element(a, i);
            there |= strcmp(options_get_str(o, "label", ""), p->layout->streams->pdata[s]) == 0 &&
                     !g_str_has_prefix(options_get_str(o, "filename", ""), "disconnected:");
        }
        if (!there) {
            return p->layout->streams->pdata[s];
        }
    }
    return NULL;
}

static bool wait_streams(Pair *p, GError **errp)
{
    int64_t end = g_get_monotonic_time() + STREAMS_MS * 1000LL;
    g_autoptr(GError) err = NULL;
    const char *id;

    while ((id = missing_stream(p, &err))) {
        if (g_get_monotonic_time() > end || pair_quits()) {
            colo_error_set(errp, "the secondary has not connected to chardev '%s'", id);
            return false;
        }
        g_usleep(POLL_MS * 1000);
    }
    if (err) {
        g_propagate_error(errp, g_steal_pointer(&err));
        return false;
    }
    return true;
}

/* migrate, and what comes of it: true once it is protected, or was. */
static bool migrate(Pair *p, GError **errp)
{
    MigrationView v;

    pair_set_state(PAIR_PROTECTING, "first copy of memory");
    if (!apply_settings(p, false, errp) ||
        !pair_qmp_do(p->qmp, "migrate", errp, "{\"uri\":\"tcp:%s%s%s:%u\"}",
                     strchr(p->opts.peer, ':') ? "[" : "", p->opts.peer,
                     strchr(p->opts.peer, ':') ? "]" : "", p->opts.migrate_port)) {
        return false;
    }
    for (migration_view(&v); v.state == MIGRATION_SETUP || v.state == MIGRATION_SYNC;
         migration_view(&v)) {
        if (pair_quits()) {
            colo_error_set(errp, "the process ends");
            return false;
        }
        migration_wait_change(v.changes, 200);
        pair_qmp_drain(p->qmp);
    }
    if (v.state == MIGRATION_ALONE && !v.was_protected) {
        colo_error_set(errp, "%s", *v.error ? v.error : "the migration failed");
        return false;
    }
    return true;
}

bool pair_protect(Pair *p, const PairPeer *peer, GError **errp)
{
    static const char *const step_names[] = {"disks", "filters", "streams", "migrate"};
    int step = 0;
    bool ok = pair_attach_disks(p, peer, errp) && ++step && add_filters(p, errp) && ++step &&
              wait_streams(p, errp) && ++step && migrate(p, errp);

    colo_trace(pair_protect, "%s%s", ok ? "protected" : "failed at step ",
               ok ? "" : step_names[step]);
    if (!ok) {
        g_prefix_error(errp, "%s: ", step_names[step]);
    }
    return ok;
}
