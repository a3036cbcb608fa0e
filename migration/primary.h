/*
 * The primary's controller: what its files share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_PRIMARY_H
#define COLO_MIGRATION_PRIMARY_H

#include "migration/colo.h"

/** The peer counts as lost from now on; the first reason is kept. Any thread. */
void primary_lost(const char *why);

/** Body of the receiving thread; @channel: a Channel, which it never frees. */
gpointer primary_rx_thread(gpointer channel);

/** The guest has shut down and a checkpoint that says so was loaded: end both sides. */
void primary_guest_off(Channel *ch);

/**
 * Leave protection because of @why: at once if it had not begun, else hold all output
 * until the arbiter's word (COLO_EXIT is sent), then go on alone. Returns when the side
 * is unprotected, fenced, or the process ends.
 */
void primary_end(Channel *ch, bool started_rooms, const GError *why);

#endif
