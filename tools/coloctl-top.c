/*
 * coloctl top: a side as it goes, once a second.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * On a terminal a screen that is painted anew; elsewhere a line a look, for logs. Rates are
 * between two looks. The terminal is left as it was found, by signals too.
 */
#include "coloctl.h"

#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

/* What rates are made of. */
typedef struct Sample {
    gint64 at;
    int64_t checkpoints, bytes, rx, tx, mismatches;
} Sample;

typedef struct Top {
    const CtlTarget *target;
    bool screen;
    struct termios before;
    bool raw;
    Sample last;
    double seconds; /* since the last sample; 0: none */
} Top;

/* Documented global: handlers have no other way. */
static volatile sig_atomic_t ended;

static void on_signal(int sig)
{
    ended = sig;
}

static void add(GString *out, const char *label, const char *fmt, ...) G_GNUC_PRINTF(3, 4);
static void add(GString *out, const char *label, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_autofree char *clean = ctl_clean(text, 400);
    g_autofree char *name = g_strdup_printf("%-13s", label);
    g_autofree char *dim = ctl_paint(CTL_DIM, name);
    g_string_append_printf(out, "%s %s\n", dim, clean);
}

/* The entries of query-colo-proxy of one type. */
static JsonObject *proxy_entry(const CtlSide *s, const char *type, guint *at)
{
    JsonArray *a = s->proxy && JSON_NODE_HOLDS_ARRAY(s->proxy) ? json_node_get_array(s->proxy)
                                                               : NULL;

    while (a && *at < json_array_get_length(a)) {
        JsonNode *n = json_array_get_element(a, (*at)++);
        JsonObject *o = JSON_NODE_HOLDS_OBJECT(n) ? json_node_get_object(n) : NULL;
        if (strcmp(ctl_str(o, "type", ""), type) == 0) {
            return o;
        }
    }
    return NULL;
}

static Sample take(const CtlSide *s)
{
    Sample now = {g_get_monotonic_time(), s->checkpoints, ctl_int(s->colo, "bytes-sent", 0)};
    JsonObject *o;

    for (guint i = 0; (o = proxy_entry(s, "netdev", &i));) {
        now.rx += ctl_int(o, "rx-frames", 0);
        now.tx += ctl_int(o, "tx-frames", 0);
    }
    for (guint i = 0; (o = proxy_entry(s, "colo-compare", &i));) {
        now.mismatches += ctl_int(o, "triggers", 0);
    }
    return now;
}

static double rate(const Top *t, int64_t now, int64_t before)
{
    return t->seconds > 0 && now >= before ? (now - before) / t->seconds : 0;
}

static void show_causes(GString *out, const CtlSide *s)
{
    JsonObject *o;

    for (guint i = 0; (o = proxy_entry(s, "colo-compare", &i));) {
        JsonObject *causes = ctl_object(o, "mismatches");
        JsonArray *last = ctl_array(o, "last");
        g_autoptr(GList) names = causes ? json_object_get_members(causes) : NULL;
        g_autofree char *longest = ctl_us(ctl_int(o, "held-longest-us", 0));
        g_autofree char *lag = ctl_us(ctl_int(o, "secondary-lag-us", 0));
        add(out, "compared", "%" PRId64 " flows, the secondary lags %s, output held for %s at "
            "most", ctl_int(o, "flows", 0), lag, longest);
        for (GList *n = names; n; n = n->next) {
            if (ctl_int(causes, n->data, 0) > 0) {
                add(out, "mismatch", "%" PRId64 " x %s", ctl_int(causes, n->data, 0),
                    (char *)n->data);
            }
        }
        for (guint m = 0; last && m < MIN(3, json_array_get_length(last)); m++) {
            JsonNode *n = json_array_get_element(last, m);
            JsonObject *e = JSON_NODE_HOLDS_OBJECT(n) ? json_node_get_object(n) : NULL;
            g_autofree char *age = ctl_us(ctl_int(e, "age-ms", 0) * 1000);
            add(out, m ? "" : "last ones", "%s ago: %s, %s, byte %" PRId64, age,
                ctl_str(e, "flow", "?"), ctl_str(e, "cause", "?"), ctl_int(e, "offset", 0));
        }
    }
}

static void show_disks(GString *out, const CtlSide *s)
{
    JsonArray *disks = ctl_array(s->colo, "disks");

    for (guint i = 0; disks && i < json_array_get_length(disks); i++) {
        JsonNode *n = json_array_get_element(disks, i);
        JsonObject *d = JSON_NODE_HOLDS_OBJECT(n) ? json_node_get_object(n) : NULL;
        g_autofree char *bytes =
            ctl_bytes(ctl_int(d, "queued-bytes", ctl_int(d, "log-bytes", 0)));
        add(out, "disk", "%s: %s, %s waiting", ctl_str(d, "node-name", "?"),
            ctl_str(d, "state", "?"), bytes);
    }
}

static void show_links(GString *out, const CtlSide *s)
{
    JsonArray *links = ctl_array(ctl_object(s->colo, "heartbeat"), "links");

    for (guint i = 0; links && i < json_array_get_length(links); i++) {
        JsonNode *n = json_array_get_element(links, i);
        JsonObject *l = JSON_NODE_HOLDS_OBJECT(n) ? json_node_get_object(n) : NULL;
        g_autofree char *rtt = ctl_us(ctl_int(l, "rtt-us", 0));
        add(out, "link", "%s: %s, %s", ctl_str(l, "peer", "?"), ctl_str(l, "state", "?"), rtt);
    }
}

static void show_way(GString *out, const CtlSide *s)
{
    JsonObject *pair = ctl_object(s->colo, "pair"), *ram = ctl_object(s->migrate, "ram");
    int64_t total = ctl_int(pair, "resync-total", 0), done = ctl_int(pair, "resync-done", 0);
    const char *what = "disks";

    if (strcmp(ctl_str(pair, "state", "off"), "off") != 0) {
        add(out, "pair", "%s %s", ctl_str(pair, "state", "?"), ctl_str(pair, "detail", ""));
    }
    if (strcmp(s->state, "sync") == 0) {
        what = "memory";
        total = ctl_int(ram, "total", 0);
        done = total - ctl_int(ram, "remaining", 0);
    } else if (strcmp(ctl_str(pair, "state", ""), "resync") != 0) {
        return;
    }
    if (total > 0) {
        g_autofree char *a = ctl_bytes(done), *b = ctl_bytes(total);
        add(out, what, "%3.0f %%, %s of %s", CLAMP(100.0 * done / total, 0, 100), a, b);
    }
}

static GString *page(const Top *t, const CtlSide *s, const Sample *now)
{
    GString *out = g_string_new(NULL);
    JsonObject *p = ctl_object(s->colo, "pause-us");
    g_autofree char *head = ctl_side_headline(s);
    g_autofree char *last = ctl_us(ctl_int(p, "last", 0)), *med = ctl_us(ctl_int(p, "median", 0));
    g_autofree char *p99 = ctl_us(ctl_int(p, "p99", 0));
    g_autofree char *sent = ctl_bytes(rate(t, now->bytes, t->last.bytes));
    g_autofree char *held = ctl_bytes(ctl_int(s->colo, "held-bytes", 0));
    g_autofree char *lag = ctl_us(ctl_int(ctl_object(s->colo, "lag-us"), "median", 0));
    const char *error = ctl_str(s->colo, "error", NULL);

    g_string_append_printf(out, "%s\n\n", head);
    add(out, "epoch", "%" PRId64 ", %.1f checkpoints a second, %s/s to the peer", s->epoch,
        rate(t, now->checkpoints, t->last.checkpoints), sent);
    add(out, "pause", "last %s, median %s, p99 %s; the secondary loads in %s", last, med, p99,
        lag);
    add(out, "dirty", "%" PRId64 " pages a checkpoint (median)",
        ctl_int(ctl_object(s->colo, "dirty-pages"), "median", 0));
    add(out, "held", "%" PRId64 " frames, %s of output", ctl_int(s->colo, "held-frames", 0),
        held);
    add(out, "network", "%.0f frames/s out of the guest, %.0f into it",
        rate(t, now->rx, t->last.rx), rate(t, now->tx, t->last.tx));
    show_causes(out, s);
    show_disks(out, s);
    show_links(out, s);
    show_way(out, s);
    if (error) {
        add(out, "error", "%s", error);
    }
    return out;
}

/* A line for a log. */
static void print_line(const Top *t, const CtlSide *s, const Sample *now)
{
    g_autoptr(GDateTime) when = g_date_time_new_now_utc();
    g_autofree char *time = g_date_time_format(when, "%FT%TZ");
    g_autofree char *state = ctl_clean(s->state, 40);
    JsonObject *p = ctl_object(s->colo, "pause-us");

    printf("%s state=%s role=%s serves=%s epoch=%" PRId64 " checkpoints/s=%.1f pause-us=%" PRId64
           " held-frames=%" PRId64 " held-bytes=%" PRId64 " sent-bytes/s=%.0f out-frames/s=%.0f "
           "in-frames/s=%.0f mismatches/s=%.1f\n", time, state, s->role,
           s->serves ? "yes" : "no", s->epoch, rate(t, now->checkpoints, t->last.checkpoints),
           ctl_int(p, "last", 0), ctl_int(s->colo, "held-frames", 0),
           ctl_int(s->colo, "held-bytes", 0), rate(t, now->bytes, t->last.bytes),
           rate(t, now->rx, t->last.rx), rate(t, now->tx, t->last.tx),
           rate(t, now->mismatches, t->last.mismatches));
    fflush(stdout);
}

static void paint(GString *text)
{
    struct winsize ws = {0};
    g_auto(GStrv) lines = g_strsplit(text->str, "\n", -1);
    int rows = ioctl(STDOUT_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_row > 1 ? ws.ws_row - 1 : 23;

    /* No wrapping: a long line is cut by the terminal. */
    fputs("\033[H\033[?7l", stdout);
    for (int i = 0; i < rows && lines[i]; i++) {
        printf("%s\033[K\n", lines[i]);
    }
    fputs("\033[J\033[?7h", stdout);
    fflush(stdout);
}

static void enter(Top *t)
{
    struct termios raw;

    t->raw = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &t->before) == 0;
    if (t->raw) {
        raw = t->before;
        raw.c_lflag &= ~(ICANON | ECHO);
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    fputs("\033[?1049h\033[?25l\033[2J", stdout);
}

static void leave(Top *t)
{
    fputs("\033[?25h\033[?1049l", stdout);
    fflush(stdout);
    if (t->raw) {
        tcsetattr(STDIN_FILENO, TCSANOW, &t->before);
    }
}

/* A key ends it; an end of standard input does not. */
static bool key_pressed(const Top *t, int ms)
{
    struct pollfd p = {.fd = t->raw ? STDIN_FILENO : -1, .events = POLLIN};
    char c = 0;

    if (poll(&p, 1, ms) > 0 && read(STDIN_FILENO, &c, 1) == 1) {
        return c == 'q' || c == 'Q' || c == 4;
    }
    return false;
}

static int look(Top *t, GError **errp)
{
    g_autoptr(CtlSide) s = ctl_side_look(t->target->qmp, errp);

    if (!s) {
        return CTL_UNREACHABLE;
    }
    Sample now = take(s);
    t->seconds = t->last.at ? (now.at - t->last.at) / 1e6 : 0;
    if (t->screen) {
        g_autoptr(GString) text = page(t, s, &now);
        g_string_append(text, "\nq ends");
        paint(text);
    } else {
        print_line(t, s, &now);
    }
    t->last = now;
    return CTL_OK;
}

int cmd_top(int argc, char **argv)
{
    double interval = 1;
    int count = 0;
    const GOptionEntry entries[] = {
        {"interval", 0, 0, G_OPTION_ARG_DOUBLE, &interval, "seconds between two looks (1)", "S"},
        {"count", 0, 0, G_OPTION_ARG_INT, &count, "end after so many looks", "N"},
        {NULL}};
    g_auto(CtlTarget) t = {0};
    g_autoptr(GError) err = NULL;
    int code = ctl_target_parse(&t, argc, argv, "Watch one side: a screen on a terminal, else a "
                                "line a look. q ends.", entries, false);

    if (code != CTL_OK) {
        return code;
    }
    if (!(interval >= 0.1 && interval <= 3600) || count < 0) {
        return ctl_usage("--interval %g, --count %d: expected 0.1 to 3600 seconds, and no "
                         "negative count", interval, count);
    }
    Top top = {.target = &t, .screen = ctl_is_terminal()};
    struct sigaction sa = {.sa_handler = on_signal};
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    if (top.screen) {
        enter(&top);
    }
    for (int n = 0; !ended && (count == 0 || n < count); n++) {
        if (n && (key_pressed(&top, interval * 1000) || ended)) {
            break;
        }
        code = look(&top, &err);
        if (code != CTL_OK || ferror(stdout)) {
            break;
        }
    }
    if (top.screen) {
        leave(&top);
    }
    return err ? ctl_fail(err) : code;
}
