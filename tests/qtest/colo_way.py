# The way between two hosts, where it can be cut, narrow, or slow to flush.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import socket
import struct
import threading
import time

OPTION, REQUEST = 0x49484156, 0x25609513  # what an NBD client's messages begin with
WRITE, FLUSH = 1, 3


class Way:
    """Connections to a port of address @at go through here, to the same port of @to. While it is
    cut, what is on its way stands still, as do new connections; mend(broken=True) closes those
    that were there. @rate: bytes a second towards @to, of each port in @narrow; @flush_s: how
    long an NBD flush is held back, requests behind it are not. While it is @deaf, @to does not
    hear that a connection has ended."""

    def __init__(self, bed, at, to, ports, narrow=(), nbd=()):
        self.to, self.narrow, self.nbd = to, narrow, nbd
        self.rate, self.flush_s, self.flushes, self.deaf = None, 0, [], False
        self.open = threading.Event()
        self.open.set()
        self.over = False
        self.lock = threading.Lock()
        self.ends, self.listeners, self.alive = [], [], set()
        for port in ports:
            s = socket.create_server((at, port))
            self.listeners.append(s)
            self.thread(self.accept, s, port)
        bed.closers.append(self)

    def thread(self, fn, *args):
        threading.Thread(target=fn, args=args, daemon=True).start()

    def accept(self, listener, port):
        while not self.over:
            near = None
            try:
                near, _ = listener.accept()
                self.open.wait()
                far = socket.create_connection((self.to, port), 20)
                far.settimeout(None)
            except OSError:
                if near:
                    near.close()  # nobody is there
                continue
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.ends += [near, far]
                if port in self.nbd:
                    self.alive.add(far)
            self.thread(self.pump_nbd if port in self.nbd else self.pump, near, far, port)
            self.thread(self.pump, far, near, None)

    def breaks(self, *ends):
        for s in ends[:1] if self.deaf else ends:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def pass_on(self, data, other, port):
        self.open.wait()
        other.sendall(data)
        if self.rate and port in self.narrow:
            time.sleep(len(data) / self.rate)

    def pump(self, one, other, port):
        piece = 1 << 14 if port in self.narrow else 1 << 16  # small ones go on steadily
        try:
            while True:
                data = one.recv(piece)
                if not data:
                    break
                self.pass_on(data, other, port)
            self.open.wait()
            if not self.deaf:
                other.shutdown(socket.SHUT_WR)
        except OSError:
            self.breaks(one, other)
        with self.lock:
            self.alive.discard(one)

    def servers(self):
        """NBD connections that the server has not closed."""
        with self.lock:
            return len(self.alive)

    def pump_nbd(self, one, other, port):
        """The same, message by message."""
        sending = threading.Lock()

        def exactly(n):
            data = b""
            while len(data) < n:
                more = one.recv(min(n - len(data), 1 << 16))
                if not more:
                    raise OSError("the end")
                data += more
            return data

        def send(data):
            with sending:
                for at in range(0, len(data), 1 << 16):
                    self.pass_on(data[at:at + (1 << 16)], other, port)

        def late(data):
            time.sleep(self.flush_s)
            try:
                send(data)
            except OSError:
                pass
        try:
            send(exactly(4))  # the client's flags
            while True:
                head = exactly(4)
                magic = struct.unpack(">I", head)[0]
                if magic == OPTION:
                    head += exactly(12)
                    send(head + exactly(struct.unpack(">I", head[12:])[0]))
                    continue
                assert magic == REQUEST, head
                head += exactly(24)
                kind, length = struct.unpack(">H", head[6:8])[0], struct.unpack(">I", head[24:])[0]
                if kind == FLUSH and self.flush_s:
                    self.flushes.append(time.monotonic())
                    self.thread(late, head)
                else:
                    send(head + (exactly(length) if kind == WRITE else b""))
        except OSError:
            self.breaks(one, other)

    def cut(self):
        self.open.clear()

    def mend(self, broken):
        if broken:
            with self.lock:
                ends, self.ends = self.ends, []
            self.breaks(*ends)
        self.open.set()

    def close(self):
        self.over = True
        self.breaks(*self.listeners)
        self.mend(True)
        for s in self.listeners:
            s.close()
