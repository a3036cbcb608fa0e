# Who may speak: the model by spin, the options, and the witness of one side, by a real etcd.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import re
import shutil

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
    found, text = errors(b, open(MODEL).read(), ("-DNFAIR=3",), ("-a", "-f"))
    assert found == 0, text


@case
def model_finds_what_is_wrong(b):
    """The model can fail: who renews what it does not own, a gate that never looks at the
    time, a secondary that goes on vouching."""
    model = open(MODEL).read()
    for old, new in (("atomic { key == ALONE && owner == me -> lease[me] = true }",
                      "true -> lease[me] = true"),
                     ("lease[P] = false; gate[P] = false", "lease[P] = false"),
                     ("me == S -> vouching = false", "me == S -> skip")):
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
    for words, *want in (("arbiter=pope", "pope", "manual, fence or witness"),
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


class Etcd:
    def __init__(self, b):
        if not shutil.which("etcd"):
            raise Skip("etcd is not installed")
        self.url = "http://127.0.0.1:%d" % free_port()
        peer = "http://127.0.0.1:%d" % free_port()
        self.popen = subprocess.Popen(
            ["etcd", "--name", "w", "--data-dir", b.dir + "/etcd", "--log-level", "error",
             "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
             "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
             "--initial-cluster", "w=" + peer], stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        for _ in range(100):
            if self.ctl("endpoint", "health", check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError("etcd does not start")

    def ctl(self, *words, check=True):
        done = subprocess.run(["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", self.url,
                               *words], capture_output=True, text=True, timeout=20)
        assert not check or done.returncode == 0, done.stderr
        return done

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.popen.kill()
        self.popen.wait()


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
            assert time.monotonic() < end, "the lease does not end"
            time.sleep(0.2)


@case
def witness_that_talks_nonsense(b):
    """A port that answers, but not as an etcd: refused, nothing crashes."""
    import threading
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
