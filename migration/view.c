/*
 * The controller's state for whoever looks after the pair.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "migration/colo.h"

void migration_view(MigrationView *v)
{
    g_mutex_lock(&colo.lock);
    *v = (MigrationView){
        .state = (MigrationState)colo.state,
        .secondary = colo.mode == COLO_MODE_SECONDARY,
        .role = colo.state == COLO_STATE_WAITING ? "secondary" : colo_mode_name(colo.mode),
        .name = colo_state_name(colo.state),
        .epoch = colo.epoch,
        .changes = colo.changes,
        .guest_off = colo.guest_off,
        .paused = colo.user_paused,
        .was_protected = colo.was_protected,
        .sync_done = MIN(colo.sync_done, colo.sync_total),
        .sync_total = colo.sync_total,
    };
    g_strlcpy(v->error, colo.error ? colo.error : "", sizeof(v->error));
    g_mutex_unlock(&colo.lock);
}

void migration_wait_change(uint64_t changes, unsigned ms)
{
    int64_t end = g_get_monotonic_time() + ms * 1000LL;

    g_mutex_lock(&colo.lock);
    while (colo.changes == changes && !colo.want_quit &&
           g_cond_wait_until(&colo.cond, &colo.lock, end)) {
    }
    g_mutex_unlock(&colo.lock);
}

void migration_poke(void)
{
    g_mutex_lock(&colo.lock);
    colo.changes++;
    g_cond_broadcast(&colo.cond);
    g_mutex_unlock(&colo.lock);
}
