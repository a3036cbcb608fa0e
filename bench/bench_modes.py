# Modes of protection side by side: service, pause and commit, by epoch length.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
One pair goes through colo, buffered with epochs of several lengths, and adaptive. In each a
client asks for 1 KiB over new connections (8 at once), downloads, and counts round trips; each
checkpoint's pause, commit and lag comes from query-colo-stats.
"""

import statistics
import time

from bench_svg import Plot, pause_plots, svg

INTERVALS = (10, 20, 40, 100)
LEVELS = [("colo", 0)] + [("buffered", n) for n in INTERVALS] + [("adaptive", 40)]


def label(mode, interval):
    return "%s %d ms" % (mode, interval) if mode == "buffered" else mode


def value_at(values, percent):
    return sorted(values)[min(len(values) - 1, int(percent / 100 * len(values)))]


class Watch:
    """Every checkpoint since the last look, once."""

    def __init__(self, q):
        self.q, self.epoch, self.seen = q, -1, []

    def look(self):
        for c in self.q.cmd("query-colo-stats")["recent"]:
            if c["epoch"] > self.epoch:
                self.epoch = c["epoch"]
                self.seen.append(c)


def one_mode(b, p, load, host, mode, interval):
    q = p.primary.qmp
    q.cmd("migrate-set-parameters", {"x-colo-mode": mode,
                                     "x-buffered-interval": interval or 40})
    time.sleep(0.5)
    before, watch = q.cmd("query-colo-status"), Watch(q)
    watch.look()
    watch.seen, begin = [], time.monotonic()
    out = {"mode": mode, "interval_ms": interval}
    for key, program, args, member in (
            ("http8_per_s", "http", ("--concurrency", "8", "--interval-us", "0"), "ops_per_s"),
            ("bulk_out_mb_s", "download", ("--bytes", str(16 << 20)), "mb_per_s"),
            ("echo_p50_ms", "lines", (), "lat_ms")):
        m = load(p, [host], b.options.seconds, program, *args)
        out[key] = m[member]["p50"] if member == "lat_ms" else m[member]
        watch.look()
    after, spent = q.cmd("query-colo-status"), time.monotonic() - begin
    out["checkpoints_per_s"] = (after["checkpoints"] - before["checkpoints"]) / spent
    out["lost_percent"] = (after["clock-lost-us"] - before["clock-lost-us"]) / spent / 1e4
    out["switches"] = after["mode-switches"] - before["mode-switches"]
    for name in ("pause", "commit", "lag"):
        values = [c[name + "-us"] / 1e3 for c in watch.seen] or [0.0]
        out[name + "_ms"] = {"median": statistics.median(values),
                             "p99": value_at(values, 99), "n": len(watch.seen)}
    start = watch.seen[0]["at-us"] if watch.seen else 0
    out["pauses"] = [((c["at-us"] - start) / 1e6, c["pause-us"] / 1e3) for c in watch.seen]
    return out


def measure(b, pair, load, host):
    """@pair: protected; @load: of bench.py."""
    results = []
    for mode, interval in LEVELS:
        b.say("modes: " + label(mode, interval))
        results.append(one_mode(b, pair, load, host, mode, interval))
    return results


def table(results):
    head = ["mode", "HTTP/s", "bulk MB/s", "echo ms", "checkpoints/s", "pause median", "p99 ms",
            "commit ms", "lag ms", "guest time lost %"]
    rows = [[label(r["mode"], r["interval_ms"]), "%.0f" % r["http8_per_s"],
             "%.1f" % r["bulk_out_mb_s"], "%.1f" % r["echo_p50_ms"],
             "%.1f" % r["checkpoints_per_s"], "%.2f" % r["pause_ms"]["median"],
             "%.2f" % r["pause_ms"]["p99"], "%.1f" % r["commit_ms"]["median"],
             "%.1f" % r["lag_ms"]["median"], "%.1f" % r["lost_percent"]] for r in results]
    return head, rows


def modes_svg(results, facts=None):
    """Service against mode and length of epochs; pauses of each over time, and their CDF."""
    buffered = [r for r in results if r["mode"] == "buffered"]
    others = [r for r in results if r["mode"] != "buffered"]

    def against(key):
        series = {"buffered": [(r["interval_ms"], r[key]) for r in buffered]}
        for r in others:
            series[r["mode"]] = [(n, r[key]) for n in (INTERVALS[0], INTERVALS[-1])]
        return series
    return svg([Plot("epoch, ms (colo and adaptive have none)", "HTTP answers a second",
                     against("http8_per_s")),
                Plot("epoch, ms (colo and adaptive have none)", "bulk out, MB/s",
                     against("bulk_out_mb_s"))] +
               pause_plots({label(r["mode"], r["interval_ms"]): r["pauses"]
                            for r in results}), facts)
