/*
 * The gate: which frames leave this host, and until when.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Two sides may have the guest, one of them may speak. Each frame to the outside comes through
 * netdev_output(), where three things are asked:
 *
 * - the role. SECONDARY drops, SILENT keeps until the role is another one.
 * - the owner's lease (net_speak_until()): once it is over frames are dropped, as somebody else
 *   may have the guest by then.
 * - the primary's lease from its twin (net_twin_until()): once it is over frames are kept. They
 *   leave, in order, when it is renewed, or when the role allows it.
 *
 * Leases end by themselves: the clock is looked at for each frame, so that a process that was
 * asleep past the end says nothing on waking. They may be set in any thread, without the net
 * lock; role and frames are guarded by it. What is kept is bounded (NET_HELD_FRAMES): the oldest
 * goes first.
 */
#include <stdatomic.h>
#include <time.h>

#include "net/net-int.h"

/* Room singleton. */
static struct {
    NetRole role;
    _Atomic int64_t speak_until, twin_until; /* 0: for ever */
    _Atomic bool twin_kept;                  /* frames wait for the twin's lease */
} gate;

/* --- Leases --- */

int64_t net_boot_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_BOOTTIME, &ts);
    return ts.tv_sec * G_USEC_PER_SEC + ts.tv_nsec / 1000;
}

static bool is_over(_Atomic int64_t *lease)
{
    int64_t until = atomic_load_explicit(lease, memory_order_relaxed);

    return until != 0 && net_boot_us() > until;
}

void net_speak_until(int64_t boot_us)
{
    atomic_store(&gate.speak_until, boot_us);
}

int64_t net_speaks_until(void)
{
    return atomic_load(&gate.speak_until);
}

static void send_out(NetDev *nd, Frame *f)
{
    nd->stats.out_frames++;
    nd->ops->send(nd, f);
}

/* The primary's lease was renewed: what waited for that goes out, in order. */
static gboolean twin_flush(gpointer opaque)
{
    GPtrArray *all = netdev_list();

    for (unsigned i = 0; gate.role == NET_ROLE_PRIMARY && i < all->len; i++) {
        NetDev *nd = all->pdata[i];
        Frame *f;
        while (!is_over(&gate.twin_until) && (f = frame_queue_pop(&nd->kept))) {
            send_out(nd, f);
        }
    }
    return G_SOURCE_REMOVE;
}

static void twin_flush_soon(void)
{
    if (!is_over(&gate.twin_until) && atomic_exchange(&gate.twin_kept, false)) {
        io_thread_post(net_thread(), twin_flush, NULL);
    }
}

void net_twin_until(int64_t boot_us)
{
    atomic_store(&gate.twin_until, boot_us);
    twin_flush_soon();
}

/* --- Frames --- */

static void drop_frame(NetDev *nd, Frame *f)
{
    nd->stats.dropped_gate++;
    frame_unref(f);
}

static void keep_frame(NetDev *nd, Frame *f)
{
    if (nd->kept.count >= NET_HELD_FRAMES) {
        drop_frame(nd, frame_queue_pop(&nd->kept));
    }
    frame_queue_push(&nd->kept, frame_writable(f));
}

void netdev_output(NetDev *nd, Frame *f)
{
    switch (gate.role) {
    case NET_ROLE_ALONE:
    case NET_ROLE_PRIMARY:
        if (is_over(&gate.speak_until)) {
            drop_frame(nd, f);
        } else if (gate.role == NET_ROLE_PRIMARY &&
                   (nd->kept.count || is_over(&gate.twin_until))) {
            /* Behind what is kept already: the order stays. */
            keep_frame(nd, f);
            atomic_store(&gate.twin_kept, true);
            twin_flush_soon(); /* it may have been renewed meanwhile */
        } else {
            send_out(nd, f);
        }
        return;
    case NET_ROLE_SILENT:
        keep_frame(nd, f);
        return;
    case NET_ROLE_SECONDARY:
        drop_frame(nd, f);
        return;
    }
}

/* --- Role --- */

static const char *role_name(NetRole r)
{
    static const char *const names[] = {"alone", "primary", "secondary", "silent"};
    return names[r];
}

void net_set_role(NetRole role)
{
    NetRole old = gate.role;
    GPtrArray *all = netdev_list();

    if (old == role) {
        return;
    }
    colo_trace(net_role, "%s -> %s", role_name(old), role_name(role));
    gate.role = role;
    for (unsigned i = 0; i < all->len; i++) {
        NetDev *nd = all->pdata[i];
        if (role == NET_ROLE_SECONDARY) {
            frame_queue_clear(&nd->kept);
        } else if (role == NET_ROLE_PRIMARY) {
            atomic_store(&gate.twin_kept,
                         nd->kept.count > 0 || atomic_load(&gate.twin_kept));
        } else if (role != NET_ROLE_SILENT) {
            Frame *f;
            while ((f = frame_queue_pop(&nd->kept))) {
                netdev_output(nd, f);
            }
        }
    }
    twin_flush_soon();
}

NetRole net_get_role(void)
{
    return gate.role;
}

void net_gate_reset(void)
{
    gate.role = NET_ROLE_ALONE;
}
