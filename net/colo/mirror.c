/*
 * filter-mirror: a copy of each frame to a chardev.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Under protection the guest gets a frame only if the mirror took it: a frame that the
 * twin can never see must not be seen here either (RULES 26).
 */
#include "net/colo/colo-int.h"
#include "net/net-int.h"

static void mirror_frame(void *opaque, Frame *f)
{
    frame_unref(f); /* nobody should send here */
}

static void mirror_control(void *opaque, const ChardevControl *msg)
{
    proxy_mirror_control(opaque, msg);
}

static void mirror_event(void *opaque, bool connected)
{
    proxy_mirror_event(opaque, connected);
}

static const ChardevHandlers mirror_handlers = {
    .frame = mirror_frame, .control = mirror_control, .event = mirror_event};

static Frame *mirror_receive(NetFilter *nf, NetFilterDirection dir, Frame *f)
{
    FilterMirror *m = (FilterMirror *)nf;

    if (chardev_send(m->out, f)) {
        m->mirrored++;
        return f;
    }
    m->dropped++;
    if (m->strict && dir == NET_FILTER_TX && net_get_role() == NET_ROLE_PRIMARY) {
        frame_unref(f);
        return NULL;
    }
    return f;
}

static const NetProperty mirror_properties[] = {
    {"outdev", "string", NET_PROPERTY_STRING, .required = true},
    {"vnet_hdr_support", "bool", NET_PROPERTY_BOOL},
    {NULL},
};

static bool mirror_setup(NetFilter *nf, JsonObject *opts, GError **errp)
{
    FilterMirror *m = (FilterMirror *)nf;

    if (!options_get_bool(opts, "vnet_hdr_support", &m->vnet_hdr, errp)) {
        return false;
    }
    m->out = colo_claim_chardev(options_get_str(opts, "outdev", ""), &mirror_handlers, m,
                                m->vnet_hdr, errp);
    return m->out != NULL;
}

static void mirror_cleanup(NetFilter *nf)
{
    chardev_release(((FilterMirror *)nf)->out);
}

static JsonNode *mirror_get(NetFilter *nf, const char *property)
{
    FilterMirror *m = (FilterMirror *)nf;

    return g_str_equal(property, "outdev") ? colo_string_node(chardev_id(m->out))
                                           : colo_bool_node(m->vnet_hdr);
}

static bool mirror_set(NetFilter *nf, const char *property, JsonNode *value, GError **errp)
{
    FilterMirror *m = (FilterMirror *)nf;

    if (g_str_equal(property, "outdev")) {
        return colo_swap_chardev(&m->out, json_node_get_string(value), &mirror_handlers, m,
                                 m->vnet_hdr, errp);
    }
    m->vnet_hdr = json_node_get_boolean(value);
    chardev_set_vnet_hdr(m->out, m->vnet_hdr);
    return true;
}

const NetFilterClass filter_mirror_class = {
    .type = "filter-mirror",
    .size = sizeof(FilterMirror),
    .properties = mirror_properties,
    .setup = mirror_setup,
    .cleanup = mirror_cleanup,
    .receive = mirror_receive,
    .get = mirror_get,
    .set = mirror_set,
};
