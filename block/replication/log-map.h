/*
 * The epoch log: writes that arrived from the primary, and maps of what they cover.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An entry is one request; its data is in memory or, spilled, on the hidden disk. A map holds
 * disjoint extents, each showing the newest entry that was put over its range. Entries live
 * as long as someone refers to them.
 */
#ifndef COLO_BLOCK_LOG_MAP_H
#define COLO_BLOCK_LOG_MAP_H

#include "../block-int.h"
#include "overlay.h"

/** What all entries of a disk hold; must outlive them. */
typedef struct LogAccount {
    uint64_t memory;  /* bytes */
    uint64_t spilled; /* bytes of data on the hidden disk */
    Overlay *space;   /* sectors of the hidden disk that are taken */
} LogAccount;

typedef struct LogEntry {
    unsigned refs;
    uint64_t seq;
    uint64_t start, end;
    BlockBuf *buf; /* NULL: zeroes, or spilled */
    const uint8_t *data;
    bool spilled;
    uint64_t spill_offset; /* on the hidden disk */
    LogAccount *account;
} LogEntry;

LogEntry *log_entry_new(const BlockRequest *req, uint64_t seq, LogAccount *account);
LogEntry *log_entry_ref(LogEntry *e);
void log_entry_unref(LogEntry *e);
/** The data is at @offset of the hidden disk now, on space taken there; memory is freed. */
void log_entry_set_spilled(LogEntry *e, uint64_t offset);

typedef struct LogExtent {
    uint64_t start, end;
    LogEntry *entry;
} LogExtent;

typedef struct LogMap LogMap;

LogMap *log_map_new(void);
void log_map_free(LogMap *m);
void log_map_insert(LogMap *m, LogEntry *e);
/** Forget [start, end); of @only's extents alone unless it is NULL. */
void log_map_remove(LogMap *m, uint64_t start, uint64_t end, LogEntry *only);
/** First extent that ends after @pos, or NULL; valid until the map changes. */
LogExtent *log_map_next(LogMap *m, uint64_t pos);
bool log_map_empty(LogMap *m);

#endif
