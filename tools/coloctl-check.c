/*
 * coloctl check: both hosts before they are trusted with a VM.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * One host runs "coloctl check --serve", the other "coloctl check": it looks at itself, asks
 * the peer for its findings and facts, compares the facts, connects to each of the pair's
 * ports, and measures round trip, clocks and bandwidth on the network of the pair.
 *
 * Lines of text: the client says "facts", "ping", "data N" (and N bytes) or "bye"; the answers
 * are one line each, facts as JSON. Only the configured peer's address is served, one client at
 * a time, a minute at most. A client reads what is in vm.conf about this host; nothing can be
 * changed.
 */
#include "coloctl-check.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "coloctl-net.h"
#include "coloctl-run.h"
#include "monitor/json-text.h"
#include "util/error.h"

#define SESSION_US (60 * 1000000ll)
#define LINE_MAX_BYTES (256 * 1024)
#define PINGS 20
#define DATA_BYTES (64ll * 1024 * 1024)
#define DATA_MAX (1ll << 30)
#define CHUNK 65536

/* --- Facts that must agree --- */

static void set(JsonObject *o, const char *key, const char *value)
{
    json_object_set_string_member(o, key, value ? value : "");
}

static char *processor(void)
{
    g_autofree char *text = NULL;

    g_file_get_contents("/proc/cpuinfo", &text, NULL, NULL);
    char *at = text ? strstr(text, "model name") : NULL;
    at = at ? strchr(at, ':') : NULL;
    if (!at) {
        return g_strdup("unknown");
    }
    *strchrnul(at, '\n') = 0;
    return g_strdup(g_strstrip(at + 1));
}

/* Whether two files are one, and too little of it to guess what is in them. */
static void set_print(JsonObject *o, const char *key, const char *path)
{
    g_autofree char *data = NULL, *print = NULL;
    gsize len = 0;

    if (path && g_file_get_contents(path, &data, &len, NULL)) {
        print = g_compute_hmac_for_string(G_CHECKSUM_SHA256, (const guchar *)key, strlen(key), data,
                                          len);
        print[8] = 0;
    }
    set(o, key, path ? print ? print : "unreadable" : "none");
}

static JsonObject *make_facts(const VmConf *c)
{
    JsonObject *o = json_object_new();
    g_autofree char *version = emulator_version(c), *text = NULL, *cpu = processor();
    JsonObject *disks = json_object_new();

    g_file_get_contents(c->file, &text, NULL, NULL);
    g_autofree char *sum = g_compute_checksum_for_string(G_CHECKSUM_SHA256, text ? text : "", -1);
    set(o, "name", c->name);
    set(o, "coloctl", COLO_VERSION);
    set(o, "emulator", version);
    set(o, "vm.conf", sum);
    set(o, "machine", c->machine);
    set(o, "memory", c->memory);
    set(o, "processor", cpu);
    set_print(o, "key-file", c->key_file);
    g_autofree char *ca = c->tls_dir ? g_build_filename(c->tls_dir, "ca-cert.pem", NULL) : NULL;
    set_print(o, "CA of tls-dir", ca);
    for (guint i = 0; i < c->disks->len; i++) {
        const VmDisk *d = c->disks->pdata[i];
        json_object_set_int_member(disks, d->id, image_size(d->image, d->format, NULL));
    }
    json_object_set_object_member(o, "disks", disks);
    return o;
}

/* @ports: what was found about them, before we took them ourselves; @links: of the heartbeat,
 * that are answered. */
static char *facts_line(const VmConf *c, const GPtrArray *ports, unsigned links)
{
    g_autoptr(JsonObject) o = make_facts(c);
    g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), o);
    g_autoptr(GPtrArray) list = findings_new();
    JsonArray *a = json_array_new();

    check_host(c, list);
    check_vm(c, list);
    for (guint i = 0; i < list->len + ports->len; i++) {
        const Finding *f = i < list->len ? list->pdata[i] : ports->pdata[i - list->len];
        JsonObject *e = json_object_new();
        json_object_set_int_member(e, "level", f->level);
        set(e, "what", f->what);
        set(e, "found", f->found);
        if (f->remedy) {
            set(e, "remedy", f->remedy);
        }
        json_array_add_object_element(a, e);
    }
    json_object_set_array_member(o, "findings", a);
    json_object_set_int_member(o, "links", links);
    return ctl_json(node, false);
}

/* --- Serving --- */

static bool take_data(int fd, int64_t n, gint64 end, GError **errp)
{
    g_autofree char *buf = g_malloc(CHUNK);

    while (n > 0) {
        if (!net_wait(fd, POLLIN, end)) {
            colo_error_set(errp, "data does not come");
            return false;
        }
        ssize_t got = recv(fd, buf, MIN(n, CHUNK), MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
            colo_error_set(errp, "connection closed");
            return false;
        }
        n -= MAX(got, 0);
    }
    return true;
}

static void serve_one(const VmConf *c, int fd, const GPtrArray *ports, unsigned links)
{
    gint64 end = g_get_monotonic_time() + SESSION_US;
    g_autoptr(GError) err = NULL;

    for (;;) {
        g_autoptr(GString) line = g_string_new(NULL);
        g_autofree char *answer = NULL;
        if (!net_read_line(fd, line, 1000, end, &err)) {
            return;
        }
        if (strcmp(line->str, "facts") == 0) {
            answer = facts_line(c, ports, links);
        } else if (strcmp(line->str, "ping") == 0) {
            answer = g_strdup_printf("%" PRId64, g_get_real_time());
        } else if (g_str_has_prefix(line->str, "data ")) {
            int64_t n = g_ascii_strtoll(line->str + 5, NULL, 10);
            if (n < 0 || n > DATA_MAX || !take_data(fd, n, end, &err)) {
                return;
            }
            answer = g_strdup("taken");
        } else {
            return;
        }
        g_autofree char *text = g_strconcat(answer, "\n", NULL);
        if (!net_write(fd, text, strlen(text), end, &err)) {
            return;
        }
    }
}

static bool is_peer(const VmConf *c, int fd)
{
    NetAddress a = {0};
    socklen_t len = sizeof(a);

    return getpeername(fd, &a.any, &len) == 0 && net_is(&a, vm_conf_peer(c)->addresses[0]);
}

static int serve(const VmConf *c)
{
    const char *me = vm_conf_self(c)->addresses[0];
    g_autoptr(GError) err = NULL;
    g_autoptr(GPtrArray) ports = findings_new();
    int fd = net_listen(me, vm_conf_port(c, VM_PORT_CHECK), &err);

    if (fd < 0) {
        return ctl_fail(err);
    }
    check_ports(c, ports);
    /* What is free of the pair's ports listens, so that the peer can see that it gets there. */
    unsigned links = links_serve(c);
    g_autoptr(GArray) all = vm_conf_listeners(c);
    for (guint i = 0; i < all->len; i++) {
        net_listen(me, g_array_index(all, unsigned, i), NULL);
    }
    printf("waiting for coloctl check on %s (port %u); ^C ends\n", vm_conf_peer(c)->name,
           vm_conf_port(c, VM_PORT_CHECK));
    fflush(stdout);
    signal(SIGINT, SIG_DFL);
    for (;;) {
        if (!net_wait(fd, POLLIN, g_get_monotonic_time() + SESSION_US)) {
            continue;
        }
        int conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (conn >= 0 && is_peer(c, conn)) {
            serve_one(c, conn, ports, links);
        }
        if (conn >= 0) {
            close(conn);
        }
    }
}

/* --- The peer, from here --- */

static bool ask(int fd, const char *what, GString *answer, gint64 end, GError **errp)
{
    g_autofree char *line = g_strconcat(what, "\n", NULL);

    g_string_truncate(answer, 0);
    return net_write(fd, line, strlen(line), end, errp) &&
           net_read_line(fd, answer, LINE_MAX_BYTES, end, errp);
}

static void measure_way(int fd, GPtrArray *list)
{
    gint64 end = g_get_monotonic_time() + SESSION_US / 4;
    int64_t best = INT64_MAX, offset = 0;
    g_autoptr(GString) answer = g_string_new(NULL);
    g_autoptr(GError) err = NULL;

    for (int i = 0; i < PINGS; i++) {
        gint64 before = g_get_monotonic_time(), mine = g_get_real_time();
        if (!ask(fd, "ping", answer, end, &err)) {
            finding_add(list, FINDING_FAIL, "way to the peer", "see to the network", "%s",
                        err->message);
            return;
        }
        gint64 rtt = g_get_monotonic_time() - before;
        if (rtt < best) {
            best = rtt;
            offset = g_ascii_strtoll(answer->str, NULL, 10) - mine - rtt / 2;
        }
    }
    g_autofree char *rtt = ctl_us(best), *off = ctl_us(ABS(offset));
    finding_add(list, best > 5000 ? FINDING_WARN : FINDING_OK, "round trip",
                "each first byte of an answer waits for it: a shorter way between the hosts", "%s",
                rtt);
    finding_add(list, ABS(offset) > 1000000 ? FINDING_WARN : FINDING_OK, "clocks",
                "run a time service on both hosts: the guest's clock jumps at a takeover",
                "the peer is %s %s", off, offset >= 0 ? "ahead" : "behind");
}

static void measure_bandwidth(int fd, GPtrArray *list)
{
    gint64 begin = g_get_monotonic_time(), end = begin + SESSION_US / 2;
    g_autofree char *buf = g_malloc0(CHUNK);
    g_autofree char *cmd = g_strdup_printf("data %lld\n", (long long)DATA_BYTES);
    g_autoptr(GString) answer = g_string_new(NULL);
    g_autoptr(GError) err = NULL;
    CtlProgress p = {.label = "bandwidth", .last = -1};
    bool ok = net_write(fd, cmd, strlen(cmd), end, &err);

    for (int64_t sent = 0; ok && sent < DATA_BYTES; sent += CHUNK) {
        ok = net_write(fd, buf, CHUNK, end, &err);
        if (ctl_is_terminal() && sent % (CHUNK * 32) == 0) {
            ctl_progress(&p, sent, DATA_BYTES);
        }
    }
    ctl_progress_end(&p);
    ok = ok && net_read_line(fd, answer, 100, end, &err);
    double seconds = (g_get_monotonic_time() - begin) / 1e6;
    if (!ok) {
        finding_add(list, FINDING_FAIL, "bandwidth", "see to the network", "%s", err->message);
        return;
    }
    g_autofree char *rate = ctl_bytes(DATA_BYTES / seconds);
    finding_add(list, DATA_BYTES / seconds < 50e6 ? FINDING_WARN : FINDING_OK, "bandwidth",
                "1 Gbit/s for a quiet guest, 10 for a busy one", "%s/s", rate);
}

static void check_peer_ports(const VmConf *c, GPtrArray *list)
{
    const char *peer = vm_conf_peer(c)->addresses[0];
    g_autoptr(GString) closed = g_string_new(NULL);

    g_autoptr(GArray) all = vm_conf_listeners(c);
    for (guint i = 0; i < all->len; i++) {
        g_autoptr(GError) err = NULL;
        int fd = net_dial(peer, g_array_index(all, unsigned, i),
                          g_get_monotonic_time() + 2000000, &err);
        if (fd < 0) {
            g_string_append_printf(closed, "%s%s", closed->len ? "; " : "", err->message);
        } else {
            close(fd);
        }
    }
    finding_add(list, closed->len ? FINDING_WARN : FINDING_OK, "ports of the peer",
                "open them in the firewall (a refused one may be free while the VM runs there)",
                "%s", closed->len ? closed->str : "reachable");
}

static void compare_one(JsonObject *mine, JsonObject *its, const char *key, FindingLevel level,
                        const char *remedy, GPtrArray *list)
{
    const char *a = ctl_str(mine, key, ""), *b = ctl_str(its, key, "");
    bool same = strcmp(a, b) == 0;
    g_autofree char *shown = ctl_clean(b, 200), *what = g_strdup_printf("same %s", key);

    if (strcmp(key, "vm.conf") == 0) {
        finding_add(list, same ? FINDING_OK : level, what, remedy, "%s",
                    same ? "yes" : "the files differ");
    } else {
        finding_add(list, same ? FINDING_OK : level, what, remedy, "%s%s%s", a,
                    same ? "" : " here, there ", same ? "" : shown);
    }
}

static void compare(const VmConf *c, JsonObject *its, GPtrArray *list)
{
    g_autoptr(JsonObject) mine = make_facts(c);
    JsonObject *sizes = ctl_object(mine, "disks"), *others = ctl_object(its, "disks");

    compare_one(mine, its, "name", FINDING_FAIL, "the same vm.conf on both hosts", list);
    compare_one(mine, its, "vm.conf", FINDING_WARN, "the same file on both hosts", list);
    compare_one(mine, its, "coloctl", FINDING_WARN, "the same version on both hosts", list);
    compare_one(mine, its, "emulator", FINDING_FAIL, "the same build of QEMU on both hosts", list);
    compare_one(mine, its, "machine", FINDING_FAIL, "the same [vm] machine", list);
    compare_one(mine, its, "memory", FINDING_FAIL, "the same [vm] memory", list);
    compare_one(mine, its, "processor", strcmp(c->cpu, "host") == 0 ? FINDING_FAIL : FINDING_WARN,
                "a [vm] cpu model that both have", list);
    compare_one(mine, its, "key-file", FINDING_FAIL, "copy it from one host to the other", list);
    compare_one(mine, its, "CA of tls-dir", FINDING_FAIL, "certificates of one CA on both hosts",
                list);
    for (guint i = 0; i < c->disks->len; i++) {
        const VmDisk *d = c->disks->pdata[i];
        int64_t a = ctl_int(sizes, d->id, 0), b = ctl_int(others, d->id, 0);
        g_autofree char *what = g_strdup_printf("same size of disk.%s", d->id);
        finding_add(list, a == b ? FINDING_OK : FINDING_FAIL, what,
                    "qemu-img resize, or make the one that is newer to this VM again",
                    "%" PRId64 " bytes here, %" PRId64 " there", a, b);
    }
}

static void take_findings(JsonObject *facts, const char *host, GPtrArray *list)
{
    JsonArray *a = ctl_array(facts, "findings");

    for (guint i = 0; a && i < MIN(json_array_get_length(a), 200); i++) {
        JsonNode *n = json_array_get_element(a, i);
        JsonObject *o = JSON_NODE_HOLDS_OBJECT(n) ? json_node_get_object(n) : NULL;
        g_autofree char *what = g_strdup_printf("%s: %s", host, ctl_str(o, "what", "?"));
        finding_add(list, CLAMP(ctl_int(o, "level", FINDING_FAIL), FINDING_OK, FINDING_FAIL),
                    what, ctl_str(o, "remedy", NULL), "%s", ctl_str(o, "found", "?"));
    }
}

/* No coloctl check there: what the pair port says is better than nothing. */
static void ask_pair_port(const VmConf *c, const char *why, GPtrArray *list)
{
    PeerView v;

    peer_ask(c, vm_conf_peer(c)->addresses[0], 2000, &v);
    finding_add(list, FINDING_WARN, "the other host", "run there: coloctl check --serve vm.conf, "
                "then this again", "not examined (%s); its pair port: %s%s%s%s", why,
                v.answers ? v.program : v.why, v.answers ? " " : "", v.answers ? v.version : "",
                v.answers && v.serves ? ", serves" : "");
    if (v.answers && strcmp(v.version, COLO_VERSION) != 0) {
        finding_add(list, FINDING_WARN, "same coloctl", "the same version on both hosts",
                    "%s here, %s there", COLO_VERSION, v.version);
    }
}

static void check_peer(const VmConf *c, GPtrArray *list)
{
    g_autoptr(GError) err = NULL;
    g_autoptr(GString) answer = g_string_new(NULL);
    g_autoptr(JsonNode) node = NULL;
    gint64 end = g_get_monotonic_time() + SESSION_US / 2;
    int fd = net_dial(vm_conf_peer(c)->addresses[0], vm_conf_port(c, VM_PORT_CHECK),
                      g_get_monotonic_time() + 3000000, &err);

    if (fd < 0) {
        ask_pair_port(c, err->message, list);
        return;
    }
    bool ok = ask(fd, "facts", answer, end, &err);
    JsonSpan span = {answer->str, answer->len};
    if (ok && json_text_parse(span, &node, NULL) && JSON_NODE_HOLDS_OBJECT(node)) {
        take_findings(json_node_get_object(node), vm_conf_peer(c)->name, list);
        compare(c, json_node_get_object(node), list);
        measure_way(fd, list);
        measure_bandwidth(fd, list);
        check_peer_ports(c, list);
        check_links(c, ctl_int(json_node_get_object(node), "links", 0), list);
    } else {
        finding_add(list, FINDING_FAIL, "the other host", "the same version of coloctl on both",
                    "%s", ok ? "what answers there is no coloctl check" : err->message);
    }
    close(fd);
}

/* --- The command --- */

static int show(GPtrArray *list)
{
    static const struct {
        const char *word;
        CtlColour colour;
    } levels[] = {{"ok  ", CTL_GREEN}, {"warn", CTL_YELLOW}, {"FAIL", CTL_RED}};
    unsigned count[3] = {0};

    for (guint i = 0; i < list->len; i++) {
        const Finding *f = list->pdata[i];
        g_autofree char *word = ctl_paint(levels[f->level].colour, levels[f->level].word);
        g_autofree char *what = ctl_clean(f->what, 100), *found = ctl_clean(f->found, 600);
        count[f->level]++;
        printf("%s  %s: %s\n", word, what, found);
        if (f->remedy) {
            g_autofree char *remedy = ctl_clean(f->remedy, 400);
            printf("      remedy: %s\n", remedy);
        }
    }
    printf("%u in order, %u to think about, %u to mend\n", count[FINDING_OK],
           count[FINDING_WARN], count[FINDING_FAIL]);
    return count[FINDING_FAIL] ? CTL_FAILED : CTL_OK;
}

int cmd_check(int argc, char **argv)
{
    gboolean is_server = FALSE;
    const GOptionEntry entries[] = {
        {"serve", 0, 0, G_OPTION_ARG_NONE, &is_server,
         "answer the other host's coloctl check until ^C", NULL}, {NULL}};
    g_auto(CtlTarget) t = {0};
    g_autoptr(GPtrArray) list = findings_new();
    int code = ctl_target_parse(&t, argc, argv, "Examine this host, and with coloctl check "
                                "--serve on the other one both of them. Exit code 1: something "
                                "has to be mended.", entries, true);

    if (code != CTL_OK) {
        return code;
    }
    if (is_server) {
        return serve(t.conf);
    }
    check_host(t.conf, list);
    check_vm(t.conf, list);
    check_ports(t.conf, list);
    check_peer(t.conf, list);
    return show(list);
}
