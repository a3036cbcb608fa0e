/*
 * The user's QMP: ours dispatched, the rest passed to the emulator.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Runs in the main thread's default GMainContext. Commands of ours are those in qapi/
 * (*.json); the generator makes a table of their arguments, and each is handled by a C
 * function qmp_<name with underscores>(). A handler may answer, fail, take its time, or
 * pass the command on to the emulator unchanged.
 */
#ifndef COLO_MONITOR_MONITOR_H
#define COLO_MONITOR_MONITOR_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>

typedef struct QmpRequest QmpRequest;

typedef enum QmpResult {
    QMP_DONE,    /* *ret is the answer (NULL: {}) */
    QMP_FAILED,  /* *errp says why */
    QMP_PASS,    /* not ours after all: the emulator answers */
    QMP_PENDING, /* qmp_request_finish() will be called */
} QmpResult;

/** @args: checked against the schema (names, types, required ones); borrowed. */
typedef QmpResult (*QmpHandler)(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                GError **errp);

/** Finish a QMP_PENDING request from any thread. Takes @ret (NULL: {}) and @err (NULL:
 * success). */
void qmp_request_finish(QmpRequest *req, JsonNode *ret, GError *err);

/** Called in the main thread with the emulator's answer to a command of ours: exactly one
 * of @ret and @err is set; both borrowed. */
typedef void (*MonitorChildFunc)(JsonNode *ret, const GError *err, void *opaque);

/**
 * Start: @child_fd is our end of a QMP socket of the emulator (taken over). Waits for its
 * greeting and negotiates (blocking, at most 30 s).
 */
bool monitor_init(int child_fd, GError **errp);
void monitor_shutdown(void);

/** -qmp / -mon chardev: "stdio", "unix:path,server=on,wait=off", "tcp:host:port,server=on,
 * wait=off", or a chardev's options. Call after monitor_init(). */
bool monitor_add_qmp(const char *spec, bool pretty, GError **errp);

/** Send a command of ours to the emulator; @fn (may be NULL) gets its answer. Any thread. */
void monitor_child_execute(const char *command, JsonObject *args, MonitorChildFunc fn,
                           void *opaque);

/** The same, waiting up to @timeout_ms (main thread only; runs the main context
 * meanwhile). New reference or NULL with @errp. */
JsonNode *monitor_child_execute_sync(const char *command, JsonObject *args,
                                     unsigned timeout_ms, GError **errp);

/** Send event @name with @data (may be NULL; taken) to every client. Any thread. */
void monitor_event(const char *name, JsonObject *data);

/** Called for each event of the emulator before clients see it; false hides it. */
typedef bool (*MonitorEventFilter)(const char *name, JsonObject *data, void *opaque);
void monitor_set_event_filter(MonitorEventFilter fn, void *opaque);

#endif
