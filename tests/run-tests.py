#!/usr/bin/env python3
# Runs every test there is, shows what happens, counts, and leaves nothing behind.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Order: unit tests (GLib, TAP), fuzz programs, black-box tests, the guest's client, guests
end to end. The last line is "N passed, N failed, N skipped"; the exit status is 1 if a
test failed or none ran. What differs from run to run follows from --seed.

--jobs programs run at a time, but never two of one file. An end-to-end case is a program
of its own; once each has run, they are repeated, at other random moments, while --minutes
last.

Lateness. A case that ran out of a time limit, and of nothing else, is LATE: the machine may
have been busy. It runs again alone, once, at the end of all; if it passes then, it has
passed, and is named. Whatever else goes wrong is a FAIL and stays one. A case says that it
was late by a line "LATE name", a unit program by the exit status 75; a program that does
not end in its time is late, too. If more than LATE_MAX are, something is wrong.
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
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
MARK = "COLO_TEST_RUN"
LAST_S = 10  # for processes that a finished test has left
RESULT = re.compile(r"(ok|FAIL|LATE|skip)\s+(.*)", re.IGNORECASE)
TAP = re.compile(r"(not ok|ok) \d+\s*-?\s*(\S*)(?:.*#\s*(SKIP|TODO)\s*(.*))?", re.IGNORECASE)
SHOWN_MAX = 20000  # bytes of a failure's output
LATE_STATUS = 75   # of a unit program
LATE_MAX = 20
ODD_TRIES = 3      # that must all pass after a failure that may be the machine's
ODD_MAX = 3


class Counts:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.failures = []
        self.forgiven = []
        self.unsteady = []

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

    serial = 0
    all = set()  # that run now
    interrupted = False

    def __init__(self, command, env, seconds):
        Running.serial += 1
        self.mark = "%d.%d" % (os.getpid(), Running.serial)
        self.deadline = time.monotonic() + seconds
        self.seconds = seconds
        self.timed_out = False
        self.popen = subprocess.Popen(command, env=dict(env, **{MARK: self.mark}), stdin=subprocess.DEVNULL,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                      start_new_session=True)
        self.status = None
        Running.all.add(self)

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
            elif left <= 0 or Running.interrupted:
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

    def why(self):
        if self.timed_out:
            return "not done in %d s" % self.seconds
        if self.status < 0:
            return "killed by signal %d (%s)" % (-self.status, signal.strsignal(-self.status))
        return "exit status %d" % self.status

    def signal(self, sig):
        try:
            os.killpg(self.popen.pid, sig)
        except ProcessLookupError:
            pass


def marked_processes(mark):
    """Processes of a run that left their group."""
    want = ("%s=%s" % (MARK, mark)).encode()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/environ" % pid, "rb") as f:
                if want in f.read().split(b"\0"):
                    yield int(pid)
        except OSError:
            pass


def sweep(run):
    """Processes and namespaces that a run has left; returns what they were."""
    left = []
    for pid in marked_processes(run.mark):
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
            # Namespaces carry the process that made them in their names.
            found = re.match(r"colo-(\d+)-\d+-[a-z]\b", line)
            if found and int(found.group(1)) == run.popen.pid:
                subprocess.run(["ip", "netns", "del", found.group(0)])
                left.append("namespace " + found.group(0))
    return left


class Task:
    """A program to run; @group: two of one do not run at a time."""

    def __init__(self, group, run, wanted=lambda: True):
        self.group = group
        self.run = run        # called with the number of the place that it runs in
        self.wanted = wanted  # asked right before


class Runner:
    def __init__(self, options):
        self.options = options
        self.counts = Counts()
        self.begin = time.monotonic()
        self.lock = threading.RLock()  # of what is printed and counted
        self.seen = set()              # names that counted
        self.late = {}                 # name: how to run it again
        self.odd = {}                  # the same, of what failed for no grave reason
        self.again = False             # whether this is the second try
        self.build = os.path.abspath(options.build)
        self.env = dict(os.environ, COLO_BUILD=self.build, COLO_SEED=options.seed,
                        PYTHONUNBUFFERED="1", G_DEBUG="fatal-criticals",
                        PYTHONDONTWRITEBYTECODE="1")
        # Debian's own tools, whatever else is first in PATH.
        self.env["PATH"] = "/usr/bin:/usr/sbin:/bin:/sbin:" + self.env.get("PATH", "")

    def wanted(self, name):
        return re.search(self.options.only, name)

    def result(self, outcome, name, seconds, note="", out=(), again=None, cases=1):
        """What came of a case or program; @again: the task that repeats it if it was late."""
        with self.lock:
            if name in self.seen:
                return  # a program that runs again, not this case's fault
            if outcome == "LATE" and (self.again or Running.interrupted):
                outcome = "FAIL"
            # A case that failed and whose note names nothing grave: a crash, wrong data.
            if outcome == "FAIL" and again and not (note or self.again or Running.interrupted):
                outcome = "ODD"
            print("%-5s %-44s %6.1f s  %s" % (outcome, name, seconds, note))
            if out:
                text = "\n".join("    " + line for line in out)
                if len(text) > SHOWN_MAX:
                    text = text[:SHOWN_MAX // 2] + "\n    [...]\n" + text[-SHOWN_MAX // 2:]
                print(text)
            sys.stdout.flush()
            if outcome in ("LATE", "ODD"):
                (self.late if outcome == "LATE" else self.odd)[name] = again
                return
            self.seen.add(name)
            for _ in range(cases):
                self.counts.add(outcome, name)

    def start(self, command, seconds, place):
        return Running(command, dict(self.env, COLO_TEST_PLACE=str(place)),
                       self.options.limit or seconds)

    def finish(self, run, name):
        """A test must clean up behind itself; what dies with its parent takes a moment."""
        end = time.monotonic() + LAST_S
        while any(marked_processes(run.mark)) and time.monotonic() < end:
            time.sleep(0.1)
        left = sweep(run)
        Running.all.discard(run)
        if left and not Running.interrupted:
            self.result("FAIL", name + " (left behind)", 0, ", ".join(left))

    def tap(self, path, name, seconds=300, place=0):
        """A GLib test program: one line, but every case counts."""
        begin = time.monotonic()
        run = self.start([path, "--tap", "-q"], seconds, place)
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
        took = time.monotonic() - begin
        died = run.timed_out or run.status != 0 and not bad or \
            plan is None or plan != good + bad + len(skipped)
        note = "%d cases" % good + (", %d failed" % bad if bad else "") + \
            (", " + run.why() if died else "")
        if run.status == 77 and not bad:
            self.result("skip", name, took, out[-1] if out else "")
        elif not bad and (run.timed_out or run.status == LATE_STATUS):
            self.result("LATE", name, took, note, out,
                        lambda: self.tap(path, name, seconds))
        else:
            self.counted(name, good)
            if bad or died:
                self.result("FAIL", name, took, note, out, cases=max(bad, 1))
            else:
                self.result("ok", name, took, note, cases=0)
            for reason in skipped:
                self.result("skip", "%s %s" % (name, reason.split(":")[0]), 0, reason)
        self.finish(run, name)

    def counted(self, name, passed):
        with self.lock:
            self.counts.passed += passed

    def script(self, command, name, seconds, place=0, one=None):
        """
        A program that prints "ok NAME", "FAIL NAME", "LATE NAME" or "skip NAME" for each
        case, and then what there is to say. @one gives the options that choose a case.
        """
        begin = last = time.monotonic()
        run = self.start(command, seconds, place)
        cases, bad, out, pending = 0, 0, [], None

        def show():
            if pending:
                outcome, title, took, note = pending
                again = None
                if outcome in ("LATE", "FAIL"):
                    def again():
                        self.script(command + one(title) if one else command, name, seconds)
                failed = outcome in ("FAIL", "LATE")
                self.result(outcome, "%s/%s" % (name, title), took, note,
                            out if failed else (), again)

        for line in run.lines():
            found = RESULT.match(line)
            if not found:
                if not line.startswith("seed "):
                    out.append(line)
                continue
            now = time.monotonic()
            outcome = {"ok": "ok", "fail": "FAIL", "late": "LATE",
                       "skip": "skip"}[found.group(1).lower()]
            # What comes before a failure may tell about it as well as what comes behind.
            before = out if not pending or pending[0] in ("ok", "skip") else []
            show()
            words = re.sub(r"\s+", " ", found.group(2)).strip()
            cases += 1
            bad += outcome in ("FAIL", "LATE")
            title, _, note = words.partition(" ")
            pending = outcome, title, now - last, re.sub(r"^[\d.]+ s ?", "", note)
            out, last = list(before), now
            if outcome in ("ok", "skip"):
                show()
                out, pending = [], None
        show()
        took = time.monotonic() - begin
        if run.timed_out:
            self.result("LATE", name, took, run.why(), out,
                        lambda: self.whole(command, name, seconds))
        elif run.status == 77:
            self.result("skip", name, took, out[-1] if out else "")
        elif (run.status != 0 and not bad) or cases == 0:
            self.result("FAIL", name, took, run.why() if run.status else "no case ran", out)
        self.finish(run, name)

    def whole(self, command, name, seconds):
        """A program that did not end, once more; it counts for itself, too."""
        failed = self.counts.failed
        self.script(command, name, seconds)
        if self.counts.failed == failed:
            self.result("ok", name, 0, "ended in its time")

    def pool(self, tasks):
        """All of them, --jobs at a time, in order but for those of a group that is busy."""
        tasks, busy, free = list(tasks), set(), threading.Condition(self.lock)
        broken = []

        def take():
            while tasks and not Running.interrupted and not broken:
                for task in tasks:
                    if task.group not in busy:
                        tasks.remove(task)
                        if not task.wanted():
                            break
                        busy.add(task.group)
                        return task
                else:
                    free.wait(0.5)
            return None

        def work(place):
            while True:
                with free:
                    task = take()
                if not task:
                    return
                try:
                    task.run(place)
                except BaseException as e:
                    broken.append(e)
                with free:
                    busy.discard(task.group)
                    free.notify_all()

        places = [threading.Thread(target=work, args=(n,)) for n in range(self.options.jobs)]
        for thread in places:
            thread.start()
        for thread in places:
            while thread.is_alive():  # in short waits: signals are for this thread
                thread.join(0.2)
        if broken:
            raise broken[0]

    def late_ones(self):
        """Each alone, and in peace; then it counts."""
        late, self.late, self.again = self.late, {}, True
        if len(late) > LATE_MAX:
            for name in late:
                self.result("FAIL", name, 0, "late, as %d others: too many" % (len(late) - 1))
            return
        if late:
            print("late, and now alone: " + ", ".join(late), flush=True)
        for name, again in late.items():
            if Running.interrupted:
                return
            failed = self.counts.failed
            again()
            if name not in self.seen:
                self.result("FAIL", name, 0, "did not run again")
            elif self.counts.failed == failed:
                self.counts.forgiven.append(name)

    def odd_ones(self):
        """Each alone, several times, all of which must pass; then it counts, once."""
        odd, self.odd = self.odd, {}
        if len(odd) > ODD_MAX:
            for name in odd:
                self.result("FAIL", name, 0, "failed, as %d others" % (len(odd) - 1))
            return
        if odd:
            print("failed, and now alone, %d times: %s" % (ODD_TRIES, ", ".join(odd)),
                  flush=True)
        for name, again in odd.items():
            for n in range(ODD_TRIES):
                if Running.interrupted:
                    return
                self.seen.discard(name)
                passed, failed = self.counts.passed, self.counts.failed
                again()
                if name not in self.seen:
                    self.result("FAIL", name, 0, "did not run again")
                if self.counts.failed > failed:
                    break
                if n < ODD_TRIES - 1:
                    self.counts.passed = passed
            else:
                self.counts.unsteady.append(name)

    # The kinds of tests

    def programs(self, folder, prefix):
        for path in sorted(glob.glob("%s/tests/%s/%s-*" % (self.build, folder, prefix))):
            if os.path.isfile(path) and os.access(path, os.X_OK):
                name = os.path.basename(path)[len(prefix) + 1:]
                if self.wanted("%s/%s" % (folder, name)):
                    yield path, "%s/%s" % (folder, name)

    def scripts(self, folder):
        for path in sorted(glob.glob("%s/%s/test_*.py" % (self.options.tests, folder))):
            name = "%s/%s" % (folder, os.path.basename(path)[5:-3])
            if self.wanted(name):
                yield path, name

    def unit(self):
        for path, name in self.programs("unit", "test"):
            yield Task(name, lambda place, p=path, n=name: self.tap(p, n, place=place))

    def program(self, command, name, seconds, one=None, wanted=lambda: True, group=None):
        return Task(group or name,
                    lambda place: self.script(command, name, seconds, place, one), wanted)

    def fuzz(self):
        seconds = "1" if self.options.quick else "5"
        for path, name in self.programs("fuzz", "fuzz"):
            yield self.program([path, "--seed", self.options.seed, "--seconds", seconds],
                               name, 120)

    def qtest(self):
        # A little order: long files first, so that they do not end alone.
        for path, name in sorted(self.scripts("qtest"),
                                 key=lambda t: -os.path.getsize(t[0])):
            yield self.program([sys.executable, path, "--seed", self.options.seed], name, 1200,
                               lambda title: ["-k", "^%s$" % re.escape(title)])

    def guest(self):
        for path, name in self.scripts("guest"):
            yield self.program([sys.executable, path, self.build + "/tests/guest/colo-client"],
                               name, 300)

    def cases(self, path):
        """(name, runs) of what a file of end-to-end cases would run; with its complaint."""
        done = subprocess.run([sys.executable, path, "--list"], env=self.env, text=True,
                              capture_output=True, timeout=60)
        found = re.findall(r"^(\S+) +x(\d+)$", done.stdout, re.MULTILINE)
        return [(name, int(n)) for name, n in found], done.stdout

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
            yield self.program([sys.executable, path, self.build + "/tools/colo-switch"],
                               name, 60)
        todo = [t for t in todo if t not in switch]
        why = self.no_namespaces() if todo else None
        if why:
            for _, name in todo:
                self.result("skip", name, 0, why)
            return
        runs = []
        for path, name in todo:
            cases, said = self.cases(path)
            for title, repeat in cases:
                runs += [(n, path, name, title)
                         for n in range(1 if self.options.quick else repeat)]
            skipped = re.findall(r"^skip +(.*)", said, re.MULTILINE)
            for words in skipped:
                self.result("skip", name, 0, words)
            if not cases and not skipped:
                self.result("FAIL", name, 0, "no case is listed", said.splitlines())
        # Every case once, files by turns, those with most cases first; then again.
        files = {}
        for run in runs:
            files.setdefault((run[0], run[1]), []).append(run)
        for key in sorted(files, key=lambda k: k[0]):
            n = len(files[key])
            files[key] = [((i + 0.5) / n, run) for i, run in enumerate(files[key])]
        for number in sorted({run[0] for run in runs}):
            row = sorted((place, run) for key, part in files.items() if key[0] == number
                         for place, run in part)
            for _, (_, path, name, title) in row:
                command = [sys.executable, path, "--seed", self.options.seed,
                           "-k", "^%s$" % re.escape(title), "--number", str(number)]
                yield self.program(command, name, 900, lambda _: [],
                                   self.time_left if number else lambda: True, path)

    def time_left(self):
        return time.monotonic() < self.begin + self.options.minutes * 60

    def run(self):
        print("seed %s" % self.options.seed, flush=True)
        self.pool(task for part in (self.unit, self.fuzz, self.qtest, self.guest, self.e2e)
                  for task in part())
        self.late_ones()
        self.odd_ones()
        c = self.counts
        if c.forgiven:
            print("late once, passed alone: " + ", ".join(c.forgiven))
        if c.unsteady:
            print("UNSTEADY, failed once and passed alone %d times: %s" % (
                ODD_TRIES, ", ".join(c.unsteady)))
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
                        help="begin no repetition of an end-to-end case after so long")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1),
                        help="programs at a time (%(default)s)")
    parser.add_argument("--limit", type=int, help="seconds for a program, whatever it is")
    parser.add_argument("--tests", default=HERE, help="folder of the tests")
    options = parser.parse_args()
    if not os.path.exists(options.build + "/build.ninja"):
        sys.exit("%s is no build folder: ./run build makes one" % options.build)
    runner = Runner(options)

    def on_signal(number, _):
        if not Running.interrupted:
            Running.interrupted = True
            raise KeyboardInterrupt
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    counts = runner.counts
    try:
        runner.run()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        counts.add("FAIL", "interrupted")
    finally:
        Running.interrupted = True
        # The threads see it, and end their programs.
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join()
        for run in list(Running.all):
            run.timed_out = True
            run.end()
            sweep(run)
    print("%d passed, %d failed, %d skipped" % (counts.passed, counts.failed,
                                                counts.skipped), flush=True)
    return 1 if counts.failed or not counts.passed else 0


if __name__ == "__main__":
    sys.exit(main())
