/*
 * Nodes: their names, making them of options, deleting them.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block-int.h"
#include "activity-log-file.h"
#include "activity-log.h"
#include "replication/journal.h"
#include "hook.h"
#include "node-open.h"
#include "node-ref.h"
#include "job.h"

#include <sys/stat.h>
#include <unistd.h>

/* Room singleton, guarded by the block lock: name -> BlockNode. */
static GHashTable *nodes;
static unsigned next_anonymous;

GHashTable *block_nodes(void)
{
    if (!nodes) {
        nodes = g_hash_table_new(g_str_hash, g_str_equal);
    }
    return nodes;
}

BlockNode *block_node_find(const char *name)
{
    BlockNode *node = g_hash_table_lookup(block_nodes(), name);
    GHashTableIter it;

    if (node) {
        return node;
    }
    g_hash_table_iter_init(&it, nodes);
    while (g_hash_table_iter_next(&it, NULL, (gpointer *)&node)) {
        if (node->id && !strcmp(node->id, name)) {
            return node;
        }
    }
    return NULL;
}

BlockNode *block_node_new(const BlockDriver *drv, const char *name, void *opaque)
{
    BlockNode *node = g_new0(BlockNode, 1);

    node->drv = drv;
    node->opaque = opaque;
    node->name = name ? g_strdup(name) : g_strdup_printf("#block%03u", next_anonymous++);
    g_hash_table_insert(block_nodes(), node->name, node);
    colo_trace(block_node_new, "%s driver %s", node->name, drv->name);
    return node;
}

void block_node_free(BlockNode *node)
{
    colo_trace(block_node_free, "%s", node->name);
    g_assert(node->users == 0);
    g_hash_table_remove(block_nodes(), node->name);
    block_node_ref_release(node);
    g_clear_pointer(&node->opts, json_object_unref);
    activity_log_close(node, block_front_in_flight(node->front) == 0);
    node->drv->close(node);
    block_front_free(node->front);
    g_free(node->serve_path);
    g_free(node->mirrored_to);
    g_free(node->torn);
    g_free(node->filename);
    g_free(node->format);
    g_free(node->id);
    g_free(node->name);
    g_free(node);
}

void block_node_unuse(BlockNode *node)
{
    g_assert(node->users > 0);
    node->users--;
    if (node->users == 0 && node->inline_child) {
        block_node_free(node);
    }
}

void block_submit(BlockNode *node, BlockRequest *req)
{
    req->node = node;
    if (req->op != BLOCK_OP_FLUSH &&
        (req->offset > node->size || req->bytes > node->size - req->offset)) {
        block_complete_later(req, -EINVAL);
    } else if (req->op != BLOCK_OP_FLUSH && req->bytes == 0) {
        block_complete_later(req, 0);
    } else if ((node->track || node->mirror) && block_op_modifies(req->op)) {
        block_hook_submit(node, req);
    } else {
        node->drv->submit(node, req);
    }
}

unsigned block_node_below(BlockNode *node, BlockNode **out, unsigned max)
{
    return node->drv->below ? node->drv->below(node, out, max) : 0;
}

BlockNode *block_node_torn(BlockNode *node)
{
    BlockNode *below[32], *torn = node->torn ? node : NULL;

    if (!torn && block_node_is_quorum(node)) {
        unsigned n = block_node_below(node, below, G_N_ELEMENTS(below));

        for (unsigned i = 0; i < n && !torn; i++) {
            torn = block_node_torn(below[i]);
        }
    }
    return torn;
}

/* --- block.h --- */

bool block_node_exists(const char *name)
{
    block_lock();
    bool found = block_node_find(name) != NULL || block_node_ref_exists(name);
    block_unlock();
    return found;
}

/* The image is opened with the node that this one will be the file of. */
static bool declare_protocol(const char *name, JsonObject *opts, bool writethrough,
                             GError **errp)
{
    const char *filename = options_get_str(opts, "filename", NULL);

    if (!filename) {
        colo_error_set(errp, "Parameter 'filename' is missing");
        return false;
    }
    if (access(filename, R_OK) != 0) {
        colo_error_set_errno(errp, errno, "Could not open '%s'", filename);
        return false;
    }
    block_node_ref_declare(name, opts, writethrough);
    return true;
}

bool block_node_add(JsonObject *given, GError **errp)
{
    g_autoptr(JsonObject) opts = options_copy(given);
    const char *id = options_get_str(opts, "id", NULL);
    const char *node_name = options_get_str(opts, "node-name", NULL);
    g_autofree char *name = g_strdup(node_name ? node_name : id);
    g_autofree char *alias =
        node_name && id && strcmp(id, node_name) ? g_strdup(id) : NULL;
    bool writethrough = false;

    if (!name) {
        colo_error_set(errp, "a drive needs an id or a node-name");
        return false;
    }
    if (name[0] == '#' || !name[0] || strlen(name) > 255) {
        colo_error_set(errp, "Invalid node-name: '%s'", name);
        return false;
    }
    if (block_node_exists(name) || (alias && block_node_exists(alias))) {
        colo_error_set(errp, "Duplicate nodes with node-name='%s'", name);
        return false;
    }
    if (!block_opts_normalise(opts, name, &writethrough, errp)) {
        return false;
    }
    if (block_node_ref_is_protocol(opts)) {
        return declare_protocol(name, opts, writethrough, errp);
    }
    g_autoptr(GPtrArray) used = g_ptr_array_new_with_free_func(g_free);
    BlockNode *node = NULL;
    if (block_node_ref_resolve(opts, used, errp)) {
        g_autoptr(JsonObject) kept = options_copy(opts);

        node = block_node_open_tree(name, opts, errp);
        if (node) {
            block_lock();
            node->id = g_steal_pointer(&alias);
            node->writethrough = writethrough;
            node->opts = node->filename ? g_steal_pointer(&kept) : NULL;
            block_unlock();
        }
    }
    block_node_ref_give(used, node);
    return node != NULL;
}

bool block_node_del(const char *name, GError **errp)
{
    block_lock();
    BlockNode *node = block_node_find(name);
    if (!node && block_node_ref_exists(name)) {
        bool ok = block_node_ref_del(name, errp);
        block_unlock();
        return ok;
    }
    if (!node) {
        block_unlock();
        g_set_error(errp, COLO_ERROR, COLO_ERROR_GENERIC,
                    "Failed to find node with "
                    "node-name='%s'",
                    name);
        return false;
    }
    if (node->serve_path && node->users == 1) {
        nbd_server_unserve(node);
    }
    if (node->users > 0) {
        colo_error_set(errp,
                       node->inline_child ? "Node %s is not owned by the monitor"
                                          : "Block device %s is in use", name);
        block_unlock();
        return false;
    }
    block_node_free(node);
    block_unlock();
    block_daemons_wait(3000);
    return true;
}

int64_t block_node_size(const char *name, GError **errp)
{
    block_lock();
    BlockNode *node = block_node_find(name);
    int64_t size = node ? (int64_t)node->size : -1;
    block_unlock();
    if (size < 0) {
        colo_error_set(errp, "Cannot find device='' nor node-name='%s'", name);
    }
    return size;
}

bool block_change(const char *parent, const char *child, const char *node_name,
                  GError **errp)
{
    if (!child == !node_name) {
        colo_error_set(errp, child ? "The parameters child and node are in conflict"
                                   : "Either child or node must be specified");
        return false;
    }
    if (node_name && !block_node_ref_open(node_name, errp)) {
        return false;
    }
    block_lock();
    BlockNode *p = block_node_find(parent);
    BlockNode *n = node_name ? block_node_find(node_name) : NULL;
    bool ok = false;
    if (!p) {
        colo_error_set(errp, "Cannot find device='%s' nor node-name='%s'", parent, parent);
    } else if (!block_node_is_quorum(p)) {
        colo_error_set(errp, "The node %s does not support %s a child", parent,
                       node_name ? "adding" : "removing");
    } else if (node_name && !n) {
        colo_error_set(errp, "Node '%s' not found", node_name);
    } else if (n) {
        ok = block_quorum_add(p, n, errp);
    } else {
        ok = block_quorum_del(p, child, errp);
    }
    block_unlock();
    return ok;
}

bool block_node_written(const char *name)
{
    block_lock();
    BlockNode *n = block_node_find(name);
    bool written = n && block_node_is_quorum(n) && block_quorum_written(n);
    block_unlock();
    return written;
}

bool block_node_is_shared(const char *name)
{
    block_lock();
    BlockNode *n = block_node_find(name);
    bool shared = n && block_node_is_primary(n) && block_primary_is_shared(n);
    block_unlock();
    return shared;
}

JsonArray *block_query(void)
{
    JsonArray *out = json_array_new();

    block_lock();
    g_autoptr(GList) names =
        g_list_sort(g_hash_table_get_keys(block_nodes()), (GCompareFunc)g_strcmp0);
    for (GList *l = names; l; l = l->next) {
        BlockNode *node = g_hash_table_lookup(nodes, l->data);
        JsonObject *o = json_object_new();

        json_object_set_string_member(o, "node-name", node->name);
        if (node->id) {
            json_object_set_string_member(o, "id", node->id);
        }
        json_object_set_string_member(o, "drv",
                                      node->format ? node->format : node->drv->name);
        if (node->filename) {
            json_object_set_string_member(o, "file", node->filename);
        }
        json_object_set_int_member(o, "size", node->size);
        json_object_set_boolean_member(o, "ro", node->read_only);
        json_object_set_boolean_member(o, "guest", block_front_is_guest(node->front));
        if (node->drv->query) {
            node->drv->query(node, o);
        }
        json_array_add_object_element(out, o);
    }
    block_node_ref_query(out);
    block_unlock();
    return out;
}

/* --- Shutdown --- */

typedef struct FlushAll {
    gint refs;
    gint left;
    BlockWait wait;
} FlushAll;

static void flush_all_unref(FlushAll *fa)
{
    if (g_atomic_int_dec_and_test(&fa->refs)) {
        g_free(fa);
    }
}

static void flush_all_done(BlockRequest *req, int ret)
{
    FlushAll *fa = req->opaque;

    if (ret < 0) {
        colo_report("disk '%s': last flush failed: %s", req->node ? req->node->name : "?",
                    g_strerror(-ret));
    }
    if (g_atomic_int_dec_and_test(&fa->left)) {
        block_wait_done(&fa->wait, 0);
    }
    g_free(req);
    flush_all_unref(fa);
}

void block_nodes_shutdown(void)
{
    FlushAll *fa = g_new0(FlushAll, 1);

    block_jobs_shutdown();
    block_lock();
    nbd_server_cleanup();
    block_unlock();
    block_secondary_end();

    fa->refs = 1;
    block_wait_init(&fa->wait);
    block_lock();
    g_autoptr(GList) all = g_hash_table_get_values(block_nodes());
    fa->left = 1;
    for (GList *l = all; l; l = l->next) {
        BlockNode *node = l->data;

        if (node->users == 0 && !node->read_only && !block_node_is_primary(node)) {
            BlockRequest *req = g_new0(BlockRequest, 1);

            req->op = BLOCK_OP_FLUSH;
            req->done = flush_all_done;
            req->opaque = fa;
            fa->refs++;
            fa->left++;
            block_front_submit(node, NULL, req);
        }
    }
    g_main_context_wakeup(io_thread_context(block_thread()));
    block_unlock();
    if (!g_atomic_int_dec_and_test(&fa->left) && block_wait(&fa->wait, 5000) < 0) {
        colo_report("a disk did not answer the last flush in 5 s");
    }
    flush_all_unref(fa);

    block_lock();
    for (;;) {
        GHashTableIter it;
        BlockNode *node, *root = NULL;

        g_hash_table_iter_init(&it, block_nodes());
        while (!root && g_hash_table_iter_next(&it, NULL, (gpointer *)&node)) {
            root = node->users == 0 ? node : NULL;
        }
        if (!root) {
            break;
        }
        block_node_free(root);
    }
    g_clear_pointer(&nodes, g_hash_table_unref);
    block_node_refs_clear();
    block_unlock();
    block_nbd_wait();
    block_daemons_wait(5000);
}

char **block_yank_list(void)
{
    GPtrArray *names = g_ptr_array_new();
    GHashTableIter it;
    BlockNode *node;

    block_lock();
    g_hash_table_iter_init(&it, block_nodes());
    while (g_hash_table_iter_next(&it, NULL, (gpointer *)&node)) {
        /* A storage daemon of ours is no peer. */
        if (node->drv->nbd_client && node->drv->nbd_client(node)) {
            g_ptr_array_add(names, g_strdup(node->name));
        }
    }
    block_unlock();
    g_ptr_array_add(names, NULL);
    return (char **)g_ptr_array_free(names, FALSE);
}

bool block_yank(const char *name)
{
    block_lock();
    BlockNode *node = block_node_find(name);
    NbdClient *c = node && node->drv->nbd_client ? node->drv->nbd_client(node) : NULL;
    if (c) {
        nbd_client_kill(c, "yanked");
    }
    block_unlock();
    return c != NULL;
}
