/*
 * The primary's receiving thread, and the ways out of protection.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "migration/primary.h"

#include <string.h>

#include "migration/arbiter.h"
#include "net/net.h"
#include "net/proxy.h"
#include "util/error.h"
#include "util/trace.h"

#define FAILED_LOOK_US (200 * 1000)

/* Whether the peer may say @msg now: RECEIVED of what END was sent for, then LOADED. */
static bool in_turn_locked(const ChannelMsg *msg)
{
    uint64_t epoch = channel_msg_u64(msg, 0);

    if (msg->type == CHANNEL_RECEIVED) {
        return epoch == colo.received_epoch + 1 && epoch <= colo.sent_epoch;
    }
    return epoch == colo.loaded_epoch + 1 && epoch <= colo.received_epoch;
}

/* Figures are for people and for the choice of a mode: a peer's are kept within reason. */
#define FIGURE_MAX (3600ll * G_USEC_PER_SEC)

/* How far the secondary's clock is ahead of ours, from a message that carries its time. What
 * was delayed on the way makes it look less; so the largest of late counts. */
static void note_peer_clock_locked(Channel *ch, int64_t theirs)
{
    if (theirs > 0 && theirs < G_MAXINT64 / 2) {
        int64_t ahead = theirs - (g_get_monotonic_time() - channel_rtt(ch) / 2);
        colo.peer_clock = colo.peer_clock ? MAX(ahead, colo.peer_clock - 50) : ahead;
    }
}

static void handle(Channel *ch, const ChannelMsg *msg)
{
    g_autofree char *text = NULL;
    g_autofree char *why = NULL;
    bool in_turn;

    switch (msg->type) {
    case CHANNEL_RECEIVED:
    case CHANNEL_LOADED:
        g_mutex_lock(&colo.lock);
        in_turn = in_turn_locked(msg);
        if (!in_turn) {
            /* Nothing is released or taken for loaded on the strength of it. */
        } else if (msg->type == CHANNEL_RECEIVED) {
            colo.received_epoch = channel_msg_u64(msg, 0);
        } else {
            colo.loaded_epoch = channel_msg_u64(msg, 0);
            stats_add(&colo.stats.lag, MIN(channel_msg_u64(msg, 1), (uint64_t)FIGURE_MAX));
            note_peer_clock_locked(ch, channel_msg_u64(msg, 4));
            colo.peer_skew = CLAMP((int64_t)channel_msg_u64(msg, 5), -FIGURE_MAX, FIGURE_MAX);
            if (channel_msg_u64(msg, 6)) {
                stats_add(&colo.stats.skew, ABS(colo.peer_skew));
            }
            colo.stats.verified += colo.opts.verify_ram;
            colo.stats.wrong_pages += channel_msg_u64(msg, 3);
        }
        g_cond_broadcast(&colo.cond);
        g_mutex_unlock(&colo.lock);
        if (!in_turn) {
            primary_lost("the secondary acknowledges a checkpoint out of turn");
        }
        break;
    case CHANNEL_REQUEST:
        text = channel_msg_text(msg);
        colo_request_checkpoint(COLO_TRIGGER_SECONDARY, text);
        break;
    case CHANNEL_TOKEN:
        g_mutex_lock(&colo.lock);
        colo.joined_epoch = COLO_EPOCH_SAFE;
        g_cond_broadcast(&colo.cond);
        g_mutex_unlock(&colo.lock);
        break;
    case CHANNEL_PING:
        if (msg->len >= sizeof(uint64_t)) {
            g_mutex_lock(&colo.lock);
            colo.peer_storage = channel_msg_u64(msg, 0);
            g_mutex_unlock(&colo.lock);
        }
        break;
    case CHANNEL_EXIT:
        g_mutex_lock(&colo.lock);
        colo.peer_took_over = true;
        g_cond_broadcast(&colo.cond);
        g_mutex_unlock(&colo.lock);
        /* At once: the checkpoint's thread may be busy for long. */
        colo_silence();
        primary_lost("the secondary took over");
        break;
    case CHANNEL_DEATH:
    case CHANNEL_FAILED:
        text = channel_msg_text(msg);
        why = g_strdup_printf("the secondary: %s", text);
        primary_lost(why);
        break;
    default:
        primary_lost("unexpected message from the secondary");
        break;
    }
}

/* Tell the secondary what it may forget of shared disks' logs; what does not go out now goes
 * with a later call. */
static void tell_applied(Channel *ch, BlockBarrier *told, unsigned *n_told)
{
    BlockBarrier now[COLO_DISKS_MAX];
    unsigned n = block_primary_applied(now, COLO_DISKS_MAX);
    bool news = n != *n_told;

    for (unsigned i = 0; i < n && !news; i++) {
        news = now[i].sequence != told[i].sequence || strcmp(now[i].disk, told[i].disk);
    }
    if (!news) {
        return;
    }
    g_autoptr(GByteArray) bytes = barriers_pack(now, n);
    if (channel_try_bytes(ch, CHANNEL_APPLIED, bytes->data, bytes->len)) {
        memcpy(told, now, n * sizeof(*now));
        *n_told = n;
    }
}

gpointer primary_rx_thread(gpointer opaque)
{
    Channel *ch = opaque;

    g_mutex_lock(&colo.lock);
    colo.rx_thread = g_thread_self();
    g_mutex_unlock(&colo.lock);
    int64_t timeout_us = colo.opts.peer_timeout * 1000LL;
    g_autofree BlockBarrier *told = g_new0(BlockBarrier, COLO_DISKS_MAX);
    unsigned n_told = 0;

    for (;;) {
        g_autoptr(GError) err = NULL;
        ChannelMsg msg;

        tell_applied(ch, told, &n_told);
        ChannelResult r = channel_recv(ch, &msg, COLO_PING_MS, &err);
        if (r == CHANNEL_CANCELLED) {
            return NULL;
        } else if (r == CHANNEL_ERROR) {
            primary_lost(err->message);
            return NULL;
        } else if (r == CHANNEL_OK) {
            handle(ch, &msg);
        } else if (channel_silence(ch) > timeout_us) {
            g_autofree char *why = g_strdup_printf(
                "nothing was heard of the secondary for %u ms", colo.opts.peer_timeout);
            primary_lost(why);
            return NULL;
        }
    }
}

void primary_guest_off(Channel *ch)
{
    channel_send_text(ch, CHANNEL_EXIT, "the guest has shut down", NULL);
    colo_trace(migration_guest_off, "telling the secondary and ending");
    colo.opts.guest_shutdown(0);
}

static bool stop_waiting(void)
{
    g_mutex_lock(&colo.lock);
    bool stop = colo.want_quit || colo_disk_wait_overridden_locked();
    g_mutex_unlock(&colo.lock);
    return stop;
}

/* What leaves soon may tell of writes that only our memory has, or that were answered early in a
 * pause (RULES 11): they reach the disk before. Where
 * that fails for good, or takes longer than the operator likes, a word that he gives once he was
 * told lets this side serve as it is. False: the process ends. */
static bool settle_disks(void)
{
    g_autoptr(GError) err = NULL;

    colo_disk_wait_begin("settle");
    colo_disk_wait_flushed(NULL, stop_waiting);
    bool ok = block_primary_settle(stop_waiting, &err);
    if (!ok && !stop_waiting()) {
        colo_disk_wait_failed(err->message);
        while (!stop_waiting()) {
            g_usleep(FAILED_LOOK_US);
        }
    }
    g_mutex_lock(&colo.lock);
    bool quit = colo.want_quit;
    g_mutex_unlock(&colo.lock);
    colo_disk_wait_end();
    if (quit) {
        return false;
    }
    if (!ok) {
        colo_report("%s: served all the same, as the operator said", err->message);
    }
    block_primary_settled();
    return true;
}

/* Unprotected from here: the guest runs at full speed, everything held goes out. */
static void go_alone(bool started_rooms, bool was_protected)
{
    tracker_stop(colo.tracker);
    if (!was_protected && colo.arbiter && colo.arbiter->class->unprotect) {
        colo.arbiter->class->unprotect(colo.arbiter);
    }
    if (started_rooms) {
        block_primary_stop();
        if (!settle_disks()) {
            return;
        }
        net_lock();
        proxy_stop_primary();
        net_unlock();
    }
    colo_lease_end(); /* before anybody may begin another */
    colo_state_file_note("alone"); /* what it says until now makes a restart wait, no more */
    g_mutex_lock(&colo.lock);
    colo.last_mode = was_protected ? COLO_MODE_PRIMARY : colo.last_mode;
    colo.was_protected = was_protected;
    colo.mode = COLO_MODE_NONE;
    colo_set_state_locked(colo.disowned ? COLO_STATE_FENCED : COLO_STATE_ALONE);
    g_mutex_unlock(&colo.lock);
}

/* The run state that the user wants: a capture that failed half way may have left the
 * guest stopped, and a stop or cont may wait for a checkpoint that will not come. */
static void settle_run_state(void)
{
    g_autoptr(GError) err = NULL;

    g_mutex_lock(&colo.lock);
    bool off = colo.guest_off, run = !colo.user_paused;
    guint requests = colo.run_state_requests->len;
    g_mutex_unlock(&colo.lock);
    if (!off && !colo_child_command(run ? "{\"execute\":\"cont\",\"id\":\"again\"}\n"
                                        : "{\"execute\":\"stop\",\"id\":\"again\"}\n",
                                    "again", &err)) {
        colo_report("%s after protection: %s", run ? "cont" : "stop", err->message);
    }
    colo_finish_run_state(requests);
}

void primary_end(Channel *ch, bool started_rooms, const GError *why)
{
    g_mutex_lock(&colo.lock);
    bool was_protected = colo.peer_may_live;
    bool on_request = colo.want_exit && !colo.peer_failure;
    bool quit = colo.want_quit;
    /* What ended it, not the transfer that was cancelled for it. */
    g_autofree char *text =
        g_strdup(colo.peer_failure ? colo.peer_failure : (why ? why->message : "failed"));
    g_free(colo.error);
    colo.error = g_strdup(text);
    colo.reason = on_request ? "request" : "error";
    if (was_protected) {
        colo_set_state_locked(COLO_STATE_LOST);
    }
    g_mutex_unlock(&colo.lock);

    if (was_protected) {
        /* At the process' end, too: the emulator outlives the channel by a moment. */
        colo_silence();
        g_mutex_lock(&colo.lock);
        colo_lease_silence_locked();
        g_mutex_unlock(&colo.lock);
    }
    if (was_protected && !quit) {
        block_primary_lost();
        colo_report("protection ended (%s)%s", text,
                    on_request ? ""
                    : colo.arbiter ? "; output is held until the arbiter decides"
                                   : "; output is held until x-colo-lost-heartbeat");
        if (on_request && ch) {
            /* Cancelled, so it cannot block for long; a ping must not displace it. */
            channel_send_text(ch, CHANNEL_EXIT, "the primary goes on alone, on request",
                              NULL);
        }
        colo_emit_exit(COLO_MODE_PRIMARY, on_request ? "request" : "error");
        settle_run_state();
        if (!colo_decide(COLO_MODE_PRIMARY)) {
            if (colo_get_state() == COLO_STATE_FENCED) {
                block_primary_fence();
            }
            return;
        }
    } else if (!quit) {
        colo_report("migrate: %s", text);
        if (started_rooms) {
            settle_run_state();
        }
    } else {
        return;
    }
    go_alone(started_rooms, was_protected);
}
