# Processes and QMP for the end-to-end tests.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import ctypes
import json
import os
import queue
import re
import signal
import socket
import subprocess
import threading
import time

_libc = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


class Late(AssertionError):
    """A time limit ran out, and nothing else is known to be wrong: the machine may have been
    busy. tests/run-tests.py gives such a case one more try, alone. What is wrong whatever
    the time (a byte, a state, too early) is an AssertionError of another kind."""


class QMPError(Exception):
    def __init__(self, text, cls=None):
        super().__init__(text)
        self.cls = cls  # QMP's error class, where a command failed


class LateQMP(QMPError, Late):
    """A wait for a QMP answer, event or state that ran out."""


# What a case may raise when it is late; subprocess and socket have their own.
LATE = (Late, subprocess.TimeoutExpired, TimeoutError)


# Data of a client, a disk or memory, or who spoke: no repetition makes that good.
GRAVE = re.compile(r"two voices|sp[eo]ke?|silent|wrong|broken|lost|client|(console|image) of host|"
                   r"guest: |too early|before its", re.IGNORECASE)


def grave(error, dead):
    """What tests/run-tests.py must never take for the machine's doing; @dead: of crashed()."""
    return ", ".join(dead + ["WRONG"] * bool(GRAVE.search(str(error))))


def in_time(took, limit, what):
    """@took seconds are to be fewer than @limit; of what, for the message."""
    if took >= limit:
        raise Late("%s took %.3f s, and is to take less than %s s" % (what, took, limit))


def within(end, what):
    """The moment @end, of time.monotonic(), is not over; else @what, or what it returns."""
    if time.monotonic() >= end:
        raise Late(what() if callable(what) else what)


def listens(path, popen, seconds=20):
    """Wait until the server @popen accepts at the socket @path: its file is there earlier."""
    end = time.monotonic() + seconds
    while True:
        with socket.socket(socket.AF_UNIX) as s:
            try:
                s.connect(path)
                return
            except OSError:
                pass
        assert popen.poll() is None, "%s does not start" % popen.args[0]
        within(end, "%s does not listen" % popen.args[0])
        time.sleep(0.02)


def crashed(processes):
    """Names of those that ended by a signal of their own making: nobody is late then."""
    own = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE,
           signal.SIGTRAP, signal.SIGSYS)
    return ["%s: signal %d" % (p.name, -p.popen.returncode) for p in processes
            if p.popen.poll() is not None and -p.popen.returncode in own]


def threads_that_run(pid):
    """Those threads of a process that are not stopped, as "id (name) state"."""
    running = []
    for task in os.listdir("/proc/%d/task" % pid):
        try:
            with open("/proc/%d/task/%s/stat" % (pid, task)) as f:
                head, _, rest = f.read().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if rest.split()[0] not in "TtZX":
            running.append("%s) %s" % (head, rest.split()[0]))
    return running


def freeze(pid, timeout=20):
    """
    SIGSTOP, and wait until all of its threads stand. The signal wakes but one thread, which
    then stops the others: until it is scheduled, which a busy machine may take a while for,
    they run on, and may answer what the test asks next.
    """
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + timeout
    while True:
        running = threads_that_run(pid)
        if not running:
            return
        if time.monotonic() > end:
            raise Late("SIGSTOP, and still there runs " + ", ".join(running))
        time.sleep(0.002)


class Process:
    """A child that dies with us, with its output in a file."""

    started = []  # of this case

    def __init__(self, name, command, log, stdin=subprocess.DEVNULL):
        self.name = name
        self.command = command
        self.log = log
        with open(log, "ab") as out:
            self.popen = subprocess.Popen(
                command, stdin=stdin, stdout=out, stderr=subprocess.STDOUT,
                preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        self.pid = self.popen.pid
        Process.started.append(self)

    def alive(self):
        return self.popen.poll() is None

    def children(self):
        """Process ids of its children, e.g. the emulator of a qemu-colo."""
        found = []
        for task in os.listdir("/proc/%d/task" % self.pid):
            try:
                with open("/proc/%d/task/%s/children" % (self.pid, task)) as f:
                    found += [int(pid) for pid in f.read().split()]
            except FileNotFoundError:
                pass
        return found

    def emulator_pid(self):
        """The process that runs the guest: itself, or a child called qemu-system-*."""
        for pid in self.children():
            try:
                if "qemu-system" in os.readlink("/proc/%d/exe" % pid):
                    return pid
            except OSError:
                pass
        return self.pid

    def send(self, sig):
        if self.alive():
            os.kill(self.pid, sig)

    def freeze(self):
        """Stop it as a whole, without its children, until SIGCONT."""
        if self.alive():
            freeze(self.pid)

    def kill(self, sig=signal.SIGKILL, timeout=20):
        self.send(sig)
        return self.wait(timeout)

    def wait(self, timeout=60):
        return self.popen.wait(timeout)

    def stop(self, timeout=5):
        """End it for good, politely first."""
        if self.alive():
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()

    def output(self):
        with open(self.log, errors="replace") as f:
            return f.read()


class QMP:
    """
    A QMP session on a unix socket. A thread reads; answers are matched by id, events are
    kept in .events as (time.monotonic(), event) and never lost between two waits.
    """

    def __init__(self, path, process=None, timeout=90):
        self.path = path
        self.events = []
        self.closed = False
        self._answers = {}
        self._next = 0
        self._cond = threading.Condition()
        self._send_lock = threading.Lock()
        self._greeting = queue.Queue()
        end = time.monotonic() + timeout
        while True:
            self.sock = socket.socket(socket.AF_UNIX)
            try:
                self.sock.connect(path)
                break
            except OSError as e:
                self.sock.close()
                if process and not process.alive():
                    raise QMPError("%s ended with status %s: %s" % (
                        process.name, process.popen.returncode,
                        process.output().strip()[-2000:])) from None
                if time.monotonic() > end:
                    raise LateQMP("%s: %s" % (path, e)) from None
                time.sleep(0.02)
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.greeting = self._greeting.get(timeout=max(1, end - time.monotonic()))
        except queue.Empty:
            raise LateQMP("%s: no greeting" % path) from None
        if self.greeting is None:
            raise QMPError("%s: closed before the greeting" % path)
        self.cmd("qmp_capabilities")

    def _read(self):
        try:
            for line in self.sock.makefile("rb"):
                msg = json.loads(line)
                with self._cond:
                    if "QMP" in msg:
                        self._greeting.put(msg)
                    elif "event" in msg:
                        self.events.append((time.monotonic(), msg))
                    else:
                        self._answers[msg.get("id")] = msg
                    self._cond.notify_all()
        except (OSError, ValueError):
            pass
        with self._cond:
            self.closed = True
            self._greeting.put(None)
            self._cond.notify_all()

    def post(self, name, arguments=None):
        """Send a command; its answer is to be fetched with result()."""
        with self._send_lock:
            self._next += 1
            ident = "e2e-%d" % self._next
            msg = {"execute": name, "id": ident}
            if arguments:
                msg["arguments"] = arguments
            try:
                self.sock.sendall(json.dumps(msg).encode() + b"\n")
            except OSError as e:
                raise QMPError("%s: %s" % (name, e)) from None
        return ident, name

    def result(self, posted, timeout=90):
        ident, name = posted
        with self._cond:
            if not self._cond.wait_for(lambda: ident in self._answers or self.closed,
                                       timeout):
                raise LateQMP("%s: no answer in %s s" % (name, timeout))
            if ident not in self._answers:
                raise QMPError("%s: connection closed" % name)
            answer = self._answers.pop(ident)
        if "error" in answer:
            raise QMPError("%s: %s" % (name, answer["error"].get("desc")),
                           answer["error"].get("class"))
        return answer.get("return")

    def cmd(self, name, arguments=None, timeout=90):
        return self.result(self.post(name, arguments), timeout)

    def hmp(self, line, timeout=90):
        """An HMP command; whatever it prints is an error, as with drive_add and drive_del."""
        text = self.cmd("human-monitor-command", {"command-line": line}, timeout)
        if text.strip() not in ("", "OK"):
            raise QMPError("%s: %s" % (line, text.strip()))

    def wait_event(self, name, timeout=90, after=0.0, match=lambda data: True):
        """(time, event) of the first @name that came after the moment @after."""
        def find():
            return next(((t, e) for t, e in self.events
                         if e["event"] == name and t >= after and match(e.get("data", {}))),
                        None)
        with self._cond:
            self._cond.wait_for(lambda: find() or self.closed, timeout)
            found = find()
        if not found:
            if self.closed:
                raise QMPError("no event %s, connection closed" % name)
            raise LateQMP("no event %s in %s s" % (name, timeout))
        return found

    def wait_for(self, what, condition, timeout=90, step=0.05):
        """Until @condition(self) is true; its value."""
        end = time.monotonic() + timeout
        while True:
            value = condition(self)
            if value:
                return value
            if time.monotonic() > end:
                raise LateQMP("not in %s s: %s" % (timeout, what))
            time.sleep(step)

    def close(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()
