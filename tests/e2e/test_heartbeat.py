# Partitions with a heartbeat over two networks: one voice, whatever is cut, lost or asleep.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Beats go over COLO's link and over the network of the witness. What each host lets out of the
guest's is captured on its LAN port: after the secondary's first word the other side must have said
its last, known things and ARP included. The table is in docs/devel/ownership.rst.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

from colo_e2e import CASES, HERE, case, main
from e2e_net import CLIENT_IP, LINK_IP, WITNESS_IP
from e2e_proc import Process, within
from test_arbiter import KEY, URL, Arbitrated, begin, finish

TIMEOUT = 1500
OWN = []  # the cases of this file


def own(repeat=1):
    def add(fn):
        case(repeat)(fn)
        OWN.append(CASES[-1])
        return fn
    return add


class Beating(Arbitrated):
    """A pair with a witness and a heartbeat."""

    def __init__(self, t, nets=("link", "wit"), timeout=TIMEOUT, peer_timeout=2000):
        super().__init__(t, extra=(
            "-colo", "arbiter=witness,witness=%s,witness-key=%s,witness-lease=3" % (URL, KEY),
            "-colo", "peer-timeout=%d" % peer_timeout))
        key = self.dir + "/key"
        with open(key, "w") as f:
            f.write("%032x\n" % t.rng.getrandbits(128))
        os.chmod(key, 0o600)
        ips = {"link": LINK_IP, "wit": WITNESS_IP}
        for who, peer in ("ab", "ba"):
            words = "colo-heartbeat,id=hb0,interval=50,timeout=%d,key-file=%s" % (timeout, key)
            for i, net in enumerate(nets):
                words += ",links.%d.local=%s:9100,links.%d.peer=%s:9100" % (
                    i, ips[net][who], i, ips[net][peer])
            setattr(self.cfg, "extra_primary" if who == "a" else "extra_secondary",
                    ("-object", words))

    def mute(self, who, kind, mute=True):
        """Nothing that a host sends on a network reaches its peer."""
        ips = LINK_IP if kind == "link" else WITNESS_IP
        subprocess.run(["ip", "-n", self.net.ns[who], "route", "replace" if mute else "del",
                        "blackhole", ips["b" if who == "a" else "a"] + "/32"], check=True)

    def beat(self, host):
        return host.qmp.cmd("query-colo-status")["heartbeat"]

    def decided_one(self):
        """(winner, loser), once both know."""
        for host in (self.a, self.b):
            host.qmp.wait_for("a decision", lambda q: self.state(host) in ("alone", "fenced"), 30)
        assert {self.state(self.a), self.state(self.b)} == {"alone", "fenced"}, \
            (self.state(self.a), self.state(self.b))
        a = self.state(self.a) == "alone"
        return (self.a, self.b) if a else (self.b, self.a)

    def times(self, who):
        """Moments at which a host let something of the guest's out."""
        return [float(line.split()[0]) for line in self.voice(who, 0)]

    def check_voices(self, winner, loser):
        """The secondary is silent until the primary has said its last."""
        assert all(process.alive() for process in self.others if process.name == "asker")
        said, other = self.times(winner.who), self.times(loser.who)
        assert said, "nobody serves"
        if winner is self.b:
            assert not other or other[-1] < said[0], \
                "two voices: %.0f ms" % ((other[-1] - said[0]) * 1e3)
            return said[0] - other[-1] if other else None
        assert not other, "the secondary spoke"
        return None


ASK = """
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("br-lan", 0))
us, ask, guest = s.getsockname()[4], *map(socket.inet_aton, sys.argv[1:3])
while True:
    s.send(bytes([255] * 6) + us + bytes.fromhex("08060001080006040001") + us + ask + bytes(6) + guest)
    time.sleep(0.005)
"""


def noise(p):
    """What makes a guest answer known things: questions for its address, 200 a second."""
    p.others.append(Process("asker", p.net.wrap("c", [sys.executable, "-c", ASK, CLIENT_IP,
                                                      p.cfg.ip]), p.dir + "/asker.log"))


@own(repeat=3)
def checkpoint_link_cut(t):
    """COLO's link is cut, the other beats go on: the channel's time-out ends protection, and the
    primary's word that it is silent spares the secondary the wait."""
    with Beating(t, peer_timeout=800) as p:
        p.watch()
        client = begin(p, 8)
        noise(p)
        p.net.cut("link", "b")
        winner, loser = p.decided_one()
        assert p.beat(winner)["links"][1]["state"] == "up", p.beat(winner)
        note = finish(p, client, winner)
        p.check_voices(winner, loser)
        return "%s serves, %s" % (winner.who, note)


@own(repeat=5)
def all_cut_off(t):
    """Host A is cut off from everything but its guests' LAN: it answers what it knows no longer
    than its lease; B takes over, and is not heard before that."""
    with Beating(t) as p:
        p.watch()
        client = begin(p, 8)
        noise(p)
        cut = time.time()
        p.net.cut("wit", "a")
        p.net.cut("link", "a")
        p.decided(p.b, True)
        note = finish(p, client, p.b)
        quiet = p.check_voices(p.b, p.a)
        first = p.times("b")[0]
        p.net.mend("wit", "a")
        p.decided(p.a, False)
        p.check_voices(p.b, p.a)
        return "%s; silent %.0f ms before B's first word, %.0f ms after the cut" % (
            note, (quiet or 0) * 1e3, (first - cut) * 1e3)


@own(repeat=3)
def host_vanishes(t):
    """All of host A's networks are gone at once: B serves after the heartbeat's time-out."""
    with Beating(t) as p:
        p.watch()
        client = begin(p, 8)
        gone = time.time()
        for kind in ("lan", "link", "wit"):
            p.net.down(kind, "a")
        p.decided(p.b, True)
        note = finish(p, client, p.b)
        took = p.times("b")[0] - gone
        assert took > TIMEOUT / 1e3 - 0.3, "B did not wait: %.3f s" % took
        return "%s; B's first word after %.0f ms, time-out %d ms" % (note, took * 1e3, TIMEOUT)


@own(repeat=2)
def one_of_two_networks(t):
    """One of the two networks is cut, then one direction of it is lost: protected all along, by
    the other, on hosts whose clocks are weeks apart. (Beats lost at random: the forwarder of
    qtest/test_heartbeat.py.)"""
    with Beating(t, timeout=2500) as p:
        wrap = p.net.wrap
        weeks = ["unshare", "--time", "--boottime", "2000000", "--monotonic", "2000000",
                 "--fork", "--kill-child"]
        if subprocess.run([*weeks, "true"], capture_output=True).returncode == 0:
            p.net.wrap = lambda who, command: wrap(
                who, weeks + command if who == "b" and "qemu-colo" in command[0] else command)
        p.start(boot=False)
        p.net.wrap = wrap
        p.protect()
        for lose, mend in ((lambda: p.net.cut("wit", "a"), lambda: p.net.mend("wit", "a")),
                           (lambda: p.mute("a", "wit"), lambda: p.mute("a", "wit", False))):
            begun = time.monotonic()
            lose()
            p.b.qmp.wait_event("COLO_HEARTBEAT_LOST", 20, begun, lambda d: d.get("link") == 1)
            time.sleep(0.5)
            assert p.beat(p.a)["state"] == p.beat(p.b)["state"] == "up"
            begun = time.monotonic()
            mend()
            p.b.qmp.wait_event("COLO_HEARTBEAT_RESTORED", 20, begun,
                               lambda d: d.get("link") == 1)
        for host in (p.a, p.b):
            assert p.state(host) == "protected", host.qmp.cmd("query-colo-status")
            assert not [e for _, e in host.qmp.events if e["event"] == "COLO_HEARTBEAT_LOST" and
                        "link" not in e["data"]]
        p.check()


@own(repeat=3)
def one_direction_lost(t):
    """What one of the two says does not reach the other, which it hears well: both see the
    loss, one serves, and the other is silent before."""
    with Beating(t, nets=("link",), peer_timeout=3000) as p:
        unheard = t.rng.choice("ab")
        p.watch()
        client = begin(p, 9)
        noise(p)
        p.mute(unheard, "link")
        winner, loser = p.decided_one()
        note = finish(p, client, winner)
        p.check_voices(winner, loser)
        return "%s was not heard, %s serves, %s" % (unheard, winner.who, note)


@own(repeat=2)
def third_of_all_lost(t):
    """30 of 100 frames between the hosts are lost in each direction, beats, checkpoints and disk
    writes alike: they stay protected, or one serves. Never two, and no byte is wrong."""
    with Beating(t, nets=("link",)) as p:
        p.watch()
        client = begin(p, 12)
        noise(p)
        for who in "ab":
            subprocess.run(["ip", "-n", p.net.ns[who], "link", "set", "link0", "gso_max_segs", "1"],
                           check=True)
            p.net.cut("link", who)
        loss = Process("lossy link", p.net.wrap("c", [
            sys.executable, os.path.join(HERE, "e2e_slow.py"), "linka", "linkb", "1000", "0", "30",
            str(t.rng.randrange(1 << 30))]), p.dir + "/lossy.log")
        p.others.append(loss)
        t.sleep(3, 6)
        assert loss.alive(), loss.output()
        lost = {who: p.beat(host)["links"][0]["sent"] for who, host in (("a", p.a), ("b", p.b))}
        seen = p.beat(p.b)["links"][0]["received"]
        p.others.remove(loss)
        loss.stop()
        for who in "ab":
            p.net.mend("link", who)
        end = time.monotonic() + 60
        while {p.state(p.a), p.state(p.b)} not in ({"protected"}, {"alone", "fenced"}):
            within(end, lambda: "%s, %s" % (p.state(p.a), p.state(p.b)))
            time.sleep(0.1)
        decided = p.state(p.a) != "protected"
        winner, loser = p.decided_one() if decided else (p.a, p.b)
        note = finish(p, client, winner)
        p.check_voices(winner, loser)
        assert seen < lost["a"], "nothing was lost"
        return "%s, %s" % ("%s serves" % winner.who if decided else "protected", note)


@own(repeat=3)
def primary_asleep(t):
    """SIGSTOP of the primary for longer than its lease: B serves; on waking A finds its gate
    shut, says nothing, and is fenced."""
    with Beating(t) as p:
        p.watch()
        client = begin(p, 9)
        noise(p)
        p.a.process.freeze()
        p.decided(p.b, True)
        time.sleep(1)
        p.a.process.send(signal.SIGCONT)
        p.a.qmp.wait_for("fenced", lambda q: p.state(p.a) == "fenced", 20)
        note = finish(p, client, p.b)
        p.check_voices(p.b, p.a)
        return note


@own(repeat=2)
def secondary_asleep(t):
    """SIGSTOP of the secondary: A goes on alone; on waking B says nothing and is fenced."""
    with Beating(t) as p:
        p.watch()
        client = begin(p, 9)
        p.b.process.freeze()
        p.decided(p.a, True)
        time.sleep(1)
        p.b.process.send(signal.SIGCONT)
        p.b.qmp.wait_for("fenced", lambda q: p.state(p.b) == "fenced", 20)
        note = finish(p, client, p.a)
        p.check_voices(p.a, p.b)
        return note


if __name__ == "__main__":
    if not shutil.which("etcd"):
        print("skip  all: no etcd here")
        sys.exit(0)
    sys.exit(main(OWN))
