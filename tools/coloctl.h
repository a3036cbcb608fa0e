/*
 * coloctl: what its files share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * coloctl is a client: it links nothing of qemu-colo's rooms but the reader of JSON text and
 * the option helpers, and believes nothing that a monitor, a peer or a file says. One thread;
 * all calls block, with a deadline.
 */
#ifndef COLO_TOOLS_COLOCTL_H
#define COLO_TOOLS_COLOCTL_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "coloctl-conf.h"

/* Exit codes; the manual has them, scripts rely on them. */
enum {
    CTL_OK = 0,
    CTL_FAILED = 1,
    CTL_USAGE = 2,
    CTL_UNPROTECTED = 3, /* status: serves, or waits, without protection */
    CTL_LOST = 4,        /* status: protection ended, and nobody has decided yet; or fenced */
    CTL_UNREACHABLE = 5, /* no qemu-colo answers */
};

/* --- Errors --- */

#define CTL_ERROR ctl_error_quark()
GQuark ctl_error_quark(void);

typedef enum CtlErrorCode {
    CTL_ERROR_UNREACHABLE, /* nobody there, or nobody who speaks the protocol */
    CTL_ERROR_NO_COMMAND,  /* it does not know the command */
    CTL_ERROR_REFUSED,     /* it said no */
} CtlErrorCode;

void ctl_set_error(GError **errp, CtlErrorCode code, const char *fmt, ...)
    G_GNUC_PRINTF(3, 4);

/** Say @err on standard error; the exit code that goes with it. */
int ctl_fail(const GError *err);

/** Say what is wrong with the command line; CTL_USAGE. */
int ctl_usage(const char *fmt, ...) G_GNUC_PRINTF(1, 2);

/* --- Text (coloctl-text.c) --- */

typedef enum CtlColour { CTL_PLAIN, CTL_BOLD, CTL_DIM, CTL_GREEN, CTL_YELLOW, CTL_RED } CtlColour;

/** Whether standard output is a terminal that shows colours. */
bool ctl_is_terminal(void);

/** @text in @colour where colours are shown. Caller frees. */
char *ctl_paint(CtlColour colour, const char *text);

/** @text without control characters, which a terminal might obey, at most @max bytes. Caller
 * frees. */
char *ctl_clean(const char *text, size_t max);

/** "1.5 MiB", "2.1 ms" from bytes and microseconds. Caller frees. */
char *ctl_bytes(int64_t bytes);
char *ctl_us(int64_t us);

/** The element of the NULL-terminated @known that @word may have been meant to be, or NULL. */
const char *ctl_nearest(const char *word, const char *const *known);

/** A bar on a terminal, a line each tenth elsewhere, on standard error. */
typedef struct CtlProgress {
    const char *label; /* set by the caller */
    int last;          /* tenths shown, or -1 before the first */
    bool open;         /* a bar is on the screen */
} CtlProgress;
void ctl_progress(CtlProgress *p, int64_t done, int64_t total);
void ctl_progress_end(CtlProgress *p);

/* --- JSON that others wrote (coloctl-text.c): what is missing or of another type is @dflt --- */

JsonObject *ctl_object(JsonObject *o, const char *key);  /* or NULL; @o may be NULL */
JsonArray *ctl_array(JsonObject *o, const char *key);    /* or NULL */
int64_t ctl_int(JsonObject *o, const char *key, int64_t dflt);
bool ctl_bool(JsonObject *o, const char *key, bool dflt);
const char *ctl_str(JsonObject *o, const char *key, const char *dflt); /* borrowed */

/** @node on one line or, @pretty, on several. Caller frees. */
char *ctl_json(JsonNode *node, bool pretty);

/* --- QMP (coloctl-qmp.c) --- */

typedef struct CtlQmp CtlQmp;

/** Connect to the unix socket @path and wait for the greeting. */
CtlQmp *ctl_qmp_open(const char *path, GError **errp);
void ctl_qmp_close(CtlQmp *q);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(CtlQmp, ctl_qmp_close)

/** Execute @command; the answer, which the caller frees. @args may be NULL and stays the
 * caller's. */
JsonNode *ctl_qmp_execute(CtlQmp *q, const char *command, JsonObject *args, GError **errp);

/** The same where an object is the documented answer; new reference. */
JsonObject *ctl_qmp_query(CtlQmp *q, const char *command, GError **errp);

/** How long an answer may take, instead of 30 s. */
void ctl_qmp_set_timeout(CtlQmp *q, unsigned ms);

/** Whether an event came since the last call that is not of a checkpoint's pause. Does not
 * wait. */
bool ctl_qmp_news(CtlQmp *q);

/** To be polled for input. */
int ctl_qmp_fd(CtlQmp *q);

/** QEMU's version from the greeting, "7.2.22"; borrowed. */
const char *ctl_qmp_version(CtlQmp *q);

/* --- One side as it is now (coloctl-status.c) --- */

typedef struct CtlSide {
    JsonObject *colo;    /* query-colo-status */
    JsonObject *migrate; /* query-migrate */
    JsonNode *proxy;     /* query-colo-proxy, an array */
    char *name;          /* -name, or NULL */
    char *run_state;
    char *qemu;
    /* What follows from these: */
    const char *state; /* borrowed of colo */
    const char *role;  /* primary, secondary or none; static */
    bool serves;
    int64_t epoch;
    int64_t checkpoints;
} CtlSide;

/** Ask all there is to ask; what an emulator or an older qemu-colo lacks is left empty. */
CtlSide *ctl_side_query(CtlQmp *q, GError **errp);
void ctl_side_free(CtlSide *s);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(CtlSide, ctl_side_free)

/** Open, query, close: the monitor serves one client at a time, so nobody keeps it. */
CtlSide *ctl_side_look(const char *socket, GError **errp);

/** The documented JSON form. Caller frees. */
JsonNode *ctl_side_json(const CtlSide *s);

/** Exit code of "status". */
int ctl_side_code(const CtlSide *s);

/** One coloured line: name, state, role. Caller frees. */
char *ctl_side_headline(const CtlSide *s);

/* --- Which VM is meant (coloctl-target.c) --- */

typedef struct CtlTarget {
    char *qmp;      /* --qmp, or from the file or name */
    char *file;     /* vm.conf, or NULL */
    char *host;     /* --host, or NULL */
    VmConf *conf;   /* where there is a file */
    int timeout;    /* seconds, --timeout */
} CtlTarget;

/**
 * Parse a subcommand's words: its own @entries (may be NULL) and those that all have. Exits
 * the program on --help. Returns CTL_OK, or what to end with after the error was said.
 * @wants_conf: a bare socket will not do.
 */
int ctl_target_parse(CtlTarget *t, int argc, char **argv, const char *summary,
                     const GOptionEntry *entries, bool wants_conf);
void ctl_target_clear(CtlTarget *t);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(CtlTarget, ctl_target_clear)

/* --- Subcommands: argv[0] is the command's name --- */

int cmd_top(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_bundle(int argc, char **argv);
int cmd_run(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_stop(int argc, char **argv);
int cmd_checkpoint(int argc, char **argv);
int cmd_failover(int argc, char **argv);
int cmd_unprotect(int argc, char **argv);
int cmd_protect(int argc, char **argv);
int cmd_resync(int argc, char **argv);

#endif
