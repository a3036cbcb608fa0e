/*
 * coloctl run: directories, lock and images.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coloctl-run.h"
#include "util/error.h"
#include "util/key-file.h"

static bool make_dir(const char *key, const char *path, GError **errp)
{
    struct stat st;

    if (g_mkdir_with_parents(path, 0700) != 0 || stat(path, &st) != 0) {
        colo_error_set_errno(errp, errno, "[run] %s = '%s'", key, path);
        return false;
    }
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 022)) {
        colo_error_set(errp, "[run] %s = '%s' must be a directory of the user that runs "
                       "coloctl, which nobody else may write to: chmod 700 '%s'", key, path,
                       path);
        return false;
    }
    return true;
}

static bool take_lock(const VmConf *c, GError **errp)
{
    g_autofree char *path = g_strdup_printf("%s/lock", c->state_dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    char text[32] = "";

    if (fd < 0) {
        colo_error_set_errno(errp, errno, "%s", path);
        return false;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        ssize_t n = read(fd, text, sizeof(text) - 1);
        g_strstrip(text);
        colo_error_set(errp, "'%s' runs already: coloctl run, process %s", c->name,
                       n > 0 ? text : "unknown");
        close(fd);
        return false;
    }
    /* Held until the process ends. */
    g_snprintf(text, sizeof(text), "%d\n", (int)getpid());
    if (ftruncate(fd, 0) != 0 || write(fd, text, strlen(text)) < 0) {
        colo_error_set_errno(errp, errno, "%s", path);
        return false;
    }
    return true;
}

bool check_secret(const char *what, const char *path, GError **errp)
{
    struct stat st;

    if (stat(path, &st) != 0) {
        colo_error_set_errno(errp, errno, "%s = '%s'", what, path);
        return false;
    }
    if (!S_ISREG(st.st_mode) || (st.st_mode & 077)) {
        colo_error_set(errp, "%s = '%s' can be read by others: chmod 600 '%s', and make a new "
                       "key if it matters", what, path, path);
        return false;
    }
    return true;
}

static bool check_key(const VmConf *c, GError **errp)
{
    uint8_t key[KEY_BYTES_MAX];
    size_t len;

    if (c->key_file && !key_file_read(c->key_file, key, &len, errp)) {
        g_prefix_error(errp, "%s: [pair] ", c->file);
        return false;
    }
    explicit_bzero(key, sizeof(key));
    return true;
}

bool run_prepare(const VmConf *c, GError **errp)
{
    return make_dir("state-dir", c->state_dir, errp) && make_dir("run-dir", c->run_dir, errp) &&
           take_lock(c, errp) && check_key(c, errp);
}

/* Run @argv, its output; NULL with @errp. */
static char *output_of(const char *const *argv, GError **errp)
{
    g_autofree char *out = NULL, *said = NULL;
    int status;

    if (!g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, &out, &said,
                      &status, errp)) {
        g_prefix_error(errp, "%s (Debian: qemu-utils): ", argv[0]);
        return NULL;
    }
    if (!g_spawn_check_wait_status(status, NULL)) {
        g_autofree char *clean = ctl_clean(g_strstrip(said), 600);
        colo_error_set(errp, "%s", clean);
        return NULL;
    }
    return g_steal_pointer(&out);
}

uint64_t image_size(const char *path, const char *format, GError **errp)
{
    const char *argv[] = {"qemu-img", "info", "-U", "--output=json", "-f", format, path, NULL};
    g_autofree char *out = output_of(argv, errp);
    g_autoptr(JsonParser) parser = json_parser_new();

    if (!out) {
        return 0;
    }
    JsonNode *n = json_parser_load_from_data(parser, out, -1, NULL)
                      ? json_parser_get_root(parser) : NULL;
    int64_t size = n && JSON_NODE_HOLDS_OBJECT(n)
                       ? ctl_int(json_node_get_object(n), "virtual-size", 0) : 0;
    if (size <= 0) {
        colo_error_set(errp, "%s: qemu-img does not tell its size", path);
    }
    return MAX(size, 0);
}

static bool make_overlay(const char *path, uint64_t size, GError **errp)
{
    g_autofree char *bytes = g_strdup_printf("%" G_GUINT64_FORMAT, size);
    g_autofree char *dir = g_path_get_dirname(path);
    const char *argv[] = {"qemu-img", "create", "-q", "-f", "qcow2", path, bytes, NULL};

    if (g_mkdir_with_parents(dir, 0700) != 0) {
        colo_error_set_errno(errp, errno, "%s", dir);
        return false;
    }
    g_autofree char *out = output_of(argv, errp);
    return out != NULL;
}

static bool prepare_disk(const VmConf *c, const VmDisk *d, bool secondary, GError **errp)
{
    g_autofree char *list = g_strdup_printf("%s.colo", d->image);
    uint64_t size;

    if (access(d->image, R_OK | W_OK) != 0) {
        int e = errno;
        colo_error_set(errp, "[disk.%s] image = '%s': %s%s", d->id, d->image, g_strerror(e),
                       e == ENOENT ? ": make it with qemu-img create, of the size that it has "
                                     "on the other host" : "");
        return false;
    }
    size = image_size(d->image, d->format, errp);
    if (size == 0) {
        g_prefix_error(errp, "[disk.%s] image: ", d->id);
        return false;
    }
    /* While IMAGE.colo exists they may hold what the image still lacks. */
    if (!secondary || access(list, F_OK) == 0) {
        return true;
    }
    if (!make_overlay(d->active, size, errp) || !make_overlay(d->hidden, size, errp)) {
        g_prefix_error(errp, "[disk.%s] active, hidden: ", d->id);
        return false;
    }
    return true;
}

bool run_prepare_disks(const VmConf *c, bool secondary, GError **errp)
{
    for (guint i = 0; i < c->disks->len; i++) {
        if (!prepare_disk(c, c->disks->pdata[i], secondary, errp)) {
            g_prefix_error(errp, "%s: ", c->file);
            return false;
        }
    }
    return true;
}
