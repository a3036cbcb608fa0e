/*
 * After block-job-complete: a node that passes everything on to the mirror's target.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The node keeps its name, its exports and its front; the old disk stays open beneath it,
 * unused, until the node goes.
 */
#include "mirror.h"

typedef struct Pivot {
    BlockNode *target;
    const BlockDriver *old;
    void *old_opaque;
} Pivot;

static void pivot_submit(BlockNode *node, BlockRequest *req)
{
    Pivot *p = node->opaque;

    block_submit(p->target, req);
}

static void pivot_close(BlockNode *node)
{
    Pivot *p = node->opaque;

    node->opaque = p->old_opaque;
    p->old->close(node);
    block_node_unuse(p->target);
    g_free(p);
}

static void pivot_query(BlockNode *node, JsonObject *out)
{
    Pivot *p = node->opaque;

    json_object_set_string_member(out, "mirrored-to", p->target->name);
}

static const BlockDriver pivot_driver = {
    .name = "mirror-target",
    .submit = pivot_submit,
    .close = pivot_close,
    .query = pivot_query,
};

void mirror_pivot(BlockNode *node, BlockNode *target)
{
    Pivot *p = g_new0(Pivot, 1);

    p->target = target;
    p->old = node->drv;
    p->old_opaque = node->opaque;
    node->drv = &pivot_driver;
    node->opaque = p;
    node->can_zero &= target->can_zero;
    colo_trace(block_mirror_pivot, "%s: now %s", node->name, target->name);
}
