/*
 * The keys of -colo that belong to a pair.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "system/pair.h"

#include <string.h>

#include "util/error.h"
#include "util/options.h"

const char *const pair_keys[] = {
    "pair",         "listen",      "peer",    "mirror-port", "compare-port", "nbd-port",
    "migrate-port", "pair-port",   "in-port", "out-port",    "auto-protect", "auto-sync",
    "quiet-time",   "peer-off",    NULL,
};

int pair_sync_parse(const char *text)
{
    static const char *const names[] = {"incremental", "full", "none"};

    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        if (strcmp(text, names[i]) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static bool read_sync(PairOptions *o, JsonObject *colo, GError **errp)
{
    const char *text = options_get_str(colo, "auto-sync", "incremental");
    int sync = pair_sync_parse(text);

    if (sync < 0) {
        colo_error_set(errp, "-colo: auto-sync='%s' is not known: use incremental, full or none",
                       text);
        return false;
    }
    o->sync = (PairSync)sync;
    return true;
}

static bool read_ports(PairOptions *o, JsonObject *colo, GError **errp)
{
    struct {
        const char *key;
        unsigned *out, dflt;
    } ports[] = {
        {"mirror-port", &o->mirror_port, 9003}, {"compare-port", &o->compare_port, 9004},
        {"nbd-port", &o->nbd_port, 9999},       {"migrate-port", &o->migrate_port, 9998},
        {"pair-port", &o->pair_port, 9997},     {"in-port", &o->in_port, 9001},
        {"out-port", &o->out_port, 9005},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(ports); i++) {
        uint64_t n = ports[i].dflt;

        if (!options_get_uint(colo, ports[i].key, &n, 1, 65535, errp)) {
            g_prefix_error(errp, "-colo: ");
            return false;
        }
        *ports[i].out = n;
    }
    return true;
}

/* Without pair=on. */
static bool refuse_any(JsonObject *colo, const char *const *keys, GError **errp)
{
    for (; *keys; keys++) {
        if (json_object_has_member(colo, *keys)) {
            colo_error_set(errp, "-colo: '%s' needs pair=on", *keys);
            return false;
        }
    }
    return true;
}

bool pair_options_read(PairOptions *o, JsonObject *colo, GError **errp)
{
    *o = (PairOptions){.auto_protect = true};
    if (!options_get_bool(colo, "pair", &o->on, errp)) {
        g_prefix_error(errp, "-colo: ");
        return false;
    }
    if (!o->on) {
        return refuse_any(colo, pair_keys + 1, errp) &&
               refuse_any(colo, pair_setting_keys, errp);
    }
    o->listen = options_get_str(colo, "listen", NULL);
    o->peer = options_get_str(colo, "peer", NULL);
    if (!o->listen || !*o->listen || !o->peer || !*o->peer) {
        colo_error_set(errp, "-colo pair=on needs listen=ADDRESS (of this host on the private "
                             "network) and peer=ADDRESS (of the other host)");
        return false;
    }
    if (!options_get_bool(colo, "auto-protect", &o->auto_protect, errp) ||
        !options_get_bool(colo, "peer-off", &o->peer_off, errp)) {
        g_prefix_error(errp, "-colo: ");
        return false;
    }
    uint64_t timeout = 2000, quiet = 600;
    if (!options_get_uint(colo, "peer-timeout", &timeout, 1, 3600000, errp) ||
        !options_get_uint(colo, "quiet-time", &quiet, 1, 1000000, errp)) {
        g_prefix_error(errp, "-colo: ");
        return false;
    }
    o->peer_timeout = timeout;
    o->quiet = quiet;
    return read_ports(o, colo, errp) && read_sync(o, colo, errp) &&
           pair_settings_read(&o->settings, colo, errp);
}
