# Commands beside protection: announce-self, and replication of disks by Xen's commands.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

from colo_frames import STOCK, Wire
from colo_qtest import *

MAC = bytes.fromhex("525400123456")


def announcements(wire, seconds):
    """Times of the RARPs that come, without those of a NIC's own start."""
    out, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        got = wire.item(timeout=max(0, end - time.monotonic()))
        if got and got[1][12:14] == b"\x80\x35":
            assert got[1][6:12] == MAC and got[1][22:28] == MAC, got
            out.append(time.monotonic())
    return out


def listening(b, *args, program=None, name=None):
    address = "%s/net-%s" % (b.dir, name)
    host = b.host(name, *args, "-netdev", "stream,id=hn0,server=on,addr.type=unix,addr.path=" +
                  address, "-device", "e1000,id=e0,netdev=hn0,mac=52:54:00:12:34:56",
                  program=program)
    return host, Wire(address)


@case
def announcements_are_sent_as_asked(b):
    """As many rounds as stock sends, of the NICs that are named. Unprotected the emulator
    sends its own through us as well."""
    how = {"initial": 100, "max": 200, "rounds": 3, "step": 50}
    counts = {}
    for name, program in (("ours", None), ("stock", shutil.which(STOCK))):
        if name == "stock" and not program:
            continue
        host, wire = listening(b, *(() if program else ("-colo", "peer-timeout=6000")),
                               program=program, name=name)
        time.sleep(0.3)
        host.cmd("announce-self", how)
        host.cmd("announce-self", {**how, "interfaces": ["nope"], "id": "other"})
        counts[name] = announcements(wire, 1.5)
        host.cmd("announce-self", {**how, "rounds": 9, "interfaces": ["e0"], "id": "x",
                                   "initial": 400, "max": 400})
        host.cmd("announce-self", {**how, "rounds": 0, "id": "x"})
        counts[name + " ended"] = announcements(wire, 1.0)
        host.close()
    assert len(counts["ours"]) == 6, counts  # two senders
    assert counts["ours"][-1] - counts["ours"][0] > 0.2, counts
    assert len(counts["ours ended"]) == 2, counts
    if "stock" in counts:
        assert len(counts["stock"]) == 3 and len(counts["stock ended"]) == 1, counts


QUORUM = "driver=quorum,vote-threshold=1,read-pattern=fifo,"


def xen_pair(b):
    """Two programs with one replicated disk, and nothing else in common."""
    b.image("active", 4, "qcow2")
    b.image("hidden", 4, "qcow2")
    p = b.host("p", "-colo", "peer-timeout=6000", "-drive", "if=none,id=d0," + QUORUM +
               "children.0.driver=raw,children.0.file.filename=" + b.image("pri", 4),
               "-device", "virtio-blk-pci,drive=d0,id=vb")
    s = b.host("s", "-colo", "peer-timeout=6000",
               "-drive", "if=none,id=parent0,driver=raw,file.filename=" + b.image("sec", 4),
               "-drive", "if=none,id=childs0,driver=replication,mode=secondary,top-id=d0,"
               "file.driver=qcow2,file.file.filename=%s/active,file.backing.driver=qcow2,"
               "file.backing.file.filename=%s/hidden,file.backing.backing=parent0"
               % (b.dir, b.dir), "-drive", "if=none,id=d0," + QUORUM + "children.0=childs0",
               "-device", "virtio-blk-pci,drive=d0,id=vb")
    port = free_port()
    s.cmd("nbd-server-start", {"addr": {"type": "inet", "data": {"host": "127.0.0.1",
                                                                "port": str(port)}}})
    s.cmd("nbd-server-add", {"device": "parent0", "writable": True})
    p.cmd("stop")
    p.qmp.hmp("drive_add -n buddy driver=replication,mode=primary,file.driver=nbd,"
              "file.host=127.0.0.1,file.port=%d,file.export=parent0,node-name=replication0"
              % port)
    p.cmd("x-blockdev-change", {"parent": "d0", "node": "replication0"})
    return p, s


def io(host, text):
    said = host.cmd("human-monitor-command", {"command-line": 'qemu-io d0 "%s"' % text})
    assert "rror" not in said and "failed" not in said, said


def holds(host, pattern):
    """Whether the guest of @host would read @pattern in the first 64 KiB of its disk."""
    said = host.cmd("human-monitor-command", {
        "command-line": 'qemu-io d0 "read -P %d 0 64k"' % pattern})
    return "verification failed" not in said


def replicate(p, s):
    for host, primary in ((s, False), (p, True)):
        host.cmd("xen-set-replication", {"enable": True, "primary": primary})


def checkpoint(p, s):
    s.cmd("stop")
    p.cmd("xen-colo-do-checkpoint")
    s.cmd("xen-colo-do-checkpoint")
    s.cmd("cont")


@case
def disks_replicate_by_xen_commands(b):
    """Writes wait for a checkpoint; a failover serves the last one; nothing else may run."""
    p, s = xen_pair(b)
    replicate(p, s)
    for host in (p, s):
        assert host.cmd("query-xen-replication-status") == {"error": False}
        has_words(host.error("xen-set-replication", {"enable": True, "primary": host is p}),
                  "running")
    p.x_colo()
    has_words(p.error("migrate", {"uri": "tcp:127.0.0.1:1"}), "xen-set-replication")
    io(p, "write -P 17 0 64k")
    assert holds(p, 17) and holds(s, 0), "shown before the checkpoint"
    has_words(s.error("xen-colo-do-checkpoint"), "guest runs")
    io(s, "write -P 99 0 64k")
    assert holds(s, 99)
    checkpoint(p, s)
    assert holds(s, 17), "the checkpoint is not there"
    io(p, "write -P 18 0 64k")
    s.cmd("xen-set-replication", {"enable": False, "primary": False, "failover": True})
    p.cmd("xen-set-replication", {"enable": False, "primary": True})
    assert holds(s, 17) and holds(p, 18)
    s.cmd("quit")
    assert s.ended() == 0
    with open(b.dir + "/sec", "rb") as f:
        assert f.read(65536) == bytes([17]) * 65536


@case
def disks_stop_without_failover(b):
    """Then the image is what the primary has written."""
    p, s = xen_pair(b)
    replicate(p, s)
    io(p, "write -P 21 0 64k")
    s.cmd("stop")
    s.cmd("xen-set-replication", {"enable": False, "primary": False})
    p.cmd("xen-set-replication", {"enable": False, "primary": True, "failover": True})
    assert holds(s, 21) and holds(p, 21)
    s.cmd("quit")
    assert s.ended() == 0
    with open(b.dir + "/sec", "rb") as f:
        assert f.read(65536) == bytes([21]) * 65536


@case
def a_dead_peer_shows_in_the_status(b):
    p, s = xen_pair(b)
    replicate(p, s)
    s.process.kill()
    io(p, "write -P 5 0 64k")
    p.wait("the error", lambda: p.cmd("query-xen-replication-status")["error"], 20)
    assert p.cmd("query-xen-replication-status")["desc"]
    p.cmd("xen-set-replication", {"enable": False, "primary": True, "failover": True})
    io(p, "write -P 6 0 64k")
    assert holds(p, 6)


if __name__ == "__main__":
    sys.exit(main())
