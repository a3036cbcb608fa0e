/*
 * What the tests of the block room share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_TESTS_BLOCK_TEST_H
#define COLO_TESTS_BLOCK_TEST_H

#include "../../block/block-int.h"
#include "block/replication.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <libnbd.h>
#include <unistd.h>

/* Set by block_test_begin(). */
static char *test_dir;

static inline char *test_path(const char *name)
{
    return g_build_filename(test_dir, name, NULL);
}

static inline void block_test_begin(void)
{
    g_autoptr(GError) err = NULL;

    if (g_getenv("COLO_TRACE")) {
        colo_trace_enable(g_getenv("COLO_TRACE"));
    }
    test_dir = g_dir_make_tmp("colo-block-XXXXXX", &err);
    g_assert_no_error(err);
    block_init(test_dir, &err);
    g_assert_no_error(err);
}

static inline int test_remove(const char *dir)
{
    const char *argv[] = {"rm", "-rf", dir, NULL};

    return g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL,
                        NULL, NULL, NULL);
}

static inline void block_test_end(void)
{
    block_shutdown();
    test_remove(test_dir);
    g_clear_pointer(&test_dir, g_free);
}

/* A file of @size bytes, zeroes; its path. */
static inline char *test_image(const char *name, uint64_t size)
{
    char *path = test_path(name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, size), ==, 0);
    close(fd);
    return path;
}

static inline void test_file_read(const char *path, uint8_t *buf, size_t len)
{
    int fd = open(path, O_RDONLY);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(pread(fd, buf, len, 0), ==, (ssize_t)len);
    close(fd);
}

/* Run a command; its output on success. */
static inline char *test_run(const char *fmt, ...) G_GNUC_PRINTF(1, 2);
static inline char *test_run(const char *fmt, ...)
{
    g_autoptr(GError) err = NULL;
    char *out = NULL;
    g_autofree char *words = NULL;
    int status;
    va_list ap;

    va_start(ap, fmt);
    g_autofree char *cmd = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_spawn_command_line_sync(cmd, &out, &words, &status, &err);
    g_assert_no_error(err);
    if (status != 0) {
        g_error("%s: status %x: %s%s", cmd, status, out, words);
    }
    return out;
}

static inline JsonObject *test_opts(const char *fmt, ...) G_GNUC_PRINTF(1, 2);
static inline JsonObject *test_opts(const char *fmt, ...)
{
    g_autoptr(GError) err = NULL;
    va_list ap;

    va_start(ap, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    JsonObject *o = options_parse(text, NULL, &err);
    g_assert_no_error(err);
    return o;
}

#define test_add(...)                                                                    \
    do {                                                                                 \
        g_autoptr(JsonObject) o_ = test_opts(__VA_ARGS__);                               \
        g_autoptr(GError) err_ = NULL;                                                   \
        block_node_add(o_, &err_);                                                       \
        g_assert_no_error(err_);                                                         \
    } while (0)

/* Adding must fail with @word in the message. */
#define test_add_fails(word, ...)                                                        \
    do {                                                                                 \
        g_autoptr(JsonObject) o_ = test_opts(__VA_ARGS__);                               \
        g_autoptr(GError) err_ = NULL;                                                   \
        g_assert_false(block_node_add(o_, &err_));                                       \
        g_assert_nonnull(err_);                                                          \
        if (!strstr(err_->message, word)) {                                              \
            g_error("no '%s' in '%s'", word, err_->message);                             \
        }                                                                                \
        g_test_message("%s", err_->message);                                             \
    } while (0)

static inline BlockNode *test_node(const char *name)
{
    block_lock();
    BlockNode *n = block_node_find(name);
    block_unlock();
    g_assert_nonnull(n);
    return n;
}

static inline int test_io(const char *node, BlockOp op, uint64_t off, uint64_t len,
                          void *p)
{
    return block_request_sync(test_node(node), op, off, len, p, 0);
}

static inline struct nbd_handle *test_client(const char *path, const char *name)
{
    struct nbd_handle *h = nbd_create();

    g_assert_nonnull(h);
    nbd_set_strict_mode(h, 0);
    nbd_set_export_name(h, name);
    nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION);
    if (nbd_connect_unix(h, path) < 0) {
        g_error("%s: %s", path, nbd_get_error());
    }
    return h;
}

static inline void test_fill(GRand *r, uint8_t *p, size_t len)
{
    uint32_t x = g_rand_int(r);

    for (size_t i = 0; i < len; i++) {
        x = x * 1664525 + 1013904223;
        p[i] = x >> 24;
    }
}

#endif
