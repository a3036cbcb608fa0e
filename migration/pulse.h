/*
 * The pair's lease over a connection of its own, where there is no heartbeat.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_PULSE_H
#define COLO_MIGRATION_PULSE_H

#include "migration/channel.h"

typedef struct Pulse Pulse;

/** What a primary's pulse tells: until when (CLOCK_BOOTTIME, us) this side may speak, under
 * its lock; why its connection ended, by its thread, without. */
typedef struct PulseHooks {
    void (*speak_until)(int64_t boot_us);
    void (*lost)(const char *why);
} PulseHooks;

/** Start the thread on connection @ch, which stays the caller's. @timeout_ms: what the secondary
 * waits after the last that it heard, the primary's or longer. @stall_ms: a primary that has had no
 * answer for so long counts the connection as lost. @hooks: of a primary; NULL makes a
 * secondary. */
Pulse *pulse_new(Channel *ch, unsigned timeout_ms, unsigned stall_ms, const PulseHooks *hooks);

/** End the thread: the channel is not used any more, but what was learnt remains. Blocks for
 * what it is doing. */
void pulse_stop(Pulse *p);

/** Stop and free; NULL is allowed. */
void pulse_free(Pulse *p);

/** Primary: from here on speak_until() is told. Waits at most @ms for the first proof; false
 * with @errp set if none came. */
bool pulse_arm(Pulse *p, unsigned ms, GError **errp);

/** Primary: speak_until() is not told any more once this returns. NULL is allowed. */
void pulse_mute(Pulse *p);

/** Secondary: nothing new is answered from here on. NULL is allowed. */
void pulse_freeze(Pulse *p);

/** Secondary: microseconds for which the primary may still speak on the strength of what was
 * answered; 0: it may not. */
int64_t pulse_peer_lease_left(Pulse *p);

/** Primary: microseconds for which this side may speak; 0: it may not, or goes by nothing. */
int64_t pulse_lease_left(Pulse *p);

/** Secondary: false with @errp set once the connection ended some time ago: the end of all of
 * them is told better by the control channel. */
bool pulse_good(Pulse *p, GError **errp);

#endif
