# Figures over HTTP: what Prometheus reads, and who may not harm the guest with it.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import re
import select
import socket
import sys
import threading
import time
import urllib.error
import urllib.request

from colo_qtest import *

LABEL = r"[a-z_]+=\"([^\"\\\n]|\\[\\\"n])*\""
SAMPLE = re.compile(r"(colo_[a-z0-9_]+)(\{%s(,%s)*\})? (?P<value>-?[0-9.]+(e[+-]?[0-9]+)?)$" % (LABEL, LABEL))
SUFFIX = {"_count": "summary", "_sum": "summary"}


def get(port, path="/metrics", data=None):
    with urllib.request.urlopen("http://127.0.0.1:%d%s" % (port, path), data, 10) as r:
        return r.headers["Content-Type"], r.read().decode()


def figures(text):
    """All of them, after the rules of the text format and of Prometheus' names: HELP and TYPE once
    each and before the samples, these in one group, none twice; base units; counters are _total."""
    out, types, helps, group = {}, {}, set(), None
    assert text.endswith("\n") and "\r" not in text
    for line in text.splitlines():
        if line.startswith("# "):
            _, word, name, rest = line.split(" ", 3)
            assert word in ("HELP", "TYPE") and re.fullmatch("colo_[a-z0-9_]+", name), line
            if word == "HELP":
                assert name not in helps and rest.endswith("."), line
                helps.add(name)
            else:
                assert name not in types and name in helps, line
                assert rest in ("counter", "gauge", "summary"), line
                assert (rest == "counter") == name.endswith("_total"), line
                types[name] = rest
                group = name
            continue
        m = SAMPLE.match(line)
        assert m, "not in the format: " + line
        name = m.group(1)
        base = next((name[:-len(s)] for s, kind in SUFFIX.items()
                     if name.endswith(s) and types.get(name[:-len(s)]) == kind), name)
        assert base == group, "%s is not where its TYPE is" % line
        assert not re.search("_(us|ms|microseconds|milliseconds|kib|mib|percent)(_|$)", name), line
        key = line.rsplit(" ", 1)[0]
        assert key not in out, "twice: " + key
        out[key] = float(m["value"])
    assert set(types) == helps
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


def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("127.0.0.1", 0))
    return s, s.getsockname()[1]


def relay(ours, sides, stop):
    """Each side's link 1 goes by here: what comes at one of our ports leaves at the other."""
    while not stop.is_set():
        for s in select.select(ours, [], [], 0.1)[0]:
            i = ours.index(s)
            ours[1 - i].sendto(s.recv(2000), ("127.0.0.1", sides[1 - i]))


@case
def beats_are_counted(b):
    """With a heartbeat on two links its figures are there, refused beats by link and reason."""
    held = [udp() for _ in range(4)]
    a, z = [n for _, n in held[:2]], [n for _, n in held[2:]]
    for s, _ in held:
        s.close()
    way = [udp(), udp()]
    port, stop = free_port(), threading.Event()

    def heart(mine, its):
        return "colo-heartbeat,id=h,timeout=20000," + ",".join(
            "links.%d.local=127.0.0.1:%d,links.%d.peer=127.0.0.1:%d" % (i, mine[i], i, its[i])
            for i in (0, 1))
    p = b.primary("-colo", "metrics=127.0.0.1:%d" % port, "-object",
                  heart(a, [z[0], way[0][1]]))
    s = b.secondary("-object", heart(z, [a[0], way[1][1]]))
    ours = [s for s, _ in way]
    thread = threading.Thread(target=relay, args=(ours, [a[1], z[1]], stop))
    thread.start()
    try:
        b.protect(p, s)
        for _ in range(3):
            ours[0].sendto(b"rubbish", ("127.0.0.1", a[1]))

        def got():
            return figures(get(port)[1])
        bad = 'colo_heartbeats_refused_total{id="%d",reason="%s"}'
        p.wait("the rubbish", lambda: got()[bad % (1, "malformed")] == 3)
        f = got()
        for i in (0, 1):
            assert f['colo_heartbeats_sent_total{id="%d"}' % i] > 0, f
            for reason in ("forged", "reflected", "misdirected", "stranger", "replayed"):
                assert bad % (i, reason) in f, f
        assert f[bad % (0, "malformed")] == 0, f
        assert f["colo_raw_bytes_total"] > 0, f
    finally:
        stop.set()
        thread.join()
        for s in ours:
            s.close()


@case
def port_is_of_one_guest(b):
    """Two guests with one port would be read as one: the second is told."""
    port = free_port()
    b.primary("-colo", "metrics=127.0.0.1:%d" % port)
    done = subprocess.run([b.program, "-machine", "pc", "-accel", "tcg", "-nodefaults", "-display",
                           "none", "-S", "-colo", "metrics=127.0.0.1:%d" % port],
                          capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 1, done
    has_words(done.stderr, "metrics='127.0.0.1:%d'" % port, "in use")
    assert "colo_protected" in get(port)[1]


@case
def only_on_the_loopback(b):
    for address, words in (("0.0.0.0:9100", "loopback"), ("192.0.2.1:9100", "loopback"),
                           ("[::]:9100", "loopback"), ("9100", "expected"),
                           ("localhost:9100", "expected"), ("127.0.0.1:0", "expected")):
        done = subprocess.run([b.program, "-machine", "pc", "-accel", "tcg", "-nodefaults",
                               "-display", "none", "-S", "-colo", "metrics=" + address],
                              capture_output=True, text=True, timeout=60,
                              stdin=subprocess.DEVNULL)
        assert done.returncode == 1, done
        has_words(done.stderr, re.escape(address), words)


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
