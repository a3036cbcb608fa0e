/*
 * The pair's own QMP session with this program's monitor.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What looks after the pair says what an operator would type, to the same handlers. Used by
 * one thread, which is not the main thread.
 */
#ifndef COLO_SYSTEM_PAIR_QMP_H
#define COLO_SYSTEM_PAIR_QMP_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>

typedef struct PairQmp PairQmp;

/** @fd: a client's end of a QMP connection; taken over. Does not wait. */
PairQmp *pair_qmp_new(int fd);
void pair_qmp_free(PairQmp *q);

/** Read the greeting and negotiate. */
bool pair_qmp_begin(PairQmp *q, GError **errp);

/** Run @command with @args (may be NULL; taken). *@ret (@ret may be NULL): a new reference. */
bool pair_qmp_run(PairQmp *q, const char *command, JsonObject *args, JsonNode **ret,
                  GError **errp);

/** The same, the arguments as printf-style JSON; values must need no escape. */
bool pair_qmp_do(PairQmp *q, const char *command, GError **errp, const char *fmt, ...)
    G_GNUC_PRINTF(4, 5);

/** A line of the human monitor; its "Error: ..." becomes @errp. */
bool pair_qmp_human(PairQmp *q, GError **errp, const char *fmt, ...) G_GNUC_PRINTF(3, 4);

/** Take in the events that came meanwhile. */
void pair_qmp_drain(PairQmp *q);

/** Why job @id ended, as its last event said: borrowed, NULL if it did not fail. */
const char *pair_qmp_job_error(PairQmp *q, const char *id);
void pair_qmp_forget_jobs(PairQmp *q);

#endif
