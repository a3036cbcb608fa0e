/*
 * What an export tells a peer that wants to make it equal to its own disk.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "resync-export.h"

#include "activity-log.h"

#define DIRTY_MAGIC 0x51434f4c4f444d31ull /* "QCOLODM1" */
#define SUMS_AT_ONCE 8

typedef struct __attribute__((packed)) DirtyHead {
    uint64_t magic; /* all big endian */
    uint32_t version;
    uint32_t granule;
    uint64_t size;
    char generation[40];
} DirtyHead;

typedef struct ResyncNode {
    BlockNode *base;
    ResyncSide side;
} ResyncNode;

const char *resync_suffix(ResyncSide side)
{
    return side == RESYNC_DIRTY ? ":colo-dirty" : ":colo-sums";
}

/* --- The map --- */

/* The log of a disk that is one image, or lies on one. */
static ActivityLog *log_of(BlockNode *base)
{
    g_autoptr(GPtrArray) images = activity_log_images(base);

    return images->len == 1 ? activity_log_of(images->pdata[0]) : NULL;
}

static void dirty_read(ResyncNode *rn, BlockRequest *req)
{
    ActivityLog *log = log_of(rn->base);
    const char *generation = activity_log_generation(log);
    DirtyHead head = {
        .magic = GUINT64_TO_BE(DIRTY_MAGIC),
        .version = GUINT32_TO_BE(1),
        .granule = GUINT32_TO_BE(RESYNC_CHUNK),
        .size = GUINT64_TO_BE(rn->base->size),
    };

    g_strlcpy(head.generation, generation ? generation : "", sizeof(head.generation));
    memset(req->data, 0, req->bytes);
    if (req->offset < sizeof(head)) {
        memcpy(req->data, (uint8_t *)&head + req->offset,
               MIN(req->bytes, sizeof(head) - req->offset));
    }
    uint64_t skip = req->offset < RESYNC_HEAD ? RESYNC_HEAD - req->offset : 0;
    if (generation && req->bytes > skip) {
        dirty_bitmap_store(activity_log_dirty(log), req->offset + skip - RESYNC_HEAD,
                           req->data + skip, req->bytes - skip);
    }
    block_complete_later(req, 0);
}

/* --- The sums --- */

typedef struct SumReq {
    BlockRequest *orig;
    BlockNode *base;
    uint64_t next, end; /* chunks */
    unsigned in_flight;
    int ret;
} SumReq;

typedef struct SumChunk {
    SumReq *sr;
    uint64_t chunk;
    BlockRequest req;
    uint8_t sum[RESYNC_SUM];
} SumChunk;

static void sums_go_on(SumReq *sr);

static gboolean sum_ready(gpointer opaque)
{
    SumChunk *c = opaque;
    SumReq *sr = c->sr;
    uint64_t at = c->chunk * RESYNC_SUM, from = MAX(at, sr->orig->offset);
    uint64_t to = MIN(at + RESYNC_SUM, sr->orig->offset + sr->orig->bytes);

    if (from < to) {
        memcpy(sr->orig->data + (from - sr->orig->offset), c->sum + (from - at), to - from);
    }
    block_buf_unref(c->req.buf);
    g_free(c);
    sr->in_flight--;
    sums_go_on(sr);
    return G_SOURCE_REMOVE;
}

/* In a thread of its own: the block thread has other things to do. */
static void sum_work(gpointer data, gpointer opaque)
{
    SumChunk *c = data;
    gsize len = sizeof(c->sum);
    GChecksum *sum = g_checksum_new(G_CHECKSUM_SHA256);

    g_checksum_update(sum, c->req.data, c->req.bytes);
    g_checksum_get_digest(sum, c->sum, &len);
    g_checksum_free(sum);
    io_thread_post(block_thread(), sum_ready, c);
}

static void sum_read(BlockRequest *req, int ret)
{
    static GThreadPool *pool;
    SumChunk *c = req->opaque;

    if (ret < 0) {
        c->sr->ret = ret;
        sum_ready(c);
        return;
    }
    if (!pool) {
        pool = g_thread_pool_new(sum_work, NULL, 2, FALSE, NULL);
    }
    g_thread_pool_push(pool, c, NULL);
}

static void sums_go_on(SumReq *sr)
{
    while (sr->ret == 0 && sr->next < sr->end && sr->in_flight < SUMS_AT_ONCE) {
        SumChunk *c = g_new0(SumChunk, 1);

        c->sr = sr;
        c->chunk = sr->next++;
        c->req.op = BLOCK_OP_READ;
        c->req.offset = c->chunk * RESYNC_CHUNK;
        c->req.bytes = MIN(RESYNC_CHUNK, sr->base->size - c->req.offset);
        c->req.buf = block_buf_new(c->req.bytes);
        c->req.data = c->req.buf->data;
        c->req.done = sum_read;
        c->req.opaque = c;
        sr->in_flight++;
        block_submit(sr->base, &c->req);
    }
    if (sr->in_flight == 0) {
        BlockRequest *orig = sr->orig;
        int ret = sr->ret;

        block_node_unuse(sr->base);
        g_free(sr);
        block_complete_later(orig, ret);
    }
}

static void sums_read(ResyncNode *rn, BlockRequest *req)
{
    SumReq *sr = g_new0(SumReq, 1);
    uint64_t chunks = (rn->base->size + RESYNC_CHUNK - 1) / RESYNC_CHUNK;

    memset(req->data, 0, req->bytes);
    sr->orig = req;
    sr->base = rn->base;
    sr->base->users++;
    sr->next = req->offset / RESYNC_SUM;
    sr->end = MIN((req->offset + req->bytes + RESYNC_SUM - 1) / RESYNC_SUM, chunks);
    sums_go_on(sr);
}

/* --- The nodes --- */

static void resync_submit(BlockNode *node, BlockRequest *req)
{
    ResyncNode *rn = node->opaque;

    if (req->op == BLOCK_OP_READ && rn->side == RESYNC_DIRTY) {
        dirty_read(rn, req);
    } else if (req->op == BLOCK_OP_READ) {
        sums_read(rn, req);
    } else if (req->op == BLOCK_OP_STATUS) {
        BlockExtent e = {.bytes = req->bytes};

        g_array_append_val(req->extents, e);
        block_complete_later(req, 0);
    } else {
        block_complete_later(req, req->op == BLOCK_OP_FLUSH ? 0 : -EPERM);
    }
}

static void resync_close(BlockNode *node)
{
    ResyncNode *rn = node->opaque;

    block_node_unuse(rn->base);
    g_free(rn);
}

static const BlockDriver resync_driver = {
    .name = "colo-resync",
    .submit = resync_submit,
    .close = resync_close,
};

static uint64_t side_size(uint64_t size, ResyncSide side)
{
    uint64_t chunks = (size + RESYNC_CHUNK - 1) / RESYNC_CHUNK;
    uint64_t bytes = side == RESYNC_DIRTY ? RESYNC_HEAD + (chunks + 7) / 8
                                          : chunks * RESYNC_SUM;

    return ROUND_UP(bytes, 4096);
}

BlockNode *resync_node_new(BlockNode *base, ResyncSide side)
{
    ResyncNode *rn = g_new0(ResyncNode, 1);

    rn->base = base;
    rn->side = side;
    base->users++;
    BlockNode *node = block_node_new(&resync_driver, NULL, rn);
    node->size = side_size(base->size, side);
    node->read_only = true;
    node->inline_child = true;
    node->users = 1;
    return node;
}

/* --- The peer's --- */

/* @target's side disk, here or over there. Without the lock. */
static BlockNode *open_side(BlockNode *target, ResyncSide side, GError **errp)
{
    if (!block_nbd_client(target)) {
        block_lock();
        BlockNode *node = resync_node_new(target, side);
        block_unlock();
        return node;
    }
    BlockNode *node = block_nbd_open_beside(target, resync_suffix(side), errp);
    if (!node) {
        g_prefix_error(errp, "the target's server is no qemu-colo that could tell what its "
                             "image holds: ");
        return NULL;
    }
    block_lock();
    bool fits = node->size == side_size(target->size, side);
    node->inline_child = true;
    node->users = 1;
    if (!fits) {
        block_node_unuse(node);
    }
    block_unlock();
    if (!fits) {
        colo_error_set(errp, "the target's server is no qemu-colo that could tell what its "
                             "image holds: under the name '%s' it has something else",
                       resync_suffix(side));
        return NULL;
    }
    return node;
}

static void close_side(BlockNode *node)
{
    block_lock();
    block_node_unuse(node);
    block_unlock();
}

static bool check_head(const DirtyHead *h, BlockNode *target, const char *generation,
                       GError **errp)
{
    if (GUINT64_FROM_BE(h->magic) != DIRTY_MAGIC || GUINT32_FROM_BE(h->version) != 1 ||
        GUINT32_FROM_BE(h->granule) != RESYNC_CHUNK ||
        GUINT64_FROM_BE(h->size) != target->size ||
        !memchr(h->generation, 0, sizeof(h->generation))) {
        colo_error_set(errp, "the target's server tells nonsense about its image");
    } else if (!h->generation[0]) {
        colo_error_set(errp, "the target's image has no activity log: use sync=full");
    } else if (strcmp(h->generation, generation) != 0) {
        colo_error_set(errp,
                       "the target's image and this disk were never equal at a moment that "
                       "both know (generation %s there, %s here): use sync=full",
                       h->generation, generation);
    } else {
        return true;
    }
    return false;
}

bool resync_read_dirty(BlockNode *target, const char *generation, DirtyBitmap *into,
                       GError **errp)
{
    BlockNode *node = open_side(target, RESYNC_DIRTY, errp);
    g_autofree uint8_t *buf = g_malloc(1024 * 1024);
    g_autoptr(DirtyBitmap) map = dirty_bitmap_new(target->size, RESYNC_CHUNK);
    bool ok = node != NULL;

    for (uint64_t pos = 0; ok && pos < node->size;) {
        uint64_t n = pos ? MIN(1024 * 1024, node->size - pos) : RESYNC_HEAD;
        int r = block_request_sync(node, BLOCK_OP_READ, pos, n, buf, 0);

        if (r < 0) {
            colo_error_set_errno(errp, -r, "the target's log cannot be read");
            ok = false;
        } else if (pos == 0) {
            DirtyHead head;

            memcpy(&head, buf, sizeof(head));
            ok = check_head(&head, target, generation, errp);
        } else {
            dirty_bitmap_load(map, pos - RESYNC_HEAD, buf, n);
        }
        pos += n;
    }
    if (node) {
        close_side(node);
    }
    if (ok) {
        dirty_bitmap_merge(into, map);
    }
    return ok;
}

BlockNode *resync_open_sums(BlockNode *target, GError **errp)
{
    return open_side(target, RESYNC_SUMS, errp);
}
