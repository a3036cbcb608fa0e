/*
 * colo-client: bookkeeping of a run, and sockets that cannot hang.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "client.h"
#include "workload.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

double now_s(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec / 1e9;
}

bool run_over(Run *r)
{
    if (client_stop || now_s() >= r->started + r->opt->seconds) {
        r->done_once = true;
        return true;
    }
    return r->error[0] != '\0';
}

/* From here on the peer is waited for: what came before is our own pause. */
void run_waiting(Run *r)
{
    r->last = now_s();
}

void run_progress(Run *r)
{
    double now = now_s(), ms = (now - r->last) * 1e3, at = r->last;

    r->last = now;
    if (ms > r->max_gap) {
        r->max_gap = ms;
        r->max_gap_at = at;
    }
    if (ms < r->opt->gap_ms) {
        return;
    }
    if (r->n_gaps < MAX_GAPS) {
        r->gaps[r->n_gaps] = (Gap){at, ms};
    } else {
        Gap *least = r->gaps;

        for (int i = 1; i < MAX_GAPS; i++) {
            least = r->gaps[i].ms < least->ms ? &r->gaps[i] : least;
        }
        if (ms > least->ms) {
            *least = (Gap){at, ms};
        }
    }
    r->n_gaps++;
}

void run_latency(Run *r, double seconds)
{
    if (r->n_lat == r->lat_size) {
        if (r->lat_size >= 1 << 23) {
            return;
        }
        r->lat_size = r->lat_size ? r->lat_size * 2 : 1024;
        r->lat_us = realloc(r->lat_us, r->lat_size * sizeof(*r->lat_us));
    }
    r->lat_us[r->n_lat++] = seconds * 1e6;
}

/* The first failure is the one that is told. */
void run_fail(Run *r, const char *fmt, ...)
{
    va_list ap;

    r->ok = false;
    if (r->error[0]) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(r->error, sizeof(r->error), fmt, ap);
    va_end(ap);
    for (char *p = r->error; *p; p++) {
        if (*p == '"' || *p == '\\' || (unsigned char)*p < ' ' || (unsigned char)*p > '~') {
            *p = '\'';
        }
    }
}

/* Sleep until @done units since @start are @per_second a second or fewer. */
void run_pace(Run *r, double start, double done, double per_second)
{
    double until = per_second > 0 ? start + done / per_second : 0;

    for (double left; (left = until - now_s()) > 0 && !run_over(r);) {
        usleep((left < 0.1 ? left : 0.1) * 1e6);
    }
}

void run_merge(Run *to, Run *from)
{
    to->ok &= from->ok;
    to->done_once |= from->done_once;
    if (from->error[0] && !to->error[0]) {
        memcpy(to->error, from->error, sizeof(to->error));
    }
    to->ops += from->ops;
    to->bytes += from->bytes;
    for (size_t i = 0; i < from->n_lat; i++) {
        run_latency(to, from->lat_us[i] / 1e6);
    }
    if (from->max_gap > to->max_gap) {
        to->max_gap = from->max_gap;
        to->max_gap_at = from->max_gap_at;
    }
    for (unsigned i = 0; i < from->n_gaps && i < MAX_GAPS && to->n_gaps < MAX_GAPS; i++) {
        to->gaps[to->n_gaps++] = from->gaps[i];
    }
}

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static double percentile_ms(Run *r, double p)
{
    if (!r->n_lat) {
        return 0;
    }
    return r->lat_us[(size_t)(p * (r->n_lat - 1))] / 1e3;
}

static double run_seconds(const Run *r)
{
    return r->ended > r->started ? r->ended - r->started : 1e-9;
}

void run_report(Run *r, FILE *out)
{
    double s = run_seconds(r);

    qsort(r->lat_us, r->n_lat, sizeof(*r->lat_us), compare_u32);
    fprintf(out, "%-10s %-5s %9llu ops %9.1f/s %8.2f MB/s  max gap %7.1f ms",
            r->mode, r->ok ? "ok" : "WRONG", (unsigned long long)r->ops, r->ops / s,
            r->bytes / s / 1e6, r->max_gap);
    if (r->n_lat) {
        fprintf(out, "  p50 %.2f p99 %.2f max %.2f ms", percentile_ms(r, 0.5),
                percentile_ms(r, 0.99), percentile_ms(r, 1));
    }
    if (r->lost + r->dup + r->wrong) {
        fprintf(out, "  lost %llu dup %llu wrong %llu", (unsigned long long)r->lost,
                (unsigned long long)r->dup, (unsigned long long)r->wrong);
    }
    fprintf(out, "%s%s%s\n", r->extra[0] ? "  " : "", r->extra[0] ? r->extra + 1 : "",
            r->ok ? "" : "\n           failed:");
    if (!r->ok) {
        fprintf(out, "           %s\n", r->error);
    }
}

void run_report_json(Run *r, FILE *out)
{
    double s = run_seconds(r);

    qsort(r->lat_us, r->n_lat, sizeof(*r->lat_us), compare_u32);
    fprintf(out,
            "{\"mode\":\"%s\",\"ok\":%s,\"error\":\"%s\",\"seconds\":%.3f,\"ops\":%llu,"
            "\"ops_per_s\":%.2f,\"bytes\":%llu,\"mb_per_s\":%.3f,\"lost\":%llu,"
            "\"dup\":%llu,\"wrong\":%llu,\"lat_ms\":{\"n\":%zu,\"p50\":%.3f,\"p90\":%.3f,"
            "\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f},\"max_gap_ms\":%.2f,"
            "\"max_gap_at\":%.6f,\"n_gaps\":%u,\"gaps\":[",
            r->mode, r->ok ? "true" : "false", r->error, s, (unsigned long long)r->ops,
            r->ops / s, (unsigned long long)r->bytes, r->bytes / s / 1e6,
            (unsigned long long)r->lost, (unsigned long long)r->dup,
            (unsigned long long)r->wrong, r->n_lat, percentile_ms(r, 0.5),
            percentile_ms(r, 0.9), percentile_ms(r, 0.99), percentile_ms(r, 0.999),
            percentile_ms(r, 1), r->max_gap, r->max_gap_at, r->n_gaps);
    for (unsigned i = 0; i < r->n_gaps && i < MAX_GAPS; i++) {
        fprintf(out, "%s{\"at\":%.6f,\"ms\":%.2f}", i ? "," : "", r->gaps[i].at,
                r->gaps[i].ms);
    }
    fprintf(out, "]%s}", r->extra);
}

static void set_up(Run *r, int fd, int type)
{
    struct timeval stall = {r->opt->stall_ms / 1000, r->opt->stall_ms % 1000 * 1000};
    int one = 1;

    run_progress(r);
    fcntl(fd, F_SETFL, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &stall, sizeof(stall));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &stall, sizeof(stall));
    if (type == SOCK_STREAM) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
}

static int connect_to(Run *r, int port, int type)
{
    struct sockaddr_in sin = {.sin_family = AF_INET,
                              .sin_port = htons(port + r->opt->port_offset)};
    struct pollfd pfd = {.events = POLLOUT};
    int fd, err = 0;
    socklen_t len = sizeof(err);

    if (inet_pton(AF_INET, r->opt->host, &sin.sin_addr) != 1) {
        run_fail(r, "--host %s: not an IPv4 address", r->opt->host);
        return -1;
    }
    fd = socket(AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        run_fail(r, "socket: %s", strerror(errno));
        return -1;
    }
    pfd.fd = fd;
    run_waiting(r);
    if (connect(fd, (void *)&sin, sizeof(sin)) && errno != EINPROGRESS) {
        err = errno;
    } else if (type == SOCK_STREAM) {
        if (poll(&pfd, 1, r->opt->connect_ms) != 1) {
            err = ETIMEDOUT;
        } else {
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len);
        }
    }
    if (err) {
        run_fail(r, "connect to %s port %d: %s", r->opt->host, port, strerror(err));
        close(fd);
        return -1;
    }
    set_up(r, fd, type);
    return fd;
}

/* Ask the guest to open the connection. */
static int let_dial(Run *r, int port)
{
    struct sockaddr_in sin = {.sin_family = AF_INET};
    socklen_t len = sizeof(sin);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), asker, fd = -1;
    struct pollfd pfd = {.fd = listener, .events = POLLIN};
    char line[64];

    if (listener < 0 || bind(listener, (void *)&sin, sizeof(sin)) || listen(listener, 1) ||
        getsockname(listener, (void *)&sin, &len)) {
        run_fail(r, "listen: %s", strerror(errno));
        return -1;
    }
    asker = connect_to(r, PORT_DIAL, SOCK_STREAM);
    snprintf(line, sizeof(line), "%d %d\n", ntohs(sin.sin_port), port);
    if (asker >= 0 && net_send(r, asker, line, strlen(line))) {
        if (poll(&pfd, 1, r->opt->connect_ms) == 1) {
            fd = accept(listener, NULL, NULL);
        }
        if (fd < 0) {
            run_fail(r, "the guest opened no connection for port %d", port);
        } else {
            set_up(r, fd, SOCK_STREAM);
        }
    }
    if (asker >= 0) {
        close(asker);
    }
    close(listener);
    return fd;
}

int net_connect(Run *r, int port, int type)
{
    return r->opt->dial && type == SOCK_STREAM && port != PORT_CONTROL ? let_dial(r, port)
                                                                       : connect_to(r, port, type);
}

static const char *wait_error(Run *r, int err)
{
    return err == EAGAIN ? "the peer stands still" : strerror(err);
}

bool net_send(Run *r, int fd, const void *buf, size_t len)
{
    const char *p = buf;

    while (len) {
        ssize_t n = send(fd, p, len, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            run_fail(r, "send: %s", wait_error(r, errno));
            return false;
        }
        p += n;
        len -= n;
    }
    return true;
}

long net_recv(Run *r, int fd, void *buf, size_t size)
{
    ssize_t n;

    do {
        n = recv(fd, buf, size, 0);
    } while (n < 0 && errno == EINTR);
    if (n <= 0) {
        run_fail(r, "connection lost: %s", n ? wait_error(r, errno) : "closed by the guest");
        return -1;
    }
    run_progress(r);
    return n;
}

char *net_line(Run *r, Reader *rd)
{
    for (;;) {
        char *nl = memchr(rd->buf + rd->at, '\n', rd->len - rd->at), *line;
        long n;

        if (nl) {
            line = rd->buf + rd->at;
            *nl = '\0';
            rd->at = nl + 1 - rd->buf;
            return line;
        }
        memmove(rd->buf, rd->buf + rd->at, rd->len - rd->at);
        rd->len -= rd->at;
        rd->at = 0;
        if (rd->len == sizeof(rd->buf)) {
            run_fail(r, "a line longer than %zu bytes", sizeof(rd->buf));
            return NULL;
        }
        n = net_recv(r, rd->fd, rd->buf + rd->len, sizeof(rd->buf) - rd->len);
        if (n < 0) {
            return NULL;
        }
        rd->len += n;
    }
}
