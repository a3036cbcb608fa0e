/*
 * The block thread: its lock, deferred completions, and waiting for it.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block-int.h"

typedef struct BlockThread {
    ColoIoThread *io;
    char *runtime_dir;
    GSource *loop_source;
    GQueue finished; /* BlockRequest, of block_complete_later() */
} BlockThread;

/* Room singleton; its fields are written by block_init() and block_shutdown(), the queue
 * under the lock. */
static BlockThread block;

ColoIoThread *block_thread(void)
{
    return block.io;
}

const char *block_runtime_dir(void)
{
    return block.runtime_dir;
}

/* Room singleton, set once before there are nodes. */
static void (*event_fn)(const char *name, JsonObject *data);

void block_set_event_func(void (*fn)(const char *name, JsonObject *data))
{
    event_fn = fn;
}

void block_event(const char *name, JsonObject *data)
{
    if (event_fn) {
        event_fn(name, data);
    } else {
        json_object_unref(data);
    }
}

void block_lock(void)
{
    io_thread_lock(block.io);
}

void block_unlock(void)
{
    io_thread_unlock(block.io);
}

/* Runs before each poll: what was queued to the ring meanwhile goes in one system call.
 */
static gboolean block_loop_prepare(GSource *s, gint *timeout)
{
    *timeout = -1;
    block_uring_submit_pending();
    return !g_queue_is_empty(&block.finished) || block_uring_ready();
}

static gboolean block_loop_check(GSource *s)
{
    return !g_queue_is_empty(&block.finished) || block_uring_ready();
}

static gboolean block_loop_dispatch(GSource *s, GSourceFunc fn, gpointer opaque)
{
    block_uring_reap();
    /* Only what is there now: completions beget submissions beget completions. */
    for (guint n = block.finished.length; n > 0; n--) {
        BlockRequest *req = g_queue_pop_head(&block.finished);

        req->done(req, req->ret);
    }
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs block_loop_funcs = {
    .prepare = block_loop_prepare,
    .check = block_loop_check,
    .dispatch = block_loop_dispatch,
};

void block_complete_later(BlockRequest *req, int ret)
{
    req->ret = ret;
    g_queue_push_tail(&block.finished, req);
    if (!g_main_context_is_owner(io_thread_context(block.io))) {
        g_main_context_wakeup(io_thread_context(block.io));
    }
}

bool block_init(const char *runtime_dir, GError **errp)
{
    g_assert(!block.io);
    block.io = io_thread_new("block");
    block.runtime_dir = g_strdup(runtime_dir);
    g_queue_init(&block.finished);
    block_lock();
    if (!block_uring_init(errp)) {
        block_unlock();
        io_thread_free(block.io);
        g_clear_pointer(&block.runtime_dir, g_free);
        block.io = NULL;
        return false;
    }
    block.loop_source = g_source_new(&block_loop_funcs, sizeof(GSource));
    g_source_set_priority(block.loop_source, G_PRIORITY_HIGH);
    g_source_set_can_recurse(block.loop_source, TRUE);
    g_source_attach(block.loop_source, io_thread_context(block.io));
    block_unlock();
    return true;
}

void block_shutdown(void)
{
    if (!block.io) {
        return;
    }
    block_nodes_shutdown();
    block_lock();
    io_source_destroy(&block.loop_source);
    block_uring_cleanup();
    block_unlock();
    io_thread_free(block.io);
    block.io = NULL;
    g_clear_pointer(&block.runtime_dir, g_free);
}

void block_wait_init(BlockWait *w)
{
    g_mutex_init(&w->lock);
    g_cond_init(&w->cond);
    w->done = false;
    w->ret = 0;
}

void block_wait_done(BlockWait *w, int ret)
{
    g_mutex_lock(&w->lock);
    w->done = true;
    w->ret = ret;
    g_cond_signal(&w->cond);
    g_mutex_unlock(&w->lock);
}

int block_wait(BlockWait *w, unsigned ms)
{
    gint64 end = g_get_monotonic_time() + (gint64)ms * 1000;
    int ret = -ETIMEDOUT;

    g_mutex_lock(&w->lock);
    while (!w->done) {
        if (ms == 0) {
            g_cond_wait(&w->cond, &w->lock);
        } else if (!g_cond_wait_until(&w->cond, &w->lock, end)) {
            break;
        }
    }
    if (w->done) {
        ret = w->ret;
    }
    g_mutex_unlock(&w->lock);
    return ret;
}
