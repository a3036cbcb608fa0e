/*
 * The proxy: markers, epochs, hold and release over mirror, comparison and rewriter.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal. Both guests get the same input in the same epoch, and output of one epoch is
 * never taken for that of another, whatever is in flight on the two streams.
 *
 * Streams. Each NetDev has a mirror stream (primary -> secondary: the input) and a
 * comparison stream (secondary -> primary: the SVM's output). On both a marker says
 * "what follows is of epoch e" and how many frames went before on this connection. The
 * receiver counts too. A marker is sent again as the first thing on a new connection.
 *
 * Mirror input on the secondary, by the epoch f of a frame, @min (the epoch that a
 * roll-back aims at) and @svm (that the SVM runs in): f < min: of the past, dropped;
 * running and f == svm: delivered; else it waits. So a frame whose marker has arrived
 * before the roll-back, or after, is treated the same.
 *
 * Repeats. Frames that the guest had not read at a cut were mirrored before the marker
 * and are mirrored again after it. The marker says how many, so that a takeover at a torn
 * checkpoint, where the SVM goes on from the old epoch, does not feed them twice.
 *
 * Losses. On the comparison stream the primary sees the count and asks for a checkpoint.
 * On the mirror stream the secondary sees it and tells back on the same connection
 * (CHARDEV_CTL_GAP). A connection that comes or goes under protection is a loss too.
 *
 * Bodies of control messages, big-endian:
 *   MARKER  u64 epoch, u64 frames sent before on this connection, u32 repeats
 *   ISN     FlowKey (guest 16, client 16, u16, u16, u32 vlan, u16 type, u8, u8), u32 PVM's,
 *           u32 SVM's
 *   GAP     u64 epoch, u64 frames missing
 *   LOGGED  FlowKey, u32 end of the client's bytes that the secondary has
 *
 * Invariants. Under role PRIMARY, from the first cut on, the guest gets no frame that the
 * mirror did not take. Under SECONDARY nothing passes the gate. Losing an object that
 * protection needs silences this side.
 *
 * Room singleton @proxy, guarded by the net lock.
 */
#include "net/colo/proxy-int.h"

#include <inttypes.h>
#include <string.h>

ProxyState proxy;

const char *proxy_trigger_name(ProxyTrigger t)
{
    static const char *const names[] = {"mismatch", "timeout", "no-twin", "backlog",
                                        "stream",   "stream gone"};
    return t <= PROXY_TRIGGER_GONE ? names[t] : "unknown";
}

void proxy_trigger(ProxyTrigger t, const char *detail)
{
    if (!proxy.primary || !proxy.fn || net_get_role() != NET_ROLE_PRIMARY) {
        return;
    }
    proxy.triggers[t]++;
    colo_trace(proxy_wish, "%s: %s", proxy_trigger_name(t), detail);
    proxy.fn(t, detail, proxy.opaque);
}

/* --- Big-endian bodies --- */

uint8_t *proxy_put_int(uint8_t *p, uint64_t v, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        p[i] = v >> (8 * (bytes - 1 - i));
    }
    return p + bytes;
}

uint64_t proxy_get_int(const uint8_t **p, unsigned bytes)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < bytes; i++) {
        v = v << 8 | (*p)[i];
    }
    *p += bytes;
    return v;
}

bool proxy_send_marker(Chardev *c, uint64_t epoch, uint64_t frames, uint32_t repeats)
{
    uint8_t body[20], *p = body;

    p = proxy_put_int(p, epoch, 8);
    p = proxy_put_int(p, frames, 8);
    p = proxy_put_int(p, repeats, 4);
    ChardevControl msg = {CHARDEV_CTL_MARKER, p - body, body};
    colo_trace(proxy_marker, "%s: epoch %" PRIu64 " after %" PRIu64 " frames",
               chardev_id(c), epoch, frames);
    return chardev_send_control(c, &msg);
}

bool proxy_parse_marker(const ChardevControl *msg, ProxyMarker *m)
{
    const uint8_t *p = msg->body;

    if (msg->type != CHARDEV_CTL_MARKER || msg->len != 20) {
        return false;
    }
    m->epoch = proxy_get_int(&p, 8);
    m->frames = proxy_get_int(&p, 8);
    m->repeats = proxy_get_int(&p, 4);
    return true;
}

/* Frames missing on a connection, if more than were known; *@known is brought up. */
uint64_t proxy_new_gap(uint64_t said, uint64_t got, uint64_t *known)
{
    uint64_t gap = said > got ? said - got : 0;
    uint64_t more = gap > *known ? gap - *known : 0;

    *known = gap;
    return more;
}

/* --- Finding the parts --- */

typedef struct Finder {
    NetDev *nd;
    ProxyLink *l;
} Finder;

static void find_filters(NetFilter *nf, ColoCompare *cmp, void *opaque)
{
    Finder *f = opaque;

    if (!nf || nf->nd != f->nd || !nf->on) {
        return;
    }
    if (nf->class == &filter_mirror_class && (nf->direction & NET_FILTER_TX)) {
        f->l->mirror = (FilterMirror *)nf;
    } else if (nf->class == &filter_rewriter_class) {
        f->l->rew = (FilterRewriter *)nf;
    } else if (nf->class == &filter_redirector_class) {
        FilterRedirector *r = (FilterRedirector *)nf;
        if (r->in && (nf->direction & NET_FILTER_TX)) {
            f->l->in = r;
        }
        if (r->out && (nf->direction & NET_FILTER_RX)) {
            f->l->out = r;
        }
    }
}

void proxy_find_links(void)
{
    GPtrArray *nds = netdev_list();

    g_assert(!proxy.links);
    proxy.links = g_array_new(FALSE, TRUE, sizeof(ProxyLink));
    for (unsigned i = 0; i < nds->len; i++) {
        ProxyLink l = {.nd = nds->pdata[i]};
        Finder f = {l.nd, &l};
        net_objects_each(find_filters, &f);
        g_array_append_val(proxy.links, l);
    }
}

void proxy_drop_links(void)
{
    proxy_unthrottle();
    EACH_LINK (l) {
        frame_queue_clear(&l->owed);
        g_clear_pointer(&l->cut_cmp, g_byte_array_unref);
        g_clear_pointer(&l->cut_rew, g_byte_array_unref);
    }
    io_source_destroy(&proxy.watch);
    g_clear_pointer(&proxy.links, g_array_unref);
}

/* --- Both sides --- */

/* What the kernel charged for all that was ever read from @nd's guest, about. */
static uint64_t output_charge(NetDev *nd)
{
    return nd->stats.rx_frames * 2048 + nd->stats.rx_bytes * 2;
}

void proxy_hold_input(void)
{
    GPtrArray *nds = netdev_list();

    for (unsigned i = 0; i < nds->len; i++) {
        NetDev *nd = nds->pdata[i];
        netdev_hold(nd);
        child_port_catch_up(nd->port); /* not to pass for output that came since */
        nd->charge_at_hold = output_charge(nd);
    }
}

bool proxy_output_was_tight(void)
{
    GPtrArray *nds = netdev_list();

    for (unsigned i = 0; i < nds->len; i++) {
        NetDev *nd = nds->pdata[i];
        if (output_charge(nd) - nd->charge_at_hold > child_port_capacity(nd->port) / 2) {
            return true;
        }
    }
    return false;
}

uint64_t proxy_output_frames(void)
{
    GPtrArray *nds = netdev_list();
    uint64_t n = 0;

    for (unsigned i = 0; i < nds->len; i++) {
        NetDev *nd = nds->pdata[i];
        n += nd->stats.rx_frames;
    }
    return n;
}

void proxy_release_input(void)
{
    GPtrArray *nds = netdev_list();

    net_batch_begin();
    for (unsigned i = 0; i < nds->len; i++) {
        netdev_release(nds->pdata[i]);
    }
    net_batch_end();
}

unsigned proxy_drain_output(void)
{
    GPtrArray *nds = netdev_list();
    unsigned n = 0;

    for (unsigned i = 0; i < nds->len; i++) {
        NetDev *nd = nds->pdata[i];
        n += child_port_drain(nd->port);
    }
    return n;
}

bool proxy_uses(NetFilter *nf)
{
    if (!proxy.primary && !proxy.secondary) {
        return false;
    }
    EACH_LINK (l) {
        if (nf == (NetFilter *)l->mirror || nf == (NetFilter *)l->rew ||
            nf == (NetFilter *)l->in || nf == (NetFilter *)l->out) {
            return net_get_role() != NET_ROLE_SILENT;
        }
    }
    return false;
}

bool proxy_compares(ColoCompare *c)
{
    EACH_LINK (l) {
        if (l->cmp == c) {
            return proxy.primary && net_get_role() != NET_ROLE_SILENT;
        }
    }
    return false;
}

void proxy_object_leaves(NetFilter *nf, ColoCompare *cmp)
{
    bool used = false;

    EACH_LINK (l) {
        used |= (cmp && l->cmp == cmp) || (nf && proxy_uses(nf));
    }
    if (used && net_get_role() == NET_ROLE_PRIMARY) {
        /* Without it nothing may leave uncompared: hold until protection has ended. */
        proxy_trigger(PROXY_TRIGGER_STREAM, "an object that protection needs was deleted");
        proxy_silence();
    }
    EACH_LINK (l) {
        l->cmp = cmp && l->cmp == cmp ? NULL : l->cmp;
        l->mirror = nf && nf == (NetFilter *)l->mirror ? NULL : l->mirror;
        l->rew = nf && nf == (NetFilter *)l->rew ? NULL : l->rew;
        l->in = nf && nf == (NetFilter *)l->in ? NULL : l->in;
        l->out = nf && nf == (NetFilter *)l->out ? NULL : l->out;
    }
}

void proxy_held(uint64_t *frames, uint64_t *bytes)
{
    GPtrArray *nds = netdev_list();

    *frames = *bytes = 0;
    EACH_LINK (l) {
        if (l->cmp) {
            uint64_t f = 0, b = 0;
            compare_engine_held(l->cmp->engine, &f, &b);
            *frames += f;
            *bytes += b;
        }
    }
    for (unsigned i = 0; i < nds->len; i++) {
        NetDev *nd = nds->pdata[i];
        *frames += nd->kept.count;
        *bytes += nd->kept.bytes;
    }
}
