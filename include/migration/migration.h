/*
 * Checkpoints and failover: what the monitor and main() need of this room.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_MIGRATION_H
#define COLO_MIGRATION_MIGRATION_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/** A memory backend of the guest, mapped shared by the child. */
typedef struct MigrationMemory {
    const char *id;
    int fd;             /* its file, from the start on */
    uint64_t size;      /* bytes, a multiple of @page_size */
    uint64_t page_size; /* bytes: 4096, or that of its huge pages */
    bool seal;          /* a memfd: to be sealed against punched holes */
} MigrationMemory;

/** What migration must know of the child; filled by system/, which keeps the strings. */
typedef struct MigrationChild {
    pid_t pid;
    int qmp_fd;           /* our end of the checkpoint connection (a QMP socket); taken over */
    int save_fd, cont_fd; /* two more, for commands that are held there; taken over */
    const MigrationMemory *memory; /* guest RAM; looked at by migration_init() only */
    unsigned n_memory;
    int state_fd;         /* memfd into which the child saves its device state */
    int vmst_fd;          /* memfd with the qcow2 that snapshot-load reads */
    const char *vmst_node;  /* its node name in the child */
    JsonObject *identity; /* machine, cpu, smp, ram, devices: both sides must agree */
    bool waits;           /* this side waits for a primary, or for a plain migration */
    bool incoming;        /* it was started with -incoming: fit for a plain migration only */
    bool start_paused;    /* -S, or incoming */
} MigrationChild;

/** Options of -colo that belong to this room; see docs/system/qemu-colo.rst. */
typedef struct MigrationOptions {
    bool verify_ram;       /* test option: compare all of RAM at each checkpoint */
    uint64_t fail_load;    /* test option: from this epoch on no load succeeds; 0: none */
    char *die_at;          /* test option: "step" or "step:N": SIGKILL oneself at the
                            * N-th passing of that step after migration_arm_death() */
    const char *state_file; /* what this side is, kept on the disk; or NULL */
    const char *tracker;   /* auto, uffd, soft-dirty, compare */
    bool other_ram;        /* video memory, ROMs and flash are replicated too */
    bool ignore_wishes;    /* test option: what the proxy asks for is counted, not done */
    unsigned peer_timeout; /* ms without a byte from the peer until it counts as lost */
    unsigned progress_timeout; /* ms in which a checkpoint, or a disk at the end of
                                * protection, must come on; 0: from @peer_timeout */
    int protect_mode;      /* a ProtectMode: mode= */
    unsigned buffered_interval; /* ms */
    JsonObject *colo;      /* all of -colo: the arbiter takes its keys from it */
    const char *vm;        /* name or UUID of the virtual machine, or NULL */
    bool no_shutdown;      /* -no-shutdown was given: a guest's end is not the program's */
    bool hide_events;      /* no STOP and RESUME events for checkpoints */
    void (*guest_shutdown)(int status); /* end the program. Any thread. */
    const char *runtime_dir; /* ours alone; kept by the caller */
    /* Main thread: start another emulator in place of the one, with or without -incoming. */
    bool (*restart_child)(bool incoming, MigrationChild *child, GError **errp);
} MigrationOptions;

/**
 * Take over the child: checkpoint QMP connection, RAM mapping, dirty tracker. Main thread.
 * Fails with a remedy where the kernel or rights do not suffice.
 */
bool migration_init(const MigrationChild *child, const MigrationOptions *opts,
                    GError **errp);

/** Listen for a primary, or a plain migration, at @uri ("tcp:host:port", "unix:path", "defer":
 * migrate-incoming will say). */
bool migration_listen(const char *uri, GError **errp);

/** Let die-at count from now on (SIGUSR1). */
void migration_arm_death(void);

/** The child is gone, or about to be: tell the peer at once. Main thread, before exit, once. */
void migration_child_died(void);

/** The mode of protection called @name ("colo", "buffered", "adaptive"), or -1. */
int migration_find_mode(const char *name);

/** The keys of -colo that this room reads by itself; NULL-terminated. */
extern const char *const arbiter_keys[];

/** Whether there is a connection to a peer; @yank: break it off. Any thread. */
bool migration_peer(bool yank);

/** End threads and connections. */
void migration_shutdown(void);

/** Whether QMP @command may go to the child as it is: what changes the machine or its
 * disks under protection may not. Main thread. */
bool migration_allows(const char *command, GError **errp);

/** Whether the user wants the guest to run (it may stand still in a checkpoint). */
bool migration_guest_runs(void);

/* The states of migration/colo.h, in its order. */
typedef enum MigrationState {
    MIGRATION_ALONE,
    MIGRATION_WAITING,
    MIGRATION_SETUP,
    MIGRATION_SYNC,
    MIGRATION_PROTECTED,
    MIGRATION_LOST,
    MIGRATION_TAKEOVER,
    MIGRATION_FENCED,
} MigrationState;

/* Where the controller stands at a moment. */
typedef struct MigrationView {
    MigrationState state;
    bool secondary;         /* this side's part, while it has one */
    const char *role, *name; /* of part and state; static */
    uint64_t epoch, changes;
    bool guest_off, paused, was_protected;
    uint64_t sync_done, sync_total; /* bytes of the first copy */
    char error[400];        /* of the last failure, or "" */
} MigrationView;

/** Any thread. */
void migration_view(MigrationView *v);

/** Wait until the state is another than when a view had @changes, migration_poke() was
 * called, the process ends, or @ms have passed. Not from the main thread. */
void migration_wait_change(uint64_t changes, unsigned ms);
void migration_poke(void);

/** @fn completes each answer of query-colo-status; main thread, without locks. */
void migration_set_status_hook(void (*fn)(JsonObject *status));

/** An event of the child (main thread); false hides it from QMP clients. */
bool migration_child_event(const char *name, JsonObject *data);

#endif
