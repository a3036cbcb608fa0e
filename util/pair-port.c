/*
 * The pair port: sockets of who answers and of who asks.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A thread of its own answers, so that a side whose main loop waits for something is not taken
 * for dead. It waits for nobody: a client that asks has its answer at once; one that says
 * nothing gets it after a moment, without proof; all are cut off another moment later. Between
 * answer and close it reads what the client may still send, as the close would otherwise be a
 * reset that overtakes the answer. Clients beyond CLIENTS_MAX push out the oldest one, so
 * strangers that hold their connections do not keep the peer away.
 */
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/deadline.h"
#include "util/error.h"
#include "util/pair-wire.h"

#define MOMENT_US 200000
#define CLIENTS_MAX 16

typedef struct Client {
    int fd;
    int64_t end_us; /* not answered: answer then; answered: close then */
    bool answered;
    char said[PAIR_QUESTION_MAX];
    size_t n_said;
} Client;

struct PairPort {
    int fd, end_fd;
    GThread *thread;
    PairKey key;
    char *(*line)(void *opaque);
    void *opaque;
    int reflected;               /* atomic */
    Client clients[CLIENTS_MAX]; /* the thread's; the oldest first */
    unsigned n_clients;
};

static struct addrinfo *resolve(const char *host, unsigned port, int flags, GError **errp)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
    struct addrinfo *res = NULL;
    char service[8];

    snprintf(service, sizeof(service), "%u", port);
    int r = getaddrinfo(host, service, &hints, &res);
    if (r != 0) {
        colo_error_set(errp, "'%s': %s", host, gai_strerror(r));
        return NULL;
    }
    return res;
}

/* --- Answering; the port's thread --- */

static void drop_client(PairPort *p, unsigned i)
{
    close(p->clients[i].fd);
    p->n_clients--;
    memmove(p->clients + i, p->clients + i + 1, (p->n_clients - i) * sizeof(Client));
}

static void answer(PairPort *p, Client *c)
{
    g_autofree char *line = p->line(p->opaque);
    PairQuestion q;
    bool asked = pair_question_parse(c->said, c->n_said, &q);
    PairQuestion mine;

    pair_question_new(&mine);
    if (asked && q.asker == mine.asker) {
        g_atomic_int_inc(&p->reflected);
    }
    g_autofree char *text = pair_answer_seal(line, &p->key, asked ? &q : NULL);
    /* It fits into any socket's buffer. */
    ssize_t n = send(c->fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT);
    shutdown(c->fd, SHUT_WR);
    c->answered = true;
    c->end_us = n > 0 ? g_get_monotonic_time() + MOMENT_US : 0;
}

/* False: it is gone. */
static bool hear(PairPort *p, Client *c)
{
    char drop[256];
    char *to = c->answered ? drop : c->said + c->n_said;
    size_t room = c->answered ? sizeof(drop) : sizeof(c->said) - c->n_said;
    ssize_t n = recv(c->fd, to, room, MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return true;
    }
    if (c->answered) {
        return n > 0;
    }
    if (n < 0) {
        return false;
    }
    c->n_said += n;
    if (n == 0 || memchr(to, '\n', n) || c->n_said == sizeof(c->said)) {
        answer(p, c);
    }
    return true;
}

static void accept_client(PairPort *p)
{
    int fd = accept4(p->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd >= 0) {
        if (p->n_clients == CLIENTS_MAX) {
            drop_client(p, 0);
        }
        p->clients[p->n_clients++] =
            (Client){.fd = fd, .end_us = g_get_monotonic_time() + MOMENT_US};
    }
}

/* Until somebody says something or a moment is over; false: it is the end. */
static bool turn(PairPort *p)
{
    struct pollfd pfd[CLIENTS_MAX + 2] = {{p->fd, POLLIN, 0}, {p->end_fd, POLLIN, 0}};
    int64_t now = g_get_monotonic_time(), wait_us = p->n_clients ? MOMENT_US : -1;
    unsigned n = p->n_clients;

    for (unsigned i = 0; i < n; i++) {
        pfd[i + 2] = (struct pollfd){p->clients[i].fd, POLLIN, 0};
        wait_us = MIN(wait_us, MAX(p->clients[i].end_us - now, 0));
    }
    if (poll(pfd, n + 2, n ? (int)((wait_us + 999) / 1000) : -1) < 0 && errno != EINTR) {
        return false;
    }
    now = g_get_monotonic_time();
    for (unsigned i = n; i-- > 0;) {
        Client *c = &p->clients[i];
        if (pfd[i + 2].revents && !hear(p, c)) {
            drop_client(p, i);
        } else if (now >= c->end_us && !c->answered) {
            answer(p, c);
        } else if (now >= c->end_us) {
            drop_client(p, i);
        }
    }
    if (pfd[0].revents) {
        accept_client(p);
    }
    return !pfd[1].revents;
}

static gpointer port_thread(gpointer opaque)
{
    PairPort *p = opaque;

    while (turn(p)) {
    }
    while (p->n_clients) {
        drop_client(p, 0);
    }
    return NULL;
}

/* --- Its owner --- */

PairPort *pair_port_new(const char *host, unsigned port, const PairKey *key,
                        char *(*line)(void *opaque), void *opaque, GError **errp)
{
    struct addrinfo *res = resolve(host, port, AI_PASSIVE, errp);
    int one = 1;

    if (!res) {
        return NULL;
    }
    int fd = socket(res->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    int err = bind(fd, res->ai_addr, res->ai_addrlen) || listen(fd, 8) ? errno : 0;
    freeaddrinfo(res);
    if (err) {
        colo_error_set_errno(errp, err, "%s:%u", host, port);
        close(fd);
        return NULL;
    }
    PairPort *p = g_new0(PairPort, 1);
    p->fd = fd;
    p->end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    p->key = key ? *key : (PairKey){.len = 0};
    p->line = line;
    p->opaque = opaque;
    p->thread = g_thread_new("colo-pair-port", port_thread, p);
    return p;
}

void pair_port_free(PairPort *p)
{
    uint64_t one = 1;

    if (!p) {
        return;
    }
    ssize_t n = write(p->end_fd, &one, sizeof(one));
    (void)n;
    g_thread_join(p->thread);
    close(p->fd);
    close(p->end_fd);
    explicit_bzero(&p->key, sizeof(p->key));
    g_free(p);
}

unsigned pair_port_reflected(const PairPort *p)
{
    return g_atomic_int_get(&p->reflected);
}

/* --- Asking --- */

static int connect_bounded(const struct addrinfo *a, int timeout_ms, int *err)
{
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t len = sizeof(*err);

    *err = fd < 0 ? errno : 0;
    if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) < 0) {
        struct pollfd pfd = {fd, POLLOUT, 0};
        *err = errno;
        if (*err == EINPROGRESS) {
            int r = poll(&pfd, 1, timeout_ms);
            *err = ETIMEDOUT;
            if (r > 0) {
                getsockopt(fd, SOL_SOCKET, SO_ERROR, err, &len);
            }
        }
    }
    if (*err && fd >= 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

int pair_connect(const char *host, unsigned port, unsigned timeout_ms, int *err, GError **errp)
{
    struct addrinfo *res = resolve(host, port, 0, errp);
    int fd = -1, worst = 0, one = 0;

    if (err) {
        *err = 0;
    }
    if (!res) {
        return -1;
    }
    for (struct addrinfo *a = res; a && fd < 0; a = a->ai_next) {
        fd = connect_bounded(a, timeout_ms, &one);
        /* Of several addresses the one that proves least. */
        worst = worst && worst != ECONNREFUSED ? worst : one;
    }
    freeaddrinfo(res);
    if (fd < 0) {
        colo_error_set_errno(errp, worst, "%s:%u", host, port);
        if (err) {
            *err = worst;
        }
    }
    return fd;
}

static bool put_question(int fd, const PairQuestion *q, GError **errp)
{
    g_autofree char *text = pair_question_format(q);
    ssize_t n = send(fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT);

    if (n < (ssize_t)strlen(text)) {
        colo_error_set_errno(errp, n < 0 ? errno : EAGAIN, "connection");
        return false;
    }
    return true;
}

/* Up to the stream's end; more than an answer has is read no further. */
static bool read_all(int fd, GString *text, int64_t deadline, GError **errp)
{
    while (text->len <= PAIR_ANSWER_MAX) {
        char part[1024];
        int left = deadline_left_ms(deadline);
        struct pollfd pfd = {fd, POLLIN, 0};

        if (left == 0 || poll(&pfd, 1, left) == 0) {
            colo_error_set(errp, "it does not answer");
            return false;
        }
        ssize_t n = recv(fd, part, sizeof(part), MSG_DONTWAIT);
        if (n == 0) {
            return true;
        } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
            colo_error_set_errno(errp, errno, "connection");
            return false;
        } else if (n > 0) {
            g_string_append_len(text, part, n);
        }
    }
    return true;
}

static void explain(PairRefusal r, GError **errp)
{
    static const char *const why[PAIR_REFUSAL_MAX] = {
        [PAIR_MALFORMED] = "what answers there is no qemu-colo",
        [PAIR_UNSIGNED] = "the answer has no proof: what answers there has no key-file (give both "
                          "sides the same), or only pretends to be the peer",
        [PAIR_FORGED] = "the answer's proof is wrong: the key-files of both sides differ, or what "
                        "answers there only pretends to be the peer",
    };

    colo_error_set(errp, "%s", why[r]);
}

PairHearing pair_ask(const char *host, unsigned port, unsigned timeout_ms, const PairKey *key,
                     char **line, PairRefusal *refusal, GError **errp)
{
    int64_t deadline = g_get_monotonic_time() + timeout_ms * 1000LL;
    g_autoptr(GString) text = g_string_new(NULL);
    PairQuestion q;
    int err = 0;

    *line = NULL;
    *refusal = PAIR_OK;
    int fd = pair_connect(host, port, timeout_ms, &err, errp);
    if (fd < 0) {
        return err == ECONNREFUSED ? PAIR_NOBODY : PAIR_SILENT;
    }
    pair_question_new(&q);
    PairHearing h = PAIR_SILENT;
    if (put_question(fd, &q, errp) && read_all(fd, text, deadline, errp)) {
        *refusal = pair_answer_open(text->str, text->len, key, &q, line);
        h = *refusal == PAIR_OK ? PAIR_HEARD : PAIR_NOT_BELIEVED;
    }
    close(fd);
    if (h == PAIR_NOT_BELIEVED) {
        explain(*refusal, errp);
    }
    if (h != PAIR_HEARD) {
        g_prefix_error(errp, "%s:%u: ", host, port);
    }
    return h;
}
