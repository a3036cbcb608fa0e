/*
 * The proxy on the secondary: epochs of the input, roll-back, takeover.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The essay is in proxy.c.
 */
#include "net/colo/proxy-int.h"
#include "net/packet.h"

#include <inttypes.h>
#include <string.h>

#define HELD_MAX_FRAMES 65536
#define HELD_MAX_BYTES (64u << 20)

static bool check_secondary(ProxyLink *l, GError **errp)
{
    if (!l->in || !l->out) {
        colo_error_set(errp, "netdev '%s' has no filter-redirector with %s", l->nd->id,
                       l->in ? "an outdev (queue=rx) for its output"
                             : "an indev (queue=tx) for the mirrored input");
        return false;
    }
    Chardev *c = !chardev_connected(l->in->in)     ? l->in->in
                 : !chardev_connected(l->out->out) ? l->out->out
                                                   : NULL;
    if (c) {
        colo_error_set(errp, "netdev '%s': chardev '%s' is not connected", l->nd->id,
                       chardev_id(c));
        return false;
    }
    return true;
}

/* --- The client's data on this host, RULES 21 --- */

static void log_feed(Frame *f, void *opaque)
{
    FilterRewriter *r = opaque;

    if (r->nf.nd->discard_output) {
        frame_unref(f); /* for the SVM that is rolled back: not for the restored one */
        return;
    }
    net_filter_pass_next(&r->nf, NET_FILTER_TX, f);
}

static void log_tell(const FlowKey *flow, uint32_t upto, void *opaque)
{
    uint8_t body[LOGGED_BODY];

    put_be32(flow_key_put(body, flow), upto);
    EACH_LINK (l) {
        if (proxy.secondary && l->rew == opaque && l->out && !l->out->mute &&
            !l->nd->discard_output) {
            ChardevControl msg = {CHARDEV_CTL_LOGGED, sizeof(body), body};
            chardev_send_control(l->out->out, &msg); /* else the SVM's own ACK counts */
        }
    }
}

static const RewriterLogOps log_ops = {.feed = log_feed, .logged = log_tell};

bool proxy_start_secondary(GError **errp)
{
    if (proxy.primary || proxy.secondary) {
        colo_error_set(errp, "the network is already in use by COLO");
        return false;
    }
    proxy_find_links();
    EACH_LINK (l) {
        if (!check_secondary(l, errp)) {
            proxy_drop_links();
            return false;
        }
    }
    EACH_LINK (l) {
        MirrorInput *mi = &l->in->mi;
        chardev_allow_control(l->in->in, true);
        chardev_allow_control(l->out->out, true);
        mi->gated = true;
        mi->running = mi->closed = false;
        mi->svm_epoch = mi->stream_epoch = mi->gap = 0;
        mi->min_epoch = 1; /* before the first checkpoint there is no guest to feed */
        frame_queue_clear(&mi->held);
        g_array_set_size(mi->repeats, 0);
        if (l->rew) {
            rewriter_engine_log(l->rew->engine, &log_ops, l->rew);
        }
    }
    proxy.secondary = true;
    proxy.epoch = 0;
    net_set_role(NET_ROLE_SECONDARY);
    EACH_LINK (l) {
        /* What came before is for nobody: it must not wait for the restored guest. */
        netdev_hold(l->nd);
        netdev_discard_input(l->nd);
        netdev_release(l->nd);
    }
    return true;
}

void proxy_abort_secondary(void)
{
    if (!proxy.secondary) {
        return;
    }
    EACH_LINK (l) {
        if (l->in) {
            l->in->mi.gated = false;
            chardev_allow_control(l->in->in, false);
        }
        if (l->out) {
            chardev_allow_control(l->out->out, false);
        }
        if (l->rew) {
            rewriter_engine_log(l->rew->engine, NULL, NULL);
        }
    }
    proxy.secondary = false;
    proxy_drop_links();
}

void proxy_mirror_frame(FilterRedirector *r, Frame *f)
{
    MirrorInput *mi = &r->mi;

    f->epoch = mi->stream_epoch;
    if (f->epoch < mi->min_epoch) {
        mi->discarded++;
        frame_unref(f);
    } else if (mi->running && f->epoch == mi->svm_epoch) {
        redirector_inject(r, f);
    } else if (mi->held.count >= HELD_MAX_FRAMES || mi->held.bytes >= HELD_MAX_BYTES) {
        mi->dropped++;
        frame_unref(f);
    } else {
        frame_queue_push(&mi->held, f);
    }
}

static void mirror_marker(FilterRedirector *r, const ProxyMarker *m)
{
    MirrorInput *mi = &r->mi;
    uint64_t gap = proxy_new_gap(m->frames + mi->dropped, chardev_frames_in(r->in), &mi->gap);
    EpochRepeats er = {m->epoch, m->repeats};

    mi->stream_epoch = m->epoch;
    while (mi->repeats->len && g_array_index(mi->repeats, EpochRepeats, 0).epoch <
                                   MAX(mi->min_epoch, mi->svm_epoch)) {
        g_array_remove_index(mi->repeats, 0);
    }
    g_array_append_val(mi->repeats, er);
    if (gap) {
        uint8_t body[16];
        proxy_put_int(proxy_put_int(body, m->epoch, 8), gap, 8);
        ChardevControl msg = {CHARDEV_CTL_GAP, sizeof(body), body};
        chardev_send_control(r->in, &msg);
    }
    colo_trace(proxy_mirror_marker, "epoch %" PRIu64 ", %u repeats, %" PRIu64 " lost",
               m->epoch, m->repeats, gap);
}

static void mirror_isn(ProxyLink *l, const ChardevControl *msg)
{
    const uint8_t *p = msg->body;
    FlowKey k;

    if (msg->len != ISN_BODY || !l->rew || !proxy.epoch || l->nd->discard_output) {
        return;
    }
    p = flow_key_get(p, &k);
    uint32_t pvm = proxy_get_int(&p, 4);
    uint32_t svm = proxy_get_int(&p, 4);
    rewriter_engine_isn(l->rew->engine, &k, pvm, svm, g_get_monotonic_time());
}

void proxy_redirector_control(FilterRedirector *r, const ChardevControl *msg)
{
    ProxyMarker m;

    EACH_LINK (l) {
        if (!proxy.secondary || l->in != r) {
            continue;
        }
        if (proxy_parse_marker(msg, &m)) {
            mirror_marker(r, &m);
        } else if (msg->type == CHARDEV_CTL_ISN) {
            mirror_isn(l, msg);
        }
    }
}

void proxy_redirector_in_event(FilterRedirector *r, bool connected)
{
    r->mi.gap = 0;
}

static void comparison_marker(FilterRedirector *r, uint64_t epoch)
{
    /* What could not be sent counts as sent: the other side sees the gap. */
    proxy_send_marker(r->out, epoch, chardev_frames_out(r->out) + r->lost, 0);
}

void proxy_redirector_out_event(FilterRedirector *r, bool connected)
{
    r->lost = 0;
    EACH_LINK (l) {
        if (proxy.secondary && connected && l->out == r && proxy.epoch &&
            !l->nd->discard_output) {
            comparison_marker(r, proxy.epoch);
        }
    }
}

void proxy_rollback_begin(uint64_t epoch)
{
    proxy_hold_input();
    EACH_LINK (l) {
        if (!proxy.secondary || !l->in) {
            continue;
        }
        MirrorInput *mi = &l->in->mi;
        FrameQueue keep = {0};
        Frame *f;
        mi->running = false;
        mi->min_epoch = epoch;
        while ((f = frame_queue_pop(&mi->held))) {
            if (f->epoch < epoch) {
                mi->discarded++;
                frame_unref(f);
            } else {
                frame_queue_push(&keep, f);
            }
        }
        mi->held = keep;
        netdev_discard_input(l->nd);
        l->nd->discard_output = true;
    }
    colo_trace(proxy_rollback_begin, "epoch %" PRIu64, epoch);
}

void proxy_rollback_stopped(void)
{
    if (proxy.secondary) {
        proxy_drain_output(); /* dropped: @discard_output is set */
    }
}

/* A be32-counted blob at *@p, before @end. */
static bool take_blob(const uint8_t **p, const uint8_t *end, const uint8_t **data,
                      uint32_t *len)
{
    if (end - *p < 4) {
        return false;
    }
    *len = proxy_get_int(p, 4);
    *data = *p;
    if (*len > (size_t)(end - *p)) {
        return false;
    }
    *p += *len;
    return true;
}

static ProxyLink *find_link(const uint8_t *id, uint32_t len)
{
    EACH_LINK (l) {
        if (strlen(l->nd->id) == len && memcmp(l->nd->id, id, len) == 0) {
            return l;
        }
    }
    return NULL;
}

/* With @only_check nothing changes: the rewriter's part is loaded into a spare engine. */
static bool restore_link(const uint8_t **p, const uint8_t *end, bool only_check,
                         GError **errp)
{
    const uint8_t *id, *cmp, *rew;
    uint32_t id_len, cmp_len, rew_len;

    if (!take_blob(p, end, &id, &id_len) || !take_blob(p, end, &cmp, &cmp_len) ||
        !take_blob(p, end, &rew, &rew_len)) {
        colo_error_set(errp, "proxy state: cut short");
        return false;
    }
    ProxyLink *l = find_link(id, id_len);
    if (!l) {
        colo_error_set(errp, "proxy state: the primary's netdev '%.*s' is not here",
                       (int)id_len, (const char *)id);
        return false;
    }
    CompareTable *t = NULL;
    if (cmp_len && !(t = compare_table_parse(cmp, cmp_len, errp))) {
        return false;
    }
    bool ok = true;
    if (l->rew) {
        RewriterEngine *spare = only_check ? rewriter_engine_new(0) : NULL;

        ok = rewriter_engine_load(spare ? spare : l->rew->engine, t, rew_len ? rew : NULL,
                                  rew_len, g_get_monotonic_time(), errp);
        if (spare) {
            rewriter_engine_free(spare);
        }
    } else if (t && !only_check) {
        frame_queue_clear(&l->owed);
        frame_queue_concat(&l->owed, &t->held);
    }
    if (t) {
        compare_table_free(t);
    }
    return ok;
}

static bool read_state(GBytes *state, bool only_check, GError **errp)
{
    gsize len;
    const uint8_t *p = g_bytes_get_data(state, &len), *end = p + len;

    if (len < 12 || proxy_get_int(&p, 8) != SAVE_MAGIC) {
        colo_error_set(errp, "proxy state: not of this version");
        return false;
    }
    uint32_t n = proxy_get_int(&p, 4);
    if (n != (proxy.links ? proxy.links->len : 0)) {
        colo_error_set(errp, "proxy state: the primary has %u netdevs, this side %u", n,
                       proxy.links ? proxy.links->len : 0);
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (!restore_link(&p, end, only_check, errp)) {
            return false;
        }
    }
    if (p != end) {
        colo_error_set(errp, "proxy state: %zu bytes too many", (size_t)(end - p));
        return false;
    }
    return true;
}

bool proxy_check(GBytes *state, GError **errp)
{
    return read_state(state, true, errp);
}

bool proxy_restore(GBytes *state, GError **errp)
{
    return read_state(state, false, errp);
}

/* From here what the SVM sends is of @epoch. */
static void open_output(uint64_t epoch)
{
    proxy_drain_output();
    proxy.epoch = epoch;
    EACH_LINK (l) {
        if (l->nd->discard_output && l->out && !l->out->mute) {
            comparison_marker(l->out, epoch);
        }
        l->nd->discard_output = false;
    }
}

void proxy_rollback_ready(uint64_t epoch)
{
    if (!proxy.secondary) {
        return;
    }
    net_batch_begin();
    open_output(epoch);
    net_batch_end();
}

void proxy_rollback_end(uint64_t epoch)
{
    if (!proxy.secondary) {
        proxy_release_input();
        return;
    }
    net_batch_begin();
    open_output(epoch);
    proxy_release_input();
    EACH_LINK (l) {
        if (!l->in) {
            continue;
        }
        MirrorInput *mi = &l->in->mi;
        mi->svm_epoch = mi->min_epoch = epoch;
        mi->running = true;
        while (mi->held.head && mi->held.head->epoch <= epoch) {
            redirector_inject(l->in, frame_queue_pop(&mi->held));
        }
    }
    net_batch_end();
    colo_trace(proxy_rollback_end, "epoch %" PRIu64, epoch);
}

void proxy_rollback_stand(uint64_t epoch)
{
    if (!proxy.secondary) {
        return;
    }
    proxy.epoch = epoch;
    EACH_LINK (l) {
        if (l->in) {
            l->in->mi.svm_epoch = l->in->mi.min_epoch = epoch;
        }
    }
    colo_trace(proxy_rollback_stand, "epoch %" PRIu64, epoch);
}

void proxy_stop_vouching(void)
{
    EACH_LINK (l) {
        if (proxy.secondary && l->out) {
            l->out->mute = true;
        }
    }
}

/* Feed what waits behind markers that were never followed by a roll-back. */
static void feed_torn(ProxyLink *l)
{
    MirrorInput *mi = &l->in->mi;
    uint64_t epoch = mi->svm_epoch;
    uint32_t skip = 0;
    Frame *f;

    while ((f = frame_queue_pop(&mi->held))) {
        if (f->epoch != epoch) {
            epoch = f->epoch;
            for (unsigned i = 0; i < mi->repeats->len; i++) {
                EpochRepeats *er = &g_array_index(mi->repeats, EpochRepeats, i);
                skip = er->epoch == epoch ? er->repeats : skip;
            }
        }
        if (skip) {
            skip--;
            frame_unref(f);
        } else {
            redirector_inject(l->in, f);
        }
    }
}

static void emit_owed(Frame *f, void *opaque)
{
    ProxyLink *l = opaque;
    netdev_rx(l->nd, f, l->rew ? &l->rew->nf : NULL);
}

void proxy_takeover(void)
{
    if (!proxy.secondary) {
        return;
    }
    int64_t now = g_get_monotonic_time();
    net_batch_begin();
    EACH_LINK (l) {
        l->nd->discard_output = false;
        if (l->in) {
            l->in->mi.closed = true; /* the old primary is not listened to any more */
            chardev_allow_control(l->in->in, false);
        }
        if (l->out) {
            l->out->mute = false;
            l->out->bypass = true;
            chardev_allow_control(l->out->out, false);
        }
    }
    net_set_role(NET_ROLE_ALONE);
    net_announce();
    EACH_LINK (l) {
        Frame *f;
        if (l->rew) {
            rewriter_engine_takeover(l->rew->engine, now, emit_owed, l);
        }
        while ((f = frame_queue_pop(&l->owed))) {
            emit_owed(f, l);
        }
    }
    proxy_release_input();
    EACH_LINK (l) {
        if (l->in) {
            feed_torn(l);
        }
    }
    net_batch_end();
    proxy.secondary = false;
    proxy_drop_links();
    colo_trace(proxy_takeover, "done");
}
