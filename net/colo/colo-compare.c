/*
 * colo-compare: the engine of compare-engine.h as an object with three chardevs.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "net/colo/colo-int.h"
#include "net/net-int.h"

/* --- Helpers shared with the filters --- */

Chardev *colo_claim_chardev(const char *id, const ChardevHandlers *h, void *opaque,
                            bool vnet_hdr, GError **errp)
{
    Chardev *c = chardev_find(id);

    if (!c) {
        g_set_error(errp, COLO_ERROR, COLO_ERROR_DEVICE_NOT_FOUND,
                    "Device '%s' not found", id);
        return NULL;
    }
    return chardev_claim(c, h, opaque, vnet_hdr, errp) ? c : NULL;
}

bool colo_swap_chardev(Chardev **slot, const char *id, const ChardevHandlers *h,
                       void *opaque, bool vnet_hdr, GError **errp)
{
    Chardev *new = NULL;

    if (*slot && g_str_equal(chardev_id(*slot), id)) {
        return true;
    }
    if (*id && !(new = colo_claim_chardev(id, h, opaque, vnet_hdr, errp))) {
        return false;
    }
    if (*slot) {
        chardev_release(*slot);
    }
    *slot = new;
    return true;
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
    ColoCompare *c = opaque;

    if (c->notified) {
        colo_notify_trigger(c);
    } else {
        proxy_compare_trigger(c, trigger, detail);
    }
}

static void compare_isn(const FlowKey *flow, uint32_t pvm, uint32_t svm, void *opaque)
{
    proxy_compare_isn(opaque, flow, pvm, svm);
}

static void compare_malformed(const Frame *f, bool primary, const char *what,
                              void *opaque)
{
    ColoCompare *c = opaque;

    colo_report_limited(&c->malformed_limit,
                        "colo-compare '%s': the %s's guest sent a frame with %s (%u bytes)",
                        c->id, primary ? "primary" : "secondary", what, f->len);
}

static const CompareOps compare_ops = {.release = compare_release,
                                       .trigger = compare_trigger,
                                       .isn = compare_isn,
                                       .malformed = compare_malformed};

/* --- Time --- */

#define LATE (2 * 1000)  /* us: this thread did not get to run when it should have */
#define GRACE (2 * 1000) /* us: for what the twin sent meanwhile and lies in a socket */

static gboolean compare_fire(gpointer opaque);

/* The timer is only ever made earlier: moving it wakes the thread, and while frames match
 * @due moves away with every batch. It then fires too early, once, and looks again. */
static void compare_arm(ColoCompare *c)
{
    if (c->due < c->armed) {
        c->armed = c->due;
        colo_timer_at(&c->timer, c->due, compare_fire, c);
    }
}

static gboolean compare_fire(gpointer opaque)
{
    ColoCompare *c = opaque;
    int64_t now = g_get_monotonic_time();

    c->armed = INT64_MAX;
    if (now < c->due) {
        compare_arm(c);
    } else if (now - c->due > LATE) {
        c->due = now + GRACE;
        compare_arm(c);
    } else {
        colo_compare_tick(c);
    }
    return G_SOURCE_CONTINUE;
}

/* --- Back-pressure --- */

#define OUT_STOP (4u << 20)           /* bytes waiting for the reader of outdev */
#define OUT_MAX (256ull << 20)        /* a commit may release all that was held at once */
#define LOOK_AGAIN (100 * 1000)       /* us, while an input waits */

static bool pause_input(ColoCompare *c, Chardev *in, bool primary)
{
    bool waits = chardev_paused(in);
    uint64_t out = chardev_backlog(c->out);
    bool wait = out > (waits ? 0 : OUT_STOP) ||
                compare_engine_should_wait(c->engine, primary, waits);

    if (wait != waits) {
        colo_trace(net_compare_pause, "%s: %s %s", c->id, primary ? "primary" : "secondary",
                   wait ? "waits" : "goes on");
        chardev_pause(in, wait);
    }
    return wait;
}

/* Nothing is dropped and memory is bounded: who is too far ahead is not read. A joined
 * chardev cannot be paused: there the guest's own port is (proxy-primary.c). */
static bool compare_throttle(ColoCompare *c)
{
    bool waits = false;

    chardev_set_backlog_max(c->out, OUT_MAX);
    if (c->primary_in && !chardev_peer(c->primary_in)) {
        waits |= pause_input(c, c->primary_in, true);
    }
    waits |= proxy_throttle_output(c);
    if (c->secondary_in && !chardev_peer(c->secondary_in)) {
        waits |= pause_input(c, c->secondary_in, false);
    }
    return waits;
}

void colo_compare_tick(ColoCompare *c)
{
    int64_t now = g_get_monotonic_time();

    c->due = compare_engine_tick(c->engine, now);
    if (c->out && compare_throttle(c)) {
        c->due = MIN(c->due, now + LOOK_AGAIN);
    }
    compare_arm(c);
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

static void compare_primary_plain(Frame *f, void *opaque)
{
    compare_engine_primary(((ColoCompare *)opaque)->engine, f, net_now());
}

static void compare_secondary_plain(Frame *f, void *opaque)
{
    compare_engine_secondary(((ColoCompare *)opaque)->engine, f, net_now());
}

static void compare_primary_frame(void *opaque, Frame *f)
{
    ColoCompare *c = opaque;

    vnet_make_plain(f, compare_primary_plain, c, &c->vnet);
    compare_fed(c);
}

static void compare_secondary_frame(void *opaque, Frame *f)
{
    ColoCompare *c = opaque;

    vnet_make_plain(f, compare_secondary_plain, c, &c->vnet);
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
static void compare_out_event(void *opaque, bool connected)
{
    compare_fed(opaque);
}

static void compare_out_drained(void *opaque)
{
    compare_fed(opaque);
}

static const ChardevHandlers compare_out_handlers = {.frame = compare_out_frame,
                                                     .event = compare_out_event,
                                                     .drained = compare_out_drained};

/* --- Object --- */

/* Room singleton, set before any object is made. */
static bool compare_always;

void net_set_compare_always(bool always)
{
    compare_always = always;
}

const NetProperty colo_compare_properties[] = {
    {"primary_in", "string", NET_PROPERTY_STRING, .required = true},
    {"secondary_in", "string", NET_PROPERTY_STRING, .required = true},
    {"outdev", "string", NET_PROPERTY_STRING, .required = true},
    {"iothread", "link<iothread>", NET_PROPERTY_STRING, .required = true},
    {"notify_dev", "string", NET_PROPERTY_STRING},
    {"compare_timeout", "uint64", NET_PROPERTY_UINT, .positive = true},
    {"expired_scan_cycle", "uint32", NET_PROPERTY_UINT, .positive = true},
    {"max_queue_size", "uint32", NET_PROPERTY_UINT, .positive = true},
    {"vnet_hdr_support", "bool", NET_PROPERTY_BOOL},
    {NULL},
};

static CompareConfig compare_config(ColoCompare *c)
{
    return (CompareConfig){.compare_timeout_us = c->timeout_ms * 1000,
                           .max_queue_size = c->queue_size};
}

/* The chardevs must be different ones; notify_dev may be none (""). */
static bool check_devices(const char *const dev[4], GError **errp)
{
    for (unsigned i = 0; i < 4; i++) {
        for (unsigned k = 0; k < i; k++) {
            if (*dev[i] && g_str_equal(dev[i], dev[k])) {
                colo_error_set(errp, "primary_in, secondary_in, outdev and notify_dev of "
                                     "colo compare can not be the same chardev");
                return false;
            }
        }
    }
    return true;
}

static bool compare_parse(ColoCompare *c, JsonObject *opts, GError **errp)
{
    static const NetProperty *const tables[] = {colo_compare_properties, NULL};

    c->timeout_ms = 3000;
    c->scan_ms = 1000;
    c->queue_size = 1024;
    if (!net_properties_check(tables, "colo-compare", opts, false, errp) ||
        !options_get_uint(opts, "compare_timeout", &c->timeout_ms, 1, UINT32_MAX, errp) ||
        !options_get_uint(opts, "expired_scan_cycle", &c->scan_ms, 1, UINT32_MAX, errp) ||
        !options_get_uint(opts, "max_queue_size", &c->queue_size, 1, UINT32_MAX, errp) ||
        !options_get_bool(opts, "vnet_hdr_support", &c->vnet_hdr, errp)) {
        return false;
    }
    c->iothread = g_strdup(net_iothread_find(options_get_str(opts, "iothread", ""), errp));
    if (!c->iothread) {
        return false;
    }
    const char *const dev[4] = {
        options_get_str(opts, "primary_in", ""), options_get_str(opts, "secondary_in", ""),
        options_get_str(opts, "outdev", ""), options_get_str(opts, "notify_dev", "")};
    return check_devices(dev, errp);
}

typedef struct CompareDevice {
    const char *name;
    size_t offset;
    const ChardevHandlers *handlers;
} CompareDevice;

/* Output first: what comes in may leave at once. */
static const CompareDevice devices[] = {
    {"outdev", offsetof(ColoCompare, out), &compare_out_handlers},
    {"notify_dev", offsetof(ColoCompare, notify), &compare_notify_handlers},
    {"primary_in", offsetof(ColoCompare, primary_in), &compare_primary_handlers},
    {"secondary_in", offsetof(ColoCompare, secondary_in), &compare_secondary_handlers},
};

static Chardev **device_slot(ColoCompare *c, const CompareDevice *d)
{
    return (Chardev **)((char *)c + d->offset);
}

ColoCompare *colo_compare_new(JsonObject *opts, GError **errp)
{
    ColoCompare *c = g_new0(ColoCompare, 1);

    c->id = g_strdup(options_get_str(opts, "id", ""));
    if (!compare_parse(c, opts, errp)) {
        colo_compare_free(c);
        return NULL;
    }
    CompareConfig cfg = compare_config(c);
    c->due = c->armed = INT64_MAX;
    c->engine = compare_engine_new(&cfg, &compare_ops, c);
    if (compare_always) {
        compare_engine_set_mode(c->engine, COMPARE_MODE_COMPARE, g_get_monotonic_time());
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(devices); i++) {
        const CompareDevice *d = &devices[i];
        if (!colo_swap_chardev(device_slot(c, d), options_get_str(opts, d->name, ""),
                               d->handlers, c, c->vnet_hdr, errp)) {
            colo_compare_free(c);
            return NULL;
        }
    }
    colo_notify_start(c);
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
    for (unsigned i = 0; i < G_N_ELEMENTS(devices); i++) {
        Chardev *used = *device_slot(c, &devices[i]);
        if (used) {
            chardev_release(used);
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

static const CompareDevice *find_device(const char *name)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(devices); i++) {
        if (g_str_equal(name, devices[i].name)) {
            return &devices[i];
        }
    }
    return NULL;
}

JsonNode *colo_compare_get(ColoCompare *c, const char *property)
{
    uint64_t *n = find_number(c, property);
    const CompareDevice *d = find_device(property);

    if (n) {
        return colo_int_node(*n);
    }
    if (d) {
        Chardev *used = *device_slot(c, d);
        return colo_string_node(used ? chardev_id(used) : "");
    }
    if (g_str_equal(property, "iothread")) {
        g_autofree char *path = g_strdup_printf("/objects/%s", c->iothread);
        return colo_string_node(path);
    }
    return colo_bool_node(c->vnet_hdr);
}

static bool set_device(ColoCompare *c, const CompareDevice *d, const char *id,
                       GError **errp)
{
    const char *dev[4];

    for (unsigned i = 0; i < G_N_ELEMENTS(devices); i++) {
        Chardev *used = *device_slot(c, &devices[i]);
        dev[i] = d == &devices[i] ? id : used ? chardev_id(used) : "";
    }
    if (!*id && d->handlers != &compare_notify_handlers) {
        colo_error_set(errp, "Parameter '%s' is missing", d->name);
        return false;
    }
    if (!check_devices(dev, errp) ||
        !colo_swap_chardev(device_slot(c, d), id, d->handlers, c, c->vnet_hdr, errp)) {
        return false;
    }
    if (d->handlers == &compare_notify_handlers) {
        colo_notify_start(c);
    }
    return true;
}

bool colo_compare_set(ColoCompare *c, const char *property, JsonNode *value, GError **errp)
{
    uint64_t *n = find_number(c, property);
    const CompareDevice *d = find_device(property);

    if (n) {
        *n = json_node_get_int(value);
        CompareConfig cfg = compare_config(c);
        compare_engine_set_config(c->engine, &cfg);
        colo_compare_tick(c);
        return true;
    }
    if (g_str_equal(property, "iothread")) {
        const char *id = net_iothread_find(json_node_get_string(value), errp);
        if (id) {
            char *copy = g_strdup(id);
            g_free(c->iothread);
            c->iothread = copy;
        }
        return id != NULL;
    }
    if (proxy_compares(c)) {
        colo_error_set(errp, "colo-compare '%s' is in use by COLO: '%s' stays as it is "
                             "until protection has ended",
                       c->id, property);
        return false;
    }
    if (d) {
        return set_device(c, d, json_node_get_string(value), errp);
    }
    c->vnet_hdr = json_node_get_boolean(value);
    for (unsigned i = 0; i < G_N_ELEMENTS(devices); i++) {
        chardev_set_vnet_hdr(*device_slot(c, &devices[i]), c->vnet_hdr);
    }
    return true;
}
