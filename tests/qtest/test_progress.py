#!/usr/bin/env python3
# A side that is there and does nothing: its pings live, the rest of it hangs.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import ctypes
import threading

import colo_writer
from colo_etcd import Etcd
from colo_post import TOKEN, Post
from colo_qtest import *

LIMIT = 5.0
QUICK = ["-colo", "progress-timeout=%d" % (LIMIT * 1000)]
SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000


class Hang:
    """One thread of a process stands still, the others go on. By ptrace; the same thread of
    ours has to end it."""

    def __init__(self, pid, thread):
        self.libc = ctypes.CDLL(None, use_errno=True)
        for tid in os.listdir("/proc/%d/task" % pid):
            with open("/proc/%d/task/%s/comm" % (pid, tid)) as f:
                if f.read().strip() == thread:
                    break
        else:
            raise AssertionError("no thread %s" % thread)
        self.tid = int(tid)
        self.ask(SEIZE)
        self.ask(INTERRUPT)
        os.waitpid(self.tid, WALL)

    def ask(self, what):
        if self.libc.ptrace(what, self.tid, None, None):
            raise OSError(ctypes.get_errno(), "ptrace(%#x)" % what)

    def end(self):
        self.ask(DETACH)


def lost_in_time(host, begin, *words):
    """It was lost neither before the limit nor long after it. (The machine may be slow.)"""
    host.wait_state("lost", LIMIT + 20)
    took = time.monotonic() - begin
    assert took > LIMIT * 0.9, "lost after %.1f s" % took
    has_words(host.status()["error"], *words)
    return "after %.1f s" % took


@case
def controller_hangs(b):
    """Its pings go on: the primary waits for progress-timeout, then the arbiter is asked."""
    p, s = b.pair(*QUICK)
    hang = Hang(s.process.pid, "colo-in")
    try:
        begin = time.monotonic()
        p.cmd("xen-colo-do-checkpoint")
        note = lost_in_time(p, begin, "has not taken checkpoint", "progress-timeout")
        p.wait("event", lambda: p.events("COLO_EXIT"))
        assert p.events("COLO_EXIT")[0]["data"]["reason"] == "error"
        assert p.runs(), "the guest stands"
        p.cmd("x-colo-lost-heartbeat")
        p.wait_state("alone")
        assert p.runs()
    finally:
        hang.end()
    s.wait_state("lost")  # and nobody tells it to serve
    return note


@case
def emulator_hangs(b):
    """All of the checkpoint has come, and it is not loaded; or it is not taken, if the load of
    the one before was what hung."""
    p, s = b.pair(*QUICK)
    os.kill(s.process.emulator_pid(), signal.SIGSTOP)
    begin = time.monotonic()
    p.cmd("xen-colo-do-checkpoint")
    note = lost_in_time(p, begin, "has not (loaded|taken) checkpoint", "progress-timeout")
    p.cmd("x-colo-lost-heartbeat")
    p.wait_state("alone")
    assert p.runs()
    return note


@case
def controller_hangs_with_a_witness(b):
    """Nobody types: the primary serves, and the other is fenced when it wakes."""
    with Etcd(b) as etcd:
        p, s = b.pair(*QUICK, "-colo", "arbiter=witness,witness=%s,witness-key=k" % etcd.url)
        hang = Hang(s.process.pid, "colo-in")
        try:
            p.cmd("xen-colo-do-checkpoint")
            p.wait_state("alone", LIMIT + 20)
            assert p.runs()
        finally:
            hang.end()
        s.wait_state("fenced", 20)
        assert p.status()["state"] == "alone", p.status()


def hang_at_the_token(b, stop, wake, seconds, *words):
    """The secondary hangs with the witness' token in its hands. The round is over after @seconds: the
    primary was alone all the time, is so again at the witness, and protects with the next one."""
    with Etcd(b) as etcd:
        port = free_port()
        post = Post(b, "127.0.0.1", "127.0.0.2", [port])
        more = ["-colo", "peer-timeout=4000,arbiter=witness,witness=%s,witness-key=k" % etcd.url,
                *QUICK, *b.rom]
        b.port = port
        p = b.host("primary", *more)
        s = b.host("secondary", "-incoming", "tcp:127.0.0.2:%d" % port, *more)
        s.x_colo()
        began = []

        def stand():
            began.append(time.monotonic())
            time.sleep(0.5)  # it has sent its last message, and holds no lock
            stop(s.process.pid)
        stood = post.before(TOKEN, stand)
        try:
            b.migrate(p)
            assert stood.wait(60)
            b.failed(p, *words, timeout=seconds + 30)
            took = time.monotonic() - began[0]
            assert took > seconds * 0.8, "failed after %.1f s" % took
            p.wait_state("alone")
            assert p.runs()
            p.wait("the key", lambda: p.status()["arbiter"]["ownership"] == "alone")
        finally:
            wake(s.process.pid)
        assert s.ended() == 1, "it may not serve"
        assert p.status()["state"] == "alone" and p.runs()
        again = b.host("again", "-incoming", "tcp:127.0.0.2:%d" % port, *more)
        b.protect(p, again)
        return "after %.1f s" % took


@case
def asleep_at_the_token(b):
    """All of it: not a ping comes."""
    return hang_at_the_token(b, freeze, lambda pid: os.kill(pid, signal.SIGCONT), 4,
                             "nothing was heard")


@case
def controller_hangs_at_the_token(b):
    """Its pings go on, unless it was stopped where they need something that it holds."""
    hangs = ThreadOf(b)
    return hang_at_the_token(b, hangs.stop, hangs.wake, LIMIT,
                             "has not taken the witness' token.*progress-timeout|nothing was heard")


class ThreadOf:
    """A Hang of "colo-in" that one thread of ours begins and ends, for callers from several."""

    def __init__(self, b):
        self.asked, self.stood, self.over = (threading.Event() for _ in range(3))
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        b.closers.append(self)

    def run(self):
        self.asked.wait()
        hang = self.pid and Hang(self.pid, "colo-in")
        self.stood.set()
        self.over.wait()
        if hang:
            hang.end()

    def stop(self, pid):
        self.pid = pid
        self.asked.set()
        self.stood.wait()

    def wake(self, pid=0):
        self.over.set()
        self.thread.join(20)

    def close(self):
        self.pid = getattr(self, "pid", 0)
        self.asked.set()
        self.wake()


FAILING = 20


def before_failed_load(b):
    """A pair of writers whose secondary cannot load the next checkpoint."""
    p, s = colo_writer.pair(b, b.dir + "/p.raw", b.dir + "/s.raw", b.dir,
                            more=["-colo", "fail-load=%d" % FAILING])
    p.cmd("migrate-set-parameters", {"x-checkpoint-delay": 3600000})
    while s.status()["epoch"] < FAILING - 1:
        before = p.status()
        p.cmd("xen-colo-do-checkpoint")

        def done(before=before):
            """Ours, and not one that was under way: then ours would come on top of the next."""
            now = p.status()
            return now["triggers"]["request"] > before["triggers"]["request"] and \
                now["epoch"] == s.status()["epoch"] > before["epoch"]
        p.wait("checkpoint", done, 30)
    return p, s


@case
def load_fails_twice(b):
    """The primary serves, when it was told to; the secondary says why it ends."""
    p, s = before_failed_load(b)
    p.cmd("xen-colo-do-checkpoint")
    p.wait_state("lost")
    has_words(p.status()["error"], "no load, as asked")
    assert s.ended(30) == 1
    event = s.events("COLO_LOAD_FAILED")[0]["data"]
    assert event["primary"] is True and event["epoch"] == FAILING, event
    has_words(s.output(), "once more", "incoming migration failed")
    p.cmd("x-colo-lost-heartbeat")
    p.wait_state("alone")
    assert colo_writer.writes(p)


@case
def load_fails_twice_and_the_primary_dies(b):
    """Nobody is left: it is said as loudly as can be, and the disk can be started from."""
    p, s = before_failed_load(b)
    # All of the checkpoint comes; it is looked at when the primary is dead.
    hang = Hang(s.process.pid, "colo-in")
    p.cmd("xen-colo-do-checkpoint")
    time.sleep(1.5)
    p.process.kill()
    p.process.wait(20)
    hang.end()
    assert s.ended(30) == 5, s.output()
    event = s.events("COLO_LOAD_FAILED")[0]["data"]
    assert event["primary"] is False and event["epoch"] == FAILING, event
    has_words(s.output(), "nobody serves this guest")
    again = b.host("again", "-colo", "checkpoint-events=on", "-drive",
                   "if=ide,id=d0,driver=quorum,read-pattern=fifo,vote-threshold=1,"
                   "children.0.driver=raw,children.0.file.filename=%s/s.raw" % b.dir)
    again.wait_state("alone")
    assert not os.path.exists(b.dir + "/s.raw.colo"), "the image is between two checkpoints"


if __name__ == "__main__":
    sys.exit(main())
