/*
 * The child's port: one end of a datagram socketpair, the guest's NIC at the other.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal. Feed the guest in few system calls, and at any moment be able to say which frames
 * it has not taken, get those back, and know how each of them looked when it entered the
 * filter chain, so that it can be mirrored and delivered again.
 *
 * How. We keep our own descriptor of the child's end. While frames are in flight, @sent
 * remembers for each its original and what was sent. A hold stops sending and reads the
 * child's end until it is empty. The child may read at the same time, so what we get is
 * a subsequence of what was in flight, not always its tail: each frame got back is looked
 * up by content, newest first. Equal frames are interchangeable.
 *
 * Invariants. @sent covers every frame that can be unread: the kernel charges at least
 * 768 bytes a datagram to our send buffer, which is set to hold at most SENT_MAX of
 * those. Frames are sent in order; @pending is not empty only when the socket was full.
 *
 * A pause leaves the guest's output in the socket: when that is full, the child's NIC
 * stops sending. It is lifted, and the socket read empty, before the child is stopped: a
 * NIC that cannot send at a stop loses its frames (RULES 1).
 */
#include <errno.h>
#include <limits.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/net-int.h"

#define SENT_MAX 1024
#define MIN_CHARGE 768 /* bytes that the kernel charges for a datagram at least */
#define SNDBUF (SENT_MAX * MIN_CHARGE / 2) /* the kernel doubles it */
#define WATCH_MS 20
#define WATCH_PATIENCE 2 /* looks */
#define WATCH_PATIENCE_MAX 50
#define RX_BATCH 32

struct ChildPort {
    ColoIoThread *thread;
    int fd;       /* ours */
    int child_fd; /* the child's: inherited by it, and read by us at a hold */
    void (*rx)(void *opaque, Frame *f);
    void (*idle)(void *opaque);
    void *opaque;
    GSource *in, *out;
    EntryRing sent;    /* in flight or taken, oldest first */
    EntryRing pending; /* not yet accepted by the socket */
    bool held;
    Frame *slots[RX_BATCH];

    /* Watch over a reader that stands still, see port_watch(). */
    void (*stalled)(void *opaque);
    GSource *watch;
    uint64_t sent_total, watch_sent; /* frames: ever, and at the last look */
    int watch_outq;                  /* bytes unread at the last look */
    unsigned still, patience;        /* looks without progress, and how many are borne */
};

/* Room singleton under the net lock: tails of frames larger than a pooled one. */
static uint8_t *rx_tail[RX_BATCH];

static void set_buffer(int fd, int opt, int force, int value)
{
    if (setsockopt(fd, SOL_SOCKET, force, &value, sizeof(value)) < 0) {
        setsockopt(fd, SOL_SOCKET, opt, &value, sizeof(value));
    }
}

/* Receive up to a batch; number of frames. */
static int port_receive(ChildPort *p)
{
    struct mmsghdr msg[RX_BATCH];
    struct iovec iov[RX_BATCH][2];

    memset(msg, 0, sizeof(msg));
    for (int i = 0; i < RX_BATCH; i++) {
        if (!p->slots[i]) {
            p->slots[i] = frame_new(FRAME_POOLED);
        }
        if (!rx_tail[i]) {
            rx_tail[i] = g_malloc(FRAME_MAX);
        }
        iov[i][0] = (struct iovec){p->slots[i]->data, FRAME_POOLED};
        iov[i][1] = (struct iovec){rx_tail[i], FRAME_MAX - FRAME_POOLED};
        msg[i].msg_hdr.msg_iov = iov[i];
        msg[i].msg_hdr.msg_iovlen = 2;
    }
    int n = recvmmsg(p->fd, msg, RX_BATCH, MSG_DONTWAIT, NULL);
    if (n <= 0) {
        return 0;
    }
    int64_t now = g_get_monotonic_time();
    Frame *got[RX_BATCH];
    for (int i = 0; i < n; i++) {
        uint32_t len = msg[i].msg_len;
        Frame *f = p->slots[i];
        if (len > FRAME_POOLED) {
            f = frame_new(len);
            memcpy(f->data, p->slots[i]->data, FRAME_POOLED);
            memcpy(f->data + FRAME_POOLED, rx_tail[i], len - FRAME_POOLED);
        } else {
            p->slots[i] = NULL;
            f->len = len;
        }
        f->stamp = now;
        got[i] = f;
    }
    for (int i = 0; i < n; i++) {
        if (got[i]->len < FRAME_MIN_ETH) {
            frame_unref(got[i]);
        } else {
            p->rx(p->opaque, got[i]);
        }
    }
    return n;
}

static gboolean port_in(int fd, GIOCondition cond, gpointer opaque)
{
    ChildPort *p = opaque;

    net_batch_begin();
    port_receive(p);
    net_batch_end();
    return G_SOURCE_CONTINUE;
}

static unsigned port_drain(ChildPort *p, uint64_t max)
{
    unsigned total = 0;
    int n;

    net_batch_begin();
    while (total < max && (n = port_receive(p)) > 0) {
        total += n;
    }
    net_batch_end();
    return total;
}

unsigned child_port_drain(ChildPort *p)
{
    return port_drain(p, UINT64_MAX);
}

void child_port_pause(ChildPort *p, bool pause)
{
    if (pause == child_port_paused(p)) {
        return;
    }
    colo_trace(net_child_pause, "%s", pause ? "not read" : "read again");
    if (pause) {
        io_source_destroy(&p->in);
    } else {
        p->in = io_thread_watch_fd(p->thread, p->fd, G_IO_IN, port_in, p);
    }
}

bool child_port_paused(const ChildPort *p)
{
    return !p->in;
}

void child_port_catch_up(ChildPort *p)
{
    if (child_port_paused(p)) {
        child_port_pause(p, false);
        /* No more fit: what a busy guest adds meanwhile is the watch's. */
        port_drain(p, child_port_capacity(p) / MIN_CHARGE + RX_BATCH);
    }
}

static gboolean port_out(int fd, GIOCondition cond, gpointer opaque)
{
    ChildPort *p = opaque;

    io_source_destroy(&p->out);
    child_port_flush(p);
    if (!p->pending.count) {
        p->idle(p->opaque);
    }
    return G_SOURCE_REMOVE;
}

/*
 * virtio-net of QEMU before 9.1 can go to sleep for good: it finds too few receive
 * buffers, asks the guest for a kick, and misses buffers that came in between. It then
 * reads nothing any more, although the guest waits for frames. Seen from here: unread
 * bytes that do not become fewer. A nudge (set_link up where it is up) makes it look again.
 */
static gboolean port_watch(gpointer opaque)
{
    ChildPort *p = opaque;
    int outq = 0;

    if (p->held || ioctl(p->fd, SIOCOUTQ, &outq) < 0 || outq == 0) {
        io_source_destroy(&p->watch);
        return G_SOURCE_REMOVE;
    }
    /* Each frame sent since is charged with at least this much. */
    int64_t grown = (int64_t)(p->sent_total - p->watch_sent) * MIN_CHARGE;
    bool moved = outq < p->watch_outq + grown;
    p->still = moved ? 0 : p->still + 1;
    p->patience = moved ? WATCH_PATIENCE : p->patience;
    p->watch_outq = outq;
    p->watch_sent = p->sent_total;
    if (p->still >= p->patience) {
        p->still = 0;
        p->patience = MIN(p->patience * 2, WATCH_PATIENCE_MAX);
        p->stalled(p->opaque);
    }
    return G_SOURCE_CONTINUE;
}

static void start_watch(ChildPort *p)
{
    if (!p->watch && p->stalled) {
        p->still = 0;
        p->patience = WATCH_PATIENCE;
        p->watch_sent = p->sent_total;
        p->watch_outq = INT_MAX;
        p->watch = io_thread_timer(p->thread, WATCH_MS, port_watch, p);
    }
}

void child_port_on_stall(ChildPort *p, void (*stalled)(void *opaque))
{
    p->stalled = stalled;
}

/* The guest has taken everything: nothing to remember. */
static void forget_taken(ChildPort *p)
{
    int outq = 0;

    if (p->sent.count >= SENT_MAX / 4 && ioctl(p->fd, SIOCOUTQ, &outq) == 0 &&
        outq == 0) {
        entry_ring_clear(&p->sent);
    }
}

static void remember_sent(ChildPort *p, ChainEntry e)
{
    if (p->sent.count == SENT_MAX) {
        ChainEntry old = entry_ring_pop(&p->sent);
        frame_unref(old.frame);
        frame_unref(old.delivered);
    }
    entry_ring_push(&p->sent, e.frame, e.delivered, e.after);
}

void child_port_flush(ChildPort *p)
{
    if (p->held) {
        return;
    }
    forget_taken(p);
    while (p->pending.count) {
        struct mmsghdr msg[NET_BATCH];
        struct iovec iov[NET_BATCH];
        unsigned n = MIN(p->pending.count, NET_BATCH);

        memset(msg, 0, n * sizeof(msg[0]));
        for (unsigned i = 0; i < n; i++) {
            Frame *f = entry_ring_at(&p->pending, i)->delivered;
            iov[i] = (struct iovec){f->data, f->len};
            msg[i].msg_hdr.msg_iov = &iov[i];
            msg[i].msg_hdr.msg_iovlen = 1;
        }
        int r = sendmmsg(p->fd, msg, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (r < 0) {
            if (errno == EINTR) {
                continue;
            }
            if (errno == EAGAIN || errno == ENOBUFS) {
                break;
            }
            /* Nobody there, or a frame that no socket takes: drop it, go on. */
            ChainEntry e = entry_ring_pop(&p->pending);
            frame_unref(e.frame);
            frame_unref(e.delivered);
            continue;
        }
        for (int i = 0; i < r; i++) {
            remember_sent(p, entry_ring_pop(&p->pending));
        }
        p->sent_total += r;
        start_watch(p);
    }
    if (p->pending.count && !p->out) {
        p->out = io_thread_watch_fd(p->thread, p->fd, G_IO_OUT, port_out, p);
    }
}

static void port_flush(void *opaque)
{
    child_port_flush(opaque);
}

void child_port_send(ChildPort *p, Frame *delivered, Frame *orig, NetFilter *after)
{
    entry_ring_push(&p->pending, frame_ref(orig), delivered, after);
    if (!net_batch_active()) {
        child_port_flush(p);
    } else {
        net_batch_add(port_flush, p);
    }
}

unsigned child_port_backlog(ChildPort *p)
{
    return p->pending.count;
}

static bool same_frame(const Frame *a, const Frame *b)
{
    return a->len == b->len && memcmp(a->data, b->data, a->len) == 0;
}

void child_port_hold(ChildPort *p, EntryRing *back)
{
    g_autoptr(GPtrArray) taken = g_ptr_array_new();
    g_autofree ChainEntry *found = NULL;

    p->held = true;
    io_source_destroy(&p->out);
    for (;;) {
        Frame *f = frame_new(FRAME_POOLED);
        uint8_t *tail = rx_tail[0] ? rx_tail[0] : (rx_tail[0] = g_malloc(FRAME_MAX));
        struct iovec iov[2] = {{f->data, FRAME_POOLED}, {tail, FRAME_MAX - FRAME_POOLED}};
        struct msghdr mh = {.msg_iov = iov, .msg_iovlen = 2};
        ssize_t n = recvmsg(p->child_fd, &mh, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) {
            frame_unref(f);
            continue;
        }
        if (n <= 0) {
            frame_unref(f);
            break;
        }
        if (n > FRAME_POOLED) {
            Frame *big = frame_new(n);
            memcpy(big->data, f->data, FRAME_POOLED);
            memcpy(big->data + FRAME_POOLED, tail, n - FRAME_POOLED);
            frame_unref(f);
            f = big;
        }
        f->len = n;
        g_ptr_array_add(taken, f);
    }
    found = g_new0(ChainEntry, taken->len + 1);
    unsigned i = p->sent.count;
    for (unsigned j = taken->len; j-- > 0;) {
        Frame *t = taken->pdata[j];
        while (i > 0 && !same_frame(entry_ring_at(&p->sent, i - 1)->delivered, t)) {
            i--;
        }
        if (i > 0) {
            ChainEntry *e = entry_ring_at(&p->sent, --i);
            found[j] = *e;
            frame_ref(e->frame);
        } else {
            /* Not ours: someone else has written into the socket. Drop it. */
            colo_report("a frame in the guest's socket is not one that was sent");
        }
        frame_unref(t);
    }
    for (unsigned j = 0; j < taken->len; j++) {
        if (found[j].frame) {
            entry_ring_push(back, found[j].frame, NULL, found[j].after);
        }
    }
    while (p->pending.count) {
        ChainEntry e = entry_ring_pop(&p->pending);
        frame_unref(e.delivered);
        entry_ring_push(back, e.frame, NULL, e.after);
    }
    entry_ring_clear(&p->sent);
    colo_trace(net_child_hold, "taken back %u", back->count);
}

void child_port_resume(ChildPort *p)
{
    p->held = false;
    child_port_flush(p);
}

void child_port_forget_filter(ChildPort *p, NetFilter *gone, NetFilter *instead)
{
    entry_ring_replace(&p->sent, gone, instead);
    entry_ring_replace(&p->pending, gone, instead);
}

int child_port_child_fd(ChildPort *p)
{
    return p->child_fd;
}

uint64_t child_port_capacity(ChildPort *p)
{
    int size = 0;
    socklen_t len = sizeof(size);

    getsockopt(p->child_fd, SOL_SOCKET, SO_SNDBUF, &size, &len);
    return MAX(size, 0);
}

/* Room singleton: SO_SNDBUF of the guest's end of new ports (test option). */
static int guest_buffer = 8 << 20;

void net_set_guest_buffer(unsigned bytes)
{
    guest_buffer = bytes;
}

ChildPort *child_port_new(ColoIoThread *t, void (*rx)(void *opaque, Frame *f),
                          void (*idle)(void *opaque), void *opaque, GError **errp)
{
    int sv[2];

    if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) < 0) {
        colo_error_set_errno(errp, errno, "cannot make the guest's network socket");
        return NULL;
    }
    /* Towards the child: small enough that @sent covers it. From the child: as large as
     * can be had, its NIC purges what it cannot send at a stop. */
    set_buffer(sv[0], SO_SNDBUF, SO_SNDBUFFORCE, SNDBUF);
    set_buffer(sv[1], SO_SNDBUF, SO_SNDBUFFORCE, guest_buffer);
    set_buffer(sv[0], SO_RCVBUF, SO_RCVBUFFORCE, 8 << 20);
    set_buffer(sv[1], SO_RCVBUF, SO_RCVBUFFORCE, 8 << 20);

    ChildPort *p = g_new0(ChildPort, 1);
    p->thread = t;
    p->fd = sv[0];
    p->child_fd = sv[1];
    p->rx = rx;
    p->idle = idle;
    p->opaque = opaque;
    entry_ring_init(&p->sent, SENT_MAX);
    entry_ring_init(&p->pending, 2048);
    p->in = io_thread_watch_fd(t, p->fd, G_IO_IN, port_in, p);
    return p;
}

void child_port_free(ChildPort *p)
{
    if (!p) {
        return;
    }
    net_batch_remove(port_flush, p);
    io_source_destroy(&p->in);
    io_source_destroy(&p->out);
    io_source_destroy(&p->watch);
    entry_ring_free(&p->sent);
    entry_ring_free(&p->pending);
    for (int i = 0; i < RX_BATCH; i++) {
        frame_unref(p->slots[i]);
    }
    close(p->fd);
    close(p->child_fd);
    g_free(p);
}
