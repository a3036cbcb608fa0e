/*
 * Netfilters: objects in the path between a backend and the guest.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A filter sits in the list of one NetDev. Frames to the guest ("tx") meet the list
 * first to last, frames from the guest ("rx") last to first. A filter changes, keeps or
 * drops what it is given; what it sends later, or makes itself, goes on behind it in
 * the direction of travel.
 *
 * Everything here: under the net lock.
 */
#ifndef COLO_NET_FILTER_H
#define COLO_NET_FILTER_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>

#include "net/frame.h"
#include "net/net.h"
#include "net/property.h"

typedef enum NetFilterDirection {
    NET_FILTER_TX = 1, /* outside -> guest */
    NET_FILTER_RX = 2, /* guest -> outside */
    NET_FILTER_ALL = 3,
} NetFilterDirection;

typedef struct NetFilter NetFilter;

typedef struct NetFilterClass {
    const char *type;           /* QOM type name */
    size_t size;                /* of the struct that starts with a NetFilter */
    const NetProperty *properties; /* its own, beyond the common ones */
    /* Parse own options and take resources; on failure nothing is kept. */
    bool (*setup)(NetFilter *nf, JsonObject *opts, GError **errp);
    /* Free what setup took; frames inside are passed on or dropped. */
    void (*cleanup)(NetFilter *nf);
    /* Takes @f; returns the frame that goes on (may be another), or NULL. */
    Frame *(*receive)(NetFilter *nf, NetFilterDirection dir, Frame *f);
    /* After a change of status; may be NULL. */
    void (*status_changed)(NetFilter *nf);
    /* Own properties of qom-get and qom-set. Names and values are those that
     * @properties allows; without set() none can be changed. */
    JsonNode *(*get)(NetFilter *nf, const char *property);
    bool (*set)(NetFilter *nf, const char *property, JsonNode *value, GError **errp);
} NetFilterClass;

struct NetFilter {
    const NetFilterClass *class;
    char *id;
    NetDev *nd;
    NetFilterDirection direction;
    bool on;
    char *position; /* as given, for qom-get */
    bool behind;
};

/** Make the filter of @opts ({qom-type, id, netdev, queue, status, position, insert}). */
NetFilter *net_filter_new(const NetFilterClass *class, JsonObject *opts, GError **errp);
void net_filter_free(NetFilter *nf);

/** The common properties, those of every filter. */
extern const NetProperty net_filter_properties[];

JsonNode *net_filter_get(NetFilter *nf, const char *property);

/** @value was checked. Refused while protection needs the filter as it is. */
bool net_filter_set(NetFilter *nf, const char *property, JsonNode *value, GError **errp);

/** @f (taken) goes on behind @nf in direction @dir (TX or RX). */
void net_filter_pass_next(NetFilter *nf, NetFilterDirection dir, Frame *f);

void net_filter_set_status(NetFilter *nf, bool on);

#endif
