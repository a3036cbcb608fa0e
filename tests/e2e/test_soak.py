# Checkpoint after checkpoint, in both modes: nothing grows.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
    tests/e2e/test_soak.py --soak 10000

makes so many checkpoints in each mode, one after another, under load. Memory of either qemu-colo
must not grow with their number (that of the emulators is told: theirs fills with translated code),
nor the pause: the first thousand beside the last thousand.
"""

import statistics
import sys
import time

from colo_e2e import Pair, case, main
from e2e_proc import in_time, within

GROWTH_MIB = 32
SHORT = 150
THOUSAND = 1000


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
    """Private memory of both qemu-colo, and of both emulators: the guest's RAM, which all map, is
    not theirs."""
    def private(pid):
        with open("/proc/%d/smaps_rollup" % pid) as f:
            return sum(int(line.split()[1]) for line in f
                       if line.startswith(("Private", "Swap:"))) / 1024
    hosts = [h.process for h in (p.primary, p.secondary)]
    return [[private(h.pid) for h in hosts], [private(h.emulator_pid()) for h in hosts]]


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
        within(end, "too few checkpoints")
        assert client.process.alive(), client.why()
        state = p.primary.qmp.cmd("query-colo-status")
        assert state["state"] == "protected", state
        time.sleep(0.3)


@case()
def nothing_grows(t):
    limits = ("-colo", "peer-timeout=20000")  # others may use this machine
    with Pair(t, checkpoint_delay=30, extra_primary=("-colo", "buffered-interval=15") + limits,
              extra_secondary=limits) as p:
        p.start(boot=False)
        p.protect()
        client = p.client("all", 120 + 3 * COUNT, "--stall-ms", 180000)
        said = []
        for mode in ("colo", "buffered"):
            p.primary.qmp.cmd("migrate-set-parameters", {"x-colo-mode": mode})
            # Pools, staging and the guest's own memory reach their size first.
            run(p, client, max(COUNT // 20, 40), [])
            before, began = memory_mib(p), time.monotonic()
            seen = []
            run(p, client, COUNT, seen)
            after = memory_mib(p)
            grown = [[b - a for a, b in zip(x, y)] for x, y in zip(before, after)]
            part = min(THOUSAND, len(seen) // 3)
            early, tail = seen[:part], seen[-part:]
            said.append("%s: %.0f a second, memory %s MiB (emulators %s), pause %.1f to %.1f ms" % (
                mode, COUNT / (time.monotonic() - began),
                *[", ".join("%+.1f" % g for g in x) for x in grown],
                statistics.median(early) / 1e3, statistics.median(tail) / 1e3))
            if COUNT > SHORT:
                print("    " + said[-1], flush=True)
            assert max(grown[0]) <= GROWTH_MIB, said
            # Others may use this machine for a while: only much more is drift.
            in_time(statistics.median(tail) / 1e6, 3 * statistics.median(early) / 1e6 + 0.005,
                    "the median pause at the end (%s)" % said)
        status = p.primary.qmp.cmd("query-colo-status")
        assert client.stop() == 0, client.why()
        p.check()
        return "%d checkpoints; %s" % (status["checkpoints"], "; ".join(said))


if __name__ == "__main__":
    sys.exit(main())
