/*
 * Names of NBD connections.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Each connection of ours has a name, which it says in a meta context that other servers do not
 * know; it says, too, which ones of before are gone: after a link was cut the server may not
 * have heard (docs/interop/nbd-barrier.rst).
 *
 * The name is whose it is, a dot, its number; the context is a fixed head, the name, and after
 * commas the numbers of those that are gone.
 */
#include "nbd-name.h"

#include <inttypes.h>
#include <string.h>

#define CONTEXT "qemu-colo:connection="
#define GONE_MAX 64

/* Room singleton of the client. */
static struct {
    GMutex lock;
    char instance[17];
    uint64_t serial;
    uint64_t gone[GONE_MAX]; /* a ring */
    unsigned n_gone;
} names;

char *nbd_name_new(char **context)
{
    g_mutex_lock(&names.lock);
    if (!*names.instance) {
        g_snprintf(names.instance, sizeof(names.instance), "%08x%08x", g_random_int(),
                   g_random_int());
    }
    char *name = g_strdup_printf("%s.%" PRIu64, names.instance, ++names.serial);
    GString *text = g_string_new(CONTEXT);
    g_string_append(text, name);
    for (unsigned i = 0; i < MIN(names.n_gone, GONE_MAX); i++) {
        g_string_append_printf(text, ",%" PRIu64, names.gone[i]);
    }
    g_mutex_unlock(&names.lock);
    *context = g_string_free(text, FALSE);
    return name;
}

void nbd_name_gone(const char *name)
{
    g_mutex_lock(&names.lock);
    names.gone[names.n_gone++ % GONE_MAX] = g_ascii_strtoull(strchr(name, '.') + 1, NULL, 10);
    g_mutex_unlock(&names.lock);
}

char *nbd_name_heard(const char *context, size_t len, GStrv *gone)
{
    size_t head = strlen(CONTEXT);

    if (len < head || memcmp(context, CONTEXT, head) != 0) {
        return NULL;
    }
    g_autofree char *text = g_strndup(context + head, len - head);
    g_auto(GStrv) parts = g_strsplit(text, ",", GONE_MAX + 2);
    const char *dot = parts[0] ? strchr(parts[0], '.') : NULL;
    if (!dot || strlen(parts[0]) >= NBD_NAME_SIZE) {
        return NULL;
    }
    g_autoptr(GPtrArray) all = g_ptr_array_new();
    for (unsigned i = 1; parts[i]; i++) {
        g_ptr_array_add(all, g_strdup_printf("%.*s%s", (int)(dot + 1 - parts[0]), parts[0],
                                             parts[i]));
    }
    g_ptr_array_add(all, NULL);
    *gone = (GStrv)g_ptr_array_free(g_steal_pointer(&all), FALSE);
    return g_strdup(parts[0]);
}
