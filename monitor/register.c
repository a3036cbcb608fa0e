/*
 * The schema's commands for the monitor.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "monitor/monitor.h"

#include "qapi-commands.h"

void monitor_register_commands(void)
{
    monitor_set_commands(qapi_commands);
}
