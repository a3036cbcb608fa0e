/*
 * The filter chain: order, positions, status, removal, redirectors, buffer, options.
 * Build: tests/unit/test-filter.c; dependencies: net, chardev, util.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "chardev/chardev.h"
#include "net/filter.h"
#include "net/net.h"
#include "util/options.h"

static GString *seen; /* ids of the probes that a frame met */
static int outside, guest;

static Frame *probe_receive(NetFilter *nf, NetFilterDirection dir, Frame *f)
{
    g_string_append(seen, nf->id);
    return f;
}

static bool probe_setup(NetFilter *nf, JsonObject *opts, GError **errp)
{
    return true;
}

static void probe_cleanup(NetFilter *nf)
{
}

static const NetFilterClass probe = {.type = "probe",
                                     .size = sizeof(NetFilter),
                                     .setup = probe_setup,
                                     .cleanup = probe_cleanup,
                                     .receive = probe_receive};

static NetFilter *add_probe(const char *text)
{
    g_autofree char *all = g_strdup_printf("probe,netdev=n0,%s", text);
    g_autoptr(JsonObject) o = options_parse(all, "qom-type", NULL);
    g_autoptr(GError) err = NULL;
    NetFilter *nf = net_filter_new(&probe, o, &err);
    g_assert_no_error(err);
    return nf;
}

static void setup(void)
{
    int sv[2];
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    struct timeval tv = {.tv_usec = 150000};
    setsockopt(sv[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    g_autofree char *t = g_strdup_printf("socket,id=n0,fd=%d", sv[1]);
    g_autoptr(JsonObject) o = options_parse(t, "type", NULL);
    NetDev *nd = netdev_new(o, NULL);
    g_assert_nonnull(nd);
    guest = dup(netdev_child_fd(nd));
    outside = sv[0];
    seen = g_string_new(NULL);
}

static void teardown(void)
{
    close(outside);
    close(guest);
    g_assert_true(netdev_del("n0", NULL));
    g_string_free(seen, TRUE);
}

static void to_guest(int mark)
{
    uint8_t b[64] = {0};
    b[3] = 60;
    b[20] = mark;
    g_assert_cmpint(send(outside, b, 64, 0), ==, 64);
}

/* The mark of the next frame at the guest, or -1. */
static int at_guest(void)
{
    uint8_t b[64];
    for (int i = 0; i < 30; i++) {
        if (recv(guest, b, 64, MSG_DONTWAIT) == 60) {
            return b[16];
        }
        g_usleep(5000);
    }
    return -1;
}

static void from_guest(int mark)
{
    uint8_t b[60] = {0};
    b[16] = mark;
    g_assert_cmpint(send(guest, b, 60, 0), ==, 60);
}

static int at_outside(void)
{
    uint8_t b[64];
    return recv(outside, b, 64, MSG_WAITALL) == 64 ? b[20] : -1;
}

static void expect_seen(const char *tx, const char *rx)
{
    g_string_truncate(seen, 0);
    net_unlock();
    to_guest(1);
    g_assert_cmpint(at_guest(), ==, 1);
    net_lock();
    g_assert_cmpstr(seen->str, ==, tx);
    g_string_truncate(seen, 0);
    net_unlock();
    from_guest(2);
    g_assert_cmpint(at_outside(), ==, 2);
    net_lock();
    g_assert_cmpstr(seen->str, ==, rx);
}

static void test_order(void)
{
    net_lock();
    setup();
    NetFilter *b = add_probe("id=b");
    NetFilter *d = add_probe("id=d,position=tail");
    NetFilter *a = add_probe("id=a,position=head");
    NetFilter *c = add_probe("id=c,position=id=d,insert=before");
    NetFilter *x = add_probe("id=x,position=id=b,insert=behind,queue=tx");
    NetFilter *y = add_probe("id=y,position=id=b,queue=rx");
    expect_seen("abxcd", "dcyba");
    net_filter_set_status(c, false);
    expect_seen("abxd", "dyba");
    net_filter_set_status(c, true);
    net_filter_free(b);
    expect_seen("axcd", "dcya");
    /* A frame that was taken back enters before or behind the right filter. */
    net_filter_free(a);
    net_filter_free(c);
    net_filter_free(d);
    net_filter_free(x);
    net_filter_free(y);
    teardown();
    net_unlock();
}

static bool add(const char *text, GError **errp)
{
    g_autoptr(JsonObject) o = options_parse(text, "qom-type", NULL);
    return net_object_add(o, errp);
}

static void refuse(const char *text, const char *part)
{
    g_autoptr(GError) err = NULL;
    g_assert_false(add(text, &err));
    if (!strstr(err->message, part)) {
        g_error("'%s' not in '%s'", part, err->message);
    }
}

static void chardev(const char *text)
{
    g_autoptr(JsonObject) o = options_parse(text, "backend", NULL);
    g_autoptr(GError) err = NULL;
    chardev_new(o, &err);
    g_assert_no_error(err);
}

static void test_options(void)
{
    net_lock();
    setup();
    g_autofree char *path = g_strdup_printf("/tmp/colo-filter-%d", getpid());
    g_autofree char *c0 = g_strdup_printf("socket,id=c0,path=%s,server=on,wait=off", path);
    g_autofree char *c1 = g_strdup_printf("socket,id=c1,path=%s1,server=on,wait=off", path);
    g_autofree char *c2 = g_strdup_printf("socket,id=c2,path=%s2,server=on,wait=off", path);
    chardev(c0);
    chardev(c1);
    chardev(c2);
    refuse("filter-mirror,id=m,netdev=n0", "'outdev'");
    refuse("filter-mirror,id=m,netdev=nx,outdev=c0", "network backend id");
    refuse("filter-mirror,id=m,outdev=c0", "'netdev'");
    refuse("filter-mirror,netdev=n0,outdev=c0", "'id'");
    refuse("filter-mirror,id=m,netdev=n0,outdev=c9", "c9");
    refuse("filter-mirror,id=m,netdev=n0,outdev=c0,queue=up", "queue");
    refuse("filter-mirror,id=m,netdev=n0,outdev=c0,status=maybe", "status");
    refuse("filter-mirror,id=m,netdev=n0,outdev=c0,position=middle", "position");
    refuse("filter-mirror,id=m,netdev=n0,outdev=c0,position=id=q", "'q'");
    refuse("filter-mirror,id=m,netdev=n0,outdev=c0,insert=under", "insert");
    refuse("filter-mirror,id=m,netdev=n0,outdev=c0,frob=1", "frob");
    refuse("filter-redirector,id=r,netdev=n0", "indev");
    refuse("filter-redirector,id=r,netdev=n0,indev=c0,outdev=c0", "same");
    refuse("filter-buffer,id=b,netdev=n0", "interval");
    refuse("filter-buffer,id=b,netdev=n0,interval=0", "interval");
    refuse("colo-compare,id=p,primary_in=c0,secondary_in=c1,outdev=c2", "iothread");
    refuse("colo-compare,id=p,primary_in=c0,secondary_in=c1,outdev=c2,iothread=i", "'i'");
    refuse("filter-mirror,id=7m,netdev=n0,outdev=c0", "identifier");
    g_assert_true(add("iothread,id=i", NULL));
    refuse("iothread,id=i", "duplicate");
    refuse("colo-compare,id=p,primary_in=c0,secondary_in=c0,outdev=c2,iothread=i",
           "the same");
    refuse("colo-compare,id=p,primary_in=c0,secondary_in=c1,outdev=c2,iothread=i,"
           "compare_timeout=0", "compare_timeout");
    refuse("colo-compare,id=p,primary_in=c0,secondary_in=c1,outdev=c2,iothread=i,"
           "notify_dev=c0", "notify_dev");
    /* Nothing of the refused ones is left. */
    g_assert_true(add("colo-compare,id=p,primary_in=c0,secondary_in=c1,outdev=c2,iothread=i,"
                      "compare_timeout=77", NULL));
    g_autoptr(JsonNode) n = net_object_get("p", "compare_timeout", NULL);
    g_assert_cmpint(json_node_get_int(n), ==, 77);
    g_autoptr(GError) err = NULL;
    g_assert_false(net_object_del("i", &err));
    g_assert_nonnull(strstr(err->message, "in use"));
    g_assert_true(net_object_del("p", NULL));
    g_assert_true(net_object_del("i", NULL));
    g_assert_true(chardev_remove("c0", NULL));
    g_assert_true(chardev_remove("c1", NULL));
    g_assert_true(chardev_remove("c2", NULL));
    teardown();
    net_unlock();
}

/* redire1 takes the guest's frames out, they come back in through redire0, as between
 * them and a comparison; what comes in goes on behind redire0 and not to redire1 again. */
static void test_redirect(void)
{
    net_lock();
    setup();
    g_autofree char *s = g_strdup_printf("socket,id=s,path=/tmp/colo-filter-%d,server=on,"
                                         "wait=off", getpid());
    g_autofree char *k = g_strdup_printf("socket,id=k,path=/tmp/colo-filter-%d", getpid());
    chardev(s);
    chardev(k);
    NetFilter *a = add_probe("id=a");
    g_assert_true(add("filter-redirector,id=redire0,netdev=n0,queue=rx,indev=s", NULL));
    NetFilter *b = add_probe("id=b");
    g_assert_true(add("filter-redirector,id=redire1,netdev=n0,queue=rx,outdev=k", NULL));
    NetFilter *c = add_probe("id=c");
    expect_seen("abc", "ca"); /* b lies between the two: passed by */
    g_autoptr(JsonNode) off = json_node_init_string(json_node_alloc(), "off");
    g_assert_true(net_object_set("redire1", "status", off, NULL));
    expect_seen("abc", "cba");
    g_assert_true(net_object_del("redire1", NULL));
    g_assert_true(net_object_del("redire0", NULL));
    net_filter_free(a);
    net_filter_free(b);
    net_filter_free(c);
    chardev_remove("s", NULL);
    chardev_remove("k", NULL);
    teardown();
    net_unlock();
}

static void test_buffer(void)
{
    net_lock();
    setup();
    g_assert_true(add("filter-buffer,id=f,netdev=n0,queue=tx,interval=300000", NULL));
    gint64 t0 = g_get_monotonic_time();
    net_unlock();
    to_guest(7);
    from_guest(8);
    g_assert_cmpint(at_outside(), ==, 8);
    int m = -1;
    for (int i = 0; i < 20 && m < 0; i++) {
        m = at_guest(); /* waits 150 ms */
    }
    g_assert_cmpint(m, ==, 7);
    g_assert_cmpint(g_get_monotonic_time() - t0, >=, 250000);
    to_guest(9);
    g_usleep(30000);
    net_lock();
    g_assert_true(net_object_del("f", NULL)); /* lets go of what it has */
    net_unlock();
    g_assert_cmpint(at_guest(), ==, 9);
    net_lock();
    teardown();
    net_unlock();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    net_init();
    g_test_add_func("/filter/order", test_order);
    g_test_add_func("/filter/options", test_options);
    g_test_add_func("/filter/redirect", test_redirect);
    g_test_add_func("/filter/buffer", test_buffer);
    int r = g_test_run();
    net_shutdown();
    return r;
}
