#!/usr/bin/env python3
# Filters and colo-compare on one end, those of stock QEMU on the other.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Each case runs a qemu-colo and a stock emulator. The left one has mirrors and redirectors,
the right one what they lead to: redirectors and colo-compare. The matrix: who is left, with
and without vnet_hdr_support, over unix and TCP sockets, who listens. About 20 seconds.
"""

import itertools
import struct

from colo_qtest import Skip, case, free_port, has_words, main, os, shutil, subprocess, time, within
from colo_frames import STOCK, Vm, Wire, udp


def need_stock():
    if not shutil.which(STOCK):
        raise Skip(STOCK + " is not installed")


class Link:
    """Chardevs of the same name on both sides, connected."""

    def __init__(self, b, server, client, unix, reconnect=0):
        self.b, self.server, self.client = b, server, client
        self.unix, self.reconnect = unix, reconnect
        self.addresses = {}

    def add(self, name):
        address = self.b.dir + "/link-" + name if self.unix else ("127.0.0.1", free_port())
        self.addresses[name] = address
        self.server.add_chardev(name, address)
        self.client.add_chardev(name, address, False, self.reconnect)
        return name

    def again(self, vm, name):
        """Make its end anew at @vm, which has been started again."""
        vm.add_chardev(name, self.addresses[name], vm is self.server,
                       0 if vm is self.server else self.reconnect)


def burst(rng, n, tag):
    return [udp(b"%s %d " % (tag, i) + b"x" * rng.randrange(1400)) for i in range(n)]


def mirrored(b, left, right, link, vnet):
    """filter-mirror -> filter-redirector, and the same with a redirector as sender."""
    for i, kind in enumerate(("filter-mirror", "filter-redirector")):
        nd, name = "n%d" % i, link.add("l%d" % i)
        left.add(kind, "send%d" % i, netdev=nd, queue="tx", outdev=name,
                 vnet_hdr_support=vnet)
        right.add("filter-redirector", "take%d" % i, netdev=nd, queue="rx", indev=name,
                  vnet_hdr_support=vnet)
        rest = left.swallow(nd) if i == 0 else None
        source, sink = left.outside(nd), right.outside(nd)
        frames = burst(b.rng, 60, kind.encode())
        for f in frames:
            source.send(f)
        for f in frames:
            sink.expect(f)
            if rest:
                rest.expect(f)


def compared(b, left, right, link, vnet):
    """Two redirectors -> colo-compare -> redirector."""
    for name in ("pri", "sec", "out"):
        link.add(name)
    note = right.wire("note", vnet)
    left.add("filter-redirector", "back", netdev="n2", queue="rx", indev="out",
             vnet_hdr_support=vnet)
    left.add("filter-redirector", "p", netdev="n2", queue="tx", outdev="pri",
             vnet_hdr_support=vnet)
    left.add("filter-redirector", "s", netdev="n3", queue="tx", outdev="sec",
             vnet_hdr_support=vnet)
    right.add("colo-compare", "cp", primary_in="pri", secondary_in="sec", outdev="out",
              notify_dev="note", iothread="io0", vnet_hdr_support=vnet)
    primary, secondary = left.outside("n2"), left.outside("n3")
    frames = burst(b.rng, 40, b"compared")
    for i in range(0, 40, 40 if left.stock else 1):
        # QEMU's comparison does not keep the order within a flow: one at a time.
        some = frames[i:i + 40] if left.stock else frames[i:i + 1]
        for f in some:
            primary.send(f)
            secondary.send(f)
        for f in some:
            primary.expect(f)
    while note.text(0.05):
        pass  # a twin that is late on a busy machine may be reason to ask
    primary.send(udp(b"differs"))
    secondary.send(udp(b"Differs"))
    primary.none(0.05)
    assert note.text() == b"DO_CHECKPOINT"
    note.send(b"COLO_CHECKPOINT")
    primary.expect(udp(b"differs"))
    note.close()


def matrix(ours_left, vnet, unix):
    def run(b):
        need_stock()
        nds = ("n0", "n1", "n2", "n3")
        left = Vm(b, "left", stock=not ours_left, netdevs=nds)
        right = Vm(b, "right", stock=ours_left, netdevs=nds)
        # Who listens alternates with the transport.
        server, client = (left, right) if unix == ours_left else (right, left)
        link = Link(b, server, client, unix)
        mirrored(b, left, right, link, vnet)
        compared(b, left, right, link, vnet)
    run.__name__ = "%s_to_%s_%s_%s" % (
        *(("ours", "stock") if ours_left else ("stock", "ours")),
        "vnet" if vnet else "plain", "unix" if unix else "tcp")
    case(run)


for combination in itertools.product((True, False), repeat=3):
    matrix(*combination)


def restarted(stays_stock, unix, listens):
    """The receiving end is killed and comes again; the sending end stays."""
    def run(b):
        need_stock()
        left = Vm(b, "left", stock=stays_stock)
        right = Vm(b, "right", stock=not stays_stock)
        server, client = (left, right) if listens else (right, left)
        link = Link(b, server, client, unix, reconnect=1)
        link.add("l")
        left.add("filter-mirror", "m", netdev="n0", queue="tx", outdev="l")
        right.add("filter-redirector", "r", netdev="n0", queue="rx", indev="l")
        rest, source = left.swallow(), left.outside()
        sent = 0

        def talk(right, rounds):
            nonlocal sent
            sink = right.outside()
            # What is sent before the connection is back is lost, as on any wire.
            end = time.monotonic() + 6
            while True:
                source.send(udp(b"%d" % sent))
                sent += 1
                if sink.recv(0.1):
                    break
                within(end, lambda: left.host.output())
            while sink.recv(0.05):
                pass
            for f in burst(b.rng, rounds, b"after"):
                source.send(f)
                sink.expect(f)
        talk(right, 20)
        right.host.process.kill()
        for i in range(20):
            source.send(udp(b"to nobody"))
        time.sleep(0.1)
        right = Vm(b, "right2", stock=not stays_stock)
        if listens:
            link.client = right
        else:
            link.server = right
        link.again(right, "l")
        right.add("filter-redirector", "r", netdev="n0", queue="rx", indev="l")
        talk(right, 20)
        while rest.recv(0.02):
            pass
    run.__name__ = "restarted_peer_of_%s_%s" % (
        "stock" if stays_stock else "ours", "server" if listens else "client")
    case(run)


restarted(False, True, True)
restarted(False, False, False)
restarted(True, False, True)


# --- TLS ---

def need_tls():
    for tool in ("certtool", "psktool"):
        if not shutil.which(tool):
            raise Skip(tool + " (gnutls-bin) is not installed")


def make_keys(b):
    """Directories of QEMU's file names: psk, x509, and a CA that nobody knows."""
    def run(*command, text=""):
        done = subprocess.run(command, input=text, text=True, capture_output=True, cwd=b.dir)
        assert done.returncode == 0, done.stderr
    for name in ("psk", "x509", "other"):
        os.mkdir(b.dir + "/" + name)
    run("psktool", "--username", "qemu", "--pskfile", "psk/keys.psk")
    for d in ("x509", "other"):
        def sign(what, template, *by):
            with open("%s/%s.cfg" % (b.dir, what), "w") as f:
                f.write(template)
            run("certtool", "--generate-privkey", "--key-type=ecdsa", "--sec-param=high",
                "--outfile", "%s/%s-key.pem" % (d, what))
            run("certtool", *(by or ("--generate-self-signed",)), "--load-privkey",
                "%s/%s-key.pem" % (d, what), "--template", what + ".cfg", "--outfile",
                "%s/%s-cert.pem" % (d, what))
        ca = ("--generate-certificate", "--load-ca-certificate", d + "/ca-cert.pem",
              "--load-ca-privkey", d + "/ca-key.pem")
        sign("ca", "cn = CA\nca\ncert_signing_key\n")
        sign("server", "cn = s\nip_address = 127.0.0.1\ntls_www_server\nsigning_key\n", *ca)
        sign("client", "cn = c\ntls_www_client\nsigning_key\n", *ca)
    for root, _, files in os.walk(b.dir):
        for f in files:
            if f.endswith((".pem", ".psk")):
                os.chmod(os.path.join(root, f), 0o600)


def credentials(b, vm, ident, kind, folder, server):
    vm.add("tls-creds-" + kind, ident, dir=b.dir + "/" + folder,
           endpoint="server" if server else "client")


def tls_pair(b, left, right, kind, tls_server):
    """left's mirror -> right's redirector, the chardevs with TLS."""
    port = free_port()
    server, client = (left, right) if tls_server is left else (right, left)
    credentials(b, server, "tls", kind, kind, True)
    credentials(b, client, "tls", kind, kind, False)
    server.add_chardev("t", ("127.0.0.1", port), tls="tls")
    client.add_chardev("t", ("127.0.0.1", port), False, tls="tls")
    left.add("filter-mirror", "m", netdev="n0", queue="tx", outdev="t")
    right.add("filter-redirector", "r", netdev="n0", queue="rx", indev="t")
    rest, source, sink = left.swallow(), left.outside(), right.outside()
    end = time.monotonic() + 5
    while not (left.connected("t") and right.connected("t")):
        within(end, lambda: left.host.output() + right.host.output())
        time.sleep(0.01)
    for _ in range(8):
        # QEMU waits for those who read, with all that it has to do.
        frames = burst(b.rng, 40, b"secret")
        for f in frames:
            source.send(f)
        for f in frames:
            sink.expect(f)
            rest.expect(f)


def tls(kind, ours_left, left_listens):
    def run(b):
        need_stock()
        need_tls()
        make_keys(b)
        left = Vm(b, "left", stock=not ours_left)
        right = Vm(b, "right", stock=ours_left)
        tls_pair(b, left, right, kind, left if left_listens else right)
    run.__name__ = "tls_%s_%s_%s" % (kind, "ours_to_stock" if ours_left else "stock_to_ours",
                                     "listens" if left_listens else "connects")
    case(run)


tls("psk", True, True)
tls("psk", False, True)
tls("x509", True, False)
tls("x509", False, False)


@case
def tls_between_two_of_ours(b):
    need_tls()
    make_keys(b)
    tls_pair(b, Vm(b, "left"), (right := Vm(b, "right")), "x509", right)


@case
def tls_refuses(b):
    """Strangers, and those who speak no TLS, do not get in; the next one does."""
    need_tls()
    make_keys(b)
    v, port = Vm(b, "vm"), free_port()
    got = v.answer("chardev-add", {"id": "t", "backend": {"type": "socket", "data": {
        "addr": {"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}},
        "tls-creds": "none"}}})
    assert got[0] and "none" in got[1], got
    credentials(b, v, "tls", "x509", "x509", True)
    credentials(b, v, "mine", "x509", "x509", False)
    v.add_chardev("t", ("127.0.0.1", port), tls="tls")
    v.add("filter-redirector", "r", netdev="n0", queue="rx", indev="t")
    plain = Wire(("127.0.0.1", port))
    plain.send(udp(b"in the clear"))
    assert plain.closed()
    plain.close()
    o = v.outside()

    def client(folder, *options):
        d = b.dir + "/" + folder
        s = subprocess.Popen(["gnutls-cli", "--x509cafile", b.dir + "/x509/ca-cert.pem",
                              "--x509certfile", d + "/client-cert.pem", "--x509keyfile",
                              d + "/client-key.pem", "-p", str(port), "127.0.0.1",
                              "--logfile", b.dir + "/cli.log", *options],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT)
        f = udp(b"by gnutls-cli")
        time.sleep(0.3)
        try:
            s.stdin.write(struct.pack(">I", len(f)) + f)
            s.stdin.flush()
            got = o.recv(1)
        except BrokenPipeError:
            got = None
        s.kill()
        s.communicate()
        return got == f
    assert not client("other"), "a certificate of another CA was let in"
    assert client("x509"), v.host.output()
    has_words(v.host.output(), "TLS", "'t'")
    refused = v.answer("object-del", {"id": "tls"})
    assert refused[0] and "in use" in refused[1], refused


# --- Malformed input ---

BAD = {
    "empty": struct.pack(">I", 0),
    "too_long": struct.pack(">I", 69633) + bytes(100),
    "all_ones": b"\xff" * 64,
    "control": struct.pack(">I", 0x80000003) + b"\1xy",
}
BAD_VNET = {
    "header_is_all": struct.pack(">II", 20, 20) + bytes(20),
    "header_huge": struct.pack(">II", 60, 0x7fffffff) + bytes(60),
    "header_over_32": struct.pack(">II", 60, 33) + bytes(60),
}


def poisoned(b, v, chardev, wire, works, vnet):
    """Everything that is wrong ends that connection; the next one works."""
    for name, data in {**BAD, **(BAD_VNET if vnet else {})}.items():
        wire.raw(data)
        assert wire.closed(), "%s: %s stays connected" % (chardev, name)
        wire.close()
        wire = Wire(v.path(chardev), vnet)
        works(wire)
    # Cut off in the middle, at any place.
    whole = struct.pack(">I", 100) + (struct.pack(">I", 12) if vnet else b"") + bytes(100)
    for _ in range(5):
        wire.raw(whole[:b.rng.randrange(1, len(whole))])
        wire.close()
        wire = Wire(v.path(chardev), vnet)
        works(wire)
    return wire


def malformed(vnet):
    def run(b):
        v = Vm(b, "vm", netdevs=("n0", "n1"))
        pri, sec, out, note = (v.wire(n, vnet) for n in ("pri", "sec", "out", "note"))
        v.add("colo-compare", "cp", primary_in="pri", secondary_in="sec", outdev="out",
              notify_dev="note", iothread="io0", vnet_hdr_support=vnet)
        inject = v.wire("in", vnet)
        v.add("filter-redirector", "r", netdev="n0", queue="rx", indev="in",
              vnet_hdr_support=vnet)
        o = v.outside()
        count = 0

        def equal(p, s):
            nonlocal count
            count += 1
            f = udp(b"equal %d" % count, sport=count)
            p.send(f)
            s.send(f)
            out.expect(f)

        def injected(w):
            nonlocal count
            count += 1
            w.send(udp(b"in %d" % count))
            o.expect(udp(b"in %d" % count))

        def asked(w):
            w.send(b"COLO_USERSPACE_PROXY_INIT")
            assert w.text() == b"COLO_COMPARE_GET_XEN_INIT"
        equal(pri, sec)
        injected(inject)
        asked(note)
        begin = time.monotonic()
        pri = poisoned(b, v, "pri", pri, lambda w: equal(w, sec), vnet)
        sec = poisoned(b, v, "sec", sec, lambda w: equal(pri, w), vnet)
        inject = poisoned(b, v, "in", inject, injected, vnet)
        note = poisoned(b, v, "note", note, asked, vnet)
        poisoned(b, v, "n1", v.outside("n1"), lambda w: None, False)
        equal(pri, sec)
        injected(inject)
        asked(note)
        lines = [x for x in v.host.output().splitlines() if "connection closed" in x]
        most = 5 * (1 + int(time.monotonic() - begin))
        assert 5 <= len(lines) <= most, "%d lines: %s" % (len(lines), lines)
        has_words(lines[0], "pri", "length")
        v.outside("n0").close()
    run.__name__ = "malformed_" + ("vnet" if vnet else "plain")
    case(run)


malformed(False)
malformed(True)


# --- vnet headers ---

def half_done(frame):
    """A UDP frame whose checksum is left to hardware, and the header that says so."""
    src, dst = frame[26:30], frame[30:34]
    length = len(frame) - 34
    total = sum(struct.unpack(">4H", src + dst)) + 17 + length
    total = (total & 0xffff) + (total >> 16)
    partial = frame[:40] + struct.pack(">H", total) + frame[42:]
    whole = sum(struct.unpack(">%dH" % (length // 2), partial[34:34 + length // 2 * 2]))
    whole += partial[-1] << 8 if length % 2 else 0
    while whole >> 16:
        whole = (whole & 0xffff) + (whole >> 16)
    done = frame[:40] + struct.pack(">H", ~whole & 0xffff) + frame[42:]
    return struct.pack("<BBHHHHH", 1, 0, 34, 0, 34, 6, 0), partial, done


@case
def checksums_left_to_hardware(b):
    """They are made where such a frame comes in: what is compared is what leaves."""
    v = Vm(b, "vm")
    pri, sec, out = (v.wire(n, True) for n in ("pri", "sec", "out"))
    v.wire("note", True)
    v.add("colo-compare", "cp", primary_in="pri", secondary_in="sec", outdev="out",
          notify_dev="note", iothread="io0", vnet_hdr_support=True)
    inject = v.wire("in", True)
    v.add("filter-redirector", "r", netdev="n0", queue="rx", indev="in",
          vnet_hdr_support=True)
    o = v.outside()
    for n in (0, 1, 2, 55, 1400):
        header, partial, done = half_done(udp(b"y" * n))
        inject.send(partial, header)
        o.expect(done)
        pri.send(partial, header)
        sec.send(done, bytes(12))  # a twin without offloads is equal
        got = out.item()
        assert got == (bytes(12), done), got
    # A header that points outside of its frame: ignored.
    f = udp(b"lie")
    inject.send(f, struct.pack("<BBHHHHH", 1, 0, 0, 0, 60000, 16, 0))
    o.expect(f)
    # A large segment that is none: dropped, and counted.
    inject.send(f, struct.pack("<BBHHHHH", 0, 1, 54, 1400, 0, 0, 0))
    o.none()
    stats = [x for x in v.host.cmd("query-colo-proxy") if x["id"] == "r"][0]
    assert stats["vnet-bad"] == 2 and stats["vnet-completed"] == 5, stats


if __name__ == "__main__":
    raise SystemExit(main())
