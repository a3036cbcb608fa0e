/*
 * coloctl status: one side, for people and for programs.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "coloctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SCHEMA 1 /* of --json: counts up when a member changes its meaning or goes */

static bool is(const CtlSide *s, const char *state)
{
    return strcmp(s->state, state) == 0;
}

/* The role is not said in every state: before protection a secondary is known by its guest,
 * which has not been there yet. */
static const char *find_role(const CtlSide *s)
{
    const char *mode = ctl_str(s->colo, "mode", "none");

    if (strcmp(mode, "primary") == 0) {
        return "primary";
    } else if (strcmp(mode, "secondary") == 0 || is(s, "waiting") ||
               strcmp(s->run_state, "inmigrate") == 0) {
        return "secondary";
    }
    return is(s, "setup") || is(s, "sync") ? "primary" : "none";
}

static bool find_serves(const CtlSide *s)
{
    JsonObject *a = ctl_object(s->colo, "arbiter");

    if (json_object_has_member(s->colo, "serves")) {
        return ctl_bool(s->colo, "serves", false);
    }
    if (strcmp(s->role, "secondary") == 0 || is(s, "lost") || is(s, "takeover") ||
        is(s, "fenced") || strcmp(s->run_state, "prelaunch") == 0) {
        return false;
    }
    /* Alone beside a witness: by its lease. */
    return !is(s, "alone") || ctl_int(a, "lease-left", 1) > 0;
}

static char *query_name(CtlQmp *q)
{
    g_autoptr(JsonObject) o = ctl_qmp_query(q, "query-name", NULL);
    const char *name = ctl_str(o, "name", NULL);

    return name ? ctl_clean(name, 200) : NULL;
}

CtlSide *ctl_side_query(CtlQmp *q, GError **errp)
{
    g_autoptr(CtlSide) s = g_new0(CtlSide, 1);

    s->colo = ctl_qmp_query(q, "query-colo-status", errp);
    if (!s->colo) {
        return NULL;
    }
    s->state = ctl_str(s->colo, "state", NULL);
    if (!s->state) {
        ctl_set_error(errp, CTL_ERROR_UNREACHABLE, "query-colo-status has no 'state': that is "
                      "an emulator without qemu-colo");
        return NULL;
    }
    g_autoptr(JsonObject) status = ctl_qmp_query(q, "query-status", NULL);
    s->run_state = ctl_clean(ctl_str(status, "status", "unknown"), 100);
    s->migrate = ctl_qmp_query(q, "query-migrate", NULL);
    s->proxy = ctl_qmp_execute(q, "query-colo-proxy", NULL, NULL);
    s->name = query_name(q);
    s->qemu = g_strdup(ctl_qmp_version(q));
    s->role = find_role(s);
    s->serves = find_serves(s);
    s->epoch = ctl_int(s->colo, "epoch", 0);
    s->checkpoints = ctl_int(s->colo, "checkpoints", 0);
    return g_steal_pointer(&s);
}

void ctl_side_free(CtlSide *s)
{
    if (s) {
        g_clear_pointer(&s->colo, json_object_unref);
        g_clear_pointer(&s->migrate, json_object_unref);
        g_clear_pointer(&s->proxy, json_node_unref);
        g_free(s->name);
        g_free(s->run_state);
        g_free(s->qemu);
        g_free(s);
    }
}

CtlSide *ctl_side_look(const char *socket, GError **errp)
{
    g_autoptr(CtlQmp) q = ctl_qmp_open(socket, errp);

    return q ? ctl_side_query(q, errp) : NULL;
}

int ctl_side_code(const CtlSide *s)
{
    if (is(s, "protected")) {
        return CTL_OK;
    }
    return is(s, "lost") || is(s, "fenced") || is(s, "takeover") ? CTL_LOST : CTL_UNPROTECTED;
}

JsonNode *ctl_side_json(const CtlSide *s)
{
    g_autoptr(JsonObject) o = json_object_new();
    const char *error = ctl_str(s->colo, "error", NULL);

    json_object_set_int_member(o, "schema", SCHEMA);
    if (s->name) {
        json_object_set_string_member(o, "name", s->name);
    } else {
        json_object_set_null_member(o, "name");
    }
    json_object_set_string_member(o, "qemu", s->qemu);
    json_object_set_string_member(o, "state", s->state);
    json_object_set_string_member(o, "role", s->role);
    json_object_set_boolean_member(o, "protected", is(s, "protected"));
    json_object_set_boolean_member(o, "serves", s->serves);
    json_object_set_string_member(o, "run-state", s->run_state);
    json_object_set_int_member(o, "epoch", s->epoch);
    if (error) {
        json_object_set_string_member(o, "error", error);
    } else {
        json_object_set_null_member(o, "error");
    }
    json_object_set_object_member(o, "colo", json_object_ref(s->colo));
    if (s->migrate) {
        json_object_set_object_member(o, "migrate", json_object_ref(s->migrate));
    }
    if (s->proxy) {
        json_object_set_member(o, "proxy", json_node_copy(s->proxy));
    }
    return json_node_init_object(json_node_alloc(), o);
}

static CtlColour colour_of(const CtlSide *s)
{
    return is(s, "protected") ? CTL_GREEN : ctl_side_code(s) == CTL_LOST ? CTL_RED : CTL_YELLOW;
}

char *ctl_side_headline(const CtlSide *s)
{
    g_autofree char *state = ctl_clean(s->state, 40);
    g_autofree char *shown = ctl_paint(colour_of(s), state);
    g_autofree char *name = ctl_paint(CTL_BOLD, s->name ? s->name : "(no name)");
    bool role = strcmp(s->role, "none") != 0;

    return g_strdup_printf("%s: %s (%s%s%s), guest %s", name, shown, role ? s->role : "",
                           role ? ", " : "", s->serves ? "serves" : "silent", s->run_state);
}

static void row(const char *label, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
static void row(const char *label, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_autofree char *clean = ctl_clean(text, 400);
    printf("  %-13s %s\n", label, clean);
}

static void show_checkpoints(const CtlSide *s)
{
    JsonObject *p = ctl_object(s->colo, "pause-us"), *t = ctl_object(s->colo, "triggers");
    g_autofree char *last = ctl_us(ctl_int(p, "last", 0));
    g_autofree char *median = ctl_us(ctl_int(p, "median", 0));
    g_autofree char *p99 = ctl_us(ctl_int(p, "p99", 0));
    g_autofree char *lag = ctl_us(ctl_int(ctl_object(s->colo, "lag-us"), "median", 0));
    g_autoptr(GString) why = g_string_new(NULL);
    g_autoptr(GList) names = t ? json_object_get_members(t) : NULL;

    row("epoch", "%" PRId64 " (%" PRId64 " checkpoints, %" PRId64 " torn)", s->epoch,
        s->checkpoints, ctl_int(s->colo, "torn-checkpoints", 0));
    if (ctl_int(p, "count", 0) > 0) {
        row("pause", "last %s, median %s, p99 %s", last, median, p99);
    }
    if (ctl_int(ctl_object(s->colo, "lag-us"), "count", 0) > 0) {
        row("secondary", "needs %s to load (median)", lag);
    }
    for (GList *n = names; n; n = n->next) {
        int64_t count = ctl_int(t, n->data, 0);
        if (count > 0) {
            g_string_append_printf(why, "%s%s %" PRId64, why->len ? ", " : "",
                                   (char *)n->data, count);
        }
    }
    if (why->len) {
        row("because of", "%s", why->str);
    }
}

static void show_disks(const CtlSide *s)
{
    JsonArray *disks = ctl_array(s->colo, "disks");

    for (guint i = 0; disks && i < json_array_get_length(disks); i++) {
        JsonNode *n = json_array_get_element(disks, i);
        JsonObject *d = JSON_NODE_HOLDS_OBJECT(n) ? json_node_get_object(n) : NULL;
        const char *error = ctl_str(d, "error", NULL);
        g_autofree char *queued = ctl_bytes(
            ctl_int(d, "queued-bytes", ctl_int(d, "log-bytes", 0)));
        row(i ? "" : "disks", "%s: %s, %s %s%s%s", ctl_str(d, "node-name", "?"),
            ctl_str(d, "state", "?"), queued,
            d && json_object_has_member(d, "queued-bytes") ? "queued" : "in the log",
            error ? "; " : "", error ? error : "");
    }
}

static void show_arbiter(JsonObject *a)
{
    if (!a) {
        return;
    }
    if (strcmp(ctl_str(a, "kind", ""), "witness") == 0) {
        row("arbiter", "witness: %s, generation %" PRId64 ", %s", ctl_str(a, "ownership", "?"),
            ctl_int(a, "generation", 0),
            ctl_bool(a, "reachable", false) ? "reachable" : "OUT OF REACH");
    } else {
        row("arbiter", "%s, %" PRId64 " attempts", ctl_str(a, "kind", "?"),
            ctl_int(a, "attempts", 0));
    }
    if (json_object_has_member(a, "error")) {
        row("", "no answer: %s", ctl_str(a, "error", "?"));
    }
}

static void show_links(JsonObject *h)
{
    JsonArray *links = ctl_array(h, "links");

    if (!h || strcmp(ctl_str(h, "state", "off"), "off") == 0) {
        return;
    }
    row("heartbeat", "%s, the peer says %s", ctl_str(h, "state", "?"),
        ctl_str(h, "peer-role", "nothing"));
    for (guint i = 0; links && i < json_array_get_length(links); i++) {
        JsonNode *n = json_array_get_element(links, i);
        JsonObject *l = JSON_NODE_HOLDS_OBJECT(n) ? json_node_get_object(n) : NULL;
        g_autofree char *rtt = ctl_us(ctl_int(l, "rtt-us", 0));
        row("", "link %s: %s, round trip %s", ctl_str(l, "peer", ctl_str(l, "id", "?")),
            ctl_str(l, "state", "?"), rtt);
    }
}

static void show_pair(JsonObject *p)
{
    const char *state = ctl_str(p, "state", "off"), *error = ctl_str(p, "error", NULL);
    int64_t total = ctl_int(p, "resync-total", 0), next = ctl_int(p, "next-try-ms", 0);

    if (strcmp(state, "off") == 0) {
        return;
    }
    const char *detail = ctl_str(p, "detail", "");
    row("pair", "%s%s%s, peer %s, %" PRId64 " attempts", state, *detail ? ": " : "", detail,
        ctl_str(p, "peer", "?"), ctl_int(p, "attempts", 0));
    if (strcmp(state, "resync") == 0 && total > 0) {
        g_autofree char *done = ctl_bytes(ctl_int(p, "resync-done", 0)), *all = ctl_bytes(total);
        row("", "disks: %s of %s", done, all);
    }
    if (next > 0) {
        row("", "tries again in %" PRId64 " ms", next);
    }
    if (error && *error) {
        row("", "%s", error);
    }
}

static void show(const CtlSide *s)
{
    g_autofree char *head = ctl_side_headline(s);
    g_autofree char *held = ctl_bytes(ctl_int(s->colo, "held-bytes", 0));
    g_autofree char *ram = ctl_bytes(ctl_int(s->colo, "ram-overhead", 0));
    const char *error = ctl_str(s->colo, "error", NULL);

    puts(head);
    if (s->checkpoints > 0) {
        show_checkpoints(s);
    }
    if (ctl_int(s->colo, "held-frames", 0) > 0 || is(s, "lost")) {
        row("output held", "%" PRId64 " frames, %s", ctl_int(s->colo, "held-frames", 0), held);
    }
    show_disks(s);
    show_links(ctl_object(s->colo, "heartbeat"));
    show_pair(ctl_object(s->colo, "pair"));
    show_arbiter(ctl_object(s->colo, "arbiter"));
    row("memory", "%s beside the guest's", ram);
    if (error) {
        row("error", "%s", error);
    }
    if (is(s, "lost") && !ctl_object(s->colo, "arbiter")) {
        row("what to do", "make sure that the other side is off, then: coloctl failover");
    } else if (is(s, "fenced")) {
        row("what to do", "the other side serves: end this one and start it as secondary");
    }
}

/* While coloctl run waits for the other host there is no monitor; what it says is in a file. */
static void say_supervisor(const CtlTarget *t)
{
    g_autofree char *dir = g_path_get_dirname(t->qmp);
    g_autofree char *path = g_build_filename(dir, "state", NULL);
    g_autofree char *text = NULL;

    if (g_file_get_contents(path, &text, NULL, NULL)) {
        g_autofree char *clean = ctl_clean(text, 600);
        fprintf(stderr, "coloctl: coloctl run said last: %s\n", clean);
    }
}

/* Words that a shell can eval: none of them has a character that it would look at twice. */
static void show_shell(const CtlSide *s)
{
    printf("state=%s role=%s serves=%s protected=%s epoch=%" PRId64 "\n",
           is(s, "alone") || is(s, "waiting") || is(s, "setup") || is(s, "sync") ||
                   is(s, "protected") || is(s, "lost") || is(s, "takeover") || is(s, "fenced")
               ? s->state
               : "unknown",
           s->role, s->serves ? "true" : "false", is(s, "protected") ? "true" : "false",
           s->epoch);
}

int cmd_status(int argc, char **argv)
{
    gboolean json = FALSE, shell = FALSE;
    const GOptionEntry entries[] = {
        {"json", 0, 0, G_OPTION_ARG_NONE, &json, "for programs", NULL},
        {"shell", 0, 0, G_OPTION_ARG_NONE, &shell, "state=... role=... for scripts", NULL},
        {NULL}};
    g_auto(CtlTarget) t = {0};
    g_autoptr(GError) err = NULL;
    int code = ctl_target_parse(&t, argc, argv, "Show one side of a protected VM. Exit code 0: "
                                "protected, 3: not, 4: lost, 5: nobody there.", entries, false);

    if (code != CTL_OK) {
        return code;
    }
    g_autoptr(CtlSide) s = ctl_side_look(t.qmp, &err);
    if (!s) {
        say_supervisor(&t);
        return ctl_fail(err);
    }
    if (json) {
        g_autoptr(JsonNode) node = ctl_side_json(s);
        g_autofree char *text = ctl_json(node, true);
        puts(text);
    } else if (shell) {
        show_shell(s);
    } else {
        show(s);
    }
    return ctl_side_code(s);
}
