/*
 * Xen's control of block replication: start, checkpoint and stop from outside.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Xen's toolstack moves RAM and device state by itself and has QEMU replicate the disks
 * alone. The same works here for whoever does that: disks of ours are started, brought to a
 * checkpoint (on the secondary: all that has arrived; the caller has stopped both guests and
 * the primary's last write was answered, so it has arrived) and stopped. It excludes a
 * migration with x-colo, and that this. Main thread, but for the takeover, which may take long.
 */
#include <string.h>

#include "block/replication.h"
#include "migration/colo.h"
#include "monitor/monitor.h"
#include "qapi-commands.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

/* Room singleton. */
static struct {
    gint mode; /* ColoMode; atomic: a takeover that fails restores it */
    GMutex lock;
    char *error; /* of a disk, since the start; guarded by @lock */
} xen;

bool xen_replication_runs(void)
{
    return g_atomic_int_get(&xen.mode) != COLO_MODE_NONE;
}

static void on_block_event(bool fatal, const char *message, void *opaque)
{
    if (!fatal) {
        return; /* a log that grows: the caller makes the checkpoints */
    }
    g_mutex_lock(&xen.lock);
    if (!xen.error) {
        xen.error = g_strdup(message);
    }
    g_mutex_unlock(&xen.lock);
    colo_report("disk replication failed: %s", message);
}

/* The replication nodes of @mode as barriers of all that has arrived; how many. */
static unsigned disks(const char *mode, BlockBarrier *out)
{
    g_autoptr(JsonNode) all = block_replication_query();
    JsonArray *list = json_node_get_array(all);
    unsigned n = 0;

    for (guint i = 0; i < json_array_get_length(list) && n < COLO_DISKS_MAX; i++) {
        JsonObject *o = json_array_get_object_element(list, i);
        if (strcmp(options_get_str(o, "mode", ""), mode) != 0) {
            continue;
        }
        g_strlcpy(out[n].disk, options_get_str(o, "disk", ""), sizeof(out[n].disk));
        out[n++].sequence = json_object_get_int_member_with_default(o, "arrived", 0);
    }
    return n;
}

static bool start(ColoMode mode, GError **errp)
{
    g_autofree BlockBarrier *b = g_new(BlockBarrier, COLO_DISKS_MAX);
    const char *name = colo_mode_name(mode);

    g_mutex_lock(&colo.lock);
    bool busy = colo.mode != COLO_MODE_NONE;
    g_mutex_unlock(&colo.lock);
    if (!disks(name, b)) {
        return true; /* as in QEMU: none of them were started */
    }
    if (busy || xen_replication_runs()) {
        colo_error_set(errp, busy ? "There's a migration process in progress"
                                  : "Block replication is running");
        return false;
    }
    g_mutex_lock(&xen.lock);
    g_clear_pointer(&xen.error, g_free);
    g_mutex_unlock(&xen.lock);
    if (!(mode == COLO_MODE_PRIMARY ? block_primary_start(on_block_event, NULL, errp)
                                    : block_secondary_start(on_block_event, NULL, errp))) {
        return false;
    }
    g_atomic_int_set(&xen.mode, mode);
    colo_trace(migration_xen_start, "%s", name);
    return true;
}

/* Secondary: the image becomes what the primary's was at its last write. */
static bool commit_arrived(GError **errp)
{
    g_autofree BlockBarrier *b = g_new(BlockBarrier, COLO_DISKS_MAX);
    unsigned n = disks("secondary", b);

    return block_secondary_arrived(b, n, NULL, NULL) && block_secondary_check(b, n, errp) &&
           block_secondary_commit(b, n, errp);
}

bool xen_replication_checkpoint(GError **errp)
{
    bool secondary = g_atomic_int_get(&xen.mode) == COLO_MODE_SECONDARY;

    if (secondary && migration_guest_runs()) {
        colo_error_set(errp, "the guest runs: stop it before its disks go to a checkpoint");
        return false;
    }
    return !secondary || commit_arrived(errp);
}

typedef struct Stop {
    QmpRequest *req;
    bool failover;
} Stop;

static gpointer stop_secondary(gpointer opaque)
{
    g_autofree Stop *s = opaque;
    GError *err = NULL;

    if (s->failover || commit_arrived(&err)) {
        block_secondary_takeover(&err);
    }
    if (err) {
        g_atomic_int_set(&xen.mode, COLO_MODE_SECONDARY); /* to be tried again */
    }
    colo_trace(migration_xen_stop, "secondary%s", s->failover ? ", failover" : "");
    qmp_request_finish(s->req, NULL, err);
    return NULL;
}

QmpResult qmp_xen_set_replication(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                  GError **errp)
{
    bool enable = json_object_get_boolean_member(args, "enable");
    bool primary = json_object_get_boolean_member(args, "primary");

    if (enable && json_object_has_member(args, "failover")) {
        colo_error_set(errp, "Parameter 'failover' is only for stopping replication");
        return QMP_FAILED;
    }
    if (enable) {
        return start(primary ? COLO_MODE_PRIMARY : COLO_MODE_SECONDARY, errp) ? QMP_DONE
                                                                              : QMP_FAILED;
    }
    int mode = g_atomic_int_get(&xen.mode);
    g_atomic_int_set(&xen.mode, COLO_MODE_NONE);
    if (mode == COLO_MODE_PRIMARY) {
        block_primary_stop();
    } else if (mode == COLO_MODE_SECONDARY) {
        Stop *s = g_new(Stop, 1);
        *s = (Stop){req, json_object_get_boolean_member_with_default(args, "failover", FALSE)};
        g_thread_unref(g_thread_new("colo-xen-stop", stop_secondary, s));
        return QMP_PENDING;
    }
    return QMP_DONE;
}

QmpResult qmp_query_xen_replication_status(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                           GError **errp)
{
    JsonObject *o = json_object_new();

    g_mutex_lock(&xen.lock);
    json_object_set_boolean_member(o, "error", xen.error != NULL);
    if (xen.error) {
        json_object_set_string_member(o, "desc", xen.error);
    }
    g_mutex_unlock(&xen.lock);
    *ret = json_node_init_object(json_node_alloc(), o);
    json_object_unref(o);
    return QMP_DONE;
}
