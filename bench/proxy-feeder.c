/*
 * proxy-feeder: feeds a colo-compare, ours or stock's, over its three chardevs.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Both sides get the same frames. A bounded number of them is under way at any time, so
 * the rate is that of the comparison and not of the feeder, as long as the processor
 * time of the comparing process is what is looked at. Each frame that comes out is
 * checked: its bytes, and its place in its flow. With --queued the primary's stream is
 * so many frames ahead, and these wait in the comparison. With --latency single frames
 * are sent and waited for. The answer is one line of JSON.
 */
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "feeder-frames.h"

#define MAX_LATENCIES 100000
#define READ_SIZE (1u << 20)
#define STALL_NS 5000000000ll
#define QUIET_MS 400 /* then what has not come out will not come any more */

typedef struct Feeder {
    FeederFrames ff;
    int p, s, o;
    uint32_t stride; /* bytes of a slot: length and frame */
    uint32_t burst;  /* frames of one send */
    uint64_t slots, window, queued; /* frames */
    uint8_t *ring;
    uint64_t built, out; /* frames */
    uint64_t done;       /* frames that came out or were passed over */
    uint64_t p_bytes, s_bytes;
    uint64_t *next; /* of each flow, the frame that must come out next */
    uint64_t stalls;
    uint64_t bad, gaps, late; /* frames: damaged; passed over in their flow; after that */
    uint8_t *rbuf;
    size_t rlen;
} Feeder;

static void die(const char *what)
{
    fprintf(stderr, "proxy-feeder: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* Processor time of all threads of @pid, in ns. */
static int64_t cpu_ns(int pid)
{
    char path[320], line[128];
    int64_t sum = 0;

    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));) {
        snprintf(path, sizeof(path), "/proc/%d/task/%s/schedstat", pid, e->d_name);
        FILE *f = e->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (f && fgets(line, sizeof(line), f)) {
            sum += strtoll(line, NULL, 10);
        }
        if (f) {
            fclose(f);
        }
    }
    if (d) {
        closedir(d);
    }
    return sum;
}

static int open_socket(const char *path)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), size = 4 << 20;

    strncpy(un.sun_path, path, sizeof(un.sun_path) - 1);
    if (fd < 0 || connect(fd, (struct sockaddr *)&un, sizeof(un)) < 0) {
        die(path);
    }
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0) {
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    }
    return fd;
}

static uint8_t *slot(Feeder *fd, uint64_t n)
{
    return fd->ring + (n % fd->slots) * fd->stride;
}

static void make_ring(Feeder *fd)
{
    fd->stride = 4 + fd->ff.size;
    fd->slots = (fd->window + fd->queued + 2 * fd->burst) / fd->burst * fd->burst;
    fd->ring = calloc(fd->slots, fd->stride);
    fd->next = calloc(fd->ff.flows, sizeof(*fd->next));
    fd->rbuf = malloc(READ_SIZE);
    if (!fd->ring || !fd->next || !fd->rbuf) {
        die("memory");
    }
    for (uint64_t i = 0; i < fd->slots; i++) {
        uint8_t *b = fd->ring + i * fd->stride;
        b[2] = fd->ff.size >> 8;
        b[3] = fd->ff.size;
        feeder_frames_blank(&fd->ff, b + 4);
    }
    for (uint32_t i = 0; i < fd->ff.flows; i++) {
        fd->next[i] = i;
    }
}

/* Send of the bytes from *@at up to frame @end; true if something went. */
static bool send_some(Feeder *fd, int sock, uint64_t *at, uint64_t end)
{
    uint64_t size = fd->slots * fd->stride, stop = end * fd->stride;
    bool moved = false;

    while (*at < stop) {
        uint64_t from = *at % size;
        uint64_t n = stop - *at;
        n = n < size - from ? n : size - from;
        n = n < (uint64_t)fd->burst * fd->stride ? n : (uint64_t)fd->burst * fd->stride;
        ssize_t r = send(sock, fd->ring + from, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (r < 0) {
            if (errno == EAGAIN || errno == EINTR) {
                break;
            }
            die("send");
        }
        *at += r;
        moved = true;
    }
    return moved;
}

static void check(Feeder *fd, const uint8_t *b)
{
    uint64_t n = feeder_frames_number(&fd->ff, b + 4);
    uint32_t flow = n % fd->ff.flows;

    if (n >= fd->built || n + fd->slots < fd->built ||
        memcmp(b, slot(fd, n), fd->stride) != 0) {
        fd->bad++;
        return;
    }
    if (n < fd->next[flow]) {
        fd->late++;
        return;
    }
    fd->gaps += (n - fd->next[flow]) / fd->ff.flows;
    fd->next[flow] = n + fd->ff.flows;
    fd->done = n + 1 > fd->done ? n + 1 : fd->done;
}

static bool receive_some(Feeder *fd)
{
    ssize_t n = recv(fd->o, fd->rbuf + fd->rlen, READ_SIZE - fd->rlen, MSG_DONTWAIT);
    size_t at = 0;

    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return false;
    }
    if (n <= 0) {
        die("outdev");
    }
    fd->rlen += n;
    for (; fd->rlen - at >= fd->stride; at += fd->stride, fd->out++) {
        check(fd, fd->rbuf + at);
    }
    memmove(fd->rbuf, fd->rbuf + at, fd->rlen - at);
    fd->rlen -= at;
    return true;
}

static void build(Feeder *fd)
{
    for (uint32_t i = 0; i < fd->burst; i++, fd->built++) {
        feeder_frames_put(&fd->ff, slot(fd, fd->built) + 4, fd->built);
    }
}

/* One turn; true if anything moved. */
static bool turn(Feeder *fd)
{
    bool moved = false;

    if (fd->built + fd->burst - fd->done <= fd->window + fd->queued) {
        build(fd);
        moved = true;
    }
    moved |= send_some(fd, fd->p, &fd->p_bytes, fd->built);
    uint64_t sent = fd->p_bytes / fd->stride;
    if (sent > fd->queued) {
        moved |= send_some(fd, fd->s, &fd->s_bytes, sent - fd->queued);
    }
    return receive_some(fd) || moved;
}

static void wait_any(Feeder *fd)
{
    struct pollfd p[3] = {{fd->o, POLLIN, 0}};
    int n = 1;

    if (fd->p_bytes < fd->built * fd->stride) {
        p[n++] = (struct pollfd){fd->p, POLLOUT, 0};
    }
    if (fd->s_bytes + fd->queued * fd->stride < fd->p_bytes) {
        p[n++] = (struct pollfd){fd->s, POLLOUT, 0};
    }
    if (poll(p, n, QUIET_MS) == 0 && n == 1) {
        fd->done = fd->built - fd->queued; /* the last ones were lost: go on */
        fd->stalls++;
    }
}

/* Feed until @until or nothing has come out for long; the time when it ended. */
static int64_t feed(Feeder *fd, int64_t until)
{
    int64_t now = now_ns(), moved_at = now;
    uint64_t out = fd->out;

    while ((now = now_ns()) < until) {
        if (!turn(fd)) {
            wait_any(fd);
        }
        if (fd->out != out) {
            out = fd->out;
            moved_at = now;
        } else if (now - moved_at > STALL_NS) {
            fprintf(stderr, "proxy-feeder: nothing comes out (%" PRIu64 " of %" PRIu64 ")\n",
                    fd->out, fd->built);
            exit(1);
        }
    }
    return now;
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

static void latency(Feeder *fd, double seconds, long gap_us)
{
    int64_t *took = calloc(MAX_LATENCIES, sizeof(*took));
    int64_t until = now_ns() + (int64_t)(seconds * 1e9);
    size_t n = 0;

    fd->burst = 1;
    while (n < MAX_LATENCIES && now_ns() < until) {
        build(fd);
        send_some(fd, fd->p, &fd->p_bytes, fd->built);
        int64_t t = now_ns();
        send_some(fd, fd->s, &fd->s_bytes, fd->built);
        while (fd->out < fd->built && now_ns() < t + STALL_NS) {
            receive_some(fd); /* spins: its own wake-up is not to be measured */
        }
        took[n++] = now_ns() - t;
        usleep(gap_us);
    }
    qsort(took, n, sizeof(*took), by_value);
    size_t half = n / 2, most = n * 99 / 100;
    printf("{\"n\": %zu, \"median_us\": %.2f, \"p99_us\": %.2f, \"max_us\": %.2f, "
           "\"bad\": %" PRIu64 "}\n",
           n, took[half] / 1e3, took[most] / 1e3, took[n - 1] / 1e3, fd->bad);
    free(took);
}

static void throughput(Feeder *fd, double warm, double seconds, int pid)
{
    int64_t start = feed(fd, now_ns() + (int64_t)(warm * 1e9));
    int64_t cpu = cpu_ns(pid), own = cpu_ns(getpid());
    uint64_t out = fd->out;
    int64_t end = feed(fd, start + (int64_t)(seconds * 1e9));

    cpu = cpu_ns(pid) - cpu;
    own = cpu_ns(getpid()) - own;
    out = fd->out - out;
    double wall = (end - start) / 1e9;
    printf("{\"frames\": %" PRIu64 ", \"seconds\": %.3f, \"per_s\": %.0f, "
           "\"cpu\": %.3f, \"per_core_s\": %.0f, \"feeder_cpu\": %.3f, \"bad\": %" PRIu64
           ", \"lost\": %" PRIu64 ", \"disordered\": %" PRIu64
           ", \"stalls\": %" PRIu64 "}\n",
           out, wall, out / wall, cpu / 1e9 / wall, cpu ? out / (cpu / 1e9) : 0,
           own / 1e9 / wall, fd->bad,
           fd->gaps - fd->late, fd->late, fd->stalls);
}

static const struct option longs[] = {
    {"primary", 1, 0, 'p'}, {"secondary", 1, 0, 's'}, {"out", 1, 0, 'o'},
    {"pid", 1, 0, 'i'},     {"proto", 1, 0, 't'},     {"size", 1, 0, 'z'},
    {"flows", 1, 0, 'f'},   {"window", 1, 0, 'w'},    {"queued", 1, 0, 'q'},
    {"warm", 1, 0, 'a'},    {"seconds", 1, 0, 'd'},   {"latency", 1, 0, 'l'},
    {0}};

int main(int argc, char **argv)
{
    const char *path[3] = {NULL, NULL, NULL};
    Feeder fd = {.window = 768, .queued = 0};
    uint32_t size = 64, flows = 1;
    double warm = 0.5, seconds = 2;
    long gap_us = 0;
    bool udp = false;
    int pid = 0;

    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        switch (c) {
        case 'p': path[0] = optarg; break;
        case 's': path[1] = optarg; break;
        case 'o': path[2] = optarg; break;
        case 'i': pid = atoi(optarg); break;
        case 't': udp = !strcmp(optarg, "udp"); break;
        case 'z': size = atoi(optarg); break;
        case 'f': flows = atoi(optarg); break;
        case 'w': fd.window = atoi(optarg); break;
        case 'q': fd.queued = atoi(optarg); break;
        case 'a': warm = atof(optarg); break;
        case 'd': seconds = atof(optarg); break;
        case 'l': gap_us = atol(optarg); break;
        default: return 2;
        }
    }
    if (!path[0] || !path[1] || !path[2] || fd.window < 4 ||
        !feeder_frames_init(&fd.ff, udp, size, flows)) {
        fprintf(stderr, "usage: proxy-feeder --primary PATH --secondary PATH --out PATH "
                        "[--pid N --proto tcp|udp --size N --flows N --window N "
                        "--queued N --warm S --seconds S --latency GAP_US]\n");
        return 2;
    }
    fd.burst = gap_us ? 1 : fd.window / 4 < 128 ? fd.window / 4 : 128;
    make_ring(&fd);
    fd.o = open_socket(path[2]);
    fd.p = open_socket(path[0]);
    fd.s = open_socket(path[1]);
    if (gap_us) {
        latency(&fd, seconds, gap_us);
    } else {
        throughput(&fd, warm, seconds, pid);
    }
    return fd.bad ? 3 : 0;
}
