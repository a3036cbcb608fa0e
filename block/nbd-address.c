/*
 * Where an NBD server is: options and URIs, and the connection made.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block-int.h"
#include "util/tls.h"

#include <gio/gio.h>
#include <gio/gunixsocketaddress.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <fcntl.h>

#define NBD_CONNECT_MS 5000

/* A client of the server that @opts name. */
static NbdClient *nbd_connect(JsonObject *opts, const char *export_name, TlsCreds *tls,
                              GError **errp)
{
    JsonObject *server = options_get_obj(opts, "server");
    JsonObject *addr = server ? server : opts;
    const char *type = options_get_str(server, "type", NULL);
    const char *path = options_get_str(addr, "path", NULL);
    const char *host = options_get_str(addr, "host", NULL);
    g_autoptr(GSocketConnectable) target = NULL;

    if (type ? !strcmp(type, "unix") : path != NULL) {
        if (!path) {
            colo_error_set(errp, "Parameter 'server.path' is missing");
            return NULL;
        }
        if (tls) {
            return nbd_client_new_tls(path, NULL, NULL, export_name, tls, NBD_CONNECT_MS, errp);
        }
        target = G_SOCKET_CONNECTABLE(g_unix_socket_address_new(path));
    } else if (!type || !strcmp(type, "inet")) {
        uint64_t port = 10809;

        if (!host) {
            colo_error_set(errp, "Parameter 'server.host' is missing");
            return NULL;
        }
        if (!options_get_uint(addr, "port", &port, 1, 65535, errp)) {
            return NULL;
        }
        if (tls) {
            g_autofree char *number = g_strdup_printf("%" PRIu64, port);

            return nbd_client_new_tls(NULL, host, number, export_name, tls, NBD_CONNECT_MS,
                                      errp);
        }
        target = g_network_address_new(host, port);
    } else {
        colo_error_set(errp, "Parameter 'server.type' expects 'inet' or 'unix', not '%s'",
                       type);
        return NULL;
    }

    g_autoptr(GSocketClient) sc = g_socket_client_new();
    g_socket_client_set_timeout(sc, NBD_CONNECT_MS / 1000);
    g_socket_client_set_enable_proxy(sc, FALSE);
    g_autoptr(GError) err = NULL;
    g_autoptr(GSocketConnection) sock = g_socket_client_connect(sc, target, NULL, &err);
    if (!sock) {
        g_autofree char *where = g_socket_connectable_to_string(target);

        colo_error_set(errp, "cannot connect to the NBD server at %s: %s", where,
                       err->message);
        return NULL;
    }
    /* The duplicate keeps the connection open. */
    int fd =
        fcntl(g_socket_get_fd(g_socket_connection_get_socket(sock)), F_DUPFD_CLOEXEC, 3);
    int one = 1;
    if (fd < 0) {
        colo_error_set_errno(errp, errno, "NBD export '%s'", export_name);
        return NULL;
    }
    /* Fails on a unix socket, which needs it not. */
    (void)!setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return nbd_client_new(fd, export_name, NBD_CONNECT_MS, errp);
}

/* nbd://host[:port]/export, nbd+unix:///export?socket=path, nbd:host:port:exportname=x */
static JsonObject *nbd_parse_uri(const char *uri, GError **errp)
{
    g_autoptr(JsonObject) o = json_object_new();
    g_autoptr(GUri) u = g_uri_parse(uri, G_URI_FLAGS_NONE, NULL);

    if (u && g_uri_get_host(u) && g_str_has_prefix(uri, "nbd")) {
        const char *path = g_uri_get_path(u);
        const char *query = g_uri_get_query(u);

        json_object_set_string_member(o, "export", *path == '/' ? path + 1 : path);
        if (!strcmp(g_uri_get_scheme(u), "nbd+unix")) {
            if (!query || !g_str_has_prefix(query, "socket=")) {
                colo_error_set(errp, "'%s': expected ?socket=PATH", uri);
                return NULL;
            }
            json_object_set_string_member(o, "path", query + 7);
        } else {
            int port = g_uri_get_port(u);

            json_object_set_string_member(o, "host", g_uri_get_host(u));
            json_object_set_int_member(o, "port", port > 0 ? port : 10809);
        }
        return g_steal_pointer(&o);
    }
    g_auto(GStrv) parts = g_strsplit(uri, ":", 4);
    guint n = g_strv_length(parts);
    if (n < 3 || strcmp(parts[0], "nbd") ||
        (n == 4 && !g_str_has_prefix(parts[3], "exportname="))) {
        colo_error_set(errp, "'%s' is not an NBD address", uri);
        return NULL;
    }
    if (!strcmp(parts[1], "unix")) {
        json_object_set_string_member(o, "path", parts[2]);
    } else {
        json_object_set_string_member(o, "host", parts[1]);
        json_object_set_string_member(o, "port", parts[2]);
    }
    json_object_set_string_member(o, "export", n == 4 ? parts[3] + 11 : "");
    return g_steal_pointer(&o);
}

NbdClient *block_nbd_connect(JsonObject *opts, GError **errp)
{
    const char *uri = options_get_str(opts, "uri", NULL);
    const char *tls_id = options_get_str(opts, "tls-creds", NULL);
    g_autoptr(JsonObject) parsed = NULL;
    g_autoptr(TlsCreds) tls = NULL;

    if (uri) {
        parsed = nbd_parse_uri(uri, errp);
        if (!parsed) {
            return NULL;
        }
    }
    JsonObject *where = parsed ? parsed : opts;
    if (options_get_str(opts, "tls-hostname", NULL)) {
        colo_error_set(errp, "driver nbd: tls-hostname is not supported: give the name that is "
                             "in the server's certificate as server.host");
        return NULL;
    }
    if (tls_id && !(tls = tls_creds_get(tls_id, false, errp))) {
        return NULL;
    }
    NbdClient *c = nbd_connect(where, options_get_str(where, "export", ""), tls, errp);
    if (c) {
        nbd_client_set_where(c, where);
    }
    return c;
}

NbdClient *block_nbd_connect_beside(NbdClient *b, const char *suffix, GError **errp)
{
    g_autofree char *export_name = g_strconcat(nbd_client_export(b), suffix, NULL);

    return nbd_connect(nbd_client_where(b), export_name, nbd_client_creds(b), errp);
}
