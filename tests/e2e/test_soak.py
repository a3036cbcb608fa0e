# Checkpoint after checkpoint, in both modes: nothing grows.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
    tests/e2e/test_soak.py --soak 10000

makes so many checkpoints, half of them compared and half buffered, under load. Memory of
either qemu-colo and the pause must not grow with their number.
"""

import statistics
import sys
import time

from colo_e2e import Pair, case, main

GROWTH_MIB = 32
SHORT = 300


def soak_count():
    """--soak N, taken from the command line that main() parses the rest of."""
    if "--soak" not in sys.argv:
        return SHORT
    at = sys.argv.index("--soak")
    count = int(sys.argv[at + 1])
    del sys.argv[at:at + 2]
    return count


COUNT = soak_count()


def memory_mib(p):
    """Private memory of both programs: the guest's RAM, which both map, is not theirs."""
    found = []
    for host in (p.primary, p.secondary):
        with open("/proc/%d/smaps_rollup" % host.process.pid) as f:
            found.append(sum(int(line.split()[1]) for line in f
                             if line.startswith(("Private", "Swap:"))) / 1024)
    return found


def checkpoints(p):
    return p.primary.qmp.cmd("query-colo-status")["checkpoints"]


def run(p, client, count, pauses):
    """@count more checkpoints; the pauses of all that are seen."""
    last, want = -1, checkpoints(p) + count
    end = time.monotonic() + 60 + count
    while checkpoints(p) < want:
        for c in p.primary.qmp.cmd("query-colo-stats")["recent"]:
            if c["epoch"] > last:
                last = c["epoch"]
                pauses.append(c["pause-us"])
        assert time.monotonic() < end, "too few checkpoints"
        assert client.process.alive(), client.why()
        time.sleep(0.3)


@case()
def nothing_grows(t):
    with Pair(t, checkpoint_delay=40, extra_primary=("-colo", "buffered-interval=20")) as p:
        p.start(boot=False)
        p.protect()
        client = p.client("all", 60 + 2 * COUNT)
        said = []
        for mode in ("colo", "buffered"):
            p.primary.qmp.cmd("migrate-set-parameters", {"x-colo-mode": mode})
            # Pools, staging and the guest's own memory reach their size first.
            early, late = [], []
            run(p, client, max(COUNT // 8, 40), early)
            before = memory_mib(p)
            run(p, client, COUNT // 2, late)
            after = memory_mib(p)
            grown = [b - a for a, b in zip(before, after)]
            tail = late[-len(early):]
            said.append("%s: memory %s MiB, pause %.1f to %.1f ms" % (
                mode, ", ".join("%+.1f" % g for g in grown), statistics.median(early) / 1e3,
                statistics.median(tail) / 1e3))
            assert max(grown) <= GROWTH_MIB, said
            # Others may use this machine for a while: only much more is drift.
            assert statistics.median(tail) <= 3 * statistics.median(early) + 5000, said
        status = p.primary.qmp.cmd("query-colo-status")
        assert client.stop() == 0, client.why()
        p.check()
        return "%d checkpoints; %s" % (status["checkpoints"], "; ".join(said))


if __name__ == "__main__":
    sys.exit(main())
