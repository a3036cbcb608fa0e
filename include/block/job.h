/*
 * Jobs on disks: the mirror, and what QMP asks of any job.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Jobs live in the block thread. All functions take its lock themselves; any thread but
 * the block thread may call them.
 */
#ifndef COLO_BLOCK_JOB_H
#define COLO_BLOCK_JOB_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>

/** @fn sends an event; called in any thread, under the block lock: it must only post.
 * @data is taken. */
void block_job_set_event_func(void (*fn)(const char *name, JsonObject *data));

typedef enum BlockJobVerb {
    BLOCK_JOB_CANCEL,
    BLOCK_JOB_FORCE_CANCEL,
    BLOCK_JOB_PAUSE,
    BLOCK_JOB_RESUME,
    BLOCK_JOB_COMPLETE,
    BLOCK_JOB_FINALIZE,
    BLOCK_JOB_DISMISS,
} BlockJobVerb;

/** Whether job @id is one of ours. */
bool block_job_exists(const char *id);

/** What is known of a job beyond QMP's words. */
typedef enum BlockJobPhase {
    BLOCK_JOB_GONE,
    BLOCK_JOB_WORKS,
    BLOCK_JOB_FLUSHES, /* the same, and for its target's flush it waits */
    BLOCK_JOB_PARTED,  /* the target is the copy of a moment that is over; a flush may be due */
} BlockJobPhase;

BlockJobPhase block_job_phase(const char *id);
bool block_job_command(const char *id, BlockJobVerb verb, GError **errp);
/** @speed: bytes a second, 0 without limit. */
bool block_job_set_speed(const char *id, int64_t speed, GError **errp);

/** query-block-jobs and query-jobs. */
JsonArray *block_job_query_block(void);
JsonArray *block_job_query(void);

/**
 * drive-mirror (@drive: "target" is a file's name or an NBD URI) or blockdev-mirror
 * ("target" is a node) with the arguments of QMP. May wait for the target as
 * block_node_add() does.
 */
bool block_mirror_start(JsonObject *args, bool drive, GError **errp);

#endif
