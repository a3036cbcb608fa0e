# Two sides of a pair that looks after itself, on one machine.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
They are at 127.0.0.1 and 127.0.0.2, so that they can have the same ports.
"""

import hashlib
import hmac
import threading

from colo_qtest import Late, QMPError, free_port, json, os, socket

ADDRESS = {"a": "127.0.0.1", "b": "127.0.0.2"}
KEY = b"a key that both of the two have"


class PairBed:
    """Sides of one pair: a name is an address, a role is the command line."""

    def __init__(self, bed, disk=True, extra=()):
        self.bed, self.disk, self.extra = bed, disk, list(extra)
        self.ports = {name: free_port() for name in ("pair", "nbd", "migrate")}
        self.image, self.mib = {}, {"a": 4, "b": 4}
        self.rom = bed.rom
        self.way = None  # the address at which a reaches b, if it is another one
        if disk:
            for who in "ab":
                self.image[who] = bed.image("%s.raw" % who, 4)

    def options(self, who, *more):
        other = self.way if who == "a" and self.way else ADDRESS["b" if who == "a" else "a"]
        return ["-colo", ",".join(["pair=on", "listen=" + ADDRESS[who], "peer=" + other] + [
            "%s-port=%d" % item for item in self.ports.items()] + list(more))]

    def primary(self, who, *more, connect=True):
        args = self.options(who, *more) + self.rom + self.extra + ["-name", "vm-" + who]
        if self.disk:
            args += ["-drive", "if=virtio,id=colo-disk0,driver=quorum,read-pattern=fifo,"
                     "vote-threshold=1,children.0.file.filename=%s,children.0.driver=raw"
                     % self.image[who]]
        return self.bed.host(who, *args, connect=connect)

    def secondary(self, who, *more, connect=True):
        args = self.options(who, *more) + self.rom + self.extra + ["-name", "vm-" + who]
        if self.disk:
            over = [self.bed.image("%s-%s.qcow2" % (who, name), self.mib[who], "qcow2")
                    for name in ("active", "hidden")]
            args += ["-drive", "if=none,id=parent0,file.filename=%s,driver=raw"
                     % self.image[who],
                     "-drive", "if=none,id=childs0,driver=replication,mode=secondary,"
                     "file.driver=qcow2,top-id=colo-disk0,file.file.filename=%s,"
                     "file.backing.driver=qcow2,file.backing.file.filename=%s,"
                     "file.backing.backing=parent0" % tuple(over),
                     "-drive", "if=virtio,id=colo-disk0,driver=quorum,read-pattern=fifo,"
                     "vote-threshold=1,children.0=childs0"]
        args += ["-incoming", "tcp:%s:%d" % (ADDRESS[who], self.ports["migrate"])]
        return self.bed.host(who, *args, connect=connect)

    def put(self, who, question=b""):
        """All that the pair port says to @question."""
        with socket.create_connection((ADDRESS[who], self.ports["pair"]), 20) as s:
            s.sendall(question)
            return read_all(s)

    def ask(self, who):
        """What the pair port says to whoever asks, without proof."""
        text = self.put(who)
        assert text.endswith(b"\n") and text.count(b"\n") == 1, text
        return json.loads(text)

    def secret(self, who, key=None, beats=None):
        """Words of a heartbeat with a key-file; @beats: both sides' UDP ports."""
        path = "%s/%s.key" % (self.bed.dir, who)
        with open(path, "wb") as f:
            f.write((key or KEY) + b"\n")
        os.chmod(path, 0o600)
        mine, theirs = (beats or {}).get(who, 0), (beats or {}).get("ba"["ab".index(who)], 9)
        return ["-object", "colo-heartbeat,id=hb0,key-file=%s,local=%s:%d,peer=%s:%d,"
                "interval=50,timeout=2000" % (path, ADDRESS[who], mine,
                                              ADDRESS["ba"["ab".index(who)]], theirs)]

    def was(self, who, text):
        """Words of a state file that says @text."""
        path = "%s/%s.role" % (self.bed.dir, who)
        with open(path, "w") as f:
            f.write("%-31s\n" % text)
        return "state-file=" + path

    def answer_as_peer(self, who, reply):
        peer = FakePeer(ADDRESS[who], self.ports["pair"], reply)
        self.bed.closers.append(peer)
        return peer


def read_all(s):
    text = b""
    while True:
        more = s.recv(65536)
        if not more:
            return text
        text += more


def line_of(state, **more):
    said = {"program": "qemu-colo", "version": "0", "name": "vm", "state": state,
            "serves": False, "role": "none", "epoch": 0, "wants-peer": False, "instance": 1}
    return json.dumps({**said, **more}).encode() + b"\n"


def prove(line, question, key=None):
    """@line (with its newline) and what shows that the key made it for @question; written from
    docs/interop/pair.rst."""
    head, number, nonce, asker = question.split()
    assert (head, number) == (b"colo-pair", b"1"), question
    text = b"qemu-colo pair port 1: answer\0" + bytes.fromhex(nonce.decode()) + \
        bytes.fromhex(asker.decode()) + line.rstrip(b"\n")
    mac = hmac.new(key or KEY, text, hashlib.sha256).hexdigest()
    return line + b"hmac-sha256 " + mac.encode() + b"\n"


class FakePeer:
    """Whatever it is that answers at the peer's address: @reply of a question gives the answer,
    or None to say nothing and hold the line."""

    def __init__(self, address, port, reply):
        self.reply, self.asked, self.held = reply, 0, []
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((address, port))
        self.socket.listen(8)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while True:
            try:
                conn = self.socket.accept()[0]
                conn.settimeout(20)
                question = conn.recv(100)
                self.asked += 1
                answer = self.reply(question)
                if answer is None:
                    self.held.append(conn)
                    continue
                conn.sendall(answer)
                conn.close()
            except (ConnectionError, TimeoutError):
                continue
            except OSError:
                return

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.thread.join(20)
        self.socket.close()
        for conn in self.held:
            conn.close()


def pair_state(host):
    return host.status()["pair"]["state"]


def wait_pair(host, state, timeout=40):
    try:
        host.wait("pair " + state, lambda: pair_state(host) == state, timeout)
    except QMPError as e:
        kind = Late if isinstance(e, Late) else AssertionError
        raise kind("%s: %s; %s" % (e, host.status(), host.output())) from None


def protected(primary, secondary, timeout=40):
    wait_pair(primary, "protected", timeout)
    wait_pair(secondary, "protected", timeout)
    assert primary.status()["mode"] == "primary" and secondary.status()["mode"] == "secondary"


MIB = 1 << 20


def mirror_slowly(host, speed=MIB, timeout=20):
    """Catch the copy at its beginning, and slow it down."""
    def there():
        return [j for j in host.cmd("query-block-jobs") if j["device"] == "resync"]
    host.wait("resync", there, timeout)
    host.cmd("block-job-set-speed", {"device": "resync", "speed": speed})
    assert not there()[0]["ready"], "the copy was too quick to be caught"
    return there


def big_pair(bed, mib=192):
    p = PairBed(bed)
    for who in "ab":
        p.mib[who] = mib
        with open(p.image[who], "wb") as f:
            f.truncate(mib * MIB)
    with open(p.image["a"], "r+b") as f:
        for _ in range(mib):
            f.write(bed.rng.randbytes(MIB))
    return p
