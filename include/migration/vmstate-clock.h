/*
 * The virtual clock in a saved device state.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_VMSTATE_CLOCK_H
#define COLO_MIGRATION_VMSTATE_CLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * Let the machine whose state is @data of @len bytes wake up @ns nanoseconds later, by its
 * virtual clock, and @ticks later by its time stamp counter. False if the section is not
 * found, or not as it is known; then nothing has changed.
 */
bool vmstate_clock_advance(uint8_t *data, size_t len, int64_t ns, int64_t ticks);

/** The virtual clock of the stopped machine, ns. False if it is not found. */
bool vmstate_clock_read(const uint8_t *data, size_t len, int64_t *ns);

/** This host's time stamp counter, or 0 where there is none. */
uint64_t vmstate_clock_ticks(void);

#endif
