/*
 * The channel: the round trip that the clocks of two hosts are compared with.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <arpa/inet.h>
#include <glib.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "migration/channel.h"

#define STALL_MS 30000
#define MESSAGES 12

/* A connection over the loopback interface. */
static void connect_pair(int sv[2])
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_assert_no_errno(bind(l, (struct sockaddr *)&a, sizeof(a)));
    g_assert_no_errno(listen(l, 1));
    g_assert_no_errno(getsockname(l, (struct sockaddr *)&a, &len));
    sv[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_no_errno(connect(sv[0], (struct sockaddr *)&a, sizeof(a)));
    sv[1] = accept4(l, NULL, NULL, SOCK_CLOEXEC);
    g_assert_no_errno(sv[1]);
    close(l);
}

/* A peer that only listens acknowledges late, which is no property of the way to it: half of
 * what it takes its time for would be put on the SVM's clock. */
static void test_late_acks(void)
{
    struct tcp_info info = {0};
    socklen_t len = sizeof(info);
    int sv[2], zero = 0, left = 0;
    char sink[4096];

    connect_pair(sv);
    g_autoptr(GError) err = NULL;
    Channel *ch = channel_new(sv[0], STALL_MS);
    for (int i = 0; i < MESSAGES; i++) {
        uint64_t text[1] = {i};
        g_assert_no_errno(setsockopt(sv[1], IPPROTO_TCP, TCP_QUICKACK, &zero, sizeof(zero)));
        g_assert_true(channel_send_u64(ch, CHANNEL_MARK, text, 1, &err));
        do {
            while (recv(sv[1], sink, sizeof(sink), MSG_DONTWAIT) > 0) {
            }
            g_usleep(500);
            g_assert_no_errno(ioctl(sv[0], SIOCOUTQ, &left));
        } while (left > 0);
    }
    g_assert_no_errno(getsockopt(sv[0], IPPROTO_TCP, TCP_INFO, &info, &len));
    g_test_message("usual %u us, taken %" G_GINT64_FORMAT " us", info.tcpi_rtt,
                   channel_rtt(ch));
    if (info.tcpi_rtt < 5000) {
        g_test_skip("this kernel acknowledges at once");
    } else {
        g_assert_cmpint(channel_rtt(ch), >, 0);
        g_assert_cmpint(channel_rtt(ch), <, info.tcpi_rtt / 4);
    }
    channel_free(ch);
    close(sv[1]);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/channel/rtt/late-acks", test_late_acks);
    return g_test_run();
}
