/*
 * Arbiter "fence": whoever has had the other side switched off may go on.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The agent is a program that takes options as name=value lines on its standard input and
 * ends with status 0 when the deed is done: the convention of the fence-agents package.
 * Success is the proof that the peer is off; anything else proves nothing, and is tried
 * again. Where both sides live they shoot at each other: give one a fence-delay.
 */
#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <glib-unix.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "migration/arbiter.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

#define OUTPUT_MAX 400

typedef struct Fence {
    Arbiter arbiter;
    char *agent, *input;
    uint64_t timeout_ms;
    gint attempts;
} Fence;

/* A file with passwords is read by its owner alone. */
static char *read_private(const char *path, GError **errp)
{
    struct stat st;
    char *text = NULL;

    if (stat(path, &st) == 0 && (st.st_mode & 077)) {
        colo_error_set(errp, "fence-options=%s may hold passwords and is open to others "
                       "(mode %03o): chmod 600", path, st.st_mode & 0777);
        return NULL;
    }
    return g_file_get_contents(path, &text, NULL, errp) ? text : NULL;
}

/* Feed the agent, gather the end of what it says, and wait for it, all before @deadline and
 * the process' end. Returns its wait status, or -1 when it was killed for its time. */
static int attend(Fence *f, GPid pid, int in, int out, char said[OUTPUT_MAX])
{
    int64_t deadline = g_get_monotonic_time() + (int64_t)f->timeout_ms * 1000;
    const char *input = f->input;
    size_t left = strlen(input), have = 0;
    int status = -1;
    bool over = false;

    while (!over && g_get_monotonic_time() < deadline &&
           !g_atomic_int_get(&f->arbiter.ending)) {
        struct pollfd pfd[2] = {{left ? in : -1, POLLOUT, 0}, {out, POLLIN, 0}};
        poll(pfd, 2, 20);
        if (pfd[0].revents) {
            ssize_t n = write(in, input, left);
            left = n > 0 ? left - n : 0;
            input += MAX(n, 0);
        }
        if (left == 0 && in >= 0) {
            close(in);
            in = -1;
        }
        if (pfd[1].revents) {
            ssize_t n = read(out, said + have, OUTPUT_MAX - 1 - have);
            if (n <= 0) {
                out = -1; /* the caller closes it */
            } else {
                have = MIN(have + n, OUTPUT_MAX / 2);
            }
        }
        over = waitpid(pid, &status, WNOHANG) == pid;
    }
    if (in >= 0) {
        close(in);
    }
    if (!over) {
        kill(-pid, SIGKILL);
        waitpid(pid, &status, 0);
        return -1;
    }
    return status;
}

/* Child: a group of its own, so that all of it can be ended; agents complain on stderr. */
static void child_setup(gpointer opaque)
{
    setpgid(0, 0);
    dup2(STDOUT_FILENO, STDERR_FILENO);
}

static ArbiterVerdict fence_leave(Arbiter *a, GError **errp)
{
    Fence *f = (Fence *)a;
    char *argv[] = {f->agent, NULL};
    char said[OUTPUT_MAX] = "";
    GPid pid;
    int in, out;

    int attempt = g_atomic_int_add(&f->attempts, 1) + 1;
    colo_trace(migration_fence, "%s attempt %d", f->agent, attempt);
    if (!g_spawn_async_with_pipes(NULL, argv, NULL,
                                  G_SPAWN_DO_NOT_REAP_CHILD, child_setup, NULL, &pid, &in, &out,
                                  NULL, errp)) {
        return ARBITER_UNDECIDED;
    }
    g_unix_set_fd_nonblocking(in, TRUE, NULL);
    g_unix_set_fd_nonblocking(out, TRUE, NULL);
    int status = attend(f, pid, in, out, said);
    close(out);
    if (status == 0) {
        return ARBITER_WON;
    }
    g_strstrip(g_strcanon(said, G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS " .,:;=/_-()'", ' '));
    if (status == -1) {
        colo_error_set(errp, "fence agent %s: not done within %" G_GUINT64_FORMAT " ms: %s",
                       f->agent, f->timeout_ms, said);
    } else {
        colo_error_set(errp, "fence agent %s: %s %d: %s", f->agent,
                       WIFSIGNALED(status) ? "signal" : "status",
                       WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), said);
    }
    return ARBITER_UNDECIDED;
}

static void fence_describe(Arbiter *a, JsonObject *out)
{
    Fence *f = (Fence *)a;

    json_object_set_string_member(out, "agent", f->agent);
    json_object_set_int_member(out, "attempts", g_atomic_int_get(&f->attempts));
}

static void fence_free(Arbiter *a)
{
    Fence *f = (Fence *)a;

    g_free(f->agent);
    g_free(f->input);
    g_free(f);
}

static const ArbiterClass fence_class = {
    .name = "fence",
    .leave = fence_leave,
    .describe = fence_describe,
    .free = fence_free,
};

Arbiter *arbiter_fence_new(JsonObject *o, GError **errp)
{
    const char *agent = options_get_str(o, "fence-agent", NULL);
    const char *file = options_get_str(o, "fence-options", NULL);
    const char *plug = options_get_str(o, "fence-plug", NULL);
    uint64_t timeout = 60000, delay = 0;
    g_autofree char *more = NULL;

    if (!agent || access(agent, X_OK) != 0) {
        colo_error_set(errp, "-colo: arbiter=fence needs fence-agent=PATH, a program that "
                       "switches the peer off%s%s", agent ? ": cannot run " : "",
                       agent ? agent : "");
        return NULL;
    }
    if (!options_get_uint(o, "fence-timeout", &timeout, 100, 3600000, errp) ||
        !options_get_uint(o, "fence-delay", &delay, 0, 3600000, errp) ||
        (file && !(more = read_private(file, errp)))) {
        g_prefix_error(errp, "-colo: ");
        return NULL;
    }
    Fence *f = g_new0(Fence, 1);
    f->arbiter.class = &fence_class;
    f->arbiter.name = g_strdup("fence");
    f->arbiter.delay_ms = delay;
    f->agent = g_strdup(agent);
    f->timeout_ms = timeout;
    f->input = g_strdup_printf("action=off\n%s%s%s%s%s", plug ? "plug=" : "", plug ? plug : "",
                               plug ? "\n" : "", more ? more : "", more ? "\n" : "");
    return &f->arbiter;
}
