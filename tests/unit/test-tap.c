/*
 * Backend tap in a network namespace of its own; skipped without the right to make one.
 * Build: tests/unit/test-tap.c; dependencies: net, chardev, util.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/net.h"
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
    refuse("tap,id=n0,vnet_hdr=on", "vnet_hdr=on");
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

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (unshare(CLONE_NEWNET) < 0 || access("/dev/net/tun", R_OK | W_OK) < 0) {
        return 77;
    }
    net_init();
    g_test_add_func("/tap/options", test_options);
    g_test_add_func("/tap/traffic", test_traffic);
    int r = g_test_run();
    net_shutdown();
    return r;
}
