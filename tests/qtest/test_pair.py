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
        self.image = {}
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
            over = [self.bed.image("%s-%s.qcow2" % (who, name), 4, "qcow2")
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


if __name__ == "__main__":
    raise SystemExit(main())
