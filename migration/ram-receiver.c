/*
 * The data channels' end on the secondary.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Data channels overtake the control channel and each other. Three rules keep the order:
 * - A message names its epoch and waits until the controller has opened that window (BEGIN).
 *   Between SYNC and the next BEGIN none is open, so that staging is the controller's alone
 *   while a checkpoint is being loaded.
 * - In the first copy (epoch 0) a page may come several times: a channel that has come to
 *   the end of a pass (MARK) waits for all others there.
 * - SYNC names the channels whose MARK the controller has to wait for. A peer that lies there
 *   gains nothing: before staging is used the window is closed, and nobody is inside.
 */
#include "migration/ram-receiver.h"

#include "migration/ram-send.h"
#include "util/error.h"
#include "util/trace.h"

#define LOOK_MS 100
#define CLOSED UINT64_MAX

typedef struct Reader {
    RamReceiver *x;
    unsigned index;
    Channel *ch;
    GThread *thread;
    uint64_t pass; /* of its last MARK; under lock */
} Reader;

struct RamReceiver {
    Ram *r;
    unsigned n, stall_ms;
    Reader reader[RAM_CHANNELS_MAX];

    GMutex lock; /* guards the rest */
    GCond cond;
    bool quit;
    uint64_t window; /* epoch whose pages may come, or CLOSED */
    unsigned inside; /* readers that are taking pages, outside of the lock */
    uint64_t pages;
    GError *error; /* the first */
    int64_t failed_at;
};

/* Wait until @fn says so; the lock is held. */
static bool wait_locked(Reader *d, bool (*fn)(Reader *d, uint64_t v), uint64_t v,
                        const char *what, GError **errp)
{
    RamReceiver *x = d->x;
    int64_t end = g_get_monotonic_time() + x->stall_ms * 1000LL;

    while (!fn(d, v) && !x->quit && !x->error) {
        if (!g_cond_wait_until(&x->cond, &x->lock, end)) {
            colo_error_set(errp, "%s did not come within %u ms", what, x->stall_ms);
            return false;
        }
    }
    if (!fn(d, v)) {
        colo_error_set(errp, "the connection ends");
        return false;
    }
    return true;
}

static bool is_open(Reader *d, uint64_t epoch)
{
    return epoch != CLOSED && d->x->window == epoch;
}

static bool all_marked(Reader *d, uint64_t pass)
{
    for (unsigned i = 0; i < d->x->n; i++) {
        if (d->x->reader[i].pass < pass) {
            return false;
        }
    }
    return true;
}

/* The next pass may be a checkpoint's, in which not all take part: its MARK can come before
 * the BEGIN that tells so. */
static bool may_go_on(Reader *d, uint64_t pass)
{
    return d->x->window != 0 || all_marked(d, pass);
}

static bool take_pages(Reader *d, RamDecoder *decoder, const ChannelMsg *msg, GError **errp)
{
    RamReceiver *x = d->x;
    uint64_t epoch = channel_msg_u64(msg, 0), pages = 0;

    g_mutex_lock(&x->lock);
    bool ok = wait_locked(d, is_open, epoch, "the beginning of a checkpoint", errp);
    if (!ok) {
        g_mutex_unlock(&x->lock);
        return false;
    }
    x->inside++;
    g_mutex_unlock(&x->lock);
    ok = ram_receive(x->r, decoder, msg, epoch, &pages, errp);
    g_mutex_lock(&x->lock);
    x->pages += pages;
    if (--x->inside == 0) {
        g_cond_broadcast(&x->cond);
    }
    g_mutex_unlock(&x->lock);
    return ok;
}

static bool mark(Reader *d, uint64_t pass, GError **errp)
{
    RamReceiver *x = d->x;
    bool ok = true;

    g_mutex_lock(&x->lock);
    if (pass <= d->pass) {
        colo_error_set(errp, "the end of a pass that is over");
        ok = false;
    } else {
        d->pass = pass;
        g_cond_broadcast(&x->cond);
        ok = wait_locked(d, may_go_on, pass, "the same from the other channels", errp);
    }
    g_mutex_unlock(&x->lock);
    return ok;
}

static bool handle(Reader *d, RamDecoder *decoder, const ChannelMsg *msg, GError **errp)
{
    if (msg->type == CHANNEL_RAM) {
        return take_pages(d, decoder, msg, errp);
    }
    if (msg->type == CHANNEL_MARK && msg->len == 8) {
        return mark(d, channel_msg_u64(msg, 0), errp);
    }
    colo_error_set(errp, "unexpected message %d", msg->type);
    return false;
}

static gpointer reader_thread(gpointer opaque)
{
    Reader *d = opaque;
    RamReceiver *x = d->x;
    g_autofree RamDecoder *decoder = g_new(RamDecoder, 1);
    g_autoptr(GError) err = NULL;
    ChannelMsg msg;

    for (;;) {
        ChannelResult r = channel_recv(d->ch, &msg, LOOK_MS, &err);
        if (r == CHANNEL_CANCELLED) {
            return NULL;
        }
        if (r == CHANNEL_ERROR || (r == CHANNEL_OK && !handle(d, decoder, &msg, &err))) {
            break;
        }
    }
    g_mutex_lock(&x->lock);
    if (!x->error && !x->quit) {
        g_prefix_error(&err, "data channel %u: ", d->index);
        colo_trace(migration_ram_receiver, "%s", err->message);
        x->error = g_steal_pointer(&err);
        x->failed_at = g_get_monotonic_time();
        g_cond_broadcast(&x->cond);
    }
    g_mutex_unlock(&x->lock);
    return NULL;
}

void ram_receiver_open(RamReceiver *x, uint64_t epoch)
{
    g_mutex_lock(&x->lock);
    x->window = CLOSED;
    while (x->inside) {
        g_cond_wait(&x->cond, &x->lock);
    }
    x->window = epoch;
    g_cond_broadcast(&x->cond);
    g_mutex_unlock(&x->lock);
}

void ram_receiver_close(RamReceiver *x)
{
    ram_receiver_open(x, CLOSED);
}

static bool synced_locked(const RamReceiver *x, uint64_t pass, uint64_t mask)
{
    for (unsigned i = 0; i < x->n; i++) {
        if ((mask >> i & 1) && x->reader[i].pass < pass) {
            return false;
        }
    }
    return true;
}

bool ram_receiver_synced(RamReceiver *x, uint64_t pass, uint64_t mask, unsigned timeout_ms,
                         uint64_t *pages)
{
    int64_t end = g_get_monotonic_time() + timeout_ms * 1000LL;

    g_mutex_lock(&x->lock);
    while (!synced_locked(x, pass, mask) && !x->error &&
           g_cond_wait_until(&x->cond, &x->lock, end)) {
    }
    bool done = synced_locked(x, pass, mask) && !x->error;
    if (done) {
        *pages += x->pages;
        x->pages = 0;
        x->window = x->window ? CLOSED : 0;
    }
    g_mutex_unlock(&x->lock);
    return done;
}

bool ram_receiver_good(RamReceiver *x, int64_t grace_us, GError **errp)
{
    g_mutex_lock(&x->lock);
    bool good = !x->error || g_get_monotonic_time() - x->failed_at < grace_us;
    if (!good) {
        g_propagate_error(errp, g_error_copy(x->error));
    }
    g_mutex_unlock(&x->lock);
    return good;
}

int64_t ram_receiver_silence(RamReceiver *x)
{
    int64_t least = G_MAXINT64;

    for (unsigned i = 0; i < x->n; i++) {
        int64_t silence = channel_silence(x->reader[i].ch);
        least = MIN(least, silence);
    }
    return least;
}

RamReceiver *ram_receiver_new(Ram *r, Channel *const *data, unsigned n, unsigned stall_ms)
{
    RamReceiver *x = g_new0(RamReceiver, 1);

    x->r = r;
    x->n = n;
    x->stall_ms = stall_ms;
    g_mutex_init(&x->lock);
    g_cond_init(&x->cond);
    for (unsigned i = 0; i < n; i++) {
        x->reader[i] = (Reader){.x = x, .index = i, .ch = data[i]};
    }
    for (unsigned i = 0; i < n; i++) {
        x->reader[i].thread = g_thread_new("colo-ram-rx", reader_thread, &x->reader[i]);
    }
    return x;
}

void ram_receiver_free(RamReceiver *x)
{
    if (!x) {
        return;
    }
    g_mutex_lock(&x->lock);
    x->quit = true;
    g_cond_broadcast(&x->cond);
    g_mutex_unlock(&x->lock);
    for (unsigned i = 0; i < x->n; i++) {
        channel_cancel(x->reader[i].ch);
    }
    for (unsigned i = 0; i < x->n; i++) {
        g_thread_join(x->reader[i].thread);
    }
    g_mutex_clear(&x->lock);
    g_cond_clear(&x->cond);
    g_clear_error(&x->error);
    g_free(x);
}
