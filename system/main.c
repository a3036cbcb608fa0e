/*
 * qemu-colo: the program.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <glib-unix.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/block.h"
#include "chardev/chardev.h"
#include "migration/migration.h"
#include "monitor/monitor.h"
#include "net/net.h"
#include "system/child.h"
#include "system/child-end.h"
#include "system/cmdline.h"
#include "system/metrics.h"
#include "system/pair.h"
#include "system/plan.h"
#include "util/error.h"
#include "util/mm-keeper.h"
#include "util/options.h"
#include "util/trace.h"

/* The program's one instance of itself (documented global: main thread only). */
static struct {
    Plan plan;
    Child child;
    GMainLoop *loop;
    guint child_watch;
    ChildEnd *child_end;
    bool child_died; /* and that was told */
    char *runtime_dir;
    int status;
    bool ending;
} self;

static int fail(const GError *err)
{
    fprintf(stderr, "qemu-colo: %s\n", err->message);
    return 1;
}

static gboolean end_loop(gpointer opaque)
{
    if (!self.ending) {
        self.ending = true;
        self.status = GPOINTER_TO_INT(opaque);
        g_main_loop_quit(self.loop);
    }
    return G_SOURCE_REMOVE;
}

/* Any thread. */
static void request_end(int status)
{
    g_idle_add(end_loop, GINT_TO_POINTER(status));
}

static gboolean on_signal(gpointer opaque)
{
    request_end(0);
    return G_SOURCE_CONTINUE;
}

static gboolean on_arm(gpointer opaque)
{
    migration_arm_death();
    return G_SOURCE_CONTINUE;
}

static void on_child_death(int wait_status)
{
    if (!self.child_died) {
        self.child_died = true;
        colo_report("the emulator died (%s %d)",
                    WIFSIGNALED(wait_status) ? "signal" : "status",
                    WIFSIGNALED(wait_status) ? WTERMSIG(wait_status)
                                             : WEXITSTATUS(wait_status));
        migration_child_died();
    }
}

static void on_child_exit(GPid pid, gint wait_status, gpointer opaque)
{
    bool clean = WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0;

    self.child.pid = 0;
    if (!clean) {
        on_child_death(wait_status);
    }
    request_end(clean ? 0 : 1);
}

static void watch_child(void)
{
    self.child_watch = g_child_watch_add(self.child.pid, on_child_exit, NULL);
    self.child_end = child_end_watch(self.child.pid, on_child_death);
}

static bool on_child_event(const char *name, JsonObject *data, void *opaque)
{
    return migration_child_event(name, data);
}

/* While chardevs with wait=on wait for their client, or a pair for its peer's word: signals and
 * the child are served. */
static bool poll_main(void *opaque)
{
    while (g_main_context_iteration(NULL, FALSE)) {
    }
    return !self.ending;
}

static bool make_runtime_dir(GError **errp)
{
    const char *base = g_getenv("XDG_RUNTIME_DIR");
    g_autofree char *dir = NULL;

    if (!base || access(base, W_OK) != 0) {
        base = access("/run", W_OK) == 0 ? "/run" : g_get_tmp_dir();
    }
    dir = g_strdup_printf("%s/qemu-colo-XXXXXX", base);
    if (!g_mkdtemp_full(dir, 0700)) {
        colo_error_set_errno(errp, errno, "private directory %s", dir);
        return false;
    }
    self.runtime_dir = g_steal_pointer(&dir);
    return true;
}

/* Net thread. set_link of a link that is up changes nothing but makes the NIC look for
 * frames. */
static void nudge_nic(const char *netdev)
{
    g_autoptr(JsonObject) args = json_object_new();

    json_object_set_string_member(args, "name", netdev);
    json_object_set_boolean_member(args, "up", TRUE);
    monitor_child_execute("set_link", args, NULL, NULL);
}

/* Whether we listen for the primary, or may yet have to. What QEMU alone can do (exec:, fd:)
 * is a plain migration from the start. */
static bool waits_for_primary(void)
{
    const char *uri = self.plan.incoming;

    return uri && (g_str_has_prefix(uri, "tcp:") || g_str_has_prefix(uri, "unix:") ||
                   strcmp(uri, "defer") == 0);
}

/* -incoming of the first emulator: one that has it does not load its ROMs, so it can be no
 * twin; one that lacks it can take no plain migration. */
static const char *child_incoming(void)
{
    const char *uri = self.plan.incoming;

    return uri && (!waits_for_primary() || strcmp(uri, "defer") == 0) ? uri : NULL;
}

static MigrationChild describe_child(bool incoming)
{
    return (MigrationChild){
        .pid = self.child.pid,
        .qmp_fd = self.child.checkpoint_fd,
        .save_fd = self.child.save_fd,
        .cont_fd = self.child.cont_fd,
        .memory = (MigrationMemory *)(void *)self.plan.memory->data,
        .n_memory = self.plan.memory->len,
        .state_fd = self.child.state_fd,
        .vmst_fd = self.child.vmst_fd,
        .vmst_node = CHILD_VMST_NODE,
        .identity = self.plan.identity,
        .waits = waits_for_primary(),
        .incoming = incoming,
        .start_paused = self.plan.start_paused || self.plan.incoming,
    };
}

/* Main thread. Another emulator in place of one whose guest has never run. */
static bool restart_child(bool incoming, MigrationChild *child, GError **errp)
{
    g_source_remove(self.child_watch);
    child_end_free(g_steal_pointer(&self.child_end));
    monitor_drop_child();
    child_stop(&self.child);
    close(self.child.state_fd);
    close(self.child.vmst_fd);
    if (!child_start(&self.child, &self.plan, incoming ? "defer" : NULL, errp) ||
        !monitor_init(self.child.monitor_fd, errp)) {
        return false;
    }
    watch_child();
    *child = describe_child(incoming);
    return true;
}

static bool read_options(MigrationOptions *o, GError **errp)
{
    bool events = true;
    uint64_t timeout = 2000, progress = 0, interval = 40, fail_load = 0;
    JsonObject *c = self.plan.colo;
    const char *mode = options_get_str(c, "mode", "colo");

    o->other_ram = true;
    o->tracker = options_get_str(c, "tracker", "auto");
    if (!options_get_bool(c, "verify-ram", &o->verify_ram, errp) ||
        !options_get_uint(c, "fail-load", &fail_load, 1, G_MAXINT64, errp) ||
        !options_get_bool(c, "ignore-wishes", &o->ignore_wishes, errp) ||
        !options_get_bool(c, "checkpoint-events", &events, errp) ||
        !options_get_bool(c, "other-ram", &o->other_ram, errp) ||
        !options_get_uint(c, "buffered-interval", &interval, 10, 100, errp) ||
        !options_get_uint(c, "peer-timeout", &timeout, 100, 3600000, errp) ||
        !options_get_uint(c, "progress-timeout", &progress, 500, 3600000, errp)) {
        g_prefix_error(errp, "-colo: ");
        return false;
    }
    o->fail_load = fail_load;
    o->protect_mode = migration_find_mode(mode);
    if (o->protect_mode < 0) {
        colo_error_set(errp, "-colo: Parameter 'mode' expects 'colo', 'buffered' or "
                             "'adaptive', not '%s'", mode);
        return false;
    }
    o->buffered_interval = interval;
    o->state_file = options_get_str(c, "state-file", NULL);
    o->die_at = g_strdup(options_get_str(c, "die-at", NULL));
    if (o->die_at) {
        g_unix_signal_add(SIGUSR1, on_arm, NULL);
    }
    o->peer_timeout = timeout;
    o->progress_timeout = progress;
    o->colo = c;
    o->vm = self.plan.vm_name;
    o->hide_events = !events;
    o->no_shutdown = self.plan.no_shutdown;
    o->guest_shutdown = request_end;
    o->runtime_dir = self.runtime_dir;
    o->restart_child = restart_child;
    return true;
}

static bool start_migration(GError **errp)
{
    MigrationOptions opts = {0};
    MigrationChild child = describe_child(child_incoming() != NULL);

    if (!read_options(&opts, errp) || !migration_init(&child, &opts, errp)) {
        return false;
    }
    monitor_set_event_filter(on_child_event, NULL);
    monitor_set_pass_filter(migration_allows);
    net_lock();
    net_set_nudge(nudge_nic);
    net_unlock();
    return !waits_for_primary() || migration_listen(self.plan.incoming, errp);
}

static bool start_monitors(GError **errp)
{
    for (guint i = 0; i < self.plan.qmp->len; i++) {
        const QmpSpec *q = self.plan.qmp->pdata[i];
        if (!monitor_add_qmp(q->spec, q->pretty, errp)) {
            g_prefix_error(errp, "-qmp %s: ", q->spec);
            return false;
        }
    }
    return true;
}

static bool start_metrics(GError **errp)
{
    const char *address = options_get_str(self.plan.colo, "metrics", NULL);

    return !address || metrics_start(address, errp);
}

static bool write_pidfile(GError **errp)
{
    g_autofree char *text = g_strdup_printf("%d\n", (int)getpid());

    return !self.plan.pidfile || g_file_set_contents(self.plan.pidfile, text, -1, errp);
}

static bool start(GError **errp)
{
    if (!child_start(&self.child, &self.plan, child_incoming(), errp)) {
        return false;
    }
    if (!mm_keeper_start()) { /* a death is seen later, that is all */
        colo_trace(system_no_keeper, "%s", g_strerror(errno));
    }
    monitor_register_commands();
    if (!monitor_init(self.child.monitor_fd, errp)) {
        g_prefix_error(errp, "the emulator %s did not start: ", self.plan.emulator);
        return false;
    }
    watch_child();
    /* A pair waits for nobody: its secondary may come at any time. */
    if (!pair_on() && !chardev_wait_ready(poll_main, NULL)) {
        colo_error_set(errp, "ended while waiting for a chardev's client (wait=on)");
        return false;
    }
    if (!start_migration(errp) || !start_monitors(errp) || !start_metrics(errp) ||
        !write_pidfile(errp) || !pair_start(errp)) {
        return false;
    }
    if (!self.plan.start_paused && !self.plan.incoming) {
        monitor_child_execute("cont", NULL, NULL, NULL);
    }
    return true;
}

static int run(const CmdLine *cl, const char *argv0)
{
    g_autoptr(GError) err = NULL;

    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_DFL); /* whatever was inherited: children's ends are waited for */
    self.loop = g_main_loop_new(NULL, FALSE);
    g_unix_signal_add(SIGTERM, on_signal, NULL);
    g_unix_signal_add(SIGINT, on_signal, NULL);
    g_unix_signal_add(SIGHUP, on_signal, NULL);
    net_init();
    block_set_event_func(monitor_event);
    int status = 1;
    bool ok = pair_init(cl, request_end, poll_main, &status, &err) && make_runtime_dir(&err) &&
              block_init(self.runtime_dir, &err) && plan_make(&self.plan, cl, argv0, &err);
    if (ok && waits_for_primary()) {
        net_lock();
        net_set_role(NET_ROLE_SECONDARY); /* silent from the first frame on */
        net_unlock();
    }
    ok = ok && start(&err);
    if (ok && !self.ending) {
        g_main_loop_run(self.loop);
    }
    if (ok) {
        status = self.status;
    } else {
        fail(err);
    }
    metrics_stop();
    pair_stop();
    migration_shutdown();
    child_end_free(g_steal_pointer(&self.child_end));
    child_stop(&self.child);
    monitor_shutdown();
    pair_join();
    block_shutdown();
    net_shutdown();
    if (self.plan.pidfile) {
        unlink(self.plan.pidfile);
    }
    if (self.runtime_dir) {
        rmdir(self.runtime_dir);
    }
    plan_clear(&self.plan);
    g_main_loop_unref(self.loop);
    mm_keeper_stop();
    return status;
}

/* No COLO in it: be the emulator. */
static int exec_emulator(char **argv, GError **errp)
{
    g_autofree char *path = plan_find_emulator(argv[0], NULL, errp);

    if (path) {
        argv[0] = path;
        execv(path, argv);
        colo_error_set_errno(errp, errno, "%s", path);
    }
    return 1;
}

int main(int argc, char **argv)
{
    g_autoptr(GError) err = NULL;
    CmdLine cl = {0};
    int status;

    if (!cmdline_parse(&cl, argc, argv, &err)) {
        return fail(err);
    }
    if (cmdline_uses_colo(&cl)) {
        status = run(&cl, argv[0]);
    } else {
        status = exec_emulator(argv, &err);
        if (err) {
            status = fail(err);
        }
    }
    cmdline_clear(&cl);
    return status;
}
