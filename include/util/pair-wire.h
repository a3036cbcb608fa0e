/*
 * The pair port on the wire: question, answer, proof, and the sockets of both ends.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * docs/interop/pair.rst has the format. Whoever answers (qemu-colo, or coloctl while none runs)
 * and whoever asks use these.
 */
#ifndef COLO_UTIL_PAIR_WIRE_H
#define COLO_UTIL_PAIR_WIRE_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/key-file.h"

#define PAIR_NONCE_BYTES 16
#define PAIR_QUESTION_MAX 64 /* bytes, its newline included */
#define PAIR_ANSWER_MAX 32768
#define PAIR_DEPTH_MAX 6     /* nesting of an answer's JSON */

/* The secret of both hosts; len 0: none, and anybody is believed. */
typedef struct PairKey {
    uint8_t bytes[KEY_BYTES_MAX];
    size_t len;
} PairKey;

/* One question: what has never been asked before, and by whom. */
typedef struct PairQuestion {
    uint8_t nonce[PAIR_NONCE_BYTES];
    uint64_t asker; /* of one process, random, never 0 */
} PairQuestion;

/* Why an answer counts for nothing. */
typedef enum PairRefusal {
    PAIR_OK,
    PAIR_MALFORMED, /* no line, too long, no JSON of the pair port */
    PAIR_UNSIGNED,  /* without a proof where this side has a key */
    PAIR_FORGED,    /* the proof is not of our key, our question and this text */
    PAIR_REFUSAL_MAX
} PairRefusal;

extern const char *const pair_refusal_names[PAIR_REFUSAL_MAX];

/** A question of this process, with a nonce of its own. */
void pair_question_new(PairQuestion *q);

/** @q as a line, newline included; caller frees. */
char *pair_question_format(const PairQuestion *q);

/** Read the line (with or without newline) of @len bytes at @text. */
bool pair_question_parse(const char *text, size_t len, PairQuestion *q);

/**
 * The answer to @q (NULL: nobody asked properly): @line, which has no newline, and the proof,
 * if there is a key and the question is not this process' own that was sent back to it. Caller
 * frees.
 */
char *pair_answer_seal(const char *line, const PairKey *key, const PairQuestion *q);

/** Take an answer to @q apart; OK: the line (no newline; caller frees) in *@line, and with a
 * key it was made by one who has it, after the question. */
PairRefusal pair_answer_open(const char *answer, size_t len, const PairKey *key,
                             const PairQuestion *q, char **line);

/* --- Answering --- */

typedef struct PairPort PairPort;

/**
 * Listen on @host:@port. @line is called in the port's own thread ("colo-pair-port") for each
 * client and returns the answer's line (freed with g_free()), so that the answer comes
 * whatever the rest of the program waits for. @key is copied.
 */
PairPort *pair_port_new(const char *host, unsigned port, const PairKey *key,
                        char *(*line)(void *opaque), void *opaque, GError **errp);

/** Waits for the thread; NULL is fine. */
void pair_port_free(PairPort *p);

/** How many questions were this process' own, sent back to it. Any thread. */
unsigned pair_port_reflected(const PairPort *p);

/* --- Asking --- */

typedef enum PairHearing {
    PAIR_HEARD,    /* an answer, to be believed as far as the key goes */
    PAIR_NOBODY,   /* its host says that no program listens there */
    PAIR_SILENT,   /* the host is not reached, or what listens does not answer */
    PAIR_NOT_BELIEVED, /* an answer that counts for nothing */
} PairHearing;

/** Ask @host:@port, blocking up to @timeout_ms. HEARD: the line in *@line (caller frees); else
 * @errp says why, and NOT_BELIEVED has *@refusal. */
PairHearing pair_ask(const char *host, unsigned port, unsigned timeout_ms, const PairKey *key,
                     char **line, PairRefusal *refusal, GError **errp);

/** Connect to @host:@port within @timeout_ms; a descriptor, or -1 with the errno in *@err (may be
 * NULL; 0: the name is not known). */
int pair_connect(const char *host, unsigned port, unsigned timeout_ms, int *err, GError **errp);

#endif
