/*
 * A secondary whose image is the primary's, too.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The primary alone writes the image while it lives; shared-log.c has the idea. Here that
 * means: committed layers are not applied but kept until the primary says that the image
 * has them, flushed; before the start arrivals are counted and dropped, for the primary
 * writes them itself; and a takeover first becomes the image's owner. The takeover then
 * applies all layers that are left, whether the primary had begun with them or not.
 *
 * The locks of the image are taken by then and no earlier. A lock that the old owner still
 * holds is waited for, LOCK_WAIT_MS at most: it goes when the last of its I/O has ended.
 * Where locks do not reach the other host (a block device) only the fence guards the image.
 */
#include "secondary-int.h"

#include <inttypes.h>

#define LOCK_WAIT_MS 10000
#define LOCK_RETRY_MS 10

void block_secondary_applied(const BlockBarrier *barriers, unsigned n)
{
    block_lock();
    for (unsigned i = 0; i < n; i++) {
        BlockSecondary *s = secondary_of_disk(barriers[i].disk);

        if (!s || !s->shared || s->state != SECONDARY_LOGGING) {
            continue;
        }
        while (s->layers->len > 0 &&
               ((LogLayer *)s->layers->pdata[0])->seq <= barriers[i].sequence) {
            secondary_drop_layer(s, g_ptr_array_remove_index(s->layers, 0));
        }
        colo_trace(block_secondary_applied, "%s: %" PRIu64, barriers[i].disk,
                   barriers[i].sequence);
    }
    secondary_check_arrived();
    nbd_server_kick();
    g_main_context_wakeup(io_thread_context(block_thread()));
    block_unlock();
}

char *block_secondary_unfenced(void)
{
    char *name = NULL;

    block_lock();
    g_autoptr(GPtrArray) all = secondaries();
    for (guint i = 0; !name && i < all->len; i++) {
        BlockSecondary *s = all->pdata[i];

        if (s->shared && !s->no_fence && s->state != SECONDARY_LIVE) {
            name = g_strdup(s->parent->name);
        }
    }
    block_unlock();
    return name;
}

/* All of @images or none. */
static bool own_images(GPtrArray *images, GError **errp)
{
    bool ok = true;

    block_lock();
    for (guint i = 0; ok && i < images->len; i++) {
        ok = block_file_own(images->pdata[i], true, errp);
        for (guint k = 0; !ok && k < i; k++) {
            block_file_own(images->pdata[k], false, NULL);
        }
    }
    block_unlock();
    return ok;
}

static bool own_images_soon(GPtrArray *images, GError **errp)
{
    int64_t end = g_get_monotonic_time() + LOCK_WAIT_MS * 1000LL;
    g_autoptr(GError) err = NULL;

    while (!own_images(images, &err)) {
        if (g_get_monotonic_time() >= end || secondary_cancelled()) {
            colo_error_set(errp,
                           "%s; it still belongs to the old primary, or something else uses "
                           "it: end that, then try again",
                           err->message);
            return false;
        }
        g_clear_error(&err);
        g_usleep(LOCK_RETRY_MS * 1000);
    }
    return true;
}

bool secondary_claim(GPtrArray *all, GError **errp)
{
    g_autoptr(GPtrArray) images = g_ptr_array_new();

    block_lock();
    for (guint i = 0; i < all->len; i++) {
        BlockSecondary *s = all->pdata[i];

        if (s->shared && !block_file_is_owned(s->parent)) {
            g_ptr_array_add(images, s->parent);
        }
    }
    block_unlock();
    if (!own_images_soon(images, errp)) {
        return false;
    }
    for (guint i = 0; i < all->len; i++) {
        BlockSecondary *s = all->pdata[i];
        g_autofree char *path = g_strconcat(s->parent->filename, ".colo", NULL);

        if (!s->shared || s->marker || s->state == SECONDARY_LIVE) {
            continue;
        }
        if (!secondary_marker_create(path, MARKER_SHARED, errp)) {
            return false;
        }
        block_lock();
        s->marker = g_steal_pointer(&path);
        block_unlock();
    }
    return true;
}
