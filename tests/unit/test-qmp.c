/*
 * The monitor's core against a real emulator.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Sources: test-qmp.c. Dependencies: monitor_core (and with it qapi, util).
 * Needs qemu-system-x86_64 (or $QEMU); skipped without it.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "freeze.h"
#include "monitor/json-text.h"
#include "monitor/monitor.h"
#include "util/error.h"
#include "util/trace.h"

/* --- Commands of the test --- */

static const QapiType type_str = {.kind = QAPI_STR, .name = "str"};
static const QapiType type_uint = {.kind = QAPI_UINT, .name = "uint32", .bits = 32};
static const QapiMember no_members[] = {{NULL, NULL, false}};
static const QapiMember echo_members[] = {
    {"text", &type_str, false}, {"n", &type_uint, true}, {NULL, NULL, false}};
static const QapiType no_args = {.kind = QAPI_STRUCT, .members = no_members};
static const QapiType echo_args = {.kind = QAPI_STRUCT, .members = echo_members};
static const QapiType open_args = {
    .kind = QAPI_STRUCT, .members = no_members, .open = true};

static QmpRequest *held;

static QmpResult cmd_echo(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    *ret = json_node_init_object(json_node_alloc(), args);
    return QMP_DONE;
}

static QmpResult cmd_fail(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    g_set_error(errp, COLO_ERROR, COLO_ERROR_DEVICE_NOT_FOUND, "no \"such\"\n\xff thing");
    return QMP_FAILED;
}

static QmpResult cmd_pass(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    return QMP_PASS;
}

static QmpResult cmd_hold(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    held = req;
    return QMP_PENDING;
}

static QmpResult cmd_let_go(QmpRequest *req, JsonObject *args, JsonNode **ret,
                            GError **errp)
{
    if (held) {
        qmp_request_finish(g_steal_pointer(&held), NULL, NULL);
    }
    return QMP_DONE;
}

static gpointer slow_thread(gpointer opaque)
{
    g_usleep(20000);
    JsonObject *data = json_object_new();
    json_object_set_string_member(data, "mode", "primary");
    monitor_event("COLO_EXIT", data);
    qmp_request_finish(opaque, json_node_init_int(json_node_alloc(), 42), NULL);
    return NULL;
}

static QmpResult cmd_slow(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    g_thread_unref(g_thread_new("slow", slow_thread, req));
    return QMP_PENDING;
}

static QmpResult cmd_big(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)
{
    g_autofree char *text = g_strnfill(4 * 1024 * 1024, 'x');
    *ret = json_node_init_string(json_node_alloc(), text);
    return QMP_DONE;
}

static const QmpCommandInfo commands[] = {
    {"x-echo", cmd_echo, &echo_args, false}, {"x-fail", cmd_fail, &no_args, false},
    {"query-name", cmd_pass, &no_args, false}, {"x-hold", cmd_hold, &no_args, false},
    {"x-let-go", cmd_let_go, &no_args, true}, {"x-slow", cmd_slow, &no_args, false},
    {"x-big", cmd_big, &open_args, false}, {NULL, NULL, NULL, false}};

/* --- The emulator and a client --- */

typedef struct Fixture {
    pid_t pid;
    char *dir, *path;
    char *spec;
    bool gone;
} Fixture;

typedef struct Client {
    int fd;
    GString *in;
    bool eof;
} Client;

static const char *emulator(void)
{
    const char *qemu = g_getenv("QEMU");

    return qemu ? qemu : "qemu-system-x86_64";
}

static pid_t spawn_emulator(int fd)
{
    g_autofree char *chardev = g_strdup_printf("socket,id=q,fd=%d", fd);
    pid_t pid = fork();

    if (pid == 0) {
        fcntl(fd, F_SETFD, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* also when an assertion ends us */
        execlp(emulator(), emulator(), "-M", "none", "-display", "none", "-nodefaults",
               "-chardev", chardev, "-mon", "chardev=q,mode=control", NULL);
        _exit(127);
    }
    return pid;
}

static void child_gone(void *opaque)
{
    ((Fixture *)opaque)->gone = true;
}

static void setup(Fixture *f, gconstpointer data)
{
    int sv[2];
    g_autoptr(GError) err = NULL;

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), ==, 0);
    f->pid = spawn_emulator(sv[1]);
    close(sv[1]);
    monitor_set_commands(commands);
    monitor_set_child_gone(child_gone, f);
    g_assert_true(monitor_init(sv[0], &err));
    f->dir = g_dir_make_tmp("test-qmp-XXXXXX", NULL);
    f->path = g_build_filename(f->dir, "qmp", NULL);
    f->spec = g_strdup_printf("unix:%s,server=on,wait=off", f->path);
    g_assert_true(monitor_add_qmp(f->spec, data != NULL, &err));
}

static void teardown(Fixture *f, gconstpointer data)
{
    monitor_shutdown();
    while (g_main_context_iteration(NULL, FALSE)) {
    }
    g_assert_false(g_file_test(f->path, G_FILE_TEST_EXISTS));
    kill(f->pid, SIGKILL);
    waitpid(f->pid, NULL, 0);
    g_rmdir(f->dir);
    g_free(f->dir);
    g_free(f->path);
    g_free(f->spec);
    monitor_set_event_filter(NULL, NULL);
    held = NULL;
}

static void client_connect(Client *c, const char *path)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};

    g_strlcpy(sun.sun_path, path, sizeof(sun.sun_path));
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    c->in = g_string_new(NULL);
    c->eof = false;
    g_assert_cmpint(connect(c->fd, (struct sockaddr *)&sun, sizeof(sun)), ==, 0);
    g_unix_set_fd_nonblocking(c->fd, TRUE, NULL);
}

static void client_end(Client *c)
{
    close(c->fd);
    g_string_free(c->in, TRUE);
}

static gboolean tick(gpointer opaque)
{
    return G_SOURCE_CONTINUE;
}

static void client_fill(Client *c)
{
    char buf[65536];
    ssize_t n;

    while ((n = read(c->fd, buf, sizeof(buf))) > 0) {
        g_string_append_len(c->in, buf, n);
    }
    c->eof |= n == 0 || (n < 0 && errno == ECONNRESET);
}

static void send_bytes(Client *c, const char *data, size_t len)
{
    while (len) {
        ssize_t n = send(c->fd, data, len, MSG_NOSIGNAL);
        if (n < 0) {
            g_assert_cmpint(errno, ==, EAGAIN);
            client_fill(c);
            g_main_context_iteration(NULL, FALSE);
            continue;
        }
        data += n;
        len -= n;
    }
}

static void client_say(Client *c, const char *text)
{
    send_bytes(c, text, strlen(text));
}

/* The next line, running the main loop until it is there; NULL at the end of file. */
static char *client_line(Client *c)
{
    guint tag = g_timeout_add(5, tick, NULL);
    gint64 deadline = g_get_monotonic_time() + 20 * G_USEC_PER_SEC;
    char *nl;

    while (!(nl = strstr(c->in->str, "\r\n")) && !c->eof) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        client_fill(c);
        if (!strstr(c->in->str, "\r\n")) {
            g_main_context_iteration(NULL, TRUE);
        }
    }
    g_source_remove(tag);
    if (!nl) {
        return NULL;
    }
    char *line = g_strndup(c->in->str, nl - c->in->str);
    g_string_erase(c->in, 0, nl + 2 - c->in->str);
    return line;
}

static void expect(Client *c, const char *line)
{
    g_autofree char *got = client_line(c);

    g_assert_cmpstr(got, ==, line);
}

static void expect_match(Client *c, const char *pattern)
{
    g_autofree char *got = client_line(c);

    if (!got || !g_pattern_match_simple(pattern, got)) {
        g_test_message("got %s, expected %s", got, pattern);
        g_test_fail();
    }
}

static void client_ready(Client *c, const char *path)
{
    client_connect(c, path);
    expect_match(c, "{\"QMP\": {\"version\": {\"qemu\": {*\"capabilities\": *");
    client_say(c, "{\"execute\":\"qmp_capabilities\"}");
    expect(c, "{\"return\": {}}");
}

/* --- Tests --- */

static void test_negotiation(Fixture *f, gconstpointer data)
{
    Client c;

    client_connect(&c, f->path);
    expect_match(&c, "{\"QMP\": *");
    client_say(&c, "{\"execute\":\"query-status\",\"id\":1}");
    expect(&c, "{\"id\": 1, \"error\": {\"class\": \"CommandNotFound\", \"desc\": "
               "\"Expecting capabilities negotiation with 'qmp_capabilities'\"}}");
    client_say(&c, "{\"exec-oob\":\"qmp_capabilities\",\"id\":3}");
    expect(&c, "{\"id\": 3, \"error\": {\"class\": \"GenericError\", \"desc\": "
               "\"QMP input member 'exec-oob' is unexpected\"}}");
    client_say(&c, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"x\"]}}");
    expect_match(&c, "{\"error\": *does not accept value 'x'\"}}");
    client_say(&c, "{\"execute\":\"qmp_capabilities\",\"arguments\":"
                   "{\"enable\":[\"oob\"]},\"id\":{\"a\":[1,'b']}}");
    expect(&c, "{\"return\": {}, \"id\": {\"a\": [1, \"b\"]}}");
    client_say(&c, "{\"execute\":\"qmp_capabilities\"}");
    expect(&c, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"Capabilities "
               "negotiation is already complete, command ignored\"}}");
    client_end(&c);
}

static void test_pass_through(Fixture *f, gconstpointer data)
{
    static const struct {
        const char *say, *answer;
    } cases[] = {
        {"{\"execute\":\"query-name\"}", "{\"return\": {}}"},
        {"{\"execute\":\"query-status\",\"id\":12345678901234567890}",
         "{\"return\": {*\"status\": \"running\"*}, \"id\": 12345678901234567890}"},
        {"{\"execute\":\"nope\",\"id\":[1,\"x\"]}",
         "{\"id\": [1, \"x\"], \"error\": {\"class\": \"CommandNotFound\", \"desc\": "
         "\"The command nope has not been found\"}}"},
        {"{'execute':'query-status','arguments':{'a':1},'id':'it\\'s \"q\"'}",
         "{\"id\": \"it's \\\"q\\\"\", \"error\": {\"class\": \"GenericError\", \"desc\": "
         "\"Parameter 'a' is unexpected\"}}"},
        {"{\"foo\":\"nope\",\"id\":1}",
         "{\"id\": 1, \"error\": *\"QMP input member 'foo' is unexpected\"}}"},
        {"{\"execute\":\"a\",\"exec-oob\":\"b\",\"id\":1}",
         "{\"id\": 1, \"error\": *\"QMP input member 'execute' clashes with 'exec-oob'\"}}"},
        {"{\"execute\":5,\"id\":1}", "*\"QMP input member 'execute' must be a string\"}}"},
        {"{\"execute\":\"a\",\"arguments\":[]}",
         "*\"QMP input member 'arguments' must be an object\"}}"},
        {"{\"id\":1}", "*\"QMP input lacks member 'execute'\"}}"},
        {"{\"execute\":\"qom-list-types\",\"arguments\":{\"implements\":\"irq\"}}",
         "{\"return\": [{\"name\": \"irq\"*"},
        {"{\"execute\":\"object-add\",\"arguments\":{\"qom-type\":\"iothread\",\"id\":"
         "\"i\",\"poll-max-ns\":9223372036854775807}}",
         "{\"return\": {}}"},
        /* The emulator itself must see all 19 digits. */
        {"{\"execute\":\"qom-get\",\"arguments\":{\"path\":\"/objects/i\",\"property\":"
         "\"poll-max-ns\"}}",
         "{\"return\": 9223372036854775807}"},
    };
    Client c;

    client_ready(&c, f->path);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        client_say(&c, cases[i].say);
        expect_match(&c, cases[i].answer);
    }
    client_end(&c);
}

static void test_ours(Fixture *f, gconstpointer data)
{
    Client c;

    client_ready(&c, f->path);
    client_say(&c, "{\"execute\":\"x-echo\",\"arguments\":{\"text\":\"a\\u0041\\n\"}}");
    expect(&c, "{\"return\": {\"text\": \"aA\\n\"}}");
    client_say(&c, "{\"execute\":\"x-echo\",\"id\":1}");
    expect(&c, "{\"id\": 1, \"error\": {\"class\": \"GenericError\", \"desc\": "
               "\"Parameter 'text' is missing\"}}");
    client_say(&c, "{\"execute\":\"x-echo\",\"arguments\":{\"text\":1}}");
    expect_match(&c, "*\"Invalid parameter type for 'text', expected: string\"}}");
    client_say(&c, "{\"execute\":\"x-echo\",\"arguments\":{\"text\":\"\",\"b\":1}}");
    expect_match(&c, "*\"Parameter 'b' is unexpected\"}}");
    client_say(&c, "{\"execute\":\"x-fail\",\"id\":null}");
    expect_match(&c, "{\"id\": null, \"error\": {\"class\": \"DeviceNotFound\", \"desc\": "
                     "\"no \\\"such\\\"\\u000a* thing\"}}");
    client_say(&c, "{\"execute\":\"x-slow\",\"id\":1}{\"execute\":\"query-name\",\"id\":2}");
    expect_match(&c, "{\"timestamp\": {\"seconds\": *, \"microseconds\": *}, \"event\": "
                     "\"COLO_EXIT\", \"data\": {\"mode\": \"primary\"}}");
    expect(&c, "{\"return\": 42, \"id\": 1}");
    expect(&c, "{\"return\": {}, \"id\": 2}");
    client_say(&c, "{\"execute\":\"query-commands\"}");
    expect_match(&c, "{\"return\": [*{\"name\": \"query-status\"}*{\"name\": "
                     "\"x-echo\"}, *\"x-big\"}]}");
    client_end(&c);
}

static void test_oob(Fixture *f, gconstpointer data)
{
    Client c;

    client_connect(&c, f->path);
    expect_match(&c, "{\"QMP\": *");
    client_say(&c, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}");
    expect(&c, "{\"return\": {}}");
    client_say(&c, "{\"exec-oob\":\"query-status\",\"id\":7}");
    expect_match(&c, "{\"id\": 7, *\"The command query-status does not support OOB\"}}");
    client_say(&c, "{\"exec-oob\":\"x-fail\",\"id\":7}");
    expect_match(&c, "{\"id\": 7, *\"The command x-fail does not support OOB\"}}");
    /* A held command keeps later ones back, but not those out of band. */
    client_say(&c, "{\"execute\":\"x-hold\",\"id\":1}{\"execute\":\"query-name\",\"id\":2}"
                   "{\"exec-oob\":\"query-yank\",\"id\":3}"
                   "{\"exec-oob\":\"x-let-go\",\"id\":4}");
    g_autofree char *a = client_line(&c), *b = client_line(&c), *d = client_line(&c);
    g_autofree char *e = client_line(&c);
    g_autofree char *all = g_strjoin(" ", a, b, d, e, NULL);
    g_assert_nonnull(strstr(all, "\"id\": 3"));
    g_assert_nonnull(strstr(all, "{\"return\": {}, \"id\": 4}"));
    g_assert_true(strstr(all, "\"id\": 1}") < strstr(all, "\"id\": 2}"));
    client_end(&c);
}

static void test_pipeline(Fixture *f, gconstpointer data)
{
    g_autoptr(GString) all = g_string_new(NULL);
    Client c;

    client_ready(&c, f->path);
    for (int i = 0; i < 1000; i++) {
        g_string_append_printf(all, "{\"execute\":\"%s\",%s\"id\":%d}%s",
                               i % 2 ? "query-name" : "x-echo",
                               i % 2 ? "" : "\"arguments\":{\"text\":\"t\"},", i,
                               i % 3 ? "" : "\n");
    }
    client_say(&c, all->str);
    for (int i = 0; i < 1000; i++) {
        g_autofree char *want = g_strdup_printf("{\"return\": %s, \"id\": %d}",
                                                i % 2 ? "{}" : "{\"text\": \"t\"}", i);
        expect(&c, want);
    }
    client_end(&c);
}

static void test_garbage(Fixture *f, gconstpointer data)
{
    static const char *const bad[] = {
        "}", "]", "foo\n", "[1]", "5\n", "\"x\"", "{]", "\xff", "{\"a\":1,\"a\":2}",
        "{\"execute\": \"query-status\n", "{\"execute\": \"\\x\"}", "{\"execute\": \"a\\ud800\"}",
        "{\"execute\": \"\xc3(\"}", "{\"a\":01}", "{\"a\":1,}", "{\"a\" 1}", "{,}", "[1 2]",
        "{\"a\":\"\xef\xbf\xbf\"}", "{\"a\":\"\\u0000\"}", "{\"execute\": %s}", "{\"a\": nul}",
        "{\"execute\":\"x\",\"arguments\":{\"k\":1.}}", "{\"execute\": \"half\xff", "\x01\n"};
    Client c;

    client_ready(&c, f->path);
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        client_say(&c, bad[i]);
        client_say(&c, "{\"execute\":\"query-name\"}");
        expect_match(&c, "{\"error\": {\"class\": \"GenericError\", \"desc\": *");
        expect(&c, "{\"return\": {}}");
    }
    /* Random bytes: whatever they are, the 0xff puts things right. */
    GRand *rand = g_rand_new_with_seed(7);
    for (int round = 0; round < 200; round++) {
        char junk[64];
        for (size_t i = 0; i < sizeof(junk); i++) {
            static const char likely[] = "{}[]\"',:\\ \n1e-";
            junk[i] = g_rand_int(rand);
            if (g_rand_boolean(rand)) {
                junk[i] = likely[g_rand_int_range(rand, 0, sizeof(likely) - 1)];
            }
        }
        send_bytes(&c, junk, sizeof(junk));
        client_say(&c, "\xff{\"execute\":\"query-name\",\"id\":\"sync\"}");
        g_autofree char *line = NULL;
        do {
            g_free(line);
            line = client_line(&c);
            g_assert_nonnull(line);
        } while (g_str_has_prefix(line, "{\"error\""));
        g_assert_cmpstr(line, ==, "{\"return\": {}, \"id\": \"sync\"}");
    }
    g_rand_free(rand);
    client_end(&c);
}

static void test_pieces(Fixture *f, gconstpointer data)
{
    static const char text[] = "{ \"execute\" : \"x-echo\",\n\"arguments\":\t{\"text\": "
                               "\"{[\\\"'\\\\\"} , \"id\": \"a}b\" }";
    Client c;

    client_ready(&c, f->path);
    for (size_t i = 0; i < strlen(text); i++) {
        send_bytes(&c, text + i, 1);
        while (g_main_context_iteration(NULL, FALSE)) {
        }
    }
    expect(&c, "{\"return\": {\"text\": \"{[\\\"'\\\\\"}, \"id\": \"a}b\"}");
    client_end(&c);
}

static void test_limits(Fixture *f, gconstpointer data)
{
    g_autofree char *deep = g_strnfill(100000, '[');
    g_autofree char *ok_open = g_strnfill(1022, '['), *ok_close = g_strnfill(1022, ']');
    g_autofree char *mega = g_strnfill(1024 * 1024, 'x');
    g_autoptr(GString) many = g_string_new("{\"execute\":\"query-name\",\"arguments\":{\"a\":[");
    Client c;

    client_ready(&c, f->path);
    client_say(&c, deep);
    client_say(&c, "\n{\"execute\":\"query-name\"}");
    expect_match(&c, "*\"JSON nesting depth limit exceeded\"}}");
    expect(&c, "{\"return\": {}}");
    /* As deep as allowed, to the emulator and back. */
    client_say(&c, "{\"execute\":\"query-status\",\"arguments\":{\"a\":");
    client_say(&c, ok_open);
    client_say(&c, ok_close);
    client_say(&c, "},\"id\":1}");
    expect_match(&c, "{\"id\": 1, *\"Parameter 'a' is unexpected\"}}");
    for (int i = 0; i < 1100000; i++) {
        g_string_append(many, "1,");
    }
    g_string_append(many, "1]}}");
    client_say(&c, many->str);
    expect_match(&c, "*\"JSON token count limit exceeded\"}}");
    client_say(&c, "{\"execute\":\"");
    for (int i = 0; i < 65; i++) {
        client_say(&c, mega);
    }
    client_say(&c, "\"}\n{\"execute\":\"query-name\",\"id\":1}");
    expect_match(&c, "*\"JSON token size limit exceeded\"}}");
    expect(&c, "{\"return\": {}, \"id\": 1}");
    client_end(&c);
}

static void test_disconnect(Fixture *f, gconstpointer data)
{
    Client a, b;

    /* In the middle of a held command, of a passed one, of half a line. */
    client_ready(&a, f->path);
    client_say(&a, "{\"execute\":\"x-hold\"}");
    while (!held) {
        g_main_context_iteration(NULL, TRUE);
    }
    client_connect(&b, f->path); /* waits: one client at a time */
    while (g_main_context_iteration(NULL, FALSE)) {
    }
    client_fill(&b);
    g_assert_cmpint(b.in->len, ==, 0);
    client_end(&a);
    expect_match(&b, "{\"QMP\": *");
    qmp_request_finish(g_steal_pointer(&held), NULL, NULL); /* nobody's any more */
    client_say(&b, "{\"execute\":\"qmp_capabilities\"}{\"execute\":\"query-qmp-schema\"}");
    expect(&b, "{\"return\": {}}");
    client_end(&b);
    for (int i = 0; i < 20; i++) {
        client_ready(&a, f->path);
        client_say(&a, "{\"execute\":\"query-commands\"}{\"execute\":\"query-st");
        client_end(&a);
    }
    client_ready(&a, f->path);
    /* The end of input alone: what was asked is still answered. */
    client_say(&a, "{\"execute\":\"x-slow\",\"id\":1}{\"execute\":\"query-name\",\"id\":2}");
    shutdown(a.fd, SHUT_WR);
    expect_match(&a, "*COLO_EXIT*");
    expect(&a, "{\"return\": 42, \"id\": 1}");
    expect(&a, "{\"return\": {}, \"id\": 2}");
    g_assert_null(client_line(&a));
    client_end(&a);
}

static void test_two_clients(Fixture *f, gconstpointer data)
{
    g_autofree char *path = g_strconcat(f->path, "2", NULL);
    g_autofree char *spec = g_strdup_printf("socket,id=q2,path=%s,server,nowait", path);
    g_autoptr(GError) err = NULL;
    Client a, b;

    g_assert_true(monitor_add_qmp(spec, false, &err));
    client_ready(&a, f->path);
    client_ready(&b, path);
    client_say(&a, "{\"execute\":\"x-hold\",\"id\":\"same\"}");
    for (int i = 0; i < 50; i++) {
        client_say(&b, "{\"execute\":\"query-name\",\"id\":\"same\"}");
        expect(&b, "{\"return\": {}, \"id\": \"same\"}");
    }
    client_say(&b, "{\"execute\":\"x-let-go\"}");
    expect(&a, "{\"return\": {}, \"id\": \"same\"}");
    expect(&b, "{\"return\": {}}");
    /* An event of the emulator reaches both, before the answer. */
    client_say(&a, "{\"execute\":\"system_reset\"}");
    expect_match(&a, "*\"event\": \"RESET\"*");
    expect(&a, "{\"return\": {}}");
    expect_match(&b, "*\"event\": \"RESET\"*");
    client_end(&a);
    client_end(&b);
}

static bool hide_reset(const char *name, JsonObject *data, void *opaque)
{
    ++*(int *)opaque;
    return strcmp(name, "RESET") != 0;
}

static void create_job(Fixture *f, Client *c, const char *id)
{
    g_autofree char *text = g_strdup_printf(
        "{\"execute\":\"blockdev-create\",\"arguments\":{\"job-id\":\"%s\",\"options\":"
        "{\"driver\":\"file\",\"filename\":\"%s/%s\",\"size\":512}}}",
        id, f->dir, id);
    g_autofree char *file = g_build_filename(f->dir, id, NULL);

    client_say(c, text);
    for (int i = 0; i < 2000 && !g_file_test(file, G_FILE_TEST_EXISTS); i++) {
        g_main_context_iteration(NULL, FALSE);
        g_usleep(1000);
    }
    g_assert_cmpint(g_unlink(file), ==, 0);
}

static void test_events(Fixture *f, gconstpointer data)
{
    int seen = 0;
    Client c;

    client_ready(&c, f->path);
    client_say(&c, "{\"execute\":\"stop\"}");
    expect_match(&c, "*\"event\": \"STOP\"}");
    expect(&c, "{\"return\": {}}");
    monitor_set_event_filter(hide_reset, &seen);
    client_say(&c, "{\"execute\":\"system_reset\"}");
    expect(&c, "{\"return\": {}}");
    g_assert_cmpint(seen, ==, 1);
    /* Jobs of our own are hidden, those of users are not. */
    create_job(f, &c, "qemu-colo-j");
    create_job(f, &c, "user-j");
    g_autofree char *line = NULL;
    do {
        g_free(line);
        line = client_line(&c);
        g_assert_null(strstr(line, "qemu-colo-j"));
    } while (!g_pattern_match_simple("*JOB_STATUS_CHANGE*concluded*user-j*", line));
    client_end(&c);
}

static void test_no_reader(Fixture *f, gconstpointer data)
{
    g_autofree char *junk = g_strnfill(100000, 'e');
    Client c, d;

    client_ready(&c, f->path);
    /* Answers: the next command waits for room, so it is never closed for these. */
    for (int i = 0; i < 20; i++) {
        client_say(&c, "{\"execute\":\"x-big\"}");
    }
    for (int i = 0; i < 100; i++) {
        g_main_context_iteration(NULL, FALSE);
    }
    for (int i = 0; i < 20; i++) {
        expect_match(&c, "{\"return\": \"xxx*");
    }
    /* Events cannot wait: over the bound it is closed. */
    for (int i = 0; i < 400; i++) {
        JsonObject *o = json_object_new();
        json_object_set_string_member(o, "junk", junk);
        monitor_event("JUNK", o);
    }
    client_connect(&d, f->path);
    expect_match(&d, "{\"QMP\": *");
    client_end(&c);
    client_end(&d);
}

static void test_send_fd(Fixture *f, gconstpointer data)
{
    int done = 0;
    Client c;
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } u = {0};
    char text[] = "{\"execute\":\"getfd\",\"arguments\":{\"fdname\":\"user\"},\"id\":1}";
    struct iovec iov = {text, strlen(text)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf,
                         .msg_controllen = sizeof(u.buf)};
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    client_ready(&c, f->path);
    for (int i = 0; i < 5; i++) {
        g_autofree char *name = g_strdup_printf("f%d", i);
        monitor_child_send_fd(fd, name, NULL, &done);
    }
    /* The names are known: five closefd succeed, a sixth fails. */
    for (int i = 0; i < 6; i++) {
        g_autofree char *say = g_strdup_printf(
            "{\"execute\":\"closefd\",\"arguments\":{\"fdname\":\"f%d\"}}", i);
        client_say(&c, say);
        expect_match(&c, i < 5 ? "{\"return\": {}}" : "{\"error\": *");
    }
    struct cmsghdr *cm = CMSG_FIRSTHDR(&msg);
    cm->cmsg_level = SOL_SOCKET;
    cm->cmsg_type = SCM_RIGHTS;
    cm->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cm), &fd, sizeof(int));
    g_assert_cmpint(sendmsg(c.fd, &msg, 0), ==, (ssize_t)strlen(text));
    expect(&c, "{\"return\": {}, \"id\": 1}");
    client_say(&c, text); /* and without one */
    expect_match(&c, "{\"id\": 1, \"error\": *");
    close(fd);
    client_end(&c);
}

static void count_answer(JsonNode *ret, const GError *err, void *opaque)
{
    g_assert_true(!ret != !err);
    ++*(int *)opaque;
}

static gpointer execute_thread(gpointer opaque)
{
    for (int i = 0; i < 100; i++) {
        monitor_child_execute("query-status", NULL, count_answer, opaque);
    }
    return NULL;
}

static void test_own_calls(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) err = NULL;
    int answers = 0;

    g_autoptr(JsonNode) ret =
        monitor_child_execute_sync("query-status", NULL, 5000, &err);
    g_assert_no_error(err);
    g_assert_true(json_object_get_boolean_member(json_node_get_object(ret), "running"));
    g_assert_null(monitor_child_execute_sync("nope", NULL, 5000, &err));
    g_assert_error(err, COLO_ERROR, COLO_ERROR_COMMAND_NOT_FOUND);
    g_clear_error(&err);
    GThread *t = g_thread_new("execute", execute_thread, &answers);
    while (answers < 100) {
        g_main_context_iteration(NULL, TRUE);
    }
    g_thread_join(t);
    /* A stopped emulator does not answer; a late answer harms nobody. */
    freeze(f->pid);
    g_assert_null(monitor_child_execute_sync("query-status", NULL, 50, &err));
    g_assert_error(err, COLO_ERROR, COLO_ERROR_GENERIC);
    kill(f->pid, SIGCONT);
    g_autoptr(JsonNode) again =
        monitor_child_execute_sync("query-status", NULL, 5000, NULL);
    g_assert_nonnull(again);
}

static void test_child_death(Fixture *f, gconstpointer data)
{
    int answers = 0;
    Client c;

    client_ready(&c, f->path);
    freeze(f->pid);
    client_say(&c, "{\"execute\":\"query-status\",\"id\":1}{\"execute\":\"x-echo\","
                   "\"arguments\":{\"text\":\"\"},\"id\":2}{\"execute\":\"query-status\",\"id\":3}");
    for (int i = 0; i < 20; i++) {
        g_main_context_iteration(NULL, FALSE);
    }
    monitor_child_execute("query-status", NULL, count_answer, &answers);
    kill(f->pid, SIGKILL);
    expect_match(&c, "{\"id\": 1, \"error\": *\"The emulator is gone\"}}");
    expect(&c, "{\"return\": {\"text\": \"\"}, \"id\": 2}");
    expect_match(&c, "{\"id\": 3, \"error\": *\"The emulator is gone\"}}");
    g_assert_cmpint(answers, ==, 1);
    g_assert_true(f->gone);
    client_end(&c);
}

static void test_pretty(Fixture *f, gconstpointer data)
{
    Client c;

    client_connect(&c, f->path);
    expect_match(&c, "{\n    \"QMP\": {\n        \"version\": {*");
    client_say(&c, "{\"execute\":\"qmp_capabilities\"}");
    expect(&c, "{\n    \"return\": {}\n}");
    client_say(&c, "{\"execute\":\"x-echo\",\"arguments\":{\"text\":\"a, b\",\"n\":1}}");
    expect(&c, "{\n    \"return\": {\n        \"text\": \"a, b\",\n        \"n\": 1\n    }\n}");
    client_end(&c);
}

static void test_specs(Fixture *f, gconstpointer data)
{
    static const struct {
        const char *spec, *why;
    } bad[] = {
        {"pty", "*pty*not supported*"},
        {"unix:,server=on,wait=off", "*empty*"},
        {"unix:/nonexistent/x,server=on,wait=off", "*'/nonexistent/x'*No such file*"},
        {"unix:/nonexistent/x", "*connect*'/nonexistent/x'*"},
        {"unix:/tmp/x,server=on,wait=off,frob=1", "*frob*"},
        {"unix:/tmp/x,server=maybe", "*server*maybe*"},
        {"unix:/tmp/x,wait=on", "*wait*server=on*"},
        {"tcp:127.0.0.1", "*tcp:HOST:PORT*"},
        {"tcp:127.0.0.1:1,server=on,wait=off,websocket=on", "*websocket*"},
        {"socket,id=x,server=on", "*path*"},
        {"socket,id=x,fd=9999", "*9999*"},
    };
    g_autoptr(GError) err = NULL;

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_assert_false(monitor_add_qmp(bad[i].spec, false, &err));
        g_assert_nonnull(err);
        if (!g_pattern_match_simple(bad[i].why, err->message)) {
            g_test_message("%s: %s", bad[i].spec, err->message);
            g_test_fail();
        }
        g_clear_error(&err);
    }
    /* A port of TCP: first free, then taken. */
    g_assert_true(monitor_add_qmp("tcp:127.0.0.1:47113,server=on,wait=off", false, &err));
    g_assert_false(monitor_add_qmp("tcp:127.0.0.1:47113,server=on,wait=off", false, &err));
    g_assert_nonnull(strstr(err->message, "47113"));
    g_clear_error(&err);
    /* A listening descriptor, as libvirt gives it; and a plain file is not replaced. */
    g_autofree char *file = g_strconcat(f->path, ".file", NULL);
    g_assert_true(g_file_set_contents(file, "x", 1, NULL));
    g_autofree char *spec = g_strdup_printf("unix:%s,server=on,wait=off", file);
    g_assert_false(monitor_add_qmp(spec, false, &err));
    g_assert_true(g_file_test(file, G_FILE_TEST_IS_REGULAR));
    g_unlink(file);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (g_test_verbose()) {
        colo_trace_enable("monitor_*");
    }
    g_autofree char *found = g_find_program_in_path(emulator());
    if (!found) {
        g_print("1..0 # SKIP no %s\n", emulator());
        return 0;
    }
#define ADD(name, data, fn) g_test_add("/qmp/" name, Fixture, data, setup, fn, teardown)
    ADD("negotiation", NULL, test_negotiation);
    ADD("pass-through", NULL, test_pass_through);
    ADD("ours", NULL, test_ours);
    ADD("oob", NULL, test_oob);
    ADD("pipeline", NULL, test_pipeline);
    ADD("garbage", NULL, test_garbage);
    ADD("pieces", NULL, test_pieces);
    ADD("limits", NULL, test_limits);
    ADD("disconnect", NULL, test_disconnect);
    ADD("two-clients", NULL, test_two_clients);
    ADD("events", NULL, test_events);
    ADD("no-reader", NULL, test_no_reader);
    ADD("send-fd", NULL, test_send_fd);
    ADD("own-calls", NULL, test_own_calls);
    ADD("child-death", NULL, test_child_death);
    ADD("pretty", "pretty", test_pretty);
    ADD("specs", NULL, test_specs);
    return g_test_run();
}
