/*
 * Statistics of the proxy as JSON.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "net/colo/colo-int.h"
#include "net/net-int.h"

static JsonObject *begin(JsonArray *out, const char *type, const char *id)
{
    JsonObject *o = json_object_new();

    json_object_set_string_member(o, "type", type);
    json_object_set_string_member(o, "id", id);
    json_array_add_object_element(out, o);
    return o;
}

static void query_vnet(JsonObject *o, const VnetStats *s)
{
    json_object_set_int_member(o, "vnet-completed", s->completed);
    json_object_set_int_member(o, "vnet-split", s->split);
    json_object_set_int_member(o, "vnet-made", s->made);
    json_object_set_int_member(o, "vnet-bad", s->bad);
}

static void query_compare(JsonArray *out, ColoCompare *c)
{
    JsonObject *o = begin(out, "colo-compare", c->id);
    CompareStats s;

    compare_engine_stats(c->engine, &s);
    int64_t held_now = s.held_since ? g_get_monotonic_time() - s.held_since : 0;
    const struct {
        const char *name;
        uint64_t value;
    } n[] = {
        {"flows", s.flows},
        {"flows-evicted", s.flows_evicted},
        {"primary-frames", s.primary_frames},
        {"primary-bytes", s.primary_bytes},
        {"secondary-frames", s.secondary_frames},
        {"secondary-bytes", s.secondary_bytes},
        {"released-frames", s.released_frames},
        {"released-bytes", s.released_bytes},
        {"equal", s.equal},
        {"committed", s.committed},
        {"known", s.known},
        {"lowered", s.lowered},
        {"acks-made", s.acks_made},
        {"parts", s.parts},
        {"acks-absorbed", s.acks_absorbed},
        {"acks-by-log", s.logged},
        {"secondary-dropped", s.svm_dropped},
        {"secondary-forwarded", s.svm_forwarded},
        {"held-frames", s.held_frames},
        {"held-bytes", s.held_bytes},
        {"held-frames-max", s.held_frames_max},
        {"held-bytes-max", s.held_bytes_max},
        {"held-longest-us", MAX(s.held_longest_us, held_now)},
        {"held-now-us", held_now},
        {"malformed-primary", s.malformed[0]},
        {"malformed-secondary", s.malformed[1]},
        {"secondary-lag-us", s.lag_us},
        {"secondary-kept-bytes", s.svm_bytes},
        {"triggers", s.triggers},
        {"timeouts", s.timeouts},
        {"lost-out", c->lost_out},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(n); i++) {
        json_object_set_int_member(o, n[i].name, n[i].value);
    }
    JsonObject *causes = json_object_new();
    for (int i = 0; i < COMPARE_CAUSE__MAX; i++) {
        json_object_set_int_member(causes, compare_cause_name(i), s.by_cause[i]);
    }
    json_object_set_object_member(o, "mismatches", causes);
    JsonArray *last = json_array_new();
    for (uint32_t i = 0; i < s.n_last && i < COMPARE_LAST; i++) {
        JsonObject *m = json_object_new();
        char name[FLOW_NAME_MAX];
        json_object_set_string_member(m, "cause", compare_cause_name(s.last[i].cause));
        json_object_set_string_member(m, "flow",
                                      flow_key_name(&s.last[i].flow, name, sizeof(name)));
        json_object_set_int_member(
            m, "age-ms", (g_get_monotonic_time() - s.last[i].when) / 1000);
        json_object_set_int_member(m, "offset", s.last[i].offset);
        json_object_set_int_member(m, "epoch", s.last[i].epoch);
        json_object_set_int_member(m, "guest-port", s.last[i].flow.guest_port);
        json_object_set_int_member(m, "client-port", s.last[i].flow.client_port);
        json_object_set_int_member(m, "protocol", s.last[i].flow.proto);
        json_array_add_object_element(last, m);
    }
    json_object_set_array_member(o, "last", last);
    query_vnet(o, &c->vnet);
}

static void query_filter(JsonArray *out, NetFilter *nf)
{
    JsonObject *o = begin(out, nf->class->type, nf->id);

    json_object_set_string_member(o, "netdev", nf->nd->id);
    if (nf->class == &filter_mirror_class) {
        FilterMirror *m = (FilterMirror *)nf;
        json_object_set_boolean_member(o, "connected", chardev_connected(m->out));
        json_object_set_int_member(o, "mirrored", m->mirrored);
        json_object_set_int_member(o, "dropped", m->dropped);
    } else if (nf->class == &filter_redirector_class) {
        FilterRedirector *r = (FilterRedirector *)nf;
        json_object_set_int_member(o, "redirected", r->redirected);
        json_object_set_int_member(o, "injected", r->injected);
        json_object_set_int_member(o, "lost", r->lost);
        json_object_set_int_member(o, "held", r->mi.held.count);
        json_object_set_int_member(o, "discarded", r->mi.discarded);
        query_vnet(o, &r->vnet);
    } else if (nf->class == &filter_rewriter_class) {
        RewriterStats s;
        rewriter_engine_stats(((FilterRewriter *)nf)->engine, &s);
        json_object_set_int_member(o, "flows", s.flows);
        json_object_set_int_member(o, "flows-with-offset", s.flows_with_offset);
        json_object_set_int_member(o, "rewritten", s.rewritten);
        json_object_set_int_member(o, "icmp-rewritten", s.icmp_rewritten);
        json_object_set_int_member(o, "kept-frames", s.kept_frames);
        json_object_set_int_member(o, "kept-bytes", s.kept_bytes);
        json_object_set_int_member(o, "kept-dropped", s.kept_dropped);
        json_object_set_int_member(o, "emitted", s.emitted);
        json_object_set_int_member(o, "logged-frames", s.logged_frames);
        json_object_set_int_member(o, "logged-bytes", s.logged_bytes);
        json_object_set_int_member(o, "logged-bytes-max", s.logged_bytes_max);
        json_object_set_int_member(o, "log-refused", s.log_refused);
        json_object_set_int_member(o, "fed-again", s.fed_again);
        json_object_set_int_member(o, "answered", s.answered);
    }
}

static void query_object(NetFilter *nf, ColoCompare *cmp, void *opaque)
{
    if (cmp) {
        query_compare(opaque, cmp);
    } else {
        query_filter(opaque, nf);
    }
}

static void query_netdev(JsonArray *out, NetDev *nd)
{
    JsonObject *o = begin(out, "netdev", nd->id);
    const NetDevStats *s = &nd->stats;

    json_object_set_int_member(o, "tx-frames", s->tx_frames);
    json_object_set_int_member(o, "tx-bytes", s->tx_bytes);
    json_object_set_int_member(o, "rx-frames", s->rx_frames);
    json_object_set_int_member(o, "rx-bytes", s->rx_bytes);
    json_object_set_int_member(o, "out-frames", s->out_frames);
    json_object_set_int_member(o, "dropped-gate", s->dropped_gate);
    json_object_set_int_member(o, "dropped-full", s->dropped_full);
    json_object_set_int_member(o, "dropped-backend", s->dropped_backend);
    json_object_set_int_member(o, "taken-back", s->taken_back);
    json_object_set_int_member(o, "nudges", s->nudges);
    json_object_set_int_member(o, "kept", nd->kept.count);
    query_vnet(o, &s->vnet);
}

JsonNode *proxy_query(void)
{
    JsonArray *out = json_array_new();
    GPtrArray *nds = netdev_list();

    for (unsigned i = 0; i < nds->len; i++) {
        query_netdev(out, nds->pdata[i]);
    }
    net_objects_each(query_object, out);
    JsonNode *n = json_node_new(JSON_NODE_ARRAY);
    json_node_take_array(n, out);
    return n;
}
