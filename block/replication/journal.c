/*
 * The journal of a takeover.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: a secondary with much in its overlay serves before that is merged, and still nothing
 * that a client was told is lost by a crash (RULES 12). So the overlay becomes durable where it
 * is: the active disk is flushed, and the file beside the image, which was a marker, now
 * says which ranges are to be copied. Whoever opens the image next does that.
 *
 * The guest's new writes go to the image. Where they meet a range of the journal, the range
 * is taken out of it by a line at its end, durable before the flush that makes the write
 * stable is answered. The active disk is not written any more: its file's size and time of
 * change are in the journal, so that another file in its place is noticed.
 *
 * Text, in batches, each closed by the CRC-32 of its lines; a batch without that was being
 * written when the end came, and nobody was told that it is there:
 *
 *   qemu-colo takeover journal 1
 *   image SIZE
 *   active SECONDS NANOSECONDS SIZE FORMAT PATH
 *   copy START END
 *   end CRC
 *   keep START END
 *   end CRC
 */
#include "journal.h"
#include "overlay.h"
#include "util/files.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#define JOURNAL_HEAD "qemu-colo takeover journal 1\n"
#define JOURNAL_MAX (64u * 1024 * 1024)
#define COPY_CHUNK (1024 * 1024)

static bool write_all(int fd, const GString *text)
{
    size_t done = 0;

    while (done < text->len) {
        ssize_t n = write(fd, text->str + done, text->len - done);

        if (n < 0 && errno != EINTR) {
            return false;
        }
        done += MAX(n, 0);
    }
    return fsync(fd) == 0;
}

static void add_ranges(GString *text, const char *word, GArray *ranges)
{
    for (guint i = 0; i < ranges->len; i++) {
        JournalRange *r = &g_array_index(ranges, JournalRange, i);

        g_string_append_printf(text, "%s %" PRIu64 " %" PRIu64 "\n", word, r->start,
                               r->end);
    }
    g_string_append_printf(text, "end %08lx\n",
                           crc32(0, (const Bytef *)text->str, text->len));
}

bool journal_create(const char *path, uint64_t size, const char *active,
                    const char *format, GArray *ranges, GError **errp)
{
    g_autofree char *temp = g_strconcat(path, ".new", NULL);
    g_autofree char *full = g_canonicalize_filename(active, NULL);
    g_autoptr(GString) text = g_string_new(JOURNAL_HEAD);
    struct stat st;
    int fd = open(active, O_RDONLY | O_CLOEXEC);

    /* Flushed before; this makes the time of its last change durable, too. */
    bool ok = fd >= 0 && fsync(fd) == 0 && fstat(fd, &st) == 0;
    if (fd >= 0) {
        close(fd);
    }
    if (!ok || strchr(full, '\n')) {
        colo_error_set_errno(errp, ok ? EINVAL : errno, "active disk '%s'", active);
        return false;
    }
    g_string_append_printf(text, "image %" PRIu64 "\nactive %lld %ld %lld %s %s\n", size,
                           (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec,
                           (long long)st.st_size, format, full);
    add_ranges(text, "copy", ranges);
    fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    ok = fd >= 0 && write_all(fd, text) && rename(temp, path) == 0 && files_sync_parent(path);
    if (!ok) {
        colo_error_set_errno(errp, errno, "journal '%s'", path);
        unlink(temp);
    }
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

/* Whether the last batch is whole. */
static bool ends_whole(int fd, off_t size)
{
    char end[sizeof("end 00000000\n")] = "";
    ssize_t len = sizeof(end) - 1;

    errno = EIO;
    return size > len && pread(fd, end, len, size - len) == len &&
           g_str_has_prefix(end, "end ") && end[len - 1] == '\n';
}

bool journal_append(const char *path, GArray *ranges, GError **errp)
{
    g_autoptr(GString) text = g_string_new(NULL);
    int fd = open(path, O_RDWR | O_APPEND | O_CLOEXEC);
    struct stat st;

    add_ranges(text, "keep", ranges);
    bool ok = fd >= 0 && fstat(fd, &st) == 0 && ends_whole(fd, st.st_size);
    if (ok && !write_all(fd, text)) {
        int err = errno;

        /* Half a batch would hide all that come after it. */
        ok = false;
        errno = ftruncate(fd, st.st_size) == 0 ? err : errno;
    }
    if (!ok) {
        colo_error_set_errno(errp, errno, "journal '%s'", path);
    }
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

bool journal_remove(const char *path, GError **errp)
{
    bool ok = (unlink(path) == 0 && files_sync_parent(path)) || errno == ENOENT;

    if (!ok) {
        colo_error_set_errno(errp, errno, "cannot remove '%s', which must not be there when "
                                          "the image is opened again", path);
    }
    return ok;
}

bool journal_is(const char *path)
{
    char head[sizeof(JOURNAL_HEAD)] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool is = fd >= 0 &&
              read(fd, head, sizeof(head) - 1) == (ssize_t)sizeof(head) - 1 &&
              !strcmp(head, JOURNAL_HEAD);

    if (fd >= 0) {
        close(fd);
    }
    return is;
}

/* --- Recovery --- */

typedef struct Journal {
    uint64_t size;
    long long seconds, bytes;
    long nanoseconds;
    char format[32];
    char *active;
    Overlay *copy; /* what is still to be copied */
} Journal;

static void journal_clear(Journal *j)
{
    g_free(j->active);
    overlay_free(j->copy);
}

static bool parse_line(Journal *j, const char *line)
{
    uint64_t start, end;
    int at = 0;

    if (sscanf(line, "image %" SCNu64, &j->size) == 1) {
        if (!j->copy && j->size % BLOCK_SECTOR == 0 && j->size <= INT64_MAX) {
            j->copy = overlay_new(j->size);
        }
        return j->copy != NULL;
    }
    if (sscanf(line, "active %lld %ld %lld %31s %n", &j->seconds, &j->nanoseconds,
               &j->bytes, j->format, &at) == 4 && at > 0) {
        g_free(j->active);
        j->active = g_strdup(line + at);
        return true;
    }
    bool copy = g_str_has_prefix(line, "copy ");
    if (j->copy && (copy || g_str_has_prefix(line, "keep ")) &&
        sscanf(line + 5, "%" SCNu64 " %" SCNu64, &start, &end) == 2 && start < end &&
        end <= j->size) {
        (copy ? overlay_set : overlay_clear)(j->copy, start, end);
        return true;
    }
    return false;
}

/* One batch, up to its "end"; NULL: none that is whole is left. */
static char *next_batch(char *text, bool *whole)
{
    char *end = g_str_has_prefix(text, "end ") ? text : strstr(text, "\nend ");
    unsigned long crc;

    *whole = false;
    if (!end) {
        return NULL;
    }
    end += *end == '\n';
    if (sscanf(end, "end %8lx", &crc) == 1 && strchr(end, '\n') &&
        crc == crc32(0, (const Bytef *)text, end - text)) {
        *whole = true;
        char *next = strchr(end, '\n') + 1;
        *end = '\0';
        return next;
    }
    return NULL;
}

static bool journal_load(const char *path, Journal *j, GError **errp)
{
    g_autofree char *text = NULL;
    gsize len = 0;
    bool whole, ok = true, any = false;

    if (!g_file_get_contents(path, &text, &len, errp)) {
        return false;
    }
    for (char *p = text, *next; ok && len <= JOURNAL_MAX; p = next) {
        next = next_batch(p, &whole);
        if (!whole) {
            break;
        }
        g_auto(GStrv) lines = g_strsplit(p, "\n", -1);
        for (int i = any ? 0 : 1; ok && lines[i]; i++) {
            ok = !*lines[i] || parse_line(j, lines[i]);
        }
        any = true;
    }
    if (!ok || !any || !j->copy || !j->active) {
        colo_error_set(errp, "'%s' is damaged", path);
        return false;
    }
    return true;
}

static bool check_active(const Journal *j, GError **errp)
{
    struct stat st;

    if (stat(j->active, &st) < 0) {
        colo_error_set_errno(errp, errno, "active disk '%s'", j->active);
        return false;
    }
    if (st.st_mtim.tv_sec != j->seconds || st.st_mtim.tv_nsec != j->nanoseconds ||
        st.st_size != j->bytes) {
        colo_error_set(errp, "active disk '%s' was changed since", j->active);
        return false;
    }
    return true;
}

static int copy_run(BlockNode *from, BlockNode *to, uint64_t start, uint64_t end)
{
    g_autofree uint8_t *buf = g_malloc(end - start);
    int r = block_request_sync(from, BLOCK_OP_READ, start, end - start, buf, 0);

    return r < 0 ? r : block_request_sync(to, BLOCK_OP_WRITE, start, end - start, buf, 0);
}

static int copy_all(const Journal *j, BlockNode *from, BlockNode *to)
{
    uint64_t pos = 0;
    int r = 0;

    while (r >= 0 && (pos = overlay_next(j->copy, pos)) != UINT64_MAX) {
        bool set;
        uint64_t end =
            overlay_run(j->copy, pos, MIN(pos + COPY_CHUNK, j->size), &set);

        r = copy_run(from, to, pos, end);
        pos = end;
    }
    return r < 0 ? r : block_request_sync(to, BLOCK_OP_FLUSH, 0, 0, NULL, 0);
}

static bool recover_from(const Journal *j, BlockNode *node, GError **errp)
{
    g_autoptr(JsonObject) opts = json_object_new();
    JsonObject *active = json_object_new(), *file = json_object_new();

    json_object_set_string_member(file, "filename", j->active);
    json_object_set_string_member(active, "driver", j->format);
    json_object_set_string_member(active, "read-only", "on");
    json_object_set_object_member(active, "file", file);
    json_object_set_object_member(opts, "active", active);
    BlockNode *from = block_node_open_child(opts, "active", errp);
    if (!from) {
        return false;
    }
    int r = from->size == j->size && node->size == j->size ? copy_all(j, from, node)
                                                           : -EINVAL;
    block_lock();
    block_node_unuse(from);
    block_unlock();
    block_daemons_wait(3000);
    if (r < 0) {
        colo_error_set_errno(errp, -r, "cannot copy from the active disk '%s'", j->active);
    }
    return r >= 0;
}

bool journal_recover(const char *path, BlockNode *node, GError **errp)
{
    Journal j = {0};
    g_autoptr(GError) err = NULL;
    bool ok = !node->read_only;

    if (!ok) {
        colo_error_set(&err, "it is opened read-only");
    }
    ok = ok && journal_load(path, &j, &err) && check_active(&j, &err);
    uint64_t bytes = ok ? overlay_bytes(j.copy) : 0;
    ok = ok && recover_from(&j, node, &err);
    journal_clear(&j);
    if (!ok) {
        colo_error_set(errp,
                       "image '%s': a takeover was not ended, and what the guest wrote "
                       "before it cannot be brought in from the active disk: %s; without "
                       "it the image is not of one moment ('%s')",
                       node->filename, err->message, path);
        return false;
    }
    journal_remove(path, NULL);
    colo_report("image '%s': ended a takeover that was interrupted (%" PRIu64
                " KiB from the active disk)",
                node->filename, bytes >> 10);
    return true;
}
