/*
 * The connection of two sides: its settings, its data channels, TLS.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_LINK_H
#define COLO_MIGRATION_LINK_H

#include <json-glib/json-glib.h>

#include "migration/channel.h"
#include "migration/pulse.h"
#include "migration/ram-receiver.h"
#include "migration/ram-send.h"

#define LINK_SESSION_BYTES 16

/** Of one connection; used by the thread of the current role alone, but for what others look at:
 * method, tls_creds, n, sender and pulse change under colo.lock. */
typedef struct Link {
    /* As the migration parameters say, on this side. */
    unsigned want_channels; /* data channels; 0: pages go over the control channel */
    RamMethod method;
    int level;
    uint64_t base_bytes; /* for committed versions on the primary */
    char *tls_creds, *tls_hostname; /* or NULL */

    /* As agreed. */
    uint8_t session[LINK_SESSION_BYTES];
    unsigned n;
    bool with_pulse;
    unsigned pulse_ms; /* secondary: the primary's time-out; it waits for no less */
    Channel *data[RAM_CHANNELS_MAX]; /* attached to the control channel */
    Pulse *pulse;                    /* or NULL: its channel is attached, too */
    RamSender *sender;               /* primary */
} Link;

/** Read the emulator's migration parameters; refuses those that we do not honour. */
bool link_learn(Link *l, GError **errp);

/** TLS on @ch where tls-creds is set; @uri: of the peer for a client, NULL for a server. */
bool link_secure(const Link *l, Channel *ch, const char *uri, GError **errp);

/** Primary: members of the greeting. */
void link_greet(Link *l, JsonObject *hello);

/** Secondary: what the primary's greeting @text offers. */
bool link_read_offer(Link *l, const char *text, GError **errp);

/** Primary, after the greeting: connect pulse (@hooks) and data channels, and make the sender. */
bool link_connect(Link *l, Channel *ctl, const char *uri, const PulseHooks *hooks,
                  GError **errp);

/** Secondary, after the greeting: wait for them on @listen_fd. */
bool link_accept(Link *l, Channel *ctl, int listen_fd, GError **errp);

/** End sender and pulse; the channels are freed with the control channel, and not before. */
void link_close(Link *l);

/** For query-colo-status; colo.lock is held. */
void link_to_json(const Link *l, JsonObject *out);

#endif
