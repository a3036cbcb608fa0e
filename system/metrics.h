/*
 * Figures for Prometheus.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_SYSTEM_METRICS_H
#define COLO_SYSTEM_METRICS_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>

/** Appends @status, what query-colo-status returns, to @out in Prometheus' text exposition
 * format 0.0.4: names colo_*, base units (seconds, bytes). What @status lacks is left out;
 * label values are escaped. Pure. */
void metrics_text(JsonObject *status, GString *out);

/**
 * Serve GET /metrics at @address, "127.0.0.1:PORT" or "[::1]:PORT": only this machine may
 * ask, as nothing here is authenticated. Main thread; never blocks it.
 */
bool metrics_start(const char *address, GError **errp);
void metrics_stop(void);

#endif
