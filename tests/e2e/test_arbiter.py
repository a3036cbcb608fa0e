# Nobody types anything: the arbiter decides who goes on, and one side speaks.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
The witness is a real etcd in the third namespace, on a network of its own; the fence agent is
a program that really kills what runs on the other host. Each row of the table in
docs/devel/ownership.rst is a case here.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

from colo_e2e import Pair, case, main
from e2e_net import WITNESS_IP
from e2e_proc import Process, QMPError

URL = "http://%s:2379" % WITNESS_IP["c"]
KEY = "colo/test"
WITNESS = ("-colo", "arbiter=witness,witness=%s,witness-key=%s,witness-lease=3" % (URL, KEY),
           "-colo", "peer-timeout=1500")


class Arbitrated(Pair):
    """A pair with a witness."""

    def __init__(self, t, **changes):
        changes.setdefault("extra", WITNESS)
        changes.setdefault("checkpoint_delay", 500)
        super().__init__(t, **changes)
        self.etcd = None

    def __enter__(self):
        self.start_etcd()
        return self

    def start_etcd(self):
        data = self.dir + "/etcd"
        self.etcd = Process("etcd", self.net.wrap("c", [
            "etcd", "--name", "w", "--data-dir", data, "--log-level", "error",
            "--listen-client-urls", URL, "--advertise-client-urls", URL,
            "--listen-peer-urls", "http://127.0.0.1:2380",
            "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
            "--initial-cluster", "w=http://127.0.0.1:2380"]), data + ".log")
        self.others.append(self.etcd)
        for _ in range(100):
            if self.etcdctl("endpoint", "health", check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise QMPError("etcd does not start: " + self.etcd.output()[-1000:])

    def etcdctl(self, *words, check=True):
        done = subprocess.run(self.net.wrap("c", ["env", "ETCDCTL_API=3", "etcdctl",
                                                  "--endpoints", URL, *words]),
                              capture_output=True, text=True, timeout=30)
        assert not check or done.returncode == 0, done.stderr
        return done

    def record(self):
        text = self.etcdctl("get", KEY, "--print-value-only").stdout.strip()
        return json.loads(text) if text else None

    def watch(self):
        """Capture what each host says to the outside."""
        self.caught = {who: self.capture("voice-" + who, who, "lan0", "-Q", "out") for who in "ab"}
        time.sleep(0.3)

    def voice(self, who, after):
        """Frames of the guest that a host let out after a moment (time.time())."""
        done = subprocess.run(["tcpdump", "-tt", "-n", "-r", self.caught[who], "ether", "src",
                               self.cfg.mac], capture_output=True, text=True)
        return [line for line in done.stdout.splitlines()
                if line[:1].isdigit() and float(line.split()[0]) > after]

    def state(self, host):
        return host.qmp.cmd("query-colo-status")["state"]

    def decided(self, host, serving, timeout=90):
        _, event = host.qmp.wait_event("COLO_DECISION", timeout)
        assert event["data"]["serving"] == serving, event
        if serving:
            host.qmp.wait_for("alone", lambda q: self.state(host) == "alone")


def begin(p, seconds=6, **kwargs):
    p.start(boot=False)
    p.protect()
    client = p.client("all", seconds)
    p.t.sleep(1, 3)
    return client


def finish(p, client, server):
    assert client.wait() == 0, client.why()
    p.primary, p.secondary = server, p.b if server is p.a else p.a
    p.check()
    return "gap %.0f ms" % client.gap_ms()


@case(repeat=10)
def witness_primary_killed(t):
    with Arbitrated(t) as p:
        client = begin(p)
        assert p.record()["state"] == "protected", p.record()
        p.kill_primary(t.rng.choice(["front", "emulator", "both"]))
        p.decided(p.b, True)
        note = finish(p, client, p.b)
        assert p.record()["state"] == "alone", p.record()
        return note


@case(repeat=3)
def witness_secondary_killed(t):
    with Arbitrated(t) as p:
        client = begin(p)
        p.kill_secondary("both")
        p.decided(p.a, True)
        return finish(p, client, p.a)


def partition(t, cut_a, cut_b, server):
    """The peer link is cut, and the witness from one side, both or none."""
    with Arbitrated(t) as p:
        p.start(boot=False)
        p.protect()
        p.watch()
        client = p.client("all", 8)
        t.sleep(1, 2)
        for who, cut in (("a", cut_a), ("b", cut_b)):
            if cut:
                p.net.cut("wit", who)
        p.net.cut("link", "b")
        if cut_a and cut_b:
            for host in (p.a, p.b):
                host.qmp.wait_for("loss", lambda q, h=host: p.state(h) != "protected")
            time.sleep(1.5)
            assert p.state(p.a) == "lost" and p.state(p.b) == "lost", "somebody won alone"
            heal = time.time()
            assert not p.voice("b", 0), "the secondary spoke without the witness"
            p.net.mend("wit", server or "b")
        elif server is None:
            # Both reach the witness: whoever it is, it is one.
            p.a.qmp.wait_for("a decision", lambda q: p.state(p.a) in ("alone", "fenced"))
            server = "a" if p.state(p.a) == "alone" else "b"
        winner, loser = p.hosts[server], p.hosts["b" if server == "a" else "a"]
        p.decided(winner, True)
        heal = time.time()
        for who in "ab":
            p.net.mend("wit", who)
        p.decided(loser, False)
        assert p.state(loser) == "fenced", p.state(loser)
        note = finish(p, client, winner)
        assert not p.voice(loser.who, heal + 0.05), "two voices"
        try:
            loser.qmp.cmd("x-colo-lost-heartbeat")
            raise AssertionError("the loser was let go live")
        except QMPError as e:
            assert "stay silent" in str(e), e
        return "%s serves, %s" % (server, note)


@case(repeat=3)
def link_cut_witness_seen_by_both(t):
    return partition(t, False, False, None)


@case(repeat=2)
def link_cut_witness_seen_by_a(t):
    return partition(t, False, True, "a")


@case(repeat=2)
def link_cut_witness_seen_by_b(t):
    return partition(t, True, False, "b")


@case(repeat=2)
def link_cut_witness_seen_by_none(t):
    return partition(t, True, True, t.rng.choice("ab"))


@case(repeat=2)
def both_told_at_once(t):
    """Two operators, one on each side of a cut link: one voice all the same."""
    with Arbitrated(t) as p:
        client = begin(p, 7)
        p.net.cut("link", "b")
        for host in (p.a, p.b):
            try:
                host.qmp.cmd("x-colo-lost-heartbeat")
            except QMPError as e:
                assert "stay silent" in str(e) or "under way" in str(e) or \
                    "'colo' is not enabled" in str(e), e
        p.a.qmp.wait_for("a decision", lambda q: p.state(p.a) in ("alone", "fenced"))
        server = p.a if p.state(p.a) == "alone" else p.b
        loser = p.b if server is p.a else p.a
        p.decided(loser, False)
        p.decided(server, True)
        return finish(p, client, server)


@case()
def operator_vouches_without_the_witness(t):
    """The witness is gone for good and the peer is dead: fenced=true serves; the key follows."""
    with Arbitrated(t) as p:
        client = begin(p, 8)
        p.etcd.kill()
        p.kill_primary("both")
        p.b.qmp.wait_event("COLO_EXIT")
        time.sleep(1)
        assert p.state(p.b) == "lost", p.state(p.b)
        p.b.qmp.cmd("x-colo-lost-heartbeat", {"fenced": True})
        p.b.qmp.wait_for("alone", lambda q: p.state(p.b) == "alone")
        p.start_etcd()
        p.b.qmp.wait_for("the key", lambda q: (p.record() or {}).get("state") == "alone")
        return finish(p, client, p.b)


@case()
def alone_without_witness_is_silent_within_the_lease(t):
    """Unprotected with the witness out of reach: silent before the lease ends, speaking again
    when it is back; for good if another owner came meanwhile; and a second start is refused."""
    with Arbitrated(t) as p:
        begin(p, 4).wait()
        p.kill_secondary("both")
        p.decided(p.a, True)
        refused = subprocess.run(p.net.wrap("b", [t.emulator, "-M", "pc,accel=tcg", "-m", "64",
                                                  "-display", "none", "-S", *WITNESS]),
                                 capture_output=True, text=True, timeout=60)
        assert refused.returncode and "owns this guest" in refused.stderr, refused
        p.watch()
        ping = p.client("stream", 20)
        p.net.cut("wit", "a")
        cut = time.time()
        time.sleep(3.5)
        assert not p.voice("a", cut + 3.0), "spoke beyond its lease"
        p.net.mend("wit", "a")
        mended = time.time()
        p.a.qmp.wait_for("a voice", lambda q: p.voice("a", mended))
        # Asleep past the lease: the first frames on waking find the gate shut.
        p.a.process.freeze()
        time.sleep(4)
        p.etcdctl("put", KEY, json.dumps({"owner": "x", "state": "alone", "host": "other"}))
        woken = time.time()
        os.kill(p.a.process.pid, signal.SIGCONT)
        p.a.qmp.wait_for("fenced", lambda q: p.state(p.a) == "fenced")
        time.sleep(1)
        said = p.voice("a", woken)
        assert not said, said[:3]
        ping.process.stop()


AGENT = """#!/usr/bin/env python3
import os, signal, subprocess, sys, time
opts = dict(l.strip().split("=", 1) for l in sys.stdin if "=" in l)
with open(opts["log"], "a") as f:
    f.write("%%s %%s\\n" %% (opts["action"], opts["plug"]))
if os.path.exists(opts["log"] + ".fail"):
    sys.exit("the power switch does not answer")
for pid in subprocess.run(["ip", "netns", "pids", opts["plug"]], capture_output=True,
                          text=True).stdout.split():
    try:
        if "qemu" in os.path.basename(os.readlink("/proc/%%s/exe" %% pid)):
            os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass  # gone with its parent
"""


class Fenced(Pair):
    """A pair whose arbiters kill each other's host; the secondary waits a moment."""

    def __init__(self, t, **changes):
        super().__init__(t, checkpoint_delay=500, **changes)
        self.agent = self.dir + "/agent"
        with open(self.agent, "w") as f:
            f.write(AGENT.replace("%%", "%"))
        os.chmod(self.agent, 0o755)
        for who, peer, delay in (("a", "b", 0), ("b", "a", 2500)):
            options = "%s/fence-%s" % (self.dir, who)
            with open(options, "w") as f:
                f.write("log=%s.log\n" % options)
            os.chmod(options, 0o600)
            words = ("-colo", "arbiter=fence,fence-agent=%s,fence-plug=%s,fence-options=%s,"
                     "fence-delay=%d" % (self.agent, self.net.ns[peer], options, delay),
                     "-colo", "peer-timeout=1500")
            setattr(self.cfg, "extra_primary" if who == "a" else "extra_secondary", words)

    def log(self, who):
        path = "%s/fence-%s.log" % (self.dir, who)
        return open(path).read() if os.path.exists(path) else ""


@case(repeat=3)
def fence_link_cut(t):
    """Both live: the one without a delay switches the other off, and goes on."""
    with Fenced(t) as p:
        client = begin(p)
        p.net.cut("link", "b")
        p.a.qmp.wait_event("COLO_DECISION")
        p.b.process.wait()
        assert p.log("a").split() == ["off", p.net.ns["b"]] and not p.log("b")
        return finish(p, client, p.a)


@case(repeat=3)
def fence_primary_killed(t):
    """The agent fails at first: nobody serves before it has succeeded."""
    with Fenced(t) as p:
        client = begin(p, 10)
        fail = "%s/fence-b.log.fail" % p.dir
        open(fail, "w").close()
        p.kill_primary(t.rng.choice(["front", "emulator"]))
        p.b.qmp.wait_event("COLO_EXIT")
        p.b.qmp.wait_for("the agent to be tried", lambda q: "off" in p.log("b"))
        time.sleep(3)
        assert p.b.qmp.cmd("query-colo-status")["state"] == "lost"
        os.unlink(fail)
        _, event = p.b.qmp.wait_event("COLO_DECISION")
        assert event["data"] == {"serving": True, "arbiter": "fence"}, event
        return finish(p, client, p.b)


if __name__ == "__main__":
    if not shutil.which("etcd"):
        print("skip  all: no etcd here")
        sys.exit(0)
    sys.exit(main())
