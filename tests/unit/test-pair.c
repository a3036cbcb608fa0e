/*
 * The pure parts of a pair that looks after itself: backoff, layout, what a peer says.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Sources: test-pair.c, system/pair-{backoff,layout,options,peer}.c, system/cmdline.c,
 * util/pair-{wire,port}.c.
 */
#include <string.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "system/pair-backoff.h"
#include "system/pair-layout.h"
#include "system/pair-peer.h"
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
    /* Deeper and longer than an honest one. */
    for (unsigned depth = 1; depth < 100000; depth = depth * 3 + 1) {
        g_autoptr(GString) deep = g_string_new("{\"program\":\"qemu-colo\",\"x\":");
        for (unsigned i = 0; i < depth; i++) {
            g_string_append_c(deep, '[');
        }
        for (unsigned i = 0; i < depth; i++) {
            g_string_append_c(deep, ']');
        }
        g_string_append_c(deep, '}');
        g_assert_true(pair_peer_parse(deep->str, &p, NULL) == (depth < PAIR_DEPTH_MAX));
    }
    g_autofree char *filler = g_strnfill(PAIR_ANSWER_MAX, 'x');
    g_autofree char *big = g_strdup_printf("{\"program\":\"qemu-colo\",\"x\":\"%s\"}", filler);
    g_assert_false(pair_peer_parse(big, &p, NULL));
    /* More disks than there can be, and names longer than there is room for. */
    for (unsigned i = 0; i < 3 * PAIR_DISKS_MAX; i++) {
        g_string_append_printf(many, ",{\"top\":\"%0*d\"}", 100, i);
    }
    g_string_append(many, "]}");
    g_assert_true(pair_peer_parse(many->str, &p, NULL));
    g_assert_cmpuint(p.n_disks, ==, PAIR_DISKS_MAX);
    g_assert_cmpuint(strlen(p.disks[0].top), ==, sizeof(p.disks[0].top) - 1);
}

/* --- Who may start to serve --- */

static void test_who_may_serve(void)
{
    static const struct {
        const char *state, *role;
        bool serves;
        PairPermission may;
    } words[] = {
        {"alone", "none", true, PAIR_MAY_NOT},
        {"protected", "primary", true, PAIR_MAY_NOT},
        {"protected", "secondary", false, PAIR_MAY_NOT},
        {"lost", "secondary", false, PAIR_MAY_NOT},
        {"takeover", "secondary", false, PAIR_MAY_NOT},
        {"waiting", "secondary", false, PAIR_MAY_SERVE},
        {"starting", "secondary", false, PAIR_MAY_SERVE},
        {"fenced", "none", false, PAIR_MAY_SERVE},
        {"undecided", "none", false, PAIR_MAY_SERVE},
    };
    /* The peer's word comes before all others. */
    for (unsigned i = 0; i < G_N_ELEMENTS(words); i++) {
        PairPeer p = {.serves = words[i].serves};
        g_strlcpy(p.state, words[i].state, sizeof(p.state));
        g_strlcpy(p.role, words[i].role, sizeof(p.role));
        for (unsigned j = 0; j < 16; j++) {
            PairKnown k = {.witness = j & 1, .vouched = j & 2, .was = j & 4 ? "alone" : NULL,
                           .instance = j & 8 ? 9 : 1};
            g_assert_cmpint(pair_may_serve(PAIR_HEARD, &p, &k), ==, words[i].may);
        }
    }
    PairPeer starts = {.instance = 5, .state = "starting", .role = "primary"};
    g_assert_cmpint(pair_may_serve(PAIR_HEARD, &starts, &(PairKnown){.instance = 6}), ==,
                    PAIR_ASK_ON);
    g_assert_cmpint(pair_may_serve(PAIR_HEARD, &starts, &(PairKnown){.instance = 4}), ==,
                    PAIR_GIVE_WAY);
    /* Silence is no word, and the word of a stranger is silence. */
    for (unsigned i = 0; i < 3; i++) {
        PairHearing h = (PairHearing[]){PAIR_NOBODY, PAIR_SILENT, PAIR_NOT_BELIEVED}[i];
        PairPeer nobody = {.serves = true};
        g_assert_cmpint(pair_may_serve(h, &nobody, &(PairKnown){.witness = true}), ==,
                        PAIR_MAY_SERVE);
        g_assert_cmpint(pair_may_serve(h, &nobody, &(PairKnown){.vouched = true}), ==,
                        PAIR_MAY_SERVE);
        g_assert_cmpint(pair_may_serve(h, &nobody, &(PairKnown){.was = "alone"}), ==,
                        PAIR_MAY_SERVE);
        for (const char *const *was = (const char *const[]){
                 "protected-primary", "lost-primary", "secondary", "protected-secondary",
                 "lost-secondary", "fenced", "garbage", "", NULL}; *was; was++) {
            g_assert_cmpint(pair_may_serve(h, &nobody, &(PairKnown){.was = *was}), ==,
                            PAIR_ASK_ON);
        }
        PairPermission first = h == PAIR_NOBODY ? PAIR_MAY_SERVE : PAIR_ASK_ON;
        g_assert_cmpint(pair_may_serve(h, &nobody, &(PairKnown){.was = NULL}), ==, first);
        g_assert_cmpint(pair_may_serve(h, &nobody, &(PairKnown){.was = "none"}), ==, first);
    }
}

/* --- Proof --- */

static const PairKey key = {"a key of the two of us", 22}, other = {"a key of strangers....", 22};
static const PairKey none = {.len = 0};
#define LINE "{\"program\":\"qemu-colo\",\"state\":\"waiting\"}"

/* A question as another process puts it. */
static PairQuestion others_question(void)
{
    PairQuestion q;

    pair_question_new(&q);
    q.asker ^= 1;
    return q;
}

static PairRefusal opens(const char *answer, const PairKey *k, const PairQuestion *q)
{
    g_autofree char *line = NULL;
    PairRefusal r = pair_answer_open(answer, strlen(answer), k, q, &line);

    g_assert_true((r == PAIR_OK) == (line != NULL));
    g_assert_true(!line || !strchr(line, '\n'));
    return r;
}

static void test_proof(void)
{
    PairQuestion q = others_question(), later = others_question(), back;
    g_autofree char *text = pair_question_format(&q);

    g_assert_cmpuint(strlen(text), <, PAIR_QUESTION_MAX);
    g_assert_true(pair_question_parse(text, strlen(text), &back));
    g_assert_true(memcmp(q.nonce, back.nonce, sizeof(q.nonce)) == 0 && q.asker == back.asker);
    g_assert_true(memcmp(q.nonce, later.nonce, sizeof(q.nonce)) != 0);
    g_autofree char *sealed = pair_answer_seal(LINE, &key, &q);
    g_assert_cmpint(opens(sealed, &key, &q), ==, PAIR_OK);
    /* Whoever has no key believes, as ever. */
    g_assert_cmpint(opens(sealed, &none, &q), ==, PAIR_OK);
    g_assert_cmpint(opens(LINE "\n", &none, &q), ==, PAIR_OK);
    /* Another key, a recording, the answer to somebody else. */
    g_assert_cmpint(opens(sealed, &other, &q), ==, PAIR_FORGED);
    g_assert_cmpint(opens(sealed, &key, &later), ==, PAIR_FORGED);
    PairQuestion someone = q;
    someone.asker ^= 6;
    g_assert_cmpint(opens(sealed, &key, &someone), ==, PAIR_FORGED);
    /* Nobody with a key, or nobody asked properly. */
    g_autofree char *bare = pair_answer_seal(LINE, &none, &q);
    g_autofree char *unasked = pair_answer_seal(LINE, &key, NULL);
    g_assert_cmpstr(bare, ==, LINE "\n");
    g_assert_cmpstr(unasked, ==, LINE "\n");
    g_assert_cmpint(opens(bare, &key, &q), ==, PAIR_UNSIGNED);
    g_assert_cmpint(opens("\n", &none, &q), ==, PAIR_MALFORMED);
    g_assert_cmpint(opens("", &none, &q), ==, PAIR_MALFORMED);
    /* Each byte of it counts. */
    for (size_t i = 0; sealed[i]; i++) {
        g_autofree char *bad = g_strdup(sealed);
        bad[i] ^= 1;
        g_assert_cmpint(opens(bad, &key, &q), !=, PAIR_OK);
        bad[i] = 0;
        g_assert_cmpint(opens(bad, &key, &q), !=, PAIR_OK);
    }
}

/* Our own question, sent back to us, gets no proof that would make us believe ourselves. */
static void test_no_reflection(void)
{
    PairQuestion q;

    pair_question_new(&q);
    g_autofree char *text = pair_answer_seal(LINE, &key, &q);
    g_assert_cmpstr(text, ==, LINE "\n");
    g_assert_cmpint(opens(text, &key, &q), ==, PAIR_UNSIGNED);
}

/* --- The port --- */

static char *hello(void *opaque)
{
    return g_strdup("{\"program\":\"qemu-colo\",\"state\":\"alone\",\"serves\":true}");
}

static PairPort *listen_somewhere(const PairKey *k, unsigned *n)
{
    g_autoptr(GError) err = NULL;
    PairPort *port = NULL;

    for (unsigned i = 0; !port && i < 20; i++) {
        *n = g_test_rand_int_range(20000, 60000);
        g_clear_error(&err);
        port = pair_port_new("127.0.0.1", *n, k, hello, NULL, &err);
    }
    g_assert_no_error(err);
    return port;
}

/* Clients that connect and say nothing, or leave, keep nobody waiting. */
static void test_port_serves_all(void)
{
    g_autoptr(GError) err = NULL;
    PairRefusal refusal;
    PairPeer peer;
    unsigned n = 0;
    PairPort *port = listen_somewhere(&none, &n);
    int idle[40];

    for (unsigned i = 0; i < G_N_ELEMENTS(idle); i++) {
        idle[i] = pair_connect("127.0.0.1", n, 5000, NULL, &err);
        g_assert_no_error(err);
    }
    g_assert_cmpint(pair_peer_ask("127.0.0.1", n, 5000, &none, &peer, &refusal, &err), ==,
                    PAIR_HEARD);
    g_assert_no_error(err);
    g_assert_true(peer.serves);
    for (unsigned i = 0; i < G_N_ELEMENTS(idle); i++) {
        close(idle[i]);
    }
    /* This process' own question, back at its own port. */
    g_assert_cmpuint(pair_port_reflected(port), ==, 1);
    g_assert_cmpint(pair_peer_ask("127.0.0.1", n, 5000, &key, &peer, &refusal, &err), ==,
                    PAIR_NOT_BELIEVED);
    g_assert_cmpint(refusal, ==, PAIR_UNSIGNED);
    g_clear_error(&err);
    pair_port_free(port);
    g_assert_cmpint(pair_peer_ask("127.0.0.1", n, 1000, &none, &peer, &refusal, &err), ==,
                    PAIR_NOBODY);
}

/* What @fd says up to its end. */
static char *all_of(int fd)
{
    GString *s = g_string_new(NULL);
    char part[512];
    ssize_t n;

    while ((n = recv(fd, part, sizeof(part), 0)) > 0) {
        g_string_append_len(s, part, n);
    }
    return g_string_free(s, FALSE);
}

static int blocking(unsigned n)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(n),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    g_assert_cmpint(connect(fd, (struct sockaddr *)&a, sizeof(a)), ==, 0);
    return fd;
}

/* A question in pieces has its proof; nonsense, silence and a client that leaves have the line. */
static void test_port_answers(void)
{
    PairQuestion q = others_question();
    g_autofree char *question = pair_question_format(&q);
    unsigned n = 0;
    PairPort *port = listen_somewhere(&key, &n);
    int fd = blocking(n);

    for (const char *c = question; *c; c++) {
        g_assert_cmpint(send(fd, c, 1, 0), ==, 1);
    }
    g_autofree char *whole = all_of(fd);
    g_assert_cmpint(opens(whole, &key, &q), ==, PAIR_OK);
    close(fd);
    for (const char *const *s = (const char *const[]){
             "", "GET / HTTP/1.0\r\n", "colo-pair 2 x\n", "colo-pair 1 00\n", NULL}; *s; s++) {
        fd = blocking(n);
        g_assert_cmpint(send(fd, *s, strlen(*s), 0), ==, (ssize_t)strlen(*s));
        g_autofree char *said = all_of(fd);
        g_assert_cmpint(opens(said, &key, &q), ==, PAIR_UNSIGNED);
        close(fd);
    }
    pair_port_free(port);
}

/* One that accepts and hangs costs the time that was given, and is not nobody. */
static void test_peer_that_hangs(void)
{
    g_autoptr(GError) err = NULL;
    PairRefusal refusal;
    PairPeer peer;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);

    g_assert_cmpint(bind(fd, (struct sockaddr *)&a, sizeof(a)) | listen(fd, 1), ==, 0);
    getsockname(fd, (struct sockaddr *)&a, &len);
    int64_t start = g_get_monotonic_time();
    g_assert_cmpint(pair_peer_ask("127.0.0.1", ntohs(a.sin_port), 300, &none, &peer, &refusal,
                                  &err), ==, PAIR_SILENT);
    g_assert_cmpint(g_get_monotonic_time() - start, >=, 290 * MS);
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
    g_test_add_func("/pair/start/who-may-serve", test_who_may_serve);
    g_test_add_func("/pair/proof/each-byte", test_proof);
    g_test_add_func("/pair/proof/reflected", test_no_reflection);
    g_test_add_func("/pair/port/answers", test_port_answers);
    g_test_add_func("/pair/port/serves", test_port_serves_all);
    g_test_add_func("/pair/port/hangs", test_peer_that_hangs);
    return g_test_run();
}
