/*
 * quorum: one disk of several, and the place where replication is attached.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A replication child in primary mode is not a copy that votes: the front hands it each
 * modifying request on arrival (forward), and its failure is no failure of the disk. All
 * other children are local: writes go to each and succeed if vote-threshold of them do;
 * reads come from the first that works (fifo) or from the majority (quorum).
 */
#include "block-int.h"

#include <stdlib.h>

#define QUORUM_CHILDREN_MAX 32

typedef struct QuorumChild {
    BlockNode *node;
    unsigned index; /* of its name, children.N */
} QuorumChild;

typedef struct Quorum {
    QuorumChild child[QUORUM_CHILDREN_MAX];
    unsigned n;
    unsigned threshold;
    bool fifo;
    bool read_only_given;
    bool written; /* by its user, ever */
} Quorum;

typedef struct QuorumReq QuorumReq;

typedef struct QuorumSub {
    BlockRequest req;
    QuorumReq *parent;
    BlockNode *node;
    int ret;
} QuorumSub;

struct QuorumReq {
    BlockRequest *orig;
    BlockNode *quorum;
    unsigned n, left, threshold;
    unsigned current; /* fifo */
    bool vote;
    QuorumSub sub[];
};

static unsigned quorum_local(Quorum *q, BlockNode **out)
{
    unsigned n = 0;

    for (unsigned i = 0; i < q->n; i++) {
        if (!block_node_is_primary(q->child[i].node)) {
            out[n++] = q->child[i].node;
        }
    }
    return n;
}

static void quorum_finish(QuorumReq *qr, int ret)
{
    BlockRequest *orig = qr->orig;

    for (unsigned i = 0; i < qr->n; i++) {
        block_node_unuse(qr->sub[i].node);
        if (qr->vote) {
            block_buf_unref(qr->sub[i].req.buf);
        }
    }
    block_node_unuse(qr->quorum);
    g_free(qr);
    orig->done(orig, ret);
}

static void quorum_all_done(BlockRequest *req, int ret)
{
    QuorumSub *sub = req->opaque;
    QuorumReq *qr = sub->parent;
    unsigned good = 0;
    int err = -EIO;

    sub->ret = ret;
    if (ret < 0) {
        colo_trace(block_quorum_child_failed, "%s: %s: %s", sub->node->name,
                   block_op_name(req->op), g_strerror(-ret));
    }
    if (--qr->left > 0) {
        return;
    }
    for (unsigned i = 0; i < qr->n; i++) {
        if (qr->sub[i].ret == 0) {
            good++;
        } else {
            err = qr->sub[i].ret;
        }
    }
    if (good > 0 && good < qr->n) {
        colo_report("disk '%s': %s failed on %u of %u children", qr->quorum->name,
                    block_op_name(qr->orig->op), qr->n - good, qr->n);
    }
    quorum_finish(qr, good >= qr->threshold ? 0 : err);
}

static void quorum_vote_done(BlockRequest *req, int ret)
{
    QuorumSub *sub = req->opaque;
    QuorumReq *qr = sub->parent;

    sub->ret = ret;
    if (--qr->left > 0) {
        return;
    }
    for (unsigned i = 0; i < qr->n; i++) {
        unsigned votes = 0;

        for (unsigned j = 0; qr->sub[i].ret == 0 && j < qr->n; j++) {
            votes += qr->sub[j].ret == 0 &&
                     !memcmp(qr->sub[i].req.data, qr->sub[j].req.data, qr->orig->bytes);
        }
        if (votes >= qr->threshold) {
            if (votes < qr->n) {
                colo_report("disk '%s': children differ at offset %" G_GUINT64_FORMAT,
                            qr->quorum->name, qr->orig->offset);
            }
            memcpy(qr->orig->data, qr->sub[i].req.data, qr->orig->bytes);
            quorum_finish(qr, 0);
            return;
        }
    }
    quorum_finish(qr, -EIO);
}

static void quorum_fifo_done(BlockRequest *req, int ret)
{
    QuorumSub *sub = req->opaque;
    QuorumReq *qr = sub->parent;

    if (ret < 0 && qr->current + 1 < qr->n) {
        colo_trace(block_quorum_child_failed, "%s: %s: %s", sub->node->name,
                   block_op_name(req->op), g_strerror(-ret));
        sub = &qr->sub[++qr->current];
        block_submit(sub->node, &sub->req);
        return;
    }
    quorum_finish(qr, ret);
}

bool block_quorum_written(BlockNode *node)
{
    Quorum *q = node->opaque;

    return q->written;
}

static void quorum_submit(BlockNode *node, BlockRequest *req)
{
    Quorum *q = node->opaque;
    BlockNode *local[QUORUM_CHILDREN_MAX];
    unsigned n = quorum_local(q, local);

    if (n == 0) {
        block_complete_later(req, -EIO);
        return;
    }
    if (req->op == BLOCK_OP_STATUS && n > 1) {
        BlockExtent e = {.bytes = req->bytes};

        g_array_append_val(req->extents, e);
        block_complete_later(req, 0);
        return;
    }
    bool reads = req->op == BLOCK_OP_READ || req->op == BLOCK_OP_STATUS;
    q->written = q->written || (!reads && req->op != BLOCK_OP_FLUSH);
    QuorumReq *qr = g_malloc0(sizeof(*qr) + n * sizeof(QuorumSub));

    qr->orig = req;
    qr->quorum = node;
    qr->n = qr->left = n;
    qr->threshold = MIN(q->threshold, n);
    qr->vote = reads && n > 1 && !q->fifo;
    node->users++;
    for (unsigned i = 0; i < n; i++) {
        QuorumSub *sub = &qr->sub[i];

        sub->req = *req;
        sub->req.opaque = sub;
        sub->parent = qr;
        sub->node = local[i];
        local[i]->users++;
        if (qr->vote) {
            sub->req.buf = block_buf_new(req->bytes);
            sub->req.data = sub->req.buf->data;
            sub->req.done = quorum_vote_done;
        } else {
            sub->req.done = reads ? quorum_fifo_done : quorum_all_done;
        }
    }
    for (unsigned i = 0; i < (reads && !qr->vote ? 1 : n); i++) {
        block_submit(local[i], &qr->sub[i].req);
    }
}

unsigned block_quorum_forwarders(BlockNode *node, BlockNode **out, unsigned max)
{
    Quorum *q = node->opaque;
    unsigned n = 0;

    for (unsigned i = 0; i < q->n && n < max; i++) {
        if (block_node_is_primary(q->child[i].node)) {
            out[n++] = q->child[i].node;
        }
    }
    return n;
}

static void quorum_forward(BlockNode *node, BlockRequest *req)
{
    BlockNode *fw[QUORUM_CHILDREN_MAX];
    unsigned n = block_quorum_forwarders(node, fw, G_N_ELEMENTS(fw));

    for (unsigned i = 0; i < n; i++) {
        block_primary_forward(fw[i], req);
    }
}

static bool quorum_forward_blocked(BlockNode *node)
{
    BlockNode *fw[QUORUM_CHILDREN_MAX];
    unsigned n = block_quorum_forwarders(node, fw, G_N_ELEMENTS(fw));

    for (unsigned i = 0; i < n; i++) {
        if (block_primary_blocked(fw[i])) {
            return true;
        }
    }
    return false;
}

static bool quorum_forwarding(BlockNode *node)
{
    BlockNode *fw[QUORUM_CHILDREN_MAX];
    unsigned n = block_quorum_forwarders(node, fw, G_N_ELEMENTS(fw));

    for (unsigned i = 0; i < n; i++) {
        if (block_primary_alive(fw[i])) {
            return true;
        }
    }
    return false;
}

static void quorum_close(BlockNode *node)
{
    Quorum *q = node->opaque;

    for (unsigned i = 0; i < q->n; i++) {
        if (block_node_is_primary(q->child[i].node)) {
            block_primary_attached(q->child[i].node, false);
        }
        block_node_unuse(q->child[i].node);
    }
    g_free(q);
}

static void quorum_query(BlockNode *node, JsonObject *out)
{
    Quorum *q = node->opaque;
    JsonArray *a = json_array_new();

    for (unsigned i = 0; i < q->n; i++) {
        JsonObject *o = json_object_new();
        g_autofree char *name = g_strdup_printf("children.%u", q->child[i].index);

        json_object_set_string_member(o, "child", name);
        json_object_set_string_member(o, "node-name", q->child[i].node->name);
        json_array_add_object_element(a, o);
    }
    json_object_set_array_member(out, "children", a);
}

static const BlockDriver quorum_driver = {
    .name = "quorum",
    .submit = quorum_submit,
    .forward = quorum_forward,
    .forward_blocked = quorum_forward_blocked,
    .forwarding = quorum_forwarding,
    .close = quorum_close,
    .query = quorum_query,
};

bool block_node_is_quorum(BlockNode *node)
{
    return node->drv == &quorum_driver;
}

/* The name that the next child gets: one above the highest, as QEMU numbers them. */
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

bool block_quorum_add(BlockNode *node, BlockNode *child, GError **errp)
{
    Quorum *q = node->opaque;

    if (q->n == QUORUM_CHILDREN_MAX) {
        colo_error_set(errp, "Too many children of quorum '%s'", node->name);
        return false;
    }
    if (child->users > 0) {
        colo_error_set(errp, "Node '%s' already has a parent", child->name);
        return false;
    }
    if (block_node_is_quorum(child) && is_ancestor(node, child)) {
        colo_error_set(errp, "Making '%s' a child of '%s' would create a cycle",
                       child->name, node->name);
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
    child->users++;
    q->child[q->n].index = quorum_next_index(q);
    q->child[q->n++].node = child;
    if (block_node_is_primary(child)) {
        block_primary_attached(child, true);
    }
    quorum_update(node);
    colo_trace(block_quorum_add, "%s: %s", node->name, child->name);
    return true;
}

static int quorum_find(Quorum *q, const char *child)
{
    if (g_str_has_prefix(child, "children.")) {
        char *end;
        unsigned long nr = strtoul(child + strlen("children."), &end, 10);

        if (*end || end == child + strlen("children.")) {
            return -1;
        }
        for (unsigned i = 0; i < q->n; i++) {
            if (q->child[i].index == nr) {
                return i;
            }
        }
        return nr < q->n ? (int)nr : -1;
    }
    for (unsigned i = 0; i < q->n; i++) {
        if (!strcmp(q->child[i].node->name, child)) {
            return i;
        }
    }
    return -1;
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
    if (!block_node_is_primary(c) && quorum_local(q, local) <= q->threshold) {
        colo_error_set(errp,
                       "The number of children of quorum '%s' cannot be lower than "
                       "the vote threshold %u",
                       node->name, q->threshold);
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
        q->child[i].index = i;
        q->child[i].node = child;
        q->n++;
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
    if (verify || rewrite ||
        strcmp(options_get_str(opts, "detect-zeroes", "off"), "off")) {
        colo_error_set(errp, "%s: %s is not supported", what,
                       verify    ? "blkverify"
                       : rewrite ? "rewrite-corrupted"
                                 : "detect-zeroes");
        return NULL;
    }
    if (strcmp(pattern, "fifo") && strcmp(pattern, "quorum")) {
        colo_error_set(errp,
                       "%s: Parameter 'read-pattern' expects 'quorum' or 'fifo', "
                       "not '%s'",
                       what, pattern);
        return NULL;
    }
    if (n == 0 || n > QUORUM_CHILDREN_MAX) {
        colo_error_set(errp, "%s: Number of provided children must be 1 to %d", what,
                       QUORUM_CHILDREN_MAX);
        return NULL;
    }
    if (!options_get_uint(opts, "vote-threshold", &threshold, 1, n, errp)) {
        return NULL;
    }
    if (threshold == 0) {
        colo_error_set(errp, "%s: Parameter 'vote-threshold' is missing", what);
        return NULL;
    }

    Quorum *q = g_new0(Quorum, 1);
    q->fifo = !strcmp(pattern, "fifo");
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
    BlockNode *node = block_node_new(&quorum_driver, name, q);
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
