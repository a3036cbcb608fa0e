/*
 * coloctl run: who starts as what.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: a guest is never started from a disk that is older than what the world has seen, and
 * no human is needed where the two hosts can find out by themselves.
 *
 * Each side keeps, on its disk, what it was last; while qemu-colo runs it writes that itself,
 * before it begins to be it (migration/state-file.c). Only a side that served alone knows that
 * its disk is the newest; any other may have missed what the peer did after them. So any other
 * asks the peer first, and waits for it if need be. Where both have nothing running they tell
 * each other what they were; the rule below is a function of both words, the same on both
 * sides, and no pair of words makes two primaries:
 *
 *   alone                      with anything but alone: primary, the other is secondary
 *   (protected|lost)-primary   with secondary, protected-secondary, none, fenced: primary
 *   none                       with none: the preferred host is primary
 *
 * All else waits for a human (coloctl run --role primary where the guest served last):
 * alone with alone are two histories, and so is alone beside a peer that serves: to follow it
 * loses what this side's clients were told. Two outdated sides know nothing; a lost secondary
 * (which nobody writes any more) may have taken over.
 */
#include "coloctl-run.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "util/error.h"
#include "util/files.h"

static const char *const names[LAST_MAX] = {
    [LAST_NONE] = "none",
    [LAST_ALONE] = "alone",
    [LAST_PROTECTED_PRIMARY] = "protected-primary",
    [LAST_LOST_PRIMARY] = "lost-primary",
    [LAST_SECONDARY] = "secondary",
    [LAST_PROTECTED_SECONDARY] = "protected-secondary",
    [LAST_LOST_SECONDARY] = "lost-secondary",
    [LAST_FENCED] = "fenced",
};

const char *last_role_name(LastRole r)
{
    return r < LAST_MAX ? names[r] : "unknown";
}

bool last_role_parse(const char *name, LastRole *r)
{
    for (int i = 0; i < LAST_MAX; i++) {
        if (strcmp(name, names[i]) == 0) {
            *r = i;
            return true;
        }
    }
    return false;
}

bool last_role_load(const VmConf *c, LastRole *r, GError **errp)
{
    g_autofree char *path = g_strdup_printf("%s/role", c->state_dir);
    g_autofree char *text = NULL;
    g_autoptr(GError) err = NULL;

    *r = LAST_NONE;
    if (!g_file_get_contents(path, &text, NULL, &err)) {
        if (g_error_matches(err, G_FILE_ERROR, G_FILE_ERROR_NOENT)) {
            return true;
        }
        g_propagate_error(errp, g_steal_pointer(&err));
        return false;
    }
    g_strstrip(text);
    if (!last_role_parse(text, r)) {
        g_autofree char *shown = ctl_clean(text, 40);
        colo_error_set(errp, "%s: '%s' is no role: write into it what this side was last "
                       "(alone, secondary, ...), or start with --role", path, shown);
        return false;
    }
    return true;
}

bool last_role_save(const VmConf *c, LastRole r, GError **errp)
{
    g_autofree char *path = g_strdup_printf("%s/role", c->state_dir);
    g_autofree char *tmp = g_strdup_printf("%s/role.new", c->state_dir);
    FILE *f = fopen(tmp, "we");
    /* Of one length: qemu-colo (-colo state-file=) writes over it in place. */
    bool ok = f && fprintf(f, "%-31s\n", last_role_name(r)) > 0 && fflush(f) == 0 &&
              fsync(fileno(f)) == 0;
    int e = errno;

    if (f && fclose(f) != 0) {
        ok = false;
        e = errno;
    }
    if (ok && (rename(tmp, path) != 0 || !files_sync_parent(path))) {
        ok = false;
        e = errno;
    }
    if (!ok) {
        colo_error_set_errno(errp, e, "%s: what this side is cannot be written down", path);
    }
    return ok;
}

static bool was_primary(LastRole r)
{
    return r == LAST_PROTECTED_PRIMARY || r == LAST_LOST_PRIMARY;
}

static bool yields_to_primary(LastRole r)
{
    return r == LAST_NONE || r == LAST_SECONDARY || r == LAST_PROTECTED_SECONDARY ||
           r == LAST_FENCED;
}

/* 1: the first of the two serves, -1: the second, 0: a human has to say. */
static int rank(LastRole a, LastRole b)
{
    if (a == LAST_ALONE || b == LAST_ALONE) {
        return (a == LAST_ALONE) - (b == LAST_ALONE);
    } else if (was_primary(a) && yields_to_primary(b)) {
        return 1;
    } else if (was_primary(b) && yields_to_primary(a)) {
        return -1;
    }
    return 0;
}

static Decision decide_together(LastRole mine, const PeerView *v, bool preferred,
                                const char **why)
{
    int r = rank(mine, v->last);

    if (mine == LAST_NONE && v->last == LAST_NONE) {
        *why = preferred ? "the first start, and this is the preferred host"
                         : "the first start: the other, preferred host begins";
        return preferred ? DECIDE_PRIMARY : DECIDE_WAIT;
    }
    if (r > 0) {
        *why = "this side has the newest disk";
        return DECIDE_PRIMARY;
    } else if (r < 0) {
        *why = "the other side has the newest disk, and begins";
        return DECIDE_WAIT; /* until it serves: a start of it that fails changes nothing */
    }
    *why = mine == LAST_ALONE
               ? "both sides have served alone: their disks have different histories. Choose one "
                 "(coloctl run --role primary there); the other's changes since will be lost"
               : "neither side knows that its disk is the newest: coloctl run --role primary on "
                 "the one that served last";
    return DECIDE_WAIT;
}

Decision role_decide(LastRole mine, const PeerView *v, bool preferred, const char **why)
{
    if (!v->answers) {
        if (mine == LAST_ALONE) {
            *why = "this side served alone, and the other does not answer";
            return DECIDE_PRIMARY;
        }
        *why = mine == LAST_NONE
                   ? "the first start waits for the other host, whose disk may be newer; "
                     "--role primary starts without it"
                   : "the other host may have served since, and does not answer; if it has not: "
                     "coloctl run --role primary";
        return DECIDE_WAIT;
    }
    if (v->undecided) {
        return decide_together(mine, v, preferred, why);
    }
    if (v->serves && mine == LAST_ALONE) {
        *why = "this side served alone, and now the other host serves: two histories. coloctl run "
               "--role secondary here follows it, and loses this side's changes since";
        return DECIDE_WAIT;
    } else if (v->serves) {
        *why = "the other host serves";
        return DECIDE_SECONDARY;
    }
    if (strcmp(v->state, "waiting") == 0) {
        if (mine == LAST_ALONE || was_primary(mine)) {
            *why = "the other host waits for this one";
            return DECIDE_PRIMARY;
        }
        *why = "the other host waits as secondary, but this side's disk is not known to be the "
               "newest: coloctl run --role primary on the one that served last";
        return DECIDE_WAIT;
    }
    *why = strcmp(v->state, "lost") == 0
               ? "the other host has the guest's last state and waits for the arbiter's word "
                 "(coloctl failover there, if this is you)"
               : "the other host is about to start or to end";
    return DECIDE_WAIT;
}
