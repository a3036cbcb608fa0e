/*
 * I/O threads: a GMainContext run by a thread, with a lock around its dispatch.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "util/io-thread.h"

#include <glib-unix.h>

struct ColoIoThread {
    GMainContext *context;
    GMainLoop *loop;
    GThread *thread;
    GMutex lock;
};

/* GLib gives the poll function no argument: the thread finds itself here. */
static __thread ColoIoThread *current_io_thread;

void io_thread_lock(ColoIoThread *t)
{
    g_mutex_lock(&t->lock);
}

void io_thread_unlock(ColoIoThread *t)
{
    g_mutex_unlock(&t->lock);
}

static gint io_thread_poll(GPollFD *fds, guint nfds, gint timeout)
{
    ColoIoThread *t = current_io_thread;

    io_thread_unlock(t);
    gint r = g_poll(fds, nfds, timeout);
    io_thread_lock(t);
    return r;
}

static gpointer io_thread_run(gpointer opaque)
{
    ColoIoThread *t = opaque;

    current_io_thread = t;
    g_main_context_push_thread_default(t->context);
    io_thread_lock(t);
    g_main_loop_run(t->loop);
    io_thread_unlock(t);
    g_main_context_pop_thread_default(t->context);
    return NULL;
}

ColoIoThread *io_thread_new(const char *name)
{
    ColoIoThread *t = g_new0(ColoIoThread, 1);

    g_mutex_init(&t->lock);
    t->context = g_main_context_new();
    g_main_context_set_poll_func(t->context, io_thread_poll);
    t->loop = g_main_loop_new(t->context, FALSE);
    t->thread = g_thread_new(name, io_thread_run, t);
    return t;
}

static gboolean io_thread_quit(gpointer opaque)
{
    ColoIoThread *t = opaque;

    g_main_loop_quit(t->loop);
    return G_SOURCE_REMOVE;
}

void io_thread_free(ColoIoThread *t)
{
    if (!t) {
        return;
    }
    /* Posted, not called: a quit before the loop has started would be lost. */
    io_thread_post(t, io_thread_quit, t);
    g_thread_join(t->thread);
    g_main_loop_unref(t->loop);
    g_main_context_unref(t->context);
    g_mutex_clear(&t->lock);
    g_free(t);
}

GMainContext *io_thread_context(ColoIoThread *t)
{
    return t->context;
}

GSource *io_thread_watch_fd(ColoIoThread *t, int fd, GIOCondition cond, ColoFdFunc fn,
                            gpointer opaque)
{
    GSource *s = g_unix_fd_source_new(fd, cond);

    g_source_set_can_recurse(s, TRUE); /* spares GLib blocking the fd in its callback */
    g_source_set_callback(s, G_SOURCE_FUNC(fn), opaque, NULL);
    g_source_attach(s, t->context);
    return s;
}

GSource *io_thread_timer(ColoIoThread *t, guint ms, GSourceFunc fn, gpointer opaque)
{
    GSource *s = g_timeout_source_new(ms);

    g_source_set_callback(s, fn, opaque, NULL);
    g_source_attach(s, t->context);
    return s;
}

void io_thread_post(ColoIoThread *t, GSourceFunc fn, gpointer opaque)
{
    GSource *s = g_idle_source_new();

    g_source_set_priority(s, G_PRIORITY_DEFAULT);
    g_source_set_callback(s, fn, opaque, NULL);
    g_source_attach(s, t->context);
    g_source_unref(s);
}

void io_source_destroy(GSource **source)
{
    if (*source) {
        g_source_destroy(*source);
        g_source_unref(*source);
        *source = NULL;
    }
}
