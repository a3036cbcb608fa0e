/*
 * The primary before protection: connection, agreement, first copy of RAM.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "migration/primary.h"

#include "net/net.h"
#include "net/proxy.h"
#include "util/error.h"
#include "util/trace.h"

#define SYNC_ROUNDS 12
#define SYNC_ENOUGH 2048

static void on_proxy_trigger(ProxyTrigger t, const char *detail, void *opaque)
{
    if (t == PROXY_TRIGGER_GONE) {
        primary_lost(detail);
        return;
    }
    static const ColoTrigger map[] = {
        [PROXY_TRIGGER_MISMATCH] = COLO_TRIGGER_MISMATCH,
        [PROXY_TRIGGER_TIMEOUT] = COLO_TRIGGER_TIMEOUT,
        [PROXY_TRIGGER_NO_TWIN] = COLO_TRIGGER_NO_TWIN,
        [PROXY_TRIGGER_BACKLOG] = COLO_TRIGGER_BACKLOG,
        [PROXY_TRIGGER_STREAM] = COLO_TRIGGER_STREAM,
    };
    if (!colo.opts.ignore_wishes) {
        colo_request_checkpoint(map[t], detail);
    }
}

static void on_block_event(bool fatal, const char *message, void *opaque)
{
    if (fatal) {
        primary_lost(message);
    } else {
        colo_request_checkpoint(COLO_TRIGGER_REQUEST, message);
    }
}

static bool shake_hands(Primary *p, GError **errp)
{
    g_autofree char *hello = hello_build(true, errp);
    ChannelMsg msg;

    if (!hello || !channel_send_text(p->ch, CHANNEL_HELLO, hello, errp)) {
        return false;
    }
    ChannelResult r = channel_recv(p->ch, &msg, 10000, errp);
    if (r != CHANNEL_OK) {
        if (r == CHANNEL_CANCELLED) {
            colo_error_set(errp, "the migration was cancelled");
        } else if (r == CHANNEL_TIMEOUT) {
            colo_error_set(errp, "the peer at %s does not answer", p->uri);
        }
        return false;
    }
    g_autofree char *text = g_strndup((const char *)msg.data, msg.len);
    if (msg.type == CHANNEL_REFUSE) {
        colo_error_set(errp, "the secondary refuses: %s", text);
        return false;
    }
    if (msg.type != CHANNEL_HELLO_OK) {
        colo_error_set(errp, "unexpected message %d from the peer", msg.type);
        return false;
    }
    return hello_check(text, true, errp);
}

static bool start_rooms(Primary *p, GError **errp)
{
    p->started_rooms = true;
    if (!block_primary_start(on_block_event, NULL, errp)) {
        return false;
    }
    net_lock();
    bool ok = proxy_start_primary(on_proxy_trigger, NULL,
                                  colo.opts.peer_timeout * G_TIME_SPAN_MILLISECOND, errp);
    net_unlock();
    return ok;
}

bool primary_connect(Primary *p, GError **errp)
{
    static const PulseHooks hooks = {net_twin_until, primary_lost};
    int fd = link_learn(&colo.link, errp) ? channel_connect(p->uri, 10000, errp) : -1;

    if (fd < 0) {
        return false;
    }
    p->ch = channel_new(fd, colo.opts.peer_timeout);
    channel_set_stall(p->ch, colo_progress_limit() / 1000);
    g_mutex_lock(&colo.lock);
    colo.channel = p->ch;
    if (colo.want_exit || colo.want_quit) {
        channel_cancel(p->ch);
    }
    g_mutex_unlock(&colo.lock);
    if (!link_secure(&colo.link, p->ch, p->uri, errp) || !shake_hands(p, errp) ||
        !link_connect(&colo.link, p->ch, p->uri, &hooks, errp)) {
        return false;
    }
    channel_start_pings(p->ch, COLO_PING_MS);
    p->rx = g_thread_new("colo-rx", primary_rx_thread, p->ch);
    return start_rooms(p, errp);
}

static bool sync_progress(uint64_t done, void *opaque)
{
    g_mutex_lock(&colo.lock);
    colo.sync_done = done;
    bool go_on = !colo.peer_failure && !colo.want_exit && !colo.want_quit;
    g_mutex_unlock(&colo.lock);
    return go_on;
}

bool primary_first_copy(Primary *p, GError **errp)
{
    uint64_t pages = 0;

    g_mutex_lock(&colo.lock);
    colo.sync_total = ram_size(colo.ram);
    colo.sync_done = 0;
    colo.sync_started_us = g_get_monotonic_time();
    colo_set_state_locked(COLO_STATE_SYNC);
    g_mutex_unlock(&colo.lock);
    if (!tracker_start(colo.tracker, errp) ||
        !ram_send_all(colo.link.sender, sync_progress, NULL, &pages, errp)) {
        return false;
    }
    for (int i = 0; i < SYNC_ROUNDS; i++) {
        ram_epoch_begin(colo.ram);
        int64_t n = ram_capture(colo.ram, false, errp);
        if (n < 0 || !ram_send_staged(colo.link.sender, 0, &pages, errp) ||
            !sync_progress(ram_size(colo.ram), NULL)) {
            return false;
        }
        if (n < SYNC_ENOUGH) {
            break;
        }
    }
    return true;
}
