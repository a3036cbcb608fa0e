#!/usr/bin/env python3
# A pair that looks after itself, seen from outside.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Both sides are on one machine, at 127.0.0.1 and 127.0.0.2, so that they can have the same
ports. Disks are real, netdevs are not needed here: tests/e2e/test_pair.py has them.
"""

from colo_pair import (ADDRESS, PairBed, big_pair, line_of, mirror_slowly, pair_state, protected,
                       prove, wait_pair)
from colo_qtest import (QMPError, case, has_words, json, main, os, signal, socket, time, within)


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
def key_of_the_heartbeat_proves_the_answers(bed):
    """With one key on both sides the pair comes together, and an answer proves itself by the
    documented text; without a key-file that is said."""
    p = PairBed(bed, disk=False)
    beats = {}
    for who in "ab":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.bind((ADDRESS[who], 0))
            beats[who] = s.getsockname()[1]
    p.extra = p.secret("a", beats=beats)
    a = p.primary("a")
    p.extra = p.secret("b", beats=beats)
    b = p.secondary("b")
    protected(a, b)
    question = b"colo-pair 1 " + b"0123456789abcdef" * 2 + b" 00000000000000aa\n"
    said = p.put("b", question)
    line = said.partition(b"\n")[0] + b"\n"
    assert said == prove(line, question), said
    assert json.loads(line)["role"] == "secondary"
    assert p.put("b", question[:-2] + b"b\n").partition(b"\n")[2] != said.partition(b"\n")[2]
    assert p.ask("b")["state"] == "protected"
    for host in (a, b):
        pair = host.status()["pair"]
        assert pair["authenticated"] and not pair["refused-unsigned"], pair
        assert "can pretend" not in host.output()
        host.close()
    bare = PairBed(bed, disk=False)
    c = bare.primary("a")
    assert not c.status()["pair"]["authenticated"]
    assert c.output().count("can pretend to be the peer") == 1, c.output()


@case
def words_of_strangers_are_refused(bed):
    """Without proof, with another key, recorded, our own sent back, nonsense: refused, counted,
    said once, and nothing is tried."""
    p = PairBed(bed, disk=False)
    p.extra = p.secret("a")
    kept = []

    def recorded(question):
        kept.append(question)
        return prove(line_of("undecided"), kept[0])

    def sent_back(question):
        return p.put("a", question)

    waits = line_of("waiting", role="secondary", **{"wants-peer": True})
    first = p.answer_as_peer("b", recorded)
    a = p.primary("a")
    a.wait("a first answer that is right", lambda: first.asked >= 1)
    count = lambda what: a.status()["pair"][what]  # noqa: E731
    a.wait("the recording to be refused", lambda: count("refused-forged") >= 2)
    has_words(a.status()["pair"]["detail"], "proof is wrong")
    first.close()
    for reply, counter, words in (
            (lambda q: waits, "refused-unsigned", "no proof"),
            (sent_back, "refused-unsigned", "no proof"),
            (lambda q: prove(waits, q, b"a key of somebody else"), "refused-forged", "is wrong"),
            (lambda q: b"HTTP/1.0 400 Bad Request\r\n\r\n", "refused-malformed", "no qemu-colo"),
            (lambda q: prove(b"[" * 9 + b"]" * 9 + b"\n", q), "refused-malformed",
             "no qemu-colo")):
        before = count(counter)
        fake = p.answer_as_peer("b", reply)
        a.wait("the refusal", lambda: count(counter) >= before + 2)
        has_words(a.status()["pair"]["detail"], words)
        fake.close()
        s = a.status()["pair"]
        assert s["state"] == "waiting-peer" and s["attempts"] == 0, s
    assert count("reflected") >= 1
    assert a.runs()
    # Each reason once in a row, not once a second.
    assert a.output().count("proof is wrong") <= 3, a.output()


@case
def silence_is_no_permission(bed):
    """A side that is started as primary beside a peer that hangs, or is not believed, asks on,
    shows it, and starts when somebody who can know has said so."""
    p = PairBed(bed, disk=False)

    def until(what):
        end = time.monotonic() + 30
        while True:
            try:
                if what(p.ask("a")):
                    return
            except ConnectionError:
                pass  # it has not come so far
            assert a.process.alive(), a.output()
            within(end, lambda: a.output())
            time.sleep(0.05)

    def asks_on(words):
        until(lambda said: "asks" in said)
        time.sleep(1)
        said = p.ask("a")
        assert said["state"] == "starting" and not said["serves"], said
        has_words(said["asks"], words)
        assert a.process.alive() and not a.process.children(), a.output()
        has_words(a.output(), "is not started", "peer-off=on")

    def is_served():
        until(lambda said: said["serves"])

    # It hangs, then it is gone, and its host says so.
    mute = p.answer_as_peer("b", lambda q: None)
    a = p.primary("a", connect=False)
    asks_on("does not answer")
    mute.close()
    is_served()
    a.close()
    # It is gone, but this side knows that it is outdated; a signal ends it.
    a = p.primary("a", p.was("a", "protected-primary"), connect=False)
    asks_on("refused")
    os.kill(a.process.pid, signal.SIGTERM)
    assert a.ended() == 0
    # The operator, and the state file, have the word.
    mute = p.answer_as_peer("b", lambda q: None)
    a = p.primary("a", p.was("a", "protected-primary"), "peer-off=on", connect=False)
    is_served()
    has_words(a.output(), "started all the same: peer-off=on")
    a.close()
    a = p.primary("a", p.was("a", "alone"), connect=False)
    is_served()
    has_words(a.output(), "started all the same: this side served alone")
    a.close()
    mute.close()
    # A stranger says that the peer waits.
    fake = p.answer_as_peer("b", lambda q: line_of("waiting", role="secondary"))
    p.extra = p.secret("a")
    a = p.primary("a", p.was("a", "lost-primary"), connect=False)
    asks_on("no proof")
    a.close()
    fake.close()
    # With the key it is a word, and so is that it serves: no other one counts against it.
    for state, serves in (("waiting", False), ("alone", True)):
        line = line_of(state, serves=serves)
        fake = p.answer_as_peer("b", lambda q, line=line: prove(line, q))
        a = p.primary("a", p.was("a", "lost-primary" if not serves else "alone"),
                      "auto-protect=off", "peer-off=" + ("on" if serves else "off"),
                      connect=False)
        if serves:
            assert a.ended() == 3
            has_words(a.output(), "serves the guest")
        else:
            is_served()
        a.close()
        fake.close()


@case
def hanging_peer_that_serves_is_waited_for(bed):
    """A stopped process that serves the guest: the other start waits until it has spoken."""
    p = PairBed(bed, disk=False)
    b = p.primary("b", "auto-protect=off")
    b.wait("serving", lambda: p.ask("b")["serves"])
    os.kill(b.process.pid, signal.SIGSTOP)
    a = p.primary("a", connect=False)
    end = time.monotonic() + 20
    while "is not started" not in a.output():
        assert a.process.alive(), a.output()
        within(end, lambda: a.output())
        time.sleep(0.05)
    os.kill(b.process.pid, signal.SIGCONT)
    assert a.ended() == 3
    has_words(a.output(), "serves the guest", "as secondary")
    assert b.status()["state"] == "alone"


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
    b.process.freeze()
    a.cmd("x-colo-protect")
    a.wait("no answer", lambda: "does not answer" in a.status()["pair"]["detail"])
    assert a.runs()
    os.kill(b.process.pid, signal.SIGCONT)
    there = mirror_slowly(a)
    b.process.freeze()
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


@case
def primary_dies_in_the_switchover(bed):
    """Before its word the secondary waits for one; with it, it may have taken over by itself. In
    either case the guest goes on."""
    for step in ("yielding", "yielded"):
        p = PairBed(bed, disk=False)
        a, b = p.primary("a", "die-at=" + step), p.secondary("b")
        protected(a, b)
        os.kill(a.process.pid, signal.SIGUSR1)
        counted = a.count()
        try:
            a.cmd("x-colo-switchover")
        except (QMPError, OSError):
            pass
        a.process.wait(30)
        has_words(a.output(), "dying at step " + step)
        if step == "yielding":
            b.wait_state("lost")
            assert not p.ask("b")["serves"]
        else:
            b.wait("the end of protection", lambda: b.status()["state"] in ("lost", "alone"))
        if b.status()["state"] == "lost":
            b.cmd("x-colo-lost-heartbeat")
        b.wait_state("alone")
        assert b.runs() and b.count() >= counted, step
        b.close()


if __name__ == "__main__":
    raise SystemExit(main())
