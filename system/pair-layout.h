/*
 * What the pair is made of: disks, filters and chardevs, by the command line.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_SYSTEM_PAIR_LAYOUT_H
#define COLO_SYSTEM_PAIR_LAYOUT_H

#include "system/pair.h"

/* A disk of the guest that is replicated. */
typedef struct PairDisk {
    char *top;    /* the quorum */
    char *export; /* the image's node on a secondary, its export; NULL: the peer says */
    char *node;   /* of the replication child on a primary: replication0 */
    char *job;    /* that brings a new secondary up to date: resync, resync-1 */
    bool shared;
    bool found;   /* the node was there before this try: an operator has made it */
} PairDisk;

typedef struct PairLayout {
    GPtrArray *disks;        /* PairDisk */
    GPtrArray *chardevs;     /* JsonObject: chardev-add for a primary */
    GPtrArray *objects;      /* JsonObject: object-add for protection, in order */
    GPtrArray *streams;      /* char: chardevs on which the secondary has to be */
    GPtrArray *old_objects;  /* char: a secondary's filters, gone after a takeover */
    GPtrArray *old_chardevs; /* char: and their chardevs */
} PairLayout;

/**
 * Read @cl. A side that has a primary's filters keeps them as they are written; one that has a
 * secondary's gets, for its time as a primary, those of the manual: with the manual's ids for
 * the first netdev, and "-1", "-2" behind them for the others. NULL with @errp.
 */
PairLayout *pair_layout_new(const CmdLine *cl, const PairOptions *o, GError **errp);
void pair_layout_free(PairLayout *l);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PairLayout, pair_layout_free)

#endif
