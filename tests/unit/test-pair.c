/*
 * The pure parts of a pair that looks after itself: backoff, layout, what a peer says.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Sources: test-pair.c, system/pair-{backoff,layout,options,port}.c, system/cmdline.c.
 */
#include <string.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "system/pair-backoff.h"
#include "system/pair-layout.h"
#include "system/pair-port.h"
#include "util/error.h"
#include "util/options.h"

#define MS 1000LL

/* --- Backoff --- */

static void test_waits_grow_to_a_bound(void)
{
    PairBackoff b = {0};
    int64_t now = 5000 * MS;
    unsigned last = 0;

    g_assert_cmpuint(pair_backoff_wait_ms(&b, now), ==, 0);
    for (unsigned i = 0; i < 100; i++) {
        pair_backoff_failed(&b, now);
        unsigned wait = pair_backoff_wait_ms(&b, now);
        g_assert_cmpuint(wait, ==, MIN(1000u << MIN(i, 16), 60000u));
        g_assert_cmpuint(wait, >=, last);
        /* Not before, and from then on. */
        g_assert_cmpuint(pair_backoff_wait_ms(&b, now + wait * MS - 1), ==, 1);
        g_assert_cmpuint(pair_backoff_wait_ms(&b, now + wait * MS), ==, 0);
        last = wait;
        now += wait * MS;
    }
}

static void test_flapping_is_failing(void)
{
    PairBackoff b = {0};
    int64_t now = 0;

    for (unsigned i = 0; i < 4; i++) {
        pair_backoff_protected(&b, now + 1);
        now += (PAIR_QUIET_MS - 1) * MS;
        pair_backoff_failed(&b, now);
        g_assert_cmpuint(pair_backoff_wait_ms(&b, now), ==, 1000u << i);
    }
}

static void test_a_long_protection_forgives(void)
{
    PairBackoff b = {0};
    int64_t now = 0;

    for (unsigned i = 0; i < 6; i++) {
        pair_backoff_failed(&b, now);
    }
    pair_backoff_protected(&b, now + 1);
    now += PAIR_QUIET_MS * MS + 1;
    pair_backoff_failed(&b, now);
    g_assert_cmpuint(pair_backoff_wait_ms(&b, now), ==, 1000);
    /* Its length counts once. */
    pair_backoff_failed(&b, now + PAIR_QUIET_MS * MS);
    g_assert_cmpuint(pair_backoff_wait_ms(&b, now + PAIR_QUIET_MS * MS), ==, 2000);
    pair_backoff_reset(&b);
    g_assert_cmpuint(pair_backoff_wait_ms(&b, now), ==, 0);
}

/* --- Layout --- */

static const char *layout_tls; /* of the layouts that a test makes */

static PairLayout *layout(const char *line)
{
    g_autoptr(GError) err = NULL;
    g_auto(GStrv) argv = NULL;
    CmdLine cl = {0};
    int argc;
    PairOptions o = {.on = true, .listen = "192.0.2.2", .peer = "192.0.2.1",
                     .mirror_port = 9003, .compare_port = 9004, .in_port = 9001,
                     .out_port = 9005, .settings.tls_server = layout_tls};

    g_assert_true(g_shell_parse_argv(line, &argc, &argv, NULL));
    g_assert_true(cmdline_parse(&cl, argc, argv, &err));
    PairLayout *l = pair_layout_new(&cl, &o, &err);
    g_assert_no_error(err);
    cmdline_clear(&cl);
    return l;
}

static char *text(GPtrArray *objects)
{
    GString *s = g_string_new(NULL);

    for (guint i = 0; i < objects->len; i++) {
        g_autoptr(JsonNode) n = json_node_new(JSON_NODE_OBJECT);
        json_node_set_object(n, objects->pdata[i]);
        g_autofree char *one = json_to_string(n, FALSE);
        g_string_append_printf(s, "%s\n", one);
    }
    return g_string_free(s, FALSE);
}

static char *ids(GPtrArray *names)
{
    g_ptr_array_add(names, NULL);
    char *s = g_strjoinv(" ", (char **)names->pdata);
    g_ptr_array_remove_index(names, names->len - 1);
    return s;
}

#define SECONDARY                                                                            \
    "qemu-colo -netdev tap,id=hn0 -chardev socket,id=red0,host=192.0.2.1,port=9003,reconnect=1 " \
    "-chardev socket,id=red1,host=192.0.2.1,port=9104,reconnect=1 "                          \
    "-object filter-redirector,id=f1,netdev=hn0,queue=tx,indev=red0 "                        \
    "-object filter-redirector,id=f2,netdev=hn0,queue=rx,outdev=red1 "                       \
    "-object filter-rewriter,id=rew0,netdev=hn0,queue=all "                                  \
    "-drive if=none,id=parent0,file.filename=disk.raw,driver=raw "                           \
    "-drive if=none,id=childs0,driver=replication,mode=secondary,file.driver=qcow2,"         \
    "top-id=colo-disk0,file.file.filename=a,file.backing.driver=qcow2,"                      \
    "file.backing.file.filename=h,file.backing.backing=parent0 "                             \
    "-drive if=virtio,id=colo-disk0,driver=quorum,children.0=childs0 -incoming tcp:0:9998"

/* What the manual types after a takeover, and for the way back. */
static void test_secondary_becomes_the_manuals_primary(void)
{
    g_autoptr(PairLayout) l = layout(SECONDARY);
    g_autofree char *chardevs = text(l->chardevs), *objects = text(l->objects);
    g_autofree char *old = ids(l->old_objects), *old_chardevs = ids(l->old_chardevs);
    g_autofree char *streams = ids(l->streams);

    g_assert_cmpstr(old, ==, "f2 f1");
    g_assert_cmpstr(old_chardevs, ==, "red1 red0");
    g_assert_cmpstr(streams, ==, "mirror0 compare1");
    g_assert_nonnull(strstr(chardevs,
        "{\"id\":\"mirror0\",\"backend\":{\"type\":\"socket\",\"data\":{\"addr\":{\"type\":\"inet\","
        "\"data\":{\"host\":\"192.0.2.2\",\"port\":\"9003\"}},\"server\":true}}}\n"));
    /* Where the secondary's own red1 went. */
    g_assert_nonnull(strstr(chardevs, "\"host\":\"192.0.2.2\",\"port\":\"9104\""));
    g_assert_nonnull(strstr(chardevs,
        "{\"id\":\"compare_out0\",\"backend\":{\"type\":\"socket\",\"data\":{\"addr\":{\"type\":\"inet\","
        "\"data\":{\"host\":\"127.0.0.1\",\"port\":\"9005\"}},\"server\":false}}}\n"));
    g_assert_cmpstr(objects, ==,
        "{\"qom-type\":\"filter-mirror\",\"id\":\"m0\",\"netdev\":\"hn0\",\"queue\":\"tx\","
        "\"outdev\":\"mirror0\",\"insert\":\"before\",\"position\":\"id=rew0\"}\n"
        "{\"qom-type\":\"filter-redirector\",\"id\":\"redire0\",\"netdev\":\"hn0\",\"queue\":\"rx\","
        "\"indev\":\"compare_out\",\"insert\":\"before\",\"position\":\"id=rew0\"}\n"
        "{\"qom-type\":\"filter-redirector\",\"id\":\"redire1\",\"netdev\":\"hn0\",\"queue\":\"rx\","
        "\"outdev\":\"compare0\",\"insert\":\"before\",\"position\":\"id=rew0\"}\n"
        "{\"qom-type\":\"iothread\",\"id\":\"iothread1\"}\n"
        "{\"qom-type\":\"colo-compare\",\"id\":\"comp0\",\"primary_in\":\"compare0-0\","
        "\"secondary_in\":\"compare1\",\"outdev\":\"compare_out0\",\"iothread\":\"iothread1\"}\n");
    g_assert_cmpuint(l->disks->len, ==, 1);
    PairDisk *d = l->disks->pdata[0];
    g_assert_cmpstr(d->top, ==, "colo-disk0");
    g_assert_cmpstr(d->export, ==, "parent0");
    g_assert_cmpstr(d->node, ==, "replication0");
}

static void test_two_netdevs_two_disks(void)
{
    g_autoptr(PairLayout) l = layout(
        SECONDARY " -netdev tap,id=hn1 -chardev socket,id=r2,host=192.0.2.1,port=9013,reconnect=1 "
        "-chardev socket,id=r3,host=192.0.2.1,port=9014,reconnect=1 "
        "-object filter-redirector,id=f3,netdev=hn1,queue=tx,indev=r2,vnet_hdr_support=on "
        "-object filter-redirector,id=f4,netdev=hn1,queue=rx,outdev=r3,vnet_hdr_support=on "
        "-object filter-rewriter,id=rew1,netdev=hn1,queue=all,vnet_hdr_support=on "
        "-drive if=none,id=p2,file.filename=d2,driver=raw "
        "-drive if=none,id=c2,driver=replication,mode=secondary,file.driver=qcow2,top-id=data,"
        "file.file.filename=a2,file.backing.driver=qcow2,file.backing.file.filename=h2,"
        "file.backing.backing=p2 -drive if=virtio,id=data,driver=quorum,children.0=c2");
    g_autofree char *objects = text(l->objects), *streams = ids(l->streams);
    g_autofree char *old = ids(l->old_objects);

    g_assert_cmpstr(streams, ==, "mirror0 compare1 mirror0-1 compare1-1");
    g_assert_cmpstr(old, ==, "f4 f3 f2 f1");
    g_assert_nonnull(strstr(objects,
        "{\"qom-type\":\"filter-mirror\",\"id\":\"m0-1\",\"netdev\":\"hn1\",\"queue\":\"tx\",\"outdev\":"
        "\"mirror0-1\",\"insert\":\"before\",\"position\":\"id=rew1\",\"vnet_hdr_support\":true}\n"));
    g_assert_nonnull(strstr(objects,
        "{\"qom-type\":\"colo-compare\",\"id\":\"comp0-1\",\"primary_in\":\"compare0-0-1\","
        "\"secondary_in\":\"compare1-1\",\"outdev\":\"compare_out0-1\",\"iothread\":\"iothread1\","
        "\"vnet_hdr_support\":true}\n"));
    /* The first has no vnet headers, and there is one iothread. */
    g_assert_null(strstr(objects, "\"mirror0\",\"insert\":\"before\",\"position\":\"id=rew0\",\"v"));
    g_assert_null(strstr(strstr(objects, "\"iothread1\"}") + 1, "\"qom-type\":\"iothread\""));
    g_assert_cmpuint(l->disks->len, ==, 2);
    PairDisk *d = l->disks->pdata[1];
    g_assert_cmpstr(d->top, ==, "data");
    g_assert_cmpstr(d->export, ==, "p2");
    g_assert_cmpstr(d->node, ==, "replication1");
    g_assert_cmpstr(d->job, ==, "resync-1");
}

/* What is encrypted is so after a takeover, too: the two streams, and not the loopback. */
static void test_tls_is_kept(void)
{
    layout_tls = "tlss0";
    g_autoptr(PairLayout) l = layout(SECONDARY);
    layout_tls = NULL;
    g_autofree char *chardevs = text(l->chardevs);
    g_auto(GStrv) lines = g_strsplit(g_strchomp(chardevs), "\n", -1);

    g_assert_cmpuint(g_strv_length(lines), ==, 6);
    for (char **c = lines; *c; c++) {
        bool local = strstr(*c, "127.0.0.1");
        g_assert_true(local == !strstr(*c, "\"tls-creds\":\"tlss0\""));
    }
}

static char *object_text(JsonObject *o)
{
    g_autoptr(JsonNode) n = json_node_new(JSON_NODE_OBJECT);

    json_node_take_object(n, o);
    return json_to_string(n, FALSE);
}

static void test_settings(void)
{
    static const struct {
        const char *colo, *caps, *primary, *secondary; /* NULL: refused; "": nothing */
    } rows[] = {
        {"pair=on", "", "", ""},
        {"channels=0", ",{\"capability\":\"multifd\",\"state\":false}", "", ""},
        {"channels=4,compression=zstd,xbzrle=off",
         ",{\"capability\":\"multifd\",\"state\":true},"
         "{\"capability\":\"xbzrle\",\"state\":false}",
         "{\"multifd-channels\":4,\"multifd-compression\":\"zstd\"}",
         "{\"multifd-channels\":4,\"multifd-compression\":\"zstd\"}"},
        {"max-bandwidth=1M,max-pause=0,checkpoint-delay=300", "",
         "{\"max-bandwidth\":1048576,\"x-max-pause\":0,\"x-checkpoint-delay\":300}",
         "{\"max-bandwidth\":1048576,\"x-max-pause\":0,\"x-checkpoint-delay\":300}"},
        {"tls-client=c,tls-server=s", "", "{\"tls-creds\":\"c\"}", "{\"tls-creds\":\"s\"}"},
        {"channels=17"}, {"channels=x"}, {"compression=zstd"}, {"compression=lz4,channels=1"},
        {"xbzrle=7"}, {"max-pause=10001"}, {"checkpoint-delay=0"}, {"max-bandwidth=x"},
        {"tls-client=c"}, {"tls-server=s"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(JsonObject) colo = options_parse(rows[i].colo, NULL, NULL);
        g_autoptr(GError) err = NULL;
        PairSettings s;
        bool ok = pair_settings_read(&s, colo, &err);
        g_test_message("%s: %s", rows[i].colo, err ? err->message : "good");
        g_assert_true(ok == (rows[i].caps != NULL) && ok == !err);
        if (!ok) {
            g_assert_true(g_str_has_prefix(err->message, "-colo: "));
            continue;
        }
        g_autofree char *caps = object_text(pair_settings_capabilities(&s));
        g_autofree char *want = g_strdup_printf(
            "{\"capabilities\":[{\"capability\":\"x-colo\",\"state\":true}%s]}", rows[i].caps);
        g_assert_cmpstr(caps, ==, want);
        for (int secondary = 0; secondary < 2; secondary++) {
            JsonObject *o = pair_settings_parameters(&s, secondary);
            g_autofree char *got = o ? object_text(o) : g_strdup("");
            g_assert_cmpstr(got, ==, secondary ? rows[i].secondary : rows[i].primary);
        }
    }
}

/* A primary keeps its filters as they are written, with the types that QMP wants. */
static void test_primary_keeps_its_filters(void)
{
    g_autoptr(PairLayout) l = layout(
        "qemu-colo -netdev tap,id=hn0 -object iothread,id=other "
        "-object colo-compare,id=cmp,primary_in=pi,secondary_in=si,outdev=o,iothread=io9,"
        "compare_timeout=500,vnet_hdr_support=off "
        "-object filter-mirror,id=mir,netdev=hn0,queue=tx,outdev=mm -object iothread,id=io9 "
        "-object filter-redirector,netdev=hn0,id=x,queue=rx,indev=y "
        "-drive if=virtio,id=colo-disk0,driver=quorum,children.0.file.filename=disk.raw");
    g_autofree char *objects = text(l->objects), *streams = ids(l->streams);

    g_assert_cmpstr(streams, ==, "mm si");
    g_assert_cmpuint(l->chardevs->len, ==, 0);
    g_assert_cmpuint(l->old_objects->len, ==, 0);
    g_assert_null(strstr(objects, "other"));
    g_assert_nonnull(strstr(objects, "\"compare_timeout\":500,\"vnet_hdr_support\":false}"));
    /* An iothread before the comparison that names it. */
    g_assert_true(strstr(objects, "\"id\":\"io9\"") < strstr(objects, "\"id\":\"cmp\""));
    PairDisk *d = l->disks->pdata[0];
    g_assert_null(d->export);
}

/* --- What a peer says --- */

static void test_peer_lines(void)
{
    static const char *const bad[] = {
        "", "{", "[]", "null", "\"x\"", "{}", "{\"program\":\"qemu\"}",
        "{\"program\":\"qemu-colo\",\"serves\":7}", "{\"program\":\"qemu-colo\",\"epoch\":-1}",
        "{\"program\":\"qemu-colo\",\"instance\":\"x\"}", "{\"program\":{},\"serves\":true}",
    };
    g_autoptr(GString) many = g_string_new("{\"program\":\"qemu-colo\",\"disks\":[1,null,[]");
    PairPeer p;

    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) err = NULL;
        g_assert_false(pair_peer_parse(bad[i], &p, &err));
        g_assert_nonnull(err);
    }
    g_assert_true(pair_peer_parse(
        "{\"program\":\"qemu-colo\",\"state\":\"waiting\",\"serves\":false,\"wants-peer\":true,"
        "\"epoch\":7,\"instance\":99,\"name\":\"vm\",\"disks\":[{\"top\":\"t\",\"export\":\"e\"}]}\n",
        &p, NULL));
    g_assert_cmpstr(p.state, ==, "waiting");
    g_assert_true(p.wants_peer && !p.serves && p.epoch == 7 && p.instance == 99);
    g_assert_cmpuint(p.n_disks, ==, 1);
    g_assert_cmpstr(p.disks[0].export, ==, "e");
    /* More disks than there can be, and names longer than there is room for. */
    for (unsigned i = 0; i < 3 * PAIR_DISKS_MAX; i++) {
        g_string_append_printf(many, ",{\"top\":\"%0*d\"}", 500, i);
    }
    g_string_append(many, "]}");
    g_assert_true(pair_peer_parse(many->str, &p, NULL));
    g_assert_cmpuint(p.n_disks, ==, PAIR_DISKS_MAX);
    g_assert_cmpuint(strlen(p.disks[0].top), ==, sizeof(p.disks[0].top) - 1);
}

static char *hello(void *opaque)
{
    return g_strdup("{\"program\":\"qemu-colo\",\"state\":\"alone\",\"serves\":true}\n");
}

/* Clients that connect and say nothing, or leave, keep nobody waiting for long. */
static void test_port_serves_all(void)
{
    g_autoptr(GError) err = NULL;
    PairPort *port = NULL;
    unsigned n = 0;
    bool absent;
    PairPeer peer;

    for (unsigned i = 0; !port && i < 20; i++) {
        n = g_test_rand_int_range(20000, 60000);
        g_clear_error(&err);
        port = pair_port_new("127.0.0.1", n, hello, NULL, &err);
    }
    g_assert_no_error(err);
    int idle[4];
    for (unsigned i = 0; i < 4; i++) {
        idle[i] = pair_connect("127.0.0.1", n, 1000, &err);
        g_assert_no_error(err);
    }
    g_assert_true(pair_port_ask("127.0.0.1", n, 5000, &peer, &absent, &err));
    g_assert_no_error(err);
    g_assert_true(peer.serves);
    for (unsigned i = 0; i < 4; i++) {
        close(idle[i]);
    }
    pair_port_free(port);
    g_assert_false(pair_port_ask("127.0.0.1", n, 1000, &peer, &absent, &err));
    g_assert_true(absent);
}

/* One that accepts and hangs costs the time that was given, and is not absent. */
static void test_peer_that_hangs(void)
{
    g_autoptr(GError) err = NULL;
    PairPeer peer;
    bool absent = true;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);

    g_assert_cmpint(bind(fd, (struct sockaddr *)&a, sizeof(a)) | listen(fd, 1), ==, 0);
    getsockname(fd, (struct sockaddr *)&a, &len);
    int64_t start = g_get_monotonic_time();
    g_assert_false(pair_port_ask("127.0.0.1", ntohs(a.sin_port), 300, &peer, &absent, &err));
    g_assert_cmpint(g_get_monotonic_time() - start, >=, 290 * MS);
    g_assert_false(absent);
    close(fd);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/pair/backoff/grows", test_waits_grow_to_a_bound);
    g_test_add_func("/pair/backoff/flapping", test_flapping_is_failing);
    g_test_add_func("/pair/backoff/forgives", test_a_long_protection_forgives);
    g_test_add_func("/pair/layout/secondary", test_secondary_becomes_the_manuals_primary);
    g_test_add_func("/pair/layout/two", test_two_netdevs_two_disks);
    g_test_add_func("/pair/layout/primary", test_primary_keeps_its_filters);
    g_test_add_func("/pair/layout/tls", test_tls_is_kept);
    g_test_add_func("/pair/settings", test_settings);
    g_test_add_func("/pair/peer/lines", test_peer_lines);
    g_test_add_func("/pair/port/serves", test_port_serves_all);
    g_test_add_func("/pair/port/hangs", test_peer_that_hangs);
    return g_test_run();
}
