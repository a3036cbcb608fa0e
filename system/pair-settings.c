/*
 * How a pair's memory travels, by keys of -colo.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * They become the migration's capabilities and parameters, before each protection and on both
 * sides: an emulator that was started anew has forgotten what it was told, and a secondary is
 * to be a primary one day.
 */
#include "system/pair-settings.h"

#include <string.h>

#include "util/error.h"
#include "util/options.h"

const char *const pair_setting_keys[] = {
    "checkpoint-delay", "max-pause",  "channels",   "compression", "xbzrle",
    "max-bandwidth",    "tls-client", "tls-server", NULL,
};

static bool has(JsonObject *colo, const char *key)
{
    return json_object_has_member(colo, key);
}

bool pair_settings_read(PairSettings *s, JsonObject *colo, GError **errp)
{
    *s = (PairSettings){0};
    s->compression = options_get_str(colo, "compression", NULL);
    s->tls_client = options_get_str(colo, "tls-client", NULL);
    s->tls_server = options_get_str(colo, "tls-server", NULL);
    s->has_channels = has(colo, "channels");
    s->has_xbzrle = has(colo, "xbzrle");
    s->has_bandwidth = has(colo, "max-bandwidth");
    s->has_pause = has(colo, "max-pause");
    if (!options_get_uint(colo, "checkpoint-delay", &s->checkpoint_delay, 1, UINT32_MAX, errp) ||
        !options_get_uint(colo, "max-pause", &s->max_pause, 0, 10000, errp) ||
        !options_get_uint(colo, "channels", &s->channels, 0, PAIR_CHANNELS_MAX, errp) ||
        !options_get_bool(colo, "xbzrle", &s->xbzrle, errp) ||
        !options_get_size(colo, "max-bandwidth", 1, &s->max_bandwidth, errp)) {
        g_prefix_error(errp, "-colo: ");
        return false;
    }
    if (s->compression && strcmp(s->compression, "none") != 0) {
        if (strcmp(s->compression, "zlib") != 0 && strcmp(s->compression, "zstd") != 0) {
            colo_error_set(errp, "-colo: compression='%s' is not known: use none, zlib or zstd",
                           s->compression);
            return false;
        }
        if (s->channels == 0) {
            colo_error_set(errp, "-colo: compression=%s needs channels=1 or more",
                           s->compression);
            return false;
        }
    }
    if (!s->tls_client != !s->tls_server) {
        colo_error_set(errp, "-colo: tls-client and tls-server come together: this side is a "
                             "client as primary and a server as secondary");
        return false;
    }
    return true;
}

static void add_capability(JsonArray *a, const char *name, bool on)
{
    JsonObject *o = json_object_new();

    json_object_set_string_member(o, "capability", name);
    json_object_set_boolean_member(o, "state", on);
    json_array_add_object_element(a, o);
}

JsonObject *pair_settings_capabilities(const PairSettings *s)
{
    JsonObject *out = json_object_new();
    JsonArray *a = json_array_new();

    add_capability(a, "x-colo", true);
    if (s->has_channels) {
        add_capability(a, "multifd", s->channels > 0);
    }
    if (s->has_xbzrle) {
        add_capability(a, "xbzrle", s->xbzrle);
    }
    json_object_set_array_member(out, "capabilities", a);
    return out;
}

JsonObject *pair_settings_parameters(const PairSettings *s, bool secondary)
{
    JsonObject *o = json_object_new();

    if (s->channels) {
        json_object_set_int_member(o, "multifd-channels", s->channels);
    }
    if (s->compression) {
        json_object_set_string_member(o, "multifd-compression", s->compression);
    }
    if (s->has_bandwidth) {
        json_object_set_int_member(o, "max-bandwidth", s->max_bandwidth);
    }
    if (s->has_pause) {
        json_object_set_int_member(o, "x-max-pause", s->max_pause);
    }
    if (s->checkpoint_delay) {
        json_object_set_int_member(o, "x-checkpoint-delay", s->checkpoint_delay);
    }
    if (s->tls_client) {
        json_object_set_string_member(o, "tls-creds", secondary ? s->tls_server
                                                                : s->tls_client);
    }
    if (json_object_get_size(o) == 0) {
        g_clear_pointer(&o, json_object_unref);
    }
    return o;
}
