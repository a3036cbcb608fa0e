/*
 * Image formats: one qemu-storage-daemon child an image, reached over NBD.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The daemon inherits a listening socket to which we are connected before it starts, so
 * there is nothing to poll for: the NBD negotiation ends when the image is open, or the
 * connection breaks when the daemon gives up, whose words are then the error. It is
 * forked by the block thread, which lives as long as the room, and dies with it.
 */
#include "block-int.h"

#include <glib-unix.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <fcntl.h>
#include <unistd.h>

/* Opening a large or dirty image may take its time. */
#define DAEMON_START_MS 30000
#define DAEMON_SOCKET_FD 3

typedef struct Daemon {
    NbdClient *client;
    char *node_name; /* for messages */
    GPid pid;
    int err_fd;
    BlockFd *err_watch;
    GString *err_text;
    bool ready;
    bool closing;
} Daemon;

/* Room singleton, guarded by the block lock: daemons told to end. */
static unsigned daemons_ending;
static unsigned daemon_number;

static void daemon_free(Daemon *d)
{
    block_fd_free(d->err_watch);
    if (d->err_fd >= 0) {
        close(d->err_fd);
    }
    g_string_free(d->err_text, TRUE);
    g_free(d->node_name);
    g_free(d);
}

static void daemon_read_stderr(void *opaque, GIOCondition cond)
{
    Daemon *d = opaque;
    char buf[512];
    ssize_t n = read(d->err_fd, buf, sizeof(buf));

    if (n <= 0) {
        if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            block_fd_free(d->err_watch);
            d->err_watch = NULL;
        }
        return;
    }
    if (d->ready) {
        g_autofree char *text = g_strndup(buf, n);

        colo_report("disk '%s': %s", d->node_name, g_strchomp(text));
    } else if (d->err_text->len < 4096) {
        g_string_append_len(d->err_text, buf, n);
    }
}

static void daemon_exited(GPid pid, gint status, gpointer opaque)
{
    Daemon *d = opaque;

    g_spawn_close_pid(pid);
    if (d->closing) {
        daemons_ending--;
        daemon_free(d);
        return;
    }
    d->pid = 0;
    if (d->ready) {
        colo_report("disk '%s': its storage daemon ended unexpectedly (status 0x%x); the "
                    "guest sees I/O errors",
                    d->node_name, status);
    }
}

static void daemon_child_setup(gpointer opaque)
{
    /* Away from the terminal's signals: it ends when we say so, after the last flush. */
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != GPOINTER_TO_INT(opaque)) {
        _exit(1);
    }
}

typedef struct DaemonSpawn {
    Daemon *d;
    char **argv;
    int listen_fd;
    GError *err;
    BlockWait wait;
} DaemonSpawn;

static gboolean daemon_spawn(gpointer opaque)
{
    DaemonSpawn *s = opaque;
    int target = DAEMON_SOCKET_FD;
    bool ok = g_spawn_async_with_pipes_and_fds(
        NULL, (const char *const *)s->argv, NULL,
        G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD, daemon_child_setup,
        GINT_TO_POINTER(getpid()), -1, -1, -1, &s->listen_fd, &target, 1, &s->d->pid,
        NULL, NULL, &s->d->err_fd, &s->err);

    if (ok) {
        GSource *src = g_child_watch_source_new(s->d->pid);

        g_source_set_callback(src, G_SOURCE_FUNC(daemon_exited), s->d, NULL);
        g_source_attach(src, io_thread_context(block_thread()));
        g_source_unref(src);
        fcntl(s->d->err_fd, F_SETFL, O_NONBLOCK);
        fcntl(s->d->err_fd, F_SETFD, FD_CLOEXEC);
        s->d->err_watch =
            block_fd_new(s->d->err_fd, G_IO_IN | G_IO_HUP, daemon_read_stderr, s->d);
    }
    block_wait_done(&s->wait, ok ? 0 : -EIO);
    return G_SOURCE_REMOVE;
}

/* End the daemon; it is freed when it has gone. */
static void daemon_end(Daemon *d)
{
    if (d->pid) {
        d->closing = true;
        daemons_ending++;
        kill(d->pid, SIGTERM);
    } else {
        daemon_free(d);
    }
}

void block_daemons_wait(unsigned ms)
{
    /* Rare and bounded, so polled: the image's lock goes with its daemon. */
    for (unsigned waited = 0; waited < ms; waited += 5) {
        block_lock();
        unsigned n = daemons_ending;
        block_unlock();
        if (n == 0) {
            return;
        }
        g_usleep(5000);
    }
}

static int daemon_sockets(const char *path, int *client_fd, GError **errp)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(addr.sun_path)) {
        colo_error_set(errp, "socket path '%s' is too long", path);
        return -1;
    }
    strcpy(addr.sun_path, path);
    unlink(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *client_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || *client_fd < 0 ||
        bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(fd, 4) < 0 ||
        connect(*client_fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        colo_error_set_errno(errp, errno,
                             "cannot set up the storage daemon's socket '%s'", path);
        if (fd >= 0) {
            close(fd);
        }
        if (*client_fd >= 0) {
            close(*client_fd);
        }
        return -1;
    }
    unlink(path);
    return fd;
}

/* @opts as the daemon's --blockdev wants them. */
static char *daemon_blockdev(JsonObject *given, const char *format, bool read_only)
{
    g_autoptr(JsonObject) opts = options_copy(given);
    JsonObject *file = options_get_obj(opts, "file");
    const char *filename = options_get_str(file, "filename", NULL);
    struct stat st;

    json_object_set_string_member(opts, "driver", format);
    json_object_set_string_member(opts, "node-name", "disk");
    json_object_set_string_member(opts, "read-only", read_only ? "on" : "off");
    if (json_object_has_member(opts, "backing") &&
        json_object_get_null_member(opts, "backing")) {
        json_object_set_string_member(opts, "backing", "");
    }
    if (file) {
        static const char *const shared[] = {"discard", "cache", "aio"};

        if (!json_object_has_member(file, "driver")) {
            bool blk = filename && stat(filename, &st) == 0 && S_ISBLK(st.st_mode);

            json_object_set_string_member(file, "driver", blk ? "host_device" : "file");
        }
        json_object_set_string_member(file, "read-only", read_only ? "on" : "off");
        for (size_t i = 0; i < G_N_ELEMENTS(shared); i++) {
            if (json_object_has_member(opts, shared[i]) &&
                !json_object_has_member(file, shared[i])) {
                json_object_set_member(
                    file, shared[i],
                    json_node_copy(json_object_get_member(opts, shared[i])));
            }
        }
        json_object_remove_member(opts, "aio");
    }
    return options_format(opts, NULL);
}

/* The daemon's last words, without its name before them. */
static void daemon_set_error(Daemon *d, const char *name, const char *dflt, GError **errp)
{
    g_autofree char *text = g_strdup(g_strchomp(d->err_text->str));
    char *words = strstr(text, "qemu-storage-daemon: ");
    char *line = words ? words + strlen("qemu-storage-daemon: ") : text;

    if (g_str_has_prefix(line, "--blockdev ")) {
        char *after = strstr(line, ": ");

        line = after ? after + 2 : line;
    }
    g_auto(GStrv) lines = g_strsplit(line, "\n", -1);
    g_autofree char *joined = g_strjoinv("; ", lines);
    line = joined;
    colo_error_set(errp, "drive '%s': %s", name ? name : "(inline)", *line ? line : dflt);
}

static void daemon_lost(void *opaque, const char *why)
{
    Daemon *d = opaque;

    if (!d->closing) {
        colo_report("disk '%s': connection to its storage daemon lost: %s", d->node_name,
                    why);
    }
}

static void daemon_submit(BlockNode *node, BlockRequest *req)
{
    Daemon *d = node->opaque;

    nbd_client_submit(d->client, req);
}

static void daemon_close(BlockNode *node)
{
    Daemon *d = node->opaque;

    nbd_client_free(g_steal_pointer(&d->client));
    daemon_end(d);
}

static const BlockDriver daemon_driver = {
    .name = "storage-daemon",
    .submit = daemon_submit,
    .close = daemon_close,
};

BlockNode *block_daemon_open(const char *name, JsonObject *opts, const char *format,
                             const char *filename, GError **errp)
{
    const char *binary = g_getenv("QEMU_STORAGE_DAEMON");
    bool read_only = false;
    int fd;

    if (!options_get_bool(opts, "read-only", &read_only, errp)) {
        return NULL;
    }
    block_lock();
    g_autofree char *path =
        g_strdup_printf("%s/qsd-%u.sock", block_runtime_dir(), daemon_number++);
    block_unlock();
    int listen_fd = daemon_sockets(path, &fd, errp);
    if (listen_fd < 0) {
        return NULL;
    }
    g_autofree char *blockdev = daemon_blockdev(opts, format, read_only);
    g_autofree char *server =
        g_strdup_printf("addr.type=fd,addr.str=%d", DAEMON_SOCKET_FD);
    g_autofree char *export = g_strdup_printf("type=nbd,id=e,node-name=disk,name=disk,"
                                              "writable=%s",
                                              read_only ? "off" : "on");
    const char *argv[] = {binary ? binary : "qemu-storage-daemon",
                          "--blockdev",
                          blockdev,
                          "--nbd-server",
                          server,
                          "--export",
                          export,
                          NULL};
    Daemon *d = g_new0(Daemon, 1);
    DaemonSpawn spawn = {.d = d, .argv = (char **)argv, .listen_fd = listen_fd};

    d->err_fd = -1;
    d->err_text = g_string_new(NULL);
    d->node_name = g_strdup(name ? name : filename ? filename : format);
    block_wait_init(&spawn.wait);
    io_thread_post(block_thread(), daemon_spawn, &spawn);
    int r = block_wait(&spawn.wait, 0);
    close(listen_fd);
    if (r < 0) {
        colo_error_set(errp,
                       "drive '%s': cannot start qemu-storage-daemon, which image "
                       "format '%s' needs (package qemu-system-common or qemu-utils): %s",
                       d->node_name, format, spawn.err->message);
        g_clear_error(&spawn.err);
        close(fd);
        daemon_free(d);
        return NULL;
    }
    g_autoptr(GError) err = NULL;
    d->client = nbd_client_new(fd, "disk", DAEMON_START_MS, &err);
    block_lock();
    if (!d->client) {
        /* Its words came before the connection broke. */
        for (int i = 0; i < 8; i++) {
            if (d->err_watch) {
                daemon_read_stderr(d, 0);
            }
        }
        daemon_set_error(d, name, err->message, errp);
        daemon_end(d);
        block_unlock();
        return NULL;
    }
    d->ready = true;
    nbd_client_set_closed(d->client, daemon_lost, d);
    BlockNode *node = block_node_new(&daemon_driver, name, d);
    const char *discard = options_get_str(opts, "discard", "ignore");
    node->size = nbd_client_size(d->client);
    node->read_only = read_only;
    node->discard = !strcmp(discard, "unmap") || !strcmp(discard, "on");
    node->can_zero = nbd_client_can_zero(d->client);
    node->format = g_strdup(format);
    node->filename = g_strdup(filename);
    block_unlock();
    colo_trace(block_daemon_ready, "%s pid %d", blockdev, (int)d->pid);
    return node;
}
