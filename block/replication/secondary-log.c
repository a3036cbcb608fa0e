/*
 * The epoch log: arrivals on the export, commits, application to the image.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "secondary-int.h"

#include <inttypes.h>
#include <unistd.h>

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

    s->applied += ret < 0 ? 0 : w->sub.bytes;
    g_free(w);
    s->through--;
    if (s->closed) {
        if (s->through == 0) {
            g_free(s);
        }
        orig->done(orig, ret);
        return;
    }
    if (ret < 0 && s->state != SECONDARY_IDLE) {
        s->errnum = ret;
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
    LogEntry *e = log_entry_new(req, count_arrival(s, conn), &s->log);

    g_queue_push_tail(&s->pending, e);
    log_map_insert(s->pending_map, e);
    s->pending_bytes += e->end - e->start;
    secondary_spill(s, e);
    if (s->pending_bytes > MAX(LOG_SOFT, s->log_memory)) {
        secondary_ask(s, "the primary's guest has written much");
    }
    block_complete_later(req, 0);
    secondary_check_arrived();
}

/* Before the first write to an image that no replication holds yet: until the pair is protected
 * it may be half of a copy, and nobody may be served from it. Waits for the disk, once. */
static bool note_copy(BlockSecondary *s)
{
    if (s->copy_noted || !s->parent->filename || s->shared) {
        return true;
    }
    g_autoptr(GError) err = NULL;
    g_autofree char *path = g_strconcat(s->parent->filename, ".colo", NULL);
    s->copy_noted = access(path, F_OK) == 0 || secondary_marker_create(path, MARKER_COPY, &err);
    if (!s->copy_noted) {
        colo_report("%s", err->message);
    }
    return s->copy_noted;
}

void block_secondary_export_submit(BlockSecondary *s, void *conn, BlockRequest *req)
{
    bool over = s->state != SECONDARY_IDLE && s->state != SECONDARY_LOGGING;

    if (block_op_modifies(req->op)) {
        if (req->offset > s->parent->size || req->bytes > s->parent->size - req->offset ||
            req->bytes == 0) {
            block_complete_later(req, -EINVAL);
        } else if (over || s->error) {
            block_complete_later(req, over ? -EPERM : s->errnum ? s->errnum : -EIO);
        } else if (s->state == SECONDARY_LOGGING) {
            log_arrival(s, conn, req);
        } else {
            count_arrival(s, conn);
            if (s->shared) {
                block_complete_later(req, 0); /* the primary has written it */
            } else if (!note_copy(s)) {
                block_complete_later(req, -EIO);
            } else {
                write_through(s, req);
            }
        }
    } else if (s->state == SECONDARY_IDLE || s->state == SECONDARY_LIVE) {
        block_front_submit(s->parent, NULL, req);
    } else if (req->op == BLOCK_OP_READ) {
        secondary_read(s, req, true, NULL);
    } else {
        if (req->op == BLOCK_OP_STATUS) {
            BlockExtent e = {.bytes = req->bytes};

            g_array_append_val(req->extents, e);
        } else if (s->state == SECONDARY_LOGGING) {
            /* The primary forgets what was committed once it is durable here. */
            g_queue_push_tail(&s->peer_flushes, req);
            secondary_check_settled(s);
            return;
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

bool block_secondary_multi_conn(BlockSecondary *s)
{
    return s->state == SECONDARY_LIVE;
}

/* --- The line --- */

bool secondary_stage(BlockSecondary *s, uint64_t sequence, unsigned max)
{
    LogEntry *e;

    while ((e = g_queue_peek_head(&s->pending)) && e->seq <= sequence) {
        if (max-- == 0) {
            return false;
        }
        g_queue_pop_head(&s->pending);
        s->staged_line = e->seq;
        s->pending_bytes -= MIN(s->pending_bytes, e->end - e->start);
        log_map_remove(s->pending_map, e->start, e->end, e);
        log_map_insert(s->staged->map, e);
        g_queue_push_tail(&s->staged->queue, e);
    }
    return true;
}

static gboolean stage_on(gpointer opaque)
{
    BlockSecondary *s = opaque;

    io_source_destroy(&s->stage_idle);
    secondary_check_arrived();
    return G_SOURCE_REMOVE;
}

void secondary_stage_later(BlockSecondary *s)
{
    if (!s->stage_idle) {
        s->stage_idle = secondary_idle(stage_on, s);
    }
}

/* --- What is forgotten at a takeover: much, so it is freed bit by bit --- */

static gboolean garbage_on(gpointer opaque)
{
    BlockSecondary *s = opaque;
    unsigned n = STAGE_STEP;

    while (s->garbage->len > 0 && n > 0) {
        LogLayer *l = s->garbage->pdata[0];
        LogEntry *e = g_queue_pop_head(&l->queue);

        if (e) {
            log_map_remove(l->map, e->start, e->end, NULL);
            log_entry_unref(e);
            n--;
        } else {
            g_ptr_array_remove_index_fast(s->garbage, 0);
            log_layer_free(l);
        }
    }
    if (s->garbage->len == 0) {
        io_source_destroy(&s->garbage_idle);
        return G_SOURCE_REMOVE;
    }
    return G_SOURCE_CONTINUE;
}

void secondary_drop_layer(BlockSecondary *s, LogLayer *l)
{
    g_ptr_array_add(s->garbage, l);
    if (!s->garbage_idle) {
        s->garbage_idle = secondary_idle(garbage_on, s);
    }
}

void secondary_drop_pending(BlockSecondary *s)
{
    LogLayer *l = log_layer_new();

    log_map_free(l->map);
    l->map = s->pending_map;
    l->queue = s->pending;
    s->pending_map = log_map_new();
    g_queue_init(&s->pending);
    s->pending_bytes = 0;
    secondary_drop_layer(s, l);
    secondary_drop_layer(s, s->staged);
    s->staged = log_layer_new();
}
