/*
 * quorum: its options, and children that come and go.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A child is called children.N. QEMU counts N up for ever, so that the replication child of
 * the second failover is children.2, and procedures that say children.1 fail. Here a new
 * child gets the number above the highest that is there: with one image it is always
 * children.1. The number that QEMU would have given is understood too, where it is nobody's
 * name, and for replication children a mere position.
 */
#include "quorum-int.h"

#include <stdlib.h>

static unsigned quorum_next_index(Quorum *q)
{
    unsigned next = 0;

    for (unsigned i = 0; i < q->n; i++) {
        next = MAX(next, q->child[i].index + 1);
    }
    return next;
}

static void quorum_update(BlockNode *node)
{
    Quorum *q = node->opaque;

    node->can_zero = true;
    node->discard = false;
    node->read_only = q->read_only_given;
    for (unsigned i = 0; i < q->n; i++) {
        BlockNode *c = q->child[i].node;

        if (!block_node_is_primary(c)) {
            node->can_zero &= c->can_zero;
            node->discard |= c->discard;
            node->read_only |= c->read_only;
        }
    }
}

static bool is_ancestor(BlockNode *node, BlockNode *maybe_parent)
{
    Quorum *q = maybe_parent->opaque;

    if (node == maybe_parent) {
        return true;
    }
    for (unsigned i = 0; i < q->n; i++) {
        if (block_node_is_quorum(q->child[i].node) &&
            is_ancestor(node, q->child[i].node)) {
            return true;
        }
    }
    return false;
}

/* A forwarder of a shared disk needs the log before the image, and no other copy of it. */
static bool quorum_share(BlockNode *node, BlockNode *child, GError **errp)
{
    Quorum *q = node->opaque;
    BlockNode *local[QUORUM_CHILDREN_MAX], *other;
    bool primary = block_node_is_primary(child);

    if (!q->shared && !(primary && block_primary_is_shared(child))) {
        return true;
    }
    if (!primary || block_quorum_local(q, local) != 1 ||
        block_quorum_forwarders(node, &other, 1) > 0) {
        colo_error_set(errp,
                       "shared-disk=on: quorum '%s' must have one image and no other "
                       "replication child",
                       node->name);
        return false;
    }
    if (!block_primary_is_shared(child)) {
        return true;
    }
    if (!q->shared) {
        q->shared = shared_log_new(node, local[0], errp);
    }
    if (q->shared) {
        block_primary_set_log(child, q->shared);
    }
    return q->shared != NULL;
}

bool block_quorum_add(BlockNode *node, BlockNode *child, GError **errp)
{
    Quorum *q = node->opaque;

    if (q->n == QUORUM_CHILDREN_MAX) {
        colo_error_set(errp, "Too many children");
        return false;
    }
    if (block_node_is_quorum(child) && is_ancestor(node, child)) {
        colo_error_set(errp, "Making '%s' a children.%u child of '%s' would create a cycle",
                       child->name, quorum_next_index(q), node->name);
        return false;
    }
    if (child->users > 0) {
        colo_error_set(errp, "The node %s already has a parent", child->name);
        return false;
    }
    if (child->size != node->size) {
        colo_error_set(errp,
                       "Node '%s' has %" G_GUINT64_FORMAT " bytes and quorum '%s' "
                       "%" G_GUINT64_FORMAT "; both sides need disks of one size",
                       child->name, child->size, node->name, node->size);
        return false;
    }
    if (block_node_is_primary(child) && !block_primary_alive(child)) {
        colo_error_set(errp, "Node '%s' has lost its NBD server", child->name);
        return false;
    }
    if (!quorum_share(node, child, errp)) {
        return false;
    }
    child->users++;
    q->child[q->n] = (QuorumChild){
        .node = child, .index = quorum_next_index(q), .serial = q->next_serial++};
    q->n++;
    if (block_node_is_primary(child)) {
        block_primary_attached(child, true);
    }
    quorum_update(node);
    colo_trace(block_quorum_add, "%s: %s", node->name, child->name);
    return true;
}

/* The child with number @nr: of its name, or as the head of this file says. */
static int quorum_find_number(Quorum *q, unsigned long nr)
{
    int by_serial = -1;

    for (unsigned i = 0; i < q->n; i++) {
        if (q->child[i].index == nr) {
            return i;
        }
        if (q->child[i].serial == nr && block_node_is_primary(q->child[i].node)) {
            by_serial = i;
        }
    }
    if (by_serial >= 0) {
        return by_serial;
    }
    return nr < q->n && block_node_is_primary(q->child[nr].node) ? (int)nr : -1;
}

static int quorum_find(Quorum *q, const char *child)
{
    if (g_str_has_prefix(child, "children.")) {
        char *end;
        unsigned long nr = strtoul(child + strlen("children."), &end, 10);

        return *end || end == child + strlen("children.") ? -1 : quorum_find_number(q, nr);
    }
    for (unsigned i = 0; i < q->n; i++) {
        if (!strcmp(q->child[i].node->name, child)) {
            return i;
        }
    }
    return -1;
}

/* Whether a child other than @but holds all that was written. */
static bool quorum_has_good(Quorum *q, unsigned but)
{
    for (unsigned i = 0; i < q->n; i++) {
        if (i != but && !q->child[i].stale && !block_node_is_primary(q->child[i].node)) {
            return true;
        }
    }
    return false;
}

bool block_quorum_del(BlockNode *node, const char *child, GError **errp)
{
    Quorum *q = node->opaque;
    int at = quorum_find(q, child);

    if (at < 0) {
        colo_error_set(errp, "Node '%s' does not have child '%s'", node->name, child);
        return false;
    }
    BlockNode *c = q->child[at].node;
    BlockNode *local[QUORUM_CHILDREN_MAX];
    if (!block_node_is_primary(c) && block_quorum_local(q, local) <= q->threshold) {
        colo_error_set(errp,
                       "The number of children cannot be lower than the vote threshold %u",
                       q->threshold);
        return false;
    }
    if (!block_node_is_primary(c) && !quorum_has_good(q, at)) {
        colo_error_set(errp, "Child '%s' is the only one of '%s' that holds all that was written",
                       child, node->name);
        return false;
    }
    q->n--;
    memmove(&q->child[at], &q->child[at + 1], (q->n - at) * sizeof(QuorumChild));
    colo_trace(block_quorum_del, "%s: %s", node->name, c->name);
    if (block_node_is_primary(c)) {
        block_primary_attached(c, false);
    }
    block_node_unuse(c);
    quorum_update(node);
    block_front_kick_all();
    return true;
}

/* "children" as {"0": ..., "1": ...} (keyval) or as a list, in one form. */
static JsonObject *quorum_children(JsonObject *opts)
{
    JsonNode *n = json_object_get_member(opts, "children");

    if (n && JSON_NODE_HOLDS_OBJECT(n)) {
        return json_object_ref(json_node_get_object(n));
    }
    JsonObject *o = json_object_new();
    if (n && JSON_NODE_HOLDS_ARRAY(n)) {
        JsonArray *a = json_node_get_array(n);

        for (guint i = 0; i < json_array_get_length(a); i++) {
            g_autofree char *key = g_strdup_printf("%u", i);

            json_object_set_member(o, key, json_node_copy(json_array_get_element(a, i)));
        }
    }
    return o;
}

static bool quorum_open_children(Quorum *q, JsonObject *opts, JsonObject *children,
                                 GError **errp)
{
    static const char *const passed[] = {"read-only", "discard", "cache", "aio"};

    for (unsigned i = 0; i < json_object_get_size(children); i++) {
        g_autofree char *nr = g_strdup_printf("%u", i);
        g_autofree char *key = g_strdup_printf("children.%u", i);
        g_autoptr(JsonObject) one = json_object_new();

        if (!json_object_has_member(children, nr)) {
            colo_error_set(errp, "Parameter '%s' is missing", key);
            return false;
        }
        json_object_set_member(one, key,
                               json_node_copy(json_object_get_member(children, nr)));
        for (size_t k = 0; k < G_N_ELEMENTS(passed); k++) {
            if (json_object_has_member(opts, passed[k])) {
                json_object_set_member(
                    one, passed[k],
                    json_node_copy(json_object_get_member(opts, passed[k])));
            }
        }
        BlockNode *child = block_node_open_child(one, key, errp);
        if (!child) {
            return false;
        }
        q->child[i].index = q->child[i].serial = i;
        q->child[i].node = child;
        q->next_serial = i + 1;
        q->n++;
        if (block_node_is_primary(child) && block_primary_is_shared(child)) {
            colo_error_set(errp, "quorum: attach '%s' (shared-disk=on) with x-blockdev-change",
                           child->name);
            return false;
        }
        if (child->size != q->child[0].node->size) {
            colo_error_set(errp, "quorum: '%s' and '%s' differ in size", child->name,
                           q->child[0].node->name);
            return false;
        }
    }
    return true;
}

BlockNode *block_quorum_open(const char *name, JsonObject *opts, GError **errp)
{
    static const char *const known[] = {
        "driver",       "children",      "vote-threshold",
        "read-pattern", "blkverify",     "rewrite-corrupted",
        "read-only",    "discard",       "cache",
        "aio",          "detect-zeroes", NULL};
    g_autofree char *what = g_strdup_printf("quorum '%s'", name ? name : "(inline)");
    const char *pattern = options_get_str(opts, "read-pattern", "quorum");
    g_autoptr(JsonObject) children = quorum_children(opts);
    unsigned n = json_object_get_size(children);
    bool verify = false, rewrite = false, read_only = false;
    uint64_t threshold = 0;

    if (!options_check_known(opts, what, known, errp) ||
        !options_get_bool(opts, "blkverify", &verify, errp) ||
        !options_get_bool(opts, "rewrite-corrupted", &rewrite, errp) ||
        !options_get_bool(opts, "read-only", &read_only, errp)) {
        return NULL;
    }
    if (rewrite && verify) {
        colo_error_set(errp, "rewrite-corrupted=on cannot be used with blkverify=on");
        return NULL;
    }
    if (verify) {
        colo_error_set(errp, "%s: blkverify is not supported, since it ends the emulator where "
                             "two images differ; use vote-threshold", what);
        return NULL;
    }
    if (strcmp(options_get_str(opts, "detect-zeroes", "off"), "off")) {
        colo_error_set(errp, "%s: detect-zeroes is not supported", what);
        return NULL;
    }
    if (strcmp(pattern, "fifo") && strcmp(pattern, "quorum")) {
        colo_error_set(errp,
                       "%s: Parameter 'read-pattern' does not accept value '%s' (quorum, fifo)",
                       what, pattern);
        return NULL;
    }
    if (n == 0) {
        colo_error_set(errp, "Number of provided children must be 1 or more");
        return NULL;
    }
    if (n > QUORUM_CHILDREN_MAX) {
        colo_error_set(errp, "%s: at most %d children are supported", what,
                       QUORUM_CHILDREN_MAX);
        return NULL;
    }
    if (!json_object_has_member(opts, "vote-threshold")) {
        colo_error_set(errp, "Parameter 'vote-threshold' is missing");
        return NULL;
    }
    if (!options_get_uint(opts, "vote-threshold", &threshold, 0, UINT32_MAX, errp)) {
        return NULL;
    }
    if (threshold == 0) {
        colo_error_set(errp, "Parameter 'vote-threshold' expects a value >= 1");
        return NULL;
    }
    if (threshold > n) {
        colo_error_set(errp, "threshold may not exceed children count (vote-threshold=%"
                             G_GUINT64_FORMAT ", %u children)", threshold, n);
        return NULL;
    }

    Quorum *q = g_new0(Quorum, 1);
    q->fifo = !strcmp(pattern, "fifo");
    q->rewrite = rewrite && !q->fifo;
    g_queue_init(&q->held);
    q->threshold = threshold;
    q->read_only_given = read_only;
    bool ok = quorum_open_children(q, opts, children, errp);
    block_lock();
    if (!ok) {
        for (unsigned i = 0; i < q->n; i++) {
            block_node_unuse(q->child[i].node);
        }
        g_free(q);
        block_unlock();
        return NULL;
    }
    BlockNode *node = block_node_new(&block_quorum_driver, name, q);
    node->size = q->child[0].node->size;
    for (unsigned i = 0; i < q->n; i++) {
        if (block_node_is_primary(q->child[i].node)) {
            block_primary_attached(q->child[i].node, true);
        }
    }
    quorum_update(node);
    block_unlock();
    return node;
}
