/*
 * quorum: options, children, reads, and the forwarder's failures.
 * Sources: this file. Dependencies: util, block, libnbd, liburing, gio_unix.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block-test.h"

#include <sys/socket.h>
#include <sys/un.h>

#define MIB (1024 * 1024)

static void test_options(void)
{
    block_test_begin();
    g_autofree char *a = test_image("a.raw", MIB), *b = test_image("b.raw", MIB);
    g_autofree char *big = test_image("big.raw", 2 * MIB);

    test_add_fails("vote-threshold",
                   "id=q,driver=quorum,children.0.driver=raw,"
                   "children.0.file.filename=%s",
                   a);
    test_add_fails("vote-threshold",
                   "id=q,driver=quorum,vote-threshold=2,children.0.driver=raw,"
                   "children.0.file.filename=%s",
                   a);
    test_add_fails("children", "id=q,driver=quorum,vote-threshold=1");
    test_add_fails("read-pattern",
                   "id=q,driver=quorum,vote-threshold=1,read-pattern=x,"
                   "children.0.driver=raw,children.0.file.filename=%s",
                   a);
    test_add_fails("blkverify",
                   "id=q,driver=quorum,vote-threshold=1,blkverify=on,"
                   "children.0.driver=raw,children.0.file.filename=%s",
                   a);
    test_add_fails("nothere", "id=q,driver=quorum,vote-threshold=1,children.0=nothere");
    test_add_fails("size",
                   "id=q,driver=quorum,vote-threshold=1,children.0.driver=raw,"
                   "children.0.file.filename=%s,children.1.driver=raw,"
                   "children.1.file.filename=%s",
                   a, big);
    /* What failed half way has let go of its images. */
    test_add(
        "id=q,driver=quorum,vote-threshold=2,children.0.driver=raw,"
        "children.0.file.filename=%s,children.1.driver=raw,children.1.node-name=second,"
        "children.1.file.filename=%s",
        a, b);
    g_assert_true(block_node_exists("second"));
    g_assert_false(block_node_del("second", NULL));
    g_assert_true(block_node_del("q", NULL));
    g_assert_false(block_node_exists("second"));
    g_autoptr(JsonObject) json = test_opts(
        "{\"driver\":\"quorum\",\"node-name\":\"q\",\"vote-threshold\":1,\"children\":"
        "[{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"%s\"}}]}",
        a);
    g_autoptr(GError) err = NULL;
    block_node_add(json, &err);
    g_assert_no_error(err);
    block_test_end();
}

static void test_votes(void)
{
    block_test_begin();
    g_autofree char *path[3], *buf = g_malloc0(MIB);
    uint8_t got[512];
    const char *pattern[] = {"fifo", "quorum"};

    for (int i = 0; i < 3; i++) {
        g_autofree char *name = g_strdup_printf("%d.raw", i);

        path[i] = test_image(name, MIB);
    }
    for (int k = 0; k < 2; k++) {
        /* The first child differs. */
        memset(buf, 'x', MIB);
        g_file_set_contents(path[0], buf, MIB, NULL);
        test_add(
            "id=q,driver=quorum,vote-threshold=2,read-pattern=%s,children.0.driver=raw,"
            "children.0.file.filename=%s,children.1.driver=raw,"
            "children.1.file.filename=%s,"
            "children.2.driver=raw,children.2.file.filename=%s",
            pattern[k], path[0], path[1], path[2]);
        g_assert_cmpint(test_io("q", BLOCK_OP_READ, 0, 512, got), ==, 0);
        g_assert_cmpint(got[0], ==, k == 0 ? 'x' : 0);
        memset(got, 'y', 512);
        g_assert_cmpint(test_io("q", BLOCK_OP_WRITE, 1024, 512, got), ==, 0);
        for (int i = 0; i < 3; i++) {
            test_file_read(path[i], (uint8_t *)buf, 2048);
            g_assert_true(buf[1024] == 'y');
        }
        g_assert_true(block_node_del("q", NULL));
        for (int i = 1; i < 3; i++) {
            memset(buf, 0, MIB);
            g_file_set_contents(path[i], buf, MIB, NULL);
        }
    }
    g_free(path[1]);
    g_free(path[2]);
    block_test_end();
}

static void test_change(void)
{
    block_test_begin();
    g_autoptr(GError) err = NULL;
    g_autofree char *a = test_image("a.raw", MIB), *b = test_image("b.raw", MIB);
    g_autofree char *big = test_image("big.raw", 2 * MIB);

    test_add(
        "id=q,driver=quorum,vote-threshold=1,read-pattern=fifo,children.0.driver=raw,"
        "children.0.file.filename=%s",
        a);
    test_add("driver=raw,node-name=b,file.filename=%s", b);
    test_add("driver=raw,node-name=big,file.filename=%s", big);
    g_assert_false(block_change("q", NULL, "big", NULL));
    g_assert_false(block_change("q", NULL, "nothere", NULL));
    g_assert_false(block_change("nothere", NULL, "b", NULL));
    g_assert_false(block_change("q", "children.0", "b", NULL));
    g_assert_false(block_change("q", NULL, NULL, NULL));
    g_assert_false(block_change("q", "children.0", NULL, NULL));
    g_assert_false(block_change("q", NULL, "q", NULL));
    block_change("q", NULL, "b", &err);
    g_assert_no_error(err);
    g_assert_false(block_change("q", NULL, "b", NULL));
    g_assert_false(block_change("q", "children.2", NULL, NULL));
    block_change("q", "children.0", NULL, &err);
    g_assert_no_error(err);
    /* What is left is still children.1, and the only one. */
    g_assert_false(block_change("q", "children.1", NULL, NULL));
    test_add("driver=raw,node-name=c,file.filename=%s", a);
    block_change("q", NULL, "c", &err);
    g_assert_no_error(err);
    block_change("q", "b", NULL, &err);
    g_assert_no_error(err);
    g_assert_true(block_node_del("b", NULL));
    g_assert_false(block_node_del("c", NULL));
    block_test_end();
}

/* --- The forwarder --- */

static gint fatal;

static void note(bool is_fatal, const char *message, void *opaque)
{
    g_test_message("%s", message);
    g_atomic_int_add(&fatal, is_fatal);
}

/* A secondary that reads nothing after the negotiation: its image never comes. */
static gpointer mute_server(gpointer opaque)
{
    int listen_fd = GPOINTER_TO_INT(opaque);
    int fd = accept(listen_fd, NULL, NULL);
    static const uint8_t hello[] = "NBDMAGICIHAVEOPT\0\3";
    uint8_t in[4096];

    (void)!write(fd, hello, 18);
    for (;;) {
        ssize_t n = recv(fd, in, 16, MSG_PEEK);
        uint32_t opt, len;

        if (n < 16) {
            if (n == 4 || (n > 0 && n < 16)) {
                recv(fd, in, 4, 0); /* the client's flags */
                continue;
            }
            return NULL;
        }
        if (memcmp(in, "IHAVEOPT", 8)) {
            recv(fd, in, 4, 0);
            continue;
        }
        recv(fd, in, 16, MSG_WAITALL);
        memcpy(&opt, in + 8, 4);
        memcpy(&len, in + 12, 4);
        if (len) {
            recv(fd, in + 16, g_ntohl(len), MSG_WAITALL);
        }
        uint8_t rep[20 + 12] = {0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9};
        memcpy(rep + 8, &opt, 4);
        if (g_ntohl(opt) == 7) {
            rep[15] = 3;
            rep[19] = 12;
            uint64_t size = GUINT64_TO_BE(256ull * MIB);
            memcpy(rep + 22, &size, 8);
            rep[31] = 1 | 4 | 8 | 64;
            (void)!write(fd, rep, 32);
            rep[15] = 1;
            rep[19] = 0;
            (void)!write(fd, rep, 20);
            return GINT_TO_POINTER(fd);
        }
        uint32_t unsup = g_htonl(0x80000001u);
        memcpy(rep + 12, &unsup, 4);
        (void)!write(fd, rep, 20);
    }
}

/* The queue's bound: completions wait, at most 2 s, then the guest goes on alone. */
static void test_stuck_secondary(void)
{
    block_test_begin();
    g_autoptr(GError) err = NULL;
    g_autofree char *a = test_image("a.raw", 256 * MIB), *sock = test_path("mute.sock");
    g_autofree uint8_t *data = g_malloc0(MIB);
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int lfd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strcpy(addr.sun_path, sock);
    g_assert_cmpint(bind(lfd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    listen(lfd, 1);
    GThread *t = g_thread_new("mute", mute_server, GINT_TO_POINTER(lfd));
    test_add(
        "id=q,driver=quorum,vote-threshold=1,read-pattern=fifo,children.0.driver=raw,"
        "children.0.file.filename=%s",
        a);
    g_assert_nonnull(block_serve_child("q", &err));
    test_add("driver=replication,mode=primary,node-name=r,file.driver=nbd,"
             "file.server.type=unix,file.server.path=%s,file.export=x",
             sock);
    int fd = GPOINTER_TO_INT(g_thread_join(t));
    g_assert_false(block_primary_start(note, NULL, &err));
    g_assert_nonnull(strstr(err->message, "not replicated"));
    g_clear_error(&err);
    block_change("q", NULL, "r", &err);
    g_assert_no_error(err);
    block_primary_start(note, NULL, &err);
    g_assert_no_error(err);
    gint64 begin = g_get_monotonic_time(), longest = 0;
    for (int i = 0; i < 100; i++) {
        gint64 t0 = g_get_monotonic_time();

        g_assert_cmpint(test_io("q", BLOCK_OP_WRITE, (uint64_t)i * MIB, MIB, data), ==,
                        0);
        longest = MAX(longest, g_get_monotonic_time() - t0);
    }
    g_test_message("longest write %d ms", (int)(longest / 1000));
    g_assert_cmpint(longest, >, 1500000);
    g_assert_cmpint(longest, <, 20000000);
    g_assert_cmpint(g_get_monotonic_time() - begin, <, 80000000); /* each waited: 200 s */
    g_assert_cmpint(fatal, ==, 1);
    BlockBarrier b;
    g_assert_cmpuint(block_primary_barriers(&b, 1), ==, 0);
    /* A stopped secondary does not hang the removal. */
    block_change("q", "children.1", NULL, &err);
    g_assert_no_error(err);
    block_node_del("r", &err);
    g_assert_no_error(err);
    close(fd);
    close(lfd);
    block_test_end();
}

static void test_primary_options(void)
{
    block_test_begin();
    g_autofree char *a = test_image("a.raw", MIB);

    test_add_fails("mode", "id=r,driver=replication,file.driver=raw");
    test_add_fails("top-id",
                   "id=r,driver=replication,mode=primary,top-id=x,file.driver=nbd");
    test_add_fails("must be driver=nbd",
                   "id=r,driver=replication,mode=primary,"
                   "file.driver=raw,file.file.filename=%s",
                   a);
    test_add_fails("onnect", "id=r,driver=replication,mode=primary,file.driver=nbd,"
                             "file.host=127.0.0.1,file.port=1,file.export=x");
    test_add_fails("99999", "id=r,driver=replication,mode=primary,file.driver=nbd,"
                            "file.host=127.0.0.1,file.port=99999,file.export=x");
    test_add_fails("top-id", "id=r,driver=replication,mode=secondary,file.driver=raw");
    test_add_fails("file.backing",
                   "id=r,driver=replication,mode=secondary,top-id=x,"
                   "file.driver=raw,file.file.filename=%s",
                   a);
    test_add_fails("parent0",
                   "id=r,driver=replication,mode=secondary,top-id=x,"
                   "file.driver=raw,file.file.filename=%s,file.backing.driver=raw,"
                   "file.backing.file.filename=%s,file.backing.backing=parent0",
                   a, a);
    block_test_end();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/block/quorum/options", test_options);
    g_test_add_func("/block/quorum/votes", test_votes);
    g_test_add_func("/block/quorum/change", test_change);
    g_test_add_func("/block/quorum/primary-options", test_primary_options);
    g_test_add_func("/block/quorum/stuck-secondary", test_stuck_secondary);
    return g_test_run();
}
