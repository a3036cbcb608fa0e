/*
 * Hooks of a node: those who must see every modification of it.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "hook.h"

void block_hook_end(BlockHooked *hd)
{
    BlockRequest *orig = hd->orig;
    int ret = hd->ret;

    block_node_unuse(hd->node);
    g_free(hd);
    orig->done(orig, ret);
}

static void hook_driver_done(BlockRequest *sub, int ret)
{
    BlockHooked *hd = sub->opaque;
    BlockHook *mirror = hd->node->mirror;

    hd->ret = ret;
    if (!mirror || mirror->after(mirror, hd)) {
        block_hook_end(hd);
    }
}

void block_hook_go(BlockHooked *hd)
{
    hd->node->drv->submit(hd->node, &hd->sub);
}

void block_hook_submit(BlockNode *node, BlockRequest *req)
{
    BlockHooked *hd = g_new0(BlockHooked, 1);

    hd->sub = *req;
    hd->sub.node = node;
    hd->sub.done = hook_driver_done;
    hd->sub.opaque = hd;
    hd->orig = req;
    hd->node = node;
    hd->link.data = hd;
    node->users++;
    if (!node->track || node->track->before(node->track, hd)) {
        block_hook_go(hd);
    }
}
