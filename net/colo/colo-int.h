/*
 * Inside of net/colo: the filters' structs and what proxy.c does with them.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_NET_COLO_INT_H
#define COLO_NET_COLO_INT_H

#include "chardev/chardev.h"
#include "net/compare-engine.h"
#include "net/filter.h"
#include "net/proxy.h"
#include "net/rewriter-engine.h"
#include "net/vnet.h"
#include "util/trace.h"

typedef struct ColoCompare ColoCompare;

extern const NetFilterClass filter_mirror_class, filter_redirector_class,
    filter_rewriter_class, filter_buffer_class;

typedef struct FilterMirror {
    NetFilter nf;
    Chardev *out;
    bool vnet_hdr;
    bool strict; /* the guest gets only what was mirrored */
    uint64_t mirrored, dropped;
} FilterMirror;

/* What an epoch's marker said, while frames of it wait. */
typedef struct EpochRepeats {
    uint64_t epoch;
    uint32_t repeats;
} EpochRepeats;

/* A redirector's input as the secondary's end of a mirror stream. */
typedef struct MirrorInput {
    bool gated;            /* epochs are looked at */
    bool running;          /* the SVM runs in @svm_epoch */
    bool closed;           /* after a takeover: nothing is taken any more */
    uint64_t svm_epoch;
    uint64_t min_epoch;    /* older frames are of the past */
    uint64_t stream_epoch; /* of frames that arrive now */
    uint64_t gap;          /* frames known to be missing on this connection */
    FrameQueue held;
    GArray *repeats; /* of EpochRepeats */
    uint64_t discarded, dropped;
} MirrorInput;

typedef struct FilterRedirector {
    NetFilter nf;
    Chardev *in, *out;
    bool vnet_hdr;
    bool mute;   /* nothing goes to @out (the side does not vouch) */
    bool bypass; /* @out is of the past: frames go through */
    MirrorInput mi;
    uint64_t redirected, injected, lost;
    VnetStats vnet;
} FilterRedirector;

typedef struct FilterRewriter {
    NetFilter nf;
    RewriterEngine *engine;
    GSource *timer;
    int64_t due; /* when the timer fires */
    bool vnet_hdr;
} FilterRewriter;

struct ColoCompare {
    char *id;
    Chardev *primary_in, *secondary_in, *out;
    char *iothread;
    bool vnet_hdr;
    uint64_t timeout_ms, scan_ms, queue_size;
    CompareEngine *engine;
    GSource *timer;
    int64_t due;   /* when the engine wants its tick */
    int64_t armed; /* when @timer fires: never later than @due */
    uint64_t gap; /* SVM frames known to be missing on this connection */
    uint64_t lost_out;
    VnetStats vnet;
    /* notify_dev (notify.c) */
    Chardev *notify;
    bool notified; /* the comparison runs for it */
    bool wished;   /* a checkpoint, and none has come */
    uint64_t notify_epoch, notify_unknown;
    ColoReportLimit notify_limit;
    ColoReportLimit malformed_limit;
};

extern const ChardevHandlers redirector_in_handlers, compare_primary_handlers,
    compare_notify_handlers;

/* --- colo-compare object --- */
ColoCompare *colo_compare_new(JsonObject *opts, GError **errp);
void colo_compare_free(ColoCompare *c);
const char *colo_compare_iothread(ColoCompare *c);
extern const NetProperty colo_compare_properties[];
JsonNode *colo_compare_get(ColoCompare *c, const char *property);
/** @value was checked. Refused while protection needs the comparison as it is. */
bool colo_compare_set(ColoCompare *c, const char *property, JsonNode *value, GError **errp);
/** Let the engine look at the time, and ask to be called again when it must. */
void colo_compare_tick(ColoCompare *c);

/** While this side is the primary of a protection: do not read the output of the guest
 * whose comparison has too much of it, or read it again. Whether it waits. */
bool proxy_throttle_output(ColoCompare *c);

/* --- notify_dev of colo-compare --- */
/** c->notify has changed: compare for it, or no longer. */
void colo_notify_start(ColoCompare *c);
/** The engine wants a checkpoint. */
void colo_notify_trigger(ColoCompare *c);

/* --- Helpers of several filters --- */
/** Claim chardev @id; NULL with @errp set on failure. */
Chardev *colo_claim_chardev(const char *id, const ChardevHandlers *h, void *opaque,
                            bool vnet_hdr, GError **errp);
/** Use chardev @id ("": none) in *@slot from now on and let go of the one there; what it
 * had not yet sent it sends. On failure nothing changes. */
bool colo_swap_chardev(Chardev **slot, const char *id, const ChardevHandlers *h,
                       void *opaque, bool vnet_hdr, GError **errp);
JsonNode *colo_string_node(const char *s);
JsonNode *colo_bool_node(bool b);
JsonNode *colo_int_node(uint64_t v);
/** Make *@timer fire at monotonic time @at (microseconds; INT64_MAX: not at all). */
void colo_timer_at(GSource **timer, int64_t at, GSourceFunc fn, void *opaque);

/** @f (taken) enters the chain behind the redirector, in its directions. */
void redirector_inject(FilterRedirector *r, Frame *f);

/* --- Objects (net/objects.c) --- */
/** The id of the iothread that @path ("NAME" or "/objects/NAME") means; points into
 * @path. NULL with @errp set if there is none. */
const char *net_iothread_find(const char *path, GError **errp);
void net_objects_each(void (*fn)(NetFilter *nf, ColoCompare *cmp, void *opaque),
                      void *opaque);

/* --- Hooks into proxy.c; each does nothing while there is no protection --- */
/** Whether @nf belongs to a running protection. */
bool proxy_uses(NetFilter *nf);
/** Whether @c compares for a running protection. */
bool proxy_compares(ColoCompare *c);
/** An object is about to be deleted (one of both is NULL). */
void proxy_object_leaves(NetFilter *nf, ColoCompare *cmp);
void proxy_mirror_event(FilterMirror *m, bool connected);
void proxy_mirror_control(FilterMirror *m, const ChardevControl *msg);
/** A frame of the mirror stream, @r->mi.gated (taken). */
void proxy_mirror_frame(FilterRedirector *r, Frame *f);
void proxy_redirector_control(FilterRedirector *r, const ChardevControl *msg);
void proxy_redirector_in_event(FilterRedirector *r, bool connected);
void proxy_redirector_out_event(FilterRedirector *r, bool connected);
void proxy_compare_trigger(ColoCompare *c, ProxyTrigger t, const char *detail);
void proxy_compare_isn(ColoCompare *c, const FlowKey *flow, uint32_t pvm, uint32_t svm);
void proxy_compare_control(ColoCompare *c, const ChardevControl *msg);
void proxy_compare_event(ColoCompare *c, bool connected);

#endif
