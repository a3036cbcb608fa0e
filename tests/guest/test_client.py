#!/usr/bin/env python3
# The client must see what it is there to see: each fault below has to make it fail.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
The workload runs as an ordinary process; a proxy between it and the client damages one
stream at one place, or none at all (then the client must be content).
Usage: test_client.py COLO_CLIENT
"""

import os
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = ["workload.c", "boot.c", "memory.c", "disk.c", "fs.c", "services.c"]


class Proxy:
    """Forwards TCP and UDP; @fault(direction, offset, data) returns the bytes to pass on."""

    def __init__(self, target, udp, fault):
        self.target, self.udp, self.fault = target, udp, fault
        kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
        self.sock = socket.socket(socket.AF_INET, kind)
        self.sock.bind(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        if not udp:
            self.sock.listen(16)
        threading.Thread(target=self.run_udp if udp else self.run_tcp, daemon=True).start()

    def run_tcp(self):
        while True:
            client, _ = self.sock.accept()
            threading.Thread(target=self.pump, args=(client,), daemon=True).start()

    def pump(self, client):
        server = socket.create_connection(("127.0.0.1", self.target))
        offset = {"up": 0, "down": 0}
        sel = selectors.DefaultSelector()
        sel.register(client, selectors.EVENT_READ, ("up", client, server))
        sel.register(server, selectors.EVENT_READ, ("down", server, client))
        try:
            while True:
                for key, _ in sel.select():
                    way, src, dst = key.data
                    data = src.recv(65536)
                    if not data:
                        return
                    passed = self.fault(way, offset[way], data)
                    offset[way] += len(data)
                    if passed is None:
                        return
                    dst.sendall(passed)
        except OSError:
            pass
        finally:
            client.close()
            server.close()

    def run_udp(self):
        up = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        up.connect(("127.0.0.1", self.target))
        count = {"up": 0, "down": 0}
        peer = None
        sel = selectors.DefaultSelector()
        sel.register(self.sock, selectors.EVENT_READ, "up")
        sel.register(up, selectors.EVENT_READ, "down")
        while True:
            for key, _ in sel.select():
                if key.data == "up":
                    data, peer = self.sock.recvfrom(65536)
                else:
                    data = up.recv(65536)
                passed = self.fault(key.data, count[key.data], data)
                count[key.data] += 1
                for one in passed:
                    up.send(one) if key.data == "up" else self.sock.sendto(one, peer)


def at_byte(way_wanted, where, change):
    """Apply @change(data, index) where byte @where of the direction passes."""
    def fault(way, offset, data):
        if way == way_wanted and offset <= where < offset + len(data):
            return change(data, where - offset)
        return data
    return fault


def flip(data, i):
    return data[:i] + bytes([data[i] ^ 1]) + data[i + 1:]


def drop(data, i):
    return data[:i] + data[i + 1:]


def repeat(data, i):
    return data[:i + 1] + data[i:]


def close(data, i):
    return None


def clean(way, offset, data):
    return data


def udp_clean(way, number, data):
    return [data]


def udp_flip(way, number, data):
    return [flip(data, 20) if way == "down" and number == 30 else data]


def udp_drop(way, number, data):
    return [] if way == "down" and number == 30 else [data]


def udp_repeat(way, number, data):
    return [data] * 2 if way == "down" and number == 30 else [data]


TCP = {"lines": (7000, 5003), "echo": (7001, 300001), "download": (80, 300001),
       "upload": (7002, 300001), "stream": (7003, 5003), "http": (80, 500)}


def run(client, base, mode, port, fault, *args):
    proxy = Proxy(base + port, mode == "udp", fault)
    done = subprocess.run([client, "--host", "127.0.0.1", "--port-offset",
                           str(proxy.port - port), "--seconds", "1.5", "--stall-ms", "1000",
                           "--json", *args, mode], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def region(pid):
    """Start and end of the memory that the workload rewrites: its largest in use."""
    with open("/proc/%d/maps" % pid) as f:
        spans = [[int(x, 16) for x in line.split()[0].split("-")] for line in f
                 if line.split()[1] == "rw-p"]
    return max(spans, key=lambda span: span[1] - span[0])


def memory_faults(client, base, process, stale):
    """Whether the workload tells a flipped bit, or a page that went back in time."""
    start, end = region(process.pid)
    control = [client, "--host", "127.0.0.1", "--port-offset", str(base), "--ctl"]
    with open("/proc/%d/mem" % process.pid, "r+b", buffering=0) as mem:
        mem.seek(start)
        old = mem.read(end - start)
        time.sleep(1.5)  # at 20 MB/s each page is written again
        page = (end - start) // 4096 // 2 * 4096
        mem.seek(start + page)
        new = mem.read(4096)
        mem.seek(start + page)
        mem.write(old[page:page + 4096] if stale else flip(new, 2000))
    end = time.monotonic() + 5
    while time.monotonic() < end:
        done = subprocess.run(control + ["STATUS"], capture_output=True, text=True)
        if '"errors":0,' not in done.stdout:
            return True
        time.sleep(0.1)
    return False


def main():
    client = sys.argv[1]
    failures = 0
    with tempfile.TemporaryDirectory() as tmp:
        guest = os.path.join(tmp, "guest")
        subprocess.run(["gcc", "-O2", "-pthread", "-std=gnu11", "-D_GNU_SOURCE", "-o", guest,
                        *SOURCES], cwd=HERE, check=True)
        base = 20000 + os.getpid() % 20000
        process = subprocess.Popen([guest, "--local", str(base)], stdout=subprocess.PIPE)
        process.stdout.readline()
        cases = []
        for mode, (port, where) in TCP.items():
            cases.append((mode, port, "clean", clean, (), 0))
            way = "up" if mode == "upload" else "down"
            for change in (flip, drop, repeat, close):
                cases.append((mode, port, change.__name__, at_byte(way, where, change),
                              (), 1))
        cases += [("udp", 7004, "clean", udp_clean, ("--udp-loss", "0"), 0),
                  ("udp", 7004, "flip", udp_flip, (), 1),
                  ("udp", 7004, "loss", udp_drop, ("--udp-loss", "0"), 1),
                  ("udp", 7004, "loss allowed", udp_drop, (), 0)]
        for mode, port, name, fault, args, expected in cases:
            status, text = run(client, base, mode, port, fault, *args)
            good = status == expected
            failures += not good
            print("%s %-9s %-12s exit status %d%s" % (
                "ok  " if good else "FAIL", mode, name, status,
                "" if good else ", expected %d: %s" % (expected, text[:300])), flush=True)
        for mode in ("lines", "echo", "upload", "stream"):
            status, text = run(client, base, mode, 7007, clean, "--dial")
            failures += status != 0
            print("%s %-9s the guest dials %s" % ("FAIL" if status else "ok  ", mode,
                                                  text[:300] if status else ""))
        status, text = run(client, base, "udp", 7004, udp_repeat)
        good = '"dup":1,' in text
        failures += not good
        print("%s udp       repeat       %s" % ("ok  " if good else "FAIL",
                                                "" if good else text[:300]))
        process.kill()
        process.wait()
        for stale in (False, True):
            base += 1
            process = subprocess.Popen([guest, "--local", str(base)],
                                       stdout=subprocess.PIPE)
            process.stdout.readline()
            # A page under repair is written anew: tried a few times.
            good = any(memory_faults(client, base, process, stale) for _ in range(5))
            failures += not good
            print("%s memory    %s" % ("ok  " if good else "FAIL",
                                       "stale page" if stale else "flipped bit"))
            process.kill()
            process.wait()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
