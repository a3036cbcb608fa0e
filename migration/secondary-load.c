/*
 * The secondary's roll-back: SVM stopped, restored, loaded, let run; and its clock.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Used by the thread "colo-in" alone. What fails here leaves an SVM that must not run.
 */
#include "migration/secondary.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migration/vmstate-clock.h"
#include "migration/vmstate-image.h"
#include "net/net.h"
#include "net/proxy.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

#define LOAD_TIMEOUT_MS 30000
#define WAKE_TRIES 500
#define TRIAL_US G_USEC_PER_SEC
#define CLOCK_BEHIND_MAX (600 * G_USEC_PER_SEC) /* more is no clock of ours */
#define CLOCK_LEARN_MAX (100 * 1000)            /* more is no load, but a wait */
#define CLOCK_RISE_FIRST (12 * 1000)            /* the guess before anything was learnt */
#define CLOCK_PERCENT 75 /* of the SVMs are to be ready in time, and wait for their clock */
#define CLOCK_LATE (4 * 1000)
#define CLOCK_WAIT_MAX (20 * 1000)

#define LOAD_ID "qemu-colo-load" /* dismissed before the next */

static const char load_command[] =
    "{\"execute\":\"snapshot-load\",\"arguments\":{\"job-id\":\"" LOAD_ID "\",\"tag\":"
    "\"" VMSTATE_IMAGE_TAG "\",\"vmstate\":\"%s\",\"devices\":[\"%s\"]},\"id\":\"load\"}\n";
static const char stop_command[] = "{\"execute\":\"stop\",\"id\":\"stop\"}\n";
static const char status_command[] = "{\"execute\":\"query-status\",\"id\":\"st\"}\n";
static const char jobs_command[] = "{\"execute\":\"query-jobs\",\"id\":\"jobs\"}\n";
static const char dismiss_command[] =
    "{\"execute\":\"job-dismiss\",\"arguments\":{\"id\":\"" LOAD_ID "\"},\"id\":\"dis\"}\n";
static const char cont_command[] = "{\"execute\":\"cont\",\"id\":\"cont\"}\n";

static bool ready_load(GError **errp)
{
    char text[400];

    g_snprintf(text, sizeof(text), load_command, colo.child.vmst_node, colo.child.vmst_node);
    return child_qmp_ready(colo.qmp_save, text, "load", errp);
}

/* The job of the last load goes: the next one has its id. Where there is none, because the
 * emulator refused the load, that is no error; if it stays the next load says so. */
static void dismiss_job(Secondary *s)
{
    if (s->job_left && child_qmp_send(colo.qmp, dismiss_command, NULL)) {
        child_qmp_wait(colo.qmp, "dis", LOAD_TIMEOUT_MS, NULL);
    }
    s->job_left = false;
}

bool secondary_ready(Secondary *s, GError **errp)
{
    dismiss_job(s);
    return ready_load(errp) &&
           (s->standing || (child_qmp_ready(colo.qmp, stop_command, "stop", errp) &&
                            child_qmp_ready(colo.qmp_cont, status_command, "st", errp)));
}

static JsonNode *stop_once(GError **errp)
{
    JsonNode *node = NULL;

    if (child_qmp_ready(colo.qmp, stop_command, "stop", errp) &&
        child_qmp_ready(colo.qmp_cont, status_command, "st", errp) &&
        child_qmp_go(colo.qmp, "stop", errp) &&
        child_qmp_wait(colo.qmp, "stop", LOAD_TIMEOUT_MS, errp) &&
        child_qmp_go(colo.qmp_cont, "st", errp)) {
        node = child_qmp_reply(colo.qmp_cont, "st", errp);
    }
    if (node && json_object_get_boolean_member_with_default(json_node_get_object(node),
                                                            "running", true)) {
        colo_error_set(errp, "the emulator does not stop its guest");
        g_clear_pointer(&node, json_node_unref);
    }
    return node;
}

/* Stop the SVM; after a guest that ended by itself a reset is due, or cont is refused. */
static bool stop_svm(GError **errp)
{
    g_autoptr(JsonNode) node = stop_once(errp);

    /* Asleep (S3) it would neither stop nor go on. */
    for (int i = 0; node && i < WAKE_TRIES &&
                    strcmp(json_object_get_string_member_with_default(
                               json_node_get_object(node), "status", ""), "suspended") == 0;
         i++) {
        colo_child_command("{\"execute\":\"system_wakeup\",\"id\":\"wake\"}\n", "wake", NULL);
        g_usleep(1000);
        json_node_unref(node);
        node = stop_once(errp);
    }
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
    g_autoptr(JsonNode) jobs = NULL;

    if (!child_qmp_ready(colo.qmp, jobs_command, "jobs", errp) ||
        !child_qmp_go(colo.qmp, "jobs", errp) ||
        !(jobs = child_qmp_reply(colo.qmp, "jobs", errp))) {
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

/* --- The SVM's clock, RULES 9 --- */

void secondary_clock_init(Secondary *s)
{
    g_autoptr(JsonNode) node = child_qmp_query(
        colo.qmp, "{\"execute\":\"query-kvm\",\"id\":\"kvm\"}\n", "kvm", NULL);
    bool kvm = true;

    if (node && JSON_NODE_HOLDS_OBJECT(node)) {
        options_get_bool(json_node_get_object(node), "enabled", &kvm, NULL);
    }
    s->ticks0 = vmstate_clock_ticks();
    s->ticks0_at = g_get_monotonic_time();
    s->clock_known = !kvm && s->ticks0;
    s->n_rises = 0;
}

static int compare_rises(const void *a, const void *b)
{
    return *(const int32_t *)a - *(const int32_t *)b;
}

/* How long it will take from now until the SVM can go on, by the last few: a quantile, as
 * what it exceeds the usual by is lag, and one that was held up for long is no rule. */
static int64_t expected_rise(const Secondary *s)
{
    int32_t sorted[SECONDARY_RISES];
    unsigned n = MIN(s->n_rises, SECONDARY_RISES);

    if (n == 0) {
        return CLOCK_RISE_FIRST;
    }
    memcpy(sorted, s->rises, sizeof(sorted[0]) * n);
    qsort(sorted, n, sizeof(sorted[0]), compare_rises);
    return sorted[(n - 1) * CLOCK_PERCENT / 100];
}

/* Let the machine in @state wake up as late as it will: its clocks go on from what they would
 * have been without the time since the cut. @added: what was added before, us. */
static void advance_clock(Secondary *s, GByteArray *state, int64_t *added)
{
    int64_t now = g_get_monotonic_time();
    int64_t rise = expected_rise(s);
    int64_t behind = now + rise - s->cut_at;
    double per_us = (double)(vmstate_clock_ticks() - s->ticks0) / (now - s->ticks0_at + 1);

    s->aimed_at = 0;
    if (!s->cut_at || !s->clock_known || behind <= 0 || behind > CLOCK_BEHIND_MAX) {
        return;
    }
    int64_t more = behind - *added;
    if (vmstate_clock_advance(state->data, state->len, more * 1000,
                              (int64_t)((double)more * per_us))) {
        *added = behind;
        s->aimed_at = now + rise;
        s->risen_at = now;
    }
}

void secondary_clock_runs(Secondary *s)
{
    int64_t now = g_get_monotonic_time(), took = now - s->risen_at;

    s->skew = 0;
    if (!s->aimed_at) {
        return;
    }
    if (took < CLOCK_LEARN_MAX) {
        s->rises[s->n_rises++ % SECONDARY_RISES] = (int32_t)took;
    }
    /* Too early is mended by a wait, too late is not. */
    if (s->aimed_at > now && s->aimed_at - now < CLOCK_WAIT_MAX) {
        g_usleep(s->aimed_at - now);
        now = g_get_monotonic_time();
    }
    s->skew = s->aimed_at - now;
}

static bool load_devices(Secondary *s, GByteArray *state, GError **errp)
{
    g_autofree char *machine =
        g_strdup(options_get_str(colo.child.identity, "machine", ""));
    char *suffix = strstr(machine, "-machine");

    if (suffix) {
        *suffix = 0;
    }
    if (!vmstate_image_write(colo.child.vmst_fd, machine, colo.page_bits, state->data,
                             state->len, errp)) {
        return false;
    }
    dismiss_job(s);
    if (!ready_load(errp) ||
        !child_qmp_ready(colo.qmp, jobs_command, "jobs", errp)) {
        return false;
    }
    child_qmp_forget_events(colo.qmp_save);
    s->job_left = true;
    if (!child_qmp_go(colo.qmp_save, "load", errp) ||
        !child_qmp_wait(colo.qmp_save, "load", LOAD_TIMEOUT_MS, errp) ||
        !child_qmp_wait_event(colo.qmp_save, "JOB_STATUS_CHANGE",
                              "\"status\": \"concluded\", \"id\": \"" LOAD_ID "\"",
                              LOAD_TIMEOUT_MS, errp)) {
        return false;
    }
    return check_job(LOAD_ID, errp);
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

/* RAM and devices of the stopped SVM to the checkpoint in cache and staging. @added: as of
 * advance_clock(), which comes after the pages: how many they are is not to be guessed. */
static bool load(Secondary *s, GByteArray *state, int64_t *added, GError **errp)
{
    s->restored = ram_restore(colo.ram, NULL, errp);
    if (s->restored < 0) {
        return false;
    }
    colo_step("svm-restored");
    if (colo.opts.fail_load && s->epoch >= colo.opts.fail_load) {
        colo_error_set(errp, "no load, as asked by -colo fail-load");
        return false;
    }
    advance_clock(s, state, added);
    return load_devices(s, state, errp) && check_reset(errp);
}

/* RULES 6: a load that failed is tried again, from all of the cache; it is never run. */
static bool load_or_retry(Secondary *s, GByteArray *state, GError **errp)
{
    g_autoptr(GError) first = NULL;
    int64_t added = 0;

    s->unloaded = false;
    if (!load(s, state, &added, &first)) {
        colo_report("loading a checkpoint failed (%s): once more", first->message);
        ram_mark_all(colo.ram);
        if (!load(s, state, &added, errp)) {
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
    g_byte_array_set_size(s->device_held, 0);
    if (s->stand) {
        g_byte_array_append(s->device_held, s->device->data, s->device->len);
    }
    if (!s->stand || !s->standing || g_get_monotonic_time() - s->tried_at > TRIAL_US) {
        return load_or_retry(s, s->device, errp);
    }
    s->restored = ram_restore(colo.ram, NULL, errp);
    if (s->restored < 0) {
        return false;
    }
    colo_step("svm-restored");
    s->unloaded = true;
    return true;
}

bool secondary_rise(Secondary *s, GError **errp)
{
    /* An SVM whose clock cannot be set need not be loaded again for it. */
    if (!s->standing || (!s->unloaded && !s->cut_at)) {
        return true;
    }
    int64_t start = g_get_monotonic_time();
    g_autoptr(GByteArray) state = g_byte_array_sized_new(s->device_held->len);
    g_byte_array_append(state, s->device_held->data, s->device_held->len);
    bool ok = load_or_retry(s, state, errp);
    colo_trace(migration_rise, "epoch=%" G_GUINT64_FORMAT " in %" G_GINT64_FORMAT " us: %s",
               colo.epoch, g_get_monotonic_time() - start, ok ? "ready" : "failed");
    return ok;
}

bool secondary_rise_again(Secondary *s, GError **errp)
{
    return !s->standing || !s->aimed_at ||
           g_get_monotonic_time() - s->aimed_at < CLOCK_LATE || secondary_rise(s, errp);
}

/* Bring the SVM to the checkpoint in staging; it is whole. */
bool secondary_roll_back(Secondary *s, GError **errp)
{
    BlockBarrier barriers[COLO_DISKS_MAX];
    unsigned n = 0;

    if (!barriers_unpack(s->barriers->data, s->barriers->len, barriers, &n, errp)) {
        return false;
    }
    net_lock();
    proxy_rollback_begin(s->epoch);
    net_unlock();
    if (!secondary_ready(s, errp) || (!s->standing && !stop_svm(errp))) {
        return false;
    }
    /* Read by the emulator while RAM is restored and the devices are loaded. */
    if (!child_qmp_ready(colo.qmp, jobs_command, "jobs", errp) ||
        !child_qmp_ready(colo.qmp_cont, cont_command, "cont", errp)) {
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
        secondary_clock_runs(s);
        ok = child_qmp_go(colo.qmp_cont, "cont", errp) &&
             child_qmp_wait(colo.qmp_cont, "cont", LOAD_TIMEOUT_MS, errp);
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
