/*
 * Backends tap and bridge: a kernel tap device, made by us, by a helper, or given.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The guest's NIC has no vnet header: frames of the two guests must be comparable, so it
 * gets no offloads. A tap may have one nevertheless (vnet_hdr=on, or a descriptor of
 * somebody's): then the kernel may give us checksums to finish and large segments to
 * split (vnet.c), and what we send has a header that asks for nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "net/net-int.h"

#define DEFAULT_UP "/etc/qemu-ifup"
#define DEFAULT_DOWN "/etc/qemu-ifdown"
#define DEFAULT_HELPER "/usr/lib/qemu/qemu-bridge-helper"
#define DEFAULT_BRIDGE "br0"

typedef struct Tap {
    int fd;
    char ifname[IFNAMSIZ];
    char *down;
    GSource *in;
    Frame *slot;
    uint8_t *tail; /* what does not fit a pooled frame */
    int vnet;      /* bytes of vnet header before each frame */
} Tap;

static void tap_plain(Frame *f, void *opaque)
{
    f->vnet_len = 0;
    netdev_input(opaque, f);
}

static gboolean tap_in(int fd, GIOCondition cond, gpointer opaque)
{
    NetDev *nd = opaque;
    Tap *t = nd->backend;
    int64_t now = g_get_monotonic_time();

    net_batch_begin();
    for (int i = 0; i < NET_BATCH && !nd->throttled; i++) {
        Frame *f = t->slot ? t->slot : frame_new(FRAME_POOLED);
        struct iovec iov[2] = {{f->data - t->vnet, t->vnet + FRAME_POOLED},
                               {t->tail, FRAME_MAX - FRAME_POOLED}};
        t->slot = f;
        ssize_t n = readv(fd, iov, 2);
        if (n <= t->vnet) {
            break;
        }
        n -= t->vnet;
        if (n > FRAME_POOLED) {
            f = frame_new(n);
            memcpy(f->data - t->vnet, t->slot->data - t->vnet, t->vnet + FRAME_POOLED);
            memcpy(f->data + FRAME_POOLED, t->tail, n - FRAME_POOLED);
        } else {
            t->slot = NULL;
            f->len = n;
        }
        f->stamp = now;
        if (t->vnet) {
            f->vnet_len = t->vnet;
            vnet_make_plain(f, tap_plain, nd, &nd->stats.vnet);
        } else {
            netdev_input(nd, f);
        }
    }
    net_batch_end();
    return G_SOURCE_CONTINUE;
}

static void tap_throttle(NetDev *nd, bool stop)
{
    Tap *t = nd->backend;

    if (stop) {
        io_source_destroy(&t->in);
    } else if (!t->in) {
        t->in = io_thread_watch_fd(net_thread(), t->fd, G_IO_IN, tap_in, nd);
    }
}

static void tap_send(NetDev *nd, Frame *f)
{
    static uint8_t zero[FRAME_HEADROOM];
    Tap *t = nd->backend;
    struct iovec iov[2] = {{zero, t->vnet}, {f->data, f->len}};
    ssize_t n;

    do {
        n = t->vnet ? writev(t->fd, iov, 2) : write(t->fd, f->data, f->len);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        nd->stats.dropped_backend++; /* interface down or queue full: as on a wire */
    }
    frame_unref(f);
}

static bool run_script(const char *script, const char *ifname, GError **errp)
{
    char *argv[] = {(char *)script, (char *)ifname, NULL};
    int status = 0;

    if (!g_spawn_sync(NULL, argv, NULL, G_SPAWN_CHILD_INHERITS_STDIN, NULL, NULL, NULL,
                      NULL, &status, errp)) {
        g_prefix_error(errp, "network script: ");
        return false;
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        colo_error_set(errp, "network script %s %s failed with status %d (script=no "
                             "leaves it out)",
                       script, ifname, WIFEXITED(status) ? WEXITSTATUS(status) : -1);
        return false;
    }
    return true;
}

static void tap_close(NetDev *nd)
{
    Tap *t = nd->backend;
    g_autoptr(GError) err = NULL;

    if (t->down && !run_script(t->down, t->ifname, &err)) {
        colo_report("netdev '%s': %s", nd->id, err->message);
    }
    io_source_destroy(&t->in);
    close(t->fd);
    frame_unref(t->slot);
    g_free(t->tail);
    g_free(t->down);
    g_free(t);
    nd->backend = NULL;
}

static const NetBackend tap_ops = {
    .type = "tap", .send = tap_send, .throttle = tap_throttle, .close = tap_close};

static int open_tun(const char *ifname, bool vnet, struct ifreq *ifr, GError **errp)
{
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0) {
        colo_error_set_errno(errp, errno,
                             "could not open /dev/net/tun for tap device '%s' (run as "
                             "root, or have it opened for you: helper= or fd=)",
                             ifname ? ifname : "tap%d");
        return -1;
    }
    memset(ifr, 0, sizeof(*ifr));
    ifr->ifr_flags = IFF_TAP | IFF_NO_PI | (vnet ? IFF_VNET_HDR : 0);
    g_strlcpy(ifr->ifr_name, ifname ? ifname : "tap%d", IFNAMSIZ);
    if (ioctl(fd, TUNSETIFF, ifr) < 0) {
        int err = errno;
        close(fd);
        colo_error_set_errno(errp, err,
                             "could not configure tap device '%s' (it needs "
                             "CAP_NET_ADMIN, or a device made for this user)",
                             ifname ? ifname : "tap%d");
        return -1;
    }
    return fd;
}

/* A device that others opened must be a tap; it may have a vnet header. */
static bool check_given(int fd, struct ifreq *ifr, GError **errp)
{
    memset(ifr, 0, sizeof(*ifr));
    if (ioctl(fd, TUNGETIFF, ifr) < 0) {
        colo_error_set_errno(errp, errno, "fd %d is not a tap device", fd);
        return false;
    }
    if (!(ifr->ifr_flags & IFF_TAP) || !(ifr->ifr_flags & IFF_NO_PI)) {
        colo_error_set(errp, "'%s' is not a tap device without packet information",
                       ifr->ifr_name);
        return false;
    }
    return true;
}

static int receive_fd(int sock)
{
    char byte, control[CMSG_SPACE(sizeof(int))];
    struct iovec iov = {&byte, 1};
    struct msghdr mh = {.msg_iov = &iov,
                        .msg_iovlen = 1,
                        .msg_control = control,
                        .msg_controllen = sizeof(control)};
    ssize_t n;
    int fd = -1;

    do {
        n = recvmsg(sock, &mh, MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    struct cmsghdr *c = n >= 0 ? CMSG_FIRSTHDR(&mh) : NULL;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
        memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    }
    return fd;
}

/* qemu-bridge-helper's protocol: it makes the device and sends us its descriptor. */
static int run_helper(const char *helper, const char *br, GError **errp)
{
    int sv[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0) {
        colo_error_set_errno(errp, errno, "socketpair");
        return -1;
    }
    int inherit = fcntl(sv[1], F_DUPFD, 3); /* without close-on-exec */
    close(sv[1]);
    g_autofree char *fd_arg = g_strdup_printf("--fd=%d", inherit);
    g_autofree char *br_arg = g_strdup_printf("--br=%s", br);
    g_autofree char *shell = g_strdup_printf("%s %s%s%s", helper, fd_arg,
                                             strstr(helper, "--br=") ? "" : " ",
                                             strstr(helper, "--br=") ? "" : br_arg);
    bool words = strpbrk(helper, " \t") != NULL;
    char *direct[] = {(char *)helper, fd_arg, br_arg, NULL};
    char *by_shell[] = {(char *)"/bin/sh", (char *)"-c", shell, NULL};
    GPid pid;
    /* Close-on-exec is on for all of ours, so only @inherit is passed. */
    bool ok = g_spawn_async(NULL, words ? by_shell : direct, NULL,
                            G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_LEAVE_DESCRIPTORS_OPEN,
                            NULL, NULL, &pid, errp);
    close(inherit);
    if (!ok) {
        close(sv[0]);
        g_prefix_error(errp, "bridge helper: ");
        return -1;
    }
    int fd = receive_fd(sv[0]);
    close(sv[0]);
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (fd < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        colo_error_set(errp, "bridge helper '%s' failed for bridge '%s' (is the bridge up "
                             "and allowed in /etc/qemu/bridge.conf?)",
                       helper, br);
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    return fd;
}

/* Bytes of the header before each frame of @fd; with @offload the kernel may use it. */
static int setup_header(int fd, const struct ifreq *ifr, bool offload)
{
    int len = 0, little = 1;

    if (ifr->ifr_flags & IFF_VNET_HDR) {
        ioctl(fd, TUNSETVNETLE, &little);
        if (ioctl(fd, TUNGETVNETHDRSZ, &len) < 0 || len < VNET_HDR_LEN ||
            len > FRAME_HEADROOM) {
            len = VNET_HDR_LEN;
            ioctl(fd, TUNSETVNETHDRSZ, &len);
        }
    }
    unsigned wanted = len && offload ? TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
                                     : 0;
    if (ioctl(fd, TUNSETOFFLOAD, wanted) < 0) {
        ioctl(fd, TUNSETOFFLOAD, 0);
    }
    return len;
}

static bool tap_finish(NetDev *nd, int fd, struct ifreq *ifr, uint64_t sndbuf,
                       bool offload, GError **errp)
{
    int size = MIN(sndbuf, INT_MAX);

    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    if (ioctl(fd, TUNSETSNDBUF, &size) < 0 && sndbuf != INT_MAX) {
        colo_error_set_errno(errp, errno, "tap device '%s': sndbuf", ifr->ifr_name);
        close(fd);
        return false;
    }
    Tap *t = g_new0(Tap, 1);
    t->fd = fd;
    t->vnet = setup_header(fd, ifr, offload);
    g_strlcpy(t->ifname, ifr->ifr_name, sizeof(t->ifname));
    t->tail = g_malloc(FRAME_MAX);
    nd->backend = t;
    nd->ops = &tap_ops;
    tap_throttle(nd, false);
    colo_trace(net_tap_open, "%s is %s", nd->id, t->ifname);
    return true;
}

static const char *const tap_options[] = {
    "type", "id",    "ifname", "script",    "downscript", "helper", "br",
    "fd",   "sndbuf", "vhost", "vhostforce", "vnet_hdr",  NULL};

/* Options that would bypass the comparison. */
static bool refuse_bypass(NetDev *nd, JsonObject *opts, GError **errp)
{
    static const char *const must_be_off[] = {"vhost", "vhostforce"};
    static const char *const never[] = {"queues",   "fds",     "vhostfd",
                                        "vhostfds", "poll-us", NULL};

    for (int i = 0; never[i]; i++) {
        if (json_object_has_member(opts, never[i])) {
            colo_error_set(errp, "netdev '%s': option '%s' cannot be used with COLO: "
                                 "frames must pass the comparison one by one",
                           nd->id, never[i]);
            return false;
        }
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(must_be_off); i++) {
        bool on = false;
        if (!options_get_bool(opts, must_be_off[i], &on, errp)) {
            return false;
        }
        if (on) {
            colo_error_set(errp, "netdev '%s': %s=on cannot be used with COLO: its frames "
                                 "bypass the comparison; use %s=off",
                           nd->id, must_be_off[i], must_be_off[i]);
            return false;
        }
    }
    return true;
}

bool net_tap_open(NetDev *nd, JsonObject *opts, GError **errp)
{
    g_autofree char *what = g_strdup_printf("netdev '%s'", nd->id);
    uint64_t sndbuf = INT_MAX, given = 0;
    bool vnet = false;
    struct ifreq ifr;

    if (!refuse_bypass(nd, opts, errp) ||
        !options_check_known(opts, what, tap_options, errp) ||
        !options_get_size(opts, "sndbuf", 1, &sndbuf, errp) ||
        !options_get_bool(opts, "vnet_hdr", &vnet, errp) ||
        !options_get_uint(opts, "fd", &given, 0, INT_MAX, errp)) {
        return false;
    }
    sndbuf = sndbuf ? sndbuf : INT_MAX;
    const char *ifname = options_get_str(opts, "ifname", NULL);
    const char *helper = options_get_str(opts, "helper", NULL);
    const char *up = options_get_str(opts, "script", NULL);
    const char *down = options_get_str(opts, "downscript", NULL);
    bool has_fd = json_object_has_member(opts, "fd");

    if ((has_fd || helper) && (ifname || up || down || (has_fd && helper))) {
        colo_error_set(errp, "%s: ifname, script, downscript%s cannot be given together "
                             "with %s",
                       what, has_fd ? ", helper" : "", has_fd ? "fd" : "helper");
        return false;
    }
    if (ifname && strlen(ifname) >= IFNAMSIZ) {
        colo_error_set(errp, "%s: ifname '%s' is longer than %d bytes", what, ifname,
                       IFNAMSIZ - 1);
        return false;
    }
    if (has_fd) {
        return check_given(given, &ifr, errp) &&
               tap_finish(nd, given, &ifr, sndbuf, vnet, errp);
    }
    if (helper) {
        int fd = run_helper(helper, options_get_str(opts, "br", DEFAULT_BRIDGE), errp);
        if (fd < 0) {
            return false;
        }
        if (!check_given(fd, &ifr, errp)) {
            close(fd);
            return false;
        }
        return tap_finish(nd, fd, &ifr, sndbuf, vnet, errp);
    }
    int fd = open_tun(ifname, vnet, &ifr, errp);
    if (fd < 0) {
        return false;
    }
    up = up ? up : DEFAULT_UP;
    if (*up && !g_str_equal(up, "no") && !run_script(up, ifr.ifr_name, errp)) {
        close(fd);
        return false;
    }
    if (!tap_finish(nd, fd, &ifr, sndbuf, vnet, errp)) {
        return false;
    }
    bool run_down = down ? *down && !g_str_equal(down, "no")
                         : g_file_test(DEFAULT_DOWN, G_FILE_TEST_IS_EXECUTABLE);
    ((Tap *)nd->backend)->down = run_down ? g_strdup(down ? down : DEFAULT_DOWN) : NULL;
    return true;
}

bool net_bridge_open(NetDev *nd, JsonObject *opts, GError **errp)
{
    static const char *const known[] = {"type", "id", "br", "helper", NULL};
    g_autofree char *what = g_strdup_printf("netdev '%s'", nd->id);
    struct ifreq ifr;

    if (!options_check_known(opts, what, known, errp)) {
        return false;
    }
    int fd = run_helper(options_get_str(opts, "helper", DEFAULT_HELPER),
                        options_get_str(opts, "br", DEFAULT_BRIDGE), errp);
    if (fd < 0) {
        return false;
    }
    if (!check_given(fd, &ifr, errp)) {
        close(fd);
        return false;
    }
    return tap_finish(nd, fd, &ifr, INT_MAX, false, errp);
}
