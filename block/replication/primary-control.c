/*
 * All forwarders of a primary together: what the checkpoint controller asks of the disks.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The controller's thread flushes and begins activity logs without the block lock, while
 * the monitor may take a node out of its quorum. What it works on is held meanwhile
 * (primaries_hold()); a node in use cannot be deleted.
 */
#include "primary-int.h"

#include "../activity-log.h"

/* Room singleton, guarded by the block lock. */
static struct {
    BlockReplicationFunc fn;
    void *opaque;
} control;

bool block_primary_notify(bool fatal, const char *message)
{
    if (control.fn) {
        control.fn(fatal, message, control.opaque);
    }
    return control.fn != NULL;
}

/* All attached forwarders, those that died too; the caller frees. */
static GPtrArray *primaries(void)
{
    GPtrArray *out = g_ptr_array_new();
    GHashTableIter it;
    BlockNode *node;

    g_hash_table_iter_init(&it, block_nodes());
    while (g_hash_table_iter_next(&it, NULL, (gpointer *)&node)) {
        if (block_node_is_primary(node) && ((Primary *)node->opaque)->attached) {
            g_ptr_array_add(out, node->opaque);
        }
    }
    return out;
}

/* The quorum that @p is attached to, or NULL. */
static BlockNode *primary_quorum(Primary *p)
{
    GHashTableIter it;
    BlockNode *node, *fw[32];

    g_hash_table_iter_init(&it, block_nodes());
    while (g_hash_table_iter_next(&it, NULL, (gpointer *)&node)) {
        unsigned n = block_node_is_quorum(node)
                         ? block_quorum_forwarders(node, fw, G_N_ELEMENTS(fw))
                         : 0;

        for (unsigned i = 0; i < n; i++) {
            if (fw[i] == p->node) {
                return node;
            }
        }
    }
    return NULL;
}

GPtrArray *primary_images(Primary *p)
{
    BlockNode *quorum = primary_quorum(p);

    return quorum ? activity_log_images(quorum) : g_ptr_array_new();
}

/* All attached forwarders, to be used without the lock: see primaries_release(). */
static GPtrArray *primaries_hold(void)
{
    block_lock();
    GPtrArray *all = primaries();
    for (guint i = 0; i < all->len; i++) {
        ((Primary *)all->pdata[i])->in_flight++;
    }
    block_unlock();
    return all;
}

static void primaries_release(GPtrArray *all)
{
    block_lock();
    for (guint i = 0; i < all->len; i++) {
        Primary *p = all->pdata[i];

        p->in_flight--;
        primary_unref(p);
    }
    block_unlock();
    g_ptr_array_unref(all);
}

/* Under the lock: the images of @p, to be used without it; none once @p is closed. */
static GPtrArray *primary_hold_images(Primary *p)
{
    GPtrArray *images = p->error || p->closed ? g_ptr_array_new() : primary_images(p);

    for (guint i = 0; i < images->len; i++) {
        ((BlockNode *)images->pdata[i])->users++;
    }
    return images;
}

/* Under the lock. */
static void images_release(GPtrArray *images)
{
    for (guint i = 0; i < images->len; i++) {
        block_node_unuse(images->pdata[i]);
    }
    g_ptr_array_unref(images);
}

bool block_primary_flush_peer(BlockNode *image, BlockRequest *req)
{
    g_autoptr(GPtrArray) all = primaries();

    for (guint i = 0; i < all->len; i++) {
        Primary *p = all->pdata[i];
        g_autoptr(GPtrArray) images = primary_images(p);

        if (!p->error && g_ptr_array_find(images, image, NULL)) {
            nbd_client_submit(p->client, req);
            return true;
        }
    }
    return false;
}

/* From here on a write is in the log; all before it is durable on both sides. */
static bool primary_begin_log(Primary *p, GPtrArray *images, GError **errp)
{
    for (guint i = 0; i < images->len; i++) {
        BlockNode *image = images->pdata[i];

        block_lock();
        bool has = activity_log_of(image) != NULL;
        block_unlock();
        if (!has) {
            g_autoptr(GError) err = NULL;

            /* Said already; the pair is protected all the same. */
            activity_log_begin(image, "", true, &err);
        }
        int r = block_flush_wait(image, 30000);
        if (r < 0) {
            colo_error_set_errno(errp, -r, "disk '%s' cannot be flushed", image->name);
            return false;
        }
    }
    return true;
}

/* What the secondary got before the log began is on its disk. */
static void peer_flush_done(BlockRequest *req, int ret)
{
    Primary *p = req->opaque;

    g_free(req);
    p->in_flight--;
    p->peer_flushing = false;
    p->peer_flushed = ret == 0;
    primary_unref(p);
}

static void primary_flush_secondary(Primary *p)
{
    if (p->peer_flushing || p->peer_flushed) {
        return;
    }
    BlockRequest *req = g_new0(BlockRequest, 1);

    req->op = BLOCK_OP_FLUSH;
    req->done = peer_flush_done;
    req->opaque = p;
    p->peer_flushing = true;
    p->in_flight++;
    nbd_client_submit(p->client, req);
    g_main_context_wakeup(io_thread_context(block_thread()));
}

/* Activity logs of all disks that are replicated. Without the lock. */
static bool primaries_begin_logs(GError **errp)
{
    GPtrArray *all = primaries_hold();
    bool ok = true;

    for (guint i = 0; ok && i < all->len; i++) {
        Primary *p = all->pdata[i];

        block_lock();
        GPtrArray *images = primary_hold_images(p);
        if (p->is_shared) {
            /* One image never differs from itself. */
            for (guint k = 0; k < images->len; k++) {
                activity_log_drop(images->pdata[k]);
            }
        }
        block_unlock();
        if (!p->is_shared) {
            ok = primary_begin_log(p, images, errp);
        }
        block_lock();
        images_release(images);
        block_unlock();
    }
    primaries_release(all);
    return ok;
}

static void primaries_set_mode(ActivityLogMode mode)
{
    g_autoptr(GPtrArray) all = primaries();

    for (guint i = 0; i < all->len; i++) {
        g_autoptr(GPtrArray) images = primary_images(all->pdata[i]);

        for (guint k = 0; k < images->len; k++) {
            activity_log_set_mode(activity_log_of(images->pdata[k]), mode);
        }
    }
}

void block_primary_committed(void)
{
    GPtrArray *all = primaries_hold();

    for (guint i = 0; i < all->len; i++) {
        Primary *p = all->pdata[i];
        g_autoptr(GError) err = NULL;

        if (p->is_shared) {
            continue;
        }
        block_lock();
        GPtrArray *images = primary_hold_images(p);
        bool begin =
            !p->error && !p->closed && !p->paired && p->generation && p->peer_flushed;
        if (!p->error && !p->closed && !p->paired) {
            primary_flush_secondary(p);
        }
        block_unlock();
        for (guint k = 0; k < images->len; k++) {
            BlockNode *image = images->pdata[k];

            if (begin && !activity_log_begin(image, p->generation, true, &err)) {
                colo_report("disk '%s': %s", p->name, err->message);
                g_clear_error(&err);
            }
            block_lock();
            if (begin && !p->error) {
                activity_log_set_mode(activity_log_of(image), ACTIVITY_LOG_PAIRED);
            }
            activity_log_committed(activity_log_of(image));
            block_unlock();
        }
        block_lock();
        p->paired |= begin;
        images_release(images);
        block_unlock();
    }
    primaries_release(all);
}

static void primary_disk_error(const char *message)
{
    block_primary_notify(true, message);
}

/* Whether the guest's disk @node is replicated, or need not be. */
static bool primary_covers(BlockNode *node, GError **errp)
{
    BlockNode *fw[8];
    unsigned n = block_node_is_quorum(node)
                     ? block_quorum_forwarders(node, fw, G_N_ELEMENTS(fw))
                     : 0;

    if (node->read_only) {
        return true;
    }
    for (unsigned i = 0; i < n; i++) {
        Primary *p = fw[i]->opaque;

        if (!p->error) {
            return true;
        }
    }
    if (n > 0) {
        colo_error_set(errp,
                       "disk '%s': replication child '%s' has lost its secondary (%s)",
                       node->name, fw[0]->name, ((Primary *)fw[0]->opaque)->error);
    } else {
        colo_error_set(errp,
                       "disk '%s' is not replicated: attach a driver=replication,"
                       "mode=primary node to its quorum with x-blockdev-change",
                       node->name);
    }
    return false;
}

bool block_primary_start(BlockReplicationFunc fn, void *opaque, GError **errp)
{
    GHashTableIter it;
    BlockNode *node;
    bool ok = true;

    block_lock();
    g_hash_table_iter_init(&it, block_nodes());
    while (ok && g_hash_table_iter_next(&it, NULL, (gpointer *)&node)) {
        if (block_front_is_guest(node->front)) {
            ok = primary_covers(node, errp);
        }
    }
    if (ok) {
        g_autoptr(GPtrArray) all = primaries();

        for (guint i = 0; i < all->len; i++) {
            Primary *p = all->pdata[i];
            BlockNode *quorum = primary_quorum(p);

            p->running = true;
            if (quorum) {
                /* The peer's image leaves that moment: it holds for one start only. */
                g_clear_pointer(&quorum->mirrored_to, g_free);
            }
        }
        control.fn = fn;
        control.opaque = opaque;
        block_front_set_error_func(primary_disk_error);
    }
    block_unlock();
    if (ok && !primaries_begin_logs(errp)) {
        block_lock();
        control.fn = NULL;
        block_front_set_error_func(NULL);
        block_unlock();
        ok = false;
    }
    return ok;
}

void block_primary_hold(bool hold)
{
    block_lock();
    block_front_hold_all(hold);
    block_unlock();
}

unsigned block_primary_barriers(BlockBarrier *out, unsigned max)
{
    block_lock();
    g_autoptr(GPtrArray) all = primaries();
    unsigned n = 0;
    for (guint i = 0; i < all->len && n < max; i++) {
        Primary *p = all->pdata[i];

        if (!p->error) {
            g_autoptr(GPtrArray) images = primary_images(p);

            for (guint k = 0; k < images->len; k++) {
                activity_log_barrier(activity_log_of(images->pdata[k]));
            }
            g_strlcpy(out[n].disk, nbd_client_export(p->client), sizeof(out[n].disk));
            out[n++].sequence = p->sequence;
        }
    }
    block_unlock();
    return n;
}

uint64_t block_primary_behind(const BlockBarrier *barriers, unsigned n)
{
    uint64_t behind = 0;

    block_lock();
    g_autoptr(GPtrArray) all = primaries();
    for (guint i = 0; i < all->len; i++) {
        Primary *p = all->pdata[i];
        uint64_t acked = p->sequence - MIN(p->sequence, p->in_flight);

        for (unsigned k = 0; k < n && !p->error; k++) {
            if (!strcmp(barriers[k].disk, nbd_client_export(p->client)) &&
                barriers[k].sequence > acked) {
                behind += barriers[k].sequence - acked;
            }
        }
    }
    block_unlock();
    return behind;
}

bool block_primary_flushed(GSourceFunc done, void *opaque)
{
    block_lock();
    bool r = block_front_flushed_all(done, opaque);
    block_unlock();
    return r;
}

void block_primary_stop(void)
{
    block_lock();
    control.fn = NULL;
    block_front_set_error_func(NULL);
    primaries_set_mode(ACTIVITY_LOG_ALONE);
    g_autoptr(GPtrArray) all = primaries();
    for (guint i = 0; i < all->len; i++) {
        Primary *p = all->pdata[i];

        if (!p->error) {
            p->stopped = true;
            p->error = g_strdup("protection ended");
            io_source_destroy(&p->patience);
        }
    }
    block_shared_drain();
    block_front_hold_all(false);
    block_front_kick_all();
    block_unlock();
}

JsonArray *block_primary_disks(void)
{
    JsonArray *a = json_array_new();

    block_lock();
    g_autoptr(GPtrArray) all = primaries();
    for (guint i = 0; i < all->len; i++) {
        Primary *p = all->pdata[i];
        JsonObject *o = json_object_new();

        json_object_set_string_member(o, "disk", nbd_client_export(p->client));
        json_object_set_string_member(o, "connection", nbd_client_name(p->client));
        json_object_set_int_member(o, "size", p->node->size);
        json_object_set_boolean_member(o, "shared", p->is_shared);
        if (!p->generation) {
            p->generation = activity_log_new_generation();
        }
        json_object_set_string_member(o, "generation", p->generation);
        BlockNode *quorum = primary_quorum(p);
        if (quorum && !g_strcmp0(quorum->mirrored_to, nbd_client_export(p->client))) {
            json_object_set_boolean_member(o, "mirrored", TRUE);
        }
        json_array_add_object_element(a, o);
    }
    block_unlock();
    return a;
}
