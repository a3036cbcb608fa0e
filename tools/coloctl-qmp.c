/*
 * coloctl: a QMP client that trusts no server.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Whoever listens on the socket may send anything, at any speed, or nothing. So each step has
 * a deadline that runs on whatever comes, texts are bounded in length and depth, an answer
 * counts only with the id of its question, and events are thrown away.
 */
#include "coloctl.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "monitor/json-text.h"
#include "util/deadline.h"

#define GREETING_MS 5000
#define ANSWER_MS 30000
#define UNREAD_MAX (16u * 1024 * 1024) /* of one answer */

struct CtlQmp {
    char *path;
    int fd;
    JsonStream *in;
    size_t unread; /* pushed since the last whole value */
    unsigned next_id, answer_ms;
    bool event; /* one came since ctl_qmp_news() */
    char *version;
};

static bool wait_fd(CtlQmp *q, short events, gint64 end)
{
    struct pollfd p = {.fd = q->fd, .events = events};
    int n;

    while ((n = poll(&p, 1, deadline_left_ms(end))) < 0 && errno == EINTR) {
    }
    return n > 0;
}

static bool dial(CtlQmp *q, gint64 end, GError **errp)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};

    if (strlen(q->path) >= sizeof(sa.sun_path)) {
        ctl_set_error(errp, CTL_ERROR_UNREACHABLE,
                      "%s: a socket's path has at most %zu bytes: choose a shorter run-dir",
                      q->path, sizeof(sa.sun_path) - 1);
        return false;
    }
    strcpy(sa.sun_path, q->path);
    q->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    while (q->fd >= 0 && connect(q->fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
        /* A full backlog: somebody else is being served. */
        if (errno != EAGAIN || deadline_left_ms(end) == 0) {
            int e = errno;
            ctl_set_error(errp, CTL_ERROR_UNREACHABLE, "%s: %s%s", q->path, g_strerror(e),
                          e == ENOENT || e == ECONNREFUSED ? ": no qemu-colo runs there"
                          : e == EAGAIN ? ": another client holds the monitor"
                          : e == EACCES ? ": try as root or as the user of coloctl run" : "");
            return false;
        }
        g_usleep(20000);
    }
    return q->fd >= 0;
}

/* The next JSON object, whatever it is; @end 0: if it is there. Caller frees. */
static JsonNode *next_value(CtlQmp *q, gint64 end, GError **errp)
{
    g_autoptr(GError) err = NULL;

    for (;;) {
        g_autofree char *buf = NULL;
        GString *text = NULL;
        JsonNode *node = NULL;
        switch (json_stream_next(q->in, &text, &err)) {
        case JSON_STREAM_TEXT: {
            JsonSpan span = {text->str, text->len};
            bool ok = json_text_parse(span, &node, &err);
            g_string_free(text, TRUE);
            q->unread = 0;
            if (ok && node && JSON_NODE_HOLDS_OBJECT(node)) {
                return node;
            }
            g_clear_pointer(&node, json_node_unref);
            G_GNUC_FALLTHROUGH;
        }
        case JSON_STREAM_ERROR:
            ctl_set_error(errp, CTL_ERROR_UNREACHABLE, "%s: whoever listens there does not "
                          "speak QMP%s%s", q->path, err ? ": " : "", err ? err->message : "");
            return NULL;
        case JSON_STREAM_EMPTY:
            break;
        }
        if (!wait_fd(q, POLLIN, end)) {
            ctl_set_error(errp, CTL_ERROR_UNREACHABLE, "%s: no answer: it hangs, or another "
                          "client holds the monitor", q->path);
            return NULL;
        }
        buf = g_malloc(65536);
        ssize_t n = recv(q->fd, buf, 65536, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            ctl_set_error(errp, CTL_ERROR_UNREACHABLE, "%s: connection closed%s%s", q->path,
                          n ? ": " : "", n ? g_strerror(errno) : "");
            return NULL;
        }
        if (n > 0) {
            json_stream_push(q->in, buf, n);
            q->unread += n;
        }
        bool late = end && deadline_left_ms(end) == 0;
        if (late || q->unread > UNREAD_MAX) {
            ctl_set_error(errp, CTL_ERROR_UNREACHABLE, "%s: %s", q->path,
                          late ? "no answer among what it sends" : "an endless answer");
            return NULL;
        }
    }
}

static bool send_all(CtlQmp *q, const char *text, size_t len, gint64 end, GError **errp)
{
    while (len > 0) {
        ssize_t n = send(q->fd, text, len, MSG_NOSIGNAL);
        if (n > 0) {
            text += n;
            len -= n;
        } else if ((errno != EAGAIN && errno != EINTR) || !wait_fd(q, POLLOUT, end)) {
            ctl_set_error(errp, CTL_ERROR_UNREACHABLE, "%s: it takes no command: %s", q->path,
                          g_strerror(errno));
            return false;
        }
    }
    return true;
}

/* Each checkpoint stops the guest and lets it run again: no news. */
static void note_event(CtlQmp *q, JsonObject *o)
{
    const char *name = ctl_str(o, "event", NULL);

    q->event |= name && strcmp(name, "STOP") != 0 && strcmp(name, "RESUME") != 0;
}

JsonNode *ctl_qmp_execute(CtlQmp *q, const char *command, JsonObject *args, GError **errp)
{
    gint64 end = g_get_monotonic_time() + q->answer_ms * 1000ll;
    g_autofree char *id = g_strdup_printf("coloctl-%u", q->next_id++);
    g_autoptr(JsonObject) cmd = json_object_new();
    g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), cmd);
    g_autoptr(GString) text = g_string_new(NULL);

    json_object_set_string_member(cmd, "execute", command);
    json_object_set_string_member(cmd, "id", id);
    if (args) {
        json_object_set_object_member(cmd, "arguments", json_object_ref(args));
    }
    json_text_append_node(text, node);
    g_string_append_c(text, '\n');
    if (!send_all(q, text->str, text->len, end, errp)) {
        return NULL;
    }
    for (;;) {
        g_autoptr(JsonNode) answer = next_value(q, end, errp);
        if (!answer) {
            return NULL;
        }
        JsonObject *o = json_node_get_object(answer);
        if (strcmp(ctl_str(o, "id", ""), id) != 0) {
            note_event(q, o);
            continue; /* or nothing that was asked for */
        }
        if (json_object_has_member(o, "return")) {
            return json_node_copy(json_object_get_member(o, "return"));
        }
        JsonObject *e = ctl_object(o, "error");
        bool unknown = strcmp(ctl_str(e, "class", ""), "CommandNotFound") == 0;
        g_autofree char *desc = ctl_clean(ctl_str(e, "desc", "it did not say why"), 2000);
        ctl_set_error(errp, unknown ? CTL_ERROR_NO_COMMAND : CTL_ERROR_REFUSED, "%s: %s",
                      command, desc);
        return NULL;
    }
}

JsonObject *ctl_qmp_query(CtlQmp *q, const char *command, GError **errp)
{
    g_autoptr(JsonNode) node = ctl_qmp_execute(q, command, NULL, errp);

    if (!node) {
        return NULL;
    }
    if (!JSON_NODE_HOLDS_OBJECT(node)) {
        ctl_set_error(errp, CTL_ERROR_UNREACHABLE, "%s: the answer to %s is no object: that is "
                      "not qemu-colo", q->path, command);
        return NULL;
    }
    return json_node_dup_object(node);
}

CtlQmp *ctl_qmp_open(const char *path, GError **errp)
{
    gint64 end = g_get_monotonic_time() + GREETING_MS * 1000ll;
    g_autoptr(CtlQmp) q = g_new0(CtlQmp, 1);

    q->fd = -1;
    q->answer_ms = ANSWER_MS;
    q->path = g_strdup(path);
    q->in = json_stream_new();
    if (!dial(q, end, errp)) {
        return NULL;
    }
    g_autoptr(JsonNode) greeting = next_value(q, end, errp);
    if (!greeting) {
        return NULL;
    }
    JsonObject *qmp = ctl_object(json_node_get_object(greeting), "QMP");
    JsonObject *v = ctl_object(ctl_object(qmp, "version"), "qemu");
    if (!qmp) {
        ctl_set_error(errp, CTL_ERROR_UNREACHABLE, "%s: whoever listens there does not speak "
                      "QMP: no greeting", path);
        return NULL;
    }
    q->version = g_strdup_printf("%d.%d.%d", (int)ctl_int(v, "major", 0),
                                 (int)ctl_int(v, "minor", 0), (int)ctl_int(v, "micro", 0));
    g_autoptr(JsonNode) done = ctl_qmp_execute(q, "qmp_capabilities", NULL, errp);
    return done ? g_steal_pointer(&q) : NULL;
}

void ctl_qmp_close(CtlQmp *q)
{
    if (q) {
        if (q->fd >= 0) {
            close(q->fd);
        }
        json_stream_free(q->in);
        g_free(q->path);
        g_free(q->version);
        g_free(q);
    }
}

const char *ctl_qmp_version(CtlQmp *q)
{
    return q->version;
}

void ctl_qmp_set_timeout(CtlQmp *q, unsigned ms)
{
    q->answer_ms = ms;
}

int ctl_qmp_fd(CtlQmp *q)
{
    return q->fd;
}

bool ctl_qmp_news(CtlQmp *q)
{
    for (unsigned i = 0; i < 1000 && !q->event; i++) {
        g_autoptr(JsonNode) n = next_value(q, 0, NULL); /* 0: only what is there */
        if (!n) {
            break;
        }
        note_event(q, json_node_get_object(n));
    }
    bool news = q->event;
    q->event = false;
    return news;
}
