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


if __name__ == "__main__":
    sys.exit(main(MINE))
