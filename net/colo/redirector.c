/*
 * filter-redirector: frames out to a chardev, and frames in from one.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * With outdev a frame of the chain goes there and nowhere else. What indev brings enters
 * the chain behind this filter; with indev alone the chain's own frames go through.
 */
#include "net/colo/colo-int.h"
#include "net/net-int.h"

void redirector_inject(FilterRedirector *r, Frame *f)
{
    r->injected++;
    f->vnet_len = 0;
    if (r->nf.direction == NET_FILTER_ALL) {
        net_filter_pass_next(&r->nf, NET_FILTER_TX, frame_from(f->data, f->len));
    }
    net_filter_pass_next(&r->nf,
                         r->nf.direction & NET_FILTER_RX ? NET_FILTER_RX : NET_FILTER_TX,
                         f);
}

static void redirector_plain(Frame *f, void *opaque)
{
    FilterRedirector *r = opaque;

    if (f->len < FRAME_MIN_ETH || !r->nf.on || r->mi.closed) {
        frame_unref(f);
    } else if (r->mi.gated) {
        proxy_mirror_frame(r, f);
    } else {
        redirector_inject(r, f);
    }
}

/* Our NICs have no vnet header: what one left undone is done here. */
static void redirector_in_frame(void *opaque, Frame *f)
{
    vnet_make_plain(f, redirector_plain, opaque, &((FilterRedirector *)opaque)->vnet);
}

static void redirector_in_control(void *opaque, const ChardevControl *msg)
{
    proxy_redirector_control(opaque, msg);
}

static void redirector_in_event(void *opaque, bool connected)
{
    proxy_redirector_in_event(opaque, connected);
}

const ChardevHandlers redirector_in_handlers = {.frame = redirector_in_frame,
                                                .control = redirector_in_control,
                                                .event = redirector_in_event};

static void redirector_out_frame(void *opaque, Frame *f)
{
    frame_unref(f);
}

static void redirector_out_event(void *opaque, bool connected)
{
    proxy_redirector_out_event(opaque, connected);
}

static const ChardevHandlers redirector_out_handlers = {.frame = redirector_out_frame,
                                                        .event = redirector_out_event};

/* Whether somebody listens at the other end. */
static bool out_usable(FilterRedirector *r)
{
    return chardev_connected(r->out) && !r->bypass;
}

static Frame *redirector_receive(NetFilter *nf, NetFilterDirection dir, Frame *f)
{
    FilterRedirector *r = (FilterRedirector *)nf;
    NetRole role = net_get_role();

    if (!r->out) {
        return f;
    }
    if (r->mute) {
        frame_unref(f);
        return NULL;
    }
    bool unprotected = role == NET_ROLE_ALONE || role == NET_ROLE_SILENT;
    if (unprotected && !out_usable(r)) {
        return f; /* to the gate, which knows what may leave */
    }
    /* In this process the comparison may have been deleted: the same. */
    if (unprotected && chardev_peer(r->out) && !chardev_claimed(chardev_peer(r->out))) {
        return f;
    }
    if (chardev_send_take(r->out, f)) {
        r->redirected++;
    } else {
        r->lost++;
    }
    return NULL;
}

static const NetProperty redirector_properties[] = {
    {"indev", "string", NET_PROPERTY_STRING},
    {"outdev", "string", NET_PROPERTY_STRING},
    {"vnet_hdr_support", "bool", NET_PROPERTY_BOOL},
    {NULL},
};

static bool check_devices(const char *in, const char *out, GError **errp)
{
    if (!*in && !*out) {
        colo_error_set(errp, "filter redirector needs 'indev' or 'outdev' at least one "
                             "property set");
        return false;
    }
    if (g_str_equal(in, out)) {
        colo_error_set(errp, "'indev' and 'outdev' could not be same for filter redirector");
        return false;
    }
    return true;
}

static bool redirector_setup(NetFilter *nf, JsonObject *opts, GError **errp)
{
    FilterRedirector *r = (FilterRedirector *)nf;
    const char *in = options_get_str(opts, "indev", "");
    const char *out = options_get_str(opts, "outdev", "");

    if (!check_devices(in, out, errp) ||
        !options_get_bool(opts, "vnet_hdr_support", &r->vnet_hdr, errp)) {
        return false;
    }
    if (*in && !(r->in = colo_claim_chardev(in, &redirector_in_handlers, r, r->vnet_hdr,
                                            errp))) {
        return false;
    }
    if (*out && !(r->out = colo_claim_chardev(out, &redirector_out_handlers, r,
                                              r->vnet_hdr, errp))) {
        if (r->in) {
            chardev_release(r->in);
        }
        return false;
    }
    r->mi.repeats = g_array_new(FALSE, FALSE, sizeof(EpochRepeats));
    return true;
}

static void redirector_cleanup(NetFilter *nf)
{
    FilterRedirector *r = (FilterRedirector *)nf;

    if (r->in) {
        chardev_release(r->in);
    }
    if (r->out) {
        chardev_release(r->out);
    }
    frame_queue_clear(&r->mi.held);
    g_array_unref(r->mi.repeats);
}

static const char *name_of(Chardev *c)
{
    return c ? chardev_id(c) : "";
}

static JsonNode *redirector_get(NetFilter *nf, const char *property)
{
    FilterRedirector *r = (FilterRedirector *)nf;

    if (g_str_equal(property, "vnet_hdr_support")) {
        return colo_bool_node(r->vnet_hdr);
    }
    return colo_string_node(name_of(g_str_equal(property, "indev") ? r->in : r->out));
}

static bool redirector_set(NetFilter *nf, const char *property, JsonNode *value,
                           GError **errp)
{
    FilterRedirector *r = (FilterRedirector *)nf;

    if (g_str_equal(property, "vnet_hdr_support")) {
        r->vnet_hdr = json_node_get_boolean(value);
        chardev_set_vnet_hdr(r->in, r->vnet_hdr);
        chardev_set_vnet_hdr(r->out, r->vnet_hdr);
        return true;
    }
    const char *id = json_node_get_string(value);
    if (g_str_equal(property, "indev")) {
        return check_devices(id, name_of(r->out), errp) &&
               colo_swap_chardev(&r->in, id, &redirector_in_handlers, r, r->vnet_hdr, errp);
    }
    return check_devices(name_of(r->in), id, errp) &&
           colo_swap_chardev(&r->out, id, &redirector_out_handlers, r, r->vnet_hdr, errp);
}

const NetFilterClass filter_redirector_class = {
    .type = "filter-redirector",
    .size = sizeof(FilterRedirector),
    .properties = redirector_properties,
    .setup = redirector_setup,
    .cleanup = redirector_cleanup,
    .receive = redirector_receive,
    .get = redirector_get,
    .set = redirector_set,
};
