/*
 * Backend user: libslirp in the net thread.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * One GSource asks libslirp before each poll which descriptors it waits for, and tells it
 * afterwards what came. Its timers are GSources of the same context.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <slirp/libslirp.h>
#include <string.h>

#include "net/net-int.h"

typedef struct User {
    NetDev *nd;
    Slirp *slirp;
    GSource *source;
    GPtrArray *polls; /* of GPollFD, registered with @source */
    unsigned used;    /* of them, in this round */
} User;

typedef struct UserSource {
    GSource source;
    User *u;
} UserSource;

/* --- Poll --- */

static int add_poll(int fd, int events, void *opaque)
{
    User *u = opaque;
    gushort cond = 0;

    cond |= events & SLIRP_POLL_IN ? G_IO_IN : 0;
    cond |= events & SLIRP_POLL_OUT ? G_IO_OUT : 0;
    cond |= events & SLIRP_POLL_PRI ? G_IO_PRI : 0;
    cond |= events & SLIRP_POLL_ERR ? G_IO_ERR : 0;
    cond |= events & SLIRP_POLL_HUP ? G_IO_HUP : 0;
    if (u->used < u->polls->len) {
        GPollFD *p = u->polls->pdata[u->used];
        if (p->fd == fd) {
            p->events = cond;
            p->revents = 0;
            return u->used++;
        }
        /* The set changed from here on: register anew. */
        while (u->polls->len > u->used) {
            GPollFD *old = u->polls->pdata[u->polls->len - 1];
            g_source_remove_poll(u->source, old);
            g_ptr_array_set_size(u->polls, u->polls->len - 1);
        }
    }
    GPollFD *p = g_new0(GPollFD, 1);
    p->fd = fd;
    p->events = cond;
    g_ptr_array_add(u->polls, p);
    g_source_add_poll(u->source, p);
    return u->used++;
}

static int get_revents(int idx, void *opaque)
{
    User *u = opaque;
    GPollFD *p = u->polls->pdata[idx];
    int ev = 0;

    ev |= p->revents & G_IO_IN ? SLIRP_POLL_IN : 0;
    ev |= p->revents & G_IO_OUT ? SLIRP_POLL_OUT : 0;
    ev |= p->revents & G_IO_PRI ? SLIRP_POLL_PRI : 0;
    ev |= p->revents & G_IO_ERR ? SLIRP_POLL_ERR : 0;
    ev |= p->revents & G_IO_HUP ? SLIRP_POLL_HUP : 0;
    return ev;
}

static gboolean user_prepare(GSource *s, gint *timeout)
{
    User *u = ((UserSource *)s)->u;
    uint32_t ms = UINT32_MAX;

    u->used = 0;
    slirp_pollfds_fill(u->slirp, &ms, add_poll, u);
    while (u->polls->len > u->used) {
        GPollFD *old = u->polls->pdata[u->polls->len - 1];
        g_source_remove_poll(s, old);
        g_ptr_array_set_size(u->polls, u->polls->len - 1);
    }
    *timeout = ms > G_MAXINT ? -1 : (gint)ms;
    return FALSE;
}

static gboolean user_check(GSource *s)
{
    return TRUE; /* its timeouts are looked at after each poll too */
}

static gboolean user_dispatch(GSource *s, GSourceFunc fn, gpointer opaque)
{
    User *u = ((UserSource *)s)->u;

    net_batch_begin();
    slirp_pollfds_poll(u->slirp, 0, get_revents, u);
    net_batch_end();
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs user_source_funcs = {user_prepare, user_check, user_dispatch, NULL};

/* --- Callbacks of libslirp --- */

static ssize_t user_send_packet(const void *buf, size_t len, void *opaque)
{
    User *u = opaque;

    if (len <= FRAME_MAX) {
        Frame *f = frame_from(buf, len);
        f->stamp = g_get_monotonic_time();
        netdev_input(u->nd, f);
    }
    return len;
}

static void user_guest_error(const char *msg, void *opaque)
{
    User *u = opaque;
    colo_trace(net_user_guest_error, "%s: %s", u->nd->id, msg);
}

static int64_t user_clock_ns(void *opaque)
{
    return g_get_monotonic_time() * 1000;
}

typedef struct UserTimer {
    GSource *source;
    SlirpTimerCb cb;
    void *cb_opaque;
} UserTimer;

static gboolean timer_dispatch(GSource *s, GSourceFunc fn, gpointer opaque)
{
    g_source_set_ready_time(s, -1);
    return fn(opaque);
}

static GSourceFuncs timer_funcs = {NULL, NULL, timer_dispatch, NULL};

static gboolean timer_fire(gpointer opaque)
{
    UserTimer *t = opaque;
    t->cb(t->cb_opaque);
    return G_SOURCE_CONTINUE;
}

static void *user_timer_new(SlirpTimerCb cb, void *cb_opaque, void *opaque)
{
    UserTimer *t = g_new0(UserTimer, 1);

    t->cb = cb;
    t->cb_opaque = cb_opaque;
    t->source = g_source_new(&timer_funcs, sizeof(GSource));
    g_source_set_callback(t->source, timer_fire, t, NULL);
    g_source_set_ready_time(t->source, -1);
    g_source_attach(t->source, io_thread_context(net_thread()));
    return t;
}

static void user_timer_free(void *timer, void *opaque)
{
    UserTimer *t = timer;
    io_source_destroy(&t->source);
    g_free(t);
}

static void user_timer_mod(void *timer, int64_t expire_ms, void *opaque)
{
    UserTimer *t = timer;
    g_source_set_ready_time(t->source, expire_ms * 1000);
}

static void user_ignore_fd(int fd, void *opaque)
{
}

static void user_notify(void *opaque)
{
    g_main_context_wakeup(io_thread_context(net_thread()));
}

static const SlirpCb user_callbacks = {
    .send_packet = user_send_packet,
    .guest_error = user_guest_error,
    .clock_get_ns = user_clock_ns,
    .timer_new = user_timer_new,
    .timer_free = user_timer_free,
    .timer_mod = user_timer_mod,
    .register_poll_fd = user_ignore_fd,
    .unregister_poll_fd = user_ignore_fd,
    .notify = user_notify,
};

/* --- Backend --- */

static void user_send(NetDev *nd, Frame *f)
{
    User *u = nd->backend;

    slirp_input(u->slirp, f->data, f->len);
    frame_unref(f);
    /* Output goes on from libslirp's sockets, which the next poll looks at. */
    g_main_context_wakeup(io_thread_context(net_thread()));
}

static void user_close(NetDev *nd)
{
    User *u = nd->backend;

    io_source_destroy(&u->source);
    if (u->slirp) {
        slirp_cleanup(u->slirp);
    }
    g_ptr_array_unref(u->polls);
    g_free(u);
    nd->backend = NULL;
}

static const NetBackend user_ops = {.type = "user", .send = user_send, .close = user_close};

/* --- Options --- */

static bool parse_addr(const char *what, const char *key, const char *text,
                       struct in_addr *out, GError **errp)
{
    if (text && inet_pton(AF_INET, text, out) != 1) {
        colo_error_set(errp, "%s: %s '%s' is not an IPv4 address", what, key, text);
        return false;
    }
    return true;
}

/* "10.0.2.0/24" or "10.0.2.0/255.255.255.0" */
static bool parse_net(const char *what, const char *text, struct in_addr *net,
                      struct in_addr *mask, GError **errp)
{
    g_auto(GStrv) p = g_strsplit(text, "/", 2);
    guint64 bits = 0;

    if (!p[0] || inet_pton(AF_INET, p[0], net) != 1) {
        colo_error_set(errp, "%s: net '%s' is not ADDR[/MASK]", what, text);
        return false;
    }
    if (!p[1]) {
        bits = 24;
    } else if (strchr(p[1], '.')) {
        if (inet_pton(AF_INET, p[1], mask) != 1) {
            colo_error_set(errp, "%s: net '%s' has a wrong mask", what, text);
            return false;
        }
        return true;
    } else if (!g_ascii_string_to_unsigned(p[1], 10, 1, 30, &bits, NULL)) {
        colo_error_set(errp, "%s: net '%s': the mask is 1 to 30 bits", what, text);
        return false;
    }
    mask->s_addr = htonl(~0u << (32 - bits));
    net->s_addr &= mask->s_addr;
    return true;
}

/* [tcp|udp]:[hostaddr]:hostport-[guestaddr]:guestport */
static bool add_hostfwd(User *u, const char *what, const char *rule, GError **errp)
{
    g_autoptr(GRegex) re = g_regex_new(
        "^(tcp|udp)?:([0-9.]*):([0-9]+)-([0-9.]*):([0-9]+)$", 0, 0, NULL);
    g_autoptr(GMatchInfo) m = NULL;

    if (!g_regex_match(re, rule, 0, &m)) {
        colo_error_set(errp, "%s: hostfwd '%s' is not "
                             "[tcp|udp]:[hostaddr]:hostport-[guestaddr]:guestport",
                       what, rule);
        return false;
    }
    g_autofree char *proto = g_match_info_fetch(m, 1);
    g_autofree char *haddr = g_match_info_fetch(m, 2);
    g_autofree char *hport = g_match_info_fetch(m, 3);
    g_autofree char *gaddr = g_match_info_fetch(m, 4);
    g_autofree char *gport = g_match_info_fetch(m, 5);
    struct in_addr h = {0}, g = {0};
    guint64 hp, gp;
    if (!parse_addr(what, "hostfwd", *haddr ? haddr : NULL, &h, errp) ||
        !parse_addr(what, "hostfwd", *gaddr ? gaddr : NULL, &g, errp)) {
        return false;
    }
    if (!g_ascii_string_to_unsigned(hport, 10, 0, 65535, &hp, NULL) ||
        !g_ascii_string_to_unsigned(gport, 10, 1, 65535, &gp, NULL)) {
        colo_error_set(errp, "%s: hostfwd '%s': a port is out of range", what, rule);
        return false;
    }
    if (slirp_add_hostfwd(u->slirp, g_str_equal(proto, "udp"), h, hp, g, gp) < 0) {
        colo_error_set_errno(errp, errno, "%s: could not set up hostfwd '%s'", what, rule);
        return false;
    }
    return true;
}

/* hostfwd is a string, or a list of strings or of {"str": text}. */
static bool add_hostfwds(User *u, const char *what, JsonNode *n, GError **errp)
{
    if (JSON_NODE_HOLDS_VALUE(n)) {
        const char *s = json_node_get_string(n);
        return add_hostfwd(u, what, s ? s : "", errp);
    }
    if (JSON_NODE_HOLDS_ARRAY(n)) {
        JsonArray *a = json_node_get_array(n);
        for (guint i = 0; i < json_array_get_length(a); i++) {
            if (!add_hostfwds(u, what, json_array_get_element(a, i), errp)) {
                return false;
            }
        }
        return true;
    }
    JsonObject *o = json_node_get_object(n);
    g_autoptr(GList) names = json_object_get_members(o);
    for (GList *l = names; l; l = l->next) {
        if (!add_hostfwds(u, what, json_object_get_member(o, l->data), errp)) {
            return false;
        }
    }
    return true;
}

bool net_user_open(NetDev *nd, JsonObject *opts, GError **errp)
{
    static const char *const known[] = {"type", "id",        "net",      "host",    "dns",
                                        "ipv4", "dhcpstart", "hostname", "hostfwd", "ipv6",
                                        "restrict", NULL};
    g_autofree char *what = g_strdup_printf("netdev '%s'", nd->id);
    SlirpConfig cfg = {.version = 3, .in_enabled = true, .in6_enabled = true};
    bool restricted = false;

    if (!options_check_known(opts, what, known, errp) ||
        !options_get_bool(opts, "restrict", &restricted, errp) ||
        !options_get_bool(opts, "ipv4", &cfg.in_enabled, errp) ||
        !options_get_bool(opts, "ipv6", &cfg.in6_enabled, errp) ||
        !parse_net(what, options_get_str(opts, "net", "10.0.2.0/24"), &cfg.vnetwork,
                   &cfg.vnetmask, errp)) {
        return false;
    }
    cfg.restricted = restricted;
    cfg.vhost.s_addr = cfg.vnetwork.s_addr | htonl(2);
    cfg.vnameserver.s_addr = cfg.vnetwork.s_addr | htonl(3);
    cfg.vdhcp_start.s_addr = cfg.vnetwork.s_addr | htonl(15);
    cfg.vhostname = options_get_str(opts, "hostname", NULL);
    if (!parse_addr(what, "host", options_get_str(opts, "host", NULL), &cfg.vhost, errp) ||
        !parse_addr(what, "dns", options_get_str(opts, "dns", NULL), &cfg.vnameserver,
                    errp) ||
        !parse_addr(what, "dhcpstart", options_get_str(opts, "dhcpstart", NULL),
                    &cfg.vdhcp_start, errp)) {
        return false;
    }
    uint32_t mask = cfg.vnetmask.s_addr, in = cfg.vnetwork.s_addr & mask;
    if ((cfg.vhost.s_addr & mask) != in || (cfg.vnameserver.s_addr & mask) != in ||
        (cfg.vdhcp_start.s_addr & mask) != in) {
        colo_error_set(errp, "%s: host, dns and dhcpstart must lie inside net", what);
        return false;
    }
    inet_pton(AF_INET6, "fec0::", &cfg.vprefix_addr6);
    inet_pton(AF_INET6, "fec0::2", &cfg.vhost6);
    inet_pton(AF_INET6, "fec0::3", &cfg.vnameserver6);
    cfg.vprefix_len = 64;

    User *u = g_new0(User, 1);
    u->nd = nd;
    u->polls = g_ptr_array_new_with_free_func(g_free);
    nd->backend = u;
    nd->ops = &user_ops;
    u->slirp = slirp_new(&cfg, &user_callbacks, u);
    JsonNode *fwd = json_object_get_member(opts, "hostfwd");
    if (!u->slirp || (fwd && !add_hostfwds(u, what, fwd, errp))) {
        if (!u->slirp) {
            colo_error_set(errp, "%s: libslirp refused the configuration", what);
        }
        user_close(nd);
        return false;
    }
    u->source = g_source_new(&user_source_funcs, sizeof(UserSource));
    ((UserSource *)u->source)->u = u;
    g_source_attach(u->source, io_thread_context(net_thread()));
    return true;
}
