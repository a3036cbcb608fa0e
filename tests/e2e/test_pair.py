#!/usr/bin/env python3
# Pairs that look after themselves: nobody types but the word, where there is no arbiter.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
A side that died is started again as a secondary, as a service manager would, and nothing else
is done. One client is connected all the time and compares every byte. --soak SECONDS: how long
faults go on (1800 for the long run: -k soak --soak 1800).
"""

import heapq
import shutil
import signal
import subprocess
import sys
import time

from colo_e2e import Pair, main
from e2e_guest import disks, image_of, make_image, primary_command, secondary_command
from e2e_proc import QMPError
from test_arbiter import Arbitrated

MINE = []
MORE = "peer-timeout=1000,quiet-time=1"


def mine(tags=()):
    """A case; one with tag "named" runs only if -k is given."""
    def add(fn):
        MINE.append((fn, 1, tags))
        return fn
    return add


class LooksAfterItself:
    """Mixed into a pair: pair=on, and how its sides are started."""

    more = ()  # words of both lines

    def setup(self):
        self.auto = {}
        for who, other in (("a", "b"), ("b", "a")):
            self.auto[who] = ["-colo", "pair=on,listen=%s,peer=%s,%s" % (
                self.net.link[who], self.net.link[other], MORE), *self.more]
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
        self.a.wait_ready(180)  # it boots beside all that

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


@mine()
def rounds_by_hand(t):
    """a dies, b serves, a' protects it; b dies, a' serves, b' protects it."""
    with ByHand(t, checkpoint_delay=500) as p:
        return rounds(p, True)


@mine(tags=("named",))
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


@mine(tags=("named",))
def planned_by_hand(t):
    """Roles change hands and back; nothing is lost, and the old primary ends with status 4."""
    with ByHand(t, checkpoint_delay=1000) as p:
        return switchover(p)


@mine()
def planned_with_witness(t):
    with ByWitness(t) as p:
        note = switchover(p)
        assert p.record()["state"] == "protected", p.record()
        return note


class Soak(ByWitness):
    """Faults at random, one after the other; between them the pair heals itself."""

    def __enter__(self):
        super().__enter__()
        self.changes = 0  # of the side that serves
        self.counts = {}
        self.seen, self.diary = None, open(self.dir + "/diary", "w", buffering=1)
        # Times that a stalled machine ended protection, without a fault of ours or in a hand-over.
        self.unasked = 0
        return self

    def fault(self):
        """One fault to a protected pair; returns when its cause is gone."""
        rng, old, new = self.t.rng, self.primary, self.secondary
        what = rng.choice(["kill primary", "kill secondary", "stop primary", "stop secondary",
                           "cut link", "hand over"])
        self.counts[what] = self.counts.get(what, 0) + 1
        self.note(what)
        if what.startswith("kill"):
            host = old if "primary" in what else new
            self.kill(host, rng.choice(["front", "emulator", "both"]))
            host.process.wait(20)
        elif what.startswith("stop"):
            host = old if "primary" in what else new
            host.process.freeze()
            self.t.sleep(3, 5)  # longer than peer-timeout and lease
            host.process.send(signal.SIGCONT)
        elif what == "cut link":
            who = rng.choice("ab")
            self.net.cut("link", who)
            self.t.sleep(2, 4)
            self.net.mend("link", who)
        else:
            try:
                old.qmp.cmd("x-colo-switchover")
                old.process.wait(20)
            except QMPError as e:
                assert "roles have not changed hands" in str(e), e
                self.unasked += 1
                self.note(e)
        return what

    def note(self, what):
        self.diary.write("%.2f %s\n" % (time.time(), what))

    def state(self, host):
        try:
            return host.qmp.cmd("query-colo-status") if host.process.alive() else None
        except QMPError:
            return None  # it ends

    def states(self):
        """Of both sides, None for one that is not there; a change goes into the diary, for who
        has to find out later why nobody served for long."""
        now = {who: self.state(host) for who, host in self.hosts.items()}
        seen = {who: s and (s["mode"], s["state"], s["pair"]["state"], "disk-stall" in s,
                            s.get("arbiter", {}).get("ownership"), s["held-frames"] > 0)
                for who, s in now.items()}
        if seen != self.seen:
            self.note(seen)
            self.seen = seen
        return now

    def still_protected(self):
        """A fault is for a protected pair: a second one, to a side that goes on alone, ends the
        guest rightly. On a busy machine silence can be longer than peer-timeout by itself."""
        if not all(s and s["state"] == "protected" for s in self.states().values()):
            self.unasked += 1
            self.heal("nothing")

    def heal(self, what, timeout=120):
        """As a service manager: what ended is started again, once the other side serves."""
        end = time.monotonic() + timeout
        worry = 1 if self.t.rng.random() < 0.3 else 0
        began, single = self.primary, time.monotonic()
        while time.monotonic() < end:
            time.sleep(0.1)
            states = self.states()
            serving = [who for who, s in states.items() if s and (
                s["state"] == "alone" or
                (s["state"] not in ("lost", "fenced") and s["mode"] == "primary"))]
            # One that has just woken may not know yet that it serves no more; one_voice() sees
            # that it says nothing.
            if len(serving) < 2:
                single = time.monotonic()
            assert time.monotonic() < single + 5 and \
                not all(s and s["state"] == "alone" for s in states.values()), \
                "two serve after %s: %s" % (what, states)
            serving = serving if len(serving) == 1 else []
            for who, host in self.hosts.items():
                if not host.process.alive() and serving and who not in serving:
                    self.note("start " + who)
                    try:
                        self.start_secondary(host)
                    except QMPError:
                        continue
                    if worry:
                        # Once more, while it comes back.
                        worry = 0
                        self.t.sleep(0, 2.5)
                        s = self.state(self.hosts[serving[0]])
                        if s and s["state"] == "alone":
                            self.kill(host)
            if all(s and s["pair"]["state"] == "protected" for s in states.values()):
                a_serves = states["a"]["mode"] == "primary"
                if a_serves != (states["b"]["mode"] == "secondary"):
                    continue
                self.protected(*((self.a, self.b) if a_serves else (self.b, self.a)))
                self.changes += self.primary is not began
                return
        raise AssertionError("not protected %d s after %s: %s; %s" % (timeout, what, states, [
            h.process.output()[-1500:] for h in self.hosts.values()]))

    def frames(self, who):
        """(Time, who) of each frame that left a host, in order; there are millions."""
        with subprocess.Popen(["tcpdump", "-tt", "-n", "-r", self.caught[who]], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
            for line in reader.stdout:
                if line[:1].isdigit():
                    yield float(line.split(None, 1)[0]), who

    def one_voice(self):
        """The guest's frames as they left the hosts: no more changes of host than of role."""
        frames, changes, last = 0, 0, None
        for _, who in heapq.merge(self.frames("a"), self.frames("b")):
            frames += 1
            changes += last not in (None, who)
            last = who
        assert frames and changes <= self.changes, \
            "%d frames, %d changes of voice, %d of role" % (frames, changes, self.changes)
        return frames

    def listen(self):
        self.caught = {who: self.capture("voice-" + who, who, "lan0", "-Q", "out", "-s", "34",
                                         "ether src " + self.cfg.mac) for who in "ab"}
        time.sleep(0.5)


SECONDS = 40
EACH = 30  # seconds between two lines of progress


@mine()
def soak(t):
    """Random faults for --soak SECONDS; everything verified, one voice at every moment."""
    with Soak(t, checkpoint_delay=500) as p:
        p.begin()
        p.listen()
        client = p.client("all", SECONDS + 600)
        begin = said = time.monotonic()
        faults, what, longest = 0, None, 0
        try:
            while time.monotonic() < begin + SECONDS or faults < 2:
                p.t.sleep(1, 3)
                assert client.process.alive(), client.process.output()[-1500:]
                what = "nothing"
                p.still_protected()
                at = time.monotonic()
                what = p.fault()
                p.heal(what)
                faults += 1
                longest = max(longest, time.monotonic() - at)
                if time.monotonic() > said + EACH:
                    said = time.monotonic()
                    print("      soak: %.0f of %.0f s, %d faults, %d changes of role, protected "
                          "again within %.1f s" % (said - begin, SECONDS, faults, p.changes,
                                                   longest), flush=True)
            assert client.stop() == 0, client.why()
        except Exception:
            print("      soak: ended after %.0f s and %d faults (%s), in or after: %s" % (
                time.monotonic() - begin, faults, p.counts, what), flush=True)
            raise
        p.check()
        frames = p.one_voice()
        return ("%d faults (%s) and %d losses without one, %d changes of role, protected again "
                "within %.1f s, %d frames, longest silence %.0f ms" % (
                    faults, ", ".join("%s %d" % c for c in sorted(p.counts.items())), p.unasked,
                    p.changes, longest, frames, client.gap_ms()))


if __name__ == "__main__":
    if "--soak" in sys.argv:
        at = sys.argv.index("--soak")
        SECONDS = float(sys.argv[at + 1])
        sys.argv[at:at + 2] = []
    if not shutil.which("etcd"):
        MINE = [c for c in MINE if "witness" not in c[0].__name__ and c[0] is not soak]
        print("skip  what needs a witness: no etcd here")
    sys.exit(main([c for c in MINE if "-k" in sys.argv or "named" not in c[2]]))
