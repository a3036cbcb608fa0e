# Disks that fail: what stock QEMU says and does, we do; and what a pair does.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

from colo_qtest import *


def answer(host, name, arguments=None):
    """What a command says, in a form that two programs' answers can be compared in."""
    try:
        return json.dumps(host.cmd(name, arguments), sort_keys=True)
    except QMPError as e:
        return "error: %s" % e


def compare(got):
    different = [(s, o) for s, o in zip(got["stock"], got["ours"]) if s != o]
    assert len(got["stock"]) == len(got["ours"]) and not different, \
        "\n".join("stock %.300s\nours  %.300s" % d for d in different)


def raw(b, name):
    return "driver=raw,node-name=%s,file.driver=file,file.filename=%s" % (
        name, b.image(name + ".raw"))


@case
def children_come_and_go_as_stock(b):
    """x-blockdev-change and blockdev-add of quorums, with everything wrong with them."""
    got = {}
    for name, extra in (("stock", []), ("ours", ["-colo", "checkpoint-events=on"])):
        nodes = sum((["-blockdev", raw(b, n)] for n in "abcd"), [])
        host = b.host(name, *extra, *nodes, "-blockdev",
                      "driver=quorum,node-name=q,vote-threshold=1,read-pattern=fifo,"
                      "children.0=a,children.1=b")
        change, add = "x-blockdev-change", "blockdev-add"
        quorum = {"driver": "quorum", "node-name": "q3", "vote-threshold": 1, "children": ["c"]}
        script = [
            (change, {"parent": "q"}),
            (change, {"parent": "q", "child": "children.0", "node": "c"}),
            (change, {"parent": "q", "child": "none"}),
            (change, {"parent": "q", "child": "children.7"}),
            (change, {"parent": "q", "node": "none"}),
            (change, {"parent": "none", "node": "c"}),
            (change, {"parent": "q", "node": "b"}),
            (change, {"parent": "q", "node": "q"}),
            (change, {"parent": "a", "node": "c"}),
            (change, {"parent": "a", "child": "file"}),
            (change, {"parent": "q", "node": "c"}),
            (change, {"parent": "q", "child": "children.1"}),
            (change, {"parent": "q", "child": "children.1"}),
            (change, {"parent": "q", "node": "b"}),
            (change, {"parent": "q", "child": "children.2"}),
            (change, {"parent": "q", "child": "children.3"}),
            (change, {"parent": "q", "child": "children.0"}),
            ("blockdev-del", {"node-name": "b"}),
            ("blockdev-del", {"node-name": "b"}),
            ("blockdev-del", {"node-name": "a"}),
            (add, dict(quorum, children=["b"])),
            (add, dict(quorum, **{"vote-threshold": 0})),
            (add, dict(quorum, children=[])),
            (add, dict(quorum, children=["none"])),
            (add, dict(quorum, children=["c", "d"], blkverify=True,
                       **{"vote-threshold": 2, "rewrite-corrupted": True})),
            (add, dict(quorum, **{"node-name": "q"})),
            (add, dict(quorum, **{"rewrite-corrupted": True})),
            ("blockdev-del", {"node-name": "q3"}),
        ]
        got[name] = ["%s %s: %s" % (c, a, answer(host, c, a)) for c, a in script]
        host.close()
    compare(got)


@case
def quorum_events_as_stock(b):
    """A child with an injected error, and one that lies: the same events."""
    got = {}
    for name, extra in (("stock", []), ("ours", ["-colo", "checkpoint-events=on"])):
        broken = ("driver=raw,node-name=b,file.driver=blkdebug,file.image.driver=file,"
                  "file.image.filename=%s,file.inject-error.0.event=write_aio,"
                  "file.inject-error.0.errno=28,file.inject-error.0.once=off" % b.image("b.raw"))
        host = b.host(name, *extra, "-blockdev", raw(b, "a"), "-blockdev", broken, "-blockdev",
                      raw(b, "c"), "-blockdev", raw(b, "d"), "-blockdev",
                      "driver=quorum,node-name=q,vote-threshold=1,read-pattern=fifo,"
                      "children.0=a,children.1=b", "-blockdev",
                      "driver=quorum,node-name=v,vote-threshold=2,children.0=c,children.1=d",
                      "-device", "ide-hd,drive=q,id=q-disk", "-device", "ide-hd,drive=v,id=v-disk")

        def io(node, command):
            host.cmd("human-monitor-command",
                     {"command-line": "qemu-io -d %s-disk \"%s\"" % (node, command)})
        io("q", "write -P 1 4k 8k")
        io("q", "read -P 1 4k 8k")
        io("v", "write -P 1 0 64k")
        with open(b.dir + "/d.raw", "r+b") as f:
            f.seek(1024)
            f.write(b"lies")
        io("v", "read 1k 512")
        io("v", "read 8k 512")
        events = ["%s %s" % (e["event"], json.dumps(e["data"], sort_keys=True))
                  for _, e in list(host.qmp.events) if e["event"].startswith("QUORUM")]
        got[name] = events
        host.close()
    assert len(got["stock"]) == 2, got
    compare(got)


if __name__ == "__main__":
    sys.exit(main())
