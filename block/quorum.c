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
 *
 * A child that failed a write which others took is stale: it holds old data for some of the
 * disk, nobody knows which. fifo never reads it again; in a vote it counts, but wins no tie.
 * QEMU goes on reading it. To use it again, detach, copy and attach it.
 */
#include "quorum-int.h"

typedef struct QuorumReq QuorumReq;

typedef struct QuorumSub {
    BlockRequest req;
    QuorumReq *parent;
    BlockNode *node;
    int ret;
    bool stale;
} QuorumSub;

struct QuorumReq {
    BlockRequest *orig;
    BlockNode *quorum;
    unsigned n, left, threshold;
    unsigned current; /* fifo */
    bool vote;
    bool quiet;            /* no write was in flight when it began, */
    uint64_t writes_begun; /* and this many had begun */
    QuorumSub sub[];
};

unsigned block_quorum_local(Quorum *q, BlockNode **out)
{
    unsigned n = 0;

    for (unsigned i = 0; i < q->n; i++) {
        if (!block_node_is_primary(q->child[i].node)) {
            out[n++] = q->child[i].node;
        }
    }
    return n;
}

static QuorumChild *quorum_child(Quorum *q, BlockNode *node)
{
    for (unsigned i = 0; i < q->n; i++) {
        if (q->child[i].node == node) {
            return &q->child[i];
        }
    }
    return NULL; /* detached meanwhile */
}

/* --- Events; at most one a second of a kind and node, as QEMU has it --- */

static void event_sectors(JsonObject *o, const BlockRequest *req)
{
    uint64_t start = 0, end = 0;

    if (req->op != BLOCK_OP_FLUSH) {
        start = req->offset / BLOCK_SECTOR;
        end = (req->offset + req->bytes + BLOCK_SECTOR - 1) / BLOCK_SECTOR;
    }
    json_object_set_int_member(o, "sector-num", start);
    json_object_set_int_member(o, "sectors-count", end - start);
}

static bool event_due(gint64 *last)
{
    gint64 now = g_get_monotonic_time();

    if (*last && now - *last < G_USEC_PER_SEC) {
        return false;
    }
    *last = now;
    return true;
}

/* @ret: its error, or 0 for data that the majority does not have. */
static void report_bad(QuorumReq *qr, BlockNode *child, int ret)
{
    Quorum *q = qr->quorum->opaque;
    QuorumChild *c = quorum_child(q, child);
    BlockOp op = qr->orig->op;
    bool reads = op == BLOCK_OP_READ || op == BLOCK_OP_STATUS;
    const char *type = reads ? "read" : op == BLOCK_OP_FLUSH ? "flush" : "write";

    colo_trace(block_quorum_child_bad, "%s: %s: %s", child->name, block_op_name(op),
               ret < 0 ? g_strerror(-ret) : "differs");
    if (!c || !event_due(&c->reported)) {
        return;
    }
    colo_report("disk '%s', child '%s': %s at offset %" G_GUINT64_FORMAT ": %s",
                qr->quorum->name, child->name, block_op_name(op), qr->orig->offset,
                ret < 0 ? g_strerror(-ret) : "differs from the other children");
    JsonObject *o = json_object_new();
    json_object_set_string_member(o, "type", type);
    if (ret < 0) {
        json_object_set_string_member(o, "error", g_strerror(-ret));
    }
    json_object_set_string_member(o, "node-name", child->name);
    event_sectors(o, qr->orig);
    block_event("QUORUM_REPORT_BAD", o);
}

static void report_failure(QuorumReq *qr)
{
    Quorum *q = qr->quorum->opaque;
    BlockNode *node = qr->quorum;

    if (!event_due(&q->failure_reported)) {
        return;
    }
    colo_report("disk '%s': %s at offset %" G_GUINT64_FORMAT ": fewer than %u children agree",
                node->name, block_op_name(qr->orig->op), qr->orig->offset, qr->threshold);
    JsonObject *o = json_object_new();
    json_object_set_string_member(o, "reference", node->id ? node->id : node->name);
    event_sectors(o, qr->orig);
    block_event("QUORUM_FAILURE", o);
}

/* --- The end of a request --- */

static void quorum_submit(BlockNode *node, BlockRequest *req);

static void quorum_finish(QuorumReq *qr, int ret)
{
    BlockRequest *orig = qr->orig;
    Quorum *q = qr->quorum->opaque;

    if (block_op_modifies(orig->op)) {
        q->writes--;
    }
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

/* The error that most children had. */
static int vote_error(QuorumReq *qr)
{
    unsigned best = 0;
    int err = -EIO;

    for (unsigned i = 0; i < qr->n; i++) {
        unsigned votes = 0;

        for (unsigned j = 0; qr->sub[i].ret < 0 && j < qr->n; j++) {
            votes += qr->sub[j].ret == qr->sub[i].ret;
        }
        if (votes > best) {
            best = votes;
            err = qr->sub[i].ret;
        }
    }
    return err;
}

static void quorum_all_done(BlockRequest *req, int ret)
{
    QuorumSub *sub = req->opaque;
    QuorumReq *qr = sub->parent;
    Quorum *q = qr->quorum->opaque;
    unsigned good = 0;

    sub->ret = ret;
    if (--qr->left > 0) {
        return;
    }
    for (unsigned i = 0; i < qr->n; i++) {
        good += qr->sub[i].ret == 0;
    }
    for (unsigned i = 0; i < qr->n; i++) {
        QuorumChild *c = quorum_child(q, qr->sub[i].node);

        if (qr->sub[i].ret == 0) {
            continue;
        }
        report_bad(qr, qr->sub[i].node, qr->sub[i].ret);
        if (c && good > 0 && !c->stale) {
            c->stale = true;
            colo_report("disk '%s': child '%s' missed a write that others took: it is not read "
                        "any more; detach it, copy it again and attach it",
                        qr->quorum->name, c->node->name);
        }
    }
    if (good >= qr->threshold) {
        quorum_finish(qr, 0);
        return;
    }
    if (qr->orig->op != BLOCK_OP_FLUSH) {
        report_failure(qr);
    }
    quorum_finish(qr, vote_error(qr));
}

/* --- Votes --- */

static void quorum_rewritten(BlockRequest *req, int ret)
{
    QuorumSub *sub = req->opaque;
    QuorumReq *qr = sub->parent;
    Quorum *q = qr->quorum->opaque;
    BlockNode *quorum = qr->quorum;

    if (ret < 0) {
        report_bad(qr, sub->node, ret);
    }
    if (--qr->left > 0) {
        return;
    }
    quorum->users++;
    quorum_finish(qr, 0);
    if (--q->rewriting == 0) {
        BlockRequest *held;

        while (!q->rewriting && (held = g_queue_pop_head(&q->held))) {
            quorum_submit(quorum, held);
        }
    }
    block_node_unuse(quorum);
}

/* Give the losers the winner's data. @lost: their bits. */
static void quorum_rewrite(QuorumReq *qr, QuorumSub *winner, uint32_t lost)
{
    Quorum *q = qr->quorum->opaque;

    qr->left = 1;
    q->rewriting++;
    for (unsigned i = 0; i < qr->n; i++) {
        QuorumSub *sub = &qr->sub[i];

        if (!(lost & 1u << i) || sub->node->read_only) {
            continue;
        }
        memcpy(sub->req.data, winner->req.data, qr->orig->bytes);
        sub->req.op = BLOCK_OP_WRITE;
        sub->req.flags = 0;
        sub->req.done = quorum_rewritten;
        qr->left++;
        block_submit(sub->node, &sub->req);
    }
    quorum_rewritten(&winner->req, 0);
}

static bool same_data(QuorumReq *qr, unsigned i, unsigned j)
{
    return i == j ||
           !memcmp(qr->sub[i].req.data, qr->sub[j].req.data, qr->orig->bytes);
}

static void quorum_vote_done(BlockRequest *req, int ret)
{
    QuorumSub *sub = req->opaque;
    QuorumReq *qr = sub->parent;
    Quorum *q = qr->quorum->opaque;
    unsigned best = 0, win = 0, good = 0;
    uint32_t lost = 0;

    sub->ret = ret;
    if (--qr->left > 0) {
        return;
    }
    for (unsigned i = 0; i < qr->n; i++) {
        unsigned votes = 0;

        if (qr->sub[i].ret < 0) {
            report_bad(qr, qr->sub[i].node, qr->sub[i].ret);
            continue;
        }
        good++;
        for (unsigned j = 0; j < qr->n; j++) {
            votes += qr->sub[j].ret == 0 && same_data(qr, i, j);
        }
        if (votes > best || (votes == best && qr->sub[win].stale && !qr->sub[i].stale)) {
            best = votes;
            win = i;
        }
    }
    if (best < qr->threshold) {
        report_failure(qr);
        quorum_finish(qr, good < qr->threshold ? vote_error(qr) : -EIO);
        return;
    }
    for (unsigned i = 0; best < good && i < qr->n; i++) {
        if (qr->sub[i].ret == 0 && !same_data(qr, win, i)) {
            report_bad(qr, qr->sub[i].node, 0);
            lost |= 1u << i;
        }
    }
    memcpy(qr->orig->data, qr->sub[win].req.data, qr->orig->bytes);
    if (lost && q->rewrite && qr->quiet && q->writes_begun == qr->writes_begun) {
        quorum_rewrite(qr, &qr->sub[win], lost);
    } else {
        quorum_finish(qr, 0);
    }
}

static void quorum_fifo_done(BlockRequest *req, int ret)
{
    QuorumSub *sub = req->opaque;
    QuorumReq *qr = sub->parent;

    if (ret < 0) {
        report_bad(qr, sub->node, ret);
        if (qr->current + 1 < qr->n) {
            sub = &qr->sub[++qr->current];
            block_submit(sub->node, &sub->req);
            return;
        }
    }
    quorum_finish(qr, ret);
}

static unsigned quorum_below(BlockNode *node, BlockNode **out, unsigned max)
{
    BlockNode *local[QUORUM_CHILDREN_MAX];
    unsigned n = MIN(block_quorum_local(node->opaque, local), max);

    memcpy(out, local, n * sizeof(*out));
    return n;
}

/* --- Submission --- */

bool block_quorum_written(BlockNode *node)
{
    Quorum *q = node->opaque;

    return q->written;
}

/* Those that fifo may read. */
static unsigned quorum_readable(Quorum *q, BlockNode **nodes, unsigned n)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < n; i++) {
        if (!quorum_child(q, nodes[i])->stale) {
            nodes[kept++] = nodes[i];
        }
    }
    return kept;
}

static void quorum_submit(BlockNode *node, BlockRequest *req)
{
    Quorum *q = node->opaque;
    BlockNode *local[QUORUM_CHILDREN_MAX];
    bool reads = req->op == BLOCK_OP_READ || req->op == BLOCK_OP_STATUS;
    unsigned n = block_quorum_local(q, local);

    if (q->rewriting && block_op_modifies(req->op)) {
        g_queue_push_tail(&q->held, req);
        return;
    }
    if (req->op == BLOCK_OP_STATUS && n > 1) {
        BlockExtent e = {.bytes = req->bytes};

        g_array_append_val(req->extents, e);
        block_complete_later(req, 0);
        return;
    }
    if (q->shared && shared_log_submit(q->shared, req)) {
        q->written |= block_op_modifies(req->op);
        return;
    }
    bool vote = reads && n > 1 && !q->fifo;
    if (reads && !vote) {
        n = quorum_readable(q, local, n);
    }
    if (n == 0) {
        block_complete_later(req, -EIO);
        return;
    }
    if (block_op_modifies(req->op)) {
        q->written = true;
        q->writes++;
        q->writes_begun++;
    }
    QuorumReq *qr = g_malloc0(sizeof(*qr) + n * sizeof(QuorumSub));

    qr->orig = req;
    qr->quorum = node;
    qr->n = qr->left = n;
    qr->threshold = MIN(q->threshold, n);
    qr->vote = vote;
    qr->quiet = q->writes == 0;
    qr->writes_begun = q->writes_begun;
    node->users++;
    for (unsigned i = 0; i < n; i++) {
        QuorumSub *sub = &qr->sub[i];

        sub->req = *req;
        sub->req.opaque = sub;
        sub->parent = qr;
        sub->node = local[i];
        sub->stale = quorum_child(q, local[i])->stale;
        local[i]->users++;
        if (vote) {
            sub->req.buf = block_buf_new(req->bytes);
            sub->req.data = sub->req.buf->data;
            sub->req.done = quorum_vote_done;
        } else {
            sub->req.done = reads ? quorum_fifo_done : quorum_all_done;
        }
    }
    for (unsigned i = 0; i < (reads && !vote ? 1 : n); i++) {
        block_submit(local[i], &qr->sub[i].req);
    }
}

/* --- Forwarders --- */

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

/* --- The driver --- */

static void quorum_close(BlockNode *node)
{
    Quorum *q = node->opaque;

    for (unsigned i = 0; i < q->n; i++) {
        if (block_node_is_primary(q->child[i].node)) {
            block_primary_attached(q->child[i].node, false);
        }
        block_node_unuse(q->child[i].node);
    }
    if (q->shared) {
        shared_log_close(q->shared);
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
        if (q->child[i].stale) {
            json_object_set_boolean_member(o, "stale", TRUE);
        }
        if (!strcmp(q->child[i].node->drv->name, "replication")) {
            q->child[i].node->drv->query(q->child[i].node, o);
        }
        json_array_add_object_element(a, o);
    }
    json_object_set_array_member(out, "children", a);
}

const BlockDriver block_quorum_driver = {
    .name = "quorum",
    .submit = quorum_submit,
    .forward = quorum_forward,
    .forward_blocked = quorum_forward_blocked,
    .forwarding = quorum_forwarding,
    .close = quorum_close,
    .query = quorum_query,
    .below = quorum_below,
};

bool block_node_is_quorum(BlockNode *node)
{
    return node->drv == &block_quorum_driver;
}
