/*
 * coloctl checkpoint, failover, unprotect, protect, resync: one word of the operator, and what
 * comes of it.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A command that was accepted is not one that has worked: each of these waits until the side
 * says that it is where it should be, and says why not where it is not. The monitor is left
 * between two looks, so that others can use it.
 */
#include "coloctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define LOOK_US 100000
#define PATIENCE_US 1000000 /* before the reason of a wait is told: a moment is none */

static gint64 deadline(const CtlTarget *t, int dflt)
{
    return g_get_monotonic_time() + (gint64)(t->timeout > 0 ? t->timeout : dflt) * 1000000;
}

static bool is(const CtlSide *s, const char *state)
{
    return strcmp(s->state, state) == 0;
}

static int refuse(const char *fmt, ...) G_GNUC_PRINTF(1, 2);
static int refuse(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_autofree char *clean = ctl_clean(text, 2000);
    fprintf(stderr, "coloctl: %s\n", clean);
    return CTL_FAILED;
}

static const char *why(const CtlSide *s)
{
    const char *pair = ctl_str(ctl_object(s->colo, "pair"), "error", "");
    const char *arbiter = ctl_str(ctl_object(s->colo, "arbiter"), "error", "");

    return *arbiter ? arbiter : *pair ? pair : ctl_str(s->colo, "error", NULL);
}

static const char *pair_state(const CtlSide *s)
{
    return ctl_str(ctl_object(s->colo, "pair"), "state", "off");
}

/* One command on a connection of its own. */
static bool tell(const CtlTarget *t, const char *command, JsonObject *args, GError **errp)
{
    g_autoptr(CtlQmp) q = ctl_qmp_open(t->qmp, errp);
    g_autoptr(JsonNode) n = q ? ctl_qmp_execute(q, command, args, errp) : NULL;

    return n != NULL;
}

/* The first look; all others follow from it. */
static CtlSide *begin(CtlTarget *t, int argc, char **argv, const char *summary,
                      const GOptionEntry *entries, int *code)
{
    g_autoptr(GError) err = NULL;
    CtlSide *s = NULL;

    *code = ctl_target_parse(t, argc, argv, summary, entries, false);
    if (*code == CTL_OK && !(s = ctl_side_look(t->qmp, &err))) {
        *code = ctl_fail(err);
    }
    return s;
}

int cmd_checkpoint(int argc, char **argv)
{
    g_auto(CtlTarget) t = {0};
    g_autoptr(GError) err = NULL;
    int code;
    g_autoptr(CtlSide) s = begin(&t, argc, argv, "Make a checkpoint now, and wait for it.", NULL,
                                 &code);

    if (!s) {
        return code;
    }
    if (!is(s, "protected") || strcmp(s->role, "primary") != 0) {
        return refuse("checkpoint: this side is %s%s%s; checkpoints are made by the primary of "
                      "a protected pair", s->state, is(s, "protected") ? ", " : "",
                      is(s, "protected") ? s->role : "");
    }
    gint64 end = deadline(&t, 30);
    if (!tell(&t, "xen-colo-do-checkpoint", NULL, &err)) {
        return ctl_fail(err);
    }
    while (g_get_monotonic_time() < end) {
        g_autoptr(CtlSide) now = ctl_side_look(t.qmp, &err);
        if (!now) {
            return ctl_fail(err);
        }
        if (!is(now, "protected")) {
            return refuse("checkpoint: protection ended: %s", why(now) ? why(now) : now->state);
        }
        if (now->checkpoints > s->checkpoints) {
            g_autofree char *pause =
                ctl_us(ctl_int(ctl_object(now->colo, "pause-us"), "last", 0));
            printf("checkpoint %" PRId64 ", the guest stood still for %s\n", now->epoch, pause);
            return CTL_OK;
        }
        g_usleep(LOOK_US / 5);
    }
    return refuse("checkpoint: it was asked for, but is not there in time");
}

/* Until this side serves alone. */
static int wait_alone(const CtlTarget *t, const char *what, const CtlSide *before, gint64 end)
{
    g_autofree char *said = g_strdup(why(before));
    gint64 patience = g_get_monotonic_time() + PATIENCE_US;
    g_autoptr(GError) err = NULL;

    for (;;) {
        g_autoptr(CtlSide) s = ctl_side_look(t->qmp, &err);
        if (!s) {
            return ctl_fail(err);
        }
        if (is(s, "fenced")) {
            return refuse("%s: the other side serves: this one stays silent", what);
        }
        /* With an engine, protection may be on its way back already. */
        if (s->serves && !is(s, "protected")) {
            g_autofree char *head = ctl_side_headline(s);
            puts(head);
            return CTL_OK;
        }
        /* That it was asked for is no news to who asked. */
        if (is(s, "lost") && why(s) && !g_str_has_suffix(why(s), "on request") &&
            g_strcmp0(said, why(s)) != 0 && g_get_monotonic_time() > patience) {
            g_free(said);
            said = g_strdup(why(s));
            refuse("%s: not yet: %s", what, said);
        }
        if (g_get_monotonic_time() > end) {
            return refuse("%s: the word was taken, but this side is still %s%s", what, s->state,
                          is(s, "lost") ? ": the arbiter has not answered (see coloctl status)"
                                        : "");
        }
        g_usleep(LOOK_US);
    }
}

static int planned(const CtlTarget *t, const CtlSide *s)
{
    g_autoptr(GError) err = NULL;
    gint64 end = deadline(t, 60);

    if (!is(s, "protected") || strcmp(s->role, "primary") != 0) {
        return refuse("failover --planned: to be given on the primary of a protected pair; this "
                      "side is %s%s%s", s->state, is(s, "protected") ? ", " : "",
                      is(s, "protected") ? s->role : "");
    }
    /* It answers when it is done, or ends. */
    if (!tell(t, "x-colo-switchover", NULL, &err) &&
        !g_error_matches(err, CTL_ERROR, CTL_ERROR_UNREACHABLE)) {
        if (g_error_matches(err, CTL_ERROR, CTL_ERROR_NO_COMMAND)) {
            return refuse("failover --planned: this qemu-colo does not know x-colo-switchover: "
                          "it is too old, or was started without -colo pair=on");
        }
        return ctl_fail(err);
    }
    /* The old primary ends, or is silent, or (under coloctl run) is back as a secondary. */
    while (g_get_monotonic_time() < end) {
        g_autoptr(GError) gone = NULL;
        g_autoptr(CtlSide) now = ctl_side_look(t->qmp, &gone);
        if (!now || is(now, "fenced") || strcmp(now->role, "secondary") == 0) {
            puts("the other host serves now");
            return CTL_OK;
        }
        if (is(now, "alone") && now->serves) {
            return refuse("failover --planned: the secondary did not take over, this side goes "
                          "on alone%s%s", why(now) ? ": " : "", why(now) ? why(now) : "");
        }
        g_usleep(LOOK_US);
    }
    return refuse("failover --planned: it was begun, but this side still serves");
}

int cmd_failover(int argc, char **argv)
{
    gboolean is_planned = FALSE, fenced = FALSE;
    const GOptionEntry entries[] = {
        {"planned", 0, 0, G_OPTION_ARG_NONE, &is_planned,
         "on the primary: hand over to the secondary, nothing is lost", NULL},
        {"fenced", 0, 0, G_OPTION_ARG_NONE, &fenced,
         "the other host is known to be off: no arbiter is asked", NULL},
        {NULL}};
    g_auto(CtlTarget) t = {0};
    g_autoptr(GError) err = NULL;
    g_autoptr(JsonObject) args = json_object_new();
    int code;
    g_autoptr(CtlSide) s = begin(&t, argc, argv, "Let this side serve. The other one must be "
                                 "dead, or be told to end.", entries, &code);

    if (!s) {
        return code;
    }
    if (is_planned && fenced) {
        return ctl_usage("failover: --planned needs both hosts, --fenced has only one");
    }
    if (is_planned) {
        return planned(&t, s);
    }
    if (is(s, "alone") && s->serves) {
        puts("this side serves already");
        return CTL_OK;
    }
    if (s->serves) {
        return refuse("failover: this side serves already (%s); to end protection: coloctl "
                      "unprotect, to change sides: coloctl failover --planned", s->state);
    }
    gint64 end = deadline(&t, 60);
    if (fenced) {
        json_object_set_boolean_member(args, "fenced", TRUE);
    }
    if (strcmp(s->role, "secondary") == 0 && strcmp(pair_state(s), "off") == 0) {
        tell(&t, "nbd-server-stop", NULL, NULL); /* as the manual has it */
    }
    if (!tell(&t, "x-colo-lost-heartbeat", args, &err)) {
        return ctl_fail(err);
    }
    return wait_alone(&t, "failover", s, end);
}

int cmd_unprotect(int argc, char **argv)
{
    g_auto(CtlTarget) t = {0};
    g_autoptr(GError) err = NULL;
    int code;
    g_autoptr(CtlSide) s = begin(&t, argc, argv, "End protection: the primary goes on alone "
                                 "until coloctl protect.", NULL, &code);

    if (!s) {
        return code;
    }
    if (is(s, "alone")) {
        puts("this side is not protected");
        return CTL_OK;
    }
    if (strcmp(s->role, "primary") != 0 || !(is(s, "protected") || is(s, "lost"))) {
        return refuse("unprotect: to be given on the primary of a protected pair; this side is "
                      "%s, %s", s->state, s->role);
    }
    gint64 end = deadline(&t, 60);
    g_autoptr(JsonObject) off = json_object_new();
    json_object_set_boolean_member(off, "enable", FALSE);
    /* Or the engine would protect it again at once. */
    if (strcmp(pair_state(s), "off") != 0 && !tell(&t, "x-colo-protect", off, &err)) {
        return ctl_fail(err);
    }
    if (!tell(&t, "x-colo-lost-heartbeat", NULL, &err)) {
        return ctl_fail(err);
    }
    return wait_alone(&t, "unprotect", s, end);
}

/* What there is to show of the way to protection. */
static void show_way(const CtlSide *s, CtlProgress *p)
{
    JsonObject *pair = ctl_object(s->colo, "pair"), *ram = ctl_object(s->migrate, "ram");
    bool disks = strcmp(pair_state(s), "resync") == 0;
    const char *label = disks ? "disks" : "memory";

    if (p->label != label) {
        ctl_progress_end(p);
        *p = (CtlProgress){.label = label, .last = -1};
    }
    if (disks && ctl_int(pair, "resync-total", 0) > 0) {
        ctl_progress(p, ctl_int(pair, "resync-done", 0), ctl_int(pair, "resync-total", 0));
    } else if (is(s, "sync") && ctl_int(ram, "total", 0) > 0) {
        ctl_progress(p, ctl_int(ram, "total", 0) - ctl_int(ram, "remaining", 0),
                     ctl_int(ram, "total", 0));
    }
}

static int64_t attempts(const CtlSide *s)
{
    return ctl_int(ctl_object(s->colo, "pair"), "attempts", 0);
}

/* @before: how many attempts had been made; a backoff after those is no news. */
static int wait_protected(const CtlTarget *t, const char *what, int64_t before, gint64 end)
{
    CtlProgress p = {0};
    g_autoptr(GError) err = NULL;

    for (;;) {
        g_autoptr(CtlSide) s = ctl_side_look(t->qmp, &err);
        if (!s) {
            ctl_progress_end(&p);
            return ctl_fail(err);
        }
        const char *pair = pair_state(s);
        if (is(s, "protected")) {
            ctl_progress_end(&p);
            g_autofree char *head = ctl_side_headline(s);
            puts(head);
            return CTL_OK;
        }
        if (strcmp(pair, "failed") == 0 ||
            (strcmp(pair, "backoff") == 0 && attempts(s) != before) ||
            g_get_monotonic_time() > end) {
            const char *detail = ctl_str(ctl_object(s->colo, "pair"), "detail", "");
            g_autofree char *now = g_strdup_printf("%s%s%s", pair, *detail ? ": " : "", detail);
            ctl_progress_end(&p);
            return refuse("%s: %s: %s", what,
                          g_get_monotonic_time() > end ? "not protected in time" : pair,
                          why(s) ? why(s) : now);
        }
        show_way(s, &p);
        g_usleep(LOOK_US);
    }
}

static int protect(int argc, char **argv, const char *summary, bool full)
{
    g_auto(CtlTarget) t = {0};
    g_autoptr(GError) err = NULL;
    g_autoptr(JsonObject) args = json_object_new();
    int code;
    g_autoptr(CtlSide) s = begin(&t, argc, argv, summary, NULL, &code);

    if (!s) {
        return code;
    }
    if (is(s, "protected") && !full) {
        puts("this side is protected");
        return CTL_OK;
    }
    if (!s->serves || is(s, "protected")) {
        return refuse("%s: to be given on the side that serves%s; this side is %s, %s", argv[0],
                      full ? ", while it is not protected (coloctl unprotect)" : "", s->state,
                      s->role);
    }
    if (strcmp(pair_state(s), "off") == 0) {
        return refuse("%s: this qemu-colo was started without -colo pair=on: start it with "
                      "coloctl run, or follow the procedure of the manual", argv[0]);
    }
    if (full) {
        json_object_set_string_member(args, "sync", "full");
    }
    gint64 end = deadline(&t, 3600);
    if (!tell(&t, "x-colo-protect", args, &err)) {
        return ctl_fail(err);
    }
    return wait_protected(&t, argv[0], attempts(s), end);
}

int cmd_protect(int argc, char **argv)
{
    return protect(argc, argv, "Begin protection now, and wait until both sides are equal.",
                   false);
}

int cmd_resync(int argc, char **argv)
{
    return protect(argc, argv, "Copy the whole of each disk to the other host, whatever is "
                   "known to be equal, then protect.", true);
}
