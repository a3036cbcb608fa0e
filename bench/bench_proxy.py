# colo-compare alone, ours and stock's, fed by the same feeder in one run.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Feeder and comparison share the machine's cores, so what counts is the rate a core of the
comparing process: frames of the primary that came out, by its processor time. The rate by
the clock stands beside it. 100 frames are under way at a time: with more, stock loses
frames on a full outdev. What ours does with 768 is shown too.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time

from bench_svg import Plot, svg

STOCK = "qemu-system-x86_64"
TABLE = [(proto, size, flows) for proto in ("tcp", "udp") for size in (64, 1500)
         for flows in (1, 1000, 16000)]
CURVE_FLOWS = (1, 10, 100, 1000, 4000, 16000)
CURVE_QUEUED = (0, 100, 1000, 4000, 16000)
QUEUED_FLOWS = 1000
WINDOW, WIDE = 100, 768  # frames


class Comparison:
    """A process with a colo-compare and nothing else to do."""

    def __init__(self, label, program, ours):
        self.label, self.dir = label, tempfile.mkdtemp(prefix="colo-bench-")
        self.paths = [os.path.join(self.dir, n) for n in ("p", "s", "o")]
        argv = [program, "-nodefaults", "-display", "none", "-S", "-accel", "tcg"]
        argv += ["-M", "pc", "-m", "32", "-colo", "compare-always=on"] if ours \
            else ["-M", "none"]
        argv += ["-object", "iothread,id=io"]
        for name, path in zip(("p", "s", "o"), self.paths):
            argv += ["-chardev", "socket,id=%s,path=%s,server=on,wait=off" % (name, path)]
        argv += ["-object", "colo-compare,id=c,primary_in=p,secondary_in=s,outdev=o,"
                 "iothread=io,compare_timeout=100000"]
        # Stock tells of each frame that it loses; the feeder counts them.
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while not all(os.path.exists(p) for p in self.paths):
            assert self.process.poll() is None and time.monotonic() < end, \
                "%s: did not start" % label
            time.sleep(0.05)
        time.sleep(0.3)

    def rss_mib(self):
        with open("/proc/%d/smaps_rollup" % self.process.pid) as f:
            return next(int(line.split()[1]) for line in f
                        if line.startswith("Private_Dirty")) / 1024

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def feed(feeder, c, **options):
    argv = [feeder, "--primary", c.paths[0], "--secondary", c.paths[1], "--out", c.paths[2],
            "--pid", str(c.process.pid)]
    for key, value in options.items():
        argv += ["--" + key, str(value)]
    # A feeder that comes to a stall ends by itself.
    run = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert run.stdout, "%s: %s" % (c.label, run.stderr.strip())
    return json.loads(run.stdout)


def one(feeder, start, **options):
    """A fresh process for each figure: flows of an earlier one do not weigh on it."""
    with start() as c:
        before = c.rss_mib()
        r = feed(feeder, c, **options)
        r["grown_mib"] = c.rss_mib() - before
        return r


def measure(b, build):
    feeder = os.path.join(build, "bench", "proxy-feeder")
    seconds = 0.5 if b.options.quick else 1.5
    sides = {"stock": lambda: Comparison("stock", STOCK, False),
             "ours": lambda: Comparison("ours", b.options.emulator, True)}
    sides["wide"] = sides["ours"]
    out = {"table": [], "flows": [], "queued": [], "latency": {}, "engine": []}
    common = {"seconds": seconds, "warm": 0.2}

    def each(into, what, columns=("stock", "ours"), **options):
        row = dict(what)
        for side in columns:
            try:
                row[side] = one(feeder, sides[side], **common, **options,
                                window=WIDE if side == "wide" else WINDOW)
                wrong = row[side]["bad"] if side != "stock" else 0
                if side != "stock":
                    wrong += sum(row[side][k] for k in ("lost", "disordered", "stalls"))
                if wrong:
                    b.failures.append("%s %s: %d frames came out wrong or not at all" %
                                      (side, what, wrong))
            except AssertionError as e:
                b.failures.append("%s %s" % (what, e))
        into.append(row)

    for proto, size, flows in TABLE:
        each(out["table"], {"proto": proto, "size": size, "flows": flows},
             ("stock", "ours", "wide"), proto=proto, size=size, flows=flows)
    for flows in CURVE_FLOWS:
        each(out["flows"], {"flows": flows}, flows=flows)
    for queued in CURVE_QUEUED:
        each(out["queued"], {"queued": queued}, flows=QUEUED_FLOWS, queued=queued)
    for side in ("stock", "ours"):
        for name, gap in (("idle", 500), ("busy", 20)):
            out["latency"]["%s %s" % (side, name)] = one(
                feeder, sides[side], seconds=min(seconds, 1.0), latency=gap)
    for proto, size, flows in TABLE:
        run = subprocess.run([os.path.join(build, "bench", "proxy-engine"), proto, str(size),
                              str(flows), "0", "0.2"], capture_output=True, text=True)
        out["engine"].append({"proto": proto, "size": size, "flows": flows,
                              **json.loads(run.stdout)})
    return out


def kilo(r, key="per_core_s"):
    return "%.0f" % (r[key] / 1e3) if r else "-"


def times(a, b):
    return "%.1f" % (a["per_core_s"] / b["per_core_s"]) if a and b and b["per_core_s"] \
        else "-"


def show_proxy(show, r):
    rows = []
    for row, engine in zip(r["table"], r["engine"]):
        stock, ours, wide = (row.get(k) for k in ("stock", "ours", "wide"))
        rows.append(["%s %d B, %d flows" % (row["proto"], row["size"], row["flows"]),
                     kilo(stock), kilo(ours), times(ours, stock), kilo(wide),
                     kilo(stock, "per_s"), kilo(ours, "per_s"), kilo(wide, "per_s"),
                     "%d" % stock["lost"] if stock else "-", "%.0f" % engine["ns"],
                     *("%.1f" % s["grown_mib"] if s else "-" for s in (stock, ours, wide))])
    show(["colo-compare, 1000 frames/s", "stock/core", "ours/core", "times", "wide/core",
          "stock", "ours", "wide", "stock lost", "engine ns", "stock MiB", "ours", "wide"],
         rows)
    for key in ("flows", "queued"):
        show(["TCP 64 B by %s%s" % (key, "" if key == "flows" else " frames, 1000 flows"),
              "stock/core", "ours/core"],
             [[row[key], kilo(row.get("stock")), kilo(row.get("ours"))] for row in r[key]])
    show(["added latency, us", "n", "median", "p99", "max"],
         [[k, v["n"], *("%.1f" % v[x] for x in ("median_us", "p99_us", "max_us"))]
          for k, v in r["latency"].items()])


def proxy_svg(r, facts=None):
    """Two plots, one below the other: by flows, by queued frames."""
    def series(rows, key):
        return {side: [(row[key], row[side]["per_core_s"] / 1e6) for row in rows
                       if side in row] for side in ("stock", "ours")}
    return svg([Plot("flows (TCP, 64 B)", "million frames/s a core",
                     series(r["flows"], "flows")),
                Plot("frames queued (TCP, 64 B, %d flows)" % QUEUED_FLOWS,
                     "million frames/s a core", series(r["queued"], "queued"))], facts)
