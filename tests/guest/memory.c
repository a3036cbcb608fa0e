/*
 * The guest of the tests: rewrites its memory and checks it all the time.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Each page names its index and generation and carries a checksum; the generation that
 * it must have is kept elsewhere. A page that a checkpoint missed is found as stale, a
 * torn one by its checksum, a misplaced one by its index. Each thread owns its stripe,
 * so nothing is locked and one thread a vCPU writes at the same time.
 */
#include "workload.h"
#include "pattern.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define PAGE_WORDS (PAGE / 8)

typedef struct Stripe {
    uint64_t (*pages)[PAGE_WORDS];
    uint32_t *generation;
    uint64_t first; /* index of its first page in the region */
    uint64_t count;
    uint64_t share; /* of the rates: one of so many threads */
} Stripe;

static void page_write(Stripe *s, uint64_t i)
{
    uint64_t *w = s->pages[i];
    uint64_t gen = ++s->generation[i];
    uint64_t word = pattern_word(s->first + i, gen << 20);
    uint64_t sum = 0;

    w[0] = s->first + i;
    w[1] = gen;
    for (int k = 3; k < PAGE_WORDS; k++, word += PATTERN_K) {
        w[k] = word;
        sum += word ^ k;
    }
    w[2] = sum;
}

static void page_check(Stripe *s, uint64_t i)
{
    uint64_t *w = s->pages[i];
    uint64_t sum = 0;

    for (int k = 3; k < PAGE_WORDS; k++) {
        sum += w[k] ^ k;
    }
    workload.mem_checked++;
    if (w[0] == s->first + i && w[1] == s->generation[i] && w[2] == sum &&
        w[3] == pattern_word(w[0], w[1] << 20)) {
        return;
    }
    workload.mem_errors++;
    note_error("page %llu: index %llu generation %llu of %u sum %s",
               (unsigned long long)(s->first + i), (unsigned long long)w[0],
               (unsigned long long)w[1], s->generation[i], w[2] == sum ? "right" : "wrong");
}

static void *stripe_thread(void *opaque)
{
    Stripe *s = opaque;
    uint64_t last = now_us(), write_at = 0, check_at = 0;
    uint64_t write_credit = 0, check_credit = 0; /* in byte * microseconds */

    for (;;) {
        uint64_t now, step, pages;

        usleep(2000);
        now = now_us();
        /* A clock that jumped must not become a burst of seconds. */
        step = now - last < 100000 ? now - last : 100000;
        last = now;
        write_credit += step * workload.dirty_mbs / s->share;
        check_credit += step * workload.check_mbs / s->share;
        pages = write_credit / PAGE;
        write_credit -= pages * PAGE;
        /* Spread over the region by a step that visits every page. */
        for (; pages; pages--) {
            write_at = (write_at + 7919) % s->count;
            if (workload.check_mbs) {
                page_check(s, write_at); /* or the damage would be painted over */
            }
            page_write(s, write_at);
            workload.mem_written++;
        }
        pages = check_credit / PAGE;
        check_credit -= pages * PAGE;
        for (; pages; pages--) {
            check_at = (check_at + 1) % s->count;
            page_check(s, check_at);
        }
    }
    return NULL;
}

/* Lines on the first virtual terminal, which is video memory in the end. */
static void *screen_thread(void *opaque)
{
    FILE *tty = opaque;

    fprintf(tty, "\033[?25l"); /* no cursor: it blinks */
    for (uint64_t n = 0;; n++) {
        uint64_t rate = workload.draw_rate;
        if (rate) {
            fprintf(tty, "\033[3%umline %llu %016llx\n", (unsigned)(n % 8),
                    (unsigned long long)n, (unsigned long long)pattern_word(n, rate));
            fflush(tty);
        }
        usleep(rate ? 1000000 / rate : 100000);
    }
    return NULL;
}

void screen_start(void)
{
    FILE *tty = boot_arg_number("colo.draw", 0) ? fopen("/dev/tty1", "w") : NULL;

    if (tty) {
        start_thread(screen_thread, tty, 5);
    }
}

void memory_start(void)
{
    unsigned n = workload.dirty_threads;
    uint64_t pages = workload.region_mib * 256 / n;

    if (!pages) {
        return;
    }
    while (pages % 7919 == 0) {
        pages--;
    }
    for (unsigned t = 0; t < n; t++) {
        Stripe *s = calloc(1, sizeof(*s));

        s->pages = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        s->generation = calloc(pages, sizeof(*s->generation));
        if (s->pages == MAP_FAILED || !s->generation) {
            printf("guest: no memory for a region of %llu MiB\n",
                   (unsigned long long)workload.region_mib);
            workload.mem_errors++;
            return;
        }
        madvise(s->pages, pages * PAGE, MADV_NOHUGEPAGE);
        s->first = t * pages;
        s->count = pages;
        s->share = n;
        for (uint64_t i = 0; i < pages; i++) {
            page_write(s, i);
        }
        start_thread(stripe_thread, s, 5);
    }
}
