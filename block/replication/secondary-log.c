/*
 * The epoch log: arrivals on the export, commits, application to the image.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "secondary-int.h"

#include <inttypes.h>

void secondary_fail(BlockSecondary *s, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    g_autofree char *why = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_autofree char *msg = g_strdup_printf("disk '%s': %s", s->parent->name, why);

    if (!s->error) {
        s->error = g_strdup(why);
        colo_report("%s", msg);
        secondary_notify(true, msg);
    }
}

void secondary_ask(BlockSecondary *s, const char *why)
{
    if (!s->asked && s->state == SECONDARY_LOGGING) {
        g_autofree char *msg = g_strdup_printf("disk '%s': %s", s->parent->name, why);

        s->asked = true;
        colo_trace(block_secondary_ask, "%s", msg);
        secondary_notify(false, msg);
    }
}

/* --- Arrivals --- */

uint64_t secondary_arrivals(BlockSecondary *s)
{
    GHashTableIter it;
    uint64_t *count, most = 0;

    if (s->conn_lost) {
        return s->lost_count;
    }
    if (s->conn) {
        count = g_hash_table_lookup(s->conns, s->conn);
        return count ? *count : 0;
    }
    g_hash_table_iter_init(&it, s->conns);
    while (g_hash_table_iter_next(&it, NULL, (gpointer *)&count)) {
        most = MAX(most, *count);
    }
    return most;
}

static uint64_t count_arrival(BlockSecondary *s, void *conn)
{
    uint64_t *count = g_hash_table_lookup(s->conns, conn);

    if (!count) {
        count = g_new0(uint64_t, 1);
        g_hash_table_insert(s->conns, conn, count);
    }
    return ++*count;
}

typedef struct ThroughWrite {
    BlockSecondary *s;
    BlockRequest *orig;
    BlockRequest sub;
} ThroughWrite;

static void through_done(BlockRequest *sub, int ret)
{
    ThroughWrite *w = sub->opaque;
    BlockSecondary *s = w->s;
    BlockRequest *orig = w->orig;

    g_free(w);
    s->through--;
    if (ret < 0 && s->state != SECONDARY_IDLE) {
        secondary_fail(s, "a write of the primary failed: %s", g_strerror(-ret));
    }
    secondary_check_arrived();
    secondary_check_settled(s);
    if (s->state == SECONDARY_TAKEOVER) {
        secondary_takeover_step(s);
    }
    orig->done(orig, ret);
}

static void write_through(BlockSecondary *s, BlockRequest *req)
{
    ThroughWrite *w = g_new0(ThroughWrite, 1);

    w->s = s;
    w->orig = req;
    w->sub = *req;
    w->sub.done = through_done;
    w->sub.opaque = w;
    s->through++;
    block_front_submit(s->parent, NULL, &w->sub);
}

static void log_arrival(BlockSecondary *s, void *conn, BlockRequest *req)
{
    if (!s->conn && !s->conn_lost) {
        s->conn = conn;
    }
    if (s->conn != conn) {
        colo_report("disk '%s': a second NBD client may not write while replication runs",
                    s->parent->name);
        block_complete_later(req, -EPERM);
        return;
    }
    LogEntry *e = log_entry_new(req, count_arrival(s, conn), &s->log_bytes);

    g_queue_push_tail(&s->pending, e);
    log_map_insert(s->pending_map, e);
    if (s->log_bytes > LOG_SOFT) {
        secondary_ask(s, "the primary's guest has written much");
    }
    block_complete_later(req, 0);
    secondary_check_arrived();
}

void block_secondary_export_submit(BlockSecondary *s, void *conn, BlockRequest *req)
{
    bool over = s->state != SECONDARY_IDLE && s->state != SECONDARY_LOGGING;

    if (block_op_modifies(req->op)) {
        if (req->offset > s->parent->size || req->bytes > s->parent->size - req->offset ||
            req->bytes == 0) {
            block_complete_later(req, -EINVAL);
        } else if (over || s->error) {
            block_complete_later(req, over ? -EPERM : -EIO);
        } else if (s->state == SECONDARY_LOGGING) {
            log_arrival(s, conn, req);
        } else {
            count_arrival(s, conn);
            write_through(s, req);
        }
    } else if (s->state == SECONDARY_IDLE || s->state == SECONDARY_LIVE) {
        block_front_submit(s->parent, NULL, req);
    } else if (req->op == BLOCK_OP_READ) {
        secondary_read(s, req, true, NULL);
    } else {
        if (req->op == BLOCK_OP_STATUS) {
            BlockExtent e = {.bytes = req->bytes};

            g_array_append_val(req->extents, e);
        }
        block_complete_later(req, 0);
    }
}

void block_secondary_conn_closed(BlockSecondary *s, void *conn)
{
    if (s->conn == conn) {
        uint64_t count = secondary_arrivals(s);

        s->conn = NULL;
        s->conn_lost = true;
        s->lost_count = count;
        if (s->state == SECONDARY_LOGGING) {
            g_autofree char *msg = g_strdup_printf(
                "disk '%s': the primary's NBD connection is lost", s->parent->name);

            secondary_notify(true, msg);
        }
    }
    g_hash_table_remove(s->conns, conn);
}

bool block_secondary_full(BlockSecondary *s)
{
    return s->state == SECONDARY_LOGGING && s->log_bytes > LOG_HARD;
}

bool block_secondary_multi_conn(BlockSecondary *s)
{
    return s->state == SECONDARY_LIVE;
}

/* --- Application to the image --- */

typedef struct ApplyOp {
    BlockSecondary *s;
    LogEntry *entry;
    BlockRequest req;
} ApplyOp;

static void apply_done(BlockRequest *req, int ret)
{
    ApplyOp *op = req->opaque;
    BlockSecondary *s = op->s;

    s->applying--;
    if (ret < 0) {
        secondary_fail(s, "a checkpoint cannot be written to the image: %s",
                       g_strerror(-ret));
    } else {
        log_map_remove(s->committed_map, req->offset, req->offset + req->bytes,
                       op->entry);
    }
    log_entry_unref(op->entry);
    block_buf_unref(req->buf);
    g_free(op);
    secondary_apply(s);
    nbd_server_kick();
    secondary_check_settled(s);
    if (s->state == SECONDARY_TAKEOVER) {
        secondary_takeover_step(s);
    }
}

static void apply_extent(BlockSecondary *s, LogEntry *e, uint64_t start, uint64_t end)
{
    ApplyOp *op = g_new0(ApplyOp, 1);

    op->s = s;
    op->entry = log_entry_ref(e);
    op->req.op = e->buf ? BLOCK_OP_WRITE : BLOCK_OP_ZEROES;
    op->req.flags = e->buf ? 0 : BLOCK_REQ_MAY_UNMAP;
    op->req.offset = start;
    op->req.bytes = end - start;
    if (e->buf) {
        op->req.buf = block_buf_ref(e->buf);
        op->req.data = (uint8_t *)e->data + (start - e->start);
    }
    op->req.done = apply_done;
    op->req.opaque = op;
    s->applying++;
    block_front_submit(s->parent, NULL, &op->req);
}

void secondary_apply(BlockSecondary *s)
{
    while (s->applying < APPLY_DEPTH && !s->error && !g_queue_is_empty(&s->to_apply)) {
        LogEntry *e = g_queue_pop_head(&s->to_apply);
        uint64_t pos = e->start;
        LogExtent *x;

        /* Only what no later entry, and no guest write of a takeover, has covered. */
        while (pos < e->end && (x = log_map_next(s->committed_map, pos)) &&
               x->start < e->end) {
            pos = x->end;
            if (x->entry == e) {
                apply_extent(s, e, x->start, x->end);
            }
        }
        log_entry_unref(e);
    }
}

void secondary_check_settled(BlockSecondary *s)
{
    bool busy = s->applying || s->through || !g_queue_is_empty(&s->to_apply);

    if (s->settlers->len && (!busy || s->error)) {
        for (guint i = 0; i < s->settlers->len; i++) {
            block_wait_done(s->settlers->pdata[i], s->error ? -EIO : 0);
        }
        g_ptr_array_set_size(s->settlers, 0);
    }
}
