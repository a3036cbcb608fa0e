/*
 * Roles change hands on purpose: the primary's part.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * x-colo-switchover makes one checkpoint as any, to have little to do, then the last one: the
 * guest is not let run again after it. Once the secondary has loaded it, all that was said is
 * outside, and this side is made silent; then the word to go on (YIELD) is sent. The secondary's
 * EXIT says that it does: this side is silent for good. Any failure before is the loss of a peer
 * as at other times: the output is held, and arbiter or operator decide who goes on. So there
 * is one voice at each moment, no epoch is lost, and a death of either leaves the other.
 */
#include "migration/arbiter.h"
#include "migration/primary.h"
#include "monitor/monitor.h"
#include "qapi-commands.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

/* Whether any replicated disk is shared: its locks and logs cannot change hands yet. */
static bool has_shared_disk(void)
{
    g_autoptr(JsonArray) disks = block_primary_disks();
    bool shared = false;

    for (guint i = 0; i < json_array_get_length(disks); i++) {
        options_get_bool(json_array_get_object_element(disks, i), "shared", &shared, NULL);
        if (shared) {
            return true;
        }
    }
    return false;
}

QmpResult qmp_x_colo_switchover(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                GError **errp)
{
    bool shared = has_shared_disk();

    g_mutex_lock(&colo.lock);
    bool can = colo.mode == COLO_MODE_PRIMARY && colo.state == COLO_STATE_PROTECTED;
    bool busy = colo.switchover != NULL;
    if (can && !busy && !shared && !colo.guest_off) {
        colo.switchover = req;
        g_cond_broadcast(&colo.cond);
    }
    bool off = colo.guest_off;
    g_mutex_unlock(&colo.lock);
    if (!can) {
        colo_error_set(errp, "x-colo-switchover: this side is no protected primary");
    } else if (busy) {
        colo_error_set(errp, "x-colo-switchover: roles are changing hands already");
    } else if (off) {
        colo_error_set(errp, "x-colo-switchover: the guest has shut down");
    } else if (shared) {
        colo_error_set(errp, "x-colo-switchover: a disk is shared, and its locks cannot change "
                             "hands while both sides live; use x-colo-lost-heartbeat on the "
                             "secondary once this host is off");
    } else {
        return QMP_PENDING;
    }
    return QMP_FAILED;
}

void primary_switchover_failed(const char *why)
{
    g_mutex_lock(&colo.lock);
    QmpRequest *req = g_steal_pointer(&colo.switchover);
    g_mutex_unlock(&colo.lock);
    if (req) {
        qmp_request_finish(req, NULL, g_error_new(COLO_ERROR, COLO_ERROR_GENERIC,
                                                  "the roles have not changed hands: %s", why));
    }
}

bool primary_yield(Channel *ch, GError **errp)
{
    int64_t end = g_get_monotonic_time() + colo.opts.peer_timeout * 1000LL;

    colo_step("yielding");
    colo_silence();
    g_mutex_lock(&colo.lock);
    colo.yielding = true;
    g_mutex_unlock(&colo.lock);
    /* A word that did not go out as a whole was not said. */
    if (!channel_send_text(ch, CHANNEL_YIELD, "the primary hands over", errp)) {
        g_mutex_lock(&colo.lock);
        colo.yielding = false;
        g_mutex_unlock(&colo.lock);
        return false;
    }
    colo_step("yielded");
    g_mutex_lock(&colo.lock);
    while (!colo.peer_failure && !colo.want_quit && !colo.want_exit &&
           g_cond_wait_until(&colo.cond, &colo.lock, end)) {
    }
    colo.yielding = false;
    if (!colo.peer_took_over) {
        g_mutex_unlock(&colo.lock);
        primary_lost("the secondary has not said that it takes over");
        colo_error_set(errp, "the secondary has not said that it takes over");
        return false;
    }
    QmpRequest *req = g_steal_pointer(&colo.switchover);
    g_free(colo.error);
    colo.error = g_strdup("the roles have changed hands");
    colo.reason = "request";
    colo.last_mode = COLO_MODE_PRIMARY;
    colo.was_protected = true;
    g_mutex_unlock(&colo.lock);
    colo_report("the roles have changed hands: this side is silent from here");
    block_primary_lost();
    block_primary_fence();
    colo_emit_exit(COLO_MODE_PRIMARY, "request");
    if (req) {
        qmp_request_finish(req, NULL, NULL);
    }
    colo_set_state(COLO_STATE_FENCED);
    return true;
}
