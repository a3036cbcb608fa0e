/*
 * One NBD connection: what its files and the server share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_BLOCK_NBD_CONN_H
#define COLO_BLOCK_NBD_CONN_H

#include "block-int.h"
#include "nbd-name.h"
#include "nbd-proto.h"
#include "resync-export.h"
#include "util/tls.h"

/* What one client may have in flight before it is no longer read from, and what all of
 * the user's server's may hold together (nbd-request.c). */
#define NBD_CONN_REQUESTS 128
#define NBD_CONN_BYTES (64u * 1024 * 1024)
#define NBD_POOL_BYTES (256u * 1024 * 1024)
#define NBD_STAGE 65536
#define NBD_NAME_MAX 4096
/* The longest option that is read; a longer one ends the connection. */
#define NBD_OPTION_MAX 16384

typedef struct NbdListener NbdListener;

/** Something exported under a name. */
typedef struct NbdExport {
    char *name;
    BlockNode *node;
    char *id;          /* of query-block-exports; NULL: the emulator's own */
    char *description; /* or NULL */
    bool writable;
    bool writethrough;
    bool multi_conn;
    bool guest; /* the emulator's own */
    struct NbdExport *side[RESYNC_SIDES]; /* resync-export.h: made when asked for */
    struct NbdExport *of;      /* of a side: the export */
} NbdExport;

typedef enum NbdPhase {
    NBD_PHASE_FLAGS,  /* the client's 4 bytes */
    NBD_PHASE_OPTION, /* option header */
    NBD_PHASE_OPTION_DATA,
    NBD_PHASE_TLS, /* GnuTLS has the socket */
    NBD_PHASE_REQUEST,
    NBD_PHASE_PAYLOAD,
} NbdPhase;

typedef struct NbdConn {
    unsigned refs; /* the server's, and one each request in flight */
    NbdListener *listener;
    NbdExport *export; /* NULL before the transmission and after closing */
    int fd;
    BlockFd *watch;
    GSource *patience; /* for the negotiation */
    TlsSession *tls;   /* from STARTTLS on */
    bool closed;
    bool guest; /* of the emulator */
    bool no_zeroes;
    bool structured;
    bool meta_context;
    bool disconnecting; /* NBD_CMD_DISC came, or an error is being sent */

    NbdPhase phase;
    uint8_t stage[NBD_STAGE]; /* received, not yet looked at */
    size_t stage_start, stage_end;
    uint32_t opt, opt_len;
    struct NbdServed *payload; /* the write whose data is being received */
    size_t payload_got;

    char name[NBD_NAME_SIZE]; /* what its client calls it, or "" */

    GQueue out; /* NbdOut */
    bool blocked; /* a request or an option waits in the stage for room */
    unsigned in_flight;
    uint64_t bytes; /* of data held: received, in flight, to be sent */
} NbdConn;

/* nbd-conn.c */
NbdConn *nbd_conn_new(NbdListener *l, int fd, bool guest);
void nbd_conn_close(NbdConn *c);
void nbd_conn_unref(NbdConn *c);
/** Read on if what stopped it is over. */
void nbd_conn_resume(NbdConn *c);
/** Queue @len bytes, then @data_len of @buf (a reference is taken) from @data on. */
void nbd_conn_send(NbdConn *c, const void *head, size_t len, BlockBuf *buf,
                   const uint8_t *data, size_t data_len);
void nbd_conn_flush(NbdConn *c);
/** The answer to STARTTLS is queued: from here on everything is encrypted. */
bool nbd_conn_start_tls(NbdConn *c);

/* nbd-request.c */
/** Account for @bytes of data that are held from now on, or no longer. */
void nbd_conn_hold(NbdConn *c, int64_t bytes);
/** What connections of the user's server hold. */
uint64_t nbd_pool_used(void);
/** Whether the request with header @h may be taken now. */
bool nbd_conn_has_room(NbdConn *c, const uint8_t *h);
/** A request header. False: the connection must end. */
bool nbd_conn_request(NbdConn *c, const uint8_t *h);
/** Where the data of the write that is being received goes, and how much is missing. */
uint8_t *nbd_conn_payload(NbdConn *c, size_t *left);
void nbd_conn_payload_add(NbdConn *c, size_t n);
void nbd_conn_payload_drop(NbdConn *c);

/* nbd-handshake.c: each returns false if the connection must end. */
void nbd_handshake_greet(NbdConn *c);
bool nbd_handshake_flags(NbdConn *c, uint32_t flags);
bool nbd_handshake_option(NbdConn *c, const uint8_t *data);

/* nbd-server.c */
NbdExport *nbd_listener_find(NbdListener *l, const char *name);
/** Export @i of the listener, or NULL behind the last. */
NbdExport *nbd_listener_export(NbdListener *l, unsigned i);
void nbd_listener_forget(NbdListener *l, NbdConn *c);
/** @context, of @len bytes: if it is a connection's name, it is @c's, and those that its client
 * says are gone are closed. */
void nbd_conn_name(NbdConn *c, const char *context, size_t len);
/** nbd_server_kick() from the loop. */
void nbd_server_kick_later(void);
uint16_t nbd_export_flags(NbdExport *e);
/** What clients must have proved before they see an export, or NULL. */
TlsCreds *nbd_listener_tls(NbdListener *l);

static inline void put16(uint8_t *p, uint16_t v)
{
    v = GUINT16_TO_BE(v);
    memcpy(p, &v, sizeof(v));
}

static inline void put32(uint8_t *p, uint32_t v)
{
    v = GUINT32_TO_BE(v);
    memcpy(p, &v, sizeof(v));
}

static inline void put64(uint8_t *p, uint64_t v)
{
    v = GUINT64_TO_BE(v);
    memcpy(p, &v, sizeof(v));
}

static inline uint16_t get16(const uint8_t *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return GUINT16_FROM_BE(v);
}

static inline uint32_t get32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return GUINT32_FROM_BE(v);
}

static inline uint64_t get64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return GUINT64_FROM_BE(v);
}

#endif
