/*
 * The primary's controller: what its files share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_PRIMARY_H
#define COLO_MIGRATION_PRIMARY_H

#include "migration/colo.h"
#include "migration/priority.h"

/* What one checkpoint carries beside RAM; allocated once. */
typedef struct Capture {
    Priority *priority;
    uint8_t *device; /* VMSTATE_IMAGE_MAX bytes */
    size_t device_len;
    GBytes *proxy;
    BlockBarrier barriers[COLO_DISKS_MAX];
    unsigned n_barriers;
    bool running;
    bool last; /* the guest is not let run again: roles change hands */
    bool standing; /* the SVM is to stand still in the epoch that begins */
    int64_t pause_us;
    uint64_t last_pages; /* of the scans between stop and cont */
    int64_t last_us;     /* and their time */
    double fixed_us, page_us; /* what pauses cost: beside the copies, and a page; smoothed */
    bool begun; /* staging has pages of the next checkpoint */
    /* When: prepass began, stop was sent, it was answered, the save was, all was cut. */
    int64_t began_at, stop_at, stopped_at, saved_at, cut_at, resumed_at;
    char save_command[200]; /* of the devices */
} Capture;

typedef struct Primary {
    char *uri;
    Channel *ch;
    GThread *rx;
    Capture cap;
    bool started_rooms; /* block and proxy were told to start */
    ColoTrigger trigger; /* of the checkpoint that is made */
    ModeDecider decider;
    uint64_t frames;     /* of the guest, at the last checkpoint */
    int64_t clock_ns;    /* the guest's virtual clock at the last one, */
    int64_t budget_told; /* when the last event about it was sent, us */
    int64_t clock_at;    /* ours then, us, or 0: the guest stood since, or it is not known */
} Primary;

/** Buffers of @cap, touched in advance. Pair with capture_clear(). */
void capture_init(Capture *cap);
void capture_clear(Capture *cap);

/** Copy what was dirtied so far while the guest runs, so that little is left for the pause: as
 * little as @budget_us (0: none is set) asks for, if it can be had in bounded time. */
bool capture_prepass(Capture *cap, uint64_t budget_us, GError **errp);

/** One copy of what was dirtied, between checkpoints, so that the next one has less to do.
 * Returns the microseconds that it took, or -1. */
int64_t capture_background(Capture *cap, GError **errp);

/** From `stop` to `cont`: all that the checkpoint of @epoch carries. On failure the guest is
 * let run again all the same. */
bool capture_paused(Capture *cap, uint64_t epoch, GError **errp);

/** Connect and agree with the secondary, start the rooms and the receiving thread. What was
 * begun is the caller's to end, on failure, too. */
bool primary_connect(Primary *p, GError **errp);

/** Send all of RAM while the guest runs, until little is left. */
bool primary_first_copy(Primary *p, GError **errp);

/** The peer counts as lost from now on; the first reason is kept. Any thread. */
void primary_lost(const char *why);

/** Body of the receiving thread; @channel: a Channel, which it never frees. */
gpointer primary_rx_thread(gpointer channel);

/** The guest has shut down and a checkpoint that says so was loaded: end both sides. */
void primary_guest_off(Channel *ch);

/** The last checkpoint is loaded, and the guest stands still: give it away. False with @errp:
 * the peer is lost, and it is open who goes on. */
bool primary_yield(Channel *ch, GError **errp);

/** Protection ends otherwise: answer an x-colo-switchover that waits. */
void primary_switchover_failed(const char *why);

/**
 * Leave protection because of @why: at once if it had not begun, else hold all output
 * until the arbiter's word (COLO_EXIT is sent), then go on alone. Returns when the side
 * is unprotected, fenced, or the process ends.
 */
void primary_end(Channel *ch, bool started_rooms, const GError *why);

#endif
