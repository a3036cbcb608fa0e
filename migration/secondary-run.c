/*
 * The secondary's life: waiting for a primary, protection, takeover.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "migration/arbiter.h"
#include "migration/secondary.h"
#include "monitor/monitor.h"
#include "net/net.h"
#include "net/proxy.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

#define STATUS_NOBODY 5 /* of the process: a guest was lost */
#define END_US 100000 /* after the death of a process its other connections end, too */
#define DATA_GRACE_US 300000 /* an end of all channels is told by the control channel */

static void on_block_event(bool fatal, const char *message, void *opaque)
{
    /* The thread that receives owns the channel's fate; here only a word is sent. */
    g_mutex_lock(&colo.lock);
    if (colo.channel) {
        channel_try_text(colo.channel, fatal ? CHANNEL_FAILED : CHANNEL_REQUEST, message);
    }
    g_mutex_unlock(&colo.lock);
    if (fatal) {
        colo_report("disk replication: %s", message);
    }
}

static void set_channel(Channel *ch)
{
    g_mutex_lock(&colo.lock);
    colo.channel = ch;
    if (ch && colo.want_quit) {
        channel_cancel(ch);
    }
    g_mutex_unlock(&colo.lock);
}

/* RULES 14: a shared disk is not taken over on the strength of a vote. */
static bool check_fence(GError **errp)
{
    g_autofree char *disk = block_secondary_unfenced();

    if (!disk || !arbiter_answers(colo.arbiter) ||
        strcmp(colo.arbiter->class->name, "fence") == 0) {
        return true;
    }
    colo_error_set(errp,
                   "disk '%s' is shared, and arbiter=%s does not stop what the other host "
                   "still writes: use arbiter=fence (or shared-fence=none, if something else "
                   "fences)",
                   disk, colo.arbiter->class->name);
    return false;
}

/* A connection of a client that may be anybody: NULL if it is no fitting primary. */
static Channel *agree(int fd, GError **errp)
{
    Channel *ch = channel_new(fd, colo.opts.peer_timeout);
    ChannelMsg msg;

    set_channel(ch); /* the end of the process need not wait for the client */
    ChannelResult r = CHANNEL_ERROR;
    if (link_learn(&colo.link, errp) && link_secure(&colo.link, ch, NULL, errp)) {
        r = channel_recv(ch, &msg, 5000, errp);
    }
    if (r == CHANNEL_CANCELLED) {
        colo_error_set(errp, "the process ends");
    } else if (r == CHANNEL_TIMEOUT || (r == CHANNEL_OK && msg.type != CHANNEL_HELLO)) {
        colo_error_set(errp, "the client on the migration port does not greet");
    }
    if (r != CHANNEL_OK || msg.type != CHANNEL_HELLO) {
        set_channel(NULL);
        channel_free(ch);
        return NULL;
    }
    g_autofree char *hello = g_strndup((const char *)msg.data, msg.len);
    g_mutex_lock(&colo.lock);
    bool wanted = colo.cap_colo;
    g_mutex_unlock(&colo.lock);
    bool ok = wanted;
    if (!wanted) {
        colo_error_set(errp, "capability x-colo is off on the secondary: send it "
                             "migrate-set-capabilities with x-colo first");
    }
    g_autofree char *reply = NULL;
    ok = ok && hello_check(hello, false, errp) &&
         link_read_offer(&colo.link, hello, errp) && check_fence(errp) &&
         (reply = hello_build(false, errp));
    if (ok) {
        net_lock();
        ok = proxy_start_secondary(errp);
        net_unlock();
    }
    /* Last, as it cannot be taken back: a refusal must leave room for another try. */
    if (ok && !block_secondary_start(on_block_event, NULL, errp)) {
        net_lock();
        proxy_abort_secondary();
        net_unlock();
        ok = false;
    }
    if (ok) {
        /* Should it not get through, the end of the connection is read next. */
        channel_send_text(ch, CHANNEL_HELLO_OK, reply, NULL);
    } else {
        colo_lease_end();
        channel_send_text(ch, CHANNEL_REFUSE, (*errp)->message, NULL);
        set_channel(NULL);
        channel_free(ch);
        return NULL;
    }
    return ch;
}

static Channel *wait_primary(int listen_fd)
{
    for (;;) {
        struct pollfd pfd = {listen_fd, POLLIN, 0};
        g_autoptr(GError) err = NULL;
        g_mutex_lock(&colo.lock);
        bool quit = colo.want_quit;
        g_mutex_unlock(&colo.lock);
        if (quit) {
            return NULL;
        }
        if (poll(&pfd, 1, 100) <= 0) {
            continue;
        }
        int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) {
            continue;
        }
        if (plain_comes(fd)) {
            plain_serve(listen_fd, fd);
            return NULL;
        }
        colo_set_state(COLO_STATE_SETUP);
        colo_qmp_take();
        Channel *ch = agree(fd, &err);
        if (ch) {
            return ch; /* and they stay this thread's */
        }
        colo_qmp_leave();
        colo_report("incoming migration refused: %s", err->message);
        colo_set_state(COLO_STATE_WAITING);
    }
}

static bool prepare(Secondary *s, int listen_fd, GError **errp)
{
    channel_start_pings(s->ch, COLO_PING_MS);
    if (!link_accept(&colo.link, s->ch, listen_fd, errp)) {
        return false;
    }
    g_mutex_lock(&colo.lock);
    colo.epoch = 0;
    colo.sync_total = ram_size(colo.ram);
    colo.sync_done = 0;
    colo.sync_started_us = g_get_monotonic_time();
    colo_set_state_locked(COLO_STATE_SYNC);
    g_mutex_unlock(&colo.lock);
    ram_epoch_begin(colo.ram);
    channel_expect(s->ch); /* the primary pings from here on, and not before */
    return ram_cache_init(colo.ram, errp) && tracker_start(colo.tracker, errp);
}

/* Receive until the connection ends; @errp says why it did. */
static void receive(Secondary *s, GError **errp)
{
    if (colo.link.n) {
        s->receiver = ram_receiver_new(colo.ram, colo.link.data, colo.link.n,
                                       colo.opts.peer_timeout);
    }
    for (int64_t drain_at = 0;;) {
        ChannelMsg msg;
        ChannelResult r = channel_recv(s->ch, &msg, COLO_PING_MS, errp);
        int64_t now = g_get_monotonic_time();
        if (now > drain_at) {
            colo_qmp_drain(); /* an epoch may be long, and the SVM's events many */
            drain_at = now + G_USEC_PER_SEC;
        }
        if (s->receiver && r != CHANNEL_ERROR &&
            !ram_receiver_good(s->receiver, DATA_GRACE_US, errp)) {
            return;
        } else if (r != CHANNEL_ERROR && colo.link.pulse && !pulse_good(colo.link.pulse, errp)) {
            return;
        } else if (r == CHANNEL_ERROR) {
            return;
        } else if (r == CHANNEL_CANCELLED) {
            g_mutex_lock(&colo.lock);
            colo_error_set(errp, "%s", colo.peer_failure && !colo.want_exit
                                           ? colo.peer_failure : "x-colo-lost-heartbeat");
            s->guest_off = s->guest_off || colo.peer_guest_off;
            g_mutex_unlock(&colo.lock);
            return;
        } else if (r == CHANNEL_OK && !secondary_handle(s, &msg, errp)) {
            return;
        } else if (r == CHANNEL_TIMEOUT &&
                   channel_silence(s->ch) > colo.opts.peer_timeout * 1000LL) {
            colo_error_set(errp, "nothing was heard of the primary for %u ms",
                           colo.opts.peer_timeout);
            return;
        }
    }
}

/* The connection's end, for good; what its pulse learnt remains. */
static void drop_channel(Channel *ch)
{
    set_channel(NULL);
    if (colo.link.pulse) {
        pulse_stop(colo.link.pulse);
    }
    channel_free(ch);
}

/* The primary may speak until its lease is over or, which is sooner if it is well or dead, until
 * its end is closed; what else ended the connection here may have been seen before that. */
static void wait_silence(Channel *ch)
{
    g_mutex_lock(&colo.lock);
    int64_t left = colo_lease_left(COLO_MODE_SECONDARY);
    g_mutex_unlock(&colo.lock);
    if (!colo.link.pulse) {
        left = MIN(left, END_US); /* its word that it is silent may come by the heartbeat */
    }
    if (left > 0 && channel_wait_end(ch, (unsigned)(left / 1000 + 1))) {
        g_mutex_lock(&colo.lock);
        colo.peer_silent = true;
        g_mutex_unlock(&colo.lock);
        colo_trace(migration_peer_silent, "it closed; its lease had been for %" G_GINT64_FORMAT
                   " us", left);
    }
}

/* To the primary: EXIT, FAILED or none (PING). */
static void last_word(Secondary *s, ChannelType word, const char *why)
{
    if (word == CHANNEL_FAILED) {
        channel_try_text(s->ch, CHANNEL_FAILED, why);
    } else if (word == CHANNEL_EXIT) {
        /* The channel is cancelled, so this cannot block for long; a ping must not
         * displace it. */
        channel_cancel(s->ch);
        channel_send_text(s->ch, CHANNEL_EXIT, "the secondary takes over", NULL);
    }
}

/* After the connection ended: drop what is torn, tell the world, wait for the arbiter.
 * Returns whether we go live. A primary that said that it goes on alone has won already:
 * then nobody is asked. */
static bool lose_primary(Secondary *s, const GError *why)
{
    colo_lease_stop_vouching();
    net_lock();
    proxy_stop_vouching(); /* from here the PVM cannot release anything */
    net_unlock();
    g_mutex_lock(&colo.lock);
    /* The primary's word is as good as the operator's, who gave it there; and where a fence
     * decides, nobody is left to be shot. The witness has to know all the same. */
    colo.want_exit |= s->yielded;
    colo.operator_vouches |= s->yielded && colo.arbiter && !colo.arbiter->class->join;
    /* It is silent before it says that its emulator died, and before it closes. */
    colo.peer_silent = s->yielded || s->peer_died || channel_ended(s->ch);
    bool on_request = colo.want_exit;
    bool fenced = s->peer_goes_on; /* even if we were asked to take over meanwhile */
    colo.stats.torn += s->in_checkpoint && !s->broken;
    g_free(colo.error);
    colo.error = g_strdup(why->message);
    colo.reason = on_request || fenced ? "request" : "error";
    colo_set_state_locked(fenced ? COLO_STATE_FENCED : COLO_STATE_LOST);
    g_mutex_unlock(&colo.lock);
    /* After YIELD the other side is silent, and EXIT makes that final: where the witness can still
     * say no, or this side die before it has asked, it is said after the win. */
    bool after_win = s->yielded && !fenced && arbiter_answers(colo.arbiter) &&
                     colo.arbiter->class->join;
    if (!after_win) {
        last_word(s, s->broken                ? CHANNEL_FAILED
                     : on_request && !fenced ? CHANNEL_EXIT : CHANNEL_PING, why->message);
    }
    colo_report("the primary is lost (%s)%s", why->message,
                fenced       ? "; this side stays silent: quit it"
                : on_request ? ""
                : colo.arbiter ? "; the arbiter decides"
                               : "; x-colo-lost-heartbeat takes over");
    colo_emit_exit(COLO_MODE_SECONDARY, on_request || fenced ? "request" : "error");
    if (!after_win) {
        if (!fenced) {
            wait_silence(s->ch);
        }
        drop_channel(g_steal_pointer(&s->ch));
    }
    bool won = !fenced && colo_decide(COLO_MODE_SECONDARY);
    if (after_win) {
        last_word(s, won ? CHANNEL_EXIT : CHANNEL_PING, NULL);
        drop_channel(g_steal_pointer(&s->ch));
    }
    return won;
}

/* RULES 8: the SVM may have ended by itself since the last checkpoint. That was a mismatch
 * then; now it is the guest's end. */
static void act_on_ended_guest(void)
{
    g_autoptr(JsonNode) node = child_qmp_query(
        colo.qmp, "{\"execute\":\"query-status\",\"id\":\"st\"}\n", "st", NULL);
    const char *st = node ? options_get_str(json_node_get_object(node), "status", "") : "";
    bool off = strcmp(st, "shutdown") == 0;

    if (!off && strcmp(st, "guest-panicked") != 0) {
        return;
    }
    g_mutex_lock(&colo.lock);
    colo.guest_off = true;
    g_mutex_unlock(&colo.lock);
    colo_report("the guest had %s", off ? "shut down" : "panicked");
    if (off && !colo.opts.no_shutdown) {
        colo.opts.guest_shutdown(0);
    }
}

/* A disk that could not be brought to the checkpoint: nobody may be served from it. Output
 * stays held, as before the word; the next word tries again. */
static void takeover_failed(const GError *err)
{
    g_mutex_lock(&colo.lock);
    g_free(colo.error);
    colo.error = g_strdup(err->message);
    colo.want_exit = colo.operator_vouches = false;
    if (!colo.want_quit) {
        colo_set_state_locked(COLO_STATE_LOST);
    }
    g_mutex_unlock(&colo.lock);
    colo_report("the takeover failed: %s; this side does not serve. Mend it and send "
                "x-colo-lost-heartbeat again",
                err->message);
}

/* An SVM that stood gets its first breath after the gates have opened, so that nothing that
 * it sends is lost. It can fail only together with the emulator. */
static void run_risen(Secondary *s)
{
    g_autoptr(GError) err = NULL;

    g_mutex_lock(&colo.lock);
    bool run = s->standing && !colo.user_paused;
    colo.standing = false;
    g_mutex_unlock(&colo.lock);
    s->standing = false;
    if (run) {
        secondary_clock_runs(s);
        colo_trace(migration_rise_skew, "%" G_GINT64_FORMAT " us", s->skew);
        g_mutex_lock(&colo.lock);
        colo.peer_skew = s->skew;
        g_mutex_unlock(&colo.lock);
    }
    if (run && !colo_child_command("{\"execute\":\"cont\",\"id\":\"cont\"}\n", "cont", &err)) {
        colo_report("the guest cannot be let run: %s", err->message);
    }
    colo_step("takeover-running");
}

/* False: it serves no more than before. */
static bool take_over(Secondary *s)
{
    g_autoptr(GError) err = NULL;
    int64_t start = g_get_monotonic_time();

    secondary_reset_staging(s);
    colo_step("takeover");
    colo_disk_wait_begin("takeover");
    bool disks = block_secondary_takeover(&err);
    colo_disk_wait_end();
    if (!disks) {
        takeover_failed(err);
        return false;
    }
    colo_step("takeover-disk");
    /* Before anybody is answered from this disk. That it could be written was seen when
     * protection began; if it cannot now, serving counts more. */
    colo_state_file_note("alone");
    colo_step("takeover-noted");
    /* As late as can be: a disk may take long to write that down, and the guest's clock, which is
     * set here, would be behind by it. */
    if (!secondary_rise_again(s, &err)) {
        takeover_failed(err);
        return false;
    }
    net_lock();
    proxy_takeover();
    net_unlock();
    run_risen(s);
    tracker_stop(colo.tracker);
    ram_cache_drop(colo.ram);
    colo_lease_end();
    g_mutex_lock(&colo.lock);
    colo.last_mode = COLO_MODE_SECONDARY;
    colo.was_protected = true;
    colo.mode = COLO_MODE_NONE;
    colo_set_state_locked(colo.disowned ? COLO_STATE_FENCED : COLO_STATE_ALONE);
    g_mutex_unlock(&colo.lock);
    colo_report("took over: serving unprotected after %" G_GINT64_FORMAT " us",
                g_get_monotonic_time() - start);
    act_on_ended_guest();
    return true;
}

static void emit_load_failed(const Secondary *s, bool primary, const char *why)
{
    JsonObject *data = json_object_new();

    json_object_set_int_member(data, "epoch", s->epoch);
    json_object_set_boolean_member(data, "primary", primary);
    json_object_set_string_member(data, "error", why);
    monitor_event("COLO_LOAD_FAILED", data);
}

/* Nothing here that could serve: end, as QEMU does after a failed incoming migration. Where
 * the pair was protected that is told, and whether anybody is left. */
static void end_without_guest(Secondary *s, const char *why)
{
    bool lost = s->broken && s->epoch >= COLO_EPOCH_SAFE;
    bool primary = !channel_peer_gone(s->ch);

    colo_report("%s: %s", s->guest_off ? "ending" : "incoming migration failed", why);
    if (lost) {
        emit_load_failed(s, primary, why);
    }
    if (lost && !primary) {
        colo_report("checkpoint %" G_GUINT64_FORMAT " cannot be loaded and the primary is gone: "
                    "nobody serves this guest. Its disks are brought to that checkpoint: once "
                    "you are sure of the primary, start the guest anew from them", s->epoch);
    }
    if (!s->guest_off) {
        channel_try_text(s->ch, CHANNEL_FAILED, why);
    }
    drop_channel(s->ch);
    colo.opts.guest_shutdown(s->guest_off ? 0 : lost && !primary ? STATUS_NOBODY : 1);
}

gpointer secondary_thread(gpointer opaque)
{
    int listen_fd = GPOINTER_TO_INT(opaque);
    Secondary s = {
        .device = g_byte_array_new(),
        .proxy = g_byte_array_new(),
        .barriers = g_byte_array_new(),
        .device_held = g_byte_array_new(),
    };
    g_autoptr(GError) err = NULL, load_err = NULL;

    s.ch = wait_primary(listen_fd);
    if (!s.ch) {
        close(listen_fd);
    } else {
        set_channel(s.ch);
        secondary_clock_init(&s);
        if (prepare(&s, listen_fd, &err)) {
            receive(&s, &err);
        }
        close(listen_fd);
        g_clear_pointer(&s.receiver, ram_receiver_free);
        colo.link.n = 0;
        if (!s.guest_off && !s.broken && !s.peer_goes_on && !secondary_rise(&s, &load_err)) {
            s.broken = true;
            g_clear_error(&err);
            err = g_steal_pointer(&load_err);
        }
        if (s.guest_off || colo.epoch < COLO_EPOCH_SAFE || s.broken) {
            end_without_guest(&s, err->message);
        } else {
            bool go = lose_primary(&s, err);

            while (go && !take_over(&s)) {
                go = colo_decide(COLO_MODE_SECONDARY);
            }
        }
        colo_qmp_leave();
    }
    g_byte_array_unref(s.device);
    g_byte_array_unref(s.proxy);
    g_byte_array_unref(s.barriers);
    g_byte_array_unref(s.device_held);
    g_free(s.decoder);
    return NULL;
}
