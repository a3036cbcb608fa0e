#!/usr/bin/env python3
# Both ends of the connections of test_proxy_stacks.py: every byte is known beforehand.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Usage: stack_peer.py serve ADDRESS... PORT
       stack_peer.py open JSON

The opener of a connection says on its first line what is to happen:

    SEED UP DOWN UP-RATE DOWN-RATE FLAGS PAUSE

UP bytes of a pattern go to the acceptor, DOWN bytes come back, at once and independently,
at so many bytes a second (0: as fast as it goes). Who has sent everything ends its
direction, unless FLAGS hold:
    k   the opener ends only when it has received everything
    K   the acceptor ends only when it has received everything, and says "K" before
    r   the acceptor resets the connection when all has gone both ways
    a   the opener resets it then
    o   the acceptor reads nothing for PAUSE seconds: its window closes
    O   so does the opener
    l   the connection is idle, but for the kernel's keepalives
A byte that is wrong, missing or too many makes either end reset the connection, which the
other reports. Port PORT+1 answers a line with the acceptor's own count of failures.

What an acceptor sends depends on nothing but what it received, so that two of them can
stand behind a comparison.
"""

import errno
import fcntl
import json
import random
import selectors
import socket
import struct
import sys
import termios
import time

BLOCK = 65537
CHUNK = 65536
BEAT = 0.02


class Wrong(Exception):
    pass


class Pattern:
    """The bytes of one direction of one connection."""

    known = {}

    def __init__(self, seed):
        if seed not in Pattern.known:
            if len(Pattern.known) > 400:
                Pattern.known.clear()
            block = random.Random(seed).randbytes(BLOCK)
            Pattern.known[seed] = memoryview(block + block)
        self.block = Pattern.known[seed]

    def at(self, offset, n):
        o = offset % BLOCK
        return self.block[o:o + min(n, BLOCK)]


class Conn:
    """One end. States of a direction: bytes to go, then FIN."""

    def __init__(self, loop, sock, opener, spec=None, done=None):
        self.loop, self.sock, self.opener, self.done = loop, sock, opener, done
        self.spec = None
        self.head = b""
        self.sent = self.got = 0
        self.out_fin = self.in_fin = self.over = False
        self.begin = self.last = self.moved = time.monotonic()
        self.gap = self.next_send = 0.0
        self.events = 0
        if spec:
            self.set_spec(spec)
            self.head = ("%d %d %d %d %d %s %g\n" % (
                spec["seed"], spec["up"], spec["down"], spec["up_rate"], spec["down_rate"],
                spec["flags"] or "-", spec["pause"])).encode()

    def set_spec(self, spec):
        self.spec = spec
        self.flags = spec["flags"]
        mine, theirs = ("up", "down") if self.opener else ("down", "up")
        self.to_send, self.to_get = spec[mine], spec[theirs]
        self.rate = spec[mine + "_rate"]
        self.paced = spec[theirs + "_rate"] > 0
        self.out = Pattern("%d %s" % (spec["seed"], mine))
        self.inp = Pattern("%d %s" % (spec["seed"], theirs))
        self.word = 0  # bytes of the final "K"
        if "K" in self.flags:
            self.word = 1
            if self.opener:
                self.to_get += 1
            else:
                self.to_send += 1
        if "l" in self.flags:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1),
                                  (socket.TCP_KEEPCNT, 3)):
                self.sock.setsockopt(socket.IPPROTO_TCP, option, value)

    # Sending

    def may_send(self, now):
        """Bytes that may go now."""
        if self.head and self.opener:
            return 1
        n = self.to_send - self.sent
        if self.word and not self.opener and self.got < self.to_get:
            n -= 1
        if self.rate:
            if now < self.next_send:
                return 0
            n = min(n, int((now - self.begin) * self.rate) - self.sent)
        if "l" in self.flags and now - self.begin < self.spec["pause"]:
            n = min(n, self.to_send // 2 - self.sent)
        return max(n, 0)

    def send(self, now):
        if self.head and self.opener:
            self.head = self.head[self.sock.send(self.head):]
            return
        n = self.may_send(now)
        if self.rate and now >= self.next_send:
            self.next_send = now + BEAT
        while n > 0:
            data = self.out.at(self.sent, min(n, CHUNK))
            if self.word and not self.opener:
                if self.sent == self.to_send - 1:
                    data = b"K"
                else:
                    data = data[:self.to_send - 1 - self.sent]
            done = self.sock.send(data)
            self.sent += done
            self.moved = now
            n -= done
            if done < len(data):
                break

    def end_if_done(self):
        if self.sent < self.to_send or self.out_fin or (self.head and self.opener):
            return
        received = self.got == self.to_get
        if ("a" if self.opener else "r") in self.flags:
            if not received:
                return
            left = fcntl.ioctl(self.sock, termios.TIOCOUTQ, b"\0" * 4)
            if any(left):
                return  # what the other has not acknowledged would be lost
            self.reset()
            self.finish()
            return
        if not received and ("k" if self.opener else "K") in self.flags:
            return
        if ("r" if self.opener else "a") in self.flags:
            return  # the other end resets
        self.out_fin = True
        self.sock.shutdown(socket.SHUT_WR)

    # Receiving

    def paused(self, now):
        return ("O" if self.opener else "o") in self.flags and \
            now - self.begin < self.spec["pause"]

    def receive(self, now):
        data = self.sock.recv(4 * CHUNK)
        self.gap = max(self.gap, now - self.last)
        self.last = self.moved = now
        if not data:
            self.in_fin = True
            if self.got != self.to_get:
                raise Wrong("ended after %d of %d bytes" % (self.got, self.to_get))
            return
        view = memoryview(data)
        if self.got + len(view) > self.to_get:
            raise Wrong("%d bytes too many" % (self.got + len(view) - self.to_get))
        if self.word and self.opener and self.got + len(view) == self.to_get:
            if view[-1:] != b"K":
                raise Wrong("no word at the end")
            view = view[:-1]
            self.got += 1  # its offset does not matter
            self.check(view, self.got - 1)
            self.got += len(view)
            return
        self.check(view, self.got)
        self.got += len(view)

    def check(self, view, offset):
        while view:
            want = self.inp.at(offset, min(len(view), BLOCK))
            if view[:len(want)] != want:
                bad = next(i for i in range(len(want)) if view[i] != want[i])
                raise Wrong("byte %d is wrong" % (offset + bad))
            offset += len(want)
            view = view[len(want):]

    def read_head(self):
        """An acceptor's first line."""
        self.head += self.sock.recv(1 if self.head else 12)
        if b"\n" not in self.head[-1:]:
            if len(self.head) > 200:
                raise Wrong("no header")
            return
        words = self.head.decode().split()
        self.head = b""
        self.begin = time.monotonic()
        self.set_spec({"seed": int(words[0]), "up": int(words[1]), "down": int(words[2]),
                       "up_rate": int(words[3]), "down_rate": int(words[4]),
                       "flags": words[5].replace("-", ""), "pause": float(words[6])})

    # Both

    def ready(self, events):
        now = time.monotonic()
        try:
            if not self.spec:
                if events & selectors.EVENT_READ:
                    self.read_head()
                if not self.spec:
                    return
            elif events & selectors.EVENT_READ and not self.in_fin:
                self.receive(now)
            self.progress(now)
        except BlockingIOError:
            self.arm(now)
        except Wrong as e:
            self.reset()
            self.finish(str(e))
        except OSError as e:
            expected = ("r" if self.opener else "a") in (self.flags if self.spec else "") \
                and e.errno == errno.ECONNRESET and self.got == self.to_get
            self.finish("" if expected else "%s after %d sent, %d received" % (
                e.strerror, self.sent, self.got))

    def progress(self, now):
        self.send(now)
        self.end_if_done()
        if not self.over and self.out_fin and self.in_fin:
            self.finish()
        if not self.over:
            self.arm(now)

    def arm(self, now):
        events = 0
        if not self.in_fin and not (self.spec and self.paused(now)):
            events |= selectors.EVENT_READ
        if self.spec and self.may_send(now) and not self.rate or \
                self.opener and self.head:
            events |= selectors.EVENT_WRITE
        self.loop.arm(self, events)

    def beat(self, now):
        """For those who wait for the time."""
        if self.spec and not self.over:
            self.ready(0)

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def finish(self, error=""):
        if self.over:
            return
        self.over = True
        self.loop.arm(self, 0)
        self.loop.conns.discard(self)
        self.sock.close()
        if self.done:
            self.done(self, error)


class Loop:
    def __init__(self):
        self.selector = selectors.DefaultSelector()
        self.conns = set()

    def arm(self, conn, events):
        if events == conn.events:
            return
        if not conn.events:
            self.selector.register(conn.sock, events, conn.ready)
        elif not events:
            self.selector.unregister(conn.sock)
        else:
            self.selector.modify(conn.sock, events, conn.ready)
        conn.events = events

    def add(self, conn):
        self.conns.add(conn)
        conn.arm(time.monotonic())

    def run(self, over=lambda: False):
        beat = time.monotonic()
        while not over():
            for key, events in self.selector.select(BEAT):
                key.data(events)
            now = time.monotonic()
            if now >= beat:
                beat = now + BEAT
                for conn in list(self.conns):
                    conn.beat(now)


def serve(addresses, port):
    loop = Loop()
    count = {"done": 0, "failed": 0, "errors": []}

    def done(conn, error):
        count["done"] += 1
        if error:
            count["failed"] += 1
            count["errors"] = (count["errors"] + ["%s (seed %s)" % (
                error, conn.spec["seed"] if conn.spec else "?")])[:10]

    def accept(listener):
        def ready(events):
            sock, _ = listener.accept()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop.add(Conn(loop, sock, False, done=done))
        return ready

    def status(listener):
        def ready(events):
            sock, _ = listener.accept()
            sock.sendall(json.dumps(dict(count, open=len(loop.conns))).encode())
            sock.close()
        return ready

    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for number, handler in ((port, accept), (port + 1, status)):
            s = socket.socket(family)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if ":" in address:
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            s.bind((address, number))
            s.listen(512)
            s.setblocking(False)
            loop.selector.register(s, selectors.EVENT_READ, handler(s))
    print("ready", flush=True)
    loop.run()


def open_all(job):
    """
    job: host, port, seed, groups; a group: name, n connections at a time, its spec, seconds:
    for so long a connection that ended is followed by a new one; every: seconds between the
    openings. The result has for each group: done, errors, bytes, gap_ms (the longest silence of
    a paced receiver), seconds (the longest life).
    """
    loop = Loop()
    rng = random.Random(job["seed"])
    result = {g["name"]: {"done": 0, "errors": [], "bytes": 0, "gap_ms": 0, "seconds": 0}
              for g in job["groups"]}
    start = time.monotonic()
    due = []  # (when, group)
    running = [0]

    def begin(group):
        spec = {"up": 0, "down": 0, "up_rate": 0, "down_rate": 0, "flags": "", "pause": 0}
        spec.update(group["spec"], seed=rng.randrange(1 << 30))
        family = socket.AF_INET6 if ":" in job["host"] else socket.AF_INET
        sock = socket.socket(family)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name, value in group.get("options", {}).items():
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        running[0] += 1

        def done(conn, error):
            running[0] -= 1
            r = result[group["name"]]
            r["done"] += 1
            r["bytes"] += conn.got + conn.sent
            r["seconds"] = max(r["seconds"], round(time.monotonic() - conn.begin, 2))
            if conn.paced:
                r["gap_ms"] = max(r["gap_ms"], round(conn.gap * 1e3))
            if error:
                at = time.monotonic()
                r["errors"].append("%s, opened at %.3f, ended at %.3f, spec %s" % (
                    error, conn.begin, at, conn.spec))
            now = time.monotonic()
            if now - start < group.get("seconds", 0):
                due.append((now + group.get("every", 0), group))

        sock.connect_ex((job["host"], job["port"]))
        conn = Conn(loop, sock, True, spec, done)
        loop.conns.add(conn)
        loop.arm(conn, selectors.EVENT_WRITE)

    for group in job["groups"]:
        for i in range(group["n"]):
            due.append((start + i * group.get("spread", 0.002), group))

    def over():
        now = time.monotonic()
        for item in [d for d in due if d[0] <= now]:
            due.remove(item)
            begin(item[1])
        for conn in list(loop.conns):
            # A connection that stands still for so long is lost, whatever the kernel thinks.
            if now - conn.moved > job.get("stall", 20) + conn.spec["pause"]:
                conn.finish("stands still after %d sent, %d received" % (conn.sent, conn.got))
        return not running[0] and not due

    loop.run(over)
    print(json.dumps(result))
    return any(r["errors"] for r in result.values())


def main():
    if sys.argv[1] == "serve":
        serve(sys.argv[2:-1], int(sys.argv[-1]))
    return open_all(json.loads(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
