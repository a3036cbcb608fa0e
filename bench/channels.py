#!/usr/bin/env python3
# The connection's settings: pause, commit and bytes, by channels, compression and load.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
    python3 bench/channels.py [--channels 0,1,2,4] [--methods none,zlib,zstd] [--seconds 4]

A guest of 512 MiB, two checkpoints a second, that rewrites 0, 20 and 200 MB/s. Each row is a pair
of its own. Both hosts are on this machine: what compression costs is taken from the guests,
and the link is as fast as memory, so "none" is at its best here.
"""

import os
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "tests", "e2e"))

import colo_e2e  # noqa: E402

LOADS = (0, 20, 200)


def level(p, dirty, seconds):
    p.control("SET dirty=%d" % dirty)
    time.sleep(1.5)
    q = p.primary.qmp
    first = s = q.cmd("query-colo-status")
    pauses, commits, last = [], [], first["checkpoints"]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
        s = q.cmd("query-colo-status")
        if s["checkpoints"] != last:
            last = s["checkpoints"]
            pauses.append(s["pause-us"]["last"] / 1e3)
            commits.append(s["commit-us"]["last"] / 1e3)
    n = max(1, s["checkpoints"] - first["checkpoints"])
    raw, sent = (s["transfer"][k] - first["transfer"][k] for k in ("bytes-raw", "bytes-sent"))
    return (statistics.median(pauses or [0]), statistics.median(commits or [0]),
            raw / n / 1e6, sent / n / 1e6)


def row(options, channels, method):
    t = colo_e2e.Test(options, "channels", 0)
    with colo_e2e.Pair(t, mem=512, region=192, dirty=0, check=0, diskrate=0,
                       checkpoint_delay=500) as p:
        p.start(boot=False)
        p.prepare_secondary()
        p.attach_disk()
        q = p.primary.qmp
        q.cmd("migrate-set-capabilities", {"capabilities": [
            {"capability": "multifd", "state": channels > 0}]})
        if channels:
            q.cmd("migrate-set-parameters", {"multifd-channels": channels,
                                             "multifd-compression": method})
        p.migrate()
        p.set_delay(500)
        p.wait_protected()
        p.primary.wait_ready()
        words = ["%7d  %-4s" % (channels, method)]
        for dirty in LOADS:
            words.append("%6.2f %7.1f %6.2f %6.2f" % level(p, dirty, options.seconds))
        print(" | ".join(words), flush=True)


def main():
    parser = colo_e2e.arguments()
    parser.add_argument("--channels", default="0,1,2,4")
    parser.add_argument("--methods", default="none,zlib,zstd")
    parser.add_argument("--seconds", type=float, default=4)
    options = parser.parse_args()
    options.emulator = colo_e2e.find_program("qemu-colo", options.emulator)
    options.client = colo_e2e.find_program("colo-client", options.client)
    print("medians of pause and commit in ms, MB a checkpoint before and after")
    print("channels method | " + " | ".join("%d MB/s: pause commit raw sent" % d for d in LOADS))
    for channels in map(int, options.channels.split(",")):
        for method in options.methods.split(",") if channels else ["none"]:
            row(options, channels, method)


if __name__ == "__main__":
    main()
