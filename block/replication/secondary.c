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
#include "../activity-log.h"

const char *secondary_state_name(SecondaryState state)
{
    static const char *const names[] = {"none", "running", "failover", "done",
                                        "failover-failed"};

    return names[state];
}

GSource *secondary_idle(GSourceFunc fn, void *opaque)
{
    GSource *src = g_idle_source_new();

    g_source_set_priority(src, G_PRIORITY_DEFAULT);
    g_source_set_callback(src, fn, opaque, NULL);
    g_source_attach(src, io_thread_context(block_thread()));
    return src;
}

static void secondary_close(BlockNode *node)
{
    BlockSecondary *s = node->opaque;

    s->parent->secondary = NULL;
    secondary_journal_forget(s);
    io_source_destroy(&s->apply_idle);
    io_source_destroy(&s->stage_idle);
    secondary_drop_pending(s);
    io_source_destroy(&s->garbage_idle);
    log_layer_free(s->staged);
    log_map_free(s->pending_map);
    g_ptr_array_set_free_func(s->layers, (GDestroyNotify)log_layer_free);
    g_ptr_array_set_free_func(s->garbage, (GDestroyNotify)log_layer_free);
    g_ptr_array_unref(s->layers);
    g_ptr_array_unref(s->garbage);
    overlay_free(s->log.space);
    overlay_free(s->overlay);
    g_hash_table_unref(s->conns);
    g_ptr_array_unref(s->waiters);
    g_ptr_array_unref(s->settlers);
    block_node_unuse(s->active);
    block_node_unuse(s->hidden);
    block_node_unuse(s->parent);
    g_free(s->top_id);
    g_free(s->export_name);
    g_free(s->peer_generation);
    g_free(s->peer_connection);
    g_free(s->marker);
    g_free(s->error);
    s->closed = true;
    if (s->through == 0) {
        g_free(s);
    } /* else through_done() does */
}

static void secondary_query(BlockNode *node, JsonObject *o)
{
    BlockSecondary *s = node->opaque;

    json_object_set_string_member(o, "mode", "secondary");
    json_object_set_string_member(o, "state", secondary_state_name(s->state));
    json_object_set_string_member(o, "disk",
                                  s->export_name ? s->export_name : s->parent->name);
    json_object_set_int_member(o, "log-bytes", s->log.memory + s->log.spilled);
    json_object_set_int_member(o, "log-memory", s->log.memory);
    json_object_set_int_member(o, "log-memory-limit", s->log_memory);
    json_object_set_int_member(o, "log-spilled", s->log.spilled);
    json_object_set_int_member(o, "log-layers", s->layers->len);
    json_object_set_boolean_member(o, "shared", s->shared);
    json_object_set_int_member(o, "overlay-bytes", overlay_bytes(s->overlay));
    if (s->state == SECONDARY_TAKEOVER) {
        json_object_set_boolean_member(o, "serving", s->serving);
    }
    json_object_set_int_member(o, "arrived", secondary_arrivals(s));
    json_object_set_int_member(o, "committed", s->committed);
    activity_log_query(activity_log_of(s->parent), o);
    if (s->error) {
        json_object_set_string_member(o, "error", s->error);
    }
}

static unsigned secondary_below(BlockNode *node, BlockNode **out, unsigned max)
{
    BlockSecondary *s = node->opaque;

    out[0] = s->parent;
    return 1;
}

static const BlockDriver secondary_driver = {
    .name = "replication",
    .submit = secondary_submit,
    .close = secondary_close,
    .query = secondary_query,
    .below = secondary_below,
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

BlockNode *block_secondary_live_image(BlockNode *node)
{
    BlockSecondary *s = node_is_secondary(node) ? node->opaque : NULL;

    return s && s->state == SECONDARY_LIVE ? s->parent : NULL;
}

void block_secondary_exported(BlockNode *parent, const char *export_name)
{
    if (parent->secondary) {
        g_free(parent->secondary->export_name);
        parent->secondary->export_name = g_strdup(export_name);
    }
}

/* file=active, file.backing=hidden, file.backing.backing=the image's name. Gives
 * {"active", "hidden", "image"} as block_node_open_child() takes them. */
static JsonObject *secondary_split(JsonObject *opts, const char *what, GError **errp)
{
    g_autoptr(JsonObject) active = options_get_obj(opts, "file")
                                       ? options_copy(options_get_obj(opts, "file"))
                                       : NULL;
    g_autoptr(JsonObject) hidden = options_get_obj(active, "backing")
                                       ? options_copy(options_get_obj(active, "backing"))
                                       : NULL;
    const char *image = options_get_str(hidden, "backing", NULL);

    if (!hidden || !image) {
        colo_error_set(errp,
                       "%s: expected file (the active disk), file.backing (the hidden "
                       "disk) and file.backing.backing (the name of the image's node)",
                       what);
        return NULL;
    }
    JsonObject *all = json_object_new();
    json_object_set_string_member(all, "image", image);
    json_object_remove_member(active, "backing");
    json_object_remove_member(hidden, "backing");
    json_object_set_object_member(all, "active", g_steal_pointer(&active));
    json_object_set_object_member(all, "hidden", g_steal_pointer(&hidden));
    return all;
}

/* The three disks of @parts, each with one more user; none if one of them fails. */
static bool secondary_open_disks(JsonObject *parts, const char *what, BlockNode *disk[3],
                                 GError **errp)
{
    static const char *const keys[] = {"image", "active", "hidden"};
    static const char *const options[] = {"file.backing.backing", "file (the active disk)",
                                          "file.backing (the hidden disk)"};

    for (int i = 0; i < 3; i++) {
        disk[i] = block_node_open_child(parts, keys[i], errp);
        if (!disk[i]) {
            g_prefix_error(errp, "%s: %s: ", what, options[i]);
            block_lock();
            while (i-- > 0) {
                block_node_unuse(disk[i]);
            }
            block_unlock();
            return false;
        }
    }
    return true;
}

static bool secondary_fits(BlockNode *parent, BlockNode *active, BlockNode *hidden,
                           const char *what, GError **errp)
{
    if (active->size != parent->size || hidden->size != parent->size) {
        colo_error_set(errp,
                       "%s: the active disk has %" G_GUINT64_FORMAT
                       " bytes, the hidden disk %" G_GUINT64_FORMAT
                       " and the image '%s' %" G_GUINT64_FORMAT
                       "; they must have one size",
                       what, active->size, hidden->size, parent->name, parent->size);
    } else if (active->read_only || hidden->read_only || parent->read_only) {
        colo_error_set(errp, "%s: active disk, hidden disk and '%s' must be writable", what,
                       parent->name);
    } else if (parent->secondary) {
        colo_error_set(errp, "%s: '%s' already has a replication node", what,
                       parent->name);
    } else if (active == parent || hidden == parent || active == hidden) {
        colo_error_set(errp, "%s: active disk, hidden disk and image must be three", what);
    } else if (!active->can_zero || !parent->can_zero) {
        colo_error_set(errp, "%s: active disk and '%s' must be able to write zeroes",
                       what, parent->name);
    } else {
        return true;
    }
    return false;
}

/* Image and node must agree on whether the primary has this image, too. */
static bool secondary_shares(BlockNode *parent, bool shared, const char *what,
                             GError **errp)
{
    if (shared == block_file_is_shared(parent)) {
        return true;
    }
    colo_error_set(errp, "%s: shared-disk=%s, but image '%s' was opened with shared-disk=%s",
                   what, shared ? "on" : "off", parent->name, shared ? "off" : "on");
    return false;
}

BlockNode *block_secondary_open(const char *name, JsonObject *opts, GError **errp)
{
    static const char *const known[] = {"driver",    "mode",      "file",    "top-id",
                                        "node-name", "read-only", "discard", "cache",
                                        "aio",       "log-memory", "shared-disk",
                                        "shared-fence", NULL};
    g_autofree char *what = g_strdup_printf("replication '%s'", name ? name : "(inline)");
    const char *fence = options_get_str(opts, "shared-fence", "required");
    uint64_t log_memory = LOG_MEMORY;
    bool shared = false;
    BlockNode *disk[3];

    if (!options_check_known(opts, what, known, errp)) {
        return NULL;
    }
    if (!json_object_has_member(opts, "top-id")) {
        colo_error_set(errp, "%s: Parameter 'top-id' is missing", what);
        return NULL;
    }
    if (!options_get_size(opts, "log-memory", 1, &log_memory, errp)) {
        return NULL;
    }
    if (!options_get_bool(opts, "shared-disk", &shared, errp)) {
        return NULL;
    }
    if (strcmp(fence, "required") && strcmp(fence, "none")) {
        colo_error_set(errp,
                       "%s: Parameter 'shared-fence' expects 'required' or 'none', not '%s'",
                       what, fence);
        return NULL;
    }
    g_autoptr(JsonObject) parts = secondary_split(opts, what, errp);
    if (!parts || !secondary_open_disks(parts, what, disk, errp)) {
        return NULL;
    }
    block_lock();
    if (!secondary_fits(disk[0], disk[1], disk[2], what, errp) ||
        !secondary_shares(disk[0], shared, what, errp)) {
        for (int i = 0; i < 3; i++) {
            block_node_unuse(disk[i]);
        }
        block_unlock();
        return NULL;
    }
    BlockSecondary *s = g_new0(BlockSecondary, 1);
    s->parent = disk[0];
    s->active = disk[1];
    s->hidden = disk[2];
    s->top_id = g_strdup(options_get_str(opts, "top-id", ""));
    s->conns = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    s->log_memory = log_memory;
    s->shared = shared;
    s->no_fence = !strcmp(fence, "none");
    s->log.space = overlay_new(s->hidden->size);
    s->pending_map = log_map_new();
    s->staged = log_layer_new();
    s->layers = g_ptr_array_new();
    s->garbage = g_ptr_array_new();
    s->overlay = overlay_new(s->parent->size);
    s->waiters = g_ptr_array_new();
    s->settlers = g_ptr_array_new();
    s->node = block_node_new(&secondary_driver, name, s);
    s->node->size = s->parent->size;
    s->node->can_zero = true;
    s->node->discard = s->parent->discard;
    s->parent->secondary = s;
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
