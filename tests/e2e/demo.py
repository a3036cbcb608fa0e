#!/usr/bin/env python3
# A real guest outlives its host while clients use it: ./run demo
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Two hosts, a guest that is protected as the manual has it, and a client outside that
downloads, uploads and checks every byte. In the middle the primary's front-end and
emulator get SIGKILL; a script that listens for COLO_EXIT on the other host gives the
takeover command. Hosts are network namespaces as root, else processes joined by
colo-switch and loopback.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time

import colo_e2e
from e2e_net import NetError, Network
from e2e_proc import QMPError
from e2e_switch import SwitchNetwork

TAIL_S = 10    # of the clients after the death
LIMIT_S = 180  # for all, however slow the machine


def human(count):
    for unit in ("bytes", "kB", "MB"):
        if count < 10000:
            return "%.4g %s" % (count, unit)
        count /= 1e3
    return "%.4g GB" % count


class Live:
    """The line that shows what goes on: redrawn on a terminal, else one each 2 s."""

    def __init__(self):
        self.tty = sys.stdout.isatty()
        self.begin = time.monotonic()
        self.shown = 0.0
        self.drawn = False

    def clock(self, at=None):
        return "%6.2f s" % ((at or time.monotonic()) - self.begin)

    def line(self, text):
        now = time.monotonic()
        if self.tty:
            width = os.get_terminal_size().columns - 1
            print("\r\033[K" + ("%s  %s" % (self.clock(), text))[:width], end="", flush=True)
            self.drawn = True
        elif now - self.shown >= 2:
            self.shown = now
            print("%s  %s" % (self.clock(), text), flush=True)

    def say(self, text, at=None):
        print("%s%s  %s" % ("\r\033[K" if self.drawn else "", self.clock(at), text),
              flush=True)
        self.drawn = False
        self.shown = 0.0


def counted(client):
    """What colo-client --live told last, e.g. {"download": 1048576, ...}."""
    lines = [x for x in client.process.output().splitlines() if re.match(r" *[\d.]+ s  ", x)]
    return {k: int(v) for k, v in re.findall(r"(\w+) (\d+)(?=  |$)", lines[-1])} \
        if lines else {}


def describe(status, client):
    got = counted(client)
    if status["mode"] == "none":
        return "unprotected  | down %s  up %s" % (human(got.get("download", 0)),
                                                  human(got.get("upload", 0)))
    return "%s  epoch %d  checkpoints %d  pause %.1f ms  dirty %d pages  held %s in %d  " \
        "| down %s  up %s" % (
            status["state"], status["epoch"], status["checkpoints"],
            status["pause-us"]["last"] / 1e3, status["dirty-pages"]["last"],
            human(status["held-bytes"]), status["held-frames"],
            human(got.get("download", 0)), human(got.get("upload", 0)))


def watch(live, host, client, seconds):
    """Show the live line for a while; the last status."""
    end = time.monotonic() + seconds
    while True:
        status = host.qmp.cmd("query-colo-status")
        live.line(describe(status, client))
        if time.monotonic() >= end or not client.process.alive():
            return status
        time.sleep(0.1)


def kill(live, p):
    """SIGKILL to the front-end and the emulator of the primary."""
    front, emulator = p.primary.process.pid, p.primary.process.emulator_pid()
    p.kill_primary("both")
    live.say("SIGKILL to host A: qemu-colo (pid %d) and its emulator (pid %d)" % (
        front, emulator), p.killed_at)


def takeover(live, p):
    """The arbiter's script on host B."""
    at, event = p.secondary.qmp.wait_event("COLO_EXIT", 30, p.killed_at)
    p.takeover(wait_exit=False)
    live.say("host B: COLO_EXIT, reason %s (%.0f ms after the death)" % (
        event["data"]["reason"], (at - p.killed_at) * 1e3), at)
    live.say("host B: took over by the script's command (%.0f ms); it is the primary now" %
             p.takeover_ms)


def story(live, p, seconds):
    live.say("starting the primary on host A and the secondary on host B")
    p.start(boot=False)
    p.protect()
    live.say("protected, and the guest is up: its clients begin")
    client = p.client("all", seconds + TAIL_S, "--live")
    status = watch(live, p.primary, client, seconds)
    kill(live, p)
    takeover(live, p)
    watch(live, p.primary, client, TAIL_S + 60)
    ok = client.wait(90) == 0
    live.say("the clients are done: " + ("every byte was right" if ok else client.why()))
    return client, status


def verify_disk(p):
    """The survivor's image, read after its emulator is gone."""
    p.b.close()
    return p.check_image(p.b)


def table(rows):
    for name, value in rows:
        print("  %-20s %s" % (name, value))


def report(p, client, status, guest, image, problems):
    modes = {m["mode"]: m for m in client.result["modes"]} if client.result else {}
    total = sum(m["bytes"] for m in modes.values())
    bad = [m for m in modes.values() if not m["ok"]]
    per = ", ".join("%s %s" % (m["mode"], human(m["bytes"]))
                    for m in modes.values() if m["bytes"])
    rows = [("bytes checked", "%s (%s)" % (human(total), per)),
            ("bytes lost", "0" if modes and not bad else
             "NOT 0: " + (client.why() or "no result"))]
    if "udp" in modes:
        rows.append(("datagrams", "%d answered, %d lost in the gap (UDP may)" % (
            modes["udp"]["ops"], modes["udp"]["lost"])))
    if "stream" in modes:
        gap = client.gap_ms("stream", p.killed_at)
        rows.append(("client gap", "%.0f ms without a record, of one each ms" % gap))
    pause = status["pause-us"]
    rows += [("pauses", "median %.1f ms, p99 %.1f ms, max %.1f ms" % tuple(
                 pause[k] / 1e3 for k in ("median", "p99", "max"))),
             ("checkpoints", "%d (%s)" % (status["checkpoints"], ", ".join(
                 "%d by %s" % (n, t) for t, n in status["triggers"].items() if n)))]
    if guest:
        rows.append(("guest memory", "%d pages checked in the guest, %d wrong" % (
            guest["mem_checked"], guest["mem_errors"])))
    if guest and image:
        rows.append(("disk check", "%d records acknowledged to the client, %d missing, %d "
                     "broken on host B's image" % (image["logged"], image["missing"],
                                                   image["broken"])))
    print()
    table(rows)
    if not modes or bad:
        problems.append("a client saw it: " + client.why())


def run(options, t):
    live = Live()
    problems, guest, image = [], None, None
    with colo_e2e.Pair(t, checkpoint_delay=500) as p:
        client, status = story(live, p, t.rng.uniform(9, 13))
        for what in ("guest", "image"):
            try:
                if what == "guest":
                    guest = p.check()
                else:
                    image = verify_disk(p)
            except (AssertionError, QMPError, OSError, subprocess.SubprocessError) as e:
                problems.append("%s: %s" % (what, e))
        report(p, client, status, guest, image, problems)
        p.kept = False
    print()
    if problems:
        print("FAILED: " + "; ".join(problems))
        return 1
    print("PASSED: the host died, the guest lives, and no client lost a byte.")
    return 0


def choose_network(options):
    """Namespaces where we may make them, else the switch."""
    if not options.switch:
        try:
            Network().close()
            print("hosts: two network namespaces; seed %s" % options.seed)
            return lambda rundir: Network()
        except (NetError, OSError) as e:
            reason = str(e).split(";")[0]
    else:
        reason = "as asked"
    print("hosts: joined by colo-switch (%s); seed %s" % (reason, options.seed))
    program = colo_e2e.find_program("colo-switch", None)
    return lambda rundir: SwitchNetwork(program, rundir)


def on_signal(sig, frame):
    """Once: what follows is the cleaning up, which nothing must interrupt."""
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(s, signal.SIG_IGN)
    if sig == signal.SIGALRM:
        raise TimeoutError("not done in %d s" % LIMIT_S)
    sys.exit(128 + sig)


def main():
    parser = colo_e2e.arguments(argparse.ArgumentParser(description=__doc__))
    parser.add_argument("--build", help="build folder")
    parser.add_argument("--switch", action="store_true",
                        help="colo-switch instead of namespaces, also as root")
    options = parser.parse_args()
    if options.build:
        os.environ["COLO_BUILD"] = os.path.abspath(options.build)
    options.emulator = colo_e2e.find_program("qemu-colo", options.emulator)
    options.client = colo_e2e.find_program("colo-client", options.client)
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(sig, on_signal)
    signal.alarm(LIMIT_S)
    t = colo_e2e.Test(options, "demo", 0)
    try:
        t.network = choose_network(options)
        return run(options, t)
    except (AssertionError, QMPError, NetError, OSError, subprocess.SubprocessError) as e:
        print("\nFAILED: %s" % e)
        return 1


if __name__ == "__main__":
    sys.exit(main())
