/*
 * NBD server: one connection's input, requests and replies.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Input goes through a staging buffer; of a write's data only what is already staged is
 * copied, the rest is received into its own buffer. Requests run concurrently, their
 * answers go out as they come. A client that has too much in flight, does not read its
 * answers, or fills a log over its bound is simply not read from. Everything it says is
 * checked; what breaks the framing ends the connection, what is merely wrong is answered.
 */
#include "nbd-conn.h"

#include <sys/socket.h>
#include <unistd.h>

#define NEGOTIATION_MS 10000
#define OUT_IOVECS 64
/* Answers waiting in memory beyond which no more requests are read. */
#define OUT_MAX 256

typedef struct NbdOut {
    uint8_t *head; /* owned */
    size_t head_len;
    BlockBuf *buf;
    const uint8_t *data;
    size_t data_len;
    size_t sent;
} NbdOut;

/* A client's request on its way. */
typedef struct NbdServed {
    NbdConn *conn;
    uint64_t handle;
    uint16_t command, flags;
    BlockRequest req;
} NbdServed;

static void conn_update(NbdConn *c);
static bool conn_write(NbdConn *c);

static void conn_unref(NbdConn *c)
{
    if (--c->refs == 0) {
        g_free(c);
    }
}

static void out_free(NbdOut *o)
{
    g_free(o->head);
    block_buf_unref(o->buf);
    g_free(o);
}

static void served_free(NbdServed *r)
{
    NbdConn *c = r->conn;

    c->in_flight--;
    c->in_flight_bytes -= r->req.buf ? r->req.bytes : 0;
    block_buf_unref(r->req.buf);
    if (r->req.extents) {
        g_array_unref(r->req.extents);
    }
    g_free(r);
    conn_unref(c);
}

void nbd_conn_close(NbdConn *c)
{
    NbdOut *o;

    if (c->closed) {
        return;
    }
    c->closed = true;
    block_fd_free(c->watch);
    c->watch = NULL;
    io_source_destroy(&c->patience);
    g_clear_pointer(&c->tls, tls_session_free);
    close(c->fd);
    while ((o = g_queue_pop_head(&c->out))) {
        out_free(o);
    }
    if (c->payload) {
        served_free(g_steal_pointer(&c->payload));
    }
    if (c->export) {
        BlockNode *node = c->export->node;

        if (node->secondary) {
            block_secondary_conn_closed(node->secondary, c);
        }
        c->export = NULL;
        block_node_unuse(node);
    }
    nbd_listener_forget(c->listener, c);
    c->listener = NULL;
    conn_unref(c);
}

/* --- Output --- */

void nbd_conn_send(NbdConn *c, const void *head, size_t len, BlockBuf *buf,
                   const uint8_t *data, size_t data_len)
{
    NbdOut *o = g_new0(NbdOut, 1);

    o->head = g_memdup2(head, len);
    o->head_len = len;
    o->buf = buf ? block_buf_ref(buf) : NULL;
    o->data = data;
    o->data_len = data_len;
    g_queue_push_tail(&c->out, o);
}

static int out_gather(NbdConn *c, struct iovec *iov)
{
    int n = 0;

    for (GList *l = c->out.head; l && n + 2 <= OUT_IOVECS; l = l->next) {
        NbdOut *o = l->data;
        size_t skip = o->sent;

        if (skip < o->head_len) {
            iov[n++] = (struct iovec){o->head + skip, o->head_len - skip};
            skip = 0;
        } else {
            skip -= o->head_len;
        }
        if (skip < o->data_len) {
            iov[n++] = (struct iovec){(uint8_t *)o->data + skip, o->data_len - skip};
        }
    }
    return n;
}

bool nbd_conn_start_tls(NbdConn *c)
{
    g_autoptr(GError) err = NULL;

    /* A client that has more to say has said it unencrypted. */
    if (c->stage_start != c->stage_end || !conn_write(c) || !g_queue_is_empty(&c->out)) {
        return false;
    }
    c->tls = tls_session_new(nbd_listener_tls(c->listener), c->fd, NULL, &err);
    if (!c->tls) {
        colo_report("NBD server: %s", err->message);
        return false;
    }
    c->phase = NBD_PHASE_TLS;
    return true;
}

/* False: the connection must end. */
static bool conn_tls_handshake(NbdConn *c)
{
    g_autoptr(GError) err = NULL;
    int r = tls_session_handshake(c->tls, &err);

    if (r < 0) {
        colo_report("NBD server: a client is refused: %s", err->message);
        return false;
    }
    if (r > 0) {
        g_autofree char *what = tls_session_describe(c->tls);

        colo_trace(block_nbd_tls, "%s", what);
        c->phase = NBD_PHASE_OPTION;
    }
    return true;
}

static ssize_t conn_sendv(NbdConn *c, struct iovec *iov, int n)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};

    return c->tls ? tls_session_sendv(c->tls, iov, n)
                  : sendmsg(c->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static ssize_t conn_recv(NbdConn *c, void *buf, size_t len)
{
    return c->tls ? tls_session_recv(c->tls, buf, len)
                  : recv(c->fd, buf, len, MSG_DONTWAIT);
}

/* Send what goes without blocking. False: the connection is broken. */
static bool conn_write(NbdConn *c)
{
    while (!g_queue_is_empty(&c->out)) {
        struct iovec iov[OUT_IOVECS];
        ssize_t n = conn_sendv(c, iov, out_gather(c, iov));

        if (n < 0) {
            return errno == EAGAIN || errno == EINTR;
        }
        while (n > 0) {
            NbdOut *o = g_queue_peek_head(&c->out);
            size_t left = o->head_len + o->data_len - o->sent;

            if ((size_t)n < left) {
                o->sent += n;
                break;
            }
            n -= left;
            out_free(g_queue_pop_head(&c->out));
        }
    }
    return !c->disconnecting || c->in_flight > 0;
}

void nbd_conn_flush(NbdConn *c)
{
    if (c->closed) {
        return;
    }
    if (!conn_write(c)) {
        nbd_conn_close(c);
    } else {
        conn_update(c);
    }
}

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
    if (!c->closed) {
        if (!conn_write(c)) {
            nbd_conn_close(c);
        } else {
            nbd_conn_resume(c);
        }
    }
    conn_unref(c);
}

/* --- Input --- */

static bool conn_full(NbdConn *c)
{
    return c->in_flight >= NBD_CONN_REQUESTS || c->in_flight_bytes > NBD_CONN_BYTES ||
           c->out.length > OUT_MAX ||
           (c->export && c->export->node->secondary &&
            block_secondary_full(c->export->node->secondary));
}

static void conn_update(NbdConn *c)
{
    GIOCondition cond = G_IO_HUP | G_IO_ERR;

    if (c->closed) {
        return;
    }
    if (c->phase == NBD_PHASE_TLS) {
        block_fd_set(c->watch, cond | tls_session_wants(c->tls));
        return;
    }
    if (!c->disconnecting && (c->payload || !conn_full(c))) {
        cond |= G_IO_IN;
    }
    if (!g_queue_is_empty(&c->out)) {
        cond |= G_IO_OUT;
    }
    block_fd_set(c->watch, cond);
}

static void served_submit(NbdServed *r)
{
    NbdConn *c = r->conn;

    block_front_submit(c->export->node, c, &r->req);
}

/* What is wrong with a request whose framing is right; 0 or -errno. */
static int request_check(NbdConn *c, NbdServed *r, uint32_t len)
{
    uint16_t known = NBD_CMD_FLAG_FUA;
    uint64_t size = c->export->node->size;

    if (r->command == NBD_CMD_WRITE_ZEROES) {
        known |= NBD_CMD_FLAG_NO_HOLE;
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
        return block_op_modifies(r->req.op) ? -ENOSPC : -EINVAL;
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
static bool conn_request(NbdConn *c, const uint8_t *h)
{
    static const int ops[] = {
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
    bool known = command < G_N_ELEMENTS(ops) && command != 5;
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
    c->refs++;
    c->in_flight++;

    int err = known ? request_check(c, r, len) : -EINVAL;
    if (command == NBD_CMD_WRITE && len > 0) {
        r->req.buf = block_buf_new(len);
        r->req.data = r->req.buf->data;
        r->req.ret = err;
        c->in_flight_bytes += len;
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
        r->req.buf = block_buf_new(len);
        r->req.data = r->req.buf->data;
        c->in_flight_bytes += len;
    } else if (command == NBD_CMD_BLOCK_STATUS) {
        r->req.extents = g_array_new(FALSE, FALSE, sizeof(BlockExtent));
    } else if (command == NBD_CMD_FLUSH) {
        r->req.offset = r->req.bytes = 0;
    }
    served_submit(r);
    return true;
}

static void conn_payload_done(NbdConn *c)
{
    NbdServed *r = g_steal_pointer(&c->payload);

    c->phase = NBD_PHASE_REQUEST;
    if (r->req.ret < 0) {
        block_complete_later(&r->req, r->req.ret);
    } else {
        served_submit(r);
    }
}

/* Look at what is staged, as far as it goes. False: the connection must end. */
static bool conn_parse(NbdConn *c)
{
    while (!c->closed && !c->disconnecting) {
        uint8_t *p = c->stage + c->stage_start;
        size_t have = c->stage_end - c->stage_start, used = 0;

        switch (c->phase) {
        case NBD_PHASE_FLAGS:
            if (have < 4) {
                return true;
            }
            if (!nbd_handshake_flags(c, get32(p))) {
                return false;
            }
            used = 4;
            c->phase = NBD_PHASE_OPTION;
            break;
        case NBD_PHASE_OPTION:
            if (have < 16) {
                return true;
            }
            c->opt = get32(p + 8);
            c->opt_len = get32(p + 12);
            if (get64(p) != NBD_OPTS_MAGIC || c->opt_len > NBD_OPTION_MAX) {
                return false;
            }
            used = 16;
            c->phase = NBD_PHASE_OPTION_DATA;
            break;
        case NBD_PHASE_OPTION_DATA:
            if (have < c->opt_len) {
                return true;
            }
            used = c->opt_len;
            c->stage_start += used;
            if (!nbd_handshake_option(c, p)) {
                return false;
            }
            continue;
        case NBD_PHASE_TLS:
            return true;
        case NBD_PHASE_REQUEST:
            if (have < 28 || conn_full(c)) {
                return true;
            }
            c->stage_start += 28;
            if (!conn_request(c, p)) {
                return false;
            }
            continue;
        case NBD_PHASE_PAYLOAD:
            used = MIN(have, c->payload->req.bytes - c->payload_got);
            memcpy(c->payload->req.data + c->payload_got, p, used);
            c->payload_got += used;
            c->stage_start += used;
            if (c->payload_got < c->payload->req.bytes) {
                return true;
            }
            conn_payload_done(c);
            continue;
        }
        c->stage_start += used;
    }
    return true;
}

/* One receive: into the payload once the stage is empty, else into the stage. */
static ssize_t conn_receive(NbdConn *c)
{
    if (c->stage_start == c->stage_end) {
        c->stage_start = c->stage_end = 0;
        if (c->payload) {
            ssize_t n = conn_recv(c, c->payload->req.data + c->payload_got,
                                  c->payload->req.bytes - c->payload_got);

            if (n > 0) {
                c->payload_got += n;
                if (c->payload_got == c->payload->req.bytes) {
                    conn_payload_done(c);
                }
            }
            return n;
        }
    } else if (c->stage_start > 0) {
        memmove(c->stage, c->stage + c->stage_start, c->stage_end - c->stage_start);
        c->stage_end -= c->stage_start;
        c->stage_start = 0;
    }
    ssize_t n = conn_recv(c, c->stage + c->stage_end, NBD_STAGE - c->stage_end);
    if (n > 0) {
        c->stage_end += n;
    }
    return n;
}

/* Receive and look at it. False: the connection must end. What GnuTLS has decrypted
 * already makes no socket readable, so all of it is taken. */
static bool conn_read(NbdConn *c)
{
    do {
        ssize_t n = conn_receive(c);

        if (n <= 0) {
            return n < 0 && (errno == EAGAIN || errno == EINTR);
        }
        if (!conn_parse(c)) {
            return false;
        }
    } while (c->tls && !c->closed && !c->disconnecting && (c->payload || !conn_full(c)) &&
             tls_session_pending(c->tls) > 0);
    return true;
}

static void conn_event(void *opaque, GIOCondition cond)
{
    NbdConn *c = opaque;
    bool ok = true;

    c->refs++;
    if (c->phase == NBD_PHASE_TLS) {
        ok = conn_tls_handshake(c);
        if (ok && c->phase != NBD_PHASE_TLS) {
            ok = conn_read(c);
        }
    } else {
        if (cond & G_IO_OUT) {
            ok = conn_write(c);
        }
        if (ok && (cond & (G_IO_IN | G_IO_HUP | G_IO_ERR)) && !c->disconnecting) {
            /* A full connection is not read from, but its end is noticed. */
            if (!c->payload && conn_full(c)) {
                ok = !(cond & (G_IO_HUP | G_IO_ERR));
            } else {
                ok = conn_read(c);
            }
        } else if (cond & (G_IO_HUP | G_IO_ERR)) {
            ok = false;
        }
    }
    if (!c->closed) {
        if (!ok || !conn_write(c)) {
            nbd_conn_close(c);
        } else {
            conn_update(c);
        }
    }
    conn_unref(c);
}

void nbd_conn_resume(NbdConn *c)
{
    if (c->closed || c->phase == NBD_PHASE_TLS) {
        return;
    }
    c->refs++;
    bool ok = conn_parse(c);
    if (ok && c->tls && !c->closed && !c->disconnecting && (c->payload || !conn_full(c)) &&
        tls_session_pending(c->tls) > 0) {
        ok = conn_read(c);
    }
    if (!c->closed && (!ok || !conn_write(c))) {
        nbd_conn_close(c);
    }
    conn_update(c);
    conn_unref(c);
}

static gboolean conn_out_of_patience(gpointer opaque)
{
    NbdConn *c = opaque;

    colo_trace(block_nbd_timeout, "a client did not finish its negotiation");
    nbd_conn_close(c);
    return G_SOURCE_REMOVE;
}

NbdConn *nbd_conn_new(NbdListener *l, int fd)
{
    NbdConn *c = g_new0(NbdConn, 1);

    c->refs = 1;
    c->listener = l;
    c->fd = fd;
    g_queue_init(&c->out);
    c->watch = block_fd_new(fd, G_IO_IN | G_IO_HUP | G_IO_ERR, conn_event, c);
    c->patience =
        io_thread_timer(block_thread(), NEGOTIATION_MS, conn_out_of_patience, c);
    return c;
}
