/*
 * colo-switch: an Ethernet switch over unix sockets, with a way outside.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Each connection is a port that speaks QEMU's socket framing (be32 length, frame), as
 * -netdev stream does. Addresses are learned from the source of each frame, so the
 * announcement of a takeover moves the guest to its new port at once. One thread, one
 * poll loop. A port that does not read loses frames, as a full wire does, and never holds
 * up another; one that sends nonsense is closed. The uplink is a port without a socket.
 */
#include "switch.h"
#include "util/error.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define FRAME_LIMIT 69632
#define QUEUE_LIMIT (4 * 1024 * 1024)
#define MACS_LIMIT 4096
#define PORTS_LIMIT 256

typedef struct Port {
    unsigned id;
    int fd;          /* -1: the uplink */
    GByteArray *in;
    GByteArray *out; /* whole frames, from out_at on */
    guint out_at;
    guint64 dropped;
    gboolean dead;
} Port;

struct Switch {
    int listen_fd;
    GPtrArray *ports;
    GHashTable *macs; /* address as guint64 -> Port */
    Uplink *uplink;
    Port uplink_port;
    unsigned next_id;
    gboolean verbose;
};

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
    stop = 1;
}

static Port *port_new(Switch *sw, int fd)
{
    Port *p = g_new0(Port, 1);

    p->id = sw->next_id++;
    p->fd = fd;
    p->in = g_byte_array_new();
    p->out = g_byte_array_new();
    g_ptr_array_add(sw->ports, p);
    return p;
}

static gboolean belongs_to(gpointer mac, gpointer port, gpointer which)
{
    return port == which;
}

static void port_free(Switch *sw, Port *p)
{
    if (sw->verbose) {
        g_printerr("colo-switch: port %u left, %" G_GUINT64_FORMAT " frames dropped\n",
                   p->id, p->dropped);
    }
    g_hash_table_foreach_remove(sw->macs, belongs_to, p);
    close(p->fd);
    g_byte_array_free(p->in, TRUE);
    g_byte_array_free(p->out, TRUE);
    g_ptr_array_remove_fast(sw->ports, p);
    g_free(p);
}

static void port_flush(Port *p)
{
    while (!p->dead && p->out_at < p->out->len) {
        ssize_t n = send(p->fd, p->out->data + p->out_at, p->out->len - p->out_at,
                         MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0) {
            p->dead = errno != EAGAIN && errno != EINTR;
            return;
        }
        p->out_at += n;
    }
    g_byte_array_set_size(p->out, 0);
    p->out_at = 0;
}

static void port_send(Switch *sw, Port *p, const guint8 *frame, guint32 len)
{
    guint32 head = GUINT32_TO_BE(len);

    if (p == &sw->uplink_port) {
        uplink_input(sw->uplink, frame, len);
        return;
    }
    if (p->dead || p->out->len - p->out_at + len > QUEUE_LIMIT) {
        p->dropped++;
        return;
    }
    if (p->out_at > QUEUE_LIMIT / 2) {
        g_byte_array_remove_range(p->out, 0, p->out_at);
        p->out_at = 0;
    }
    g_byte_array_append(p->out, (guint8 *)&head, sizeof(head));
    g_byte_array_append(p->out, frame, len);
    port_flush(p);
}

static guint64 mac_at(const guint8 *p)
{
    return (guint64)p[0] << 40 | (guint64)p[1] << 32 | (guint64)p[2] << 24 |
           (guint64)p[3] << 16 | (guint64)p[4] << 8 | p[5];
}

static void learn(Switch *sw, guint64 mac, Port *from)
{
    if (g_hash_table_lookup(sw->macs, &mac) == from) {
        return;
    }
    if (g_hash_table_size(sw->macs) >= MACS_LIMIT) {
        g_hash_table_remove_all(sw->macs);
    }
    g_hash_table_insert(sw->macs, g_memdup2(&mac, sizeof(mac)), from);
    if (sw->verbose) {
        g_printerr("colo-switch: %012" G_GINT64_MODIFIER "x is at port %u\n", mac, from->id);
    }
}

static void switch_frame(Switch *sw, Port *from, const guint8 *frame, guint32 len)
{
    guint64 dst = mac_at(frame), src = mac_at(frame + 6);
    Port *to = NULL;

    if (!(frame[6] & 1)) {
        learn(sw, src, from);
    }
    if (!(frame[0] & 1)) {
        to = g_hash_table_lookup(sw->macs, &dst);
    }
    if (to) {
        if (to != from) {
            port_send(sw, to, frame, len);
        }
        return;
    }
    for (guint i = 0; i < sw->ports->len; i++) {
        if (sw->ports->pdata[i] != from) {
            port_send(sw, sw->ports->pdata[i], frame, len);
        }
    }
    if (sw->uplink && from != &sw->uplink_port) {
        port_send(sw, &sw->uplink_port, frame, len);
    }
}

void switch_from_uplink(Switch *sw, const uint8_t *frame, size_t len)
{
    if (len >= 14 && len <= FRAME_LIMIT) {
        switch_frame(sw, &sw->uplink_port, frame, len);
    }
}

static void port_read(Switch *sw, Port *p)
{
    guint8 buf[65536];
    ssize_t n = recv(p->fd, buf, sizeof(buf), MSG_DONTWAIT);
    guint at = 0;

    if (n <= 0) {
        p->dead = n == 0 || (errno != EAGAIN && errno != EINTR);
        return;
    }
    g_byte_array_append(p->in, buf, n);
    while (!p->dead && p->in->len - at >= 4) {
        guint32 len;

        memcpy(&len, p->in->data + at, 4);
        len = GUINT32_FROM_BE(len);
        if (len < 14 || len > FRAME_LIMIT) {
            g_printerr("colo-switch: port %u: a frame of %u bytes, expected 14 to %d; "
                       "closed\n", p->id, len, FRAME_LIMIT);
            p->dead = TRUE;
            return;
        }
        if (p->in->len - at - 4 < len) {
            break;
        }
        switch_frame(sw, p, p->in->data + at + 4, len);
        at += 4 + len;
    }
    g_byte_array_remove_range(p->in, 0, at);
}

static void switch_accept(Switch *sw)
{
    int fd = accept4(sw->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    int size = 1024 * 1024;

    if (fd < 0) {
        return;
    }
    if (sw->ports->len >= PORTS_LIMIT) {
        g_printerr("colo-switch: more than %d ports refused\n", PORTS_LIMIT);
        close(fd);
        return;
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    port_new(sw, fd);
    if (sw->verbose) {
        g_printerr("colo-switch: %u ports\n", sw->ports->len);
    }
}

static void switch_run(Switch *sw)
{
    g_autoptr(GArray) fds = g_array_new(FALSE, TRUE, sizeof(GPollFD));
    g_autoptr(GPtrArray) polled = g_ptr_array_new();

    while (!stop) {
        int timeout = -1, ready;

        g_array_set_size(fds, 0);
        g_ptr_array_set_size(polled, 0);
        g_array_append_val(fds, ((GPollFD){sw->listen_fd, G_IO_IN, 0}));
        for (guint i = 0; i < sw->ports->len; i++) {
            Port *p = sw->ports->pdata[i];

            g_array_append_val(fds, ((GPollFD){
                p->fd, G_IO_IN | (p->out->len > p->out_at ? G_IO_OUT : 0), 0}));
            g_ptr_array_add(polled, p);
        }
        if (sw->uplink) {
            uplink_fill(sw->uplink, fds, &timeout);
        }
        ready = g_poll((GPollFD *)fds->data, fds->len, timeout);
        if (ready < 0 && errno != EINTR) {
            g_printerr("colo-switch: poll: %s\n", g_strerror(errno));
            return;
        }
        if (sw->uplink) {
            uplink_poll(sw->uplink, fds, ready < 0);
        }
        if (ready <= 0) {
            continue;
        }
        for (guint i = 0; i < polled->len; i++) {
            Port *p = polled->pdata[i];
            gushort got = g_array_index(fds, GPollFD, i + 1).revents;

            if (got & G_IO_OUT) {
                port_flush(p);
            }
            if (got & (G_IO_IN | G_IO_HUP | G_IO_ERR) && !p->dead) {
                port_read(sw, p);
            }
        }
        /* Only now: a frame may have gone to any port. */
        for (guint i = sw->ports->len; i-- > 0;) {
            Port *p = sw->ports->pdata[i];

            if (p->dead) {
                port_free(sw, p);
            }
        }
        if (g_array_index(fds, GPollFD, 0).revents) {
            switch_accept(sw);
        }
    }
}

/* A socket that nobody serves any more is replaced, a live one is not. */
static int listen_unix(const char *path, GError **errp)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct stat st;
    mode_t mask;
    int failed;

    if (strlen(path) >= sizeof(un.sun_path)) {
        colo_error_set(errp, "--listen %s: longer than %zu bytes", path,
                       sizeof(un.sun_path) - 1);
        close(fd);
        return -1;
    }
    g_strlcpy(un.sun_path, path, sizeof(un.sun_path));
    if (stat(path, &st) == 0 && S_ISSOCK(st.st_mode)) {
        if (connect(fd, (struct sockaddr *)&un, sizeof(un)) == 0) {
            colo_error_set(errp, "--listen %s: another program serves it", path);
            close(fd);
            return -1;
        }
        unlink(path);
        close(fd);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    }
    mask = umask(0077);
    failed = bind(fd, (struct sockaddr *)&un, sizeof(un)) || listen(fd, 16) ? errno : 0;
    umask(mask);
    if (failed) {
        colo_error_set_errno(errp, failed, "--listen %s", path);
        close(fd);
        return -1;
    }
    return fd;
}

int main(int argc, char **argv)
{
    g_autofree char *path = NULL, *net = NULL;
    g_auto(GStrv) forwards = NULL;
    gboolean restricted = FALSE, verbose = FALSE;
    const GOptionEntry entries[] = {
        {"listen", 'l', 0, G_OPTION_ARG_FILENAME, &path, "Unix socket to serve", "PATH"},
        {"net", 'n', 0, G_OPTION_ARG_STRING, &net,
         "Network of the uplink (10.0.2.0/24)", "ADDRESS/BITS"},
        {"hostfwd", 'f', 0, G_OPTION_ARG_STRING_ARRAY, &forwards,
         "Forward a port of this machine to a guest",
         "tcp|udp:[HOST]:PORT-[GUEST]:PORT"},
        {"restrict", 'r', 0, G_OPTION_ARG_NONE, &restricted,
         "Guests reach nothing outside", NULL},
        {"verbose", 'v', 0, G_OPTION_ARG_NONE, &verbose, "Tell what is learned", NULL},
        {NULL},
    };
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autoptr(GError) err = NULL;
    struct sigaction on_stop = {.sa_handler = on_signal};
    Switch sw = {.ports = g_ptr_array_new(), .uplink_port = {.fd = -1}, .next_id = 1};

    g_option_context_set_summary(context, "An Ethernet switch over unix sockets. The "
                                 "uplink exists when --net or --hostfwd is given.");
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &err)) {
        g_printerr("colo-switch: %s\n", err->message);
        return 1;
    }
    if (argc > 1 || !path) {
        g_printerr("colo-switch: %s\n", argc > 1 ? "unexpected argument" :
                   "--listen PATH is required");
        return 1;
    }
    sigaction(SIGINT, &on_stop, NULL);
    sigaction(SIGTERM, &on_stop, NULL);
    sw.verbose = verbose;
    sw.macs = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    if (net || forwards) {
        sw.uplink = uplink_new(&sw, net ? net : "10.0.2.0/24", restricted, &err);
        for (char **f = forwards; sw.uplink && f && *f && !err; f++) {
            uplink_add_forward(sw.uplink, *f, &err);
        }
    }
    sw.listen_fd = err ? -1 : listen_unix(path, &err);
    if (err) {
        g_printerr("colo-switch: %s\n", err->message);
        return 1;
    }
    g_print("colo-switch: ready\n");
    switch_run(&sw);
    unlink(path);
    while (sw.ports->len) {
        port_free(&sw, sw.ports->pdata[0]);
    }
    if (sw.uplink) {
        uplink_free(sw.uplink);
    }
    close(sw.listen_fd);
    g_hash_table_destroy(sw.macs);
    g_ptr_array_free(sw.ports, TRUE);
    return 0;
}
