/*
 * The secondary's checkpoint controller.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: be able to go on, at any moment, from the last checkpoint that is whole, or from
 * what the SVM made of it since.
 *
 * One thread ("colo-in") walks: WAITING (listen) -> SETUP (agree) -> SYNC (RAM goes
 * straight into the cache) -> PROTECTED -> LOST (arbiter) -> TAKEOVER -> ALONE.
 *
 * Invariants:
 * - A checkpoint touches cache, SVM, disk and proxy only after all of it is here:
 *   RAM, device state, proxy state, and every disk write up to its barriers. Until then
 *   it is staging, and dropping it changes nothing.
 * - RECEIVED is sent only then, and from then on the checkpoint is a commitment: it is
 *   loaded before anything else happens, the peer's death included.
 * - After a load that failed the SVM is never let run (RULES 6).
 */
#include "migration/arbiter.h"
#include "migration/secondary.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <poll.h>
#include <unistd.h>

#include "migration/vmstate-image.h"
#include "net/net.h"
#include "net/proxy.h"
#include "util/error.h"
#include "util/trace.h"

void secondary_reset_staging(Secondary *s)
{
    ram_discard(colo.ram);
    s->in_checkpoint = false;
    s->pages = 0;
    g_byte_array_set_size(s->device, 0);
    g_byte_array_set_size(s->proxy, 0);
    g_byte_array_set_size(s->barriers, 0);
}

/* --- Transfer --- */

#define PROGRESS_US 250000 /* how often the primary is told that the disks come on */

/* Between END and RECEIVED: a look at what else the primary has to say, for at most
 * @timeout_ms; its death tears the checkpoint. */
static bool heed(Secondary *s, int timeout_ms, GError **errp)
{
    ChannelMsg msg;
    ChannelResult r = channel_recv(s->ch, &msg, timeout_ms, errp);

    if (r == CHANNEL_CANCELLED) {
        colo_error_set(errp, "cancelled in the middle of a checkpoint");
        return false;
    }
    if (r == CHANNEL_ERROR) {
        return false;
    }
    if (r == CHANNEL_OK && (msg.type == CHANNEL_EXIT || msg.type == CHANNEL_DEATH ||
                            msg.type == CHANNEL_APPLIED)) {
        if (!secondary_handle(s, &msg, errp)) {
            return false;
        }
    } else if (r == CHANNEL_OK && msg.type != CHANNEL_PING) {
        colo_error_set(errp, "message %d in the middle of a checkpoint", msg.type);
        return false;
    }
    if (channel_silence(s->ch) > colo.opts.peer_timeout * 1000LL) {
        colo_error_set(errp, "nothing was heard of the primary for %u ms",
                       colo.opts.peer_timeout);
        return false;
    }
    return true;
}

/* Wait for the disks. A slow storage is no hang, as long as it comes on: the primary is told. */
static bool wait_barriers(Secondary *s, GError **errp)
{
    BlockBarrier barriers[COLO_DISKS_MAX];
    unsigned n;

    if (!barriers_unpack(s->barriers->data, s->barriers->len, barriers, &n, errp)) {
        return false;
    }
    uint64_t told = block_secondary_progress();
    int64_t next = g_get_monotonic_time() + PROGRESS_US;
    while (!block_secondary_arrived(barriers, n, NULL, NULL)) {
        if (!heed(s, 1, errp)) {
            return false;
        }
        if (g_get_monotonic_time() < next) {
            continue;
        }
        uint64_t now = block_secondary_progress();
        uint64_t be = GUINT64_TO_BE(now);
        next = g_get_monotonic_time() + PROGRESS_US;
        if (now != told && channel_try_bytes(s->ch, CHANNEL_PING, &be, sizeof(be))) {
            told = now;
        }
    }
    return true;
}

/* Wait for the pages that the last SYNC told of. @last: after END, when the control channel
 * has nothing but words. */
static bool wait_pages(Secondary *s, bool last, uint64_t *pages, GError **errp)
{
    RamReceiver *x = s->receiver;
    int64_t from = g_get_monotonic_time();

    while (x && s->sync_mask &&
           !ram_receiver_synced(x, s->sync_pass, s->sync_mask, 10, pages)) {
        if (!ram_receiver_good(x, 0, errp) || (last && !heed(s, 0, errp))) {
            return false;
        }
        if (channel_cancelled(s->ch, 0)) {
            colo_error_set(errp, "cancelled in the middle of a transfer");
            return false;
        }
        /* Nothing had to come before, and it need not come before the control channel's. */
        int64_t waited = g_get_monotonic_time() - from, silence = ram_receiver_silence(x);
        if (MIN(waited, silence) > colo.opts.peer_timeout * 1000LL) {
            colo_error_set(errp, "a data channel stands still for %u ms",
                           colo.opts.peer_timeout);
            return false;
        }
    }
    s->sync_mask = 0;
    return true;
}

static bool append_blob(GByteArray *to, const ChannelMsg *msg, size_t max, GError **errp)
{
    if (msg->len > max || to->len > max - msg->len) {
        colo_error_set(errp, "the checkpoint's state exceeds %zu bytes", max);
        return false;
    }
    g_byte_array_append(to, msg->data, msg->len);
    return true;
}

static bool check_end(const Secondary *s, const uint64_t *end, GError **errp)
{
    if (end[0] != s->epoch || end[1] != s->pages || end[2] != s->device->len ||
        s->device->len == 0 || end[3] != s->proxy->len) {
        colo_error_set(errp, "the checkpoint is not what its end says it is");
        return false;
    }
    return true;
}

static void note_loaded(Secondary *s, int64_t lag)
{
    g_mutex_lock(&colo.lock);
    colo.epoch = s->epoch;
    colo.user_paused = !s->running;
    colo.epochs[s->stand]++;
    colo.mode_switches += colo.standing != s->stand;
    colo.standing = s->stand;
    colo.stats.checkpoints++;
    colo.stats.device_bytes = s->device->len;
    colo.stats.wrong_pages += s->wrong;
    colo.stats.verified += colo.opts.verify_ram;
    stats_add(&colo.stats.lag, lag);
    stats_add(&colo.stats.dirty, s->pages);
    if (s->aimed_at && !s->stand && s->running) {
        colo.peer_skew = s->skew;
        stats_add(&colo.stats.skew, ABS(s->skew));
    }
    StatsCheckpoint n = {
        .epoch = s->epoch, .at = g_get_monotonic_time(), .standing = s->stand, .lag = lag,
        .pages = s->pages, .skew = s->skew,
        .bytes = (s->pages << COLO_PAGE_SHIFT) + s->device->len + s->proxy->len,
    };
    stats_note(&colo.stats, &n);
    if (colo.state != COLO_STATE_PROTECTED && s->epoch >= COLO_EPOCH_SAFE) {
        colo_set_state_locked(COLO_STATE_PROTECTED);
    }
    g_mutex_unlock(&colo.lock);
    colo_trace(migration_loaded, "epoch=%" G_GUINT64_FORMAT " lag=%" G_GINT64_FORMAT
               " us restored=%" G_GINT64_FORMAT " wrong=%" G_GUINT64_FORMAT, s->epoch, lag,
               s->restored, s->wrong);
}

/* The last look before the commitment: what would make the roll-back fail half way makes the
 * checkpoint a torn one instead, and the SVM goes on as it was. */
static bool check_parts(Secondary *s, GError **errp)
{
    BlockBarrier barriers[COLO_DISKS_MAX];
    unsigned n = 0;
    g_autoptr(GBytes) proxy = g_bytes_new_static(s->proxy->data, s->proxy->len);

    if (!barriers_unpack(s->barriers->data, s->barriers->len, barriers, &n, errp) ||
        !block_secondary_check(barriers, n, errp)) {
        return false;
    }
    net_lock();
    bool ok = proxy_check(proxy, errp);
    net_unlock();
    return ok;
}

/* The END has come: make the checkpoint a commitment and load it. */
static bool complete(Secondary *s, const ChannelMsg *msg, GError **errp)
{
    uint64_t end[4] = {channel_msg_u64(msg, 0), channel_msg_u64(msg, 1),
                       channel_msg_u64(msg, 2), channel_msg_u64(msg, 3)};
    if (!wait_pages(s, true, &s->pages, errp)) {
        return false;
    }
    if (s->receiver) {
        ram_receiver_close(s->receiver);
    }
    if (!check_end(s, end, errp)) {
        return false;
    }
    colo_step("svm-whole");
    if (!wait_barriers(s, errp)) {
        return false;
    }
    if (!check_parts(s, errp)) {
        return false;
    }
    if (s->epoch == COLO_EPOCH_SAFE && !colo_state_file_write("protected-secondary", errp)) {
        return false;
    }
    int64_t start = g_get_monotonic_time();
    uint64_t cut_at = channel_msg_u64(msg, 4);
    s->cut_at = s->running && cut_at < G_MAXINT64 / 2 ? (int64_t)cut_at : 0;
    colo_step("svm-arrived");
    /* If this does not get through, the peer did not release anything on its strength;
     * the checkpoint is whole all the same and is loaded. */
    channel_send_u64(s->ch, CHANNEL_RECEIVED, &s->epoch, 1, NULL);
    colo_step("svm-received");
    if (!secondary_roll_back(s, errp)) {
        s->broken = true;
        return false;
    }
    int64_t lag = g_get_monotonic_time() - start;
    note_loaded(s, lag);
    bool aimed = s->aimed_at && !s->stand && s->running;
    uint64_t loaded[7] = {s->epoch, lag, s->restored, s->wrong, 0, s->skew, aimed};
    secondary_reset_staging(s);
    colo_step("svm-running");
    loaded[4] = g_get_monotonic_time();
    /* The load's job goes, whether the peer hears of it or not. */
    bool said = channel_send_u64(s->ch, CHANNEL_LOADED, loaded, 7, errp);
    bool ok = secondary_ready(s, said ? errp : NULL) && said;
    if (ok) {
        ram_populate(colo.ram); /* not before: the SVM stood */
    }
    return ok;
}

static bool note_applied(const ChannelMsg *msg, GError **errp)
{
    BlockBarrier barriers[COLO_DISKS_MAX];
    unsigned n = 0;

    if (!barriers_unpack(msg->data, msg->len, barriers, &n, errp)) {
        return false;
    }
    block_secondary_applied(barriers, n);
    return true;
}

static void note_copied(uint64_t pages)
{
    g_mutex_lock(&colo.lock);
    colo.sync_done += pages << COLO_PAGE_SHIFT;
    g_mutex_unlock(&colo.lock);
}

static bool begin(Secondary *s, const ChannelMsg *msg, GError **errp)
{
    uint64_t epoch = channel_msg_u64(msg, 0), flags = channel_msg_u64(msg, 1);

    if (flags & ~(uint64_t)(COLO_FLAG_RUNNING | COLO_FLAG_STANDING)) {
        colo_error_set(errp, "the primary wants something of a checkpoint that this side does "
                             "not know (flags 0x%" G_GINT64_MODIFIER "x)", flags);
        return false;
    }
    if (s->in_checkpoint || epoch != colo.epoch + 1) {
        colo_error_set(errp, "the primary starts checkpoint %" G_GUINT64_FORMAT
                       " after %" G_GUINT64_FORMAT, epoch, colo.epoch);
        return false;
    }
    if (s->receiver) {
        uint64_t copied = 0;
        if (!wait_pages(s, false, &copied, errp)) {
            return false;
        }
        note_copied(copied);
        ram_receiver_open(s->receiver, epoch);
    }
    s->in_checkpoint = true;
    s->epoch = epoch;
    s->running = flags & COLO_FLAG_RUNNING;
    s->stand = flags & COLO_FLAG_STANDING;
    colo_step("svm-begin");
    return true;
}

/* Pages on the control channel: without data channels. */
static bool take_pages(Secondary *s, const ChannelMsg *msg, GError **errp)
{
    uint64_t n = 0;
    bool direct = !s->in_checkpoint;

    if (s->receiver) {
        colo_error_set(errp, "the primary sends pages beside the data channels");
        return false;
    }
    if (!s->decoder) {
        s->decoder = g_new(RamDecoder, 1);
    }
    bool ok = ram_receive(colo.ram, s->decoder, msg, direct ? 0 : s->epoch, &n, errp);
    s->pages += direct ? 0 : n;
    note_copied(direct ? n : 0);
    return ok;
}

bool secondary_handle(Secondary *s, const ChannelMsg *msg, GError **errp)
{
    if (!s->in_checkpoint && msg->type != CHANNEL_BEGIN && msg->type != CHANNEL_PING &&
        msg->type != CHANNEL_EXIT && msg->type != CHANNEL_DEATH &&
        msg->type != CHANNEL_APPLIED &&
        msg->type != CHANNEL_TOKEN && msg->type != CHANNEL_YIELD &&
        !((msg->type == CHANNEL_RAM || msg->type == CHANNEL_SYNC) && colo.epoch == 0)) {
        colo_error_set(errp, "message %d outside a checkpoint", msg->type);
        return false;
    }
    switch (msg->type) {
    case CHANNEL_PING:
        return true;
    case CHANNEL_APPLIED:
        return note_applied(msg, errp);
    case CHANNEL_BEGIN:
        return begin(s, msg, errp);
    case CHANNEL_RAM:
        return take_pages(s, msg, errp);
    case CHANNEL_SYNC:
        s->sync_pass = channel_msg_u64(msg, 0);
        s->sync_mask = channel_msg_u64(msg, 1);
        if (!s->receiver || !s->sync_mask || s->sync_mask >> colo.link.n) {
            colo_error_set(errp, "the primary tells of data channels that there are not");
            return false;
        }
        return true;
    case CHANNEL_DEVICE:
        return append_blob(s->device, msg, VMSTATE_IMAGE_MAX, errp);
    case CHANNEL_PROXY:
        return append_blob(s->proxy, msg, COLO_HOLD_STATE_MAX * 16, errp);
    case CHANNEL_BARRIERS:
        return append_blob(s->barriers, msg, COLO_HOLD_STATE_MAX, errp);
    case CHANNEL_VERIFY:
        return !colo.opts.verify_ram || ram_verify_add(colo.ram, msg, errp);
    case CHANNEL_END:
        return complete(s, msg, errp);
    case CHANNEL_EXIT: {
        g_autofree char *text = channel_msg_text(msg);
        s->peer_goes_on = true;
        s->guest_off = strstr(text, "shut down") != NULL;
        colo_error_set(errp, "%s", text);
        return false;
    }
    case CHANNEL_YIELD:
        if (s->in_checkpoint || colo.epoch < COLO_EPOCH_SAFE) {
            colo_error_set(errp, "the primary hands over in the middle of a checkpoint");
            return false;
        }
        colo_step("svm-yielded");
        s->yielded = true;
        colo_error_set(errp, "the primary hands over");
        return false;
    case CHANNEL_TOKEN: {
        g_autofree char *text = channel_msg_text(msg);
        if (!colo.arbiter || !colo.arbiter->class->join) {
            colo_error_set(errp, "the primary has an arbiter that this side lacks");
            return false;
        }
        return colo.arbiter->class->join(colo.arbiter, text, errp) &&
               channel_send_text(s->ch, CHANNEL_TOKEN, "joined", errp);
    }
    case CHANNEL_DEATH: {
        g_autofree char *text = channel_msg_text(msg);
        s->peer_died = true;
        colo_error_set(errp, "the primary: %s", text);
        return false;
    }
    default:
        colo_error_set(errp, "unexpected message %d from the primary", msg->type);
        return false;
    }
}
