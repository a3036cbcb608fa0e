/*
 * GLib's locks for ThreadSanitizer; part of builds with -Db_sanitize=thread alone.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * GLib makes GMutex and GCond of futexes, in a library that is not instrumented: the
 * sanitizer would see no lock at all and call every guarded access a race. Here are the same
 * functions over pthreads, which it knows. The linker takes them before the library's; locks
 * inside GLib stay GLib's own, so no lock is ever taken by both kinds.
 *
 * The object behind a lock is made at its first use and not freed where a lock is never
 * cleared (static ones, those in structures that are freed whole).
 */
#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

const char *__tsan_default_suppressions(void);

/* What is known and harmless. */
const char *__tsan_default_suppressions(void)
{
    /* G_DEFINE_QUARK() of GLib 2.74 keeps the quark in a plain static variable; whoever comes
     * first, all write the same value. */
    return "race:_quark$\n"
           /* Locks inside GLib and GnuTLS are not seen: what they hand over looks unguarded. */
           "race:^g_async_queue_*\n"
           "called_from_lib:libgnutls.so\n"
           "called_from_lib:libcurl*.so\n"
           "called_from_lib:libmicrohttpd.so\n";
}

/* The object at @p, made with @init where there is none yet. */
static void *object(gpointer *p, size_t size, void (*init)(void *o), void (*fini)(void *o))
{
    void *o = __atomic_load_n(p, __ATOMIC_ACQUIRE), *none = NULL;

    if (o) {
        return o;
    }
    o = malloc(size);
    if (!o) {
        abort();
    }
    init(o);
    if (__atomic_compare_exchange_n(p, &none, o, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        return o;
    }
    fini(o);
    free(o);
    return none;
}

static void mutex_make(void *o)
{
    pthread_mutex_init(o, NULL);
}

static void mutex_unmake(void *o)
{
    pthread_mutex_destroy(o);
}

/* GLib's clock of conditions is the monotonic one. */
static void cond_make(void *o)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(o, &attr);
    pthread_condattr_destroy(&attr);
}

static void cond_unmake(void *o)
{
    pthread_cond_destroy(o);
}

static pthread_mutex_t *mutex_of(GMutex *m)
{
    return object(&m->p, sizeof(pthread_mutex_t), mutex_make, mutex_unmake);
}

static pthread_cond_t *cond_of(GCond *c)
{
    return object(&c->p, sizeof(pthread_cond_t), cond_make, cond_unmake);
}

void g_mutex_init(GMutex *mutex)
{
    mutex->p = NULL;
}

void g_mutex_clear(GMutex *mutex)
{
    if (mutex->p) {
        mutex_unmake(mutex->p);
        free(g_steal_pointer(&mutex->p));
    }
}

void g_mutex_lock(GMutex *mutex)
{
    pthread_mutex_lock(mutex_of(mutex));
}

gboolean g_mutex_trylock(GMutex *mutex)
{
    return pthread_mutex_trylock(mutex_of(mutex)) == 0;
}

void g_mutex_unlock(GMutex *mutex)
{
    pthread_mutex_unlock(mutex_of(mutex));
}

void g_cond_init(GCond *cond)
{
    cond->p = NULL;
}

void g_cond_clear(GCond *cond)
{
    if (cond->p) {
        cond_unmake(cond->p);
        free(g_steal_pointer(&cond->p));
    }
}

void g_cond_wait(GCond *cond, GMutex *mutex)
{
    pthread_cond_wait(cond_of(cond), mutex_of(mutex));
}

gboolean g_cond_wait_until(GCond *cond, GMutex *mutex, gint64 end_time)
{
    struct timespec at = {.tv_sec = end_time / G_USEC_PER_SEC,
                          .tv_nsec = end_time % G_USEC_PER_SEC * 1000};

    return pthread_cond_timedwait(cond_of(cond), mutex_of(mutex), &at) != ETIMEDOUT;
}

void g_cond_signal(GCond *cond)
{
    pthread_cond_signal(cond_of(cond));
}

void g_cond_broadcast(GCond *cond)
{
    pthread_cond_broadcast(cond_of(cond));
}
