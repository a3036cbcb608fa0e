/*
 * TLS sessions over non-blocking sockets.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A record that the socket did not take whole is kept by GnuTLS in its encrypted form.
 * The caller is told EAGAIN and comes again with the same bytes, for which the number of
 * those that were in the record is then the answer.
 */
#include "tls-int.h"

#include "util/trace.h"

#include <errno.h>
#include <string.h>

#define RECORD_MAX 16384

struct TlsSession {
    gnutls_session_t s;
    TlsCreds *creds;
    char *hostname; /* to be in the server's certificate */
    bool up;
    bool broken;
    bool unsent; /* a record waits for the socket */
};

static bool session_credentials(TlsSession *s, GError **errp)
{
    TlsCreds *c = s->creds;
    g_autofree char *dflt = g_strdup(c->psk ? "NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK" : "NORMAL");
    g_autofree char *prio = g_strconcat(c->priority ? c->priority : dflt,
                                        ":-VERS-TLS1.0:-VERS-TLS1.1", NULL);
    const char *at = NULL;
    int r = gnutls_priority_set_direct(s->s, prio, &at);

    if (r < 0) {
        colo_error_set(errp, "tls-creds '%s': priority '%s' is wrong at '%s': %s", c->id,
                       prio, at ? at : "", gnutls_strerror(r));
        return false;
    }
    if (c->psk) {
        r = c->server
                ? gnutls_credentials_set(s->s, GNUTLS_CRD_PSK, c->psk_server)
                : gnutls_credentials_set(s->s, GNUTLS_CRD_PSK, c->psk_client);
    } else {
        r = gnutls_credentials_set(s->s, GNUTLS_CRD_CERTIFICATE, c->x509);
    }
    if (r < 0) {
        colo_error_set(errp, "tls-creds '%s': %s", c->id, gnutls_strerror(r));
        return false;
    }
    return true;
}

/* Whose certificate must be right, and for what. */
static bool session_verification(TlsSession *s, const char *hostname, GError **errp)
{
    TlsCreds *c = s->creds;

    if (c->psk || !c->verify_peer) {
        return true;
    }
    if (c->server) {
        gnutls_certificate_server_set_request(s->s, GNUTLS_CERT_REQUIRE);
        return true;
    }
    if (!hostname || !*hostname) {
        colo_error_set(errp, "tls-creds '%s': verify-peer=on needs a host name to check the "
                             "server's certificate against", c->id);
        return false;
    }
    s->hostname = g_strdup(hostname);
    if (!g_hostname_is_ip_address(hostname)) {
        gnutls_server_name_set(s->s, GNUTLS_NAME_DNS, hostname, strlen(hostname));
    }
    return true;
}

/* The peer's certificate: of our CA, valid now, for this purpose, with this name. */
static bool session_verify(TlsSession *s, GError **errp)
{
    TlsCreds *c = s->creds;
    const char *purpose = c->server ? GNUTLS_KP_TLS_WWW_CLIENT : GNUTLS_KP_TLS_WWW_SERVER;
    gnutls_typed_vdata_st data[] = {
        {.type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)purpose},
        {.type = GNUTLS_DT_DNS_HOSTNAME, .data = (unsigned char *)s->hostname},
    };
    gnutls_datum_t words = {NULL, 0};
    unsigned status = 0;

    if (c->psk || !c->verify_peer) {
        return true;
    }
    int r = gnutls_certificate_verify_peers(s->s, data, s->hostname ? 2 : 1, &status);
    if (r == 0 && status == 0) {
        return true;
    }
    if (r < 0 || gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509,
                                                              &words, 0) < 0) {
        colo_error_set(errp, "TLS: the peer's certificate cannot be checked: %s",
                       gnutls_strerror(r));
    } else {
        colo_error_set(errp, "TLS: the peer's certificate is refused: %s",
                       g_strchomp((char *)words.data));
    }
    gnutls_free(words.data);
    gnutls_alert_send(s->s, GNUTLS_AL_FATAL, GNUTLS_A_BAD_CERTIFICATE);
    return false;
}

TlsSession *tls_session_new(TlsCreds *c, int fd, const char *hostname, GError **errp)
{
    g_autoptr(TlsSession) s = g_new0(TlsSession, 1);

    s->creds = tls_creds_ref(c);
    int r = gnutls_init(&s->s, (c->server ? GNUTLS_SERVER : GNUTLS_CLIENT) |
                                   GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL);
    if (r < 0) {
        s->s = NULL;
        colo_error_set(errp, "TLS session: %s", gnutls_strerror(r));
        return NULL;
    }
    if (!session_credentials(s, errp) || !session_verification(s, hostname, errp)) {
        return NULL;
    }
    gnutls_transport_set_int(s->s, fd);
    gnutls_handshake_set_timeout(s->s, GNUTLS_INDEFINITE_TIMEOUT);
    return g_steal_pointer(&s);
}

int tls_session_handshake(TlsSession *s, GError **errp)
{
    int r = gnutls_handshake(s->s);

    if (r < 0 && !gnutls_error_is_fatal(r)) {
        return 0;
    }
    if (r == 0 && session_verify(s, errp)) {
        s->up = true;
        return 1;
    }
    if (r == GNUTLS_E_FATAL_ALERT_RECEIVED) {
        colo_error_set(errp, "TLS handshake: the peer says \"%s\"",
                       gnutls_alert_get_name(gnutls_alert_get(s->s)));
    } else if (r < 0) {
        colo_error_set(errp, "TLS handshake: %s", gnutls_strerror(r));
        gnutls_alert_send_appropriate(s->s, r);
    }
    s->broken = true;
    return -1;
}

GIOCondition tls_session_wants(TlsSession *s)
{
    return gnutls_record_get_direction(s->s) ? G_IO_OUT : G_IO_IN;
}

/* -1 with errno for what GnuTLS returned. */
static ssize_t session_error(TlsSession *s, ssize_t r)
{
    if (r == GNUTLS_E_AGAIN || r == GNUTLS_E_INTERRUPTED ||
        r == GNUTLS_E_WARNING_ALERT_RECEIVED) {
        errno = EAGAIN;
        return -1;
    }
    s->broken = true;
    colo_trace(tls_session_broken, "'%s': %s", s->creds->id, gnutls_strerror(r));
    errno = r == GNUTLS_E_PREMATURE_TERMINATION || r == GNUTLS_E_PUSH_ERROR ||
                    r == GNUTLS_E_PULL_ERROR
                ? ECONNRESET
                : EPROTO;
    return -1;
}

ssize_t tls_session_recv(TlsSession *s, void *buf, size_t len)
{
    if (!s->up || s->broken) {
        errno = ENOTCONN;
        return -1;
    }
    ssize_t r = gnutls_record_recv(s->s, buf, len);

    return r < 0 ? session_error(s, r) : r;
}

ssize_t tls_session_send(TlsSession *s, const void *buf, size_t len)
{
    if (!s->up || s->broken) {
        errno = ENOTCONN;
        return -1;
    }
    /* An unsent record is gone on with, whatever is given. */
    ssize_t r = s->unsent ? gnutls_record_send(s->s, NULL, 0)
                          : gnutls_record_send(s->s, buf, MIN(len, RECORD_MAX));

    s->unsent = r == GNUTLS_E_AGAIN || r == GNUTLS_E_INTERRUPTED;
    return r < 0 ? session_error(s, r) : r;
}

ssize_t tls_session_sendv(TlsSession *s, const struct iovec *iov, int n)
{
    uint8_t together[RECORD_MAX];
    size_t len = 0;

    if (s->unsent || (n > 0 && iov[0].iov_len >= RECORD_MAX)) {
        return tls_session_send(s, iov[0].iov_base, iov[0].iov_len);
    }
    for (int i = 0; i < n && len < RECORD_MAX; i++) {
        size_t some = MIN(iov[i].iov_len, RECORD_MAX - len);

        memcpy(together + len, iov[i].iov_base, some);
        len += some;
    }
    return tls_session_send(s, together, len);
}

size_t tls_session_pending(TlsSession *s)
{
    return s->up && !s->broken ? gnutls_record_check_pending(s->s) : 0;
}

char *tls_session_describe(TlsSession *s)
{
    char *d = gnutls_session_get_desc(s->s);
    char *copy = g_strdup(d ? d : "?");

    gnutls_free(d);
    return copy;
}

void tls_session_free(TlsSession *s)
{
    if (!s) {
        return;
    }
    if (s->s) {
        if (s->up && !s->broken && !s->unsent) {
            gnutls_bye(s->s, GNUTLS_SHUT_WR);
        }
        gnutls_deinit(s->s);
    }
    tls_creds_unref(s->creds);
    g_free(s->hostname);
    g_free(s);
}
