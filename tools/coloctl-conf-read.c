/*
 * vm.conf: reading it.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "coloctl-conf-int.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coloctl.h"
#include "util/error.h"

#define FILE_BYTES_MAX (1024 * 1024)
#define LINKS_MAX 8 /* of a heartbeat */
#define BEAT_MS 100 /* its interval, where none is given */

static void disk_free(gpointer p)
{
    VmDisk *d = p;

    g_free(d->id);
    g_free(d->image);
    g_free(d->format);
    g_free(d->interface);
    g_free(d->active);
    g_free(d->hidden);
    g_free(d);
}

static void net_free(gpointer p)
{
    VmNet *n = p;

    g_free(n->id);
    g_free(n->device);
    g_free(n->model);
    g_free(n->mac);
    g_free(n);
}

bool conf_is_id(const char *text)
{
    return *text && strspn(text, G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "-_.") == strlen(text);
}

static bool is_mac(const char *text)
{
    unsigned b[6];
    char end;

    return sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%c", b, b + 1, b + 2, b + 3, b + 4, b + 5,
                  &end) == 6 && strlen(text) == 17 && (b[0] & 1) == 0;
}

static bool read_disk(ConfReader *r, GError **errp)
{
    VmDisk *d = g_new0(VmDisk, 1);

    g_ptr_array_add(r->c->disks, d);
    d->id = g_strdup(r->section + strlen("disk."));
    if (!conf_is_id(d->id)) {
        conf_bad(r, errp, "ID", d->id, "expected letters, digits, '-', '_' and '.'");
        return false;
    }
    return conf_read_section(r, "disk.", d, errp);
}

static bool read_net(ConfReader *r, GError **errp)
{
    static const char *const kinds[] = {"tap", "bridge", "user"};
    VmNet *n = g_new0(VmNet, 1);
    int found = 0;

    g_ptr_array_add(r->c->nets, n);
    n->id = g_strdup(r->section + strlen("net."));
    for (int i = 0; i < 3; i++) {
        if (g_key_file_has_key(r->kf, r->section, kinds[i], NULL)) {
            n->kind = i;
            found++;
        }
    }
    if (found != 1) {
        conf_bad(r, errp, "tap, bridge, user", NULL, "exactly one of these keys is needed");
        return false;
    }
    if (!conf_read_section(r, "net.", n, errp)) {
        return false;
    }
    if (!is_mac(n->mac)) {
        conf_bad(r, errp, "mac", n->mac, "expected a unicast address like 52:54:00:c0:10:01; both "
                                    "hosts must use the same");
        return false;
    }
    return true;
}

static bool read_hosts(ConfReader *r, GError **errp)
{
    g_auto(GStrv) names = g_key_file_get_keys(r->kf, "hosts", NULL, NULL);

    r->section = "hosts";
    if (!names || g_strv_length(names) != 2) {
        conf_bad(r, errp, "NAME = ADDRESS", NULL, "exactly two hosts are needed");
        return false;
    }
    for (int i = 0; i < 2; i++) {
        VmHost *h = &r->c->hosts[i];
        g_autofree char *text = g_key_file_get_string(r->kf, "hosts", names[i], NULL);
        h->name = g_strdup(names[i]);
        h->addresses = g_strsplit(text ? text : "", ",", -1);
        if (!conf_is_id(h->name)) {
            conf_bad(r, errp, h->name, NULL, "expected letters, digits, '-', '_' and '.'");
            return false;
        }
        for (char **a = h->addresses; *a; a++) {
            unsigned char bin[16];
            g_strstrip(*a);
            if (inet_pton(AF_INET, *a, bin) != 1 && inet_pton(AF_INET6, *a, bin) != 1) {
                conf_bad(r, errp, h->name, text, "expected an IP address of the network between "
                    "the hosts, or several with commas (heartbeat links)");
                return false;
            }
        }
    }
    if (g_strv_length(r->c->hosts[0].addresses) != g_strv_length(r->c->hosts[1].addresses) ||
        !r->c->hosts[0].addresses[0]) {
        conf_bad(r, errp, names[1], NULL, "both hosts need equally many addresses, one a link");
        return false;
    }
    for (int i = 0; r->c->hosts[0].addresses[i]; i++) {
        if (i == LINKS_MAX) {
            conf_bad(r, errp, names[1], NULL, "at most eight addresses, one a link");
            return false;
        }
        if (strcmp(r->c->hosts[0].addresses[i], r->c->hosts[1].addresses[i]) == 0) {
            conf_bad(r, errp, names[1], r->c->hosts[1].addresses[i],
                     "both hosts have this address");
            return false;
        }
    }
    return true;
}

/* As colo-heartbeat has it; on the way to protection would be late to hear of it. */
static bool check_heartbeat(ConfReader *r, GError **errp)
{
    const VmConf *c = r->c;
    uint64_t interval = c->heartbeat_interval ? c->heartbeat_interval : BEAT_MS;
    g_autofree char *text = g_strdup_printf("%" G_GUINT64_FORMAT, c->heartbeat_timeout);

    r->section = "pair";
    if (c->heartbeat_timeout && c->heartbeat_timeout < 4 * interval) {
        g_autofree char *why = g_strdup_printf(
            "expected at least four times the interval (%" G_GUINT64_FORMAT " ms): a lost beat "
            "or two would end protection", interval);
        conf_bad(r, errp, "heartbeat-timeout", text, why);
        return false;
    }
    return true;
}

/* An address that others can reach is refused by qemu-colo. */
static bool check_metrics(ConfReader *r, GError **errp)
{
    g_autofree char *text = g_key_file_get_string(r->kf, "pair", "metrics", NULL);
    g_autoptr(GSocketConnectable) where = text ? g_network_address_parse(text, 0, NULL) : NULL;
    GNetworkAddress *na = where ? G_NETWORK_ADDRESS(where) : NULL;
    g_autoptr(GInetAddress) ip =
        na ? g_inet_address_new_from_string(g_network_address_get_hostname(na)) : NULL;

    r->section = "pair";
    if (text && (!ip || !g_inet_address_get_is_loopback(ip) || !g_network_address_get_port(na))) {
        conf_bad(r, errp, "metrics", text, "expected 127.0.0.1:PORT or [::1]:PORT (a reverse "
                 "proxy lets others read)");
        return false;
    }
    return true;
}

static bool check_nets(ConfReader *r, GError **errp)
{
    GPtrArray *nets = r->c->nets;

    if (nets->len > VM_NETS_MAX) {
        colo_error_set(errp, "%s: %u [net.ID]: at most %d", r->c->file, nets->len, VM_NETS_MAX);
        return false;
    }
    for (guint i = 0; i < nets->len; i++) {
        for (guint k = 0; k < i; k++) {
            const VmNet *a = nets->pdata[k], *b = nets->pdata[i];
            g_autofree char *why = g_strdup_printf("[net.%s] has it already", a->id);
            g_autofree char *section = g_strdup_printf("net.%s", b->id);
            r->section = section;
            if (g_ascii_strcasecmp(a->mac, b->mac) == 0) {
                conf_bad(r, errp, "mac", b->mac, why);
                return false;
            }
            if (a->kind == VM_NET_TAP && b->kind == VM_NET_TAP &&
                strcmp(a->device, b->device) == 0) {
                conf_bad(r, errp, "tap", b->device, why);
                return false;
            }
        }
    }
    return true;
}

static bool read_rest(ConfReader *r, GError **errp)
{
    VmConf *c = r->c;
    g_autoptr(GError) err = NULL;
    g_autofree char *args = g_key_file_get_string(r->kf, "vm", "args", NULL);
    g_autofree char *prefer = g_key_file_get_string(r->kf, "pair", "prefer", NULL);
    g_autofree char *base = g_key_file_get_string(r->kf, "pair", "port-base", NULL);

    r->section = "vm";
    if (!conf_is_id(c->name) || c->name[0] == '.') {
        conf_bad(r, errp, "name", c->name, "expected letters, digits, '-', '_' and '.'");
        return false;
    }
    if (vm_conf_memory(c) < 1024 * 1024) {
        conf_bad(r, errp, "memory", c->memory, "expected a size like 1G, 512M or 512 (MiB)");
        return false;
    }
    if (args && *args && !g_shell_parse_argv(args, NULL, &c->args, &err)) {
        conf_bad(r, errp, "args", args, err->message);
        return false;
    }
    c->port_base = base ? atoi(base) : 9000;
    if (prefer) {
        c->prefer = strcmp(prefer, c->hosts[1].name) == 0;
        if (!c->prefer && strcmp(prefer, c->hosts[0].name) != 0) {
            r->section = "pair";
            conf_bad(r, errp, "prefer", prefer, "expected the name of a host in [hosts]");
            return false;
        }
    }
    if (c->channels == 0 && c->compression && strcmp(c->compression, "none") != 0) {
        r->section = "pair";
        conf_bad(r, errp, "compression", c->compression, "needs channels = 1 or more");
        return false;
    }
    return check_heartbeat(r, errp) && check_metrics(r, errp) && check_nets(r, errp);
}

/* What is no file, or cannot be a vm.conf, is not waited for and not read into memory. */
static char *read_file(const char *file, GError **errp)
{
    g_autoptr(GString) text = g_string_new(NULL);
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    char buf[4096];
    ssize_t n = -1;

    if (fd < 0 || fstat(fd, &st) != 0) {
        colo_error_set_errno(errp, errno, "%s", file);
    } else if (!S_ISREG(st.st_mode)) {
        colo_error_set(errp, "%s: expected a file, this is %s", file,
                       S_ISDIR(st.st_mode) ? "a directory" : "none");
    } else {
        while ((n = read(fd, buf, sizeof(buf))) > 0 && text->len <= FILE_BYTES_MAX) {
            g_string_append_len(text, buf, n);
        }
        if (n < 0) {
            colo_error_set_errno(errp, errno, "%s", file);
        } else if (text->len > FILE_BYTES_MAX) {
            colo_error_set(errp, "%s: more than %d bytes: this is no vm.conf", file,
                           FILE_BYTES_MAX);
            n = -1;
        } else if (strlen(text->str) != text->len) {
            colo_error_set(errp, "%s: a byte 0 in it: this is no vm.conf", file);
            n = -1;
        }
    }
    if (fd >= 0) {
        close(fd);
    }
    return n < 0 ? NULL : g_strdup(text->str);
}

VmConf *vm_conf_load(const char *file, GError **errp)
{
    g_autoptr(VmConf) c = g_new0(VmConf, 1);
    g_autoptr(GKeyFile) kf = g_key_file_new();
    ConfReader r = {c, kf, NULL};

    c->file = g_strdup(file);
    c->local = -1;
    c->disks = g_ptr_array_new_with_free_func(disk_free);
    c->nets = g_ptr_array_new_with_free_func(net_free);
    c->colo = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *text = read_file(file, errp);
    if (!text) {
        return NULL;
    }
    if (!g_key_file_load_from_data(kf, text, -1, G_KEY_FILE_NONE, errp)) {
        g_prefix_error(errp, "%s: ", file);
        return NULL;
    }
    if (!conf_check_names(&r, text, errp)) {
        return NULL;
    }
    for (const char *const *s = (const char *const[]){"vm", "pair", "run", NULL}; *s; s++) {
        r.section = *s;
        if (!conf_read_section(&r, *s, c, errp)) {
            return NULL;
        }
    }
    g_auto(GStrv) groups = g_key_file_get_groups(kf, NULL);
    for (char **g = groups; *g; g++) {
        r.section = *g;
        if ((g_str_has_prefix(*g, "disk.") && !read_disk(&r, errp)) ||
            (g_str_has_prefix(*g, "net.") && !read_net(&r, errp))) {
            return NULL;
        }
    }
    if (!read_hosts(&r, errp) || !read_rest(&r, errp)) {
        return NULL;
    }
    return g_steal_pointer(&c);
}

void vm_conf_free(VmConf *c)
{
    if (!c) {
        return;
    }
    for (int i = 0; i < 2; i++) {
        g_free(c->hosts[i].name);
        g_strfreev(c->hosts[i].addresses);
    }
    char *texts[] = {c->file, c->name, c->emulator, c->machine, c->accel, c->cpu, c->memory,
                     c->smp, c->auto_sync, c->colo_options, c->key_file, c->state_dir,
                     c->run_dir, c->program, c->compression, c->tls_dir};
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_free(texts[i]);
    }
    g_strfreev(c->args);
    g_ptr_array_unref(c->disks);
    g_ptr_array_unref(c->nets);
    g_ptr_array_unref(c->colo);
    g_free(c);
}

