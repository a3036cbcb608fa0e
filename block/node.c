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

/* --- Options --- */

/* The image of @opts, wherever its name stands. */
static const char *opts_filename(JsonObject *opts)
{
    JsonObject *file = options_get_obj(opts, "file");
    const char *name = options_get_str(opts, "filename", NULL);

    if (file) {
        name = options_get_str(file, "filename", options_get_str(file, "", NULL));
    }
    return name;
}

static bool opts_expand_cache(JsonObject *opts, GError **errp)
{
    static const struct {
        const char *mode, *writeback, *direct, *no_flush;
    } modes[] = {
        {"none", "on", "on", "off"},       {"off", "on", "on", "off"},
        {"writeback", "on", "off", "off"}, {"directsync", "off", "on", "off"},
        {"unsafe", "on", "off", "on"},     {"writethrough", "off", "off", "off"},
    };
    const char *mode = options_get_str(opts, "cache", NULL);

    if (!mode) {
        return true;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(modes); i++) {
        if (!strcmp(mode, modes[i].mode)) {
            JsonObject *cache = json_object_new();

            json_object_set_string_member(cache, "writeback", modes[i].writeback);
            json_object_set_string_member(cache, "direct", modes[i].direct);
            json_object_set_string_member(cache, "no-flush", modes[i].no_flush);
            json_object_set_object_member(opts, "cache", cache);
            return true;
        }
    }
    colo_error_set(errp, "Parameter 'cache' does not know '%s'", mode);
    return false;
}

/* "file" as text is a file's name, or an NBD address. */
static bool opts_expand_file(JsonObject *opts, const char *what, GError **errp)
{
    g_autofree char *name = g_strdup(options_get_str(opts, "file", NULL));

    if (!name) {
        return true;
    }
    block_lock();
    bool is_node = block_node_find(name) != NULL;
    block_unlock();
    if (is_node) {
        colo_error_set(errp,
                       "%s: 'file=%s' names another node; give the file in place "
                       "(file.driver=file,file.filename=...)",
                       what, name);
        return false;
    }
    JsonObject *file = json_object_new();
    if (g_str_has_prefix(name, "nbd:") || g_str_has_prefix(name, "nbd+unix:")) {
        json_object_set_string_member(file, "driver", "nbd");
        json_object_set_string_member(file, "uri", name);
    } else {
        json_object_set_string_member(file, "filename",
                                      g_str_has_prefix(name, "file:") ? name + 5 : name);
    }
    json_object_set_object_member(opts, "file", file);
    return true;
}

/* Bring what -drive, drive_add, -blockdev and blockdev-add may say to one form. */
static bool opts_normalise(JsonObject *opts, const char *what, bool *writethrough,
                           GError **errp)
{
    static const char *const guest_keys[] = {
        "if",     "index",  "bus",    "unit",      "media",        "id",   "snapshot",
        "serial", "werror", "rerror", "node-name", "copy-on-read", "addr", NULL};
    bool on = false;

    if (!options_get_bool(opts, "snapshot", &on, errp)) {
        return false;
    }
    if (on) {
        colo_error_set(errp, "%s: snapshot=on is not supported", what);
        return false;
    }
    if (!options_get_bool(opts, "copy-on-read", &on, errp)) {
        return false;
    }
    if (on) {
        colo_error_set(errp, "%s: copy-on-read=on is not supported", what);
        return false;
    }
    if (!strcmp(options_get_str(opts, "media", "disk"), "cdrom") &&
        !json_object_has_member(opts, "read-only")) {
        json_object_set_string_member(opts, "read-only", "on");
    }
    if (json_object_has_member(opts, "readonly")) {
        json_object_set_member(opts, "read-only",
                               json_node_copy(json_object_get_member(opts, "readonly")));
        json_object_remove_member(opts, "readonly");
    }
    for (int i = 0; guest_keys[i]; i++) {
        json_object_remove_member(opts, guest_keys[i]);
    }
    if (json_object_has_member(opts, "format")) {
        if (json_object_has_member(opts, "driver")) {
            colo_error_set(errp, "%s: Cannot specify both 'driver' and 'format'", what);
            return false;
        }
        json_object_set_string_member(opts, "driver",
                                      options_get_str(opts, "format", ""));
        json_object_remove_member(opts, "format");
    }
    if (!opts_expand_cache(opts, errp)) {
        return false;
    }
    JsonObject *cache = options_get_obj(opts, "cache");
    bool writeback = true;
    if (cache) {
        if (!options_get_bool(cache, "writeback", &writeback, errp)) {
            return false;
        }
        json_object_remove_member(cache, "writeback");
        if (json_object_get_size(cache) == 0) {
            json_object_remove_member(opts, "cache");
        }
    }
    *writethrough = !writeback;
    return true;
}

/* A marker beside the image tells that it is not of one moment; a journal in its place how
 * it gets there: then *@journal is its path. With an activity log it may be opened to be made
 * equal to the peer's: *@torn. Both are to be freed. */
static bool image_is_consistent(const char *filename, char **journal, char **torn,
                                GError **errp)
{
    g_autofree char *marker = g_strconcat(filename, ".colo", NULL);
    g_autofree char *log = activity_log_path(filename);

    if (access(marker, F_OK) != 0) {
        return true;
    }
    if (journal_is(marker)) {
        *journal = g_steal_pointer(&marker);
        return true;
    }
    if (access(log, F_OK) == 0) {
        *torn = g_steal_pointer(&marker);
        return true;
    }
    colo_error_set(errp,
                   "image '%s' was being brought up to date by a replication that "
                   "did not end properly, so its content is not that of one moment; copy "
                   "it again from the other host, then remove '%s'",
                   filename, marker);
    return false;
}

static BlockNode *image_opened(BlockNode *node, const char *torn)
{
    if (node && node->filename && !block_file_is_shared(node)) {
        node->torn = g_strdup(torn);
        activity_log_open(node);
    }
    return node;
}

/* Open the tree of @opts, normalised except for "file". */
static BlockNode *open_any(const char *name, JsonObject *opts, char **journal,
                           GError **errp)
{
    g_autofree char *what = g_strdup_printf("drive '%s'", name ? name : "(inline)");
    const char *driver = options_get_str(opts, "driver", NULL);

    if (driver && !strcmp(driver, "quorum")) {
        return block_quorum_open(name, opts, errp);
    }
    if (driver && !strcmp(driver, "replication")) {
        const char *mode = options_get_str(opts, "mode", "");

        if (!strcmp(mode, "primary")) {
            return block_primary_open(name, opts, errp);
        }
        if (!strcmp(mode, "secondary")) {
            return block_secondary_open(name, opts, errp);
        }
        colo_error_set(errp,
                       "%s: Parameter 'mode' expects 'primary' or 'secondary', not "
                       "'%s'",
                       what, mode);
        return NULL;
    }
    if (driver && !strcmp(driver, "nbd")) {
        return block_nbd_open(name, opts, errp);
    }
    if (!opts_expand_file(opts, what, errp)) {
        return NULL;
    }
    JsonObject *file = options_get_obj(opts, "file");
    const char *proto = options_get_str(file, "driver", NULL);
    if (proto && !strcmp(proto, "nbd") && (!driver || !strcmp(driver, "raw"))) {
        return block_nbd_open(name, file, errp);
    }
    if (file && json_object_has_member(file, "")) {
        json_object_set_string_member(file, "filename", options_get_str(file, "", ""));
        json_object_remove_member(file, "");
    }
    const char *filename = opts_filename(opts);
    bool local = !proto || !strcmp(proto, "file") || !strcmp(proto, "host_device");
    if (!filename && local) {
        colo_error_set(errp,
                       "%s: A block device must be specified for \"file\" "
                       "(file.filename=...)",
                       what);
        return NULL;
    }
    g_autofree char *torn = NULL;
    if (filename && local && !image_is_consistent(filename, journal, &torn, errp)) {
        return NULL;
    }
    bool probed = false;
    if (!driver) {
        if (!local) {
            colo_error_set(errp, "%s: give the image's format (driver=...)", what);
            return NULL;
        }
        driver = block_probe(filename, errp);
        if (!driver) {
            return NULL;
        }
        probed = !strcmp(driver, "raw");
        json_object_set_string_member(opts, "driver", driver);
    }
    bool raw = !strcmp(driver, "raw") || !strcmp(driver, "file") ||
               !strcmp(driver, "host_device");
    if (raw && local && block_file_suits(opts)) {
        return image_opened(block_file_open(name, opts, driver, probed, errp), torn);
    }
    bool shared = false;
    if (!options_get_bool(opts, "shared-disk", &shared, errp)) {
        return NULL;
    }
    if (shared) {
        colo_error_set(errp,
                       "%s: shared-disk=on needs driver=raw on a local file or block device, "
                       "without other options: what a format keeps in memory the other host "
                       "cannot see",
                       what);
        return NULL;
    }
    json_object_remove_member(opts, "shared-disk");
    return image_opened(block_daemon_open(name, opts, driver, filename, errp), torn);
}

static BlockNode *open_tree(const char *name, JsonObject *opts, GError **errp)
{
    g_autofree char *journal = NULL;
    BlockNode *node = open_any(name, opts, &journal, errp);

    if (node && journal && !journal_recover(journal, node, errp)) {
        block_lock();
        block_node_free(node);
        block_unlock();
        block_daemons_wait(3000);
        return NULL;
    }
    return node;
}

/* --- Children --- */

static void inherit(JsonObject *parent, JsonObject *child)
{
    static const char *const keys[] = {"read-only", "discard", "cache", "aio", NULL};

    for (int i = 0; keys[i]; i++) {
        if (json_object_has_member(parent, keys[i]) &&
            !json_object_has_member(child, keys[i])) {
            json_object_set_member(
                child, keys[i], json_node_copy(json_object_get_member(parent, keys[i])));
        }
    }
}

static BlockNode *use_existing(const char *name, GError **errp)
{
    block_lock();
    BlockNode *node = block_node_find(name);
    if (node) {
        node->users++;
    }
    block_unlock();
    if (!node) {
        colo_error_set(errp, "Cannot find device='%s' nor node-name='%s'", name, name);
    }
    return node;
}

BlockNode *block_node_open_child(JsonObject *parent_opts, const char *key, GError **errp)
{
    JsonObject *given = options_get_obj(parent_opts, key);

    if (!given) {
        const char *name = options_get_str(parent_opts, key, NULL);

        if (!name) {
            colo_error_set(errp, "Parameter '%s' is missing", key);
            return NULL;
        }
        return use_existing(name, errp);
    }
    g_autoptr(JsonObject) opts = options_copy(given);
    g_autofree char *name = g_strdup(options_get_str(opts, "node-name", NULL));
    bool writethrough;

    if (name && block_node_exists(name)) {
        colo_error_set(errp, "Duplicate nodes with node-name='%s'", name);
        return NULL;
    }
    inherit(parent_opts, opts);
    if (!opts_normalise(opts, key, &writethrough, errp)) {
        return NULL;
    }
    BlockNode *node = open_tree(name, opts, errp);
    if (node) {
        block_lock();
        node->inline_child = true;
        node->users++;
        block_unlock();
    }
    return node;
}

/* --- block.h --- */

bool block_node_exists(const char *name)
{
    block_lock();
    bool found = block_node_find(name) != NULL;
    block_unlock();
    return found;
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
    if (!opts_normalise(opts, name, &writethrough, errp)) {
        return false;
    }
    BlockNode *node = open_tree(name, opts, errp);
    if (!node) {
        return false;
    }
    block_lock();
    node->id = g_steal_pointer(&alias);
    node->writethrough = writethrough;
    block_unlock();
    return true;
}

bool block_node_del(const char *name, GError **errp)
{
    block_lock();
    BlockNode *node = block_node_find(name);
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
