/*
 * A watch of one descriptor in the block thread whose condition changes cheaply.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block-int.h"

struct BlockFd {
    GSource source;
    gpointer tag;
    GIOCondition cond;
    BlockFdFunc fn;
    void *opaque;
};

static gboolean block_fd_check(GSource *s)
{
    BlockFd *w = (BlockFd *)s;

    return g_source_query_unix_fd(s, w->tag) != 0;
}

static gboolean block_fd_dispatch(GSource *s, GSourceFunc fn, gpointer opaque)
{
    BlockFd *w = (BlockFd *)s;

    w->fn(w->opaque, g_source_query_unix_fd(s, w->tag));
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs block_fd_funcs = {
    .check = block_fd_check,
    .dispatch = block_fd_dispatch,
};

BlockFd *block_fd_new(int fd, GIOCondition cond, BlockFdFunc fn, void *opaque)
{
    GSource *s = g_source_new(&block_fd_funcs, sizeof(BlockFd));
    BlockFd *w = (BlockFd *)s;

    w->fn = fn;
    w->opaque = opaque;
    w->cond = cond;
    w->tag = g_source_add_unix_fd(s, fd, cond);
    /* No loop is run inside a callback; without this GLib takes the descriptor out of the
     * set around each, which costs three system calls an event. */
    g_source_set_can_recurse(s, TRUE);
    g_source_attach(s, io_thread_context(block_thread()));
    return w;
}

void block_fd_set(BlockFd *w, GIOCondition cond)
{
    if (w->cond != cond) {
        w->cond = cond;
        g_source_modify_unix_fd(&w->source, w->tag, cond);
    }
}

void block_fd_free(BlockFd *w)
{
    if (w) {
        g_source_destroy(&w->source);
        g_source_unref(&w->source);
    }
}
