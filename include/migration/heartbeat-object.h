/*
 * colo-heartbeat objects: what the command line and the monitor need of them.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * -object colo-heartbeat,id=ID,local=ADDR:PORT,peer=ADDR:PORT[,interval=MS][,timeout=MS]
 * [,key-file=FILE][,links.N.local=ADDR:PORT,links.N.peer=ADDR:PORT]. One a process. Main
 * thread.
 */
#ifndef COLO_MIGRATION_HEARTBEAT_OBJECT_H
#define COLO_MIGRATION_HEARTBEAT_OBJECT_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>

static inline bool heartbeat_object_wants(const char *qom_type)
{
    return g_str_equal(qom_type, "colo-heartbeat");
}

/** @opts: {qom-type, id, ...}. Binds the links' sockets; beats begin with migration_init(),
 * or at once after it. */
bool heartbeat_object_add(JsonObject *opts, GError **errp);
bool heartbeat_object_exists(const char *id);
/** Refused while a pair is protected by it. */
bool heartbeat_object_del(const char *id, GError **errp);
JsonNode *heartbeat_object_get(const char *id, const char *property, GError **errp);

/** [{name, type}] as of qom-list-properties. */
JsonArray *heartbeat_object_properties(void);

/** Append a {name, type: "child<...>"} for the one that there is. */
void heartbeat_objects_list(JsonArray *out);

#endif
