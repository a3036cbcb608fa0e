/*
 * Requests and their buffers.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block-int.h"

#include <stdlib.h>

/*
 * Buffers are kept for the next request: fresh memory costs a page fault for each 4 KiB,
 * which for large requests is more than the copy. Up to 64 KiB there is a class for each power
 * of two, up to 2 MiB one for each 64 KiB; larger buffers are not kept.
 */
#define POOL_SMALL 5 /* 4 KiB to 64 KiB */
#define POOL_STEP (64u * 1024)
#define POOL_LARGEST (2u * 1024 * 1024)
#define POOL_CLASSES (POOL_SMALL + POOL_LARGEST / POOL_STEP - 1)
#define POOL_BYTES (64ull * 1024 * 1024)

/* Room singleton with a lock of its own: buffers are freed by any thread. */
static struct {
    GMutex lock;
    GPtrArray *free[POOL_CLASSES];
    uint64_t bytes;
} pool;

/* The class of @size, which becomes what buffers of the class have; -1: none. */
static int pool_class(size_t *size)
{
    if (*size > POOL_LARGEST) {
        return -1;
    }
    if (*size > POOL_STEP) {
        *size = ROUND_UP(*size, POOL_STEP);
        return POOL_SMALL + *size / POOL_STEP - 2;
    }
    for (int i = 0;; i++) {
        if (*size <= 4096u << i) {
            *size = 4096u << i;
            return i;
        }
    }
}

BlockBuf *block_buf_new(size_t size)
{
    BlockBuf *buf = NULL;
    size_t room = MAX(size, 1);
    int class = pool_class(&room);

    g_mutex_lock(&pool.lock);
    if (class >= 0 && pool.free[class] && pool.free[class]->len > 0) {
        buf = g_ptr_array_steal_index_fast(pool.free[class], pool.free[class]->len - 1);
        pool.bytes -= room;
    }
    g_mutex_unlock(&pool.lock);
    if (!buf) {
        buf = g_new(BlockBuf, 1);
        /* Checked by the callers' bounds; like g_malloc() this does not return NULL. */
        if (posix_memalign((void **)&buf->data, 4096, room) != 0) {
            g_error("out of memory for a disk request of %zu bytes", size);
        }
    }
    buf->refs = 1;
    buf->size = size;
    return buf;
}

static bool pool_keep(BlockBuf *buf)
{
    size_t room = MAX(buf->size, 1);
    int class = pool_class(&room);
    bool kept = false;

    if (class < 0) {
        return false;
    }
    g_mutex_lock(&pool.lock);
    if (pool.bytes + room <= POOL_BYTES) {
        if (!pool.free[class]) {
            pool.free[class] = g_ptr_array_new();
        }
        g_ptr_array_add(pool.free[class], buf);
        pool.bytes += room;
        kept = true;
    }
    g_mutex_unlock(&pool.lock);
    return kept;
}

BlockBuf *block_buf_ref(BlockBuf *buf)
{
    g_atomic_int_inc(&buf->refs);
    return buf;
}

void block_buf_unref(BlockBuf *buf)
{
    if (buf && g_atomic_int_dec_and_test(&buf->refs) && !pool_keep(buf)) {
        free(buf->data);
        g_free(buf);
    }
}

const char *block_op_name(BlockOp op)
{
    static const char *const names[] = {"read", "write", "write-zeroes",
                                        "trim", "flush", "status"};

    return names[op];
}

typedef struct SyncRequest {
    BlockRequest req;
    BlockWait wait;
} SyncRequest;

static void sync_request_done(BlockRequest *req, int ret)
{
    SyncRequest *s = req->opaque;

    block_wait_done(&s->wait, ret);
}

int block_request_sync(BlockNode *node, BlockOp op, uint64_t offset, uint64_t bytes,
                       void *data, unsigned flags)
{
    SyncRequest s = {
        .req = {.op = op,
                .flags = flags,
                .offset = offset,
                .bytes = bytes,
                .data = data,
                .done = sync_request_done},
    };
    BlockBuf *buf = NULL;

    if (op == BLOCK_OP_WRITE) {
        buf = block_buf_new(bytes);
        memcpy(buf->data, data, bytes);
        s.req.buf = buf;
        s.req.data = buf->data;
    }
    s.req.opaque = &s;
    block_wait_init(&s.wait);
    block_lock();
    block_front_submit(node, NULL, &s.req);
    g_main_context_wakeup(io_thread_context(block_thread()));
    block_unlock();
    int ret = block_wait(&s.wait, 0);
    block_buf_unref(buf);
    return ret;
}

/* The waiter may have gone: both hold it. */
typedef struct FlushWait {
    gint refs;
    BlockRequest req;
    BlockWait wait;
} FlushWait;

static void flush_wait_unref(FlushWait *f)
{
    if (g_atomic_int_dec_and_test(&f->refs)) {
        g_free(f);
    }
}

static void flush_wait_done(BlockRequest *req, int ret)
{
    FlushWait *f = req->opaque;

    block_wait_done(&f->wait, ret);
    flush_wait_unref(f);
}

int block_flush_wait(BlockNode *node, unsigned ms)
{
    return block_flush_wait_until(node, ms, NULL);
}

int block_flush_wait_until(BlockNode *node, unsigned ms, bool (*give_up)(void))
{
    FlushWait *f = g_new0(FlushWait, 1);

    f->refs = 2;
    f->req.op = BLOCK_OP_FLUSH;
    f->req.done = flush_wait_done;
    f->req.opaque = f;
    block_wait_init(&f->wait);
    block_lock();
    block_front_submit(node, NULL, &f->req);
    g_main_context_wakeup(io_thread_context(block_thread()));
    block_unlock();
    int ret;
    do {
        ret = block_wait(&f->wait, ms);
    } while (ret == -ETIMEDOUT && give_up && !give_up());
    flush_wait_unref(f);
    return ret;
}
