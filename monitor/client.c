/*
 * One QMP client: its input, the queue of its commands, its output.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: answers in the order of the commands, whoever gives them, and no client able to
 * hold up another. One command of a client is carried out at a time (@current); the next
 * starts when it is answered. Out-of-band commands do not wait. Limits: reading stops at
 * QUEUE_MAX waiting commands, or as many out-of-band ones that the emulator has to answer;
 * the next command waits while more than OUT_SOFT bytes of answers are unread; a client that
 * does not read its events is closed at OUT_MAX.
 * A client is never freed inside its own callbacks: qmp_client_close() takes it off the
 * list and an idle source frees it; requests under way lose their @client then.
 */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/deadline.h"
#include "util/error.h"
#include "util/trace.h"

#define QUEUE_MAX 64
#define OUT_SOFT (1024 * 1024)
#define OUT_MAX (16 * 1024 * 1024)
#define FDS_MAX 16

struct QmpClient {
    unsigned number;
    int in_fd, out_fd;
    bool is_socket, pretty, closed, eof;
    bool ready, oob; /* negotiated */
    bool running;    /* in client_run() */
    JsonStream *stream;
    GQueue *queue;       /* QmpRequest: waiting */
    QmpRequest *current; /* being carried out */
    GQueue *oob_current; /* QmpRequest: out of band, being carried out */
    int fds[FDS_MAX];    /* received, oldest first */
    unsigned n_fds;
    GByteArray *out;
    size_t out_pos;
    guint in_tag, out_tag, run_tag;
    void (*gone)(void *opaque);
    void *opaque;
};

/* Room singleton. */
static struct {
    GList *list;
    unsigned counter;
} clients;

static void client_run(QmpClient *c);
static void watch_input(QmpClient *c);

bool qmp_client_ready(QmpClient *c)
{
    return c->ready;
}

bool qmp_client_oob(QmpClient *c)
{
    return c->oob;
}

void qmp_client_negotiated(QmpClient *c, bool oob)
{
    c->ready = true;
    c->oob = oob;
}

unsigned qmp_client_number(QmpClient *c)
{
    return c->number;
}

int qmp_client_take_fd(QmpClient *c)
{
    if (!c->n_fds) {
        return -1;
    }
    int fd = c->fds[0];
    memmove(c->fds, c->fds + 1, --c->n_fds * sizeof(c->fds[0]));
    return fd;
}

/* --- Life --- */

static gboolean client_free(void *opaque)
{
    QmpClient *c = opaque;

    json_stream_free(c->stream);
    g_queue_free_full(c->queue, (GDestroyNotify)qmp_request_free);
    g_queue_free(c->oob_current);
    g_byte_array_unref(c->out);
    while (c->n_fds) {
        close(qmp_client_take_fd(c));
    }
    g_free(c);
    return G_SOURCE_REMOVE;
}

static void drop_tag(guint *tag)
{
    if (*tag) {
        g_source_remove(*tag);
        *tag = 0;
    }
}

void qmp_client_close(QmpClient *c)
{
    if (c->closed) {
        return;
    }
    colo_trace(monitor_client_close, "client %u", c->number);
    c->closed = true;
    clients.list = g_list_remove(clients.list, c);
    drop_tag(&c->in_tag);
    drop_tag(&c->out_tag);
    drop_tag(&c->run_tag);
    if (c->current) {
        c->current->client = NULL;
    }
    for (GList *l = c->oob_current->head; l; l = l->next) {
        ((QmpRequest *)l->data)->client = NULL;
    }
    close(c->in_fd);
    if (c->out_fd != c->in_fd) {
        close(c->out_fd);
    }
    g_idle_add(client_free, c);
}

static void client_gone(QmpClient *c)
{
    void (*gone)(void *) = c->gone;
    void *opaque = c->opaque;

    if (!c->closed) {
        qmp_client_close(c);
        gone(opaque);
    }
}

/* --- Output --- */

static gboolean client_writable(gint fd, GIOCondition cond, gpointer opaque);

/* Write what the descriptor takes; false if the client is gone. */
static bool client_flush(QmpClient *c)
{
    while (c->out_pos < c->out->len) {
        const guint8 *p = c->out->data + c->out_pos;
        size_t len = c->out->len - c->out_pos;
        ssize_t n = c->is_socket ? send(c->out_fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT)
                                 : write(c->out_fd, p, len);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno == EAGAIN) {
            if (!c->out_tag) {
                c->out_tag = g_unix_fd_add(c->out_fd, G_IO_OUT, client_writable, c);
            }
            break;
        }
        if (n < 0) {
            client_gone(c);
            return false;
        }
        c->out_pos += n;
    }
    if (c->out_pos == c->out->len) {
        g_byte_array_set_size(c->out, 0);
        c->out_pos = 0;
    } else if (c->out_pos > c->out->len / 2) {
        g_byte_array_remove_range(c->out, 0, c->out_pos);
        c->out_pos = 0;
    }
    return true;
}

static size_t unread(QmpClient *c)
{
    return c->out->len - c->out_pos;
}

static gboolean client_writable(gint fd, GIOCondition cond, gpointer opaque)
{
    QmpClient *c = opaque;

    c->out_tag = 0;
    if (client_flush(c)) {
        client_run(c);
    }
    return G_SOURCE_REMOVE;
}

static void client_send(QmpClient *c, JsonSpan line)
{
    static const guint8 end[] = "\r\n";

    if (c->closed) {
        return;
    }
    if (unread(c) + line.len > OUT_MAX && unread(c) > OUT_SOFT) {
        colo_report("QMP client %u does not read: closed with %zu bytes unsent", c->number,
                    unread(c));
        client_gone(c);
        return;
    }
    if (c->pretty) {
        g_autoptr(GString) text = g_string_new(NULL);
        json_text_format(text, line, true);
        g_byte_array_append(c->out, (guint8 *)text->str, text->len);
    } else {
        g_byte_array_append(c->out, (const guint8 *)line.text, line.len);
    }
    g_byte_array_append(c->out, end, 2);
    if (!c->out_tag) {
        client_flush(c);
    }
}

void qmp_clients_broadcast(const char *line)
{
    GList *next;

    for (GList *l = clients.list; l; l = next) {
        QmpClient *c = l->data;
        next = l->next;
        if (c->ready) {
            client_send(c, (JsonSpan){line, strlen(line)});
        }
    }
}

/* --- Commands --- */

static gboolean run_later(gpointer opaque)
{
    QmpClient *c = opaque;

    c->run_tag = 0;
    client_run(c);
    return G_SOURCE_REMOVE;
}

void qmp_client_answer(QmpRequest *req, const char *key, JsonSpan value)
{
    QmpClient *c = req->client;

    if (c) {
        g_autoptr(GString) line = g_string_sized_new(value.len + 64);
        bool is_error = strcmp(key, "error") == 0;

        /* The order of QEMU: the id first in an error, last in a success. */
        g_string_append_c(line, '{');
        if (is_error && req->id.text) {
            g_string_append(line, "\"id\": ");
            json_text_format(line, req->id, false);
            g_string_append(line, ", ");
        }
        g_string_append_printf(line, "\"%s\": ", key);
        json_text_format(line, value, false);
        if (!is_error && req->id.text) {
            g_string_append(line, ", \"id\": ");
            json_text_format(line, req->id, false);
        }
        g_string_append_c(line, '}');
        if (!g_queue_remove(c->oob_current, req)) {
            g_assert(c->current == req);
            c->current = NULL;
        }
        /* Not from here: we may be inside a read of the emulator's answers. */
        if (!c->running && !c->run_tag && !c->closed) {
            c->run_tag = g_timeout_add_full(G_PRIORITY_DEFAULT, 0, run_later, c, NULL);
        }
        client_send(c, (JsonSpan){line->str, line->len});
    }
    qmp_request_free(req);
}

void qmp_client_answer_error(QmpRequest *req, const GError *err)
{
    g_autoptr(GString) text = g_string_new("{\"class\": ");

    json_text_append_string(text, colo_error_class_name(
                                      err->domain == COLO_ERROR ? err->code
                                                                : COLO_ERROR_GENERIC));
    g_string_append(text, ", \"desc\": ");
    json_text_append_string(text, err->message);
    g_string_append_c(text, '}');
    qmp_client_answer(req, "error", (JsonSpan){text->str, text->len});
}

static bool has_room(QmpClient *c)
{
    return g_queue_get_length(c->queue) < QUEUE_MAX &&
           g_queue_get_length(c->oob_current) < QUEUE_MAX;
}

/* Take one command out of the stream; false if there is none, or no room for it. */
static bool client_feed(QmpClient *c)
{
    GString *text = NULL;
    GError *err = NULL;

    if (!has_room(c)) {
        return false;
    }
    JsonStreamResult r = json_stream_next(c->stream, &text, &err);
    if (r == JSON_STREAM_EMPTY) {
        return false;
    }
    QmpRequest *req = r == JSON_STREAM_TEXT ? qmp_request_new(c, text)
                                            : qmp_request_new_error(c, err);
    if (req->oob && !req->error && c->oob) {
        g_queue_push_tail(c->oob_current, req);
        qmp_dispatch(req);
    } else {
        g_queue_push_tail(c->queue, req);
    }
    return true;
}

/* Start what can be started, before looking further ahead in the input. */
static void client_run(QmpClient *c)
{
    if (c->running || c->closed) {
        return;
    }
    c->running = true;
    while (!c->closed) {
        if (!c->current && unread(c) <= OUT_SOFT && !g_queue_is_empty(c->queue)) {
            c->current = g_queue_pop_head(c->queue);
            qmp_dispatch(c->current);
        } else if (!client_feed(c)) {
            break;
        }
    }
    c->running = false;
    if (c->closed) {
        return;
    }
    if (c->eof && c->is_socket && !c->current && g_queue_is_empty(c->queue) &&
        g_queue_is_empty(c->oob_current) && !unread(c)) {
        client_gone(c); /* it had sent its last; on standard output events still go out */
        return;
    }
    watch_input(c);
}

/* --- Input --- */

static void receive_fds(QmpClient *c, struct msghdr *msg)
{
    for (struct cmsghdr *cm = CMSG_FIRSTHDR(msg); cm; cm = CMSG_NXTHDR(msg, cm)) {
        if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        size_t n = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(cm) + i * sizeof(int), sizeof(int));
            if (c->n_fds == FDS_MAX) {
                close(qmp_client_take_fd(c));
            }
            c->fds[c->n_fds++] = fd;
        }
    }
}

static ssize_t client_read(QmpClient *c, void *buf, size_t len)
{
    if (!c->is_socket) {
        return read(c->in_fd, buf, len);
    }
    union {
        char buf[CMSG_SPACE(FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } u;
    struct iovec iov = {buf, len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf,
                         .msg_controllen = sizeof(u.buf)};
    ssize_t n = recvmsg(c->in_fd, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n > 0) {
        receive_fds(c, &msg);
    }
    return n;
}

static gboolean client_hung_up(gint fd, GIOCondition cond, gpointer opaque)
{
    QmpClient *c = opaque;

    c->in_tag = 0;
    client_gone(c);
    return G_SOURCE_REMOVE;
}

/* After the end of its input: does the client still wait for answers ("... | socat -
 * unix:")? Only a unix socket tells. */
static bool half_closed(QmpClient *c)
{
    struct pollfd pfd = {c->in_fd, 0, 0};
    int domain = 0;
    socklen_t len = sizeof(domain);

    getsockopt(c->in_fd, SOL_SOCKET, SO_DOMAIN, &domain, &len);
    if (domain != AF_UNIX || poll(&pfd, 1, 0) != 0) {
        return false;
    }
    c->in_tag = g_unix_fd_add(c->in_fd, G_IO_HUP | G_IO_ERR, client_hung_up, c);
    return true;
}

static gboolean client_readable(gint fd, GIOCondition cond, gpointer opaque)
{
    QmpClient *c = opaque;
    char buf[16384];
    ssize_t n = client_read(c, buf, sizeof(buf));

    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return G_SOURCE_CONTINUE;
    }
    if (n <= 0) {
        c->in_tag = 0;
        c->eof = true;
        if (c->is_socket && (n < 0 || !half_closed(c))) {
            client_gone(c);
        } else {
            client_run(c);
        }
        return G_SOURCE_REMOVE;
    }
    json_stream_push(c->stream, buf, n);
    c->in_tag = 0; /* client_run() watches again if it wants more */
    client_run(c);
    return G_SOURCE_REMOVE;
}

static void watch_input(QmpClient *c)
{
    if (!c->in_tag && !c->eof && has_room(c)) {
        c->in_tag = g_unix_fd_add(c->in_fd, G_IO_IN | G_IO_HUP, client_readable, c);
    }
}

QmpClient *qmp_client_new(int in_fd, int out_fd, bool pretty,
                          void (*gone)(void *opaque), void *opaque)
{
    QmpClient *c = g_new0(QmpClient, 1);
    int type;
    socklen_t len = sizeof(type);

    c->number = ++clients.counter;
    c->in_fd = in_fd;
    c->out_fd = out_fd;
    c->is_socket =
        in_fd == out_fd && getsockopt(in_fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0;
    c->pretty = pretty;
    c->gone = gone;
    c->opaque = opaque;
    c->stream = json_stream_new();
    c->queue = g_queue_new();
    c->oob_current = g_queue_new();
    c->out = g_byte_array_new();
    g_unix_set_fd_nonblocking(in_fd, TRUE, NULL);
    g_unix_set_fd_nonblocking(out_fd, TRUE, NULL);
    clients.list = g_list_append(clients.list, c);
    colo_trace(monitor_client_new, "client %u", c->number);
    const char *greeting = child_greeting();
    client_send(c, (JsonSpan){greeting, strlen(greeting)});
    if (!c->closed) {
        watch_input(c);
    }
    return c;
}

void qmp_clients_shutdown(unsigned ms)
{
    gint64 deadline = g_get_monotonic_time() + ms * (gint64)1000;

    while (clients.list) {
        QmpClient *c = clients.list->data;
        while (!c->closed && unread(c)) {
            int left = deadline_left_ms(deadline);
            struct pollfd pfd = {c->out_fd, POLLOUT, 0};
            if (left == 0 || poll(&pfd, 1, left) <= 0 || !client_flush(c)) {
                break;
            }
        }
        qmp_client_close(c);
    }
}
