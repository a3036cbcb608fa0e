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
 * until the arbiter's word) -> ALONE. A second one ("colo-rx", primary-rx.c) only
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
 */
#include "migration/primary.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migration/arbiter.h"
#include "migration/vmstate-image.h"
#include "net/net.h"
#include "net/proxy.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

#define PREPASS_ROUNDS 4
#define PREPASS_ENOUGH 256   /* pages: a final pass of this size costs well under 1 ms */
#define SYNC_ROUNDS 12
#define SYNC_ENOUGH 2048
#define SAVE_TRIES 5
#define SETTLE_TRIES 64

/* What one checkpoint carries beside RAM; allocated once. */
typedef struct Capture {
    uint8_t *device; /* VMSTATE_IMAGE_MAX bytes */
    size_t device_len;
    GBytes *proxy;
    BlockBarrier barriers[COLO_DISKS_MAX];
    unsigned n_barriers;
    bool running;
    int64_t pause_us;
} Capture;

typedef struct Primary {
    char *uri;
    Channel *ch;
    GThread *rx;
    Capture cap;
    char save_command[400];
    bool started_rooms; /* block and proxy were told to start */
} Primary;

void primary_lost(const char *why)
{
    g_mutex_lock(&colo.lock);
    if (!colo.peer_failure) {
        colo.peer_failure = g_strdup(why);
        colo_trace(migration_peer_lost, "%s", why);
        g_cond_broadcast(&colo.cond);
        if (colo.channel) {
            channel_cancel(colo.channel); /* whoever is sending must stop */
        }
    }
    g_mutex_unlock(&colo.lock);
}

static void on_proxy_trigger(ProxyTrigger t, const char *detail, void *opaque)
{
    if (t == PROXY_TRIGGER_GONE) {
        primary_lost(detail);
        return;
    }
    static const ColoTrigger map[] = {
        [PROXY_TRIGGER_MISMATCH] = COLO_TRIGGER_MISMATCH,
        [PROXY_TRIGGER_TIMEOUT] = COLO_TRIGGER_TIMEOUT,
        [PROXY_TRIGGER_NO_TWIN] = COLO_TRIGGER_NO_TWIN,
        [PROXY_TRIGGER_BACKLOG] = COLO_TRIGGER_BACKLOG,
        [PROXY_TRIGGER_STREAM] = COLO_TRIGGER_STREAM,
    };
    if (!colo.opts.ignore_wishes) {
        colo_request_checkpoint(map[t], detail);
    }
}

static void on_block_event(bool fatal, const char *message, void *opaque)
{
    if (fatal) {
        primary_lost(message);
    } else {
        colo_request_checkpoint(COLO_TRIGGER_REQUEST, message);
    }
}

/* --- The pause --- */

static bool read_device_state(Capture *cap, GError **errp)
{
    struct stat st;

    if (fstat(colo.child.state_fd, &st) < 0 || st.st_size == 0 ||
        st.st_size > VMSTATE_IMAGE_MAX) {
        colo_error_set(errp, "the emulator's device state has %lld bytes (at most %u fit)",
                       (long long)st.st_size, VMSTATE_IMAGE_MAX);
        return false;
    }
    cap->device_len = st.st_size;
    if (pread(colo.child.state_fd, cap->device, cap->device_len, 0) !=
        (ssize_t)cap->device_len) {
        colo_error_set(errp, "the emulator's device state cannot be read back");
        return false;
    }
    return true;
}

/* Read the guest's output socket empty; how many frames were read from it so far, by us
 * or by the net thread. */
static uint64_t drain_output(void)
{
    net_lock();
    proxy_drain_output();
    uint64_t n = proxy_output_frames();
    net_unlock();
    return n;
}

/* Let the emulator send what its NIC still has in its hands: its main loop has looked at
 * the emptied socket when it answers a command. */
static bool settle_output(GError **errp)
{
    uint64_t before, after = drain_output();

    for (int i = 0; i < SETTLE_TRIES; i++) {
        before = after;
        if (!colo_child_command("{\"execute\":\"query-name\",\"id\":\"q\"}\n", "q", errp)) {
            return false;
        }
        after = drain_output();
        if (after == before) {
            return true;
        }
    }
    colo_error_set(errp, "the emulator goes on sending frames while it is stopped");
    return false;
}

/* Device state and the rest of RAM, of one instant. A NIC that could not send before STOP
 * does so afterwards and changes its rings and its state under the save (RULES 1). If a
 * frame came after the save began, or if the socket may have been full, so that one could
 * still come, all output is waited for and both are repeated. */
static bool save_stopped(Primary *p, GError **errp)
{
    for (int i = 0; i < SAVE_TRIES; i++) {
        if (i > 0) {
            colo.stats.repeated_saves++;
            if (!settle_output(errp) ||
                !child_qmp_send(colo.qmp, strchr(p->save_command, '\n') + 1, errp)) {
                return false;
            }
        } else if (!child_qmp_wait(colo.qmp, "stop", 30000, errp)) {
            return false;
        }
        colo_step("stopped");
        uint64_t frames = drain_output();
        if (ram_capture(colo.ram, errp) < 0 ||
            !child_qmp_wait(colo.qmp, "save", 30000, errp)) {
            return false;
        }
        colo_step("saved");
        net_lock();
        bool tight = i == 0 && proxy_output_was_tight();
        net_unlock();
        if (drain_output() == frames && !tight) {
            return true;
        }
    }
    colo_error_set(errp, "the emulator goes on sending frames while it is stopped");
    return false;
}

/* Let the guest run again, unless it ended by itself just before the stop. */
static bool resume(Capture *cap, GError **errp)
{
    g_autoptr(GError) err = NULL;

    if (colo_child_command("{\"execute\":\"cont\",\"id\":\"cont\"}\n", "cont", &err)) {
        return true;
    }
    g_autoptr(JsonNode) node = child_qmp_query(
        colo.qmp, "{\"execute\":\"query-status\",\"id\":\"st\"}\n", "st", NULL);
    const char *st = node ? options_get_str(json_node_get_object(node), "status", "") : "";
    if (strcmp(st, "shutdown") == 0 || strcmp(st, "guest-panicked") == 0) {
        cap->running = false;
        return true;
    }
    g_propagate_error(errp, g_steal_pointer(&err));
    return false;
}

/* From `stop` to `cont`. On failure the guest is let run again all the same. */
static bool capture_paused(Primary *p, uint64_t epoch, GError **errp)
{
    Capture *cap = &p->cap;
    bool ok;

    net_lock();
    proxy_hold_input();
    net_unlock();
    block_primary_hold(true);
    colo_step("held");
    int64_t start = g_get_monotonic_time();
    ok = child_qmp_send(colo.qmp, p->save_command, errp) && save_stopped(p, errp) &&
         read_device_state(cap, errp);
    if (ok) {
        if (epoch == COLO_EPOCH_SAFE) {
            block_primary_log();
        }
        cap->n_barriers = block_primary_barriers(cap->barriers, COLO_DISKS_MAX);
        net_lock();
        proxy_cut(epoch);
        net_unlock();
        if (colo.opts.verify_ram) {
            ram_hash(colo.ram);
        }
        colo_step("cut");
    }
    if (cap->running) {
        bool cont = resume(cap, ok ? errp : NULL);
        ok = ok && cont;
    }
    cap->pause_us = g_get_monotonic_time() - start;
    net_lock();
    proxy_release_input();
    if (ok) {
        cap->proxy = proxy_save();
    }
    net_unlock();
    block_primary_hold(false);
    colo_step("resumed");
    return ok;
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
    uint64_t begin[2] = {epoch, cap->running ? COLO_FLAG_RUNNING : 0};
    uint64_t pages = 0;

    colo_step("sending");
    if (!channel_send_u64(p->ch, CHANNEL_BEGIN, begin, 2, errp) ||
        !ram_send_staged(colo.ram, p->ch, &pages, errp)) {
        return false;
    }
    colo_step("sent-ram");
    if (!send_blob(p->ch, CHANNEL_DEVICE, cap->device, cap->device_len, errp) ||
        !send_blob(p->ch, CHANNEL_PROXY, proxy, proxy_len, errp) ||
        !send_blob(p->ch, CHANNEL_BARRIERS, barriers->data, barriers->len, errp) ||
        (colo.opts.verify_ram && !ram_send_hashes(colo.ram, p->ch, errp))) {
        return false;
    }
    uint64_t end[4] = {epoch, pages, cap->device_len, proxy_len};
    colo_step("sent-state");
    g_mutex_lock(&colo.lock);
    colo.peer_may_live = epoch >= COLO_EPOCH_SAFE;
    colo.sent_epoch = epoch;
    g_mutex_unlock(&colo.lock);
    if (!channel_send_u64(p->ch, CHANNEL_END, end, 4, errp)) {
        return false;
    }
    colo_step("sent");
    return true;
}

/* Wait until @epoch is what the secondary said last of @which. */
static bool wait_peer(const uint64_t *which, uint64_t epoch, GError **errp)
{
    g_mutex_lock(&colo.lock);
    while (*which < epoch && !colo.peer_failure && !colo.want_exit && !colo.want_quit) {
        g_cond_wait(&colo.cond, &colo.lock);
    }
    bool ok = *which >= epoch;
    if (!ok) {
        colo_error_set(errp, "%s", colo.peer_failure ? colo.peer_failure
                                                     : "protection ends on request");
    }
    g_mutex_unlock(&colo.lock);
    return ok;
}

static gboolean on_flushed(gpointer opaque)
{
    g_mutex_lock(&colo.lock);
    g_cond_broadcast(&colo.cond);
    g_mutex_unlock(&colo.lock);
    return G_SOURCE_REMOVE;
}

/* RULES 11: flushes that were answered early are a condition of release. */
static bool wait_flushed(GError **errp)
{
    while (!block_primary_flushed(on_flushed, NULL)) {
        g_mutex_lock(&colo.lock);
        bool stop = colo.peer_failure || colo.want_exit || colo.want_quit;
        g_cond_wait_until(&colo.cond, &colo.lock, g_get_monotonic_time() + 5000);
        g_mutex_unlock(&colo.lock);
        if (stop) {
            colo_error_set(errp, "protection ended while the disk was flushed");
            return false;
        }
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

static bool prepass(GError **errp)
{
    ram_epoch_begin(colo.ram);
    colo_step("prepass");
    for (int i = 0; i < PREPASS_ROUNDS; i++) {
        int64_t n = ram_capture(colo.ram, errp);
        if (n < 0) {
            return false;
        }
        if (n < PREPASS_ENOUGH) {
            break;
        }
    }
    return true;
}

static void note_checkpoint(Primary *p, uint64_t epoch, int64_t resumed)
{
    g_mutex_lock(&colo.lock);
    colo.stats.checkpoints++;
    colo.stats.device_bytes = p->cap.device_len;
    stats_add(&colo.stats.pause, p->cap.pause_us);
    stats_add(&colo.stats.commit, g_get_monotonic_time() - resumed);
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

    g_mutex_lock(&colo.lock);
    /* As with stock COLO, a paused guest starts to run when protection begins. */
    if (first) {
        colo.user_paused = false;
    }
    p->cap.running = !colo.user_paused && !colo.guest_off;
    colo.want_checkpoint = false;
    colo.run_state_changed = false;
    colo.capturing = true;
    guint requests = colo.run_state_requests->len; /* later ones wait for the next */
    g_mutex_unlock(&colo.lock);
    g_clear_pointer(&p->cap.proxy, g_bytes_unref);

    bool ok = prepass(errp) && capture_paused(p, epoch, errp);
    g_mutex_lock(&colo.lock);
    colo.capturing = false;
    g_mutex_unlock(&colo.lock);
    if (!ok) {
        return false;
    }
    int64_t resumed = g_get_monotonic_time();
    colo_finish_run_state(requests);
    if (!send_checkpoint(p, epoch, errp) ||
        !wait_peer(&colo.received_epoch, epoch, errp) || !wait_flushed(errp)) {
        return false;
    }
    colo_step("received");
    net_lock();
    proxy_commit(epoch);
    net_unlock();
    colo_step("committed");
    note_checkpoint(p, epoch, resumed);
    if (!wait_peer(&colo.loaded_epoch, epoch, errp)) {
        return false;
    }
    net_lock();
    proxy_loaded(epoch);
    net_unlock();
    if (epoch >= COLO_EPOCH_SAFE) {
        /* The SVM has it from its log: only now may a shared image change. */
        block_primary_loaded(p->cap.barriers, p->cap.n_barriers);
    }
    colo_step("loaded");
    block_primary_committed();
    return true;
}

/* --- Setup and first copy --- */

static bool shake_hands(Primary *p, GError **errp)
{
    g_autofree char *hello = hello_build(true, errp);
    ChannelMsg msg;

    if (!hello || !channel_send_text(p->ch, CHANNEL_HELLO, hello, errp)) {
        return false;
    }
    ChannelResult r = channel_recv(p->ch, &msg, 10000, errp);
    if (r != CHANNEL_OK) {
        if (r == CHANNEL_CANCELLED) {
            colo_error_set(errp, "the migration was cancelled");
        } else if (r == CHANNEL_TIMEOUT) {
            colo_error_set(errp, "the peer at %s does not answer", p->uri);
        }
        return false;
    }
    g_autofree char *text = g_strndup((const char *)msg.data, msg.len);
    if (msg.type == CHANNEL_REFUSE) {
        colo_error_set(errp, "the secondary refuses: %s", text);
        return false;
    }
    if (msg.type != CHANNEL_HELLO_OK) {
        colo_error_set(errp, "unexpected message %d from the peer", msg.type);
        return false;
    }
    return hello_check(text, true, errp);
}

static bool start_rooms(Primary *p, GError **errp)
{
    p->started_rooms = true;
    if (!block_primary_start(on_block_event, NULL, errp)) {
        return false;
    }
    net_lock();
    bool ok = proxy_start_primary(on_proxy_trigger, NULL,
                                  colo.opts.peer_timeout * G_TIME_SPAN_MILLISECOND, errp);
    net_unlock();
    return ok;
}

static bool connect_peer(Primary *p, GError **errp)
{
    int fd = channel_connect(p->uri, 10000, errp);

    if (fd < 0) {
        return false;
    }
    p->ch = channel_new(fd, colo.opts.peer_timeout);
    g_mutex_lock(&colo.lock);
    colo.channel = p->ch;
    if (colo.want_exit || colo.want_quit) {
        channel_cancel(p->ch);
    }
    g_mutex_unlock(&colo.lock);
    if (!shake_hands(p, errp)) {
        return false;
    }
    channel_start_pings(p->ch, COLO_PING_MS);
    p->rx = g_thread_new("colo-rx", primary_rx_thread, p->ch);
    return start_rooms(p, errp);
}

static bool sync_progress(uint64_t done, void *opaque)
{
    g_mutex_lock(&colo.lock);
    colo.sync_done = done;
    bool go_on = !colo.peer_failure && !colo.want_exit && !colo.want_quit;
    g_mutex_unlock(&colo.lock);
    return go_on;
}

static bool first_copy(Primary *p, GError **errp)
{
    uint64_t pages = 0;

    g_mutex_lock(&colo.lock);
    colo.sync_total = ram_size(colo.ram);
    colo.sync_done = 0;
    colo.sync_started_us = g_get_monotonic_time();
    colo_set_state_locked(COLO_STATE_SYNC);
    g_mutex_unlock(&colo.lock);
    if (!tracker_start(colo.tracker, errp) ||
        !ram_send_all(colo.ram, p->ch, sync_progress, NULL, &pages, errp)) {
        return false;
    }
    for (int i = 0; i < SYNC_ROUNDS; i++) {
        ram_epoch_begin(colo.ram);
        int64_t n = ram_capture(colo.ram, errp);
        if (n < 0 || !ram_send_staged(colo.ram, p->ch, &pages, errp) ||
            !sync_progress(ram_size(colo.ram), NULL)) {
            return false;
        }
        if (n < SYNC_ENOUGH) {
            break;
        }
    }
    return true;
}

/* --- Life and end of protection --- */

/* Sleep until there is a reason for a checkpoint; false: protection ends. */
static bool wait_trigger(int64_t last_us)
{
    g_mutex_lock(&colo.lock);
    bool due = false;
    while (!colo.peer_failure && !colo.want_exit && !colo.want_quit) {
        int64_t deadline = last_us + (int64_t)colo.checkpoint_delay * 1000;
        if (colo.run_state_changed) {
            colo.stats.triggers[COLO_TRIGGER_RUN_STATE]++;
            due = true;
        } else if (colo.want_checkpoint) {
            colo.stats.triggers[colo.trigger]++;
            due = true;
        } else if (g_get_monotonic_time() >= deadline) {
            colo.stats.triggers[COLO_TRIGGER_TIMER]++;
            due = true;
        }
        if (due) {
            break;
        }
        g_cond_wait_until(&colo.cond, &colo.lock, deadline);
    }
    g_mutex_unlock(&colo.lock);
    return due;
}

/* Before the checkpoint from which on the peer could take over: what decides between us. */
static bool share_ownership(Primary *p, GError **errp)
{
    if (!colo.arbiter || !colo.arbiter->class->protect || colo.epoch + 1 != COLO_EPOCH_SAFE) {
        return true;
    }
    g_autofree char *token = colo.arbiter->class->protect(colo.arbiter, errp);
    colo_step("shared");
    return token && channel_send_text(p->ch, CHANNEL_TOKEN, token, errp);
}

static bool protect(Primary *p, GError **errp)
{
    while (share_ownership(p, errp)) {
        int64_t started = g_get_monotonic_time();
        if (!checkpoint(p, errp)) {
            return false;
        }
        if (colo.epoch < COLO_EPOCH_SAFE) {
            continue;
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
        if (!wait_trigger(started)) {
            colo_error_set(errp, "%s", colo.peer_failure ? colo.peer_failure
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
    if (p->rx) {
        g_thread_join(p->rx);
    }
    g_mutex_lock(&colo.lock);
    colo.channel = NULL;
    g_mutex_unlock(&colo.lock);
    channel_free(p->ch);
    p->ch = NULL;
}

gpointer primary_thread(gpointer uri)
{
    g_autofree Primary *p = g_new0(Primary, 1);
    g_autoptr(GError) err = NULL;

    p->uri = uri;
    p->cap.device = g_malloc(VMSTATE_IMAGE_MAX);
    memset(p->cap.device, 0, 1 << 20); /* no first-touch faults in the pause */
    g_snprintf(p->save_command, sizeof(p->save_command),
               "{\"execute\":\"stop\",\"id\":\"stop\"}\n"
               "{\"execute\":\"xen-save-devices-state\",\"arguments\":{\"filename\":"
               "\"/proc/self/fd/%d\",\"live\":false},\"id\":\"save\"}\n",
               colo.child.state_fd);
    if (connect_peer(p, &err) && first_copy(p, &err)) {
        protect(p, &err);
    }
    if (!err) {
        g_mutex_lock(&colo.lock);
        colo_error_set(&err, "%s", colo.peer_failure ? colo.peer_failure
                                                     : "the migration was cancelled");
        g_mutex_unlock(&colo.lock);
    }
    primary_end(p->ch, p->started_rooms, err);
    close_peer(p);
    g_free(p->cap.device);
    g_clear_pointer(&p->cap.proxy, g_bytes_unref);
    g_free(p->uri);
    return NULL;
}
