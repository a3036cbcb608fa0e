/*
 * colo-switch: what its two parts share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_TOOLS_SWITCH_H
#define COLO_TOOLS_SWITCH_H

#include <glib.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Switch Switch;
typedef struct Uplink Uplink;

/** Take in a frame that came from outside the ports. */
void switch_from_uplink(Switch *sw, const uint8_t *frame, size_t len);

/**
 * A libslirp stack on network @net ("10.0.2.0/24": the gateway is .2, DHCP starts at .15).
 * @restricted keeps the guests from reaching out.
 */
Uplink *uplink_new(Switch *sw, const char *net, gboolean restricted, GError **errp);

/** @rule is QEMU's "tcp|udp:[hostaddr]:hostport-[guestaddr]:guestport". */
gboolean uplink_add_forward(Uplink *u, const char *rule, GError **errp);

void uplink_free(Uplink *u);

/** A frame for the outside. */
void uplink_input(Uplink *u, const uint8_t *frame, size_t len);

/** Append what is to be polled to @fds; lowers *@timeout_ms where a timer is due sooner. */
void uplink_fill(Uplink *u, GArray *fds, int *timeout_ms);

/** After poll(): @fds is as uplink_fill() left it, with results. */
void uplink_poll(Uplink *u, GArray *fds, gboolean failed);

#endif
