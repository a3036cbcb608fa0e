/*
 * Stopping a process for a test.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef TESTS_UNIT_FREEZE_H
#define TESTS_UNIT_FREEZE_H

#include <glib.h>
#include <signal.h>

/* Whether a thread of @pid is not stopped. */
static inline gboolean freeze_runs(pid_t pid)
{
    g_autofree char *folder = g_strdup_printf("/proc/%d/task", (int)pid);
    g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
    const char *task;

    while (dir && (task = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(folder, task, "stat", NULL);
        g_autofree char *text = NULL;

        if (g_file_get_contents(path, &text, NULL, NULL)) {
            const char *state = strrchr(text, ')');

            if (state && state[1] && !strchr("TtZX", state[2])) {
                return TRUE;
            }
        }
    }
    return FALSE;
}

/*
 * SIGSTOP, and wait until all of its threads stand. The signal wakes but one of them, which
 * stops the others: on a busy machine they run on for a while, and may answer.
 */
static inline void freeze(pid_t pid)
{
    g_assert_cmpint(kill(pid, SIGSTOP), ==, 0);
    for (int i = 0; freeze_runs(pid); i++) {
        g_assert_cmpint(i, <, 10000);
        g_usleep(2000);
    }
}

#endif
