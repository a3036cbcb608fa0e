/*
 * What the two files of TLS share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_UTIL_TLS_INT_H
#define COLO_UTIL_TLS_INT_H

#include "util/error.h"
#include "util/options.h"
#include "util/tls.h"

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

struct TlsCreds {
    gint refs; /* the registry's and one each user */
    char *id;
    bool server, verify_peer;
    char *dir, *priority, *password;
    char *psk_user, *psk_file; /* tls-creds-psk */
    bool psk;
    gnutls_certificate_credentials_t x509;
    gnutls_psk_server_credentials_t psk_server;
    gnutls_psk_client_credentials_t psk_client;
};

#endif
