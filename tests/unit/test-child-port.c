/*
 * The child's port: hold, take back, run again; nothing lost, nothing twice.
 * Build: tests/unit/test-child-port.c; dependencies: net, chardev, util.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <arpa/inet.h>
#include <glib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/net.h"
#include "net/proxy.h"
#include "util/options.h"

/* A NetDev whose outside is @outside (be32 framing), whose guest end is returned. */
static NetDev *make(int *outside, int *guest)
{
    int sv[2];
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    g_autofree char *t = g_strdup_printf("socket,id=n0,fd=%d", sv[1]);
    g_autoptr(JsonObject) o = options_parse(t, "type", NULL);
    g_autoptr(GError) err = NULL;
    net_lock();
    NetDev *nd = netdev_new(o, &err);
    g_assert_no_error(err);
    *guest = dup(netdev_child_fd(nd));
    g_autofree char *opt = netdev_child_option(nd);
    g_assert_nonnull(strstr(opt, "dgram,id=n0,local.type=fd,local.str="));
    net_unlock();
    *outside = sv[0];
    return nd;
}

static void put(int fd, uint32_t number, unsigned len)
{
    uint8_t b[4 + 2000] = {0};
    b[2] = len >> 8;
    b[3] = len;
    memcpy(b + 4 + 14, &number, 4);
    g_assert_cmpint(send(fd, b, 4 + len, 0), ==, 4 + len);
}

static int take(int guest, uint32_t *number)
{
    uint8_t b[2000];
    ssize_t n = recv(guest, b, sizeof(b), MSG_DONTWAIT);
    if (n < 18) {
        return -1;
    }
    memcpy(number, b + 14, 4);
    return n;
}

static void settle(void)
{
    g_usleep(150000); /* a busy machine has other things to do first */
}

static void end(int outside, int guest)
{
    close(outside);
    close(guest);
    net_lock();
    g_assert_true(netdev_del("n0", NULL));
    net_unlock();
}

static uint64_t stat(const char *name)
{
    net_lock();
    g_autoptr(JsonNode) n = proxy_query();
    uint64_t v = json_object_get_int_member(
        json_array_get_object_element(json_node_get_array(n), 0), name);
    net_unlock();
    return v;
}

/* Until a figure has grown to @want: a busy machine has other things to do first. */
static void reaches(const char *name, uint64_t want)
{
    for (int i = 0; i < 12000 && stat(name) < want; i++) {
        g_usleep(5000);
    }
    g_assert_cmpuint(stat(name), ==, want);
}

/* A frame that must come. */
static int take_soon(int guest, uint32_t *number)
{
    int n = take(guest, number);

    for (int i = 0; i < 12000 && n < 0; i++) {
        g_usleep(5000);
        n = take(guest, number);
    }
    return n;
}

/* Nothing comes out. */
static void silent(int out)
{
    uint8_t b[64];

    g_usleep(100000);
    g_assert_cmpint(recv(out, b, sizeof(b), MSG_DONTWAIT), ==, -1);
}

static void test_hold(void)
{
    int out, guest;
    uint32_t x;
    make(&out, &guest);
    for (uint32_t i = 0; i < 10; i++) {
        put(out, i, 60);
    }
    reaches("tx-frames", 10);
    for (uint32_t i = 0; i < 4; i++) {
        g_assert_cmpint(take(guest, &x), ==, 60);
        g_assert_cmpuint(x, ==, i);
    }
    net_lock();
    proxy_hold_input();
    net_unlock();
    g_assert_cmpint(take(guest, &x), ==, -1); /* all six were taken back */
    g_assert_cmpuint(stat("taken-back"), ==, 6);
    for (uint32_t i = 10; i < 13; i++) {
        put(out, i, 60);
    }
    settle();
    g_assert_cmpint(take(guest, &x), ==, -1);
    net_lock();
    proxy_release_input();
    net_unlock();
    for (uint32_t i = 4; i < 13; i++) {
        g_assert_cmpint(take_soon(guest, &x), ==, 60);
        g_assert_cmpuint(x, ==, i);
    }
    g_assert_cmpint(take(guest, &x), ==, -1);
    end(out, guest);
}

/* Numbered frames until the outside is not read any more; how many. */
static uint32_t put_all(int out)
{
    uint32_t sent = 0;

    for (int idle = 0; idle < 10;) {
        uint8_t b[4 + 60] = {0};

        b[3] = 60;
        memcpy(b + 4 + 14, &sent, 4);
        if (send(out, b, sizeof(b), MSG_DONTWAIT) == sizeof(b)) {
            sent++;
            idle = 0;
        } else {
            settle();
            idle++;
        }
    }
    return sent;
}

/* More than the socket takes: what waits behind it is taken back as well. */
static void test_backlog(void)
{
    int out, guest;
    uint32_t x;
    make(&out, &guest);
    for (uint32_t i = 0; i < 1500; i++) {
        put(out, i, 60);
        if (i % 200 == 0) {
            settle();
        }
    }
    settle();
    net_lock();
    proxy_hold_input();
    net_unlock();
    /* All that the socket holds, and what waited behind it. */
    g_assert_cmpuint(stat("taken-back"), >=, 1024 + 256);
    net_lock();
    proxy_release_input();
    net_unlock();
    uint32_t want = 0;
    for (int idle = 0; idle < 20 && want < 1500;) {
        if (take(guest, &x) < 0) {
            settle();
            idle++;
            continue;
        }
        g_assert_cmpuint(x, ==, want++);
    }
    g_assert_cmpuint(want, ==, 1500);
    g_assert_cmpuint(stat("dropped-full"), ==, 0);
    /* A guest that never reads: the outside is made to wait. */
    uint8_t b[64];
    unsigned sent = put_all(out);
    g_assert_cmpuint(stat("tx-frames"), <, 1500 + 3000);
    g_assert_cmpuint(stat("dropped-full"), ==, 0);
    unsigned got = 0;
    for (int idle = 0; idle < 20;) {
        if (recv(guest, b, 64, MSG_DONTWAIT) == 60) {
            got++;
            idle = 0;
        } else {
            g_usleep(5000);
            idle++;
        }
    }
    g_assert_cmpuint(got, ==, sent); /* and goes on when the guest reads */
    g_assert_cmpuint(sent, >, 1024 + 256);
    end(out, guest);
}

/* The outside waits when the guest is held; what had waited for it fits into the socket at
 * the release: the outside is heard again. */
static void test_release_hears_again(void)
{
    enum { N = 3000, READ = 600 }; /* READ is too little for the socket to say so */
    int out, guest;
    uint32_t x, got = 0;
    make(&out, &guest);
    struct timeval tv = {.tv_sec = 60};
    setsockopt(out, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
    uint32_t sent = put_all(out);
    g_assert_cmpuint(sent, >, 1024 + 256);
    for (; got < READ; got++) {
        g_assert_cmpint(take(guest, &x), ==, 60);
        g_assert_cmpuint(x, ==, got);
    }
    net_lock();
    proxy_hold_input();
    proxy_release_input();
    net_unlock();
    for (int idle = 0; idle < 1000 && got < N;) {
        if (take(guest, &x) >= 0) {
            g_assert_cmpuint(x, ==, got++);
            idle = 0;
        } else if (sent < N) {
            put(out, sent++, 60); /* waits for room, which comes if it is read */
        } else {
            g_usleep(10000);
            idle++;
        }
    }
    g_assert_cmpuint(got, ==, N);
    end(out, guest);
}

typedef struct Reader {
    int guest;
    gint stop;
    GArray *got;
} Reader;

static gpointer reader_run(gpointer opaque)
{
    Reader *r = opaque;
    uint32_t x;
    while (!g_atomic_int_get(&r->stop)) {
        if (take(r->guest, &x) >= 0) {
            g_array_append_val(r->got, x);
        } else {
            g_usleep(20);
        }
    }
    while (take(r->guest, &x) >= 0) {
        g_array_append_val(r->got, x);
    }
    return NULL;
}

/* Holds against a guest that reads all the while: each frame arrives exactly once. */
static void test_race(void)
{
    enum { N = 30000 };
    int out, guest;
    make(&out, &guest);
    Reader r = {.guest = guest, .got = g_array_new(FALSE, FALSE, 4)};
    GThread *t = g_thread_new("reader", reader_run, &r);
    for (uint32_t i = 0; i < N; i++) {
        put(out, i, 60 + i % 900);
        if (i % 64 == 0) {
            g_usleep(300);
        }
        if (i % 500 == 250) {
            net_lock();
            proxy_hold_input();
            net_unlock();
            g_usleep(500);
            net_lock();
            proxy_release_input();
            net_unlock();
        }
    }
    for (int i = 0; i < 12000 && stat("tx-frames") - stat("taken-back") < N; i++) {
        g_usleep(5000);
    }
    g_usleep(200000);
    g_atomic_int_set(&r.stop, 1);
    g_thread_join(t);
    g_assert_cmpuint(stat("dropped-full"), ==, 0);
    g_autofree uint8_t *seen = g_malloc0(N);
    unsigned disorder = 0;
    for (unsigned i = 0; i < r.got->len; i++) {
        uint32_t x = g_array_index(r.got, uint32_t, i);
        g_assert_cmpuint(x, <, N);
        g_assert_cmpuint(seen[x], ==, 0);
        seen[x] = 1;
        disorder += i && x < g_array_index(r.got, uint32_t, i - 1);
    }
    g_assert_cmpuint(r.got->len, ==, N);
    g_test_message("taken back %u, out of order %u", (unsigned)stat("taken-back"), disorder);
    g_array_unref(r.got);
    end(out, guest);
}

static void test_output(void)
{
    int out, guest;
    uint8_t b[2000] = {0}, back[4004];
    make(&out, &guest);
    b[13] = 9;
    g_assert_cmpint(send(guest, b, 60, 0), ==, 60);
    g_assert_cmpint(recv(out, back, 64, MSG_WAITALL), ==, 64);
    g_assert_cmpint(back[3], ==, 60);
    g_assert_cmpint(back[4 + 13], ==, 9);
    uint8_t big[4000] = {0}; /* larger than a pooled frame */
    for (int i = 0; i < 4000; i++) {
        big[i] = i * 7;
    }
    g_assert_cmpint(send(guest, big, 4000, 0), ==, 4000);
    g_assert_cmpint(recv(out, back, 4004, MSG_WAITALL), ==, 4004);
    g_assert_cmpmem(back + 4, 4000, big, 4000);
    end(out, guest);
}

static void test_gate(void)
{
    int out, guest;
    uint32_t x;
    uint8_t b[64] = {0}, back[64];
    make(&out, &guest);
    net_lock();
    net_set_role(NET_ROLE_SECONDARY);
    net_unlock();
    put(out, 1, 60);
    send(guest, b, 60, 0);
    reaches("dropped-gate", 2);
    silent(out);
    g_assert_cmpint(take(guest, &x), ==, -1);
    net_lock();
    net_set_role(NET_ROLE_SILENT);
    net_unlock();
    put(out, 2, 60);
    b[20] = 1;
    send(guest, b, 60, 0);
    b[20] = 2;
    send(guest, b, 60, 0);
    reaches("kept", 2);
    silent(out);
    g_assert_cmpint(take_soon(guest, &x), ==, 60);
    g_assert_cmpuint(x, ==, 2);
    net_lock();
    net_set_role(NET_ROLE_ALONE);
    net_unlock();
    for (int i = 1; i <= 2; i++) {
        g_assert_cmpint(recv(out, back, 64, MSG_WAITALL), ==, 64);
        g_assert_cmpint(back[24], ==, i);
    }
    net_lock();
    net_set_role(NET_ROLE_SILENT);
    net_unlock();
    send(guest, b, 60, 0);
    reaches("kept", 1);
    net_lock();
    net_set_role(NET_ROLE_SECONDARY);
    net_set_role(NET_ROLE_ALONE);
    net_unlock();
    silent(out);
    end(out, guest);
}

/* Announcements: what the guest sent from is announced after a takeover. */
static void test_announce(void)
{
    int out, guest;
    uint8_t arp[42] = {255, 255, 255, 255, 255, 255, 2, 1, 1, 1, 1, 1, 8, 6, 0, 1,
                       8,   0,   6,   4,   0,   1,   2, 1, 1, 1, 1, 1, 10, 0, 0, 7};
    uint8_t na[14 + 40 + 24] = {0x33, 0x33, 0, 0, 0, 1, 2, 1, 1, 1, 1, 1, 0x86, 0xdd, 0x60};
    uint8_t back[4 + 200];
    NetDev *nd = make(&out, &guest);
    net_lock();
    netdev_set_mac(nd, (const uint8_t[6]){2, 9, 9, 9, 9, 9});
    net_set_role(NET_ROLE_SECONDARY);
    net_unlock();
    send(guest, arp, sizeof(arp), 0);
    na[14 + 5] = 24;
    na[14 + 6] = 58;
    na[14 + 8] = 0xfe;
    na[14 + 9] = 0x80;
    na[14 + 23] = 5;
    na[14 + 40] = 135;
    send(guest, na, sizeof(na), 0);
    reaches("rx-frames", 2);
    net_lock();
    net_set_role(NET_ROLE_ALONE);
    net_announce();
    net_unlock();
    /* RARP for the MAC without address, GARP, unsolicited NA; then all again. */
    for (int round = 0; round < 2; round++) {
        g_assert_cmpint(recv(out, back, 64, MSG_WAITALL), ==, 64);
        g_assert_cmpmem(back + 4 + 6, 8, "\2\x9\x9\x9\x9\x9\x80\x35", 8);
        g_assert_cmpint(recv(out, back, 64, MSG_WAITALL), ==, 64);
        g_assert_cmpmem(back + 4 + 6, 8, "\2\1\1\1\1\1\x8\6", 8);
        g_assert_cmpmem(back + 4 + 28, 4, "\xa\0\0\7", 4);
        g_assert_cmpmem(back + 4 + 38, 4, "\xa\0\0\7", 4);
        g_assert_cmpint(recv(out, back, 90, MSG_WAITALL), ==, 90);
        g_assert_cmpint(back[4 + 54], ==, 136);
        g_assert_cmpint(back[4 + 58], ==, 0x20);
        uint32_t sum = 32 + 58;
        for (int i = 22; i < 86; i += 2) {
            sum += back[4 + i] << 8 | back[5 + i];
        }
        sum = (sum & 0xffff) + (sum >> 16);
        g_assert_cmpuint((sum & 0xffff) + (sum >> 16), ==, 0xffff);
    }
    end(out, guest);
}

/* libslirp answers for its host, and its hostfwd reaches for the guest. */
static void test_user(void)
{
    uint8_t arp[42] = {255, 255, 255, 255, 255, 255, 2, 1, 1, 1, 1, 1, 8, 6,  0, 1,
                       8,   0,   6,   4,   0,   1,   2, 1, 1, 1, 1, 1, 10, 0, 2, 15,
                       0,   0,   0,   0,   0,   0,   10, 0, 2, 2};
    uint8_t b[2000];
    struct sockaddr_in a = {.sin_family = AF_INET};
    socklen_t alen = sizeof(a);
    int probe = socket(AF_INET, SOCK_STREAM, 0);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    g_assert_cmpint(bind(probe, (struct sockaddr *)&a, sizeof(a)), ==, 0);
    getsockname(probe, (struct sockaddr *)&a, &alen);
    close(probe);
    g_autofree char *t = g_strdup_printf(
        "user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:%d-:80", ntohs(a.sin_port));
    g_autoptr(JsonObject) o = options_parse(t, "type", NULL);
    g_autoptr(GError) err = NULL;
    net_lock();
    NetDev *nd = netdev_new(o, &err);
    g_assert_no_error(err);
    int guest = dup(netdev_child_fd(nd));
    net_unlock();
    g_assert_cmpint(send(guest, arp, 42, 0), ==, 42);
    bool replied = false, syn = false;
    int s = -1;
    for (int i = 0; i < 600 && !syn; i++) {
        ssize_t n = recv(guest, b, sizeof(b), MSG_DONTWAIT);
        if (n < 0) {
            g_usleep(5000);
            continue;
        }
        if (n >= 42 && b[12] == 8 && b[13] == 6 && b[21] == 2) {
            replied = true;
            g_assert_cmpmem(b + 28, 4, "\xa\0\2\2", 4);
            s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
            (void)connect(s, (struct sockaddr *)&a, sizeof(a)); /* in progress */
        }
        syn |= n >= 54 && b[12] == 8 && b[13] == 0 && b[23] == 6 && b[37] == 80 &&
               b[47] == 2;
    }
    g_assert_true(replied);
    g_assert_true(syn);
    close(s);
    close(guest);
    net_lock();
    g_assert_true(netdev_del("n0", NULL));
    net_unlock();
}

/* The primary's lease from its twin: what is too late waits, in order, and leaves with the
 * next lease; not what the gate was shut for good for. */
static void test_twin_lease(void)
{
    int out, guest;
    uint8_t b[64] = {0}, back[64];
    make(&out, &guest);
    net_lock();
    net_set_role(NET_ROLE_PRIMARY);
    net_unlock();
    net_twin_until(net_boot_us() + 3600ll * G_USEC_PER_SEC);
    b[20] = 1;
    send(guest, b, 60, 0);
    g_assert_cmpint(recv(out, back, 64, MSG_WAITALL), ==, 64);
    net_twin_until(net_boot_us() - 1);
    for (b[20] = 2; b[20] <= 4; b[20]++) {
        send(guest, b, 60, 0);
        reaches("kept", b[20] - 1);
    }
    silent(out);
    net_twin_until(net_boot_us() + 3600ll * G_USEC_PER_SEC);
    for (int i = 2; i <= 4; i++) {
        g_assert_cmpint(recv(out, back, 64, MSG_WAITALL), ==, 64);
        g_assert_cmpint(back[24], ==, i);
    }
    net_twin_until(1);
    send(guest, b, 60, 0);
    reaches("kept", 1);
    silent(out);
    net_lock();
    net_set_role(NET_ROLE_SILENT);
    net_set_role(NET_ROLE_PRIMARY);
    net_unlock();
    silent(out);
    /* Alone it goes by the owner's lease, not by this one. */
    net_lock();
    net_set_role(NET_ROLE_ALONE);
    net_unlock();
    g_assert_cmpint(recv(out, back, 64, MSG_WAITALL), ==, 64);
    net_twin_until(0);
    end(out, guest);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    net_init();
    g_test_add_func("/child-port/hold", test_hold);
    g_test_add_func("/child-port/backlog", test_backlog);
    g_test_add_func("/child-port/release-hears-again", test_release_hears_again);
    g_test_add_func("/child-port/race", test_race);
    g_test_add_func("/child-port/output", test_output);
    g_test_add_func("/child-port/gate", test_gate);
    g_test_add_func("/child-port/twin-lease", test_twin_lease);
    g_test_add_func("/child-port/announce", test_announce);
    g_test_add_func("/child-port/user", test_user);
    int r = g_test_run();
    net_shutdown();
    return r;
}
