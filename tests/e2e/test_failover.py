# A host dies, and no client notices.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Under each death every service of the guest is in use: echo, download, upload, UDP, a
millisecond stream, memory and disk writers. No client may see a wrong, lost or repeated
byte on a connection that lived through it.
"""

import sys

from colo_e2e import Pair, case, main

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
        client = p.client("all", 9)
        t.sleep(1.5, 5)
        death(p)
        if secondary_dies:
            p.go_alone()
        else:
            p.takeover()
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


if __name__ == "__main__":
    sys.exit(main())
