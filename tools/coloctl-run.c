/*
 * coloctl run: one side of a protected VM, looked after.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: the same command on both hosts is the whole set-up, and whatever dies comes back in the
 * role in which it may.
 *
 * States: undecided (the pair port answered by us, the other asked twice a second, see
 * coloctl-role.c), running (qemu-colo is our child), resting (it failed; again after 1 s, 2 s
 * ... 30 s, one second again after a minute of running). What this side is gets written down
 * before it begins to be it: by us where we start a secondary, by qemu-colo itself while it
 * runs; we read it again when it has ended.
 *
 * Invariants: one coloctl run a VM and host (a lock). qemu-colo does not outlive us (the kernel
 * kills it with us: a side without its keeper is a side that died, which the other one can
 * handle). Who may speak is decided by qemu-colo and its arbiter, never here: we only refrain
 * from starting.
 *
 * Limits: one thread, so a hanging monitor delays signals by up to two seconds.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "coloctl-cmdline.h"
#include "coloctl-run.h"
#include "util/error.h"

#define ASK_MS 1000
#define LOOK_MS 500
#define WATCH_MS 1000 /* and at each event */
#define REST_FIRST_S 1
#define REST_MAX_S 30
#define WELL_S 60
#define SLOW_S 2
#define LOG_MAX (4 * 1024 * 1024)
#define MONITOR_MS 2000

/* Exit statuses of qemu-colo. */
#define STATUS_PEER_SERVES 3
#define STATUS_BE_SECONDARY 4

typedef struct Run {
    VmConf *conf;
    char *program;
    GMainLoop *loop;
    int code;
    bool once, ending;
    LastRole last;
    Decision forced; /* --role, for the first start */

    PairPort *port; /* while undecided */
    guint look_tag;
    char *status; /* said last */

    GPid pid; /* of qemu-colo, or 0 */
    bool secondary;
    bool vouched; /* primary by the operator's word */
    gint64 started;
    unsigned rest;
    CtlQmp *qmp; /* its third monitor */
    guint qmp_tag;
    int log_fd, out_fd;
    char *log_path;
} Run;

static gboolean look(gpointer opaque);

/* --- What is said --- */

static void log_bytes(Run *r, const char *text, size_t len)
{
    struct stat st;
    ssize_t n;

    if (r->log_fd >= 0 && fstat(r->log_fd, &st) == 0 && st.st_size > LOG_MAX) {
        g_autofree char *old = g_strconcat(r->log_path, ".1", NULL);
        close(r->log_fd);
        rename(r->log_path, old);
        r->log_fd = open(r->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
    n = r->log_fd >= 0 ? write(r->log_fd, text, len) : 0;
    n += write(STDERR_FILENO, text, len);
    (void)n; /* a full disk or a closed terminal is no reason to end */
}

static void say(Run *r, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
static void say(Run *r, const char *fmt, ...)
{
    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    g_autofree char *when = g_date_time_format(now, "%F %TZ");
    va_list ap;

    va_start(ap, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_autofree char *clean = ctl_clean(text, 2000);
    g_autofree char *line = g_strdup_printf("coloctl: %s: %s\n", when, clean);
    log_bytes(r, line, strlen(line));
}

/* The state in a few words: for the service manager, and for "coloctl status" while there is no
 * monitor. */
static void set_status(Run *r, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
static void set_status(Run *r, const char *fmt, ...)
{
    g_autofree char *path = vm_conf_socket(r->conf, "state");
    va_list ap;

    va_start(ap, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    if (g_strcmp0(text, r->status) != 0) {
        g_free(r->status);
        r->status = g_steal_pointer(&text);
        say(r, "%s", r->status);
        notify_state("STATUS=%s", r->status);
        g_file_set_contents(path, r->status, -1, NULL);
    }
}

static bool note_role(Run *r, LastRole role)
{
    g_autoptr(GError) err = NULL;

    if (role == r->last) {
        return true;
    }
    if (!last_role_save(r->conf, role, &err)) {
        say(r, "%s", err->message);
        return false;
    }
    r->last = role;
    return true;
}

static void finish(Run *r, int code)
{
    r->code = code;
    g_main_loop_quit(r->loop);
}

/* --- Running --- */

static void before_exec(gpointer parent)
{
    sigset_t none;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != GPOINTER_TO_INT(parent)) {
        _exit(1);
    }
    setpgid(0, 0); /* a terminal's ^C comes once, from us */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
}

static gboolean on_output(int fd, GIOCondition cond, gpointer opaque)
{
    Run *r = opaque;
    char buf[4096];
    ssize_t n = read(fd, buf, sizeof(buf));

    if (n > 0) {
        log_bytes(r, buf, n);
        return G_SOURCE_CONTINUE;
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return G_SOURCE_CONTINUE;
    }
    close(fd);
    r->out_fd = -1;
    return G_SOURCE_REMOVE;
}

static void look_again(Run *r, unsigned ms)
{
    if (r->look_tag) {
        g_source_remove(r->look_tag);
    }
    r->look_tag = g_timeout_add(ms, look, r);
}

static void drop_monitor(Run *r)
{
    if (r->qmp_tag) {
        g_source_remove(r->qmp_tag);
        r->qmp_tag = 0;
    }
    g_clear_pointer(&r->qmp, ctl_qmp_close);
}

static void on_exit_of_child(GPid pid, gint wait_status, gpointer opaque)
{
    Run *r = opaque;
    int code = WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 1;
    bool well = g_get_monotonic_time() - r->started > WELL_S * 1000000ll;
    g_autoptr(GError) err = NULL;

    g_spawn_close_pid(pid);
    r->pid = 0;
    drop_monitor(r);
    if (WIFSIGNALED(wait_status)) {
        say(r, "qemu-colo was killed by signal %d", WTERMSIG(wait_status));
    } else {
        say(r, "qemu-colo ended with status %d", code);
    }
    /* A start that was refused has changed nothing of it. */
    if (!last_role_load(r->conf, &r->last, &err)) {
        say(r, "%s", err->message);
        set_status(r, "ended");
        finish(r, CTL_FAILED);
        return;
    }
    if (code == STATUS_BE_SECONDARY) {
        note_role(r, LAST_FENCED);
    }
    if (r->ending || code == 0 || r->once) {
        set_status(r, "ended");
        finish(r, r->ending ? CTL_OK : code);
        return;
    }
    r->forced = DECIDE_WAIT;
    if (code == STATUS_BE_SECONDARY || code == STATUS_PEER_SERVES) {
        r->rest = 0;
        look_again(r, 200);
        return;
    }
    r->rest = well || r->rest == 0 ? REST_FIRST_S : MIN(r->rest * 2, REST_MAX_S);
    set_status(r, "qemu-colo failed; again in %u s", r->rest);
    look_again(r, r->rest * 1000);
}

static void stop_listening(Run *r)
{
    g_clear_pointer(&r->port, pair_port_free);
}

/* The log is read by more people than the file, and longer than it is as it was: what may hold a
 * secret stays out of it. That are users and passwords of URLs (a witness'), and all that goes
 * from the file to the emulator as it is written. "run --dry-run" shows it. */
static void say_command_line(Run *r, char **argv)
{
    const VmConf *c = r->conf;
    g_autoptr(GRegex) secret = g_regex_new("://[^ ;]*@", 0, 0, NULL);
    g_autoptr(GString) line = g_string_new(NULL);
    guint given = c->args ? g_strv_length(c->args) : 0, n = g_strv_length(argv) - given;

    for (guint i = 0; i < n; i++) {
        const char *user = g_str_has_prefix(argv[i], "user,id=") ? strchr(argv[i] + 5, ',') : NULL;
        bool as_is = g_strcmp0(argv[i], c->colo_options) == 0;
        g_string_append_printf(line, "%s%.*s%s", i ? " " : "",
                               as_is ? 0 : user ? (int)(user + 1 - argv[i]) : -1, argv[i],
                               as_is || user ? "..." : "");
    }
    if (given) {
        g_string_append_printf(line, " (and %u words of [vm] args)", given);
    }
    g_autofree char *shown = g_regex_replace_literal(secret, line->str, -1, 0, "://...@", 0, NULL);
    say(r, "%s", shown);
}

static bool spawn(Run *r, GError **errp)
{
    g_auto(GStrv) argv = vm_command_line(r->conf, r->program, r->secondary, r->vouched);
    int fds[2];

    for (const char *const *s = (const char *const[]){"qmp", "ctl", "run", NULL}; *s; s++) {
        g_autofree char *file = g_strconcat(*s, ".sock", NULL);
        g_autofree char *path = vm_conf_socket(r->conf, file);
        unlink(path); /* of one that was killed */
    }
    if (!g_unix_open_pipe(fds, FD_CLOEXEC, errp)) {
        return false;
    }
    say_command_line(r, argv);
    bool ok = g_spawn_async_with_fds(NULL, argv, NULL,
                                     G_SPAWN_DO_NOT_REAP_CHILD, before_exec,
                                     GINT_TO_POINTER(getpid()), &r->pid, -1, fds[1], fds[1],
                                     errp);
    close(fds[1]);
    if (!ok) {
        close(fds[0]);
        return false;
    }
    g_unix_set_fd_nonblocking(fds[0], TRUE, NULL);
    r->out_fd = fds[0];
    g_unix_fd_add(fds[0], G_IO_IN | G_IO_HUP | G_IO_ERR, on_output, r);
    g_child_watch_add(r->pid, on_exit_of_child, r);
    return true;
}

static void start(Run *r, Decision d, const char *why)
{
    g_autoptr(GError) err = NULL;

    r->secondary = d == DECIDE_SECONDARY;
    r->vouched = r->forced == DECIDE_PRIMARY;
    r->started = g_get_monotonic_time();
    if (!run_prepare_disks(r->conf, r->secondary, &err)) {
        /* May be mended while we wait, a mount for example. */
        r->rest = r->rest ? MIN(r->rest * 2, REST_MAX_S) : REST_FIRST_S;
        set_status(r, "%s", err->message);
        if (r->once) {
            finish(r, CTL_FAILED);
        } else {
            look_again(r, r->rest * 1000);
        }
        return;
    }
    set_status(r, "starts as %s: %s", r->secondary ? "secondary" : "primary", why);
    stop_listening(r);
    /* That it is "alone" a primary writes itself, once peer and arbiter have let it. */
    if ((r->secondary && !note_role(r, LAST_SECONDARY)) || !spawn(r, &err)) {
        if (err) {
            say(r, "%s: %s", r->program, err->message);
        }
        finish(r, CTL_FAILED);
        return;
    }
    look_again(r, LOOK_MS / 5);
}

/* --- Undecided --- */

static void listen_to_peer(Run *r)
{
    g_autoptr(GError) err = NULL;

    peer_set_last(r->last);
    if (r->port) {
        return;
    }
    r->port = peer_listen(r->conf, &err);
    if (!r->port) {
        set_status(r, "the pair port: %s: is another VM's port-base the same?", err->message);
    }
}

static void decide(Run *r)
{
    const VmConf *c = r->conf;
    const char *why = "";
    PeerView v;
    Decision d = r->forced;

    if (d != DECIDE_WAIT) {
        start(r, d, "--role");
        return;
    }
    listen_to_peer(r);
    if (r->port) {
        peer_ask(c, vm_conf_peer(c)->addresses[0], ASK_MS, &v);
        d = role_decide(r->last, &v, c->prefer == c->local, &why);
    }
    if (d == DECIDE_WAIT) {
        if (r->port) {
            set_status(r, "waits (last %s): %s%s%s%s", last_role_name(r->last), why,
                       v.answers ? "" : " (", v.answers ? "" : v.why, v.answers ? "" : ")");
        }
        look_again(r, LOOK_MS);
        return;
    }
    start(r, d, why);
}

/* --- Watching --- */

static gboolean on_monitor(int fd, GIOCondition cond, gpointer opaque)
{
    Run *r = opaque;

    if (cond != G_IO_IN) {
        drop_monitor(r);
        return G_SOURCE_REMOVE; /* already */
    }
    if (ctl_qmp_news(r->qmp)) {
        look_again(r, 0);
    }
    return G_SOURCE_CONTINUE;
}

static void open_monitor(Run *r)
{
    g_autofree char *path = vm_conf_socket(r->conf, "run.sock");

    if (!r->qmp && access(path, F_OK) == 0) {
        r->qmp = ctl_qmp_open(path, NULL);
        if (r->qmp) {
            ctl_qmp_set_timeout(r->qmp, MONITOR_MS);
            r->qmp_tag = g_unix_fd_add(ctl_qmp_fd(r->qmp), G_IO_IN | G_IO_HUP | G_IO_ERR,
                                       on_monitor, r);
        }
    }
}

/* A start without a monitor for so long waits for the peer's word: it says so at its pair port. */
static void show_start(Run *r)
{
    PeerView v;

    if (r->secondary || g_get_monotonic_time() - r->started < SLOW_S * 1000000ll) {
        return;
    }
    peer_ask(r->conf, vm_conf_self(r->conf)->addresses[0], LOOK_MS, &v);
    if (v.answers && *v.asks) {
        set_status(r, "starts as primary, but asks on whether the other host serves: %s", v.asks);
    }
}

static void watch(Run *r)
{
    open_monitor(r);
    if (!r->qmp) {
        show_start(r);
        return;
    }
    g_autoptr(GError) err = NULL;
    g_autoptr(CtlSide) s = ctl_side_query(r->qmp, &err);
    if (!s) {
        if (g_error_matches(err, CTL_ERROR, CTL_ERROR_UNREACHABLE)) {
            drop_monitor(r);
        }
        return;
    }
    const char *why = ctl_str(s->colo, "error", NULL);
    JsonObject *pair = ctl_object(s->colo, "pair");
    const char *way = strcmp(s->state, "alone") == 0 ? ctl_str(pair, "detail", NULL) : NULL;
    set_status(r, "%s%s%s, %s%s%s%s%s", s->state, strcmp(s->role, "none") ? " " : "",
               strcmp(s->role, "none") ? s->role : "", s->serves ? "serves" : "silent",
               way && *way ? "; pair: " : "", way ? way : "",
               why && ctl_side_code(s) == CTL_LOST ? "; " : "",
               why && ctl_side_code(s) == CTL_LOST ? why : "");
}

static gboolean look(gpointer opaque)
{
    Run *r = opaque;

    r->look_tag = 0;
    if (r->ending) {
        return G_SOURCE_REMOVE;
    }
    if (r->pid) {
        watch(r);
        bool slow = !r->qmp && g_get_monotonic_time() - r->started > SLOW_S * 1000000ll;
        look_again(r, slow || (r->qmp && !ctl_qmp_news(r->qmp)) ? WATCH_MS : LOOK_MS / 5);
    } else {
        decide(r);
    }
    return G_SOURCE_REMOVE;
}

/* --- Start and end --- */

static gboolean on_signal(Run *r, int sig)
{
    if (sig == SIGHUP && r->pid == 0) {
        return G_SOURCE_CONTINUE;
    }
    if (!r->ending) {
        say(r, "signal %d: ends", sig);
        notify_state("STOPPING=1");
    }
    r->ending = true;
    if (r->pid) {
        kill(r->pid, sig == SIGINT ? SIGTERM : sig);
    } else {
        finish(r, CTL_OK);
    }
    return G_SOURCE_CONTINUE;
}

static gboolean on_term(gpointer r)
{
    return on_signal(r, SIGTERM);
}

static gboolean on_int(gpointer r)
{
    return on_signal(r, SIGINT);
}

static gboolean on_usr1(gpointer opaque)
{
    Run *r = opaque;

    if (r->pid) {
        kill(r->pid, SIGUSR1); /* arms -colo die-at, in tests */
    }
    return G_SOURCE_CONTINUE;
}

static bool parse_role(const char *text, Decision *out)
{
    *out = DECIDE_WAIT;
    if (text && strcmp(text, "primary") == 0) {
        *out = DECIDE_PRIMARY;
    } else if (text && strcmp(text, "secondary") == 0) {
        *out = DECIDE_SECONDARY;
    } else {
        return !text || strcmp(text, "auto") == 0;
    }
    return true;
}

static int run(Run *r)
{
    g_autoptr(GError) err = NULL;

    r->log_fd = r->out_fd = -1;
    r->program = vm_find_program(r->conf, &err);
    if (!r->program || !run_prepare(r->conf, &err) ||
        !last_role_load(r->conf, &r->last, &err)) {
        g_free(r->program);
        return ctl_fail(err);
    }
    r->log_path = g_strdup_printf("%s/log", r->conf->state_dir);
    r->log_fd = open(r->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    r->loop = g_main_loop_new(NULL, FALSE);
    g_unix_signal_add(SIGTERM, on_term, r);
    g_unix_signal_add(SIGHUP, on_term, r);
    g_unix_signal_add(SIGINT, on_int, r);
    g_unix_signal_add(SIGUSR1, on_usr1, r);
    say(r, "'%s' on host %s, last %s", r->conf->name, vm_conf_self(r->conf)->name,
        last_role_name(r->last));
    notify_state("READY=1");
    look_again(r, 0);
    g_main_loop_run(r->loop);
    stop_listening(r);
    drop_monitor(r);
    g_main_loop_unref(r->loop);
    g_free(r->program);
    g_free(r->log_path);
    g_free(r->status);
    return r->code;
}

/* For a shell: each word quoted where it needs to be. */
static int show_command_line(const VmConf *conf, bool secondary)
{
    g_autoptr(GError) err = NULL;
    g_autofree char *program = vm_find_program(conf, &err);

    if (!program) {
        return ctl_fail(err);
    }
    g_auto(GStrv) argv = vm_command_line(conf, program, secondary, false);
    for (char **w = argv; *w; w++) {
        g_autofree char *quoted = g_shell_quote(*w);
        bool plain = **w && !(*w)[strspn(*w, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                             "0123456789_-+=./:,@%")];
        printf("%s%s", plain ? *w : quoted, w[1] ? " " : "\n");
    }
    return CTL_OK;
}

int cmd_run(int argc, char **argv)
{
    gboolean once = FALSE, dry = FALSE;
    g_autofree char *role = NULL;
    const GOptionEntry entries[] = {
        {"role", 0, 0, G_OPTION_ARG_STRING, &role,
         "of the first start: auto (default), primary (you know that this disk is the newest), "
         "secondary", "ROLE"},
        {"once", 0, 0, G_OPTION_ARG_NONE, &once, "end with qemu-colo's exit status", NULL},
        {"dry-run", 0, 0, G_OPTION_ARG_NONE, &dry,
         "check the file and show the command line (--role secondary: that one's)", NULL},
        {NULL}};
    g_auto(CtlTarget) t = {0};
    Run r = {0};
    int code = ctl_target_parse(&t, argc, argv, "Run this host's side of a protected VM, and "
                                "look after it.", entries, true);

    if (code != CTL_OK) {
        return code;
    }
    if (!parse_role(role, &r.forced)) {
        return ctl_usage("--role %s: expected auto, primary or secondary", role);
    }
    r.conf = t.conf;
    r.once = once;
    return dry ? show_command_line(t.conf, r.forced == DECIDE_SECONDARY) : run(&r);
}
