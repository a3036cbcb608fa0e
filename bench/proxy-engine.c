/*
 * proxy-engine: the comparison engine alone, without sockets: nanoseconds of a pair.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * proxy-engine PROTO SIZE FLOWS QUEUED SECONDS. Making the frames (a copy of the bytes
 * into one of the pool, for each side) is part of the figure. Answers with a line of JSON.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "feeder-frames.h"
#include "net/compare-engine.h"

#define BATCH 64

static uint64_t released;

static void on_release(Frame *f, void *opaque)
{
    released++;
    frame_unref(f);
}

static void on_trigger(ProxyTrigger t, const char *detail, void *opaque)
{
}

static void on_isn(const FlowKey *k, uint32_t pvm, uint32_t svm, void *opaque)
{
}

static int64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void batch(CompareEngine *e, const FeederFrames *ff, uint8_t *b, uint64_t n,
                  int64_t now, void (*feed)(CompareEngine *, Frame *, int64_t))
{
    for (int i = 0; i < BATCH; i++) {
        feeder_frames_put(ff, b, n + i);
        feed(e, frame_from(b, ff->size), now);
    }
}

int main(int argc, char **argv)
{
    static const CompareOps ops = {on_release, on_trigger, on_isn};
    CompareConfig cfg = {.compare_timeout_us = 1ll << 50, .max_queue_size = UINT32_MAX};
    uint8_t b[2048];
    FeederFrames ff;

    if (argc != 6 ||
        !feeder_frames_init(&ff, !strcmp(argv[1], "udp"), atoi(argv[2]), atoi(argv[3]))) {
        fprintf(stderr, "usage: proxy-engine tcp|udp SIZE FLOWS QUEUED SECONDS\n");
        return 2;
    }
    uint64_t queued = strtoull(argv[4], NULL, 10), p = 0, s = 0, warm;
    int64_t limit = atof(argv[5]) * 1e9, start, took, now = 1000000;
    CompareEngine *e = compare_engine_new(&cfg, &ops, NULL);

    feeder_frames_blank(&ff, b);
    compare_engine_set_mode(e, COMPARE_MODE_COMPARE, now);
    for (warm = 4 * (queued + ff.flows + BATCH), start = cpu_ns();;) {
        batch(e, &ff, b, p, now, compare_engine_primary);
        p += BATCH;
        if (p > queued) {
            batch(e, &ff, b, s, now, compare_engine_secondary);
            s += BATCH;
        }
        compare_engine_tick(e, now);
        if (warm && s >= warm) {
            warm = 0;
            released = 0;
            start = cpu_ns();
        } else if (!warm && (took = cpu_ns() - start) >= limit) {
            break;
        }
    }
    printf("{\"pairs\": %" PRIu64 ", \"ns\": %.1f, \"per_core_s\": %.0f}\n", released,
           (double)took / released, released / (took / 1e9));
    compare_engine_free(e);
    return 0;
}
