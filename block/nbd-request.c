/*
 * NBD server: requests of one connection and the answers to them.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What breaks the framing ends the connection, what is merely wrong is answered.
 *
 * Memory. Each connection may hold NBD_CONN_BYTES of data, being received, in flight or
 * waiting to be sent; all those of the user's server together hold NBD_POOL_BYTES more or
 * less: a connection that holds nothing may always have one request, so that a client
 * that does not read its answers cannot starve one that does. A request for which there
 * is no room stays in the stage, and its connection is not read from.
 */
#include "nbd-conn.h"

/* Answers waiting in memory beyond which no more requests are taken. */
#define OUT_MAX 256

/* A client's request on its way. */
typedef struct NbdServed {
    NbdConn *conn;
    uint64_t handle;
    uint16_t command, flags;
    BlockRequest req;
} NbdServed;

/* Room singleton, guarded by the block lock: what connections of the user's server hold. */
static uint64_t pool_bytes;
static bool pool_was_full;

void nbd_conn_hold(NbdConn *c, int64_t bytes)
{
    c->bytes += bytes;
    if (c->guest) {
        return;
    }
    pool_bytes += bytes;
    if (bytes < 0 && pool_was_full && pool_bytes <= NBD_POOL_BYTES / 2) {
        pool_was_full = false;
        nbd_server_kick_later();
    }
}

uint64_t nbd_pool_used(void)
{
    return pool_bytes;
}

bool nbd_conn_has_room(NbdConn *c, const uint8_t *h)
{
    uint16_t command = get16(h + 6);
    uint32_t len = command == NBD_CMD_READ || command == NBD_CMD_WRITE ||
                           command == NBD_CMD_CACHE
                       ? MIN(get32(h + 24), BLOCK_MAX_TRANSFER)
                       : 0;

    if (c->in_flight >= NBD_CONN_REQUESTS || c->out.length > OUT_MAX ||
        (c->export->node->secondary && block_secondary_full(c->export->node->secondary))) {
        return false;
    }
    if (c->bytes == 0 || len == 0) {
        return true;
    }
    if (!c->guest && pool_bytes + len > NBD_POOL_BYTES) {
        pool_was_full = true;
        return false;
    }
    return c->bytes + len <= NBD_CONN_BYTES;
}

static void served_free(NbdServed *r)
{
    NbdConn *c = r->conn;

    c->in_flight--;
    if (r->req.buf) {
        nbd_conn_hold(c, -(int64_t)r->req.buf->size);
    }
    block_buf_unref(r->req.buf);
    if (r->req.extents) {
        g_array_unref(r->req.extents);
    }
    g_free(r);
    nbd_conn_unref(c);
}

static void served_buf(NbdServed *r, uint32_t len)
{
    r->req.buf = block_buf_new(len);
    r->req.data = r->req.buf->data;
    nbd_conn_hold(r->conn, r->req.buf->size);
}

/* --- Answers --- */

static uint32_t nbd_errno(int ret)
{
    switch (-ret) {
    case EPERM:
    case EACCES:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EFBIG:
    case EDQUOT:
        return NBD_ENOSPC;
    case ENOTSUP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

static void chunk_head(uint8_t *h, NbdServed *r, uint16_t type, uint32_t len)
{
    put32(h, NBD_CHUNK_MAGIC);
    put16(h + 4, NBD_CHUNK_FLAG_DONE);
    put16(h + 6, type);
    put64(h + 8, r->handle);
    put32(h + 16, len);
}

static void reply_structured(NbdServed *r, int ret)
{
    NbdConn *c = r->conn;
    uint8_t h[28];

    if (ret < 0) {
        chunk_head(h, r, NBD_CHUNK_ERROR, 6);
        put32(h + 20, nbd_errno(ret));
        put16(h + 24, 0);
        nbd_conn_send(c, h, 26, NULL, NULL, 0);
    } else if (r->command == NBD_CMD_READ && r->req.bytes > 0) {
        chunk_head(h, r, NBD_CHUNK_OFFSET_DATA, 8 + r->req.bytes);
        put64(h + 20, r->req.offset);
        nbd_conn_send(c, h, 28, r->req.buf, r->req.data, r->req.bytes);
    } else if (r->command == NBD_CMD_BLOCK_STATUS) {
        GArray *x = r->req.extents;
        guint n = r->flags & NBD_CMD_FLAG_REQ_ONE ? MIN(x->len, 1) : x->len;
        g_autofree uint8_t *all = g_malloc(24 + 8 * n);

        chunk_head(all, r, NBD_CHUNK_BLOCK_STATUS, 4 + 8 * n);
        put32(all + 20, 1);
        for (guint i = 0; i < n; i++) {
            BlockExtent *e = &g_array_index(x, BlockExtent, i);

            put32(all + 24 + 8 * i, MIN(e->bytes, UINT32_MAX & ~511u));
            put32(all + 28 + 8 * i, e->flags);
            if (e->bytes > (UINT32_MAX & ~511u)) {
                n = i + 1; /* cannot be said in one: the client asks again */
                put32(all + 16, 4 + 8 * n);
            }
        }
        nbd_conn_send(c, all, 24 + 8 * n, NULL, NULL, 0);
    } else {
        chunk_head(h, r, NBD_CHUNK_NONE, 0);
        nbd_conn_send(c, h, 20, NULL, NULL, 0);
    }
}

static void conn_reply(NbdServed *r, int ret)
{
    NbdConn *c = r->conn;

    if (c->closed) {
        return;
    }
    if (r->command == NBD_CMD_BLOCK_STATUS && ret == 0 && r->req.extents->len == 0) {
        ret = -EIO;
    }
    if (c->structured) {
        reply_structured(r, ret);
    } else {
        uint8_t h[16];
        bool data = ret == 0 && r->command == NBD_CMD_READ;

        put32(h, NBD_SIMPLE_MAGIC);
        put32(h + 4, ret < 0 ? nbd_errno(ret) : 0);
        put64(h + 8, r->handle);
        nbd_conn_send(c, h, sizeof(h), data ? r->req.buf : NULL,
                      data ? r->req.data : NULL, data ? r->req.bytes : 0);
    }
}

static void served_done(BlockRequest *req, int ret)
{
    NbdServed *r = req->opaque;
    NbdConn *c = r->conn;

    c->refs++;
    conn_reply(r, ret);
    served_free(r);
    nbd_conn_resume(c);
    nbd_conn_unref(c);
}

/* --- Requests --- */

static void served_submit(NbdServed *r)
{
    NbdConn *c = r->conn;

    if (c->export->writethrough && block_op_modifies(r->req.op)) {
        r->req.flags |= BLOCK_REQ_FUA;
    }
    block_front_submit(c->export->node, c, &r->req);
}

/* What is wrong with a request whose framing is right; 0 or -errno. */
static int request_check(NbdConn *c, NbdServed *r, uint32_t len)
{
    uint16_t known = NBD_CMD_FLAG_FUA;
    uint64_t size = c->export->node->size;

    if (r->command == NBD_CMD_WRITE_ZEROES) {
        known |= NBD_CMD_FLAG_NO_HOLE;
        known |= nbd_export_flags(c->export) & NBD_TFLAG_SEND_FAST_ZERO
                     ? NBD_CMD_FLAG_FAST_ZERO : 0;
    } else if (r->command == NBD_CMD_READ && c->structured) {
        known |= NBD_CMD_FLAG_DF;
    } else if (r->command == NBD_CMD_BLOCK_STATUS) {
        known |= NBD_CMD_FLAG_REQ_ONE;
    }
    if (r->flags & ~known) {
        return -EINVAL;
    }
    if (r->command == NBD_CMD_FLUSH) {
        return 0;
    }
    if (block_op_modifies(r->req.op) && !c->export->writable) {
        return -EPERM;
    }
    if (r->req.offset > size || len > size - r->req.offset) {
        return r->command == NBD_CMD_WRITE || r->command == NBD_CMD_WRITE_ZEROES ? -ENOSPC
                                                                                 : -EINVAL;
    }
    if (r->command == NBD_CMD_READ && len > BLOCK_MAX_TRANSFER) {
        return -EINVAL;
    }
    if (r->command == NBD_CMD_BLOCK_STATUS && (!c->meta_context || len == 0)) {
        return -EINVAL;
    }
    return 0;
}

/* A request header. False: the connection must end. */
bool nbd_conn_request(NbdConn *c, const uint8_t *h)
{
    static const int ops[] = {
        [NBD_CMD_CACHE] = BLOCK_OP_READ, /* of which nothing is sent */
        [NBD_CMD_READ] = BLOCK_OP_READ,
        [NBD_CMD_WRITE] = BLOCK_OP_WRITE,
        [NBD_CMD_FLUSH] = BLOCK_OP_FLUSH,
        [NBD_CMD_TRIM] = BLOCK_OP_TRIM,
        [NBD_CMD_WRITE_ZEROES] = BLOCK_OP_ZEROES,
        [NBD_CMD_BLOCK_STATUS] = BLOCK_OP_STATUS,
    };
    uint16_t command = get16(h + 6);
    uint32_t len = get32(h + 24);

    if (get32(h) != NBD_REQUEST_MAGIC) {
        colo_report("export '%s': an NBD client sends garbage", c->export->name);
        return false;
    }
    if (command == NBD_CMD_DISC) {
        c->disconnecting = true;
        return true;
    }
    /* The data of a write must be taken off the wire before its error can be told. */
    if (command == NBD_CMD_WRITE && len > BLOCK_MAX_TRANSFER) {
        colo_report("export '%s': an NBD client writes %u bytes at once, more than %u",
                    c->export->name, len, BLOCK_MAX_TRANSFER);
        return false;
    }

    NbdServed *r = g_new0(NbdServed, 1);
    bool known = command < G_N_ELEMENTS(ops);
    r->conn = c;
    r->flags = get16(h + 4);
    r->command = command;
    r->handle = get64(h + 8);
    r->req.op = known ? ops[command] : BLOCK_OP_STATUS;
    r->req.offset = get64(h + 16);
    r->req.bytes = len;
    r->req.done = served_done;
    r->req.opaque = r;
    if (r->flags & NBD_CMD_FLAG_FUA && block_op_modifies(r->req.op)) {
        r->req.flags |= BLOCK_REQ_FUA;
    }
    if (command == NBD_CMD_WRITE_ZEROES && !(r->flags & NBD_CMD_FLAG_NO_HOLE)) {
        r->req.flags |= BLOCK_REQ_MAY_UNMAP;
    }
    if (command == NBD_CMD_WRITE_ZEROES && r->flags & NBD_CMD_FLAG_FAST_ZERO) {
        r->req.flags |= BLOCK_REQ_FAST;
    }
    c->refs++;
    c->in_flight++;

    int err = known ? request_check(c, r, len) : -EINVAL;
    if (command == NBD_CMD_WRITE && len > 0) {
        served_buf(r, len);
        r->req.ret = err;
        c->payload = r;
        c->payload_got = 0;
        c->phase = NBD_PHASE_PAYLOAD;
        return true;
    }
    if (err < 0 || (len == 0 && command != NBD_CMD_FLUSH)) {
        block_complete_later(&r->req, err);
        return true;
    }
    if (command == NBD_CMD_READ) {
        served_buf(r, len);
    } else if (command == NBD_CMD_CACHE) {
        /* Advice, so taken for as much as is held at once. */
        r->req.bytes = MIN(len, BLOCK_MAX_TRANSFER);
        served_buf(r, r->req.bytes);
    } else if (command == NBD_CMD_BLOCK_STATUS) {
        r->req.extents = g_array_new(FALSE, FALSE, sizeof(BlockExtent));
    } else if (command == NBD_CMD_FLUSH) {
        r->req.offset = r->req.bytes = 0;
    }
    served_submit(r);
    return true;
}

uint8_t *nbd_conn_payload(NbdConn *c, size_t *left)
{
    *left = c->payload->req.bytes - c->payload_got;
    return c->payload->req.data + c->payload_got;
}

void nbd_conn_payload_drop(NbdConn *c)
{
    if (c->payload) {
        served_free(g_steal_pointer(&c->payload));
    }
}

void nbd_conn_payload_add(NbdConn *c, size_t n)
{
    c->payload_got += n;
    if (c->payload_got < c->payload->req.bytes) {
        return;
    }
    NbdServed *r = g_steal_pointer(&c->payload);

    c->phase = NBD_PHASE_REQUEST;
    if (r->req.ret < 0) {
        block_complete_later(&r->req, r->req.ret);
    } else {
        served_submit(r);
    }
}
