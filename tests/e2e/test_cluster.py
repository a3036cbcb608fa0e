#!/usr/bin/env python3
# Under Pacemaker: contrib/ocf/qemu-colo with a real cluster of two nodes.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Each host is a node: a namespace of network, mounts, processes and names with a corosync and a
pacemaker of its own. Fencing is a program that asks this test, which kills all of the node's
processes and only then says yes. A client compares every byte all the time.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as xml

from colo_e2e import HERE, case, main
from e2e_proc import Process, within
from e2e_conf import Conf, tool

NODES = {"a": "alpha", "b": "beta"}
AGENT = os.path.join(HERE, "..", "..", "contrib", "ocf")

COROSYNC = """
totem {
    version: 2
    cluster_name: colo
    transport: knet
    token: 3000
    crypto_cipher: none
    crypto_hash: none
}
nodelist {
    node {
        ring0_addr: %s
        name: alpha
        nodeid: 1
    }
    node {
        ring0_addr: %s
        name: beta
        nodeid: 2
    }
}
quorum {
    provider: corosync_votequorum
    two_node: 1
    wait_for_all: 0
}
logging {
    to_syslog: no
    to_stderr: yes
}
"""

CIB = """<cib crm_feature_set="3.0.14" validate-with="pacemaker-3.7" epoch="1" num_updates="0"
 admin_epoch="1">
 <configuration>
  <crm_config><cluster_property_set id="p">
   <nvpair id="p1" name="stonith-enabled" value="true"/>
   <nvpair id="p2" name="dc-deadtime" value="4s"/>
   <nvpair id="p3" name="stonith-timeout" value="60s"/>
   <nvpair id="p4" name="no-quorum-policy" value="stop"/>
   <nvpair id="p5" name="transition-delay" value="0s"/>
  </cluster_property_set></crm_config>
  <nodes/>
  <resources>
   <clone id="vm-clone">
    <meta_attributes id="m">
     <nvpair id="m1" name="promotable" value="true"/>
     <nvpair id="m2" name="notify" value="true"/>
     <nvpair id="m3" name="clone-max" value="2"/>
     <nvpair id="m4" name="interleave" value="true"/>
    </meta_attributes>
    <primitive id="vm" class="ocf" provider="heartbeat" type="qemu-colo">
     <instance_attributes id="i">
      <nvpair id="i1" name="config" value="%(conf)s"/>
      <nvpair id="i2" name="coloctl" value="%(coloctl)s"/>
      <nvpair id="i3" name="shutdown_timeout" value="5"/>
     </instance_attributes>
     <operations>
      <op id="o1" name="monitor" role="Promoted" interval="2s" timeout="60s"/>
      <op id="o2" name="monitor" role="Unpromoted" interval="3s" timeout="60s"/>
      <op id="o3" name="start" interval="0" timeout="120s"/>
      <op id="o4" name="stop" interval="0" timeout="120s"/>
      <op id="o5" name="promote" interval="0" timeout="120s"/>
      <op id="o6" name="demote" interval="0" timeout="120s"/>
     </operations>
    </primitive>
   </clone>
   %(fences)s
  </resources>
  <constraints>%(constraints)s</constraints>
 </configuration>
 <status/>
</cib>
"""

FENCE = """<primitive id="fence-%(n)s" class="stonith" type="fence_test">
    <instance_attributes id="f-%(n)s">
     <nvpair id="f1-%(n)s" name="pcmk_host_list" value="%(n)s"/>
     <nvpair id="f2-%(n)s" name="dir" value="%(dir)s"/>
    </instance_attributes></primitive>
"""

# The convention of fence-agents: name=value lines on standard input.
FENCE_AGENT = """#!/bin/sh
action=$1
while read -r line; do
    case $line in action=*) action=${line#*=};; plug=*|nodename=*|port=*) node=${line#*=};; esac
done
case $action in
metadata|meta-data)
    cat <<M
<?xml version="1.0"?>
<resource-agent name="fence_test" shortdesc="asks the test">
<parameters>
<parameter name="dir" required="1"><content type="string"/></parameter>
<parameter name="plug" required="0"><content type="string"/></parameter>
<parameter name="action" required="0"><content type="string" default="off"/></parameter>
</parameters>
<actions><action name="off"/><action name="on"/><action name="reboot"/><action name="monitor"/>
<action name="status"/><action name="metadata"/></actions>
</resource-agent>
M
    ;;
off|reboot)
    rm -f "%(dir)s/off.$node"
    touch "%(dir)s/fence.$node"
    n=0
    until [ -e "%(dir)s/off.$node" ]; do
        n=$((n + 1)); [ $n -lt 300 ] || exit 1
        sleep 0.1
    done ;;
esac
exit 0
"""

# What a node boots with. Everything that a cluster keeps is the node's own.
BOOT = """
hostname %(name)s
mount --make-rprivate /
mount -t proc proc /proc
for d in /run /dev/shm /var/lib/pacemaker /var/lib/corosync /etc/corosync; do
    mount -t tmpfs -o mode=755 tmpfs $d
done
chmod 1777 /dev/shm
mkdir -p /run/resource-agents /run/crm /run/lock %(dir)s/%(who)s/log/pacemaker %(dir)s/%(who)s/log/corosync
mount --bind %(dir)s/%(who)s/log /var/log
mkdir -p /var/lib/pacemaker/cib /var/lib/pacemaker/pengine /var/lib/pacemaker/blackbox
mkdir -p /var/lib/pacemaker/cores
cp %(dir)s/corosync.conf /etc/corosync/
cp %(dir)s/cib.xml /var/lib/pacemaker/cib/
chmod 600 /var/lib/pacemaker/cib/cib.xml
chown -R hacluster:haclient /var/lib/pacemaker /run/crm /var/log/pacemaker
mount --bind %(agent)s /usr/lib/ocf/resource.d/heartbeat
mount -t overlay overlay -o lowerdir=%(dir)s/sbin:/usr/sbin /usr/sbin
corosync -f >%(dir)s/%(who)s/corosync.log 2>&1 &
n=0
until corosync-cfgtool -s >/dev/null 2>&1; do
    n=$((n + 1)); [ $n -lt 300 ] || exit 1
    sleep 0.1
done
exec pacemakerd >%(dir)s/%(who)s/pacemaker.log 2>&1
"""


class Cluster(Conf):
    def __init__(self, t):
        super().__init__(t, pair="arbiter = pacemaker\n")
        self.ended = False
        os.mkdir(self.dir + "/sbin")
        with open(os.open(self.dir + "/sbin/fence_test", os.O_CREAT | os.O_WRONLY, 0o755),
                  "w") as f:
            f.write(FENCE_AGENT % {"dir": self.dir})
        os.chmod(self.dir, 0o755)
        with open(self.dir + "/corosync.conf", "w") as f:
            f.write(COROSYNC % ("10.78.0.1", "10.78.0.2"))
        with open(self.dir + "/cib.xml", "w") as f:
            f.write(CIB % {
                "conf": self.conf, "coloctl": os.path.abspath(tool(self.cfg.emulator)),
                "fences": "".join(FENCE % {"n": n, "dir": self.dir} for n in NODES.values()),
                "constraints": "".join('<rsc_location id="l-%s" rsc="fence-%s" node="%s" '
                                       'score="-INFINITY"/>' % (n, n, n)
                                       for n in NODES.values())})
        self.fenced = []
        self.fencer = threading.Thread(target=self.fence, daemon=True)
        self.fencer.start()

    def boot(self, host):
        script = BOOT % {"name": NODES[host.who], "dir": self.dir, "who": host.who,
                         "agent": os.path.abspath(AGENT)}
        host.starts += 1
        host.process = Process("node " + host.who, self.net.wrap(host.who, [
            "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "sh", "-c", script]),
            "%s/node" % host.dir)

    def power_off(self, host):
        """All processes of the node, and nothing says good-bye."""
        if host.process.alive():
            host.process.send(signal.SIGKILL)
            host.process.wait(20)

    def fence(self):
        while not self.ended:
            for host in self.hosts.values():
                name = NODES[host.who]
                if os.path.exists("%s/fence.%s" % (self.dir, name)):
                    os.unlink("%s/fence.%s" % (self.dir, name))
                    self.power_off(host)
                    self.fenced.append(host.who)
                    with open("%s/off.%s" % (self.dir, name), "w"):
                        pass
            time.sleep(0.05)

    def inside(self, host, *words, check=True):
        """A command in the node's namespaces."""
        init = host.process.children()[0]
        done = subprocess.run(["nsenter", "-t", str(init), "-m", "-u", "-i", "-n", "-p", *words],
                              capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, "%s: %s%s" % (words, done.stdout, done.stderr)
        return done.stdout

    def emulator(self, host):
        """Pid of the emulator on a node."""
        done = subprocess.run(["ip", "netns", "pids", self.net.ns[host.who]],
                              capture_output=True, text=True, check=True)
        for pid in map(int, done.stdout.split()):
            try:
                if os.readlink("/proc/%d/exe" % pid).rsplit("/", 1)[-1].startswith(
                        "qemu-system-"):
                    return pid
            except OSError:
                pass
        raise AssertionError("no emulator on " + host.who)

    def roles(self, host):
        """node -> role of the VM's instance, as the cluster sees it."""
        try:
            text = self.inside(host, "crm_mon", "-1", "--output-as=xml")
            return {node.get("name"): r.get("role")
                    for r in xml.fromstring(text).iter("resource") if r.get("id") == "vm"
                    for node in r.iter("node")}
        except (AssertionError, IndexError, xml.ParseError):
            return {}

    def wait_roles(self, seen_by, timeout=150, **want):
        want = {NODES[who]: role for who, role in want.items()}
        end = time.monotonic() + timeout
        while self.roles(seen_by) != want:
            within(end, lambda: "wanted %s:\n%s\n%s" % (
                want, self.inside(seen_by, "crm_mon", "-1", "-r", "-f", check=False),
                self.logs()))
            time.sleep(0.3)

    def logs(self):
        out = ""
        for host in self.hosts.values():
            for name in ("pacemaker.log", "node", "state/log"):
                path = "%s/%s" % (host.dir, name)
                if os.path.exists(path):
                    with open(path, errors="replace") as f:
                        out += "--- %s/%s\n%s" % (host.who, name, f.read()[-2500:])
        return out

    def close(self):
        self.ended = True
        for host in getattr(self, "hosts", {}).values():
            if host.process:
                self.power_off(host)
        super().close()


def missing():
    return [p for p in ("corosync", "pacemakerd", "crm_mon", "crm_attribute")
            if not shutil.which(p)] + \
        [p for p in ("/usr/lib/ocf/lib/heartbeat/ocf-shellfuncs",) if not os.path.exists(p)]


def one_of(p):
    """(promoted host, the other) once both instances are up."""
    end = time.monotonic() + 180
    while True:
        roles = p.roles(p.a)
        if sorted(roles.values()) == ["Promoted", "Unpromoted"]:
            break
        within(end, lambda: "%s\n%s\n%s" % (
            roles, p.inside(p.a, "crm_mon", "-1", "-r", "-f", check=False), p.logs()))
        time.sleep(0.3)
    first = next(h for h in p.hosts.values() if roles[NODES[h.who]] == "Promoted")
    return first, p.b if first is p.a else p.a


@case()
def node_dies_and_resource_moves(t):
    with Cluster(t) as p:
        for host in p.hosts.values():
            p.boot(host)
        first, second = one_of(p)
        p.both(first, second)
        first.wait_ready(120)
        # Token and fencing take most of 10 s, and a SYN that is lost after 7 s comes again at 15.
        client = p.client("all", 600, "--connect-ms", "60000", "--stall-ms", "60000")
        t.sleep(2)

        # Moved on purpose: nobody is fenced, and no epoch is lost.
        p.inside(first, "crm_resource", "--resource", "vm-clone", "--ban", "--promoted",
                 "--node", NODES[first.who])
        p.wait_roles(second, **{second.who: "Promoted", first.who: "Unpromoted"})
        p.inside(second, "crm_resource", "--resource", "vm-clone", "--clear")
        p.both(second, first)
        assert not p.fenced, p.fenced
        t.sleep(1)

        # The promoted side's emulator dies: its node lives, so nobody is fenced.
        emulator = p.emulator(second)
        os.kill(emulator, signal.SIGKILL)
        p.wait_roles(first, **{first.who: "Promoted", second.who: "Unpromoted"})
        p.both(first, second)
        assert not p.fenced, p.fenced
        first, second = second, first

        # The node of the promoted side dies: fenced, then the other side is promoted.
        p.power_off(second)
        p.wait_roles(first, **{first.who: "Promoted"})
        assert p.fenced == [second.who], p.fenced
        end = time.monotonic() + 60  # the cluster names the role before the agent is done
        while not p.status(first)["serves"]:
            within(end, "promoted, and does not serve")
            time.sleep(0.1)
        t.sleep(1)
        p.boot(second)
        p.both(first, second)

        # The node of the other side dies: the promoted one goes on once that is certain.
        p.power_off(second)
        p.wait(first, "alone")
        assert p.fenced == [second.who] * 2, p.fenced
        t.sleep(1)
        assert client.stop() == 0, client.why() + p.logs()
        p.check_guest()
        p.inside(first, "crm_resource", "--resource", "vm-clone", "--meta", "-p",
                 "target-role", "-v", "Stopped")
        p.wait_roles(first)
        assert p.status(first)["state"] is None
        return "longest gap %.0f ms" % client.gap_ms()


@case()
def agent_passes_ocf_tester(t):
    if not shutil.which("ocf-tester"):
        return "no ocf-tester here"
    with Cluster(t) as p:
        script = """mount --make-rprivate / && mount -t tmpfs -o mode=755 tmpfs /run &&
            mkdir -p /run/resource-agents && exec ocf-tester -n vm -o config=%s -o coloctl=%s \
            -o shutdown_timeout=1 %s/qemu-colo""" % (
                p.conf, os.path.abspath(tool(p.cfg.emulator)), os.path.abspath(AGENT))
        done = subprocess.run(p.net.wrap("a", ["unshare", "--mount", "--pid", "--fork",
                                               "--kill-child", "--mount-proc", "sh", "-c",
                                               script]),
                              capture_output=True, text=True, timeout=240)
        assert done.returncode == 0 and "passed all tests" in done.stdout, \
            done.stdout + done.stderr + p.logs()
    return None


if __name__ == "__main__":
    if missing():
        print("skip  cluster: %s missing (apt-get install pacemaker corosync resource-agents)"
              % ", ".join(missing()))
        sys.exit(0)
    sys.exit(main())
