/*
 * The pair port: who I am, in one line, to whoever asks.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_SYSTEM_PAIR_PORT_H
#define COLO_SYSTEM_PAIR_PORT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define PAIR_DISKS_MAX 64

/* A replicated disk of a side that could be a secondary. */
typedef struct PairPeerDisk {
    char top[64];     /* id of the guest's disk */
    char export[256]; /* its NBD export */
    bool shared;
} PairPeerDisk;

/* What the peer says of itself; anything may be a lie, or old the next moment. */
typedef struct PairPeer {
    char name[64], state[24], role[16];
    bool serves, wants_peer;
    uint64_t epoch, instance;
    PairPeerDisk disks[PAIR_DISKS_MAX];
    unsigned n_disks;
} PairPeer;

typedef struct PairPort PairPort;

/**
 * Listen on @host:@port. @line is called in the port's own thread for each client and returns
 * the text to send (freed with g_free()), so that the answer comes whatever the rest of the
 * program waits for.
 */
PairPort *pair_port_new(const char *host, unsigned port, char *(*line)(void *opaque),
                        void *opaque, GError **errp);
void pair_port_free(PairPort *p);

/** Ask the peer; blocks up to @timeout_ms. *@absent: nobody answered at all. */
bool pair_port_ask(const char *host, unsigned port, unsigned timeout_ms, PairPeer *out,
                   bool *absent, GError **errp);

/** Read @text as such a line. */
bool pair_peer_parse(const char *text, PairPeer *out, GError **errp);

/** Connect to @host:@port within @timeout_ms; a descriptor, or -1. */
int pair_connect(const char *host, unsigned port, unsigned timeout_ms, GError **errp);

#endif
