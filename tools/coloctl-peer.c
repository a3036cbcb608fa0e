/*
 * coloctl run: the pair port, asked, and answered while no qemu-colo does.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>
#include <unistd.h>

#include "coloctl-run.h"
#include "monitor/json-text.h"
#include "util/error.h"

/* What is answered (documented global: one VM a process). Atomic. */
static int last_now;

static void copy(char *to, size_t size, JsonObject *o, const char *key)
{
    g_autofree char *clean = ctl_clean(ctl_str(o, key, ""), size - 1);

    g_strlcpy(to, clean, size);
}

void peer_parse(const char *line, const char *name, PeerView *v)
{
    JsonSpan span = {line, strlen(line)};
    g_autoptr(JsonNode) node = NULL;

    *v = (PeerView){.last = LAST_MAX};
    if (!json_text_parse_shallow(span, PAIR_DEPTH_MAX, &node, NULL) ||
        !JSON_NODE_HOLDS_OBJECT(node)) {
        g_strlcpy(v->why, "what answers at the pair port is no qemu-colo", sizeof(v->why));
        return;
    }
    JsonObject *o = json_node_get_object(node);
    copy(v->program, sizeof(v->program), o, "program");
    copy(v->version, sizeof(v->version), o, "version");
    copy(v->name, sizeof(v->name), o, "name");
    copy(v->state, sizeof(v->state), o, "state");
    copy(v->role, sizeof(v->role), o, "role");
    copy(v->asks, sizeof(v->asks), o, "asks");
    v->serves = ctl_bool(o, "serves", false);
    v->undecided = strcmp(v->program, "coloctl") == 0;
    if (!v->undecided && strcmp(v->program, "qemu-colo") != 0) {
        g_strlcpy(v->why, "what answers at the pair port is no qemu-colo", sizeof(v->why));
    } else if (name && strcmp(v->name, name) != 0) {
        g_snprintf(v->why, sizeof(v->why), "the pair port belongs to another VM, '%s': give "
                   "each its port-base", v->name);
    } else if (v->undecided && !last_role_parse(ctl_str(o, "last", ""), &v->last)) {
        g_strlcpy(v->why, "the other host's coloctl is of another version", sizeof(v->why));
    } else {
        v->answers = true;
    }
}

/* qemu-colo has the key from its heartbeat, so without one there is none. */
static bool read_key(const VmConf *c, PairKey *key, GError **errp)
{
    key->len = 0;
    return !c->key_file || !c->heartbeat ||
           key_file_read(c->key_file, key->bytes, &key->len, errp);
}

void peer_ask(const VmConf *c, const char *address, unsigned ms, PeerView *v)
{
    g_autoptr(GError) err = NULL;
    g_autofree char *line = NULL;
    PairRefusal refusal;
    PairKey key;

    *v = (PeerView){.last = LAST_MAX};
    if (read_key(c, &key, &err) &&
        pair_ask(address, vm_conf_port(c, VM_PORT_PAIR), ms, &key, &line, &refusal, &err) ==
            PAIR_HEARD) {
        peer_parse(line, c->name, v);
    } else {
        g_strlcpy(v->why, err->message, sizeof(v->why));
    }
    explicit_bzero(&key, sizeof(key));
}

/* The port's thread. */
static char *answer_line(void *opaque)
{
    const VmConf *c = opaque;
    g_autoptr(JsonObject) o = json_object_new();
    g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), o);

    json_object_set_string_member(o, "program", "coloctl");
    json_object_set_string_member(o, "version", COLO_VERSION);
    json_object_set_string_member(o, "name", c->name);
    json_object_set_string_member(o, "state", "undecided");
    json_object_set_boolean_member(o, "serves", FALSE);
    json_object_set_string_member(o, "role", "none");
    json_object_set_int_member(o, "epoch", 0);
    json_object_set_boolean_member(o, "wants-peer", FALSE);
    json_object_set_int_member(o, "instance", getpid());
    json_object_set_string_member(o, "last", last_role_name(g_atomic_int_get(&last_now)));
    return ctl_json(node, false);
}

PairPort *peer_listen(const VmConf *c, GError **errp)
{
    PairPort *p = NULL;
    PairKey key;

    if (read_key(c, &key, errp)) {
        p = pair_port_new(vm_conf_self(c)->addresses[0], vm_conf_port(c, VM_PORT_PAIR), &key,
                          answer_line, (void *)c, errp);
    }
    explicit_bzero(&key, sizeof(key));
    return p;
}

void peer_set_last(LastRole last)
{
    g_atomic_int_set(&last_now, last);
}
