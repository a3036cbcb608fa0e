#!/usr/bin/env python3
# Runs every test there is, shows what happens, counts, and leaves nothing behind.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Order: unit tests (GLib, TAP), fuzz programs, black-box tests, the guest's client, guests
end to end. The last line is "N passed, N failed, N skipped"; the exit status is 1 if a
test failed or none ran. What differs from run to run follows from --seed.

The end-to-end tests repeat their cases at random moments; every case runs once whatever
it takes, and repetitions go on while --minutes last.
"""

import argparse
import glob
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
MARK = "COLO_TEST_RUN"
RESULT = re.compile(r"(ok|FAIL|skip)\s+(.*)", re.IGNORECASE)
TAP = re.compile(r"(not ok|ok) \d+\s*-?\s*(\S*)(?:.*#\s*(SKIP|TODO)\s*(.*))?", re.IGNORECASE)
SHOWN_MAX = 20000  # bytes of a failure's output


class Counts:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.failures = []

    def add(self, outcome, name):
        if outcome == "ok":
            self.passed += 1
        elif outcome == "skip":
            self.skipped += 1
        else:
            self.failed += 1
            self.failures.append(name)


class Running:
    """A test program in a process group of its own, its output as lines as they come."""

    pids = []  # of all programs: namespaces carry them in their names

    def __init__(self, command, env, seconds):
        self.deadline = time.monotonic() + seconds
        self.seconds = seconds
        self.timed_out = False
        self.popen = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                      start_new_session=True)
        Running.pids.append(self.popen.pid)
        self.status = None

    def lines(self):
        fd, rest = self.popen.stdout.fileno(), b""
        os.set_blocking(fd, False)
        while True:
            left = self.deadline - time.monotonic()
            # The program's end ends it, too: a stray child may hold the pipe open.
            ready = select.select([fd], [], [], max(0, min(left, 0.2)))[0]
            if ready:
                data = os.read(fd, 65536)
                if not data:
                    break
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace")
            elif self.popen.poll() is not None:
                break
            elif left <= 0:
                self.timed_out = True
                break
        if rest:
            yield rest.decode(errors="replace")
        self.end()

    def end(self):
        """Politely first, so that tests can remove what they made; then for good."""
        if self.status is not None:
            return
        if not self.timed_out:
            try:
                self.status = self.popen.wait(10)
            except subprocess.TimeoutExpired:
                self.timed_out = True
        if self.status is None:
            self.signal(signal.SIGTERM)
            try:
                self.popen.wait(15)
            except subprocess.TimeoutExpired:
                pass
        self.signal(signal.SIGKILL)
        self.status = self.popen.wait()

    def signal(self, sig):
        try:
            os.killpg(self.popen.pid, sig)
        except ProcessLookupError:
            pass


def marked_processes():
    """Processes of this run that left their group."""
    want = ("%s=%d" % (MARK, os.getpid())).encode()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/environ" % pid, "rb") as f:
                if want in f.read().split(b"\0"):
                    yield int(pid)
        except OSError:
            pass


def sweep():
    """Processes and namespaces that are left; returns what they were."""
    left = []
    for pid in marked_processes():
        try:
            with open("/proc/%d/cmdline" % pid, "rb") as f:
                words = f.read().split(b"\0")
            os.kill(pid, signal.SIGKILL)
            left.append("process %d (%s)" % (pid, words[0].decode(errors="replace")))
        except OSError:
            pass
    if os.geteuid() == 0:
        done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
        for line in done.stdout.splitlines():
            found = re.match(r"colo-(\d+)-\d+-[a-z]\b", line)
            if found and int(found.group(1)) in Running.pids:
                subprocess.run(["ip", "netns", "del", found.group(0)])
                left.append("namespace " + found.group(0))
    return left


class Runner:
    def __init__(self, options):
        self.options = options
        self.counts = Counts()
        self.begin = time.monotonic()
        self.current = None
        self.build = os.path.abspath(options.build)
        self.env = dict(os.environ, COLO_BUILD=self.build, COLO_SEED=options.seed,
                        PYTHONUNBUFFERED="1", G_DEBUG="fatal-criticals",
                        PYTHONDONTWRITEBYTECODE="1", **{MARK: str(os.getpid())})
        # Debian's own tools, whatever else is first in PATH.
        self.env["PATH"] = "/usr/bin:/usr/sbin:/bin:/sbin:" + self.env.get("PATH", "")

    def wanted(self, name):
        return re.search(self.options.only, name)

    def show(self, outcome, name, seconds, note=""):
        print("%-5s %-44s %6.1f s  %s" % (outcome, name, seconds, note), flush=True)

    def result(self, outcome, name, seconds, note=""):
        self.counts.add(outcome, name)
        self.show(outcome, name, seconds, note)

    def show_output(self, lines):
        text = "\n".join("    " + line for line in lines)
        if len(text) > SHOWN_MAX:
            text = text[:SHOWN_MAX // 2] + "\n    [...]\n" + text[-SHOWN_MAX // 2:]
        print(text, flush=True)

    def start(self, command, seconds):
        self.current = Running(command, self.env, seconds)
        return self.current

    def finish(self, name):
        """A test must clean up behind itself."""
        self.current = None
        left = sweep()
        if left:
            self.result("FAIL", name + " (left behind)", 0, ", ".join(left))

    def why(self, run):
        if run.timed_out:
            return "not done in %d s" % run.seconds
        if run.status < 0:
            return "killed by signal %d (%s)" % (-run.status, signal.strsignal(-run.status))
        return "exit status %d" % run.status

    def tap(self, path, name, seconds=120):
        """A GLib test program: one line, but every case counts."""
        begin = time.monotonic()
        run = self.start([path, "--tap", "-q"], seconds)
        out, good, bad, skipped, plan = [], 0, 0, [], None
        for line in run.lines():
            out.append(line)
            found = TAP.match(line)
            if found and (found.group(3) or "").upper() == "SKIP":
                skipped.append("%s: %s" % (found.group(2), found.group(4)))
            elif found:
                good += found.group(1) == "ok"
                bad += found.group(1) != "ok"
            elif re.match(r"1\.\.\d+$", line):
                plan = int(line[3:])
        died = run.timed_out or run.status != 0 and not bad or \
            plan is None or plan != good + bad + len(skipped)
        if run.status == 77 and not bad:
            self.result("skip", name, time.monotonic() - begin, out[-1] if out else "")
        else:
            note = "%d cases" % good + (", %d failed" % bad if bad else "") + \
                (", " + self.why(run) if died else "")
            failed = bad or died
            self.show("FAIL" if failed else "ok", name, time.monotonic() - begin, note)
            for reason in skipped:
                self.result("skip", name, 0, reason)
            self.counts.passed += good
            for _ in range(max(bad, 1) if failed else 0):
                self.counts.add("FAIL", name)
            if failed:
                self.show_output(out)
        self.finish(name)

    def script(self, command, name, seconds):
        """A program that prints "ok NAME", "FAIL NAME" or "skip NAME" for each case."""
        begin = last = time.monotonic()
        run = self.start(command, seconds)
        cases, bad, failed, out, tail = 0, 0, False, [], []
        for line in run.lines():
            found = RESULT.match(line)
            if not found:
                out.append(line)
                if failed and not line.startswith("seed "):
                    print("    " + line, flush=True)
                continue
            now = time.monotonic()
            outcome = {"ok": "ok", "fail": "FAIL", "skip": "skip"}[found.group(1).lower()]
            words = re.sub(r"\s+", " ", found.group(2)).strip()
            cases += 1
            failed = outcome == "FAIL"
            bad += failed
            tail, out = (out if failed else []), []
            title, _, note = words.partition(" ")
            note = re.sub(r"^[\d.]+ s ?", "", note)
            self.result(outcome, "%s/%s" % (name, title), now - last, note)
            last = now
            if failed and tail:
                self.show_output(tail)
        if run.status == 77:
            self.result("skip", name, time.monotonic() - begin, out[-1] if out else "")
        elif run.timed_out or (run.status != 0 and not bad) or cases == 0:
            self.result("FAIL", name, time.monotonic() - begin,
                        self.why(run) if run.status or run.timed_out else "no case ran")
            self.show_output(out)
        self.finish(name)

    # The kinds of tests

    def programs(self, folder, prefix):
        for path in sorted(glob.glob("%s/tests/%s/%s-*" % (self.build, folder, prefix))):
            if os.path.isfile(path) and os.access(path, os.X_OK):
                name = os.path.basename(path)[len(prefix) + 1:]
                if self.wanted("%s/%s" % (folder, name)):
                    yield path, "%s/%s" % (folder, name)

    def scripts(self, folder):
        for path in sorted(glob.glob("%s/%s/test_*.py" % (HERE, folder))):
            name = "%s/%s" % (folder, os.path.basename(path)[5:-3])
            if self.wanted(name):
                yield path, name

    def unit(self):
        for path, name in self.programs("unit", "test"):
            self.tap(path, name)

    def fuzz(self):
        seconds = "1" if self.options.quick else "5"
        for path, name in self.programs("fuzz", "fuzz"):
            self.script([path, "--seed", self.options.seed, "--seconds", seconds], name, 60)

    def qtest(self):
        for path, name in self.scripts("qtest"):
            self.script([sys.executable, path, "--seed", self.options.seed], name, 420)

    def guest(self):
        for path, name in self.scripts("guest"):
            self.script([sys.executable, path, self.build + "/tests/guest/colo-client"],
                        name, 300)

    def cases(self, path):
        """Runs that a file of end-to-end cases would make, or 1 where it has no list."""
        done = subprocess.run([sys.executable, path, "--list"], env=self.env, text=True,
                              capture_output=True, timeout=60)
        return sum(int(n) for n in re.findall(r" x(\d+)$", done.stdout, re.MULTILINE)) or 1

    @staticmethod
    def no_namespaces():
        """Why guests on hosts of their own cannot be had here, or None."""
        if os.geteuid() != 0:
            return "network namespaces need root"
        name = "colo-probe-%d" % os.getpid()
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
        used = made.returncode == 0 and subprocess.run(
            ["ip", "netns", "exec", name, "true"], capture_output=True, text=True)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
        done = used or made
        return None if done.returncode == 0 else "ip netns: " + done.stderr.strip()

    def e2e(self):
        todo = list(self.scripts("e2e"))
        switch = [t for t in todo if t[1] == "e2e/switch"]
        for path, name in switch:
            self.script([sys.executable, path, self.build + "/tools/colo-switch"], name, 60)
        todo = [t for t in todo if t not in switch]
        why = self.no_namespaces() if todo else None
        if why:
            for _, name in todo:
                self.result("skip", name, 0, why)
            return
        weight = {path: self.cases(path) for path, _ in todo}
        for path, name in todo:
            left = self.begin + self.options.minutes * 60 - time.monotonic()
            share = max(30, left * weight[path] / sum(weight.values()))
            command = [sys.executable, path, "--seed", self.options.seed, "--for",
                       str(int(share))]
            if self.options.quick:
                command += ["--repeat", "1"]
            # Each case's first run is not bounded by its share.
            self.script(command, name, share + 900)
            del weight[path]

    def run(self):
        print("seed %s" % self.options.seed, flush=True)
        for part in (self.unit, self.fuzz, self.qtest, self.guest, self.e2e):
            part()
        c = self.counts
        if c.failures:
            print("failed: %s\nrepeat with --seed %s --only NAME" % (
                ", ".join(dict.fromkeys(c.failures)), self.options.seed))
        return c


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--build", default="build", help="build folder")
    parser.add_argument("--only", default="", metavar="PATTERN",
                        help="only tests like unit/packet, qtest/, e2e/failover")
    parser.add_argument("--seed", default=str(secrets.randbelow(10**9)))
    parser.add_argument("--quick", action="store_true", help="each case once")
    parser.add_argument("--minutes", type=float, default=12,
                        help="stop to repeat end-to-end cases after so long")
    options = parser.parse_args()
    if not os.path.exists(options.build + "/build.ninja"):
        sys.exit("%s is no build folder: ./run build makes one" % options.build)
    runner = Runner(options)
    ended = []

    def on_signal(number, _):
        if not ended:
            ended.append(number)
            raise KeyboardInterrupt
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGHUP, on_signal)
    counts = runner.counts
    try:
        runner.run()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        counts.add("FAIL", "interrupted")
        if runner.current:
            runner.current.timed_out = True
            runner.current.end()
    finally:
        sweep()
    print("%d passed, %d failed, %d skipped" % (counts.passed, counts.failed,
                                                counts.skipped), flush=True)
    return 1 if counts.failed or not counts.passed else 0


if __name__ == "__main__":
    sys.exit(main())
