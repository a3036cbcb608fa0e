#!/usr/bin/env python3
# A pair that comes together over a way that is cut again and again, or to a disk that is slow to
# flush.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
The guest writes to its disk all the time, and is looked at whatever is waited for.
"""

from colo_pair import ADDRESS, PairBed, protected
from colo_qtest import case, has_words, in_time, main, os, shutil, signal, time, within
from colo_way import Way
from colo_writer import boot_image

MIB = 1 << 20
SIZE = 64


class Watched:
    """Host a of a pair whose way goes through ours; how long its guest stood."""

    def __init__(self, bed, rate=None, flush_s=0, copied=False):
        self.bed, self.p = bed, PairBed(bed, disk=False)
        p = self.p
        p.disk, p.rom, p.way = True, [], "127.0.0.3"
        for who in "ab":
            p.mib[who], p.image[who] = SIZE, "%s/%s.raw" % (bed.dir, who)
        boot_image(p.image["a"], SIZE)
        with open(p.image["a"], "r+b") as f:
            f.seek(MIB)
            for _ in range(SIZE - 1):
                f.write(bed.rng.randbytes(MIB))
        with open(p.image["b"], "wb") as f:
            f.truncate(SIZE * MIB)
        self.a = p.primary("a", "peer-timeout=1000,auto-protect=" + ("off" if copied else "on"))
        # Nobody was there, so it may start.
        if copied:
            self.a.wait("the guest writes", lambda: self.a.count() > 10)
            self.a.cmd("stop")
            shutil.copy(p.image["a"], p.image["b"])
        self.way = Way(bed, p.way, ADDRESS["b"], p.ports.values(), narrow=[p.ports["nbd"]],
                       nbd=[p.ports["nbd"]])
        self.way.rate, self.way.flush_s = rate, flush_s
        self.b = p.secondary("b", "peer-timeout=1000")
        self.count, self.longest = self.a.count(), 0.0
        if not copied:
            self.a.wait("the guest writes", lambda: self.a.count() > 10)
        self.moved = time.monotonic()

    def look(self):
        count, now = self.a.count(), time.monotonic()
        if count != self.count:
            self.longest = max(self.longest, now - self.moved)
            self.count, self.moved = count, now

    def until(self, what, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            self.look()
            within(end, lambda: "%s: %s" % (what, self.brief()))
            time.sleep(0.01)

    def spend(self, seconds):
        end = time.monotonic() + seconds
        self.until("time", lambda: time.monotonic() >= end, seconds + 60)

    def pair(self):
        return self.a.status()["pair"]

    def brief(self):
        """For messages: without words that the runner takes for worse than late."""
        s = self.pair()
        return [s[key] for key in ("state", "attempts", "next-try-ms", "resync-done")]

    def finish(self):
        """Protected, with equal disks, by a guest that never stood for long."""
        self.until("protected", lambda: self.pair()["state"] == "protected", 90)
        protected(self.a, self.b)
        self.spend(0.5)
        pause = self.pair()["resync-pause-us"] / 1e6
        assert pause > 0, "the copy ended without a pause"
        self.equal()
        in_time(pause, 1.5, "the pause at the end of the copy")
        in_time(self.longest, 4, "the guest's longest stand")
        return "longest stand %.2f s, at the end of the copy %.3f s" % (self.longest, pause)

    def equal(self):
        a, b, p = self.a, self.b, self.p
        assert a.cmd("query-block-jobs") == []
        a.cmd("stop")
        b.wait("stands", lambda: b.run_state() == "paused")
        os.kill(a.process.pid, signal.SIGKILL)
        b.wait_state("lost")
        b.cmd("x-colo-lost-heartbeat")
        b.wait_state("alone")
        with open(p.image["a"], "rb") as f, open(p.image["b"], "rb") as g:
            for i in range(SIZE):
                assert f.read(MIB) == g.read(MIB), "the disks differ, MiB %d" % i


@case
def way_that_flaps_in_the_copy(bed):
    """Cut and mended again and again while the disk is copied: short cuts are waited out, others
    make the try fail, and each failure makes the next one wait longer. Once the way holds the
    pair is protected."""
    w = Watched(bed, rate=8 * MIB)
    waits, cuts, failures = [], 0, 0
    for how in ["short", "broken", "short", "long", "broken", "short"]:
        # Well inside the copy, so that it is the copy that is cut.
        w.until("a copy", lambda: w.pair()["state"] == "resync" and
                0 < w.pair()["resync-done"] < SIZE * MIB * 6 / 10)
        w.spend(bed.rng.uniform(0, 0.5))
        w.way.cut()
        assert w.pair()["state"] == "resync", w.brief()
        assert w.b.process.alive(), w.b.output()
        cuts += 1
        if how == "short":
            w.spend(bed.rng.uniform(0.2, 2.0))
            w.way.mend(False)
            w.spend(0.3)
            assert w.pair()["attempts"] == failures + 1, w.brief()
            continue
        if how == "long":
            w.until("the stall to be seen", lambda: w.pair()["state"] == "backoff")
            has_words(w.pair()["error"], "taken nothing of the disks")
        else:
            w.spend(bed.rng.uniform(0.2, 1.0))
        w.way.mend(True)
        w.until("the failure", lambda: w.pair()["state"] != "resync" or
                w.pair()["attempts"] > failures + 1)
        failures += 1
        s = w.pair()
        in_time(s["attempts"] - failures, 1, "the next try, and to see this one's end")
        assert s["state"] == "backoff" and s["attempts"] == failures, w.brief()
        waits.append(s["next-try-ms"])
    assert all(ms <= 1000 << n for n, ms in enumerate(waits)), waits
    in_time(4000 - waits[-1], 2500, "what passed until the last wait was seen")
    w.way.rate = None
    return "%d cuts, waits %s; %s" % (cuts, waits, w.finish())


@case
def slow_flush_is_not_in_the_stop(bed):
    """A target that takes long to make the copy durable: that is no stall, and the guest runs."""
    w = Watched(bed, flush_s=6)
    w.until("a flush", lambda: w.way.flushes)
    assert w.pair()["state"] == "resync", w.brief()
    note = w.finish()
    assert len(w.way.flushes) >= 2, w.way.flushes
    return note


@case
def connection_of_before_is_not_taken_for_the_new_one(bed):
    """By hand: the primary gave a connection up while the way was cut, and the secondary has not
    heard of it. What replicates is the one that the primary made then, and the old one goes."""
    w = Watched(bed, copied=True)
    a, b, p = w.a, w.b, w.p

    def attach(name):
        said = a.cmd("human-monitor-command", {"command-line": (
            "drive_add -n buddy driver=replication,mode=primary,file.driver=nbd,file.host=%s,"
            "file.port=%d,file.export=parent0,node-name=%s" % (p.way, p.ports["nbd"], name))})
        assert not said.strip(), said
        a.cmd("x-blockdev-change", {"parent": "colo-disk0", "node": name})
    attach("rep0")
    a.cmd("cont")
    begun = a.count()
    a.wait("the guest writes", lambda: a.count() > begun + 20)
    a.cmd("stop")
    w.way.deaf = True
    a.cmd("x-blockdev-change", {"parent": "colo-disk0", "child": "children.1"})
    a.cmd("human-monitor-command", {"command-line": "drive_del rep0"})
    assert w.way.servers() == 1, w.way.servers()
    attach("rep1")
    a.wait("the old one to be closed", lambda: w.way.servers() == 1)
    a.x_colo()
    a.cmd("migrate", {"uri": "tcp:%s:%d" % (ADDRESS["b"], p.ports["migrate"])})
    a.wait_state("protected")
    b.wait_state("protected")
    w.spend(2)
    assert a.status()["state"] == b.status()["state"] == "protected", w.brief()
    w.way.deaf = False
    w.equal()


if __name__ == "__main__":
    raise SystemExit(main())
