/*
 * Inside of the net room: NetDev, backends, the child's port, announcements.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_NET_INT_H
#define COLO_NET_INT_H

#include "net/filter.h"
#include "net/net.h"
#include "net/vnet.h"
#include "util/error.h"
#include "util/io-thread.h"
#include "util/options.h"
#include "util/trace.h"

#define NET_BATCH 64          /* frames a dispatch handles before others get a turn */
#define NET_HELD_FRAMES 4096  /* bound of held input and of silenced output */
#define NET_BACKLOG_STOP 256  /* frames waiting for the child: stop reading the outside */
#define NET_BACKLOG_DROP 1024 /* ... and drop what comes all the same */

/* --- Frames that wait with the place where they enter the chain --- */

typedef struct ChainEntry {
    Frame *frame;     /* as it enters the chain */
    Frame *delivered; /* as it left the chain, or NULL */
    NetFilter *after; /* the filter behind which it enters; NULL: the chain's start */
} ChainEntry;

/* A ring of @cap (power of 2) entries; owns the frames. */
typedef struct EntryRing {
    ChainEntry *e;
    unsigned cap, head, count;
} EntryRing;

void entry_ring_init(EntryRing *r, unsigned cap);
void entry_ring_free(EntryRing *r);
void entry_ring_clear(EntryRing *r);
/** Append (taking both references); grows when full. */
void entry_ring_push(EntryRing *r, Frame *f, Frame *delivered, NetFilter *after);
/** Remove the oldest; its references go to the caller. */
ChainEntry entry_ring_pop(EntryRing *r);
static inline ChainEntry *entry_ring_at(EntryRing *r, unsigned i)
{
    return &r->e[(r->head + i) & (r->cap - 1)];
}
/** Where @gone is named, name @instead. */
void entry_ring_replace(EntryRing *r, NetFilter *gone, NetFilter *instead);

/* --- The child's port (child-port.c) --- */

typedef struct ChildPort ChildPort;

/** @rx gets each frame of the guest (taking it); @idle is called when a backlog of
 * frames to the child has gone. */
ChildPort *child_port_new(ColoIoThread *t, void (*rx)(void *opaque, Frame *f),
                          void (*idle)(void *opaque), void *opaque, GError **errp);
void child_port_free(ChildPort *p);
int child_port_child_fd(ChildPort *p);
/** Bytes that the kernel lets wait for us on the child's end, as it charges them. */
uint64_t child_port_capacity(ChildPort *p);
/** @stalled is called when the reader leaves frames unread without reading any. */
void child_port_on_stall(ChildPort *p, void (*stalled)(void *opaque));
/** Queue @delivered (taken); @orig (referenced) entered the chain behind @after. */
void child_port_send(ChildPort *p, Frame *delivered, Frame *orig, NetFilter *after);
void child_port_flush(ChildPort *p);
unsigned child_port_backlog(ChildPort *p);
/** Stop feeding; what the child has not read is appended to @back, oldest first. */
void child_port_hold(ChildPort *p, EntryRing *back);
void child_port_resume(ChildPort *p);
/** Read the guest's output until the socket is empty; number of frames. Paused or not. */
unsigned child_port_drain(ChildPort *p);
/** Read the guest's output no more, or again: its NIC waits when the socket is full. */
void child_port_pause(ChildPort *p, bool pause);
bool child_port_paused(const ChildPort *p);
/** End a pause and read at once all that has come in it; without one, nothing. */
void child_port_catch_up(ChildPort *p);
void child_port_forget_filter(ChildPort *p, NetFilter *gone, NetFilter *instead);

/* --- Backends --- */

typedef struct NetBackend {
    const char *type;
    void (*send)(NetDev *nd, Frame *f); /* takes @f; never blocks: drops */
    void (*throttle)(NetDev *nd, bool stop); /* stop or resume reading; may be NULL */
    void (*close)(NetDev *nd);
} NetBackend;

bool net_tap_open(NetDev *nd, JsonObject *opts, GError **errp);
bool net_bridge_open(NetDev *nd, JsonObject *opts, GError **errp);
bool net_user_open(NetDev *nd, JsonObject *opts, GError **errp);
bool net_socket_open(NetDev *nd, JsonObject *opts, GError **errp);
bool net_stream_open(NetDev *nd, JsonObject *opts, GError **errp);

/* --- Announcements (announce.c) --- */

typedef struct AnnounceTable AnnounceTable;
AnnounceTable *announce_table_new(void);
void announce_table_free(AnnounceTable *t);
/** Learn the sender of a guest's frame. */
void announce_learn(AnnounceTable *t, const Frame *f);
void announce_set_mac(AnnounceTable *t, const uint8_t mac[6]);
/** Announce the addresses of the NICs @names (NULL-terminated; NULL: of all), once, where
 * this side's role lets it speak. */
void announce_nics(char **names);
/** End all of net_announce_self(). */
void announce_self_shutdown(void);

/** Call @fn with each announcement (taking it). */
void announce_each(AnnounceTable *t, void (*fn)(Frame *f, void *opaque), void *opaque);

/* --- NetDev --- */

typedef struct NetDevStats {
    uint64_t tx_frames, tx_bytes; /* delivered to the guest's port */
    uint64_t rx_frames, rx_bytes; /* taken from the guest */
    uint64_t out_frames;          /* sent to the outside */
    uint64_t dropped_gate;        /* by role */
    uint64_t dropped_full;        /* input over its bound */
    uint64_t dropped_backend;     /* the outside did not take them */
    uint64_t nudges;              /* the NIC slept over unread frames and was woken */
    uint64_t taken_back;          /* unread by the guest at a hold */
    VnetStats vnet;               /* what the backend left to us */
} NetDevStats;

struct NetDev {
    char *id;
    char *nic; /* -device id=, or NULL */
    const NetBackend *ops;
    void *backend;
    ChildPort *port;
    GPtrArray *filters; /* of NetFilter, in list order; not owned */
    bool held;          /* input is held */
    bool discard_output;
    uint64_t charge_at_hold; /* of the guest's output, see proxy_output_was_tight() */
    bool throttled;
    bool has_mac;
    EntryRing back;  /* taken back at the hold, to be run again */
    EntryRing input; /* came while held */
    FrameQueue kept; /* output that the gate keeps */
    AnnounceTable *addrs;
    NetDevStats stats;
    /* The frame that runs through the chain towards the guest. */
    Frame *cur_orig;
    NetFilter *cur_after;
};

/** All NetDevs; borrowed. */
GPtrArray *netdev_list(void);

/* --- The gate (gate.c) --- */

/** A frame to the outside (taken), through the gate. */
void netdev_output(NetDev *nd, Frame *f);
/** The role is ALONE again, as before net_init(); there are no NetDevs. */
void net_gate_reset(void);

/* --- Frames of a NetDev (net.c) --- */

/** A frame from the outside (taken): gate, hold, bound, chain. */
void netdev_input(NetDev *nd, Frame *f);
/** A frame towards the guest that enters behind @after; held if input is. */
void netdev_tx(NetDev *nd, Frame *f, NetFilter *after);
/** A frame from the guest (taken) that enters behind @after (in rx direction). */
void netdev_rx(NetDev *nd, Frame *f, NetFilter *after);
void netdev_hold(NetDev *nd);
void netdev_release(NetDev *nd);
/** Drop everything held (a roll-back). */
void netdev_discard_input(NetDev *nd);
/** Before @nf leaves the list: waiting frames that name it enter behind its neighbour. */
void netdev_forget_filter(NetDev *nd, NetFilter *nf);

#endif
