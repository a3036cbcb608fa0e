/*
 * Requests and their buffers.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block-int.h"

#include <stdlib.h>

BlockBuf *block_buf_new(size_t size)
{
    BlockBuf *buf = g_new(BlockBuf, 1);

    buf->refs = 1;
    buf->size = size;
    /* Checked by the callers' bounds; like g_malloc() this does not return NULL. */
    if (posix_memalign((void **)&buf->data, 4096, MAX(size, 1)) != 0) {
        g_error("out of memory for a disk request of %zu bytes", size);
    }
    return buf;
}

BlockBuf *block_buf_ref(BlockBuf *buf)
{
    g_atomic_int_inc(&buf->refs);
    return buf;
}

void block_buf_unref(BlockBuf *buf)
{
    if (buf && g_atomic_int_dec_and_test(&buf->refs)) {
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
    int ret = block_wait(&f->wait, ms);
    flush_wait_unref(f);
    return ret;
}
