/*
 * replication, mode=secondary: the node, its options and its figures.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * secondary-int.h has the essay; secondary-io.c the SVM's requests, secondary-log.c the
 * log, takeover.c the way out, control.c what the controller calls.
 */
#include "secondary-int.h"

#include <unistd.h>

const char *secondary_state_name(SecondaryState state)
{
    static const char *const names[] = {"idle", "replicating", "taking over", "live",
                                        "failed"};

    return names[state];
}

static void secondary_close(BlockNode *node)
{
    BlockSecondary *s = node->opaque;
    LogEntry *e;

    s->parent->secondary = NULL;
    while ((e = g_queue_pop_head(&s->pending)) || (e = g_queue_pop_head(&s->to_apply))) {
        log_entry_unref(e);
    }
    log_map_free(s->pending_map);
    log_map_free(s->committed_map);
    overlay_free(s->overlay);
    g_hash_table_unref(s->conns);
    g_ptr_array_unref(s->waiters);
    g_ptr_array_unref(s->settlers);
    block_node_unuse(s->active);
    block_node_unuse(s->parent);
    g_free(s->hidden);
    g_free(s->top_id);
    g_free(s->export_name);
    g_free(s->marker);
    g_free(s->error);
    g_free(s);
}

static void secondary_query(BlockNode *node, JsonObject *o)
{
    BlockSecondary *s = node->opaque;

    json_object_set_string_member(o, "mode", "secondary");
    json_object_set_string_member(o, "state", secondary_state_name(s->state));
    json_object_set_string_member(o, "disk",
                                  s->export_name ? s->export_name : s->parent->name);
    json_object_set_int_member(o, "log-bytes", s->log_bytes);
    json_object_set_int_member(o, "overlay-bytes", overlay_bytes(s->overlay));
    json_object_set_int_member(o, "arrived", secondary_arrivals(s));
    json_object_set_int_member(o, "committed", s->committed);
    if (s->error) {
        json_object_set_string_member(o, "error", s->error);
    }
}

static const BlockDriver secondary_driver = {
    .name = "replication",
    .submit = secondary_submit,
    .close = secondary_close,
    .query = secondary_query,
};

static bool node_is_secondary(BlockNode *node)
{
    return node->drv == &secondary_driver;
}

GPtrArray *secondaries(void)
{
    GPtrArray *out = g_ptr_array_new();
    GHashTableIter it;
    BlockNode *node;

    g_hash_table_iter_init(&it, block_nodes());
    while (g_hash_table_iter_next(&it, NULL, (gpointer *)&node)) {
        if (node_is_secondary(node)) {
            g_ptr_array_add(out, node->opaque);
        }
    }
    return out;
}

void block_secondary_exported(BlockNode *parent, const char *export_name)
{
    if (parent->secondary) {
        g_free(parent->secondary->export_name);
        parent->secondary->export_name = g_strdup(export_name);
    }
}

/* file=active, file.backing=hidden, file.backing.backing=the image's name. */
static bool secondary_split(JsonObject *opts, const char *what, JsonObject **active,
                            char **hidden, char **parent, GError **errp)
{
    g_autoptr(JsonObject) file = options_get_obj(opts, "file")
                                     ? options_copy(options_get_obj(opts, "file"))
                                     : NULL;
    JsonObject *backing = options_get_obj(file, "backing");
    JsonObject *hidden_file = options_get_obj(backing, "file");
    const char *base = options_get_str(backing, "backing", NULL);
    const char *path = options_get_str(hidden_file ? hidden_file : backing, "filename",
                                       options_get_str(backing, "file", NULL));

    if (!file || !backing || !base || !path) {
        colo_error_set(errp,
                       "%s: expected file (the active disk), file.backing (the hidden "
                       "disk) and file.backing.backing (the name of the image's node)",
                       what);
        return false;
    }
    if (access(path, R_OK | W_OK) != 0) {
        colo_error_set_errno(errp, errno, "%s: cannot open the hidden disk '%s'", what,
                             path);
        return false;
    }
    *hidden = g_strdup(path);
    *parent = g_strdup(base);
    json_object_remove_member(file, "backing");
    *active = json_object_new();
    json_object_set_object_member(*active, "file", g_steal_pointer(&file));
    return true;
}

static bool secondary_fits(BlockNode *active, BlockNode *parent, const char *what,
                           GError **errp)
{
    if (active->size != parent->size) {
        colo_error_set(errp,
                       "%s: the active disk has %" G_GUINT64_FORMAT " bytes and '%s' "
                       "%" G_GUINT64_FORMAT "; they must have one size",
                       what, active->size, parent->name, parent->size);
    } else if (active->read_only || parent->read_only) {
        colo_error_set(errp, "%s: active disk and '%s' must be writable", what,
                       parent->name);
    } else if (parent->secondary) {
        colo_error_set(errp, "%s: '%s' already has a replication node", what,
                       parent->name);
    } else if (active == parent) {
        colo_error_set(errp, "%s: active disk and image are one", what);
    } else if (!active->can_zero || !parent->can_zero) {
        colo_error_set(errp, "%s: active disk and '%s' must be able to write zeroes",
                       what, parent->name);
    } else {
        return true;
    }
    return false;
}

BlockNode *block_secondary_open(const char *name, JsonObject *opts, GError **errp)
{
    static const char *const known[] = {"driver",    "mode",      "file",    "top-id",
                                        "node-name", "read-only", "discard", "cache",
                                        "aio",       NULL};
    g_autofree char *what = g_strdup_printf("replication '%s'", name ? name : "(inline)");
    g_autoptr(JsonObject) active_opts = NULL;
    g_autofree char *hidden = NULL, *parent_name = NULL;

    if (!options_check_known(opts, what, known, errp)) {
        return NULL;
    }
    if (!json_object_has_member(opts, "top-id")) {
        colo_error_set(errp, "%s: Parameter 'top-id' is missing", what);
        return NULL;
    }
    if (!secondary_split(opts, what, &active_opts, &hidden, &parent_name, errp)) {
        return NULL;
    }
    JsonObject *parent_ref = json_object_new();
    json_object_set_string_member(parent_ref, "backing", parent_name);
    BlockNode *parent = block_node_open_child(parent_ref, "backing", errp);
    json_object_unref(parent_ref);
    if (!parent) {
        g_prefix_error(errp, "%s: file.backing.backing: ", what);
        return NULL;
    }
    BlockNode *active = block_node_open_child(active_opts, "file", errp);
    block_lock();
    if (!active || !secondary_fits(active, parent, what, errp)) {
        if (active) {
            block_node_unuse(active);
        }
        block_node_unuse(parent);
        block_unlock();
        return NULL;
    }
    BlockSecondary *s = g_new0(BlockSecondary, 1);
    s->active = active;
    s->parent = parent;
    s->hidden = g_steal_pointer(&hidden);
    s->top_id = g_strdup(options_get_str(opts, "top-id", ""));
    s->conns = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    s->pending_map = log_map_new();
    s->committed_map = log_map_new();
    s->overlay = overlay_new(parent->size);
    s->waiters = g_ptr_array_new();
    s->settlers = g_ptr_array_new();
    s->node = block_node_new(&secondary_driver, name, s);
    s->node->size = parent->size;
    s->node->can_zero = true;
    s->node->discard = parent->discard;
    parent->secondary = s;
    block_unlock();
    return s->node;
}

JsonNode *block_replication_query(void)
{
    JsonArray *a = json_array_new();
    GHashTableIter it;
    BlockNode *node;

    block_lock();
    g_hash_table_iter_init(&it, block_nodes());
    while (g_hash_table_iter_next(&it, NULL, (gpointer *)&node)) {
        if (node_is_secondary(node) || block_node_is_primary(node)) {
            JsonObject *o = json_object_new();

            json_object_set_string_member(o, "node-name", node->name);
            node->drv->query(node, o);
            json_array_add_object_element(a, o);
        }
    }
    block_unlock();
    JsonNode *n = json_node_init_array(json_node_alloc(), a);
    json_array_unref(a);
    return n;
}
