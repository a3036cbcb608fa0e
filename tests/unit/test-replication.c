/*
 * Replication of disks against a model: random writes, commits, torn epochs, takeover.
 * Both sides live in this process and talk over the NBD server.
 * Sources: this file. Dependencies: util, block, libnbd, liburing, gio_unix.
 * COLO_SEED=n repeats a run, COLO_STEPS=n changes its length.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
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
    gint fatal, asked;
} Pair;

static void note(bool fatal, const char *message, void *opaque)
{
    Pair *p = opaque;

    g_atomic_int_inc(fatal ? &p->fatal : &p->asked);
    g_test_message("%s: %s", fatal ? "fatal" : "asked", message);
}

static gboolean wake(gpointer opaque)
{
    block_wait_done(opaque, 0);
    return G_SOURCE_REMOVE;
}

static void wait_arrived(BlockBarrier *b)
{
    BlockWait w;

    block_wait_init(&w);
    if (!block_secondary_arrived(b, 1, wake, &w)) {
        g_assert_cmpint(block_wait(&w, 10000), ==, 0);
    }
}

/* --- An image that takes its time, in no order: what a commit leaves to do is still
 * being done when the next thing happens. --- */

static uint8_t *slow_data;
static gint slow_error;  /* writes fail with it */
static gint slow_silent; /* writes are never answered while it is set */

static gboolean slow_finish(gpointer opaque)
{
    BlockRequest *req = opaque;

    if (req->op != BLOCK_OP_READ && g_atomic_int_get(&slow_silent)) {
        return G_SOURCE_CONTINUE;
    }
    if (req->op != BLOCK_OP_READ && g_atomic_int_get(&slow_error)) {
        req->done(req, -g_atomic_int_get(&slow_error));
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
    return G_SOURCE_REMOVE;
}

static void slow_submit(BlockNode *node, BlockRequest *req)
{
    GSource *s =
        g_timeout_source_new(req->op == BLOCK_OP_READ ? 0 : g_random_int_range(0, 8));

    g_source_set_callback(s, slow_finish, req, NULL);
    g_source_attach(s, io_thread_context(block_thread()));
    g_source_unref(s);
}

static void slow_close(BlockNode *node)
{
}

static const BlockDriver slow_driver = {
    .name = "slow", .submit = slow_submit, .close = slow_close};

static void slow_add(const char *name)
{
    g_free(slow_data);
    slow_data = g_malloc0(SIZE);
    block_lock();
    BlockNode *node = block_node_new(&slow_driver, name, NULL);
    node->size = SIZE;
    node->can_zero = true;
    block_unlock();
}

static Pair *pair_new(uint32_t seed, const char *format)
{
    Pair *p = g_new0(Pair, 1);
    g_autoptr(GError) err = NULL;
    bool slow = !strcmp(format, "slow");

    format = slow ? "raw" : format;

    block_test_begin();
    p->rand = g_rand_new_with_seed(seed);
    p->pvm = g_malloc0(SIZE);
    p->svm = g_malloc0(SIZE);
    p->committed = g_malloc0(SIZE);
    p->snapshot = g_malloc0(SIZE);
    p->buf = g_malloc0(SIZE);
    p->sock = test_path("nbd.sock");
    p->image = test_path("secondary.img");
    p->primary = test_path("primary.img");
    g_autofree char *active = test_path("active.img"), *hidden = test_path("hidden.img");
    const char *const all[] = {p->image, p->primary, active, hidden};
    for (int i = 0; i < 4; i++) {
        g_free(test_run("qemu-img create -f %s %s %u", format, all[i], SIZE));
    }
    /* As the documented command lines have it. */
    test_add("if=ide,id=colo-disk0,driver=quorum,read-pattern=fifo,vote-threshold=1,"
             "children.0.file.filename=%s,children.0.driver=%s",
             p->primary, format);
    if (slow) {
        slow_add("parent0");
    } else {
        test_add("if=none,id=parent0,file.filename=%s,driver=%s", p->image, format);
    }
    test_add("if=none,id=childs0,driver=replication,mode=secondary,file.driver=%s,"
             "top-id=colo-disk1,file.file.filename=%s,file.backing.driver=%s,"
             "file.backing.file.filename=%s,file.backing.backing=parent0",
             format, active, format, hidden);
    test_add("if=ide,id=colo-disk1,driver=quorum,read-pattern=fifo,vote-threshold=1,"
             "children.0=childs0");
    g_assert_nonnull(block_serve_child("colo-disk0", &err));
    g_autoptr(JsonObject) addr = test_opts("type=unix,data.path=%s", p->sock);
    block_nbd_server_start(addr, NULL, 0, &err);
    g_assert_no_error(err);
    block_nbd_server_add("parent0", NULL, true, &err);
    g_assert_no_error(err);
    test_add("driver=replication,mode=primary,file.driver=nbd,file.server.type=unix,"
             "file.server.path=%s,file.export=parent0,node-name=replication0",
             p->sock);
    block_change("colo-disk0", NULL, "replication0", &err);
    g_assert_no_error(err);
    return p;
}

static void pair_free(Pair *p)
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

typedef struct Batch {
    gint left;
    int err;
    BlockWait wait;
} Batch;

static void batch_done(BlockRequest *req, int ret)
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
static Batch *batch_start(Pair *p, const char *disk, uint8_t *model)
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
        if (g_rand_int_range(p->rand, 0, 5) == 0) {
            req->op = BLOCK_OP_ZEROES;
            memset(model + req->offset, 0, req->bytes);
        } else {
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

static void batch_wait(Batch *b)
{
    g_assert_cmpint(block_wait(&b->wait, 20000), ==, 0);
    g_free(b);
}

static void check_disk(Pair *p, const char *disk, const uint8_t *model)
{
    uint64_t off = g_rand_int_range(p->rand, 0, SIZE / 512) * 512, len = SIZE - off;

    if (g_rand_boolean(p->rand)) {
        len = MIN(len, 64 * 512);
    }
    g_assert_cmpint(test_io(disk, BLOCK_OP_READ, off, len, p->buf), ==, 0);
    g_assert_cmpmem(p->buf, len, model + off, len);
}

static void check_export(Pair *p)
{
    BlockBarrier now;

    g_assert_cmpuint(block_primary_barriers(&now, 1), ==, 1);
    wait_arrived(&now);
    struct nbd_handle *h = test_client(p->sock, "parent0");
    g_assert_cmpint(nbd_pread(h, p->buf, SIZE, 0, 0), ==, 0);
    g_assert_cmpmem(p->buf, SIZE, p->pvm, SIZE);
    nbd_close(h);
}

static void start(Pair *p)
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

static void take_barrier(Pair *p)
{
    g_assert_cmpuint(block_primary_barriers(&p->barrier, 1), ==, 1);
    memcpy(p->snapshot, p->pvm, SIZE);
    p->have_barrier = true;
}

static void commit(Pair *p)
{
    g_autoptr(GError) err = NULL;

    wait_arrived(&p->barrier);
    block_secondary_commit(&p->barrier, 1, &err);
    g_assert_no_error(err);
    memcpy(p->committed, p->snapshot, SIZE);
    memcpy(p->svm, p->snapshot, SIZE);
    p->have_barrier = false;
}

static void check_image(Pair *p, const char *path, const char *format,
                        const uint8_t *model)
{
    g_autofree char *out = test_path("out.raw");

    g_free(test_run("qemu-img convert -U -f %s -O raw %s %s", format, path, out));
    test_file_read(out, p->buf, SIZE);
    g_assert_cmpmem(p->buf, SIZE, model, SIZE);
}

static void run_model(const char *format, uint32_t seed, int steps)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(seed, format);
    bool raw = !strcmp(format, "raw"), slow = !strcmp(format, "slow");

    g_test_message("seed %u", seed);
    start(p);
    for (int i = 0; i < steps; i++) {
        switch (g_rand_int_range(p->rand, 0, 14)) {
        case 0:
        case 1:
        case 2:
        case 3:
            batch_wait(batch_start(p, "colo-disk0", p->pvm));
            break;
        case 4:
        case 5:
        case 6:
        case 7:
            batch_wait(batch_start(p, "colo-disk1", p->svm));
            break;
        case 8:
        case 9:
            check_disk(p, "colo-disk1", p->svm);
            break;
        case 10:
            /* Also over a barrier that was never committed: a torn epoch. */
            take_barrier(p);
            break;
        case 11:
            if (p->have_barrier) {
                commit(p);
            }
            break;
        case 12:
            check_disk(p, "colo-disk0", p->pvm);
            if (i % 7 == 0) {
                check_export(p);
            }
            break;
        case 13:
            if (slow) {
                break; /* not to settle is the point */
            }
            g_assert_true(block_secondary_settle(&err));
            if (raw) {
                test_file_read(p->image, p->buf, SIZE);
                g_assert_cmpmem(p->buf, SIZE, p->committed, SIZE);
            }
            break;
        }
    }
    batch_wait(batch_start(p, "colo-disk1", p->svm));
    /* A commit right before, so that its log is still being applied. */
    if (slow || (g_rand_boolean(p->rand) && p->have_barrier)) {
        take_barrier(p);
        commit(p);
        batch_wait(batch_start(p, "colo-disk1", p->svm));
    }
    Batch *during[4] = {0};
    for (int i = 0; i < 2; i++) {
        during[i] = batch_start(p, "colo-disk1", p->svm);
    }
    g_assert_true(block_secondary_takeover(&err));
    g_assert_no_error(err);
    for (int i = 0; i < 2; i++) {
        batch_wait(during[i]);
    }
    check_disk(p, "colo-disk1", p->svm);
    g_assert_cmpint(test_io("colo-disk1", BLOCK_OP_READ, 0, SIZE, p->buf), ==, 0);
    g_assert_cmpmem(p->buf, SIZE, p->svm, SIZE);
    batch_wait(batch_start(p, "colo-disk1", p->svm));
    g_assert_cmpint(test_io("colo-disk1", BLOCK_OP_FLUSH, 0, 0, NULL), ==, 0);
    if (slow) {
        g_assert_cmpmem(slow_data, SIZE, p->svm, SIZE);
    } else if (raw) {
        test_file_read(p->image, p->buf, SIZE);
        g_assert_cmpmem(p->buf, SIZE, p->svm, SIZE);
    }
    block_primary_stop();
    check_disk(p, "colo-disk0", p->pvm);

    /* The image is closed: what stock tools see is the SVM's disk, and no marker is left.
     */
    g_autofree char *image = g_strdup(p->image),
                    *marker = g_strconcat(image, ".colo", NULL);
    g_assert_cmpint(g_access(marker, F_OK), !=, 0);
    block_nbd_server_stop(NULL);
    block_shutdown();
    if (!slow) {
        check_image(p, image, format, p->svm);
    }
    pair_free(p);
}

static uint32_t seed(void)
{
    const char *s = g_getenv("COLO_SEED");

    return s ? strtoul(s, NULL, 10) : g_random_int();
}

static int steps(int dflt)
{
    const char *s = g_getenv("COLO_STEPS");

    return s ? atoi(s) : dflt;
}

static void test_model_raw(void)
{
    for (int i = 0; i < 5; i++) {
        run_model("raw", seed() + i, steps(600));
    }
}

static void test_model_slow(void)
{
    for (int i = 0; i < 10; i++) {
        run_model("slow", seed() + i, steps(200));
    }
}

static void test_model_qcow2(void)
{
    run_model("qcow2", seed(), steps(400));
}

static gpointer takeover_thread(gpointer err)
{
    return GINT_TO_POINTER(block_secondary_takeover(err));
}

/* The takeover with much to merge, while the SVM writes on. */
static void test_takeover_busy(void)
{
    for (int round = 0; round < 4; round++) {
        g_autoptr(GError) err = NULL;
        Pair *p = pair_new(seed() + round, "raw");

        start(p);
        for (int i = 0; i < 40; i++) {
            batch_wait(batch_start(p, "colo-disk0", p->pvm));
        }
        take_barrier(p);
        commit(p);
        for (int i = 0; i < 60; i++) {
            batch_wait(batch_start(p, "colo-disk1", p->svm));
        }
        for (int i = 0; i < 3; i++) {
            batch_wait(batch_start(p, "colo-disk0", p->pvm));
        }
        GThread *t = g_thread_new("takeover", takeover_thread, &err);
        for (int i = 0; i < 60; i++) {
            batch_wait(batch_start(p, "colo-disk1", p->svm));
            check_disk(p, "colo-disk1", p->svm);
        }
        g_assert_true(GPOINTER_TO_INT(g_thread_join(t)));
        check_disk(p, "colo-disk1", p->svm);
        test_file_read(p->image, p->buf, SIZE);
        g_assert_cmpmem(p->buf, SIZE, p->svm, SIZE);
        /* The primary's connection is gone; its guest goes on. */
        batch_wait(batch_start(p, "colo-disk0", p->pvm));
        check_disk(p, "colo-disk0", p->pvm);
        g_assert_cmpint(g_atomic_int_get(&p->fatal), >=, 1);
        pair_free(p);
    }
}

static void test_secondary_lost(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(1, "raw");

    start(p);
    batch_wait(batch_start(p, "colo-disk0", p->pvm));
    g_assert_true(block_nbd_server_stop(NULL));
    for (int i = 0; i < 100 && g_atomic_int_get(&p->fatal) < 2; i++) {
        g_usleep(10000);
    }
    /* Both sides noticed. */
    g_assert_cmpint(g_atomic_int_get(&p->fatal), ==, 2);
    batch_wait(batch_start(p, "colo-disk0", p->pvm));
    check_disk(p, "colo-disk0", p->pvm);
    g_assert_false(block_primary_start(note, p, &err));
    g_assert_nonnull(strstr(err->message, "replication0"));
    /* Documented: detach by number, delete. */
    g_clear_error(&err);
    block_change("colo-disk0", "children.1", NULL, &err);
    g_assert_no_error(err);
    block_node_del("replication0", &err);
    g_assert_no_error(err);
    /* nbd-server-stop first, then the takeover, as documented for the secondary. */
    block_secondary_takeover(&err);
    g_assert_no_error(err);
    test_file_read(p->image, p->buf, SIZE);
    g_assert_cmpmem(p->buf, SIZE, p->committed, SIZE);
    pair_free(p);
}

/* The image cannot be written: the takeover says so and nothing is served from the disk.
 * When it can be written again, a second takeover ends well, and nothing was lost. */
static void test_takeover_fails_then_succeeds(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(seed(), "slow");

    start(p);
    batch_wait(batch_start(p, "colo-disk1", p->svm));
    for (int i = 0; i < 10; i++) {
        batch_wait(batch_start(p, "colo-disk0", p->pvm));
    }
    take_barrier(p);
    g_atomic_int_set(&slow_error, EIO);
    commit(p);
    g_assert_false(block_secondary_takeover(&err));
    g_assert_nonnull(strstr(err->message, "parent0"));
    g_clear_error(&err);
    g_assert_cmpint(test_io("colo-disk1", BLOCK_OP_READ, 0, 512, p->buf), ==, -EIO);
    g_assert_false(block_secondary_takeover(&err));
    g_clear_error(&err);
    g_atomic_int_set(&slow_error, 0);
    g_assert_true(block_secondary_takeover(&err));
    g_assert_no_error(err);
    g_assert_cmpint(test_io("colo-disk1", BLOCK_OP_READ, 0, SIZE, p->buf), ==, 0);
    g_assert_cmpmem(p->buf, SIZE, p->svm, SIZE);
    g_assert_cmpmem(slow_data, SIZE, p->svm, SIZE);
    pair_free(p);
}

static gpointer cancel_thread(gpointer opaque)
{
    g_usleep(200000);
    block_secondary_cancel();
    return NULL;
}

/* A disk that hangs keeps the takeover from ending, not the program. */
static void test_takeover_cancelled(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(seed(), "slow");

    start(p);
    g_atomic_int_set(&slow_silent, 1);
    batch_wait(batch_start(p, "colo-disk0", p->pvm));
    take_barrier(p);
    commit(p);
    GThread *t = g_thread_new("cancel", cancel_thread, NULL);
    g_assert_false(block_secondary_takeover(&err));
    g_assert_nonnull(strstr(err->message, "ends"));
    g_thread_join(t);
    g_atomic_int_set(&slow_silent, 0);
    pair_free(p);
}

/* Three sizes that do not agree are told, all three. */
static void test_sizes(void)
{
    for (int odd = 0; odd < 3; odd++) {
        block_test_begin();
        g_autofree char *image = test_image("image", odd == 0 ? SIZE * 2 : SIZE);
        g_autofree char *active = test_image("active", odd == 1 ? SIZE * 2 : SIZE);
        g_autofree char *hidden = test_image("hidden", odd == 2 ? SIZE * 2 : SIZE);
        g_autofree char *words = g_strdup_printf(
            "the active disk has %u bytes, the hidden disk %u and the image 'parent0' %u",
            odd == 1 ? SIZE * 2 : SIZE, odd == 2 ? SIZE * 2 : SIZE,
            odd == 0 ? SIZE * 2 : SIZE);

        test_add("if=none,id=parent0,file.filename=%s,driver=raw", image);
        test_add_fails(words,
                       "if=none,id=childs0,driver=replication,mode=secondary,"
                       "file.driver=raw,top-id=x,file.file.filename=%s,"
                       "file.backing.driver=raw,file.backing.file.filename=%s,"
                       "file.backing.backing=parent0",
                       active, hidden);
        /* Nothing is left in use. */
        g_assert_true(block_node_del("parent0", NULL));
        block_test_end();
    }
}

static void test_checks(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(2, "raw");
    BlockBarrier b;

    start(p);
    batch_wait(batch_start(p, "colo-disk0", p->pvm));
    take_barrier(p);
    b = p->barrier;
    b.sequence += 5;
    g_assert_false(block_secondary_check(&b, 1, &err));
    g_clear_error(&err);
    g_assert_false(block_secondary_commit(&b, 1, &err));
    g_clear_error(&err);
    strcpy(b.disk, "nothing");
    g_assert_false(block_secondary_commit(&b, 1, &err));
    g_clear_error(&err);
    commit(p);
    g_assert_cmpuint(p->barrier.sequence, >, 0);
    b = p->barrier;
    b.sequence--;
    g_assert_false(block_secondary_commit(&b, 1, &err));
    g_clear_error(&err);
    /* A second writer is refused while replication runs. */
    struct nbd_handle *h = test_client(p->sock, "parent0");
    g_assert_cmpint(nbd_pwrite(h, p->buf, 512, 0, 0), ==, -1);
    g_assert_cmpint(nbd_get_errno(), ==, EPERM);
    nbd_close(h);
    take_barrier(p);
    commit(p);
    check_disk(p, "colo-disk1", p->svm);
    /* The image is marked while it may be between two checkpoints; a clean end unmarks.
     */
    g_autofree char *marker = g_strconcat(p->image, ".colo", NULL);
    g_assert_cmpint(g_access(marker, F_OK), ==, 0);
    g_assert_false(block_node_del("childs0", &err));
    g_clear_error(&err);
    g_assert_false(block_secondary_start(note, p, &err));
    block_shutdown();
    g_assert_cmpint(g_access(marker, F_OK), !=, 0);
    test_file_read(p->image, p->buf, SIZE);
    g_assert_cmpmem(p->buf, SIZE, p->committed, SIZE);
    pair_free(p);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/block/replication/checks", test_checks);
    g_test_add_func("/block/replication/model-raw", test_model_raw);
    g_test_add_func("/block/replication/model-slow", test_model_slow);
    g_test_add_func("/block/replication/model-qcow2", test_model_qcow2);
    g_test_add_func("/block/replication/takeover-busy", test_takeover_busy);
    g_test_add_func("/block/replication/secondary-lost", test_secondary_lost);
    g_test_add_func("/block/replication/takeover-fails-then-succeeds",
                    test_takeover_fails_then_succeeds);
    g_test_add_func("/block/replication/takeover-cancelled", test_takeover_cancelled);
    g_test_add_func("/block/replication/sizes", test_sizes);
    return g_test_run();
}
