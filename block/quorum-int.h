/*
 * quorum: what its files share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_BLOCK_QUORUM_INT_H
#define COLO_BLOCK_QUORUM_INT_H

#include "block-int.h"
#include "replication/shared.h"

#define QUORUM_CHILDREN_MAX 32

typedef struct QuorumChild {
    BlockNode *node;
    unsigned index;  /* of its name, children.N: one above the highest when it came */
    unsigned serial; /* the number that QEMU would have given: never one twice */
    bool stale;      /* missed a write that others took */
    gint64 reported; /* when the last QUORUM_REPORT_BAD was sent */
} QuorumChild;

typedef struct Quorum {
    QuorumChild child[QUORUM_CHILDREN_MAX];
    unsigned n;
    unsigned next_serial;
    unsigned threshold;
    bool fifo;
    bool rewrite;
    bool read_only_given;
    bool written; /* by its user, ever */
    SharedLog *shared; /* its one image is another host's too; made by the first forwarder */
    gint64 failure_reported;
    /* rewrite-corrupted: not into the middle of a write, and no write into its middle. */
    unsigned writes;        /* modifying requests in flight */
    uint64_t writes_begun;
    unsigned rewriting;
    GQueue held; /* BlockRequest: modifying ones that wait for the rewriting */
} Quorum;

/* quorum.c */
extern const BlockDriver block_quorum_driver;
/** The children that hold data, which is all but replication's; how many. */
unsigned block_quorum_local(Quorum *q, BlockNode **out);

#endif
