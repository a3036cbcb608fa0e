/*
 * Replication of disks against a model: random writes, commits, torn epochs, takeover.
 * Both sides live in this process and talk over the NBD server.
 * Sources: this file. Dependencies: util, block, libnbd, liburing, gio_unix.
 * COLO_SEED=n repeats a run, COLO_STEPS=n changes its length; -m perf commits 256 MiB.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "replication-pair.h"

#include "../../block/replication/journal.h"

#include <malloc.h>
#include <sys/resource.h>

static void run_model(const char *format, uint32_t seed, int steps)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(seed, format);
    bool raw = !strcmp(format, "raw"), slow = !strcmp(format, "slow");

    g_test_message("seed %u", seed);
    secondary_merge_at_once = g_rand_boolean(p->rand) ? 0 : 8 << 20;
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
    p->no_trim = true;
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
    /* The merge may go on behind it. */
    g_assert_true(block_secondary_settle(&err));
    check_disk(p, "colo-disk1", p->svm);
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
    pair_free_closed(p);
}

static int steps(int dflt)
{
    const char *s = g_getenv("COLO_STEPS");

    return s ? atoi(s) : dflt;
}

static void test_model_raw(void)
{
    for (int i = 0; i < 5; i++) {
        run_model("raw", test_seed() + i, steps(600));
    }
}

static void test_model_slow(void)
{
    for (int i = 0; i < 10; i++) {
        run_model("slow", test_seed() + i, steps(200));
    }
}

static void test_model_qcow2(void)
{
    run_model("qcow2", test_seed(), steps(400));
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
        Pair *p = pair_new(test_seed() + round, "raw");

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
        p->no_trim = true;
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
    Pair *p = pair_new(test_seed(), "slow");

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
    Pair *p = pair_new(test_seed(), "slow");

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

/* --- Crashes --- */

static const char *crash_step;
static gint crash_left;

static void crash_at(const char *step)
{
    if (!strcmp(step, crash_step) && g_atomic_int_dec_and_test(&crash_left)) {
        kill(getpid(), SIGKILL);
    }
}

/* In a process of its own: replicate until the step comes. */
static void crash_child(void)
{
    uint32_t s = strtoul(g_getenv("COLO_CRASH_SEED"), NULL, 10);
    Pair *p = pair_new(s, g_getenv("COLO_CRASH_FORMAT"));

    g_file_set_contents(g_getenv("COLO_CRASH_FILE"), test_dir, -1, NULL);
    crash_step = g_getenv("COLO_CRASH_STEP");
    crash_left = g_rand_int_range(p->rand, 1, 6);
    start(p);
    block_replication_set_step(crash_at);
    for (int i = 0; i < 50; i++) {
        for (int k = 0; k < 4; k++) {
            batch_wait(batch_start(p, "colo-disk0", p->pvm));
        }
        batch_wait(batch_start(p, "colo-disk1", p->svm));
        take_barrier(p);
        commit(p);
    }
    if (!strncmp(crash_step, "takeover", 8)) {
        for (int k = 0; k < 4; k++) {
            batch_wait(batch_start(p, "colo-disk1", p->svm));
        }
        crash_left = 1;
        block_secondary_takeover(NULL);
    }
    pair_free(p);
}

/* The kernel takes a moment to let go of what a killed process had in its ring, and storage
 * daemons end a moment later. */
static void wait_unlocked(const char *path)
{
    int fd = open(path, O_RDWR);
    bool locked = true;

    g_assert_cmpint(fd, >=, 0);
    for (int i = 0; i < 500 && locked; i++) {
        struct flock fl = {
            .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 200};

        locked = fcntl(fd, F_OFD_GETLK, &fl) == 0 && fl.l_type != F_UNLCK;
        g_usleep(locked ? 10000 : 0);
    }
    g_assert_false(locked);
    close(fd);
}

static void crash_once(const char *format, const char *step)
{
    g_autofree char *name = NULL, *dir = NULL, *image = NULL, *marker = NULL;
    g_autofree char *seed_text = g_strdup_printf("%u", test_seed());
    int fd = g_file_open_tmp("colo-crash-XXXXXX", &name, NULL);

    close(fd);
    g_test_message("%s, %s, seed %s", format, step, seed_text);
    g_setenv("COLO_CRASH_FILE", name, TRUE);
    g_setenv("COLO_CRASH_FORMAT", format, TRUE);
    g_setenv("COLO_CRASH_STEP", step, TRUE);
    g_setenv("COLO_CRASH_SEED", seed_text, TRUE);
    g_test_trap_subprocess("/block/replication/crash/subprocess", 0, 0);
    g_assert_false(g_test_trap_has_passed());
    g_assert_true(g_file_get_contents(name, &dir, NULL, NULL));
    g_unlink(name);
    image = g_build_filename(dir, "secondary.img", NULL);
    marker = g_strconcat(image, ".colo", NULL);
    wait_unlocked(image);

    /* Known to be inconsistent: neither a disk nor a base of a secondary. */
    g_assert_cmpint(g_access(marker, F_OK), ==, 0);
    block_test_begin();
    test_add_fails("not that of one moment", "id=d0,driver=%s,file.filename=%s", format,
                   image);
    test_add_fails("not that of one moment", "if=none,id=parent0,file.filename=%s", image);
    /* Copied again, as the words ask for. */
    g_free(test_run("qemu-img create -q -f %s %s %u", format, image, SIZE));
    g_unlink(marker);
    test_add("id=d0,driver=%s,file.filename=%s", format, image);
    block_test_end();
    test_remove(dir);
}

/* Killed at each step of a commit, the secondary leaves an image that is known to be
 * between two checkpoints. */
static void test_crash(void)
{
    static const char *const steps[] = {"commit", "apply-written", "layer-applied",
                                        "takeover-begin", "takeover-merged"};

    for (size_t i = 0; i < G_N_ELEMENTS(steps); i++) {
        crash_once("raw", steps[i]);
    }
    crash_once("qcow2", "apply-written");
}

/* In a process of its own: take over with a journal, write and flush, write down what the disk
 * must hold, die in the middle of the merge. */
static void journal_child(void)
{
    uint32_t s = strtoul(g_getenv("COLO_CRASH_SEED"), NULL, 10);
    Pair *p = pair_new(s, g_getenv("COLO_CRASH_FORMAT"));
    g_autofree char *model = g_strconcat(g_getenv("COLO_CRASH_FILE"), ".model", NULL);
    int merges = g_rand_int_range(p->rand, 0, 20);
    g_autoptr(GError) err = NULL;

    g_file_set_contents(g_getenv("COLO_CRASH_FILE"), test_dir, -1, NULL);
    secondary_merge_at_once = 0;
    start(p);
    for (int i = 0; i < 10; i++) {
        batch_wait(batch_start(p, "colo-disk0", p->pvm));
    }
    take_barrier(p);
    commit(p);
    for (int i = 0; i < 40; i++) {
        batch_wait(batch_start(p, "colo-disk1", p->svm));
    }
    g_assert_cmpint(figure("overlay-bytes"), >, 0);
    secondary_test_hold_merge = 1;
    p->no_trim = true;
    /* One in flight when the takeover begins. */
    Batch *b = batch_start(p, "colo-disk1", p->svm);
    g_assert_true(block_secondary_takeover(&err));
    batch_wait(b);
    for (int i = g_rand_int_range(p->rand, 0, 6); i > 0; i--) {
        batch_wait(batch_start(p, "colo-disk1", p->svm));
        check_disk(p, "colo-disk1", p->svm);
        if (g_rand_boolean(p->rand)) {
            g_assert_cmpint(test_io("colo-disk1", BLOCK_OP_FLUSH, 0, 0, NULL), ==, 0);
        }
    }
    g_assert_cmpint(test_io("colo-disk1", BLOCK_OP_FLUSH, 0, 0, NULL), ==, 0);
    /* One more, made stable by itself. */
    test_fill(p->rand, p->svm + 8192, 4096);
    g_assert_cmpint(block_request_sync(test_node("colo-disk1"), BLOCK_OP_WRITE, 8192, 4096,
                                       p->svm + 8192, BLOCK_REQ_FUA), ==, 0);
    g_assert_true(g_file_set_contents(model, (char *)p->svm, SIZE, NULL));
    if (merges == 0) {
        kill(getpid(), SIGKILL);
    }
    crash_step = "takeover-merged";
    crash_left = merges;
    block_replication_set_step(crash_at);
    BlockNode *childs = test_node("childs0");
    block_lock();
    secondary_test_hold_merge = 0;
    secondary_takeover_step(childs->opaque);
    block_unlock();
    for (int i = 0; i < 100; i++) {
        g_usleep(10000);
    }
    kill(getpid(), SIGKILL); /* after the end of it is as good a moment */
}

static void journal_once(const char *format, bool new_active)
{
    g_autofree char *name = NULL, *dir = NULL, *model = NULL;
    g_autofree char *seed_text = g_strdup_printf("%u", test_seed());
    g_autofree uint8_t *want = NULL;
    g_autofree uint8_t *got = g_malloc(SIZE);
    int fd = g_file_open_tmp("colo-crash-XXXXXX", &name, NULL);

    close(fd);
    g_test_message("%s, seed %s", format, seed_text);
    g_setenv("COLO_CRASH_FILE", name, TRUE);
    g_setenv("COLO_CRASH_FORMAT", format, TRUE);
    g_setenv("COLO_CRASH_SEED", seed_text, TRUE);
    g_test_trap_subprocess("/block/replication/journal/subprocess", 0, 0);
    g_assert_true(g_file_get_contents(name, &dir, NULL, NULL));
    model = g_strconcat(name, ".model", NULL);
    gsize len = 0;
    g_assert_true(g_file_get_contents(model, (char **)&want, &len, NULL));
    g_assert_cmpuint(len, ==, SIZE);
    g_unlink(name);
    g_unlink(model);
    g_autofree char *image = g_build_filename(dir, "secondary.img", NULL);
    g_autofree char *active = g_build_filename(dir, "active.img", NULL);
    wait_unlocked(image);
    wait_unlocked(active);
    g_autofree char *marker = g_strconcat(image, ".colo", NULL);

    block_test_begin();
    if (g_access(marker, F_OK) != 0) {
        new_active = false; /* died after the end of the merge */
    }
    if (new_active) {
        /* As a script does that starts a secondary anew. */
        g_free(test_run("qemu-img create -q -f %s %s %u", format, active, SIZE));
        test_add_fails("was changed since", "id=d0,driver=%s,file.filename=%s", format,
                       image);
        g_assert_cmpint(g_access(marker, F_OK), ==, 0);
    } else {
        test_add("id=d0,driver=%s,file.filename=%s", format, image);
        g_assert_cmpint(g_access(marker, F_OK), !=, 0);
        g_assert_cmpint(test_io("d0", BLOCK_OP_READ, 0, SIZE, got), ==, 0);
        g_assert_cmpmem(got, SIZE, want, SIZE);
    }
    block_test_end();
    test_remove(dir);
}

/* A takeover with much in its overlay serves before that is merged. When it dies in the
 * middle, the next start ends the merge: nothing that the guest was told is stable is lost,
 * and nothing older comes over it. */
static void test_journal(void)
{
    for (int i = 0; i < 8; i++) {
        journal_once("raw", false);
    }
    journal_once("raw", true);
    journal_once("qcow2", false);
    journal_once("qcow2", true);
}

static const char *journal_path;
static gint journal_at_live = -1;

static void note_live(const char *step)
{
    if (!strcmp(step, "takeover-live")) {
        g_atomic_int_set(&journal_at_live, g_access(journal_path, F_OK) == 0);
    }
}

static bool journal_says(const char *path, const char *what)
{
    g_autofree char *text = NULL;

    return g_file_get_contents(path, &text, NULL, NULL) && strstr(text, what);
}

/* A flush that could not be noted in the journal fails, and the next one notes it. And no
 * flush is answered as an ordinary one while the journal is there: a start after a crash
 * would bring older data back. */
static void test_journal_flush(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(test_seed(), "raw");
    uint64_t at_once = secondary_merge_at_once;
    g_autofree char *marker = g_strconcat(p->image, ".colo", NULL);
    g_autofree char *away = g_strconcat(p->image, ".away", NULL);

    secondary_merge_at_once = 0;
    start(p);
    take_barrier(p);
    commit(p);
    g_assert_cmpint(test_io("colo-disk1", BLOCK_OP_WRITE, 4096, 4096, p->svm), ==, 0);
    secondary_test_hold_merge = 1;
    g_assert_true(block_secondary_takeover(&err));
    g_assert_true(journal_says(marker, "copy 4096 8192\n"));
    g_assert_cmpint(test_io("colo-disk1", BLOCK_OP_WRITE, 4096, 4096, p->svm), ==, 0);
    g_assert_cmpint(g_rename(marker, away), ==, 0);
    g_assert_cmpint(test_io("colo-disk1", BLOCK_OP_FLUSH, 0, 0, NULL), ==, -EIO);
    g_assert_cmpint(g_rename(away, marker), ==, 0);
    g_assert_false(journal_says(marker, "keep"));
    g_assert_cmpint(test_io("colo-disk1", BLOCK_OP_FLUSH, 0, 0, NULL), ==, 0);
    g_assert_true(journal_says(marker, "keep 4096 8192\n"));
    journal_path = marker;
    BlockNode *childs = test_node("childs0");
    block_lock();
    block_replication_set_step(note_live);
    secondary_test_hold_merge = 0;
    secondary_takeover_step(childs->opaque);
    block_unlock();
    g_assert_true(block_secondary_settle(&err));
    block_replication_set_step(NULL);
    g_assert_cmpint(g_atomic_int_get(&journal_at_live), ==, 0);
    secondary_merge_at_once = at_once;
    pair_free(p);
}

/* What of a batch was written before the disk was full does not stand before the next. */
static void test_journal_full(void)
{
    struct rlimit old, little;
    g_autoptr(GError) err = NULL;
    g_autoptr(GArray) many = g_array_new(FALSE, FALSE, sizeof(JournalRange));
    struct stat before, after;

    block_test_begin();
    g_autofree char *active = test_image("active", 1 << 20);
    g_autofree char *path = test_path("image.colo");
    for (uint64_t i = 0; i < 100; i++) {
        JournalRange r = {i * 4096, i * 4096 + 512};

        g_array_append_val(many, r);
    }
    g_assert_true(journal_create(path, 1 << 20, active, "raw", many, &err));
    g_assert_cmpint(stat(path, &before), ==, 0);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    little = old;
    little.rlim_cur = before.st_size + 700;
    setrlimit(RLIMIT_FSIZE, &little);
    g_assert_false(journal_append(path, many, &err));
    setrlimit(RLIMIT_FSIZE, &old);
    g_assert_nonnull(strstr(err->message, "File too large"));
    g_assert_cmpint(stat(path, &after), ==, 0);
    g_assert_cmpint(after.st_size, ==, before.st_size);
    g_clear_error(&err);
    g_assert_true(journal_append(path, many, &err));
    block_test_end();
}

/* The image's storage daemon is killed: the primary's side is told, nothing is served from
 * the image, and it stays marked. */
static void test_daemon_killed(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(test_seed(), "qcow2");

    start(p);
    batch_wait(batch_start(p, "colo-disk0", p->pvm));
    take_barrier(p);
    commit(p);
    g_assert_true(block_secondary_settle(&err));
    g_autofree char *pid =
        test_run("pgrep -P %d -f 'qemu-storage-daemon.*%s'", (int)getpid(), p->image);
    kill(atoi(pid), SIGKILL);
    batch_wait(batch_start(p, "colo-disk0", p->pvm));
    batch_wait(batch_start(p, "colo-disk0", p->pvm));
    take_barrier(p);
    wait_arrived(&p->barrier);
    block_secondary_commit(&p->barrier, 1, NULL);
    for (int i = 0; i < 500 && !g_atomic_int_get(&p->fatal); i++) {
        g_usleep(10000);
    }
    g_assert_cmpint(g_atomic_int_get(&p->fatal), >=, 1);
    g_assert_false(block_secondary_takeover(NULL));
    g_assert_cmpint(test_io("colo-disk1", BLOCK_OP_READ, 0, 512, p->buf), ==, -EIO);
    check_disk(p, "colo-disk0", p->pvm);
    g_autofree char *marker = g_strconcat(p->image, ".colo", NULL);
    g_autofree char *image = g_strdup(p->image);
    block_shutdown();
    g_assert_cmpint(g_access(marker, F_OK), ==, 0);
    block_init(test_dir, &err);
    g_assert_no_error(err);
    test_add_fails("not that of one moment", "id=d0,driver=qcow2,file.filename=%s", image);
    pair_free(p);
}

static gpointer wake_later(gpointer pid)
{
    g_usleep(300000);
    kill(GPOINTER_TO_INT(pid), SIGCONT);
    return NULL;
}

/* The log's data is on its way to a hidden disk that hangs when all ends: what is in flight
 * comes back before the disk is forgotten. */
static void test_end_while_spilling(void)
{
    pair_log_memory = "0";
    Pair *p = pair_new(test_seed(), "qcow2");
    uint8_t block[4096];

    pair_log_memory = NULL;
    mallopt(M_PERTURB, 0x55); /* memory that was freed shows it */
    start(p);
    g_autofree char *text =
        test_run("pgrep -P %d -f 'qemu-storage-daemon.*%s/hidden'", (int)getpid(), test_dir);
    int pid = atoi(text);
    g_assert_cmpint(pid, >, 1);
    kill(pid, SIGSTOP);
    memset(block, 0x42, sizeof(block));
    g_assert_cmpint(test_io("colo-disk0", BLOCK_OP_WRITE, 0, sizeof(block), block), ==, 0);
    take_barrier(p);
    wait_arrived(&p->barrier);
    GThread *t = g_thread_new("wake", wake_later, GINT_TO_POINTER(pid));
    block_shutdown();
    g_thread_join(t);
    pair_free_closed(p);
    mallopt(M_PERTURB, 0);
}

/* --- A large commit --- */

typedef struct Prober {
    gint stop;
    double worst_ms, sum_ms;
    unsigned n;
} Prober;

/* A guest's reads and writes, one after the other, timed. */
static gpointer probe_thread(gpointer opaque)
{
    Prober *pr = opaque;
    g_autofree uint8_t *buf = g_malloc0(4096);

    for (unsigned i = 0; !g_atomic_int_get(&pr->stop); i++) {
        int64_t t = g_get_monotonic_time();

        g_assert_cmpint(test_io("colo-disk1", i % 2 ? BLOCK_OP_READ : BLOCK_OP_WRITE,
                                i % 512 * 4096, 4096, buf), ==, 0);
        double ms = (g_get_monotonic_time() - t) / 1e3;
        pr->worst_ms = MAX(pr->worst_ms, ms);
        pr->sum_ms += ms;
        pr->n++;
        g_usleep(200);
    }
    return NULL;
}

static void large_commit(unsigned mib, const char *memory)
{
    uint64_t size = (uint64_t)mib << 20;
    g_autoptr(GError) err = NULL;
    Pair p = {0};
    Prober pr = {0};

    block_test_begin();
    g_autofree char *image = test_image("image", size), *active = test_image("active", size);
    g_autofree char *hidden = test_image("hidden", size), *sock = test_path("nbd.sock");
    test_add("if=none,id=parent0,file.filename=%s,driver=raw", image);
    test_add("if=none,id=childs0,driver=replication,mode=secondary,file.driver=raw,"
             "top-id=colo-disk1,file.file.filename=%s,file.backing.driver=raw,"
             "file.backing.file.filename=%s,file.backing.backing=parent0,log-memory=%s",
             active, hidden, memory);
    test_add("if=ide,id=colo-disk1,driver=quorum,read-pattern=fifo,vote-threshold=1,"
             "children.0=childs0");
    g_autoptr(JsonObject) addr = test_opts("type=unix,data.path=%s", sock);
    block_nbd_server_start(addr, NULL, 0, &err);
    g_assert_no_error(err);
    block_nbd_server_add("parent0", NULL, true, &err);
    g_assert_no_error(err);
    block_secondary_start(note, &p, &err);
    g_assert_no_error(err);
    struct nbd_handle *h = test_client(sock, "parent0");
    g_autofree uint8_t *data = g_malloc(1 << 20);
    /* Half of it in small requests: an entry each. */
    unsigned n = 0;
    for (uint64_t off = 0; off < size; n++) {
        unsigned len = off < size / 2 ? 4096 : 1 << 20;

        memset(data, 1 + off / len % 250, len);
        g_assert_cmpint(nbd_pwrite(h, data, len, off, 0), ==, 0);
        off += len;
    }
    int64_t spilled = figure("log-spilled"), most = figure("log-memory");
    BlockBarrier b = {.disk = "parent0", .sequence = n};
    GThread *t = g_thread_new("guest", probe_thread, &pr);
    g_usleep(300000);
    double before = pr.worst_ms;
    pr.worst_ms = 0;
    int64_t begin = g_get_monotonic_time();
    wait_arrived(&b);
    int64_t arrived = g_get_monotonic_time();
    block_secondary_commit(&b, 1, &err);
    g_assert_no_error(err);
    int64_t committed = g_get_monotonic_time();
    g_assert_true(block_secondary_settle(&err));
    int64_t settled = g_get_monotonic_time();
    g_atomic_int_set(&pr.stop, 1);
    g_thread_join(t);
    g_test_message("%u MiB, %u requests, log-memory=%s (spilled %" G_GINT64_FORMAT
                   " MiB, in memory %" G_GINT64_FORMAT " MiB): sorted in %.1f ms, commit "
                   "%.2f ms, on the image after %.0f ms; guest 4 KiB: mean %.2f ms, worst "
                   "%.1f ms (before: %.1f)",
                   mib, n, memory, spilled >> 20, most >> 20, (arrived - begin) / 1e3,
                   (committed - arrived) / 1e3, (settled - begin) / 1e3,
                   pr.sum_ms / pr.n, pr.worst_ms, before);
    /* Loose, as machines that test are busy; without the steps it is some 100 ms. */
    g_assert_cmpint(committed - arrived, <, 20000);
    if (!strcmp(memory, "1M")) {
        g_assert_cmpint(spilled, >, (int64_t)size / 2);
        g_assert_cmpint(most, <, 64 << 20);
    }
    for (uint64_t off = 0; off < size; off += 1 << 20) {
        g_assert_cmpint(nbd_pread(h, data, 1 << 20, off, 0), ==, 0);
        for (uint64_t i = 0; i < 1 << 20; i += 4096) {
            unsigned len = off < size / 2 ? 4096 : 1 << 20;

            g_assert_cmpint(data[i], ==, 1 + (off + i) / len % 250);
        }
    }
    nbd_close(h);
    block_test_end();
}

static void test_large_commit(void)
{
    unsigned mib = g_test_perf() ? 256 : 64;

    large_commit(mib, "1G");
    large_commit(mib, "1M");
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
    pair_free_closed(p);
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
    g_test_add_func("/block/replication/crash", test_crash);
    g_test_add_func("/block/replication/crash/subprocess", crash_child);
    g_test_add_func("/block/replication/journal", test_journal);
    g_test_add_func("/block/replication/journal/subprocess", journal_child);
    g_test_add_func("/block/replication/journal-flush", test_journal_flush);
    g_test_add_func("/block/replication/journal-full", test_journal_full);
    g_test_add_func("/block/replication/daemon-killed", test_daemon_killed);
    g_test_add_func("/block/replication/end-while-spilling", test_end_while_spilling);
    g_test_add_func("/block/replication/large-commit", test_large_commit);
    return g_test_run();
}
