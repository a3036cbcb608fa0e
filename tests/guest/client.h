/*
 * colo-client: what its parts share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef GUEST_CLIENT_H
#define GUEST_CLIENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct Options {
    const char *host;
    int port_offset;
    double seconds;
    int connect_ms; /* bound of a connect */
    int stall_ms;   /* bound of a wait for the peer's next byte */
    int gap_ms;     /* shorter waits are not listed */
    int interval_us;
    int concurrency;
    bool keepalive;
    bool dial;        /* the guest opens the connections */
    uint64_t bytes;   /* of one download or upload */
    uint64_t rate;    /* MB/s of a download or upload, 0 unbounded */
    uint64_t udp_rate;
    int64_t udp_loss; /* datagrams that may be lost, -1: any number */
    uint64_t disk_rate;
    uint64_t first;   /* number of the first disk record */
    const char *log;  /* acknowledged records */
    bool json;
    bool live;
} Options;

typedef struct Gap {
    double at; /* CLOCK_MONOTONIC, seconds */
    double ms;
} Gap;

#define MAX_GAPS 8192 /* a hundred failovers, and what else happens meanwhile */

/* One thread's run of one mode, and what came of it. */
typedef struct Run {
    const Options *opt;
    const char *mode;
    void (*fn)(struct Run *r);
    uint64_t seed;
    bool done_once;             /* ran until its deadline */
    bool ok;
    char error[256];
    atomic_ullong ops, bytes;
    uint64_t lost, dup, wrong;  /* datagrams */
    double started, ended;
    uint32_t *lat_us;
    size_t n_lat, lat_size;
    double last;                /* of progress */
    double max_gap, max_gap_at; /* ms, CLOCK_MONOTONIC */
    Gap gaps[MAX_GAPS];         /* the longest ones, unordered */
    unsigned n_gaps;            /* all that were seen */
    char extra[1024];           /* JSON members with a leading comma */
} Run;

extern atomic_bool client_stop; /* set by a signal: finish in order */

double now_s(void);

/* client-run.c: bookkeeping and sockets. */
bool run_over(Run *r);
void run_waiting(Run *r);
void run_progress(Run *r);
void run_latency(Run *r, double seconds);
void run_fail(Run *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void run_pace(Run *r, double start, double done, double per_second);
void run_merge(Run *to, Run *from);
void run_report(Run *r, FILE *out);
void run_report_json(Run *r, FILE *out);

/* A connected socket with stall time-outs, or -1 after run_fail(). */
int net_connect(Run *r, int port, int type);
bool net_send(Run *r, int fd, const void *buf, size_t len);
/* Bytes read, at least 1, or -1 after run_fail(): an early end is a lost connection. */
long net_recv(Run *r, int fd, void *buf, size_t size);

typedef struct Reader {
    int fd;
    size_t at, len;
    char buf[65536];
} Reader;

/* A line without its end, in the reader's buffer, or NULL after run_fail(). */
char *net_line(Run *r, Reader *rd);

/* client-modes.c */
void mode_lines(Run *r);
void mode_echo(Run *r);
void mode_download(Run *r);
void mode_upload(Run *r);
void mode_stream(Run *r);
void mode_http(Run *r);
void mode_udp(Run *r);
void mode_disk(Run *r);
void mode_diskverify(Run *r);
void mode_status(Run *r);

/* client-image.c */
int image_check(const char *image, const char *log, bool json);

#endif
