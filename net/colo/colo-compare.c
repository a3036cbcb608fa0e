/*
 * colo-compare: the engine of compare-engine.h as an object with three chardevs.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "net/colo/colo-int.h"
#include "net/net-int.h"

/* --- Helpers shared with the filters --- */

Chardev *colo_claim_chardev(JsonObject *opts, const char *key, const char *what,
                            const ChardevHandlers *h, void *opaque, bool vnet_hdr,
                            GError **errp)
{
    const char *id = options_get_str(opts, key, NULL);

    if (!id) {
        colo_error_set(errp, "%s: parameter '%s' is missing", what, key);
        return NULL;
    }
    Chardev *c = chardev_find(id);
    if (!c) {
        colo_error_set(errp, "%s: %s: socket chardev '%s' not found", what, key, id);
        return NULL;
    }
    if (!chardev_claim(c, h, opaque, vnet_hdr, errp)) {
        g_prefix_error(errp, "%s: %s: ", what, key);
        return NULL;
    }
    return c;
}

JsonNode *colo_string_node(const char *s)
{
    JsonNode *n = json_node_alloc();
    return json_node_init_string(n, s);
}

JsonNode *colo_bool_node(bool b)
{
    JsonNode *n = json_node_alloc();
    return json_node_init_boolean(n, b);
}

JsonNode *colo_int_node(uint64_t v)
{
    JsonNode *n = json_node_alloc();
    return json_node_init_int(n, v);
}

static gboolean timer_dispatch(GSource *s, GSourceFunc fn, gpointer opaque)
{
    g_source_set_ready_time(s, -1);
    net_batch_begin();
    fn(opaque);
    net_batch_end();
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs timer_funcs = {NULL, NULL, timer_dispatch, NULL};

void colo_timer_at(GSource **timer, int64_t at, GSourceFunc fn, void *opaque)
{
    if (!*timer) {
        if (at == INT64_MAX) {
            return;
        }
        *timer = g_source_new(&timer_funcs, sizeof(GSource));
        g_source_set_callback(*timer, fn, opaque, NULL);
        g_source_set_ready_time(*timer, at);
        g_source_attach(*timer, io_thread_context(net_thread()));
        return;
    }
    int64_t ready = at == INT64_MAX ? -1 : at;
    if (g_source_get_ready_time(*timer) != ready) {
        g_source_set_ready_time(*timer, ready);
    }
}

/* --- Engine callbacks --- */

static void compare_release(Frame *f, void *opaque)
{
    ColoCompare *c = opaque;

    if (!chardev_send_take(c->out, f)) {
        c->lost_out++;
    }
}

static void compare_trigger(ProxyTrigger trigger, const char *detail, void *opaque)
{
    proxy_compare_trigger(opaque, trigger, detail);
}

static void compare_isn(const FlowKey *flow, uint32_t pvm, uint32_t svm, void *opaque)
{
    proxy_compare_isn(opaque, flow, pvm, svm);
}

static const CompareOps compare_ops = {
    .release = compare_release, .trigger = compare_trigger, .isn = compare_isn};

/* --- Time --- */

#define LATE (2 * 1000)  /* us: this thread did not get to run when it should have */
#define GRACE (2 * 1000) /* us: for what the twin sent meanwhile and lies in a socket */

static gboolean compare_fire(gpointer opaque)
{
    ColoCompare *c = opaque;
    int64_t now = g_get_monotonic_time();

    if (now - c->due > LATE) {
        c->due = now + GRACE;
        colo_timer_at(&c->timer, c->due, compare_fire, c);
    } else {
        colo_compare_tick(c);
    }
    return G_SOURCE_CONTINUE;
}

void colo_compare_tick(ColoCompare *c)
{
    c->due = compare_engine_tick(c->engine, g_get_monotonic_time());
    colo_timer_at(&c->timer, c->due, compare_fire, c);
}

static void compare_batch_end(void *opaque)
{
    colo_compare_tick(opaque);
}

static void compare_fed(ColoCompare *c)
{
    if (net_batch_active()) {
        net_batch_add(compare_batch_end, c);
    } else {
        colo_compare_tick(c);
    }
}

/* --- Chardevs --- */

static void compare_primary_frame(void *opaque, Frame *f)
{
    ColoCompare *c = opaque;

    compare_engine_primary(c->engine, f, g_get_monotonic_time());
    compare_fed(c);
}

static void compare_secondary_frame(void *opaque, Frame *f)
{
    ColoCompare *c = opaque;

    compare_engine_secondary(c->engine, f, g_get_monotonic_time());
    compare_fed(c);
}

static void compare_secondary_control(void *opaque, const ChardevControl *msg)
{
    proxy_compare_control(opaque, msg);
}

static void compare_secondary_event(void *opaque, bool connected)
{
    proxy_compare_event(opaque, connected);
}

static void compare_out_frame(void *opaque, Frame *f)
{
    frame_unref(f);
}

const ChardevHandlers compare_primary_handlers = {.frame = compare_primary_frame};
static const ChardevHandlers compare_secondary_handlers = {
    .frame = compare_secondary_frame,
    .control = compare_secondary_control,
    .event = compare_secondary_event};
static const ChardevHandlers compare_out_handlers = {.frame = compare_out_frame};

/* --- Object --- */

/* Room singleton, set before any object is made. */
static bool compare_always;

void net_set_compare_always(bool always)
{
    compare_always = always;
}

static const char *const compare_options[] = {
    "qom-type", "id", "primary_in", "secondary_in", "outdev", "iothread", "compare_timeout",
    "expired_scan_cycle", "max_queue_size", "vnet_hdr_support", NULL};

static CompareConfig compare_config(ColoCompare *c)
{
    return (CompareConfig){.compare_timeout_us = c->timeout_ms * 1000,
                           .max_queue_size = c->queue_size};
}

static bool compare_parse(ColoCompare *c, JsonObject *opts, const char *what,
                          GError **errp)
{
    if (json_object_has_member(opts, "notify_dev")) {
        colo_error_set(errp, "%s: 'notify_dev' (Xen's notifications) is not supported",
                       what);
        return false;
    }
    if (!options_check_known(opts, what, compare_options, errp)) {
        return false;
    }
    c->timeout_ms = 3000;
    c->scan_ms = 1000;
    c->queue_size = 1024;
    if (!options_get_uint(opts, "compare_timeout", &c->timeout_ms, 1, UINT32_MAX, errp) ||
        !options_get_uint(opts, "expired_scan_cycle", &c->scan_ms, 1, UINT32_MAX, errp) ||
        !options_get_uint(opts, "max_queue_size", &c->queue_size, 1, UINT32_MAX, errp) ||
        !options_get_bool(opts, "vnet_hdr_support", &c->vnet_hdr, errp)) {
        g_prefix_error(errp, "%s: ", what);
        return false;
    }
    const char *iothread = options_get_str(opts, "iothread", NULL);
    if (!iothread) {
        colo_error_set(errp, "%s needs 'iothread' property set", what);
        return false;
    }
    if (!net_iothread_exists(iothread)) {
        colo_error_set(errp, "%s: iothread '%s' not found; add -object iothread,id=%s "
                             "before it",
                       what, iothread, iothread);
        return false;
    }
    c->iothread = g_strdup(iothread);
    const char *dev[3] = {options_get_str(opts, "primary_in", ""),
                          options_get_str(opts, "secondary_in", ""),
                          options_get_str(opts, "outdev", "")};
    if (g_str_equal(dev[0], dev[1]) || g_str_equal(dev[0], dev[2]) ||
        g_str_equal(dev[1], dev[2])) {
        colo_error_set(errp, "%s: 'primary_in', 'secondary_in' and 'outdev' must be three "
                             "different chardevs",
                       what);
        return false;
    }
    return true;
}

ColoCompare *colo_compare_new(JsonObject *opts, GError **errp)
{
    const char *id = options_get_str(opts, "id", "");
    g_autofree char *what = g_strdup_printf("colo-compare '%s'", id);
    ColoCompare *c = g_new0(ColoCompare, 1);

    c->id = g_strdup(id);
    if (!compare_parse(c, opts, what, errp)) {
        colo_compare_free(c);
        return NULL;
    }
    CompareConfig cfg = compare_config(c);
    c->engine = compare_engine_new(&cfg, &compare_ops, c);
    if (compare_always) {
        compare_engine_set_mode(c->engine, COMPARE_MODE_COMPARE, g_get_monotonic_time());
    }
    if (!(c->out = colo_claim_chardev(opts, "outdev", what, &compare_out_handlers, c,
                                      c->vnet_hdr, errp)) ||
        !(c->primary_in = colo_claim_chardev(opts, "primary_in", what,
                                             &compare_primary_handlers, c, c->vnet_hdr,
                                             errp)) ||
        !(c->secondary_in = colo_claim_chardev(opts, "secondary_in", what,
                                               &compare_secondary_handlers, c,
                                               c->vnet_hdr, errp))) {
        colo_compare_free(c);
        return NULL;
    }
    return c;
}

void colo_compare_free(ColoCompare *c)
{
    if (c->engine && c->out) {
        /* To where the frames would have gone; the gate knows what may leave. */
        compare_engine_flush_all(c->engine, g_get_monotonic_time());
    }
    net_batch_remove(compare_batch_end, c);
    io_source_destroy(&c->timer);
    Chardev *used[] = {c->primary_in, c->secondary_in, c->out};
    for (unsigned i = 0; i < G_N_ELEMENTS(used); i++) {
        if (used[i]) {
            chardev_release(used[i]);
        }
    }
    if (c->engine) {
        compare_engine_free(c->engine);
    }
    g_free(c->iothread);
    g_free(c->id);
    g_free(c);
}

const char *colo_compare_iothread(ColoCompare *c)
{
    return c->iothread;
}

typedef struct CompareNumber {
    const char *name;
    size_t offset;
} CompareNumber;

static const CompareNumber numbers[] = {
    {"compare_timeout", offsetof(ColoCompare, timeout_ms)},
    {"expired_scan_cycle", offsetof(ColoCompare, scan_ms)},
    {"max_queue_size", offsetof(ColoCompare, queue_size)},
};

static uint64_t *find_number(ColoCompare *c, const char *name)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(numbers); i++) {
        if (g_str_equal(name, numbers[i].name)) {
            return (uint64_t *)((char *)c + numbers[i].offset);
        }
    }
    return NULL;
}

JsonNode *colo_compare_get(ColoCompare *c, const char *property)
{
    uint64_t *n = find_number(c, property);

    if (n) {
        return colo_int_node(*n);
    }
    if (g_str_equal(property, "primary_in")) {
        return colo_string_node(chardev_id(c->primary_in));
    }
    if (g_str_equal(property, "secondary_in")) {
        return colo_string_node(chardev_id(c->secondary_in));
    }
    if (g_str_equal(property, "outdev")) {
        return colo_string_node(chardev_id(c->out));
    }
    if (g_str_equal(property, "iothread")) {
        return colo_string_node(c->iothread);
    }
    if (g_str_equal(property, "vnet_hdr_support")) {
        return colo_bool_node(c->vnet_hdr);
    }
    return NULL;
}

bool colo_compare_set(ColoCompare *c, const char *property, JsonNode *value, bool *known,
                      GError **errp)
{
    uint64_t *n = find_number(c, property);

    *known = n != NULL;
    if (!n) {
        return false;
    }
    g_autoptr(JsonObject) o = json_object_new();
    json_object_set_member(o, property, json_node_copy(value));
    if (!options_get_uint(o, property, n, 1, UINT32_MAX, errp)) {
        return false;
    }
    CompareConfig cfg = compare_config(c);
    compare_engine_set_config(c->engine, &cfg);
    return true;
}
