/*
 * The schema's tables and the check of arguments against them.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Sources: test-qapi.c and qapi_commands_c (the generated table). Dependencies: qapi,
 * monitor_core (for JSON text).
 */
#include <string.h>

#include "monitor/json-text.h"
#include "qapi-commands.h"
#include "qapi-events.h"

/* Handlers are not under test here. */
#define STUB(n)                                                                          \
    QmpResult qmp_##n(QmpRequest *req, JsonObject *args, JsonNode **ret, GError **errp)  \
    {                                                                                    \
        return QMP_PASS;                                                                 \
    }
QAPI_COMMANDS(STUB)

static const QmpCommandInfo *find(const char *name)
{
    for (const QmpCommandInfo *c = qapi_commands; c->name; c++) {
        if (strcmp(c->name, name) == 0) {
            return c;
        }
    }
    return NULL;
}

/* What stock QEMU 7.2 says to the same arguments, or NULL where it finds no fault. */
static const struct {
    const char *command, *args, *error;
} cases[] = {
    {"migrate", "{}", "Parameter 'uri' is missing"},
    {"migrate", "{'uri':5}", "Invalid parameter type for 'uri', expected: string"},
    {"migrate", "{'uri':'x','foo':1}", "Parameter 'foo' is unexpected"},
    {"migrate", "{'uri':'x','blk':1}", "Invalid parameter type for 'blk', expected: boolean"},
    {"migrate", "{'uri':'x','detach':true}", NULL},
    {"migrate-set-capabilities", "{'capabilities':[{'capability':'x-colo','state':1}]}",
     "Invalid parameter type for 'capabilities[0].state', expected: boolean"},
    {"migrate-set-capabilities", "{'capabilities':[{'capability':'x-colo'}]}",
     "Parameter 'capabilities[0].state' is missing"},
    {"migrate-set-capabilities", "{'capabilities':{}}",
     "Invalid parameter type for 'capabilities', expected: array"},
    {"migrate-set-capabilities", "{'capabilities':[1]}",
     "Invalid parameter type for 'capabilities[0]', expected: object"},
    {"migrate-set-capabilities",
     "{'capabilities':[{'capability':'x-colo','state':true,'x':1}]}",
     "Parameter 'capabilities[0].x' is unexpected"},
    {"migrate-set-capabilities",
     "{'capabilities':[{'capability':'x-colo','state':true}]}", NULL},
    {"migrate-set-parameters", "{'x-checkpoint-delay':2000}", NULL},
    {"migrate-set-parameters", "{'max-bandwidth':1}", NULL},
    {"migrate-set-parameters", "{'x-checkpoint-delay':4294967295}", NULL},
    {"migrate-set-parameters", "{'x-checkpoint-delay':4294967296}",
     "Parameter 'x-checkpoint-delay' expects uint32_t"},
    {"migrate-set-parameters", "{'x-checkpoint-delay':-1}",
     "Parameter 'x-checkpoint-delay' expects uint32_t"},
    {"migrate-set-parameters", "{'x-checkpoint-delay':1e3}",
     "Parameter 'x-checkpoint-delay' expects uint64"},
    {"nbd-server-add", "{'device':'parent0','writable':true}", NULL},
    {"nbd-server-start", "{'addr':{'type':'inet','data':{'host':'0','port':'9'}}}", NULL},
    {"nbd-server-start", "{'addr':{}}", "Parameter 'addr.type' is missing"},
    {"object-add", "{}", "Parameter 'qom-type' is missing"},
    {"object-add", "{'qom-type':'filter-mirror','id':'m0','outdev':'o'}", NULL},
    {"qom-set", "{'path':'m0','property':'status','value':[null]}", NULL},
    {"x-colo-lost-heartbeat", "{}", NULL},
    {"x-colo-lost-heartbeat", "{'a':1}", "Parameter 'a' is unexpected"},
};

static void test_arguments(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        const QmpCommandInfo *info = find(cases[i].command);
        g_autoptr(JsonNode) node = NULL;
        g_autoptr(GError) err = NULL;
        JsonSpan span = {cases[i].args, strlen(cases[i].args)};

        g_assert_nonnull(info);
        g_assert_true(json_text_parse(span, &node, NULL));
        bool ok = qapi_check_args(info->args, json_node_get_object(node), &err);
        g_assert_cmpstr(err ? err->message : NULL, ==, cases[i].error);
        g_assert_true(ok == !cases[i].error);
    }
}

static void test_table(void)
{
    const char *last = "";

    for (const QmpCommandInfo *c = qapi_commands; c->name; c++) {
        g_assert_cmpstr(last, <, c->name); /* each once */
        g_assert_nonnull(c->handler);
        g_assert_cmpint(c->args->kind, ==, QAPI_STRUCT);
        last = c->name;
    }
    g_assert_true(find("x-colo-lost-heartbeat")->allow_oob);
    g_assert_false(find("migrate")->allow_oob);
    g_assert_cmpstr(QAPI_EVENT_COLO_EXIT, ==, "COLO_EXIT");
}

static void test_numbers(void)
{
    static const struct {
        const char *text;
        bool is_int;
        gint64 value;
    } numbers[] = {
        {"9223372036854775807", true, G_MAXINT64},
        {"-9223372036854775808", true, G_MININT64},
        {"9223372036854775808", false, 0}, /* a double, so never a wrong integer */
        {"0", true, 0},
        {"-0", true, 0},
        {"1.0", false, 0},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(numbers); i++) {
        g_autoptr(JsonNode) node = NULL;
        JsonSpan span = {numbers[i].text, strlen(numbers[i].text)};
        g_assert_true(json_text_parse(span, &node, NULL));
        bool is_int = json_node_get_value_type(node) == G_TYPE_INT64;
        g_assert_true(is_int == numbers[i].is_int);
        if (is_int) {
            g_assert_cmpint(json_node_get_int(node), ==, numbers[i].value);
        }
    }
}

static void test_bad_json(void)
{
    static const char *const bad[] = {"{'a':1,'a':2}", "{'a':01}", "{'a':1.}", "[1,]",
                                      "'\\u0000'",     "'\\x'",    "nul",      "1 2",
                                      "'\xef\xbf\xbf'", "'\xc0\x80'", ""};

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) err = NULL;
        g_assert_false(json_text_parse((JsonSpan){bad[i], strlen(bad[i])}, NULL, &err));
        g_assert_nonnull(err);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qapi/arguments", test_arguments);
    g_test_add_func("/qapi/table", test_table);
    g_test_add_func("/qapi/numbers", test_numbers);
    g_test_add_func("/qapi/bad-json", test_bad_json);
    return g_test_run();
}
