#!/usr/bin/env python3
# SIGKILL of the primary, again and again, with a witness and automatic re-protection.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
One guest, two hosts, an etcd. --kills N times: the side that serves dies (its qemu-colo, its
emulator, or both), the other asks the witness and takes over; the dead side is started again as a
secondary and is protected by itself. Clients: an open-loop stream of
one record a millisecond, whose silences of 5 ms and more are told, and HTTP over new connections;
every byte is compared. All frames of the guest are caught at both hosts: one voice at every moment.

--phases shows where the time goes, by trace points of the side that takes over, each as
milliseconds after the kill: it sees the death; the witness has answered; the disk may serve;
the first frame is out. A client that was silent longer than that has waited for a timer of its
own TCP, or for the guest.
"""

import json
import os
import re
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "tests", "e2e"))

import colo_e2e  # noqa: E402
import test_pair  # noqa: E402

KINDS = ("front", "emulator", "both")
PHASES = (("seen", r"migration_state protected -> lost"), ("witness", r"migration_verdict "),
          ("disk", r"migration_step takeover-noted"), ("voice", r"proxy_takeover "))
TRACE = "colo:migration_state", "colo:migration_verdict", "colo:migration_step", "colo:proxy_takeover"


def phases(host, died):
    """Of a takeover after @died: {name: ms after it}."""
    text, found = host.process.output(), {}
    for name, words in PHASES:
        for m in re.finditer(r"^\d+@(\d+\.\d+):" + words, text, re.M):
            ms = (float(m[1]) - died) * 1e3
            if 0 <= ms < 10000:
                found.setdefault(name, ms)
    return found


def one(p, number, kind):
    """(moment of the death, seconds until protected again)."""
    old, new = p.primary, p.secondary
    p.kill(old, kind)
    died = p.killed_at
    p.wait_alone(new)
    old.process.wait(20)
    time.sleep(0.3)
    when = phases(new, died)
    p.start_secondary(old)
    seconds = p.protected(new, old)
    p.changes += 1
    p.t.sleep(0.2, 0.8)
    return died, seconds, when


def measure(options):
    test_pair.MORE = "peer-timeout=%d,quiet-time=1" % options.peer_timeout
    t = colo_e2e.Test(options, "kills", 0)
    with test_pair.Soak(t, checkpoint_delay=options.delay, mem=options.mem, dirty=options.dirty,
                        check=5, diskrate=5) as p:
        if options.phases:
            p.more = [word for name in TRACE for word in ("-trace", name)]
        p.begin()
        p.listen()
        stream = p.client("stream", 36000, "--gap-ms", "5")
        http = p.client("http", 36000, "--concurrency", "4", "--interval-us", "2000")
        time.sleep(1)
        done = []
        for n in range(options.kills):
            kind = KINDS[n % len(KINDS)] if options.kind == "all" else options.kind
            died, seconds, when = one(p, n, kind)
            done.append({"kind": kind, "died": died, "back_s": seconds, "phases": when})
            print("%4d  %-8s protected again after %.1f s" % (n + 1, kind, seconds), flush=True)
        for client in (stream, http):
            assert client.stop() == 0, client.why()
        p.check()
        frames = p.one_voice()
        gaps = stream.mode("stream")["gaps"]
        for d, after in zip(done, [d["died"] for d in done[1:]] + [float("inf")]):
            d["gap_ms"] = max((g["ms"] for g in gaps if d["died"] - 0.05 <
                               g["at"] + g["ms"] / 1e3 < min(after, d["died"] + 8)), default=0)
        return {"kills": done, "frames": frames, "http": http.mode("http")["ops"]
                if "ops" in http.mode("http") else None}


def show(result):
    kills = result["kills"]
    for kind in (None, *KINDS):
        g = sorted(k["gap_ms"] for k in kills if kind in (None, k["kind"]))
        if g:
            print("%-9s %3d kills: client gap median %.0f ms, p90 %.0f, worst %.0f; protected again "
                  "after %.1f s (median)" % (kind or "all", len(g), statistics.median(g),
                                             g[min(len(g) - 1, int(len(g) * 0.9))], g[-1],
                                             statistics.median(k["back_s"] for k in kills
                                                               if kind in (None, k["kind"]))))
    for name, _ in PHASES:
        g = sorted(k["phases"][name] for k in kills if name in k["phases"])
        if g:
            print("%-9s %3d kills: median %.1f ms after the kill, p90 %.1f, worst %.1f"
                  % (name, len(g), statistics.median(g), g[min(len(g) - 1, int(len(g) * 0.9))],
                     g[-1]))
    print("0 bytes wrong or lost; %d frames of the guest, never from two hosts at once"
          % result["frames"])


def main():
    parser = colo_e2e.arguments()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--kind", default="all", choices=("all", *KINDS))
    parser.add_argument("--peer-timeout", type=int, default=1000)
    parser.add_argument("--delay", type=int, default=1000, help="x-checkpoint-delay, ms")
    parser.add_argument("--mem", type=int, default=256)
    parser.add_argument("--dirty", type=int, default=2)
    parser.add_argument("--phases", action="store_true", help="where the time goes")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    options.emulator = colo_e2e.find_program("qemu-colo", options.emulator)
    options.client = colo_e2e.find_program("colo-client", options.client)
    result = measure(options)
    show(result)
    if options.json:
        with open(options.json, "w") as f:
            json.dump(result, f, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
