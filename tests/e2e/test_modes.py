# The modes of protection: each keeps the promises, and so does each change between them.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import queue
import signal
import subprocess
import sys
import threading
import time

from colo_e2e import HERE, Pair, case, main
from test_failover import PRIMARY_STEPS, SECONDARY_STEPS
from test_memory import compare_all

STEPS = [(step, False) for step in PRIMARY_STEPS] + \
    [(step, True) for step in SECONDARY_STEPS + ("takeover",)]


def set_mode(p, mode, **more):
    p.primary.qmp.cmd("migrate-set-parameters",
                      {"x-colo-mode": mode, **{k.replace("_", "-"): v
                                               for k, v in more.items()}})


def wait_active(p, mode, timeout=10):
    p.primary.qmp.wait_for("mode " + mode, lambda q: q.cmd("query-colo-status")
                           ["active-mode"] == mode, timeout)


def options(mode, interval=0):
    return ("-colo", "mode=%s,buffered-interval=%d" % (mode, interval or 40))


def die(t, mode, death, secondary_dies=False, client="all", interval=0, **changes):
    """Protect in a mode, let @death happen under load, fail over, check every byte."""
    changes.setdefault("checkpoint_delay", 500)
    changes.setdefault("extra_primary", options(mode, interval))
    with Pair(t, **changes) as p:
        p.start(boot=False)
        p.protect()
        running = p.client(client, 5)
        t.sleep(1, 2)
        status = p.primary.qmp.cmd("query-colo-status")
        p.lose(death, secondary_dies)
        assert running.wait() == 0, running.why()
        p.check()
        assert mode != "buffered" or status["epochs-buffered"] >= 5, status
        assert mode != "colo" or status["epochs-buffered"] == 0, status
        return "gap %.0f ms, command %.0f ms, %d epochs compared, %d buffered" % (
            running.gap_ms(), p.takeover_ms, status["epochs-colo"],
            status["epochs-buffered"])


@case(repeat=3)
def buffered_primary_killed(t):
    return die(t, "buffered", lambda p: p.kill_primary(t.rng.choice(("front", "emulator"))),
               interval=t.rng.choice((10, 20, 40, 100)))


@case(repeat=2)
def buffered_secondary_killed(t):
    return die(t, "buffered", lambda p: p.kill_secondary(t.rng.choice(("front", "emulator"))),
               secondary_dies=True, interval=t.rng.choice((10, 40, 100)))


def buffered_death(t, step, secondary_dies):
    where = "extra_secondary" if secondary_dies else "extra_primary"
    args = ("-colo", "die-at=%s:%d" % (step, t.rng.randint(1, 60)))
    mode = options("buffered")

    def wait(p):
        process = (p.secondary if secondary_dies else p.primary).process
        process.send(signal.SIGUSR1)
        process.wait(30)
    changes = {"extra_primary": mode}
    changes[where] = changes.get(where, ()) + args
    return step + ": " + die(t, "buffered", wait, secondary_dies, **changes)


@case(repeat=2)
def buffered_dies_at_a_step(t):
    """At a random step of a random checkpoint, on a random side."""
    return buffered_death(t, *t.rng.choice([s for s in STEPS if s[0] != "takeover"]))


def add_step_cases():
    """All of them, when asked for: -k buffered_death_at --repeat 1."""
    for step, secondary_dies in STEPS:
        def fn(t, step=step, secondary_dies=secondary_dies):
            return buffered_death(t, step, secondary_dies)
        fn.__name__ = "buffered_death_at_" + step.replace("-", "_")
        if step != "takeover":
            case(repeat=0)(fn)


add_step_cases()


@case(repeat=2)
def adaptive_primary_killed(t):
    return die(t, "adaptive", lambda p: p.kill_primary(t.rng.choice(("front", "emulator"))))


@case()
def buffered_every_page(t):
    """RAM of a secondary that stands is the primary's after each checkpoint."""
    return compare_all(t, options="mode=buffered", checkpoints=25, dirty=20)


@case()
def switched_under_load(t):
    """The mode changes at random moments, then the primary dies in whichever it is."""
    with Pair(t, checkpoint_delay=300) as p:
        p.start(boot=False)
        p.protect()
        client = p.client("all", 9)
        end = time.monotonic() + 5
        mode, changes = "colo", 0
        while time.monotonic() < end:
            mode = t.rng.choice([m for m in ("colo", "buffered", "adaptive") if m != mode])
            set_mode(p, mode, x_buffered_interval=t.rng.choice((10, 25, 100)))
            got = p.primary.qmp.cmd("query-migrate-parameters")
            assert got["x-colo-mode"] == mode, got
            if mode != "adaptive":
                wait_active(p, mode)
            changes += 1
            t.sleep(0.05, 0.8)
        assert client.process.alive(), client.why()
        p.kill_primary("front")
        p.takeover()
        assert client.wait() == 0, client.why()
        p.check()
        return "%d changes, died in %s, gap %.0f ms" % (changes, mode, client.gap_ms())


@case()
def stands_still(t):
    """Neither stop and cont nor a takeover by command disturb a secondary that stands."""
    with Pair(t, extra_primary=options("buffered")) as p:
        p.start(boot=False)
        p.protect()
        q = p.primary.qmp
        q.cmd("stop")
        assert q.cmd("query-status")["status"] == "paused"
        q.cmd("cont")
        first = p.secondary.qmp.cmd("query-colo-status")
        assert first["active-mode"] == "buffered", first
        client = p.client("all", 4)
        time.sleep(1.5)
        second = p.secondary.qmp.cmd("query-colo-status")
        assert second["epoch"] > first["epoch"] + 5, (first["epoch"], second["epoch"])
        p.secondary.qmp.cmd("x-colo-lost-heartbeat")
        p.takeover_ms = 0
        p.primary, p.secondary = p.secondary, p.primary
        p.become_primary()
        assert client.wait() == 0, client.why()
        p.check()


class Lines:
    """A program, with standard input and the lines that it prints."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, text=True, bufsize=1, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)
        self.queue = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.queue.put(line.strip())

    def say(self, text):
        self.process.stdin.write("%s\n" % text)
        self.process.stdin.flush()

    def next(self, timeout=60):
        """Its next line, or None: there is none in time."""
        try:
            return self.queue.get(timeout=timeout)
        except queue.Empty:
            return None

    def stop(self):
        self.process.kill()
        self.process.wait()


CONTROL_PORT = 7005  # tests/guest/workload.h
KNOCK = """
import socket, sys, time
for line in sys.stdin:
    while True:
        try:
            socket.create_connection((sys.argv[1], int(sys.argv[2])), 300).close()
            break
        except OSError:
            time.sleep(0.2)
    print("answered", flush=True)
"""


@case()
def output_waits_for_received(t):
    """A SYN|ACK of a buffered epoch leaves when its checkpoint is received: not when the guest has
    sent it, nor with the one before, nor when all of its own was sent; and not as late as its load."""
    with Pair(t, disk="none", extra_primary=options("buffered", 100)) as p:
        p.start(boot=False)
        p.prepare_secondary()
        hold = Lines(p.net.wrap("a", [sys.executable, os.path.join(HERE, "e2e_hold.py"), "9990",
                                      p.secondary.ip, "9998"]))
        client = Lines(p.net.wrap("c", [sys.executable, "-c", KNOCK, p.cfg.ip,
                                        str(CONTROL_PORT)]))
        p.others += [hold, client]
        assert hold.next() == "ready"
        q = p.primary.qmp
        q.cmd("migrate-set-capabilities",
              {"capabilities": [{"capability": "x-colo", "state": True}]})
        q.cmd("migrate", {"uri": "tcp:127.0.0.1:9990"})
        p.wait_protected()
        p.primary.wait_ready()
        client.say("knock")
        assert client.next() == "answered"
        for _ in range(2):
            hold.say(0)
            word, kind, epoch = hold.next().split()
            if kind == "12":
                hold.say(1)
                word, kind, epoch = hold.next().split()
            assert (word, kind) == ("held", "11"), (word, kind)
            client.say("knock")
            assert client.next(2) is None, "it left as soon as the guest had sent it"
            hold.say(1)
            assert hold.next() == "held 12 " + epoch
            assert client.next(1) is None, "it left with the checkpoint before it"
            hold.say(1)
            epoch = str(int(epoch) + 1)
            assert hold.next() == "held 11 " + epoch
            assert client.next(1) is None, "it left with a checkpoint that was not received"
            # The guest may have been too slow for this one.
            for _ in range(10):
                hold.say(1)
                assert hold.next() == "held 12 " + epoch
                answer = client.next(6)
                if answer:
                    break
                hold.say(1)
                epoch = str(int(epoch) + 1)
                assert hold.next() == "held 11 " + epoch
                assert client.next(0.1) is None, "it left with a checkpoint that was not received"
            assert answer == "answered", "it did not leave"
            hold.say("free")
        assert p.control("STATUS")["errors"] == 0


if __name__ == "__main__":
    sys.exit(main())
