/*
 * The proxy's two sides in two processes, for tests: the parent is the primary, a forked
 * child the secondary, which does what it is told over a socket. The parent plays both
 * guests and both outsides.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef TESTS_UNIT_PROXY_PAIR_H
#define TESTS_UNIT_PROXY_PAIR_H

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

#include "net/proxy.h"
#include "net-setup.h"

typedef struct Side {
    int outside, guest;
} Side;

static Side p, s;
static int cmd; /* to the secondary */
static pid_t secondary;
static int port[4];
static gint triggers[PROXY_TRIGGER_GONE + 1];

/* --- Set-up of either side --- */

static inline int make_netdev(int fd)
{
    g_autofree char *t = g_strdup_printf("socket,id=hn0,fd=%d", fd);
    g_autoptr(JsonObject) o = options_parse(t, "type", NULL);
    NetDev *nd = netdev_new(o, NULL);
    g_assert_nonnull(nd);
    return netdev_child_fd(nd);
}

static inline void setup_primary(int fd)
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

static inline int setup_secondary(int fd)
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

static inline int serve(int c, const char *line, const uint8_t *blob, size_t len)
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

static inline void run_secondary(int c, int fd)
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

static inline void tell_blob(const char *line, GBytes *blob)
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

static inline void tell(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    g_autofree char *line = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    tell_blob(line, NULL);
}

/* --- Frames --- */

/* A UDP datagram between client 10.0.0.9 and guest 10.0.0.7, @mark as payload. */
static inline unsigned make_udp(uint8_t *b, bool from_guest, int sport, int dport, uint32_t mark)
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

static inline void client_sends(Side *x, uint32_t mark)
{
    uint8_t b[64] = {0};
    make_udp(b + 4, false, 4000, 7, mark);
    b[3] = 60;
    g_assert_cmpint(send(x->outside, b, 64, 0), ==, 64);
}

static inline void guest_sends(Side *x, uint32_t mark)
{
    uint8_t b[60];
    make_udp(b, true, 7, 4000, mark);
    g_assert_cmpint(send(x->guest, b, 60, 0), ==, 60);
}

static inline uint32_t mark_of(const uint8_t *b)
{
    uint32_t m;
    memcpy(&m, b + 42, 4);
    return m;
}

/* The next mark at the guest; 0 if none comes. */
static inline uint32_t guest_gets(Side *x, int wait_ms)
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
static inline uint32_t client_gets(Side *x, int wait_ms)
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

static inline void on_trigger(ProxyTrigger t, const char *detail, void *opaque)
{
    g_test_message("trigger %s: %s", proxy_trigger_name(t), detail);
    g_atomic_int_inc(&triggers[t]);
}

static inline int wait_trigger(ProxyTrigger t, int ms)
{
    for (int i = 0; i < ms && !g_atomic_int_get(&triggers[t]); i += 2) {
        g_usleep(2000);
    }
    return (int)g_atomic_int_and((guint *)&triggers[t], 0); /* none may come in between */
}

/* The primary's part of a checkpoint between stop and cont; its state. */
static inline GBytes *primary_cut(uint64_t e)
{
    net_lock();
    proxy_hold_input();
    proxy_drain_output();
    proxy_cut(e);
    proxy_release_input();
    GBytes *b = proxy_save();
    net_unlock();
    return b;
}

static inline void primary_done(uint64_t e)
{
    net_lock();
    proxy_commit(e);
    net_unlock();
}

static inline void checkpoint(uint64_t e)
{
    g_autoptr(GBytes) b = primary_cut(e);
    primary_done(e);
    tell("begin %u", (unsigned)e);
    tell("stopped");
    tell_blob("restore", b);
    tell("end %u", (unsigned)e);
    net_lock();
    proxy_loaded(e, false);
    net_unlock();
}

/* --- The story, in one test: the sides keep their state --- */

static inline void pick_ports(void)
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

static inline bool no_poll(void *opaque)
{
    return true;
}

static inline void begin_story(void)
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

#endif
