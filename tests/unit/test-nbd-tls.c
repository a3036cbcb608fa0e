/*
 * NBD over TLS: our server with stock clients, our client with stock servers.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block-test.h"
#include "tls-test.h"

#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define MIB (1024 * 1024)

static char *pki_root, *pki, *other, *psk;

static bool prepare(void)
{
    if (!tls_tools()) {
        return false;
    }
    if (!pki_root) {
        pki_root = g_dir_make_tmp("colo-nbdtls-XXXXXX", NULL);
        pki = g_build_filename(pki_root, "pki", NULL);
        other = g_build_filename(pki_root, "other", NULL);
        psk = g_build_filename(pki_root, "psk", NULL);
        tls_pki(pki);
        tls_pki(other);
        tls_psk(psk, "qemu");
    }
    return true;
}

static int free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_assert_cmpint(bind(fd, (struct sockaddr *)&a, sizeof(a)), ==, 0);
    getsockname(fd, (struct sockaddr *)&a, &len);
    close(fd);
    return ntohs(a.sin_port);
}

/* A command that must fail; what it said. */
static char *run_fails(const char *fmt, ...) G_GNUC_PRINTF(1, 2);
static char *run_fails(const char *fmt, ...)
{
    g_autofree char *out = NULL, *words = NULL;
    int status = 0;
    va_list ap;

    va_start(ap, fmt);
    g_autofree char *cmd = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_assert_true(g_spawn_command_line_sync(cmd, &out, &words, &status, NULL));
    if (status == 0) {
        g_error("%s: succeeded: %s%s", cmd, out, words);
    }
    return g_strconcat(out, words, NULL);
}

static int serve(const char *creds)
{
    int port = free_port();
    g_autoptr(JsonObject) addr = test_opts("type=inet,data.host=127.0.0.1,data.port=%d", port);
    g_autoptr(GError) err = NULL;

    block_nbd_server_start(addr, creds, 0, &err);
    g_assert_no_error(err);
    block_nbd_server_add("d0", NULL, true, &err);
    g_assert_no_error(err);
    return port;
}

static int raw_connect(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    a.sin_port = htons(port);
    g_assert_cmpint(connect(fd, (struct sockaddr *)&a, sizeof(a)), ==, 0);
    return fd;
}

static size_t option(uint8_t *p, uint32_t opt, const void *data, uint32_t len)
{
    uint32_t be[2] = {g_htonl(opt), g_htonl(len)};

    memcpy(p, "IHAVEOPT", 8);
    memcpy(p + 8, be, 8);
    memcpy(p + 16, data, len);
    return 16 + len;
}

static void test_server(void)
{
    if (!prepare()) {
        return;
    }
    block_test_begin();
    g_autofree char *path = test_image("a.raw", 24 * MIB), *copy = test_path("copy.raw");
    g_autofree uint8_t *a = g_malloc(24 * MIB), *b = g_malloc(24 * MIB);
    g_autoptr(GRand) r = g_rand_new_with_seed(5);

    tls_object_good("tls-creds-x509,id=srv,dir=%s,endpoint=server", pki);
    tls_object_good("tls-creds-x509,id=cli,dir=%s,endpoint=client", pki);
    test_add("id=d0,driver=raw,file.filename=%s,discard=unmap", path);
    g_autoptr(JsonObject) any = test_opts("type=inet,data.host=127.0.0.1,data.port=0");
    g_autoptr(GError) err = NULL;
    g_assert_false(block_nbd_server_start(any, "cli", 0, &err));
    g_assert_nonnull(strstr(err->message, "endpoint"));
    g_clear_error(&err);
    g_assert_false(block_nbd_server_start(any, "none", 0, &err));
    g_assert_nonnull(strstr(err->message, "none"));
    int port = serve("srv");

    /* Both directions, more than any buffer holds. */
    test_fill(r, b, 24 * MIB);
    g_file_set_contents(copy, (char *)b, 24 * MIB, NULL);
    g_free(test_run("nbdcopy --flush %s nbds://localhost:%d/d0?tls-certificates=%s", copy, port,
                    pki));
    test_file_read(path, a, 24 * MIB);
    g_assert_cmpmem(a, 24 * MIB, b, 24 * MIB);
    g_unlink(copy);
    g_free(test_run("nbdcopy nbds://127.0.0.1:%d/d0?tls-certificates=%s %s", port, pki, copy));
    test_file_read(copy, a, 24 * MIB);
    g_assert_cmpmem(a, 24 * MIB, b, 24 * MIB);
    g_autofree char *io = test_run(
        "qemu-io --object tls-creds-x509,id=t,dir=%s,endpoint=client --image-opts -c 'write -P "
        "0x5a 1M 2M' -c 'write -z 2M 64k' -c flush -c 'read -P 0x5a 1M 1M' -c 'read -P 0 2M 64k' "
        "driver=nbd,host=localhost,port=%d,export=d0,tls-creds=t", pki, port);
    g_assert_null(strstr(io, "failed"));
    g_autofree char *info = test_run("nbdinfo nbds://localhost:%d/d0?tls-certificates=%s", port,
                                     pki);
    g_assert_nonnull(strstr(info, "TLS"));

    /* Who does not get in. */
    g_free(run_fails("nbdinfo --list nbd://localhost:%d", port));
    g_free(run_fails("nbdinfo nbd://localhost:%d/d0", port));
    g_free(run_fails("qemu-img info nbd://localhost:%d/d0", port));
    g_free(run_fails("nbdinfo nbds://localhost:%d/d0?tls-certificates=%s", port, other));
    g_autofree char *bare = g_build_filename(pki_root, "bare", NULL);
    g_mkdir(bare, 0700);
    tls_run("cp %s/ca-cert.pem %s", pki, bare);
    g_free(run_fails("nbdinfo nbds://localhost:%d/d0?tls-certificates=%s", port, bare));

    /* In clear text nothing is told, and nothing said before TLS is believed after it. */
    uint8_t buf[512] = {0, 0, 0, 3}, in[512];
    int fd = raw_connect(port);
    size_t n = 4 + option(buf + 4, 3 /* LIST */, "", 0);
    g_assert_cmpint(write(fd, buf, n), ==, n);
    g_assert_cmpint(recv(fd, in, 18 + 20, MSG_WAITALL), ==, 38);
    g_assert_cmpmem(in + 18 + 12, 4, "\x80\0\0\5", 4);
    close(fd);
    fd = raw_connect(port);
    n = 4 + option(buf + 4, 1 /* EXPORT_NAME */, "d0", 2);
    g_assert_cmpint(write(fd, buf, n), ==, n);
    g_assert_cmpint(recv(fd, in, 20, MSG_WAITALL), ==, 18);
    close(fd);
    fd = raw_connect(port);
    n = 4 + option(buf + 4, 5 /* STARTTLS */, "", 0);
    n += option(buf + n, 3 /* LIST, injected */, "", 0);
    g_assert_cmpint(write(fd, buf, n), ==, n);
    ssize_t got = recv(fd, in, sizeof(in), MSG_WAITALL);
    g_assert_cmpint(got, ==, 18);
    close(fd);

    /* They do not keep it from serving. */
    fd = raw_connect(port);
    n = 4 + option(buf + 4, 5, "", 0);
    g_assert_cmpint(write(fd, buf, n), ==, n);
    g_free(test_run("nbdinfo nbds://localhost:%d/d0?tls-certificates=%s", port, pki));
    close(fd);
    g_assert_false(tls_object_del("srv", NULL));
    g_assert_true(block_nbd_server_stop(NULL));
    g_assert_true(tls_object_del("srv", NULL));

    /* Without credentials STARTTLS is refused, clear text goes on. */
    port = serve(NULL);
    g_free(run_fails("nbdinfo nbds://localhost:%d/d0?tls-certificates=%s", port, pki));
    g_free(test_run("nbdinfo nbd://localhost:%d/d0", port));
    block_test_end();
    tls_objects_clear();
}

static void test_server_psk(void)
{
    if (!prepare()) {
        return;
    }
    block_test_begin();
    g_autofree char *path = test_image("a.raw", 2 * MIB);
    g_autofree char *wrong = g_build_filename(pki_root, "wrong", NULL);

    tls_psk(wrong, "qemu");
    tls_object_good("tls-creds-psk,id=srv,dir=%s,endpoint=server", psk);
    test_add("id=d0,driver=raw,file.filename=%s", path);
    int port = serve("srv");
    g_free(test_run("nbdinfo nbds://qemu@localhost:%d/d0?tls-psk-file=%s/keys.psk", port, psk));
    g_free(run_fails("nbdinfo nbds://qemu@localhost:%d/d0?tls-psk-file=%s/keys.psk", port, wrong));
    g_autofree char *io = test_run(
        "qemu-io --object tls-creds-psk,id=t,dir=%s,endpoint=client --image-opts -c 'write -P "
        "0x5a 1M 64k' -c 'read -P 0x5a 1M 64k' "
        "driver=nbd,host=localhost,port=%d,export=d0,tls-creds=t", psk, port);
    g_assert_null(strstr(io, "failed"));
    block_test_end();
    tls_objects_clear();
}

/* --- Our client --- */

/* A stock server on a port, up when this returns. */
static GPid start_qemu_nbd(const char *object, const char *image, int port)
{
    g_autofree char *p = g_strdup_printf("%d", port);
    const char *argv[] = {"qemu-nbd", "--object", object, "--tls-creds", "t", "-b", "127.0.0.1",
                          "-p", p, "-t", "-e", "4", "-x", "e", "-f", "raw", image, NULL};
    g_autoptr(GError) err = NULL;
    GPid pid;

    g_spawn_async(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD,
                  NULL, NULL, &pid, &err);
    g_assert_no_error(err);
    for (int i = 0; i < 500; i++) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        bool up = connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0;

        close(fd);
        if (up) {
            return pid;
        }
        g_usleep(10000);
    }
    g_error("qemu-nbd did not come up");
}

static void stop(GPid pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void test_client_x509(void)
{
    if (!prepare()) {
        return;
    }
    block_test_begin();
    g_autofree char *path = test_image("a.raw", 8 * MIB), *sock = test_path("s");
    g_autofree char *object =
        g_strdup_printf("tls-creds-x509,id=t,dir=%s,endpoint=server", pki);
    g_autofree uint8_t *a = g_malloc(8 * MIB), *b = g_malloc(8 * MIB);
    g_autoptr(GRand) r = g_rand_new_with_seed(6);
    int port = free_port();
    GPid pid = start_qemu_nbd(object, path, port);

    tls_object_good("tls-creds-x509,id=cli,dir=%s,endpoint=client", pki);
    tls_object_good("tls-creds-x509,id=srv,dir=%s,endpoint=server", pki);
    tls_object_good("tls-creds-x509,id=foreign,dir=%s,endpoint=client", other);
    tls_object_good("tls-creds-x509,id=prio,dir=%s,endpoint=client,priority=NORMAL", pki);
    test_add("node-name=n,driver=nbd,server.type=inet,server.host=localhost,server.port=%d,"
             "export=e,tls-creds=cli", port);
    test_fill(r, b, 8 * MIB);
    g_assert_cmpint(test_io("n", BLOCK_OP_WRITE, 0, 8 * MIB, b), ==, 0);
    g_assert_cmpint(test_io("n", BLOCK_OP_READ, 0, 8 * MIB, a), ==, 0);
    g_assert_cmpmem(a, 8 * MIB, b, 8 * MIB);
    g_assert_cmpint(test_io("n", BLOCK_OP_FLUSH, 0, 0, NULL), ==, 0);
    test_file_read(path, a, 8 * MIB);
    g_assert_cmpmem(a, 8 * MIB, b, 8 * MIB);
    g_assert_false(tls_object_del("cli", NULL));

#define BAD(word, ...) test_add_fails(word, "node-name=x,driver=nbd,export=e," __VA_ARGS__)
    BAD("", "server.type=inet,server.host=localhost,server.port=%d", port);
    BAD("endpoint", "server.type=inet,server.host=localhost,server.port=%d,tls-creds=srv", port);
    BAD("nobody", "server.type=inet,server.host=localhost,server.port=%d,tls-creds=nobody", port);
    BAD("foreign", "server.type=inet,server.host=localhost,server.port=%d,tls-creds=foreign",
        port);
    BAD("priority", "server.type=inet,server.host=localhost,server.port=%d,tls-creds=prio", port);
    BAD("tls-hostname", "server.type=inet,server.host=localhost,server.port=%d,tls-creds=cli,"
        "tls-hostname=x", port);
    /* Another name of this host, which the certificate does not have. */
    BAD("cli", "server.type=inet,server.host=127.1,server.port=%d,tls-creds=cli", port);
    BAD("unix socket", "server.type=unix,server.path=%s,tls-creds=cli", sock);
    stop(pid);
    /* The connection is gone: errors, not silence. */
    g_assert_cmpint(test_io("n", BLOCK_OP_READ, 0, 512, a), ==, -EIO);
    g_assert_true(block_node_del("n", NULL));
    g_assert_true(tls_object_del("cli", NULL));
    block_test_end();
    tls_objects_clear();
}

static void test_client_psk(void)
{
    if (!prepare()) {
        return;
    }
    block_test_begin();
    g_autofree char *path = test_image("a.raw", MIB);
    g_autofree char *object = g_strdup_printf("tls-creds-psk,id=t,dir=%s,endpoint=server", psk);
    int port = free_port();
    GPid pid = start_qemu_nbd(object, path, port);
    uint8_t buf[512];

    tls_object_good("tls-creds-psk,id=cli,dir=%s,endpoint=client", psk);
    test_add("node-name=n,driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=%d,"
             "export=e,tls-creds=cli", port);
    g_assert_cmpint(test_io("n", BLOCK_OP_READ, 0, 512, buf), ==, 0);
    stop(pid);
    block_test_end();
    tls_objects_clear();
}

/* A server that accepts and says nothing, in clear text or after STARTTLS: bounded. */
static void test_client_bounded(void)
{
    if (!prepare()) {
        return;
    }
    block_test_begin();
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_assert_cmpint(bind(fd, (struct sockaddr *)&a, sizeof(a)), ==, 0);
    listen(fd, 5);
    getsockname(fd, (struct sockaddr *)&a, &len);
    tls_object_good("tls-creds-x509,id=cli,dir=%s,endpoint=client", pki);
    gint64 begin = g_get_monotonic_time();
    test_add_fails("answer", "node-name=x,driver=nbd,export=e,server.type=inet,"
                   "server.host=localhost,server.port=%d,tls-creds=cli", ntohs(a.sin_port));
    g_assert_cmpint(g_get_monotonic_time() - begin, <, 30 * G_USEC_PER_SEC);
    close(fd);
    block_test_end();
    tls_objects_clear();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/block/nbd-tls/server", test_server);
    g_test_add_func("/block/nbd-tls/server-psk", test_server_psk);
    g_test_add_func("/block/nbd-tls/client-x509", test_client_x509);
    g_test_add_func("/block/nbd-tls/client-psk", test_client_psk);
    g_test_add_func("/block/nbd-tls/client-bounded", test_client_bounded);
    int r = g_test_run();
    if (pki_root) {
        tls_run("rm -rf %s", pki_root);
    }
    return r;
}
