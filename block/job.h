/*
 * A job's life, as those who do the work see it.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * created -> running -> ready -> waiting -> pending -> concluded -> (gone), with paused
 * and standby beside running and ready, and aborting instead of waiting and pending where
 * it failed or was cancelled. Each change is an event. The names are QEMU's.
 */
#ifndef COLO_BLOCK_JOB_PRIVATE_H
#define COLO_BLOCK_JOB_PRIVATE_H

#include "block-int.h"
#include "block/job.h"

typedef enum JobStatus {
    JOB_CREATED,
    JOB_RUNNING,
    JOB_PAUSED,
    JOB_READY,
    JOB_STANDBY,
    JOB_WAITING,
    JOB_PENDING,
    JOB_ABORTING,
    JOB_CONCLUDED,
} JobStatus;

typedef struct BlockJob BlockJob;

typedef struct BlockJobDriver {
    const char *type;
    /** The job was paused, resumed, cancelled, asked to complete, or its speed changed. */
    void (*wake)(BlockJob *job);
    /** Whether it can complete in a way other than being cancelled; or @errp. */
    bool (*can_complete)(BlockJob *job, GError **errp);
} BlockJobDriver;

struct BlockJob {
    const BlockJobDriver *drv;
    void *opaque; /* the driver's; NULL from its end on */
    char *id;
    JobStatus status;
    uint64_t speed;       /* bytes a second, 0: any */
    uint64_t done, total; /* bytes */
    bool verify;          /* these count: */
    uint64_t verified, differed;
    bool ready;           /* once it was */
    bool paused, cancel, force, complete;
    bool flushing;        /* its target is asked to make all durable */
    bool parted;          /* it takes nothing of the guest's any more */
    bool auto_finalize, auto_dismiss;
    const char *io_status;
    char *error;
};

/** Whether @id may name a new job. */
bool block_job_id_ok(const char *id, GError **errp);
/** A new job, running. */
BlockJob *block_job_new(const BlockJobDriver *drv, const char *id, uint64_t speed,
                        bool auto_finalize, bool auto_dismiss, void *opaque);
void block_job_set_ready(BlockJob *job);
/** BLOCK_JOB_ERROR: @read or write of it failed and @action is what follows. */
void block_job_io_error(BlockJob *job, bool read, const char *action);
/** Pause because of an I/O error. */
void block_job_stop(BlockJob *job, int err);
/** The work has ended; @error (taken) says why if it failed. The job may be gone. */
void block_job_end(BlockJob *job, char *error);
/** Cancel all and wait until they let go of their disks. Without the lock. */
void block_jobs_shutdown(void);

/* mirror.c */

/** How many mirrors hold nodes. */
unsigned block_mirrors(void);

#endif
