/*
 * The heartbeat: what the two controllers need of it.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * All of it does nothing where there is no colo-heartbeat. Any thread; colo.lock may be held
 * (the heartbeat's lock is below it), unless said otherwise.
 */
#ifndef COLO_MIGRATION_HEARTBEAT_H
#define COLO_MIGRATION_HEARTBEAT_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "migration/heartbeat-codec.h"
#include "migration/heartbeat-state.h"
#include "util/key-file.h"

/** Let the beats begin: the controller's state exists. */
void heartbeat_start(void);

/** Say @word on every link, several times, and end the thread. No lock held. */
void heartbeat_shutdown(BeatWord word);

/** The emulator is dead: shut the gate and say so at once, several times. */
void heartbeat_emulator_died(void);

/** Into a greeting: what the peer must know of ours. */
void heartbeat_greet(JsonObject *hello);

/** From the peer's greeting: both sides have one, or none, and they agree; from here on only
 * that process' beats count. */
bool heartbeat_meet(JsonObject *hello, GError **errp);

/** Primary, before the peer may take over: wait up to @ms until it is heard, then let the gate
 * go by the lease. Blocks; no lock held. */
bool heartbeat_arm(unsigned ms, GError **errp);

/** Primary: true shuts the gate, and the peer is told, at once; no heartbeat is needed. It
 * opens by heartbeat_end_round(). */
void heartbeat_set_silent(bool silent);

/** Secondary: nothing new is echoed from here on. */
void heartbeat_stop_vouching(void);

/** Secondary: for how long (us) the primary may still speak; 0: it is silent. */
int64_t heartbeat_peer_lease_left(void);

/** Whether the peer of this round said last that it serves alone. */
bool heartbeat_peer_serves(void);

/** The round is over: anybody's beats count again, the gate is free of the lease. */
void heartbeat_end_round(void);

/** Member "heartbeat" of query-colo-status. */
void heartbeat_describe(JsonObject *status);

/* --- Implemented by the controller; called by the heartbeat's thread, no lock held --- */

/** The process that this side is protected with is lost, or said that it ends. @word: ALIVE
 * where it said nothing. */
void colo_heartbeat_lost(const char *why, BeatWord word);

/* What a beat carries of the controller. */
typedef struct HeartbeatSelf {
    uint8_t role, state;
    bool serving;
    uint64_t epoch;
} HeartbeatSelf;

/** Never blocks: false where it cannot be had now. */
bool colo_heartbeat_self(HeartbeatSelf *out);

/** Somebody may wait for what the peer said: wake him, and look at it. */
void colo_heartbeat_changed(void);

/* --- Inside: heartbeat-options.c to heartbeat.c --- */

typedef struct HeartbeatLink {
    char *local, *peer; /* as they were given */
    int fd;             /* bound and connected */
} HeartbeatLink;

typedef struct HeartbeatOptions {
    char *id;
    uint8_t key[KEY_BYTES_MAX];
    size_t key_len; /* 0: none */
    char *key_file;
    uint64_t interval_ms, timeout_ms;
    unsigned n_links;
    HeartbeatLink links[HEART_LINKS_MAX];
} HeartbeatOptions;

/** Read the options, the key, and open the sockets. */
bool heartbeat_options_read(HeartbeatOptions *o, JsonObject *opts, GError **errp);
void heartbeat_options_clear(HeartbeatOptions *o);

#endif
