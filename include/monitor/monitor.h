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

#include "qapi/qapi.h"

typedef struct QmpRequest QmpRequest;

typedef enum QmpResult {
    QMP_DONE,    /* *ret is the answer (NULL: {}) */
    QMP_FAILED,  /* *errp says why */
    QMP_PASS,    /* not ours after all: the emulator answers */
    QMP_PENDING, /* qmp_request_finish() or qmp_request_pass() will be called */
} QmpResult;

/** @args: checked against the schema (names, types, required ones), never NULL; borrowed:
 * a handler that returns QMP_PENDING takes a reference if it needs them later. */
typedef QmpResult (*QmpHandler)(QmpRequest *req, JsonObject *args, JsonNode **ret,
                                GError **errp);

/** The descriptor that came with @req (getfd, add-fd), or -1; borrowed. */
int qmp_request_fd(const QmpRequest *req);

/** A command of ours; tables of these end with a NULL name. */
typedef struct QmpCommandInfo {
    const char *name;
    QmpHandler handler;
    const QapiType *args;
    bool allow_oob;
} QmpCommandInfo;

/** Finish a QMP_PENDING request from any thread. Takes @ret (NULL: {}) and @err (NULL:
 * success). */
void qmp_request_finish(QmpRequest *req, JsonNode *ret, GError *err);

/** Finish a QMP_PENDING request by passing its command on to the emulator. Any thread. */
void qmp_request_pass(QmpRequest *req);

/** Called in the main thread with the emulator's answer to a command of ours: exactly one
 * of @ret and @err is set; both borrowed. */
typedef void (*MonitorChildFunc)(JsonNode *ret, const GError *err, void *opaque);

/** Use @table (static) as the commands of ours; before monitor_init(). */
void monitor_set_commands(const QmpCommandInfo *table);

/** Use the commands of the schema: monitor_set_commands(qapi_commands). */
void monitor_register_commands(void);

/**
 * Start: @child_fd is our end of a QMP socket of the emulator (taken over, also on
 * failure). Waits for its greeting and negotiates (blocking, at most 30 s).
 */
bool monitor_init(int child_fd, GError **errp);

/** Part from the emulator: what it was asked for fails. monitor_init() takes another one;
 * users' clients stay. Main thread. */
void monitor_drop_child(void);

/** Send what clients still have to get (at most 0.5 s), close and remove the sockets. */
void monitor_shutdown(void);

/**
 * -qmp / -mon chardev: "stdio"; "unix:PATH[,server=on][,wait=off]"; "tcp:HOST:PORT[,...]";
 * or chardev options "socket,id=..,path=..|host=..,port=..|fd=..[,server=on,wait=off]",
 * "stdio,id=..". A server serves one client at a time; with wait=on (the default of a
 * server) this returns when the first one is there. Without server=on: connects.
 * Call after monitor_init().
 */
bool monitor_add_qmp(const char *spec, bool pretty, GError **errp);

/** A QMP session of this program with itself: the client's end of its connection (the caller's
 * to close), or -1. Main thread; the client must be another, as answers come from here. */
int monitor_open_session(GError **errp);

/** Send a command of ours to the emulator; @fn (may be NULL) gets its answer. @args (may
 * be NULL) is borrowed. Any thread. */
void monitor_child_execute(const char *command, JsonObject *args, MonitorChildFunc fn,
                           void *opaque);

/**
 * The same, waiting up to @timeout_ms (main thread only). Meanwhile only the emulator is
 * listened to: no client's command and no other source of the main context runs. New
 * reference or NULL with @errp.
 */
JsonNode *monitor_child_execute_sync(const char *command, JsonObject *args,
                                     unsigned timeout_ms, GError **errp);

/** Give the emulator a duplicate of descriptor @fd under the name @fdname (its "getfd").
 * The connection to it must be a unix socket. Any thread. */
void monitor_child_send_fd(int fd, const char *fdname, MonitorChildFunc fn, void *opaque);

/** Call @fn once, in the main thread, when the emulator's QMP connection has ended (it
 * died or was told to quit). All its pending commands have failed by then. */
void monitor_set_child_gone(void (*fn)(void *opaque), void *opaque);

/** Send event @name with @data (may be NULL; taken) to every client. Any thread; keeps
 * its order with qmp_request_finish() of the same thread. */
void monitor_event(const char *name, JsonObject *data);

/** Called (main thread) before a user's command goes to the emulator as it is; false with
 * @errp set refuses it. */
typedef bool (*MonitorPassFilter)(const char *command, GError **errp);
void monitor_set_pass_filter(MonitorPassFilter fn);

/** Called for each event of the emulator before clients see it; false hides it. @data may
 * be NULL. Events about jobs and devices whose id starts with "qemu-colo-" are hidden
 * from clients in any case, after the filter saw them. */
typedef bool (*MonitorEventFilter)(const char *name, JsonObject *data, void *opaque);
void monitor_set_event_filter(MonitorEventFilter fn, void *opaque);

#endif
