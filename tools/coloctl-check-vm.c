/*
 * coloctl check: what the VM needs of this host: images, devices, ports, secrets, arbiter.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <net/if.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "coloctl-check.h"
#include "coloctl-net.h"
#include "coloctl-run.h"
#include "util/key-file.h"
#include "util/tls.h"

#define WITNESS_MS 2000

static void check_disk(const VmDisk *d, GPtrArray *list)
{
    g_autofree char *what = g_strdup_printf("disk.%s", d->id);
    g_autofree char *mark = g_strdup_printf("%s.colo", d->image);
    g_autoptr(GError) err = NULL;

    if (access(d->image, R_OK | W_OK) != 0) {
        finding_add(list, FINDING_FAIL, what, "make it with qemu-img create, of the size that it "
                    "has on the other host, for the user that runs coloctl", "%s: %s", d->image,
                    g_strerror(errno));
        return;
    }
    uint64_t size = image_size(d->image, d->format, &err);
    if (size == 0) {
        finding_add(list, FINDING_FAIL, what, "see [disk] format, and qemu-img check", "%s",
                    err->message);
        return;
    }
    g_autofree char *bytes = ctl_bytes(size);
    if (access(mark, F_OK) == 0) {
        finding_add(list, FINDING_WARN, what, "nothing, if this host is to be secondary or runs "
                    "now: protection brings it up to date", "%s, %s, was left between two "
                    "checkpoints (%s)", d->image, bytes, mark);
    } else {
        finding_add(list, FINDING_OK, what, NULL, "%s, %s, %s", d->image, bytes, d->format);
    }
}

static void check_space(const VmConf *c, GPtrArray *list)
{
    g_autofree char *dir = g_strdup(c->state_dir);
    struct statvfs v;

    /* The nearest directory that is there. */
    while (access(dir, F_OK) != 0 && strcmp(dir, "/") != 0) {
        char *up = g_path_get_dirname(dir);
        g_free(dir);
        dir = up;
    }
    if (statvfs(dir, &v) == 0) {
        g_autofree char *free_bytes = ctl_bytes((int64_t)v.f_bavail * v.f_frsize);
        bool ok = (uint64_t)v.f_bavail * v.f_frsize >= 1ull << 30;
        finding_add(list, ok ? FINDING_OK : FINDING_WARN, "state-dir",
                    "at least 1 GiB for what the secondary's guest writes between two "
                    "checkpoints", "%s: %s free", c->state_dir, free_bytes);
    }
    if (access(dir, W_OK) != 0) {
        finding_add(list, FINDING_FAIL, "state-dir", "make it for the user that runs coloctl, "
                    "mode 0700", "%s: %s", dir, g_strerror(errno));
    }
}

static void check_net(const VmNet *n, GPtrArray *list)
{
    g_autofree char *what = g_strdup_printf("net.%s", n->id);
    g_autofree char *tun = g_strdup_printf("/sys/class/net/%s/tun_flags", n->device);
    g_autofree char *master = g_strdup_printf("/sys/class/net/%s/master", n->device);
    g_autofree char *bridge = g_strdup_printf("/sys/class/net/%s/bridge", n->device);

    if (n->kind == VM_NET_USER) {
        finding_add(list, FINDING_WARN, what, "use a tap in a bridge where connections have to "
                    "survive", "user: its connections end in qemu-colo and die with a host");
    } else if (n->kind == VM_NET_BRIDGE) {
        bool ok = access(bridge, F_OK) == 0;
        finding_add(list, ok ? FINDING_OK : FINDING_FAIL, what,
                    "ip link add NAME type bridge, and the host's network card in it",
                    "bridge %s: %s", n->device, ok ? "there" : "no such bridge");
    } else if (if_nametoindex(n->device) == 0) {
        finding_add(list, FINDING_FAIL, what, "ip tuntap add NAME mode tap user USER; ip link set "
                    "NAME master BRIDGE up", "tap %s: no such device", n->device);
    } else if (access(tun, F_OK) != 0) {
        finding_add(list, FINDING_FAIL, what, "name a tap device", "%s is not a tap", n->device);
    } else if (access(master, F_OK) != 0) {
        finding_add(list, FINDING_WARN, what, "ip link set NAME master BRIDGE, unless it is "
                    "routed", "tap %s is in no bridge", n->device);
    } else {
        finding_add(list, FINDING_OK, what, NULL, "tap %s, in a bridge", n->device);
    }
    if (n->kind == VM_NET_TAP && access("/dev/net/tun", R_OK | W_OK) != 0) {
        finding_add(list, FINDING_FAIL, what, "modprobe tun, and the rights", "/dev/net/tun: %s",
                    g_strerror(errno));
    }
}

static bool runs_here(const VmConf *c)
{
    g_autofree char *path = g_strdup_printf("%s/lock", c->state_dir);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    bool runs = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0;

    if (fd >= 0) {
        close(fd);
    }
    return runs;
}

static const char *colo_value(const VmConf *c, const char *key)
{
    g_autofree char *prefix = g_strdup_printf("%s=", key);

    for (guint i = 0; i < c->colo->len; i++) {
        if (g_str_has_prefix(c->colo->pdata[i], prefix)) {
            return (char *)c->colo->pdata[i] + strlen(prefix);
        }
    }
    return NULL;
}

static void check_metrics_port(const VmConf *c, GPtrArray *list)
{
    const char *text = colo_value(c, "metrics");
    g_autoptr(GSocketConnectable) where = text ? g_network_address_parse(text, 0, NULL) : NULL;
    GNetworkAddress *na = where ? G_NETWORK_ADDRESS(where) : NULL;
    g_autoptr(GError) err = NULL;
    int fd = na ? net_listen(g_network_address_get_hostname(na), g_network_address_get_port(na),
                             &err) : -1;

    if (na) {
        finding_add(list, fd < 0 ? FINDING_FAIL : FINDING_OK, "metrics", "give this VM a port of "
                    "its own in [pair] metrics", "%s", fd < 0 ? err->message : text);
    }
    if (fd >= 0) {
        close(fd);
    }
}

/* Whether a port can be had; what keeps it is added to @taken. */
static void try_port(int (*take)(const char *, unsigned, GError **), const char *address,
                     unsigned port, GString *taken)
{
    g_autoptr(GError) err = NULL;
    int fd = take(address, port, &err);

    if (fd < 0) {
        g_string_append_printf(taken, "%s%s", taken->len ? "; " : "", err->message);
    } else {
        close(fd);
    }
}

/* All that this side would listen on in any role, the loopback's too. */
void check_ports(const VmConf *c, GPtrArray *list)
{
    g_autoptr(GArray) ports = vm_conf_listeners(c);
    g_autoptr(GString) taken = g_string_new(NULL);
    char **links = vm_conf_self(c)->addresses;

    if (runs_here(c)) {
        finding_add(list, FINDING_OK, "ports", NULL, "in use by this VM: coloctl run is there");
        return;
    }
    for (guint i = 0; i < ports->len; i++) {
        try_port(net_listen, links[0], g_array_index(ports, unsigned, i), taken);
    }
    for (guint i = 0; i < c->nets->len; i++) {
        try_port(net_listen, "127.0.0.1", vm_conf_net_port(c, VM_PORT_COMPARE_IN, i), taken);
        try_port(net_listen, "127.0.0.1", vm_conf_net_port(c, VM_PORT_COMPARE_OUT, i), taken);
    }
    for (int i = 0; c->heartbeat && links[i]; i++) {
        try_port(net_bind_udp, links[i], vm_conf_port(c, VM_PORT_HEARTBEAT), taken);
    }
    finding_add(list, taken->len ? FINDING_FAIL : FINDING_OK, "ports",
                "give this VM another [pair] port-base, in steps of 10 a card; an address that "
                "cannot be assigned is not this host's", "%s", taken->len ? taken->str : "free");
    check_metrics_port(c, list);
}

static void check_file_of(const char *what, const char *path, GPtrArray *list)
{
    g_autoptr(GError) err = NULL;

    if (path) {
        bool ok = check_secret(what, path, &err);
        finding_add(list, ok ? FINDING_OK : FINDING_FAIL, what,
                    access(path, F_OK) == 0 ? "chmod 600" : "make it, or name the one that is "
                    "meant", "%s", ok ? path : err->message);
    }
}

/* As qemu-colo reads it. */
static void check_key(const VmConf *c, GPtrArray *list)
{
    g_autoptr(GError) err = NULL;
    uint8_t key[KEY_BYTES_MAX];
    size_t len;

    if (!c->key_file) {
        finding_add(list, FINDING_WARN, "key-file", "head -c 32 /dev/urandom | base64 > FILE; "
                    "chmod 600; the same on both hosts", "none: keep others off the network "
                    "between the hosts");
        return;
    }
    bool ok = key_file_read(c->key_file, key, &len, &err);
    explicit_bzero(key, sizeof(key));
    finding_add(list, ok ? FINDING_OK : FINDING_FAIL, "key-file", "head -c 32 /dev/urandom | "
                "base64 > FILE, and the same file on the other host; chmod 600, owned by the user "
                "that runs coloctl", "%s", ok ? c->key_file : err->message);
    if (!c->heartbeat) {
        finding_add(list, FINDING_WARN, "heartbeat", "[pair] heartbeat = on", "off: key-file is "
                    "the heartbeat's, and qemu-colo's pair port has it from there only");
    }
}

/* As qemu-colo reads them: files, modes, dates, and whether they are of one CA. */
static void check_tls(const VmConf *c, GPtrArray *list)
{
    static const char *const ends[] = {"client", "server"};

    for (int i = 0; c->tls_dir && i < 2; i++) {
        g_autoptr(JsonObject) o = json_object_new();
        g_autoptr(GError) err = NULL;
        g_autofree char *what = g_strdup_printf("tls-dir, %s", ends[i]);
        json_object_set_string_member(o, "qom-type", "tls-creds-x509");
        json_object_set_string_member(o, "id", ends[i]);
        json_object_set_string_member(o, "dir", c->tls_dir);
        json_object_set_string_member(o, "endpoint", ends[i]);
        bool ok = tls_object_add(o, &err);
        finding_add(list, ok ? FINDING_OK : FINDING_FAIL, what,
                    "ca-cert.pem, and of that CA server-cert.pem and client-cert.pem with their "
                    "-key.pem of mode 0600: see vm.conf(5)", "%s", ok ? c->tls_dir : err->message);
    }
    tls_objects_clear();
}

/* One etcd: is anybody there, and does it say that it is well? */
static void check_witness(const char *url, GPtrArray *list)
{
    static const char ask[] = "GET /health HTTP/1.0\r\n\r\n";
    gint64 end = g_get_monotonic_time() + WITNESS_MS * 1000ll;
    g_autoptr(GUri) uri = g_uri_parse(url, G_URI_FLAGS_NONE, NULL);
    const char *scheme = uri ? g_uri_get_scheme(uri) : "";
    g_autofree char *shown = uri ? g_uri_to_string_partial(uri, G_URI_HIDE_USERINFO)
                                 : g_strdup("(no URL)");
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *res = NULL;
    g_autoptr(GError) err = NULL;
    g_autoptr(GString) line = g_string_new(NULL);
    char host[NI_MAXHOST] = "";
    int port = uri ? g_uri_get_port(uri) : -1, fd = -1;

    if (uri && g_uri_get_host(uri) &&
        getaddrinfo(g_uri_get_host(uri), NULL, &hints, &res) == 0) {
        getnameinfo(res->ai_addr, res->ai_addrlen, host, sizeof(host), NULL, 0, NI_NUMERICHOST);
        freeaddrinfo(res);
    }
    fd = *host ? net_dial(host, port > 0 ? port : 2379, end, &err) : -1;
    bool ok = fd >= 0;
    if (ok && strcmp(scheme, "http") == 0) {
        ok = net_write(fd, ask, strlen(ask), end, &err) &&
             net_read_line(fd, line, 1000, end, &err) && strstr(line->str, " 200");
    }
    finding_add(list, ok ? FINDING_OK : FINDING_FAIL, "witness",
                "start etcd there, and see to the way to it; without it nobody may take over",
                "%s: %s", shown, ok ? "reachable and well" : err ? err->message
                                 : *host ? "it answers that it is not well" : "no such host");
    if (fd >= 0) {
        close(fd);
    }
}

static void check_arbiter(const VmConf *c, GPtrArray *list)
{
    const char *kind = colo_value(c, "arbiter"), *urls = colo_value(c, "witness");
    const char *agent = colo_value(c, "fence-agent");

    if (!kind || strcmp(kind, "manual") == 0) {
        finding_add(list, FINDING_WARN, "arbiter", "[pair] arbiter = witness or fence",
                    "none: a takeover waits for an operator's coloctl failover");
    } else if (strcmp(kind, "witness") == 0 && !urls) {
        finding_add(list, FINDING_FAIL, "arbiter", "[pair] witness = http://HOST:2379",
                    "witness, without an address");
    } else if (strcmp(kind, "fence") == 0) {
        bool ok = agent && access(agent, X_OK) == 0;
        finding_add(list, ok ? FINDING_OK : FINDING_FAIL, "fence-agent",
                    "[pair] fence-agent = a program of the package fence-agents", "%s: %s",
                    agent ? agent : "none", ok ? "there" : "cannot be run");
    }
    if (urls) {
        g_auto(GStrv) all = g_strsplit(urls, ";", -1);
        for (char **u = all; *u; u++) {
            check_witness(*u, list);
        }
    }
    check_file_of("fence-options", colo_value(c, "fence-options"), list);
    check_file_of("witness-cert-key", colo_value(c, "witness-cert-key"), list);
    check_key(c, list);
    check_tls(c, list);
}

static void check_words(const VmConf *c, GPtrArray *list)
{
    if (strcmp(c->accel, "tcg") == 0 && !strstr(c->smp, "maxcpus")) {
        finding_add(list, FINDING_WARN, "smp", "smp = 1,maxcpus=2", "accel=tcg with room for one "
                    "CPU only: QEMU before 8.1 leaves out memory barriers then");
    }
    if (strcmp(c->cpu, "host") == 0) {
        finding_add(list, FINDING_WARN, "cpu", "a model that both have, like qemu64 or "
                    "Skylake-Server", "host: both hosts' processors must be alike");
    }
}

void check_vm(const VmConf *c, GPtrArray *list)
{
    for (guint i = 0; i < c->disks->len; i++) {
        check_disk(c->disks->pdata[i], list);
    }
    check_space(c, list);
    for (guint i = 0; i < c->nets->len; i++) {
        check_net(c->nets->pdata[i], list);
    }
    check_arbiter(c, list);
    check_words(c, list);
}
