/*
 * The checkpoint connection against a real emulator.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Needs qemu-system-x86_64; skipped without it.
 */
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "freeze.h"
#include "migration/child-qmp.h"

#define PATIENCE_MS 30000

static pid_t emulator;

static ChildQmp *start(void)
{
    g_autofree char *path = g_find_program_in_path("qemu-system-x86_64");
    g_autoptr(GError) err = NULL;
    int sv[2];

    if (!path) {
        g_test_skip("no qemu-system-x86_64");
        return NULL;
    }
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    g_autofree char *chardev = g_strdup_printf("socket,id=q,fd=%d", sv[1]);
    emulator = fork();
    if (emulator == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(sv[0]);
        execl(path, path, "-machine", "none", "-nodefaults", "-display", "none", "-chardev",
              chardev, "-mon", "chardev=q,mode=control", NULL);
        _exit(127);
    }
    close(sv[1]);
    ChildQmp *q = child_qmp_new(sv[0], &err);
    g_assert_no_error(err);
    return q;
}

static void stop(ChildQmp *q)
{
    child_qmp_free(q);
    kill(emulator, SIGKILL);
    waitpid(emulator, NULL, 0);
}

static const char name[] = "{\"execute\":\"query-name\",\"id\":\"x\"}\n";
static const char wrong[] = "{\"execute\":\"no-such\",\"id\":\"x\"}\n";

static void test_error(void)
{
    ChildQmp *q = start();
    g_autoptr(GError) err = NULL;

    if (!q) {
        return;
    }
    g_assert_true(child_qmp_send(q, wrong, NULL));
    g_assert_false(child_qmp_wait(q, "x", PATIENCE_MS, &err));
    g_assert_nonnull(strstr(err->message, "no-such has not been found"));
    g_assert_true(child_qmp_send(q, name, NULL));
    g_assert_true(child_qmp_wait(q, "x", PATIENCE_MS, NULL));
    stop(q);
}

/* The emulator hangs: the wait ends. What it answers later is not for the next command. */
static void test_late_answer(void)
{
    ChildQmp *q = start();
    g_autoptr(GError) err = NULL;

    if (!q) {
        return;
    }
    for (int i = 0; i < 3; i++) {
        freeze(emulator);
        g_assert_true(child_qmp_send(q, name, NULL));
        g_assert_false(child_qmp_wait(q, "x", 20, &err));
        g_clear_error(&err);
        kill(emulator, SIGCONT);
        g_assert_true(child_qmp_send(q, wrong, NULL));
        g_assert_false(child_qmp_wait(q, "x", PATIENCE_MS, &err));
        g_assert_nonnull(strstr(err->message, "no-such has not been found"));
        g_clear_error(&err);
    }
    stop(q);
}

/* Two in one write, and only the first is waited for. */
static void test_unread_answer(void)
{
    ChildQmp *q = start();
    g_autoptr(GError) err = NULL;

    if (!q) {
        return;
    }
    g_assert_true(child_qmp_send(q, "{\"execute\":\"query-name\",\"id\":\"a\"}\n"
                                    "{\"execute\":\"no-such\",\"id\":\"x\"}\n", NULL));
    g_assert_true(child_qmp_wait(q, "a", PATIENCE_MS, NULL));
    g_assert_true(child_qmp_send(q, name, NULL));
    g_assert_true(child_qmp_wait(q, "x", PATIENCE_MS, &err));
    stop(q);
}

/* An id inside of arguments or of an answer is no command's. */
static void test_id_in_arguments(void)
{
    static const char add[] =
        "{\"execute\":\"object-add\",\"arguments\":{\"qom-type\":\"iothread\",\"id\":\"x\"},"
        "\"id\":\"add\"}\n";
    ChildQmp *q = start();
    g_autoptr(GError) err = NULL;

    if (!q) {
        return;
    }
    g_assert_true(child_qmp_send(q, add, NULL));
    g_assert_true(child_qmp_wait(q, "add", PATIENCE_MS, NULL));
    g_assert_true(child_qmp_send(q, "{\"execute\":\"query-iothreads\",\"id\":\"list\"}\n"
                                    "{\"execute\":\"no-such\",\"id\":\"x\"}\n", NULL));
    g_assert_false(child_qmp_wait(q, "x", PATIENCE_MS, &err));
    g_assert_nonnull(strstr(err->message, "no-such has not been found"));
    stop(q);
}

/* A held command is obeyed when it is let go, and not before. */
static void test_held(void)
{
    ChildQmp *q = start();

    if (!q) {
        return;
    }
    g_assert_true(child_qmp_hold(q, name, NULL));
    g_assert_true(child_qmp_holds(q, "x"));
    g_assert_false(child_qmp_holds(q, "y"));
    g_assert_false(child_qmp_wait(q, "x", 50, NULL));
    g_assert_true(child_qmp_ready(q, name, "x", NULL)); /* is held already */
    g_assert_true(child_qmp_go(q, "x", NULL));
    g_assert_false(child_qmp_holds(q, "x"));
    g_assert_true(child_qmp_wait(q, "x", PATIENCE_MS, NULL));
    stop(q);
}

/* A held command that another overtakes is never obeyed, and its error is nobody else's. */
static void test_held_is_overtaken(void)
{
    ChildQmp *q = start();
    g_autoptr(GError) err = NULL;

    if (!q) {
        return;
    }
    g_assert_true(child_qmp_hold(q, "{\"execute\":\"quit\",\"id\":\"x\"}\n", NULL));
    for (int i = 0; i < 3; i++) {
        g_assert_true(child_qmp_send(q, name, NULL));
        g_assert_false(child_qmp_holds(q, "x"));
        g_assert_true(child_qmp_wait(q, "x", PATIENCE_MS, &err));
        g_assert_no_error(err);
        g_assert_true(child_qmp_hold(q, "{\"execute\":\"quit\",\"id\":\"x\"}\n", NULL));
    }
    g_assert_true(child_qmp_hold(q, wrong, NULL));
    g_assert_true(child_qmp_go(q, "x", NULL));
    g_assert_false(child_qmp_wait(q, "x", PATIENCE_MS, &err));
    g_assert_nonnull(strstr(err->message, "no-such has not been found"));
    g_assert_false(child_qmp_ended(q));
    stop(q);
}

/* An event ends a wait for an answer that is not lost by it. */
static void test_event_before_answer(void)
{
    ChildQmp *q = start();

    if (!q) {
        return;
    }
    g_assert_true(child_qmp_send(q, "{\"execute\":\"cont\",\"id\":\"c\"}\n", NULL));
    g_assert_true(child_qmp_wait(q, "c", PATIENCE_MS, NULL));
    g_assert_true(child_qmp_hold(q, "{\"execute\":\"stop\",\"id\":\"s\"}\n", NULL));
    child_qmp_drain(q);
    g_assert_true(child_qmp_go(q, "s", NULL));
    g_assert_cmpint(child_qmp_wait_either(q, "s", "STOP", PATIENCE_MS, NULL), ==, 0);
    g_assert_true(child_qmp_wait(q, "s", PATIENCE_MS, NULL));
    /* It stands already: no event. */
    g_assert_true(child_qmp_send(q, "{\"execute\":\"stop\",\"id\":\"s\"}\n", NULL));
    g_assert_cmpint(child_qmp_wait_either(q, "s", "STOP", PATIENCE_MS, NULL), ==, 1);
    stop(q);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/child-qmp/error", test_error);
    g_test_add_func("/child-qmp/late-answer", test_late_answer);
    g_test_add_func("/child-qmp/unread-answer", test_unread_answer);
    g_test_add_func("/child-qmp/id-in-arguments", test_id_in_arguments);
    g_test_add_func("/child-qmp/held", test_held);
    g_test_add_func("/child-qmp/held-is-overtaken", test_held_is_overtaken);
    g_test_add_func("/child-qmp/event-before-answer", test_event_before_answer);
    return g_test_run();
}
