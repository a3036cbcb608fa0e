/*
 * The way out of protection: waiting for the arbiter's verdict, on either side.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Both controllers come here in state LOST, with all output held (primary) or no longer
 * vouched for (secondary), and go on only after a verdict for them. Where there is a
 * heartbeat (or a pulse) the secondary first waits until the primary's lease is over.
 */
#include "migration/arbiter.h"
#include "migration/colo.h"
#include "migration/heartbeat.h"
#include "migration/primary.h"
#include "monitor/monitor.h"
#include "net/net.h"
#include "util/error.h"
#include "util/trace.h"

#define ASK_AGAIN_US (200 * 1000)
#define REASONS_MAX 8 /* that are reported, each once */
#define GIVE_WAY 2    /* peer-timeouts: to a side that was told to take over */

static void emit_decision(bool serving, const char *by)
{
    JsonObject *data = json_object_new();

    json_object_set_boolean_member(data, "serving", serving);
    json_object_set_string_member(data, "arbiter", by);
    monitor_event("COLO_DECISION", data);
}

/* One question to the arbiter; the lock is held, but not while it is asked. */
static ArbiterVerdict ask_locked(GHashTable *said)
{
    g_autoptr(GError) err = NULL;

    g_mutex_unlock(&colo.lock);
    ArbiterVerdict v = colo.arbiter->class->leave(colo.arbiter, &err);
    if (v == ARBITER_UNDECIDED && g_hash_table_size(said) < REASONS_MAX &&
        g_hash_table_add(said, g_strdup(err->message))) {
        colo_report("arbiter %s: %s; asking again", colo.arbiter->class->name, err->message);
    }
    colo_trace(migration_verdict, "%d %s", v, err ? err->message : "");
    g_mutex_lock(&colo.lock);
    g_free(colo.arbiter_error);
    colo.arbiter_error = v == ARBITER_UNDECIDED && err ? g_strdup(err->message) : NULL;
    return v;
}

bool colo_decide(ColoMode mode)
{
    g_autoptr(GHashTable) said = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    bool may_ask = arbiter_answers(colo.arbiter);
    const char *by = colo.arbiter ? colo.arbiter->class->name : "manual";
    ArbiterVerdict v = ARBITER_UNDECIDED;
    /* What the other side said that it would do, told to by an operator, it may not come to: it
     * dies, or does not reach the witness. This side asks, too, but later. */
    bool peer_may_fail = may_ask && colo.arbiter && colo.arbiter->class->join, given_way = false;

    colo_qmp_leave(); /* it may take days */
    g_mutex_lock(&colo.lock);
    int64_t next = g_get_monotonic_time();
    if (may_ask && mode == COLO_MODE_SECONDARY && !colo.want_exit) {
        next += (int64_t)colo.arbiter->delay_ms * 1000;
    }
    while (v == ARBITER_UNDECIDED && !colo.want_quit && !colo.disowned &&
           (!colo.peer_took_over || peer_may_fail)) {
        if (colo.child_died || child_qmp_ended(colo.qmp)) {
            /* Nothing here could serve: the win is the peer's. The process ends soon. */
            break;
        }
        if (heartbeat_peer_serves()) {
            /* It says so itself: nobody here has to ask, or may be told otherwise. */
            colo.peer_took_over = true;
            break;
        }
        if (colo.peer_took_over && !given_way) {
            given_way = true;
            if (colo.channel) { /* its end tells the other that this side is silent */
                channel_break(colo.channel);
            }
            next = g_get_monotonic_time() + GIVE_WAY * colo.opts.peer_timeout * 1000LL;
        }
        int64_t lease = colo_lease_left(mode);
        if (lease > 0) {
            /* The primary may still speak: whatever the answer were, it would be too early. */
            g_cond_wait_until(&colo.cond, &colo.lock, g_get_monotonic_time() + lease);
        } else if (colo.operator_vouches || (colo.want_exit && (!may_ask || colo.decided))) {
            v = ARBITER_WON;
        } else if (may_ask && !colo.decided &&
                   (colo.want_exit || g_get_monotonic_time() >= next)) {
            v = ask_locked(said);
            by = colo.arbiter->class->name;
            next = g_get_monotonic_time() + ASK_AGAIN_US;
            /* A word of the operator hastens one question, not all that follow. */
            colo.want_exit = colo.want_exit && v != ARBITER_UNDECIDED;
        } else if (may_ask && !colo.decided) {
            g_cond_wait_until(&colo.cond, &colo.lock, next);
        } else {
            g_cond_wait(&colo.cond, &colo.lock);
        }
    }
    bool forced = colo.operator_vouches && !colo.decided;
    g_clear_pointer(&colo.arbiter_error, g_free);
    /* The arbiter's verdict counts more than what the peer said that it would do. */
    bool won = v == ARBITER_WON && !colo.want_quit && !colo.disowned;
    bool told = v == ARBITER_UNDECIDED && colo.peer_took_over && heartbeat_peer_serves();
    by = told ? "heartbeat" : by;
    if (v == ARBITER_LOST || colo.disowned || (v != ARBITER_WON && colo.peer_took_over)) {
        colo_set_state_locked(COLO_STATE_FENCED);
    } else if (won) {
        colo.decided = true;
        if (mode == COLO_MODE_SECONDARY) {
            colo_set_state_locked(COLO_STATE_TAKEOVER);
        }
    }
    g_mutex_unlock(&colo.lock);
    colo_qmp_take();
    if (won && forced && may_ask && colo.arbiter->class->force) {
        colo.arbiter->class->force(colo.arbiter);
    }
    if ((v != ARBITER_UNDECIDED || told) && colo.arbiter) {
        emit_decision(won, by);
        if (!won) {
            colo_report("arbiter %s: the other side goes on; this one stays silent: quit it",
                        by);
        }
    }
    return won;
}

void colo_ownership_lost(const char *why)
{
    g_mutex_lock(&colo.lock);
    g_free(colo.error);
    colo.error = g_strdup(why);
    colo.disowned = true; /* whoever is on his way to ALONE ends elsewhere */
    if (colo.state == COLO_STATE_ALONE || colo.state == COLO_STATE_LOST) {
        colo_set_state_locked(COLO_STATE_FENCED);
    }
    bool protecting = colo.mode == COLO_MODE_PRIMARY && colo.state != COLO_STATE_FENCED;
    g_mutex_unlock(&colo.lock);
    if (protecting) {
        primary_lost(why);
    }
    block_primary_fence();
    colo_report("%s: this side is silent from here: quit it", why);
    emit_decision(false, "witness");
}
