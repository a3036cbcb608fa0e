/*
 * NBD clients over libnbd, run by the block thread.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * libnbd sends commands in the order of the calls and never blocks here. Its completion
 * callbacks run inside its own lock, so they only queue. A connection that ends fails
 * every command in flight and stays dead: reconnecting is a decision for others (nbd-node.c).
 */
#include "block-int.h"
#include "nbd-name.h"
#include "util/deadline.h"
#include "util/tls.h"

#include <gio/gio.h>
#include <gio/gunixsocketaddress.h>
#include <inttypes.h>
#include <libnbd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct NbdCmd {
    unsigned refs; /* libnbd's, and the submission's while it lasts */
    NbdClient *client;
    BlockRequest *req; /* NULL once completed */
    GList link;
} NbdCmd;

struct NbdClient {
    struct nbd_handle *h;
    BlockFd *watch;
    char *export_name;
    char *error;
    bool ready;
    char *name; /* of the connection (nbd-name.h) */
    GQueue in_flight; /* NbdCmd */
    uint64_t size;
    bool read_only, can_zero, can_trim, can_fua, can_flush, has_status;
    BlockWait *connecting;
    NbdClientClosedFunc closed_fn;
    void *closed_opaque;
    JsonObject *where; /* of block_nbd_open(), with the export's name */
    TlsCreds *tls; /* or NULL; held so that they are seen to be in use */
};

static void client_fail(NbdClient *c, const char *why)
{
    if (c->error) {
        return;
    }
    c->error = g_strdup(why);
    block_fd_free(c->watch);
    c->watch = NULL;
    GList *l;
    while ((l = g_queue_pop_head_link(&c->in_flight))) {
        NbdCmd *cmd = l->data;

        block_complete_later(g_steal_pointer(&cmd->req), -EIO);
    }
    colo_trace(block_nbd_client_dead, "export '%s': %s", c->export_name, why);
    if (c->connecting) {
        block_wait_done(g_steal_pointer(&c->connecting), -ECONNRESET);
    } else if (c->closed_fn) {
        c->closed_fn(c->closed_opaque, c->error);
    }
}

static bool client_learn(NbdClient *c)
{
    int64_t size = nbd_get_size(c->h);

    if (size < 0) {
        return false;
    }
    c->size = size;
    c->read_only = nbd_is_read_only(c->h) > 0;
    c->can_zero = nbd_can_zero(c->h) > 0;
    c->can_trim = nbd_can_trim(c->h) > 0;
    c->can_fua = nbd_can_fua(c->h) > 0;
    c->can_flush = nbd_can_flush(c->h) > 0;
    c->has_status = nbd_can_meta_context(c->h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0;
    return true;
}

/* After each call into libnbd: what does it wait for now? */
static void client_update(NbdClient *c)
{
    if (c->error) {
        return;
    }
    if (nbd_aio_is_dead(c->h) > 0 || nbd_aio_is_closed(c->h) > 0) {
        const char *e = nbd_get_error();

        client_fail(c, e && *e && c->connecting ? e : "the NBD connection is lost");
        return;
    }
    if (!c->ready && nbd_aio_is_ready(c->h) > 0) {
        if (!client_learn(c)) {
            client_fail(c, "the NBD server gave no size");
            return;
        }
        c->ready = true;
        if (c->connecting) {
            block_wait_done(g_steal_pointer(&c->connecting), 0);
        }
    }
    unsigned dir = nbd_aio_get_direction(c->h);
    block_fd_set(c->watch, (dir & LIBNBD_AIO_DIRECTION_READ ? G_IO_IN | G_IO_HUP : 0) |
                               (dir & LIBNBD_AIO_DIRECTION_WRITE ? G_IO_OUT : 0) |
                               G_IO_ERR);
}

static void client_event(void *opaque, GIOCondition cond)
{
    NbdClient *c = opaque;
    unsigned dir = nbd_aio_get_direction(c->h);
    int r = 0;

    if ((dir & LIBNBD_AIO_DIRECTION_READ) && (cond & (G_IO_IN | G_IO_HUP | G_IO_ERR))) {
        r = nbd_aio_notify_read(c->h);
    } else if ((dir & LIBNBD_AIO_DIRECTION_WRITE) &&
               (cond & (G_IO_OUT | G_IO_HUP | G_IO_ERR))) {
        r = nbd_aio_notify_write(c->h);
    }
    if (r < 0 && !c->ready) {
        g_autofree char *why = g_strdup(nbd_get_error());
        client_fail(c, why ? why : "NBD negotiation failed");
        return;
    }
    client_update(c);
}

static NbdClient *client_alloc(struct nbd_handle *h, const char *export_name, char *name)
{
    NbdClient *c = g_new0(NbdClient, 1);

    c->h = h;
    c->name = name;
    c->export_name = g_strdup(export_name);
    g_queue_init(&c->in_flight);
    return c;
}

/* A handle that asks for what we need, or NULL; the connection's @name. */
static struct nbd_handle *client_handle(const char *export_name, char **name, GError **errp)
{
    struct nbd_handle *h = nbd_create();
    g_autofree char *context = NULL;
    g_autofree char *mine = nbd_name_new(&context);

    if (h && nbd_set_export_name(h, export_name) == 0 &&
        nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0 &&
        nbd_add_meta_context(h, context) == 0 &&
        nbd_set_pread_initialize(h, false) == 0) {
        *name = g_steal_pointer(&mine);
        return h;
    }
    colo_error_set(errp, "NBD export '%s': %s", export_name, nbd_get_error());
    nbd_close(h);
    return NULL;
}

/* Its connection is being made or ready; the block thread has it from now on. */
static NbdClient *client_adopt(NbdClient *c, unsigned ms, GError **errp)
{
    BlockWait wait;

    block_wait_init(&wait);
    block_lock();
    c->connecting = &wait;
    c->watch = block_fd_new(nbd_aio_get_fd(c->h), G_IO_ERR, client_event, c);
    client_update(c);
    block_unlock();

    int r = block_wait(&wait, ms);
    block_lock();
    c->connecting = NULL;
    if (r < 0 || c->error) {
        colo_error_set(errp, "NBD export '%s': %s", c->export_name,
                       c->error ? c->error : "the server does not answer");
        nbd_client_free(c);
        c = NULL;
    }
    block_unlock();
    return c;
}

NbdClient *nbd_client_new(int fd, const char *export_name, unsigned ms, GError **errp)
{
    g_autofree char *name = NULL;
    struct nbd_handle *h = client_handle(export_name, &name, errp);

    if (!h) {
        close(fd);
        return NULL;
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    if (nbd_aio_connect_socket(h, fd) < 0) {
        colo_error_set(errp, "NBD export '%s': %s", export_name, nbd_get_error());
        nbd_close(h);
        return NULL;
    }
    return client_adopt(client_alloc(h, export_name, g_steal_pointer(&name)), ms, errp);
}

/* --- TLS --- */

static bool handle_set_tls(struct nbd_handle *h, TlsCreds *tls, GError **errp)
{
    int r = nbd_set_tls(h, LIBNBD_TLS_REQUIRE);

    if (r == 0 && tls_creds_is_psk(tls)) {
        r = nbd_set_tls_psk_file(h, tls_creds_psk_file(tls)) |
            nbd_set_tls_username(h, tls_creds_psk_user(tls));
    } else if (r == 0) {
        r = nbd_set_tls_certificates(h, tls_creds_dir(tls)) |
            nbd_set_tls_verify_peer(h, tls_creds_verify_peer(tls));
    }
    if (r < 0) {
        colo_error_set(errp, "tls-creds '%s': %s", tls_creds_id(tls), nbd_get_error());
    }
    return r == 0;
}

/*
 * libnbd checks a certificate against the host name that it connected to itself, and not at
 * all over a socket that it was given. So it connects, in the caller's thread, and the block
 * thread gets the finished connection.
 */
NbdClient *nbd_client_new_tls(const char *path, const char *host, const char *port,
                                     const char *export_name, TlsCreds *tls, unsigned ms,
                                     GError **errp)
{
    gint64 end = g_get_monotonic_time() + (gint64)ms * 1000;
    const char *own = tls_creds_own_only(tls);
    g_autofree char *name = NULL;
    struct nbd_handle *h;

    if (own) {
        colo_error_set(errp, "tls-creds '%s': %s is not supported for NBD clients",
                       tls_creds_id(tls), own);
        return NULL;
    }
    if (path && !tls_creds_is_psk(tls) && tls_creds_verify_peer(tls)) {
        colo_error_set(errp, "tls-creds '%s': over a unix socket there is no host name to "
                             "check the server's certificate against; use tls-creds-psk, or "
                             "verify-peer=off", tls_creds_id(tls));
        return NULL;
    }
    h = client_handle(export_name, &name, errp);
    if (!h || !handle_set_tls(h, tls, errp)) {
        nbd_close(h);
        return NULL;
    }
    int r = path ? nbd_aio_connect_unix(h, path) : nbd_aio_connect_tcp(h, host, port);
    while (r >= 0 && nbd_aio_is_connecting(h) > 0) {
        int left = deadline_left_ms(end);

        if (left == 0) {
            colo_error_set(errp, "NBD export '%s': %s does not answer", export_name,
                           path ? path : host);
            nbd_close(h);
            return NULL;
        }
        r = nbd_poll(h, left);
    }
    if (r < 0 || nbd_aio_is_ready(h) <= 0) {
        const char *why = nbd_get_error();

        colo_error_set(errp, "NBD export '%s' with tls-creds '%s': %s", export_name,
                       tls_creds_id(tls), why ? why : "the connection is lost");
        nbd_close(h);
        return NULL;
    }
    NbdClient *c = client_alloc(h, export_name, g_steal_pointer(&name));
    c->tls = tls_creds_ref(tls);
    return client_adopt(c, ms, errp);
}

void nbd_client_set_closed(NbdClient *c, NbdClientClosedFunc fn, void *opaque)
{
    c->closed_fn = fn;
    c->closed_opaque = opaque;
    if (fn && c->error) {
        fn(opaque, c->error);
    }
}

uint64_t nbd_client_size(NbdClient *c)
{
    return c->size;
}

bool nbd_client_read_only(NbdClient *c)
{
    return c->read_only;
}

bool nbd_client_can_zero(NbdClient *c)
{
    return c->can_zero;
}

bool nbd_client_can_trim(NbdClient *c)
{
    return c->can_trim;
}

const char *nbd_client_error(NbdClient *c)
{
    return c->error;
}

const char *nbd_client_tls(NbdClient *c)
{
    return c->tls ? tls_creds_id(c->tls) : NULL;
}

TlsCreds *nbd_client_creds(NbdClient *c)
{
    return c->tls;
}

JsonObject *nbd_client_where(NbdClient *c)
{
    return c->where;
}

void nbd_client_set_where(NbdClient *c, JsonObject *where)
{
    c->where = options_copy(where);
}

const char *nbd_client_export(NbdClient *c)
{
    return c->export_name;
}

const char *nbd_client_name(NbdClient *c)
{
    return c->name;
}

void nbd_client_kill(NbdClient *c, const char *why)
{
    client_fail(c, why);
}

/* What the kernel has not sent of requests that were given up must not arrive later, when the
 * link is mended: another connection may have written newer data by then. */
static void drop_unsent(struct nbd_handle *h)
{
    struct linger at_once = {.l_onoff = 1};
    int fd = nbd_aio_get_fd(h);

    if (fd >= 0) {
        (void)!setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    }
}

void nbd_client_free(NbdClient *c)
{
    bool given_up = c->error || !g_queue_is_empty(&c->in_flight);

    c->closed_fn = NULL;
    block_fd_free(c->watch);
    c->watch = NULL;
    GList *l;
    while ((l = g_queue_pop_head_link(&c->in_flight))) {
        NbdCmd *cmd = l->data;

        block_complete_later(g_steal_pointer(&cmd->req), -ESHUTDOWN);
    }
    if (c->h && given_up) {
        drop_unsent(c->h);
    }
    if (c->h) {
        nbd_close(c->h);
    }
    tls_creds_unref(c->tls);
    g_clear_pointer(&c->where, json_object_unref);
    nbd_name_gone(c->name);
    g_free(c->name);
    g_free(c->export_name);
    g_free(c->error);
    g_free(c);
}

/* --- Commands --- */

/* What a lost connection looks like differs from call to call; to the disk's user it is one
 * thing: an I/O error. */
static int client_errno(int err)
{
    switch (err) {
    case 0:
    case ENOTCONN:
    case ECONNRESET:
    case ECONNABORTED:
    case EPIPE:
    case ESHUTDOWN:
        return EIO;
    default:
        return err;
    }
}

static int cmd_done(void *opaque, int *error)
{
    NbdCmd *cmd = opaque;

    /* NULL: already failed by client_fail(). */
    if (cmd->req) {
        if (*error) {
            colo_trace(block_nbd_client_error, "'%s': %s %" PRIu64 "+%" PRIu64 ": %s",
                       cmd->client->export_name, block_op_name(cmd->req->op),
                       cmd->req->offset, cmd->req->bytes, g_strerror(*error));
        }
        g_queue_unlink(&cmd->client->in_flight, &cmd->link);
        block_complete_later(g_steal_pointer(&cmd->req),
                             *error ? -client_errno(*error) : 0);
    }
    return 1;
}

/* libnbd is through with the command, or refused it. */
static void cmd_free(void *opaque)
{
    NbdCmd *cmd = opaque;

    if (--cmd->refs == 0) {
        g_free(cmd);
    }
}

static int cmd_extents(void *opaque, const char *context, uint64_t offset,
                       uint32_t *entries, size_t n, int *error)
{
    NbdCmd *cmd = opaque;

    if (!cmd->req || strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION)) {
        return 0;
    }
    for (size_t i = 0; i + 1 < n; i += 2) {
        BlockExtent e = {.bytes = entries[i], .flags = entries[i + 1]};

        g_array_append_val(cmd->req->extents, e);
    }
    return 0;
}

/* A server without FUA: the write, then a flush. */
typedef struct FuaReq {
    NbdClient *client;
    BlockRequest *orig;
    BlockRequest sub;
} FuaReq;

static void fua_done(BlockRequest *sub, int ret)
{
    FuaReq *fua = sub->opaque;

    if (ret == 0 && sub->op != BLOCK_OP_FLUSH) {
        sub->op = BLOCK_OP_FLUSH;
        nbd_client_submit(fua->client, sub);
        return;
    }
    fua->orig->done(fua->orig, ret);
    g_free(fua);
}

void nbd_client_submit(NbdClient *c, BlockRequest *req)
{
    if (c->error) {
        block_complete_later(req, -EIO);
        return;
    }
    if ((req->op == BLOCK_OP_FLUSH && !c->can_flush) ||
        (req->op == BLOCK_OP_TRIM && !c->can_trim)) {
        block_complete_later(req, 0);
        return;
    }
    if (req->op == BLOCK_OP_ZEROES && !c->can_zero) {
        block_complete_later(req, -EOPNOTSUPP);
        return;
    }
    if (req->op == BLOCK_OP_STATUS && !c->has_status) {
        BlockExtent e = {.bytes = req->bytes};

        g_array_append_val(req->extents, e);
        block_complete_later(req, 0);
        return;
    }
    if ((req->flags & BLOCK_REQ_FUA) && !c->can_fua) {
        FuaReq *fua = g_new0(FuaReq, 1);

        fua->client = c;
        fua->orig = req;
        fua->sub = *req;
        fua->sub.flags &= ~BLOCK_REQ_FUA;
        fua->sub.done = fua_done;
        fua->sub.opaque = fua;
        nbd_client_submit(c, &fua->sub);
        return;
    }

    NbdCmd *cmd = g_new0(NbdCmd, 1);
    cmd->refs = 2;
    cmd->client = c;
    cmd->req = req;
    cmd->link.data = cmd;
    g_queue_push_tail_link(&c->in_flight, &cmd->link);
    nbd_completion_callback done = {
        .callback = cmd_done, .user_data = cmd, .free = cmd_free};
    uint32_t fua = req->flags & BLOCK_REQ_FUA ? LIBNBD_CMD_FLAG_FUA : 0;
    int64_t r = -1;

    switch (req->op) {
    case BLOCK_OP_READ:
        r = nbd_aio_pread(c->h, req->data, req->bytes, req->offset, done, 0);
        break;
    case BLOCK_OP_WRITE:
        r = nbd_aio_pwrite(c->h, req->data, req->bytes, req->offset, done, fua);
        break;
    case BLOCK_OP_ZEROES:
        fua |= req->flags & BLOCK_REQ_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE;
        r = nbd_aio_zero(c->h, req->bytes, req->offset, done, fua);
        break;
    case BLOCK_OP_TRIM:
        r = nbd_aio_trim(c->h, req->bytes, req->offset, done, fua);
        break;
    case BLOCK_OP_FLUSH:
        r = nbd_aio_flush(c->h, done, 0);
        break;
    case BLOCK_OP_STATUS: {
        nbd_extent_callback extents = {.callback = cmd_extents, .user_data = cmd};

        r = nbd_aio_block_status(c->h, req->bytes, req->offset, extents, done, 0);
        break;
    }
    }
    /* A call that finds the connection dead completes the command and is refused as well. */
    if (r < 0 && cmd->req) {
        int err = nbd_get_errno();

        colo_trace(block_nbd_client_refused, "%s", nbd_get_error());
        g_queue_unlink(&c->in_flight, &cmd->link);
        block_complete_later(g_steal_pointer(&cmd->req),
                             nbd_aio_is_dead(c->h) > 0 ? -EIO : -client_errno(err));
    }
    cmd_free(cmd);
    client_update(c);
}
