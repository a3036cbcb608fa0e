/*
 * The human monitor's commands that are about our disks: drive_add and drive_del.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The documented COLO procedure has no QMP form of them. As in QEMU the answer of a human
 * command is text, and so is its error ("Error: ..."): the QMP command itself succeeds.
 */
#include <string.h>

#include "block/block.h"
#include "migration/migration.h"
#include "qapi-commands.h"
#include "util/error.h"
#include "util/options.h"

static JsonNode *text_answer(const GError *err)
{
    g_autofree char *text =
        err ? g_strdup_printf("Error: %s\r\n", err->message) : g_strdup("");

    return json_node_init_string(json_node_alloc(), text);
}

/* The node's name as block_node_add() takes it. */
static const char *drive_name(JsonObject *opts)
{
    const char *id = options_get_str(opts, "id", NULL);

    return options_get_str(opts, "node-name", id);
}

/* drive_add [-n] ADDRESS OPTIONS; only a node is made, no device: the address is unused. */
static QmpResult drive_add(char **words, JsonNode **ret, GError **errp)
{
    g_autoptr(GError) err = NULL;
    bool bare = words[1] && strcmp(words[1], "-n") == 0;
    char **args = words + 1 + bare;

    if (!args[0] || !args[1] || args[2]) {
        return QMP_PASS; /* the emulator knows how to complain */
    }
    g_autoptr(JsonObject) opts = options_parse(args[1], "file", &err);
    if (opts && !options_get_str(opts, "driver", NULL)) {
        return QMP_PASS;
    }
    if (opts && !bare && strcmp(options_get_str(opts, "if", "none"), "none") != 0) {
        colo_error_set(&err, "drive_add: if=%s is not supported, use device_add",
                       options_get_str(opts, "if", ""));
    } else if (opts && !drive_name(opts)) {
        colo_error_set(&err, "drive_add: a driver=%s drive needs id or node-name",
                       options_get_str(opts, "driver", ""));
    } else if (opts && block_node_add(opts, &err)) {
        *ret = json_node_init_string(json_node_alloc(), bare ? "" : "OK\r\n");
        return QMP_DONE;
    }
    *ret = text_answer(err);
    return QMP_DONE;
}

static QmpResult drive_del(char **words, JsonNode **ret, GError **errp)
{
    g_autoptr(GError) err = NULL;

    if (!words[1] || words[2] || !block_node_exists(words[1])) {
        return QMP_PASS;
    }
    block_node_del(words[1], &err);
    *ret = text_answer(err);
    return QMP_DONE;
}

/* @line cut at white space, without empty words. Caller frees. */
static char **split_words(const char *line)
{
    g_auto(GStrv) parts = g_strsplit_set(line, " \t\r\n", -1);
    g_autoptr(GStrvBuilder) words = g_strv_builder_new();

    for (char **p = parts; *p; p++) {
        if (**p) {
            g_strv_builder_add(words, *p);
        }
    }
    return g_strv_builder_end(words);
}

/* Commands that would go round the checkpoint controller; QMP has each of them. */
static bool goes_round_us(const char *word)
{
    static const char *const names[] = {
        "stop", "s", "cont", "c", "quit", "q", "migrate", "migrate_cancel", "migrate_incoming",
        "x_colo_lost_heartbeat", "loadvm", "savevm", "snapshot_blkdev", "netdev_add",
        "netdev_del", "object_add", "object_del", "chardev-add", "chardev-remove",
        "migrate_set_capability", "nbd_server_start", "nbd_server_add", NULL,
    };
    return g_strv_contains(names, word);
}

QmpResult qmp_human_monitor_command(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                    GError **errp)
{
    g_auto(GStrv) words = split_words(json_object_get_string_member(args, "command-line"));

    if (words[0] && strcmp(words[0], "drive_add") == 0) {
        return drive_add(words, ret, errp);
    }
    if (words[0] && strcmp(words[0], "drive_del") == 0) {
        return drive_del(words, ret, errp);
    }
    if (words[0] && !migration_allows(words[0], errp)) {
        return QMP_FAILED; /* eject, change, block_resize, device_add: as their QMP forms */
    }
    if (words[0] && goes_round_us(words[0])) {
        colo_error_set(errp, "'%s' would bypass the checkpoint controller here: use the QMP "
                             "command of that name", words[0]);
        return QMP_FAILED;
    }
    return QMP_PASS;
}
