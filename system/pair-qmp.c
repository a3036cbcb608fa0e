/*
 * The pair's own QMP session with this program's monitor.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "system/pair-qmp.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/deadline.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

/* Longer than any handler waits: a disk's server or a storage daemon, 30 s. */
#define ANSWER_MS 60000

struct PairQmp {
    int fd;
    uint64_t id; /* of the last command */
    GString *in;
    GHashTable *job_errors; /* job id -> why it failed */
};

PairQmp *pair_qmp_new(int fd)
{
    PairQmp *q = g_new0(PairQmp, 1);

    q->fd = fd;
    q->in = g_string_new(NULL);
    q->job_errors = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    return q;
}

void pair_qmp_free(PairQmp *q)
{
    if (q) {
        close(q->fd);
        g_string_free(q->in, TRUE);
        g_hash_table_unref(q->job_errors);
        g_free(q);
    }
}

/* The next line, or NULL: *@ended, or @ms have passed. Caller frees. */
static char *next_line(PairQmp *q, unsigned ms, bool *ended)
{
    int64_t deadline = g_get_monotonic_time() + ms * 1000LL;

    for (;;) {
        char *nl = memchr(q->in->str, '\n', q->in->len);
        if (nl) {
            char *line = g_strndup(q->in->str, nl - q->in->str);
            g_string_erase(q->in, 0, nl + 1 - q->in->str);
            return line;
        }
        struct pollfd pfd = {q->fd, POLLIN, 0};
        if (poll(&pfd, 1, deadline_left_ms(deadline)) == 0) {
            return NULL;
        }
        char part[4096];
        ssize_t n = recv(q->fd, part, sizeof(part), MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            *ended = true;
            return NULL;
        }
        g_string_append_len(q->in, part, MAX(n, 0));
    }
}

static void note_event(PairQmp *q, JsonObject *o)
{
    const char *event = options_get_str(o, "event", "");
    JsonObject *data = options_get_obj(o, "data");
    const char *error = options_get_str(data ? data : o, "error", NULL);

    /* So ends one that was cut off; a copy that is whole ends as completed. */
    bool cancelled = strcmp(event, "BLOCK_JOB_CANCELLED") == 0;
    if (data && (cancelled || (error && strcmp(event, "BLOCK_JOB_COMPLETED") == 0))) {
        g_hash_table_insert(q->job_errors, g_strdup(options_get_str(data, "device", "")),
                            g_strdup(cancelled ? "it was cancelled" : error));
    }
}

/* An answer (new reference), or NULL: time or connection are over. Events are noted. */
static JsonObject *next_answer(PairQmp *q, unsigned ms, bool *ended)
{
    int64_t deadline = g_get_monotonic_time() + ms * 1000LL;

    for (;;) {
        g_autofree char *line = next_line(q, deadline_left_ms(deadline), ended);
        g_autoptr(JsonObject) o = line ? options_parse(line, NULL, NULL) : NULL;
        if (!line) {
            return NULL;
        }
        if (o && json_object_has_member(o, "event")) {
            note_event(q, o);
        } else if (o && (uint64_t)json_object_get_int_member_with_default(o, "id", 0) == q->id) {
            return g_steal_pointer(&o);
        }
    }
}

static JsonObject *answer(PairQmp *q, const char *command, GError **errp)
{
    bool ended = false;
    JsonObject *o = next_answer(q, ANSWER_MS, &ended);

    if (!o) {
        colo_error_set(errp, "%s: %s", command, ended ? "the monitor has ended"
                                                      : "the monitor does not answer");
    }
    return o;
}

bool pair_qmp_run(PairQmp *q, const char *command, JsonObject *args, JsonNode **ret,
                  GError **errp)
{
    g_autoptr(JsonObject) cmd = json_object_new();
    g_autoptr(JsonNode) node = json_node_new(JSON_NODE_OBJECT);

    json_object_set_string_member(cmd, "execute", command);
    json_object_set_int_member(cmd, "id", ++q->id);
    if (args) {
        json_object_set_object_member(cmd, "arguments", args);
    }
    json_node_set_object(node, cmd);
    g_autofree char *text = json_to_string(node, FALSE);
    colo_trace(pair_command, "%s", text);
    for (size_t at = 0, len = strlen(text); at < len;) {
        ssize_t n = send(q->fd, text + at, len - at, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR) {
            colo_error_set(errp, "%s: the monitor has ended", command);
            return false;
        }
        at += MAX(n, 0);
    }
    g_autoptr(JsonObject) o = answer(q, command, errp);
    if (!o) {
        return false;
    }
    JsonObject *error = options_get_obj(o, "error");
    if (error) {
        colo_error_set(errp, "%s: %s", command, options_get_str(error, "desc", "?"));
        return false;
    }
    if (ret) {
        *ret = json_node_copy(json_object_get_member(o, "return"));
    }
    return true;
}

bool pair_qmp_do(PairQmp *q, const char *command, GError **errp, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    JsonObject *args = options_parse(text, NULL, errp);
    return args && pair_qmp_run(q, command, args, NULL, errp);
}

bool pair_qmp_human(PairQmp *q, GError **errp, const char *fmt, ...)
{
    g_autoptr(JsonNode) ret = NULL;
    JsonObject *args = json_object_new();
    va_list ap;

    va_start(ap, fmt);
    g_autofree char *line = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    json_object_set_string_member(args, "command-line", line);
    if (!pair_qmp_run(q, "human-monitor-command", args, &ret, errp)) {
        return false;
    }
    const char *text = ret && JSON_NODE_HOLDS_VALUE(ret) ? json_node_get_string(ret) : NULL;
    if (text && g_str_has_prefix(text, "Error: ")) {
        g_autofree char *why = g_strchomp(g_strdup(text + strlen("Error: ")));
        colo_error_set(errp, "%s", why);
        return false;
    }
    return true;
}

bool pair_qmp_begin(PairQmp *q, GError **errp)
{
    g_autoptr(JsonObject) greeting = answer(q, "greeting", errp);

    return greeting && pair_qmp_run(q, "qmp_capabilities", NULL, NULL, errp);
}

void pair_qmp_drain(PairQmp *q)
{
    bool ended = false;
    JsonObject *o;

    while ((o = next_answer(q, 0, &ended))) {
        json_object_unref(o);
    }
}

const char *pair_qmp_job_error(PairQmp *q, const char *id)
{
    return g_hash_table_lookup(q->job_errors, id);
}

void pair_qmp_forget_jobs(PairQmp *q)
{
    g_hash_table_remove_all(q->job_errors);
}
