/*
 * vm.conf: reading and checking.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A table names each key of each section with what it takes. Texts go where the table says;
 * what is not text is read once all is known.
 */
#include "coloctl-conf.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "coloctl.h"
#include "util/error.h"

typedef enum KeyKind {
    KEY_TEXT,  /* any text, into a char * */
    KEY_WORD,  /* text without space and comma */
    KEY_PATH,  /* absolute; may have %h and the like */
    KEY_BOOL,  /* on or off */
    KEY_UINT,  /* within min and max, into a uint64_t */
    KEY_CHOICE, /* one of choices */
    KEY_COLO,  /* goes to -colo under its own name, once the host is known */
} KeyKind;

typedef struct Key {
    const char *section; /* "disk." and "net.": any that starts so */
    const char *name;
    KeyKind kind;
    size_t offset; /* in VmConf, VmDisk or VmNet */
    const char *dflt;
    uint64_t min, max;
    const char *choices; /* separated by "|" */
    bool needed;
} Key;

#define CONF(member) offsetof(VmConf, member)
#define DISK(member) offsetof(VmDisk, member)
#define NET(member) offsetof(VmNet, member)

static const Key keys[] = {
    {"vm", "name", KEY_WORD, CONF(name), .needed = true},
    {"vm", "emulator", KEY_PATH, CONF(emulator)},
    {"vm", "machine", KEY_WORD, CONF(machine), "pc"},
    {"vm", "accel", KEY_CHOICE, CONF(accel), "kvm", .choices = "kvm|tcg"},
    {"vm", "cpu", KEY_TEXT, CONF(cpu), "qemu64"},
    {"vm", "memory", KEY_WORD, CONF(memory), .needed = true},
    {"vm", "smp", KEY_TEXT, CONF(smp), "1"},
    {"vm", "args", KEY_TEXT},
    {"disk.", "image", KEY_PATH, DISK(image), .needed = true},
    {"disk.", "format", KEY_WORD, DISK(format), "raw"},
    {"disk.", "interface", KEY_CHOICE, DISK(interface), "virtio",
     .choices = "virtio|ide|scsi|sata"},
    {"disk.", "active", KEY_PATH, DISK(active)},
    {"disk.", "hidden", KEY_PATH, DISK(hidden)},
    {"disk.", "shared", KEY_BOOL, DISK(shared), "off"},
    {"net.", "tap", KEY_WORD, NET(device)},
    {"net.", "bridge", KEY_WORD, NET(device)},
    {"net.", "user", KEY_TEXT, NET(device)},
    {"net.", "model", KEY_WORD, NET(model), "virtio-net-pci"},
    {"net.", "mac", KEY_WORD, NET(mac), .needed = true},
    {"pair", "prefer", KEY_WORD},
    {"pair", "port-base", KEY_UINT, .dflt = "9000", .min = 1024, .max = 64000},
    {"pair", "auto-protect", KEY_BOOL, CONF(auto_protect), "on"},
    {"pair", "auto-sync", KEY_CHOICE, CONF(auto_sync), "incremental",
     .choices = "incremental|full|none"},
    {"pair", "checkpoint-delay", KEY_UINT, CONF(checkpoint_delay), "0", 0, 3600000},
    {"pair", "colo-options", KEY_TEXT, CONF(colo_options)},
    {"pair", "heartbeat", KEY_BOOL, CONF(heartbeat), "off"},
    {"pair", "heartbeat-interval", KEY_UINT, CONF(heartbeat_interval), "0", 0, 60000},
    {"pair", "heartbeat-timeout", KEY_UINT, CONF(heartbeat_timeout), "0", 0, 600000},
    {"pair", "key-file", KEY_PATH, CONF(key_file)},
    {"pair", "peer-timeout", KEY_COLO},
    {"pair", "progress-timeout", KEY_COLO},
    {"pair", "arbiter", KEY_COLO, .choices = "manual|fence|witness|pacemaker"},
    {"pair", "fence-agent", KEY_COLO},
    {"pair", "fence-plug", KEY_COLO},
    {"pair", "fence-options", KEY_COLO},
    {"pair", "fence-timeout", KEY_COLO},
    {"pair", "fence-delay", KEY_COLO},
    {"pair", "witness", KEY_COLO},
    {"pair", "witness-key", KEY_COLO},
    {"pair", "witness-lease", KEY_COLO},
    {"pair", "witness-cacert", KEY_COLO},
    {"pair", "witness-cert", KEY_COLO},
    {"pair", "witness-cert-key", KEY_COLO},
    {"run", "state-dir", KEY_PATH, CONF(state_dir), "/var/lib/qemu-colo/%n"},
    {"run", "run-dir", KEY_PATH, CONF(run_dir), "/run/qemu-colo/%n"},
    {"run", "qemu-colo", KEY_PATH, CONF(program)},
};

/* Who is being read. */
typedef struct Reader {
    VmConf *c;
    GKeyFile *kf;
    const char *section;
} Reader;

static void bad(Reader *r, GError **errp, const char *key, const char *value,
                const char *expected)
{
    g_autofree char *shown = value ? ctl_clean(value, 80) : NULL;

    colo_error_set(errp, "%s: [%s] %s%s%s%s: %s", r->c->file, r->section, key,
                   shown ? " = '" : "", shown ? shown : "", shown ? "'" : "", expected);
}

static bool is_choice(const char *choices, const char *value)
{
    g_auto(GStrv) list = g_strsplit(choices, "|", -1);

    return g_strv_contains((const char *const *)list, value);
}

static bool check_percent(const char *value)
{
    for (const char *p = strchr(value, '%'); p; p = strchr(p + 2, '%')) {
        if (!p[1] || !strchr("hpn%", p[1])) {
            return false;
        }
    }
    return true;
}

static bool check_value(Reader *r, const Key *k, const char *value, uint64_t *number,
                        GError **errp)
{
    if (k->choices && !is_choice(k->choices, value)) {
        g_auto(GStrv) list = g_strsplit(k->choices, "|", -1);
        g_autofree char *text = g_strjoinv(", ", list);
        g_autofree char *why = g_strdup_printf("expected one of %s", text);
        bad(r, errp, k->name, value, why);
        return false;
    }
    if (k->kind == KEY_BOOL && strcmp(value, "on") != 0 && strcmp(value, "off") != 0) {
        bad(r, errp, k->name, value, "expected on or off");
        return false;
    }
    if (k->kind == KEY_UINT &&
        !g_ascii_string_to_unsigned(value, 10, k->min, k->max, number, NULL)) {
        g_autofree char *why = g_strdup_printf(
            "expected a number from %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT, k->min,
            k->max);
        bad(r, errp, k->name, value, why);
        return false;
    }
    if (k->kind == KEY_WORD && (!*value || strpbrk(value, " \t,\"'"))) {
        bad(r, errp, k->name, value, "expected a word without spaces, commas and quotes");
        return false;
    }
    if (k->kind == KEY_PATH && value[0] != '/') {
        bad(r, errp, k->name, value, "expected an absolute path");
        return false;
    }
    if (!check_percent(value)) {
        bad(r, errp, k->name, value, "after % expected h (this host), p (the peer), n (the "
                                     "VM) or %");
        return false;
    }
    return true;
}

static const Key *find_key(const char *section, const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(keys); i++) {
        bool open = g_str_has_suffix(keys[i].section, ".");
        if ((open ? g_str_has_prefix(section, keys[i].section)
                  : strcmp(section, keys[i].section) == 0) &&
            (!name || strcmp(keys[i].name, name) == 0)) {
            return &keys[i];
        }
    }
    return NULL;
}

bool vm_conf_knows(const char *section, const char *key)
{
    return find_key(section, key) != NULL;
}

static bool refuse_unknown(Reader *r, GError **errp)
{
    static const char *const sections[] = {"vm", "disk.ID", "net.ID", "hosts", "pair", "run",
                                           NULL};
    g_auto(GStrv) groups = g_key_file_get_groups(r->kf, NULL);

    for (char **g = groups; *g; g++) {
        bool hosts = strcmp(*g, "hosts") == 0;
        r->section = *g;
        if (!hosts && !find_key(*g, NULL)) {
            const char *near = ctl_nearest(*g, sections);
            colo_error_set(errp, "%s: [%s]: unknown section%s%s%s; there are [vm], [disk.ID], "
                           "[net.ID], [hosts], [pair] and [run]", r->c->file, *g,
                           near ? ", did you mean [" : "", near ? near : "", near ? "]?" : "");
            return false;
        }
        g_auto(GStrv) names = g_key_file_get_keys(r->kf, *g, NULL, NULL);
        for (char **n = names; !hosts && *n; n++) {
            if (!find_key(*g, *n)) {
                const char *known[G_N_ELEMENTS(keys) + 1];
                size_t count = 0;
                for (size_t i = 0; i < G_N_ELEMENTS(keys); i++) {
                    if (find_key(*g, keys[i].name) == &keys[i]) {
                        known[count++] = keys[i].name;
                    }
                }
                known[count] = NULL;
                const char *near = ctl_nearest(*n, known);
                g_autofree char *list = g_strjoinv(", ", (char **)known);
                g_autofree char *why =
                    near ? g_strdup_printf("unknown key, did you mean '%s'?", near)
                         : g_strdup_printf("unknown key; there are %s", list);
                bad(r, errp, *n, NULL, why);
                return false;
            }
        }
    }
    return true;
}

/* All keys of @r->section that the table has, into @base. */
static bool read_section(Reader *r, const char *prefix, void *base, GError **errp)
{
    for (size_t i = 0; i < G_N_ELEMENTS(keys); i++) {
        const Key *k = &keys[i];
        uint64_t number = 0;
        if (strcmp(k->section, prefix) != 0) {
            continue;
        }
        bool given = g_key_file_has_key(r->kf, r->section, k->name, NULL);
        g_autofree char *value =
            given ? g_key_file_get_string(r->kf, r->section, k->name, errp)
                  : g_strdup(k->dflt);
        if (given && !value) {
            g_prefix_error(errp, "%s: [%s] %s: ", r->c->file, r->section, k->name);
            return false;
        }
        if (!value && k->needed) {
            bad(r, errp, k->name, NULL, "this key is needed");
            return false;
        }
        if (!value) {
            continue;
        }
        g_strstrip(value);
        if (!check_value(r, k, value, &number, errp)) {
            return false;
        }
        if (k->kind == KEY_COLO) {
            g_ptr_array_add(r->c->colo, g_strdup_printf("%s=%s", k->name, value));
        } else if (k->kind == KEY_BOOL) {
            *(bool *)((char *)base + k->offset) = strcmp(value, "on") == 0;
        } else if (k->kind == KEY_UINT && k->offset) {
            *(uint64_t *)((char *)base + k->offset) = number;
        } else if (k->kind != KEY_UINT && k->offset) {
            char **to = (char **)((char *)base + k->offset);
            g_free(*to);
            *to = g_steal_pointer(&value);
        }
    }
    return true;
}

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

static bool is_id(const char *text)
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

static bool read_disk(Reader *r, GError **errp)
{
    VmDisk *d = g_new0(VmDisk, 1);

    g_ptr_array_add(r->c->disks, d);
    d->id = g_strdup(r->section + strlen("disk."));
    if (!is_id(d->id)) {
        bad(r, errp, "ID", d->id, "expected letters, digits, '-', '_' and '.'");
        return false;
    }
    return read_section(r, "disk.", d, errp);
}

static bool read_net(Reader *r, GError **errp)
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
        bad(r, errp, "tap, bridge, user", NULL, "exactly one of these keys is needed");
        return false;
    }
    if (!read_section(r, "net.", n, errp)) {
        return false;
    }
    if (!is_mac(n->mac)) {
        bad(r, errp, "mac", n->mac, "expected a unicast address like 52:54:00:c0:10:01; both "
                                    "hosts must use the same");
        return false;
    }
    return true;
}

static bool read_hosts(Reader *r, GError **errp)
{
    g_auto(GStrv) names = g_key_file_get_keys(r->kf, "hosts", NULL, NULL);

    r->section = "hosts";
    if (!names || g_strv_length(names) != 2) {
        bad(r, errp, "NAME = ADDRESS", NULL, "exactly two hosts are needed");
        return false;
    }
    for (int i = 0; i < 2; i++) {
        VmHost *h = &r->c->hosts[i];
        g_autofree char *text = g_key_file_get_string(r->kf, "hosts", names[i], NULL);
        h->name = g_strdup(names[i]);
        h->addresses = g_strsplit(text ? text : "", ",", -1);
        if (!is_id(h->name)) {
            bad(r, errp, h->name, NULL, "expected letters, digits, '-', '_' and '.'");
            return false;
        }
        for (char **a = h->addresses; *a; a++) {
            unsigned char bin[16];
            g_strstrip(*a);
            if (inet_pton(AF_INET, *a, bin) != 1 && inet_pton(AF_INET6, *a, bin) != 1) {
                bad(r, errp, h->name, text, "expected an IP address of the network between "
                    "the hosts, or several with commas (heartbeat links)");
                return false;
            }
        }
    }
    if (g_strv_length(r->c->hosts[0].addresses) != g_strv_length(r->c->hosts[1].addresses) ||
        !r->c->hosts[0].addresses[0]) {
        bad(r, errp, names[1], NULL, "both hosts need equally many addresses, one a link");
        return false;
    }
    if (strcmp(r->c->hosts[0].addresses[0], r->c->hosts[1].addresses[0]) == 0) {
        bad(r, errp, names[1], r->c->hosts[1].addresses[0], "both hosts have this address");
        return false;
    }
    return true;
}

static bool read_rest(Reader *r, GError **errp)
{
    VmConf *c = r->c;
    g_autoptr(GError) err = NULL;
    g_autofree char *args = g_key_file_get_string(r->kf, "vm", "args", NULL);
    g_autofree char *prefer = g_key_file_get_string(r->kf, "pair", "prefer", NULL);
    g_autofree char *base = g_key_file_get_string(r->kf, "pair", "port-base", NULL);

    r->section = "vm";
    if (!is_id(c->name) || c->name[0] == '.') {
        bad(r, errp, "name", c->name, "expected letters, digits, '-', '_' and '.'");
        return false;
    }
    if (vm_conf_memory(c) < 1024 * 1024) {
        bad(r, errp, "memory", c->memory, "expected a size like 1G, 512M or 512 (MiB)");
        return false;
    }
    if (args && *args && !g_shell_parse_argv(args, NULL, &c->args, &err)) {
        bad(r, errp, "args", args, err->message);
        return false;
    }
    c->port_base = base ? atoi(base) : 9000;
    if (prefer) {
        c->prefer = strcmp(prefer, c->hosts[1].name) == 0;
        if (!c->prefer && strcmp(prefer, c->hosts[0].name) != 0) {
            r->section = "pair";
            bad(r, errp, "prefer", prefer, "expected the name of a host in [hosts]");
            return false;
        }
    }
    if (c->nets->len > 1) {
        colo_error_set(errp, "%s: [net.%s]: this version protects one network card: keep one "
                       "[net.ID]", c->file, ((VmNet *)c->nets->pdata[1])->id);
        return false;
    }
    return true;
}

VmConf *vm_conf_load(const char *file, GError **errp)
{
    g_autoptr(VmConf) c = g_new0(VmConf, 1);
    g_autoptr(GKeyFile) kf = g_key_file_new();
    Reader r = {c, kf, NULL};

    c->file = g_strdup(file);
    c->local = -1;
    c->disks = g_ptr_array_new_with_free_func(disk_free);
    c->nets = g_ptr_array_new_with_free_func(net_free);
    c->colo = g_ptr_array_new_with_free_func(g_free);
    if (!g_key_file_load_from_file(kf, file, G_KEY_FILE_NONE, errp)) {
        g_prefix_error(errp, "%s: ", file);
        return NULL;
    }
    if (!refuse_unknown(&r, errp)) {
        return NULL;
    }
    for (const char *const *s = (const char *const[]){"vm", "pair", "run", NULL}; *s; s++) {
        r.section = *s;
        if (!read_section(&r, *s, c, errp)) {
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
                     c->run_dir, c->program};
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_free(texts[i]);
    }
    g_strfreev(c->args);
    g_ptr_array_unref(c->disks);
    g_ptr_array_unref(c->nets);
    g_ptr_array_unref(c->colo);
    g_free(c);
}

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
    expand(c, &c->key_file);
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
