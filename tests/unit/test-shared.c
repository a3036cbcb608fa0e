/*
 * Disks that both hosts share, against a model: both sides in this process, one image.
 * Sources: this file. Dependencies: util, block, libnbd, liburing, gio_unix.
 * COLO_SEED=n repeats a run, COLO_STEPS=n changes its length.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "replication-pair.h"

#include "../../block/replication/shared.h"

static int steps(int dflt)
{
    const char *s = g_getenv("COLO_STEPS");

    return s ? atoi(s) : dflt;
}

static uint64_t applied(void)
{
    BlockBarrier b;

    return block_primary_applied(&b, 1) ? b.sequence : 0;
}

/* The secondary hears of what the image holds. */
static void tell_applied(void)
{
    BlockBarrier b;
    unsigned n = block_primary_applied(&b, 1);

    block_secondary_applied(&b, n);
}

static void wait_applied(uint64_t sequence)
{
    for (int i = 0; applied() < sequence; i++) {
        g_assert_cmpint(i, <, 20000);
        g_usleep(1000);
    }
}

static void image_is(Pair *p, const uint8_t *model)
{
    test_file_read(p->image, p->buf, SIZE);
    g_assert_cmpmem(p->buf, SIZE, model, SIZE);
}

/* Up to the point from which a takeover is safe: what the guest wrote so far is in the
 * image, from here on it is not. */
static void start_logging(Pair *p)
{
    start(p);
    batch_wait(batch_start(p, "colo-disk0", p->pvm));
    image_is(p, p->pvm);
    take_barrier(p);
    block_primary_log();
    commit(p);
    block_primary_loaded(&p->barrier, 1);
    check_disk(p, "colo-disk1", p->svm);
}

static bool never(void)
{
    return false;
}

/* The guests write, checkpoints come and tear, the primary applies. */
static void live(Pair *p, int n)
{
    g_autofree uint8_t *last = g_memdup2(p->committed, SIZE);
    uint64_t loaded = p->barrier.sequence;

    for (int i = 0; i < n; i++) {
        switch (g_rand_int_range(p->rand, 0, 16)) {
        case 0:
        case 1:
        case 2:
        case 3:
            batch_wait(batch_start(p, "colo-disk0", p->pvm));
            break;
        case 4:
            g_assert_cmpint(test_io("colo-disk0", BLOCK_OP_FLUSH, 0, 0, NULL), ==, 0);
            break;
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
            take_barrier(p);
            break;
        case 11:
        case 12:
            if (p->have_barrier) {
                commit(p);
                block_primary_loaded(&p->barrier, 1);
                memcpy(last, p->committed, SIZE);
                loaded = p->barrier.sequence;
            }
            break;
        case 13:
            tell_applied();
            break;
        case 14:
            check_disk(p, "colo-disk0", p->pvm);
            break;
        case 15:
            /* Nothing newer ever reaches the image. */
            wait_applied(loaded);
            image_is(p, last);
            break;
        }
    }
    g_assert_cmpint(g_atomic_int_get(&p->fatal), ==, 0);
}

static gpointer fence_soon(gpointer opaque)
{
    g_usleep(GPOINTER_TO_INT(opaque));
    block_primary_fence();
    return NULL;
}

static void take_over(Pair *p)
{
    g_autoptr(GError) err = NULL;
    Batch *during[2];

    /* A commit right before, so that it is being applied by both. */
    if (g_rand_boolean(p->rand)) {
        take_barrier(p);
        commit(p);
        block_primary_loaded(&p->barrier, 1);
        batch_wait(batch_start(p, "colo-disk1", p->svm));
    }
    batch_wait(batch_start(p, "colo-disk0", p->pvm)); /* lost with the PVM */
    block_primary_lost();
    batch_wait(batch_start(p, "colo-disk0", p->pvm));
    GThread *t = g_thread_new("fence", fence_soon,
                              GINT_TO_POINTER(g_rand_int_range(p->rand, 0, 20000)));
    p->no_trim = true;
    for (int i = 0; i < 2; i++) {
        during[i] = batch_start(p, "colo-disk1", p->svm);
    }
    block_secondary_takeover(&err);
    g_assert_no_error(err);
    g_thread_join(t);
    for (int i = 0; i < 2; i++) {
        batch_wait(during[i]);
    }
    batch_wait(batch_start(p, "colo-disk0", p->pvm)); /* goes nowhere */
    batch_wait(batch_start(p, "colo-disk1", p->svm));
    check_disk(p, "colo-disk1", p->svm);
    g_assert_cmpint(test_io("colo-disk1", BLOCK_OP_FLUSH, 0, 0, NULL), ==, 0);
    image_is(p, p->svm);
    g_autofree char *marker = g_strconcat(p->image, ".colo", NULL);
    g_assert_cmpint(g_access(marker, F_OK), !=, 0);
}

static void go_alone(Pair *p)
{
    g_autoptr(GError) err = NULL;
    Batch *b;

    if (g_rand_boolean(p->rand)) {
        block_primary_lost();
        batch_wait(batch_start(p, "colo-disk0", p->pvm));
        /* Documented: the forwarder is removed before the arbiter's word. */
        block_change("colo-disk0", "children.1", NULL, &err);
        g_assert_no_error(err);
        block_node_del("replication0", &err);
        g_assert_no_error(err);
        check_disk(p, "colo-disk0", p->pvm);
        p->no_trim = true;
        batch_wait(batch_start(p, "colo-disk0", p->pvm));
    }
    p->no_trim = true;
    b = batch_start(p, "colo-disk0", p->pvm);
    block_primary_stop();
    g_assert_true(block_primary_settle(never, &err));
    block_primary_settled();
    batch_wait(b);
    for (int i = 0; i < 5; i++) {
        batch_wait(batch_start(p, "colo-disk0", p->pvm));
        check_disk(p, "colo-disk0", p->pvm);
    }
    g_assert_cmpint(test_io("colo-disk0", BLOCK_OP_FLUSH, 0, 0, NULL), ==, 0);
    image_is(p, p->pvm);
}

static void run(bool alone, uint32_t seed)
{
    Pair *p = pair_new(seed, "shared");

    g_test_message("seed %u", seed);
    start_logging(p);
    live(p, steps(300));
    if (alone) {
        go_alone(p);
    } else {
        take_over(p);
    }
    pair_free(p);
}

static void test_model_takeover(void)
{
    for (int i = 0; i < 8; i++) {
        run(false, test_seed() + i);
    }
}

static void test_model_alone(void)
{
    for (int i = 0; i < 8; i++) {
        run(true, test_seed() + i);
    }
}

/* The old primary holds on to the image: no takeover, and a second try works. */
static void test_locked(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(1, "shared");

    start_logging(p);
    live(p, 40);
    g_autofree char *name = block_secondary_unfenced();
    g_assert_cmpstr(name, ==, "parent0");
    /* The program's end does not wait for a lock, either. */
    block_secondary_cancel();
    g_assert_false(block_secondary_takeover(&err));
    g_assert_nonnull(strstr(err->message, "old primary"));
    check_disk(p, "colo-disk1", p->svm);
    batch_wait(batch_start(p, "colo-disk1", p->svm));
    check_disk(p, "colo-disk1", p->svm);
    pair_free(p);
}

/* A write of one size for ever, without a checkpoint: a wish, back-pressure, the end. */
static void test_bounds(void)
{
    g_autoptr(GError) err = NULL;
    uint64_t written = 0;
    int r = 0;

    pair_log_memory = "256M";
    Pair *p = pair_new(1, "shared");
    pair_log_memory = NULL;
    shared_log_hard = 68ull << 20; /* just over the wish */

    start_logging(p);
    g_assert_cmpint(g_atomic_int_get(&p->asked), ==, 0);
    int64_t begin = g_get_monotonic_time();
    while (written < 400ull << 20 && !g_atomic_int_get(&p->fatal)) {
        r = test_io("colo-disk0", BLOCK_OP_WRITE, 0, SIZE, p->pvm);
        g_assert_cmpint(r, ==, 0);
        written += SIZE;
    }
    g_test_message("%" G_GUINT64_FORMAT " MiB, %" G_GINT64_FORMAT " ms", written >> 20,
                   (g_get_monotonic_time() - begin) / 1000);
    g_assert_cmpint(g_atomic_int_get(&p->asked), >=, 1);
    g_assert_cmpint(g_atomic_int_get(&p->fatal), >=, 1);
    g_assert_cmpuint(written, >=, 68ull << 20);
    /* Nothing of it is in the image; it is when this side goes on alone. */
    test_fill(p->rand, p->pvm, SIZE);
    g_assert_cmpint(test_io("colo-disk0", BLOCK_OP_WRITE, 0, SIZE, p->pvm), ==, 0);
    image_is(p, p->committed);
    block_primary_stop();
    g_assert_true(block_primary_settle(never, &err));
    block_primary_settled();
    image_is(p, p->pvm);
    shared_log_hard = 128ull << 20;
    pair_free(p);
}

/* Flushes far faster than the image could be flushed are slowed, not stopped. */
static void test_flush_storm(void)
{
    Pair *p = pair_new(1, "shared");
    uint8_t buf[512] = {1};

    start_logging(p);
    int64_t begin = g_get_monotonic_time();
    for (int i = 0; i < 600; i++) {
        g_assert_cmpint(test_io("colo-disk0", BLOCK_OP_WRITE, 512 * (i % 100), 512, buf), ==,
                        0);
        g_assert_cmpint(test_io("colo-disk0", BLOCK_OP_FLUSH, 0, 0, NULL), ==, 0);
    }
    int64_t ms = (g_get_monotonic_time() - begin) / 1000;
    g_test_message("600 flushes in %" G_GINT64_FORMAT " ms", ms);
    g_assert_cmpint(ms, >=, 1000); /* 344 of them waited 4 ms or more */
    g_assert_cmpint(g_atomic_int_get(&p->asked), >=, 1);
    g_assert_cmpint(g_atomic_int_get(&p->fatal), ==, 0);
    pair_free(p);
}

static void test_refused(void)
{
    block_test_begin();
    g_autofree char *path = test_image("i.raw", SIZE);
    g_autofree char *a = test_image("a.raw", SIZE), *h = test_image("h.raw", SIZE);
    g_autoptr(GError) err = NULL;
    g_autofree char *sock = test_path("n.sock");

    /* A secondary's parts must agree. */
    test_add("id=own,driver=raw,file.filename=%s", path);
    test_add("id=lent,driver=raw,file.filename=%s,shared-disk=on", path);
    test_add_fails("opened with shared-disk=off",
                   "id=s0,driver=replication,mode=secondary,top-id=x,shared-disk=on,"
                   "file.driver=raw,file.file.filename=%s,file.backing.driver=raw,"
                   "file.backing.file.filename=%s,file.backing.backing=own",
                   a, h);
    test_add_fails("opened with shared-disk=on",
                   "id=s0,driver=replication,mode=secondary,top-id=x,"
                   "file.driver=raw,file.file.filename=%s,file.backing.driver=raw,"
                   "file.backing.file.filename=%s,file.backing.backing=lent",
                   a, h);
    test_add_fails("'required' or 'none'",
                   "id=s0,driver=replication,mode=secondary,top-id=x,shared-fence=maybe,"
                   "file.driver=raw,file.file.filename=%s,file.backing.driver=raw,"
                   "file.backing.file.filename=%s,file.backing.backing=lent",
                   a, h);
    test_add("id=s0,driver=replication,mode=secondary,top-id=x,shared-disk=on,"
             "shared-fence=none,file.driver=raw,file.file.filename=%s,"
             "file.backing.driver=raw,file.backing.file.filename=%s,"
             "file.backing.backing=lent",
             a, h);
    g_assert_null(block_secondary_unfenced());
    /* A primary that would cache the image. */
    g_autoptr(JsonObject) addr = test_opts("type=unix,data.path=%s", sock);
    block_nbd_server_start(addr, NULL, 0, &err);
    g_assert_no_error(err);
    block_nbd_server_add("lent", NULL, true, &err);
    g_assert_no_error(err);
    test_add("id=q0,driver=quorum,vote-threshold=1,children.0=own");
    test_add("driver=replication,mode=primary,file.driver=nbd,file.server.type=unix,"
             "file.server.path=%s,file.export=lent,node-name=r0,shared-disk=on",
             sock);
    g_assert_false(block_change("q0", NULL, "r0", &err));
    g_assert_nonnull(strstr(err->message, "cache.direct=on"));
    block_test_end();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/block/shared/refused", test_refused);
    g_test_add_func("/block/shared/model-takeover", test_model_takeover);
    g_test_add_func("/block/shared/model-alone", test_model_alone);
    g_test_add_func("/block/shared/locked", test_locked);
    g_test_add_func("/block/shared/bounds", test_bounds);
    g_test_add_func("/block/shared/flush-storm", test_flush_storm);
    return g_test_run();
}
