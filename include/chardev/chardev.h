/*
 * Socket chardevs that carry frames.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A chardev is a TCP or unix socket, server or client, on which frames travel in QEMU's
 * framing: be32 length, [be32 vnet header length where vnet_hdr_support is on], bytes.
 * Where both ends have agreed (chardev_allow_control()), a length with bit 31 set starts
 * a control message of ours instead. A client whose address is that of a server in the
 * same process is joined to it in memory: sends are then plain calls, in order, at once.
 *
 * Everything here runs in the net thread, under its lock (net_lock()).
 */
#ifndef COLO_CHARDEV_CHARDEV_H
#define COLO_CHARDEV_CHARDEV_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include "net/frame.h"

typedef struct Chardev Chardev;

typedef enum ChardevControlType {
    CHARDEV_CTL_MARKER = 1, /* epoch starts here; count = frames sent before it */
    CHARDEV_CTL_ISN = 2,    /* compare -> rewriter: a flow's two initial sequence numbers */
    CHARDEV_CTL_RELEASED = 3, /* compare -> rewriter: SVM frames up to count were used */
    CHARDEV_CTL_GAP = 4, /* secondary -> primary on the mirror stream: frames were lost */
    CHARDEV_CTL_LOGGED = 5, /* rewriter -> compare: a client's bytes are on that host */
} ChardevControlType;

/* A control message; @body is private to @type's sender and receiver, big-endian. */
typedef struct ChardevControl {
    uint8_t type;
    uint32_t len;
    const uint8_t *body;
} ChardevControl;

typedef struct ChardevHandlers {
    /* One whole frame; the handler takes the reference. */
    void (*frame)(void *opaque, Frame *f);
    void (*control)(void *opaque, const ChardevControl *msg);
    /* The connection came up or went down; a handler must expect lost frames after down. */
    void (*event)(void *opaque, bool connected);
    /* The socket, which had not taken all at once, has taken all. May be NULL. */
    void (*drained)(void *opaque);
} ChardevHandlers;

/**
 * Create from -chardev options (@opts as of options_parse(text, "backend")) or from QMP
 * chardev-add's arguments ({id, backend: {type, data: {addr, server, ...}}}). Options:
 * id, host, port, path, server, wait, reconnect, reconnect-ms, nodelay, ipv4, ipv6,
 * abstract, tight. TCP_NODELAY is always set. Listening starts at once (a taken port is
 * an error here); connecting starts at once and, with reconnect, never gives up.
 * wait=on is honoured by chardev_wait_ready(), not by blocking here.
 */
Chardev *chardev_new(JsonObject *opts, GError **errp);
Chardev *chardev_find(const char *id);

/** The same on a connected stream socket @fd (taken over on success). Ids that start
 * with '#' are internal: not shown by chardev_query(). */
Chardev *chardev_new_fd(const char *id, int fd, GError **errp);

/** Remove @id; refused while a filter or comparison uses it. */
bool chardev_remove(const char *id, GError **errp);

/** Whether @opts is a chardev that this room can own (backend socket). */
bool chardev_wants(JsonObject *opts);

/**
 * Block the calling (main) thread, without the net lock, until each server chardev with
 * wait=on has its client, calling @poll now and then; false if @poll returned false.
 */
bool chardev_wait_ready(bool (*poll)(void *opaque), void *opaque);

/** Become the one user of @c. @vnet_hdr: framing with vnet header lengths. */
bool chardev_claim(Chardev *c, const ChardevHandlers *h, void *opaque, bool vnet_hdr,
                   GError **errp);
void chardev_release(Chardev *c);

/** Framing from the next item on; @c may be NULL. */
void chardev_set_vnet_hdr(Chardev *c, bool on);

const char *chardev_id(Chardev *c);
bool chardev_connected(Chardev *c);

/** Accept and send control messages from now on (both ends have said they know them). */
void chardev_allow_control(Chardev *c, bool allow);

/**
 * Send a copy of @f, or a control message. Never blocks: bytes that the socket does not
 * take wait in a bounded queue (16 MiB); false if it is full or nobody is connected: the
 * frame was not sent and never will be.
 */
bool chardev_send(Chardev *c, Frame *f);

/** Send @text as a frame without a vnet header length, whatever the framing is. */
bool chardev_send_text(Chardev *c, const char *text);

/** The same as chardev_send(), and takes the reference of @f: within the process no copy is
 * made. */
bool chardev_send_take(Chardev *c, Frame *f);
bool chardev_send_control(Chardev *c, const ChardevControl *msg);

/** Stop or resume reading: the peer is back-pressured (not a joined one). */
void chardev_pause(Chardev *c, bool pause);
bool chardev_paused(Chardev *c);

/** Bytes that the socket has not taken, and how many more than 16 MiB may wait until the
 * end of this claim. */
uint64_t chardev_backlog(Chardev *c);
void chardev_set_backlog_max(Chardev *c, uint64_t bytes);

/** The chardev of this process that @c is joined to, or NULL. */
Chardev *chardev_peer(Chardev *c);

/** The user of @c (the opaque pointer of its claim) if its handlers are @h, or NULL. */
void *chardev_user(Chardev *c, const ChardevHandlers *h);

/** Whether somebody uses @c. */
bool chardev_claimed(Chardev *c);

/** Frames sent and received since the connection came up. */
uint64_t chardev_frames_out(Chardev *c);
uint64_t chardev_frames_in(Chardev *c);

/** Close the connection (as yank does); a server listens on, a client reconnects. */
void chardev_yank(Chardev *c);

/** [{label, filename, frontend-open}] as of query-chardev. */
JsonArray *chardev_query(void);

#endif
