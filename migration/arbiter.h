/*
 * Who may leave protection: the arbiter's face to the two controllers.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Both ways out of protection, the primary's and the secondary's, ask here, and one of them
 * at most is let through. docs/devel/ownership.rst has the protocol and its model.
 */
#ifndef COLO_MIGRATION_ARBITER_H
#define COLO_MIGRATION_ARBITER_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>

typedef enum ArbiterVerdict {
    ARBITER_WON,       /* this side may speak, the other never again */
    ARBITER_LOST,      /* the other side was let through */
    ARBITER_UNDECIDED, /* no answer: ask again */
} ArbiterVerdict;

typedef struct Arbiter Arbiter;

/* One kind. Each member but name may be NULL: nothing to do. Calls are serialised by the
 * callers but for describe(), which any thread may make; they may block for some seconds. */
typedef struct ArbiterClass {
    const char *name;
    /* Before the guest speaks for the first time: nobody else may own it. */
    bool (*claim)(Arbiter *a, GError **errp);
    /* Primary: from here on either side may leave. Text for the peer's join(). */
    char *(*protect)(Arbiter *a, GError **errp);
    bool (*join)(Arbiter *a, const char *token, GError **errp);
    /* Protection ended before the peer could have left: undo protect(). */
    void (*unprotect)(Arbiter *a);
    /* One attempt to leave protection. @errp is set with UNDECIDED. NULL: whoever decides
     * gives x-colo-lost-heartbeat. */
    ArbiterVerdict (*leave)(Arbiter *a, GError **errp);
    /* The operator vouches that the other side is dead: leave whatever anybody says. */
    void (*force)(Arbiter *a);
    void (*describe)(Arbiter *a, JsonObject *out);
    void (*free)(Arbiter *a);
} ArbiterClass;

struct Arbiter {
    const ArbiterClass *class;
    char *name;        /* kind, and what the peer's must have in common with it */
    unsigned delay_ms; /* before a secondary's first attempt */
    gint ending;       /* atomic: the process ends, a long attempt may be broken off */
};

/**
 * Make the arbiter that -colo asks for (arbiter=manual|fence|witness|pacemaker and what these
 * take); *@out is NULL for manual. @vm: name of the virtual machine, the witness' default key.
 */
bool arbiter_new(JsonObject *colo_options, const char *vm, Arbiter **out, GError **errp);

/** Whether @a (NULL: manual) can be asked; else somebody will say. */
bool arbiter_answers(const Arbiter *a);

/** What both sides must have in common; "manual" for NULL. */
const char *arbiter_name(const Arbiter *a);
void arbiter_free(Arbiter *a);

Arbiter *arbiter_fence_new(JsonObject *o, GError **errp);
Arbiter *arbiter_witness_new(JsonObject *o, const char *vm, GError **errp);

/** Witness, any thread: this side lost its ownership while it served alone. Implemented by
 * the controller. */
void colo_ownership_lost(const char *why);

#endif
