#!/usr/bin/env python3
# Pairs that look after themselves: nobody types but the word, where there is no arbiter.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
A side that died is started again as a secondary, as a service manager would, and nothing else
is done. One client is connected all the time and compares every byte.
"""

import sys
import time

from colo_e2e import Pair, main
from e2e_guest import disks, image_of, make_image, primary_command, secondary_command
from e2e_proc import QMPError
from test_arbiter import Arbitrated

MINE = []
PORTS = "peer-timeout=1000"


def mine(repeat=1):
    def add(fn):
        MINE.append((fn, repeat, ()))
        return fn
    return add


class LooksAfterItself:
    """Mixed into a pair: pair=on, and how its sides are started."""

    def setup(self):
        self.auto = {}
        for who, other in (("a", "b"), ("b", "a")):
            self.auto[who] = ["-colo", "pair=on,listen=%s,peer=%s,%s" % (
                self.net.link[who], self.net.link[other], PORTS)]
        for n in range(len(disks(self.cfg))):
            for host in self.hosts.values():
                make_image(image_of(self.cfg, host.dir, host.image, n), self.cfg.disk_format,
                           self.cfg.disk_mib)

    def start_primary(self, host):
        host.spawn(primary_command(self.cfg, host.dir, host.image, who=host.who) +
                   self.auto[host.who])
        host.connect()

    def start_secondary(self, host):
        other = "b" if host.who == "a" else "a"
        host.spawn(secondary_command(self.cfg, host.dir, host.image, primary=other,
                                     who=host.who) + self.auto[host.who])
        host.connect()

    def begin(self):
        """A serves, B comes, and the pair is protected; then a client."""
        self.setup()
        self.start_primary(self.a)
        self.start_secondary(self.b)
        self.protected(self.a, self.b)
        self.a.wait_ready()

    def pair(self, host):
        return host.qmp.cmd("query-colo-status")["pair"]

    def protected(self, primary, secondary, timeout=90):
        begin = time.monotonic()
        try:
            for host in (primary, secondary):
                host.qmp.wait_for("pair of %s protected" % host.who,
                                  lambda q: self.pair(host)["state"] == "protected", timeout)
        except QMPError as e:
            raise AssertionError("%s; %s; %s; %s" % (
                e, [self.pair(h) for h in (primary, secondary) if h.process.alive()],
                primary.process.output()[-1500:], secondary.process.output()[-1500:])) from None
        self.primary, self.secondary = primary, secondary
        if self.cfg.checkpoint_delay:
            self.set_delay(self.cfg.checkpoint_delay)
        return time.monotonic() - begin

    def wait_alone(self, host, timeout=30):
        host.qmp.wait_for("alone", lambda q: q.cmd("query-colo-status")["state"] == "alone",
                          timeout)

    def round(self, old, new, word):
        """@old dies, @new serves, @old comes back and is protected by."""
        self.kill(old, self.t.rng.choice(["front", "emulator", "both"]))
        if word:
            new.qmp.wait_event("COLO_EXIT", 30)
            new.qmp.cmd("x-colo-lost-heartbeat")
        self.wait_alone(new)
        old.process.wait(20)
        self.t.sleep(0, 2)
        self.start_secondary(old)
        seconds = self.protected(new, old)
        return "%.1f s (guest held %.0f ms)" % (seconds,
                                                self.pair(new)["resync-pause-us"] / 1e3)


class ByHand(LooksAfterItself, Pair):
    pass


class ByWitness(LooksAfterItself, Arbitrated):
    pass


def rounds(p, word):
    p.begin()
    client = p.client("all", 600)
    p.t.sleep(1, 3)
    notes = [p.round(p.a, p.b, word)]
    p.t.sleep(1, 3)
    notes.append(p.round(p.b, p.a, word))
    p.t.sleep(1, 2)
    assert client.stop() == 0, client.why()
    p.check()
    return "back in %s; gap %.0f ms" % (", ".join(notes), client.gap_ms())


@mine(repeat=2)
def rounds_by_hand(t):
    """a dies, b serves, a' protects it; b dies, a' serves, b' protects it."""
    with ByHand(t, checkpoint_delay=500) as p:
        return rounds(p, True)


@mine(repeat=2)
def rounds_by_witness(t):
    with ByWitness(t) as p:
        return rounds(p, False)


def hand_over(p, old, new):
    """Planned: the client's longest silence around it, ms."""
    begin = time.monotonic()
    epochs = old.qmp.cmd("query-colo-status")["epoch"]
    old.qmp.cmd("x-colo-switchover")
    assert old.process.wait(20) == 4, old.process.output()[-1000:]
    p.wait_alone(new)
    done = time.monotonic()
    assert new.qmp.cmd("query-colo-status")["epoch"] >= epochs + 2, "an epoch was lost"
    p.start_secondary(old)
    p.protected(new, old)
    return begin, done


def switchover(p):
    p.begin()
    client = p.client("all", 600)
    p.t.sleep(2, 3)
    moments = [hand_over(p, p.a, p.b)]
    p.t.sleep(1, 2)
    moments.append(hand_over(p, p.b, p.a))
    p.t.sleep(1, 2)
    assert client.stop() == 0, client.why()
    gaps = [max((g["ms"] for g in client.mode("stream")["gaps"]
                 if begin - 0.2 < g["at"] + g["ms"] / 1e3 < done + 2), default=0)
            for begin, done in moments]
    p.check()
    return "gaps %s ms" % ", ".join("%.0f" % g for g in gaps)


@mine(repeat=2)
def planned_by_hand(t):
    """Roles change hands and back; nothing is lost, and the old primary ends with status 4."""
    with ByHand(t, checkpoint_delay=1000) as p:
        return switchover(p)


@mine(repeat=2)
def planned_with_witness(t):
    with ByWitness(t) as p:
        note = switchover(p)
        assert p.record()["state"] == "protected", p.record()
        return note


if __name__ == "__main__":
    sys.exit(main(MINE))
