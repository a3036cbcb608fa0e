/*
 * Jobs on disks: ours by the block room, others the emulator's.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A job or device that is not ours goes to the emulator, whose error it then is.
 */
#include "block/block.h"
#include "block/job.h"
#include "qapi-commands.h"

static QmpResult result(bool ok)
{
    return ok ? QMP_DONE : QMP_FAILED;
}

static void send_event(const char *name, JsonObject *data)
{
    monitor_event(name, data);
}

static QmpResult mirror(JsonObject *args, bool drive, GError **errp)
{
    if (!block_node_exists(json_object_get_string_member(args, "device"))) {
        return QMP_PASS;
    }
    block_job_set_event_func(send_event);
    return result(block_mirror_start(args, drive, errp));
}

QmpResult qmp_drive_mirror(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    return mirror(args, true, errp);
}

QmpResult qmp_blockdev_mirror(QmpRequest *req, JsonObject *args, JsonNode **ret,
                              GError **errp)
{
    return mirror(args, false, errp);
}

static QmpResult command(JsonObject *args, const char *key, BlockJobVerb verb, GError **errp)
{
    const char *id = json_object_get_string_member(args, key);

    return block_job_exists(id) ? result(block_job_command(id, verb, errp)) : QMP_PASS;
}

QmpResult qmp_block_job_cancel(QmpRequest *req, JsonObject *args, JsonNode **ret,
                               GError **errp)
{
    bool force = json_object_get_boolean_member_with_default(args, "force", FALSE);

    return command(args, "device", force ? BLOCK_JOB_FORCE_CANCEL : BLOCK_JOB_CANCEL, errp);
}

#define JOB_COMMAND(name, key, verb)                                                       \
    QmpResult qmp_##name(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp) \
    {                                                                                      \
        return command(args, key, verb, errp);                                             \
    }

JOB_COMMAND(block_job_pause, "device", BLOCK_JOB_PAUSE)
JOB_COMMAND(block_job_resume, "device", BLOCK_JOB_RESUME)
JOB_COMMAND(block_job_complete, "device", BLOCK_JOB_COMPLETE)
JOB_COMMAND(block_job_finalize, "id", BLOCK_JOB_FINALIZE)
JOB_COMMAND(block_job_dismiss, "id", BLOCK_JOB_DISMISS)
/* QEMU's job-cancel never completes a mirror, not even a ready one. */
JOB_COMMAND(job_cancel, "id", BLOCK_JOB_FORCE_CANCEL)
JOB_COMMAND(job_pause, "id", BLOCK_JOB_PAUSE)
JOB_COMMAND(job_resume, "id", BLOCK_JOB_RESUME)
JOB_COMMAND(job_complete, "id", BLOCK_JOB_COMPLETE)
JOB_COMMAND(job_finalize, "id", BLOCK_JOB_FINALIZE)
JOB_COMMAND(job_dismiss, "id", BLOCK_JOB_DISMISS)

QmpResult qmp_block_job_set_speed(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                  GError **errp)
{
    const char *id = json_object_get_string_member(args, "device");

    if (!block_job_exists(id)) {
        return QMP_PASS;
    }
    return result(block_job_set_speed(id, json_object_get_int_member(args, "speed"), errp));
}

/* --- Queries: ours, and the emulator's behind them --- */

typedef struct JobQuery {
    QmpRequest *req;
    JsonArray *ours;
} JobQuery;

static void child_jobs(JsonNode *ret, const GError *err, void *opaque)
{
    JobQuery *q = opaque;
    JsonArray *theirs = ret && JSON_NODE_HOLDS_ARRAY(ret) ? json_node_get_array(ret) : NULL;

    for (guint i = 0; theirs && i < json_array_get_length(theirs); i++) {
        json_array_add_element(q->ours, json_node_copy(json_array_get_element(theirs, i)));
    }
    JsonNode *all = json_node_init_array(json_node_alloc(), q->ours);
    json_array_unref(q->ours);
    qmp_request_finish(q->req, all, NULL);
    g_free(q);
}

static QmpResult query(QmpRequest *req, const char *name, JsonArray *ours)
{
    JobQuery *q = g_new(JobQuery, 1);

    *q = (JobQuery){req, ours};
    monitor_child_execute(name, NULL, child_jobs, q);
    return QMP_PENDING;
}

QmpResult qmp_query_block_jobs(QmpRequest *req, JsonObject *args, JsonNode **ret,
                               GError **errp)
{
    return query(req, "query-block-jobs", block_job_query_block());
}

QmpResult qmp_query_jobs(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    return query(req, "query-jobs", block_job_query());
}
