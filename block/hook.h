/*
 * Hooks of a node: those who must see every modification of it.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A modifying request of a node with hooks is copied into a BlockHooked. The activity
 * log may hold it before the driver gets it, the mirror after the driver has done it.
 * Each stage looks at the hooks that the node has then, so they may come and go while
 * requests are in flight.
 */
#ifndef COLO_BLOCK_HOOK_H
#define COLO_BLOCK_HOOK_H

#include "block-int.h"

typedef struct BlockHooked {
    BlockRequest sub;   /* what the driver gets */
    BlockRequest *orig; /* whose data it borrows */
    BlockNode *node;    /* one use is held */
    int ret;            /* the driver's, in after() */
    GList link;         /* for a hook that holds it */
} BlockHooked;

typedef struct BlockHook BlockHook;
struct BlockHook {
    /** True: go on. False: block_hook_go() will be called. May be NULL. */
    bool (*before)(BlockHook *hook, BlockHooked *hd);
    /** True: go on. False: block_hook_end() will be called. May be NULL. */
    bool (*after)(BlockHook *hook, BlockHooked *hd);
};

/** block_submit() of a modifying request to a node with hooks. */
void block_hook_submit(BlockNode *node, BlockRequest *req);
/** Let a request that before() held go on to the driver. */
void block_hook_go(BlockHooked *hd);
/** End a request that after() held. */
void block_hook_end(BlockHooked *hd);

#endif
