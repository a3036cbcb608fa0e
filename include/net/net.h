/*
 * The net thread, network backends and their filter chains.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A NetDev joins an outside (tap, user, socket, stream) to the guest's NIC. The NIC is in
 * the child: frames pass over a SOCK_DGRAM socketpair that the child uses as
 * "-netdev dgram" (a datagram pair loses nothing at stop/cont and lets us take unread
 * frames back through our own descriptor of the child's end). Between the two sits the
 * netfilter chain: "tx" frames (outside -> guest) pass it in order, "rx" frames
 * (guest -> outside) in reverse order, as in QEMU.
 *
 * All functions: under the net lock unless they say otherwise.
 */
#ifndef COLO_NET_NET_H
#define COLO_NET_NET_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include "net/frame.h"
#include "util/io-thread.h"

typedef struct NetDev NetDev;

/** Start the net thread; once, from main, before anything else here. No lock. */
void net_init(void);
void net_shutdown(void);
void net_lock(void);
void net_unlock(void);
ColoIoThread *net_thread(void);

/**
 * Batches: between begin and end (they nest), @flush functions given to net_batch_add()
 * are collected and called once at the end, so that many frames leave in few system calls.
 */
void net_batch_begin(void);
void net_batch_end(void);
bool net_batch_active(void);
void net_batch_add(void (*flush)(void *opaque), void *opaque);
void net_batch_remove(void (*flush)(void *opaque), void *opaque);
/** The time (microseconds, monotonic); within a batch that of its first question: asking
 * the clock for each frame would cost more than comparing it. */
int64_t net_now(void);

/** Who may speak: the role gates every backend, in both directions (RULES 16). */
typedef enum NetRole {
    NET_ROLE_ALONE,     /* unprotected: gates open, chain as configured */
    NET_ROLE_PRIMARY,   /* gates open; output only as colo-compare releases it */
    NET_ROLE_SECONDARY, /* gates shut: nothing from or to the outside */
    NET_ROLE_SILENT,    /* peer lost, arbiter not yet asked: output is kept, bounded */
} NetRole;

/** SILENT -> ALONE lets out what was kept, in order; SILENT -> SECONDARY drops it. */
void net_set_role(NetRole role);
NetRole net_get_role(void);

/**
 * The gates let nothing out after @boot_us (CLOCK_BOOTTIME, microseconds; 0: for ever, as
 * at the start): the end of a lease. Any thread, no lock.
 */
void net_speak_until(int64_t boot_us);

/**
 * Role PRIMARY: nothing leaves after @boot_us (as above; 0: for ever) but waits, bounded,
 * for a later moment given here, or for a change of role: the time for which the secondary
 * surely does not speak. Any thread, no lock.
 */
void net_twin_until(int64_t boot_us);

/** That clock, now. */
int64_t net_boot_us(void);
int64_t net_speaks_until(void);

/**
 * Create a backend from -netdev options ({type, id, ...}). Types and options:
 * tap (ifname, script, downscript, helper, br, fd, sndbuf, vhost=off; vhost=on and queues
 * are refused by name), bridge (br, helper), user (hostfwd, net, host, dns, dhcpstart,
 * restrict, hostname; libslirp), socket (fd, listen, connect), stream, dgram, hubport
 * refused.
 */
NetDev *netdev_new(JsonObject *opts, GError **errp);
NetDev *netdev_find(const char *id);
bool netdev_del(const char *id, GError **errp);

/** Whether a -netdev of these options is one we can own. */
bool netdev_wants(JsonObject *opts);

/** The child's end, to be inherited under this number; owned by the NetDev. */
int netdev_child_fd(NetDev *nd);

/** The child's "-netdev" argument for it ("dgram,id=hn0,local.type=fd,local.str=12").
 * Caller frees. */
char *netdev_child_option(NetDev *nd);

/** Test option: SO_SNDBUF of the guest's end of NetDevs made from now on. */
void net_set_guest_buffer(unsigned bytes);

/** Whether a colo-compare compares from the start, without a pair (as stock's does):
 * for benchmarks and for tests against stock. Before the objects are made. */
void net_set_compare_always(bool always);

/** @fn (net thread, under its lock; must only post) is asked to make the child look at
 * its NIC on @netdev again: frames lie unread although it should take them. */
void net_set_nudge(void (*fn)(const char *netdev));

/** The guest's MAC on this netdev, learnt from its frames or set from -device mac=. */
void netdev_set_mac(NetDev *nd, const uint8_t mac[6]);

/**
 * Filters (filter-mirror, filter-redirector, filter-rewriter, filter-buffer) and
 * colo-compare: -object / object-add. @opts: {qom-type, id, ...}.
 */
bool net_object_wants(const char *qom_type);
bool net_object_add(JsonObject *opts, GError **errp);
/** Whether the JSON types of @opts (from QMP) are right, too: net_object_add() takes
 * strings for everything, as the command line gives them. No lock. */
bool net_object_check(JsonObject *opts, GError **errp);
bool net_object_del(const char *id, GError **errp);
bool net_object_exists(const char *id);
/** The ids of all objects here, for conflicts and introspection. Caller frees. */
char **net_object_ids(void);
/** qom-get / qom-set of object @id; NULL or false with @errp set on failure. */
JsonNode *net_object_get(const char *id, const char *property, GError **errp);
bool net_object_set(const char *id, const char *property, JsonNode *value, GError **errp);

/** [{name, type}] as of qom-list and qom-list-properties; NULL if not ours. */
JsonArray *net_object_properties(const char *id);
JsonArray *net_type_properties(const char *type);
/** Append a {name, type: "child<...>"} for each filter and comparison. */
void net_objects_list(JsonArray *out);

/** Its NIC's name (-device id=), as announce-self knows it. */
void netdev_set_nic(NetDev *nd, const char *nic);

/** announce-self: times in ms. */
typedef struct NetAnnounce {
    const char *id;  /* one with the same id is ended */
    int64_t initial, step, max, rounds;
    char **nics; /* names; NULL: all */
} NetAnnounce;

/** Announce as net_announce() does, @rounds times: now, after @initial ms, then each time
 * @step ms later than before, at most @max. Copies @how. */
void net_announce_self(const NetAnnounce *how);

/** Announce every guest MAC and address seen (GARP, unsolicited NA, RARP), now and a few
 * times more. */
void net_announce(void);

#endif
