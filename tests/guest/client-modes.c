/*
 * colo-client: one function a service of the guest; each checks every byte.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "client.h"
#include "pattern.h"
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* Lines, one at a time: round trips. */
void mode_lines(Run *r)
{
    Reader *rd = calloc(1, sizeof(*rd));
    char line[128], expect[160], *got;

    rd->fd = net_connect(r, PORT_LINES, SOCK_STREAM);
    if (rd->fd < 0) {
        free(rd);
        return;
    }
    for (uint64_t n = 0; !run_over(r); n++) {
        double t = now_s();
        int len = snprintf(line, sizeof(line), "%016" PRIx64 "-%010" PRIu64 "-%034d\n",
                           pattern_word(r->seed, n), n, 0);

        snprintf(expect, sizeof(expect), "%010" PRIu64 " %.*s", n, len - 1, line);
        run_waiting(r);
        if (!net_send(r, rd->fd, line, len) || !(got = net_line(r, rd))) {
            break;
        }
        run_latency(r, now_s() - t);
        if (strcmp(got, expect)) {
            run_fail(r, "line %" PRIu64 ": got %.60s, expected %.60s", n, got, expect);
            break;
        }
        r->ops++;
        r->bytes += len;
        if (r->opt->interval_us) {
            usleep(r->opt->interval_us);
        }
    }
    close(rd->fd);
    free(rd);
}

/* Bytes both ways at once, in pieces of any size, up to 128 KiB ahead. */
void mode_echo(Run *r)
{
    enum { AHEAD = 128 * 1024 };
    static _Thread_local char out[65536], in[65536];
    uint64_t sent = 0, got = 0, rnd = r->seed, allowed;
    int fd = net_connect(r, PORT_ECHO, SOCK_STREAM);
    bool over = false;

    if (fd < 0) {
        return;
    }
    run_waiting(r);
    while (!r->error[0]) {
        struct pollfd pfd = {.fd = fd, .events = POLLIN};

        over |= run_over(r);
        if (over && sent == got) {
            break;
        }
        allowed = r->opt->rate ? (now_s() - r->started) * r->opt->rate * 1e6 : UINT64_MAX;
        if (!over && sent == got && sent >= allowed) {
            run_pace(r, r->started, (sent + 1) / 1e6, r->opt->rate);
            run_waiting(r);
            continue;
        }
        if (!over && sent - got < AHEAD && sent < allowed) {
            pfd.events |= POLLOUT;
        }
        if (poll(&pfd, 1, sent < allowed || over ? r->opt->stall_ms : 5) != 1) {
            if (now_s() - r->last > r->opt->stall_ms / 1e3) {
                run_fail(r, "connection lost: the peer stands still");
            }
            continue;
        }
        if (pfd.revents & POLLOUT) {
            size_t len;
            ssize_t n;

            rnd = rnd * 6364136223846793005ull + 1442695040888963407ull;
            len = 1 + (rnd >> 33) % (rnd >> 62 ? 1500 : sizeof(out));
            pattern_fill(out, len, r->seed, sent);
            n = send(fd, out, len, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (n < 0 && errno != EAGAIN && errno != EINTR) {
                run_fail(r, "send: %s", strerror(errno));
            }
            sent += n > 0 ? n : 0;
        }
        if (pfd.revents & (POLLIN | POLLHUP | POLLERR)) {
            long n = net_recv(r, fd, in, sizeof(in));
            int64_t wrong;

            if (n < 0) {
                break;
            }
            wrong = pattern_check(in, n, r->seed, got);
            if (wrong >= 0 || got + n > sent) {
                run_fail(r, "byte %" PRIu64 " of the echo is wrong",
                         got + (wrong < 0 ? 0 : wrong));
            }
            got += n;
            r->bytes += n;
            r->ops++;
        }
    }
    close(fd);
}

/* One GET and its answer, checked; false after run_fail(). */
static bool http_get(Run *r, Reader *rd, const char *path, uint64_t bytes, uint64_t seed,
                     bool close_it, double pace_start)
{
    char request[256], *line;
    uint64_t length = UINT64_MAX, at = 0;
    int n = snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nHost: guest\r\n%s\r\n",
                     path, close_it ? "Connection: close\r\n" : "");

    run_waiting(r);
    if (!net_send(r, rd->fd, request, n) || !(line = net_line(r, rd))) {
        return false;
    }
    if (strcmp(line, "HTTP/1.1 200 OK\r")) {
        run_fail(r, "GET %s: %.60s", path, line);
        return false;
    }
    while ((line = net_line(r, rd)) && strcmp(line, "\r")) {
        if (!strncmp(line, "Content-Length: ", 16)) {
            length = strtoull(line + 16, NULL, 10);
        }
    }
    if (line && length != bytes) {
        run_fail(r, "GET %s: length %" PRIu64 ", expected %" PRIu64, path, length, bytes);
    }
    while (line && at < bytes && !r->error[0]) {
        size_t len = rd->len - rd->at;
        int64_t wrong;

        if (!len) {
            long got = net_recv(r, rd->fd, rd->buf, sizeof(rd->buf));

            if (got < 0) {
                return false;
            }
            rd->at = 0;
            rd->len = got;
            continue;
        }
        len = len < bytes - at ? len : bytes - at;
        wrong = pattern_check(rd->buf + rd->at, len, seed, at);
        if (wrong >= 0) {
            run_fail(r, "GET %s: byte %" PRIu64 " is wrong", path, at + wrong);
        }
        rd->at += len;
        at += len;
        r->bytes += len;
        if (pace_start > 0 && r->opt->rate) {
            run_pace(r, pace_start, r->bytes / 1e6, r->opt->rate);
            run_waiting(r);
        }
    }
    if (close_it && !r->error[0]) {
        char c;
        ssize_t rest = recv(rd->fd, &c, 1, 0);

        if (rest != 0 || rd->at != rd->len) {
            run_fail(r, "GET %s: %s after the answer", path,
                     rest < 0 ? strerror(errno) : "more bytes");
        }
    }
    return !r->error[0];
}

/* Large files over one connection. Ends only between files: each is checked whole. */
void mode_download(Run *r)
{
    Reader *rd = calloc(1, sizeof(*rd));

    rd->fd = net_connect(r, PORT_HTTP, SOCK_STREAM);
    for (uint64_t n = 0; rd->fd >= 0 && !run_over(r); n++) {
        char path[128];
        double t = now_s();

        snprintf(path, sizeof(path), "/large?bytes=%" PRIu64 "&seed=%" PRIu64,
                 r->opt->bytes, r->seed + n);
        if (!http_get(r, rd, path, r->opt->bytes, r->seed + n, false, r->started)) {
            break;
        }
        run_latency(r, now_s() - t);
        r->ops++;
    }
    if (rd->fd >= 0) {
        close(rd->fd);
    }
    free(rd);
}

/* Small files, a new connection each unless told otherwise. */
void mode_http(Run *r)
{
    Reader *rd = calloc(1, sizeof(*rd));

    rd->fd = -1;
    while (!run_over(r)) {
        double t = now_s();

        if (rd->fd < 0) {
            rd->at = rd->len = 0;
            rd->fd = net_connect(r, PORT_HTTP, SOCK_STREAM);
        }
        if (rd->fd < 0 || !http_get(r, rd, "/small", 1024, 0, !r->opt->keepalive, 0)) {
            break;
        }
        run_latency(r, now_s() - t);
        r->ops++;
        if (!r->opt->keepalive) {
            close(rd->fd);
            rd->fd = -1;
        }
        if (r->opt->interval_us) {
            usleep(r->opt->interval_us);
        }
    }
    if (rd->fd >= 0) {
        close(rd->fd);
    }
    free(rd);
}

/* Patterns that the guest checks and hashes; its answer is held against our own hash. */
void mode_upload(Run *r)
{
    Reader *rd = calloc(1, sizeof(*rd));
    static _Thread_local char buf[65536];

    rd->fd = net_connect(r, PORT_UPLOAD, SOCK_STREAM);
    for (uint64_t n = 0; rd->fd >= 0 && !run_over(r); n++) {
        PatternHash h = {0};
        char head[64], expect[96], *got;
        uint64_t at = 0, bytes = r->opt->bytes;
        double t = now_s();

        run_waiting(r);
        snprintf(head, sizeof(head), "UPLOAD %" PRIu64 " %" PRIu64 "\n", r->seed + n, bytes);
        if (!net_send(r, rd->fd, head, strlen(head))) {
            break;
        }
        while (at < bytes) {
            size_t len = bytes - at < sizeof(buf) ? bytes - at : sizeof(buf);

            pattern_fill(buf, len, r->seed + n, at);
            pattern_hash_add(&h, buf, len);
            run_waiting(r);
            if (!net_send(r, rd->fd, buf, len)) {
                goto out;
            }
            run_progress(r);
            at += len;
            r->bytes += len;
            run_pace(r, r->started, r->bytes / 1e6, r->opt->rate);
        }
        run_waiting(r);
        if (!(got = net_line(r, rd))) {
            break;
        }
        snprintf(expect, sizeof(expect), "OK %" PRIu64 " %016" PRIx64 " -1", bytes,
                 pattern_hash_end(&h));
        if (strcmp(got, expect)) {
            run_fail(r, "upload %" PRIu64 ": got %.60s, expected %.60s", n, got, expect);
            break;
        }
        run_latency(r, now_s() - t);
        r->ops++;
    }
out:
    if (rd->fd >= 0) {
        close(rd->fd);
    }
    free(rd);
}

/* A record each millisecond, sent whether we answer or not: the gap that clients see. */
void mode_stream(Run *r)
{
    static _Thread_local char buf[65536];
    char expect[STREAM_RECORD + 8];
    uint64_t n = 0;
    size_t have = 0;
    int fd = net_connect(r, PORT_STREAM, SOCK_STREAM);

    run_waiting(r);
    while (fd >= 0 && !run_over(r)) {
        long got = net_recv(r, fd, buf + have, sizeof(buf) - have);
        size_t at = 0;

        if (got < 0) {
            break;
        }
        r->bytes += got;
        for (have += got; have - at >= STREAM_RECORD; at += STREAM_RECORD, n++) {
            snprintf(expect, sizeof(expect), STREAM_FORMAT, (unsigned long long)n,
                     (unsigned long long)pattern_word(0, n));
            if (memcmp(buf + at, expect, STREAM_RECORD)) {
                run_fail(r, "record %" PRIu64 ": got %.31s", n, buf + at);
                break;
            }
            r->ops++;
        }
        have -= at;
        memmove(buf, buf + at, have);
    }
    if (fd >= 0) {
        close(fd);
    }
}

typedef struct Datagrams {
    uint8_t *seen;
    double *sent_at;
    uint64_t sent, size;
} Datagrams;

static size_t datagram_size(uint64_t n)
{
    return 16 + pattern_mix(n) % 1200;
}

static void datagrams_receive(Run *r, int fd, Datagrams *d)
{
    char buf[2048];
    uint64_t n;
    ssize_t len;

    while ((len = recv(fd, buf, sizeof(buf), MSG_DONTWAIT)) >= 0) {
        memcpy(&n, buf, len < 8 ? 0 : 8);
        if (len < 16 || n >= d->sent || (size_t)len != datagram_size(n) ||
            pattern_check(buf + 8, len - 8, r->seed + n, 0) >= 0) {
            r->wrong++;
            run_fail(r, "a datagram that was never sent");
            return;
        }
        run_progress(r);
        if (d->seen[n]++) {
            r->dup++;
            continue;
        }
        run_latency(r, now_s() - d->sent_at[n]);
        r->ops++;
        r->bytes += len;
    }
    if (errno == ECONNREFUSED) {
        run_fail(r, "udp: %s", strerror(errno));
    }
}

void mode_udp(Run *r)
{
    Datagrams d = {.size = (r->opt->seconds + 1) * r->opt->udp_rate + 16};
    int fd = net_connect(r, PORT_UDP, SOCK_DGRAM);
    double end;

    d.seen = calloc(d.size, 1);
    d.sent_at = calloc(d.size, sizeof(*d.sent_at));
    run_waiting(r);
    while (fd >= 0 && d.sent < d.size && !run_over(r)) {
        char buf[2048];
        size_t len = datagram_size(d.sent);
        struct pollfd pfd = {.fd = fd, .events = POLLIN};
        double next = r->started + (double)(d.sent + 1) / r->opt->udp_rate, left;

        memcpy(buf, &d.sent, 8);
        pattern_fill(buf + 8, len - 8, r->seed + d.sent, 0);
        d.sent_at[d.sent] = now_s();
        if (d.sent == r->ops) {
            run_waiting(r);
        }
        d.sent++;
        if (send(fd, buf, len, MSG_DONTWAIT) < 0 && errno != EAGAIN && errno != ENOBUFS) {
            run_fail(r, "udp send: %s", strerror(errno));
            break;
        }
        while ((left = next - now_s()) > 0 && !r->error[0]) {
            if (poll(&pfd, 1, left * 1e3 + 1) > 0) {
                datagrams_receive(r, fd, &d);
            }
        }
    }
    for (end = now_s() + 2; fd >= 0 && now_s() < end && r->ops < d.sent && !r->error[0];) {
        struct pollfd pfd = {.fd = fd, .events = POLLIN};

        if (poll(&pfd, 1, 100) > 0) {
            datagrams_receive(r, fd, &d);
        }
    }
    if (fd >= 0) {
        close(fd);
        r->lost = d.sent - r->ops;
        if (r->opt->udp_loss >= 0 && (int64_t)r->lost > r->opt->udp_loss) {
            run_fail(r, "%" PRIu64 " of %" PRIu64 " datagrams lost", r->lost, d.sent);
        }
        if (d.sent && !r->ops) {
            run_fail(r, "none of %" PRIu64 " datagrams came back", d.sent);
        }
    }
    free(d.seen);
    free(d.sent_at);
}

/* Ask for record @n; whether it, or one acknowledged later in its slot, is there. */
static bool disk_read_back(Run *r, Reader *rd, uint64_t n, uint64_t last)
{
    char line[64], *got;
    unsigned long long a, b;

    snprintf(line, sizeof(line), "READ %" PRIu64 "\n", n);
    run_waiting(r);
    if (!net_send(r, rd->fd, line, strlen(line)) || !(got = net_line(r, rd))) {
        return false;
    }
    if (sscanf(got, "REC %llu %llu", &a, &b) == 2 && a == n) {
        return true;
    }
    if (sscanf(got, "OTHER %llu %llu", &a, &b) == 2 && a == n && b > n && b <= last) {
        return true;
    }
    run_fail(r, "acknowledged record %" PRIu64 ": guest says %.60s", n, got);
    return false;
}

/* Records that the guest calls stable are written down, and read back at the end. */
void mode_disk(Run *r)
{
    Reader *rd = calloc(1, sizeof(*rd));
    FILE *log = r->opt->log ? fopen(r->opt->log, "a") : NULL;
    uint64_t n = r->opt->first, acked = n;

    if (r->opt->log && !log) {
        run_fail(r, "%s: %s", r->opt->log, strerror(errno));
    }
    rd->fd = net_connect(r, PORT_DISK, SOCK_STREAM);
    while (rd->fd >= 0 && !run_over(r)) {
        char line[64], expect[64], *got;
        double t = now_s();

        snprintf(line, sizeof(line), "WRITE %" PRIu64 "\n", n);
        snprintf(expect, sizeof(expect), "OK %" PRIu64, n);
        run_waiting(r);
        if (!net_send(r, rd->fd, line, strlen(line)) || !(got = net_line(r, rd))) {
            break;
        }
        if (strcmp(got, expect)) {
            run_fail(r, "write of record %" PRIu64 ": guest says %.60s", n, got);
            break;
        }
        if (log) {
            fprintf(log, "%" PRIu64 "\n", n);
            fflush(log);
        }
        run_latency(r, now_s() - t);
        r->ops++;
        r->bytes += DISK_RECORD_SIZE;
        acked = ++n;
        run_pace(r, r->started, r->ops, r->opt->disk_rate);
    }
    /* The newest 512: more would take longer than the test. */
    for (uint64_t i = acked - r->opt->first > 512 ? acked - 512 : r->opt->first;
         rd->fd >= 0 && i < acked && !r->error[0]; i++) {
        disk_read_back(r, rd, i, acked);
    }
    snprintf(r->extra, sizeof(r->extra), ",\"acked\":%" PRIu64 ",\"next\":%" PRIu64,
             acked - r->opt->first, acked);
    if (rd->fd >= 0) {
        close(rd->fd);
    }
    if (log) {
        fclose(log);
    }
    free(rd);
}

/* Every record of an earlier run's log must be on the guest's disk. */
void mode_diskverify(Run *r)
{
    Reader *rd = calloc(1, sizeof(*rd));
    FILE *log = fopen(r->opt->log ? r->opt->log : "", "r");
    uint64_t n, last = 0;

    rd->fd = -1;
    if (!log) {
        run_fail(r, "--log %s: %s", r->opt->log ? r->opt->log : "", strerror(errno));
    } else {
        rd->fd = net_connect(r, PORT_DISK, SOCK_STREAM);
    }
    while (log && fscanf(log, "%" SCNu64, &n) == 1) {
        last = n > last ? n : last;
    }
    if (log) {
        rewind(log);
    }
    while (rd->fd >= 0 && fscanf(log, "%" SCNu64, &n) == 1 &&
           disk_read_back(r, rd, n, last)) {
        r->ops++;
    }
    if (rd->fd >= 0) {
        close(rd->fd);
    }
    if (log) {
        fclose(log);
    }
    r->done_once = true;
    free(rd);
}

/* The guest's own checks of its memory and disk. */
void mode_status(Run *r)
{
    Reader *rd = calloc(1, sizeof(*rd));
    char *got = NULL;

    rd->fd = net_connect(r, PORT_CONTROL, SOCK_STREAM);
    if (rd->fd >= 0 && net_send(r, rd->fd, "STATUS\n", 7) && (got = net_line(r, rd))) {
        if (!strstr(got, "\"errors\":0,")) {
            run_fail(r, "guest: %.240s", strstr(got, "\"errors\"") ?: got);
        }
        snprintf(r->extra, sizeof(r->extra), ",\"guest\":%s", got);
        r->ops++;
    }
    if (rd->fd >= 0) {
        close(rd->fd);
    }
    r->done_once = true;
    free(rd);
}
