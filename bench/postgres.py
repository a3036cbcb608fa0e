#!/usr/bin/env python3
# PostgreSQL in a Debian guest, pgbench outside: side by side, in one run.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
The same guest alone on stock QEMU, behind qemu-colo without protection, each of both again
beside a second guest that bears the same load, and protected in each mode. Transactions a
second of pgbench's own scripts: "tpcb" (five statements, a commit that is flushed to the
disk) and "select" (one statement).

Where both hosts share one small machine the twin columns are the fair ones.
"""

import os
import re
import statistics
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "tests", "e2e"))

import colo_e2e  # noqa: E402
import rows  # noqa: E402
from e2e_net import GUEST_IP, TWIN_IP  # noqa: E402

STOCK = "qemu-system-x86_64"
SCRIPTS = (("tpcb", "tpcb-like"), ("select", "select-only"))
TPS = re.compile(r"tps = ([0-9.]+) \(without")
LATENCY = re.compile(r"latency average = ([0-9.]+) ms")
FAILED = re.compile(r"number of failed transactions: ([0-9]+)")


def build_guest():
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "postgres-guest.sh")
    done = subprocess.run([script], stdout=subprocess.PIPE, text=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.split() if "=" in line)


class Pgbench:
    def __init__(self, bed, root, host, script, options):
        pg = os.listdir(root + "/usr/lib/postgresql")[0]
        words = ["chroot", root, "/usr/lib/postgresql/%s/bin/pgbench" % pg, "-n", "-b", script,
                 "-c", str(options.connections), "-T", str(options.seconds), "-U", "postgres",
                 "-h", host, "bench"]
        self.popen = subprocess.Popen(bed.net.wrap("c", words), text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def result(self, timeout):
        out = self.popen.communicate(timeout=timeout)[0]
        assert self.popen.returncode == 0, "pgbench: " + out[-800:]
        failed = FAILED.search(out)
        assert not failed or failed.group(1) == "0", "pgbench: " + out[-800:]
        assert TPS.search(out), "pgbench: " + out[-800:]
        return {"tps": float(TPS.search(out).group(1)),
                "latency_ms": float(LATENCY.search(out).group(1))}


def rounds(options, bed, hosts, status=None):
    out = {}
    for key, script in SCRIPTS:
        Pgbench(bed, options.root, hosts[0], script,
                options_with(options, seconds=2)).result(60)
        got = []
        before = status() if status else None
        for _ in range(options.rounds):
            runs = [Pgbench(bed, options.root, h, script, options) for h in hosts]
            got.append([r.result(options.seconds + 60) for r in runs][0])
        out[key] = {"tps": [g["tps"] for g in got],
                    "latency_ms": statistics.median(g["latency_ms"] for g in got)}
        if status:
            after = status()
            out[key]["checkpoints"] = after["checkpoints"] - before["checkpoints"]
            out[key]["triggers"] = {t: n - before["triggers"].get(t, 0)
                                    for t, n in after["triggers"].items()
                                    if n != before["triggers"].get(t, 0)}
    return out


def options_with(options, **changes):
    return type(options)(**{**vars(options), **changes})


def guest(options):
    return {"mem": 512, "other": options.other, "smp": options.smp, "disk_mib": 768}


def run_single(options, emulator, twin, extra=()):
    t = colo_e2e.Test(options, "postgres", 0)
    t.emulator = emulator
    with colo_e2e.Single(t, twin=twin, extra=extra, **guest(options)) as bed:
        bed.start()
        return rounds(options, bed, [GUEST_IP, TWIN_IP] if twin else [GUEST_IP])


def run_protected(options, mode):
    with colo_e2e.Pair(colo_e2e.Test(options, "postgres-" + mode, 0), **guest(options)) as p:
        p.start(boot=False)  # the disk must not be written before it is replicated
        p.protect(timeout=180)
        if mode != "colo":
            p.primary.qmp.cmd("migrate-set-parameters", {"x-colo-mode": mode})
        got = rounds(options, p, [GUEST_IP],
                     lambda: p.primary.qmp.cmd("query-colo-status"))
        status = p.primary.qmp.cmd("query-colo-status")
        assert status["mode"] == "primary", status
        return got


FRONT = ("-colo", "checkpoint-events=on")
RUNS = {
    "alone": lambda o: run_single(o, STOCK, False),
    "twin": lambda o: run_single(o, STOCK, True),
    "front": lambda o: run_single(o, o.emulator, False, FRONT),
    "front-twin": lambda o: run_single(o, o.emulator, True, FRONT),
    "colo": lambda o: run_protected(o, "colo"),
    "buffered": lambda o: run_protected(o, "buffered"),
    "adaptive": lambda o: run_protected(o, "adaptive"),
}


def median(results, name, key):
    return statistics.median(results[name][key]["tps"]) if name in results else None


def show(results):
    names = [n for n in RUNS if n in results]
    print("%-22s" % "transactions a second" + "".join("%12s" % n for n in names))
    for key, script in SCRIPTS:
        print("%-22s" % script + "".join("%12.0f" % median(results, n, key) for n in names))
    for base in ("alone", "twin", "front", "front-twin"):
        for n in ("colo", "buffered", "adaptive"):
            if base in results and n in results:
                print("%-10s of %-12s %s" % (n, base, ", ".join("%s %.0f %%" % (
                    key, 100 * median(results, n, key) / median(results, base, key))
                    for key, _ in SCRIPTS)))


def tell(result):
    return "; ".join("%s %s %s" % (key, " ".join("%.0f" % v for v in result[key]["tps"]),
                                   result[key].get("triggers", "")) for key, _ in SCRIPTS)


def main():
    parser = rows.arguments(RUNS, rounds=3)
    parser.add_argument("--seconds", type=int, default=5, help="length of one measurement")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--smp", type=int, default=1)
    options = rows.parse(parser)
    made = build_guest()
    options.other = (made["kernel"], made["initrd"], made["image"])
    options.root = made["root"]
    return rows.run(RUNS, options, tell, show)


if __name__ == "__main__":
    sys.exit(main())
