/*
 * The proxy on the primary: cut, save, commit; what the streams tell.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The essay is in proxy.c.
 */
#include "net/colo/proxy-int.h"

#include <inttypes.h>
#include <string.h>


/* The comparison that this NetDev's output is redirected to. */
static bool find_compare(ProxyLink *l, GError **errp)
{
    const char *id = l->nd->id;
    FilterRedirector *out = l->out;

    if (!out) {
        colo_error_set(errp, "netdev '%s' has no filter-redirector (queue=rx) with an "
                             "outdev: its output would leave uncompared",
                       id);
        return false;
    }
    ColoCompare *cmp = chardev_user(chardev_peer(out->out), &compare_primary_handlers);
    if (!cmp) {
        colo_error_set(errp, "netdev '%s': chardev '%s' of filter-redirector '%s' does not "
                             "lead to a colo-compare's primary_in in this process",
                       id, chardev_id(out->out), out->nf.id);
        return false;
    }
    if (cmp->notify) {
        colo_error_set(errp, "netdev '%s': colo-compare '%s' has a notify_dev: its checkpoints "
                             "are made by somebody else",
                       id, cmp->id);
        return false;
    }
    FilterRedirector *back = chardev_user(chardev_peer(cmp->out), &redirector_in_handlers);
    if (!back || back->nf.nd != l->nd || !(back->nf.direction & NET_FILTER_RX)) {
        colo_error_set(errp, "netdev '%s': outdev '%s' of colo-compare '%s' does not lead to "
                             "the indev of a filter-redirector (queue=rx) of this netdev",
                       id, chardev_id(cmp->out), cmp->id);
        return false;
    }
    if (!chardev_connected(cmp->secondary_in)) {
        colo_error_set(errp, "netdev '%s': comparison stream: chardev '%s' is not connected",
                       id, chardev_id(cmp->secondary_in));
        return false;
    }
    l->cmp = cmp;
    return true;
}

static bool check_primary(ProxyLink *l, GError **errp)
{
    if (!l->mirror) {
        colo_error_set(errp, "netdev '%s' has no filter-mirror (queue=tx): the secondary "
                             "would not see its input",
                       l->nd->id);
        return false;
    }
    if (!chardev_connected(l->mirror->out)) {
        colo_error_set(errp, "netdev '%s': mirror stream: chardev '%s' is not connected",
                       l->nd->id, chardev_id(l->mirror->out));
        return false;
    }
    return find_compare(l, errp);
}

bool proxy_start_primary(ProxyTriggerFunc fn, void *opaque, int64_t stream_timeout_us,
                         GError **errp)
{
    if (proxy.primary || proxy.secondary) {
        colo_error_set(errp, "the network is already in use by COLO");
        return false;
    }
    proxy_find_links();
    EACH_LINK (l) {
        if (!check_primary(l, errp)) {
            proxy_drop_links();
            return false;
        }
    }
    int64_t now = g_get_monotonic_time();
    EACH_LINK (l) {
        chardev_allow_control(l->mirror->out, true);
        chardev_allow_control(l->cmp->secondary_in, true);
        l->cmp->gap = 0;
        compare_engine_set_mode(l->cmp->engine, COMPARE_MODE_PASS, now);
    }
    proxy.primary = true;
    proxy.protected = false;
    proxy.fn = fn;
    proxy.opaque = opaque;
    proxy.stream_timeout = stream_timeout_us;
    proxy.epoch = 0;
    memset(proxy.triggers, 0, sizeof(proxy.triggers));
    net_set_role(NET_ROLE_PRIMARY);
    return true;
}

/* Of the frames taken back, those that the mirror will take again. */
static uint32_t count_repeats(ProxyLink *l)
{
    uint32_t n = 0;

    for (unsigned i = 0; i < l->nd->back.count; i++) {
        NetFilter *after = entry_ring_at(&l->nd->back, i)->after;
        bool before = true;
        for (unsigned k = 0; after && k < l->nd->filters->len; k++) {
            if (l->nd->filters->pdata[k] == after) {
                break;
            }
            if (l->nd->filters->pdata[k] == &l->mirror->nf) {
                before = false;
                break;
            }
        }
        n += before && after != &l->mirror->nf;
    }
    return n;
}

/* What will be different when the guest has run on. The comparison's table and held frames
 * stay as they are: copying them can wait for the end of the pause. */
static void save_at_cut(ProxyLink *l)
{
    g_clear_pointer(&l->cut_cmp, g_byte_array_unref);
    g_clear_pointer(&l->cut_rew, g_byte_array_unref);
    if (l->cmp && compare_engine_mode(l->cmp->engine) == COMPARE_MODE_PASS) {
        l->cut_cmp = g_byte_array_new(); /* learns on; nothing is held */
        compare_engine_save(l->cmp->engine, l->cut_cmp);
    }
    if (l->rew) {
        l->cut_rew = g_byte_array_new(); /* flows of an earlier takeover: few */
        rewriter_engine_save(l->rew->engine, l->cut_rew);
    }
}

void proxy_cut(uint64_t epoch)
{
    if (!proxy.primary) {
        return;
    }
    proxy.epoch = epoch;
    EACH_LINK (l) {
        if (l->cmp) {
            compare_engine_cut(l->cmp->engine, epoch);
        }
        save_at_cut(l);
        if (l->mirror) {
            Chardev *c = l->mirror->out;
            l->mirror->strict = true;
            if (!proxy_send_marker(c, epoch, chardev_frames_out(c), count_repeats(l))) {
                proxy_trigger(PROXY_TRIGGER_STREAM, "the mirror stream took no marker");
            }
        }
    }
}

static void append_blob(GByteArray *out, const void *data, uint32_t len)
{
    uint8_t head[4];

    proxy_put_int(head, len, 4);
    g_byte_array_append(out, head, 4);
    if (len) {
        g_byte_array_append(out, data, len);
    }
}

GBytes *proxy_save(void)
{
    g_autoptr(GByteArray) none = g_byte_array_new();
    GByteArray *out = g_byte_array_new();
    uint8_t head[12];

    proxy_put_int(proxy_put_int(head, SAVE_MAGIC, 8), proxy.links ? proxy.links->len : 0, 4);
    g_byte_array_append(out, head, sizeof(head));
    EACH_LINK (l) {
        GByteArray *rew = l->cut_rew ? l->cut_rew : none;
        if (l->cmp && !l->cut_cmp) {
            l->cut_cmp = g_byte_array_new();
            compare_engine_save(l->cmp->engine, l->cut_cmp);
        }
        GByteArray *cmp = l->cut_cmp ? l->cut_cmp : none;
        append_blob(out, l->nd->id, strlen(l->nd->id));
        append_blob(out, cmp->data, cmp->len);
        append_blob(out, rew->data, rew->len);
        g_clear_pointer(&l->cut_cmp, g_byte_array_unref);
        g_clear_pointer(&l->cut_rew, g_byte_array_unref);
    }
    return g_byte_array_free_to_bytes(out);
}

static void tick_all(void)
{
    EACH_LINK (l) {
        if (l->cmp) {
            colo_compare_tick(l->cmp);
        }
    }
}

void proxy_commit(uint64_t epoch)
{
    if (!proxy.primary) {
        return;
    }
    int64_t now = g_get_monotonic_time();
    net_batch_begin();
    EACH_LINK (l) {
        if (l->cmp) {
            compare_engine_commit(l->cmp->engine, epoch, now);
        }
    }
    tick_all();
    net_batch_end();
}

void proxy_loaded(uint64_t epoch, bool standing)
{
    if (!proxy.primary) {
        return;
    }
    int64_t now = g_get_monotonic_time();
    proxy.protected = true;
    net_batch_begin();
    EACH_LINK (l) {
        if (!l->cmp) {
            continue;
        }
        if (compare_engine_mode(l->cmp->engine) == COMPARE_MODE_PASS) {
            compare_engine_set_mode(l->cmp->engine, COMPARE_MODE_COMPARE, now);
        }
        if (!standing) {
            /* Else a checkpoint stays under way for the engine, so that it holds and commits
             * as ever and neither waits for a twin nor asks for anything. */
            compare_engine_loaded(l->cmp->engine, epoch, now);
        }
    }
    tick_all();
    net_batch_end();
}

void proxy_stop_primary(void)
{
    if (!proxy.primary) {
        return;
    }
    int64_t now = g_get_monotonic_time();
    proxy.primary = proxy.protected = false;
    net_batch_begin();
    net_set_role(NET_ROLE_ALONE); /* what the gate kept goes first: it is older */
    EACH_LINK (l) {
        if (l->mirror) {
            l->mirror->strict = false;
            chardev_allow_control(l->mirror->out, false);
        }
        if (l->cmp) {
            chardev_allow_control(l->cmp->secondary_in, false);
            compare_engine_set_mode(l->cmp->engine, COMPARE_MODE_PASS, now);
        }
    }
    net_batch_end();
    proxy_drop_links();
    proxy.fn = NULL;
}

void proxy_silence(void)
{
    if (!proxy.primary) {
        return;
    }
    int64_t now = g_get_monotonic_time();
    net_set_role(NET_ROLE_SILENT);
    proxy_unthrottle();
    EACH_LINK (l) {
        if (l->cmp) {
            compare_engine_set_mode(l->cmp->engine, COMPARE_MODE_HOLD, now);
        }
    }
}

/* --- Back-pressure on the guest --- */

/* Not while input is held: then the socket has to be empty at the stop that follows, and
 * what fits into it is let in beyond the bound. The engine has asked for a checkpoint. */
bool proxy_throttle_output(ColoCompare *c)
{
    bool waits = false;

    if (!proxy.primary || net_get_role() != NET_ROLE_PRIMARY) {
        return false; /* nothing is paused */
    }
    EACH_LINK (l) {
        if (l->cmp == c) {
            ChildPort *port = l->nd->port;
            bool wait = !l->nd->held && c->primary_in && chardev_peer(c->primary_in) &&
                        compare_engine_should_wait(c->engine, true, child_port_paused(port));
            child_port_pause(port, wait);
            waits |= wait;
        }
    }
    return waits;
}

void proxy_unthrottle(void)
{
    GPtrArray *nds = netdev_list(); /* a link's may be gone already */

    for (unsigned i = 0; i < nds->len; i++) {
        NetDev *nd = nds->pdata[i];
        child_port_pause(nd->port, false);
    }
}

/* --- Primary: what streams and comparison tell --- */

void proxy_compare_trigger(ColoCompare *c, ProxyTrigger t, const char *detail)
{
    proxy_trigger(t, detail);
}

void proxy_compare_isn(ColoCompare *c, const FlowKey *k, uint32_t pvm, uint32_t svm)
{
    uint8_t body[ISN_BODY], *p = body;

    p = flow_key_put(p, k);
    p = proxy_put_int(p, pvm, 4);
    proxy_put_int(p, svm, 4);
    ChardevControl msg = {CHARDEV_CTL_ISN, ISN_BODY, body};
    EACH_LINK (l) {
        if (l->cmp == c && l->mirror && !chardev_send_control(l->mirror->out, &msg)) {
            proxy_trigger(PROXY_TRIGGER_STREAM, "the mirror stream took no sequence numbers");
        }
    }
}

/* What the secondary has of a client's data. */
static void compare_logged(ColoCompare *c, const ChardevControl *msg)
{
    const uint8_t *p = msg->body;
    FlowKey k;

    if (msg->len == LOGGED_BODY) {
        p = flow_key_get(p, &k);
        compare_engine_logged(c->engine, &k, proxy_get_int(&p, 4),
                              g_get_monotonic_time());
    }
}

void proxy_compare_control(ColoCompare *c, const ChardevControl *msg)
{
    ProxyMarker m;

    if (proxy.primary && msg->type == CHARDEV_CTL_LOGGED) {
        compare_logged(c, msg);
        return;
    }
    if (!proxy.primary || !proxy_parse_marker(msg, &m)) {
        return;
    }
    uint64_t gap = proxy_new_gap(m.frames, chardev_frames_in(c->secondary_in), &c->gap);
    compare_engine_secondary_marker(c->engine, m.epoch);
    if (gap && proxy.protected) {
        g_autofree char *detail =
            g_strdup_printf("comparison stream: %" G_GUINT64_FORMAT " frames lost", gap);
        proxy_trigger(PROXY_TRIGGER_STREAM, detail);
    }
}

/* --- Streams that stay down --- */

static gboolean watch_fire(gpointer opaque);

static void watch_streams(void)
{
    int64_t at = INT64_MAX;

    EACH_LINK (l) {
        at = l->mirror_down ? MIN(at, l->mirror_down + proxy.stream_timeout) : at;
        at = l->cmp_down ? MIN(at, l->cmp_down + proxy.stream_timeout) : at;
    }
    if (proxy.stream_timeout) {
        colo_timer_at(&proxy.watch, at, watch_fire, NULL);
    }
}

/* The guest has had no input, or no twin to be compared with, for too long. */
static gboolean watch_fire(gpointer opaque)
{
    int64_t now = g_get_monotonic_time();

    EACH_LINK (l) {
        bool mirror = l->mirror_down && now - l->mirror_down >= proxy.stream_timeout;
        bool cmp = l->cmp_down && now - l->cmp_down >= proxy.stream_timeout;

        if (mirror || cmp) {
            g_autofree char *detail =
                g_strdup_printf("netdev '%s': the %s stream has been down for %d ms",
                                l->nd->id, mirror ? "mirror" : "comparison",
                                (int)(proxy.stream_timeout / 1000));
            l->mirror_down = mirror ? 0 : l->mirror_down;
            l->cmp_down = cmp ? 0 : l->cmp_down;
            proxy_trigger(PROXY_TRIGGER_GONE, detail);
        }
    }
    watch_streams();
    return G_SOURCE_CONTINUE;
}

void proxy_compare_event(ColoCompare *c, bool connected)
{
    c->gap = 0;
    EACH_LINK (l) {
        if (proxy.primary && l->cmp == c) {
            l->cmp_down = connected ? 0 : g_get_monotonic_time();
            watch_streams();
        }
    }
    if (proxy.primary) {
        proxy_trigger(PROXY_TRIGGER_STREAM, connected ? "the comparison stream came up again"
                                                : "the comparison stream went down");
    }
}

static bool is_mirror(FilterMirror *m)
{
    EACH_LINK (l) {
        if (proxy.primary && l->mirror == m) {
            return true;
        }
    }
    return false;
}

void proxy_mirror_event(FilterMirror *m, bool connected)
{
    if (!is_mirror(m)) {
        return;
    }
    EACH_LINK (l) {
        if (l->mirror == m) {
            l->mirror_down = connected ? 0 : g_get_monotonic_time();
            watch_streams();
        }
    }
    if (connected && proxy.epoch) {
        proxy_send_marker(m->out, proxy.epoch, 0, 0);
    }
    proxy_trigger(PROXY_TRIGGER_STREAM, connected ? "the mirror stream came up again"
                                            : "the mirror stream went down");
}

void proxy_mirror_control(FilterMirror *m, const ChardevControl *msg)
{
    if (is_mirror(m) && msg->type == CHARDEV_CTL_GAP && msg->len == 16) {
        proxy_trigger(PROXY_TRIGGER_STREAM, "the secondary lost mirrored frames");
    }
}
