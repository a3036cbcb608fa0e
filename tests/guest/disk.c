/*
 * The guest of the tests: writes numbered records to the raw disk and reads them back.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Zone 0: the background writer; memory knows which record each slot must hold, so disk
 * and memory are held against each other (a takeover must bring both from one moment).
 * Zone 1: records written, and made stable, at a client's request: what was acknowledged
 * must be there whatever happens.
 *
 * With a second disk every record goes to the first, then to the second, and is read from
 * both: a takeover must bring all disks and the memory from one moment.
 */
#include "workload.h"
#include "pattern.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define RO_BLOCKS 1024 /* of a read-only disk: block n is n times a constant, all over */

static int second = -1; /* the second disk */
static int read_only[4] = {-1, -1, -1, -1};
static uint64_t *zone0; /* number + 1 of the record in each slot, 0 unknown */

static DiskRecord *record_new(void)
{
    void *p = NULL;

    if (posix_memalign(&p, DISK_RECORD_SIZE, DISK_RECORD_SIZE)) {
        abort();
    }
    return p;
}

static bool record_write(int fd, DiskRecord *r, uint64_t zone, uint64_t number)
{
    uint64_t at = disk_record_offset(workload.disk_size, zone, number);

    disk_record_make(r, workload.run, zone, number);
    if (pwrite(fd, r, sizeof(*r), at) != sizeof(*r) || fdatasync(fd) ||
        (second >= 0 && (pwrite(second, r, sizeof(*r), at) != sizeof(*r) || fdatasync(second)))) {
        workload.disk_errors++;
        note_error("disk: write of record %llu: %s", (unsigned long long)number,
                   strerror(errno));
        return false;
    }
    return true;
}

/* Whether the second disk holds @r there as well. */
static bool second_agrees(const DiskRecord *r, uint64_t at)
{
    DiskRecord *other = record_new();
    bool ok = pread(second, other, sizeof(*other), at) == sizeof(*other) &&
              !memcmp(r, other, sizeof(*r));

    free(other);
    return ok;
}

static bool record_read(int fd, DiskRecord *r, uint64_t zone, uint64_t number)
{
    uint64_t at = disk_record_offset(workload.disk_size, zone, number);

    if (pread(fd, r, sizeof(*r), at) != sizeof(*r)) {
        workload.disk_errors++;
        note_error("disk: read of record %llu: %s", (unsigned long long)number,
                   strerror(errno));
        return false;
    }
    if (second >= 0 && !second_agrees(r, at)) {
        workload.disk_errors++;
        note_error("disk: record %llu is not the same on the second disk",
                   (unsigned long long)number);
        return false;
    }
    return true;
}

/* Read block @pick of each disk that is only read. */
static void read_only_check(uint64_t *block, uint64_t pick)
{
    for (int i = 0; i < 4 && read_only[i] >= 0; i++) {
        uint64_t n = pick % RO_BLOCKS;
        bool ok = pread(read_only[i], block, DISK_RECORD_SIZE, n * DISK_RECORD_SIZE) ==
                  DISK_RECORD_SIZE;

        for (size_t k = 0; ok && k < DISK_RECORD_SIZE / sizeof(*block); k++) {
            ok = block[k] == n * 0x9e3779b97f4a7c15ull;
        }
        if (!ok) {
            workload.disk_errors++;
            note_error("disk: block %llu of read-only disk %d: %s", (unsigned long long)n, i,
                       strerror(errno));
        }
        workload.ro_checked += ok;
    }
}

/* Held by the background writer while a request of its may be under way. */
static pthread_mutex_t one_round = PTHREAD_MUTEX_INITIALIZER;

void disk_rest(void)
{
    pthread_mutex_lock(&one_round);
}

static void *writer_thread(void *opaque)
{
    int fd = (int)(intptr_t)opaque;
    DiskRecord *r = record_new(), *block = record_new();
    uint64_t slots = disk_zone_slots(workload.disk_size);
    uint64_t number = 0, pick = 1;

    for (;;) {
        uint64_t rate = workload.disk_rate, start = now_us(), spent, slot;

        if (!rate) {
            usleep(100000);
            continue;
        }
        pthread_mutex_lock(&one_round);
        if (record_write(fd, r, 0, number)) {
            zone0[number % slots] = number + 1;
            workload.disk_written++;
        }
        number++;
        /* Same sequence on both twins: a generator, not randomness. */
        pick = pick * 6364136223846793005ull + 1442695040888963407ull;
        slot = (pick >> 33) % (number < slots ? number : slots);
        if (zone0[slot] && record_read(fd, r, 0, zone0[slot] - 1)) {
            workload.disk_checked++;
            if (!disk_record_valid(r) || r->number != zone0[slot] - 1 || r->zone != 0 ||
                r->run != workload.run) {
                workload.disk_errors++;
                note_error("disk: slot %llu: found %s record %llu, expected %llu",
                           (unsigned long long)slot,
                           disk_record_valid(r) ? "whole" : "broken",
                           (unsigned long long)r->number,
                           (unsigned long long)zone0[slot] - 1);
            }
        }
        read_only_check((uint64_t *)block, pick >> 20);
        pthread_mutex_unlock(&one_round);
        spent = now_us() - start;
        if (spent < 1000000 / rate) {
            usleep(1000000 / rate - spent);
        }
    }
    return NULL;
}

/* "BENCH sync|write|read MS": 4 KiB writes each with fdatasync, or 1 MiB writes or reads in
 * sequence, past all caches, for so long -> "DONE n us". By the guest's own clock. */
static int disk_bench(int fd, const char *what, unsigned long long ms, char *out, size_t size)
{
    bool sync = !strcmp(what, "sync"), reading = !strcmp(what, "read");
    size_t len = sync ? 4096 : 1 << 20;
    uint64_t at = 0, n = 0, start = now_us();
    void *p = NULL;

    if (posix_memalign(&p, 4096, len)) {
        abort();
    }
    memset(p, 0x5a, len);
    while (now_us() - start < ms * 1000) {
        memcpy(p, &n, sizeof(n));
        ssize_t got = reading ? pread(fd, p, len, at) : pwrite(fd, p, len, at);
        if (got != (ssize_t)len || (sync && fdatasync(fd))) {
            free(p);
            return snprintf(out, size, "ERROR %s\n", strerror(errno));
        }
        at += len;
        at = at + len <= workload.disk_size ? at : 0;
        n++;
    }
    free(p);
    return snprintf(out, size, "DONE %llu %llu\n", (unsigned long long)n,
                    (unsigned long long)(now_us() - start));
}

static int fs_command(const char *line, char *out, size_t size)
{
    unsigned long long n;

    if (sscanf(line, "WRITE %llu", &n) == 1) {
        bool ok = fs_record_write(n);

        workload.disk_acked += ok;
        return snprintf(out, size, "%s %llu\n", ok ? "OK" : "ERROR", n);
    }
    if (sscanf(line, "READ %llu", &n) == 1) {
        int r = fs_record_read(n);

        return r > 0 ? snprintf(out, size, "REC %llu %llu\n", n,
                                (unsigned long long)workload.run)
                     : snprintf(out, size, "%s %llu\n", r < 0 ? "BAD" : "EMPTY", n);
    }
    return snprintf(out, size, "ERROR unknown command\n");
}

/* "WRITE n" -> "OK n"; "READ n" -> "REC n RUN", "EMPTY n", "OTHER n M" or "BAD n". */
static int disk_command(int fd, DiskRecord *r, const char *line, char *out, size_t size)
{
    unsigned long long n;
    char what[8];

    if (!workload.disk_size) {
        return snprintf(out, size, "ERROR no disk\n");
    }
    if (workload.fs) {
        return fs_command(line, out, size);
    }
    if (sscanf(line, "BENCH %7s %llu", what, &n) == 2) {
        return disk_bench(fd, what, n, out, size);
    }
    if (sscanf(line, "WRITE %llu", &n) == 1) {
        if (!record_write(fd, r, 1, n)) {
            return snprintf(out, size, "ERROR %llu\n", n);
        }
        workload.disk_acked++;
        return snprintf(out, size, "OK %llu\n", n);
    }
    if (sscanf(line, "READ %llu", &n) == 1) {
        if (!record_read(fd, r, 1, n)) {
            return snprintf(out, size, "ERROR %llu\n", n);
        }
        if (disk_record_zero(r)) {
            return snprintf(out, size, "EMPTY %llu\n", n);
        }
        if (!disk_record_valid(r) || r->zone != 1) {
            return snprintf(out, size, "BAD %llu\n", n);
        }
        if (r->number != n) {
            return snprintf(out, size, "OTHER %llu %llu\n", n, (unsigned long long)r->number);
        }
        return snprintf(out, size, "REC %llu %llu\n", n, (unsigned long long)r->run);
    }
    return snprintf(out, size, "ERROR unknown command\n");
}

static void *client_thread(void *opaque)
{
    int sock = (int)(intptr_t)opaque;
    int fd = workload.disk_size && !workload.fs ? open(workload.disk, O_RDWR | O_DIRECT | O_CLOEXEC) : -1;
    DiskRecord *r = record_new();
    char line[128], out[128];
    size_t have = 0;

    for (;;) {
        char *nl;
        ssize_t n = recv(sock, line + have, sizeof(line) - 1 - have, 0);

        if (n <= 0) {
            break;
        }
        have += n;
        line[have] = '\0';
        while ((nl = memchr(line, '\n', have))) {
            int len;

            *nl = '\0';
            len = disk_command(fd, r, line, out, sizeof(out));
            if (send(sock, out, len, MSG_NOSIGNAL) != len) {
                goto out;
            }
            have -= nl + 1 - line;
            memmove(line, nl + 1, have + 1);
        }
        if (have == sizeof(line) - 1) {
            break;
        }
    }
out:
    close(sock);
    if (fd >= 0) {
        close(fd);
    }
    free(r);
    return NULL;
}

static void *accept_thread(void *opaque)
{
    int fd = (int)(intptr_t)opaque;

    for (;;) {
        int sock = accept4(fd, NULL, NULL, SOCK_CLOEXEC);

        if (sock >= 0) {
            workload.conns++;
            start_thread(client_thread, (void *)(intptr_t)sock, 0);
        } else {
            usleep(10000);
        }
    }
    return NULL;
}

void disk_serve(int listen_fd)
{
    start_thread(accept_thread, (void *)(intptr_t)listen_fd, 0);
}

/* Drivers take a moment to bring up their disks. */
static int disk_open(const char *path, int flags)
{
    int fd = -1;

    for (int i = 0; i < 1500 && fd < 0; i++) {
        fd = open(path, flags | O_DIRECT | O_CLOEXEC);
        if (fd < 0) {
            usleep(10000);
        }
    }
    return fd;
}

/* The disks beside the first; false after it told why. */
static bool disk_open_others(void)
{
    char list[sizeof(workload.read_only)], *save = NULL;
    uint64_t size = 0;
    int n = 0;

    if (workload.disk2[0]) {
        second = disk_open(workload.disk2, O_RDWR);
        if (second < 0 || ioctl(second, BLKGETSIZE64, &size) || size != workload.disk_size) {
            printf("guest: colo.disk2=%s: %llu bytes: %s\n", workload.disk2,
                   (unsigned long long)size, strerror(errno));
            return false;
        }
    }
    strcpy(list, workload.read_only);
    for (char *p = strtok_r(list, ",", &save); p && n < 4; p = strtok_r(NULL, ",", &save)) {
        int ro = 0;

        read_only[n] = disk_open(p, O_RDONLY);
        if (read_only[n] < 0 || ioctl(read_only[n], BLKROGET, &ro) || (!ro && !strstr(p, "/sr"))) {
            printf("guest: colo.read-only=%s: %s\n", p,
                   read_only[n] < 0 ? strerror(errno) : "the guest may write it");
            return false;
        }
        n++;
    }
    return true;
}

bool disk_start(void)
{
    int fd;

    if (!workload.disk[0]) {
        return true;
    }
    fd = disk_open(workload.disk, O_RDWR);
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &workload.disk_size) ||
        !disk_zone_slots(workload.disk_size)) {
        printf("guest: colo.disk=%s: %s\n", workload.disk, strerror(errno));
        workload.disk_size = 0;
        return false;
    }
    if (!disk_open_others()) {
        return false;
    }
    if (workload.fs) {
        close(fd);
        return fs_start();
    }
    zone0 = calloc(disk_zone_slots(workload.disk_size), sizeof(*zone0));
    start_thread(writer_thread, (void *)(intptr_t)fd, 0);
    return zone0 != NULL;
}
