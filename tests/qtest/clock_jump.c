/*
 * Preloaded into a side by test_clock_jumps.py: its wall clock jumps, as by a person or by NTP.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The file that COLO_CLOCK_FILE names holds two int64: nanoseconds to be added, and how often
 * anybody has asked. Monotonic clocks are left alone, as the kernel leaves them.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000ll

static int64_t none[2], *shared = none;

__attribute__((constructor)) static void clock_jump_init(void)
{
    const char *path = getenv("COLO_CLOCK_FILE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *p = fd < 0 ? MAP_FAILED
                     : mmap(NULL, sizeof(none), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (p == MAP_FAILED) {
        abort();
    }
    shared = p;
    close(fd);
}

int clock_gettime(clockid_t id, struct timespec *ts)
{
    int r = (int)syscall(SYS_clock_gettime, id, ts);

    if (r == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE || id == CLOCK_TAI)) {
        int64_t ns = ts->tv_sec * NS + ts->tv_nsec + __atomic_load_n(&shared[0], __ATOMIC_RELAXED);

        __atomic_add_fetch(&shared[1], 1, __ATOMIC_RELAXED);
        ts->tv_sec = ns / NS;
        ts->tv_nsec = ns % NS;
    }
    return r;
}

int gettimeofday(struct timeval *tv, void *tz)
{
    struct timespec ts;

    (void)tz;
    clock_gettime(CLOCK_REALTIME, &ts);
    tv->tv_sec = ts.tv_sec;
    tv->tv_usec = ts.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    if (out) {
        *out = ts.tv_sec;
    }
    return ts.tv_sec;
}
