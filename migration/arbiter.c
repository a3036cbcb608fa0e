/*
 * Arbiters by name.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "migration/arbiter.h"

#include <string.h>

#include "migration/migration.h"
#include "util/error.h"
#include "util/options.h"

const char *const arbiter_keys[] = {
    "arbiter",        "fence-agent",    "fence-plug",     "fence-options", "fence-timeout",
    "fence-delay",    "witness",        "witness-key",    "witness-lease", "witness-cacert",
    "witness-cert",   "witness-cert-key", NULL,
};

/* The cluster manager has fenced and counted votes before it speaks, by its resource agent's
 * x-colo-lost-heartbeat; nothing is asked. Both sides must obey the same one. */
static void pacemaker_free(Arbiter *a)
{
    g_free(a);
}

static Arbiter *arbiter_pacemaker_new(void)
{
    static const ArbiterClass class = {.name = "pacemaker", .free = pacemaker_free};
    Arbiter *a = g_new0(Arbiter, 1);

    a->class = &class;
    a->name = g_strdup("pacemaker");
    return a;
}

bool arbiter_new(JsonObject *colo_options, const char *vm, Arbiter **out, GError **errp)
{
    const char *kind = options_get_str(colo_options, "arbiter", "manual");

    *out = NULL;
    for (unsigned i = 1; arbiter_keys[i]; i++) {
        const char *prefix = g_str_has_prefix(arbiter_keys[i], "fence") ? "fence" : "witness";
        if (json_object_has_member(colo_options, arbiter_keys[i]) &&
            strcmp(prefix, kind) != 0) {
            colo_error_set(errp, "-colo: '%s' needs arbiter=%s (it is '%s')", arbiter_keys[i],
                           prefix, kind);
            return false;
        }
    }
    if (strcmp(kind, "manual") == 0) {
        return true;
    } else if (strcmp(kind, "fence") == 0) {
        *out = arbiter_fence_new(colo_options, errp);
    } else if (strcmp(kind, "witness") == 0) {
        *out = arbiter_witness_new(colo_options, vm, errp);
    } else if (strcmp(kind, "pacemaker") == 0) {
        *out = arbiter_pacemaker_new();
    } else {
        colo_error_set(errp, "-colo: arbiter='%s' is not known: use manual, fence, witness or "
                             "pacemaker", kind);
    }
    return *out != NULL;
}

bool arbiter_answers(const Arbiter *a)
{
    return a && a->class->leave;
}

const char *arbiter_name(const Arbiter *a)
{
    return a ? a->name : "manual";
}

void arbiter_free(Arbiter *a)
{
    if (a) {
        g_clear_pointer(&a->name, g_free);
        a->class->free(a);
    }
}
