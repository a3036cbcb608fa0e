# Frames in and out of netdevs and chardevs, and the two programs that they go through.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
A Vm is qemu-colo or, with stock=True, the emulator itself, started with the same words. Its
netdevs are servers on unix sockets: what is sent there goes towards the guest ("tx"), what comes from
there was sent by it ("rx"). The NIC has no driver, so a redirector swallows what would reach
it, as in QEMU's own tests; "rx" frames are made by a redirector with an indev.
"""

import select
import socket
import struct
import time

from colo_qtest import Host, QMPError, within

STOCK = "qemu-system-x86_64"


def udp(payload, sport=1000, dport=2000, src=b"\x0a\0\0\1", dst=b"\x0a\0\0\2"):
    length = 28 + len(payload)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, length, 1, 0, 64, 17, 0, src, dst)
    total = sum(struct.unpack(">10H", ip))
    ip = ip[:10] + struct.pack(">H", ~(total + (total >> 16)) & 0xffff) + ip[12:]
    return (b"\x52\x54\0\0\0\2" + b"\x52\x54\0\0\0\3" + b"\x08\0" + ip +
            struct.pack(">HHHH", sport, dport, 8 + len(payload), 0) + payload)


class Wire:
    """A stream socket that carries frames; with @vnet as chardevs do with vnet headers."""

    def __init__(self, address, vnet=False, timeout=5):
        self.vnet = vnet
        end = time.monotonic() + timeout
        while True:
            self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str)
                                      else socket.AF_INET)
            try:
                self.sock.connect(address)
                self.sock.settimeout(10)  # nobody reads: a failure, not a wait for ever
                break
            except OSError:
                self.sock.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
        self.data = b""

    def raw(self, data):
        self.sock.sendall(data)

    def send(self, frame, header=b""):
        head = struct.pack(">I", len(header) + len(frame))
        if self.vnet:
            head += struct.pack(">I", len(header))
        self.sock.sendall(head + header + frame)

    def fill(self, timeout):
        if not select.select([self.sock], [], [], max(0, timeout))[0]:
            return False
        more = self.sock.recv(262144)
        if not more:
            raise EOFError
        self.data += more
        return True

    def item(self, timeout=3.0, vnet=None):
        """(vnet header, frame) of the next one, or None."""
        skip = 8 if (self.vnet if vnet is None else vnet) else 4
        end = time.monotonic() + timeout
        while True:
            if len(self.data) >= skip:
                length = struct.unpack(">I", self.data[:4])[0]
                if len(self.data) >= skip + length:
                    header = struct.unpack(">I", self.data[4:8])[0] if skip == 8 else 0
                    body = self.data[skip:skip + length]
                    self.data = self.data[skip + length:]
                    return body[:header], body[header:]
            if not self.fill(end - time.monotonic()) and time.monotonic() >= end:
                return None

    def recv(self, timeout=3.0):
        got = self.item(timeout)
        return got and got[1]

    def text(self, timeout=3.0):
        """A message of notify_dev: never with a vnet header."""
        got = self.item(timeout, False)
        return got and got[1]

    def none(self, seconds=0.15):
        got = self.recv(seconds)
        assert got is None, "unexpected frame %r" % got

    def expect(self, frame, timeout=3.0):
        got = self.recv(timeout)
        assert got == frame, "got %r instead of %r" % (got, frame)

    def closed(self, timeout=3.0):
        """Whether the other end hangs up."""
        try:
            end = time.monotonic() + timeout
            while time.monotonic() < end:
                self.fill(end - time.monotonic())
        except (EOFError, ConnectionError):
            return True
        return False

    def close(self):
        self.sock.close()


class Vm:
    def __init__(self, bed, name, stock=False, netdevs=("n0",), unix=True, args=()):
        self.bed, self.name, self.stock = bed, name, stock
        self.unix = unix
        command = [] if stock else ["-colo", "checkpoint-events=on"]
        for n in netdevs:
            command += ["-netdev", "stream,id=%s,server=on,addr.type=unix,"
                        "addr.path=%s" % (n, self.path(n)),
                        "-device", "e1000,netdev=%s,id=nic-%s,romfile=" % (n, n)]
        command += ["-object", "iothread,id=io0", "-object", "iothread,id=io1", *args]
        program = STOCK if stock else bed.program
        self.host = Host(bed, name, command, program=program)

    def path(self, chardev):
        return "%s/%s-%s" % (self.bed.dir, self.name, chardev)

    def add_chardev(self, name, address=None, server=True, reconnect=0, tls=None):
        """A socket at @address: a path (by default one of its own), or (host, port)."""
        address = address or self.path(name)
        if isinstance(address, str):
            addr = {"type": "unix", "data": {"path": address}}
        else:
            addr = {"type": "inet", "data": {"host": address[0], "port": str(address[1])}}
        data = {"addr": addr, "server": server}
        if server:
            data["wait"] = False
        if reconnect:
            data["reconnect"] = reconnect
        if tls:
            data["tls-creds"] = tls
        self.host.cmd("chardev-add", {"id": name,
                                      "backend": {"type": "socket", "data": data}})
        return address

    def connected(self, chardev):
        for c in self.host.cmd("query-chardev"):
            if c["label"] == chardev:
                return not c["filename"].startswith("disconnected")
        raise AssertionError("no chardev " + chardev)

    def wire(self, chardev, vnet=False):
        """Add a chardev and connect to it."""
        w = Wire(self.add_chardev(chardev), vnet)
        self.bed.closers.append(w)
        end = time.monotonic() + 5
        while not self.connected(chardev):
            within(end, lambda: chardev + " takes no connection")
            time.sleep(0.005)
        return w

    def outside(self, netdev="n0"):
        w = Wire(self.path(netdev))
        self.bed.closers.append(w)
        return w

    def add(self, kind, ident, **props):
        self.host.cmd("object-add", {"qom-type": kind, "id": ident, **props})

    def delete(self, ident):
        self.host.cmd("object-del", {"id": ident})

    def set(self, ident, name, value):
        self.host.cmd("qom-set", {"path": "/objects/" + ident, "property": name,
                                  "value": value})

    def get(self, ident, name):
        return self.host.cmd("qom-get", {"path": "/objects/" + ident, "property": name})

    def swallow(self, netdev="n0"):
        """Let frames that would reach the NIC end in the wire that is returned."""
        w = self.wire("swallow-" + netdev)
        self.add("filter-redirector", "swallow-" + netdev, netdev=netdev, queue="tx",
                 outdev="swallow-" + netdev)
        return w

    def answer(self, name, arguments=None):
        """(class, text) of an error, or None and the value."""
        qmp = self.host.qmp
        posted = qmp.post(name, arguments)
        with qmp._cond:
            assert qmp._cond.wait_for(lambda: posted[0] in qmp._answers or qmp.closed, 20)
            if qmp.closed:
                raise QMPError("connection closed: " + self.host.output())
            answer = qmp._answers.pop(posted[0])
        if "error" in answer:
            return answer["error"]["class"], answer["error"]["desc"]
        return None, answer["return"]
