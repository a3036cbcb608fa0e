#!/usr/bin/env python3
# One file, one command on each host, and nothing else.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
"coloctl run vm.conf" in both namespaces: a guest is protected, its host dies with everything
that coloctl started, the operator says "coloctl failover" on the other, and "coloctl run" on
the dead side brings the protection back. A client compares every byte all the time.
"""

import sys

from colo_e2e import case, main
from e2e_conf import Conf


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
        t.sleep(1)
        assert client.stop() == 0, client.why()
        p.check_guest()
        return "protected again in %.1f s; gap %.0f ms" % (seconds, client.gap_ms())


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
        t.sleep(1)
        assert client.stop() == 0, client.why()
        p.check_guest()
        return "protected again in %.1f s; gap %.0f ms" % (seconds, client.gap_ms())


if __name__ == "__main__":
    sys.exit(main())
