#!/usr/bin/env python3
# One file, one command on each host, and nothing else.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
"coloctl run vm.conf" in both namespaces: a guest is protected, its host dies with everything
that coloctl started, the operator says "coloctl failover" on the other, and "coloctl run" on
the dead side brings the protection back. A client compares every byte all the time.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

from colo_e2e import Pair, case, main
from e2e_guest import build_guest, kernel_command_line, make_image
from e2e_proc import Process


def tool(emulator):
    path = os.path.join(os.path.dirname(os.path.abspath(emulator)), "..", "tools", "coloctl")
    return path if os.path.exists(path) else shutil.which("coloctl")


class Conf(Pair):
    """Hosts are run by coloctl; the file is one for both."""

    def __init__(self, t, pair="", **changes):
        super().__init__(t, **changes)
        kernel, initrd = build_guest()
        for host in self.hosts.values():
            host.image = "%s/%s/root.raw" % (self.dir, host.who)
            make_image(host.image, "raw", self.cfg.disk_mib)
        self.key = self.dir + "/key"
        with open(os.open(self.key, os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
            f.write("0123456789abcdef" * 3)
        self.conf = self.dir + "/vm.conf"
        args = ["-serial", "file:%s/%%h/serial.log" % self.dir, "-kernel", kernel, "-initrd",
                initrd, "-append", kernel_command_line(self.cfg).replace("%", "%%")]
        with open(self.conf, "w") as f:
            f.write("""[vm]
name = guest
accel = tcg
memory = %d
smp = 1,maxcpus=2
args = %s
[disk.root]
image = %s/%%h/root.raw
[net.lan]
tap = tap0
mac = %s
[hosts]
a = %s
b = %s
[pair]
checkpoint-delay = 500
peer-timeout = 1000
%s
[run]
qemu-colo = %s
state-dir = %s/%%h/state
run-dir = %s/%%h/run
""" % (self.cfg.mem, shlex.join(args), self.dir, self.cfg.mac, self.net.link["a"],
                self.net.link["b"], pair, os.path.abspath(self.cfg.emulator), self.dir, self.dir))

    def run(self, host):
        log = "%s/serial.log" % host.dir
        if os.path.exists(log):
            os.rename(log, "%s.%d" % (log, host.starts))
        host.starts += 1
        host.process = Process("coloctl " + host.who, self.net.wrap(host.who, [
            tool(self.cfg.emulator), "run", self.conf]), "%s/output" % host.dir)

    def ctl(self, host, *words, expect=0, timeout=120):
        done = subprocess.run(self.net.wrap(host.who, [tool(self.cfg.emulator), words[0], *words[1:],
                                                       self.conf]),
                              capture_output=True, text=True, timeout=timeout)
        assert expect is None or done.returncode == expect, "%s: %d: %s%s\n%s" % (
            words, done.returncode, done.stdout, done.stderr, host.process.output()[-2000:])
        return done.stdout

    def status(self, host):
        text = self.ctl(host, "status", "--json", expect=None)
        return json.loads(text) if text else {"state": None, "role": None, "serves": False}

    def wait(self, host, state, role=None, timeout=90):
        end = time.monotonic() + timeout
        while True:
            s = self.status(host)
            if s["state"] == state and role in (None, s["role"]):
                return s
            assert time.monotonic() < end, "%s is %s %s; %s" % (
                host.who, s["state"], s["role"], host.process.output()[-2500:])
            time.sleep(0.1)

    def both(self, primary, secondary):
        begin = time.monotonic()
        self.wait(primary, "protected", "primary")
        self.wait(secondary, "protected", "secondary")
        return time.monotonic() - begin

    def kill_tree(self, host):
        """All that runs on a host, at once."""
        done = subprocess.run(["ip", "netns", "pids", self.net.ns[host.who]], capture_output=True,
                              text=True, check=True)
        for pid in map(int, done.stdout.split()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        host.process.wait(20)

    def begin(self):
        self.run(self.a)
        self.run(self.b)
        self.both(self.a, self.b)
        self.a.wait_ready()

    def close(self):
        for host in getattr(self, "hosts", {}).values():
            if host.process:
                host.process.stop(20)
        super().close()


@case()
def host_dies_and_comes_back(t):
    """With a heartbeat, as the operator would have it."""
    with Conf(t, pair="heartbeat = on\n") as p:
        with open(p.conf) as f:
            text = f.read().replace("heartbeat = on", "heartbeat = on\nkey-file = " + p.key)
        with open(p.conf, "w") as f:
            f.write(text)
        p.begin()
        client = p.client("all", 600)
        t.sleep(1, 3)
        assert p.status(p.a)["colo"]["heartbeat"]["state"] == "up", p.status(p.a)["colo"]
        p.kill_tree(p.a)
        p.wait(p.b, "lost", "secondary")
        p.ctl(p.b, "failover")
        assert p.status(p.b)["serves"]
        t.sleep(0, 1)
        p.run(p.a)
        seconds = p.both(p.b, p.a)
        p.ctl(p.b, "checkpoint")
        t.sleep(1, 2)
        p.kill_tree(p.b)
        p.wait(p.a, "lost", "secondary")
        p.ctl(p.a, "failover")
        t.sleep(1)
        assert client.stop() == 0, client.why()
        p.check_guest()
        return "protected again in %.1f s; gap %.0f ms" % (seconds, client.gap_ms())


@case()
def roles_change_hands(t):
    """Planned, under load, there and back."""
    with Conf(t) as p:
        p.begin()
        client = p.client("all", 600)
        t.sleep(1, 2)
        p.ctl(p.a, "failover", "--planned")
        p.both(p.b, p.a)
        p.ctl(p.b, "failover", "--planned")
        seconds = p.both(p.a, p.b)
        t.sleep(1)
        assert client.stop() == 0, client.why()
        p.check_guest()
        return "protected again in %.1f s; gap %.0f ms" % (seconds, client.gap_ms())


if __name__ == "__main__":
    sys.exit(main())
