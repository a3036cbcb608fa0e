# Two Linux network stacks as the two guests of a pair.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
    host a: qemu-colo -- QEMU's hub -- bad-wire -- eth0 of namespace p   (the PVM's stack)
    host b: qemu-colo -- QEMU's hub -- bad-wire -- eth0 of namespace s   (the SVM's stack)

Both pairs of qemu-colo and QEMU are the real ones, protected by the documented procedure.
Their machines have no operating system and no NIC: a hub joins the child's netdev to a
wire, whose other end is the only NIC of a namespace with the guest's address and the test's
server in it. So client, PVM and SVM are three Linux stacks, and what is tested is all that
lies between them.

A checkpoint copies nothing of such a stack. So connections are made after the last one,
wishes for others are counted and not followed (-colo ignore-wishes=on), and a case says how
many wishes it allows. What only a checkpoint can let out stays inside, and the test fails.
"""

import json
import os
import subprocess
import sys
import time

from colo_e2e import Pair, find_program
from e2e_guest import GUEST_MAC
from e2e_net import CLIENT_IP, GUEST_IP, Network, _ip
from e2e_proc import Process

HERE = os.path.dirname(os.path.abspath(__file__))
PORT = 7100
CLIENT_IP6 = "fd00:66::1"
GUEST_IP6 = "fd00:66::10"
STACK = {"a": "p", "b": "s"}  # whose namespace is whose guest

EMULATOR = """#!/bin/sh
# The stock emulator, with a wire on the hub.
exec qemu-system-x86_64 "$@" -netdev hubport,id=hub0,hubid=0,netdev=hn0 \\
    -netdev stream,id=wire,server=off,addr.type=unix,addr.path=%s \\
    -netdev hubport,id=hub1,hubid=0,netdev=wire
"""


class StackNetwork(Network):
    names = "abcps"

    def _build(self):
        super()._build()
        c = self.ns["c"]
        self.run_in(c, "sysctl", "-qw", "net.ipv6.conf.br-lan.disable_ipv6=0",
                    "net.ipv6.conf.br-lan.accept_ra=0")
        _ip("-n", c, "addr", "add", CLIENT_IP6 + "/64", "dev", "br-lan", "nodad")

    def set_up_stack(self, who):
        ns = self.ns[who]
        self.run_in(ns, "sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=0",
                    "net.ipv6.conf.eth0.accept_ra=0", "net.ipv6.conf.eth0.accept_dad=0",
                    "net.ipv6.conf.eth0.router_solicitations=0")
        _ip("-n", ns, "link", "set", "eth0", "address", GUEST_MAC)
        _ip("-n", ns, "link", "set", "eth0", "up")
        _ip("-n", ns, "addr", "add", GUEST_IP + "/24", "dev", "eth0")
        _ip("-n", ns, "addr", "add", GUEST_IP6 + "/64", "dev", "eth0", "nodad")


class Opener:
    """A running stack_peer.py in the client's namespace."""

    def __init__(self, pair, number, job):
        self.result = None
        self.process = Process(
            "opener", pair.net.wrap("c", [sys.executable, HERE + "/stack_peer.py", "open",
                                          json.dumps(job)]),
            "%s/opener-%d.json" % (pair.dir, number))

    def wait(self, timeout=120):
        """Whether each connection went on to its end, with the right bytes."""
        status = self.process.wait(timeout)
        for line in self.process.output().splitlines():
            if line.startswith("{"):
                self.result = json.loads(line)
        return status

    def why(self):
        if not self.result:
            return self.process.output()[-2000:]
        return "; ".join("%s: %d of %d failed: %s" % (
            name, len(r["errors"]), r["done"], r["errors"][0])
            for name, r in self.result.items() if r["errors"])

    def gap_ms(self):
        return max(r["gap_ms"] for r in self.result.values())


class StackPair(Pair):
    """
    @sysctl: of all three stacks. @isn, @ts: of the SVM's and PVM's stacks, what their numbers
    are shifted by. The wires begin without faults; see wire().
    """

    def __init__(self, t, sysctl=(), isn=(0, 0), ts=(0, 0), **changes):
        t.network = lambda rundir: StackNetwork()
        colo = "ignore-wishes=on,peer-timeout=5000,emulator="
        self.isn, self.ts = isn, ts
        self.wires = {}
        super().__init__(t, disk="none", boots=False, reconnect="reconnect-ms=50", mem=16,
                         checkpoint_delay=10 ** 8, **changes)
        self.sysctl = ["net.ipv4.tcp_congestion_control=reno", "net.ipv4.tcp_fastopen=0",
                       *sysctl]
        for host in self.hosts.values():
            path = host.dir + "/emulator"
            with open(path, "w") as f:
                f.write(EMULATOR % (host.dir + "/wire"))
            os.chmod(path, 0o755)
        self.cfg.extra_primary += ("-colo", colo + self.a.dir + "/emulator")
        self.cfg.extra_secondary += ("-colo", colo + self.b.dir + "/emulator")

    def start(self):
        """Both machines, both stacks with a server in each."""
        for i, who in enumerate("ab"):
            ns, rundir = STACK[who], self.hosts[who].dir
            words = [find_program("bad-wire", None), "--tap", "eth0", "--listen",
                     rundir + "/wire", "--seed", str(self.t.rng.randrange(1 << 30)),
                     "--isn", str(self.isn[i]), "--ts", str(self.ts[i])]
            wire = Process("bad-wire", self.net.wrap(ns, words), rundir + "/wire.log",
                           stdin=subprocess.PIPE)
            self.others.append(wire)
            self.wires[ns] = wire
            self.wait_for_word(wire, "ready")
            self.net.set_up_stack(ns)
        for ns in "cps":
            self.net.run_in(self.net.ns[ns], "sysctl", "-qw", *self.sysctl)
        super().start(boot=False)
        for ns in "ps":
            server = Process("server", self.net.wrap(ns, [
                sys.executable, HERE + "/stack_peer.py", "serve", GUEST_IP, GUEST_IP6,
                str(PORT)]), "%s/server-%s.log" % (self.dir, ns))
            self.others.append(server)
            self.wait_for_word(server, "ready")

    @staticmethod
    def wait_for_word(process, word):
        end = time.monotonic() + 10
        while word not in process.output():
            if not process.alive() or time.monotonic() > end:
                raise RuntimeError("%s: %s" % (process.name, process.output()))
            time.sleep(0.01)

    def wait_ready(self, timeout=60):
        pass

    def protect(self, timeout=60):
        self.prepare_secondary()
        self.set_delay(self.cfg.checkpoint_delay)
        self.primary.qmp.wait_for("mirror stream", lambda q: any(
            o["type"] == "filter-mirror" and o["connected"] for o in q.cmd("query-colo-proxy")))
        self.migrate()
        self.wait_protected(timeout)
        self.checkpoints = self.primary.qmp.cmd("query-colo-status")["checkpoints"]

    def wire(self, who="ps", way="in out", **faults):
        """Set faults of the wires: delay, jitter (us), loss, dup, reorder (0 to 1)."""
        for ns in who:
            for d in way.split():
                line = d + "".join(" %s=%g" % item for item in faults.items()) + "\n"
                self.wires[ns].popen.stdin.write(line.encode())
            self.wires[ns].popen.stdin.flush()

    def open(self, *groups, host=GUEST_IP):
        opener = Opener(self, len(self.clients), {
            "host": host, "port": PORT, "seed": self.t.rng.randrange(1 << 30),
            "groups": groups})
        self.clients.append(opener)
        return opener

    def proxy(self):
        """The comparison's figures; call it before the primary dies."""
        now = self.primary.qmp.cmd("query-colo-status")
        assert now["checkpoints"] == self.checkpoints, "a checkpoint came between"
        return self.primary.qmp.cmd("query-colo-proxy")

    def server_status(self):
        """What the acceptor of the side that serves says of itself."""
        done = subprocess.run(self.net.wrap("c", [
            sys.executable, "-c", "import socket; s = socket.create_connection(('%s', %d), 10);"
            "print(s.makefile().read())" % (GUEST_IP, PORT + 1)]),
            capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def take_over(self):
        """The primary's host dies; the secondary goes live."""
        self.kill_primary("front")
        self.takeover(full=False)
        return (time.monotonic() - self.killed_at) * 1e3
