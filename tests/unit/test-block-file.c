/*
 * Raw files and formats through the storage daemon.
 * Sources: this file. Dependencies: util, block, libnbd, liburing, gio_unix.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block-test.h"

#define MIB (1024 * 1024)

static void check_io(const char *node, uint64_t size)
{
    g_autoptr(GRand) r = g_rand_new_with_seed(7);
    g_autofree uint8_t *model = g_malloc0(size), *buf = g_malloc(size);

    for (int i = 0; i < 300; i++) {
        uint64_t off = g_rand_int_range(r, 0, size / 512) * 512;
        unsigned sectors = g_rand_int_range(r, 1, 200);
        uint64_t len = MIN(sectors * 512, size - off);

        switch (g_rand_int_range(r, 0, 4)) {
        case 0:
            memset(model + off, 0, len);
            g_assert_cmpint(test_io(node, BLOCK_OP_ZEROES, off, len, NULL), ==, 0);
            break;
        case 1:
            g_assert_cmpint(test_io(node, BLOCK_OP_READ, off, len, buf), ==, 0);
            g_assert_cmpmem(buf, len, model + off, len);
            break;
        default:
            test_fill(r, model + off, len);
            g_assert_cmpint(block_request_sync(test_node(node), BLOCK_OP_WRITE, off, len,
                                               model + off, i % 2 ? BLOCK_REQ_FUA : 0),
                            ==, 0);
        }
    }
    g_assert_cmpint(test_io(node, BLOCK_OP_FLUSH, 0, 0, NULL), ==, 0);
    g_assert_cmpint(test_io(node, BLOCK_OP_READ, 0, size, buf), ==, 0);
    g_assert_cmpmem(buf, size, model, size);
    g_assert_cmpint(test_io(node, BLOCK_OP_READ, size, 512, buf), ==, -EINVAL);
    g_assert_cmpint(test_io(node, BLOCK_OP_WRITE, size - 512, 1024, buf), ==, -EINVAL);
    g_assert_cmpint(test_io(node, BLOCK_OP_WRITE, UINT64_MAX - 511, 1024, buf), ==,
                    -EINVAL);
}

static void check_raw(const char *more)
{
    block_test_begin();
    g_autofree char *path = test_image("a.raw", 4 * MIB);
    g_autofree uint8_t *file = g_malloc(4 * MIB), *disk = g_malloc(4 * MIB);

    test_add("id=d0,if=ide,index=0,media=disk,driver=raw,file.filename=%s,aio=io_uring%s",
             path, more);
    g_assert_cmpint(block_node_size("d0", NULL), ==, 4 * MIB);
    check_io("d0", 4 * MIB);
    test_file_read(path, file, 4 * MIB);
    g_assert_cmpint(test_io("d0", BLOCK_OP_READ, 0, 4 * MIB, disk), ==, 0);
    g_assert_cmpmem(file, 4 * MIB, disk, 4 * MIB);
    block_test_end();
}

static void test_raw(void)
{
    check_raw("");
}

static void test_raw_direct(void)
{
    check_raw(",cache.direct=on,discard=unmap");
}

static void test_raw_odd_size(void)
{
    for (int direct = 0; direct < 2; direct++) {
        block_test_begin();
        g_autofree char *path = test_image("odd.raw", 1000);
        uint8_t buf[1024];

        test_add("id=d0,file=%s,format=raw,cache.direct=%s", path, direct ? "on" : "off");
        g_assert_cmpint(block_node_size("d0", NULL), ==, 1024);
        memset(buf, 1, sizeof(buf));
        g_assert_cmpint(test_io("d0", BLOCK_OP_READ, 0, 1024, buf), ==, 0);
        for (int i = 0; i < 1024; i++) {
            g_assert_cmpint(buf[i], ==, 0);
        }
        block_test_end();
    }
}

/* Direct I/O with memory and offsets that the disk would refuse. */
static void test_direct_unaligned(void)
{
    block_test_begin();
    g_autofree char *path = test_image("d.raw", MIB);
    g_autofree uint8_t *model = g_malloc(MIB), *raw = g_malloc(MIB + 64);
    BlockNode *node;

    test_add("id=d0,driver=raw,file.filename=%s,cache.direct=on", path);
    node = test_node("d0");
    g_assert_true(block_file_is_direct(node));
    for (int i = 0; i < MIB; i++) {
        model[i] = i * 7 + i / 512;
    }
    g_assert_cmpint(test_io("d0", BLOCK_OP_WRITE, 0, MIB, model), ==, 0);
    for (int off = 0; off < 3; off++) {
        g_assert_cmpint(test_io("d0", BLOCK_OP_READ, 511 * off, 70000 + off, raw + 1 + off),
                        ==, 0);
        g_assert_cmpmem(raw + 1 + off, 70000 + off, model + 511 * off, 70000 + off);
    }
    /* A part of a sector would be a read and a write, and is refused. */
    g_assert_cmpint(test_io("d0", BLOCK_OP_WRITE, 100, 512, model), ==, -EINVAL);
    block_test_end();
}

/* An image of two hosts: read by both, written by its owner, stock tools kept out. */
static void test_shared(void)
{
    block_test_begin();
    g_autofree char *path = test_image("s.raw", MIB);
    g_autofree char *cmd = g_strdup_printf("qemu-io -f raw -c 'write 0 512' %s", path);
    g_autoptr(GError) err = NULL;
    uint8_t buf[512], mine[512];
    int status;

    memset(mine, 0x33, sizeof(mine));
    test_add("id=owner,driver=raw,file.filename=%s,cache.direct=on", path);
    test_add("id=other,driver=raw,file.filename=%s,shared-disk=on", path);
    BlockNode *owner = test_node("owner"), *other = test_node("other");
    g_assert_true(block_file_is_direct(other) && block_file_is_shared(other));
    g_assert_false(block_file_is_shared(owner));
    g_assert_cmpint(test_io("other", BLOCK_OP_WRITE, 0, 512, mine), ==, -EPERM);
    g_assert_cmpint(test_io("other", BLOCK_OP_ZEROES, 0, 512, NULL), ==, -EPERM);
    g_assert_cmpint(test_io("owner", BLOCK_OP_WRITE, 0, 512, mine), ==, 0);
    g_assert_cmpint(test_io("other", BLOCK_OP_READ, 0, 512, buf), ==, 0);
    g_assert_cmpmem(buf, 512, mine, 512);

    g_assert_false(block_file_own(other, true, &err));
    g_assert_nonnull(strstr(err->message, "in use by another program"));
    g_clear_error(&err);
    g_spawn_command_line_sync(cmd, NULL, NULL, &status, NULL);
    g_assert_cmpint(status, !=, 0);
    /* The owner opens while there is a borrower, too. */
    g_assert_true(block_node_del("owner", NULL));
    test_add("id=owner,driver=raw,file.filename=%s,cache.direct=on", path);
    g_assert_false(block_file_own(other, true, NULL));
    owner = test_node("owner");
    g_assert_true(block_file_own(owner, false, NULL));
    g_assert_cmpint(test_io("owner", BLOCK_OP_WRITE, 0, 512, mine), ==, -EPERM);
    block_file_own(other, true, &err);
    g_assert_no_error(err);
    g_assert_cmpint(test_io("other", BLOCK_OP_WRITE, 512, 512, mine), ==, 0);
    g_assert_false(block_file_own(owner, true, NULL));
    g_spawn_command_line_sync(cmd, NULL, NULL, &status, NULL);
    g_assert_cmpint(status, !=, 0);
    g_assert_true(block_node_del("owner", NULL));
    g_assert_true(block_node_del("other", NULL));
    g_free(test_run("%s", cmd));

    test_add_fails("read-only", "id=d1,driver=raw,file.filename=%s,shared-disk=on,read-only=on",
                   path);
    g_autofree char *q = test_path("s.qcow2");
    g_free(test_run("qemu-img create -f qcow2 %s 1M", q));
    test_add_fails("driver=raw", "id=d1,driver=qcow2,file.filename=%s,shared-disk=on", q);
    block_test_end();
}

static void test_locks(void)
{
    block_test_begin();
    g_autofree char *path = test_image("l.raw", MIB);
    g_autofree char *words = NULL;
    int status;

    test_add("id=d0,driver=raw,file.filename=%s", path);
    test_add_fails("program", "id=d1,driver=raw,file.filename=%s", path);
    /* QEMU's own tools respect our lock, and we theirs. */
    g_autofree char *cmd = g_strdup_printf("qemu-io -f raw -c 'write 0 512' %s", path);
    g_spawn_command_line_sync(cmd, NULL, &words, &status, NULL);
    g_assert_cmpint(status, !=, 0);
    g_assert_nonnull(strstr(words, "lock"));
    g_assert_true(block_node_del("d0", NULL));

    g_autofree char *pidfile = test_path("pid");
    g_free(test_run("qemu-storage-daemon --daemonize --pidfile %s --blockdev "
                    "driver=file,node-name=f,filename=%s --nbd-server "
                    "addr.type=unix,addr.path=%s/x.sock --export "
                    "type=nbd,id=e,node-name=f,writable=on",
                    pidfile, path, test_dir));
    test_add_fails("program", "id=d0,driver=raw,file.filename=%s", path);
    g_autofree char *pid = NULL;
    g_file_get_contents(pidfile, &pid, NULL, NULL);
    kill(atoi(pid), SIGTERM);
    block_test_end();
}

static void test_probe(void)
{
    block_test_begin();
    g_autofree char *path = test_image("p.raw", MIB);
    uint8_t evil[512] = "QFI\xfb\0\0\0\3";

    test_add("id=d0,file=%s", path);
    g_assert_cmpint(test_io("d0", BLOCK_OP_WRITE, 0, 512, evil), ==, -EPERM);
    evil[0] = 'x';
    g_assert_cmpint(test_io("d0", BLOCK_OP_WRITE, 0, 512, evil), ==, 0);
    g_assert_true(block_node_del("d0", NULL));
    test_add("id=d0,file=%s,format=raw", path);
    evil[0] = 'Q';
    g_assert_cmpint(test_io("d0", BLOCK_OP_WRITE, 0, 512, evil), ==, 0);
    block_test_end();
}

static void test_qcow2(void)
{
    block_test_begin();
    g_autofree char *path = test_path("q.qcow2");

    g_free(test_run("qemu-img create -f qcow2 %s 8M", path));
    test_add("if=ide,id=d0,file.filename=%s,driver=qcow2", path);
    g_assert_cmpint(block_node_size("d0", NULL), ==, 8 * MIB);
    check_io("d0", 8 * MIB);
    /* The daemon holds the image. */
    test_add_fails("Failed to get \"write\" lock; Is another",
                   "id=d1,file.filename=%s,driver=qcow2", path);
    g_assert_true(block_node_del("d0", NULL));
    g_free(test_run("qemu-img check %s", path));
    /* Its format is found. */
    test_add("id=d2,file=%s,cache=none", path);
    g_assert_cmpint(block_node_size("d2", NULL), ==, 8 * MIB);
    block_test_end();
}

/* Its daemon dies: errors, no hang; and it can be opened anew. */
static void test_daemon_dies(void)
{
    block_test_begin();
    g_autofree char *path = test_path("q.qcow2");
    uint8_t buf[512] = {0};

    g_free(test_run("qemu-img create -f qcow2 %s 1M", path));
    test_add("id=d0,file.filename=%s,driver=qcow2", path);
    g_assert_cmpint(test_io("d0", BLOCK_OP_WRITE, 0, 512, buf), ==, 0);
    g_autofree char *pids = test_run("pgrep -P %d -f qemu-storage-daemon", (int)getpid());
    kill(atoi(pids), SIGKILL);
    g_assert_cmpint(test_io("d0", BLOCK_OP_WRITE, 0, 512, buf), ==, -EIO);
    g_assert_cmpint(test_io("d0", BLOCK_OP_FLUSH, 0, 0, NULL), ==, -EIO);
    g_assert_true(block_node_del("d0", NULL));
    test_add("id=d0,file.filename=%s,driver=qcow2", path);
    g_assert_cmpint(test_io("d0", BLOCK_OP_READ, 0, 512, buf), ==, 0);
    block_test_end();
}

static void test_refused(void)
{
    block_test_begin();
    g_autofree char *path = test_image("r.raw", MIB);
    g_autofree char *marker = g_strconcat(path, ".colo", NULL);

    test_add_fails("No such file", "id=d0,driver=raw,file.filename=%s/none", test_dir);
    test_add_fails("Image is not in qcow2 format", "id=d0,driver=qcow2,file.filename=%s",
                   path);
    test_add_fails("No such file", "id=d0,driver=qcow2,file.filename=%s/none", test_dir);
    test_add_fails("bogus", "id=d0,driver=qcow2,file.filename=%s,bogus=1", path);
    test_add_fails("snapshot", "id=d0,driver=raw,file.filename=%s,snapshot=on", path);
    test_add_fails("id or a node-name", "driver=raw,file.filename=%s", path);
    test_add_fails("neither a file", "id=d0,driver=raw,file.filename=/dev/null");
    test_add_fails("value 'nix'", "id=d0,driver=nix,file.filename=%s", path);
    g_file_set_contents(marker, "x", 1, NULL);
    test_add_fails(".colo", "id=d0,driver=raw,file.filename=%s", path);
    g_unlink(marker);
    test_add("id=d0,driver=raw,file.filename=%s", path);
    test_add_fails("Duplicate", "id=d0,driver=raw,file.filename=%s", path);
    block_test_end();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/block/file/raw", test_raw);
    g_test_add_func("/block/file/raw-direct", test_raw_direct);
    g_test_add_func("/block/file/odd-size", test_raw_odd_size);
    g_test_add_func("/block/file/direct-unaligned", test_direct_unaligned);
    g_test_add_func("/block/file/shared", test_shared);
    g_test_add_func("/block/file/locks", test_locks);
    g_test_add_func("/block/file/probe", test_probe);
    g_test_add_func("/block/file/qcow2", test_qcow2);
    g_test_add_func("/block/file/daemon-dies", test_daemon_dies);
    g_test_add_func("/block/file/refused", test_refused);
    return g_test_run();
}
