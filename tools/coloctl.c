/*
 * coloctl: the operator's tool. main() and what all subcommands say on failure.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "coloctl.h"

#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

G_DEFINE_QUARK(ctl_error_quark, ctl_error)

typedef struct Command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *what;
} Command;

static const Command commands[] = {
    {"run", cmd_run, "run this host's side, and look after it"},
    {"status", cmd_status, "how it is: state, figures, what to do (--json)"},
    {"top", cmd_top, "watch it as it goes"},
    {"protect", cmd_protect, "begin protection now, with the way shown"},
    {"checkpoint", cmd_checkpoint, "make a checkpoint now"},
    {"failover", cmd_failover, "let this side serve; --planned: let the other"},
    {"unprotect", cmd_unprotect, "end protection, the primary goes on alone"},
    {"resync", cmd_resync, "copy all of the disks again, then protect"},
    {"check", cmd_check, "examine both hosts, with a remedy for each finding"},
    {"bundle", cmd_bundle, "write an archive for whoever helps, without secrets"},
    {"stop", cmd_stop, "end this side; where it serves, shut the guest down"},
};

void ctl_set_error(GError **errp, CtlErrorCode code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_set_error_literal(errp, CTL_ERROR, code, text);
}

int ctl_fail(const GError *err)
{
    g_autofree char *clean = ctl_clean(err ? err->message : "out of luck", 4000);

    fprintf(stderr, "coloctl: %s\n", clean);
    return g_error_matches(err, CTL_ERROR, CTL_ERROR_UNREACHABLE) ? CTL_UNREACHABLE
                                                                  : CTL_FAILED;
}

int ctl_usage(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    fprintf(stderr, "coloctl: %s\n", text);
    return CTL_USAGE;
}

static void help(void)
{
    printf("coloctl: look after a protected virtual machine\n\n"
           "coloctl COMMAND (vm.conf | NAME | --qmp SOCKET) [OPTION...]\n\n");
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        printf("  %-11s %s\n", commands[i].name, commands[i].what);
    }
    printf("\nEach has --help. Exit codes: 0 done, 1 failed, 2 wrong use; status: 3 not "
           "protected,\n4 lost or fenced; 5 nobody there. See coloctl(1), vm.conf(5).\n");
}

int main(int argc, char **argv)
{
    const char *names[G_N_ELEMENTS(commands) + 1] = {NULL};

    setlocale(LC_ALL, "");
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        help();
        return CTL_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        help();
        return CTL_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("coloctl %s\n", COLO_VERSION);
        return CTL_OK;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        names[i] = commands[i].name;
        if (strcmp(argv[1], commands[i].name) == 0) {
            int code = commands[i].run(argc - 1, argv + 1);
            if (fflush(stdout) != 0 || ferror(stdout)) {
                fprintf(stderr, "coloctl: standard output cannot be written\n");
                return code ? code : CTL_FAILED;
            }
            return code;
        }
    }
    const char *near = ctl_nearest(argv[1], names);
    return ctl_usage("'%s' is no command%s%s%s (see coloctl --help)", argv[1],
                     near ? ", did you mean '" : "", near ? near : "", near ? "'?" : "");
}
