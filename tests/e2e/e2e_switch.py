# The hosts' network without root: colo-switch for the guests, loopback for the link.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
    client -- forwarded ports of 127.x.y.3 -- colo-switch (libslirp, 10.66.0.0/24)
                                                |  unix socket
    host a (127.x.y.1)  -netdev stream ---------+--------- -netdev stream  host b (127.x.y.2)

Both hosts are this machine; each has a loopback address of its own, so that the ports of
the documented procedure stay as they are. x and y are random: two runs do not meet.
"""

import os
import random
import time

from e2e_net import GUEST_IP, NetError
from e2e_proc import Process

OFFSET = 10000  # of the forwarded ports
TCP_PORTS = (80, 7000, 7001, 7002, 7003, 7005, 7006)
UDP_PORTS = (7004,)


class SwitchNetwork:
    """Same names as e2e_net.Network, but for cut, down and capture."""

    def __init__(self, program, rundir):
        stem = "127.%d.%d." % (random.randint(64, 250), random.randint(1, 250))
        self.link = {"a": stem + "1", "b": stem + "2"}
        self.listen = self.local = self.link
        self.front = stem + "3"
        path = os.path.join(rundir, "switch")
        self.netdev = "stream,id=hn0,server=off,addr.type=unix,addr.path=" + path
        # No --restrict: libslirp would drop the answers of UDP, too. Guests have no route out.
        words = [program, "--listen", path, "--net", "10.66.0.0/24"]
        for kind, ports in (("tcp", TCP_PORTS), ("udp", UDP_PORTS)):
            for port in ports:
                words += ["--hostfwd", "%s:%s:%d-%s:%d" % (kind, self.front, port + OFFSET,
                                                           GUEST_IP, port)]
        self.process = Process("colo-switch", words, path + ".log")
        end = time.monotonic() + 10
        while not os.path.exists(path):
            if not self.process.alive() or time.monotonic() > end:
                self.close()
                raise NetError("colo-switch: " + self.process.output().strip())
            time.sleep(0.01)

    def wrap(self, who, command):
        return list(command)

    def reach(self, ip):
        return ["--host", self.front, "--port-offset", str(OFFSET)]

    def close(self):
        self.process.stop()
