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

static bool mirror_setup(NetFilter *nf, JsonObject *opts, GError **errp)
{
    FilterMirror *m = (FilterMirror *)nf;
    g_autofree char *what = g_strdup_printf("filter-mirror '%s'", nf->id);

    if (!options_get_bool(opts, "vnet_hdr_support", &m->vnet_hdr, errp)) {
        return false;
    }
    m->out = colo_claim_chardev(opts, "outdev", what, &mirror_handlers, m, m->vnet_hdr,
                                errp);
    return m->out != NULL;
}

static void mirror_cleanup(NetFilter *nf)
{
    chardev_release(((FilterMirror *)nf)->out);
}

static JsonNode *mirror_get(NetFilter *nf, const char *property)
{
    FilterMirror *m = (FilterMirror *)nf;

    if (g_str_equal(property, "outdev")) {
        return colo_string_node(chardev_id(m->out));
    }
    if (g_str_equal(property, "vnet_hdr_support")) {
        return colo_bool_node(m->vnet_hdr);
    }
    return NULL;
}

static const char *const mirror_options[] = {"outdev", "vnet_hdr_support", NULL};

const NetFilterClass filter_mirror_class = {
    .type = "filter-mirror",
    .size = sizeof(FilterMirror),
    .options = mirror_options,
    .setup = mirror_setup,
    .cleanup = mirror_cleanup,
    .receive = mirror_receive,
    .get = mirror_get,
};
