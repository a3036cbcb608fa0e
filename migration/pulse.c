/*
 * The pair's lease over a connection of its own, where there is no heartbeat.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: a primary that was stopped, or is cut off, says nothing once its secondary may serve. What
 * waits in its sockets when it wakes (a confirmation, an answer of the guest's) must not count.
 *
 * It is heartbeat-state.h's lease, without links, roles and keys: the primary sends its time T, the
 * secondary notes when it heard it and sends T back. Having T back the primary may speak until
 * T + 4/5 of the time-out, by the clock that the gate looks at for each frame. The secondary waits
 * for the time-out after the last that it heard and answered. It heard T after T was, so the
 * primary is silent first, whatever came late; the fifth is for clocks of different rates.
 *
 * The connection carries nothing else, and each end has a thread for it: neither a checkpoint under
 * way nor its load, a disk or a slow link's queue in our own buffers delays an answer.
 *
 * Limits: a network that queues for longer than the time-out holds output back; a frame whose send
 * was under way when the process was stopped leaves when it wakes.
 */
#include "migration/pulse.h"

#include <string.h>

#include "net/net.h"
#include "util/bytes.h"
#include "util/error.h"
#include "util/trace.h"

#define EACH_MIN_US 10000
#define EACH_MAX_US 100000
#define TIMEOUT_PARTS 20 /* pulses in the time-out, within those bounds */
#define GRACE_MS 300     /* for the control channel, to tell of a common end */
#define LOOK_MS 100

struct Pulse {
    Channel *ch;
    GThread *thread; /* NULL once stopped */
    PulseHooks hooks;
    bool primary;
    int64_t timeout_us, stall_us, each_us;

    GMutex lock; /* guards all below; taken after colo.lock */
    GCond cond;  /* a proof came, or the end */
    bool armed, frozen;
    int64_t proven_us; /* primary: newest time of ours that came back; 0: none */
    int64_t heard_us;  /* secondary: when the last that we answered was heard; 0: none */
    char *why;         /* the connection ended, or NULL */
    int64_t ended_us;  /* monotonic */
};

/* Guarded by the lock. */
static int64_t own_end(const Pulse *p)
{
    return p->proven_us ? p->proven_us + p->timeout_us * 4 / 5 : 1;
}

static bool take_proof(Pulse *p, const ChannelMsg *msg, GError **errp)
{
    int64_t t = (int64_t)channel_msg_u64(msg, 0);
    int64_t now = net_boot_us();
    bool ok = msg->type == CHANNEL_PULSE && msg->len == sizeof(uint64_t) && t > 0 && t <= now;

    if (!ok) {
        colo_error_set(errp, "a wrong answer came on the pulse's connection (message %d)",
                       msg->type);
        return false;
    }
    g_mutex_lock(&p->lock);
    if (t > p->proven_us) {
        p->proven_us = t;
        g_cond_broadcast(&p->cond);
        if (p->armed) {
            p->hooks.speak_until(own_end(p));
        }
    }
    g_mutex_unlock(&p->lock);
    return true;
}

static bool answer(Pulse *p, const ChannelMsg *msg, GError **errp)
{
    if (msg->type != CHANNEL_PULSE || msg->len != sizeof(uint64_t)) {
        colo_error_set(errp, "message %d on the pulse's connection", msg->type);
        return false;
    }
    g_mutex_lock(&p->lock);
    bool vouch = !p->frozen;
    if (vouch) {
        p->heard_us = net_boot_us();
    }
    g_mutex_unlock(&p->lock);
    if (vouch) {
        /* One that does not go out now would be old later: the next one comes soon. */
        channel_try_bytes(p->ch, CHANNEL_PULSE, msg->data, msg->len);
    }
    return true;
}

/* Send what is due; ms until the next. */
static int beat(Pulse *p, int64_t *due)
{
    int64_t now = net_boot_us();

    if (!p->primary) {
        return LOOK_MS;
    }
    if (now >= *due) {
        uint8_t body[sizeof(uint64_t)];
        bytes_put_be(body, (uint64_t)now, sizeof(body));
        channel_try_bytes(p->ch, CHANNEL_PULSE, body, sizeof(body));
        *due = now + p->each_us;
    }
    return (int)((*due - now) / 1000) + 1;
}

/* The rest of the pair may be well: then nothing else would tell why this side is silent. */
static bool moves(Pulse *p, GError **errp)
{
    if (!p->primary || channel_silence(p->ch) < p->stall_us) {
        return true;
    }
    colo_error_set(errp, "the pulse's connection stands still for %d ms: nothing came back",
                   (int)(p->stall_us / 1000));
    return false;
}

static void note_end(Pulse *p, const char *why)
{
    g_mutex_lock(&p->lock);
    p->why = g_strdup(why);
    p->ended_us = g_get_monotonic_time();
    g_cond_broadcast(&p->cond);
    g_mutex_unlock(&p->lock);
    colo_trace(migration_pulse_ended, "%s", why);
    if (p->primary && !channel_cancelled(p->ch, GRACE_MS)) {
        p->hooks.lost(why);
    }
}

static gpointer pulse_thread(gpointer opaque)
{
    Pulse *p = opaque;
    int64_t due = 0;

    for (;;) {
        g_autoptr(GError) err = NULL;
        ChannelMsg msg;
        ChannelResult r = channel_recv(p->ch, &msg, beat(p, &due), &err);
        if (r == CHANNEL_CANCELLED) {
            return NULL;
        }
        if (r == CHANNEL_OK) {
            if (p->primary) {
                take_proof(p, &msg, &err);
            } else {
                answer(p, &msg, &err);
            }
        } else if (r == CHANNEL_TIMEOUT) {
            moves(p, &err);
        }
        if (err) {
            note_end(p, err->message);
            return NULL;
        }
    }
}

Pulse *pulse_new(Channel *ch, unsigned timeout_ms, unsigned stall_ms, const PulseHooks *hooks)
{
    Pulse *p = g_new0(Pulse, 1);

    p->ch = ch;
    p->primary = hooks != NULL;
    if (hooks) {
        p->hooks = *hooks;
    }
    p->timeout_us = timeout_ms * 1000LL;
    p->stall_us = stall_ms * 1000LL;
    p->each_us = CLAMP(p->timeout_us / TIMEOUT_PARTS, EACH_MIN_US, EACH_MAX_US);
    g_mutex_init(&p->lock);
    g_cond_init(&p->cond);
    p->thread = g_thread_new("colo-pulse", pulse_thread, p);
    return p;
}

void pulse_stop(Pulse *p)
{
    if (p->thread) {
        channel_cancel(p->ch);
        g_thread_join(g_steal_pointer(&p->thread));
    }
}

void pulse_free(Pulse *p)
{
    if (!p) {
        return;
    }
    pulse_stop(p);
    g_mutex_clear(&p->lock);
    g_cond_clear(&p->cond);
    g_free(p->why);
    g_free(p);
}

bool pulse_arm(Pulse *p, unsigned ms, GError **errp)
{
    int64_t end = g_get_monotonic_time() + ms * 1000LL;

    g_mutex_lock(&p->lock);
    while (!p->proven_us && !p->why && g_cond_wait_until(&p->cond, &p->lock, end)) {
    }
    bool ok = p->proven_us && !p->why;
    if (ok) {
        p->armed = true;
        p->hooks.speak_until(own_end(p));
    } else {
        colo_error_set(errp, "the secondary does not answer on the pulse's connection (%s)",
                       p->why ? p->why : "nothing came");
    }
    g_mutex_unlock(&p->lock);
    return ok;
}

void pulse_mute(Pulse *p)
{
    if (p) {
        g_mutex_lock(&p->lock);
        p->armed = false;
        g_mutex_unlock(&p->lock);
    }
}

void pulse_freeze(Pulse *p)
{
    if (p) {
        g_mutex_lock(&p->lock);
        p->frozen = true;
        g_mutex_unlock(&p->lock);
    }
}

int64_t pulse_peer_lease_left(Pulse *p)
{
    g_mutex_lock(&p->lock);
    int64_t left = p->heard_us ? p->heard_us + p->timeout_us - net_boot_us() : 0;
    g_mutex_unlock(&p->lock);
    return MAX(left, 0);
}

int64_t pulse_lease_left(Pulse *p)
{
    g_mutex_lock(&p->lock);
    int64_t left = p->armed ? own_end(p) - net_boot_us() : 0;
    g_mutex_unlock(&p->lock);
    return MAX(left, 0);
}

bool pulse_good(Pulse *p, GError **errp)
{
    g_mutex_lock(&p->lock);
    bool good = !p->why || g_get_monotonic_time() < p->ended_us + GRACE_MS * 1000LL;
    if (!good) {
        colo_error_set(errp, "the pulse's connection: %s", p->why);
    }
    g_mutex_unlock(&p->lock);
    return good;
}
