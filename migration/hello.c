/*
 * The handshake: who are we, do the two machines fit.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "migration/arbiter.h"
#include "migration/colo.h"
#include "migration/heartbeat.h"
#include "util/error.h"
#include "util/options.h"

#define HELLO_PROTOCOL 5

char *hello_build(bool primary, GError **errp)
{
    g_autoptr(JsonObject) o = json_object_new();
    g_autoptr(JsonNode) node = NULL;
    g_autofree char *changed =
        colo.map ? ram_blocks_changed(colo.map, colo.qmp, colo.opts.other_ram) : NULL;

    if (changed) {
        colo_error_set(errp, "%s: what was plugged while the guest ran cannot be replicated; "
                             "start it with all of its devices", changed);
        return NULL;
    }
    JsonArray *disks = primary ? block_primary_disks() : block_secondary_disks();

    json_object_set_string_member(o, "program", "qemu-colo");
    json_object_set_string_member(o, "version", COLO_VERSION);
    json_object_set_int_member(o, "protocol", HELLO_PROTOCOL);
    json_object_set_string_member(o, "role", primary ? "primary" : "secondary");
    json_object_set_object_member(o, "machine", options_copy(colo.child.identity));
    json_object_set_array_member(o, "disks", disks);
    json_object_set_string_member(o, "arbiter", arbiter_name(colo.arbiter));
    heartbeat_greet(o);
    if (primary) {
        link_greet(&colo.link, o);
    }
    node = json_node_init_object(json_node_alloc(), o);
    return json_to_string(node, FALSE);
}

/* Every fact of the primary's machine must be the secondary's too. */
static bool check_machine(JsonObject *theirs, GError **errp)
{
    static const char *const facts[][2] = {
        {"ram", "RAM size (-m)"},   {"machine", "machine type (-machine)"},
        {"numa", "NUMA (-numa)"},   {"blocks", "the emulator's RAM blocks"},
        {"cpu", "CPU (-cpu)"},      {"smp", "number of CPUs (-smp)"},
        {"devices", "devices (-device)"}, {"emulator", "emulator version"},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(facts); i++) {
        const char *a = options_get_str(colo.child.identity, facts[i][0], "");
        const char *b = options_get_str(theirs, facts[i][0], "");
        if (strcmp(a, b) != 0) {
            colo_error_set(errp,
                           "%s differs: '%s' on this side, '%s' on the peer; both command "
                           "lines must describe the same machine",
                           facts[i][1], a, b);
            return false;
        }
    }
    return true;
}

static JsonObject *find_disk(JsonArray *disks, const char *name)
{
    for (guint i = 0; i < json_array_get_length(disks); i++) {
        JsonNode *n = json_array_get_element(disks, i);
        if (JSON_NODE_HOLDS_OBJECT(n) &&
            g_strcmp0(options_get_str(json_node_get_object(n), "disk", ""), name) == 0) {
            return json_node_get_object(n);
        }
    }
    return NULL;
}

static bool check_disks(JsonArray *primary, JsonArray *secondary, GError **errp)
{
    for (guint i = 0; i < json_array_get_length(primary); i++) {
        JsonNode *n = json_array_get_element(primary, i);
        if (!JSON_NODE_HOLDS_OBJECT(n)) {
            colo_error_set(errp, "bad list of disks from the peer");
            return false;
        }
        JsonObject *p = json_node_get_object(n);
        const char *name = options_get_str(p, "disk", "");
        JsonObject *s = find_disk(secondary, name);
        if (!s) {
            colo_error_set(errp,
                           "the primary replicates to export '%s', which the secondary "
                           "does not offer (nbd-server-add comes before migrate)",
                           name);
            return false;
        }
        if (strcmp(options_get_str(p, "shared", "off"),
                   options_get_str(s, "shared", "off")) != 0) {
            colo_error_set(errp, "disk '%s': shared-disk=on is given on one side only", name);
            return false;
        }
        const char *ps = options_get_str(p, "size", ""), *ss = options_get_str(s, "size", "");
        if (strcmp(ps, ss) != 0) {
            colo_error_set(errp, "disk '%s': %s bytes on the primary, %s on the secondary",
                           name, ps, ss);
            return false;
        }
    }
    return true;
}

bool hello_check(const char *text, bool we_are_primary, GError **errp)
{
    g_autoptr(JsonObject) o = *text == '{' ? options_parse(text, NULL, errp) : NULL;
    uint64_t protocol = 0;

    if (!o) {
        if (errp && !*errp) {
            colo_error_set(errp, "the peer's greeting is not JSON");
        }
        return false;
    }
    if (g_strcmp0(options_get_str(o, "program", ""), "qemu-colo") != 0 ||
        !options_get_uint(o, "protocol", &protocol, 0, UINT32_MAX, NULL) ||
        protocol != HELLO_PROTOCOL) {
        colo_error_set(errp, "the peer is '%s' %s with protocol %s, this is qemu-colo %s "
                       "with protocol %d: use the same version on both hosts",
                       options_get_str(o, "program", "?"), options_get_str(o, "version", "?"),
                       options_get_str(o, "protocol", "?"), COLO_VERSION, HELLO_PROTOCOL);
        return false;
    }
    if (strcmp(options_get_str(o, "role", ""), we_are_primary ? "secondary" : "primary")) {
        colo_error_set(errp, "the peer wants to be %s too", options_get_str(o, "role", "?"));
        return false;
    }
    JsonNode *disks = json_object_get_member(o, "disks");
    JsonObject *machine = options_get_obj(o, "machine");
    if (!machine || !disks || !JSON_NODE_HOLDS_ARRAY(disks)) {
        colo_error_set(errp, "the peer's greeting lacks machine or disks");
        return false;
    }
    if (!check_machine(machine, errp)) {
        return false;
    }
    const char *theirs_arbiter = options_get_str(o, "arbiter", "manual");
    if (strcmp(theirs_arbiter, arbiter_name(colo.arbiter)) != 0) {
        colo_error_set(errp, "the arbiter differs: '%s' on this side, '%s' on the peer; give "
                       "both the same (-colo arbiter=...)", arbiter_name(colo.arbiter),
                       theirs_arbiter);
        return false;
    }
    g_autoptr(JsonArray) ours =
        we_are_primary ? block_primary_disks() : block_secondary_disks();
    JsonArray *theirs = json_node_get_array(disks);
    if (!we_are_primary) {
        block_secondary_peer_disks(theirs);
    }
    return check_disks(we_are_primary ? ours : theirs, we_are_primary ? theirs : ours, errp) &&
           heartbeat_meet(o, errp); /* last: it binds this side to that process */
}

GByteArray *barriers_pack(const BlockBarrier *b, unsigned n)
{
    GByteArray *out = g_byte_array_new();

    for (unsigned i = 0; i < n; i++) {
        uint64_t seq = GUINT64_TO_BE(b[i].sequence);
        g_byte_array_append(out, (const guint8 *)&seq, sizeof(seq));
        g_byte_array_append(out, (const guint8 *)b[i].disk, sizeof(b[i].disk));
    }
    return out;
}

bool barriers_unpack(const uint8_t *data, size_t len, BlockBarrier *out, unsigned *n,
                     GError **errp)
{
    const size_t one = sizeof(uint64_t) + sizeof(out->disk);

    if (len % one || len / one > COLO_DISKS_MAX) {
        colo_error_set(errp, "bad disk barriers from the peer (%zu bytes)", len);
        return false;
    }
    *n = len / one;
    for (unsigned i = 0; i < *n; i++, data += one) {
        uint64_t seq;
        memcpy(&seq, data, sizeof(seq));
        out[i].sequence = GUINT64_FROM_BE(seq);
        memcpy(out[i].disk, data + sizeof(seq), sizeof(out[i].disk));
        if (!memchr(out[i].disk, 0, sizeof(out[i].disk))) {
            colo_error_set(errp, "bad disk name from the peer");
            return false;
        }
    }
    return true;
}
