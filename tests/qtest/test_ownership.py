# Who may speak: the model by spin, the options, and the witness of one side, by a real etcd.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import re
import select
import shutil
import threading

from colo_etcd import Etcd
from colo_qtest import *

MODEL = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                     "../../docs/devel/ownership.pml")


def errors(b, text, defines, flags=()):
    """Errors that spin finds in a model."""
    if not shutil.which("spin"):
        raise Skip("spin is not installed")
    with open(b.dir + "/m.pml", "w") as f:
        f.write(text)
    for command in (["spin", "-a", "m.pml"], ["gcc", "-w", "-O2", *defines, "-o", "pan", "pan.c"],
                    ["./pan", "-m1000000", *flags]):
        done = subprocess.run(command, cwd=b.dir, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
    return int(re.search(r"errors: (\d+)", done.stdout).group(1)), done.stdout


SAFETY = ("-DSAFETY", "-DNOCLAIM")


@case
def model_never_has_two_voices(b):
    found, text = errors(b, open(MODEL).read(), SAFETY)
    assert found == 0, text
    return re.search(r"(\d+) states, stored", text).group(0)


@case
def model_comes_to_a_decision(b):
    found, text = errors(b, open(MODEL).read(), ("-DNFAIR=4",), ("-a", "-f"))
    assert found == 0, text


@case
def model_finds_what_is_wrong(b):
    """The model can fail: who renews what it does not own, a gate that never looks at the
    time, a secondary that does not wait for the primary's lease, or too short, or believes it
    silent before it is; a lease that counts from the echo's coming; echoes after the end."""
    model = open(MODEL).read()
    for old, new in (("atomic { key == ALONE && owner == me -> lease[me] = true }",
                      "true -> lease[me] = true"),
                     ("lease[P] = false; gate[P] = false", "lease[P] = false"),
                     ("key == ABSENT && last == me && revision < BOUND) ->\n                "
                      "key = ALONE; owner = me; revision++; won = true",
                      "key == ABSENT && revision < BOUND) -> revision++; won = true"),
                     ("atomic { heard >= WAIT || shut -> heard = NONE }", "heard = NONE"),
                     ("#define WAIT 3", "#define WAIT 1"),
                     ("bool shut = false", "bool shut = true"),
                     ("echo < LEASE && LEASE - echo > permit ->\n                "
                      "permit = LEASE - echo }",
                      "echo < NONE && permit < LEASE -> permit = LEASE }"),
                     ("vouching = false; echoed = NONE; beat = NONE", "skip")):
        assert old in model, old
        assert errors(b, model.replace(old, new), SAFETY)[0] == 1, new


def fails(b, *words):
    done = subprocess.run([b.program, *MACHINE, "-S", *words], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode != 0, "it started"
    lines = done.stderr.strip().splitlines()
    assert lines and lines[0].startswith("qemu-colo: "), done.stderr
    return lines[0]


@case
def options_that_do_not_fit(b):
    for words, *want in (("arbiter=pope", "pope", "manual, fence, witness or pacemaker"),
                         ("arbiter=fence", "fence-agent"),
                         ("arbiter=fence,fence-agent=/nonexistent", "/nonexistent"),
                         ("arbiter=witness", "witness=URL"),
                         ("arbiter=witness,witness=ftp://x,witness-key=k", "http://"),
                         ("arbiter=witness,witness=http://x,witness-lease=1,witness-key=k",
                          "witness-lease"),
                         ("witness=http://127.0.0.1:1", "arbiter=witness"),
                         ("arbiter=fence,fence-agent=/bin/true,witness-key=k", "witness-key")):
        has_words(fails(b, "-colo", words), *want)
    path = b.dir + "/secret"
    with open(path, "w") as f:
        f.write("password=x\n")
    os.chmod(path, 0o644)
    has_words(fails(b, "-colo", "arbiter=fence,fence-agent=/bin/true,fence-options=" + path),
              "open to others", "chmod 600")


@case
def no_witness_no_start(b):
    has_words(fails(b, "-colo", "arbiter=witness,witness=http://127.0.0.1:%d,witness-key=k"
                    % free_port()), "may not start without the witness", "connect")


@case
def owner_with_a_lease(b):
    """The key is made, kept, given back at the end; of two one starts; a dead one's key ends."""
    with Etcd(b) as etcd:
        words = ("-colo", "arbiter=witness,witness=http://127.0.0.1:1;%s,witness-lease=2"
                 % etcd.url, "-name", "vm7")
        host = b.host("one", *words)
        key = "qemu-colo/vm7/owner"
        status = host.cmd("query-colo-status")["arbiter"]
        assert status["kind"] == "witness" and status["ownership"] == "alone", status
        assert 0 < status["lease-left"] <= 1600, status
        has_words(fails(b, *words), "another process owns this guest", key)
        time.sleep(3)
        assert json.loads(etcd.ctl("get", key, "--print-value-only").stdout)["state"] == "alone"
        host.cmd("quit")
        host.ended()
        assert etcd.ctl("get", key).stdout == "", "the key was not given back"
        host = b.host("two", *words)
        host.process.kill()
        end = time.monotonic() + 10
        while etcd.ctl("get", key).stdout:
            within(end, "the lease does not end")
            time.sleep(0.2)


def witness(etcd, lease=2):
    return ("-colo", "arbiter=witness,witness=%s,witness-lease=%d,witness-key=k"
            % (etcd.url, lease),
            "-colo", "peer-timeout=6000")


def record(etcd):
    text = etcd.ctl("get", "k", "--print-value-only").stdout
    return json.loads(text) if text else None


@case
def every_round_asks_the_arbiter(b):
    """A survivor that protects its guest again has no win left over: what let it out of the
    first round, a verdict or an operator's word, counts for nothing in the second."""
    for word in (None, {"fenced": True}):
        with Etcd(b) as etcd:
            b.port = free_port()
            words = (*witness(etcd), *b.rom)
            first = b.host("first-%d" % bool(word), *words)
            second = b.host("second-%d" % bool(word), "-incoming", "tcp:127.0.0.1:%d" % b.port,
                            *words)
            b.protect(first, second)
            if word:
                second.cmd("x-colo-lost-heartbeat", word)
            first.process.kill()
            second.wait_state("alone")
            second.wait("the key", lambda: (record(etcd) or {}).get("state") == "alone")
            second.wait("ownership",
                        lambda: second.status()["arbiter"]["ownership"] == "alone")
            b.port = free_port()
            third = b.host("third-%d" % bool(word), "-incoming", "tcp:127.0.0.1:%d" % b.port,
                           *words)
            b.protect(second, third)
            assert record(etcd)["state"] == "protected"
            freeze(etcd.popen.pid)
            third.process.kill()
            second.wait_state("lost")
            second.cmd("x-colo-lost-heartbeat")
            time.sleep(1)
            assert second.status()["state"] == "lost", "went on without the arbiter"
            etcd.popen.send_signal(signal.SIGCONT)
            second.wait_state("alone")
            assert record(etcd)["state"] == "alone"
            second.close()
        shutil.rmtree(b.dir + "/etcd")


@case
def dead_emulator_asks_nobody(b):
    """The emulator dies in the middle of a checkpoint: its side has nothing to win for, and
    the other one serves."""
    with Etcd(b) as etcd:
        for i in range(3):
            b.port = free_port()
            words = (*witness(etcd), *b.rom)
            primary, secondary = b.primary(*words), b.secondary(*words)
            b.protect(primary, secondary)
            child = primary.process.emulator_pid()
            freeze(child)
            primary.cmd("xen-colo-do-checkpoint")
            time.sleep(0.3)
            os.kill(child, signal.SIGKILL)
            secondary.wait_state("alone")
            primary.ended()
            secondary.cmd("quit")
            secondary.ended()


@case
def cluster_decides(b):
    """arbiter=pacemaker: nothing by itself, and the agent's word is obeyed on either side."""
    words = ("-colo", "arbiter=pacemaker")
    primary, secondary = b.pair(*words)
    assert primary.status()["arbiter"]["kind"] == "pacemaker"
    primary.process.kill()
    secondary.wait_state("lost")
    time.sleep(1)
    assert secondary.status()["state"] == "lost"
    secondary.cmd("x-colo-lost-heartbeat")
    secondary.wait_state("alone")
    secondary.wait("word", lambda: secondary.events("COLO_DECISION"))
    assert secondary.events("COLO_DECISION")[-1]["data"] == {"serving": True,
                                                             "arbiter": "pacemaker"}
    secondary.cmd("quit")
    secondary.ended()
    primary, other = b.primary(*words), b.secondary()
    other.x_colo()
    b.migrate(primary)
    b.failed(primary, "arbiter", "pacemaker")


@case
def end_does_not_wait_for_the_agent(b):
    """quit, while a fence agent takes its time."""
    agent = b.dir + "/agent"
    with open(agent, "w") as f:
        f.write("#!/bin/sh\nexec sleep 40\n")
    os.chmod(agent, 0o755)
    words = ("-colo", "arbiter=fence,fence-agent=" + agent)
    primary, secondary = b.pair(*words)
    primary.process.kill()
    secondary.wait_state("lost")
    secondary.wait("the agent", lambda: secondary.status()["arbiter"]["attempts"])
    secondary.cmd("quit")
    secondary.ended(8)


def leases(etcd):
    return {w for w in etcd.ctl("lease", "list").stdout.split() if re.fullmatch("[0-9a-f]{8,}", w)}


@case
def lease_is_ready_before_it_is_needed(b):
    """While protected both sides keep a lease, longer than its time, so that leaving is one request;
    one that the witness has lost meanwhile costs another question, and no more."""
    for lost in (False, True):
        with Etcd(b) as etcd:
            b.port = free_port()
            words = (*witness(etcd, 2), *b.rom)
            first = b.host("first-%d" % lost, *words)
            second = b.host("second-%d" % lost, "-incoming", "tcp:127.0.0.1:%d" % b.port, *words)
            b.protect(first, second)
            second.wait("two leases", lambda: len(leases(etcd)) == 2)
            time.sleep(4)
            before = leases(etcd)
            assert len(before) == 2, before
            assert json.loads(etcd.ctl("get", "k", "-w", "json").stdout)["kvs"][0].get(
                "lease", 0) == 0, "a protected key with a lease"
            if lost:
                second.process.send(signal.SIGSTOP)  # so that it does not see it go
                for one in before:
                    etcd.ctl("lease", "revoke", one)
            first.process.kill()
            if lost:
                second.process.send(signal.SIGCONT)
            second.wait_state("alone")
            key = json.loads(etcd.ctl("get", "k", "-w", "json").stdout)["kvs"][0]
            assert ("%x" % key["lease"] in before) != lost, (key, before)
            time.sleep(3)
            assert second.status()["state"] == "alone" and record(etcd)["state"] == "alone"
            second.close()
        shutil.rmtree(b.dir + "/etcd")


@case
def owner_looks_at_the_key(b):
    """The lease may be alive while the key is another's: silent for good. A key that was only
    deleted is made again."""
    with Etcd(b) as etcd:
        host = b.host("one", *witness(etcd, 4))
        etcd.ctl("del", "k")
        host.wait("the key again", lambda: record(etcd), 5)
        etcd.ctl("put", "k", json.dumps({"owner": "x", "state": "alone", "host": "other"}))
        host.wait_state("fenced", 5)
        assert host.status()["arbiter"]["ownership"] == "idle"
        assert record(etcd)["host"] == "other"


class Between:
    """What lies between one side and its etcd: "pass"; "deaf": requests arrive, the answers of
    transactions do not; "cut"."""

    def __init__(self, b, etcd):
        self.etcd, self.mode, self.swallowed = etcd, "pass", 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.server.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()
        b.closers.append(self)

    def run(self):
        while True:
            try:
                client = self.server.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        port = int(self.etcd.url.rpartition(":")[2])
        try:
            with client, socket.create_connection(("127.0.0.1", port), 2) as server:
                swallow = False
                while True:
                    for s in select.select([client, server], [], [], 5)[0]:
                        data = s.recv(1 << 16)
                        if not data or self.mode == "cut" or (swallow and s is server):
                            self.swallowed += swallow
                            self.mode = "cut" if swallow else self.mode
                            return
                        swallow = swallow or (self.mode == "deaf" and b"/v3/kv/txn" in data)
                        (server if s is client else client).sendall(data)
        except OSError:
            pass

    def close(self):
        self.server.close()


@case
def win_that_was_never_heard_of(b):
    """The swap was carried out, its answer lost, and the lease is over when the witness can be
    reached: KEY/last tells the winner that it is he. Another's name there makes him the loser. A
    witness that lost its data decides nothing; the operator does."""
    for what in "mine", "other", "wiped":
        with Etcd(b) as etcd:
            b.port = free_port()
            path = Between(b, etcd)
            primary = b.host("p-" + what, *witness(etcd), *b.rom)
            secondary = b.host("s-" + what, "-incoming", "tcp:127.0.0.1:%d" % b.port,
                               "-colo", "arbiter=witness,witness=%s,witness-lease=2,witness-key=k"
                               % path.url, "-colo", "peer-timeout=6000", *b.rom)
            b.protect(primary, secondary)
            protected = record(etcd)
            assert protected["state"] == "protected", protected
            path.mode = "deaf"
            primary.process.kill()
            secondary.wait("the swap", lambda: path.swallowed)
            won = json.loads(etcd.ctl("get", "k/last", "--print-value-only").stdout)
            assert won["owner"] != protected["owner"], "the swap was not carried out"
            secondary.wait("the lease's end", lambda: record(etcd) is None)
            assert secondary.status()["state"] == "lost", secondary.status()
            if what == "other":
                etcd.ctl("put", "k/last", json.dumps({"owner": "x", "state": "alone"}))
            elif what == "wiped":
                etcd.stop()
                shutil.rmtree(b.dir + "/etcd")
                etcd.start()
            path.mode = "pass"
            if what == "mine":
                secondary.wait_state("alone")
                assert record(etcd)["owner"] == won["owner"]
            elif what == "other":
                secondary.wait_state("fenced")
            else:
                secondary.wait("the reason", lambda: "lost its data" in secondary.output())
                assert secondary.status()["state"] == "lost"
                secondary.cmd("x-colo-lost-heartbeat", {"fenced": True})
                secondary.wait_state("alone")
                secondary.wait("the key", lambda: record(etcd) and
                               record(etcd)["owner"] == won["owner"])
            secondary.close()
        shutil.rmtree(b.dir + "/etcd", ignore_errors=True)


@case
def etcd_restarted(b):
    """Under protection nobody needs the witness: it may be away and come back, and decides."""
    with Etcd(b) as etcd:
        words = (*witness(etcd), *b.rom)
        primary, secondary = b.primary(*words), b.secondary(*words)
        b.protect(primary, secondary)
        etcd.stop()
        time.sleep(1)
        for host in primary, secondary:
            assert host.status()["state"] == "protected", host.status()
        primary.process.kill()
        secondary.wait_state("lost")
        etcd.start()
        secondary.wait_state("alone")
        # Alone it outlives a restart within its lease, and a longer one by silence.
        etcd.stop()
        etcd.start()
        secondary.wait("the key", lambda: record(etcd))
        assert secondary.status()["state"] == "alone"


@case
def another_cluster_is_refused(b):
    """A key of that name at two witnesses would have two owners."""
    with Etcd(b) as one, Etcd(b, "two") as two:
        primary = b.primary(*witness(one), *b.rom)
        secondary = b.secondary(*witness(two), *b.rom)
        secondary.x_colo()
        b.migrate(primary)
        b.failed(primary, "not the primary's")
        assert not primary.events("COLO_EXIT"), "it counted as protected"
        secondary.ended()
        has_words(secondary.output(), "one etcd cluster")
        primary.cmd("quit")
        primary.ended()
        assert record(one) is None, "the key was left behind: %s" % record(one)


@case
def password_is_not_shown(b):
    said = fails(b, "-colo", "arbiter=witness,witness=http://root:geheim@127.0.0.1:%d,"
                 "witness-key=k" % free_port())
    assert "geheim" not in said and "root:***@127.0.0.1" in said, said
    said = fails(b, "-colo", "arbiter=witness,witness=ftp://root:geheim@x,witness-key=k")
    assert "geheim" not in said, said


@case
def witness_that_talks_nonsense(b):
    """A port that answers, but not as an etcd: refused, nothing crashes."""
    server = socket.create_server(("127.0.0.1", 0))
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
               b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{\"ID\":\"-9e9\"}",
               b"HTTP/1.1 500 no\r\nContent-Length: 0\r\n\r\n", b"\0" * 4096, b"",
               b"HTTP/1.1 200 OK\r\n\r\n" + b"{" * 3000000]

    def serve():
        for i in range(40):
            try:
                c = server.accept()[0]
                c.recv(65536)
                c.sendall(answers[i % len(answers)])
                c.close()
            except OSError:
                continue
    threading.Thread(target=serve, daemon=True).start()
    has_words(fails(b, "-colo", "arbiter=witness,witness=http://127.0.0.1:%d,witness-key=k"
                    % server.getsockname()[1]), "witness")
    server.close()


if __name__ == "__main__":
    sys.exit(main())
