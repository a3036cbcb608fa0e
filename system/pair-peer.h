/*
 * What the peer says of itself at its pair port.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_SYSTEM_PAIR_PEER_H
#define COLO_SYSTEM_PAIR_PEER_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "util/pair-wire.h"

#define PAIR_DISKS_MAX 64

/* A replicated disk of a side that could be a secondary. */
typedef struct PairPeerDisk {
    char top[64];     /* id of the guest's disk */
    char export[256]; /* its NBD export */
    bool shared;
} PairPeerDisk;

/* What the peer says; without a key anything may be a lie, and it may be old the next moment. */
typedef struct PairPeer {
    char name[64], state[24], role[16];
    bool serves, wants_peer;
    uint64_t epoch, instance;
    PairPeerDisk disks[PAIR_DISKS_MAX];
    unsigned n_disks;
} PairPeer;

/** Ask the peer; blocks up to @timeout_ms. @out is filled where it was heard. NOT_BELIEVED has
 * *@refusal. */
PairHearing pair_peer_ask(const char *host, unsigned port, unsigned timeout_ms,
                          const PairKey *key, PairPeer *out, PairRefusal *refusal,
                          GError **errp);

/** Read @text as such a line: at most PAIR_ANSWER_MAX bytes, nested PAIR_DEPTH_MAX deep. */
bool pair_peer_parse(const char *text, PairPeer *out, GError **errp);

/* --- Who may start to serve; pair-peer.c has the rule --- */

typedef enum PairPermission {
    PAIR_MAY_SERVE,
    PAIR_MAY_NOT,  /* the peer serves, or has what may yet be served */
    PAIR_GIVE_WAY, /* both start, and the peer goes first */
    PAIR_ASK_ON,   /* nobody has said so */
} PairPermission;

/* What a side that is started as primary knows beside the peer's word. */
typedef struct PairKnown {
    bool witness;         /* it decides before the gate opens */
    bool vouched;         /* the operator says that the peer does not serve */
    const char *was;      /* the state file's word; NULL or "none": there is none */
    uint64_t instance;    /* this side's */
} PairKnown;

/** Pure. @peer: valid where @hearing is HEARD. */
PairPermission pair_may_serve(PairHearing hearing, const PairPeer *peer, const PairKnown *known);

#endif
