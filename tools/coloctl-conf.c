/*
 * vm.conf: as one host sees it.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "coloctl-conf.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/error.h"

/* %h, %p, %n, %% */
static void expand(const VmConf *c, char **text)
{
    GString *out;

    if (!*text || !strchr(*text, '%')) {
        return;
    }
    out = g_string_new(NULL);
    for (const char *p = *text; *p; p++) {
        if (*p != '%') {
            g_string_append_c(out, *p);
            continue;
        }
        switch (*++p) {
        case 'h':
            g_string_append(out, vm_conf_self(c)->name);
            break;
        case 'p':
            g_string_append(out, vm_conf_peer(c)->name);
            break;
        case 'n':
            g_string_append(out, c->name);
            break;
        default:
            g_string_append_c(out, '%');
        }
    }
    g_free(*text);
    *text = g_string_free(out, FALSE);
}

static bool is_ours(const char *address)
{
    struct sockaddr_in in4 = {.sin_family = AF_INET};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};
    bool four = inet_pton(AF_INET, address, &in4.sin_addr) == 1;
    int fd = socket(four ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool ours;

    if (!four) {
        inet_pton(AF_INET6, address, &in6.sin6_addr);
    }
    ours = fd >= 0 && bind(fd, four ? (struct sockaddr *)&in4 : (struct sockaddr *)&in6,
                           four ? sizeof(in4) : sizeof(in6)) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return ours;
}

bool vm_conf_choose_host(VmConf *c, const char *name, GError **errp)
{
    bool is[2];

    for (int i = 0; i < 2; i++) {
        is[i] = name ? strcmp(name, c->hosts[i].name) == 0
                     : is_ours(c->hosts[i].addresses[0]);
    }
    if (name && !is[0] && !is[1]) {
        colo_error_set(errp, "--host %s: %s has hosts %s and %s", name, c->file,
                       c->hosts[0].name, c->hosts[1].name);
        return false;
    }
    if (is[0] == is[1]) {
        colo_error_set(errp, "%s: [hosts]: this machine has %s of the addresses %s and %s: say "
                       "--host %s or --host %s", c->file, is[0] ? "both" : "none",
                       c->hosts[0].addresses[0], c->hosts[1].addresses[0], c->hosts[0].name,
                       c->hosts[1].name);
        return false;
    }
    c->local = is[1];
    expand(c, &c->state_dir);
    expand(c, &c->run_dir);
    if (strlen(c->run_dir) + strlen("/ctl.sock") >= sizeof(((struct sockaddr_un *)0)->sun_path)) {
        colo_error_set(errp, "%s: [run] run-dir = '%s': expected a path of at most %zu bytes, as "
                       "the sockets in it have to have", c->file, c->run_dir,
                       sizeof(((struct sockaddr_un *)0)->sun_path) - 1 - strlen("/ctl.sock"));
        return false;
    }
    expand(c, &c->key_file);
    expand(c, &c->tls_dir);
    expand(c, &c->emulator);
    expand(c, &c->program);
    expand(c, &c->colo_options);
    for (guint i = 0; i < c->colo->len; i++) {
        expand(c, (char **)&c->colo->pdata[i]);
    }
    for (char **a = c->args; a && *a; a++) {
        expand(c, a);
    }
    for (guint i = 0; i < c->disks->len; i++) {
        VmDisk *d = c->disks->pdata[i];
        expand(c, &d->image);
        expand(c, &d->active);
        expand(c, &d->hidden);
        if (!d->active) {
            d->active = g_strdup_printf("%s/%s-active.qcow2", c->state_dir, d->id);
        }
        if (!d->hidden) {
            d->hidden = g_strdup_printf("%s/%s-hidden.qcow2", c->state_dir, d->id);
        }
    }
    for (guint i = 0; i < c->nets->len; i++) {
        expand(c, &((VmNet *)c->nets->pdata[i])->device);
    }
    return true;
}

const VmHost *vm_conf_self(const VmConf *c)
{
    return &c->hosts[c->local];
}

const VmHost *vm_conf_peer(const VmConf *c)
{
    return &c->hosts[!c->local];
}

unsigned vm_conf_port(const VmConf *c, VmPort port)
{
    return c->port_base + port;
}

unsigned vm_conf_net_port(const VmConf *c, VmPort port, unsigned n)
{
    return vm_conf_port(c, port) + 10 * n;
}

GArray *vm_conf_listeners(const VmConf *c)
{
    static const VmPort once[] = {VM_PORT_PAIR, VM_PORT_MIGRATE, VM_PORT_NBD};
    GArray *out = g_array_new(FALSE, FALSE, sizeof(unsigned));

    for (guint i = 0; i < c->nets->len; i++) {
        unsigned two[] = {vm_conf_net_port(c, VM_PORT_MIRROR, i),
                          vm_conf_net_port(c, VM_PORT_COMPARE, i)};
        g_array_append_vals(out, two, 2);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(once); i++) {
        unsigned port = vm_conf_port(c, once[i]);
        g_array_append_val(out, port);
    }
    return out;
}

uint64_t vm_conf_memory(const VmConf *c)
{
    char *end;
    uint64_t n = g_ascii_strtoull(c->memory, &end, 10);
    unsigned shift = 20;

    if (*end) {
        const char *units = "kMGT", *u = strchr(units, *end == 'K' ? 'k' : *end);
        shift = u && !end[1] ? 10 * (u - units + 1) : 64;
    }
    return !g_ascii_isdigit(c->memory[0]) || shift > 40 || n > (UINT64_MAX >> shift) / 2
               ? 0 : n << shift;
}

char *vm_conf_socket(const VmConf *c, const char *name)
{
    return g_strdup_printf("%s/%s", c->run_dir, name);
}
