/*
 * The checkpoint thread's own QMP connection to the emulator.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QEMU writes each QMP message on one line; "id" stands last in a success and first in an
 * error, in every QEMU since 2.x.
 *
 * Ids are constants, so that nothing is allocated between stop and cont, and are used again
 * and again. An answer that nobody waited for (a wait timed out, or a command before it in
 * one write failed) must not be taken for that of the next command of its id: what was sent
 * is remembered until its answer has come, and only the latest of an id counts.
 *
 * The emulator reads its monitor byte by byte, with several system calls for each, and
 * without the capability "oob" reads nothing of the next command before it has answered the
 * last: a command of 100 bytes takes it most of a millisecond. So we ask for "oob" and let a
 * command wait there all but its last brace ("held"). A held command that something else
 * must overtake is made a wrong one; its error answers it, in order, like any other.
 */
#include "migration/child-qmp.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "util/deadline.h"
#include "util/error.h"
#include "util/trace.h"

#define LINE_MAX_BYTES (4u << 20)
#define EVENTS_MAX 32
#define SENT_MAX 64 /* commands without an answer; the emulator answers in order */
#define ID_MAX 24
#define LAST_BYTES "}\n"               /* what a held command lacks */
#define SPOIL ",\"held\":0" LAST_BYTES /* makes it one that no emulator obeys */

struct ChildQmp {
    int fd;
    size_t have;     /* bytes in buf */
    size_t consumed; /* of which were handed out as a line */
    char *buf;
    unsigned n_events;
    char events[EVENTS_MAX][400]; /* recent events, each cut */
    bool held; /* the last one sent lacks its end */
    unsigned n_sent;
    char sent[SENT_MAX][ID_MAX]; /* ids of commands without an answer, oldest first */
};

/* Next line (without its end), or NULL with @errp; borrowed until the next call. */
static char *next_line(ChildQmp *q, int64_t deadline, GError **errp)
{
    if (q->consumed) {
        memmove(q->buf, q->buf + q->consumed, q->have - q->consumed);
        q->have -= q->consumed;
        q->consumed = 0;
    }
    for (;;) {
        char *nl = memchr(q->buf, '\n', q->have);
        if (nl) {
            q->consumed = nl + 1 - q->buf;
            *nl = 0;
            return q->buf;
        }
        if (q->have == LINE_MAX_BYTES) {
            colo_error_set(errp, "the emulator's monitor sent an endless line");
            return NULL;
        }
        struct pollfd pfd = {q->fd, POLLIN, 0};
        int r = poll(&pfd, 1, deadline_left_ms(deadline));
        if (r == 0) {
            colo_error_set(errp, "the emulator's monitor does not answer");
            return NULL;
        }
        ssize_t n = recv(q->fd, q->buf + q->have, LINE_MAX_BYTES - q->have, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            colo_error_set(errp, "the emulator has ended");
            return NULL;
        }
        q->have += n > 0 ? n : 0;
    }
}

static void note_event(ChildQmp *q, const char *line)
{
    if (q->n_events == EVENTS_MAX) {
        memmove(q->events[0], q->events[1], sizeof(q->events[0]) * (EVENTS_MAX - 1));
        q->n_events--;
    }
    g_strlcpy(q->events[q->n_events++], line, sizeof(q->events[0]));
}

static bool line_is_event(const char *line)
{
    return strncmp(line, "{\"timestamp\"", 12) == 0;
}

/* What stands before the "error" of an answer to @id. */
static size_t error_head(char head[80], const char *id)
{
    return snprintf(head, 80, "{\"id\": \"%s\", ", id);
}

static bool line_has_id(const char *line, const char *id)
{
    char text[80];
    size_t n = error_head(text, id);

    if (strncmp(line, text, n) == 0) {
        return true;
    }
    n = snprintf(text, sizeof(text), ", \"id\": \"%s\"}", id);
    size_t len = strlen(line);
    while (len > 0 && g_ascii_isspace(line[len - 1])) {
        len--;
    }
    return len >= n && strncmp(line + len - n, text, n) == 0;
}

static bool answer_is_error(const char *line, const char *id)
{
    char head[80];
    size_t n = error_head(head, id);

    line += strncmp(line, head, n) == 0 ? n : 1;
    return strncmp(line, "\"error\"", 7) == 0;
}

static void drop_sent(ChildQmp *q, unsigned i)
{
    memmove(q->sent[i], q->sent[i + 1], sizeof(q->sent[0]) * (--q->n_sent - i));
}

/* Remember the ids of the commands in @text, a line each: the last "id" of a line. */
static void note_sent(ChildQmp *q, const char *text)
{
    static const char key[] = "\"id\":\"";

    while (*text) {
        const char *end = strchrnul(text, '\n'), *id = NULL;
        for (const char *p = text; (p = strstr(p, key)) && p < end;) {
            p += sizeof(key) - 1;
            id = p;
        }
        if (id) {
            if (q->n_sent == SENT_MAX) {
                drop_sent(q, 0);
            }
            size_t len = strcspn(id, "\"");
            g_strlcpy(q->sent[q->n_sent++], id, MIN(len + 1, (size_t)ID_MAX));
        }
        text = end + (*end != 0);
    }
}

/* Whether the answer @line is to the latest command of @id; it is crossed off. */
static bool is_latest_answer(ChildQmp *q, const char *line, const char *id)
{
    bool latest = false;

    for (unsigned i = 0; i < q->n_sent; i++) {
        if (!line_has_id(line, q->sent[i])) {
            continue;
        }
        latest = strcmp(q->sent[i], id) == 0;
        for (unsigned k = i + 1; k < q->n_sent; k++) {
            latest = latest && strcmp(q->sent[k], id) != 0;
        }
        drop_sent(q, i);
        break;
    }
    return latest;
}

static bool event_matches(const char *line, const char *name, const char *needle);

/* The reply line with @id, or the event @or, whatever comes first, or NULL. */
static const char *wait_line(ChildQmp *q, const char *id, const char *or, int timeout_ms,
                             GError **errp)
{
    int64_t deadline = g_get_monotonic_time() + timeout_ms * 1000LL;

    for (;;) {
        const char *line = next_line(q, deadline, errp);
        if (!line) {
            g_prefix_error(errp, "%s: ", id);
            return NULL;
        }
        if (line_is_event(line)) {
            note_event(q, line);
            if (or && event_matches(line, or, NULL)) {
                return line;
            }
        } else if (is_latest_answer(q, line, id)) {
            return line;
        }
    }
}

static void set_reply_error(const char *line, GError **errp)
{
    g_autoptr(JsonParser) p = json_parser_new();
    const char *desc = NULL;

    if (json_parser_load_from_data(p, line, -1, NULL)) {
        JsonObject *o = json_node_get_object(json_parser_get_root(p));
        JsonObject *e = json_object_has_member(o, "error")
                            ? json_object_get_object_member(o, "error")
                            : NULL;
        desc = e ? json_object_get_string_member_with_default(e, "desc", NULL) : NULL;
    }
    colo_error_set(errp, "emulator: %s", desc ? desc : line);
}

/* @head, then @text, whose last command is held if @hold. */
static bool write_commands(ChildQmp *q, const char *head, const char *text, bool hold,
                           GError **errp)
{
    size_t len = strlen(text) - (hold ? strlen(LAST_BYTES) : 0);
    struct iovec iov[2] = {{(void *)head, strlen(head)}, {(void *)text, len}};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};

    note_sent(q, text);
    q->held = hold;
    while (iov[0].iov_len + iov[1].iov_len > 0) {
        ssize_t n = sendmsg(q->fd, &msg, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            colo_error_set_errno(errp, errno, "the emulator's monitor");
            return false;
        }
        for (int i = 0; i < 2; i++) {
            size_t part = MIN((size_t)n, iov[i].iov_len);
            iov[i].iov_base = (char *)iov[i].iov_base + part;
            iov[i].iov_len -= part;
            n -= part;
        }
    }
    return true;
}

bool child_qmp_send(ChildQmp *q, const char *text, GError **errp)
{
    return write_commands(q, q->held ? SPOIL : "", text, false, errp);
}

void child_qmp_drain(ChildQmp *q)
{
    const char *line;

    while ((line = next_line(q, 0, NULL))) {
        if (line_is_event(line)) {
            note_event(q, line);
        } else {
            is_latest_answer(q, line, "");
        }
    }
}

bool child_qmp_hold(ChildQmp *q, const char *text, GError **errp)
{
    return write_commands(q, q->held ? SPOIL : "", text, true, errp);
}

bool child_qmp_ready(ChildQmp *q, const char *text, const char *id, GError **errp)
{
    child_qmp_drain(q);
    return child_qmp_holds(q, id) || child_qmp_hold(q, text, errp);
}

bool child_qmp_holds(const ChildQmp *q, const char *id)
{
    return q->held && strcmp(q->sent[q->n_sent - 1], id) == 0;
}

bool child_qmp_go(ChildQmp *q, const char *id, GError **errp)
{
    if (!child_qmp_holds(q, id)) {
        colo_error_set(errp, "command '%s' does not wait in the emulator", id);
        return false;
    }
    return write_commands(q, LAST_BYTES, "", false, errp);
}

bool child_qmp_wait(ChildQmp *q, const char *id, int timeout_ms, GError **errp)
{
    const char *line = wait_line(q, id, NULL, timeout_ms, errp);

    if (!line) {
        return false;
    }
    if (answer_is_error(line, id)) {
        set_reply_error(line, errp);
        return false;
    }
    return true;
}

int child_qmp_wait_either(ChildQmp *q, const char *id, const char *event, int timeout_ms,
                          GError **errp)
{
    const char *line = wait_line(q, id, event, timeout_ms, errp);

    if (!line) {
        return -1;
    }
    if (line_is_event(line)) {
        return 0;
    }
    if (answer_is_error(line, id)) {
        set_reply_error(line, errp);
        return -1;
    }
    return 1;
}

JsonNode *child_qmp_query(ChildQmp *q, const char *text, const char *id, GError **errp)
{
    return child_qmp_send(q, text, errp) ? child_qmp_reply(q, id, errp) : NULL;
}

JsonNode *child_qmp_reply(ChildQmp *q, const char *id, GError **errp)
{
    const char *line = wait_line(q, id, NULL, 30000, errp);

    if (!line) {
        return NULL;
    }
    g_autoptr(JsonParser) p = json_parser_new();
    if (!json_parser_load_from_data(p, line, -1, errp)) {
        return NULL;
    }
    JsonObject *o = json_node_get_object(json_parser_get_root(p));
    if (!json_object_has_member(o, "return")) {
        set_reply_error(line, errp);
        return NULL;
    }
    return json_node_copy(json_object_get_member(o, "return"));
}

static bool event_matches(const char *line, const char *name, const char *needle)
{
    char event[80];

    snprintf(event, sizeof(event), "\"event\": \"%s\"", name);
    return strstr(line, event) && (!needle || strstr(line, needle));
}

bool child_qmp_wait_event(ChildQmp *q, const char *name, const char *needle,
                          int timeout_ms, GError **errp)
{
    int64_t deadline = g_get_monotonic_time() + timeout_ms * 1000LL;

    for (unsigned i = 0; i < q->n_events; i++) {
        if (event_matches(q->events[i], name, needle)) {
            return true;
        }
    }
    for (;;) {
        const char *line = next_line(q, deadline, errp);
        if (!line) {
            g_prefix_error(errp, "event %s: ", name);
            return false;
        }
        if (line_is_event(line)) {
            note_event(q, line);
            if (event_matches(line, name, needle)) {
                return true;
            }
        } else {
            is_latest_answer(q, line, "");
        }
    }
}

void child_qmp_forget_events(ChildQmp *q)
{
    q->n_events = 0;
}

bool child_qmp_ended(const ChildQmp *q)
{
    struct pollfd pfd = {q->fd, 0, 0};

    return poll(&pfd, 1, 0) > 0 && (pfd.revents & (POLLHUP | POLLERR));
}

ChildQmp *child_qmp_new(int fd, GError **errp)
{
    ChildQmp *q = g_new0(ChildQmp, 1);
    int64_t deadline = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;

    q->fd = fd;
    q->buf = g_malloc(LINE_MAX_BYTES);
    const char *line = next_line(q, deadline, errp);
    if (!line || strncmp(line, "{\"QMP\"", 6) != 0) {
        if (line) {
            colo_error_set(errp, "the emulator's monitor greets with '%.40s'", line);
        }
        child_qmp_free(q);
        return NULL;
    }
    bool oob = strstr(line, "\"oob\"");
    if (!child_qmp_send(q, oob ? "{\"execute\":\"qmp_capabilities\",\"arguments\":"
                                 "{\"enable\":[\"oob\"]},\"id\":\"k0\"}\n"
                               : "{\"execute\":\"qmp_capabilities\",\"id\":\"k0\"}\n",
                        errp) ||
        !child_qmp_wait(q, "k0", 30000, errp)) {
        child_qmp_free(q);
        return NULL;
    }
    return q;
}

void child_qmp_free(ChildQmp *q)
{
    if (q) {
        close(q->fd);
        g_free(q->buf);
        g_free(q);
    }
}
