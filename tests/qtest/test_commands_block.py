# The command table: commands of disks.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

from colo_commands import *
from colo_qtest import *


@commands("nbd-server-start")
def _(t):
    inet = {"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}
    unix = {"type": "unix", "data": {"path": t.bed.dir + "/nbd"}}
    for addr in (inet, unix):
        for host in t.hosts.values():
            if addr is unix and os.path.exists(unix["data"]["path"]):
                os.unlink(unix["data"]["path"])
            host.cmd("nbd-server-start", {"addr": addr})
        t.same("nbd-server-start", {"addr": addr})
        t.equal("nbd-server-stop")
    t.same("nbd-server-start", {"addr": {"type": "nope", "data": {}}})
    t.same("nbd-server-start", {"addr": {"type": "inet", "data": {"host": "127.0.0.1"}}})
    t.same("nbd-server-start")
    has_words(t.ours.error("nbd-server-start", {"addr": inet, "tls-authz": "x"}), "tls-authz")


@commands("nbd-server-add, nbd-server-remove, nbd-server-stop")
def _(t):
    t.same("nbd-server-add", {"device": "d0"})
    t.same("nbd-server-stop")
    t.same("nbd-server-remove", {"name": "d0"})
    t.same("nbd-server-start", {"addr": {"type": "inet", "data": {"host": "127.0.0.1",
                                                                 "port": "0"}}})
    t.same("nbd-server-add", {"device": "nope"})
    t.same("nbd-server-add")
    t.same("nbd-server-add", {"device": "d0", "writable": True})
    t.same("nbd-server-remove", {"name": "d0"})
    t.same("nbd-server-add", {"device": "d0"})
    t.same("nbd-server-add", {"device": "d0"})
    t.same("nbd-server-remove", {"name": "d0", "mode": "soft"})
    t.same("nbd-server-remove", {"name": "d0", "mode": "hard"})
    t.equal("nbd-server-stop")


@commands("block-export-add, block-export-del, query-block-exports")
def _(t):
    t.same("block-export-del", {"id": "x"})
    t.same("block-export-add", {"type": "nope", "id": "x", "node-name": "d0"})
    t.same("block-export-add", {"type": "nbd", "id": "x"})
    t.same("nbd-server-start", {"addr": {"type": "inet", "data": {"host": "127.0.0.1",
                                                                 "port": "0"}}})
    node = {h: next(n["node-name"] for n in t.hosts[h].cmd("query-named-block-nodes")
                    if n["drv"] == "quorum") for h in t.hosts}
    for name, host in t.hosts.items():
        host.cmd("block-export-add", {"type": "nbd", "id": "x", "node-name": node[name]})
    stock, ours = t.same("query-block-exports")
    assert len(stock) == len(ours) == 1 and ours[0]["id"] == stock[0]["id"] == "x"
    t.equal("block-export-del", {"id": "x"})
    t.equal("query-block-exports")
    t.equal("nbd-server-stop")
    for host in t.hosts.values():
        host.wait("event", lambda: host.events("BLOCK_EXPORT_DELETED"), 5)


@commands("x-blockdev-change")
def _(t):
    t.same("x-blockdev-change", {"parent": "d0"})
    t.same("x-blockdev-change", {"parent": "nope", "child": "children.0"})
    t.same("x-blockdev-change", {"parent": "d0", "child": "children.7"})
    t.same("x-blockdev-change", {"parent": "d0", "node": "nope"})
    t.same("x-blockdev-change")


@commands("blockdev-add, blockdev-del")
def _(t):
    image = t.bed.image("plain", 4, "raw")
    new = {"driver": "file", "node-name": "plain", "filename": image}
    t.equal("blockdev-add", new)
    for host in t.hosts.values():
        nodes = [n["node-name"] for n in host.cmd("query-named-block-nodes")]
        assert nodes.count("plain") == 1, nodes
    t.same("blockdev-del", {"node-name": "nope"})
    t.equal("blockdev-del", {"node-name": "plain"})
    t.same("blockdev-del", {"node-name": "plain"})
    t.same("blockdev-del")
    t.same("blockdev-add", {"driver": "nope", "node-name": "x"})
    t.same("blockdev-add", {"driver": "qcow2", "node-name": "x"})
    t.same("blockdev-add", {"driver": "quorum", "node-name": "x", "children": []})
    t.same("blockdev-add", {"node-name": "x"})
    t.same("blockdev-add", {"driver": "file", "node-name": "x", "filename": "/nonexistent/x"})


@commands("human-monitor-command")
def _(t):
    for text in ("drive_add -n buddy driver=nope,node-name=x", "drive_del nope", "nope",
                 "drive_add", "info name", "drive_add 0 if=none,id=x,file=/nonexistent/x"):
        t.equal("human-monitor-command", {"command-line": text})
    image = t.bed.image("hmp", 4, "raw")
    for text in ("drive_add 0 if=none,id=hmp0,driver=raw,file=" + image, "drive_del hmp0"):
        t.equal("human-monitor-command", {"command-line": text})
    t.same("human-monitor-command")
    for text in ("migrate tcp:127.0.0.1:1", "stop", "netdev_del hn0"):
        has_words(t.ours.error("human-monitor-command", {"command-line": text}), "QMP")


@commands("device_add")
def _(t):
    t.same("device_add", {"driver": "nope"})
    t.same("device_add", {"driver": "virtio-blk-pci", "drive": "nope"})
    t.same("device_add", {"driver": "virtio-rng-pci", "id": "e0"})
    t.same("device_add")
    image = t.bed.image("plug", 4, "raw")
    for host in t.hosts.values():
        host.cmd("blockdev-add", {"driver": "file", "node-name": "plug", "filename": image,
                                  "read-only": True})
    t.equal("device_add", {"driver": "virtio-blk-pci", "drive": "plug", "id": "plugged"})


@commands("device_del")
def _(t):
    t.same("device_del", {"id": "nope"})
    t.equal("device_del", {"id": "plugged"})


@commands("drive-mirror, blockdev-mirror")
def _(t):
    for command in ("drive-mirror", "blockdev-mirror"):
        t.same(command, {"device": "nope", "target": "x", "sync": "full"})
        t.same(command, {"device": "d0", "target": "x", "sync": "nope"})
        t.same(command, {"device": "d0", "target": "x"})
        t.same(command)
    has_words(t.ours.error("blockdev-mirror", {"device": "d0", "target": "t0", "sync": "full",
                                               "filter-node-name": "f"}), "filter-node-name")


@commands("block-job-*, job-*")
def _(t):
    for verb in ("cancel", "pause", "resume", "complete"):
        t.same("block-job-" + verb, {"device": "nope"})
        t.same("job-" + verb, {"id": "nope"})
    for verb in ("finalize", "dismiss"):
        t.same("block-job-" + verb, {"id": "nope"})
        t.same("job-" + verb, {"id": "nope"})
    t.same("block-job-set-speed", {"device": "nope", "speed": 5})
    t.same("block-job-set-speed", {"device": "nope"})
    for name, host in t.hosts.items():
        host.cmd("drive-mirror", {"device": "d0", "job-id": "j0", "sync": "full",
                                  "target": "%s/copy-%s" % (t.bed.dir, name), "format": "raw"})
        host.qmp.wait_event("BLOCK_JOB_READY")
    stock, ours = t.same("query-block-jobs")
    assert {k: v for k, v in stock[0].items() if k not in ("offset", "len")} == \
        {k: v for k, v in ours[0].items() if k in stock[0] and k not in ("offset", "len")}
    t.same("query-jobs")
    t.equal("block-job-cancel", {"device": "j0"})
    for host in t.hosts.values():
        host.qmp.wait_event("BLOCK_JOB_COMPLETED")


@commands("query-block-jobs, query-jobs")
def _(t):
    t.equal("query-block-jobs")
    t.equal("query-jobs")


@commands("query-named-block-nodes, query-block")
def _(t):
    stock, ours = t.same("query-block")
    assert [d["device"] for d in stock] == [d["device"] for d in ours], ours
    for flat in ({}, {"flat": True}):
        stock, ours = t.same("query-named-block-nodes", flat)
        seen = [n["node-name"] for n in ours]
        assert len(set(seen)) == len(seen), seen
        assert not [n for n in ours if n["node-name"].startswith("qemu-colo") or
                    "/qemu-colo-" in n["file"]], ours
        assert "quorum" in [n["drv"] for n in ours]
    t.same("query-named-block-nodes", {"flat": 1})


@commands("query-blockstats")
def _(t):
    stock, ours = t.hosts["stock"].cmd("query-blockstats"), t.ours.cmd("query-blockstats")
    assert [d.get("device") for d in stock] == [d.get("device") for d in ours]
    found = list(shape_differs([d["stats"] for d in stock], [d["stats"] for d in ours], ""))
    assert not found, found
    nodes = {n["node-name"] for n in t.ours.cmd("query-named-block-nodes")}
    for d in ours + t.ours.cmd("query-blockstats", {"query-nodes": True}):
        # A drive's node is called as the drive here, where stock makes a name up.
        assert d["node-name"] in nodes or d.get("device") in nodes, (d, nodes)
        assert d["node-name"] != d.get("device"), d
    t.same("query-blockstats", {"query-nodes": 1})


@case
def differences_are_seen(b):
    differences_are_needed()


if __name__ == "__main__":
    sys.exit(main())
