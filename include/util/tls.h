/*
 * TLS: credentials as objects, and sessions over non-blocking sockets, by GnuTLS.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * tls-creds-x509 and tls-creds-psk take QEMU's options and QEMU's file names in "dir".
 * Credentials are read when the object is made, and shared by any number of sessions.
 * The registry and references may be used by any thread. A session belongs to one thread
 * at a time (or to whoever holds its owner's lock).
 */
#ifndef COLO_UTIL_TLS_H
#define COLO_UTIL_TLS_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

typedef struct TlsCreds TlsCreds;
typedef struct TlsSession TlsSession;

/* --- Objects --- */

/** Whether @qom_type is handled here: tls-creds-x509, tls-creds-psk, secret (for keys
 * with a password). tls-creds-anon is handled to be refused. */
bool tls_object_wants(const char *qom_type);

/** object-add, @args with "qom-type" and "id": read, check and register. */
bool tls_object_add(JsonObject *args, GError **errp);
bool tls_object_exists(const char *id);

/** Refused while something uses it. */
bool tls_object_del(const char *id, GError **errp);

/** Forget all objects, at the end of the program and of tests. */
void tls_objects_clear(void);

/** A new reference to the credentials @id; they must be for that endpoint. */
TlsCreds *tls_creds_get(const char *id, bool server, GError **errp);
TlsCreds *tls_creds_ref(TlsCreds *c);
void tls_creds_unref(TlsCreds *c);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(TlsCreds, tls_creds_unref)

/* What a library with a TLS of its own (libnbd) has to be told; borrowed. */
bool tls_creds_is_psk(const TlsCreds *c);
bool tls_creds_verify_peer(const TlsCreds *c);
const char *tls_creds_id(const TlsCreds *c);
const char *tls_creds_dir(const TlsCreds *c);
const char *tls_creds_psk_file(const TlsCreds *c); /* or NULL */
const char *tls_creds_psk_user(const TlsCreds *c);
/** An option that only our own sessions honour ("priority", "passwordid"), or NULL. */
const char *tls_creds_own_only(const TlsCreds *c);

/* --- Sessions --- */

/**
 * A session over @fd, which stays the caller's, must be non-blocking and outlive the session.
 * Takes a reference of @c. @hostname: for a client what the server's certificate must be
 * for; NULL is an error where verify-peer is on (x509).
 */
TlsSession *tls_session_new(TlsCreds *c, int fd, const char *hostname, GError **errp);

/** Go on with the handshake: 1 when it is done (the peer's certificate is checked then),
 * 0 when to call again once tls_session_wants() is there, -1 with @errp set. */
int tls_session_handshake(TlsSession *s, GError **errp);

/** What the handshake, or a send that said EAGAIN, waits for: G_IO_IN or G_IO_OUT. */
GIOCondition tls_session_wants(TlsSession *s);

/** As recv(): bytes, 0 at an orderly end, -1 with errno (EAGAIN, ECONNRESET, EPROTO). */
ssize_t tls_session_recv(TlsSession *s, void *buf, size_t len);

/**
 * As send(); at most 16 KiB go at once. After EAGAIN the same bytes must come again (more may
 * follow them, and they may have moved).
 */
ssize_t tls_session_send(TlsSession *s, const void *buf, size_t len);
ssize_t tls_session_sendv(TlsSession *s, const struct iovec *iov, int n);

/** Bytes that can be received although the socket may not be readable any more: read until
 * EAGAIN, or ask this before waiting. */
size_t tls_session_pending(TlsSession *s);

/** "TLS1.3 ECDHE-... AES-256-GCM", for traces; caller frees. */
char *tls_session_describe(TlsSession *s);

/** Say goodbye if that does not block; frees @s. */
void tls_session_free(TlsSession *s);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(TlsSession, tls_session_free)

#endif
