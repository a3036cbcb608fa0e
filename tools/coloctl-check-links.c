/*
 * coloctl check: the heartbeat's links. A firewall that lets TCP pass often stops UDP, and
 * without beats protection never begins.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The host that serves sends back each short datagram that comes to a link's port from that
 * link's peer, from a thread that lives as long as the process.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "coloctl-check.h"
#include "coloctl-net.h"

#define WORD "coloctl check"
#define TRIES 5
#define TRY_US 400000

typedef struct Echo {
    GArray *fds;      /* struct pollfd */
    GPtrArray *peers; /* char *, who may ask at each */
} Echo;

static void *echo(void *opaque)
{
    Echo *e = opaque;

    for (;;) {
        struct pollfd *p = (struct pollfd *)e->fds->data;
        if (poll(p, e->fds->len, -1) < 0 && errno != EINTR) {
            return NULL;
        }
        for (guint i = 0; i < e->fds->len; i++) {
            char buf[64];
            NetAddress from;
            socklen_t len = sizeof(from);
            ssize_t n = recvfrom(p[i].fd, buf, sizeof(buf), MSG_DONTWAIT | MSG_TRUNC, &from.any,
                                 &len);
            if (n == strlen(WORD) && memcmp(buf, WORD, n) == 0 &&
                net_is(&from, e->peers->pdata[i])) {
                sendto(p[i].fd, buf, n, MSG_DONTWAIT, &from.any, len);
            }
        }
    }
}

unsigned links_serve(const VmConf *c)
{
    char **mine = vm_conf_self(c)->addresses, **its = vm_conf_peer(c)->addresses;
    Echo *e = g_new0(Echo, 1);

    e->fds = g_array_new(FALSE, FALSE, sizeof(struct pollfd));
    e->peers = g_ptr_array_new_with_free_func(g_free);
    for (int i = 0; c->heartbeat && mine[i]; i++) {
        struct pollfd p = {.events = POLLIN};
        p.fd = net_bind_udp(mine[i], vm_conf_port(c, VM_PORT_HEARTBEAT), NULL);
        if (p.fd >= 0) {
            g_array_append_val(e->fds, p);
            g_ptr_array_add(e->peers, g_strdup(its[i]));
        }
    }
    unsigned n = e->fds->len;
    g_thread_unref(g_thread_new("echo", echo, e));
    return n;
}

/* The shortest way there and back in us, or -1. */
static int64_t ask_link(const char *mine, const char *peer, unsigned port, GError **errp)
{
    int fd = net_bind_udp(mine, 0, errp);
    int64_t best = -1;

    for (int i = 0; fd >= 0 && best < 0 && i < TRIES; i++) {
        gint64 begin = g_get_monotonic_time();
        char buf[64];
        NetAddress from;
        socklen_t len = sizeof(from);
        if (net_send_to(fd, peer, port, WORD, strlen(WORD)) &&
            net_wait(fd, POLLIN, begin + TRY_US) &&
            recvfrom(fd, buf, sizeof(buf), MSG_DONTWAIT, &from.any, &len) == strlen(WORD) &&
            net_is(&from, peer)) {
            best = g_get_monotonic_time() - begin;
        }
    }
    if (fd >= 0) {
        close(fd);
    }
    return best;
}

void check_links(const VmConf *c, int64_t served, GPtrArray *list)
{
    char **mine = vm_conf_self(c)->addresses, **its = vm_conf_peer(c)->addresses;
    unsigned port = vm_conf_port(c, VM_PORT_HEARTBEAT);

    if (!c->heartbeat) {
        return;
    }
    if (served < (int64_t)g_strv_length(its)) {
        finding_add(list, FINDING_WARN, "heartbeat links", "try again before the VM runs there, "
                    "and see what its own findings say of its ports", "not tried: port %u is "
                    "taken on the other host", port);
        return;
    }
    for (int i = 0; mine[i]; i++) {
        g_autoptr(GError) err = NULL;
        g_autofree char *what = g_strdup_printf("heartbeat link %d", i);
        int64_t rtt = ask_link(mine[i], its[i], port, &err);
        g_autofree char *shown = rtt < 0 ? NULL : ctl_us(rtt);
        finding_add(list, rtt < 0 ? FINDING_FAIL : FINDING_OK, what,
                    "let UDP of this port pass both ways between these addresses: without beats "
                    "protection does not begin", "%s to %s port %u: %s", mine[i], its[i], port,
                    shown ? shown : err ? err->message : "no answer");
    }
}
