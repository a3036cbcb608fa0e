# The modes of protection: each keeps the promises, and so does each change between them.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import signal
import sys
import time

from colo_e2e import Pair, case, main
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


@case(repeat=2)
def buffered_dies_at_a_step(t):
    """At a random step of a random checkpoint, on a random side."""
    step, secondary_dies = t.rng.choice([s for s in STEPS if s[0] != "takeover"])
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


if __name__ == "__main__":
    sys.exit(main())
