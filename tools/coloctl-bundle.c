/*
 * coloctl bundle: what somebody who helps wants to see, and no secret.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A tar.gz of small text files. Nothing is copied that was not chosen here: of the
 * configuration the values of keys that are known to be harmless, of logs the end, of the
 * monitor the answers to queries. Contents of key files never; of what may carry a password
 * (emulator arguments, options of fence agents, URLs with a user) the value is blanked.
 */
#include "coloctl.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "coloctl-run.h"
#include "util/error.h"

#define LOG_TAIL (256 * 1024)
#define BLANK "(left out)"

typedef struct Bundle {
    GString *tar;
    const char *top; /* directory in the archive */
} Bundle;

/* One file of an archive in the form of POSIX 1003.1-1988: 100 bytes for @name, 155 for the
 * directory. */
static void add_file(Bundle *b, const char *name, const char *text, gssize len)
{
    char head[512] = {0};
    unsigned sum = 0;
    size_t n = len < 0 ? strlen(text) : (size_t)len;

    g_strlcpy(head, name, 100);
    g_strlcpy(head + 345, b->top, 155);
    g_snprintf(head + 100, 8, "%07o", 0600);
    g_snprintf(head + 108, 8, "%07o", 0);
    g_snprintf(head + 116, 8, "%07o", 0);
    g_snprintf(head + 124, 12, "%011zo", n);
    g_snprintf(head + 136, 12, "%011" PRIo64, g_get_real_time() / 1000000);
    memset(head + 148, ' ', 8);
    head[156] = '0';
    memcpy(head + 257, "ustar\00000", 8);
    for (int i = 0; i < 512; i++) {
        sum += (unsigned char)head[i];
    }
    g_snprintf(head + 148, 8, "%06o", sum);
    g_string_append_len(b->tar, head, 512);
    g_string_append_len(b->tar, text, n);
    for (size_t pad = (512 - n % 512) % 512; pad; pad--) {
        g_string_append_c(b->tar, 0);
    }
}

static char *read_text(const char *path, size_t max)
{
    g_autoptr(GString) out = g_string_new(NULL);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    char buf[4096];
    ssize_t n;

    while (fd >= 0 && out->len < max && (n = read(fd, buf, sizeof(buf))) > 0) {
        g_string_append_len(out, buf, n);
    }
    if (fd < 0) {
        g_string_printf(out, "%s: %s\n", path, g_strerror(errno));
    } else {
        close(fd);
    }
    return g_strdup(out->str);
}

static char *read_end(const char *path)
{
    g_autofree char *text = NULL;
    gsize len;

    if (!g_file_get_contents(path, &text, &len, NULL)) {
        return g_strdup("");
    }
    return g_strdup(text + (len > LOG_TAIL ? len - LOG_TAIL : 0));
}

/* --- Secrets --- */

static bool is_harmless(const char *section, const char *key)
{
    static const char *const blanked[] = {"args", "colo-options", "fence-options", "user", NULL};

    /* What the reader would refuse may be anything, a password with a typing error too. */
    return !g_strv_contains(blanked, key) &&
           (strcmp(section, "hosts") == 0 || vm_conf_knows(section, key));
}

/* "//user:password@host" loses its user; a password may have a slash or an @ in it. */
static char *without_user(const char *text)
{
    g_autoptr(GRegex) re = g_regex_new("//[^\\s;\"]*@", 0, 0, NULL);

    return g_regex_replace_literal(re, text, -1, 0, "//" BLANK "@", 0, NULL);
}

/* vm.conf as its reader sees it: comments, which may hold anything, are not in it. */
static char *config_text(const char *file)
{
    g_autoptr(GKeyFile) kf = g_key_file_new();
    g_autoptr(GError) err = NULL;
    GString *out = g_string_new(NULL);

    if (!g_key_file_load_from_file(kf, file, G_KEY_FILE_NONE, &err)) {
        g_string_append(out, "vm.conf could not be read\n");
        return g_string_free(out, FALSE);
    }
    g_auto(GStrv) groups = g_key_file_get_groups(kf, NULL);
    for (char **g = groups; *g; g++) {
        g_auto(GStrv) names = g_key_file_get_keys(kf, *g, NULL, NULL);
        g_string_append_printf(out, "[%s]\n", *g);
        for (char **k = names; k && *k; k++) {
            g_autofree char *value = g_key_file_get_value(kf, *g, *k, NULL);
            g_autofree char *shown = without_user(value ? value : "");
            g_string_append_printf(out, "%s = %s\n", *k, is_harmless(*g, *k) ? shown : BLANK);
        }
        g_string_append_c(out, '\n');
    }
    return g_string_free(out, FALSE);
}

static void cut_out(char **text, const char *word)
{
    if (strlen(word) >= 4) {
        g_auto(GStrv) parts = g_strsplit(*text, word, -1);
        g_free(*text);
        *text = g_strjoinv(BLANK, parts);
    }
}

/* Lines of a log; command lines have arguments of the user in them, messages of the emulator
 * may quote them, or one value of them. What the user's own arguments say is cut out wherever
 * it stands. */
static char *log_text(const char *path, char **args)
{
    g_autofree char *text = read_end(path);
    char *clean = without_user(text);

    for (char **a = args; a && *a; a++) {
        if ((*a)[0] != '-') {
            cut_out(&clean, *a);
        }
    }
    for (char **a = args; a && *a; a++) {
        g_auto(GStrv) pairs = g_strsplit(*a, ",", -1);
        for (char **p = pairs; *p; p++) {
            const char *value = strchr(*p, '=');
            if (value) {
                cut_out(&clean, value + 1);
            }
        }
    }
    return clean;
}

/* --- Contents --- */

static void add_monitor(Bundle *b, const CtlTarget *t)
{
    static const char *const queries[] = {
        "query-colo-status", "query-colo-proxy", "query-migrate", "query-status", "query-version",
        "query-migrate-parameters", "query-migrate-capabilities", "query-block-jobs",
        "query-named-block-nodes", "query-block-exports", "query-chardev", "query-yank",
        "query-cpus-fast", "query-memory-size-summary", NULL};
    g_autoptr(GError) err = NULL;
    g_autoptr(CtlQmp) q = ctl_qmp_open(t->qmp, &err);

    if (!q) {
        add_file(b, "monitor.txt", err->message, -1);
        return;
    }
    for (const char *const *c = queries; *c; c++) {
        g_autoptr(GError) why = NULL;
        g_autofree char *name = g_strdup_printf("qmp/%s.json", *c);
        g_autoptr(JsonNode) n = ctl_qmp_execute(q, *c, NULL, &why);
        g_autofree char *text = n ? ctl_json(n, true) : g_strdup(why->message);
        g_autofree char *clean = without_user(text);
        add_file(b, name, clean, -1);
        if (g_error_matches(why, CTL_ERROR, CTL_ERROR_UNREACHABLE)) {
            return;
        }
    }
}

static void add_host(Bundle *b)
{
    static const char *const files[] = {
        "/proc/version", "/proc/cpuinfo", "/proc/meminfo", "/proc/loadavg", "/proc/net/dev",
        "/proc/sys/kernel/yama/ptrace_scope", "/proc/sys/vm/unprivileged_userfaultfd",
        "/proc/sys/vm/overcommit_memory", "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/devices/system/clocksource/clocksource0/current_clocksource",
        "/etc/os-release", NULL};
    struct utsname u;

    for (const char *const *f = files; *f; f++) {
        g_autofree char *text = read_text(*f, 64 * 1024);
        g_autofree char *name = g_strdelimit(g_strdup(*f + 1), "/", '-');
        g_autofree char *path = g_strdup_printf("host/%s", name);
        add_file(b, path, text, -1);
    }
    if (uname(&u) == 0) {
        g_autofree char *text = g_strdup_printf("coloctl %s\n%s %s %s\n", COLO_VERSION, u.sysname,
                                                u.release, u.machine);
        add_file(b, "versions.txt", text, -1);
    }
}

static void add_output(Bundle *b, const char *name, const char *const *argv)
{
    g_autofree char *out = NULL, *said = NULL;
    g_autoptr(GError) err = NULL;

    if (!g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, &out, &said,
                      NULL, &err)) {
        add_file(b, name, err->message, -1);
        return;
    }
    g_autofree char *text = g_strconcat(out, said, NULL);
    g_autofree char *clean = without_user(text); /* of an image's backing file, say */
    add_file(b, name, clean, -1);
}

static void add_vm(Bundle *b, const CtlTarget *t)
{
    g_autofree char *dir = g_path_get_dirname(t->qmp);
    g_autofree char *state = g_build_filename(dir, "state", NULL);
    g_autofree char *said = read_text(state, 4096);

    add_file(b, "run-state.txt", said, -1);
    if (!t->conf) {
        return;
    }
    g_autofree char *conf = config_text(t->file);
    add_file(b, "vm.conf", conf, -1);
    for (const char *const *n = (const char *const[]){"role", "log", "log.1", NULL}; *n; n++) {
        g_autofree char *path = g_build_filename(t->conf->state_dir, *n, NULL);
        g_autofree char *text = log_text(path, t->conf->args);
        g_autofree char *name = g_strdup_printf("state/%s", *n);
        add_file(b, name, text, -1);
    }
    for (guint i = 0; i < t->conf->disks->len; i++) {
        const VmDisk *d = t->conf->disks->pdata[i];
        g_autofree char *name = g_strdup_printf("disks/%s.txt", d->id);
        const char *argv[] = {"qemu-img", "info", "-U", d->image, NULL};
        add_output(b, name, argv);
    }
    const char *emulator = t->conf->emulator ? t->conf->emulator : "qemu-system-x86_64";
    add_output(b, "emulator.txt", (const char *[]){emulator, "-version", NULL});
}

static bool write_gz(const char *path, const GString *tar, GError **errp)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (fd < 0) {
        colo_error_set_errno(errp, errno, "%s", path);
        return false;
    }
    FILE *f = fdopen(fd, "w");
    g_autoptr(GZlibCompressor) gz = g_zlib_compressor_new(G_ZLIB_COMPRESSOR_FORMAT_GZIP, 6);
    g_autofree char *buf = g_malloc(65536);
    gsize at = 0;
    GConverterResult r;
    do {
        gsize taken = 0, made = 0;
        r = g_converter_convert(G_CONVERTER(gz), tar->str + at, tar->len - at, buf, 65536,
                                G_CONVERTER_INPUT_AT_END, &taken, &made, errp);
        at += taken;
        if (r != G_CONVERTER_ERROR && fwrite(buf, 1, made, f) != made) {
            colo_error_set_errno(errp, errno, "%s", path);
            r = G_CONVERTER_ERROR;
        }
    } while (r == G_CONVERTER_CONVERTED);
    if (fclose(f) != 0 && r != G_CONVERTER_ERROR) {
        colo_error_set_errno(errp, errno, "%s", path);
        r = G_CONVERTER_ERROR;
    }
    if (r == G_CONVERTER_ERROR) {
        unlink(path);
    }
    return r != G_CONVERTER_ERROR;
}

int cmd_bundle(int argc, char **argv)
{
    g_autofree char *output = NULL;
    const GOptionEntry entries[] = {
        {"output", 'o', 0, G_OPTION_ARG_FILENAME, &output,
         "file to write (coloctl-NAME-TIME.tar.gz)", "FILE"}, {NULL}};
    g_auto(CtlTarget) t = {0};
    g_autoptr(GError) err = NULL;
    g_autoptr(GString) tar = g_string_new(NULL);
    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    int code = ctl_target_parse(&t, argc, argv, "Write an archive for whoever helps: state, "
                                "figures, logs, versions; no secrets.", entries, false);

    if (code != CTL_OK) {
        return code;
    }
    g_autofree char *time = g_date_time_format(now, "%Y%m%d-%H%M%S");
    g_autofree char *top = g_strdup_printf("coloctl-%s-%s", t.conf ? t.conf->name : "vm", time);
    Bundle b = {tar, top};
    add_host(&b);
    add_vm(&b, &t);
    add_monitor(&b, &t);
    for (int i = 0; i < 1024; i++) {
        g_string_append_c(tar, 0);
    }
    if (!output) {
        output = g_strdup_printf("%s.tar.gz", top);
    }
    if (!write_gz(output, tar, &err)) {
        return ctl_fail(err);
    }
    printf("%s: look through it before you send it: names and addresses are in it\n", output);
    return CTL_OK;
}
