/*
 * The child's RAM blocks as one flat row of pages.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Everything else of this room speaks of page numbers. They count through all blocks: guest
 * RAM first, blocks with large pages before those with small ones, so that each is aligned
 * in our address space too; equal ones by name. Both sides of a pair have the same row.
 */
#include "migration/ram-map.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "util/error.h"

RamMap *ram_map_new(void)
{
    return g_new0(RamMap, 1);
}

void ram_map_free(RamMap *m)
{
    if (!m) {
        return;
    }
    if (m->base) {
        munmap(m->base, m->span);
    }
    for (unsigned i = 0; i < m->n; i++) {
        if (m->blocks[i].own_fd) {
            close(m->blocks[i].fd);
        }
    }
    g_free(m);
}

RamBlock *ram_map_add(RamMap *m, const char *name, int fd, uint64_t size,
                      uint64_t page_size, bool guest, GError **errp)
{
    if (m->n == RAM_BLOCKS_MAX || strlen(name) >= RAM_BLOCK_NAME || !size ||
        size % page_size) {
        colo_error_set(errp, "RAM block '%s' of %" G_GUINT64_FORMAT " bytes: at most %d blocks "
                       "of whole pages are supported", name, size, RAM_BLOCKS_MAX);
        return NULL;
    }
    RamBlock *b = &m->blocks[m->n++];
    g_strlcpy(b->name, name, sizeof(b->name));
    b->fd = fd;
    b->pages = size >> COLO_PAGE_SHIFT;
    b->page_size = page_size;
    b->guest = guest;
    return b;
}

static int compare_blocks(const void *pa, const void *pb)
{
    const RamBlock *a = pa, *b = pb;

    if (a->guest != b->guest) {
        return a->guest ? -1 : 1;
    }
    if (a->page_size != b->page_size) {
        return a->page_size > b->page_size ? -1 : 1;
    }
    return strcmp(a->name, b->name);
}

bool ram_map_finish(RamMap *m, GError **errp)
{
    uint64_t align = COLO_PAGE_SIZE;

    qsort(m->blocks, m->n, sizeof(m->blocks[0]), compare_blocks);
    m->pages = m->guest_pages = 0;
    for (unsigned i = 0; i < m->n; i++) {
        RamBlock *b = &m->blocks[i];
        b->first = m->pages;
        m->pages += b->pages;
        m->guest_pages += b->guest ? b->pages : 0;
        align = MAX(align, b->page_size);
    }
    uint64_t size = m->pages << COLO_PAGE_SHIFT;
    uint8_t *p = mmap(NULL, size + align, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        colo_error_set_errno(errp, errno, "%" G_GUINT64_FORMAT " MiB of address space",
                             size >> 20);
        return false;
    }
    uint64_t lead = -(uintptr_t)p & (align - 1);
    if (lead) {
        munmap(p, lead);
    }
    m->base = p + lead;
    m->span = size + align - lead;
    for (unsigned i = 0; i < m->n; i++) {
        const RamBlock *b = &m->blocks[i];
        if (mmap(m->base + (b->first << COLO_PAGE_SHIFT), b->pages << COLO_PAGE_SHIFT,
                 PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, b->fd, 0) == MAP_FAILED) {
            colo_error_set_errno(errp, errno, "map RAM block '%s'", b->name);
            return false;
        }
    }
    return true;
}

/* Where @text (a maps file) has the file @st from its start on; its parts must follow one
 * another without a gap. */
static uint64_t find_mapping(const char *text, const struct stat *st, uint64_t *len)
{
    uint64_t addr = 0, mapped = 0;
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

    for (char **l = lines; *l; l++) {
        unsigned long start, end, off, ino;
        unsigned maj, min;
        char perms[8];
        if (sscanf(*l, "%lx-%lx %7s %lx %x:%x %lu", &start, &end, perms, &off, &maj, &min,
                   &ino) != 7 ||
            ino != st->st_ino || makedev(maj, min) != st->st_dev || perms[3] != 's') {
            continue;
        }
        if (off == mapped && (!mapped || addr + mapped == start)) {
            addr = mapped ? addr : start;
            mapped += end - start;
        }
    }
    *len = mapped;
    return addr;
}

bool ram_map_locate(RamMap *m, pid_t pid, GError **errp)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/maps", (int)pid);
    g_autofree char *text = NULL;

    if (!g_file_get_contents(path, &text, NULL, errp)) {
        return false;
    }
    for (unsigned i = 0; i < m->n; i++) {
        RamBlock *b = &m->blocks[i];
        struct stat st;
        uint64_t len = 0;
        if (fstat(b->fd, &st) < 0) {
            colo_error_set_errno(errp, errno, "RAM block '%s'", b->name);
            return false;
        }
        b->addr = find_mapping(text, &st, &len);
        if (len < b->pages << COLO_PAGE_SHIFT) {
            colo_error_set(errp,
                           "the emulator maps %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT
                           " bytes of RAM block '%s': cannot track it",
                           len, b->pages << COLO_PAGE_SHIFT, b->name);
            return false;
        }
    }
    return true;
}

const RamBlock *ram_map_block(const RamMap *m, uint64_t page)
{
    unsigned i = 0;

    while (page >= m->blocks[i].first + m->blocks[i].pages) {
        i++;
    }
    return &m->blocks[i];
}

bool ram_map_data(const RamMap *m, uint64_t page, uint64_t *first, uint64_t *end)
{
    while (page < m->pages) {
        const RamBlock *b = ram_map_block(m, page);
        off_t size = b->pages << COLO_PAGE_SHIFT;
        off_t data = lseek(b->fd, (page - b->first) << COLO_PAGE_SHIFT, SEEK_DATA);
        if (data < 0 && errno != ENXIO) {
            data = (page - b->first) << COLO_PAGE_SHIFT; /* cannot be asked: all of it */
        }
        if (data >= 0 && data < size) {
            off_t hole = lseek(b->fd, data, SEEK_HOLE);
            if (hole < 0 || hole > size) {
                hole = size;
            }
            *first = b->first + ((uint64_t)data >> COLO_PAGE_SHIFT);
            *end = b->first + (((uint64_t)hole + COLO_PAGE_SIZE - 1) >> COLO_PAGE_SHIFT);
            return true;
        }
        page = b->first + b->pages;
    }
    return false;
}

char *ram_map_describe(const RamMap *m)
{
    GString *s = g_string_new(NULL);

    for (unsigned i = 0; i < m->n; i++) {
        const RamBlock *b = &m->blocks[i];
        g_string_append_printf(s, "%s%s:%" G_GUINT64_FORMAT "k", i ? " " : "", b->name,
                               b->pages << COLO_PAGE_SHIFT >> 10);
    }
    return g_string_free(s, FALSE);
}
