/*
 * Raw images in a file or on a block device.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The size is rounded up to a sector as QEMU does; what lies behind the end reads as
 * zeroes. I/O is buffered by the host; images that ask for anything else (cache.direct,
 * offset, ...) go through the storage daemon.
 */
#include "block-int.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_ZERO_CHUNK (1024 * 1024)

typedef struct FileNode {
    int fd;
    unsigned refs; /* the node's and one each operation */
    bool probed;
    bool no_fallocate[2]; /* plain, punching; found out on the way */
    uint8_t *zeroes;
} FileNode;

typedef struct FileOp {
    FileNode *f;
    BlockRequest *req;
    uint64_t pos;
    bool punch;
} FileOp;

static void file_unref(FileNode *f)
{
    if (--f->refs == 0) {
        close(f->fd);
        g_free(f->zeroes);
        g_free(f);
    }
}

static void file_op_finish(FileOp *op, int ret)
{
    BlockRequest *req = op->req;
    FileNode *f = op->f;

    g_free(op);
    req->done(req, ret);
    file_unref(f);
}

static void file_op_step(FileOp *op);

static void file_synced(void *opaque, int res)
{
    file_op_finish(opaque, res < 0 ? res : 0);
}

static void file_moved(void *opaque, int res)
{
    FileOp *op = opaque;
    BlockRequest *req = op->req;

    if (res == -EINTR || res == -EAGAIN) {
        res = 0;
    } else if (res < 0) {
        file_op_finish(op, res);
        return;
    } else if (res == 0 && req->op == BLOCK_OP_READ) {
        memset(req->data + op->pos, 0, req->bytes - op->pos);
        res = req->bytes - op->pos;
    } else if (res == 0) {
        file_op_finish(op, -EIO);
        return;
    }
    op->pos += res;
    if (op->pos < req->bytes) {
        file_op_step(op);
    } else if (req->op == BLOCK_OP_ZEROES && (req->flags & BLOCK_REQ_FUA)) {
        block_uring_fdatasync(op->f->fd, file_synced, op);
    } else {
        file_op_finish(op, 0);
    }
}

static void file_op_step(FileOp *op)
{
    BlockRequest *req = op->req;
    uint64_t left = req->bytes - op->pos;

    if (req->op == BLOCK_OP_READ) {
        block_uring_read(op->f->fd, req->data + op->pos, left, req->offset + op->pos,
                         file_moved, op);
    } else if (req->op == BLOCK_OP_WRITE) {
        block_uring_write(op->f->fd, req->data + op->pos, left, req->offset + op->pos,
                          req->flags & BLOCK_REQ_FUA, file_moved, op);
    } else {
        block_uring_write(op->f->fd, op->f->zeroes, MIN(left, FILE_ZERO_CHUNK),
                          req->offset + op->pos, false, file_moved, op);
    }
}

static void file_zeroes(FileOp *op);

static void file_fallocated(void *opaque, int res)
{
    FileOp *op = opaque;
    BlockRequest *req = op->req;

    if (res == -EINTR || res == -EAGAIN) {
        file_zeroes(op);
        return;
    }
    if (res == -EOPNOTSUPP || res == -EINVAL || res == -ENODEV || res == -ENOSYS) {
        op->f->no_fallocate[op->punch] = true;
        if (req->op == BLOCK_OP_TRIM) {
            file_op_finish(op, 0);
        } else {
            file_zeroes(op);
        }
        return;
    }
    if (res == 0 && (req->flags & BLOCK_REQ_FUA)) {
        block_uring_fdatasync(op->f->fd, file_synced, op);
        return;
    }
    file_op_finish(op, res);
}

static void file_zeroes(FileOp *op)
{
    BlockRequest *req = op->req;

    op->punch = op->punch && !op->f->no_fallocate[1];
    if (op->f->no_fallocate[op->punch]) {
        if (!op->f->zeroes) {
            op->f->zeroes = g_malloc0(FILE_ZERO_CHUNK);
        }
        file_op_step(op);
        return;
    }
    block_uring_fallocate(op->f->fd,
                          op->punch ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
                                    : FALLOC_FL_ZERO_RANGE,
                          req->offset, req->bytes, file_fallocated, op);
}

/* A quick look-up in the file system's tables, so done in place. */
static int file_status(FileNode *f, BlockRequest *req)
{
    uint64_t pos = req->offset, end = req->offset + req->bytes;

    while (pos < end && req->extents->len < 256) {
        off_t data = lseek(f->fd, pos, SEEK_DATA);
        uint64_t stop = end;
        uint32_t flags = 0;

        if (data < 0) {
            flags = errno == ENXIO ? 3 : 0;
        } else if ((uint64_t)data > pos) {
            flags = 3;
            stop = MIN(end, (uint64_t)data);
        } else {
            off_t hole = lseek(f->fd, pos, SEEK_HOLE);

            stop = hole > (off_t)pos ? MIN(end, (uint64_t)hole) : end;
        }
        BlockExtent e = {.bytes = stop - pos, .flags = flags};
        g_array_append_val(req->extents, e);
        pos = stop;
    }
    return 0;
}

static void file_submit(BlockNode *node, BlockRequest *req)
{
    FileNode *f = node->opaque;

    if (req->op == BLOCK_OP_STATUS) {
        block_complete_later(req, file_status(f, req));
        return;
    }
    if (req->op == BLOCK_OP_TRIM && (!node->discard || f->no_fallocate[1])) {
        block_complete_later(req, 0);
        return;
    }
    if (f->probed && req->op == BLOCK_OP_WRITE && req->offset == 0 &&
        block_probe_matches(req->data, MIN(req->bytes, 512))) {
        colo_report("image '%s': the guest may not turn a raw image whose format was "
                    "guessed into another one; give its format with format=raw",
                    node->filename);
        block_complete_later(req, -EPERM);
        return;
    }

    FileOp *op = g_new0(FileOp, 1);
    op->f = f;
    op->req = req;
    f->refs++;
    switch (req->op) {
    case BLOCK_OP_READ:
    case BLOCK_OP_WRITE:
        file_op_step(op);
        break;
    case BLOCK_OP_ZEROES:
    case BLOCK_OP_TRIM:
        op->punch = req->op == BLOCK_OP_TRIM ||
                    (node->discard && (req->flags & BLOCK_REQ_MAY_UNMAP));
        file_zeroes(op);
        break;
    case BLOCK_OP_FLUSH:
        block_uring_fdatasync(f->fd, file_synced, op);
        break;
    default:
        g_assert_not_reached();
    }
}

static void file_close(BlockNode *node)
{
    file_unref(node->opaque);
}

static const BlockDriver file_driver = {
    .name = "file",
    .submit = file_submit,
    .close = file_close,
};

bool block_file_suits(JsonObject *opts)
{
    static const char *const known[] = {
        "driver",         "filename", "file",      "read-only",
        "auto-read-only", "discard",  "node-name", NULL};
    g_autoptr(GList) keys = json_object_get_members(opts);

    for (GList *l = keys; l; l = l->next) {
        const char *key = l->data;

        if (!strcmp(key, "cache")) {
            JsonObject *cache = options_get_obj(opts, "cache");
            bool direct = false, no_flush = false;

            if (!cache || !options_get_bool(cache, "direct", &direct, NULL) ||
                !options_get_bool(cache, "no-flush", &no_flush, NULL) || direct ||
                no_flush) {
                return false;
            }
        } else if (!strcmp(key, "aio")) {
            /* All of them mean "asynchronous"; here that is io_uring. */
            const char *aio = options_get_str(opts, key, "");

            if (strcmp(aio, "io_uring") && strcmp(aio, "threads") &&
                strcmp(aio, "native")) {
                return false;
            }
        } else if (!strcmp(key, "locking")) {
            if (!strcmp(options_get_str(opts, key, ""), "off")) {
                return false;
            }
        } else if (!strcmp(key, "detect-zeroes")) {
            if (strcmp(options_get_str(opts, key, ""), "off")) {
                return false;
            }
        } else if (!g_strv_contains(known, key)) {
            return false;
        }
    }
    JsonObject *file = options_get_obj(opts, "file");
    return !file || block_file_suits(file);
}

static bool file_size(int fd, const char *filename, uint64_t *size, GError **errp)
{
    struct stat st;

    if (fstat(fd, &st) < 0) {
        colo_error_set_errno(errp, errno, "cannot examine image '%s'", filename);
        return false;
    }
    if (S_ISREG(st.st_mode)) {
        *size = st.st_size;
        return true;
    }
    if (S_ISBLK(st.st_mode)) {
        if (ioctl(fd, BLKGETSIZE64, size) == 0) {
            return true;
        }
        colo_error_set_errno(errp, errno, "cannot find the size of '%s'", filename);
        return false;
    }
    colo_error_set(errp, "image '%s' is neither a file nor a block device", filename);
    return false;
}

BlockNode *block_file_open(const char *name, JsonObject *opts, const char *format,
                           bool probed, GError **errp)
{
    JsonObject *file = options_get_obj(opts, "file");
    const char *filename = options_get_str(file ? file : opts, "filename", NULL);
    bool read_only = false;
    uint64_t size = 0;

    if (!filename) {
        colo_error_set(errp, "drive '%s': no file.filename given", name ? name : "");
        return NULL;
    }
    if (!options_get_bool(opts, "read-only", &read_only, errp)) {
        return NULL;
    }
    const char *discard = options_get_str(opts, "discard", "ignore");
    int fd = open(filename, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        colo_error_set_errno(errp, errno, "cannot open image '%s'", filename);
        return NULL;
    }
    if (!file_size(fd, filename, &size, errp) ||
        !block_file_lock(fd, read_only, filename, errp)) {
        close(fd);
        return NULL;
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);

    FileNode *f = g_new0(FileNode, 1);
    f->fd = fd;
    f->refs = 1;
    f->probed = probed;
    block_lock();
    BlockNode *node = block_node_new(&file_driver, name, f);
    node->size = (size + BLOCK_SECTOR - 1) / BLOCK_SECTOR * BLOCK_SECTOR;
    node->read_only = read_only;
    node->discard = !strcmp(discard, "unmap") || !strcmp(discard, "on");
    node->can_zero = true;
    node->format = g_strdup(format);
    node->filename = g_strdup(filename);
    block_unlock();
    return node;
}
