/*
 * Jobs: names, states, events, what QMP asks of them.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "job.h"

/* Room singleton, guarded by the block lock. */
static struct {
    GQueue all; /* BlockJob, in order of creation */
    void (*event)(const char *name, JsonObject *data);
} jobs;

static const char *const status_names[] = {
    "created", "running", "paused",   "ready",     "standby",
    "waiting", "pending", "aborting", "concluded",
};

void block_job_set_event_func(void (*fn)(const char *name, JsonObject *data))
{
    jobs.event = fn;
}

static void send_event(const char *name, JsonObject *data)
{
    if (jobs.event) {
        jobs.event(name, data);
    } else {
        json_object_unref(data);
    }
}

static void status_event(BlockJob *job, const char *status)
{
    JsonObject *o = json_object_new();

    json_object_set_string_member(o, "status", status);
    json_object_set_string_member(o, "id", job->id);
    send_event("JOB_STATUS_CHANGE", o);
}

static void set_status(BlockJob *job, JobStatus status)
{
    if (job->status != status) {
        colo_trace(block_job_status, "%s: %s", job->id, status_names[status]);
        job->status = status;
        status_event(job, status_names[status]);
    }
}

static void job_event(BlockJob *job, const char *name)
{
    JsonObject *o = json_object_new();

    json_object_set_string_member(o, "type", job->drv->type);
    json_object_set_string_member(o, "device", job->id);
    json_object_set_int_member(o, "len", job->total);
    json_object_set_int_member(o, "offset", job->done);
    json_object_set_int_member(o, "speed", job->speed);
    if (job->error) {
        json_object_set_string_member(o, "error", job->error);
    }
    send_event(name, o);
}

/* What a job that works is called now. */
static void update_status(BlockJob *job)
{
    set_status(job, job->ready ? (job->paused ? JOB_STANDBY : JOB_READY)
                               : (job->paused ? JOB_PAUSED : JOB_RUNNING));
}

static BlockJob *job_find(const char *id)
{
    for (GList *l = jobs.all.head; l; l = l->next) {
        BlockJob *job = l->data;

        if (!strcmp(job->id, id)) {
            return job;
        }
    }
    return NULL;
}

bool block_job_id_ok(const char *id, GError **errp)
{
    bool ok = g_ascii_isalpha(id[0]);

    for (const char *p = id; *p; p++) {
        ok = ok && (g_ascii_isalnum(*p) || strchr("-._", *p));
    }
    if (!ok) {
        colo_error_set(errp, "Invalid job ID '%s'", id);
    } else if (job_find(id)) {
        colo_error_set(errp, "Job ID '%s' already in use", id);
        ok = false;
    }
    return ok;
}

BlockJob *block_job_new(const BlockJobDriver *drv, const char *id, uint64_t speed,
                        bool auto_finalize, bool auto_dismiss, void *opaque)
{
    BlockJob *job = g_new0(BlockJob, 1);

    job->drv = drv;
    job->opaque = opaque;
    job->id = g_strdup(id);
    job->speed = speed;
    job->auto_finalize = auto_finalize;
    job->auto_dismiss = auto_dismiss;
    job->io_status = "ok";
    g_queue_push_tail(&jobs.all, job);
    status_event(job, "created");
    set_status(job, JOB_RUNNING);
    return job;
}

void block_job_set_ready(BlockJob *job)
{
    job->ready = true;
    update_status(job);
    job_event(job, "BLOCK_JOB_READY");
}

void block_job_io_error(BlockJob *job, bool read, const char *action)
{
    JsonObject *o = json_object_new();

    json_object_set_string_member(o, "device", job->id);
    json_object_set_string_member(o, "operation", read ? "read" : "write");
    json_object_set_string_member(o, "action", action);
    send_event("BLOCK_JOB_ERROR", o);
}

void block_job_stop(BlockJob *job, int err)
{
    job->io_status = err == ENOSPC ? "nospace" : "failed";
    job->paused = true;
    update_status(job);
}

/* --- The end --- */

static void job_dismiss(BlockJob *job)
{
    status_event(job, "null");
    g_queue_remove(&jobs.all, job);
    g_free(job->id);
    g_free(job->error);
    g_free(job);
}

static void job_conclude(BlockJob *job, const char *event)
{
    job_event(job, event);
    set_status(job, JOB_CONCLUDED);
    if (job->auto_dismiss) {
        job_dismiss(job);
    }
}

void block_job_end(BlockJob *job, char *error)
{
    job->opaque = NULL;
    job->error = error;
    job->paused = false;
    if (error || (job->cancel && (job->force || !job->ready))) {
        set_status(job, JOB_ABORTING);
        job_conclude(job, error ? "BLOCK_JOB_COMPLETED" : "BLOCK_JOB_CANCELLED");
        return;
    }
    set_status(job, JOB_WAITING);
    set_status(job, JOB_PENDING);
    if (job->auto_finalize) {
        job_conclude(job, "BLOCK_JOB_COMPLETED");
        return;
    }
    JsonObject *o = json_object_new();
    json_object_set_string_member(o, "type", job->drv->type);
    json_object_set_string_member(o, "id", job->id);
    send_event("BLOCK_JOB_PENDING", o);
}

void block_jobs_shutdown(void)
{
    block_lock();
    jobs.event = NULL;
    g_autoptr(GList) all = g_list_copy(jobs.all.head);
    for (GList *l = all; l; l = l->next) {
        BlockJob *job = l->data;

        if (job->opaque) {
            job->cancel = job->force = job->auto_dismiss = true;
            job->drv->wake(job);
        } else {
            job_dismiss(job);
        }
    }
    g_main_context_wakeup(io_thread_context(block_thread()));
    block_unlock();
    /* A target that does not answer is given up after a second. */
    for (int i = 0; i < 300; i++) {
        block_lock();
        unsigned left = block_mirrors();
        block_unlock();
        if (left == 0) {
            return;
        }
        g_usleep(10000);
    }
    colo_report("a mirror's disk did not let go in 3 s");
}

/* --- Verbs --- */

static const struct {
    const char *name;
    unsigned states; /* in which it is accepted */
} verbs[] = {
#define WORKING                                                                          \
    (1u << JOB_CREATED | 1u << JOB_RUNNING | 1u << JOB_PAUSED | 1u << JOB_READY |        \
     1u << JOB_STANDBY)
    [BLOCK_JOB_CANCEL] = {"cancel", WORKING | 1u << JOB_WAITING | 1u << JOB_PENDING},
    [BLOCK_JOB_FORCE_CANCEL] = {"cancel", WORKING | 1u << JOB_WAITING | 1u << JOB_PENDING},
    [BLOCK_JOB_PAUSE] = {"pause", WORKING},
    [BLOCK_JOB_RESUME] = {"resume", WORKING},
    [BLOCK_JOB_COMPLETE] = {"complete", 1u << JOB_READY},
    [BLOCK_JOB_FINALIZE] = {"finalize", 1u << JOB_PENDING},
    [BLOCK_JOB_DISMISS] = {"dismiss", 1u << JOB_CONCLUDED},
};

static BlockJob *job_get(const char *id, GError **errp)
{
    BlockJob *job = job_find(id);

    if (!job) {
        g_set_error(errp, COLO_ERROR, COLO_ERROR_DEVICE_NOT_ACTIVE,
                    "Block job '%s' not found", id);
    }
    return job;
}

static bool job_accepts(BlockJob *job, const char *verb, unsigned states, GError **errp)
{
    if (!(states >> job->status & 1)) {
        colo_error_set(errp, "Job '%s' in state '%s' cannot accept command verb '%s'",
                       job->id, status_names[job->status], verb);
        return false;
    }
    return true;
}

static void job_cancel(BlockJob *job, bool force)
{
    job->cancel = true;
    job->force |= force;
    if (job->opaque) {
        job->drv->wake(job);
    } else {
        /* Its work is done, it only waits for job-finalize. */
        job->force = true;
        set_status(job, JOB_ABORTING);
        job_conclude(job, "BLOCK_JOB_CANCELLED");
    }
}

static bool job_pause(BlockJob *job, bool pause, GError **errp)
{
    if (job->paused == pause) {
        colo_error_set(errp, pause ? "Job is already paused"
                                   : "Can't resume a job that was not paused");
        return false;
    }
    job->paused = pause;
    job->io_status = "ok";
    update_status(job);
    job->drv->wake(job);
    return true;
}

static bool job_do(BlockJob *job, BlockJobVerb verb, GError **errp)
{
    switch (verb) {
    case BLOCK_JOB_CANCEL:
    case BLOCK_JOB_FORCE_CANCEL:
        job_cancel(job, verb == BLOCK_JOB_FORCE_CANCEL);
        return true;
    case BLOCK_JOB_PAUSE:
    case BLOCK_JOB_RESUME:
        return job_pause(job, verb == BLOCK_JOB_PAUSE, errp);
    case BLOCK_JOB_COMPLETE:
        if (job->cancel || !job->drv->can_complete(job, errp)) {
            return job->cancel; /* it ends already */
        }
        job->complete = true;
        job->drv->wake(job);
        return true;
    case BLOCK_JOB_FINALIZE:
        job_conclude(job, "BLOCK_JOB_COMPLETED");
        return true;
    case BLOCK_JOB_DISMISS:
        job_dismiss(job);
        return true;
    }
    return false;
}

bool block_job_command(const char *id, BlockJobVerb verb, GError **errp)
{
    block_lock();
    BlockJob *job = job_get(id, errp);
    bool ok = job && job_accepts(job, verbs[verb].name, verbs[verb].states, errp) &&
              job_do(job, verb, errp);
    g_main_context_wakeup(io_thread_context(block_thread()));
    block_unlock();
    return ok;
}

bool block_job_set_speed(const char *id, int64_t speed, GError **errp)
{
    block_lock();
    BlockJob *job = job_get(id, errp);
    bool ok = job && job_accepts(job, "set-speed", WORKING, errp);
    if (ok && speed < 0) {
        colo_error_set(errp, "Parameter 'speed' expects a non-negative value");
        ok = false;
    }
    if (ok) {
        job->speed = speed;
        job->drv->wake(job);
    }
    g_main_context_wakeup(io_thread_context(block_thread()));
    block_unlock();
    return ok;
}

bool block_job_exists(const char *id)
{
    block_lock();
    bool found = job_find(id) != NULL;
    block_unlock();
    return found;
}

BlockJobPhase block_job_phase(const char *id)
{
    block_lock();
    BlockJob *job = job_find(id);
    BlockJobPhase phase = !job            ? BLOCK_JOB_GONE
                          : job->parted   ? BLOCK_JOB_PARTED
                          : job->flushing ? BLOCK_JOB_FLUSHES
                                          : BLOCK_JOB_WORKS;
    block_unlock();
    return phase;
}

/* --- Queries --- */

static JsonObject *job_info(BlockJob *job, bool block)
{
    JsonObject *o = json_object_new();

    json_object_set_string_member(o, "status", status_names[job->status]);
    json_object_set_string_member(o, "type", job->drv->type);
    if (job->error) {
        json_object_set_string_member(o, "error", job->error);
    }
    if (!block) {
        json_object_set_string_member(o, "id", job->id);
        json_object_set_int_member(o, "current-progress", job->done);
        json_object_set_int_member(o, "total-progress", job->total);
        return o;
    }
    json_object_set_string_member(o, "device", job->id);
    json_object_set_string_member(o, "io-status", job->io_status);
    json_object_set_int_member(o, "len", job->total);
    json_object_set_int_member(o, "offset", job->done);
    json_object_set_int_member(o, "speed", job->speed);
    if (job->verify) {
        json_object_set_int_member(o, "x-verified", job->verified);
        json_object_set_int_member(o, "x-differed", job->differed);
    }
    json_object_set_boolean_member(o, "auto-finalize", job->auto_finalize);
    json_object_set_boolean_member(o, "auto-dismiss", job->auto_dismiss);
    json_object_set_boolean_member(o, "busy", FALSE);
    json_object_set_boolean_member(o, "paused", job->paused || !job->opaque);
    json_object_set_boolean_member(o, "ready", job->ready && job->opaque);
    return o;
}

static JsonArray *query(bool block)
{
    JsonArray *out = json_array_new();

    block_lock();
    for (GList *l = jobs.all.head; l; l = l->next) {
        json_array_add_object_element(out, job_info(l->data, block));
    }
    block_unlock();
    return out;
}

JsonArray *block_job_query_block(void)
{
    return query(true);
}

JsonArray *block_job_query(void)
{
    return query(false);
}
