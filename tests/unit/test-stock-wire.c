/*
 * Mirror and redirector against those of the stock emulator, with and without vnet
 * headers; skipped where qemu-system-x86_64 is missing.
 * Build: tests/unit/test-stock-wire.c; dependencies: net, chardev, util.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <fcntl.h>
#include <glib.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "net-setup.h"

#define PROBE 0xff /* in the place of a frame's number */

static pid_t run_stock(int fd, const char *dir, const char *vnet)
{
    pid_t pid = fork();

    if (pid) {
        return pid;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    fcntl(fd, F_SETFD, 0);
    g_autofree char *nd = g_strdup_printf("socket,id=n1,fd=%d", fd);
    g_autofree char *c0 = g_strdup_printf("socket,id=c0,path=%s/m,server=on,wait=off", dir);
    g_autofree char *c1 = g_strdup_printf("socket,id=c1,path=%s/r,server=on,wait=off", dir);
    g_autofree char *m = g_strdup_printf(
        "filter-mirror,id=m,netdev=n1,queue=tx,outdev=c0,vnet_hdr_support=%s", vnet);
    g_autofree char *r = g_strdup_printf(
        "filter-redirector,id=r,netdev=n1,queue=rx,indev=c1,vnet_hdr_support=%s", vnet);
    execlp("qemu-system-x86_64", "qemu-system-x86_64", "-accel", "tcg", "-display",
           "none", "-nodefaults", "-M", "pc", "-netdev", nd, "-device",
           "e1000,netdev=n1", "-chardev", c0, "-chardev", c1, "-chardev", "null,id=c2",
           "-object", m, "-object", r, "-object",
           /* Keeps frames from a NIC without a driver, which would stop the flow. */
           "filter-redirector,id=z,netdev=n1,queue=tx,outdev=c2", NULL);
    _exit(1);
}

/* The next frame at @guest that is no probe, or the next probe; its length. */
static int guest_in(int guest, uint8_t *got, size_t cap, bool probe, int wait_ms)
{
    for (int64_t end = g_get_monotonic_time() + wait_ms * 1000ll;;) {
        int len = recv(guest, got, cap, MSG_DONTWAIT);
        if (len > 0 && (got[36] == PROBE) == probe) {
            return len;
        }
        if (len <= 0 && g_get_monotonic_time() > end) {
            return len;
        }
        if (len <= 0) {
            g_usleep(5000);
        }
    }
}

static void run(const char *vnet)
{
    int theirs[2], ours[2];
    g_autofree char *dir = g_strdup_printf("/tmp/colo-wire-%d", getpid());
    g_autofree char *m = g_strdup_printf("%s/m", dir), *r = g_strdup_printf("%s/r", dir);

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, theirs), ==, 0);
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, ours), ==, 0);
    g_mkdir_with_parents(dir, 0700);
    pid_t pid = run_stock(theirs[1], dir, vnet);
    close(theirs[1]);
    g_autofree char *t = g_strdup_printf("socket,id=n0,fd=%d", ours[1]);
    g_autoptr(JsonObject) o = options_parse(t, "type", NULL);
    net_lock();
    NetDev *nd = netdev_new(o, NULL);
    int guest = dup(netdev_child_fd(nd));
    add("socket,id=fm,path=%s,reconnect-ms=50", m);
    add("socket,id=tr,path=%s,reconnect-ms=50", r);
    add("filter-redirector,id=r0,netdev=n0,queue=tx,indev=fm,vnet_hdr_support=%s", vnet);
    add("filter-mirror,id=m0,netdev=n0,queue=rx,outdev=tr,vnet_hdr_support=%s", vnet);
    net_unlock();
    bool up = false;
    for (int i = 0; i < 400 && !up; i++) {
        g_usleep(25000);
        net_lock();
        up = chardev_connected(chardev_find("fm")) && chardev_connected(chardev_find("tr"));
        net_unlock();
    }
    g_assert_true(up);
    /* Their mirror -> our redirector -> our guest. Stock's drops what comes before it has
     * accepted the connection, which we cannot see: probes until one is through. */
    uint8_t b[4 + 1000] = {0}, got[2000];
    int len = 0;
    b[3] = 60;
    b[40] = PROBE;
    for (int i = 0; i < 100 && len <= 0; i++) {
        g_assert_cmpint(send(theirs[0], b, 4 + 60, 0), ==, 4 + 60);
        len = guest_in(guest, got, sizeof(got), true, 200);
    }
    g_assert_cmpint(len, ==, 60);
    for (int i = 0; i < 50; i++) {
        int n = 60 + i * 17;
        b[2] = n >> 8;
        b[3] = n;
        b[40] = i;
        g_assert_cmpint(send(theirs[0], b, 4 + n, 0), ==, 4 + n);
        len = guest_in(guest, got, sizeof(got), false, 20000);
        g_assert_cmpint(len, ==, n);
        g_assert_cmpint(got[36], ==, i);
    }
    /* Our mirror -> their redirector -> their netdev. */
    struct timeval tv = {.tv_sec = 20};
    setsockopt(theirs[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    for (int i = 0; i < 50; i++) {
        int n = 60 + i * 17;
        b[36] = i;
        g_assert_cmpint(send(guest, b, n, 0), ==, n);
        g_assert_cmpint(recv(theirs[0], got, 4 + n, MSG_WAITALL), ==, 4 + n);
        g_assert_cmpint(got[2] << 8 | got[3], ==, n);
        g_assert_cmpint(got[4 + 36], ==, i);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    net_lock();
    g_assert_true(net_object_del("r0", NULL));
    g_assert_true(net_object_del("m0", NULL));
    g_assert_true(chardev_remove("fm", NULL));
    g_assert_true(chardev_remove("tr", NULL));
    g_assert_true(netdev_del("n0", NULL));
    net_unlock();
    close(guest);
    close(ours[0]);
    close(theirs[0]);
    unlink(m);
    unlink(r);
    rmdir(dir);
}

static void test_plain(void)
{
    run("off");
}

static void test_vnet(void)
{
    run("on");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_autofree char *qemu = g_find_program_in_path("qemu-system-x86_64");
    if (!qemu) {
        return 77;
    }
    net_init();
    g_test_add_func("/stock-wire/plain", test_plain);
    g_test_add_func("/stock-wire/vnet", test_vnet);
    int r = g_test_run();
    net_shutdown();
    return r;
}
