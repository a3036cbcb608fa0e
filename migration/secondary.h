/*
 * The secondary's controller: what its files share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_SECONDARY_H
#define COLO_MIGRATION_SECONDARY_H

#include "migration/colo.h"

#define SECONDARY_RISES 16

typedef struct Secondary {
    Channel *ch;
    bool in_checkpoint; /* between BEGIN and the end of its load */
    uint64_t epoch;     /* of that checkpoint */
    bool running;       /* the guest runs in it */
    bool stand;         /* the SVM stands still in it: the buffered mode */
    uint64_t pages;     /* received in it */
    RamReceiver *receiver; /* of the data channels, or NULL */
    RamDecoder *decoder;   /* for pages on the control channel */
    uint64_t sync_pass, sync_mask; /* what the last SYNC said */
    GByteArray *device, *proxy, *barriers;
    GByteArray *device_held; /* of the last checkpoint, while @unloaded */
    bool standing;      /* the SVM stands still since the last checkpoint */
    bool job_left;      /* the emulator has the job of the last load */
    bool unloaded;      /* and its devices are still those of an earlier one */
    int64_t tried_at;   /* when devices were loaded last */
    int64_t cut_at;     /* our clock, us, when the PVM went on from the last checkpoint, or 0 */
    int64_t aimed_at;   /* when an SVM that was loaded must go on for its clock to be right, or 0 */
    int32_t rises[SECONDARY_RISES]; /* us from the choice of @aimed_at until it could go on */
    unsigned n_rises;   /* how many there were; the array holds the last ones */
    int64_t risen_at;   /* when @aimed_at was chosen */
    int64_t skew;       /* us that the SVM's clock was ahead when it went on */
    uint64_t ticks0;    /* this host's TSC */
    int64_t ticks0_at;  /* and clock, at the start */
    bool clock_known;   /* the emulator is one whose saved clocks can be set (TCG) */
    int64_t restored;   /* pages that the roll-back changed */
    uint64_t wrong;     /* pages that differ from the primary's (test option) */
    bool broken;        /* a roll-back failed: the SVM must never run again */
    bool peer_goes_on;  /* the primary said that it leaves protection by itself */
    bool peer_died;     /* the primary said that its emulator died */
    bool yielded;       /* the primary gives the guest to us */
    bool guest_off;     /* and that the guest has shut down */
} Secondary;

/** Drop what has come of a checkpoint that will not be loaded. */
void secondary_reset_staging(Secondary *s);

/** Bring the SVM to the checkpoint in staging, which is whole and acknowledged. After a failure
 * it must never run again. */
bool secondary_roll_back(Secondary *s, GError **errp);

/** Off the path: the commands that the next roll-back begins with go to the emulator, which
 * reads slowly, but for their last byte each; what the last one left there is cleared away. */
bool secondary_ready(Secondary *s, GError **errp);

/** The primary is lost: give an SVM that stands the devices of the last checkpoint, so that it
 * can go on from there. False: it cannot. */
bool secondary_rise(Secondary *s, GError **errp);

/** The same once more if that was so long ago that its clock would be behind by more than
 * a few milliseconds. */
bool secondary_rise_again(Secondary *s, GError **errp);

/** Find out whether the SVM's clock can be set. */
void secondary_clock_init(Secondary *s);

/** The SVM goes on just now: how far is its clock from where it was aimed? */
void secondary_clock_runs(Secondary *s);

/** Deal with one message; false with @errp: the connection is over. */
bool secondary_handle(Secondary *s, const ChannelMsg *msg, GError **errp);

#endif
