/*
 * The connection to the emulator's QMP.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Commands of clients and of our own share one connection. Each goes out under an id that
 * we make ("u<client>.<n>" for a client's, "c<n>" for our own) and waits in @calls, in the
 * order in which it was sent, until the answer with that id comes. The emulator answers
 * commands that are not out of band in order, so an error without an id (it could not
 * parse what we sent; never seen, but then one client must not wait for ever) belongs to
 * the oldest one.
 * A descriptor travels with the first byte of its command. The emulator remembers only
 * the latest that came, so nothing more is sent until that command is answered.
 * Output is buffered without bound: each client has but one command here at a time.
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

#define GREETING_TIMEOUT_MS 30000

struct ChildCall {
    char *id;
    QmpRequest *req;     /* a client's command, or */
    MonitorChildFunc fn; /* our own (may be NULL: nobody waits) */
    void *opaque;
    bool oob;
    GString *text; /* what is still to be sent, from @sent on; then NULL */
    size_t sent;
    int fd;          /* to go along, or -1 */
    bool carries_fd; /* it has had one */
};

/* Room singleton. */
static struct {
    int fd;
    bool gone, reading;
    JsonStream *stream;
    char *greeting;
    bool oob;
    guint64 counter;
    GQueue *calls;   /* ChildCall: sent or to be sent, oldest first */
    GQueue *out;     /* ChildCall: of these, to be sent; borrowed */
    ChildCall *fd_wait; /* its descriptor is with the emulator, its answer is not here */
    guint in_tag, out_tag;
    void (*gone_fn)(void *opaque);
    void *gone_opaque;
} child = {.fd = -1};

static void child_end(const char *why);
static void flush_out(void);

void monitor_set_child_gone(void (*fn)(void *opaque), void *opaque)
{
    child.gone_fn = fn;
    child.gone_opaque = opaque;
}

bool child_is_gone(void)
{
    return child.gone || child.fd < 0;
}

const char *child_greeting(void)
{
    return child.greeting;
}

bool child_has_oob(void)
{
    return child.oob;
}

static void call_free(ChildCall *call)
{
    if (call->fd >= 0) {
        close(call->fd);
    }
    if (call->text) {
        g_string_free(call->text, TRUE);
    }
    g_free(call->id);
    g_free(call);
}

/* --- Answers --- */

static int error_code(const char *class_name)
{
    for (int i = COLO_ERROR_GENERIC; i <= COLO_ERROR_DEVICE_NOT_FOUND; i++) {
        if (g_strcmp0(class_name, colo_error_class_name(i)) == 0) {
            return i;
        }
    }
    return COLO_ERROR_GENERIC;
}

static void finish_own(ChildCall *call, JsonSpan ret, JsonSpan error)
{
    g_autoptr(GError) err = NULL;
    g_autoptr(JsonNode) node = NULL;

    if (!call->fn) {
        return;
    }
    if (ret.text) {
        json_text_parse(ret, &node, &err);
    } else {
        g_autofree char *cls = json_text_string(json_text_member(error, "class"));
        g_autofree char *desc = json_text_string(json_text_member(error, "desc"));
        g_set_error_literal(&err, COLO_ERROR, error_code(cls),
                            desc ? desc : "The emulator failed without a reason");
    }
    call->fn(node, err, call->opaque);
}

/* The call is over: unlink, answer, free. */
static void finish_call(GList *link, JsonSpan ret, JsonSpan error)
{
    ChildCall *call = link->data;

    g_queue_delete_link(child.calls, link);
    g_queue_remove(child.out, call);
    if (child.fd_wait == call) {
        child.fd_wait = NULL;
    }
    if (call->req && ret.text) {
        qmp_client_answer(call->req, "return", ret);
    } else if (call->req) {
        qmp_client_answer(call->req, "error", error);
    } else {
        finish_own(call, ret, error);
    }
    call_free(call);
}

static GList *find_call(JsonSpan id_span)
{
    g_autofree char *id = json_text_string(id_span);

    for (GList *l = child.calls->head; l; l = l->next) {
        ChildCall *call = l->data;
        if (id ? g_str_equal(call->id, id) : !call->oob) {
            return l;
        }
    }
    return NULL;
}

static void handle_text(JsonSpan text)
{
    JsonSpan ret = json_text_member(text, "return");
    JsonSpan error = json_text_member(text, "error");

    if (!ret.text && !error.text) {
        events_from_child(text);
        return;
    }
    GList *link = find_call(json_text_member(text, "id"));
    if (link) {
        finish_call(link, ret, error);
        flush_out();
    }
}

/* Take in what is there; false once the connection has ended. */
static bool child_read(void)
{
    char buf[65536];
    ssize_t n = read(child.fd, buf, sizeof(buf));

    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return true;
    }
    if (n <= 0) {
        child_end(n ? g_strerror(errno) : "end of file");
        return false;
    }
    json_stream_push(child.stream, buf, n);
    /* A callback may read more, nested, through monitor_child_execute_sync(). */
    while (child.stream) {
        g_autoptr(GError) err = NULL;
        GString *text = NULL;
        JsonStreamResult r = json_stream_next(child.stream, &text, &err);
        if (r == JSON_STREAM_EMPTY) {
            break;
        }
        JsonSpan span = {text ? text->str : NULL, text ? text->len : 0};
        if (r == JSON_STREAM_ERROR || !json_text_parse(span, NULL, &err)) {
            if (text) {
                g_string_free(text, TRUE);
            }
            child_end(err->message);
            return false;
        }
        handle_text(span);
        g_string_free(text, TRUE);
    }
    return !child_is_gone();
}

static gboolean child_readable(gint fd, GIOCondition cond, gpointer opaque)
{
    if (!child_read()) {
        child.in_tag = 0;
        return G_SOURCE_REMOVE;
    }
    return G_SOURCE_CONTINUE;
}

/* --- Commands --- */

static ssize_t send_with_fd(ChildCall *call)
{
    struct iovec iov = {call->text->str + call->sent, call->text->len - call->sent};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } u = {0};

    if (call->fd >= 0) {
        msg.msg_control = u.buf;
        msg.msg_controllen = sizeof(u.buf);
        struct cmsghdr *cm = CMSG_FIRSTHDR(&msg);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cm), &call->fd, sizeof(int));
    }
    return sendmsg(child.fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static gboolean child_writable(gint fd, GIOCondition cond, gpointer opaque)
{
    child.out_tag = 0;
    flush_out();
    return G_SOURCE_REMOVE;
}

static void flush_out(void)
{
    while (!child_is_gone() && !child.fd_wait) {
        ChildCall *call = g_queue_peek_head(child.out);
        if (!call) {
            return;
        }
        ssize_t n = send_with_fd(call);
        if (n < 0) {
            /* EPIPE and the like: the reader sees the end too, after the last answers. */
            if (errno == EAGAIN && !child.out_tag) {
                child.out_tag = g_unix_fd_add(child.fd, G_IO_OUT, child_writable, NULL);
            }
            return;
        }
        if (call->fd >= 0) {
            close(call->fd);
            call->fd = -1;
            call->carries_fd = true;
        }
        call->sent += n;
        if (call->sent == call->text->len) {
            g_string_free(g_steal_pointer(&call->text), TRUE);
            g_queue_pop_head(child.out);
            child.fd_wait = call->carries_fd ? call : NULL;
        }
    }
}

static void fail_call(ChildCall *call)
{
    static const char text[] = "{\"class\": \"GenericError\", "
                               "\"desc\": \"The emulator is gone\"}";
    GList *link = g_queue_find(child.calls, call);

    finish_call(link, (JsonSpan){NULL, 0}, (JsonSpan){text, sizeof(text) - 1});
}

static ChildCall *call_new(char *id, const char *key, const char *name, JsonSpan args)
{
    ChildCall *call = g_new0(ChildCall, 1);

    call->fd = -1;
    call->id = id;
    call->oob = strcmp(key, "exec-oob") == 0;
    call->text = g_string_new(NULL);
    g_string_append_printf(call->text, "{\"%s\": ", key);
    json_text_append_string(call->text, name);
    if (args.text) {
        g_string_append(call->text, ", \"arguments\": ");
        json_text_format(call->text, args, false);
    }
    g_string_append_printf(call->text, ", \"id\": \"%s\"}\n", id);
    return call;
}

static void call_start(ChildCall *call)
{
    g_queue_push_tail(child.calls, call);
    if (child_is_gone()) {
        fail_call(call);
        return;
    }
    g_queue_push_tail(child.out, call);
    flush_out();
}

void child_forward(QmpRequest *req)
{
    char *id = g_strdup_printf("u%u.%" G_GUINT64_FORMAT,
                               req->client ? qmp_client_number(req->client) : 0,
                               child.counter++);
    ChildCall *call =
        call_new(id, req->oob ? "exec-oob" : "execute", req->name, req->arguments);

    call->req = req;
    call->fd = req->fd;
    req->fd = -1;
    call_start(call);
}

static ChildCall *own_call(const char *command, JsonObject *args, MonitorChildFunc fn,
                           void *opaque)
{
    g_autoptr(GString) text = NULL;
    JsonSpan span = {NULL, 0};

    if (args) {
        g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), args);
        text = g_string_new(NULL);
        json_text_append_node(text, node);
        span = (JsonSpan){text->str, text->len};
    }
    /* The counter belongs to the main thread: the id is made in start_own(). */
    ChildCall *call = call_new(g_strdup("%"), "execute", command, span);
    call->fn = fn;
    call->opaque = opaque;
    return call;
}

static gboolean start_own(void *opaque)
{
    ChildCall *call = opaque;

    g_free(call->id);
    call->id = g_strdup_printf("c%" G_GUINT64_FORMAT, child.counter++);
    g_string_truncate(call->text, call->text->len - strlen("\"%\"}\n"));
    g_string_append_printf(call->text, "\"%s\"}\n", call->id);
    call_start(call);
    return G_SOURCE_REMOVE;
}

void monitor_child_execute(const char *command, JsonObject *args, MonitorChildFunc fn,
                           void *opaque)
{
    monitor_post(start_own, own_call(command, args, fn, opaque));
}

void monitor_child_send_fd(int fd, const char *fdname, MonitorChildFunc fn, void *opaque)
{
    g_autoptr(JsonObject) args = json_object_new();

    json_object_set_string_member(args, "fdname", fdname);
    ChildCall *call = own_call("getfd", args, fn, opaque);
    /* A failed dup() shows as the emulator's "no file descriptor supplied". */
    call->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    monitor_post(start_own, call);
}

typedef struct SyncCall {
    bool done;
    JsonNode *ret;
    GError *err;
} SyncCall;

static void sync_done(JsonNode *ret, const GError *err, void *opaque)
{
    SyncCall *sync = opaque;

    sync->done = true;
    sync->ret = ret ? json_node_copy(ret) : NULL;
    sync->err = err ? g_error_copy(err) : NULL;
}

/* Read or write for at most until @deadline (monotonic us). */
static void child_poll(gint64 deadline)
{
    bool want_out = !g_queue_is_empty(child.out) && !child.fd_wait;
    struct pollfd pfd = {child.fd, POLLIN | (want_out ? POLLOUT : 0), 0};

    if (poll(&pfd, 1, deadline_left_ms(deadline)) <= 0) {
        return;
    }
    if (pfd.revents & POLLOUT) {
        flush_out();
    }
    if (pfd.revents & (POLLIN | POLLHUP | POLLERR)) {
        child_read();
    }
}

JsonNode *monitor_child_execute_sync(const char *command, JsonObject *args,
                                     unsigned timeout_ms, GError **errp)
{
    gint64 deadline = g_get_monotonic_time() + timeout_ms * (gint64)1000;
    SyncCall sync = {0};
    ChildCall *call = own_call(command, args, sync_done, &sync);

    start_own(call);
    while (!sync.done && g_get_monotonic_time() < deadline) {
        child_poll(deadline);
    }
    if (!sync.done) {
        call->fn = NULL; /* the answer may still come */
        colo_error_set(errp, "The emulator did not answer %s within %u ms", command,
                       timeout_ms);
        return NULL;
    }
    if (sync.err) {
        g_propagate_error(errp, sync.err);
        return NULL;
    }
    return sync.ret;
}

/* --- Life --- */

static void child_end(const char *why)
{
    if (child.gone) {
        return;
    }
    colo_trace(monitor_child_gone, "%s", why);
    child.gone = true;
    if (child.out_tag) {
        g_source_remove(child.out_tag);
        child.out_tag = 0;
    }
    while (child.calls && !g_queue_is_empty(child.calls)) {
        fail_call(g_queue_peek_head(child.calls));
    }
    if (child.gone_fn) {
        child.gone_fn(child.gone_opaque);
    }
}

/* Blocking: the first text that the emulator sends. */
static GString *first_text(GError **errp)
{
    gint64 deadline = g_get_monotonic_time() + GREETING_TIMEOUT_MS * (gint64)1000;

    while (true) {
        GString *text = NULL;
        JsonStreamResult r = json_stream_next(child.stream, &text, errp);
        if (r != JSON_STREAM_EMPTY) {
            return text;
        }
        int left = deadline_left_ms(deadline);
        struct pollfd pfd = {child.fd, POLLIN, 0};
        if (left == 0 || poll(&pfd, 1, left) == 0) {
            colo_error_set(errp, "The emulator sent no QMP greeting within %d s",
                           GREETING_TIMEOUT_MS / 1000);
            return NULL;
        }
        char buf[4096];
        ssize_t n = read(child.fd, buf, sizeof(buf));
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            colo_error_set(errp, "The emulator ended before its QMP greeting");
            return NULL;
        }
        if (n > 0) {
            json_stream_push(child.stream, buf, n);
        }
    }
}

static bool read_greeting(GError **errp)
{
    g_autoptr(GString) text = first_text(errp);
    g_autoptr(JsonNode) node = NULL;

    if (!text || !json_text_parse((JsonSpan){text->str, text->len}, &node, errp)) {
        return false;
    }
    JsonObject *obj = JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
    JsonNode *qmp = obj ? json_object_get_member(obj, "QMP") : NULL;
    if (!qmp || !JSON_NODE_HOLDS_OBJECT(qmp)) {
        colo_error_set(errp, "The emulator's first QMP message is no greeting");
        return false;
    }
    JsonNode *caps = json_object_get_member(json_node_get_object(qmp), "capabilities");
    JsonArray *list =
        caps && JSON_NODE_HOLDS_ARRAY(caps) ? json_node_get_array(caps) : NULL;
    for (guint i = 0; list && i < json_array_get_length(list); i++) {
        JsonNode *cap = json_array_get_element(list, i);
        child.oob |= JSON_NODE_HOLDS_VALUE(cap) &&
                     g_strcmp0(json_node_get_string(cap), "oob") == 0;
    }
    child.greeting = g_strndup(text->str, text->len);
    return true;
}

bool child_init(int fd, GError **errp)
{
    child.fd = fd;
    child.gone = false;
    child.stream = json_stream_new();
    child.calls = g_queue_new();
    child.out = g_queue_new();
    g_unix_set_fd_nonblocking(fd, TRUE, NULL);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    if (!read_greeting(errp)) {
        return false;
    }
    g_autoptr(JsonObject) args = json_object_new();
    if (child.oob) {
        JsonArray *enable = json_array_new();
        json_array_add_string_element(enable, "oob");
        json_object_set_array_member(args, "enable", enable);
    }
    g_autoptr(JsonNode) ret =
        monitor_child_execute_sync("qmp_capabilities", args, GREETING_TIMEOUT_MS, errp);
    if (!ret) {
        return false;
    }
    child.in_tag = g_unix_fd_add(fd, G_IO_IN | G_IO_HUP, child_readable, NULL);
    return true;
}

void child_shutdown(void)
{
    if (child.fd < 0) {
        return;
    }
    child.gone_fn = NULL;
    child_end("shutdown");
    if (child.in_tag) {
        g_source_remove(child.in_tag);
    }
    json_stream_free(child.stream);
    g_queue_free(child.calls);
    g_queue_free(child.out);
    g_free(child.greeting);
    close(child.fd);
    memset(&child, 0, sizeof(child));
    child.fd = -1;
}
