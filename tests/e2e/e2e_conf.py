# A pair that coloctl runs: one vm.conf, "coloctl run" on each host.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
import json
import os
import shlex
import shutil
import signal
import subprocess
import time

from colo_e2e import Pair
from e2e_guest import build_guest, kernel_command_line, make_image
from e2e_proc import Process, within


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
            within(end, lambda: "%s is %s %s; %s" % (
                host.who, s["state"], s["role"], host.process.output()[-2500:]))
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
        self.a.wait_ready(180)

    def close(self):
        for host in getattr(self, "hosts", {}).values():
            if host.process:
                host.process.stop(20)
        super().close()
