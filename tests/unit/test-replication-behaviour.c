/*
 * What a user of driver=replication relies on, behaviour by behaviour, on both sides.
 * The names follow those under which QEMU tests its own driver.
 * Sources: this file. Dependencies: util, block, libnbd, liburing, gio_unix.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "replication-pair.h"

#define AT 65536
#define LEN 8192

static void write_byte(const char *disk, uint8_t byte)
{
    g_autofree uint8_t *buf = g_malloc(LEN);

    memset(buf, byte, LEN);
    g_assert_cmpint(test_io(disk, BLOCK_OP_WRITE, AT, LEN, buf), ==, 0);
}

/* What @disk reads there: one byte, all over. */
static uint8_t read_byte(const char *disk)
{
    g_autofree uint8_t *buf = g_malloc(LEN);

    g_assert_cmpint(test_io(disk, BLOCK_OP_READ, AT, LEN, buf), ==, 0);
    for (int i = 1; i < LEN; i++) {
        g_assert_cmpint(buf[i], ==, buf[0]);
    }
    return buf[0];
}

static uint8_t file_byte(const char *path)
{
    uint8_t byte = 0xff;
    int fd = open(path, O_RDONLY);

    g_assert_cmpint(pread(fd, &byte, 1, AT), ==, 1);
    close(fd);
    return byte;
}

static char *state_of(const char *mode, const char *key)
{
    g_autoptr(JsonNode) n = block_replication_query();
    JsonArray *a = json_node_get_array(n);

    for (guint i = 0; i < json_array_get_length(a); i++) {
        JsonObject *o = json_array_get_object_element(a, i);

        if (!strcmp(options_get_str(o, "mode", ""), mode)) {
            return g_strdup(options_get_str(o, key, ""));
        }
    }
    return NULL;
}

static void check_state(const char *mode, const char *want)
{
    g_autofree char *state = state_of(mode, "state");

    g_assert_cmpstr(state, ==, want);
}

static void wait_all_arrived(Pair *p)
{
    BlockBarrier now;

    g_assert_cmpuint(block_primary_barriers(&now, 1), ==, 1);
    wait_figure("arrived", now.sequence);
}

static void begin(Pair *p)
{
    g_autoptr(GError) err = NULL;

    block_primary_start(note, p, &err);
    g_assert_no_error(err);
    block_secondary_start(note, p, &err);
    g_assert_no_error(err);
}

static void checkpoint(Pair *p)
{
    g_autoptr(GError) err = NULL;

    take_barrier(p);
    wait_arrived(&p->barrier);
    block_secondary_commit(&p->barrier, 1, &err);
    g_assert_no_error(err);
}

static void settle(void)
{
    g_autoptr(GError) err = NULL;

    block_secondary_settle(&err);
    g_assert_no_error(err);
}

/* --- Primary --- */

static void primary_read(void)
{
    Pair *p = pair_new(1, "raw");

    g_assert_cmpint(read_byte("colo-disk0"), ==, 0);
    /* Its own disk is what it reads, whatever the other side has. */
    write_byte("parent0", 0x33);
    g_assert_cmpint(read_byte("colo-disk0"), ==, 0);
    g_assert_cmpint(test_io("colo-disk0", BLOCK_OP_READ, SIZE, 512, p->buf), ==, -EINVAL);
    pair_free(p);
}

static void primary_write(void)
{
    Pair *p = pair_new(1, "raw");

    check_state("primary", "none");
    write_byte("colo-disk0", 0x11);
    g_assert_cmpint(read_byte("colo-disk0"), ==, 0x11);
    g_assert_cmpint(file_byte(p->primary), ==, 0x11);
    /* Before replication is started writes go through to the other image. */
    wait_all_arrived(p);
    for (int i = 0; i < 1000 && file_byte(p->image) != 0x11; i++) {
        g_usleep(1000);
    }
    g_assert_cmpint(file_byte(p->image), ==, 0x11);
    pair_free(p);
}

static void primary_start(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(1, "raw");

    begin(p);
    check_state("primary", "running");
    check_state("secondary", "running");
    write_byte("colo-disk0", 0x11);
    g_assert_cmpint(file_byte(p->primary), ==, 0x11);
    wait_all_arrived(p);
    settle();
    g_assert_cmpint(file_byte(p->image), ==, 0);
    pair_free(p);
}

static void primary_stop(void)
{
    Pair *p = pair_new(1, "raw");

    begin(p);
    write_byte("colo-disk0", 0x11);
    wait_all_arrived(p);
    int64_t arrived = figure("arrived");
    block_primary_stop();
    check_state("primary", "done");
    write_byte("colo-disk0", 0x22);
    g_assert_cmpint(read_byte("colo-disk0"), ==, 0x22);
    g_assert_cmpint(file_byte(p->primary), ==, 0x22);
    g_usleep(50000);
    g_assert_cmpint(figure("arrived"), ==, arrived);
    pair_free(p);
}

static gpointer committed_again_and_again(gpointer stop)
{
    while (!g_atomic_int_get((int *)stop)) {
        block_primary_committed();
    }
    return NULL;
}

/* The monitor takes the node out of its quorum and deletes it while the controller is at
 * work on all of them. ASan and TSan look on. */
static void primary_taken_away(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(1, "raw");
    int stop = 0;

    begin(p);
    write_byte("colo-disk0", 0x11);
    GThread *t = g_thread_new("committed", committed_again_and_again, &stop);
    for (int i = 0; i < 20; i++) {
        g_usleep(2000);
        block_change("colo-disk0", "replication0", NULL, &err);
        g_assert_no_error(err);
        block_node_del("replication0", &err);
        g_assert_no_error(err);
        test_add("driver=replication,mode=primary,file.driver=nbd,file.server.type=unix,"
                 "file.server.path=%s,file.export=parent0,node-name=replication0",
                 p->sock);
        block_change("colo-disk0", NULL, "replication0", &err);
        g_assert_no_error(err);
    }
    g_atomic_int_set(&stop, 1);
    g_thread_join(t);
    write_byte("colo-disk0", 0x22);
    g_assert_cmpint(read_byte("colo-disk0"), ==, 0x22);
    pair_free(p);
}

static void primary_do_checkpoint(void)
{
    Pair *p = pair_new(1, "raw");

    begin(p);
    write_byte("colo-disk0", 0x11);
    checkpoint(p);
    write_byte("colo-disk0", 0x22); /* of the next epoch */
    wait_all_arrived(p);
    settle();
    g_assert_cmpint(file_byte(p->image), ==, 0x11);
    g_assert_cmpint(read_byte("colo-disk0"), ==, 0x22);
    checkpoint(p);
    settle();
    g_assert_cmpint(file_byte(p->image), ==, 0x22);
    pair_free(p);
}

static void primary_get_error(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(1, "raw");

    begin(p);
    write_byte("colo-disk0", 0x22);
    g_assert_true(block_nbd_server_stop(NULL));
    for (int i = 0; i < 1000 && g_atomic_int_get(&p->fatal) < 2; i++) {
        g_usleep(1000);
    }
    g_assert_cmpint(g_atomic_int_get(&p->fatal), ==, 2);
    check_state("primary", "error");
    g_autofree char *why = state_of("primary", "error");
    g_assert_nonnull(strstr(why, "connection"));
    g_assert_false(block_primary_start(note, p, &err));
    g_assert_nonnull(strstr(err->message, why));
    /* The guest does not see it. */
    write_byte("colo-disk0", 0x11);
    g_assert_cmpint(read_byte("colo-disk0"), ==, 0x11);
    pair_free(p);
}

/* A secondary that takes nothing any more: the guest's writes wait for queue-timeout, no
 * longer, and then go on without it. */
static void primary_bounded_stall(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(1, "slow");

    block_change("colo-disk0", "replication0", NULL, &err);
    g_assert_no_error(err);
    g_assert_true(block_node_del("replication0", &err));
    test_add("driver=replication,mode=primary,file.driver=nbd,file.server.type=unix,"
             "file.server.path=%s,file.export=parent0,node-name=replication1,"
             "queue-memory=16k,queue-timeout=300",
             p->sock);
    block_change("colo-disk0", NULL, "replication1", &err);
    g_assert_no_error(err);
    block_primary_start(note, p, &err);
    g_assert_no_error(err);
    g_atomic_int_set(&slow_silent, 1);
    int64_t longest = 0;
    for (int i = 0; i < 20; i++) {
        int64_t t = g_get_monotonic_time();

        write_byte("colo-disk0", 1 + i);
        longest = MAX(longest, g_get_monotonic_time() - t);
    }
    g_test_message("longest write %.0f ms", longest / 1e3);
    g_assert_cmpint(longest, >, 200000);
    g_assert_cmpint(longest, <, 20000000);
    g_assert_cmpint(g_atomic_int_get(&p->fatal), >=, 1);
    check_state("primary", "error");
    g_atomic_int_set(&slow_silent, 0);
    g_assert_cmpint(read_byte("colo-disk0"), ==, 20);
    pair_free(p);
}

/* --- Secondary --- */

static void secondary_read_test(void)
{
    Pair *p = pair_new(1, "raw");

    check_state("secondary", "none");
    write_byte("colo-disk0", 0x11);
    wait_all_arrived(p);
    begin(p);
    checkpoint(p);
    g_assert_cmpint(read_byte("colo-disk1"), ==, 0x11);
    pair_free(p);
}

static void secondary_write(void)
{
    Pair *p = pair_new(1, "raw");

    begin(p);
    write_byte("colo-disk1", 0x44);
    g_assert_cmpint(read_byte("colo-disk1"), ==, 0x44);
    /* Nothing of it reaches image, export or primary. */
    settle();
    g_assert_cmpint(file_byte(p->image), ==, 0);
    struct nbd_handle *h = test_client(p->sock, "parent0");
    g_assert_cmpint(nbd_pread(h, p->buf, LEN, AT, 0), ==, 0);
    g_assert_cmpint(p->buf[0], ==, 0);
    nbd_close(h);
    g_assert_cmpint(read_byte("colo-disk0"), ==, 0);
    pair_free(p);
}

static void secondary_start(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(1, "raw");

    begin(p);
    write_byte("colo-disk0", 0x11);
    wait_all_arrived(p);
    /* Known to the log alone. */
    g_assert_cmpint(read_byte("colo-disk1"), ==, 0);
    g_assert_cmpint(figure("log-bytes"), >=, LEN);
    g_assert_false(block_secondary_start(note, p, &err));
    g_assert_nonnull(strstr(err->message, "running"));
    pair_free(p);
}

static void secondary_stop(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(1, "raw");

    begin(p);
    write_byte("colo-disk0", 0x11);
    checkpoint(p);
    write_byte("colo-disk1", 0x44);
    /* An epoch that is never committed. */
    g_assert_cmpint(test_io("colo-disk0", BLOCK_OP_WRITE, 0, LEN, memset(p->buf, 0x22, LEN)),
                    ==, 0);
    wait_all_arrived(p);
    g_assert_true(block_secondary_takeover(&err));
    check_state("secondary", "done");
    g_assert_cmpint(read_byte("colo-disk1"), ==, 0x44);
    g_assert_cmpint(file_byte(p->image), ==, 0x44);
    g_assert_cmpint(test_io("colo-disk1", BLOCK_OP_READ, 0, LEN, p->buf), ==, 0);
    g_assert_cmpint(p->buf[0], ==, 0);
    pair_free(p);
}

static void secondary_do_checkpoint(void)
{
    Pair *p = pair_new(1, "raw");

    begin(p);
    write_byte("colo-disk1", 0x44);
    write_byte("colo-disk0", 0x11);
    g_assert_cmpint(read_byte("colo-disk1"), ==, 0x44);
    checkpoint(p);
    g_assert_cmpint(read_byte("colo-disk1"), ==, 0x11);
    g_assert_cmpint(figure("overlay-bytes"), ==, 0);
    pair_free(p);
}

static void secondary_get_error(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(1, "slow");

    begin(p);
    write_byte("colo-disk0", 0x11);
    g_atomic_int_set(&slow_error, ENOSPC);
    checkpoint(p);
    for (int i = 0; i < 1000 && !g_atomic_int_get(&p->fatal); i++) {
        g_usleep(1000);
    }
    g_assert_cmpint(g_atomic_int_get(&p->fatal), >=, 1);
    g_autofree char *why = state_of("secondary", "error");
    g_assert_nonnull(strstr(why, g_strerror(ENOSPC)));
    take_barrier(p);
    g_assert_false(block_secondary_commit(&p->barrier, 1, &err));
    g_assert_nonnull(strstr(err->message, why));
    g_clear_error(&err);
    /* A takeover of it fails, and says so. */
    g_assert_false(block_secondary_takeover(&err));
    check_state("secondary", "failover-failed");
    g_atomic_int_set(&slow_error, 0);
    pair_free(p);
}

/* After its takeover the survivor's disk is replicated to a third one, by the same quorum. */
static void secondary_continuous_replication(void)
{
    g_autoptr(GError) err = NULL;
    Pair *p = pair_new(1, "raw");
    g_autofree char *third = test_image("third.img", SIZE);

    begin(p);
    write_byte("colo-disk0", 0x11);
    checkpoint(p);
    g_assert_true(block_secondary_takeover(&err));
    g_free(test_run("cp %s %s", p->image, third));
    test_add("if=none,id=third,driver=raw,file.filename=%s", third);
    g_assert_true(block_nbd_server_add("third", NULL, true, &err));
    test_add("driver=replication,mode=primary,file.driver=nbd,file.server.type=unix,"
             "file.server.path=%s,file.export=third,node-name=replication1",
             p->sock);
    block_change("colo-disk1", NULL, "replication1", &err);
    g_assert_no_error(err);
    write_byte("colo-disk1", 0x55);
    g_assert_cmpint(file_byte(p->image), ==, 0x55);
    for (int i = 0; i < 1000 && file_byte(third) != 0x55; i++) {
        g_usleep(1000);
    }
    g_assert_cmpint(file_byte(third), ==, 0x55);
    pair_free(p);
}

/* --- Several disks --- */

static char *add_second_disk(Pair *p)
{
    g_autoptr(GError) err = NULL;
    g_autofree char *primary = test_image("primary2.img", SIZE);
    g_autofree char *active = test_image("active2.img", SIZE);
    g_autofree char *hidden = test_image("hidden2.img", SIZE);
    g_autofree char *image = test_image("secondary2.img", SIZE);

    test_add("if=ide,id=colo-disk2,driver=quorum,read-pattern=fifo,vote-threshold=1,"
             "children.0.file.filename=%s,children.0.driver=raw",
             primary);
    test_add("if=none,id=parent2,file.filename=%s,driver=raw", image);
    test_add("if=none,id=childs2,driver=replication,mode=secondary,file.driver=raw,"
             "top-id=colo-disk3,file.file.filename=%s,file.backing.driver=raw,"
             "file.backing.file.filename=%s,file.backing.backing=parent2",
             active, hidden);
    test_add("if=ide,id=colo-disk3,driver=quorum,read-pattern=fifo,vote-threshold=1,"
             "children.0=childs2");
    block_nbd_server_add("parent2", NULL, true, &err);
    g_assert_no_error(err);
    test_add("driver=replication,mode=primary,file.driver=nbd,file.server.type=unix,"
             "file.server.path=%s,file.export=parent2,node-name=replication2",
             p->sock);
    block_change("colo-disk2", NULL, "replication2", &err);
    g_assert_no_error(err);
    return g_steal_pointer(&image);
}

static gboolean arrived_now(gpointer opaque)
{
    g_atomic_int_inc((gint *)opaque);
    return G_SOURCE_REMOVE;
}

static void check_both(uint8_t byte, const char *image1, const char *image2)
{
    settle();
    g_assert_cmpint(read_byte("colo-disk1"), ==, byte);
    g_assert_cmpint(read_byte("colo-disk3"), ==, byte);
    g_assert_cmpint(file_byte(image1), ==, byte);
    g_assert_cmpint(file_byte(image2), ==, byte);
}

/* While one disk's writes are on their way nothing is committed on any, in whichever order
 * the checkpoint names them; nor by a checkpoint that forgets one. */
static void all_disks_commit_in_one_checkpoint(void)
{
    for (int late = 0; late < 2; late++) {
        g_autoptr(GError) err = NULL;
        Pair *p = pair_new(1, "raw");
        g_autofree char *second = add_second_disk(p);
        BlockBarrier b[2], now[2];
        gint told = 0;

        begin(p);
        write_byte("colo-disk0", 0x11);
        write_byte("colo-disk2", 0x11);
        g_assert_cmpuint(block_primary_barriers(b, 2), ==, 2);
        b[late].sequence++; /* the write below, which is late */
        memcpy(now, b, sizeof(b));
        now[late].sequence--;
        BlockWait w;
        block_wait_init(&w);
        if (!block_secondary_arrived(now, 2, wake, &w)) {
            g_assert_cmpint(block_wait(&w, 10000), ==, 0);
        }

        g_assert_false(block_secondary_arrived(b, 2, arrived_now, &told));
        for (int order = 0; order < 2; order++) {
            const BlockBarrier named[2] = {b[order], b[!order]};

            g_assert_false(block_secondary_check(named, 2, NULL));
            g_assert_false(block_secondary_commit(named, 2, &err));
            g_assert_nonnull(strstr(err->message, b[late].disk));
            g_clear_error(&err);
        }
        check_both(0, p->image, second);
        for (int alone = 0; alone < 2; alone++) {
            g_assert_false(block_secondary_commit(&now[alone], 1, &err));
            g_assert_nonnull(strstr(err->message, "names 1 disks, but 2"));
            g_clear_error(&err);
        }
        check_both(0, p->image, second);
        g_assert_cmpint(g_atomic_int_get(&told), ==, 0);

        bool first = !strcmp(b[late].disk, "parent0");
        write_byte(first ? "colo-disk0" : "colo-disk2", 0x11);
        for (int i = 0; i < 10000 && !g_atomic_int_get(&told); i++) {
            g_usleep(1000);
        }
        g_assert_cmpint(g_atomic_int_get(&told), ==, 1);
        block_secondary_commit(b, 2, &err);
        g_assert_no_error(err);
        check_both(0x11, p->image, second);
        /* A takeover drops what no checkpoint took, on both. */
        write_byte("colo-disk0", 0x22);
        write_byte("colo-disk2", 0x22);
        g_assert_true(block_secondary_takeover(&err));
        check_both(0x11, p->image, second);
        pair_free(p);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/replication/primary/read", primary_read);
    g_test_add_func("/replication/primary/write", primary_write);
    g_test_add_func("/replication/primary/start", primary_start);
    g_test_add_func("/replication/primary/stop", primary_stop);
    g_test_add_func("/replication/primary/taken-away", primary_taken_away);
    g_test_add_func("/replication/primary/do-checkpoint", primary_do_checkpoint);
    g_test_add_func("/replication/primary/get-error", primary_get_error);
    g_test_add_func("/replication/primary/bounded-stall", primary_bounded_stall);
    g_test_add_func("/replication/secondary/read", secondary_read_test);
    g_test_add_func("/replication/secondary/write", secondary_write);
    g_test_add_func("/replication/secondary/start", secondary_start);
    g_test_add_func("/replication/secondary/stop", secondary_stop);
    g_test_add_func("/replication/secondary/do-checkpoint", secondary_do_checkpoint);
    g_test_add_func("/replication/secondary/get-error", secondary_get_error);
    g_test_add_func("/replication/secondary/continuous-replication",
                    secondary_continuous_replication);
    g_test_add_func("/replication/disks/commit-in-one-checkpoint",
                    all_disks_commit_in_one_checkpoint);
    return g_test_run();
}
