/*
 * The net thread, NetDevs, the filter chain's traffic.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Room singleton @net: the thread and its NetDevs, guarded by the net lock.
 *
 * A frame's way in: backend -> netdev_input() (gate, bounds) -> netdev_tx() (hold) ->
 * chain -> child port. Its way out: child port -> netdev_rx() -> chain in reverse ->
 * netdev_output() (gate.c) -> backend. A filter may take a frame and let it, or others,
 * enter again behind itself.
 */
#include <string.h>

#include "net/colo/colo-int.h"
#include "net/net-int.h"

#define SVM_BACKLOG_DROP 16384 /* frames that wait for a guest slower than its twin */

typedef struct Flush {
    void (*fn)(void *opaque);
    void *opaque;
} Flush;

static struct {
    ColoIoThread *thread;
    GPtrArray *netdevs;
    unsigned batch_depth;
    GArray *batch;     /* of Flush */
    int64_t batch_now; /* 0: nobody has asked in this batch */
    GSource *announce_timer;
    unsigned announce_step;
    void (*nudge)(const char *netdev);
} net;

static const unsigned announce_at_ms[] = {0, 50, 150, 300, 1000};

void net_init(void)
{
    g_assert(!net.thread);
    net.netdevs = g_ptr_array_new();
    net.batch = g_array_new(FALSE, FALSE, sizeof(Flush));
    net.thread = io_thread_new("colo-net");
}

void net_lock(void)
{
    io_thread_lock(net.thread);
}

void net_unlock(void)
{
    io_thread_unlock(net.thread);
}

ColoIoThread *net_thread(void)
{
    return net.thread;
}

GPtrArray *netdev_list(void)
{
    return net.netdevs;
}

/* --- Batches --- */

void net_batch_begin(void)
{
    if (net.batch_depth++ == 0) {
        net.batch_now = 0;
    }
}

int64_t net_now(void)
{
    if (net.batch_depth == 0) {
        return g_get_monotonic_time();
    }
    if (!net.batch_now) {
        net.batch_now = g_get_monotonic_time();
    }
    return net.batch_now;
}

void net_batch_end(void)
{
    g_assert(net.batch_depth > 0);
    if (--net.batch_depth > 0) {
        return;
    }
    /* A flush may cause others (a joined chardev), in a batch of their own. */
    while (net.batch->len) {
        Flush fl = g_array_index(net.batch, Flush, net.batch->len - 1);
        g_array_set_size(net.batch, net.batch->len - 1);
        fl.fn(fl.opaque);
    }
}

bool net_batch_active(void)
{
    return net.batch_depth > 0;
}

void net_batch_add(void (*flush)(void *opaque), void *opaque)
{
    for (unsigned i = 0; i < net.batch->len; i++) {
        Flush *fl = &g_array_index(net.batch, Flush, i);
        if (fl->fn == flush && fl->opaque == opaque) {
            return;
        }
    }
    Flush fl = {flush, opaque};
    g_array_append_val(net.batch, fl);
}

void net_batch_remove(void (*flush)(void *opaque), void *opaque)
{
    for (unsigned i = 0; net.batch && i < net.batch->len; i++) {
        Flush *fl = &g_array_index(net.batch, Flush, i);
        if (fl->fn == flush && fl->opaque == opaque) {
            g_array_remove_index_fast(net.batch, i);
            return;
        }
    }
}

/* --- Towards the guest --- */

static int filter_index(NetDev *nd, NetFilter *nf)
{
    for (unsigned i = 0; i < nd->filters->len; i++) {
        if (nd->filters->pdata[i] == nf) {
            return i;
        }
    }
    return -1;
}

static Frame *filter_receive(NetFilter *nf, NetFilterDirection dir, Frame *f)
{
    if (!nf->on || !(nf->direction & dir)) {
        return f;
    }
    return nf->class->receive(nf, dir, f);
}

static void chain_tx(NetDev *nd, Frame *f, NetFilter *after)
{
    Frame *outer_orig = nd->cur_orig;
    NetFilter *outer_after = nd->cur_after;
    Frame *orig = frame_ref(f);

    nd->cur_orig = orig;
    nd->cur_after = after;
    for (unsigned i = after ? filter_index(nd, after) + 1 : 0;
         f && i < nd->filters->len; i++) {
        f = filter_receive(nd->filters->pdata[i], NET_FILTER_TX, f);
    }
    if (f && child_port_backlog(nd->port) >= SVM_BACKLOG_DROP) {
        nd->stats.dropped_full++;
        frame_unref(f);
    } else if (f) {
        nd->stats.tx_frames++;
        nd->stats.tx_bytes += f->len;
        child_port_send(nd->port, f, orig, after);
    }
    frame_unref(orig);
    nd->cur_orig = outer_orig;
    nd->cur_after = outer_after;
}

void netdev_tx(NetDev *nd, Frame *f, NetFilter *after)
{
    if (nd->held) {
        if (nd->input.count >= SVM_BACKLOG_DROP) {
            nd->stats.dropped_full++;
            frame_unref(f);
            return;
        }
        entry_ring_push(&nd->input, f, NULL, after);
        return;
    }
    chain_tx(nd, f, after);
}

static void set_throttle(NetDev *nd, bool stop)
{
    if (nd->throttled != stop && nd->ops->throttle) {
        nd->throttled = stop;
        nd->ops->throttle(nd, stop);
    }
}

void netdev_input(NetDev *nd, Frame *f)
{
    if (net_get_role() == NET_ROLE_SECONDARY || f->len < FRAME_MIN_ETH) {
        nd->stats.dropped_gate++;
        frame_unref(f);
        return;
    }
    unsigned waiting = nd->held ? nd->input.count : child_port_backlog(nd->port);
    unsigned bound = nd->held ? NET_HELD_FRAMES : NET_BACKLOG_DROP;
    if (waiting >= bound) {
        /* Before the chain, so that the twin does not see it either. */
        nd->stats.dropped_full++;
        frame_unref(f);
        return;
    }
    netdev_tx(nd, f, NULL);
    if (!nd->held && child_port_backlog(nd->port) >= NET_BACKLOG_STOP) {
        child_port_flush(nd->port);
        /* What is still there waits for the guest, and its end is told. */
        if (child_port_backlog(nd->port) >= NET_BACKLOG_STOP) {
            set_throttle(nd, true);
        }
    }
}

static void netdev_port_idle(void *opaque)
{
    set_throttle(opaque, false);
}

void netdev_hold(NetDev *nd)
{
    if (nd->held) {
        return;
    }
    nd->held = true;
    unsigned had = nd->back.count;
    child_port_hold(nd->port, &nd->back);
    nd->stats.taken_back += nd->back.count - had;
    colo_trace(net_hold, "%s: %u frames taken back", nd->id, nd->back.count);
}

void netdev_release(NetDev *nd)
{
    if (!nd->held) {
        return;
    }
    nd->held = false;
    net_batch_begin();
    child_port_resume(nd->port);
    unsigned n = nd->back.count;
    while (nd->back.count) {
        ChainEntry e = entry_ring_pop(&nd->back);
        chain_tx(nd, e.frame, e.after);
    }
    while (nd->input.count) {
        ChainEntry e = entry_ring_pop(&nd->input);
        chain_tx(nd, e.frame, e.after);
    }
    net_batch_end();
    /* Not left to a batch around this one: what it empties without ever finding the socket
     * full calls no netdev_port_idle(), and the outside would stay unread for good. */
    child_port_flush(nd->port);
    if (!child_port_backlog(nd->port)) {
        set_throttle(nd, false);
    }
    colo_trace(net_release, "%s: %u frames run again", nd->id, n);
}

void netdev_discard_input(NetDev *nd)
{
    entry_ring_clear(&nd->back);
    entry_ring_clear(&nd->input);
}

void netdev_forget_filter(NetDev *nd, NetFilter *nf)
{
    int i = filter_index(nd, nf);
    NetFilter *instead = i > 0 ? nd->filters->pdata[i - 1] : NULL;

    entry_ring_replace(&nd->back, nf, instead);
    entry_ring_replace(&nd->input, nf, instead);
    child_port_forget_filter(nd->port, nf, instead);
}

/* --- From the guest --- */

void netdev_rx(NetDev *nd, Frame *f, NetFilter *after)
{
    int i = after ? filter_index(nd, after) : (int)nd->filters->len;

    while (f && --i >= 0) {
        f = filter_receive(nd->filters->pdata[i], NET_FILTER_RX, f);
    }
    if (f) {
        netdev_output(nd, f);
    }
}

static void netdev_port_rx(void *opaque, Frame *f)
{
    NetDev *nd = opaque;

    nd->stats.rx_frames++;
    nd->stats.rx_bytes += f->len;
    if (nd->discard_output) {
        frame_unref(f);
        return;
    }
    announce_learn(nd->addrs, f);
    netdev_rx(nd, f, NULL);
}

/* --- Announcements --- */

static void announce_output(Frame *f, void *opaque)
{
    netdev_output(opaque, f);
}

void announce_nics(char **names)
{
    NetRole role = net_get_role();

    if (role != NET_ROLE_ALONE && role != NET_ROLE_PRIMARY) {
        return;
    }
    for (unsigned i = 0; i < net.netdevs->len; i++) {
        NetDev *nd = net.netdevs->pdata[i];
        if (!names || (nd->nic && g_strv_contains((const char *const *)names, nd->nic))) {
            announce_each(nd->addrs, announce_output, nd);
        }
    }
}

static void announce_now(void)
{
    announce_nics(NULL);
}

static gboolean announce_again(gpointer opaque)
{
    announce_now();
    io_source_destroy(&net.announce_timer);
    unsigned step = ++net.announce_step;
    if (step + 1 < G_N_ELEMENTS(announce_at_ms)) {
        net.announce_timer =
            io_thread_timer(net.thread, announce_at_ms[step + 1] - announce_at_ms[step],
                            announce_again, NULL);
    }
    return G_SOURCE_REMOVE;
}

void net_announce(void)
{
    io_source_destroy(&net.announce_timer);
    net.announce_step = 0;
    announce_now();
    net.announce_timer =
        io_thread_timer(net.thread, announce_at_ms[1], announce_again, NULL);
}

/* --- NetDevs --- */

typedef struct NetType {
    const char *type;
    bool (*open)(NetDev *nd, JsonObject *opts, GError **errp);
} NetType;

static const NetType net_types[] = {
    {"tap", net_tap_open},       {"bridge", net_bridge_open}, {"user", net_user_open},
    {"socket", net_socket_open}, {"stream", net_stream_open},
};

static const NetType *find_type(JsonObject *opts)
{
    const char *type = options_get_str(opts, "type", NULL);

    for (unsigned i = 0; type && i < G_N_ELEMENTS(net_types); i++) {
        if (g_str_equal(type, net_types[i].type)) {
            return &net_types[i];
        }
    }
    return NULL;
}

bool netdev_wants(JsonObject *opts)
{
    return find_type(opts) != NULL;
}

NetDev *netdev_find(const char *id)
{
    for (unsigned i = 0; i < net.netdevs->len; i++) {
        NetDev *nd = net.netdevs->pdata[i];
        if (g_str_equal(nd->id, id)) {
            return nd;
        }
    }
    return NULL;
}

static void netdev_free(NetDev *nd)
{
    if (nd->backend) {
        nd->ops->close(nd);
    }
    child_port_free(nd->port);
    entry_ring_free(&nd->back);
    entry_ring_free(&nd->input);
    frame_queue_clear(&nd->kept);
    announce_table_free(nd->addrs);
    g_ptr_array_unref(nd->filters);
    g_free(nd->id);
    g_free(nd->nic);
    g_free(nd);
}

void net_set_nudge(void (*fn)(const char *netdev))
{
    net.nudge = fn;
}

static void netdev_port_stalled(void *opaque)
{
    NetDev *nd = opaque;

    nd->stats.nudges++;
    colo_trace(net_nudge, "%s", nd->id);
    if (net.nudge) {
        net.nudge(nd->id);
    }
}

NetDev *netdev_new(JsonObject *opts, GError **errp)
{
    const NetType *type = find_type(opts);
    const char *id = options_get_str(opts, "id", NULL);

    if (!type) {
        colo_error_set(errp,
                       "-netdev type '%s' cannot be replicated; use one of tap, bridge, "
                       "user, socket, stream",
                       options_get_str(opts, "type", ""));
        return NULL;
    }
    if (!id || !*id) {
        colo_error_set(errp, "-netdev %s: option 'id' is missing", type->type);
        return NULL;
    }
    if (netdev_find(id)) {
        colo_error_set(errp, "Duplicate ID '%s'", id);
        return NULL;
    }
    NetDev *nd = g_new0(NetDev, 1);
    nd->id = g_strdup(id);
    nd->filters = g_ptr_array_new();
    nd->addrs = announce_table_new();
    entry_ring_init(&nd->back, 256);
    entry_ring_init(&nd->input, 256);
    nd->port = child_port_new(net.thread, netdev_port_rx, netdev_port_idle, nd, errp);
    if (!nd->port || !type->open(nd, opts, errp)) {
        nd->backend = NULL;
        netdev_free(nd);
        return NULL;
    }
    child_port_on_stall(nd->port, netdev_port_stalled);
    g_ptr_array_add(net.netdevs, nd);
    colo_trace(net_netdev_new, "%s type %s", id, type->type);
    return nd;
}

bool netdev_del(const char *id, GError **errp)
{
    NetDev *nd = netdev_find(id);

    if (!nd) {
        g_set_error(errp, COLO_ERROR, COLO_ERROR_DEVICE_NOT_FOUND,
                    "Device '%s' not found", id);
        return false;
    }
    for (unsigned i = 0; i < nd->filters->len; i++) {
        NetFilter *nf = nd->filters->pdata[i];
        if (proxy_uses(nf)) {
            colo_error_set(errp, "netdev '%s' is in use by COLO until protection has ended",
                           id);
            return false;
        }
    }
    /* As in QEMU, filters go with it: those that are objects, then any other. */
    while (nd->filters->len) {
        NetFilter *nf = nd->filters->pdata[nd->filters->len - 1];
        g_autofree char *name = g_strdup(nf->id);
        if (!net_object_del(name, NULL)) {
            net_filter_free(nf);
        }
    }
    g_ptr_array_remove(net.netdevs, nd);
    netdev_free(nd);
    return true;
}

int netdev_child_fd(NetDev *nd)
{
    return child_port_child_fd(nd->port);
}

char *netdev_child_option(NetDev *nd)
{
    return g_strdup_printf("dgram,id=%s,local.type=fd,local.str=%d", nd->id,
                           netdev_child_fd(nd));
}

void netdev_set_nic(NetDev *nd, const char *nic)
{
    g_free(nd->nic);
    nd->nic = g_strdup(nic);
}

void netdev_set_mac(NetDev *nd, const uint8_t mac[6])
{
    nd->has_mac = true;
    announce_set_mac(nd->addrs, mac);
}

void net_shutdown(void)
{
    if (!net.thread) {
        return;
    }
    net_lock();
    g_auto(GStrv) ids = net_object_ids();
    /* Users before what they use; an object in use is tried again in the next round. */
    for (int round = 0; round < 2; round++) {
        for (int i = 0; ids[i]; i++) {
            net_object_del(ids[i], NULL);
        }
    }
    io_source_destroy(&net.announce_timer);
    announce_self_shutdown();
    while (net.netdevs->len) {
        NetDev *nd = net.netdevs->pdata[net.netdevs->len - 1];
        g_ptr_array_remove(net.netdevs, nd);
        netdev_free(nd);
    }
    net_unlock();
    io_thread_free(net.thread);
    g_ptr_array_unref(net.netdevs);
    g_array_unref(net.batch);
    memset(&net, 0, sizeof(net));
    net_gate_reset();
}
