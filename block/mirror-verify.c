/*
 * A mirror's comparison: both disks by checksums, without copying.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Each side computes its own sums (resync-export.h). They are asked for one after the other
 * while the guest writes, so equal ones mean: equal, or marked meanwhile; and different ones
 * that the copier looks at it once more.
 */
#include "mirror.h"
#include "resync-export.h"

#define COMPARE_CHUNKS 64 /* 4 MiB of each disk */
#define COMPARE_DEPTH 4

typedef struct Compare {
    Mirror *m;
    uint64_t chunk;
    unsigned n, left;
    int ret;
    bool source_failed;
    BlockRequest req[2];
    uint8_t sum[2][COMPARE_CHUNKS * RESYNC_SUM];
} Compare;

static void compared(Compare *c)
{
    Mirror *m = c->m;

    for (unsigned i = 0; i < c->n; i++) {
        uint64_t start = (c->chunk + i) * RESYNC_CHUNK;
        uint64_t end = MIN(start + RESYNC_CHUNK, m->source->size);

        if (c->ret < 0) {
            dirty_bitmap_set(m->dirty, start, end); /* copied, if the job goes on */
        } else if (memcmp(c->sum[0] + i * RESYNC_SUM, c->sum[1] + i * RESYNC_SUM, RESYNC_SUM)) {
            dirty_bitmap_set(m->dirty, start, end);
            m->job->differed += end - start;
        }
        m->job->verified += end - start;
    }
    int ret = c->ret;
    bool source = c->source_failed;
    m->comparing--;
    g_free(c);
    if (ret < 0) {
        mirror_io_error(m, source, ret);
    }
    mirror_put(m);
}

static void sums_got(BlockRequest *req, int ret)
{
    Compare *c = req->opaque;

    if (ret < 0) {
        c->ret = ret;
        c->source_failed = req == &c->req[0];
    }
    if (--c->left == 0) {
        compared(c);
    }
}

static void compare_start(Mirror *m, uint64_t chunk, unsigned n)
{
    Compare *c = g_new0(Compare, 1);

    c->m = m;
    c->chunk = chunk;
    c->n = n;
    c->left = 2;
    m->comparing++;
    m->in_flight++;
    m->slice_bytes += (uint64_t)n * RESYNC_CHUNK;
    for (int i = 0; i < 2; i++) {
        c->req[i].op = BLOCK_OP_READ;
        c->req[i].offset = chunk * RESYNC_SUM;
        c->req[i].bytes = n * RESYNC_SUM;
        c->req[i].data = c->sum[i];
        c->req[i].done = sums_got;
        c->req[i].opaque = c;
        block_submit(m->sums[i], &c->req[i]);
    }
}

bool mirror_verify(Mirror *m)
{
    uint64_t chunks = (m->source->size + RESYNC_CHUNK - 1) / RESYNC_CHUNK;

    while (m->verify_pos < chunks && m->comparing < COMPARE_DEPTH) {
        unsigned n = MIN(COMPARE_CHUNKS, chunks - m->verify_pos);

        compare_start(m, m->verify_pos, n);
        m->verify_pos += n;
    }
    if (m->verify_pos < chunks || m->comparing) {
        return true;
    }
    m->verified = true;
    if (m->job->differed) {
        colo_report("job '%s': %" G_GUINT64_FORMAT " bytes of the target differed although "
                    "nothing said so; they are copied", m->job->id, m->job->differed);
    }
    return false;
}

void mirror_verify_end(Mirror *m)
{
    for (int i = 0; i < 2; i++) {
        if (m->sums[i]) {
            block_node_unuse(g_steal_pointer(&m->sums[i]));
        }
    }
}
