#!/usr/bin/env python3
# What replication costs a guest's disk: side by side, in one run.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
The same guest and the same kind of image, measured by the guest's own clock: 4 KiB writes each
made stable, 1 MiB writes and reads in sequence, past the guest's cache.

  nbd         stock QEMU, the image behind qemu-nbd
  front       qemu-colo without protection
  replicated  protected; the SVM does the same beside it
  *-twin      beside a second guest that does the same: the fair measure of a protected
              one where both hosts share one small machine
  stock       stock QEMU's own replication, without checkpoints; the secondary stands still

Rounds go through all three loads again and again; the median of the rounds is told.
"""

import os
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "tests", "e2e"))

import colo_e2e  # noqa: E402
import rows  # noqa: E402
from e2e_guest import common, make_image  # noqa: E402
from e2e_net import GUEST_IP, TWIN_IP  # noqa: E402
from e2e_proc import Process  # noqa: E402

STOCK = "qemu-system-x86_64"
LOADS = (("sync", "4 KiB write + fdatasync", "/s"), ("write", "1 MiB writes", "MB/s"),
         ("read", "1 MiB reads", "MB/s"))
QUIET = {"mem": 256, "dirty": 0, "check": 0, "diskrate": 0, "disk_mib": 256}

ASK = """
import socket, sys
s = [socket.create_connection((ip, 7006), 20) for ip in sys.argv[3:]]
for c in s:
    c.settimeout(60)
    c.sendall(("BENCH %s %s\\n" % tuple(sys.argv[1:3])).encode())
print(s[0].makefile().readline())
for c in s[1:]:
    c.makefile().readline()
"""


def ask(bed, hosts, load, ms):
    """Operations a second, or MB/s, of the first host while all do the same."""
    words = ["python3", "-c", ASK, load, str(ms), *hosts]
    done = subprocess.run(bed.net.wrap("c", words), capture_output=True, text=True,
                          timeout=120)
    answer = done.stdout.split()
    assert answer[:1] == ["DONE"], "guest: %s: %s%s" % (load, done.stdout, done.stderr)
    rate = int(answer[1]) / (int(answer[2]) / 1e6)
    return rate if load == "sync" else rate * (1 << 20) / 1e6


def rounds(options, bed, hosts):
    got = {load: [] for load, _, _ in LOADS}
    for load in got:
        ask(bed, hosts, load, 200)  # the image's blocks are there before they count
    for _ in range(options.rounds):
        for load in got:
            got[load].append(ask(bed, hosts, load, options.ms))
    return got


class NbdSingle(colo_e2e.Single):
    """Stock QEMU with its disk behind qemu-nbd."""

    def start(self):
        for who in "ab" if self.twin else "a":
            host, cfg = self.hosts[who], self.cfg
            if who == "b":
                cfg = colo_e2e.Config(**{**vars(cfg), "ip": TWIN_IP,
                                         "mac": colo_e2e.TWIN_MAC})
            make_image(host.image, "raw", cfg.disk_mib)
            sock = "%s/nbd" % host.dir
            self.others.append(Process("qemu-nbd", [
                "qemu-nbd", "-t", "-e", "4", "-f", "raw", "--cache=writeback", "-k", sock,
                host.image], host.dir + "/nbd.log"))
            while not os.path.exists(sock):
                time.sleep(0.02)
            host.spawn(common(cfg, "single-" + who, host.dir) + [
                "-drive", "if=virtio,driver=nbd,server.type=unix,server.path=" + sock])
            host.connect()
            host.wait_ready()


def run_nbd(options, twin):
    t = colo_e2e.Test(options, "nbd", 0)
    t.emulator = STOCK
    with NbdSingle(t, twin=twin, **QUIET) as bed:
        bed.start()
        return rounds(options, bed, [GUEST_IP, TWIN_IP] if twin else [GUEST_IP])


def run_front(options, twin):
    with colo_e2e.Single(colo_e2e.Test(options, "front", 0), twin=twin,
                         extra=("-colo", "checkpoint-events=on"), **QUIET) as bed:
        bed.start()
        return rounds(options, bed, [GUEST_IP, TWIN_IP] if twin else [GUEST_IP])


def run_replicated(options):
    with colo_e2e.Pair(colo_e2e.Test(options, "replicated", 0), **QUIET) as p:
        p.start(boot=False)
        p.protect()
        got = rounds(options, p, [GUEST_IP])
        status = p.primary.qmp.cmd("query-colo-status")
        assert status["mode"] == "primary", status
        got["checkpoints"] = status["checkpoints"]
        return got


class StockPair(colo_e2e.Pair):
    """Stock replication by itself: xen-set-replication starts it without COLO."""

    def start(self, boot=True):
        cfg = self.cfg
        for host in (self.a, self.b):
            make_image(host.image, "raw", cfg.disk_mib)
        for name in ("active", "hidden"):
            make_image("%s/%s.qcow2" % (self.b.dir, name), "qcow2", cfg.disk_mib)
        self.b.spawn(common(cfg, "secondary", self.b.dir) + [
            "-drive", "if=none,id=parent0,file.filename=%s,driver=raw" % self.b.image,
            "-drive", "if=none,id=childs0,driver=replication,mode=secondary,"
            "file.driver=qcow2,top-id=colo-disk0,file.file.filename=%s/active.qcow2,"
            "file.backing.driver=qcow2,file.backing.file.filename=%s/hidden.qcow2,"
            "file.backing.backing=parent0" % (self.b.dir, self.b.dir),
            "-drive", "if=virtio,id=colo-disk0,driver=quorum,read-pattern=fifo,"
            "vote-threshold=1,children.0=childs0", "-S"])
        self.a.spawn(common(cfg, "primary", self.a.dir) + [
            "-drive", "if=virtio,id=colo-disk0,driver=quorum,read-pattern=fifo,"
            "vote-threshold=1,children.0.file.filename=%s,children.0.driver=raw"
            % self.a.image, "-S"])
        self.a.connect()
        self.b.connect()
        q = self.b.qmp
        q.cmd("nbd-server-start", {"addr": {"type": "inet", "data": {
            "host": self.net.listen["b"], "port": "9999"}}})
        q.cmd("nbd-server-add", {"device": "parent0", "writable": True})
        self.attach_disk()
        q.cmd("xen-set-replication", {"enable": True, "primary": False})
        self.a.qmp.cmd("xen-set-replication", {"enable": True, "primary": True})
        self.a.qmp.cmd("cont")
        self.a.wait_ready()


def run_stock(options):
    t = colo_e2e.Test(options, "stock", 0)
    t.emulator = STOCK
    with StockPair(t, **QUIET) as p:
        p.start()
        got = {}
        for load, _, _ in LOADS:
            # Its secondary has no checkpoints here: the log grows, so it is kept short.
            got[load] = [ask(p, [GUEST_IP], load, options.ms) for _ in range(options.rounds)]
        return got


RUNS = {
    "nbd": lambda o: run_nbd(o, False), "nbd-twin": lambda o: run_nbd(o, True),
    "front": lambda o: run_front(o, False), "front-twin": lambda o: run_front(o, True),
    "replicated": run_replicated, "stock": run_stock,
}


def median(results, name, load):
    got = results.get(name, {}).get(load)
    return statistics.median(got) if got else None


def show(results):
    names = [n for n in RUNS if n in results]
    print("%-26s" % "" + "".join("%13s" % n for n in names))
    for load, what, unit in LOADS:
        row = [median(results, n, load) for n in names]
        print("%-26s" % (what + ", " + unit) +
              "".join("%13s" % ("%.0f" % v if v else "-") for v in row))
    if "replicated" not in results:
        return
    for base in ("nbd", "nbd-twin", "front", "front-twin"):
        shares = [(load, median(results, "replicated", load), median(results, base, load))
                  for load, _, _ in LOADS]
        if base in results:
            print("replicated of %-12s %s" % (base, ", ".join(
                "%s %.0f %%" % (load, 100 * r / b) for load, r, b in shares)))


def tell(result):
    return ", ".join("%s %s" % (load, " ".join("%.0f" % v for v in result[load]))
                     for load, _, _ in LOADS)


def main():
    parser = rows.arguments(RUNS, rounds=5)
    parser.add_argument("--ms", type=int, default=1000, help="length of one measurement")
    return rows.run(RUNS, rows.parse(parser), tell, show)


if __name__ == "__main__":
    sys.exit(main())
