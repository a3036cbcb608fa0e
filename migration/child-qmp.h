/*
 * The checkpoint thread's own QMP connection to the emulator.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Synchronous, used by one thread at a time. Replies are matched by id with plain text
 * search, so that nothing is parsed or allocated between stop and cont.
 */
#ifndef COLO_MIGRATION_CHILD_QMP_H
#define COLO_MIGRATION_CHILD_QMP_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>

typedef struct ChildQmp ChildQmp;

/** Take over @fd, read the greeting (up to 30 s) and negotiate. */
ChildQmp *child_qmp_new(int fd, GError **errp);
void child_qmp_free(ChildQmp *q);

/** Write @text: one or more commands, each with an "id" of the caller's choice. */
bool child_qmp_send(ChildQmp *q, const char *text, GError **errp);

/** As child_qmp_send(), but the last command of @text lacks its end and is not obeyed before
 * child_qmp_go(). Any other command sent before that spoils it: its answer is an error. The
 * emulator reads it meanwhile, which is what takes long. @text ends with "}\n". */
bool child_qmp_hold(ChildQmp *q, const char *text, GError **errp);

/** Read what has come, and hold @text of @id unless it is held already. */
bool child_qmp_ready(ChildQmp *q, const char *text, const char *id, GError **errp);

/** Whether the command of @id is held. */
bool child_qmp_holds(const ChildQmp *q, const char *id);

/** Let the held command of @id be obeyed. Nothing is allocated. */
bool child_qmp_go(ChildQmp *q, const char *id, GError **errp);

/** Read what has come. A connection that is never read grows in the emulator's memory, as each
 * gets all events. */
void child_qmp_drain(ChildQmp *q);

/** As child_qmp_wait(), but also until @event comes: 1 the reply came, 0 the event, -1 error. */
int child_qmp_wait_either(ChildQmp *q, const char *id, const char *event, int timeout_ms,
                          GError **errp);

/** Wait for the reply with string id @id; an error reply becomes @errp. */
bool child_qmp_wait(ChildQmp *q, const char *id, int timeout_ms, GError **errp);

/** Send command @text (it must carry "id":"<id>") and return its "return" member. */
JsonNode *child_qmp_query(ChildQmp *q, const char *text, const char *id, GError **errp);

/** The "return" member of the reply with string id @id, up to 30 s from now. */
JsonNode *child_qmp_reply(ChildQmp *q, const char *id, GError **errp);

/** Wait for event @name whose line contains @needle (NULL: any). Events that came since
 * child_qmp_forget_events() count. */
bool child_qmp_wait_event(ChildQmp *q, const char *name, const char *needle,
                          int timeout_ms, GError **errp);
void child_qmp_forget_events(ChildQmp *q);

/** Whether the emulator has closed its end: it is dead. Any thread; does not read. */
bool child_qmp_ended(const ChildQmp *q);

#endif
