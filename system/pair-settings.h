/*
 * How a pair's memory travels, by keys of -colo.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_SYSTEM_PAIR_SETTINGS_H
#define COLO_SYSTEM_PAIR_SETTINGS_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>
#include <stdint.h>

#define PAIR_CHANNELS_MAX 16

/* What a key does not say stays as an operator, or the emulator, has it. */
typedef struct PairSettings {
    bool has_channels, has_xbzrle, has_bandwidth, has_pause;
    bool xbzrle;
    uint64_t channels;         /* 0: none beside the one for control */
    uint64_t checkpoint_delay; /* ms, or 0 */
    uint64_t max_pause;        /* ms */
    uint64_t max_bandwidth;    /* bytes a second */
    const char *compression;   /* these are borrowed from the options, or NULL */
    const char *tls_client, *tls_server; /* ids of credentials: both or none */
} PairSettings;

/** Its keys of -colo, NULL-terminated. */
extern const char *const pair_setting_keys[];

/** Read and check them. */
bool pair_settings_read(PairSettings *s, JsonObject *colo, GError **errp);

/** Arguments of migrate-set-capabilities, x-colo among them. Caller unrefs. */
JsonObject *pair_settings_capabilities(const PairSettings *s);

/** Arguments of migrate-set-parameters for a side that is @secondary, or NULL: nothing is set.
 * Caller unrefs. */
JsonObject *pair_settings_parameters(const PairSettings *s, bool secondary);

#endif
