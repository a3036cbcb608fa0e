/*
 * The primary's checkpoint controller.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: keep the secondary able to go on from a state that the outside has seen, at the
 * cost of a pause of the guest that does not depend on the network.
 *
 * One thread per protection ("colo-ckpt") walks: SETUP (connect, agree) -> SYNC (all of
 * RAM, guest running) -> PROTECTED (checkpoint after checkpoint) -> LOST (output held
 * until the arbiter's word) -> ALONE. A second one ("colo-rx", primary-end.c) only
 * receives and pings, so that the peer's death is seen whatever the first is doing.
 *
 * Invariants:
 * - Between `stop` and `cont` nothing waits for the peer, and nothing is sent to it but
 *   the markers (which never block).
 * - Output of epochs before e is released (proxy_commit(e)) only after the secondary's
 *   RECEIVED(e) and after every flush answered early in the pause is really on disk.
 * - One checkpoint is under way at a time: the next begins after LOADED.
 * - Once END of checkpoint 2 was sent the peer could take over: any failure from there
 *   on leads to LOST, never straight to ALONE.
 *
 * Files: primary-setup.c (SETUP, SYNC), primary-pause.c (between `stop` and `cont`), this one
 * (a checkpoint and what starts it), primary-end.c (LOST and after).
 */
#include "migration/primary.h"

#include "migration/arbiter.h"
#include "monitor/monitor.h"
#include "migration/vmstate-clock.h"
#include "net/net.h"
#include "net/proxy.h"
#include "util/error.h"
#include "util/trace.h"

#define BACKGROUND_US (500 * 1000)
#define LINGER_MS 1000 /* the guest is served meanwhile */
#define BUDGET_TELL_US (10 * G_USEC_PER_SEC)
#define FIRST_LOAD_BYTES_US 256 /* slower is no memory */

void primary_lost(const char *why)
{
    g_mutex_lock(&colo.lock);
    if (!colo.peer_failure && !(colo.yielding && g_thread_self() != colo.rx_thread)) {
        colo.peer_failure = g_strdup(why);
        colo_trace(migration_peer_lost, "%s", why);
        g_cond_broadcast(&colo.cond);
        if (colo.channel) {
            channel_cancel(colo.channel); /* whoever is sending must stop */
        }
        if (colo.peer_may_live) {
            colo_lease_silence_locked(); /* now: the checkpoint's thread may be busy */
        }
    }
    g_mutex_unlock(&colo.lock);
}

/* --- Transfer --- */

static bool send_blob(Channel *ch, ChannelType type, const uint8_t *data, size_t len,
                      GError **errp)
{
    while (len > 0) {
        struct iovec part = {(void *)data, MIN(len, CHANNEL_PAYLOAD_MAX)};
        if (!channel_send(ch, type, &part, 1, errp)) {
            return false;
        }
        data += part.iov_len;
        len -= part.iov_len;
    }
    return true;
}

static bool send_checkpoint(Primary *p, uint64_t epoch, GError **errp)
{
    Capture *cap = &p->cap;
    gsize proxy_len;
    const uint8_t *proxy = g_bytes_get_data(cap->proxy, &proxy_len);
    g_autoptr(GByteArray) barriers = barriers_pack(cap->barriers, cap->n_barriers);
    uint64_t begin[2] = {epoch, (cap->running ? COLO_FLAG_RUNNING : 0) |
                                    (cap->standing ? COLO_FLAG_STANDING : 0)};
    uint64_t pages = 0;

    colo_step("sending");
    if (!channel_send_u64(p->ch, CHANNEL_BEGIN, begin, 2, errp) ||
        !ram_send_staged(colo.link.sender, epoch, &pages, errp)) {
        return false;
    }
    colo_step("sent-ram");
    if (!send_blob(p->ch, CHANNEL_DEVICE, cap->device, cap->device_len, errp) ||
        !send_blob(p->ch, CHANNEL_PROXY, proxy, proxy_len, errp) ||
        !send_blob(p->ch, CHANNEL_BARRIERS, barriers->data, barriers->len, errp) ||
        (colo.opts.verify_ram && !ram_send_hashes(colo.ram, p->ch, errp))) {
        return false;
    }
    uint64_t end[5] = {epoch, pages, cap->device_len, proxy_len, 0};
    colo_step("sent-state");
    g_mutex_lock(&colo.lock);
    if (cap->running && colo.peer_clock) {
        /* Where the guest's clock went on, by the secondary's. */
        end[4] = (cap->cut_at + cap->resumed_at) / 2 + colo.peer_clock;
    }
    colo.peer_may_live = epoch >= COLO_EPOCH_SAFE;
    colo.sent_epoch = epoch;
    g_mutex_unlock(&colo.lock);
    if (!channel_send_u64(p->ch, CHANNEL_END, end, 5, errp)) {
        return false;
    }
    colo_step("sent");
    return true;
}

/* Its first load looks at all of memory. */
static int64_t progress_limit(uint64_t epoch)
{
    int64_t all = ram_size(colo.ram) / FIRST_LOAD_BYTES_US;

    return colo_progress_limit() + (epoch < COLO_EPOCH_SAFE ? all : 0);
}

/* Wait until @epoch is what the secondary said last of @which (@what it then has done, for
 * people). Its pings are another thread's and prove little: it has to come on, or it counts as
 * lost. Writes that arrive there are progress, too, up to the checkpoint's barriers. */
static bool wait_peer(Primary *p, const uint64_t *which, uint64_t epoch, const char *what,
                      GError **errp)
{
    int64_t limit = progress_limit(epoch), end = g_get_monotonic_time() + limit;
    uint64_t behind = UINT64_MAX;

    g_mutex_lock(&colo.lock);
    uint64_t storage = colo.peer_storage;
    while (*which < epoch && !colo.peer_failure && !colo.want_exit && !colo.want_quit) {
        if (g_cond_wait_until(&colo.cond, &colo.lock, end)) {
            continue;
        }
        if (storage != colo.peer_storage) {
            /* It waits for a slow disk, which comes on. */
            storage = colo.peer_storage;
            end = g_get_monotonic_time() + limit;
            continue;
        }
        g_mutex_unlock(&colo.lock);
        uint64_t now = block_primary_behind(p->cap.barriers, p->cap.n_barriers);
        if (now >= behind || (now == 0 && behind == UINT64_MAX)) {
            g_autofree char *why = g_strdup_printf(
                "the secondary answers, but has not %s %" G_GUINT64_FORMAT
                " for %" G_GINT64_FORMAT " ms (progress-timeout)", what, epoch, limit / 1000);
            primary_lost(why);
        }
        g_mutex_lock(&colo.lock);
        behind = now;
        end = g_get_monotonic_time() + limit;
    }
    bool ok = *which >= epoch;
    if (!ok) {
        colo_error_set(errp, "%s", colo.peer_failure ? colo.peer_failure
                                                     : "protection ends on request");
    }
    g_mutex_unlock(&colo.lock);
    return ok;
}

static bool protection_ends(void)
{
    g_mutex_lock(&colo.lock);
    bool ends = colo.peer_failure || colo.want_exit || colo.want_quit;
    g_mutex_unlock(&colo.lock);
    return ends;
}

/* RULES 11: flushes that were answered early are a condition of release. */
static bool wait_flushed(GError **errp)
{
    if (!colo_disk_wait_flushed("checkpoint", protection_ends)) {
        colo_error_set(errp, "protection ended while the disk was flushed");
        return false;
    }
    /* A flush that failed is reported as a fatal error of the disk, which stands here. */
    g_mutex_lock(&colo.lock);
    bool lost = colo.peer_failure != NULL;
    if (lost) {
        colo_error_set(errp, "%s", colo.peer_failure);
    }
    g_mutex_unlock(&colo.lock);
    return !lost;
}

/* --- One checkpoint --- */

static bool is_wish(ColoTrigger t)
{
    return t == COLO_TRIGGER_MISMATCH || t == COLO_TRIGGER_TIMEOUT ||
           t == COLO_TRIGGER_NO_TWIN || t == COLO_TRIGGER_BACKLOG;
}

/* Whether the SVM is to stand still in the epoch that this checkpoint begins. */
static bool choose_mode(Primary *p)
{
    net_lock();
    uint64_t frames = proxy_output_frames();
    net_unlock();
    g_mutex_lock(&colo.lock);
    ColoStats *st = &colo.stats;
    ModeSample s = {
        .now = g_get_monotonic_time(),
        .forced = is_wish(p->trigger),
        .output = frames != p->frames,
        .cost = st->pause.last + st->commit.last + st->lag.last,
    };
    ProtectMode want = colo.protect_mode;
    p->frames = frames;
    colo.mode_changed = false;
    if (want != PROTECT_ADAPTIVE) {
        /* Should the user want it to decide again, it begins anew. */
        mode_init(&p->decider, s.now);
    }
    bool stand = want == PROTECT_BUFFERED ||
                 (want == PROTECT_ADAPTIVE && mode_decide(&p->decider, &s));
    g_mutex_unlock(&colo.lock);
    return stand;
}

/* The epoch of another mode has begun: say so. */
static void note_mode(Primary *p)
{
    JsonObject *data = NULL;

    g_mutex_lock(&colo.lock);
    colo.epochs[p->cap.standing]++;
    if (colo.standing != p->cap.standing) {
        colo.standing = p->cap.standing;
        colo.mode_switches++;
        g_strlcpy(colo.mode_reason,
                  colo.protect_mode == PROTECT_ADAPTIVE ? p->decider.reason : "set by the user",
                  sizeof(colo.mode_reason));
        data = json_object_new();
        json_object_set_string_member(data, "mode", protect_mode_name(colo.standing));
        json_object_set_string_member(data, "reason", colo.mode_reason);
        json_object_set_int_member(data, "epoch", colo.epoch);
        colo_trace(migration_mode, "%s from epoch %" G_GUINT64_FORMAT ": %s",
                   protect_mode_name(colo.standing), colo.epoch, colo.mode_reason);
    }
    g_mutex_unlock(&colo.lock);
    if (data) {
        monitor_event("COLO_MODE", data);
    }
}

/* How much the guest's clock has lost since the last checkpoint: what we saw go by less what
 * it did. Nothing adds up but real losses, as each error of the measurement is taken back by
 * the next one. */
static int64_t clock_lost(Primary *p)
{
    Capture *c = &p->cap;
    int64_t ns, lost = 0;

    if (!vmstate_clock_read(c->device, c->device_len, &ns)) {
        p->clock_at = 0;
        return 0;
    }
    if (p->clock_at) {
        lost = (c->stopped_at - p->clock_at) - (ns - p->clock_ns) / 1000;
    }
    p->clock_ns = ns;
    p->clock_at = c->running ? c->stopped_at : 0;
    return lost;
}

static void note_loaded(Primary *p, uint64_t epoch, int64_t committed, uint64_t sent)
{
    Capture *c = &p->cap;
    StatsCheckpoint n = {
        .epoch = epoch, .at = c->resumed_at, .trigger = p->trigger, .standing = c->standing,
        .prepass = c->stop_at - c->began_at, .stop = c->stopped_at - c->stop_at,
        .save = c->saved_at - c->stopped_at, .cut = c->cut_at - c->saved_at,
        .cont = c->resumed_at - c->cut_at, .pause = c->pause_us,
        .commit = committed - c->resumed_at, .pages = ram_staged(colo.ram),
        .last_pages = c->last_pages,
        .bytes = (ram_staged(colo.ram) << COLO_PAGE_SHIFT) + c->device_len +
                 g_bytes_get_size(c->proxy),
        .sent = sent,
    };

    int64_t lost = clock_lost(p);
    g_mutex_lock(&colo.lock);
    colo.stats.clock_lost += lost;
    n.lag = colo.stats.lag.last;
    n.skew = colo.peer_skew;
    stats_note(&colo.stats, &n);
    g_mutex_unlock(&colo.lock);
}

/* A budget that was not kept is told, at most every ten seconds. */
static void check_budget(Primary *p, uint64_t epoch)
{
    g_mutex_lock(&colo.lock);
    uint64_t budget = colo.max_pause * 1000, over = colo.stats.over_budget;
    bool tell = budget && p->cap.running && (uint64_t)p->cap.pause_us > budget;
    if (tell) {
        over = ++colo.stats.over_budget;
        tell = p->cap.resumed_at - p->budget_told > BUDGET_TELL_US;
    }
    g_mutex_unlock(&colo.lock);
    if (tell) {
        JsonObject *data = json_object_new();
        json_object_set_int_member(data, "epoch", epoch);
        json_object_set_int_member(data, "pause-us", p->cap.pause_us);
        json_object_set_int_member(data, "budget-us", budget);
        json_object_set_int_member(data, "copied-pages", p->cap.last_pages);
        json_object_set_int_member(data, "pauses-over-budget", over);
        monitor_event("COLO_PAUSE_OVER_BUDGET", data);
        p->budget_told = p->cap.resumed_at;
    }
}

static void note_checkpoint(Primary *p, uint64_t epoch, int64_t committed)
{
    check_budget(p, epoch);
    g_mutex_lock(&colo.lock);
    colo.stats.checkpoints++;
    colo.stats.device_bytes = p->cap.device_len;
    stats_add(&colo.stats.pause, p->cap.pause_us);
    stats_add(&colo.stats.commit, committed - p->cap.resumed_at);
    stats_add(&colo.stats.dirty, ram_staged(colo.ram));
    colo.epoch = epoch;
    g_mutex_unlock(&colo.lock);
    colo_trace(migration_checkpoint, "epoch=%" G_GUINT64_FORMAT " pause=%" G_GINT64_FORMAT
               " us pages=%" G_GUINT64_FORMAT, epoch, p->cap.pause_us,
               ram_staged(colo.ram));
}

static bool checkpoint(Primary *p, GError **errp)
{
    uint64_t epoch = colo.epoch + 1;
    bool first = epoch == 1;

    p->cap.standing = choose_mode(p);
    g_mutex_lock(&colo.lock);
    /* As with stock COLO, a paused guest starts to run when protection begins. */
    if (first) {
        colo.user_paused = false;
    }
    p->cap.running = !colo.user_paused && !colo.guest_off;
    colo.want_checkpoint = false;
    colo.run_state_changed = false;
    colo.capturing = true;
    uint64_t budget = colo.max_pause * 1000;
    guint requests = colo.run_state_requests->len; /* later ones wait for the next */
    g_mutex_unlock(&colo.lock);
    g_clear_pointer(&p->cap.proxy, g_bytes_unref);

    bool ok = capture_prepass(&p->cap, budget, errp) && capture_paused(&p->cap, epoch, errp);
    g_mutex_lock(&colo.lock);
    colo.capturing = false;
    g_mutex_unlock(&colo.lock);
    if (!ok) {
        return false;
    }
    colo_finish_run_state(requests);
    uint64_t sent = channel_bytes_sent(p->ch);
    if (!send_checkpoint(p, epoch, errp) ||
        !wait_peer(p, &colo.received_epoch, epoch, "taken checkpoint", errp) ||
        !wait_flushed(errp)) {
        return false;
    }
    colo_step("received");
    net_lock();
    proxy_commit(epoch);
    net_unlock();
    colo_step("committed");
    int64_t committed = g_get_monotonic_time();
    sent = channel_bytes_sent(p->ch) - sent;
    note_checkpoint(p, epoch, committed);
    if (!wait_peer(p, &colo.loaded_epoch, epoch, "loaded checkpoint", errp)) {
        return false;
    }
    net_lock();
    proxy_loaded(epoch, p->cap.standing);
    net_unlock();
    ram_committed(colo.ram);
    note_mode(p);
    note_loaded(p, epoch, committed, sent);
    if (epoch >= COLO_EPOCH_SAFE) {
        /* The SVM has it from its log: only now may a shared image change. */
        block_primary_loaded(p->cap.barriers, p->cap.n_barriers);
    }
    colo_step("loaded");
    block_primary_committed();
    return true;
}

/* --- Life and end of protection --- */

/* In a long epoch what was dirtied is copied now and then, or a wish of the comparison would
 * wait for all of it. Its rate is bounded: a page once in BACKGROUND_US, a twentieth of the
 * time at most. */
static bool copy_behind(Primary *p, int64_t *next, GError **errp)
{
    int64_t took = capture_background(&p->cap, errp);

    *next = g_get_monotonic_time() + MAX(BACKGROUND_US, took * 20);
    return took >= 0;
}

/* Sleep until there is a reason for a checkpoint; false: protection ends. */
static bool wait_trigger(Primary *p, int64_t last_us, GError **errp)
{
    int64_t copy_at = last_us + BACKGROUND_US;

    g_mutex_lock(&colo.lock);
    bool due = false;
    while (!colo.peer_failure && !colo.want_exit && !colo.want_quit) {
        uint64_t ms = colo.standing ? colo.buffered_interval : colo.checkpoint_delay;
        int64_t deadline = last_us + (int64_t)ms * 1000;
        due = true;
        if (colo.run_state_changed) {
            p->trigger = COLO_TRIGGER_RUN_STATE;
        } else if (colo.switchover) {
            p->trigger = COLO_TRIGGER_REQUEST;
        } else if (colo.want_checkpoint) {
            p->trigger = colo.trigger;
        } else if (colo.mode_changed) {
            p->trigger = COLO_TRIGGER_MODE;
        } else if (g_get_monotonic_time() >= deadline) {
            p->trigger = colo.standing ? COLO_TRIGGER_EPOCH : COLO_TRIGGER_TIMER;
        } else {
            due = false;
        }
        if (due) {
            colo.stats.triggers[p->trigger]++;
            break;
        }
        if (g_get_monotonic_time() < copy_at) {
            g_cond_wait_until(&colo.cond, &colo.lock, MIN(deadline, copy_at));
            continue;
        }
        g_mutex_unlock(&colo.lock);
        if (!copy_behind(p, &copy_at, errp)) {
            return false;
        }
        g_mutex_lock(&colo.lock);
    }
    g_mutex_unlock(&colo.lock);
    return due;
}

/* Before the checkpoint from which on the peer could take over: what decides between us. */
static bool share_ownership(Primary *p, GError **errp)
{
    if (colo.epoch + 1 == COLO_EPOCH_SAFE && !colo_lease_begin(errp)) {
        return false;
    }
    if (colo.epoch + 1 == COLO_EPOCH_SAFE && !colo_state_file_write("protected-primary", errp)) {
        return false;
    }
    colo_step("noted");
    if (!colo.arbiter || !colo.arbiter->class->protect || colo.epoch + 1 != COLO_EPOCH_SAFE) {
        return true;
    }
    g_autofree char *token = colo.arbiter->class->protect(colo.arbiter, errp);
    colo_step("shared");
    /* A secondary that refuses the token must do so before it could take over: what fails until
     * then is a migration that failed, and no decision is due. */
    return token && channel_send_text(p->ch, CHANNEL_TOKEN, token, errp) &&
           wait_peer(p, &colo.joined_epoch, COLO_EPOCH_SAFE,
                     "taken the witness' token for checkpoint", errp);
}

static bool protect(Primary *p, GError **errp)
{
    bool warm = false;

    while (share_ownership(p, errp)) {
        int64_t started = g_get_monotonic_time();
        g_mutex_lock(&colo.lock);
        /* The first one for it leaves little for the last. */
        bool wanted = colo.switchover && colo.epoch >= COLO_EPOCH_SAFE;
        g_mutex_unlock(&colo.lock);
        p->cap.last = wanted && warm;
        warm = wanted;
        if (!checkpoint(p, errp)) {
            return false;
        }
        if (colo.epoch < COLO_EPOCH_SAFE) {
            continue;
        }
        if (p->cap.last) {
            return primary_yield(p->ch, errp);
        }
        if (colo_get_state() != COLO_STATE_PROTECTED) {
            colo_set_state(COLO_STATE_PROTECTED);
        }
        g_mutex_lock(&colo.lock);
        /* Only once a checkpoint has its end, and with it its last output. */
        bool off = colo.guest_exit && !p->cap.running;
        g_mutex_unlock(&colo.lock);
        if (off) {
            primary_guest_off(p->ch);
        }
        g_autoptr(GError) err = NULL;
        if (!wait_trigger(p, started, &err)) {
            colo_error_set(errp, "%s", err                 ? err->message
                                       : colo.peer_failure ? colo.peer_failure
                                                           : "protection ends on request");
            return false;
        }
    }
    return false;
}

static void close_peer(Primary *p)
{
    if (!p->ch) {
        return;
    }
    channel_cancel(p->ch);
    link_close(&colo.link);
    if (p->rx) {
        g_thread_join(p->rx);
    }
    g_mutex_lock(&colo.lock);
    colo.channel = NULL;
    g_mutex_unlock(&colo.lock);
    channel_linger(p->ch, LINGER_MS);
    channel_free(p->ch);
    p->ch = NULL;
}

gpointer primary_thread(gpointer uri)
{
    g_autofree Primary *p = g_new0(Primary, 1);
    g_autoptr(GError) err = NULL;
    bool yielded = false;

    p->uri = uri;
    p->trigger = COLO_TRIGGER_TIMER;
    mode_init(&p->decider, g_get_monotonic_time());
    capture_init(&p->cap);
    colo_qmp_take();
    if (primary_connect(p, &err) && primary_first_copy(p, &err)) {
        yielded = protect(p, &err);
    }
    if (!err && !yielded) {
        g_mutex_lock(&colo.lock);
        colo_error_set(&err, "%s", colo.peer_failure ? colo.peer_failure
                                                     : "the migration was cancelled");
        g_mutex_unlock(&colo.lock);
    }
    if (!yielded) {
        primary_switchover_failed(err->message);
        primary_end(p->ch, p->started_rooms, err);
    }
    colo_qmp_leave();
    close_peer(p);
    capture_clear(&p->cap);
    g_free(p->uri);
    return NULL;
}
