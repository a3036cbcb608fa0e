/*
 * quorum with children that fail or lie: which errors the guest gets, which events are sent, what
 * is read afterwards, and what rewrite-corrupted writes.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block-test.h"

#define SIZE (256 * 1024)

/* A disk in memory that fails when told to. Guarded by the block lock. */
typedef struct Faulty {
    uint8_t data[SIZE];
    int read_error, write_error, flush_error;
    bool slow; /* keep what comes in @queue */
    GQueue queue;
} Faulty;

static Faulty disk[3];
static GPtrArray *events; /* JSON text */

static void faulty_run(Faulty *f, BlockRequest *req)
{
    int ret = req->op == BLOCK_OP_FLUSH  ? f->flush_error
              : block_op_modifies(req->op) ? f->write_error
                                           : f->read_error;

    if (ret == 0 && req->op == BLOCK_OP_WRITE) {
        memcpy(f->data + req->offset, req->data, req->bytes);
    } else if (ret == 0 && req->op == BLOCK_OP_READ) {
        memcpy(req->data, f->data + req->offset, req->bytes);
    }
    block_complete_later(req, ret);
}

static void faulty_submit(BlockNode *node, BlockRequest *req)
{
    Faulty *f = node->opaque;

    if (f->slow) {
        g_queue_push_tail(&f->queue, req);
    } else {
        faulty_run(f, req);
    }
}

static void faulty_close(BlockNode *node)
{
}

static const BlockDriver faulty_driver = {
    .name = "faulty", .submit = faulty_submit, .close = faulty_close};

static void on_event(const char *name, JsonObject *data)
{
    g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), data);
    g_autofree char *text = json_to_string(node, FALSE);

    json_object_unref(data);
    g_ptr_array_add(events, g_strdup_printf("%s %s", name, text));
}

/* Three disks d0 to d2 and a quorum "q" of the first @n. */
static void begin(unsigned n, unsigned threshold, const char *more)
{
    events = g_ptr_array_new_with_free_func(g_free);
    block_set_event_func(on_event);
    block_test_begin();
    memset(disk, 0, sizeof(disk));
    for (unsigned i = 0; i < 3; i++) {
        g_autofree char *name = g_strdup_printf("d%u", i);

        block_lock();
        BlockNode *node = block_node_new(&faulty_driver, name, &disk[i]);
        node->size = SIZE;
        g_queue_init(&disk[i].queue);
        block_unlock();
    }
    test_add("node-name=q,driver=quorum,vote-threshold=%u,%schildren.0=d0%s%s", threshold, more,
             n > 1 ? ",children.1=d1" : "", n > 2 ? ",children.2=d2" : "");
}

static void end(void)
{
    for (int i = 0; i < 3; i++) {
        disk[i].slow = false;
        disk[i].read_error = disk[i].write_error = disk[i].flush_error = 0;
    }
    block_test_end();
    block_set_event_func(NULL);
    g_clear_pointer(&events, g_ptr_array_unref);
}

static bool saw(const char *text)
{
    bool found = false;

    block_lock();
    for (guint i = 0; i < events->len; i++) {
        found |= strstr(events->pdata[i], text) != NULL;
    }
    block_unlock();
    return found;
}

static guint event_count(void)
{
    block_lock();
    guint n = events->len;
    block_unlock();
    return n;
}

static void test_write_errors(void)
{
    uint8_t buf[4096] = {1}, got[4096];

    /* Enough succeed: an event, no error; and the one that missed it is not read again. */
    begin(2, 1, "read-pattern=fifo,");
    disk[0].write_error = -ENOSPC;
    g_assert_cmpint(test_io("q", BLOCK_OP_WRITE, 8192, 4096, buf), ==, 0);
    g_assert_true(saw("QUORUM_REPORT_BAD {\"type\":\"write\",\"error\":\"No space left on device\","
                      "\"node-name\":\"d0\",\"sector-num\":16,\"sectors-count\":8}"));
    g_assert_false(saw("QUORUM_FAILURE"));
    g_assert_cmpint(test_io("q", BLOCK_OP_WRITE, 0, 4096, buf), ==, 0);
    g_assert_cmpuint(event_count(), ==, 1); /* at most one a second */
    disk[0].write_error = 0;
    memset(got, 0, sizeof(got));
    g_assert_cmpint(test_io("q", BLOCK_OP_READ, 8192, 4096, got), ==, 0);
    g_assert_cmpmem(got, sizeof(got), buf, sizeof(buf));
    disk[1].read_error = -EIO;
    g_assert_cmpint(test_io("q", BLOCK_OP_READ, 8192, 4096, got), ==, -EIO);
    disk[1].read_error = 0;
    /* The only good one cannot be taken away; the stale one can. */
    g_autoptr(GError) err = NULL;
    g_assert_false(block_change("q", "d1", NULL, &err));
    g_assert_nonnull(strstr(err->message, "only one"));
    g_assert_true(block_change("q", "d0", NULL, NULL));
    g_assert_true(block_change("q", NULL, "d0", NULL));
    end();

    /* Too few: the error that most had, and QUORUM_FAILURE. */
    begin(3, 2, "");
    disk[0].write_error = disk[2].write_error = -ENOSPC;
    g_assert_cmpint(test_io("q", BLOCK_OP_WRITE, 512, 1024, buf), ==, -ENOSPC);
    g_assert_true(saw("QUORUM_FAILURE {\"reference\":\"q\",\"sector-num\":1,\"sectors-count\":2}"));
    g_assert_true(saw("\"d0\""));
    g_assert_true(saw("\"d2\""));
    g_assert_false(saw("\"d1\""));
    end();
    begin(3, 1, "");
    disk[0].write_error = -EIO;
    disk[1].write_error = disk[2].write_error = -ENOSPC;
    g_assert_cmpint(test_io("q", BLOCK_OP_WRITE, 0, 512, buf), ==, -ENOSPC);
    g_assert_cmpint(test_io("q", BLOCK_OP_FLUSH, 0, 0, NULL), ==, 0);
    end();
    begin(2, 2, "");
    disk[1].flush_error = -EIO;
    g_assert_cmpint(test_io("q", BLOCK_OP_FLUSH, 0, 0, NULL), ==, -EIO);
    g_assert_true(saw("QUORUM_REPORT_BAD {\"type\":\"flush\",\"error\":\"Input/output error\","
                      "\"node-name\":\"d1\",\"sector-num\":0,\"sectors-count\":0}"));
    g_assert_false(saw("QUORUM_FAILURE"));
    end();
}

static void test_read_errors(void)
{
    uint8_t got[4096];

    begin(2, 1, "read-pattern=fifo,");
    disk[1].data[0] = 7;
    disk[0].read_error = -EIO;
    g_assert_cmpint(test_io("q", BLOCK_OP_READ, 0, 512, got), ==, 0);
    g_assert_cmpuint(got[0], ==, 7);
    g_assert_true(saw("QUORUM_REPORT_BAD {\"type\":\"read\",\"error\":\"Input/output error\","
                      "\"node-name\":\"d0\",\"sector-num\":0,\"sectors-count\":1}"));
    disk[1].read_error = -ENOMEM;
    g_assert_cmpint(test_io("q", BLOCK_OP_READ, 0, 512, got), ==, -ENOMEM);
    end();

    /* A vote: one that fails, one that lies, and no majority. */
    begin(3, 2, "");
    disk[0].data[600] = 1;
    g_assert_cmpint(test_io("q", BLOCK_OP_READ, 512, 512, got), ==, 0);
    g_assert_cmpuint(got[88], ==, 0);
    g_assert_true(saw("QUORUM_REPORT_BAD {\"type\":\"read\",\"node-name\":\"d0\",\"sector-num\":1,"
                      "\"sectors-count\":1}"));
    g_assert_false(saw("FAILURE"));
    disk[1].read_error = -EIO;
    g_assert_cmpint(test_io("q", BLOCK_OP_READ, 0, 512, got), ==, 0);
    g_assert_cmpint(test_io("q", BLOCK_OP_READ, 512, 512, got), ==, -EIO);
    g_assert_true(saw("QUORUM_FAILURE {\"reference\":\"q\",\"sector-num\":1,\"sectors-count\":1}"));
    disk[2].read_error = -EIO;
    g_assert_cmpint(test_io("q", BLOCK_OP_READ, 0, 512, got), ==, -EIO);
    end();
    /* The most votes win, not the first that has enough. */
    begin(3, 1, "");
    disk[0].data[0] = 9;
    g_assert_cmpint(test_io("q", BLOCK_OP_READ, 0, 512, got), ==, 0);
    g_assert_cmpuint(got[0], ==, 0);
    end();
}

static void test_rewrite(void)
{
    uint8_t got[512];

    begin(3, 2, "rewrite-corrupted=on,");
    disk[1].data[1000] = 1;
    g_assert_cmpint(test_io("q", BLOCK_OP_READ, 512, 512, got), ==, 0);
    g_assert_cmpuint(disk[1].data[1000], ==, 0);
    g_assert_true(saw("\"d1\""));
    /* Without a majority nothing is written. */
    disk[0].data[0] = 1;
    disk[1].data[0] = 2;
    g_assert_cmpint(test_io("q", BLOCK_OP_READ, 0, 512, got), ==, -EIO);
    g_assert_cmpuint(disk[0].data[0], ==, 1);
    g_assert_cmpuint(disk[1].data[0], ==, 2);
    end();
    begin(3, 2, "");
    disk[1].data[1000] = 1;
    g_assert_cmpint(test_io("q", BLOCK_OP_READ, 512, 512, got), ==, 0);
    g_assert_cmpuint(disk[1].data[1000], ==, 1);
    test_add_fails("blkverify", "id=x,driver=quorum,vote-threshold=2,blkverify=on,"
                   "rewrite-corrupted=on,children.0=d0,children.1=d1");
    end();
}

/* Interleavings: reads of a corrupted range, writes into it, answers at random moments. What
 * was written last is what all children hold at the end. */
typedef struct Op {
    BlockRequest req;
    uint8_t data[512];
    bool done;
} Op;

static void op_done(BlockRequest *req, int ret)
{
    ((Op *)req->opaque)->done = true;
}

static void test_rewrite_race(void)
{
    g_autoptr(GRand) r = g_rand_new();

    for (int round = 0; round < 200; round++) {
        begin(3, 2, "rewrite-corrupted=on,");
        BlockNode *q = test_node("q");
        Op op[12];
        uint8_t last = 0;
        unsigned left = G_N_ELEMENTS(op), begun = 0;

        memset(op, 0, sizeof(op));
        block_lock();
        disk[g_rand_int_range(r, 0, 3)].data[77] = 0xee;
        for (int i = 0; i < 3; i++) {
            disk[i].slow = true;
        }
        block_unlock();
        while (left > 0) {
            block_lock();
            if (begun < G_N_ELEMENTS(op) && g_rand_int_range(r, 0, 3) == 0) {
                Op *o = &op[begun];
                bool write_busy = false;

                for (unsigned i = 0; i < begun; i++) {
                    write_busy |= op[i].req.op == BLOCK_OP_WRITE && !op[i].done;
                }
                /* As the front does: one write at a time on one range; reads go along, which
                 * it does not allow, but a mirror's reads may. */
                o->req = (BlockRequest){.op = g_rand_boolean(r) && !write_busy ? BLOCK_OP_WRITE
                                                                               : BLOCK_OP_READ,
                                        .bytes = 512, .data = o->data, .done = op_done,
                                        .opaque = o};
                if (o->req.op == BLOCK_OP_WRITE) {
                    last = 1 + begun;
                    memset(o->data, last, 512);
                }
                begun++;
                block_submit(q, &o->req);
            } else {
                Faulty *f = &disk[g_rand_int_range(r, 0, 3)];
                guint n = f->queue.length; /* a disk answers in any order */
                BlockRequest *req =
                    n ? g_queue_pop_nth(&f->queue, g_rand_int_range(r, 0, n)) : NULL;

                if (req) {
                    faulty_run(f, req);
                }
            }
            left = 0;
            for (unsigned i = 0; i < G_N_ELEMENTS(op); i++) {
                left += !op[i].done;
            }
            g_main_context_wakeup(io_thread_context(block_thread()));
            block_unlock();
            if (g_rand_int_range(r, 0, 4) == 0) {
                g_usleep(20);
            }
        }
        block_lock();
        for (int i = 0; last && i < 3; i++) {
            g_assert_cmpuint(disk[i].data[77], ==, last);
        }
        block_unlock();
        end();
    }
}

/* Names of children after many came and went. */
static void test_names(void)
{
    g_autoptr(GError) err = NULL;

    begin(1, 1, "read-pattern=fifo,");
    for (int i = 0; i < 5; i++) {
        g_assert_true(block_change("q", NULL, "d1", &err));
        g_assert_no_error(err);
        g_assert_true(block_change("q", NULL, "d2", &err));
        g_assert_true(block_change("q", "children.1", NULL, &err));
        g_assert_no_error(err);
        g_assert_false(block_change("q", "children.1", NULL, &err));
        g_assert_cmpstr(err->message, ==, "Node 'q' does not have child 'children.1'");
        g_clear_error(&err);
        g_assert_true(block_change("q", i % 2 ? "children.2" : "d2", NULL, &err));
        g_assert_no_error(err);
        g_assert_false(block_change("q", "children.0", NULL, &err));
        g_assert_cmpstr(err->message, ==,
                        "The number of children cannot be lower than the vote threshold 1");
        g_clear_error(&err);
        g_assert_false(block_change("q", "children.", NULL, NULL));
        g_assert_false(block_change("q", "children.1x", NULL, NULL));
        g_assert_false(block_change("q", "children.4294967297", NULL, NULL));
    }
    end();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/block/quorum-faults/write-errors", test_write_errors);
    g_test_add_func("/block/quorum-faults/read-errors", test_read_errors);
    g_test_add_func("/block/quorum-faults/rewrite", test_rewrite);
    g_test_add_func("/block/quorum-faults/rewrite-race", test_rewrite_race);
    g_test_add_func("/block/quorum-faults/names", test_names);
    return g_test_run();
}
