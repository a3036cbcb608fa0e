/*
 * File I/O of the block thread through io_uring.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Operations are queued and go to the kernel in one system call when the thread is about
 * to poll; what completes at once (the page cache) is taken right then, the rest when the
 * ring's descriptor, readable as long as completions wait, wakes the thread. What does
 * not fit into the ring waits in a backlog.
 */
#include "block-int.h"

#include <liburing.h>

#define URING_ENTRIES 256

typedef enum UringKind {
    URING_READ,
    URING_WRITE,
    URING_FSYNC,
    URING_FALLOCATE
} UringKind;

typedef struct UringOp {
    UringKind kind;
    int fd;
    int mode; /* write: RWF_ flags; fallocate: its mode */
    void *buf;
    size_t len;
    uint64_t offset;
    uint64_t range;
    bool background;
    BlockUringFunc fn;
    void *opaque;
} UringOp;

/* Room singleton, guarded by the block lock. */
static struct {
    struct io_uring ring;
    BlockFd *watch;
    GQueue backlog; /* UringOp */
    unsigned in_flight;
    bool pending;
} uring;

static bool uring_prepare(UringOp *op)
{
    /* The completion queue holds twice the entries; stay within. */
    if (uring.in_flight >= URING_ENTRIES) {
        return false;
    }
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring.ring);
    if (!sqe) {
        return false;
    }
    switch (op->kind) {
    case URING_READ:
        io_uring_prep_read(sqe, op->fd, op->buf, op->len, op->offset);
        break;
    case URING_WRITE:
        io_uring_prep_write(sqe, op->fd, op->buf, op->len, op->offset);
        sqe->rw_flags = op->mode;
        break;
    case URING_FSYNC:
        io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
        break;
    case URING_FALLOCATE:
        io_uring_prep_fallocate(sqe, op->fd, op->mode, op->offset, op->range);
        break;
    }
    if (op->background) {
        sqe->flags |= IOSQE_ASYNC;
    }
    io_uring_sqe_set_data(sqe, op);
    uring.in_flight++;
    uring.pending = true;
    return true;
}

static void uring_queue(UringOp op)
{
    UringOp *copy = g_new(UringOp, 1);

    *copy = op;
    if (!g_queue_is_empty(&uring.backlog) || !uring_prepare(copy)) {
        g_queue_push_tail(&uring.backlog, copy);
        return;
    }
    if (!g_main_context_is_owner(io_thread_context(block_thread()))) {
        g_main_context_wakeup(io_thread_context(block_thread()));
    }
}

void block_uring_submit_pending(void)
{
    while (uring.pending) {
        int r = io_uring_submit(&uring.ring);

        if (r == -EINTR) {
            continue;
        }
        if (r == -EAGAIN || r == -EBUSY) {
            /* The kernel is short of memory: the next round tries again. */
            g_main_context_wakeup(io_thread_context(block_thread()));
            return;
        }
        if (r < 0) {
            g_error("io_uring_submit: %s", g_strerror(-r));
        }
        uring.pending = io_uring_sq_ready(&uring.ring) > 0;
    }
}

bool block_uring_ready(void)
{
    return io_uring_cq_ready(&uring.ring) > 0;
}

void block_uring_reap(void)
{
    struct io_uring_cqe *cqe;

    while (io_uring_peek_cqe(&uring.ring, &cqe) == 0) {
        UringOp *op = io_uring_cqe_get_data(cqe);
        int res = cqe->res;

        io_uring_cqe_seen(&uring.ring, cqe);
        uring.in_flight--;
        op->fn(op->opaque, res);
        g_free(op);
    }
    while (!g_queue_is_empty(&uring.backlog) &&
           uring_prepare(g_queue_peek_head(&uring.backlog))) {
        g_queue_pop_head(&uring.backlog);
    }
}

static void uring_event(void *opaque, GIOCondition cond)
{
    block_uring_reap();
}

bool block_uring_init(GError **errp)
{
    int r = io_uring_queue_init(URING_ENTRIES, &uring.ring, 0);

    if (r < 0) {
        colo_error_set_errno(
            errp, -r,
            "cannot set up io_uring for disk access (see sysctl "
            "kernel.io_uring_disabled and the container's seccomp filter)");
        return false;
    }
    g_queue_init(&uring.backlog);
    uring.in_flight = 0;
    uring.pending = false;
    uring.watch = block_fd_new(uring.ring.ring_fd, G_IO_IN, uring_event, NULL);
    return true;
}

void block_uring_cleanup(void)
{
    block_fd_free(uring.watch);
    uring.watch = NULL;
    io_uring_queue_exit(&uring.ring);
}

void block_uring_read(int fd, void *buf, size_t len, uint64_t offset, BlockUringFunc fn,
                      void *opaque)
{
    uring_queue((UringOp){.kind = URING_READ,
                          .fd = fd,
                          .buf = buf,
                          .len = len,
                          .offset = offset,
                          .fn = fn,
                          .opaque = opaque});
}

void block_uring_write(int fd, const void *buf, size_t len, uint64_t offset, bool dsync,
                       BlockUringFunc fn, void *opaque)
{
    uring_queue((UringOp){.kind = URING_WRITE,
                          .fd = fd,
                          .buf = (void *)buf,
                          .len = len,
                          .offset = offset,
                          .mode = dsync ? RWF_DSYNC : 0,
                          .fn = fn,
                          .opaque = opaque});
}

void block_uring_write_background(int fd, const void *buf, size_t len, uint64_t offset,
                                  BlockUringFunc fn, void *opaque)
{
    uring_queue((UringOp){.kind = URING_WRITE,
                          .fd = fd,
                          .buf = (void *)buf,
                          .len = len,
                          .offset = offset,
                          .background = true,
                          .fn = fn,
                          .opaque = opaque});
}

void block_uring_fdatasync(int fd, BlockUringFunc fn, void *opaque)
{
    uring_queue((UringOp){.kind = URING_FSYNC, .fd = fd, .fn = fn, .opaque = opaque});
}

void block_uring_fallocate(int fd, int mode, uint64_t offset, uint64_t len,
                           BlockUringFunc fn, void *opaque)
{
    uring_queue((UringOp){.kind = URING_FALLOCATE,
                          .fd = fd,
                          .mode = mode,
                          .offset = offset,
                          .range = len,
                          .fn = fn,
                          .opaque = opaque});
}
