/*
 * coloctl run: the pair port, asked, and answered while no qemu-colo does.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "coloctl-net.h"
#include "coloctl-run.h"
#include "monitor/json-text.h"
#include "util/error.h"

#define LINE_BYTES_MAX 32768

static void copy(char *to, size_t size, JsonObject *o, const char *key)
{
    g_autofree char *clean = ctl_clean(ctl_str(o, key, ""), size - 1);

    g_strlcpy(to, clean, size);
}

void peer_parse(const char *line, const char *name, PeerView *v)
{
    JsonSpan span = {line, strlen(line)};
    g_autoptr(JsonNode) node = NULL;

    *v = (PeerView){.last = LAST_MAX};
    if (!json_text_parse(span, &node, NULL) || !JSON_NODE_HOLDS_OBJECT(node)) {
        g_strlcpy(v->why, "what answers at the pair port is no qemu-colo", sizeof(v->why));
        return;
    }
    JsonObject *o = json_node_get_object(node);
    copy(v->program, sizeof(v->program), o, "program");
    copy(v->version, sizeof(v->version), o, "version");
    copy(v->name, sizeof(v->name), o, "name");
    copy(v->state, sizeof(v->state), o, "state");
    copy(v->role, sizeof(v->role), o, "role");
    v->serves = ctl_bool(o, "serves", false);
    v->undecided = strcmp(v->program, "coloctl") == 0;
    if (!v->undecided && strcmp(v->program, "qemu-colo") != 0) {
        g_strlcpy(v->why, "what answers at the pair port is no qemu-colo", sizeof(v->why));
    } else if (name && strcmp(v->name, name) != 0) {
        g_snprintf(v->why, sizeof(v->why), "the pair port belongs to another VM, '%s': give "
                   "each its port-base", v->name);
    } else if (v->undecided && !last_role_parse(ctl_str(o, "last", ""), &v->last)) {
        g_strlcpy(v->why, "the other host's coloctl is of another version", sizeof(v->why));
    } else {
        v->answers = true;
    }
}

void peer_ask(const char *address, unsigned port, unsigned ms, const char *name, PeerView *v)
{
    gint64 end = g_get_monotonic_time() + ms * 1000ll;
    g_autoptr(GError) err = NULL;
    g_autoptr(GString) text = g_string_new(NULL);
    int fd = net_dial(address, port, end, &err);

    *v = (PeerView){.last = LAST_MAX};
    if (fd < 0 || !net_read_line(fd, text, LINE_BYTES_MAX, end, &err)) {
        g_strlcpy(v->why, err->message, sizeof(v->why));
    } else {
        peer_parse(text->str, name, v);
    }
    if (fd >= 0) {
        close(fd);
    }
}

int peer_listen(const VmConf *c, GError **errp)
{
    return net_listen(vm_conf_self(c)->addresses[0], vm_conf_port(c, VM_PORT_PAIR), errp);
}

void peer_answer(int fd, const VmConf *c, LastRole last)
{
    g_autoptr(JsonObject) o = json_object_new();
    g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), o);
    int conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC);

    if (conn < 0) {
        return;
    }
    json_object_set_string_member(o, "program", "coloctl");
    json_object_set_string_member(o, "version", COLO_VERSION);
    json_object_set_string_member(o, "name", c->name);
    json_object_set_string_member(o, "state", "undecided");
    json_object_set_boolean_member(o, "serves", FALSE);
    json_object_set_string_member(o, "role", "none");
    json_object_set_int_member(o, "epoch", 0);
    json_object_set_boolean_member(o, "wants-peer", FALSE);
    json_object_set_int_member(o, "instance", getpid());
    json_object_set_string_member(o, "last", last_role_name(last));
    g_autofree char *text = ctl_json(node, false), *line = g_strconcat(text, "\n", NULL);
    ssize_t n = send(conn, line, strlen(line), MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)n;
    close(conn);
}
