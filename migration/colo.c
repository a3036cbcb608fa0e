/*
 * State shared by the controller's files: one virtual machine, one role at a time.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "migration/colo.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migration/arbiter.h"
#include "migration/heartbeat.h"
#include "monitor/monitor.h"
#include "net/net.h"
#include "net/proxy.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

#define DRAIN_S 1 /* between looks at connections that nobody uses */
#define PROGRESS_FACTOR 10 /* times peer-timeout, */
#define PROGRESS_MIN_MS 10000u

Colo colo;

static const char *const mode_names[] = {"none", "primary", "secondary"};
static const char *const state_names[] = {"alone",     "waiting", "setup",    "sync",
                                          "protected", "lost",    "takeover", "fenced"};

const char *colo_mode_name(ColoMode m)
{
    return mode_names[m];
}

const char *colo_state_name(ColoState s)
{
    return state_names[s];
}

const char *colo_migration_status(void)
{
    switch (colo.state) {
    case COLO_STATE_SETUP:
        return "setup";
    case COLO_STATE_SYNC:
        return "active";
    case COLO_STATE_PROTECTED:
    case COLO_STATE_LOST:
    case COLO_STATE_FENCED:
    case COLO_STATE_TAKEOVER:
        return "colo";
    default:
        return !colo.error          ? NULL
               : colo.was_protected ? "completed"
               : colo.want_exit     ? "cancelled"
                                    : "failed";
    }
}

static gboolean send_status(gpointer status)
{
    JsonObject *data = json_object_new();

    json_object_set_string_member(data, "status", status);
    monitor_event("MIGRATION", data);
    return G_SOURCE_REMOVE;
}

static void say_status_locked(void)
{
    const char *status = colo_migration_status();

    if (colo.cap_events && status && g_strcmp0(status, colo.said_status) != 0) {
        /* In the main thread monitor_event() would send it now, under the lock. */
        if (g_main_context_is_owner(NULL)) {
            g_idle_add_full(G_PRIORITY_DEFAULT, send_status, (gpointer)status, NULL);
        } else {
            send_status((gpointer)status);
        }
    }
    colo.said_status = status;
}

void colo_set_state_locked(ColoState s)
{
    colo_trace(migration_state, "%s -> %s", colo_state_name(colo.state),
               colo_state_name(s));
    colo.state = s;
    colo.changes++;
    say_status_locked();
    g_cond_broadcast(&colo.cond);
}

void colo_show_run_state(void)
{
    g_mutex_lock(&colo.lock);
    bool run = !colo.user_paused && !colo.guest_off;
    bool news = colo.opts.hide_events && colo.mode != COLO_MODE_NONE &&
                run != colo.shown_running && !colo.guest_off;
    if (news) {
        colo.shown_running = run;
    }
    g_mutex_unlock(&colo.lock);
    if (news) {
        monitor_event(run ? "RESUME" : "STOP", NULL);
    }
}

void colo_set_state(ColoState s)
{
    g_mutex_lock(&colo.lock);
    colo_set_state_locked(s);
    g_mutex_unlock(&colo.lock);
}

ColoState colo_get_state(void)
{
    g_mutex_lock(&colo.lock);
    ColoState s = colo.state;
    g_mutex_unlock(&colo.lock);
    return s;
}

void colo_request_checkpoint(ColoTrigger trigger, const char *detail)
{
    g_mutex_lock(&colo.lock);
    if (!colo.want_checkpoint) {
        colo.want_checkpoint = true;
        colo.trigger = trigger;
        colo_trace(migration_trigger, "%d %s", trigger, detail ? detail : "");
        g_cond_broadcast(&colo.cond);
    }
    g_mutex_unlock(&colo.lock);
}

void colo_silence(void)
{
    net_lock();
    proxy_silence();
    net_unlock();
}

void colo_emit_exit(ColoMode mode, const char *reason)
{
    JsonObject *data = json_object_new();

    json_object_set_string_member(data, "mode", colo_mode_name(mode));
    json_object_set_string_member(data, "reason", reason);
    monitor_event("COLO_EXIT", data);
}

/* Set by migration_arm_death(); test option. */
static gint death_armed;

void migration_arm_death(void)
{
    g_atomic_int_set(&death_armed, 1);
    colo_report("-colo die-at=%s is armed", colo.opts.die_at);
}

void colo_step(const char *step)
{
    static gint hits;

    colo_trace(migration_step, "%s", step);
    if (!colo.opts.die_at || !g_atomic_int_get(&death_armed)) {
        return;
    }
    g_auto(GStrv) parts = g_strsplit(colo.opts.die_at, ":", 2);
    int nth = parts[1] ? atoi(parts[1]) : 1;
    if (strcmp(parts[0], step) == 0 && g_atomic_int_add(&hits, 1) + 1 >= nth) {
        colo_report("dying at step %s, as asked by -colo die-at", step);
        kill(colo.child.pid, SIGKILL);
        kill(getpid(), SIGKILL);
    }
}

/* Where -colo die-at= can end this side: colo_step() and the block room's steps. */
static const char *const steps[] = {
    "prepass", "held", "stopped", "saved", "cut", "resumed", "sending", "sent-ram",
    "sent-state", "sent", "received", "committed", "loaded", "noted",
    "shared", "takeover-running", "takeover-noted", "svm-begin",
    "svm-whole", "svm-arrived", "svm-received", "svm-stopped", "svm-restored", "svm-loaded",
    "svm-running", "yielding", "yielded", "svm-yielded", "takeover", "takeover-disk",
    "takeover-begin", "takeover-journal", "takeover-live", "takeover-merged", "commit",
    "apply-written", "layer-applied", NULL,
};

static bool check_die_at(const char *text, GError **errp)
{
    g_auto(GStrv) parts = g_strsplit(text, ":", 2);
    guint64 n;

    if (!g_strv_contains(steps, parts[0])) {
        g_autofree char *all = g_strjoinv(", ", (char **)steps);
        colo_error_set(errp, "-colo: die-at='%s': no such step (known: %s)", text, all);
        return false;
    }
    if (parts[1] && !g_ascii_string_to_unsigned(parts[1], 10, 1, G_MAXINT, &n, NULL)) {
        colo_error_set(errp, "-colo: die-at='%s': expected STEP or STEP:N", text);
        return false;
    }
    return true;
}

void colo_qmp_take(void)
{
    g_mutex_lock(&colo.qmp_lock);
}

void colo_qmp_leave(void)
{
    g_mutex_unlock(&colo.qmp_lock);
}

void colo_qmp_drain(void)
{
    ChildQmp *const all[] = {colo.qmp, colo.qmp_save, colo.qmp_cont};

    for (unsigned i = 0; i < G_N_ELEMENTS(all); i++) {
        if (all[i]) {
            child_qmp_drain(all[i]);
        }
    }
}

static gboolean drain_unused(gpointer opaque)
{
    if (g_mutex_trylock(&colo.qmp_lock)) {
        colo_qmp_drain();
        g_mutex_unlock(&colo.qmp_lock);
    }
    return G_SOURCE_CONTINUE;
}

bool colo_child_command(const char *text, const char *id, GError **errp)
{
    return child_qmp_send(colo.qmp, text, errp) && child_qmp_wait(colo.qmp, id, 30000, errp);
}

int64_t colo_progress_limit(void)
{
    unsigned ms = colo.opts.progress_timeout;

    if (!ms) {
        ms = MAX(PROGRESS_MIN_MS, PROGRESS_FACTOR * colo.opts.peer_timeout);
    }
    return ms * 1000LL;
}

void colo_finish_run_state(guint n)
{
    g_autoptr(GPtrArray) reqs = g_ptr_array_new();

    g_mutex_lock(&colo.lock);
    while (n-- > 0 && colo.run_state_requests->len > 0) {
        g_ptr_array_add(reqs, g_ptr_array_remove_index(colo.run_state_requests, 0));
    }
    g_mutex_unlock(&colo.lock);
    if (reqs->len) {
        colo_show_run_state();
    }
    for (guint i = 0; i < reqs->len; i++) {
        qmp_request_finish(reqs->pdata[i], NULL, NULL);
    }
}

/* RULES 7: what would make the device save lie is refused at start. */
static bool check_blockers(GError **errp)
{
    g_autoptr(JsonNode) node = child_qmp_query(
        colo.qmp, "{\"execute\":\"query-migrate\",\"id\":\"blk\"}\n", "blk", errp);
    if (!node) {
        return false;
    }
    JsonObject *o = json_node_get_object(node);
    JsonArray *why = json_object_has_member(o, "blocked-reasons")
                         ? json_object_get_array_member(o, "blocked-reasons")
                         : NULL;
    if (why && json_array_get_length(why) > 0) {
        colo_error_set(errp, "this guest cannot be protected: %s",
                       json_array_get_string_element(why, 0));
        return false;
    }
    return true;
}

/* Complete what the command line said with what the emulator made of it. */
static bool learn_identity(GError **errp)
{
    static const struct {
        const char *key, *text, *member;
    } facts[] = {
        {"machine",
         "{\"execute\":\"qom-get\",\"arguments\":{\"path\":\"/machine\",\"property\":"
         "\"type\"},\"id\":\"id\"}\n",
         NULL},
        {"emulator", "{\"execute\":\"query-version\",\"id\":\"id\"}\n", "package"},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(facts); i++) {
        g_autoptr(JsonNode) node = child_qmp_query(colo.qmp, facts[i].text, "id", errp);
        if (!node) {
            return false;
        }
        const char *s = facts[i].member
                            ? options_get_str(json_node_get_object(node), facts[i].member, "")
                            : json_node_get_string(node);
        json_object_set_string_member(colo.child.identity, facts[i].key, s ? s : "");
    }
    g_autoptr(JsonNode) target = child_qmp_query(
        colo.qmp, "{\"execute\":\"query-target\",\"id\":\"id\"}\n", "id", errp);
    if (!target) {
        return false;
    }
    /* Where a page's size is settled by the CPU, a stream names it. */
    const char *arch = options_get_str(json_node_get_object(target), "arch", "");
    colo.page_bits = !strcmp(arch, "aarch64") || !strcmp(arch, "arm") ? COLO_PAGE_SHIFT : 0;
    return true;
}

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* RULES 5: once all have it mapped, no hole can be punched into @fd any more. */
static bool seal(int fd, const char *name, GError **errp)
{
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE) < 0) {
        colo_error_set_errno(errp, errno, "seal RAM block '%s'", name);
        return false;
    }
    return true;
}

static bool seal_all(const MigrationChild *child, const RamMap *m, GError **errp)
{
    for (unsigned i = 0; i < m->n; i++) {
        const RamBlock *b = &m->blocks[i];
        bool ours = !b->guest;
        for (unsigned k = 0; k < child->n_memory; k++) {
            ours |= child->memory[k].fd == b->fd && child->memory[k].seal;
        }
        if (ours && !seal(b->fd, b->name, errp)) {
            return false;
        }
    }
    return true;
}

/* All of the emulator's memory, and who tells what is written to it. */
static bool take_memory(const MigrationChild *child, GError **errp)
{
    RamMap *m = colo.map = ram_map_new();

    for (unsigned i = 0; i < child->n_memory; i++) {
        const MigrationMemory *b = &child->memory[i];
        if (!ram_map_add(m, b->id, b->fd, b->size, b->page_size, true, errp)) {
            return false;
        }
    }
    if (!ram_map_locate(m, child->pid, errp) ||
        !ram_blocks_adopt(m, child->pid, colo.qmp, colo.opts.other_ram, errp) ||
        !ram_map_finish(m, errp) || !seal_all(child, m, errp)) {
        return false;
    }
    g_autofree char *blocks = ram_map_describe(m);
    json_object_set_string_member(colo.child.identity, "blocks", blocks);
    colo.tracker = tracker_new(colo.opts.tracker, child->pid, m, errp);
    if (!colo.tracker) {
        return false;
    }
    if (*tracker_why(colo.tracker)) {
        colo_report("dirty pages are tracked with %s, pauses are longer (%s)",
                    tracker_name(colo.tracker), tracker_why(colo.tracker));
    }
    colo.ram = ram_new(m, colo.tracker, errp);
    return colo.ram != NULL;
}

static bool attach_child(GError **errp)
{
    const MigrationChild *child = &colo.child;

    if (!(colo.qmp = child_qmp_new(child->qmp_fd, errp)) ||
        !(colo.qmp_save = child_qmp_new(child->save_fd, errp)) ||
        !(colo.qmp_cont = child_qmp_new(child->cont_fd, errp)) || !check_blockers(errp) ||
        !learn_identity(errp)) {
        return false;
    }
    return take_memory(child, errp);
}

bool colo_restart_child(bool incoming, GError **errp)
{
    colo_trace(migration_restart_child, "%s-incoming", incoming ? "" : "no ");
    g_clear_pointer(&colo.ram, ram_free);
    g_clear_pointer(&colo.tracker, tracker_free);
    g_clear_pointer(&colo.map, ram_map_free);
    g_clear_pointer(&colo.qmp, child_qmp_free);
    g_clear_pointer(&colo.qmp_save, child_qmp_free);
    g_clear_pointer(&colo.qmp_cont, child_qmp_free);
    return colo.opts.restart_child(incoming, &colo.child, errp) && attach_child(errp);
}

bool migration_init(const MigrationChild *child, const MigrationOptions *opts,
                    GError **errp)
{
    colo.child = *child;
    colo.opts = *opts;
    colo.checkpoint_delay = 20000;
    colo.buffered_interval = opts->buffered_interval;
    colo.protect_mode = opts->protect_mode;
    g_strlcpy(colo.mode_reason, "start", sizeof(colo.mode_reason));
    colo.reason = "none";
    colo.run_state_requests = g_ptr_array_new();
    colo.user_paused = child->start_paused;
    colo.state = child->waits ? COLO_STATE_WAITING : COLO_STATE_ALONE;
    colo.plain_incoming = child->incoming && !child->waits;
    if (opts->die_at && !check_die_at(opts->die_at, errp)) {
        return false;
    }
    if (opts->die_at) {
        block_replication_set_step(colo_step);
    }
    if (!tracker_known(opts->tracker)) {
        colo_error_set(errp, "-colo tracker=%s: auto, uffd, soft-dirty or compare is expected",
                       opts->tracker);
        return false;
    }
    if (!attach_child(errp) || !arbiter_new(opts->colo, opts->vm, &colo.arbiter, errp)) {
        return false;
    }
    g_timeout_add_seconds(DRAIN_S, drain_unused, NULL);
    heartbeat_start();
    /* Last: what owns the guest serves it. */
    if (child->waits) {
        return true;
    }
    return (!colo.arbiter || !colo.arbiter->class->claim ||
            colo.arbiter->class->claim(colo.arbiter, errp)) &&
           colo_state_file_write("alone", errp);
}

int migration_find_mode(const char *name)
{
    return protect_mode_find(name);
}

bool migration_listen(const char *uri, GError **errp)
{
    colo.mode = COLO_MODE_SECONDARY;
    if (strcmp(uri, "defer") == 0) {
        colo.deferred = true;
        return true;
    }
    int fd = channel_listen(uri, errp);
    if (fd < 0) {
        return false;
    }
    colo.thread = g_thread_new("colo-in", secondary_thread, GINT_TO_POINTER(fd));
    return true;
}

bool migration_peer(bool yank)
{
    g_mutex_lock(&colo.lock);
    Channel *c = colo.channel;
    if (c && yank) {
        channel_break(c);
    }
    g_mutex_unlock(&colo.lock);
    return c != NULL;
}

void migration_child_died(void)
{
    /* Before anybody hears of it: of what is on its way here nothing may leave any more, as the
     * peer speaks within milliseconds of the word. */
    colo_silence();
    heartbeat_emulator_died();
    g_mutex_lock(&colo.lock);
    colo.child_died = true; /* before the peer can answer by its win */
    g_cond_broadcast(&colo.cond);
    Channel *c = colo.channel;
    if (c) {
        /* Said at once, so that the peer need not wait for a timeout. */
        channel_try_text(c, CHANNEL_DEATH, "its emulator died");
    }
    g_mutex_unlock(&colo.lock);
}

void migration_shutdown(void)
{
    g_mutex_lock(&colo.lock);
    colo.want_quit = true;
    if (colo.arbiter) {
        g_atomic_int_set(&colo.arbiter->ending, 1);
    }
    if (colo.channel) {
        channel_cancel(colo.channel);
    }
    g_cond_broadcast(&colo.cond);
    block_secondary_cancel();
    GThread *t = g_steal_pointer(&colo.thread);
    g_mutex_unlock(&colo.lock);
    if (t) {
        g_thread_join(t);
    }
    /* Now this side is silent, and may say so. */
    heartbeat_shutdown(colo.guest_exit ? BEAT_GUEST_OFF : BEAT_STOP);
    arbiter_free(g_steal_pointer(&colo.arbiter));
}
