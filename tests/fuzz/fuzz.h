/*
 * What the fuzz programs share: a repeatable source of bytes, a clock, a result line.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Each program runs cases for --seconds. Case n of a seed is always the same: its state
 * is made of seed and n alone, so that "--seed S --case N" repeats a crash by itself.
 */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <glib.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint64_t fuzz_state;  /* of the random numbers */
static uint64_t fuzz_seed;
static uint64_t fuzz_number; /* of the case that runs */

/* splitmix64 */
static inline uint64_t fuzz_next(void)
{
    uint64_t z = fuzz_state += 0x9e3779b97f4a7c15ull;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* 0 to @n - 1 */
static inline uint32_t fuzz_below(uint32_t n)
{
    return n ? fuzz_next() % n : 0;
}

static inline bool fuzz_one_in(uint32_t n)
{
    return fuzz_below(n) == 0;
}

static inline void fuzz_bytes(uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        p[i] = fuzz_next();
    }
}

/* Change a few bytes; more often than not by small or extreme values. */
static inline void fuzz_mutate(uint8_t *p, size_t len)
{
    static const uint8_t odd[] = {0, 1, 0x7f, 0x80, 0xfe, 0xff, 4, 5, 15, 16};

    for (unsigned n = 1 + fuzz_below(4); len && n; n--) {
        uint8_t *at = p + fuzz_below(len);
        switch (fuzz_below(4)) {
        case 0:
            *at = fuzz_next();
            break;
        case 1:
            *at ^= 1 << fuzz_below(8);
            break;
        case 2:
            *at += fuzz_one_in(2) ? 1 : 255;
            break;
        default:
            *at = odd[fuzz_below(G_N_ELEMENTS(odd))];
            break;
        }
    }
}

static inline void fuzz_said(int number)
{
    char text[128];
    int n = snprintf(text, sizeof(text), "fuzz: repeat with --seed %llu --case %llu\n",
                     (unsigned long long)fuzz_seed, (unsigned long long)fuzz_number);

    if (write(STDERR_FILENO, text, n) != n) {
        _exit(2);
    }
    signal(number, SIG_DFL);
    raise(number);
}

/* Run @one for each case until the time is over. */
static inline int fuzz_main(int argc, char **argv, const char *name, void (*one)(void))
{
    double seconds = 5;
    bool single = false;

    fuzz_seed = 1;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--seed") == 0) {
            fuzz_seed = strtoull(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--seconds") == 0) {
            seconds = atof(argv[i + 1]);
        } else if (strcmp(argv[i], "--case") == 0) {
            fuzz_number = strtoull(argv[i + 1], NULL, 10);
            single = true;
        } else {
            fprintf(stderr, "usage: %s [--seed N] [--seconds N] [--case N]\n", argv[0]);
            return 2;
        }
    }
    signal(SIGABRT, fuzz_said);
    signal(SIGALRM, fuzz_said);
    signal(SIGTRAP, fuzz_said);
    int64_t end = g_get_monotonic_time() + seconds * G_USEC_PER_SEC;
    uint64_t first = fuzz_number;
    do {
        fuzz_state = fuzz_seed * 0x2545f4914f6cdd1dull + fuzz_number * 0x9fb21c651e98df25ull;
        alarm(20); /* no case may hang */
        one();
        fuzz_number++;
    } while (!single && g_get_monotonic_time() < end);
    printf("ok    %s %llu cases\n", name, (unsigned long long)(fuzz_number - first));
    return 0;
}

#endif
