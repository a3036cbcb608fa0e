/*
 * The guest of the tests: a file system under load, and records in files.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * With colo.fs=1 the disk holds an ext4, mounted at /mnt. Stress threads create, write,
 * append, truncate, rename, link, remove and fsync files and folders, in an order that is
 * the same on both twins. A record that a client asks for is a file of its own, which is
 * answered when the file and its folder were fsynced: it must outlive any death.
 * Before the power goes the file system is unmounted, so that a check of it must be clean.
 */
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define STRESS_THREADS 2
#define STRESS_NAMES 48
#define STRESS_SIZE (96 * 1024)

static atomic_int running, stopping;

static bool fs_fail(const char *what, const char *path)
{
    if (!stopping) {
        workload.disk_errors++;
        note_error("fs: %s %s: %s", what, path, strerror(errno));
    }
    return false;
}

/* --- Records --- */

static void record_paths(unsigned long long n, char *dir, char *path, size_t size)
{
    snprintf(dir, size, "/mnt/rec/%02llu", n % 64);
    snprintf(path, size, "/mnt/rec/%02llu/%llu", n % 64, n);
}

static bool sync_path(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 && fsync(fd) == 0;

    if (fd >= 0) {
        close(fd);
    }
    return ok || fs_fail("fsync", path);
}

bool fs_record_write(unsigned long long n)
{
    char dir[64], path[64], text[512] = "";

    record_paths(n, dir, path, sizeof(dir));
    int len = snprintf(text, sizeof(text), "record %llu\n", n);
    memset(text + len, '.', sizeof(text) - len);
    if (stopping || (mkdir(dir, 0755) && errno != EEXIST)) {
        return fs_fail("mkdir", dir);
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    bool ok = fd >= 0 && write(fd, text, sizeof(text)) == sizeof(text) && fsync(fd) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return ok ? sync_path(dir) && sync_path("/mnt/rec") : fs_fail("write", path);
}

/* 1 there, 0 not there, -1 wrong. */
int fs_record_read(unsigned long long n)
{
    char dir[64], path[64], text[512], expect[64];

    record_paths(n, dir, path, sizeof(dir));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT ? 0 : -1;
    }
    ssize_t got = read(fd, text, sizeof(text));
    int len = snprintf(expect, sizeof(expect), "record %llu\n", n);
    close(fd);
    return got == sizeof(text) && !memcmp(text, expect, len) ? 1 : -1;
}

/* --- Stress --- */

static void stress_write(const char *path, uint64_t r, int flags)
{
    static const char filler[STRESS_SIZE] = {'f'};
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0644);

    if (fd < 0) {
        if (errno != ENOENT && errno != EISDIR && errno != ENOSPC) {
            fs_fail("open", path);
        }
        return;
    }
    struct stat st;
    size_t len = 1 + r % STRESS_SIZE;
    if (fstat(fd, &st) == 0 && st.st_size > 4 * STRESS_SIZE && ftruncate(fd, r % 8192)) {
        fs_fail("truncate", path);
    }
    if (write(fd, filler, len) < 0 && errno != ENOSPC) {
        fs_fail("write", path);
    }
    if (r >> 20 & 3) {
        if (fsync(fd) && errno != ENOSPC) {
            fs_fail("fsync", path);
        }
    }
    close(fd);
}

static void *stress_thread(void *opaque)
{
    int id = (int)(intptr_t)opaque;
    uint64_t x = 88172645463325252ull + id;
    char base[48], a[80], b[80];

    snprintf(base, sizeof(base), "/mnt/stress%d", id);
    mkdir(base, 0755);
    while (!stopping) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        uint64_t r = x >> 8;
        snprintf(a, sizeof(a), "%s/%d", base, (int)(r % STRESS_NAMES));
        snprintf(b, sizeof(b), "%s/%d", base, (int)(r / STRESS_NAMES % STRESS_NAMES));
        /* What fails because of names that are or are not there is part of the play. */
        switch (x % 12) {
        case 0: case 1: case 2:
            stress_write(a, r, O_TRUNC);
            break;
        case 3: case 4:
            stress_write(a, r, O_APPEND);
            break;
        case 5:
            stress_write(a, r, 0);
            break;
        case 6:
            (void)!rename(a, b);
            break;
        case 7:
            (void)!link(a, b);
            break;
        case 8: case 9:
            (void)!unlink(a);
            break;
        case 10:
            if (mkdir(a, 0755)) {
                rmdir(a);
            }
            break;
        case 11:
            (void)!symlink(b, a);
            break;
        }
        workload.disk_written++;
        usleep(1000);
    }
    running--;
    return NULL;
}

bool fs_start(void)
{
    mkdir("/mnt", 0755);
    if (mount(workload.disk, "/mnt", "ext4", 0, NULL)) {
        printf("guest: mount %s: %s\n", workload.disk, strerror(errno));
        return false;
    }
    mkdir("/mnt/rec", 0755);
    for (int i = 0; i < STRESS_THREADS; i++) {
        running++;
        start_thread(stress_thread, (void *)(intptr_t)i, 0);
    }
    return true;
}

void fs_stop(void)
{
    stopping = 1;
    for (int i = 0; i < 500 && running > 0; i++) {
        usleep(10000);
    }
    sync();
    for (int i = 0; i < 100 && umount("/mnt"); i++) {
        if (errno != EBUSY) {
            return;
        }
        usleep(10000);
    }
}
