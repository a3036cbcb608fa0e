/*
 * What the peer says of itself at its pair port, and what follows for a start.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Who may start to serve. A side that is started as primary may be outdated: the other one may
 * have taken over since, and may serve now. Silence does not say that it does not. So somebody
 * who can know has to say so, and the first of these who speaks decides:
 *
 *   the peer       it serves, or has a state that may yet be served: no. It waits, has nothing, or
 *                  was told to be silent: yes. With a key only its proven word counts.
 *   the witness    its key belongs to one side, and is asked before this one speaks: go on.
 *   the state file "alone": nobody could take over since, as this side was protected by nobody.
 *   the operator   vouches that the peer does not serve (-colo peer-off=on).
 *   the peer's host  says that no program listens at the pair port, and there is no state file
 *                  that says otherwise: the operator who typed the line is believed. It is no
 *                  proof (the peer may have served, and ended); it is where a first start begins.
 *
 * Until then: ask on. A peer that hangs, a host that is not reached and an answer that is not
 * believed are all no word.
 */
#include "system/pair-peer.h"

#include <string.h>

#include "monitor/json-text.h"
#include "util/error.h"
#include "util/options.h"

static void take_disks(JsonObject *o, PairPeer *out)
{
    JsonNode *list = json_object_get_member(o, "disks");
    JsonArray *a = list && JSON_NODE_HOLDS_ARRAY(list) ? json_node_get_array(list) : NULL;

    for (guint i = 0; a && i < json_array_get_length(a) && out->n_disks < PAIR_DISKS_MAX; i++) {
        JsonNode *n = json_array_get_element(a, i);
        PairPeerDisk *d = &out->disks[out->n_disks];

        if (JSON_NODE_HOLDS_OBJECT(n)) {
            JsonObject *disk = json_node_get_object(n);
            g_strlcpy(d->top, options_get_str(disk, "top", ""), sizeof(d->top));
            g_strlcpy(d->export, options_get_str(disk, "export", ""), sizeof(d->export));
            options_get_bool(disk, "shared", &d->shared, NULL);
            out->n_disks++;
        }
    }
}

/* Names go into messages and logs. */
static void take_name(JsonObject *o, const char *key, char *out, size_t size)
{
    g_strlcpy(out, options_get_str(o, key, ""), size);
    for (char *c = out; *c; c++) {
        *c = g_ascii_isprint(*c) ? *c : '?';
    }
}

bool pair_peer_parse(const char *text, PairPeer *out, GError **errp)
{
    g_autoptr(JsonNode) root = NULL;
    JsonSpan span = {text, strlen(text)};

    memset(out, 0, sizeof(*out));
    bool ok = span.len <= PAIR_ANSWER_MAX &&
              json_text_parse_shallow(span, PAIR_DEPTH_MAX, &root, NULL);
    JsonObject *o = ok && JSON_NODE_HOLDS_OBJECT(root) ? json_node_get_object(root) : NULL;
    const char *program = o ? options_get_str(o, "program", "") : "";
    /* coloctl answers in state "undecided" while it has not started anything there. */
    if (strcmp(program, "qemu-colo") != 0 && strcmp(program, "coloctl") != 0) {
        colo_error_set(errp, "what answers there is no qemu-colo");
        return false;
    }
    take_name(o, "name", out->name, sizeof(out->name));
    take_name(o, "state", out->state, sizeof(out->state));
    take_name(o, "role", out->role, sizeof(out->role));
    take_disks(o, out);
    return options_get_bool(o, "serves", &out->serves, errp) &&
           options_get_bool(o, "wants-peer", &out->wants_peer, errp) &&
           options_get_uint(o, "epoch", &out->epoch, 0, G_MAXINT64, errp) &&
           options_get_uint(o, "instance", &out->instance, 0, G_MAXINT64, errp);
}

PairHearing pair_peer_ask(const char *host, unsigned port, unsigned timeout_ms,
                          const PairKey *key, PairPeer *out, PairRefusal *refusal,
                          GError **errp)
{
    g_autofree char *line = NULL;
    PairHearing h = pair_ask(host, port, timeout_ms, key, &line, refusal, errp);

    if (h == PAIR_HEARD && !pair_peer_parse(line, out, errp)) {
        g_prefix_error(errp, "%s:%u: ", host, port);
        *refusal = PAIR_MALFORMED;
        h = PAIR_NOT_BELIEVED;
    }
    return h;
}

PairPermission pair_may_serve(PairHearing hearing, const PairPeer *peer, const PairKnown *known)
{
    bool no_file = !known->was || strcmp(known->was, "none") == 0;

    if (hearing == PAIR_HEARD) {
        if (peer->serves || strcmp(peer->state, "protected") == 0 ||
            strcmp(peer->state, "lost") == 0 || strcmp(peer->state, "takeover") == 0) {
            return PAIR_MAY_NOT;
        }
        /* Of two that start at once the one with the larger number goes on; but one that was
         * let before the other listened goes on whatever its number, so the larger one waits
         * to see what becomes of the other. */
        if (strcmp(peer->state, "starting") == 0 && strcmp(peer->role, "primary") == 0) {
            return peer->instance < known->instance ? PAIR_ASK_ON : PAIR_GIVE_WAY;
        }
        return PAIR_MAY_SERVE;
    }
    bool somebody_knows = known->witness || known->vouched ||
                          (known->was && strcmp(known->was, "alone") == 0) ||
                          (hearing == PAIR_NOBODY && no_file);
    return somebody_knows ? PAIR_MAY_SERVE : PAIR_ASK_ON;
}
