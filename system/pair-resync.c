/*
 * The disks of a new secondary: brought up to date, then replicated.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A mirror job a disk copies while the guest runs. Once all are ready the guest is stopped,
 * the jobs end (their last moment is the one of which the secondary's images are the copy), the
 * replication children take their place, and the guest runs. The forwarders' connections
 * are made before the stop. The target's flushes are not part of it: the long one comes before a
 * job is ready, and what of the rest the guest wrote until the stop is flushed after it, before
 * protection begins. The stop is bounded: whatever does not come in time, the guest runs on
 * and the try has failed.
 */
#include "system/pair-int.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "block/block.h"
#include "block/job.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

#define POLL_MS 100
#define HELD_POLL_US 500
#define FLUSH_POLL_US 5000
#define HELD_MAX_MS 1500
#define CANCEL_MS 10000
#define ASK_NBD_MS 2000
#define STALL_MIN_MS 5000
#define FLUSH_MAX_MS 120000 /* of a peer that answers */
#define ASK_PEER_MS 1000

/* --- Who is who --- */

static const PairPeerDisk *peer_disk(const PairPeer *peer, const char *top)
{
    for (unsigned i = 0; i < peer->n_disks; i++) {
        if (strcmp(peer->disks[i].top, top) == 0) {
            return &peer->disks[i];
        }
    }
    return NULL;
}

static bool match(Pair *p, const PairPeer *peer, GError **errp)
{
    for (guint i = 0; i < p->layout->disks->len; i++) {
        PairDisk *d = p->layout->disks->pdata[i];
        const PairPeerDisk *theirs = peer_disk(peer, d->top);

        if (!theirs || !*theirs->export) {
            colo_error_set(errp, "the secondary has no disk for '%s' (a driver=replication "
                                 "drive with top-id=%s)", d->top, d->top);
            return false;
        }
        /* It goes into commands as it is. */
        if (strpbrk(theirs->export, "\"\\,/%? \t\r\n")) {
            colo_error_set(errp, "the secondary's export '%s' has a name that cannot be used",
                           theirs->export);
            return false;
        }
        d->found = block_node_exists(d->node);
        g_free(d->export);
        d->export = g_strdup(theirs->export);
        d->shared = theirs->shared;
    }
    return true;
}

/* Whether an NBD server answers: the handlers wait for one in the main thread. */
static bool nbd_answers(Pair *p, GError **errp)
{
    int fd = pair_connect(p->opts.peer, p->opts.nbd_port, ASK_NBD_MS, NULL, errp);
    char magic[8];

    if (fd < 0) {
        return false;
    }
    struct pollfd pfd = {fd, POLLIN, 0};
    bool ok = poll(&pfd, 1, ASK_NBD_MS) > 0 && recv(fd, magic, 8, MSG_WAITALL) == 8 &&
              memcmp(magic, "NBDMAGIC", 8) == 0;
    close(fd);
    if (!ok) {
        colo_error_set(errp, "no NBD server answers on %s:%u", p->opts.peer, p->opts.nbd_port);
    }
    return ok;
}

/* --- Mirror jobs --- */

typedef struct Progress {
    unsigned there, ready, flushing;
    uint64_t done, total;
} Progress;

static Progress progress(Pair *p)
{
    g_autoptr(JsonArray) jobs = block_job_query_block();
    Progress out = {0};

    for (guint i = 0; i < json_array_get_length(jobs); i++) {
        JsonObject *o = json_array_get_object_element(jobs, i);
        for (guint k = 0; k < p->layout->disks->len; k++) {
            const PairDisk *d = p->layout->disks->pdata[k];
            if (strcmp(options_get_str(o, "device", ""), d->job) == 0) {
                out.there++;
                out.ready += json_object_get_boolean_member(o, "ready");
                out.flushing += block_job_phase(d->job) == BLOCK_JOB_FLUSHES;
                out.done += json_object_get_int_member(o, "offset");
                out.total += json_object_get_int_member(o, "len");
            }
        }
    }
    return out;
}

/* Encryption needs a node of its own, as an URI has no place for credentials. */
static char *target_node(const PairDisk *d)
{
    return g_strconcat(d->job, "-target", NULL);
}

static bool add_target(Pair *p, const PairDisk *d, const char *node, const char *tls,
                       GError **errp)
{
    return block_node_exists(node) ||
           pair_qmp_do(p->qmp, "blockdev-add", errp,
                       "{\"driver\":\"nbd\",\"node-name\":\"%s\",\"server\":{\"type\":\"inet\","
                       "\"host\":\"%s\",\"port\":\"%u\"},\"export\":\"%s\",\"tls-creds\":\"%s\"}",
                       node, p->opts.peer, p->opts.nbd_port, d->export, tls);
}

/* Once no job is left. */
static void del_targets(Pair *p)
{
    for (guint i = 0; i < p->layout->disks->len; i++) {
        g_autofree char *node = target_node(p->layout->disks->pdata[i]);
        if (block_node_exists(node)) {
            pair_qmp_do(p->qmp, "blockdev-del", NULL, "{\"node-name\":\"%s\"}", node);
        }
    }
}

static bool start_job(Pair *p, const PairDisk *d, const char *sync, GError **errp)
{
    bool v6 = strchr(p->opts.peer, ':');
    const char *tls = p->opts.settings.tls_client;

    if (tls) {
        g_autofree char *node = target_node(d);
        return add_target(p, d, node, tls, errp) &&
               pair_qmp_do(p->qmp, "blockdev-mirror", errp,
                           "{\"device\":\"%s\",\"job-id\":\"%s\",\"target\":\"%s\","
                           "\"sync\":\"%s\"}", d->top, d->job, node, sync);
    }
    return pair_qmp_do(p->qmp, "drive-mirror", errp,
                       "{\"device\":\"%s\",\"job-id\":\"%s\",\"target\":\"nbd://%s%s%s:%u/%s\","
                       "\"mode\":\"existing\",\"format\":\"raw\",\"sync\":\"%s\"}",
                       d->top, d->job, v6 ? "[" : "", p->opts.peer, v6 ? "]" : "",
                       p->opts.nbd_port, d->export, sync);
}

/* Whether @d has to be copied. */
static bool needs_copy(Pair *p, const PairDisk *d)
{
    return !d->shared && !d->found && !(p->sync == PAIR_SYNC_NONE && !p->incoming &&
                           !block_node_written(d->top));
}

/* @n: how many jobs were started. */
static bool start_jobs(Pair *p, unsigned *n, GError **errp)
{
    pair_qmp_forget_jobs(p->qmp);
    for (guint i = 0; i < p->layout->disks->len; i++) {
        const PairDisk *d = p->layout->disks->pdata[i];
        g_autoptr(GError) err = NULL;

        if (!needs_copy(p, d)) {
            continue;
        }
        if (p->sync != PAIR_SYNC_FULL) {
            if (start_job(p, d, "incremental", &err)) {
                ++*n;
                continue;
            }
            colo_trace(pair_full_copy, "%s: %s", d->top, err->message);
        }
        if (!start_job(p, d, "full", errp)) {
            return false;
        }
        ++*n;
    }
    return true;
}

/* Why the first job that failed did. */
static void set_job_error(Pair *p, GError **errp)
{
    pair_qmp_drain(p->qmp);
    for (guint i = 0; i < p->layout->disks->len; i++) {
        const PairDisk *d = p->layout->disks->pdata[i];
        const char *why = pair_qmp_job_error(p->qmp, d->job);
        if (why) {
            colo_error_set(errp, "copying disk '%s' failed: %s", d->top, why);
            return;
        }
    }
    colo_error_set(errp, "the copy of the disks was ended by somebody else");
}

static void show(Pair *p, const Progress *g)
{
    g_mutex_lock(&p->lock);
    p->resync_done = g->done;
    p->resync_total = g->total;
    g_mutex_unlock(&p->lock);
}

/* A flush shows no progress. That it is one, and no hang, the peer's own word has to do for. */
static bool peer_lives(Pair *p)
{
    PairRefusal r = PAIR_OK;
    PairPeer peer;

    return pair_peer_ask(p->opts.peer, p->opts.pair_port, ASK_PEER_MS, &p->key, &peer, &r, NULL) ==
               PAIR_HEARD &&
           strcmp(peer.state, "waiting") == 0;
}

static int64_t stall_us(Pair *p)
{
    return MAX(STALL_MIN_MS, 3 * p->opts.peer_timeout) * 1000LL;
}

/* Whether to wait on for flushes that began at @since or later. */
static bool flush_may_last(Pair *p, int64_t since)
{
    return g_get_monotonic_time() - since < FLUSH_MAX_MS * 1000LL && peer_lives(p);
}

static bool wait_ready(Pair *p, unsigned n, GError **errp)
{
    int64_t moved = g_get_monotonic_time(), progressed = moved;
    uint64_t last = 0;

    for (;;) {
        Progress g = progress(p);
        show(p, &g);
        if (g.there < n) {
            set_job_error(p, errp);
            return false;
        } else if (g.ready == n) {
            return true;
        } else if (pair_quits()) {
            colo_error_set(errp, "the process ends");
            return false;
        }
        if (g.done != last) {
            last = g.done;
            moved = progressed = g_get_monotonic_time();
        } else if (g_get_monotonic_time() - moved > stall_us(p)) {
            if (!g.flushing || !flush_may_last(p, progressed)) {
                colo_error_set(errp, "the secondary has %s of the disks for %d ms",
                               g.flushing ? "not ended a flush" : "taken nothing",
                               (int)((g_get_monotonic_time() - progressed) / 1000));
                return false;
            }
            moved = g_get_monotonic_time();
        }
        g_usleep(POLL_MS * 1000);
        pair_qmp_drain(p->qmp);
    }
}

/* --- From the jobs to the forwarders --- */

static bool add_nodes(Pair *p, GError **errp)
{
    const char *tls = p->opts.settings.tls_client;

    for (guint i = 0; i < p->layout->disks->len; i++) {
        const PairDisk *d = p->layout->disks->pdata[i];
        if (!block_node_exists(d->node) &&
            !pair_qmp_human(p->qmp, errp,
                            "drive_add -n buddy driver=replication,mode=primary,file.driver=nbd,"
                            "file.host=%s,file.port=%u,file.export=%s,node-name=%s%s%s%s",
                            p->opts.peer, p->opts.nbd_port, d->export, d->node,
                            d->shared ? ",shared-disk=on" : "",
                            tls ? ",file.tls-creds=" : "", tls ? tls : "")) {
            return false;
        }
    }
    return true;
}

static bool attach_nodes(Pair *p, GError **errp)
{
    for (guint i = 0; i < p->layout->disks->len; i++) {
        const PairDisk *d = p->layout->disks->pdata[i];
        g_autoptr(GError) err = NULL;
        if (!pair_qmp_do(p->qmp, "x-blockdev-change", &err,
                         "{\"parent\":\"%s\",\"node\":\"%s\"}", d->top, d->node) &&
            !d->found) {
            g_propagate_error(errp, g_steal_pointer(&err));
            return false;
        }
    }
    return true;
}

/* Stop the guest, unless it stands still. */
static bool hold(Pair *p, GError **errp)
{
    MigrationView v;

    migration_view(&v);
    if (v.paused || v.guest_off) {
        return true;
    }
    p->held = true;
    return pair_qmp_run(p->qmp, "stop", NULL, NULL, errp);
}

/* Whether all jobs let go of the guest's disks: gone, or parted. */
static bool parted(Pair *p)
{
    for (guint i = 0; i < p->layout->disks->len; i++) {
        BlockJobPhase phase = block_job_phase(((PairDisk *)p->layout->disks->pdata[i])->job);

        if (phase != BLOCK_JOB_GONE && phase != BLOCK_JOB_PARTED) {
            return false;
        }
    }
    return true;
}

static bool part_jobs(Pair *p, GError **errp)
{
    int64_t end = g_get_monotonic_time() + HELD_MAX_MS * 1000LL;

    for (guint i = 0; i < p->layout->disks->len; i++) {
        const PairDisk *d = p->layout->disks->pdata[i];
        if (block_job_exists(d->job) &&
            !pair_qmp_do(p->qmp, "block-job-cancel", errp, "{\"device\":\"%s\"}", d->job)) {
            return false;
        }
    }
    while (!parted(p)) {
        if (g_get_monotonic_time() > end) {
            colo_error_set(errp, "the copy of the disks does not end within %d ms", HELD_MAX_MS);
            return false;
        }
        g_usleep(HELD_POLL_US);
    }
    return true;
}

/* What the guest wrote until the stop is flushed over there, while it runs. */
static bool wait_jobs(Pair *p, GError **errp)
{
    int64_t start = g_get_monotonic_time(), asked = start;

    while (progress(p).there > 0) {
        if (pair_quits()) {
            colo_error_set(errp, "the process ends");
            return false;
        }
        if (g_get_monotonic_time() - asked > stall_us(p)) {
            if (!flush_may_last(p, start)) {
                colo_error_set(errp, "the secondary has not flushed the copy of the disks in %d ms",
                               (int)((g_get_monotonic_time() - start) / 1000));
                return false;
            }
            asked = g_get_monotonic_time();
        }
        g_usleep(FLUSH_POLL_US);
    }
    /* Why a job failed is told by an event, which the main thread sends, perhaps after the job
     * has gone. It sends it before it answers this. */
    if (!pair_qmp_run(p->qmp, "query-status", NULL, NULL, errp)) {
        return false;
    }
    for (guint i = 0; i < p->layout->disks->len; i++) {
        if (pair_qmp_job_error(p->qmp, ((PairDisk *)p->layout->disks->pdata[i])->job)) {
            set_job_error(p, errp);
            return false;
        }
    }
    return true;
}

bool pair_attach_disks(Pair *p, const PairPeer *peer, GError **errp)
{
    unsigned jobs = 0;

    if (p->layout->disks->len == 0) {
        return true;
    }
    pair_set_state(PAIR_RESYNC, peer->name);
    if (!match(p, peer, errp) || !nbd_answers(p, errp) || !start_jobs(p, &jobs, errp) ||
        !wait_ready(p, jobs, errp) || !add_nodes(p, errp)) {
        return false;
    }
    int64_t start = g_get_monotonic_time();
    bool ok = hold(p, errp) && part_jobs(p, errp) && attach_nodes(p, errp);
    bool held = p->held;
    pair_let_go(p);
    int64_t pause = held ? g_get_monotonic_time() - start : 0;
    ok = ok && wait_jobs(p, errp);
    if (ok) {
        del_targets(p);
    }
    g_mutex_lock(&p->lock);
    p->resync_pause_us = pause;
    g_mutex_unlock(&p->lock);
    colo_trace(pair_attached, "%s, the guest stood for %" G_GINT64_FORMAT " us",
               ok ? "in order" : "failed", pause);
    return ok;
}

bool pair_detach_disks(Pair *p, GError **errp)
{
    int64_t end = g_get_monotonic_time() + CANCEL_MS * 1000LL;
    bool ok = true;

    for (guint i = 0; i < p->layout->disks->len; i++) {
        const PairDisk *d = p->layout->disks->pdata[i];
        if (block_job_exists(d->job)) {
            pair_qmp_do(p->qmp, "block-job-cancel", NULL,
                        "{\"device\":\"%s\",\"force\":true}", d->job);
        }
    }
    while (progress(p).there > 0 && g_get_monotonic_time() < end && !pair_quits()) {
        g_usleep(POLL_MS * 1000);
    }
    del_targets(p);
    for (guint i = 0; i < p->layout->disks->len; i++) {
        const PairDisk *d = p->layout->disks->pdata[i];
        if (!block_node_exists(d->node)) {
            continue;
        }
        /* It may not be a child yet. */
        pair_qmp_do(p->qmp, "x-blockdev-change", NULL, "{\"parent\":\"%s\",\"child\":\"%s\"}",
                    d->top, d->node);
        ok = pair_qmp_human(p->qmp, ok ? errp : NULL, "drive_del %s", d->node) && ok;
    }
    return ok;
}
