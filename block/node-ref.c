/*
 * Nodes that are another node's file or backing.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * libvirt describes an image in two nodes or more: "-blockdev driver=file,node-name=S,...",
 * then "-blockdev driver=qcow2,node-name=F,file=S", with "backing=B" for a chain. Here one
 * node, opened by one program, is an image with all that is below it: so S is kept as
 * options, and F is opened of its own options with those of S put in place. While F lives S
 * is in use; when F goes S is what it was, and a name that is used for something else
 * (device_add, a quorum's child, an export) is opened then.
 */
#include "node-ref.h"

#include <unistd.h>

#include "node-open.h"

typedef struct NodeRef {
    char *name;
    JsonObject *opts;
    bool writethrough;
    bool lent; /* user is being opened, or is: */
    BlockNode *user;
} NodeRef;

/* Room singleton, guarded by the block lock: name -> NodeRef. */
static GHashTable *refs;

static void ref_free(gpointer p)
{
    NodeRef *r = p;

    json_object_unref(r->opts);
    g_free(r->name);
    g_free(r);
}

static NodeRef *find(const char *name)
{
    return refs && name ? g_hash_table_lookup(refs, name) : NULL;
}

static NodeRef *ref_add(const char *name, JsonObject *opts, bool writethrough)
{
    NodeRef *r = g_new0(NodeRef, 1);

    r->name = g_strdup(name);
    r->opts = options_copy(opts);
    r->writethrough = writethrough;
    if (!refs) {
        refs = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, ref_free);
    }
    g_hash_table_insert(refs, r->name, r);
    return r;
}

void block_node_ref_declare(const char *name, JsonObject *opts, bool writethrough)
{
    block_lock();
    ref_add(name, opts, writethrough);
    block_unlock();
}

bool block_node_ref_is_protocol(JsonObject *opts)
{
    const char *driver = options_get_str(opts, "driver", "");

    return !strcmp(driver, "file") || !strcmp(driver, "host_device");
}

/* An open node that nobody uses becomes options again. */
static NodeRef *close_node(const char *name, GError **errp)
{
    BlockNode *node = block_node_find(name);

    if (!node || !node->opts) {
        return NULL;
    }
    if (node->users > 0 || node->front) {
        colo_error_set(errp, "Node '%s' is in use", name);
        return NULL;
    }
    NodeRef *r = ref_add(node->name, node->opts, node->writethrough);
    block_node_free(node);
    return r;
}

/* The options of node @name, if it may be lent; NULL without @errp: there is none. */
static JsonObject *lend(const char *name, GError **errp)
{
    g_autoptr(GError) err = NULL;

    block_lock();
    NodeRef *r = find(name);
    if (!r) {
        r = close_node(name, &err);
    } else if (r->lent) {
        colo_error_set(&err, "Node '%s' is in use", name);
    }
    JsonObject *opts = NULL;
    if (r && !err) {
        r->lent = true;
        opts = options_copy(r->opts);
    }
    block_unlock();
    block_daemons_wait(3000);
    if (err) {
        g_propagate_error(errp, g_steal_pointer(&err));
    }
    return opts;
}

bool block_node_ref_resolve(JsonObject *opts, GPtrArray *used, GError **errp)
{
    static const char *const keys[] = {"file", "backing"};

    for (unsigned i = 0; i < G_N_ELEMENTS(keys); i++) {
        g_autoptr(GError) err = NULL;
        g_autofree char *name = g_strdup(options_get_str(opts, keys[i], NULL));
        JsonObject *below = name ? lend(name, &err) : NULL;

        if (err) {
            g_propagate_error(errp, g_steal_pointer(&err));
            return false;
        }
        if (!below) {
            continue;
        }
        g_ptr_array_add(used, g_strdup(name));
        if (json_object_has_member(below, "backing") &&
            json_object_get_null_member(below, "backing")) {
            json_object_set_string_member(below, "backing", "");
        }
        json_object_set_object_member(opts, keys[i], below);
    }
    return true;
}

void block_node_ref_give(GPtrArray *used, BlockNode *user)
{
    block_lock();
    for (guint i = 0; i < used->len; i++) {
        NodeRef *r = find(used->pdata[i]);

        if (r) {
            r->user = user;
            r->lent = user != NULL;
        }
    }
    block_unlock();
}

void block_node_ref_release(BlockNode *user)
{
    GHashTableIter it;
    NodeRef *r;

    if (!refs) {
        return;
    }
    g_hash_table_iter_init(&it, refs);
    while (g_hash_table_iter_next(&it, NULL, (gpointer *)&r)) {
        if (r->user == user) {
            r->user = NULL;
            r->lent = false;
        }
    }
}

bool block_node_ref_open(const char *name, GError **errp)
{
    block_lock();
    NodeRef *r = find(name);
    if (r && r->lent) {
        colo_error_set(errp, "Node '%s' is in use", name);
        block_unlock();
        return false;
    }
    g_autoptr(JsonObject) opts = r ? options_copy(r->opts) : NULL;
    bool writethrough = r && r->writethrough;
    if (r) {
        r->lent = true;
    }
    block_unlock();
    if (!opts) {
        return true;
    }
    g_autofree char *own = g_strdup(name);
    BlockNode *node = block_node_open_tree(own, opts, errp);
    block_lock();
    r = find(own);
    if (node) {
        node->writethrough = writethrough;
        node->opts = r ? json_object_ref(r->opts) : NULL;
        g_hash_table_remove(refs, own);
    } else if (r) {
        r->lent = false;
    }
    block_unlock();
    return node != NULL;
}

bool block_node_ref_exists(const char *name)
{
    return find(name) != NULL;
}

bool block_node_ref_del(const char *name, GError **errp)
{
    NodeRef *r = find(name);

    if (r->lent) {
        colo_error_set(errp, "Block device %s is in use", name);
        return false;
    }
    g_hash_table_remove(refs, name);
    return true;
}

void block_node_ref_query(JsonArray *out)
{
    GHashTableIter it;
    NodeRef *r;

    if (!refs) {
        return;
    }
    g_hash_table_iter_init(&it, refs);
    while (g_hash_table_iter_next(&it, NULL, (gpointer *)&r)) {
        JsonObject *o = json_object_new();
        JsonObject *file = options_get_obj(r->opts, "file");
        bool read_only = r->user && r->user->read_only;

        options_get_bool(r->opts, "read-only", &read_only, NULL);
        json_object_set_string_member(o, "node-name", r->name);
        json_object_set_string_member(o, "drv", options_get_str(r->opts, "driver", ""));
        json_object_set_string_member(
            o, "file", options_get_str(file ? file : r->opts, "filename", ""));
        json_object_set_int_member(o, "size", r->user ? r->user->size : 0);
        json_object_set_boolean_member(o, "ro", read_only);
        json_object_set_boolean_member(o, "guest", FALSE);
        json_array_add_object_element(out, o);
    }
}

void block_node_refs_clear(void)
{
    g_clear_pointer(&refs, g_hash_table_unref);
}
