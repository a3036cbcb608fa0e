#!/usr/bin/env python3
# A pair that looks after itself, seen from outside.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Both sides are on one machine, at 127.0.0.1 and 127.0.0.2, so that they can have the same
ports. Disks are real, netdevs are not needed here: tests/e2e/test_pair.py has them.
"""

from colo_qtest import (QMPError, case, free_port, has_words, json, main, os, shutil, signal,
                        socket, time)

ADDRESS = {"a": "127.0.0.1", "b": "127.0.0.2"}


class PairBed:
    """Sides of one pair: a name is an address, a role is the command line."""

    def __init__(self, bed, disk=True, extra=()):
        self.bed, self.disk, self.extra = bed, disk, list(extra)
        self.ports = {name: free_port() for name in ("pair", "nbd", "migrate")}
        self.image, self.mib = {}, {"a": 4, "b": 4}
        if disk:
            for who in "ab":
                self.image[who] = bed.image("%s.raw" % who, 4)

    def options(self, who, *more):
        other = ADDRESS["b" if who == "a" else "a"]
        return ["-colo", ",".join(["pair=on", "listen=" + ADDRESS[who], "peer=" + other] + [
            "%s-port=%d" % item for item in self.ports.items()] + list(more))]

    def primary(self, who, *more, connect=True):
        args = self.options(who, *more) + self.bed.rom + self.extra + ["-name", "vm-" + who]
        if self.disk:
            args += ["-drive", "if=virtio,id=colo-disk0,driver=quorum,read-pattern=fifo,"
                     "vote-threshold=1,children.0.file.filename=%s,children.0.driver=raw"
                     % self.image[who]]
        return self.bed.host(who, *args, connect=connect)

    def secondary(self, who, *more, connect=True):
        args = self.options(who, *more) + self.bed.rom + self.extra + ["-name", "vm-" + who]
        if self.disk:
            over = [self.bed.image("%s-%s.qcow2" % (who, name), self.mib[who], "qcow2")
                    for name in ("active", "hidden")]
            args += ["-drive", "if=none,id=parent0,file.filename=%s,driver=raw"
                     % self.image[who],
                     "-drive", "if=none,id=childs0,driver=replication,mode=secondary,"
                     "file.driver=qcow2,top-id=colo-disk0,file.file.filename=%s,"
                     "file.backing.driver=qcow2,file.backing.file.filename=%s,"
                     "file.backing.backing=parent0" % tuple(over),
                     "-drive", "if=virtio,id=colo-disk0,driver=quorum,read-pattern=fifo,"
                     "vote-threshold=1,children.0=childs0"]
        args += ["-incoming", "tcp:%s:%d" % (ADDRESS[who], self.ports["migrate"])]
        return self.bed.host(who, *args, connect=connect)

    def ask(self, who):
        """What the pair port says."""
        with socket.create_connection((ADDRESS[who], self.ports["pair"]), 5) as s:
            text = b""
            while True:
                more = s.recv(65536)
                if not more:
                    break
                text += more
        assert text.endswith(b"\n") and text.count(b"\n") == 1, text
        return json.loads(text)


def pair_state(host):
    return host.status()["pair"]["state"]


def wait_pair(host, state, timeout=40):
    try:
        host.wait("pair " + state, lambda: pair_state(host) == state, timeout)
    except QMPError as e:
        raise AssertionError("%s: %s; %s" % (e, host.status(), host.output())) from None


def protected(primary, secondary, timeout=40):
    wait_pair(primary, "protected", timeout)
    wait_pair(secondary, "protected", timeout)
    assert primary.status()["mode"] == "primary" and secondary.status()["mode"] == "secondary"


@case
def pair_port_tells_who_one_is(bed):
    """Alone, waiting and protected; whoever writes to the port, or never reads, is no harm."""
    p = PairBed(bed, disk=False)
    a = p.primary("a")
    a.wait("serving", lambda: p.ask("a")["serves"])
    said = p.ask("a")
    assert said["program"] == "qemu-colo" and said["name"] == "vm-a", said
    assert (said["state"], said["role"], said["epoch"]) == ("alone", "none", 0), said
    assert said["wants-peer"] and isinstance(said["instance"], int), said
    wait_pair(a, "waiting-peer")
    rude = [socket.create_connection((ADDRESS["a"], p.ports["pair"])) for _ in range(5)]
    for s in rude:
        try:
            s.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
        except OSError:
            pass
    assert p.ask("a")["instance"] == said["instance"]
    b = p.secondary("b")
    protected(a, b)
    said = p.ask("a")
    assert (said["state"], said["role"], said["serves"]) == ("protected", "primary", True), said
    said = p.ask("b")
    assert (said["state"], said["role"], said["serves"]) == ("protected", "secondary", False)
    assert not said["wants-peer"]


@case
def start_as_primary_beside_one_that_serves(bed):
    """Status 3, and the one that serves is not disturbed; also when it waits for the word."""
    p = PairBed(bed, disk=False)
    a = p.primary("a", "auto-protect=off")
    a.wait("serving", lambda: p.ask("a")["serves"])
    b = p.primary("b", connect=False)
    assert b.ended() == 3
    has_words(b.output(), "serves the guest", "as secondary")
    b = p.secondary("b")
    a.cmd("x-colo-protect")
    protected(a, b)
    os.kill(a.process.pid, signal.SIGKILL)
    b.wait_state("lost")
    again = p.primary("a", connect=False)
    assert again.ended() == 3
    has_words(again.output(), "last state")


@case
def two_primaries_at_once(bed):
    """One of two that start in the same moment goes on."""
    p = PairBed(bed, disk=False)
    hosts = [p.primary(who, connect=False) for who in "ab"]
    end = time.monotonic() + 20
    while all(h.process.alive() for h in hosts) and time.monotonic() < end:
        time.sleep(0.05)
    dead = [h for h in hosts if not h.process.alive()]
    assert len(dead) == 1 and dead[0].ended() == 3, [h.output() for h in hosts]
    time.sleep(1)
    alive = [h for h in hosts if h.process.alive()]
    assert len(alive) == 1, "both ended"


@case
def options_that_cannot_be_meant(bed):
    for words, said in ((["pair=on"], "listen=ADDRESS"), (["nbd-port=1"], "needs pair=on"),
                        (["pair=on", "listen=127.0.0.1", "peer=127.0.0.2", "auto-sync=x"],
                         "auto-sync='x'"),
                        (["pair=on", "listen=127.0.0.1", "peer=127.0.0.2", "pair-port=0"],
                         "pair-port")):
        h = bed.host("bad%d" % len(bed.hosts), "-colo", ",".join(words), connect=False)
        assert h.ended() == 1
        has_words(h.output(), said)


@case
def protection_by_itself_and_after_each_death(bed):
    """a dies, b takes over by the word and gets a' without another one; b dies, a' serves."""
    p = PairBed(bed)
    a, b = p.primary("a"), p.secondary("b")
    protected(a, b)
    for old, new, name in ((a, b, "a"), (b, None, None)):
        os.kill(old.process.pid, signal.SIGKILL)
        side = new or a
        side.wait_state("lost")
        side.cmd("x-colo-lost-heartbeat")
        side.wait_state("alone")
        if name:
            wait_pair(side, "waiting-peer")
            a = p.secondary(name)
            protected(side, a)
    assert a.runs()


MIB = 1 << 20


def mirror_slowly(host, speed=MIB, timeout=20):
    """Catch the copy at its beginning, and slow it down."""
    def there():
        return [j for j in host.cmd("query-block-jobs") if j["device"] == "resync"]
    host.wait("resync", there, timeout)
    host.cmd("block-job-set-speed", {"device": "resync", "speed": speed})
    assert not there()[0]["ready"], "the copy was too quick to be caught"
    return there


def big_pair(bed, mib=192):
    p = PairBed(bed)
    for who in "ab":
        p.mib[who] = mib
        with open(p.image[who], "wb") as f:
            f.truncate(mib * MIB)
    with open(p.image["a"], "r+b") as f:
        for _ in range(mib):
            f.write(bed.rng.randbytes(MIB))
    return p


@case
def half_copied_image_never_serves(bed):
    """The primary dies in the copy: the secondary stays silent, and so does its image, until
    it was brought up to date."""
    p = big_pair(bed)
    a, b = p.primary("a"), p.secondary("b")
    mirror_slowly(a)
    time.sleep(0.5)
    os.kill(a.process.pid, signal.SIGKILL)
    time.sleep(0.5)
    has_words(b.error("x-colo-lost-heartbeat"), "protection has not begun")
    assert not p.ask("b")["serves"]
    b.process.kill()
    b = p.primary("b", connect=False)
    assert b.ended() == 1
    has_words(b.output(), "b.raw")
    a, b = p.primary("a"), p.secondary("b")
    protected(a, b)
    os.kill(a.process.pid, signal.SIGKILL)
    b.wait_state("lost")
    b.cmd("x-colo-lost-heartbeat")
    b.wait_state("alone")
    assert b.runs()


@case
def peer_that_hangs(bed):
    """Before it is asked, and in the copy: the guest runs, the try is undone, and once the
    peer is awake the pair is protected."""
    p = big_pair(bed)
    a, b = p.primary("a", "auto-protect=off"), p.secondary("b")
    wait_pair(b, "waiting-peer")
    os.kill(b.process.pid, signal.SIGSTOP)
    a.cmd("x-colo-protect")
    a.wait("no answer", lambda: "does not answer" in a.status()["pair"]["detail"])
    assert a.runs()
    os.kill(b.process.pid, signal.SIGCONT)
    there = mirror_slowly(a)
    os.kill(b.process.pid, signal.SIGSTOP)
    a.wait("the try to end", lambda: "has taken nothing" in a.status()["pair"]["error"], 30)
    assert a.runs()
    os.kill(b.process.pid, signal.SIGCONT)
    a.wait("no job", lambda: not there())
    a.cmd("x-colo-protect")
    protected(a, b)


@case
def deaths_while_it_comes_together(bed):
    """The secondary is killed at any moment between its start and protection, again and again:
    the guest runs, and nothing is left of the try."""
    p = PairBed(bed)
    a = p.primary("a")
    where = []
    for n in range(5):
        b = p.secondary("b")
        a.cmd("x-colo-protect")
        time.sleep(bed.rng.uniform(0, 1.2))
        where.append(pair_state(a))
        pid = b.process.pid if bed.rng.random() < 0.5 else b.process.emulator_pid()
        os.kill(pid, signal.SIGKILL)
        b.process.wait(10)

        def back():
            if a.status()["state"] == "lost":
                a.cmd("x-colo-lost-heartbeat")
            s = a.status()
            return s["state"] == "alone" and s["pair"]["state"] in ("waiting-peer", "backoff")
        a.wait("alone", back, 30)
        assert a.runs()
        assert a.cmd("query-block-jobs") == []
        names = {o["name"] for o in a.cmd("qom-list", {"path": "/objects"})}
        assert not names & {"comp0", "m0", "iothread1"}, names
        nodes = {o["node-name"] for o in a.cmd("query-named-block-nodes")}
        assert "replication0" not in nodes, nodes
    b = p.secondary("b")
    a.cmd("x-colo-protect")
    protected(a, b)
    return " ".join(where)


@case
def failures_are_spaced(bed):
    """A try that fails again and again waits longer each time; the word forgets that."""
    p = PairBed(bed)
    a = p.primary("a")
    p.image["b"], p.mib["b"] = bed.image("small.raw", 2), 2
    p.secondary("b")
    waits = []
    for n in range(3):
        wait_pair(a, "backoff", 20)
        s = a.status()["pair"]
        waits.append(s["next-try-ms"])
        assert s["attempts"] == n + 1 and s["error"], s
        a.wait("the next try", lambda: a.status()["pair"]["attempts"] > n + 1, 20)
    assert 0 < waits[0] <= 1000 < waits[1] <= 2000 < waits[2] <= 4000, waits
    wait_pair(a, "backoff")
    a.cmd("x-colo-protect")
    a.wait("a try at once", lambda: a.status()["pair"]["attempts"] == 5, 3)
    wait_pair(a, "backoff")
    assert a.status()["pair"]["next-try-ms"] <= 1000
    assert a.runs()


@case
def roles_change_hands(bed):
    """There and back, with status 4; and refused where there is nobody."""
    p = PairBed(bed)
    a = p.primary("a")
    has_words(a.error("x-colo-switchover"), "no protected primary")
    b = p.secondary("b")
    protected(a, b)
    has_words(b.error("x-colo-switchover"), "no protected primary")
    has_words(b.error("x-colo-protect"), "secondary")
    for old, new, name in ((a, b, "a"), (b, None, None)):
        new = new or a
        before, counted = new.status()["epoch"], old.count()
        old.cmd("x-colo-switchover")
        assert old.ended() == 4
        new.wait_state("alone")
        assert new.status()["epoch"] >= before + 1
        assert new.count() >= counted, "the guest went back in time"
        if name:
            a = p.secondary(name)
            protected(new, a)
    assert a.runs()


@case
def secondary_dies_in_the_switchover(bed):
    """At each step: until it has said that it takes over, the primary can go on."""
    for step in ("svm-received", "svm-stopped", "svm-running", "svm-yielded", "takeover"):
        p = PairBed(bed, disk=False)
        a, b = p.primary("a"), p.secondary("b", "die-at=" + step)
        protected(a, b)
        os.kill(b.process.pid, signal.SIGUSR1)
        try:
            a.cmd("x-colo-switchover")
        except QMPError as e:
            has_words(str(e), "have not changed hands|closed|ended")
        b.process.wait(10)
        if step != "takeover":
            a.wait_state("lost")
            a.cmd("x-colo-lost-heartbeat")
            a.wait_state("alone")
            assert a.runs(), step
        else:
            assert a.ended() == 4, "not silent for good"
        a.close()


if __name__ == "__main__":
    raise SystemExit(main())
