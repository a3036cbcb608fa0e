#!/usr/bin/env python3
# One file, one command on each host, and nothing else.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
"coloctl run vm.conf" in both namespaces: a guest is protected, its host dies with everything
that coloctl started, the operator says "coloctl failover" on the other (with a witness nobody
says anything), and "coloctl run" on the dead side brings the protection back. A client compares
every byte all the time.
"""

import sys
import time

from colo_e2e import case, main
from e2e_conf import Conf
from test_arbiter import KEY, URL, Arbitrated


class Witnessed(Arbitrated, Conf):
    """A real etcd in the third namespace, named in the file; nothing else is said to anybody."""

    def __init__(self, t):
        super().__init__(t, pair="arbiter = witness\nwitness = %s\nwitness-key = %s\n"
                         "witness-lease = 3\n" % (URL, KEY))

    def owned(self, state, timeout=30):
        """Until the record at the witness says so; it."""
        end = time.monotonic() + timeout
        while True:
            record = self.record()
            if record and record["state"] == state:
                return record
            assert time.monotonic() < end, record
            time.sleep(0.1)


def came_through(t, p, client, seconds):
    """The client saw every byte, the guest found nothing wrong; @seconds: what its last return to
    protection took."""
    t.sleep(1)
    assert client.stop() == 0, client.why()
    p.check_guest()
    return "protected again in %.1f s; gap %.0f ms" % (seconds, client.gap_ms())


@case()
def host_dies_and_comes_back(t):
    """With a heartbeat, as the operator would have it."""
    with Conf(t, pair="heartbeat = on\n") as p:
        with open(p.conf) as f:
            text = f.read().replace("heartbeat = on", "heartbeat = on\nkey-file = " + p.key)
        with open(p.conf, "w") as f:
            f.write(text)
        p.begin()
        client = p.client("all", 600)
        t.sleep(1, 3)
        assert p.status(p.a)["colo"]["heartbeat"]["state"] == "up", p.status(p.a)["colo"]
        p.kill_tree(p.a)
        p.wait(p.b, "lost", "secondary")
        p.ctl(p.b, "failover")
        assert p.status(p.b)["serves"]
        t.sleep(0, 1)
        p.run(p.a)
        seconds = p.both(p.b, p.a)
        p.ctl(p.b, "checkpoint")
        t.sleep(1, 2)
        p.kill_tree(p.b)
        p.wait(p.a, "lost", "secondary")
        p.ctl(p.a, "failover")
        return came_through(t, p, client, seconds)


@case()
def roles_change_hands(t):
    """Planned, under load, there and back."""
    with Conf(t) as p:
        p.begin()
        client = p.client("all", 600)
        t.sleep(1, 2)
        p.ctl(p.a, "failover", "--planned")
        p.both(p.b, p.a)
        p.ctl(p.b, "failover", "--planned")
        seconds = p.both(p.a, p.b)
        return came_through(t, p, client, seconds)


@case()
def witness_decides_for_a_host_that_died(t):
    """Set up, switched over, killed, resynchronised, killed again: nobody says a word but
    "coloctl failover --planned"."""
    with Witnessed(t) as p:
        p.begin()
        client = p.client("all", 600)
        p.owned("protected")
        p.ctl(p.a, "failover", "--planned")
        p.both(p.b, p.a)
        t.sleep(1)
        p.kill_tree(p.b)
        p.wait(p.a, "alone")
        s = p.status(p.a)
        assert s["serves"] and s["colo"]["arbiter"]["kind"] == "witness", s
        p.owned("alone")
        assert "alone" in p.ctl(p.a, "status", expect=3)
        assert "serves already" in p.ctl(p.a, "failover")
        t.sleep(1)
        p.run(p.b)
        seconds = p.both(p.a, p.b)
        p.owned("protected")
        # The disk of the host that was away is a copy again: it is read from, next.
        assert p.status(p.a)["colo"]["pair"]["resync-total"] > 0, p.status(p.a)["colo"]["pair"]
        t.sleep(1)
        p.kill_tree(p.a)
        p.wait(p.b, "alone")
        assert p.status(p.b)["serves"]
        return came_through(t, p, client, seconds)


@case()
def nobody_takes_over_without_the_witness(t):
    """etcd is down when the host dies: silence, and the reason in words, until it is back."""
    with Witnessed(t) as p:
        p.begin()
        client = p.client("all", 600)
        t.sleep(1)
        p.owned("protected")
        p.etcd.stop()
        p.kill_tree(p.a)
        p.wait(p.b, "lost")
        time.sleep(2)
        s = p.status(p.b)
        assert s["state"] == "lost" and not s["serves"], s
        assert "witness" in p.ctl(p.b, "status", expect=4)
        p.start_etcd()
        p.wait(p.b, "alone")
        p.owned("alone")
        t.sleep(1)
        assert client.stop() == 0, client.why()
        return "gap %.0f ms" % client.gap_ms()


if __name__ == "__main__":
    sys.exit(main())
