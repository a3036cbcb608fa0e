/*
 * A forwarder, for primary.c and primary-control.c.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_BLOCK_PRIMARY_INT_H
#define COLO_BLOCK_PRIMARY_INT_H

#include "shared.h"

typedef struct Primary {
    BlockNode *node;
    BlockNode *file;
    NbdClient *client;
    char *name;
    char *error;
    char *generation; /* for the activity logs of both sides */
    bool paired;      /* they have begun it */
    bool peer_flushing, peer_flushed; /* since the log began */
    bool attached;
    bool running; /* protection uses it */
    bool stopped; /* protection has ended without an error of it */
    bool is_shared;
    SharedLog *shared; /* while attached */
    uint64_t sequence;
    uint64_t queued; /* bytes that the secondary has not acknowledged */
    uint64_t queue_memory; /* option: beyond it the guest's writes wait */
    uint64_t queue_timeout; /* option, ms: so long at most */
    unsigned in_flight;
    GSource *patience;
    bool closed;
} Primary;

/** Frees a closed forwarder that nothing uses any more (in_flight). */
void primary_unref(Primary *p);
/** The images whose writes @p forwards; the caller frees. */
GPtrArray *primary_images(Primary *p);

#endif
