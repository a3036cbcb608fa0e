/*
 * Inside of the chardev room.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_CHARDEV_INT_H
#define COLO_CHARDEV_INT_H

#include <sys/socket.h>

#include "chardev/chardev.h"
#include "net/net.h"
#include "util/error.h"
#include "util/options.h"
#include "util/tls.h"
#include "util/trace.h"

#define CHARDEV_QUEUE_MAX (16u << 20)
#define CHARDEV_QUEUE_KEEP (1u << 20) /* a buffer that has grown beyond this is given back */
#define CHARDEV_CONTROL_BIT 0x80000000u
#define CHARDEV_CONTROL_MAX (16u << 20)

struct Chardev {
    char *id;
    /* Address */
    bool unix_path, abstract, tight, server, wait;
    char *host, *port, *path;
    struct sockaddr_storage addr;
    socklen_t addr_len;
    unsigned reconnect_ms;
    /* Connection: a socket, or another chardev of this process */
    int listen_fd, fd;
    bool connecting, connected;
    Chardev *joined;
    char peer_name[64];
    GSource *listen_src, *in, *out, *timer;
    /* TLS, with @creds; while there is a session and no connection: handshake */
    TlsCreds *creds;
    TlsSession *tls;
    GSource *tls_src, *tls_timer;
    /* User */
    const ChardevHandlers *h;
    void *opaque;
    bool vnet_hdr, allow_control, paused;
    /* Bytes that the socket has not taken: @obuf[ohead..oend) */
    uint8_t *obuf;
    size_t ohead, oend, ocap, omax;
    /* Bytes received that are not yet a whole frame: @ibuf[0..ilen) */
    uint8_t *ibuf;
    size_t ilen, icap;
    uint64_t frames_in, frames_out; /* of this connection */
    uint64_t malformed, dropped;
    ColoReportLimit limit;
};

/* socket.c: the life of connections */
bool chardev_socket_open(Chardev *c, GError **errp);
void chardev_socket_close(Chardev *c);
/** The connection is over; a server listens on, a client tries again. */
void chardev_socket_lost(Chardev *c, const char *why);
void chardev_socket_watch(Chardev *c);
/** The connection can be used: tell its user, read. */
void chardev_socket_ready(Chardev *c);
/** Read and deliver what is there. */
void chardev_socket_read(Chardev *c);

/* tls.c: as the system calls, with or without TLS */
void chardev_tls_begin(Chardev *c);
void chardev_tls_end(Chardev *c);
/** Deliver soon what has been decrypted and not yet read. */
void chardev_tls_read_pending(Chardev *c);
ssize_t chardev_send_some(Chardev *c, const uint8_t *data, size_t len);
GIOCondition chardev_send_wants(Chardev *c);
ssize_t chardev_recv_some(Chardev *c, uint8_t *data, size_t len);

/* stream.c: frames to bytes and back */
void chardev_stream_reset(Chardev *c);
void chardev_stream_free(Chardev *c);
/** Read and deliver; false if the connection is to be closed, with *@why. */
bool chardev_stream_read(Chardev *c, const char **why);
/** Deliver what has been read. */
bool chardev_stream_parse(Chardev *c, const char **why);

/* chardev.c */
GPtrArray *chardev_list(void);
/** "HOST:PORT" or a path, with "tcp:" or "unix:" before it if @kind. Caller frees. */
char *chardev_address(Chardev *c, bool kind);

#endif
