/*
 * The mirror's copier and its end. mirror.h has the essay.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "mirror.h"

typedef struct MirrorOp {
    Mirror *m;
    BlockRange range;
    BlockRequest req;
    GArray *extents; /* of a probe */
} MirrorOp;

/* Room singleton, guarded by the block lock. */
static unsigned mirrors;

unsigned block_mirrors(void)
{
    return mirrors;
}

static void update_total(Mirror *m)
{
    m->job->total = m->job->done + dirty_bitmap_bytes(m->dirty) + m->copying;
}

/* --- One copy --- */

static bool all_zero(const uint8_t *p, size_t n)
{
    return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

static void op_end(MirrorOp *op, int ret, bool read)
{
    Mirror *m = op->m;
    uint64_t bytes = op->range.end - op->range.start;

    m->copying -= bytes;
    m->in_flight_bytes -= op->req.buf ? op->req.buf->size : 0;
    if (ret < 0) {
        dirty_bitmap_set(m->dirty, op->range.start, op->range.end);
    } else {
        m->job->done += bytes;
    }
    block_range_release(&m->ranges, &op->range);
    block_buf_unref(op->req.buf);
    if (op->extents) {
        g_array_unref(op->extents);
    }
    g_free(op);
    update_total(m);
    if (ret < 0) {
        mirror_io_error(m, read, ret);
    }
    mirror_put(m);
}

static void op_written(BlockRequest *req, int ret)
{
    MirrorOp *op = req->opaque;

    op->m->written++;
    if (ret == -EOPNOTSUPP && req->op == BLOCK_OP_ZEROES && !op->m->ending) {
        /* As data, in pieces that the copier chooses. */
        op->m->zeroes = op->m->probe = false;
        dirty_bitmap_set(op->m->dirty, op->range.start, op->range.end);
        op->m->job->done -= op->range.end - op->range.start;
        ret = 0;
    }
    op_end(op, ret, false);
}

static void op_write_zeroes(MirrorOp *op)
{
    op->req.op = BLOCK_OP_ZEROES;
    op->req.flags = op->m->unmap ? BLOCK_REQ_MAY_UNMAP : 0;
    op->req.done = op_written;
    block_submit(op->m->target, &op->req);
}

static void op_read(BlockRequest *req, int ret)
{
    MirrorOp *op = req->opaque;

    if (ret < 0 || op->m->ending) {
        op_end(op, ret < 0 ? ret : -ECANCELED, true);
    } else if (op->m->zeroes && all_zero(req->data, req->bytes)) {
        op_write_zeroes(op);
    } else {
        req->op = BLOCK_OP_WRITE;
        req->done = op_written;
        block_submit(op->m->target, req);
    }
}

/* The range shrinks to its first @bytes; the rest is left for later. */
static void op_shrink(MirrorOp *op, uint64_t bytes)
{
    Mirror *m = op->m;
    uint64_t end = op->range.start + bytes;

    if (end < op->range.end) {
        dirty_bitmap_set(m->dirty, end, op->range.end);
        m->copying -= op->range.end - end;
        m->cursor = MIN(m->cursor, end);
        op->range.end = end;
        op->req.bytes = bytes;
    }
}

/* What the source says about the range: a hole is zeroed at once, data is left. */
static void op_probed(BlockRequest *req, int ret)
{
    MirrorOp *op = req->opaque;
    Mirror *m = op->m;
    uint64_t granule = dirty_bitmap_granularity(m->dirty), zero = 0, data = 0;

    m->probing = false;
    for (guint i = 0; ret == 0 && i < op->extents->len; i++) {
        BlockExtent *e = &g_array_index(op->extents, BlockExtent, i);

        if ((e->flags & 2) && data == 0) {
            zero += e->bytes;
        } else if (!(e->flags & 2) || e->bytes < granule) {
            data += e->bytes;
        } else {
            break;
        }
        if (data && zero >= granule) {
            break;
        }
    }
    zero = MIN(zero, req->bytes);
    if (op->range.start + zero < m->source->size) {
        zero = zero / granule * granule;
    }
    if (m->ending) {
        op_end(op, -ECANCELED, true);
    } else if (zero > 0) {
        op_shrink(op, zero);
        op_write_zeroes(op);
    } else {
        m->probe = m->probe && ret == 0;
        m->data_until =
            op->range.start + MAX(MIN(data, req->bytes) / granule * granule, granule);
        dirty_bitmap_set(m->dirty, op->range.start, op->range.end);
        m->job->done -= op->range.end - op->range.start;
        m->cursor = MIN(m->cursor, op->range.start);
        op_end(op, 0, true);
    }
}

static void op_granted(BlockRange *range)
{
    MirrorOp *op = (MirrorOp *)((char *)range - offsetof(MirrorOp, range));
    Mirror *m = op->m;

    /* Again: what was set while it waited is on the source by now. */
    dirty_bitmap_clear(m->dirty, range->start, range->end);
    op->req.offset = range->start;
    op->req.bytes = range->end - range->start;
    op->req.opaque = op;
    if (op->extents) {
        op->req.op = BLOCK_OP_STATUS;
        op->req.extents = op->extents;
        op->req.done = op_probed;
    } else {
        op->req.op = BLOCK_OP_READ;
        op->req.buf = block_buf_new(op->req.bytes);
        op->req.data = op->req.buf->data;
        op->req.done = op_read;
        m->in_flight_bytes += op->req.bytes;
    }
    block_submit(m->source, &op->req);
}

static void op_start(Mirror *m, uint64_t start, uint64_t end, bool probe)
{
    MirrorOp *op = g_new0(MirrorOp, 1);

    op->m = m;
    op->extents = probe ? g_array_new(FALSE, FALSE, sizeof(BlockExtent)) : NULL;
    op->range =
        (BlockRange){.start = start, .end = end, .write = true, .fn = op_granted};
    dirty_bitmap_clear(m->dirty, start, end);
    m->cursor = end;
    m->probing |= probe;
    m->in_flight++;
    m->copying += end - start;
    if (block_range_acquire(&m->ranges, &op->range)) {
        op_granted(&op->range);
    }
}

/* --- Which one next --- */

static gboolean again(gpointer opaque)
{
    Mirror *m = opaque;

    io_source_destroy(&m->again);
    mirror_step(m);
    return G_SOURCE_REMOVE;
}

static void step_later(Mirror *m, gint64 us)
{
    if (!m->again) {
        m->again = io_thread_timer(block_thread(), us / 1000 + 1, again, m);
    }
}

/* Whether the speed limit lets something start; else the timer is set. */
static bool within_rate(Mirror *m)
{
    gint64 now = g_get_monotonic_time();

    if (m->job->speed == 0) {
        return true;
    }
    if (now - m->slice_start >= MIRROR_SLICE_US) {
        m->slice_start = now;
        m->slice_bytes = 0;
    }
    if (m->slice_bytes < m->job->speed / (G_USEC_PER_SEC / MIRROR_SLICE_US) + 1) {
        return true;
    }
    /* A chunk may be worth several slices. */
    gint64 due = m->slice_start +
                 (gint64)((double)m->slice_bytes / m->job->speed * G_USEC_PER_SEC);
    if (now >= due) {
        m->slice_start = now;
        m->slice_bytes = 0;
        return true;
    }
    step_later(m, due - now);
    return false;
}

/* The next dirty position, going round; UINT64_MAX if nothing is dirty. */
static uint64_t next_dirty(Mirror *m)
{
    uint64_t pos = dirty_bitmap_next(m->dirty, m->cursor);

    if (pos == UINT64_MAX && !m->probing) {
        if (m->first_pass) {
            m->first_pass = false;
            m->active = m->copy_mode != MIRROR_BACKGROUND;
            colo_trace(block_mirror_pass, "%s: first pass done", m->job->id);
        }
        m->cursor = 0;
        pos = dirty_bitmap_next(m->dirty, 0);
    }
    return pos;
}

static bool start_one(Mirror *m)
{
    uint64_t granule = dirty_bitmap_granularity(m->dirty);
    uint64_t pos = next_dirty(m);

    if (pos == UINT64_MAX || !within_rate(m)) {
        return false;
    }
    if (m->probe && m->first_pass && pos >= m->data_until) {
        op_start(m, pos, dirty_bitmap_run(m->dirty, pos, pos + MIRROR_PROBE), true);
        return true;
    }
    uint64_t most = MIN(MIRROR_CHUNK, m->buf_size);
    if (m->job->speed) {
        most = MIN(most, m->job->speed / 10);
    }
    most = MAX(most / granule * granule, granule);
    if (m->probe && m->first_pass) {
        most = MIN(most, m->data_until - pos);
    }
    uint64_t end = dirty_bitmap_run(m->dirty, pos, pos + most);
    m->slice_bytes += end - pos;
    op_start(m, pos, end, false);
    return true;
}

static bool at_rest(Mirror *m)
{
    return dirty_bitmap_bytes(m->dirty) == 0 && m->copying == 0 && m->late == 0;
}

static void mirror_finish(Mirror *m);
static void flush_ahead(Mirror *m);

void mirror_step(Mirror *m)
{
    BlockJob *job = m->job;

    /* From READY on a flush is for the end: nothing is copied beside it. */
    if (m->ending || m->excluding || (job->ready && job->flushing)) {
        return;
    }
    if (job->cancel && (job->force || !job->ready)) {
        mirror_end(m, NULL);
        return;
    }
    if (job->paused) {
        return;
    }
    while (!m->probing && m->in_flight < MIRROR_OPS && !m->again &&
           (m->in_flight_bytes < m->buf_size || m->copying == 0) && start_one(m)) {
    }
    update_total(m);
    if (!at_rest(m) || (m->verify && !m->verified && mirror_verify(m))) {
        return;
    }
    if (!job->ready) {
        m->first_pass = false;
        m->active = m->copy_mode != MIRROR_BACKGROUND;
        if (!m->ahead && m->written != m->durable) {
            flush_ahead(m);
            return;
        }
        m->ahead = false;
        block_job_set_ready(job);
    }
    if (job->cancel || job->complete) {
        mirror_finish(m);
    }
}

void mirror_wake(Mirror *m)
{
    io_source_destroy(&m->again);
    mirror_step(m);
}

/* --- Errors --- */

void mirror_io_error(Mirror *m, bool read, int ret)
{
    MirrorOnError policy = read ? m->on_source_error : m->on_target_error;
    NbdClient *nbd = read ? NULL : block_nbd_client(m->target);
    const char *lost = nbd ? nbd_client_error(nbd) : NULL;

    if (m->ending || m->job->paused) {
        return;
    }
    if (policy == MIRROR_ENOSPC) {
        policy = ret == -ENOSPC ? MIRROR_STOP : MIRROR_REPORT;
    }
    if (lost && policy == MIRROR_IGNORE) {
        policy = MIRROR_REPORT; /* it will not get better */
    }
    colo_trace(block_mirror_error, "%s: %s: %s", m->job->id, read ? "source" : "target",
               g_strerror(-ret));
    if (policy == MIRROR_IGNORE) {
        block_job_io_error(m->job, read, "ignore");
        step_later(m, MIRROR_SLICE_US);
    } else if (policy == MIRROR_STOP) {
        block_job_io_error(m->job, read, "stop");
        block_job_stop(m->job, -ret);
    } else {
        block_job_io_error(m->job, read, "report");
        mirror_end(m, g_strdup(lost ? lost : g_strerror(-ret)));
    }
}

/* --- The end --- */

static void mirror_conclude(Mirror *m)
{
    BlockJob *job = m->job;
    BlockNode *source = m->source, *target = m->target;
    char *error = g_steal_pointer(&m->error);

    m->concluded = true;
    io_source_destroy(&m->kill);
    io_source_destroy(&m->again);
    io_source_destroy(&m->patience);
    mirror_verify_end(m);
    dirty_bitmap_free(m->dirty);
    g_free(m);
    if (target) {
        block_node_unuse(target);
    }
    block_node_unuse(source);
    mirrors--;
    colo_trace(block_mirror_end, "%s: %s", job->id, error ? error : "in order");
    block_job_end(job, error);
}

void mirror_put(Mirror *m)
{
    m->in_flight--;
    if (!m->ending) {
        mirror_step(m);
    } else if (m->in_flight == 0 && !m->concluded) {
        mirror_conclude(m);
    }
}

static gboolean mirror_out_of_patience(gpointer opaque)
{
    Mirror *m = opaque;
    NbdClient *nbd = block_nbd_client(m->target);

    NbdClient *sums = m->sums[1] ? block_nbd_client(m->sums[1]) : NULL;

    io_source_destroy(&m->kill);
    if (nbd) {
        nbd_client_kill(nbd, "the mirror was cancelled and the server did not answer");
    }
    if (sums) {
        nbd_client_kill(sums, "the mirror was cancelled and the server did not answer");
    }
    return G_SOURCE_REMOVE;
}

static void mirror_unhook(Mirror *m)
{
    if (m->source->mirror == &m->hook) {
        m->source->mirror = NULL;
    }
    mirror_active_release(m);
}

void mirror_end(Mirror *m, char *error)
{
    if (m->ending) {
        g_free(error);
        return;
    }
    m->in_flight++;
    m->ending = true;
    m->error = error;
    mirror_unhook(m);
    if (m->excluded) {
        m->excluded = false;
        block_front_include(m->source, &m->all);
    }
    io_source_destroy(&m->kill);
    m->kill = io_thread_timer(block_thread(), MIRROR_KILL_MS, mirror_out_of_patience, m);
    mirror_put(m);
}

/* Makes durable what the target has got; what is so already is no work for it. */
static void flush_target(Mirror *m, BlockDoneFunc done)
{
    m->job->flushing = true;
    m->flush_covers = m->written;
    m->flush.op = BLOCK_OP_FLUSH;
    m->flush.done = done;
    m->flush.opaque = m;
    if (m->written == m->durable) {
        block_complete_later(&m->flush, 0);
    } else {
        block_submit(m->target, &m->flush);
    }
}

/* What the job fails with, or NULL. */
static char *flush_ended(Mirror *m, int ret)
{
    m->job->flushing = false;
    if (ret < 0) {
        return g_strdup_printf("the target cannot be flushed: %s", g_strerror(-ret));
    }
    m->durable = m->flush_covers;
    return NULL;
}

static void flushed_ahead(BlockRequest *req, int ret)
{
    Mirror *m = req->opaque;
    char *error = flush_ended(m, ret);

    m->ahead = true;
    if (error) {
        mirror_end(m, error);
    }
    mirror_put(m);
}

/* All of a copy may have to go to the target's disk: that takes long, and is over before
 * anybody waits for the end. */
static void flush_ahead(Mirror *m)
{
    if (!m->job->flushing) {
        m->in_flight++;
        flush_target(m, flushed_ahead);
    }
}

static void target_flushed(BlockRequest *req, int ret)
{
    Mirror *m = req->opaque;
    char *error = flush_ended(m, ret);

    io_source_destroy(&m->kill);
    if (ret < 0) {
        g_clear_pointer(&m->source->mirrored_to, g_free);
    }
    if (ret == 0 && m->job->complete && !m->job->cancel && !m->ending) {
        mirror_unhook(m);
        mirror_pivot(m->source, g_steal_pointer(&m->target));
        m->target = NULL;
    }
    mirror_end(m, error);
    mirror_put(m);
}

/* No request of the guest is in flight. */
static void guest_excluded(BlockRange *range)
{
    Mirror *m = (Mirror *)((char *)range - offsetof(Mirror, all));

    m->excluding = false;
    if (m->ending || !at_rest(m)) {
        block_front_include(m->source, range);
        m->active |= !m->ending; /* so that it gets to rest */
        mirror_put(m);
        return;
    }
    /* This is the moment of which the target is the copy. To make it the guest's disk the
     * guest must wait until it is durable. */
    if (m->job->complete && !m->job->cancel) {
        m->excluded = true;
        io_source_destroy(&m->kill);
        m->kill = io_thread_timer(block_thread(), ACTIVE_PATIENCE_MS,
                                  mirror_out_of_patience, m);
    } else {
        NbdClient *nbd = block_nbd_client(m->target);

        mirror_unhook(m);
        g_free(m->source->mirrored_to);
        m->source->mirrored_to =
            nbd && !m->none ? g_strdup(nbd_client_export(nbd)) : NULL;
        m->job->parted = true;
        block_front_include(m->source, range);
    }
    flush_target(m, target_flushed);
}

static void mirror_exclude(Mirror *m)
{
    m->excluding = true;
    m->in_flight++; /* until target_flushed() */
    m->all = (BlockRange){.fn = guest_excluded};
    block_front_exclude(m->source, &m->all);
}

/* Where the guest will have to wait for what is not durable, the long flush comes first. */
static void mirror_finish(Mirror *m)
{
    bool waits = m->job->complete && !m->job->cancel;

    if (waits && !m->ahead && m->written != m->durable) {
        flush_ahead(m);
    } else {
        mirror_exclude(m);
    }
}

/* --- The job --- */

static void job_wake(BlockJob *job)
{
    Mirror *m = job->opaque;

    if (job->cancel && job->force) {
        mirror_end(m, NULL);
    } else {
        mirror_wake(m);
    }
}

static bool job_can_complete(BlockJob *job, GError **errp)
{
    Mirror *m = job->opaque;
    BlockNode *fw[1];

    if (block_node_is_quorum(m->source) && block_quorum_forwarders(m->source, fw, 1)) {
        colo_error_set(errp, "Job '%s' cannot complete: disk '%s' is replicated; detach its "
                             "replication child first, or end the job with block-job-cancel",
                       job->id, m->source->name);
        return false;
    }
    return true;
}

const BlockJobDriver mirror_job_driver = {
    .type = "mirror",
    .wake = job_wake,
    .can_complete = job_can_complete,
};

void mirror_run(Mirror *m)
{
    mirrors++;
    m->hook.after = mirror_after_write;
    m->source->mirror = &m->hook;
    block_nbd_client(m->target); /* ours: a second connection would be no continuation */
    m->first_pass = true;
    m->active = m->copy_mode == MIRROR_WRITE_BLOCKING;
    m->zeroes = m->target->can_zero;
    m->probe = m->zeroes && m->full;
    m->slice_start = g_get_monotonic_time();
    if (m->source->size != m->target->size) {
        mirror_end(m, g_strdup_printf("Source and target image have different sizes "
                                      "(%" G_GUINT64_FORMAT " and %" G_GUINT64_FORMAT
                                      " bytes)",
                                      m->source->size, m->target->size));
        return;
    }
    mirror_step(m);
}
