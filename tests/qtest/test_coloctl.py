# coloctl against real qemu-colo, and against servers that mean no good.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import threading

from colo_qtest import *

OK, FAILED, USAGE, UNPROTECTED, LOST, UNREACHABLE = range(6)


def tool(b):
    path = os.path.join(os.path.dirname(b.program), "..", "tools", "coloctl")
    return path if os.path.exists(path) else shutil.which("coloctl")


def ctl(b, *words, expect=OK, timeout=60, **kw):
    """Its standard output; standard error must be empty at success, and speak otherwise."""
    done = subprocess.run([tool(b), *words], stdin=subprocess.DEVNULL, text=True, errors="replace",
                          capture_output=True, timeout=timeout, **kw)
    assert done.returncode == expect, "%s: status %d: %s%s" % (words, done.returncode,
                                                              done.stdout, done.stderr)
    assert "\033" not in done.stdout + done.stderr, "colours without a terminal"
    if expect in (FAILED, USAGE, UNREACHABLE):
        lines = done.stderr.strip().splitlines()
        assert lines and all(x.startswith("coloctl: ") for x in lines), done.stderr
        return lines[-1]
    return done.stdout


def at(host):
    return ["--qmp", host.path]


class Free:
    """Without a QMP session of ours: the monitor serves one client at a time."""

    def __init__(self, *hosts):
        self.hosts = hosts

    def __enter__(self):
        for h in self.hosts:
            h.qmp.close()

    def __exit__(self, *_):
        pass


def look(b, host, expect):
    return json.loads(ctl(b, "status", "--json", *at(host), expect=expect))


def until(b, host, state, expect, timeout=20):
    end = time.monotonic() + timeout
    while True:
        done = subprocess.run([tool(b), "status", "--json", *at(host)], capture_output=True,
                              text=True, timeout=30)
        s = json.loads(done.stdout) if done.stdout else {"state": done.stderr}
        if s["state"] == state:
            assert done.returncode == expect, done
            return s
        assert time.monotonic() < end, s["state"]
        time.sleep(0.1)


@case
def wrong_use(b):
    has_words(ctl(b, "statsu", expect=USAGE), "statsu", "status")
    has_words(ctl(b, "xyzzy-nothing-like-it", expect=USAGE), "xyzzy", "--help")
    has_words(ctl(b, "status", expect=USAGE), "vm.conf", "--qmp")
    has_words(ctl(b, "status", "a", "b", expect=USAGE), "only")
    has_words(ctl(b, "status", "--frobnicate", "a", expect=USAGE), "frobnicate")
    has_words(ctl(b, "status", "vm", "--qmp", "/x", expect=USAGE), "both")
    has_words(ctl(b, "--help"), "status", "failover", "Exit codes")
    has_words(ctl(b, "failover", "--help"), "--planned", "--fenced")
    has_words(ctl(b, "--version"), r"coloctl \d")


@case
def nobody_there(b):
    for command in ("status", "checkpoint", "failover", "unprotect", "protect", "resync"):
        has_words(ctl(b, command, "--qmp", b.dir + "/none", expect=UNREACHABLE), "/none", "runs")
    has_words(ctl(b, "status", "no-such-vm", expect=UNREACHABLE), "no-such-vm")
    has_words(ctl(b, "status", "--qmp", "/" + "x" * 200, expect=UNREACHABLE), "path", "bytes")


@case
def unprotected(b):
    p = b.primary(*b.rom, "-name", "vm1", connect=False)
    s = until(b, p, "alone", UNPROTECTED)
    assert s["schema"] == 1 and s["name"] == "vm1" and s["role"] == "none", s
    assert s["serves"] and not s["protected"] and s["error"] is None, s
    text = ctl(b, "status", *at(p), expect=UNPROTECTED)
    has_words(text, "^vm1: alone", "serves", "guest running")
    has_words(ctl(b, "checkpoint", *at(p), expect=FAILED), "alone", "protected")
    has_words(ctl(b, "unprotect", *at(p)), "not protected")
    has_words(ctl(b, "failover", *at(p)), "serves already")
    has_words(ctl(b, "failover", "--planned", *at(p), expect=FAILED), "alone")
    has_words(ctl(b, "failover", "--planned", "--fenced", *at(p), expect=USAGE), "--fenced")
    has_words(ctl(b, "protect", *at(p), expect=FAILED), "pair=on")


@case
def paused_guest_does_not_serve(b):
    p = b.primary("-S", connect=False)
    s = until(b, p, "alone", UNPROTECTED)
    assert not s["serves"] and s["run-state"] == "prelaunch", s


@case
def protected_pair(b):
    p, s = b.pair()
    with Free(p, s):
        first, second = look(b, p, OK), look(b, s, OK)
        for side, role in ((first, "primary"), (second, "secondary")):
            assert side["state"] == "protected" and side["protected"], side
            assert side["role"] == role and side["serves"] == (role == "primary"), side
            assert side["epoch"] >= 2 and side["colo"]["epoch"] == side["epoch"], side
            assert isinstance(side["proxy"], list) and side["migrate"]["status"] == "colo", side
        has_words(ctl(b, "status", *at(p)), "protected \\(primary, serves\\)", "pause", "epoch")
        has_words(ctl(b, "checkpoint", *at(p)), r"checkpoint \d", "stood still")
        after = look(b, p, OK)
        assert after["epoch"] > first["epoch"], (first["epoch"], after["epoch"])
        assert after["colo"]["triggers"]["request"] == 1, after["colo"]["triggers"]
        has_words(ctl(b, "checkpoint", *at(s), expect=FAILED), "secondary", "primary")
        has_words(ctl(b, "failover", *at(p), expect=FAILED), "serves already", "unprotect")
        has_words(ctl(b, "unprotect", *at(s), expect=FAILED), "secondary")
        has_words(ctl(b, "failover", "--planned", *at(s), expect=FAILED), "primary")
        has_words(ctl(b, "unprotect", *at(p)), "alone")
        until(b, s, "fenced", LOST)
        has_words(ctl(b, "status", *at(s), expect=LOST), "what to do")
        has_words(ctl(b, "failover", *at(s), expect=FAILED), "silent")


@case
def primary_dies(b):
    p, s = b.pair()
    with Free(s):
        p.process.kill()
        lost = until(b, s, "lost", LOST)
        assert not lost["serves"] and lost["role"] == "secondary", lost
        has_words(ctl(b, "status", *at(s), expect=LOST), "coloctl failover")
        has_words(ctl(b, "failover", *at(s)), "alone", "serves")
        assert look(b, s, UNPROTECTED)["serves"]


@case
def monitor_is_taken(b):
    """A client that stays: said after some seconds, and no hang."""
    p = b.primary()
    has_words(ctl(b, "status", *at(p), expect=UNREACHABLE), "another client")


class Server:
    """A unix socket that answers with @script(connection)."""

    def __init__(self, b, script):
        self.path = b.dir + "/hostile-%d" % b.rng.randrange(1 << 30)
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(self.path)
        self.sock.listen(4)
        self.script = script
        b.closers.append(self)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                conn = self.sock.accept()[0]
            except OSError:
                return
            try:
                self.script(conn)
            except OSError:
                pass
            finally:
                conn.close()

    def close(self):
        self.sock.close()


GREETING = b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}}}\n'


def answering(answers, greeting=GREETING):
    """A server that answers commands from a table: raw text, with %s for the id."""
    def script(conn):
        conn.sendall(greeting)
        for line in conn.makefile("rb"):
            cmd = json.loads(line)
            text = answers.get(cmd["execute"], '{"return": {}, "id": %s}')
            conn.sendall((text.replace("%s", json.dumps(cmd["id"])) + "\n").encode())
    return script


@case
def hostile_monitor(b):
    """Garbage of every kind: an error with exit code 5 or 1, soon, and no crash."""
    noise = bytes(b.rng.randrange(256) for _ in range(5000))
    deep = b"[" * 200000

    def endless(conn):
        conn.sendall(GREETING + b'{"return": "')
        while True:
            conn.sendall(b"x" * 65536)

    def raw(data):
        return lambda conn: (conn.sendall(data), conn.recv(100))

    for script, code in (
            (raw(noise), UNREACHABLE), (raw(deep), UNREACHABLE), (raw(b"\0\0\n"), UNREACHABLE),
            (raw(b"[]\n"), UNREACHABLE), (raw(b"{}\n"), UNREACHABLE), (raw(b""), UNREACHABLE),
            (endless, UNREACHABLE),
            (answering({"qmp_capabilities": '{"error": 5, "id": %s}'}), FAILED),
            (answering({"query-colo-status": '{"return": [], "id": %s}'}), UNREACHABLE),
            (answering({"query-colo-status": '{"return": {"state": {}}, "id": %s}'}), UNREACHABLE),
            (answering({"query-colo-status": '{"error": {"desc": "\\u001b[31mno", '
                                             '"class": "X"}, "id": %s}'}), FAILED)):
        text = ctl(b, "status", *at(Server(b, script)), expect=code)
        assert "\x1b" not in text, text


@case
def strange_answers(b):
    """What has other types than documented is shown as if it were not there."""
    odd = {"query-colo-status": '{"return": {"state": "lost\\u001b[2J", "epoch": "x", '
                                '"disks": [3, {}, {"node-name": 7}], "pause-us": [], '
                                '"triggers": {"timer": {}}, "arbiter": {"kind": []}, '
                                '"checkpoints": 1, "heartbeat": {"state": "up", "links": [1]}, '
                                '"pair": {"state": 3}}, "id": %s}',
           "query-status": '{"return": {"status": 3}, "id": %s}',
           "query-name": '{"return": "me", "id": %s}',
           "query-colo-proxy": '{"return": 3.5e99, "id": %s}'}
    server = Server(b, answering(odd))
    text = ctl(b, "status", *at(server), expect=UNPROTECTED)
    assert "\x1b" not in text, text
    ctl(b, "status", "--json", *at(server), expect=UNPROTECTED)


if __name__ == "__main__":
    sys.exit(main())
