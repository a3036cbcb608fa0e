/*
 * Protection that looks after itself: -colo pair=on.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * docs/devel/pair.rst has the states and the steps.
 */
#ifndef COLO_SYSTEM_PAIR_H
#define COLO_SYSTEM_PAIR_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>

#include "system/cmdline.h"
#include "system/pair-settings.h"

/** Exit statuses of the program beside 0 and 1. */
#define PAIR_STATUS_PEER_SERVES 3   /* start me as secondary */
#define PAIR_STATUS_ROLE_CHANGED 4  /* fenced, or roles changed hands: restart as secondary */

typedef enum PairSync {
    PAIR_SYNC_INCREMENTAL, /* what differs, if both sides know; else all */
    PAIR_SYNC_FULL,        /* all, always */
    PAIR_SYNC_NONE,        /* equal as long as the guest has not written; else incremental */
} PairSync;

/* The keys of -colo that belong to a pair; strings are borrowed from it. */
typedef struct PairOptions {
    bool on;
    bool auto_protect;
    bool peer_off;                     /* the operator vouches: the peer does not serve */
    PairSync sync;
    const char *listen, *peer;         /* addresses on the private network */
    unsigned nbd_port, migrate_port, pair_port;
    unsigned mirror_port, compare_port;
    unsigned in_port, out_port;        /* joined in memory, on the loopback */
    unsigned quiet;                    /* s; so long a protection is no flapping */
    unsigned peer_timeout;             /* ms; as the checkpoint channel's */
    PairSettings settings;
} PairOptions;

/** The keys that pair_options_read() knows, NULL-terminated. */
extern const char *const pair_keys[];

/** A PairSync, or -1. */
int pair_sync_parse(const char *text);

bool pair_options_read(PairOptions *o, JsonObject *colo, GError **errp);

/**
 * Before anything else: listen on the pair port and, if this side is to be the primary, ask the
 * peer, until somebody has said that it may start (pair-peer.c). @poll is called meanwhile and
 * says whether to go on. False: *@status is what the program has to end with, @errp says why. @cl
 * is read and not kept; @end is called with an exit status when this side has to end, from any
 * thread. Without pair=on nothing is done.
 */
bool pair_init(const CmdLine *cl, void (*end)(int status), bool (*poll)(void *opaque),
               int *status, GError **errp);

/** Whether there is pair=on. */
bool pair_on(void);

/** The machine is there: begin to look after the pair. Main thread. */
bool pair_start(GError **errp);

/** The end of the program begins: answer nobody any more. */
void pair_stop(void);

/** Wait for the thread: after migration_shutdown() and monitor_shutdown(), which end all that it
 * may wait for. */
void pair_join(void);

#endif
