/*
 * The channel between two qemu-colo: framed messages over one stream socket.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Wire format: docs/interop/channel.rst. One thread receives; any thread may send.
 */
#ifndef COLO_MIGRATION_CHANNEL_H
#define COLO_MIGRATION_CHANNEL_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "util/tls.h"

#define CHANNEL_PAYLOAD_MAX (4u << 20)
#define CHANNEL_ATTACHED_MAX 17

typedef enum ChannelType {
    CHANNEL_HELLO = 1,   /* JSON: who we are; primary first */
    CHANNEL_HELLO_OK,    /* JSON: the secondary agrees */
    CHANNEL_REFUSE,      /* text: why not; the sender closes */
    CHANNEL_BEGIN,       /* be64 epoch, be32 flags: a checkpoint starts */
    CHANNEL_RAM,         /* pages, see ram.h */
    CHANNEL_DEVICE,      /* part of the device state */
    CHANNEL_PROXY,       /* part of the proxy's state */
    CHANNEL_BARRIERS,    /* disk barriers */
    CHANNEL_VERIFY,      /* be64 first page, be64 hashes: test option */
    CHANNEL_END,         /* be64 epoch, be64 pages, be64 device bytes, be64 proxy bytes */
    CHANNEL_RECEIVED,    /* be64 epoch: whole, and now a commitment */
    CHANNEL_LOADED,      /* be64 epoch, be64 lag us, be64 restored pages, be64 wrong pages */
    CHANNEL_FAILED,      /* text: the secondary cannot go on */
    CHANNEL_PING,        /* nothing */
    CHANNEL_REQUEST,     /* text: the secondary wishes for a checkpoint */
    CHANNEL_EXIT,        /* text: the sender leaves protection in good order */
    CHANNEL_DEATH,       /* text: the sender's emulator died */
    CHANNEL_TOKEN,       /* text: from here on either side may leave, by this token; or taken */
    CHANNEL_APPLIED,     /* shared disks: barriers up to which the images have all */
    CHANNEL_YIELD,       /* text: the primary gives the guest away, after LOADED */
    CHANNEL_JOIN,        /* 16 bytes session, be32 number: a data channel's first */
    CHANNEL_MARK,        /* be64 pass: its pages on this data channel are over */
    CHANNEL_SYNC,        /* be64 pass, be64 data channels that took part */
    CHANNEL_PULSE,       /* be64 the primary's clock, and back: pulse.h */
    CHANNEL_TYPE_MAX
} ChannelType;

typedef struct Channel Channel;

typedef struct ChannelMsg {
    ChannelType type;
    uint32_t len;
    const uint8_t *data; /* valid until the next receive */
} ChannelMsg;

typedef enum ChannelResult {
    CHANNEL_OK,
    CHANNEL_TIMEOUT,
    CHANNEL_CANCELLED,
    CHANNEL_ERROR,
} ChannelResult;

/** Take over connected stream socket @fd. @peer_timeout_ms: TCP's user timeout. */
Channel *channel_new(int fd, unsigned peer_timeout_ms);

/** Send a PING each @ms from a thread of the channel's own, so that the peer hears from us
 * however long the channel's users are busy. Ends with channel_cancel() or _free(). */
void channel_start_pings(Channel *c, unsigned ms);
void channel_free(Channel *c);

/** @data belongs to @c from now on: it is cancelled, broken and freed with it, and its bytes
 * are counted there. At most CHANNEL_ATTACHED_MAX. */
void channel_attach(Channel *c, Channel *data);

/** Encrypt from here on (GnuTLS), as client if @hostname is not NULL: what the server's
 * certificate must be for. At most @timeout_ms. Before any other thread uses @c. */
bool channel_start_tls(Channel *c, TlsCreds *creds, const char *hostname, unsigned timeout_ms,
                       GError **errp);

/** Whether it was cancelled; waits for that at most @timeout_ms. */
bool channel_cancelled(Channel *c, unsigned timeout_ms);

/** A send of which nothing goes out for @ms fails (0: waits for ever). */
void channel_set_stall(Channel *c, unsigned ms);

/** Make every blocked and later call return CHANNEL_CANCELLED (an error when sending). Any
 * thread. */
void channel_cancel(Channel *c);

/**
 * Close our direction, drop what comes, and wait up to @ms until the peer has closed its end; whether
 * it has. Nobody else uses @c any more.
 */
bool channel_wait_end(Channel *c, unsigned ms);

/** The same if EXIT was sent: a close while something is unread resets the connection, and what the
 * peer has not read yet is lost, EXIT with it. */
void channel_linger(Channel *c, unsigned ms);

/** Shut the connection down, for both sides: later calls see its end. Any thread. */
void channel_break(Channel *c);

/** Send one message of @n parts (<= 15), whole or not at all to other senders. Blocks while
 * the peer does not read. */
bool channel_send(Channel *c, ChannelType type, const struct iovec *parts, unsigned n,
                  GError **errp);
bool channel_send_text(Channel *c, ChannelType type, const char *text, GError **errp);
bool channel_send_u64(Channel *c, ChannelType type, const uint64_t *values, unsigned n,
                      GError **errp);

/** Like channel_send_text(), unless another thread is sending just now: then nothing. */
void channel_try_text(Channel *c, ChannelType type, const char *text);
/** The same of @len bytes, few; whether they went out. */
bool channel_try_bytes(Channel *c, ChannelType type, const void *data, size_t len);

/**
 * Receive one message. TIMEOUT after @timeout_ms without a whole one (-1: never); what
 * has arrived of it is kept for the next call.
 */
ChannelResult channel_recv(Channel *c, ChannelMsg *msg, int timeout_ms, GError **errp);

/** Whether the peer's end of the connection is closed, as its kernel says: by the peer, which
 * is silent before it does so, or as its process is gone. */
bool channel_ended(Channel *c);

/** The same, also where what it sent before has not been read. */
bool channel_peer_gone(Channel *c);

/** Count the peer's silence from now on: until here it had no reason to speak. By the
 * receiving thread. */
void channel_expect(Channel *c);

/** Microseconds since the last byte came in. */
int64_t channel_silence(Channel *c);

uint64_t channel_bytes_sent(Channel *c);

/** Microseconds of the shortest round trip that the kernel saw in the last minutes; 0 if it does
 * not know. Not the usual one: that has the peer's delayed ACKs in it, up to 40 ms each. */
int64_t channel_rtt(Channel *c);

/** Value @i of a message of big-endian 64-bit numbers; 0 beyond its end. */
uint64_t channel_msg_u64(const ChannelMsg *msg, unsigned i);

/** The text of a message, printable, bounded; caller frees. */
char *channel_msg_text(const ChannelMsg *msg);

/** Connect to "tcp:host:port" or "unix:path", at most @timeout_ms; -1 with @errp set. */
int channel_connect(const char *uri, unsigned timeout_ms, GError **errp);

/** Listen likewise; a returned descriptor is close-on-exec. */
int channel_listen(const char *uri, GError **errp);

#endif
