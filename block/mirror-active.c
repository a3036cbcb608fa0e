/*
 * A mirrored disk's guest writes: to the target, or into the bitmap.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The guest's request is held with its range in the front, so writes that overlap come
 * here one after the other. One that waited too long is let go: its range is marked, so
 * that the copier repairs whatever its data, still on its way, does to the target.
 */
#include "mirror.h"

typedef struct MirrorActive {
    Mirror *m;
    BlockHooked *hd; /* NULL once let go */
    BlockRange range;
    BlockRequest req;
    gint64 since;
    GList link;
} MirrorActive;

static void active_let_go(MirrorActive *a)
{
    dirty_bitmap_set(a->m->dirty, a->range.start, a->range.end);
    block_hook_end(g_steal_pointer(&a->hd));
    a->m->late++;
}

static void active_done(BlockRequest *req, int ret)
{
    MirrorActive *a = req->opaque;
    Mirror *m = a->m;
    BlockHooked *hd = a->hd;

    m->written++;
    if (ret == -EOPNOTSUPP && req->op == BLOCK_OP_ZEROES) {
        m->zeroes = m->probe = false;
    }
    if (ret < 0) {
        dirty_bitmap_set(m->dirty, a->range.start, a->range.end);
    }
    if (!hd) {
        m->late--;
    }
    g_queue_unlink(&m->actives, &a->link);
    if (g_queue_is_empty(&m->actives)) {
        io_source_destroy(&m->patience);
    }
    block_range_release(&m->ranges, &a->range);
    block_buf_unref(a->req.buf);
    g_free(a);
    if (hd) {
        block_hook_end(hd);
    }
    if (ret < 0 && ret != -EOPNOTSUPP) {
        mirror_io_error(m, false, ret);
    }
    mirror_put(m);
}

static void active_granted(BlockRange *range)
{
    MirrorActive *a = (MirrorActive *)((char *)range - offsetof(MirrorActive, range));

    if (a->m->ending) {
        block_complete_later(&a->req, -ECANCELED);
    } else {
        block_submit(a->m->target, &a->req);
    }
}

static gboolean active_look(gpointer opaque)
{
    Mirror *m = opaque;
    gint64 now = g_get_monotonic_time();

    for (GList *l = m->actives.head; l; l = l->next) {
        MirrorActive *a = l->data;

        if (a->hd && now - a->since > ACTIVE_PATIENCE_MS * 1000) {
            colo_trace(block_mirror_late, "%s: a write of %" G_GUINT64_FORMAT " bytes",
                       m->job->id, a->req.bytes);
            active_let_go(a);
        }
    }
    return G_SOURCE_CONTINUE;
}

void mirror_active_release(Mirror *m)
{
    for (GList *l = m->actives.head; l; l = l->next) {
        MirrorActive *a = l->data;

        if (a->hd) {
            active_let_go(a);
        }
    }
}

/* Whether @hd's data should go to the target now. */
static bool goes_to_both(Mirror *m, const BlockHooked *hd)
{
    const BlockRequest *req = &hd->sub;

    return m->active && hd->ret == 0 && !m->ending && !m->job->paused && m->late == 0 &&
           (req->op == BLOCK_OP_WRITE || (req->op == BLOCK_OP_ZEROES && m->zeroes)) &&
           !dirty_bitmap_all(m->dirty, req->offset, req->offset + req->bytes);
}

bool mirror_after_write(BlockHook *hook, BlockHooked *hd)
{
    Mirror *m = (Mirror *)((char *)hook - offsetof(Mirror, hook));
    BlockRequest *req = &hd->sub;

    if (m->ending) {
        return true;
    }
    if (!goes_to_both(m, hd)) {
        dirty_bitmap_set(m->dirty, req->offset, req->offset + req->bytes);
        if (m->in_flight == 0) {
            mirror_step(m);
        }
        return true;
    }
    MirrorActive *a = g_new0(MirrorActive, 1);
    a->m = m;
    a->hd = hd;
    a->since = g_get_monotonic_time();
    a->range = (BlockRange){.start = req->offset,
                            .end = req->offset + req->bytes,
                            .write = true,
                            .fn = active_granted};
    a->req.op = req->op;
    a->req.flags = m->unmap ? req->flags & BLOCK_REQ_MAY_UNMAP : 0;
    a->req.offset = req->offset;
    a->req.bytes = req->bytes;
    a->req.done = active_done;
    a->req.opaque = a;
    if (req->op == BLOCK_OP_WRITE) {
        /* It may outlive the guest's request. */
        if (req->buf) {
            a->req.buf = block_buf_ref(req->buf);
            a->req.data = req->data;
        } else {
            a->req.buf = block_buf_new(req->bytes);
            memcpy(a->req.buf->data, req->data, req->bytes);
            a->req.data = a->req.buf->data;
        }
    }
    a->link.data = a;
    g_queue_push_tail_link(&m->actives, &a->link);
    m->in_flight++;
    if (!m->patience) {
        m->patience = io_thread_timer(block_thread(), ACTIVE_PATIENCE_MS / 4, active_look,
                                      m);
    }
    if (block_range_acquire(&m->ranges, &a->range)) {
        active_granted(&a->range);
    }
    return false;
}
