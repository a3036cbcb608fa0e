# A host dies, and no client notices.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Under each death every service of the guest is in use: echo, download, upload, UDP, a
millisecond stream, memory and disk writers. No client may see a wrong, lost or repeated
byte on a connection that lived through it.
"""

import signal
import sys

from colo_e2e import Pair, case, main
from e2e_proc import QMPError

# Where a primary can die inside a checkpoint, in the order of the walk.
PRIMARY_STEPS = ("prepass", "held", "stopped", "saved", "cut", "resumed", "sending",
                 "sent-ram", "sent-state", "sent", "received", "committed", "loaded")
SECONDARY_STEPS = ("svm-begin", "svm-whole", "svm-arrived", "svm-received", "svm-stopped",
                   "svm-restored", "svm-loaded", "svm-running")


def serve_through(t, death, secondary_dies=False, **changes):
    """Protect, load, let @death happen, fail over, and check every byte."""
    changes.setdefault("checkpoint_delay", 500)
    with Pair(t, **changes) as p:
        p.start(boot=False)
        p.protect()
        client = p.client("all", 6)
        t.sleep(1, 3)
        p.lose(death, secondary_dies)
        assert client.wait() == 0, client.why()
        p.check()
        return "gap %.0f ms, command %.0f ms" % (client.gap_ms(), p.takeover_ms)


@case(repeat=10)
def primary_front_end_killed(t):
    return serve_through(t, lambda p: p.kill_primary("front"))


@case(repeat=10)
def primary_emulator_killed(t):
    return serve_through(t, lambda p: p.kill_primary("emulator"))


@case(repeat=10)
def secondary_front_end_killed(t):
    return serve_through(t, lambda p: p.kill_secondary("front"), secondary_dies=True)


@case(repeat=10)
def secondary_emulator_killed(t):
    return serve_through(t, lambda p: p.kill_secondary("emulator"), secondary_dies=True)


def cut_link(p):
    p.net.cut("link", "b")


@case(repeat=10)
def link_cut_secondary_chosen(t):
    """Both live, neither hears the other: the operator's word decides, one voice speaks."""
    return serve_through(t, cut_link, extra=("-colo", "peer-timeout=1500"))


@case(repeat=10)
def link_cut_primary_chosen(t):
    return serve_through(t, cut_link, secondary_dies=True,
                         extra=("-colo", "peer-timeout=1500"))


@case(repeat=3)
def primary_leaves_on_request(t):
    """The operator ends protection on the primary: the secondary knows, and may not speak."""
    with Pair(t, checkpoint_delay=500) as p:
        p.start(boot=False)
        p.protect()
        client = p.client("all", 5)
        t.sleep(1, 3)
        p.primary.qmp.cmd("x-colo-lost-heartbeat")
        _, event = p.secondary.qmp.wait_event("COLO_EXIT", 10)
        assert event["data"] == {"mode": "secondary", "reason": "request"}, event
        status = p.secondary.qmp.cmd("query-colo-status")
        assert status["state"] == "fenced", status
        try:
            p.secondary.qmp.cmd("x-colo-lost-heartbeat")
            raise AssertionError("a fenced secondary was let go live")
        except QMPError as e:
            assert "stay silent" in str(e), e
        assert client.wait() == 0, client.why()
        p.check()


def die_at(t, step, secondary_dies):
    """The side dies by itself at the n-th passing of a step of a checkpoint."""
    args = ("-colo", "die-at=%s:%d" % (step, t.rng.randint(1, 4)))
    where = "extra_secondary" if secondary_dies else "extra_primary"

    def wait(p):
        process = (p.secondary if secondary_dies else p.primary).process
        process.send(signal.SIGUSR1)  # arms die-at
        process.wait(30)
    return serve_through(t, wait, secondary_dies, checkpoint_delay=300, **{where: args})


def add_step_cases():
    for steps, dies in ((PRIMARY_STEPS, False), (SECONDARY_STEPS, True)):
        for step in steps:
            def fn(t, step=step, dies=dies):
                return die_at(t, step, dies)
            fn.__name__ = "death_at_" + step.replace("-", "_")
            case()(fn)


add_step_cases()


if __name__ == "__main__":
    sys.exit(main())
