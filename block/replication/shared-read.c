/*
 * Reads of a shared disk: its log over the image.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "shared-int.h"

typedef struct SharedRead {
    SharedLog *log;
    BlockRequest *orig;
    unsigned left;
    int ret;
} SharedRead;

typedef struct SharedPart {
    SharedRead *read;
    BlockRequest req;
} SharedPart;

static void part_done(BlockRequest *req, int ret)
{
    SharedPart *part = req->opaque;
    SharedRead *r = part->read;
    SharedLog *l = r->log;

    g_free(part);
    r->ret = ret < 0 ? ret : r->ret;
    l->in_flight--;
    block_node_unuse(l->image);
    if (--r->left == 0) {
        BlockRequest *orig = r->orig;

        ret = r->ret;
        g_free(r);
        orig->done(orig, ret);
    }
    shared_log_unref(l);
}

static void read_image(SharedRead *r, uint64_t start, uint64_t end)
{
    SharedPart *part = g_new0(SharedPart, 1);

    part->read = r;
    part->req = (BlockRequest){.op = BLOCK_OP_READ,
                               .offset = start,
                               .bytes = end - start,
                               .data = r->orig->data + (start - r->orig->offset),
                               .done = part_done,
                               .opaque = part};
    r->left++;
    r->log->in_flight++;
    r->log->image->users++;
    block_submit(r->log->image, &part->req);
}

void shared_submit_read(SharedLog *l, BlockRequest *req)
{
    SharedRead *r = g_new0(SharedRead, 1);
    uint64_t pos = req->offset, end = pos + req->bytes;

    r->log = l;
    r->orig = req;
    while (pos < end) {
        LogExtent *x = log_map_next(l->map, pos);
        uint64_t hole = x ? MIN(MAX(x->start, pos), end) : end;

        if (hole > pos) {
            read_image(r, pos, hole);
            pos = hole;
        }
        if (pos < end) {
            uint64_t stop = MIN(x->end, end);
            uint8_t *to = req->data + (pos - req->offset);

            if (x->entry->buf) {
                memcpy(to, x->entry->data + (pos - x->entry->start), stop - pos);
            } else {
                memset(to, 0, stop - pos);
            }
            pos = stop;
        }
    }
    if (r->left == 0) {
        g_free(r);
        block_complete_later(req, 0);
    }
}
