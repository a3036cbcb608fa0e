# The end-to-end harness: a guest alone, or protected by its twin on a second host.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
A case is a small function:

    @case(repeat=10)
    def primary_killed(t):
        with Pair(t) as p:
            p.start()
            p.protect()
            client = p.client("all", seconds=10)
            t.sleep(2, 6)
            p.kill_primary()
            p.takeover()
            assert client.wait() == 0, client.why()
            p.check()

t.rng is seeded from the run's seed, the case's name and the repetition, so that a failure
repeats with --seed. Python's time.monotonic(), QMP event times here and the times that
colo-client prints are one clock.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

from e2e_guest import (Config, TWIN_MAC, disks, image_of, make_fs_image, make_image,
                       primary_command, secondary_command, unprotected_command)
from e2e_net import GUEST_IP, TWIN_IP, Network
from e2e_proc import LATE, QMP, Late, LateQMP, Process, QMPError, crashed, grave

HERE = os.path.dirname(os.path.abspath(__file__))
BAD_CONSOLE = re.compile(r"COLO-GUEST-(ERROR|FAILED).*|Kernel panic.*|BUG: .*|"
                         r"Oops.*|soft lockup.*|I/O error.*|rcu.*stall.*")


def make_disk(cfg, path):
    """The guest's first disk, as it is before it ever ran."""
    if cfg.other:
        subprocess.run(["cp", "--sparse=always", cfg.other[2], path], check=True)
    else:
        make = make_fs_image if cfg.fs else make_image
        make(path, cfg.disk_format, cfg.disk_mib)


class Client:
    """A running colo-client."""

    def __init__(self, network, rundir, name, program, args):
        self.result = None
        self.out = "%s/%s.json" % (rundir, name)
        self.process = Process(name, network.wrap("c", [program, "--json", *args]), self.out)

    def wait(self, timeout=400):
        """Its exit status: 0 when every byte was right and no connection was lost."""
        status = self.process.wait(timeout)
        for line in self.process.output().splitlines():
            if line.startswith("{"):
                self.result = json.loads(line)
        return status

    def stop(self, timeout=120):
        """End the run in order, now."""
        self.process.send(signal.SIGINT)
        return self.wait(timeout)

    def why(self):
        """What went wrong, for an assertion."""
        if not self.result or "modes" not in self.result:
            return "client: " + self.process.output()[-1500:]
        return "client: " + "; ".join("%s: %s" % (m["mode"], m["error"])
                         for m in self.result["modes"] if not m["ok"])

    def mode(self, name):
        return next(m for m in self.result["modes"] if m["mode"] == name)

    def gap_ms(self, name="stream", after=0.0):
        """The longest silence that a mode saw (that had not ended at a moment)."""
        m = self.mode(name)
        if not after:
            return m["max_gap_ms"]
        return max((g["ms"] for g in m["gaps"] if g["at"] + g["ms"] / 1e3 >= after),
                   default=0.0)


class Host:
    """One side: its namespace, its directory, its emulator and QMP session."""

    def __init__(self, pair, who):
        self.pair = pair
        self.who = who
        self.dir = os.path.join(pair.dir, who)
        os.mkdir(self.dir)
        self.image = "%s/disk.%s" % (self.dir, pair.cfg.disk_format)
        self.process = None
        self.qmp = None
        self.ip = pair.net.link[who]
        self.starts = 0

    def spawn(self, command):
        self.starts += 1
        with open("%s/command" % self.dir, "a") as f:
            f.write(" ".join("'%s'" % word for word in command) + "\n")
        for stale in ("qmp", "serial.log"):
            if os.path.exists("%s/%s" % (self.dir, stale)):
                os.rename("%s/%s" % (self.dir, stale),
                          "%s/%s.%d" % (self.dir, stale, self.starts))
        self.process = Process("host " + self.who, self.pair.net.wrap(self.who, command),
                               "%s/output" % self.dir)

    def connect(self, timeout=90):
        self.qmp = QMP("%s/qmp" % self.dir, self.process, timeout)
        return self.qmp

    def console(self):
        try:
            with open("%s/serial.log" % self.dir, errors="replace") as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def wait_ready(self, timeout=180):
        """Until the guest's services listen."""
        end = time.monotonic() + timeout
        while "COLO-GUEST-READY" not in self.console():
            if not self.process.alive():
                raise QMPError("%s ended: %s" % (self.process.name,
                                                 self.process.output()[-2000:]))
            if time.monotonic() > end:
                raise LateQMP("guest not ready in %s s: %s" % (timeout,
                                                               self.console()[-500:]))
            time.sleep(0.02)
        found = BAD_CONSOLE.search(self.console())
        assert not found, "console of host %s: %s" % (self.who, self.console()[-500:])

    def close(self):
        if self.qmp:
            self.qmp.close()
        if self.process:
            self.process.stop()


class Bed:
    """What Single and Pair share: network, directory, client, checks."""

    def __init__(self, t, **changes):
        self.t = t
        self.cfg = Config(emulator=t.emulator)
        for key, value in changes.items():
            if not hasattr(self.cfg, key):
                raise TypeError("no such guest option: " + key)
            setattr(self.cfg, key, value)
        self.dir = tempfile.mkdtemp(prefix="colo-e2e-", dir=os.environ.get("COLO_E2E_DIR"))
        self.net = None
        self.clients = []
        self.others = []
        self.kept = False
        try:
            self.net = self.cfg.net = t.network(self.dir)
            self.hosts = {who: Host(self, who) for who in "ab"}
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.kept = kind is not None and issubclass(kind, Exception)
        self.close()

    def close(self):
        for client in self.clients:
            client.process.stop()
        for process in self.others:
            process.stop()
        for host in getattr(self, "hosts", {}).values():
            host.close()
        if self.net:
            self.net.close()
        if self.kept or os.environ.get("COLO_E2E_KEEP"):
            print("    kept: %s" % self.dir)
        else:
            shutil.rmtree(self.dir, ignore_errors=True)

    def client(self, mode, seconds=10, *args, host=None):
        name = "client-%d" % len(self.clients)
        words = [*self.net.reach(host or self.cfg.ip), "--seconds", str(seconds),
                 "--seed", str(self.t.rng.randrange(1 << 30)),
                 "--log", "%s/acknowledged" % self.dir, *map(str, args)]
        if mode == "all" and self.cfg.disk == "none":
            words.append("--no-disk")
        client = Client(self.net, self.dir, name, self.t.client, words + [mode])
        self.clients.append(client)
        return client

    def control(self, command, host=None):
        """A command to the guest's control port; STATUS comes back as a dictionary."""
        words = [self.t.client, *self.net.reach(host or self.cfg.ip), "--ctl", command]
        done = subprocess.run(self.net.wrap("c", words), capture_output=True, text=True,
                              timeout=180)
        if done.returncode:
            raise QMPError("guest: %s: %s%s" % (command, done.stdout, done.stderr))
        return json.loads(done.stdout) if command == "STATUS" else done.stdout.strip()

    def capture(self, name="lan", who="c", dev="br-lan", *more):
        """Start a packet capture; returns the path of its file."""
        path = "%s/%s.pcap" % (self.dir, name)
        self.others.append(Process("tcpdump", self.net.capture(path, who, dev, *more),
                                   path + ".log"))
        return path

    def check_guest(self, host=None):
        """The guest's own verdict on its memory and disk; all pages at least once more."""
        status = self.control("STATUS", host)
        pages = self.cfg.region * 256
        self.control("SET check=200", host)
        end = time.monotonic() + 240
        while True:
            now = self.control("STATUS", host)
            assert now["errors"] == 0, "guest: " + now["first_error"]
            # Pages are also checked before they are rewritten: those do not count here.
            if now["mem_checked"] - now["mem_written"] >= \
                    status["mem_checked"] - status["mem_written"] + pages:
                break
            if time.monotonic() > end:
                raise Late("guest checks no memory: %s" % now)
            time.sleep(0.2)
        self.control("SET check=%d" % self.cfg.check, host)
        return now

    def check_consoles(self):
        for host in self.hosts.values():
            # A guest whose front-end was killed loses its disk a moment before its life.
            if host.process and not host.process.alive():
                continue
            found = BAD_CONSOLE.search(host.console())
            assert not found, "console of host %s: %s" % (host.who, found.group(0))

    def check_image(self, host, log=True, number=0):
        """The records on a host's image, while no emulator has it open."""
        image = path = image_of(self.cfg, host.dir, host.image, number)
        if self.cfg.disk_format != "raw":
            path = "%s/check.raw" % self.dir
            subprocess.run(["qemu-img", "convert", "-f", self.cfg.disk_format, "-O", "raw",
                            image, path], check=True)
        words = [self.t.client, "--json", "--image", path]
        if log and os.path.exists("%s/acknowledged" % self.dir):
            words += ["--log", "%s/acknowledged" % self.dir]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, "image of host %s: %s%s" % (host.who, done.stdout,
                                                                 done.stderr)
        return json.loads(done.stdout)


class Single(Bed):
    """The guest without protection; with twin=True beside a second, equal guest."""

    def __init__(self, t, twin=False, **changes):
        super().__init__(t, **changes)
        self.twin = twin
        self.boot_s = 0.0

    def start(self):
        for who in "ab" if self.twin else "a":
            host = self.hosts[who]
            cfg = self.cfg
            if who == "b":
                cfg = Config(**{**vars(cfg), "ip": TWIN_IP, "mac": TWIN_MAC})
            if cfg.disk != "none":
                make_disk(cfg, host.image)
            begin = time.monotonic()
            host.spawn(unprotected_command(cfg, "single-" + who, host.dir, host.image))
            host.connect()
            host.wait_ready()
            self.boot_s = self.boot_s or time.monotonic() - begin


class Pair(Bed):
    """A primary on host a, a secondary on host b, as the procedure has them."""

    def __init__(self, t, **changes):
        super().__init__(t, **changes)
        self.a, self.b = self.hosts["a"], self.hosts["b"]
        self.primary, self.secondary = self.a, self.b  # roles move with a takeover
        self.killed_at = 0.0

    # Set-up

    def start(self, boot=True):
        """Steps 1 and 2; with boot=True the guest runs unprotected first."""
        if self.cfg.disk != "none":
            make_disk(self.cfg, self.a.image)
            if self.cfg.shared:
                self.b.image = self.a.image
            else:
                shutil.copy(self.a.image, self.b.image)
        for n in range(1, len(disks(self.cfg))):
            for host in (self.a, self.b):
                make_image(image_of(self.cfg, host.dir, host.image, n),
                           self.cfg.disk_format, self.cfg.disk_mib)
        self.a.spawn(primary_command(self.cfg, self.a.dir, self.a.image))
        # compare1 waits for the secondary: only then is the primary's monitor served.
        self.b.spawn(secondary_command(self.cfg, self.b.dir, self.b.image))
        self.a.connect()
        self.b.connect()
        if boot:
            self.a.qmp.cmd("cont")
            self.a.wait_ready()

    def prepare_secondary(self, host=None):
        """Step 3."""
        q = (host or self.secondary).qmp
        q.cmd("migrate-set-capabilities",
              {"capabilities": [{"capability": "x-colo", "state": True}]})
        if self.cfg.disk != "none":
            q.cmd("nbd-server-start", {"addr": {"type": "inet", "data": {
                "host": self.net.listen[(host or self.secondary).who], "port": "9999"}}})
            for n in range(len(disks(self.cfg))):
                q.cmd("nbd-server-add", {"device": "parent%d" % n, "writable": True})

    def attach_disk(self):
        for n in range(len(disks(self.cfg))):
            self.primary.qmp.hmp(
                "drive_add -n buddy driver=replication,mode=primary,file.driver=nbd,"
                "file.host=%s,file.port=9999,file.export=parent%d,node-name=replication%d%s"
                % (self.secondary.ip, n, n, ",shared-disk=on" if self.cfg.shared else ""))
            self.primary.qmp.cmd("x-blockdev-change", {"parent": "colo-disk%d" % n,
                                                       "node": "replication%d" % n})

    def migrate(self):
        q = self.primary.qmp
        q.cmd("migrate-set-capabilities",
              {"capabilities": [{"capability": "x-colo", "state": True}]})
        q.cmd("migrate", {"uri": "tcp:%s:9998" % self.secondary.ip})

    def wait_protected(self, timeout=180):
        def failed(q):
            info = q.cmd("query-migrate")
            if info.get("status") in ("failed", "cancelled"):
                raise QMPError("migration %s: %s" % (info["status"],
                                                     info.get("error-desc", "")))
        for host, mode in ((self.primary, "primary"), (self.secondary, "secondary")):
            def there(q):
                failed(q)
                return q.cmd("query-colo-status")["mode"] == mode
            host.qmp.wait_for("COLO mode " + mode, there, timeout)

    def protect(self, timeout=180):
        """Steps 3 and 4, until both sides say that they are protected and the guest is up."""
        self.prepare_secondary()
        if self.cfg.disk != "none":
            self.attach_disk()
        self.migrate()
        if self.cfg.checkpoint_delay:
            self.set_delay(self.cfg.checkpoint_delay)
        self.wait_protected(timeout)
        # Started with boot=False the guest boots now, protected.
        self.primary.wait_ready(timeout)

    def set_delay(self, ms):
        self.primary.qmp.cmd("migrate-set-parameters", {"x-checkpoint-delay": ms})

    # Death

    def kill_primary(self, what="front"):
        """SIGKILL to the front-end, its emulator, or both ("front", "emulator", "both")."""
        self.kill(self.primary, what)

    def kill_secondary(self, what="front"):
        self.kill(self.secondary, what)

    def kill(self, host, what="front", sig=signal.SIGKILL):
        pids = {"front": [host.process.pid], "emulator": [host.process.emulator_pid()],
                "both": [host.process.pid, host.process.emulator_pid()]}[what]
        self.killed_at = time.monotonic()
        for pid in pids:
            try:
                os.kill(pid, sig)
            except ProcessLookupError:
                pass

    # Failover, as documented

    def takeover(self, wait_exit=True, full=True):
        """Secondary failover: on COLO_EXIT (or at once), by command."""
        q = self.secondary.qmp
        if wait_exit:
            q.wait_event("COLO_EXIT")
        begin = time.monotonic()
        if self.cfg.disk != "none":
            q.cmd("nbd-server-stop")
        q.cmd("x-colo-lost-heartbeat", {"fenced": True} if self.cfg.shared else None)
        self.takeover_ms = (time.monotonic() - begin) * 1e3
        self.primary, self.secondary = self.secondary, self.primary
        if full:
            self.become_primary()

    def become_primary(self):
        """The rest of the secondary's failover: chardevs for a secondary to come."""
        q = self.primary.qmp
        listen, local = (d[self.primary.who] for d in (self.net.listen, self.net.local))
        for name in ("f2", "f1"):
            q.cmd("object-del", {"id": name})
        for name in ("red1", "red0"):
            q.cmd("chardev-remove", {"id": name})
        for name, host, port, server in (
                ("mirror0", listen, 9003, True), ("compare1", listen, 9004, True),
                ("compare0", local, 9001, True), ("compare0-0", local, 9001, False),
                ("compare_out", local, 9005, True), ("compare_out0", local, 9005, False)):
            q.cmd("chardev-add", {"id": name, "backend": {"type": "socket", "data": {
                "addr": {"type": "inet", "data": {"host": host, "port": str(port)}},
                "server": server}}})

    def lose(self, death, secondary_dies):
        """Let @death happen to one side, and the other one go on."""
        death(self)
        if secondary_dies:
            self.go_alone()
        else:
            self.takeover()

    def go_alone(self, wait_exit=True):
        """Primary failover: the secondary died."""
        q = self.primary.qmp
        if wait_exit:
            q.wait_event("COLO_EXIT")
        begin = time.monotonic()
        for n in range(len(disks(self.cfg))):
            q.cmd("x-blockdev-change", {"parent": "colo-disk%d" % n, "child": "children.1"})
            q.hmp("drive_del replication%d" % n)
        for name in ("comp0", "iothread1", "m0", "redire0", "redire1"):
            q.cmd("object-del", {"id": name})
        q.cmd("x-colo-lost-heartbeat")
        self.takeover_ms = (time.monotonic() - begin) * 1e3

    def check(self):
        """What must hold at the end of every case, on whichever side serves."""
        self.check_consoles()
        return self.check_guest()


# Cases and their runner

CASES = []


class Skip(Exception):
    """A case that cannot run here; its text says why."""


def case(repeat=1, tags=()):
    def add(fn):
        CASES.append((fn, repeat, tags))
        return fn
    return add


class Test:
    """What a case gets: programs and randomness."""

    network = staticmethod(lambda rundir: Network())

    def __init__(self, options, name, number):
        self.emulator = options.emulator
        self.client = options.client
        self.rng = random.Random("%s/%s/%d" % (options.seed, name, number))

    def sleep(self, low, high=None):
        time.sleep(self.rng.uniform(low, high) if high else low)


def find_program(name, given):
    """A program of the build: as given, in $COLO_BUILD, or in a build folder of the tree."""
    if given:
        return given
    top = os.path.join(HERE, "..", "..")
    folders = [os.environ.get("COLO_BUILD", "")] + \
        [os.path.join(top, d) for d in sorted(os.listdir(top)) if d.startswith("build")]
    for folder in folders:
        for sub in ("", "tests/guest", "tests/unit", "system", "tools"):
            path = os.path.join(folder, sub, name)
            if folder and os.access(path, os.X_OK) and os.path.isfile(path):
                return path
    return shutil.which(name) or sys.exit("%s not found: build first, set COLO_BUILD or "
                                          "give its path" % name)


def arguments(parser=None):
    parser = parser or argparse.ArgumentParser()
    parser.add_argument("--emulator", help="qemu-colo, or a stock emulator")
    parser.add_argument("--client", help="path of colo-client")
    parser.add_argument("--seed", default=str(int(time.time())))
    return parser


def main(module_cases=None):
    parser = arguments()
    parser.add_argument("-k", default="", help="only cases whose name matches")
    parser.add_argument("--repeat", type=int, help="instead of each case's own count")
    parser.add_argument("--number", type=int, help="that repetition of each case alone")
    parser.add_argument("--for", type=float, dest="seconds", metavar="SECONDS",
                        help="begin no repetition of a case after so long")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    # What a file took from another one is the other one's to run.
    own = module_cases or [c for c in CASES if c[0].__module__ == "__main__"]
    chosen = [c for c in own if re.search(options.k, c[0].__name__)]
    if options.list:
        for fn, repeat, _ in chosen:
            print("%-40s x%d" % (fn.__name__, repeat))
        return 0
    options.emulator = find_program("qemu-colo", options.emulator)
    options.client = find_program("colo-client", options.client)
    failed = []
    print("seed %s" % options.seed)
    # SIGTERM must remove the namespaces too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start = time.monotonic()
    # Every case once, then again and again: what time remains is shared by all.
    for number in range(options.repeat or max((c[1] for c in chosen), default=0)):
        for fn, repeat, _ in chosen:
            late = options.seconds and time.monotonic() - start > options.seconds
            if number >= (options.repeat or repeat) or (late and number > 0):
                continue
            if options.number not in (None, number):
                continue
            name = "%s#%d" % (fn.__name__, number)
            begin = time.monotonic()
            Process.started.clear()
            try:
                note = fn(Test(options, fn.__name__, number))
                print("ok    %-40s %5.1f s  %s" % (name, time.monotonic() - begin,
                                                   note or ""), flush=True)
            except Skip as e:
                print("skip  %-40s %5.1f s  %s" % (name, time.monotonic() - begin, e),
                      flush=True)
            except Exception as e:
                failed.append(name)
                dead = crashed(Process.started)
                late = isinstance(e, LATE) and not dead
                print("%-5s %-40s %5.1f s  %s" % ("LATE" if late else "FAIL", name,
                                                  time.monotonic() - begin, grave(e, dead)))
                traceback.print_exc(file=sys.stdout)
                sys.stdout.flush()
    if failed:
        print("%d failed: %s (seed %s)" % (len(failed), " ".join(failed), options.seed))
    return 1 if failed else 0
