/*
 * TLS credentials and sessions: who gets in, who does not, and bytes that arrive whole over a
 * socket that takes little at a time.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "tls-test.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char *dir; /* of all tests */
static char *pki, *other, *psk;

static bool prepare(void)
{
    if (!tls_tools()) {
        return false;
    }
    if (!dir) {
        dir = g_dir_make_tmp("colo-tls-XXXXXX", NULL);
        pki = g_build_filename(dir, "pki", NULL);
        other = g_build_filename(dir, "other", NULL);
        psk = g_build_filename(dir, "psk", NULL);
        tls_pki(pki);
        tls_pki(other);
        tls_psk(psk, "alice");
    }
    return true;
}

static void sockets(int fd[2])
{
    int small = 4096;

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd), ==,
                    0);
    setsockopt(fd[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
    setsockopt(fd[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
}

static TlsSession *session(const char *id, bool server, int fd, const char *host)
{
    g_autoptr(GError) err = NULL;
    g_autoptr(TlsCreds) c = tls_creds_get(id, server, &err);

    g_assert_no_error(err);
    TlsSession *s = tls_session_new(c, fd, host, &err);
    g_assert_no_error(err);
    return s;
}

/* Both handshakes; 1 if both are content, with the losers' words otherwise. */
static int shake(TlsSession *a, TlsSession *b, GError **ea, GError **eb)
{
    int ra = 0, rb = 0;

    for (int i = 0; i < 1000 && (ra == 0 || rb == 0) && ra >= 0 && rb >= 0; i++) {
        ra = ra ? ra : tls_session_handshake(a, ea);
        rb = rb ? rb : tls_session_handshake(b, eb);
    }
    return ra == 1 && rb == 1;
}

/* The handshake of @server and @client objects; the server's, then the client's complaint. */
static char *try_pair(const char *server, const char *client, const char *host)
{
    g_autoptr(GError) es = NULL, ec = NULL;
    int fd[2];

    sockets(fd);
    g_autoptr(TlsSession) s = session(server, true, fd[0], NULL);
    g_autoptr(TlsSession) c = session(client, false, fd[1], host);
    int good = shake(s, c, &es, &ec);
    close(fd[0]);
    close(fd[1]);
    return good ? NULL : g_strdup_printf("%s | %s", es ? es->message : "", ec ? ec->message : "");
}

static void expect(const char *server, const char *client, const char *host, const char *word)
{
    g_autofree char *said = try_pair(server, client, host);

    if (!word) {
        g_assert_cmpstr(said, ==, NULL);
    } else if (!said || !strstr(said, word)) {
        g_error("%s to %s: '%s' not in '%s'", client, server, word, said ? said : "(no error)");
    } else {
        g_test_message("%s", said);
    }
}

static void test_x509(void)
{
    if (!prepare()) {
        return;
    }
    g_autofree char *bare = g_build_filename(dir, "bare", NULL);

    g_mkdir(bare, 0700);
    tls_run("cp %s/ca-cert.pem %s", pki, bare);
    tls_object_good("tls-creds-x509,id=srv,dir=%s,endpoint=server", pki);
    tls_object_good("tls-creds-x509,id=open,dir=%s,endpoint=server,verify-peer=off", pki);
    tls_object_good("tls-creds-x509,id=cli,dir=%s,endpoint=client", pki);
    tls_object_good("tls-creds-x509,id=bare,dir=%s,endpoint=client", bare);
    tls_object_good("tls-creds-x509,id=foreign,dir=%s,endpoint=client", other);
    tls_object_good("tls-creds-x509,id=credulous,dir=%s,endpoint=client,verify-peer=off", other);
    expect("srv", "cli", "localhost", NULL);
    expect("srv", "cli", "127.0.0.1", NULL);
    expect("srv", "cli", "elsewhere", "refused");
    expect("srv", "bare", "localhost", "ertificate");
    expect("open", "bare", "localhost", NULL);
    expect("open", "bare", "127.0.0.2", "refused");
    expect("srv", "foreign", "localhost", "refused");
    expect("open", "foreign", "localhost", "refused");
    expect("open", "credulous", "whatever", NULL);
    expect("srv", "credulous", "localhost", "refused");
    tls_objects_clear();
}

/* What is wrong with files is said when the object is made. */
static void test_creds(void)
{
    if (!prepare()) {
        return;
    }
    g_autofree char *d = g_build_filename(dir, "bad", NULL);
    g_autofree char *key = g_build_filename(d, "server-key.pem", NULL);
    g_autofree char *cert = g_build_filename(d, "server-cert.pem", NULL);
    g_autoptr(GError) err = NULL;

    tls_cert_full(d, pki, "server", TLS_SERVER_LINES, NULL);
    g_chmod(key, 0644);
    tls_object_bad("mode 0644", "tls-creds-x509,id=x,dir=%s,endpoint=server", d);
    g_chmod(key, 0640);
    tls_object_good("tls-creds-x509,id=x,dir=%s,endpoint=server", d);
    tls_object_bad("duplicate", "tls-creds-x509,id=x,dir=%s,endpoint=server", d);
    g_assert_true(tls_object_del("x", NULL));
    tls_object_bad("'bogus'", "tls-creds-x509,id=x,dir=%s,endpoint=client,bogus=client-cert",
                   d);
    tls_object_good("tls-creds-x509,id=x,dir=%s,endpoint=client", d);
    g_assert_true(tls_object_del("x", NULL));
    tls_cert_full(d, pki, "server", TLS_CLIENT_LINES, NULL);
    tls_object_bad("no server certificate", "tls-creds-x509,id=x,dir=%s,endpoint=server", d);
    tls_cert_full(d, pki, "server",
                  "dns_name = localhost\ntls_www_server\n"
                  "activation_date = \"2001-01-01 00:00:00\"\n"
                  "expiration_date = \"2002-01-01 00:00:00\"\n", NULL);
    tls_object_bad("expired", "tls-creds-x509,id=x,dir=%s,endpoint=server", d);
    tls_run("cp %s/server-cert.pem %s/server-key.pem %s", other, other, d);
    tls_object_bad("ca-cert.pem", "tls-creds-x509,id=x,dir=%s,endpoint=server", d);
    g_file_set_contents(cert, "nonsense", -1, NULL);
    tls_object_bad("server-cert.pem", "tls-creds-x509,id=x,dir=%s,endpoint=server", d);
    g_unlink(cert);
    tls_object_bad("server-cert.pem", "tls-creds-x509,id=x,dir=%s,endpoint=server", d);
    tls_object_bad("dir", "tls-creds-x509,id=x,endpoint=server");
    tls_object_bad("endpoint", "tls-creds-x509,id=x,dir=%s,endpoint=both", pki);
    tls_object_bad("priority", "tls-creds-x509,id=x,dir=%s,priority=NORMAL:+NOTHING-SUCH", pki);
    tls_object_bad("not supported", "tls-creds-anon,id=x,endpoint=server");

    /* A key with a password. */
    tls_cert_full(d, pki, "server", TLS_SERVER_LINES, "sesame");
    tls_object_bad("passwordid", "tls-creds-x509,id=x,dir=%s,endpoint=server", d);
    tls_object_bad("no secret", "tls-creds-x509,id=x,dir=%s,endpoint=server,passwordid=s", d);
    tls_object_good("secret,id=s,data=sesame");
    tls_object_good("secret,id=b,data=c2VzYW1l,format=base64");
    tls_object_good("secret,id=w,data=barley");
    tls_object_bad("server-key", "tls-creds-x509,id=x,dir=%s,endpoint=server,passwordid=w", d);
    tls_object_good("tls-creds-x509,id=x,dir=%s,endpoint=server,passwordid=s", d);
    tls_object_good("tls-creds-x509,id=y,dir=%s,endpoint=server,passwordid=b", d);
    tls_object_good("tls-creds-x509,id=cli,dir=%s,endpoint=client", pki);
    expect("x", "cli", "localhost", NULL);
    expect("y", "cli", "localhost", NULL);

    g_assert_null(tls_creds_get("x", false, &err));
    g_assert_nonnull(strstr(err->message, "endpoint"));
    g_clear_error(&err);
    g_assert_null(tls_creds_get("s", true, &err));
    g_clear_error(&err);
    g_assert_null(tls_creds_get("nobody", true, &err));
    g_clear_error(&err);
    TlsCreds *held = tls_creds_get("x", true, NULL);
    g_assert_false(tls_object_del("x", &err));
    g_assert_nonnull(strstr(err->message, "in use"));
    tls_creds_unref(held);
    g_assert_true(tls_object_del("x", NULL));
    g_assert_false(tls_object_exists("x"));
    tls_objects_clear();
}

static void test_psk(void)
{
    if (!prepare()) {
        return;
    }
    g_autofree char *wrong = g_build_filename(dir, "psk2", NULL);
    g_autofree char *file = g_build_filename(psk, "keys.psk", NULL);

    tls_psk(wrong, "alice");
    tls_psk(wrong, "mallory");
    tls_object_good("tls-creds-psk,id=srv,dir=%s,endpoint=server", psk);
    tls_object_good("tls-creds-psk,id=cli,dir=%s,endpoint=client,username=alice", psk);
    tls_object_bad("no key of user 'qemu'", "tls-creds-psk,id=no,dir=%s,endpoint=client", psk);
    tls_object_good("tls-creds-psk,id=bad,dir=%s,endpoint=client,username=alice", wrong);
    tls_object_good("tls-creds-psk,id=who,dir=%s,endpoint=client,username=mallory", wrong);
    expect("srv", "cli", NULL, NULL);
    expect("srv", "bad", NULL, "TLS");
    expect("srv", "who", NULL, "TLS");
    g_chmod(file, 0604);
    tls_object_bad("mode 0604", "tls-creds-psk,id=open,dir=%s,endpoint=server", psk);
    g_chmod(file, 0600);
    tls_objects_clear();
}

typedef struct Pump {
    TlsSession *s;
    GRand *r;
    uint8_t *out, *in;
    size_t sent, got, total;
    unsigned again;
} Pump;

static bool pump(Pump *p)
{
    bool moved = false;

    if (p->sent < p->total) {
        /* In pieces, some of them of several parts; more of them after EAGAIN than before. */
        size_t some = g_rand_int_range(p->r, 1, 60000); /* MIN() would roll twice */
        size_t n = MIN(p->total - p->sent, some);
        struct iovec iov[2] = {{p->out + p->sent, MIN(n, 28)},
                               {p->out + p->sent + 28, n > 28 ? n - 28 : 0}};
        ssize_t r = g_rand_boolean(p->r) ? tls_session_sendv(p->s, iov, n > 28 ? 2 : 1)
                                         : tls_session_send(p->s, p->out + p->sent, n);

        g_assert_true(r > 0 || errno == EAGAIN);
        p->again += r < 0;
        p->sent += MAX(r, 0);
        moved = r > 0;
    }
    if (p->got < p->total) {
        size_t some = g_rand_int_range(p->r, 1, 40000);
        size_t n = MIN(p->total - p->got, some);
        size_t pending = tls_session_pending(p->s);
        ssize_t r = tls_session_recv(p->s, p->in + p->got, n);

        g_assert_true(r > 0 || (errno == EAGAIN && !pending));
        p->got += MAX(r, 0);
        moved |= r > 0;
    }
    return moved;
}

static void test_bytes(void)
{
    if (!prepare()) {
        return;
    }
    const size_t total = 6 << 20;
    g_autoptr(GRand) r = g_rand_new();
    int fd[2];

    tls_object_good("tls-creds-x509,id=srv,dir=%s,endpoint=server", pki);
    tls_object_good("tls-creds-x509,id=cli,dir=%s,endpoint=client", pki);
    sockets(fd);
    TlsSession *s = session("srv", true, fd[0], NULL);
    TlsSession *c = session("cli", false, fd[1], "localhost");
    uint8_t early[4];
    g_assert_cmpint(tls_session_send(s, "x", 1), ==, -1);
    g_assert_cmpint(tls_session_recv(s, early, 4), ==, -1);
    g_assert_cmpint(shake(s, c, NULL, NULL), ==, 1);
    g_autofree char *what = tls_session_describe(s);
    g_assert_nonnull(strstr(what, "TLS1.3"));

    Pump p[2] = {{.s = s}, {.s = c}};
    for (int i = 0; i < 2; i++) {
        p[i].r = r;
        p[i].total = total;
        p[i].out = g_malloc(total);
        p[i].in = g_malloc0(total);
        for (size_t k = 0; k < total; k += 4) {
            guint32 x = g_rand_int(r);
            memcpy(p[i].out + k, &x, 4);
        }
    }
    unsigned idle = 0;
    while (p[0].got < total || p[1].got < total) {
        bool moved = pump(&p[0]);
        moved |= pump(&p[1]);
        idle = moved ? 0 : idle + 1;
        g_assert_cmpuint(idle, <, 100);
    }
    g_assert_cmpmem(p[0].in, total, p[1].out, total);
    g_assert_cmpmem(p[1].in, total, p[0].out, total);
    g_assert_cmpuint(p[0].again, >, 0);
    for (int i = 0; i < 2; i++) {
        g_free(p[i].in);
        g_free(p[i].out);
    }
    /* An orderly end is told from a cut line. */
    tls_session_free(c);
    g_assert_cmpint(tls_session_recv(s, early, 4), ==, 0);
    tls_session_free(s);
    close(fd[0]);
    close(fd[1]);

    sockets(fd);
    s = session("srv", true, fd[0], NULL);
    c = session("cli", false, fd[1], "localhost");
    g_assert_cmpint(shake(s, c, NULL, NULL), ==, 1);
    tls_session_recv(c, early, 4); /* TLS 1.3's tickets */
    shutdown(fd[1], SHUT_RDWR);
    close(fd[1]);
    g_assert_cmpint(tls_session_recv(s, early, 4), ==, -1);
    g_assert_cmpint(errno, ==, ECONNRESET);
    g_assert_cmpint(tls_session_send(s, "x", 1), ==, -1);
    tls_session_free(c);
    tls_session_free(s);
    close(fd[0]);
    tls_objects_clear();
}

/* Bytes changed on the way, and a peer that speaks no TLS at all. */
static void test_tampered(void)
{
    if (!prepare()) {
        return;
    }
    g_autoptr(GError) err = NULL;
    uint8_t buf[4096];
    int fd[2], left[2], right[2];

    tls_object_good("tls-creds-x509,id=srv,dir=%s,endpoint=server", pki);
    tls_object_good("tls-creds-x509,id=cli,dir=%s,endpoint=client", pki);
    sockets(fd);
    TlsSession *s = session("srv", true, fd[0], NULL);
    g_assert_cmpint(write(fd[1], "IHAVEOPT, or so I say", 21), ==, 21);
    g_assert_cmpint(tls_session_handshake(s, &err), ==, -1);
    g_assert_nonnull(err);
    tls_session_free(s);
    close(fd[0]);
    close(fd[1]);

    sockets(left);
    sockets(right);
    s = session("srv", true, left[0], NULL);
    TlsSession *c = session("cli", false, right[0], "localhost");
    int rs = 0, rc = 0;
    for (int i = 0; i < 1000 && (rs != 1 || rc != 1); i++) {
        ssize_t n;

        rs = rs ? rs : tls_session_handshake(s, NULL);
        rc = rc ? rc : tls_session_handshake(c, NULL);
        while ((n = read(left[1], buf, sizeof(buf))) > 0) {
            g_assert_cmpint(write(right[1], buf, n), ==, n);
        }
        while ((n = read(right[1], buf, sizeof(buf))) > 0) {
            g_assert_cmpint(write(left[1], buf, n), ==, n);
        }
    }
    g_assert_cmpint(rs, ==, 1);
    g_assert_cmpint(rc, ==, 1);
    g_assert_cmpint(tls_session_send(c, "pay Bob 10", 10), ==, 10);
    ssize_t n = read(right[1], buf, sizeof(buf));
    g_assert_cmpint(n, >, 20);
    buf[n - 12] ^= 1;
    g_assert_cmpint(write(left[1], buf, n), ==, n);
    g_assert_cmpint(tls_session_recv(s, buf, sizeof(buf)), ==, -1);
    g_assert_cmpint(errno, ==, EPROTO);
    tls_session_free(c);
    tls_session_free(s);
    for (int i = 0; i < 2; i++) {
        close(left[i]);
        close(right[i]);
    }
    tls_objects_clear();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/tls/x509", test_x509);
    g_test_add_func("/tls/creds", test_creds);
    g_test_add_func("/tls/psk", test_psk);
    g_test_add_func("/tls/bytes", test_bytes);
    g_test_add_func("/tls/tampered", test_tampered);
    int r = g_test_run();
    if (dir) {
        tls_run("rm -rf %s", dir);
    }
    return r;
}
