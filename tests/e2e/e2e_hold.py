#!/usr/bin/env python3
# A relay between two qemu-colo that holds back what the secondary acknowledges.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
    e2e_hold.py PORT HOST PORT

Relays the connections of one pair (docs/interop/channel.rst). On the first, the control channel,
RECEIVED and LOADED go through as long as they are allowed; a number on a line of standard input is how
many more are, and "free" all of them. The first that waits is told as "held TYPE EPOCH". Everything
else passes, all of the other connections too.
"""

import socket
import struct
import sys
import threading

RECEIVED, LOADED = 11, 12
HEAD = 20


class Gate:
    def __init__(self):
        self.cond = threading.Condition()
        self.allowed = float("inf")
        self.waiting = []
        self.told = False

    def command(self, word):
        with self.cond:
            self.allowed = float("inf") if word == "free" else int(word)
            self.told = False
            self.tell()
            self.cond.notify_all()

    def acknowledge(self, message, send):
        with self.cond:
            self.waiting.append((message, send))
            self.tell()
            self.cond.notify_all()

    def tell(self):
        if not self.waiting or self.allowed >= 1 or self.told:
            return
        self.told = True
        kind, = struct.unpack(">H", self.waiting[0][0][4:6])
        epoch, = struct.unpack(">Q", self.waiting[0][0][HEAD:HEAD + 8])
        print("held %d %d" % (kind, epoch), flush=True)

    def run(self):
        while True:
            with self.cond:
                self.cond.wait_for(lambda: self.waiting and self.allowed >= 1)
                message, send = self.waiting.pop(0)
                self.allowed -= 1
                self.told = False
                send(message)
                self.tell()


def exactly(sock, n):
    data = b""
    while len(data) < n:
        more = sock.recv(n - len(data))
        if not more:
            sys.exit(0)
        data += more
    return data


def forward(source, target):
    while True:
        data = source.recv(1 << 16)
        if not data:
            target.shutdown(socket.SHUT_WR)
            return
        target.sendall(data)


def backward(source, target, gate):
    lock = threading.Lock()

    def send(message):
        with lock:
            target.sendall(message)
    while True:
        head = exactly(source, HEAD)
        kind, _, length = struct.unpack(">HHI", head[4:12])
        message = head + exactly(source, length)
        if kind in (RECEIVED, LOADED):
            gate.acknowledge(message, send)
        else:
            send(message)


def start(fn, *args):
    threading.Thread(target=fn, args=args, daemon=True).start()


def accept(listener, address):
    down, _ = listener.accept()
    return down, socket.create_connection(address)


def others(listener, address):
    while True:
        down, up = accept(listener, address)
        start(forward, down, up)
        start(forward, up, down)


def main():
    port, address = int(sys.argv[1]), (sys.argv[2], int(sys.argv[3]))
    gate = Gate()
    listener = socket.create_server(("127.0.0.1", port))
    print("ready", flush=True)
    down, up = accept(listener, address)
    start(forward, down, up)
    start(backward, up, down, gate)
    start(gate.run)
    start(others, listener, address)
    for line in sys.stdin:
        gate.command(line.strip())


if __name__ == "__main__":
    main()
