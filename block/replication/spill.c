/*
 * The epoch log over its bound of memory: data goes to the hidden disk.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An arrival that does not fit into memory is answered and logged as any other; its data is
 * written to free space of the hidden disk meanwhile and leaves memory when it is there. The
 * disk is used as a ring of sorts: entries die about in the order in which they came, so
 * the next free place is where the last one was found. Which sectors are taken is known in
 * memory alone: after a crash the hidden disk means nothing, as the log does.
 *
 * A disk that cannot be written, or has no room, is no error: the log stays in memory then,
 * and over its bound the primary's connection is not read (block_secondary_full()).
 */
#include "secondary-int.h"

typedef struct SpillOp {
    BlockSecondary *s;
    LogEntry *entry;
    BlockRequest req;
} SpillOp;

/* Free space for @bytes, or UINT64_MAX. */
static uint64_t spill_find(BlockSecondary *s, uint64_t bytes)
{
    uint64_t need = ROUND_UP(bytes, BLOCK_SECTOR), size = s->hidden->size;
    uint64_t pos = s->spill_next;
    bool wrapped = false;

    for (;;) {
        bool taken;

        if (pos + need > size) {
            if (wrapped) {
                return UINT64_MAX;
            }
            wrapped = true;
            pos = 0;
            continue;
        }
        if (wrapped && pos >= s->spill_next) {
            return UINT64_MAX;
        }
        uint64_t end = overlay_run(s->log.space, pos, pos + need, &taken);
        if (!taken && end == pos + need) {
            s->spill_next = end;
            return pos;
        }
        pos = end;
    }
}

static void spill_done(BlockRequest *req, int ret)
{
    SpillOp *op = req->opaque;
    BlockSecondary *s = op->s;
    LogEntry *e = op->entry;

    s->spilling--;
    s->spilling_bytes -= req->bytes;
    if (ret < 0 || e->refs == 1) {
        overlay_clear(s->log.space, req->offset,
                      req->offset + ROUND_UP(req->bytes, BLOCK_SECTOR));
    } else {
        log_entry_set_spilled(e, req->offset);
    }
    if (ret < 0 && !s->spill_error) {
        s->spill_error = ret;
        colo_report("disk '%s': the hidden disk cannot be written (%s): the log stays in "
                    "memory, and the primary has to wait when it is full",
                    s->parent->name, g_strerror(-ret));
    }
    block_buf_unref(req->buf);
    log_entry_unref(e);
    g_free(op);
    nbd_server_kick();
}

void secondary_spill(BlockSecondary *s, LogEntry *e)
{
    uint64_t bytes = e->end - e->start;

    if (s->log.memory - s->spilling_bytes <= s->log_memory || !e->buf || s->spill_error) {
        return;
    }
    uint64_t offset = spill_find(s, bytes);
    if (offset == UINT64_MAX) {
        return;
    }
    SpillOp *op = g_new0(SpillOp, 1);

    overlay_set(s->log.space, offset, offset + ROUND_UP(bytes, BLOCK_SECTOR));
    op->s = s;
    op->entry = log_entry_ref(e);
    op->req.op = BLOCK_OP_WRITE;
    op->req.flags = BLOCK_REQ_BACKGROUND;
    op->req.offset = offset;
    op->req.bytes = bytes;
    op->req.buf = block_buf_ref(e->buf);
    op->req.data = (uint8_t *)e->data;
    op->req.done = spill_done;
    op->req.opaque = op;
    s->spilling++;
    s->spilling_bytes += bytes;
    block_submit(s->hidden, &op->req);
}

bool block_secondary_full(BlockSecondary *s)
{
    return s->state == SECONDARY_LOGGING && s->log.memory > s->log_memory + SPILL_SLACK;
}
