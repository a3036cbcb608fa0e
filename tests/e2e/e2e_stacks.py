# Two Linux network stacks as the two guests of a pair.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
    host a: qemu-colo -- bad-wire -- eth0 of namespace p   (the PVM's stack)
    host b: qemu-colo -- bad-wire -- eth0 of namespace s   (the SVM's stack)

Both front-ends are the real ones, each with its stock emulator, protected by the documented
procedure. But the machines have no operating system and no NIC: their netdev's socket is
given to a wire, whose other end is the only NIC of a namespace with the guest's address and
the test's server in it. So client, PVM and SVM are three Linux stacks, and what is tested is
all that lies between them.

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
FAR_IP, FAR_ROUTER_IP = "10.68.0.2", "10.68.0.1"
STACK = {"a": "p", "b": "s"}  # whose namespace is whose guest

EMULATOR = """#!/bin/sh
# The stock emulator; its netdev's socket goes to a wire.
for word; do
    case "$word" in
    dgram,id=hn0,local.type=fd,local.str=*)
        fd=${word##*=}
        word=hubport,id=hn0,hubid=0;;
    esac
    set -- "$@" "$word"
    shift
done
%s --fd "$fd" >%s 2>&1 &
exec qemu-system-x86_64 "$@"
"""


class StackNetwork(Network):
    names = "abcpsd"

    def _build(self):
        super()._build()
        c = self.ns["c"]
        self.run_in(c, "sysctl", "-qw", "net.ipv6.conf.br-lan.disable_ipv6=0",
                    "net.ipv6.conf.br-lan.accept_ra=0")
        _ip("-n", c, "addr", "add", CLIENT_IP6 + "/64", "dev", "br-lan", "nodad")
        # A second client, d, behind the first one, which is its router.
        d = self.ns["d"]
        _ip("-n", c, "link", "add", "far", "type", "veth", "peer", "name", "eth0", "netns", d)
        self.run_in(c, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.icmp_ratelimit=0")
        _ip("-n", c, "addr", "add", FAR_ROUTER_IP + "/24", "dev", "far")
        _ip("-n", c, "link", "set", "far", "up")
        _ip("-n", d, "addr", "add", FAR_IP + "/24", "dev", "eth0")
        _ip("-n", d, "link", "set", "eth0", "up")
        _ip("-n", d, "route", "add", "default", "via", FAR_ROUTER_IP)

    def far_mtu(self, mtu):
        """Of the way from the router to d; d itself does not know."""
        _ip("-n", self.ns["c"], "link", "set", "far", "mtu", str(mtu))

    def set_up_stack(self, who):
        ns = self.ns[who]
        self.run_in(ns, "sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=0",
                    "net.ipv6.conf.eth0.accept_ra=0", "net.ipv6.conf.eth0.accept_dad=0",
                    "net.ipv6.conf.eth0.router_solicitations=0")
        _ip("-n", ns, "link", "set", "eth0", "address", GUEST_MAC)
        # A burst must not be lost here: losses are the wire's.
        _ip("-n", ns, "link", "set", "eth0", "txqueuelen", "20000")
        _ip("-n", ns, "link", "set", "eth0", "up")
        _ip("-n", ns, "addr", "add", GUEST_IP + "/24", "dev", "eth0")
        _ip("-n", ns, "route", "add", "default", "via", CLIENT_IP)
        _ip("-n", ns, "addr", "add", GUEST_IP6 + "/64", "dev", "eth0", "nodad")


class Opener:
    """A running stack_peer.py in a client's namespace."""

    def __init__(self, pair, number, job, who):
        self.result = None
        self.process = Process(
            "opener", pair.net.wrap(who, [sys.executable, HERE + "/stack_peer.py", "open",
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
            return "client: " + self.process.output()[-2000:]
        return "client: " + "; ".join("%s: %d of %d failed: %s" % (
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
        self.wires = {}
        super().__init__(t, disk="none", boots=False, reconnect="reconnect-ms=50", mem=16,
                         checkpoint_delay=10 ** 8, **changes)
        self.sysctl = ["net.ipv4.tcp_congestion_control=reno", "net.ipv4.tcp_fastopen=0",
                       *sysctl]
        for i, who in enumerate("ab"):
            rundir = self.hosts[who].dir
            os.mkfifo(rundir + "/control")
            wire = self.net.wrap(STACK[who], [
                find_program("bad-wire", None), "--tap", "eth0", "--control",
                rundir + "/control", "--seed", str(t.rng.randrange(1 << 30)),
                "--isn", str(isn[i]), "--ts", str(ts[i])])
            with open(rundir + "/emulator", "w") as f:
                f.write(EMULATOR % (" ".join(wire), rundir + "/wire.log"))
            os.chmod(rundir + "/emulator", 0o755)
        self.cfg.extra_primary += ("-trace", "colo:net_compare_trigger", "-colo",
                                   colo + self.a.dir + "/emulator")
        self.cfg.extra_secondary += ("-colo", colo + self.b.dir + "/emulator")

    def start(self):
        """Both machines, both stacks with a server in each."""
        super().start(boot=False)
        for who, ns in STACK.items():
            rundir = self.hosts[who].dir
            self.wait_for_word(self.hosts[who].process, "ready", rundir + "/wire.log")
            self.wires[ns] = rundir + "/control"
            self.net.set_up_stack(ns)
        for ns in "cps":
            self.net.run_in(self.net.ns[ns], "sysctl", "-qw", *self.sysctl)
        for ns in "ps":
            server = Process("server", self.net.wrap(ns, [
                sys.executable, HERE + "/stack_peer.py", "serve", GUEST_IP, GUEST_IP6,
                str(PORT)]), "%s/server-%s.log" % (self.dir, ns))
            self.others.append(server)
            self.wait_for_word(server, "ready", server.log)

    @staticmethod
    def wait_for_word(process, word, path):
        end = time.monotonic() + 10
        while True:
            if os.path.exists(path):
                with open(path) as f:
                    text = f.read()
                if word in text:
                    return
                if time.monotonic() > end:
                    raise RuntimeError("%s: %s" % (path, text))
            if not process.alive():
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
            with open(self.wires[ns], "w") as f:
                for d in way.split():
                    f.write(d + "".join(" %s=%g" % item for item in faults.items()) + "\n")

    def open(self, *groups, host=GUEST_IP, who="c"):
        opener = Opener(self, len(self.clients), {
            "host": host, "port": PORT, "seed": self.t.rng.randrange(1 << 30),
            "groups": groups}, who)
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
