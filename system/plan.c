/*
 * From the user's command line to rooms of ours and the child's command line.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Objects refer to chardevs and netdevs that may stand later on the line, so the line is
 * read in QEMU's own order: chardevs, netdevs, objects, then the rest as it comes.
 */
#include "system/plan.h"

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "chardev/chardev.h"
#include "migration/heartbeat-object.h"
#include "migration/migration.h"
#include "net/net.h"
#include "system/pair.h"
#include "util/error.h"
#include "util/options.h"
#include "util/tls.h"
#include "util/trace.h"

void plan_arg(Plan *plan, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    g_ptr_array_add(plan->argv, g_strdup_vprintf(fmt, ap));
    va_end(ap);
}

char *plan_find_emulator(const char *argv0, const char *wish, GError **errp)
{
    g_autofree char *base = g_path_get_basename(argv0);
    g_autofree char *name = NULL;

    if (wish) {
        name = g_strdup(wish);
    } else if (g_str_has_prefix(base, "qemu-colo-system-")) {
        name = g_strconcat("qemu-system-", base + strlen("qemu-colo-system-"), NULL);
    } else {
        struct utsname u;
        uname(&u);
        name = g_strconcat("qemu-system-", u.machine, NULL);
    }
    char *path = g_find_program_in_path(name);
    if (!path) {
        colo_error_set(errp, "emulator '%s' was not found: install it (Debian: "
                             "qemu-system) or name it with -colo emulator=PATH", name);
    }
    return path;
}

/* Ids of the chardevs that filters, comparisons and the monitor of ours use. */
static GHashTable *chardevs_of_ours(const CmdLine *cl)
{
    static const char *const keys[] = {"indev",        "outdev",     "primary_in",
                                       "secondary_in", "notify_dev"};
    GHashTable *ids = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

    for (guint i = 0; i < cl->options->len; i++) {
        const CmdOption *o = &g_array_index(cl->options, CmdOption, i);
        if (strcmp(o->name, "object") != 0 || !o->arg) {
            continue;
        }
        g_autoptr(JsonObject) obj = options_parse(o->arg, "qom-type", NULL);
        if (!obj || !net_object_wants(options_get_str(obj, "qom-type", ""))) {
            continue;
        }
        for (unsigned k = 0; k < G_N_ELEMENTS(keys); k++) {
            const char *id = options_get_str(obj, keys[k], NULL);
            if (id) {
                g_hash_table_add(ids, g_strdup(id));
            }
        }
    }
    return ids;
}

/* Whether @text names @id as a word of its own. */
static bool has_word(const char *text, const char *id)
{
    size_t len = strlen(id);

    for (const char *p = text; *id && (p = strstr(p, id)); p++) {
        bool begins = p == text || !(g_ascii_isalnum(p[-1]) || strchr("-._", p[-1]));
        bool ends = !p[len] || !(g_ascii_isalnum(p[len]) || strchr("-._", p[len]));
        if (begins && ends) {
            return true;
        }
    }
    return false;
}

/* Nothing on the command line names the socket @id: it waits for a filter that comes by
 * object-add. */
static bool is_unused(const CmdLine *cl, const char *text, const char *id)
{
    for (guint i = 0; i < cl->options->len; i++) {
        const CmdOption *o = &g_array_index(cl->options, CmdOption, i);
        bool itself = strcmp(o->name, "chardev") == 0 && o->arg && !strcmp(o->arg, text);
        if (!itself && o->arg && has_word(o->arg, id)) {
            return false;
        }
    }
    return true;
}

static bool take_chardev(Plan *plan, const CmdLine *cl, GHashTable *ours, const char *text,
                         bool *taken, GError **errp)
{
    g_autoptr(JsonObject) c = options_parse(text, "backend", errp);

    if (!c) {
        g_prefix_error(errp, "-chardev %s: ", text);
        return false;
    }
    const char *id = options_get_str(c, "id", "");
    *taken = g_hash_table_contains(ours, id) ||
             (chardev_wants(c) && is_unused(cl, text, id));
    if (!*taken) {
        return true;
    }
    if (!chardev_wants(c)) {
        colo_error_set(errp, "-chardev %s: filters and colo-compare need backend socket",
                       text);
        return false;
    }
    net_lock();
    Chardev *dev = chardev_new(c, errp);
    net_unlock();
    if (!dev) {
        g_prefix_error(errp, "-chardev id=%s: ", id);
    }
    return dev != NULL;
}

static bool take_netdev(Plan *plan, const char *text, GError **errp)
{
    g_autoptr(JsonObject) n = options_parse(text, "type", errp);

    if (!n) {
        g_prefix_error(errp, "-netdev %s: ", text);
        return false;
    }
    if (!netdev_wants(n)) {
        colo_error_set(errp, "-netdev %s: type '%s' cannot be replicated (tap, bridge, user, "
                             "socket and stream can)", text, options_get_str(n, "type", "?"));
        return false;
    }
    net_lock();
    NetDev *nd = netdev_new(n, errp);
    if (nd) {
        int fd = netdev_child_fd(nd);
        g_autofree char *opt = netdev_child_option(nd);
        g_array_append_val(plan->fds, fd);
        plan_arg(plan, "-netdev");
        plan_arg(plan, "%s", opt);
    }
    net_unlock();
    if (!nd) {
        g_prefix_error(errp, "-netdev id=%s: ", options_get_str(n, "id", "?"));
    }
    return nd != NULL;
}

static bool take_object(Plan *plan, const char *text, GError **errp)
{
    g_autoptr(JsonObject) obj = options_parse(text, "qom-type", errp);

    if (!obj) {
        g_prefix_error(errp, "-object %s: ", text);
        return false;
    }
    const char *type = options_get_str(obj, "qom-type", "");
    if (plan_is_memory(type)) {
        bool ok = plan_memory_object(plan, obj, errp);
        if (!ok) {
            g_prefix_error(errp, "-object %s,id=%s: ", type, options_get_str(obj, "id", "?"));
        }
        return ok;
    }
    bool shared = strcmp(type, "iothread") == 0; /* of use on both sides */
    if (heartbeat_object_wants(type)) {
        bool made = heartbeat_object_add(obj, errp);
        if (!made) {
            g_prefix_error(errp, "-object %s: ", type);
        }
        return made;
    }
    if (!net_object_wants(type) || shared) {
        plan_arg(plan, "-object");
        plan_arg(plan, "%s", text);
    }
    if (tls_object_wants(type)) {
        return true; /* take_tls_objects() */
    }
    if (!net_object_wants(type)) {
        return true;
    }
    net_lock();
    bool ok = net_object_add(obj, errp);
    net_unlock();
    if (!ok) {
        g_prefix_error(errp, "-object %s,id=%s: ", type, options_get_str(obj, "id", "?"));
    }
    return ok;
}

/* Credentials and secrets are of use on both sides too, and chardevs name them. */
static bool take_tls_objects(Plan *plan, const CmdLine *cl, GError **errp)
{
    for (int pass = 0; pass < 2; pass++) {
        for (guint i = 0; i < cl->options->len; i++) {
            const CmdOption *o = &g_array_index(cl->options, CmdOption, i);
            g_autoptr(JsonObject) obj =
                !strcmp(o->name, "object") && o->arg
                    ? options_parse(o->arg, "qom-type", NULL) : NULL;
            const char *type = obj ? options_get_str(obj, "qom-type", "") : "";

            if (tls_object_wants(type) && !strcmp(type, "secret") == (pass == 0) &&
                !tls_object_add(obj, errp)) {
                g_prefix_error(errp, "-object %s: ", type);
                return false;
            }
        }
    }
    return true;
}

/* RULES 5 and 7: devices whose state the device save would hide. */
static bool take_device(Plan *plan, const char *text, GString *devices, GError **errp)
{
    static const char *const refused[][2] = {
        {"virtio-balloon", "punches holes into guest RAM that cannot be tracked"},
        {"virtio-mem", "punches holes into guest RAM that cannot be tracked"},
        {"virtio-pmem", "has memory that is not replicated"},
        {"nvdimm", "has memory that is not replicated"},
        {"pc-dimm", "has memory that is not replicated"},
        {"ivshmem", "shares memory with others"},
        {"vfio-", "passes a device of this host through"},
        {"vhost-", "bypasses the emulator"},
        {"pvrdma", "bypasses the emulator"},
    };
    g_autoptr(JsonObject) d = options_parse(text, "driver", errp);

    if (!d) {
        g_prefix_error(errp, "-device %s: ", text);
        return false;
    }
    const char *driver = options_get_str(d, "driver", "");
    for (unsigned i = 0; i < G_N_ELEMENTS(refused); i++) {
        if (g_str_has_prefix(driver, refused[i][0])) {
            colo_error_set(errp, "-device %s cannot be replicated: it %s; leave it out",
                           driver, refused[i][1]);
            return false;
        }
    }
    const char *netdev = options_get_str(d, "netdev", NULL);
    const char *mac = options_get_str(d, "mac", NULL);
    unsigned m[6];
    net_lock();
    NetDev *nd = netdev ? netdev_find(netdev) : NULL;
    if (nd && mac && sscanf(mac, "%x:%x:%x:%x:%x:%x", m, m + 1, m + 2, m + 3, m + 4, m + 5) == 6) {
        uint8_t bytes[6] = {m[0], m[1], m[2], m[3], m[4], m[5]};
        netdev_set_mac(nd, bytes);
    }
    if (nd) {
        netdev_set_nic(nd, options_get_str(d, "id", NULL));
    }
    net_unlock();
    g_string_append_printf(devices, "%s%s", devices->len ? " " : "", driver);
    plan_arg(plan, "-device");
    plan_arg(plan, "%s", text);
    return true;
}

static bool host_has_kvm(void)
{
    g_autofree char *cpu = NULL;

    if (access("/dev/kvm", R_OK | W_OK) != 0 ||
        !g_file_get_contents("/proc/cpuinfo", &cpu, NULL, NULL)) {
        return false;
    }
    return strstr(cpu, " vmx") || strstr(cpu, " svm") || !strstr(cpu, "flags");
}

static void take_kvm(Plan *plan)
{
    bool kvm = host_has_kvm();

    if (!kvm) {
        colo_report("this host's processor has no usable KVM (vmx or svm): using TCG");
    }
    plan_arg(plan, "-accel");
    plan_arg(plan, kvm ? "kvm" : "tcg");
}

static bool take_machine(Plan *plan, const char *text, GError **errp)
{
    g_autoptr(JsonObject) m = options_parse(text, "type", errp);

    if (!m) {
        g_prefix_error(errp, "-machine %s: ", text);
        return false;
    }
    const char *accel = options_get_str(m, "accel", NULL);
    if (accel && g_str_has_prefix(accel, "kvm") && !host_has_kvm()) {
        colo_report("this host's processor has no usable KVM (vmx or svm): using TCG");
        json_object_set_string_member(m, "accel", "tcg");
    }
    g_autofree char *out = options_format(m, "type");
    plan_arg(plan, "-machine");
    plan_arg(plan, "%s", out);
    return true;
}

static void add_qmp(Plan *plan, const char *spec, bool pretty)
{
    QmpSpec *q = g_new0(QmpSpec, 1);

    q->spec = g_strdup(spec);
    q->pretty = pretty;
    plan->qmp_on_stdio |= g_str_has_prefix(spec, "stdio");
    g_ptr_array_add(plan->qmp, q);
}

/* -mon chardev=ID,mode=control: the chardev's options become the QMP server's. */
static bool take_mon(Plan *plan, const CmdLine *cl, const char *text, GHashTable *ours,
                     GError **errp)
{
    g_autoptr(JsonObject) m = options_parse(text, "chardev", errp);

    if (!m) {
        return false;
    }
    if (strcmp(options_get_str(m, "mode", "readline"), "control") != 0) {
        plan_arg(plan, "-mon");
        plan_arg(plan, "%s", text);
        return true;
    }
    const char *id = options_get_str(m, "chardev", "");
    for (guint i = 0; i < cl->options->len; i++) {
        const CmdOption *o = &g_array_index(cl->options, CmdOption, i);
        if (strcmp(o->name, "chardev") != 0 || !o->arg) {
            continue;
        }
        g_autoptr(JsonObject) c = options_parse(o->arg, "backend", NULL);
        if (c && strcmp(options_get_str(c, "id", ""), id) == 0) {
            bool pretty = false;
            options_get_bool(m, "pretty", &pretty, NULL);
            g_hash_table_add(ours, g_strdup(id));
            add_qmp(plan, o->arg, pretty);
            return true;
        }
    }
    colo_error_set(errp, "-mon %s: chardev \"%s\" not found", text, id);
    return false;
}

static bool refuse(const CmdOption *o, GError **errp)
{
    static const char *const refused[][2] = {
        {"daemonize", "start it in the background with your service manager"},
        {"runas", "start qemu-colo as that user"},
        {"chroot", "use a mount namespace around qemu-colo"},
        {"loadvm", "start the guest unprotected, then protect it"},
        {"snapshot", "discarding writes cannot be combined with replication"},
        {"pflash", "writable flash is not replicated; use -drive if=pflash,readonly=on"},
        {"sd", "SD cards are not replicated; use -drive"},
        {"mtdblock", "flash is not replicated; use -drive"},
        {"fsdev", "files of this host are not replicated"},
        {"virtfs", "files of this host are not replicated"},
        {"icount", "it would tie the guest's clock to a single host"},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(refused); i++) {
        if (strcmp(o->name, refused[i][0]) == 0) {
            colo_error_set(errp, "-%s cannot be combined with COLO options: %s", o->name,
                           refused[i][1]);
            return true;
        }
    }
    if ((!strcmp(o->name, "net") || !strcmp(o->name, "nic")) && strcmp(o->arg, "none")) {
        colo_error_set(errp, "-%s %s cannot be combined with COLO options: use -netdev and "
                             "-device", o->name, o->arg);
        return true;
    }
    return false;
}

static bool take_rest(Plan *plan, const CmdLine *cl, const CmdOption *o, GString *devices,
                      GError **errp)
{
    static const char *const done[] = {"chardev", "netdev", "object", "mon", "colo", "m", NULL};
    const char *n = o->name;

    if (g_strv_contains(done, n)) {
        return true;
    } else if (refuse(o, errp)) {
        return false;
    } else if (!strcmp(n, "drive")) {
        return plan_drive(plan, cl, o->arg, errp);
    } else if (!strcmp(n, "blockdev")) {
        return plan_blockdev(plan, cl, o->arg, errp);
    } else if (!strcmp(n, "cdrom") || !*n || (strlen(n) == 3 && g_str_has_prefix(n, "hd") &&
                                              n[2] >= 'a' && n[2] <= 'd')) {
        g_auto(GStrv) parts = g_strsplit(o->arg, ",", -1);
        g_autofree char *file = g_strjoinv(",,", parts);
        int index = !*n ? 0 : (!strcmp(n, "cdrom") ? 2 : n[2] - 'a');
        g_autofree char *text = g_strdup_printf("index=%d,media=%s,file=%s", index,
                                                !strcmp(n, "cdrom") ? "cdrom" : "disk", file);
        return plan_drive(plan, cl, text, errp);
    } else if (!strcmp(n, "device")) {
        return take_device(plan, o->arg, devices, errp);
    } else if (!strcmp(n, "m")) {
        /* plan_memory() */
    } else if (!strcmp(n, "numa")) {
        return plan_numa(plan, o->arg, errp);
    } else if (!strcmp(n, "mem-path")) {
        g_free(plan->mem_path);
        plan->mem_path = g_strdup(o->arg);
    } else if (!strcmp(n, "mem-prealloc")) {
        plan->mem_prealloc = true;
    } else if (!strcmp(n, "machine") || !strcmp(n, "M")) {
        return take_machine(plan, o->arg, errp);
    } else if (!strcmp(n, "enable-kvm") ||
               (!strcmp(n, "accel") && g_str_has_prefix(o->arg, "kvm"))) {
        take_kvm(plan);
    } else if (!strcmp(n, "cpu") && !strcmp(o->arg, "host") && !host_has_kvm()) {
        plan_arg(plan, "-cpu");
        plan_arg(plan, "max");
    } else if (!strcmp(n, "qmp") || !strcmp(n, "qmp-pretty")) {
        add_qmp(plan, o->arg, !strcmp(n, "qmp-pretty"));
    } else if (!strcmp(n, "incoming")) {
        g_free(plan->incoming);
        plan->incoming = g_strdup(o->arg);
    } else if (!strcmp(n, "pidfile")) {
        plan->pidfile = g_strdup(o->arg);
    } else if (!strcmp(n, "S")) {
        plan->start_paused = true;
    } else if (!strcmp(n, "no-shutdown")) {
        plan->no_shutdown = true;
    } else if (!strcmp(n, "trace") && g_str_has_prefix(o->arg, "colo:")) {
        colo_trace_enable(o->arg + strlen("colo:"));
    } else {
        plan_arg(plan, "-%s", n);
        if (o->arg) {
            plan_arg(plan, "%s", o->arg);
        }
    }
    return true;
}

static bool each(const CmdLine *cl, const char *name, guint *i, const char **arg)
{
    for (; *i < cl->options->len; ++*i) {
        const CmdOption *o = &g_array_index(cl->options, CmdOption, *i);
        if (strcmp(o->name, name) == 0) {
            *arg = o->arg;
            ++*i;
            return true;
        }
    }
    return false;
}

static bool take_colo(Plan *plan, const CmdLine *cl, GError **errp)
{
    static const char *const own[] = {"emulator", "verify-ram", "die-at", "peer-timeout",
                                      "progress-timeout", "fail-load",
                                      "checkpoint-events", "nic-buffer", "ignore-wishes",
                                      "compare-always", "metrics", "mode",
                                      "buffered-interval", "tracker", "other-ram",
                                      "state-file", NULL};
    g_autoptr(GPtrArray) keys = g_ptr_array_new();
    const char *arg;
    uint64_t buffer = 0;
    bool always = false;

    for (unsigned i = 0; own[i]; i++) {
        g_ptr_array_add(keys, (gpointer)own[i]);
    }
    for (unsigned i = 0; pair_keys[i]; i++) {
        g_ptr_array_add(keys, (gpointer)pair_keys[i]);
    }
    for (unsigned i = 0; pair_setting_keys[i]; i++) {
        g_ptr_array_add(keys, (gpointer)pair_setting_keys[i]);
    }
    for (unsigned i = 0; i == 0 || arbiter_keys[i - 1]; i++) {
        g_ptr_array_add(keys, (gpointer)arbiter_keys[i]);
    }
    const char *const *known = (const char *const *)keys->pdata;

    plan->colo = json_object_new();
    for (guint i = 0; each(cl, "colo", &i, &arg);) {
        g_autoptr(JsonObject) more = options_parse(arg, NULL, errp);
        if (!more || !options_check_known(more, "-colo", known, errp)) {
            return false;
        }
        JsonObjectIter it;
        const char *key;
        JsonNode *value;
        json_object_iter_init(&it, more);
        while (json_object_iter_next(&it, &key, &value)) {
            json_object_set_member(plan->colo, key, json_node_copy(value));
        }
    }
    if (!options_get_size(plan->colo, "nic-buffer", 1, &buffer, errp) ||
        !options_get_bool(plan->colo, "compare-always", &always, errp)) {
        g_prefix_error(errp, "-colo: ");
        return false;
    }
    buffer = MIN(buffer, 1u << 30);
    if (buffer) {
        net_set_guest_buffer(buffer);
    }
    net_set_compare_always(always);
    return true;
}

static void make_identity(Plan *plan, const CmdLine *cl, const char *devices)
{
    g_autofree char *cpu = cmdline_find(cl, "cpu", "model", "model");
    const char *arg, *smp = "1", *cpu_text = "";

    for (guint i = 0; each(cl, "smp", &i, &arg);) {
        smp = arg;
    }
    for (guint i = 0; each(cl, "cpu", &i, &arg);) {
        cpu_text = arg;
    }
    plan->identity = json_object_new();
    json_object_set_int_member(plan->identity, "ram", plan->ram_size);
    json_object_set_string_member(plan->identity, "numa", plan->numa->str);
    json_object_set_string_member(plan->identity, "cpu", cpu_text);
    json_object_set_string_member(plan->identity, "smp", smp);
    json_object_set_string_member(plan->identity, "devices", devices);
}

static void free_qmp_spec(gpointer p)
{
    QmpSpec *q = p;

    g_free(q->spec);
    g_free(q);
}

bool plan_make(Plan *plan, const CmdLine *cl, const char *argv0, GError **errp)
{
    const char *arg;

    *plan = (Plan){0};
    plan->argv = g_ptr_array_new_with_free_func(g_free);
    plan->fds = g_array_new(FALSE, FALSE, sizeof(int));
    plan->qmp = g_ptr_array_new_with_free_func(free_qmp_spec);
    if (!take_colo(plan, cl, errp) || !plan_memory(plan, cl, errp)) {
        return false;
    }
    plan->emulator =
        plan_find_emulator(argv0, options_get_str(plan->colo, "emulator", NULL), errp);
    if (!plan->emulator) {
        return false;
    }
    g_autoptr(GHashTable) ours = chardevs_of_ours(cl);
    g_autoptr(GHashTable) monitors =
        g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    for (guint i = 0; each(cl, "mon", &i, &arg);) {
        if (!take_mon(plan, cl, arg, monitors, errp)) {
            return false;
        }
    }
    if (!take_tls_objects(plan, cl, errp)) {
        return false;
    }
    for (guint i = 0; each(cl, "chardev", &i, &arg);) {
        bool taken;
        g_autofree char *id = NULL;
        g_autoptr(JsonObject) c = options_parse(arg, "backend", NULL);
        if (c && g_hash_table_contains(monitors, options_get_str(c, "id", ""))) {
            continue;
        }
        if (!take_chardev(plan, cl, ours, arg, &taken, errp)) {
            return false;
        }
        if (!taken) {
            plan_arg(plan, "-chardev");
            plan_arg(plan, "%s", arg);
        }
    }
    for (guint i = 0; each(cl, "netdev", &i, &arg);) {
        if (!take_netdev(plan, arg, errp)) {
            return false;
        }
    }
    /* An iothread may be named by a colo-compare that stands before it. */
    for (int pass = 0; pass < 2; pass++) {
        for (guint i = 0; each(cl, "object", &i, &arg);) {
            g_autoptr(JsonObject) o = options_parse(arg, "qom-type", NULL);
            bool iothread = o && !strcmp(options_get_str(o, "qom-type", ""), "iothread");
            if (iothread == (pass == 0) && !take_object(plan, arg, errp)) {
                return false;
            }
        }
    }
    g_autoptr(GString) devices = g_string_new(NULL);
    for (guint i = 0; i < cl->options->len; i++) {
        if (!take_rest(plan, cl, &g_array_index(cl->options, CmdOption, i), devices, errp)) {
            return false;
        }
    }
    make_identity(plan, cl, devices->str);
    plan->machine = cmdline_find(cl, "machine", "type", "type");
    if (!plan->machine) {
        plan->machine = cmdline_find(cl, "M", "type", "type");
    }
    plan->vm_name = cmdline_find(cl, "name", "guest", "guest");
    if (!plan->vm_name) {
        plan->vm_name = cmdline_find(cl, "uuid", "uuid", "uuid");
    }
    return true;
}

void plan_clear(Plan *plan)
{
    g_clear_pointer(&plan->argv, g_ptr_array_unref);
    g_clear_pointer(&plan->fds, g_array_unref);
    g_clear_pointer(&plan->qmp, g_ptr_array_unref);
    g_clear_pointer(&plan->memory, g_array_unref);
    g_clear_pointer(&plan->memory_objects, g_ptr_array_unref);
    g_clear_pointer(&plan->ram_object, json_object_unref);
    if (plan->numa) {
        g_string_free(g_steal_pointer(&plan->numa), TRUE);
    }
    g_clear_pointer(&plan->mem_path, g_free);
    g_clear_pointer(&plan->vm_name, g_free);
    g_clear_pointer(&plan->machine, g_free);
    g_clear_pointer(&plan->colo, json_object_unref);
    g_clear_pointer(&plan->identity, json_object_unref);
    g_clear_pointer(&plan->ram_object, json_object_unref);
    g_free(plan->incoming);
    g_free(plan->pidfile);
    g_free(plan->emulator);
}
