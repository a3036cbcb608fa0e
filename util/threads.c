/*
 * Threads of a process, by their names.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib.h>
#include <stdlib.h>

#include "util/threads.h"

unsigned threads_named(pid_t pid, const char *const *names, pid_t *tids, unsigned max)
{
    g_autofree char *folder = g_strdup_printf("/proc/%d/task", (int)pid);
    g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
    const char *task;
    unsigned n = 0;

    while (dir && n < max && (task = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(folder, task, "comm", NULL);
        g_autofree char *name = NULL;

        if (g_file_get_contents(path, &name, NULL, NULL) &&
            g_strv_contains(names, g_strchomp(name))) {
            tids[n++] = (pid_t)atoi(task);
        }
    }
    return n;
}
