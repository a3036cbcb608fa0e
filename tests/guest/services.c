/*
 * The guest of the tests: its network services, one epoll loop for all.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 *   80    HTTP: /small (1 KiB), /large?bytes=N[&seed=S], /date (its Date: differs on twins)
 *   7000  each line comes back behind a number that counts the connection's lines
 *   7001  bytes come back
 *   7002  "UPLOAD seed bytes\n" + bytes -> "OK bytes hash first-wrong-offset\n", again
 *   7003  a numbered record each millisecond, for ever, whether it is read or not
 *   7004  UDP: datagrams come back
 *   7005  STATUS, SET key=value, POWEROFF (see workload.c); its answers differ on twins
 *   7006  the disk on request (see disk.c)
 *   7007  "PORT SERVICE\n": the guest itself opens a connection to the asker's PORT, and
 *         serves on it what it serves on port SERVICE
 *
 * Same input, same bytes: no time and nothing random in an answer, apart from /date and
 * 7005, so that twins differ only in when they answer.
 */
#include "workload.h"
#include "pattern.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define IN_SIZE 65536
#define OUT_HIGH (256 * 1024) /* above it, nothing more is read */
#define STREAM_HIGH (1024 * 1024)
#define MAX_STREAMS 64

typedef struct Conn Conn;
struct Conn {
    int fd;
    int port;
    bool listener;
    bool close_after;  /* once all output has left */
    bool eof;
    bool dead;
    bool stop_after_reply;
    uint32_t events;   /* as armed */
    uint64_t counter;  /* lines, or stream records */
    char *in;
    size_t in_len;
    char *out;
    size_t out_at, out_len, out_size;
    uint64_t gen_seed, gen_at, gen_end; /* pattern bytes that follow out */
    uint64_t up_seed, up_at, up_end;
    int64_t up_wrong;
    PatternHash up_hash;
};

static int epfd, tick_fd;
static Conn *streams[MAX_STREAMS];
static int n_streams;
static char scratch[65536];

static void out_add(Conn *c, const void *data, size_t len)
{
    if (c->out_at == c->out_len) {
        c->out_at = c->out_len = 0;
    }
    if (c->out_len + len > c->out_size) {
        memmove(c->out, c->out + c->out_at, c->out_len - c->out_at);
        c->out_len -= c->out_at;
        c->out_at = 0;
        if (c->out_len + len > c->out_size) {
            c->out_size = (c->out_len + len) * 2;
            c->out = realloc(c->out, c->out_size);
        }
    }
    memcpy(c->out + c->out_len, data, len);
    c->out_len += len;
}

static size_t out_pending(const Conn *c)
{
    return c->out_len - c->out_at;
}

/* Send what the socket takes; false when the connection is broken. */
static bool flush(Conn *c)
{
    for (int budget = 8; budget; budget--) {
        const char *p = c->out + c->out_at;
        size_t len = out_pending(c);
        ssize_t n;

        if (!len && c->gen_at < c->gen_end) {
            len = c->gen_end - c->gen_at;
            len = len < sizeof(scratch) ? len : sizeof(scratch);
            pattern_fill(scratch, len, c->gen_seed, c->gen_at);
            p = scratch;
        }
        if (!len) {
            break;
        }
        n = send(c->fd, p, len, MSG_NOSIGNAL);
        if (n < 0) {
            return errno == EAGAIN || errno == EINTR;
        }
        workload.tcp_out += n;
        if (p == scratch) {
            c->gen_at += n;
        } else {
            c->out_at += n;
        }
        if ((size_t)n < len) {
            break;
        }
    }
    return true;
}

static bool idle(const Conn *c)
{
    return !out_pending(c) && c->gen_at == c->gen_end;
}

static void conn_arm(Conn *c)
{
    uint32_t want = 0;
    struct epoll_event ev = {.data.ptr = c};

    if (out_pending(c) < OUT_HIGH && c->gen_at == c->gen_end && !c->eof &&
        c->in_len < IN_SIZE) {
        want |= EPOLLIN;
    }
    if (!idle(c)) {
        want |= EPOLLOUT;
    }
    if (want != c->events) {
        c->events = ev.events = want;
        epoll_ctl(epfd, EPOLL_CTL_MOD, c->fd, &ev);
    }
}

static void conn_close(Conn *c)
{
    for (int i = 0; i < n_streams; i++) {
        if (streams[i] == c) {
            streams[i--] = streams[--n_streams];
        }
    }
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}

static void http_reply(Conn *c, const char *status, const char *extra, uint64_t len)
{
    char head[256];
    int n = snprintf(head, sizeof(head),
                     "HTTP/1.1 %s\r\nServer: colo-guest\r\n"
                     "Content-Type: application/octet-stream\r\n"
                     "Content-Length: %llu\r\n%s%s\r\n",
                     status, (unsigned long long)len, extra,
                     c->close_after ? "Connection: close\r\n" : "");

    out_add(c, head, n);
}

/* One request whose header is complete, NUL-terminated in @head. */
static void http_request(Conn *c, char *head)
{
    char path[128] = "", date[64], *q;
    unsigned long long bytes = 1024, seed = 0;
    time_t t;

    if (strcasestr(head, "\r\nConnection: close") || strstr(head, " HTTP/1.0\r\n")) {
        c->close_after = true;
    }
    if (sscanf(head, "GET %127s HTTP/1.", path) != 1) {
        c->close_after = true;
        http_reply(c, "405 Method Not Allowed", "", 0);
    } else if (!strcmp(path, "/small")) {
        http_reply(c, "200 OK", "", bytes);
        c->gen_seed = 0;
        c->gen_at = 0;
        c->gen_end = bytes;
    } else if (!strncmp(path, "/large", 6)) {
        if ((q = strstr(path, "bytes="))) {
            bytes = strtoull(q + 6, NULL, 10);
        }
        if ((q = strstr(path, "seed="))) {
            seed = strtoull(q + 5, NULL, 10);
        }
        http_reply(c, "200 OK", "", bytes);
        c->gen_seed = seed;
        c->gen_at = 0;
        c->gen_end = bytes;
    } else if (!strcmp(path, "/date")) {
        t = time(NULL);
        strftime(date, sizeof(date), "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", gmtime(&t));
        http_reply(c, "200 OK", date, 0);
    } else {
        http_reply(c, "404 Not Found", "", 0);
    }
}

static void in_drop(Conn *c, size_t n)
{
    c->in_len -= n;
    memmove(c->in, c->in + n, c->in_len);
}

static void process_http(Conn *c)
{
    /* The next request waits until this answer has left: one generator a connection. */
    while (idle(c) && !c->close_after) {
        char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
        size_t len;

        if (!end) {
            c->dead |= c->in_len == IN_SIZE;
            return;
        }
        end[3] = '\0';
        len = end + 4 - c->in;
        http_request(c, c->in);
        in_drop(c, len);
        if (!flush(c)) {
            c->dead = true;
            return;
        }
    }
}

static void process_lines(Conn *c)
{
    size_t done = 0;
    char *nl, number[32];

    while (out_pending(c) < OUT_HIGH &&
           (nl = memchr(c->in + done, '\n', c->in_len - done))) {
        char *line = c->in + done;
        int n;

        if (c->port == PORT_CONTROL) {
            char reply[1024];

            *nl = '\0';
            n = control_command(line, reply, sizeof(reply));
            out_add(c, reply, n);
            c->stop_after_reply |= !strcmp(line, "POWEROFF");
        } else {
            n = snprintf(number, sizeof(number), "%010llu ", (unsigned long long)c->counter++);
            out_add(c, number, n);
            out_add(c, line, nl + 1 - line);
        }
        done = nl + 1 - c->in;
    }
    in_drop(c, done);
    if (c->in_len == IN_SIZE && !memchr(c->in, '\n', c->in_len)) {
        c->dead = true; /* a line longer than the buffer */
    }
}

static void process_upload(Conn *c)
{
    char reply[96];

    for (;;) {
        if (c->up_at == c->up_end) {
            unsigned long long seed, bytes;
            char *nl = memchr(c->in, '\n', c->in_len);

            if (!nl) {
                c->dead |= c->in_len == IN_SIZE;
                return;
            }
            *nl = '\0';
            if (sscanf(c->in, "UPLOAD %llu %llu", &seed, &bytes) != 2) {
                c->dead = true;
                return;
            }
            in_drop(c, nl + 1 - c->in);
            c->up_seed = seed;
            c->up_at = 0;
            c->up_end = bytes;
            c->up_wrong = -1;
            c->up_hash = (PatternHash){0};
        }
        if (c->up_at < c->up_end) {
            uint64_t len = c->up_end - c->up_at;

            len = len < c->in_len ? len : c->in_len;
            if (c->up_wrong < 0) {
                int64_t wrong = pattern_check(c->in, len, c->up_seed, c->up_at);

                c->up_wrong = wrong < 0 ? -1 : (int64_t)c->up_at + wrong;
            }
            pattern_hash_add(&c->up_hash, c->in, len);
            c->up_at += len;
            in_drop(c, len);
        }
        if (c->up_at < c->up_end) {
            return;
        }
        out_add(c, reply,
                snprintf(reply, sizeof(reply), "OK %llu %016llx %lld\n",
                         (unsigned long long)c->up_end,
                         (unsigned long long)pattern_hash_end(&c->up_hash),
                         (long long)c->up_wrong));
    }
}

static void dial(Conn *asker, int port, int service);

static void process_dial(Conn *c)
{
    char *nl;

    while ((nl = memchr(c->in, '\n', c->in_len))) {
        int port, service;

        *nl = '\0';
        if (sscanf(c->in, "%d %d", &port, &service) != 2) {
            c->dead = true;
            return;
        }
        in_drop(c, nl + 1 - c->in);
        dial(c, port, service);
    }
    c->dead |= c->in_len == IN_SIZE;
}

static void process(Conn *c)
{
    switch (c->port) {
    case PORT_DIAL:
        process_dial(c);
        break;
    case PORT_HTTP:
        process_http(c);
        break;
    case PORT_LINES:
    case PORT_CONTROL:
        process_lines(c);
        break;
    case PORT_UPLOAD:
        process_upload(c);
        break;
    case PORT_ECHO:
        out_add(c, c->in, c->in_len);
        c->in_len = 0;
        break;
    default: /* the stream takes no input */
        c->in_len = 0;
    }
}

static void conn_ready(Conn *c, uint32_t events)
{
    if (events & EPOLLIN) {
        ssize_t n = recv(c->fd, c->in + c->in_len, IN_SIZE - c->in_len, 0);

        if (n > 0) {
            c->in_len += n;
            workload.tcp_in += n;
        } else if (n == 0) {
            c->eof = true;
        } else if (errno != EAGAIN && errno != EINTR) {
            c->dead = true;
        }
    }
    if (events & (EPOLLERR | EPOLLHUP)) {
        c->dead = true;
    }
    if (!c->dead && !flush(c)) {
        c->dead = true;
    }
    if (!c->dead && c->in_len) {
        process(c);
        c->dead |= !flush(c);
    }
    if (c->stop_after_reply && idle(c)) {
        boot_poweroff();
    }
    if (c->dead || ((c->close_after || c->eof) && idle(c))) {
        conn_close(c);
        return;
    }
    conn_arm(c);
}

static void stream_start(Conn *c)
{
    struct itimerspec every = {{0, 1000000}, {0, 1000000}};

    if (n_streams == MAX_STREAMS) {
        c->dead = true;
        return;
    }
    if (!n_streams) {
        timerfd_settime(tick_fd, 0, &every, NULL);
    }
    streams[n_streams++] = c;
}

/* As many records as milliseconds have passed: twins keep step by the guest's clock. */
static void stream_tick(void)
{
    struct itimerspec off = {0};
    uint64_t ticks = 0;

    if (read(tick_fd, &ticks, sizeof(ticks)) != sizeof(ticks)) {
        return;
    }
    ticks = ticks < 5000 ? ticks : 5000;
    for (int i = n_streams - 1; i >= 0; i--) {
        Conn *c = streams[i];

        for (uint64_t k = 0; k < ticks && out_pending(c) < STREAM_HIGH; k++) {
            char rec[STREAM_RECORD + 8];
            unsigned long long n = c->counter++;

            snprintf(rec, sizeof(rec), STREAM_FORMAT, n,
                     (unsigned long long)pattern_word(0, n));
            out_add(c, rec, STREAM_RECORD);
        }
        conn_ready(c, 0);
    }
    if (!n_streams) {
        timerfd_settime(tick_fd, 0, &off, NULL);
    }
}

/* A connection of the guest's, however it came to be. */
static void conn_new(int fd, int port)
{
    struct epoll_event ev = {.events = EPOLLIN};
    Conn *c = calloc(1, sizeof(*c));
    int one = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    c->fd = fd;
    c->port = port;
    c->in = malloc(IN_SIZE);
    c->events = ev.events;
    ev.data.ptr = c;
    epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev);
    workload.conns++;
    if (c->port == PORT_STREAM) {
        stream_start(c);
    }
    conn_ready(c, 0);
}

static void dial(Conn *asker, int port, int service)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in sin;
    socklen_t len = sizeof(sin);

    if (fd < 0 || getpeername(asker->fd, (void *)&sin, &len) < 0) {
        asker->dead = true;
        return;
    }
    sin.sin_port = htons(port);
    if (connect(fd, (void *)&sin, sizeof(sin)) < 0 && errno != EINPROGRESS) {
        close(fd);
        asker->dead = true;
        return;
    }
    conn_new(fd, service);
}

static void listener_ready(Conn *l)
{
    for (int i = 0; i < 64; i++) {
        int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0) {
            return;
        }
        conn_new(fd, l->port);
    }
}

static void udp_ready(int fd)
{
    for (int i = 0; i < 64; i++) {
        struct sockaddr_storage from;
        socklen_t len = sizeof(from);
        ssize_t n = recvfrom(fd, scratch, sizeof(scratch), 0, (void *)&from, &len);

        if (n < 0) {
            return;
        }
        workload.udp_count++;
        if (sendto(fd, scratch, n, 0, (void *)&from, len) < 0 && errno != EAGAIN) {
            return;
        }
    }
}

static void add_special(int fd, int port)
{
    Conn *c = calloc(1, sizeof(*c));
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = c};

    c->fd = fd;
    c->port = port;
    c->listener = true;
    epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev);
}

void services_run(void)
{
    static const int ports[] = {PORT_LINES, PORT_ECHO, PORT_UPLOAD, PORT_STREAM,
                                PORT_CONTROL, PORT_DIAL, PORT_HTTP};

    epfd = epoll_create1(EPOLL_CLOEXEC);
    tick_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    for (size_t i = 0; i < sizeof(ports) / sizeof(ports[0]); i++) {
        add_special(listen_on(ports[i], SOCK_STREAM | SOCK_NONBLOCK), ports[i]);
    }
    add_special(listen_on(PORT_UDP, SOCK_DGRAM | SOCK_NONBLOCK), PORT_UDP);
    add_special(tick_fd, 0);
    printf("COLO-GUEST-READY\n");
    for (;;) {
        struct epoll_event ev[64];
        int n = epoll_wait(epfd, ev, 64, -1);
        bool tick = false;

        for (int i = 0; i < n; i++) {
            Conn *c = ev[i].data.ptr;

            if (!c->listener) {
                conn_ready(c, ev[i].events);
            } else if (c->port == PORT_UDP) {
                udp_ready(c->fd);
            } else if (c->port) {
                listener_ready(c);
            } else {
                tick = true;
            }
        }
        /* Last: it may close connections that are in ev[]. */
        if (tick) {
            stream_tick();
        }
    }
}
