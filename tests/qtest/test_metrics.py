# Figures over HTTP: what Prometheus reads, and who may not harm the guest with it.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import re
import socket
import sys
import time
import urllib.error
import urllib.request

from colo_qtest import *

LINE = re.compile(r"(# (HELP|TYPE) colo_[a-z0-9_]+ .+|"
                  r"colo_[a-z0-9_]+(\{[a-z_]+=\"([^\"\\\n]|\\[\\\"n])*\"\})? -?[0-9.e+-]+)$")


def get(port, path="/metrics", data=None):
    with urllib.request.urlopen("http://127.0.0.1:%d%s" % (port, path), data, 10) as r:
        return r.headers["Content-Type"], r.read().decode()


def figures(text):
    out = {}
    for line in text.splitlines():
        assert LINE.match(line), "not in the format: " + line
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            assert name not in out, "twice: " + name
            out[name] = float(value)
    return out


@case
def figures_follow_protection(b):
    ports = [free_port(), free_port()]
    p = b.primary("-colo", "metrics=127.0.0.1:%d" % ports[0])
    s = b.secondary("-colo", "metrics=127.0.0.1:%d" % ports[1])
    kind, text = get(ports[0])
    assert kind.startswith("text/plain; version=0.0.4"), kind
    assert figures(text)["colo_protected"] == 0
    b.protect(p, s)
    p.cmd("xen-colo-do-checkpoint")
    p.wait("a checkpoint", lambda: p.status()["checkpoints"] >= 3)
    of = [figures(get(port)[1]) for port in ports]
    assert of[0]["colo_protected"] == of[1]["colo_protected"] == 1
    assert of[0]['colo_role{role="primary"}'] == of[1]['colo_role{role="secondary"}'] == 1
    assert of[0]["colo_checkpoints_total"] >= 3
    pause = of[0]['colo_checkpoint_pause_seconds{quantile="0.5"}']
    assert abs(pause - p.status()["pause-us"]["median"] / 1e6) < 1
    assert 0 < pause < 5 and of[0]["colo_checkpoint_pause_seconds_count"] >= 3


@case
def hostile_http_clients(b):
    port = free_port()
    p = b.primary("-colo", "metrics=127.0.0.1:%d" % port)
    held = []
    for text in (b"GET /met", b"\0\xff" * 400, b"GET / HTTP/9.9\r\n\r\n",
                 b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999\r\n\r\nx",
                 b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n\r\n") * 5:
        s = socket.create_connection(("127.0.0.1", port), 5)
        try:
            s.sendall(text)
        except OSError:
            pass
        held.append(s)
    begin = time.monotonic()
    assert p.cmd("query-status")["status"]
    in_time(time.monotonic() - begin, 2, "query-status")
    for s in held:
        s.close()
    p.wait("an answer", lambda: answers(port))
    for path, data in (("/", None), ("/metrics", b"x")):
        try:
            get(port, path, data)
            raise AssertionError("%s was answered" % path)
        except urllib.error.HTTPError as e:
            assert e.code in (404, 405), e


def answers(port):
    try:
        return "colo_protected" in get(port)[1]
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
