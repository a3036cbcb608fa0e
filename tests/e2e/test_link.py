#!/usr/bin/env python3
# The link between the hosts: slow, long and lossy; several connections; with guests.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import statistics
import sys
import time

from colo_e2e import HERE, Pair, case, main
from e2e_net import _ip
from e2e_proc import Process, in_time

MBIT, DELAY_MS, LOSS = 100, 50, 1


def make_slow(p, t):
    """The link of now on: each direction of its own."""
    for who in "ab":
        # No frames of 64 KiB, which would be lost or late as one.
        _ip("-n", p.net.ns[who], "link", "set", "link0", "gso_max_segs", "1")
        p.net.cut("link", who)
    command = [sys.executable, os.path.join(HERE, "e2e_slow.py"), "linka", "linkb", str(MBIT),
               str(DELAY_MS), str(LOSS), str(t.rng.randrange(1 << 30))]
    p.others.append(Process("slow link", p.net.wrap("c", command), "%s/slow.log" % p.dir))


def channels(p, n, compression):
    q = p.primary.qmp
    q.cmd("migrate-set-capabilities",
          {"capabilities": [{"capability": "multifd", "state": True}]})
    q.cmd("migrate-set-parameters", {"multifd-channels": n,
                                     "multifd-compression": compression})


def protect(p):
    """As Pair.protect(), with several connections."""
    p.prepare_secondary()
    p.attach_disk()
    channels(p, 4, "zstd")
    p.migrate()
    p.set_delay(p.cfg.checkpoint_delay)
    p.wait_protected()
    p.primary.wait_ready()


def watch(p, seconds, least):
    """Medians of pause and commit in ms over so long and so many checkpoints."""
    q = p.primary.qmp
    pauses, commits, last = [], [], q.cmd("query-colo-status")["checkpoints"]
    begin = time.monotonic()
    while time.monotonic() < begin + seconds or len(pauses) < least:
        assert time.monotonic() < begin + 10 * seconds, "%d checkpoints" % len(pauses)
        time.sleep(0.02)
        s = q.cmd("query-colo-status")
        assert s["state"] == "protected", s
        if s["checkpoints"] != last:
            last = s["checkpoints"]
            pauses.append(s["pause-us"]["last"] / 1e3)
            commits.append(s["commit-us"]["last"] / 1e3)
    assert s["wrong-pages"] == 0, s
    return statistics.median(pauses), statistics.median(commits)


@case()
def slow_link(t):
    """A slow link slows commits and not the pause; the guest lives, and is taken over."""
    with Pair(t, checkpoint_delay=1000, dirty=5,
              extra=("-colo", "verify-ram=off,peer-timeout=10000")) as p:
        p.start(boot=False)
        protect(p)
        fast = watch(p, 5, 4)
        before = p.control("STATUS")
        make_slow(p, t)
        slow = watch(p, 15, 4)
        after = p.control("STATUS")
        assert after["errors"] == 0 and after["mem_written"] > before["mem_written"], after
        # The shortest possible commit is a round trip.
        assert slow[1] > DELAY_MS, slow
        assert slow[1] > fast[1], (fast, slow)
        in_time(slow[0] / 1e3, 3 * fast[0] / 1e3 + 0.02, "the pause over a slow link")
        p.kill_primary("both")
        p.takeover()
        p.check()
        return "pause %.1f, then %.1f ms; commit %.0f, then %.0f ms" % (fast[0], slow[0], fast[1],
                                                                     slow[1])


@case(repeat=2)
def several_connections(t):
    """A client sees nothing of a death in the middle of transfers over four connections."""
    with Pair(t, checkpoint_delay=200, dirty=40) as p:
        p.start(boot=False)
        protect(p)
        client = p.client("all", 60)
        t.sleep(2, 4)
        p.kill_primary("both")
        p.takeover()
        t.sleep(2)
        assert client.stop() == 0, client.why()
        p.check()


if __name__ == "__main__":
    sys.exit(main())
