# The command table: commands but for those of disks.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import glob
import importlib

import colo_qtest
from colo_commands import *
from colo_qtest import *


@case
def table_is_complete(b):
    """No line without a case, no case without a line; no command or event of ours, and no
    COLO command of stock's, that the table lacks."""
    before = list(colo_qtest.CASES)
    for path in sorted(glob.glob(colo_qtest.HERE + "/test_commands_*.py")):
        importlib.import_module(os.path.basename(path)[:-3])
    colo_qtest.CASES[:] = before
    have = {(section, cell) for section, rows in table().items() for cell, _, _ in rows}
    missing = sorted(have - set(LINES))
    assert not missing, "no case: %s" % missing
    assert not set(LINES) - have, "no line: %s" % sorted(set(LINES) - have)
    words = {n for section, rows in table().items() for cell, _, _ in rows
             for n in names(cell) if section in ("Commands", "Events")}
    known = set()
    for path in glob.glob(SCHEMA + "/*.json"):
        for text in open(path):
            if text.startswith(("{ 'command':", "{ 'event':")):
                known.add(text.split("'")[3])
    assert len(known) > 60
    known |= {"x-colo-lost-heartbeat", "query-colo-status", "COLO_EXIT", "query-migrate", "yank",
              "query-status", "xen-colo-do-checkpoint", "xen-set-replication", "query-yank",
              "query-xen-replication-status", "qom-get", "qom-set", "qom-list", "query-chardev",
              "query-block", "query-blockstats", "query-named-block-nodes", "query-iothreads",
              "netdev_add", "netdev_del", "announce-self", "MIGRATION", "qom-list-types",
              "qom-list-properties", "query-qmp-schema", "query-commands", "object-add",
              "object-del", "migrate-set-parameters", "human-monitor-command"}
    lacks = [k for k in sorted(known) if not any(fnmatch.fnmatchcase(k, w) for w in words)]
    assert not lacks, "the table has no %s" % lacks
    for section, rows in table().items():
        for cell, status, _ in rows:
            assert status in ("done", "passed", "refused", "ours"), (section, cell, status)
    return "%d lines" % len(have)


@commands("migrate-set-capabilities")
def _(t):
    for state in (True, False):
        t.equal("migrate-set-capabilities", caps(("x-colo", state), ("events", state)))
        for host in t.hosts.values():
            got = {c["capability"]: c["state"] for c in host.cmd("query-migrate-capabilities")}
            assert got["x-colo"] is state and got["events"] is state, got
    t.same("migrate-set-capabilities", caps(("nope", True)))
    t.same("migrate-set-capabilities", caps(("x-colo", 5)))
    t.same("migrate-set-capabilities", {"capabilities": [{"capability": "x-colo"}]})
    t.same("migrate-set-capabilities", {"capabilities": "x-colo"})
    t.same("migrate-set-capabilities")


@commands("query-migrate-capabilities")
def _(t):
    stock, ours = t.same("query-migrate-capabilities")
    assert [c["capability"] for c in stock] == [c["capability"] for c in ours]


@commands("migrate-set-parameters")
def _(t):
    for value in (1, 777, 4294967295):
        t.equal("migrate-set-parameters", {"x-checkpoint-delay": value, "max-bandwidth": 99999})
        for host in t.hosts.values():
            got = host.cmd("query-migrate-parameters")
            assert (got["x-checkpoint-delay"], got["max-bandwidth"]) == (value, 99999), got
    for value in (0, -1, "5", 4294967296, 1.5, None, True):
        t.same("migrate-set-parameters", {"x-checkpoint-delay": value})
    t.same("migrate-set-parameters", {"nope": 1})
    t.same("migrate-set-parameters", {"max-bandwidth": "much"})


@commands("query-migrate-parameters")
def _(t):
    stock, ours = t.same("query-migrate-parameters")
    assert set(ours) - set(stock) == ours_alone("Capabilities and parameters of migration"), ours
    assert not set(stock) - set(ours)


@commands("migrate")
def _(t):
    t.same("migrate", {"uri": "nonsense"})
    t.same("migrate", {"uri": 5})
    t.same("migrate", {"uri": "tcp:127.0.0.1:1", "detach": "yes"})
    t.same("migrate", {"url": "tcp:127.0.0.1:1"})
    t.same("migrate")
    t.ours.x_colo()
    for word in ("blk", "inc", "resume"):
        has_words(t.ours.error("migrate", {"uri": "tcp:127.0.0.1:1", word: True}), word, "x-colo")
    t.ours.x_colo(False)


@commands("migrate_cancel")
def _(t):
    t.equal("migrate_cancel")
    t.same("migrate_cancel", {"force": True})


@commands("migrate-incoming")
def _(t):
    t.same("migrate-incoming", {"uri": "tcp:127.0.0.1:0"})
    t.same("migrate-incoming")


@commands("query-migrate")
def _(t):
    t.same("query-migrate")


@commands("x-colo-lost-heartbeat")
def _(t):
    t.same("x-colo-lost-heartbeat")
    has_words(t.ours.error("x-colo-lost-heartbeat", {"fenced": 1}), "fenced")


@commands("query-colo-status")
def _(t):
    stock, ours = t.same("query-colo-status")
    assert {k: ours[k] for k in stock} == stock, ours


@commands("xen-colo-do-checkpoint")
def _(t):
    t.same("xen-colo-do-checkpoint")


@commands("xen-set-replication")
def _(t):
    for enable, primary in ((True, True), (False, True), (True, False), (False, False)):
        t.equal("xen-set-replication", {"enable": enable, "primary": primary})
    t.equal("xen-set-replication", {"enable": False, "primary": True, "failover": True})
    t.same("xen-set-replication", {"enable": True, "primary": True, "failover": True})
    t.same("xen-set-replication", {"enable": True})
    t.same("xen-set-replication", {"enable": "on", "primary": True})


@commands("query-xen-replication-status")
def _(t):
    t.equal("query-xen-replication-status")


@commands("object-add, object-del")
def _(t):
    base = {"qom-type": "filter-mirror", "id": "m9", "netdev": "hn0", "outdev": "c0"}
    for change in ({"id": "m0"}, {"id": "iothread1"}, {"qom-type": "filter-nope"}, {"netdev": "x"},
                   {"outdev": "x"}, {"queue": "x"}, {"nope": 1}, {"queue": 1}, {"id": "1 x"},
                   {"status": "maybe"}, {"position": "id=nope"}, {"insert": "above"}):
        t.same("object-add", {**base, **change})
    t.same("object-add", {"qom-type": "filter-mirror", "id": "m9", "netdev": "hn0"})
    t.same("object-add", {"qom-type": "filter-mirror", "netdev": "hn0", "outdev": "c0"})
    t.same("object-add", {"id": "m9"})
    t.equal("object-add", {"qom-type": "iothread", "id": "io9", "poll-max-ns": 5})
    t.same("object-add", {**base, "id": "io9"})
    t.same("object-add", {"qom-type": "memory-backend-ram", "id": "m0", "size": 4096})
    t.equal("object-del", {"id": "io9"})
    t.same("object-del", {"id": "io9"})
    t.equal("object-add", {"qom-type": "filter-buffer", "id": "f9", "netdev": "hn0",
                           "interval": 1000, "position": "id=redire0", "insert": "before"})
    t.equal("object-del", {"id": "f9"})
    t.same("object-del")
    t.same("object-del", {"id": 5})


@commands("qom-get, qom-set")
def _(t):
    for path in ("/objects/m0", "m0", "/objects/redire0", "/objects/iothread1"):
        for name in ("type", "queue", "netdev", "status", "poll-max-ns", "nope"):
            t.equal("qom-get", {"path": path, "property": name})
    t.same("qom-get", {"path": "/objects/nope", "property": "type"})
    t.same("qom-get", {"path": "/objects/m0"})
    for value in ("off", "on", "maybe", 5, None):
        t.same("qom-set", {"path": "/objects/m0", "property": "status", "value": value})
        t.equal("qom-get", {"path": "/objects/m0", "property": "status"})
    t.same("qom-set", {"path": "/objects/m0", "property": "nope", "value": 1})
    t.same("qom-set", {"path": "/objects/iothread1", "property": "poll-max-ns", "value": 7})
    t.equal("qom-get", {"path": "/objects/iothread1", "property": "poll-max-ns"})


@commands("qom-list, qom-list-properties")
def _(t):
    for path in ("/objects/m0", "/objects/redire0", "/objects/iothread1"):
        stock, ours = t.same("qom-list", {"path": path})
        assert pairs(stock) == pairs(ours), (path, stock, ours)
    stock, ours = (h.cmd("qom-list", {"path": "/objects"}) for h in (t.stock, t.ours))
    assert pairs(stock) ^ pairs(ours) == {("pc.ram", "child<memory-backend-ram>"),
                                          ("pc.ram", "child<memory-backend-file>")}, ours
    t.same("qom-list", {"path": "/nope"})
    for name in ("filter-mirror", "filter-redirector", "filter-rewriter", "filter-buffer",
                 "iothread"):
        stock, ours = t.same("qom-list-properties", {"typename": name})
        assert pairs(stock) == pairs(ours), (name, stock, ours)
    # Stock 7.2 aborts when asked for those of colo-compare.
    assert pairs(t.ours.cmd("qom-list-properties", {"typename": "colo-compare"}))
    t.same("qom-list-properties", {"typename": "nope"})


@commands("qom-list-types")
def _(t):
    for implements in ("netfilter", "netfilter-nope", "user-creatable"):
        t.equal("qom-list-types", {"implements": implements})


@commands("query-iothreads")
def _(t):
    stock, ours = t.same("query-iothreads")
    assert [i["id"] for i in ours] == [i["id"] for i in stock] == ["iothread1"]


@commands("chardev-add, chardev-remove")
def _(t):
    null = {"type": "null", "data": {}}
    t.same("chardev-add", {"id": "mirror0", "backend": null})
    t.same("chardev-add", {"id": "x", "backend": {"type": "nope", "data": {}}})
    t.same("chardev-add", {"id": "x", "backend": {"type": "socket", "data": {}}})
    t.same("chardev-add", {"id": "x"})
    t.equal("chardev-add", {"id": "null0", "backend": null})
    for name, host in t.hosts.items():
        host.cmd("chardev-add", {"id": "s0", "backend": socket_chardev(
            "%s/s0-%s" % (t.bed.dir, name), server=True, wait=False)})
    t.same("chardev-add", {"id": "null0", "backend": socket_chardev(t.bed.dir + "/never")})
    t.same("chardev-add", {"id": "s0", "backend": socket_chardev(t.bed.dir + "/never")})
    t.same("chardev-remove", {"id": "nope"})
    t.same("chardev-remove", {"id": "mirror0"})
    t.equal("chardev-remove", {"id": "null0"})
    t.equal("chardev-remove", {"id": "s0"})
    t.same("chardev-remove", {"id": "s0"})


@commands("chardev-change")
def _(t):
    t.same("chardev-change", {"id": "nope", "backend": {"type": "null", "data": {}}})
    t.same("chardev-change", {"id": "mirror0", "backend": {"type": "null", "data": {}}})
    t.same("chardev-change", {"id": "mirror0"})


@commands("chardev-send-break")
def _(t):
    t.same("chardev-send-break", {"id": "nope"})
    t.equal("chardev-send-break", {"id": "mirror0"})


@commands("query-chardev")
def _(t):
    stock, ours = t.same("query-chardev")
    assert sorted(c["label"] for c in stock) == sorted(c["label"] for c in ours), ours
    files = [{c["label"]: c["filename"].split("/")[0] + c["filename"].partition(",")[2]
              for c in said} for said in (stock, ours)]
    assert files[0] == files[1], files


@commands("query-chardev-backends")
def _(t):
    t.equal("query-chardev-backends")


@commands("netdev_add, netdev_del")
def _(t):
    for arguments in ({"type": "nope", "id": "n9"}, {"type": "user"}, {"id": "n9"},
                      {"type": "socket", "id": "n9"}, {"type": "user", "id": "hn0"},
                      {"type": "hubport", "id": "hn0", "hubid": 0}, {"type": 5, "id": "n9"}):
        t.same("netdev_add", arguments)
    t.equal("netdev_add", {"type": "user", "id": "n9"})
    t.same("netdev_add", {"type": "user", "id": "n9"})
    t.equal("object-add", {"qom-type": "filter-buffer", "id": "f9", "netdev": "n9",
                           "interval": 1000})
    t.equal("netdev_del", {"id": "n9"})
    t.same("object-del", {"id": "f9"})
    t.same("netdev_del", {"id": "n9"})
    t.same("netdev_del", {"id": "vb0"})
    t.same("netdev_del")


@commands("announce-self")
def _(t):
    how = {"initial": 50, "max": 550, "rounds": 2, "step": 50}
    t.equal("announce-self", how)
    t.equal("announce-self", {**how, "interfaces": ["e0"], "id": "x"})
    t.equal("announce-self", {**how, "rounds": 0, "id": "x"})
    t.same("announce-self")
    t.same("announce-self", {**how, "rounds": "many"})
    t.same("announce-self", {**how, "interfaces": "e0"})
    t.same("announce-self", {**how, "nope": 1})


@commands("set_link")
def _(t):
    t.same("set_link", {"name": "nope", "up": True})
    for up in (False, True):
        t.equal("set_link", {"name": "e0", "up": up})
    t.equal("set_link", {"name": "hn0", "up": True})


@commands("query-rx-filter")
def _(t):
    t.same("query-rx-filter", {"name": "nope"})
    t.same("query-rx-filter", {"name": "e0"})


@commands("query-qmp-schema")
def _(t):
    stock, ours = (t.hosts[h].cmd("query-qmp-schema") for h in ("stock", "ours"))
    known = {e["name"]: e for e in ours}
    lacks = [e["name"] for e in stock if e["name"] not in known]
    assert not lacks and len(known) == len(ours) > len(stock)
    more = {e["name"] for e in ours if e["meta-type"] in ("command", "event")} - \
        {e["name"] for e in stock}
    assert more == ours_alone("Commands") | ours_alone("Events"), more


@commands("yank, query-yank")
def _(t):
    t.same("query-yank")
    t.equal("yank", {"instances": []})
    for instance in ({"type": "chardev", "id": "nope"}, {"type": "nope"}, {"type": "chardev"},
                     {"type": "migration"}, {"type": "block-node", "node-name": "nope"}):
        t.same("yank", {"instances": [instance]})
    t.same("yank")
    t.equal("yank", {"instances": [{"type": "chardev", "id": "mirror0"}]})


@commands("stop, cont")
def _(t):
    for command, state in (("stop", "paused"), ("stop", "paused"), ("cont", "running"),
                           ("cont", "running")):
        t.equal(command)
        assert t.equal("query-status")["status"] == state
    t.same("stop", {"now": True})


@commands("query-status")
def _(t):
    t.equal("query-status")


@commands("quit")
def _(b):
    host = b.primary()
    assert host.cmd("quit") == {}
    assert host.ended() == 0


@commands("system_reset, system_powerdown")
def _(t):
    t.equal("system_reset")
    t.equal("system_powerdown")
    for host in t.hosts.values():
        host.qmp.wait_event("RESET")
        host.qmp.wait_event("POWERDOWN")


@commands("qmp_capabilities")
def _(t):
    t.same("qmp_capabilities")
    t.same("qmp_capabilities", {"enable": ["oob"]})
    assert t.ours.qmp.greeting == t.stock.qmp.greeting


@commands("query-commands")
def _(t):
    stock, ours = t.same("query-commands")
    stock, ours = ({c["name"] for c in said} for said in (stock, ours))
    assert ours - stock == ours_alone("Commands") and not stock - ours, ours ^ stock


@commands("query-version, query-name")
def _(t):
    t.equal("query-version")
    t.equal("query-name")


@commands("query-colo-proxy")
def _(t):
    kinds = [o["type"] for o in t.ours.cmd("query-colo-proxy")]
    assert "netdev" in kinds and "filter-mirror" in kinds, kinds


@commands("query-colo-stats")
def _(t):
    got = t.ours.cmd("query-colo-stats")  # under protection: test_qmp.py
    assert got["recent"] == [] and got["memory"]["guest-ram"] > 0, got


@commands("x-colo-switchover")
def _(t):
    assert t.ours.error("x-colo-switchover")  # with a pair: test_switchover and others


@commands("x-colo-protect")
def _(t):
    has_words(t.ours.error("x-colo-protect"), "pair")  # with one: test_pair.py


@commands("getfd, closefd")
def _(t):
    for command in ("getfd", "closefd"):
        t.same(command, {"fdname": "x"})
        t.same(command, {"fdname": 5})
        t.same(command)


@commands("everything else")
def _(t):
    t.same("nope")
    t.same("query-nope", {"x": 1})
    t.same("query-cpus-fast")
    t.same("query-memory-size-summary")
    t.equal("query-kvm")
    t.same("query-pci")
    t.same("getfd", {"fdname": "x"})
    t.same("migrate-set-capabilities", {"capabilities": [], "nope": 1})


@case
def differences_are_seen(b):
    differences_are_needed()


if __name__ == "__main__":
    sys.exit(main())
