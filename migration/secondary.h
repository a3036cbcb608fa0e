/*
 * The secondary's controller: what its files share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_SECONDARY_H
#define COLO_MIGRATION_SECONDARY_H

#include "migration/colo.h"

typedef struct Secondary {
    Channel *ch;
    bool in_checkpoint; /* between BEGIN and the end of its load */
    uint64_t epoch;     /* of that checkpoint */
    bool running;       /* the guest runs in it */
    bool stand;         /* the SVM stands still in it: the buffered mode */
    uint64_t pages;     /* received in it */
    GByteArray *device, *proxy, *barriers;
    GByteArray *device_held; /* of the last checkpoint, while @unloaded */
    bool standing;      /* the SVM stands still since the last checkpoint */
    bool unloaded;      /* and its devices are still those of an earlier one */
    int64_t tried_at;   /* when devices were loaded last */
    int64_t restored;   /* pages that the roll-back changed */
    uint64_t wrong;     /* pages that differ from the primary's (test option) */
    bool broken;        /* a roll-back failed: the SVM must never run again */
    bool peer_goes_on;  /* the primary said that it leaves protection by itself */
    bool yielded;       /* the primary gives the guest to us */
    bool guest_off;     /* and that the guest has shut down */
} Secondary;

/** Drop what has come of a checkpoint that will not be loaded. */
void secondary_reset_staging(Secondary *s);

/** The primary is lost: give an SVM that stands the devices of the last checkpoint, so that it
 * can go on from there. False: it cannot. */
bool secondary_rise(Secondary *s, GError **errp);

/** Deal with one message; false with @errp: the connection is over. */
bool secondary_handle(Secondary *s, const ChannelMsg *msg, GError **errp);

#endif
