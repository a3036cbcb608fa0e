/*
 * coloctl run: the service manager's notification socket, without its library.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "coloctl-run.h"

void notify_state(const char *fmt, ...)
{
    const char *path = g_getenv("NOTIFY_SOCKET");
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    va_list ap;

    if (!path || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof(sa.sun_path)) {
        return;
    }
    va_start(ap, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    memcpy(sa.sun_path, path, strlen(path));
    if (path[0] == '@') {
        sa.sun_path[0] = 0; /* abstract */
    }
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        ssize_t n = sendto(fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT,
                           (struct sockaddr *)&sa,
                           offsetof(struct sockaddr_un, sun_path) + strlen(path));
        (void)n;
        close(fd);
    }
}
