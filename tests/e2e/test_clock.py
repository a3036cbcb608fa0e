# The guest's clock: never back, and no other drift than the pauses that are counted.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
A client on the LAN asks the guest for its clock (CLOCK_MONOTONIC, by the TSC) and notes its
own time when it asks. A question reaches the guest at once, whatever its answer has to wait
for. What the guest loses while it stands in a pause is known and shown (clock-lost-us).
"""

import json
import os
import subprocess
import sys
import time

from colo_e2e import Pair, case, main
from e2e_proc import within

CHECKPOINTS = int(os.environ.get("COLO_CLOCK_CHECKPOINTS", 100))
DRIFT_US = 5000

ASKER = r"""
import json, socket, sys, time
s = socket.create_connection((sys.argv[1], 7005), 20)
s.settimeout(20)
f = s.makefile("rw")
for line in sys.stdin:
    got = []
    for n in range(int(line)):
        begin = time.monotonic()
        f.write("CLOCK\n")
        f.flush()
        guest = int(f.readline())
        got.append((begin * 1e6, guest, time.monotonic() * 1e6))
        time.sleep(0.01)
    print(json.dumps(got), flush=True)
"""


class Asker:
    """One connection to the guest, which lives through everything."""

    def __init__(self, p):
        self.process = subprocess.Popen(
            p.net.wrap("c", [sys.executable, "-c", ASKER, p.cfg.ip]), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.last = 0

    def ask(self):
        """(host, guest), us: when it was asked, and what its clock was; that never goes back."""
        self.process.stdin.write("1\n")
        self.process.stdin.flush()
        got = json.loads(self.process.stdout.readline() or "[]")
        assert len(got) == 1, "the guest's control port does not answer"
        begin, guest, _ = got[0]
        assert guest >= self.last, "the guest's clock went back by %d us" % (
            self.last - guest)
        self.last = guest
        return begin, guest

    def close(self):
        self.process.kill()
        self.process.wait()


def known_loss(p):
    """What the guest's clock lost in pauses, us: the last one is counted with the next."""
    s = p.primary.qmp.cmd("query-colo-status")
    return s["clock-lost-us"] + s["pause-us"]["last"]


def offset(p, asker, counted=True):
    """The guest's clock against the host's, us, but for what is known to be lost. A question
    may take long to get there, so the earliest ones count."""
    found = []
    for _ in range(21):
        lost = known_loss(p) if counted else 0
        begin, guest = asker.ask()
        found.append(guest - begin + lost)
        time.sleep(0.02)
    return sorted(found)[len(found) // 4]


def last_checkpoint(p):
    """Let no more be made for a while, and wait for the one under way."""
    p.set_delay(60000)
    end = time.monotonic() + 60
    last = -1
    while last != (last := p.primary.qmp.cmd("query-colo-status")["checkpoints"]):
        within(end, "checkpoints go on")
        time.sleep(0.5)


def drift(t, mode, delay):
    with Pair(t, checkpoint_delay=delay, dirty=2, diskrate=2,
              extra_primary=("-colo", "mode=%s" % mode)) as p:
        p.start(boot=False)
        p.protect()
        asker = Asker(p)
        try:
            first, lost_first = offset(p, asker), known_loss(p)
            want = p.primary.qmp.cmd("query-colo-status")["checkpoints"] + CHECKPOINTS
            end = time.monotonic() + 60 + CHECKPOINTS / 2
            while p.primary.qmp.cmd("query-colo-status")["checkpoints"] < want:
                within(end, "too few checkpoints")
                time.sleep(0.2)
            before = offset(p, asker)
            stats = p.primary.qmp.cmd("query-colo-stats")
            if mode == "colo":
                last_checkpoint(p)
            lost = known_loss(p)
            p.kill_primary("both")
            p.takeover()
            jump = offset(p, asker, counted=False) - (before - lost)
            skew = p.primary.qmp.cmd("query-colo-status")["clock-skew-last-us"]
            beside, behind = before - first, lost - lost_first
        finally:
            asker.close()
        p.check()
        said = "%d checkpoints: lost %.1f ms, other drift %+.1f ms; takeover %+.1f ms, of " \
            "which %+.1f ms are known; skew median %d us, p99 %d us" % (
                stats["pause-us"]["count"], behind / 1e3, beside / 1e3, jump / 1e3,
                skew / 1e3, stats["clock-skew-us"]["median"], stats["clock-skew-us"]["p99"])
        # While the questions were asked, checkpoints went on that are counted or are not; of
        # buffered ones so did a few before the death.
        slack = DRIFT_US + 3 * stats["pause-us"]["p99"]
        assert abs(beside) <= slack, said
        assert abs(jump - skew) <= slack, said
        return said


@case(repeat=2)
def drift_is_known(t):
    """In either mode, by turns of the seed."""
    mode = t.rng.choice(("colo", "buffered"))
    return mode + ": " + drift(t, mode, 40)


if __name__ == "__main__":
    sys.exit(main())
