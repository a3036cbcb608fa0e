/*
 * NBD clients and servers that fail: errors keep their meaning, every request ends exactly once,
 * lost connections come back.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block-test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#define MIB (1024 * 1024)

static bool have_nbdkit(void)
{
    g_autofree char *path = g_find_program_in_path("nbdkit");

    if (!path) {
        g_test_skip("nbdkit is not installed");
    }
    return path != NULL;
}

/* nbdkit on "s" in the test's directory, up when this returns. */
static GPid nbdkit(const char *words)
{
    g_autofree char *sock = test_path("s");
    g_autofree char *cmd = g_strdup_printf("nbdkit -f -U %s %s", sock, words);
    g_auto(GStrv) argv = g_strsplit(cmd, " ", -1);
    g_autoptr(GError) err = NULL;
    GPid pid;

    unlink(sock);
    g_spawn_async(NULL, argv, NULL,
                  G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_STDERR_TO_DEV_NULL,
                  NULL, NULL, &pid, &err);
    g_assert_no_error(err);
    /* The socket is there before it listens. */
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    g_strlcpy(addr.sun_path, sock, sizeof(addr.sun_path));
    for (int i = 0, r = -1; i < 1000 && r < 0; i++) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        r = connect(fd, (struct sockaddr *)&addr, sizeof(addr));
        close(fd);
        if (r < 0) {
            g_usleep(5000);
        }
    }
    return pid;
}

static void stop(GPid pid, int sig)
{
    kill(pid, sig);
    waitpid(pid, NULL, 0);
}

#define ADD(more) test_add("node-name=n,driver=nbd,server.type=unix,server.path=%s" more, sock)

static void test_errors(void)
{
    static const struct {
        const char *name;
        int want;
    } errors[] = {{"ENOSPC", -ENOSPC}, {"EIO", -EIO}, {"EPERM", -EPERM},
                  {"EINVAL", -EINVAL}, {"ENOMEM", -ENOMEM}, {"ESHUTDOWN", -EIO}};
    uint8_t buf[512] = {0};

    if (!have_nbdkit()) {
        return;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(errors); i++) {
        block_test_begin();
        g_autofree char *sock = test_path("s");
        g_autofree char *words = g_strdup_printf(
            "--filter=error memory 1M error=%s error-rate=100%%", errors[i].name);
        GPid pid = nbdkit(words);

        ADD("");
        g_assert_cmpint(test_io("n", BLOCK_OP_WRITE, 0, 512, buf), ==, errors[i].want);
        g_assert_cmpint(test_io("n", BLOCK_OP_READ, 0, 512, buf), ==, errors[i].want);
        g_assert_cmpint(test_io("n", BLOCK_OP_ZEROES, 0, 512, NULL), ==, errors[i].want);
        stop(pid, SIGKILL);
        block_test_end();
    }
}

/* A secondary that refuses the forwarder's writes: protection ends, the disk goes on. */
static gint fatal;
static char *said;

static void note(bool is_fatal, const char *message, void *opaque)
{
    g_free(said);
    said = g_strdup(message);
    g_atomic_int_add(&fatal, is_fatal);
}

static void test_secondary_refuses(void)
{
    if (!have_nbdkit()) {
        return;
    }
    block_test_begin();
    g_autofree char *sock = test_path("s"), *a = test_image("a.raw", MIB);
    g_autoptr(GError) err = NULL;
    uint8_t buf[4096] = {1};
    GPid pid = nbdkit("--filter=error memory 1M error-pwrite=ENOSPC error-pwrite-rate=100%");

    test_add("id=q,driver=quorum,vote-threshold=1,read-pattern=fifo,children.0.driver=raw,"
             "children.0.file.filename=%s", a);
    g_assert_nonnull(block_serve_child("q", &err));
    test_add("driver=replication,mode=primary,node-name=r,file.driver=nbd,"
             "file.server.type=unix,file.server.path=%s", sock);
    g_assert_true(block_change("q", NULL, "r", &err));
    g_assert_true(block_primary_start(note, NULL, &err));
    for (int i = 0; i < 20; i++) {
        g_assert_cmpint(test_io("q", BLOCK_OP_WRITE, i * 4096, 4096, buf), ==, 0);
    }
    for (int i = 0; i < 200 && !g_atomic_int_get(&fatal); i++) {
        g_usleep(5000);
    }
    block_lock();
    g_assert_cmpint(fatal, ==, 1);
    g_assert_nonnull(strstr(said, "write: No space left on device"));
    block_unlock();
    stop(pid, SIGKILL);
    block_test_end();
}

typedef struct Many {
    BlockRequest req;
    uint8_t data[4096];
    int ended, ret;
} Many;

static gint many_left;

static void many_done(BlockRequest *req, int ret)
{
    Many *m = req->opaque;

    m->ended++;
    m->ret = ret;
    g_atomic_int_add(&many_left, -1);
}

/* Requests before, while and after the server dies. */
static void test_death(void)
{
    if (!have_nbdkit()) {
        return;
    }
    const int n = 4000;
    g_autofree Many *many = g_new0(Many, n);

    for (int round = 0; round < 6; round++) {
        block_test_begin();
        g_autofree char *sock = test_path("s");
        GPid pid = nbdkit("memory 16M");
        int bad = 0;

        ADD("");
        BlockNode *node = test_node("n");
        memset(many, 0, n * sizeof(*many));
        g_atomic_int_set(&many_left, n);
        for (int i = 0; i < n; i++) {
            many[i].req = (BlockRequest){.op = i % 3 ? BLOCK_OP_WRITE : BLOCK_OP_READ,
                                         .offset = (i % 4096) * 4096, .bytes = 4096,
                                         .data = many[i].data, .done = many_done,
                                         .opaque = &many[i]};
            block_lock();
            block_submit(node, &many[i].req);
            g_main_context_wakeup(io_thread_context(block_thread()));
            block_unlock();
            if (i == n / 2 + 100 * round) {
                kill(pid, SIGKILL);
            }
        }
        for (int i = 0; i < 1000 && g_atomic_int_get(&many_left) > 0; i++) {
            g_usleep(5000);
        }
        waitpid(pid, NULL, 0);
        block_lock();
        for (int i = 0; i < n; i++) {
            g_assert_cmpint(many[i].ended, ==, 1);
            g_assert_true(many[i].ret == 0 || many[i].ret == -EIO);
            bad += many[i].ret < 0;
        }
        block_unlock();
        g_assert_cmpint(bad, >, 0);
        block_test_end();
    }
}

static void test_reconnect(void)
{
    if (!have_nbdkit()) {
        return;
    }
    block_test_begin();
    g_autofree char *sock = test_path("s"), *image = test_image("d.raw", MIB);
    g_autofree char *words = g_strdup_printf("file %s", image);
    g_autofree char *other = test_image("e.raw", 2 * MIB);
    uint8_t buf[512] = {7}, got[512] = {0};
    GPid pid = nbdkit(words);

    /* At once an error, and again a disk when the server is back. */
    ADD("");
    g_assert_cmpint(test_io("n", BLOCK_OP_WRITE, 0, 512, buf), ==, 0);
    stop(pid, SIGKILL);
    g_assert_cmpint(test_io("n", BLOCK_OP_READ, 0, 512, got), ==, -EIO);
    pid = nbdkit(words);
    int r = -EIO;
    for (int i = 0; i < 400 && r < 0; i++) {
        r = test_io("n", BLOCK_OP_READ, 0, 512, got);
        g_usleep(10000);
    }
    g_assert_cmpint(r, ==, 0);
    g_assert_cmpuint(got[0], ==, 7);
    g_assert_true(block_node_del("n", NULL));

    /* With reconnect-delay they wait. */
    ADD(",reconnect-delay=10");
    Many m = {.req = {.op = BLOCK_OP_WRITE, .bytes = 4096, .data = m.data, .done = many_done,
                      .opaque = &m}};
    memset(m.data, 9, sizeof(m.data));
    g_atomic_int_set(&many_left, 1);
    stop(pid, SIGKILL);
    BlockNode *node = test_node("n");
    block_lock();
    block_submit(node, &m.req);
    g_main_context_wakeup(io_thread_context(block_thread()));
    block_unlock();
    g_usleep(300000);
    g_assert_cmpint(g_atomic_int_get(&many_left), ==, 1);
    pid = nbdkit(words);
    for (int i = 0; i < 1000 && g_atomic_int_get(&many_left); i++) {
        g_usleep(5000);
    }
    g_assert_cmpint(m.ret, ==, 0);
    test_file_read(image, got, 512);
    g_assert_cmpuint(got[0], ==, 9);

    /* Not for ever; and another disk is not taken for the old one. */
    g_assert_true(block_node_del("n", NULL));
    ADD(",reconnect-delay=1");
    stop(pid, SIGKILL);
    g_autofree char *wrong = g_strdup_printf("file %s", other);
    pid = nbdkit(wrong);
    gint64 begin = g_get_monotonic_time();
    g_assert_cmpint(test_io("n", BLOCK_OP_READ, 0, 512, got), ==, -EIO);
    g_assert_cmpint(g_get_monotonic_time() - begin, >, 500000);
    g_assert_cmpint(g_get_monotonic_time() - begin, <, 20000000);
    g_assert_cmpint(test_io("n", BLOCK_OP_READ, 0, 512, got), ==, -EIO);
    stop(pid, SIGKILL);

    /* Closed while it tries. */
    g_assert_true(block_node_del("n", NULL));
    begin = g_get_monotonic_time();
    test_add_fails("", "node-name=n,driver=nbd,server.type=unix,server.path=%s,open-timeout=1",
                   sock);
    g_assert_cmpint(g_get_monotonic_time() - begin, >, 900000);
    block_test_end();
}

/* A way to a server that can be cut: then nobody reads what the client sends. */
typedef struct Way {
    int listener, near, far;
    gint cut;
} Way;

static gpointer way_thread(gpointer opaque)
{
    Way *w = opaque;
    g_autofree char *sock = test_path("s");
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    g_strlcpy(addr.sun_path, sock, sizeof(addr.sun_path));
    w->near = accept(w->listener, NULL, NULL);
    w->far = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(connect(w->far, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    while (!g_atomic_int_get(&w->cut)) {
        struct pollfd pfd[2] = {{w->near, POLLIN, 0}, {w->far, POLLIN, 0}};
        uint8_t buf[4096];

        poll(pfd, 2, 5);
        for (int i = 0; i < 2; i++) {
            ssize_t n = pfd[i].revents ? read(pfd[i].fd, buf, sizeof(buf)) : 0;
            g_assert_cmpint(n, >=, 0);
            g_assert_cmpint(write(pfd[!i].fd, buf, n), ==, n);
        }
    }
    return NULL;
}

/* What was given up while the way was cut does not come when it is mended. */
static void test_given_up(void)
{
    static uint8_t data[4 * MIB], rest[65536];
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(at);
    Way w = {.near = -1};
    ssize_t n;

    if (!have_nbdkit()) {
        return;
    }
    block_test_begin();
    GPid pid = nbdkit("memory 4M");
    w.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(w.listener, (struct sockaddr *)&at, len), ==, 0);
    g_assert_cmpint(listen(w.listener, 1), ==, 0);
    getsockname(w.listener, (struct sockaddr *)&at, &len);
    GThread *t = g_thread_new("way", way_thread, &w);
    test_add("node-name=n,driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=%u",
             ntohs(at.sin_port));
    BlockNode *node = test_node("n");
    g_assert_cmpint(test_io("n", BLOCK_OP_WRITE, 0, 512, data), ==, 0);
    g_atomic_int_set(&w.cut, 1);
    g_thread_join(t);

    Many m = {.req = {.op = BLOCK_OP_WRITE, .bytes = sizeof(data), .data = data,
                      .done = many_done, .opaque = &m}};
    g_atomic_int_set(&many_left, 1);
    block_lock();
    block_submit(node, &m.req);
    g_main_context_wakeup(io_thread_context(block_thread()));
    nbd_client_kill(block_nbd_client(node), "no patience");
    block_unlock();
    g_assert_true(block_node_del("n", NULL));
    while ((n = recv(w.near, rest, sizeof(rest), 0)) > 0) {
    }
    g_assert_cmpint(n, ==, -1);
    g_assert_cmpint(errno, ==, ECONNRESET);
    for (int i = 0; i < 1000 && g_atomic_int_get(&many_left); i++) {
        g_usleep(5000);
    }
    g_assert_cmpint(m.ended, ==, 1);
    close(w.near);
    close(w.far);
    close(w.listener);
    stop(pid, SIGKILL);
    block_test_end();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/block/nbd-client/errors", test_errors);
    g_test_add_func("/block/nbd-client/secondary-refuses", test_secondary_refuses);
    g_test_add_func("/block/nbd-client/death", test_death);
    g_test_add_func("/block/nbd-client/reconnect", test_reconnect);
    g_test_add_func("/block/nbd-client/given-up", test_given_up);
    return g_test_run();
}
