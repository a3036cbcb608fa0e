# QMP clients that lie, flood, stall or leave: nobody else is harmed.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Each case has a program with two monitors and a guest that counts. While one client does what it
should not, the other's commands are answered; then the guest still runs, the program's
memory is within a bound, and the hostile monitor takes a new client.
"""

import threading

from colo_qtest import *

PATIENCE = 5  # seconds for an answer to the second client, on a slow machine
GROWTH = 160 << 20  # bytes; a text of 64 MiB may be there, and a copy


def memory(pid, kind="VmRSS"):
    with open("/proc/%d/status" % pid) as f:
        return next(int(text.split()[1]) << 10 for text in f if text.startswith(kind))


class Bully:
    """A raw connection to the second monitor."""

    def __init__(self, bed, path, ready=True):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(path)
        bed.closers.append(self.sock)
        self.file = self.sock.makefile("rb")
        assert b"QMP" in self.file.readline()
        if ready:
            self.say(b'{"execute":"qmp_capabilities"}')
            assert self.hear() == {"return": {}}

    def say(self, data):
        self.sock.sendall(data)

    def hear(self):
        """The next answer (no event), or None at the end."""
        while True:
            try:
                text = self.file.readline()
            except ConnectionError:
                return None
            if not text:
                return None
            said = json.loads(text)
            if "event" not in said:
                return said

    def close(self):
        self.file.close()
        self.sock.close()


class World:
    def __init__(self, b):
        self.bed = b
        self.path = b.dir + "/second.qmp"
        self.host = b.host("host", "-colo", "peer-timeout=6000", "-qmp",
                           "unix:%s,server=on,wait=off" % self.path, *b.rom)
        self.host.wait("guest counts", self.host.runs)
        self.before = {p: memory(p) for p in self.pids()}
        self.slowest = 0
        self.ending = False
        self.failure = None
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def pids(self):
        return [self.host.process.pid, self.host.process.emulator_pid()]

    def watch(self):
        """The second client: ours and the emulator's own commands, all the time."""
        while not self.ending:
            for name in ("query-colo-status", "query-version", "query-status"):
                begin = time.monotonic()
                try:
                    self.host.qmp.cmd(name, timeout=60)
                except QMPError as e:
                    self.failure = str(e)
                    return
                self.slowest = max(self.slowest, time.monotonic() - begin)
            time.sleep(0.01)

    def bully(self, ready=True):
        return Bully(self.bed, self.path, ready)

    def unharmed(self, growth=GROWTH):
        again = self.bully()  # the monitor is free again
        again.say(b'{"execute":"query-name","id":7}')
        assert again.hear()["id"] == 7
        again.close()
        self.ending = True
        self.thread.join(60)
        assert not self.failure, self.failure
        in_time(self.slowest, PATIENCE, "an answer")
        self.host.wait("guest runs", self.host.runs)
        grown = {p: memory(p) - m for p, m in self.before.items()}
        peak = memory(self.host.process.pid, "VmHWM") - self.before[self.host.process.pid]
        assert max(grown.values()) < growth, grown
        assert peak < 2 * growth, "%d MiB at the worst" % (peak >> 20)
        return "%.0f ms, %d MiB more" % (self.slowest * 1e3, max(grown.values()) >> 20)


@case
def garbage(b):
    """Random bytes, and valid commands with random bytes changed; before and after the
    negotiation."""
    w = World(b)
    good = b'{"execute":"query-qmp-schema","arguments":{"x":[1,2.5,null,"\\u00e4"]},"id":"i"}\n'
    for n in range(40):
        c = w.bully(ready=n % 2 == 0)
        for _ in range(20):
            if b.rng.random() < 0.5:
                data = b.rng.randbytes(b.rng.randint(1, 3000))
            else:
                data = bytearray(good)
                for _ in range(b.rng.randint(1, 4)):
                    data[b.rng.randrange(len(data))] = b.rng.randrange(256)
            c.say(bytes(data))
        # 0xff and a new line bring the reader back, whatever was before.
        c.say(b'\xff\n{"execute":"qmp_capabilities","id":"end"}\n')
        while True:
            said = c.hear()
            assert said is not None, "closed for garbage"
            if said.get("id") == "end":
                break
        c.close()
    return w.unharmed()


@case
def numbers_beyond_all_bounds(b):
    w = World(b)
    c = w.bully()
    numbers = [b"1e400", b"-1e400", b"9" * 400, b"-" + b"9" * 400, b"1e-400",
               b"18446744073709551615", b"18446744073709551616", b"-9223372036854775809",
               b"0." + b"3" * 5000, b"-0", b"1" + b"0" * 4000]
    commands = [b'{"execute":"migrate-set-parameters","arguments":{"x-checkpoint-delay":%s}}',
                b'{"execute":"query-name","id":%s}', b'{"execute":"query-name","id":[{"a":%s}]}',
                b'{"execute":"block-job-set-speed","arguments":{"device":"x","speed":%s}}',
                b'{"execute":"announce-self","arguments":{"initial":1,"max":1,"rounds":0,"step":%s}}',
                b'{"execute":"nbd-server-start","arguments":{"addr":{"type":"inet","data":{"host":'
                b'"127.0.0.1","port":"0"}},"max-connections":%s}}',
                b'{"execute":"balloon","arguments":{"value":%s}}', b'%s']
    for text in commands:
        for number in numbers:
            c.say(text.replace(b"%s", number) + b"\n")
            said = c.hear()
            assert said and ("return" in said or "error" in said), said
    got = w.host.cmd("query-migrate-parameters")["x-checkpoint-delay"]
    assert 1 <= got <= 0xffffffff, got
    c.close()
    return w.unharmed()


@case
def nesting_without_end(b):
    w = World(b)
    for opener in (b"[", b'{"a":', b'[{"b":['):
        for depth in (1000, 1100, 200000):
            c = w.bully()
            c.say(b'{"execute":"query-name","arguments":{"a":' + opener * depth + b"\n\xff\n")
            c.say(b'{"execute":"query-name","id":"end"}\n')
            while True:
                said = c.hear()
                assert said is not None
                if said.get("id") == "end":
                    break
            c.close()
    for depth in (1, 900):
        c = w.bully()
        ident = b"[" * depth + b"]" * depth
        c.say(b'{"execute":"query-name","id":%s}\n' % ident)
        assert c.hear()["id"] == json.loads(ident)
        c.close()
    return w.unharmed()


@case
def ends_at_any_point(b):
    """A client leaves after each byte of a command, in the middle of an answer, or with a
    command under way."""
    w = World(b)
    text = b'{"execute":"human-monitor-command","arguments":{"command-line":"info name"}}\n'
    for n in range(len(text) + 1):
        c = w.bully()
        c.say(text[:n])
        if n % 3 == 0:
            c.sock.shutdown(socket.SHUT_WR)
        c.close()
    for n in range(20):
        c = w.bully()
        c.say(b'{"execute":"query-qmp-schema"}\n' * b.rng.randint(1, 5))
        c.sock.recv(b.rng.randint(1, 100000))
        c.close()
    # Ours that take their time in the emulator, too.
    for name in (b"query-block", b"query-blockstats", b"query-chardev", b"query-commands"):
        for _ in range(10):
            c = w.bully()
            c.say(b'{"execute":"%s"}\n' % name)
            c.close()
    return w.unharmed()


@case
def half_a_line_for_ever(b):
    """It holds up nobody."""
    w = World(b)
    c = w.bully()
    c.say(b'{"execute":"query-na')
    time.sleep(1)
    w.host.cmd("query-name")
    c.say(b'me","id":3}\n')
    assert c.hear() == {"return": {}, "id": 3}
    c.close()
    return w.unharmed()


@case
def ten_thousand_in_a_row(b):
    """All are answered, in their order, ours and the emulator's mixed."""
    w = World(b)
    c = w.bully()
    names = [b"query-version", b"query-colo-status", b"query-status", b"query-migrate", b"no-such"]
    text = b"".join(b'{"execute":"%s","id":%d}' % (names[i % 5], i) for i in range(10000))
    begin = time.monotonic()
    writer = threading.Thread(target=c.say, args=(text,), daemon=True)
    writer.start()
    for i in range(10000):
        said = c.hear()
        assert said["id"] == i and ("error" in said) == (i % 5 == 4), (i, said)
    took = time.monotonic() - begin
    c.close()
    return "%.1f s; %s" % (took, w.unharmed())


@case
def ten_thousand_and_nobody_reads(b):
    """Reading stops while answers are not read: memory does not grow with what is sent."""
    w = World(b)
    c = w.bully()
    c.sock.settimeout(3)
    text = b'{"execute":"query-qmp-schema","id":1}\n' * 10000
    try:
        c.say(text)
        raise AssertionError("all was taken though nobody reads")
    except socket.timeout:
        pass
    time.sleep(0.5)
    w.host.cmd("query-name")
    c.close()
    return w.unharmed()


@case
def ten_thousand_and_gone(b):
    w = World(b)
    for _ in range(5):
        c = w.bully()
        c.say(b'{"execute":"query-status"}' * 2000)
        c.close()
    return w.unharmed()


@case
def a_string_without_end(b):
    """More than a text may have: an error, and no more memory than a text."""
    w = World(b)
    c = w.bully()
    c.say(b'{"execute":"')
    block = b"a" * (1 << 20)
    for _ in range(80):
        c.say(block)
    c.say(b'\n\xff\n{"execute":"query-name","id":"end"}\n')
    errors = 0
    while True:
        said = c.hear()
        assert said is not None
        if said.get("id") == "end":
            break
        errors += "error" in said
    assert errors, "80 MiB were a command"
    c.close()
    return w.unharmed()


@case
def out_of_band_flood(b):
    """exec-oob is for commands that may; the rest are errors, and none waits."""
    w = World(b)
    c = w.bully(ready=False)
    c.say(b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}')
    assert c.hear() == {"return": {}}
    text = b"".join(b'{"exec-oob":"%s","id":%d}' % (b"yank" if i % 2 else b"query-name", i)
                    for i in range(3000))
    writer = threading.Thread(target=c.say, args=(text,), daemon=True)
    writer.start()
    seen = set()
    for _ in range(3000):
        said = c.hear()
        assert "error" in said, said
        seen.add(said["id"])
    assert seen == set(range(3000))
    c.close()
    return w.unharmed()


@case
def out_of_band_flood_of_a_hanging_emulator(b):
    """What waits for it is bounded, and reading stops; others are answered by us."""
    w = World(b)
    w.ending = True
    w.thread.join(60)
    c = w.bully(ready=False)
    c.say(b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}')
    c.hear()
    pid = w.host.process.emulator_pid()
    freeze(pid)
    before = memory(w.host.process.pid)
    c.sock.settimeout(2)
    try:
        c.say(b'{"exec-oob":"query-name","arguments":{"%s":1},"id":1}' % (b"x" * 2000) * 20000)
        raise AssertionError("40 MB were taken")
    except socket.timeout:
        pass
    w.host.cmd("query-yank")
    grown = memory(w.host.process.pid) - before
    assert grown < 16 << 20, "%d MiB wait for the emulator" % (grown >> 20)
    os.kill(pid, signal.SIGCONT)
    c.close()
    w.unharmed()
    return "%d KiB wait" % (grown >> 10)


@case
def yank_while_the_emulator_hangs(b):
    """A command to a stopped emulator waits; out of band, yank and x-colo-lost-heartbeat do
    not."""
    w = World(b)
    w.ending = True
    w.thread.join(60)
    c = w.bully(ready=False)
    c.say(b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}')
    c.hear()
    pid = w.host.process.emulator_pid()
    took = 0
    for _ in range(10):
        freeze(pid)
        c.say(b'{"execute":"query-version","id":1}')
        time.sleep(0.05)
        for text, ident in ((b'{"exec-oob":"yank","arguments":{"instances":[]},"id":2}', 2),
                            (b'{"exec-oob":"x-colo-lost-heartbeat","id":3}', 3)):
            begin = time.monotonic()
            c.say(text)
            assert c.hear()["id"] == ident
            took = max(took, time.monotonic() - begin)
        os.kill(pid, signal.SIGCONT)
        assert c.hear()["id"] == 1
    in_time(took, 2, "an answer out of band")
    c.close()
    w.unharmed()
    return "%.1f ms at most" % (took * 1e3)


if __name__ == "__main__":
    sys.exit(main())
