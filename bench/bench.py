#!/usr/bin/env python3
# Side-by-side figures: ./run bench [--quick] [--only NAME] [--json FILE]
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
One run measures the same guest five times: alone (stock QEMU on a tap), alone behind
qemu-colo's netdev and disk without protection, each of both again beside a second, equally
loaded guest, and protected. Where both hosts share one small machine the twin columns are
the fair ones: PVM and SVM compete for its cores as they never would on two.
"""

import argparse
import dataclasses
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "tests", "e2e"))

import bench_growth  # noqa: E402
import bench_modes  # noqa: E402
import bench_proxy  # noqa: E402
import colo_e2e  # noqa: E402
from bench_svg import pause_plots, svg  # noqa: E402
from e2e_net import GUEST_IP, TWIN_IP, NetError  # noqa: E402
from e2e_proc import QMPError  # noqa: E402

STOCK = "qemu-system-x86_64"
QUIET = {"mem": 512, "dirty": 0, "check": 0, "diskrate": 0}

# key, what, unit, whether more is better
SERVICE_ROWS = (
    ("echo_p50_ms", "echo, one line each ms: rtt p50", "ms", False),
    ("echo_p99_ms", "echo, one line each ms: rtt p99", "ms", False),
    ("http1_per_s", "HTTP 1 KiB over new connections, x1", "/s", True),
    ("http8_per_s", "HTTP 1 KiB over new connections, x8", "/s", True),
    ("bulk_out_mb_s", "bulk TCP out of the guest", "MB/s", True),
    ("bulk_in_mb_s", "bulk TCP into the guest", "MB/s", True),
    ("disk_per_s", "4 KiB disk write + fdatasync, by request", "/s", True),
)


@dataclasses.dataclass
class Bench:
    options: argparse.Namespace
    results: dict
    failures: list

    def test(self, name, emulator=None):
        t = colo_e2e.Test(self.options, name, 0)
        t.emulator = emulator or self.options.emulator
        return t

    def say(self, text):
        print("[%5.0f s] %s" % (time.monotonic() - self.options.begin, text),
              file=sys.stderr, flush=True)


def percentile(values, p):
    """The smallest value that @p percent of all do not exceed."""
    s = sorted(values)
    return s[max(0, -(-len(s) * p // 100) - 1)]


def spread(values):
    if not values:
        return None
    return {"n": len(values), "median": statistics.median(values),
            "p99": percentile(values, 99), "max": max(values)}


# Services

def load(bed, hosts, seconds, mode, *args):
    """The first host's figures while all @hosts bear the same load."""
    runs = [bed.client(mode, seconds, *args, host=host) for host in hosts]
    statuses = [run.wait() for run in runs]
    for host, run, status in zip(hosts, runs, statuses):
        assert status == 0, "guest %s: %s" % (host, run.why())
    return runs[0].mode(mode)


def forced(status):
    """Checkpoints that were not the timer's or a command's."""
    return sum(n for t, n in status["triggers"].items()
               if t not in ("timer", "request", "run-state"))


def services(b, bed, hosts, status=None):
    """All SERVICE_ROWS; one that fails is told and left out."""
    s = b.options.seconds
    out = {}

    def one(mode, *args):
        before, begin = status and status(), time.monotonic()
        try:
            m = load(bed, hosts, s, mode, *args)
        except AssertionError as e:
            b.failures.append("%s: %s" % (bed.label, e))
            return None
        if status:
            spent = time.monotonic() - begin
            out.setdefault("forced_per_s", {})[" ".join([mode, *args])] = \
                (forced(status()) - forced(before)) / spent
        return m
    m = one("lines")
    if m:
        out["echo_p50_ms"], out["echo_p99_ms"] = m["lat_ms"]["p50"], m["lat_ms"]["p99"]
    for n in (1, 8):
        m = one("http", "--concurrency", str(n), "--interval-us", "0")
        if m:
            out["http%d_per_s" % n] = m["ops_per_s"]
    for mode, key in (("download", "bulk_out_mb_s"), ("upload", "bulk_in_mb_s")):
        m = one(mode, "--bytes", str(16 << 20))
        if m:
            out[key] = m["mb_per_s"]
    m = one("disk", "--disk-rate", "0")
    if m:
        out["disk_per_s"] = m["ops_per_s"]
    return out


def unprotected(b, label, emulator, twin, extra=()):
    with colo_e2e.Single(b.test(label, emulator), twin=twin, extra=extra, **QUIET) as bed:
        bed.label = label
        bed.start()
        return services(b, bed, [GUEST_IP, TWIN_IP] if twin else [GUEST_IP])


def bench_alone(b):
    return unprotected(b, "alone", STOCK, False)


# "-colo" alone makes qemu-colo own netdev and disk, without a comparison or a peer.
def bench_front(b):
    return unprotected(b, "front", None, False, ("-colo", "checkpoint-events=on"))


def bench_twin(b):
    return unprotected(b, "twin", STOCK, True)


def bench_front_twin(b):
    return unprotected(b, "front-twin", None, True, ("-colo", "checkpoint-events=on"))


def settle(p):
    """The guest has booted under protection: what it wrote then is no matter of the figures."""
    q = p.primary.qmp
    delay = q.cmd("query-migrate-parameters")["x-checkpoint-delay"]
    want = q.cmd("query-colo-status")["checkpoints"] + 2
    p.set_delay(500)
    q.wait_for("two checkpoints", lambda q: q.cmd("query-colo-status")["checkpoints"] >= want, 60)
    p.set_delay(delay)
    time.sleep(0.5)


def bench_protected(b):
    with colo_e2e.Pair(b.test("protected"), **QUIET) as p:
        p.label = "protected"
        p.start(boot=False)
        p.protect()
        settle(p)
        result = services(b, p, [GUEST_IP],
                          lambda: p.primary.qmp.cmd("query-colo-status"))
        result["status"] = p.primary.qmp.cmd("query-colo-status")
        return result


# Pauses

def stop_to_resume(events, since):
    """[(seconds since, ms)] of each checkpoint by the emulator's own time stamps."""
    found, stopped = [], None
    for at, e in events:
        stamp = e["timestamp"]["seconds"] + e["timestamp"]["microseconds"] / 1e6
        if at < since:
            continue
        if e["event"] == "STOP":
            stopped = stamp
        elif e["event"] == "RESUME" and stopped:
            found.append((at - since, (stamp - stopped) * 1e3))
            stopped = None
    return found


def one_level(b, p, dirty):
    p.control("SET dirty=%d" % dirty)
    time.sleep(2)  # until the first checkpoints of this rate are over
    q = p.primary.qmp
    before, begin = p.control("STATUS"), time.monotonic()
    pauses, pages, last = [], [], q.cmd("query-colo-status")["checkpoints"]
    while time.monotonic() < begin + b.options.pause_seconds:
        time.sleep(0.05)
        s = q.cmd("query-colo-status")
        if s["checkpoints"] != last:
            last = s["checkpoints"]
            pauses.append(s["pause-us"]["last"] / 1e3)
            pages.append(s["dirty-pages"]["last"])
    after, spent = p.control("STATUS"), time.monotonic() - begin
    seen = stop_to_resume(q.events, begin)
    return {"asked_mb_s": dirty,
            "dirty_mb_s": (after["mem_written"] - before["mem_written"]) * 4096 / spent / 1e6,
            "pages": statistics.median(pages) if pages else 0,
            "pause_ms": spread(pauses), "stop_to_resume_ms": spread([ms for _, ms in seen]),
            "points": seen}


def bench_pause(b):
    # 200 MB/s are 100 MB a checkpoint: the region must be larger than that.
    with colo_e2e.Pair(b.test("pause"), mem=512, region=192, dirty=0, check=0, diskrate=0,
                       checkpoint_delay=500) as p:
        p.start(boot=False)
        p.protect()
        levels = {}
        for name, dirty in (("idle", 0), ("20 MB/s", 20), ("200 MB/s", 200)):
            b.say("pause: %s" % name)
            levels[name] = one_level(b, p, dirty)
        return levels


# What protection takes while the guest does nothing

def cpu_seconds(pid):
    with open("/proc/%d/stat" % pid) as f:
        words = f.read().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def bench_idle(b):
    """Per cent of a core, of qemu-colo and of its emulator, on either side."""
    with colo_e2e.Pair(b.test("idle"), **{**QUIET, "checkpoint_delay": 1000}) as p:
        p.start(boot=False)
        p.protect()
        time.sleep(4)
        pids = {"%s, %s" % (side, what): pid for side, host in
                (("primary", p.a), ("secondary", p.b)) for what, pid in
                (("qemu-colo", host.process.pid), ("emulator", host.process.emulator_pid()))}
        before, begin = {k: cpu_seconds(pid) for k, pid in pids.items()}, time.monotonic()
        checkpoints = p.primary.qmp.cmd("query-colo-status")["checkpoints"]
        time.sleep(max(10, b.options.pause_seconds))
        spent = time.monotonic() - begin
        out = {k: 100 * (cpu_seconds(pid) - before[k]) / spent for k, pid in pids.items()}
        out["checkpoints_per_s"] = \
            (p.primary.qmp.cmd("query-colo-status")["checkpoints"] - checkpoints) / spent
        return out


def show_idle(r):
    show(["an idle guest, %.1f checkpoints/s" % r["checkpoints_per_s"], "% of a core"],
         [[k, "%.1f" % v] for k, v in r.items() if k != "checkpoints_per_s"])


# Failover

def one_failover(b, number):
    t = colo_e2e.Test(b.options, "failover", number)
    with colo_e2e.Pair(t, checkpoint_delay=500) as p:
        p.start(boot=False)
        p.protect()
        client = p.client("stream", 60)
        t.sleep(1, 3)
        p.kill_primary("both")
        exit_ms = (p.secondary.qmp.wait_event("COLO_EXIT", 30, p.killed_at)[0] -
                   p.killed_at) * 1e3
        p.takeover(wait_exit=False, full=False)
        time.sleep(2)
        assert client.stop() == 0, client.why()
        return {"gap_ms": client.gap_ms("stream", p.killed_at), "exit_ms": exit_ms}


def bench_failover(b):
    kills, lost = [], 0
    for number in range(b.options.kills):
        b.say("failover %d of %d" % (number + 1, b.options.kills))
        try:
            kills.append(one_failover(b, number))
        except (AssertionError, QMPError) as e:
            lost += 1
            b.failures.append("failover #%d: %s" % (number, e))
    gaps = [k["gap_ms"] for k in kills]
    return {"kills": kills, "failed": lost, "gap_ms": spread(gaps),
            "exit_ms": spread([k["exit_ms"] for k in kills])}


# The comparison alone

def bench_compare(b):
    return bench_proxy.measure(b, b.options.build)


def bench_modes_(b):
    with colo_e2e.Pair(b.test("modes"), **QUIET) as p:
        p.start(boot=False)
        p.protect()
        return bench_modes.measure(b, p, load, GUEST_IP)


# Output

def machine_facts():
    with open("/proc/cpuinfo") as f:
        model = next((line.split(":", 1)[1].strip() for line in f
                      if line.startswith("model name")), platform.machine())
    with open("/proc/meminfo") as f:
        mem = int(f.readline().split()[1]) >> 10
    version = subprocess.run([STOCK, "--version"], capture_output=True, text=True)
    return {"cores": os.cpu_count(), "cpu": model, "memory_mib": mem,
            "kernel": platform.release(), "accel": "tcg",
            "qemu": version.stdout.splitlines()[0] if version.stdout else "?",
            "load_at_start": os.getloadavg()[0],
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def show(head, rows):
    """A table in plain text; the first column is left-aligned."""
    rows = [[str(c) for c in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for n, row in enumerate(rows):
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w)
                        for i, (c, w) in enumerate(zip(row, widths))).rstrip())
        if n == 0:
            print("  ".join("-" * w for w in widths))
    print()


def cell(value):
    return "-" if value is None else "%.0f" % value if value >= 100 else \
        "%.1f" % value if value >= 10 else "%.2f" % value


def show_services(results):
    columns = [(name, label) for name, label in (
        ("alone", "alone"), ("front", "+front"), ("twin", "twin"),
        ("front-twin", "twin+front"), ("protected", "protected")) if name in results]
    if not columns:
        return
    got = results.get("protected", {})
    rows = []
    for key, what, unit, more in SERVICE_ROWS:
        row = [what] + [cell(results[name].get(key)) for name, _ in columns] + [unit]
        for base in ("front-twin", "alone"):
            have, of = got.get(key), results.get(base, {}).get(key)
            row.append("%.0f %%" % (100 * have / of) if more and have and of else "")
        rows.append(row)
    show(["service"] + [label for _, label in columns] + ["", "of twin+front", "of alone"],
         rows)
    print("alone: stock QEMU on a tap (with vnet_hdr, so GSO frames pass whole); +front: the\n"
          "same guest behind qemu-colo, unprotected; twin: beside an equally loaded guest.\n")
    if "forced_per_s" in got:
        show(["checkpoints a second that were forced by", "/s"],
             [[k, "%.2f" % v] for k, v in got["forced_per_s"].items()])


def show_pause(levels):
    rows = []
    for name, r in levels.items():
        mine, seen = r["pause_ms"] or {}, r["stop_to_resume_ms"] or {}
        rows.append([name, cell(r["dirty_mb_s"]), "%.0f" % r["pages"], seen.get("n", 0)] +
                    [cell(d.get(k)) for d in (mine, seen) for k in ("median", "p99", "max")])
    show(["guest pause, 512 MiB, each 500 ms", "MB/s", "pages", "n", "median", "p99", "max",
          "STOP-RESUME median", "p99", "max ms"], rows)


def show_failover(r):
    gap, seen = r["gap_ms"] or {}, r["exit_ms"] or {}
    show(["SIGKILL of the primary, stream of 1 ms", "n", "median", "worst", ""],
         [["client gap", gap.get("n", 0), cell(gap.get("median")), cell(gap.get("max")), "ms"],
          ["death to COLO_EXIT at the script", seen.get("n", 0), cell(seen.get("median")),
           cell(seen.get("max")), "ms"],
          ["failed", r["failed"], "", "", ""]])


def draw(results, facts):
    """{name: SVG} of what was measured."""
    plots = {}
    if "pause" in results:
        plots["pause"] = svg(pause_plots({n: r["points"] for n, r in results["pause"].items()}),
                             facts)
    if "proxy" in results:
        plots["proxy"] = bench_proxy.proxy_svg(results["proxy"], facts)
    if "modes" in results:
        plots["modes"] = bench_modes.modes_svg(results["modes"], facts)
    if {"growth-ram", "growth-dirty"} & set(results):
        plots["growth"] = bench_growth.growth_svg(results, facts)
    return plots


BENCHES = {"alone": bench_alone, "front": bench_front, "twin": bench_twin,
           "front-twin": bench_front_twin, "protected": bench_protected,
           "pause": bench_pause, "idle": bench_idle, "failover": bench_failover,
           "proxy": bench_compare, "modes": bench_modes_,
           "growth-ram": bench_growth.measure_ram, "growth-dirty": bench_growth.measure_dirty}


def on_signal(sig, frame):
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, signal.SIG_IGN)
    sys.exit(128 + sig)


def parse():
    parser = colo_e2e.arguments(argparse.ArgumentParser(description=__doc__))
    parser.add_argument("--build", default="build", help="build folder")
    parser.add_argument("--quick", action="store_true", help="shorter, fewer kills")
    parser.add_argument("--only", action="append", choices=list(BENCHES), metavar="NAME",
                        help="of %s; may be repeated" % ", ".join(BENCHES))
    parser.add_argument("--json", metavar="FILE", help="all results, machine-readable")
    options = parser.parse_args()
    options.seconds = 2 if options.quick else 5
    options.pause_seconds = 8 if options.quick else 30
    options.kills = 3 if options.quick else 10
    options.begin = time.monotonic()
    os.environ["COLO_BUILD"] = os.path.abspath(options.build)
    options.emulator = colo_e2e.find_program("qemu-colo", options.emulator)
    options.client = colo_e2e.find_program("colo-client", options.client)
    return options


def main():
    options = parse()
    b = Bench(options, {}, [])
    folder = os.path.join(options.build, "bench")
    os.makedirs(folder, exist_ok=True)
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, on_signal)
    facts = {**machine_facts(), "seed": options.seed, "quick": options.quick}
    print(", ".join("%s %s" % kv for kv in facts.items()) + "\n", flush=True)
    for name in options.only or BENCHES:
        b.say(name)
        try:
            b.results[name] = BENCHES[name](b)
        except (AssertionError, QMPError, NetError, OSError,
                subprocess.SubprocessError) as e:
            b.failures.append("%s: %s" % (name, e))
            continue
        with open("%s/%s.json" % (folder, name), "w") as f:
            json.dump({"machine": facts, name: b.results[name]}, f, indent=1)
    show_services(b.results)
    if "pause" in b.results:
        show_pause(b.results["pause"])
    if "idle" in b.results:
        show_idle(b.results["idle"])
    if "failover" in b.results:
        show_failover(b.results["failover"])
    if "proxy" in b.results:
        bench_proxy.show_proxy(show, b.results["proxy"])
    if "modes" in b.results:
        show(*bench_modes.table(b.results["modes"]))
    if {"growth-ram", "growth-dirty"} & set(b.results):
        bench_growth.show_growth(show, b.results)
    plots = draw(b.results, facts)
    for name, text in plots.items():
        with open("%s/%s.svg" % (folder, name), "w") as f:
            f.write(text)
    whole = {"machine": facts, "failures": b.failures, **b.results}
    for path in (options.json, folder + "/bench.json"):
        if path:
            with open(path, "w") as f:
                json.dump(whole, f, indent=1)
    for failure in b.failures:
        print("FAILED: " + failure)
    print("written: %s/*.json%s; %.0f s" % (
        folder, "".join(", %s.svg" % n for n in plots),
        time.monotonic() - options.begin))
    return 1 if b.failures else 0


if __name__ == "__main__":
    sys.exit(main())
