/*
 * Frames: pool, references, copy on write, queues.
 * Build: tests/unit/test-frame.c; dependencies: net, chardev, util.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib.h>
#include <string.h>

#include "net/frame.h"

static void test_pool(void)
{
    Frame *a = frame_new(60);
    g_assert_cmpuint(a->len, ==, 60);
    frame_unref(a);
    Frame *b = frame_new(1500);
    g_assert_true(a == b); /* no allocation in the steady state */
    g_assert_cmpuint(frame_room(b), >=, FRAME_POOLED);
    frame_unref(b);
    Frame *big = frame_new(FRAME_MAX);
    memset(big->data, 1, FRAME_MAX);
    frame_unref(big);
}

static void test_writable(void)
{
    Frame *a = frame_from("abcdef", 6);
    g_assert_true(frame_writable(a) == a);
    a->vnet_len = 4;
    memcpy(a->data - 4, "vnet", 4);
    a->epoch = 7;
    frame_ref(a);
    Frame *b = frame_writable(a);
    g_assert_true(a != b);
    g_assert_cmpuint(a->ref, ==, 1);
    g_assert_cmpuint(b->epoch, ==, 7);
    b->data[0] = 'X';
    g_assert_cmpmem(a->data, 6, "abcdef", 6);
    g_assert_cmpmem(b->data - 4, 10, "vnetXbcdef", 10);
    frame_unref(a);
    frame_unref(b);
}

static void test_queue(void)
{
    FrameQueue q = {0}, r = {0};
    for (int i = 0; i < 5; i++) {
        frame_queue_push(&q, frame_from(&(char){'a' + i}, 1));
    }
    frame_queue_push(&r, frame_from("zz", 2));
    frame_queue_concat(&r, &q);
    g_assert_cmpuint(q.count, ==, 0);
    g_assert_cmpuint(r.count, ==, 6);
    g_assert_cmpuint(r.bytes, ==, 7);
    const char *want = "zabcde";
    for (int i = 0; i < 6; i++) {
        Frame *f = frame_queue_pop(&r);
        g_assert_cmpint(f->data[0], ==, (uint8_t)want[i]);
        frame_unref(f);
    }
    g_assert_null(frame_queue_pop(&r));
    g_assert_null(r.tail);
    frame_queue_push(&r, frame_new(3));
    frame_queue_clear(&r);
    g_assert_cmpuint(r.bytes, ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/frame/pool", test_pool);
    g_test_add_func("/frame/writable", test_writable);
    g_test_add_func("/frame/queue", test_queue);
    return g_test_run();
}
