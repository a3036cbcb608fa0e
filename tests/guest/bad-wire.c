/*
 * bad-wire: the cable between a network stack of this machine and a front-end.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Usage: bad-wire --tap NAME --fd N --control FIFO [--seed N] [--isn N] [--ts N]
 *
 * Takes the place of an emulator's NIC. Makes a tap device, which a network namespace uses
 * as its only NIC, and joins it to the datagram socket N that a front-end has made for its
 * emulator. Two Linux stacks in two namespaces then play the two guests of a protected pair.
 * It ends with its parent.
 *
 * The wire can be bad, each direction by itself: "in" is towards the stack. Lines on the
 * FIFO set it at any time:
 *     in delay=US jitter=US loss=P dup=P reorder=P      (P from 0 to 1)
 * Frames keep their order but for those that are picked to be reordered (4 ms later).
 * Only TCP suffers: lost ARP would only make tests slow.
 *
 * The two stacks run under one kernel, so their clocks and nearly their initial sequence
 * numbers are the same. --isn and --ts make a stack look like one of another machine:
 * numbers of what it sends are raised, and lowered again in what comes back.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FRAME_SIZE 65600
#define REORDER_US 4000
#define QUEUE_MAX 100000

typedef struct Waiting {
    struct Waiting *next;
    int64_t due;
    uint32_t len;
    uint8_t data[];
} Waiting;

typedef struct Direction {
    double loss, dup, reorder;
    int64_t delay, jitter, last; /* @last: when the frame before is due */
    Waiting *head, *tail;
    unsigned waiting;
    uint64_t frames, lost;
} Direction;

static Direction in, out;
static uint32_t isn_shift, ts_shift;
static uint64_t rnd_state = 1;
static int tap = -1, peer = -1, control = -1;
static Waiting *unsent, **unsent_end = &unsent; /* what the peer's socket did not take */

static void die(const char *what)
{
    fprintf(stderr, "bad-wire: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}

static double rnd(void)
{
    rnd_state ^= rnd_state << 13;
    rnd_state ^= rnd_state >> 7;
    rnd_state ^= rnd_state << 17;
    return (rnd_state >> 11) / 9007199254740992.0;
}

/* --- Sequence numbers and timestamps --- */

static uint32_t get32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, 4);
    return ntohl(v);
}

static void raise32(uint8_t *p, uint32_t by)
{
    uint32_t v = htonl(get32(p) + by);

    memcpy(p, &v, 4);
}

/* The TCP header of a frame, or NULL; @left: bytes from there on. */
static uint8_t *find_tcp(uint8_t *f, uint32_t len, uint32_t *left)
{
    uint32_t at = 14;

    if (len < 34) {
        return NULL;
    }
    if (f[12] == 8 && f[13] == 0) {
        if (f[23] != 6 || (f[20] & 0x1f) || f[21]) {
            return NULL;
        }
        at += (f[14] & 15) * 4;
    } else if (f[12] == 0x86 && f[13] == 0xdd && len >= 54 && f[20] == 6) {
        at += 40;
    } else {
        return NULL;
    }
    if (len < at + 20) {
        return NULL;
    }
    *left = len - at;
    return f + at;
}

static uint32_t sum16(const uint8_t *p, uint32_t n)
{
    uint32_t s = 0;

    for (; n > 1; n -= 2, p += 2) {
        s += p[0] << 8 | p[1];
    }
    return s + (n ? p[0] << 8 : 0);
}

static void set_checksum(uint8_t *frame, uint8_t *tcp, uint32_t left)
{
    bool v6 = frame[12] == 0x86;
    uint32_t len = v6 ? (uint32_t)(frame[18] << 8 | frame[19]) /* no extension headers */
                      : (uint32_t)(frame[16] << 8 | frame[17]) - (tcp - frame - 14);
    uint32_t s;

    if (len > left) {
        return;
    }
    tcp[16] = tcp[17] = 0;
    s = sum16(tcp, len) + (v6 ? sum16(frame + 22, 32) : sum16(frame + 26, 8)) + 6 + len;
    while (s >> 16) {
        s = (s & 0xffff) + (s >> 16);
    }
    s = ~s & 0xffff;
    tcp[16] = s >> 8;
    tcp[17] = s;
}

/* Between the stack's numbers and those that the outside sees. */
static void shift(uint8_t *frame, uint8_t *tcp, uint32_t left, bool inward)
{
    uint32_t head = (tcp[12] >> 4) * 4u, isn = inward ? -isn_shift : isn_shift;
    uint8_t flags = tcp[13];
    bool ack = flags & 0x10;

    if (head > left) {
        return;
    }
    if (inward ? ack : !((flags & 0x04) && ack && get32(tcp + 4) == 0)) {
        raise32(tcp + (inward ? 8 : 4), isn);
    }
    for (uint32_t at = 20; at < head && tcp[at] != 0;) {
        uint32_t n = tcp[at] == 1 ? 1 : at + 1 < head ? tcp[at + 1] : 0;

        if (n == 0 || (tcp[at] != 1 && n < 2) || at + n > head) {
            break;
        }
        if (tcp[at] == 8 && n == 10 && !inward) {
            raise32(tcp + at + 2, ts_shift);
        } else if (tcp[at] == 8 && n == 10 && ack) {
            raise32(tcp + at + 6, -ts_shift);
        } else if (tcp[at] == 5 && inward) {
            for (uint32_t i = 2; i + 4 <= n; i += 4) {
                raise32(tcp + at + i, isn);
            }
        }
        at += n;
    }
    set_checksum(frame, tcp, left);
}

/* An ICMP error quotes what the stack sent as the outside saw it. */
static void shift_quoted(uint8_t *f, uint32_t len)
{
    uint32_t icmp = 14 + (f[14] & 15) * 4u, quoted = icmp + 8, tcp, sum;

    if (len < 42 || f[12] != 8 || f[13] != 0 || f[23] != 1 || len < quoted + 20 ||
        (f[icmp] != 3 && f[icmp] != 11 && f[icmp] != 12) || f[quoted + 9] != 6) {
        return;
    }
    tcp = quoted + (f[quoted] & 15) * 4u;
    len = 14 + (uint32_t)(f[16] << 8 | f[17]) < len ? 14 + (uint32_t)(f[16] << 8 | f[17]) : len;
    if (len < tcp + 8) {
        return;
    }
    raise32(f + tcp + 4, -isn_shift);
    f[icmp + 2] = f[icmp + 3] = 0;
    sum = sum16(f + icmp, len - icmp);
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    f[icmp + 2] = ~sum >> 8;
    f[icmp + 3] = ~sum;
}

/* --- Delay and loss --- */

static Waiting *waiting_new(const uint8_t *data, uint32_t len, int64_t due)
{
    Waiting *w = malloc(sizeof(*w) + len);

    if (!w) {
        die("malloc");
    }
    w->next = NULL;
    w->due = due;
    w->len = len;
    memcpy(w->data, data, len);
    return w;
}

static void enqueue(Direction *d, const uint8_t *data, uint32_t len, int64_t due)
{
    Waiting **at = &d->head, *w;

    if (d->waiting >= QUEUE_MAX) {
        d->lost++;
        return;
    }
    w = waiting_new(data, len, due);
    if (d->tail && d->tail->due <= due) {
        at = &d->tail->next;
    }
    while (*at && (*at)->due <= due) {
        at = &(*at)->next;
    }
    w->next = *at;
    *at = w;
    if (!w->next) {
        d->tail = w;
    }
    d->waiting++;
}

static void to_stack(const uint8_t *data, uint32_t len)
{
    if (write(tap, data, len) < 0 && errno != EAGAIN && errno != EIO) {
        die("write to tap");
    }
}

/* Whether the peer has taken it, or never will. */
static bool send_to_peer(const uint8_t *data, uint32_t len)
{
    return send(peer, data, len, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0 ||
           (errno != EAGAIN && errno != ENOBUFS && errno != EINTR);
}

static void flush_peer(void)
{
    Waiting *w;

    while ((w = unsent) && send_to_peer(w->data, w->len)) {
        unsent = w->next;
        unsent_end = unsent ? unsent_end : &unsent;
        free(w);
    }
}

static void to_peer(const uint8_t *data, uint32_t len)
{
    if (unsent || !send_to_peer(data, len)) {
        *unsent_end = waiting_new(data, len, 0);
        unsent_end = &(*unsent_end)->next;
    }
}

static void pass(Direction *d, const uint8_t *data, uint32_t len)
{
    if (d == &in) {
        to_stack(data, len);
    } else {
        to_peer(data, len);
    }
}

static void take(Direction *d, uint8_t *data, uint32_t len)
{
    uint32_t left = 0;
    uint8_t *tcp = find_tcp(data, len, &left);
    int64_t due = 0;

    d->frames++;
    if (tcp && (isn_shift || ts_shift)) {
        shift(data, tcp, left, d == &in);
    } else if (d == &in && isn_shift) {
        shift_quoted(data, len);
    }
    if (tcp && d->loss > 0 && rnd() < d->loss) {
        d->lost++;
        return;
    }
    if (d->delay || d->jitter || d->head) {
        due = now_us() + d->delay + (int64_t)(d->jitter * rnd());
        due = due > d->last ? due : d->last;
        d->last = due;
    }
    if (tcp && d->reorder > 0 && rnd() < d->reorder) {
        due = now_us() + d->delay + REORDER_US;
    }
    for (int copies = tcp && d->dup > 0 && rnd() < d->dup ? 2 : 1; copies; copies--) {
        if (due) {
            enqueue(d, data, len, due);
        } else {
            pass(d, data, len);
        }
    }
}

static void release_due(Direction *d, int64_t now)
{
    Waiting *w;

    while ((w = d->head) && w->due <= now) {
        d->head = w->next;
        d->tail = d->head ? d->tail : NULL;
        d->waiting--;
        pass(d, w->data, w->len);
        free(w);
    }
}

/* --- Where frames come from --- */

static void read_tap(void)
{
    static uint8_t buf[FRAME_SIZE];

    for (int i = 0; i < 64; i++) {
        ssize_t n = read(tap, buf, sizeof(buf));

        if (n <= 0) {
            return;
        }
        take(&out, buf, n);
    }
}

static void read_peer(void)
{
    static uint8_t buf[FRAME_SIZE];

    for (int i = 0; i < 64; i++) {
        ssize_t n = recv(peer, buf, sizeof(buf), MSG_DONTWAIT);

        if (n <= 0) {
            return;
        }
        take(&in, buf, n);
    }
}

static void set_direction(char *line)
{
    Direction *d = !strncmp(line, "in ", 3) ? &in : !strncmp(line, "out ", 4) ? &out : NULL;
    char *word, *rest = NULL;

    for (word = d ? strtok_r(line, " ", &rest) : NULL; word;
         word = strtok_r(NULL, " ", &rest)) {
        char *eq = strchr(word, '=');
        double v = eq ? strtod(eq + 1, NULL) : 0;

        d->delay = eq && !strncmp(word, "delay", 5) ? (int64_t)v : d->delay;
        d->jitter = eq && !strncmp(word, "jitter", 6) ? (int64_t)v : d->jitter;
        d->loss = eq && !strncmp(word, "loss", 4) ? v : d->loss;
        d->dup = eq && !strncmp(word, "dup", 3) ? v : d->dup;
        d->reorder = eq && !strncmp(word, "reorder", 7) ? v : d->reorder;
    }
}

static void read_control(void)
{
    static char buf[1024];
    static size_t have;
    ssize_t n = read(control, buf + have, sizeof(buf) - 1 - have);
    char *end;

    have += n > 0 ? n : 0;
    buf[have] = 0;
    while ((end = strchr(buf, '\n'))) {
        *end = 0;
        set_direction(buf);
        have -= end + 1 - buf;
        memmove(buf, end + 1, have + 1);
    }
}

static int make_tap(const char *name)
{
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr) < 0) {
        die(name);
    }
    return fd;
}

static void run(void)
{
    enum { CONTROL, TAP, PEER };

    for (;;) {
        struct pollfd p[] = {
            {control, POLLIN, 0},
            {tap, POLLIN, 0},
            {peer, POLLIN | (unsent ? POLLOUT : 0), 0},
        };
        int64_t due = INT64_MAX, left;
        struct timespec t;

        due = in.head && in.head->due < due ? in.head->due : due;
        due = out.head && out.head->due < due ? out.head->due : due;
        left = due == INT64_MAX ? 3600000000ll : due - now_us();
        left = left < 0 ? 0 : left;
        t = (struct timespec){left / 1000000, left % 1000000 * 1000};
        if (ppoll(p, 3, &t, NULL) < 0 && errno != EINTR) {
            die("poll");
        }
        if (p[CONTROL].revents) {
            read_control();
        }
        if (p[TAP].revents) {
            read_tap();
        }
        if (p[PEER].revents & POLLHUP) {
            exit(0);
        }
        if (p[PEER].revents & POLLIN) {
            read_peer();
        }
        release_due(&in, now_us());
        release_due(&out, now_us());
        flush_peer();
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"tap", 1, 0, 't'},  {"fd", 1, 0, 'f'}, {"control", 1, 0, 'c'}, {"seed", 1, 0, 's'},
        {"isn", 1, 0, 'i'},  {"ts", 1, 0, 'T'}, {0, 0, 0, 0}};
    const char *name = NULL, *fifo = NULL;
    int o;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (o) {
        case 't': name = optarg; break;
        case 'f': peer = atoi(optarg); break;
        case 'c': fifo = optarg; break;
        case 's': rnd_state = strtoull(optarg, NULL, 0) * 2 + 1; break;
        case 'i': isn_shift = strtoul(optarg, NULL, 0); break;
        case 'T': ts_shift = strtoul(optarg, NULL, 0); break;
        default: return 2;
        }
    }
    if (!name || peer < 0 || !fifo || getppid() == 1) {
        fprintf(stderr, "usage: bad-wire --tap NAME --fd N --control FIFO\n");
        return 2;
    }
    control = open(fifo, O_RDWR | O_NONBLOCK | O_CLOEXEC); /* never at its end */
    if (control < 0) {
        die(fifo);
    }
    tap = make_tap(name);
    puts("bad-wire: ready");
    fflush(stdout);
    run();
}
