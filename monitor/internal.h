/*
 * What the files of monitor/ share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Everything here runs in the main thread. Other threads come in through
 * monitor_post(), which keeps the order of one thread's calls.
 */
#ifndef COLO_MONITOR_INTERNAL_H
#define COLO_MONITOR_INTERNAL_H

#include "monitor/json-text.h"
#include "monitor/monitor.h"

typedef struct QmpClient QmpClient;
typedef struct QmpServer QmpServer;
typedef struct ChildCall ChildCall;

struct QmpRequest {
    QmpClient *client; /* NULL once it has gone: the answer is dropped */
    GString *text;     /* the whole command; the spans point into it */
    JsonSpan id;       /* text NULL: none */
    JsonSpan arguments;
    char *name;
    bool oob;
    int fd;        /* a descriptor that came along, or -1 */
    GError *error; /* it was wrong from the start */
};

/* Run @fn in the main thread: at once if we are there, after what others have posted. */
void monitor_post(GSourceFunc fn, void *opaque);

/* --- requests (dispatch.c) --- */

/* Make a request of one text (taken); a wrong one has @error set. */
QmpRequest *qmp_request_new(QmpClient *client, GString *text);
QmpRequest *qmp_request_new_error(QmpClient *client, GError *err);
void qmp_request_free(QmpRequest *req);

/* Carry out @req; sooner or later qmp_client_answer() gets it back. */
void qmp_dispatch(QmpRequest *req);

/* --- clients (client.c) --- */

/* @in_fd and @out_fd (may be the same) are taken. @gone is called once at its end, unless
 * qmp_client_close() was. */
QmpClient *qmp_client_new(int in_fd, int out_fd, bool pretty,
                          void (*gone)(void *opaque), void *opaque);
void qmp_client_close(QmpClient *c);

/* Send and free the answer "key": value to @req ("return" or "error"); frees @req. */
void qmp_client_answer(QmpRequest *req, const char *key, JsonSpan value);
void qmp_client_answer_error(QmpRequest *req, const GError *err);

/* The state of negotiation. */
bool qmp_client_ready(QmpClient *c);
bool qmp_client_oob(QmpClient *c);
void qmp_client_negotiated(QmpClient *c, bool oob);
unsigned qmp_client_number(QmpClient *c);

/* A descriptor that the client sent along, or -1; the caller owns it. */
int qmp_client_take_fd(QmpClient *c);

/* One line to every negotiated client. */
void qmp_clients_broadcast(const char *line);

/* Wait until all output is written, at most @ms; close all. */
void qmp_clients_shutdown(unsigned ms);

/* --- servers (server.c) --- */

/* Append what query-chardev says of them. */
void qmp_servers_query(JsonArray *out);
void qmp_servers_shutdown(void);

/* --- the emulator (child.c) --- */

bool child_init(int fd, GError **errp);
void child_shutdown(void);
bool child_is_gone(void);

/* Its greeting, one line; and whether it offers out-of-band commands. */
const char *child_greeting(void);
bool child_has_oob(void);

/* Pass @req on; its answer goes to qmp_client_answer(). */
void child_forward(QmpRequest *req);

/* --- events (events.c) --- */

/* Whether @id is of a thing that we made in the emulator for ourselves. */
bool is_private(const char *id);

void events_from_child(JsonSpan text);

#endif
