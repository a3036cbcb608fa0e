/*
 * Inside of the proxy: its state and what its two sides share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_NET_PROXY_INT_H
#define COLO_NET_PROXY_INT_H

#include "net/colo/colo-int.h"
#include "net/net-int.h"
#include "net/proxy.h"

/* "COLO", version, links; a link: id, comparison's table, rewriter's offsets; each with a
 * be32 length. */
#define SAVE_MAGIC 0x434f4c4f50580001ull

#define LOGGED_BODY (FLOW_KEY_WIRE + 4)
#define ISN_BODY (FLOW_KEY_WIRE + 8) /* bytes of a CHARDEV_CTL_ISN body */

typedef struct ProxyLink {
    NetDev *nd;
    /* Primary */
    FilterMirror *mirror;
    ColoCompare *cmp;
    /* Secondary */
    FilterRedirector *in, *out;
    /* Either */
    FilterRewriter *rew;
    GByteArray *cut_cmp, *cut_rew; /* what had to be saved at the cut, or NULL */
    int64_t mirror_down, cmp_down; /* since when, or 0 */
    FrameQueue owed; /* held frames of the checkpoint, where there is no rewriter */
} ProxyLink;

typedef struct ProxyState {
    bool primary, secondary;
    bool protected; /* loaded once */
    ProxyTriggerFunc fn;
    void *opaque;
    uint64_t epoch; /* of the last cut, or that the SVM runs in */
    GArray *links;  /* of ProxyLink */
    uint64_t triggers[PROXY_TRIGGER_GONE + 1];
    int64_t stream_timeout;
    GSource *watch; /* over streams that are down */
} ProxyState;

extern ProxyState proxy; /* room singleton under the net lock */

#define EACH_LINK(l)                                                                     \
    for (ProxyLink *l = proxy.links ? (ProxyLink *)proxy.links->data : NULL;             \
         l && l < (ProxyLink *)proxy.links->data + proxy.links->len; l++)

typedef struct ProxyMarker {
    uint64_t epoch, frames;
    uint32_t repeats;
} ProxyMarker;

/** Ask for a checkpoint, under role PRIMARY. */
void proxy_trigger(ProxyTrigger t, const char *detail);
uint8_t *proxy_put_int(uint8_t *p, uint64_t v, unsigned bytes);
uint64_t proxy_get_int(const uint8_t **p, unsigned bytes);
bool proxy_send_marker(Chardev *c, uint64_t epoch, uint64_t frames, uint32_t repeats);
bool proxy_parse_marker(const ChardevControl *msg, ProxyMarker *m);
/** Frames missing on a connection, if more than were known; *@known is brought up. */
uint64_t proxy_new_gap(uint64_t said, uint64_t got, uint64_t *known);
/** Look for the parts of every NetDev. */
void proxy_find_links(void);
void proxy_drop_links(void);
/** Every guest's output is read again. */
void proxy_unthrottle(void);

#endif
