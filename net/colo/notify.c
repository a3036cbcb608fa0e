/*
 * notify_dev of colo-compare: somebody else (Xen's toolstack) makes the checkpoints.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * With a notify_dev the comparison runs from the start, whatever this process does. Four
 * messages, each a text without a terminator in the framing of chardevs:
 *
 *   COLO_USERSPACE_PROXY_INIT  to us    are you there?
 *   COLO_COMPARE_GET_XEN_INIT  from us  yes
 *   DO_CHECKPOINT              from us  the two guests differ, or one is silent
 *   COLO_CHECKPOINT            to us    both guests are equal now: what was held may leave
 *
 * As in QEMU, what we send has no vnet header length even with vnet_hdr_support; what we
 * receive has. The engine repeats a wish each 100 ms until COLO_CHECKPOINT comes; a new
 * connection is told of it at once.
 */
#include <string.h>

#include "net/colo/colo-int.h"
#include "net/net-int.h"

static void say(ColoCompare *c, const char *text)
{
    colo_trace(proxy_notify, "'%s' says %s", c->id, text);
    chardev_send_text(c->notify, text);
}

void colo_notify_trigger(ColoCompare *c)
{
    c->wished = true;
    say(c, "DO_CHECKPOINT");
}

static void checkpoint_done(ColoCompare *c)
{
    int64_t now = g_get_monotonic_time();

    c->wished = false;
    c->notify_epoch++;
    compare_engine_cut(c->engine, c->notify_epoch);
    compare_engine_commit(c->engine, c->notify_epoch, now);
    compare_engine_secondary_marker(c->engine, c->notify_epoch);
    compare_engine_loaded(c->engine, c->notify_epoch, now);
    colo_compare_tick(c);
}

static bool is_text(const Frame *f, const char *text)
{
    return f->len == strlen(text) && memcmp(f->data, text, f->len) == 0;
}

static void notify_frame(void *opaque, Frame *f)
{
    ColoCompare *c = opaque;

    if (is_text(f, "COLO_USERSPACE_PROXY_INIT")) {
        say(c, "COLO_COMPARE_GET_XEN_INIT");
    } else if (is_text(f, "COLO_CHECKPOINT")) {
        checkpoint_done(c);
    } else {
        g_autofree char *text = g_strndup((const char *)f->data, MIN(f->len, 40));
        g_autofree char *shown = g_strescape(text, NULL);
        c->notify_unknown++;
        colo_report_limited(&c->notify_limit,
                            "colo-compare '%s': notify_dev '%s' sent an unknown message "
                            "'%s' (%u bytes); ignored",
                            c->id, chardev_id(c->notify), shown, f->len);
    }
    frame_unref(f);
}

static void notify_event(void *opaque, bool connected)
{
    ColoCompare *c = opaque;

    if (connected && c->wished) {
        say(c, "DO_CHECKPOINT");
    }
}

const ChardevHandlers compare_notify_handlers = {.frame = notify_frame,
                                                 .event = notify_event};

void colo_notify_start(ColoCompare *c)
{
    int64_t now = g_get_monotonic_time();

    if (c->notify) {
        compare_engine_set_mode(c->engine, COMPARE_MODE_COMPARE, now);
        compare_engine_loaded(c->engine, c->notify_epoch, now);
    } else if (c->notified) {
        c->wished = false;
        compare_engine_set_mode(c->engine, COMPARE_MODE_PASS, now);
    }
    c->notified = c->notify != NULL;
}
