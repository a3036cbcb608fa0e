#!/usr/bin/env python3
# Roles change hands, a witness decides, and something dies or hangs on the way.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Who may speak is asked of each side itself: announce-self goes through the gate that all output of the
guest goes through. Nobody types a word in any of these cases.
"""

from colo_etcd import Etcd
from colo_frames import Wire
from colo_post import EXIT, TOKEN, YIELD, Post
from colo_qtest import *
from colo_way import Way

ADDRESS = {"a": "127.0.0.1", "b": "127.0.0.2"}
LEASE = 3
LOST_AFTER = 4  # where a case waits for it
ONCE = {"initial": 10, "max": 10, "step": 0, "rounds": 1}


def port_of(url):
    return int(url.rpartition(":")[2])


def away(url):
    """Where b reaches it, by a way that can be cut."""
    return url.replace(ADDRESS["a"], ADDRESS["b"])


class Hosts:
    """A primary a and a secondary b, each with a NIC, a LAN of its own and a witness."""

    def __init__(self, b, etcd, key, a_words=(), b_words=(), b_url=None,
                 timeout=10):
        self.b, self.etcd, self.key = b, etcd, key
        self.lan = {}
        ports = [free_port() for _ in range(5)]
        self.post = Post(b, ADDRESS["a"], ADDRESS["b"], ports[:1])
        self.url = {"a": etcd.url, "b": b_url or etcd.url}
        self.role = {
            "a": filters(ports[1:], True),
            "b": filters(ports[1:], False) + ["-incoming", "tcp:%s:%d" % (ADDRESS["b"], ports[0])]}
        timeout = ("-colo", "peer-timeout=%d" % (timeout * 1000))
        self.second = "%s/%s-a2.qmp" % (b.dir, key)
        timeout += ("-qmp", "unix:%s,server=on,wait=off" % self.second)
        self.a = self.start("a", *self.role["a"], *timeout, *a_words)
        self.a.wait("guest counts", self.a.runs)
        self.secondary = self.start("b", *self.role["b"], *timeout[:2], *b_words)
        self.secondary.x_colo()
        # Epochs are made by the hand-over alone: its first one, and its last.
        self.a.cmd("migrate-set-parameters", {"x-checkpoint-delay": 3600000})
        self.a.x_colo()
        self.uri = {"uri": "tcp:%s:%d" % (ADDRESS["a"], ports[0])}

    def protect(self):
        self.a.cmd("migrate", self.uri)
        self.a.wait_state("protected")
        self.secondary.wait_state("protected")
        assert self.record()["state"] == "protected"
        assert self.speaks("a") and not self.speaks("b")
        return self

    def start(self, who, *words):
        path = "%s/%s-%s.lan" % (self.b.dir, self.key, who)
        if os.path.exists(path):
            os.unlink(path)
        host = self.b.host("%s-%s" % (self.key, who), "-colo",
                           "state-file=" + self.role_file(who), "-colo",
                           "checkpoint-events=on,arbiter=witness,witness=%s,witness-lease=%d,"
                           "witness-key=%s" % (self.url[who], LEASE, self.key),
                           *self.b.rom, *words, "-netdev",
                           "stream,id=n0,server=on,addr.type=unix,addr.path=" + path, "-device",
                           "e1000,netdev=n0,mac=52:54:00:00:00:07,romfile=")
        self.lan[who] = Wire(path)
        self.b.closers.append(self.lan[who])
        return host

    def role_file(self, who):
        return "%s/%s-%s.role" % (self.b.dir, self.key, who)

    def record(self):
        text = self.etcd.ctl("get", self.key, "--print-value-only").stdout
        return json.loads(text) if text else {}

    def heard(self, who, seconds=0.2):
        """Whether something is heard of this side within that time; all of it is read."""
        frames = 0
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                frames += self.lan[who].recv(0.05) is not None
        except (EOFError, ConnectionError):
            pass
        return frames

    def speaks(self, who, seconds=30):
        """Whether what it sends now leaves. The one that serves has time, on a busy machine."""
        host = self.a if who == "a" else self.secondary
        may = who == self.expected()
        self.heard(who)  # what it said before
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            host.cmd("announce-self", ONCE)
            if self.heard(who, 0.3):
                return True
            if not may:
                return False
        raise Late("%s is not heard" % who)

    def expected(self):
        """Who serves, in its own words."""
        for who, host in (("a", self.a), ("b", self.secondary)):
            if host.process.alive() and self.state(host) in ("alone", "protected") and \
                    host.status()["mode"] != "secondary":
                return who
        return None

    def state(self, host):
        try:
            return host.status()["state"]
        except QMPError:
            return None  # it died

    def hand_over(self):
        """The error, if it fails or its side dies."""
        try:
            self.a.cmd("x-colo-switchover", timeout=60)
        except (QMPError, OSError) as e:
            return str(e)
        return None

    def serves(self, who, counted):
        """@who, and nobody else, within the time that a lease and a time-out take."""
        host, other = (self.a, self.secondary) if who == "a" else (self.secondary, self.a)
        host.wait_state("alone", 60)
        assert host.runs() and host.count() >= counted, "the guest went back in time"
        assert self.speaks(who), "it is not heard"
        # A lease may end on a busy machine; then its owner comes back.
        mine = ("alone", host.process.pid)
        host.wait("its key", lambda: (self.record().get("state"), self.record().get("pid")) == mine)
        if other.process.alive():
            other.wait_state("fenced", 60)
            assert not self.speaks("ab"[who == "a"]), "two voices"

    def close(self):
        for host in (self.a, self.secondary):
            host.close()


def filters(ports, primary):
    mirror, compare1, compare0, out = ports
    if not primary:
        return ["-chardev", "socket,id=red0,host=127.0.0.1,port=%d,reconnect=1" % mirror,
                "-chardev", "socket,id=red1,host=127.0.0.1,port=%d,reconnect=1" % compare1,
                "-object", "filter-redirector,id=f1,netdev=n0,queue=tx,indev=red0",
                "-object", "filter-redirector,id=f2,netdev=n0,queue=rx,outdev=red1",
                "-object", "filter-rewriter,id=rew0,netdev=n0,queue=all"]
    words = []
    for name, port in (("mirror0", mirror), ("compare1", compare1), ("compare0", compare0),
                       ("compare_out", out)):
        words += ["-chardev", "socket,id=%s,host=127.0.0.1,port=%d,server=on,wait=off" % (name, port)]
    return words + [
        "-chardev", "socket,id=compare0-0,host=127.0.0.1,port=%d" % compare0,
        "-chardev", "socket,id=compare_out0,host=127.0.0.1,port=%d" % out,
        "-object", "filter-mirror,id=m0,netdev=n0,queue=tx,outdev=mirror0",
        "-object", "filter-redirector,id=redire0,netdev=n0,queue=rx,indev=compare_out",
        "-object", "filter-redirector,id=redire1,netdev=n0,queue=rx,outdev=compare0",
        "-object", "iothread,id=iothread1",
        "-object", "colo-compare,id=comp0,primary_in=compare0-0,secondary_in=compare1,"
        "outdev=compare_out0,iothread=iothread1"]


def dying(b, steps, who):
    """A pair for each step, at which @who dies: what is to be judged."""
    with Etcd(b) as etcd:
        for step in steps:
            words = ("-colo", "die-at=" + step)
            h = Hosts(b, etcd, "k-" + step.replace(":", "-"), **{who + "_words": words}).protect()
            victim = h.a if who == "a" else h.secondary
            os.kill(victim.process.pid, signal.SIGUSR1)
            victim.wait("the signal's turn", lambda: "is armed" in victim.output())
            h.counted = h.a.count()
            h.error = h.hand_over()
            try:
                victim.process.wait(60)
            except subprocess.TimeoutExpired:
                raise AssertionError("it did not die at " + step) from None
            has_words(victim.output(), "dying at step " + step.partition(":")[0])
            try:
                yield step, h
            except Exception:
                print("at step", step)
                raise
            h.close()


@case
def roles_change_hands(b):
    """Nothing fails: before the word leaves the old side is silent and its guest stands, and both
    stay so."""
    with Etcd(b) as etcd:
        h = Hosts(b, etcd, "k").protect()
        counted = h.a.count()
        seen = []

        def look():
            other.cmd("announce-self", ONCE)
            counts = [other.cmd("human-monitor-command", {"command-line": "xp /1wx 0x8000"})
                      for _ in range(2) if time.sleep(0.1) is None]
            seen.append((h.heard("a"), len(set(counts)), h.record()["state"]))
        h.heard("a")
        other = type(h.a.qmp)(h.second)  # the first session waits for its command's end
        looked = h.post.before(YIELD, look)
        error = h.hand_over()
        assert error is None, error
        assert looked.wait(60) and seen == [(0, 1, "protected")], seen
        h.serves("b", counted)
        assert not h.a.runs(), "two guests"
        other.close()


@case
def primary_dies_at_each_step(b):
    """Of the last checkpoint, of the word: the secondary serves."""
    for _, h in dying(b, ("stopped:2", "committed:2", "yielding", "yielded"), "a"):
        h.serves("b", h.counted)


@case
def secondary_dies_at_each_step(b):
    """Until it has won at the witness the primary can go on, and does; its command says so."""
    for _, h in dying(b, ("svm-received:2", "svm-running:2", "svm-yielded"), "b"):
        h.serves("a", h.counted)
        has_words(h.error, "have not changed hands")


@case
def new_side_dies_after_its_win(b):
    """Nothing is said before it is noted that it was this side that served; the old one is fenced. Who
    starts the new side again has its guest serve, when the lease is over."""
    for step, h in dying(b, ("takeover", "takeover-disk", "takeover-noted"), "b"):
        assert not h.heard("b", 0.5), "it spoke too early"
        with open(h.role_file("b")) as f:
            noted = f.read().strip()
        assert noted == ("alone" if step == "takeover-noted" else "protected-secondary"), noted
        h.a.wait_state("fenced")
        assert not h.speaks("a"), "two voices"
        h.secondary = again(h)
        h.serves("b", 0)


def again(h):
    """A service manager starts b again, as often as it takes."""
    end = time.monotonic() + 60
    while True:
        try:
            host = h.start("b")
            host.cmd("query-status")
            return host
        except (QMPError, OSError):
            within(end, "its key is not to be had")


@case
def new_side_does_not_reach_the_witness(b):
    """It has the word and may not use it; the old side serves on, in a bounded time, and whether the
    other dies meanwhile or sees the witness again changes nothing."""
    with Etcd(b) as etcd:
        for dies in (False, True):
            way = Way(b, "127.0.0.2", "127.0.0.1", [port_of(etcd.url)])
            h = Hosts(b, etcd, "k%d" % dies, b_url=away(etcd.url), timeout=LOST_AFTER)
            h.protect()
            counted = h.a.count()
            way.cut()
            error = h.hand_over()
            if dies:
                h.secondary.process.kill()
            h.a.wait_state("alone", 60)
            assert not h.speaks("b") if not dies else True
            if not dies:
                way.mend(True)
            h.serves("a", counted)
            has_words(error, "have not changed hands", "has not said")
            h.close()
            way.close()


@case
def word_comes_too_late(b):
    """The new side sleeps when the word comes. The old one has won when it wakes: it may not serve."""
    with Etcd(b) as etcd:
        h = Hosts(b, etcd, "k", timeout=LOST_AFTER).protect()
        counted = h.a.count()
        asleep = h.post.before(YIELD, lambda: freeze(h.secondary.process.pid))
        error = h.hand_over()
        assert asleep.is_set()
        has_words(error, "have not changed hands", "has not said")
        h.a.wait_state("alone", 60)
        assert h.speaks("a")
        h.secondary.process.send(signal.SIGCONT)
        h.serves("a", counted)


@case
def answer_is_lost(b):
    """The new side has won; that it said so is not heard: the old one asks, and is fenced."""
    with Etcd(b) as etcd:
        h = Hosts(b, etcd, "k").protect()
        counted = h.a.count()
        lost = h.post.before(EXIT, lambda: False)
        error = h.hand_over()
        assert lost.is_set()
        has_words(error, "have not changed hands")
        h.serves("b", counted)


@case
def word_of_an_operator_and_no_witness(b):
    """x-colo-lost-heartbeat on a secondary that does not reach the witness: it says that it takes
    over, and cannot. Nobody else has a word to say; the primary asks, later."""
    with Etcd(b) as etcd:
        way = Way(b, "127.0.0.2", "127.0.0.1", [port_of(etcd.url)])
        h = Hosts(b, etcd, "k", b_url=away(etcd.url), timeout=LOST_AFTER).protect()
        counted = h.a.count()
        way.cut()
        h.secondary.cmd("x-colo-lost-heartbeat")
        h.secondary.wait_state("lost")
        h.a.wait_state("alone", 60)
        way.mend(True)
        h.serves("a", counted)


if __name__ == "__main__":
    sys.exit(main())
