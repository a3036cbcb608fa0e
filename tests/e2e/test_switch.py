#!/usr/bin/env python3
# colo-switch with plain sockets for guests: learning, flooding, moving, nonsense.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""Usage: test_switch.py COLO_SWITCH"""

import os
import socket
import struct
import subprocess
import sys
import tempfile

BROADCAST = b"\xff" * 6


def mac(n):
    return bytes([2, 0, 0, 0, 0, n])


class Port:
    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.sock.settimeout(5)
        self.marks = 0

    def send(self, dst, src, body):
        frame = dst + src + b"\x88\xb5" + body
        self.sock.sendall(struct.pack(">I", len(frame)) + frame)

    def exactly(self, n):
        data = b""
        while len(data) < n:
            more = self.sock.recv(n - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def receive(self):
        return self.exactly(struct.unpack(">I", self.exactly(4))[0])[14:]

    def until(self, body):
        """Bodies that came before @body."""
        got = []
        while (one := self.receive()) != body:
            got.append(one)
        return got


def meet(a, *others):
    """Until the switch has accepted them all: a connection may be up before that."""
    for port in others:
        port.sock.settimeout(0.1)
        for _ in range(100):
            a.send(BROADCAST, mac(1), b"there?")
            try:
                port.receive()
                break
            except TimeoutError:
                pass
        port.sock.settimeout(5)
    a.send(BROADCAST, mac(1), b"met")
    for port in others:
        port.until(b"met")


def check(path):
    a, b, c = Port(path), Port(path), Port(path)
    meet(a, b, c)
    a.send(BROADCAST, mac(1), b"hello")
    assert b.receive() == c.receive() == b"hello", "broadcast"
    b.send(mac(1), mac(2), b"to a")
    assert a.receive() == b"to a", "unicast"
    # A large frame in pieces, then a mark: c must have seen the mark alone.
    big = os.urandom(60000)
    a.send(mac(2), mac(1), big)
    a.send(BROADCAST, mac(1), b"mark 1")
    assert b.until(b"mark 1") == [big], "large frame"
    assert c.until(b"mark 1") == [], "unicast went to a third port"
    # The address of a moves to c, as at a takeover.
    c.send(BROADCAST, mac(1), b"I am 1 now")
    assert a.receive() == b.receive() == b"I am 1 now"
    b.send(mac(1), mac(2), b"to the new 1")
    b.send(BROADCAST, mac(2), b"mark 2")
    assert c.until(b"mark 2") == [b"to the new 1"], "address did not move"
    assert a.until(b"mark 2") == [], "the old port still gets frames"
    # A port that leaves takes its addresses along: unknown again, so flooded.
    c.sock.close()
    d = Port(path)
    d.send(BROADCAST, mac(4), b"d")
    assert a.receive() == b.receive() == b"d"
    b.send(mac(1), mac(2), b"flooded")
    assert a.receive() == d.receive() == b"flooded", "address of a dead port kept"
    # A port that does not read loses frames and holds nobody up.
    slow = Port(path)
    for _ in range(200):
        a.send(BROADCAST, mac(1), big)
        assert b.receive() == d.receive() == big, "held up by a slow port"
    slow.sock.close()
    for bad in (struct.pack(">I", 13) + b"x" * 13, struct.pack(">I", 69633), b"\xff" * 4):
        e = Port(path)
        e.sock.sendall(bad)
        while e.sock.recv(65536):
            pass
    a.send(BROADCAST, mac(1), b"still here")
    assert b.receive() == b"still here", "after nonsense"


def main():
    with tempfile.TemporaryDirectory() as tmp:
        path = tmp + "/switch"
        process = subprocess.Popen([sys.argv[1], "--listen", path], stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL)
        try:
            assert process.stdout.readline() == b"colo-switch: ready\n"
            check(path)
            again = subprocess.run([sys.argv[1], "--listen", path], capture_output=True)
            assert again.returncode == 1, "two switches on one path"
        finally:
            process.terminate()
            assert process.wait(5) == 0
        assert not os.path.exists(path), "socket left behind"
    print("ok    colo-switch")


if __name__ == "__main__":
    main()
