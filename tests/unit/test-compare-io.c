/*
 * colo-compare behind sockets: no allocation a frame, back-pressure, nothing dropped.
 * Build: tests/unit/test-compare-io.c; dependencies: net, chardev, util.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "alloc-count.h"
#include "chardev/chardev.h"
#include "net-frames.h"
#include "net-setup.h"
#include "net/net.h"

#define PAYLOAD 10
#define RECORD (4 + 54 + PAYLOAD)
#define BURST 100 /* records of one send */

static char *dir;
static int p_fd, s_fd, o_fd;

static int connect_to(const char *name)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    g_snprintf(un.sun_path, sizeof(un.sun_path), "%s/%s", dir, name);
    g_assert_cmpint(connect(fd, (struct sockaddr *)&un, sizeof(un)), ==, 0);
    return fd;
}

static void begin(void)
{
    dir = g_dir_make_tmp("colo-io-XXXXXX", NULL);
    net_lock();
    add("iothread,id=io");
    for (const char *const *n = (const char *const[]){"p", "s", "o", NULL}; *n; n++) {
        add("socket,id=%s,path=%s/%s,server=on,wait=off", *n, dir, *n);
    }
    add("colo-compare,id=c,primary_in=p,secondary_in=s,outdev=o,iothread=io,"
        "compare_timeout=1000000");
    net_unlock();
    o_fd = connect_to("o");
    p_fd = connect_to("p");
    s_fd = connect_to("s");
}

static void end(void)
{
    close(p_fd);
    close(s_fd);
    close(o_fd);
    net_lock();
    g_assert_true(net_object_del("c", NULL));
    g_assert_true(net_object_del("io", NULL));
    for (const char *const *n = (const char *const[]){"p", "s", "o", NULL}; *n; n++) {
        g_assert_true(chardev_remove(*n, NULL));
    }
    net_unlock();
    rmdir(dir);
    g_clear_pointer(&dir, g_free);
}

/* BURST records: the segments @n, @n + 1 ... of one connection. */
static void make(uint8_t *b, uint32_t n)
{
    static uint8_t image[RECORD];
    uint8_t data[PAYLOAD] = {0};

    if (!image[3]) {
        net_lock(); /* the pool's, too */
        Frame *f = test_tcp((TestTcp){.seq = 1000, .ack = 5000, .data = data, .len = PAYLOAD});
        image[3] = f->len;
        memcpy(image + 4, f->data, f->len);
        frame_unref(f);
        net_unlock();
    }
    for (int i = 0; i < BURST; i++, b += RECORD) {
        memcpy(b, image, RECORD);
        put_be32(b + 4 + 38, 1000 + (n + i) * PAYLOAD);
        put_be32(b + 4 + 54, n + i);
    }
}

static uint32_t number(const uint8_t *b)
{
    return get_be32(b + 4 + 54);
}

/* A sender or reader of whole bursts; counts records. */
typedef struct Side {
    uint8_t b[BURST * RECORD];
    size_t at; /* bytes read into @b; bytes of it that are still to be sent */
    uint32_t n;
} Side;

/* Send until record @end or the socket takes no more. */
static void push(int fd, Side *s, uint32_t stop)
{
    while (s->n < stop || s->at) {
        if (!s->at) {
            make(s->b, s->n);
            s->n += BURST;
            s->at = sizeof(s->b);
        }
        ssize_t r = send(fd, s->b + sizeof(s->b) - s->at, s->at, MSG_DONTWAIT);
        if (r < 0) {
            g_assert_cmpint(errno, ==, EAGAIN);
            return;
        }
        s->at -= r;
    }
}

/* Read what is there; the records must come one after the other. */
static void pull(Side *s)
{
    ssize_t r;

    while ((r = recv(o_fd, s->b + s->at, sizeof(s->b) - s->at, MSG_DONTWAIT)) > 0) {
        s->at += r;
        size_t whole = s->at / RECORD * RECORD;
        for (size_t at = 0; at < whole; at += RECORD) {
            g_assert_cmpuint(number(s->b + at), ==, s->n);
            s->n++;
        }
        memmove(s->b, s->b + whole, s->at - whole);
        s->at -= whole;
    }
    g_assert_cmpint(r, ==, -1);
}

static void rounds(Side *p, Side *s, Side *o, unsigned n)
{
    struct pollfd fd = {.fd = o_fd, .events = POLLIN};

    for (unsigned i = 0; i < n; i++) {
        push(p_fd, p, p->n + BURST);
        push(s_fd, s, s->n + BURST);
        g_assert_cmpuint(p->at + s->at, ==, 0);
        while (o->n < p->n) {
            g_assert_cmpint(poll(&fd, 1, 10000), ==, 1);
            pull(o);
        }
    }
}

static void test_allocation(void)
{
    Side p = {.n = 0}, s = {.n = 0}, o = {.n = 0};

    if (!CAN_COUNT) {
        g_test_skip("allocations cannot be counted in this build");
        return;
    }
    begin();
    push(p_fd, &p, 10 * BURST); /* pools get their size: more is held than will be */
    g_usleep(50000);
    push(s_fd, &s, p.n);
    rounds(&p, &s, &o, 50);
    unsigned before = allocated();
    rounds(&p, &s, &o, 300);
    /* Timing may let a pool grow once more; by the frame nothing may be made. */
    g_assert_cmpuint(allocated() - before, <, 16);
    end();
}

/* Whether to wait on for record @much: something came within the last half a minute. */
static bool comes(const Side *o, uint32_t much, Side *last)
{
    static int64_t since;

    if (o->n != last->n) {
        last->n = o->n;
        since = g_get_monotonic_time();
    }
    return o->n < much && g_get_monotonic_time() - since < 30 * G_USEC_PER_SEC;
}

/* Push until nothing has moved for a while. */
static void push_all(int fd, Side *s, uint32_t stop)
{
    for (int still = 0; still < 60 && (s->n < stop || s->at);) {
        uint64_t before = (uint64_t)s->n * RECORD - s->at;
        push(fd, s, stop);
        still = before == (uint64_t)s->n * RECORD - s->at ? still + 1 : 0;
        g_usleep(10000);
    }
}

/* One side is silent: the other one is read until it holds enough, and no further. When
 * the twin has caught up, everything comes out. */
static void test_far_ahead(bool primary)
{
    Side p = {.n = 0}, s = {.n = 0}, o = {.n = 0}, last = {.n = G_MAXUINT32};
    const uint32_t much = 200000; /* 13 MB of bytes, 400 MB of frames */
    Side *early = primary ? &p : &s, *late = primary ? &s : &p;
    int early_fd = primary ? p_fd : s_fd, late_fd = primary ? s_fd : p_fd;

    push_all(early_fd, early, much);
    g_assert_cmpuint(early->n, >, 10000);
    g_assert_cmpuint(early->n, <, 100000);
    pull(&o);
    g_assert_cmpuint(o.n, ==, 0);
    while (comes(&o, much, &last)) {
        push(early_fd, early, much);
        push(late_fd, late, MIN(much, early->n));
        pull(&o);
        g_usleep(2000);
    }
    g_assert_cmpuint(o.n, ==, much);
}

static void test_primary_ahead(void)
{
    begin();
    test_far_ahead(true);
    end();
}

static void test_secondary_ahead(void)
{
    begin();
    test_far_ahead(false);
    end();
}

/* Nobody reads the output: both sides stand still after a while, and nothing is lost. */
static void test_slow_reader(void)
{
    Side p = {.n = 0}, s = {.n = 0}, o = {.n = 0}, last = {.n = G_MAXUINT32};
    const uint32_t much = 400000; /* 27 MB of output, more than any queue takes */

    begin();
    for (uint32_t n = 10000, still = 0; n <= much && still < 20; n += 10000) {
        push(p_fd, &p, MIN(n, s.n + 20000));
        push(s_fd, &s, p.n);
        g_usleep(5000);
        still = p.at && s.at ? still + 1 : 0;
    }
    g_assert_cmpuint(p.n, <, 300000);
    while (comes(&o, much, &last)) {
        push(p_fd, &p, MIN(much, s.n + 20000));
        push(s_fd, &s, p.n);
        pull(&o);
        g_usleep(1000);
    }
    g_assert_cmpuint(o.n, ==, much);
    end();
}

/* Nothing has a twin, and the object goes: what it held leaves, all of it. */
static void test_flush(void)
{
    Side p = {.n = 0}, o = {.n = 0}, last = {.n = G_MAXUINT32};
    int unread = 1;

    begin();
    for (int i = 0; i < 1000 && (p.n < 20000 || p.at || unread); i++) {
        push(p_fd, &p, 20000);
        g_usleep(20000);
        g_assert_cmpint(ioctl(p_fd, SIOCOUTQ, &unread), ==, 0);
    }
    g_assert_cmpuint(p.n, ==, 20000);
    g_assert_cmpint(unread, ==, 0);
    g_usleep(100000); /* what was read last is taken */
    net_lock();
    g_assert_true(net_object_del("c", NULL));
    net_unlock();
    while (comes(&o, p.n, &last)) {
        pull(&o);
        g_usleep(5000);
    }
    g_assert_cmpuint(o.n, ==, p.n);
    net_lock();
    add("colo-compare,id=c,primary_in=p,secondary_in=s,outdev=o,iothread=io");
    net_unlock();
    end();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    net_init();
    net_set_compare_always(true);
    g_test_add_func("/compare-io/allocation", test_allocation);
    g_test_add_func("/compare-io/primary-ahead", test_primary_ahead);
    g_test_add_func("/compare-io/secondary-ahead", test_secondary_ahead);
    g_test_add_func("/compare-io/slow-reader", test_slow_reader);
    g_test_add_func("/compare-io/flush", test_flush);
    int r = g_test_run();
    net_shutdown();
    return r;
}
