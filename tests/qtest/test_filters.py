#!/usr/bin/env python3
# Filters and colo-compare: the same cases for qemu-colo and for the stock emulator.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
What "both" decorates runs twice, so an expectation that is not QEMU's own fails on QEMU. About 6
seconds.
"""

import functools

from colo_qtest import Skip, case, main, shutil, time, within
from colo_frames import STOCK, Vm, Wire, udp


def both(fn):
    """The case against qemu-colo and against the stock emulator."""
    def make(stock):
        @functools.wraps(fn)
        def run(bed):
            if stock and not shutil.which(STOCK):
                raise Skip(STOCK + " is not installed")
            return fn(bed, functools.partial(Vm, bed, stock=stock))
        run.__name__ = fn.__name__ + ("_stock" if stock else "_ours")
        return case(run)
    make(False)
    return make(True)


# --- Frames ---

@both
def mirror(b, vm):
    """A copy of each frame goes to outdev, and the frame goes on."""
    v = vm("vm")
    copy = v.wire("out")
    v.add("filter-mirror", "m", netdev="n0", queue="tx", outdev="out")
    rest = v.swallow()
    o = v.outside()
    for size in (1, 46, 1000, 1472):
        f = udp(b"%d" % size * size)[:42 + size]
        o.send(f)
        copy.expect(f)
        rest.expect(f)
    v.set("m", "status", "off")
    o.send(udp(b"unseen"))
    rest.expect(udp(b"unseen"))
    copy.none()
    v.set("m", "status", "on")
    o.send(udp(b"seen"))
    copy.expect(udp(b"seen"))
    rest.expect(udp(b"seen"))
    v.delete("m")
    o.send(udp(b"alone"))
    rest.expect(udp(b"alone"))
    copy.none(0.05)


@both
def directions(b, vm):
    """tx is towards the guest, rx from it; queue can be changed."""
    v = vm("vm")
    tx, rx, both_ = v.wire("tx"), v.wire("rx"), v.wire("both")
    for q, dev in (("tx", "tx"), ("rx", "rx"), ("all", "both")):
        v.add("filter-mirror", "m" + dev, netdev="n0", queue=q, outdev=dev)
    guest = v.wire("guest")
    v.add("filter-redirector", "g", netdev="n0", queue="rx", indev="guest")
    v.swallow()
    o = v.outside()
    a, z = udp(b"to the guest"), udp(b"from the guest")
    o.send(a)
    tx.expect(a)
    both_.expect(a)
    guest.send(z)
    o.expect(z)
    rx.expect(z)
    both_.expect(z)
    tx.none(0.05)
    rx.none(0.05)
    v.set("mtx", "queue", "rx")
    v.set("mrx", "queue", "tx")
    o.send(a)
    rx.expect(a)
    guest.send(z)
    tx.expect(z)
    o.expect(z)


@both
def redirector(b, vm):
    """What outdev takes goes nowhere else; what indev brings goes on behind the filter."""
    v = vm("vm")
    out, back, seen = v.wire("out"), v.wire("in"), v.wire("seen")
    # From the guest, filters are passed last to first.
    v.add("filter-mirror", "m", netdev="n0", queue="rx", outdev="seen")
    v.add("filter-redirector", "r", netdev="n0", queue="rx", indev="in", outdev="out")
    guest = v.wire("guest")
    v.add("filter-redirector", "g", netdev="n0", queue="rx", indev="guest")
    o = v.outside()
    for i in range(20):
        f = udp(b"frame %d" % i)
        guest.send(f)
        out.expect(f)
        back.send(f)
        o.expect(f)
        seen.expect(f)
    v.set("r", "status", "off")
    guest.send(udp(b"straight"))
    o.expect(udp(b"straight"))
    out.none(0.05)


@both
def redirector_towards_the_guest(b, vm):
    v = vm("vm")
    out, back = v.wire("out"), v.wire("in")
    v.add("filter-redirector", "a", netdev="n0", queue="tx", outdev="out")
    v.add("filter-redirector", "z", netdev="n0", queue="tx", indev="in")
    rest = v.swallow()
    o = v.outside()
    o.send(udp(b"1"))
    out.expect(udp(b"1"))
    rest.none(0.05)
    back.send(udp(b"2"))
    rest.expect(udp(b"2"))


@both
def order(b, vm):
    """position and insert: the first redirector of the list gets the frame."""
    v = vm("vm")
    wires = {n: v.wire(n) for n in "abcde"}
    o = v.outside()

    def first(name):
        f = udp(name.encode() + b" is first")
        o.send(f)
        wires[name].expect(f)

    def add(name, **props):
        v.add("filter-redirector", name, netdev="n0", queue="tx", outdev=name, **props)
    add("a")
    first("a")
    add("b", position="tail")
    first("a")
    add("c", position="head")
    first("c")
    add("d", position="id=c", insert="before")
    first("d")
    v.set("d", "status", "off")
    first("c")
    v.delete("c")
    first("a")
    v.delete("d")
    add("d", position="id=a")  # behind is the default
    first("a")
    v.delete("a")
    first("d")
    add("e", position="id=d", insert="before")
    first("e")
    v.delete("e")
    v.delete("d")
    first("b")


@both
def buffered(b, vm):
    """filter-buffer keeps frames for at most its interval, in order."""
    v = vm("vm")
    v.add("filter-buffer", "f", netdev="n0", queue="tx", interval=400000)
    rest = v.swallow()
    o = v.outside()
    for i in range(5):
        o.send(udp(b"%d" % i))
    for i in range(5):
        rest.expect(udp(b"%d" % i))
    o.send(udp(b"flushed"))
    time.sleep(0.05)
    v.delete("f")
    rest.expect(udp(b"flushed"), 0.3)


@case
def added_and_removed_under_traffic(b):
    """
    Nothing is lost, doubled or out of order while filters come and go. (QEMU's own chardevs
    block its main loop when nobody reads from them for a while.)
    """
    v = Vm(b, "vm")
    rest = v.swallow()
    copy = v.wire("copy")
    o = v.outside()
    sent = 0

    def traffic(n):
        nonlocal sent
        for _ in range(n):
            o.send(udp(b"number %06d" % sent))
            sent += 1
    traffic(50)
    for i in range(12):
        kind, ident = b.rng.choice((
            ("filter-mirror", "m"), ("filter-buffer", "f"), ("filter-rewriter", "w")))
        props = {"filter-mirror": {"outdev": "copy"}, "filter-rewriter": {},
                 "filter-buffer": {"interval": b.rng.randrange(1000, 20000)}}[kind]
        v.add(kind, ident, netdev="n0", queue=b.rng.choice(("tx", "all")),
              position=b.rng.choice(("head", "id=swallow-n0")), insert="before", **props)
        traffic(b.rng.randrange(80))
        if i % 3 == 0:
            v.set(ident, "status", "off")
            traffic(20)
            v.set(ident, "status", "on")
        traffic(b.rng.randrange(80))
        v.delete(ident)
        traffic(10)
    for i in range(sent):
        rest.expect(udp(b"number %06d" % i))
    rest.none(0.1)
    while copy.recv(0.05):
        pass
    return "%d frames" % sent


# --- notify_dev ---

@both
def notify_dev(b, vm):
    """Messages of colo-compare to whoever makes the checkpoints."""
    for vnet in (False, True):
        v = vm("vm%d" % vnet)
        pri, sec, out = (v.wire(n, vnet) for n in ("pri", "sec", "out"))
        note = v.wire("note", vnet)
        v.add("colo-compare", "cp", primary_in="pri", secondary_in="sec", outdev="out",
              notify_dev="note", iothread="io0", compare_timeout=3000,
              vnet_hdr_support=vnet)
        assert v.get("cp", "notify_dev") == "note"
        note.send(b"COLO_USERSPACE_PROXY_INIT")
        assert note.text() == b"COLO_COMPARE_GET_XEN_INIT"
        pri.send(udp(b"equal"))
        sec.send(udp(b"equal"))
        out.expect(udp(b"equal"))
        note.send(b"what is this?")
        pri.send(udp(b"mine"))
        sec.send(udp(b"your"))
        assert note.text() == b"DO_CHECKPOINT"
        out.none(0.1)
        note.send(b"COLO_CHECKPOINT")
        out.expect(udp(b"mine"))
        while note.text(0.2) is not None:
            pass
        sec.send(udp(b"later"))
        pri.send(udp(b"later"))
        out.expect(udp(b"later"))


@case
def notify_dev_lost_and_back(b):
    """A wish that its listener did not live to hear is told to the next one."""
    v = Vm(b, "vm")
    pri, sec, out, note = (v.wire(n) for n in ("pri", "sec", "out", "note"))
    v.add("colo-compare", "cp", primary_in="pri", secondary_in="sec", outdev="out",
          notify_dev="note", iothread="io0")
    note.close()
    time.sleep(0.1)
    pri.send(udp(b"mine"))
    sec.send(udp(b"your"))
    time.sleep(0.1)
    note = Wire(v.path("note"))
    assert note.text() == b"DO_CHECKPOINT"
    note.send(b"COLO_CHECKPOINT")
    out.expect(udp(b"mine"))
    note.close()


# --- Properties and errors ---

MIRROR = {"qom-type": "filter-mirror", "id": "m", "netdev": "n0", "outdev": "a"}
REDIRECTOR = {"qom-type": "filter-redirector", "id": "r", "netdev": "n0"}
BUFFER = {"qom-type": "filter-buffer", "id": "b", "netdev": "n0", "interval": 5000}
COMPARE = {"qom-type": "colo-compare", "id": "cp", "primary_in": "a", "secondary_in": "b",
           "outdev": "c", "iothread": "io0"}


def less(d, key):
    return {k: v for k, v in d.items() if k != key}


BAD = [
    (less(MIRROR, "netdev"), "Parameter 'netdev' is missing"),
    (less(MIRROR, "outdev"), "Parameter 'outdev' is missing"),
    (less(MIRROR, "id"), "Parameter 'id' is missing"),
    ({**MIRROR, "id": "1m"}, "Parameter 'id' expects an identifier"),
    ({**MIRROR, "netdev": "no"}, "Parameter 'netdev' expects a network backend id"),
    ({**MIRROR, "netdev": 5}, "Invalid parameter type for 'netdev', expected: string"),
    ({**MIRROR, "outdev": "no"}, ("DeviceNotFound", "Device 'no' not found")),
    ({**MIRROR, "queue": "up"}, "Parameter 'queue' does not accept value 'up'"),
    ({**MIRROR, "status": "maybe"},
     "Invalid value for netfilter status, should be 'on' or 'off'"),
    ({**MIRROR, "status": True}, "Invalid parameter type for 'status', expected: string"),
    ({**MIRROR, "position": "middle"},
     "Parameter 'position' expects 'head', 'tail' or 'id=<id>'"),
    ({**MIRROR, "position": "id=x"}, "filter 'x' not found"),
    ({**MIRROR, "position": "id=io0"}, "filter 'io0' belongs to a different netdev"),
    ({**MIRROR, "insert": "under"}, "Parameter 'insert' does not accept value 'under'"),
    ({**MIRROR, "frob": 1}, "Parameter 'frob' is unexpected"),
    ({**MIRROR, "vnet_hdr_support": "on"},
     "Invalid parameter type for 'vnet_hdr_support', expected: boolean"),
    (REDIRECTOR, "filter redirector needs 'indev' or 'outdev' at least one property set"),
    ({**REDIRECTOR, "indev": "c", "outdev": "c"},
     "'indev' and 'outdev' could not be same for filter redirector"),
    (less(BUFFER, "interval"), "Parameter 'interval' is missing"),
    ({**BUFFER, "interval": 0},
     "Property 'filter-buffer.interval' requires a positive value"),
    ({**BUFFER, "interval": -1}, "Parameter 'interval' expects uint32_t"),
    ({**BUFFER, "interval": 2 ** 32}, "Parameter 'interval' expects uint32_t"),
    ({**BUFFER, "interval": "5"}, "Parameter 'interval' expects uint64"),
    ({"qom-type": "filter-rewriter", "id": "w", "netdev": "n0", "outdev": "a"},
     "Parameter 'outdev' is unexpected"),
    (less(COMPARE, "primary_in"), "Parameter 'primary_in' is missing"),
    (less(COMPARE, "secondary_in"), "Parameter 'secondary_in' is missing"),
    (less(COMPARE, "outdev"), "Parameter 'outdev' is missing"),
    (less(COMPARE, "iothread"), "Parameter 'iothread' is missing"),
    ({**COMPARE, "iothread": 5}, "Invalid parameter type for 'iothread', expected: string"),
    ({**COMPARE, "compare_timeout": "x"}, "Parameter 'compare_timeout' expects uint64"),
    ({**COMPARE, "compare_timeout": 1.5}, "Parameter 'compare_timeout' expects uint64"),
    ({**COMPARE, "max_queue_size": 2 ** 32}, "Parameter 'max_queue_size' expects uint32_t"),
    ({**COMPARE, "expired_scan_cycle": -1},
     "Parameter 'expired_scan_cycle' expects uint32_t"),
    ({**COMPARE, "expired_scan_cycle": None},
     "Parameter 'expired_scan_cycle' expects uint64"),
    ({**COMPARE, "vnet_hdr_support": 1},
     "Invalid parameter type for 'vnet_hdr_support', expected: boolean"),
    ({**COMPARE, "frob": 1}, "Parameter 'frob' is unexpected"),
]


def refused(v, name, arguments, want):
    want = want if isinstance(want, tuple) else ("GenericError", want)
    got = v.answer(name, arguments)
    assert got == want, "%s %s: %s instead of %s" % (name, arguments, got, want)


@both
def bad_options(b, vm):
    v = vm("vm")
    for name in "abc":
        v.add_chardev(name)
    for arguments, want in BAD:
        refused(v, "object-add", arguments, want)
    v.host.cmd("object-add", MIRROR)  # nothing of the refused ones is left
    refused(v, "object-add", MIRROR,
            "attempt to add duplicate property 'm' to object (type 'container')")
    refused(v, "object-add", {**MIRROR, "id": "m2"}, "Device 'a' is in use")
    refused(v, "chardev-remove", {"id": "a"}, "Chardev 'a' is busy")
    refused(v, "chardev-remove", {"id": "zz"}, "Chardev 'zz' not found")
    refused(v, "object-del", {"id": "zz"}, "object 'zz' not found")
    refused(v, "netdev_del", {"id": "zz"}, ("DeviceNotFound", "Device 'zz' not found"))
    refused(v, "netdev_add", {"type": "socket", "id": "n0", "listen": "127.0.0.1:0"},
            "Duplicate ID 'n0'")
    unix = {"type": "socket", "data": {"addr": {"type": "unix", "data": {
        "path": b.dir + "/x"}}, "wait": False}}
    refused(v, "chardev-add", {"id": "a", "backend": unix},
            "Chardev with id 'a' already exists")
    unix["data"]["frob"] = 1
    refused(v, "chardev-add", {"id": "q", "backend": unix},
            "Parameter 'backend.data.frob' is unexpected")
    refused(v, "chardev-add", {"id": "q", "backend": {"type": "socket", "data": {}}},
            "Parameter 'backend.data.addr' is missing")
    refused(v, "qom-get", {"path": "/objects/zz", "property": "queue"},
            ("DeviceNotFound", "Device '/objects/zz' not found"))


@case
def bad_options_that_abort_the_stock_emulator(b):
    v = Vm(b, "vm")
    for name in "abcd":
        v.add_chardev(name)
    for change, want in (
            ({"secondary_in": "a"}, "same chardev"), ({"outdev": "b"}, "same chardev"),
            ({"notify_dev": "a"}, "same chardev"),
            ({"primary_in": "no"}, "'no' not found"), ({"iothread": "no"}, "'no' not found"),
            ({"notify_dev": "no"}, "'no' not found"),
            ({"compare_timeout": 0}, "'colo-compare.compare_timeout' requires a positive"),
            ({"max_queue_size": 0}, "'colo-compare.max_queue_size' requires a positive"),
            ({"expired_scan_cycle": 0}, "requires a positive"),
            ({"compare_timeout": -1}, "expects uint32_t")):
        got = v.answer("object-add", {**COMPARE, **change})
        assert got[0] and want in got[1], (change, got)
    v.host.cmd("object-add", COMPARE)
    refused(v, "object-add", COMPARE,
            "attempt to add duplicate property 'cp' to object (type 'container')")
    names = {p["name"] for p in v.host.cmd("qom-list-properties",
                                           {"typename": "colo-compare"})}
    assert {"notify_dev", "max_queue_size", "type"} < names, names
    refused(v, "object-del", {"id": "io0"}, "object 'io0' is in use, can not be deleted")
    v.delete("cp")
    v.delete("io0")


@both
def properties(b, vm):
    """qom-get, qom-set, qom-list of each."""
    v = vm("vm", netdevs=("n0", "n1"))
    for name in "abcdefg":
        v.add_chardev(name)
    common = {"netdev": "n0", "queue": "all", "status": "on", "position": "tail",
              "insert": "behind"}
    types = {"netdev": "string", "queue": "NetFilterDirection", "status": "string",
             "position": "string", "insert": "string", "type": "string"}
    for kind, given, shown, own in (
            ("mirror", {"outdev": "a"}, {"outdev": "a", "vnet_hdr_support": False},
             {"outdev": "string", "vnet_hdr_support": "bool"}),
            ("redirector", {"indev": "b"},
             {"indev": "b", "outdev": "", "vnet_hdr_support": False},
             {"indev": "string", "outdev": "string", "vnet_hdr_support": "bool"}),
            ("buffer", {"interval": 99}, {"interval": 99}, {"interval": "uint32"}),
            ("rewriter", {"vnet_hdr_support": True}, {"vnet_hdr_support": True},
             {"vnet_hdr_support": "bool"})):
        v.add("filter-" + kind, kind, netdev="n0", **given)
        for name, value in {**common, **shown, "type": "filter-" + kind}.items():
            assert v.get(kind, name) == value, (kind, name, v.get(kind, name))
        for listed in (v.host.cmd("qom-list", {"path": "/objects/" + kind}),
                       v.host.cmd("qom-list-properties", {"typename": "filter-" + kind})):
            assert {p["name"]: p["type"] for p in listed} == {**types, **own}, listed
    children = {p["name"]: p["type"] for p in v.host.cmd("qom-list", {"path": "/objects"})}
    for kind in ("mirror", "redirector", "buffer", "rewriter"):
        assert children[kind] == "child<filter-%s>" % kind, children
    for ident, name, value in (("mirror", "queue", "tx"), ("mirror", "status", "off"),
                               ("mirror", "outdev", "c"), ("mirror", "position", "head"),
                               ("mirror", "insert", "before"),
                               ("mirror", "vnet_hdr_support", True),
                               ("redirector", "outdev", "d"), ("redirector", "indev", "e"),
                               ("buffer", "interval", 77),
                               ("rewriter", "vnet_hdr_support", False)):
        v.set(ident, name, value)
        assert v.get(ident, name) == value, (ident, name, v.get(ident, name))
    for ident, name, value, want in (
            ("mirror", "queue", "up", "Parameter 'queue' does not accept value 'up'"),
            ("mirror", "status", False,
             "Invalid parameter type for 'status', expected: string"),
            ("mirror", "frob", 1, "Property 'filter-mirror.frob' not found"),
            ("mirror", "type", "x", "Property 'filter-mirror.type' is not writable"),
            ("buffer", "interval", 0,
             "Property 'filter-buffer.interval' requires a positive value")):
        refused(v, "qom-set", {"path": "/objects/" + ident, "property": name,
                               "value": value}, want)
    v.host.cmd("netdev_del", {"id": "n0"})  # and what filters it
    refused(v, "object-del", {"id": "mirror"}, "object 'mirror' not found")


@both
def properties_of_colo_compare(b, vm):
    v = vm("vm")
    for name in "abcdefg":
        v.add_chardev(name)
    v.host.cmd("object-add", {**COMPARE, "iothread": "/objects/io0"})
    for name, value in {"primary_in": "a", "secondary_in": "b", "outdev": "c",
                        "iothread": "/objects/io0", "compare_timeout": 3000,
                        "expired_scan_cycle": 1000, "max_queue_size": 1024,
                        "vnet_hdr_support": False, "type": "colo-compare"}.items():
        assert v.get("cp", name) == value, (name, v.get("cp", name))
    listed = {p["name"]: p["type"] for p in v.host.cmd("qom-list", {"path": "/objects/cp"})}
    assert listed == {
        "type": "string", "primary_in": "string", "secondary_in": "string",
        "outdev": "string", "notify_dev": "string", "iothread": "link<iothread>",
        "compare_timeout": "uint64", "expired_scan_cycle": "uint32",
        "max_queue_size": "uint32", "vnet_hdr_support": "bool"}, listed
    for name, value in {"primary_in": "e", "secondary_in": "f", "outdev": "g",
                        "notify_dev": "d", "compare_timeout": 5, "expired_scan_cycle": 6,
                        "max_queue_size": 7, "vnet_hdr_support": True}.items():
        v.set("cp", name, value)
        assert v.get("cp", name) == value, (name, v.get("cp", name))
    v.set("cp", "iothread", "io1")
    assert v.get("cp", "iothread") == "/objects/io1"
    for name, value, want in (
            ("compare_timeout", 0,
             "Property 'colo-compare.compare_timeout' requires a positive value"),
            ("compare_timeout", 2 ** 32, "Parameter 'compare_timeout' expects uint32_t"),
            ("compare_timeout", "5", "Parameter 'compare_timeout' expects uint64"),
            ("iothread", "cp", "Invalid parameter type for 'iothread', expected: iothread"),
            ("iothread", "no", ("DeviceNotFound", "Device 'no' not found")),
            ("primary_in", 4, "Invalid parameter type for 'primary_in', expected: string"),
            ("frob", 3, "Property 'colo-compare.frob' not found")):
        refused(v, "qom-set", {"path": "/objects/cp", "property": name, "value": value}, want)


@case
def changed_devices_are_used(b):
    """QEMU stores the name of another chardev and goes on with the old one; we change."""
    v = Vm(b, "vm")
    old, new = v.wire("old"), v.wire("new")
    v.add("filter-mirror", "m", netdev="n0", queue="tx", outdev="old")
    rest = v.swallow()
    o = v.outside()
    o.send(udp(b"1"))
    old.expect(udp(b"1"))
    v.set("m", "outdev", "new")
    o.send(udp(b"2"))
    new.expect(udp(b"2"))
    old.none(0.05)
    v.host.cmd("chardev-remove", {"id": "old"})
    other = v.wire("other")
    v.set("swallow-n0", "outdev", "other")
    o.send(udp(b"3"))
    other.expect(udp(b"3"))
    for i in (1, 2):
        rest.expect(udp(b"%d" % i))
    # Behind the redirector the mirror sees nothing more.
    v.set("m", "position", "tail")
    o.send(udp(b"4"))
    other.expect(udp(b"4"))
    new.expect(udp(b"3"))
    new.none(0.05)
    refused(v, "qom-set", {"path": "/objects/m", "property": "outdev", "value": "no"},
            ("DeviceNotFound", "Device 'no' not found"))
    refused(v, "qom-set", {"path": "/objects/m", "property": "outdev", "value": "other"},
            "Device 'other' is in use")


@both
def yank_and_change(b, vm):
    """A yanked chardev loses its connection and takes the next one."""
    v = vm("vm")
    copy = v.wire("a")
    v.add_chardev("b")
    v.add("filter-mirror", "m", netdev="n0", queue="tx", outdev="a")
    rest, o = v.swallow(), v.outside()
    named = {(i["type"], i.get("id")) for i in v.host.cmd("query-yank")}
    assert {("chardev", "a"), ("chardev", "b")} <= named, named
    for bad in ([{"type": "chardev", "id": "zz"}],
                [{"type": "chardev", "id": "a"}, {"type": "chardev", "id": "zz"}]):
        refused(v, "yank", {"instances": bad}, ("DeviceNotFound", "Instance not found"))
    v.host.cmd("yank", {"instances": []})
    o.send(udp(b"1"))
    copy.expect(udp(b"1"))  # nothing of the refused ones was done
    v.host.cmd("yank", {"instances": [{"type": "chardev", "id": "a"}]})
    assert copy.closed()
    copy = Wire(v.path("a"))
    end = time.monotonic() + 5
    while not v.connected("a"):
        within(end, "in time")
        time.sleep(0.01)
    o.send(udp(b"2"))
    copy.expect(udp(b"2"))
    rest.expect(udp(b"1"))
    rest.expect(udp(b"2"))
    copy.close()
    unix = {"type": "socket", "data": {"addr": {"type": "unix", "data": {
        "path": b.dir + "/moved"}}, "wait": False}}
    refused(v, "chardev-change", {"id": "a", "backend": unix},
            "Chardev user does not support chardev hotswap")
    refused(v, "chardev-change", {"id": "zz", "backend": unix}, "Chardev 'zz' does not exist")
    refused(v, "chardev-send-break", {"id": "zz"}, "Chardev 'zz' not found")
    v.host.cmd("chardev-send-break", {"id": "b"})
    v.host.cmd("chardev-change", {"id": "b", "backend": unix})
    Wire(b.dir + "/moved").close()


if __name__ == "__main__":
    raise SystemExit(main())
