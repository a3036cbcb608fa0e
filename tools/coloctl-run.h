/*
 * coloctl run: what its files share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_TOOLS_COLOCTL_RUN_H
#define COLO_TOOLS_COLOCTL_RUN_H

#include "coloctl.h"
#include "util/pair-wire.h"

/* --- What this side was last (coloctl-role.c); docs/system/coloctl.rst has the table --- */

typedef enum LastRole {
    LAST_NONE,                /* never ran here */
    LAST_ALONE,               /* served alone: its disk is the newest there is */
    LAST_PROTECTED_PRIMARY,   /* the other may have taken over since */
    LAST_LOST_PRIMARY,
    LAST_SECONDARY,           /* waited for a primary: its disk is older */
    LAST_PROTECTED_SECONDARY,
    LAST_LOST_SECONDARY,      /* may have taken over */
    LAST_FENCED,              /* the other served */
    LAST_MAX,
} LastRole;

const char *last_role_name(LastRole r);
bool last_role_parse(const char *name, LastRole *r);

/** From STATE-DIR/role; LAST_NONE without the file, an error if it cannot be understood. */
bool last_role_load(const VmConf *c, LastRole *r, GError **errp);

/** Into it, on the disk when this returns. */
bool last_role_save(const VmConf *c, LastRole r, GError **errp);

/* --- What the other says (coloctl-peer.c) --- */

typedef struct PeerView {
    bool answers;
    bool undecided; /* a coloctl run there has not started anything yet */
    bool serves;
    bool forced;    /* --role primary was given there */
    LastRole last;  /* where undecided */
    char state[40], role[40], program[40], version[40], name[200];
    char asks[400]; /* while it starts: why it goes on asking */
    char why[300];  /* where it does not answer */
} PeerView;

/** Ask the pair port at @address, at most @ms. Another VM's answer is none, nor is one without
 * proof where there is a key. */
void peer_ask(const VmConf *c, const char *address, unsigned ms, PeerView *v);

/** The same from a line that was received. */
void peer_parse(const char *line, const char *name, PeerView *v);

/** Answer the pair port while nothing runs here, from a thread; NULL with @errp. @c is used until
 * the port is freed. */
PairPort *peer_listen(const VmConf *c, GError **errp);

/** What is answered. */
void peer_set_last(LastRole last);

/* --- Decision (coloctl-role.c) --- */

typedef enum Decision { DECIDE_WAIT, DECIDE_PRIMARY, DECIDE_SECONDARY } Decision;

/** What to be, and in @why (static storage or valid as long as @v) for what reason. Pure. */
Decision role_decide(LastRole mine, const PeerView *v, bool preferred, const char **why);

/* --- Directories, lock, images (coloctl-prepare.c) --- */

/** Make and check the directories and take the lock, which lives as long as the process. */
bool run_prepare(const VmConf *c, GError **errp);

/** Check the images, and make those that a secondary writes to. */
bool run_prepare_disks(const VmConf *c, bool secondary, GError **errp);

/** Virtual size of an image by qemu-img; 0 with @errp. */
uint64_t image_size(const char *path, const char *format, GError **errp);

/** Refuse a secret that others can read. */
bool check_secret(const char *what, const char *path, GError **errp);

/* --- Service manager (coloctl-notify.c) --- */

/** Tell systemd, or whoever set NOTIFY_SOCKET. No effect without it. */
void notify_state(const char *fmt, ...) G_GNUC_PRINTF(1, 2);

#endif
