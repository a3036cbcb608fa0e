/*
 * coloctl: TCP with a deadline, and UDP without promises.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Addresses are numeric. @end is a moment of g_get_monotonic_time().
 */
#ifndef COLO_TOOLS_COLOCTL_NET_H
#define COLO_TOOLS_COLOCTL_NET_H

#include <glib.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>

typedef union NetAddress {
    struct sockaddr any;
    struct sockaddr_in in4;
    struct sockaddr_in6 in6;
} NetAddress;

/** A connected, non-blocking socket, or -1 with @errp. */
int net_dial(const char *address, unsigned port, gint64 end, GError **errp);

/** A listening, non-blocking socket, or -1 with @errp. */
int net_listen(const char *address, unsigned port, GError **errp);

/** A non-blocking UDP socket at @port (0: any), or -1 with @errp. */
int net_bind_udp(const char *address, unsigned port, GError **errp);

bool net_send_to(int fd, const char *address, unsigned port, const void *data, size_t len);

/** Whether @a is that address, whatever its port. */
bool net_is(const NetAddress *a, const char *address);

/** Read up to a line's end (which is left away) or the stream's, at most @max bytes. */
bool net_read_line(int fd, GString *text, size_t max, gint64 end, GError **errp);

bool net_write(int fd, const void *data, size_t len, gint64 end, GError **errp);

/** Wait for @events (poll's). False when @end is over. */
bool net_wait(int fd, short events, gint64 end);

#endif
