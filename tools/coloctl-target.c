/*
 * coloctl: which VM a command line means, and the options that all subcommands have.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "coloctl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CONF_DIR "/etc/qemu-colo"
#define RUN_DIR "/run/qemu-colo"

static GOptionContext *make_context(CtlTarget *t, const char *command, const char *summary,
                                    const GOptionEntry *entries, bool wants_conf)
{
    GOptionEntry common[] = {
        {"qmp", 0, 0, G_OPTION_ARG_FILENAME, &t->qmp, "monitor of a running qemu-colo",
         "SOCKET"},
        {"host", 0, 0, G_OPTION_ARG_STRING, &t->host,
         "which host of vm.conf this is (default: by its addresses)", "NAME"},
        {"timeout", 0, 0, G_OPTION_ARG_INT, &t->timeout, "give up after so many seconds",
         "S"},
        {NULL}};
    g_autofree char *usage = g_strdup_printf("(vm.conf | NAME%s)",
                                             wants_conf ? "" : " | --qmp SOCKET");
    GOptionContext *ctx = g_option_context_new(usage);

    g_set_prgname(command);
    g_option_context_set_summary(ctx, summary);
    g_option_context_add_main_entries(ctx, wants_conf ? common + 1 : common, NULL);
    if (entries) {
        g_option_context_add_main_entries(ctx, entries, NULL);
    }
    return ctx;
}

static int load(CtlTarget *t, const char *file)
{
    g_autoptr(GError) err = NULL;

    t->file = g_strdup(file);
    t->conf = vm_conf_load(file, &err);
    if (!t->conf || !vm_conf_choose_host(t->conf, t->host, &err)) {
        return ctl_fail(err);
    }
    t->qmp = vm_conf_socket(t->conf, "ctl.sock");
    return CTL_OK;
}

/* A path has a slash or ends in .conf; all else is a VM's name. */
static int find(CtlTarget *t, const char *word, bool wants_conf)
{
    bool is_file = strchr(word, '/') || g_str_has_suffix(word, ".conf");
    g_autofree char *file =
        is_file ? g_strdup(word) : g_strdup_printf(CONF_DIR "/%s.conf", word);

    if (is_file || access(file, R_OK) == 0) {
        return load(t, file);
    }
    if (wants_conf) {
        return ctl_usage("%s: no such VM: there is no %s; give the path of its vm.conf", word,
                         file);
    }
    t->qmp = g_strdup_printf(RUN_DIR "/%s/ctl.sock", word);
    return CTL_OK;
}

int ctl_target_parse(CtlTarget *t, int argc, char **argv, const char *summary,
                     const GOptionEntry *entries, bool wants_conf)
{
    g_autofree char *name = g_strdup_printf("coloctl %s", argv[0]);
    g_autoptr(GOptionContext) ctx = make_context(t, name, summary, entries, wants_conf);
    g_autoptr(GError) err = NULL;
    g_auto(GStrv) words = g_new0(char *, argc + 1);

    for (int i = 0; i < argc; i++) {
        words[i] = g_strdup(argv[i]);
    }
    if (!g_option_context_parse_strv(ctx, &words, &err)) {
        return ctl_usage("%s (see coloctl %s --help)", err->message, argv[0]);
    }
    if (t->timeout < 0) {
        return ctl_usage("--timeout %d: expected a number of seconds", t->timeout);
    }
    int n = g_strv_length(words);
    if (t->qmp) {
        return n == 1 ? CTL_OK : ctl_usage("'%s' and --qmp both name a VM: give one", words[1]);
    }
    if (n != 2) {
        return ctl_usage("%s: give %s%s", argv[0], n < 2 ? "" : "only ",
                         wants_conf ? "a vm.conf or a VM's name"
                                    : "a vm.conf, a VM's name or --qmp SOCKET");
    }
    return find(t, words[1], wants_conf);
}

void ctl_target_clear(CtlTarget *t)
{
    g_free(t->qmp);
    g_free(t->file);
    g_free(t->host);
    vm_conf_free(t->conf);
}
