/*
 * Nodes out of options: -drive's and -blockdev's forms made one, the tree opened.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An image beside which a journal stands is first brought to where its takeover meant it to
 * go; one that was left between two checkpoints is opened only to be made equal to the
 * peer's.
 */
#include "block-int.h"
#include "activity-log-file.h"
#include "activity-log.h"
#include "node-open.h"
#include "node-ref.h"
#include "replication/journal.h"
#include "hook.h"

#include <unistd.h>

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
bool block_opts_normalise(JsonObject *opts, const char *what, bool *writethrough,
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
 * it gets there: then *@journal is its path. With an activity log, or if a copy was cut off, it
 * may be opened to be made equal to the peer's: *@torn. Both are to be freed. */
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
    if (access(log, F_OK) == 0 || secondary_marker_is_copy(marker)) {
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

BlockNode *block_node_open_tree(const char *name, JsonObject *opts, GError **errp)
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
    if (!block_node_ref_open(name, errp)) {
        return NULL;
    }
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
    if (!block_opts_normalise(opts, key, &writethrough, errp)) {
        return NULL;
    }
    BlockNode *node = block_node_open_tree(name, opts, errp);
    if (node) {
        block_lock();
        node->inline_child = true;
        node->users++;
        block_unlock();
    }
    return node;
}
