/*
 * From a text to a command, and who carries it out.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "internal.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "util/error.h"
#include "util/trace.h"

/* Room singleton. */
static struct {
    const QmpCommandInfo *commands;
    GThread *main_thread;
    GAsyncQueue *posted; /* Posted, from other threads */
} dispatch;

/* --- Other threads --- */

typedef struct Posted {
    GSourceFunc fn;
    void *opaque;
} Posted;

static gboolean run_posted(gpointer opaque)
{
    Posted *p;

    while (dispatch.posted && (p = g_async_queue_try_pop(dispatch.posted))) {
        Posted copy = *p;
        g_free(p);
        copy.fn(copy.opaque);
    }
    return G_SOURCE_REMOVE;
}

void monitor_post(GSourceFunc fn, void *opaque)
{
    if (g_thread_self() == dispatch.main_thread) {
        run_posted(NULL);
        fn(opaque);
        return;
    }
    Posted *p = g_new(Posted, 1);
    *p = (Posted){fn, opaque};
    g_async_queue_push(dispatch.posted, p);
    g_idle_add_full(G_PRIORITY_DEFAULT, run_posted, NULL, NULL);
}

/* --- Requests --- */

static bool accept_member(const char *key, JsonSpan value, void *opaque)
{
    QmpRequest *req = opaque;
    bool oob = strcmp(key, "exec-oob") == 0;

    if (oob || strcmp(key, "execute") == 0) {
        if (req->name) {
            colo_error_set(&req->error,
                           "QMP input member 'execute' clashes with 'exec-oob'");
            return false;
        }
        req->name = json_text_string(value);
        req->oob = oob;
        if (!req->name) {
            colo_error_set(&req->error, "QMP input member '%s' must be a string", key);
        }
    } else if (strcmp(key, "arguments") == 0) {
        req->arguments = value;
        if (*value.text != '{') {
            colo_error_set(&req->error, "QMP input member 'arguments' must be an object");
        }
    } else if (strcmp(key, "id") != 0) {
        colo_error_set(&req->error, "QMP input member '%s' is unexpected", key);
    }
    return !req->error;
}

QmpRequest *qmp_request_new_error(QmpClient *client, GError *err)
{
    QmpRequest *req = g_new0(QmpRequest, 1);

    req->client = client;
    req->fd = -1;
    req->error = err;
    return req;
}

QmpRequest *qmp_request_new(QmpClient *client, GString *text)
{
    QmpRequest *req = qmp_request_new_error(client, NULL);
    JsonSpan span = {text->str, text->len};

    req->text = text;
    if (!json_text_parse(span, NULL, &req->error)) {
        return req;
    }
    if (*text->str != '{') {
        colo_error_set(&req->error, "QMP input must be a JSON object");
        return req;
    }
    req->id = json_text_member(span, "id");
    json_text_foreach(span, accept_member, req);
    if (!req->error && !req->name) {
        colo_error_set(&req->error, "QMP input lacks member 'execute'");
    }
    if (!req->error && (!strcmp(req->name, "getfd") || !strcmp(req->name, "add-fd"))) {
        req->fd = qmp_client_take_fd(client);
    }
    return req;
}

int qmp_request_fd(const QmpRequest *req)
{
    return req->fd;
}

void qmp_request_free(QmpRequest *req)
{
    if (req->text) {
        g_string_free(req->text, TRUE);
    }
    if (req->fd >= 0) {
        close(req->fd);
    }
    g_clear_error(&req->error);
    g_free(req->name);
    g_free(req);
}

static void answer_node(QmpRequest *req, JsonNode *ret)
{
    g_autoptr(GString) text = g_string_new(NULL);

    json_text_append_node(text, ret);
    qmp_client_answer(req, "return", (JsonSpan){text->str, text->len});
}

static void fail(QmpRequest *req, int code, const char *fmt, ...) G_GNUC_PRINTF(3, 4);

static void fail(QmpRequest *req, int code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    g_autoptr(GError) err = g_error_new_valist(COLO_ERROR, code, fmt, ap);
    va_end(ap);
    qmp_client_answer_error(req, err);
}

typedef struct Finish {
    QmpRequest *req;
    JsonNode *ret;
    GError *err;
    bool pass;
} Finish;

static gboolean finish(void *opaque)
{
    Finish *f = opaque;

    if (f->pass) {
        child_forward(f->req);
    } else if (f->err) {
        qmp_client_answer_error(f->req, f->err);
        g_error_free(f->err);
    } else {
        answer_node(f->req, f->ret);
    }
    if (f->ret) {
        json_node_unref(f->ret);
    }
    g_free(f);
    return G_SOURCE_REMOVE;
}

static void post_finish(Finish f)
{
    Finish *copy = g_new(Finish, 1);

    *copy = f;
    monitor_post(finish, copy);
}

void qmp_request_finish(QmpRequest *req, JsonNode *ret, GError *err)
{
    post_finish((Finish){.req = req, .ret = ret, .err = err});
}

/* Room singleton (main thread): may forbid what would be passed on. */
static MonitorPassFilter pass_filter;

void monitor_set_pass_filter(MonitorPassFilter fn)
{
    pass_filter = fn;
}

static void pass_on(QmpRequest *req)
{
    g_autoptr(GError) err = NULL;

    if (pass_filter && !pass_filter(req->name, &err)) {
        qmp_client_answer_error(req, err);
    } else {
        child_forward(req);
    }
}

void qmp_request_pass(QmpRequest *req)
{
    post_finish((Finish){.req = req, .pass = true});
}

/* --- Commands of the monitor itself --- */

static void negotiate(QmpRequest *req, JsonObject *args)
{
    g_autoptr(GList) keys = args ? json_object_get_members(args) : NULL;
    JsonNode *node = args ? json_object_get_member(args, "enable") : NULL;
    bool oob = false;

    for (GList *l = keys; l; l = l->next) {
        if (strcmp(l->data, "enable") != 0) {
            fail(req, COLO_ERROR_GENERIC, "Parameter '%s' is unexpected", (char *)l->data);
            return;
        }
    }
    if (node && !JSON_NODE_HOLDS_ARRAY(node)) {
        fail(req, COLO_ERROR_GENERIC,
             "Invalid parameter type for 'enable', expected: array");
        return;
    }
    JsonArray *list = node ? json_node_get_array(node) : NULL;
    for (guint i = 0; list && i < json_array_get_length(list); i++) {
        JsonNode *item = json_array_get_element(list, i);
        const char *s = JSON_NODE_HOLDS_VALUE(item) ? json_node_get_string(item) : NULL;
        if (!s) {
            fail(req, COLO_ERROR_GENERIC,
                 "Invalid parameter type for 'enable[%u]', expected: string", i);
            return;
        }
        if (strcmp(s, "oob") != 0) {
            fail(req, COLO_ERROR_GENERIC, "Parameter 'enable[%u]' does not accept value '%s'",
                 i, s);
            return;
        }
        if (!child_has_oob()) {
            fail(req, COLO_ERROR_GENERIC, "Capability '%s' not available", s);
            return;
        }
        oob = true;
    }
    qmp_client_negotiated(req->client, oob);
    answer_node(req, NULL);
}

/* query-commands: the emulator's, then those of ours that it lacks. */
static void commands_merged(JsonNode *ret, const GError *err, void *opaque)
{
    QmpRequest *req = opaque;

    if (err || !JSON_NODE_HOLDS_ARRAY(ret)) {
        qmp_request_finish(req, ret ? json_node_copy(ret) : NULL,
                           err ? g_error_copy(err) : NULL);
        return;
    }
    g_autoptr(JsonNode) node = json_node_copy(ret);
    JsonArray *list = json_node_get_array(node);
    g_autoptr(GHashTable) known = g_hash_table_new(g_str_hash, g_str_equal);
    guint n = json_array_get_length(list);
    for (guint i = 0; i < n; i++) {
        JsonNode *item = json_array_get_element(list, i);
        JsonObject *obj = JSON_NODE_HOLDS_OBJECT(item) ? json_node_get_object(item) : NULL;
        if (obj && json_object_has_member(obj, "name")) {
            g_hash_table_add(known,
                             (char *)json_object_get_string_member(obj, "name"));
        }
    }
    for (const QmpCommandInfo *c = dispatch.commands; c && c->name; c++) {
        if (!g_hash_table_contains(known, c->name)) {
            JsonObject *obj = json_object_new();
            json_object_set_string_member(obj, "name", c->name);
            json_array_add_object_element(list, obj);
        }
    }
    qmp_request_finish(req, g_steal_pointer(&node), NULL);
}

/* --- Dispatch --- */

static const QmpCommandInfo *find_command(const char *name)
{
    for (const QmpCommandInfo *c = dispatch.commands; c && c->name; c++) {
        if (strcmp(c->name, name) == 0) {
            return c;
        }
    }
    return NULL;
}

static void run_command(QmpRequest *req, const QmpCommandInfo *info, JsonObject *args)
{
    g_autoptr(JsonNode) ret = NULL;
    g_autoptr(GError) err = NULL;

    if (!qapi_check_args(info->args, args, &err)) {
        qmp_client_answer_error(req, err);
        return;
    }
    switch (info->handler(req, args, &ret, &err)) {
    case QMP_DONE:
        answer_node(req, ret);
        break;
    case QMP_FAILED:
        if (!err) {
            colo_error_set(&err, "Command %s failed without a reason", info->name);
        }
        qmp_client_answer_error(req, err);
        break;
    case QMP_PASS:
        pass_on(req);
        break;
    case QMP_PENDING:
        break;
    }
}

void qmp_dispatch(QmpRequest *req)
{
    g_autoptr(JsonNode) node = NULL;

    if (req->error) {
        qmp_client_answer_error(req, req->error);
        return;
    }
    colo_trace(monitor_command, "client %u: %s%s", qmp_client_number(req->client),
               req->name, req->oob ? " (oob)" : "");
    if (req->oob && !qmp_client_oob(req->client)) {
        fail(req, COLO_ERROR_GENERIC, "QMP input member 'exec-oob' is unexpected");
        return;
    }
    bool negotiates = strcmp(req->name, "qmp_capabilities") == 0;
    if (!qmp_client_ready(req->client) && !negotiates) {
        fail(req, COLO_ERROR_COMMAND_NOT_FOUND,
             "Expecting capabilities negotiation with 'qmp_capabilities'");
        return;
    }
    const QmpCommandInfo *info = find_command(req->name);
    bool merges = strcmp(req->name, "query-commands") == 0 && !req->arguments.text &&
                  !req->oob;
    if (qmp_client_ready(req->client) && !info && !merges) {
        pass_on(req);
        return;
    }
    if (req->arguments.text) {
        json_text_parse(req->arguments, &node, NULL); /* was checked before */
    } else {
        node = json_node_init_object(json_node_alloc(), json_object_new());
        json_object_unref(json_node_get_object(node));
    }
    if (negotiates && !qmp_client_ready(req->client)) {
        negotiate(req, json_node_get_object(node));
    } else if (merges) {
        monitor_child_execute("query-commands", NULL, commands_merged, req);
    } else if (req->oob && !info->allow_oob) {
        fail(req, COLO_ERROR_GENERIC, "The command %s does not support OOB", req->name);
    } else {
        run_command(req, info, json_node_get_object(node));
    }
}

/* --- Life --- */

void monitor_set_commands(const QmpCommandInfo *table)
{
    dispatch.commands = table;
}

bool monitor_init(int child_fd, GError **errp)
{
    dispatch.main_thread = g_thread_self();
    if (!dispatch.posted) {
        dispatch.posted = g_async_queue_new(); /* kept: a late thread may still post */
    }
    /* A client that left shows as EPIPE, also on standard output. */
    signal(SIGPIPE, SIG_IGN);
    return child_init(child_fd, errp);
}

void monitor_drop_child(void)
{
    child_shutdown();
}

void monitor_shutdown(void)
{
    run_posted(NULL);
    qmp_clients_shutdown(500);
    qmp_servers_shutdown();
    child_shutdown();
}
