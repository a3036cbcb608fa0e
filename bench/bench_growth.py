# How the pause grows: against the size of RAM, and against what the guest writes.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
The guest writes to a region of 192 MiB whatever its size; what it never touches is sparse on
this machine, which holds both sides. The tracker looks at every page of RAM all the same.
"""

import time

import colo_e2e
from bench_svg import Plot, svg

SIZES = (512, 2048, 4096, 8192)      # MiB
RATES = (0, 20)                      # MB/s at each size
DIRTY = (0, 10, 25, 50, 100, 200, 400)
SERIES = (("pause", "pause-us"), ("lag", "lag-us"))


def percentile(values, p):
    s = sorted(values)
    return s[max(0, -(-len(s) * p // 100) - 1)]


def level(p, rate, seconds):
    """Figures of the checkpoints of some seconds at @rate MB/s."""
    p.control("SET dirty=%d" % rate)
    time.sleep(1.5)
    a, b = p.primary.qmp, p.secondary.qmp
    before, begin = p.control("STATUS"), time.monotonic()
    got = {name: [] for name, _ in SERIES}
    pages, last = [], a.cmd("query-colo-status")["checkpoints"]
    while time.monotonic() < begin + seconds:
        time.sleep(0.05)
        s = a.cmd("query-colo-status")
        if s["checkpoints"] != last:
            last = s["checkpoints"]
            got["pause"].append(s["pause-us"]["last"] / 1e3)
            got["lag"].append(b.cmd("query-colo-status")["lag-us"]["last"] / 1e3)
            pages.append(s["dirty-pages"]["last"])
    after, spent = p.control("STATUS"), time.monotonic() - begin
    assert pages, "no checkpoint in %s s" % seconds
    return {"asked_mb_s": rate, "n": len(pages), "pages": percentile(pages, 50),
            "dirty_mb_s": (after["mem_written"] - before["mem_written"]) * 4096 / spent / 1e6,
            **{name: {q: percentile(v, n) for q, n in (("median", 50), ("p99", 99))}
               for name, v in got.items()}}


def pair(b, name, mem):
    return colo_e2e.Pair(b.test(name), mem=mem, region=192, dirty=0, check=0, diskrate=0,
                         checkpoint_delay=500)


def measure_ram(b, sizes=SIZES):
    out = []
    for mem in sizes:
        b.say("growth: %d MiB" % mem)
        with pair(b, "growth", mem) as p:
            p.start(boot=False)
            p.protect(120)
            for rate in RATES:
                out.append({"mem": mem, **level(p, rate, b.options.pause_seconds)})
    return out


def measure_dirty(b):
    out = []
    with pair(b, "growth", 512) as p:
        p.start(boot=False)
        p.protect()
        for rate in DIRTY:
            b.say("growth: %d MB/s" % rate)
            out.append(level(p, rate, b.options.pause_seconds))
    return out


def show_growth(show, results):
    def cells(r):
        return ["%.0f" % r["pages"], r["n"]] + \
            ["%.2f" % r[name][q] for name, _ in SERIES for q in ("median", "p99")]
    head = ["pages", "n", "pause median", "p99", "lag median", "p99 ms"]
    if "growth-ram" in results:
        show(["RAM, MiB", "MB/s"] + head,
             [[r["mem"], "%.0f" % r["dirty_mb_s"]] + cells(r) for r in results["growth-ram"]])
    if "growth-dirty" in results:
        show(["MB/s asked", "MB/s written"] + head,
             [[r["asked_mb_s"], "%.0f" % r["dirty_mb_s"]] + cells(r)
              for r in results["growth-dirty"]])


def growth_svg(results, facts=None):
    plots = []
    ram, dirty = results.get("growth-ram"), results.get("growth-dirty")
    if ram:
        plots.append(Plot("MiB of RAM", "guest pause, ms", {
            "%d MB/s %s" % (rate, q): [(r["mem"], r["pause"][q]) for r in ram
                                       if r["asked_mb_s"] == rate]
            for rate in RATES for q in ("median", "p99")}))
    if dirty:
        plots.append(Plot("MB/s written by the guest, 512 MiB (0 stands at 1)", "guest pause, ms", {
            q: [(r["asked_mb_s"], r["pause"][q]) for r in dirty] for q in ("median", "p99")}))
    return svg(plots, facts)
