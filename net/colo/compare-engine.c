/*
 * The comparison engine: which of the primary's frames may leave.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal. No byte of the PVM reaches the outside before (a) the SVM sent the same in the
 * same epoch, or (b) the secondary holds a complete checkpoint taken after it. Equal
 * output should leave at once, however it is cut into frames.
 *
 * What is compared. TCP as byte streams by sequence number; FIN is a place in the stream;
 * ACK and window are lowered to what both sides said (compare-tcp.c). Everything else as
 * datagrams in any order (compare-dgram.c). ARP, ND, RS, IGMP, MLD, LLDP, STP are not
 * compared. What cannot have a twin (a connection that the guest opens) or differs is
 * held and a checkpoint asked for at once.
 *
 * Epochs. @c_epoch is the last one that began with a committed checkpoint, @p_epoch that
 * of the primary's next frame, @s_epoch that of the secondary's. Frames of @c_epoch are
 * compared with each other. Between cut and commit the primary's new frames wait in
 * @next_p, so that a flow's state stays that of the cut (compare_engine_save() relies on
 * it); only frames with nothing new in them pass. SVM frames of an epoch that is not
 * committed yet wait in @next_s, older ones are dropped. A commit releases what is older,
 * raises each flow's knowledge to what the PVM had sent before the cut - lazily, when the
 * flow is next touched (generation) - and feeds both queues again. If a checkpoint is
 * torn and a further cut comes, the frames between both cuts stay held, not compared,
 * until a commit covers them.
 *
 * Triggers. A flow with held frames stands in one of a few lists by the kind of its wait,
 * each sorted by the time of the last progress, so that only list heads are looked at. A
 * trigger is not repeated until a cut comes, or 100 ms pass; triggers that keep coming
 * are spaced by 5, 10, ... 100 ms. None between cut and loaded.
 *
 * Limits. The engine trusts what the SVM says (its peer is authenticated elsewhere), but
 * no bytes of either side can make it fail. Memory: max_bytes of frames, by back-pressure
 * through compare_engine_full(); max_flows flows, more only while all of the oldest hold
 * frames. Retransmissions below the vouched position pass unseen: their first sending was
 * compared. In PASS mode SVM output is only looked at for its SYN|ACK.
 */
#include "compare-int.h"
#include "util/trace.h"

#define MIN_PATIENCE (10 * 1000)
#define MAX_FLOOR (80 * 1000)
#define FLOOR_HALVES (10 * 1000 * 1000) /* without a silent twin */
#define ACK_PATIENCE (60 * 1000) /* delayed ACKs: 40 ms and more */
#define PART_PATIENCE (4 * 1000)
#define ASK_AGAIN (100 * 1000)
#define DAMPING_MIN (5 * 1000)
#define DAMPING_MAX (100 * 1000)
#define DAMPING_FORGET G_USEC_PER_SEC
#define FRAME_COST 2048 /* what a small frame takes beyond its bytes */

static void set_config(CompareEngine *e, const CompareConfig *cfg)
{
    static const CompareConfig none;

    e->cfg = cfg ? *cfg : none;
    if (!e->cfg.compare_timeout_us) {
        e->cfg.compare_timeout_us = 3 * G_USEC_PER_SEC;
    }
    if (!e->cfg.max_queue_size) {
        e->cfg.max_queue_size = 1024;
    }
    if (!e->cfg.max_bytes) {
        e->cfg.max_bytes = 64u << 20;
    }
    if (!e->cfg.max_flows) {
        e->cfg.max_flows = 16384;
    }
}

CompareEngine *compare_engine_new(const CompareConfig *cfg, const CompareOps *ops,
                                  void *opaque)
{
    CompareEngine *e = g_new0(CompareEngine, 1);

    set_config(e, cfg);
    e->ops = *ops;
    e->opaque = opaque;
    e->seed = (uint64_t)g_random_int() << 32 | g_random_int();
    e->damping = DAMPING_MIN;
    compare_tables_init(e);
    return e;
}

void compare_engine_set_config(CompareEngine *e, const CompareConfig *cfg)
{
    uint32_t flows = e->cfg.max_flows; /* the table is made for so many */

    set_config(e, cfg);
    e->cfg.max_flows = MIN(e->cfg.max_flows, MAX(flows, e->table_mask + 1));
}

static void clear_secondary(CompareEngine *e)
{
    while (e->kept_segs.head) {
        compare_item_drop(e, e->kept_segs.head);
    }
    while (e->kept_dgrams.head) {
        compare_item_drop(e, e->kept_dgrams.head);
    }
}

void compare_engine_free(CompareEngine *e)
{
    if (!e) {
        return;
    }
    clear_secondary(e);
    while (e->held.head) {
        compare_item_drop(e, e->held.head);
    }
    frame_queue_clear(&e->next_p);
    frame_queue_clear(&e->next_s);
    compare_pass_clear(e);
    compare_tables_free(e);
    g_free(e);
}

void compare_release(CompareEngine *e, Frame *f)
{
    e->stats.released_frames++;
    e->stats.released_bytes += f->len;
    e->ops.release(f, e->opaque);
}

void compare_sample_lag(CompareEngine *e, int64_t stamp)
{
    int64_t lag = e->now - MAX(stamp, e->loaded_at);

    if (!e->in_flight) { /* else it would be the checkpoint that is measured */
        e->lag += (lag - e->lag) / (lag > e->lag ? 4 : 16);
    }
}

/* --- Triggers --- */

/* Within a batch frames carry its time, which may be older than that of a commit in it. */
static void set_now(CompareEngine *e, int64_t now)
{
    e->now = MAX(e->now, now);
}

static bool may_trigger(CompareEngine *e)
{
    return e->mode == COMPARE_MODE_COMPARE && !e->in_flight;
}

/* When the next trigger may go out. */
static int64_t trigger_time(CompareEngine *e)
{
    if (!e->last_trigger) {
        return 0;
    }
    return e->last_trigger + (e->asked ? ASK_AGAIN : e->damping);
}

static ProxyTrigger trigger_of(CompareCause c)
{
    switch (c) {
    case COMPARE_CAUSE_NO_TWIN:
        return PROXY_TRIGGER_NO_TWIN;
    case COMPARE_CAUSE_SILENT:
        return PROXY_TRIGGER_TIMEOUT;
    case COMPARE_CAUSE_BACKLOG:
        return PROXY_TRIGGER_BACKLOG;
    default:
        return PROXY_TRIGGER_MISMATCH;
    }
}

/* Ask for a checkpoint for @fl (or NULL), now or, if that is too early, at a tick. */
static void trigger(CompareEngine *e, CompareFlow *fl, CompareCause cause)
{
    char name[FLOW_NAME_MAX], detail[FLOW_NAME_MAX + 80];

    if (!may_trigger(e) || e->now < trigger_time(e)) {
        return;
    }
    if (e->last_trigger && e->now - e->last_trigger < DAMPING_FORGET) {
        e->damping = MIN(e->damping * 2, DAMPING_MAX);
    } else {
        e->damping = DAMPING_MIN;
    }
    if (cause == COMPARE_CAUSE_SILENT) {
        e->floor = MIN(MAX(e->floor, MIN_PATIENCE) * 2, MAX_FLOOR);
        e->floor_at = e->now;
    }
    e->last_trigger = e->now;
    e->asked = true;
    e->stats.triggers++;
    if (cause == COMPARE_CAUSE_SILENT || cause == COMPARE_CAUSE_BACKLOG) {
        e->stats.by_cause[cause]++;
        e->stats.timeouts += cause == COMPARE_CAUSE_SILENT;
    }
    g_snprintf(detail, sizeof(detail), "%s: %s", compare_cause_name(cause),
               fl ? flow_key_name(&fl->key, name, sizeof(name)) : "all flows");
    colo_trace(net_compare_trigger, "%s, epoch %" G_GUINT64_FORMAT, detail, e->c_epoch);
    e->ops.trigger(trigger_of(cause), detail, e->opaque);
}

static void note_mismatch(CompareEngine *e, CompareFlow *fl, CompareCause why,
                          uint32_t offset)
{
    CompareStats *s = &e->stats;

    s->by_cause[why]++;
    memmove(&s->last[1], &s->last[0], sizeof(s->last[0]) * (COMPARE_LAST - 1));
    s->last[0] = (CompareMismatch){fl->key, why, offset, e->c_epoch, e->now};
    s->n_last = MIN(s->n_last + 1, COMPARE_LAST);
}

void compare_force(CompareEngine *e, CompareFlow *fl, CompareCause why, uint32_t offset)
{
    if (fl->broken) {
        return;
    }
    fl->broken = true;
    fl->why = why;
    note_mismatch(e, fl, why, offset);
    compare_flow_wait(e, fl, true);
    trigger(e, fl, why);
}

void compare_hold_forced(CompareEngine *e, CompareFlow *fl, Frame *f, const Packet *p,
                         CompareCause why)
{
    Item *it = compare_item_new(e, fl, f, true);

    it->kind = ITEM_FORCED;
    if (fl->key.kind == PACKET_TCP) {
        compare_tcp_fill(fl, it, p);
    }
    if (fl->n_forced++ == 0) {
        fl->why = why;
        if (e->mode == COMPARE_MODE_COMPARE && !e->in_flight) {
            note_mismatch(e, fl, why, 0);
        }
    }
    compare_flow_wait(e, fl, true);
    trigger(e, fl, why);
}

void compare_backlog(CompareEngine *e, CompareFlow *fl)
{
    if (fl->n_held > e->cfg.max_queue_size &&
        e->now - MAX(fl->base, e->loaded_at) >= MIN_PATIENCE) {
        trigger(e, fl, COMPARE_CAUSE_BACKLOG);
    }
}

/* How long a silent twin is borne. On a host whose cores are taken, a twin is late now
 * and then without having diverged; a checkpoint would take yet more of them. So each
 * trigger for silence doubles the floor, and quiet time brings it back. */
static int64_t patience(CompareEngine *e, WaitClass c)
{
    if (e->floor > MIN_PATIENCE && e->now - e->floor_at > FLOOR_HALVES) {
        e->floor /= 2;
        e->floor_at = e->now;
    }
    int64_t t = MAX(MAX(MIN_PATIENCE, e->floor), 4 * e->lag);

    if (c == WAIT_FORCED) {
        return 0;
    }
    if (c == WAIT_BLOCKED) {
        return e->cfg.compare_timeout_us;
    }
    if (c == WAIT_QUERY) {
        t = MIN_PATIENCE;
    } else if (c == WAIT_ACK) {
        t += ACK_PATIENCE;
    }
    return MIN(t, e->cfg.compare_timeout_us);
}

static CompareCause cause_of(const CompareFlow *fl, WaitClass c)
{
    return c == WAIT_FORCED  ? (CompareCause)fl->why
           : c == WAIT_QUERY ? COMPARE_CAUSE_NO_TWIN
                             : COMPARE_CAUSE_SILENT;
}

/* Two stacks that cut the stream at other places, one of them at the end of its congestion
 * window, would wait for each other: half a frame is better than none. */
static int64_t release_parts(CompareEngine *e)
{
    CompareFlow *fl;

    while ((fl = e->wait[WAIT_PART].head) && fl->base + PART_PATIENCE <= e->now) {
        compare_tcp_leave_part(e, fl);
        compare_flow_wait_on(e, fl);
    }
    return fl ? fl->base + PART_PATIENCE : INT64_MAX;
}

/* Find who has waited too long; the time at which somebody will have. */
static int64_t check_waits(CompareEngine *e)
{
    int64_t next = INT64_MAX, due;

    if (!may_trigger(e)) {
        return INT64_MAX;
    }
    if (e->held.head) {
        /* However the twin moves, nobody waits longer than this. */
        due = MAX(e->held.head->stamp, e->loaded_at) + e->cfg.compare_timeout_us;
        if (due <= e->now) {
            trigger(e, e->held.head->flow, COMPARE_CAUSE_SILENT);
        }
        next = MAX(due, trigger_time(e));
    }
    for (unsigned c = 0; c < WAIT_WINDOW; c++) {
        CompareFlow *fl = e->wait[c].head;

        if (!fl) {
            continue;
        }
        due = MAX(fl->base, e->loaded_at) + patience(e, c);
        if (due <= e->now) {
            trigger(e, fl, cause_of(fl, c));
        }
        next = MIN(next, MAX(due, trigger_time(e)));
    }
    return next;
}

int64_t compare_engine_tick(CompareEngine *e, int64_t now)
{
    int64_t next;

    set_now(e, now);
    next = compare_dgram_tick(e, now);
    if (compare_engine_full(e)) {
        trigger(e, NULL, COMPARE_CAUSE_BACKLOG);
    }
    next = MIN(next, release_parts(e));
    return MIN(next, check_waits(e));
}

/* --- Input --- */

static uint64_t load_of(CompareEngine *e, bool primary)
{
    return primary ? e->held_bytes + e->next_p.bytes +
                         ((uint64_t)e->held.count + e->next_p.count) * FRAME_COST
                   : e->kept_bytes + e->next_s.bytes +
                         ((uint64_t)e->kept_segs.count + e->kept_dgrams.count +
                          e->next_s.count) *
                             FRAME_COST;
}

static bool full_of(CompareEngine *e)
{
    return load_of(e, true) + load_of(e, false) >= e->cfg.max_bytes;
}

bool compare_engine_full(CompareEngine *e)
{
    return full_of(e);
}

bool compare_engine_should_wait(CompareEngine *e, bool primary, bool waits)
{
    uint64_t mine = load_of(e, primary), other = load_of(e, !primary);
    uint64_t limit = waits ? e->cfg.max_bytes / 4 * 3 : e->cfg.max_bytes;

    return mine >= limit || (mine + other >= limit && (primary ? mine >= other : mine > other));
}

void compare_malformed(CompareEngine *e, const Frame *f, bool of_primary,
                       const char *what)
{
    e->stats.malformed[!of_primary]++;
    colo_trace(net_compare_malformed, "%s of the %s, %u bytes", what,
               of_primary ? "primary" : "secondary", f->len);
    if (e->ops.malformed) {
        e->ops.malformed(f, of_primary, what, e->opaque);
    }
}

/* What a guest's kernel would not send. Checksums over payloads are looked at only where
 * payloads differ. */
static inline void check_form(CompareEngine *e, const Frame *f, const Packet *p,
                              bool of_primary)
{
    if (G_UNLIKELY(p->kind == PACKET_OTHER)) {
        if (f->len < FRAME_MIN_ETH) {
            compare_malformed(e, f, of_primary, "frame cut short");
        } else if (p->key.ethertype == 0x0800 || p->key.ethertype == 0x86dd) {
            compare_malformed(e, f, of_primary, "impossible header or length");
        }
    } else if (p->key.ethertype == 0x0800 && !packet_ipv4_sum_ok(f->data + p->l3)) {
        compare_malformed(e, f, of_primary, "wrong IPv4 checksum");
    }
}

static void primary(CompareEngine *e, Frame *f, bool again)
{
    CompareFlow *fl;
    Packet p;

    packet_parse(f, true, &p);
    if (!again) {
        check_form(e, f, &p, true);
    }
    if (p.kind == PACKET_PASS && e->mode != COMPARE_MODE_HOLD) {
        compare_pass_primary(e, f, &p);
        return;
    }
    fl = compare_flow_get(e, &p.key);
    if (e->mode == COMPARE_MODE_PASS) {
        if (p.kind == PACKET_TCP) {
            compare_tcp_pass(e, fl, f, &p);
        } else {
            compare_release(e, f);
        }
        return;
    }
    if (f->epoch > e->c_epoch) {
        if (p.kind == PACKET_TCP && e->mode == COMPARE_MODE_COMPARE && !fl->n_forced &&
            compare_tcp_is_known(e, fl, &p)) {
            compare_tcp_release_known(e, fl, f, &p);
        } else {
            frame_queue_push(&e->next_p, f);
        }
        return;
    }
    if (e->mode == COMPARE_MODE_HOLD) {
        if (p.kind == PACKET_TCP) {
            compare_tcp_learn(e, fl, f, &p);
        }
        compare_hold_forced(e, fl, f, &p, COMPARE_CAUSE_SILENT);
        return;
    }
    if (p.kind == PACKET_TCP) {
        compare_tcp_primary(e, fl, f, &p);
    } else {
        compare_dgram_primary(e, fl, f, &p);
    }
}

void compare_engine_primary(CompareEngine *e, Frame *f, int64_t now)
{
    set_now(e, now);
    f->epoch = e->p_epoch;
    e->stats.primary_frames++;
    e->stats.primary_bytes += f->len;
    primary(e, f, false);
    if (G_UNLIKELY(full_of(e))) {
        trigger(e, NULL, COMPARE_CAUSE_BACKLOG);
    }
}

static void secondary(CompareEngine *e, Frame *f, bool again)
{
    CompareFlow *fl;
    Packet p;

    packet_parse(f, true, &p);
    if (!again) {
        check_form(e, f, &p, false);
    }
    if (p.kind == PACKET_PASS) {
        compare_pass_secondary(e, f, &p);
        return;
    }
    if (e->mode == COMPARE_MODE_HOLD || f->epoch < e->c_epoch) {
        e->stats.svm_dropped++;
        frame_unref(f);
        return;
    }
    if (f->epoch > e->c_epoch) {
        frame_queue_push(&e->next_s, f);
        return;
    }
    if (p.kind == PACKET_TCP) {
        fl = compare_flow_get(e, &p.key);
        compare_tcp_secondary(e, fl, f, &p);
    } else if (e->mode == COMPARE_MODE_COMPARE) {
        fl = compare_flow_get(e, &p.key);
        compare_dgram_secondary(e, fl, f, &p);
    } else {
        frame_unref(f);
    }
}

void compare_engine_secondary(CompareEngine *e, Frame *f, int64_t now)
{
    set_now(e, now);
    f->epoch = e->s_epoch;
    e->stats.secondary_frames++;
    e->stats.secondary_bytes += f->len;
    secondary(e, f, false);
}

void compare_engine_logged(CompareEngine *e, const FlowKey *flow, uint32_t upto,
                           int64_t now)
{
    CompareFlow *fl;

    set_now(e, now);
    /* Of another epoch: the SVM's own ACK will do. */
    if (e->mode == COMPARE_MODE_COMPARE && e->s_epoch == e->c_epoch &&
        (fl = compare_flow_find(e, flow)) && fl->key.kind == PACKET_TCP) {
        compare_flow_sync(e, fl);
        compare_tcp_logged(e, fl, upto);
    }
}

/* --- Epochs --- */

void compare_engine_secondary_marker(CompareEngine *e, uint64_t epoch)
{
    e->s_epoch = epoch;
}

void compare_engine_cut(CompareEngine *e, uint64_t epoch)
{
    Frame *f;

    /* A torn checkpoint's frames: held until a commit, compared with nothing. */
    while ((f = frame_queue_pop(&e->next_p))) {
        CompareFlow *fl;
        Packet p;

        packet_parse(f, true, &p);
        fl = compare_flow_get(e, &p.key);
        if (p.kind == PACKET_TCP) {
            compare_tcp_learn(e, fl, f, &p);
        }
        compare_hold_forced(e, fl, f, &p, COMPARE_CAUSE_SILENT);
    }
    if (e->mode == COMPARE_MODE_PASS && epoch <= e->p_epoch && epoch > 0) {
        /* Protection begins again with a new peer: epochs may, too. */
        e->c_epoch = MIN(e->c_epoch, epoch - 1);
        e->s_epoch = MIN(e->s_epoch, epoch - 1);
        e->p_epoch = epoch;
    }
    e->p_epoch = MAX(e->p_epoch, epoch);
    e->in_flight = true;
    e->asked = false;
    colo_trace(net_compare_cut, "epoch %" G_GUINT64_FORMAT ", %u held", epoch,
               e->held.count);
}

/* Release what was sent before @epoch, in order. */
static void release_before(CompareEngine *e, uint64_t epoch)
{
    Item *it;

    while ((it = e->held.head) && it->f->epoch < epoch) {
        CompareFlow *fl = it->flow;

        compare_flow_sync(e, fl);
        e->stats.committed++;
        if (fl->key.kind == PACKET_TCP) {
            compare_tcp_release_item(e, it);
        } else {
            compare_release(e, compare_item_take(e, it));
        }
        compare_flow_wait(e, fl, true);
    }
    /* ACKs and windows that were held back of frames which have left. */
    for (unsigned c = 0; c < WAIT__MAX; c++) {
        CompareFlow *next, *last = e->wait[c].tail; /* settling may put one behind it */

        for (CompareFlow *fl = e->wait[c].head; fl; fl = next) {
            next = fl == last ? NULL : fl->wait_next;
            compare_flow_sync(e, fl);
            if (fl->key.kind == PACKET_TCP && fl->n_held == 0) {
                compare_tcp_settle(e, fl);
            }
        }
    }
}

static void feed_again(CompareEngine *e)
{
    FrameQueue p = e->next_p, s = e->next_s;
    Frame *f;

    e->next_p = e->next_s = (FrameQueue){0};
    while ((f = frame_queue_pop(&p))) {
        primary(e, f, true);
    }
    while ((f = frame_queue_pop(&s))) {
        secondary(e, f, true);
    }
}

void compare_engine_commit(CompareEngine *e, uint64_t epoch, int64_t now)
{
    if (epoch <= e->c_epoch) {
        return;
    }
    set_now(e, now);
    e->c_epoch = epoch;
    e->generation++;
    clear_secondary(e);
    colo_trace(net_compare_commit, "epoch %" G_GUINT64_FORMAT ", %u held, %u waiting",
               epoch, e->held.count, e->next_p.count);
    release_before(e, epoch);
    feed_again(e);
}

void compare_engine_loaded(CompareEngine *e, uint64_t epoch, int64_t now)
{
    if (epoch < e->p_epoch) {
        return; /* a further checkpoint has begun */
    }
    set_now(e, now);
    e->in_flight = false;
    e->loaded_at = now;
}

/* --- Modes --- */

static void flush(CompareEngine *e)
{
    e->c_epoch = MAX(e->c_epoch, e->p_epoch);
    e->generation++;
    clear_secondary(e);
    release_before(e, UINT64_MAX);
    feed_again(e);
    frame_queue_clear(&e->next_s); /* of an epoch that will not be */
}

void compare_engine_flush_all(CompareEngine *e, int64_t now)
{
    CompareMode mode = e->mode;

    set_now(e, now);
    e->mode = COMPARE_MODE_PASS;
    flush(e);
    e->mode = mode;
}

void compare_engine_set_mode(CompareEngine *e, CompareMode mode, int64_t now)
{
    if (mode == e->mode) {
        return;
    }
    set_now(e, now);
    colo_trace(net_compare_mode, "%d -> %d, %u held", e->mode, mode, e->held.count);
    e->mode = mode;
    e->asked = false;
    if (mode == COMPARE_MODE_PASS) {
        e->in_flight = false;
        compare_pass_clear(e);
        flush(e);
        return;
    }
    if (mode == COMPARE_MODE_HOLD) {
        clear_secondary(e);
        frame_queue_clear(&e->next_s);
    }
    for (Item *it = e->held.head; it; it = it->next) {
        compare_flow_wait(e, it->flow, true);
    }
}

CompareMode compare_engine_mode(CompareEngine *e)
{
    return e->mode;
}

/* --- Statistics --- */

const char *compare_cause_name(CompareCause c)
{
    static const char *const names[COMPARE_CAUSE__MAX] = {
        [COMPARE_CAUSE_PAYLOAD] = "payload differs",
        [COMPARE_CAUSE_FIN] = "end of stream differs",
        [COMPARE_CAUSE_HANDSHAKE] = "handshake differs",
        [COMPARE_CAUSE_RETRANS] = "retransmission differs",
        [COMPARE_CAUSE_URGENT] = "urgent data",
        [COMPARE_CAUSE_REUSE] = "ports used again",
        [COMPARE_CAUSE_NO_TWIN] = "no twin possible",
        [COMPARE_CAUSE_SILENT] = "no progress of the secondary",
        [COMPARE_CAUSE_BACKLOG] = "queue full",
    };
    return c < COMPARE_CAUSE__MAX ? names[c] : "unknown";
}

void compare_engine_stats(CompareEngine *e, CompareStats *out)
{
    *out = e->stats;
    out->flows = e->n_flows;
    out->held_frames = e->held.count + e->next_p.count;
    out->held_bytes = e->held_bytes + e->next_p.bytes;
    out->svm_bytes = e->kept_bytes + e->next_s.bytes;
    out->lag_us = e->lag;
    out->held_since = e->held.head ? e->held.head->stamp : 0;
}

void compare_engine_held(CompareEngine *e, uint64_t *frames, uint64_t *bytes)
{
    *frames = e->held.count + e->next_p.count;
    *bytes = e->held_bytes + e->next_p.bytes;
}
