#!/usr/bin/env python3
# A side that is there and does nothing: its pings live, the rest of it hangs.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import ctypes

from colo_etcd import Etcd
from colo_qtest import *

LIMIT = 3.0
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
    """All of the checkpoint has come, and it is not loaded."""
    p, s = b.pair(*QUICK)
    os.kill(s.process.emulator_pid(), signal.SIGSTOP)
    begin = time.monotonic()
    p.cmd("xen-colo-do-checkpoint")
    note = lost_in_time(p, begin, "has not loaded checkpoint", "progress-timeout")
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


if __name__ == "__main__":
    sys.exit(main())
