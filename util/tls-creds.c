/*
 * TLS credentials and the passwords of their keys, as objects.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Everything that can be wrong with files is found when the object is made: missing ones, a key
 * that others may read, a certificate that has expired, is not of the given CA or not for this
 * purpose. A handshake that fails later is then the peer's fault.
 */
#include "tls-int.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef struct TlsObject {
    TlsCreds *creds; /* or NULL: a secret */
    char *secret;
} TlsObject;

/* Singleton of this file: id -> TlsObject. */
static GMutex lock;
static GHashTable *objects;

static void wipe(char *text)
{
    if (text) {
        explicit_bzero(text, strlen(text));
    }
    g_free(text);
}

TlsCreds *tls_creds_ref(TlsCreds *c)
{
    g_atomic_int_inc(&c->refs);
    return c;
}

void tls_creds_unref(TlsCreds *c)
{
    if (!c || !g_atomic_int_dec_and_test(&c->refs)) {
        return;
    }
    if (c->x509) {
        gnutls_certificate_free_credentials(c->x509);
    }
    if (c->psk_server) {
        gnutls_psk_free_server_credentials(c->psk_server);
    }
    if (c->psk_client) {
        gnutls_psk_free_client_credentials(c->psk_client);
    }
    g_free(c->id);
    g_free(c->dir);
    g_free(c->priority);
    wipe(c->password);
    g_free(c->psk_user);
    g_free(c->psk_file);
    g_free(c);
}

static void object_free(gpointer p)
{
    TlsObject *o = p;

    tls_creds_unref(o->creds);
    wipe(o->secret);
    g_free(o);
}

/* --- Files --- */

/* The path of @name in the credentials' directory if it is there; @needed: or an error. */
static char *creds_file(TlsCreds *c, const char *name, bool needed, GError **errp)
{
    g_autofree char *path = g_build_filename(c->dir, name, NULL);

    if (access(path, R_OK) == 0) {
        return g_steal_pointer(&path);
    }
    if (needed || errno != ENOENT) {
        colo_error_set_errno(errp, errno, "tls-creds '%s' (endpoint=%s): cannot read '%s'",
                             c->id, c->server ? "server" : "client", path);
    }
    return NULL;
}

/* A private key is nobody else's. A group may read it (Debian's ssl-cert). */
static bool key_is_private(TlsCreds *c, const char *path, GError **errp)
{
    struct stat st;

    if (stat(path, &st) < 0) {
        colo_error_set_errno(errp, errno, "tls-creds '%s': cannot examine '%s'", c->id, path);
        return false;
    }
    if (st.st_mode & (S_IRWXO | S_IWGRP)) {
        colo_error_set(errp, "tls-creds '%s': the key in '%s' has mode %04o, so others can read "
                             "or change it: chmod 600 it, and replace it if it may have been "
                             "copied", c->id, path, (unsigned)st.st_mode & 07777);
        return false;
    }
    return true;
}

/* --- x509 --- */

static bool crt_time_ok(TlsCreds *c, gnutls_x509_crt_t crt, const char *path, GError **errp)
{
    time_t now = time(NULL);

    if (gnutls_x509_crt_get_expiration_time(crt) < now) {
        colo_error_set(errp, "tls-creds '%s': the certificate in '%s' has expired", c->id, path);
        return false;
    }
    if (gnutls_x509_crt_get_activation_time(crt) > now) {
        colo_error_set(errp, "tls-creds '%s': the certificate in '%s' is not valid yet; is this "
                             "host's clock right?", c->id, path);
        return false;
    }
    return true;
}

static bool crts_load(TlsCreds *c, const char *path, gnutls_x509_crt_t **list, unsigned *n,
                      GError **errp)
{
    gnutls_datum_t pem;
    int r = gnutls_load_file(path, &pem);

    if (r == 0) {
        r = gnutls_x509_crt_list_import2(list, n, &pem, GNUTLS_X509_FMT_PEM, 0);
        gnutls_free(pem.data);
    }
    if (r < 0) {
        colo_error_set(errp, "tls-creds '%s': cannot load '%s': %s", c->id, path,
                       gnutls_strerror(r));
        return false;
    }
    return true;
}

static void crts_free(gnutls_x509_crt_t *list, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        gnutls_x509_crt_deinit(list[i]);
    }
    gnutls_free(list);
}

/* Our own certificate would be accepted by a peer that has the same CA. */
static bool own_cert_ok(TlsCreds *c, const char *cert, gnutls_x509_crt_t *ca, unsigned n_ca,
                        GError **errp)
{
    const char *purpose = c->server ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT;
    gnutls_typed_vdata_st want = {.type = GNUTLS_DT_KEY_PURPOSE_OID,
                                  .data = (unsigned char *)purpose};
    gnutls_x509_crt_t *chain = NULL;
    gnutls_x509_trust_list_t trust = NULL;
    unsigned n = 0, status = 0;
    bool ok = false;

    if (!crts_load(c, cert, &chain, &n, errp) || !crt_time_ok(c, chain[0], cert, errp) ||
        gnutls_x509_trust_list_init(&trust, 0) < 0 ||
        gnutls_x509_trust_list_add_cas(trust, ca, n_ca, 0) < 0) {
        goto out;
    }
    int r = gnutls_x509_trust_list_verify_crt2(trust, chain, n, &want, 1, 0, &status, NULL);
    ok = r == 0 && status == 0;
    if (!ok) {
        gnutls_datum_t words = {NULL, 0};

        gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &words, 0);
        colo_error_set(errp, "tls-creds '%s': '%s' is no %s certificate of the CA in "
                             "ca-cert.pem: %s", c->id, cert, c->server ? "server" : "client",
                       words.data ? g_strchomp((char *)words.data) : gnutls_strerror(r));
        gnutls_free(words.data);
    }
out:
    if (trust) {
        gnutls_x509_trust_list_deinit(trust, 0);
    }
    if (chain) {
        crts_free(chain, n);
    }
    return ok;
}

static bool x509_check(TlsCreds *c, const char *ca_path, const char *cert, GError **errp)
{
    gnutls_x509_crt_t *ca = NULL;
    unsigned n = 0;
    bool ok = crts_load(c, ca_path, &ca, &n, errp);

    for (unsigned i = 0; ok && i < n; i++) {
        ok = crt_time_ok(c, ca[i], ca_path, errp);
        if (ok && gnutls_x509_crt_get_ca_status(ca[i], NULL) <= 0) {
            colo_error_set(errp, "tls-creds '%s': the certificate in '%s' is not one of a CA",
                           c->id, ca_path);
            ok = false;
        }
    }
    ok = ok && (!cert || own_cert_ok(c, cert, ca, n, errp));
    if (ca) {
        crts_free(ca, n);
    }
    return ok;
}

static bool x509_load(TlsCreds *c, bool sanity, GError **errp)
{
    g_autoptr(GError) err = NULL;
    const char *role = c->server ? "server" : "client";
    g_autofree char *cert_name = g_strdup_printf("%s-cert.pem", role);
    g_autofree char *key_name = g_strdup_printf("%s-key.pem", role);
    g_autofree char *ca = creds_file(c, "ca-cert.pem", true, &err);
    g_autofree char *crl = err ? NULL : creds_file(c, "ca-crl.pem", false, &err);
    g_autofree char *cert = err ? NULL : creds_file(c, cert_name, c->server, &err);
    g_autofree char *key = err ? NULL : creds_file(c, key_name, c->server || cert, &err);
    int r;

    if (err) {
        g_propagate_error(errp, g_steal_pointer(&err));
        return false;
    }
    if ((key && !key_is_private(c, key, errp)) ||
        (sanity && !x509_check(c, ca, cert, errp))) {
        return false;
    }
    gnutls_certificate_allocate_credentials(&c->x509);
    const char *what = ca;
    r = gnutls_certificate_set_x509_trust_file(c->x509, ca, GNUTLS_X509_FMT_PEM);
    if (r >= 0 && crl) {
        what = crl;
        r = gnutls_certificate_set_x509_crl_file(c->x509, crl, GNUTLS_X509_FMT_PEM);
    }
    if (r >= 0 && cert) {
        what = key;
        r = gnutls_certificate_set_x509_key_file2(c->x509, cert, key, GNUTLS_X509_FMT_PEM,
                                                  c->password, 0);
    }
    if (r < 0) {
        colo_error_set(errp, "tls-creds '%s': cannot load '%s': %s%s", c->id, what,
                       gnutls_strerror(r),
                       what == key && !c->password ? " (a key with a password needs passwordid)"
                                                   : "");
        return false;
    }
    gnutls_certificate_set_known_dh_params(c->x509, GNUTLS_SEC_PARAM_MEDIUM);
    return true;
}

/* --- psk --- */

/* The hexadecimal key of @user in a file of "user:key" lines. */
static char *psk_find(const char *path, const char *user)
{
    g_autofree char *text = NULL;
    char *key = NULL;

    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        return NULL;
    }
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **l = lines; *l && !key; l++) {
        char *colon = strrchr(*l, ':');

        if (colon && strlen(user) == (size_t)(colon - *l) &&
            !strncmp(*l, user, colon - *l)) {
            key = g_strdup(g_strchomp(colon + 1));
        }
    }
    for (char **l = lines; *l; l++) {
        explicit_bzero(*l, strlen(*l));
    }
    explicit_bzero(text, strlen(text));
    return key;
}

static bool psk_load(TlsCreds *c, GError **errp)
{
    int r;

    c->psk_file = creds_file(c, "keys.psk", true, errp);
    if (!c->psk_file || !key_is_private(c, c->psk_file, errp)) {
        return false;
    }
    if (c->server) {
        gnutls_psk_allocate_server_credentials(&c->psk_server);
        gnutls_psk_set_server_known_dh_params(c->psk_server, GNUTLS_SEC_PARAM_MEDIUM);
        r = gnutls_psk_set_server_credentials_file(c->psk_server, c->psk_file);
    } else {
        char *key = psk_find(c->psk_file, c->psk_user);

        if (!key) {
            colo_error_set(errp, "tls-creds '%s': '%s' has no key of user '%s' (username=)",
                           c->id, c->psk_file, c->psk_user);
            return false;
        }
        gnutls_datum_t d = {(unsigned char *)key, strlen(key)};
        gnutls_psk_allocate_client_credentials(&c->psk_client);
        r = gnutls_psk_set_client_credentials(c->psk_client, c->psk_user, &d,
                                              GNUTLS_PSK_KEY_HEX);
        wipe(key);
    }
    if (r < 0) {
        colo_error_set(errp, "tls-creds '%s': cannot use '%s': %s", c->id, c->psk_file,
                       gnutls_strerror(r));
        return false;
    }
    return true;
}

/* --- Objects --- */

/* Under the lock. */
static TlsObject *object_find(const char *id)
{
    return objects ? g_hash_table_lookup(objects, id) : NULL;
}

bool tls_object_wants(const char *t)
{
    return !strcmp(t, "tls-creds-x509") || !strcmp(t, "tls-creds-psk") ||
           !strcmp(t, "tls-creds-anon") || !strcmp(t, "secret");
}

static bool creds_password(TlsCreds *c, JsonObject *args, GError **errp)
{
    const char *id = options_get_str(args, "passwordid", NULL);

    if (!id) {
        return true;
    }
    g_mutex_lock(&lock);
    TlsObject *o = object_find(id);
    c->password = o ? g_strdup(o->secret) : NULL;
    g_mutex_unlock(&lock);
    if (!c->password || !*c->password) {
        colo_error_set(errp, "tls-creds '%s': passwordid: there is no secret '%s', or it is "
                             "encrypted itself (keyid)", c->id, id);
        return false;
    }
    return true;
}

static bool creds_priority(TlsCreds *c, JsonObject *args, GError **errp)
{
    gnutls_priority_t parsed;
    const char *at = NULL;

    c->priority = g_strdup(options_get_str(args, "priority", NULL));
    if (!c->priority) {
        return true;
    }
    int r = gnutls_priority_init(&parsed, c->priority, &at);
    if (r < 0) {
        colo_error_set(errp, "tls-creds '%s': priority '%s' is wrong at '%s': %s", c->id,
                       c->priority, at ? at : "", gnutls_strerror(r));
        return false;
    }
    gnutls_priority_deinit(parsed);
    return true;
}

static TlsCreds *creds_new(JsonObject *args, const char *id, bool psk, GError **errp)
{
    static const char *const known_x509[] = {"qom-type", "id",       "dir",      "endpoint",
                                             "priority", "loaded",   "verify-peer",
                                             "sanity-check", "passwordid", NULL};
    static const char *const known_psk[] = {"qom-type", "id",     "dir",         "endpoint",
                                            "priority", "loaded", "verify-peer", "username",
                                            NULL};
    g_autoptr(TlsCreds) c = g_new0(TlsCreds, 1);
    g_autofree char *what = g_strdup_printf("tls-creds '%s'", id);
    const char *endpoint = options_get_str(args, "endpoint", "client");
    const char *dir = options_get_str(args, "dir", NULL);
    bool sanity = true, loaded = true;

    c->refs = 1;
    c->id = g_strdup(id);
    c->psk = psk;
    c->verify_peer = true;
    c->server = !strcmp(endpoint, "server");
    c->dir = g_strdup(dir);
    c->psk_user = g_strdup(options_get_str(args, "username", "qemu"));
    if (!options_check_known(args, what, psk ? known_psk : known_x509, errp) ||
        !options_get_bool(args, "verify-peer", &c->verify_peer, errp) ||
        !options_get_bool(args, "sanity-check", &sanity, errp) ||
        !options_get_bool(args, "loaded", &loaded, errp)) {
        return NULL;
    }
    if (!c->server && strcmp(endpoint, "client")) {
        colo_error_set(errp, "%s: endpoint expects 'server' or 'client', not '%s'", what,
                       endpoint);
        return NULL;
    }
    if (!dir) {
        colo_error_set(errp, "%s: Parameter 'dir' is missing", what);
        return NULL;
    }
    if (!creds_priority(c, args, errp) || !creds_password(c, args, errp) ||
        !(psk ? psk_load(c, errp) : x509_load(c, sanity, errp))) {
        return NULL;
    }
    return g_steal_pointer(&c);
}

/* A secret as text, without the line end that editors leave in files. */
static char *secret_new(JsonObject *args, const char *id, GError **errp)
{
    const char *data = options_get_str(args, "data", NULL);
    const char *file = options_get_str(args, "file", NULL);
    const char *format = options_get_str(args, "format", "raw");
    g_autofree char *text = NULL;
    gsize len;

    if (!data == !file) {
        colo_error_set(errp, "secret '%s': give either 'data' or 'file'", id);
        return NULL;
    }
    if (options_get_str(args, "keyid", NULL)) {
        return g_strdup(""); /* the emulator can use it; for a key of ours it is wrong */
    }
    g_autoptr(GError) err = NULL;
    if (file && !g_file_get_contents(file, &text, &len, &err)) {
        colo_error_set(errp, "secret '%s': %s", id, err->message);
        return NULL;
    }
    if (!strcmp(format, "base64")) {
        guchar *raw = g_base64_decode(file ? text : data, &len);
        char *copy = g_strndup((char *)raw, len);

        explicit_bzero(raw, len);
        g_free(raw);
        return copy;
    }
    return file ? g_steal_pointer(&text) : g_strdup(data);
}

bool tls_object_add(JsonObject *args, GError **errp)
{
    const char *type = options_get_str(args, "qom-type", "");
    const char *id = options_get_str(args, "id", NULL);
    g_autofree TlsObject *o = g_new0(TlsObject, 1);

    if (!id || !*id) {
        colo_error_set(errp, "%s: Parameter 'id' is missing", type);
        return false;
    }
    if (!strcmp(type, "tls-creds-anon")) {
        colo_error_set(errp, "tls-creds-anon '%s' is not supported, since anybody could pose as "
                             "the peer: use tls-creds-x509 or tls-creds-psk", id);
        return false;
    }
    if (tls_object_exists(id)) {
        colo_error_set(errp, "attempt to add duplicate property '%s' to object (type "
                             "'container')", id);
        return false;
    }
    if (!strcmp(type, "secret")) {
        o->secret = secret_new(args, id, errp);
    } else {
        o->creds = creds_new(args, id, !strcmp(type, "tls-creds-psk"), errp);
    }
    if (!o->secret && !o->creds) {
        return false;
    }
    g_mutex_lock(&lock);
    if (!objects) {
        objects = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, object_free);
    }
    g_hash_table_insert(objects, g_strdup(id), g_steal_pointer(&o));
    g_mutex_unlock(&lock);
    return true;
}

bool tls_object_exists(const char *id)
{
    g_mutex_lock(&lock);
    bool found = object_find(id) != NULL;
    g_mutex_unlock(&lock);
    return found;
}

bool tls_object_del(const char *id, GError **errp)
{
    g_mutex_lock(&lock);
    TlsObject *o = object_find(id);
    bool used = o && o->creds && g_atomic_int_get(&o->creds->refs) > 1;
    if (o && !used) {
        g_hash_table_remove(objects, id);
    }
    g_mutex_unlock(&lock);
    if (!o) {
        colo_error_set(errp, "object '%s' not found", id);
    } else if (used) {
        colo_error_set(errp, "object '%s' is in use, can not be deleted", id);
    }
    return o && !used;
}

void tls_objects_clear(void)
{
    g_mutex_lock(&lock);
    g_clear_pointer(&objects, g_hash_table_unref);
    g_mutex_unlock(&lock);
}

TlsCreds *tls_creds_get(const char *id, bool server, GError **errp)
{
    g_mutex_lock(&lock);
    TlsObject *o = object_find(id);
    TlsCreds *c = o ? o->creds : NULL;
    if (c && c->server == server) {
        tls_creds_ref(c);
    }
    g_mutex_unlock(&lock);
    if (!o) {
        colo_error_set(errp, "No TLS credentials with id '%s'", id);
    } else if (!c) {
        colo_error_set(errp, "Object with id '%s' is not TLS credentials", id);
    } else if (c->server != server) {
        colo_error_set(errp, "Expecting TLS credentials with a %s endpoint, but '%s' has "
                             "endpoint=%s", server ? "server" : "client", id,
                       server ? "client" : "server");
        return NULL;
    }
    return c;
}

bool tls_creds_is_psk(const TlsCreds *c)
{
    return c->psk;
}

bool tls_creds_verify_peer(const TlsCreds *c)
{
    return c->verify_peer;
}

const char *tls_creds_id(const TlsCreds *c)
{
    return c->id;
}

const char *tls_creds_dir(const TlsCreds *c)
{
    return c->dir;
}

const char *tls_creds_psk_file(const TlsCreds *c)
{
    return c->psk_file;
}

const char *tls_creds_psk_user(const TlsCreds *c)
{
    return c->psk_user;
}

const char *tls_creds_own_only(const TlsCreds *c)
{
    return c->priority ? "priority" : c->password ? "passwordid" : NULL;
}
