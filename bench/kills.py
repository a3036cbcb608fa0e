#!/usr/bin/env python3
# SIGKILL of the primary, again and again, with a witness and automatic re-protection.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
One guest, two hosts, an etcd. --kills N times: the side that serves dies (its qemu-colo, its
emulator, or both; or its host vanishes from the network), the other asks the witness and takes
over; the dead side is started again as a secondary and is protected by itself. Clients: an
open-loop stream of one record a millisecond, whose silences of 5 ms and more are told, and HTTP
over new connections; every byte is compared. All frames of the guest are caught at both hosts:
one voice at every moment.

Two guests that share the cores of one machine keep step badly, so a client meets silences while
all is well, too: each is held for the twin's frame. So these are told apart: the client gap,
which is the longest silence between the death and the moment when the dead side is started
again, counted from its beginning, be that before the death; the part of it after the death; the
longest of the second before the death; and the longest until protected again.

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
VANISH = "vanish"  # its cables first, so that no socket tells of it: --peer-timeout counts then
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


def kill_once(p, kind):
    """(Moments of the death and of the other's new start, seconds until protected, phases)."""
    old, new = p.primary, p.secondary
    cables = ("link", "lan") if kind == VANISH else ()
    began = time.monotonic()
    for cable in cables:
        p.net.cut(cable, old.who)
    p.kill(old, "both" if cables else kind)
    died = began if cables else p.killed_at
    p.wait_alone(new)
    old.process.wait(20)
    for cable in cables:
        p.net.mend(cable, old.who)
    time.sleep(0.3)
    when = phases(new, died)
    again = time.monotonic()
    p.start_secondary(old)
    seconds = p.protected(new, old)
    p.changes += 1
    p.t.sleep(0.2, 0.8)
    return died, again, seconds, when


SILENCES = (("gap_ms", "client gap"), ("after_ms", "... of it after the death"),
            ("before_ms", "... in the second before the death"),
            ("back_ms", "... until protected again"))


def silences(kill, gaps):
    """{name: the client's longest silence, ms} of a kill; what the client does not tell is 0."""
    died, again, back = kill["died"], kill["again"], kill["again"] + kill["back_s"]
    spans = [(g["at"], g["at"] + g["ms"] / 1e3) for g in gaps]

    def longest(found):
        return max((1e3 * (end - begin) for begin, end in found), default=0)
    now = [s for s in spans if s[1] > died and s[0] < again]
    return {"gap_ms": longest(now), "after_ms": longest((max(a, died), b) for a, b in now),
            "before_ms": longest(s for s in spans if died - 1 <= s[0] and s[1] <= died),
            "back_ms": longest(s for s in spans if again <= s[0] < back)}


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
            died, again, seconds, when = kill_once(p, kind)
            done.append({"kind": kind, "died": died, "again": again, "back_s": seconds,
                         "phases": when})
            print("%4d  %-8s protected again after %.1f s" % (n + 1, kind, seconds), flush=True)
        for client in (stream, http):
            assert client.stop() == 0, client.why()
        p.check()
        frames = p.one_voice()
        gaps = stream.mode("stream")["gaps"]
        for d in done:
            d.update(silences(d, gaps))
        return {"kills": done, "frames": frames, "http": http.mode("http")["ops"]
                if "ops" in http.mode("http") else None}


def show(result):
    kills = result["kills"]

    def spread(values):
        g = sorted(values)
        return "median %.1f ms, p90 %.1f, worst %.1f" % (
            statistics.median(g), g[min(len(g) - 1, int(len(g) * 0.9))], g[-1])
    for kind in (None, *KINDS, VANISH):
        these = [k for k in kills if kind in (None, k["kind"])]
        if not these:
            continue
        print("%s: %d kills, protected again after %.1f s (median)" % (
            kind or "all", len(these), statistics.median(k["back_s"] for k in these)))
        for name, words in SILENCES:
            print("    %-36s %s" % (words, spread(k[name] for k in these)))
    for name, _ in PHASES:
        g = [k["phases"][name] for k in kills if name in k["phases"]]
        if g:
            print("%-9s %3d kills: after the kill %s" % (name, len(g), spread(g)))
    print("0 bytes wrong or lost; %d frames of the guest, never from two hosts at once"
          % result["frames"])


def main():
    parser = colo_e2e.arguments()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--kind", default="all", choices=("all", *KINDS, VANISH))
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
