/*
 * Arbiter "witness": one key in etcd says who owns the virtual machine.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Goal: of all sides that could speak for one guest, one does, whatever happens to links,
 * processes and clocks' settings.
 *
 * The key holds {"owner", "state", ...}; the revision of its last change is the
 * generation. States of the key, and who may change it:
 *
 *   absent     nobody runs: anybody may create it
 *   alone      with a lease: its owner serves unprotected, and is silent before the lease
 *              can expire (then the key is gone). Only the owner changes it
 *   protected  without a lease: a pair is at work, both know the revision. Either side
 *              leaves by a swap of that revision against "alone, me"; the first swap
 *              makes the other fail, for good
 *
 * Invariants:
 * - A side lets its gate speak alone only while net_speak_until() lies ahead: that is the
 *   moment before its last successful keepalive was sent, plus the lease's time, less a
 *   margin, in CLOCK_BOOTTIME, which goes on in suspend. The gate looks itself, so a side
 *   that slept says nothing before it has asked.
 * - A request whose answer was lost may have been carried out. Each is made so that asking
 *   again shows it: the record names its owner. That of "alone" stands at KEY/last, too,
 *   without a lease, so that this holds when the lease is over.
 * - While protected nobody needs a lease and the witness may be away. Each side keeps one ready
 *   while it can, so that leaving costs one request.
 *
 * Limits: clocks must run at the same rate within the margin (a fifth of the lease). If
 * both sides die while protected the key stays: the operator's word (witness-key is
 * deleted, or x-colo-lost-heartbeat fenced=true) starts it anew.
 */
#include <string.h>
#include <unistd.h>

#include "migration/arbiter.h"
#include "migration/etcd.h"
#include "net/net.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

#define CALL_TIMEOUT_MS 1000
#define CLAIM_TRIES 5
#define RETRY_MS 500

typedef enum WitnessMode {
    WITNESS_IDLE,      /* no part in it: not yet, or never again */
    WITNESS_ALONE,     /* we own it, with a lease */
    WITNESS_PROTECTED, /* either side may leave */
    WITNESS_RETURN,    /* protection did not come to be: back to alone */
    WITNESS_FORCE,     /* the operator said that it is ours */
} WitnessMode;

static const char *const mode_names[] = {"idle", "alone", "protected", "return", "force"};

typedef struct Witness {
    Arbiter arbiter;
    char *key, *me, *record_alone, *record_protected;
    unsigned ttl_s;
    GThread *thread;

    GMutex call_lock; /* guards etcd and all below but what lock guards; held in calls */
    Etcd *etcd;
    int64_t lease, lease_asked_us; /* boot time before the last grant or keepalive */

    GMutex lock; /* leaf; guards: */
    GCond cond;
    WitnessMode mode;
    int64_t revision;
    bool quit;
    bool reachable; /* the last call went through */
} Witness;

static void set_mode(Witness *w, WitnessMode mode, int64_t revision)
{
    g_mutex_lock(&w->lock);
    colo_trace(migration_witness, "%s -> %s, revision %" G_GINT64_FORMAT,
               mode_names[w->mode], mode_names[mode], revision);
    w->mode = mode;
    w->revision = revision;
    g_cond_broadcast(&w->cond);
    g_mutex_unlock(&w->lock);
}

static WitnessMode get_mode(Witness *w, int64_t *revision)
{
    g_mutex_lock(&w->lock);
    WitnessMode m = w->mode;
    *revision = w->revision;
    g_mutex_unlock(&w->lock);
    return m;
}

static bool note_reach(Witness *w, bool ok)
{
    g_mutex_lock(&w->lock);
    if (ok != w->reachable) {
        colo_trace(migration_witness_reach, "%d", ok);
    }
    w->reachable = ok;
    g_mutex_unlock(&w->lock);
    return ok;
}

static int64_t speech_end(Witness *w)
{
    return w->lease_asked_us + (int64_t)w->ttl_s * G_USEC_PER_SEC * 4 / 5;
}

/* A lease with all of its time ahead. */
static bool renew_lease(Witness *w, GError **errp)
{
    int64_t left = 0, asked = net_boot_us();

    if (w->lease && etcd_lease_keepalive(w->etcd, w->lease, &left, errp) && left > 0) {
        w->lease_asked_us = asked;
        return note_reach(w, true);
    } else if (w->lease && left == 0 && errp && *errp) {
        return note_reach(w, false);
    }
    asked = net_boot_us();
    w->lease = etcd_lease_grant(w->etcd, w->ttl_s, errp);
    w->lease_asked_us = asked;
    return note_reach(w, w->lease != 0);
}

/* A lease with most of its time ahead: while protected there is one (witness_thread()), so that
 * whoever leaves asks once. It may be gone at the witness all the same; then the swap fails. */
static bool fresh_lease(Witness *w, GError **errp)
{
    int64_t age = net_boot_us() - w->lease_asked_us;

    return (w->lease && age < (int64_t)w->ttl_s * G_USEC_PER_SEC * 2 / 5) ||
           renew_lease(w, errp);
}

static bool record_is_mine(Witness *w, const char *text, const char *state)
{
    g_autoptr(JsonObject) o = text && text[0] == '{' ? options_parse(text, NULL, NULL) : NULL;

    return o && strcmp(options_get_str(o, "owner", ""), w->me) == 0 &&
           strcmp(options_get_str(o, "state", ""), state) == 0;
}

static bool is_mine(Witness *w, const EtcdValue *v, const char *state)
{
    return record_is_mine(w, v->text, state);
}

static bool swap_to_alone(Witness *w, int64_t revision, int64_t last, bool *done, int64_t *now,
                          EtcdValue *found, GError **errp)
{
    return etcd_swap(w->etcd, w->key, revision, last, w->record_alone, w->lease, done, now,
                     found, errp);
}

/* Swap the key from @revision (0: absent, -1: anything; with KEY/last at @last, -1: whatever
 * it is) to "alone, me". */
static ArbiterVerdict become_alone(Witness *w, int64_t revision, int64_t last, EtcdValue *found,
                                   GError **errp)
{
    bool done = false;
    int64_t now = 0;

    bool ok = fresh_lease(w, errp) && swap_to_alone(w, revision, last, &done, &now, found, errp);
    if (ok && !done && is_mine(w, found, "alone")) {
        /* Our own, whose answer was lost; perhaps with another lease than is kept now. */
        ok = swap_to_alone(w, found->revision, -1, &done, &now, found, errp);
        if (ok && !done && !found->text) { /* that lease ended this moment */
            ok = swap_to_alone(w, 0, found->last_revision, &done, &now, found, errp);
        }
    }
    note_reach(w, ok);
    if (!ok) {
        w->lease_asked_us = -(int64_t)w->ttl_s * G_USEC_PER_SEC; /* not relied on next time */
        return ARBITER_UNDECIDED;
    }
    if (!done) {
        return ARBITER_LOST;
    }
    net_speak_until(speech_end(w));
    set_mode(w, WITNESS_ALONE, now);
    return ARBITER_WON;
}

/* The key of generation @revision is gone. A lease has ended, so somebody had won: KEY/last,
 * which has none, says who. Was it this side, which never heard of it, and did nobody come after,
 * then it is still the winner. With nothing there about this generation somebody deleted
 * the key, or the witness lost its data: then only a human knows. */
static ArbiterVerdict find_winner(Witness *w, int64_t revision, EtcdValue *found, GError **errp)
{
    if (found->last && found->last_revision > revision) {
        return record_is_mine(w, found->last, "alone")
                   ? become_alone(w, 0, found->last_revision, found, errp)
                   : ARBITER_LOST;
    }
    colo_error_set(errp, "witness key '%s' is gone, and nothing tells of a winner: deleted, or the "
                   "witness lost its data. When the other side is known to be off, "
                   "x-colo-lost-heartbeat with fenced=true", w->key);
    return ARBITER_UNDECIDED;
}

static char *describe_found(const EtcdValue *v)
{
    g_autoptr(JsonObject) o =
        v->text && v->text[0] == '{' ? options_parse(v->text, NULL, NULL) : NULL;

    return o ? g_strdup_printf("%s, on %s", options_get_str(o, "state", "?"),
                               options_get_str(o, "host", "?"))
             : g_strdup(v->text ? "a key of another form" : "gone");
}

static bool witness_claim(Arbiter *a, GError **errp)
{
    Witness *w = (Witness *)a;
    g_auto(EtcdValue) found = {0};
    ArbiterVerdict v = ARBITER_UNDECIDED;
    g_autoptr(GError) err = NULL;

    g_mutex_lock(&w->call_lock);
    for (int i = 0; i < CLAIM_TRIES && v == ARBITER_UNDECIDED; i++) {
        g_clear_error(&err);
        v = become_alone(w, 0, -1, &found, &err);
        if (v == ARBITER_UNDECIDED) {
            g_usleep(RETRY_MS * 1000);
        }
    }
    g_mutex_unlock(&w->call_lock);
    if (v == ARBITER_LOST) {
        g_autofree char *who = describe_found(&found);
        colo_error_set(errp, "another process owns this guest (witness key '%s': %s): start "
                       "this one with -incoming, or wait for the lease to end; if all of "
                       "them are known to be dead, delete the key", w->key, who);
    } else if (v == ARBITER_UNDECIDED) {
        g_propagate_prefixed_error(errp, g_steal_pointer(&err),
                                   "the guest may not start without the witness: ");
    }
    return v == ARBITER_WON;
}

static char *witness_protect(Arbiter *a, GError **errp)
{
    Witness *w = (Witness *)a;
    g_auto(EtcdValue) found = {0};
    int64_t revision, now = 0;
    bool done = false, ok;

    g_mutex_lock(&w->call_lock);
    WitnessMode mode = get_mode(w, &revision);
    if (mode != WITNESS_ALONE && mode != WITNESS_RETURN) {
        colo_error_set(errp, "this side does not own the guest at the witness");
        g_mutex_unlock(&w->call_lock);
        return NULL;
    }
    ok = etcd_swap(w->etcd, w->key, revision, -1, w->record_protected, 0, &done, &now,
                   &found, errp);
    note_reach(w, ok);
    if (ok && !done && is_mine(w, &found, "protected")) {
        now = found.revision;
        done = true;
    }
    if (done) {
        net_speak_until(0); /* the pair needs no lease */
        set_mode(w, WITNESS_PROTECTED, now);
    } else if (ok) {
        colo_error_set(errp, "another process owns the guest at the witness");
    } else {
        set_mode(w, WITNESS_RETURN, revision); /* it may have been done */
    }
    g_mutex_unlock(&w->call_lock);
    return done ? g_strdup_printf("%" G_GINT64_FORMAT " %s", now, etcd_cluster(w->etcd)) : NULL;
}

static bool witness_join(Arbiter *a, const char *token, GError **errp)
{
    Witness *w = (Witness *)a;
    char *end = NULL;
    int64_t revision = g_ascii_strtoll(token, &end, 10);
    g_auto(EtcdValue) found = {0};

    if (revision <= 0) {
        colo_error_set(errp, "bad generation from the primary");
        return false;
    }
    /* Two keys of one name at two witnesses would be two owners. It may be away just now. */
    g_mutex_lock(&w->call_lock);
    bool here = note_reach(w, etcd_get(w->etcd, w->key, &found, NULL));
    bool same = !here || strcmp(etcd_cluster(w->etcd), *end == ' ' ? end + 1 : end) == 0;
    g_mutex_unlock(&w->call_lock);
    if (!same) {
        colo_error_set(errp, "the witness of this side is not the primary's: give both the "
                       "endpoints of one etcd cluster");
        return false;
    }
    set_mode(w, WITNESS_PROTECTED, revision);
    return true;
}

static void witness_unprotect(Arbiter *a)
{
    Witness *w = (Witness *)a;
    int64_t revision;

    if (get_mode(w, &revision) == WITNESS_PROTECTED) {
        set_mode(w, WITNESS_RETURN, revision);
    }
}

static ArbiterVerdict witness_leave(Arbiter *a, GError **errp)
{
    Witness *w = (Witness *)a;
    g_auto(EtcdValue) found = {0};
    int64_t revision;

    g_mutex_lock(&w->call_lock);
    WitnessMode mode = get_mode(w, &revision);
    ArbiterVerdict v = ARBITER_LOST;
    if (mode == WITNESS_ALONE || mode == WITNESS_FORCE) {
        v = ARBITER_WON;
    } else if (mode == WITNESS_PROTECTED) {
        v = become_alone(w, revision, -1, &found, errp);
        if (v == ARBITER_LOST && !found.text) {
            v = find_winner(w, revision, &found, errp);
        }
        if (v == ARBITER_LOST) {
            set_mode(w, WITNESS_IDLE, 0);
        }
    }
    g_mutex_unlock(&w->call_lock);
    return v;
}

static void witness_force(Arbiter *a)
{
    Witness *w = (Witness *)a;

    g_mutex_lock(&w->call_lock);
    etcd_forget_cluster(w->etcd);
    g_mutex_unlock(&w->call_lock);
    set_mode(w, WITNESS_FORCE, -1);
}

/* --- The thread that keeps what we own --- */

static void lose(Witness *w, const EtcdValue *found)
{
    g_autofree char *who = describe_found(found);
    g_autofree char *why = g_strdup_printf("the witness gave the guest away (%s)", who);

    net_speak_until(1); /* long ago: silent from here */
    set_mode(w, WITNESS_IDLE, 0);
    colo_ownership_lost(why);
}

/* Renew the lease; if it has ended, become the owner again unless another is. The lease
 * alone proves nothing: the key may have been deleted, or forced, by an operator. */
static void keep(Witness *w)
{
    int64_t left = 0, asked = net_boot_us();
    g_auto(EtcdValue) found = {0};

    bool ok = etcd_lease_keepalive(w->etcd, w->lease, &left, NULL) &&
              (left <= 0 || etcd_get(w->etcd, w->key, &found, NULL));
    note_reach(w, ok);
    if (ok && left > 0 && found.text && !is_mine(w, &found, "alone")) {
        lose(w, &found);
    } else if (ok && left > 0 && found.text && found.lease == w->lease) {
        w->lease_asked_us = asked;
        net_speak_until(speech_end(w));
    } else if (ok) {
        w->lease = left > 0 ? w->lease : 0;
        if (become_alone(w, 0, -1, &found, NULL) == ARBITER_LOST) {
            lose(w, &found);
        }
    }
}

static gpointer witness_thread(gpointer opaque)
{
    Witness *w = opaque;
    int64_t pause_us = (int64_t)w->ttl_s * G_USEC_PER_SEC / 5;

    g_mutex_lock(&w->lock);
    while (!w->quit) {
        WitnessMode mode = w->mode;
        bool away = !w->reachable || mode == WITNESS_RETURN || mode == WITNESS_FORCE;
        g_cond_wait_until(&w->cond, &w->lock, g_get_monotonic_time() +
                          (away ? MIN(RETRY_MS * 1000, pause_us) : pause_us));
        if (w->quit) {
            break;
        }
        g_mutex_unlock(&w->lock);
        g_mutex_lock(&w->call_lock);
        g_auto(EtcdValue) found = {0};
        int64_t revision;
        mode = get_mode(w, &revision);
        if (mode == WITNESS_ALONE) {
            keep(w);
        } else if (mode == WITNESS_PROTECTED) {
            g_autoptr(GError) away_now = NULL;
            renew_lease(w, &away_now); /* no key goes with it yet, and leaving bears its lack */
        } else if (mode == WITNESS_RETURN || mode == WITNESS_FORCE) {
            ArbiterVerdict v = become_alone(w, revision, -1, &found, NULL);
            /* What protect() wrote, though its answer was lost, has another revision. */
            if (v == ARBITER_LOST && is_mine(w, &found, "protected")) {
                set_mode(w, WITNESS_RETURN, found.revision);
            } else if (v == ARBITER_LOST && !found.text && revision != 0) {
                set_mode(w, WITNESS_RETURN, 0); /* the lease of before ended meanwhile */
            } else if (v == ARBITER_LOST) {
                lose(w, &found);
            }
        }
        g_mutex_unlock(&w->call_lock);
        g_mutex_lock(&w->lock);
    }
    g_mutex_unlock(&w->lock);
    return NULL;
}

static void witness_describe(Arbiter *a, JsonObject *out)
{
    Witness *w = (Witness *)a;
    int64_t until = net_speaks_until();

    g_mutex_lock(&w->lock);
    json_object_set_string_member(out, "key", w->key);
    json_object_set_string_member(out, "ownership", mode_names[w->mode]);
    json_object_set_int_member(out, "generation", MAX(w->revision, 0));
    json_object_set_boolean_member(out, "reachable", w->reachable);
    if (w->mode == WITNESS_ALONE) {
        int64_t left = (until - net_boot_us()) / 1000;
        json_object_set_int_member(out, "lease-left", MAX(0, left));
    }
    g_mutex_unlock(&w->lock);
}

static void witness_free(Arbiter *a)
{
    Witness *w = (Witness *)a;
    g_auto(EtcdValue) found = {0};
    int64_t revision, now;
    bool done;

    if (w->thread) {
        g_mutex_lock(&w->lock);
        w->quit = true;
        g_cond_broadcast(&w->cond);
        g_mutex_unlock(&w->lock);
        g_thread_join(w->thread);
    }
    WitnessMode mode = get_mode(w, &revision);
    if (mode == WITNESS_RETURN) {
        /* Protection did not come to be, but the key may say that it did, for good. */
        bool there = etcd_get(w->etcd, w->key, &found, NULL);
        bool mine = there && (is_mine(w, &found, "protected") || is_mine(w, &found, "alone"));
        mode = mine ? WITNESS_ALONE : mode;
        revision = found.revision;
    }
    if (mode == WITNESS_ALONE) {
        /* Ended in order: the next one need not wait for the lease. */
        net_speak_until(1);
        etcd_swap(w->etcd, w->key, revision, -1, NULL, 0, &done, &now, &found, NULL);
        etcd_lease_revoke(w->etcd, w->lease, NULL);
    }
    etcd_free(w->etcd);
    g_free(w->key);
    g_free(w->me);
    g_free(w->record_alone);
    g_free(w->record_protected);
    g_mutex_clear(&w->lock);
    g_mutex_clear(&w->call_lock);
    g_cond_clear(&w->cond);
    g_free(w);
}

static const ArbiterClass witness_class = {
    .name = "witness",
    .claim = witness_claim,
    .protect = witness_protect,
    .join = witness_join,
    .unprotect = witness_unprotect,
    .leave = witness_leave,
    .force = witness_force,
    .describe = witness_describe,
    .free = witness_free,
};

static char *make_record(Witness *w, const char *state)
{
    g_autoptr(JsonObject) o = json_object_new();
    g_autoptr(JsonNode) node = NULL;

    json_object_set_string_member(o, "owner", w->me);
    json_object_set_string_member(o, "state", state);
    json_object_set_string_member(o, "host", g_get_host_name());
    json_object_set_int_member(o, "pid", getpid());
    node = json_node_init_object(json_node_alloc(), o);
    return json_to_string(node, FALSE);
}

Arbiter *arbiter_witness_new(JsonObject *o, const char *vm, GError **errp)
{
    const char *urls = options_get_str(o, "witness", NULL);
    const char *key = options_get_str(o, "witness-key", NULL);
    const char *cert = options_get_str(o, "witness-cert", NULL);
    const char *cert_key = options_get_str(o, "witness-cert-key", NULL);
    uint64_t ttl = 10;

    if (!urls || (!key && !vm) || !cert != !cert_key) {
        colo_error_set(errp, "-colo: arbiter=witness needs %s",
                       !urls          ? "witness=URL of an etcd"
                       : !cert != !cert_key ? "witness-cert and witness-cert-key together"
                                      : "witness-key=KEY, or a guest with -name or -uuid");
        return NULL;
    }
    if (!options_get_uint(o, "witness-lease", &ttl, 2, 3600, errp)) {
        g_prefix_error(errp, "-colo: ");
        return NULL;
    }
    Etcd *etcd = etcd_new(urls, options_get_str(o, "witness-cacert", NULL), cert, cert_key,
                          CALL_TIMEOUT_MS, errp);
    if (!etcd) {
        g_prefix_error(errp, "-colo: ");
        return NULL;
    }
    Witness *w = g_new0(Witness, 1);
    w->arbiter.class = &witness_class;
    w->etcd = etcd;
    w->key = key ? g_strdup(key) : g_strdup_printf("qemu-colo/%s/owner", vm);
    w->ttl_s = ttl;
    w->arbiter.name = g_strdup_printf("witness %s", w->key);
    w->me = g_uuid_string_random();
    w->record_alone = make_record(w, "alone");
    w->record_protected = make_record(w, "protected");
    w->reachable = true;
    g_mutex_init(&w->lock);
    g_mutex_init(&w->call_lock);
    g_cond_init(&w->cond);
    w->thread = g_thread_new("colo-witness", witness_thread, w);
    return &w->arbiter;
}
