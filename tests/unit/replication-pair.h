/*
 * A primary's and a secondary's disk in one process, and a model of both.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef COLO_TESTS_REPLICATION_PAIR_H
#define COLO_TESTS_REPLICATION_PAIR_H

#include "../../block/replication/secondary-int.h"
#include "block-test.h"

#define SIZE (4u * 1024 * 1024)

typedef struct Pair {
    GRand *rand;
    uint8_t *pvm;       /* what the primary's disk holds */
    uint8_t *svm;       /* what the SVM must read */
    uint8_t *committed; /* last checkpoint */
    uint8_t *snapshot;  /* at a barrier not yet committed */
    uint8_t *buf;
    char *image, *primary, *sock;
    BlockBarrier barrier;
    bool have_barrier;
    bool no_trim; /* after a takeover what a trimmed sector reads as is the format's choice */
    gint fatal, asked;
} Pair;

static inline void note(bool fatal, const char *message, void *opaque)
{
    Pair *p = opaque;

    g_atomic_int_inc(fatal ? &p->fatal : &p->asked);
    g_test_message("%s: %s", fatal ? "fatal" : "asked", message);
}

static inline gboolean wake(gpointer opaque)
{
    block_wait_done(opaque, 0);
    return G_SOURCE_REMOVE;
}

static inline void wait_arrived(BlockBarrier *b)
{
    BlockWait w;

    block_wait_init(&w);
    if (!block_secondary_arrived(b, 1, wake, &w)) {
        g_assert_cmpint(block_wait(&w, 25000), ==, 0);
    }
}

/* Figure @key of the secondary's disk. */
static inline int64_t figure(const char *key)
{
    g_autoptr(JsonNode) n = block_replication_query();
    JsonArray *a = json_node_get_array(n);

    for (guint i = 0; i < json_array_get_length(a); i++) {
        JsonObject *o = json_array_get_object_element(a, i);

        if (!strcmp(options_get_str(o, "mode", ""), "secondary")) {
            return json_object_get_int_member(o, key);
        }
    }
    g_assert_not_reached();
}

static inline void wait_figure(const char *key, int64_t least)
{
    for (int i = 0; figure(key) < least; i++) {
        g_assert_cmpint(i, <, 10000);
        g_usleep(1000);
    }
}

/* --- An image that takes its time, in no order: what a commit leaves to do is still
 * being done when the next thing happens. --- */

static uint8_t *slow_data;
static gint slow_error;  /* writes fail with it */
static gint slow_silent; /* writes are never answered while it is set */

static gint slow_busy;   /* requests under way: their owners must outlive them */

static inline gboolean slow_finish(gpointer opaque)
{
    BlockRequest *req = opaque;

    if (req->op != BLOCK_OP_READ && g_atomic_int_get(&slow_silent)) {
        return G_SOURCE_CONTINUE;
    }
    if (req->op != BLOCK_OP_READ && g_atomic_int_get(&slow_error)) {
        req->done(req, -g_atomic_int_get(&slow_error));
        g_atomic_int_add(&slow_busy, -1);
        return G_SOURCE_REMOVE;
    }

    switch (req->op) {
    case BLOCK_OP_READ:
        memcpy(req->data, slow_data + req->offset, req->bytes);
        break;
    case BLOCK_OP_WRITE:
        memcpy(slow_data + req->offset, req->data, req->bytes);
        break;
    case BLOCK_OP_ZEROES:
        memset(slow_data + req->offset, 0, req->bytes);
        break;
    default:
        break;
    }
    req->done(req, 0);
    g_atomic_int_add(&slow_busy, -1);
    return G_SOURCE_REMOVE;
}

static inline void slow_submit(BlockNode *node, BlockRequest *req)
{
    GSource *s =
        g_timeout_source_new(req->op == BLOCK_OP_READ ? 0 : g_random_int_range(0, 8));

    g_atomic_int_inc(&slow_busy);
    g_source_set_callback(s, slow_finish, req, NULL);
    g_source_attach(s, io_thread_context(block_thread()));
    g_source_unref(s);
}

static inline void slow_close(BlockNode *node)
{
}

static const BlockDriver slow_driver = {
    .name = "slow", .submit = slow_submit, .close = slow_close};

static inline void slow_add(const char *name)
{
    g_free(slow_data);
    slow_data = g_malloc0(SIZE);
    block_lock();
    BlockNode *node = block_node_new(&slow_driver, name, NULL);
    node->size = SIZE;
    node->can_zero = true;
    block_unlock();
}

/* Instead of a random one. */
static const char *pair_log_memory;

static inline Pair *pair_new(uint32_t seed, const char *format)
{
    Pair *p = g_new0(Pair, 1);
    g_autoptr(GError) err = NULL;
    bool slow = !strcmp(format, "slow"), shared = !strcmp(format, "shared");

    format = slow || shared ? "raw" : format;

    block_test_begin();
    secondary_merge_at_once = 8 << 20;
    p->rand = g_rand_new_with_seed(seed);
    p->pvm = g_malloc0(SIZE);
    p->svm = g_malloc0(SIZE);
    p->committed = g_malloc0(SIZE);
    p->snapshot = g_malloc0(SIZE);
    p->buf = g_malloc0(SIZE);
    p->sock = test_path("nbd.sock");
    p->image = test_path("secondary.img");
    p->primary = test_path(shared ? "secondary.img" : "primary.img");
    g_autofree char *active = test_path("active.img"), *hidden = test_path("hidden.img");
    const char *const all[] = {p->image, p->primary, active, hidden};
    for (int i = 0; i < 4; i++) {
        g_free(test_run("qemu-img create -f %s %s %u", format, all[i], SIZE));
    }
    const char *discard = g_rand_boolean(p->rand) ? ",discard=unmap" : "";
    /* As the documented command lines have it. */
    test_add("if=ide,id=colo-disk0,driver=quorum,read-pattern=fifo,vote-threshold=1,"
             "children.0.file.filename=%s,children.0.driver=%s%s%s",
             p->primary, format, discard, shared ? ",children.0.cache.direct=on" : "");
    if (slow) {
        slow_add("parent0");
    } else {
        test_add("if=none,id=parent0,file.filename=%s,driver=%s%s%s", p->image, format,
                 discard, shared ? ",shared-disk=on" : "");
    }
    /* A log that is in memory, all on the hidden disk, or partly. */
    static const char *const memory[] = {"128M", "0", "64k", "1M"};
    const char *log_memory =
        pair_log_memory ? pair_log_memory : memory[g_rand_int_range(p->rand, 0, 4)];
    test_add("if=none,id=childs0,driver=replication,mode=secondary,file.driver=%s,"
             "top-id=colo-disk1,file.file.filename=%s,file.backing.driver=%s,"
             "file.backing.file.filename=%s,file.backing.backing=parent0,log-memory=%s%s",
             format, active, format, hidden, log_memory,
             shared ? ",shared-disk=on" : "");
    test_add("if=ide,id=colo-disk1,driver=quorum,read-pattern=fifo,vote-threshold=1,"
             "children.0=childs0");
    g_assert_nonnull(block_serve_child("colo-disk0", &err));
    g_autoptr(JsonObject) addr = test_opts("type=unix,data.path=%s", p->sock);
    block_nbd_server_start(addr, NULL, 0, &err);
    g_assert_no_error(err);
    block_nbd_server_add("parent0", NULL, true, &err);
    g_assert_no_error(err);
    test_add("driver=replication,mode=primary,file.driver=nbd,file.server.type=unix,"
             "file.server.path=%s,file.export=parent0,node-name=replication0%s",
             p->sock, shared ? ",shared-disk=on" : "");
    block_change("colo-disk0", NULL, "replication0", &err);
    g_assert_no_error(err);
    return p;
}

/* After block_shutdown(), which has left nobody to note anything. */
static inline void pair_free_closed(Pair *p)
{
    block_test_end();
    g_rand_free(p->rand);
    g_free(p->pvm);
    g_free(p->svm);
    g_free(p->committed);
    g_free(p->snapshot);
    g_free(p->buf);
    g_free(p->image);
    g_free(p->primary);
    g_free(p->sock);
    g_free(p);
}

static inline void pair_free(Pair *p)
{
    block_primary_stop(); /* nothing is noted in what goes now */
    g_atomic_int_set(&slow_silent, 0);
    for (int i = 0; i < 5000 && g_atomic_int_get(&slow_busy) > 0; i++) {
        g_usleep(1000);
    }
    pair_free_closed(p);
}

typedef struct Batch {
    gint left;
    int err;
    BlockWait wait;
} Batch;

static inline void batch_done(BlockRequest *req, int ret)
{
    Batch *b = req->opaque;

    if (ret < 0) {
        b->err = ret;
    }
    block_buf_unref(req->buf);
    g_free(req);
    if (g_atomic_int_dec_and_test(&b->left)) {
        block_wait_done(&b->wait, b->err);
    }
}

/* Up to 8 requests in flight at once, which may overlap; the model takes them in order.
 */
static inline Batch *batch_start(Pair *p, const char *disk, uint8_t *model)
{
    Batch *b = g_new0(Batch, 1);
    int n = g_rand_int_range(p->rand, 1, 9);
    BlockNode *node = test_node(disk);

    block_wait_init(&b->wait);
    b->left = n;
    block_lock();
    for (int i = 0; i < n; i++) {
        BlockRequest *req = g_new0(BlockRequest, 1);
        uint64_t sector = g_rand_int_range(p->rand, 0, SIZE / 512);

        if (g_rand_boolean(p->rand)) {
            sector %= 64; /* a hot place */
        }
        req->offset = sector * 512;
        unsigned sectors = g_rand_int_range(p->rand, 1, 40);
        req->bytes = MIN(sectors * 512, SIZE - req->offset);
        req->done = batch_done;
        req->opaque = b;
        int kind = g_rand_int_range(p->rand, 0, 12);

        if (kind < 2) {
            req->op = BLOCK_OP_ZEROES;
            req->flags = kind ? BLOCK_REQ_MAY_UNMAP : 0;
            memset(model + req->offset, 0, req->bytes);
        } else if (kind == 2 && node->discard && !p->no_trim) {
            /* Replicated it is one with zeroes: both sides must read the same. */
            req->op = BLOCK_OP_TRIM;
            memset(model + req->offset, 0, req->bytes);
        } else if (kind == 3) {
            req->op = BLOCK_OP_FLUSH;
            req->offset = req->bytes = 0;
        } else {
            req->flags = kind == 4 ? BLOCK_REQ_FUA : 0;
            req->op = BLOCK_OP_WRITE;
            req->buf = block_buf_new(req->bytes);
            req->data = req->buf->data;
            test_fill(p->rand, req->data, req->bytes);
            memcpy(model + req->offset, req->data, req->bytes);
        }
        block_front_submit(node, NULL, req);
    }
    g_main_context_wakeup(io_thread_context(block_thread()));
    block_unlock();
    return b;
}

static inline void batch_wait(Batch *b)
{
    g_assert_cmpint(block_wait(&b->wait, 20000), ==, 0);
    g_free(b);
}

static inline void check_disk(Pair *p, const char *disk, const uint8_t *model)
{
    uint64_t off = g_rand_int_range(p->rand, 0, SIZE / 512) * 512, len = SIZE - off;

    if (g_rand_boolean(p->rand)) {
        len = MIN(len, 64 * 512);
    }
    g_assert_cmpint(test_io(disk, BLOCK_OP_READ, off, len, p->buf), ==, 0);
    g_assert_cmpmem(p->buf, len, model + off, len);
}

static inline void check_export(Pair *p)
{
    BlockBarrier now;

    g_assert_cmpuint(block_primary_barriers(&now, 1), ==, 1);
    wait_figure("arrived", now.sequence);
    struct nbd_handle *h = test_client(p->sock, "parent0");
    g_assert_cmpint(nbd_pread(h, p->buf, SIZE, 0, 0), ==, 0);
    g_assert_cmpmem(p->buf, SIZE, p->pvm, SIZE);
    nbd_close(h);
}

static inline void start(Pair *p)
{
    g_autoptr(GError) err = NULL;
    BlockBarrier b;

    /* Writes before the start go through. */
    batch_wait(batch_start(p, "colo-disk0", p->pvm));
    g_assert_cmpuint(block_primary_barriers(&b, 1), ==, 1);
    g_assert_cmpstr(b.disk, ==, "parent0");
    block_primary_start(note, p, &err);
    g_assert_no_error(err);
    block_secondary_start(note, p, &err);
    g_assert_no_error(err);
    wait_arrived(&b);
    memcpy(p->committed, p->pvm, SIZE);
    memcpy(p->svm, p->pvm, SIZE);
    check_disk(p, "colo-disk1", p->svm);
}

static inline void take_barrier(Pair *p)
{
    g_assert_cmpuint(block_primary_barriers(&p->barrier, 1), ==, 1);
    memcpy(p->snapshot, p->pvm, SIZE);
    p->have_barrier = true;
}

static inline void commit(Pair *p)
{
    g_autoptr(GError) err = NULL;

    wait_arrived(&p->barrier);
    block_secondary_commit(&p->barrier, 1, &err);
    g_assert_no_error(err);
    memcpy(p->committed, p->snapshot, SIZE);
    memcpy(p->svm, p->snapshot, SIZE);
    p->have_barrier = false;
}

static inline void check_image(Pair *p, const char *path, const char *format,
                        const uint8_t *model)
{
    g_autofree char *out = test_path("out.raw");

    g_free(test_run("qemu-img convert -U -f %s -O raw %s %s", format, path, out));
    test_file_read(out, p->buf, SIZE);
    g_assert_cmpmem(p->buf, SIZE, model, SIZE);
}

static inline uint32_t test_seed(void)
{
    const char *s = g_getenv("COLO_SEED");

    return s ? strtoul(s, NULL, 10) : g_random_int();
}

#endif
