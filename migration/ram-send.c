/*
 * Sending guest RAM over the channels of a connection.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A pass sends each page of a set once. The pages are a queue from which each channel's
 * thread takes a batch, so that a slow channel takes fewer. A pass with few batches uses as
 * many channels; with one, the calling thread does it all, and nobody is woken. Its last
 * message on each channel is MARK with the pass' number; SYNC on the control channel then
 * tells which channels to wait for. Between passes nothing is under way: a page of a later
 * pass cannot be overtaken by its older version.
 *
 * max-bandwidth is kept by all threads together, before each message: what a message costs is
 * added to the moment from which on the next may go. Here, and so outside of the guest's
 * pause.
 */
#include "migration/ram-send.h"

#include <string.h>

#include "migration/ram-private.h"
#include "util/error.h"
#include "util/trace.h"

#define NAP_US 20000

typedef struct Worker {
    RamSender *s;
    unsigned index;
    Channel *ch;
    RamEncoder *encoder;
    RamCounts counts; /* its own */
    RamCounts shown;  /* what is told of them; under lock */
    GThread *thread; /* NULL for the first */
    uint64_t pass;   /* what it worked on last; under lock */
} Worker;

struct RamSender {
    Ram *r;
    Channel *ctl;
    unsigned n; /* data channels */
    Worker worker[RAM_CHANNELS_MAX];

    GMutex lock; /* guards the rest */
    GCond wake, done;
    bool quit;
    uint64_t pass, epoch;
    unsigned use, busy; /* workers of the pass, and of these not ready */
    bool staged;        /* the set: staging, else all of RAM */
    const uint8_t *live; /* where RAM is read */
    uint64_t next, end; /* next slot or page, and the end of its run */
    uint64_t taken;     /* pages handed out */
    bool stop;
    GError *error;      /* the first */
};

static gint64 bandwidth; /* bytes a second; atomic by size */
static struct {
    GMutex lock;
    int64_t free_at; /* when the next message may go */
} limiter;

void ram_send_set_bandwidth(uint64_t bytes)
{
    __atomic_store_n(&bandwidth, MIN(bytes, (uint64_t)G_MAXINT64), __ATOMIC_RELAXED);
}

/* Wait until @bytes may go; false: the connection is cancelled. */
static bool wait_bandwidth(Channel *ch, size_t bytes)
{
    gint64 rate = __atomic_load_n(&bandwidth, __ATOMIC_RELAXED);

    if (rate <= 0) {
        return true;
    }
    g_mutex_lock(&limiter.lock);
    int64_t now = g_get_monotonic_time();
    int64_t at = MAX(limiter.free_at, now - NAP_US); /* what was not used is lost */
    limiter.free_at = at + (int64_t)((double)bytes * G_USEC_PER_SEC / rate);
    g_mutex_unlock(&limiter.lock);
    for (;;) {
        int64_t left = at - g_get_monotonic_time();
        if (left <= 0) {
            return true;
        }
        if (channel_cancelled(ch, MIN(left, NAP_US) / 1000)) {
            return false;
        }
        if (left < 1000) {
            g_usleep(left);
        }
    }
}

/* --- The set of a pass --- */

/* Take a batch; 0: the set is empty. */
static unsigned take(Worker *w, uint64_t *page, const uint8_t **data, const uint8_t **base,
                     uint64_t *next)
{
    RamSender *s = w->s;
    Ram *r = s->r;
    unsigned n = 0;

    g_mutex_lock(&s->lock);
    w->shown = w->counts;
    while (n < RAM_BATCH_PAGES && !s->stop) {
        if (s->staged && s->next == r->n_staged) {
            break;
        }
        if (!s->staged && s->next == s->end && !ram_map_data(r->map, s->next, &s->next, &s->end)) {
            s->next = s->end = r->pages;
            break;
        }
        page[n] = s->staged ? r->page_of[s->next] : s->next;
        data[n++] = (s->staged ? r->staging : s->live) + (s->next++ << COLO_PAGE_SHIFT);
    }
    s->taken += n;
    *next = s->next;
    g_mutex_unlock(&s->lock);
    for (unsigned i = 0; i < n; i++) {
        base[i] = s->staged ? ram_base_find(r, page[i]) : NULL;
    }
    return n;
}

static bool send_batches(Worker *w, bool (*progress)(uint64_t done, void *opaque),
                         void *opaque, GError **errp)
{
    RamSender *s = w->s;
    uint64_t page[RAM_BATCH_PAGES];
    const uint8_t *data[RAM_BATCH_PAGES], *base[RAM_BATCH_PAGES];
    struct iovec parts[3];
    uint64_t next;
    unsigned n;

    while ((n = take(w, page, data, base, &next))) {
        uint64_t before = w->counts.bytes;
        unsigned used = ram_encode(w->encoder, s->epoch, page, data, base, n, parts,
                                   &w->counts);
        if (!wait_bandwidth(w->ch, w->counts.bytes - before)) {
            colo_error_set(errp, "the transfer was cancelled");
            return false;
        }
        if (!channel_send(w->ch, CHANNEL_RAM, parts, used, errp)) {
            return false;
        }
        if (progress && !progress(next << COLO_PAGE_SHIFT, opaque)) {
            colo_error_set(errp, "the migration was cancelled");
            return false;
        }
    }
    return true;
}

static void work(Worker *w, uint64_t pass, bool (*progress)(uint64_t done, void *opaque),
                 void *opaque)
{
    RamSender *s = w->s;
    g_autoptr(GError) err = NULL;
    bool ok = send_batches(w, progress, opaque, &err) &&
              (s->n == 0 || channel_send_u64(w->ch, CHANNEL_MARK, &pass, 1, &err));

    g_mutex_lock(&s->lock);
    w->pass = pass;
    w->shown = w->counts;
    if (!ok) {
        s->stop = true;
        if (!s->error) {
            if (s->n) {
                g_prefix_error(&err, "data channel %u: ", w->index);
            }
            s->error = g_steal_pointer(&err);
        }
    }
    if (--s->busy == 0) {
        g_cond_signal(&s->done);
    }
    g_mutex_unlock(&s->lock);
}

static gpointer worker_thread(gpointer opaque)
{
    Worker *w = opaque;
    RamSender *s = w->s;

    g_mutex_lock(&s->lock);
    while (!s->quit) {
        if (w->pass == s->pass || w->index >= s->use) {
            g_cond_wait(&s->wake, &s->lock);
            continue;
        }
        uint64_t pass = s->pass;
        g_mutex_unlock(&s->lock);
        work(w, pass, NULL, NULL);
        g_mutex_lock(&s->lock);
    }
    g_mutex_unlock(&s->lock);
    return NULL;
}

/* --- Passes --- */

static bool run_pass(RamSender *s, uint64_t epoch, bool staged, unsigned batches,
                     bool (*progress)(uint64_t done, void *opaque), void *opaque,
                     uint64_t *pages, GError **errp)
{
    g_mutex_lock(&s->lock);
    s->pass++;
    s->epoch = epoch;
    s->staged = staged;
    s->live = tracker_source(s->r->tracker);
    s->next = s->end = s->taken = 0;
    /* In the first copy versions of a page follow each other, so all channels take part. */
    s->use = s->busy = epoch ? CLAMP(batches, 1, MAX(s->n, 1)) : MAX(s->n, 1);
    uint64_t pass = s->pass;
    if (s->use > 1) {
        g_cond_broadcast(&s->wake);
    }
    g_mutex_unlock(&s->lock);
    work(&s->worker[0], pass, progress, opaque);
    g_mutex_lock(&s->lock);
    while (s->busy) {
        g_cond_wait(&s->done, &s->lock);
    }
    bool ok = !s->error;
    if (!ok) {
        g_propagate_error(errp, g_steal_pointer(&s->error));
    }
    *pages += s->taken;
    uint64_t sync[2] = {pass, (1ull << s->use) - 1};
    g_mutex_unlock(&s->lock);
    return ok && (s->n == 0 || channel_send_u64(s->ctl, CHANNEL_SYNC, sync, 2, errp));
}

bool ram_send_staged(RamSender *s, uint64_t epoch, uint64_t *pages, GError **errp)
{
    uint64_t batches = (s->r->n_staged + RAM_BATCH_PAGES - 1) / RAM_BATCH_PAGES;

    return run_pass(s, epoch, true, MIN(batches, RAM_CHANNELS_MAX), NULL, NULL, pages, errp);
}

bool ram_send_all(RamSender *s, bool (*progress)(uint64_t done, void *opaque), void *opaque,
                  uint64_t *pages, GError **errp)
{
    return run_pass(s, 0, false, RAM_CHANNELS_MAX, progress, opaque, pages, errp) &&
           progress(s->r->size, opaque);
}

/* --- Life --- */

RamSender *ram_sender_new(Ram *r, Channel *ctl, Channel *const *data, unsigned n,
                          RamMethod method, int level, unsigned stall_ms)
{
    RamSender *s = g_new0(RamSender, 1);

    s->r = r;
    s->ctl = ctl;
    s->n = n;
    g_mutex_init(&s->lock);
    g_cond_init(&s->wake);
    g_cond_init(&s->done);
    for (unsigned i = 0; i < MAX(n, 1); i++) {
        Worker *w = &s->worker[i];
        *w = (Worker){.s = s, .index = i, .ch = n ? data[i] : ctl};
        w->encoder = ram_encoder_new(method, level);
        if (n) {
            channel_set_stall(w->ch, stall_ms);
        }
        w->thread = i ? g_thread_new("colo-ram-tx", worker_thread, w) : NULL;
    }
    colo_trace(migration_ram_sender, "channels=%u compression=%s", n, ram_method_name(method));
    return s;
}

void ram_sender_free(RamSender *s)
{
    if (!s) {
        return;
    }
    g_mutex_lock(&s->lock);
    s->quit = true;
    g_cond_broadcast(&s->wake);
    g_mutex_unlock(&s->lock);
    for (unsigned i = 0; i < MAX(s->n, 1); i++) {
        if (s->worker[i].thread) {
            g_thread_join(s->worker[i].thread);
        }
        ram_encoder_free(s->worker[i].encoder);
    }
    g_mutex_clear(&s->lock);
    g_cond_clear(&s->wake);
    g_cond_clear(&s->done);
    g_clear_error(&s->error);
    g_free(s);
}

void ram_sender_counts(RamSender *s, RamCounts *counts)
{
    memset(counts, 0, sizeof(*counts));
    g_mutex_lock(&s->lock);
    for (unsigned i = 0; i < MAX(s->n, 1); i++) {
        const RamCounts *c = &s->worker[i].shown;
        for (unsigned k = 0; k < RAM_KIND_MAX; k++) {
            counts->kind[k] += c->kind[k];
        }
        counts->bytes += c->bytes;
    }
    g_mutex_unlock(&s->lock);
}
