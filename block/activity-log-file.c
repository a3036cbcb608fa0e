/*
 * The file beside an image that tells where it may differ from its peer.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "activity-log-file.h"
#include "util/files.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
#include <zlib.h>

#define AL_MAGIC 0x51434f4c4f414c31ull /* "QCOLOAL1" */
#define AL_VERSION 1
#define PAGE_HEAD 16

/* The first page; everything big endian. */
typedef struct __attribute__((packed)) Header {
    uint64_t magic;
    uint32_t version;
    uint32_t flags; /* 1: clean */
    uint64_t id;
    uint64_t size;
    uint32_t granule, region;
    uint64_t mtime_ns;
    char generation[AL_GENERATION];
    uint32_t crc; /* of what is before */
} Header;

char *activity_log_path(const char *image)
{
    return g_strconcat(image, ".colo-bitmap", NULL);
}

static unsigned pages_of(uint64_t size, uint64_t unit)
{
    uint64_t bits = (size + unit - 1) / unit;

    return (bits + AL_PAGE_BITS - 1) / AL_PAGE_BITS;
}

unsigned activity_log_hot_pages(uint64_t size)
{
    return pages_of(size, AL_REGION);
}

unsigned activity_log_dirty_pages(uint64_t size)
{
    return pages_of(size, AL_GRANULE);
}

static uint64_t page_offset(uint64_t size, bool hot, unsigned n)
{
    return (uint64_t)AL_PAGE * (1 + (hot ? 0 : activity_log_hot_pages(size)) + n);
}

/* Head of a page: id, number in the file, checksum of both and the bits. */
static uint32_t page_crc(const uint8_t *page)
{
    uint32_t crc = crc32(0, page, 12);

    return crc32(crc, page + PAGE_HEAD, AL_PAGE - PAGE_HEAD);
}

static void put_page_head(uint8_t *page, uint64_t id, uint32_t number)
{
    id = GUINT64_TO_BE(id);
    number = GUINT32_TO_BE(number);
    memcpy(page, &id, 8);
    memcpy(page + 8, &number, 4);
    uint32_t crc = GUINT32_TO_BE(page_crc(page));
    memcpy(page + 12, &crc, 4);
}

uint64_t activity_log_page(const ActivityLogFile *f, bool hot, unsigned n,
                           const DirtyBitmap *b, uint8_t *page)
{
    uint64_t offset = page_offset(f->size, hot, n);

    dirty_bitmap_store(b, (uint64_t)n * (AL_PAGE_BITS / 8), page + PAGE_HEAD,
                       AL_PAGE - PAGE_HEAD);
    put_page_head(page, f->id, offset / AL_PAGE);
    return offset;
}

void activity_log_header(const ActivityLogFile *f, uint8_t *page)
{
    Header h = {
        .magic = GUINT64_TO_BE(AL_MAGIC),
        .version = GUINT32_TO_BE(AL_VERSION),
        .flags = GUINT32_TO_BE(f->clean ? 1 : 0),
        .id = GUINT64_TO_BE(f->id),
        .size = GUINT64_TO_BE(f->size),
        .granule = GUINT32_TO_BE((uint32_t)AL_GRANULE),
        .region = GUINT32_TO_BE((uint32_t)AL_REGION),
        .mtime_ns = GUINT64_TO_BE(f->mtime_ns),
    };

    g_strlcpy(h.generation, f->generation, sizeof(h.generation));
    h.crc = GUINT32_TO_BE(crc32(0, (uint8_t *)&h, offsetof(Header, crc)));
    memset(page, 0, AL_PAGE);
    memcpy(page, &h, sizeof(h));
}

static bool write_all(int fd, const ActivityLogFile *f, const DirtyBitmap *hot,
                      const DirtyBitmap *dirty)
{
    g_autofree uint8_t *page = g_malloc(AL_PAGE);
    unsigned n_hot = activity_log_hot_pages(f->size);
    unsigned n_dirty = activity_log_dirty_pages(f->size);

    activity_log_header(f, page);
    bool ok = pwrite(fd, page, AL_PAGE, 0) == AL_PAGE;
    for (unsigned i = 0; ok && i < n_hot + n_dirty; i++) {
        bool is_hot = i < n_hot;
        uint64_t offset = activity_log_page(f, is_hot, is_hot ? i : i - n_hot,
                                            is_hot ? hot : dirty, page);

        ok = pwrite(fd, page, AL_PAGE, offset) == AL_PAGE;
    }
    return ok && fsync(fd) == 0;
}

bool activity_log_write(ActivityLogFile *f, const DirtyBitmap *hot,
                        const DirtyBitmap *dirty, GError **errp)
{
    g_autofree char *tmp = g_strconcat(f->path, ".new", NULL);
    int fd = open(tmp, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    f->id = (uint64_t)g_random_int() << 32 | g_random_int();
    errno = fd < 0 ? errno : EIO;
    if (fd < 0 || !write_all(fd, f, hot, dirty) || rename(tmp, f->path) != 0 ||
        !files_sync_parent(f->path)) {
        colo_error_set_errno(errp, errno, "cannot write '%s', which tells what a returning "
                                          "host must copy", f->path);
        if (fd >= 0) {
            close(fd);
            unlink(tmp);
        }
        return false;
    }
    if (f->fd >= 0) {
        close(f->fd);
    }
    f->fd = fd;
    return true;
}

/* --- Reading --- */

static bool read_header(ActivityLogFile *f, uint64_t size, GError **errp)
{
    uint8_t page[AL_PAGE];
    Header h;

    if (pread(f->fd, page, AL_PAGE, 0) != AL_PAGE) {
        colo_error_set(errp, "'%s' is too short", f->path);
        return false;
    }
    memcpy(&h, page, sizeof(h));
    if (GUINT64_FROM_BE(h.magic) != AL_MAGIC ||
        GUINT32_FROM_BE(h.crc) != crc32(0, page, offsetof(Header, crc)) ||
        !memchr(h.generation, 0, sizeof(h.generation))) {
        colo_error_set(errp, "'%s' is damaged", f->path);
    } else if (GUINT32_FROM_BE(h.version) != AL_VERSION ||
               GUINT32_FROM_BE(h.granule) != AL_GRANULE ||
               GUINT32_FROM_BE(h.region) != AL_REGION) {
        colo_error_set(errp, "'%s' is of version %u, known is %u", f->path,
                       GUINT32_FROM_BE(h.version), AL_VERSION);
    } else if (GUINT64_FROM_BE(h.size) != size) {
        colo_error_set(errp, "'%s' is of an image of %" G_GUINT64_FORMAT " bytes, this one "
                             "has %" G_GUINT64_FORMAT, f->path, GUINT64_FROM_BE(h.size), size);
    } else {
        f->id = GUINT64_FROM_BE(h.id);
        f->size = size;
        f->clean = GUINT32_FROM_BE(h.flags) & 1;
        f->mtime_ns = GUINT64_FROM_BE(h.mtime_ns);
        memcpy(f->generation, h.generation, sizeof(f->generation));
        return true;
    }
    return false;
}

static void read_map(ActivityLogFile *f, bool hot, DirtyBitmap *b)
{
    unsigned n = hot ? activity_log_hot_pages(f->size) : activity_log_dirty_pages(f->size);
    uint64_t unit = dirty_bitmap_granularity(b);
    uint8_t page[AL_PAGE];

    for (unsigned i = 0; i < n; i++) {
        uint64_t offset = page_offset(f->size, hot, i), id;
        uint32_t number, crc;
        bool ok = pread(f->fd, page, AL_PAGE, offset) == AL_PAGE;

        memcpy(&id, page, 8);
        memcpy(&number, page + 8, 4);
        memcpy(&crc, page + 12, 4);
        if (ok && GUINT64_FROM_BE(id) == f->id &&
            GUINT32_FROM_BE(number) == offset / AL_PAGE &&
            GUINT32_FROM_BE(crc) == page_crc(page)) {
            dirty_bitmap_load(b, (uint64_t)i * (AL_PAGE_BITS / 8), page + PAGE_HEAD,
                              AL_PAGE - PAGE_HEAD);
        } else {
            colo_report("'%s': page %u is damaged; all that it is about counts as changed",
                        f->path, i);
            dirty_bitmap_set(b, (uint64_t)i * AL_PAGE_BITS * unit,
                             (uint64_t)(i + 1) * AL_PAGE_BITS * unit);
        }
    }
}

bool activity_log_read(ActivityLogFile *f, const char *path, uint64_t size, bool read_only,
                       DirtyBitmap *hot, DirtyBitmap *dirty, GError **errp)
{
    f->path = g_strdup(path);
    f->fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (f->fd < 0) {
        colo_error_set_errno(errp, errno, "cannot open '%s'", path);
    } else if (read_header(f, size, errp)) {
        read_map(f, true, hot);
        read_map(f, false, dirty);
        return true;
    }
    if (f->fd >= 0) {
        close(f->fd);
        f->fd = -1;
    }
    g_clear_pointer(&f->path, g_free);
    return false;
}
