# coloctl against real qemu-colo, and against servers that mean no good.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import re
import threading

from colo_conf import *
from colo_qtest import *
from e2e_proc import QMP  # after the path that colo_qtest has set

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


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
        within(end, lambda: s["state"])
        time.sleep(0.1)


@case
def wrong_use(b):
    has_words(ctl(b, "statsu", expect=USAGE), "statsu", "status")
    has_words(ctl(b, "xyzzy-nothing-like-it", expect=USAGE), "xyzzy", "--help")
    has_words(ctl(b, "status", expect=USAGE), "vm.conf", "--qmp")
    has_words(ctl(b, "status", "a", "b", expect=USAGE), "only")
    has_words(ctl(b, "status", "--frobnicate", "a", expect=USAGE), "frobnicate")
    has_words(ctl(b, "status", "vm", "--qmp", "/x", expect=USAGE), "both")
    has_words(ctl(b, "status", "vm", "--timeout", "-5", expect=USAGE), "--timeout -5", "seconds")
    has_words(ctl(b, "status", "vm", "--timeout", "soon", expect=USAGE), "soon", "--timeout")
    has_words(ctl(b, "--help"), "status", "failover", "Exit codes")
    has_words(ctl(b, "failover", "--help"), "--planned", "--fenced")
    has_words(ctl(b, "--version"), r"coloctl \d")


COMMON = {"--help", "--host", "--timeout", "--qmp"}


def commands_and_options(b):
    """{command: its options}, as the program says."""
    commands = re.findall(r"^  ([a-z]+) +[a-z]", ctl(b, "--help"), re.M)
    assert len(commands) >= 11 and "bundle" in commands, commands
    return {c: set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", ctl(b, c, "--help"), re.M))
            for c in commands}


@case
def every_command_is_written_up(b):
    """The manual and its page know each command and option, and no other."""
    known = commands_and_options(b)
    every = set().union(*known.values()) | {"--version"}
    for name in ("docs/system/coloctl.rst", "docs/man/coloctl.rst"):
        with open(os.path.join(ROOT, name)) as f:
            text = f.read()
        for command, options in known.items():
            for word in {command} | options - COMMON:
                assert re.search(r"(?<![\w-])%s(?![\w-])" % word, text), \
                    "%s: %s is not in %s" % (command, word, name)
        unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - every
        assert unknown <= {"--delete", "--type", "--name"}, "%s: %s" % (name, unknown)
    # In the page each option stands with its command.
    with open(os.path.join(ROOT, "docs/man/coloctl.rst")) as f:
        page = f.read().split("\nCOMMANDS\n")[1].split("\nOPTIONS\n")[0]
    said = {}
    for head, body in re.findall(r"^(\*\*.*)\n((?:^ .*\n)+)", page, re.M):
        names = re.findall(r"\*\*([a-z]+)", head)
        for name in names:
            said.setdefault(name, set()).update(re.findall(r"--[a-z][a-z-]*", head))
    assert set(said) == set(known), set(said) ^ set(known)
    for command, options in known.items():
        assert said[command] - COMMON == options - COMMON, (command, said[command], options)


@case
def completion_offers_what_there_is(b):
    """Asked as bash asks it: the commands, and each one's options; nothing that is refused."""
    known = commands_and_options(b)

    def offered(*words):
        done = subprocess.run(
            ["bash", "-c", 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _coloctl; '
             'printf "%s\\n" "${COMPREPLY[@]}"', os.path.join(ROOT, "contrib/completion/coloctl"),
             "coloctl", *words], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0 and not done.stderr, done
        return set(done.stdout.split())

    assert offered("") == set(known) | {"--help", "--version"}, offered("")
    for command, options in known.items():
        assert offered(command, "--") == options, (command, offered(command, "--") ^ options)
    assert offered("run", "--role", "") == {"auto", "primary", "secondary"}


@case
def example_is_understood(b):
    """The example, and every key of the manual page, is what the program reads."""
    example = os.path.join(ROOT, "contrib/examples/vm.conf")
    with open(example) as f:
        text = re.sub(r"^#(\w[\w-]* = |\[)", r"\1", f.read(), flags=re.M)
    with open(b.dir + "/all.conf", "w") as f:
        f.write(text)
    for path in (example, b.dir + "/all.conf"):
        has_words(ctl(b, "status", path, "--host", "alpha", expect=UNREACHABLE), "web1/ctl.sock")
    with open(os.path.join(ROOT, "docs/man/vm.conf.rst")) as f:
        page = f.read().split("DESCRIPTION", 1)[1]
    for section, body in re.findall(r"^\[([\w.]+)\]\n=+\n(.*?)(?=^\[|\Z)", page, re.M | re.S):
        known = re.findall(r"\*([a-z-]+)\*", body.split("EXAMPLE")[0])
        with open(b.dir + "/bad.conf", "w") as f:
            f.write("[%s]\nzzzzzzzzzzzzzzzzzzzzz = 1\n" % section)
        if section != "hosts":
            error = ctl(b, "status", b.dir + "/bad.conf", expect=FAILED)
            for key in error.split("there are ")[1].split(", "):
                assert key in known, "[%s] %s is not in vm.conf(5)" % (section, key)


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
def words_for_scripts_and_the_end(b):
    """status --shell is what a shell may eval; stop ends a side, asking a guest that serves
    only."""
    p, s = b.pair()
    with Free(p, s):
        for side, role in ((p, "primary"), (s, "secondary")):
            words = dict(w.split("=") for w in ctl(b, "status", "--shell", *at(side)).split())
            assert re.fullmatch("[0-9]+", words.pop("epoch")), words
            assert words == {"state": "protected", "role": role, "protected": "true",
                             "serves": "true" if role == "primary" else "false"}, words
        has_words(ctl(b, "stop", *at(s)), "ended")
        s.process.wait(10)
        begin = time.monotonic()
        # Its output is held: it does not serve, so its guest is not asked.
        ctl(b, "stop", *at(p))
        p.process.wait(10)
        in_time(time.monotonic() - begin, 30, "the answer")
    p = b.primary(*b.rom)
    p.wait("guest counts", p.runs)
    with Free(p):
        # This guest knows no power button.
        done = subprocess.run([tool(b), "stop", "--timeout", "1", *at(p)], text=True,
                              capture_output=True, timeout=60)
        assert done.returncode == 0 and "switched off" in done.stderr, done
        p.process.wait(10)
        ctl(b, "status", "--shell", *at(p), expect=UNREACHABLE)


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
                                '"disks": [3, {}, null, {"node-name": 7}], "pause-us": [], '
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


@case
def run_is_the_whole_set_up(b):
    """Two starts, protected; the primary's host dies, comes back: protected again."""
    vm = Vm(b, prefer="b")
    vm.run("a")
    vm.said("a", "first start waits")
    has_words(vm.ctl("status", "a", expect=UNREACHABLE), "no qemu-colo runs")
    vm.run("b")
    vm.wait("b", "protected", role="primary")
    vm.wait("a", "protected", role="secondary")
    vm.role("b", "protected-primary")
    vm.role("a", "protected-secondary")
    has_words(vm.ctl("run", "a", expect=FAILED), "runs already", str(vm.runs["a"].pid))
    vm.kill_tree("b")
    vm.wait("a", "lost")
    assert vm.role("a") == "protected-secondary", "nobody was served from its disk"
    vm.run("b")
    vm.said("b", "waits for the arbiter's word")
    vm.ctl("failover", "a")
    vm.role("a", "alone")
    vm.wait("a", "protected", 60, role="primary")
    vm.wait("b", "protected", role="secondary")


@case
def protect_without_a_peer_says_why(b):
    vm = Vm(b, disk=False)
    vm.run("a", "--role", "primary")
    end = time.monotonic() + 60
    while vm.wait("a", "alone")["colo"]["pair"]["state"] != "waiting-peer":
        within(end, "the first question")
        time.sleep(0.1)
    has_words(vm.ctl("protect", "a", "--timeout", "2", expect=FAILED), "not protected in time",
              "waiting-peer", "nobody answers")


@case
def outdated_side_does_not_serve(b):
    """A side that was secondary, or a protected primary, waits for its peer; --role overrules."""
    vm = Vm(b, disk=False)
    vm.run("a")
    vm.run("b")
    vm.wait("a", "protected", role="primary")
    vm.role("a", "protected-primary")
    for who in "ab":
        vm.kill_tree(who)
    for who in "ab":
        vm.run(who)
        vm.said(who, "may have served since")
        assert not os.path.exists("%s/%s/run/ctl.sock" % (b.dir, who)) or \
            vm.ctl("status", who, expect=UNREACHABLE)
        vm.kill_tree(who)
        assert vm.role(who) in ("protected-primary", "protected-secondary")
    vm.run("a", "--role", "primary")
    s = vm.wait("a", "alone")
    assert s["serves"], s
    vm.role("a", "alone")
    vm.kill_tree("a")
    # Alone is the newest there is: no peer is needed.
    vm.run("a")
    vm.wait("a", "alone", serves=True)


@case
def start_that_asks_on_shows_it(b):
    """The peer spoke, and hangs before qemu-colo asks it, too: status says what is waited for,
    and --role primary does without."""
    vm = Vm(b, disk=False)
    os.makedirs(b.dir + "/a/state", 0o700)
    with open(b.dir + "/a/state/role", "w") as f:
        f.write("lost-primary\n")
    held = []
    with socket.socket() as s:
        s.bind(("127.0.0.2", vm.base + 997))
        s.listen(8)

        def answer():
            line = {"program": "coloctl", "name": "vm1", "state": "undecided", "last": "secondary"}
            while True:
                try:
                    held.append(s.accept()[0])
                except OSError:
                    return
                if len(held) == 1:
                    held[0].recv(100)
                    held[0].sendall(json.dumps(line).encode() + b"\n")
                    held[0].shutdown(socket.SHUT_WR)
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        vm.run("a")
        vm.said("a", "asks on whether the other host serves", 30)
        end = time.monotonic() + 20
        while True:
            done = subprocess.run([tool(b), *vm.words("status", "a")], capture_output=True,
                                  text=True, timeout=60)
            assert done.returncode == UNREACHABLE, done
            if re.search("asks on .*does not answer", done.stderr):
                break
            within(end, lambda: done)
            time.sleep(0.1)
        assert vm.role("a") == "lost-primary"
        vm.kill_tree("a")
        vm.run("a", "--role", "primary")
        vm.wait("a", "alone", serves=True)
        s.shutdown(socket.SHUT_RDWR)
        thread.join(20)
    for c in held:
        c.close()


@case
def both_come_back(b):
    """After a power failure of both the two find out who is who."""
    vm = Vm(b, disk=False)
    vm.run("a")
    vm.run("b")
    vm.wait("b", "protected", role="secondary")
    vm.role("b", "protected-secondary")
    vm.role("a", "protected-primary")
    vm.kill_tree("a")
    vm.kill_tree("b")
    vm.run("b")
    vm.run("a")
    vm.wait("a", "protected", role="primary")


@case
def takeover_is_on_disk_before_it_speaks(b):
    """The host dies in the middle of its takeover, before and after it was written down."""
    for step, role in (("takeover-disk", "protected-secondary"), ("takeover-noted", "alone"),
                       ("takeover-running", "alone")):
        for who in "ab":
            shutil.rmtree("%s/%s" % (b.dir, who), ignore_errors=True)
        vm = Vm(b, disk=False, colo_options="die-at=" + step)
        vm.run("a", "--once")
        vm.run("b", "--once")
        vm.wait("a", "protected", role="primary")
        vm.wait("b", "protected", role="secondary")
        # To qemu-colo itself, and long before: its loop answers several questions until then.
        os.kill(vm.runs["b"].children()[0], signal.SIGUSR1)
        vm.kill_tree("a")
        assert vm.role("a") == "protected-primary"
        vm.wait("b", "lost")
        subprocess.run([tool(b), *vm.words("failover", "b")], capture_output=True, timeout=60)
        vm.runs["b"].wait(30)
        vm.said("b", "dying at step " + step)
        assert vm.role("b") == role, (step, vm.role("b"))
    # Both hosts come back: the one that served has the newest disk, whatever the other says.
    vm = Vm(b, disk=False)
    vm.run("a")
    vm.said("a", "may have served since")
    vm.run("b")
    vm.wait("b", "protected", role="primary")
    vm.wait("a", "protected", role="secondary")


@case
def what_cannot_be_written_down_is_not_protected(b):
    vm = Vm(b, disk=False)
    vm.run("a")
    vm.run("b")
    vm.wait("a", "protected", role="primary")
    b_role = b.dir + "/b/state/role"
    assert os.path.getsize(b_role) == 32
    # In place: the file stays the same, so that no block is needed when the disk is full.
    inode = os.stat(b_role).st_ino
    vm.kill_tree("a")
    vm.wait("b", "lost")
    vm.ctl("failover", "b")
    vm.role("b", "alone")
    assert os.stat(b_role).st_ino == inode
    os.unlink(b.dir + "/b/state/role")
    os.mkdir(b.dir + "/b/state/role")
    with open(b.dir + "/a/state/role", "w") as f:
        f.write("secondary\n")
    vm.run("a")
    vm.said("b", "cannot be written down", 40)
    assert vm.wait("b", "alone")["serves"]


@case
def alone_does_not_follow_without_a_word(b):
    """Two have served alone: neither loses its history because it was started later."""
    vm = Vm(b, disk=False)
    vm.run("a", "--role", "primary")
    vm.wait("a", "alone")
    vm.role("a", "alone")
    os.makedirs(b.dir + "/b/state", 0o700)
    with open(b.dir + "/b/state/role", "w") as f:
        f.write("alone\n")
    vm.run("b")
    vm.said("b", "two histories")
    assert vm.role("b") == "alone"
    vm.kill_tree("b")
    vm.run("b", "--role", "primary")
    vm.said("b", "ended with status 3")
    vm.said("b", "two histories")
    assert vm.role("b") == "alone"
    vm.kill_tree("b")
    vm.run("b", "--role", "secondary")
    vm.wait("b", "protected", role="secondary")


@case
def two_histories_need_a_human(b):
    vm = Vm(b, disk=False)
    for who in "ab":
        os.makedirs("%s/%s/state" % (b.dir, who), 0o700)
        with open("%s/%s/state/role" % (b.dir, who), "w") as f:
            f.write("lost-%s\n" % ("primary" if who == "a" else "secondary"))
    for who in "ab":
        vm.run(who)
    for who in "ab":
        vm.said(who, "--role primary")


@case
def supervised(b):
    """Backoff and restart after a failure, an end with the guest, signals, --once."""
    vm = Vm(b, disk=False)
    p = vm.run("a", "--role", "primary")
    vm.wait("a", "alone")
    child = p.children()[0]
    os.kill(child, signal.SIGKILL)
    vm.said("a", "killed by signal 9")
    vm.said("a", "again in 1 s")
    vm.wait("a", "alone")
    assert p.children()[0] != child
    p.send(signal.SIGTERM)
    assert p.wait(20) == OK
    assert "signal 15" in p.output()
    # The guest's own end ends it.
    p = vm.run("a")
    vm.wait("a", "alone")
    q = QMP("%s/a/run/qmp.sock" % b.dir)
    q.cmd("quit")
    q.close()
    assert p.wait(20) == OK
    p = vm.run("a", "--once")
    vm.wait("a", "alone")
    os.kill(p.children()[0], signal.SIGKILL)
    assert p.wait(20) == FAILED


@case
def nobody_outlives_its_keeper(b):
    vm = Vm(b, disk=False)
    p = vm.run("a", "--role", "primary")
    vm.wait("a", "alone")
    child = p.children()[0]
    p.kill()
    wait_gone([child], "qemu-colo runs without coloctl run")


@case
def told_to_the_service_manager(b):
    vm = Vm(b, disk=False)
    path = b.dir + "/notify"
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind(path)
    s.settimeout(20)
    os.environ["NOTIFY_SOCKET"] = path
    try:
        p = vm.run("a", "--role", "primary")
        assert s.recv(1000) == b"READY=1"
        while b"alone" not in s.recv(1000):
            pass
        p.stop()
        got = b""
        while b"STOPPING=1" not in got:
            got = s.recv(1000)
    finally:
        del os.environ["NOTIFY_SOCKET"]
        s.close()


@case
def what_run_refuses(b):
    vm = Vm(b)
    os.unlink(b.dir + "/a.raw")
    p = vm.run("a", "--role", "primary", "--once")
    assert p.wait(20) == FAILED
    has_words(p.output(), r"\[disk.root\] image", "a.raw", "qemu-img create")
    os.chmod(b.dir + "/a/state", 0o777)
    has_words(vm.ctl("run", "a", expect=FAILED), "state-dir", "chmod 700")
    os.chmod(b.dir + "/a/state", 0o700)
    with open(b.dir + "/a/state/role", "w") as f:
        f.write("king\n")
    has_words(vm.ctl("run", "a", expect=FAILED), "king", "role")
    has_words(vm.ctl("run", "a", "--role", "king", expect=USAGE), "king", "secondary")
    has_words(ctl(b, "run", "no-such-vm", expect=USAGE), "no-such-vm")
    key = b.dir + "/key"
    with open(key, "w") as f:
        f.write("k" * 32)
    os.chmod(key, 0o644)
    vm = Vm(b, disk=False, key_file=key)
    has_words(vm.ctl("run", "a", expect=FAILED), "key-file", "chmod 600")


@case
def watched(b):
    """top, piped: a line a look."""
    p, s = b.pair()
    with Free(p, s):
        text = ctl(b, "top", "--count", "3", "--interval", "0.2", *at(p))
        lines = text.splitlines()
        assert len(lines) == 3, text
        for line in lines:
            has_words(line, "state=protected", "role=primary", r"epoch=\d", r"held-frames=\d")
        ctl(b, "top", "--interval", "0", *at(p), expect=USAGE)
    ctl(b, "top", "--qmp", b.dir + "/none", expect=UNREACHABLE)


@case
def screen_is_given_back(b):
    """top on a terminal: q and SIGTERM end it, and the terminal is as it was."""
    import pty
    import termios
    p = b.primary(connect=False)
    until(b, p, "alone", UNPROTECTED)
    for how in ("q", "term"):
        master, slave = pty.openpty()
        before = termios.tcgetattr(slave)
        top = subprocess.Popen([tool(b), "top", "--interval", "0.2", *at(p)], stdin=slave,
                               stdout=slave, stderr=slave, env=dict(os.environ, TERM="xterm"))
        got, end = b"", time.monotonic() + 20
        while b"q ends" not in got and time.monotonic() < end:
            got += os.read(master, 65536)
        assert b"\033[?1049h" in got and b"alone" in got, got
        if how == "q":
            os.write(master, b"q")
        else:
            top.terminate()
        while b"\033[?1049l" not in got and time.monotonic() < end:
            got += os.read(master, 65536)
        assert top.wait(20) == OK
        assert termios.tcgetattr(slave)[3] == before[3], "echo is off"
        os.close(master)
        os.close(slave)


@case
def unprotected_until_told(b):
    """unprotect is not undone by the engine; protect and resync are words of the operator."""
    vm = Vm(b)
    vm.run("a")
    vm.run("b")
    vm.wait("a", "protected", role="primary")
    vm.wait("b", "protected", role="secondary")
    has_words(vm.ctl("resync", "a", expect=FAILED), "unprotect")
    has_words(vm.ctl("unprotect", "a"), "alone")
    vm.wait("b", "waiting", 60)  # fenced, and back as a secondary
    time.sleep(2.5)
    s = vm.wait("a", "alone", serves=True)
    assert s["colo"]["pair"]["state"] == "idle", s["colo"]["pair"]
    has_words(vm.ctl("protect", "b", expect=FAILED), "side that serves")
    has_words(vm.ctl("protect", "a"), "protected")
    has_words(vm.ctl("protect", "a"), "is protected")
    vm.ctl("unprotect", "a")
    vm.wait("b", "waiting", 60)
    has_words(vm.ctl("resync", "a"), "protected")
    # All of the disk, though both sides know that nothing differs.
    assert vm.wait("a", "protected")["colo"]["pair"]["resync-total"] >= 4 << 20
    vm.kill_tree("b")
    vm.wait("a", "lost")
    vm.ctl("failover", "a")
    has_words(vm.ctl("protect", "a", "--timeout", "2", expect=FAILED),
              "not protected in time|backoff")


@case
def planned_failover(b):
    """Roles change hands, the old primary is a secondary again, and back."""
    vm = Vm(b)
    vm.run("a")
    vm.run("b")
    vm.wait("a", "protected", role="primary")
    vm.wait("b", "protected", role="secondary")
    has_words(vm.ctl("failover", "b", "--planned", expect=FAILED), "primary")
    has_words(vm.ctl("failover", "a", "--planned"), "other host serves")
    vm.wait("b", "protected", 60, role="primary")
    vm.wait("a", "protected", 60, role="secondary")
    vm.role("a", "protected-secondary")


if __name__ == "__main__":
    sys.exit(main())
