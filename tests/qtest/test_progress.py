#!/usr/bin/env python3
# A side that is there and does nothing: its pings live, the rest of it hangs.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import ctypes

import colo_writer
from colo_etcd import Etcd
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


FAILING = 20


def before_failed_load(b):
    """A pair of writers whose secondary cannot load the next checkpoint."""
    p, s = colo_writer.pair(b, b.dir + "/p.raw", b.dir + "/s.raw", b.dir,
                            more=["-colo", "fail-load=%d" % FAILING])
    p.cmd("migrate-set-parameters", {"x-checkpoint-delay": 3600000})
    while s.status()["epoch"] < FAILING - 1:
        before = p.status()["epoch"]
        p.cmd("xen-colo-do-checkpoint")
        p.wait("checkpoint", lambda: s.status()["epoch"] > before, 30)
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
