/*
 * Names of NBD connections: what a client says of them, and what a server makes of anything.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block/nbd-name.h"

#include <stdbool.h>
#include <string.h>

#define MANY 100 /* more than a context has room for */

static char *heard(const char *context, GStrv *gone)
{
    return nbd_name_heard(context, strlen(context), gone);
}

static void test_what_is_said_is_heard(void)
{
    g_autofree char *context = NULL, *later = NULL;
    g_autofree char *first = nbd_name_new(&context), *second = nbd_name_new(&later);
    g_auto(GStrv) none = NULL;
    g_auto(GStrv) one = NULL;
    g_autofree char *got = heard(context, &none);

    g_assert_cmpstr(first, !=, second);
    g_assert_cmpstr(got, ==, first);
    g_assert_cmpuint(g_strv_length(none), ==, 0);

    nbd_name_gone(first);
    g_autofree char *told = NULL;
    g_autofree char *third = nbd_name_new(&told), *again = heard(told, &one);
    g_assert_cmpstr(again, ==, third);
    g_assert_cmpuint(g_strv_length(one), ==, 1);
    g_assert_cmpstr(one[0], ==, first);
}

/* The newest are told of; the text is one that a server takes (4096 bytes). */
static void test_many_are_gone(void)
{
    g_autofree char *last = NULL, *context = NULL;
    g_auto(GStrv) gone = NULL;

    for (int i = 0; i < MANY; i++) {
        g_autofree char *unused = NULL;
        g_free(last);
        last = nbd_name_new(&unused);
        nbd_name_gone(last);
    }
    g_autofree char *name = nbd_name_new(&context), *got = heard(context, &gone);
    g_assert_cmpstr(got, ==, name);
    g_assert_cmpuint(g_strv_length(gone), <, MANY);
    g_assert_true(g_strv_contains((const char *const *)gone, last));
    g_assert_cmpuint(strlen(context), <=, 4096);
}

static void test_others_give_no_name(void)
{
    static const char *const texts[] = {
        "", "base:allocation", "qemu-colo:connection", "qemu-colo:connection=",
        "qemu-colo:connection=,", "qemu-colo:connection=nodot", "qemu-colo:connection=nodot,1.2",
        "qemu-colo:connection=0123456789012345678901234567890123456789.1",
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_auto(GStrv) gone = NULL;
        g_assert_null(heard(texts[i], &gone));
        g_assert_null(gone);
    }
}

/* Any bytes: a name that is heard fits, and there are not more of the others than may be. */
static void test_noise(void)
{
    static const char head[] = "qemu-colo:connection=", words[] = "0123456789abcdef..,,,%s\xff\n";

    for (int i = 0; i < 20000; i++) {
        char text[512];
        size_t len = g_test_rand_int_range(0, sizeof(text) - sizeof(head));
        g_auto(GStrv) gone = NULL;

        memcpy(text, head, sizeof(head));
        for (size_t k = 0; k < len; k++) {
            text[sizeof(head) - 1 + k] = words[g_test_rand_int_range(0, sizeof(words))];
        }
        g_autofree char *name = nbd_name_heard(text, sizeof(head) - 1 + len, &gone);
        if (!name) {
            g_assert_null(gone);
            continue;
        }
        g_assert_cmpuint(strlen(name), <, NBD_NAME_SIZE);
        g_assert_cmpuint(g_strv_length(gone), <=, MANY);
        for (unsigned k = 0; gone[k]; k++) {
            g_assert_cmpint(strncmp(gone[k], name, strchr(name, '.') - name + 1), ==, 0);
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/nbd-name/what-is-said-is-heard", test_what_is_said_is_heard);
    g_test_add_func("/nbd-name/many-are-gone", test_many_are_gone);
    g_test_add_func("/nbd-name/others-give-no-name", test_others_give_no_name);
    g_test_add_func("/nbd-name/noise", test_noise);
    return g_test_run();
}
