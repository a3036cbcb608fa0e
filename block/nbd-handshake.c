/*
 * NBD server: fixed newstyle negotiation.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "nbd-conn.h"

/* The only metadata context, and the id under which its answers come. */
#define CONTEXT_NAME "base:allocation"
#define CONTEXT_ID 1

void nbd_handshake_greet(NbdConn *c)
{
    uint8_t hello[18];

    put64(hello, NBD_MAGIC);
    put64(hello + 8, NBD_OPTS_MAGIC);
    put16(hello + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    nbd_conn_send(c, hello, sizeof(hello), NULL, NULL, 0);
    nbd_conn_flush(c);
}

bool nbd_handshake_flags(NbdConn *c, uint32_t flags)
{
    if (flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
        return false;
    }
    c->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    return true;
}

static void send_reply(NbdConn *c, uint32_t type, const void *data, uint32_t len)
{
    uint8_t head[20];

    put64(head, NBD_REP_MAGIC);
    put32(head + 8, c->opt);
    put32(head + 12, type);
    put32(head + 16, len);
    nbd_conn_send(c, head, sizeof(head), NULL, NULL, 0);
    if (len) {
        nbd_conn_send(c, data, len, NULL, NULL, 0);
    }
}

static void send_error(NbdConn *c, uint32_t type, const char *text)
{
    send_reply(c, type, text, strlen(text));
}

static void begin_transmission(NbdConn *c, NbdExport *e)
{
    c->export = e;
    e->node->users++;
    c->phase = NBD_PHASE_REQUEST;
    io_source_destroy(&c->patience);
    colo_trace(block_nbd_client, "export '%s', structured %d", e->name, c->structured);
}

static bool opt_export_name(NbdConn *c, const uint8_t *data)
{
    g_autofree char *name = g_strndup((const char *)data, c->opt_len);
    NbdExport *e =
        c->opt_len <= NBD_NAME_MAX ? nbd_listener_find(c->listener, name) : NULL;
    uint8_t reply[10 + 124] = {0};

    if (!e) {
        return false; /* This option has no way to say no. */
    }
    put64(reply, e->node->size);
    put16(reply + 8, nbd_export_flags(e));
    nbd_conn_send(c, reply, c->no_zeroes ? 10 : sizeof(reply), NULL, NULL, 0);
    begin_transmission(c, e);
    return true;
}

static void opt_list(NbdConn *c)
{
    NbdExport *e;

    if (c->opt_len) {
        send_error(c, NBD_REP_ERR_INVALID, "this option has no data");
        return;
    }
    for (unsigned i = 0; (e = nbd_listener_export(c->listener, i)); i++) {
        size_t len = strlen(e->name);
        g_autofree uint8_t *data = g_malloc(4 + len);

        put32(data, len);
        memcpy(data + 4, e->name, len);
        send_reply(c, NBD_REP_SERVER, data, 4 + len);
    }
    send_reply(c, NBD_REP_ACK, NULL, 0);
}

static void send_info_text(NbdConn *c, uint16_t type, const char *text)
{
    size_t len = strlen(text);
    g_autofree uint8_t *info = g_malloc(2 + len);

    put16(info, type);
    memcpy(info + 2, text, len);
    send_reply(c, NBD_REP_INFO, info, 2 + len);
}

static void opt_go(NbdConn *c, const uint8_t *data)
{
    uint32_t name_len = c->opt_len >= 6 ? get32(data) : UINT32_MAX;
    uint8_t info[14];
    bool sized = false;

    if (name_len > NBD_NAME_MAX || name_len > c->opt_len - 6 ||
        c->opt_len != 6 + name_len + 2u * get16(data + 4 + name_len)) {
        send_error(c, NBD_REP_ERR_INVALID, "malformed option");
        return;
    }
    g_autofree char *name = g_strndup((const char *)data + 4, name_len);
    NbdExport *e = strlen(name) == name_len ? nbd_listener_find(c->listener, name) : NULL;
    if (!e) {
        send_error(c, NBD_REP_ERR_UNKNOWN, "export not found");
        return;
    }
    for (const uint8_t *p = data + 6 + name_len; p < data + c->opt_len; p += 2) {
        sized |= get16(p) == NBD_INFO_BLOCK_SIZE;
        if (get16(p) == NBD_INFO_NAME) {
            send_info_text(c, NBD_INFO_NAME, e->name);
        } else if (get16(p) == NBD_INFO_DESCRIPTION && e->description) {
            send_info_text(c, NBD_INFO_DESCRIPTION, e->description);
        }
    }
    put16(info, NBD_INFO_EXPORT);
    put64(info + 2, e->node->size);
    put16(info + 10, nbd_export_flags(e));
    send_reply(c, NBD_REP_INFO, info, 12);
    /* A client that did not ask does not keep to it either. */
    put16(info, NBD_INFO_BLOCK_SIZE);
    put32(info + 2, sized && (e->guest || e->node->secondary) ? BLOCK_SECTOR : 1);
    put32(info + 6, 4096);
    put32(info + 10, BLOCK_MAX_TRANSFER);
    send_reply(c, NBD_REP_INFO, info, 14);
    send_reply(c, NBD_REP_ACK, NULL, 0);
    if (c->opt == NBD_OPT_GO) {
        begin_transmission(c, e);
    }
}

/* Whether a query of a client asks for our context. */
static bool context_matches(const uint8_t *q, uint32_t len, bool list)
{
    return (len == strlen(CONTEXT_NAME) && !memcmp(q, CONTEXT_NAME, len)) ||
           (list && len == strlen("base:") && !memcmp(q, "base:", len));
}

static void opt_meta_context(NbdConn *c, const uint8_t *data)
{
    bool list = c->opt == NBD_OPT_LIST_META_CONTEXT;
    const uint8_t *p = data, *end = data + c->opt_len;
    bool found = false;

    if (!list) {
        c->meta_context = false;
    }
    if (!c->structured) {
        send_error(c, NBD_REP_ERR_INVALID, "structured replies come first");
        return;
    }
    uint32_t name_len = end - p >= 8 ? get32(p) : UINT32_MAX;
    if (name_len > NBD_NAME_MAX || name_len > (size_t)(end - p) - 8) {
        send_error(c, NBD_REP_ERR_INVALID, "malformed option");
        return;
    }
    g_autofree char *name = g_strndup((const char *)p + 4, name_len);
    uint32_t queries = get32(p + 4 + name_len);
    p += 8 + name_len;
    if (!nbd_listener_find(c->listener, name)) {
        send_error(c, NBD_REP_ERR_UNKNOWN, "export not found");
        return;
    }
    for (uint32_t i = 0; i < queries; i++) {
        uint32_t len = end - p >= 4 ? get32(p) : UINT32_MAX;

        if (end - p < 4 || len > (size_t)(end - p) - 4) {
            send_error(c, NBD_REP_ERR_INVALID, "malformed option");
            return;
        }
        found |= context_matches(p + 4, len, list);
        if (!list) {
            nbd_conn_name(c, (const char *)p + 4, len);
        }
        p += 4 + len;
    }
    if (p != end) {
        send_error(c, NBD_REP_ERR_INVALID, "malformed option");
        return;
    }
    if (found || (list && queries == 0)) {
        uint8_t reply[4 + sizeof(CONTEXT_NAME) - 1];

        put32(reply, list ? 0 : CONTEXT_ID);
        memcpy(reply + 4, CONTEXT_NAME, sizeof(CONTEXT_NAME) - 1);
        send_reply(c, NBD_REP_META_CONTEXT, reply, sizeof(reply));
        c->meta_context = c->meta_context || !list;
    }
    send_reply(c, NBD_REP_ACK, NULL, 0);
}

static bool opt_starttls(NbdConn *c)
{
    if (c->opt_len) {
        send_error(c, NBD_REP_ERR_INVALID, "this option has no data");
        return true;
    }
    if (c->tls) {
        send_error(c, NBD_REP_ERR_INVALID, "TLS has been started");
        return true;
    }
    if (!nbd_listener_tls(c->listener)) {
        send_error(c, NBD_REP_ERR_POLICY, "this server has no TLS credentials");
        return true;
    }
    /* What was said before may have been said by somebody else. */
    c->structured = c->meta_context = false;
    send_reply(c, NBD_REP_ACK, NULL, 0);
    return nbd_conn_start_tls(c);
}

bool nbd_handshake_option(NbdConn *c, const uint8_t *data)
{
    c->phase = NBD_PHASE_OPTION;
    if (nbd_listener_tls(c->listener) && !c->tls && c->opt != NBD_OPT_STARTTLS &&
        c->opt != NBD_OPT_ABORT) {
        if (c->opt == NBD_OPT_EXPORT_NAME) {
            return false;
        }
        send_error(c, NBD_REP_ERR_TLS_REQD, "this server wants TLS: STARTTLS comes first");
        return true;
    }
    switch (c->opt) {
    case NBD_OPT_EXPORT_NAME:
        return opt_export_name(c, data);
    case NBD_OPT_ABORT:
        send_reply(c, NBD_REP_ACK, NULL, 0);
        c->disconnecting = true;
        break;
    case NBD_OPT_LIST:
        opt_list(c);
        break;
    case NBD_OPT_STARTTLS:
        return opt_starttls(c);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        opt_go(c, data);
        break;
    case NBD_OPT_STRUCTURED_REPLY:
        if (c->opt_len) {
            send_error(c, NBD_REP_ERR_INVALID, "this option has no data");
        } else {
            c->structured = true;
            send_reply(c, NBD_REP_ACK, NULL, 0);
        }
        break;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        opt_meta_context(c, data);
        break;
    default:
        send_error(c, NBD_REP_ERR_UNSUP, "option not supported");
        break;
    }
    return true;
}
