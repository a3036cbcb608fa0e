/*
 * Raw images in a file or on a block device.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The size is rounded up to a sector as QEMU does; what lies behind the end reads as
 * zeroes. I/O is buffered by the host, or direct (cache.direct=on) where the disk takes
 * sectors of 512 bytes; images that ask for anything else (offset, ...) go through the
 * storage daemon. With shared-disk=on the image belongs to a guest of another host: it is
 * read, directly, and cannot be written until block_file_own() has got its locks.
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
    bool shared;          /* shared-disk=on was given */
    bool borrowed;        /* another host's: not to be written */
    unsigned direct;      /* alignment of memory for direct I/O, 0: buffered */
    BlockBuf *zeroes;
} FileNode;

typedef struct FileOp {
    FileNode *f;
    BlockRequest *req;
    uint64_t pos;
    bool punch;
    BlockBuf *bounce; /* direct I/O on memory that is not aligned */
    uint64_t bounce_pos, bounce_end;
} FileOp;

static void file_unref(FileNode *f)
{
    if (--f->refs == 0) {
        close(f->fd);
        block_buf_unref(f->zeroes);
        g_free(f);
    }
}

static void file_op_finish(FileOp *op, int ret)
{
    BlockRequest *req = op->req;
    FileNode *f = op->f;

    block_buf_unref(op->bounce);
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
    if (op->f->direct && res % BLOCK_SECTOR) {
        if (req->op != BLOCK_OP_READ) {
            file_op_finish(op, -EIO);
            return;
        }
        /* The file's end, in the middle of a sector. */
        memset(req->data + op->pos + res, 0, req->bytes - op->pos - res);
        res = req->bytes - op->pos;
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
    } else if (req->op == BLOCK_OP_WRITE && (req->flags & BLOCK_REQ_BACKGROUND) &&
               !(req->flags & BLOCK_REQ_FUA)) {
        block_uring_write_background(op->f->fd, req->data + op->pos, left,
                                     req->offset + op->pos, file_moved, op);
    } else if (req->op == BLOCK_OP_WRITE) {
        block_uring_write(op->f->fd, req->data + op->pos, left, req->offset + op->pos,
                          req->flags & BLOCK_REQ_FUA, file_moved, op);
    } else {
        block_uring_write(op->f->fd, op->f->zeroes->data, MIN(left, FILE_ZERO_CHUNK),
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
        if (req->flags & BLOCK_REQ_FAST) {
            /* We may be inside the submission. */
            FileNode *f = op->f;

            g_free(op);
            block_complete_later(req, -ENOTSUP);
            file_unref(f);
            return;
        }
        if (!op->f->zeroes) {
            op->f->zeroes = block_buf_new(FILE_ZERO_CHUNK);
            memset(op->f->zeroes->data, 0, FILE_ZERO_CHUNK);
        }
        file_op_step(op);
        return;
    }
    block_uring_fallocate(op->f->fd,
                          op->punch ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
                                    : FALLOC_FL_ZERO_RANGE,
                          req->offset, req->bytes, file_fallocated, op);
}

/* --- Direct I/O that does not fit the disk's alignment --- */

static void bounce_moved(void *opaque, int res);

static void bounce_step(FileOp *op)
{
    uint64_t base = op->req->offset / BLOCK_SECTOR * BLOCK_SECTOR;
    uint64_t at = base + op->bounce_pos, len = op->bounce_end - op->bounce_pos;

    if (op->req->op == BLOCK_OP_READ) {
        block_uring_read(op->f->fd, op->bounce->data + op->bounce_pos, len, at,
                         bounce_moved, op);
    } else {
        block_uring_write(op->f->fd, op->bounce->data + op->bounce_pos, len, at,
                          op->req->flags & BLOCK_REQ_FUA, bounce_moved, op);
    }
}

static void bounce_moved(void *opaque, int res)
{
    FileOp *op = opaque;
    BlockRequest *req = op->req;
    bool reads = req->op == BLOCK_OP_READ;

    if (res == -EINTR || res == -EAGAIN) {
        res = 0;
    } else if (res < 0 || (!reads && (res == 0 || res % BLOCK_SECTOR))) {
        file_op_finish(op, res < 0 ? res : -EIO);
        return;
    } else if (res == 0 || res % BLOCK_SECTOR) {
        /* The file's end. */
        memset(op->bounce->data + op->bounce_pos + res, 0,
               op->bounce_end - op->bounce_pos - res);
        res = op->bounce_end - op->bounce_pos;
    }
    op->bounce_pos += res;
    if (op->bounce_pos < op->bounce_end) {
        bounce_step(op);
        return;
    }
    if (reads) {
        memcpy(req->data, op->bounce->data + req->offset % BLOCK_SECTOR, req->bytes);
    }
    file_op_finish(op, 0);
}

/* Whether a read or write needs memory of our own. */
static bool needs_bounce(FileNode *f, const BlockRequest *req)
{
    return f->direct && ((uintptr_t)req->data % f->direct ||
                         (req->offset | req->bytes) % BLOCK_SECTOR);
}

static void bounce_start(FileOp *op)
{
    BlockRequest *req = op->req;
    uint64_t skip = req->offset % BLOCK_SECTOR;

    op->bounce_end = (skip + req->bytes + BLOCK_SECTOR - 1) / BLOCK_SECTOR * BLOCK_SECTOR;
    op->bounce = block_buf_new(op->bounce_end);
    if (req->op == BLOCK_OP_WRITE) {
        memcpy(op->bounce->data, req->data, req->bytes);
    }
    bounce_step(op);
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

    if (block_op_modifies(req->op) &&
        (f->borrowed || (f->direct && (req->offset | req->bytes) % BLOCK_SECTOR))) {
        block_complete_later(req, f->borrowed ? -EPERM : -EINVAL);
        return;
    }

    FileOp *op = g_new0(FileOp, 1);
    op->f = f;
    op->req = req;
    f->refs++;
    switch (req->op) {
    case BLOCK_OP_READ:
    case BLOCK_OP_WRITE:
        if (needs_bounce(f, req)) {
            bounce_start(op);
        } else {
            file_op_step(op);
        }
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
        "driver",  "filename",  "file",        "read-only", "auto-read-only",
        "discard", "node-name", "shared-disk", NULL};
    g_autoptr(GList) keys = json_object_get_members(opts);

    for (GList *l = keys; l; l = l->next) {
        const char *key = l->data;

        if (!strcmp(key, "cache")) {
            JsonObject *cache = options_get_obj(opts, "cache");
            bool direct = false, no_flush = false;

            if (!cache || !options_get_bool(cache, "direct", &direct, NULL) ||
                !options_get_bool(cache, "no-flush", &no_flush, NULL) || no_flush) {
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

/* Memory alignment of direct I/O in whole sectors, or 0 if the disk has larger ones. */
static unsigned direct_alignment(int fd)
{
    struct statx stx;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) != 0 ||
        !(stx.stx_mask & STATX_DIOALIGN)) {
        return 4096;
    }
    return stx.stx_dio_offset_align > BLOCK_SECTOR ? 0 : MAX(stx.stx_dio_mem_align, 1);
}

typedef struct FileOpts {
    const char *filename;
    bool read_only, direct, shared;
} FileOpts;

static bool read_file_opts(const char *name, JsonObject *opts, FileOpts *o, GError **errp)
{
    JsonObject *file = options_get_obj(opts, "file");
    JsonObject *cache = options_get_obj(opts, "cache");
    JsonObject *file_cache = options_get_obj(file, "cache");

    o->filename = options_get_str(file ? file : opts, "filename", NULL);
    if (!o->filename) {
        colo_error_set(errp, "drive '%s': no file.filename given", name ? name : "");
        return false;
    }
    if (!options_get_bool(opts, "read-only", &o->read_only, errp) ||
        !options_get_bool(opts, "shared-disk", &o->shared, errp) ||
        (cache && !options_get_bool(cache, "direct", &o->direct, errp)) ||
        (file_cache && !options_get_bool(file_cache, "direct", &o->direct, errp))) {
        return false;
    }
    if (o->shared && o->read_only) {
        colo_error_set(errp,
                       "drive '%s': shared-disk=on is for disks that are written; a "
                       "read-only one needs no replication",
                       name ? name : o->filename);
        return false;
    }
    o->direct = o->direct || o->shared;
    return true;
}

static int file_open(const FileOpts *o, uint64_t *size, unsigned *direct, GError **errp)
{
    int fd = open(o->filename, (o->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC |
                                   O_NONBLOCK | (o->direct ? O_DIRECT : 0));

    if (fd < 0) {
        int err = errno;

        colo_error_set_errno(errp, err, "cannot open image '%s'%s", o->filename,
                             o->direct && err == EINVAL
                                 ? " with direct I/O: its file system may have none"
                                 : "");
        return -1;
    }
    *direct = o->direct ? direct_alignment(fd) : 0;
    if (!file_size(fd, o->filename, size, errp)) {
        close(fd);
        return -1;
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    return fd;
}

BlockNode *block_file_open(const char *name, JsonObject *opts, const char *format,
                           bool probed, GError **errp)
{
    FileOpts o = {0};
    uint64_t size = 0;
    unsigned direct = 0;

    if (!read_file_opts(name, opts, &o, errp)) {
        return NULL;
    }
    const char *discard = options_get_str(opts, "discard", "ignore");
    int fd = file_open(&o, &size, &direct, errp);
    if (fd < 0) {
        return NULL;
    }
    if (o.direct && !direct) {
        close(fd);
        if (!o.shared) {
            return block_daemon_open(name, opts, format, o.filename, errp);
        }
        colo_error_set(errp,
                       "image '%s': shared-disk=on needs a disk with sectors of 512 bytes",
                       o.filename);
        return NULL;
    }
    if (!(o.shared ? block_file_lock_borrow(fd, o.filename, errp)
                   : block_file_lock(fd, o.read_only, o.filename, errp))) {
        close(fd);
        return NULL;
    }

    FileNode *f = g_new0(FileNode, 1);
    f->fd = fd;
    f->refs = 1;
    f->probed = probed;
    f->shared = f->borrowed = o.shared;
    f->direct = direct;
    block_lock();
    BlockNode *node = block_node_new(&file_driver, name, f);
    node->size = (size + BLOCK_SECTOR - 1) / BLOCK_SECTOR * BLOCK_SECTOR;
    node->read_only = o.read_only;
    node->discard = !strcmp(discard, "unmap") || !strcmp(discard, "on");
    node->can_zero = node->fast_zero = true;
    node->format = g_strdup(format);
    node->filename = g_strdup(o.filename);
    block_unlock();
    return node;
}

/* --- Shared images --- */

static FileNode *file_of(BlockNode *node)
{
    return node->drv == &file_driver ? node->opaque : NULL;
}

bool block_file_is_direct(BlockNode *node)
{
    FileNode *f = file_of(node);

    return f && f->direct;
}

bool block_file_is_shared(BlockNode *node)
{
    FileNode *f = file_of(node);

    return f && f->shared;
}

bool block_file_is_owned(BlockNode *node)
{
    FileNode *f = file_of(node);

    return f && !f->borrowed;
}

bool block_file_own(BlockNode *node, bool own, GError **errp)
{
    FileNode *f = file_of(node);

    g_assert(f);
    if (own) {
        f->borrowed = f->borrowed && !block_file_lock_own(f->fd, node->filename, errp);
        return !f->borrowed;
    }
    f->borrowed = true;
    block_file_lock_disown(f->fd);
    return true;
}
