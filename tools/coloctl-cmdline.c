/*
 * The documented command lines, from a vm.conf.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Option by option what the manual's steps 1 and 2 have, with the manual's ids, so that what
 * the manual says about them is true of a VM that coloctl started.
 */
#include "coloctl-cmdline.h"

#include <string.h>
#include <unistd.h>

#include "util/error.h"

typedef struct Line {
    const VmConf *c;
    GPtrArray *words;
} Line;

static void add(Line *l, const char *option, const char *fmt, ...) G_GNUC_PRINTF(3, 4);
static void add(Line *l, const char *option, const char *fmt, ...)
{
    va_list ap;

    g_ptr_array_add(l->words, g_strdup(option));
    if (fmt) {
        va_start(ap, fmt);
        g_ptr_array_add(l->words, g_strdup_vprintf(fmt, ap));
        va_end(ap);
    }
}

/* @text as a value of an option: commas doubled. */
static char *quoted(const char *text)
{
    g_auto(GStrv) parts = g_strsplit(text, ",", -1);

    return g_strjoinv(",,", parts);
}

char *vm_address(const char *address, unsigned port)
{
    return g_strdup_printf(strchr(address, ':') ? "[%s]:%u" : "%s:%u", address, port);
}

static void add_machine(Line *l)
{
    const VmConf *c = l->c;
    g_autofree char *name = quoted(c->name);

    add(l, "-accel", "%s", c->accel);
    add(l, "-machine", "%s", c->machine);
    add(l, "-cpu", "%s", c->cpu);
    add(l, "-m", "%s", c->memory);
    add(l, "-smp", "%s", c->smp);
    add(l, "-name", "%s", name);
    add(l, "-nodefaults", NULL);
    add(l, "-vga", "none");
    add(l, "-display", "none");
    for (const char *const *s = (const char *const[]){"qmp", "ctl", "run", NULL}; *s; s++) {
        g_autofree char *file = g_strconcat(*s, ".sock", NULL);
        g_autofree char *path = vm_conf_socket(c, file), *value = quoted(path);
        add(l, "-qmp", "unix:%s,server=on,wait=off", value);
    }
}

static void add_net(Line *l, unsigned i)
{
    const VmNet *n = l->c->nets->pdata[i];
    g_autofree char *device = quoted(n->device);

    switch (n->kind) {
    case VM_NET_TAP:
        add(l, "-netdev", "tap,id=hn%u,vhost=off,ifname=%s,script=no,downscript=no", i, device);
        break;
    case VM_NET_BRIDGE:
        add(l, "-netdev", "bridge,id=hn%u,br=%s", i, device);
        break;
    case VM_NET_USER: /* its value is options of user, as written */
        add(l, "-netdev", "user,id=hn%u%s%s", i, *n->device ? "," : "", n->device);
        break;
    }
    add(l, "-device", "%s,id=e%u,netdev=hn%u,mac=%s,romfile=", n->model, i, i, n->mac);
}

/* What follows an id of the manual's for card @i: what pair-layout.c makes after a takeover has
 * the same ids. */
static const char *suffix(unsigned i, char buf[16])
{
    g_snprintf(buf, 16, i ? "-%u" : "", i);
    return buf;
}

static void add_primary_proxy(Line *l, unsigned i)
{
    const VmConf *c = l->c;
    const char *me = vm_conf_self(c)->addresses[0], *tls = c->tls_dir ? ",tls-creds=tlss0" : "";
    unsigned in = vm_conf_net_port(c, VM_PORT_COMPARE_IN, i);
    unsigned out = vm_conf_net_port(c, VM_PORT_COMPARE_OUT, i);
    char buf[16];
    const char *s = suffix(i, buf);

    add(l, "-chardev", "socket,id=mirror0%s,host=%s,port=%u,server=on,wait=off%s", s, me,
        vm_conf_net_port(c, VM_PORT_MIRROR, i), tls);
    add(l, "-chardev", "socket,id=compare1%s,host=%s,port=%u,server=on,wait=off%s", s, me,
        vm_conf_net_port(c, VM_PORT_COMPARE, i), tls);
    add(l, "-chardev", "socket,id=compare0%s,host=127.0.0.1,port=%u,server=on,wait=off", s, in);
    add(l, "-chardev", "socket,id=compare0-0%s,host=127.0.0.1,port=%u", s, in);
    add(l, "-chardev", "socket,id=compare_out%s,host=127.0.0.1,port=%u,server=on,wait=off", s,
        out);
    add(l, "-chardev", "socket,id=compare_out0%s,host=127.0.0.1,port=%u", s, out);
    add(l, "-object", "filter-mirror,id=m0%s,netdev=hn%u,queue=tx,outdev=mirror0%s", s, i, s);
    add(l, "-object", "filter-redirector,netdev=hn%u,id=redire0%s,queue=rx,indev=compare_out%s",
        i, s, s);
    add(l, "-object", "filter-redirector,netdev=hn%u,id=redire1%s,queue=rx,outdev=compare0%s", i,
        s, s);
    if (i == 0) {
        add(l, "-object", "iothread,id=iothread1");
    }
    add(l, "-object", "colo-compare,id=comp0%s,primary_in=compare0-0%s,secondary_in=compare1%s,"
        "outdev=compare_out0%s,iothread=iothread1", s, s, s, s);
}

static void add_secondary_proxy(Line *l, unsigned i)
{
    const VmConf *c = l->c;
    const char *peer = vm_conf_peer(c)->addresses[0], *tls = c->tls_dir ? ",tls-creds=tlsc0" : "";
    char buf[16];
    const char *s = suffix(i, buf);

    add(l, "-chardev", "socket,id=red0%s,host=%s,port=%u,reconnect=1%s", s, peer,
        vm_conf_net_port(c, VM_PORT_MIRROR, i), tls);
    add(l, "-chardev", "socket,id=red1%s,host=%s,port=%u,reconnect=1%s", s, peer,
        vm_conf_net_port(c, VM_PORT_COMPARE, i), tls);
    add(l, "-object", "filter-redirector,id=f1%s,netdev=hn%u,queue=tx,indev=red0%s", s, i, s);
    add(l, "-object", "filter-redirector,id=f2%s,netdev=hn%u,queue=rx,outdev=red1%s", s, i, s);
    add(l, "-object", "filter-rewriter,id=rew0%s,netdev=hn%u,queue=all", s, i);
}

/* For both roles: a secondary that takes over connects where it listened. */
static void add_tls(Line *l)
{
    static const char *const ends[][2] = {{"tlsc0", "client"}, {"tlss0", "server"}};
    g_autofree char *dir = quoted(l->c->tls_dir);

    for (int i = 0; i < 2; i++) {
        add(l, "-object", "tls-creds-x509,id=%s,dir=%s,endpoint=%s", ends[i][0], dir, ends[i][1]);
    }
}

static void add_disk(Line *l, unsigned i, bool secondary)
{
    const VmDisk *d = l->c->disks->pdata[i];
    g_autofree char *image = quoted(d->image), *active = quoted(d->active);
    g_autofree char *hidden = quoted(d->hidden);
    bool scsi = strcmp(d->interface, "scsi") == 0, sata = strcmp(d->interface, "sata") == 0;
    const char *interface = scsi || sata ? "none" : d->interface;

    if (secondary) {
        add(l, "-drive", "if=none,id=parent%u,file.filename=%s,driver=%s", i, image, d->format);
        add(l, "-drive", "if=none,id=childs%u,driver=replication,mode=secondary,"
            "file.driver=qcow2,top-id=colo-disk%u,file.file.filename=%s,"
            "file.backing.driver=qcow2,file.backing.file.filename=%s,"
            "file.backing.backing=parent%u%s", i, i, active, hidden, i,
            d->shared ? ",shared-disk=on" : "");
        add(l, "-drive", "if=%s,id=colo-disk%u,driver=quorum,read-pattern=fifo,"
            "vote-threshold=1,children.0=childs%u", interface, i, i);
    } else {
        add(l, "-drive", "if=%s,id=colo-disk%u,driver=quorum,read-pattern=fifo,"
            "vote-threshold=1,children.0.file.filename=%s,children.0.driver=%s%s", interface, i,
            image, d->format, d->shared ? ",children.0.cache.direct=on" : "");
    }
    if (scsi) {
        add(l, "-device", "scsi-hd,bus=scsi0.0,drive=colo-disk%u", i);
    } else if (sata) {
        add(l, "-device", "ide-hd,bus=ahci0.%u,drive=colo-disk%u", i, i);
    }
}

static void add_disks(Line *l, bool secondary)
{
    bool scsi = false, sata = false;

    for (guint i = 0; i < l->c->disks->len; i++) {
        const VmDisk *d = l->c->disks->pdata[i];
        if (strcmp(d->interface, "scsi") == 0 && !scsi) {
            add(l, "-device", "virtio-scsi-pci,id=scsi0");
            scsi = true;
        } else if (strcmp(d->interface, "sata") == 0 && !sata) {
            add(l, "-device", "ich9-ahci,id=ahci0");
            sata = true;
        }
        add_disk(l, i, secondary);
    }
}

static void add_pair(Line *l, bool vouched)
{
    const VmConf *c = l->c;

    add(l, "-colo", "pair=on,listen=%s,peer=%s,mirror-port=%u,compare-port=%u,in-port=%u,"
        "out-port=%u,nbd-port=%u,migrate-port=%u,pair-port=%u,auto-protect=%s,auto-sync=%s",
        vm_conf_self(c)->addresses[0], vm_conf_peer(c)->addresses[0],
        vm_conf_port(c, VM_PORT_MIRROR), vm_conf_port(c, VM_PORT_COMPARE),
        vm_conf_port(c, VM_PORT_COMPARE_IN), vm_conf_port(c, VM_PORT_COMPARE_OUT),
        vm_conf_port(c, VM_PORT_NBD), vm_conf_port(c, VM_PORT_MIGRATE),
        vm_conf_port(c, VM_PORT_PAIR), c->auto_protect ? "on" : "off", c->auto_sync);
    g_autofree char *state_dir = quoted(c->state_dir);
    add(l, "-colo", "state-file=%s/role", state_dir);
    if (c->tls_dir) {
        add(l, "-colo", "tls-client=tlsc0,tls-server=tlss0");
    }
    if (vouched) {
        add(l, "-colo", "peer-off=on");
    }
    for (guint i = 0; i < c->colo->len; i++) {
        g_autofree char *pair = quoted(c->colo->pdata[i]);
        add(l, "-colo", "%s", pair);
    }
    if (c->colo_options && *c->colo_options) {
        add(l, "-colo", "%s", c->colo_options);
    }
    if (c->emulator) {
        g_autofree char *path = quoted(c->emulator);
        add(l, "-colo", "emulator=%s", path);
    }
}

static void add_heartbeat(Line *l)
{
    const VmConf *c = l->c;
    g_autoptr(GString) text = g_string_new("colo-heartbeat,id=hb0");
    unsigned port = vm_conf_port(c, VM_PORT_HEARTBEAT);

    for (unsigned i = 0; vm_conf_self(c)->addresses[i]; i++) {
        g_autofree char *local = vm_address(vm_conf_self(c)->addresses[i], port);
        g_autofree char *peer = vm_address(vm_conf_peer(c)->addresses[i], port);
        if (i == 0) {
            g_string_append_printf(text, ",local=%s,peer=%s", local, peer);
        } else {
            g_string_append_printf(text, ",links.%u.local=%s,links.%u.peer=%s", i - 1, local,
                                   i - 1, peer);
        }
    }
    if (c->heartbeat_interval) {
        g_string_append_printf(text, ",interval=%" G_GUINT64_FORMAT, c->heartbeat_interval);
    }
    if (c->heartbeat_timeout) {
        g_string_append_printf(text, ",timeout=%" G_GUINT64_FORMAT, c->heartbeat_timeout);
    }
    if (c->key_file) {
        g_autofree char *key = quoted(c->key_file);
        g_string_append_printf(text, ",key-file=%s", key);
    }
    add(l, "-object", "%s", text->str);
}

char **vm_command_line(const VmConf *c, const char *program, bool secondary, bool vouched)
{
    Line l = {c, g_ptr_array_new()};

    g_ptr_array_add(l.words, g_strdup(program));
    add_machine(&l);
    for (guint i = 0; i < c->nets->len; i++) {
        add_net(&l, i);
    }
    if (c->tls_dir) {
        add_tls(&l);
    }
    for (guint i = 0; i < c->nets->len; i++) {
        secondary ? add_secondary_proxy(&l, i) : add_primary_proxy(&l, i);
    }
    add_disks(&l, secondary);
    if (secondary) {
        g_autofree char *at = vm_address(vm_conf_self(c)->addresses[0],
                                         vm_conf_port(c, VM_PORT_MIGRATE));
        add(&l, "-incoming", "tcp:%s", at);
    }
    add_pair(&l, vouched);
    if (c->heartbeat) {
        add_heartbeat(&l);
    }
    for (char **a = c->args; a && *a; a++) {
        g_ptr_array_add(l.words, g_strdup(*a));
    }
    g_ptr_array_add(l.words, NULL);
    return (char **)g_ptr_array_free(l.words, FALSE);
}

char *vm_find_program(const VmConf *c, GError **errp)
{
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *dir = self ? g_path_get_dirname(self) : g_strdup("/usr/bin");

    if (c->program) {
        if (access(c->program, X_OK) != 0) {
            colo_error_set(errp, "%s: [run] qemu-colo = '%s': no such program", c->file,
                           c->program);
            return NULL;
        }
        return g_strdup(c->program);
    }
    for (const char *const *n = (const char *const[]){"qemu-colo", "../system/qemu-colo", NULL};
         *n; n++) {
        g_autofree char *path = g_build_filename(dir, *n, NULL);
        if (g_file_test(path, G_FILE_TEST_IS_EXECUTABLE) &&
            !g_file_test(path, G_FILE_TEST_IS_DIR)) {
            return g_steal_pointer(&path);
        }
    }
    char *found = g_find_program_in_path("qemu-colo");
    if (!found) {
        colo_error_set(errp, "qemu-colo was found neither beside coloctl nor in PATH: name it "
                       "in vm.conf, [run] qemu-colo");
    }
    return found;
}
