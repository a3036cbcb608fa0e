/*
 * The epoch log: writes that arrived from the primary, and maps of what they cover.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "log-map.h"

/* What an entry costs beside its data. */
#define LOG_ENTRY_OVERHEAD 256

struct LogMap {
    GTree *tree; /* &extent->start -> extent */
};

static uint64_t entry_memory(const LogEntry *e)
{
    return LOG_ENTRY_OVERHEAD + (e->buf ? e->buf->size : 0);
}

LogEntry *log_entry_new(const BlockRequest *req, uint64_t seq, LogAccount *account)
{
    LogEntry *e = g_new0(LogEntry, 1);

    e->refs = 1;
    e->seq = seq;
    e->start = req->offset;
    e->end = req->offset + req->bytes;
    if (req->op == BLOCK_OP_WRITE) {
        e->buf = block_buf_ref(req->buf);
        e->data = req->data;
    }
    e->account = account;
    account->memory += entry_memory(e);
    return e;
}

LogEntry *log_entry_ref(LogEntry *e)
{
    e->refs++;
    return e;
}

void log_entry_unref(LogEntry *e)
{
    if (--e->refs > 0) {
        return;
    }
    e->account->memory -= entry_memory(e);
    if (e->spilled) {
        uint64_t len = e->end - e->start;

        e->account->spilled -= len;
        overlay_clear(e->account->space, e->spill_offset,
                      e->spill_offset + ROUND_UP(len, BLOCK_SECTOR));
    }
    block_buf_unref(e->buf);
    g_free(e);
}

void log_entry_set_spilled(LogEntry *e, uint64_t offset)
{
    e->account->memory -= e->buf->size;
    e->account->spilled += e->end - e->start;
    g_clear_pointer(&e->buf, block_buf_unref);
    e->data = NULL;
    e->spilled = true;
    e->spill_offset = offset;
}

static int compare_start(gconstpointer a, gconstpointer b, gpointer opaque)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void extent_free(gpointer opaque)
{
    LogExtent *x = opaque;

    log_entry_unref(x->entry);
    g_free(x);
}

LogMap *log_map_new(void)
{
    LogMap *m = g_new0(LogMap, 1);

    m->tree = g_tree_new_full(compare_start, NULL, NULL, extent_free);
    return m;
}

void log_map_free(LogMap *m)
{
    if (m) {
        g_tree_unref(m->tree);
        g_free(m);
    }
}

bool log_map_empty(LogMap *m)
{
    return g_tree_nnodes(m->tree) == 0;
}

static void map_add(LogMap *m, uint64_t start, uint64_t end, LogEntry *e)
{
    LogExtent *x = g_new(LogExtent, 1);

    x->start = start;
    x->end = end;
    x->entry = log_entry_ref(e);
    g_tree_insert(m->tree, &x->start, x);
}

LogExtent *log_map_next(LogMap *m, uint64_t pos)
{
    GTreeNode *after = g_tree_upper_bound(m->tree, &pos);
    GTreeNode *before = after ? g_tree_node_previous(after) : g_tree_node_last(m->tree);

    if (before) {
        LogExtent *x = g_tree_node_value(before);

        if (x->end > pos) {
            return x;
        }
    }
    return after ? g_tree_node_value(after) : NULL;
}

void log_map_remove(LogMap *m, uint64_t start, uint64_t end, LogEntry *only)
{
    uint64_t pos = start;
    LogExtent *x;

    while (pos < end && (x = log_map_next(m, pos)) && x->start < end) {
        uint64_t xs = x->start, xe = x->end;

        pos = xe;
        if (only && x->entry != only) {
            continue;
        }
        LogEntry *e = log_entry_ref(x->entry);
        g_tree_remove(m->tree, &xs);
        if (xs < start) {
            map_add(m, xs, start, e);
        }
        if (xe > end) {
            map_add(m, end, xe, e);
        }
        log_entry_unref(e);
    }
}

void log_map_insert(LogMap *m, LogEntry *e)
{
    log_map_remove(m, e->start, e->end, NULL);
    map_add(m, e->start, e->end, e);
}
