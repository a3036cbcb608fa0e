/*
 * I/O threads: a GMainContext run by a thread, with a lock around its dispatch.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * All state of a room that lives in an I/O thread is guarded by that thread's lock.
 * The thread holds the lock whenever it runs a callback and lets go of it only while
 * it polls, so another thread (the checkpoint thread between stop and cont, a QMP
 * command) calls into the room by taking the lock: no wake-up, no hand-over, and the
 * call is over when it returns. Callbacks must be short and must not block.
 * The lock is not recursive. Order where two are needed: net before block.
 */
#ifndef COLO_UTIL_IO_THREAD_H
#define COLO_UTIL_IO_THREAD_H

#include <glib.h>

typedef struct ColoIoThread ColoIoThread;

/** Start a thread called @name (at most 15 bytes). Never fails. */
ColoIoThread *io_thread_new(const char *name);

/** Stop and join the thread and free it; not to be called from the thread itself. */
void io_thread_free(ColoIoThread *t);

GMainContext *io_thread_context(ColoIoThread *t);
void io_thread_lock(ColoIoThread *t);
void io_thread_unlock(ColoIoThread *t);

typedef gboolean (*ColoFdFunc)(int fd, GIOCondition cond, gpointer opaque);

/**
 * Watch @fd for @cond in the thread; @fn returns G_SOURCE_CONTINUE or G_SOURCE_REMOVE.
 * The result is owned by the caller: io_source_destroy() it (allowed inside @fn).
 */
GSource *io_thread_watch_fd(ColoIoThread *t, int fd, GIOCondition cond, ColoFdFunc fn,
                            gpointer opaque);

/** Call @fn each @ms milliseconds in the thread until it returns G_SOURCE_REMOVE. */
GSource *io_thread_timer(ColoIoThread *t, guint ms, GSourceFunc fn, gpointer opaque);

/** Call @fn once, soon, in the thread. */
void io_thread_post(ColoIoThread *t, GSourceFunc fn, gpointer opaque);

/** Destroy and release *@source, if any, and set it to NULL. */
void io_source_destroy(GSource **source);

#endif
