# Both hosts on one image: whoever dies, the disk is the survivor's guest's.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
The image is a file that both sides open, as they would on a shared mount. After each death
the guest's own checks, the client's acknowledged records, and at the end the image itself,
read with nobody running, must agree.
"""

import subprocess
import sys
import time

from colo_e2e import Pair, case, main
from e2e_guest import primary_command, secondary_command
from e2e_proc import QMPError, within


def disk(host):
    """The figures of a host's replication node."""
    return host.qmp.cmd("query-colo-status")["disks"][0]


def wait(what, condition, timeout=90):
    end = time.monotonic() + timeout
    while not condition():
        within(end, lambda: "not within %d s: %s" % (timeout, what))
        time.sleep(0.05)


def served(p):
    """Once the takeover is through: the disk, and what it says after the last guest."""
    p.check()
    p.control("SET diskrate=0")
    for host in (p.a, p.b):
        if host.process.alive():
            host.qmp.cmd("quit")
            host.process.wait(20)
    p.check_image(p.primary)


def stray_writer(image):
    """A stock tool that wants to write the image; whether it was let."""
    done = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", image],
                          capture_output=True, text=True)
    assert done.returncode == 0 or "lock" in done.stderr, done.stderr
    return done.returncode == 0


def run(t, death, secondary_dies=False, **changes):
    changes.setdefault("checkpoint_delay", 300)
    with Pair(t, shared=True, **changes) as p:
        p.start(boot=False)
        p.protect()
        assert not stray_writer(p.a.image)
        client = p.client("all", 6)
        t.sleep(1, 3)
        assert disk(p.primary)["shared-state"] == "logging", disk(p.primary)
        wait("the image follows", lambda: disk(p.primary)["applied"] > 0)
        p.lose(death, secondary_dies)
        assert client.wait() == 0, client.why()
        assert not stray_writer(p.a.image)
        served(p)
        return "gap %.0f ms" % client.gap_ms()


@case(repeat=5)
def shared_primary_killed(t):
    return run(t, lambda p: p.kill_primary("front"))


@case(repeat=3)
def shared_primary_emulator_killed(t):
    return run(t, lambda p: p.kill_primary("emulator"))


@case(repeat=5)
def shared_secondary_killed(t):
    return run(t, lambda p: p.kill_secondary("front"), secondary_dies=True)


@case()
def shared_takeover_wants_a_fence(t):
    """Without the word that the other host is off nothing happens; nor while it still holds
    the image's locks, whatever the operator says."""
    with Pair(t, shared=True, checkpoint_delay=300,
              extra=("-colo", "peer-timeout=1500")) as p:
        p.start(boot=False)
        p.protect()
        client = p.client("all", 8)
        t.sleep(1, 2)
        p.net.cut("link", "b")
        p.secondary.qmp.wait_event("COLO_EXIT", 20)
        try:
            p.secondary.qmp.cmd("x-colo-lost-heartbeat")
            raise AssertionError("a shared disk was taken over without a fence")
        except QMPError as e:
            assert "fenced=true" in str(e), e
        assert p.secondary.qmp.cmd("query-colo-status")["state"] == "lost"
        # The primary lives, and does not write the image any more.
        wait("the primary lets go", lambda: disk(p.primary)["shared-state"] == "lost")
        # Told a lie, it finds the lock and waits for it: the host dies at last.
        p.secondary.qmp.cmd("x-colo-lost-heartbeat", {"fenced": True})
        wait("takeover", lambda: p.secondary.qmp.cmd("query-colo-status")["state"] != "lost")
        time.sleep(0.5)
        assert p.secondary.qmp.cmd("query-colo-status")["state"] == "takeover"
        p.kill_primary("front")
        wait("takeover", lambda: p.secondary.qmp.cmd("query-colo-status")["state"] == "alone")
        p.primary, p.secondary = p.secondary, p.primary
        assert client.wait() == 0, client.why()
        served(p)


@case()
def shared_protected_again(t):
    """After the secondary's death a new one needs no copy of the disk: and takes over."""
    with Pair(t, shared=True, checkpoint_delay=300) as p:
        p.start(boot=False)
        p.protect()
        client = p.client("disk", 3)
        p.kill_secondary()
        p.go_alone()
        assert client.wait() == 0, client.why()
        q = p.primary.qmp
        p.b.spawn(secondary_command(p.cfg, p.b.dir, p.b.image))
        p.b.connect()
        line = primary_command(p.cfg, p.a.dir, p.a.image)
        for at, word in enumerate(line):
            if word == "-object":
                kind, *options = line[at + 1].split(",")
                q.cmd("object-add", dict([o.split("=") for o in options],
                                         **{"qom-type": kind}))
        p.protect()
        client = p.client("disk", 3)
        t.sleep(1, 2)
        p.kill_primary()
        p.takeover()
        assert client.wait() == 0, client.why()
        served(p)


if __name__ == "__main__":
    sys.exit(main())
