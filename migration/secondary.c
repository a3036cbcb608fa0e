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
#include "util/options.h"
#include "util/trace.h"

#define LOAD_TIMEOUT_MS 30000
#define TRIAL_US G_USEC_PER_SEC

void secondary_reset_staging(Secondary *s)
{
    ram_discard(colo.ram);
    s->in_checkpoint = false;
    s->pages = 0;
    g_byte_array_set_size(s->device, 0);
    g_byte_array_set_size(s->proxy, 0);
    g_byte_array_set_size(s->barriers, 0);
}

/* --- Restore --- */

/* Stop the SVM; after a guest that ended by itself a reset is due, or cont is refused. */
static bool stop_svm(GError **errp)
{
    g_autoptr(JsonNode) node = NULL;

    if (!child_qmp_send(colo.qmp, "{\"execute\":\"stop\",\"id\":\"stop\"}\n", errp) ||
        !child_qmp_wait(colo.qmp, "stop", LOAD_TIMEOUT_MS, errp)) {
        return false;
    }
    node = child_qmp_query(colo.qmp, "{\"execute\":\"query-status\",\"id\":\"st\"}\n", "st",
                           errp);
    if (!node) {
        return false;
    }
    const char *st = json_object_get_string_member_with_default(json_node_get_object(node),
                                                                "status", "");
    if (strcmp(st, "shutdown") != 0 && strcmp(st, "guest-panicked") != 0 &&
        strcmp(st, "internal-error") != 0) {
        return true;
    }
    colo_trace(migration_svm_reset, "status=%s", st);
    child_qmp_forget_events(colo.qmp);
    return child_qmp_send(colo.qmp, "{\"execute\":\"system_reset\",\"id\":\"rst\"}\n", errp) &&
           child_qmp_wait(colo.qmp, "rst", LOAD_TIMEOUT_MS, errp) &&
           child_qmp_wait_event(colo.qmp, "RESET", NULL, LOAD_TIMEOUT_MS, errp);
}

/* Why job @id failed, if it did. */
static bool check_job(const char *id, GError **errp)
{
    g_autoptr(JsonNode) jobs = child_qmp_query(
        colo.qmp, "{\"execute\":\"query-jobs\",\"id\":\"jobs\"}\n", "jobs", errp);

    if (!jobs) {
        return false;
    }
    JsonArray *a = json_node_get_array(jobs);
    for (guint i = 0; i < json_array_get_length(a); i++) {
        JsonObject *o = json_array_get_object_element(a, i);
        if (strcmp(json_object_get_string_member(o, "id"), id) == 0 &&
            json_object_has_member(o, "error")) {
            colo_error_set(errp, "device state: %s",
                           json_object_get_string_member(o, "error"));
            return false;
        }
    }
    return true;
}

static bool load_devices(GByteArray *state, GError **errp)
{
    char id[40], text[400], needle[64];

    g_autofree char *machine =
        g_strdup(options_get_str(colo.child.identity, "machine", ""));
    char *suffix = strstr(machine, "-machine");

    if (suffix) {
        *suffix = 0;
    }
    if (!vmstate_image_write(colo.child.vmst_fd, machine, state->data, state->len,
                             errp)) {
        return false;
    }
    g_strlcpy(id, "qemu-colo-load", sizeof(id)); /* dismissed before the next */
    g_snprintf(needle, sizeof(needle), "\"status\": \"concluded\", \"id\": \"%s\"", id);
    g_snprintf(text, sizeof(text),
               "{\"execute\":\"snapshot-load\",\"arguments\":{\"job-id\":\"%s\",\"tag\":\"%s\","
               "\"vmstate\":\"%s\",\"devices\":[\"%s\"]},\"id\":\"load\"}\n",
               id, VMSTATE_IMAGE_TAG, colo.child.vmst_node, colo.child.vmst_node);
    child_qmp_forget_events(colo.qmp);
    if (!child_qmp_send(colo.qmp, text, errp) ||
        !child_qmp_wait(colo.qmp, "load", LOAD_TIMEOUT_MS, errp) ||
        !child_qmp_wait_event(colo.qmp, "JOB_STATUS_CHANGE", needle, LOAD_TIMEOUT_MS,
                              errp)) {
        return false;
    }
    bool ok = check_job(id, errp);
    g_snprintf(text, sizeof(text),
               "{\"execute\":\"job-dismiss\",\"arguments\":{\"id\":\"%s\"},\"id\":\"dis\"}\n",
               id);
    return colo_child_command(text, "dis", ok ? errp : NULL) && ok;
}

/* The load resets the machine first. A reset that writes images back into RAM (a kernel
 * given as ELF, -device loader) does so between our restore and the devices' load, which
 * read their rings there: mending RAM afterwards would come too late for them. Not so with
 * video memory, ROMs and flash: nothing is loaded from them, they are mended. */
static bool check_reset(GError **errp)
{
    uint64_t n = 0;

    if (ram_restore(colo.ram, &n, errp) < 0) {
        return false;
    }
    if (n > 0) {
        colo_error_set(errp,
                       "this machine's reset writes to %" G_GUINT64_FORMAT " pages of guest "
                       "RAM (-kernel with an ELF image, or -device loader): it cannot be "
                       "replicated; boot from disk or with a bzImage", n);
    }
    return n == 0;
}

/* RAM and devices of the stopped SVM to the checkpoint in cache and staging. */
static bool load(Secondary *s, GByteArray *state, GError **errp)
{
    s->restored = ram_restore(colo.ram, NULL, errp);
    if (s->restored < 0) {
        return false;
    }
    colo_step("svm-restored");
    return load_devices(state, errp) && check_reset(errp);
}

/* RULES 6: a load that failed is tried again, from all of the cache; it is never run. */
static bool load_or_retry(Secondary *s, GByteArray *state, GError **errp)
{
    g_autoptr(GError) first = NULL;

    s->unloaded = false;
    if (!load(s, state, &first)) {
        colo_report("loading a checkpoint failed (%s): once more", first->message);
        ram_mark_all(colo.ram);
        if (!load(s, state, errp)) {
            return false;
        }
    }
    s->tried_at = g_get_monotonic_time();
    return true;
}

/* A standing SVM needs its devices when it rises, not at each of twenty checkpoints a second;
 * that they can be loaded is tried now and then all the same (RULES 6). */
static bool keep_or_load(Secondary *s, GError **errp)
{
    if (!s->stand || !s->standing || g_get_monotonic_time() - s->tried_at > TRIAL_US) {
        return load_or_retry(s, s->device, errp);
    }
    s->restored = ram_restore(colo.ram, NULL, errp);
    if (s->restored < 0) {
        return false;
    }
    colo_step("svm-restored");
    g_byte_array_set_size(s->device_held, 0);
    g_byte_array_append(s->device_held, s->device->data, s->device->len);
    s->unloaded = true;
    return true;
}

bool secondary_rise(Secondary *s, GError **errp)
{
    if (!s->standing || !s->unloaded) {
        return true;
    }
    int64_t start = g_get_monotonic_time();
    bool ok = load_or_retry(s, s->device_held, errp);
    colo_trace(migration_rise, "epoch=%" G_GUINT64_FORMAT " in %" G_GINT64_FORMAT " us: %s",
               colo.epoch, g_get_monotonic_time() - start, ok ? "ready" : "failed");
    return ok;
}

/* Bring the SVM to the checkpoint in staging; it is whole. */
static bool roll_back(Secondary *s, GError **errp)
{
    BlockBarrier barriers[COLO_DISKS_MAX];
    unsigned n = 0;

    if (!barriers_unpack(s->barriers->data, s->barriers->len, barriers, &n, errp)) {
        return false;
    }
    net_lock();
    proxy_rollback_begin(s->epoch);
    net_unlock();
    if (!s->standing && !stop_svm(errp)) {
        return false;
    }
    net_lock();
    proxy_rollback_stopped();
    net_unlock();
    colo_step("svm-stopped");
    ram_commit(colo.ram);
    if (!colo.epoch) {
        ram_mark_all(colo.ram);
    }
    if (!block_secondary_commit(barriers, n, errp) || !keep_or_load(s, errp)) {
        return false;
    }
    colo_step("svm-loaded");
    s->wrong = colo.opts.verify_ram ? ram_verify(colo.ram) : 0;
    g_autoptr(GBytes) proxy = g_bytes_new(s->proxy->data, s->proxy->len);
    net_lock();
    bool ok = proxy_restore(proxy, errp);
    if (ok && !s->stand) {
        proxy_rollback_ready(s->epoch); /* what the SVM sends first counts */
    }
    net_unlock();
    s->standing = s->stand;
    if (ok && s->running && !s->stand) {
        ok = colo_child_command("{\"execute\":\"cont\",\"id\":\"cont\"}\n", "cont", errp);
    }
    net_lock();
    if (s->stand) {
        proxy_rollback_stand(s->epoch);
    } else {
        proxy_rollback_end(s->epoch);
    }
    net_unlock();
    return ok;
}

/* --- Transfer --- */

/* Wait for the disks; the peer's death meanwhile tears the checkpoint. */
static bool wait_barriers(Secondary *s, GError **errp)
{
    BlockBarrier barriers[COLO_DISKS_MAX];
    unsigned n;

    if (!barriers_unpack(s->barriers->data, s->barriers->len, barriers, &n, errp)) {
        return false;
    }
    while (!block_secondary_arrived(barriers, n, NULL, NULL)) {
        ChannelMsg msg;
        ChannelResult r = channel_recv(s->ch, &msg, 1, errp);
        if (r == CHANNEL_CANCELLED) {
            colo_error_set(errp, "cancelled while the disks were waited for");
            return false;
        }
        if (r == CHANNEL_ERROR) {
            return false;
        }
        if (r == CHANNEL_OK && (msg.type == CHANNEL_EXIT || msg.type == CHANNEL_DEATH)) {
            return secondary_handle(s, &msg, errp);
        }
        if (r == CHANNEL_OK && msg.type == CHANNEL_APPLIED) {
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
    }
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

static bool check_end(Secondary *s, const ChannelMsg *msg, GError **errp)
{
    if (channel_msg_u64(msg, 0) != s->epoch || channel_msg_u64(msg, 1) != s->pages ||
        channel_msg_u64(msg, 2) != s->device->len || s->device->len == 0 ||
        channel_msg_u64(msg, 3) != s->proxy->len) {
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
    if (!check_end(s, msg, errp)) {
        return false;
    }
    colo_step("svm-whole");
    if (!wait_barriers(s, errp)) {
        return false;
    }
    if (!check_parts(s, errp)) {
        return false;
    }
    int64_t start = g_get_monotonic_time();
    colo_step("svm-arrived");
    /* If this does not get through, the peer did not release anything on its strength;
     * the checkpoint is whole all the same and is loaded. */
    channel_send_u64(s->ch, CHANNEL_RECEIVED, &s->epoch, 1, NULL);
    colo_step("svm-received");
    if (!roll_back(s, errp)) {
        s->broken = true;
        return false;
    }
    int64_t lag = g_get_monotonic_time() - start;
    note_loaded(s, lag);
    uint64_t loaded[4] = {s->epoch, lag, s->restored, s->wrong};
    secondary_reset_staging(s);
    colo_step("svm-running");
    return channel_send_u64(s->ch, CHANNEL_LOADED, loaded, 4, errp);
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

static bool begin(Secondary *s, const ChannelMsg *msg, GError **errp)
{
    uint64_t epoch = channel_msg_u64(msg, 0);

    if (s->in_checkpoint || epoch != colo.epoch + 1) {
        colo_error_set(errp, "the primary starts checkpoint %" G_GUINT64_FORMAT
                       " after %" G_GUINT64_FORMAT, epoch, colo.epoch);
        return false;
    }
    s->in_checkpoint = true;
    s->epoch = epoch;
    s->running = channel_msg_u64(msg, 1) & COLO_FLAG_RUNNING;
    s->stand = channel_msg_u64(msg, 1) & COLO_FLAG_STANDING;
    colo_step("svm-begin");
    return true;
}

bool secondary_handle(Secondary *s, const ChannelMsg *msg, GError **errp)
{
    if (!s->in_checkpoint && msg->type != CHANNEL_BEGIN && msg->type != CHANNEL_PING &&
        msg->type != CHANNEL_EXIT && msg->type != CHANNEL_DEATH &&
        msg->type != CHANNEL_APPLIED &&
        msg->type != CHANNEL_TOKEN && msg->type != CHANNEL_YIELD &&
        !(msg->type == CHANNEL_RAM && colo.epoch == 0)) {
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
    case CHANNEL_RAM: {
        uint64_t n = 0;
        bool direct = !s->in_checkpoint;
        bool ok = ram_receive(colo.ram, msg, direct, &n, errp);
        s->pages += direct ? 0 : n;
        g_mutex_lock(&colo.lock);
        colo.sync_done += direct ? n << COLO_PAGE_SHIFT : 0;
        g_mutex_unlock(&colo.lock);
        return ok;
    }
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
        return colo.arbiter->class->join(colo.arbiter, text, errp);
    }
    case CHANNEL_DEATH: {
        g_autofree char *text = channel_msg_text(msg);
        colo_error_set(errp, "the primary: %s", text);
        return false;
    }
    default:
        colo_error_set(errp, "unexpected message %d from the primary", msg->type);
        return false;
    }
}
