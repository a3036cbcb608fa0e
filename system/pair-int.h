/*
 * What the pair's files share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_SYSTEM_PAIR_INT_H
#define COLO_SYSTEM_PAIR_INT_H

#include "migration/migration.h"
#include "system/pair-backoff.h"
#include "system/pair-layout.h"
#include "system/pair-peer.h"
#include "system/pair-qmp.h"
#include "system/pair.h"

typedef enum PairState {
    PAIR_OFF,
    PAIR_IDLE,
    PAIR_WAITING_PEER,
    PAIR_RESYNC,
    PAIR_PROTECTING,
    PAIR_PROTECTED,
    PAIR_BACKOFF,
    PAIR_FAILED,
} PairState;

/* One pair a process. What stands above the lock is constant after the start, or the thread's
 * alone. */
typedef struct Pair {
    PairOptions opts;
    JsonObject *colo; /* that the options' strings belong to */
    PairLayout *layout;
    char *name;
    bool incoming; /* started as a secondary */
    uint64_t instance;
    void (*end)(int status);
    PairPort *port;
    PairKey key; /* of the heartbeat's key-file */
    GThread *thread;
    PairQmp *qmp;

    PairBackoff backoff;
    bool tidy;     /* nothing of an earlier role is in the way of protection */
    bool held;     /* we have stopped the guest, and owe it a cont */
    PairSync sync; /* of this try */
    bool has_run;  /* the guest ran in this process' time */
    char *reported; /* why the peer's last answer was not believed, as it was said */

    GMutex lock; /* guards all below */
    PairState state;
    char detail[400];
    char error[400];  /* of the last try that failed, or "" */
    unsigned attempts; /* since the last protection */
    int64_t next_us;  /* BACKOFF: when the next try begins */
    uint64_t resync_done, resync_total;
    int64_t resync_pause_us; /* guest stopped at the end of the last resynchronisation */
    bool starting;    /* the machine is not there yet */
    bool want_now;    /* x-colo-protect */
    bool hold;        /* x-colo-protect enable=false: nothing by itself */
    int want_sync;    /* PairSync of the next try, -1: the option's */
    bool want_quit;
    char asks[400];   /* STARTING: whose word is waited for, or "" */
    unsigned refused[PAIR_REFUSAL_MAX]; /* answers at the peer's address */
} Pair;

extern Pair pair; /* documented global: one virtual machine a process */

/** Change what is shown, send COLO_PAIR if the state or @detail is new. */
void pair_set_state(PairState s, const char *detail);

/** Whether the thread has to end. */
bool pair_quits(void);

/* Steps: pair-steps.c and pair-resync.c. The pair's thread. Each does only what is not done yet. */

/** A secondary before its primary comes: x-colo, NBD server, exports. */
bool pair_prepare_secondary(Pair *p, GError **errp);

/** After a takeover: the secondary's filters and chardevs go, a primary's chardevs come. */
bool pair_become_primary(Pair *p, GError **errp);

/** After a protection that ended, or a try that failed: jobs, replication children, filters and
 * comparisons go; the guest runs if we had stopped it. */
bool pair_undo(Pair *p, GError **errp);

/** Protect by @peer, which waits. On failure the caller undoes. */
bool pair_protect(Pair *p, const PairPeer *peer, GError **errp);

/** Make the disks equal and replicated. */
bool pair_attach_disks(Pair *p, const PairPeer *peer, GError **errp);

/** Detach them, and end what brought them up to date. */
bool pair_detach_disks(Pair *p, GError **errp);

/** Let the guest run again if it was we who stopped it. */
void pair_let_go(Pair *p);

#endif
