/*
 * coloctl stop: the end of a side, or of the guest.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A side that does not serve is just ended. One that serves is the guest: it is asked to power
 * itself off, which ends both sides; where it does not in time, or with --now, it is cut off.
 */
#include "coloctl.h"

#include <stdio.h>
#include <string.h>

#define LOOK_US 200000
#define QUIT_US 20000000

/* Until nobody answers any more. */
static bool wait_gone(const CtlTarget *t, gint64 end)
{
    for (;;) {
        g_autoptr(GError) err = NULL;
        g_autoptr(CtlSide) s = ctl_side_look(t->qmp, &err);

        if (!s && g_error_matches(err, CTL_ERROR, CTL_ERROR_UNREACHABLE)) {
            return true;
        }
        if (g_get_monotonic_time() > end) {
            return false;
        }
        g_usleep(LOOK_US);
    }
}

static bool tell(const CtlTarget *t, const char *command, GError **errp)
{
    g_autoptr(CtlQmp) q = ctl_qmp_open(t->qmp, errp);
    g_autoptr(JsonNode) n = q ? ctl_qmp_execute(q, command, NULL, errp) : NULL;

    return n != NULL;
}

int cmd_stop(int argc, char **argv)
{
    gboolean now = FALSE;
    const GOptionEntry entries[] = {
        {"now", 0, 0, G_OPTION_ARG_NONE, &now, "do not ask the guest", NULL}, {NULL}};
    g_auto(CtlTarget) t = {0};
    g_autoptr(GError) err = NULL;
    int code =
        ctl_target_parse(&t, argc, argv,
                         "End this side. Where it serves, the guest is "
                         "shut down first, for --timeout seconds (60) at most, and the "
                         "other side ends with it.",
                         entries, false);

    if (code != CTL_OK) {
        return code;
    }
    g_autoptr(CtlSide) s = ctl_side_look(t.qmp, &err);
    if (!s) {
        return ctl_fail(err);
    }
    if (s->serves && !now && strcmp(s->run_state, "running") == 0) {
        gint64 end =
            g_get_monotonic_time() + (gint64)(t.timeout > 0 ? t.timeout : 60) * 1000000;

        if (tell(&t, "system_powerdown", NULL) && wait_gone(&t, end)) {
            puts("the guest has shut down");
            return CTL_OK;
        }
        fprintf(stderr, "coloctl: stop: the guest does not shut down: switched off\n");
    }
    /* The answer may be lost with the monitor. */
    if (!tell(&t, "quit", &err) &&
        !g_error_matches(err, CTL_ERROR, CTL_ERROR_UNREACHABLE)) {
        return ctl_fail(err);
    }
    if (!wait_gone(&t, g_get_monotonic_time() + QUIT_US)) {
        fprintf(stderr, "coloctl: stop: it was told to quit, but still answers\n");
        return CTL_FAILED;
    }
    puts("ended");
    return CTL_OK;
}
