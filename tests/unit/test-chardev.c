/*
 * Socket chardevs: options, join, framing, malformed input, reconnect, control messages.
 * Build: tests/unit/test-chardev.c; dependencies: net, chardev, util.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <arpa/inet.h>
#include <glib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "chardev/chardev.h"
#include "net/net.h"
#include "util/options.h"

typedef struct User {
    GString *log; /* "f:<bytes>;" "c:<type><body>;" "+;" "-;" */
} User;

static void on_frame(void *opaque, Frame *f)
{
    User *u = opaque;
    g_assert_cmpuint(f->ref, ==, 1); /* ours alone: it may be queued */
    g_string_append(u->log, "f:");
    g_string_append_len(u->log, (char *)f->data - f->vnet_len, f->vnet_len + f->len);
    g_string_append(u->log, ";");
    frame_unref(f);
}

static void on_control(void *opaque, const ChardevControl *m)
{
    User *u = opaque;
    g_string_append_printf(u->log, "c:%d%.*s;", m->type, (int)m->len, (char *)m->body);
}

static void on_event(void *opaque, bool up)
{
    g_string_append(((User *)opaque)->log, up ? "+;" : "-;");
}

static const ChardevHandlers handlers = {on_frame, on_control, on_event};

static Chardev *make(const char *text, GError **errp)
{
    g_autoptr(JsonObject) o = options_parse(text, "backend", NULL);
    return chardev_new(o, errp);
}

static void make_fails(const char *text, const char *part)
{
    g_autoptr(GError) err = NULL;
    net_lock();
    Chardev *c = make(text, &err);
    net_unlock();
    g_assert_null(c);
    g_assert_nonnull(err);
    if (!strstr(err->message, part)) {
        g_error("'%s' not in '%s'", part, err->message);
    }
}

static int free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET};
    socklen_t len = sizeof(a);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    g_assert_cmpint(bind(s, (struct sockaddr *)&a, sizeof(a)), ==, 0);
    getsockname(s, (struct sockaddr *)&a, &len);
    close(s);
    return ntohs(a.sin_port);
}

static int dial(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    int s = socket(AF_INET, SOCK_STREAM, 0);
    struct timeval tv = {.tv_sec = 2};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    g_assert_cmpint(connect(s, (struct sockaddr *)&a, sizeof(a)), ==, 0);
    return s;
}

/* Wait until the log is @want. */
static void expect(User *u, const char *want)
{
    for (int i = 0; i < 400; i++) {
        net_lock();
        bool same = strcmp(u->log->str, want) == 0;
        net_unlock();
        if (same) {
            return;
        }
        g_usleep(5000);
    }
    g_assert_cmpstr(u->log->str, ==, want);
}

static bool send_text(Chardev *c, const char *text)
{
    Frame *f = frame_from(text, strlen(text));
    bool ok = chardev_send(c, f);
    frame_unref(f);
    return ok;
}

static void drop(Chardev *c, User *u)
{
    chardev_release(c);
    g_autofree char *id = g_strdup(chardev_id(c));
    g_assert_true(chardev_remove(id, NULL));
    g_string_free(u->log, TRUE);
    u->log = NULL;
}

static void test_options(void)
{
    make_fails("socket,port=1", "'id'");
    make_fails("socket,id=a,port=1,frob=2", "frob");
    make_fails("socket,id=a,port=1,path=/x", "exclude");
    make_fails("socket,id=a", "'path' and 'port'");
    make_fails("socket,id=a,port=1,server=on,reconnect=1", "listen mode");
    make_fails("socket,id=a,port=1,reconnect=1,reconnect-ms=5", "exclude");
    make_fails("socket,id=a,port=1,wait=on", "connect mode");
    make_fails("socket,id=a,host=127.0.0.1,port=1", "onnection refused");
    int port = free_port();
    g_autofree char *text =
        g_strdup_printf("socket,id=a,host=127.0.0.1,port=%d,server=on,wait=off", port);
    net_lock();
    Chardev *c = make(text, NULL);
    g_assert_nonnull(c);
    net_unlock();
    make_fails(text, "already exists");
    g_autofree char *other = g_strdup_printf(
        "socket,id=b,host=127.0.0.1,port=%d,server=on,wait=off", port);
    make_fails(other, "in use");
    net_lock();
    g_assert_true(chardev_remove("a", NULL));
    net_unlock();
}

static void test_join(void)
{
    int port = free_port();
    g_autofree char *s = g_strdup_printf("socket,id=s,host=0.0.0.0,port=%d,server=on,"
                                         "wait=off", port);
    g_autofree char *k = g_strdup_printf("socket,id=k,host=127.0.0.1,port=%d", port);
    User us = {g_string_new(NULL)}, uk = {g_string_new(NULL)};
    net_lock();
    Chardev *cs = make(s, NULL), *ck = make(k, NULL);
    g_assert_true(chardev_peer(ck) == cs);
    g_assert_true(chardev_claim(ck, &handlers, &uk, false, NULL));
    g_assert_false(send_text(ck, "nobody"));
    g_assert_true(chardev_claim(cs, &handlers, &us, false, NULL));
    g_assert_false(chardev_claim(cs, &handlers, &us, false, NULL));
    g_assert_true(send_text(ck, "one")); /* at once, within the call */
    g_assert_cmpstr(us.log->str, ==, "f:one;");
    ChardevControl m = {CHARDEV_CTL_MARKER, 2, (const uint8_t *)"xy"};
    g_assert_false(chardev_send_control(ck, &m));
    chardev_allow_control(ck, true);
    chardev_allow_control(cs, true);
    g_assert_true(chardev_send_control(ck, &m));
    g_assert_cmpstr(us.log->str, ==, "f:one;c:1xy;");
    g_assert_false(chardev_remove("s", NULL));
    drop(ck, &uk);
    g_assert_cmpstr(us.log->str, ==, "f:one;c:1xy;-;");
    /* The other order: the client waits for its server to appear. */
    drop(cs, &us);
    g_autofree char *again = g_strdup_printf("%s,reconnect-ms=60000", k);
    ck = make(again, NULL);
    g_assert_false(chardev_connected(ck));
    net_unlock();
    g_usleep(20000); /* the first attempt is refused */
    net_lock();
    cs = make(s, NULL);
    g_assert_true(chardev_peer(ck) == cs);
    chardev_remove("k", NULL);
    chardev_remove("s", NULL);
    net_unlock();
}

static void test_framing(void)
{
    int port = free_port();
    g_autofree char *s = g_strdup_printf(
        "socket,id=s,host=127.0.0.1,port=%d,server=on,wait=off", port);
    User u = {g_string_new(NULL)};
    net_lock();
    Chardev *c = make(s, NULL);
    g_assert_true(chardev_claim(c, &handlers, &u, false, NULL));
    net_unlock();
    int fd = dial(port);
    expect(&u, "+;");
    /* Two frames, cut at every byte. */
    static const char bytes[] = "\0\0\0\3abc\0\0\0\1z";
    for (unsigned i = 0; i < sizeof(bytes) - 1; i++) {
        g_assert_cmpint(send(fd, bytes + i, 1, 0), ==, 1);
        g_usleep(500);
    }
    expect(&u, "+;f:abc;f:z;");
    net_lock();
    g_assert_true(send_text(c, "hello"));
    g_assert_cmpuint(chardev_frames_in(c), ==, 2);
    g_assert_cmpuint(chardev_frames_out(c), ==, 1);
    net_unlock();
    char got[9];
    g_assert_cmpint(recv(fd, got, 9, MSG_WAITALL), ==, 9);
    g_assert_cmpmem(got, 9, "\0\0\0\5hello", 9);
    close(fd);
    expect(&u, "+;f:abc;f:z;-;");
    net_lock();
    g_assert_false(send_text(c, "lost"));
    drop(c, &u);
    net_unlock();
}

static void test_vnet(void)
{
    int port = free_port();
    g_autofree char *s = g_strdup_printf(
        "socket,id=s,host=127.0.0.1,port=%d,server=on,wait=off", port);
    User u = {g_string_new(NULL)};
    net_lock();
    Chardev *c = make(s, NULL);
    chardev_claim(c, &handlers, &u, true, NULL);
    net_unlock();
    int fd = dial(port);
    static const char bytes[] = "\0\0\0\5\0\0\0\2vhabc";
    send(fd, bytes, sizeof(bytes) - 1, 0);
    expect(&u, "+;f:vhabc;");
    send(fd, "\0\0\0\3\0\0\0\3abc", 11, 0); /* a vnet header and no frame */
    expect(&u, "+;f:vhabc;-;");
    close(fd);
    net_lock();
    drop(c, &u);
    net_unlock();
}

/* What is wrong resets that connection, no other, and the server listens on. */
static void test_malformed(void)
{
    static const struct {
        const char *bytes;
        int len;
    } bad[] = {
        {"\0\0\0\0", 4},             /* empty */
        {"\0\1\x10\1", 4},           /* 69633 */
        {"\x80\0\0\3\1xy", 7},       /* control that was not agreed */
        {"\x7f\xff\xff\xff", 4},
    };
    int port = free_port();
    g_autofree char *s = g_strdup_printf(
        "socket,id=s,host=127.0.0.1,port=%d,server=on,wait=off", port);
    User u = {g_string_new(NULL)};
    net_lock();
    Chardev *c = make(s, NULL);
    chardev_claim(c, &handlers, &u, false, NULL);
    net_unlock();
    g_autoptr(GString) want = g_string_new(NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        int fd = dial(port);
        send(fd, "\0\0\0\1k", 5, 0);
        send(fd, bad[i].bytes, bad[i].len, 0);
        g_string_append(want, "+;f:k;-;");
        expect(&u, want->str);
        char x;
        g_assert_cmpint(recv(fd, &x, 1, 0), <=, 0);
        close(fd);
    }
    int fd = dial(port);
    net_lock();
    chardev_allow_control(c, true);
    net_unlock();
    send(fd, "\x80\0\0\3\1xy", 7, 0);
    g_string_append(want, "+;c:1xy;");
    expect(&u, want->str);
    close(fd);
    net_lock();
    drop(c, &u);
    net_unlock();
}

static void test_reconnect(void)
{
    g_autofree char *path = g_strdup_printf("/tmp/colo-test-%d.sock", getpid());
    g_autofree char *k = g_strdup_printf("socket,id=k,path=%s,reconnect-ms=20", path);
    User u = {g_string_new(NULL)};
    net_lock();
    Chardev *c = make(k, NULL);
    g_assert_true(chardev_claim(c, &handlers, &u, false, NULL));
    net_unlock();
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    g_strlcpy(a.sun_path, path, sizeof(a.sun_path));
    int l = socket(AF_UNIX, SOCK_STREAM, 0);
    unlink(path);
    g_assert_cmpint(bind(l, (struct sockaddr *)&a, sizeof(a)), ==, 0);
    listen(l, 4);
    int fd = accept(l, NULL, NULL);
    expect(&u, "+;");
    close(fd);
    fd = accept(l, NULL, NULL);
    expect(&u, "+;-;+;");
    net_lock();
    chardev_yank(c);
    net_unlock();
    int fd2 = accept(l, NULL, NULL);
    expect(&u, "+;-;+;-;+;");
    close(fd);
    close(fd2);
    close(l);
    unlink(path);
    net_lock();
    drop(c, &u);
    net_unlock();
}

/* A peer that does not read: the queue is bounded and sending never blocks. */
static void test_bound(void)
{
    int port = free_port();
    g_autofree char *s = g_strdup_printf(
        "socket,id=s,host=127.0.0.1,port=%d,server=on,wait=off", port);
    User u = {g_string_new(NULL)};
    net_lock();
    Chardev *c = make(s, NULL);
    chardev_claim(c, &handlers, &u, false, NULL);
    net_unlock();
    int fd = dial(port);
    expect(&u, "+;");
    net_lock();
    Frame *f = frame_new(60000);
    memset(f->data, 5, f->len);
    int sent = 0;
    while (sent < 5000 && chardev_send(c, f)) {
        sent++;
    }
    frame_unref(f);
    g_assert_cmpint(sent, >, 270); /* 16 MiB */
    g_assert_cmpint(sent, <, 5000);
    net_unlock();
    /* Everything accepted arrives. */
    size_t total = 0, want = (size_t)sent * 60004;
    static char buf[1 << 20];
    while (total < want) {
        ssize_t n = recv(fd, buf, sizeof(buf), 0);
        g_assert_cmpint(n, >, 0);
        total += n;
    }
    g_assert_cmpuint(total, ==, want);
    close(fd);
    expect(&u, "+;-;");
    net_lock();
    drop(c, &u);
    net_unlock();
}

static void test_qmp(void)
{
    int port = free_port();
    g_autofree char *t = g_strdup_printf(
        "{\"id\":\"m\",\"backend\":{\"type\":\"socket\",\"data\":{\"addr\":{\"type\":"
        "\"inet\",\"data\":{\"host\":\"0.0.0.0\",\"port\":\"%d\"}},\"server\":true}}}",
        port);
    g_autofree char *t2 = g_strdup_printf(
        "{\"id\":\"n\",\"backend\":{\"type\":\"socket\",\"data\":{\"addr\":{\"type\":"
        "\"inet\",\"data\":{\"host\":\"127.0.0.1\",\"port\":\"%d\"}},\"server\":false}}}",
        port);
    net_lock();
    g_assert_nonnull(make(t, NULL));
    g_assert_nonnull(make(t2, NULL));
    g_assert_true(chardev_peer(chardev_find("m")) == chardev_find("n"));
    g_autoptr(JsonArray) q = chardev_query();
    g_assert_cmpuint(json_array_get_length(q), ==, 2);
    g_assert_cmpstr(json_object_get_string_member(json_array_get_object_element(q, 0),
                                                  "label"), ==, "m");
    chardev_remove("m", NULL);
    chardev_remove("n", NULL);
    g_assert_false(chardev_remove("n", NULL));
    net_unlock();
    make_fails("{\"id\":\"q\",\"backend\":{\"type\":\"pty\",\"data\":{}}}", "pty");
    make_fails("{\"id\":\"q\",\"backend\":{\"type\":\"socket\",\"data\":{\"addr\":{\"type\":"
               "\"inet\",\"data\":{\"port\":\"1\"}},\"tls-authz\":\"x\"}}}", "tls-authz");
    make_fails("socket,id=q,port=1,tls-creds=x", "credentials with id 'x'");
    make_fails("socket,id=q,path=/q,tls-creds=x", "TCP");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    net_init();
    g_test_add_func("/chardev/options", test_options);
    g_test_add_func("/chardev/join", test_join);
    g_test_add_func("/chardev/framing", test_framing);
    g_test_add_func("/chardev/vnet", test_vnet);
    g_test_add_func("/chardev/malformed", test_malformed);
    g_test_add_func("/chardev/reconnect", test_reconnect);
    g_test_add_func("/chardev/bound", test_bound);
    g_test_add_func("/chardev/qmp", test_qmp);
    int r = g_test_run();
    net_shutdown();
    return r;
}
