/*
 * State shared by the controller's files: one virtual machine, one role at a time.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_MIGRATION_COLO_H
#define COLO_MIGRATION_COLO_H

#include "block/replication.h"
#include "migration/channel.h"
#include "migration/child-qmp.h"
#include "migration/link.h"
#include "migration/migration.h"
#include "migration/mode.h"
#include "migration/ram.h"
#include "migration/stats.h"

#define COLO_DISKS_MAX 64
#define COLO_PING_MS 100
#define COLO_HOLD_STATE_MAX (8u << 20)
#define COLO_FLAG_RUNNING 1u  /* CHANNEL_BEGIN: the guest runs in the new epoch */
#define COLO_FLAG_STANDING 2u /* the SVM stands still in it: the buffered mode */

/* The first checkpoint from which a takeover is safe. Until the SVM runs for the first time
 * (LOADED of 1) nothing is compared, so output of epoch 1 left that only checkpoint 2 makes
 * good. Both sides count: neither is protected before. */
#define COLO_EPOCH_SAFE 2

typedef struct Arbiter Arbiter;
typedef struct QmpRequest QmpRequest;

typedef enum ColoMode {
    COLO_MODE_NONE,
    COLO_MODE_PRIMARY,
    COLO_MODE_SECONDARY,
} ColoMode;

/* Where a side stands; see docs/devel/checkpoint.rst for the two state machines. */
typedef enum ColoState {
    COLO_STATE_ALONE,     /* unprotected */
    COLO_STATE_WAITING,   /* secondary: no primary yet */
    COLO_STATE_SETUP,     /* connecting, agreeing */
    COLO_STATE_SYNC,      /* first copy of RAM */
    COLO_STATE_PROTECTED, /* at least one checkpoint was loaded */
    COLO_STATE_LOST,      /* peer gone: output held, the arbiter has to decide */
    COLO_STATE_TAKEOVER,  /* secondary: won, going live */
    COLO_STATE_FENCED,    /* the peer goes on without us: we must stay silent */
} ColoState;

typedef struct Colo {
    MigrationChild child; /* constant after migration_init() */
    MigrationOptions opts;
    GMutex qmp_lock; /* held for long by the thread of the current role, around its use of: */
    ChildQmp *qmp;
    ChildQmp *qmp_save, *qmp_cont; /* save or load, and `cont`, are held there */
    RamMap *map; /* constant after migration_init() */
    Tracker *tracker;
    Ram *ram;
    Arbiter *arbiter; /* NULL: manual; called by the thread of the current role */

    Link link;       /* of the current role's connection; by its thread */

    GMutex lock; /* guards all below */
    GCond cond;  /* anything below changed */
    bool cap_colo;
    bool cap_events;    /* the "events" capability: MIGRATION is sent */
    const char *said_status; /* by the last MIGRATION, static text */
    bool shown_running; /* what the last STOP or RESUME told the user */
    unsigned page_bits;  /* of the target, where a migration stream says it, or 0 */
    bool deferred;       /* -incoming defer, and no migrate-incoming yet */
    bool plain_incoming; /* a migration of the emulator's own comes, or may come, in */
    uint64_t checkpoint_delay; /* ms */
    uint64_t buffered_interval; /* ms */
    uint64_t max_pause;        /* ms, budget of a pause; 0: none */
    ProtectMode protect_mode;  /* as the user wants it */
    bool mode_changed;         /* by the user, since the last checkpoint */
    bool standing;             /* the SVM stands still in this epoch */
    char mode_reason[100];     /* of the last change of @standing */
    uint64_t mode_switches;
    uint64_t epochs[2];        /* loaded, in the mode colo and in the buffered one */
    ColoMode mode, last_mode;
    bool was_protected; /* the last migration led to protection */
    ColoState state;
    uint64_t changes; /* of the state, and pokes: migration_wait_change() */
    const char *reason; /* of the last exit: none, request, error */
    char *error;        /* of the last failure, or NULL */
    bool user_paused;   /* the user wants the guest stopped */
    bool guest_off;     /* the guest has shut itself down or crashed */
    bool guest_exit;    /* and both sides are to end for it */
    uint64_t epoch;     /* current, after the last cut (primary) or load (secondary) */
    Channel *channel;   /* of the current role, for cancelling */
    GThread *thread;    /* of the current role */

    /* Wishes to the thread of the current role. */
    bool want_checkpoint;
    ColoTrigger trigger;
    bool want_exit;     /* x-colo-lost-heartbeat */
    bool operator_vouches; /* and the peer is known to be dead: no arbiter is asked */
    char *arbiter_error; /* why the last question had no answer, or NULL */
    bool disowned;      /* the arbiter gave the guest away: never ALONE again */
    bool decided;       /* this side was let out of protection */
    bool want_quit;     /* the process ends */
    bool child_died;    /* the emulator has, or is about to */
    GThread *rx_thread; /* primary: that receives */
    uint64_t peer_storage; /* what its images have got, as it said when it waited for them last */
    bool yielding;      /* only its word or its end counts: its disks may go before */
    QmpRequest *switchover; /* x-colo-switchover, until it is answered */
    bool run_state_changed;
    bool capturing; /* a checkpoint decided the run state and has not set it yet */
    GPtrArray *run_state_requests; /* QmpRequest, answered after that checkpoint */

    /* Primary: what the receiving thread learnt. */
    uint64_t sent_epoch; /* END of it was sent, or is about to be */
    uint64_t received_epoch, loaded_epoch;
    uint64_t joined_epoch; /* the one from which on it shares the arbiter's token, or 0 */
    char *peer_failure; /* why the peer is lost, or NULL */
    bool peer_took_over;
    bool peer_guest_off; /* secondary: its last beat said that the guest has shut down */
    bool peer_silent;    /* secondary: its end of the connection is closed */
    bool peer_may_live; /* END of a safe checkpoint was sent: the peer could take over */

    int64_t peer_skew;  /* us, of the SVM's clock when it was loaded last */
    int64_t peer_clock; /* us, the secondary's monotonic clock less ours; 0: not known */

    /* Progress of the first copy. */
    uint64_t sync_total, sync_done, sync_started_us;
    ColoStats stats;
} Colo;

extern Colo colo; /* documented global: one virtual machine a process */

const char *colo_mode_name(ColoMode m);
const char *colo_state_name(ColoState s);

/** Status of the migration as query-migrate names it, or NULL: none was begun. The lock is
 * held. */
const char *colo_migration_status(void);

/** The user's STOP or RESUME, where checkpoints' are hidden: send what the last one does not
 * say. Any thread, without the lock. */
void colo_show_run_state(void);

/** Change state, tell those who wait, trace; the lock is held. */
void colo_set_state_locked(ColoState s);
void colo_set_state(ColoState s);
ColoState colo_get_state(void);

/** Ask the primary's thread for a checkpoint. Any thread, any lock of other rooms. */
void colo_request_checkpoint(ColoTrigger trigger, const char *detail);

/**
 * Wait, in state LOST, until this side may leave protection: by the operator's word, or
 * by the arbiter's verdict. False: the process ends, or the other side goes on (FENCED).
 */
bool colo_decide(ColoMode mode);

/** Primary: from the next checkpoint on the peer could take over; this side speaks by the
 * heartbeat's lease, or by the pulse's. Waits until it is there. */
bool colo_lease_begin(GError **errp);

/** Primary: the lease is over, whatever comes. The lock is held. */
void colo_lease_silence_locked(void);

/** Nobody has a lease any more: protection has ended. */
void colo_lease_end(void);

/** Secondary: the peer's lease is not renewed from here on. */
void colo_lease_stop_vouching(void);

/** A primary's output is held from now on, also what is on its way here; in other roles this does
 * nothing. Any thread, under neither the lock nor the net lock. */
void colo_silence(void);

/** How long (us) the peer may still speak, and this side may not ask. The lock is held. */
int64_t colo_lease_left(ColoMode mode);

/** Emit COLO_EXIT; @reason is static text. */
void colo_emit_exit(ColoMode mode, const char *reason);

/** -colo state-file: @what this side is from here, on the disk when this returns; true without the
 * option. Any thread, not under the lock: it waits for the disk. */
bool colo_state_file_write(const char *what, GError **errp);

/** The same where nothing can be done about a failure but saying so. */
void colo_state_file_note(const char *what);

/** While this side's disks are waited for at the end of protection (@what: static text): a stall
 * is told, see disk-wait.c. Any thread, without the lock. */
void colo_disk_wait_begin(const char *what);
void colo_disk_wait_end(void);

/** Wait until what was answered early is on the disk; false: @stop said that it is not waited for
 * any more. @what: as of colo_disk_wait_begin() if nobody has begun, else NULL. */
bool colo_disk_wait_flushed(const char *what, bool (*stop)(void));

/** They have failed for good: told at once. */
void colo_disk_wait_failed(const char *why);

/** The operator's word has come after he was told of a stall. The lock is held. */
bool colo_disk_wait_overridden_locked(void);

/** A stall that there is, as a member of the status. The lock is held. */
void colo_disk_wait_describe_locked(JsonObject *status);

/** How long (us) something may stand still: progress-timeout, or its default. */
int64_t colo_progress_limit(void);

/** Test option die-at: end by SIGKILL if @step is the one. */
void colo_step(const char *step);

/** The emulator's connections are this thread's, from take to leave. In between they are read
 * now and then by the main loop: each gets all events, which would pile up in the emulator. */
void colo_qmp_take(void);
void colo_qmp_leave(void);

/** Read what has come on all of them; by who has taken them. */
void colo_qmp_drain(void);

/** Send @text (one command, id @id) to the child and wait for its answer. */
bool colo_child_command(const char *text, const char *id, GError **errp);

/** Answer the first @n of the users' stop and cont that waited for a checkpoint. */
void colo_finish_run_state(guint n);

/** Another emulator in place of one whose guest has never run. Main thread; no other may use
 * the child's QMP, RAM or tracker. */
bool colo_restart_child(bool incoming, GError **errp);

/** Whether connection @fd is the first of a plain migration, wanted here. */
bool plain_comes(int fd);

/** Give it, and those that follow on @listen_fd (which stays the caller's), to an emulator
 * that can take it; returns when they were all connected. */
void plain_serve(int listen_fd, int fd);

/** The guest is an ordinary one from now on: nobody's twin. */
void plain_begin(void);

/** Whether a plain migration is still coming in; asks the emulator. Main thread. */
bool plain_pending(void);

/** Block replication by xen-set-replication (commands-xen.c), main thread: whether it runs,
 * and its checkpoint. */
bool xen_replication_runs(void);
bool xen_replication_checkpoint(GError **errp);

/** The role threads' bodies. */
gpointer primary_thread(gpointer uri);
gpointer secondary_thread(gpointer listen_fd);

/** JSON of who we are, for the handshake; caller frees. */
char *hello_build(bool primary, GError **errp);
/** Why @text (the peer's) does not fit to us, as an error. */
bool hello_check(const char *text, bool we_are_primary, GError **errp);

/** Barriers to and from bytes. */
GByteArray *barriers_pack(const BlockBarrier *b, unsigned n);
bool barriers_unpack(const uint8_t *data, size_t len, BlockBarrier *out, unsigned *n,
                     GError **errp);

#endif
