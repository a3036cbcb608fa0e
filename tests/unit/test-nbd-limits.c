/*
 * The NBD server and clients that ask too much: thousands of requests at once, answers that
 * nobody reads, half requests, absurd lengths, more connections than allowed. Others are served
 * meanwhile, and memory stays bounded.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block-test.h"

#include "../../block/nbd-conn.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#define MIB (1024 * 1024)

static char *user_path;
static GPtrArray *events; /* "NAME id", under the block lock */

static void on_event(const char *name, JsonObject *data)
{
    if (events) {
        g_ptr_array_add(events, g_strdup_printf("%s %s", name, options_get_str(data, "id", "")));
    }
    json_object_unref(data);
}

/* The user's server on a unix socket, with d0 (32 MiB) writable. */
static void begin(uint64_t max_conn)
{
    g_autoptr(GError) err = NULL;

    block_set_event_func(on_event);
    block_test_begin();
    g_autofree char *image = test_image("a.raw", 32 * MIB);
    user_path = test_path("user.sock");
    test_add("id=d0,driver=raw,file.filename=%s,discard=unmap", image);
    g_autoptr(JsonObject) addr = test_opts("type=unix,data.path=%s", user_path);
    block_nbd_server_start(addr, NULL, max_conn, &err);
    g_assert_no_error(err);
    block_nbd_server_add("d0", NULL, true, &err);
    g_assert_no_error(err);
}

static void end(void)
{
    block_test_end();
    g_clear_pointer(&user_path, g_free);
}

static int raw_connect(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strcpy(a.sun_path, user_path);
    g_assert_cmpint(connect(fd, (struct sockaddr *)&a, sizeof(a)), ==, 0);
    return fd;
}

static void get(int fd, void *buf, size_t len)
{
    g_assert_cmpint(recv(fd, buf, len, MSG_WAITALL), ==, (ssize_t)len);
}

/* In transmission, simple replies. */
static int raw_client(const char *export)
{
    uint8_t buf[512] = {0, 0, 0, 3};
    int fd = raw_connect();
    size_t len = strlen(export);

    get(fd, buf + 100, 18);
    memcpy(buf + 4, "IHAVEOPT", 8);
    put32(buf + 12, NBD_OPT_EXPORT_NAME);
    put32(buf + 16, len);
    memcpy(buf + 20, export, len);
    g_assert_cmpint(write(fd, buf, 20 + len), ==, 20 + len);
    get(fd, buf, 10);
    g_assert_cmpuint(get64(buf), ==, 32 * MIB);
    return fd;
}

static size_t request(uint8_t *p, uint16_t command, uint64_t handle, uint64_t off, uint32_t len)
{
    put32(p, NBD_REQUEST_MAGIC);
    put16(p + 4, 0);
    put16(p + 6, command);
    put64(p + 8, handle);
    put64(p + 16, off);
    put32(p + 24, len);
    return 28;
}

static uint64_t resident(void)
{
    g_autofree char *text = NULL;

    g_file_get_contents("/proc/self/statm", &text, NULL, NULL);
    char *second = strchr(text, ' ');
    return g_ascii_strtoull(second, NULL, 10) * getpagesize();
}

/* Somebody else is served, and in reasonable time. */
static void others_served(void)
{
    gint64 start = g_get_monotonic_time();
    uint8_t buf[4096];
    struct nbd_handle *h = test_client(user_path, "d0");

    g_assert_cmpint(nbd_pread(h, buf, sizeof(buf), 0, 0), ==, 0);
    g_assert_cmpint(nbd_pwrite(h, buf, sizeof(buf), 31 * MIB, 0), ==, 0);
    nbd_shutdown(h, 0);
    nbd_close(h);
    g_assert_cmpint(g_get_monotonic_time() - start, <, 30 * G_USEC_PER_SEC);
}

/* Thousands of small requests in one go; read only when all were sent. */
static void test_pipelined(void)
{
    begin(0);
    const int n = 3000;
    g_autofree uint8_t *all = g_malloc(n * (28 + 512)), *got = g_malloc0(n);
    uint8_t head[16], data[512];
    size_t len = 0;
    int fd = raw_client("d0"), writes = 0;

    for (int i = 0; i < n; i++) {
        bool w = i % 3 == 0;

        len += request(all + len, w ? NBD_CMD_WRITE : NBD_CMD_READ, i, (i % 64) * 512, 512);
        if (w) {
            memset(all + len, i / 3, 512);
            len += 512;
            writes++;
        }
    }
    /* The server must stop to read at some point, and go on when it is listened to. */
    size_t sent = 0;
    int answers = 0;
    for (int idle = 0; sent < len;) {
        ssize_t k = send(fd, all + sent, len - sent, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (k > 0) {
            sent += k;
            idle = 0;
        } else if (++idle == 50) {
            break;
        } else {
            g_usleep(1000);
        }
    }
    others_served();
    while (answers < n) {
        if (sent < len) {
            ssize_t k = send(fd, all + sent, len - sent, MSG_DONTWAIT | MSG_NOSIGNAL);

            sent += MAX(k, 0);
        }
        struct pollfd p = {.fd = fd, .events = POLLIN};
        g_assert_cmpint(poll(&p, 1, 5000), ==, 1);
        get(fd, head, 16);
        uint64_t handle = get64(head + 8);
        g_assert_cmpuint(get32(head), ==, NBD_SIMPLE_MAGIC);
        g_assert_cmpuint(get32(head + 4), ==, 0);
        g_assert_cmpuint(handle, <, n);
        g_assert_cmpuint(got[handle], ==, 0);
        got[handle] = 1;
        answers++;
        if (handle % 3) {
            get(fd, data, 512);
        }
    }
    g_assert_cmpint(writes, ==, n / 3);
    close(fd);
    end();
}

/* 2000 reads of 1 MiB by clients that read nothing. */
static void test_slow_reader(void)
{
    begin(0);
    const int n = 500;
    uint8_t all[28 * 500], head[16];
    g_autofree uint8_t *data = g_malloc(MIB);
    int fd[6];

    for (int i = 0; i < 6; i++) {
        fd[i] = raw_client("d0");
    }
    uint64_t before = resident();
    for (int i = 0; i < 6; i++) {
        for (int k = 0; k < n; k++) {
            request(all + 28 * k, NBD_CMD_READ, k, (k % 32) * MIB, MIB);
        }
        if (send(fd[i], all, 28 * n, MSG_DONTWAIT | MSG_NOSIGNAL) != 28 * n) {
            g_error("the kernel's buffer should hold %d requests", n);
        }
    }
    for (int i = 0; i < 30; i++) {
        others_served();
        g_usleep(10000);
        g_assert_cmpuint(resident() - before, <, NBD_POOL_BYTES + 6 * 34 * MIB);
    }
    /* 6 times 64 MiB would be more than the pool; each may hold one request at least. */
    g_assert_cmpuint(resident() - before, <, NBD_POOL_BYTES + 64 * MIB);
    g_assert_cmpuint(resident() - before, >, 64 * MIB);
    /* Two that leave, and four that begin to listen: all answers come. */
    close(fd[0]);
    close(fd[1]);
    for (int k = 0; k < n; k++) {
        for (int i = 2; i < 6; i++) {
            struct pollfd p = {.fd = fd[i], .events = POLLIN};

            g_assert_cmpint(poll(&p, 1, 5000), ==, 1);
            get(fd[i], head, 16);
            g_assert_cmpuint(get32(head + 4), ==, 0);
            get(fd[i], data, MIB);
        }
    }
    for (int i = 2; i < 6; i++) {
        close(fd[i]);
    }
    end();
}

/* Writes that are promised and not sent, requests that are cut, lengths beyond everything. */
static void test_half(void)
{
    begin(0);
    uint8_t buf[1024], head[16];
    int stuck[20];

    for (int i = 0; i < 20; i++) {
        stuck[i] = raw_client("d0");
        size_t n = request(buf, NBD_CMD_WRITE, i, 0, 32 * MIB) + i;
        memset(buf + 28, 0x77, i);
        g_assert_cmpint(write(stuck[i], buf, n), ==, n);
    }
    others_served();
    for (int i = 0; i < 20; i++) {
        int fd = raw_client("d0");
        size_t n = 1 + i;

        request(buf, NBD_CMD_READ, 1, 0, 512);
        g_assert_cmpint(write(fd, buf, n), ==, n);
        close(fd);
    }
    for (int i = 0; i < 20; i++) {
        close(stuck[i]);
    }
    struct {
        uint16_t command;
        uint64_t off;
        uint32_t len;
        uint32_t error; /* 0: the connection ends */
    } odd[] = {
        {NBD_CMD_READ, 0, UINT32_MAX, NBD_EINVAL},
        {NBD_CMD_READ, 0, 33 * MIB, NBD_EINVAL},
        {NBD_CMD_READ, UINT64_MAX - 100, 512, NBD_EINVAL},
        {NBD_CMD_READ, 32 * MIB, 1, NBD_EINVAL},
        {NBD_CMD_TRIM, 32 * MIB, 1, NBD_EINVAL},
        {NBD_CMD_TRIM, 512, UINT32_MAX, NBD_EINVAL},
        {NBD_CMD_WRITE_ZEROES, 512, UINT32_MAX, NBD_ENOSPC},
        {NBD_CMD_CACHE, 0, UINT32_MAX, NBD_EINVAL},
        {NBD_CMD_BLOCK_STATUS, 0, 512, NBD_EINVAL},
        {11, 0, 512, NBD_EINVAL},
        {77, UINT64_MAX, UINT32_MAX, NBD_EINVAL},
        {NBD_CMD_WRITE, 0, UINT32_MAX, 0},
        {NBD_CMD_WRITE, 0, 32 * MIB + 1, 0},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(odd); i++) {
        int fd = raw_client("d0");

        request(buf, odd[i].command, 0x1122334455667788, odd[i].off, odd[i].len);
        g_assert_cmpint(write(fd, buf, 28), ==, 28);
        ssize_t n = recv(fd, head, 16, MSG_WAITALL);
        if (odd[i].error == 0) {
            g_assert_cmpint(n, ==, 0);
        } else {
            g_assert_cmpint(n, ==, 16);
            g_assert_cmpuint(get32(head + 4), ==, odd[i].error);
            g_assert_cmpuint(get64(head + 8), ==, 0x1122334455667788);
            /* And it goes on. */
            request(buf, NBD_CMD_READ, 5, 0, 512);
            g_assert_cmpint(write(fd, buf, 28), ==, 28);
            get(fd, head, 16);
            g_assert_cmpuint(get32(head + 4), ==, 0);
        }
        close(fd);
    }
    /* Nothing of a write that never came whole was written. */
    struct nbd_handle *h = test_client(user_path, "d0");
    g_assert_cmpint(nbd_pread(h, buf, 512, 0, 0), ==, 0);
    for (int i = 0; i < 512; i++) {
        g_assert_cmpuint(buf[i], ==, 0);
    }
    nbd_close(h);
    end();
}

/* Options asked thousands of times by one who does not listen. */
static void test_deaf_negotiator(void)
{
    begin(0);
    uint8_t opt[16];
    uint64_t before = resident();
    int fd = raw_connect(), sent = 0;

    g_assert_cmpint(write(fd, "\0\0\0\3", 4), ==, 4);
    memcpy(opt, "IHAVEOPT", 8);
    put32(opt + 8, NBD_OPT_LIST);
    put32(opt + 12, 0);
    for (int idle = 0; idle < 50 && sent < 200000;) {
        if (send(fd, opt, 16, MSG_DONTWAIT | MSG_NOSIGNAL) == 16) {
            sent++;
            idle = 0;
        } else {
            idle++;
            g_usleep(1000);
        }
    }
    g_assert_cmpint(sent, <, 200000);
    g_assert_cmpuint(resident() - before, <, 16 * MIB);
    others_served();
    close(fd);
    end();
}

/* A client over the limit waits until another one leaves. */
static void test_max_connections(void)
{
    begin(2);
    int a = raw_client("d0"), b = raw_client("d0"), c = raw_connect();
    uint8_t hello[18];

    struct pollfd p = {.fd = c, .events = POLLIN};
    g_assert_cmpint(poll(&p, 1, 100), ==, 0);
    close(a);
    get(c, hello, 18);
    close(b);
    close(c);
    end();

    begin(1);
    struct nbd_handle *h = test_client(user_path, "d0");
    g_assert_cmpint(nbd_can_multi_conn(h), ==, 0);
    nbd_close(h);
    end();
    begin(0);
    h = test_client(user_path, "d0");
    g_assert_cmpint(nbd_can_multi_conn(h), ==, 1);
    /* What one connection wrote another one's flush makes durable, and reads see at once. */
    struct nbd_handle *h2 = test_client(user_path, "d0");
    uint8_t buf[4096], back[4096];
    memset(buf, 0x3c, sizeof(buf));
    g_assert_cmpint(nbd_pwrite(h, buf, sizeof(buf), MIB, 0), ==, 0);
    g_assert_cmpint(nbd_flush(h2, 0), ==, 0);
    g_assert_cmpint(nbd_pread(h2, back, sizeof(back), MIB, 0), ==, 0);
    g_assert_cmpmem(buf, sizeof(buf), back, sizeof(back));
    nbd_close(h);
    nbd_close(h2);
    end();
}

static void test_features(void)
{
    begin(0);
    g_autoptr(GError) err = NULL;
    struct nbd_handle *h = test_client(user_path, "d0");
    uint8_t buf[4096];

    g_assert_cmpint(nbd_can_cache(h), ==, 1);
    g_assert_cmpint(nbd_can_fast_zero(h), ==, 1);
    g_assert_cmpint(nbd_can_df(h), ==, 1);
    g_assert_cmpint(nbd_cache(h, 32 * MIB, 0, 0), ==, 0);
    g_assert_cmpint(nbd_cache(h, MIB, 32 * MIB, 0), ==, -1);
    memset(buf, 1, sizeof(buf));
    /* Bytes, not sectors. */
    g_assert_cmpint(nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM), ==, 1);
    g_assert_cmpint(nbd_pwrite(h, buf, 1001, 3, LIBNBD_CMD_FLAG_FUA), ==, 0);
    memset(buf, 0, sizeof(buf));
    g_assert_cmpint(nbd_pread(h, buf, 1005, 1, 0), ==, 0);
    g_assert_cmpuint(buf[1], ==, 0);
    g_assert_cmpuint(buf[2], ==, 1);
    g_assert_cmpuint(buf[1002], ==, 1);
    g_assert_cmpuint(buf[1003], ==, 0);
    /* Zeroes fast, or not at all. */
    int r = nbd_zero(h, MIB, 0, LIBNBD_CMD_FLAG_FAST_ZERO);
    g_assert_true(r == 0 || nbd_get_errno() == ENOTSUP);
    g_test_message("fast zero: %s", r == 0 ? "done" : "refused");
    if (r < 0) {
        /* It stays refused, and a plain one works. */
        g_assert_cmpint(nbd_zero(h, MIB, 0, LIBNBD_CMD_FLAG_FAST_ZERO), ==, -1);
        g_assert_cmpint(nbd_zero(h, MIB, 0, 0), ==, 0);
    }
    g_assert_cmpint(nbd_pread(h, buf, 1005, 1, 0), ==, 0);
    g_assert_cmpuint(buf[2], ==, 0);
    g_assert_cmpint(nbd_zero(h, MIB, 0, LIBNBD_CMD_FLAG_NO_HOLE), ==, 0);

    /* Exports come and go. */
    BlockExportOptions o = {.id = "x", .node = "d0", .name = "other", .writethrough = true,
                            .description = "a disk", .writable = true};
    g_assert_true(block_export_add(&o, NULL));
    g_assert_false(block_export_add(&o, &err));
    g_assert_nonnull(strstr(err->message, "already in use"));
    g_clear_error(&err);
    o.id = "y";
    g_assert_false(block_export_add(&o, NULL));
    struct nbd_handle *h2 = nbd_create();
    nbd_set_export_name(h2, "other");
    nbd_set_full_info(h2, true);
    g_assert_cmpint(nbd_connect_unix(h2, user_path), ==, 0);
    g_autofree char *desc = nbd_get_export_description(h2);
    g_assert_cmpstr(desc, ==, "a disk");
    g_autofree char *name = nbd_get_canonical_export_name(h2);
    g_assert_cmpstr(name, ==, "other");
    JsonArray *list = block_export_query();
    g_assert_cmpuint(json_array_get_length(list), ==, 2);
    json_array_unref(list);
    block_lock();
    events = g_ptr_array_new_with_free_func(g_free);
    block_unlock();
    g_assert_false(block_export_del("x", false, &err));
    g_assert_nonnull(strstr(err->message, "in use"));
    g_clear_error(&err);
    g_assert_true(block_export_del("x", true, NULL));
    g_assert_cmpint(nbd_pread(h2, buf, 512, 0, 0), ==, -1);
    nbd_close(h2);
    g_assert_false(block_export_del("x", true, NULL));
    g_assert_cmpint(nbd_pread(h, buf, 512, 0, 0), ==, 0);
    nbd_close(h);
    g_assert_true(block_nbd_server_stop(NULL));
    block_lock();
    g_assert_cmpuint(events->len, ==, 2);
    g_assert_cmpstr(events->pdata[0], ==, "BLOCK_EXPORT_DELETED x");
    g_assert_cmpstr(events->pdata[1], ==, "BLOCK_EXPORT_DELETED d0");
    g_clear_pointer(&events, g_ptr_array_unref);
    block_unlock();
    end();
}

/* Sequences of mostly valid options and requests with any field wrong: whatever it says, the
 * server answers or hangs up, and a read-only export stays what it was. */
static void test_fuzz(void)
{
    begin(0);
    g_autofree char *image = test_image("ro.raw", 32 * MIB);
    g_autoptr(GRand) r = g_rand_new();
    g_autofree uint8_t *buf = g_malloc(1 << 17), *sink = g_malloc(1 << 17);
    gint64 until = g_get_monotonic_time() + G_USEC_PER_SEC;
    static const char content[] = "what was here before";
    int img = open(image, O_RDWR);
    unsigned rounds = 0;

    g_assert_cmpint(pwrite(img, content, sizeof(content), 4096), ==, sizeof(content));
    test_add("id=ro,driver=raw,file.filename=%s,read-only=on", image);
    g_assert_true(block_nbd_server_add("ro", NULL, false, NULL));
    for (; g_get_monotonic_time() < until; rounds++) {
        int fd = raw_connect();
        size_t n = 0;

        put32(buf, 3);
        n = 4;
        for (int k = g_rand_int_range(r, 0, 8); k > 0; k--) {
            uint32_t len = g_rand_int_range(r, 0, 40);

            memcpy(buf + n, "IHAVEOPT", 8);
            put32(buf + n + 8, g_rand_int_range(r, 2, 12));
            put32(buf + n + 12, len);
            test_fill(r, buf + n + 16, len);
            if (len > 8 && g_rand_boolean(r)) {
                put32(buf + n + 16, 2);
                memcpy(buf + n + 20, "ro", 2);
                put32(buf + n + 22, g_rand_int_range(r, 0, 3));
            }
            n += 16 + len;
        }
        static const uint8_t sr[] = {'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T', 0, 0, 0, 8,
                                     0,   0,   0,   0};
        static const uint8_t go[] = {'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T', 0,   0,   0, 7,
                                     0,   0,   0,   8,   0,   0,   0,   2,   'r', 'o', 0, 0};
        if (g_rand_boolean(r)) {
            memcpy(buf + n, sr, sizeof(sr));
            n += sizeof(sr);
        }
        memcpy(buf + n, go, sizeof(go));
        n += sizeof(go);
        for (int k = g_rand_int_range(r, 0, 60); k > 0; k--) {
            uint16_t command = g_rand_int_range(r, 0, 9);
            uint32_t len = g_rand_int(r);
            uint64_t off = (uint64_t)g_rand_int(r) << 32;

            len = g_rand_int_range(r, 0, 4) ? len % 600 : len;
            off = g_rand_int_range(r, 0, 4) ? (off >> 32) % (33 * MIB) : off;

            request(buf + n, command, k, off, len);
            put16(buf + n + 4, g_rand_int_range(r, 0, 4) ? 0 : g_rand_int(r));
            n += 28;
            if (command == NBD_CMD_WRITE && len < 600) {
                test_fill(r, buf + n, len);
                n += len;
            }
        }
        if (g_rand_boolean(r)) {
            buf[g_rand_int_range(r, 0, n)] ^= 1 << g_rand_int_range(r, 0, 8);
        }
        g_assert_cmpuint(n, <, 1 << 17);
        (void)!send(fd, buf, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        for (int k = g_rand_int_range(r, 0, 4); k > 0; k--) {
            struct pollfd p = {.fd = fd, .events = POLLIN};

            if (poll(&p, 1, 2) == 1 && recv(fd, sink, 1 << 17, MSG_DONTWAIT) <= 0) {
                break;
            }
        }
        close(fd);
    }
    g_test_message("%u connections", rounds);
    g_assert_cmpuint(rounds, >, 50);
    others_served();
    uint8_t now[sizeof(content)];
    g_assert_cmpint(pread(img, now, sizeof(now), 4096), ==, sizeof(now));
    g_assert_cmpmem(now, sizeof(now), content, sizeof(content));
    close(img);
    /* All of them are gone, and what they held with them. */
    for (int i = 0; i < 200; i++) {
        block_lock();
        bool idle = nbd_pool_used() == 0;
        block_unlock();
        if (idle) {
            end();
            return;
        }
        g_usleep(5000);
    }
    g_error("connections that have gone still hold memory");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/block/nbd-limits/pipelined", test_pipelined);
    g_test_add_func("/block/nbd-limits/slow-reader", test_slow_reader);
    g_test_add_func("/block/nbd-limits/half", test_half);
    g_test_add_func("/block/nbd-limits/deaf-negotiator", test_deaf_negotiator);
    g_test_add_func("/block/nbd-limits/max-connections", test_max_connections);
    g_test_add_func("/block/nbd-limits/features", test_features);
    g_test_add_func("/block/nbd-limits/fuzz", test_fuzz);
    return g_test_run();
}
