/*
 * Option text as JSON objects.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Sources: test-options.c. Dependencies: util.
 */
#include <string.h>

#include "util/options.h"

static JsonObject *parse(const char *text, const char *implied)
{
    g_autoptr(GError) err = NULL;
    JsonObject *o = options_parse(text, implied, &err);

    g_assert_no_error(err);
    g_assert_nonnull(o);
    return o;
}

static void test_keyval(void)
{
    g_autoptr(JsonObject) o =
        parse("quorum,read-pattern=fifo,children.0.file.filename=/a,,b,children.0.driver="
              "qcow2,flag,empty=,nowait",
              "driver");
    JsonObject *child = options_get_obj(options_get_obj(o, "children"), "0");

    g_assert_cmpstr(options_get_str(o, "driver", NULL), ==, "quorum");
    g_assert_cmpstr(options_get_str(o, "read-pattern", NULL), ==, "fifo");
    g_assert_cmpstr(options_get_str(child, "driver", NULL), ==, "qcow2");
    g_assert_cmpstr(options_get_str(options_get_obj(child, "file"), "filename", NULL), ==,
                    "/a,b");
    g_assert_cmpstr(options_get_str(o, "flag", NULL), ==, "on");
    g_assert_cmpstr(options_get_str(o, "empty", NULL), ==, "");
    g_assert_cmpstr(options_get_str(o, "nowait", NULL), ==, "on");
    g_assert_cmpstr(options_get_str(o, "absent", "d"), ==, "d");
}

static void test_implied(void)
{
    /* A first item with "=" is no implied value, and a later bare one neither. */
    g_autoptr(JsonObject) a = parse("id=x,socket", "backend");
    g_autoptr(JsonObject) b = parse("tap,,x,id=n", "type");
    g_autoptr(JsonObject) c = parse("", "type");

    g_assert_false(json_object_has_member(a, "backend"));
    g_assert_cmpstr(options_get_str(a, "socket", NULL), ==, "on");
    g_assert_cmpstr(options_get_str(b, "type", NULL), ==, "tap,x");
    g_assert_cmpint(json_object_get_size(c), ==, 0);
}

static void test_json(void)
{
    g_autoptr(JsonObject) o = parse("{\"a\":{\"b\":1},\"c\":true,\"d\":\"5k\"}", NULL);
    uint64_t n = 0;
    bool flag = false;

    g_assert_true(options_get_uint(options_get_obj(o, "a"), "b", &n, 0, 9, NULL));
    g_assert_cmpint(n, ==, 1);
    g_assert_true(options_get_bool(o, "c", &flag, NULL));
    g_assert_true(flag);
    g_assert_true(options_get_size(o, "d", 1, &n, NULL));
    g_assert_cmpint(n, ==, 5120);
}

static void test_bad(void)
{
    static const char *const bad[] = {"=x", "a..b=1", ".a=1", "a=1,a.b=2", "{", "{\"a\":}",
                                      "a=1,,=2,=3"};

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) err = NULL;
        g_autoptr(JsonObject) o = options_parse(bad[i], NULL, &err);
        if (o) {
            g_test_message("accepted: %s", bad[i]);
            g_test_fail();
        }
    }
}

static void test_typed(void)
{
    g_autoptr(JsonObject) o =
        parse("on=yes,off=n,b=maybe,n=12,big=99999999999999999999,neg=-1,s=1.5G,m=512,x=4q",
              NULL);
    bool flag = false;
    uint64_t n = 7;
    g_autoptr(GError) err = NULL;

    g_assert_true(options_get_bool(o, "on", &flag, NULL) && flag);
    g_assert_true(options_get_bool(o, "off", &flag, NULL) && !flag);
    g_assert_true(options_get_bool(o, "absent", &flag, NULL));
    g_assert_false(options_get_bool(o, "b", &flag, &err));
    g_assert_nonnull(strstr(err->message, "'b'"));
    g_assert_nonnull(strstr(err->message, "maybe"));
    g_assert_true(options_get_uint(o, "n", &n, 0, 12, NULL) && n == 12);
    g_assert_false(options_get_uint(o, "n", &n, 0, 11, NULL));
    g_assert_false(options_get_uint(o, "n", &n, 13, 20, NULL));
    g_assert_false(options_get_uint(o, "big", &n, 0, G_MAXUINT64, NULL));
    g_assert_false(options_get_uint(o, "neg", &n, 0, G_MAXUINT64, NULL));
    g_assert_true(options_get_size(o, "s", 1, &n, NULL) && n == 3ULL << 29);
    g_assert_true(options_get_size(o, "m", 1 << 20, &n, NULL) && n == 512 << 20);
    g_assert_false(options_get_size(o, "x", 1, &n, NULL));
    g_assert_false(options_get_size(o, "neg", 1, &n, NULL));
}

static void test_known(void)
{
    static const char *const known[] = {"id", "netdev", NULL};
    g_autoptr(JsonObject) good = parse("id=x,netdev=y", NULL);
    g_autoptr(JsonObject) wrong = parse("id=x,frob=y", NULL);
    g_autoptr(GError) err = NULL;

    g_assert_true(options_check_known(good, "filter 'x'", known, NULL));
    g_assert_false(options_check_known(wrong, "filter 'x'", known, &err));
    g_assert_nonnull(strstr(err->message, "filter 'x'"));
    g_assert_nonnull(strstr(err->message, "frob"));
}

static void test_format(void)
{
    static const char *const texts[] = {
        "quorum,vote-threshold=1,children.0.file.filename=/a,,b,children.0.driver=raw",
        "raw,file.filename=x", "nbd,server.path=/tmp/a b"};

    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autoptr(JsonObject) o = parse(texts[i], "driver");
        g_autofree char *out = options_format(o, "driver");
        g_assert_cmpstr(out, ==, texts[i]);
        g_autoptr(JsonObject) copy = options_copy(o);
        json_object_set_string_member(o, "driver", "changed");
        g_autofree char *again = options_format(copy, "driver");
        g_assert_cmpstr(again, ==, texts[i]);
    }
    g_autoptr(JsonObject) list = parse("{\"a\":[{\"b\":1},true]}", NULL);
    g_autofree char *flat = options_format(list, NULL);
    g_assert_cmpstr(flat, ==, "a.0.b=1,a.1=on");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/options/keyval", test_keyval);
    g_test_add_func("/options/implied", test_implied);
    g_test_add_func("/options/json", test_json);
    g_test_add_func("/options/bad", test_bad);
    g_test_add_func("/options/typed", test_typed);
    g_test_add_func("/options/known", test_known);
    g_test_add_func("/options/format", test_format);
    return g_test_run();
}
