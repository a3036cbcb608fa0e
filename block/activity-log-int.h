/*
 * What the files of the activity log share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Four maps. What counts is that at any moment the file names at least what differs:
 * dirty: what differs. saved: granules that the file's second map surely has. hot: regions
 * that the file should have. hot_saved: regions that it surely has.
 */
#ifndef COLO_BLOCK_ACTIVITY_LOG_INT_H
#define COLO_BLOCK_ACTIVITY_LOG_INT_H

#include "activity-log-file.h"
#include "activity-log.h"
#include "hook.h"

typedef struct ActivityRegion {
    uint32_t last;    /* ms; when it was written to */
    uint32_t barrier; /* log->barrier then; 0: not since the log was opened */
} ActivityRegion;

struct ActivityLog {
    BlockHook hook; /* first */
    BlockNode *node;
    ActivityLogFile file;
    ActivityLogMode mode;
    DirtyBitmap *dirty, *saved, *hot, *hot_saved;
    ActivityRegion *region;
    uint32_t barrier, committed; /* counts of barriers */
    GQueue waiting;              /* BlockHooked */
    unsigned ahead;
    bool dead, closed, switching;
    int old_fd; /* while the last page is written to it */

    BlockBuf *page_buf;
    uint8_t *page, *dirty_page;
    bool *hot_changed; /* a page of hot regions each */
    bool writing, writing_header;
    DirtyBitmap *hot_writing; /* in the page that is being written */

    bool cooling;
    GSource *timer;
    struct ActivityCool *cool;

    uint64_t waits, hot_writes;
};

uint32_t activity_log_now(void);
bool activity_log_idle(ActivityLog *log, uint64_t region);
/** Write a page of hot regions if one has changed and none is being written. */
void activity_log_write_hot(ActivityLog *log);
void activity_log_free(ActivityLog *log);
void activity_log_failed(ActivityLog *log, const char *what, int err);

/* activity-log-cool.c */

/** Let regions cool that have been left alone. */
void activity_log_cool(ActivityLog *log);

#endif
