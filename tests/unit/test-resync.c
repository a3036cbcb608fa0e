/*
 * What a protected pair's activity logs remember, and forget.
 * COLO_SEED=n repeats a run.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "replication-pair.h"
#include "../../block/activity-log.h"
#include "block/job.h"

/* The log of the primary's image. */
static ActivityLog *primary_log(void)
{
    BlockNode *quorum = test_node("colo-disk0");

    block_lock();
    g_autoptr(GPtrArray) images = activity_log_images(quorum);
    ActivityLog *log = activity_log_of(images->pdata[0]);
    block_unlock();
    return log;
}

static uint64_t differs(void)
{
    ActivityLog *log = primary_log();

    block_lock();
    uint64_t n = dirty_bitmap_bytes(activity_log_dirty(log));
    block_unlock();
    return n;
}

static bool has_generation(void)
{
    ActivityLog *log = primary_log();

    block_lock();
    bool has = activity_log_generation(log) != NULL;
    block_unlock();
    return has;
}

static void checkpoint(Pair *p)
{
    take_barrier(p);
    commit(p);
    block_primary_committed();
}

static void wait_forgotten(void)
{
    for (int i = 0; i < 12000 && differs(); i++) {
        g_usleep(5000);
    }
    g_assert_cmpuint(differs(), ==, 0);
}

/* A while in which a region would have cooled several times over. */
static void stays(void)
{
    for (int i = 0; i < 40; i++) {
        g_assert_cmpuint(differs(), >, 0);
        g_usleep(5000);
    }
}

static bool job_ready(void)
{
    g_autoptr(JsonArray) jobs = block_job_query_block();

    return json_array_get_length(jobs) == 1 &&
           json_object_get_boolean_member(json_array_get_object_element(jobs, 0), "ready");
}

static void greet(void)
{
    g_autoptr(JsonArray) disks = block_primary_disks();

    block_secondary_peer_disks(disks);
}

static void protect(Pair *p)
{
    greet();
    start(p);
    for (int i = 0; i < 200 && !has_generation(); i++) {
        checkpoint(p);
        g_usleep(5000);
    }
    g_assert_true(has_generation());
}

static void write_first_page(Pair *p)
{
    memset(p->pvm, p->pvm[0] + 1, 4096);
    g_assert_cmpint(test_io("colo-disk0", BLOCK_OP_WRITE, 0, 4096, p->pvm), ==, 0);
}

/* Nothing is forgotten before it is committed, on the secondary's disk, and flushed. */
static void test_forgets(void)
{
    activity_log_set_times(30, 7);
    Pair *p = pair_new(test_seed(), "slow");

    protect(p);
    checkpoint(p);
    wait_forgotten();
    batch_wait(batch_start(p, "colo-disk0", p->pvm));
    write_first_page(p);
    stays();
    take_barrier(p);
    stays();
    g_atomic_int_set(&slow_silent, 1);
    commit(p);
    block_primary_committed();
    stays(); /* committed, but only in the secondary's memory */
    g_atomic_int_set(&slow_silent, 0);
    wait_forgotten();
    /* Written again after the barrier of the last commit: not forgotten with it. */
    batch_wait(batch_start(p, "colo-disk0", p->pvm));
    take_barrier(p);
    batch_wait(batch_start(p, "colo-disk0", p->pvm));
    write_first_page(p); /* a random batch may only flush */
    commit(p);
    block_primary_committed();
    stays();
    /* Alone, nothing is. */
    activity_log_set_times(100000, 7); /* no round between the two */
    checkpoint(p);
    block_primary_stop();
    activity_log_set_times(30, 7);
    stays();
    activity_log_set_times(10000, 3000);
    pair_free(p);
}

/* Only a mirror that copied everything makes the images equal. */
static void test_mirrored_all(void)
{
    static const char *const sync[] = {"none", "full"};
    Pair *p = pair_new(test_seed(), "raw");

    for (int i = 0; i < 2; i++) {
        g_autoptr(GError) err = NULL;
        g_autoptr(JsonObject) args = test_opts(
            "device=colo-disk0,job-id=j,mode=existing,format=raw,sync=%s,"
            "target=nbd+unix:///parent0?socket=%s", sync[i], p->sock);

        block_mirror_start(args, true, &err);
        g_assert_no_error(err);
        for (int k = 0; k < 6000 && !job_ready(); k++) {
            g_usleep(10000);
        }
        block_job_command("j", BLOCK_JOB_CANCEL, &err);
        g_assert_no_error(err);
        for (int k = 0; k < 6000 && block_job_exists("j"); k++) {
            g_usleep(10000);
        }
        g_autoptr(JsonArray) disks = block_primary_disks();
        g_assert_cmpint(json_object_has_member(json_array_get_object_element(disks, 0),
                                               "mirrored"), ==, i == 1);
    }
    pair_free(p);
}

/* That a mirror made the images equal is said for one start: afterwards the secondary may die
 * between two checkpoints, and its image must not be taken for the mirror's. */
static void test_mirrored_once(void)
{
    Pair *p = pair_new(test_seed(), "raw");
    BlockNode *quorum = test_node("colo-disk0");
    bool said[2];

    for (int i = 0; i < 2; i++) {
        if (i == 0) {
            quorum->mirrored_to = g_strdup("parent0");
        }
        g_autoptr(JsonArray) disks = block_primary_disks();
        said[i] = json_object_has_member(json_array_get_object_element(disks, 0),
                                         "mirrored");
        if (i == 0) {
            start(p);
        }
    }
    g_assert_true(said[0]);
    g_assert_false(said[1]);
    pair_free(p);
}

/* Both sides begin one generation; the secondary's log is empty until it takes over. */
static void test_generations(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(test_seed(), "raw");

    protect(p);
    ActivityLog *mine = primary_log();
    BlockNode *image = test_node("parent0");
    block_lock();
    ActivityLog *its = activity_log_of(image);
    g_assert_cmpstr(activity_log_generation(mine), ==, activity_log_generation(its));
    g_assert_cmpuint(dirty_bitmap_bytes(activity_log_dirty(its)), ==, 0);
    block_unlock();
    batch_wait(batch_start(p, "colo-disk0", p->pvm));
    checkpoint(p);
    block_secondary_settle(&err);
    g_assert_no_error(err);
    g_assert_cmpuint(dirty_bitmap_bytes(activity_log_dirty(its)), ==, 0);
    block_secondary_takeover(&err);
    g_assert_no_error(err);
    uint8_t page[4096] = {1};
    g_assert_cmpint(test_io("colo-disk1", BLOCK_OP_WRITE, 0, 4096, page), ==, 0);
    g_assert_true(dirty_bitmap_get(activity_log_dirty(its), 0));
    pair_free(p);
}

/* A peer that says nothing about generations: no log claims to know. */
static void test_silent_peer(void)
{
    Pair *p = pair_new(test_seed(), "raw");

    start(p);
    checkpoint(p);
    g_assert_false(has_generation());
    g_assert_null(activity_log_of(test_node("parent0")));
    pair_free(p);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_message("seed %u", test_seed());
    g_test_add_func("/resync/forgets", test_forgets);
    g_test_add_func("/resync/generations", test_generations);
    g_test_add_func("/resync/mirrored-once", test_mirrored_once);
    g_test_add_func("/resync/mirrored-all", test_mirrored_all);
    g_test_add_func("/resync/silent-peer", test_silent_peer);
    return g_test_run();
}
