# Black-box tests of the built qemu-colo: harness.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Cases are functions of one argument, a Bed, which knows the program, has a directory, and
ends whatever was started in it. No guest system is needed: the firmware, or a few bytes
of option ROM, is what runs (GUEST_ROM: it counts, and obeys two keys).

Machines are small and see no network but 127.0.0.1; a pair is protected within a second.
"""

import argparse
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "e2e"))

from e2e_proc import (LATE, QMP, Late, Process, QMPError, crashed, freeze,  # noqa: E402
                      grave, in_time, listens, within)

# A peer that a busy machine keeps waiting is not dead; a test of that gives its own time.
COLO = ("-colo", "checkpoint-events=on,peer-timeout=4000")
MACHINE = ["-accel", "tcg", "-nodefaults", "-display", "none", "-m", "32"]
COUNTER = 0x8000  # where GUEST_ROM counts


class Skip(Exception):
    """A case that cannot run here; its text says why."""


def guest_rom():
    """
    An option ROM: counts at COUNTER for ever; key "s" powers off, "z" sleeps, "r" resets, "p"
    panics (-device pvpanic).

        sti; xor ax,ax; mov ds,ax
    l:  inc dword [COUNTER]; mov ah,1; int 0x16; jz l
        xor ah,ah; int 0x16; mov dx,0x604                  (PM1a_CNT of "pc")
        cmp al,'r'; je r; cmp al,'p'; je p; cmp al,'z'; je z; cmp al,'s'; jne l
        mov ax,0x2000; out dx,ax; jmp $
    r:  mov al,0xfe; out 0x64,al; jmp $
    p:  mov dx,0x505; mov al,1; out dx,al; jmp $
    z:  mov ax,0x2400; out dx,ax; jmp l
    """
    code = bytes.fromhex("fb31c08ed8" "66ff06") + struct.pack("<H", COUNTER)
    code += bytes.fromhex("b401cd16" "74f5" "30e4cd16" "ba0406" "3c727412" "3c707414" "3c7a7418" "3c7375de"
                          "b80020" "ef" "ebfe" "b0fe" "e664" "ebfe" "ba0505" "b001" "ee" "ebfe"
                          "b80024" "ef" "ebc4")
    rom = bytearray(b"\x55\xaa\x01" + code)
    rom += bytes(512 - len(rom))
    rom[-1] = -sum(rom) & 0xff
    return bytes(rom)


PLACE = int(os.environ.get("COLO_TEST_PLACE", "") or random.randrange(4)) % 4
FIRST_PORT, PORTS = 10000 + 5000 * PLACE, 5000  # of this program, where others run beside it
_ports = None


def free_port():
    """
    A port that nobody listens on now. Not one that connect() gives to others until it is
    used, and not one of a test that runs beside this one: those are in other places.
    """
    global _ports
    if not _ports:
        _ports = itertools.cycle(range(FIRST_PORT, FIRST_PORT + PORTS))
        for _ in range(os.getpid() % PORTS):
            next(_ports)
    while True:
        port = next(_ports)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


# The wire between two qemu-colo: migration/channel.c

HELLO, HELLO_OK, REFUSE, BEGIN, RAM = 1, 2, 3, 4, 5
PING = 14


def message(kind, body=b"", version=2, magic=0x51434c4f, length=None):
    head = struct.pack(">IHHII", magic, kind, version,
                       len(body) if length is None else length, zlib.crc32(body))
    return head + struct.pack(">I", zlib.crc32(head)) + body


def read_message(sock):
    """(type, body) of the next message, or None at the end."""
    def exactly(n):
        data = b""
        while len(data) < n:
            more = sock.recv(n - len(data))
            if not more:
                return None
            data += more
        return data
    head = exactly(20)
    if head is None:
        return None
    kind, _, length = struct.unpack(">HHI", head[4:12])
    return kind, exactly(length) if length else b""


class Host:
    """A running qemu-colo and a QMP session to it."""

    def __init__(self, bed, name, args, connect=True, machine=None, program=None):
        self.name = name
        self.path = "%s/%s.qmp" % (bed.dir, name)
        self.log = "%s/%s.log" % (bed.dir, name)
        # Stock QEMU's own complaints to GLib are not ours to die of.
        first = ["env", "-u", "G_DEBUG", program] if program else [bed.program]
        command = [*first, *(MACHINE if machine is None else machine), "-qmp",
                   "unix:%s,server=on,wait=off" % self.path, *args]
        self.process = Process(name, command, self.log)
        self.qmp = None
        bed.hosts.append(self)
        if connect:
            self.qmp = QMP(self.path, self.process)

    def cmd(self, *args, **kw):
        return self.qmp.cmd(*args, **kw)

    def error(self, name, arguments=None):
        """The error text of a command that must fail."""
        try:
            got = self.cmd(name, arguments)
        except QMPError as e:
            return str(e)
        raise AssertionError("%s succeeded: %s" % (name, got))

    def x_colo(self, on=True):
        self.cmd("migrate-set-capabilities",
                 {"capabilities": [{"capability": "x-colo", "state": on}]})

    def status(self):
        return self.cmd("query-colo-status")

    def run_state(self):
        return self.cmd("query-status")["status"]

    def wait(self, what, condition, timeout=60):
        return self.qmp.wait_for("%s: %s" % (self.name, what), lambda q: condition(), timeout)

    def wait_state(self, state, timeout=60):
        try:
            self.wait("state " + state, lambda: self.status()["state"] == state, timeout)
        except QMPError as e:
            kind = Late if isinstance(e, Late) else AssertionError
            raise kind("%s; it is %s; %s" % (e, self.status(), self.output()))

    def count(self):
        """What GUEST_ROM has counted to."""
        text = self.cmd("human-monitor-command",
                        {"command-line": "xp /1wx 0x%x" % COUNTER})
        return int(text.split(":")[1], 16)

    def runs(self):
        """Whether the guest moves (GUEST_ROM)."""
        before = self.count()
        end = time.monotonic() + 1
        while time.monotonic() < end:
            time.sleep(0.05)
            if self.count() != before:
                return True
        return False

    def events(self, name):
        return [e for _, e in list(self.qmp.events) if e["event"] == name]

    def key(self, key):
        self.cmd("send-key", {"keys": [{"type": "qcode", "data": key}]})

    def output(self):
        return self.process.output().strip()

    def ended(self, timeout=60):
        """Its exit status once it ended by itself; the emulator must go, too, and what frees the
        memory of a process that died (util/mm-keeper.c)."""
        children = self.process.children() if self.process.alive() else []
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Late("%s did not end: %s" % (self.name, self.output())) from None
        wait_gone(children, "left behind by " + self.name, timeout)
        return status

    def close(self):
        if self.qmp:
            self.qmp.close()
        self.process.stop()


def is_running(pid):
    try:
        with open("/proc/%d/stat" % pid) as f:
            return f.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_gone(pids, what, timeout=60):
    """Until none of these processes runs; @what it is that runs on, for the message."""
    end = time.monotonic() + timeout
    for pid in pids:
        while is_running(pid):
            within(end, "process %d: %s" % (pid, what))
            time.sleep(0.01)


class Bed:
    def __init__(self, program, name, seed):
        self.program = program
        self.rng = random.Random("%s/%s" % (seed, name))
        self.dir = tempfile.mkdtemp(prefix="colo-qtest-")
        self.hosts = []
        self.closers = []
        with open(self.dir + "/guest.rom", "wb") as f:
            f.write(guest_rom())
        self.rom = ["-option-rom", self.dir + "/guest.rom"]
        self.port = free_port()

    def close(self):
        for thing in self.hosts + self.closers:
            thing.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def outputs(self):
        return "".join("\n--- %s\n%s" % (h.name, h.output()) for h in self.hosts)

    def image(self, name, mib=1, fmt="raw"):
        path = "%s/%s" % (self.dir, name)
        subprocess.run(["qemu-img", "create", "-q", "-f", fmt, path, "%dM" % mib], check=True)
        return path

    def host(self, name, *args, **kw):
        return Host(self, name, list(args), **kw)

    def primary(self, *args, **kw):
        return self.host("primary", *COLO, *args, **kw)

    def secondary(self, *args, **kw):
        return self.host("secondary", *COLO, "-incoming",
                         "tcp:127.0.0.1:%d" % self.port, *args, **kw)

    def migrate(self, primary, port=None):
        primary.x_colo()
        primary.cmd("migrate", {"uri": "tcp:127.0.0.1:%d" % (port or self.port)})

    def protect(self, primary, secondary):
        secondary.x_colo()
        self.migrate(primary)
        primary.wait_state("protected")
        secondary.wait_state("protected")

    def pair(self, *args, guest=True):
        """A protected pair; with GUEST_ROM unless told otherwise."""
        args = (self.rom if guest else []) + list(args)
        primary, secondary = self.primary(*args), self.secondary(*args)
        if guest:
            primary.wait("guest counts", primary.runs)
        self.protect(primary, secondary)
        return primary, secondary

    def failed(self, primary, *words, timeout=60):
        """Wait until the migration has failed, for a reason that has @words."""
        def over():
            info = primary.cmd("query-migrate")
            return info if info.get("status") in ("failed", "cancelled") else None
        info = primary.wait("migration failed", over, timeout)
        assert info["status"] == "failed", info
        has_words(info.get("error-desc", ""), *words)
        return info

    def listen(self):
        """A listening socket that is not qemu-colo's."""
        s = socket.socket()
        s.bind(("127.0.0.1", 0))
        s.listen(4)
        s.settimeout(20)
        self.closers.append(s)
        return s, s.getsockname()[1]

    def dial(self, port=None):
        s = socket.create_connection(("127.0.0.1", port or self.port), 10)
        self.closers.append(s)
        return s


def has_words(text, *words):
    for word in words:
        assert re.search(word, text, re.IGNORECASE), "no %r in: %s" % (word, text)


CASES = []


def case(fn):
    CASES.append(fn)
    return fn


def find_program():
    for folder in (os.environ.get("COLO_BUILD", ""), HERE + "/../../build"):
        path = os.path.join(folder, "system", "qemu-colo")
        if folder and os.access(path, os.X_OK):
            return os.path.abspath(path)
    return shutil.which("qemu-colo") or sys.exit("qemu-colo not found: set COLO_BUILD")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", help="path of qemu-colo")
    parser.add_argument("--seed", default=str(int(time.time())))
    parser.add_argument("-k", default="", help="only cases whose name matches")
    options = parser.parse_args()
    program = options.program or find_program()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print("seed %s" % options.seed)
    failed = 0
    for fn in CASES:
        name = fn.__name__
        if not re.search(options.k, name):
            continue
        begin = time.monotonic()
        Process.started.clear()
        bed = Bed(program, name, options.seed)
        try:
            note = fn(bed)
            print("ok    %-40s %5.1f s  %s" % (name, time.monotonic() - begin, note or ""),
                  flush=True)
        except Skip as e:
            print("skip  %-40s %5.1f s  %s" % (name, time.monotonic() - begin, e), flush=True)
        except Exception as e:
            failed += 1
            dead = crashed(Process.started)
            late = isinstance(e, LATE) and not dead
            print("%-5s %-40s %5.1f s  %s" % ("LATE" if late else "FAIL", name,
                                              time.monotonic() - begin, grave(e, dead)))
            traceback.print_exc(file=sys.stdout)
            print(bed.outputs(), flush=True)
        finally:
            bed.close()
    return 1 if failed else 0


__all__ = ["BEGIN", "FIRST_PORT", "HELLO", "HELLO_OK", "Host", "Late", "MACHINE", "PING", "PORTS",
           "QMPError", "RAM", "REFUSE", "Skip", "case", "free_port", "freeze", "has_words", "in_time",
           "is_running", "json", "listens", "main", "message", "os", "read_message", "shutil", "signal",
           "socket", "subprocess", "sys", "time", "wait_gone", "within"]
