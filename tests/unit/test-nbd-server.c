/*
 * The NBD server: protocol, stock clients, garbage, order, holds (RULES 11).
 * Sources: this file. Dependencies: util, block, libnbd, liburing, gio_unix.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block-test.h"

#include <sys/socket.h>
#include <sys/un.h>

#define MIB (1024 * 1024)

static const char *serve(const char *node)
{
    g_autoptr(GError) err = NULL;
    const char *path = block_serve_child(node, &err);

    g_assert_no_error(err);
    return path;
}

static void test_basic(void)
{
    block_test_begin();
    g_autofree char *path = test_image("a.raw", 8 * MIB);
    g_autofree uint8_t *buf = g_malloc(2 * MIB), *model = g_malloc(2 * MIB);
    g_autoptr(GRand) r = g_rand_new_with_seed(3);

    test_add("id=d0,driver=raw,file.filename=%s,discard=unmap", path);
    struct nbd_handle *h = test_client(serve("d0"), "d0");
    g_assert_cmpint(nbd_get_size(h), ==, 8 * MIB);
    g_assert_cmpint(nbd_can_fua(h), ==, 1);
    g_assert_cmpint(nbd_can_trim(h), ==, 1);
    g_assert_cmpint(nbd_can_zero(h), ==, 1);
    g_assert_cmpint(nbd_can_multi_conn(h), ==, 1);
    g_assert_cmpint(nbd_get_structured_replies_negotiated(h), ==, 1);
    test_fill(r, model, 2 * MIB);
    g_assert_cmpint(nbd_pwrite(h, model, 2 * MIB, 3 * MIB, LIBNBD_CMD_FLAG_FUA), ==, 0);
    g_assert_cmpint(nbd_pread(h, buf, 2 * MIB, 3 * MIB, 0), ==, 0);
    g_assert_cmpmem(buf, 2 * MIB, model, 2 * MIB);
    g_assert_cmpint(nbd_zero(h, MIB, 3 * MIB, 0), ==, 0);
    g_assert_cmpint(nbd_trim(h, 65536, 4 * MIB, 0), ==, 0);
    memset(model, 0, MIB + 65536);
    g_assert_cmpint(nbd_pread(h, buf, 2 * MIB, 3 * MIB, 0), ==, 0);
    g_assert_cmpmem(buf, 2 * MIB, model, 2 * MIB);
    g_assert_cmpint(nbd_flush(h, 0), ==, 0);
    /* What does not fit is answered, and the connection lives on. */
    g_assert_cmpint(nbd_pread(h, buf, 512, 8 * MIB, 0), ==, -1);
    g_assert_cmpint(nbd_get_errno(), ==, EINVAL);
    g_assert_cmpint(nbd_pwrite(h, buf, 1024, 8 * MIB - 512, 0), ==, -1);
    g_assert_cmpint(nbd_get_errno(), ==, ENOSPC);
    g_assert_cmpint(nbd_zero(h, 512, UINT64_MAX - 100, 0), ==, -1);
    g_assert_cmpint(nbd_pread(h, buf, 512, 0, 0), ==, 0);
    nbd_shutdown(h, 0);
    nbd_close(h);
    /* Without structured replies. */
    h = nbd_create();
    nbd_set_export_name(h, "d0");
    nbd_set_request_structured_replies(h, false);
    g_assert_cmpint(nbd_connect_unix(h, serve("d0")), ==, 0);
    g_assert_cmpint(nbd_pread(h, buf, 2 * MIB, 3 * MIB, 0), ==, 0);
    g_assert_cmpmem(buf, 2 * MIB, model, 2 * MIB);
    g_assert_cmpint(nbd_pread(h, buf, 512, 8 * MIB, 0), ==, -1);
    nbd_close(h);
    /* Oldest option, no fixed newstyle. */
    h = nbd_create();
    nbd_set_export_name(h, "d0");
    nbd_set_handshake_flags(h, 0);
    g_assert_cmpint(nbd_connect_unix(h, serve("d0")), ==, 0);
    g_assert_cmpint(nbd_get_size(h), ==, 8 * MIB);
    g_assert_cmpint(nbd_pread(h, buf, 2 * MIB, 3 * MIB, 0), ==, 0);
    g_assert_cmpmem(buf, 2 * MIB, model, 2 * MIB);
    nbd_close(h);
    h = nbd_create();
    nbd_set_export_name(h, "nothing");
    g_assert_cmpint(nbd_connect_unix(h, serve("d0")), ==, -1);
    nbd_close(h);
    block_test_end();
}

static void test_stock_tools(void)
{
    block_test_begin();
    g_autofree char *path = test_image("a.raw", 8 * MIB);
    g_autofree char *ro = test_image("ro.raw", MIB), *copy = test_path("copy.raw");
    g_autoptr(GError) err = NULL;
    g_autofree uint8_t *a = g_malloc(8 * MIB), *b = g_malloc(8 * MIB);

    test_add("id=d0,driver=raw,file.filename=%s", path);
    test_add("id=ro,driver=raw,file.filename=%s,read-only=on", ro);
    g_autoptr(JsonObject) addr =
        test_opts("type=inet,data.host=127.0.0.1,data.port=9909");
    block_nbd_server_start(addr, NULL, 0, &err);
    g_assert_no_error(err);
    g_assert_false(block_nbd_server_start(addr, NULL, 0, NULL));
    block_nbd_server_add("d0", NULL, true, &err);
    g_assert_no_error(err);
    block_nbd_server_add("ro", "other", false, &err);
    g_assert_no_error(err);
    g_assert_false(block_nbd_server_add("ro", "third", true, NULL));
    g_assert_false(block_nbd_server_add("none", NULL, true, NULL));

    g_autofree char *list = test_run("nbdinfo --list nbd://127.0.0.1:9909");
    g_assert_nonnull(strstr(list, "export=\"d0\""));
    g_assert_nonnull(strstr(list, "export=\"other\""));
    g_assert_nonnull(strstr(list, "base:allocation"));
    g_autofree char *io = test_run(
        "qemu-io -f raw -c 'write -P 0x5a 1M 2M' -c 'write -z 2M 64k' -c 'flush' "
        "-c 'read -P 0x5a 1M 1M' -c 'read -P 0 2M 64k' -c 'read -P 0 0 1M' "
        "nbd://127.0.0.1:9909/d0");
    g_assert_null(strstr(io, "failed"));
    g_autofree char *map = test_run("nbdinfo --map nbd://127.0.0.1:9909/d0");
    g_assert_nonnull(strstr(map, "hole,zero"));
    g_free(test_run("nbdcopy nbd://127.0.0.1:9909/d0 %s", copy));
    test_file_read(path, a, 8 * MIB);
    test_file_read(copy, b, 8 * MIB);
    g_assert_cmpmem(a, 8 * MIB, b, 8 * MIB);
    memset(b, 0x77, 4 * MIB);
    g_file_set_contents(copy, (char *)b, 8 * MIB, NULL);
    g_free(test_run("nbdcopy --flush %s nbd://127.0.0.1:9909/d0", copy));
    test_file_read(path, a, 8 * MIB);
    g_assert_cmpmem(a, 8 * MIB, b, 8 * MIB);

    g_assert_false(block_node_del("d0", NULL));
    g_assert_true(block_export_del("d0", false, NULL));
    g_assert_true(block_node_del("d0", NULL));
    g_assert_true(block_nbd_server_stop(NULL));
    g_assert_false(block_nbd_server_stop(NULL));
    block_test_end();
}

static int raw_connect(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strcpy(a.sun_path, path);
    g_assert_cmpint(connect(fd, (struct sockaddr *)&a, sizeof(a)), ==, 0);
    return fd;
}

/* Random bytes, and valid beginnings with random ends: the server must survive. */
static void test_garbage(void)
{
    block_test_begin();
    g_autofree char *path = test_image("a.raw", MIB);
    g_autoptr(GRand) r = g_rand_new();
    uint8_t buf[4096];
    static const uint8_t go[] = {0,   0,   0, 3, 'I', 'H', 'A', 'V', 'E', 'O',
                                 'P', 'T', 0, 0, 0,   7,   0,   0,   0,   8,
                                 0,   0,   0, 2, 'd', '0', 0,   0};

    test_add("id=d0,driver=raw,file.filename=%s", path);
    const char *sock = serve("d0");
    for (int i = 0; i < 600; i++) {
        int fd = raw_connect(sock);
        size_t len = g_rand_int_range(r, 1, sizeof(buf)), good = 0;

        test_fill(r, buf, sizeof(buf));
        if (i % 3 == 1) {
            good = g_rand_int_range(r, 4, 24);
        } else if (i % 3 == 2) {
            good = sizeof(go);
        }
        memcpy(buf, go, good);
        if (i % 3 == 1 && good >= 16) {
            buf[14] = 0;
            buf[15] = g_rand_int_range(r, 0, 12);
            uint32_t olen = g_htonl(g_rand_int_range(r, 0, 100));
            memcpy(buf + 16, &olen, 4);
        }
        for (size_t at = sizeof(go); i % 3 == 2 && at + 28 < len; at += 28) {
            uint32_t magic = g_htonl(0x25609513);

            memcpy(buf + at, &magic, 4);
            buf[at + 6] = 0;
            buf[at + 7] = g_rand_int_range(r, 0, 10);
            if (g_rand_boolean(r)) {
                memset(buf + at + 16, 0, 10);
            }
        }
        (void)!send(fd, buf, len, MSG_NOSIGNAL);
        if (i % 2) {
            shutdown(fd, SHUT_WR);
            recv(fd, buf, sizeof(buf), 0);
        }
        close(fd);
    }
    struct nbd_handle *h = test_client(sock, "d0");
    g_assert_cmpint(nbd_pread(h, buf, sizeof(buf), 0, 0), ==, 0);
    nbd_close(h);
    block_test_end();
}

static int count_done(void *opaque, int *error)
{
    g_assert_cmpint(*error, ==, 0);
    ++*(int *)opaque;
    return 1;
}

/* Many overlapping writes in flight: the last one submitted wins, everywhere. */
static void test_order(void)
{
    block_test_begin();
    g_autofree char *path = test_image("a.raw", MIB);
    g_autofree uint8_t *model = g_malloc0(MIB), *buf = g_malloc(MIB);
    g_autoptr(GRand) r = g_rand_new();

    test_add("id=d0,driver=raw,file.filename=%s", path);
    struct nbd_handle *h = test_client(serve("d0"), "d0");
    for (int round = 0; round < 20; round++) {
        int done = 0, n = 100;
        g_autoptr(GPtrArray) bufs = g_ptr_array_new_with_free_func(g_free);

        for (int i = 0; i < n; i++) {
            uint64_t off = g_rand_int_range(r, 0, 512) * 512;
            uint64_t len = g_rand_int_range(r, 1, 256) * 512;
            uint8_t *data = g_malloc(len);

            g_ptr_array_add(bufs, data);
            test_fill(r, data, len);
            memcpy(model + off, data, len);
            nbd_completion_callback cb = {.callback = count_done, .user_data = &done};
            g_assert_cmpint(nbd_aio_pwrite(h, data, len, off, cb, 0), >, 0);
        }
        while (done < n) {
            g_assert_cmpint(nbd_poll(h, 5000), >, 0);
        }
        g_assert_cmpint(nbd_pread(h, buf, MIB, 0, 0), ==, 0);
        g_assert_cmpmem(buf, MIB, model, MIB);
    }
    nbd_close(h);
    block_test_end();
}

/* --- RULES 11, with a disk that does nothing until it is told --- */

static GQueue slow_queue; /* BlockRequest, under the block lock */
static uint8_t slow_data[65536];

static void slow_submit(BlockNode *node, BlockRequest *req)
{
    g_queue_push_tail(&slow_queue, req);
}

static void slow_close(BlockNode *node)
{
}

static const BlockDriver slow_driver = {
    .name = "slow", .submit = slow_submit, .close = slow_close};

static void slow_run(int ret)
{
    block_lock();
    /* Not what the completions bring. */
    for (guint n = slow_queue.length; n > 0; n--) {
        BlockRequest *req = g_queue_pop_head(&slow_queue);

        if (req->op == BLOCK_OP_WRITE && ret == 0) {
            memcpy(slow_data + req->offset, req->data, req->bytes);
        } else if (req->op == BLOCK_OP_READ) {
            memcpy(req->data, slow_data + req->offset, req->bytes);
        }
        req->done(req, ret);
    }
    block_unlock();
}

static guint slow_waiting(BlockOp op)
{
    guint n = 0;

    block_lock();
    for (GList *l = slow_queue.head; l; l = l->next) {
        n += ((BlockRequest *)l->data)->op == op;
    }
    block_unlock();
    return n;
}

/* Turn the client's crank for @ms or until *@done is @want. */
static void crank(struct nbd_handle *h, const int *done, int want, int ms)
{
    gint64 end = g_get_monotonic_time() + ms * 1000;

    while (*done < want && g_get_monotonic_time() < end) {
        nbd_poll(h, 5);
    }
}

static gboolean set_flag(gpointer opaque)
{
    g_atomic_int_set((gint *)opaque, 1);
    return G_SOURCE_REMOVE;
}

static void test_hold(void)
{
    block_test_begin();
    uint8_t data[4096], back[4096];
    int wrote = 0, flushed = 0, got = 0, wrote2 = 0, later = 0;
    gint real = 0;

    block_lock();
    BlockNode *node = block_node_new(&slow_driver, "slow", NULL);
    node->size = sizeof(slow_data);
    block_unlock();
    struct nbd_handle *h = test_client(serve("slow"), "slow");
    nbd_completion_callback cb_w = {.callback = count_done, .user_data = &wrote};
    nbd_completion_callback cb_w2 = {.callback = count_done, .user_data = &wrote2};
    nbd_completion_callback cb_l = {.callback = count_done, .user_data = &later};
    nbd_completion_callback cb_f = {.callback = count_done, .user_data = &flushed};
    nbd_completion_callback cb_r = {.callback = count_done, .user_data = &got};

    memset(data, 0x42, sizeof(data));
    nbd_aio_pwrite(h, data, sizeof(data), 4096, cb_w, 0);
    crank(h, &wrote, 1, 30);
    g_assert_cmpint(wrote, ==, 0);
    block_primary_hold(true);
    crank(h, &wrote, 1, 1000);
    g_assert_cmpint(wrote, ==, 1);
    /* A flush is answered at once, but waits for the early write to be real. */
    nbd_aio_flush(h, cb_f, 0);
    crank(h, &flushed, 1, 1000);
    g_assert_cmpint(flushed, ==, 1);
    g_assert_cmpuint(slow_waiting(BLOCK_OP_FLUSH), ==, 0);
    block_primary_hold(false);
    g_assert_false(block_primary_flushed(set_flag, &real));
    /* A read of the early write's range waits for it. */
    nbd_aio_pread(h, back, sizeof(back), 4096, cb_r, 0);
    crank(h, &got, 1, 50);
    g_assert_cmpint(got, ==, 0);
    g_assert_cmpuint(slow_waiting(BLOCK_OP_READ), ==, 0);
    slow_run(0); /* the write; now flush and read come */
    for (int i = 0; i < 100 && slow_waiting(BLOCK_OP_FLUSH) == 0; i++) {
        g_usleep(1000);
    }
    g_assert_cmpint(g_atomic_int_get(&real), ==, 0);
    slow_run(0);
    crank(h, &got, 1, 1000);
    g_assert_cmpint(got, ==, 1);
    g_assert_cmpmem(back, sizeof(back), data, sizeof(data));
    g_assert_cmpint(g_atomic_int_get(&real), ==, 1);
    g_assert_true(block_primary_flushed(set_flag, &real));

    /* A flush in flight when the hold begins. */
    nbd_aio_flush(h, cb_f, 0);
    crank(h, &flushed, 2, 30);
    g_assert_cmpint(flushed, ==, 1);
    block_primary_hold(true);
    crank(h, &flushed, 2, 1000);
    g_assert_cmpint(flushed, ==, 2);
    block_primary_hold(false);
    real = 0;
    g_assert_false(block_primary_flushed(set_flag, &real));
    slow_run(0);
    g_assert_cmpint(g_atomic_int_get(&real), ==, 1);

    /* A flush that comes in the hold is the disk's only after it, and counts until then. */
    block_primary_hold(true);
    nbd_aio_flush(h, cb_f, 0);
    crank(h, &flushed, 3, 1000);
    g_assert_cmpint(flushed, ==, 3);
    g_usleep(5000);
    g_assert_cmpuint(slow_waiting(BLOCK_OP_FLUSH), ==, 0);
    real = 0;
    g_assert_false(block_primary_flushed(set_flag, &real));
    block_primary_hold(false);
    g_assert_cmpuint(slow_waiting(BLOCK_OP_FLUSH), ==, 1);
    g_assert_cmpint(g_atomic_int_get(&real), ==, 0);
    slow_run(0);
    g_assert_cmpint(g_atomic_int_get(&real), ==, 1);

    /* Then the disk alone answers, as before the first hold. */
    nbd_aio_pwrite(h, data, sizeof(data), 0, cb_l, 0);
    crank(h, &later, 1, 50);
    g_assert_cmpint(later, ==, 0);
    g_assert_cmpuint(slow_waiting(BLOCK_OP_WRITE), ==, 1);
    g_assert_true(block_primary_flushed(set_flag, &real));
    slow_run(0);
    crank(h, &later, 1, 1000);
    g_assert_cmpint(later, ==, 1);

    /* An early write that fails: from then on no flush succeeds. */
    block_primary_hold(true);
    nbd_aio_pwrite(h, data, sizeof(data), 0, cb_w2, 0);
    crank(h, &wrote2, 1, 1000);
    g_assert_cmpint(wrote2, ==, 1);
    block_primary_hold(false);
    slow_run(-EIO);
    nbd_completion_callback none = {.callback = NULL};
    int64_t cookie = nbd_aio_flush(h, none, 0);
    for (int i = 0; i < 100 && slow_waiting(BLOCK_OP_FLUSH) == 0; i++) {
        nbd_poll(h, 1);
    }
    slow_run(0);
    int r = 0;
    for (int i = 0; i < 1000 && (r = nbd_aio_command_completed(h, cookie)) == 0; i++) {
        nbd_poll(h, 1);
    }
    g_assert_cmpint(r, ==, -1);
    nbd_close(h);
    block_test_end();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/block/nbd-server/basic", test_basic);
    g_test_add_func("/block/nbd-server/stock-tools", test_stock_tools);
    g_test_add_func("/block/nbd-server/garbage", test_garbage);
    g_test_add_func("/block/nbd-server/order", test_order);
    g_test_add_func("/block/nbd-server/hold", test_hold);
    return g_test_run();
}
