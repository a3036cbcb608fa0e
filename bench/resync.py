#!/usr/bin/env python3
# How long a returning host's disk takes, and what the activity log costs.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
resync: a disk of 1 GiB of random data is copied to another qemu-colo's export over TCP on
this machine: all of it, and with 1 % of its granules (64 KiB, at random) dirty; with and
without a comparison of the whole disk by checksums. Both images are in --dir.

log: 4 KiB writes, each flushed, one at a time through the disk's NBD export, with and
without a log, in turns; inside one region, and each to a region that is cold.
"""

import argparse
import os
import random
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tests", "e2e"))

from e2e_proc import QMP, Process  # noqa: E402

MIB = 1 << 20
GRANULE = 65536
PAGE_BITS = (4096 - 16) * 8
GENERATION = b"01234567-89ab-cdef-0123-456789abcdef"


def write_log(image, size, dirty=()):
    """An activity log (docs/interop/activity-log.rst) that names the granules @dirty."""
    hot = -(-size // (4 * MIB * PAGE_BITS))
    pages = -(-size // (GRANULE * PAGE_BITS))
    ident = os.urandom(8)
    head = b"QCOLOAL1" + struct.pack(">II", 1, 0) + ident + struct.pack(
        ">QIIQ", size, GRANULE, 4 * MIB, 0) + GENERATION.ljust(40, b"\0")
    out = (head + struct.pack(">I", zlib.crc32(head))).ljust(4096, b"\0")
    for n in range(hot + pages):
        bits = bytearray(4080)
        for g in dirty if n >= hot else ():
            if g // PAGE_BITS == n - hot:
                bits[g % PAGE_BITS // 8] |= 1 << g % 8
        first = ident + struct.pack(">I", n + 1)
        out += first + struct.pack(">I", zlib.crc32(first + bits)) + bits
    with open(image + ".colo-bitmap", "wb") as f:
        f.write(out)


class Host:
    def __init__(self, program, folder, name, *args):
        path = "%s/%s.qmp" % (folder, name)
        self.process = Process(name, [
            program, "-accel", "tcg", "-nodefaults", "-display", "none", "-m", "32", "-S",
            "-qmp", "unix:%s,server=on,wait=off" % path, "-colo", "checkpoint-events=on",
            *args], "%s/%s.log" % (folder, name))
        self.qmp = QMP(path, self.process)
        self.cmd = self.qmp.cmd

    def export(self, node):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.cmd("nbd-server-start", {"addr": {"type": "inet", "data": {
            "host": "127.0.0.1", "port": str(port)}}})
        self.cmd("nbd-server-add", {"device": node, "writable": True})
        return "nbd://127.0.0.1:%d/%s" % (port, node)

    def close(self):
        self.qmp.close()
        self.process.stop()


def drive(image):
    return "-drive", "if=ide,id=d0,driver=raw,file.filename=" + image


def wait_event(host, name):
    end = time.monotonic() + 120
    while not any(e["event"] == name for _, e in list(host.qmp.events)):
        if time.monotonic() > end:
            sys.exit("no %s: %s" % (name, host.process.output()))
        time.sleep(0.001)


def mirror(host, uri, sync, **more):
    """Seconds until the target is equal and durable, and bytes copied."""
    host.qmp.events.clear()
    begin = time.monotonic()
    host.cmd("drive-mirror", {"device": "d0", "job-id": "j", "target": uri, "format": "raw",
                              "mode": "existing", "sync": sync, **more})
    wait_event(host, "BLOCK_JOB_READY")
    host.cmd("block-job-cancel", {"device": "j"})
    wait_event(host, "BLOCK_JOB_COMPLETED")
    took = time.monotonic() - begin
    done = [e for _, e in host.qmp.events if e["event"] == "BLOCK_JOB_COMPLETED"][0]["data"]
    if "error" in done:
        sys.exit("mirror: " + done["error"])
    return took, done["offset"]


def bench_resync(program, folder, size, rng):
    a, z = folder + "/a.raw", folder + "/z.raw"
    with open(a, "wb") as f:
        for _ in range(size // (16 * MIB)):
            f.write(rng.randbytes(16 * MIB))
    shutil.copyfile(a, z)
    rows = {}
    for kind, sync, more in (("full", "full", {}), ("1 % dirty", "incremental", {}),
                             ("1 % dirty, compared", "incremental", {"x-verify": True})):
        dirty = rng.sample(range(size // GRANULE), size // GRANULE // 100)
        with open(a, "r+b") as f:
            for g in dirty:
                f.seek(g * GRANULE)
                f.write(rng.randbytes(GRANULE))
        os.sync()
        write_log(a, size, dirty)
        write_log(z, size)
        source, target = Host(program, folder, "a", *drive(a)), Host(program, folder, "z", *drive(z))
        took, copied = mirror(source, target.export("d0"), sync, **more)
        source.close()
        target.close()
        if subprocess.run(["cmp", "-s", a, z]).returncode:
            sys.exit("%s: the disks differ" % kind)
        rows[kind] = took
        print("%-22s %7.3f s  %7.1f MiB copied" % (kind, took, copied / MIB), flush=True)
    print("1 %% dirty takes %.3f of a full copy" % (rows["1 % dirty"] / rows["full"]))


def writes(uri, n, step):
    out = subprocess.run(
        ["qemu-img", "bench", "-f", "raw", "-w", "-c", str(n), "-d", "1", "-s", "4k", "-S",
         str(step), "--flush-interval=1", uri], capture_output=True, text=True,
        check=True).stdout
    return float(re.search(r"completed in ([\d.]+) s", out).group(1))


def bench_log(program, folder, rounds, count):
    image, size = folder + "/l.raw", 1024 * MIB
    with open(image, "wb") as f:
        for _ in range(size // (16 * MIB)):
            f.write(bytes(16 * MIB))
    os.sync()
    got = {}
    for turn in range(rounds + 1):
        for log in (False, True) if turn % 2 else (True, False):
            for kind, step, n in (("one region", 4096, count), ("cold regions", 20 * MIB, 50)):
                if log:
                    write_log(image, size)
                elif os.path.exists(image + ".colo-bitmap"):
                    os.unlink(image + ".colo-bitmap")
                host = Host(program, folder, "l", *drive(image))
                uri = host.export("d0")
                if kind == "one region":
                    writes(uri, 50, step)
                rate = n / writes(uri, n, step)
                if turn:  # the first one warms up
                    got.setdefault((kind, log), []).append(rate)
                host.close()
    for kind in ("one region", "cold regions"):
        without, with_log = (statistics.median(got[kind, x]) for x in (False, True))
        print("4k synced writes, %-13s %7.0f/s without, %7.0f/s with a log: %.2f" % (
            kind, without, with_log, with_log / without), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--build", default="build")
    parser.add_argument("--dir", help="where the images are made (2 GiB)")
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--writes", type=int, default=1000)
    parser.add_argument("--only", default="resync,log")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    program = os.path.abspath(options.build + "/system/qemu-colo")
    folder = tempfile.mkdtemp(prefix="colo-bench-", dir=options.dir)
    try:
        if "resync" in options.only:
            bench_resync(program, folder, options.size * MIB, random.Random(options.seed))
        if "log" in options.only:
            bench_log(program, folder, options.rounds, options.writes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
