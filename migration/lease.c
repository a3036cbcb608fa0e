/*
 * Heartbeat, pulse and controllers: what a beat says of this side, what the peer's silence means,
 * and the lease that one of the two gives.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "migration/colo.h"
#include "migration/heartbeat.h"
#include "migration/primary.h"
#include "migration/pulse.h"
#include "util/error.h"
#include "util/trace.h"

#define ARM_STEP_MS 100
#define ARM_TRIES 60

bool colo_heartbeat_self(HeartbeatSelf *out)
{
    if (!g_mutex_trylock(&colo.lock)) {
        return false;
    }
    *out = (HeartbeatSelf){colo.mode, colo.state, colo.state == COLO_STATE_ALONE, colo.epoch};
    g_mutex_unlock(&colo.lock);
    return true;
}

/* A takeover that this side was told of by the other's beats alone: the channel is gone, or
 * its last message came too late. */
void colo_heartbeat_changed(void)
{
    bool gone = false;

    g_mutex_lock(&colo.lock);
    if (colo.mode == COLO_MODE_PRIMARY && colo.peer_may_live && heartbeat_peer_serves()) {
        gone = colo.peer_took_over = true;
    }
    g_cond_broadcast(&colo.cond);
    g_mutex_unlock(&colo.lock);
    if (gone) {
        primary_lost("the secondary took over");
    }
}

void colo_heartbeat_lost(const char *why, BeatWord word)
{
    g_mutex_lock(&colo.lock);
    ColoMode mode = colo.mode;
    if (mode == COLO_MODE_SECONDARY && colo.channel && !colo.peer_failure) {
        /* What came over the channel before is read first: it may say more. */
        colo.peer_failure = g_strdup(why);
        colo.peer_guest_off = word == BEAT_GUEST_OFF;
        colo_trace(migration_peer_lost, "%s", why);
        channel_cancel(colo.channel);
    }
    g_mutex_unlock(&colo.lock);
    if (mode == COLO_MODE_PRIMARY) {
        primary_lost(why);
    }
}

static bool arm(unsigned ms, GError **errp)
{
    return heartbeat_arm(ms, errp) &&
           (!colo.link.pulse || pulse_arm(colo.link.pulse, ms, errp));
}

bool colo_lease_begin(GError **errp)
{
    g_autoptr(GError) err = NULL;
    bool ended = false;

    for (int i = 0; i < ARM_TRIES && !ended; i++) {
        g_clear_error(&err);
        if (arm(ARM_STEP_MS, &err)) {
            return true;
        }
        g_mutex_lock(&colo.lock);
        ended = colo.peer_failure || colo.want_exit || colo.want_quit;
        g_mutex_unlock(&colo.lock);
    }
    g_propagate_error(errp, g_steal_pointer(&err));
    return false;
}

void colo_lease_silence_locked(void)
{
    pulse_mute(colo.link.pulse);
    heartbeat_set_silent(true);
}

void colo_lease_end(void)
{
    g_mutex_lock(&colo.lock);
    pulse_mute(colo.link.pulse);
    g_mutex_unlock(&colo.lock);
    heartbeat_end_round();
}

void colo_lease_stop_vouching(void)
{
    heartbeat_stop_vouching();
    pulse_freeze(colo.link.pulse);
}

int64_t colo_lease_left(ColoMode mode)
{
    if (mode != COLO_MODE_SECONDARY || colo.peer_silent || colo.operator_vouches) {
        return 0;
    }
    return colo.link.pulse ? pulse_peer_lease_left(colo.link.pulse)
                           : heartbeat_peer_lease_left();
}
