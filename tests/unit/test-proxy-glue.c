/*
 * The proxy's two sides in two processes: markers, holds, discards, gates, takeover.
 * Build: tests/unit/test-proxy-glue.c; dependencies: net, chardev, util.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The parent is the primary, a forked child the secondary, which does what it is told
 * over a socket. The parent plays both guests and both outsides.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <glib.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "chardev/chardev.h"
#include "net/net.h"
#include "net/proxy.h"
#include "util/options.h"

typedef struct Side {
    int outside, guest;
} Side;

static Side p, s;
static int cmd; /* to the secondary */
static pid_t secondary;
static int port[4];
static gint triggers[8];

/* --- Set-up of either side --- */

static void add(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    bool dev = g_str_has_prefix(text, "socket,");
    g_autoptr(JsonObject) o = options_parse(text, dev ? "backend" : "qom-type", NULL);
    g_autoptr(GError) err = NULL;
    if (dev) {
        chardev_new(o, &err);
    } else {
        net_object_add(o, &err);
    }
    if (err) {
        g_error("%s: %s", text, err->message);
    }
}

static int make_netdev(int fd)
{
    g_autofree char *t = g_strdup_printf("socket,id=hn0,fd=%d", fd);
    g_autoptr(JsonObject) o = options_parse(t, "type", NULL);
    NetDev *nd = netdev_new(o, NULL);
    g_assert_nonnull(nd);
    return netdev_child_fd(nd);
}

static void setup_primary(int fd)
{
    p.guest = dup(make_netdev(fd));
    add("socket,id=mirror0,host=0.0.0.0,port=%d,server=on,wait=off", port[0]);
    add("socket,id=compare1,host=0.0.0.0,port=%d,server=on,wait=on", port[1]);
    add("socket,id=compare0,host=127.0.0.1,port=%d,server=on,wait=off", port[2]);
    add("socket,id=compare0-0,host=127.0.0.1,port=%d", port[2]);
    add("socket,id=compare_out,host=127.0.0.1,port=%d,server=on,wait=off", port[3]);
    add("socket,id=compare_out0,host=127.0.0.1,port=%d", port[3]);
    add("filter-mirror,id=m0,netdev=hn0,queue=tx,outdev=mirror0");
    add("filter-redirector,netdev=hn0,id=redire0,queue=rx,indev=compare_out");
    add("filter-redirector,netdev=hn0,id=redire1,queue=rx,outdev=compare0");
    add("iothread,id=iothread1");
    add("colo-compare,id=comp0,primary_in=compare0-0,secondary_in=compare1,"
        "outdev=compare_out0,iothread=iothread1");
}

static int setup_secondary(int fd)
{
    int guest = make_netdev(fd);
    add("socket,id=red0,host=127.0.0.1,port=%d,reconnect-ms=20", port[0]);
    add("socket,id=red1,host=127.0.0.1,port=%d,reconnect-ms=20", port[1]);
    add("filter-redirector,id=f1,netdev=hn0,queue=tx,indev=red0");
    add("filter-redirector,id=f2,netdev=hn0,queue=rx,outdev=red1");
    add("filter-rewriter,id=rew0,netdev=hn0,queue=all");
    return guest;
}

/* --- The secondary's process --- */

static int serve(int c, const char *line, const uint8_t *blob, size_t len)
{
    guint64 n = 0;
    g_autoptr(GError) err = NULL;
    const char *space = strchr(line, ' ');
    int r = 0;

    if (space) {
        n = g_ascii_strtoull(space + 1, NULL, 10);
    }
    net_lock();
    if (g_str_equal(line, "start")) {
        /* The primary's end of a connection may be up before this side's. */
        for (int i = 0; i < 1000 && !chardev_connected(chardev_find("red0")); i++) {
            net_unlock();
            g_usleep(2000);
            net_lock();
        }
        r = proxy_start_secondary(&err) ? 0 : 1;
    } else if (g_str_has_prefix(line, "begin ")) {
        proxy_rollback_begin(n);
    } else if (g_str_equal(line, "stopped")) {
        proxy_rollback_stopped();
    } else if (g_str_equal(line, "restore")) {
        g_autoptr(GBytes) b = g_bytes_new(blob, len);
        r = proxy_restore(b, &err) ? 0 : 1;
    } else if (g_str_has_prefix(line, "end ")) {
        proxy_rollback_end(n);
    } else if (g_str_equal(line, "mute")) {
        proxy_stop_vouching();
    } else if (g_str_equal(line, "takeover")) {
        proxy_takeover();
    } else if (g_str_equal(line, "yank0")) {
        chardev_yank(chardev_find("red0"));
    } else {
        r = 2;
    }
    net_unlock();
    if (err) {
        g_printerr("secondary: %s\n", err->message);
    }
    return r;
}

static void run_secondary(int c, int fd)
{
    static uint8_t b[1 << 20];

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    net_init();
    net_lock();
    int guest = setup_secondary(fd);
    net_unlock();
    g_assert_cmpint(write(c, &guest, sizeof(guest)), ==, sizeof(guest));
    ssize_t n;
    while ((n = recv(c, b, sizeof(b) - 1, 0)) > 0) {
        size_t l = strnlen((char *)b, n);
        b[n] = 0;
        int r = serve(c, (char *)b, b + l + 1, n > (ssize_t)l ? n - l - 1 : 0);
        g_assert_cmpint(write(c, &r, sizeof(r)), ==, sizeof(r));
    }
    _exit(0);
}

static void tell_blob(const char *line, GBytes *blob)
{
    g_autoptr(GByteArray) a = g_byte_array_new();
    int r = -1;
    g_byte_array_append(a, (const guint8 *)line, strlen(line) + 1);
    if (blob) {
        g_byte_array_append(a, g_bytes_get_data(blob, NULL), g_bytes_get_size(blob));
    }
    g_assert_cmpint(send(cmd, a->data, a->len, 0), ==, a->len);
    g_assert_cmpint(read(cmd, &r, sizeof(r)), ==, sizeof(r));
    if (r != 0) {
        g_error("secondary: '%s' gave %d", line, r);
    }
}

static void tell(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    g_autofree char *line = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    tell_blob(line, NULL);
}

/* --- Frames --- */

/* A UDP datagram between client 10.0.0.9 and guest 10.0.0.7, @mark as payload. */
static unsigned make_udp(uint8_t *b, bool from_guest, int sport, int dport, uint32_t mark)
{
    static const uint8_t mac[2][6] = {{2, 0, 0, 0, 0, 9}, {2, 0, 0, 0, 0, 7}};
    memset(b, 0, 60);
    memcpy(b, mac[!from_guest], 6);
    memcpy(b + 6, mac[from_guest], 6);
    b[12] = 8;
    uint8_t *ip = b + 14;
    ip[0] = 0x45;
    ip[3] = 20 + 8 + 8;
    ip[8] = 64;
    ip[9] = 17;
    ip[12] = ip[16] = 10;
    ip[15] = from_guest ? 7 : 9;
    ip[19] = from_guest ? 9 : 7;
    uint32_t sum = 0;
    for (int i = 0; i < 20; i += 2) {
        sum += ip[i] << 8 | ip[i + 1];
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = ~((sum & 0xffff) + (sum >> 16));
    ip[10] = sum >> 8;
    ip[11] = sum;
    uint8_t *u = ip + 20;
    u[0] = sport >> 8;
    u[1] = sport;
    u[2] = dport >> 8;
    u[3] = dport;
    u[5] = 16;
    memcpy(u + 8, &mark, 4);
    return 60;
}

static void client_sends(Side *x, uint32_t mark)
{
    uint8_t b[64] = {0};
    make_udp(b + 4, false, 4000, 7, mark);
    b[3] = 60;
    g_assert_cmpint(send(x->outside, b, 64, 0), ==, 64);
}

static void guest_sends(Side *x, uint32_t mark)
{
    uint8_t b[60];
    make_udp(b, true, 7, 4000, mark);
    g_assert_cmpint(send(x->guest, b, 60, 0), ==, 60);
}

static uint32_t mark_of(const uint8_t *b)
{
    uint32_t m;
    memcpy(&m, b + 42, 4);
    return m;
}

/* The next mark at the guest; 0 if none comes. */
static uint32_t guest_gets(Side *x, int wait_ms)
{
    uint8_t b[2000];
    for (int i = 0; i <= wait_ms; i += 2) {
        if (recv(x->guest, b, sizeof(b), MSG_DONTWAIT) >= 46) {
            return mark_of(b);
        }
        g_usleep(2000);
    }
    return 0;
}

/* The next UDP mark at the outside; 0 if none comes. ARP and the like are passed over. */
static uint32_t client_gets(Side *x, int wait_ms)
{
    uint8_t b[2100];
    for (int i = 0; i <= wait_ms; i += 2) {
        if (recv(x->outside, b, 4, MSG_DONTWAIT | MSG_PEEK) == 4) {
            int len = b[2] << 8 | b[3];
            g_assert_cmpint(recv(x->outside, b, 4 + len, MSG_WAITALL), ==, 4 + len);
            if (b[4 + 12] == 8 && b[4 + 13] == 0) {
                return mark_of(b + 4);
            }
            continue;
        }
        g_usleep(2000);
    }
    return 0;
}

static void on_trigger(ProxyTrigger t, const char *detail, void *opaque)
{
    g_test_message("trigger %s: %s", proxy_trigger_name(t), detail);
    g_atomic_int_inc(&triggers[t]);
}

static int wait_trigger(ProxyTrigger t, int ms)
{
    for (int i = 0; i < ms && !g_atomic_int_get(&triggers[t]); i += 2) {
        g_usleep(2000);
    }
    int n = g_atomic_int_get(&triggers[t]);
    g_atomic_int_set(&triggers[t], 0);
    return n;
}

/* The primary's part of a checkpoint between stop and cont; its state. */
static GBytes *primary_cut(uint64_t e)
{
    net_lock();
    proxy_hold_input();
    proxy_drain_output();
    proxy_cut(e);
    GBytes *b = proxy_save();
    proxy_release_input();
    net_unlock();
    return b;
}

static void primary_done(uint64_t e)
{
    net_lock();
    proxy_commit(e);
    net_unlock();
}

static void checkpoint(uint64_t e)
{
    g_autoptr(GBytes) b = primary_cut(e);
    primary_done(e);
    tell("begin %u", (unsigned)e);
    tell("stopped");
    tell_blob("restore", b);
    tell("end %u", (unsigned)e);
    net_lock();
    proxy_loaded(e);
    net_unlock();
}

/* --- The story, in one test: the sides keep their state --- */

static void pick_ports(void)
{
    int fds[4];
    for (int i = 0; i < 4; i++) {
        struct sockaddr_in a = {.sin_family = AF_INET};
        socklen_t len = sizeof(a);
        fds[i] = socket(AF_INET, SOCK_STREAM, 0);
        a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        g_assert_cmpint(bind(fds[i], (struct sockaddr *)&a, sizeof(a)), ==, 0);
        getsockname(fds[i], (struct sockaddr *)&a, &len);
        port[i] = ntohs(a.sin_port);
    }
    for (int i = 0; i < 4; i++) {
        close(fds[i]);
    }
}

static bool no_poll(void *opaque)
{
    return true;
}

static void begin_story(void)
{
    int sp[2], ss[2], c[2], guest;

    pick_ports();
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, sp), ==, 0);
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, ss), ==, 0);
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, c), ==, 0);
    secondary = fork();
    if (secondary == 0) {
        close(c[0]);
        close(ss[0]);
        run_secondary(c[1], ss[1]);
    }
    close(c[1]);
    close(ss[1]);
    cmd = c[0];
    p.outside = sp[0];
    s.outside = ss[0];
    net_init();
    net_lock();
    setup_primary(sp[1]);
    net_unlock();
    g_assert_cmpint(read(cmd, &guest, sizeof(guest)), ==, sizeof(guest));
    int pidfd = syscall(SYS_pidfd_open, secondary, 0);
    s.guest = syscall(SYS_pidfd_getfd, pidfd, guest, 0);
    g_assert_cmpint(s.guest, >=, 0);
    close(pidfd);
    g_assert_true(chardev_wait_ready(no_poll, NULL));
    for (bool up = false; !up; g_usleep(2000)) {
        net_lock();
        up = chardev_connected(chardev_find("mirror0"));
        net_unlock();
    }
}

static void test_unprotected(void)
{
    g_autoptr(GError) err = NULL;
    client_sends(&p, 1);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 1);
    tell("start");
    net_lock();
    g_assert_true(proxy_start_primary(on_trigger, NULL, &err));
    g_assert_no_error(err);
    g_assert_false(proxy_start_primary(on_trigger, NULL, NULL));
    net_unlock();
    client_sends(&p, 2);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 2);
    guest_sends(&p, 3);
    g_assert_cmpuint(client_gets(&p, 2000), ==, 3);
    g_assert_cmpuint(guest_gets(&s, 50), ==, 0); /* there is no guest yet */
    /* The secondary's gate is shut in both directions. */
    client_sends(&s, 4);
    guest_sends(&s, 5);
    g_assert_cmpuint(guest_gets(&s, 50), ==, 0);
    g_assert_cmpuint(client_gets(&s, 0), ==, 0);
}

static void test_first(void)
{
    net_lock();
    proxy_hold_input();
    net_unlock();
    client_sends(&p, 10);
    g_usleep(20000);
    checkpoint(1);
    /* Came while input was held: of the new epoch, for both. */
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 10);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 10);
    client_sends(&p, 11);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 11);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 11);
}

static void test_compare(void)
{
    guest_sends(&p, 20);
    g_assert_cmpuint(client_gets(&p, 5), ==, 0); /* withheld */
    guest_sends(&s, 20);
    g_assert_cmpuint(client_gets(&p, 2000), ==, 20);
    wait_trigger(PROXY_TRIGGER_TIMEOUT, 0);
    guest_sends(&s, 21);
    guest_sends(&p, 22); /* differs */
    g_assert_cmpuint(client_gets(&p, 50), ==, 0);
    g_usleep(300000);
    int n = wait_trigger(PROXY_TRIGGER_MISMATCH, 0) + wait_trigger(PROXY_TRIGGER_TIMEOUT, 0);
    g_assert_cmpint(n, >, 0);
    checkpoint(2);
    g_assert_cmpuint(client_gets(&p, 2000), ==, 22); /* vouched for by the checkpoint */
    g_assert_cmpuint(client_gets(&s, 0), ==, 0);
}

/* Frames that neither guest has read at the cut reach both once, in the new epoch. */
static void test_taken_back(void)
{
    for (uint32_t i = 30; i < 33; i++) {
        client_sends(&p, i);
    }
    g_usleep(30000);
    g_assert_cmpuint(guest_gets(&p, 0), ==, 30); /* the PVM took one of them */
    g_assert_cmpuint(guest_gets(&s, 200), ==, 30);
    g_assert_cmpuint(guest_gets(&s, 200), ==, 31); /* the SVM was faster: rolled back */
    checkpoint(3);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 31);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 32);
    g_assert_cmpuint(guest_gets(&p, 20), ==, 0);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 31);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 32);
    g_assert_cmpuint(guest_gets(&s, 20), ==, 0);
}

/* The roll-back begins before the marker has come, and ends before it too. */
static void test_early(void)
{
    tell("begin 4");
    client_sends(&p, 40); /* of epoch 3: past, when it arrives */
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 40);
    guest_sends(&s, 41); /* old output */
    tell("stopped");
    g_assert_cmpuint(guest_gets(&s, 30), ==, 0);
    g_autoptr(GBytes) b = primary_cut(4);
    client_sends(&p, 42);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 42);
    primary_done(4);
    g_assert_cmpuint(guest_gets(&s, 30), ==, 0); /* waits for the SVM to run */
    tell_blob("restore", b);
    tell("end 4");
    net_lock();
    proxy_loaded(4);
    net_unlock();
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 42);
    g_assert_cmpuint(guest_gets(&s, 20), ==, 0);
    /* The dropped output 41 is nobody's twin. */
    guest_sends(&p, 43);
    guest_sends(&s, 43);
    g_assert_cmpuint(client_gets(&p, 2000), ==, 43);
}

static void test_bad_state(void)
{
    int r = 0;
    static const char junk[] = "restore\0junkjunkjunkjunk";
    g_assert_cmpint(send(cmd, junk, sizeof(junk) - 1, 0), >, 0);
    g_assert_cmpint(read(cmd, &r, sizeof(r)), ==, sizeof(r));
    g_assert_cmpint(r, ==, 1);
}

/* A break of the mirror stream is a loss: told, and healed by the next checkpoint. */
static void test_reconnect(void)
{
    wait_trigger(PROXY_TRIGGER_STREAM, 0);
    tell("yank0");
    g_assert_cmpint(wait_trigger(PROXY_TRIGGER_STREAM, 2000), >, 0);
    for (bool up = false; !up; g_usleep(2000)) {
        net_lock();
        up = chardev_connected(chardev_find("mirror0"));
        net_unlock();
    }
    checkpoint(5);
    client_sends(&p, 50);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 50);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 50);
}

static void test_torn(void)
{
    client_sends(&p, 60);
    client_sends(&p, 61);
    g_usleep(30000);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 60);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 61);
    guest_sends(&p, 64); /* held, never vouched for */
    /* The PVM had not read them: mirrored again after a marker that nobody follows. */
    g_autoptr(GBytes) b = primary_cut(6);
    client_sends(&p, 62);
    g_usleep(50000);
    g_assert_cmpuint(guest_gets(&s, 0), ==, 0);
    tell("mute");
    guest_sends(&s, 63); /* not to the primary any more, and not out yet */
    g_assert_cmpuint(client_gets(&s, 30), ==, 0);
    g_assert_cmpuint(client_gets(&p, 0), ==, 0);
    tell("takeover");
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 62); /* 60 and 61 are not fed twice */
    g_assert_cmpuint(guest_gets(&s, 20), ==, 0);
    guest_sends(&s, 65);
    uint32_t m;
    do {
        m = client_gets(&s, 2000); /* 63 may be sent as owed */
        g_assert_cmpuint(m, !=, 0);
    } while (m != 65);
    client_sends(&s, 66);
    g_assert_cmpuint(guest_gets(&s, 2000), ==, 66);
    /* The old primary is not listened to. */
    client_sends(&p, 67);
    g_assert_cmpuint(guest_gets(&s, 50), ==, 0);
}

/* The primary's way out: silence, the comparison deleted, then the win. */
static void test_primary_exit(void)
{
    kill(secondary, SIGKILL);
    waitpid(secondary, NULL, 0);
    while (guest_gets(&p, 0)) {
    }
    g_assert_cmpint(wait_trigger(PROXY_TRIGGER_STREAM, 2000), >, 0);
    client_sends(&p, 69);
    g_assert_cmpuint(guest_gets(&p, 50), ==, 0); /* unmirrored: seen by neither */
    net_lock();
    proxy_silence();
    net_unlock();
    guest_sends(&p, 70);
    client_sends(&p, 71);
    g_assert_cmpuint(guest_gets(&p, 2000), ==, 71); /* input goes on */
    g_assert_cmpuint(client_gets(&p, 50), ==, 0);
    net_lock();
    uint64_t frames, bytes;
    proxy_held(&frames, &bytes);
    g_assert_cmpuint(frames, ==, 2); /* 64 and 70 */
    static const char *const ids[] = {"comp0", "iothread1", "m0", "redire0", "redire1"};
    for (unsigned i = 0; i < G_N_ELEMENTS(ids); i++) {
        g_assert_true(net_object_del(ids[i], NULL));
    }
    proxy_held(&frames, &bytes);
    g_assert_cmpuint(frames, ==, 2);
    net_unlock();
    guest_sends(&p, 72);
    g_assert_cmpuint(client_gets(&p, 50), ==, 0);
    net_lock();
    proxy_stop_primary();
    g_assert_cmpint(net_get_role(), ==, NET_ROLE_ALONE);
    net_unlock();
    g_assert_cmpuint(client_gets(&p, 2000), ==, 64);
    g_assert_cmpuint(client_gets(&p, 2000), ==, 70);
    g_assert_cmpuint(client_gets(&p, 2000), ==, 72);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    begin_story();
    g_test_add_func("/proxy-glue/unprotected", test_unprotected);
    g_test_add_func("/proxy-glue/first", test_first);
    g_test_add_func("/proxy-glue/compare", test_compare);
    g_test_add_func("/proxy-glue/taken-back", test_taken_back);
    g_test_add_func("/proxy-glue/early", test_early);
    g_test_add_func("/proxy-glue/bad-state", test_bad_state);
    g_test_add_func("/proxy-glue/reconnect", test_reconnect);
    g_test_add_func("/proxy-glue/torn", test_torn);
    g_test_add_func("/proxy-glue/primary-exit", test_primary_exit);
    int r = g_test_run();
    net_shutdown();
    return r;
}
