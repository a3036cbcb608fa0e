/*
 * The mirror: guests' writes while it copies, errors, limits, and what the job tells.
 * Disks are in memory, slow, and answer in no order, so that every overtaking happens.
 * COLO_SEED=n repeats a run.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block-test.h"
#include "block/job.h"

#include <stdlib.h>

#define SIZE (8u * 1024 * 1024)
#define WRITERS 3

static uint32_t seed;

/* --- A disk in memory --- */

typedef struct MemDisk {
    uint8_t *data;
    unsigned delay_ms;   /* an answer comes up to so late */
    gint fail_writes;    /* so many more fail, */
    int error;           /* with this */
    uint64_t fail_from;  /* from here on */
    gint stuck;          /* writes do not end */
    gint writes, zeroes; /* bytes */
    GQueue waiting;      /* BlockRequest, while stuck */
} MemDisk;

static gboolean mem_finish(gpointer opaque)
{
    BlockRequest *req = opaque;
    MemDisk *d = req->node->opaque;
    int ret = 0;

    if (block_op_modifies(req->op)) {
        if (d->fail_writes > 0 && req->offset + req->bytes > d->fail_from) {
            d->fail_writes--;
            ret = -d->error;
        }
        g_atomic_int_add(req->op == BLOCK_OP_WRITE ? &d->writes : &d->zeroes, req->bytes);
    }
    if (ret == 0 && req->op == BLOCK_OP_READ) {
        memcpy(req->data, d->data + req->offset, req->bytes);
    } else if (ret == 0 && req->op == BLOCK_OP_WRITE) {
        memcpy(d->data + req->offset, req->data, req->bytes);
    } else if (ret == 0 && req->op == BLOCK_OP_ZEROES) {
        memset(d->data + req->offset, 0, req->bytes);
    } else if (req->op == BLOCK_OP_STATUS) {
        /* Holes of 64 KiB where it is zero. */
        for (uint64_t pos = req->offset, end = req->offset + req->bytes; pos < end;) {
            uint64_t n = MIN(65536 - pos % 65536, end - pos);
            BlockExtent e = {.bytes = n, .flags = 3};

            for (uint64_t i = 0; i < n && e.flags; i++) {
                e.flags = d->data[pos + i] ? 0 : 3;
            }
            g_array_append_val(req->extents, e);
            pos += n;
        }
    }
    req->done(req, ret);
    return G_SOURCE_REMOVE;
}

static void mem_later(BlockRequest *req)
{
    MemDisk *d = req->node->opaque;
    GSource *s = g_timeout_source_new(g_random_int_range(0, d->delay_ms + 1));

    g_source_set_callback(s, mem_finish, req, NULL);
    g_source_attach(s, io_thread_context(block_thread()));
    g_source_unref(s);
}

static void mem_submit(BlockNode *node, BlockRequest *req)
{
    MemDisk *d = node->opaque;

    if (g_atomic_int_get(&d->stuck) && req->op == BLOCK_OP_WRITE) {
        g_queue_push_tail(&d->waiting, req);
    } else {
        mem_later(req);
    }
}

static void mem_close(BlockNode *node)
{
    MemDisk *d = node->opaque;

    g_free(d->data);
    g_free(d);
}

static const BlockDriver mem_driver = {
    .name = "mem", .submit = mem_submit, .close = mem_close};

static MemDisk *mem_add(const char *name, uint64_t size, unsigned delay_ms)
{
    MemDisk *d = g_new0(MemDisk, 1);

    d->data = g_malloc0(size);
    d->delay_ms = delay_ms;
    d->error = EIO;
    block_lock();
    BlockNode *node = block_node_new(&mem_driver, name, d);
    node->size = size;
    node->can_zero = true;
    block_unlock();
    return d;
}

static void mem_unstick(MemDisk *d)
{
    BlockRequest *req;

    block_lock();
    g_atomic_int_set(&d->stuck, 0);
    while ((req = g_queue_pop_head(&d->waiting))) {
        mem_later(req);
    }
    g_main_context_wakeup(io_thread_context(block_thread()));
    block_unlock();
}

/* --- Events --- */

static GMutex events_lock;
static GString *events;

static void on_event(const char *name, JsonObject *data)
{
    g_mutex_lock(&events_lock);
    g_string_append(events, name);
    if (!strcmp(name, "JOB_STATUS_CHANGE")) {
        g_string_append_printf(events, ":%s",
                               json_object_get_string_member(data, "status"));
    } else if (json_object_has_member(data, "action")) {
        g_string_append_printf(events, ":%s:%s",
                               json_object_get_string_member(data, "operation"),
                               json_object_get_string_member(data, "action"));
    } else if (json_object_has_member(data, "error")) {
        g_string_append_printf(events, ":%s",
                               json_object_get_string_member(data, "error"));
    }
    g_string_append_c(events, '\n');
    g_mutex_unlock(&events_lock);
    json_object_unref(data);
}

static bool seen(const char *what)
{
    g_mutex_lock(&events_lock);
    bool found = strstr(events->str, what) != NULL;
    g_mutex_unlock(&events_lock);
    return found;
}

static void wait_for(const char *what)
{
    for (int i = 0; i < 3000 && !seen(what); i++) {
        g_usleep(5000);
    }
    if (!seen(what)) {
        g_error("no event %s in:\n%s", what, events->str);
    }
}

static void begin(void)
{
    block_test_begin();
    events = g_string_new(NULL);
    block_job_set_event_func(on_event);
}

static void end(void)
{
    block_test_end();
    g_string_free(events, TRUE);
}

static JsonObject *mirror_args(const char *more)
{
    g_autofree char *text = g_strdup_printf("{'device':'src','target':'dst','sync':'full',"
                                            "'job-id':'j'%s}",
                                            more);
    g_autoptr(GError) err = NULL;

    g_strdelimit(text, "'", '"');
    JsonNode *n = json_from_string(text, &err);
    g_assert_no_error(err);
    JsonObject *o = json_object_ref(json_node_get_object(n));
    json_node_unref(n);
    return o;
}

static void mirror(const char *more)
{
    g_autoptr(JsonObject) args = mirror_args(more);
    g_autoptr(GError) err = NULL;

    block_mirror_start(args, false, &err);
    g_assert_no_error(err);
}

static void command(BlockJobVerb verb)
{
    g_autoptr(GError) err = NULL;

    block_job_command("j", verb, &err);
    g_assert_no_error(err);
}

/* --- Guests --- */

typedef struct Writer {
    GThread *thread;
    uint32_t seed;
    unsigned nr;
    gint *stop;
    uint8_t *mine; /* what its own stripes must hold */
    gint64 slowest;
    unsigned requests;
} Writer;

/* Writes to stripes of its own, of 4 KiB side by side with the others', and to a part that
 * all share. */
static gpointer writer_main(gpointer opaque)
{
    Writer *w = opaque;
    g_autoptr(GRand) r = g_rand_new_with_seed(w->seed);
    g_autofree uint8_t *buf = g_malloc(65536);

    while (!g_atomic_int_get(w->stop)) {
        bool shared = g_rand_int_range(r, 0, 4) == 0;
        BlockOp op = g_rand_int_range(r, 0, 5) ? BLOCK_OP_WRITE : BLOCK_OP_ZEROES;
        uint64_t offset, bytes;

        if (shared) {
            offset = g_rand_int_range(r, 0, 256) * 512;
            bytes = g_rand_int_range(r, 1, 65) * 512;
        } else {
            offset = (64 + g_rand_int_range(r, 0, SIZE / 4096 / WRITERS - 32) * WRITERS +
                      w->nr) * 4096;
            bytes = 4096;
        }
        test_fill(r, buf, bytes);
        gint64 t = g_get_monotonic_time();
        g_assert_cmpint(test_io("src", op, offset, bytes, buf), ==, 0);
        w->slowest = MAX(w->slowest, g_get_monotonic_time() - t);
        w->requests++;
        if (!shared) {
            if (op == BLOCK_OP_ZEROES) {
                memset(buf, 0, bytes);
            }
            memcpy(w->mine + offset, buf, bytes);
        }
    }
    return NULL;
}

static void writers_start(Writer *w, gint *stop, GRand *r)
{
    *stop = 0;
    for (unsigned i = 0; i < WRITERS; i++) {
        w[i].seed = g_rand_int(r);
        w[i].nr = i;
        w[i].stop = stop;
        w[i].mine = w[i].mine ? w[i].mine : g_malloc0(SIZE);
        w[i].thread = g_thread_new("writer", writer_main, &w[i]);
    }
}

static void writers_stop(Writer *w, gint *stop)
{
    g_atomic_int_set(stop, 1);
    for (unsigned i = 0; i < WRITERS; i++) {
        g_thread_join(w[i].thread);
    }
}

static void check_stripes(Writer *w, const uint8_t *disk)
{
    for (unsigned i = 0; i < WRITERS; i++) {
        for (uint64_t at = (64 + i) * 4096; at + 4096 <= SIZE - 65536; at += WRITERS * 4096) {
            g_assert_cmpmem(disk + at, 4096, w[i].mine + at, 4096);
        }
        g_free(w[i].mine);
    }
}

/* The disk's content before the guest starts: data and holes. The stripes are zero. */
static void fill_source(MemDisk *src, GRand *r)
{
    test_fill(r, src->data, 65536);
    test_fill(r, src->data + SIZE - 65536, 65536);
}

static void run_model(const char *mode, bool pivot, GRand *r)
{
    Writer w[WRITERS] = {0};
    gint stop;

    begin();
    MemDisk *src = mem_add("src", SIZE, 2), *dst = mem_add("dst", SIZE, 3);
    g_autofree char *more = g_strdup_printf(
        "%s,'granularity':%u,'buf-size':%u", mode, 4096u << g_rand_int_range(r, 0, 5),
        g_rand_boolean(r) ? 100000 : 0);
    fill_source(src, r);
    memset(dst->data, 0x55, SIZE);
    writers_start(w, &stop, r);
    mirror(more);
    if (strstr(mode, "background")) {
        g_usleep(g_rand_int_range(r, 0, 150000));
        writers_stop(w, &stop);
        wait_for("BLOCK_JOB_READY");
        writers_start(w, &stop, r);
    } else {
        wait_for("BLOCK_JOB_READY");
    }
    g_usleep(g_rand_int_range(r, 0, 60000));
    if (g_rand_boolean(r)) {
        command(BLOCK_JOB_PAUSE);
        g_usleep(g_rand_int_range(r, 0, 30000));
        command(BLOCK_JOB_RESUME);
    }
    if (pivot) {
        command(BLOCK_JOB_COMPLETE);
        wait_for("BLOCK_JOB_COMPLETED\n");
        g_usleep(30000);
        writers_stop(w, &stop);
    } else {
        writers_stop(w, &stop);
        command(BLOCK_JOB_CANCEL);
        wait_for("BLOCK_JOB_COMPLETED\n");
        g_assert_cmpmem(src->data, SIZE, dst->data, SIZE);
    }
    wait_for("null");
    /* Nothing any more goes to both. */
    uint8_t page[4096], last[4096];
    memset(last, 0xa5, sizeof(last));
    memset(pivot ? src->data : dst->data, 0, sizeof(last));
    g_assert_cmpint(test_io("src", BLOCK_OP_WRITE, 0, 4096, last), ==, 0);
    g_assert_cmpint(memcmp(src->data, dst->data, 4096), !=, 0);
    g_assert_cmpint(test_io("src", BLOCK_OP_READ, 0, 4096, page), ==, 0);
    g_assert_cmpmem(page, 4096, last, 4096);
    g_assert_cmpmem(pivot ? dst->data : src->data, 4096, last, 4096);
    g_test_message("%u requests, slowest %.1f ms; %d and %d bytes", w[0].requests,
                   w[0].slowest / 1e3, dst->writes, dst->zeroes);
    check_stripes(w, pivot ? dst->data : src->data);
    end();
}

static void test_model(gconstpointer opaque)
{
    g_autoptr(GRand) r = g_rand_new_with_seed(seed);

    for (int i = 0; i < 5; i++) {
        run_model(opaque, false, r);
    }
}

static void test_pivot(void)
{
    g_autoptr(GRand) r = g_rand_new_with_seed(seed + 1);

    for (int i = 0; i < 5; i++) {
        run_model("", true, r);
    }
}

/* --- Errors --- */

static void run_error(const char *policy, int error, const char *expect, bool ends)
{
    g_autofree char *more = g_strdup_printf(",'on-target-error':'%s'", policy);

    begin();
    g_autoptr(GRand) r = g_rand_new_with_seed(seed);
    MemDisk *src = mem_add("src", SIZE, 0), *dst = mem_add("dst", SIZE, 1);
    test_fill(r, src->data, SIZE);
    dst->fail_writes = ends ? 1000 : 2;
    dst->fail_from = SIZE / 2;
    dst->error = error;
    mirror(more);
    wait_for(expect);
    if (!strcmp(policy, "stop")) {
        g_assert_true(seen("JOB_STATUS_CHANGE:paused"));
        g_autoptr(JsonArray) all = block_job_query_block();
        JsonObject *o = json_array_get_object_element(all, 0);
        g_assert_cmpstr(json_object_get_string_member(o, "io-status"), ==,
                        error == ENOSPC ? "nospace" : "failed");
        while (dst->fail_writes > 0) {
            command(BLOCK_JOB_RESUME);
            g_usleep(50000);
        }
    }
    if (ends) {
        wait_for("BLOCK_JOB_COMPLETED:");
        wait_for("null");
        /* The source is not harmed. */
        g_assert_cmpint(test_io("src", BLOCK_OP_WRITE, 0, 4096, dst->data), ==, 0);
    } else {
        for (int i = 0; i < 100 && !seen("BLOCK_JOB_READY"); i++) {
            g_autoptr(JsonArray) all = block_job_query_block();
            JsonObject *o = json_array_get_object_element(all, 0);
            if (json_object_get_boolean_member(o, "paused")) {
                command(BLOCK_JOB_RESUME);
            }
            g_usleep(20000);
        }
        wait_for("BLOCK_JOB_READY");
        command(BLOCK_JOB_CANCEL);
        wait_for("null");
        g_assert_cmpmem(src->data, SIZE, dst->data, SIZE);
    }
    end();
}

static void test_errors(void)
{
    run_error("report", EIO, "BLOCK_JOB_ERROR:write:report", true);
    run_error("ignore", EIO, "BLOCK_JOB_ERROR:write:ignore", false);
    run_error("stop", EIO, "BLOCK_JOB_ERROR:write:stop", false);
    run_error("enospc", ENOSPC, "BLOCK_JOB_ERROR:write:stop", false);
    run_error("enospc", EIO, "BLOCK_JOB_ERROR:write:report", true);
}

/* A target that fails once the guest's writes go there, too: the guest sees nothing. */
static void test_error_when_ready(void)
{
    uint8_t page[4096] = {7};

    begin();
    MemDisk *dst;
    mem_add("src", SIZE, 0);
    dst = mem_add("dst", SIZE, 0);
    mirror("");
    wait_for("BLOCK_JOB_READY");
    dst->fail_writes = 1;
    g_assert_cmpint(test_io("src", BLOCK_OP_WRITE, 8192, 4096, page), ==, 0);
    wait_for("BLOCK_JOB_ERROR:write:report");
    wait_for("BLOCK_JOB_COMPLETED:Input/output error");
    wait_for("null");
    end();
}

/* A target that stands still: the guest waits for a bounded time, once, and when it moves
 * again both become equal, although the late write then overtakes newer ones. */
static void test_stuck_target(void)
{
    uint8_t page[4096];

    begin();
    MemDisk *src = mem_add("src", SIZE, 0), *dst = mem_add("dst", SIZE, 1);
    mirror("");
    wait_for("BLOCK_JOB_READY");
    dst->stuck = 1;
    gint64 t = g_get_monotonic_time();
    memset(page, 1, sizeof(page));
    g_assert_cmpint(test_io("src", BLOCK_OP_WRITE, 8192, 4096, page), ==, 0);
    gint64 took = g_get_monotonic_time() - t;
    g_assert_cmpint(took, >, 1000000);
    g_assert_cmpint(took, <, 20000000);
    t = g_get_monotonic_time();
    for (int i = 2; i < 20; i++) {
        memset(page, i, sizeof(page));
        g_assert_cmpint(test_io("src", BLOCK_OP_WRITE, 8192, 4096, page), ==, 0);
    }
    g_assert_cmpint(g_get_monotonic_time() - t, <, 9000000); /* each waited: 18 s */
    mem_unstick(dst);
    command(BLOCK_JOB_CANCEL);
    wait_for("BLOCK_JOB_COMPLETED\n");
    g_assert_cmpmem(src->data, SIZE, dst->data, SIZE);
    end();
}

static void test_speed(void)
{
    begin();
    g_autoptr(GRand) r = g_rand_new_with_seed(seed);
    MemDisk *src = mem_add("src", SIZE, 0);
    mem_add("dst", SIZE, 0);
    test_fill(r, src->data, SIZE);
    gint64 t = g_get_monotonic_time();
    mirror(",'speed':8388608");
    gint64 done = 0;
    while (done <= SIZE / 16 && g_get_monotonic_time() - t < 20000000) {
        g_usleep(20000);
        g_autoptr(JsonArray) all = block_job_query_block();
        JsonObject *o = json_array_get_object_element(all, 0);
        done = json_object_get_int_member(o, "offset");
    }
    g_assert_cmpint(done, >, SIZE / 16);
    if (g_get_monotonic_time() - t < 600000) {
        g_assert_cmpint(done, <, SIZE * 3 / 4);
    }
    wait_for("BLOCK_JOB_READY");
    double s = (g_get_monotonic_time() - t) / 1e6;
    g_test_message("%.2f s for one second's worth", s);
    g_assert_cmpfloat(s, >, 0.7);
    g_assert_cmpfloat(s, <, 20);
    end();
}

static void test_holes(void)
{
    begin();
    g_autoptr(GRand) r = g_rand_new_with_seed(seed);
    MemDisk *src = mem_add("src", SIZE, 0), *dst = mem_add("dst", SIZE, 0);
    test_fill(r, src->data + SIZE / 2, 65536);
    memset(dst->data, 0x55, SIZE);
    mirror("");
    wait_for("BLOCK_JOB_READY");
    g_assert_cmpint(dst->writes, <=, 128 * 1024);
    g_assert_cmpmem(src->data, SIZE, dst->data, SIZE);
    end();
}

static void expect_error(const char *more, const char *words)
{
    g_autoptr(JsonObject) args = mirror_args(more);
    g_autoptr(GError) err = NULL;

    g_assert_false(block_mirror_start(args, false, &err));
    if (!strstr(err->message, words)) {
        g_error("no '%s' in '%s'", words, err->message);
    }
}

static void test_refused(void)
{
    g_autoptr(GError) err = NULL;

    begin();
    MemDisk *src = mem_add("src", SIZE, 0);
    memset(src->data, 1, SIZE);
    mem_add("dst", SIZE, 0);
    mem_add("small", SIZE / 2, 0);
    mem_add("other", SIZE, 0);
    expect_error(",'device':'nope'", "nope");
    expect_error(",'target':'nope'", "nope");
    expect_error(",'target':'src'", "itself");
    expect_error(",'granularity':3000", "power of 2");
    expect_error(",'granularity':16", "range");
    expect_error(",'speed':-1", "speed");
    expect_error(",'buf-size':-1", "buf-size");
    expect_error(",'job-id':'1 2'", "Invalid job ID");
    mirror(",'target':'small'");
    wait_for("BLOCK_JOB_COMPLETED:Source and target image have different sizes");
    wait_for("null");
    mirror(",'speed':1000");
    expect_error(",'target':'other','job-id':'k'", "busy");
    g_assert_false(block_job_command("j", BLOCK_JOB_COMPLETE, &err));
    g_assert_nonnull(strstr(err->message, "cannot accept command verb 'complete'"));
    g_assert_false(block_node_del("src", NULL));
    g_assert_false(block_node_del("dst", NULL));
    command(BLOCK_JOB_CANCEL);
    wait_for("BLOCK_JOB_CANCELLED");
    g_assert_true(block_node_del("dst", NULL));
    end();
}

/* The program ends while a job runs. */
static void test_shutdown(void)
{
    begin();
    memset(mem_add("src", SIZE, 1)->data, 1, SIZE);
    mem_add("dst", SIZE, 1);
    mirror(",'speed':100000");
    end();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    seed = g_getenv("COLO_SEED") ? strtoul(g_getenv("COLO_SEED"), NULL, 0)
                                 : g_random_int();
    g_test_message("seed %u", seed);
    g_test_add_data_func("/mirror/model-auto", "", test_model);
    g_test_add_data_func("/mirror/model-background", ",'copy-mode':'background'",
                         test_model);
    g_test_add_data_func("/mirror/model-write-blocking", ",'copy-mode':'write-blocking'",
                         test_model);
    g_test_add_func("/mirror/pivot", test_pivot);
    g_test_add_func("/mirror/errors", test_errors);
    g_test_add_func("/mirror/error-when-ready", test_error_when_ready);
    g_test_add_func("/mirror/stuck-target", test_stuck_target);
    g_test_add_func("/mirror/speed", test_speed);
    g_test_add_func("/mirror/holes", test_holes);
    g_test_add_func("/mirror/refused", test_refused);
    g_test_add_func("/mirror/shutdown", test_shutdown);
    return g_test_run();
}
