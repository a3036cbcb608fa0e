# The network of the end-to-end tests: two hosts, a client, and a link between the hosts.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
    client namespace C          host namespaces A and B
    br-lan 10.66.0.1  --lan---  lan0 - br0 - tap0     (the guests' network)
    br-link           --link--  link0 10.77.0.1 / .2  (COLO's traffic, and nothing else)
    br-wit  10.78.0.3 --wit---  wit0  10.78.0.1 / .2  (to the witness)

The link runs through a bridge of a third party, so that cutting it is silent: no carrier
is lost and nothing is refused, packets just stop arriving.
"""

import atexit
import os
import re
import subprocess

CLIENT_IP = "10.66.0.1"
GUEST_IP = "10.66.0.10"
TWIN_IP = "10.66.0.11"
LINK_IP = {"a": "10.77.0.1", "b": "10.77.0.2"}
WITNESS_IP = {"a": "10.78.0.1", "b": "10.78.0.2", "c": "10.78.0.3"}


class NetError(Exception):
    pass


def _ip(*args, check=True):
    done = subprocess.run(["ip", *args], capture_output=True, text=True)
    if check and done.returncode:
        raise NetError("ip %s: %s" % (" ".join(args), done.stderr.strip()))
    return done.stdout


class Network:
    """Namespaces with names of their own, removed whatever happens to the test."""

    serial = 0
    names = "abc"
    # What the command lines and clients need to know; e2e_switch.py has the same names.
    netdev = "tap,id=hn0,vhost=off,ifname=tap0,script=no,downscript=no"
    link = LINK_IP
    listen = {"a": "0.0.0.0", "b": "0.0.0.0"}
    local = {"a": "127.0.0.1", "b": "127.0.0.1"}

    def __init__(self):
        if os.geteuid() != 0:
            raise NetError("network namespaces need root; without it use colo-switch")
        Network.serial += 1
        prefix = os.environ.get("COLO_E2E_PREFIX", "colo")
        self._sweep(prefix)
        stem = "%s-%d-%d" % (prefix, os.getpid(), Network.serial)
        self.ns = {who: "%s-%s" % (stem, who) for who in self.names}
        self.made = []
        atexit.register(self.close)
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self):
        for name in self.ns.values():
            _ip("netns", "add", name)
            self.made.append(name)
            self.run_in(name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1",
                        "net.ipv6.conf.default.disable_ipv6=1")
            _ip("-n", name, "link", "set", "lo", "up")
        c = self.ns["c"]
        for bridge in ("br-lan", "br-link", "br-wit"):
            self._bridge(c, bridge)
        _ip("-n", c, "addr", "add", CLIENT_IP + "/24", "dev", "br-lan")
        _ip("-n", c, "addr", "add", WITNESS_IP["c"] + "/24", "dev", "br-wit")
        for who in "ab":
            ns = self.ns[who]
            for kind in ("lan", "link", "wit"):
                _ip("-n", c, "link", "add", kind + who, "type", "veth",
                    "peer", "name", kind + "0", "netns", ns)
                _ip("-n", c, "link", "set", kind + who, "master", "br-" + kind, "up")
                _ip("-n", ns, "link", "set", kind + "0", "up")
            self._bridge(ns, "br0")
            _ip("-n", ns, "link", "set", "lan0", "master", "br0")
            _ip("-n", ns, "tuntap", "add", "tap0", "mode", "tap")
            _ip("-n", ns, "link", "set", "tap0", "master", "br0", "up")
            _ip("-n", ns, "addr", "add", LINK_IP[who] + "/24", "dev", "link0")
            _ip("-n", ns, "addr", "add", WITNESS_IP[who] + "/24", "dev", "wit0")

    @staticmethod
    def _sweep(prefix):
        """Remove what a run that was killed with SIGKILL has left."""
        for line in _ip("netns", "list").splitlines():
            found = re.match(re.escape(prefix) + r"-(\d+)-\d+-[a-z]\b", line)
            if found and not os.path.exists("/proc/" + found.group(1)):
                _ip("netns", "del", found.group(0), check=False)

    @staticmethod
    def _bridge(ns, name):
        _ip("-n", ns, "link", "add", name, "type", "bridge", "forward_delay", "0",
            "mcast_snooping", "0")
        _ip("-n", ns, "link", "set", name, "up")

    @staticmethod
    def run_in(ns, *command):
        done = subprocess.run(["ip", "netns", "exec", ns, *command], capture_output=True,
                              text=True)
        if done.returncode:
            raise NetError("%s: %s" % (" ".join(command), done.stderr.strip()))
        return done.stdout

    def wrap(self, who, command):
        """@command as it is to be started in the namespace of @who ("a", "b", "c")."""
        return ["ip", "netns", "exec", self.ns[who], *command]

    @staticmethod
    def reach(ip):
        """Options of colo-client for the guest of address @ip."""
        return ["--host", ip]

    def cut(self, kind="link", who="b"):
        """Stop the traffic of "link" or "lan" of host @who, silently."""
        _ip("-n", self.ns["c"], "link", "set", kind + who, "nomaster")

    def mend(self, kind="link", who="b"):
        _ip("-n", self.ns["c"], "link", "set", kind + who, "master", "br-" + kind)

    def down(self, kind="link", who="b"):
        """Like pulling the cable: the host sees it."""
        _ip("-n", self.ns["c"], "link", "set", kind + who, "down")

    def up(self, kind="link", who="b"):
        _ip("-n", self.ns["c"], "link", "set", kind + who, "up")

    def capture(self, path, who="c", dev="br-lan", *more):
        """Command that writes a pcap file of @dev; to be given to Process."""
        return self.wrap(who, ["tcpdump", "-i", dev, "-w", path, "-U", "-q", "-s", "0", *more])

    def close(self):
        for name in self.made:
            _ip("netns", "del", name, check=False)
        self.made = []
        atexit.unregister(self.close)
