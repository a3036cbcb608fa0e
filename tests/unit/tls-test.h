/*
 * Certificates and keys for tests, made by GnuTLS's own tools.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_TESTS_TLS_TEST_H
#define COLO_TESTS_TLS_TEST_H

#include "util/options.h"
#include "util/tls.h"

#include <glib/gstdio.h>
#include <sys/stat.h>

static inline bool tls_tools(void)
{
    g_autofree char *certtool = g_find_program_in_path("certtool");
    g_autofree char *psktool = g_find_program_in_path("psktool");

    if (!certtool || !psktool) {
        g_test_skip("certtool and psktool (gnutls-bin) are not installed");
        return false;
    }
    return true;
}

static inline void tls_run(const char *fmt, ...) G_GNUC_PRINTF(1, 2);
static inline void tls_run(const char *fmt, ...)
{
    g_autoptr(GError) err = NULL;
    g_autofree char *out = NULL, *words = NULL;
    int status;
    va_list ap;

    va_start(ap, fmt);
    g_autofree char *cmd = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_spawn_command_line_sync(cmd, &out, &words, &status, &err);
    g_assert_no_error(err);
    if (status != 0) {
        g_error("%s: status %x: %s%s", cmd, status, out, words);
    }
}

/* A self-signed CA in @dir (made where it is missing). */
static inline void tls_ca(const char *dir)
{
    g_autofree char *tmpl = g_build_filename(dir, "ca.tmpl", NULL);

    g_mkdir(dir, 0700);
    g_file_set_contents(tmpl, "cn = test CA\nca\ncert_signing_key\nexpiration_days = 9\n", -1,
                        NULL);
    tls_run("certtool --generate-privkey --key-type=ecdsa --sec-param=high "
            "--outfile %s/ca-key.pem", dir);
    tls_run("certtool --generate-self-signed --load-privkey %s/ca-key.pem --template %s "
            "--outfile %s/ca-cert.pem", dir, tmpl, dir);
}

/* "server" or "client" key and certificate in @dir by the CA in @ca; @extra template lines,
 * @genkey: more of certtool's options for the key. */
static inline void tls_cert_full(const char *dir, const char *ca, const char *role,
                                 const char *extra, const char *pass)
{
    g_autofree char *tmpl = g_strdup_printf("%s/%s.tmpl", dir, role);
    g_autofree char *text = g_strdup_printf("cn = %s\n%s", role, extra);
    g_autofree char *key = pass ? g_strdup_printf("--pkcs8 --pkcs-cipher=aes-256 --password %s",
                                                  pass)
                                : g_strdup("");
    g_autofree char *from = g_strdup_printf("%s/ca-cert.pem", ca);
    g_autofree char *to = g_strdup_printf("%s/ca-cert.pem", dir);

    g_mkdir(dir, 0700);
    if (strcmp(from, to)) {
        tls_run("cp %s %s", from, to);
    }
    g_file_set_contents(tmpl, text, -1, NULL);
    tls_run("certtool --generate-privkey --key-type=ecdsa --sec-param=high %s "
            "--outfile %s/%s-key.pem", key, dir, role);
    tls_run("certtool --generate-certificate --load-ca-certificate %s --load-ca-privkey "
            "%s/ca-key.pem --load-privkey %s/%s-key.pem %s%s --template %s "
            "--outfile %s/%s-cert.pem", from, ca, dir, role, pass ? "--password " : "",
            pass ? pass : "", tmpl, dir, role);
}

#define TLS_SERVER_LINES                                                                 \
    "dns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\nsigning_key\n"         \
    "expiration_days = 9\n"
#define TLS_CLIENT_LINES "tls_www_client\nsigning_key\nexpiration_days = 9\n"

/* CA, server and client in one directory. */
static inline void tls_pki(const char *dir)
{
    tls_ca(dir);
    tls_cert_full(dir, dir, "server", TLS_SERVER_LINES, NULL);
    tls_cert_full(dir, dir, "client", TLS_CLIENT_LINES, NULL);
}

static inline void tls_psk(const char *dir, const char *user)
{
    g_mkdir(dir, 0700);
    tls_run("psktool -u %s -p %s/keys.psk", user, dir);
}

static inline bool tls_object(GError **errp, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
static inline bool tls_object(GError **errp, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_autoptr(JsonObject) o = options_parse(text, "qom-type", errp);
    return o && tls_object_add(o, errp);
}

#define tls_object_good(...)                                                             \
    do {                                                                                 \
        g_autoptr(GError) err_ = NULL;                                                   \
        tls_object(&err_, __VA_ARGS__);                                                  \
        g_assert_no_error(err_);                                                         \
    } while (0)

#define tls_object_bad(word, ...)                                                        \
    do {                                                                                 \
        g_autoptr(GError) err_ = NULL;                                                   \
        g_assert_false(tls_object(&err_, __VA_ARGS__));                                  \
        g_assert_nonnull(err_);                                                          \
        if (!strstr(err_->message, word)) {                                              \
            g_error("no '%s' in '%s'", word, err_->message);                             \
        }                                                                                \
        g_test_message("%s", err_->message);                                             \
    } while (0)

#endif
