/*
 * Backend tap in a network namespace of its own; skipped without the right to make one.
 * Build: tests/unit/test-tap.c; dependencies: net, chardev, util.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "net/net.h"
#include "net/proxy.h"
#include "util/options.h"

static NetDev *make(const char *text, GError **errp)
{
    g_autoptr(JsonObject) o = options_parse(text, "type", NULL);
    net_lock();
    NetDev *nd = netdev_new(o, errp);
    net_unlock();
    return nd;
}

static void refuse(const char *text, const char *part)
{
    g_autoptr(GError) err = NULL;
    g_assert_null(make(text, &err));
    if (!strstr(err->message, part)) {
        g_error("'%s' not in '%s'", part, err->message);
    }
}

static void test_options(void)
{
    refuse("tap,id=n0,vhost=on", "vhost=on");
    refuse("tap,id=n0,queues=2", "queues");
    refuse("tap,id=n0,vnet_hdr=maybe", "vnet_hdr");
    refuse("tap,id=n0,frob=1", "frob");
    refuse("tap,id=n0,fd=0,script=no", "script");
    refuse("tap,id=n0,fd=0", "not a tap");
    refuse("tap,id=n0,ifname=abcdefghijklmnopq,script=no", "longer");
    refuse("tap,id=n0,ifname=ct0,script=/bin/false", "failed with status 1");
    refuse("tap,id=n0,helper=/bin/false", "helper");
    refuse("bridge,id=n0,helper=/nonexistent", "/nonexistent");
    refuse("vde,id=n0", "'vde'");
    g_assert_cmpuint(if_nametoindex("ct0"), ==, 0);
}

static void test_traffic(void)
{
    g_autofree char *down = g_strdup_printf("/tmp/colo-tap-%d", getpid());
    g_autofree char *script = g_strdup_printf("#!/bin/sh\necho $1 > %s.out\n", down);
    g_assert_true(g_file_set_contents_full(down, script, -1, 0, 0755, NULL));
    g_autofree char *text = g_strdup_printf(
        "tap,id=n0,ifname=ct0,script=no,downscript=%s,vhost=off,sndbuf=1M", down);
    g_autoptr(GError) err = NULL;
    NetDev *nd = make(text, &err);
    g_assert_no_error(err);
    net_lock();
    int guest = dup(netdev_child_fd(nd));
    net_unlock();
    /* Up, without addresses: only what we send travels. */
    int s = socket(AF_PACKET, SOCK_RAW, g_htons(0x88b5));
    struct ifreq ifr = {0};
    g_strlcpy(ifr.ifr_name, "ct0", IFNAMSIZ);
    ioctl(s, SIOCGIFFLAGS, &ifr);
    ifr.ifr_flags |= IFF_UP;
    g_assert_cmpint(ioctl(s, SIOCSIFFLAGS, &ifr), ==, 0);
    struct sockaddr_ll a = {.sll_family = AF_PACKET,
                            .sll_protocol = g_htons(0x88b5),
                            .sll_ifindex = if_nametoindex("ct0")};
    g_assert_cmpint(bind(s, (struct sockaddr *)&a, sizeof(a)), ==, 0);
    uint8_t b[1514] = {255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 0x88, 0xb5}, r[2000];
    struct timeval tv = {.tv_sec = 2};
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    for (int i = 0; i < 300; i++) {
        b[20] = i;
        unsigned len = 60 + i * 4;
        g_assert_cmpint(send(guest, b, len, 0), ==, len);
        g_assert_cmpint(recv(s, r, sizeof(r), 0), ==, len);
        g_assert_cmpint(r[20], ==, (uint8_t)i);
    }
    /* Inwards, in bursts. */
    for (int i = 0; i < 300; i++) {
        b[20] = i;
        g_assert_cmpint(send(s, b, 1000, 0), ==, 1000);
    }
    int got = 0;
    for (int idle = 0; idle < 50 && got < 300;) {
        if (recv(guest, r, sizeof(r), MSG_DONTWAIT) < 0) {
            g_usleep(5000);
            idle++;
        } else if (r[12] == 0x88 && r[13] == 0xb5) {
            g_assert_cmpint(r[20], ==, (uint8_t)got++);
        }
    }
    g_assert_cmpint(got, ==, 300);
    close(s);
    close(guest);
    net_lock();
    g_assert_true(netdev_del("n0", NULL));
    net_unlock();
    for (int i = 0; i < 200 && if_nametoindex("ct0"); i++) {
        g_usleep(5000); /* until the net thread's poll has let go of it */
    }
    g_assert_cmpuint(if_nametoindex("ct0"), ==, 0);
    g_autofree char *out = g_strdup_printf("%s.out", down), *told = NULL;
    g_assert_true(g_file_get_contents(out, &told, NULL, NULL));
    g_assert_cmpstr(told, ==, "ct0\n");
    unlink(out);
    unlink(down);
}

/* --- A kernel's TCP through a tap with a vnet header --- */

#define BULK (6u << 20)

static void sh(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    g_autofree char *cmd = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_assert_cmpint(system(cmd), ==, 0); /* NOLINT(cert-env33-c): words of this file */
}

static int open_tap(const char *name, short flags)
{
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | flags};
    int fd = open("/dev/net/tun", O_RDWR);
    g_strlcpy(ifr.ifr_name, name, IFNAMSIZ);
    g_assert_cmpint(ioctl(fd, TUNSETIFF, &ifr), ==, 0);
    return fd;
}

/* The guest: a network of its own behind @port, whose frames must fit a link. It sends
 * back what it gets on TCP port 7. */
static void run_guest(int port)
{
    g_assert_cmpint(unshare(CLONE_NEWNET), ==, 0);
    int tap = open_tap("ct1", 0);
    sh("ip link set lo up && ip link set ct1 up && ip addr add 10.9.0.2/24 dev ct1 && "
       "ip addr add fd09::2/64 dev ct1 nodad");
    int s = socket(AF_INET6, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = g_htons(7)};
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    g_assert_cmpint(bind(s, (struct sockaddr *)&a, sizeof(a)), ==, 0);
    g_assert_cmpint(listen(s, 5), ==, 0);
    if (fork() == 0) {
        static uint8_t b[65536];
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) {
            int c = accept(s, NULL, NULL);
            for (ssize_t n; (n = recv(c, b, sizeof(b), 0)) > 0;) {
                if (send(c, b, n, MSG_NOSIGNAL) != n) {
                    break;
                }
            }
            close(c);
        }
    }
    static uint8_t b[70000];
    struct pollfd p[2] = {{.fd = port, .events = POLLIN}, {.fd = tap, .events = POLLIN}};
    while (poll(p, 2, -1) > 0) {
        for (int i = 0; i < 2; i++) {
            if (p[i].revents) {
                ssize_t n = read(p[i].fd, b, sizeof(b));
                if (n > 1514) {
                    _exit(1); /* longer than the link: nobody split it */
                }
                if (n <= 0 || (write(p[!i].fd, b, n) < 0 && errno != EAGAIN)) {
                    _exit(n < 0);
                }
            }
        }
    }
    _exit(0);
}

static void talk(int family)
{
    struct sockaddr_in a4 = {.sin_family = AF_INET, .sin_port = g_htons(7)};
    struct sockaddr_in6 a6 = {.sin6_family = AF_INET6, .sin6_port = g_htons(7)};
    bool v4 = family == AF_INET;
    struct timeval tv = {.tv_sec = 10};
    int s = socket(family, SOCK_STREAM, 0);

    inet_pton(AF_INET, "10.9.0.2", &a4.sin_addr);
    inet_pton(AF_INET6, "fd09::2", &a6.sin6_addr);
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
    g_assert_cmpint(connect(s, v4 ? (void *)&a4 : (void *)&a6,
                            v4 ? sizeof(a4) : sizeof(a6)), ==, 0);
    g_autofree uint8_t *data = g_malloc(BULK), *back = g_malloc(BULK);
    for (uint32_t i = 0; i < BULK; i++) {
        data[i] = i * 7 + (i >> 9);
    }
    pid_t sender = fork();
    if (sender == 0) {
        _exit(send(s, data, BULK, MSG_NOSIGNAL) != BULK);
    }
    g_assert_cmpint(recv(s, back, BULK, MSG_WAITALL), ==, BULK);
    g_assert_cmpmem(back, BULK, data, BULK);
    int status;
    waitpid(sender, &status, 0);
    g_assert_cmpint(status, ==, 0);
    close(s);
}

static gint64 counted(const char *name)
{
    g_autoptr(JsonNode) all = proxy_query();
    JsonObject *o = json_array_get_object_element(json_node_get_array(all), 0);
    return json_object_get_int_member(o, name);
}

/* @text names the tap ct0, which has a vnet header. */
static void run_vnet(const char *text, bool offloads)
{
    g_autoptr(GError) err = NULL;
    NetDev *nd = make(text, &err);
    g_assert_no_error(err);
    net_lock();
    int port = dup(netdev_child_fd(nd));
    net_unlock();
    fcntl(port, F_SETFL, fcntl(port, F_GETFL) & ~O_NONBLOCK);
    sh("ip link set ct0 up && ip addr add 10.9.0.1/24 dev ct0 && "
       "ip addr add fd09::1/64 dev ct0 nodad");
    pid_t guest = fork();
    if (guest == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_guest(port);
    }
    g_usleep(300000);
    talk(AF_INET);
    talk(AF_INET6);
    int status = 0;
    g_assert_cmpint(waitpid(guest, &status, WNOHANG), ==, 0); /* no frame was too long */
    kill(guest, SIGKILL);
    waitpid(guest, NULL, 0);
    close(port);
    net_lock();
    g_test_message("split %ld into %ld, checksums %ld", (long)counted("vnet-split"),
                   (long)counted("vnet-made"), (long)counted("vnet-completed"));
    g_assert_cmpint(counted("vnet-split") > 20, ==, offloads);
    g_assert_cmpint(counted("vnet-made") > 2 * BULK / 1460, ==, offloads);
    g_assert_cmpint(counted("vnet-bad"), ==, 0);
    g_assert_true(netdev_del("n0", NULL));
    net_unlock();
    for (int i = 0; i < 200 && if_nametoindex("ct0"); i++) {
        g_usleep(5000);
    }
}

static void test_vnet(void)
{
    run_vnet("tap,id=n0,ifname=ct0,script=no,downscript=no,vnet_hdr=on", true);
}

/* As libvirt hands over: the header is there, whatever we were told. */
static void test_vnet_fd(void)
{
    for (int on = 0; on < 2; on++) {
        int fd = open_tap("ct0", IFF_VNET_HDR), size = on ? 12 : 10;
        g_assert_cmpint(ioctl(fd, TUNSETVNETHDRSZ, &size), ==, 0);
        g_autofree char *text = g_strdup_printf("tap,id=n0,fd=%d,vnet_hdr=%s", fd,
                                                on ? "on" : "off");
        run_vnet(text, on);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (unshare(CLONE_NEWNET) < 0 || access("/dev/net/tun", R_OK | W_OK) < 0) {
        return 77;
    }
    net_init();
    g_test_add_func("/tap/options", test_options);
    g_test_add_func("/tap/traffic", test_traffic);
    g_test_add_func("/tap/vnet", test_vnet);
    g_test_add_func("/tap/vnet-fd", test_vnet_fd);
    int r = g_test_run();
    net_shutdown();
    return r;
}
