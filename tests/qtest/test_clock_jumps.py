#!/usr/bin/env python3
# The wall clock of a host jumps by hours: nobody is lost, nobody speaks too long or too early.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
A clock of one process cannot be set, so it is lied to: clock_jump.c is preloaded into qemu-colo
and its emulator. That it is seen there is proven by the times of its QMP events.
"""

import mmap
import struct
import threading

from colo_etcd import Etcd
from colo_qtest import *

HOUR = 3600
LEASE = 3


class Clock:
    """The wall clock of what is started by @program."""

    def __init__(self, b, name):
        lib, path = b.dir + "/clock_jump.so", b.dir + "/clock-" + name
        if not shutil.which("gcc"):
            raise Skip("there is no compiler")
        if not os.path.exists(lib):
            subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", lib,
                            os.path.dirname(os.path.abspath(__file__)) + "/clock_jump.c"],
                           check=True)
        with open(path, "wb") as f:
            f.write(bytes(16))
        with open(path, "r+b") as f:
            self.shared = mmap.mmap(f.fileno(), 16)
        self.program = b.dir + "/clocked-" + name
        with open(self.program, "w") as f:
            f.write("#!/bin/sh\nLD_PRELOAD=%s COLO_CLOCK_FILE=%s exec %s \"$@\"\n" % (
                lib, path, b.program))
        os.chmod(self.program, 0o755)

    def jump(self, seconds):
        self.shared[:8] = struct.pack("=q", int(seconds * 1e9))

    def asked(self):
        return struct.unpack("=q", self.shared[8:])[0]


class Restless:
    """The clock jumps to and fro, by hours, until the end."""

    def __init__(self, b, clock):
        self.clock, self.over = clock, threading.Event()
        self.offsets = [b.rng.uniform(-9, 9) * HOUR for _ in range(200)]
        self.thread = threading.Thread(target=self.run)

    def run(self):
        n = 0
        while not self.over.wait(0.05):
            self.clock.jump(self.offsets[n % len(self.offsets)])
            n += 1

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *exc):
        self.over.set()
        self.thread.join()


def heartbeat(b, peer, local):
    return ["-object", "colo-heartbeat,id=hb,peer=127.0.0.1:%d,local=127.0.0.1:%d,"
            "interval=100,timeout=2000,key-file=%s" % (peer, local, b.dir + "/key")]


def clocked_pair(b, etcd):
    clocks = {name: Clock(b, name) for name in ("primary", "secondary")}
    with open(b.dir + "/key", "w") as f:
        f.write("0123456789abcdef0123456789abcdef")
    os.chmod(b.dir + "/key", 0o600)
    x, y = free_port(), free_port()
    words = [*b.rom, "-colo", "arbiter=witness,witness=%s,witness-lease=%d,witness-key=k" % (
        etcd.url, LEASE)]
    program = b.program
    hosts = []
    for name, make, ports in (("primary", b.primary, (x, y)), ("secondary", b.secondary, (y, x))):
        b.program = clocks[name].program
        hosts.append(make(*words, *heartbeat(b, *ports)))
    b.program = program
    b.protect(*hosts)
    assert all(c.asked() for c in clocks.values()), "nobody looks at these clocks"
    return (*hosts, clocks["primary"], clocks["secondary"])


def stays(host, state, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert host.status()["state"] == state, host.status()
        time.sleep(0.1)


def checkpoints(p):
    before = p.status()["checkpoints"]
    p.cmd("xen-colo-do-checkpoint")
    p.wait("a checkpoint", lambda: p.status()["checkpoints"] > before)


@case
def while_protected_and_in_the_takeover(b):
    """Protection lives; the primary dies, the secondary takes over and keeps its lease."""
    with Etcd(b) as etcd:
        p, s, of_p, of_s = clocked_pair(b, etcd)
        for clock in (of_p, of_s):
            for hours in (7, -7, 0):
                clock.jump(hours * HOUR)
                checkpoints(p)
        with Restless(b, of_p), Restless(b, of_s):
            stays(p, "protected", 2)
            checkpoints(p)
            stays(s, "protected", 1)
        for host in (p, s):
            assert not host.events("COLO_HEARTBEAT_LOST") and not host.events("COLO_EXIT")
        with Restless(b, of_s):
            p.process.kill()
            s.wait_state("alone", 30)
            stays(s, "alone", 2.5 * LEASE)
        of_s.jump(100 * HOUR)
        assert s.runs() and s.status()["arbiter"]["ownership"] == "alone", s.status()
        exited = s.events("COLO_EXIT")[0]["timestamp"]["seconds"]
        assert abs(exited - time.time()) > 60, "the clock has not jumped"


@case
def alone_and_out_of_the_witness_reach(b):
    """Whatever the clock says, a primary that runs alone is silent before its lease is over
    elsewhere, and serves again when the witness is back."""
    with Etcd(b) as etcd:
        p, s, of_p, of_s = clocked_pair(b, etcd)
        s.process.kill()
        with Restless(b, of_p):
            p.wait_state("alone", 30)
            left = lambda: p.status()["arbiter"]["lease-left"]
            assert left() > 0
            os.kill(etcd.popen.pid, signal.SIGSTOP)
            try:
                p.wait("lease over", lambda: left() == 0, LEASE + 10)
                of_p.jump(-50 * HOUR)
                time.sleep(0.5)
                assert left() == 0, "a clock that went back has made the lease longer"
            finally:
                os.kill(etcd.popen.pid, signal.SIGCONT)
            p.wait("lease again", lambda: left() > 0, 40)
        stays(p, "alone", 1)


if __name__ == "__main__":
    sys.exit(main())
