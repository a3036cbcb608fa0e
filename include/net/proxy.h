/*
 * What the checkpoint controller needs of the network.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Epoch e is the time that follows checkpoint e; before the first checkpoint it is 0.
 * All functions: under the net lock; none blocks.
 *
 * Primary, a checkpoint that starts epoch e:
 *   proxy_hold_input(); [stop]; proxy_drain_output(); proxy_cut(e); [cont];
 *   proxy_release_input(); proxy_save(); ... RECEIVED: proxy_commit(e); LOADED: proxy_loaded(e)
 * Secondary: proxy_rollback_begin(e); [stop]; proxy_rollback_stopped(); [load];
 *   proxy_restore(bytes); proxy_rollback_ready(e); [cont]; proxy_rollback_end(e)
 * where the SVM is to stand still in e (the buffered mode): proxy_rollback_stand(e) instead of
 * the last two.
 */
#ifndef COLO_NET_PROXY_H
#define COLO_NET_PROXY_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum ProxyTrigger {
    PROXY_TRIGGER_MISMATCH, /* outputs differ */
    PROXY_TRIGGER_TIMEOUT,  /* the twin makes no progress */
    PROXY_TRIGGER_NO_TWIN,  /* the guest opened a flow that cannot have a twin */
    PROXY_TRIGGER_BACKLOG,  /* held output over its bound */
    PROXY_TRIGGER_STREAM,   /* a mirror or comparison stream lost frames or reconnected */
    PROXY_TRIGGER_GONE, /* a stream stays down: no checkpoint helps, the peer is lost */
} ProxyTrigger;

const char *proxy_trigger_name(ProxyTrigger t);

/** Called in the net thread under its lock; must only post. @detail: for logs. */
typedef void (*ProxyTriggerFunc)(ProxyTrigger trigger, const char *detail, void *opaque);

/* --- Primary --- */

/**
 * Check that every NetDev with a NIC is mirrored, redirected and compared, and that the
 * streams are connected; allow control messages on them; compare passes everything until
 * the first proxy_loaded(). A stream that is down for @stream_timeout_us (0: for ever) is
 * PROXY_TRIGGER_GONE: nothing reaches the guest meanwhile.
 */
bool proxy_start_primary(ProxyTriggerFunc fn, void *opaque, int64_t stream_timeout_us,
                         GError **errp);

/** Stop feeding the guest; frames that QEMU has not read yet are taken back and belong
 * to the next epoch. New input queues (bounded; then dropped before either VM sees it).
 * A guest that was made to wait may send again: its output is read until the release,
 * however much is held. */
void proxy_hold_input(void);

/** Read the guest's output until the child's sockets are empty; number of frames read. */
unsigned proxy_drain_output(void);

/** Frames read from the guest since the start, by whatever thread. */
uint64_t proxy_output_frames(void);

/** Whether since proxy_hold_input() so much was read that the child's socket may have been
 * full: then its NIC may still have a frame in its hands that it sends when it can. */
bool proxy_output_was_tight(void);

/** What was output so far belongs to the epochs before @epoch; the marker goes out. */
void proxy_cut(uint64_t epoch);

/** Flow table (offsets, sequence state) and the frames held back as of the last cut; once,
 * between proxy_cut() and proxy_commit(). The guest may run: its new output waits aside. */
GBytes *proxy_save(void);

/** Feed the guest again: taken back frames first, through the chain (mirrored again). */
void proxy_release_input(void);

/** The checkpoint that starts @epoch is safe on the secondary: output of earlier epochs
 * is released, in order, and vouched for from now on (RULES 20). */
void proxy_commit(uint64_t epoch);

/** The SVM runs in @epoch: its output will come; timeouts count from now. Where it is
 * @standing none will: output waits for the next commit, and nothing asks for one. */
void proxy_loaded(uint64_t epoch, bool standing);

/** Leave protection with a win at the arbiter: everything held goes out, nothing is
 * compared any more. Sets the role to ALONE. */
void proxy_stop_primary(void);

/** The peer is lost: hold everything until proxy_stop_primary(). Sets SILENT. */
void proxy_silence(void);

/* --- Secondary --- */

bool proxy_start_secondary(GError **errp);

/** Take back proxy_start_secondary() before any checkpoint came; the gates stay shut. */
void proxy_abort_secondary(void);

/** Input is held; frames that QEMU has not read are dropped, and so is all mirrored
 * input up to marker @epoch. */
void proxy_rollback_begin(uint64_t epoch);

/** The SVM is stopped: its old output is read and dropped. */
void proxy_rollback_stopped(void);

bool proxy_restore(GBytes *state, GError **errp);
/** Whether proxy_restore() would take @state; changes nothing. */
bool proxy_check(GBytes *state, GError **errp);

/** Just before cont: the marker goes out on the comparison stream, the SVM's output counts
 * from here on. May be left out: proxy_rollback_end() does it, too. */
void proxy_rollback_ready(uint64_t epoch);

/** The SVM runs: input is fed again. */
void proxy_rollback_end(uint64_t epoch);

/** The SVM stands still in @epoch: its input waits, for a takeover or until a later roll-back
 * drops it; what it might send is dropped. */
void proxy_rollback_stand(uint64_t epoch);

/** A side that seeks the takeover stops vouching: no SVM output to the primary. */
void proxy_stop_vouching(void);

/**
 * Go live with a win at the arbiter: held input of a torn checkpoint is fed to the SVM;
 * gates open (role ALONE); addresses are announced; what the dead side may have owed is
 * sent at once (RULES 17); the rewriter goes on for the flows that need it.
 */
void proxy_takeover(void);

/* --- Both --- */

/** Frames and bytes held now, for query-colo-status. */
void proxy_held(uint64_t *frames, uint64_t *bytes);

/** The answer of query-colo-proxy: statistics a comparison, mirror and rewriter. */
JsonNode *proxy_query(void);

#endif
