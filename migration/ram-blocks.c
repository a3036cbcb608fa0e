/*
 * Memory of the emulator beside guest RAM: found, proven, and shared with us.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Video memory, option ROMs, ACPI tables and flash are RAM blocks of their own, anonymous
 * memory of the emulator's that no option puts into a file. A checkpoint needs them as much
 * as guest RAM. So, once, before the guest runs, each is copied into a memfd that is then
 * mapped over it at the same address: the emulator's pointers stay good, and the block has
 * become one like guest RAM, tracked, copied and restored by the same code.
 *
 * The address is not guessed. `info ramblock` tells name, offset and lengths of each block;
 * the same three numbers stand side by side in the emulator's record of the block, with the
 * name behind and the address before them. How far before is learnt from guest RAM, whose
 * address is known from /proc/PID/maps: every block of guest RAM has to agree. A record must
 * be the only one of its kind, and its address must be private anonymous memory of that
 * length. Anything else is an error with the block's name.
 *
 * Blocks that come later (hot-plugged devices) are found by comparing the list when
 * protection begins (ram_blocks_changed()).
 */
#include "migration/ram-map.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "migration/remote.h"
#include "util/error.h"
#include "util/trace.h"

#define NAME_AFTER_MAX 64 /* bytes between the lengths and the name */
#define ADDR_BEFORE_MAX 6 /* words between the address and the offset */
#define HEAP_MAX (1ull << 30)

/* A line of `info ramblock`. */
typedef struct Row {
    char name[RAM_BLOCK_NAME];
    uint64_t offset, used, total;
    uint64_t addr;      /* of its memory, once known */
    uint64_t name_addr; /* of its name in the emulator */
    bool guest;
} Row;

/* A copy of part of the emulator's private memory. */
typedef struct Memory {
    uint64_t start, len;
    bool heap;
    uint8_t *data;
} Memory;

static GArray *query_rows(ChildQmp *q, GError **errp)
{
    g_autoptr(JsonNode) node = child_qmp_query(
        q, "{\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\":"
           "\"info ramblock\"},\"id\":\"rb\"}\n", "rb", errp);
    if (!node) {
        return NULL;
    }
    GArray *rows = g_array_new(FALSE, TRUE, sizeof(Row));
    const char *text = json_node_get_string(node);
    g_auto(GStrv) lines = g_strsplit(text ? text : "", "\n", -1);
    for (char **l = lines; *l; l++) {
        Row r = {.addr = 0};
        /* NAME SIZE UNIT OFFSET USED TOTAL; newer emulators add columns. */
        if (sscanf(*l, "%255s %*u %*s %" G_GINT64_MODIFIER "x %" G_GINT64_MODIFIER
                   "x %" G_GINT64_MODIFIER "x", r.name, &r.offset, &r.used, &r.total) == 4) {
            g_array_append_val(rows, r);
        }
    }
    if (!rows->len) {
        colo_error_set(errp, "the emulator's list of RAM blocks (info ramblock) is not "
                             "understood");
        g_array_unref(rows);
        return NULL;
    }
    return rows;
}

static void free_memory(gpointer p)
{
    g_free(((Memory *)p)->data);
}

/* All private writable memory of @pid that may hold its records: no code buffers, nothing
 * huge. */
static GArray *read_memory(pid_t pid, const char *maps)
{
    GArray *out = g_array_new(FALSE, TRUE, sizeof(Memory));
    g_auto(GStrv) lines = g_strsplit(maps, "\n", -1);

    g_array_set_clear_func(out, free_memory);
    for (char **l = lines; *l; l++) {
        unsigned long start, end, ino;
        char perms[8];
        if (sscanf(*l, "%lx-%lx %7s %*x %*x:%*x %lu", &start, &end, perms, &ino) != 4 ||
            strcmp(perms, "rw-p") != 0 || ino != 0 || end - start > HEAP_MAX ||
            strstr(*l, "[stack") || strstr(*l, "[v")) {
            continue;
        }
        Memory m = {start, end - start, strstr(*l, "[heap]") != NULL, NULL};
        g_array_append_val(out, m);
    }
    return out;
}

static bool fetch(pid_t pid, Memory *m)
{
    if (!m->data) {
        m->data = g_try_malloc(m->len);
        struct iovec to = {m->data, m->len}, from = {(void *)(uintptr_t)m->start, m->len};
        ssize_t n = m->data ? process_vm_readv(pid, &to, 1, &from, 1, 0) : -1;
        m->len = MAX(n, 0);
    }
    return m->len > 0;
}

/* Whether the words at @p (of @m) are lengths of @r with its name behind. */
static bool is_record(const Memory *m, const uint8_t *p, const Row *r, uint64_t *name_addr)
{
    const uint64_t want[3] = {r->offset, r->used, r->total};
    size_t len = strlen(r->name) + 1;
    const uint8_t *end = m->data + m->len;

    if (memcmp(p, want, sizeof(want)) != 0) {
        return false;
    }
    for (unsigned k = 0; k <= NAME_AFTER_MAX; k += 4) {
        const uint8_t *name = p + sizeof(want) + k;
        if (name + len > end) {
            break;
        }
        if (memcmp(name, r->name, len) == 0) {
            *name_addr = m->start + (name - m->data);
            return true;
        }
    }
    return false;
}

/* The one record of @r; NULL where there is none, or several. */
static const uint8_t *find_record(pid_t pid, GArray *memory, Row *r, bool heap,
                                  unsigned *found)
{
    const uint8_t *at = NULL;

    *found = 0;
    for (guint i = 0; i < memory->len; i++) {
        Memory *m = &g_array_index(memory, Memory, i);
        if (m->heap != heap || !fetch(pid, m)) {
            continue;
        }
        for (uint64_t o = ADDR_BEFORE_MAX * 8; o + 24 + NAME_AFTER_MAX < m->len; o += 8) {
            uint64_t name_addr;
            if (is_record(m, m->data + o, r, &name_addr)) {
                at = m->data + o;
                r->name_addr = name_addr;
                ++*found;
            }
        }
    }
    return *found == 1 ? at : NULL;
}

static uint64_t word_before(const uint8_t *record, unsigned words)
{
    uint64_t v;

    memcpy(&v, record - 8 * words, sizeof(v));
    return v;
}

/* Which guest block lies at @addr and has @len bytes. */
static RamBlock *guest_block_at(RamMap *m, uint64_t addr, uint64_t len)
{
    for (unsigned i = 0; i < m->n; i++) {
        RamBlock *b = &m->blocks[i];
        if (b->guest && b->addr == addr && b->pages << COLO_PAGE_SHIFT == len) {
            return b;
        }
    }
    return NULL;
}

/* How far before the lengths a record holds the block's address: the one distance at which
 * all guest RAM is found. 0: none, or not clear. */
static unsigned calibrate(RamMap *m, GArray *rows, const uint8_t **records)
{
    unsigned distance = 0;

    for (unsigned d = 1; d <= ADDR_BEFORE_MAX; d++) {
        unsigned hits = 0;
        for (guint i = 0; i < rows->len; i++) {
            const Row *r = &g_array_index(rows, Row, i);
            hits += records[i] &&
                    guest_block_at(m, word_before(records[i], d), r->total) != NULL;
        }
        if (hits == m->n && distance) {
            return 0;
        }
        distance = hits == m->n ? d : distance;
    }
    return distance;
}

static bool is_anonymous(const char *maps, uint64_t addr, uint64_t len)
{
    g_auto(GStrv) lines = g_strsplit(maps, "\n", -1);

    for (char **l = lines; *l; l++) {
        unsigned long start, end, ino;
        char perms[8];
        if (sscanf(*l, "%lx-%lx %7s %*x %*x:%*x %lu", &start, &end, perms, &ino) == 4 &&
            addr >= start && addr + len <= end) {
            return strcmp(perms, "rw-p") == 0 && ino == 0 && !strstr(*l, "[");
        }
    }
    return false;
}

static uint64_t page_up(uint64_t v)
{
    return (v + COLO_PAGE_SIZE - 1) & ~(uint64_t)(COLO_PAGE_SIZE - 1);
}

/* Addresses of all @rows, proven. */
static bool locate_rows(RamMap *m, pid_t pid, GArray *rows, GError **errp)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/maps", (int)pid);
    g_autofree char *maps = NULL;

    if (!g_file_get_contents(path, &maps, NULL, errp)) {
        return false;
    }
    g_autoptr(GArray) memory = read_memory(pid, maps);
    g_autofree const uint8_t **records = g_new0(const uint8_t *, rows->len);
    for (guint i = 0; i < rows->len; i++) {
        Row *r = &g_array_index(rows, Row, i);
        unsigned found;
        records[i] = find_record(pid, memory, r, true, &found);
        if (!found) {
            records[i] = find_record(pid, memory, r, false, &found);
        }
        if (!records[i]) {
            colo_error_set(errp, "RAM block '%s': %u records of it were found in the "
                           "emulator, 1 was expected", r->name, found);
            return false;
        }
    }
    unsigned d = calibrate(m, rows, records);
    if (!d) {
        colo_error_set(errp, "the emulator's records of RAM blocks do not hold guest RAM's "
                             "address where it is expected");
        return false;
    }
    for (guint i = 0; i < rows->len; i++) {
        Row *r = &g_array_index(rows, Row, i);
        r->addr = word_before(records[i], d);
        RamBlock *b = guest_block_at(m, r->addr, r->total);
        r->guest = b != NULL;
        if (b) {
            g_strlcpy(b->name, r->name, sizeof(b->name));
        } else if (r->addr % COLO_PAGE_SIZE || !r->total ||
                   !is_anonymous(maps, r->addr, page_up(r->total))) {
            colo_error_set(errp, "RAM block '%s' of %" G_GUINT64_FORMAT " KiB is not anonymous "
                           "memory of the emulator's", r->name, r->total >> 10);
            return false;
        }
    }
    return true;
}

/* Copy @len bytes at the child's @addr into @fd. */
static bool copy_block(pid_t pid, uint64_t addr, uint64_t len, int fd, GError **errp)
{
    uint8_t *to = ftruncate(fd, len) < 0 ? MAP_FAILED
                                         : mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED,
                                                fd, 0);
    if (to == MAP_FAILED) {
        colo_error_set_errno(errp, errno, "memfd of %" G_GUINT64_FORMAT " KiB", len >> 10);
        return false;
    }
    struct iovec l = {to, len}, r = {(void *)(uintptr_t)addr, len};
    ssize_t n = process_vm_readv(pid, &l, 1, &r, 1, 0);
    if (n != (ssize_t)len) {
        colo_error_set_errno(errp, n < 0 ? errno : EIO, "read the emulator's memory");
    }
    munmap(to, len);
    return n == (ssize_t)len;
}

/* The child is stopped. */
static bool adopt(RamMap *m, pid_t pid, const Row *r, GError **errp)
{
    uint64_t len = page_up(r->total);
    const long create[6] = {(long)r->name_addr, MFD_CLOEXEC | MFD_ALLOW_SEALING};
    long theirs = remote_call(pid, SYS_memfd_create, create);

    if (theirs < 0) {
        colo_error_set_errno(errp, (int)-theirs, "memfd_create in the emulator");
        return false;
    }
    int fd = remote_take_fd(pid, (int)theirs, errp);
    bool ok = fd >= 0 && copy_block(pid, r->addr, len, fd, errp);
    if (ok) {
        const long map[6] = {(long)r->addr, (long)len, PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_FIXED, theirs, 0};
        long at = remote_call(pid, SYS_mmap, map);
        ok = at == (long)r->addr;
        if (!ok) {
            colo_error_set_errno(errp, at < 0 ? (int)-at : EIO, "mmap in the emulator");
        }
    }
    const long close_args[6] = {theirs};
    remote_call(pid, SYS_close, close_args);
    RamBlock *b = ok ? ram_map_add(m, r->name, fd, len, COLO_PAGE_SIZE, false, errp) : NULL;
    if (!b) {
        if (fd >= 0) {
            close(fd);
        }
        return false;
    }
    b->addr = r->addr;
    b->own_fd = true;
    colo_trace(migration_ram_adopt, "%s %" G_GUINT64_FORMAT " KiB", b->name, len >> 10);
    return true;
}

bool ram_blocks_adopt(RamMap *m, pid_t pid, ChildQmp *q, bool wanted, GError **errp)
{
    g_autoptr(GArray) rows = wanted ? query_rows(q, errp) : NULL;

    if (!wanted) {
        return true;
    }
    bool ok = rows && locate_rows(m, pid, rows, errp) && remote_stop(pid, errp);
    if (ok) {
        for (guint i = 0; i < rows->len && ok; i++) {
            const Row *r = &g_array_index(rows, Row, i);
            ok = r->guest || adopt(m, pid, r, errp);
            if (!ok) {
                g_prefix_error(errp, "RAM block '%s': ", r->name);
            }
        }
        remote_release(pid);
    }
    if (!ok) {
        g_prefix_error(errp, "memory beside guest RAM cannot be replicated: ");
        if (errp && *errp) {
            g_autofree char *old = g_steal_pointer(&(*errp)->message);
            (*errp)->message = g_strconcat(
                old, " (-colo other-ram=off leaves it out: after a takeover the screen is "
                     "wrong until it is redrawn)", NULL);
        }
    }
    return ok;
}

char *ram_blocks_changed(const RamMap *m, ChildQmp *q, bool wanted)
{
    g_autoptr(GError) err = NULL;
    g_autoptr(GArray) rows = wanted ? query_rows(q, &err) : NULL;

    if (!wanted) {
        return NULL;
    }
    if (!rows) {
        return g_strdup(err->message);
    }
    for (guint i = 0; i < rows->len; i++) {
        const Row *r = &g_array_index(rows, Row, i);
        bool known = false;
        for (unsigned k = 0; k < m->n && !known; k++) {
            known = strcmp(m->blocks[k].name, r->name) == 0 &&
                    m->blocks[k].pages << COLO_PAGE_SHIFT == page_up(r->total);
        }
        if (!known) {
            return g_strdup_printf("RAM block '%s' came after the start", r->name);
        }
    }
    return rows->len == m->n ? NULL : g_strdup("a RAM block is gone since the start");
}
