/*
 * Objects of the net room by their command line, for tests.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef TESTS_UNIT_NET_SETUP_H
#define TESTS_UNIT_NET_SETUP_H

#include <glib.h>
#include "chardev/chardev.h"
#include "net/net.h"
#include "util/options.h"

/* A chardev ("socket,id=...") or an object ("filter-mirror,id=..."). */
static inline void add(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    bool dev = g_str_has_prefix(text, "socket,");
    g_autoptr(JsonObject) o = options_parse(text, dev ? "backend" : "qom-type", NULL);
    g_autoptr(GError) err = NULL;
    if (dev) {
        chardev_new(o, &err);
    } else {
        net_object_add(o, &err);
    }
    if (err) {
        g_error("%s: %s", text, err->message);
    }
}

#endif
