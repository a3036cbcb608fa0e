/*
 * colo-switch: the way outside, a libslirp stack.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * It makes tests and demos possible without root: the client speaks to a forwarded port
 * of this machine, and the stack speaks to the guests.
 */
#include "switch.h"
#include "util/error.h"

#include <slirp/libslirp.h>
#include <stdio.h>
#include <string.h>

typedef struct Timer {
    Uplink *uplink;
    SlirpTimerCb fn;
    void *opaque;
    int64_t expire_ms; /* -1: not armed */
} Timer;

struct Uplink {
    Switch *sw;
    Slirp *slirp;
    GPtrArray *timers;
    GArray *fds;      /* of the poll that goes on */
    struct in_addr guest; /* DHCP's first address: default of a forward */
};

static ssize_t on_send(const void *buf, size_t len, void *opaque)
{
    Uplink *u = opaque;

    switch_from_uplink(u->sw, buf, len);
    return len;
}

static void on_guest_error(const char *msg, void *opaque)
{
    g_printerr("colo-switch: guest: %s\n", msg);
}

static int64_t on_clock(void *opaque)
{
    return g_get_monotonic_time() * 1000;
}

static void *on_timer_new(SlirpTimerCb fn, void *cb_opaque, void *opaque)
{
    Uplink *u = opaque;
    Timer *t = g_new0(Timer, 1);

    *t = (Timer){u, fn, cb_opaque, -1};
    g_ptr_array_add(u->timers, t);
    return t;
}

static void on_timer_free(void *timer, void *opaque)
{
    Uplink *u = opaque;

    g_ptr_array_remove(u->timers, timer);
}

static void on_timer_mod(void *timer, int64_t expire_ms, void *opaque)
{
    Timer *t = timer;

    t->expire_ms = expire_ms;
}

static void on_fd(int fd, void *opaque)
{
}

static void on_notify(void *opaque)
{
}

static const SlirpCb callbacks = {
    .send_packet = on_send,
    .guest_error = on_guest_error,
    .clock_get_ns = on_clock,
    .timer_new = on_timer_new,
    .timer_free = on_timer_free,
    .timer_mod = on_timer_mod,
    .register_poll_fd = on_fd,
    .unregister_poll_fd = on_fd,
    .notify = on_notify,
};

Uplink *uplink_new(Switch *sw, const char *net, gboolean restricted, GError **errp)
{
    g_auto(GStrv) parts = g_strsplit(net, "/", 2);
    SlirpConfig cfg = {.version = 1, .in_enabled = true, .restricted = restricted};
    Uplink *u;
    guint64 bits = 0;
    guint32 base, mask;

    if (!parts[0] || !parts[1] || inet_pton(AF_INET, parts[0], &cfg.vnetwork) != 1 ||
        !g_ascii_string_to_unsigned(parts[1], 10, 8, 27, &bits, NULL)) {
        colo_error_set(errp, "--net %s: expected ADDRESS/BITS with 8 to 27 bits, e.g. "
                       "10.0.2.0/24", net);
        return NULL;
    }
    mask = ~0u << (32 - bits);
    base = ntohl(cfg.vnetwork.s_addr) & mask;
    cfg.vnetwork.s_addr = htonl(base);
    cfg.vnetmask.s_addr = htonl(mask);
    cfg.vhost.s_addr = htonl(base + 2);
    cfg.vnameserver.s_addr = htonl(base + 3);
    cfg.vdhcp_start.s_addr = htonl(base + 15);
    u = g_new0(Uplink, 1);
    u->sw = sw;
    u->guest = cfg.vdhcp_start;
    u->timers = g_ptr_array_new_with_free_func(g_free);
    u->slirp = slirp_new(&cfg, &callbacks, u);
    return u;
}

void uplink_free(Uplink *u)
{
    slirp_cleanup(u->slirp);
    g_ptr_array_free(u->timers, TRUE);
    g_free(u);
}

/* "ADDRESS:PORT", the address may be missing: then *@addr keeps its value. */
static gboolean parse_end(const char *text, struct in_addr *addr, int *port)
{
    g_auto(GStrv) parts = g_strsplit(text, ":", 2);
    guint64 n;

    if (!parts[0] || !parts[1] || (parts[0][0] && inet_pton(AF_INET, parts[0], addr) != 1) ||
        !g_ascii_string_to_unsigned(parts[1], 10, 1, 65535, &n, NULL)) {
        return FALSE;
    }
    *port = n;
    return TRUE;
}

gboolean uplink_add_forward(Uplink *u, const char *rule, GError **errp)
{
    gboolean udp = g_str_has_prefix(rule, "udp:");
    g_auto(GStrv) ends = g_strsplit(rule + (strlen(rule) < 4 ? 0 : 4), "-", 2);
    struct in_addr host = {htonl(INADDR_LOOPBACK)}, guest = u->guest;
    int host_port = 0, guest_port = 0;

    if ((!udp && !g_str_has_prefix(rule, "tcp:")) || !ends[0] || !ends[1] ||
        !parse_end(ends[0], &host, &host_port) || !parse_end(ends[1], &guest, &guest_port)) {
        colo_error_set(errp, "--hostfwd %s: expected "
                       "tcp|udp:[hostaddr]:hostport-[guestaddr]:guestport", rule);
        return FALSE;
    }
    if (slirp_add_hostfwd(u->slirp, udp, host, host_port, guest, guest_port) < 0) {
        colo_error_set(errp, "--hostfwd %s: host port %d cannot be opened; is it taken?",
                       rule, host_port);
        return FALSE;
    }
    return TRUE;
}

void uplink_input(Uplink *u, const uint8_t *frame, size_t len)
{
    slirp_input(u->slirp, frame, len);
}

static int add_poll(int fd, int events, void *opaque)
{
    Uplink *u = opaque;
    GPollFD pfd = {.fd = fd};

    pfd.events = (events & SLIRP_POLL_IN ? G_IO_IN : 0) |
                 (events & SLIRP_POLL_OUT ? G_IO_OUT : 0) |
                 (events & SLIRP_POLL_PRI ? G_IO_PRI : 0);
    g_array_append_val(u->fds, pfd);
    return u->fds->len - 1;
}

static int get_events(int index, void *opaque)
{
    Uplink *u = opaque;
    gushort got = g_array_index(u->fds, GPollFD, index).revents;

    return (got & G_IO_IN ? SLIRP_POLL_IN : 0) | (got & G_IO_OUT ? SLIRP_POLL_OUT : 0) |
           (got & G_IO_PRI ? SLIRP_POLL_PRI : 0) | (got & G_IO_ERR ? SLIRP_POLL_ERR : 0) |
           (got & G_IO_HUP ? SLIRP_POLL_HUP : 0);
}

void uplink_fill(Uplink *u, GArray *fds, int *timeout_ms)
{
    uint32_t timeout = *timeout_ms < 0 ? UINT32_MAX : (uint32_t)*timeout_ms;
    int64_t now = g_get_monotonic_time() / 1000;

    u->fds = fds;
    slirp_pollfds_fill(u->slirp, &timeout, add_poll, u);
    for (guint i = 0; i < u->timers->len; i++) {
        Timer *t = g_ptr_array_index(u->timers, i);

        if (t->expire_ms >= 0) {
            int64_t left = t->expire_ms > now ? t->expire_ms - now : 0;

            timeout = left < timeout ? left : timeout;
        }
    }
    *timeout_ms = timeout == UINT32_MAX ? -1 : (int)MIN(timeout, (uint32_t)G_MAXINT);
}

void uplink_poll(Uplink *u, GArray *fds, gboolean failed)
{
    int64_t now = g_get_monotonic_time() / 1000;

    u->fds = fds;
    slirp_pollfds_poll(u->slirp, failed, get_events, u);
    for (guint i = 0; i < u->timers->len; i++) {
        Timer *t = g_ptr_array_index(u->timers, i);

        if (t->expire_ms >= 0 && t->expire_ms <= now) {
            t->expire_ms = -1;
            t->fn(t->opaque);
        }
    }
}
